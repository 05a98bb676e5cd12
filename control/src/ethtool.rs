//! What ethtool(8) reads and sets of an interface, by generic netlink (Documentation/networking/
//! ethtool-netlink.rst): offload features and channels.
//!
//! The pod's kernel must not hand us packets that only hardware can finish, and a NIC must not
//! merge what it receives: [`Ethtool::set_features`] changes any number of features by name in one
//! message. Names that an older kernel does not know are left out, since what a kernel does not
//! know it does not do. Channels, which are the queues of a NIC, are in `channels`.

use crate::attributes::{attribute, attributes, nest, put, zero_ended};
use crate::genetlink::{Family, Genetlink, GenetlinkError};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashSet};
use std::sync::OnceLock;

mod channels;

pub use channels::{ChannelCount, Channels};

// linux/ethtool_netlink.h
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
/// `ETHTOOL_A_*_HEADER`, the same in every message.
const ETHTOOL_A_HEADER: u16 = 1;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_FEATURES_HW: u16 = 2;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub enum EthtoolError {
    /// The kernel did not do it.
    #[error(transparent)]
    Genetlink(#[from] GenetlinkError),
    /// The driver holds on to features.
    #[error("set features of {device}: the driver does not change {}", names.join(", "))]
    Fixed {
        /// The interface.
        device: String,
        /// Features that stayed as they were.
        names: Vec<String>,
    },
}

/// A connection to ethtool in one network namespace.
#[derive(Debug)]
pub struct Ethtool {
    genetlink: Genetlink,
}

static FAMILY: Family = Family::new("ethtool");

/// The features this kernel has names for; asked only if it does not know one of ours.
static KNOWN: OnceLock<HashSet<String>> = OnceLock::new();

impl Ethtool {
    /// Connects to the network namespace the calling thread is in, for good.
    pub fn open() -> Result<Ethtool, EthtoolError> {
        Ok(Ethtool { genetlink: Genetlink::open(&FAMILY)? })
    }

    /// Turns features of an interface on or off. Returns `Fixed` if one did not follow.
    pub fn set_features(
        &mut self,
        device: &str,
        features: &[(&str, bool)],
    ) -> Result<(), EthtoolError> {
        if KNOWN.get().is_none() {
            match self.request_features(device, features) {
                // A name this kernel does not know; or an interface without these features, which
                // the second attempt will say again.
                Err(EthtoolError::Genetlink(error)) if error.is(Errno::OPNOTSUPP) => {}
                other => return other,
            }
            let known = self.known_features(device)?;
            KNOWN.get_or_init(|| known);
        }
        let known = KNOWN.get().expect("set just above");
        let features: Vec<_> =
            features.iter().copied().filter(|(name, _)| known.contains(*name)).collect();
        self.request_features(device, &features)
    }

    /// The features of an interface that are on, by their names as `ethtool -k` has them in
    /// brackets of its long form: `rx-lro`, `rx-gro-hw`, `rx-vlan-hw-parse`, and so on.
    pub fn active_features(&mut self, device: &str) -> Result<BTreeSet<String>, EthtoolError> {
        Ok(self.list_features(device, ETHTOOL_A_FEATURES_ACTIVE)?.into_iter().collect())
    }

    fn request_features(
        &mut self,
        device: &str,
        features: &[(&str, bool)],
    ) -> Result<(), EthtoolError> {
        let what = format!("set features of {device}");
        let mut body = Vec::with_capacity(1024);
        put_header(&mut body, device);
        nest(&mut body, ETHTOOL_A_FEATURES_WANTED, |body| {
            nest(body, ETHTOOL_A_BITSET_BITS, |body| {
                for (name, on) in features {
                    nest(body, ETHTOOL_A_BITSET_BITS_BIT, |body| {
                        put(body, ETHTOOL_A_BITSET_BIT_NAME, &zero_ended(name));
                        // A bit without this flag is cleared.
                        if *on {
                            put(body, ETHTOOL_A_BITSET_BIT_VALUE, &[]);
                        }
                    });
                }
            });
        });
        let answer = self.genetlink.exchange(&what, ETHTOOL_MSG_FEATURES_SET, &body)?;
        // The answer lists under "wanted" the bits that are not as they were asked for.
        let names: Vec<String> = answer
            .as_deref()
            .and_then(|answer| attribute(answer, ETHTOOL_A_FEATURES_WANTED))
            .map(bit_names)
            .unwrap_or_default();
        if names.is_empty() {
            return Ok(());
        }
        Err(EthtoolError::Fixed { device: device.to_owned(), names })
    }

    /// All features this kernel knows, which the description of any interface lists.
    fn known_features(&mut self, device: &str) -> Result<HashSet<String>, EthtoolError> {
        Ok(self.list_features(device, ETHTOOL_A_FEATURES_HW)?.into_iter().collect())
    }

    /// One of the lists of features of an interface.
    fn list_features(&mut self, device: &str, list: u16) -> Result<Vec<String>, EthtoolError> {
        let what = format!("list features of {device}");
        let mut body = Vec::new();
        put_header(&mut body, device);
        let answer = self.genetlink.exchange(&what, ETHTOOL_MSG_FEATURES_GET, &body)?;
        let bits = answer.as_deref().and_then(|answer| attribute(answer, list));
        Ok(bits.map(bit_names).ok_or(GenetlinkError::Malformed { what })?)
    }
}

fn put_header(body: &mut Vec<u8>, device: &str) {
    nest(body, ETHTOOL_A_HEADER, |body| {
        put(body, ETHTOOL_A_HEADER_DEV_NAME, &zero_ended(device));
    });
}

/// The names of the bits that a bitset lists.
fn bit_names(bitset: &[u8]) -> Vec<String> {
    let bits = attribute(bitset, ETHTOOL_A_BITSET_BITS).unwrap_or_default();
    attributes(bits)
        .filter_map(|(_, bit)| {
            let name = attribute(bit, ETHTOOL_A_BITSET_BIT_NAME)?;
            Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitset(names: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        nest(&mut out, ETHTOOL_A_BITSET_BITS, |out| {
            for name in names {
                nest(out, ETHTOOL_A_BITSET_BITS_BIT, |out| {
                    put(out, ETHTOOL_A_BITSET_BIT_NAME, &zero_ended(name));
                });
            }
        });
        out
    }

    #[test]
    fn a_bitset_lists_its_names() {
        let names = ["tx-gso", "a", "tx-tcp-segmentation"];
        assert_eq!(bit_names(&bitset(&names)), names);
        assert!(bit_names(&bitset(&[])).is_empty());
    }

    #[test]
    fn damaged_answers_are_read_without_a_panic() {
        let whole = bitset(&["tx-gso", "tx-tcp-segmentation"]);
        for end in 0..whole.len() {
            bit_names(&whole[..end]);
        }
        for byte in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[byte] ^= 0xff;
            bit_names(&damaged);
        }
    }
}
