//! One golden case: a packet, and all that follows from it.

use std::collections::BTreeMap;
use std::path::Path;

use dataplane::drop::DropReason;
use dataplane::explain::Outcome;
use dataplane::port::{Partial, PortId};
use dataplane::sim::Sent;

use crate::harness::packet::{Packet, icmp_error};
use crate::harness::{Direction, ENDS, End, Node, Setup};

/// Longer packets make fuzzing slow and teach it nothing: the pieces of a super-packet are alike.
const SEED_BYTES_MAX: usize = 1600;

/// What a port sends and counts for it.
#[derive(Clone, Debug)]
struct Expected {
    bytes: Vec<u8>,
    partial: Option<Partial>,
    wire: (u64, u64),
}

/// One packet and what follows from it.
#[derive(Debug)]
pub struct Case {
    name: String,
    ingress: PortId,
    bytes: Vec<u8>,
    out: BTreeMap<PortId, Vec<Expected>>,
    drop: Option<(Direction, PortId, DropReason)>,
    /// Packets and bytes on a wire, as the ingress counts them.
    wire: (u64, u64),
}

impl Case {
    /// `packet` arrives from `ingress`.
    pub fn new(name: impl Into<String>, ingress: &End, packet: &Packet) -> Case {
        Case::of_bytes(name, ingress, packet.build())
    }

    /// These bytes arrive from `ingress`.
    pub fn of_bytes(name: impl Into<String>, ingress: &End, bytes: Vec<u8>) -> Case {
        Case {
            name: name.into(),
            ingress: ingress.id,
            bytes,
            out: BTreeMap::new(),
            drop: None,
            wire: (0, 0),
        }
    }

    /// One packet leaves by `egress`, its checksum complete.
    pub fn sends(mut self, egress: &End, packet: &Packet) -> Case {
        self.expect(egress, packet.build(), None);
        self
    }

    /// One packet leaves by `egress`, its checksum left to the port.
    pub fn sends_partial(mut self, egress: &End, packet: &Packet) -> Case {
        self.expect(egress, packet.build(), Some(packet.partial()));
        self
    }

    /// One packet leaves by `egress` with a checksum request of any kind.
    pub fn sends_with(mut self, egress: &End, packet: &Packet, partial: Option<Partial>) -> Case {
        self.expect(egress, packet.build(), partial);
        self
    }

    fn expect(&mut self, egress: &End, bytes: Vec<u8>, partial: Option<Partial>) {
        let wire = (1, bytes.len() as u64);
        self.wire = (self.wire.0 + wire.0, self.wire.1 + wire.1);
        let expected = Expected { bytes, partial, wire };
        self.out.entry(egress.id).or_default().push(expected);
    }

    /// The one packet that leaves whole counts as this many packets and bytes on a wire.
    pub fn wire(mut self, packets: u64, bytes: u64) -> Case {
        self.wire = (packets, bytes);
        for expected in self.out.values_mut().flatten() {
            expected.wire = (packets, bytes);
        }
        self
    }

    /// The packet is dropped where it came from.
    pub fn drops(mut self, reason: DropReason) -> Case {
        self.drop = Some((Direction::FromPod, self.ingress, reason));
        self
    }

    /// The sender is told by an ICMP error: type, code and the 4 bytes after the checksum.
    pub fn tells(self, sender: &End, (kind, code, rest): (u8, u8, u32)) -> Case {
        let error = icmp_error(sender, &self.bytes, kind, code, rest);
        self.answers(sender, error)
    }

    /// These bytes go back to the sender, and are not counted as its traffic.
    pub fn answers(mut self, sender: &End, bytes: Vec<u8>) -> Case {
        let wire = (1, bytes.len() as u64);
        let expected = Expected { bytes, partial: None, wire };
        self.out.entry(sender.id).or_default().push(expected);
        self
    }

    /// Runs the case on one worker and on two.
    pub fn run(&self) {
        for workers in [1, 2] {
            self.run_on(Setup { workers, ..Setup::default() });
        }
    }

    /// Runs the case on a node made so.
    pub fn run_on(&self, setup: Setup) {
        let mut node = Node::new(setup);
        let name = format!("{}, {} workers", self.name, setup.workers);
        let outcome = node.explain(self.ingress, &self.bytes).expect("no flow was retired");
        self.check_explained(&outcome, &name);
        node.inject(self.ingress, self.bytes.clone());
        node.run();
        self.check_drops(&node, &name);
        for end in ENDS {
            if !setup.node_port && end.id.0 == 0 {
                continue;
            }
            let expected = self.out.get(&end.id).map_or(&[][..], Vec::as_slice);
            let sent = node.sent(end.id);
            check_sent(&format!("{name}, to {}", end.name), expected, &sent);
            self.check_counters(&node, end.id, expected, &name);
        }
    }

    /// Writes the packet as the fuzz targets read it: as it is for `parse`; for `forward` after the
    /// choice of one worker, the index of its port and its length.
    fn write_seeds(&self, directory: &Path) {
        let port = ENDS.iter().position(|end| end.id == self.ingress).expect("one of the ends");
        let [high, low] = (self.bytes.len() as u16).to_be_bytes();
        let sequence = [&[0, port as u8, high, low], self.bytes.as_slice()].concat();
        let file = self.name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        for (target, bytes) in [("parse", &self.bytes), ("forward", &sequence)] {
            let directory = directory.join(target);
            std::fs::create_dir_all(&directory).expect("a directory for seeds");
            std::fs::write(directory.join(&file), bytes).expect("a seed");
        }
    }

    /// What is said beforehand is what happens then.
    fn check_explained(&self, outcome: &Outcome, name: &str) {
        let dropped = outcome.dropped.map(|dropped| {
            let directions = [Direction::FromPod, Direction::ToPod];
            (directions[usize::from(dropped.is_leaving)], dropped.port, dropped.reason)
        });
        assert_eq!(dropped, self.drop, "{name}: the drop that was explained");
        let expected = |(id, expected): (&PortId, &Vec<Expected>)| {
            (*id, expected.iter().map(|expected| expected.bytes.clone()).collect())
        };
        let expected: BTreeMap<PortId, Vec<Vec<u8>>> = self.out.iter().map(expected).collect();
        assert_eq!(explained(self.ingress, outcome), expected, "{name}: what was explained");
    }

    fn check_drops(&self, node: &Node, name: &str) {
        let expected = self.drop.map(|(direction, port, reason)| (port, direction, reason, 1));
        assert_eq!(node.all_drops(), Vec::from_iter(expected), "{name}: drops");
    }

    fn check_counters(&self, node: &Node, id: PortId, expected: &[Expected], name: &str) {
        let all = |direction| {
            let counters = node.counters(id, direction);
            [&counters.packets, &counters.bytes, &counters.wire_packets, &counters.wire_bytes]
                .map(|counter| counter.get())
        };
        let from = if id == self.ingress {
            [1, self.bytes.len() as u64, self.wire.0, self.wire.1]
        } else {
            [0; 4]
        };
        assert_eq!(all(Direction::FromPod), from, "{name}: from port {}", id.0);
        let bytes = expected.iter().map(|expected| expected.bytes.len() as u64).sum();
        let wire_packets = expected.iter().map(|expected| expected.wire.0).sum();
        let wire_bytes = expected.iter().map(|expected| expected.wire.1).sum();
        let to = [expected.len() as u64, bytes, wire_packets, wire_bytes];
        assert_eq!(all(Direction::ToPod), to, "{name}: to port {}", id.0);
    }
}

/// What would leave, by port.
pub fn explained(ingress: PortId, outcome: &Outcome) -> BTreeMap<PortId, Vec<Vec<u8>>> {
    let mut sent: BTreeMap<PortId, Vec<Vec<u8>>> = BTreeMap::new();
    let answer = outcome.answer.iter().map(|answer| (ingress, answer));
    for (id, bytes) in outcome.sent.iter().map(|(id, bytes)| (*id, bytes)).chain(answer) {
        sent.entry(id).or_default().push(bytes.clone());
    }
    sent
}

fn check_sent(name: &str, expected: &[Expected], sent: &[Sent]) {
    let lengths: Vec<usize> = sent.iter().map(|sent| sent.bytes.len()).collect();
    assert_eq!(sent.len(), expected.len(), "{name}: packets sent, of {lengths:?} bytes");
    for (index, (expected, sent)) in expected.iter().zip(sent).enumerate() {
        if sent.bytes != expected.bytes {
            let at = sent.bytes.iter().zip(&expected.bytes).position(|(a, b)| a != b);
            panic!(
                "{name}: packet {index} differs at {at:?}: {} bytes {:02x?}\nexpected {} bytes \
                 {:02x?}",
                sent.bytes.len(),
                &sent.bytes[..sent.bytes.len().min(120)],
                expected.bytes.len(),
                &expected.bytes[..expected.bytes.len().min(120)],
            );
        }
        assert_eq!(sent.partial, expected.partial, "{name}: checksum request of packet {index}");
    }
}

/// Runs all cases. The first and the last of them become seeds of the fuzzers when `FUZZ_SEEDS`
/// names their directory.
pub fn run_all(cases: &[Case]) {
    for case in cases {
        case.run();
    }
    if let Some(directory) = std::env::var_os("FUZZ_SEEDS") {
        for case in cases.first().into_iter().chain(cases.last()) {
            if case.bytes.len() <= SEED_BYTES_MAX {
                case.write_seeds(Path::new(&directory));
            }
        }
    }
}
