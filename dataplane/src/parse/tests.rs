//! Parsing against etherparse's full parser, and against everything else that bytes can be.

use std::net::IpAddr;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

const MACS: ([u8; 6], [u8; 6]) = ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]);

#[derive(Clone, Copy, Debug)]
enum Above {
    Udp,
    Tcp,
    Icmp,
}

/// A valid packet by etherparse's own builder.
fn built(src: IpAddr, dst: IpAddr, ttl: u8, above: Above, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(MACS.0, MACS.1);
    let ip = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), ttl),
        (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), ttl),
        _ => panic!("one family"),
    };
    let mut bytes = Vec::new();
    let written = match above {
        Above::Udp => ip.udp(11, 22).write(&mut bytes, payload),
        Above::Tcp => ip.tcp(11, 22, 33, 44).write(&mut bytes, payload),
        Above::Icmp if src.is_ipv4() => ip.icmpv4_echo_request(1, 2).write(&mut bytes, payload),
        Above::Icmp => ip.icmpv6_echo_request(1, 2).write(&mut bytes, payload),
    };
    written.expect("a packet of a valid size");
    bytes
}

fn ip_headers(bytes: &[u8]) -> Headers {
    match headers(bytes, bytes.len()) {
        Ok(Parsed::Ip(headers)) => headers,
        other => panic!("{other:?}"),
    }
}

/// What etherparse says of the same bytes.
fn agrees(bytes: &[u8], ours: &Headers) {
    let theirs = SlicedPacket::from_ethernet(bytes).expect("etherparse takes it as well");
    match (theirs.net.as_ref().expect("an IP header"), ours.addresses) {
        (NetSlice::Ipv4(ip), Addresses::V4 { src, dst }) => {
            let header = ip.header();
            assert_eq!((header.source_addr(), header.destination_addr()), (src, dst));
            assert_eq!(header.ttl(), ours.hop_limit);
            assert_eq!(header.dont_fragment(), ours.dont_fragment);
            assert_eq!(usize::from(header.total_len()), ours.ip_len());
            assert_eq!(ip.payload().ip_number.0, ours.protocol);
            assert_eq!(ip.payload().fragmented, ours.fragment != Fragment::Whole);
            let l4_len = ip.payload().payload.len();
            assert_eq!(ours.l4_offset + l4_len, ours.len);
        }
        (NetSlice::Ipv6(ip), Addresses::V6 { src, dst }) => {
            let header = ip.header();
            assert_eq!((header.source_addr(), header.destination_addr()), (src, dst));
            assert_eq!(header.hop_limit(), ours.hop_limit);
            assert_eq!(usize::from(header.payload_length()) + 40, ours.ip_len());
            assert_eq!(ip.payload().ip_number.0, ours.protocol);
            assert_eq!(ip.payload().fragmented, ours.fragment != Fragment::Whole);
            assert_eq!(ours.l4_offset + ip.payload().payload.len(), ours.len);
        }
        (net, addresses) => panic!("{net:?} is not {addresses:?}"),
    }
    if ours.fragment != Fragment::Whole {
        return; // Etherparse looks into no part of a datagram; of the first we read the type.
    }
    let icmp_type = match theirs.transport {
        Some(TransportSlice::Icmpv4(icmp)) => Some(icmp.type_u8()),
        Some(TransportSlice::Icmpv6(icmp)) => Some(icmp.type_u8()),
        _ => None,
    };
    assert_eq!(icmp_type, ours.icmp_type);
}

fn address(v6: bool) -> BoxedStrategy<IpAddr> {
    if v6 {
        any::<[u8; 16]>().prop_map(IpAddr::from).boxed()
    } else {
        any::<[u8; 4]>().prop_map(IpAddr::from).boxed()
    }
}

fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    any::<bool>().prop_flat_map(|v6| (address(v6), address(v6)))
}

fn above() -> impl Strategy<Value = Above> {
    prop_oneof![Just(Above::Udp), Just(Above::Tcp), Just(Above::Icmp)]
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200), more in 0..70_000usize,
    ) {
        let _ = headers(&bytes, bytes.len());
        let _ = headers(&bytes, bytes.len() + more);
    }

    #[test]
    fn arbitrary_ip_bytes_never_panic_and_stay_inside_of_the_frame(
        ether_type in prop_oneof![Just([0x08, 0x00]), Just([0x86, 0xdd])],
        mut ip in prop::collection::vec(any::<u8>(), 1..300),
        seal in any::<bool>(),
    ) {
        let v4 = ether_type == [0x08, 0x00];
        ip[0] = if v4 { 0x40 | ip[0] & 0xf } else { 0x60 | ip[0] & 0xf };
        // With plausible lengths and checksums more of the parser is reached.
        let len = ip.len() as u16;
        if seal && v4 && ip.len() >= 20 {
            ip[2..4].copy_from_slice(&len.to_be_bytes());
            ip[10..12].fill(0);
            let end = (usize::from(ip[0] & 0xf) * 4).min(ip.len());
            let check = Sum::default().add_bytes(&ip[..end]).checksum();
            ip[10..12].copy_from_slice(&check.to_be_bytes());
        } else if seal && ip.len() >= 40 {
            ip[4..6].copy_from_slice(&(len - 40).to_be_bytes());
        }
        let bytes = [[0; 12].as_slice(), &ether_type, &ip].concat();
        if let Ok(Parsed::Ip(headers)) = headers(&bytes, bytes.len()) {
            prop_assert!(headers.l4_offset <= headers.len && headers.len <= bytes.len());
        }
    }

    #[test]
    fn valid_packets_read_as_etherparse_reads_them(
        (src, dst) in addresses(), ttl in any::<u8>(), above in above(),
        payload in prop::collection::vec(any::<u8>(), 0..1400), padding in 0..50usize,
    ) {
        let mut bytes = built(src, dst, ttl, above, &payload);
        let ours = ip_headers(&bytes);
        prop_assert_eq!((ours.src_mac, ours.dst_mac), MACS);
        prop_assert_eq!((ours.source(), ours.destination()), (src, dst));
        prop_assert_eq!(ours.len, bytes.len());
        agrees(&bytes, &ours);
        bytes.resize(bytes.len() + padding, 0);
        prop_assert_eq!(ip_headers(&bytes), ours, "padding is not of the packet");
    }

    #[test]
    fn every_prefix_of_a_valid_packet_is_refused(
        (src, dst) in addresses(), above in above(),
        payload in prop::collection::vec(any::<u8>(), 0..90),
    ) {
        let bytes = built(src, dst, 64, above, &payload);
        for len in 0..bytes.len() {
            prop_assert!(headers(&bytes[..len], len).is_err(), "{} of {}", len, bytes.len());
        }
    }

    #[test]
    fn a_first_frame_of_a_longer_packet_is_enough(
        (src, dst) in addresses(), above in above(), cut in 74..400usize,
    ) {
        let bytes = built(src, dst, 64, above, &[5; 1000]);
        let whole = ip_headers(&bytes);
        prop_assert_eq!(headers(&bytes[..cut], bytes.len()), Ok(Parsed::Ip(whole)));
    }

    #[test]
    fn what_is_accepted_of_a_changed_ip_header_is_what_etherparse_reads(
        (src, dst) in addresses(), above in above(), at in 0..40usize, value in any::<u8>(),
    ) {
        let mut bytes = built(src, dst, 64, above, &[5; 40]);
        let before = ip_headers(&bytes);
        let at = ETHERNET_BYTES + at % (before.l4_offset - ETHERNET_BYTES);
        bytes[at] = value;
        if src.is_ipv4() && bytes[14] & 0xf == 5 {
            bytes[24..26].fill(0);
            let check = Sum::default().add_bytes(&bytes[14..34]).checksum();
            bytes[24..26].copy_from_slice(&check.to_be_bytes());
        }
        if let Ok(Parsed::Ip(ours)) = headers(&bytes, bytes.len()) {
            // Under another protocol number etherparse checks what is none of a router's concern.
            if ours.protocol == before.protocol {
                agrees(&bytes, &ours);
            }
        }
    }
}

#[test]
fn arp_is_recognised_and_not_looked_into() {
    let bytes = [MACS.1.as_slice(), &MACS.0, &[0x08, 0x06]].concat();
    assert_eq!(headers(&bytes, 14), Ok(Parsed::Arp { src_mac: MACS.0 }));
    assert_eq!(headers(&bytes[..13], 13), Err(DropReason::TooShort));
}

#[test]
fn link_control_is_icmpv6_of_the_link_alone() {
    let bytes =
        built("fe80::1".parse().unwrap(), "ff02::1".parse().unwrap(), 255, Above::Icmp, &[]);
    let base = ip_headers(&bytes);
    for kind in 0..=255 {
        let headers = Headers { icmp_type: Some(kind), ..base };
        assert_eq!(headers.is_link_control(), matches!(kind, 130..=137 | 143), "{kind}");
    }
    let v4 = ip_headers(&built([1, 2, 3, 4].into(), [5, 6, 7, 8].into(), 1, Above::Icmp, &[]));
    assert!(!Headers { icmp_type: Some(135), ..v4 }.is_link_control());
}
