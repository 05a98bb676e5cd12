//! Channels of an interface: how many queues its driver runs, and how many it could.

use rustix::io::Errno;

use super::{Ethtool, EthtoolError, put_header};
use crate::attributes::{attribute_u32, put};
use crate::genetlink::GenetlinkError;

// linux/ethtool_netlink.h
const ETHTOOL_MSG_CHANNELS_GET: u8 = 17;
const ETHTOOL_MSG_CHANNELS_SET: u8 = 18;
const ETHTOOL_A_CHANNELS_RX_MAX: u16 = 2;
const ETHTOOL_A_CHANNELS_TX_MAX: u16 = 3;
const ETHTOOL_A_CHANNELS_COMBINED_MAX: u16 = 5;
const ETHTOOL_A_CHANNELS_RX_COUNT: u16 = 6;
const ETHTOOL_A_CHANNELS_TX_COUNT: u16 = 7;
const ETHTOOL_A_CHANNELS_COMBINED_COUNT: u16 = 9;

/// Channels of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelCount {
    /// How many there are.
    pub now: u32,
    /// How many the driver could have.
    pub max: u32,
}

/// Channels of an interface. Most NICs have combined ones, a veth has the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Those that only receive.
    pub rx: ChannelCount,
    /// Those that only transmit.
    pub tx: ChannelCount,
    /// Those that do both.
    pub combined: ChannelCount,
}

impl Channels {
    /// Receive queues that there are: what an AF_XDP socket each can be bound to.
    #[must_use]
    pub fn receive_queues(&self) -> u32 {
        self.combined.now.saturating_add(self.rx.now)
    }

    /// Transmit queues that there are.
    #[must_use]
    pub fn transmit_queues(&self) -> u32 {
        self.combined.now.saturating_add(self.tx.now)
    }

    /// Receive queues that the driver could have.
    #[must_use]
    pub fn receive_queues_max(&self) -> u32 {
        if self.combined.max > 0 { self.combined.max } else { self.rx.max.min(self.tx.max) }
    }

    /// The same interface with this many queues, each of which receives and transmits; `None` if
    /// the driver cannot have as many, or none are asked for.
    #[must_use]
    pub fn with_queues(&self, queues: u32) -> Option<Channels> {
        if queues == 0 || queues > self.receive_queues_max() {
            return None;
        }
        let mut channels = *self;
        let separate = if self.combined.max > 0 { 0 } else { queues };
        channels.combined.now = queues - separate;
        (channels.rx.now, channels.tx.now) = (separate, separate);
        Some(channels)
    }

    fn from_answer(answer: &[u8]) -> Channels {
        // What a driver does not have is left out of the answer.
        let count = |now, max| ChannelCount {
            now: attribute_u32(answer, now).unwrap_or(0),
            max: attribute_u32(answer, max).unwrap_or(0),
        };
        Channels {
            rx: count(ETHTOOL_A_CHANNELS_RX_COUNT, ETHTOOL_A_CHANNELS_RX_MAX),
            tx: count(ETHTOOL_A_CHANNELS_TX_COUNT, ETHTOOL_A_CHANNELS_TX_MAX),
            combined: count(ETHTOOL_A_CHANNELS_COMBINED_COUNT, ETHTOOL_A_CHANNELS_COMBINED_MAX),
        }
    }

    fn put(&self, body: &mut Vec<u8>) {
        let kinds = [
            (ETHTOOL_A_CHANNELS_RX_COUNT, self.rx),
            (ETHTOOL_A_CHANNELS_TX_COUNT, self.tx),
            (ETHTOOL_A_CHANNELS_COMBINED_COUNT, self.combined),
        ];
        for (kind, count) in kinds.into_iter().filter(|(_, count)| count.max > 0) {
            put(body, kind, &count.now.to_ne_bytes());
        }
    }
}

impl Ethtool {
    /// The channels of an interface; `None` if its driver has none to tell of.
    pub fn channels(&mut self, device: &str) -> Result<Option<Channels>, EthtoolError> {
        let what = format!("read channels of {device}");
        let mut body = Vec::new();
        put_header(&mut body, device);
        match self.genetlink.exchange(&what, ETHTOOL_MSG_CHANNELS_GET, &body) {
            Ok(Some(answer)) => Ok(Some(Channels::from_answer(&answer))),
            Ok(None) => Err(GenetlinkError::Malformed { what }.into()),
            Err(error) if error.is(Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Receive queues of an interface: what an AF_XDP socket each can be bound to. Of a driver
    /// that has no channels to tell of it is 1, since queue 0 is all that is known to be there.
    pub fn rx_queues(&mut self, device: &str) -> Result<u32, EthtoolError> {
        let channels = self.channels(device)?;
        Ok(channels.map_or(1, |channels| channels.receive_queues().max(1)))
    }

    /// Makes the channels of an interface as many as `channels` has `now`. Drivers take the NIC
    /// down for it; they refuse to take a queue away that an AF_XDP socket is bound to.
    pub fn set_channels(&mut self, device: &str, channels: &Channels) -> Result<(), EthtoolError> {
        let Channels { rx, tx, combined } = channels;
        let what = format!(
            "set channels of {device} to {} combined, {} rx, {} tx",
            combined.now, rx.now, tx.now
        );
        let mut body = Vec::new();
        put_header(&mut body, device);
        channels.put(&mut body);
        self.genetlink.exchange(&what, ETHTOOL_MSG_CHANNELS_SET, &body)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(now: u32, max: u32) -> ChannelCount {
        ChannelCount { now, max }
    }

    #[test]
    fn both_kinds_of_channels_receive() {
        let nic = Channels { combined: count(4, 8), rx: count(1, 8), tx: count(0, 8) };
        assert_eq!((nic.receive_queues(), nic.transmit_queues()), (5, 4));
        let veth = Channels { rx: count(2, 4), tx: count(3, 4), ..Channels::default() };
        assert_eq!((veth.receive_queues(), veth.transmit_queues()), (2, 3));
        assert_eq!((nic.receive_queues_max(), veth.receive_queues_max()), (8, 4));
    }

    #[test]
    fn queues_are_made_of_combined_channels_where_there_are_any() {
        let nic = Channels { combined: count(4, 8), rx: count(1, 8), tx: count(0, 8) };
        let changed = nic.with_queues(8).expect("as many as it has");
        assert_eq!((changed.combined.now, changed.rx.now, changed.tx.now), (8, 0, 0));
        assert_eq!(nic.with_queues(9), None);
        let veth = Channels { rx: count(1, 4), tx: count(1, 2), ..Channels::default() };
        let changed = veth.with_queues(2).expect("as many as it can send by");
        assert_eq!((changed.combined.now, changed.rx.now, changed.tx.now), (0, 2, 2));
        assert_eq!((veth.with_queues(3), veth.with_queues(0)), (None, None));
    }

    #[test]
    fn what_a_driver_does_not_have_is_neither_read_nor_written() {
        let mut body = Vec::new();
        let nic = Channels { combined: count(4, 8), ..Channels::default() };
        nic.put(&mut body);
        assert_eq!(attribute_u32(&body, ETHTOOL_A_CHANNELS_COMBINED_COUNT), Some(4));
        assert_eq!(attribute_u32(&body, ETHTOOL_A_CHANNELS_RX_COUNT), None);
        put(&mut body, ETHTOOL_A_CHANNELS_COMBINED_MAX, &8u32.to_ne_bytes());
        assert_eq!(Channels::from_answer(&body), nic);
    }
}
