//! What the tests need of the machine: a folder on a bpffs and network namespaces of their own,
//! gone again when the value is.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const BPFFS: &str = "/sys/fs/bpf";

/// Runs a command that has to succeed and answers its output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program runs");
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

/// A network namespace.
pub struct Netns(String);

impl Netns {
    pub fn new() -> Netns {
        let name = unique();
        run("ip", &["netns", "add", &name]);
        let netns = Netns(name);
        netns.ip("link set lo up");
        netns
    }

    /// Two namespaces with a veth between them: `eth0` of the first, `host` of the second, both up.
    pub fn pod_and_host() -> (Netns, Netns) {
        let (pod, host) = (Netns::new(), Netns::new());
        pod.ip(&format!("link add eth0 type veth peer name host netns {}", host.0));
        for (netns, device, last) in [(&pod, "eth0", 2), (&host, "host", 1)] {
            netns.ip(&format!("addr add 10.9.0.{last}/24 dev {device}"));
            netns.ip(&format!("addr add fd09::{last}/64 dev {device} nodad"));
            netns.ip(&format!("link set {device} up"));
        }
        (pod, host)
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// The same, with so many queues and this MTU at both ends.
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

    /// Runs `ip` inside, with the arguments of one line.
    pub fn ip(&self, line: &str) -> String {
        let arguments: Vec<&str> = ["-n", &self.0].into_iter().chain(line.split(' ')).collect();
        run("ip", &arguments)
    }

    /// Whether a program succeeds inside.
    pub fn succeeds(&self, line: &str) -> bool {
        let enter = ["netns", "exec", &self.0].into_iter();
        let status = Command::new("ip").args(enter.chain(line.split(' '))).output();
        status.expect("ip runs").status.success()
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
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}
