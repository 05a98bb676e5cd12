//! Translates any packet to any key, and back. What is judged here is judged without the code under
//! test: which bytes may change, what a receiver reads then, and by how much every checksum is
//! wrong, which must be as much as before.

use std::net::IpAddr;
use std::ops::Range;

use dataplane::conntrack::{Endpoint, FlowKey, Transport};
use dataplane::nat::{NatError, Quote, quote, translate, translate_error};
use dataplane::parse::{self, ETHERNET_BYTES, Fragment, Headers, Parsed};
use dataplane::port::Partial;

use crate::bytes::Bytes;

/// In the first byte: the packet's own checksum is left to do.
const PARTIAL: u8 = 1;
/// In the first byte: more frames follow, and the packet ends in one of them.
const FRAMES_FOLLOW: u8 = 2;
/// In the first byte: the new addresses are of the other family.
const OTHER_FAMILY: u8 = 4;

/// Bytes beyond the first frame, where there are some.
const FURTHER_BYTES: usize = 60_000;

/// The first byte, what a key is made of, and a frame. Translates it, if it is a packet, as one of
/// a flow and as an ICMP error.
pub fn nat(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let first = bytes.byte();
    let ports = [bytes.number(), bytes.number()];
    let v4 = [bytes.address(true), bytes.address(true)];
    let v6 = [bytes.address(false), bytes.address(false)];
    let frame = with_right_header(bytes.0);
    let further = if first & FRAMES_FOLLOW != 0 { FURTHER_BYTES } else { 0 };
    let total = frame.len() + further;
    let Ok(Parsed::Ip(headers)) = parse::headers(&frame, total) else { return };
    let is_v4 = headers.source().is_ipv4();
    let addresses = if is_v4 == (first & OTHER_FAMILY == 0) { v4 } else { v6 };
    let new = New { addresses, ports };
    let packet = Packet { frame, total, headers, is_partial: first & PARTIAL != 0 };
    packet.as_one_of_a_flow(&new);
    packet.as_an_error(&new);
}

/// The frame with the checksum of its IPv4 header made right: parsing lets no other pass, so nearly
/// every change of such a frame would end there.
fn with_right_header(bytes: &[u8]) -> Vec<u8> {
    let mut frame = bytes.to_vec();
    if frame.get(12..14) == Some(&[8, 0]) {
        let header = usize::from(frame.get(14).copied().unwrap_or(0) & 0xf) * 4;
        if header >= 20
            && let Some(header) = frame.get_mut(ETHERNET_BYTES..ETHERNET_BYTES + header)
        {
            header[10..12].fill(0);
            let check = !sum(header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
        }
    }
    frame
}

/// What a packet is translated to.
struct New {
    addresses: [IpAddr; 2],
    ports: [u16; 2],
}

impl New {
    /// The key for a packet that has `old`: of a query the asker is the same end.
    fn key(&self, old: &FlowKey) -> FlowKey {
        let [src, dst] = self.addresses;
        let [a, b] = match (old.transport, old.src.port, old.dst.port) {
            // Its identifier is 0, so the ports do not say who asks.
            (Transport::Query, 0, 0) => [0, 0],
            (Transport::Query, _, 0) => [self.ports[0], 0],
            (Transport::Query, ..) => [0, self.ports[0]],
            _ => self.ports,
        };
        let end = |address, port| Endpoint { address, port };
        FlowKey { transport: old.transport, src: end(src, a), dst: end(dst, b) }
    }
}

struct Packet {
    /// Its first frame.
    frame: Vec<u8>,
    total: usize,
    headers: Headers,
    is_partial: bool,
}

impl Packet {
    fn parsed(&self, frame: &[u8]) -> Headers {
        match parse::headers(frame, self.total) {
            Ok(Parsed::Ip(headers)) => headers,
            other => panic!("what was translated is a packet still: {other:?}"),
        }
    }

    fn partial(&self, transport: Transport) -> Option<Partial> {
        // SCTP and ICMP have none that a sender leaves open.
        let is_left = self.is_partial && matches!(transport, Transport::Tcp | Transport::Udp);
        let (start, offset) = (self.headers.l4_offset as u16, check_offset(transport) as u16);
        is_left.then_some(Partial { start, offset })
    }

    fn as_one_of_a_flow(&self, new: &New) {
        let from = match (self.headers.fragment, FlowKey::of_packet(&self.frame, &self.headers)) {
            (Fragment::Later, key) => {
                assert_eq!(key, None, "no ports are read where there are none");
                let end = |address| Endpoint { address, port: 0 };
                let (src, dst) = (self.headers.source(), self.headers.destination());
                FlowKey { transport: Transport::Udp, src: end(src), dst: end(dst) }
            }
            (_, Some(key)) => key,
            (_, None) => return,
        };
        let to = new.key(&from);
        let partial = self.partial(from.transport);
        let mut there = self.frame.clone();
        let result = translate(&mut there, &self.headers, &to, partial);
        let same_ports = (from.src.port, from.dst.port) == (to.src.port, to.dst.port);
        let is_first = self.headers.fragment == Fragment::First;
        let expected = if is_first && from.transport == Transport::Sctp && !same_ports {
            Err(NatError::SctpFragment)
        } else if from.src.address.is_ipv4() != to.src.address.is_ipv4() {
            Err(NatError::Family)
        } else {
            Ok(())
        };
        assert_eq!(result, expected, "{from:?} to {to:?}");
        if result.is_err() {
            assert_eq!(there, self.frame, "what is refused is not changed");
            return;
        }
        let after = self.parsed(&there);
        assert_eq!(Headers { addresses: self.headers.addresses, ..after }, self.headers);
        assert_eq!((after.source(), after.destination()), (to.src.address, to.dst.address));
        if self.headers.fragment != Fragment::Later {
            assert_eq!(FlowKey::of_packet(&there, &after), Some(to));
        }
        let l4 = L4::of_packet(&self.headers, from.transport, partial.is_some());
        self.assert_only(&there, &l4.fields());
        assert_eq!(l4.error(&there), l4.error(&self.frame), "as wrong as it was: {to:?}");

        let mut back = there.clone();
        assert_eq!(translate(&mut back, &after, &from, partial), Ok(()));
        self.assert_same(&back, &l4.zeros());
    }

    /// What an ICMP error becomes on the way of the packets that answer what it quotes.
    fn as_an_error(&self, new: &New) {
        let Ok(Some(quoted)) = quote(&self.frame, &self.headers) else { return };
        assert!(quoted.ip_offset < quoted.l4_offset && quoted.l4_offset < self.frame.len());
        let (received, sent) = (quoted.key.inverse(), new.key(&quoted.key.inverse()));
        let mut there = self.frame.clone();
        let keys = (&received, &sent);
        match translate_error(&mut there, &self.headers, &quoted, keys, None) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error, NatError::Family);
                assert_eq!(there, self.frame, "what is refused is not changed");
                return;
            }
        }
        let after = self.parsed(&there);
        let quoted_after = match quote(&there, &after) {
            Ok(Some(quoted)) => quoted,
            other => panic!("what was an error is one still: {other:?}"),
        };
        assert_eq!(quoted_after, Quote { key: sent.inverse(), ..quoted });
        let outer = L4::of_packet(&self.headers, Transport::Query, false);
        let inner = L4::of_quote(&quoted);
        // An error has no identifier.
        let mut may_change = [outer.fields(), inner.fields()].concat();
        may_change.retain(|range| range.start != self.headers.l4_offset + 4);
        self.assert_only(&there, &may_change);
        assert_eq!(outer.error(&there), outer.error(&self.frame), "{quoted:?} to {sent:?}");
        if self.headers.source().is_ipv4() {
            let error = |frame: &[u8]| residue(&[&frame[quoted.ip_offset..quoted.l4_offset]]);
            assert_eq!(error(&there), error(&self.frame), "the quoted header");
        }

        // A router that has the address of an end is that end, on the way back.
        let was_end = |address, end: &Endpoint| address == end.address;
        let ends = was_end(self.headers.source(), &received.src)
            == was_end(after.source(), &sent.src)
            && was_end(self.headers.destination(), &received.dst)
                == was_end(after.destination(), &sent.dst);
        if ends {
            let mut back = there.clone();
            let keys = (&sent, &received);
            let result = translate_error(&mut back, &after, &quoted_after, keys, None);
            assert_eq!(result, Ok(()));
            let zeros = [outer.zeros(), inner.zeros()];
            self.assert_same(&back, &zeros.concat());
        }
    }

    /// Nothing but these bytes was changed.
    fn assert_only(&self, after: &[u8], may_change: &[Range<usize>]) {
        assert_eq!(after.len(), self.frame.len());
        for (at, (was, is)) in self.frame.iter().zip(after).enumerate() {
            let allowed = may_change.iter().any(|range| range.contains(&at));
            assert!(was == is || allowed, "byte {at} was {was:#x} and is {is:#x}");
        }
    }

    /// It is what it was, except that these sums may have the other zero of one's complement.
    fn assert_same(&self, after: &[u8], zeros: &[usize]) {
        let zero = |frame: &[u8], at: usize| {
            let field = frame.get(at..at + 2);
            field == Some(&[0, 0]) || field == Some(&[0xff, 0xff])
        };
        let mut after = after.to_vec();
        for at in zeros {
            if zero(&after, *at) && zero(&self.frame, *at) {
                after[*at..at + 2].copy_from_slice(&self.frame[*at..at + 2]);
            }
        }
        assert_eq!(after, self.frame, "there and back");
    }
}

fn check_offset(transport: Transport) -> usize {
    match transport {
        Transport::Tcp => 16,
        Transport::Udp => 6,
        Transport::Query => 2,
        Transport::Sctp => 8,
    }
}

/// An L4 header and what a checksum covers, as far as it is in the frame.
struct L4 {
    transport: Transport,
    /// Where its IP header and itself begin, and where the packet ends.
    ip: usize,
    at: usize,
    end: usize,
    is_v4: bool,
    /// It is not a later fragment.
    has_header: bool,
    /// All of it is one packet: SCTP's sum says something.
    is_whole: bool,
    is_partial: bool,
}

impl L4 {
    fn of_packet(headers: &Headers, transport: Transport, is_partial: bool) -> L4 {
        L4 {
            transport,
            ip: ETHERNET_BYTES,
            at: headers.l4_offset,
            end: headers.len,
            is_v4: headers.source().is_ipv4(),
            has_header: headers.fragment != Fragment::Later,
            is_whole: headers.fragment == Fragment::Whole,
            is_partial,
        }
    }

    fn of_quote(quote: &Quote) -> L4 {
        L4 {
            transport: quote.key.transport,
            ip: quote.ip_offset,
            at: quote.l4_offset,
            end: quote.l4_bytes.map_or(usize::MAX, |bytes| quote.l4_offset + bytes),
            is_v4: quote.key.src.address.is_ipv4(),
            has_header: true,
            is_whole: quote.l4_bytes.is_some(),
            is_partial: false,
        }
    }

    fn check_at(&self) -> usize {
        self.at + check_offset(self.transport)
    }

    /// Where the addresses are.
    fn addresses(&self) -> Range<usize> {
        let (from, len) = if self.is_v4 { (12, 8) } else { (8, 32) };
        self.ip + from..self.ip + from + len
    }

    /// Addresses, ports and sums.
    fn fields(&self) -> Vec<Range<usize>> {
        let mut ranges = vec![self.addresses()];
        if self.is_v4 {
            ranges.push(self.ip + 10..self.ip + 12);
        }
        if self.has_header {
            let ports = if self.transport == Transport::Query { 4..6 } else { 0..4 };
            ranges.push(self.at + ports.start..self.at + ports.end);
            let sum = if self.transport == Transport::Sctp { 4 } else { 2 };
            ranges.push(self.check_at()..(self.check_at() + sum).min(self.end));
        }
        ranges
    }

    /// Sums whose two zeros mean the same. UDP's do not.
    fn zeros(&self) -> Vec<usize> {
        let own = matches!(self.transport, Transport::Tcp | Transport::Query)
            || (self.transport == Transport::Udp && self.is_partial);
        let header = self.is_v4.then_some(self.ip + 10);
        header.into_iter().chain((own && self.has_header).then(|| self.check_at())).collect()
    }

    /// By how much the checksum is wrong; the same for all packets without one.
    fn error(&self, frame: &[u8]) -> Option<u32> {
        let l4 = frame.get(self.at..self.end.min(frame.len()))?;
        if !self.has_header {
            return None;
        }
        let addresses = &frame[self.addresses()];
        let check = check_offset(self.transport);
        match self.transport {
            Transport::Sctp => {
                let is_here = self.is_whole && self.end <= frame.len();
                let field = u32::from_le_bytes(l4.get(8..12)?.try_into().ok()?);
                let mut zeroed = l4.to_vec();
                zeroed[8..12].fill(0);
                (is_here && field != 0).then(|| field ^ crc32c(&zeroed))
            }
            Transport::Udp if l4.get(6..8)? == [0, 0] && !self.is_partial => None,
            Transport::Tcp | Transport::Udp if self.is_partial => {
                // The field is the sum of the pseudo-header.
                let field = u16::from_be_bytes(l4.get(check..check + 2)?.try_into().ok()?);
                Some(u32::from(residue(&[addresses, &(!field).to_be_bytes()])))
            }
            Transport::Query if self.is_v4 => Some(u32::from(residue(&[l4]))),
            Transport::Tcp | Transport::Udp | Transport::Query => {
                Some(u32::from(residue(&[addresses, l4])))
            }
        }
    }
}

/// The one's complement sum, of whose zeros there is one here. All parts but the last are even.
fn residue(parts: &[&[u8]]) -> u16 {
    let sum = parts.iter().map(|part| u32::from(sum(part))).sum::<u32>();
    (sum % 0xffff) as u16
}

/// RFC 1071, word by word.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// RFC 9260 appendix A, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}
