//! Which TCP segments may be merged into one packet, and what its headers say: the inverse of
//! [`crate::segment`], by the rules of the kernel's own merging (GRO, net/ipv4/tcp_offload.c).
//!
//! A segment joins when nothing but its place in the stream tells it from what came before: same
//! flow, same hop limit, traffic class, acknowledgement, window and options, and it begins where
//! the other ends. Only ACK and PSH may be set, and a PSH ends the unit: its sender waits for
//! nothing more. Unlike the kernel we need no equal sizes, because nobody cuts the unit again.

use std::ops::Range;

use crate::checksum::{Sum, update};
use crate::offload::{Offload, TCP_CHECKSUM};
use crate::parse::{Addresses, ETHERNET_BYTES, Fragment, Headers, protocol, u16_at};
use crate::port::Partial;
use crate::segment::put;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;
/// TCP flags (RFC 9293 §3.1), in the byte at offset 13.
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// A TCP segment with payload, alone or merged of several, that more may be merged with.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    addresses: Addresses,
    l4_offset: usize,
    header_bytes: usize,
    /// Sequence number of its first byte of payload.
    sequence: u32,
    payload_bytes: usize,
    pushed: bool,
}

impl Unit {
    /// The unit that a packet of `headers.len` bytes is, whose first bytes are `head`. `None` when
    /// it stays as it is: no TCP data, or more in its headers than merging would keep.
    #[must_use]
    pub fn of_packet(head: &[u8], headers: &Headers, offload: &Offload) -> Option<Unit> {
        let untouched = is_plain(headers) && *offload == Offload::default();
        let tcp =
            head.get(headers.l4_offset..).filter(|_| untouched)?.first_chunk::<TCP_BYTES>()?;
        let header_bytes = headers.l4_offset + usize::from(tcp[12] >> 4) * 4;
        let pushed = tcp[13] & PSH != 0;
        let ordinary = tcp[12] & 0x0f == 0 && tcp[13] & !PSH == ACK;
        let whole = header_bytes >= headers.l4_offset + TCP_BYTES
            && header_bytes <= head.len()
            && header_bytes < headers.len;
        (ordinary && whole).then(|| Unit {
            addresses: headers.addresses,
            l4_offset: headers.l4_offset,
            header_bytes,
            sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
            payload_bytes: headers.len - header_bytes,
            pushed,
        })
    }

    /// Bytes before the payload, from the start of the frame.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        self.header_bytes
    }

    /// Where the TCP header begins, from the start of the frame.
    #[must_use]
    pub fn l4_offset(&self) -> usize {
        self.l4_offset
    }

    /// Bytes of the IP packet.
    #[must_use]
    pub fn ip_bytes(&self) -> usize {
        self.header_bytes - ETHERNET_BYTES + self.payload_bytes
    }

    /// Nothing may be merged behind it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.pushed
    }

    /// Whether the sum over the TCP header and the payload, with the pseudo-header, is right.
    #[must_use]
    pub fn verifies(&self, l4: Sum) -> bool {
        let pseudo = self.addresses.pseudo_header(protocol::TCP, self.l4_bytes());
        l4.add_word(pseudo.fold()).checksum() == 0
    }

    /// Whether `next`, whose first bytes are `next_head`, continues this unit.
    #[must_use]
    pub fn continued_by(&self, head: &[u8], next: &Unit, next_head: &[u8]) -> bool {
        let end = self.sequence.wrapping_add(self.payload_bytes as u32);
        !self.pushed
            && next.sequence == end
            && next.header_bytes == self.header_bytes
            && same_headers(head, next_head, self.l4_offset, self.header_bytes)
    }

    /// Takes `next` in, behind what is there.
    pub fn extend(&mut self, next: &Unit) {
        self.payload_bytes += next.payload_bytes;
        self.pushed = next.pushed;
    }

    /// Writes the headers of the whole into `head`, which has those of its first segment. Returns
    /// what is left to do: the TCP checksum, whose field holds the sum of the pseudo-header.
    ///
    /// The sums of all segments were right, so completing the whole's hides no damage.
    pub fn write_headers(&self, head: &mut [u8]) -> Offload {
        let ip_bytes = self.ip_bytes() as u16;
        match self.addresses {
            Addresses::V4 { .. } => {
                let check = word(head, ETHERNET_BYTES + 10);
                let check = update(check, word(head, ETHERNET_BYTES + 2), ip_bytes);
                put(head, ETHERNET_BYTES + 2, ip_bytes.to_be_bytes());
                put(head, ETHERNET_BYTES + 10, check.to_be_bytes());
            }
            Addresses::V6 { .. } => {
                let payload_bytes = ip_bytes - IPV6_BYTES as u16;
                put(head, ETHERNET_BYTES + 4, payload_bytes.to_be_bytes());
            }
        }
        if self.pushed {
            head[self.l4_offset + 13] |= PSH;
        }
        let pseudo = self.addresses.pseudo_header(protocol::TCP, self.l4_bytes());
        let check = pseudo.fold().to_be_bytes();
        put(head, self.l4_offset + usize::from(TCP_CHECKSUM), check);
        let partial = Partial { start: self.l4_offset as u16, offset: TCP_CHECKSUM };
        Offload { partial: Some(partial), ..Offload::default() }
    }

    fn l4_bytes(&self) -> usize {
        self.header_bytes - self.l4_offset + self.payload_bytes
    }
}

/// Whether a packet's TCP header lies right behind a plain IP header. One with options, extension
/// headers or a fragment is rare, and not worth comparing them.
#[must_use]
pub fn is_plain(headers: &Headers) -> bool {
    let ip_bytes = match headers.addresses {
        Addresses::V4 { .. } => IPV4_BYTES,
        Addresses::V6 { .. } => IPV6_BYTES,
    };
    headers.protocol == protocol::TCP
        && headers.fragment == Fragment::Whole
        && headers.l4_offset == ETHERNET_BYTES + ip_bytes
}

/// Whether two packets with TCP headers at `l4_offset` are of one flow: same addresses and ports.
#[must_use]
pub fn same_flow(a: &[u8], b: &[u8], l4_offset: usize) -> bool {
    let addresses = if l4_offset == ETHERNET_BYTES + IPV4_BYTES { 12 } else { 8 };
    same(a, b, ETHERNET_BYTES + addresses..l4_offset + 4)
}

/// Whether nothing else tells two segments of a unit apart: all but lengths, identification,
/// checksums, sequence number and PSH. Their flags were looked at one by one.
fn same_headers(a: &[u8], b: &[u8], l4_offset: usize, header_bytes: usize) -> bool {
    let (ip, tcp) = (ETHERNET_BYTES, l4_offset);
    let same_ip = if l4_offset == ip + IPV4_BYTES {
        // Version, header length and traffic class; flags, TTL and protocol; addresses.
        same(a, b, ip..ip + 2) && same(a, b, ip + 6..ip + 10) && same(a, b, ip + 12..tcp)
    } else {
        // Version, traffic class and flow label; next header, hop limit, addresses.
        same(a, b, ip..ip + 4) && same(a, b, ip + 6..tcp)
    };
    // Ports; acknowledgement and header length; window; urgent pointer and options.
    same_ip
        && same(a, b, tcp..tcp + 4)
        && same(a, b, tcp + 8..tcp + 13)
        && same(a, b, tcp + 14..tcp + 16)
        && same(a, b, tcp + 18..header_bytes)
}

/// Whether two packets have the same bytes there; false where one has none.
fn same(a: &[u8], b: &[u8], range: Range<usize>) -> bool {
    a.get(range.clone()).is_some_and(|bytes| b.get(range) == Some(bytes))
}

/// The big-endian number at `offset` of headers that have been parsed.
fn word(head: &[u8], offset: usize) -> u16 {
    u16_at(head, offset).expect("parsed before")
}

#[cfg(test)]
mod tests;
