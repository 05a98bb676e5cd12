//! What a sender's kernel left to do in a packet: complete a checksum, cut it into segments.
//!
//! A BPF program at the sender's interface writes it into the source MAC, the *marker*:
//! `02 · csum_start · csum_offset · flags · gso_size` (two bytes, big endian). Assigned MACs never
//! start with 02. It is an untrusted hint: whatever a pod writes there may only harm its own
//! packets. Without the marker the checksum state is inferred.

use crate::drop::DropReason;
use crate::parse::{ETHERNET_BYTES, Fragment, Headers, protocol, u16_at};
use crate::port::{Mac, Partial};

/// First byte of a marker.
pub const MARKER: u8 = 0x02;

const FLAG_PARTIAL: u8 = 1 << 0;
const FLAG_ENCAPSULATED: u8 = 1 << 1;

/// Offset of the checksum field in a TCP header.
pub(crate) const TCP_CHECKSUM: u16 = 16;
/// Offset of the checksum field in a UDP header.
const UDP_CHECKSUM: u16 = 6;

/// Segments below this size are an attack when there are many: the smallest MSS that every host
/// accepts (RFC 9293 §3.7.1).
const SEGMENT_BYTES_MIN: usize = 536;
/// Many: one super-packet of 64 KiB has 45 segments at the usual MSS.
const SMALL_SEGMENTS_MAX: usize = 64;

/// What is known of the offload state of the packets that come in by a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hints {
    /// Their sender's kernel may have marked them; where it has not, the state is inferred.
    Marker,
    /// Nobody says, and something may be left to do: a veth to another node's switch. A source MAC
    /// that looks like a marker is none.
    Inferred,
    /// Nothing is left to do: they come off a wire. To take one for partial would hide damage.
    Complete,
}

/// The offload state of one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum to complete.
    pub partial: Option<Partial>,
    /// Bytes of payload per segment; 0 when the packet is not to be cut, or nobody said.
    pub gso_size: u16,
    /// The checksum and the segments are those of a packet inside a tunnel.
    pub encapsulated: bool,
    /// The sender's kernel has said all this.
    pub marked: bool,
}

/// What a packet is on a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnWire {
    /// Packets.
    pub packets: usize,
    /// Their bytes, each with its own headers.
    pub bytes: usize,
    /// Bytes of the largest one.
    pub largest: usize,
    /// Payload bytes of every one but the last; 0 when the packet is not to be cut.
    pub segment_size: u16,
}

/// Reads the marker, or infers what it would say.
pub fn of_packet(head: &[u8], headers: &Headers, hints: Hints) -> Result<Offload, DropReason> {
    match hints {
        Hints::Marker if headers.src_mac[0] == MARKER => {
            from_marker(headers.src_mac, head.len(), headers)
        }
        Hints::Marker | Hints::Inferred => Ok(infer(head, headers)),
        Hints::Complete => Ok(Offload::default()),
    }
}

fn from_marker(mac: Mac, head_len: usize, headers: &Headers) -> Result<Offload, DropReason> {
    let flags = mac[3];
    let partial = (flags & FLAG_PARTIAL != 0)
        .then_some(Partial { start: u16::from(mac[1]), offset: u16::from(mac[2]) });
    if let Some(partial) = partial {
        let start = usize::from(partial.start);
        let field = start + usize::from(partial.offset);
        // Before the L4 header lie the addresses, in its first bytes the ports, or type and code of
        // ICMP. All of that was checked: a checksum completed there would write something else
        // over it afterwards.
        let checked = headers.l4_offset + if headers.icmp_type.is_some() { 2 } else { 4 };
        let outside = start < headers.l4_offset || field < checked;
        if outside || field + 2 > head_len.min(headers.len) {
            return Err(DropReason::BadMarker);
        }
    }
    let gso_size = u16::from_be_bytes([mac[4], mac[5]]);
    if gso_size != 0 && partial.is_none() {
        // A kernel cuts only what it also sums.
        return Err(DropReason::BadMarker);
    }
    let encapsulated = flags & FLAG_ENCAPSULATED != 0;
    Ok(Offload { partial, gso_size, encapsulated, marked: true })
}

/// A TCP or UDP checksum field that holds the pseudo-header sum is partial. A complete checksum
/// equals it once in 65536 packets, and is then completed to the same value again.
fn infer(head: &[u8], headers: &Headers) -> Offload {
    let offset = match headers.protocol {
        protocol::TCP => TCP_CHECKSUM,
        protocol::UDP => UDP_CHECKSUM,
        _ => return Offload::default(),
    };
    if headers.fragment != Fragment::Whole {
        return Offload::default();
    }
    let Some(field) = u16_at(head, headers.l4_offset + usize::from(offset)) else {
        return Offload::default();
    };
    if headers.protocol == protocol::UDP && field == 0 {
        return Offload::default();
    }
    let l4_bytes = headers.len - headers.l4_offset;
    let sum = headers.addresses.pseudo_header(headers.protocol, l4_bytes);
    let partial =
        (field == sum.fold()).then_some(Partial { start: headers.l4_offset as u16, offset });
    Offload { partial, ..Offload::default() }
}

impl Offload {
    /// Bytes of all headers that each segment repeats. For an encapsulated packet these are the
    /// outer and the inner ones: the checksum to complete is the innermost.
    #[must_use]
    pub fn header_len(&self, head: &[u8], headers: &Headers) -> usize {
        let (start, tcp) = match self.partial {
            Some(Partial { start, offset: TCP_CHECKSUM }) => (usize::from(start), true),
            Some(Partial { start, offset: UDP_CHECKSUM }) => (usize::from(start), false),
            _ => (headers.l4_offset, headers.protocol == protocol::TCP),
        };
        let l4_len = if tcp {
            head.get(start + 12).map_or(20, |byte| usize::from(byte >> 4) * 4)
        } else {
            8
        };
        (start + l4_len).min(headers.len)
    }

    /// What the packet is on a wire whose route takes IP packets of `mtu` bytes.
    pub fn on_wire(
        &self,
        head: &[u8],
        headers: &Headers,
        mtu: usize,
    ) -> Result<OnWire, DropReason> {
        let Some(size) = self.segment_size(head, headers, mtu) else {
            let bytes = headers.len;
            return Ok(OnWire { packets: 1, bytes, largest: bytes, segment_size: 0 });
        };
        let segment_size = size;
        let size = usize::from(size);
        let header_len = self.header_len(head, headers);
        let payload = headers.len - header_len;
        let packets = payload.div_ceil(size).max(1);
        if self.gso_size != 0 && size < SEGMENT_BYTES_MIN && packets > SMALL_SEGMENTS_MAX {
            return Err(DropReason::TinySegments);
        }
        Ok(OnWire {
            packets,
            bytes: headers.len + (packets - 1) * header_len,
            largest: header_len + size.min(payload),
            segment_size,
        })
    }

    /// Payload bytes per segment if the packet is to be cut: as marked, or, for TCP that nobody
    /// marked and that is longer than the route takes, what the route takes.
    fn segment_size(&self, head: &[u8], headers: &Headers, mtu: usize) -> Option<u16> {
        if self.gso_size != 0 {
            return Some(self.gso_size);
        }
        let unmarked = self.partial.is_some()
            && headers.protocol == protocol::TCP
            && headers.ip_len() > mtu
            && !self.marked;
        let header_len = self.header_len(head, headers) - ETHERNET_BYTES;
        let room = mtu.checked_sub(header_len).filter(|&room| unmarked && room > 0)?;
        u16::try_from(room).ok()
    }
}

#[cfg(test)]
mod tests;
