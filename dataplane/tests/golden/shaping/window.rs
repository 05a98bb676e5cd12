//! The law of limits through a whole worker, whatever packets come: in every window, no more than
//! rate · time + burst + one packet; nothing overtakes; and whatever waits has left when the rate
//! has had time for it.

use dataplane::drop::DropReason;
use dataplane::shaper::{Limit, Limits};
use proptest::prelude::*;

use super::MS;
use crate::harness::packet::{Packet, packet};
use crate::harness::{A, B, Direction, End, NOBODY_V4, NODE, Node, Setup, UPLINK};

/// Billionths of a bit in a byte.
const PER_BYTE: u128 = 8_000_000_000;

/// So many packets of a kind, and the time until the next ones.
#[derive(Clone, Debug)]
struct Burst {
    from: usize,
    v6: bool,
    kind: u8,
    payload: usize,
    count: usize,
    then_ns: u64,
}

/// Whoever sends to B.
const SENDERS: [&End; 3] = [&A, &NODE, &UPLINK];

impl Burst {
    fn packet(&self) -> Packet {
        let from = SENDERS[self.from];
        let packet = packet().family(self.v6).from(from).to(&B).payload(self.payload);
        let super_packet = 8 * self.payload + 1;
        match (self.kind, from.id == A.id) {
            (0, true) => packet.tcp(1, 2).payload(super_packet).marked(1_400),
            (1, true) => packet.udp(1, 2).payload(super_packet).marked(1_200),
            (2, _) => packet.udp(1, 2).payload(super_packet.min(3_000)).may_fragment(),
            (3, _) => packet.icmp(8, 0),
            (4, _) => packet.udp(1, 2).service(2),
            _ => packet.tcp(1, 2),
        }
    }
}

fn burst() -> impl Strategy<Value = Burst> {
    let payload = prop_oneof![Just(0), 1..200usize, 1_000..1_400usize, Just(1_400usize)];
    let then_ns = prop_oneof![0..1_000u64, 0..500_000u64, 0..20_000_000u64];
    (0..SENDERS.len(), any::<bool>(), 0..6u8, payload, 1..30usize, then_ns).prop_map(
        |(from, v6, kind, payload, count, then_ns)| Burst {
            from,
            v6,
            kind,
            payload,
            count,
            then_ns,
        },
    )
}

fn limit() -> impl Strategy<Value = Limit> {
    (1_000_000..2_000_000_000u64, 1..100_000u64, 0..30 * MS)
        .prop_map(|(bits_per_s, burst_bytes, queue_ns)| Limit { bits_per_s, burst_bytes, queue_ns })
}

/// What has left a line, and when: bytes on a wire of each pass.
struct Meter {
    limit: Limit,
    counted: u64,
    left: Vec<(u64, u64)>,
}

impl Meter {
    fn new(limit: Limit) -> Meter {
        Meter { limit, counted: 0, left: Vec::new() }
    }

    fn read(&mut self, now_ns: u64, counted: u64) {
        let bytes = counted - self.counted;
        self.counted = counted;
        if bytes > 0 {
            self.left.push((now_ns, bytes));
        }
    }

    /// In no window there is more than the limit allows, `unit` being the longest packet.
    fn assert_every_window(&self, unit: u64, name: &str) {
        let burst = u128::from(self.limit.burst_bytes + unit) * PER_BYTE;
        for (first, (from_ns, _)) in self.left.iter().enumerate() {
            let mut bytes = 0;
            for (to_ns, more) in &self.left[first..] {
                bytes += u128::from(*more) * PER_BYTE;
                let brings = u128::from(self.limit.bits_per_s) * u128::from(to_ns - from_ns);
                assert!(bytes <= brings + burst, "{name}: {from_ns} to {to_ns}: {:?}", self.left);
            }
        }
    }
}

/// Bytes on a wire of the longest packet that may leave uncut: what takes 600 us at the rate, or
/// one frame of any kind.
fn unit(limit: &Limit) -> u64 {
    (limit.bits_per_s * 3 / 40_000).max(3_100)
}

fn shaped(node: &mut Node, meters: &mut [Meter; 2], step_ns: u64) {
    node.advance(step_ns);
    node.run();
    let now_ns = node.now_ns();
    meters[0].read(now_ns, node.counters(A.id, Direction::FromPod).wire_bytes.get());
    meters[1].read(now_ns, node.counters(B.id, Direction::ToPod).wire_bytes.get());
}

fn held(node: &Node) -> u64 {
    (0..node.workers()).map(|worker| node.worker(worker).held.get()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn in_every_window_no_more_leaves_than_both_limits_allow(
        workers in 1..=2usize,
        (from_a, to_b) in (limit(), limit()),
        bursts in prop::collection::vec(burst(), 1..25),
    ) {
        let mut node = Node::new(Setup { workers, frames: 4_096, tx: 2_048, ..Setup::default() });
        node.limit(A.id, Limits { from_pod: Some(from_a), to_pod: None });
        node.limit(B.id, Limits { from_pod: None, to_pod: Some(to_b) });
        node.run();
        let mut meters = [from_a, to_b].map(Meter::new);
        for burst in &bursts {
            for _ in 0..burst.count {
                node.inject(SENDERS[burst.from].id, burst.packet().build());
            }
            // B has no limit of what it sends: an error that it gets back is one of the packets
            // for it.
            node.inject(B.id, packet().from(&B).dst(NOBODY_V4).build());
            shaped(&mut node, &mut meters, 0);
            for _ in 0..4 {
                shaped(&mut node, &mut meters, burst.then_ns / 4);
            }
        }
        // A fragment has one more header than the packet has that it is part of: A is charged for
        // what it sends.
        let fragmented = |burst: &&Burst| burst.kind == 2 && burst.from == 0;
        let headers: usize = bursts.iter().filter(fragmented).map(|b| b.count * 2 * 34).sum();
        meters[0].assert_every_window(unit(&from_a) + headers as u64, "from A");
        meters[1].assert_every_window(unit(&to_b), "to B");
        // Everything that waits leaves in the time that it takes, at most: what A has in its line,
        // the queue of 30 ms or ten packets, and B after it. Where the burst is one byte, a step
        // of 1 ms sees to one packet.
        let slowest = from_a.bits_per_s.min(to_b.bits_per_s);
        let ten = 10 * unit(&from_a).max(unit(&to_b)) * 8_000_000_000 / slowest;
        for _ in 0..2 * ((30 * MS + ten) / MS + held(&node)) {
            shaped(&mut node, &mut meters, MS);
        }
        prop_assert_eq!(held(&node), 0);
        for (_, _, reason, _) in node.all_drops() {
            let is_of_limits = [DropReason::ShaperFull, DropReason::ShaperNoFrames].contains(&reason);
            let is_of_input = [DropReason::MtuExceeded, DropReason::NoPod, DropReason::NoFrames,
                DropReason::TinySegments, DropReason::RxFillEmpty, DropReason::CrossingFull]
                .contains(&reason);
            prop_assert!(is_of_limits || is_of_input, "{:?}", reason);
        }
    }

    #[test]
    fn the_datagrams_of_a_flow_leave_in_order_through_both_limits(
        workers in 1..=2usize,
        (from_a, to_b) in (limit(), limit()),
        steps in prop::collection::vec((1..40u16, 0..3_000_000u64), 1..30),
    ) {
        let mut node = Node::new(Setup { workers, ..Setup::default() });
        node.limit(A.id, Limits { from_pod: Some(from_a), to_pod: None });
        node.limit(B.id, Limits { from_pod: None, to_pod: Some(to_b) });
        let (mut number, mut sent) = (0u16, Vec::new());
        for (count, ns) in steps {
            for _ in 0..count {
                number += 1;
                let payload = 100 + usize::from(number) * 37 % 1_200;
                let datagram = packet().from(&A).to(&B).payload(payload).ports(number, 2);
                node.inject(A.id, datagram.build());
            }
            node.run();
            node.advance(ns);
            node.run();
            sent.extend(node.sent(B.id));
        }
        let numbers: Vec<u16> =
            sent.iter().map(|sent| u16::from_be_bytes([sent.bytes[34], sent.bytes[35]])).collect();
        prop_assert!(numbers.is_sorted(), "{numbers:?}");
    }
}
