//! Builds packets for tests, checksums by a naive sum of its own: an oracle that shares no code
//! with the crate.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::port::{Mac, Partial};

use super::End;

pub const FIN: u8 = 0x01;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const CWR: u8 = 0x80;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;

/// Types of SCTP chunks (RFC 9260 §3.2).
pub const DATA: u8 = 0;
pub const INIT: u8 = 1;
pub const INIT_ACK: u8 = 2;
pub const ABORT: u8 = 6;

/// The verification tag of every association.
const TAG: u32 = 0x1234_5678;

const ETHERNET_BYTES: usize = 14;

/// What stands in the L4 checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The checksum.
    Complete,
    /// The sum of the pseudo-header: the rest is left to a device.
    Partial,
    /// This, right or wrong.
    Value(u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Layer4 {
    Udp {
        src: u16,
        dst: u16,
    },
    Tcp {
        src: u16,
        dst: u16,
        sequence: u32,
        flags: u8,
        window: u16,
    },
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
    },
    /// The common header and that of the first chunk, whose value the payload is.
    Sctp {
        src: u16,
        dst: u16,
        chunk: u8,
    },
    /// Only the protocol number; the payload is all there is.
    Other(u8),
}

/// A packet, field by field; every field has a value that makes it valid.
#[derive(Clone, Debug)]
pub struct Packet {
    dst_mac: Mac,
    src_mac: Mac,
    v6: bool,
    src: [IpAddr; 2],
    dst: [IpAddr; 2],
    ttl: u8,
    service: u8,
    id: u16,
    dont_fragment: bool,
    fragment: Option<(u16, bool)>,
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    layer4: Layer4,
    tcp_options: Vec<u8>,
    check: Check,
    payload: Vec<u8>,
    padding: usize,
}

/// A UDP packet over IPv4 from nobody to nobody.
pub fn packet() -> Packet {
    Packet {
        dst_mac: [0; 6],
        src_mac: [0; 6],
        v6: false,
        src: [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        dst: [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        ttl: 64,
        service: 0,
        id: 0x1234,
        dont_fragment: true,
        fragment: None,
        options: Vec::new(),
        extensions: Vec::new(),
        layer4: Layer4::Udp { src: 1, dst: 2 },
        tcp_options: Vec::new(),
        check: Check::Complete,
        payload: Vec::new(),
        padding: 0,
    }
}

impl Packet {
    /// From this end's MAC and addresses to its gateway.
    pub fn from(mut self, end: &End) -> Self {
        (self.src_mac, self.dst_mac) = (end.mac, end.gateway_mac);
        self.src = [end.v4.into(), end.v6.into()];
        self
    }

    /// With this end's addresses as its source.
    pub fn src_of(mut self, end: &End) -> Self {
        self.src = [end.v4.into(), end.v6.into()];
        self
    }

    /// To this end's addresses.
    pub fn to(mut self, end: &End) -> Self {
        self.dst = [end.v4.into(), end.v6.into()];
        self
    }

    pub fn ipv4(mut self) -> Self {
        self.v6 = false;
        self
    }

    pub fn ipv6(mut self) -> Self {
        self.v6 = true;
        self
    }

    pub fn family(mut self, v6: bool) -> Self {
        self.v6 = v6;
        self
    }

    /// Another source address; its family becomes the packet's.
    pub fn src(mut self, address: &str) -> Self {
        let address: IpAddr = address.parse().expect("an address");
        self.v6 = address.is_ipv6();
        self.src[usize::from(self.v6)] = address;
        self
    }

    /// Another destination address; its family becomes the packet's.
    pub fn dst(mut self, address: &str) -> Self {
        let address: IpAddr = address.parse().expect("an address");
        self.v6 = address.is_ipv6();
        self.dst[usize::from(self.v6)] = address;
        self
    }

    pub fn src_mac(mut self, mac: Mac) -> Self {
        self.src_mac = mac;
        self
    }

    pub fn dst_mac(mut self, mac: Mac) -> Self {
        self.dst_mac = mac;
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Type of service or traffic class.
    pub fn service(mut self, service: u8) -> Self {
        self.service = service;
        self
    }

    pub fn may_fragment(mut self) -> Self {
        self.dont_fragment = false;
        self
    }

    /// A fragment at `offset` bytes.
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some((offset, more));
        self.may_fragment()
    }

    /// Identification of the datagram; over IPv6 only a fragment has one.
    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// IPv4 options, padded to words.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self.options.resize(options.len().next_multiple_of(4), 0);
        self
    }

    /// One more IPv6 extension header: its number and its bytes, the first of which (next header)
    /// is filled in.
    pub fn extension(mut self, number: u8, bytes: &[u8]) -> Self {
        self.extensions.push((number, bytes.to_vec()));
        self
    }

    pub fn udp(mut self, src: u16, dst: u16) -> Self {
        self.layer4 = Layer4::Udp { src, dst };
        self
    }

    pub fn tcp(mut self, src: u16, dst: u16) -> Self {
        self.layer4 = Layer4::Tcp { src, dst, sequence: 1000, flags: ACK, window: 0xffff };
        self
    }

    /// Flags of a TCP packet.
    pub fn flags(mut self, flags: u8) -> Self {
        let Layer4::Tcp { flags: own, .. } = &mut self.layer4 else { panic!("only for TCP") };
        *own = flags;
        self
    }

    /// Sequence number of a TCP packet.
    pub fn sequence(mut self, sequence: u32) -> Self {
        let Layer4::Tcp { sequence: own, .. } = &mut self.layer4 else { panic!("only for TCP") };
        *own = sequence;
        self
    }

    /// Window of a TCP packet.
    pub fn window(mut self, window: u16) -> Self {
        let Layer4::Tcp { window: own, .. } = &mut self.layer4 else { panic!("only for TCP") };
        *own = window;
        self
    }

    /// Options of a TCP packet, whole words.
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        assert!(options.len().is_multiple_of(4) && options.len() <= 40, "whole words");
        self.tcp_options = options.to_vec();
        self
    }

    /// ICMP or ICMPv6, by the family.
    pub fn icmp(mut self, kind: u8, code: u8) -> Self {
        self.layer4 = Layer4::Icmp { kind, code, rest: [0; 4] };
        self
    }

    /// The 4 bytes after the ICMP checksum.
    pub fn icmp_rest(mut self, value: u32) -> Self {
        let Layer4::Icmp { kind, code, .. } = self.layer4 else { panic!("only for ICMP") };
        self.layer4 = Layer4::Icmp { kind, code, rest: value.to_be_bytes() };
        self
    }

    /// An SCTP packet of one chunk. Both ends have one verification tag, so that it is right in
    /// every packet, [`INIT`] apart.
    pub fn sctp(mut self, src: u16, dst: u16, chunk: u8) -> Self {
        self.layer4 = Layer4::Sctp { src, dst, chunk };
        self
    }

    /// Other ports.
    pub fn ports(mut self, src: u16, dst: u16) -> Self {
        match &mut self.layer4 {
            Layer4::Udp { src: own, dst: other }
            | Layer4::Tcp { src: own, dst: other, .. }
            | Layer4::Sctp { src: own, dst: other, .. } => (*own, *other) = (src, dst),
            Layer4::Icmp { .. } | Layer4::Other(_) => panic!("only for what has ports"),
        }
        self
    }

    /// The IP packet that an ICMP error about this one quotes.
    pub fn quoted(&self) -> Vec<u8> {
        self.build().split_off(ETHERNET_BYTES)
    }

    pub fn protocol(mut self, protocol: u8) -> Self {
        self.layer4 = Layer4::Other(protocol);
        self
    }

    pub fn check(mut self, check: Check) -> Self {
        self.check = check;
        self
    }

    /// That many bytes of a pattern that does not repeat in step with words.
    pub fn payload(mut self, len: usize) -> Self {
        self.payload = (0..len).map(|at| (at % 251) as u8).collect();
        self
    }

    pub fn payload_bytes(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    /// Bytes after the IP packet.
    pub fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// The source MAC that the sender's BPF program writes: where the checksum is, and the size
    /// of segments. The checksum becomes partial.
    pub fn marked(mut self, gso_size: u16) -> Self {
        self.check = Check::Partial;
        let partial = self.partial();
        self.marker(partial.start as u8, partial.offset as u8, 1, gso_size)
    }

    /// Any marker.
    pub fn marker(mut self, start: u8, offset: u8, flags: u8, gso_size: u16) -> Self {
        let [high, low] = gso_size.to_be_bytes();
        self.src_mac = [0x02, start, offset, flags, high, low];
        self
    }

    /// Where the packet's own checksum is, for a port that completes it.
    pub fn partial(&self) -> Partial {
        let offset = match self.layer4 {
            Layer4::Tcp { .. } => 16,
            Layer4::Udp { .. } => 6,
            _ => panic!("only TCP and UDP are left partial"),
        };
        Partial { start: self.l4_offset() as u16, offset }
    }

    /// As it arrives at a pod or the node, unchanged but for the link.
    pub fn delivered(mut self, end: &End) -> Self {
        (self.src_mac, self.dst_mac, self.padding) = (end.gateway_mac, end.mac, 0);
        self
    }

    /// As it arrives behind us as a router.
    pub fn forwarded(self, end: &End) -> Self {
        let ttl = self.ttl - 1;
        self.delivered(end).ttl(ttl)
    }

    /// The segments of at most `size` payload bytes that the sender meant.
    pub fn segments(&self, size: usize) -> Vec<Packet> {
        let count = self.payload.len().div_ceil(size);
        let segment = |(index, chunk): (usize, &[u8])| {
            let mut segment = self.clone().payload_bytes(chunk);
            segment.id = segment.id.wrapping_add(index as u16);
            if let Layer4::Tcp { sequence, flags, .. } = &mut segment.layer4 {
                *sequence = sequence.wrapping_add((index * size) as u32);
                *flags &= if index + 1 < count { !(FIN | PSH) } else { !0 };
                *flags &= if index > 0 { !CWR } else { !0 };
            }
            segment
        };
        self.payload.chunks(size).enumerate().map(segment).collect()
    }

    /// The packet that these segments of a stream, one behind the other, are merged to: the first
    /// with the payload of all, the last one's PSH, and its checksum left to do.
    pub fn whole(segments: &[Packet]) -> Packet {
        let mut whole = segments[0].clone().check(Check::Partial);
        whole.payload = segments.iter().flat_map(|segment| segment.payload.clone()).collect();
        if let (Layer4::Tcp { flags, .. }, Some(Layer4::Tcp { flags: last, .. })) =
            (&mut whole.layer4, segments.last().map(|last| &last.layer4))
        {
            *flags |= last;
        }
        whole
    }

    /// The fragments of at most `size` payload bytes, a multiple of 8.
    pub fn fragments(&self, size: usize) -> Vec<Packet> {
        let whole = self.build();
        let protocol = self.protocol_number();
        let parts = whole[self.l4_offset()..].chunks(size);
        let last = parts.len() - 1;
        let fragment = |(index, part): (usize, &[u8])| {
            let offset = (index * size) as u16;
            let head = self.clone().protocol(protocol).fragment(offset, index < last);
            head.payload_bytes(part)
        };
        parts.enumerate().map(fragment).collect()
    }

    /// Offset of the L4 header in the frame.
    pub fn l4_offset(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum();
        let fragment = if self.fragment.is_some() { 8 } else { 0 };
        ETHERNET_BYTES + if self.v6 { 40 + extensions + fragment } else { 20 + self.options.len() }
    }

    /// Bytes of all headers.
    pub fn header_len(&self) -> usize {
        self.l4_offset() + self.layer4_header().len()
    }

    /// The bytes of the frame.
    pub fn build(&self) -> Vec<u8> {
        let layer4 = self.layer4_bytes();
        let mut bytes = [self.dst_mac, self.src_mac].concat();
        if self.v6 {
            bytes.extend([0x86, 0xdd]);
            bytes.extend(self.ipv6_headers(layer4.len()));
        } else {
            bytes.extend([0x08, 0x00]);
            bytes.extend(self.ipv4_header(layer4.len()));
        }
        bytes.extend(layer4);
        bytes.resize(bytes.len() + self.padding, 0xee);
        bytes
    }

    fn ipv4_header(&self, payload: usize) -> Vec<u8> {
        let (offset, more) = self.fragment.unwrap_or((0, false));
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(more) << 13;
        let len = 20 + self.options.len();
        let mut header = vec![0x40 | (len / 4) as u8, self.service];
        header.extend(((len + payload) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend((flags | (offset / 8)).to_be_bytes());
        header.extend([self.ttl, self.protocol_number(), 0, 0]);
        header.extend(octets(self.src[0]));
        header.extend(octets(self.dst[0]));
        header.extend(&self.options);
        let check = !sum(&header);
        header[10..12].copy_from_slice(&check.to_be_bytes());
        header
    }

    fn ipv6_headers(&self, payload: usize) -> Vec<u8> {
        let mut extensions = self.extensions.clone();
        if let Some((offset, more)) = self.fragment {
            let field = (offset | u16::from(more)).to_be_bytes();
            let [high, low] = self.id.to_be_bytes();
            extensions.push((44, vec![0, 0, field[0], field[1], 0, 0, high, low]));
        }
        let mut next = self.protocol_number();
        for (number, bytes) in extensions.iter_mut().rev() {
            bytes[0] = std::mem::replace(&mut next, *number);
        }
        let chain: Vec<u8> = extensions.into_iter().flat_map(|(_, bytes)| bytes).collect();
        let mut header = vec![0x60 | self.service >> 4, self.service << 4, 0, 0];
        header.extend(((chain.len() + payload) as u16).to_be_bytes());
        header.extend([next, self.ttl]);
        header.extend(octets(self.src[1]));
        header.extend(octets(self.dst[1]));
        header.extend(chain);
        header
    }

    fn protocol_number(&self) -> u8 {
        match self.layer4 {
            Layer4::Udp { .. } => 17,
            Layer4::Tcp { .. } => 6,
            Layer4::Icmp { .. } if self.v6 => 58,
            Layer4::Icmp { .. } => 1,
            Layer4::Sctp { .. } => 132,
            Layer4::Other(protocol) => protocol,
        }
    }

    /// The L4 header with a checksum of 0.
    fn layer4_header(&self) -> Vec<u8> {
        let mut header = Vec::new();
        match self.layer4 {
            Layer4::Udp { src, dst } => {
                header.extend([src, dst, 8 + self.payload.len() as u16, 0].map(u16::to_be_bytes));
            }
            Layer4::Tcp { src, dst, sequence, flags, window } => {
                let offset = (5 + self.tcp_options.len() / 4) as u8;
                header.extend([src, dst].map(u16::to_be_bytes));
                header.push(((sequence >> 16) as u16).to_be_bytes());
                header.push((sequence as u16).to_be_bytes());
                header.extend([[0, 0], [0, 77], [offset << 4, flags], window.to_be_bytes()]);
                header.extend([[0, 0], [0, 0]]);
                header.extend(self.tcp_options.chunks(2).map(|word| [word[0], word[1]]));
            }
            Layer4::Icmp { kind, code, rest } => {
                header.extend([[kind, code], [0, 0], [rest[0], rest[1]], [rest[2], rest[3]]]);
            }
            Layer4::Sctp { src, dst, chunk } => {
                let tag = if chunk == INIT { 0 } else { TAG };
                header.extend([src, dst, (tag >> 16) as u16, tag as u16].map(u16::to_be_bytes));
                let len = 4 + self.payload.len() as u16;
                header.extend([[0, 0], [0, 0], [chunk, 0], len.to_be_bytes()]);
            }
            Layer4::Other(_) => {}
        }
        header.concat()
    }

    fn layer4_bytes(&self) -> Vec<u8> {
        let mut bytes = self.layer4_header();
        bytes.extend(&self.payload);
        let pseudo = self.pseudo_header(bytes.len());
        let (field, pseudo) = match self.layer4 {
            Layer4::Udp { .. } => (6, pseudo),
            Layer4::Tcp { .. } => (16, pseudo),
            Layer4::Icmp { .. } if self.v6 => (2, pseudo),
            Layer4::Icmp { .. } => (2, Vec::new()),
            Layer4::Sctp { .. } => {
                let crc = crc32c(&bytes).to_le_bytes();
                bytes[8..12].copy_from_slice(&crc);
                return bytes;
            }
            Layer4::Other(_) => return bytes,
        };
        let check = match self.check {
            Check::Value(value) => value,
            Check::Partial => sum(&pseudo),
            Check::Complete => {
                let check = !sum(&[pseudo.as_slice(), &bytes].concat());
                let udp = matches!(self.layer4, Layer4::Udp { .. });
                if udp && check == 0 { 0xffff } else { check }
            }
        };
        bytes[field..field + 2].copy_from_slice(&check.to_be_bytes());
        bytes
    }

    fn pseudo_header(&self, layer4_len: usize) -> Vec<u8> {
        let family = usize::from(self.v6);
        let mut pseudo = octets(self.src[family]);
        pseudo.extend(octets(self.dst[family]));
        pseudo.extend((layer4_len as u32).to_be_bytes());
        pseudo.extend([0, self.protocol_number()]);
        pseudo
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// RFC 1071 as it is written: 16-bit words, carries brought back in, odd byte padded.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for word in bytes.chunks(2) {
        sum += u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// CRC32c as RFC 9260 appendix A defines it, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// An ICMP error from the node to `end`, quoting `offender` as it arrived.
pub fn icmp_error(end: &End, offender: &[u8], kind: u8, code: u8, rest: u32) -> Vec<u8> {
    let v6 = offender[12] == 0x86;
    let ip = &offender[ETHERNET_BYTES..];
    let (total, most) = if v6 {
        (40 + usize::from(u16::from_be_bytes([ip[4], ip[5]])), 1280 - 48)
    } else {
        (usize::from(u16::from_be_bytes([ip[2], ip[3]])), 576 - 28)
    };
    let mut error = packet().from(&super::NODE).family(v6).icmp(kind, code).icmp_rest(rest);
    error.id = 0;
    error.service = if v6 { 0 } else { 0xc0 | ip[1] & 0x1c };
    let back = if v6 {
        IpAddr::from(*ip[8..].first_chunk::<16>().expect("an IPv6 header"))
    } else {
        IpAddr::from(*ip[12..].first_chunk::<4>().expect("an IPv4 header"))
    };
    error.dst[usize::from(v6)] = back;
    error.payload_bytes(&ip[..total.min(most)]).delivered(end).build()
}
