//! Host ports: sequences of packets, because what becomes of one depends on those before it.
//!
//! Every scene is played for TCP, UDP and SCTP in both families, on one worker and on two, and for
//! complete and open checksums where a pod sends.

mod errors;
mod flows;
mod fragments;
mod kernel;
mod paths;
mod property;
mod sizes;

use std::collections::BTreeMap;

use dataplane::drop::DropReason;
use dataplane::parse::{self, Fragment, Parsed};
use dataplane::port::{Partial, PortId};

use crate::FAMILIES;
use crate::case::explained;
use crate::harness::packet::{ACK, Check, DATA, INIT, INIT_ACK, Packet, RST, SYN, packet};
use crate::harness::{A, B, Direction, ENDS, End, NODE, Node, Setup, TO_B, UPLINK, VETH_UPLINK};

/// The client's port, and the one it gets where that is taken.
const CLIENT: u16 = 5_000;
const OTHER: u16 = 61_000;

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// What leaves: by which port, what, and what is left to do in it.
type Out<'a> = (&'a End, Packet, Option<Partial>);

/// Makes a packet of a flow: from whom, to whom, with which ports.
type Make = fn(&Scene, &End, &End, (u16, u16)) -> Packet;

/// One node, and what is played on it.
struct Scene {
    node: Node,
    name: String,
    v6: bool,
    protocol: Protocol,
    workers: usize,
    /// Pods leave their checksums open.
    open: bool,
}

/// Plays a scene in every way there is.
fn in_every_way(play: impl Fn(&mut Scene)) {
    for protocol in PROTOCOLS {
        in_every_way_of(protocol, &play);
    }
}

/// Plays a scene of one protocol.
fn in_every_way_of(protocol: Protocol, play: impl Fn(&mut Scene)) {
    for (v6, family) in FAMILIES {
        for workers in [1, 2] {
            for open in [false, true] {
                let setup = Setup { workers, host_ports: true, ..Setup::default() };
                let name = format!("{protocol:?}, {family}, {workers} workers, open: {open}");
                let node = Node::new(setup);
                play(&mut Scene { node, name, v6, protocol, workers, open });
            }
        }
    }
}

impl Scene {
    /// A packet of the scene's protocol in the middle of a flow.
    fn middle(&self, from: &End, to: &End, ports: (u16, u16)) -> Packet {
        let packet = packet().from(from).to(to).family(self.v6).payload(101);
        match self.protocol {
            Protocol::Tcp => packet.tcp(ports.0, ports.1).flags(ACK),
            Protocol::Udp => packet.udp(ports.0, ports.1),
            Protocol::Sctp => packet.sctp(ports.0, ports.1, DATA),
        }
    }

    /// The first one of a flow.
    fn first(&self, from: &End, to: &End, ports: (u16, u16)) -> Packet {
        let packet = self.middle(from, to, ports);
        match self.protocol {
            Protocol::Tcp => packet.flags(SYN).payload(0),
            Protocol::Udp => packet,
            Protocol::Sctp => packet.sctp(ports.0, ports.1, INIT),
        }
    }

    /// The answer to it.
    fn answer(&self, from: &End, to: &End, ports: (u16, u16)) -> Packet {
        let packet = self.middle(from, to, ports);
        match self.protocol {
            Protocol::Tcp => packet.flags(SYN | ACK),
            Protocol::Udp => packet,
            Protocol::Sctp => packet.sctp(ports.0, ports.1, INIT_ACK),
        }
    }

    /// One that ends a flow at once, of a protocol that has such a thing.
    fn last(&self, from: &End, to: &End, ports: (u16, u16)) -> Option<Packet> {
        let packet = self.middle(from, to, ports);
        match self.protocol {
            Protocol::Tcp => Some(packet.flags(RST)),
            Protocol::Udp => None,
            Protocol::Sctp => Some(packet.sctp(ports.0, ports.1, crate::harness::packet::ABORT)),
        }
    }

    /// The uplink that the worker of `pod` sends by.
    fn uplink_of(&self, pod: &End) -> &'static End {
        let is_far = matches!(pod.id.0, 2..=4);
        if self.workers == 2 && is_far { &VETH_UPLINK } else { &UPLINK }
    }

    /// The worker that `pod` is homed on.
    fn home_of(&self, pod: &End) -> usize {
        usize::from(self.workers == 2 && matches!(pod.id.0, 2..=4))
    }

    /// As a pod's kernel sends it: with its checksum open, if that is what the scene is about.
    fn as_pod_sends(&self, packet: &Packet) -> Packet {
        if self.is_open() { packet.clone().marked(0) } else { packet.clone() }
    }

    fn is_open(&self) -> bool {
        self.open && self.protocol != Protocol::Sctp
    }

    /// A packet comes from `from`, and this is all that leaves; nothing is dropped.
    fn sends(&mut self, from: &End, packet: &Packet, out: &[Out<'_>]) {
        let before = self.node.all_drops();
        self.arrives(from, packet.build(), out);
        assert_eq!(self.node.all_drops(), before, "{}: drops", self.name);
    }

    /// A packet comes from a pod and goes to a pod: a checksum that is open stays so.
    fn between_pods(&mut self, from: &End, packet: &Packet, to: &End, got: Packet) {
        let sent = self.as_pod_sends(packet);
        let open = self.is_open();
        let out = match open {
            true => (to, got.clone().check(Check::Partial), Some(got.partial())),
            false => (to, got, None),
        };
        self.sends(from, &sent, &[out]);
    }

    /// A packet comes from a pod and leaves by an uplink, which has no checksums left to do.
    fn goes_out(&mut self, from: &End, packet: &Packet, to: &End, got: Packet) {
        let sent = self.as_pod_sends(packet);
        self.sends(from, &sent, &[(to, got, None)]);
    }

    /// A packet comes from a wire.
    fn comes_in(&mut self, packet: &Packet, to: &End, got: Packet) {
        self.sends(&UPLINK, packet, &[(to, got, None)]);
    }

    /// A client on the wire asks at B's host port, and B hears it.
    fn b_is_asked(&mut self, make: Make, client: u16) {
        let asked = make(self, &UPLINK, &NODE, (client, TO_B.host_port));
        let got = make(self, &UPLINK, &B, (client, TO_B.port)).forwarded(&B);
        self.comes_in(&asked, &B, got);
    }

    /// B answers it, and it hears that from where it asked.
    fn b_answers(&mut self, client: u16) {
        let answer = self.middle(&B, &UPLINK, (TO_B.port, client));
        let answered = self.middle(&NODE, &UPLINK, (TO_B.host_port, client));
        let uplink = self.uplink_of(&B);
        self.goes_out(&B, &answer, uplink, answered.forwarded(uplink));
    }

    /// A asks at B's host port, then B itself from the same port, for which it gets another one.
    fn a_asks_at_both_addresses(&mut self) {
        let asked = self.first(&A, &NODE, (CLIENT, TO_B.host_port));
        let got = self.first(&A, &B, (CLIENT, TO_B.port)).forwarded(&B);
        self.between_pods(&A, &asked, &B, got);
        let direct = self.first(&A, &B, (CLIENT, TO_B.port));
        let got = self.first(&A, &B, (OTHER, TO_B.port)).forwarded(&B);
        self.between_pods(&A, &direct, &B, got);
    }

    /// A packet comes from `from`, and is dropped in this direction of this port.
    fn drops(&mut self, from: &End, packet: &Packet, at: (&End, Direction, DropReason)) {
        let (port, direction, reason) = at;
        let before = self.counted(port.id, direction, reason);
        let all = self.all_dropped();
        self.arrives(from, packet.build(), &[]);
        let after = self.counted(port.id, direction, reason);
        assert_eq!(after, before + 1, "{}: {:?}", self.name, self.node.all_drops());
        assert_eq!(self.all_dropped(), all + 1, "{}: {:?}", self.name, self.node.all_drops());
    }

    fn counted(&self, port: PortId, direction: Direction, reason: DropReason) -> u64 {
        self.node.drops(port, direction, reason)
    }

    fn all_dropped(&self) -> u64 {
        self.node.all_drops().into_iter().map(|(_, _, _, count)| count).sum()
    }

    fn arrives(&mut self, from: &End, bytes: Vec<u8>, out: &[Out<'_>]) {
        self.check_explained(from, &bytes, out);
        self.node.inject(from.id, bytes);
        self.node.run();
        self.leaves(out);
    }

    /// What is said beforehand is what happens then.
    fn check_explained(&self, from: &End, bytes: &[u8], out: &[Out<'_>]) {
        // What was decided about the first fragment is no flow, and is not asked about.
        let Ok(Parsed::Ip(headers)) = parse::headers(bytes, bytes.len()) else { return };
        if headers.fragment == Fragment::Later {
            return;
        }
        let Some(outcome) = self.node.explain(from.id, bytes) else { return };
        let mut expected: BTreeMap<PortId, Vec<Vec<u8>>> = BTreeMap::new();
        for (to, packet, _) in out {
            expected.entry(to.id).or_default().push(packet.build());
        }
        assert_eq!(explained(from.id, &outcome), expected, "{}: {outcome:?}", self.name);
    }

    /// What has left since the last look, by each port in this order.
    fn leaves(&mut self, out: &[Out<'_>]) {
        for end in ENDS {
            let sent: Vec<(Vec<u8>, Option<Partial>)> =
                self.node.sent(end.id).into_iter().map(|sent| (sent.bytes, sent.partial)).collect();
            let expected: Vec<(Vec<u8>, Option<Partial>)> = out
                .iter()
                .filter(|(to, ..)| to.id == end.id)
                .map(|(_, packet, partial)| (packet.build(), *partial))
                .collect();
            let name = &self.name;
            assert_eq!(sent.len(), expected.len(), "{name}: to {}: {sent:02x?}", end.name);
            for (sent, expected) in sent.iter().zip(&expected) {
                assert_eq!(
                    sent,
                    expected,
                    "{name}: to {}, {:02x?}",
                    end.name,
                    self.node.all_drops()
                );
            }
        }
    }

    /// Flows that the worker of `pod` knows.
    fn flows_of(&mut self, pod: &End) -> u64 {
        let home = self.home_of(pod);
        self.node.flows(home).flows.get()
    }

    /// Seconds pass, and what is idle for too long is forgotten.
    fn wait(&mut self, seconds: u64) {
        self.node.advance(seconds * 1_000_000_000);
        self.node.run();
    }
}
