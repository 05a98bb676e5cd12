//! The engine on a node of its own, where what is around it fails (needs root): a journal without
//! room, one that says what cannot be, a worker that hangs, a table that somebody has changed, a way
//! to a pod that the kernel refuses.

mod namespace;

use std::collections::BTreeSet;
use std::fs::{self, DirEntry, File};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cni_bridge::protocol::{
    AddRequest, Addressing, Attachment, Bandwidth, LimitChange, LimitsRequest, Listing, PodAddress,
    RateRequest, Reply,
};
use control::config::Config;
use control::engine::{Engine, Reaper};
use control::journal::{Journal, Record, boot_id};
use control::netlink::Netlink;
use control::node::{NodePort, Reached};
use control::report::LimitRow;
use control::state::PodRecord;
use control::workers::{NODE_SLOT, UPLINK_PORTS_MAX};
use dataplane::port::PortId;
use dataplane::shaper::Limits;
use ipnet::IpNet;
use namespace::Namespace;

const MBIT: u64 = 1_000_000;

/// Bytes that 50 ms of a rate carry: its burst, if it is a high one.
fn burst(rate_mbit: u64) -> u64 {
    rate_mbit * MBIT / 8 / 20
}

/// The burst of a low rate.
const BURST_ANY: u64 = 64 << 10;

/// How long anything may take that takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);

/// A network namespace, and what an engine in it has of the file systems. The state directory is a
/// file system of its own, which a test can fill.
struct Node {
    namespace: Namespace,
    state_dir: tempfile::TempDir,
    bpf_dir: PathBuf,
}

impl Node {
    fn new() -> Node {
        // No point in the name: a bpffs takes none.
        let state_dir = tempfile::Builder::new().prefix("engine-").tempdir().expect("a directory");
        let namespace = Namespace::new();
        namespace.run(&format!(
            "mount -t tmpfs -o size=1m,mode=0700 tmpfs {}",
            state_dir.path().display()
        ));
        let name = state_dir.path().file_name().expect("it has a name");
        let bpf_dir = Path::new("/sys/fs/bpf").join(name);
        Node { namespace, state_dir, bpf_dir }
    }

    /// To be called inside of the namespace.
    fn start(&self) -> Engine {
        self.start_with(1)
    }

    /// With so many workers.
    fn start_with(&self, workers: usize) -> Engine {
        let usable = rustix::thread::sched_getaffinity(None).expect("the cores of this thread");
        let cores = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| usable.is_set(*core));
        let cores: Vec<usize> = cores.take(workers).collect();
        assert_eq!(cores.len(), workers, "each worker has a core of its own");
        let (state, bpf) = (self.state_dir.path(), &self.bpf_dir);
        let text = format!(
            "[node]\npod_cidrs = [\"10.244.9.0/24\"]\n[workers]\ncores = {cores:?}\nframes = 4096\n\
             [nat]\nflows = 1024\n[daemon]\nstate_dir = {state:?}\nbpf_dir = {bpf:?}\n"
        );
        let config = Config::parse(&text, Path::new("test.toml"), &cores).expect("it can be read");
        let reaper = Reaper::start(|| ()).expect("a thread");
        Engine::start(config, reaper).expect("the engine starts")
    }

    fn journal(&self) -> (Journal, Vec<Record>) {
        Journal::open(self.state_dir.path(), &boot_id().expect("a boot")).expect("a journal")
    }

    /// Takes all the room that the state directory has left.
    fn fill(&self) -> PathBuf {
        let path = self.state_dir.path().join("fill");
        let mut file = File::create(&path).expect("a file");
        while file.write_all(&[0; 512]).is_ok() {}
        path
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Nothing here may hide the failure of the test that is being unwound.
        let _ = fs::remove_dir_all(&self.bpf_dir);
        let _ = Command::new("umount").arg("-l").arg(self.state_dir.path()).status();
    }
}

/// Attaches a pod; its namespace has to live as long as it.
fn add(engine: &mut Engine, name: &str, bandwidth: Bandwidth) -> Namespace {
    let addressing = Addressing::Embedded { requested: Vec::new(), ranges: Vec::new() };
    add_at(engine, name, addressing, bandwidth)
}

fn add_at(
    engine: &mut Engine,
    name: &str,
    addressing: Addressing,
    bandwidth: Bandwidth,
) -> Namespace {
    try_add_at(engine, name, addressing, bandwidth).expect("a pod")
}

fn try_add_at(
    engine: &mut Engine,
    name: &str,
    addressing: Addressing,
    bandwidth: Bandwidth,
) -> Result<Namespace, String> {
    let namespace = Namespace::new();
    let netns = OwnedFd::from(namespace.0.try_clone().expect("another descriptor"));
    let request = AddRequest {
        attachment: attachment(name),
        netns: "/run/netns/none".to_owned(),
        addressing,
        mac: None,
        mtu: None,
        routes: Vec::new(),
        pod_namespace: String::new(),
        pod_name: String::new(),
        port_mappings: Vec::new(),
        snat: None,
        masq_all: false,
        bandwidth,
    };
    engine.attach(&request, netns).map_err(|error| error.msg)?;
    Ok(namespace)
}

fn attachment(name: &str) -> Attachment {
    let (network, ifname) = ("engine".to_owned(), "eth0".to_owned());
    Attachment { network, container_id: name.to_owned(), ifname }
}

fn pod<'engine>(engine: &'engine Engine, name: &str) -> &'engine PodRecord {
    engine.state().pod(&attachment(name)).expect("the pod is attached")
}

fn request(rate_bps: u64) -> Option<RateRequest> {
    Some(RateRequest { rate_bps, burst_bits: RateRequest::BURST_BITS_MAX })
}

/// Limits what comes to the pod.
fn set(engine: &mut Engine, name: &str, rate_bps: u64) -> Result<(), String> {
    let ingress = Some(LimitChange::Set { rate_bps, burst_bits: None });
    let container_id = name.to_owned();
    let request = LimitsRequest { container_id, ifname: None, ingress, egress: None };
    engine.set_limits(&request).map_err(|error| error.msg)
}

/// What the tables of now say of a pod.
fn table_limits(engine: &Engine, name: &str) -> Limits {
    let first = NODE_SLOT + 1 + UPLINK_PORTS_MAX;
    let id = PortId(first + u16::try_from(pod(engine, name).slot).expect("a slot"));
    let mut subscription = engine.workers().publisher().subscribe();
    subscription.adopt().port(id).expect("it has a port").limits
}

fn limit_row(engine: &Engine) -> LimitRow {
    let Reply::Listing(rows) = engine.list(Listing::Limits, None) else { panic!("it is short") };
    let rows: Vec<LimitRow> = serde_json::from_value(rows).expect("rows");
    rows.into_iter().next().expect("a limit")
}

/// The pod's worker adopts the tables of now, and its bucket fills up to this burst.
fn assert_worker_has(engine: &Engine, burst_bytes: u64) {
    let [worker] = engine.workers().handles() else { panic!("there is one") };
    let newest = engine.workers().generation();
    let deadline = Instant::now() + DEADLINE;
    while worker.counters.generation.get() != newest
        || limit_row(engine).tokens_bytes != burst_bytes.cast_signed()
    {
        assert!(Instant::now() < deadline, "{burst_bytes}: {:?}", limit_row(engine));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What is logged on this thread meanwhile.
fn logged<T>(what: impl FnOnce() -> T) -> (T, String) {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("nobody panicked").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let outcome = tracing::subscriber::with_default(subscriber, what);
    let text = String::from_utf8(log.0.lock().expect("nobody panicked").clone()).expect("text");
    (outcome, text)
}

#[test]
#[ignore = "needs root"]
fn limits_that_the_journal_has_no_room_for_are_those_of_before_to_everybody() {
    let node = Node::new();
    node.namespace.visit(|| {
        let mut engine = node.start();
        let _pod = add(&mut engine, "pod", Bandwidth { ingress: request(MBIT), egress: None });
        let fill = node.fill();
        // The file's last page has room for some records. Each rate is below the one before, and so
        // is its burst: a bucket with the new limit never has as many tokens as with the old one.
        let refused = (0..100).map(|number| 1000 - number).find_map(|rate_mbit| {
            let (outcome, log) = logged(|| set(&mut engine, "pod", rate_mbit * MBIT));
            let said = log.contains("has other limits");
            assert_eq!(said, outcome.is_ok(), "{rate_mbit}: {log}");
            Some((rate_mbit, outcome.err()?))
        });
        let (rate_mbit, error) = refused.expect("there is no room for all of these");
        assert!(rate_mbit < 1000, "there is room for one at least: {error}");
        let journal = node.state_dir.path().join("journal");
        let parts =
            [journal.to_str().expect("text"), "No space left", "mend that or change state_dir"];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");

        let before = rate_mbit + 1;
        let wanted = Bandwidth { ingress: request(before * MBIT), egress: None };
        assert_eq!(pod(&engine, "pod").limits, wanted);
        let limits = table_limits(&engine, "pod");
        let to_pod = limits.to_pod.expect("a limit");
        assert_eq!((to_pod.bits_per_s, to_pod.burst_bytes), (before * MBIT, burst(before)));
        assert_eq!(limits.from_pod, None);
        let row = limit_row(&engine);
        assert_eq!((row.requested_bps, row.applied_bps), (before * MBIT, before * MBIT));
        let [worker] = engine.workers().handles() else { panic!("there is one") };
        assert_eq!(worker.counters.generation.get(), engine.workers().generation());
        assert_worker_has(&engine, burst(before));

        engine.stop();
        fs::remove_file(fill).expect("give the room back");
        let mut engine = node.start();
        assert_eq!(pod(&engine, "pod").limits, wanted, "in the journal too");
        set(&mut engine, "pod", rate_mbit * MBIT).expect("there is room again");
        assert_worker_has(&engine, burst(rate_mbit));
        engine.stop();
    });
}

/// Keeps a thread of this process from running, as long as this value lives.
struct Held(Child);

impl Held {
    /// The first one of this name in the network namespace of the caller.
    fn hold(name: &str) -> Held {
        let namespace = |task: &Path| fs::read_link(task.join("ns/net")).ok();
        let own = namespace(Path::new("/proc/thread-self"));
        let is_it = |task: &DirEntry| {
            let comm = fs::read_to_string(task.path().join("comm"));
            comm.is_ok_and(|comm| comm.trim_end() == name) && namespace(&task.path()) == own
        };
        let tasks = fs::read_dir("/proc/self/task").expect("the threads");
        let task = tasks.map(|task| task.expect("a thread")).find(is_it).expect("it runs");
        let mut python = Command::new("python3");
        python.arg("-c").arg(HOLD).arg(task.file_name());
        let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
        let said = child.stdout.as_mut().expect("a pipe").read(&mut [0; 16]);
        assert_ne!(said.expect("it says something"), 0, "the thread is held");
        Held(child)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Stops a thread until its input ends: ptrace(2) with PTRACE_SEIZE, PTRACE_INTERRUPT, and when it
/// has stopped (waitpid(2) with `__WALL`) and is let go, PTRACE_DETACH.
const HOLD: &str = "
import ctypes, os, sys
thread = int(sys.argv[1])
ptrace = lambda request: ctypes.CDLL(None).ptrace(request, thread, None, None)
assert ptrace(0x4206) == 0 and ptrace(0x4207) == 0
os.waitpid(thread, 0x40000000)
print('held', flush=True)
sys.stdin.read()
ptrace(17)
";

#[test]
#[ignore = "needs root"]
fn a_worker_that_hangs_is_waited_for_once_and_serves_again_when_it_moves() {
    let node = Node::new();
    node.namespace.visit(|| {
        let mut engine = node.start();
        let limits = Bandwidth { ingress: request(10 * MBIT), egress: None };
        let _pod = add(&mut engine, "pod", limits);
        let held = Held::hold("worker-0");
        let mut refused = || {
            let started = Instant::now();
            let error = set(&mut engine, "pod", 20 * MBIT).expect_err("nobody limits it");
            assert!(error.contains("worker 0") && error.contains("restart viaductd"), "{error}");
            assert_eq!(pod(&engine, "pod").limits, limits);
            started.elapsed()
        };
        // The change and its undo are published, and waited for 2 s in all: not twice, and not again.
        const WAIT: Duration = Duration::from_secs(2);
        let first = refused();
        assert!((WAIT..2 * WAIT).contains(&first), "{first:?}");
        let later = refused();
        assert!(later < WAIT, "{later:?}");
        drop(held);
        assert_worker_has(&engine, BURST_ANY);
        set(&mut engine, "pod", 1000 * MBIT).expect("the worker moves again");
        assert_worker_has(&engine, burst(1000));
        engine.stop();
    });
}

#[test]
#[ignore = "needs root"]
fn a_worker_behind_one_that_hangs_has_what_is_published_when_the_change_is_refused() {
    let node = Node::new();
    node.namespace.visit(|| {
        let mut engine = node.start_with(2);
        let limits = Bandwidth { ingress: request(10 * MBIT), egress: None };
        let _pod = add(&mut engine, "pod", limits);
        let held = Held::hold("worker-0");
        // The first change waits for worker 0 in vain, its undo and the second one do not: long
        // before worker 1 looks up from its sleep by itself.
        for _ in 0..2 {
            let error = set(&mut engine, "pod", 20 * MBIT).expect_err("worker 0 hangs");
            assert!(error.contains("worker 0"), "{error}");
            let generations =
                engine.workers().handles().iter().map(|w| w.counters.generation.get());
            let [held, free] = generations.collect::<Vec<_>>()[..] else { panic!("there are two") };
            let newest = engine.workers().generation();
            assert!(held < newest && free == newest, "{held}, {free} of {newest}");
        }
        drop(held);
        engine.stop();
    });
}

#[test]
#[ignore = "needs root"]
fn a_limit_that_cannot_be_costs_a_pod_that_limit_and_an_impossible_address_costs_it_all() {
    let node = Node::new();
    node.namespace.visit(|| {
        let mut engine = node.start();
        let limits = Bandwidth { ingress: request(10), egress: request(20) };
        let pods = ["rate0", "burst0", "sound", "mac"];
        let _namespaces = pods.map(|name| add(&mut engine, name, limits));
        let records = pods.map(|name| pod(&engine, name).clone());
        engine.stop();

        let [rate0, burst0, sound, mac] = &records;
        let zero = Some(RateRequest { rate_bps: 0, burst_bits: 7 });
        let no_burst = Some(RateRequest { rate_bps: 9, burst_bits: 0 });
        let damaged = [
            PodRecord { limits: Bandwidth { ingress: zero, ..limits }, ..rate0.clone() },
            PodRecord { limits: Bandwidth { egress: no_burst, ..limits }, ..burst0.clone() },
            PodRecord { mac: [0x02, 0, 0, 0, 0, 1], ..mac.clone() },
        ];
        let (mut journal, _) = node.journal();
        for record in damaged {
            journal.append(&Record::Attached(Box::new(record))).expect("there is room");
        }
        drop(journal);

        let (mut engine, log) = logged(|| node.start());
        let without = |ingress, egress, record: &PodRecord| PodRecord {
            limits: Bandwidth { ingress, egress },
            ..record.clone()
        };
        assert_eq!(*pod(&engine, "rate0"), without(None, limits.egress, rate0));
        assert_eq!(*pod(&engine, "burst0"), without(limits.ingress, None, burst0));
        assert_eq!(pod(&engine, "sound"), sound);
        assert_eq!(engine.state().pods().len(), 3, "no worker takes such an address");
        let links = node.namespace.run("ip -o link show");
        for (record, is_there) in records.iter().zip([true, true, true, false]) {
            assert_eq!(links.contains(&record.host_ifname), is_there, "{links}");
        }
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
        let [of_burst0, of_mac, of_rate0] = errors[..] else { panic!("{log}") };
        for (line, parts) in [
            (of_rate0, ["rate_bps: 0, burst_bits: 7", "viaduct limits set rate0 --ifname eth0"]),
            (of_burst0, ["rate_bps: 9, burst_bits: 0", "viaduct limits set burst0 --ifname eth0"]),
            (of_mac, ["cannot come back", "first byte is 02"]),
        ] {
            assert!(parts.iter().all(|part| line.contains(part)), "{line}");
        }
        let mended = "viaduct limits set mends it for good";
        set(&mut engine, "rate0", 30).expect(mended);
        engine.stop();
        let (engine, log) = logged(|| node.start());
        assert_eq!(pod(&engine, "rate0").limits.ingress, request(30), "{mended}");
        assert!(!log.contains("limits set rate0"), "{log}");
        engine.stop();
    });
}

/// The nft table's own number, and the pods that it knows.
fn nft(node: &Node) -> (String, String) {
    let list = node.namespace.run("nft -a list table inet viaduct");
    let table = list.lines().next().filter(|line| line.contains("# handle ")).expect("a table");
    let set = list.split_once("set pods4 ").expect("the set").1;
    let pods = set.split_once("elements = {").expect("there are pods").1;
    let pods = pods.split_whitespace().take_while(|word| *word != "}").collect();
    (table.to_owned(), pods)
}

#[test]
#[ignore = "needs root"]
fn pods_with_addresses_from_elsewhere_come_and_go_without_a_new_nft_table() {
    let node = Node::new();
    node.namespace.visit(|| {
        let mut engine = node.start();
        let add = |engine: &mut Engine, last: u8| {
            let address =
                PodAddress { address: [192, 0, 2, last].into(), prefix_len: 24, gateway: None };
            let addressing = Addressing::Delegated(vec![address]);
            add_at(engine, &format!("pod{last}"), addressing, Bandwidth::default())
        };
        let (table, pods) = nft(&node);
        assert_eq!(pods, "10.244.9.0/24");
        let _five = add(&mut engine, 5);
        let _six = add(&mut engine, 6);
        assert_eq!(nft(&node), (table.clone(), "10.244.9.0/24,192.0.2.5-192.0.2.6".to_owned()));
        engine.detach(&attachment("pod5")).expect("it goes");
        assert_eq!(nft(&node), (table, "10.244.9.0/24,192.0.2.6".to_owned()));

        // Where somebody has changed the table, it is written anew.
        node.namespace.run("nft delete element inet viaduct pods4 { 192.0.2.6 }");
        let _seven = add(&mut engine, 7);
        assert_eq!(nft(&node).1, "10.244.9.0/24,192.0.2.6/31");
        engine.detach(&attachment("pod6")).expect("it goes");
        assert_eq!(nft(&node).1, "10.244.9.0/24,192.0.2.7");
        engine.stop();
        let (table, engine) = (nft(&node).0, node.start());
        assert_eq!(nft(&node).1, "10.244.9.0/24,192.0.2.7");
        assert_ne!(nft(&node).0, table, "another daemon writes its own");
        engine.stop();
    });
}

#[test]
#[ignore = "needs root"]
fn a_way_to_a_pod_that_the_kernel_refuses_leaves_nothing_and_is_tried_again() {
    let node = Node::new();
    let [five, six] = [5, 6].map(|last| IpAddr::from([192, 0, 2, last]));
    let ways = |to: IpAddr| node.namespace.run(&format!("ip route show table all {to}"));
    let prefixes = |port: &NodePort| port.destinations().iter().map(IpNet::to_string).collect();
    node.namespace.visit(|| {
        let engine = node.start();
        let (mut port, mut netlink) = (engine.node().clone(), Netlink::open().expect("a socket"));
        let mut reach = |port: &mut NodePort, to| port.reach(&mut netlink, &BTreeSet::from([to]));
        assert_eq!(reach(&mut port, five).expect("the device is up"), Reached::Changed);
        assert_eq!(ways(five).lines().count(), 2, "into viaduct0, and the end of our table");

        // A route into a device that is down is refused, the end of our table is not.
        node.namespace.run("ip link set viaduct0 down");
        for _ in 0..2 {
            let error = reach(&mut port, six).expect_err("the device is down").to_string();
            assert!(error.contains("192.0.2.6"), "{error}");
            let before: Vec<String> = prefixes(&port);
            assert_eq!(before, ["10.244.9.0/24", "192.0.2.5/32"]);
            assert_eq!(ways(six).lines().count(), 1);
        }
        node.namespace.run("ip link set viaduct0 up");
        assert_eq!(reach(&mut port, five).expect("the device is up"), Reached::Changed);
        assert_eq!((ways(five).lines().count(), ways(six).lines().count()), (2, 0));
        assert_eq!(reach(&mut port, five).expect("nothing is asked"), Reached::Same);
        engine.stop();
    });
}

#[test]
#[ignore = "needs root"]
fn an_add_whose_way_the_kernel_refuses_leaves_the_nft_table_as_it_was() {
    let node = Node::new();
    node.namespace.visit(|| {
        let mut engine = node.start();
        let before = nft(&node);
        node.namespace.run("ip link set viaduct0 down");
        let address = PodAddress { address: [192, 0, 2, 5].into(), prefix_len: 24, gateway: None };
        let add = |engine: &mut Engine| {
            let addressing = Addressing::Delegated(vec![address.clone()]);
            try_add_at(engine, "pod", addressing, Bandwidth::default())
        };
        let error = add(&mut engine).map(drop).expect_err("the device is down");
        assert!(error.contains("192.0.2.5"), "{error}");
        assert_eq!(nft(&node), before);
        assert_eq!(node.namespace.run("ip route show table all 192.0.2.5"), "");

        node.namespace.run("ip link set viaduct0 up");
        engine.repair().expect("the way to the pods of before");
        let _pod = add(&mut engine).expect("the device is up");
        assert_eq!(nft(&node).1, "10.244.9.0/24,192.0.2.5");
        engine.stop();
    });
}
