//! Host ports in table `inet viaduct`, in a real kernel: where each path leads and which source the
//! pod sees, what is never led anywhere, what the guard drops, and what a change costs.
//!
//! While a worker lives, the paths of pods' packets are the worker's: here it only carries what
//! the kernel sends it.

mod nft_network;

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use control::nft::{Guarded, HostPortEntry, NftConfig, NftError, NftTable};
use dataplane::conntrack::{Endpoint, Transport as Protocol};
use dataplane::host_ports::{HostAddress, HostPort, Masquerade};
use nft_network::raw::{self, Raw};
use nft_network::{
    DEADLINE, NODE, NODE_PORT, Namespace, Network, OUTSIDE, POD_A, POD_B, POD_PORT, REMOTE,
    SERVICE, SERVICE_PORT, Transport, Worker, connect, seen, usual_config, wait_until,
};

/// The host port of most tests; none of the node's own.
const HOST_PORT: u16 = 8081;
const ANY: [&str; 2] = ["0.0.0.0", "::"];
/// How long a packet is waited for that must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// A host port at an address or, if that is 0.0.0.0 or ::, at every one of its family.
fn host_port(protocol: Protocol, address: &str, port: u16, serving: (&str, u16)) -> HostPortEntry {
    let address = match address {
        "0.0.0.0" => HostAddress::AnyV4,
        "::" => HostAddress::AnyV6,
        one => HostAddress::One(one.parse().unwrap()),
    };
    HostPortEntry {
        host_port: HostPort { transport: protocol, address, port },
        serving: Endpoint { address: serving.0.parse().unwrap(), port: serving.1 },
        masquerade: Masquerade::Itself,
    }
}

/// Host ports of both families and of TCP and UDP that lead to [`POD_PORT`] of a pod.
fn host_ports(addresses: [&str; 2], port: u16, pod: [&str; 2]) -> Vec<HostPortEntry> {
    let both = |protocol| {
        [0, 1].map(|side| host_port(protocol, addresses[side], port, (pod[side], POD_PORT)))
    };
    [both(Protocol::Tcp), both(Protocol::Udp)].concat()
}

fn with(host_ports: Vec<HostPortEntry>) -> NftConfig {
    NftConfig { host_ports, ..usual_config() }
}

/// A node with these host ports, on which 127.0.0.1 may lead to pods.
fn network(worker: Worker, host_ports: Vec<HostPortEntry>) -> Network {
    let mut network = Network::new(worker);
    network.table.ensure(&with(host_ports)).unwrap();
    let ends = if worker == Worker::Alive { "viaduct0" } else { "viaduct0 vda vdb" };
    network.node.shell(&format!(
        "for end in {ends}; do echo 1 > /proc/sys/net/ipv4/conf/$end/route_localnet; done"
    ));
    network
}

// ------------------------------------------------------------------------------------ paths

fn clients_and_the_node_reach_the_pod(worker: Worker) {
    let network = network(worker, host_ports(ANY, HOST_PORT, POD_B));
    let Network { node, pod_b, outside, .. } = &network;
    let asked = (NODE, HOST_PORT);
    assert_eq!(network.sources(outside, asked, (pod_b, POD_B)), seen(OUTSIDE), "path 1");
    assert_eq!(network.sources(node, asked, (pod_b, POD_B)), seen(NODE), "path 2");
    for transport in [Transport::Tcp, Transport::Udp] {
        let source =
            connect(transport, node, ("127.0.0.1", HOST_PORT), (pod_b, POD_B[0], POD_PORT));
        assert_eq!(source, Ok(NODE[0].parse().unwrap()), "path 3");
    }
    outside.shell(&format!(
        "ip route add {} dev eth0 src {}; ip route add {} dev eth0 src {}",
        NODE[0], REMOTE[0], NODE[1], REMOTE[1]
    ));
    assert_eq!(network.sources(outside, asked, (pod_b, POD_B)), seen(REMOTE), "path 7");
}

#[test]
#[ignore = "needs root"]
fn clients_and_the_node_reach_the_pod_while_a_worker_lives() {
    clients_and_the_node_reach_the_pod(Worker::Alive);
}

#[test]
#[ignore = "needs root"]
fn clients_and_the_node_reach_the_pod_while_no_worker_lives() {
    clients_and_the_node_reach_the_pod(Worker::Dead);
}

#[test]
#[ignore = "needs root"]
fn pods_reach_another_with_their_address_and_themselves_with_the_address_that_they_asked() {
    let network = network(Worker::Dead, host_ports(ANY, HOST_PORT, POD_B));
    let Network { pod_a, pod_b, .. } = &network;
    let asked = (NODE, HOST_PORT);
    assert_eq!(network.sources(pod_a, asked, (pod_b, POD_B)), seen(POD_A), "path 5");
    assert_eq!(network.sources(pod_b, asked, (pod_b, POD_B)), seen(NODE), "path 6");
}

#[test]
#[ignore = "needs root"]
fn nothing_is_masqueraded_for_whom_does_not_want_it_and_all_for_whom_does() {
    let mut network = network(Worker::Dead, vec![]);
    let wished = |masquerade| {
        let all = host_ports(ANY, HOST_PORT, POD_B).into_iter();
        with(all.map(|entry| HostPortEntry { masquerade, ..entry }).collect())
    };
    let loopback = |network: &Network| {
        let server = (&network.pod_b, POD_B[0], POD_PORT);
        connect(Transport::Udp, &network.node, ("127.0.0.1", HOST_PORT), server)
    };
    network.table.ensure(&wished(Masquerade::Everybody)).unwrap();
    let asked = (NODE, HOST_PORT);
    for from in [&network.outside, &network.pod_a, &network.pod_b, &network.node] {
        let sources = network.sources(from, asked, (&network.pod_b, POD_B));
        assert_eq!(sources, seen(NODE), "from {}", from.name);
    }
    assert_eq!(loopback(&network), Ok(NODE[0].parse().unwrap()));
    // A Service's connection to the same port of the pod is none of a host port.
    let service = network.sources(&network.outside, (NODE, NODE_PORT), (&network.pod_b, POD_B));
    assert_eq!(service, seen(OUTSIDE));

    network.table.ensure(&wished(Masquerade::Nobody)).unwrap();
    for (from, source) in [(&network.outside, OUTSIDE), (&network.pod_a, POD_A)] {
        let sources = network.sources(from, asked, (&network.pod_b, POD_B));
        assert_eq!(sources, seen(source), "from {}", from.name);
    }
    let hairpin = network.sources(&network.pod_b, asked, (&network.pod_b, POD_B));
    assert!(hairpin.iter().all(Result::is_err), "{hairpin:?}");
    assert!(loopback(&network).is_err());
}

#[test]
#[ignore = "needs root"]
fn sctp_is_led_both_ways_with_a_whole_checksum() {
    let entries =
        [0, 1].map(|side| host_port(Protocol::Sctp, ANY[side], HOST_PORT, (POD_B[side], POD_PORT)));
    let network = network(Worker::Dead, entries.to_vec());
    for side in [0, 1] {
        let client = Raw::sctp(&network.outside, OUTSIDE[side]);
        let server = Raw::sctp(&network.pod_b, POD_B[side]);
        client.send(NODE[side], &raw::sctp([5555, HOST_PORT], 0, 1));
        let to_server = |packet: &[u8]| raw::ports(packet) == [5555, POD_PORT];
        let arrived = server.receive(DEADLINE, to_server).expect("the INIT");
        assert!(raw::sctp_is_whole(&arrived));
        server.send(OUTSIDE[side], &raw::sctp([POD_PORT, 5555], 7, 2));
        let answers = |packet: &[u8]| raw::ports(packet) == [HOST_PORT, 5555];
        let answer = client.receive(DEADLINE, answers).expect("the INIT ACK");
        assert!(raw::sctp_is_whole(&answer));
    }
}

/// A datagram of 4 kB is three fragments, of which only the first has ports.
#[test]
#[ignore = "needs root"]
fn datagrams_in_fragments_arrive() {
    let network = network(Worker::Dead, host_ports(ANY, HOST_PORT, POD_B));
    for side in [0, 1] {
        let server = network.pod_b.inside(|| UdpSocket::bind((POD_B[side], POD_PORT))).unwrap();
        let client = network.outside.inside(|| UdpSocket::bind((OUTSIDE[side], 0))).unwrap();
        client.connect((NODE[side], HOST_PORT)).unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
        }
        let mut bytes = [0; 8192];
        client.send(&[7; 4000]).unwrap();
        let (len, peer) = server.recv_from(&mut bytes).unwrap();
        assert_eq!((len, peer), (4000, client.local_addr().unwrap()));
        server.send_to(&[8; 4000], peer).unwrap();
        assert_eq!(client.recv(&mut bytes).unwrap(), 4000);
    }
}

// -------------------------------------------------------------------------------- negatives

#[test]
#[ignore = "needs root"]
fn the_nodes_own_ipv6_loopback_is_left_alone() {
    let network = network(Worker::Dead, host_ports(ANY, HOST_PORT, POD_B));
    let node = &network.node;
    for transport in [Transport::Tcp, Transport::Udp] {
        let source = connect(transport, node, ("::1", HOST_PORT), (node, "::1", HOST_PORT));
        assert_eq!(source, Ok("::1".parse().unwrap()), "path 4");
    }
}

/// A neighbour may send anything: 127.0.0.1 is a local address by the kernel's routes, and would
/// have been translated before the kernel sees that it came by a wire.
#[test]
#[ignore = "needs root"]
fn no_neighbour_reaches_a_pod_by_the_nodes_loopback() {
    let entries = [ANY[0], "127.0.0.1"].map(|address| {
        let port = if address == ANY[0] { HOST_PORT } else { HOST_PORT + 1 };
        host_port(Protocol::Udp, address, port, (POD_B[0], POD_PORT))
    });
    let network = network(Worker::Dead, entries.to_vec());
    let server = network.pod_b.inside(|| UdpSocket::bind((POD_B[0], POD_PORT))).unwrap();
    server.set_read_timeout(Some(SILENCE)).unwrap();
    network.outside.shell(
        "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
         ip addr del 127.0.0.1/8 dev lo
         ip route add 127.0.0.1 via 192.0.2.1 dev eth0",
    );
    let client = network.outside.inside(|| UdpSocket::bind((OUTSIDE[0], 0))).unwrap();
    for (to, port, arrives) in [
        ("127.0.0.1", HOST_PORT, false),
        ("127.0.0.1", HOST_PORT + 1, false),
        (NODE[0], HOST_PORT, true),
    ] {
        client.send_to(b"?", (to, port)).unwrap();
        assert_eq!(server.recv_from(&mut [0]).is_ok(), arrives, "{to}:{port}");
    }
}

#[test]
#[ignore = "needs root"]
fn packets_in_transit_are_left_alone() {
    let entries = host_ports(ANY, POD_PORT, POD_B);
    let network = network(Worker::Dead, entries);
    let Network { pod_a, outside, .. } = &network;
    let to_pod = network.sources(outside, (POD_A, POD_PORT), (pod_a, POD_A));
    assert_eq!(to_pod, seen(OUTSIDE), "path 8, inwards");
    let to_outside = network.sources(pod_a, (OUTSIDE, POD_PORT), (outside, OUTSIDE));
    assert_eq!(to_outside, seen(NODE), "path 8, outwards");
}

#[test]
#[ignore = "needs root"]
fn services_on_the_same_port_are_left_alone() {
    // The Service leads to pod B; its connections are masqueraded as ever, though the host port
    // leads to the same port of the same pod or to another pod.
    for serving in [POD_A, POD_B] {
        let mut network = network(Worker::Dead, host_ports(ANY, SERVICE_PORT, serving));
        let asked = (SERVICE, SERVICE_PORT);
        let from_a =
            |network: &Network| network.sources(&network.pod_a, asked, (&network.pod_b, POD_B));
        assert_eq!(from_a(&network), seen(NODE), "path 9");
        let itself = network.sources(&network.pod_b, asked, (&network.pod_b, POD_B));
        assert_eq!(itself, seen(NODE), "path 9 from the backend");
        if serving == POD_B {
            continue;
        }
        // kube-proxy in IPVS mode makes the Service's address a local one.
        network.node.shell(&format!(
            "ip addr add {} dev uplink; ip addr add {}/128 dev uplink nodad",
            SERVICE[0], SERVICE[1]
        ));
        wait_until("the host port takes the Service's address", || {
            from_a(&network).iter().all(Result::is_err)
        });
        let addresses = SERVICE.map(|address| address.parse::<IpAddr>().unwrap());
        network.table.change_not_node(&addresses, &[]).unwrap();
        assert_eq!(from_a(&network), seen(NODE), "path 9 with IPVS");
        network.table.change_not_node(&[], &addresses).unwrap();
        let mut config = with(host_ports(ANY, SERVICE_PORT, serving));
        config.not_node = addresses.to_vec();
        network.table.ensure(&config).unwrap();
        assert_eq!(from_a(&network), seen(NODE), "path 9 with IPVS, written anew");
    }
}

// -------------------------------------------------------------------------------- which port

#[test]
#[ignore = "needs root"]
fn one_address_decides_before_every_address() {
    let mut entries = host_ports(ANY, HOST_PORT, POD_A);
    entries.extend(host_ports(NODE, HOST_PORT, POD_B));
    let network = network(Worker::Dead, entries);
    let Network { node, pod_a, pod_b, outside, .. } = &network;
    let asked = (NODE, HOST_PORT);
    assert_eq!(network.sources(outside, asked, (pod_b, POD_B)), seen(OUTSIDE));
    assert_eq!(network.sources(node, asked, (pod_b, POD_B)), seen(NODE));
    // An address that the node gets later is one of every address.
    let later = ["192.0.2.9", "fd00:2::9"];
    let before = network.sources(outside, (later, HOST_PORT), (pod_a, POD_A));
    assert!(before.iter().all(Result::is_err), "{before:?}");
    node.shell("ip addr add 192.0.2.9/24 dev uplink; ip addr add fd00:2::9/64 dev uplink nodad");
    wait_until("the neighbor is known", || {
        let arrived = network.sources(outside, (later, HOST_PORT), (pod_a, POD_A));
        arrived.iter().all(Result::is_ok)
    });
    assert_eq!(network.sources(outside, (later, HOST_PORT), (pod_a, POD_A)), seen(OUTSIDE));
}

#[test]
#[ignore = "needs root"]
fn tcp_and_udp_of_one_number_are_two_host_ports() {
    let [a, b] = [POD_A, POD_B].map(|pod| host_ports(ANY, HOST_PORT, pod));
    let is = |protocol| move |entry: &HostPortEntry| entry.host_port.transport == protocol;
    let tcp = a.into_iter().filter(is(Protocol::Tcp));
    let udp = b.into_iter().filter(is(Protocol::Udp));
    let network = network(Worker::Dead, tcp.chain(udp).collect());
    let Network { pod_a, pod_b, outside, .. } = &network;
    for side in [0, 1] {
        let client: IpAddr = OUTSIDE[side].parse().unwrap();
        for (transport, server) in [
            (Transport::Tcp, (pod_a, POD_A[side], POD_PORT)),
            (Transport::Udp, (pod_b, POD_B[side], POD_PORT)),
        ] {
            let source = connect(transport, outside, (NODE[side], HOST_PORT), server);
            assert_eq!(source, Ok(client));
        }
    }
}

// ----------------------------------------------------------------------------------- changes

/// How many elements a set has by `nft`'s account.
fn count(namespace: &Namespace, kind: &str, set: &str) -> usize {
    let text = namespace.shell(&format!("nft -j list {kind} inet viaduct {set}"));
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    let objects = all["nftables"].as_array().unwrap();
    let found = objects.iter().find_map(|object| object.get(kind)).unwrap();
    found["elem"].as_array().map_or(0, Vec::len)
}

/// Whether a client outside reaches [`POD_PORT`] of a pod by TCP at this port of the node.
fn is_reached(outside: &Namespace, pod: (&Namespace, [&str; 2]), side: usize, port: u16) -> bool {
    let server = (pod.0, pod.1[side], POD_PORT);
    let result = connect(Transport::Tcp, outside, (NODE[side], port), server);
    println!("port {port}: {result:?}");
    result.is_ok()
}

#[test]
#[ignore = "needs root"]
fn host_ports_come_and_go_pod_by_pod() {
    let Network { node, pod_a, pod_b, outside, mut table, .. } = network(Worker::Dead, vec![]);
    let a = || is_reached(&outside, (&pod_a, POD_A), 0, HOST_PORT + 2);
    let b = |port| is_reached(&outside, (&pod_b, POD_B), 0, port);
    let first = host_port(Protocol::Tcp, ANY[0], HOST_PORT, (POD_B[0], POD_PORT));
    let second = host_port(Protocol::Tcp, NODE[0], HOST_PORT + 1, (POD_B[0], POD_PORT));
    let other = host_port(Protocol::Tcp, ANY[0], HOST_PORT + 2, (POD_A[0], POD_PORT));
    assert!(!a() && !b(HOST_PORT));
    table.add_host_ports(&[first]).unwrap();
    table.add_host_ports(&[first, second]).unwrap();
    table.add_host_ports(&[]).unwrap();
    assert!(b(HOST_PORT) && b(HOST_PORT + 1));
    assert_eq!(count(&node, "set", "container_ports4"), 1);
    table.add_host_ports(&[other]).unwrap();
    assert!(a());
    assert_eq!(count(&node, "set", "container_ports4"), 2);

    table.remove_host_ports(&[first, second]).unwrap();
    assert!(!b(HOST_PORT) && !b(HOST_PORT + 1) && a());
    assert_eq!(count(&node, "set", "container_ports4"), 1);
    assert_eq!(count(&node, "set", "hairpins4"), 1);
    table.remove_host_ports(&[other]).unwrap();
    assert!(!a());
    for (kind, set) in [
        ("map", "host_ports_any4"),
        ("map", "host_ports_one4"),
        ("set", "container_ports4"),
        ("set", "hairpins4"),
    ] {
        assert_eq!(count(&node, kind, set), 0, "{set}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_change_that_does_not_fit_the_table_says_so_and_does_nothing() {
    let namespace = Namespace::new("fit");
    let mut table = namespace.inside(|| NftTable::open().unwrap());
    let [first, second] = [HOST_PORT, HOST_PORT + 1]
        .map(|port| host_port(Protocol::Tcp, ANY[0], port, (POD_B[0], POD_PORT)));
    let elsewhere = host_port(Protocol::Tcp, ANY[0], HOST_PORT, (POD_A[0], POD_PORT));
    let changed = |result: Result<(), NftError>| matches!(result, Err(NftError::Changed { .. }));
    assert!(changed(table.add_host_ports(&[first])), "there is no table");
    table.ensure(&with(vec![first])).unwrap();
    assert!(changed(table.add_host_ports(&[second, elsewhere])), "it leads to another pod");
    assert!(changed(table.remove_host_ports(&[first, second])), "it is not there");
    assert_eq!(count(&namespace, "map", "host_ports_any4"), 1);
    namespace.shell("nft delete table inet viaduct");
    assert!(changed(table.remove_host_ports(&[first])), "somebody took it all");
}

#[test]
#[ignore = "needs root"]
fn what_others_do_to_host_ports_is_noticed_and_mended() {
    let namespace = Namespace::new("mend");
    let (mut table, mut monitor) = namespace.inside(|| {
        let table = NftTable::open().unwrap();
        let monitor = table.monitor().unwrap();
        (table, monitor)
    });
    let config = with(host_ports(ANY, HOST_PORT, POD_B));
    table.ensure(&config).unwrap();
    let extra = host_port(Protocol::Sctp, ANY[0], HOST_PORT, (POD_B[0], POD_PORT));
    table.add_host_ports(&[extra]).unwrap();
    table.remove_host_ports(&[extra]).unwrap();
    assert!(!monitor.changed().unwrap(), "our own change was taken for another's");
    // Elements of a hash are listed in another order after each writing.
    let sorted = || {
        let text = namespace.shell("nft -s list table inet viaduct");
        let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        words.iter_mut().for_each(|word| *word = word.trim_end_matches(',').to_owned());
        words.sort();
        words
    };
    let intact = sorted();
    for change in [
        "nft flush ruleset",
        "nft flush map inet viaduct host_ports_any4",
        "nft flush set inet viaduct container_ports6",
        "nft flush chain inet viaduct guard",
        "nft flush chain inet viaduct host_ports",
        "nft add element inet viaduct hairpins4 '{ 10.0.0.1 . 10.0.0.1 . tcp . 80 }'",
        "nft delete element inet viaduct host_ports_any6 '{ tcp . 8081 }'",
    ] {
        namespace.shell(change);
        assert!(monitor.changed().unwrap(), "{change} was not noticed");
        table.ensure(&config).unwrap();
        assert!(!monitor.changed().unwrap());
        assert_eq!(sorted(), intact, "after {change}");
    }
}

/// As many host ports as one asks for, of IPv6, whose elements are the longest.
fn many(count: u32) -> Vec<HostPortEntry> {
    let entry = |index: u32| {
        let pod = format!("fd00:10:244:1::{:x}", index / 100 + 0x100);
        let port = u16::try_from(10_000 + index % 50_000).unwrap();
        let address = if index < 50_000 { ANY[1] } else { NODE[1] };
        host_port(Protocol::Tcp, address, port, (&pod, 1000 + u16::try_from(index % 100).unwrap()))
    };
    (0..count).map(entry).collect()
}

#[test]
#[ignore = "needs root"]
fn ten_thousand_host_ports_are_written_at_once_and_changed_one_by_one() {
    let Network { node, pod_a, pod_b, outside, mut table, .. } = network(Worker::Dead, vec![]);
    let reaches_a = || is_reached(&outside, (&pod_a, POD_A), 1, HOST_PORT + 1);
    let reaches_b = || is_reached(&outside, (&pod_b, POD_B), 1, HOST_PORT);
    let mut entries = many(10_000);
    entries.extend(host_ports(ANY, HOST_PORT, POD_B));
    let begin = Instant::now();
    table.ensure(&with(entries)).unwrap();
    let written = begin.elapsed();
    assert!(reaches_b());
    assert_eq!(count(&node, "map", "host_ports_any6"), 10_002);

    let one = host_port(Protocol::Tcp, ANY[1], HOST_PORT + 1, (POD_A[1], POD_PORT));
    assert!(!reaches_a());
    let begin = Instant::now();
    table.add_host_ports(&[one]).unwrap();
    let added = begin.elapsed();
    assert!(reaches_a());
    let begin = Instant::now();
    table.remove_host_ports(&[one]).unwrap();
    let removed = begin.elapsed();
    assert!(!reaches_a() && reaches_b());
    println!("10,000 written in {written:?}; one more added in {added:?}, removed in {removed:?}");
}

/// As many as the XDP program's maps hold. The monitor is told of each element, and must not take
/// the number for a change of somebody else.
#[test]
#[ignore = "needs root"]
fn as_many_host_ports_as_there_may_be_fit_one_batch_and_are_no_change_by_others() {
    let namespace = Namespace::new("most");
    let (mut table, mut monitor) = namespace.inside(|| {
        let table = NftTable::open().unwrap();
        let monitor = table.monitor().unwrap();
        (table, monitor)
    });
    let config = with(many(65_536));
    for _ in 0..2 {
        let begin = Instant::now();
        table.ensure(&config).unwrap();
        println!("65,536 written in {:?}", begin.elapsed());
        assert!(!monitor.changed().unwrap());
    }
    table.remove().unwrap();
    assert!(!monitor.changed().unwrap());
}

// ------------------------------------------------------------------------------------- guard

#[test]
#[ignore = "needs root"]
fn no_answer_leaves_that_nobody_would_translate() {
    let mut network = network(Worker::Dead, host_ports(ANY, HOST_PORT, POD_B));
    assert_eq!(network.table.guarded().unwrap(), Guarded::default());
    let unmapped = POD_PORT + 2;
    for side in [0, 1] {
        let pod = Raw::tcp(&network.pod_b, POD_B[side]);
        let wire = Raw::tcp(&network.outside, OUTSIDE[side]);
        for (flags, right) in [(raw::ACK, true), (raw::SYN_ACK, true), (raw::ACK, false)] {
            pod.send_segment(OUTSIDE[side], [POD_PORT, 5555], flags, right);
        }
        pod.send_segment(OUTSIDE[side], [unmapped, 5555], raw::ACK, true);
        let first = wire.receive(DEADLINE, |packet| raw::ports(packet)[1] == 5555);
        assert_eq!(raw::ports(&first.expect("the one of an unmapped port"))[0], unmapped);

        let pod = Raw::icmp(&network.pod_b, POD_B[side]);
        let wire = Raw::icmp(&network.outside, OUTSIDE[side]);
        for port in [POD_PORT, unmapped] {
            let quoted = [(OUTSIDE[side], 5555), (POD_B[side], port)];
            pod.send(OUTSIDE[side], &raw::unreachable(POD_B[side], OUTSIDE[side], quoted, 17));
        }
        let is_error = |packet: &[u8]| [[3, 3], [1, 4]].contains(&[packet[0], packet[1]]);
        let error = wire.receive(DEADLINE, is_error).expect("the error about an unmapped port");
        assert_eq!(raw::ports(&error[error.len() - 8..])[1], unmapped);
    }
    let guarded = network.table.guarded().unwrap();
    // IPv4: three segments of 40 bytes and an error of 56; IPv6: 60 and 96.
    assert_eq!(guarded, Guarded { packets: 8, bytes: 3 * 40 + 56 + 3 * 60 + 96 });
    // A restart writes the table anew.
    network.table.ensure(&with(vec![])).unwrap();
    assert_eq!(network.table.guarded().unwrap(), guarded);
    network.table.remove().unwrap();
    assert_eq!(network.table.guarded().unwrap(), Guarded::default());
}

/// Somebody may have a rule that keeps conntrack away from pods.
#[test]
#[ignore = "needs root"]
fn no_answer_leaves_that_is_not_tracked() {
    let mut network = network(Worker::Dead, host_ports(ANY, HOST_PORT, POD_B));
    network.node.shell(
        "nft 'add table inet other; add chain inet other raw { type filter hook prerouting \
         priority -300; }; add rule inet other raw notrack'",
    );
    let pod = Raw::tcp(&network.pod_b, POD_B[0]);
    let wire = Raw::tcp(&network.outside, OUTSIDE[0]);
    for port in [POD_PORT, POD_PORT + 2] {
        pod.send_segment(OUTSIDE[0], [port, 5555], raw::ACK, true);
    }
    let first = wire.receive(DEADLINE, |packet| raw::ports(packet)[1] == 5555);
    assert_eq!(raw::ports(&first.expect("the one of an unmapped port"))[0], POD_PORT + 2);
    assert_eq!(network.table.guarded().unwrap().packets, 1);
}

/// An error about a connection that the kernel led is translated back, and not the guard's.
#[test]
#[ignore = "needs root"]
fn an_error_of_a_pod_comes_back_from_whom_was_asked() {
    let network = network(Worker::Dead, host_ports(ANY, HOST_PORT, POD_B));
    for side in [0, 1] {
        // Nobody listens in the pod.
        let client = network.outside.inside(|| UdpSocket::bind((OUTSIDE[side], 0))).unwrap();
        client.connect((NODE[side], HOST_PORT)).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.send(b"?").unwrap();
        let error = client.recv(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

/// The proof that the guard is needed: without it an answer leaves with the pod's address.
#[test]
#[ignore = "needs root"]
fn without_the_guard_answers_leave() {
    let network = network(Worker::Dead, host_ports(ANY, HOST_PORT, POD_B));
    network.node.shell("nft flush chain inet viaduct guard");
    let pod = Raw::tcp(&network.pod_b, POD_B[0]);
    let wire = Raw::tcp(&network.outside, OUTSIDE[0]);
    pod.send_segment(OUTSIDE[0], [POD_PORT, 5555], raw::SYN_ACK, true);
    assert!(wire.receive(DEADLINE, |packet| raw::ports(packet) == [POD_PORT, 5555]).is_some());
}

#[test]
#[ignore = "needs root"]
fn while_a_worker_lives_a_pod_may_open_a_connection_from_a_mapped_port() {
    let mut network = network(Worker::Alive, host_ports(ANY, HOST_PORT, POD_B));
    for side in [0, 1] {
        let server = network.outside.inside(|| UdpSocket::bind((OUTSIDE[side], 0))).unwrap();
        let pod = network.pod_b.inside(|| UdpSocket::bind((POD_B[side], POD_PORT))).unwrap();
        server.set_read_timeout(Some(DEADLINE)).unwrap();
        pod.send_to(b"?", server.local_addr().unwrap()).unwrap();
        let (_, peer) = server.recv_from(&mut [0]).unwrap();
        assert_eq!(peer.ip().to_string(), NODE[side]);
    }
    assert_eq!(network.table.guarded().unwrap(), Guarded::default());
}

/// The client speaks first after the worker has died: the kernel learns of the connection.
#[test]
#[ignore = "needs root"]
fn a_connection_that_the_kernel_does_not_know_goes_on_when_the_client_speaks() {
    let network = network(Worker::Dead, host_ports(ANY, HOST_PORT, POD_B));
    for side in [0, 1] {
        let pod = Raw::tcp(&network.pod_b, POD_B[side]);
        let client = Raw::tcp(&network.outside, OUTSIDE[side]);
        client.send_segment(NODE[side], [5555, HOST_PORT], raw::ACK, true);
        let to_pod = |packet: &[u8]| raw::ports(packet) == [5555, POD_PORT];
        assert!(pod.receive(DEADLINE, to_pod).is_some());
        pod.send_segment(OUTSIDE[side], [POD_PORT, 5555], raw::ACK, true);
        let answers = |packet: &[u8]| raw::ports(packet) == [HOST_PORT, 5555];
        assert!(client.receive(DEADLINE, answers).is_some());
    }
}

// ------------------------------------------------------------------------------ the node port

/// A firewall as kube-proxy and firewalld have it.
const FIREWALL: &str = "nft -f - <<'RULES'
    table inet firewall {
        chain forward {
            type filter hook forward priority 0
            ct state invalid drop
            ct state new drop
        }
    }\nRULES";

/// Gives the worker's namespace the node's addresses, so that it can send with them.
fn speak_for_the_node(network: &Network) {
    network.node.shell(FIREWALL);
    // As the node port has them: a device without an address takes nothing from a local source.
    network.node.shell(
        "echo 1 > /proc/sys/net/ipv4/conf/viaduct0/accept_local
         ip addr add 169.254.1.1/32 scope link dev viaduct0",
    );
    let worker = network.worker.as_ref().unwrap();
    worker.shell(&format!("ip addr add {} dev lo; ip addr add {}/128 dev lo", NODE[0], NODE[1]));
}

#[test]
#[ignore = "needs root"]
fn workers_answers_pass_conntrack_by() {
    let mut network = network(Worker::Alive, host_ports(ANY, HOST_PORT, POD_B));
    speak_for_the_node(&network);
    for side in [0, 1] {
        let wire = Raw::tcp(&network.outside, OUTSIDE[side]);
        let worker = Raw::tcp(network.worker.as_ref().unwrap(), NODE[side]);
        let arrives = |flags, port| {
            worker.send_segment(OUTSIDE[side], [HOST_PORT, port], flags, true);
            let wanted = |packet: &[u8]| raw::ports(packet) == [HOST_PORT, port];
            wire.receive(SILENCE, wanted).is_some()
        };
        assert!(arrives(raw::SYN_ACK, 5555) && arrives(raw::ACK, 5555));
        let known = network.node.shell("cat /proc/net/nf_conntrack");
        assert!(!known.contains("dport=5555"), "{known}");
        network.node.shell("nft flush chain inet viaduct prerouting");
        assert!(!arrives(raw::SYN_ACK, 5556) && !arrives(raw::ACK, 5557), "the test cannot fail");
        network.table.ensure(&with(host_ports(ANY, HOST_PORT, POD_B))).unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn workers_errors_about_what_the_kernel_does_not_know_are_not_invalid() {
    let mut network = network(Worker::Alive, host_ports(ANY, HOST_PORT, POD_B));
    speak_for_the_node(&network);
    for side in [0, 1] {
        let wire = Raw::icmp(&network.outside, OUTSIDE[side]);
        let worker = Raw::icmp(network.worker.as_ref().unwrap(), NODE[side]);
        let arrives = |port| {
            let quoted = [(OUTSIDE[side], port), (NODE[side], HOST_PORT)];
            worker.send(OUTSIDE[side], &raw::unreachable(NODE[side], OUTSIDE[side], quoted, 17));
            let about = |packet: &[u8]| raw::ports(&packet[packet.len() - 8..])[0] == port;
            wire.receive(SILENCE, about).is_some()
        };
        assert!(arrives(5555));
        let pod = Raw::icmp(&network.pod_b, POD_B[side]);
        let quoted = [(OUTSIDE[side], 5557), (POD_B[side], 9)];
        pod.send(OUTSIDE[side], &raw::unreachable(POD_B[side], OUTSIDE[side], quoted, 17));
        let of_pod = |packet: &[u8]| raw::ports(&packet[packet.len() - 8..])[0] == 5557;
        assert!(wire.receive(SILENCE, of_pod).is_none(), "a pod's invalid error");
        network.node.shell("nft flush chain inet viaduct guard");
        assert!(!arrives(5556), "the test cannot fail");
        network.table.ensure(&with(host_ports(ANY, HOST_PORT, POD_B))).unwrap();
    }
}

/// What the kernel translated, only the kernel can translate back: such an error is tracked.
#[test]
#[ignore = "needs root"]
fn workers_errors_about_what_the_kernel_translated_speak_of_what_the_client_asked() {
    let network = network(Worker::Alive, host_ports(ANY, HOST_PORT, POD_B));
    speak_for_the_node(&network);
    network.node.shell("nft delete table inet firewall");
    for side in [0, 1] {
        let server = network.pod_b.inside(|| UdpSocket::bind((POD_B[side], POD_PORT))).unwrap();
        let client = network.outside.inside(|| UdpSocket::bind((OUTSIDE[side], 0))).unwrap();
        let port = client.local_addr().unwrap().port();
        server.set_read_timeout(Some(DEADLINE)).unwrap();
        client.send_to(b"?", (NODE[side], HOST_PORT)).unwrap();
        server.recv_from(&mut [0]).unwrap();
        let wire = Raw::icmp(&network.outside, OUTSIDE[side]);
        let worker = Raw::icmp(network.worker.as_ref().unwrap(), NODE[side]);
        let quoted = [(OUTSIDE[side], port), (POD_B[side], POD_PORT)];
        worker.send(OUTSIDE[side], &raw::unreachable(NODE[side], OUTSIDE[side], quoted, 17));
        let is_error = |packet: &[u8]| [[3, 3], [1, 4]].contains(&[packet[0], packet[1]]);
        let error = wire.receive(DEADLINE, is_error).expect("the error");
        assert_eq!(raw::ports(&error[error.len() - 8..]), [port, HOST_PORT]);
    }
}

/// `route_localnet`, which path 3 needs, opens 127.0.0.0/8 to `sender`, which is behind `end`; the
/// table has to close it again.
fn the_nodes_loopback_is_closed(
    network: &Network,
    sender: &Namespace,
    address: &str,
    (end, gateway, device): (&str, &str, &str),
) {
    let server = network.node.inside(|| UdpSocket::bind("0.0.0.0:9999")).unwrap();
    server.set_read_timeout(Some(SILENCE)).unwrap();
    network.node.shell(&format!(
        "echo 1 > /proc/sys/net/ipv4/conf/{end}/accept_local
         ip addr replace 169.254.1.1/32 scope link dev {end}"
    ));
    sender.shell(&format!("echo 1 > /proc/sys/net/ipv4/conf/{device}/route_localnet"));
    let arrives = |from: &str, to: &str| {
        let socket = sender.inside(|| UdpSocket::bind((from, 0))).unwrap();
        socket.send_to(b"?", (to, 9999)).unwrap();
        server.recv_from(&mut [0]).is_ok()
    };
    assert!(!arrives("127.0.0.1", NODE[0]));
    sender.shell(&format!(
        "ip addr add {address} dev lo
         ip addr add 127.0.0.7/32 dev lo
         ip addr del 127.0.0.1/8 dev lo
         ip route add 127.0.0.1 via {gateway} dev {device} onlink"
    ));
    assert!(!arrives(address, "127.0.0.1"));
    network.node.shell("nft flush chain inet viaduct prerouting");
    assert!(arrives("127.0.0.7", NODE[0]), "the test cannot fail");
    assert!(arrives(address, "127.0.0.1"), "the test cannot fail");
}

#[test]
#[ignore = "needs root"]
fn no_pod_reaches_the_nodes_loopback_while_no_worker_lives() {
    let network = network(Worker::Dead, host_ports(ANY, HOST_PORT, POD_B));
    let by = ("vda", "169.254.1.1", "eth0");
    the_nodes_loopback_is_closed(&network, &network.pod_a, "10.244.1.99", by);
}

#[test]
#[ignore = "needs root"]
fn nothing_of_a_worker_reaches_the_nodes_loopback() {
    let network = network(Worker::Alive, host_ports(ANY, HOST_PORT, POD_B));
    let by = ("viaduct0", "169.254.1.2", "viaduct1");
    let worker = network.worker.as_ref().unwrap();
    the_nodes_loopback_is_closed(&network, worker, "10.244.1.99", by);
}
