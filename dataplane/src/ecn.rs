//! Explicit congestion notification (RFC 3168): tells the ends of a connection to slow down,
//! instead of dropping one of its packets.

use crate::checksum::update;
use crate::parse::ETHERNET_BYTES;

/// Both bits of the field (RFC 3168 §5).
const CE: u8 = 0b11;
/// Offset of the checksum in an IPv4 header.
const IPV4_CHECKSUM: usize = 10;

/// Marks the IP packet of a frame, whose first bytes are `head`, as one that has met congestion.
/// Returns whether it did.
///
/// Only what says that its transport understands it, ECT(0) or ECT(1), is marked (RFC 3168 §5);
/// what is marked already stays so. Of a tunnelled packet the outer header is marked (RFC 6040).
pub fn mark(head: &mut [u8]) -> bool {
    let Some(ip) = head.get_mut(ETHERNET_BYTES..) else { return false };
    match ip.first().map(|byte| byte >> 4) {
        Some(4) => mark_ipv4(ip),
        Some(6) => mark_ipv6(ip),
        _ => false,
    }
}

/// The field is the low bits of the second byte (RFC 3168 §5), which the checksum covers.
fn mark_ipv4(ip: &mut [u8]) -> bool {
    let Some(header) = ip.first_chunk_mut::<20>() else { return false };
    if !is_capable(header[1]) {
        return false;
    }
    let old = u16::from_be_bytes([header[0], header[1]]);
    header[1] |= CE;
    let new = u16::from_be_bytes([header[0], header[1]]);
    let check = u16::from_be_bytes([header[IPV4_CHECKSUM], header[IPV4_CHECKSUM + 1]]);
    let check = update(check, old, new).to_be_bytes();
    header[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].copy_from_slice(&check);
    true
}

/// The field is the low bits of the traffic class, which lies across the first two bytes
/// (RFC 8200 §3). No checksum covers it: it is not in the pseudo-header (RFC 8200 §8.1).
fn mark_ipv6(ip: &mut [u8]) -> bool {
    let Some(header) = ip.first_chunk_mut::<40>() else { return false };
    let capable = is_capable(header[1] >> 4);
    if capable {
        header[1] |= CE << 4;
    }
    capable
}

/// Whether the low bits are ECT(0) or ECT(1): neither 00, not capable, nor CE.
fn is_capable(field: u8) -> bool {
    matches!(field & CE, 0b01 | 0b10)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum::{Sum, verify_ipv4_header};

    /// ECT(0), ECT(1), CE and not capable, in the order of RFC 3168 §5, figure 1.
    const NOT_ECT: u8 = 0b00;
    const ECT_1: u8 = 0b01;
    const ECT_0: u8 = 0b10;

    /// A datagram of 10.0.0.1 for 10.0.0.2 with DSCP AF41, up to its IP header.
    fn ipv4(field: u8, checksum: u16) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET_BYTES];
        frame.extend([0x45, 0x88 | field, 0, 28, 0x12, 0x34, 0x40, 0, 64, 17]);
        frame.extend(checksum.to_be_bytes());
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame
    }

    /// One of fd00::1 for fd00::2 with traffic class AF41 and a flow label.
    fn ipv6(field: u8) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET_BYTES];
        frame.extend([0x68, 0x8a | field << 4, 0xbc, 0xde, 0, 8, 17, 64]);
        for last in [1, 2] {
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        frame
    }

    fn marked(mut frame: Vec<u8>) -> Option<Vec<u8>> {
        let before = frame.clone();
        let marked = mark(&mut frame);
        assert!(marked || frame == before, "what is not marked is not changed");
        marked.then_some(frame)
    }

    #[test]
    fn capable_ipv4_is_marked_and_its_checksum_goes_with_it() {
        // By hand: with the field 00 the words add up to 0xebec, of which 0x1413 is the complement.
        assert_eq!(marked(ipv4(ECT_0, 0x1411)), Some(ipv4(CE, 0x1410)));
        assert_eq!(marked(ipv4(ECT_1, 0x1412)), Some(ipv4(CE, 0x1410)));
        assert!(verify_ipv4_header(&ipv4(CE, 0x1410)[ETHERNET_BYTES..]));
    }

    #[test]
    fn capable_ipv6_is_marked_and_keeps_its_class_and_flow_label() {
        assert_eq!(marked(ipv6(ECT_0)), Some(ipv6(CE)));
        assert_eq!(marked(ipv6(ECT_1)), Some(ipv6(CE)));
    }

    #[test]
    fn what_is_not_capable_or_marked_already_stays() {
        for field in [NOT_ECT, CE] {
            assert_eq!(marked(ipv4(field, 0x1413)), None);
            assert_eq!(marked(ipv6(field)), None);
        }
    }

    #[test]
    fn a_wrong_checksum_stays_wrong() {
        let frame = marked(ipv4(ECT_0, 0x1330)).expect("it is capable");
        assert!(!verify_ipv4_header(&frame[ETHERNET_BYTES..]));
    }

    #[test]
    fn what_is_no_ip_header_or_not_all_of_one_stays() {
        for whole in [ipv4(ECT_0, 0x1411), ipv6(ECT_0)] {
            for len in 0..whole.len() {
                assert_eq!(marked(whole[..len].to_vec()), None, "{len} bytes");
            }
        }
        for version in [0, 5, 15] {
            let mut frame = ipv4(ECT_0, 0);
            frame[ETHERNET_BYTES] = version << 4 | 5;
            assert_eq!(marked(frame), None);
        }
    }

    proptest! {
        #[test]
        fn an_update_equals_a_new_sum(mut header in any::<[u8; 24]>(), capable in 1..=2u8) {
            header[0] = 0x46;
            header[1] = header[1] & !CE | capable;
            header[10..12].fill(0);
            let check = Sum::default().add_bytes(&header).checksum().to_be_bytes();
            header[10..12].copy_from_slice(&check);
            let mut expected = header;
            expected[1] |= CE;
            expected[10..12].fill(0);
            let check = Sum::default().add_bytes(&expected).checksum().to_be_bytes();
            expected[10..12].copy_from_slice(&check);
            let mut frame = [&[0; ETHERNET_BYTES], header.as_slice()].concat();
            prop_assert!(mark(&mut frame));
            prop_assert_eq!(&frame[ETHERNET_BYTES..], expected);
        }
    }
}
