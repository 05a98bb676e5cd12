//! ICMP and ICMPv6 *error* packets: which packets may be answered with one, and its bytes; and what
//! one that somebody else sent says of a packet that was too big.
//!
//! A router owes the sender a reason (RFC 1812 §4.3, RFC 4443 §2.4), but an answer to the wrong
//! packet multiplies traffic, so [`build`] refuses whatever [`may_answer`] refuses; ask that first
//! and [`Limiter`] then, so that unanswerable packets take no tokens.
//!
//! The offending packet is quoted as it lies in memory: build the error before the TTL is
//! decremented or an address rewritten. A *partial* L4 checksum is quoted as it is, since nobody
//! verifies the checksum inside a quote (it is cut off in most of them).

use std::net::IpAddr;

use crate::checksum::{self, Sum};

mod limiter;
#[cfg(test)]
mod tests;

pub use limiter::Limiter;

/// The longest packet [`build`] makes, Ethernet header included, in bytes.
pub const ERROR_BYTES_MAX: usize = ETHERNET_BYTES + DATAGRAM_BYTES_MAX_V6;

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const ICMP_BYTES: usize = 8;
/// RFC 1812 §4.3.2.3: as much of the original as fits in a datagram of 576 bytes.
const DATAGRAM_BYTES_MAX_V4: usize = 576;
/// RFC 4443 §2.4 (c): as much of the original as fits in the minimum IPv6 MTU.
const DATAGRAM_BYTES_MAX_V6: usize = 1280;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_ICMPV6: u8 = 58;
/// TTL and hop limit of what we send (IANA, IPv4 Parameters, "IP Time to Live").
const TTL: u8 = 64;
/// RFC 1812 §4.3.2.5: ICMP errors have precedence 6, INTERNETWORK CONTROL.
const PRECEDENCE_INTERNETWORK_CONTROL: u8 = 0xc0;
/// The bits of the type-of-service byte that RFC 1812 §4.3.2.5 copies from the original: no
/// precedence (ours) and no ECN bits, which have taken the lowest two since (RFC 3168 §5).
const TOS_COPIED: u8 = 0x1c;
/// Bound of the walk over IPv6 extension headers. Real packets have one or two.
const EXTENSION_HEADERS_MAX: usize = 8;

/// Why a packet was not forwarded, in the terms both families have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A route but nobody there, as for a pod address without a pod: ICMP 3/1, ICMPv6 1/3.
    HostUnreachable,
    /// TTL or hop limit ran out in transit: ICMP 11/0, ICMPv6 3/0.
    TimeExceeded,
    /// Longer than the egress MTU and not to be fragmented: ICMP 3/4 with the next-hop MTU (RFC
    /// 1191 §4), ICMPv6 2/0.
    TooBig {
        /// MTU of the egress in bytes, from the IP header on. Above 65535 an ICMP message says
        /// 65535.
        mtu: u32,
    },
}

/// The addresses an error is sent from and the link addresses it is sent between.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// Source of the Ethernet header: the gateway's MAC on a pod port.
    pub src_mac: [u8; 6],
    /// Destination of the Ethernet header. Not taken from the offending packet, whose source MAC
    /// may carry a hint instead of an address.
    pub dst_mac: [u8; 6],
    /// Source of the IP header: an address of the node, of the family of the offending packet.
    /// The link-local gateway address would be filtered on the way.
    pub source: IpAddr,
}

/// Why no error was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IcmpError {
    /// [`may_answer`] says no.
    #[error("this packet must not be answered with an ICMP error; count it and drop it silently")]
    MayNotAnswer,
    /// The envelope has an IPv4 source for an IPv6 packet or the reverse.
    #[error(
        "the ICMP error's source address is of the other IP version than the offending packet; \
         give the node's address of the same version"
    )]
    SourceFamily,
    /// The output does not hold the packet.
    #[error(
        "the output for an ICMP error has {have} bytes and needs {need}; give a frame that holds \
         {ERROR_BYTES_MAX}"
    )]
    NoRoom {
        /// Length of the packet that was to be written, in bytes.
        need: usize,
        /// Length of the output, in bytes.
        have: usize,
    },
}

impl ErrorKind {
    /// Type, code and the 32 bits after the checksum (RFC 792; RFC 1191 §4).
    fn message_v4(self) -> (u8, u8, u32) {
        match self {
            ErrorKind::HostUnreachable => (3, 1, 0),
            ErrorKind::TimeExceeded => (11, 0, 0),
            ErrorKind::TooBig { mtu } => (3, 4, mtu.min(u32::from(u16::MAX))),
        }
    }

    /// Type, code and the 32 bits after the checksum (RFC 4443 §3).
    fn message_v6(self) -> (u8, u8, u32) {
        match self {
            ErrorKind::HostUnreachable => (1, 3, 0),
            ErrorKind::TimeExceeded => (3, 0, 0),
            ErrorKind::TooBig { mtu } => (2, 0, mtu),
        }
    }
}

/// Whether `packet`, an Ethernet packet whose IP header is at `l3_offset`, may be answered with
/// an error of this kind.
///
/// RFC 1812 §4.3.2.7 and RFC 4443 §2.4 (e): never about an ICMP error or redirect, a fragment
/// that is not the first, a packet that was sent to or from more than one node (by IP or by
/// link), or one whose IP header is not valid. An ICMPv6 Packet Too Big may be sent about a
/// multicast packet (e.3), for path MTU discovery. ICMP of a type that is not known to be a query
/// counts as an error. IPv6 headers that cannot be followed to the upper layer are not answered,
/// because they could hide one.
#[must_use]
pub fn may_answer(kind: ErrorKind, packet: &[u8], l3_offset: usize) -> bool {
    let Some(&[link_dst, ..]) = packet.first_chunk::<ETHERNET_BYTES>() else {
        return false;
    };
    let link_multicast = link_dst & 1 == 1;
    let multicast_allowed = matches!(kind, ErrorKind::TooBig { .. });
    let datagram = packet.get(l3_offset..).unwrap_or_default();
    if let Some(header) = header(datagram, 4) {
        !link_multicast && may_answer_v4(header, datagram)
    } else if let Some(header) = header(datagram, 6) {
        (multicast_allowed || !link_multicast) && may_answer_v6(header, datagram, multicast_allowed)
    } else {
        false
    }
}

fn may_answer_v4(header: &[u8; IPV4_BYTES], datagram: &[u8]) -> bool {
    let header_bytes = usize::from(header[0] & 0x0f) * 4;
    let total_bytes = total_bytes_v4(header);
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let (src, dst) = (header[12], header[16]);
    // First bytes: 0/8 is "this network", 127/8 loopback, from 224 on multicast, reserved and
    // limited broadcast. The sender must be one host, the destination no group.
    let one_sender = src != 0 && src != 127 && src < 224;
    let one_receiver = dst < 224;
    let answerable = one_sender
        && one_receiver
        && fragment_offset == 0
        && total_bytes >= header_bytes
        && checksum::verify_ipv4_header(datagram);
    if !answerable || header[9] != PROTOCOL_ICMP {
        return answerable;
    }
    // Queries: echo, router discovery, timestamp, information, address mask (RFC 792, RFC 950,
    // RFC 1256) and extended echo (RFC 8335).
    matches!(
        truncated(datagram, total_bytes).get(header_bytes),
        Some(0 | 8..=10 | 13..=18 | 42 | 43)
    )
}

fn may_answer_v6(header: &[u8; IPV6_BYTES], datagram: &[u8], multicast_allowed: bool) -> bool {
    // Unspecified (::) and loopback (::1).
    let special_src = header[8..23].iter().all(|&byte| byte == 0) && header[23] <= 1;
    let one_sender = !special_src && header[8] != 0xff;
    let one_receiver = header[24] != 0xff;
    if !one_sender || !(one_receiver || multicast_allowed) {
        return false;
    }
    let datagram = truncated(datagram, total_bytes_v6(header));
    match upper_layer(datagram, header[6]) {
        Some((PROTOCOL_ICMPV6, offset)) => {
            // From 128 on a message is informational (RFC 4443 §2.1); 137 is the redirect.
            datagram.get(offset).is_some_and(|&kind| kind >= 128 && kind != 137)
        }
        Some(_) => true,
        None => false,
    }
}

/// Follows the extension headers of an IPv6 packet to the first header that is none: its protocol
/// number and offset. `None` for a fragment that is not the first, a cut-off chain, or a long one.
fn upper_layer(datagram: &[u8], mut next: u8) -> Option<(u8, usize)> {
    let mut offset = IPV6_BYTES;
    for _ in 0..=EXTENSION_HEADERS_MAX {
        let bytes = match next {
            // Hop-by-hop, routing, destination options, mobility, HIP, shim6: 8-byte units, the
            // first not counted (RFC 6564 §4).
            0 | 43 | 60 | 135 | 139 | 140 => 8 + 8 * usize::from(*datagram.get(offset + 1)?),
            // Authentication header: 4-byte units, the first two not counted (RFC 4302 §2.2).
            51 => 8 + 4 * usize::from(*datagram.get(offset + 1)?),
            44 => {
                let fragment = datagram.get(offset..)?.first_chunk::<8>()?;
                if u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff8 != 0 {
                    return None;
                }
                8
            }
            _ => return Some((next, offset)),
        };
        next = *datagram.get(offset)?;
        offset += bytes;
    }
    None
}

/// Writes an error about `packet`, an Ethernet packet whose IP header is at `l3_offset`, into
/// `out` as an Ethernet packet without VLAN tag, and returns its length in bytes (at most
/// [`ERROR_BYTES_MAX`]).
///
/// `packet` may be only the first frame of a longer one: what is there is quoted, up to 576 bytes
/// of ICMP datagram or 1280 of ICMPv6, without the Ethernet trailer.
///
/// # Errors
/// See [`IcmpError`]; `out` is unchanged then.
pub fn build(
    kind: ErrorKind,
    packet: &[u8],
    l3_offset: usize,
    envelope: &Envelope,
    out: &mut [u8],
) -> Result<usize, IcmpError> {
    if !may_answer(kind, packet, l3_offset) {
        return Err(IcmpError::MayNotAnswer);
    }
    let datagram = packet.get(l3_offset..).unwrap_or_default();
    match envelope.source {
        IpAddr::V4(source) => {
            let offending = header::<IPV4_BYTES>(datagram, 4).ok_or(IcmpError::SourceFamily)?;
            let error = ErrorV4 { kind, offending, source: source.octets() };
            error.write(datagram, envelope, out)
        }
        IpAddr::V6(source) => {
            let offending = header::<IPV6_BYTES>(datagram, 6).ok_or(IcmpError::SourceFamily)?;
            let error = ErrorV6 { kind, offending, source: source.octets() };
            error.write(datagram, envelope, out)
        }
    }
}

/// How long the TCP packet was, in bytes from its IP header on, that an error refuses as too big:
/// ICMP 3/4 (RFC 1191 §4) or ICMPv6 2 (RFC 4443 §3.2). `told` is whom the error is for, and must
/// have sent what it quotes (RFC 5927 §4.1 has more such checks); `message` begins with the ICMP
/// header. `None` for any other message, or one that quotes too little.
#[must_use]
pub fn refused_tcp_bytes(told: IpAddr, message: &[u8]) -> Option<usize> {
    let (kind, quoted) = (message.first_chunk::<2>()?, message.get(ICMP_BYTES..)?);
    match (told, kind) {
        (IpAddr::V4(told), [3, 4]) => {
            let header = header::<IPV4_BYTES>(quoted, 4)?;
            let sent = header[9] == PROTOCOL_TCP && header[12..16] == told.octets();
            sent.then(|| total_bytes_v4(header))
        }
        (IpAddr::V6(told), [2, _]) => {
            let header = header::<IPV6_BYTES>(quoted, 6)?;
            let sent = header[6] == PROTOCOL_TCP && header[8..24] == told.octets();
            sent.then(|| total_bytes_v6(header))
        }
        _ => None,
    }
}

/// The fixed part of the IP header of `datagram`, if it is of this version.
fn header<const BYTES: usize>(datagram: &[u8], version: u8) -> Option<&[u8; BYTES]> {
    datagram.first_chunk().filter(|_| datagram.first().is_some_and(|first| first >> 4 == version))
}

struct ErrorV4<'a> {
    kind: ErrorKind,
    offending: &'a [u8; IPV4_BYTES],
    source: [u8; 4],
}

impl ErrorV4<'_> {
    fn write(
        &self,
        datagram: &[u8],
        envelope: &Envelope,
        out: &mut [u8],
    ) -> Result<usize, IcmpError> {
        let quote_max = DATAGRAM_BYTES_MAX_V4 - IPV4_BYTES - ICMP_BYTES;
        let quote = truncated(datagram, total_bytes_v4(self.offending).min(quote_max));
        let message = message(self.kind.message_v4(), Sum::default(), quote);
        let ip = self.ip_header(IPV4_BYTES + ICMP_BYTES + quote.len());
        concatenate(out, &[&ethernet(envelope, ETHERTYPE_IPV4), &ip, &message, quote])
    }

    fn ip_header(&self, total_bytes: usize) -> [u8; IPV4_BYTES] {
        let mut ip = [0; IPV4_BYTES];
        ip[0] = 0x45;
        ip[1] = PRECEDENCE_INTERNETWORK_CONTROL | (self.offending[1] & TOS_COPIED);
        // At most 576: fits.
        ip[2..4].copy_from_slice(&(total_bytes as u16).to_be_bytes());
        // Don't Fragment with identification 0: an atomic datagram needs no unique one (RFC 6864
        // §4.1), and no path is narrower than 576 bytes in practice.
        ip[6] = 0x40;
        ip[8] = TTL;
        ip[9] = PROTOCOL_ICMP;
        ip[12..16].copy_from_slice(&self.source);
        ip[16..20].copy_from_slice(&self.offending[12..16]);
        let check = Sum::default().add_bytes(&ip).checksum();
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        ip
    }
}

struct ErrorV6<'a> {
    kind: ErrorKind,
    offending: &'a [u8; IPV6_BYTES],
    source: [u8; 16],
}

impl ErrorV6<'_> {
    fn write(
        &self,
        datagram: &[u8],
        envelope: &Envelope,
        out: &mut [u8],
    ) -> Result<usize, IcmpError> {
        let quote_max = DATAGRAM_BYTES_MAX_V6 - IPV6_BYTES - ICMP_BYTES;
        let quote = truncated(datagram, total_bytes_v6(self.offending).min(quote_max));
        // At most 1240: fits.
        let message_bytes = (ICMP_BYTES + quote.len()) as u16;

        let mut ip = [0; IPV6_BYTES];
        ip[0] = 0x60;
        ip[4..6].copy_from_slice(&message_bytes.to_be_bytes());
        ip[6] = PROTOCOL_ICMPV6;
        ip[7] = TTL;
        ip[8..24].copy_from_slice(&self.source);
        ip[24..40].copy_from_slice(&self.offending[8..24]);

        // The addresses, the length and the next header are the pseudo-header (RFC 8200 §8.1).
        let pseudo_header = Sum::default()
            .add_bytes(&ip[8..40])
            .add_word(message_bytes)
            .add_word(u16::from(PROTOCOL_ICMPV6));
        let message = message(self.kind.message_v6(), pseudo_header, quote);
        concatenate(out, &[&ethernet(envelope, ETHERTYPE_IPV6), &ip, &message, quote])
    }
}

/// The ICMP header, with its checksum over `pseudo_header`, itself and `quote`.
fn message(
    (kind, code, rest): (u8, u8, u32),
    pseudo_header: Sum,
    quote: &[u8],
) -> [u8; ICMP_BYTES] {
    let mut message = [kind, code, 0, 0, 0, 0, 0, 0];
    message[4..8].copy_from_slice(&rest.to_be_bytes());
    let check = pseudo_header.add_bytes(&message).add_bytes(quote).checksum();
    message[2..4].copy_from_slice(&check.to_be_bytes());
    message
}

fn ethernet(envelope: &Envelope, ethertype: [u8; 2]) -> [u8; ETHERNET_BYTES] {
    let mut header = [0; ETHERNET_BYTES];
    header[..6].copy_from_slice(&envelope.dst_mac);
    header[6..12].copy_from_slice(&envelope.src_mac);
    header[12..].copy_from_slice(&ethertype);
    header
}

/// The length of an IPv4 packet by its own header: what follows is an Ethernet trailer.
fn total_bytes_v4(header: &[u8; IPV4_BYTES]) -> usize {
    usize::from(u16::from_be_bytes([header[2], header[3]]))
}

/// The length of an IPv6 packet by its own header: what follows is an Ethernet trailer.
fn total_bytes_v6(header: &[u8; IPV6_BYTES]) -> usize {
    IPV6_BYTES + usize::from(u16::from_be_bytes([header[4], header[5]]))
}

fn truncated(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(..length).unwrap_or(bytes)
}

/// Writes `pieces` one after another at the start of `out`; returns their length together.
fn concatenate(out: &mut [u8], pieces: &[&[u8]]) -> Result<usize, IcmpError> {
    let (need, have) = (pieces.iter().map(|piece| piece.len()).sum(), out.len());
    let mut rest = out.get_mut(..need).ok_or(IcmpError::NoRoom { need, have })?;
    for piece in pieces {
        let (place, after) = rest.split_at_mut(piece.len());
        place.copy_from_slice(piece);
        rest = after;
    }
    Ok(need)
}
