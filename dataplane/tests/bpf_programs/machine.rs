//! What the tests need of the machine: a folder on a bpffs and network namespaces of their own,
//! gone again when the value is.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const BPFFS: &str = "/sys/fs/bpf";

/// Read while a program is being started: until it runs, the new process has copies of the
/// descriptors of all tests, and what one of them closes stays open.
static STARTING: RwLock<()> = RwLock::new(());

/// Runs a program to its end.
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let starting = STARTING.read().expect("nobody panics with it");
    let child = command.spawn().expect("the program starts");
    drop(starting);
    child.wait_with_output().expect("the program ends")
}

/// Closes descriptors, so that the kernel has let go of what is behind them on return.
pub fn close<T>(descriptors: T) {
    let _nobody_starts = STARTING.write().expect("nobody panics with it");
    drop(descriptors);
}

/// Runs a command that has to succeed and answers its output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(Command::new(program).args(arguments));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).expect("output is text")
}

/// A name no other test, process or run uses at the same time, of at most 15 bytes.
fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("vt{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A folder for pins.
pub struct BpfDir(PathBuf);

impl BpfDir {
    /// A folder that does not exist yet. Mounts a bpffs where every distribution has one.
    pub fn new() -> BpfDir {
        // Two mounts over each other would hide the pins of whoever saw the first.
        let lock = File::create("/run/lock/viaduct-test-bpffs").expect("the lock file is made");
        lock.lock().expect("the lock is taken");
        let filesystem = rustix::fs::statfs(BPFFS).expect("sysfs is mounted");
        if filesystem.f_type != libc::BPF_FS_MAGIC {
            run("mount", &["-t", "bpf", "bpf", BPFFS]);
        }
        BpfDir(Path::new(BPFFS).join(format!("viaduct-test-{}", unique())))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for BpfDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A network namespace, in which an interface is silent until a test sends something.
pub struct Netns(String);

impl Netns {
    /// With `lo` only. What is made in it has no IPv6: an interface that has it sends multicast
    /// listener reports, and solicits neighbours and routers, for seconds after it came up
    /// (RFC 3810 §6.1, RFC 4862 §5.4, RFC 4861 §6.3.7), and who counts bytes would count these.
    pub fn new() -> Netns {
        let name = unique();
        run("ip", &["netns", "add", &name]);
        let netns = Netns(name);
        netns.ip("link set lo up");
        netns.set_ipv6("default", false);
        netns
    }

    /// Two namespaces with a veth between them: `eth0` of the first, `host` of the second, both up
    /// and with IPv6.
    pub fn pod_and_host() -> (Netns, Netns) {
        let (pod, host) = (Netns::new(), Netns::new());
        pod.ip(&format!("link add eth0 type veth peer name host netns {}", host.0));
        for (netns, device, last) in [(&pod, "eth0", 2), (&host, "host", 1)] {
            netns.set_ipv6(device, true);
            netns.ip(&format!("addr add 10.9.0.{last}/24 dev {device}"));
            netns.ip(&format!("addr add fd09::{last}/64 dev {device} nodad"));
            netns.ip(&format!("link set {device} up"));
        }
        (pod, host)
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// Two namespaces with a veth of so many queues and this MTU between them: `eth0` of the first,
    /// `nic` of the second, both up.
    pub fn peer_and_node(queues: u32, mtu: u32) -> (Netns, Netns) {
        let (peer, node) = (Netns::new(), Netns::new());
        let end = format!("mtu {mtu} numrxqueues {queues} numtxqueues {queues}");
        let other = format!("peer name nic {end} netns {}", node.0);
        peer.ip(&format!("link add eth0 {end} type veth {other}"));
        for (netns, device, last) in [(&peer, "eth0", 2), (&node, "nic", 1)] {
            netns.ip(&format!("addr add 192.0.2.{last}/24 dev {device}"));
            netns.ip(&format!("link set {device} up"));
        }
        (peer, node)
    }

    /// Whether a device has IPv6; `default`: those that are made from now on.
    fn set_ipv6(&self, device: &str, on: bool) {
        let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
        let disabled = if on { "0" } else { "1" };
        self.enter(|| fs::write(path, disabled)).expect("the kernel has IPv6");
    }

    /// Runs `ip` inside, with the arguments of one line.
    pub fn ip(&self, line: &str) -> String {
        let arguments: Vec<&str> = ["-n", &self.0].into_iter().chain(line.split(' ')).collect();
        run("ip", &arguments)
    }

    /// Whether a program succeeds inside.
    pub fn succeeds(&self, line: &str) -> bool {
        let enter = ["netns", "exec", &self.0].into_iter();
        output(Command::new("ip").args(enter.chain(line.split(' ')))).status.success()
    }

    pub fn ifindex(&self, device: &str) -> u32 {
        let line = self.ip(&format!("-o link show dev {device}"));
        let index = line.split(':').next().expect("a line starts with the index");
        index.parse().expect("an index is a number")
    }

    pub fn mac(&self, device: &str) -> [u8; 6] {
        let line = self.ip(&format!("-o link show dev {device}"));
        let mac = line.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
        let bytes = mac.expect("a veth has a MAC").split(':');
        let bytes: Vec<u8> = bytes.map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
        bytes.try_into().expect("a MAC has six bytes")
    }

    /// Bytes that a device has received, and that it has sent, since it was made.
    pub fn bytes(&self, device: &str) -> [u64; 2] {
        let line = self.ip(&format!("-s -o link show dev {device}"));
        ["RX:", "TX:"].map(|way| {
            // Behind a line of headings; `-o` writes a backslash where a line ends.
            let numbers = line.split(way).nth(1).and_then(|rest| rest.split('\\').nth(1));
            let bytes = numbers.and_then(|numbers| numbers.split_whitespace().next());
            bytes.and_then(|bytes| bytes.parse().ok()).expect("ip shows bytes")
        })
    }

    /// Runs `body` on a thread inside.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(Path::new("/run/netns").join(&self.0)).expect("the netns exists");
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter a namespace");
                body()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        output(Command::new("ip").args(["netns", "del", &self.0]));
    }
}
