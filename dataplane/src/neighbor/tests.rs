//! A pod's questions, right and wrong, and the answers read byte by byte.

use etherparse::{Icmpv6Slice, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

const POD_MAC: [u8; 6] = [0x0a, 1, 2, 3, 4, 5];
const GATEWAY_MAC: [u8; 6] = [0x0e, 9, 8, 7, 6, 5];
const POD4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 7);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0801, 2, 3, 4);
const ADDRESSES: [IpAddr; 2] = [IpAddr::V4(POD4), IpAddr::V6(POD6)];
const POD: PodIdentity<'static> = PodIdentity { mac: POD_MAC, addresses: &ADDRESSES };

/// All nodes of the link (RFC 4291 §2.7.1) and the Ethernet group it maps to (RFC 2464 §7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// `arp -n 169.254.1.1` from the pod: as the kernel sends it.
fn request() -> [u8; ARP_BYTES] {
    let from = ArpEnd { mac: POD_MAC, address: POD4 };
    let to = ArpEnd { mac: [0; 6], address: GATEWAY_V4 };
    let mut packet = arp_reply(from, to);
    packet[..6].copy_from_slice(&BROADCAST_MAC);
    packet[20..22].copy_from_slice(&ARP_REQUEST);
    packet
}

fn arp_answer(packet: &[u8]) -> Result<Vec<u8>, NeighborDrop> {
    let mut out = [0x55; 100];
    let length = answer_arp(packet, &POD, GATEWAY_MAC, &mut out)?;
    assert!(out[length..].iter().all(|&byte| byte == 0x55));
    Ok(out[..length].to_vec())
}

fn arp_drop(change: impl FnOnce(&mut [u8; ARP_BYTES])) -> NeighborDrop {
    let mut packet = request();
    change(&mut packet);
    arp_answer(&packet).expect_err("dropped")
}

/// What a solicitation is made of; the default is what a pod's kernel sends.
#[derive(Clone)]
struct Solicitation {
    dst_mac: [u8; 6],
    src: Ipv6Addr,
    dst: Ipv6Addr,
    hop_limit: u8,
    next_header: u8,
    kind: u8,
    code: u8,
    target: Ipv6Addr,
    options: Vec<u8>,
}

fn solicitation() -> Solicitation {
    Solicitation {
        dst_mac: [0x33, 0x33, 0xff, 0, 0, 1],
        src: POD6,
        dst: "ff02::1:ff00:1".parse().expect("an address"),
        hop_limit: 255,
        next_header: 58,
        kind: 135,
        code: 0,
        target: GATEWAY_V6,
        options: [&[1, 1][..], &POD_MAC].concat(),
    }
}

impl Solicitation {
    fn packet(&self) -> Vec<u8> {
        let mut message = vec![self.kind, self.code, 0, 0, 0, 0, 0, 0];
        message.extend(self.target.octets());
        message.extend(&self.options);
        let length = message.len() as u16;
        let (src, dst) = (self.src.octets(), self.dst.octets());
        let sum = crate::checksum::pseudo_header_v6(src, dst, 58, u32::from(length));
        let check = sum.add_bytes(&message).checksum();
        message[2..4].copy_from_slice(&check.to_be_bytes());
        // The source MAC of a pod's IP packets is a hint.
        let ethernet = [&self.dst_mac[..], &[2, 0, 0, 0, 0, 0], &ETHERTYPE_IPV6].concat();
        let [high, low] = length.to_be_bytes();
        let ip = [0x60, 0, 0, 0, high, low, self.next_header, self.hop_limit];
        [&ethernet[..], &ip, &src, &dst, &message].concat()
    }
}

fn nd_answer(packet: &[u8]) -> Result<Vec<u8>, NeighborDrop> {
    let mut out = [0x55; 100];
    let length = answer_nd(packet, &POD, GATEWAY_MAC, &mut out)?;
    assert!(out[length..].iter().all(|&byte| byte == 0x55));
    Ok(out[..length].to_vec())
}

fn nd_drop(change: impl FnOnce(&mut Solicitation)) -> NeighborDrop {
    let mut asked = solicitation();
    change(&mut asked);
    nd_answer(&asked.packet()).expect_err("dropped")
}

#[test]
fn a_request_for_the_gateway_is_answered_with_its_mac() {
    #[rustfmt::skip]
    let expected = [
        0x0a, 1, 2, 3, 4, 5,  0x0e, 9, 8, 7, 6, 5,  8, 6,
        0, 1, 8, 0, 6, 4, 0, 2,
        0x0e, 9, 8, 7, 6, 5,  169, 254, 1, 1,
        0x0a, 1, 2, 3, 4, 5,  10, 244, 1, 7,
    ];
    assert_eq!(arp_answer(&request()), Ok(expected.to_vec()));
}

#[test]
fn a_unicast_request_and_one_padded_to_60_bytes_are_answered() {
    let mut unicast = request();
    unicast[..6].copy_from_slice(&GATEWAY_MAC);
    assert!(arp_answer(&unicast).is_ok());
    assert!(arp_answer(&[&request()[..], &[0; 18]].concat()).is_ok());
}

#[test]
fn a_probe_for_the_gateway_is_answered_and_a_probe_for_the_pod_itself_is_not() {
    let mut probe = request();
    probe[28..32].fill(0);
    assert_eq!(arp_answer(&probe).expect("answered")[38..], [0, 0, 0, 0]);
    probe[38..].copy_from_slice(&POD4.octets());
    assert_eq!(arp_answer(&probe), Err(NeighborDrop::NotGateway));
}

#[test]
fn every_other_arp_packet_is_dropped_with_its_reason() {
    assert_eq!(arp_answer(&request()[..41]), Err(NeighborDrop::TooShort));
    for offset in 12..20 {
        assert_eq!(arp_drop(|packet| packet[offset] ^= 1), NeighborDrop::NotNeighbor);
    }
    for operation in [0, 2, 3] {
        assert_eq!(arp_drop(|packet| packet[21] = operation), NeighborDrop::NotRequest);
    }
    assert_eq!(arp_drop(|packet| packet[5] = 0), NeighborDrop::WrongReceiver);
    for offset in (6..12).chain(22..28).chain(28..32) {
        assert_eq!(arp_drop(|packet| packet[offset] ^= 1), NeighborDrop::SpoofedSender);
    }
    let pretends_to_be_the_gateway = |packet: &mut [u8; ARP_BYTES]| {
        packet[28..32].copy_from_slice(&GATEWAY_V4.octets());
    };
    assert_eq!(arp_drop(pretends_to_be_the_gateway), NeighborDrop::SpoofedSender);
    for offset in 38..42 {
        assert_eq!(arp_drop(|packet| packet[offset] ^= 1), NeighborDrop::NotGateway);
    }
}

#[test]
fn a_solicitation_for_the_gateway_is_answered_with_its_mac() {
    for src in [POD6, LINK_LOCAL] {
        let asked = Solicitation { src, ..solicitation() };
        let answer = nd_answer(&asked.packet()).expect("answered");
        assert_eq!(answer[..6], POD_MAC);
        assert_eq!(answer[6..12], GATEWAY_MAC);
        let parsed = SlicedPacket::from_ethernet(&answer).expect("parses");
        let Some(NetSlice::Ipv6(ip)) = parsed.net else { panic!("not IPv6") };
        assert_eq!(ip.header().source_addr(), GATEWAY_V6);
        assert_eq!(ip.header().destination_addr(), src);
        assert_eq!(ip.header().hop_limit(), 255);
        let Some(TransportSlice::Icmpv6(icmp)) = parsed.transport else { panic!("not ICMPv6") };
        check_advertisement(&icmp, GATEWAY_V6, src, 0xe0, GATEWAY_MAC);
    }
}

/// `flags` are the router, solicited and override bits.
fn check_advertisement(
    icmp: &Icmpv6Slice<'_>,
    target: Ipv6Addr,
    dst: Ipv6Addr,
    flags: u8,
    mac: [u8; 6],
) {
    assert!(icmp.is_checksum_valid(target.octets(), dst.octets()));
    assert!(matches!(icmp.icmp_type(), Icmpv6Type::NeighborAdvertisement(_)));
    assert_eq!(icmp.slice()[4..8], [flags, 0, 0, 0]);
    assert_eq!(icmp.slice()[8..24], target.octets());
    assert_eq!(icmp.slice()[24..26], [2, 1]);
    assert_eq!(icmp.slice()[26..], mac);
}

#[test]
fn a_unicast_probe_an_unknown_option_and_an_ethernet_trailer_do_not_hinder_an_answer() {
    let unicast = Solicitation { dst: GATEWAY_V6, dst_mac: GATEWAY_MAC, ..solicitation() };
    assert!(nd_answer(&unicast.packet()).is_ok());
    let nonce = Solicitation { options: [14, 1, 1, 2, 3, 4, 5, 6].to_vec(), ..solicitation() };
    assert!(nd_answer(&nonce.packet()).is_ok());
    let bare = Solicitation { options: Vec::new(), ..solicitation() };
    assert!(nd_answer(&[bare.packet(), vec![0xaa; 9]].concat()).is_ok());
}

#[test]
fn duplicate_address_detection_is_never_answered() {
    let probe = |target| {
        nd_drop(|asked| {
            asked.src = Ipv6Addr::UNSPECIFIED;
            asked.target = target;
            asked.options.clear();
        })
    };
    for target in [POD6, LINK_LOCAL, GATEWAY_V6] {
        assert_eq!(probe(target), NeighborDrop::DuplicateProbe);
    }
}

#[test]
fn what_rfc_4861_section_7_1_1_discards_is_dropped_with_its_reason() {
    assert_eq!(nd_drop(|asked| asked.hop_limit = 254), NeighborDrop::HopLimit);
    assert_eq!(nd_drop(|asked| asked.code = 1), NeighborDrop::Code);
    let multicast: Ipv6Addr = "ff02::1".parse().expect("an address");
    assert_eq!(nd_drop(|asked| asked.target = multicast), NeighborDrop::NotGateway);
    for options in [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[1, 2, 3, 4, 5, 6, 7, 8], &[1], &[14, 1, 0]] {
        assert_eq!(nd_drop(|asked| asked.options = options.to_vec()), NeighborDrop::Option);
    }
    let good = solicitation().packet();
    for bit in 54 * 8..good.len() * 8 {
        let mut broken = good.clone();
        broken[bit / 8] ^= 0x80 >> (bit % 8);
        assert!(nd_answer(&broken).is_err(), "bit {bit}");
    }
    let mut broken = good.clone();
    broken[56] ^= 1;
    assert_eq!(nd_answer(&broken), Err(NeighborDrop::Checksum));
    for length in 0..good.len() {
        assert_eq!(nd_answer(&good[..length]), Err(NeighborDrop::TooShort));
    }
    let mut short = good;
    short[19] = 23;
    assert_eq!(nd_answer(&short), Err(NeighborDrop::TooShort));
}

#[test]
fn questions_of_others_for_others_and_to_others_are_dropped() {
    for src in [GATEWAY_V6, Ipv6Addr::LOCALHOST, ALL_NODES, Ipv6Addr::from_bits(POD6.to_bits() + 1)]
    {
        assert_eq!(nd_drop(|asked| asked.src = src), NeighborDrop::SpoofedSender);
    }
    assert_eq!(nd_drop(|asked| asked.options[7] ^= 1), NeighborDrop::SpoofedSender);
    assert_eq!(nd_drop(|asked| asked.target = POD6), NeighborDrop::NotGateway);
    assert_eq!(nd_drop(|asked| asked.dst = ALL_NODES), NeighborDrop::NotGateway);
    assert_eq!(nd_drop(|asked| asked.dst_mac = ALL_NODES_MAC), NeighborDrop::WrongReceiver);
    for kind in [133, 134, 136, 137, 128, 1] {
        assert_eq!(nd_drop(|asked| asked.kind = kind), NeighborDrop::NotRequest);
    }
    for next_header in [0, 44, 60, 6] {
        let dropped = nd_drop(|asked| asked.next_header = next_header);
        assert_eq!(dropped, NeighborDrop::NotNeighbor);
    }
    assert_eq!(nd_answer(&request()), Err(NeighborDrop::NotNeighbor));
    assert_eq!(arp_answer(&solicitation().packet()), Err(NeighborDrop::NotNeighbor));
}

#[test]
fn an_output_one_byte_too_short_is_refused() {
    let mut out = [0; ADVERTISEMENT_BYTES];
    let short = answer_arp(&request(), &POD, GATEWAY_MAC, &mut out[..ARP_BYTES - 1]);
    assert_eq!(short, Err(NeighborDrop::NoRoom));
    let asked = solicitation().packet();
    let short = answer_nd(&asked, &POD, GATEWAY_MAC, &mut out[..ADVERTISEMENT_BYTES - 1]);
    assert_eq!(short, Err(NeighborDrop::NoRoom));
    assert_eq!(answer_nd(&asked, &POD, GATEWAY_MAC, &mut out), Ok(ADVERTISEMENT_BYTES));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..120),
        keep in 0usize..=94,
    ) {
        let mut out = [0; ADVERTISEMENT_BYTES];
        let _ = answer_arp(&bytes, &POD, GATEWAY_MAC, &mut out);
        let _ = answer_nd(&bytes, &POD, GATEWAY_MAC, &mut out);
        // Right at the start, arbitrary from some byte on.
        for mut packet in [request().to_vec(), solicitation().packet()] {
            packet.truncate(keep);
            packet.extend(&bytes);
            let _ = answer_arp(&packet, &POD, GATEWAY_MAC, &mut out);
            let _ = answer_nd(&packet, &POD, GATEWAY_MAC, &mut out);
        }
    }

    #[test]
    fn arbitrary_options_with_a_right_checksum_never_panic(
        options in prop::collection::vec(0u8..4, 0..80),
    ) {
        let _ = nd_answer(&Solicitation { options, ..solicitation() }.packet());
    }
}
