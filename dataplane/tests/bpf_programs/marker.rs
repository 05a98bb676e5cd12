//! What the marker says of real packets, against what can be read from the packets themselves.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use dataplane::xsk::program::Programs;
use libbpf_rs::{ObjectBuilder, ProgramInput};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt,
};

use crate::frames::{Arp, MAC, ethernet, ipv4, ipv6};
use crate::machine::{BpfDir, Netns};

const PARTIAL: usize = 1;
const ENCAPSULATED: usize = 2;
const PORT: u16 = 7000;
const DEADLINE: Duration = Duration::from_secs(10);

type Frames = Vec<Vec<u8>>;

/// Two namespaces, the pod's eth0 with the marker.
struct Wire {
    pod: Netns,
    host: Netns,
    mac: [u8; 6],
    _dir: BpfDir,
}

impl Wire {
    /// Nothing on a kernel that has no marker; which those are is a test of its own.
    fn new() -> Option<Wire> {
        let dir = BpfDir::new();
        let (pod, host) = Netns::pod_and_host();
        let programs = Programs::load(dir.path()).expect("loads");
        let eth0 = pod.ifindex("eth0");
        for _ in 0..2 {
            let attached = pod.enter(|| programs.attach_marker(eth0)).expect("attaches, and again");
            assert_eq!(attached, programs.csum_hint());
        }
        let mac = pod.mac("eth0");
        let wire = Wire { mac, pod, host, _dir: dir };
        programs.csum_hint().then_some(wire)
    }

    /// Does something, and answers the first `count` frames of it that are `wanted`.
    fn watch(&self, act: impl FnOnce(), count: usize, wanted: impl Fn(&[u8]) -> bool) -> Frames {
        let tap = self.host.enter(tap);
        act();
        let deadline = Instant::now() + DEADLINE;
        let mut buffer = vec![0; 1 << 17];
        let mut frames = Frames::new();
        while frames.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} frames arrived", frames.len());
            // An error is the end of the tap's short timeout.
            if let Ok((length, _)) = recv(&tap, &mut buffer[..], RecvFlags::empty())
                && wanted(&buffer[..length])
            {
                frames.push(buffer[..length].to_vec());
            }
        }
        frames
    }

    /// Sends a megabyte over TCP, from the pod to the host.
    fn send_tcp(&self, to: IpAddr) {
        let address = SocketAddr::new(to, PORT);
        let listener = self.host.enter(|| TcpListener::bind(address)).expect("the port is free");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = self.pod.enter(|| TcpStream::connect(address)).expect("connects");
                stream.write_all(&[7; 1 << 20]).expect("data is sent");
            });
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut received = Vec::new();
            stream.read_to_end(&mut received).expect("data");
            assert_eq!(received.len(), 1 << 20);
        });
    }

    fn send_udp(&self, to: IpAddr) {
        let socket = self.pod.enter(|| match to {
            IpAddr::V4(_) => UdpSocket::bind("0.0.0.0:0"),
            IpAddr::V6(_) => UdpSocket::bind("[::]:0"),
        });
        let to = SocketAddr::new(to, PORT);
        socket.expect("a socket").send_to(&[7; 100], to).expect("a datagram is sent");
    }
}

fn tap() -> OwnedFd {
    // ETH_P_ALL in network order; without a bind it takes from all devices of the namespace.
    let all = Protocol::from_raw(NonZeroU32::new(0x0300).expect("not zero"));
    let (family, kind) = (AddressFamily::PACKET, SocketType::RAW);
    let tap = socket_with(family, kind, SocketFlags::CLOEXEC, Some(all)).expect("a packet socket");
    sockopt::set_socket_timeout(&tap, sockopt::Timeout::Recv, Some(Duration::from_millis(200)))
        .expect("a timeout is set");
    sockopt::set_socket_recv_buffer_size_force(&tap, 8 << 20).expect("root sets any size");
    tap
}

fn l4_start(frame: &[u8]) -> usize {
    if frame[12] == 0x86 { 54 } else { 34 }
}

/// The layer 4 protocol of a frame from the pod, whose addresses end in 2.
fn l4_protocol(frame: &[u8]) -> Option<u8> {
    let (last_of_source, protocol) = match frame.get(12..14)? {
        [0x08, 0x00] => (29, 23),
        [0x86, 0xdd] => (37, 20),
        _ => return None,
    };
    (*frame.get(last_of_source)? == 2).then_some(*frame.get(protocol)?)
}

/// The marker: first byte, csum_start, csum_offset, flags, gso_size.
fn marker(frame: &[u8]) -> [usize; 5] {
    let [first, start, offset, flags] = [6, 7, 8, 9].map(|at| usize::from(frame[at]));
    let gso_size = u16::from_be_bytes([frame[10], frame[11]]);
    [first, start, offset, flags, gso_size.into()]
}

fn host(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

/// The payload bytes of a TCP frame whose TCP header starts at `start`.
fn tcp_payload(frame: &[u8], start: usize) -> usize {
    frame.len() - start - usize::from(frame[start + 12] >> 4) * 4
}

/// Whether a frame is the pod's, of this layer 4 protocol and with the header at `start`.
fn is(frame: &[u8], protocol: u8, start: usize) -> bool {
    l4_protocol(frame) == Some(protocol) && l4_start(frame) == start
}

/// Whether the kernel is 6.2 or newer: the first with bpf_cast_to_kern_ctx.
fn kernel_has_marker() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("proc is mounted");
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(2))
}

#[test]
#[ignore = "needs root"]
fn the_hint_is_there_from_linux_6_2_on() {
    let dir = BpfDir::new();
    let programs = Programs::load(dir.path()).expect("loads with and without the hint");
    assert_eq!(programs.csum_hint(), kernel_has_marker());
}

#[test]
#[ignore = "needs root"]
fn tcp_is_marked_with_its_checksum_and_the_segment_size_of_the_connection() {
    let Some(wire) = Wire::new() else { return };
    for mtu in [1500, 1400] {
        wire.host.ip(&format!("link set host mtu {mtu}"));
        for (address, start) in [("10.9.0.1", 34), ("fd09::1", 54)] {
            // What is left of the MTU by the IP header, the TCP header and its timestamps.
            let segment = mtu - (start - 14) - 32;
            let send = || wire.send_tcp(host(address));
            let frames = wire.watch(send, 10, |frame| is(frame, 6, start));
            let mut super_packets = 0;
            for frame in frames {
                let large = tcp_payload(&frame, start) > segment;
                let gso_size = if large { segment } else { 0 };
                assert_eq!(marker(&frame), [2, start, 16, PARTIAL, gso_size]);
                super_packets += u32::from(large);
            }
            assert!(super_packets > 0, "nothing of a megabyte was sent in large packets");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn udp_is_marked_with_its_checksum_and_icmp_with_none() {
    let Some(wire) = Wire::new() else { return };
    for (address, start) in [("10.9.0.1", 34), ("fd09::1", 54)] {
        let send = || wire.send_udp(host(address));
        let frames = wire.watch(send, 1, |frame| is(frame, 17, start));
        assert_eq!(marker(&frames[0]), [2, start, 6, PARTIAL, 0]);
    }
    // Echo requests: neighbour discovery, ICMPv6 too, goes before.
    for (address, start, protocol, kind) in [("10.9.0.1", 34, 1, 8), ("fd09::1", 54, 58, 128)] {
        let send = || assert!(wire.pod.succeeds(&format!("ping -q -c 1 -W 2 {address}")));
        let echo = |frame: &[u8]| is(frame, protocol, start) && frame[start] == kind;
        assert_eq!(marker(&wire.watch(send, 1, echo)[0]), [2, 0, 0, 0, 0]);
    }
}

#[test]
#[ignore = "needs root"]
fn vxlan_in_a_pod_is_marked_with_the_inner_checksum() {
    let Some(wire) = Wire::new() else { return };
    for (netns, device, us, them) in [(&wire.pod, "eth0", 2, 1), (&wire.host, "host", 1, 2)] {
        netns.ip(&format!(
            "link add vx type vxlan id 7 dev {device} local 10.9.0.{us} remote 10.9.0.{them} \
             dstport 4789"
        ));
        netns.ip(&format!("addr add 10.8.0.{us}/24 dev vx"));
        netns.ip("link set vx up");
    }
    // Outer Ethernet 14, IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14, IPv4 20.
    let inner = 84;
    // The tunnel takes 50 of 1500 bytes, inner IPv4 and TCP with timestamps 52.
    let segment = 1398;
    let large_tcp = |frame: &[u8]| {
        // The inner protocol is TCP.
        is(frame, 17, 34) && frame.get(73) == Some(&6) && tcp_payload(frame, inner) > segment
    };
    let frames = wire.watch(|| wire.send_tcp(host("10.8.0.1")), 1, large_tcp);
    assert_eq!(marker(&frames[0]), [2, inner, 16, PARTIAL | ENCAPSULATED, segment]);
}

#[test]
#[ignore = "needs root"]
fn arp_keeps_the_assigned_mac() {
    let Some(wire) = Wire::new() else { return };
    // Sent by the pod: the sender address ends in 2.
    let is_arp = |frame: &[u8]| frame[12..14] == [8, 6] && frame.get(31) == Some(&2);
    let frames = wire.watch(|| wire.send_udp(host("10.9.0.1")), 1, is_arp);
    assert_eq!(frames[0][6..12], wire.mac);
}

#[test]
#[ignore = "needs root"]
fn only_ip_is_marked_and_later_filters_still_run() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bpf/marker.bpf.o");
    let object = ObjectBuilder::default().open_file(path).expect("the object is committed");
    let loaded = object.load();
    if !kernel_has_marker() {
        assert!(loaded.is_err(), "bpf_cast_to_kern_ctx came with Linux 6.2");
        return;
    }
    let object = loaded.expect("the program loads");
    let unmarked = [MAC, [2, 0, 0, 0, 0, 0]];
    let run = |frame: &[u8]| {
        let program = object.progs_mut().next().expect("it has one program");
        let mut out = vec![0; frame.len()];
        let input = ProgramInput {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..ProgramInput::default()
        };
        let action = program.test_run(input).expect("the kernel runs it").return_value;
        // TC_ACT_UNSPEC: -1.
        assert_eq!(action, u32::MAX);
        assert_eq!([&out[..6], &out[12..]], [&frame[..6], &frame[12..]]);
        out[6..12].to_vec()
    };
    assert_eq!(run(&ipv4(MAC, [10, 9, 0, 2])), unmarked[1]);
    assert_eq!(run(&ipv6(MAC, [9; 16], 17, &[0; 8])), unmarked[1]);
    assert_eq!(run(&Arp::HONEST.frame()), unmarked[0]);
    for ether_type in [0x8100, 0x88cc, 0x8847] {
        assert_eq!(run(&ethernet(MAC, ether_type, &[0; 46])), unmarked[0]);
    }
}
