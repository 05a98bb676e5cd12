//! Source addresses: what a port may send, and what nobody may.

use proptest::prelude::*;

use super::*;
use crate::offload::Hints;
use crate::parse::{Fragment, protocol};
use crate::port::{PortId, WorkerId};
use crate::tables::TablesInput;

const MAC: Mac = [0x0a, 1, 2, 3, 4, 5];

fn pod() -> PortSpec {
    PortSpec {
        id: PortId(1),
        worker: WorkerId(0),
        kind: PortKind::Pod,
        mac: MAC,
        gateway_mac: [0x0a, 0xff, 0, 0, 0, 1],
        mtu: 1500,
        device_mtu: 65_535,
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        hints: Hints::Marker,
        tx_checksum: true,
        limits: crate::shaper::Limits::default(),
    }
}

/// What `pod()` may send, on a node whose pods it is one of.
fn check(port: &PortSpec, headers: &Headers) -> Result<(), DropReason> {
    let input = TablesInput { ports: vec![pod()], ..TablesInput::default() };
    super::check(&Tables::new(1, input), port, headers)
}

fn headers(src: IpAddr, dst: IpAddr) -> Headers {
    let addresses = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Addresses::V4 { src, dst },
        (IpAddr::V6(src), IpAddr::V6(dst)) => Addresses::V6 { src, dst },
        _ => panic!("one family"),
    };
    Headers {
        src_mac: MAC,
        dst_mac: [0; 6],
        addresses,
        protocol: protocol::UDP,
        l4_offset: 34,
        len: 100,
        fragment: Fragment::Whole,
        fragment_id: 0,
        dont_fragment: true,
        hop_limit: 64,
        icmp_type: None,
    }
}

fn from(src: &str) -> Headers {
    let src: IpAddr = src.parse().unwrap();
    let dst = if src.is_ipv4() { "10.0.0.9" } else { "fd00::9" };
    headers(src, dst.parse().unwrap())
}

#[test]
fn a_pod_has_its_addresses_and_no_other() {
    assert_eq!(check(&pod(), &from("10.0.0.1")), Ok(()));
    assert_eq!(check(&pod(), &from("fd00::1")), Ok(()));
    assert_eq!(check(&pod(), &from("10.0.0.2")), Err(DropReason::SpoofedIpv4));
    assert_eq!(check(&pod(), &from("fd00::2")), Err(DropReason::SpoofedIpv6));
    let none = PortSpec { addresses: Vec::new(), ..pod() };
    assert_eq!(check(&none, &from("0.0.0.0")), Err(DropReason::SpoofedIpv4));
    let node = PortSpec { kind: PortKind::Node, ..none };
    assert_eq!(check(&node, &from("10.0.0.2")), Ok(()));
}

#[test]
fn another_node_may_send_from_everything_but_our_pods_addresses() {
    let uplink = PortSpec { kind: PortKind::Uplink, addresses: Vec::new(), ..pod() };
    assert_eq!(check(&uplink, &from("10.0.0.2")), Ok(()));
    assert_eq!(check(&uplink, &from("10.0.0.1")), Err(DropReason::SpoofedPod));
    assert_eq!(check(&uplink, &from("fd00::1")), Err(DropReason::SpoofedPod));
}

#[test]
fn an_address_of_one_family_is_none_of_the_other() {
    assert_eq!(check(&pod(), &from("::ffff:10.0.0.1")), Err(DropReason::SpoofedIpv6));
    assert_eq!(check(&pod(), &from("::10.0.0.1")), Err(DropReason::SpoofedIpv6));
}

#[test]
fn only_link_control_has_a_link_local_source() {
    for src in ["fe80::5", "::"] {
        let plain = from(src);
        assert_eq!(check(&pod(), &plain), Err(DropReason::SpoofedIpv6), "{src}");
        for kind in [130, 133, 135, 137, 143] {
            let control = Headers { icmp_type: Some(kind), ..plain };
            assert_eq!(check(&pod(), &control), Ok(()), "{src} {kind}");
        }
        for kind in [1, 128, 129, 138, 142, 144] {
            let other = Headers { icmp_type: Some(kind), ..plain };
            assert_eq!(check(&pod(), &other), Err(DropReason::SpoofedIpv6), "{src} {kind}");
        }
    }
    let other = Headers { icmp_type: Some(135), ..from("fd00::2") };
    assert_eq!(check(&pod(), &other), Err(DropReason::SpoofedIpv6));
}

proptest! {
    #[test]
    fn a_mac_is_the_pods_or_a_marker(mac in any::<[u8; 6]>(), one_bit in 0..48usize) {
        let mut near = MAC;
        near[one_bit / 8] ^= 1 << (one_bit % 8);
        for mac in [mac, near, MAC] {
            let good = mac == MAC || mac[0] == MARKER;
            let expected = if good { Ok(()) } else { Err(DropReason::SpoofedMac) };
            prop_assert_eq!(check(&pod(), &Headers { src_mac: mac, ..from("10.0.0.1") }), expected);
        }
    }

    #[test]
    fn no_other_ipv4_address_passes(bits in any::<u32>()) {
        let src = Ipv4Addr::from(bits);
        let expected = if pod().owns(src.into()) { Ok(()) } else { Err(DropReason::SpoofedIpv4) };
        prop_assert_eq!(check(&pod(), &headers(src.into(), src.into())), expected);
    }

    #[test]
    fn ipv4_martians_are_the_ranges_of_the_rfcs(src in any::<u32>(), dst in any::<u32>()) {
        let inside = |address: u32, first: [u8; 4], bits: u32| {
            address >> (32 - bits) == u32::from_be_bytes(first) >> (32 - bits)
        };
        let never = |address| {
            inside(address, [0, 0, 0, 0], 8)
                || inside(address, [127, 0, 0, 0], 8)
                || inside(address, [240, 0, 0, 0], 4)
        };
        let group = |address| inside(address, [224, 0, 0, 0], 4) || address == u32::MAX;
        let local = |address| inside(address, [169, 254, 0, 0], 16);
        let expected = if never(src) || group(src) {
            Err(DropReason::MartianSource)
        } else if group(dst) {
            Err(DropReason::Multicast)
        } else if never(dst) {
            Err(DropReason::MartianDestination)
        } else if local(src) || local(dst) {
            Err(DropReason::LinkLocal)
        } else {
            Ok(())
        };
        let both = headers(Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into());
        prop_assert_eq!(check_martians(&both), expected);
    }
}

#[test]
fn ipv6_martians_are_those_of_rfc_4291() {
    let good = "2001:db8::1";
    for (src, dst, expected) in [
        (good, good, Ok(())),
        ("::", good, Err(DropReason::MartianSource)),
        ("::1", good, Err(DropReason::MartianSource)),
        ("::ffff:1.2.3.4", good, Err(DropReason::MartianSource)),
        ("ff02::1", good, Err(DropReason::MartianSource)),
        ("fe80::1", good, Err(DropReason::LinkLocal)),
        ("febf::1", good, Err(DropReason::LinkLocal)),
        ("fec0::1", good, Ok(())),
        (good, "::", Err(DropReason::MartianDestination)),
        (good, "::1", Err(DropReason::MartianDestination)),
        (good, "::2", Ok(())),
        (good, "::ffff:1.2.3.4", Err(DropReason::MartianDestination)),
        (good, "ff0e::1", Err(DropReason::Multicast)),
        (good, "fe80::1", Err(DropReason::LinkLocal)),
        (good, "fd00::1", Ok(())),
    ] {
        let both = headers(src.parse().unwrap(), dst.parse().unwrap());
        assert_eq!(check_martians(&both), expected, "{src} to {dst}");
    }
}
