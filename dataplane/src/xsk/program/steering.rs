//! Which packets the workers take from the NICs: the prefixes that `uplink` looks up. Control says
//! what it wishes, and the maps become that without a moment in which a packet goes a third way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::maps::{delete, map_error, update, word};
use super::{ProgramError, Programs};
use crate::tables::Prefix;

/// Most prefixes of pods on one node.
pub const POD_PREFIXES_MAX: u32 = 4096;
/// Most prefixes of direct addresses, those left to the kernel included.
pub const DIRECT_PREFIXES_MAX: u32 = 65536;

/// The wish. Bits of an address beyond its prefix are ignored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steering<'a> {
    /// Pods of this node.
    pub pods: &'a [Prefix],
    /// Reached by uplinks, as they are.
    pub direct: &'a [Prefix],
    /// Left to the kernel all the same. Between these and `direct` the longest prefix decides;
    /// of two equal ones, this.
    pub kernel: &'a [Prefix],
}

/// Length of struct prefix.
const PREFIX_LEN: usize = 24;
/// Bits of the family before the address.
const FAMILY_BITS: u32 = 32;

/// An entry of the maps, as the kernel compares it: two spellings of a prefix are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    len: u8,
    network: IpAddr,
}

impl Key {
    fn of(prefix: &Prefix) -> Key {
        let len = prefix.len;
        let network = match prefix.address {
            IpAddr::V4(address) => {
                assert!(len <= 32, "an IPv4 prefix has at most 32 bits");
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                Ipv4Addr::from(u32::from(address) & mask).into()
            }
            IpAddr::V6(address) => {
                assert!(len <= 128, "an IPv6 prefix has at most 128 bits");
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                Ipv6Addr::from(u128::from(address) & mask).into()
            }
        };
        Key { len, network }
    }

    /// struct prefix of `bpf/uplink.bpf.c`.
    fn encode(self) -> [u8; PREFIX_LEN] {
        let mut bytes = [0; PREFIX_LEN];
        let family: u32 = match self.network {
            IpAddr::V4(network) => {
                bytes[8..12].copy_from_slice(&network.octets());
                4
            }
            IpAddr::V6(network) => {
                bytes[8..24].copy_from_slice(&network.octets());
                6
            }
        };
        bytes[0..4].copy_from_slice(&(FAMILY_BITS + u32::from(self.len)).to_ne_bytes());
        bytes[4..8].copy_from_slice(&family.to_ne_bytes());
        bytes
    }

    /// `None` for what `encode` never writes.
    fn decode(bytes: &[u8]) -> Option<Key> {
        let len = u8::try_from(word(bytes, 0).checked_sub(FAMILY_BITS)?).ok()?;
        let address: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
        let network = match word(bytes, 4) {
            4 => Ipv4Addr::new(address[0], address[1], address[2], address[3]).into(),
            6 => Ipv6Addr::from(address).into(),
            _ => return None,
        };
        Some(Key { len, network })
    }
}

impl Programs {
    /// Makes `uplink` steer by the wish and by nothing else. An address whose answer is the same
    /// before and after has it all the while; another's changes once.
    ///
    /// # Errors
    /// There are more than [`POD_PREFIXES_MAX`] or [`DIRECT_PREFIXES_MAX`] prefixes, of the old and
    /// the new wish together. Part of the new ones may be in force then.
    ///
    /// # Panics
    /// A prefix has more bits than its family.
    pub fn set_steering(&self, wish: &Steering<'_>) -> Result<(), ProgramError> {
        let Steering { pods, direct, kernel } = *wish;
        let pods = pods.iter().map(|prefix| (Key::of(prefix), 1)).collect();
        let mut addresses: BTreeMap<Key, u8> =
            direct.iter().map(|prefix| (Key::of(prefix), 1)).collect();
        addresses.extend(kernel.iter().map(|prefix| (Key::of(prefix), 0)));
        become_equal(&self.uplink_maps.direct_prefixes, &addresses)?;
        become_equal(&self.uplink_maps.pod_prefixes, &pods)
    }
}

/// Makes `map` hold what is wanted: entries are written from the longest prefix to the shortest,
/// then the surplus is deleted from the shortest to the longest. So the first entry written that
/// covers an address is the one that decides in the end, and the last one deleted is the one that
/// has decided before.
fn become_equal(map: &MapHandle, wanted: &BTreeMap<Key, u8>) -> Result<(), ProgramError> {
    let present = entries(map)?;
    for (key, value) in wanted.iter().rev() {
        if present.get(&key.encode()) != Some(value) {
            update(map, &key.encode(), &[*value])?;
        }
    }
    let wanted: BTreeSet<_> = wanted.keys().map(|key| key.encode()).collect();
    let surplus = present.into_keys().filter(|bytes| !wanted.contains(bytes));
    let mut surplus: Vec<_> = surplus.collect();
    surplus.sort_by_key(|bytes| Key::decode(bytes));
    surplus.iter().try_for_each(|bytes| delete(map, bytes))
}

/// What `map` holds now: also what an earlier daemon left.
fn entries(map: &MapHandle) -> Result<BTreeMap<[u8; PREFIX_LEN], u8>, ProgramError> {
    let mut entries = BTreeMap::new();
    for key in map.keys() {
        let mut value = [0];
        let found = map.lookup_into(&key, &mut value, MapFlags::ANY);
        // Absent: removed since the key was listed.
        if found.map_err(|source| map_error(map, "read", source))? {
            let key = key.try_into().expect("keys have the length checked at load");
            entries.insert(key, value[0]);
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(address: &str, len: u8) -> Prefix {
        Prefix { address: address.parse().expect("an address"), len }
    }

    #[test]
    fn a_key_is_read_back_as_it_was_written() {
        let prefixes =
            [("0.0.0.0", 0), ("10.1.2.3", 32), ("10.1.0.0", 16), ("::", 0), ("fd00::1", 128)];
        for (address, len) in prefixes {
            let key = Key::of(&prefix(address, len));
            assert_eq!(Key::decode(&key.encode()), Some(key), "{address}/{len}");
        }
        assert_eq!(Key::decode(&[0; PREFIX_LEN]), None);
        assert_eq!(Key::decode(&[0xff; PREFIX_LEN]), None);
    }

    #[test]
    fn two_spellings_of_a_prefix_are_one_and_two_families_are_two() {
        assert_eq!(Key::of(&prefix("10.1.2.3", 8)), Key::of(&prefix("10.0.0.0", 8)));
        assert_eq!(Key::of(&prefix("fd00::1", 8)), Key::of(&prefix("fd00::", 8)));
        assert_ne!(Key::of(&prefix("10.1.0.0", 16)), Key::of(&prefix("10.0.0.0", 8)));
        let (v4, v6) = (prefix("0.0.0.0", 0), prefix("::", 0));
        assert_ne!(Key::of(&v4).encode(), Key::of(&v6).encode());
    }

    #[test]
    fn longer_prefixes_come_later() {
        let mut keys = [("fd00::", 8), ("10.1.0.0", 16), ("10.0.0.0", 8), ("fd00::", 64)]
            .map(|(address, len)| Key::of(&prefix(address, len)));
        keys.sort();
        assert_eq!(keys.map(|key| key.len), [8, 8, 16, 64]);
    }
}
