//! The kernel's routes steer the workers: those that BIRD and FRR learn, several next hops, next
//! hops of the other family, next hop objects, routes that lead elsewhere or nowhere, and those
//! that vanish with their link. The same questions are asked of plain Linux.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{
    Bird, Cluster, ClusterSetup, Forwarder, Frr, Routes, SECOND_UPLINK, Speaker, UPLINK,
    on_clusters, set_sysctl, start_speakers,
};
use e2e::daemon::ip;
use e2e::netns::{Namespace, wait_until};
use e2e::pod::{IFNAME, Pod};
use e2e::traffic::{Beacon, Capture, RouteEvents, Site, ping, reaches, transfer, udp_socket};
use rustix::process::Signal;

/// A pod prefix that is of no node, and an address in it.
const WANDERER: [(&str, &str); 2] =
    [("10.244.200.0/24", "10.244.200.1"), ("fd00:10:244:c8::/64", "fd00:10:244:c8::1")];

/// Where beacons go.
const BEACON_PORT: u16 = 7777;

/// Forwarding follows the kernel's route within this, as a rule.
const FOLLOWS_WITHIN: Duration = Duration::from_millis(100);

/// And always within this, whatever else the machine does.
const FOLLOWS_AT_LAST: Duration = Duration::from_secs(5);

/// Beacons come every half millisecond: none for so long, and none comes any more.
const SILENT_AFTER: Duration = Duration::from_secs(1);

/// A change is over when nothing more is said of it for so long: routing daemons may take a route
/// away before they put another one, and what `ip monitor` says is read late by a busy machine.
const OVER_AFTER: Duration = Duration::from_millis(200);

/// Sessions exist: what one node says, the others know soon.
const LEARNT_WITHIN: Duration = Duration::from_secs(10);

/// Routes of a burst that is more than the daemon's socket holds.
const BURST: u32 = 30_000;

/// Routes of a burst that the socket holds, but more than the daemon takes in one turn.
const SMALL_BURST: u32 = 3_000;

/// How often the prefix moves.
const MOVES: usize = 6;

fn setups(forwarders: Vec<Forwarder>, nodes: usize) -> Vec<ClusterSetup> {
    forwarders.into_iter().map(|forwarder| ClusterSetup::new(forwarder, nodes)).collect()
}

/// Puts a route or next hop on a node.
fn on_node(cluster: &Cluster, number: usize, line: &str) -> Result<()> {
    ip(cluster.node(number).namespace(), line)
}

fn by_bgp(forwarders: Vec<Forwarder>) -> Vec<ClusterSetup> {
    let wanted = |setup| ClusterSetup { routes: Routes::Wanted, ..setup };
    setups(forwarders, 3).into_iter().map(wanted).collect()
}

#[test]
#[ignore = "needs root"]
fn bird_tells_every_node_where_the_others_pods_are() {
    every_node_is_told::<Bird>();
}

#[test]
#[ignore = "needs root"]
fn frr_tells_every_node_where_the_others_pods_are() {
    every_node_is_told::<Frr>();
}

fn every_node_is_told<S: Speaker>() {
    on_clusters(by_bgp(Forwarder::all()), |cluster| {
        let pods = cluster.add_pods(1)?;
        let ours = |cluster: &Cluster| {
            let nodes = 0..cluster.nodes().len();
            nodes.map(|node| routes_of(cluster, node, "118")).collect::<Result<Vec<_>>>()
        };
        let before = ours(cluster)?;
        let speakers = start_speakers::<S>(cluster, WANDERER.map(|(prefix, _)| prefix))?;
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            cluster.warm_up_within(LEARNT_WITHIN, (from, &pods[from][0]), &pods[to][0])?;
            for address in pods[to][0].addresses() {
                transfer(&pods[from][0].namespace, &pods[to][0].namespace, address, 1_000_000)?;
            }
        }
        for number in 0..cluster.nodes().len() {
            learnt_what_it_should::<S>(cluster, number)?;
        }
        drop(speakers);
        let after = ours(cluster)?;
        let kept = before == after && before.iter().all(|routes| !routes.is_empty());
        // To plain Linux they were added for the speakers.
        ensure!(kept || !cluster.by_viaduct(0), "viaductd's routes were {before:?}, are {after:?}");
        Ok(())
    });
}

/// A node's routes of a protocol, as `ip` prints them.
fn routes_of(cluster: &Cluster, number: usize, protocol: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        let words = [family, "route", "show", "proto", protocol];
        let output = cluster.node(number).namespace().run("ip", &words)?;
        lines.extend(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned));
    }
    Ok(lines)
}

/// The prefixes at the beginnings of lines.
fn prefixes(lines: impl Iterator<Item = String>) -> Result<BTreeSet<(IpAddr, u8)>> {
    lines
        .map(|line| {
            let prefix = line.split_whitespace().next().and_then(|word| word.split_once('/'));
            let (address, len) = prefix.with_context(|| format!("{line} begins with a prefix"))?;
            Ok((address.parse()?, len.parse()?))
        })
        .collect()
}

/// The prefixes of the others' pods and no more, those of IPv4 by IPv6 next hops, and no way to
/// anywhere else.
fn learnt_what_it_should<S: Speaker>(cluster: &Cluster, number: usize) -> Result<()> {
    let routes = routes_of(cluster, number, S::PROTOCOL)?;
    let others = cluster.nodes().iter().enumerate().filter(|(other, _)| *other != number);
    let expected = prefixes(others.flat_map(|(_, node)| node.pod_cidrs()))?;
    let learnt = prefixes(routes.iter().cloned())?;
    ensure!(learnt == expected, "node {number} learnt {routes:#?}, not {expected:?}");
    let objects = routes.iter().all(|line| line.contains(" nhid "));
    ensure!(objects == S::NEXT_HOP_OBJECTS, "by next hop objects: {routes:#?}");
    let v4 = |line: &&String| line.starts_with("10.");
    let by_v6 = routes.iter().filter(v4).all(|line| line.contains(" via inet6 "));
    ensure!(by_v6, "IPv4 goes by IPv6 next hops: {routes:#?}");
    let advertised = routes_of(cluster, number, "ra")?;
    ensure!(advertised.is_empty(), "nobody is a router for anything else: {advertised:?}");
    Ok(())
}

/// A place for the wandering prefix on a node: a namespace with its address.
fn make_site(cluster: &Cluster, number: usize) -> Result<Namespace> {
    let place = Namespace::create("e2e-wanderer")?;
    let node = cluster.node(number).namespace();
    let name = place.path().file_name().context("a named namespace")?.to_string_lossy();
    ip(node, &format!("link add w0 type veth peer name {IFNAME} netns {name}"))?;
    for (namespace, ifname) in [(node, "w0"), (&place, IFNAME)] {
        set_sysctl(namespace, &format!("net.ipv6.conf.{ifname}.accept_dad"), "0")?;
        ip(namespace, &format!("link set {ifname} up"))?;
    }
    for (prefix, address) in WANDERER {
        let (net, len) = prefix.split_once('/').context("a prefix")?;
        ip(&place, &format!("addr add {address}/{len} dev {IFNAME}"))?;
        // Found by a route, not by an address of the node within the prefix; one that routing
        // daemons take for the kernel's own and do not announce.
        ip(node, &format!("route add {net}/{len} dev w0 proto kernel"))?;
    }
    Ok(place)
}

/// What is measured in one family.
struct Watched {
    prefix: &'static str,
    sites: [Site; 2],
    events: RouteEvents,
    _beacon: Beacon,
}

impl Watched {
    fn start(cluster: &Cluster, family: usize, pod: &Pod, places: &[Namespace; 2]) -> Result<Self> {
        let (prefix, address) = WANDERER[family];
        let to = SocketAddr::new(address.parse()?, BEACON_PORT);
        let site = |place: &Namespace| Site::watch(place.within(|| UdpSocket::bind(to))??);
        let sites = [site(&places[0])?, site(&places[1])?];
        let observer = cluster.node(0).namespace();
        let events = RouteEvents::listen(observer, ["-4", "-6"][family])?;
        let from = udp_socket(&pod.namespace, pod.addresses()[family])?;
        Ok(Watched { prefix, sites, events, _beacon: Beacon::start(from, to) })
    }

    /// Does something that makes the route lead to a site; returns how long after the kernel said
    /// so the first datagram came there.
    fn led_to(&self, site: usize, act: impl FnOnce() -> Result<()>) -> Result<Duration> {
        let (arrived, said) = self.changed(&self.sites[site], act)?;
        Ok(arrived.saturating_duration_since(said))
    }

    /// Waits until the last change is over, and returns that moment.
    fn quiet(&self) -> Result<Instant> {
        let mut moment = Instant::now();
        wait_until("the last change is over", LEARNT_WITHIN, || {
            moment = Instant::now();
            Ok(self.events.first_after(moment - OVER_AFTER, self.prefix).is_none())
        })?;
        Ok(moment)
    }

    fn changed(&self, to: &Site, act: impl FnOnce() -> Result<()>) -> Result<(Instant, Instant)> {
        let moment = self.quiet()?;
        act()?;
        let (mut arrived, mut said) = (None, None);
        wait_until("datagrams come to the other place", LEARNT_WITHIN, || {
            (arrived, said) =
                (to.first_after(moment), self.events.first_after(moment, self.prefix));
            Ok(arrived.is_some() && said.is_some())
        })?;
        Ok((arrived.context("it has")?, said.context("it has")?))
    }

    /// Does something that takes the route away; returns how long after the kernel said so the last
    /// datagram came.
    fn led_nowhere(&self, act: impl FnOnce() -> Result<()>) -> Result<Duration> {
        let moment = self.quiet()?;
        act()?;
        let mut said = None;
        wait_until("the route is gone", LEARNT_WITHIN, || {
            let deleted = format!("Deleted {}", self.prefix);
            said = self.events.first_after(moment, &deleted);
            Ok(said.is_some())
        })?;
        let last = || self.sites.iter().filter_map(Site::last).max();
        wait_until("nothing comes any more", LEARNT_WITHIN, || {
            Ok(last().is_none_or(|last| last.elapsed() > SILENT_AFTER))
        })?;
        let (last, said) = (last().context("something came")?, said.context("it has")?);
        Ok(last.saturating_duration_since(said))
    }
}

#[test]
#[ignore = "needs root"]
fn a_pod_prefix_that_bird_announces_appears_moves_and_disappears_and_workers_follow() {
    wandering_is_followed::<Bird>();
}

#[test]
#[ignore = "needs root"]
fn a_pod_prefix_that_frr_announces_appears_moves_and_disappears_and_workers_follow() {
    wandering_is_followed::<Frr>();
}

fn wandering_is_followed<S: Speaker>() {
    on_clusters(by_bgp(Forwarder::all()), |cluster| {
        let pod = cluster.add_pod(0, "observer")?;
        let places = [make_site(cluster, 1)?, make_site(cluster, 2)?];
        let speakers = start_speakers::<S>(cluster, WANDERER.map(|(prefix, _)| prefix))?;
        for family in [0, 1] {
            let watched = Watched::start(cluster, family, &pod, &places)?;
            let tell = |node: usize, here: bool| speakers[node].announce(family, here);
            let mut times = vec![watched.led_to(0, || tell(1, true))?];
            wait_until("workers carry it", LEARNT_WITHIN, || {
                let before = cluster.uplink_packets(0)?.sent;
                std::thread::sleep(Duration::from_millis(20)); // a few datagrams
                Ok(!cluster.by_viaduct(0) || cluster.uplink_packets(0)?.sent > before)
            })?;
            for step in 0..MOVES {
                let (to, here) = if step % 2 == 0 { (1, true) } else { (0, false) };
                times.push(watched.led_to(to, || tell(2, here))?);
            }
            let gone = watched.led_nowhere(|| tell(1, false));
            let known = || format!("routes: {:#?}", routes_of(cluster, 0, S::PROTOCOL));
            times.push(gone.with_context(known)?);
            let each: Vec<String> =
                times.iter().map(|time| format!("{:.1}", time.as_secs_f64() * 1e3)).collect();
            eprintln!("  IPv{}: ms after the kernel's route: {}", [4, 6][family], each.join(" "));
            times.sort();
            ensure!(times[times.len() / 2] <= FOLLOWS_WITHIN, "as a rule: {times:?}");
            ensure!(times[times.len() - 1] <= FOLLOWS_AT_LAST, "always: {times:?}");
        }
        Ok(())
    });
}

/// Flows that are sent over several next hops, and datagrams of each.
const FLOWS: usize = 64;
const DATAGRAMS: usize = 5;

/// Two uplinks, on a switch each.
fn two_uplinks(forwarders: Vec<Forwarder>) -> Vec<ClusterSetup> {
    let two = |setup| ClusterSetup { uplinks: 2, routes: Routes::Wanted, ..setup };
    setups(forwarders, 2).into_iter().map(two).collect()
}

/// Routes between the first two nodes: to the second by the words, and back by the first uplink.
fn lead(cluster: &Cluster, by: impl Fn(usize) -> String) -> Result<()> {
    for (family, cidr) in cluster.node(1).pod_cidrs().iter().enumerate() {
        on_node(cluster, 0, &format!("route replace {cidr} {}", by(family)))?;
    }
    for (cidr, gateway) in cluster.node(0).pod_cidrs().iter().zip(Cluster::address(0)) {
        on_node(cluster, 1, &format!("route replace {cidr} via {gateway} dev {UPLINK}"))?;
    }
    Ok(())
}

/// Sends the flows and returns, for each of the ports of the switches, which flows came there: how
/// many datagrams of each, by source port.
fn spread(
    cluster: &Cluster,
    ports: [(&str, &str); 2],
    pods: [&Pod; 2],
    family: usize,
) -> Result<[BTreeMap<u16, usize>; 2]> {
    let [here, there] = pods.map(|pod| pod.addresses()[family]);
    let receiver = udp_socket(&pods[1].namespace, there)?;
    let to = receiver.local_addr()?;
    let filter = format!("udp and dst port {}", to.port());
    let tap = |(port, direction): (&str, &str)| {
        Capture::start(cluster.switch(), &format!("-i {port} -Q {direction}"), &filter)
    };
    let taps = [tap(ports[0])?, tap(ports[1])?];
    for _ in 0..FLOWS {
        let sender = udp_socket(&pods[0].namespace, here)?;
        for _ in 0..DATAGRAMS {
            sender.send_to(b"flow", to)?;
            receiver.recv(&mut [0; 8]).context("a datagram arrives")?;
        }
    }
    let [a, b] = taps.map(Capture::stop);
    Ok([by_flow(&a?)?, by_flow(&b?)?])
}

/// `IP 10.244.0.2.40000 > 10.244.1.2.9999: UDP, length 4`: how many of each source port.
fn by_flow(lines: &[String]) -> Result<BTreeMap<u16, usize>> {
    let mut flows = BTreeMap::new();
    for line in lines {
        let port = line.split(" > ").next().and_then(|source| source.rsplit('.').next());
        let port = port.and_then(|port| port.parse().ok()).with_context(|| line.clone())?;
        *flows.entry(port).or_default() += 1;
    }
    Ok(flows)
}

/// Both ways carry a good part of the flows, and every flow takes one way.
fn evenly(ways: &[BTreeMap<u16, usize>; 2]) -> Result<()> {
    let [a, b] = ways.each_ref().map(|way| way.keys().copied().collect::<BTreeSet<u16>>());
    ensure!(a.is_disjoint(&b), "flows that took both ways: {:?}", a.intersection(&b));
    ensure!(a.len() + b.len() == FLOWS, "{} + {} of {FLOWS} flows", a.len(), b.len());
    // Of 64 fair coins fewer than 12 fall on one side once in ten million times.
    ensure!(a.len() >= 12 && b.len() >= 12, "{} went one way, {} the other", a.len(), b.len());
    let whole = ways.iter().flatten().all(|(_, count)| *count == DATAGRAMS);
    ensure!(whole, "every datagram was seen once: {ways:?}");
    Ok(())
}

/// Linux hashes addresses only, unless it is told to look at ports.
fn hash_ports(cluster: &Cluster) -> Result<()> {
    for key in ["net.ipv4.fib_multipath_hash_policy", "net.ipv6.fib_multipath_hash_policy"] {
        set_sysctl(cluster.node(0).namespace(), key, "1")?;
    }
    Ok(())
}

/// Resolves the next hops: one that is unknown is left out of the choice.
fn resolve(cluster: &Cluster, gateways: &[IpAddr]) -> Result<()> {
    gateways.iter().try_for_each(|gateway| reaches(cluster.node(0).namespace(), *gateway))
}

#[test]
#[ignore = "needs root"]
fn a_route_by_two_uplinks_uses_both_and_each_flow_one() {
    on_clusters(two_uplinks(Forwarder::all()), |cluster| {
        hash_ports(cluster)?;
        let (first, second) = (Cluster::address(1), Cluster::second_address(1));
        lead(cluster, |family| {
            format!(
                "nexthop via {} dev {UPLINK} nexthop via {} dev {SECOND_UPLINK}",
                first[family], second[family]
            )
        })?;
        let (a, b) = (cluster.add_pod(0, "a")?, cluster.add_pod(1, "b")?);
        resolve(cluster, &[first, second].concat())?;
        for family in [0, 1] {
            // Until the workers have both next hops, the kernel may choose otherwise than they.
            let mut last = None;
            wait_until("both ways are used", LEARNT_WITHIN, || {
                let ways = spread(cluster, [("p0", "in"), ("q0", "in")], [&a, &b], family)?;
                let outcome = evenly(&ways);
                let even = outcome.is_ok();
                last = Some(outcome);
                Ok(even)
            })
            .with_context(|| format!("IPv{}: {last:?}", [4, 6][family]))?;
        }
        Ok(())
    });
}

/// Two hosts that forward to the second node's pods, and their addresses.
fn two_routers(cluster: &Cluster) -> Result<[(Namespace, [IpAddr; 2]); 2]> {
    let router = |number: usize| -> Result<(Namespace, [IpAddr; 2])> {
        let host = cluster.add_host(number)?;
        for key in ["ipv4.ip_forward", "ipv6.conf.all.forwarding"] {
            set_sysctl(&host, &format!("net.{key}"), "1")?;
        }
        for interfaces in ["all", UPLINK] {
            set_sysctl(&host, &format!("net.ipv4.conf.{interfaces}.send_redirects"), "0")?;
        }
        for (cidr, gateway) in cluster.node(1).pod_cidrs().iter().zip(Cluster::address(1)) {
            ip(&host, &format!("route add {cidr} via {gateway} dev {UPLINK}"))?;
        }
        Ok((host, Cluster::address(number)))
    };
    Ok([router(200)?, router(201)?])
}

#[test]
#[ignore = "needs root"]
fn next_hop_objects_and_groups_are_followed_when_only_they_change() {
    on_clusters(setups(Forwarder::all(), 2), |cluster| {
        hash_ports(cluster)?;
        let [(_one, first), (_other, second)] = two_routers(cluster)?;
        let (a, b) = (cluster.add_pod(0, "a")?, cluster.add_pod(1, "b")?);
        resolve(cluster, &[first, second].concat())?;
        // Objects 10 and 20 are a router each, 30 is a group of them; 11, 21, 31 of IPv6.
        for family in [0, 1] {
            let id = |number: usize| number + family;
            let (first, second) = (first[family], second[family]);
            on_node(cluster, 0, &format!("nexthop add id {} via {first} dev {UPLINK}", id(10)))?;
            on_node(cluster, 0, &format!("nexthop add id {} via {second} dev {UPLINK}", id(20)))?;
            let cidr = &cluster.node(1).pod_cidrs()[family];
            on_node(cluster, 0, &format!("route replace {cidr} nhid {}", id(10)))?;
            let ports = [("p200", "out"), ("p201", "out")];
            let all_by = |way: usize, what: &str| {
                let mut last = None;
                wait_until(what, LEARNT_WITHIN, || {
                    let ways = spread(cluster, ports, [&a, &b], family)?;
                    let flows = ways.each_ref().map(BTreeMap::len);
                    last = Some(flows);
                    Ok(flows[way] == FLOWS && flows[1 - way] == 0)
                })
                .with_context(|| format!("flows by each router: {last:?}"))
            };
            all_by(0, "all flows go by the first router")?;
            // The same object is another router now: the kernel says nothing about the route.
            on_node(
                cluster,
                0,
                &format!("nexthop replace id {} via {second} dev {UPLINK}", id(10)),
            )?;
            all_by(1, "all flows go by the second router")?;
            on_node(
                cluster,
                0,
                &format!("nexthop replace id {} via {first} dev {UPLINK}", id(10)),
            )?;
            let group = format!("{}/{}", id(10), id(20));
            on_node(cluster, 0, &format!("nexthop add id {} group {group}", id(30)))?;
            on_node(cluster, 0, &format!("route replace {cidr} nhid {}", id(30)))?;
            let mut last = None;
            wait_until("both routers are used", LEARNT_WITHIN, || {
                let outcome = evenly(&spread(cluster, ports, [&a, &b], family)?);
                let even = outcome.is_ok();
                last = Some(outcome);
                Ok(even)
            })
            .with_context(|| format!("{last:?}"))?;
            // A member leaves: the route stays, with one next hop.
            on_node(cluster, 0, &format!("nexthop del id {}", id(10)))?;
            all_by(1, "all flows go by the router that is left")?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn ipv4_is_carried_by_way_of_an_ipv6_next_hop() {
    let wanted = |setup| ClusterSetup { routes: Routes::Wanted, ..setup };
    let setups = setups(Forwarder::all(), 2).into_iter().map(wanted).collect();
    on_clusters(setups, |cluster| {
        let (a, b) = (cluster.add_pod(0, "a")?, cluster.add_pod(1, "b")?);
        let link_local = |node: usize| -> Result<String> {
            let line = ["-6", "addr", "show", "dev", UPLINK, "scope", "link"];
            let addresses = cluster.node(node).namespace().ip_json(&line)?;
            // This ip lists an empty object before what it found.
            let mut found = addresses[0]["addr_info"].as_array().into_iter().flatten();
            let local = found.find_map(|info| info["local"].as_str().map(str::to_owned));
            local.with_context(|| format!("a link-local address: {addresses}"))
        };
        let global = |node: usize| Ok(Cluster::address(node)[1].to_string());
        let kinds: [&dyn Fn(usize) -> Result<String>; 2] = [&global, &link_local];
        for gateway in kinds {
            for (from, to) in [(0, 1), (1, 0)] {
                let [v4, v6] = cluster.node(to).pod_cidrs();
                let via = gateway(to)?;
                let line = format!("route replace {v4} via inet6 {via} dev {UPLINK}");
                on_node(cluster, from, &line)?;
                on_node(cluster, from, &format!("route replace {v6} via {via} dev {UPLINK}"))?;
            }
            cluster.warm_up((0, &a), &b)?;
            cluster.warm_up((1, &b), &a)?;
            for address in b.addresses() {
                transfer(&a.namespace, &b.namespace, address, 4_000_000)?;
            }
            for node in cluster.nodes() {
                let known = node.namespace().ip_json(&["-4", "neigh", "show", "dev", UPLINK])?;
                let nobody = known.as_array().is_some_and(Vec::is_empty);
                ensure!(nobody, "IPv4 neighbors were asked for: {known}");
            }
        }
        Ok(())
    });
}

/// Runs something of which the first node's workers must send nothing by the uplink.
fn not_by_uplink(cluster: &Cluster, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = cluster.uplink_packets(0)?.sent;
    act()?;
    let sent = cluster.uplink_packets(0)?.sent - before;
    ensure!(sent == 0, "workers sent {sent} packets by the uplink");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_burst_of_routes_is_followed_to_the_last() {
    on_clusters(setups(vec![Forwarder::viaduct(1)], 2), |cluster| {
        let count = || {
            let status = cluster.node(0).list("status")?;
            status["routes"].as_u64().context("routes are a number")
        };
        let before = count()?;
        let gateway = Cluster::address(1)[0];
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("batch");
        let bursts = [SMALL_BURST, BURST]
            .into_iter()
            .flat_map(|burst| [(burst, "add", before + u64::from(burst)), (burst, "del", before)]);
        for (burst, verb, after) in bursts {
            // 10.244.128.0 and the addresses that follow, of no node.
            let route = |number: u32| {
                let address = std::net::Ipv4Addr::from(0x0af4_8000 + number);
                format!("route {verb} {address}/32 via {gateway}\n")
            };
            std::fs::write(&path, (0..burst).map(route).collect::<String>())?;
            let path = path.to_str().context("a path in UTF-8")?;
            // While the daemon sleeps, so that all of it waits in the socket, or no longer fits.
            cluster.node(0).signal_daemon(Signal::STOP)?;
            let put = cluster.node(0).namespace().ip(&["-batch", path]);
            cluster.node(0).signal_daemon(Signal::CONT)?;
            put?;
            wait_until("the daemon has followed", LEARNT_WITHIN, || Ok(count()? == after))
                .with_context(|| {
                    format!("{verb} {burst}: {} routes, not {after}", count().unwrap_or(0))
                })?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn routes_that_lead_elsewhere_or_nowhere_are_left_to_the_kernel() {
    on_clusters(setups(Forwarder::all(), 2), |cluster| {
        let (a, b) = (cluster.add_pod(0, "a")?, cluster.add_pod(1, "b")?);
        let outside = [e2e::daemon::OUTSIDE_V4.into(), e2e::daemon::OUTSIDE_V6.into()];
        for (address, outside) in b.addresses().into_iter().zip::<[IpAddr; 2]>(outside) {
            let route = |verb: &str, words: &str| {
                on_node(cluster, 0, &format!("route {verb} {words} {address}"))
            };
            cluster.warm_up((0, &a), &b)?;
            for (kind, word) in [("blackhole", ""), ("unreachable", "nreachable")] {
                route("add", kind)?;
                wait_until("workers have heard", LEARNT_WITHIN, || {
                    let silent = not_by_uplink(cluster, || {
                        let ping = ping(&a.namespace, address, "-c 1 -W 1")?;
                        ensure!(ping.received == 0, "{kind}: {}", ping.text);
                        ensure!(ping.text.contains(word), "{kind} says so: {}", ping.text);
                        Ok(())
                    });
                    Ok(silent.is_ok())
                })
                .with_context(|| format!("{kind} {address}"))?;
                route("del", kind)?;
                cluster.warm_up((0, &a), &b).with_context(|| format!("without {kind}"))?;
            }
            // By an interface that is no uplink: what leaves by it is seen at its other end.
            let by = format!("via {outside} dev up0");
            on_node(cluster, 0, &format!("route add {address} {by}"))?;
            wait_until("workers have heard", LEARNT_WITHIN, || {
                let filter = format!("dst host {address}");
                let tap = Capture::start(cluster.node(0).outside(), "-i eth0 -Q in", &filter)?;
                let silent = not_by_uplink(cluster, || {
                    ping(&a.namespace, address, "-c 1 -W 1")?;
                    Ok(())
                });
                Ok(silent.is_ok() && tap.stop()?.len() == 1)
            })
            .with_context(|| format!("{address} {by}"))?;
            on_node(cluster, 0, &format!("route del {address} {by}"))?;
            cluster.warm_up((0, &a), &b).context("the way that is left")?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn when_a_link_goes_down_its_routes_go_and_the_next_best_are_taken() {
    on_clusters(two_uplinks(Forwarder::all()), |cluster| {
        let (a, b) = (cluster.add_pod(0, "a")?, cluster.add_pod(1, "b")?);
        let (first, second) = (Cluster::address(1), Cluster::second_address(1));
        for (family, cidr) in cluster.node(1).pod_cidrs().iter().enumerate() {
            let via = |gateway: IpAddr, dev: &str, metric: u32| {
                on_node(
                    cluster,
                    0,
                    &format!("route add {cidr} via {gateway} dev {dev} metric {metric}"),
                )
            };
            via(first[family], UPLINK, 10)?;
            via(second[family], SECOND_UPLINK, 20)?;
        }
        // The way back is not concerned.
        for (cidr, gateway) in cluster.node(0).pod_cidrs().iter().zip(Cluster::second_address(0)) {
            on_node(cluster, 1, &format!("route add {cidr} via {gateway} dev {SECOND_UPLINK}"))?;
        }
        cluster.warm_up((0, &a), &b)?;
        resolve(cluster, &second)?;
        let to = SocketAddr::new(b.v4.into(), BEACON_PORT);
        let site = Site::watch(b.namespace.within(|| UdpSocket::bind(to))??)?;
        let _beacon = Beacon::start(udp_socket(&a.namespace, a.v4.into())?, to);
        wait_until("datagrams come", LEARNT_WITHIN, || Ok(site.last().is_some()))?;
        // The kernel says that the link is down, and nothing about the IPv4 routes.
        on_node(cluster, 0, &format!("link set {UPLINK} down"))?;
        let down = Instant::now();
        wait_until("datagrams come by the other uplink", LEARNT_WITHIN, || {
            Ok(site.first_after(down + Duration::from_millis(5)).is_some())
        })?;
        let next = site.first_after(down).context("they came")?.saturating_duration_since(down);
        eprintln!("  the next datagram came {next:.1?} after the link went down");
        ensure!(next <= FOLLOWS_AT_LAST, "{next:?} after the link went down");
        cluster.warm_up((0, &a), &b)?;
        for address in b.addresses() {
            transfer(&a.namespace, &b.namespace, address, 1_000_000)?;
        }
        Ok(())
    });
}
