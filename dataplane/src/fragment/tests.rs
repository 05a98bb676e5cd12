//! Fragments against the rules: put together again they are the packet, each fits, and headers
//! are right byte by byte. `tests/fragment_kernel.rs` compares with the kernel itself.

use std::collections::BTreeMap;

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv4HeaderSlice};
use proptest::prelude::*;

use super::*;

const L3: usize = 14;

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 % 251) as u8).collect()
}

fn header(options: &[u8], payload_bytes: usize) -> Ipv4Header {
    let mut header =
        Ipv4Header::new(0, 17, IpNumber::UDP, [10, 244, 1, 7], [198, 51, 100, 9]).expect("short");
    header.options = options.try_into().expect("a multiple of 4, at most 40");
    header.set_payload_len(payload_bytes).expect("fits");
    header.identification = 0xbeef;
    header.dont_fragment = false;
    header
}

/// Ethernet, IPv4 and `payload`.
fn packet(header: &Ipv4Header, payload: &[u8]) -> Vec<u8> {
    let mut header = header.clone();
    header.header_checksum = header.calc_header_checksum();
    let mut bytes = vec![0x0a, 1, 2, 3, 4, 5, 0x0a, 9, 8, 7, 6, 5, 8, 0];
    header.write_raw(&mut bytes).expect("memory");
    bytes.extend(payload);
    bytes
}

fn fragmenter(packet: &[u8], mtu: u32) -> Result<Fragmenter, FragmentError> {
    let header_bytes = L3 + usize::from(packet[L3] & 0x0f) * 4;
    let payload_bytes = packet.len() - header_bytes;
    Fragmenter::new(LongPacket { header: packet, l3_offset: L3, payload_bytes, mtu })
}

fn fragments(packet: &[u8], mtu: u32) -> Vec<Vec<u8>> {
    let mut fragmenter = fragmenter(packet, mtu).expect("a good packet");
    let payload = &packet[fragmenter.header_bytes()..];
    let mut out = Vec::new();
    let mut header = [0xee; FRAGMENT_HEADER_BYTES_MAX];
    while let Some(fragment) = fragmenter.next(&mut header).expect("room") {
        let part = &payload[fragment.payload_offset..][..fragment.payload_bytes];
        out.push([&header[..fragment.header_bytes], part].concat());
    }
    assert_eq!(out.len(), fragmenter.fragments());
    out
}

fn parse(fragment: &[u8]) -> Ipv4Header {
    Ipv4HeaderSlice::from_slice(&fragment[L3..]).expect("an IPv4 header").to_header()
}

fn body(fragment: &[u8]) -> &[u8] {
    &fragment[L3 + usize::from(fragment[L3] & 0x0f) * 4..]
}

/// What a receiver makes of fragments, in any order: where the first byte lies, the bytes, and
/// whether more must come. `None` if there is a hole or an overlap.
fn reassemble(fragments: &[Vec<u8>]) -> Option<(usize, Vec<u8>, bool)> {
    let places: BTreeMap<usize, &Vec<u8>> = fragments
        .iter()
        .map(|one| (usize::from(parse(one).fragment_offset.value()) * 8, one))
        .collect();
    let first = *places.first_key_value()?.0;
    let more_follow = parse(places.last_key_value()?.1).more_fragments;
    let mut bytes = Vec::new();
    for (offset, fragment) in &places {
        if *offset != first + bytes.len() {
            return None;
        }
        bytes.extend(body(fragment));
    }
    let contiguous = places.len() == fragments.len();
    contiguous.then_some((first, bytes, more_follow))
}

/// Options of all kinds: no-operations, copied and not, an end of the list.
fn options() -> impl Strategy<Value = Vec<u8>> {
    let option = prop_oneof![
        Just(vec![OPTION_NO_OPERATION]),
        (0x80..=0xffu8, 0..8usize).prop_map(|(kind, bytes)| one_option(kind, bytes)),
        (2..0x80u8, 0..8usize).prop_map(|(kind, bytes)| one_option(kind, bytes)),
    ];
    (proptest::collection::vec(option, 0..5), any::<bool>()).prop_map(|(options, with_end)| {
        let mut bytes = options.concat();
        bytes.truncate(if check_options(&bytes[..bytes.len().min(40)]).is_ok() { 40 } else { 0 });
        let pad = if with_end { OPTION_END } else { OPTION_NO_OPERATION };
        bytes.resize(bytes.len().next_multiple_of(4), pad);
        bytes
    })
}

fn one_option(kind: u8, bytes: usize) -> Vec<u8> {
    let mut option = vec![kind, 2 + bytes as u8];
    option.resize(2 + bytes, 0x5a);
    option
}

/// A packet, possibly a fragment in the beginning, middle or end of another.
fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![0..100usize, 0..4000usize, 60_000..65_400usize];
    (options(), length, 0..3000u16, any::<[bool; 2]>()).prop_map(|(options, length, offset, is)| {
        let [is_fragment, more_fragments] = is;
        let length = if is_fragment && more_fragments { length - length % 8 } else { length };
        let room = 65_535 - 20 - options.len() - length;
        let mut header = header(&options, length);
        if is_fragment {
            header.more_fragments = more_fragments;
            let offset = offset.min((room / 8) as u16);
            header.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
        }
        packet(&header, &payload(length))
    })
}

proptest! {
    #[test]
    fn fragments_put_together_are_the_packet(packet in any_packet(), mtu in 68..9000u32) {
        let original = parse(&packet);
        let place = usize::from(original.fragment_offset.value()) * 8;
        let whole = (place, body(&packet).to_vec(), original.more_fragments);
        let mut fragments = fragments(&packet, mtu);
        fragments.reverse();
        prop_assert_eq!(reassemble(&fragments), Some(whole));
    }

    #[test]
    fn every_fragment_fits_and_all_but_the_last_are_as_long_as_can_be(
        packet in any_packet(),
        mtu in 68..9000u32,
    ) {
        let all = fragments(&packet, mtu);
        for (index, fragment) in all.iter().enumerate() {
            let header = parse(fragment);
            prop_assert!(fragment.len() - L3 <= mtu as usize);
            prop_assert_eq!(usize::from(header.total_len), fragment.len() - L3);
            prop_assert_eq!(header.calc_header_checksum(), header.header_checksum);
            if index + 1 < all.len() {
                prop_assert!(header.more_fragments && body(fragment).len().is_multiple_of(8));
                prop_assert!(fragment.len() - L3 + 8 > mtu as usize);
            }
        }
    }

    #[test]
    fn nothing_else_of_the_header_changes(packet in any_packet(), mtu in 68..2000u32) {
        let original = parse(&packet);
        for (index, fragment) in fragments(&packet, mtu).iter().enumerate() {
            prop_assert_eq!(&fragment[..L3], &packet[..L3]);
            let mut header = parse(fragment);
            header.total_len = original.total_len;
            header.more_fragments = original.more_fragments;
            header.fragment_offset = original.fragment_offset;
            header.header_checksum = original.header_checksum;
            if index == 0 || original.fragment_offset.value() > 0 {
                prop_assert_eq!(&header, &original);
            }
            header.options = original.options.clone();
            prop_assert_eq!(&header, &original);
        }
    }

    #[test]
    fn fragments_of_fragments_put_together_are_the_packet(
        packet in any_packet(),
        first in 300..2000u32,
        second in 68..300u32,
    ) {
        let once = fragments(&packet, first);
        let twice: Vec<_> = once.iter().flat_map(|one| fragments(one, second)).collect();
        prop_assert_eq!(reassemble(&twice), reassemble(&once));
    }

    #[test]
    fn bytes_of_any_kind_are_refused_or_cut_and_never_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
        l3_offset in 0..130usize,
        payload_bytes in 0..70_000usize,
        mtu in 0..3000u32,
        honest in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if let Some(l3) = bytes.get_mut(l3_offset..).filter(|_| honest)
            && l3.len() >= 20
        {
            l3[0] = 0x40 | l3[0] & 0x0f;
            let total = payload_bytes + usize::from(l3[0] & 0x0f) * 4;
            l3[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        }
        let packet = LongPacket { header: &bytes, l3_offset, payload_bytes, mtu };
        if let Ok(mut fragmenter) = Fragmenter::new(packet) {
            let mut header = [0; FRAGMENT_HEADER_BYTES_MAX];
            let mut bytes = 0;
            while let Some(fragment) = fragmenter.next(&mut header).expect("room") {
                prop_assert_eq!(fragment.payload_offset, bytes);
                bytes += fragment.payload_bytes;
            }
            prop_assert_eq!(bytes, payload_bytes);
        }
    }
}

#[test]
fn the_headers_of_a_packet_with_options_are_these() {
    // Router alert, which is copied, and a timestamp, which is not (RFC 2113, RFC 791 §3.1).
    let options = [0x94, 4, 0, 0, 0x44, 4, 5, 0];
    let packet = packet(&header(&options, 100), &payload(100));
    let expected = ["47000054beef200011110000", "47000048beef000711110000"];
    let mut fragmenter = fragmenter(&packet, 90).expect("a good packet");
    let mut out = [0; FRAGMENT_HEADER_BYTES_MAX];
    let mut written = Vec::new();
    while fragmenter.next(&mut out).expect("room").is_some() {
        let header = &mut out[L3..L3 + 28];
        assert_eq!(Sum::default().add_bytes(header).checksum(), 0);
        header[10..12].fill(0);
        written.push(header.to_vec());
    }
    let addresses = [10, 244, 1, 7, 198, 51, 100, 9];
    let fixed = |text: &str| -> Vec<u8> {
        let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
        (0..text.len()).step_by(2).map(digits).collect()
    };
    let first = [&fixed(expected[0])[..], &addresses, &options].concat();
    let second = [&fixed(expected[1])[..], &addresses, &[0x94, 4, 0, 0, 1, 1, 1, 1]].concat();
    assert_eq!(written, [first, second]);
}

#[test]
fn a_packet_that_fits_is_one_fragment_and_one_byte_more_are_two() {
    // A length that 8 does not divide: only where something follows must it be cut off there.
    for (length, count) in [(0, 1), (79, 1), (80, 1), (81, 2), (160, 2), (161, 3)] {
        let packet = packet(&header(&[], length), &payload(length));
        assert_eq!(fragments(&packet, 100).len(), count, "{length}");
    }
    // The last one uses all of the MTU.
    for (length, count) in [(83, 1), (84, 2), (163, 2), (164, 3)] {
        let packet = packet(&header(&[], length), &payload(length));
        assert_eq!(fragments(&packet, 103).len(), count, "{length}");
    }
    let packet = packet(&header(&[], 83), &payload(83));
    assert_eq!(fragments(&packet, 103), [packet]);
}

#[test]
fn the_longest_packet_over_the_smallest_mtu_is_cut() {
    let options = [1; 40];
    let length = 65_535 - 60;
    let all = fragments(&packet(&header(&options, length), &payload(length)), MTU_MIN);
    assert_eq!(all.len(), length.div_ceil(8));
    assert_eq!(parse(all.last().expect("some")).fragment_offset.value(), 8184);
}

#[test]
fn options_of_a_later_fragment_stay_as_they_are() {
    let mut header = header(&[0x44, 4, 5, 0], 160);
    header.fragment_offset = IpFragOffset::try_new(10).expect("13 bits");
    for fragment in fragments(&packet(&header, &payload(160)), 100) {
        assert_eq!(parse(&fragment).options.as_slice(), [0x44, 4, 5, 0]);
    }
}

#[test]
fn what_must_not_be_cut_is_refused() {
    let refused = |change: fn(&mut Ipv4Header), length: usize, mtu: u32| {
        let mut header = header(&[], length);
        change(&mut header);
        fragmenter(&packet(&header, &payload(length)), mtu).map(|_| ())
    };
    assert_eq!(refused(|_| {}, 2000, 68), Ok(()));
    assert_eq!(refused(|_| {}, 2000, 67), Err(FragmentError::MtuTooSmall(67)));
    let forbids: fn(&mut Ipv4Header) = |header| header.dont_fragment = true;
    assert_eq!(refused(forbids, 2000, 1500), Err(FragmentError::DontFragment));
    let more: fn(&mut Ipv4Header) = |header| header.more_fragments = true;
    assert_eq!(refused(more, 2000, 1500), Ok(()));
    assert_eq!(refused(more, 2001, 1500), Err(FragmentError::Unaligned));
    let late: fn(&mut Ipv4Header) = |header| {
        header.fragment_offset = IpFragOffset::try_new(8000).expect("13 bits");
    };
    assert_eq!(refused(late, 1515, 1500), Ok(()));
    assert_eq!(refused(late, 1516, 1500), Err(FragmentError::PastTheEnd));
    let longer: fn(&mut Ipv4Header) = |header| header.total_len += 1;
    let length = FragmentError::Length { field: 1021, actual: 1020 };
    assert_eq!(refused(longer, 1000, 500), Err(length));
}

#[test]
fn options_with_false_lengths_are_refused() {
    let with =
        |options: &[u8]| fragmenter(&packet(&header(options, 100), &payload(100)), 80).map(|_| ());
    for good in [&[0x94, 4, 0, 0][..], &[1, 1, 1, 0], &[0, 0x94, 9, 9], &[1, 1, 0x44, 2]] {
        assert_eq!(with(good), Ok(()), "{good:?}");
    }
    for bad in [&[0x94, 5, 0, 0][..], &[0x94, 1, 0, 0], &[0x44, 0, 0, 0], &[1, 1, 1, 0x94]] {
        assert_eq!(with(bad), Err(FragmentError::Options), "{bad:?}");
    }
}

#[test]
fn headers_that_are_cut_off_too_long_or_of_another_protocol_are_refused() {
    let packet = packet(&header(&[1; 4], 100), &payload(100));
    let with = |bytes: &[u8], l3_offset| {
        let long = LongPacket { header: bytes, l3_offset, payload_bytes: 100, mtu: 80 };
        Fragmenter::new(long).map(|_| ())
    };
    assert_eq!(with(&packet[..L3 + 24], L3), Ok(()));
    assert_eq!(with(&packet[..L3 + 23], L3), Err(FragmentError::TooShort));
    assert_eq!(with(&packet[..L3 + 19], L3), Err(FragmentError::TooShort));
    assert_eq!(with(&packet, 999), Err(FragmentError::TooShort));
    assert_eq!(with(&packet, 0), Err(FragmentError::NotIpv4));
    let deep = [&[0; 59][..], &packet].concat();
    assert_eq!(with(&deep, L3 + 59), Err(FragmentError::HeaderTooLong));
    assert_eq!(with(&deep[1..], L3 + 58), Ok(()));
}

#[test]
fn an_output_without_room_leaves_the_fragment_to_come() {
    let packet = packet(&header(&[], 100), &payload(100));
    let mut fragmenter = fragmenter(&packet, 80).expect("a good packet");
    let mut out = [0; FRAGMENT_HEADER_BYTES_MAX];
    let no_room = FragmentError::NoRoom { need: 34, have: 33 };
    assert_eq!(fragmenter.next(&mut out[..33]), Err(no_room));
    let first = fragmenter.next(&mut out[..34]).expect("room").expect("a fragment");
    assert_eq!((first.payload_offset, first.payload_bytes), (0, 56));
}
