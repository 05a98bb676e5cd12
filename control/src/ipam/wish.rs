//! What a pod wishes for: per address, the runs of addresses that it may come from.
//!
//! Made from the pod CIDRs, or from the `ipRanges` of a request, which is checked here. Decides
//! nothing: which address of a run a pod gets is the allocator's business.

use std::net::IpAddr;

use cni_bridge::protocol::IpRange;
use ipnet::IpNet;

use super::{IpamError, Place, Pool, address, list, number, usable};
use crate::state::ADDRESSES_PER_POD_MAX;

/// A run of addresses of one pool that a pod may be given one of.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) pool: usize,
    /// The prefix that the pod's result and our errors show.
    pub(super) net: IpNet,
    pub(super) first: u128,
    pub(super) last: u128,
    pub(super) gateway: Option<IpAddr>,
}

impl Segment {
    pub(super) fn may_give(&self, place: Place, taken: &[Place]) -> bool {
        self.gateway.is_none_or(|gateway| gateway != address(self.net, place.number))
            && !taken.contains(&place)
    }

    fn holds(&self, wanted: IpAddr) -> bool {
        self.net.contains(&wanted)
            && (self.first..=self.last).contains(&number(wanted))
            && self.gateway != Some(wanted)
    }
}

/// One wish per family, over all its pools.
pub(super) fn families(pools: &[Pool]) -> Vec<Vec<Segment>> {
    let segments = |is_ipv6: bool| -> Vec<Segment> {
        let pools = pools.iter().enumerate();
        pools
            .filter(|(_, pool)| pool.net.addr().is_ipv6() == is_ipv6)
            .map(|(index, pool)| Segment {
                pool: index,
                net: pool.net,
                first: pool.first,
                last: pool.last,
                gateway: None,
            })
            .collect()
    };
    [false, true].map(segments).into_iter().filter(|wish| !wish.is_empty()).collect()
}

/// One wish per list of ranges.
pub(super) fn from_ranges(
    pools: &[Pool],
    ranges: &[Vec<IpRange>],
) -> Result<Vec<Vec<Segment>>, IpamError> {
    if ranges.len() > ADDRESSES_PER_POD_MAX {
        return Err(IpamError::Range {
            subnet: format!("lists ({})", ranges.len()),
            problem: format!("are too many; a pod gets at most {ADDRESSES_PER_POD_MAX}"),
        });
    }
    let wish = |list: &Vec<IpRange>| -> Result<Vec<Segment>, IpamError> {
        if list.is_empty() {
            let problem = "has no subnet; name one or leave the list out".to_owned();
            return Err(IpamError::Range { subnet: "list".to_owned(), problem });
        }
        list.iter().map(|range| segment(pools, range)).collect()
    };
    ranges.iter().map(wish).collect()
}

fn segment(pools: &[Pool], range: &IpRange) -> Result<Segment, IpamError> {
    let IpRange { subnet, range_start, range_end, gateway } = range;
    let refuse = |problem: &str| {
        Err(IpamError::Range { subnet: subnet.clone(), problem: problem.to_owned() })
    };
    let Ok(net) = subnet.parse::<IpNet>() else {
        return refuse("is not a prefix; write it like 10.244.1.0/28");
    };
    if net != net.trunc() {
        return refuse(&format!("has host bits set; write {}", net.trunc()));
    }
    let Some(pool) = pools.iter().position(|pool| pool.net.contains(&net)) else {
        let cidrs = list(pools.iter().map(|pool| pool.net));
        return refuse(&format!("lies outside pod_cidrs; choose one within {cidrs}"));
    };
    let Some((lowest, highest)) = usable(net) else {
        return refuse("has no address for a pod; choose a shorter prefix");
    };
    let bound = |bound: &Option<IpAddr>, default: u128| match bound {
        None => Some(default),
        Some(address) if net.contains(address) => Some(number(*address)),
        Some(_) => None,
    };
    let (Some(first), Some(last)) = (bound(range_start, lowest), bound(range_end, highest)) else {
        return refuse("has its start or end outside its subnet; move it inside");
    };
    // A range may name the network or broadcast address as its bound; no pod gets it.
    let (first, last) = (first.max(lowest), last.min(highest));
    if first > last {
        return refuse("starts after it ends or holds no host address; correct its bounds");
    }
    Ok(Segment { pool, net, first, last, gateway: *gateway })
}

/// Finds each requested address the first wish that it fits and that no other one has.
pub(super) fn assign<'a>(
    requested: &[IpAddr],
    wishes: &'a [Vec<Segment>],
) -> Result<Vec<Option<(IpAddr, &'a Segment)>>, IpamError> {
    let mut named = vec![None; wishes.len()];
    for &address in requested {
        let mut fits = wishes.iter().enumerate().filter_map(|(index, wish)| {
            wish.iter().find(|segment| segment.holds(address)).map(|segment| (index, segment))
        });
        let Some(first) = fits.next() else {
            let cidrs = list(wishes.iter().flatten().map(|segment| segment.net));
            return Err(IpamError::Outside { address, cidrs });
        };
        let mut fits = std::iter::once(first).chain(fits);
        let is_repeated = named.iter().flatten().any(|(other, _)| *other == address);
        match fits.find(|(index, _)| named[*index].is_none()) {
            Some((index, segment)) if !is_repeated => named[index] = Some((address, segment)),
            _ => return Err(IpamError::Surplus { address }),
        }
    }
    Ok(named)
}
