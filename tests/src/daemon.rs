//! A node with a daemon on it: namespaces, configuration, process, listings. It exists so that a
//! test can say "a node like this" and get one of its own, which goes away however the test ends.
//!
//! ```text
//!   outside namespace            node namespace                    pod namespaces
//!  ┌─────────────────┐         ┌─────────────────────────┐        ┌──────────────┐
//!  │ eth0 .2 ────────┼─ veth ──┼─ up0 .1    viaductd      │─ veth ─┼─ eth0        │
//!  │ no route to pods│         │ lo 192.0.2.1, viaduct0/1│        │              │
//!  └─────────────────┘         └─────────────────────────┘        └──────────────┘
//! ```

use std::fmt;
use std::fs::{self, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::{Namespace, wait_until};

/// Where BPF objects are pinned (bpf(8), "mount -t bpf").
const BPFFS: &str = "/sys/fs/bpf";

/// Magic number of a bpffs (linux/magic.h, `BPF_FS_MAGIC`).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// A daemon is ready within 100 ms here; one that waits for the sockets of a dead one, within 2 s.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// A daemon that is told to stop has no more to do than to drain.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Numbers the nodes of this process, so that their pods' addresses differ.
static NODES: AtomicU8 = AtomicU8::new(0);

/// The outside's addresses: what the internet is to a node.
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// See [`OUTSIDE_V4`].
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2);
/// The node's addresses on the link to the outside.
pub const UPLINK_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// See [`UPLINK_V4`].
pub const UPLINK_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1);
/// The node's addresses on its loopback.
pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// See [`NODE_V4`].
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// `[workers] port_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortMode {
    /// What the kernel can do.
    Auto,
    /// What kernel 6.1 can do.
    Basic,
}

/// What a node is configured with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// `[workers] port_mode`.
    pub port_mode: PortMode,
    /// Number of workers, 1 to the number of cores of this process.
    pub workers: usize,
    /// `[workers] frames`.
    pub frames: u32,
    /// `[node] masquerade`.
    pub masquerade: bool,
    /// Prefix length of the IPv4 pod CIDR.
    pub v4_prefix_len: u8,
    /// `[node] mtu`.
    pub mtu: u32,
    /// `[uplink]`.
    pub uplinks: Uplinks,
}

/// `[uplink]`: its keys and their lists. By default it is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// Names of interfaces in the node's namespace.
    pub interfaces: Vec<String>,
    /// Prefixes that are reached by them.
    pub direct: Vec<String>,
    /// Prefixes within `direct` that are left to the kernel.
    pub kernel: Vec<String>,
}

impl Uplinks {
    fn table(&self) -> String {
        if *self == Uplinks::default() {
            return String::new();
        }
        let Uplinks { interfaces, direct, kernel } = self;
        let (interfaces, direct, kernel) = (json!(interfaces), json!(direct), json!(kernel));
        format!("[uplink]\ninterfaces = {interfaces}\ndirect = {direct}\nkernel = {kernel}\n")
    }
}

impl Setup {
    /// A node with the daemon's defaults in the port mode.
    #[must_use]
    pub fn new(port_mode: PortMode, workers: usize) -> Setup {
        Setup {
            port_mode,
            workers,
            frames: 32_768,
            masquerade: true,
            v4_prefix_len: 24,
            mtu: 1500,
            uplinks: Uplinks::default(),
        }
    }

    /// Both port modes, with one worker.
    #[must_use]
    pub fn modes() -> Vec<Setup> {
        [PortMode::Auto, PortMode::Basic].map(|mode| Setup::new(mode, 1)).into()
    }

    /// Both port modes, each with one and with two workers.
    #[must_use]
    pub fn modes_and_workers() -> Vec<Setup> {
        let workers = [1, 2];
        let both = |mode| workers.map(|count| Setup::new(mode, count));
        [PortMode::Auto, PortMode::Basic].into_iter().flat_map(both).collect()
    }

    /// The last cores that the process may use, as many as there are workers.
    fn cores(&self) -> Result<Vec<usize>> {
        let usable = rustix::thread::sched_getaffinity(None).context("read the CPU affinity")?;
        let mut cores: Vec<usize> =
            (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| usable.is_set(*core)).collect();
        let surplus = cores.len().checked_sub(self.workers);
        let surplus = surplus.with_context(|| format!("{self} needs a core per worker"))?;
        Ok(cores.split_off(surplus))
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port mode {:?}, {} worker(s)", self.port_mode, self.workers)
    }
}

/// Runs a test on a node of every setup. After it the node must account for every frame and every
/// packet, and its daemon must have logged no error.
///
/// # Panics
/// When the test fails, with the setup, the reason and the daemon's log.
pub fn on_each(setups: Vec<Setup>, test: impl Fn(&mut Node) -> Result<()>) {
    for setup in setups {
        let name = setup.to_string();
        eprintln!("on a node with {name}");
        let mut node = match Node::start(setup) {
            Ok(node) => node,
            Err(error) => panic!("on a node with {name}: {error:?}"),
        };
        let outcome = test(&mut node).and_then(|()| node.check());
        if let Err(error) = outcome {
            let drops = node.viaduct(&["drops"]).unwrap_or_else(|error| error.to_string());
            let status = node.viaduct(&["status"]).unwrap_or_default();
            panic!("on a node with {name}: {error:?}\n{status}\n{drops}");
        }
    }
}

/// A node. Dropped, it takes its daemon, namespaces, pins and files with it.
#[derive(Debug)]
pub struct Node {
    setup: Setup,
    number: u8,
    namespace: Namespace,
    outside: Namespace,
    dir: TempDir,
    bpf_dir: PathBuf,
    daemon: Option<Child>,
}

impl Node {
    /// Makes a node and starts its daemon; returns when that is ready.
    ///
    /// # Errors
    /// When a step fails, or the daemon ends or is not ready in time; with its log.
    pub fn start(setup: Setup) -> Result<Node> {
        let mut node = Node::make(setup)?;
        node.start_daemon()?;
        Ok(node)
    }

    /// Makes a node without a daemon.
    ///
    /// # Errors
    /// When a step fails.
    pub fn make(setup: Setup) -> Result<Node> {
        ensure_bpffs()?;
        let number = NODES.fetch_add(1, Ordering::Relaxed); // only uniqueness matters
        let dir = tempfile::Builder::new().prefix("viaduct-e2e-").tempdir_in("/run")?;
        let bpf_dir = format!("viaduct-e2e-{}-{number}", std::process::id());
        let node = Node {
            setup,
            number,
            namespace: Namespace::create("e2e-node")?,
            outside: Namespace::create("e2e-outside")?,
            dir,
            bpf_dir: Path::new(BPFFS).join(bpf_dir),
            daemon: None,
        };
        node.connect_outside()?;
        fs::write(node.config_path(), node.config()?).context("write the configuration")?;
        Ok(node)
    }

    /// Starts the daemon in the node's network namespace; returns when it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time; with its log.
    pub fn start_daemon(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the node has a daemon");
        self.daemon = Some(self.spawn()?);
        wait_until("the daemon is ready", READY_DEADLINE, || {
            if let Some(status) = self.daemon.as_mut().and_then(|d| d.try_wait().transpose()) {
                self.daemon = None;
                bail!("viaductd ended ({}):\n{}", status?, self.log());
            }
            Ok(self.viaduct(&["status"]).is_ok())
        })
        .with_context(|| format!("log of viaductd:\n{}", self.log()))
    }

    /// Starts another daemon with the node's configuration and waits for its end: there should be
    /// one already. Returns how it ended and what it said.
    ///
    /// # Errors
    /// When it does not end by itself.
    pub fn start_second_daemon(&self) -> Result<(ExitStatus, String)> {
        let before = self.log().len();
        let mut second = self.spawn()?;
        let mut ended = None;
        let waited = wait_until("the second daemon ends", STOP_DEADLINE, || {
            ended = second.try_wait()?;
            Ok(ended.is_some())
        });
        if waited.is_err() {
            second.kill()?;
            second.wait()?;
        }
        waited?;
        Ok((ended.context("it ended")?, self.log().split_off(before)))
    }

    /// Sends the daemon a signal and waits for its end.
    ///
    /// # Errors
    /// When there is none, or it does not end.
    pub fn stop_daemon(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal_daemon(signal)?;
        self.reap_daemon()
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// When there is no daemon.
    pub fn signal_daemon(&self, signal: Signal) -> Result<()> {
        let daemon = self.daemon.as_ref().context("the node has no daemon")?;
        kill_process(Pid::from_child(daemon), signal).context("signal viaductd")
    }

    /// Waits for the end of a daemon that was told to end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn reap_daemon(&mut self) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("the node has no daemon")?;
        let mut status = None;
        wait_until("viaductd has ended", STOP_DEADLINE, || {
            status = daemon.try_wait()?;
            Ok(status.is_some())
        })
        .inspect_err(|_| {
            let _ = daemon.kill(); // It has hung: that is what the test fails for.
        })?;
        status.context("it ended")
    }

    fn spawn(&self) -> Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(binary("viaductd"));
        command.arg("--config").arg(self.config_path());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.namespace.within(|| command.spawn())?.context("start viaductd")
    }

    /// The answer of `viaduct LISTING --json`.
    ///
    /// # Errors
    /// When there is no daemon, or it refuses.
    pub fn list(&self, listing: &str) -> Result<Value> {
        let stdout = self.viaduct(&[listing, "--json"])?;
        serde_json::from_str(&stdout).with_context(|| format!("read viaduct {listing}"))
    }

    /// What `viaduct` prints.
    ///
    /// # Errors
    /// When it fails, with what it wrote to stderr.
    pub fn viaduct(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(binary("viaduct"));
        let output = command.arg("--socket").arg(self.socket()).args(args).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "viaduct {}: {}", args.join(" "), stderr.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Both laws (every frame is somewhere, every packet is accounted for), and the log.
    ///
    /// # Errors
    /// When a law does not hold on a quiet node, or the daemon logged an error.
    pub fn check(&self) -> Result<()> {
        if self.daemon.is_some() {
            // A worker that got no time for seconds makes the status fail until it moves again.
            let mut status = Ok(Value::Null);
            wait_until("both laws hold", Duration::from_secs(10), || {
                status = self.list("status");
                Ok(status.as_ref().is_ok_and(|status| workers(status).all(laws_hold)))
            })
            .with_context(|| match &status {
                Ok(status) => format!("{:#}", status["workers"]),
                Err(error) => format!("{error:#}"),
            })?;
        }
        let log = self.log();
        let alarming = log.lines().find(|line| line.contains("ERROR") || line.contains("panicked"));
        ensure!(alarming.is_none(), "the daemon logged an error:\n{log}");
        Ok(())
    }

    /// The setup it was made with.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The node's own namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The internet, as far as this node knows.
    #[must_use]
    pub fn outside(&self) -> &Namespace {
        &self.outside
    }

    /// Process id of the daemon.
    ///
    /// # Errors
    /// When there is none.
    pub fn daemon_pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().context("the node has no daemon")?.id())
    }

    /// `[daemon] socket`.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("viaduct.sock")
    }

    /// `[daemon] bpf_dir`.
    #[must_use]
    pub fn bpf_dir(&self) -> &Path {
        &self.bpf_dir
    }

    /// Prefixes of the node's pods, IPv4 first.
    #[must_use]
    pub fn pod_cidrs(&self) -> [String; 2] {
        let (number, len) = (self.number, self.setup.v4_prefix_len);
        [format!("10.244.{number}.0/{len}"), format!("fd00:10:244:{number:x}::/64")]
    }

    /// An address of the pod network that no pod has before some two hundred were added.
    #[must_use]
    pub fn nobody(&self) -> [IpAddr; 2] {
        let number = self.number;
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0xfeed);
        [Ipv4Addr::new(10, 244, number, 250).into(), v6.into()]
    }

    /// Everything that the node's daemons have written so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Takes it that the errors logged so far were to be expected.
    pub fn forget_log(&self) {
        let _ = fs::write(self.log_path(), ""); // The daemon appends.
    }

    /// The daemon's configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("viaduct.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("viaductd.log")
    }

    fn config(&self) -> Result<String> {
        let mode = match self.setup.port_mode {
            PortMode::Auto => "auto",
            PortMode::Basic => "basic",
        };
        let workers =
            json!({"cores": self.setup.cores()?, "frames": self.setup.frames, "port_mode": mode});
        // Numbers, strings and lists of them are written alike in JSON and TOML.
        let line = |(key, value): (&String, &Value)| format!("{key} = {value}\n");
        let workers: String = workers.as_object().into_iter().flatten().map(line).collect();
        Ok(format!(
            "[node]\npod_cidrs = {cidrs}\nmtu = {mtu}\nmasquerade = {masquerade}\n\
             [workers]\n{workers}\
             {uplink}\
             [daemon]\nsocket = {socket:?}\nstate_dir = {state:?}\nbpf_dir = {bpf:?}\n\
             metrics = \"127.0.0.1:9477\"\n",
            cidrs = json!(self.pod_cidrs()),
            mtu = self.setup.mtu,
            uplink = self.setup.uplinks.table(),
            masquerade = self.setup.masquerade,
            socket = self.socket(),
            state = self.dir.path().join("state"),
            bpf = self.bpf_dir,
        ))
    }

    /// Addresses on the loopback, and a link to the outside that is like a wire: what leaves by it
    /// has complete checksums and is no longer than its MTU.
    fn connect_outside(&self) -> Result<()> {
        let (node, outside) = (&self.namespace, &self.outside);
        let peer = outside.path().file_name().context("a named namespace")?.to_string_lossy();
        for namespace in [node, outside] {
            namespace.ip(&["link", "set", "lo", "up"])?;
        }
        let veth = "link add up0 mtu 1500 type veth peer name eth0 mtu 1500 netns";
        ip(node, &format!("{veth} {peer}"))?;
        ip(node, &format!("addr add {NODE_V4}/32 dev lo"))?;
        ip(node, &format!("addr add {NODE_V6}/128 dev lo"))?;
        let ends = [(node, "up0", UPLINK_V4, UPLINK_V6), (outside, "eth0", OUTSIDE_V4, OUTSIDE_V6)];
        for (namespace, ifname, v4, v6) in ends {
            ip(namespace, &format!("addr add {v4}/24 dev {ifname}"))?;
            ip(namespace, &format!("addr add {v6}/64 dev {ifname} nodad"))?;
            // So that nothing changes by itself a second later.
            let no_dad = format!("net.ipv6.conf.{ifname}.accept_dad=0");
            namespace.run("sysctl", &["-qw", &no_dad])?;
            ip(namespace, &format!("link set {ifname} up"))?;
            let output = namespace.run("ethtool", &["-K", ifname, "tx", "off", "gso", "off"])?;
            ensure!(output.status.success(), "turn offloads of {ifname} off: {output:?}");
        }
        ip(node, &format!("route add default via {OUTSIDE_V4}"))?;
        ip(node, &format!("-6 route add default via {OUTSIDE_V6}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("log of viaductd ({}):\n{}", self.setup, self.log());
        }
        // Nothing here may hide the failure of the test that is being unwound.
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = fs::remove_dir_all(&self.bpf_dir);
    }
}

/// A program of the project: in VIADUCT_BIN_DIR, or where the release build puts it.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    match std::env::var_os("VIADUCT_BIN_DIR") {
        Some(dir) => Path::new(&dir).join(name),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release").join(name),
    }
}

/// Runs `ip` with the words of a line.
///
/// # Errors
/// When `ip` fails.
pub fn ip(namespace: &Namespace, line: &str) -> Result<()> {
    namespace.ip(&line.split_whitespace().collect::<Vec<_>>())
}

/// The workers of a status.
pub fn workers(status: &Value) -> impl Iterator<Item = &Value> {
    status["workers"].as_array().into_iter().flatten()
}

fn laws_hold(worker: &Value) -> bool {
    let sum = |part: &str, keys: &[&str]| -> u64 {
        keys.iter().map(|key| worker[part][key].as_u64().unwrap_or_default()).sum()
    };
    let frames = sum("frames", &["free", "rx", "tx", "crossing", "held"]);
    let came = sum("packets", &["received", "generated", "crossed_in"]);
    let went = sum("packets", &["merged", "held", "sent", "dropped", "crossed_out"]);
    frames == sum("frames", &["total"]) && frames > 0 && came == went
}

fn ensure_bpffs() -> Result<()> {
    let is_bpffs =
        || Ok::<bool, rustix::io::Errno>(rustix::fs::statfs(BPFFS)?.f_type == BPF_FS_MAGIC);
    if !is_bpffs()? {
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]).status()?;
        ensure!(mounted.success() || is_bpffs()?, "mount a bpffs on {BPFFS}");
    }
    Ok(())
}
