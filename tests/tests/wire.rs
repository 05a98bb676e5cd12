//! What leaves a node on the wire: nothing longer than the MTU, no wrong checksum, nothing in
//! pieces that may not be, in sizes that the receiver and the path can take. A tap on the switch
//! looks at every frame; the same questions are asked of plain Linux.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::process::Output;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, ClusterSetup, Forwarder, Offloads, UPLINK, on_clusters, set_sysctl};
use e2e::daemon::ip;
use e2e::netns::Namespace;
use e2e::pod::{IFNAME, Pod};
use e2e::traffic::{Seen, Tap, echo_datagrams, ping, protocol_counter, transfer, udp_socket};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};

/// Enough for TCP to leave slow start, and for a thousand packets of 1500 bytes.
const SOME_BYTES: u64 = 4_000_000;

/// The number of a host that is a router.
const ROUTER: usize = 253;

/// An MTU that a path has somewhere, and no interface of a node.
const NARROW: u32 = 1400;

fn two_nodes(mtu: u32, offloads: Offloads) -> Vec<ClusterSetup> {
    let setup = |forwarder| ClusterSetup { mtu, offloads, ..ClusterSetup::new(forwarder, 2) };
    Forwarder::all().into_iter().map(setup).collect()
}

/// A pod on each of the first two nodes.
fn pod_on_each(cluster: &Cluster, mtu: Option<u32>) -> Result<[Pod; 2]> {
    let pods = [0, 1].map(|node| cluster.add_pod_with_mtu(node, &format!("pod-{node}"), mtu));
    let [a, b] = pods;
    Ok([a?, b?])
}

/// Looks at what both nodes send while `traffic` runs: the first node's frames, the second's.
fn watch(cluster: &Cluster, traffic: impl FnOnce() -> Result<()>) -> Result<[Seen; 2]> {
    let mtu = cluster.setup().mtu as usize;
    let tap = |port| Tap::start(cluster.switch(), port, mtu, "ip or ip6");
    let taps = [tap("p0")?, tap("p1")?];
    let outcome = traffic();
    let [a, b] = taps.map(Tap::stop);
    let seen = [a?, b?];
    // First what was wrong: it may be why the traffic failed.
    for (node, seen) in seen.iter().enumerate() {
        seen.all_right().with_context(|| format!("from node {node}; traffic: {outcome:?}"))?;
    }
    outcome?;
    Ok(seen)
}

/// Streams of both families, there and back.
fn streams(a: &Pod, b: &Pod) -> Result<()> {
    streams_of(a, b, SOME_BYTES)
}

fn streams_of(a: &Pod, b: &Pod, bytes: u64) -> Result<()> {
    b.addresses().iter().try_for_each(|to| transfer(&a.namespace, &b.namespace, *to, bytes))
}

/// Every stream was on the wire, in packets that are as long as they may be and no longer.
fn cut_to(seen: &[Seen; 2], mtu: u32) -> Result<()> {
    for seen in seen {
        ensure!(seen.longest == mtu as usize, "the longest of {mtu} allowed is {seen:?}");
        let fewest = 2 * SOME_BYTES / u64::from(mtu); // two families
        ensure!(seen.tcp_segments > fewest, "{fewest} segments at least: {seen:?}");
        ensure!(seen.fragments == 0, "TCP is not fragmented: {seen:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn streams_are_cut_to_1500_bytes_with_right_checksums() {
    on_clusters(two_nodes(1500, Offloads::Off), |cluster| {
        let [a, b] = pod_on_each(cluster, None)?;
        cut_to(&watch(cluster, || streams(&a, &b))?, 1500)
    });
}

#[test]
#[ignore = "needs root"]
fn on_a_wire_for_9000_bytes_each_pod_is_cut_to_its_own_mtu() {
    on_clusters(two_nodes(9000, Offloads::Off), |cluster| {
        let [a, b] = pod_on_each(cluster, Some(9000))?;
        cut_to(&watch(cluster, || streams(&a, &b))?, 9000)?;
        let small = cluster.add_pod_with_mtu(1, "small", Some(1500))?;
        // Each end tells the other what it can take: the segments are for the smaller one.
        cut_to(&watch(cluster, || streams(&a, &small))?, 1500)
    });
}

/// What the sender's way to a pod has to be, told by the pod: the largest segment it takes.
fn take_small_segments(receiver: &Pod, from: &Pod, mss: u32) -> Result<()> {
    for (address, gateway) in from.addresses().iter().zip(["169.254.1.1", "fe80::1"]) {
        let line = format!("route replace {address} via {gateway} dev {IFNAME} onlink");
        ip(&receiver.namespace, &format!("{line} advmss {mss}"))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn segments_are_as_small_as_the_receiver_asks_for() {
    on_clusters(two_nodes(1500, Offloads::Off), |cluster| {
        let [a, b] = pod_on_each(cluster, None)?;
        for mss in [536, 988] {
            take_small_segments(&b, &a, mss)?;
            // Fewer bytes: each tap has room for so many frames only.
            let [from_a, from_b] = watch(cluster, || streams_of(&a, &b, SOME_BYTES / 4))?;
            let (most, mss) = (from_a.longest_tcp_payload, mss as usize);
            // Options, such as time stamps, are within the segment size (RFC 6691).
            ensure!(most <= mss && most >= mss - 40, "of {mss} asked for: {from_a:?}");
            ensure!(from_b.longest == 1500, "the other direction is not concerned: {from_b:?}");
        }
        Ok(())
    });
}

/// A router on the switch that both nodes send to in place of each other. What leads through it is
/// narrower than the wire.
fn narrow_path(cluster: &Cluster) -> Result<Namespace> {
    let router = cluster.add_host(ROUTER)?;
    for key in ["ipv4.ip_forward", "ipv6.conf.all.forwarding"] {
        set_sysctl(&router, &format!("net.{key}"), "1")?;
    }
    // It sends back by the interface that a packet came from, on purpose.
    for interfaces in ["all", UPLINK] {
        set_sysctl(&router, &format!("net.ipv4.conf.{interfaces}.send_redirects"), "0")?;
    }
    for to in 0..2 {
        let ways = cluster.node(to).pod_cidrs().into_iter().zip(Cluster::address(to));
        for ((cidr, gateway), by) in ways.zip(Cluster::address(ROUTER)) {
            // Locked, or a router does not heed it (ip_dst_mtu_maybe_forward).
            let line = format!("route add {cidr} via {gateway} dev {UPLINK} mtu lock {NARROW}");
            ip(&router, &line)?;
            let from = cluster.node(1 - to).namespace();
            ip(from, &format!("route replace {cidr} via {by} dev {UPLINK}"))?;
        }
    }
    Ok(router)
}

/// The path MTU that a pod's kernel has learnt for a destination.
fn learnt_mtu(pod: &Pod, to: IpAddr) -> Result<Option<u64>> {
    let routes = pod.namespace.ip_json(&["route", "get", &to.to_string()])?;
    Ok(routes[0]["metrics"][0]["mtu"].as_u64())
}

#[test]
#[ignore = "needs root"]
fn a_pod_hears_of_a_path_that_is_narrower_than_its_wire() {
    on_clusters(two_nodes(1500, Offloads::Off), |cluster| {
        let [a, b] = pod_on_each(cluster, None)?;
        let _router = narrow_path(cluster)?;
        for (from, to) in [(&a, &b), (&b, &a)] {
            for address in to.addresses() {
                let heard = learnt_mtu(from, address)?;
                ensure!(heard.is_none_or(|mtu| mtu == 1500), "nothing was sent yet: {heard:?}");
            }
        }
        watch(cluster, || streams(&a, &b))?;
        for (from, to) in [(&a, &b), (&b, &a)] {
            for address in to.addresses() {
                let heard = learnt_mtu(from, address)?;
                ensure!(heard == Some(NARROW.into()), "{heard:?} is the way to {address}");
            }
        }
        // What was learnt is heeded from the first packet on.
        let seen = watch(cluster, || streams(&a, &b))?;
        cut_to(&seen, NARROW)
    });
}

#[test]
#[ignore = "needs root"]
fn datagrams_that_a_pod_cuts_into_fragments_arrive_whole() {
    on_clusters(two_nodes(1500, Offloads::Off), |cluster| {
        let [a, b] = pod_on_each(cluster, None)?;
        let sizes = [1, 1400, 1452, 1453, 1472, 1473, 3000, 9000, 32_768, 65_507];
        let seen = watch(cluster, || echo_all(&a, &b, &sizes, |_| Ok(())))?;
        for seen in seen {
            ensure!(seen.datagrams == 2 * sizes.len() as u64, "each came whole: {seen:?}");
            ensure!(seen.fragments > 100, "the longest are cut: {seen:?}");
        }
        Ok(())
    });
}

/// Datagrams of these sizes there and back in both families, by sockets that `prepare` has seen.
fn echo_all(
    a: &Pod,
    b: &Pod,
    sizes: &[usize],
    prepare: impl Fn(&UdpSocket) -> Result<()>,
) -> Result<()> {
    for (here, there) in a.addresses().into_iter().zip(b.addresses()) {
        let sockets = [udp_socket(&a.namespace, here)?, udp_socket(&b.namespace, there)?];
        sockets.iter().try_for_each(&prepare)?;
        let [client, server] = sockets;
        echo_datagrams(&client, &server, sizes)?;
    }
    Ok(())
}

/// Allows routers to fragment (ip(7), `IP_PMTUDISC_DONT`).
fn may_be_fragmented(socket: &UdpSocket) -> Result<()> {
    Ok(set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DONT)?)
}

#[test]
#[ignore = "needs root"]
fn what_is_too_long_for_the_uplink_is_fragmented_or_refused_as_a_router_does() {
    on_clusters(two_nodes(1500, Offloads::Off), |cluster| {
        // Pods that may send more than the wire can carry.
        let [a, b] = pod_on_each(cluster, Some(9000))?;
        let client = udp_socket(&a.namespace, a.v4.into())?;
        let server = udp_socket(&b.namespace, b.v4.into())?;
        may_be_fragmented(&client)?;
        may_be_fragmented(&server)?;
        let sizes = [1472, 1473, 2952, 2953, 5000, 8972];
        let [seen, _] = watch(cluster, || echo_datagrams(&client, &server, &sizes))?;
        ensure!(seen.datagrams == sizes.len() as u64, "each came whole: {seen:?}");
        ensure!(seen.fragments == 2 + 2 + 3 + 4 + 7, "in as few pieces as can be: {seen:?}");
        for address in b.addresses() {
            let size = if address.is_ipv4() { 1473 } else { 1453 };
            let ping = ping(&a.namespace, address, &format!("-M do -c 2 -i 0.1 -W 2 -s {size}"))?;
            ensure!(ping.received == 0, "{size} bytes cannot reach {address}: {}", ping.text);
            let heard = learnt_mtu(&a, address)?;
            ensure!(heard == Some(1500), "{heard:?} is the way to {address}: {}", ping.text);
        }
        cut_to(&watch(cluster, || streams(&a, &b))?, 1500)
    });
}

/// Sends `bytes` as datagrams of `segment` bytes, which the kernel leaves in one super-packet
/// (udp(7), `UDP_SEGMENT`), for which the libraries here have no name. From a pod to a socket.
fn send_super_datagram(from: &Pod, to: &UdpSocket, bytes: usize, segment: usize) -> Result<Output> {
    const PROGRAM: &str = "import socket, sys
address, port, size, segment = sys.argv[1], *map(int, sys.argv[2:])
s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_UDP, 103, segment)
s.sendto(bytes(i * 7 & 255 for i in range(size)), (address, port))";
    let to = to.local_addr()?;
    let (address, port) = (to.ip().to_string(), to.port().to_string());
    let (bytes, segment) = (bytes.to_string(), segment.to_string());
    let args = ["-c", PROGRAM, &address, &port, &bytes, &segment];
    let output = from.namespace.run("python3", &args)?;
    ensure!(output.status.success(), "send {bytes} bytes in {segment}: {output:?}");
    Ok(output)
}

#[test]
#[ignore = "needs root"]
fn super_datagrams_are_cut_into_the_datagrams_that_they_are() {
    on_clusters(two_nodes(1500, Offloads::Off), |cluster| {
        let [a, b] = pod_on_each(cluster, None)?;
        for address in b.addresses() {
            let socket = udp_socket(&b.namespace, address)?;
            for (bytes, segment) in [(60_000, 1200), (50_001, 1400), (2000, 999), (700, 100)] {
                let [seen, _] = watch(cluster, || {
                    send_super_datagram(&a, &socket, bytes, segment)?;
                    receive_pattern(&socket, bytes, segment)
                })?;
                let datagrams = bytes.div_ceil(segment) as u64;
                ensure!(seen.datagrams == datagrams, "{datagrams} datagrams: {seen:?}");
                ensure!(seen.fragments == 0, "none is fragmented: {seen:?}");
            }
        }
        Ok(())
    });
}

/// Receives what [`send_super_datagram`] sends: whole, in its order, cut where it should be.
fn receive_pattern(socket: &UdpSocket, bytes: usize, segment: usize) -> Result<()> {
    let pattern: Vec<u8> = (0..bytes).map(|index| (index * 7) as u8).collect();
    let mut buffer = [0; 2048];
    for (number, expected) in pattern.chunks(segment).enumerate() {
        let len = loop {
            match socket.recv(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received.with_context(|| format!("datagram {number}"))?,
            }
        };
        ensure!(buffer[..len] == *expected, "datagram {number} of {segment} bytes is another");
    }
    Ok(())
}

/// Packets that a pod's kernel found damaged.
fn damaged(pod: &Pod) -> Result<u64> {
    let counters = [("Tcp", "InCsumErrors"), ("Udp", "InCsumErrors"), ("Ip", "InHdrErrors")];
    let count = |(protocol, counter)| protocol_counter(&pod.namespace, protocol, counter);
    counters.into_iter().map(count).sum()
}

#[test]
#[ignore = "needs root"]
fn between_containers_of_one_machine_whose_uplinks_leave_work_to_each_other() {
    let plain = |setup| ClusterSetup { plain: 1, ..setup };
    let setups = two_nodes(1500, Offloads::On);
    let mixed: Vec<ClusterSetup> = setups.iter().skip(1).cloned().map(plain).collect();
    // With one of the nodes plain Linux, uncut and unsummed packets arrive at the other's uplink.
    on_clusters([setups, mixed].concat(), |cluster| {
        let [a, b] = pod_on_each(cluster, None)?;
        for (from, to) in [(&a, &b), (&b, &a)] {
            streams(from, to)?;
            echo_all(from, to, &[1, 1472, 1473, 9000, 65_507], |_| Ok(()))?;
        }
        // A super-packet of datagrams that a plain kernel leaves uncut looks like one datagram to
        // XDP, which is not told where each ends. Between nodes of ours there are none.
        let all_ours = cluster.setup().plain == 0;
        for (from, to) in [(&a, &b), (&b, &a)].into_iter().take(if all_ours { 2 } else { 1 }) {
            let socket = udp_socket(&to.namespace, to.v4.into())?;
            send_super_datagram(from, &socket, 60_000, 1200)?;
            receive_pattern(&socket, 60_000, 1200)?;
        }
        for pod in [&a, &b] {
            let damaged = damaged(pod)?;
            ensure!(damaged == 0, "{} damaged packets came to {}", damaged, pod.container_id);
        }
        Ok(())
    });
}
