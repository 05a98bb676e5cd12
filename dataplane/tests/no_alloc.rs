//! Forwarding allocates nothing: a million simulated packets of every kind, none of them paid for
//! at the allocator once the worker is warm.

mod harness;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use dataplane::drop::DropReason;
use dataplane::fib::{Action, ActionId, Fib, NextHop, UplinkId, flow_hash};
use dataplane::shaper::{Limit, Limits};
use dataplane::tables::Prefix;
use harness::packet::{ACK, Check, DATA, PSH, Packet, RST, packet};
use harness::{A, B, C, Direction, ENDS, FAR_V4, FAR_V6, NOBODY_V4, NODE, Node, PLAIN, Setup};
use harness::{HIDDEN, TO_B, TO_PLAIN, UPLINK, VETH_UPLINK};

thread_local! {
    /// Allocations of this thread: libtest's own do not count.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counted.
struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches a thread-local
// cell that needs neither allocation nor destruction.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as for `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as for `alloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What pod A sends: all that is forwarded, cut, answered and dropped.
fn from_a() -> Rc<[Vec<u8>]> {
    let mut packets = Vec::new();
    for v6 in [false, true] {
        let far = if v6 { FAR_V6 } else { FAR_V4 };
        let base = packet().from(&A).to(&B).family(v6).payload(64);
        packets.extend([
            base.clone().marked(0),
            base.clone().tcp(1, 2),
            base.clone().to(&PLAIN).marked(0),
            base.clone().to(&C).icmp(if v6 { 128 } else { 8 }, 0),
            base.clone().dst(far).check(Check::Partial),
            base.clone().padding(18),
            base.clone().tcp(1, 2).payload(13_000).marked(1400), // whole at 200 Mbit/s
            base.clone().tcp(1, 2).dst(far).payload(4_000).marked(1400),
            base.clone().payload(3_000).marked(1400),
            base.clone().tcp(1, 2).to(&PLAIN).payload(9_000).marked(1400),
            base.clone().ttl(1),
            base.clone().to(&C).payload(1400),
            base.clone().dst_mac(B.mac),
            base.clone().src(if v6 { "fd00::1" } else { "10.0.0.1" }),
            base.clone().protocol(6).payload(8),
            base.clone().marker(255, 255, 1, 0),
        ]);
    }
    packets.push(packet().from(&A).dst(NOBODY_V4));
    packets.extend(asks());
    let mut frames: Vec<Vec<u8>> = packets.iter().map(|packet| packet.build()).collect();
    frames.push([&[0xff; 6], A.mac.as_slice(), &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]].concat());
    frames.push(vec![0; 60]);
    frames.into()
}

/// What pod A sends to host ports: to all kinds of pods, from more ports than there may be flows.
fn asks() -> Vec<Packet> {
    let mut packets = Vec::new();
    for v6 in [false, true] {
        let base = packet().from(&A).to(&NODE).family(v6).payload(64);
        for client in 0..60 {
            packets.push(base.clone().udp(10_000 + client, HIDDEN.host_port).marked(0));
        }
        let stream = base.clone().tcp(5_000, TO_PLAIN.host_port).payload(9_000);
        packets.extend([
            base.clone().udp(5_000, TO_B.host_port),
            base.clone().udp(5_000, TO_PLAIN.host_port).payload(3_000).may_fragment(),
            base.clone().sctp(5_000, TO_B.host_port, DATA),
            base.clone().tcp(5_000, TO_B.host_port).flags(RST),
            stream.marked(1400),
        ]);
    }
    packets
}

/// What pod B replies: whole, in fragments, of which one comes without its first, and in errors.
fn answers() -> Vec<Packet> {
    let mut packets = Vec::new();
    for v6 in [false, true] {
        let base = packet().from(&B).to(&A).family(v6);
        let answer = base.clone().udp(TO_B.port, 5_000).payload(64).marked(0);
        let long = base.clone().udp(TO_B.port, 5_000).payload(3_000).may_fragment();
        let mut fragments = long.fragments(1_400);
        let asked = packet().from(&A).to(&B).family(v6).udp(5_000, TO_B.port);
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let error = base.icmp(kind, code).payload_bytes(&asked.quoted());
        packets.extend([answer, error]);
        packets.append(&mut fragments);
    }
    packets.push(packet().from(&B).to(&C).fragment(1_400, true).protocol(17).payload(100));
    packets
}

/// What comes off a wire: streams to pods on both workers, side by side, one of them longer than
/// a merged packet may be, one damaged, one that ends with a push, one for a pod in basic mode.
fn from_wire() -> Rc<[Vec<u8>]> {
    let mut packets = Vec::new();
    for v6 in [false, true] {
        let base = packet().from(&UPLINK).family(v6).tcp(443, 4000);
        let long = base.clone().to(&A).payload(60_000).segments(1400);
        let mut damaged = base.clone().to(&C).payload(10_000).segments(1000);
        damaged[4] = damaged[4].clone().check(Check::Value(0x1234));
        let pushed = base.clone().to(&B).flags(ACK | PSH).payload(14_000).segments(1400);
        let plain = base.to(&PLAIN).payload(3_000).segments(1000);
        let mut rest = [long, damaged, pushed, plain].map(|flow| flow.into_iter());
        while rest.iter().any(|flow| flow.len() > 0) {
            packets.extend(rest.iter_mut().filter_map(Iterator::next));
        }
    }
    packets.iter().map(|packet| packet.build()).collect()
}

/// A node on which packets of every kind arrive all the time.
fn busy_node() -> Node {
    let (workers, frames, fill, host_ports) = (2, 4096, 512, true);
    let setup = Setup { workers, frames, fill, host_ports, ..Setup::default() };
    let mut node = Node::new(setup);
    for end in ENDS {
        node.replay(end.id, Rc::new([]));
    }
    node.replay(A.id, from_a());
    let back = [&A, &C].map(|to| packet().from(&B).to(to).payload(500).marked(0));
    let back = back.into_iter().chain(answers()).map(|packet| packet.build());
    node.replay(B.id, back.collect());
    let inward = [&A, &B].map(|to| packet().from(&NODE).to(to).src(FAR_V4).payload(700).build());
    node.replay(NODE.id, Rc::new(inward));
    node.replay(UPLINK.id, from_wire());
    node.replay(VETH_UPLINK.id, from_wire());
    node
}

/// Once the workers are warm, they forward so many packets without an allocation.
fn assert_no_allocation(node: &mut Node, packets: u64) {
    let round = |node: &mut Node| {
        node.advance(1_000_000);
        node.pass(0);
        node.pass(1);
    };
    for _ in 0..100 {
        round(node);
    }
    let received = |node: &Node| node.worker(0).received.get() + node.worker(1).received.get();
    let (warm, before) = (received(node), ALLOCATIONS.get());
    assert!(before > 0, "the allocator counts");
    while received(node) - warm < packets {
        round(node);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0, "allocations on the packet path");
}

#[test]
fn packets_that_wait_for_a_limit_allocate_nothing() {
    let mut node = busy_node();
    let limit = |bits_per_s| Some(Limit { bits_per_s, burst_bytes: 65_536, queue_ns: 5_000_000 });
    for (pod, from_pod, to_pod) in [
        (A.id, limit(200_000_000), limit(100_000_000)),
        (B.id, limit(30_000_000), limit(50_000_000)),
        (C.id, None, limit(1_000_000)),
    ] {
        node.limit(pod, Limits { from_pod, to_pod });
    }
    assert_no_allocation(&mut node, 200_000);
    for worker in [0, 1] {
        assert!(node.worker(worker).held.get() > 10, "packets wait");
        assert!(node.worker(worker).generated.get() > 1_000, "segments");
    }
    for (pod, direction) in [
        (A.id, Direction::FromPod),
        (A.id, Direction::ToPod),
        (B.id, Direction::FromPod),
        (B.id, Direction::ToPod),
    ] {
        let counters = node.counters(pod, direction);
        assert!(counters.wire_packets.get() > 1_000, "{pod:?}, {direction:?}");
        assert!(node.drops(pod, direction, DropReason::ShaperFull) > 1_000);
    }
}

#[test]
fn a_million_packets_allocate_nothing() {
    let mut node = busy_node();
    assert_no_allocation(&mut node, 1_000_000);
    // All of it happened.
    for (worker, counter) in [
        (0, &node.worker(0).crossed_out),
        (1, &node.worker(1).crossed_in),
        (1, &node.worker(1).crossed_out),
        (0, &node.worker(0).generated),
        (0, &node.worker(0).merged),
        (1, &node.worker(1).merged),
    ] {
        assert!(counter.get() > 10_000, "worker {worker}: {}", counter.get());
    }
    for reason in [
        DropReason::TtlExpired,
        DropReason::MtuExceeded,
        DropReason::NoPod,
        DropReason::SpoofedIpv4,
        DropReason::SpoofedIpv6,
        DropReason::OtherHost,
        DropReason::BadMarker,
        DropReason::L4TooShort,
        DropReason::ArpMalformed,
    ] {
        assert!(node.drops(A.id, Direction::FromPod, reason) > 1_000, "{reason:?}");
    }
    for (direction, reason) in [
        (Direction::ToPod, DropReason::NatNoFlow),
        (Direction::FromPod, DropReason::FragmentWithoutFirst),
    ] {
        assert!(node.drops(B.id, direction, reason) > 1_000, "{reason:?}");
    }
    for (number, counter) in [
        (1, &node.flows(1).opened),
        (1, &node.flows(1).evicted),
        (0, &node.flows(0).opened),
        (1, &node.worker(1).icmp_errors_translated),
    ] {
        assert!(counter.get() > 0, "worker {number}");
    }
    assert!(node.counters(A.id, Direction::ToPod).packets.get() > 100_000);
}

#[test]
fn a_route_allocates_nothing() {
    let mut fib = Fib::default();
    fib.set_tables(2);
    let via = |n: u8, mac| NextHop {
        uplink: UplinkId(n),
        via: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, n))),
        mac,
        weight: 1 + u16::from(n),
    };
    let on_link = NextHop { uplink: UplinkId(0), via: None, mac: None, weight: 1 };
    let group = vec![via(0, Some([0; 6])), via(1, Some([1; 6])), via(2, None)];
    fib.set_action(ActionId(0), Action::Throw);
    fib.set_action(ActionId(1), Action::Uplink { hops: group, mtu: Some(1400) });
    fib.set_action(ActionId(2), Action::Uplink { hops: vec![on_link], mtu: None });
    let v4 = |n: u32| IpAddr::V4(Ipv4Addr::from(10 << 24 | n));
    let v6 = |n: u32| IpAddr::V6(Ipv6Addr::from(0xfd00 << 112 | u128::from(n)));
    let mut add = |table, address, len, id| {
        fib.insert(table, Prefix { address, len }, ActionId(id));
    };
    add(0, v4(0), 8, 0);
    add(1, v6(0), 8, 1);
    for n in 0..256 {
        add(1, v4(n << 16), 16, 1 + n % 2);
        add(1, v6(n), 128, 2);
    }
    for n in (0..256).step_by(4) {
        fib.set_neighbor(UplinkId(0), v4(n << 16 | 1), Some([3; 6]));
        fib.set_neighbor(UplinkId(0), v6(n), Some([3; 6]));
    }
    let before = ALLOCATIONS.get();
    let (mut found, mut none) = (0, 0);
    for n in 0..100_000 {
        for dst in [v4(((n % 256) << 16) | 1), v6(n % 512)] {
            match fib.route(dst, flow_hash(v4(7), dst, 6, n)) {
                Some(_) => found += 1,
                None => none += 1,
            }
        }
    }
    assert_eq!(ALLOCATIONS.get() - before, 0, "allocations of lookups");
    assert!(found > 50_000 && none > 50_000, "{found} found, {none} not");
}
