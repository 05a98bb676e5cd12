//! Routes as a full BGP table has them, made up: prefixes of the lengths and in the runs in which
//! they are announced, and hosts in some of them. The same ones for the same seed.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::tables::Prefix;
use serde::Serialize;

/// Lengths of IPv4 prefixes as BGP announces them, and how many of 100 have each.
const LENGTHS_V4: [(u8, u64); 9] =
    [(24, 60), (23, 10), (22, 11), (21, 5), (20, 5), (19, 3), (18, 2), (17, 1), (16, 3)];

/// The same for IPv6, with some subnets and hosts.
const LENGTHS_V6: [(u8, u64); 8] =
    [(48, 50), (44, 8), (40, 8), (36, 4), (32, 15), (56, 2), (64, 9), (128, 4)];

/// Where the registries allot IPv6 from: the first twelve bits.
const REGISTRIES_V6: [u16; 6] = [0x200, 0x240, 0x260, 0x280, 0x2a0, 0x2c0];

/// Hosts share this many networks, as pods with routes of their own do.
pub const NETWORKS_OF_HOSTS: usize = 1000;

/// Of the 256 addresses or more of each of them.
pub const HOSTS_PER_NETWORK: usize = 200;

/// More would have to look long for one that is not there yet.
pub const NETWORKS_MAX: usize = 4_000_000;

/// Of addresses and routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// A prefix of either family, its first bit being bit 127.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    bits: u128,
    len: u8,
}

/// Networks as the internet announces them, so many of each family, the same ones for a seed. None
/// is in a range that is set aside for private use or for documentation.
pub fn internet(seed: u64, v4: usize, v6: usize) -> Vec<Prefix> {
    let random = &mut Random(seed);
    let of_family = |(family, count): (Family, usize)| {
        // Of a thousand networks five are in such a range.
        let networks = family.networks(random, count + count / 50 + 10);
        let prefixes = networks.into_iter().map(move |route| family.prefix(route));
        prefixes.filter(|prefix| is_public(prefix.address)).take(count)
    };
    [(Family::Ipv4, v4), (Family::Ipv6, v6)].into_iter().flat_map(of_family).collect()
}

/// Far from complete (RFC 6890): as far as a node of ours, or a test network, may stand there.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let is_documentation = v4.is_documentation();
            !(v4.is_loopback() || v4.is_private() || v4.is_link_local() || is_documentation)
        }
        IpAddr::V6(v6) => !matches!(v6.segments(), [0x2001, 0xdb8, ..]),
    }
}

impl Family {
    /// An address of this family.
    pub fn address(self, bits: u128) -> IpAddr {
        match self {
            Family::Ipv4 => IpAddr::V4(Ipv4Addr::from((bits >> 96) as u32)),
            Family::Ipv6 => IpAddr::V6(Ipv6Addr::from(bits)),
        }
    }

    /// As the FIB takes it.
    pub fn prefix(self, route: Route) -> Prefix {
        Prefix { address: self.address(route.bits), len: route.len }
    }

    /// Length of a route to a single host.
    pub fn hosts_len(self) -> u8 {
        match self {
            Family::Ipv4 => 32,
            Family::Ipv6 => 128,
        }
    }

    /// An address that somebody may have announced.
    fn announced(self, random: &mut Random) -> u128 {
        match self {
            // 1.0.0.0 to 223.255.255.255.
            Family::Ipv4 => u128::from((1 << 24) + random.below(223 << 24)) << 96,
            Family::Ipv6 => {
                let registry = random.below(REGISTRIES_V6.len() as u64) as usize;
                (u128::from(REGISTRIES_V6[registry]) << 116) | (random.bits() >> 12)
            }
        }
    }

    /// Networks in runs of neighbors, as they are announced. Each once.
    pub fn networks(self, random: &mut Random, count: usize) -> Vec<Route> {
        let lengths: &[(u8, u64)] = match self {
            Family::Ipv4 => &LENGTHS_V4,
            Family::Ipv6 => &LENGTHS_V6,
        };
        let mut routes = Vec::with_capacity(count);
        let mut seen = HashSet::new();
        while routes.len() < count {
            let len = random.weighted(lengths);
            let mut bits = self.announced(random);
            for _ in 0..=random.below(8) {
                let route = Route::new(bits, len);
                if routes.len() < count && seen.insert(route) {
                    routes.push(route);
                }
                bits = bits.saturating_add(1 << (128 - u32::from(len)));
            }
        }
        routes
    }

    /// Routes of single addresses in some of the networks.
    pub fn hosts(self, random: &mut Random, networks: &[Route], count: usize) -> Vec<Route> {
        let networks = &networks[..networks.len().min(NETWORKS_OF_HOSTS)];
        let mut hosts = HashSet::new();
        let mut routes = Vec::with_capacity(count);
        while routes.len() < count {
            let host = Route::new(random.covered(networks), self.hosts_len());
            if hosts.insert(host) {
                routes.push(host);
            }
        }
        routes
    }
}

impl Route {
    /// The network of this length that an address is in.
    pub fn new(bits: u128, len: u8) -> Route {
        Route { bits: bits & !host_bits(len), len }
    }
}

fn host_bits(len: u8) -> u128 {
    u128::MAX.checked_shr(u32::from(len)).unwrap_or(0)
}

/// Numbers that look random and are the same in every run: a counter through the mixing function
/// of MurmurHash3, known as splitmix64.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bits(&mut self) -> u128 {
        (u128::from(self.next()) << 64) | u128::from(self.next())
    }

    /// From 0 to below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// An address that one of the routes covers.
    pub fn covered(&mut self, routes: &[Route]) -> u128 {
        let route = routes[self.below(routes.len() as u64) as usize];
        route.bits | (self.bits() & host_bits(route.len))
    }

    /// One of the choices, as often as its weight says.
    fn weighted(&mut self, choices: &[(u8, u64)]) -> u8 {
        let mut point = self.below(choices.iter().map(|choice| choice.1).sum());
        for (choice, weight) in choices {
            if point < *weight {
                return *choice;
            }
            point -= weight;
        }
        choices[0].0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_as_many_as_asked_for_and_each_once_and_the_same_for_a_seed() {
        for (family, hosts) in [(Family::Ipv4, 500), (Family::Ipv6, 0)] {
            let make = |seed| {
                let random = &mut Random(seed);
                let networks = family.networks(random, 5_000);
                let hosts = family.hosts(random, &networks, hosts);
                [networks, hosts].concat()
            };
            let routes = make(1);
            assert_eq!(routes.len(), 5_000 + hosts);
            assert_eq!(routes.iter().copied().collect::<HashSet<_>>().len(), routes.len());
            assert_eq!(routes, make(1));
            assert_ne!(routes, make(2));
        }
    }

    #[test]
    fn the_internet_has_as_many_routes_as_asked_for_and_none_of_a_private_network() {
        let routes = internet(1, 20_000, 5_000);
        assert_eq!(routes.iter().filter(|route| route.address.is_ipv4()).count(), 20_000);
        assert_eq!(routes.len(), 25_000);
        assert!(routes.iter().all(|route| is_public(route.address)));
        assert!(!is_public(IpAddr::V4(Ipv4Addr::new(10, 244, 0, 0))));
        assert!(!is_public(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0))));
    }
}
