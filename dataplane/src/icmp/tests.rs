//! Error packets read back by an independent parser, and the refusals of RFC 1812 §4.3.2.7 and
//! RFC 4443 §2.4 (e) one by one.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{
    EtherType, Icmpv4Type, Icmpv6Type, IpNumber, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice, icmpv4, icmpv6,
};
use proptest::prelude::*;

use super::*;

const POD_MAC: [u8; 6] = [0x0a, 1, 2, 3, 4, 5];
const GATEWAY_MAC: [u8; 6] = [0x0e, 9, 8, 7, 6, 5];
const POD: [u8; 4] = [10, 244, 1, 7];
const PEER: [u8; 4] = [10, 244, 2, 9];
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const POD6: [u8; 16] = [0xfd, 0, 0, 0x10, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7];
const PEER6: [u8; 16] = [0xfd, 0, 0, 0x10, 2, 0x44, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9];
const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const L3: usize = 14;

const KINDS: [ErrorKind; 3] =
    [ErrorKind::HostUnreachable, ErrorKind::TimeExceeded, ErrorKind::TooBig { mtu: 1400 }];

fn envelope(source: impl Into<IpAddr>) -> Envelope {
    Envelope { src_mac: GATEWAY_MAC, dst_mac: POD_MAC, source: source.into() }
}

fn udp_v4(payload: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(POD_MAC, GATEWAY_MAC)
        .ipv4(POD, PEER, 17)
        .udp(4000, 53)
        .write(&mut packet, &vec![0xab; payload])
        .expect("writes to memory");
    packet
}

fn udp_v6(payload: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(POD_MAC, GATEWAY_MAC)
        .ipv6(POD6, PEER6, 17)
        .udp(4000, 53)
        .write(&mut packet, &vec![0xab; payload])
        .expect("writes to memory");
    packet
}

/// Changes an IPv4 packet and repairs its header checksum.
fn changed_v4(mut packet: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut packet);
    packet[L3 + 10..L3 + 12].fill(0);
    let check = Sum::default().add_bytes(&packet[L3..L3 + 20]).checksum();
    packet[L3 + 10..L3 + 12].copy_from_slice(&check.to_be_bytes());
    packet
}

fn changed(mut packet: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut packet);
    packet
}

/// An IPv6 packet with these bytes after the fixed header.
fn ipv6(next_header: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = udp_v6(0);
    packet.truncate(L3 + 40);
    packet[L3 + 4..L3 + 6].copy_from_slice(&(rest.len() as u16).to_be_bytes());
    packet[L3 + 6] = next_header;
    packet.extend_from_slice(rest);
    packet
}

fn icmp_v4(kind: u8) -> Vec<u8> {
    changed_v4(udp_v4(8), |packet| {
        packet[L3 + 9] = 1;
        packet[L3 + 20] = kind;
    })
}

fn refused(packet: &[u8]) {
    for kind in KINDS {
        assert!(!may_answer(kind, packet, L3), "{kind:?} {packet:02x?}");
        let mut out = [0x55; ERROR_BYTES_MAX];
        for source in [IpAddr::V4(NODE), IpAddr::V6(NODE6)] {
            let built = build(kind, packet, L3, &envelope(source), &mut out);
            assert_eq!(built, Err(IcmpError::MayNotAnswer));
        }
        assert_eq!(out, [0x55; ERROR_BYTES_MAX]);
    }
}

fn answered(packet: &[u8]) {
    for kind in KINDS {
        assert!(may_answer(kind, packet, L3), "{kind:?} {packet:02x?}");
    }
}

#[test]
fn an_icmp_error_has_the_type_code_addresses_and_quote_of_its_kind() {
    let packet = udp_v4(100);
    for kind in KINDS {
        let mut out = [0; ERROR_BYTES_MAX];
        let length = build(kind, &packet, L3, &envelope(NODE), &mut out).expect("answerable");
        let error = SlicedPacket::from_ethernet(&out[..length]).expect("parses");
        let Some(NetSlice::Ipv4(ip)) = error.net else { panic!("not IPv4") };
        let header = ip.header();
        assert_eq!(header.source(), NODE.octets());
        assert_eq!(header.destination(), POD);
        assert_eq!(header.ttl(), 64);
        assert_eq!(header.dcp().value(), 0xc0 >> 2);
        assert!(checksum::verify_ipv4_header(&out[L3..]));
        let Some(TransportSlice::Icmpv4(icmp)) = error.transport else { panic!("not ICMP") };
        assert_eq!(Sum::default().add_bytes(icmp.slice()).checksum(), 0);
        use icmpv4::{DestUnreachableHeader as Unreachable, TimeExceededCode};
        let expected = match kind {
            ErrorKind::HostUnreachable => Icmpv4Type::DestinationUnreachable(Unreachable::Host),
            ErrorKind::TimeExceeded => {
                Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit)
            }
            ErrorKind::TooBig { .. } => {
                let next_hop_mtu = 1400;
                Icmpv4Type::DestinationUnreachable(Unreachable::FragmentationNeeded {
                    next_hop_mtu,
                })
            }
        };
        assert_eq!(icmp.icmp_type(), expected);
        assert_eq!(icmp.payload(), &packet[L3..]);
        assert_eq!(out[..6], POD_MAC);
        assert_eq!(out[6..12], GATEWAY_MAC);
    }
}

#[test]
fn an_icmpv6_error_has_the_type_code_addresses_and_quote_of_its_kind() {
    let packet = udp_v6(100);
    for kind in KINDS {
        let mut out = [0; ERROR_BYTES_MAX];
        let length = build(kind, &packet, L3, &envelope(NODE6), &mut out).expect("answerable");
        let error = SlicedPacket::from_ethernet(&out[..length]).expect("parses");
        let Some(NetSlice::Ipv6(ip)) = error.net else { panic!("not IPv6") };
        assert_eq!(ip.header().source(), NODE6.octets());
        assert_eq!(ip.header().destination(), POD6);
        assert_eq!(ip.header().next_header(), IpNumber::IPV6_ICMP);
        let Some(TransportSlice::Icmpv6(icmp)) = error.transport else { panic!("not ICMPv6") };
        assert!(icmp.is_checksum_valid(NODE6.octets(), POD6));
        use icmpv6::{DestUnreachableCode as Unreachable, TimeExceededCode};
        let expected = match kind {
            ErrorKind::HostUnreachable => Icmpv6Type::DestinationUnreachable(Unreachable::Address),
            ErrorKind::TimeExceeded => Icmpv6Type::TimeExceeded(TimeExceededCode::HopLimitExceeded),
            ErrorKind::TooBig { mtu } => Icmpv6Type::PacketTooBig { mtu },
        };
        assert_eq!(icmp.icmp_type(), expected);
        assert_eq!(icmp.payload(), &packet[L3..]);
    }
}

#[test]
fn a_quote_is_cut_at_576_and_1280_bytes_of_datagram() {
    let mut out = [0; 2048];
    for payload in [519, 520, 521, 9000] {
        let packet = udp_v4(payload);
        let length = build(ErrorKind::TimeExceeded, &packet, L3, &envelope(NODE), &mut out);
        assert_eq!(length, Ok(14 + 576.min(28 + 28 + payload)));
    }
    for payload in [1183, 1184, 1185, 9000] {
        let packet = udp_v6(payload);
        let length = build(ErrorKind::TimeExceeded, &packet, L3, &envelope(NODE6), &mut out);
        assert_eq!(length, Ok(14 + 1280.min(48 + 48 + payload)));
    }
    assert_eq!(ERROR_BYTES_MAX, 14 + 1280);
}

#[test]
fn a_first_frame_of_a_longer_packet_is_quoted_as_far_as_it_goes() {
    let mut out = [0; ERROR_BYTES_MAX];
    let length = build(ErrorKind::TimeExceeded, &udp_v4(9000)[..80], L3, &envelope(NODE), &mut out);
    assert_eq!(length, Ok(14 + 28 + 80 - 14));
}

#[test]
fn an_ethernet_trailer_is_not_quoted() {
    let mut packet = udp_v4(1);
    packet.resize(60, 0);
    let mut out = [0; ERROR_BYTES_MAX];
    let length = build(ErrorKind::TimeExceeded, &packet, L3, &envelope(NODE), &mut out);
    assert_eq!(length, Ok(14 + 28 + 29));
    let mut packet = udp_v6(1);
    packet.resize(80, 0);
    let length = build(ErrorKind::TimeExceeded, &packet, L3, &envelope(NODE6), &mut out);
    assert_eq!(length, Ok(14 + 48 + 49));
}

#[test]
fn a_vlan_tag_moves_the_ip_header_and_is_not_answered_with() {
    let mut packet = udp_v4(10);
    packet.splice(12..12, [0x81, 0, 0, 5]);
    let mut out = [0; ERROR_BYTES_MAX];
    let length = build(ErrorKind::TimeExceeded, &packet, L3 + 4, &envelope(NODE), &mut out);
    assert_eq!(length, Ok(14 + 28 + 38));
    assert_eq!(out[12..14], EtherType::IPV4.0.to_be_bytes());
    assert_eq!(out[L3 + 28..][..38], packet[L3 + 4..]);
}

#[test]
fn the_type_of_service_is_kept_but_neither_precedence_nor_ecn() {
    let packet = changed_v4(udp_v4(10), |packet| packet[L3 + 1] = 0x39);
    let mut out = [0; ERROR_BYTES_MAX];
    build(ErrorKind::TimeExceeded, &packet, L3, &envelope(NODE), &mut out).expect("answerable");
    assert_eq!(out[L3 + 1], 0xd8);
}

#[test]
fn an_mtu_that_does_not_fit_16_bits_is_sent_as_the_largest_that_does() {
    let mut out = [0; ERROR_BYTES_MAX];
    let kind = ErrorKind::TooBig { mtu: 70_000 };
    build(kind, &udp_v4(10), L3, &envelope(NODE), &mut out).expect("answerable");
    assert_eq!(out[L3 + 20 + 4..][..4], [0, 0, 0xff, 0xff]);
    build(kind, &udp_v6(10), L3, &envelope(NODE6), &mut out).expect("answerable");
    assert_eq!(out[L3 + 40 + 4..][..4], 70_000u32.to_be_bytes());
}

#[test]
fn a_source_of_the_other_ip_version_is_refused() {
    let mut out = [0; ERROR_BYTES_MAX];
    let kind = ErrorKind::TimeExceeded;
    let built = build(kind, &udp_v4(1), L3, &envelope(NODE6), &mut out);
    assert_eq!(built, Err(IcmpError::SourceFamily));
    let built = build(kind, &udp_v6(1), L3, &envelope(NODE), &mut out);
    assert_eq!(built, Err(IcmpError::SourceFamily));
}

#[test]
fn an_output_one_byte_too_short_is_refused_and_one_that_fits_is_not() {
    let mut out = [0; 14 + 28 + 38];
    let kind = ErrorKind::TimeExceeded;
    let length = build(kind, &udp_v4(10), L3, &envelope(NODE), &mut out);
    assert_eq!(length, Ok(80));
    let length = build(kind, &udp_v4(10), L3, &envelope(NODE), &mut out[..79]);
    assert_eq!(length, Err(IcmpError::NoRoom { need: 80, have: 79 }));
}

#[test]
fn icmp_queries_are_answered_and_every_other_icmp_type_is_not() {
    for kind in 0..=255 {
        let query = matches!(kind, 0 | 8 | 9 | 10 | 13..=18 | 42 | 43);
        if query { answered(&icmp_v4(kind)) } else { refused(&icmp_v4(kind)) }
    }
}

#[test]
fn icmpv6_information_is_answered_and_errors_and_redirects_are_not() {
    for kind in 0..=255 {
        let packet = ipv6(58, &[kind, 0, 0, 0, 0, 0, 0, 0]);
        if kind >= 128 && kind != 137 { answered(&packet) } else { refused(&packet) }
    }
}

#[test]
fn an_icmp_message_without_a_type_is_not_answered() {
    let packet = changed_v4(udp_v4(8), |packet| {
        packet[L3 + 9] = 1;
        packet[L3 + 3] = 20; // The rest is an Ethernet trailer.
        packet[L3 + 20] = 8;
    });
    refused(&packet);
    let mut packet = ipv6(58, &[]);
    packet.extend([128; 20]);
    refused(&packet);
}

#[test]
fn a_first_fragment_is_answered_and_a_later_one_is_not() {
    answered(&changed_v4(udp_v4(8), |packet| packet[L3 + 6] = 0x20));
    refused(&changed_v4(udp_v4(8), |packet| packet[L3 + 7] = 1));
    refused(&changed_v4(udp_v4(8), |packet| packet[L3 + 6] = 0x10));
    let fragment = |offset: u16| {
        ipv6(44, &{
            let [high, low] = (offset << 3 | 1).to_be_bytes();
            [17, 0, high, low, 0, 0, 0, 1, 0, 1, 0, 2, 0, 8, 0, 0]
        })
    };
    answered(&fragment(0));
    refused(&fragment(1));
    refused(&fragment(0x1fff));
}

#[test]
fn ipv4_groups_and_bad_senders_are_not_answered() {
    for src in
        [[0, 0, 0, 0], [0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 1], [240, 0, 0, 1], [255; 4]]
    {
        refused(&changed_v4(udp_v4(8), |packet| packet[L3 + 12..L3 + 16].copy_from_slice(&src)));
    }
    for dst in [[224, 0, 0, 251], [239, 255, 255, 250], [240, 0, 0, 1], [255; 4]] {
        refused(&changed_v4(udp_v4(8), |packet| packet[L3 + 16..L3 + 20].copy_from_slice(&dst)));
    }
    for near in [[1, 0, 0, 1], [126, 0, 0, 1], [128, 0, 0, 1], [223, 255, 255, 1]] {
        answered(&changed_v4(udp_v4(8), |packet| packet[L3 + 12..L3 + 16].copy_from_slice(&near)));
    }
}

#[test]
fn ipv6_bad_senders_are_not_answered_and_groups_only_with_too_big() {
    for src in [[0; 16], Ipv6Addr::LOCALHOST.octets(), [0xff; 16]] {
        refused(&changed(udp_v6(8), |packet| packet[L3 + 8..L3 + 24].copy_from_slice(&src)));
    }
    answered(&changed(udp_v6(8), |packet| {
        packet[L3 + 8..L3 + 24].copy_from_slice(&Ipv6Addr::from(2).octets());
    }));
    let group = changed(udp_v6(8), |packet| {
        packet[..2].fill(0x33);
        packet[L3 + 24] = 0xff;
    });
    for kind in KINDS {
        let allowed = matches!(kind, ErrorKind::TooBig { .. });
        assert_eq!(may_answer(kind, &group, L3), allowed);
    }
    // An error about a group stays forbidden, whatever the kind.
    refused(&changed(ipv6(58, &[1; 8]), |packet| packet[L3 + 24] = 0xff));
}

#[test]
fn a_packet_to_a_link_group_is_not_answered() {
    refused(&changed(udp_v4(8), |packet| packet[..6].fill(0xff)));
    refused(&changed(udp_v4(8), |packet| packet[0] |= 1));
    let link_group = changed(udp_v6(8), |packet| packet[0] |= 1);
    assert!(!may_answer(ErrorKind::HostUnreachable, &link_group, L3));
    assert!(may_answer(ErrorKind::TooBig { mtu: 1280 }, &link_group, L3));
}

#[test]
fn an_error_says_how_long_the_stream_s_packet_was_that_it_refuses() {
    let tcp = |mut packet: Vec<u8>, protocol: usize| {
        packet[ETHERNET_BYTES + protocol] = 6;
        packet.split_off(ETHERNET_BYTES)
    };
    let (v4, v6) = (tcp(udp_v4(1000), 9), tcp(udp_v6(1000), 6));
    let udp = udp_v4(1000).split_off(ETHERNET_BYTES);
    let sender_v4 = IpAddr::from(*v4[12..].first_chunk::<4>().expect("IPv4"));
    let sender_v6 = IpAddr::from(*v6[8..].first_chunk::<16>().expect("IPv6"));
    let nobody = IpAddr::from([192, 0, 2, 99]);
    let message = |kind, code, quote: &[u8]| [&[kind, code, 0, 0, 0, 0, 5, 220], quote].concat();
    assert_eq!(refused_tcp_bytes(sender_v4, &message(3, 4, &v4)), Some(1028));
    assert_eq!(refused_tcp_bytes(sender_v6, &message(2, 0, &v6)), Some(1048));
    assert_eq!(refused_tcp_bytes(sender_v4, &message(3, 4, &v4[..20])), Some(1028), "enough");
    for (told, message) in [
        (sender_v4, message(3, 4, &v4[..19])),
        (sender_v6, message(2, 0, &v6[..39])),
        (nobody, message(3, 4, &v4)),
        (sender_v4, message(3, 4, &udp)),
        (sender_v4, message(3, 3, &v4)),
        (sender_v4, message(11, 0, &v4)),
        (sender_v6, message(1, 4, &v6)),
        (sender_v4, message(3, 4, &v6)),
        (sender_v6, message(2, 0, &v4)),
        (sender_v4, message(2, 0, &v4)),
        (sender_v4, vec![3, 4, 0, 0]),
        (sender_v4, vec![3]),
        (sender_v4, Vec::new()),
    ] {
        assert_eq!(refused_tcp_bytes(told, &message), None, "{told} {message:?}");
    }
}

#[test]
fn an_invalid_ip_header_is_not_answered() {
    refused(&changed(udp_v4(8), |packet| packet[L3 + 8] ^= 1)); // Checksum.
    refused(&changed_v4(udp_v4(8), |packet| packet[L3] = 0x44));
    refused(&changed_v4(udp_v4(8), |packet| packet[L3] = 0x55));
    refused(&changed_v4(udp_v4(8), |packet| packet[L3 + 3] = 19));
    refused(&udp_v4(8)[..L3 + 19]);
    refused(&udp_v6(8)[..L3 + 39]);
    refused(&[]);
    let far = may_answer(ErrorKind::TimeExceeded, &udp_v4(8), usize::MAX);
    assert!(!far);
}

#[test]
fn extension_headers_are_followed_to_an_icmpv6_error_behind_them() {
    let hop_by_hop = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let long_options = |next: u8| {
        let mut header = [0; 24];
        header[0] = next;
        header[1] = 2;
        header
    };
    let authentication = |next: u8| [next, 1, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1];
    let chain = |kind: u8| {
        let icmp = [kind, 0, 0, 0];
        [&hop_by_hop(60)[..], &long_options(51), &authentication(58), &icmp].concat()
    };
    answered(&ipv6(0, &chain(128)));
    refused(&ipv6(0, &chain(1)));
    refused(&ipv6(0, &chain(128)[..9])); // Cut off in the chain.
    let eight = [60u8; 8].map(|_| hop_by_hop(60)).concat();
    let mut last_is_udp = eight.clone();
    last_is_udp[56] = 17;
    answered(&ipv6(60, &last_is_udp));
    let nine = [&eight[..], &hop_by_hop(17)].concat();
    refused(&ipv6(60, &nine));
}

/// Gives an IPv4 packet its own length, a plausible sender and receiver and a right checksum.
fn make_ipv4_valid(ip: &mut [u8]) {
    let length = ip.len() as u16;
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    ip[6..8].fill(0);
    ip[10..12].fill(0);
    (ip[12], ip[16]) = (10, 10);
    let header_bytes = 4 * usize::from(ip[0] & 0x0f);
    let check = Sum::default().add_bytes(&ip[..header_bytes]).checksum();
    ip[10..12].copy_from_slice(&check.to_be_bytes());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_what_is_built_is_never_answered_itself(
        mut packet in prop::collection::vec(any::<u8>(), 0..200),
        version in prop::sample::select(vec![0x45u8, 0x46, 0x60, 0x6f, 0x00]),
        l3_offset in 0usize..40,
        kind in prop::sample::select(KINDS.to_vec()),
        repair in any::<bool>(),
    ) {
        if let Some(first) = packet.get_mut(l3_offset) {
            *first = version;
        }
        if repair && packet.len() >= l3_offset + 24 && l3_offset >= 14 {
            packet[0] &= 0xfe;
            if version >> 4 == 4 {
                make_ipv4_valid(&mut packet[l3_offset..]);
            }
        }
        for source in [IpAddr::V4(NODE), IpAddr::V6(NODE6)] {
            let mut out = [0; ERROR_BYTES_MAX];
            if let Ok(length) = build(kind, &packet, l3_offset, &envelope(source), &mut out) {
                let error = &out[..length];
                prop_assert!(SlicedPacket::from_ethernet(error).is_ok());
                for again in KINDS {
                    prop_assert!(!may_answer(again, error, L3));
                }
            }
        }
    }
}

mod limits {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn address(index: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0af4_0000 + index).into()
    }

    /// How many of `tries` errors at one moment pass.
    fn passing(limiter: &mut Limiter, kind: ErrorKind, tries: u32, now_ns: u64) -> u32 {
        (0..tries).filter(|_| limiter.allow(kind, address(1), now_ns)).count() as u32
    }

    /// The mean of a quantity over many seeds.
    fn mean(quantity: impl Fn(u64) -> u32) -> f64 {
        let seeds = 0..400;
        f64::from(seeds.clone().map(quantity).sum::<u32>()) / seeds.count() as f64
    }

    #[test]
    fn one_destination_gets_about_six_at_once_and_one_a_second_after() {
        let burst =
            mean(|seed| passing(&mut Limiter::new(seed), ErrorKind::HostUnreachable, 100, SECOND));
        assert!((5.4..6.0).contains(&burst), "{burst}");
        let in_100_s = mean(|seed| {
            let mut limiter = Limiter::new(seed);
            passing(&mut limiter, ErrorKind::HostUnreachable, 100, SECOND);
            (0..1000u64)
                .map(|tenth| SECOND + tenth * SECOND / 10)
                .map(|now| passing(&mut limiter, ErrorKind::HostUnreachable, 1, now))
                .sum()
        });
        assert!((90.0..110.0).contains(&in_100_s), "{in_100_s}");
    }

    #[test]
    fn all_destinations_together_get_about_fifty_at_once_and_a_thousand_a_second() {
        let burst = mean(|seed| {
            let mut limiter = Limiter::new(seed);
            let allow =
                |index: &u32| limiter.allow(ErrorKind::TimeExceeded, address(*index), SECOND);
            (0..400).filter(allow).count() as u32
        });
        assert!((48.9..50.4).contains(&burst), "{burst}");
        let mut limiter = Limiter::new(7);
        let passed = (0..40_000u64)
            .filter(|try_number| {
                let now = SECOND + try_number * 100_000; // 4 s, 10,000 a second.
                limiter.allow(ErrorKind::TimeExceeded, address(*try_number as u32), now)
            })
            .count();
        // Hash buckets of 512 destinations hold 6 at once and 1 a second each: some of the
        // 4000 die there.
        assert!((3000..4100).contains(&passed), "{passed}");
    }

    #[test]
    fn too_big_has_buckets_of_its_own() {
        let mut limiter = Limiter::new(1);
        for index in 0..10_000 {
            let _ = limiter.allow(ErrorKind::HostUnreachable, address(index), SECOND);
        }
        assert!(!limiter.allow(ErrorKind::HostUnreachable, address(1), SECOND));
        let passed = passing(&mut limiter, ErrorKind::TooBig { mtu: 1400 }, 100, SECOND);
        assert!((30..80).contains(&passed), "{passed}");
    }

    #[test]
    fn a_flooded_destination_leaves_the_others_their_tokens() {
        let mut limiter = Limiter::new(1);
        passing(&mut limiter, ErrorKind::HostUnreachable, 10_000, SECOND);
        let others = (2..30)
            .filter(|&index| limiter.allow(ErrorKind::HostUnreachable, address(index), SECOND))
            .count();
        assert!(others >= 20, "{others}");
    }

    #[test]
    fn the_number_that_passes_differs_between_seeds_and_repeats_for_one() {
        let burst = |seed| {
            let mut limiter = Limiter::new(seed);
            (0..400u32)
                .filter(|&index| limiter.allow(ErrorKind::TimeExceeded, address(index), SECOND))
                .count()
        };
        let bursts: std::collections::BTreeSet<usize> = (0..50).map(burst).collect();
        assert!(bursts.len() >= 5, "{bursts:?}");
        assert_eq!(burst(3), burst(3));
    }

    #[test]
    fn a_clock_that_steps_back_or_ends_neither_panics_nor_opens_the_limit() {
        let mut limiter = Limiter::new(1);
        assert!(limiter.allow(ErrorKind::TimeExceeded, address(1), 0));
        for now in [u64::MAX / 2, 0, u64::MAX / 2] {
            assert!(passing(&mut limiter, ErrorKind::TimeExceeded, 100, now) < 30);
        }
        // 584 years after it started the limit opens, but nothing overflows.
        passing(&mut limiter, ErrorKind::TimeExceeded, 100, u64::MAX);
    }
}
