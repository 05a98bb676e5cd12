//! `viaduct-perf routes`: the mirror of the kernel's routes with as many as a full BGP table has:
//! memory, time to build and to change, time of a lookup. Needs neither root nor namespaces.

use std::collections::HashSet;
use std::hint::black_box;
use std::iter;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dataplane::fib::{Action, ActionId, Fib, NextHop, UplinkId};
use dataplane::tables::Prefix;
use serde::Serialize;
use serde_json::json;

use crate::internet::{Family, HOSTS_PER_NETWORK, NETWORKS_MAX, NETWORKS_OF_HOSTS, Random, Route};
use crate::interrupt;
use crate::report::{Report, Table, progress};
use crate::stats::{Times, median};

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
    Report::new(
        "routes",
        vec![memory, times, single],
        Vec::new(),
        json!({ "built": built, "lookups": lookups, "changes": changes }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
