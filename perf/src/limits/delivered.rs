//! What reached a pod, in the bytes that limits count: by the counters of the pod's own kernel,
//! which knows nothing of limits.

use std::time::Instant;

use anyhow::Result;
use e2e::netns::Namespace;

use crate::internet::Family;
use crate::lane::{InterfaceCounts, ROUTE_MTU};

/// Bytes of an Ethernet header.
pub const ETHERNET_BYTES: usize = 14;

/// A full packet: the route MTU and the Ethernet header.
pub const FULL_BYTES: usize = ROUTE_MTU as usize + ETHERNET_BYTES;

/// A look at a pod's interface.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    at: Instant,
    counts: InterfaceCounts,
}

impl Look {
    /// # Errors
    /// When the pod has no interface.
    pub fn at(pod: &Namespace) -> Result<Look> {
        Ok(Look { counts: InterfaceCounts::of(pod)?, at: Instant::now() })
    }

    /// Bits per second that the pod has got since an earlier look, by TCP over a family or by
    /// whatever else sends no super-packets.
    pub fn bits_per_s_since(&self, before: &Look, tcp: Option<Family>) -> f64 {
        let bytes = (self.counts.rx_bytes - before.counts.rx_bytes) as f64;
        let packets = (self.counts.rx - before.counts.rx) as f64;
        let wire_bytes = tcp.map_or(bytes, |family| wire_bytes(bytes, packets, family));
        8.0 * wire_bytes / (self.at - before.at).as_secs_f64()
    }
}

/// Bytes of Ethernet, IP and TCP in front of a segment's payload: with timestamps (RFC 7323), as
/// Linux sends them.
fn tcp_header_bytes(family: Family) -> f64 {
    let ip = match family {
        Family::Ipv4 => 20,
        Family::Ipv6 => 40,
    };
    (ETHERNET_BYTES + ip + 20 + 12) as f64
}

/// What these packets of a stream are on a wire: a super-packet has one header for all of its
/// segments, which are full ones. Packets that are no super-packets are what they are, and their
/// payload in full ones would never be more.
fn wire_bytes(bytes: f64, packets: f64, family: Family) -> f64 {
    let (header, full) = (tcp_header_bytes(family), FULL_BYTES as f64);
    let payload = bytes - packets * header;
    bytes.max(payload * full / (full - header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_super_packet_is_its_segments_on_a_wire() {
        let (v4, v6) = (66.0 + 40.0 * 1448.0, 86.0 + 40.0 * 1428.0);
        assert!((wire_bytes(10.0 * v4, 10.0, Family::Ipv4) - 400.0 * 1514.0).abs() < 1e-6);
        assert!((wire_bytes(10.0 * v6, 10.0, Family::Ipv6) - 400.0 * 1514.0).abs() < 1e-6);
    }

    #[test]
    fn packets_of_any_length_are_what_they_are() {
        let short = 9.0 * 1514.0 + 100.0;
        assert_eq!(wire_bytes(short, 10.0, Family::Ipv4), short);
        assert_eq!(wire_bytes(10.0 * 66.0, 10.0, Family::Ipv4), 660.0);
    }
}
