//! Full rings, no frames, ports that come and go, and what the kernel drops itself.

use dataplane::drop::DropReason;
use dataplane::frame::{FRAME_BYTES, HEADROOM};

use crate::FAMILIES;
use crate::harness::packet::{Packet, icmp_error, packet};
use crate::harness::{A, B, Direction, ENDS, FAR_V4, NODE, Node, Setup};

/// Frames that the ports of a worker of their own keep in their fill rings.
const FILLED: u32 = 64;

fn a_to_b(port: u16) -> Packet {
    packet().from(&A).to(&B).udp(port, 7).payload(10)
}

#[test]
fn packets_of_one_flow_stay_in_order() {
    for workers in [1, 2] {
        let mut node = Node::new(Setup { workers, ..Setup::default() });
        for port in 0..300 {
            node.inject(A.id, a_to_b(port).build());
        }
        node.run();
        let sent: Vec<Vec<u8>> = node.sent(B.id).into_iter().map(|sent| sent.bytes).collect();
        let expected: Vec<Vec<u8>> =
            (0..300).map(|port| a_to_b(port).forwarded(&B).build()).collect();
        assert_eq!(sent, expected, "{workers} workers");
    }
}

#[test]
fn a_pod_that_takes_nothing_loses_what_its_ring_cannot_hold_and_nobody_else_does() {
    for workers in [1, 2] {
        let mut node = Node::new(Setup { workers, tx: 4, ..Setup::default() });
        node.stall(B.id, true);
        for port in 0..10 {
            node.inject(A.id, a_to_b(port).build());
            node.inject(A.id, packet().from(&A).dst(FAR_V4).payload(1).build());
            node.run();
        }
        assert_eq!(node.sent(B.id).len(), 4);
        assert_eq!(node.sent(NODE.id).len(), 10);
        let full = (B.id, Direction::ToPod, DropReason::TxRingFull, 6);
        assert_eq!(node.all_drops(), [full]);
        node.stall(B.id, false);
        node.run();
        node.inject(A.id, a_to_b(99).build());
        node.run();
        assert_eq!(node.sent(B.id).len(), 1);
        assert_eq!(node.all_drops(), [full]);
    }
}

#[test]
fn a_super_packet_that_does_not_fit_the_ring_is_dropped_whole() {
    let mut node = Node::new(Setup { tx: 4, ..Setup::default() });
    let large = |bytes| packet().from(&A).to(&B).tcp(1, 2).payload(bytes).marked(1400).build();
    node.inject(A.id, large(4 * 3840 - 54 + 1)); // five frames
    node.run();
    assert_eq!(node.all_drops(), [(B.id, Direction::ToPod, DropReason::TxRingFull, 1)]);
    node.inject(A.id, large(4 * 3840 - 54)); // four
    node.run();
    assert_eq!(node.sent(B.id).len(), 1);
}

#[test]
fn a_port_that_lacks_frames_is_given_more() {
    let mut node = Node::new(Setup { fill: 4, ..Setup::default() });
    node.burst(A.id);
    let mut arrived_of_eight = || {
        (0..8).for_each(|port| node.inject(A.id, a_to_b(port).build()));
        node.run();
        node.housekeep();
        node.sent(B.id).len()
    };
    assert_eq!(arrived_of_eight(), 4);
    assert_eq!(arrived_of_eight(), 8);
    assert_eq!(node.all_drops(), [(A.id, Direction::FromPod, DropReason::RxFillEmpty, 4)]);
}

#[test]
fn what_the_interface_refuses_is_counted_beside_what_was_sent() {
    let mut node = Node::new(Setup::default());
    node.refuse(B.id, 2);
    for port in 0..3 {
        node.inject(A.id, a_to_b(port).build());
    }
    node.run();
    assert_eq!(node.all_drops(), [(B.id, Direction::ToPod, DropReason::TxRefused, 2)]);
    assert_eq!(node.worker(0).sent.get(), 3);
}

#[test]
fn a_receiver_without_frames_drops_what_crosses() {
    // Each worker has three ports, which take all frames there are.
    let mut node = Node::new(Setup { workers: 2, frames: 3 * FILLED, ..Setup::default() });
    node.inject(A.id, a_to_b(1).build());
    node.run();
    assert_eq!(node.all_drops(), [(B.id, Direction::ToPod, DropReason::NoFrames, 1)]);
    assert!(node.sent(B.id).is_empty());
    // On the sender's own worker none is needed.
    node.inject(A.id, packet().from(&A).dst(FAR_V4).build());
    node.run();
    assert_eq!(node.sent(NODE.id).len(), 1);
}

#[test]
fn without_frames_nothing_is_answered() {
    let request = [
        [0xff; 6].as_slice(),
        &A.mac,
        &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1],
        &A.mac,
        &A.v4.octets(),
        &[0, 0, 0, 0, 0, 0, 169, 254, 1, 1],
    ];
    let expired = a_to_b(1).ttl(1).build();
    let ports = ENDS.len() as u32;
    for (bytes, reason) in
        [(request.concat(), DropReason::NoFrames), (expired, DropReason::TtlExpired)]
    {
        for (spare, answers) in [(0, 0), (1, 1)] {
            let mut node = Node::new(Setup { frames: ports * FILLED + spare, ..Setup::default() });
            node.inject(A.id, bytes.clone());
            node.run();
            assert_eq!(node.sent(A.id).len(), answers, "{reason:?}, {spare} spare");
            let dropped = reason == DropReason::TtlExpired || spare == 0;
            assert_eq!(node.drops(A.id, Direction::FromPod, reason), u64::from(dropped));
        }
    }
}

#[test]
fn a_super_packet_is_cut_as_far_as_the_frames_go() {
    let ports = ENDS.len() as u32;
    for spare in 0..8 {
        let mut node = Node::new(Setup { frames: ports * FILLED + spare, ..Setup::default() });
        // 10 segments in 3 frames, which the ports refill from the spare ones later.
        let large = packet().from(&A).dst(FAR_V4).tcp(1, 2).payload(10_000).marked(1000);
        node.inject(A.id, large.build());
        node.run();
        let sent = u64::from(spare.min(10));
        assert_eq!(node.sent(NODE.id).len() as u64, sent, "{spare} frames");
        assert_eq!(node.drops(A.id, Direction::FromPod, DropReason::NoFrames), 10 - sent);
        assert_eq!(node.worker(0).generated.get(), 9);
    }
}

#[test]
fn a_ring_between_workers_that_is_full_drops_at_the_sender() {
    let mut node = Node::new(Setup { workers: 2, frames: 2048, ..Setup::default() });
    const SENT: u64 = 1100;
    for port in 0..SENT as u16 {
        node.inject(A.id, a_to_b(port).build());
    }
    for _ in 0..SENT.div_ceil(64) {
        node.pass(0); // the other worker does not run
    }
    let lost = SENT - 1024;
    assert_eq!(node.all_drops(), [(A.id, Direction::FromPod, DropReason::CrossingFull, lost)]);
    node.run();
    assert_eq!(node.sent(B.id).len(), 1024);
    node.inject(A.id, a_to_b(1).build());
    node.run();
    assert_eq!(node.sent(B.id).len(), 1);
}

#[test]
fn a_super_packet_crosses_whole() {
    let mut node = Node::new(Setup { workers: 2, ..Setup::default() });
    for (v6, _) in FAMILIES {
        let large = packet().from(&A).to(&B).family(v6).tcp(1, 2).payload(65_000).marked(1400);
        node.inject(A.id, large.build());
        node.run();
        let sent = node.sent(B.id);
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].bytes, large.clone().forwarded(&B).build());
        assert_eq!(sent[0].partial, Some(large.partial()));
    }
}

#[test]
fn packets_under_way_to_a_port_that_goes_are_dropped() {
    let mut node = Node::new(Setup { workers: 2, ..Setup::default() });
    node.inject(A.id, a_to_b(1).build());
    node.pass(0);
    node.remove_port(B.id);
    node.run();
    assert_eq!((node.worker(1).dropped.get(), node.worker(1).port_down.get()), (1, 1));
    assert!(node.all_drops().is_empty(), "no port is left to count it for");
    // Gone from the tables as well, the address is one without a pod.
    node.unlist(B.id);
    node.inject(A.id, a_to_b(2).build());
    node.run();
    assert_eq!(node.all_drops(), [(A.id, Direction::FromPod, DropReason::NoPod, 1)]);
    let error = icmp_error(&A, &a_to_b(2).build(), 3, 1, 0);
    assert_eq!(node.sent(A.id)[0].bytes, error);
    // Its number is used again.
    node.reclaim_port(B.id);
    node.add_port(B.id);
    node.list(&B);
    node.inject(A.id, a_to_b(3).build());
    node.run();
    assert_eq!(node.sent(B.id)[0].bytes, a_to_b(3).forwarded(&B).build());
}

#[test]
fn a_packet_without_frames_to_a_port_that_went_is_counted_by_the_worker() {
    // Each worker has three ports, which take all frames there are.
    let mut node = Node::new(Setup { workers: 2, frames: 3 * FILLED, ..Setup::default() });
    node.inject(A.id, a_to_b(1).build());
    node.pass(0);
    node.remove_port(B.id);
    node.run();
    assert_eq!((node.worker(1).dropped.get(), node.worker(1).port_down.get()), (1, 1));
    assert_eq!(node.all_drops(), []);
}

#[test]
fn a_port_that_the_tables_do_not_know_forwards_nothing() {
    let mut node = Node::new(Setup::default());
    node.unlist(A.id);
    node.inject(A.id, a_to_b(1).build());
    node.run();
    assert_eq!(node.all_drops(), [(A.id, Direction::FromPod, DropReason::PortDown, 1)]);
    node.list(&A);
    node.inject(A.id, a_to_b(1).build());
    node.run();
    assert_eq!(node.sent(B.id).len(), 1);
}

#[test]
fn removing_any_port_leaves_the_others_served() {
    for gone in ENDS {
        let mut node = Node::new(Setup::default());
        node.remove_port(gone.id);
        node.unlist(gone.id);
        node.run();
        for end in ENDS.into_iter().filter(|end| end.id != gone.id && end.is_pod()) {
            let packet = packet().from(end).to(end).payload(2);
            node.inject(end.id, packet.build());
            node.run();
            let sent = node.sent(end.id);
            assert_eq!(sent.len(), 1, "{} without {}", end.name, gone.name);
            assert_eq!(sent[0].bytes, packet.forwarded(end).build());
        }
    }
}

#[test]
fn what_the_kernel_drops_becomes_a_reason_of_the_port() {
    let mut node = Node::new(Setup::default());
    for port in 0..100 {
        node.inject(A.id, a_to_b(port).build());
    }
    node.burst(A.id);
    node.run();
    assert_eq!(node.sent(B.id).len(), FILLED as usize);
    node.remove_port(A.id);
    node.run();
    let lost = 100 - u64::from(FILLED);
    assert_eq!(node.all_drops(), [(A.id, Direction::FromPod, DropReason::RxFillEmpty, lost)]);
}

#[test]
fn descriptors_that_name_no_frame_of_the_port_are_dropped() {
    let frame = FRAME_BYTES as u64;
    let room = FRAME_BYTES as u32 - u32::from(HEADROOM);
    let mut node = Node::new(Setup::default());
    // The first frames went to the node port, the next to A.
    let (others, own) = (0, u64::from(FILLED) * frame);
    let start = own + u64::from(HEADROOM);
    let bad = [
        ("outside of the memory", 1024 * frame, 64),
        ("the last address", u64::MAX, 64),
        ("a frame of another port", others + u64::from(HEADROOM), 64),
        ("a free frame", 1023 * frame, 64),
        ("longer than the frame", start, room + 1),
        ("a length that wraps", start, u32::MAX),
        ("a length that wraps to the end", start, u32::MAX - u32::from(HEADROOM) + 1),
    ];
    for (count, (name, address, len)) in bad.into_iter().enumerate() {
        node.corrupt(A.id, address, len);
        node.run();
        let dropped = node.drops(A.id, Direction::FromPod, DropReason::BadDescriptor);
        assert_eq!(dropped, count as u64 + 1, "{name}");
    }
    assert_eq!(node.worker(0).received.get(), 0);
    node.inject(A.id, a_to_b(1).build());
    node.run();
    assert_eq!(node.sent(B.id).len(), 1, "the port works on");
}

#[test]
fn a_kernel_that_uses_a_frame_twice_harms_one_packet_and_no_law() {
    let mut node = Node::new(Setup::default());
    // A's first frame is named as received, and is still in its fill ring.
    let named = u64::from(FILLED) * FRAME_BYTES as u64 + u64::from(HEADROOM);
    node.corrupt(A.id, named, 64);
    node.run();
    assert_eq!(node.worker(0).received.get(), 1, "nobody can tell");
    // Once round the ring: it comes again while another holds it.
    for port in 0..=FILLED as u16 {
        node.inject(A.id, a_to_b(port).build());
        node.run();
    }
    assert_eq!(node.drops(A.id, Direction::FromPod, DropReason::BadDescriptor), 1);
    assert_eq!(node.sent(B.id).len(), FILLED as usize);
}

#[test]
fn icmp_errors_to_one_pod_are_limited_and_too_big_has_a_limit_of_its_own() {
    let mut node = Node::new(Setup::default());
    for port in 0..100 {
        node.inject(A.id, a_to_b(port).ttl(1).build());
    }
    node.run();
    assert_eq!(node.drops(A.id, Direction::FromPod, DropReason::TtlExpired), 100);
    let told = node.sent(A.id).len();
    assert!((3..=12).contains(&told), "{told}");
    node.inject(A.id, a_to_b(1).payload(1600).build());
    node.run();
    assert_eq!(node.sent(A.id).len(), 1);
    node.advance(3_000_000_000);
    node.inject(A.id, a_to_b(1).ttl(1).build());
    node.run();
    assert_eq!(node.sent(A.id).len(), 1);
}
