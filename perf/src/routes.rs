//! `viaduct-perf routes`: the mirror of the kernel's routes with as many as a full BGP table has:
//! memory, time to build and to change, time of a lookup. Needs neither root nor namespaces.

use std::collections::HashSet;
use std::hint::black_box;
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dataplane::fib::{Action, ActionId, Fib, NextHop, UplinkId};
use dataplane::tables::Prefix;
use serde::Serialize;
use serde_json::json;

use crate::interrupt;
use crate::report::{Report, Table, progress};
use crate::stats::{Times, median};

/// Lengths of IPv4 prefixes as BGP announces them, and how many of 100 have each.
const LENGTHS_V4: [(u8, u64); 9] =
    [(24, 60), (23, 10), (22, 11), (21, 5), (20, 5), (19, 3), (18, 2), (17, 1), (16, 3)];

/// The same for IPv6, with some subnets and hosts.
const LENGTHS_V6: [(u8, u64); 8] =
    [(48, 50), (44, 8), (40, 8), (36, 4), (32, 15), (56, 2), (64, 9), (128, 4)];

/// Where the registries allot IPv6 from: the first twelve bits.
const REGISTRIES_V6: [u16; 6] = [0x200, 0x240, 0x260, 0x280, 0x2a0, 0x2c0];

/// Hosts share this many networks, as pods with routes of their own do.
const NETWORKS_OF_HOSTS: usize = 1000;

/// Of the 256 addresses or more of each of them.
const HOSTS_PER_NETWORK: usize = 200;

/// More would have to look long for one that is not there yet.
const NETWORKS_MAX: usize = 4_000_000;

/// Routers that the routes lead to.
const ROUTERS: u64 = 16;

/// Addresses looked up at random, each once a turn: far more than caches hold the routes of.
const RANDOM_LEN: usize = 1 << 20;

/// Addresses that packets go to over and over again.
const HOT_LEN: usize = 1 << 10;

/// Changes that are timed.
const CHANGES: usize = 2000;

/// How many routes, and how long.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// IPv4 networks, /16 to /24
    #[arg(long, default_value_t = 1_000_000)]
    v4: usize,
    /// IPv4 hosts, /32, beside them
    #[arg(long, default_value_t = 100_000)]
    hosts: usize,
    /// IPv6 networks and hosts, /32 to /128
    #[arg(long, default_value_t = 200_000)]
    v6: usize,
    /// Turns of every kind of lookup
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    turns: u64,
    /// The same routes and addresses for the same number
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Family {
    Ipv4,
    Ipv6,
}

/// A prefix of either family, its first bit being bit 127.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Route {
    bits: u128,
    len: u8,
}

/// What one family's routes are and cost.
#[derive(Debug, Serialize)]
struct Built {
    family: Family,
    routes: usize,
    build_s: f64,
    bytes_per_route: f64,
}

/// Lookups of one kind of addresses.
#[derive(Debug, Serialize)]
struct Lookups {
    family: Family,
    addresses: &'static str,
    /// Nanoseconds of each, by turn, where the next one need not wait for the one before.
    overlapped_ns: Vec<f64>,
    /// The same where it has to.
    alone_ns: Vec<f64>,
}

/// Times of single changes, each after a clone that the workers still use.
#[derive(Debug, Serialize)]
struct Changes {
    family: Family,
    insert: Times,
    remove: Times,
    /// Freeing what only the retired clone still used.
    retire: Times,
}

/// Measures.
///
/// # Errors
/// When there is no room for so many routes, and when it is interrupted.
pub fn measure(options: &Options) -> Result<Report> {
    let Options { v4, hosts, v6, turns, seed } = *options;
    ensure!(
        (1..=NETWORKS_MAX).contains(&v4) && (1..=NETWORKS_MAX).contains(&v6),
        "--v4 and --v6 take 1 to {NETWORKS_MAX} networks"
    );
    let hosts_max = v4.min(NETWORKS_OF_HOSTS) * HOSTS_PER_NETWORK;
    ensure!(hosts <= hosts_max, "{v4} networks have room for {hosts_max} --hosts");
    let random = &mut Random(seed);
    let mut fib = empty();
    let (mut built, mut lookups, mut changes) = (Vec::new(), Vec::new(), Vec::new());
    let mut all = Vec::new();
    for (family, networks, hosts) in [(Family::Ipv4, v4, hosts), (Family::Ipv6, v6, 0)] {
        progress(&format!("{} {family:?} routes", networks + hosts));
        let mut routes = family.networks(random, networks);
        routes.extend(family.hosts(random, &routes, hosts));
        built.push(build(&mut fib, family, &routes, random));
        interrupt::check()?;
        all.push((family, routes));
    }
    for (family, routes) in &all {
        for (addresses, len) in [("random", RANDOM_LEN), ("hot", HOT_LEN)] {
            progress(&format!("lookups of {len} {family:?} addresses"));
            let covered = || family.address(random.covered(routes));
            let covered: Vec<IpAddr> = iter::repeat_with(covered).take(len).collect();
            lookups.push(look_up(&fib, *family, addresses, &covered, turns)?);
        }
        progress(&format!("{CHANGES} changes of {family:?} routes"));
        changes.push(change(&mut fib, *family, routes, random)?);
    }
    Ok(sum_up(&built, &lookups, &changes))
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

/// Two tables, as a node has: local with a few routes of its own, and main.
fn empty() -> Fib {
    let mut fib = Fib::default();
    fib.set_tables(2);
    for router in 0..ROUTERS {
        let octet = router as u8;
        let hop = NextHop {
            uplink: UplinkId(octet % 2),
            via: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, octet))),
            mac: Some([0, 0, 0x5e, 0, 0x53, octet]),
            weight: 1,
        };
        fib.set_action(ActionId(router as u32), Action::Uplink { hops: vec![hop], mtu: None });
    }
    let kernel = ActionId(ROUTERS as u32);
    fib.set_action(kernel, Action::Kernel);
    for (address, len) in [("127.0.0.1", 32), ("192.0.2.1", 32), ("::1", 128), ("fe80::1", 128)] {
        let address = address.parse().expect("the table holds addresses");
        fib.insert(0, Prefix { address, len }, kernel);
    }
    fib
}

fn build(fib: &mut Fib, family: Family, routes: &[Route], random: &mut Random) -> Built {
    let (routes_before, bytes_before) = (fib.routes(), fib.bytes());
    let started = Instant::now();
    for route in routes {
        fib.insert(1, family.prefix(*route), ActionId(random.below(ROUTERS) as u32));
    }
    let build_s = started.elapsed().as_secs_f64();
    let routes = fib.routes() - routes_before;
    Built {
        family,
        routes,
        build_s,
        bytes_per_route: (fib.bytes() - bytes_before) as f64 / routes as f64,
    }
}

fn look_up(
    fib: &Fib,
    family: Family,
    addresses: &'static str,
    covered: &[IpAddr],
    turns: u64,
) -> Result<Lookups> {
    let rounds = RANDOM_LEN / covered.len();
    let mut found = Lookups { family, addresses, overlapped_ns: vec![], alone_ns: vec![] };
    for _ in 0..turns {
        interrupt::check()?;
        let timed = |lookups: &dyn Fn() -> usize| {
            let started = Instant::now();
            let sum = lookups();
            let ns = started.elapsed().as_nanos() as f64 / (rounds * covered.len()) as f64;
            ensure!(sum == rounds * covered.len(), "{sum} addresses have a route");
            Ok(ns)
        };
        found.overlapped_ns.push(timed(&|| overlapped(fib, covered, rounds))?);
        found.alone_ns.push(timed(&|| alone(fib, covered, rounds))?);
    }
    Ok(found)
}

fn overlapped(fib: &Fib, covered: &[IpAddr], rounds: usize) -> usize {
    let mut found = 0;
    for _ in 0..rounds {
        for address in covered {
            found += usize::from(black_box(fib.route(*address, 0)).is_some());
        }
    }
    found
}

/// Every address is taken from where the answer before says: it says zero, but the CPU has to wait.
fn alone(fib: &Fib, covered: &[IpAddr], rounds: usize) -> usize {
    let mut found = 0;
    let mut always_zero = 0;
    for _ in 0..rounds {
        for index in 0..covered.len() {
            if let Some(hop) = fib.route(covered[index + always_zero], 0) {
                found += 1;
                always_zero = usize::from(hop.mac[0]);
            }
        }
    }
    found
}

fn change(fib: &mut Fib, family: Family, routes: &[Route], random: &mut Random) -> Result<Changes> {
    let (mut inserts, mut removes, mut retires) = (Vec::new(), Vec::new(), Vec::new());
    let timed = |samples: &mut Vec<Duration>, step: &mut dyn FnMut()| {
        let started = Instant::now();
        step();
        samples.push(started.elapsed());
    };
    let mut adopted = fib.clone();
    let known: HashSet<Route> = routes.iter().copied().collect();
    while removes.len() < CHANGES {
        interrupt::check()?;
        let len = family.hosts_len() - random.below(u64::from(family.hosts_len()) / 3) as u8;
        let route = Route::new(random.covered(routes), len);
        if known.contains(&route) {
            continue;
        }
        let prefix = family.prefix(route);
        timed(&mut inserts, &mut || fib.insert(1, prefix, ActionId(0)));
        let mut retired = Some(std::mem::replace(&mut adopted, fib.clone()));
        timed(&mut retires, &mut || drop(retired.take()));
        timed(&mut removes, &mut || fib.remove(1, prefix));
        adopted = fib.clone();
    }
    Ok(Changes {
        family,
        insert: Times::of(&inserts),
        remove: Times::of(&removes),
        retire: Times::of(&retires),
    })
}

fn sum_up(built: &[Built], lookups: &[Lookups], changes: &[Changes]) -> Report {
    let mut memory = Table::new("routes", &["family", "routes", "build s", "bytes per route"]);
    for Built { family, routes, build_s, bytes_per_route } in built {
        memory.row([
            format!("{family:?}"),
            routes.to_string(),
            format!("{build_s:.2}"),
            format!("{bytes_per_route:.1}"),
        ]);
    }
    let heads = ["addresses", "overlapped", "turns", "one after another", "turns"];
    let mut times = Table::new("lookup, ns, medians", &heads);
    for Lookups { family, addresses, overlapped_ns, alone_ns } in lookups {
        let each = |turns: &[f64]| {
            let turns: Vec<String> = turns.iter().map(|ns| format!("{ns:.1}")).collect();
            turns.join(" ")
        };
        times.row([
            format!("{family:?} {addresses}"),
            format!("{:.1}", median(overlapped_ns)),
            each(overlapped_ns),
            format!("{:.1}", median(alone_ns)),
            each(alone_ns),
        ]);
    }
    let mut single = Table::new("one change after a clone, µs", &["", "p50", "p99", "max"]);
    for Changes { family, insert, remove, retire } in changes {
        for (what, times) in [("insert", insert), ("remove", remove), ("retire", retire)] {
            single.row([
                format!("{family:?} {what}"),
                format!("{:.1}", times.p50_us),
                format!("{:.1}", times.p99_us),
                format!("{:.1}", times.max_us),
            ]);
        }
    }
    Report {
        measurement: "routes",
        tables: vec![memory, times, single],
        targets: Vec::new(),
        figures: json!({ "built": built, "lookups": lookups, "changes": changes }),
    }
}

impl Family {
    fn address(self, bits: u128) -> IpAddr {
        match self {
            Family::Ipv4 => IpAddr::V4(Ipv4Addr::from((bits >> 96) as u32)),
            Family::Ipv6 => IpAddr::V6(Ipv6Addr::from(bits)),
        }
    }

    fn prefix(self, route: Route) -> Prefix {
        Prefix { address: self.address(route.bits), len: route.len }
    }

    fn hosts_len(self) -> u8 {
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
    fn networks(self, random: &mut Random, count: usize) -> Vec<Route> {
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
    fn hosts(self, random: &mut Random, networks: &[Route], count: usize) -> Vec<Route> {
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
    fn new(bits: u128, len: u8) -> Route {
        Route { bits: bits & !host_bits(len), len }
    }
}

fn host_bits(len: u8) -> u128 {
    u128::MAX.checked_shr(u32::from(len)).unwrap_or(0)
}

/// Numbers that look random and are the same in every run: a counter through the mixing function
/// of MurmurHash3, known as splitmix64.
struct Random(u64);

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
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// An address that one of the routes covers.
    fn covered(&mut self, routes: &[Route]) -> u128 {
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

    #[test]
    fn every_covered_address_has_a_route_and_others_have_none() {
        let random = &mut Random(7);
        for family in [Family::Ipv4, Family::Ipv6] {
            let routes = family.networks(random, 1_000);
            let mut fib = empty();
            let built = build(&mut fib, family, &routes, random);
            assert_eq!(built.routes, 1_000);
            for _ in 0..1_000 {
                let address = family.address(random.covered(&routes));
                assert!(fib.route(address, 0).is_some(), "{address}");
            }
        }
        assert!(empty().route(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 0).is_none());
    }

    #[test]
    fn a_change_leaves_the_routes_as_they_were() -> Result<()> {
        let random = &mut Random(7);
        let routes = Family::Ipv6.networks(random, 1_000);
        let mut fib = empty();
        build(&mut fib, Family::Ipv6, &routes, random);
        let before = (fib.routes(), fib.bytes());
        let changes = change(&mut fib, Family::Ipv6, &routes, random)?;
        assert_eq!((changes.insert.count, changes.remove.count), (CHANGES, CHANGES));
        assert_eq!((fib.routes(), fib.bytes()), before);
        Ok(())
    }
}
