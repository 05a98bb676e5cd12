//! One pod is flooded through its host port while others talk through theirs: packets through
//! workers, each checked byte for byte where it comes out.
//!
//! A flood of SYNs is held by the pod's quota, within which its own unconfirmed flows give way; so
//! the others keep what they have and get what they ask for. Eviction alone holds it too. What the
//! quota alone holds is a flood of connections that the pod answers: those are protected, and
//! without a quota they fill the table for everybody.

mod harness;

use std::collections::{HashMap, VecDeque};

use dataplane::conntrack::{Flow, FlowState};
use dataplane::drop::DropReason;
use dataplane::port::PortId;
use dataplane::worker::BATCH_MAX;
use harness::packet::{ACK, Packet, SYN, packet};
use harness::{
    B, C, ENDS, End, Mapped, NODE, Node, PLAIN, Setup, TO_B, TO_C, TO_PLAIN, UPLINK, VETH_UPLINK,
};

/// SYNs in a second, as many as a link of a gigabit carries.
const SYNS_PER_SECOND: u64 = 1_488_095;

/// SYNs that arrive by each queue of the uplink in one round: the rest of a batch is for others.
const SYNS_PER_QUEUE: u32 = BATCH_MAX as u32 - 4;

/// Rounds between two flows that others ask for.
const ROUNDS_PER_FLOW: u64 = 4;

/// Rounds that pods and clients take to answer: 1.3 ms, more than on one network.
const ROUNDS_PER_ANSWER: u64 = 16;

/// The least share of the others' new flows that a flood may leave.
const NEW_SHARE: f64 = 0.95;

/// Addresses of the flood, each with as many ports as it takes.
const FLOOD_ADDRESSES: u32 = 1 << 12;

/// The first port of the flood.
const FLOOD_PORT: u32 = 1024;

/// The number that all segments of the harness acknowledge: that of each end's first byte here, so
/// that they establish connections.
const ACKNOWLEDGED: u32 = 77;

/// A client behind the wire and a pod behind a host port.
#[derive(Clone, Copy)]
struct Talk {
    host_port: &'static Mapped,
    v6: bool,
    tcp: bool,
    client_port: u16,
}

/// What one of them says. The first three are how a flow is established.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Ask,
    Answer,
    /// For TCP only.
    Confirm,
    PodGoesOn,
    ClientGoesOn,
}

impl Line {
    fn next(self, tcp: bool) -> Option<Line> {
        match self {
            Line::Ask => Some(Line::Answer),
            Line::Answer if tcp => Some(Line::Confirm),
            Line::PodGoesOn => Some(Line::ClientGoesOn),
            Line::Answer | Line::Confirm | Line::ClientGoesOn => None,
        }
    }
}

/// This line on its way.
struct Hop {
    from: PortId,
    sent: Vec<u8>,
    received: Vec<u8>,
}

impl Talk {
    fn packet(self, line: Line, from: &End, to: &End, (src, dst): (u16, u16)) -> Packet {
        let packet = packet().from(from).to(to).family(self.v6);
        let tcp = |flags, sequence| packet.clone().tcp(src, dst).flags(flags).sequence(sequence);
        match line {
            _ if !self.tcp => packet.udp(src, dst).payload(10 + line as usize),
            Line::Ask => tcp(SYN, ACKNOWLEDGED - 1),
            Line::Answer => tcp(SYN | ACK, ACKNOWLEDGED - 1),
            Line::Confirm => tcp(ACK, ACKNOWLEDGED),
            Line::PodGoesOn | Line::ClientGoesOn => tcp(ACK, ACKNOWLEDGED).payload(100),
        }
    }

    fn hop(self, line: Line) -> Hop {
        let Talk { host_port: &Mapped { host_port, pod, port, .. }, client_port, .. } = self;
        match line {
            Line::Ask | Line::Confirm | Line::ClientGoesOn => {
                let sent = self.packet(line, &UPLINK, &NODE, (client_port, host_port));
                let received = self.packet(line, &UPLINK, pod, (client_port, port));
                let received = received.forwarded(pod).build();
                Hop { from: UPLINK.id, sent: sent.build(), received }
            }
            Line::Answer | Line::PodGoesOn => {
                let sent = self.packet(line, pod, &UPLINK, (port, client_port));
                let received = self.packet(line, &NODE, &UPLINK, (host_port, client_port));
                let received = received.forwarded(&UPLINK).build();
                Hop { from: pod.id, sent: sent.build(), received }
            }
        }
    }
}

/// So many conversations through a host port, a fourth of each kind, from this client port on.
fn talks(host_port: &'static Mapped, first_port: u16, count: u16) -> Vec<Talk> {
    let kind = |number: u16| (number & 1 == 0, number & 2 == 0);
    (0..count)
        .map(|number| (kind(number), first_port + number))
        .map(|((v6, tcp), client_port)| Talk { host_port, v6, tcp, client_port })
        .collect()
}

/// A frame whose source is changed by changing bytes: a million are to be made.
struct Stamp {
    frame: Vec<u8>,
    /// Where the last two bytes of the source address are, and the source port behind all headers
    /// of layer 3. Both are 0 in the frame.
    address_at: usize,
    port_at: usize,
    v6: bool,
}

impl Stamp {
    fn new(packet: &Packet, v6: bool) -> Stamp {
        let (address_at, port_at) = if v6 { (14 + 22, 14 + 40) } else { (14 + 14, 14 + 20) };
        Stamp { frame: packet.build(), address_at, port_at, v6 }
    }

    fn with(&self, address: u16, port: u16) -> Vec<u8> {
        let mut frame = self.frame.clone();
        frame[self.address_at..][..2].copy_from_slice(&address.to_be_bytes());
        frame[self.port_at..][..2].copy_from_slice(&port.to_be_bytes());
        add(&mut frame, self.port_at + 16, u32::from(address) + u32::from(port));
        if !self.v6 {
            add(&mut frame, 14 + 10, u32::from(address));
        }
        frame
    }
}

/// Makes a checksum that of data with so much more in it (RFC 1624).
fn add(frame: &mut [u8], check_at: usize, more: u32) {
    let check = u16::from_be_bytes([frame[check_at], frame[check_at + 1]]);
    let mut sum = u32::from(!check) + more;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[check_at..][..2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// The SYNs of the flood, by their numbers; both families in turns.
struct Syns {
    /// As they arrive from the wire, and as B gets them.
    sent: [Stamp; 2],
    received: [Stamp; 2],
    reached: Vec<bool>,
}

impl Syns {
    fn new(count: u32) -> Syns {
        let sent = |v6| Syns::packet(&NODE, TO_B.host_port, v6, 0, 0);
        let received = |v6| Syns::packet(&B, TO_B.port, v6, 0, 0).forwarded(&B);
        let reached = vec![false; count as usize];
        Syns {
            sent: [false, true].map(|v6| Stamp::new(&sent(v6), v6)),
            received: [false, true].map(|v6| Stamp::new(&received(v6), v6)),
            reached,
        }
    }

    fn packet(to: &End, dst: u16, v6: bool, address: u16, port: u16) -> Packet {
        let [high, low] = address.to_be_bytes();
        let src =
            if v6 { format!("2001:db8:6::{address:x}") } else { format!("198.18.{high}.{low}") };
        packet().from(&UPLINK).to(to).src(&src).tcp(port, dst).flags(SYN)
    }

    /// Address and port of the SYN with this number.
    fn source(number: u32) -> (u16, u16) {
        let port = FLOOD_PORT + number / FLOOD_ADDRESSES;
        ((number % FLOOD_ADDRESSES) as u16, u16::try_from(port).expect("ports enough"))
    }

    fn frame(&self, number: u32) -> Vec<u8> {
        let (address, port) = Syns::source(number);
        self.sent[number as usize % 2].with(address, port)
    }

    /// Whether B got one, which is then as it was sent, and the first with its number.
    fn arrive(&mut self, frame: &[u8]) -> bool {
        let stamp = &self.received[usize::from(frame[12] == 0x86)];
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let (address, port) = (word(stamp.address_at), word(stamp.port_at));
        if frame != stamp.with(address, port) {
            return false;
        }
        let number = (u32::from(port) - FLOOD_PORT) * FLOOD_ADDRESSES + u32::from(address);
        let reached = &mut self.reached[number as usize];
        assert!(!std::mem::replace(reached, true), "SYN {number} reached B twice");
        true
    }
}

/// The node, and what everybody has said and waits for.
struct World {
    node: Node,
    syns: Syns,
    round: u64,
    /// What is said in a later round.
    due: VecDeque<(u64, Talk, Line)>,
    /// What is said and has not come out, by its bytes there.
    awaited: HashMap<Vec<u8>, (Talk, Line)>,
    /// Conversations of which all has come out.
    done: Vec<Talk>,
}

impl World {
    fn new(setup: Setup, syns: u32) -> World {
        let (frames, fill) = (4096, 128);
        World {
            node: Node::new(Setup { frames, fill, host_ports: true, ..setup }),
            syns: Syns::new(syns),
            round: 0,
            due: VecDeque::new(),
            awaited: HashMap::new(),
            done: Vec::new(),
        }
    }

    fn say(&mut self, talk: Talk, line: Line) {
        let Hop { from, sent, received } = talk.hop(line);
        self.node.inject(from, sent);
        let same = self.awaited.insert(received, (talk, line));
        assert!(same.is_none(), "every packet is another");
    }

    /// Takes what has come out. Whoever hears something answers later.
    fn hear(&mut self) {
        for end in ENDS {
            for sent in self.node.sent(end.id) {
                assert_eq!(sent.partial, None, "nobody has left a checksum to do");
                if end.id == B.id && self.syns.arrive(&sent.bytes) {
                    continue;
                }
                let heard = self.awaited.remove(&sent.bytes);
                let (talk, line) = heard.expect("what comes out is as somebody has said it");
                match line.next(talk.tcp) {
                    Some(next) => self.due.push_back((self.round + ROUNDS_PER_ANSWER, talk, next)),
                    None => self.done.push(talk),
                }
            }
        }
    }

    /// All of these say this line and what follows from it, in peace. Returns who got to the end.
    fn converse(&mut self, talks: &[Talk], line: Line) -> Vec<Talk> {
        for some in talks.chunks(BATCH_MAX) {
            some.iter().for_each(|talk| self.say(*talk, line));
            loop {
                self.node.run();
                self.hear();
                let due = std::mem::take(&mut self.due);
                if due.is_empty() {
                    break;
                }
                due.into_iter().for_each(|(_, talk, line)| self.say(talk, line));
            }
            self.awaited.clear();
        }
        std::mem::take(&mut self.done)
    }

    /// The flood arrives, and meanwhile clients ask other pods. Returns who was served.
    fn flood(&mut self, asking: &[Talk]) -> Vec<Talk> {
        let syns = self.syns.reached.len() as u32;
        let mut asking = asking.iter();
        let mut numbers = 0..syns;
        while !numbers.is_empty() {
            for queue in [&UPLINK, &VETH_UPLINK] {
                for number in numbers.by_ref().take(SYNS_PER_QUEUE as usize) {
                    self.node.inject(queue.id, self.syns.frame(number));
                }
            }
            if self.round.is_multiple_of(ROUNDS_PER_FLOW)
                && let Some(talk) = asking.next()
            {
                self.say(*talk, Line::Ask);
            }
            while let Some((_, talk, line)) = self.due.pop_front_if(|due| due.0 <= self.round) {
                self.say(talk, line);
            }
            (0..self.node.workers()).for_each(|worker| {
                self.node.pass(worker);
            });
            self.hear();
            self.round += 1;
            self.node.advance(2 * u64::from(SYNS_PER_QUEUE) * 1_000_000_000 / SYNS_PER_SECOND);
        }
        assert_eq!(asking.len(), 0, "clients ask while there is a flood");
        self.node.run();
        self.hear();
        // What is on its way to be answered is answered when the flood is over.
        while let Some((_, talk, line)) = self.due.pop_front() {
            self.say(talk, line);
            self.node.run();
            self.hear();
        }
        self.awaited.clear();
        std::mem::take(&mut self.done)
    }

    fn flows_of(&self, pod: &End) -> Vec<Flow> {
        self.node.all_flows().into_iter().filter(|flow| flow.owner == pod.id).collect()
    }

    /// What pods have established.
    fn established(&self, pods: &[&End]) -> usize {
        let is_established =
            |flow: &Flow| matches!(flow.state, FlowState::Established | FlowState::Stream);
        let flows = pods.iter().flat_map(|pod| self.flows_of(pod));
        flows.filter(is_established).count()
    }

    /// Both ends go on. The pod is first: a packet of the client may open a flow that is gone.
    fn assert_alive(&mut self, talks: &[Talk]) {
        let opened = |node: &Node| -> u64 {
            (0..node.workers()).map(|worker| node.flows(worker).opened.get()).sum()
        };
        let before = opened(&self.node);
        assert_eq!(self.converse(talks, Line::PodGoesOn).len(), talks.len(), "flows that live");
        assert_eq!(opened(&self.node), before, "nobody's flow was opened again");
    }
}

/// Talks with other pods, established.
fn establish(world: &mut World, others: &[Talk]) {
    assert_eq!(world.converse(others, Line::Ask).len(), others.len(), "there is room");
    assert_eq!(world.established(&[&C, &PLAIN]), others.len());
}

/// SYNs of the long flood: a million where tests may take longer.
fn syns() -> u32 {
    if std::env::var_os("VIADUCT_E2E_LONG").is_some() { 1_000_000 } else { 250_000 }
}

fn share(part: usize, all: usize) -> f64 {
    part as f64 / all as f64
}

#[test]
fn a_stamped_frame_is_the_one_that_would_be_built() {
    let syns = Syns::new(0);
    for number in [0, 1, 2, 4095, 4096, 77_777, 999_998, 999_999] {
        let (address, port) = Syns::source(number);
        let v6 = number % 2 == 1;
        let built = Syns::packet(&NODE, TO_B.host_port, v6, address, port).build();
        assert_eq!(syns.frame(number), built, "SYN {number}");
    }
}

#[test]
fn syns_to_one_pod_leave_the_others_their_flows_and_what_they_ask_for() {
    let (syns, flows, flows_per_pod) = (syns(), 32_768, 8_192);
    let setup = Setup { workers: 2, flows, flows_per_pod, ..Setup::default() };
    let mut world = World::new(setup, syns);
    let others = [talks(&TO_C, 1024, 4_000), talks(&TO_PLAIN, 1024, 4_000)].concat();
    establish(&mut world, &others);
    let asking = (syns / 1_000) as u16;
    let new = [talks(&TO_C, 30_000, asking), talks(&TO_PLAIN, 30_000, asking)].concat();
    let served = world.flood(&new);

    let (asked, established) = (new.len(), others.len() + served.len());
    assert!(share(served.len(), asked) >= NEW_SHARE, "{} of {asked} served", served.len());
    assert_eq!(world.established(&[&C, &PLAIN]), established);
    world.assert_alive(&others);
    world.assert_alive(&served);
    // Each SYN reached B, at the cost of B's own flows: the worker's table was never full.
    assert!(world.syns.reached.iter().all(|reached| *reached));
    let of_b = world.flows_of(&B);
    assert_eq!(of_b.len(), flows_per_pod as usize);
    assert!(of_b.iter().all(|flow| flow.state == FlowState::Opening));
    let evicted = [0, 1].map(|worker| world.node.flows(worker).evicted.get());
    assert_eq!(evicted, [0, u64::from(syns - flows_per_pod)]);
    assert_eq!(world.node.all_drops(), []);
}

#[test]
fn syns_that_no_quota_holds_give_way_to_the_flows_of_others() {
    let (syns, flows) = (60_000, 8_192);
    let setup = Setup { flows, flows_per_pod: flows, ..Setup::default() };
    let mut world = World::new(setup, syns);
    let others = [talks(&TO_C, 1024, 1_000), talks(&TO_PLAIN, 1024, 1_000)].concat();
    establish(&mut world, &others);
    let new = talks(&TO_C, 30_000, 100);
    let served = world.flood(&new);

    assert_eq!(served.len(), new.len());
    world.assert_alive(&others);
    world.assert_alive(&served);
    // The table was full, and of B's flows all the time.
    assert_eq!(world.node.all_flows().len(), flows as usize);
    assert_eq!(world.flows_of(&B).len(), flows as usize - others.len() - served.len());
}

/// What connections to B, all of them answered, leave of others' flows in a table of 4,096: how
/// many of the connections B got, the share of the others' new flows that are established, and why
/// packets were dropped.
fn flood_of_connections(flows_per_pod: u32) -> (usize, f64, Vec<(PortId, DropReason, u64)>) {
    let setup = Setup { flows: 4_096, flows_per_pod, ..Setup::default() };
    let mut world = World::new(setup, 0);
    let others = [talks(&TO_C, 1024, 400), talks(&TO_PLAIN, 1024, 400)].concat();
    establish(&mut world, &others);
    let connections: Vec<Talk> =
        talks(&TO_B, 1024, 10_000).into_iter().filter(|talk| talk.tcp).collect();
    let served_by_b = world.converse(&connections, Line::Ask).len();
    let new = [talks(&TO_C, 30_000, 200), talks(&TO_PLAIN, 30_000, 200)].concat();
    let served = world.converse(&new, Line::Ask);
    // Whoever floods, nobody loses what he has.
    world.assert_alive(&others);
    world.assert_alive(&served);
    let drops = world.node.all_drops().into_iter();
    let drops = drops.map(|(port, _, reason, packets)| (port, reason, packets)).collect();
    (served_by_b, share(served.len(), new.len()), drops)
}

#[test]
fn connections_that_one_pod_answers_use_up_its_quota_and_nothing_else() {
    let (served_by_b, share, drops) = flood_of_connections(1_024);
    assert_eq!((served_by_b, share), (1_024, 1.0));
    assert_eq!(drops, [(B.id, DropReason::FlowQuota, 5_000 - 1_024)]);
}

#[test]
fn without_a_quota_such_connections_leave_no_room_for_new_flows_of_others() {
    let (served_by_b, share, drops) = flood_of_connections(4_096);
    assert_eq!(served_by_b, 4_096 - 800);
    assert_eq!(share, 0.0);
    let of_others: Vec<_> = drops.into_iter().filter(|(port, ..)| *port != B.id).collect();
    let full = [C.id, PLAIN.id].map(|port| (port, DropReason::FlowTableFull, 200));
    assert_eq!(of_others, full);
}
