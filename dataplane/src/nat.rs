//! Writes other addresses and ports into a packet, and brings every checksum that covers them up
//! to date (RFC 1624) without reading the rest: a packet that came damaged stays damaged.
//!
//! | Field | covers addresses | covers ports |
//! | --- | --- | --- |
//! | IPv4 header | yes | no |
//! | TCP, UDP, complete | yes | yes |
//! | TCP, UDP, partial: the pseudo-header's sum, not complemented | yes | no |
//! | UDP, 0: there is none | – | – |
//! | ICMP | no | the identifier |
//! | ICMPv6 | yes | the identifier |
//! | SCTP: a CRC, see [`crate::crc32c`] | no | yes |
//!
//! An ICMP error carries the packet that it speaks of; see [`translate_error`].

mod quote;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use crate::checksum::{Sum, udp_field};
use crate::conntrack::{FlowKey, Transport};
use crate::crc32c;
use crate::parse::{ETHERNET_BYTES, Fragment, Headers, u16_at};
use crate::port::Partial;

pub use quote::{Quote, quote};

/// Why a packet cannot be translated; it is as it was then, or must be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NatError {
    /// The headers are not where they should be.
    #[error("the packet ends inside of what is to be translated; drop it")]
    TooShort,
    /// An IPv4 packet cannot get IPv6 addresses, nor the reverse.
    #[error("the packet and its new addresses are of different families; drop it")]
    Family,
    /// The checksum of an SCTP packet depends on its length, which no fragment shows.
    #[error("the ports of a fragment of SCTP cannot be translated; drop it")]
    SctpFragment,
    /// An ICMP error that does not show which packet it speaks of.
    #[error("the packet that an ICMP error quotes cannot be read; drop it")]
    Quote,
}

/// Offsets within an IPv4 header, and where an IPv6 header has its addresses.
const IPV4_CHECK: usize = 10;
const IPV4_SRC: usize = 12;
const IPV4_DST: usize = 16;
const IPV6_SRC: usize = 8;
const IPV6_DST: usize = 24;

/// Makes a packet of a flow one that has the key `to`: its addresses, and, but in a later fragment,
/// its ports. `head` is its first frame, `partial` says which checksum is still open.
///
/// # Errors
/// [`NatError::Family`] and [`NatError::SctpFragment`], before anything is changed;
/// [`NatError::TooShort`] if `headers` are not those of the packet.
pub fn translate(
    head: &mut [u8],
    headers: &Headers,
    to: &FlowKey,
    partial: Option<Partial>,
) -> Result<(), NatError> {
    let mut edit = Edit::of(head, headers);
    let l4 = L4 {
        transport: to.transport,
        at: headers.l4_offset,
        is_v4: headers.source().is_ipv4(),
        bytes: match headers.fragment {
            Fragment::Whole => Some(headers.len - headers.l4_offset),
            Fragment::First | Fragment::Later => None,
        },
        is_partial: partial.is_some_and(|partial| is_of(partial, headers, to.transport)),
    };
    let is_later = headers.fragment == Fragment::Later;
    if !is_later && l4.bytes.is_none() && l4.changes_sctp_ports(&edit, to)? {
        return Err(NatError::SctpFragment);
    }
    let addresses = edit.addresses(ETHERNET_BYTES, headers.source(), to)?;
    if is_later {
        // The ports and the checksum over all are in the first fragment.
        return Ok(());
    }
    l4.translate(&mut edit, to, addresses)?;
    Ok(())
}

/// Makes an ICMP error that came as a packet of a flow would, with the key `received` of its
/// direction, one that leaves as such a packet does, with the key `sent` (RFC 5508 §4.2).
///
/// It quotes a packet of the other direction, as that left: with the key `received.inverse()`. Its
/// receiver knows that packet as he sent it: with `sent.inverse()`. The destination of the error is
/// an end of the flow. Its source is the other end, which is translated too, or a router in
/// between, which is not.
///
/// What is quoted keeps right checksums as far as they are quoted. The checksum of the error is
/// updated and need not be verified: a wrong one stays wrong, and its receiver drops it.
///
/// # Errors
/// [`NatError::Family`] before anything is changed; [`NatError::TooShort`] if `headers` and `quote`
/// are not those of the packet.
pub fn translate_error(
    head: &mut [u8],
    headers: &Headers,
    quote: &Quote,
    (received, sent): (&FlowKey, &FlowKey),
    partial: Option<Partial>,
) -> Result<(), NatError> {
    let mut edit = Edit::of(head, headers);
    let quoted_source = quote.key.src.address;
    let inner = sent.inverse();
    let mut outer = *sent;
    if headers.source() != received.src.address {
        outer.src.address = headers.source();
    }
    if headers.destination() != received.dst.address {
        outer.dst.address = headers.destination();
    }

    let addresses = edit.addresses(ETHERNET_BYTES, headers.source(), &outer)?;
    // All that changes inside of the error's payload, checksums of the quoted packet included.
    let quoted = edit.addresses(quote.ip_offset, quoted_source, &inner)?;
    let l4 = L4 {
        transport: quote.key.transport,
        at: quote.l4_offset,
        is_v4: quoted_source.is_ipv4(),
        bytes: quote.l4_bytes,
        is_partial: false,
    };
    let l4_changed = l4.translate(&mut edit, &inner, quoted)?;
    let payload = Change {
        pseudo: Sum::default(),
        rest: joined(joined(quoted.pseudo, quoted.rest), l4_changed),
    };
    let error = L4 {
        transport: Transport::Query,
        at: headers.l4_offset,
        is_v4: headers.source().is_ipv4(),
        bytes: Some(headers.len - headers.l4_offset),
        is_partial: partial.is_some_and(|partial| is_of(partial, headers, Transport::Query)),
    };
    let pseudo = if error.is_v4 { Sum::default() } else { addresses.pseudo };
    error.update_check(&mut edit, Change { pseudo, ..payload })?;
    Ok(())
}

/// Whether `partial` is the checksum of the packet's own L4 header, and not one of a packet inside.
fn is_of(partial: Partial, headers: &Headers, transport: Transport) -> bool {
    usize::from(partial.start) == headers.l4_offset
        && usize::from(partial.offset) == check_offset(transport)
}

/// Where the checksum is within the L4 header.
fn check_offset(transport: Transport) -> usize {
    match transport {
        Transport::Tcp => 16,
        Transport::Udp => 6,
        Transport::Query => 2,
        Transport::Sctp => 8,
    }
}

/// What a change of bytes adds to a sum over them: new words and the complements of the old ones
/// (RFC 1624 §3, eq. 3, for many words).
#[derive(Clone, Copy, Default)]
struct Change {
    /// By what a pseudo-header has: addresses.
    pseudo: Sum,
    /// By other bytes.
    rest: Sum,
}

fn joined(a: Sum, b: Sum) -> Sum {
    a.add_word(b.fold())
}

/// The L4 header of a packet, or of a quoted one that may be cut off.
struct L4 {
    transport: Transport,
    /// Offset in the frame.
    at: usize,
    is_v4: bool,
    /// Bytes of header and payload of the whole packet, if that is known.
    bytes: Option<usize>,
    /// The checksum is still open.
    is_partial: bool,
}

impl L4 {
    /// Writes the ports of `to`, and updates the checksum for them and for the change of
    /// `addresses`. Returns what the change of this header adds to a sum over it.
    fn translate(
        &self,
        edit: &mut Edit<'_>,
        to: &FlowKey,
        addresses: Change,
    ) -> Result<Sum, NatError> {
        let mut ports = Sum::default();
        let before = edit.word(self.at)?;
        match self.transport {
            Transport::Query => {
                // One of both is the identifier, the other 0.
                let id = to.src.port | to.dst.port;
                edit.put(self.at + 4, &id.to_be_bytes(), &mut ports)?;
            }
            Transport::Tcp | Transport::Udp | Transport::Sctp => {
                edit.put(self.at, &to.src.port.to_be_bytes(), &mut ports)?;
                edit.put(self.at + 2, &to.dst.port.to_be_bytes(), &mut ports)?;
            }
        }
        let check = match self.transport {
            Transport::Sctp => self.update_crc(edit, before)?,
            Transport::Query if self.is_v4 => {
                self.update_check(edit, Change { pseudo: Sum::default(), rest: ports })?
            }
            Transport::Query | Transport::Tcp | Transport::Udp => {
                self.update_check(edit, Change { pseudo: addresses.pseudo, rest: ports })?
            }
        };
        Ok(joined(ports, check))
    }

    /// Updates an Internet checksum, unless there is none or it is cut off. Returns what that adds
    /// to a sum over it.
    fn update_check(&self, edit: &mut Edit<'_>, change: Change) -> Result<Sum, NatError> {
        let at = self.at + check_offset(self.transport);
        let mut changed = Sum::default();
        let Some(old) = u16_at(edit.bytes, at).filter(|_| self.has_room(2)) else {
            return Ok(changed);
        };
        let new = match (self.is_partial, self.transport) {
            (true, _) => change.pseudo.add_word(old).fold(),
            (false, Transport::Udp) if old == 0 => 0,
            (false, transport) => {
                let check = joined(change.pseudo, change.rest).add_word(!old).checksum();
                if transport == Transport::Udp { udp_field(check) } else { check }
            }
        };
        edit.put(at, &new.to_be_bytes(), &mut changed)?;
        Ok(changed)
    }

    /// Updates the CRC of SCTP after a change of the ports, which were `before`. A field of 0 says
    /// that there is none (RFC 9653 §5.1), and stays.
    fn update_crc(&self, edit: &mut Edit<'_>, before: [u8; 4]) -> Result<Sum, NatError> {
        let mut changed = Sum::default();
        let after = edit.word(self.at)?;
        let at = self.at + check_offset(Transport::Sctp);
        let (Ok(check), Some(bytes)) = (edit.word(at), self.bytes) else { return Ok(changed) };
        if before == after || check == [0; 4] || self.is_partial || !self.has_room(4) {
            return Ok(changed);
        }
        let check = u32::from_le_bytes(check);
        let bytes_after = bytes.saturating_sub(before.len());
        let new = crc32c::update(check, before, after, bytes_after);
        edit.put(at, &new.to_le_bytes(), &mut changed)?;
        Ok(changed)
    }

    /// Whether the packet reaches to the end of its checksum of `len` bytes: what follows a shorter
    /// one in the frame is something else.
    fn has_room(&self, len: usize) -> bool {
        self.bytes.is_none_or(|bytes| bytes >= check_offset(self.transport) + len)
    }

    fn changes_sctp_ports(&self, edit: &Edit<'_>, to: &FlowKey) -> Result<bool, NatError> {
        let [a, b] = [to.src.port.to_be_bytes(), to.dst.port.to_be_bytes()];
        let ports = [a[0], a[1], b[0], b[1]];
        Ok(self.transport == Transport::Sctp && edit.word(self.at)? != ports)
    }
}

/// The bytes of a packet, while they are changed.
struct Edit<'a> {
    bytes: &'a mut [u8],
}

impl<'a> Edit<'a> {
    /// Without what follows the packet in its frame: Ethernet padding has no fields.
    fn of(head: &'a mut [u8], headers: &Headers) -> Edit<'a> {
        let len = headers.len.min(head.len());
        Edit { bytes: head.split_at_mut(len).0 }
    }

    /// Writes the addresses of `to` into the IP header at `ip`, whose source is `source` now, and
    /// updates the checksum that IPv4 has there. The rest of the change is that checksum.
    fn addresses(&mut self, ip: usize, source: IpAddr, to: &FlowKey) -> Result<Change, NatError> {
        let mut change = Change::default();
        match (source, to.src.address, to.dst.address) {
            (IpAddr::V4(_), IpAddr::V4(src), IpAddr::V4(dst)) => {
                self.put(ip + IPV4_SRC, &src.octets(), &mut change.pseudo)?;
                self.put(ip + IPV4_DST, &dst.octets(), &mut change.pseudo)?;
                let at = ip + IPV4_CHECK;
                let old = u16_at(self.bytes, at).ok_or(NatError::TooShort)?;
                let new = change.pseudo.add_word(!old).checksum();
                self.put(at, &new.to_be_bytes(), &mut change.rest)?;
            }
            (IpAddr::V6(_), IpAddr::V6(src), IpAddr::V6(dst)) => {
                self.put(ip + IPV6_SRC, &src.octets(), &mut change.pseudo)?;
                self.put(ip + IPV6_DST, &dst.octets(), &mut change.pseudo)?;
            }
            _ => return Err(NatError::Family),
        }
        Ok(change)
    }

    /// Writes `new`, whole words of what a checksum covers, and adds to `change` what that does.
    fn put(&mut self, at: usize, new: &[u8], change: &mut Sum) -> Result<(), NatError> {
        let old = self.bytes.get_mut(at..at + new.len()).ok_or(NatError::TooShort)?;
        let (old_words, new_words) = (old.as_chunks::<2>().0, new.as_chunks::<2>().0);
        for (old, new) in old_words.iter().zip(new_words) {
            let (old, new) = (u16::from_be_bytes(*old), u16::from_be_bytes(*new));
            *change = change.add_word(!old).add_word(new);
        }
        old.copy_from_slice(new);
        Ok(())
    }

    fn word(&self, at: usize) -> Result<[u8; 4], NatError> {
        let word = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        word.copied().ok_or(NatError::TooShort)
    }
}
