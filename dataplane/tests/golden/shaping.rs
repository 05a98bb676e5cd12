//! Limits on the path: when packets of limited pods leave, what they are then, and what becomes of
//! those that wait when things change around them.

mod paths;
mod window;

use dataplane::drop::DropReason;
use dataplane::shaper::{Limit, Limits};
use dataplane::sim::Sent;
use dataplane::worker::BATCH_MAX;

use crate::FAMILIES;
use crate::harness::packet::{Check, Packet, packet};
use crate::harness::{A, B, Direction, End, NODE, Node, PLAIN, Setup, TO_B, UPLINK, host_ports};

/// 1 byte per µs.
const SLOW: u64 = 8_000_000;
const US: u64 = 1_000;
const MS: u64 = 1_000_000;

/// A burst of 3000 bytes, and a queue of 25 ms.
fn limit(bits_per_s: u64) -> Limit {
    Limit { bits_per_s, burst_bytes: 3_000, queue_ns: 25 * MS }
}

fn from_pod(bits_per_s: u64) -> Limits {
    Limits { from_pod: Some(limit(bits_per_s)), to_pod: None }
}

fn to_pod(bits_per_s: u64) -> Limits {
    Limits { from_pod: None, to_pod: Some(limit(bits_per_s)) }
}

/// A datagram of 1000 bytes, Ethernet header included.
fn datagram(v6: bool, from: &End, to: &End) -> Packet {
    let packet = packet().family(v6).from(from).to(to).udp(1, 2);
    let header = packet.header_len();
    packet.payload(1_000 - header)
}

/// How many packets a port has sent, when each step of `step_ns` is over.
fn sent_over_time(node: &mut Node, to: &End, steps: usize, step_ns: u64) -> Vec<usize> {
    let steps = (0..steps).map(|_| {
        node.advance(step_ns);
        node.run();
        node.sent(to.id).len()
    });
    steps.collect()
}

fn each_setup(mut test: impl FnMut(Setup, bool)) {
    for workers in [1, 2] {
        for (v6, _) in FAMILIES {
            test(Setup { workers, ..Setup::default() }, v6);
        }
    }
}

/// One of two limits on the way from A to B: what A sends, or what B gets.
struct Limited {
    pod: End,
    direction: Direction,
}

const LIMITED: [Limited; 2] = [
    Limited { pod: A, direction: Direction::FromPod },
    Limited { pod: B, direction: Direction::ToPod },
];

impl Limited {
    fn set(&self, node: &mut Node, limit: Limit) {
        let of = |direction| (self.direction == direction).then_some(limit);
        let limits = Limits { from_pod: of(Direction::FromPod), to_pod: of(Direction::ToPod) };
        node.limit(self.pod.id, limits);
    }

    fn drops(&self, node: &Node, reason: DropReason) -> u64 {
        node.drops(self.pod.id, self.direction, reason)
    }
}

/// In each setup, the same limit of A and then of B.
fn each_way(bits_per_s: u64, mut test: impl FnMut(&mut Node, &Limited, bool)) {
    each_setup(|setup, v6| {
        for limited in LIMITED {
            let mut node = Node::new(setup);
            limited.set(&mut node, limit(bits_per_s));
            test(&mut node, &limited, v6);
        }
    });
}

/// So many datagrams from A to B arrive, and the workers take them.
fn send(node: &mut Node, v6: bool, count: usize) {
    for _ in 0..count {
        node.inject(A.id, datagram(v6, &A, &B).build());
    }
    node.run();
}

#[test]
fn a_burst_leaves_at_once_and_the_rest_at_the_rate_in_both_directions() {
    each_way(SLOW, |node, _, v6| {
        send(node, v6, 10);
        // As long as there are tokens: three for the burst.
        assert_eq!(node.sent(B.id).len(), 3, "the burst");
        let rest = sent_over_time(node, &B, 8, 1_000 * US);
        assert_eq!(rest.iter().sum::<usize>(), 7, "all of it: {rest:?}");
        assert!(rest[..7].iter().all(|sent| *sent == 1), "one a millisecond: {rest:?}");
        assert_eq!(node.all_drops(), []);
    });
}

#[test]
fn what_waits_leaves_unchanged_and_in_order() {
    each_way(SLOW, |node, _, v6| {
        let packets: Vec<Packet> =
            (0..10u16).map(|number| datagram(v6, &A, &B).ports(number + 1, 2).marked(0)).collect();
        for packet in &packets {
            node.inject(A.id, packet.build());
        }
        for _ in 0..20 {
            node.run();
            node.advance(MS);
        }
        let expected: Vec<Vec<u8>> =
            packets.iter().map(|packet| packet.clone().forwarded(&B).build()).collect();
        let sent: Vec<Vec<u8>> =
            node.sent(B.id).into_iter().map(|Sent { bytes, .. }| bytes).collect();
        assert_eq!(sent, expected);
    });
}

#[test]
fn the_smaller_of_two_limits_on_the_way_holds() {
    each_setup(|setup, v6| {
        for (first, second) in [(SLOW, 4 * SLOW), (4 * SLOW, SLOW)] {
            let mut node = Node::new(setup);
            node.limit(A.id, from_pod(first));
            node.limit(B.id, to_pod(second));
            send(&mut node, v6, 20);
            assert_eq!(node.sent(B.id).len(), 3);
            let sent: usize = sent_over_time(&mut node, &B, 10, MS).iter().sum();
            assert!((10..=11).contains(&sent), "{sent} in 10 ms");
            sent_over_time(&mut node, &B, 10, MS);
        }
    });
}

#[test]
fn whoever_sends_to_a_limited_pod_is_held_to_its_limit_and_no_other_pod_is() {
    each_setup(|setup, v6| {
        for from in [&A, &NODE, &UPLINK] {
            let mut node = Node::new(setup);
            node.limit(B.id, to_pod(SLOW));
            for _ in 0..6 {
                node.inject(from.id, datagram(v6, from, &B).build());
                node.inject(from.id, datagram(v6, from, &PLAIN).check(Check::Complete).build());
            }
            node.run();
            assert_eq!(node.sent(B.id).len(), 3, "from {}", from.name);
            assert_eq!(node.sent(PLAIN.id).len(), 6, "from {}", from.name);
            assert_eq!(sent_over_time(&mut node, &B, 4, MS).iter().sum::<usize>(), 3);
        }
    });
}

#[test]
fn what_comes_by_a_host_port_is_limited_like_the_rest() {
    each_setup(|setup, v6| {
        let mut node = Node::new(Setup { host_ports: true, ..setup });
        node.publish(|tables| tables.host_ports = host_ports().into());
        node.limit(B.id, to_pod(SLOW));
        for _ in 0..6 {
            let asked = datagram(v6, &UPLINK, &NODE).ports(5_000, TO_B.host_port);
            node.inject(UPLINK.id, asked.build());
        }
        node.run();
        assert_eq!(node.sent(B.id).len(), 3);
        assert_eq!(sent_over_time(&mut node, &B, 4, MS).iter().sum::<usize>(), 3);
        assert_eq!(node.all_drops(), []);
    });
}

#[test]
fn a_super_packet_that_is_long_for_the_rate_is_cut_and_charged_by_segment() {
    each_way(SLOW, |node, _, v6| {
        let whole = packet().family(v6).from(&A).to(&B).tcp(1, 2).payload(14_000).marked(1_400);
        node.inject(A.id, whole.build());
        node.run();
        assert_eq!(node.sent(B.id).len(), 3, "the burst, less than three segments");
        // Ten segments are some 14,700 bytes, of which the burst and some more have left.
        let sent = sent_over_time(node, &B, 13, MS);
        assert_eq!(sent.iter().sum::<usize>(), 7, "{sent:?}");
        assert!(sent.iter().all(|sent| *sent <= 1), "{sent:?}");
        assert_eq!(node.counters(B.id, Direction::ToPod).wire_packets.get(), 10);
        assert_eq!(node.all_drops(), []);
    });
}

#[test]
fn the_segments_of_a_cut_super_packet_are_those_of_the_kernel() {
    each_way(SLOW, |node, _, v6| {
        let whole = packet().family(v6).from(&A).to(&B).tcp(1, 2).payload(7_000).marked(1_400);
        node.inject(A.id, whole.build());
        for _ in 0..10 {
            node.run();
            node.advance(MS);
        }
        let sent = node.sent(B.id);
        let sent: Vec<Vec<u8>> = sent.iter().map(super::merging::completed).collect();
        let expected: Vec<Vec<u8>> = whole
            .segments(1_400)
            .into_iter()
            .map(|segment| segment.check(Check::Complete).forwarded(&B).build())
            .collect();
        assert_eq!(sent, expected);
    });
}

#[test]
fn a_super_packet_that_is_short_for_the_rate_stays_whole_and_is_charged_as_on_a_wire() {
    each_way(100 * SLOW, |node, _, v6| {
        // 14,000 bytes of payload in ten segments: 14.7 KB, 147 µs. The second has to wait until
        // all but the burst is paid.
        let whole = packet().family(v6).from(&A).to(&B).tcp(1, 2).payload(14_000).marked(1_400);
        let on_wire = (14_000 + 10 * whole.header_len()) as u64;
        node.inject(A.id, whole.build());
        node.inject(A.id, whole.build());
        node.run();
        assert_eq!(node.sent(B.id).len(), 1, "it is larger than the burst, and leaves whole");
        let debt_ns = (on_wire - 3_000) * 10;
        node.advance(debt_ns - US);
        node.run();
        assert_eq!(node.sent(B.id).len(), 0, "not before the debt is paid");
        node.advance(12 * US); // the wheel's grain, and what was left
        node.run();
        assert_eq!(node.sent(B.id).len(), 1);
    });
}

#[test]
fn a_queue_that_is_too_long_drops_and_marks_before() {
    each_way(SLOW, |node, limited, v6| {
        for _ in 0..40 {
            // ECT(0), RFC 3168 §5.
            node.inject(A.id, datagram(v6, &A, &B).service(0x02).build());
        }
        node.run();
        // Three leave, 25 wait for 25 ms at most, and the debt of the third is one of them.
        let dropped = limited.drops(node, DropReason::ShaperFull);
        assert!((11..=13).contains(&dropped), "{dropped} dropped");
        let marked = node.counters(limited.pod.id, limited.direction).marked.get();
        assert!((11..=14).contains(&marked), "{marked} marked");
        let mut services = Vec::new();
        for _ in 0..30 {
            node.advance(MS);
            node.run();
            services.extend(node.sent(B.id).iter().map(|sent| match v6 {
                true => sent.bytes[14] << 4 | sent.bytes[15] >> 4,
                false => sent.bytes[15],
            }));
        }
        assert_eq!(services.iter().filter(|service| **service == 0x03).count() as u64, marked);
        assert!(services.is_sorted(), "the last ones are marked: {services:?}");
    });
}

#[test]
fn a_limit_that_goes_lets_go_what_waits_even_more_than_a_ring_holds() {
    each_setup(|setup, v6| {
        for limited in LIMITED {
            let mut node = Node::new(Setup { frames: 4_096, tx: BATCH_MAX, ..setup });
            limited.set(&mut node, limit(10 * SLOW));
            for _ in 0..5 {
                send(&mut node, v6, 40);
            }
            assert_eq!(node.sent(B.id).len(), 3);
            node.limit(limited.pod.id, Limits::default());
            node.run();
            assert_eq!(node.sent(B.id).len(), 197);
            assert_eq!(node.all_drops(), []);
        }
    });
}

#[test]
fn a_new_limit_of_one_direction_drops_nothing_of_the_other() {
    // Ten wait for 80 ms, as they always may.
    each_way(SLOW / 8, |node, limited, v6| {
        send(node, v6, 13);
        assert_eq!(node.sent(B.id).len(), 3);
        let both = Some(limit(SLOW / 8));
        node.limit(limited.pod.id, Limits { from_pod: both, to_pod: both });
        node.run();
        assert_eq!(sent_over_time(node, &B, 100, MS).iter().sum::<usize>(), 10);
        assert_eq!(node.all_drops(), []);
    });
}

#[test]
fn a_new_rate_holds_at_once_for_what_waits() {
    each_way(SLOW, |node, limited, v6| {
        send(node, v6, 13);
        assert_eq!(node.sent(B.id).len(), 3);
        limited.set(node, limit(10 * SLOW));
        node.run();
        let sent = sent_over_time(node, &B, 11, 100 * US);
        assert_eq!(sent.iter().sum::<usize>(), 10, "{sent:?}");
        assert_eq!(node.all_drops(), []);
    });
}

#[test]
fn a_lower_rate_drops_what_would_wait_too_long() {
    each_way(SLOW, |node, limited, v6| {
        send(node, v6, 26);
        assert_eq!(node.all_drops(), []);
        limited.set(node, limit(SLOW / 2));
        node.run();
        let dropped = limited.drops(node, DropReason::ShaperFull);
        assert!((10..=12).contains(&dropped), "12 of 23 wait for 25 ms: {dropped} dropped");
        sent_over_time(node, &B, 30, MS);
    });
}

#[test]
fn what_waits_at_a_port_that_goes_is_dropped() {
    each_way(SLOW, |node, limited, v6| {
        send(node, v6, 10);
        node.remove_port(limited.pod.id);
        node.run();
        assert_eq!(limited.drops(node, DropReason::PortDown), 7);
    });
}

#[test]
fn what_a_pod_sends_is_routed_when_it_leaves() {
    each_setup(|setup, v6| {
        let mut node = Node::new(setup);
        node.limit(A.id, from_pod(SLOW));
        send(&mut node, v6, 5);
        assert_eq!(node.sent(B.id).len(), 3);
        node.unlist(B.id);
        sent_over_time(&mut node, &A, 4, MS);
        assert_eq!(node.drops(A.id, Direction::FromPod, DropReason::NoPod), 2);
        assert_eq!(node.sent(B.id).len(), 0);
    });
}

#[test]
fn what_waits_when_the_worker_stops_is_sent() {
    for (v6, _) in FAMILIES {
        for limited in LIMITED {
            let mut node = Node::new(Setup::default());
            limited.set(&mut node, limit(SLOW));
            send(&mut node, v6, 10);
            node.stop();
            assert_eq!(node.sent(B.id).len(), 10);
        }
    }
}

#[test]
fn spoofed_packets_are_not_charged() {
    each_setup(|setup, v6| {
        let mut node = Node::new(setup);
        node.limit(A.id, from_pod(SLOW));
        let stranger = if v6 { "fd00:10:244:1::77" } else { "10.244.1.77" };
        for _ in 0..20 {
            node.inject(A.id, datagram(v6, &A, &B).src(stranger).build());
        }
        send(&mut node, v6, 3);
        assert_eq!(node.sent(B.id).len(), 3);
    });
}
