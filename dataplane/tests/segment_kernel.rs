//! The segmenter against the kernel, byte by byte: the same super-packets go through the kernel's
//! own software segmentation and through ours.
//!
//! ```text
//!   namespace vdseg-<pid>-<mode>
//!   AF_PACKET + PACKET_VNET_HDR ──► seg0 (tso, gso, uso off) ═══ veth ═══ seg1 ──► AF_PACKET
//! ```
//!
//! A device without segmentation offload makes the kernel cut what is sent through it. With
//! `tx on` the segments keep partial checksums, with `tx off` the kernel completes them too.
//! Needs root, iproute2, ethtool and python3 (AF_PACKET has no safe Rust binding here).

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use dataplane::checksum::{Sum, pseudo_header_v4, pseudo_header_v6};
use dataplane::segment::{HEADER_BYTES_MAX, Segmenter, SuperPacket};

/// Sends each line of stdin, a packet after its virtio_net_hdr in hex, through the first
/// interface, and prints what comes out of the second, up to a marker packet sent behind it.
const INJECT: &str = r#"
import os, select, socket, sys
SOL_PACKET, PACKET_VNET_HDR, ETH_P_ALL, SO_RCVBUFFORCE = 263, 15, 3, 33
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # Two CPUs could swap packets.
receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 28)
receiver.bind((sys.argv[2], ETH_P_ALL))
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
sender.bind((sys.argv[1], 0))
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    packet = bytes.fromhex(line)
    addresses = packet[10:22]
    marker = addresses + b"\x88\xb5" + number.to_bytes(46, "big")
    sender.send(packet)
    sender.send(bytes(10) + marker)
    while True:
        if not select.select([receiver], [], [], 5)[0]:
            sys.exit(f"packet {number}: no marker within 5 s")
        frame = receiver.recv(1 << 17)
        if frame == marker:
            break
        if frame[:12] == addresses:
            print(frame.hex())
    print("end", flush=True)
"#;

/// A network namespace with a veth pair, removed at the end whatever happens.
struct Namespace(String);

impl Namespace {
    fn new(mode: &str) -> Namespace {
        let namespace = Namespace(format!("vdseg-{}-{mode}", std::process::id()));
        run("ip", &["netns", "add", &namespace.0]);
        namespace.run("ip link add seg0 mtu 9000 type veth peer name seg1 mtu 9000");
        namespace.run("ip link set seg0 up");
        namespace.run("ip link set seg1 up");
        namespace.run("ethtool -K seg0 tso off gso off tx-udp-segmentation off");
        namespace.run("ethtool -K seg1 gro off");
        namespace
    }

    fn run(&self, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        run("ip", &[&["netns", "exec", &self.0], &words[..]].concat());
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

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
}

/// The kernel's segmentation, behind a pipe.
struct Kernel {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Kernel {
    fn start(namespace: &Namespace) -> Kernel {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &namespace.0, "python3", "-c", INJECT, "seg0", "seg1"])
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

    fn segments(&mut self, packet: &Super) -> Vec<Vec<u8>> {
        writeln!(self.input, "{}", hex(&packet.with_virtio_header())).expect("python3 reads");
        let mut segments = Vec::new();
        loop {
            match self.line().as_str() {
                "end" => return segments,
                "" => panic!("python3 stopped, see above"),
                line => segments.push(unhex(line)),
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

/// Pseudo-random numbers that are the same in every run (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Tcp,
    Udp,
}

/// A super-packet with a partial checksum, as a pod's kernel hands it over.
#[derive(Debug)]
struct Super {
    family: Family,
    protocol: Protocol,
    bytes: Vec<u8>,
    l4_offset: usize,
    header_bytes: usize,
    gso_size: u16,
}

const L3: usize = 14;

impl Super {
    fn random(random: &mut Random, family: Family, protocol: Protocol) -> Super {
        // The kernel refuses to segment what fits one segment.
        let gso_size = [1, 7, 536, 988, 1448, 8000][random.below(6)] + random.below(300);
        let payload_bytes = (gso_size + 1 + random.below(gso_size * 44)).min(65_000);
        let l4_header = match protocol {
            Protocol::Tcp => tcp(random),
            Protocol::Udp => udp(random, payload_bytes),
        };
        let l4_bytes = l4_header.len() + payload_bytes;
        let number = if protocol == Protocol::Tcp { 6 } else { 17 };
        let ip = match family {
            Family::V4 => ipv4(random, number, l4_bytes),
            Family::V6 => ipv6(random, number, l4_bytes),
        };
        let ethertype: &[u8] = if family == Family::V4 { &[0x08, 0] } else { &[0x86, 0xdd] };
        let ethernet = [&[0x0a, 1, 2, 3, 4, 5, 0x0a, 9, 8, 7, 6, 5], ethertype].concat();
        let mut bytes = [ethernet, ip, l4_header].concat();
        let header_bytes = bytes.len();
        bytes.extend(random.bytes(payload_bytes));
        let l4_offset = bytes.len() - l4_bytes;
        let mut packet =
            Super { family, protocol, bytes, l4_offset, header_bytes, gso_size: gso_size as u16 };
        packet.write_partial_checksum(number, l4_bytes);
        packet
    }

    fn checksum_offset(&self) -> usize {
        if self.protocol == Protocol::Tcp { 16 } else { 6 }
    }

    fn write_partial_checksum(&mut self, number: u8, l4_bytes: usize) {
        let array4 = |at: usize| self.bytes[at..at + 4].try_into().expect("4 bytes");
        let array16 = |at: usize| self.bytes[at..at + 16].try_into().expect("16 bytes");
        let partial = match self.family {
            Family::V4 => pseudo_header_v4(array4(26), array4(30), number, l4_bytes as u16),
            Family::V6 => pseudo_header_v6(array16(22), array16(38), number, l4_bytes as u32),
        };
        let at = self.l4_offset + self.checksum_offset();
        self.bytes[at..at + 2].copy_from_slice(&partial.fold().to_be_bytes());
    }

    /// `struct virtio_net_hdr` (include/uapi/linux/virtio_net.h), which PACKET_VNET_HDR takes in
    /// the byte order of the machine.
    fn with_virtio_header(&self) -> Vec<u8> {
        const NEEDS_CHECKSUM: u8 = 1;
        const ECN: u8 = 0x80;
        let gso_type = match (self.protocol, self.family) {
            (Protocol::Tcp, Family::V4) => 1,
            (Protocol::Tcp, Family::V6) => 4,
            (Protocol::Udp, _) => 5,
        };
        let congested =
            self.protocol == Protocol::Tcp && self.bytes[self.l4_offset + 13] & 0x80 != 0;
        let ecn = if congested { ECN } else { 0 };
        let mut bytes = vec![NEEDS_CHECKSUM, gso_type | ecn];
        bytes.extend((self.header_bytes as u16).to_ne_bytes());
        bytes.extend(self.gso_size.to_ne_bytes());
        bytes.extend((self.l4_offset as u16).to_ne_bytes());
        bytes.extend((self.checksum_offset() as u16).to_ne_bytes());
        bytes.extend(&self.bytes);
        bytes
    }

    fn segments(&self, checksums: Checksums) -> Vec<Vec<u8>> {
        let (header, payload) = self.bytes.split_at(self.header_bytes);
        let mut segmenter = Segmenter::new(SuperPacket {
            header,
            l3_offset: L3,
            l4_offset: self.l4_offset,
            gso_size: self.gso_size,
            payload_bytes: payload.len(),
        })
        .expect("a good super-packet");
        let mut out = Vec::new();
        let mut header = [0; HEADER_BYTES_MAX];
        while let Some(segment) = segmenter.next(&mut header).expect("room") {
            let payload = &payload[segment.payload_offset..][..segment.payload_bytes];
            if checksums == Checksums::Complete {
                segmenter.finish_checksum(&mut header, payload.chunks(1001)).expect("room");
            }
            out.push([&header[..segment.header_bytes], payload].concat());
        }
        out
    }
}

/// All flags and reserved bits at random; options are no-operations.
fn tcp(random: &mut Random) -> Vec<u8> {
    let options = 4 * random.below(11);
    let mut header = random.bytes(20);
    if random.below(4) == 0 {
        header[4..8].fill(0xff); // The sequence number wraps.
    }
    header[12] = (((20 + options) / 4) << 4) as u8 | (header[12] & 0x0f);
    header.resize(20 + options, 1);
    header
}

fn udp(random: &mut Random, payload_bytes: usize) -> Vec<u8> {
    let mut header = random.bytes(8);
    header[4..6].copy_from_slice(&(8 + payload_bytes as u16).to_be_bytes());
    header
}

fn ipv4(random: &mut Random, protocol: u8, l4_bytes: usize) -> Vec<u8> {
    let options = if random.below(3) == 0 { 4 * random.below(11) } else { 0 };
    let mut header = random.bytes(20);
    header[0] = 0x40 | ((20 + options) / 4) as u8;
    header[2..4].copy_from_slice(&((20 + options + l4_bytes) as u16).to_be_bytes());
    if random.below(4) == 0 {
        header[4..6].fill(0xff); // The identification wraps.
    }
    header[6] &= 0x40; // Don't Fragment or not.
    header[7] = 0;
    header[9] = protocol;
    header[10..12].fill(0);
    header.resize(20 + options, 1);
    let check = Sum::default().add_bytes(&header).checksum();
    header[10..12].copy_from_slice(&check.to_be_bytes());
    header
}

/// With hop-by-hop and destination options before the L4 header now and then.
fn ipv6(random: &mut Random, protocol: u8, l4_bytes: usize) -> Vec<u8> {
    let mut header = random.bytes(40);
    header[0] = 0x60 | header[0] & 0x0f;
    header[6] = protocol;
    if random.below(3) == 0 {
        header[6] = 0;
        header.extend([60, 0, 1, 4, 0, 0, 0, 0]);
        header.extend([protocol, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    let payload_bytes = (header.len() - 40 + l4_bytes) as u16;
    header[4..6].copy_from_slice(&payload_bytes.to_be_bytes());
    header
}

#[derive(Clone, Copy, PartialEq)]
enum Checksums {
    Partial,
    Complete,
}

fn compare(namespace: &Namespace, checksums: Checksums) {
    let mut kernel = Kernel::start(namespace);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut compared = 0;
    for round in 0..60 {
        for family in [Family::V4, Family::V6] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let packet = Super::random(&mut random, family, protocol);
                let (theirs, ours) = (kernel.segments(&packet), packet.segments(checksums));
                let what = format!(
                    "round {round}, {family:?} {protocol:?}, {} bytes of headers, {} of payload, \
                     segments of {}",
                    packet.header_bytes,
                    packet.bytes.len() - packet.header_bytes,
                    packet.gso_size
                );
                assert_eq!(theirs.len(), ours.len(), "{what}");
                for (index, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
                    assert_eq!(theirs.len(), ours.len(), "{what}, segment {index}");
                    let differs = (0..ours.len()).find(|&at| theirs[at] != ours[at]);
                    assert_eq!(differs, None, "{what}, segment {index}: offset of a difference");
                }
                compared += ours.len();
            }
        }
    }
    eprintln!("{compared} segments are the kernel's");
}

#[test]
#[ignore = "needs root"]
fn segments_with_partial_checksums_are_the_kernels() {
    let namespace = Namespace::new("partial");
    compare(&namespace, Checksums::Partial);
}

#[test]
#[ignore = "needs root"]
fn segments_with_complete_checksums_are_the_kernels() {
    let namespace = Namespace::new("complete");
    namespace.run("ethtool -K seg0 tx off");
    compare(&namespace, Checksums::Complete);
}
