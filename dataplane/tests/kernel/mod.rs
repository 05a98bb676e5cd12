//! The kernel as an oracle: what it makes of a packet between two interfaces of a namespace, by
//! a program that sends into the one and captures at the other. Shared by the tests that compare
//! with it byte by byte. Needs root, iproute2 and python3 (AF_PACKET has no safe Rust binding here).

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::ops::Range;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Sends each line of stdin, a packet after its virtio_net_hdr in hex, through the first
/// interface, and prints what comes out of the second and has the packet's EtherType, up to a
/// marker sent behind it. The marker is told by the bytes of a range.
const INJECT: &str = r#"
import os, select, socket, sys
SOL_PACKET, PACKET_VNET_HDR, ETH_P_ALL, SO_RCVBUFFORCE = 263, 15, 3, 33
VIRTIO_BYTES, ETHER_TYPE = 10, slice(12, 14)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # Two CPUs could swap packets.
receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 28)
receiver.bind((sys.argv[2], ETH_P_ALL))
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
sender.bind((sys.argv[1], 0))
marker = bytes.fromhex(sys.argv[3])
told_by = slice(int(sys.argv[4]), int(sys.argv[5]))
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    packet = bytes.fromhex(line)
    sender.send(packet)
    sender.send(bytes(VIRTIO_BYTES) + marker)
    while True:
        if not select.select([receiver], [], [], 5)[0]:
            sys.exit(f"packet {number}: no marker within 5 s")
        frame = receiver.recv(1 << 17)
        if frame[told_by] == marker[told_by]:
            break
        if frame[ETHER_TYPE] == packet[VIRTIO_BYTES:][ETHER_TYPE]:
            print(frame.hex())
    print("end", flush=True)
"#;

/// Length of struct virtio_net_hdr (include/uapi/linux/virtio_net.h).
pub const VIRTIO_BYTES: usize = 10;

/// A network namespace without IPv6, whose interfaces are silent: removed at the end whatever
/// happens.
pub struct Namespace(String);

impl Namespace {
    /// `name` is of this test only, and short.
    pub fn new(name: &str) -> Namespace {
        let namespace = Namespace(format!("{name}-{}", std::process::id()));
        run(&["netns", "add", &namespace.0]);
        namespace.set("ipv6/conf/default/disable_ipv6=1");
        namespace
    }

    /// Runs a command inside: words between single spaces.
    pub fn run(&self, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        run(&[&["netns", "exec", &self.0], &words[..]].concat());
    }

    /// Sets a key below /proc/sys/net: `key=value`.
    pub fn set(&self, setting: &str) {
        let (key, value) = setting.split_once('=').expect("a value");
        let write = format!("echo {value} > /proc/sys/net/{key}");
        run(&["netns", "exec", &self.0, "sh", "-c", &write]);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let removed = Command::new("ip").args(["netns", "del", &self.0]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("network namespace {} is left over: ip netns del {0}", self.0);
        }
    }
}

fn run(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {errors}");
}

/// The kernel between two interfaces, behind a pipe.
pub struct Kernel {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Kernel {
    /// `marker` is a packet that comes out as one packet, with the bytes in `told_by` as they were;
    /// of no other packet that comes out are they the same.
    pub fn start(
        namespace: &Namespace,
        [from, to]: [&str; 2],
        marker: &[u8],
        told_by: Range<usize>,
    ) -> Kernel {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &namespace.0, "python3", "-c", INJECT, from, to])
            .args([hex(marker), told_by.start.to_string(), told_by.end.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut kernel = Kernel { child, input, output };
        assert_eq!(kernel.line(), "ready");
        kernel
    }

    /// What comes out for a packet, which its `virtio` header tells the kernel about.
    pub fn send(&mut self, virtio: [u8; VIRTIO_BYTES], packet: &[u8]) -> Vec<Vec<u8>> {
        writeln!(self.input, "{}{}", hex(&virtio), hex(packet)).expect("python3 reads");
        let mut out = Vec::new();
        loop {
            match self.line().as_str() {
                "end" => return out,
                "" => panic!("python3 stopped, see above"),
                line => out.push(unhex(line)),
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("python3 writes");
        line.trim_end().to_owned()
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // Already gone if it failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writes to memory");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex from python3");
    (0..text.len()).step_by(2).map(digits).collect()
}

/// Fails with the place of the first difference between the kernel's packets and ours.
pub fn assert_the_kernels(ours: &[Vec<u8>], theirs: &[Vec<u8>], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}: packets");
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert_eq!(ours.len(), theirs.len(), "{what}, packet {index}: bytes");
        let differs = (0..ours.len()).find(|&at| ours[at] != theirs[at]);
        assert_eq!(differs, None, "{what}, packet {index}: offset of a difference");
    }
}

/// Pseudo-random numbers that are the same in every run (xorshift64).
pub struct Random(u64);

impl Random {
    /// From the first of them on.
    pub fn new() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}
