//! `viaduct-perf adoption`: how soon workers follow the kernel's routes when it has as many as a
//! full BGP table. A pod of every worker sends to one address without rest; single routes to it
//! come and go, and what counts is the first packet of the last worker that takes the new way.
//!
//! ```text
//!   pods ─ node ─ eth1 ── switch ─┬─ eth1 ─ router: the way of the prefix around the address
//!                                 └─ eth1 ─ router: the way of the route that comes and goes
//! ```
//!
//! Both routers have the address. The clock starts before the request is given to the kernel, so
//! its own work, and the way of a packet, are part of every figure.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dataplane::tables::Prefix;
use e2e::cluster::{Cluster, ClusterSetup, Forwarder, UPLINK, kernel_forwarded};
use e2e::daemon::{Node, Setup, ip};
use e2e::netns::wait_until;
use e2e::pod::Pod;
use rustix::process::Signal;
use serde::Serialize;
use serde_json::json;

use crate::internet::internet;
use crate::interrupt;
use crate::report::{Bound, Report, Table, Target, progress};
use crate::rtnetlink::{Change, Requests, Route};
use crate::stats::Times;

/// What the 99th of a hundred single changes may take.
const TARGET_P99_MS: f64 = 5.0;

/// The addresses that everybody sends to, and the prefixes around them.
const SPOTS: [Spot; 2] = [
    Spot {
        family: "Ipv4",
        single: Prefix { address: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), len: 32 },
        around: Prefix { address: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 0)), len: 24 },
    },
    Spot {
        family: "Ipv6",
        single: Prefix {
            address: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 1)),
            len: 128,
        },
        around: Prefix {
            address: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0)),
            len: 48,
        },
    },
];

/// Nodes of the cluster that are the routers.
const AROUND: usize = 1;
const SINGLE: usize = 2;

/// Between two packets of a pod: so exact are the figures. A thread sleeps 50 µs longer than it
/// asks for (prctl(2), `PR_SET_TIMERSLACK`).
const PACE: Duration = Duration::from_micros(20);

/// Between two changes the daemon rests: single changes are what is measured.
const REST: Duration = Duration::from_millis(20);

/// Between two questions to the daemon while it takes routes over: there are other things to do.
const ASK: Duration = Duration::from_millis(5);

/// No change takes this long, unless something is broken.
const CHANGE_DEADLINE: Duration = Duration::from_secs(5);

/// The kernel takes some 3 s to list a million routes.
const LOAD_DEADLINE: Duration = Duration::from_secs(60);

/// How many routes, and how many changes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// IPv4 routes in the kernel
    #[arg(long, default_value_t = 1_000_000)]
    v4: usize,
    /// IPv6 routes in the kernel
    #[arg(long, default_value_t = 200_000)]
    v6: usize,
    /// Changes of each family: half of them add a route, half remove it
    #[arg(long, default_value_t = 200)]
    changes: usize,
}

/// Where a route comes and goes.
#[derive(Clone, Copy, Debug)]
struct Spot {
    family: &'static str,
    single: Prefix,
    around: Prefix,
}

/// A node with a pod of every worker, and two routers.
struct Field {
    cluster: Cluster,
    pods: Vec<Pod>,
    requests: Requests,
}

/// How the daemon took the routes over.
#[derive(Debug, Serialize)]
struct Load {
    routes: usize,
    /// Until the kernel had them, while the daemon ran.
    kernel_s: f64,
    /// From then until the daemon had them all.
    mirrored_s: f64,
    /// The longest that anybody who asked the daemon meanwhile had to wait.
    answered_ms: f64,
    /// Until a daemon is ready without them and with them.
    start_s: [f64; 2],
    /// Resident memory of the daemon without them, after they came, and started with them.
    rss_mib: [f64; 3],
}

/// Changes of one family.
#[derive(Debug, Serialize)]
struct Changes {
    family: &'static str,
    add: Times,
    remove: Times,
}

/// Measures.
///
/// # Errors
/// When a step fails, or when packets go by the kernel.
pub fn measure(setup: &Setup, options: &Options) -> Result<Report> {
    progress("building the nodes");
    let mut field = Field::build(setup)?;
    let load = field.load(options)?;
    field.warm_up()?;
    let node = field.cluster.node(0).namespace();
    let by_kernel = kernel_forwarded(node)?;
    let mut changes = Vec::new();
    for spot in SPOTS {
        progress(&format!("{} changes of {} routes", options.changes, spot.family));
        let mut stream = Stream::open(&field, spot)?;
        let (mut add, mut remove) = (Vec::new(), Vec::new());
        for _ in 0..options.changes / 2 {
            interrupt::check()?;
            add.push(field.change(&mut stream, Change::Add)?);
            remove.push(field.change(&mut stream, Change::Remove)?);
        }
        changes.push(Changes {
            family: spot.family,
            add: Times::of(&add),
            remove: Times::of(&remove),
        });
    }
    let by_kernel = kernel_forwarded(node)? - by_kernel;
    ensure!(by_kernel == 0, "the kernel forwarded {by_kernel} packets that were the workers'");
    Ok(sum_up(setup.workers, &load, &changes))
}

impl Field {
    fn build(setup: &Setup) -> Result<Field> {
        let Setup { port_mode, workers, .. } = *setup;
        let forwarder = Forwarder::Viaduct { port_mode, workers };
        let cluster = Cluster::start(ClusterSetup {
            plain: 2,
            direct: vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()],
            ..ClusterSetup::new(forwarder, 3)
        })?;
        let pods = (0..workers).map(|number| cluster.add_pod(0, &format!("perf-{number}")));
        let pods = pods.collect::<Result<Vec<Pod>>>()?;
        let mut homes = Vec::new();
        for pod in &pods {
            homes.push(cluster.node(0).pod_row(pod)?["worker"].as_u64());
        }
        homes.sort_unstable();
        homes.dedup();
        ensure!(homes.len() == workers, "every worker has a pod");
        for router in [AROUND, SINGLE] {
            for Spot { single: Prefix { address, len }, .. } in SPOTS {
                let namespace = cluster.node(router).namespace();
                ip(namespace, &format!("addr add {address}/{len} dev lo"))?;
            }
        }
        let requests = Requests::open(cluster.node(0).namespace(), UPLINK)?;
        Ok(Field { cluster, pods, requests })
    }

    fn node(&self) -> &Node {
        self.cluster.node(0)
    }

    /// A route by one of the routers.
    fn route(router: usize, dst: Prefix) -> Route {
        let [v4, v6] = Cluster::address(router);
        Route { dst, via: if dst.address.is_ipv4() { v4 } else { v6 } }
    }

    /// Gives the kernel the routes while the daemon runs, and starts another daemon with them.
    fn load(&mut self, options: &Options) -> Result<Load> {
        let empty_s = self.restart()?;
        let empty_mib = self.rss_mib()?;
        let had = self.followed()?;
        let networks = internet(1, options.v4, options.v6).into_iter().enumerate();
        let by_turns = |(number, dst)| Field::route([AROUND, SINGLE][number % 2], dst);
        let around = SPOTS.map(|spot| Field::route(AROUND, spot.around));
        let routes: Vec<Route> = networks.map(by_turns).chain(around).collect();
        progress(&format!("{} routes", routes.len()));
        let expected = had + routes.len() as u64;
        let (loaded, answered) = self.asking_meanwhile(|| {
            let started = Instant::now();
            self.requests.add_all(&routes)?;
            let kernel_s = started.elapsed().as_secs_f64();
            let started = Instant::now();
            wait_until("the daemon has them", LOAD_DEADLINE, || Ok(self.followed()? >= expected))?;
            Ok((kernel_s, started.elapsed().as_secs_f64()))
        })?;
        let (kernel_s, mirrored_s) = loaded;
        let live_mib = self.rss_mib()?;
        progress("starting a daemon with these routes");
        let full_s = self.restart()?;
        ensure!(self.followed()? >= expected, "a daemon that starts has the routes when ready");
        Ok(Load {
            routes: routes.len(),
            kernel_s,
            mirrored_s,
            answered_ms: answered.as_secs_f64() * 1000.0,
            start_s: [empty_s, full_s],
            rss_mib: [empty_mib, live_mib, self.rss_mib()?],
        })
    }

    /// Starts the node's daemon anew; returns how many seconds that took.
    fn restart(&mut self) -> Result<f64> {
        let node = self.cluster.node_mut(0);
        node.stop_daemon(Signal::TERM)?;
        let started = Instant::now();
        node.start_daemon()?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Does something, and asks the daemon for its status meanwhile; returns how long the slowest
    /// answer took, the start of the program that asks included.
    fn asking_meanwhile<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
        let (node, done) = (self.node(), AtomicBool::new(false));
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut slowest = Duration::ZERO;
                while !done.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    node.list("status")?;
                    slowest = slowest.max(asked.elapsed());
                    thread::sleep(ASK);
                }
                Ok(slowest)
            });
            let worked = work();
            done.store(true, Ordering::Relaxed);
            let slowest: Result<Duration> = asking.join().expect("asking does not panic");
            Ok((worked?, slowest?))
        })
    }

    /// Routes that the daemon follows.
    fn followed(&self) -> Result<u64> {
        self.node().list("status")?["routes"].as_u64().context("status counts routes")
    }

    fn rss_mib(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.node().daemon_pid()?);
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        Ok(kib.with_context(|| format!("VmRSS in {path}"))? / 1024.0)
    }

    /// Waits until workers send by both routers: the kernel has resolved them then.
    fn warm_up(&self) -> Result<()> {
        let node = self.node().namespace();
        for spot in SPOTS {
            let mut stream = Stream::open(self, spot)?;
            for change in [Change::Add, Change::Remove] {
                self.requests.change(change, Field::route(SINGLE, spot.single))?;
                wait_until("workers send", CHANGE_DEADLINE, || {
                    let before = kernel_forwarded(node)?;
                    stream.wait_for(change)?;
                    thread::sleep(REST); // for what may still be under way in the kernel
                    stream.wait_for(change)?;
                    Ok(kernel_forwarded(node)? == before)
                })?;
            }
        }
        Ok(())
    }

    /// One change, and how long it takes until all workers follow.
    fn change(&self, stream: &mut Stream, change: Change) -> Result<Duration> {
        thread::sleep(REST);
        let route = Field::route(SINGLE, stream.spot.single);
        let started = Instant::now();
        self.requests.change(change, route)?;
        Ok(stream.wait_for(change)? - started)
    }
}

/// Packets from every pod to one address of both routers.
struct Stream {
    spot: Spot,
    pods: Vec<UdpSocket>,
    /// Of the routers, by their nodes' numbers; the first is nobody's.
    routers: [Option<UdpSocket>; 3],
    sent: u64,
}

impl Stream {
    fn open(field: &Field, spot: Spot) -> Result<Stream> {
        const PORT: u16 = 7777;
        let address = spot.single.address;
        let there = SocketAddr::new(address, PORT);
        let mut pods = Vec::new();
        for pod in &field.pods {
            let own = pod.addresses().into_iter().find(|own| own.is_ipv4() == address.is_ipv4());
            let own = SocketAddr::new(own.context("an address of the family")?, 0);
            let socket = pod.namespace.within(|| UdpSocket::bind(own))??;
            socket.connect(there)?;
            pods.push(socket);
        }
        let listen = |router: usize| -> Result<Option<UdpSocket>> {
            let namespace = field.cluster.node(router).namespace();
            let socket = namespace.within(|| UdpSocket::bind(there))??;
            socket.set_nonblocking(true)?;
            Ok(Some(socket))
        };
        let routers = [None, listen(AROUND)?, listen(SINGLE)?];
        Ok(Stream { spot, pods, routers, sent: 0 })
    }

    /// Sends until a packet of every pod, sent from now on, has come to the router to which the
    /// change leads; returns when the last of them was seen.
    fn wait_for(&mut self, change: Change) -> Result<Instant> {
        let router = match change {
            Change::Add => SINGLE,
            Change::Remove => AROUND,
        };
        let deadline = Instant::now() + CHANGE_DEADLINE;
        let first = self.sent;
        let mut waiting: Vec<bool> = vec![true; self.pods.len()];
        loop {
            for (number, socket) in self.pods.iter().enumerate() {
                let words = [number as u64, self.sent].map(u64::to_be_bytes).concat();
                // An error that came back for an earlier packet is reported here.
                let _sent = socket.send(&words);
                self.sent += 1;
            }
            thread::sleep(PACE);
            while let Some((number, sequence)) = self.receive(router)? {
                if sequence >= first
                    && let Some(waiting) = waiting.get_mut(number as usize)
                {
                    *waiting = false;
                }
            }
            let now = Instant::now();
            if !waiting.contains(&true) {
                return Ok(now);
            }
            if now > deadline {
                bail!("packets to {} do not come to node {router}", self.spot.single.address);
            }
        }
    }

    /// A packet at a router: the number of its pod, and its own.
    fn receive(&self, router: usize) -> Result<Option<(u64, u64)>> {
        let socket = self.routers[router].as_ref().context("a router listens")?;
        let mut words = [[0; 8]; 2];
        match socket.recv(words.as_flattened_mut()) {
            Ok(_) => Ok(Some((u64::from_be_bytes(words[0]), u64::from_be_bytes(words[1])))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("receive at a router"),
        }
    }
}

fn sum_up(workers: usize, load: &Load, changes: &[Changes]) -> Report {
    let mut loaded = Table::new(format!("{} routes", load.routes), &["", ""]);
    let [empty_s, full_s] = load.start_s;
    let [empty_mib, live_mib, full_mib] = load.rss_mib;
    let rows: [(&str, String); 8] = [
        ("the kernel takes them in, s", format!("{:.2}", load.kernel_s)),
        ("the daemon has them after that, s", format!("{:.2}", load.mirrored_s)),
        ("slowest answer of the daemon meanwhile, ms", format!("{:.1}", load.answered_ms)),
        ("start of the daemon without them, s", format!("{empty_s:.2}")),
        ("start of the daemon with them, s", format!("{full_s:.2}")),
        ("daemon's memory without them, MiB", format!("{empty_mib:.0}")),
        ("daemon's memory after they came, MiB", format!("{live_mib:.0}")),
        ("daemon's memory after a start with them, MiB", format!("{full_mib:.0}")),
    ];
    for (what, figure) in rows {
        loaded.row([what.to_owned(), figure]);
    }
    let title = format!("from a single change to {workers} worker(s) forwarding by it, ms");
    let mut single = Table::new(title, &["", "changes", "p50", "p99", "max"]);
    let mut targets = Vec::new();
    for Changes { family, add, remove } in changes {
        for (what, times) in [("added", add), ("removed", remove)] {
            let ms = |us: f64| format!("{:.2}", us / 1000.0);
            let name = format!("{family} route {what}");
            single.row([
                name.clone(),
                times.count.to_string(),
                ms(times.p50_us),
                ms(times.p99_us),
                ms(times.max_us),
            ]);
            let (p99_ms, bound) = (times.p99_us / 1000.0, Bound::AtMost(TARGET_P99_MS));
            targets.push(Target::new(format!("{name}, p99, ms"), p99_ms, bound));
        }
    }
    Report::new(
        "adoption",
        vec![loaded, single],
        targets,
        json!({ "workers": workers, "load": load, "changes": changes }),
    )
}
