//! The fragmenter against the kernel, byte by byte: the same packets go through a router of the
//! kernel with a smaller MTU on its way out, and through ours.
//!
//! ```text
//!   namespace vdfrag-<pid>-<test>
//!   AF_PACKET ──► far0 ═══ veth ═══ in0 (mtu 65535) ──routes──► out0 (mtu) ═══ far1 ──► AF_PACKET
//! ```
//!
//! A router also takes one off the TTL and writes its own MACs, so the same is done to the packet
//! before our fragmenter sees it; the identification stays. A packet that the router refuses
//! (Don't Fragment) must be one that the fragmenter refuses. Needs root, iproute2 and python3
//! (AF_PACKET has no safe Rust binding here).

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use dataplane::checksum::{self, Sum};
use dataplane::fragment::{
    FRAGMENT_HEADER_BYTES_MAX, FragmentError, Fragmenter, LongPacket, MTU_MIN,
};

/// Sends each line of stdin, a packet in hex, through the first interface, and prints what comes
/// out of the second, up to a marker packet sent behind it: UDP, told by its identification.
const INJECT: &str = r#"
import os, select, socket, sys
ETH_P_ALL, SO_RCVBUFFORCE, ETHERNET, IPV4 = 3, 33, 14, b"\x08\x00"
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # Two CPUs could swap packets.
receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 28)
receiver.bind((sys.argv[2], ETH_P_ALL))
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
sender.bind((sys.argv[1], 0))
marker = bytes.fromhex(sys.argv[3])
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    sender.send(bytes.fromhex(line))
    sender.send(marker)
    while True:
        if not select.select([receiver], [], [], 5)[0]:
            sys.exit(f"packet {number}: no marker within 5 s")
        frame = receiver.recv(1 << 17)
        if frame[12:14] != IPV4:
            continue
        if frame[ETHERNET + 4:ETHERNET + 6] == marker[ETHERNET + 4:ETHERNET + 6]:
            break
        print(frame.hex())
    print("end", flush=True)
"#;

/// The identification of markers, which no packet has.
const MARKER_ID: u16 = 0xffff;
const L3: usize = 14;
/// The router's interfaces, as all packets are addressed.
const IN_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 1];
const OUT_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 2];
const FAR_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 3];
const SOURCE: [u8; 4] = [10, 77, 0, 9];
const DESTINATION: [u8; 4] = [10, 77, 1, 9];

/// A network namespace with a router and what it is connected to, removed at the end whatever
/// happens.
struct Namespace(String);

impl Namespace {
    fn new(test: &str) -> Namespace {
        let namespace = Namespace(format!("vdfrag-{}-{test}", std::process::id()));
        run("ip", &["netns", "add", &namespace.0]);
        let keys =
            ["ipv4/ip_forward=1", "ipv4/conf/all/rp_filter=0", "ipv6/conf/all/disable_ipv6=1"];
        for key in keys.map(|key| key.split_once('=').expect("a value")) {
            let write = format!("echo {} > /proc/sys/net/{}", key.1, key.0);
            run("ip", &["netns", "exec", &namespace.0, "sh", "-c", &write]);
        }
        for line in [
            "link add in0 mtu 65535 address 0a:00:00:00:00:01 type veth peer name far0 mtu 65535",
            "link add out0 address 0a:00:00:00:00:02 type veth peer name far1 mtu 65535",
            "addr add 10.77.0.1/24 dev in0",
            "addr add 10.77.1.1/24 dev out0",
            "link set in0 up",
            "link set far0 up",
            "link set out0 up",
            "link set far1 up",
            "neigh add 10.77.1.9 lladdr 0a:00:00:00:00:03 dev out0",
            "neigh add 10.77.0.9 lladdr 0a:00:00:00:00:04 dev in0",
        ] {
            namespace.ip(line);
        }
        namespace
    }

    fn ip(&self, arguments: &str) {
        let words: Vec<&str> = arguments.split(' ').collect();
        run("ip", &[&["-n", &self.0], &words[..]].concat());
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

/// The kernel's router, behind a pipe.
struct Kernel {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Kernel {
    fn start(namespace: &Namespace) -> Kernel {
        let marker = Packet { id: MARKER_ID, ..Packet::of(vec![0; 8]) };
        let mut child = Command::new("ip")
            .args(["netns", "exec", &namespace.0, "python3", "-c", INJECT, "far0", "far1"])
            .arg(hex(&marker.sent()))
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

    fn fragments(&mut self, packet: &Packet) -> Vec<Vec<u8>> {
        writeln!(self.input, "{}", hex(&packet.sent())).expect("python3 reads");
        let mut fragments = Vec::new();
        loop {
            match self.line().as_str() {
                "end" => return fragments,
                "" => panic!("python3 stopped, see above"),
                line => fragments.push(unhex(line)),
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

#[derive(Clone, Debug)]
struct Packet {
    tos: u8,
    id: u16,
    /// Flags and offset.
    place: u16,
    protocol: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Packet {
    fn of(payload: Vec<u8>) -> Packet {
        Packet { tos: 0, id: 1, place: 0, protocol: 17, options: Vec::new(), payload }
    }

    /// With a payload that needs about `fragments` fragments; every third is one itself.
    fn random(random: &mut Random, mtu: u32, fragments: usize) -> Packet {
        let options = options(random);
        let room = 65_535 - 20 - options.len();
        let length = (random.below(mtu as usize * fragments) + mtu as usize / 2).min(room);
        let mut packet = Packet { options, ..Packet::of(random.bytes(length)) };
        packet.tos = random.next() as u8 & !3; // Congestion marks are none of a router's business.
        packet.id = random.below(usize::from(MARKER_ID)) as u16;
        packet.protocol = [17, 6, 1, 253][random.below(4)];
        if random.below(3) == 0 {
            let more = random.below(2) == 0;
            if more {
                packet.payload.truncate(length - length % 8);
            }
            let offset = random.below(1 + (room - packet.payload.len()) / 8) as u16;
            packet.place = offset | if more { 0x2000 } else { 0 };
        }
        packet
    }

    /// As the sender writes it, to the router.
    fn sent(&self) -> Vec<u8> {
        self.bytes(IN_MAC, [0x0a, 0, 0, 0, 0, 4], 64)
    }

    /// As the router would pass it on, were its way wider.
    fn routed(&self) -> Vec<u8> {
        let mut bytes = self.bytes(FAR_MAC, OUT_MAC, 64);
        let header = bytes[L3..].first_chunk_mut::<20>().expect("a header");
        assert_eq!(checksum::decrement_ttl(header), Some(63));
        bytes
    }

    fn header_bytes(&self) -> usize {
        L3 + 20 + self.options.len()
    }

    fn bytes(&self, to: [u8; 6], from: [u8; 6], ttl: u8) -> Vec<u8> {
        let mut ip = vec![0x40 | ((20 + self.options.len()) / 4) as u8, self.tos];
        ip.extend(((20 + self.options.len() + self.payload.len()) as u16).to_be_bytes());
        ip.extend(self.id.to_be_bytes());
        ip.extend(self.place.to_be_bytes());
        ip.extend([ttl, self.protocol, 0, 0]);
        ip.extend([SOURCE, DESTINATION].concat());
        ip.extend(&self.options);
        let check = Sum::default().add_bytes(&ip).checksum();
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        [&to[..], &from, &[0x08, 0], &ip, &self.payload].concat()
    }

    fn fragments(&self, mtu: u32) -> Result<Vec<Vec<u8>>, FragmentError> {
        let bytes = self.routed();
        let (header, payload) = bytes.split_at(self.header_bytes());
        let packet = LongPacket { header, l3_offset: L3, payload_bytes: payload.len(), mtu };
        let mut fragmenter = Fragmenter::new(packet)?;
        let mut out = Vec::new();
        let mut header = [0; FRAGMENT_HEADER_BYTES_MAX];
        while let Some(fragment) = fragmenter.next(&mut header)? {
            let part = &payload[fragment.payload_offset..][..fragment.payload_bytes];
            out.push([&header[..fragment.header_bytes], part].concat());
        }
        Ok(out)
    }
}

/// Options that a router passes on as they are: copied and not, known and not; a full record
/// route. Half of the packets have none.
fn options(random: &mut Random) -> Vec<u8> {
    const CHOICES: [&[u8]; 7] = [
        &[1],                                      // No operation.
        &[0x94, 4, 0, 0],                          // Router alert (RFC 2113), copied.
        &[0x88, 4, 0xab, 0xcd],                    // Stream identifier, copied.
        &[7, 7, 8, 10, 9, 8, 7],                   // Record route without room, not copied.
        &[0x1e, 5, 1, 2, 3],                       // An experiment (RFC 4727), not copied.
        &[0x9e, 6, 1, 2, 3, 4],                    // An experiment, copied.
        &[0x52, 12, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], // Traceroute (RFC 1393), not copied.
    ];
    let mut options = Vec::new();
    let count = if random.below(2) == 0 { 0 } else { random.below(6) };
    for _ in 0..count {
        let option = CHOICES[random.below(CHOICES.len())];
        // A known option may be there once only (Linux `__ip_options_compile`).
        let is_known = [0x94, 7].contains(&option[0]);
        if options.len() + option.len() <= 40 && !(is_known && options.contains(&option[0])) {
            options.extend(option);
        }
    }
    // The end of the list, or no-operations.
    let pad = random.below(2) as u8;
    options.resize(options.len().next_multiple_of(4), pad);
    options
}

#[test]
#[ignore = "needs root"]
fn fragments_are_the_kernels() {
    let namespace = Namespace::new("cut");
    let mut kernel = Kernel::start(&namespace);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut packets, mut with_options, mut cut_again, mut compared) = (0, 0, 0, 0);
    for mtu in [MTU_MIN, 69, 75, 76, 577, 1006, 1500, 4001, 9000] {
        namespace.ip(&format!("link set out0 mtu {mtu}"));
        for round in 0..80 {
            // A veth queues 1000 packets (net.core.netdev_max_backlog); with all options a fragment
            // has as little as an eighth of its MTU.
            let packet = Packet::random(&mut random, mtu, if round == 0 { 100 } else { 8 });
            let theirs = kernel.fragments(&packet);
            let ours = packet.fragments(mtu).expect("a packet that may be cut");
            let what = format!("mtu {mtu}, round {round}, {:02x?}", packet.options);
            assert_eq!(theirs.len(), ours.len(), "{what}: fragments");
            for (index, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
                assert_eq!(theirs.len(), ours.len(), "{what}, fragment {index}");
                let differs = (0..ours.len()).find(|&at| theirs[at] != ours[at]);
                assert_eq!(differs, None, "{what}, fragment {index}: offset of a difference");
            }
            packets += 1;
            with_options += usize::from(!packet.options.is_empty());
            cut_again += usize::from(packet.place != 0 && ours.len() > 1);
            compared += ours.len();
        }
    }
    eprintln!(
        "{compared} fragments of {packets} packets are the kernel's; {with_options} packets had \
         options, {cut_again} were fragments themselves"
    );
    assert!(with_options > 100 && cut_again > 100, "{with_options} {cut_again}");
}

#[test]
#[ignore = "needs root"]
fn what_the_kernel_does_not_fragment_is_refused() {
    const DONT_FRAGMENT: u16 = 0x4000;
    let namespace = Namespace::new("refused");
    namespace.ip("link set out0 mtu 600");
    let mut kernel = Kernel::start(&namespace);
    let packet = Packet { place: DONT_FRAGMENT, ..Packet::of(vec![7; 1000]) };
    assert_eq!(kernel.fragments(&packet), Vec::<Vec<u8>>::new());
    assert_eq!(packet.fragments(600), Err(FragmentError::DontFragment));
    let false_length = Packet { options: vec![0x94, 9, 0, 0], ..Packet::of(vec![7; 1000]) };
    assert_eq!(kernel.fragments(&false_length), Vec::<Vec<u8>>::new());
    assert_eq!(false_length.fragments(600), Err(FragmentError::Options));
    // The neighbour that both cut.
    let packet = Packet::of(vec![7; 1000]);
    assert_eq!(kernel.fragments(&packet), packet.fragments(600).expect("may be cut"));
}
