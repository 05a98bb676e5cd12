//! What `uplink` decides for each frame, by running it in the kernel on made-up frames. Every frame
//! that a worker gets has a neighbour that differs in one thing and passes to the kernel.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use dataplane::tables::Prefix;
use dataplane::xsk::program::{Programs, Steering, UplinkEntry};

use crate::copy::{Copy, PASS, REDIRECT, counted, trial_of, xsk};
use crate::frames::{ICMPV6, UDP, fragment};
use crate::machine::{BpfDir, Netns, close};

pub const MAC: [u8; 6] = [0x52, 1, 2, 3, 4, 5];
pub const ENTRY: UplinkEntry = UplinkEntry { first_slot: 10, queues: 4, workers: 2, mac: MAC };
/// Queues of the device: one more than the entry knows.
const QUEUES: u32 = 5;

pub const POD: &str = "10.244.1.9";
pub const NODE: &str = "192.0.2.1";
pub const DIRECT: &str = "10.244.2.9";
const KERNEL: &str = "10.244.7.9";
pub const FOREIGN: &str = "198.51.100.9";
pub const POD6: &str = "fd00:1::9";
pub const NODE6: &str = "2001:db8::1";
pub const DIRECT6: &str = "fd00:2::9";
const KERNEL6: &str = "fd00:7::9";
pub const FOREIGN6: &str = "2001:db8:9::9";

pub const ICMP: u8 = 1;

fn prefix(text: &str) -> Prefix {
    let (address, len) = text.split_once('/').expect("a prefix has a length");
    Prefix { address: address.parse().expect("an address"), len: len.parse().expect("a length") }
}

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    texts.iter().map(|text| prefix(text)).collect()
}

/// A packet between two addresses of one family.
pub fn packet(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let parse = |text: &str| text.parse().expect("an address");
    match (parse(source), parse(destination)) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = u16::try_from(20 + payload.len()).expect("short").to_be_bytes();
            let head = [0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0];
            [&head[..], &source.octets(), &destination.octets(), payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let length = u16::try_from(payload.len()).expect("short").to_be_bytes();
            let head = [0x60, 0, 0, 0, length[0], length[1], protocol, 64];
            [&head[..], &source.octets(), &destination.octets(), payload].concat()
        }
        _ => panic!("one family"),
    }
}

pub fn to(mac: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&mac[..], &[0x52, 9, 9, 9, 9, 9], &ether_type, packet].concat()
}

fn udp(source: &str, destination: &str) -> Vec<u8> {
    to(MAC, &packet(source, destination, UDP, &[0; 8]))
}

/// An ICMP or ICMPv6 error about a packet that a pod has sent to `about`.
fn error(source: &str, pod: &str, kind: u8, about: &str) -> Vec<u8> {
    let protocol = if pod.contains(':') { ICMPV6 } else { ICMP };
    let payload = [&[kind, 0, 0, 0, 0, 0, 0, 0], &packet(pod, about, UDP, &[0; 8])[..]].concat();
    to(MAC, &packet(source, pod, protocol, &payload))
}

/// A NIC with its entry, two workers that are there, and a copy of `uplink` that shares the maps.
pub struct Bench {
    pub programs: Programs,
    pub copy: Copy,
    pub ifindex: u32,
    pub netns: Netns,
    _open: Vec<OwnedFd>,
    pub dir: BpfDir,
}

impl Bench {
    pub fn new() -> Bench {
        let (dir, netns) = (BpfDir::new(), Netns::new());
        let queues = format!("numrxqueues {QUEUES} numtxqueues {QUEUES}");
        netns.ip(&format!("link add nic {queues} type veth peer name eth0 {queues}"));
        let programs = Programs::load(dir.path()).expect("the programs load");
        let ifindex = netns.ifindex("nic");
        programs.set_uplink(ifindex, &ENTRY).expect("room");
        let open: Vec<_> = (0..4).map(|_| xsk()).collect();
        for (slot, socket) in (10..).zip(&open) {
            programs.set_socket(slot, socket.as_fd()).expect("set");
        }
        for worker in [0, 1] {
            programs.set_sentinels(worker, open[0].as_fd(), open[1].as_fd()).expect("set");
        }
        let copy = Copy::load(dir.path(), "uplink");
        let bench = Bench { programs, copy, ifindex, netns, _open: open, dir };
        bench.steer(
            &["10.244.1.0/24", "fd00:1::/32"],
            &["10.244.0.0/16", "fd00::/16"],
            &["10.244.7.0/24", "fd00:7::/32"],
        );
        bench
    }

    pub fn steer(&self, pods: &[&str], direct: &[&str], kernel: &[&str]) {
        let (pods, direct, kernel) = (prefixes(pods), prefixes(direct), prefixes(kernel));
        let wish = Steering { pods: &pods, direct: &direct, kernel: &kernel };
        self.programs.set_steering(&wish).expect("room");
    }

    /// The action for a frame of a queue, and what it was counted as.
    pub fn run(&self, frame: &[u8], queue: u32) -> (u32, Option<&'static str>) {
        let before = self.programs.uplink_counts().expect("counts are read");
        let trial = self.netns.enter(|| self.programs.try_uplink(self.ifindex, queue, frame));
        let action = self.netns.enter(|| self.copy.run(frame, self.ifindex, queue));
        let after = self.programs.uplink_counts().expect("counts are read");
        // One count more, so the trial was not counted.
        let found = (action, counted(&before, &after));
        assert_eq!(trial.expect("the kernel runs the program"), trial_of(found));
        found
    }

    pub fn takes(&self, what: &str, frame: &[u8]) {
        assert_eq!(self.run(frame, 0), (REDIRECT, None), "{what}");
    }

    pub fn passes(&self, what: &str, frame: &[u8], outcome: &'static str) {
        assert_eq!(self.run(frame, 0), (PASS, Some(outcome)), "{what}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_worker_takes_what_comes_from_direct_addresses_to_its_pods() {
    let bench = Bench::new();
    for (direct, kernel, foreign, pod, node) in
        [(DIRECT, KERNEL, FOREIGN, POD, NODE), (DIRECT6, KERNEL6, FOREIGN6, POD6, NODE6)]
    {
        bench.takes("a remote pod", &udp(direct, pod));
        bench.takes("another pod of this node, for the worker to drop", &udp(pod, pod));
        bench.passes("carved out", &udp(kernel, pod), "not_direct");
        bench.passes("the internet", &udp(foreign, pod), "not_direct");
        bench.passes("to the node", &udp(foreign, node), "not_ours");
        bench.passes("a pod to the node", &udp(direct, node), "not_ours");
        bench.passes("to another node's pod", &udp(pod, direct), "not_ours");
    }
    // The IPv6 addresses that would be covered, were it not for the family.
    bench.passes("IPv6 like a pod", &udp(DIRECT6, "af4:109::"), "not_ours");
    bench.passes("IPv6 like a direct one", &udp("af4:209::", POD6), "not_direct");
    let mut large = udp(DIRECT, POD);
    large.resize(9014, 0);
    bench.takes("a jumbo frame", &large);
    large.resize(60_000, 0);
    bench.takes("a super-packet", &large);
}

#[test]
#[ignore = "needs root"]
fn only_untagged_ip_to_the_nics_own_mac_is_taken() {
    let bench = Bench::new();
    let inner = packet(DIRECT, POD, UDP, &[0; 8]);
    bench.takes("to the NIC", &to(MAC, &inner));
    for byte in 0..6 {
        let mut other = MAC;
        other[byte] ^= 1;
        bench.passes("to another", &to(other, &inner), "other_mac");
    }
    bench.passes("broadcast", &to([0xff; 6], &inner), "other_mac");
    bench.passes("multicast", &to([1, 0, 0x5e, 0, 0, 1], &inner), "other_mac");
    let source = [0x52, 9, 9, 9, 9, 9];
    for ether_type in [0x8100_u16, 0x88a8, 0x0806, 0x88cc, 0x8847, 38] {
        let tag = [&ether_type.to_be_bytes()[..], &[0, 5, 8, 0]].concat();
        let frame = [&MAC[..], &source, &tag, &inner].concat();
        bench.passes("another type", &frame, "ether_type");
    }
    let mut lying = to(MAC, &inner);
    lying[14] = 0x65;
    bench.passes("version 6 in IPv4", &lying, "malformed");
    lying[14] = 0x44;
    bench.passes("a header of 16 bytes", &lying, "malformed");
    let mut lying = udp(DIRECT6, POD6);
    lying[14] = 0x40;
    bench.passes("version 4 in IPv6", &lying, "malformed");
    for (frame, needed) in [(udp(DIRECT, POD), 34), (udp(DIRECT6, POD6), 54)] {
        // The kernel takes no test frame shorter than an Ethernet header.
        for length in 14..needed {
            bench.passes("cut short", &frame[..length], "malformed");
        }
        bench.takes("a bare header", &frame[..needed]);
    }
}

#[test]
#[ignore = "needs root"]
fn an_icmp_error_goes_where_the_packet_went_that_it_speaks_of() {
    let bench = Bench::new();
    for kind in [3, 4, 5, 11, 12] {
        bench.takes("of a router", &error(FOREIGN, POD, kind, DIRECT));
        bench.takes("of the receiver", &error(DIRECT, POD, kind, DIRECT));
        bench.passes("from outside", &error(FOREIGN, POD, kind, FOREIGN), "not_direct");
        bench.passes("of a router inside", &error(DIRECT, POD, kind, FOREIGN), "not_direct");
        bench.passes("carved out", &error(DIRECT, POD, kind, KERNEL), "not_direct");
        bench.passes("to the node", &error(DIRECT, NODE, kind, DIRECT), "not_ours");
    }
    for kind in [1, 2, 3, 4, 127] {
        bench.takes("of a router", &error(FOREIGN6, POD6, kind, DIRECT6));
        bench.passes("from outside", &error(FOREIGN6, POD6, kind, FOREIGN6), "not_direct");
        bench.passes("of a router inside", &error(DIRECT6, POD6, kind, KERNEL6), "not_direct");
        bench.passes("to the node", &error(DIRECT6, NODE6, kind, DIRECT6), "not_ours");
    }
    // Queries and answers are packets like others.
    for kind in [0, 8, 13, 14] {
        bench.takes("a query", &error(DIRECT, POD, kind, FOREIGN));
        bench.passes("a foreign query", &error(FOREIGN, POD, kind, DIRECT), "not_direct");
    }
    for kind in [128, 129, 135, 255] {
        bench.takes("a query", &error(DIRECT6, POD6, kind, FOREIGN6));
        bench.passes("a foreign query", &error(FOREIGN6, POD6, kind, DIRECT6), "not_direct");
    }
    // All that is needed is the embedded destination: eight bytes, and a header up to it.
    for (frame, needed) in
        [(error(FOREIGN, POD, 3, DIRECT), 34 + 28), (error(FOREIGN6, POD6, 1, DIRECT6), 54 + 48)]
    {
        bench.takes("a bare header", &frame[..needed]);
        bench.passes("cut short", &frame[..needed - 1], "malformed");
    }
    bench.passes("no ICMP at all", &error(DIRECT, POD, 3, DIRECT)[..34], "malformed");
    bench.passes("no ICMPv6 at all", &error(DIRECT6, POD6, 1, DIRECT6)[..54], "malformed");
}

#[test]
#[ignore = "needs root"]
fn ipv4_options_and_fragments_do_not_hide_an_icmp_error() {
    let bench = Bench::new();
    let with_option = |frame: Vec<u8>| {
        let mut frame = [&frame[..34], &[1, 1, 1, 0], &frame[34..]].concat();
        frame[14] = 0x46;
        frame
    };
    bench.takes("option", &with_option(error(FOREIGN, POD, 3, DIRECT)));
    bench.passes("option", &with_option(error(DIRECT, POD, 3, FOREIGN)), "not_direct");

    let fragment_of = |mut frame: Vec<u8>, field: u16| {
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        frame
    };
    let first = 0x2000;
    bench.takes("first", &fragment_of(error(FOREIGN, POD, 3, DIRECT), first));
    bench.passes("first", &fragment_of(error(DIRECT, POD, 3, FOREIGN), first), "not_direct");
    // What follows has no ICMP header, whatever it looks like.
    for later in [0x0001, 0x2001, 0x1fff] {
        bench.takes("later", &fragment_of(error(DIRECT, POD, 3, FOREIGN), later));
        bench.passes("later", &fragment_of(error(FOREIGN, POD, 3, DIRECT), later), "not_direct");
        bench.takes("later, empty", &fragment_of(error(DIRECT, POD, 3, FOREIGN), later)[..34]);
        bench.takes("later, UDP", &fragment_of(udp(DIRECT, POD), later));
        bench.passes("to the node", &fragment_of(udp(DIRECT, NODE), later), "not_ours");
    }
    // In IPv6 an error behind another header is taken by its source.
    let body = |about| error(FOREIGN6, POD6, 1, about)[54..].to_vec();
    let behind = |source, about| {
        let payload = [&fragment(ICMPV6, 0, true)[..], &body(about)].concat();
        to(MAC, &packet(source, POD6, 44, &payload))
    };
    bench.takes("behind a header", &behind(DIRECT6, FOREIGN6));
    bench.passes("behind a header", &behind(FOREIGN6, DIRECT6), "not_direct");
}

#[test]
#[ignore = "needs root"]
fn a_packet_whose_worker_or_socket_is_gone_passes() {
    let bench = Bench::new();
    let frame = udp(DIRECT, POD);
    let all = || [0, 1, 2, 3, 4].map(|queue| bench.run(&frame, queue));
    let (taken, passed) = ((REDIRECT, None), (PASS, Some("fallback")));
    assert_eq!(all(), [taken, taken, taken, taken, passed], "a queue that came later");
    bench.programs.clear_sentinels(1).expect("cleared");
    assert_eq!(all(), [taken, passed, taken, passed, passed], "worker 1 has queues 1 and 3");
    bench.programs.clear_socket(12).expect("cleared");
    assert_eq!(all(), [taken, passed, passed, passed, passed], "queue 2 is slot 12");
    bench.programs.clear_sentinels(0).expect("cleared");
    assert_eq!(all(), [passed; 5]);
    bench.passes("not a worker's anyway", &udp(FOREIGN, POD), "not_direct");

    let sentinels = [xsk(), xsk()];
    bench.programs.set_sentinels(0, sentinels[0].as_fd(), sentinels[1].as_fd()).expect("set");
    close(sentinels);
    assert_eq!(all(), [passed; 5], "they are closed again");
}

#[test]
#[ignore = "needs root"]
fn an_interface_without_an_entry_passes_everything() {
    let bench = Bench::new();
    let frame = udp(DIRECT, POD);
    bench.takes("with entry", &frame);
    let new = UplinkEntry { mac: [0x52, 9, 9, 9, 9, 9], ..ENTRY };
    bench.programs.set_uplink(bench.ifindex, &new).expect("replaced");
    assert_eq!(bench.programs.uplinks().expect("read"), [(bench.ifindex, new)]);
    bench.passes("the MAC has changed", &frame, "other_mac");
    bench.programs.remove_uplink(bench.ifindex).expect("removed");
    bench.programs.remove_uplink(bench.ifindex).expect("no error when absent");
    bench.passes("without entry", &frame, "unknown_uplink");
}

#[test]
#[ignore = "needs root"]
fn steering_becomes_the_wish_and_nothing_else() {
    let bench = Bench::new();
    let sources = ["10.244.2.9", "10.244.7.9", "10.244.7.77", "172.16.0.1"];
    let direct = || sources.map(|source| bench.run(&udp(source, POD), 0).0 == REDIRECT);
    assert_eq!(direct(), [true, false, false, false]);
    let pods = &["10.244.1.0/24"];
    bench.steer(pods, &["10.244.7.64/26", "0.0.0.0/0"], &["10.244.0.0/16"]);
    assert_eq!(direct(), [false, false, true, true], "the longest decides");
    bench.passes("IPv6 is gone", &udp(DIRECT6, POD6), "not_ours");
    bench.steer(pods, &["10.244.7.64/26", "0.0.0.0/0"], &["10.244.0.0/16", "10.244.7.64/26"]);
    assert_eq!(direct(), [false, false, false, true], "of two equal ones the kernel's");
    // Host bits do not matter.
    bench.steer(pods, &["10.244.2.3/24"], &[]);
    assert_eq!(direct(), [true, false, false, false]);
    bench.steer(pods, &[], &[]);
    assert_eq!(direct(), [false; 4]);
    bench.steer(&[], &["0.0.0.0/0"], &[]);
    bench.passes("no pods", &udp(DIRECT, POD), "not_ours");
    bench.steer(&["10.244.1.9/32", "fd00:1::9/128"], &["0.0.0.0/0", "::/0"], &[]);
    assert_eq!(direct(), [true; 4]);
    bench.takes("one address", &udp(FOREIGN6, POD6));
    bench.passes("the next address", &udp(FOREIGN, "10.244.1.10"), "not_ours");
    bench.passes("the next address", &udp(FOREIGN6, "fd00:1::a"), "not_ours");
}

/// An address whose answer is the same before and after has it all the while: looked at from
/// another thread while wishes alternate whose entries overlap in all ways.
#[test]
#[ignore = "needs root"]
fn steering_changes_without_a_gap() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let bench = Bench::new();
    let pods = &["10.244.1.0/24"];
    let wishes: [(&[&str], &[&str]); 2] = [
        (&["10.244.0.0/16", "10.244.2.0/25"], &["10.244.7.0/24"]),
        (&["10.244.0.0/17", "10.244.2.0/24"], &["10.244.7.0/25", "10.244.2.0/23", "10.0.0.0/8"]),
    ];
    bench.steer(pods, wishes[0].0, wishes[0].1);
    let done = AtomicBool::new(false);
    let looks = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            bench.netns.enter(|| {
                let (good, bad) = (udp("10.244.2.9", POD), udp("10.244.7.9", POD));
                let mut looks = 0_u32;
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(bench.copy.run(&good, bench.ifindex, 0), REDIRECT, "look {looks}");
                    assert_eq!(bench.copy.run(&bad, bench.ifindex, 0), PASS, "look {looks}");
                    looks += 1;
                }
                looks
            })
        });
        for turn in 1..=2000 {
            let (direct, kernel) = wishes[turn % 2];
            bench.steer(pods, direct, kernel);
        }
        done.store(true, Ordering::Relaxed);
        watcher.join().expect("no gap was seen")
    });
    assert!(looks > 1000, "only {looks} looks");
}
