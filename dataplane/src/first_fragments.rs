//! What was decided about the first fragment of a datagram, for the later ones, which have no ports
//! ("virtual reassembly"). Nothing is put together or held back: the sender's kernel sends
//! fragments in their order, and one whose first is not known is dropped by its worker.

use std::net::IpAddr;

/// Datagrams remembered at once, in sets of [`WAYS`]: a pod that sends more of them at once, faster
/// than their fragments follow each other, loses some.
const SETS: usize = 64;
const WAYS: usize = 4;

/// How long the fragments of a datagram follow its first: they are sent one after another, and
/// identifications come round again (RFC 6864 §4.2 on IPv4; Linux counts them per destination).
const LIFETIME_NS: u64 = 1_000_000_000;

/// Which datagram a fragment is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Source.
    pub src: IpAddr,
    /// Destination, as the sender wrote it.
    pub dst: IpAddr,
    /// Protocol (RFC 791 §3.2); 0 for IPv6, where it does not count (RFC 8200 §4.5).
    pub protocol: u8,
    /// Identification.
    pub id: u32,
}

#[derive(Clone, Copy)]
struct Entry<V> {
    datagram: Datagram,
    verdict: V,
    first_ns: u64,
}

/// What was decided about datagrams whose first fragment has passed. Fixed memory; no clock: time
/// is passed in.
pub struct FirstFragments<V> {
    entries: Box<[[Option<Entry<V>>; WAYS]]>,
    seed: u64,
}

impl<V: Copy> FirstFragments<V> {
    /// Remembers nothing yet. `seed` must be random and secret: it decides which datagrams share a
    /// set.
    #[must_use]
    pub fn new(seed: u64) -> FirstFragments<V> {
        FirstFragments { entries: vec![[None; WAYS]; SETS].into_boxed_slice(), seed }
    }

    /// The first fragment of a datagram has passed. Takes the place of an earlier datagram that has
    /// the same identification, else of the oldest in its set.
    pub fn remember(&mut self, datagram: Datagram, verdict: V, now_ns: u64) {
        let set = &mut self.entries[set_of(&datagram, self.seed)];
        let same =
            set.iter().position(|way| way.as_ref().is_some_and(|entry| entry.datagram == datagram));
        let age = |way: &Option<Entry<V>>| way.as_ref().map(|entry| entry.first_ns);
        // None, an empty way, is older than all.
        let oldest = (0..WAYS).min_by_key(|way| age(&set[*way])).unwrap_or(0);
        set[same.unwrap_or(oldest)] = Some(Entry { datagram, verdict, first_ns: now_ns });
    }

    /// What was decided about the first fragment, if it passed a moment ago.
    #[must_use]
    pub fn recall(&self, datagram: &Datagram, now_ns: u64) -> Option<V> {
        let mut set = self.entries[set_of(datagram, self.seed)].iter().flatten();
        let entry = set.find(|entry| entry.datagram == *datagram)?;
        (now_ns.saturating_sub(entry.first_ns) <= LIFETIME_NS).then_some(entry.verdict)
    }
}

/// The set of a datagram, by the product of two secret sums: each bit of the upper half depends on
/// all of both.
fn set_of(datagram: &Datagram, seed: u64) -> usize {
    let Datagram { src, dst, protocol, id } = *datagram;
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            (bits >> 64) as u64 ^ (bits as u64).rotate_left(32)
        }
    };
    let addresses = address(src).rotate_left(17) ^ address(dst) ^ seed;
    let rest = (u64::from(id) << 8 | u64::from(protocol)) ^ seed.rotate_left(32);
    let product = u128::from(addresses) * u128::from(rest);
    ((product >> 64) as u64 ^ product as u64) as usize % SETS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn datagram(id: u32) -> Datagram {
        let address = |text: &str| text.parse().unwrap();
        Datagram { src: address("10.0.0.1"), dst: address("10.0.0.2"), protocol: 17, id }
    }

    #[test]
    fn what_was_decided_is_recalled_for_this_datagram_and_for_a_second() {
        let mut fragments = FirstFragments::new(7);
        assert_eq!(fragments.recall(&datagram(1), 0), None::<u8>);
        fragments.remember(datagram(1), 42u8, SECOND);
        for (other, verdict) in [
            (datagram(1), Some(42)),
            (datagram(2), None),
            (Datagram { protocol: 6, ..datagram(1) }, None),
            (Datagram { src: datagram(1).dst, ..datagram(1) }, None),
            (Datagram { dst: datagram(1).src, ..datagram(1) }, None),
        ] {
            assert_eq!(fragments.recall(&other, 2 * SECOND), verdict, "{other:?}");
        }
        assert_eq!(fragments.recall(&datagram(1), 2 * SECOND + 1), None);
        fragments.remember(datagram(1), 43, 3 * SECOND);
        assert_eq!(fragments.recall(&datagram(1), 3 * SECOND), Some(43));
        assert_eq!(fragments.recall(&datagram(1), 0), Some(43), "a clock that is behind");
    }

    proptest! {
        /// Whatever is forgotten, nothing false is recalled, and the newest never gives way.
        #[test]
        fn what_is_recalled_was_decided_last(
            firsts in prop::collection::vec((0u32..2000, any::<u16>()), 1..600),
            seed: u64,
        ) {
            let mut fragments = FirstFragments::new(seed);
            let mut decided = std::collections::HashMap::new();
            for (now_ns, (id, verdict)) in (0..).zip(firsts) {
                fragments.remember(datagram(id), verdict, now_ns);
                decided.insert(id, verdict);
                prop_assert_eq!(fragments.recall(&datagram(id), now_ns), Some(verdict));
            }
            for (id, verdict) in decided {
                let recalled = fragments.recall(&datagram(id), 1000);
                prop_assert!(recalled.is_none_or(|recalled| recalled == verdict));
            }
        }
    }

    #[test]
    fn datagrams_spread_over_the_sets() {
        let mut counts = [0u32; SETS];
        (0..6400).for_each(|id| counts[set_of(&datagram(id), 0x1234_5678_9abc_def1)] += 1);
        assert!(counts.iter().all(|count| (50..200).contains(count)), "{counts:?}");
    }
}
