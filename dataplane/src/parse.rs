//! Bytes to headers, or the reason why not. Reads lengths, addresses and ports; changes nothing,
//! allocates nothing, and panics on no input. The only user of etherparse on the packet path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::err::ipv4::{HeaderError as Ipv4Error, HeaderSliceError as Ipv4SliceError};
use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};

use crate::checksum::{Sum, pseudo_header_v4, pseudo_header_v6};
use crate::drop::DropReason;
use crate::port::Mac;

/// Bytes of an Ethernet header without tags.
pub const ETHERNET_BYTES: usize = 14;

/// IPv6 extension headers followed at most: RFC 8504 §5.3 allows a limit, Linux has 8 too.
const EXTENSIONS_MAX: usize = 8;

const ETHER_TYPE_IPV4: u16 = 0x0800;
const ETHER_TYPE_IPV6: u16 = 0x86dd;
const ETHER_TYPE_ARP: u16 = 0x0806;

/// Protocol numbers that parsing knows (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION_OPTIONS: u8 = 60;
    pub(super) const MOBILITY: u8 = 135;
}

/// Source and destination of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// IPv4.
    V4 {
        /// Source.
        src: Ipv4Addr,
        /// Destination.
        dst: Ipv4Addr,
    },
    /// IPv6.
    V6 {
        /// Source.
        src: Ipv6Addr,
        /// Destination.
        dst: Ipv6Addr,
    },
}

impl Addresses {
    /// The addresses of a packet whose first frame is `head`; `None` if it is no IP packet.
    #[must_use]
    pub fn of_head(head: &[u8]) -> Option<Addresses> {
        let ip = head.get(ETHERNET_BYTES..)?;
        match ip.first()? >> 4 {
            4 => {
                let [src, dst] = ip.get(12..20)?.as_chunks::<4>().0 else { return None };
                Some(Addresses::V4 { src: (*src).into(), dst: (*dst).into() })
            }
            6 => {
                let [src, dst] = ip.get(8..40)?.as_chunks::<16>().0 else { return None };
                Some(Addresses::V6 { src: (*src).into(), dst: (*dst).into() })
            }
            _ => None,
        }
    }

    /// The sum of the pseudo-header of a packet of `protocol`, whose L4 header and payload are
    /// `l4_bytes` long: at most what an IP header can say.
    #[must_use]
    pub fn pseudo_header(&self, protocol: u8, l4_bytes: usize) -> Sum {
        match self {
            Addresses::V4 { src, dst } => {
                pseudo_header_v4(src.octets(), dst.octets(), protocol, l4_bytes as u16)
            }
            Addresses::V6 { src, dst } => {
                pseudo_header_v6(src.octets(), dst.octets(), protocol, l4_bytes as u32)
            }
        }
    }
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The first fragment: it has the L4 header.
    First,
    /// A later one: it has none.
    Later,
}

/// What the path needs to know of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Ethernet source.
    pub src_mac: Mac,
    /// Ethernet destination.
    pub dst_mac: Mac,
    /// IP source and destination.
    pub addresses: Addresses,
    /// Protocol above IP, after IPv6 extension headers.
    pub protocol: u8,
    /// Offset of the L4 header in the frame (of the payload, in a later fragment).
    pub l4_offset: usize,
    /// Bytes of the whole packet without Ethernet padding: Ethernet header and IP packet.
    pub len: usize,
    /// Part of the datagram.
    pub fragment: Fragment,
    /// Identification of the datagram, of a fragment; of a whole IPv6 packet 0.
    pub fragment_id: u32,
    /// IPv4 "don't fragment"; true for IPv6, whose routers never fragment.
    pub dont_fragment: bool,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// ICMP or ICMPv6 type, when the packet has one.
    pub icmp_type: Option<u8>,
}

impl Headers {
    /// IP source.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        match self.addresses {
            Addresses::V4 { src, .. } => IpAddr::V4(src),
            Addresses::V6 { src, .. } => IpAddr::V6(src),
        }
    }

    /// IP destination.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        match self.addresses {
            Addresses::V4 { dst, .. } => IpAddr::V4(dst),
            Addresses::V6 { dst, .. } => IpAddr::V6(dst),
        }
    }

    /// The headers of a segment of this packet, a packet of `len` bytes itself.
    #[must_use]
    pub fn of_segment(&self, len: usize) -> Headers {
        Headers { len, ..*self }
    }

    /// Bytes of the IP packet.
    #[must_use]
    pub fn ip_len(&self) -> usize {
        self.len - ETHERNET_BYTES
    }

    /// Whether this is IPv6 neighbour discovery or MLD, which only concerns the link
    /// (RFC 4861, RFC 2710, RFC 3810).
    #[must_use]
    pub fn is_link_control(&self) -> bool {
        matches!(self.addresses, Addresses::V6 { .. })
            && matches!(self.icmp_type, Some(130..=137 | 143))
    }
}

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An IP packet.
    Ip(Headers),
    /// An ARP packet, not looked into yet.
    Arp {
        /// Ethernet source.
        src_mac: Mac,
    },
}

/// Reads the headers of a frame whose first bytes are `head`, of `total` bytes in all.
pub fn headers(head: &[u8], total: usize) -> Result<Parsed, DropReason> {
    let (Some(dst_mac), Some(src_mac)) = (mac_at(head, 0), mac_at(head, 6)) else {
        return Err(DropReason::TooShort);
    };
    let ip = head.get(ETHERNET_BYTES..).ok_or(DropReason::TooShort)?;
    match u16_at(head, 12).ok_or(DropReason::TooShort)? {
        ETHER_TYPE_IPV4 => ipv4(ip, total - ETHERNET_BYTES, src_mac, dst_mac).map(Parsed::Ip),
        ETHER_TYPE_IPV6 => ipv6(ip, total - ETHERNET_BYTES, src_mac, dst_mac).map(Parsed::Ip),
        ETHER_TYPE_ARP => Ok(Parsed::Arp { src_mac }),
        _ => Err(DropReason::UnknownEtherType),
    }
}

/// RFC 1812 §5.2.2: the checks before anything else of an IPv4 packet is believed.
fn ipv4(ip: &[u8], available: usize, src_mac: Mac, dst_mac: Mac) -> Result<Headers, DropReason> {
    let header = Ipv4HeaderSlice::from_slice(ip).map_err(|error| match error {
        Ipv4SliceError::Len(_) => DropReason::TooShort,
        Ipv4SliceError::Content(Ipv4Error::UnexpectedVersion { .. }) => DropReason::Ipv4BadVersion,
        Ipv4SliceError::Content(Ipv4Error::HeaderLengthSmallerThanHeader { .. }) => {
            DropReason::Ipv4BadHeaderLength
        }
    })?;
    let header_len = header.slice().len();
    let ip_len = usize::from(header.total_len());
    if ip_len < header_len || ip_len > available {
        return Err(DropReason::Ipv4BadLength);
    }
    if Sum::default().add_bytes(header.slice()).checksum() != 0 {
        return Err(DropReason::Ipv4BadChecksum);
    }
    ipv4_options(header.options())?;
    let offset = usize::from(header.fragments_offset().value()) * 8;
    let payload = ip_len - header_len;
    let fragment = match (offset, header.more_fragments()) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    };
    // An empty fragment, or one that ends beyond the largest datagram, belongs to no datagram.
    if fragment != Fragment::Whole && (payload == 0 || offset + payload > 0xffff) {
        return Err(DropReason::FragmentTooSmall);
    }
    let mut headers = Headers {
        src_mac,
        dst_mac,
        addresses: Addresses::V4 { src: header.source_addr(), dst: header.destination_addr() },
        protocol: header.protocol().0,
        l4_offset: ETHERNET_BYTES + header_len,
        len: ETHERNET_BYTES + ip_len,
        fragment,
        fragment_id: u32::from(header.identification()),
        dont_fragment: header.dont_fragment(),
        hop_limit: header.ttl(),
        icmp_type: None,
    };
    layer4(ip.get(header_len..).unwrap_or(&[]), payload, &mut headers)?;
    Ok(headers)
}

/// RFC 1812 §4.2.2.6 and RFC 7126 §4.3, §4.4: unknown options pass, source routing does not.
fn ipv4_options(mut options: &[u8]) -> Result<(), DropReason> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    while let Some(&kind) = options.first() {
        let len = match kind {
            END => return Ok(()),
            NO_OPERATION => 1,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(DropReason::Ipv4SourceRoute),
            _ => match options.get(1) {
                Some(&len) if len >= 2 => usize::from(len),
                _ => return Err(DropReason::Ipv4BadOptions),
            },
        };
        options = options.get(len..).ok_or(DropReason::Ipv4BadOptions)?;
    }
    Ok(())
}

fn ipv6(ip: &[u8], available: usize, src_mac: Mac, dst_mac: Mac) -> Result<Headers, DropReason> {
    const HEADER_BYTES: usize = 40;
    if ip.len() < HEADER_BYTES {
        return Err(DropReason::TooShort);
    }
    let header = Ipv6HeaderSlice::from_slice(ip).map_err(|_| DropReason::Ipv6BadVersion)?;
    let payload = usize::from(header.payload_length());
    let next = header.next_header().0;
    // A jumbogram (RFC 2675) has length 0 and a hop-by-hop header: no frame of ours is that long.
    if HEADER_BYTES + payload > available || (payload == 0 && next == protocol::HOP_BY_HOP) {
        return Err(DropReason::Ipv6BadLength);
    }
    let mut headers = Headers {
        src_mac,
        dst_mac,
        addresses: Addresses::V6 { src: header.source_addr(), dst: header.destination_addr() },
        protocol: next,
        l4_offset: ETHERNET_BYTES + HEADER_BYTES,
        len: ETHERNET_BYTES + HEADER_BYTES + payload,
        fragment: Fragment::Whole,
        fragment_id: 0,
        dont_fragment: true,
        hop_limit: header.hop_limit(),
        icmp_type: None,
    };
    // Bytes of the packet that lie in the first frame, without Ethernet padding.
    let body = ip.get(HEADER_BYTES..).unwrap_or(&[]);
    let body = body.get(..payload).unwrap_or(body);
    let skipped = ipv6_extensions(body, payload, &mut headers)?;
    headers.l4_offset += skipped;
    layer4(body.get(skipped..).unwrap_or(&[]), payload - skipped, &mut headers)?;
    Ok(headers)
}

/// RFC 8200 §4: walks the extension headers up to the upper layer; returns their bytes.
fn ipv6_extensions(
    body: &[u8],
    payload: usize,
    headers: &mut Headers,
) -> Result<usize, DropReason> {
    let mut at = 0;
    for _ in 0..=EXTENSIONS_MAX {
        let known = matches!(
            headers.protocol,
            protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::FRAGMENT
                | protocol::AUTHENTICATION
                | protocol::DESTINATION_OPTIONS
                | protocol::MOBILITY
        );
        // A later fragment continues in the middle of something: nothing more can be read.
        if !known || headers.fragment == Fragment::Later {
            return Ok(at);
        }
        let (Some(&next), Some(&len)) = (body.get(at), body.get(at + 1)) else {
            return Err(DropReason::Ipv6BadExtension);
        };
        let bytes = match headers.protocol {
            protocol::FRAGMENT => 8,
            protocol::AUTHENTICATION => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        if at + bytes > payload || at + bytes > body.len() {
            return Err(DropReason::Ipv6BadExtension);
        }
        if headers.protocol == protocol::ROUTING && body.get(at + 2) == Some(&0) {
            return Err(DropReason::Ipv6RoutingType0);
        }
        if headers.protocol == protocol::FRAGMENT {
            // One fragment header is enough for a part; another cannot make it whole again.
            let inner = ipv6_fragment(body, at, payload)?;
            if inner != Fragment::Whole {
                headers.fragment = inner;
                headers.fragment_id = u32_at(body, at + 4).ok_or(DropReason::Ipv6BadExtension)?;
            }
        }
        headers.protocol = next;
        at += bytes;
    }
    Err(DropReason::Ipv6TooManyHeaders)
}

/// RFC 8200 §4.5, RFC 6946: an atomic fragment is a whole datagram.
fn ipv6_fragment(body: &[u8], at: usize, payload: usize) -> Result<Fragment, DropReason> {
    let field = u16_at(body, at + 2).ok_or(DropReason::Ipv6BadExtension)?;
    let (offset, more) = (usize::from(field & !7), field & 1 == 1);
    let data = payload - at - 8;
    if (offset, more) == (0, false) {
        return Ok(Fragment::Whole);
    }
    if data == 0 || offset + data > 0xffff {
        return Err(DropReason::FragmentTooSmall);
    }
    Ok(if offset == 0 { Fragment::First } else { Fragment::Later })
}

/// The least of L4 that later stages rely on. `l4` may be cut off by the end of the first frame,
/// `payload` is the true length.
fn layer4(l4: &[u8], payload: usize, headers: &mut Headers) -> Result<(), DropReason> {
    if headers.fragment == Fragment::Later {
        return Ok(());
    }
    // The other family's ICMP is a protocol like any other: its types mean nothing here.
    let icmp = match headers.addresses {
        Addresses::V4 { .. } => protocol::ICMP,
        Addresses::V6 { .. } => protocol::ICMPV6,
    };
    let (least, short) = match headers.protocol {
        protocol::TCP => (20, DropReason::L4TooShort),
        own if own == icmp => (8, DropReason::L4TooShort),
        protocol::UDP => (8, DropReason::L4TooShort),
        protocol::SCTP => (12, DropReason::L4TooShort),
        _ => return Ok(()),
    };
    if payload < least || l4.len() < least {
        return Err(short);
    }
    match headers.protocol {
        own if own == icmp => headers.icmp_type = l4.first().copied(),
        protocol::UDP if headers.fragment == Fragment::Whole => {
            let len = usize::from(u16_at(l4, 4).ok_or(short)?);
            if len < 8 || len > payload {
                return Err(DropReason::UdpBadLength);
            }
        }
        _ => {}
    }
    Ok(())
}

/// The big-endian number at `offset`.
#[inline]
#[must_use]
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

#[inline]
fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

#[inline]
fn mac_at(bytes: &[u8], offset: usize) -> Option<Mac> {
    bytes.get(offset..offset + 6)?.try_into().ok()
}

#[cfg(test)]
mod tests;
