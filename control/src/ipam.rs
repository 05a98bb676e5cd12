//! Allocates pod addresses from the node's pod CIDRs, when no IPAM plugin is delegated to.
//!
//! Pure and in memory: the journal's pods are reserved again at start, and time is an argument. An
//! address never has two owners. Addresses that were never used go first, in order; then freed
//! ones, longest free first, because peers, load balancers and DNS answers remember an address
//! longer than its pod lives. An address rests as long as any other can be had, but no pod goes
//! without one for that (docs/decisions/0003-cool-down-is-an-order.md). Memory grows with the
//! pods, not with the prefix: each pool has a cursor, before which every address is owned or freed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_bridge::protocol::{Attachment, IpRange, PodAddress};
use ipnet::IpNet;

use self::wish::Segment;

#[cfg(test)]
mod tests;
mod wish;

/// How long a freed address rests, in nanoseconds. The harm of reuse within seconds is on record
/// (projectcalico/calico issues 3467 and 4152); the 120 s are our judgement.
pub const COOL_DOWN_NS: u64 = 120 * 1_000_000_000;

/// Freed addresses that a pool remembers before it hands them out again although it still has
/// never-used ones. Without it an IPv6 /64, which has no end, would remember every pod since boot;
/// with it, 65,536 entries of about 100 bytes.
pub const FREED_LEN_MAX: usize = 1 << 16;

/// Why no address was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Every address has an owner.
    #[error("no address is left in {cidrs}; remove pods or give [node] pod_cidrs a larger prefix")]
    Exhausted {
        /// The prefixes that were searched, comma separated.
        cidrs: String,
    },
    /// The address asked for has an owner.
    #[error(
        "address {address} belongs to interface {} of container {}; ask for another one or delete \
         that container",
        .owner.ifname, .owner.container_id
    )]
    Taken {
        /// The address asked for.
        address: IpAddr,
        /// Who has it.
        owner: Attachment,
    },
    /// No pod can have the address asked for.
    #[error(
        "address {address} is not one that a pod may have here; ask for a host address within \
         {cidrs}, neither its first, nor the last of an IPv4 prefix, nor a gateway"
    )]
    Outside {
        /// The address asked for.
        address: IpAddr,
        /// The prefixes that were searched, comma separated.
        cidrs: String,
    },
    /// More addresses were asked for than the pod gets.
    #[error("address {address} is one more than this pod gets; ask for one per family or range")]
    Surplus {
        /// The address that found no place.
        address: IpAddr,
    },
    /// A range of the `ipRanges` capability cannot be used.
    #[error("range {subnet} of ipRanges {problem}")]
    Range {
        /// The subnet as it was given.
        subnet: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The owner has addresses already.
    #[error(
        "interface {} of container {} already has addresses; delete it before adding it again",
        .0.ifname, .0.container_id
    )]
    AlreadyOwns(Attachment),
}

impl IpamError {
    /// The CNI error code of this refusal (CNI spec, "Error").
    pub fn cni_code(&self) -> u32 {
        match self {
            // 50: the plugin cannot serve ADD now.
            IpamError::Exhausted { .. } => 50,
            // 11: try again later; the other pod's DEL will mend it.
            IpamError::Taken { .. } => 11,
            // 7: invalid network configuration.
            IpamError::Outside { .. } | IpamError::Surplus { .. } | IpamError::Range { .. } => 7,
            // 100 and above are our own; the specification has none for a second ADD.
            IpamError::AlreadyOwns(_) => 100,
        }
    }
}

/// The node's addresses and who has them.
#[derive(Clone, Debug)]
pub struct Ipam {
    pools: Vec<Pool>,
    held: BTreeMap<Attachment, Vec<Place>>,
    /// Counts frees over all pools, so that the queues of several pools have one order.
    free_count: u64,
}

/// One address: the pool and the address as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    pool: usize,
    number: u128,
}

/// One pod CIDR. Every address in `first..=last` is in `owned`, in `freed`, or was never used.
#[derive(Clone, Debug)]
struct Pool {
    net: IpNet,
    first: u128,
    last: u128,
    /// No address below it was never used.
    cursor: u128,
    owned: BTreeMap<u128, Attachment>,
    /// Freed addresses, longest free first; the key is the value of `free_count` then.
    freed: BTreeMap<u64, Freed>,
    /// Key in `freed` of each freed address.
    freed_keys: BTreeMap<u128, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Freed {
    number: u128,
    at_ns: u64,
}

impl Ipam {
    /// Nothing allocated yet. The prefixes are those of a checked configuration: no two overlap and
    /// each has an address for a pod.
    pub fn new(cidrs: &[IpNet]) -> Ipam {
        for (index, a) in cidrs.iter().enumerate() {
            let mut others = cidrs.iter().skip(index + 1);
            assert!(!others.any(|b| a.contains(b) || b.contains(a)), "pod CIDRs do not overlap");
        }
        let pools = cidrs.iter().map(|net| Pool::new(*net)).collect();
        Ipam { pools, held: BTreeMap::new(), free_count: 0 }
    }

    /// Gives `owner` one address per family, or one per list of `ranges`; all or none. Each address
    /// in `requested` takes the place of the first one it fits, cool-down or not, since whoever
    /// names an address means it. `now_ns` is monotonic. The result has IPv4 first.
    pub fn allocate(
        &mut self,
        owner: &Attachment,
        requested: &[IpAddr],
        ranges: &[Vec<IpRange>],
        now_ns: u64,
    ) -> Result<Vec<PodAddress>, IpamError> {
        if self.held.contains_key(owner) {
            return Err(IpamError::AlreadyOwns(owner.clone()));
        }
        let chosen = self.choose(requested, ranges, now_ns)?;
        let mut addresses = Vec::with_capacity(chosen.len());
        for (place, segment) in &chosen {
            self.own(owner, *place);
            addresses.push(PodAddress {
                address: address(segment.net, place.number),
                prefix_len: segment.net.prefix_len(),
                gateway: segment.gateway,
            });
        }
        addresses.sort_by_key(|pod_address| pod_address.address.is_ipv6());
        Ok(addresses)
    }

    /// Whether a pod without special wishes would get its addresses now (CNI STATUS).
    pub fn room(&self, now_ns: u64) -> Result<(), IpamError> {
        self.choose(&[], &[], now_ns).map(|_| ())
    }

    /// Gives `owner` this address, for restoring what the journal says or for keeping an address of
    /// a delegated IPAM from being given out twice. Repeating it changes nothing.
    ///
    /// An address that no pool can give is [`IpamError::Outside`]: harmless when it was delegated.
    pub fn reserve(&mut self, owner: &Attachment, address: IpAddr) -> Result<(), IpamError> {
        let wanted = number(address);
        let is_usable =
            |pool: &Pool| pool.net.contains(&address) && (pool.first..=pool.last).contains(&wanted);
        let Some(pool) = self.pools.iter().position(is_usable) else {
            let cidrs = list(self.pools.iter().map(|pool| pool.net));
            return Err(IpamError::Outside { address, cidrs });
        };
        match self.pools[pool].owned.get(&wanted) {
            Some(current) if current == owner => Ok(()),
            Some(current) => Err(IpamError::Taken { address, owner: current.clone() }),
            None => {
                self.own(owner, Place { pool, number: wanted });
                Ok(())
            }
        }
    }

    /// Takes back all that `owner` has; nothing happens if that is nothing.
    pub fn free(&mut self, owner: &Attachment, now_ns: u64) {
        for Place { pool, number } in self.held.remove(owner).unwrap_or_default() {
            let pool = &mut self.pools[pool];
            pool.owned.remove(&number);
            pool.freed.insert(self.free_count, Freed { number, at_ns: now_ns });
            pool.freed_keys.insert(number, self.free_count);
            self.free_count += 1;
        }
    }

    /// Who has this address.
    pub fn owner(&self, address: IpAddr) -> Option<&Attachment> {
        let pool = self.pools.iter().find(|pool| pool.net.contains(&address))?;
        pool.owned.get(&number(address))
    }

    fn own(&mut self, owner: &Attachment, place: Place) {
        self.pools[place.pool].own(owner, place.number);
        self.held.entry(owner.clone()).or_default().push(place);
    }

    /// Chooses without taking, so that a refusal has nothing to undo.
    fn choose(
        &self,
        requested: &[IpAddr],
        ranges: &[Vec<IpRange>],
        now_ns: u64,
    ) -> Result<Vec<(Place, Segment)>, IpamError> {
        let wishes = if ranges.is_empty() {
            wish::families(&self.pools)
        } else {
            wish::from_ranges(&self.pools, ranges)?
        };
        let named = wish::assign(requested, &wishes)?;
        let mut chosen: Vec<Option<(Place, Segment)>> = vec![None; wishes.len()];
        // Named addresses first: the free choice of another wish must not take them.
        for (index, address) in named.iter().enumerate() {
            let Some((address, segment)) = address else {
                continue;
            };
            let place = Place { pool: segment.pool, number: number(*address) };
            if let Some(owner) = self.pools[place.pool].owned.get(&place.number) {
                return Err(IpamError::Taken { address: *address, owner: owner.clone() });
            }
            chosen[index] = Some((place, (*segment).clone()));
        }
        for (index, segments) in wishes.iter().enumerate() {
            if chosen[index].is_none() {
                let taken: Vec<Place> = chosen.iter().flatten().map(|(place, _)| *place).collect();
                chosen[index] = Some(self.pick(segments, &taken, now_ns)?);
            }
        }
        Ok(chosen.into_iter().flatten().collect())
    }

    /// The next address of these segments that is not in `taken`, by the order this file is about.
    fn pick(
        &self,
        segments: &[Segment],
        taken: &[Place],
        now_ns: u64,
    ) -> Result<(Place, Segment), IpamError> {
        let fresh = || segments.iter().find_map(|segment| self.fresh(segment, taken));
        let oldest = segments.iter().filter_map(|segment| self.oldest(segment, taken));
        let oldest = oldest.min_by_key(|(key, ..)| *key);
        let rested_ns = oldest.as_ref().map(|(_, freed, _)| now_ns.saturating_sub(freed.at_ns));
        let is_rested = rested_ns.is_some_and(|rested_ns| rested_ns >= COOL_DOWN_NS);
        let is_crowded =
            segments.iter().any(|segment| self.pools[segment.pool].freed.len() >= FREED_LEN_MAX);

        let reuse = oldest.map(|(_, freed, segment)| {
            (Place { pool: segment.pool, number: freed.number }, segment.clone())
        });
        if is_crowded
            && is_rested
            && let Some(reuse) = reuse
        {
            return Ok(reuse);
        }
        if let Some(fresh) = fresh() {
            return Ok(fresh);
        }
        reuse.ok_or_else(|| IpamError::Exhausted {
            cidrs: list(segments.iter().map(|segment| segment.net)),
        })
    }

    /// The lowest never-used address. The walk passes at most every owned and freed address once.
    fn fresh(&self, segment: &Segment, taken: &[Place]) -> Option<(Place, Segment)> {
        let pool = &self.pools[segment.pool];
        (segment.first.max(pool.cursor)..=segment.last)
            .filter(|number| !pool.is_used(*number))
            .map(|number| Place { pool: segment.pool, number })
            .find(|place| segment.may_give(*place, taken))
            .map(|place| (place, segment.clone()))
    }

    /// The address that has been free longest: the front of the queue, unless the segment is a
    /// small part of its pool.
    fn oldest<'a>(
        &self,
        segment: &'a Segment,
        taken: &[Place],
    ) -> Option<(u64, Freed, &'a Segment)> {
        let queue = self.pools[segment.pool].freed.iter();
        let mut in_segment = queue.filter(|(_, freed)| {
            let place = Place { pool: segment.pool, number: freed.number };
            (segment.first..=segment.last).contains(&freed.number) && segment.may_give(place, taken)
        });
        in_segment.next().map(|(key, freed)| (*key, *freed, segment))
    }
}

impl Pool {
    fn new(net: IpNet) -> Pool {
        let (first, last) = usable(net).expect("a pod CIDR has an address for a pod");
        Pool {
            net,
            first,
            last,
            cursor: first,
            owned: BTreeMap::new(),
            freed: BTreeMap::new(),
            freed_keys: BTreeMap::new(),
        }
    }

    fn is_used(&self, number: u128) -> bool {
        self.owned.contains_key(&number) || self.freed_keys.contains_key(&number)
    }

    fn own(&mut self, owner: &Attachment, number: u128) {
        if let Some(key) = self.freed_keys.remove(&number) {
            self.freed.remove(&key);
        }
        let previous = self.owned.insert(number, owner.clone());
        assert!(previous.is_none(), "an address has one owner");
        // When nothing is left, the cursor rests on the last address, which is used.
        let next = (self.cursor..=self.last).find(|number| !self.is_used(*number));
        self.cursor = next.unwrap_or(self.last);
    }
}

/// First and last address of a prefix that a pod may have, if there is one. IPv4 leaves out the
/// network and broadcast address (RFC 1122 §3.2.1.3), IPv6 the subnet-router anycast address
/// (RFC 4291 §2.6.1).
pub fn usable(net: IpNet) -> Option<(u128, u128)> {
    let (network, broadcast) = (number(net.network()), number(net.broadcast()));
    let last = if net.addr().is_ipv4() { broadcast.checked_sub(1)? } else { broadcast };
    let first = network.checked_add(1)?;
    (first <= last).then_some((first, last))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address that `number` stands for in the family of `net`.
fn address(net: IpNet, number: u128) -> IpAddr {
    match net {
        IpNet::V4(_) => {
            let number = u32::try_from(number).expect("numbers of an IPv4 pool have 32 bits");
            IpAddr::V4(Ipv4Addr::from(number))
        }
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

fn list(nets: impl Iterator<Item = IpNet>) -> String {
    nets.map(|net| net.to_string()).collect::<Vec<_>>().join(", ")
}
