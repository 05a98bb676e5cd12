//! Packets that no socket would send: segments out of nowhere, wrong checksums, SCTP without a
//! kernel that has it, ICMP errors. Raw sockets add the IP header.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, ipproto, recv,
    sendto, socket_with,
};

use super::Namespace;

pub const ACK: u8 = 0x10;
pub const SYN_ACK: u8 = 0x12;

/// A raw socket in a namespace, bound to an address.
pub struct Raw {
    socket: OwnedFd,
    address: IpAddr,
}

impl Raw {
    pub fn new(namespace: &Namespace, address: &str, protocol: Protocol) -> Raw {
        let address: IpAddr = address.parse().unwrap();
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = namespace.inside(|| {
            socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol)).unwrap()
        });
        bind(&socket, &SocketAddr::new(address, 0)).unwrap();
        Raw { socket, address }
    }

    pub fn tcp(namespace: &Namespace, address: &str) -> Raw {
        Raw::new(namespace, address, ipproto::TCP)
    }

    pub fn sctp(namespace: &Namespace, address: &str) -> Raw {
        Raw::new(namespace, address, ipproto::SCTP)
    }

    pub fn icmp(namespace: &Namespace, address: &str) -> Raw {
        let v4 = address.parse::<IpAddr>().unwrap().is_ipv4();
        Raw::new(namespace, address, if v4 { ipproto::ICMP } else { ipproto::ICMPV6 })
    }

    /// Sends what comes behind the IP header.
    pub fn send(&self, to: &str, payload: &[u8]) {
        let to = SocketAddr::new(to.parse().unwrap(), 0);
        sendto(&self.socket, payload, SendFlags::empty(), &to).unwrap();
    }

    /// Sends a TCP segment without data; its checksum is right or wrong.
    pub fn send_segment(&self, to: &str, ports: [u16; 2], flags: u8, right: bool) {
        let segment = segment(self.address, to.parse().unwrap(), ports, flags, right);
        self.send(to, &segment);
    }

    /// The next packet behind its IP header that `wanted` accepts, if one comes in time.
    pub fn receive(
        &self,
        patience: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        let mut bytes = vec![0; 65536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            set_socket_timeout(&self.socket, Timeout::Recv, Some(left)).unwrap();
            let Ok((len, _)) = recv(&self.socket, &mut bytes[..], RecvFlags::empty()) else {
                return None;
            };
            // Only sockets of IPv4 give the IP header as well.
            let header = if self.address.is_ipv4() { usize::from(bytes[0] & 15) * 4 } else { 0 };
            let packet = &bytes[header..len];
            if wanted(packet) {
                return Some(packet.to_vec());
            }
        }
    }
}

/// The two ports at the beginning of a packet of TCP, UDP or SCTP.
pub fn ports(packet: &[u8]) -> [u16; 2] {
    [0, 2].map(|at| u16::from_be_bytes([packet[at], packet[at + 1]]))
}

fn segment(from: IpAddr, to: IpAddr, [src, dst]: [u16; 2], flags: u8, right: bool) -> Vec<u8> {
    let mut segment = [src.to_be_bytes(), dst.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0, 100, 0, 0, 0, 0]);
    let mut sum = sum_of(&[pseudo_header(from, to, 6, segment.len()), segment.clone()].concat());
    if !right {
        sum ^= 0x5555;
    }
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// The header that checksums cover besides (RFC 9293 §3.1, RFC 8200 §8.1; both sum up alike).
fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let mut bytes = [octets(from), octets(to)].concat();
    bytes.extend([0, protocol]);
    bytes.extend((len as u16).to_be_bytes());
    bytes
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071).
fn sum_of(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An ICMP error "port unreachable" about a packet with these ends, as its receiver sends it.
pub fn unreachable(from: &str, to: &str, quoted: [(&str, u16); 2], protocol: u8) -> Vec<u8> {
    let [from, to]: [IpAddr; 2] = [from, to].map(|address| address.parse().unwrap());
    let [src, dst]: [IpAddr; 2] = quoted.map(|(address, _)| address.parse().unwrap());
    let header = [octets(src), octets(dst)].concat();
    let mut inner = if from.is_ipv4() {
        let mut head = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0];
        let sum = sum_of(&[head.clone(), header.clone()].concat());
        head[10..12].copy_from_slice(&sum.to_be_bytes());
        head
    } else {
        vec![0x60, 0, 0, 0, 0, 8, protocol, 64]
    };
    inner.extend(header);
    inner.extend(quoted.map(|(_, port)| port.to_be_bytes()).concat());
    inner.extend([0, 8, 0, 0]);
    let kind = if from.is_ipv4() { [3, 3] } else { [1, 4] };
    let mut error = [&kind[..], &[0; 6], &inner].concat();
    let covered = if from.is_ipv4() {
        error.clone()
    } else {
        [pseudo_header(from, to, 58, error.len()), error.clone()].concat()
    };
    error[2..4].copy_from_slice(&sum_of(&covered).to_be_bytes());
    error
}

/// An SCTP packet with one chunk, INIT or INIT ACK (RFC 9260 §3.3.2, §3.3.3).
pub fn sctp([src, dst]: [u16; 2], tag: u32, chunk: u8) -> Vec<u8> {
    let mut packet = [src.to_be_bytes(), dst.to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([chunk, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

/// Whether the checksum of an SCTP packet is right.
pub fn sctp_is_whole(packet: &[u8]) -> bool {
    let mut zeroed = packet.to_vec();
    zeroed[8..12].fill(0);
    crc32c(&zeroed).to_le_bytes() == packet[8..12]
}

/// CRC32c, bit by bit (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}
