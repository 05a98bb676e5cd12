//! Markers and their inference, and what a packet is on a wire.

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::checksum::{pseudo_header_v4, pseudo_header_v6};
use crate::parse::{self, Addresses, Parsed};

const MAC: Mac = [0x0a, 0, 0, 0, 0, 1];

/// A packet by etherparse's builder, its checksum complete.
fn packet(v6: bool, tcp: bool, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(MAC, [0x0a; 6]);
    let ip = if v6 { link.ipv6([1; 16], [2; 16], 9) } else { link.ipv4([1; 4], [2; 4], 9) };
    let mut bytes = Vec::new();
    let written = if tcp {
        ip.tcp(1, 2, 3, 4).write(&mut bytes, payload)
    } else {
        ip.udp(1, 2).write(&mut bytes, payload)
    };
    written.expect("a valid size");
    bytes
}

fn headers(bytes: &[u8]) -> Headers {
    match parse::headers(bytes, bytes.len()) {
        Ok(Parsed::Ip(headers)) => headers,
        other => panic!("{other:?}"),
    }
}

fn offload(bytes: &[u8]) -> Result<Offload, DropReason> {
    of_packet(bytes, &headers(bytes), Hints::Marker)
}

/// Puts the pseudo-header sum into the checksum field; returns where that is.
fn make_partial(bytes: &mut [u8]) -> Partial {
    let headers = headers(bytes);
    let offset = if headers.protocol == protocol::TCP { 16 } else { 6 };
    let l4 = headers.l4_offset;
    let len = headers.len - l4;
    let sum = match headers.addresses {
        Addresses::V4 { src, dst } => {
            pseudo_header_v4(src.octets(), dst.octets(), headers.protocol, len as u16)
        }
        Addresses::V6 { src, dst } => {
            pseudo_header_v6(src.octets(), dst.octets(), headers.protocol, len as u32)
        }
    };
    bytes[l4 + offset..][..2].copy_from_slice(&sum.fold().to_be_bytes());
    Partial { start: l4 as u16, offset: offset as u16 }
}

fn mark(bytes: &mut [u8], start: u8, offset: u8, flags: u8, gso_size: u16) {
    let [high, low] = gso_size.to_be_bytes();
    bytes[6..12].copy_from_slice(&[MARKER, start, offset, flags, high, low]);
}

proptest! {
    #[test]
    fn a_partial_checksum_is_inferred_and_a_complete_one_is_not(
        v6 in any::<bool>(), tcp in any::<bool>(),
        payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = packet(v6, tcp, &payload);
        let field = headers(&bytes).l4_offset + if tcp { 16 } else { 6 };
        let complete = u16_at(&bytes, field);
        let partial = make_partial(&mut bytes);
        prop_assert_eq!(offload(&bytes).unwrap().partial, Some(partial));
        if complete != u16_at(&bytes, field) {
            let bytes = packet(v6, tcp, &payload);
            prop_assert_eq!(offload(&bytes), Ok(Offload::default()));
        }
    }

    #[test]
    fn any_marker_on_any_packet_is_refused_or_stays_behind_the_addresses(
        v6 in any::<bool>(), tcp in any::<bool>(), len in 0..300usize, marker in any::<[u8; 5]>(),
        padding in 0..60usize,
    ) {
        let mut bytes = packet(v6, tcp, &vec![3; len]);
        bytes.resize(bytes.len() + padding, 0);
        let [start, offset, flags, high, low] = marker;
        let gso_size = u16::from_be_bytes([high, low]);
        mark(&mut bytes, start, offset, flags, gso_size);
        let headers = headers(&bytes);
        let field = usize::from(start) + usize::from(offset);
        // Behind the ports, which were checked like the addresses.
        let behind = usize::from(start) >= headers.l4_offset && field >= headers.l4_offset + 4;
        let inside = behind && field + 2 <= headers.len;
        let good = if flags & 1 == 1 { inside } else { gso_size == 0 };
        match offload(&bytes) {
            Err(reason) => prop_assert!(!good && reason == DropReason::BadMarker),
            Ok(offload) => {
                prop_assert!(good);
                prop_assert_eq!(offload.partial.is_some(), flags & 1 == 1);
                prop_assert_eq!(offload.gso_size, gso_size);
                prop_assert_eq!(offload.encapsulated, flags & 2 == 2);
                // The rest follows without a panic, whatever the marker says.
                let _ = offload.on_wire(&bytes, &headers, 1500);
            }
        }
    }

    #[test]
    fn on_a_wire_a_packet_is_what_cutting_it_by_hand_gives(
        v6 in any::<bool>(), tcp in any::<bool>(), payload in 0..60_000usize,
        gso_size in 536..3000u16,
    ) {
        let mut bytes = packet(v6, tcp, &vec![7; payload]);
        let partial = make_partial(&mut bytes);
        mark(&mut bytes, partial.start as u8, partial.offset as u8, 1, gso_size);
        let headers = headers(&bytes);
        let header_len = headers.len - payload;
        let mut left = payload;
        let (mut count, mut sum, mut largest) = (0, 0, 0);
        while count == 0 || left > 0 {
            let part = left.min(usize::from(gso_size));
            (count, sum, left) = (count + 1, sum + header_len + part, left - part);
            largest = largest.max(header_len + part);
        }
        let wire = offload(&bytes).unwrap().on_wire(&bytes, &headers, 1500);
        let expected = OnWire { packets: count, bytes: sum, largest, segment_size: gso_size };
        prop_assert_eq!(wire, Ok(expected));
    }
}

#[test]
fn a_packet_that_is_not_cut_is_one_on_a_wire() {
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut bytes = packet(v6, tcp, &[1; 400]);
        bytes.extend([0; 18]); // padding is not sent
        let headers = headers(&bytes);
        let wire = Offload::default().on_wire(&bytes, &headers, 1500);
        let len = bytes.len() - 18;
        assert_eq!(wire, Ok(OnWire { packets: 1, bytes: len, largest: len, segment_size: 0 }));
    }
}

#[test]
fn unmarked_tcp_with_a_partial_checksum_is_cut_to_the_mtu_and_nothing_else_is() {
    let mut tcp = packet(false, true, &[1; 5000]);
    let complete = tcp.clone();
    make_partial(&mut tcp);
    let mut udp = packet(false, false, &[1; 5000]);
    make_partial(&mut udp);
    let size = |bytes: &[u8], mtu| {
        let headers = headers(bytes);
        offload(bytes).unwrap().on_wire(bytes, &headers, mtu).unwrap().segment_size
    };
    assert_eq!(size(&tcp, 1500), 1460);
    assert_eq!(size(&tcp, 5039), 4999);
    assert_eq!(size(&tcp, 5040), 0, "it fits");
    assert_eq!(size(&complete, 1500), 0, "no kernel leaves a sum complete and cuts");
    assert_eq!(size(&udp, 1500), 0, "nobody knows where the datagrams end");
    for mtu in [0, 39, 40] {
        assert_eq!(size(&tcp, mtu), 0, "headers alone are longer than {mtu}");
    }
    assert_eq!(size(&tcp, 41), 1);
}

#[test]
fn a_udp_checksum_of_zero_is_none() {
    for v6 in [false, true] {
        let mut bytes = packet(v6, false, b"payload");
        let field = headers(&bytes).l4_offset + 6;
        bytes[field..field + 2].fill(0);
        assert_eq!(offload(&bytes), Ok(Offload::default()));
    }
}

#[test]
fn tiny_segments_are_refused_from_the_65th_on() {
    for (gso_size, payload, good) in
        [(1, 64, true), (1, 65, false), (535, 535 * 64, true), (535, 535 * 64 + 1, false)]
            .into_iter()
            .chain([(536, 536 * 65, true)])
    {
        let mut bytes = packet(false, true, &vec![0; payload]);
        let partial = make_partial(&mut bytes);
        mark(&mut bytes, partial.start as u8, partial.offset as u8, 1, gso_size);
        let headers = headers(&bytes);
        let wire = offload(&bytes).unwrap().on_wire(&bytes, &headers, 1500);
        assert_eq!(wire.is_ok(), good, "{payload} by {gso_size}");
        assert!(good || wire == Err(DropReason::TinySegments));
    }
}
