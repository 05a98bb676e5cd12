//! What `port` decides for each frame, by running it in the kernel on made-up frames
//! (BPF_PROG_TEST_RUN). Every refused frame has a neighbour that differs in one thing and passes.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use dataplane::xsk::program::{Fallback, PORTS_MAX, PortEntry, PortKind, Programs, WORKERS_MAX};

use crate::copy::{Copy, DROP, PASS, REDIRECT, counted, trial_of, xsk};
use crate::frames::*;
use crate::machine::{BpfDir, Netns, close};

const WORKER: u32 = 3;
const SLOT: u32 = 17;

/// A device with the pod's entry, and a copy of `port` that shares the maps.
struct Bench {
    programs: Programs,
    copy: Copy,
    ifindex: u32,
    netns: Netns,
    _dir: BpfDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = BpfDir::new();
        let netns = Netns::new();
        netns.ip("link add host type veth peer name eth0");
        let programs = Programs::load(dir.path()).expect("the programs load");
        let ifindex = netns.ifindex("host");
        let bench =
            Bench { copy: Copy::load(dir.path(), "port"), programs, ifindex, netns, _dir: dir };
        bench.set(Fallback::Pass, PortKind::Pod);
        for address in [Ipv4Addr::from(IPV4).into(), Ipv6Addr::from(IPV6).into()] {
            bench.programs.allow_source(ifindex, address).expect("there is room");
        }
        bench
    }

    fn set(&self, fallback: Fallback, kind: PortKind) {
        let entry = PortEntry { slot: SLOT, worker: WORKER, fallback, mac: MAC, kind };
        self.programs.set_port(self.ifindex, &entry).expect("there is room");
    }

    /// The action for a frame, and what it was counted as.
    fn run(&self, frame: &[u8]) -> (u32, Option<&'static str>) {
        let before = self.programs.fallback_counts().expect("counts are read");
        let trial = self.netns.enter(|| self.programs.try_port(self.ifindex, frame));
        let action = self.netns.enter(|| self.copy.run(frame, self.ifindex, 0));
        let after = self.programs.fallback_counts().expect("counts are read");
        // One count more, so the trial was not counted.
        let found = (action, counted(&before, &after));
        assert_eq!(trial.expect("the kernel runs the program"), trial_of(found));
        found
    }

    fn expect(&self, what: &str, frame: &[u8], outcome: &'static str) {
        let action = if outcome == "passed" { PASS } else { DROP };
        assert_eq!(self.run(frame), (action, Some(outcome)), "{what}");
    }
}

#[test]
#[ignore = "needs root"]
fn without_a_worker_ip_passes_only_from_the_pods_own_addresses() {
    let bench = Bench::new();
    bench.expect("own IPv4", &ipv4(MAC, IPV4), "passed");
    bench.expect("marked IPv4", &ipv4(MARKED, IPV4), "passed");
    bench.expect("IPv4 of another", &ipv4(MAC, OTHER_IPV4), "source_ipv4");
    bench.expect("marked IPv4 of another", &ipv4(MARKED, OTHER_IPV4), "source_ipv4");
    bench.expect("IPv4 without address", &ipv4(MAC, [0; 4]), "source_ipv4");
    for byte in 0..6 {
        let mut other = MAC;
        other[byte] ^= 0x40;
        bench.expect("IPv4, MAC of another", &ipv4(other, IPV4), "source_mac");
    }

    bench.expect("own IPv6", &ipv6(MAC, IPV6, UDP, &[0; 8]), "passed");
    bench.expect("marked IPv6", &ipv6(MARKED, IPV6, UDP, &[0; 8]), "passed");
    bench.expect("IPv6 of another", &ipv6(MAC, OTHER_IPV6, UDP, &[0; 8]), "source_ipv6");
    bench.expect("marked, of another", &ipv6(MARKED, OTHER_IPV6, UDP, &[0; 8]), "source_ipv6");
    bench.expect("IPv6, MAC of another", &ipv6(OTHER_MAC, IPV6, UDP, &[0; 8]), "source_mac");

    // 64 bytes more than a page, so that most of it is in fragments.
    let mut large = ipv4(MARKED, IPV4);
    large.resize(60_000, 0);
    bench.expect("a super-packet", &large, "passed");
    large[29] += 1;
    bench.expect("a super-packet of another", &large, "source_ipv4");
}

#[test]
#[ignore = "needs root"]
fn an_address_is_legal_for_its_port_and_family_only_and_until_it_is_forgotten() {
    let bench = Bench::new();
    let (v4, v6) = (ipv4(MAC, IPV4), ipv6(MAC, IPV6, UDP, &[0; 8]));
    // The IPv6 address whose key would be that of OTHER_IPV4, were it not for the family.
    let mut twin = [0; 16];
    twin[..4].copy_from_slice(&OTHER_IPV4);
    bench.programs.allow_source(bench.ifindex, Ipv6Addr::from(twin).into()).expect("room");
    bench
        .programs
        .allow_source(bench.ifindex + 1, Ipv4Addr::from(OTHER_IPV4).into())
        .expect("room");
    bench.expect("IPv4 of another port", &ipv4(MAC, OTHER_IPV4), "source_ipv4");

    bench.programs.forget_sources(bench.ifindex + 1).expect("forgotten");
    bench.expect("others forgotten", &v4, "passed");
    bench.programs.forget_sources(bench.ifindex).expect("forgotten");
    bench.programs.forget_sources(bench.ifindex).expect("nothing to forget is no error");
    bench.expect("forgotten", &v4, "source_ipv4");
    bench.expect("forgotten", &v6, "source_ipv6");
    bench.programs.allow_source(bench.ifindex, Ipv4Addr::from(IPV4).into()).expect("room");
    bench.expect("allowed again", &v4, "passed");
    bench.expect("still forgotten", &v6, "source_ipv6");
}

#[test]
#[ignore = "needs root"]
fn without_a_worker_arp_speaks_of_the_pod_only() {
    let bench = Bench::new();
    let honest = Arp::HONEST;
    bench.expect("a request", &honest.frame(), "passed");
    let reply = Arp { head: [0, 1, 8, 0, 6, 4, 0, 2], ..honest };
    bench.expect("a reply", &reply.frame(), "passed");

    let forged = |arp: Arp, outcome, what| bench.expect(what, &arp.frame(), outcome);
    forged(Arp { ethernet: OTHER_MAC, ..honest }, "source_mac", "Ethernet source of another");
    forged(Arp { ethernet: MARKED, ..honest }, "source_mac", "ARP is never marked");
    forged(Arp { sender_mac: OTHER_MAC, ..honest }, "arp", "sender MAC of another");
    forged(Arp { sender_mac: MARKED, ..honest }, "arp", "marker as sender MAC");
    forged(Arp { sender_ip: OTHER_IPV4, ..honest }, "arp", "sender address of another");
    forged(Arp { sender_ip: [0; 4], ..honest }, "arp", "a probe");
    forged(Arp { head: [0, 6, 8, 0, 6, 4, 0, 1], ..honest }, "arp", "not Ethernet");
    forged(Arp { head: [0, 1, 0x86, 0xdd, 6, 4, 0, 1], ..honest }, "arp", "not IPv4");
    forged(Arp { head: [0, 1, 8, 0, 7, 4, 0, 1], ..honest }, "arp", "long hardware addresses");
    forged(Arp { head: [0, 1, 8, 0, 6, 5, 0, 1], ..honest }, "arp", "long protocol addresses");
}

#[test]
#[ignore = "needs root"]
fn without_a_worker_neighbour_discovery_speaks_of_the_pod_only() {
    let bench = Bench::new();
    let (router_solicitation, router_advertisement) = (133, 134);
    let (solicitation, advertisement, redirect) = (135, 136, 137);
    let source = mac_option(1, 1, MAC);
    let target = mac_option(2, 1, MAC);
    let nonce = mac_option(14, 1, OTHER_MAC);
    let icmp = |message: &[u8]| ipv6(MAC, IPV6, ICMPV6, message);
    let expect = |what, message: Vec<u8>, outcome| bench.expect(what, &icmp(&message), outcome);
    let refused = "neighbour_discovery";

    expect("an echo request", vec![128, 0, 0, 0, 0, 0, 0, 0], "passed");
    expect("a bare solicitation", nd(solicitation, OTHER_IPV6, &[]), "passed");
    expect("a solicitation", nd(solicitation, OTHER_IPV6, &[&source]), "passed");
    expect("with a nonce", nd(solicitation, OTHER_IPV6, &[&nonce, &source]), "passed");
    expect("an advertisement", nd(advertisement, IPV6, &[&target]), "passed");
    let marked = ipv6(MARKED, IPV6, ICMPV6, &nd(solicitation, OTHER_IPV6, &[&source]));
    bench.expect("a marked solicitation", &marked, "passed");

    for kind in [router_solicitation, router_advertisement, redirect] {
        expect("a router's business", nd(kind, IPV6, &[&source]), refused);
    }
    for (kind, subject) in [(solicitation, OTHER_IPV6), (advertisement, IPV6)] {
        for option in [1, 2] {
            let forged = mac_option(option, 1, OTHER_MAC);
            expect("MAC of another", nd(kind, subject, &[&forged]), refused);
            expect("behind a good one", nd(kind, subject, &[&source, &forged]), refused);
            expect("behind a nonce", nd(kind, subject, &[&nonce, &forged]), refused);
            expect("a long MAC", nd(kind, subject, &[&mac_option(option, 2, MAC)]), refused);
        }
    }
    expect("address of another", nd(advertisement, OTHER_IPV6, &[&target]), refused);
    let own_only = nd(solicitation, OTHER_IPV6, &[&source]);
    bench.expect("from another", &ipv6(MAC, OTHER_IPV6, ICMPV6, &own_only), "source_ipv6");
    bench.expect("duplicate detection", &ipv6(MAC, [0; 16], ICMPV6, &own_only), "source_ipv6");

    expect("option of no length", nd(solicitation, IPV6, &[&mac_option(14, 0, MAC)]), refused);
    expect("half an option", nd(solicitation, IPV6, &[&source[..4]]), "too_short");
    expect("option beyond the end", nd(solicitation, IPV6, &[&[14, 2, 0, 0, 0, 0, 0, 0]]), refused);
    expect("eight options", nd(solicitation, IPV6, &[&nonce[..]; 8]), "passed");
    expect("too many options", nd(solicitation, IPV6, &[&nonce[..]; 9]), refused);

    // Bytes behind the payload are padding, whatever they look like.
    let mut padded = icmp(&nd(solicitation, OTHER_IPV6, &[&source]));
    padded.extend(mac_option(1, 1, OTHER_MAC));
    bench.expect("padding", &padded, "passed");
    let mut padded = icmp(&nd(solicitation, OTHER_IPV6, &[&source[..4]]));
    padded.extend(&source[4..]);
    bench.expect("half an option, padded", &padded, refused);
}

#[test]
#[ignore = "needs root"]
fn without_a_worker_neighbour_discovery_cannot_hide_behind_extension_headers() {
    let bench = Bench::new();
    let solicitation = nd(135, OTHER_IPV6, &[&mac_option(1, 1, MAC)]);
    let echo = vec![128, 0, 0, 0, 0, 0, 0, 0];
    let chain = |headers: &[&[u8]], first: u8, last: &[u8]| {
        ipv6(MAC, IPV6, first, &[&headers.concat(), last].concat())
    };
    let refused = "neighbour_discovery";
    // Hop-by-hop, routing, destination options.
    for header in [0, 43, 60] {
        let one = [&extension(ICMPV6)[..]];
        bench.expect("echo", &chain(&one, header, &echo), "passed");
        bench.expect("solicitation", &chain(&one, header, &solicitation), refused);
        let two = [&extension(60)[..], &extension(ICMPV6)];
        bench.expect("echo, two headers", &chain(&two, header, &echo), "passed");
        bench.expect("solicitation, two headers", &chain(&two, header, &solicitation), refused);
    }
    // A multicast listener report always comes with a hop-by-hop header (RFC 3810 §5).
    for message in [130, 132, 138, 143] {
        let listener = chain(&[&extension(ICMPV6)], 0, &[message, 0, 0, 0, 0, 0, 0, 0]);
        bench.expect("multicast listener", &listener, "passed");
    }
    // A long extension header (16 bytes) and an authentication header (12 bytes: length 1).
    let long = [[ICMPV6, 1, 0, 0], [0; 4], [0; 4], [0; 4]].concat();
    let authentication = [[ICMPV6, 1, 0, 0], [0; 4], [0; 4]].concat();
    for (first, header) in [(60, &long), (51, &authentication)] {
        bench.expect("echo", &chain(&[header], first, &echo), "passed");
        bench.expect("solicitation", &chain(&[header], first, &solicitation), refused);
    }

    let fragment_header = 44;
    let whole = fragment(ICMPV6, 0, false);
    bench.expect("atomic, echo", &chain(&[&whole], fragment_header, &echo), "passed");
    bench.expect("atomic", &chain(&[&whole], fragment_header, &solicitation), refused);
    let first = fragment(ICMPV6, 0, true);
    bench.expect("first fragment", &chain(&[&first], fragment_header, &solicitation), refused);
    bench.expect("first, too short", &chain(&[&first], fragment_header, &[]), "too_short");
    // The later ones look like a solicitation and are none: their first decides.
    for offset in [1, 32, 0x1000] {
        let later = fragment(ICMPV6, offset, true);
        bench.expect("later", &chain(&[&later], fragment_header, &solicitation), "passed");
    }

    let (link, last) = (extension(60), extension(UDP));
    let seven = [&[&link[..]; 6][..], &[&last[..]]].concat();
    bench.expect("seven headers", &chain(&seven, 60, &[0; 8]), "passed");
    let eight = [&[&link[..]; 7][..], &[&last[..]]].concat();
    bench.expect("eight headers", &chain(&eight, 60, &[0; 8]), "extension_headers");
}

#[test]
#[ignore = "needs root"]
fn without_a_worker_only_ip_and_arp_pass() {
    let bench = Bench::new();
    let packet = &ipv4(MAC, IPV4)[14..];
    bench.expect("IPv4", &ethernet(MAC, 0x0800, packet), "passed");
    let tagged = [&[0, 5, 8, 0], packet].concat();
    for ether_type in [0x8100, 0x88a8] {
        bench.expect("a VLAN tag", &ethernet(MAC, ether_type, &tagged), "ether_type");
    }
    for ether_type in [0, 38, 0x0801, 0x8847, 0x88cc, 0x86de, 0xffff] {
        bench.expect("another type", &ethernet(MAC, ether_type, packet), "ether_type");
    }
}

#[test]
#[ignore = "needs root"]
fn without_a_worker_a_frame_cut_short_passes_only_with_all_that_is_checked() {
    let bench = Bench::new();
    let solicitation = nd(135, OTHER_IPV6, &[&mac_option(1, 1, MAC)]);
    let listener = [&extension(ICMPV6)[..], &[143, 0, 0, 0, 0, 0, 0, 0]].concat();
    let frames = [
        ("ARP", Arp::HONEST.frame(), 42),
        ("IPv4", ipv4(MAC, IPV4), 34),
        ("IPv6", ipv6(MAC, IPV6, UDP, &[0; 8]), 54),
        ("ICMPv6", ipv6(MAC, IPV6, ICMPV6, &[128, 0, 0, 0, 0, 0, 0, 0]), 55),
        ("solicitation", ipv6(MAC, IPV6, ICMPV6, &solicitation), 86),
        ("hop-by-hop header", ipv6(MAC, IPV6, 0, &listener), 66),
    ];
    for (what, frame, needed) in frames {
        // The kernel takes no test frame shorter than an Ethernet header.
        for length in 14..=frame.len() {
            let (action, outcome) = bench.run(&frame[..length]);
            let expected = if length < needed { DROP } else { PASS };
            assert_eq!(action, expected, "{length} bytes of {what}: {outcome:?}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_port_that_drops_is_still_counted_by_the_reason() {
    let bench = Bench::new();
    bench.set(Fallback::Drop, PortKind::Pod);
    bench.expect("a legal packet", &ipv4(MAC, IPV4), "dropped");
    bench.expect("a legal ARP request", &Arp::HONEST.frame(), "dropped");
    bench.expect("a forged packet", &ipv4(MAC, OTHER_IPV4), "source_ipv4");
}

#[test]
#[ignore = "needs root"]
fn the_nodes_own_packets_pass_unchecked() {
    let bench = Bench::new();
    for fallback in [Fallback::Pass, Fallback::Drop] {
        bench.set(fallback, PortKind::Node);
        bench.expect("any address", &ipv4(OTHER_MAC, OTHER_IPV4), "passed");
        bench.expect("any type", &ethernet(OTHER_MAC, 0x88cc, &[0; 4]), "passed");
    }
}

#[test]
#[ignore = "needs root"]
fn a_device_without_an_entry_passes_everything() {
    let bench = Bench::new();
    bench.programs.remove_port(bench.ifindex).expect("removed");
    bench.programs.remove_port(bench.ifindex).expect("no error when absent");
    let forged = ipv4(OTHER_MAC, OTHER_IPV4);
    assert_eq!(bench.run(&forged), (PASS, Some("unknown_port")));
    bench.set(Fallback::Pass, PortKind::Pod);
    assert_eq!(bench.run(&forged), (DROP, Some("source_mac")));
}

#[test]
#[ignore = "needs root"]
fn a_worker_gets_everything_while_its_socket_and_both_sentinels_are_there() {
    let bench = Bench::new();
    let (programs, redirected) = (&bench.programs, (REDIRECT, None));
    let (low, high, socket) = (xsk(), xsk(), xsk());
    let frames = [ipv4(MAC, IPV4), ipv4(OTHER_MAC, OTHER_IPV4), Arp::HONEST.frame()];
    let fallback = [(PASS, Some("passed")), (DROP, Some("source_mac")), (PASS, Some("passed"))];
    let run = || frames.each_ref().map(|frame| bench.run(frame));
    let set_sentinels = || programs.set_sentinels(WORKER, low.as_fd(), high.as_fd()).expect("set");

    assert_eq!(run(), fallback, "nobody there");
    programs.set_socket(SLOT, socket.as_fd()).expect("set");
    assert_eq!(run(), fallback, "a socket, no sentinels");
    set_sentinels();
    assert_eq!(run(), [redirected; 3]);
    for kind in [PortKind::Node, PortKind::Pod] {
        for action in [Fallback::Drop, Fallback::Pass] {
            bench.set(action, kind);
            assert_eq!(run(), [redirected; 3]);
        }
    }

    programs.clear_socket(SLOT).expect("cleared");
    programs.clear_socket(SLOT).expect("no error when absent");
    assert_eq!(run(), fallback, "sentinels, no socket");
    programs.set_socket(SLOT, socket.as_fd()).expect("set");
    assert_eq!(run(), [redirected; 3]);
    programs.clear_sentinels(WORKER).expect("cleared");
    programs.clear_sentinels(WORKER).expect("no error when absent");
    assert_eq!(run(), fallback, "a hung worker");

    // Another worker's sentinels, and another port's socket, do not help.
    programs.set_sentinels(WORKER + 1, low.as_fd(), high.as_fd()).expect("set");
    assert_eq!(run(), fallback, "the sentinels of another");
    set_sentinels();
    programs.clear_socket(SLOT).expect("cleared");
    programs.set_socket(SLOT + 1, socket.as_fd()).expect("set");
    assert_eq!(run(), fallback, "the socket of another");
}

#[test]
#[ignore = "needs root"]
fn any_socket_that_is_closed_sends_the_port_to_the_fallback() {
    let bench = Bench::new();
    let frame = ipv4(MAC, IPV4);
    for closed in 0..3 {
        let mut sockets = [Some(xsk()), Some(xsk()), Some(xsk())];
        let [low, high, socket] = sockets.each_ref().map(|fd| fd.as_ref().expect("open").as_fd());
        bench.programs.set_sentinels(WORKER, low, high).expect("set");
        bench.programs.set_socket(SLOT, socket).expect("set");
        assert_eq!(bench.run(&frame), (REDIRECT, None));
        close(sockets[closed].take());
        assert_eq!(bench.run(&frame), (PASS, Some("passed")), "socket {closed} closed");
    }
}

#[test]
#[ignore = "needs root"]
fn slots_and_workers_beyond_the_maps_are_refused() {
    let bench = Bench::new();
    let socket = xsk();
    let fd = socket.as_fd();
    bench.programs.set_socket(PORTS_MAX - 1, fd).expect("the last slot");
    let error = bench.programs.set_socket(PORTS_MAX, fd).expect_err("there is no such slot");
    assert!(error.to_string().contains("sockets (of at most 4096 entries)"), "{error}");
    bench.programs.set_sentinels(WORKERS_MAX - 1, fd, fd).expect("the last worker");
    for worker in [WORKERS_MAX, u32::MAX] {
        bench.programs.set_sentinels(worker, fd, fd).expect_err("there is no such worker");
    }
    let file = std::fs::File::open("/dev/null").expect("it is there");
    bench.programs.set_socket(SLOT, file.as_fd()).expect_err("not an XSK");
}
