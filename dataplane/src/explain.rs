//! What becomes of a packet: found out by letting the workers' own code forward it, in memory.
//!
//! ```text
//!   frame ──► simulated port ──► sender's Worker ──┬──► simulated ports: what would leave
//!                                    │ crossing    │
//!                                    └──► receiver's Worker ──┘
//! ```
//!
//! The workers made here adopt the newest tables of the living ones, know copies of the flows they
//! are given, and end with the question: nothing that they count, open or forget is anybody else's.
//! Nothing is decided here. What is not in the tables is not seen either: full rings, a full table
//! of flows, a pod's quota of them, and how many ICMP errors were sent lately.

mod probe;
mod stage;

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use rtrb::{Consumer, Producer};

pub use probe::{Content, Probe};
pub use stage::Stage;

use crate::conntrack::{Flow, FlowKey, FlowTable, HashSeed, Records, TableParts};
use crate::counters::{DirectionCounters, PortCounters};
use crate::crossing::{Bell, CrossingIn, CrossingOut, crossing};
use crate::drop::DropReason;
use crate::frame::{CHAIN_MAX, FramePool};
use crate::parse::{self, Parsed};
use crate::port::{PORTS_MAX, PacketIo as _, PortId, WorkerId};
use crate::publish::Publisher;
use crate::share::Share;
use crate::sim::SimPort;
use crate::tables::{PortKind, PortSpec, Tables};
use crate::worker::{Command, Event, Worker, WorkerParts, queues};
use crate::xsk::area::Area;
use crate::xsk::words::Words;

/// Frames of each worker, beside one for each port: the longest packet, and all of its fragments
/// on a way of 576 bytes, which every host takes (RFC 791).
const FRAMES: u32 = 200;

/// Frames that leave by one port at most: the fragments.
const TX_FRAMES: usize = 128;

/// Flows that a worker is given at most.
pub const FLOWS_MAX: usize = 64;

/// The generation of every pod: flows are given of pods that are there, and of no others.
const GENERATION: u32 = 1;

/// Orders given at a time: half of what a queue takes.
const ORDERS: usize = 512;

/// A packet, and what it meets.
#[derive(Debug)]
pub struct Question<'a> {
    /// Where the living workers have their tables from.
    pub publisher: &'a Publisher,
    /// The port that the packet comes in by. It is in the tables.
    pub ingress: PortId,
    /// Its bytes, from the Ethernet header on: at most 65,549.
    pub frame: &'a [u8],
    /// Copies of the flows that decide about it: [`FLOWS_MAX`] of each worker, the rest is ignored.
    pub flows: &'a [Flow],
    /// Ports that a flow gets as source where its client's is taken.
    pub source_ports: RangeInclusive<u16>,
    /// The time that flows are kept by, in ns.
    pub now_ns: u64,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What left, and by which port; several only if it was fragmented or cut.
    pub sent: Vec<(PortId, Vec<u8>)>,
    /// What its sender is told of the refusal.
    pub answer: Option<Vec<u8>>,
    /// Why it was not forwarded.
    pub dropped: Option<Dropped>,
    /// The flow that it belongs to.
    pub flow: Option<Followed>,
}

/// Where a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The port that counts it.
    pub port: PortId,
    /// It was on its way out by that port; else it came in by it.
    pub is_leaving: bool,
    /// Why.
    pub reason: DropReason,
}

/// A flow of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The flow, as it was before the packet, or as the packet has opened it.
    pub flow: Flow,
    /// The packet has opened it.
    pub is_new: bool,
}

/// Runs the packet.
///
/// # Errors
/// There is no memory for it.
///
/// # Panics
/// The frame is longer than a port takes.
pub fn explain(question: &Question<'_>) -> io::Result<Outcome> {
    let tables = question.publisher.subscribe().adopt().clone();
    let home = tables.port(question.ingress).map_or(WorkerId(0), |port| port.worker);
    let workers = ports(&tables).map(|port| port.worker.0 + 1).max().unwrap_or(1);
    let area = memory(&tables, home)?;
    let bell = Arc::new(Bell::new()?);
    let (mut out, mut rings) = (Vec::new(), Vec::new());
    for worker in (0..workers).map(WorkerId) {
        let ends = (worker != home).then(|| crossing(area.clone(), bell.clone()));
        let (sender, receiver) = ends.unzip();
        out.push(sender);
        rings.extend(receiver.map(|receiver| (worker, receiver)));
    }
    let mut sides = vec![Side::raise(question, &tables, home, area, Ends::Sender(out))?];
    // A packet leaves by one port, so there is one receiver at most.
    for (worker, ring) in rings.into_iter().filter(|(_, ring)| !ring.is_empty()) {
        let area = memory(&tables, worker)?;
        sides.push(Side::raise(question, &tables, worker, area, Ends::Receiver(ring))?);
    }
    let dropped = sides.iter().find_map(Side::dropped);
    let mut sent: Vec<_> = sides.iter_mut().flat_map(|side| side.sent(question.now_ns)).collect();
    let refused = dropped.is_some_and(|dropped| !dropped.is_leaving);
    let answer = sent.pop_if(|(port, _)| refused && *port == question.ingress);
    Ok(Outcome {
        sent,
        answer: answer.map(|(_, bytes)| bytes),
        dropped,
        flow: followed(question, &sides),
    })
}

/// The key of a frame that belongs to a flow, or could.
#[must_use]
pub fn key_of(frame: &[u8]) -> Option<FlowKey> {
    match parse::headers(frame, frame.len()) {
        Ok(Parsed::Ip(headers)) => FlowKey::of_packet(frame, &headers),
        _ => None,
    }
}

/// Which flow decided about the packet: one that was there, or the one that there is now.
fn followed(question: &Question<'_>, sides: &[Side]) -> Option<Followed> {
    let key = key_of(question.frame)?;
    // What the node's kernel has translated joins a flow by its other key.
    let keys = [key, key.inverse()];
    let known = keys.into_iter().find_map(|key| sides.iter().find_map(|side| side.known(&key)));
    if let Some(flow) = known {
        return Some(Followed { flow, is_new: false });
    }
    let opened = |flow: &Flow| flow.original == key;
    let flow = sides.iter().find_map(|side| side.records.iter().find(opened))?;
    Some(Followed { flow, is_new: true })
}

/// The rings between the two workers that a packet meets.
enum Ends {
    /// To every worker, by number.
    Sender(Vec<Option<CrossingOut>>),
    /// From the sender.
    Receiver(CrossingIn),
}

/// One worker, after the packet has gone through it.
struct Side {
    worker: Worker<SimPort>,
    commands: Producer<Command<SimPort>>,
    events: Consumer<Event<SimPort>>,
    ports: Vec<(PortId, Arc<PortCounters>)>,
    /// Its flows, and those that it was given and had not forgotten.
    records: Records,
    given: Vec<Flow>,
}

impl Side {
    /// Makes a worker with all its ports, and lets it work until nothing moves.
    fn raise(
        question: &Question<'_>,
        tables: &Tables,
        id: WorkerId,
        area: Arc<Area>,
        ends: Ends,
    ) -> io::Result<Side> {
        let now_ns = question.now_ns;
        let (flows, given) = flows(question, tables, id)?;
        let records = flows.records().clone();
        let mut pool = FramePool::new(area);
        let (out, incoming, arrived) = match ends {
            Ends::Receiver(ring) => (Vec::new(), vec![ring], None),
            Ends::Sender(out) => (out, Vec::new(), Some(arrive(question, &mut pool))),
        };
        let ((commands, events), (worker_commands, worker_events)) = queues();
        let worker = Worker::new(WorkerParts {
            id,
            pool,
            subscription: question.publisher.subscribe(),
            commands: worker_commands,
            events: worker_events,
            out,
            incoming,
            bell: Arc::new(Bell::new()?),
            counters: Arc::default(),
            flows,
            seed: 0,
        });
        let mut side = Side { worker, commands, events, ports: Vec::new(), records, given };
        side.add_ports(question, tables, id, arrived);
        while side.worker.pass(now_ns) > 0 {}
        side.worker.let_waiting_go(); // what a limit only delays arrives
        side.worker.settle();
        Ok(side)
    }

    /// All ports of the worker; the one that the packet came in by is the last.
    fn add_ports(
        &mut self,
        question: &Question<'_>,
        tables: &Tables,
        id: WorkerId,
        arrived: Option<SimPort>,
    ) {
        let own = |port: &PortId| *port != question.ingress || arrived.is_none();
        let ports = ports(tables).filter(|port| port.worker == id).map(|port| port.id).filter(own);
        let ports = ports.map(|port| (port, SimPort::new(port.0, TX_FRAMES)));
        let ports: Vec<_> = ports.collect();
        let ingress = arrived.map(|port| (question.ingress, port));
        for (number, (id, io)) in (1..).zip(ports.into_iter().chain(ingress)) {
            let is_pod = tables.port(id).is_some_and(|port| port.kind == PortKind::Pod);
            let counters = Arc::new(PortCounters::default());
            self.ports.push((id, counters.clone()));
            // A port that receives nothing has one frame, because a share is never empty.
            let frames = if id == question.ingress { CHAIN_MAX as u32 } else { 1 };
            let generation = if is_pod { GENERATION } else { 0 };
            let (io, share) = (Box::new(io), Share::fixed(frames));
            self.order(Command::AddPort { id, io, share, counters, generation });
            if number % ORDERS == 0 {
                self.worker.pass(question.now_ns);
            }
        }
    }

    fn order(&mut self, order: Command<SimPort>) {
        let taken = self.commands.push(order);
        assert!(taken.is_ok(), "the queue takes {ORDERS} orders between two passes");
    }

    /// Why it dropped something, if it did.
    fn dropped(&self) -> Option<Dropped> {
        let first = |counters: &DirectionCounters| counters.drops_by_reason().next();
        self.ports.iter().find_map(|(port, counters)| {
            let came = first(&counters.from_pod).map(|(reason, _)| (reason, false));
            let leaves = || first(&counters.to_pod).map(|(reason, _)| (reason, true));
            let (reason, is_leaving) = came.or_else(leaves)?;
            Some(Dropped { port: *port, is_leaving, reason })
        })
    }

    /// What it sent, in order.
    fn sent(&mut self, now_ns: u64) -> Vec<(PortId, Vec<u8>)> {
        let has_sent =
            |(_, counters): &&(PortId, Arc<PortCounters>)| counters.to_pod.packets.get() > 0;
        let ports: Vec<PortId> = self.ports.iter().filter(has_sent).map(|(id, _)| *id).collect();
        for id in ports {
            self.order(Command::RemovePort(id));
        }
        self.worker.pass(now_ns);
        let mut sent = Vec::new();
        while let Ok(event) = self.events.pop() {
            if let Event::Removed(id, mut io) = event {
                sent.extend(io.take_sent().into_iter().map(|packet| (id, packet.bytes)));
            }
        }
        sent
    }

    /// A flow that it was given.
    fn known(&self, key: &FlowKey) -> Option<Flow> {
        let is_its = |flow: &&Flow| flow.original == *key || flow.translated.inverse() == *key;
        self.given.iter().find(is_its).copied()
    }
}

/// Every port that is in the tables.
fn ports(tables: &Tables) -> impl Iterator<Item = &PortSpec> {
    (0..PORTS_MAX).filter_map(|id| tables.port(PortId(id as u16)))
}

fn memory(tables: &Tables, worker: WorkerId) -> io::Result<Arc<Area>> {
    let ports = ports(tables).filter(|port| port.worker == worker).count();
    Area::map(FRAMES + ports as u32).map(Arc::new)
}

/// The port that the packet comes in by, with the packet in its ring.
fn arrive(question: &Question<'_>, pool: &mut FramePool) -> SimPort {
    let mut port = SimPort::new(question.ingress.0, TX_FRAMES);
    port.refill(pool, CHAIN_MAX as u32);
    let arrived = port.arrive(pool, question.frame);
    assert!(arrived, "a packet of {} bytes fits into {CHAIN_MAX} frames", question.frame.len());
    port
}

/// The table of a worker, and the flows that are in it.
fn flows(
    question: &Question<'_>,
    tables: &Tables,
    worker: WorkerId,
) -> io::Result<(FlowTable, Vec<Flow>)> {
    // Room for those that it is given, and for the one that the packet opens.
    let room = FLOWS_MAX as u32 + 1;
    let words = Arc::new(Words::anonymous(Records::words(room))?);
    let mut table = FlowTable::new(TableParts {
        records: Records::format(words, [0, 0]),
        flows_per_owner: room,
        source_ports: question.source_ports.clone(),
        // Nobody else's flows meet in this table.
        seed: HashSeed([0, 0]),
        counters: Arc::default(),
    });
    let is_home = |flow: &&Flow| tables.port(flow.owner).is_some_and(|port| port.worker == worker);
    let given = question.flows.iter().filter(is_home).take(FLOWS_MAX);
    let mut given: Vec<Flow> = given.copied().collect();
    for flow in &mut given {
        flow.generation = GENERATION;
        table.admit_owner(flow.owner, GENERATION);
    }
    table.go_on(given, question.now_ns);
    let given = table.records().iter().collect();
    Ok((table, given))
}
