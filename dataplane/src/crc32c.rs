//! CRC32c, the checksum of SCTP (RFC 9260 §6.8, Appendix A), updated after a change of a few bytes
//! without reading the packet again.
//!
//! A CRC is linear: that of a changed packet differs from the old one by the CRC of the difference,
//! which is zero but for the changed bytes; and zeros that follow multiply by a power of x, modulo
//! the polynomial. So a packet that was damaged before stays damaged, where a new sum over all of
//! it would declare it sound.

/// The polynomial (Castagnoli), lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The polynomial 1 in that order of bits.
const ONE: u32 = 1 << 31;

/// x to the power of 2^k, for every k that the number of bits of a packet can have.
const POWERS: [u32; 32] = {
    let mut powers = [ONE >> 1; 32];
    let mut k = 1;
    while k < 32 {
        powers[k] = multiply(powers[k - 1], powers[k - 1]);
        k += 1;
    }
    powers
};

/// The checksum after a word changed from `old` to `new`, that `bytes_after` more bytes of what it
/// covers follow. `check` is what SCTP's field holds as a little-endian number.
#[must_use]
pub fn update(check: u32, old: [u8; 4], new: [u8; 4], bytes_after: usize) -> u32 {
    let difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    // The word itself is four bytes of the division.
    check ^ multiply(difference, power_of_x((bytes_after as u64 + 4) * 8))
}

/// x^exponent modulo the polynomial.
fn power_of_x(exponent: u64) -> u32 {
    let bits = (0..POWERS.len()).filter(|bit| exponent >> bit & 1 == 1);
    bits.fold(ONE, |product, bit| multiply(product, POWERS[bit]))
}

/// The product of two polynomials modulo the polynomial.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = ONE;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 == 1 { b >> 1 ^ POLYNOMIAL } else { b >> 1 };
        bit >>= 1;
    }
    product
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, bit by bit.
    pub(crate) fn naive<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u32 {
        !bytes.into_iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 }
            })
        })
    }

    #[test]
    fn the_definition_gives_the_values_of_rfc_3720_appendix_b() {
        assert_eq!(naive(&[0; 32]), 0x8a91_36aa);
        assert_eq!(naive(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(naive(&std::array::from_fn::<u8, 32, _>(|n| n as u8)), 0x46dd_794e);
        assert_eq!(naive(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn an_update_equals_a_new_sum(
            before in prop::collection::vec(any::<u8>(), 0..100),
            old: [u8; 4],
            new: [u8; 4],
            after in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            let sum = |word: &[u8; 4]| naive(before.iter().chain(word).chain(&after));
            prop_assert_eq!(update(sum(&old), old, new, after.len()), sum(&new));
        }
    }

    #[test]
    fn an_update_holds_in_the_longest_packet_and_for_no_change() {
        let after = vec![0xa5; 65_531];
        let sum = |word: [u8; 4]| naive(word.iter().chain(&after));
        assert_eq!(update(sum([1; 4]), [1; 4], [2; 4], after.len()), sum([2; 4]));
        assert_eq!(update(42, [7; 4], [7; 4], 1000), 42);
    }
}
