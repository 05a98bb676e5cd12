//! The checksum against the definition of RFC 1071, done word by word.

use super::*;
use proptest::prelude::*;

/// The definition: pad to an even length, add big-endian words, bring every carry back.
fn naive(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Words where carries and the two zeros of one's complement live.
const CORNERS: [u16; 10] = [0, 1, 0x00ff, 0x0100, 0x7fff, 0x8000, 0xff00, 0xfffe, 0xffff, 0x1234];

fn updates_like_a_full_sum(rest: u16, old: u16, new: u16) {
    let full = |word: u16| Sum::default().add_word(rest).add_word(word).checksum();
    if rest == 0 && new == 0 {
        return; // All data zero: outside the contract, see the test of that name.
    }
    assert_eq!(update(full(old), old, new), full(new), "rest {rest:#x} {old:#x} -> {new:#x}");
}

proptest! {
    #[test]
    fn a_sum_equals_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(Sum::default().add_bytes(&bytes).fold(), naive(&bytes));
    }

    #[test]
    fn a_sum_continues_across_pieces_of_any_length(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..8),
    ) {
        let sum = pieces.iter().fold(Sum::default(), |sum, piece| sum.add_bytes(piece));
        prop_assert_eq!(sum.fold(), naive(&pieces.concat()));
    }

    #[test]
    fn a_sum_of_all_ones_keeps_its_carries(
        length in 0usize..9000, first in 0usize..9000,
    ) {
        let bytes = vec![0xff; length];
        let (a, b) = bytes.split_at(first.min(length));
        prop_assert_eq!(Sum::default().add_bytes(a).add_bytes(b).fold(), naive(&bytes));
    }

    #[test]
    fn verify_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = verify_ipv4_header(&bytes);
    }
}

#[test]
fn an_update_equals_a_full_sum_for_every_word_against_every_corner() {
    for word in 0..=u16::MAX {
        for corner in CORNERS {
            for rest in CORNERS {
                updates_like_a_full_sum(rest, word, corner);
                updates_like_a_full_sum(rest, corner, word);
            }
            updates_like_a_full_sum(word, corner, 0);
            updates_like_a_full_sum(word, 0, corner);
            updates_like_a_full_sum(word, 0xffff, corner);
        }
    }
}

#[test]
#[ignore = "slow: 4 billion pairs, 7 s in release"]
fn an_update_equals_a_full_sum_for_every_pair_of_words() {
    for old in 0..=u16::MAX {
        for new in 0..=u16::MAX {
            updates_like_a_full_sum(0x4500, old, new);
        }
    }
}

#[test]
fn an_update_to_entirely_zero_data_gives_the_other_zero() {
    // The one case in which eq. 3 differs from a full sum; both mean the same number, and no
    // covered range of IP is entirely zero.
    assert_eq!(update(!0x0001, 1, 0), 0);
    assert_eq!(Sum::default().add_word(0).checksum(), 0xffff);
}

#[test]
fn the_example_of_rfc_1624_section_4_is_met() {
    assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
}

#[test]
fn a_known_ipv4_header_verifies_and_its_neighbours_do_not() {
    let header = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7,
    ];
    assert!(verify_ipv4_header(&header));
    assert!(verify_ipv4_header(&[&header[..], &[1, 2, 3]].concat()));
    assert!(!verify_ipv4_header(&header[..19]));
    assert!(!verify_ipv4_header(&[]));
    for bit in 0..160 {
        let mut broken = header;
        broken[bit / 8] ^= 1 << (bit % 8);
        assert!(!verify_ipv4_header(&broken), "bit {bit}");
    }
}

#[test]
fn a_header_that_claims_less_than_20_bytes_does_not_verify_whatever_its_sum() {
    for words in 0..5u8 {
        let mut header = [0u8; 20];
        header[0] = 0x40 | words;
        let check = Sum::default().add_bytes(&header[..1]).checksum();
        header[2..4].copy_from_slice(&check.to_be_bytes());
        assert!(!verify_ipv4_header(&header), "{words} words");
    }
}

#[test]
fn decrementing_the_ttl_keeps_the_header_valid_for_every_ttl_and_protocol() {
    for ttl in 2..=255u8 {
        for protocol in 0..=255u8 {
            let mut header = [
                0x45, 0, 0, 0x54, 0x12, 0x34, 0x40, 0, ttl, protocol, 0, 0, 10, 244, 1, 2, 10, 244,
                1, 3,
            ];
            let check = Sum::default().add_bytes(&header).checksum();
            header[10..12].copy_from_slice(&check.to_be_bytes());
            assert_eq!(decrement_ttl(&mut header), Some(ttl - 1));
            assert_eq!(header[8], ttl - 1);
            assert!(verify_ipv4_header(&header), "ttl {ttl} protocol {protocol}");
        }
    }
}

#[test]
fn a_ttl_of_one_or_zero_is_refused_and_the_header_left_alone() {
    for ttl in [0, 1] {
        let mut header = [7; 20];
        header[8] = ttl;
        let before = header;
        assert_eq!(decrement_ttl(&mut header), None);
        assert_eq!(header, before);
    }
}

#[test]
fn pseudo_headers_equal_their_bytes_in_the_order_of_the_rfcs() {
    let v4 = pseudo_header_v4([10, 244, 1, 2], [10, 244, 1, 3], 6, 1480);
    assert_eq!(v4.fold(), naive(&[10, 244, 1, 2, 10, 244, 1, 3, 0, 6, 5, 200]));
    let (src, dst) = ([0xfd; 16], [0x20; 16]);
    let v6 = pseudo_header_v6(src, dst, 17, 0x0001_0002);
    let bytes = [&src[..], &dst[..], &[0, 1, 0, 2, 0, 0, 0, 17]].concat();
    assert_eq!(v6.fold(), naive(&bytes));
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_all_ones() {
    assert_eq!(udp_field(0), 0xffff);
    assert_eq!(udp_field(0xffff), 0xffff);
    assert_eq!(udp_field(1), 1);
}
