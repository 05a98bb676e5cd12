//! Tests without a kernel: what is sent is read back, and damage is no panic.

use super::wire::{messages, parse, refused};
use super::*;
use ipnet::IpNet;
use netlink_packet_core::ParseableParametrized;
use proptest::prelude::*;

fn bytes_of(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut message =
        NetlinkMessage::new(Default::default(), NetlinkPayload::InnerMessage(message));
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// Encodes and decodes, as the kernel and a monitor would.
fn round_trip(request: &Request) -> RouteNetlinkMessage {
    let bytes = bytes_of(request.message.clone(), request.flags);
    let part = messages(&bytes).next().expect("one message").expect("readable");
    RouteNetlinkMessage::parse_with_param(part.payload(), part.message_type()).expect("an object")
}

/// An `NLMSG_ERROR` with an extended acknowledgement, as the kernel sends it.
fn error_message(code: i32, words: &str) -> Vec<u8> {
    let mut body = code.to_ne_bytes().to_vec();
    body.extend([0; 16]);
    let length = u16::try_from(4 + words.len() + 1).expect("short");
    body.extend(length.to_ne_bytes());
    body.extend(1u16.to_ne_bytes());
    body.extend(words.bytes().chain([0]));
    body.resize(body.len().next_multiple_of(4), 0);
    let mut message = u32::try_from(16 + body.len()).expect("short").to_ne_bytes().to_vec();
    message.extend(NLMSG_ERROR.to_ne_bytes());
    message.extend(netlink_packet_core::NLM_F_ACK_TLVS.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

#[test]
fn an_error_is_the_kernels_number_and_words() {
    let bytes = error_message(-17, "ipv4: route exists.");
    let part = messages(&bytes).next().expect("one").expect("readable");
    let (source, detail) = refused(&part).expect("an error");
    assert_eq!(source, Errno::EXIST);
    let what = "add route 10.244.1.5/32 dev vd1234".to_owned();
    let error = NetlinkError::Refused { what, source, detail };
    assert_eq!(
        error.to_string(),
        "add route 10.244.1.5/32 dev vd1234: File exists (os error 17): ipv4: route exists"
    );
}

#[test]
fn an_acknowledgement_is_no_error() {
    let bytes = error_message(0, "");
    let part = messages(&bytes).next().expect("one").expect("readable");
    assert!(refused(&part).is_none());
}

#[test]
fn an_impossible_error_number_is_no_panic() {
    for code in [i32::MIN, i32::MAX, 1, -1, -4095, -4096, -70_000] {
        let bytes = error_message(code, "x");
        let part = messages(&bytes).next().expect("one").expect("readable");
        assert!(refused(&part).is_some(), "{code}");
    }
}

#[test]
fn tolerance_forgives_only_its_own_kind() {
    assert!(Tolerance::Present.accepts(Errno::EXIST));
    assert!(!Tolerance::Present.accepts(Errno::NOENT));
    assert!(!Tolerance::Absent.accepts(Errno::EXIST));
    assert!(!Tolerance::Absent.accepts(Errno::PERM));
    assert!(!Tolerance::None.accepts(Errno::EXIST));
    for errno in [Errno::NODEV, Errno::SRCH, Errno::NOENT, Errno::ADDRNOTAVAIL] {
        assert!(Tolerance::Absent.accepts(errno));
    }
}

#[test]
fn zeros_are_set_and_not_left_out() {
    let settings = LinkSettings {
        ipv4: &[(Ipv4Setting::SendRedirects, 0), (Ipv4Setting::RpFilter, 2)],
        address_generation: AddressGeneration::Off,
        alias: None,
        mtu: None,
    };
    let bytes = bytes_of(Request::configure_link("eth0", &settings).message, 0);
    let send_redirects_is_0 = [8, 0, 6, 0, 0, 0, 0, 0];
    let rp_filter_is_2 = [8, 0, 8, 0, 2, 0, 0, 0];
    for wanted in [send_redirects_is_0, rp_filter_is_2] {
        assert!(bytes.windows(8).any(|window| window == wanted), "{wanted:?} in {bytes:?}");
    }
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
    ]
}

proptest! {
    #[test]
    fn a_route_is_read_as_it_was_sent(
        dst in address(), length in 0..=128u8, table in 1..u32::MAX, index in 1..1000u32,
        metric in any::<u32>(), mtu in proptest::option::of(68..65535u32), onlink in any::<bool>(),
    ) {
        let length = if dst.is_ipv4() { length.min(32) } else { length };
        let dst = IpNet::new(dst, length).expect("length fits").trunc();
        let router = dst.addr();
        let mut route = Route { table, metric, mtu, src: Some(router),
            ..Route::via(dst, router, index, 118) };
        route.next_hops[0].onlink = onlink;
        match round_trip(&Request::put_route(&route, "eth0")) {
            RouteNetlinkMessage::NewRoute(message) => {
                prop_assert_eq!(Route::from_message(message), Some(route));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_neighbor_and_an_address_are_read_as_they_were_sent(
        address in address(), index in 1..1000u32, mac in any::<[u8; 6]>(),
    ) {
        let neighbor = Neighbor::permanent(index, address, mac);
        match round_trip(&Request::put_neighbor(&neighbor, "eth0")) {
            RouteNetlinkMessage::NewNeighbour(message) => {
                prop_assert_eq!(Neighbor::from_message(message), Some(neighbor));
            }
            other => prop_assert!(false, "{:?}", other),
        }
        let prefix_len = IpNet::from(address).prefix_len();
        let own = Address { index, address, prefix_len, scope: AddressScope::Link,
            preferred: true };
        match round_trip(&Request::put_address(&own, "eth0")) {
            RouteNetlinkMessage::NewAddress(message) => {
                prop_assert_eq!(Address::from_message(message), Some(own));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for part in messages(&bytes).flatten() {
            refused(&part);
            parse(&part, "test");
        }
    }

    #[test]
    fn a_damaged_message_is_read_without_a_panic(
        at in any::<prop::sample::Index>(), value in any::<u8>(),
    ) {
        let dst: IpNet = "10.244.1.0/24".parse().expect("prefix");
        let route = Route::via(dst, dst.addr(), 7, 118);
        let mut bytes = bytes_of(Request::put_route(&route, "eth0").message, 0);
        let at = at.index(bytes.len());
        bytes[at] = value;
        for part in messages(&bytes).flatten() {
            parse(&part, "test");
        }
    }
}

#[test]
fn a_multipath_route_keeps_each_way_with_its_weight() {
    use netlink_packet_route::route::{
        RouteAddress, RouteAttribute, RouteMessage, RouteNextHop, RouteNextHopFlags,
    };
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let mut first = RouteNextHop::default();
    first.interface_index = 3;
    first.hops = 1;
    first.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet([192, 0, 2, 1].into()))];
    let mut second = RouteNextHop::default();
    second.interface_index = 4;
    second.flags = RouteNextHopFlags::Linkdown;
    message.attributes = vec![RouteAttribute::MultiPath(vec![first, second])];
    let route = Route::from_message(message).expect("a route");
    assert_eq!(route.dst, "0.0.0.0/0".parse::<IpNet>().expect("prefix"));
    let [first, second] = route.next_hops[..] else { panic!("{route:?}") };
    assert_eq!((first.index, first.weight, first.dead), (3, 2, false));
    assert_eq!(first.via, Some("192.0.2.1".parse().expect("address")));
    assert_eq!((second.index, second.weight, second.via, second.dead), (4, 1, None, true));
}

/// An attribute as the kernel writes it.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("short");
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[test]
fn a_nexthop_object_is_a_way_or_a_group_or_something_else() {
    let header = vec![2, 0, 0, 0, 0, 0, 0, 0];
    let read = |attributes: &[Vec<u8>]| {
        Nexthop::from_payload(&[header.clone(), attributes.concat()].concat())
    };
    let id = attribute(1, &7u32.to_ne_bytes());
    let oif = attribute(5, &3u32.to_ne_bytes());
    let gateway = attribute(6, &[192, 0, 2, 1]);
    let via = Some("192.0.2.1".parse().expect("address"));
    let hop = NextHop { via, index: 3, weight: 1, onlink: false, dead: false };
    let way = NexthopRoute::Way(hop);
    let expected = Some(Nexthop { id: 7, route: way });
    assert_eq!(read(&[id.clone(), oif.clone(), gateway.clone()]), expected);
    let members = attribute(2, &[1, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 255, 1, 0, 0]);
    let group = NexthopRoute::Group(vec![(1, 5), (2, 512)]);
    assert_eq!(read(&[id.clone(), members]), Some(Nexthop { id: 7, route: group }));
    for other in [attribute(4, &[]), attribute(7, &[1, 0])] {
        let read = read(&[id.clone(), oif.clone(), gateway.clone(), other]);
        assert_eq!(read, Some(Nexthop { id: 7, route: NexthopRoute::Other }));
    }
    assert_eq!(read(&[oif, gateway]), None, "without an id");
    assert_eq!(read(&[id, attribute(6, &[1, 2, 3])]), None, "a router of three bytes");
}

#[test]
fn the_flags_of_a_message_say_where_a_route_stands() {
    use netlink_packet_core::NLM_F_APPEND;
    for (flags, place) in [
        (NLM_F_CREATE | NLM_F_EXCL, Place::Alone),
        (NLM_F_CREATE, Place::Before),
        (NLM_F_CREATE | NLM_F_APPEND, Place::After),
        (NLM_F_REPLACE, Place::Over),
        (NLM_F_REPLACE | NLM_F_CREATE, Place::Over),
    ] {
        assert_eq!(Place::from_flags(flags), place);
    }
}
