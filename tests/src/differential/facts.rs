//! What is true of a frame, read from its bytes by the RFCs' definitions. Shares no line with the
//! data plane: it is what the rules judge by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::plan::Mac;

/// Bytes of an Ethernet header without tags.
pub const ETHERNET: usize = 14;

/// Bytes of a packet that lie in its first frame, where Viaduct looks for headers (RFC 8504 §5.3
/// allows such limits): a frame of 4096 less what XDP keeps free before the packet.
pub const FIRST_FRAME: usize = 4096 - 256;

/// IANA protocol numbers.
pub mod protocol {
    #![allow(missing_docs)] // names of a public registry
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const ESP: u8 = 50;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const NO_NEXT: u8 = 59;
    pub const DESTINATION: u8 = 60;
    pub const SCTP: u8 = 132;
    pub const MOBILITY: u8 = 135;
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The first.
    First,
    /// A later one.
    Later,
}

/// What can be wrong with a chain of IPv6 extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// Nothing.
    Sound,
    /// A header is cut off by the end of the packet.
    CutOff,
    /// More than eight headers, or more than fit into [`FIRST_FRAME`].
    TooLong,
    /// A routing header of type 0.
    RoutingZero,
}

/// An IP packet whose own header is valid: version, lengths, IPv4 checksum.
#[derive(Clone, Copy, Debug)]
pub struct Ip<'a> {
    /// 4 or 6.
    pub version: u8,
    /// The packet without Ethernet header and padding.
    pub bytes: &'a [u8],
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// IPv4's "don't fragment"; true for IPv6.
    pub dont_fragment: bool,
    /// Part of the datagram.
    pub fragment: Fragment,
    /// Where the part begins in the datagram's payload, in bytes.
    pub fragment_offset: usize,
    /// Bytes of the part: all that comes after the header that says so.
    pub fragment_len: usize,
    /// IPv4 options.
    pub options: &'a [u8],
    /// State of the extension headers; sound for IPv4.
    pub chain: Chain,
    /// Protocol after options and extension headers.
    pub protocol: u8,
    /// What that protocol is given.
    pub upper: &'a [u8],
}

/// A frame.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// All of it.
    pub frame: &'a [u8],
    /// Ethernet destination.
    pub to: Mac,
    /// Ethernet source.
    pub from: Mac,
    /// EtherType.
    pub ether_type: u16,
    /// The IP packet, if the EtherType says so and its header is valid.
    pub ip: Option<Ip<'a>>,
}

/// Reads a frame; `None` when it has no Ethernet header.
#[must_use]
pub fn of(frame: &[u8]) -> Option<Facts<'_>> {
    let ether_type = word(frame, 12)?;
    let body = frame.get(ETHERNET..)?;
    let ip = match ether_type {
        0x0800 => ipv4(body),
        0x86dd => ipv6(body),
        _ => None,
    };
    Some(Facts {
        frame,
        to: frame.get(..6)?.try_into().ok()?,
        from: frame.get(6..12)?.try_into().ok()?,
        ether_type,
        ip,
    })
}

/// RFC 791 §3.1, RFC 1812 §5.2.2.
fn ipv4(bytes: &[u8]) -> Option<Ip<'_>> {
    let header = usize::from(bytes.first()? & 0xf) * 4;
    let total = usize::from(word(bytes, 2)?);
    if bytes.first()? >> 4 != 4 || header < 20 || total < header || total > bytes.len() {
        return None;
    }
    if ones_complement(&bytes[..header]) != 0xffff {
        return None;
    }
    let bytes = &bytes[..total];
    let field = word(bytes, 6)?;
    let fragment_offset = usize::from(field & 0x1fff) * 8;
    let fragment = part(fragment_offset, field & 0x2000 != 0);
    Some(Ip {
        version: 4,
        bytes,
        source: v4_at(bytes, 12)?,
        destination: v4_at(bytes, 16)?,
        hop_limit: bytes[8],
        dont_fragment: field & 0x4000 != 0,
        fragment,
        fragment_offset,
        fragment_len: total - header,
        options: &bytes[20..header],
        chain: Chain::Sound,
        protocol: bytes[9],
        upper: &bytes[header..],
    })
}

/// RFC 8200 §3.
fn ipv6(bytes: &[u8]) -> Option<Ip<'_>> {
    let total = 40 + usize::from(word(bytes, 4)?);
    if bytes.first()? >> 4 != 6 || total > bytes.len() {
        return None;
    }
    let bytes = &bytes[..total];
    let mut ip = Ip {
        version: 6,
        bytes,
        source: v6_at(bytes, 8)?,
        destination: v6_at(bytes, 24)?,
        hop_limit: bytes[7],
        dont_fragment: true,
        fragment: Fragment::Whole,
        fragment_offset: 0,
        fragment_len: total - 40,
        options: &[],
        chain: Chain::Sound,
        protocol: bytes[6],
        upper: &bytes[40..],
    };
    ip.chain = follow(&mut ip);
    Some(ip)
}

/// RFC 8200 §4: follows the chain to the upper layer.
fn follow(ip: &mut Ip<'_>) -> Chain {
    use protocol::{AUTHENTICATION, DESTINATION, FRAGMENT, HOP_BY_HOP, MOBILITY, ROUTING};
    let mut headers = 0;
    while matches!(
        ip.protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY
    ) && ip.fragment != Fragment::Later
    {
        headers += 1;
        if headers > 8 + 1 {
            return Chain::TooLong;
        }
        let &[next, length, ..] = ip.upper else { return Chain::CutOff };
        let bytes = match ip.protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        let Some(rest) = ip.upper.get(bytes..) else { return Chain::CutOff };
        if ip.protocol == ROUTING && ip.upper[2] == 0 {
            return Chain::RoutingZero;
        }
        if ip.protocol == FRAGMENT {
            let field = u16::from_be_bytes([ip.upper[2], ip.upper[3]]);
            let offset = usize::from(field & !7);
            let part = part(offset, field & 1 != 0);
            if part != Fragment::Whole {
                (ip.fragment, ip.fragment_offset) = (part, offset);
                ip.fragment_len = rest.len();
            }
        }
        (ip.protocol, ip.upper) = (next, rest);
    }
    let end = ETHERNET + ip.bytes.len() - ip.upper.len();
    if headers > 8 || end > FIRST_FRAME { Chain::TooLong } else { Chain::Sound }
}

fn part(offset: usize, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    }
}

/// The sum of RFC 1071 over `bytes`, not complemented.
#[must_use]
pub fn ones_complement(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default()));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo-header of RFC 9293 §3.1 and RFC 8200 §8.1, followed by `upper`.
#[must_use]
pub fn upper_sum(source: IpAddr, destination: IpAddr, protocol: u8, upper: &[u8]) -> u16 {
    let mut bytes = Vec::with_capacity(40 + upper.len());
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend((upper.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes.extend(upper);
    ones_complement(&bytes)
}

/// The big-endian number at `at`.
#[must_use]
pub fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn v4_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(IpAddr::V4(Ipv4Addr::from(octets)))
}

fn v6_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(octets)))
}

impl Ip<'_> {
    /// Number of the ICMP of this version.
    #[must_use]
    pub fn icmp(&self) -> u8 {
        if self.version == 4 { protocol::ICMP } else { protocol::ICMPV6 }
    }

    /// ICMP or ICMPv6 type, where the packet has one.
    #[must_use]
    pub fn icmp_type(&self) -> Option<u8> {
        let has_type = self.protocol == self.icmp() && self.fragment != Fragment::Later;
        self.upper.first().copied().filter(|_| has_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv6 frame with this next header and payload.
    fn frame_v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET + 40];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[14] = 0x60;
        frame[18..20].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        frame[20] = next;
        [&frame, payload].concat()
    }

    fn chain_of(next: u8, payload: &[u8]) -> (Chain, u8, usize) {
        let frame = frame_v6(next, payload);
        let ip = of(&frame).and_then(|facts| facts.ip).expect("valid IPv6");
        (ip.chain, ip.protocol, ip.upper.len())
    }

    #[test]
    fn a_chain_is_followed_to_the_upper_layer() {
        use protocol::{DESTINATION, FRAGMENT, UDP};
        let options = [FRAGMENT, 0, 1, 4, 0, 0, 0, 0];
        let atomic = [UDP, 0, 0, 0, 1, 2, 3, 4];
        let payload = [&options[..], &atomic, &[7; 9]].concat();
        assert_eq!(chain_of(DESTINATION, &payload), (Chain::Sound, UDP, 9));
        assert_eq!(chain_of(DESTINATION, &payload[..12]).0, Chain::CutOff);
    }

    #[test]
    fn a_ninth_header_is_too_many() {
        use protocol::{DESTINATION, UDP};
        let header = |next| [next, 0, 1, 4, 0, 0, 0, 0];
        let chain = |len: usize| {
            let inner = [header(DESTINATION)].repeat(len - 1).concat();
            chain_of(DESTINATION, &[&inner[..], &header(UDP)].concat()).0
        };
        assert_eq!((chain(8), chain(9)), (Chain::Sound, Chain::TooLong));
    }

    #[test]
    fn a_wrong_checksum_makes_no_ip_packet() {
        let mut frame = vec![0; ETHERNET + 20];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[17] = 20;
        let sum = !ones_complement(&frame[ETHERNET..]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        assert!(of(&frame).is_some_and(|facts| facts.ip.is_some()));
        frame[25] ^= 1;
        assert!(of(&frame).is_some_and(|facts| facts.ip.is_none()));
    }
}
