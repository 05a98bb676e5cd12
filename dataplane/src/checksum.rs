//! The Internet checksum: sums over bytes that may lie in several frames (RFC 1071), the
//! pseudo-headers of TCP, UDP and ICMPv6, and updates that do not read the packet again
//! (RFC 1624).
//!
//! All 16-bit values here are in host order: what `u16::from_be_bytes` makes of the field.
//! A *partial* checksum is the un-complemented, folded pseudo-header sum that a kernel leaves in
//! the field of a packet whose sum a device is to complete (Linux `CHECKSUM_PARTIAL`).

#[cfg(test)]
mod tests;

/// A running one's complement sum over 16-bit big-endian words.
///
/// Pieces of any length can be added one after another; a word may begin in one piece and end in
/// the next. The sum is kept in the byte order of this machine, because the one's complement sum
/// does not depend on it (RFC 1071 §2 B), and put into host order by [`Sum::fold`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    words: u64,
    /// An odd number of bytes has been added: the next byte ends a word.
    odd: bool,
}

impl Sum {
    /// Adds `bytes`, which follow what was added before.
    #[must_use]
    pub fn add_bytes(self, bytes: &[u8]) -> Sum {
        let piece = sum_words(bytes);
        // A piece that begins in the middle of a word has all its bytes in the wrong half;
        // swapping its folded sum moves every one of them (RFC 1071 §2 B).
        let piece = if self.odd { u64::from(fold(piece).swap_bytes()) } else { piece };
        let odd = self.odd ^ (bytes.len() % 2 == 1);
        Sum { words: add_with_carry(self.words, piece), odd }
    }

    /// Adds one whole word, wherever the bytes added before have ended.
    #[must_use]
    pub fn add_word(self, word: u16) -> Sum {
        Sum { words: add_with_carry(self.words, u64::from(word.to_be())), odd: self.odd }
    }

    /// The sum as 16 bits, not complemented: the value of a partial checksum field.
    ///
    /// 0 only if every byte added was 0.
    #[must_use]
    pub fn fold(self) -> u16 {
        u16::from_be(fold(self.words))
    }

    /// The checksum: the complement of [`Sum::fold`]. A range whose checksum field is correct
    /// has the checksum 0.
    #[must_use]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// The sum of the IPv4 pseudo-header (RFC 9293 §3.1, RFC 768). `l4_bytes` is the length of the
/// L4 header and its payload.
#[must_use]
pub fn pseudo_header_v4(src: [u8; 4], dst: [u8; 4], protocol: u8, l4_bytes: u16) -> Sum {
    Sum::default().add_bytes(&src).add_bytes(&dst).add_word(u16::from(protocol)).add_word(l4_bytes)
}

/// The sum of the IPv6 pseudo-header (RFC 8200 §8.1). `dst` is the final destination, `protocol`
/// the one of the L4 header and `l4_bytes` the length of that header and its payload, without
/// extension headers.
#[must_use]
pub fn pseudo_header_v6(src: [u8; 16], dst: [u8; 16], protocol: u8, l4_bytes: u32) -> Sum {
    Sum::default()
        .add_bytes(&src)
        .add_bytes(&dst)
        .add_bytes(&l4_bytes.to_be_bytes())
        .add_word(u16::from(protocol))
}

/// The checksum field after one word of what it covers changed from `old` to `new`.
///
/// RFC 1624 §3, eq. 3: HC' = ~(~HC + ~m + m'). Equal to a full sum for all data that is not
/// entirely zero, which no IP, TCP, UDP or ICMPv6 sum can be.
#[must_use]
pub fn update(check: u16, old: u16, new: u16) -> u16 {
    !fold_words([!check, !old, new])
}

/// What a sender of UDP writes for the computed `check`: 0 means "no checksum" there, and
/// 0xffff is the same number in one's complement (RFC 768).
#[must_use]
pub fn udp_field(check: u16) -> u16 {
    if check == 0 { 0xffff } else { check }
}

/// Whether `packet` starts with a complete IPv4 header whose checksum is right (RFC 1812 §5.2.2,
/// tests 1 to 4; the total length is the caller's to check).
#[must_use]
pub fn verify_ipv4_header(packet: &[u8]) -> bool {
    let Some(&first) = packet.first() else {
        return false;
    };
    let header_bytes = usize::from(first & 0x0f) * 4;
    let Some(header) = packet.get(..header_bytes) else {
        return false;
    };
    first >> 4 == 4 && header_bytes >= 20 && Sum::default().add_bytes(header).checksum() == 0
}

/// Takes one off the TTL of an IPv4 header, of which the first 20 bytes are given, and updates
/// its checksum. Returns the new TTL.
///
/// `None`, with the header unchanged, if the TTL would become 0: a router never sends that
/// (RFC 1812 §4.2.2.9, §5.3.1).
pub fn decrement_ttl(header: &mut [u8; 20]) -> Option<u8> {
    let ttl = header[8].checked_sub(1).filter(|&ttl| ttl > 0)?;
    let old = u16::from_be_bytes([header[8], header[9]]);
    let new = u16::from_be_bytes([ttl, header[9]]);
    let check = update(u16::from_be_bytes([header[10], header[11]]), old, new);
    header[8] = ttl;
    header[10..12].copy_from_slice(&check.to_be_bytes());
    Some(ttl)
}

/// One's complement sum of `bytes` in the byte order of this machine, a last odd byte padded with
/// zero.
///
/// Four independent chains of 64-bit additions: 54 GB/s on 1448 bytes, against 48 with eight
/// 32-bit lanes and 31 with split words (2 vCPU, baseline x86-64, data in L1).
fn sum_words(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut sums = [0u64; 4];
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = add_with_carry(*sum, u64::from_ne_bytes(*word));
        }
    }
    let (words, rest) = rest.as_chunks::<8>();
    let mut sum = sums.into_iter().fold(0, add_with_carry);
    for word in words {
        sum = add_with_carry(sum, u64::from_ne_bytes(*word));
    }
    let (words, rest) = rest.as_chunks::<2>();
    for word in words {
        sum = add_with_carry(sum, u64::from(u16::from_ne_bytes(*word)));
    }
    match rest {
        [last] => add_with_carry(sum, u64::from(u16::from_ne_bytes([*last, 0]))),
        _ => sum,
    }
}

/// One's complement addition: a carry out of the top comes back in at the bottom.
fn add_with_carry(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    // Cannot overflow: a sum that carried is at most u64::MAX - 1.
    sum + u64::from(carry)
}

/// Folds a one's complement sum of 64 bits into 16.
fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    // At most 0x1_0001 now: one more step leaves no carry.
    ((sum >> 16) + (sum & 0xffff)) as u16
}

fn fold_words(words: [u16; 3]) -> u16 {
    fold(words.into_iter().map(u64::from).sum())
}
