//! The worker threads as control sees them: started, given ports and tables, watched, stopped.

mod foundation;
mod uplink;

pub use foundation::Foundation;
pub use uplink::UplinkPort;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::conntrack::{Carried, FlowCounters, FlowTable, Records};
use dataplane::counters::{PortCounters, WorkerCounters};
use dataplane::crossing::{Bell, crossing};
use dataplane::host_ports::HostPort;
use dataplane::port::{PortId, WorkerId};
use dataplane::publish::Publisher;
use dataplane::share::Share;
use dataplane::tables::{Tables, TablesInput};
use dataplane::worker::{Command, Event, Rest, Worker, WorkerParts, queues};
use dataplane::xsk::area::Area;
use dataplane::xsk::port::{NODE_SHARE, POD_RINGS, POD_SHARE, XskPort};
use dataplane::xsk::sentinel::{Guard, Sentinels};
use dataplane::xsk::socket::{Memory, Queue, Socket, SocketError, SocketFeatures};
use thiserror::Error;

/// Slot of the node port.
pub const NODE_SLOT: u16 = 0;

/// Slots of the uplinks' queues, above the node port's: two NICs with as many queues as a large
/// machine has cores. Pods have the slots above.
pub const UPLINK_PORTS_MAX: u16 = 128;

/// How long a bind waits for the sockets of a dead process: 110 of them close in 1.3 s.
const BIND_DEADLINE: Duration = Duration::from_secs(5);

/// How long control waits for all workers to adopt a snapshot. A pass takes microseconds; a
/// worker that needs this long hangs.
const ADOPT_DEADLINE: Duration = Duration::from_secs(2);

/// Generation of what is no pod.
const NO_POD: u32 = 0;

/// Why workers could not do what was asked.
#[derive(Debug, Error)]
pub enum WorkersError {
    /// A socket could not be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Memory could not be mapped.
    #[error("map {frames} frames of memory for worker {worker}: {source}; lower [workers] frames")]
    Memory {
        /// The worker.
        worker: u16,
        /// Frames asked for.
        frames: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A thread or one of its descriptors could not be made.
    #[error("start worker {worker}: {source}")]
    Start {
        /// The worker.
        worker: u16,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The order queue of a worker is full.
    #[error("worker {0} does not take orders; restart viaductd")]
    Busy(u16),
    /// A worker does not adopt the tables.
    #[error(
        "worker {worker} has not adopted tables {generation} within {ADOPT_DEADLINE:?}; \
         restart viaductd if it does not recover"
    )]
    Stuck {
        /// The worker.
        worker: u16,
        /// The generation it was to adopt.
        generation: u64,
    },
}

/// What workers are started with.
#[derive(Debug)]
pub struct WorkersConfig<'a> {
    /// One worker per core.
    pub cores: &'a [usize],
    /// Frames per worker.
    pub frames: u32,
    /// What sockets may use.
    pub features: SocketFeatures,
    /// Name of the node port's AF_XDP end.
    pub node_device: &'a str,
    /// Its index; it has one queue per worker.
    pub node_ifindex: u32,
}

/// The flows that a worker begins with.
pub struct WorkerFlows {
    /// The worker's own from now on.
    pub table: FlowTable,
    /// What it counts.
    pub counters: Arc<FlowCounters>,
}

/// One worker as control sees it.
#[derive(Debug)]
pub struct WorkerHandle {
    /// Its number.
    pub id: u16,
    /// The core it is pinned to.
    pub core: usize,
    /// What it counts.
    pub counters: Arc<WorkerCounters>,
    /// Its memory of flows, to be listed.
    pub flows: Records,
    /// What happened to them.
    pub flow_counters: Arc<FlowCounters>,
    /// Bytes of its memory, and whether hugepages back it.
    pub hugepages: bool,
    commands: rtrb::Producer<Command<XskPort>>,
    events: rtrb::Consumer<Event<XskPort>>,
    /// Events that came while another was waited for.
    unread: VecDeque<Event<XskPort>>,
    bell: Arc<Bell>,
    area: Arc<Area>,
    /// A socket on the node port's queue of this worker, whose memory all its ports share.
    anchor: OwnedFd,
    /// Kept open: the anchor of a worker without the node port.
    _anchor_socket: Option<Socket>,
    /// It hangs.
    out: bool,
    /// The newest tables that control has waited for in vain.
    missed: u64,
    /// Its sentinels, while it is in charge of its ports.
    guard: Option<Guard>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    fn order(&mut self, command: Command<XskPort>) -> Result<(), WorkersError> {
        self.commands.push(command).map_err(|_| WorkersError::Busy(self.id))?;
        self.bell.ring();
        Ok(())
    }
}

/// All workers.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<WorkerHandle>,
    publisher: Publisher,
    generation: u64,
    features: SocketFeatures,
    node_device: String,
    node_ifindex: u32,
    counters: HashMap<PortId, Arc<PortCounters>>,
    homes: HashMap<PortId, u16>,
}

impl Workers {
    /// Maps memory and binds the anchors. Nothing runs yet: [`Workers::raise`] takes what was laid.
    /// Returns the node port's socket as well, for the socket map.
    pub fn lay(
        config: WorkersConfig<'_>,
    ) -> Result<(Workers, Vec<Foundation>, OwnedFd), WorkersError> {
        let WorkersConfig { cores, frames, features, node_device, node_ifindex } = config;
        let publisher = Publisher::new(Tables::new(1, TablesInput::default()));
        let mut foundations = Vec::with_capacity(cores.len());
        for (worker, core) in (0u16..).zip(cores) {
            let queue =
                Queue { device: node_device, ifindex: node_ifindex, queue: u32::from(worker) };
            foundations.push(Foundation::lay(queue, *core, frames, features)?);
        }
        let workers = Workers {
            workers: Vec::with_capacity(cores.len()),
            publisher,
            generation: 1,
            features,
            node_device: node_device.to_owned(),
            node_ifindex,
            counters: HashMap::new(),
            homes: HashMap::new(),
        };
        let node = foundations[0].anchor.try_clone();
        let node = node.map_err(|source| WorkersError::Start { worker: 0, source })?;
        Ok((workers, foundations, node))
    }

    /// Connects the workers with each other and starts their threads, each with its flows. The
    /// node port is served by worker 0 from now on, but nothing is redirected to it before it
    /// stands in the socket map.
    ///
    /// # Panics
    /// There are not as many `flows` as `foundations`.
    pub fn raise(
        &mut self,
        foundations: Vec<Foundation>,
        flows: Vec<WorkerFlows>,
    ) -> Result<(), WorkersError> {
        assert_eq!(foundations.len(), flows.len(), "each worker has its flows");
        let count = foundations.len();
        let ends: Vec<_> =
            foundations.iter().map(|f| (f.pool.area().clone(), f.bell.clone())).collect();
        let mut out: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
        let mut incoming: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
        for from in 0..count {
            for to in 0..count {
                if from == to {
                    out[from].push(None);
                    continue;
                }
                let (sender, receiver) = crossing(ends[from].0.clone(), ends[to].1.clone());
                out[from].push(Some(sender));
                incoming[to].push(receiver);
            }
        }
        let ends = out.into_iter().zip(incoming);
        for ((foundation, flows), (out, incoming)) in foundations.into_iter().zip(flows).zip(ends) {
            let id = self.workers.len() as u16;
            let start = |source| WorkersError::Start { worker: id, source };
            let ((commands, events), (worker_commands, worker_events)) = queues();
            let counters = Arc::new(WorkerCounters::default());
            let Foundation { core, pool, bell, anchor, anchor_socket, node_port } = foundation;
            let area = pool.area().clone();
            let WorkerFlows { table, counters: flow_counters } = flows;
            let records = table.records().clone();
            let worker = Worker::new(WorkerParts {
                id: WorkerId(id),
                pool,
                subscription: self.publisher.subscribe(),
                commands: worker_commands,
                events: worker_events,
                out,
                incoming,
                bell: bell.clone(),
                counters: counters.clone(),
                flows: table,
                seed: random().map_err(start)?,
            });
            let rest = Rest::new().map_err(start)?;
            let thread = std::thread::Builder::new()
                .name(format!("worker-{id}"))
                .spawn(move || run(worker, rest, core))
                .map_err(start)?;
            self.workers.push(WorkerHandle {
                id,
                core,
                counters,
                flows: records,
                flow_counters,
                hugepages: area.hugepages(),
                commands,
                events,
                unread: VecDeque::new(),
                bell,
                area,
                anchor,
                _anchor_socket: anchor_socket,
                out: false,
                missed: 0,
                guard: None,
                thread: Some(thread),
            });
            if let Some(port) = node_port {
                self.enroll(0, PortId(NODE_SLOT), port, NODE_SHARE, NO_POD)?;
            }
        }
        Ok(())
    }

    /// Hands a port to its worker.
    fn enroll(
        &mut self,
        worker: u16,
        id: PortId,
        io: XskPort,
        share: Share,
        generation: u32,
    ) -> Result<(), WorkersError> {
        let counters = Arc::new(PortCounters::default());
        self.counters.insert(id, counters.clone());
        self.homes.insert(id, worker);
        let io = Box::new(io);
        self.workers[usize::from(worker)].order(Command::AddPort {
            id,
            io,
            share,
            counters,
            generation,
        })
    }

    /// Binds a socket to queue 0 of `device`, the interface of the pod of this generation, and
    /// hands it to `worker`. Returns the socket for the socket map: it is to be entered when the
    /// tables are adopted.
    pub fn add_port(
        &mut self,
        worker: u16,
        id: PortId,
        (device, ifindex): (&str, u32),
        generation: u32,
    ) -> Result<OwnedFd, WorkersError> {
        let handle = &self.workers[usize::from(worker)];
        let socket = Socket::bind(
            Queue { device, ifindex, queue: 0 },
            &handle.area,
            Memory::Shared(handle.anchor.as_fd()),
            POD_RINGS,
            self.features,
            BIND_DEADLINE,
            |_| {}, // The frames are the worker's; it fills the ring before it serves the port.
        )?;
        let port = XskPort::new(socket, id.0, POD_RINGS);
        let fd = port.fd().try_clone_to_owned();
        let fd = fd.map_err(|source| WorkersError::Start { worker, source })?;
        self.enroll(worker, id, port, POD_SHARE, generation)?;
        Ok(fd)
    }

    /// Orders the worker of a port to serve it no more; [`Workers::poll`] returns its rings.
    pub fn remove_port(&mut self, id: PortId) -> Result<(), WorkersError> {
        self.counters.remove(&id);
        match self.homes.get(&id) {
            Some(worker) => self.workers[usize::from(*worker)].order(Command::RemovePort(id)),
            None => Ok(()),
        }
    }

    /// Orders a worker to go on with flows that the kernel has carried so far.
    pub fn take_over_flows(
        &mut self,
        worker: u16,
        flows: Box<[Carried]>,
    ) -> Result<(), WorkersError> {
        self.workers[usize::from(worker)].order(Command::TakeOver { flows })
    }

    /// Orders a worker to forget all flows of a pod that is gone.
    pub fn retire_flows(&mut self, worker: u16, owner: PortId) -> Result<(), WorkersError> {
        self.workers[usize::from(worker)].order(Command::RetireFlows { owner })
    }

    /// Orders all workers to forget the flows that were asked at these host ports.
    pub fn forget_flows(&mut self, host_ports: &Arc<[HostPort]>) -> Result<(), WorkersError> {
        self.workers.iter_mut().try_for_each(|worker| {
            worker.order(Command::ForgetFlows { host_ports: host_ports.clone() })
        })
    }

    /// The socket of a removed port is closed: its frames go back to its worker.
    pub fn reclaim_port(&mut self, id: PortId) -> Result<(), WorkersError> {
        match self.homes.remove(&id) {
            Some(worker) => self.workers[usize::from(worker)].order(Command::ReclaimPort(id)),
            None => Ok(()),
        }
    }

    /// Whether a worker serves the port.
    #[must_use]
    pub fn has_port(&self, id: PortId) -> bool {
        self.homes.contains_key(&id)
    }

    /// Hands the rings of removed ports to `reap`; returns the ports whose numbers are free again.
    pub fn poll(&mut self, mut reap: impl FnMut(PortId, Box<XskPort>)) -> Vec<PortId> {
        let mut free = Vec::new();
        for worker in &mut self.workers {
            while let Some(event) = worker.unread.pop_front().or_else(|| worker.events.pop().ok()) {
                match event {
                    Event::Removed(id, io) => reap(id, io),
                    Event::Reclaimed(id) => free.push(id),
                    // Nobody waits for them any more; the order that takes them back is given.
                    Event::Lent(..) => {}
                }
            }
        }
        free
    }

    /// Publishes a snapshot and waits until every worker that does not hang forwards by it, also
    /// when another one is waited for in vain. Who was is not waited for again until it has adopted
    /// what it missed: one request may publish several times, and others wait behind it.
    pub fn publish(&mut self, input: TablesInput) -> Result<(), WorkersError> {
        /// Between looks: an adoption takes a pass, some 10 µs, or a wake-up, some 50 µs.
        const LOOK: Duration = Duration::from_micros(20);
        self.generation += 1;
        let generation = self.generation;
        self.publisher.publish(Tables::new(generation, input));
        // All of them before one is waited for: they adopt side by side, and one deadline does.
        self.workers.iter().for_each(|worker| worker.bell.ring());
        let start = Instant::now();
        let mut stuck = None;
        for worker in self.workers.iter_mut().filter(|worker| !worker.out) {
            while worker.counters.generation.get() < generation {
                if start.elapsed() > ADOPT_DEADLINE {
                    worker.missed = generation;
                }
                if worker.counters.generation.get() < worker.missed {
                    let (worker, generation) = (worker.id, worker.missed);
                    stuck.get_or_insert(WorkersError::Stuck { worker, generation });
                    break;
                }
                std::thread::sleep(LOOK);
            }
        }
        let adopted = self.workers.iter().map(|worker| worker.counters.generation.get());
        self.publisher.retire(adopted.min().unwrap_or(generation));
        stuck.map_or(Ok(()), Err)
    }

    /// Says whether a worker hangs, and is not waited for: the kernel carries its pods.
    pub fn set_out(&mut self, worker: u16, out: bool) {
        self.workers[usize::from(worker)].out = out;
    }

    /// Whether a worker hangs.
    #[must_use]
    pub fn is_out(&self, worker: u16) -> bool {
        self.workers[usize::from(worker)].out
    }

    /// New sentinels for a worker: enter them into the map, then [`Workers::guard`].
    pub fn sentinels(&self, worker: u16) -> Result<Sentinels, WorkersError> {
        let queue = Queue {
            device: &self.node_device,
            ifindex: self.node_ifindex,
            queue: u32::from(worker),
        };
        let anchor = self.workers[usize::from(worker)].anchor.as_fd();
        Ok(Sentinels::bind(queue, anchor)?)
    }

    /// Puts sentinels that stand in the map on guard, in place of earlier ones.
    pub fn guard(&mut self, worker: u16, sentinels: Sentinels) -> Result<(), WorkersError> {
        let guard =
            sentinels.stand_guard().map_err(|source| WorkersError::Start { worker, source })?;
        self.workers[usize::from(worker)].guard = Some(guard);
        Ok(())
    }

    /// Every worker.
    #[must_use]
    pub fn handles(&self) -> &[WorkerHandle] {
        &self.workers
    }

    /// What sockets can do here.
    #[must_use]
    pub fn features(&self) -> SocketFeatures {
        self.features
    }

    /// Counters of a port.
    #[must_use]
    pub fn counters(&self, id: PortId) -> Option<&Arc<PortCounters>> {
        self.counters.get(&id)
    }

    /// Where workers have their tables from.
    #[must_use]
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Generation of the newest snapshot.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Stops the threads: what was received is forwarded first.
    pub fn stop(&mut self) {
        for worker in &mut self.workers {
            // A worker that takes no orders cannot be waited for.
            if worker.order(Command::Stop).is_ok()
                && let Some(thread) = worker.thread.take()
            {
                let _joined = thread.join();
            }
        }
    }
}

/// A number that nobody outside can guess.
pub(crate) fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The worker's thread.
fn run(worker: Worker<XskPort>, rest: Rest, core: usize) {
    let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: core });
    if !pinned {
        tracing::warn!(core, "cannot pin a worker to this core");
    }
    let id = worker.run(rest);
    tracing::debug!(worker = id.0, "stopped");
}
