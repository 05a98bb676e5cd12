//! Tests of the rtnetlink bytes; `tests/loopback.rs` runs the plugin in a namespace.

use super::*;

#[test]
fn a_request_has_the_kernels_layout() {
    let bytes = message(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, IFF_UP);
    assert_eq!(bytes.len(), MESSAGE_BYTES);
    assert_eq!(bytes[0..4], 32u32.to_ne_bytes());
    assert_eq!(bytes[4..6], RTM_NEWLINK.to_ne_bytes());
    assert_eq!(bytes[6..8], 5u16.to_ne_bytes());
    assert_eq!(bytes[20..24], LO_INDEX.to_ne_bytes());
    assert_eq!(bytes[24..28], IFF_UP.to_ne_bytes());
    assert_eq!(bytes[28..32], IFF_UP.to_ne_bytes());
}

/// An answer of `kind` whose word at offset 16 is `first` and at 24 is `third`.
fn answer(kind: u16, first: i32, third: u32) -> Vec<u8> {
    let mut bytes = message(kind, 0, third);
    bytes[16..20].copy_from_slice(&first.to_ne_bytes());
    bytes
}

#[test]
fn an_error_of_zero_acknowledges_and_another_is_an_errno() {
    assert_eq!(parse_answer(&answer(NLMSG_ERROR, 0, 0)).unwrap(), Answer::Acknowledged);
    let error = parse_answer(&answer(NLMSG_ERROR, -1, 0)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    assert!(parse_answer(&answer(NLMSG_ERROR, i32::MIN, 0)).is_err());
}

#[test]
fn a_link_gives_its_flags_and_a_cut_or_foreign_answer_an_error() {
    let link = answer(RTM_NEWLINK, 0, IFF_UP);
    assert_eq!(parse_answer(&link).unwrap(), Answer::Link { flags: IFF_UP });
    for length in 0..28 {
        assert!(parse_answer(&link[..length]).is_err(), "{length} bytes");
    }
    assert!(parse_answer(&answer(3, 0, 0)).is_err());
}
