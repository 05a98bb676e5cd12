//! Translation against packets that are built anew, with every checksum summed over all bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::conntrack::Endpoint;
use crate::crc32c::tests::naive as crc32c;
use crate::parse::{Parsed, headers as parse};

/// A packet to be built: everything about it but its addresses and ports.
#[derive(Clone, Debug)]
struct Spec {
    transport: Transport,
    /// Bytes of IPv4 options, or of IPv6 extension headers: a multiple of 8.
    extra: usize,
    fragment: Fragment,
    sum: SumState,
    payload: Vec<u8>,
    /// Bytes after the packet.
    padding: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SumState {
    Complete,
    Partial,
    /// UDP without a checksum, SCTP with one of zero.
    None,
    /// This is added to the right one.
    Wrong(u16),
}

/// RFC 1071, word by word.
fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn number(transport: Transport, is_v4: bool) -> u8 {
    match (transport, is_v4) {
        (Transport::Query, false) => 58,
        (transport, _) => transport as u8,
    }
}

/// Sum of the pseudo-header; nothing for ICMP, which has none.
fn pseudo_header(key: &FlowKey, len: usize) -> Vec<u8> {
    let is_v4 = key.src.address.is_ipv4();
    if is_v4 && key.transport == Transport::Query {
        return Vec::new();
    }
    let mut bytes = [octets(key.src.address), octets(key.dst.address)].concat();
    bytes.extend((len as u32).to_be_bytes());
    bytes.extend([0, 0, 0, number(key.transport, is_v4)]);
    bytes
}

/// The L4 header and payload of the whole datagram.
fn l4(key: &FlowKey, spec: &Spec) -> Vec<u8> {
    let mut ports = [key.src.port.to_be_bytes(), key.dst.port.to_be_bytes()].concat();
    let (len, at) = match key.transport {
        Transport::Tcp => (20, 16),
        Transport::Udp => (8, 6),
        Transport::Sctp => (12, 8),
        Transport::Query => (8, 2),
    };
    if key.transport == Transport::Query {
        let is_v4 = key.src.address.is_ipv4();
        let kind = match (is_v4, key.dst.port == 0) {
            (true, true) => 8,
            (true, false) => 0,
            (false, true) => 128,
            (false, false) => 129,
        };
        let id = (key.src.port | key.dst.port).to_be_bytes();
        ports = vec![kind, 0, 0, 0, id[0], id[1]];
    }
    let mut bytes = ports;
    bytes.resize(len, 0);
    if key.transport == Transport::Tcp {
        bytes[12] = 0x50;
    }
    bytes.extend(&spec.payload);
    if key.transport == Transport::Udp {
        let len = (bytes.len() as u16).to_be_bytes();
        bytes[4..6].copy_from_slice(&len);
    }
    if key.transport == Transport::Sctp {
        let check = match spec.sum {
            SumState::Complete | SumState::Partial => crc32c(&bytes),
            SumState::None => 0,
            SumState::Wrong(by) => crc32c(&bytes) ^ u32::from(by),
        };
        bytes[at..at + 4].copy_from_slice(&check.to_le_bytes());
        return bytes;
    }
    let pseudo = pseudo_header(key, bytes.len());
    let whole = [pseudo.clone(), bytes.clone()].concat();
    let udp =
        |check: u16| if key.transport == Transport::Udp && check == 0 { 0xffff } else { check };
    let check = match spec.sum {
        SumState::Complete => udp(!naive_sum(&whole)),
        SumState::Partial => naive_sum(&pseudo),
        SumState::None if key.transport == Transport::Udp => 0,
        SumState::None => udp(!naive_sum(&whole)),
        // One's complement, so that the error means the same beside another right sum.
        SumState::Wrong(by) => {
            udp(naive_sum(&[(!naive_sum(&whole)).to_be_bytes(), by.to_be_bytes()].concat()))
        }
    };
    bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
    bytes
}

/// An IP packet with a payload that is `bytes` of a datagram.
fn ip(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    extra: usize,
    fragment: Fragment,
    bytes: &[u8],
) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let len = 20 + extra;
            let mut header = vec![0u8; len];
            header[0] = 0x40 | (len / 4) as u8;
            header[2..4].copy_from_slice(&((len + bytes.len()) as u16).to_be_bytes());
            header[4..6].copy_from_slice(&[0x12, 0x34]);
            let field: u16 = match fragment {
                Fragment::Whole => 0x4000,
                Fragment::First => 0x2000,
                Fragment::Later => 0x2005,
            };
            header[6..8].copy_from_slice(&field.to_be_bytes());
            header[8] = 63;
            header[9] = protocol;
            header[12..16].copy_from_slice(&src.octets());
            header[16..20].copy_from_slice(&dst.octets());
            header[20..].fill(1);
            let check = !naive_sum(&header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            [&header, bytes].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut rest = Vec::new();
            let mut next = protocol;
            if fragment != Fragment::Whole {
                let field: u16 = if fragment == Fragment::First { 1 } else { 40 | 1 };
                let field = field.to_be_bytes();
                rest.extend([next, 0, field[0], field[1], 0, 0, 0, 7]);
                next = 44;
            }
            if extra > 0 {
                let mut options = vec![0u8; extra];
                options[0] = next;
                options[1] = (extra / 8 - 1) as u8;
                options[2] = 1;
                options[3] = (extra - 4) as u8;
                rest = [options, rest].concat();
                next = 60;
            }
            rest.extend(bytes);
            let mut header = vec![0x60, 0, 0, 0, 0, 0, next, 63];
            header[4..6].copy_from_slice(&(rest.len() as u16).to_be_bytes());
            header.extend(src.octets());
            header.extend(dst.octets());
            [header, rest].concat()
        }
        _ => unreachable!("a key is of one family"),
    }
}

fn ethernet(ip: &[u8], padding: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(if ip[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend(ip);
    frame.resize(frame.len() + padding, 0xee);
    frame
}

fn ip_packet(key: &FlowKey, spec: &Spec) -> Vec<u8> {
    let l4 = l4(key, spec);
    let part = match spec.fragment {
        Fragment::Whole => &l4[..],
        Fragment::First => &l4[..l4.len() / 8 * 8],
        Fragment::Later => &l4[l4.len() / 2..],
    };
    let protocol = number(key.transport, key.src.address.is_ipv4());
    ip(key.src.address, key.dst.address, protocol, spec.extra, spec.fragment, part)
}

fn frame(key: &FlowKey, spec: &Spec) -> Vec<u8> {
    ethernet(&ip_packet(key, spec), spec.padding)
}

fn headers(frame: &[u8]) -> Headers {
    match parse(frame, frame.len()) {
        Ok(Parsed::Ip(headers)) => headers,
        other => panic!("the test builds IP packets: {other:?}"),
    }
}

fn partial(spec: &Spec, headers: &Headers) -> Option<Partial> {
    let offset = check_offset(spec.transport) as u16;
    let start = headers.l4_offset as u16;
    (spec.sum == SumState::Partial).then_some(Partial { start, offset })
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![
        Just(Transport::Tcp),
        Just(Transport::Udp),
        Just(Transport::Sctp),
        Just(Transport::Query),
    ]
}

fn address(is_v4: bool) -> impl Strategy<Value = IpAddr> {
    // Words of zeros and ones, where the two zeros of one's complement live, beside all others.
    (any::<u128>(), prop_oneof![2 => Just(u128::MAX), 1 => any::<u128>()], any::<bool>()).prop_map(
        move |(bits, mask, ones)| {
            let bits = bits & mask | if ones { 0xffff } else { 0 };
            match is_v4 {
                true => IpAddr::V4(Ipv4Addr::from(bits as u32)),
                false => IpAddr::V6(Ipv6Addr::from(bits | 1 << 127)),
            }
        },
    )
}

/// Two keys of one transport and family; of a query the same end is the asker.
fn keys() -> impl Strategy<Value = (FlowKey, FlowKey)> {
    let ports = || prop_oneof![any::<u16>(), Just(0xffff), Just(1)];
    let key = move |transport, is_v4, asks: bool| {
        (address(is_v4), ports(), address(is_v4), ports()).prop_map(move |(src, a, dst, b)| {
            let is_query = transport == Transport::Query;
            let (a, b) = match (is_query, asks) {
                (true, true) => (a.max(1), 0),
                (true, false) => (0, b.max(1)),
                _ => (a, b),
            };
            let (src, dst) =
                (Endpoint { address: src, port: a }, Endpoint { address: dst, port: b });
            FlowKey { transport, src, dst }
        })
    };
    (transport(), any::<bool>(), any::<bool>()).prop_flat_map(move |(transport, is_v4, asks)| {
        (key(transport, is_v4, asks), key(transport, is_v4, asks))
    })
}

fn spec() -> impl Strategy<Value = Spec> {
    let fragment = prop_oneof![
        4 => Just(Fragment::Whole), 1 => Just(Fragment::First), 1 => Just(Fragment::Later),
    ];
    let sum = prop_oneof![
        3 => Just(SumState::Complete),
        1 => Just(SumState::Partial),
        1 => Just(SumState::None),
        1 => (1u16..0xffff).prop_map(SumState::Wrong),
    ];
    let extra = prop_oneof![2 => Just(0usize), 1 => Just(8usize), 1 => Just(24usize)];
    let payload = prop::collection::vec(any::<u8>(), 24..200);
    (fragment, sum, extra, payload, 0..20usize).prop_map(
        |(fragment, sum, extra, payload, padding)| Spec {
            transport: Transport::Tcp,
            extra,
            fragment,
            sum,
            payload,
            padding,
        },
    )
}

/// A spec that fits the transport.
fn fitting(spec: Spec, transport: Transport) -> Spec {
    // A field that is zero says that nobody summed, so no right or wrong sum may look like that.
    let sum = match (spec.sum, transport) {
        (SumState::Partial, Transport::Sctp) => SumState::Complete,
        (sum, _) => sum,
    };
    let sum = if spec.fragment != Fragment::Whole && sum == SumState::Partial {
        SumState::Complete
    } else {
        sum
    };
    Spec { transport, sum, ..spec }
}

/// The L4 checksum field, for packets that have one.
fn check_of(frame: &[u8], headers: &Headers, transport: Transport) -> Option<u16> {
    u16_at(frame, headers.l4_offset + check_offset(transport))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_translated_packet_is_the_one_built_anew((from, to) in keys(), spec in spec()) {
        let spec = fitting(spec, from.transport);
        let (mut packet, wanted) = (frame(&from, &spec), frame(&to, &spec));
        let headers = headers(&packet);
        let before = packet.clone();
        let result = translate(&mut packet, &headers, &to, partial(&spec, &headers));
        let same_ports = (from.src.port, from.dst.port) == (to.src.port, to.dst.port);
        if spec.fragment == Fragment::First && spec.transport == Transport::Sctp && !same_ports {
            prop_assert_eq!(result, Err(NatError::SctpFragment));
            prop_assert_eq!(packet, before);
            return Ok(());
        }
        prop_assert_eq!(result, Ok(()));
        // A wrong sum stays wrong by as much, but one's complement has two zeros.
        if spec.fragment != Fragment::Later && matches!(spec.sum, SumState::Wrong(_)) {
            let l4 = headers.l4_offset + check_offset(spec.transport);
            let ours = check_of(&packet, &headers, spec.transport);
            let theirs = check_of(&wanted, &headers, spec.transport);
            prop_assert!(ours == theirs || (ours, theirs) == (Some(0), Some(0xffff))
                || (ours, theirs) == (Some(0xffff), Some(0)));
            packet[l4..l4 + 2].copy_from_slice(&wanted[l4..l4 + 2]);
        }
        prop_assert_eq!(packet, wanted);
    }

    #[test]
    fn translating_back_gives_the_packet_that_was((from, to) in keys(), spec in spec()) {
        let mut spec = fitting(spec, from.transport);
        if matches!(spec.sum, SumState::Wrong(_)) {
            spec.sum = SumState::Complete;
        }
        let original = frame(&from, &spec);
        let mut packet = original.clone();
        let partial = partial(&spec, &headers(&packet));
        let there = translate(&mut packet, &headers(&original), &to, partial);
        prop_assume!(there.is_ok());
        let back = headers(&packet);
        prop_assert_eq!(translate(&mut packet, &back, &from, partial), Ok(()));
        prop_assert_eq!(packet, original);
    }

    #[test]
    fn a_packet_has_the_key_that_it_was_translated_to((from, to) in keys(), spec in spec()) {
        let spec = fitting(spec, from.transport);
        let mut packet = frame(&from, &spec);
        let before = headers(&packet);
        let is_later = spec.fragment == Fragment::Later;
        prop_assert_eq!(FlowKey::of_packet(&packet, &before), (!is_later).then_some(from));
        if translate(&mut packet, &before, &to, partial(&spec, &before)).is_ok() {
            let after = headers(&packet);
            let ends = (after.source(), after.destination());
            prop_assert_eq!(ends, (to.src.address, to.dst.address));
            prop_assert_eq!(FlowKey::of_packet(&packet, &after), (!is_later).then_some(to));
        }
    }

    /// An error of an end or of a router, about a packet of which any number of bytes is quoted.
    #[test]
    fn a_translated_error_is_the_one_built_anew(
        (received, sent) in keys(),
        spec in spec(),
        quoted in 0usize..200,
        router in any::<u128>(),
        by_router: bool,
        padding in 0usize..20,
    ) {
        let mut spec = fitting(spec, received.transport);
        spec.fragment = Fragment::Whole;
        if spec.sum != SumState::None || spec.transport == Transport::Sctp {
            spec.sum = SumState::Complete;
        }
        let is_v4 = received.src.address.is_ipv4();
        let router = match is_v4 {
            true => IpAddr::V4(Ipv4Addr::from(router as u32)),
            false => IpAddr::V6(Ipv6Addr::from(router | 1 << 127)),
        };
        prop_assume!(!by_router || router != received.src.address);
        // What of the quote must be there for its flow to be told.
        let least = 8 + spec.extra + if is_v4 { 20 } else { 40 };
        let build = |own: &FlowKey| {
            let inner = ip_packet(&own.inverse(), &spec);
            // A checksum that is cut in its middle is updated as little as one that is cut off.
            let check = least - 8 + check_offset(spec.transport);
            let check = check + 1..check + if spec.transport == Transport::Sctp { 4 } else { 2 };
            let cut = least + quoted;
            let cut = if check.contains(&cut) { check.end } else { cut };
            let inner = &inner[..cut.min(inner.len())];
            let source = if by_router { router } else { own.src.address };
            ethernet(&icmp_error(source, own.dst.address, inner), padding)
        };
        let (mut error, wanted) = (build(&received), build(&sent));
        let outer = headers(&error);
        let found = quote(&error, &outer).unwrap().expect("an ICMP error");
        prop_assert_eq!(found.key, received.inverse());
        translate_error(&mut error, &outer, &found, (&received, &sent), None).unwrap();
        prop_assert_eq!(error, wanted);
    }

    #[test]
    fn no_bytes_make_a_quote_or_its_translation_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..160),
        is_v4: bool,
        kind in 0u8..5,
        (received, sent) in keys(),
    ) {
        let (src, dst) = match is_v4 {
            true => (Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(10, 0, 0, 2).into()),
            false => (IpAddr::V6(Ipv6Addr::from(1 << 120)), IpAddr::V6(Ipv6Addr::from(2 << 120))),
        };
        let mut error = ethernet(&icmp_error(src, dst, &bytes), 0);
        let at = if is_v4 { 34 } else { 54 };
        error[at] = kind;
        let Ok(Parsed::Ip(headers)) = parse(&error, error.len()) else { return Ok(()) };
        let len = error.len();
        if let Ok(Some(found)) = quote(&error, &headers) {
            prop_assert!(found.l4_offset < len);
            let keys = (&received, &sent);
            let _unreadable = translate_error(&mut error, &headers, &found, keys, None);
        }
    }
}

/// Time exceeded, about a packet.
fn icmp_error(src: IpAddr, dst: IpAddr, quoted: &[u8]) -> Vec<u8> {
    let is_v4 = src.is_ipv4();
    let (kind, protocol) = if is_v4 { (11, 1) } else { (3, 58) };
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(quoted);
    let end = |address| Endpoint { address, port: 0 };
    let key = FlowKey { transport: Transport::Query, src: end(src), dst: end(dst) };
    let check = !naive_sum(&[pseudo_header(&key, message.len()), message.clone()].concat());
    message[2..4].copy_from_slice(&check.to_be_bytes());
    ip(src, dst, protocol, 0, Fragment::Whole, &message)
}

fn key(transport: Transport, src: (&str, u16), dst: (&str, u16)) -> FlowKey {
    let end = |(address, port): (&str, u16)| Endpoint { address: address.parse().unwrap(), port };
    FlowKey { transport, src: end(src), dst: end(dst) }
}

fn plain(transport: Transport) -> Spec {
    let payload = b"some bytes of payload, more than eight".to_vec();
    let (fragment, sum) = (Fragment::Whole, SumState::Complete);
    Spec { transport, extra: 0, fragment, sum, payload, padding: 0 }
}

#[test]
fn addresses_of_the_other_family_are_refused_and_nothing_changes() {
    let from = key(Transport::Tcp, ("10.0.0.1", 1), ("10.0.0.2", 2));
    let to = key(Transport::Tcp, ("fd00::1", 1), ("fd00::2", 2));
    let mut packet = frame(&from, &plain(Transport::Tcp));
    let (before, headers) = (packet.clone(), headers(&packet));
    assert_eq!(translate(&mut packet, &headers, &to, None), Err(NatError::Family));
    assert_eq!(packet, before);
}

#[test]
fn a_partial_checksum_of_a_packet_inside_leaves_that_of_the_tunnel_complete() {
    let from = key(Transport::Udp, ("10.0.0.1", 1000), ("10.0.0.2", 4789));
    let to = key(Transport::Udp, ("10.0.0.1", 1000), ("10.244.1.2", 4789));
    let spec = plain(Transport::Udp);
    let packet = frame(&from, &spec);
    let headers = headers(&packet);
    // TCP inside, or UDP, whose field is at the same offset as the tunnel's own.
    let inside = [16, 6].map(|offset| Partial { start: headers.l4_offset as u16 + 8, offset });
    for inside in inside {
        let mut packet = packet.clone();
        translate(&mut packet, &headers, &to, Some(inside)).unwrap();
        assert_eq!(packet, frame(&to, &spec));
    }
}

#[test]
fn the_ports_of_a_partial_checksum_are_not_in_it() {
    let from = key(Transport::Tcp, ("10.0.0.1", 1000), ("10.0.0.2", 80));
    let to = key(Transport::Tcp, ("10.0.0.1", 2000), ("10.0.0.2", 8080));
    let spec = Spec { sum: SumState::Partial, ..plain(Transport::Tcp) };
    let mut packet = frame(&from, &spec);
    let headers = headers(&packet);
    let before = check_of(&packet, &headers, Transport::Tcp);
    translate(&mut packet, &headers, &to, partial(&spec, &headers)).unwrap();
    assert_eq!(check_of(&packet, &headers, Transport::Tcp), before);
    assert_eq!(packet, frame(&to, &spec));
}

#[test]
fn what_is_no_error_quotes_nothing_and_what_cannot_be_read_is_refused() {
    let flow = key(Transport::Udp, ("10.0.0.1", 1000), ("10.0.0.2", 80));
    let udp = frame(&flow, &plain(Transport::Udp));
    assert_eq!(quote(&udp, &headers(&udp)), Ok(None));
    let echo = key(Transport::Query, ("10.0.0.1", 1000), ("10.0.0.2", 0));
    let echo = frame(&echo, &plain(Transport::Query));
    assert_eq!(quote(&echo, &headers(&echo)), Ok(None));

    let refused = |inner: &[u8]| {
        let error = ethernet(&icmp_error(flow.src.address, flow.dst.address, inner), 0);
        quote(&error, &headers(&error))
    };
    let inner = ip_packet(&flow.inverse(), &plain(Transport::Udp));
    assert!(matches!(refused(&inner), Ok(Some(_))));
    assert_eq!(refused(&inner[..23]), Err(NatError::Quote), "the ports are cut off");
    assert!(matches!(refused(&inner[..24]), Ok(Some(_))));
    assert!(matches!(refused(&inner), Ok(Some(Quote { l4_bytes: Some(46), .. }))));
    let first = Spec { fragment: Fragment::First, ..plain(Transport::Udp) };
    let first = refused(&ip_packet(&flow, &first));
    assert!(matches!(first, Ok(Some(Quote { l4_bytes: None, .. }))), "it does not say how long");
    let later = Spec { fragment: Fragment::Later, ..plain(Transport::Udp) };
    assert_eq!(refused(&ip_packet(&flow, &later)), Err(NatError::Quote));
    let other = key(Transport::Udp, ("fd00::1", 1000), ("fd00::2", 80));
    assert_eq!(refused(&ip_packet(&other, &plain(Transport::Udp))), Err(NatError::Quote));
    let about_error = icmp_error(flow.src.address, flow.dst.address, &inner);
    assert_eq!(refused(&about_error), Err(NatError::Quote), "no error about an error");
}

#[test]
fn padding_behind_a_short_quote_is_not_taken_for_its_checksum() {
    let received = key(Transport::Tcp, ("10.0.0.1", 1000), ("10.0.0.2", 80));
    let sent = key(Transport::Tcp, ("10.9.9.9", 1001), ("10.8.8.8", 8080));
    let build = |own: &FlowKey| {
        let inner = ip_packet(&own.inverse(), &plain(Transport::Tcp));
        ethernet(&icmp_error(own.src.address, own.dst.address, &inner[..28]), 30)
    };
    let mut error = build(&received);
    let outer = headers(&error);
    let found = quote(&error, &outer).unwrap().unwrap();
    translate_error(&mut error, &outer, &found, (&received, &sent), None).unwrap();
    assert_eq!(error, build(&sent));
}

#[test]
fn a_udp_checksum_is_never_zero_after_a_change() {
    let spec = plain(Transport::Udp);
    let from = key(Transport::Udp, ("fd00::1", 1000), ("fd00::2", 80));
    let mut was_all_ones = false;
    for port in 0..=u16::MAX {
        let to = key(Transport::Udp, ("fd00::1", port), ("fd00::3", 8080));
        let mut packet = frame(&from, &spec);
        let headers = headers(&packet);
        translate(&mut packet, &headers, &to, None).unwrap();
        let check = check_of(&packet, &headers, Transport::Udp);
        assert_ne!(check, Some(0), "port {port}");
        if check == Some(0xffff) {
            was_all_ones = true;
            assert_eq!(packet, frame(&to, &spec));
        }
    }
    assert!(was_all_ones, "some port makes the sum zero");
}

#[test]
fn what_follows_a_quoted_packet_is_not_taken_for_its_checksum() {
    // An extension structure (RFC 4884) behind a packet that says it ends after its ports.
    let received = key(Transport::Tcp, ("10.0.0.1", 1000), ("10.0.0.2", 80));
    let sent = key(Transport::Tcp, ("10.9.9.9", 1001), ("10.8.8.8", 8080));
    let build = |own: &FlowKey| {
        let of = own.inverse();
        let l4 = l4(&of, &plain(Transport::Tcp));
        let inner = ip(of.src.address, of.dst.address, 6, 0, Fragment::Whole, &l4[..8]);
        let quoted = [inner, vec![0xab; 40]].concat();
        ethernet(&icmp_error(own.src.address, own.dst.address, &quoted), 0)
    };
    let mut error = build(&received);
    let outer = headers(&error);
    let found = quote(&error, &outer).unwrap().unwrap();
    translate_error(&mut error, &outer, &found, (&received, &sent), None).unwrap();
    assert_eq!(error, build(&sent));
}

proptest! {
    /// A flow as a worker sees it: a question, its answer, and an error about either.
    #[test]
    fn who_asks_and_who_serves_see_one_connection_each(
        (original, other) in keys(),
        asked_source: bool,
        spec in spec(),
    ) {
        use crate::conntrack::{NewFlow, Replies, Signal, Source};
        prop_assume!(original.transport != Transport::Query || original.dst.port == 0);
        let spec = Spec { fragment: Fragment::Whole, sum: SumState::Complete, ..spec };
        let spec = fitting(spec, original.transport);
        let mut table = flow_table();
        let serving = other.dst;
        prop_assume!(serving != original.dst && serving != original.src);
        let source = if asked_source { Source::Asked } else { Source::Client };
        let (owner, replies) = (crate::port::PortId(1), Replies::ByRoute);
        let new = NewFlow { owner, original, serving, source, replies };
        // UDP is as good as any: what a flow is translated to does not depend on its state.
        let found = table.open(&new, &Signal::Udp, 0).unwrap();

        let mut question = frame(&original, &spec);
        let to_pod = headers(&question);
        translate(&mut question, &to_pod, &table.sent(found), None).unwrap();
        let seen = FlowKey::of_packet(&question, &headers(&question)).unwrap();
        prop_assert_eq!(seen.dst, serving);

        let answer_key = seen.inverse();
        let mut answer = frame(&answer_key, &spec);
        let found = table.lookup(&answer_key, 0).unwrap();
        let from_pod = headers(&answer);
        translate(&mut answer, &from_pod, &table.sent(found), None).unwrap();
        prop_assert_eq!(answer, frame(&original.inverse(), &spec));

        // The pod's error about the question, as its client gets it.
        let inner = ip_packet(&seen, &spec);
        let of_pod = icmp_error(serving.address, seen.src.address, &inner);
        let mut error = ethernet(&of_pod, 0);
        let outer = headers(&error);
        let quoted = quote(&error, &outer).unwrap().unwrap();
        let found = table.lookup(&quoted.key.inverse(), 0).unwrap();
        let keys = (&table.received(found), &table.sent(found));
        translate_error(&mut error, &outer, &quoted, keys, None).unwrap();
        let inner = ip_packet(&original, &spec);
        let wanted = icmp_error(original.dst.address, original.src.address, &inner);
        prop_assert_eq!(error, ethernet(&wanted, 0));
    }
}

fn flow_table() -> crate::conntrack::FlowTable {
    use crate::conntrack::{FlowTable, HashSeed, Records, TableParts};
    let words = crate::xsk::words::Words::anonymous(Records::words(4)).unwrap();
    let mut table = FlowTable::new(TableParts {
        records: Records::format(std::sync::Arc::new(words), [1, 2]),
        flows_per_owner: 4,
        source_ports: 1024..=65_535,
        seed: HashSeed([3, 4]),
        counters: std::sync::Arc::default(),
    });
    table.admit_owner(crate::port::PortId(1), 1);
    table
}
