//! A node in memory: one or two workers over simulated ports, driven pass by pass by the test.
//!
//! ```text
//!   A, PLAIN ──► worker 0 ◄──► node port (id 0)
//!                  │  ▲  two crossing rings
//!                  ▼  │
//!   B, C, CUSTOM ──► worker 1        (with one worker all of them are on worker 0)
//! ```
//!
//! Both conservation laws hold after every run, and at the end of every test each frame is on the
//! free list again: [`Node`] checks it when it is dropped.

#![allow(dead_code)] // Every test program uses another part.

pub mod input;
pub mod packet;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use dataplane::conntrack::{
    Endpoint, Flow, FlowCounters, FlowTable, HashSeed, Records, TableParts, Transport,
};
use dataplane::counters::{DirectionCounters, PortCounters, WorkerCounters};
use dataplane::crossing::{Bell, CrossingIn, CrossingOut, crossing};
use dataplane::drop::DropReason;
use dataplane::explain::{Outcome, Question, explain};
use dataplane::fib::{Action, ActionId, Fib, NextHop, UplinkId};
use dataplane::frame::{FramePool, Packet};
use dataplane::host_ports::{HostAddress, HostPort, HostPorts, Masquerade, Target};
use dataplane::offload::Hints;
use dataplane::port::{KernelDrops, Kicked, Mac, PacketIo, Partial, PortId, WorkerId};
use dataplane::publish::Publisher;
use dataplane::shaper::Limits;
use dataplane::share::Share;
use dataplane::sim::{Sent, SimPort};
use dataplane::tables::{PortKind, PortSpec, Prefix, Tables, TablesInput, Uplink};
use dataplane::worker::{BATCH_MAX, Command, Event, Rest, Worker, WorkerParts, queues};
use dataplane::xsk::area::Area;
use dataplane::xsk::words::Words;
use rtrb::{Consumer, Producer};

/// The only port that a flow gets as source where the client's is taken.
const SOURCE_PORTS: RangeInclusive<u16> = 61_000..=61_000;

/// What is at the far end of a port.
#[derive(Debug)]
pub struct End {
    pub id: PortId,
    pub name: &'static str,
    pub mac: Mac,
    pub gateway_mac: Mac,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub mtu: usize,
}

impl End {
    /// Whether it is a pod of this node.
    pub fn is_pod(&self) -> bool {
        !["node", "uplink", "veth uplink"].contains(&self.name)
    }
}

const fn end(id: u8, name: &'static str, mtu: usize) -> End {
    End {
        id: PortId(id as u16),
        name,
        mac: [0x0a, 0, 0, 0, 0, id],
        gateway_mac: [0x0a, 0xff, 0, 0, 0, id],
        v4: Ipv4Addr::new(10, 244, 1, 10 + id),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0x10 + id as u16),
        mtu,
    }
}

/// The node itself, behind `viaduct0`.
pub const NODE: End = End {
    v4: Ipv4Addr::new(192, 0, 2, 1),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    ..end(0, "node", 1500)
};
pub const A: End = end(1, "A", 1500);
pub const B: End = end(2, "B", 1500);
/// A pod with a smaller route MTU.
pub const C: End = end(3, "C", 1300);
/// A pod whose MAC was given by the runtime.
pub const CUSTOM: End = End { mac: [0x5e, 0xad, 0xbe, 0xef, 0, 1], ..end(4, "custom", 1500) };
/// A pod in basic mode: its port completes no checksums, its interface takes no super-packets.
pub const PLAIN: End = end(5, "plain", 1500);

/// A pod of another node, behind the router on the wire: `mac` is the router's, `gateway_mac` that
/// of our NIC. The first queue of the uplink belongs to worker 0.
pub const UPLINK: End = End {
    v4: Ipv4Addr::new(10, 244, 2, 9),
    v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, 2, 0, 0, 0, 9),
    ..end(6, "uplink", 1500)
};
/// The same, by the second queue, which belongs to worker 1 if there is one. Here nobody vouches
/// for checksums, as on a veth.
pub const VETH_UPLINK: End =
    End { id: PortId(7), name: "veth uplink", gateway_mac: UPLINK.gateway_mac, ..UPLINK };

/// Every port there is at the start, the node's first.
pub const ENDS: [&End; 8] = [&NODE, &A, &B, &C, &CUSTOM, &PLAIN, &UPLINK, &VETH_UPLINK];

/// Pods of other nodes: behind a route with a smaller MTU, behind a router that is not resolved,
/// behind another interface of the node, and in a prefix that is left to the kernel.
pub const NARROW: [&str; 2] = ["10.244.3.9", "fd00:10:244:3::9"];
pub const NARROW_MTU: u32 = 1280;
pub const UNRESOLVED: [&str; 2] = ["10.244.4.9", "fd00:10:244:4::9"];
pub const ELSEWHERE: [&str; 2] = ["10.244.5.9", "fd00:10:244:5::9"];
pub const CARVED_OUT: [&str; 2] = ["10.244.6.9", "fd00:10:244:6::9"];

/// An address of the pod network without a pod.
pub const NOBODY_V4: &str = "10.244.1.200";
pub const NOBODY_V6: &str = "fd00:10:244:1::200";
/// Addresses beyond the node.
pub const FAR_V4: &str = "198.51.100.7";
pub const FAR_V6: &str = "2001:db8:ffff::7";

/// How the node is made.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// 1 or 2.
    pub workers: usize,
    /// Frames of each worker.
    pub frames: u32,
    /// Frames in each fill ring; twice as many for a port that lacks them.
    pub fill: u32,
    /// Frames in each tx ring.
    pub tx: usize,
    /// Whether the ports complete checksums (`PLAIN` never does).
    pub tx_checksum: bool,
    /// Whether there is a node port.
    pub node_port: bool,
    /// Flows of each worker, and of each pod at most.
    pub flows: u32,
    pub flows_per_pod: u32,
    /// Whether there are the host ports of [`host_ports`].
    pub host_ports: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            workers: 1,
            frames: 1024,
            fill: 64,
            tx: 256,
            tx_checksum: true,
            node_port: true,
            flows: 64,
            flows_per_pod: 48,
            host_ports: false,
        }
    }
}

impl Setup {
    /// The worker that a port is homed on.
    fn home(self, id: PortId) -> WorkerId {
        let far = matches!(id.0, 2..=4 | 7);
        WorkerId(u16::from(self.workers == 2 && far))
    }

    fn spec(self, end: &End) -> PortSpec {
        let kind = match end.name {
            "node" => PortKind::Node,
            "uplink" | "veth uplink" => PortKind::Uplink,
            _ => PortKind::Pod,
        };
        let addresses = match kind {
            PortKind::Node | PortKind::Uplink => Vec::new(),
            PortKind::Pod => vec![IpAddr::V4(end.v4), IpAddr::V6(end.v6)],
        };
        PortSpec {
            id: end.id,
            worker: self.home(end.id),
            kind,
            mac: if kind == PortKind::Uplink { [0; 6] } else { end.mac },
            gateway_mac: end.gateway_mac,
            mtu: end.mtu,
            device_mtu: if end.id == PLAIN.id { end.mtu } else { 65_535 },
            addresses,
            hints: match end.name {
                "uplink" => Hints::Complete,
                "veth uplink" => Hints::Inferred,
                _ => Hints::Marker,
            },
            tx_checksum: self.tx_checksum && end.id != PLAIN.id && kind != PortKind::Uplink,
            limits: Limits::default(),
        }
    }

    fn tables(self) -> TablesInput {
        let ends = ENDS.into_iter().filter(|end| self.node_port || end.id != NODE.id);
        TablesInput {
            ports: ends.map(|end| self.spec(end)).collect(),
            pod_cidrs: vec![
                Prefix { address: Ipv4Addr::new(10, 244, 1, 0).into(), len: 24 },
                Prefix {
                    address: Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0).into(),
                    len: 64,
                },
            ],
            node_addresses: vec![NODE.v4.into(), NODE.v6.into()],
            direct: prefixes("10.244.0.0/16", "fd00:10:244::/48")
                .map(|net| (net, true))
                .into_iter()
                .chain(prefixes("10.244.6.0/24", "fd00:10:244:6::/64").map(|net| (net, false)))
                .collect(),
            uplinks: vec![Uplink { id: UplinkId(0), ports: vec![UPLINK.id, VETH_UPLINK.id] }],
            fib: fib(),
            host_ports: Arc::new(if self.host_ports { host_ports() } else { HostPorts::default() }),
        }
    }
}

/// A port of every address of the node that leads to a port of a pod, for TCP, UDP and SCTP.
#[derive(Debug)]
pub struct Mapped {
    pub host_port: u16,
    pub pod: &'static End,
    pub port: u16,
    pub masquerade: Masquerade,
}

const fn mapped(host_port: u16, pod: &'static End, port: u16, masquerade: Masquerade) -> Mapped {
    Mapped { host_port, pod, port, masquerade }
}

/// Leads to B, which sees its own source masqueraded.
pub const TO_B: Mapped = mapped(8080, &B, 80, Masquerade::Itself);
/// Leads to B, which sees nobody's source (`masqAll`).
pub const HIDDEN: Mapped = mapped(8081, &B, 81, Masquerade::Everybody);
/// Leads to B, which sees everybody's source (`snat: false`).
pub const BARE: Mapped = mapped(8082, &B, 82, Masquerade::Nobody);
/// Leads to a pod in basic mode.
pub const TO_PLAIN: Mapped = mapped(8083, &PLAIN, 80, Masquerade::Itself);
/// Leads to a pod with a smaller route MTU.
pub const TO_C: Mapped = mapped(8084, &C, 80, Masquerade::Itself);

/// All of the above.
pub fn host_ports() -> HostPorts {
    let mut host_ports = HostPorts::default();
    for Mapped { host_port, pod, port, masquerade } in [TO_B, HIDDEN, BARE, TO_PLAIN, TO_C] {
        for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
            let addresses: [(HostAddress, IpAddr); 2] =
                [(HostAddress::AnyV4, pod.v4.into()), (HostAddress::AnyV6, pod.v6.into())];
            for (address, serving) in addresses {
                let serving = Endpoint { address: serving, port };
                let target = Target { pod: pod.id, serving, masquerade };
                host_ports.insert(HostPort { transport, address, port: host_port }, target);
            }
        }
    }
    host_ports
}

/// A prefix of each family.
fn prefixes(v4: &str, v6: &str) -> [Prefix; 2] {
    [v4, v6].map(|text| {
        let (address, len) = text.split_once('/').expect("a prefix");
        Prefix {
            address: address.parse().expect("an address"),
            len: len.parse().expect("a length"),
        }
    })
}

/// The node's routes to other nodes.
fn fib() -> Fib {
    let by_router = |mac, mtu| Action::Uplink {
        hops: vec![NextHop {
            uplink: UplinkId(0),
            via: Some(Ipv4Addr::new(192, 0, 2, 254).into()),
            mac,
            weight: 1,
        }],
        mtu,
    };
    let mut fib = Fib::default();
    fib.set_tables(1);
    let routes = [
        ("10.244.0.0/16", "fd00:10:244::/48", by_router(Some(UPLINK.mac), None)),
        ("10.244.3.0/24", "fd00:10:244:3::/64", by_router(Some(UPLINK.mac), Some(NARROW_MTU))),
        ("10.244.4.0/24", "fd00:10:244:4::/64", by_router(None, None)),
        ("10.244.5.0/24", "fd00:10:244:5::/64", Action::Kernel),
    ];
    for (number, (v4, v6, action)) in (0..).zip(routes) {
        fib.set_action(ActionId(number), action);
        for prefix in prefixes(v4, v6) {
            fib.insert(0, prefix, ActionId(number));
        }
    }
    fib
}

/// Frames that a worker without limits may hold between passes: of packets that more may be merged
/// with.
const HELD_FRAMES_MAX: u32 = 32 * 18;

/// Which direction of a port's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    FromPod,
    ToPod,
}

/// One end of a simulated link; the test and the worker share it.
#[derive(Clone, Debug)]
pub struct Wire(Rc<RefCell<Line>>);

#[derive(Debug)]
struct Line {
    port: SimPort,
    arriving: VecDeque<Vec<u8>>,
    /// Packets that arrive again and again, and the next of them.
    replayed: (Rc<[Vec<u8>]>, usize),
    /// Packets that arrive in one pass.
    burst: usize,
    /// The far end takes nothing.
    stalled: bool,
    /// Packets that the interface refuses at the next wake-up.
    refusing: u64,
    /// What the kernel says of the socket, if not what the simulated one counts.
    kernel_drops: Option<KernelDrops>,
    /// Frames that its worker may hold between passes.
    held_max: u32,
    /// Packets to be sent until the worker is ordered to stop, by whom.
    stop_after: Option<(usize, Producer<Command<Wire>>)>,
}

impl Line {
    fn note_sent(&mut self) {
        let Some((left, commands)) = &mut self.stop_after else { return };
        *left -= 1;
        if *left == 0 {
            commands.push(Command::Stop).expect("the queue of orders has room");
            self.stop_after = None;
        }
    }
}

impl PacketIo for Wire {
    fn receive(&mut self, pool: &mut FramePool, batch: &mut Vec<Packet>, room: usize) -> u64 {
        let mut line = self.0.borrow_mut();
        let line = &mut *line;
        let (packets, next) = &mut line.replayed;
        let replays = if packets.is_empty() { 0 } else { room };
        for _ in 0..replays {
            line.port.arrive(pool, &packets[*next]);
            *next = (*next + 1) % packets.len();
        }
        for _ in 0..line.burst {
            let Some(bytes) = line.arriving.pop_front() else { break };
            line.port.arrive(pool, &bytes);
        }
        line.port.receive(pool, batch, room)
    }

    fn transmit(
        &mut self,
        pool: &mut FramePool,
        packet: Packet,
        partial: Option<Partial>,
    ) -> Result<(), Packet> {
        let mut line = self.0.borrow_mut();
        line.port.transmit(pool, packet, partial)?;
        line.note_sent();
        Ok(())
    }

    fn reclaim(&mut self, pool: &mut FramePool) {
        // A port is served when the packets of the one before it are gone, or are held.
        let mut line = self.0.borrow_mut();
        let lost = pool.count().work > line.held_max;
        assert!(!lost, "frames lost: {:?}", pool.count());
        line.port.reclaim(pool);
    }

    fn refill(&mut self, pool: &mut FramePool, share: u32) {
        self.0.borrow_mut().port.refill(pool, share);
    }

    fn kick(&mut self) -> Kicked {
        let mut line = self.0.borrow_mut();
        if line.stalled {
            return Kicked { pending: true, ..Kicked::default() };
        }
        let refused = std::mem::take(&mut line.refusing);
        Kicked { refused, ..line.port.kick() }
    }

    fn abandon(&mut self, pool: &mut FramePool) {
        self.0.borrow_mut().port.abandon(pool);
    }

    fn kernel_drops(&self) -> KernelDrops {
        let line = self.0.borrow();
        line.kernel_drops.unwrap_or_else(|| line.port.kernel_drops())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

struct Link {
    /// Not ordered to go.
    live: bool,
    wire: Wire,
    counters: Arc<PortCounters>,
    home: WorkerId,
}

impl Link {
    /// Packets that the worker dropped while it had them in hand, by all reasons. The rest of the
    /// reasons count what it never received, and what it has sent: both are no terms of the law.
    fn drops_in_hand(&self) -> u64 {
        use DropReason::{BadDescriptor, RxDropped, RxFillEmpty, RxRingFull, TxInvalid, TxRefused};
        let others = [TxRefused, BadDescriptor, RxFillEmpty, RxRingFull, RxDropped, TxInvalid];
        let PortCounters { from_pod, to_pod, .. } = &*self.counters;
        let in_hand = |counters: &DirectionCounters| {
            let others = others.map(|reason| counters.drops[reason as usize].get());
            counters.dropped() - others.iter().sum::<u64>()
        };
        in_hand(from_pod) + in_hand(to_pod)
    }
}

struct Side {
    worker: Worker<Wire>,
    counters: Arc<WorkerCounters>,
    flows: Arc<FlowCounters>,
    records: Records,
    commands: Producer<Command<Wire>>,
    events: Consumer<Event<Wire>>,
}

/// The node.
pub struct Node {
    setup: Setup,
    sides: Vec<Side>,
    links: BTreeMap<PortId, Link>,
    /// Ports whose number another has now.
    former: Vec<Link>,
    /// Flows of some pod were to be gone.
    retired: bool,
    /// Some pod has had a limit: any number of frames may be held.
    limited: bool,
    publisher: Publisher,
    tables: TablesInput,
    generation: u64,
    now_ns: u64,
}

impl Node {
    /// A node with every port of [`ENDS`], all rings filled.
    pub fn new(setup: Setup) -> Node {
        let tables = setup.tables();
        let publisher = Publisher::new(Tables::new(1, tables.clone()));
        let mut node = Node {
            sides: sides(setup, &publisher),
            links: BTreeMap::new(),
            former: Vec::new(),
            retired: false,
            limited: false,
            publisher,
            generation: 1,
            now_ns: 1_000_000_000,
            setup,
            tables,
        };
        for end in ENDS {
            if setup.node_port || end.id != NODE.id {
                node.add_port(end.id);
            }
        }
        node.run();
        node
    }

    /// A port appears on its worker. What the tables say of it is another matter.
    pub fn add_port(&mut self, id: PortId) {
        let port = SimPort::new(id.0, self.setup.tx);
        self.add_rings(id, self.setup.home(id), port, self.setup.fill);
    }

    fn add_rings(&mut self, id: PortId, home: WorkerId, port: SimPort, fill: u32) {
        let line = Line {
            port,
            arriving: VecDeque::new(),
            replayed: (Rc::new([]), 0),
            burst: BATCH_MAX,
            stalled: false,
            refusing: 0,
            kernel_drops: None,
            held_max: if self.limited { u32::MAX } else { HELD_FRAMES_MAX },
            stop_after: None,
        };
        let wire = Wire(Rc::new(RefCell::new(line)));
        let counters = Arc::new(PortCounters::default());
        let (io, counts) = (Box::new(wire.clone()), counters.clone());
        let share = Share::between(fill, 2 * fill);
        let generation = self.generation_of(id);
        self.order(home, Command::AddPort { id, io, share, counters: counts, generation });
        self.former.extend(self.links.insert(id, Link { live: true, wire, counters, home }));
    }

    /// Pods have a generation, other ports have none.
    fn generation_of(&self, id: PortId) -> u32 {
        let pod = ENDS.into_iter().find(|end| end.id == id && end.is_pod());
        pod.map_or(0, |_| 1)
    }

    /// Orders the worker to forget the flows of a pod that is gone.
    pub fn retire_flows(&mut self, owner: PortId) {
        self.retired = true;
        self.order(self.links[&owner].home, Command::RetireFlows { owner });
    }

    /// Orders every worker to forget the flows of these host ports.
    pub fn forget_flows(&mut self, host_ports: &[HostPort]) {
        let host_ports: Arc<[HostPort]> = host_ports.into();
        for worker in 0..self.sides.len() {
            let host_ports = host_ports.clone();
            self.order(WorkerId(worker as u16), Command::ForgetFlows { host_ports });
        }
    }

    /// What becomes of a packet that does not arrive. `None` once flows were retired: the tables
    /// know the pod still, and nobody asks in between.
    pub fn explain(&self, ingress: PortId, frame: &[u8]) -> Option<Outcome> {
        if self.retired {
            return None;
        }
        let (publisher, flows, now_ns) = (&self.publisher, &self.all_flows(), self.now_ns);
        let question =
            Question { publisher, ingress, frame, flows, source_ports: SOURCE_PORTS, now_ns };
        Some(explain(&question).expect("memory"))
    }

    /// What the table of flows of a worker has counted.
    pub fn flows(&self, worker: usize) -> &FlowCounters {
        &self.sides[worker].flows
    }

    /// Every flow there is, worker by worker.
    pub fn all_flows(&self) -> Vec<Flow> {
        self.sides.iter().flat_map(|side| side.records.iter()).collect()
    }

    /// Orders the worker to serve a port no more.
    pub fn remove_port(&mut self, id: PortId) {
        let link = self.links.get_mut(&id).expect("a port that was added");
        link.live = false;
        let home = link.home;
        self.order(home, Command::RemovePort(id));
    }

    /// Orders the worker to take back the frames of a removed port.
    pub fn reclaim_port(&mut self, id: PortId) {
        self.order(self.setup.home(id), Command::ReclaimPort(id));
    }

    fn order(&mut self, worker: WorkerId, command: Command<Wire>) {
        let side = &mut self.sides[usize::from(worker.0)];
        side.commands.push(command).expect("the queue of orders has room");
    }

    /// Publishes tables that `change` has changed.
    pub fn publish(&mut self, change: impl FnOnce(&mut TablesInput)) {
        change(&mut self.tables);
        self.generation += 1;
        self.publisher.publish(Tables::new(self.generation, self.tables.clone()));
    }

    /// Takes a port out of the tables.
    pub fn unlist(&mut self, id: PortId) {
        self.publish(|tables| tables.ports.retain(|port| port.id != id));
    }

    /// Puts a port of [`ENDS`] back into the tables.
    pub fn list(&mut self, end: &End) {
        let spec = self.setup.spec(end);
        self.publish(|tables| tables.ports.push(spec));
    }

    /// Limits a pod from now on.
    pub fn limit(&mut self, id: PortId, limits: Limits) {
        self.limited = true;
        for link in self.links.values() {
            link.wire.0.borrow_mut().held_max = u32::MAX;
        }
        self.publish(|tables| {
            let pod = tables.ports.iter_mut().find(|port| port.id == id);
            pod.expect("a listed port").limits = limits;
        });
    }

    fn has_limits(&self) -> bool {
        self.tables.ports.iter().any(|port| port.limits != Limits::default())
    }

    /// Whether the tables know the port.
    pub fn lists(&self, id: PortId) -> bool {
        self.tables.ports.iter().any(|port| port.id == id)
    }

    /// A packet arrives from the far end of a port in the next pass, if the port is there.
    pub fn inject(&mut self, id: PortId, bytes: Vec<u8>) {
        if self.links[&id].live {
            self.line(id, |line| line.arriving.push_back(bytes));
        }
    }

    /// From now on these packets arrive in every pass, as many as the worker takes, and what the
    /// port sends is forgotten. None of this allocates.
    pub fn replay(&mut self, id: PortId, packets: Rc<[Vec<u8>]>) {
        self.line(id, |line| {
            line.replayed = (packets, 0);
            line.port.discard_sent();
        });
    }

    /// Whatever is waiting arrives in one pass, also what finds no frame to lie in.
    pub fn burst(&mut self, id: PortId) {
        self.line(id, |line| line.burst = usize::MAX);
    }

    /// The far end of a port stops, or starts again, to take packets.
    pub fn stall(&mut self, id: PortId, stalled: bool) {
        self.line(id, |line| line.stalled = stalled);
    }

    /// The interface refuses `packets` of what was queued.
    pub fn refuse(&mut self, id: PortId, packets: u64) {
        self.line(id, |line| line.refusing = packets);
    }

    /// From now on the kernel says that it dropped so much at the socket.
    pub fn set_kernel_drops(&mut self, id: PortId, drops: KernelDrops) {
        self.line(id, |line| line.kernel_drops = Some(drops));
    }

    /// A descriptor that a sane kernel would not write.
    pub fn corrupt(&mut self, id: PortId, address: u64, len: u32) {
        self.line(id, |line| line.port.corrupt_rx(address, len));
    }

    fn line<T>(&mut self, id: PortId, act: impl FnOnce(&mut Line) -> T) -> T {
        act(&mut self.links[&id].wire.0.borrow_mut())
    }

    /// One pass of one worker; returns how many packets it took in.
    pub fn pass(&mut self, worker: usize) -> usize {
        let taken = self.sides[worker].worker.pass(self.now_ns);
        self.collect();
        self.assert_laws();
        taken
    }

    /// Passes of all workers until nothing moves and nothing is held any more but what waits for a
    /// limit, and one for what was sent to complete.
    pub fn run(&mut self) {
        let mut idle = 0;
        while idle < 2 {
            let mut taken = 0;
            for worker in 0..self.sides.len() {
                let taken_by_one = self.pass(worker);
                if taken_by_one == 0 {
                    self.sides[worker].worker.settle();
                }
                taken += taken_by_one;
            }
            let waits = |link: &Link| link.live && !link.wire.0.borrow().arriving.is_empty();
            let waiting = self.links.values().any(waits);
            idle = if taken == 0 && !waiting { idle + 1 } else { 0 };
        }
        if self.has_limits() {
            return; // what waits for its limit has frames
        }
        for (number, side) in self.sides.iter().enumerate() {
            let counters = &side.counters;
            let places = [&counters.frames_free, &counters.frames_rx, &counters.frames_tx];
            let known: u64 = places.map(|place| place.get()).iter().sum();
            let all = known + counters.frames_crossing.get();
            assert_eq!(all, counters.frames_total.get(), "held, worker {number}: {counters:#?}");
        }
    }

    /// Stops all workers, one after another, for good: what they have not sent then is lost.
    pub fn stop(&mut self) {
        for mut side in std::mem::take(&mut self.sides) {
            side.commands.push(Command::Stop).expect("the queue of orders has room");
            side.worker.run(Rest::new().expect("a descriptor"));
            let counters = &side.counters;
            assert!(counters.packets_conserved(), "packet law at the end: {counters:#?}");
            assert!(counters.frames_conserved(), "frame law at the end: {counters:#?}");
        }
    }

    /// The only worker runs by the machine's clock until a port has sent so many packets, and stops
    /// for good.
    pub fn run_until_sent(&mut self, id: PortId, packets: usize) {
        let side = self.sides.pop().expect("one worker");
        assert!(self.sides.is_empty() && packets > 0, "one worker, some packets");
        self.line(id, |line| line.stop_after = Some((packets, side.commands)));
        side.worker.run(Rest::new().expect("a descriptor"));
    }

    /// Takes the answers of the workers, and with them the rings of removed ports.
    fn collect(&mut self) {
        for side in &mut self.sides {
            while let Ok(_removed_or_reclaimed) = side.events.pop() {}
        }
    }

    /// What workers do ten times a second.
    pub fn housekeep(&mut self) {
        for side in &mut self.sides {
            side.worker.housekeep(self.now_ns);
        }
    }

    /// Time passes.
    pub fn advance(&mut self, ns: u64) {
        self.now_ns += ns;
    }

    /// What time it is.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// It is another time, perhaps an earlier one.
    pub fn set_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// What a port has sent since the last call.
    pub fn sent(&mut self, id: PortId) -> Vec<Sent> {
        self.line(id, |line| line.port.take_sent())
    }

    /// What a port has counted in one direction.
    pub fn counters(&self, id: PortId, direction: Direction) -> &DirectionCounters {
        let counters = &self.links[&id].counters;
        match direction {
            Direction::FromPod => &counters.from_pod,
            Direction::ToPod => &counters.to_pod,
        }
    }

    /// Super-packets that a pod's kernel has refused.
    pub fn refused_whole(&self, id: PortId) -> u64 {
        self.links[&id].counters.refused_whole.get()
    }

    /// Packets that a port has dropped for one reason.
    pub fn drops(&self, id: PortId, direction: Direction, reason: DropReason) -> u64 {
        self.counters(id, direction).drops[reason as usize].get()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.sides.len()
    }

    /// What a worker has counted.
    pub fn worker(&self, worker: usize) -> &WorkerCounters {
        &self.sides[worker].counters
    }

    /// Every drop that was counted, by port, direction and reason.
    pub fn all_drops(&self) -> Vec<(PortId, Direction, DropReason, u64)> {
        let mut drops = Vec::new();
        for (id, link) in &self.links {
            let both = [
                (Direction::FromPod, &link.counters.from_pod),
                (Direction::ToPod, &link.counters.to_pod),
            ];
            for (direction, counters) in both {
                let reasons = counters.drops_by_reason();
                drops.extend(reasons.map(|(reason, n)| (*id, direction, reason, n)));
            }
        }
        drops
    }

    /// The packet law and the frame law, on every worker, and that every drop has a reason.
    pub fn assert_laws(&mut self) {
        for (number, side) in self.sides.iter_mut().enumerate() {
            side.worker.publish_frame_counts();
            let counters = &side.counters;
            assert!(counters.packets_conserved(), "packet law, worker {number}: {counters:#?}");
            assert!(counters.frames_conserved(), "frame law, worker {number}: {counters:#?}");
            let links = self.links.values().chain(&self.former);
            let own = links.filter(|link| usize::from(link.home.0) == number);
            let by_ports: u64 = own.map(Link::drops_in_hand).sum();
            let reasons = by_ports + counters.port_down.get();
            assert_eq!(counters.dropped.get(), reasons, "reasons, worker {number}: {counters:#?}");
        }
    }

    /// Nothing is under way: what was sent has completed, and every port that is there has all the
    /// frames to receive into that it had at first.
    pub fn assert_at_rest(&self) {
        for (number, side) in self.sides.iter().enumerate() {
            let counters = &side.counters;
            let own = |link: &&Link| link.live && usize::from(link.home.0) == number;
            let ports = self.links.values().filter(own).count() as u64;
            let filled = ports * u64::from(self.setup.fill);
            let at_rest = counters.frames_rx.get() == filled
                && counters.frames_tx.get() == 0
                && counters.frames_crossing.get() == 0;
            assert!(at_rest, "frames are missing, worker {number}: {counters:#?}");
        }
    }

    /// Removes every port and shows that the workers have every frame on the free list: no packet
    /// was lost on the way.
    fn assert_nothing_leaked(&mut self) {
        let ids: Vec<PortId> = self.links.keys().copied().collect();
        for id in &ids {
            self.line(*id, |line| {
                line.arriving.clear();
                line.replayed = (Rc::new([]), 0);
                line.stalled = false;
            });
        }
        self.run();
        for id in &ids {
            self.remove_port(*id);
        }
        self.run();
        for id in &ids {
            self.order(self.links[id].home, Command::ReclaimPort(*id));
        }
        self.run();
        for worker in 0..self.sides.len() {
            // A port that wants all frames gets all frames.
            let id = PortId(100 + worker as u16);
            let port = SimPort::new(id.0, 1);
            self.add_rings(id, WorkerId(worker as u16), port, self.setup.frames);
        }
        self.run();
        for (number, side) in self.sides.iter().enumerate() {
            let counters = &side.counters;
            let all = counters.frames_total.get();
            assert_eq!(
                counters.frames_rx.get(),
                all,
                "frames lost, worker {number}: {counters:#?}"
            );
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.sides.is_empty() {
            self.assert_nothing_leaked();
        }
    }
}

fn sides(setup: Setup, publisher: &Publisher) -> Vec<Side> {
    let map = |_| (Arc::new(Area::map(setup.frames).expect("memory")), bell());
    let ground: Vec<(Arc<Area>, Arc<Bell>)> = (0..setup.workers).map(map).collect();
    let mut rings: Vec<(Vec<Option<CrossingOut>>, Vec<CrossingIn>)> =
        (0..setup.workers).map(|_| (Vec::new(), Vec::new())).collect();
    for (from, (area, _)) in ground.iter().enumerate() {
        for (to, (_, bell)) in ground.iter().enumerate() {
            if from == to {
                rings[from].0.push(None);
                continue;
            }
            let (out, incoming) = crossing(area.clone(), bell.clone());
            rings[from].0.push(Some(out));
            rings[to].1.push(incoming);
        }
    }
    let side = |(index, ((area, bell), (out, incoming)))| {
        side(index, setup, FramePool::new(area), bell, out, incoming, publisher)
    };
    ground.into_iter().zip(rings).enumerate().map(side).collect()
}

fn side(
    index: usize,
    setup: Setup,
    pool: FramePool,
    bell: Arc<Bell>,
    out: Vec<Option<CrossingOut>>,
    incoming: Vec<CrossingIn>,
    publisher: &Publisher,
) -> Side {
    let ((commands, events), (command_queue, event_queue)) = queues();
    let counters = Arc::new(WorkerCounters::default());
    let flow_counters = Arc::new(FlowCounters::default());
    let flows = FlowTable::new(TableParts {
        records: Records::format(
            Arc::new(Words::anonymous(Records::words(setup.flows)).expect("memory")),
            [0; 2],
        ),
        flows_per_owner: setup.flows_per_pod,
        source_ports: SOURCE_PORTS,
        seed: HashSeed([7, index as u64]),
        counters: flow_counters.clone(),
    });
    let records = flows.records().clone();
    let worker = Worker::new(WorkerParts {
        id: WorkerId(index as u16),
        pool,
        subscription: publisher.subscribe(),
        commands: command_queue,
        events: event_queue,
        out,
        incoming,
        bell,
        counters: counters.clone(),
        flows,
        seed: 7,
    });
    Side { worker, counters, flows: flow_counters, records, commands, events }
}

fn bell() -> Arc<Bell> {
    Arc::new(Bell::new().expect("an eventfd"))
}
