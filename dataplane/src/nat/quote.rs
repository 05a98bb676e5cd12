//! The packet that an ICMP error speaks of: as much of it as the error quotes (RFC 792: the IP
//! header and 8 bytes at least; RFC 1812 §4.3.2.3, RFC 4443 §3: as much as fits).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{IPV4_DST, IPV4_SRC, IPV6_DST, IPV6_SRC, NatError};
use crate::conntrack::{Endpoint, FlowKey, Transport, query_ports};
use crate::parse::{Fragment, Headers, protocol, u16_at};

/// Bytes before the quoted packet: the header of an ICMP error of either family.
const ERROR_HEADER_BYTES: usize = 8;
/// Bytes of L4 that tell its flow: the ports, or of ICMP the identifier.
const PORTS_BYTES: usize = 4;
const QUERY_BYTES: usize = 6;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
/// IPv6 extension headers followed at most, as many as the path itself follows.
const EXTENSIONS_MAX: usize = 8;

/// Extension headers that can be walked over (RFC 8200 §4, RFC 4302 §2.2, RFC 6275 §6.1).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;

/// Where the quoted packet is, and which flow it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Offset of its IP header in the frame.
    pub ip_offset: usize,
    /// Offset of its L4 header in the frame.
    pub l4_offset: usize,
    /// Bytes from its L4 header on, as its IP header says; the quote may end before. `None` for a
    /// first fragment, which does not say.
    pub l4_bytes: Option<usize>,
    /// Its key. That of the error's own direction is the inverse.
    pub key: FlowKey,
}

/// The packet that an ICMP error speaks of; `None` if this is no ICMP error. `head` is the first
/// frame of the packet with these headers.
///
/// # Errors
/// [`NatError::Quote`] if its flow cannot be told: the quote is cut short, is a later fragment, of
/// another family, or of a protocol without ports. An error may not speak of an error
/// (RFC 1812 §4.3.2.7), nor come in fragments.
pub fn quote(head: &[u8], headers: &Headers) -> Result<Option<Quote>, NatError> {
    let is_error = match (headers.source(), headers.icmp_type) {
        // Unreachable, source quench, time exceeded, parameter problem (RFC 792). A redirect tells
        // nothing about a flow, and no router forwards it.
        (IpAddr::V4(_), Some(kind)) => matches!(kind, 3 | 4 | 11 | 12),
        // RFC 4443 §2.1.
        (IpAddr::V6(_), Some(kind)) => kind < 128,
        (_, None) => false,
    };
    if !is_error {
        return Ok(None);
    }
    let ip_offset = headers.l4_offset + ERROR_HEADER_BYTES;
    let packet = head.get(..headers.len.min(head.len())).unwrap_or(head);
    let ip = packet.get(ip_offset..).unwrap_or(&[]);
    let read = match headers.source() {
        IpAddr::V4(_) => ipv4(ip),
        IpAddr::V6(_) => ipv6(ip),
    };
    let inner = read.filter(|_| headers.fragment == Fragment::Whole).ok_or(NatError::Quote)?;
    let (src_port, dst_port) = inner.ports(ip).ok_or(NatError::Quote)?;
    let key = FlowKey {
        transport: inner.transport,
        src: Endpoint { address: inner.src, port: src_port },
        dst: Endpoint { address: inner.dst, port: dst_port },
    };
    let l4_offset = ip_offset + inner.l4;
    Ok(Some(Quote { ip_offset, l4_offset, l4_bytes: inner.l4_bytes, key }))
}

/// The IP header of a quoted packet.
struct Inner {
    src: IpAddr,
    dst: IpAddr,
    transport: Transport,
    /// Offset of L4 from the IP header.
    l4: usize,
    l4_bytes: Option<usize>,
}

impl Inner {
    fn ports(&self, ip: &[u8]) -> Option<(u16, u16)> {
        let least = match self.transport {
            Transport::Query => QUERY_BYTES,
            Transport::Tcp | Transport::Udp | Transport::Sctp => PORTS_BYTES,
        };
        if self.l4_bytes.is_some_and(|bytes| bytes < least) {
            return None;
        }
        let l4 = ip.get(self.l4..)?;
        match self.transport {
            Transport::Query => query_ports(*l4.first()?, self.src.is_ipv4(), u16_at(l4, 4)?),
            _ => Some((u16_at(l4, 0)?, u16_at(l4, 2)?)),
        }
    }
}

fn ipv4(ip: &[u8]) -> Option<Inner> {
    let header = ip.first_chunk::<IPV4_BYTES>()?;
    let l4 = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16_at(header, 2)?);
    let fragment = u16_at(header, 6)?;
    let is_later = fragment & 0x1fff != 0;
    let is_first = fragment & 0x2000 != 0;
    if header[0] >> 4 != 4 || l4 < IPV4_BYTES || total < l4 || is_later {
        return None;
    }
    let address = |at: usize| {
        let octets: [u8; 4] = header.get(at..)?.first_chunk().copied()?;
        Some(IpAddr::V4(Ipv4Addr::from(octets)))
    };
    Some(Inner {
        src: address(IPV4_SRC)?,
        dst: address(IPV4_DST)?,
        transport: Transport::from_number(header[9])?,
        l4,
        l4_bytes: (!is_first).then_some(total - l4),
    })
}

fn ipv6(ip: &[u8]) -> Option<Inner> {
    let header = ip.first_chunk::<IPV6_BYTES>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let total = IPV6_BYTES + usize::from(u16_at(header, 4)?);
    let (mut next, mut l4, mut is_first) = (header[6], IPV6_BYTES, false);
    for _ in 0..EXTENSIONS_MAX {
        let bytes = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY => {
                (usize::from(*ip.get(l4 + 1)?) + 1) * 8
            }
            AUTHENTICATION => (usize::from(*ip.get(l4 + 1)?) + 2) * 4,
            FRAGMENT => {
                // RFC 8200 §4.5: the offset is the upper 13 bits, "more" the lowest.
                let field = u16_at(ip, l4 + 2)?;
                if field & !7 != 0 {
                    return None;
                }
                is_first |= field & 1 != 0;
                8
            }
            _ => break,
        };
        next = *ip.get(l4)?;
        l4 += bytes;
    }
    let address = |at: usize| {
        let octets: [u8; 16] = header.get(at..)?.first_chunk().copied()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    };
    let transport = match next {
        protocol::ICMPV6 => Transport::Query,
        // The other family's ICMP is none here.
        protocol::ICMP => return None,
        other => Transport::from_number(other)?,
    };
    let l4_bytes = total.checked_sub(l4)?;
    Some(Inner {
        src: address(IPV6_SRC)?,
        dst: address(IPV6_DST)?,
        transport,
        l4,
        l4_bytes: (!is_first).then_some(l4_bytes),
    })
}
