//! What the fuzz target `forward` relies on: a node that has played other inputs plays the next
//! one as a new node does, to the byte, so that a failure repeats from its input alone.

mod harness;

use std::path::Path;

use dataplane::counters::{Counter, DirectionCounters, WorkerCounters};
use dataplane::drop::DropReason;
use dataplane::sim::Sent;
use harness::input::{NO_ERRORS, Nodes, TWO_WORKERS};
use harness::packet::{Packet, packet};
use harness::{A, C, Direction, ENDS, FAR_V4, NOBODY_V4, NODE, Node};
use proptest::prelude::*;
use proptest::sample::Index;

/// What an input does: everything sent, and every counter's growth.
#[derive(Debug, PartialEq)]
struct Outcome {
    sent: Vec<Vec<Sent>>,
    counted: Vec<u64>,
}

fn figures(counters: &DirectionCounters) -> Vec<u64> {
    let DirectionCounters { packets, bytes, wire_packets, wire_bytes, drops, marked, .. } =
        counters;
    // What is left says how it is now, and does not grow.
    let grow = [packets, bytes, wire_packets, wire_bytes, marked];
    grow.into_iter().chain(drops).map(Counter::get).collect()
}

fn counted(node: &Node) -> Vec<u64> {
    let ports = ENDS.into_iter().flat_map(|end| {
        [Direction::FromPod, Direction::ToPod].map(|way| figures(node.counters(end.id, way)))
    });
    let workers = (0..node.workers()).map(|worker| {
        let WorkerCounters { received, generated, sent, dropped, crossed_out, crossed_in, .. } =
            node.worker(worker);
        [received, generated, sent, dropped, crossed_out, crossed_in].map(Counter::get).to_vec()
    });
    ports.chain(workers).flatten().collect()
}

fn play(nodes: &mut Nodes, input: &[u8]) -> Outcome {
    // No packet: only chooses the node, to see what it had counted.
    let before = counted(nodes.play(&input[..1]));
    let node = nodes.play(input);
    let after = counted(node);
    let grown = after.iter().zip(before).map(|(after, before)| after - before);
    Outcome { counted: grown.collect(), sent: ENDS.map(|end| node.sent(end.id)).to_vec() }
}

/// The committed seeds, each with the index of its port and its length before the packet.
fn seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/forward");
    let entries = std::fs::read_dir(folder).expect("the seeds are committed");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let read = |path| std::fs::read(path).expect("a seed")[1..].to_vec();
    paths.iter().map(read).collect()
}

/// Packets of the seeds, some with a byte changed, after a first byte.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let seeds = seeds();
    let packet = (any::<Index>(), prop::option::of((any::<Index>(), any::<u8>())), 1..9usize);
    let packet = packet.prop_map(move |(seed, change, times)| {
        let mut bytes = seed.get(&seeds).clone();
        if let Some((at, value)) = change {
            // Behind the length.
            let at = 3 + at.index(bytes.len() - 3);
            bytes[at] = value;
        }
        bytes.repeat(times)
    });
    (0..4u8, prop::collection::vec(packet, 0..12))
        .prop_map(|(first, packets)| [vec![first], packets.concat()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_used_node_plays_an_input_as_a_new_one_does(
        inputs in prop::collection::vec(input(), 1..12),
    ) {
        let mut used = Nodes::new();
        for input in &inputs {
            prop_assert_eq!(play(&mut used, input), play(&mut Nodes::new(), input));
        }
    }
}

/// These packets of pod A, as an input.
fn from_a(first: u8, packets: &[Packet]) -> Vec<u8> {
    let port = ENDS.iter().position(|end| end.id == A.id).expect("one of the ends") as u8;
    let parts = packets.iter().map(|packet| {
        let bytes = packet.build();
        [&[port], (bytes.len() as u16).to_be_bytes().as_slice(), &bytes].concat()
    });
    [vec![first], parts.collect::<Vec<_>>().concat()].concat()
}

#[test]
fn the_first_byte_decides_whether_errors_are_told() {
    let refused = [packet().from(&A).dst(NOBODY_V4), packet().from(&A).to(&C).payload(1400)];
    for workers in [0, TWO_WORKERS] {
        let mut nodes = Nodes::new();
        for (first, told) in [(0, 120), (NO_ERRORS, 0), (0, 120), (NO_ERRORS, 0)] {
            // At any other time but the end the limiter would let 6 and 50 of them pass.
            for _ in 0..60 {
                nodes.play(&from_a(first | workers, &refused));
            }
            let node = nodes.play(&[first | workers]);
            assert_eq!(node.sent(A.id).len(), told, "first byte {}", first | workers);
        }
    }
}

#[test]
fn one_input_uses_up_the_frames_of_one_worker_and_the_tx_ring_of_two() {
    let large = packet().from(&A).dst(FAR_V4).tcp(1, 2).payload(3500).marked(60);
    let mut nodes = Nodes::new();
    for (first, direction, port, reason) in [
        (0, Direction::FromPod, A.id, DropReason::NoFrames),
        (TWO_WORKERS, Direction::ToPod, NODE.id, DropReason::TxRingFull),
    ] {
        let node = nodes.play(&from_a(first, std::slice::from_ref(&large)));
        assert!(node.drops(port, direction, reason) > 0, "{:?}", node.all_drops());
    }
}
