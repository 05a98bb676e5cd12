//! Cuts an IPv4 packet that is longer than the MTU of its way into fragments, as a router does
//! (RFC 791 §3.2, RFC 1812 §4.2.2.7), byte for byte as the kernel's router cuts it.
//!
//! A pod may send packets that are longer than an uplink takes, and leave Don't Fragment clear.
//! [`Fragmenter`] writes the header of each fragment and says which part of the payload follows
//! it. It never sees the payload, which lies in several frames.
//!
//! What a fragment carries is what the first sender wrote: a checksum of L4 that is still partial
//! must be completed over the whole packet before, because no fragment has all that it covers.

use crate::checksum::Sum;

#[cfg(test)]
mod tests;

/// The smallest MTU that fragments fit: the longest IPv4 header and 8 bytes (RFC 791 §3.2).
pub const MTU_MIN: u32 = 68;

/// The longest header of a fragment, from the start of the packet, in bytes: Ethernet with two
/// VLAN tags and the longest IPv4 header are 82; the rest rounds it to half a cache line.
pub const FRAGMENT_HEADER_BYTES_MAX: usize = 96;

const IPV4_BYTES: usize = 20;
/// The field that counts the length of an IPv4 packet has 16 bits.
const PACKET_BYTES_MAX: usize = 65_535;
/// Flags and offset, the field at byte 6 of the header (RFC 791 §3.1).
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;
/// What the offset counts.
const OFFSET_UNIT_BYTES: usize = 8;
/// Options (RFC 791 §3.1): the two that have no length byte, and the bit of those that every
/// fragment carries.
const OPTION_END: u8 = 0;
const OPTION_NO_OPERATION: u8 = 1;
const OPTION_COPIED: u8 = 0x80;

/// A packet to cut. Offsets count from the start of `header`, which is the start of the packet.
#[derive(Clone, Copy, Debug)]
pub struct LongPacket<'a> {
    /// The packet's first bytes: at least up to the end of the IPv4 header, of which the
    /// fragments' headers are made. What follows is ignored.
    pub header: &'a [u8],
    /// Where the IPv4 header begins.
    pub l3_offset: usize,
    /// Bytes after the IPv4 header, without Ethernet trailer.
    pub payload_bytes: usize,
    /// How long a fragment may be from its IPv4 header on, in bytes; at least [`MTU_MIN`].
    pub mtu: u32,
}

/// One packet to send: its header as written by [`Fragmenter::next`], then a part of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Bytes written to the output, the same for all fragments of a packet.
    pub header_bytes: usize,
    /// Where this fragment's part begins, counted from the first byte after the IPv4 header of
    /// the packet that is cut.
    pub payload_offset: usize,
    /// Length of this fragment's part.
    pub payload_bytes: usize,
}

/// Why a packet cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// The MTU is below [`MTU_MIN`].
    #[error("an MTU of {0} bytes is less than the {MTU_MIN} that IPv4 needs; raise the link's")]
    MtuTooSmall(u32),
    /// Its sender forbids it; the answer is ICMP 3/4 (RFC 1812 §5.2.7.1).
    #[error("the packet must not be fragmented; tell its sender the MTU, and drop it")]
    DontFragment,
    /// The IPv4 header does not end inside the bytes given.
    #[error("the IPv4 header of the packet is cut off; give its bytes up to the payload")]
    TooShort,
    /// The headers are longer than [`FRAGMENT_HEADER_BYTES_MAX`].
    #[error("the packet has more than {FRAGMENT_HEADER_BYTES_MAX} bytes of headers; drop it")]
    HeaderTooLong,
    /// No IPv4 header at the L3 offset.
    #[error("the packet has no IPv4 header at its L3 offset; drop it")]
    NotIpv4,
    /// An option has no length, one below 2, or one that leads out of the header.
    #[error("an IPv4 option of the packet has a false length; drop it")]
    Options,
    /// The length field does not agree with the payload length given.
    #[error("the length field of the packet says {field} bytes where {actual} are; drop it")]
    Length {
        /// What the field says.
        field: usize,
        /// What header and payload make together.
        actual: usize,
    },
    /// It is a fragment of a packet that would be longer than IPv4 allows.
    #[error("the packet is a fragment that ends behind {PACKET_BYTES_MAX} bytes; drop it")]
    PastTheEnd,
    /// It is a fragment, not the last of its packet, whose length the next one's offset cannot
    /// continue.
    #[error("the packet is a fragment in the middle with a length that 8 does not divide; drop it")]
    Unaligned,
    /// The output does not hold a fragment's header.
    #[error("the output for a fragment's header has {have} bytes and needs {need}")]
    NoRoom {
        /// Bytes of the header.
        need: usize,
        /// Bytes of the output.
        have: usize,
    },
}

/// Writes the headers of a packet's fragments, one after another.
///
/// It holds a copy of the header, so the packet's frame is free to be borrowed meanwhile.
#[derive(Clone, Debug)]
pub struct Fragmenter {
    /// The header of the next fragment, but for its length, flags, offset and checksum.
    header: [u8; FRAGMENT_HEADER_BYTES_MAX],
    header_bytes: usize,
    l3_offset: usize,
    /// Payload bytes that fit one fragment, at least 8. All but the last carry as many of them as
    /// 8 divides.
    room: usize,
    payload_bytes: usize,
    /// Payload given out so far.
    payload_offset: usize,
    /// Where the packet's payload lies in the one that it is itself a fragment of; else 0.
    first_offset: usize,
    /// Whether the packet is a fragment that others follow.
    more_follow: bool,
    fragments_made: usize,
}

impl Fragmenter {
    /// Checks a packet whose IPv4 header checksum is known to be right, and which may itself be a
    /// fragment. One that fits the MTU, with a payload of 0 bytes also, gives one fragment.
    ///
    /// # Errors
    /// See [`FragmentError`].
    pub fn new(packet: LongPacket<'_>) -> Result<Fragmenter, FragmentError> {
        let LongPacket { header, l3_offset, payload_bytes, mtu } = packet;
        if mtu < MTU_MIN {
            return Err(FragmentError::MtuTooSmall(mtu));
        }
        let l3 = header.get(l3_offset..).ok_or(FragmentError::TooShort)?;
        let fixed = l3.first_chunk::<IPV4_BYTES>().ok_or(FragmentError::TooShort)?;
        let l3_header_bytes = usize::from(fixed[0] & 0x0f) * 4;
        if fixed[0] >> 4 != 4 || l3_header_bytes < IPV4_BYTES {
            return Err(FragmentError::NotIpv4);
        }
        let options = l3.get(IPV4_BYTES..l3_header_bytes).ok_or(FragmentError::TooShort)?;
        check_options(options)?;
        let field = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        let actual = payload_bytes.saturating_add(l3_header_bytes);
        if field != actual {
            return Err(FragmentError::Length { field, actual });
        }
        let flags = u16::from_be_bytes([fixed[6], fixed[7]]);
        let first_offset = usize::from(flags & OFFSET_MASK) * OFFSET_UNIT_BYTES;
        let more_follow = flags & MORE_FRAGMENTS != 0;
        check_place(flags, first_offset, actual, payload_bytes)?;

        let header_bytes = l3_offset + l3_header_bytes;
        let mut copy = [0; FRAGMENT_HEADER_BYTES_MAX];
        copy.get_mut(..header_bytes)
            .ok_or(FragmentError::HeaderTooLong)?
            .copy_from_slice(header.get(..header_bytes).ok_or(FragmentError::TooShort)?);
        // A packet is at most 64 kB long, so a greater MTU cuts nothing either.
        let mtu = usize::try_from(mtu).map_or(PACKET_BYTES_MAX, |mtu| mtu.min(PACKET_BYTES_MAX));
        Ok(Fragmenter {
            header: copy,
            header_bytes,
            l3_offset,
            room: mtu - l3_header_bytes,
            payload_bytes,
            payload_offset: 0,
            first_offset,
            more_follow,
            fragments_made: 0,
        })
    }

    /// How many fragments there are in all: at least 1, at most 8,190 (8 bytes each).
    #[must_use]
    pub fn fragments(&self) -> usize {
        1 + self.payload_bytes.saturating_sub(self.room).div_ceil(self.whole_units())
    }

    /// Payload bytes of every fragment but the last.
    fn whole_units(&self) -> usize {
        self.room - self.room % OFFSET_UNIT_BYTES
    }

    /// The length of every fragment's header in bytes, from the start of the packet.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        self.header_bytes
    }

    /// Writes the next fragment's header to the start of `out`. `None` after the last.
    ///
    /// Of the packet's header change the length, the offset, More Fragments, the header checksum
    /// and, in the fragments behind the first, the options that only the first carries: each of
    /// their bytes becomes a no-operation, so that all headers are equally long (Linux
    /// `ip_options_fragment`). The reserved flag is not passed on (Linux `ip_frag_next`). The
    /// identification stays (RFC 6864 §4.1).
    ///
    /// # Errors
    /// [`FragmentError::NoRoom`] if `out` is shorter than [`Fragmenter::header_bytes`]; the
    /// fragment is then still to come.
    pub fn next(&mut self, out: &mut [u8]) -> Result<Option<Fragment>, FragmentError> {
        if self.fragments_made == self.fragments() {
            return Ok(None);
        }
        let (need, have) = (self.header_bytes, out.len());
        let out = out.get_mut(..need).ok_or(FragmentError::NoRoom { need, have })?;
        let left = self.payload_bytes - self.payload_offset;
        let is_last = left <= self.room;
        let fragment = Fragment {
            header_bytes: self.header_bytes,
            payload_offset: self.payload_offset,
            payload_bytes: if is_last { left } else { self.whole_units() },
        };
        out.copy_from_slice(&self.header[..need]);
        self.write_fields(&mut out[self.l3_offset..], fragment, is_last);
        // Options of a packet that is a later fragment itself are what its sender left of them.
        if self.fragments_made == 0 && self.first_offset == 0 {
            blank_first_only(&mut self.header[self.l3_offset + IPV4_BYTES..need]);
        }
        self.payload_offset += fragment.payload_bytes;
        self.fragments_made += 1;
        Ok(Some(fragment))
    }

    fn write_fields(&self, ip: &mut [u8], fragment: Fragment, is_last: bool) {
        // Neither is greater than the packet's own, which fit their fields.
        let total_bytes = (ip.len() + fragment.payload_bytes) as u16;
        let offset = (self.first_offset + fragment.payload_offset) / OFFSET_UNIT_BYTES;
        let more = if !is_last || self.more_follow { MORE_FRAGMENTS } else { 0 };
        ip[2..4].copy_from_slice(&total_bytes.to_be_bytes());
        ip[6..8].copy_from_slice(&(offset as u16 | more).to_be_bytes());
        ip[10..12].fill(0);
        let check = Sum::default().add_bytes(ip).checksum();
        ip[10..12].copy_from_slice(&check.to_be_bytes());
    }
}

/// What flags and offset say of the packet: `total_bytes` is its length from the IPv4 header on.
fn check_place(
    flags: u16,
    first_offset: usize,
    total_bytes: usize,
    payload_bytes: usize,
) -> Result<(), FragmentError> {
    if flags & DONT_FRAGMENT != 0 {
        return Err(FragmentError::DontFragment);
    }
    if first_offset + total_bytes > PACKET_BYTES_MAX {
        return Err(FragmentError::PastTheEnd);
    }
    if flags & MORE_FRAGMENTS != 0 && !payload_bytes.is_multiple_of(OFFSET_UNIT_BYTES) {
        return Err(FragmentError::Unaligned);
    }
    Ok(())
}

/// The length of the first option in bytes; `None` for the end of the list.
///
/// `options` is not empty.
fn option_bytes(options: &[u8]) -> Result<Option<usize>, FragmentError> {
    match *options {
        [OPTION_END, ..] => Ok(None),
        [OPTION_NO_OPERATION, ..] => Ok(Some(1)),
        [_, length, ..] if length >= 2 && usize::from(length) <= options.len() => {
            Ok(Some(usize::from(length)))
        }
        _ => Err(FragmentError::Options),
    }
}

fn check_options(mut options: &[u8]) -> Result<(), FragmentError> {
    while !options.is_empty() {
        let Some(bytes) = option_bytes(options)? else {
            return Ok(());
        };
        options = &options[bytes..];
    }
    Ok(())
}

/// Overwrites the options that belong in the first fragment only. What follows the end of the
/// list stays.
fn blank_first_only(mut options: &mut [u8]) {
    while !options.is_empty() {
        // The constructor has checked the whole list.
        let Ok(Some(bytes)) = option_bytes(options) else {
            return;
        };
        let (option, rest) = options.split_at_mut(bytes);
        if option[0] & OPTION_COPIED == 0 {
            option.fill(OPTION_NO_OPERATION);
        }
        options = rest;
    }
}
