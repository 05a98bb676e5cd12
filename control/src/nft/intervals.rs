//! Prefixes as the intervals that nf_tables sets are made of: sorted, disjoint, and with a gap
//! between any two. The kernel refuses elements that overlap, so overlaps are resolved here.

use ipnet::IpNet;

/// IPv4 or IPv6: sizes and numbers that differ between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// `NFPROTO_IPV4` or `NFPROTO_IPV6` (include/uapi/linux/netfilter.h).
    pub(super) fn number(self) -> u8 {
        match self {
            Family::V4 => 2,
            Family::V6 => 10,
        }
    }

    /// Bytes of an address.
    pub(super) fn address_len(self) -> u32 {
        match self {
            Family::V4 => 4,
            Family::V6 => 16,
        }
    }

    /// The number by which `nft` recognises `ipv4_addr` and `ipv6_addr` when it lists a set
    /// (`TYPE_IPADDR`, `TYPE_IP6ADDR` of its datatype.h); the kernel only stores it.
    pub(super) fn key_type(self) -> u32 {
        match self {
            Family::V4 => 7,
            Family::V6 => 8,
        }
    }

    /// What ends the names of sets of this family.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Family::V4 => "4",
            Family::V6 => "6",
        }
    }

    /// An address in network byte order.
    pub(super) fn address_bytes(self, address: u128) -> Vec<u8> {
        let skipped = 16 - self.address_len() as usize;
        address.to_be_bytes()[skipped..].to_vec()
    }

    fn highest_address(self) -> u128 {
        match self {
            Family::V4 => u128::from(u32::MAX),
            Family::V6 => u128::MAX,
        }
    }
}

/// The addresses from `first` to `last`, both included, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Interval {
    pub(super) first: u128,
    pub(super) last: u128,
}

impl Interval {
    /// The first address after the interval; `None` if it reaches the end of the family.
    pub(super) fn end(&self, family: Family) -> Option<u128> {
        (self.last < family.highest_address()).then(|| self.last + 1)
    }
}

/// The union of the prefixes of one family.
pub(super) fn union(family: Family, prefixes: &[IpNet]) -> Vec<Interval> {
    let mut all: Vec<Interval> =
        prefixes.iter().filter_map(|prefix| interval(family, prefix)).collect();
    all.sort_unstable();
    let mut merged: Vec<Interval> = Vec::with_capacity(all.len());
    for next in all {
        match merged.last_mut() {
            Some(open) if next.first <= open.last.saturating_add(1) => {
                open.last = open.last.max(next.last);
            }
            _ => merged.push(next),
        }
    }
    merged
}

/// What of `whole` is not in `holes`. Both are results of [`union`], and so is this.
pub(super) fn difference(whole: &[Interval], holes: &[Interval]) -> Vec<Interval> {
    let mut left = Vec::with_capacity(whole.len());
    for part in whole {
        // `None`: a hole swallowed everything up to the last address there is.
        let mut first = Some(part.first);
        for hole in holes {
            let Some(from) = first else { break };
            if hole.last < from || hole.first > part.last {
                continue;
            }
            if hole.first > from {
                left.push(Interval { first: from, last: hole.first - 1 });
            }
            first = hole.last.checked_add(1);
        }
        if let Some(first) = first.filter(|first| *first <= part.last) {
            left.push(Interval { first, last: part.last });
        }
    }
    left
}

fn interval(family: Family, prefix: &IpNet) -> Option<Interval> {
    match (family, prefix) {
        (Family::V4, IpNet::V4(prefix)) => Some(Interval {
            first: u128::from(u32::from(prefix.network())),
            last: u128::from(u32::from(prefix.broadcast())),
        }),
        (Family::V6, IpNet::V6(prefix)) => Some(Interval {
            first: u128::from(prefix.network()),
            last: u128::from(prefix.broadcast()),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// Prefixes in 10.0.0.0/24 and fd00::/120, so that they often overlap and touch.
    fn prefixes() -> impl Strategy<Value = Vec<IpNet>> {
        let prefix = (any::<u8>(), 24u8..=32, any::<bool>()).prop_map(|(host, len, v6)| {
            let address = address(v6, host);
            IpNet::new(address, if v6 { len + 96 } else { len }).unwrap()
        });
        prop::collection::vec(prefix, 0..8)
    }

    fn address(v6: bool, host: u8) -> IpAddr {
        if v6 {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into()
        } else {
            Ipv4Addr::new(10, 0, 0, host).into()
        }
    }

    fn number(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(address) => u32::from(address).into(),
            IpAddr::V6(address) => address.into(),
        }
    }

    fn holds(intervals: &[Interval], address: IpAddr) -> bool {
        let number = number(address);
        intervals.iter().any(|part| part.first <= number && number <= part.last)
    }

    proptest! {
        #[test]
        fn sets_hold_what_the_prefixes_hold(whole in prefixes(), holes in prefixes()) {
            for (family, v6) in [(Family::V4, false), (Family::V6, true)] {
                let united = union(family, &whole);
                let left = difference(&united, &union(family, &holes));
                for host in 0..=255 {
                    let address = address(v6, host);
                    let in_whole = whole.iter().any(|prefix| prefix.contains(&address));
                    let in_holes = holes.iter().any(|prefix| prefix.contains(&address));
                    prop_assert_eq!(holds(&united, address), in_whole);
                    prop_assert_eq!(holds(&left, address), in_whole && !in_holes);
                }
                for intervals in [united, left] {
                    prop_assert!(intervals.iter().all(|part| part.first <= part.last));
                    prop_assert!(intervals.windows(2).all(|two| two[0].last + 1 < two[1].first));
                }
            }
        }
    }

    #[test]
    fn an_interval_that_reaches_the_end_of_the_family_has_no_end() {
        for (text, family) in [("0.0.0.0/0", Family::V4), ("::/0", Family::V6)] {
            let all = union(family, &[text.parse().unwrap()]);
            assert_eq!(all.len(), 1);
            assert_eq!((all[0].first, all[0].end(family)), (0, None));
            assert_eq!(difference(&all, &all), []);
        }
        let top = union(Family::V4, &["255.255.255.0/24".parse().unwrap()]);
        assert_eq!(top[0].end(Family::V4), None);
        let low = union(Family::V4, &["10.0.0.0/24".parse().unwrap()]);
        assert_eq!(low[0].end(Family::V4), Some(0x0a00_0100));
    }

    #[test]
    fn an_address_is_written_in_network_byte_order() {
        assert_eq!(Family::V4.address_bytes(0x0a00_0001), [10, 0, 0, 1]);
        assert_eq!(Family::V6.address_bytes(1)[15], 1);
        assert_eq!(Family::V6.address_bytes(1).len(), 16);
    }
}
