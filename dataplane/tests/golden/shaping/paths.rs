//! Limits on every way to and from a pod: by host ports through two workers, in fragments, merged,
//! and what the worker says itself.

use std::time::{Duration, Instant};

use dataplane::drop::DropReason;
use dataplane::shaper::{Limit, Limits};
use dataplane::sim::Sent;

use super::{
    LIMITED, Limited, MS, SLOW, US, datagram, each_setup, each_way, from_pod, limit, send,
};
use super::{sent_over_time, to_pod};
use crate::harness::packet::{Check, packet};
use crate::harness::{
    A, B, C, Direction, FAR_V4, FAR_V6, NARROW, NOBODY_V4, NOBODY_V6, NODE, Node,
};
use crate::harness::{End, PLAIN, Setup, TO_B, UPLINK, VETH_UPLINK, host_ports};
use crate::sizes::vxlan;

/// 20 ms, more than anything below waits for.
fn later(node: &mut Node, to: &End) -> usize {
    sent_over_time(node, to, 20, MS).iter().sum()
}

#[test]
fn a_pod_with_a_host_port_is_limited_in_both_directions() {
    each_setup(|setup, v6| {
        for client in [&UPLINK, &VETH_UPLINK, &A] {
            let mut node = Node::new(Setup { host_ports: true, ..setup });
            node.publish(|tables| tables.host_ports = host_ports().into());
            node.limit(B.id, Limits { from_pod: Some(limit(SLOW)), to_pod: Some(limit(SLOW)) });
            for _ in 0..6 {
                let asked = datagram(v6, client, &NODE).ports(5_000, TO_B.host_port);
                node.inject(client.id, asked.build());
            }
            node.run();
            assert_eq!(node.sent(B.id).len(), 3, "from {}", client.name);
            for _ in 0..6 {
                node.inject(B.id, datagram(v6, &B, client).ports(TO_B.port, 5_000).build());
            }
            node.run();
            let way = if client.id == A.id { A } else { uplink_of_b(setup) };
            let mut replies = node.sent(way.id);
            assert_eq!(replies.len(), 3, "to {}", client.name);
            assert_eq!(sent_over_time(&mut node, &B, 4, MS).iter().sum::<usize>(), 3);
            replies.extend(node.sent(way.id));
            assert_eq!(replies.len(), 6, "to {}", client.name);
            let reply = datagram(v6, &NODE, client).ports(TO_B.host_port, 5_000).from(&NODE);
            let reply = reply.forwarded(&way).build();
            assert!(replies.iter().all(|sent| sent.bytes == reply), "translated when it leaves");
            assert_eq!(node.all_drops(), []);
        }
    });
}

fn uplink_of_b(setup: Setup) -> End {
    if setup.workers == 2 { VETH_UPLINK } else { UPLINK }
}

#[test]
fn each_fragment_is_charged_by_itself() {
    each_setup(|setup, _| {
        let mut node = Node::new(setup);
        node.limit(PLAIN.id, to_pod(SLOW));
        // Three fragments of 1500 bytes at most; the burst is two of them.
        let long = packet().from(&A).to(&PLAIN).payload(4_000).may_fragment();
        for _ in 0..2 {
            node.inject(A.id, long.build());
        }
        node.run();
        assert_eq!(node.sent(PLAIN.id).len(), 2, "the burst");
        let sent = sent_over_time(&mut node, &PLAIN, 8, MS);
        assert_eq!(sent.iter().sum::<usize>(), 4, "{sent:?}");
        assert!(sent.iter().all(|sent| *sent <= 2), "{sent:?}");
        assert_eq!(node.all_drops(), []);
    });
}

#[test]
fn fragments_of_a_limited_pod_follow_their_first_to_a_host_ports_client() {
    each_setup(|setup, v6| {
        let mut node = Node::new(Setup { host_ports: true, ..setup });
        let way = uplink_of_b(setup);
        let asked = datagram(v6, &UPLINK, &NODE).ports(5_000, TO_B.host_port);
        node.inject(UPLINK.id, asked.build());
        node.run();
        node.limit(B.id, from_pod(SLOW));
        let answer = packet().family(v6).from(&B).to(&UPLINK).udp(TO_B.port, 5_000);
        for fragment in answer.may_fragment().payload(10_000).fragments(1_400) {
            node.inject(B.id, fragment.build());
        }
        node.run();
        assert_eq!(node.sent(way.id).len(), 3);
        assert_eq!(later(&mut node, &way), 5);
        assert_eq!(node.all_drops(), []);
    });
}

#[test]
fn errors_that_a_pod_is_told_pay_its_limit() {
    each_setup(|setup, v6| {
        let mut node = Node::new(setup);
        node.limit(A.id, to_pod(SLOW));
        let nobody = if v6 { NOBODY_V6 } else { NOBODY_V4 };
        for _ in 0..3 {
            node.inject(B.id, datagram(v6, &B, &A).build());
        }
        node.run();
        node.inject(A.id, packet().family(v6).from(&A).dst(nobody).build());
        node.run();
        let counters = node.counters(A.id, Direction::ToPod);
        assert_eq!(counters.packets.get(), 3, "the error waits behind what came before it");
        assert_eq!(later(&mut node, &A), 4);
        assert_eq!(node.drops(A.id, Direction::FromPod, DropReason::NoPod), 1);
    });
}

#[test]
fn what_a_limited_pod_must_not_send_is_refused_when_it_is_its_turn_and_it_is_told() {
    each_setup(|setup, v6| {
        let mut node = Node::new(setup);
        node.limit(A.id, from_pod(SLOW));
        for to in [&B, &B, &B, &C] {
            let packet = packet().family(v6).from(&A).to(to).payload(1_400);
            node.inject(A.id, packet.build());
        }
        node.run();
        assert_eq!(node.sent(A.id).len(), 0, "it waits");
        assert_eq!(later(&mut node, &A), 1, "packet too big for C");
        assert_eq!(node.drops(A.id, Direction::FromPod, DropReason::MtuExceeded), 1);
    });
}

#[test]
fn a_stream_without_marks_is_cut_to_what_its_way_takes() {
    each_setup(|setup, v6| {
        for rate in [SLOW, 1_000 * SLOW] {
            let mut node = Node::new(setup);
            node.limit(A.id, from_pod(rate));
            let stream = packet().family(v6).from(&A).tcp(1, 2).check(Check::Partial);
            let narrow = NARROW[usize::from(v6)];
            node.inject(A.id, stream.clone().dst(narrow).payload(9_000).build());
            node.run();
            let sent = node.sent(UPLINK.id);
            assert_eq!(node.all_drops(), [], "{rate}");
            assert!(sent.len() > 7, "{rate}: {} segments", sent.len());
            assert!(sent.iter().all(|sent| sent.bytes.len() <= 14 + 1_280));
        }
    });
}

#[test]
fn a_super_packet_in_a_tunnel_is_charged_as_on_a_wire_and_stays_whole() {
    each_way(SLOW, |node, _, v6| {
        let (large, partial) = vxlan(v6, 20_000, 1_350);
        let large = large.to(&B);
        node.inject(A.id, large.build());
        node.inject(A.id, datagram(v6, &A, &B).build());
        node.run();
        let sent = Sent { bytes: large.clone().forwarded(&B).build(), partial: Some(partial) };
        assert_eq!(node.sent(B.id), [sent]);
        let headers = usize::from(partial.start) + 20;
        let debt = (large.build().len() + 14 * headers - 3_000) as u64;
        node.advance(debt * US);
        node.run();
        assert_eq!(node.sent(B.id).len(), 0, "the next one waits until that is paid");
        node.advance(10 * US);
        node.run();
        assert_eq!(node.sent(B.id).len(), 1);
    });
}

#[test]
fn segments_are_not_merged_to_what_would_be_cut_for_the_pods_limit() {
    each_setup(|setup, v6| {
        let stream = packet().family(v6).from(&UPLINK).to(&B).tcp(1, 2);
        // 64 KiB take 600 us at 874 Mbit/s; so do 300 segments of 200 bytes, each with its headers,
        // at this rate.
        let rate = 300 * (200 + stream.header_len()) as u64 * 8_000 * MS / (600 * US);
        for (rate, count, size, merged) in [
            (None, 10, 1_400, 1),
            (Some(880_000_000), 10, 1_400, 1),
            (Some(870_000_000), 10, 1_400, 10),
            (Some(rate), 300, 200, 1),
            (Some(rate - 1), 300, 200, 2),
        ] {
            let mut node = Node::new(setup);
            let queue_ns = 25 * MS;
            let limit = rate.map(|bits_per_s| Limit { bits_per_s, burst_bytes: 65_536, queue_ns });
            node.limit(B.id, Limits { from_pod: None, to_pod: limit });
            for segment in stream.clone().payload(count * size).segments(size) {
                node.inject(UPLINK.id, segment.build());
            }
            node.run();
            let sent = node.sent(B.id).len() + later(&mut node, &B);
            assert_eq!(sent, merged, "{rate:?}");
            assert_eq!(node.all_drops(), []);
        }
    });
}

#[test]
fn a_port_that_is_built_again_has_its_limits_at_once() {
    each_way(SLOW, |node, limited, v6| {
        node.run();
        node.remove_port(limited.pod.id);
        node.run();
        node.reclaim_port(limited.pod.id);
        node.run();
        node.add_port(limited.pod.id);
        node.run();
        send(node, v6, 6);
        assert_eq!(node.sent(B.id).len(), 3);
        assert_eq!(later(node, &B), 3);
    });
}

#[test]
fn ports_that_go_take_no_others_place_in_line() {
    each_setup(|setup, v6| {
        let mut node = Node::new(setup);
        node.limit(B.id, to_pod(SLOW));
        node.limit(C.id, to_pod(SLOW));
        for to in [&B, &C] {
            for _ in 0..6 {
                node.inject(A.id, datagram(v6, &A, to).build());
            }
        }
        node.run();
        assert_eq!((node.sent(B.id).len(), node.sent(C.id).len()), (3, 3));
        node.remove_port(B.id);
        node.run();
        let sent = sent_over_time(&mut node, &C, 4, MS);
        assert_eq!(sent.iter().sum::<usize>(), 3, "{sent:?}");
        assert_eq!(node.drops(C.id, Direction::ToPod, DropReason::PortDown), 0);
    });
}

#[test]
fn what_a_pod_waits_to_send_is_dropped_when_the_tables_forget_it_and_what_it_is_to_get_is_not() {
    each_way(SLOW, |node, limited, v6| {
        send(node, v6, 6);
        node.unlist(limited.pod.id);
        node.run();
        let arrive = if limited.direction == Direction::FromPod { 3 } else { 6 };
        assert_eq!(node.sent(B.id).len(), arrive, "{}", limited.pod.name);
        let dropped = node.drops(A.id, Direction::FromPod, DropReason::PortDown);
        assert_eq!(dropped as usize, 6 - arrive);
    });
}

#[test]
fn a_clock_that_steps_keeps_nobody_waiting_and_gives_no_more_than_a_burst() {
    each_way(SLOW, |node, _, v6| {
        send(node, v6, 13);
        assert_eq!(node.sent(B.id).len(), 3);
        node.set_time(node.now_ns() - 900 * MS);
        node.run();
        assert_eq!(node.sent(B.id).len(), 0, "back");
        node.advance(500 * US);
        node.run();
        assert_eq!(node.sent(B.id).len(), 1, "it was its turn when the clock stepped");
        assert_eq!(sent_over_time(node, &B, 4, MS), [1; 4]);
        node.advance(3_600_000 * MS);
        node.run();
        assert_eq!(node.sent(B.id).len(), 3, "a burst");
        assert_eq!(later(node, &B), 2);
    });
}

#[test]
fn a_direction_without_a_limit_is_not_limited() {
    each_setup(|setup, v6| {
        let mut node = Node::new(setup);
        node.limit(A.id, from_pod(SLOW));
        node.limit(B.id, to_pod(SLOW));
        let far = if v6 { FAR_V6 } else { FAR_V4 };
        for _ in 0..20 {
            node.inject(B.id, datagram(v6, &B, &A).build());
            node.inject(C.id, datagram(v6, &C, &C).dst(far).build());
        }
        node.run();
        assert_eq!((node.sent(A.id).len(), node.sent(NODE.id).len()), (20, 20));
    });
}

#[test]
fn how_a_line_stands_is_published_and_nothing_of_a_line_that_is_gone() {
    each_way(SLOW, |node, limited, v6| {
        send(node, v6, 6);
        let stands = |node: &mut Node| {
            node.housekeep();
            let counters = node.counters(limited.pod.id, limited.direction);
            (counters.queued_bytes.get(), counters.tokens.get() as i64)
        };
        assert_eq!(stands(node), (3_000, 0), "{}", limited.pod.name);
        node.advance(100 * US);
        node.run();
        assert_eq!(stands(node), (2_000, -900));
        node.limit(limited.pod.id, Limits::default());
        node.run();
        assert_eq!(stands(node), (0, 0));
        limited.set(node, limit(SLOW));
        send(node, v6, 6);
        assert_eq!(stands(node), (3_000, 0), "a new bucket");
        node.remove_port(limited.pod.id);
        node.run();
        assert_eq!(stands(node), (0, 0));
    });
}

#[test]
fn a_line_with_much_to_send_does_not_keep_the_others_waiting() {
    each_setup(|setup, v6| {
        let mut node = Node::new(Setup { tx: 1_024, frames: 4_096, ..setup });
        let fast = Limit { bits_per_s: 1_000_000_000, burst_bytes: 1_000_000, queue_ns: MS };
        node.limit(B.id, Limits { to_pod: Some(fast), ..Limits::default() });
        node.limit(C.id, to_pod(SLOW));
        for round in 0..24 {
            for _ in 0..60 {
                node.inject(A.id, datagram(v6, &A, &B).build());
            }
            if round == 0 {
                (0..4).for_each(|_| node.inject(A.id, datagram(v6, &A, &C).build()));
            }
            node.run();
        }
        node.sent(C.id);
        node.advance(2 * MS);
        let before = node.sent(B.id).len();
        assert_eq!(before, 1_000, "the burst");
        let home = setup.workers - 1;
        node.pass(home);
        assert_eq!(node.sent(B.id).len(), 64, "of one line in one pass");
        assert_eq!(node.sent(C.id).len(), 1, "and of the other");
        node.run();
        assert!(node.sent(B.id).len() > 30, "the rest in the next ones");
    });
}

#[test]
fn packets_wait_on_frames_that_others_can_spare() {
    each_setup(|setup, v6| {
        let mut node = Node::new(setup);
        let slow = Limit { bits_per_s: SLOW, burst_bytes: 3_000, queue_ns: 10_000 * MS };
        node.limit(B.id, Limits { to_pod: Some(slow), ..Limits::default() });
        for _ in 0..1_000 {
            node.inject(A.id, datagram(v6, &A, &B).build());
        }
        node.run();
        let home = node.worker(setup.workers - 1);
        assert!(home.held.get() * 3 < home.frames_free.get(), "{home:?}");
        assert!(node.drops(B.id, Direction::ToPod, DropReason::ShaperNoFrames) > 500);
        assert_eq!(node.drops(B.id, Direction::ToPod, DropReason::ShaperFull), 0);
        node.limit(B.id, Limits::default());
        node.run();
    });
}

/// How long a worker, which sleeps in between, takes to send so many datagrams when each but the
/// first waits for its turn: never two at once, after a long sleep there is one turn.
fn time_of_turns(limited: &Limited, bits_per_s: u64, datagrams: usize) -> Duration {
    let mut node = Node::new(Setup::default());
    limited.set(&mut node, Limit { bits_per_s, burst_bytes: 1, queue_ns: 100 * MS });
    for _ in 0..datagrams {
        node.inject(A.id, datagram(false, &A, &B).build());
    }
    let start = Instant::now();
    node.run_until_sent(B.id, datagrams);
    start.elapsed()
}

#[test]
fn a_worker_sleeps_until_it_is_somebodys_turn_and_no_longer() {
    for limited in LIMITED {
        // One each 5 ms. Sleeping as long as it may with nothing to do, it would take 2.5 s.
        let took = time_of_turns(&limited, 1_600_000, 11);
        assert!(took >= Duration::from_millis(49), "{took:?} for ten packets that wait");
        assert!(took < Duration::from_millis(1_250), "{took:?} for ten packets that wait");
        // One each 200 µs: in sleeps of whole milliseconds 50 of them take 50 ms at least. One of
        // many tries is enough, because the machine may be busy.
        let in_time = |_| time_of_turns(&limited, 40_000_000, 51) < Duration::from_millis(35);
        assert!((0..200).any(in_time), "none of 200 times");
    }
}

#[test]
fn segments_that_find_no_frame_are_counted_where_the_limit_is() {
    for limited in LIMITED {
        // Six frames are free; 20,000 bytes are 15 segments.
        let mut node = Node::new(Setup { frames: 70, fill: 8, ..Setup::default() });
        limited.set(&mut node, limit(SLOW));
        let whole = packet().from(&A).to(&B).tcp(1, 2).payload(20_000).marked(1_400);
        node.inject(A.id, whole.build());
        node.run();
        assert_eq!(limited.drops(&node, DropReason::NoFrames), 9, "{}", limited.pod.name);
        assert_eq!(node.sent(B.id).len() + later(&mut node, &B), 6);
    }
}
