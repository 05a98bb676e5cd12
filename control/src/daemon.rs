//! The control thread's loop: requests, kernel events, signals and timers in, engine calls out.
//! It owns every descriptor it waits for; the engine owns what they are about.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use cni_bridge::protocol::{Call, CallError, Reply, Request};
use cni_bridge::queue;
use cni_bridge::spec::error::code;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::config::Config;
use crate::connections::ConnectionId;
use crate::engine::{Engine, Reaper};
use crate::metrics::{self, MetricsServer, OpTimes, Operation, Outcome, Page, Response};
use crate::netlink::{Event as KernelEvent, Monitor};
use crate::nft::NftMonitor;
use crate::node::{ROUTE_PROTOCOL, RULE_PRIORITY};
use crate::server::{self, ControlServer, Incoming};

const SIGNALS: Token = Token(0);
const WAKE: Token = Token(1);
const KERNEL: Token = Token(2);
const NFT: Token = Token(3);
const CONTROL: Token = Token(4);
const METRICS: Token = Token(5);
/// Tokens of connections, so many that no two kinds meet.
const METRICS_CONNECTIONS: Range<usize> = 1_000..1_000 + metrics::CONNECTIONS_MAX;
const CONTROL_CONNECTIONS: Range<usize> = 10_000..10_000 + server::CONNECTIONS_MAX;

/// Between looks at a worker that is giving up a port: it answers within a pass, some 10 µs.
const SETTLE: Duration = Duration::from_millis(1);

/// The loop turns at least this often, for deadlines of connections.
const TURN: Duration = Duration::from_secs(1);

/// How long an ADD waits for its interface's removal (2 × some 12 ms, behind 100 others).
const WAIT_MAX: Duration = Duration::from_secs(8);

/// Between two repairs of the node port: somebody who removes it again and again gets a log line,
/// not a busy loop.
const REPAIR: Duration = Duration::from_millis(500);

/// Events taken from the kernel in one turn.
const KERNEL_EVENTS_MAX: usize = 1024;

/// An ADD that waits.
struct Waiting {
    incoming: Incoming,
    since: Instant,
}

/// The daemon.
pub struct Daemon {
    poll: Poll,
    engine: Engine,
    control: ControlServer,
    metrics: Option<MetricsServer>,
    _signals: mio::net::UnixStream,
    kernel: Monitor,
    /// The kernel has told more than was taken in one turn: epoll says so only once.
    more_events: bool,
    nft: NftMonitor,
    waiting: Vec<Waiting>,
    operations: OpTimes,
    /// Our kernel objects were touched; when they were last repaired.
    damaged: bool,
    repaired: Instant,
    /// When the engine last looked after its workers and pods.
    watched: Instant,
    stopping: bool,
    /// Held as long as the daemon lives: one daemon per network namespace.
    _only_one: UnixListener,
}

impl Daemon {
    /// Brings everything up; when this returns, pods of a daemon before us are served again and
    /// requests are answered.
    pub fn start(config: Config) -> anyhow::Result<Daemon> {
        let only_one = lock_namespace()?;
        let poll = Poll::new().context("make the event loop")?;
        let registry = poll.registry();
        let signals = watch_signals().context("watch signals")?;
        let mut signals = mio::net::UnixStream::from_std(signals);
        registry.register(&mut signals, SIGNALS, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(registry, WAKE)?);
        let reaper = Reaper::start(move || {
            // The loop turns by itself if this fails.
            let _woken = waker.wake();
        })?;
        // Before the engine looks at the kernel, so that no change falls in between.
        let kernel = Monitor::open()?;
        registry.register(&mut SourceFd(&kernel.as_raw_fd()), KERNEL, Interest::READABLE)?;
        let daemon = config.daemon.clone();
        let mut engine = Engine::start(config, reaper)?;
        let nft = engine.nft().monitor()?;
        registry.register(&mut SourceFd(&nft.as_raw_fd()), NFT, Interest::READABLE)?;
        // First the socket, then the queue: a DEL that finds no socket is in the queue by then.
        let control = ControlServer::bind(&daemon.socket, registry, CONTROL, CONTROL_CONNECTIONS)?;
        replay_deletions(&mut engine, &queue::directory(&daemon.socket));
        let metrics = match daemon.metrics {
            None => None,
            Some(address) => {
                Some(MetricsServer::bind(address, registry, METRICS, METRICS_CONNECTIONS)?)
            }
        };
        let now = Instant::now();
        Ok(Daemon {
            poll,
            engine,
            control,
            metrics,
            _signals: signals,
            kernel,
            more_events: false,
            nft,
            waiting: Vec::new(),
            operations: OpTimes::default(),
            damaged: false,
            repaired: now.checked_sub(REPAIR).unwrap_or(now),
            watched: now,
            stopping: false,
            _only_one: only_one,
        })
    }

    /// Serves until a signal says stop.
    pub fn run(mut self) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(256);
        let mut announced = false;
        while !self.stopping {
            if !announced && self.engine.knows_routes() {
                announced = true;
                // Without systemd there is nobody to notify.
                let _notified = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
                tracing::info!(pods = self.engine.state().pods().len(), "ready");
            }
            match self.poll.poll(&mut events, Some(self.timeout())) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("wait for events"),
            }
            for event in &events {
                self.dispatch(event.token());
            }
            self.turn();
        }
        let _notified = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("stopping; the kernel carries the pods");
        self.engine.stop();
        Ok(())
    }

    fn timeout(&self) -> Duration {
        if self.more_events {
            return Duration::ZERO;
        }
        let turn = if self.engine.is_settled() && !self.damaged { TURN } else { SETTLE };
        self.engine.lists_in(Instant::now()).map_or(turn, |lists| lists.min(turn))
    }

    fn dispatch(&mut self, token: Token) {
        match token {
            SIGNALS => self.stopping = true,
            WAKE => {}
            KERNEL => self.read_kernel(),
            NFT => match self.nft.changed() {
                Ok(changed) => self.damaged |= changed,
                Err(error) => tracing::error!(%error, "watch the nft table"),
            },
            _ if token == METRICS || METRICS_CONNECTIONS.contains(&token.0) => {
                self.serve_metrics(token);
            }
            _ => self.serve_control(token),
        }
    }

    /// What is due whatever happened: ports on their way out, waiting ADDs, repairs, deadlines.
    fn turn(&mut self) {
        if self.more_events {
            self.read_kernel();
        }
        let now = Instant::now();
        if !self.more_events {
            self.engine.list_routes(now);
        }
        if self.engine.settle() || !self.waiting.is_empty() {
            self.retry_waiting(now);
        }
        if self.damaged && now.duration_since(self.repaired) >= REPAIR {
            (self.damaged, self.repaired) = (false, now);
            match self.engine.repair() {
                Ok(()) => tracing::warn!("repaired routes, rules or the nft table"),
                Err(error) => tracing::error!("repair what somebody removed: {error:#}"),
            }
        }
        if now.duration_since(self.watched) >= TURN {
            self.watched = now;
            self.engine.watch(now);
        }
        self.control.expire(now);
        if let Some(metrics) = &mut self.metrics {
            metrics.expire(now);
        }
    }

    fn serve_control(&mut self, token: Token) {
        let mut incoming = Vec::new();
        self.control.on_event(token, Instant::now(), &mut incoming);
        for request in incoming {
            self.accept(request, Instant::now());
        }
    }

    /// Answers a request, or lets an ADD wait for the DEL before it.
    fn accept(&mut self, incoming: Incoming, since: Instant) {
        if let Call::Add(request) = &incoming.request.call {
            self.engine.detach_lost(&request.attachment);
            if self.engine.must_wait(&request.attachment) && since.elapsed() < WAIT_MAX {
                return self.waiting.push(Waiting { incoming, since });
            }
        }
        let Incoming { connection, request, descriptor } = incoming;
        let operation = operation(&request.call);
        let reply = self.answer(request, descriptor);
        if let Some(operation) = operation {
            let outcome = match reply {
                Reply::Error(_) => Outcome::Failure,
                _ => Outcome::Success,
            };
            self.operations.record(operation, since.elapsed(), outcome);
        }
        self.reply(connection, &reply);
    }

    fn reply(&mut self, connection: ConnectionId, reply: &Reply) {
        if let Reply::Error(error) = reply {
            tracing::warn!(code = error.code, "refused: {}", error.msg);
        }
        // A peer that has gone hears nothing; what was done for it stays done.
        let _heard = self.control.reply(connection, reply, Instant::now());
    }

    fn retry_waiting(&mut self, now: Instant) {
        for Waiting { incoming, since } in std::mem::take(&mut self.waiting) {
            debug_assert!(now >= since);
            self.accept(incoming, since);
        }
    }

    fn answer(&mut self, request: Request, descriptor: Option<OwnedFd>) -> Reply {
        let done = |result: Result<(), CallError>| match result {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Error(error),
        };
        match (request.call, descriptor) {
            (Call::Add(request), Some(netns)) => match self.engine.attach(&request, netns) {
                Ok(added) => Reply::Added(added),
                Err(error) => Reply::Error(error),
            },
            (Call::Check(request), Some(netns)) => done(self.engine.check(&request, netns)),
            (Call::Add(_) | Call::Check(_), None) => Reply::Error(CallError {
                code: code::ENVIRONMENT,
                msg: "the request came without the pod's network namespace".to_owned(),
                details: String::new(),
            }),
            (Call::Del(request), _) => done(self.engine.detach(&request.attachment)),
            (Call::Gc(request), _) => done(self.engine.collect(&request)),
            (Call::CniStatus { delegated_ipam }, _) => {
                done(self.engine.check_ready(delegated_ipam))
            }
            (Call::List(listing), _) => self.engine.list(listing, None),
            (Call::ListAfter { listing, after }, _) => self.engine.list(listing, Some(&after)),
            (Call::SetLimits(request), _) => done(self.engine.set_limits(&request)),
            (Call::Flows { filter, after }, _) => self.engine.list_flows(&filter, after.as_deref()),
            (Call::Explain(request), _) => self.engine.explain(&request),
        }
    }

    fn serve_metrics(&mut self, token: Token) {
        let Some(server) = &mut self.metrics else { return };
        let (engine, operations) = (&self.engine, &self.operations);
        server.on_event(token, Instant::now(), &mut |page| match page {
            Page::Metrics => Response::metrics(metrics::render(&engine.report(operations))),
            Page::Health => Response::well(),
            Page::Ready => match engine.status() {
                status if status.ready => Response::well(),
                status => Response::unwell(&status.problems.join("; ")),
            },
        });
    }

    /// What changed in the kernel: addresses are followed, damage to our objects is repaired.
    fn read_kernel(&mut self) {
        let mut events = Vec::new();
        match self.kernel.receive(&mut events, KERNEL_EVENTS_MAX) {
            Ok(more) => self.more_events = more,
            Err(error) => {
                self.more_events = false;
                tracing::error!(%error, "watch the kernel");
            }
        }
        self.engine.follow(&events);
        let mut addresses = false;
        for event in events {
            match event {
                KernelEvent::Overrun => (addresses, self.damaged) = (true, true),
                KernelEvent::Address(_) | KernelEvent::AddressGone(_) => addresses = true,
                KernelEvent::Route(route) if route.dst.prefix_len() == 0 => addresses = true,
                KernelEvent::RouteGone(route) if route.protocol == ROUTE_PROTOCOL => {
                    self.damaged |= self.engine.wants_route(&route);
                }
                KernelEvent::RuleGone(rule) if rule.priority == RULE_PRIORITY => {
                    self.damaged = true;
                }
                KernelEvent::LinkGone(link) if self.engine.node().is_end(link.index) => {
                    tracing::error!(device = link.name, "the node port is gone: restart viaductd");
                }
                KernelEvent::LinkGone(link) => self.engine.link_gone(link.index),
                _ => {}
            }
        }
        if addresses && let Err(error) = self.engine.follow_addresses() {
            tracing::error!("follow the node's addresses: {error:#}");
        }
    }
}

fn operation(call: &Call) -> Option<Operation> {
    match call {
        Call::Add(_) => Some(Operation::Add),
        Call::Del(_) => Some(Operation::Del),
        Call::Check(_) => Some(Operation::Check),
        _ => None,
    }
}

/// One daemon per network namespace: abstract socket names belong to it, and go with us.
///
/// # Errors
/// Another daemon runs in this namespace.
pub fn lock_namespace() -> anyhow::Result<UnixListener> {
    let name = SocketAddr::from_abstract_name(b"viaductd")?;
    UnixListener::bind_addr(&name).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "another viaductd runs in this network namespace: stop it first, or start this one in \
             a namespace of its own"
        ),
        _ => anyhow::Error::from(error).context("lock the network namespace"),
    })
}

/// A stream that becomes readable on SIGTERM and SIGINT.
fn watch_signals() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

/// The DELs that came while no daemon was there, before the first ADD is served.
fn replay_deletions(engine: &mut Engine, directory: &std::path::Path) {
    for (_, request) in queue::read(directory) {
        if let Err(error) = engine.detach(&request.attachment) {
            tracing::error!("replay a queued DEL: {}", error.msg);
            continue;
        }
        if let Err(error) = queue::remove(directory, &request.attachment) {
            tracing::error!(%error, "forget a queued DEL");
        }
    }
}
