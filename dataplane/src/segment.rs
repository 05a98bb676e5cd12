//! Cuts a TCP or UDP super-packet into the packets that its sender meant, as the kernel's own
//! segmentation would (GSO for TCP, USO for UDP).
//!
//! A pod's kernel hands over up to 64 kB as one packet. Inside the node it stays one; before a
//! wire, or a port that cannot take it, [`Segmenter`] writes the header of each segment and says
//! which part of the payload follows it. It never sees the payload, which lies in several frames.
//!
//! Two things a packet does not tell, and what follows:
//! - The kernel keeps the IPv4 identification of all segments equal if it once merged them from
//!   packets that had it equal (`SKB_GSO_TCP_FIXEDID`). We always count up, as it does for what a
//!   socket sends, with or without Don't Fragment; the identification of a packet that is never
//!   fragmented means nothing (RFC 6864 §4.1).
//! - Under Accurate ECN the CWR flag is part of a counter and belongs in every segment
//!   (`SKB_GSO_TCP_ACCECN`). We treat it as RFC 3168 does: it is set on the first segment only.

use crate::checksum::Sum;

#[cfg(test)]
mod tests;

/// The longest header that can be segmented, from the start of the packet to the end of the L4
/// header, in bytes. Ethernet with two VLAN tags, the longest IPv4 and the longest TCP header are
/// 142; the rest is room for IPv6 extension headers.
pub const HEADER_BYTES_MAX: usize = 256;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// Offsets of the checksum field in the L4 header.
const TCP_CHECK: usize = 16;
const UDP_CHECK: usize = 6;
/// TCP flags (RFC 9293 §3.1), in the byte at offset 13.
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A packet to cut. Offsets count from the start of `header`, which is the start of the packet.
#[derive(Clone, Copy, Debug)]
pub struct SuperPacket<'a> {
    /// The packet's first bytes: at least up to the end of the L4 header, of which the segments'
    /// headers are made. What follows is ignored.
    pub header: &'a [u8],
    /// Where the IPv4 or IPv6 header begins.
    pub l3_offset: usize,
    /// Where the TCP or UDP header begins.
    pub l4_offset: usize,
    /// Payload bytes of every segment but the last, at least 1.
    pub gso_size: u16,
    /// Bytes after the L4 header, without Ethernet trailer.
    pub payload_bytes: usize,
}

/// One packet to send: its header as written by [`Segmenter::next`], then a part of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Bytes written to the output, the same for all segments of a packet.
    pub header_bytes: usize,
    /// Where this segment's part begins, counted from the first payload byte.
    pub payload_offset: usize,
    /// Length of this segment's part.
    pub payload_bytes: usize,
}

/// Why a packet cannot be segmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The segment size is 0.
    #[error("a segment size of 0 cuts nothing; drop the packet, its size hint is false")]
    ZeroSize,
    /// The L4 header does not end inside the bytes given.
    #[error("the headers of the super-packet are cut off; give its bytes up to the L4 payload")]
    TooShort,
    /// The headers are longer than [`HEADER_BYTES_MAX`].
    #[error("the super-packet has more than {HEADER_BYTES_MAX} bytes of headers; drop it")]
    HeaderTooLong,
    /// No IPv4 or IPv6 header at the L3 offset, or its headers do not lead to the L4 offset over
    /// headers that may be copied (hop-by-hop, destination options, finished routing).
    #[error("the IP headers of the super-packet do not lead to its L4 offset; drop it")]
    Layout,
    /// It is an IPv4 fragment already.
    #[error("the super-packet is an IPv4 fragment, which has no payload to cut; drop it")]
    Fragment,
    /// Neither TCP nor UDP.
    #[error("protocol {0} cannot be segmented, only TCP and UDP; drop the packet")]
    Protocol(u8),
    /// A length field does not agree with the payload length given.
    #[error("a length field of the super-packet says {field} bytes where {actual} are; drop it")]
    Length {
        /// What the IP or UDP length field says.
        field: usize,
        /// What the headers and payload make together.
        actual: usize,
    },
    /// The output does not hold a segment's header.
    #[error("the output for a segment's header has {have} bytes and needs {need}")]
    NoRoom {
        /// Bytes of the header.
        need: usize,
        /// Bytes of the output.
        have: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum Network {
    V4 {
        first_id: u16,
        /// Sum of the header without its length, identification and checksum.
        header_sum: Sum,
    },
    V6,
}

#[derive(Clone, Copy, Debug)]
enum Transport {
    Tcp { first_sequence: u32 },
    Udp,
}

/// Writes the headers of a super-packet's segments, one after another.
///
/// It holds a copy of the header, so the packet's frame is free to be borrowed meanwhile.
#[derive(Clone, Debug)]
pub struct Segmenter {
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: usize,
    l3_offset: usize,
    l4_offset: usize,
    network: Network,
    transport: Transport,
    /// Sum of the pseudo-header without its length; `None` for UDP without checksum.
    pseudo_header: Option<Sum>,
    segment_bytes: usize,
    payload_bytes: usize,
    /// Payload given out so far.
    payload_offset: usize,
    /// Segments given out so far.
    segments_made: usize,
}

impl Segmenter {
    /// Checks the headers of a super-packet whose IP header is known to be valid.
    ///
    /// The value of its L4 checksum does not matter, partial or complete, except that a UDP
    /// checksum of 0 (none) stays 0. A payload that fits one segment gives one; a payload of 0
    /// bytes also.
    ///
    /// # Errors
    /// See [`SegmentError`]. How many segments are too many is the caller's to say:
    /// [`Segmenter::segments`].
    pub fn new(packet: SuperPacket<'_>) -> Result<Segmenter, SegmentError> {
        let SuperPacket { header, l3_offset, l4_offset, gso_size, payload_bytes } = packet;
        if gso_size == 0 {
            return Err(SegmentError::ZeroSize);
        }
        let l3 = header.get(l3_offset..).ok_or(SegmentError::TooShort)?;
        let l4_from_l3 = l4_offset.checked_sub(l3_offset).ok_or(SegmentError::Layout)?;
        let ip = match l3.first().ok_or(SegmentError::TooShort)? >> 4 {
            4 => ip_v4(l3, l4_from_l3)?,
            6 => ip_v6(l3, l4_from_l3)?,
            _ => return Err(SegmentError::Layout),
        };
        let l4 = l3.get(l4_from_l3..).ok_or(SegmentError::TooShort)?;
        let l4 = l4_header(ip.protocol, l4, payload_bytes)?;

        let header_bytes = l4_offset + l4.bytes;
        let source = header.get(..header_bytes).ok_or(SegmentError::TooShort)?;
        let l3_bytes = l4_from_l3.saturating_add(l4.bytes).saturating_add(payload_bytes);
        if ip.total_bytes != l3_bytes {
            return Err(SegmentError::Length { field: ip.total_bytes, actual: l3_bytes });
        }
        let mut copy = [0; HEADER_BYTES_MAX];
        copy.get_mut(..header_bytes).ok_or(SegmentError::HeaderTooLong)?.copy_from_slice(source);
        Ok(Segmenter {
            header: copy,
            header_bytes,
            l3_offset,
            l4_offset,
            network: ip.network,
            transport: l4.transport,
            pseudo_header: l4.has_checksum.then_some(ip.pseudo_header),
            segment_bytes: usize::from(gso_size),
            payload_bytes,
            payload_offset: 0,
            segments_made: 0,
        })
    }

    /// How many segments there are in all: at least 1, at most 65,515 (1 byte each).
    #[must_use]
    pub fn segments(&self) -> usize {
        self.payload_bytes.div_ceil(self.segment_bytes).max(1)
    }

    /// The length of every segment's header in bytes, from the start of the packet.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        self.header_bytes
    }

    /// Writes the next segment's header to the start of `out`, its L4 checksum *partial*: the
    /// port completes it, or the worker for a port that cannot. A UDP checksum of 0 stays 0. `None`
    /// after the last.
    ///
    /// Of the header of the super-packet change: the lengths; the IPv4 identification, one more
    /// with each segment, and header checksum (Linux `inet_gso_segment`); the TCP sequence number;
    /// FIN and PSH, which only the last segment keeps, and CWR, which only the first keeps
    /// (Linux `tcp_gso_segment`, RFC 3168 §6.1.2).
    ///
    /// # Errors
    /// [`SegmentError::NoRoom`] if `out` is shorter than [`Segmenter::header_bytes`]; the segment
    /// is then still to come.
    pub fn next(&mut self, out: &mut [u8]) -> Result<Option<Segment>, SegmentError> {
        if self.segments_made == self.segments() {
            return Ok(None);
        }
        let out = self.room(out)?;
        out.copy_from_slice(&self.header[..self.header_bytes]);
        let left = self.payload_bytes - self.payload_offset;
        let segment = Segment {
            header_bytes: self.header_bytes,
            payload_offset: self.payload_offset,
            payload_bytes: left.min(self.segment_bytes),
        };
        // No segment is longer than the super-packet, whose length fits its 16-bit field (IPv6:
        // its payload's length).
        let l3_bytes = self.header_bytes - self.l3_offset + segment.payload_bytes;
        self.write_network(&mut out[self.l3_offset..], l3_bytes);
        let l4_bytes = (self.header_bytes - self.l4_offset + segment.payload_bytes) as u16;
        self.write_transport(&mut out[self.l4_offset..], l4_bytes, left == segment.payload_bytes);
        self.payload_offset += segment.payload_bytes;
        self.segments_made += 1;
        Ok(Some(segment))
    }

    fn room<'o>(&self, out: &'o mut [u8]) -> Result<&'o mut [u8], SegmentError> {
        let (need, have) = (self.header_bytes, out.len());
        out.get_mut(..need).ok_or(SegmentError::NoRoom { need, have })
    }

    fn write_network(&self, ip: &mut [u8], l3_bytes: usize) {
        match self.network {
            Network::V4 { first_id, header_sum } => {
                let length = l3_bytes as u16;
                // Wraps after 65,535, as the field does.
                let id = first_id.wrapping_add(self.segments_made as u16);
                let check = header_sum.add_word(length).add_word(id).checksum();
                put(ip, 2, length.to_be_bytes());
                put(ip, 4, id.to_be_bytes());
                put(ip, 10, check.to_be_bytes());
            }
            Network::V6 => put(ip, 4, ((l3_bytes - IPV6_BYTES) as u16).to_be_bytes()),
        }
    }

    fn write_transport(&self, l4: &mut [u8], l4_bytes: u16, last: bool) {
        match self.transport {
            Transport::Tcp { first_sequence } => {
                // At most 64 kB into the packet: fits.
                let sequence = first_sequence.wrapping_add(self.payload_offset as u32);
                put(l4, 4, sequence.to_be_bytes());
                let mut flags = l4[13];
                if !last {
                    flags &= !(FIN | PSH);
                }
                if self.segments_made > 0 {
                    flags &= !CWR;
                }
                l4[13] = flags;
            }
            Transport::Udp => put(l4, 4, l4_bytes.to_be_bytes()),
        }
        if let Some(pseudo_header) = self.pseudo_header {
            let partial = pseudo_header.add_word(l4_bytes).fold();
            put(l4, self.transport.checksum_offset(), partial.to_be_bytes());
        }
    }
}

impl Transport {
    fn checksum_offset(self) -> usize {
        match self {
            Transport::Tcp { .. } => TCP_CHECK,
            Transport::Udp => UDP_CHECK,
        }
    }
}

/// What the IP header says.
struct Ip {
    network: Network,
    protocol: u8,
    pseudo_header: Sum,
    /// Length of the packet from the IP header on, by its length field.
    total_bytes: usize,
}

fn ip_v4(l3: &[u8], l4_from_l3: usize) -> Result<Ip, SegmentError> {
    let fixed = l3.first_chunk::<IPV4_BYTES>().ok_or(SegmentError::TooShort)?;
    let header_bytes = usize::from(fixed[0] & 0x0f) * 4;
    if header_bytes < IPV4_BYTES || header_bytes != l4_from_l3 {
        return Err(SegmentError::Layout);
    }
    // More Fragments or an offset.
    if u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0 {
        return Err(SegmentError::Fragment);
    }
    let options = l3.get(IPV4_BYTES..header_bytes).ok_or(SegmentError::TooShort)?;
    let header_sum = Sum::default()
        .add_bytes(&fixed[..2])
        .add_bytes(&fixed[6..10])
        .add_bytes(&fixed[12..])
        .add_bytes(options);
    let first_id = u16::from_be_bytes([fixed[4], fixed[5]]);
    Ok(Ip {
        network: Network::V4 { first_id, header_sum },
        protocol: fixed[9],
        pseudo_header: Sum::default().add_bytes(&fixed[12..]).add_word(u16::from(fixed[9])),
        total_bytes: usize::from(u16::from_be_bytes([fixed[2], fixed[3]])),
    })
}

fn ip_v6(l3: &[u8], l4_from_l3: usize) -> Result<Ip, SegmentError> {
    let fixed = l3.first_chunk::<IPV6_BYTES>().ok_or(SegmentError::TooShort)?;
    let mut protocol = fixed[6];
    let mut offset = IPV6_BYTES;
    // Ends: every header is at least 8 bytes long and the L4 offset is the bound.
    while offset < l4_from_l3 {
        let &[next, units, _, segments_left] =
            l3.get(offset..).and_then(<[u8]>::first_chunk).ok_or(SegmentError::TooShort)?;
        // The pseudo-header has the final destination, which the fixed header has only once the
        // route has been walked (RFC 8200 §8.1).
        let routing_done = protocol == 43 && segments_left == 0;
        // Hop-by-hop and destination options (RFC 8200 §4.3, §4.6). An authentication header
        // covers the payload, a fragment has only a part of it.
        if !routing_done && !matches!(protocol, 0 | 60) {
            return Err(SegmentError::Layout);
        }
        protocol = next;
        offset += 8 + 8 * usize::from(units);
    }
    if offset != l4_from_l3 {
        return Err(SegmentError::Layout);
    }
    Ok(Ip {
        network: Network::V6,
        protocol,
        pseudo_header: Sum::default().add_bytes(&fixed[8..]).add_word(u16::from(protocol)),
        total_bytes: IPV6_BYTES + usize::from(u16::from_be_bytes([fixed[4], fixed[5]])),
    })
}

/// What the TCP or UDP header says.
struct L4 {
    transport: Transport,
    /// Length of the header.
    bytes: usize,
    has_checksum: bool,
}

fn l4_header(protocol: u8, l4: &[u8], payload_bytes: usize) -> Result<L4, SegmentError> {
    match protocol {
        PROTOCOL_TCP => {
            let fixed = l4.first_chunk::<TCP_BYTES>().ok_or(SegmentError::TooShort)?;
            let bytes = usize::from(fixed[12] >> 4) * 4;
            if bytes < TCP_BYTES {
                return Err(SegmentError::Layout);
            }
            let first_sequence = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
            Ok(L4 { transport: Transport::Tcp { first_sequence }, bytes, has_checksum: true })
        }
        PROTOCOL_UDP => {
            let fixed = l4.first_chunk::<UDP_BYTES>().ok_or(SegmentError::TooShort)?;
            let field = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
            let actual = payload_bytes.saturating_add(UDP_BYTES);
            if field != actual {
                return Err(SegmentError::Length { field, actual });
            }
            // A partial sum is never 0, because the protocol number is in it: 0 is "none"
            // (RFC 768; RFC 6935 for IPv6).
            let has_checksum = fixed[6..] != [0, 0];
            Ok(L4 { transport: Transport::Udp, bytes: UDP_BYTES, has_checksum })
        }
        other => Err(SegmentError::Protocol(other)),
    }
}

/// Writes a field. `offset` is inside `bytes`: the caller has checked the layout.
pub(crate) fn put<const BYTES: usize>(bytes: &mut [u8], offset: usize, value: [u8; BYTES]) {
    bytes[offset..offset + BYTES].copy_from_slice(&value);
}
