//! Inputs of the fuzz target `forward`: bytes that say which packets arrive where.
//!
//! Building a node takes ten times as long as forwarding a few packets, so [`Nodes`] are built
//! once and play every input. What an input does must depend on its bytes alone all the same:
//! after each one all frames are back where they were, and time is such that the limiter of ICMP
//! errors, the only other thing that remembers packets, answers always the same.

use super::packet::packet;
use super::{A, B, C, ENDS, NOBODY_V4, Node, Setup, UPLINK, VETH_UPLINK};

/// So few frames that the segments of one packet use them up: with one worker there are 40 that no
/// port holds, with two 120, and the tx ring of 48 is full first.
const SETUP: Setup = Setup {
    workers: 2,
    frames: 200,
    fill: 20,
    tx: 48,
    tx_checksum: true,
    node_port: true,
    flows: 64,
    flows_per_pod: 48,
    host_ports: false,
};

/// In the first byte: two workers, not one.
pub const TWO_WORKERS: u8 = 1;
/// In the first byte: the limiter of ICMP errors lets none pass, not all.
pub const NO_ERRORS: u8 = 2;

/// Every bucket is full at the end of time: one that has to wait for longer does not exist.
const ERRORS_NS: u64 = u64::MAX;
/// Buckets that were emptied at the end of time are empty at any other.
const NO_ERRORS_NS: u64 = 1_000_000_000;

/// A node of one worker and a node of two.
pub struct Nodes([Node; 2]);

impl Nodes {
    /// Nodes at rest, each worker's limiter emptied at the end of time.
    pub fn new() -> Nodes {
        Nodes([1, 2].map(|workers| {
            let mut node = Node::new(Setup { workers, ..SETUP });
            node.set_time(ERRORS_NS);
            for sender in [&A, &B, &UPLINK, &VETH_UPLINK] {
                let unreachable = packet().from(sender).dst(NOBODY_V4);
                let too_big = packet().from(sender).to(&C).payload(1400);
                for refused in [unreachable, too_big] {
                    node.inject(sender.id, refused.build());
                    node.run();
                    assert_eq!(node.sent(sender.id).len(), 1, "an ICMP error");
                }
            }
            node
        }))
    }

    /// Plays an input and returns the node it was played on. The first byte chooses it, and the
    /// time; each packet is the index of its port, its length in two bytes and its bytes. The node
    /// asserts both laws after every pass.
    pub fn play(&mut self, bytes: &[u8]) -> &mut Node {
        let (first, mut rest) = bytes.split_first().unwrap_or((&0, &[]));
        let node = &mut self.0[usize::from(first & TWO_WORKERS)];
        node.set_time(if first & NO_ERRORS == 0 { ERRORS_NS } else { NO_ERRORS_NS });
        while let [port, high, low, after @ ..] = rest {
            let len = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
            let (packet, after) = after.split_at(len);
            if !packet.is_empty() {
                node.inject(ENDS[usize::from(*port) % ENDS.len()].id, packet.to_vec());
            }
            rest = after;
        }
        node.run();
        node.assert_at_rest();
        node
    }
}
