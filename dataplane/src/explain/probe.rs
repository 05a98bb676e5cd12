//! The packet that is asked about: a whole IP packet as a sender would put it on its link. Its
//! checksums are complete but for SCTP's, which is 0: no router looks at that.

use std::net::SocketAddr;

use crate::checksum::{Sum, pseudo_header_v4, pseudo_header_v6, udp_field};
use crate::parse::{ETHERNET_BYTES, protocol};
use crate::port::Mac;

/// Bytes of an IPv4 header without options, and of an IPv6 header without extensions.
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;

/// A packet to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Ethernet source and destination.
    pub src_mac: Mac,
    /// As above.
    pub dst_mac: Mac,
    /// Source. Its port is the identifier of an echo request.
    pub src: SocketAddr,
    /// Destination, of the same family. Its port has no meaning for an echo request.
    pub dst: SocketAddr,
    /// What is in it.
    pub content: Content,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Bytes of the IP packet, header included; [`Probe::least_bytes`] if it is less.
    pub ip_bytes: u16,
    /// IPv4 "don't fragment".
    pub dont_fragment: bool,
}

/// What is in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A TCP segment.
    Tcp {
        /// The flags: byte 13 of the header (RFC 9293 §3.1).
        flags: u8,
    },
    /// A UDP datagram.
    Udp,
    /// An SCTP packet with one chunk.
    Sctp {
        /// Its type (RFC 9260 §3.2).
        chunk: u8,
    },
    /// An ICMP or ICMPv6 echo request.
    Echo,
}

impl Content {
    /// Bytes of its headers; of an SCTP chunk, as many as INIT has (RFC 9260 §3.3.2).
    fn header_bytes(self) -> usize {
        match self {
            Content::Tcp { .. } => 20,
            Content::Udp | Content::Echo => 8,
            Content::Sctp { .. } => 32,
        }
    }

    fn protocol(self, is_v4: bool) -> u8 {
        match self {
            Content::Tcp { .. } => protocol::TCP,
            Content::Udp => protocol::UDP,
            Content::Sctp { .. } => protocol::SCTP,
            Content::Echo if is_v4 => protocol::ICMP,
            Content::Echo => protocol::ICMPV6,
        }
    }
}

impl Probe {
    /// Bytes of its headers: the shortest that the IP packet can be.
    #[must_use]
    pub fn least_bytes(&self) -> u16 {
        let ip = if self.src.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES };
        (ip + self.content.header_bytes()) as u16
    }

    /// Its bytes, from the Ethernet header on.
    ///
    /// # Panics
    /// Source and destination are of different families.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let ip_bytes = self.ip_bytes.max(self.least_bytes());
        let protocol = self.content.protocol(self.src.is_ipv4());
        let mut frame = Vec::with_capacity(ETHERNET_BYTES + usize::from(ip_bytes));
        frame.extend([self.dst_mac, self.src_mac].concat());
        assert_eq!(self.src.is_ipv4(), self.dst.is_ipv4(), "both ends are of one family");
        let pseudo_header = match (self.src, self.dst) {
            (SocketAddr::V4(src), SocketAddr::V4(dst)) => {
                let (src, dst) = (src.ip().octets(), dst.ip().octets());
                let flags = if self.dont_fragment { 0x40 } else { 0 };
                let [high, low] = ip_bytes.to_be_bytes();
                let head = [0x45, 0, high, low, 0, 0, flags, 0, self.hop_limit, protocol, 0, 0];
                let mut ip = [&head[..], &src, &dst].concat();
                let sum = Sum::default().add_bytes(&ip).checksum();
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend([0x08, 0x00]);
                frame.extend(ip);
                pseudo_header_v4(src, dst, protocol, ip_bytes - IPV4_BYTES as u16)
            }
            (src, dst) => {
                let (src, dst) = (v6_octets(src), v6_octets(dst));
                let payload = ip_bytes - IPV6_BYTES as u16;
                let [high, low] = payload.to_be_bytes();
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, protocol, self.hop_limit]);
                frame.extend([src, dst].concat());
                pseudo_header_v6(src, dst, protocol, u32::from(payload))
            }
        };
        let l4 = frame.len();
        frame.resize(ETHERNET_BYTES + usize::from(ip_bytes), 0);
        self.fill(&mut frame[l4..], pseudo_header);
        frame
    }

    /// Writes everything above IP into zeros.
    fn fill(&self, l4: &mut [u8], pseudo_header: Sum) {
        let (src, dst) = (self.src.port().to_be_bytes(), self.dst.port().to_be_bytes());
        let l4_bytes = (l4.len() as u16).to_be_bytes();
        if self.content != Content::Echo {
            l4[..4].copy_from_slice(&[src, dst].concat());
        }
        let field = match self.content {
            Content::Tcp { flags } => {
                // A header of five words, and a window as large as there is without scaling.
                l4[12..16].copy_from_slice(&[5 << 4, flags, 0xff, 0xff]);
                16
            }
            Content::Udp => {
                l4[4..6].copy_from_slice(&l4_bytes);
                6
            }
            Content::Echo => {
                l4[0] = if self.src.is_ipv4() { 8 } else { 128 };
                l4[4..8].copy_from_slice(&[src, [0, 1]].concat());
                2
            }
            Content::Sctp { chunk } => return fill_sctp(l4, chunk),
        };
        // That of ICMP covers no addresses (RFC 792).
        let is_icmp = self.content == Content::Echo && self.src.is_ipv4();
        let sum = if is_icmp { Sum::default() } else { pseudo_header };
        let sum = udp_field(sum.add_bytes(l4).checksum());
        l4[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

fn v6_octets(end: SocketAddr) -> [u8; 16] {
    match end {
        SocketAddr::V4(end) => end.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(end) => end.ip().octets(),
    }
}

/// The one chunk of an SCTP packet, as long as the packet is.
fn fill_sctp(l4: &mut [u8], chunk: u8) {
    const CHUNK: usize = 12;
    const INIT: u8 = 1;
    let chunk_bytes = ((l4.len() - CHUNK) as u16).to_be_bytes();
    l4[CHUNK..CHUNK + 4].copy_from_slice(&[chunk, 0, chunk_bytes[0], chunk_bytes[1]]);
    if chunk == INIT {
        // Initiate tag, window, streams both ways, first number: none of them may be 0.
        let body = [0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
        l4[CHUNK + 4..CHUNK + 20].copy_from_slice(&body);
    } else {
        // The verification tag of an association is not 0.
        l4[4..8].copy_from_slice(&1_u32.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

    use super::*;

    fn probe(v6: bool, content: Content, ip_bytes: u16) -> Probe {
        let [src, dst] = match v6 {
            false => ["10.244.1.5:4000", "10.244.1.6:53"],
            true => ["[fd00::5]:4000", "[fd00::6]:53"],
        };
        Probe {
            src_mac: [0x0a, 0, 0, 0, 0, 1],
            dst_mac: [0x0a, 0xff, 0, 0, 0, 1],
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            content,
            hop_limit: 7,
            ip_bytes,
            dont_fragment: true,
        }
    }

    /// The checksum that a packet has, and the one that it should have.
    fn checksums(headers: &PacketHeaders<'_>) -> (u16, u16) {
        let payload = headers.payload.slice();
        match (headers.net.as_ref().unwrap(), headers.transport.as_ref().unwrap()) {
            (NetHeaders::Ipv4(ip, _), TransportHeader::Tcp(tcp)) => {
                (tcp.checksum, tcp.calc_checksum_ipv4(ip, payload).unwrap())
            }
            (NetHeaders::Ipv6(ip, _), TransportHeader::Tcp(tcp)) => {
                (tcp.checksum, tcp.calc_checksum_ipv6(ip, payload).unwrap())
            }
            (NetHeaders::Ipv4(ip, _), TransportHeader::Udp(udp)) => {
                (udp.checksum, udp.calc_checksum_ipv4(ip, payload).unwrap())
            }
            (NetHeaders::Ipv6(ip, _), TransportHeader::Udp(udp)) => {
                (udp.checksum, udp.calc_checksum_ipv6(ip, payload).unwrap())
            }
            (_, TransportHeader::Icmpv4(icmp)) => {
                (icmp.checksum, icmp.icmp_type.calc_checksum(payload))
            }
            (NetHeaders::Ipv6(ip, _), TransportHeader::Icmpv6(icmp)) => {
                let sum = icmp.icmp_type.calc_checksum(ip.source, ip.destination, payload);
                (icmp.checksum, sum.unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn another_reader_finds_the_headers_and_the_checksums_right() {
        for v6 in [false, true] {
            for content in [Content::Tcp { flags: 0x12 }, Content::Udp, Content::Echo] {
                for ip_bytes in [0, 101, 1500, u16::MAX] {
                    let probe = probe(v6, content, ip_bytes);
                    let frame = probe.frame();
                    let bytes = ip_bytes.max(probe.least_bytes());
                    assert_eq!(frame.len(), 14 + usize::from(bytes));
                    let headers = PacketHeaders::from_ethernet_slice(&frame).unwrap();
                    let (has, should) = checksums(&headers);
                    assert_eq!(has, should, "{probe:?}");
                    if let Some(NetHeaders::Ipv4(ip, _)) = &headers.net {
                        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                        assert!(ip.dont_fragment && ip.time_to_live == 7);
                    }
                    if let Some(TransportHeader::Tcp(tcp)) = &headers.transport {
                        assert!(tcp.syn && tcp.ack && !tcp.fin && !tcp.rst);
                        assert_eq!((tcp.source_port, tcp.destination_port), (4000, 53));
                    }
                }
            }
        }
    }

    #[test]
    fn an_sctp_packet_is_one_chunk_that_opens_or_does_not() {
        use crate::conntrack::Signal;
        use crate::conntrack::Transport::Sctp;
        for (chunk, opens) in [(1, true), (0, false)] {
            let frame = probe(false, Content::Sctp { chunk }, 0).frame();
            let signal = Signal::read(Sctp, &frame[34..], frame.len() - 34).unwrap();
            assert_eq!(signal.asks(), opens, "chunk {chunk}");
        }
    }
}
