//! Sizes: the MTU of each route, and super-packets, which are many packets in one.

use dataplane::drop::DropReason;
use dataplane::port::Partial;

use crate::FAMILIES;
use crate::case::{Case, run_all};
use crate::harness::packet::{ACK, CWR, Check, FIN, PSH, Packet, packet};
use crate::harness::{A, B, C, End, FAR_V4, FAR_V6, NODE, Node, PLAIN, Setup};

const FAR: [&str; 2] = [FAR_V4, FAR_V6];

/// "Fragmentation needed" and "packet too big" with this MTU, by family.
fn too_big(v6: bool, mtu: u32) -> (u8, u8, u32) {
    if v6 { (2, 0, mtu) } else { (3, 4, mtu) }
}

/// A UDP packet whose IP packet has `ip_len` bytes.
fn udp_of(v6: bool, ip_len: usize) -> Packet {
    packet().family(v6).payload(ip_len - 8 - if v6 { 40 } else { 20 })
}

#[test]
fn the_mtu_of_the_route_holds_and_its_neighbours_do_too() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        for (to, sizes) in [(&B, [1280, 1499, 1500]), (&C, [1280, 1299, 1300])] {
            for ip_len in sizes {
                let fits = udp_of(v6, ip_len).from(&A).to(to);
                let case = Case::new(format!("{family} {ip_len} to {}", to.name), &A, &fits);
                cases.push(case.sends(to, &fits.forwarded(to)));
            }
        }
        for (to, mtu, sizes) in [(&B, 1500, [1501, 2000, 3498]), (&C, 1300, [1301, 1500, 9000])] {
            for ip_len in sizes {
                let long = udp_of(v6, ip_len).from(&A).to(to);
                let case = Case::new(format!("{family} {ip_len} to {}", to.name), &A, &long);
                cases.push(case.drops(DropReason::MtuExceeded).tells(&A, too_big(v6, mtu)));
                let from_node = long.from(&NODE);
                let case = Case::new(format!("{family} {ip_len} from the node"), &NODE, &from_node);
                cases.push(case.drops(DropReason::MtuExceeded).tells(&NODE, too_big(v6, mtu)));
            }
        }
        // The route of the sender does not matter to the receiver.
        let small_to_large = udp_of(v6, 1400).from(&C).to(&A);
        let case = Case::new(format!("{family} 1400 from C"), &C, &small_to_large);
        cases.push(case.sends(&A, &small_to_large.forwarded(&A)));
        // Beyond the node its kernel decides, fragments and tells.
        let out = udp_of(v6, 3000).from(&A).dst(FAR[usize::from(v6)]);
        let case = Case::new(format!("{family} 3000 to far"), &A, &out);
        cases.push(case.sends(&NODE, &out.delivered(&NODE)));
    }
    run_all(&cases);
}

#[test]
fn without_dont_fragment_a_long_packet_is_delivered_whole() {
    // The device takes 65,535 bytes; only the route is narrower.
    let mut cases = Vec::new();
    for (to, ip_len) in [(&B, 1501), (&C, 1301), (&C, 9000)] {
        let long = udp_of(false, ip_len).from(&A).to(to).may_fragment();
        let case = Case::new(format!("{ip_len} to {}", to.name), &A, &long);
        cases.push(case.sends(to, &long.forwarded(to)));
    }
    run_all(&cases);
}

#[test]
fn what_the_interface_does_not_take_arrives_in_fragments_where_it_may() {
    let mut cases = Vec::new();
    for from in [&A, &NODE] {
        for ip_len in [1501, 3000, 9000] {
            let long = udp_of(false, ip_len).from(from).to(&PLAIN);
            let case = Case::new(format!("{ip_len} from {}", from.name), from, &long);
            cases.push(case.drops(DropReason::MtuExceeded).tells(from, too_big(false, 1500)));

            let long = long.may_fragment();
            let sent = match from.id == NODE.id {
                true => long.clone().delivered(&PLAIN),
                false => long.clone().forwarded(&PLAIN),
            };
            let mut case = Case::new(format!("{ip_len} from {}", from.name), from, &long);
            for fragment in sent.fragments(1480) {
                case = case.sends(&PLAIN, &fragment);
            }
            cases.push(case);
        }
        let fits = udp_of(false, 1500).from(from).to(&PLAIN).may_fragment();
        let case = Case::new(format!("1500 from {}", from.name), from, &fits);
        let sent = match from.id == NODE.id {
            true => fits.delivered(&PLAIN),
            false => fits.forwarded(&PLAIN),
        };
        cases.push(case.sends(&PLAIN, &sent));
    }
    run_all(&cases);
}

#[test]
fn too_big_is_not_told_about_errors_and_later_fragments() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let error = packet().from(&A).to(&C).family(v6).icmp(if v6 { 1 } else { 3 }, 0);
        let error = error.payload(1400);
        let case = Case::new(format!("{family} error"), &A, &error);
        cases.push(case.drops(DropReason::MtuExceeded));
    }
    let later = packet().from(&A).to(&C).ipv6().protocol(17).fragment(8, true).payload(1400);
    cases.push(Case::new("later fragment", &A, &later).drops(DropReason::MtuExceeded));
    run_all(&cases);
}

/// A TCP super-packet as its sender's kernel and BPF program leave it.
fn tcp_super(v6: bool, payload: usize, gso_size: u16) -> Packet {
    let flags = FIN | PSH | ACK | CWR;
    packet().from(&A).family(v6).tcp(5, 6).flags(flags).payload(payload).marked(gso_size)
}

/// The case of a super-packet that stays whole.
fn whole(name: String, from: &End, to: &End, packet: &Packet, size: usize) -> Case {
    let len = packet.build().len();
    let segments = (len - packet.header_len()).div_ceil(size);
    let bytes = len + (segments - 1) * packet.header_len();
    let out = if from.id == NODE.id || to.id == NODE.id {
        packet.clone().delivered(to)
    } else {
        packet.clone().forwarded(to)
    };
    let case = Case::new(name, from, packet).sends_partial(to, &out);
    case.wire(segments as u64, bytes as u64)
}

/// The case of a super-packet that is cut on its way to the node.
fn cut(name: String, from: &End, packet: &Packet, size: usize) -> Case {
    let segments = packet.segments(size);
    let case = Case::new(name, from, packet);
    segments.into_iter().fold(case, |case, s| case.sends_partial(&NODE, &s.delivered(&NODE)))
}

#[test]
fn a_stream_stays_whole_between_pods_and_is_cut_towards_the_node_itself() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let mss = if v6 { 1428 } else { 1448 };
        for payload in [usize::from(mss) + 1, 10_000, 65_000] {
            let base = tcp_super(v6, payload, mss);
            let name = |what: &str| format!("{family} {payload} {what}");
            let size = usize::from(mss);
            let (to_b, to_node) = (base.clone().to(&B).marked(mss), base.to(&NODE).marked(mss));
            cases.push(whole(name("to B"), &A, &B, &to_b, size));
            cases.push(cut(name("to the node"), &A, &to_node, size));
            let from_node = to_b.src(["192.0.2.1", "2001:db8::1"][usize::from(v6)]);
            let from_node = from_node.dst_mac(NODE.gateway_mac);
            cases.push(whole(name("from the node"), &NODE, &B, &from_node, size));
        }
    }
    run_all(&cases);
}

#[test]
fn a_stream_that_leaves_the_node_is_cut_as_its_sender_meant() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let far = FAR[usize::from(v6)];
        // The last fits the node's MTU, but perhaps not what its receiver asked for.
        let sizes = [(1461, 1448), (10_000, 1400), (65_000, 1428), (34_304, 536), (1400, 700)];
        for (payload, size) in sizes {
            let out = tcp_super(v6, payload, size).dst(far).marked(size);
            let name = format!("{family} {payload} by {size}");
            cases.push(cut(name, &A, &out, usize::from(size)));
        }
    }
    run_all(&cases);
}

#[test]
fn a_datagram_keeps_its_bounds_wherever_it_goes() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        for (payload, size) in [(200, 100), (3_000, 1_000), (3_001, 1_000), (60_000, 1_400)] {
            let base = packet().from(&A).family(v6).payload(payload);
            let far = base.clone().dst(FAR[usize::from(v6)]).marked(size);
            cases.push(cut(format!("{family} {payload} out"), &A, &far, usize::from(size)));
            let to_b = base.to(&B).marked(size);
            let case = Case::new(format!("{family} {payload} to B"), &A, &to_b);
            let segments = to_b.segments(usize::from(size)).into_iter();
            cases.push(segments.fold(case, |case, s| case.sends_partial(&B, &s.forwarded(&B))));
        }
        let one = packet().from(&A).to(&B).family(v6).payload(900).marked(1000);
        let case = Case::new(format!("{family} one segment"), &A, &one);
        cases.push(case.sends_partial(&B, &one.forwarded(&B)));
    }
    run_all(&cases);
}

#[test]
fn a_segment_that_does_not_fit_the_route_is_too_big() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let room = 1300 - 20 - if v6 { 40 } else { 20 };
        let fits = tcp_super(v6, 9000, room).to(&C).marked(room);
        cases.push(whole(format!("{family} {room} fits"), &A, &C, &fits, usize::from(room)));
        let long = tcp_super(v6, 9000, room + 1).to(&C).marked(room + 1);
        let case = Case::new(format!("{family} {} does not", room + 1), &A, &long);
        cases.push(case.drops(DropReason::MtuExceeded).tells(&A, too_big(v6, 1300)));
    }
    run_all(&cases);
}

#[test]
fn without_the_marker_a_stream_is_cut_to_the_route_mtu() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let far = FAR[usize::from(v6)];
        let headers = 20 + if v6 { 40 } else { 20 };
        let base = packet().from(&A).family(v6).tcp(5, 6).payload(10_000).check(Check::Partial);
        let name = |what: &str| format!("{family} unmarked {what}");
        let to = |end: &End| base.clone().to(end).family(v6);
        cases.push(whole(name("to B"), &A, &B, &to(&B), 1500 - headers));
        cases.push(whole(name("to C"), &A, &C, &to(&C), 1300 - headers));
        cases.push(cut(name("to the node"), &A, &to(&NODE), 1500 - headers));
        cases.push(cut(name("out"), &A, &base.clone().dst(far), 1500 - headers));
        // The sender was told its own route MTU: what it left uncut is cut to that.
        cases.push(cut(name("out of C"), &C, &base.clone().from(&C).dst(far), 1300 - headers));
        let complete = to(&B).check(Check::Complete);
        let case = Case::new(name("complete"), &A, &complete).drops(DropReason::MtuExceeded);
        cases.push(case.tells(&A, too_big(v6, 1500)));
    }
    run_all(&cases);
}

#[test]
fn a_port_without_metadata_gets_complete_checksums() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        for payload in [0, 1, 2, 63, 1400] {
            for tcp in [false, true] {
                let base = packet().from(&A).to(&PLAIN).family(v6);
                let base = if tcp { base.tcp(7, 8) } else { base.udp(7, 8) }.payload(payload);
                let sent = base.clone().forwarded(&PLAIN);
                let marked = base.clone().marked(0);
                let name = format!("{family} {payload} tcp {tcp}");
                cases.push(Case::new(format!("{name} marked"), &A, &marked).sends(&PLAIN, &sent));
                let inferred = base.check(Check::Partial);
                cases.push(
                    Case::new(format!("{name} inferred"), &A, &inferred).sends(&PLAIN, &sent),
                );
            }
        }
        let crossing = packet().from(&B).to(&PLAIN).family(v6).payload(5);
        let case = Case::new(format!("{family} crossing"), &B, &crossing.clone().marked(0));
        cases.push(case.sends(&PLAIN, &crossing.forwarded(&PLAIN)));
    }
    run_all(&cases);
}

#[test]
fn a_udp_checksum_completed_to_zero_is_sent_as_all_ones() {
    for (v6, family) in FAMILIES {
        let zero = |word: u16| {
            let bytes = word.to_be_bytes();
            packet().from(&A).to(&PLAIN).family(v6).payload_bytes(&bytes)
        };
        let field = |packet: &Packet| packet.build()[packet.l4_offset() + 6..][..2] == [0xff, 0xff];
        let packet = (0..=u16::MAX).map(zero).find(field).expect("some word makes the sum zero");
        let case = Case::new(format!("{family} zero"), &A, &packet.clone().marked(0));
        case.sends(&PLAIN, &packet.forwarded(&PLAIN)).run();
    }
}

#[test]
fn a_stream_is_cut_for_a_pod_that_takes_no_super_packets() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        for payload in [1_501, 4_000, 9_999, 65_000] {
            let large = tcp_super(v6, payload, 1_400).to(&PLAIN).marked(1_400);
            let case = Case::new(format!("{family} {payload}"), &A, &large);
            let send = |case: Case, s: Packet| {
                case.sends(&PLAIN, &s.check(Check::Complete).forwarded(&PLAIN))
            };
            cases.push(large.segments(1_400).into_iter().fold(case, send));
            let from_node = large.src(["192.0.2.1", "2001:db8::1"][usize::from(v6)]);
            let from_node = from_node.dst_mac(NODE.gateway_mac);
            let case = Case::new(format!("{family} {payload} from the node"), &NODE, &from_node);
            let send = |case: Case, s: Packet| {
                case.sends(&PLAIN, &s.check(Check::Complete).delivered(&PLAIN))
            };
            cases.push(from_node.segments(1_400).into_iter().fold(case, send));
        }
    }
    run_all(&cases);
}

#[test]
fn a_super_packet_that_stays_whole_gets_a_complete_checksum_without_metadata() {
    for (v6, family) in FAMILIES {
        for (workers, payload) in [(1, 4_000), (2, 9_999), (1, 65_000)] {
            let setup = Setup { workers, tx_checksum: false, ..Setup::default() };
            let large = tcp_super(v6, payload, 1_400).to(&B).marked(1_400);
            let complete = large.clone().check(Check::Complete).forwarded(&B);
            let count = payload.div_ceil(1_400);
            let bytes = large.build().len() + (count - 1) * large.header_len();
            let case = Case::new(format!("{family} super {payload}"), &A, &large);
            case.sends(&B, &complete).wire(count as u64, bytes as u64).run_on(setup);
        }
    }
}

#[test]
fn segments_get_complete_checksums_where_the_node_port_has_no_metadata() {
    for (v6, family) in FAMILIES {
        for workers in [1, 2] {
            let setup = Setup { workers, tx_checksum: false, ..Setup::default() };
            let out = tcp_super(v6, 9_001, 1_001).dst(FAR[usize::from(v6)]).marked(1_001);
            let case = Case::new(format!("{family} {workers}"), &A, &out);
            let send = |case: Case, s: Packet| {
                case.sends(&NODE, &s.check(Check::Complete).delivered(&NODE))
            };
            out.segments(1_001).into_iter().fold(case, send).run_on(setup);
        }
    }
}

/// A VXLAN packet (RFC 7348) with TCP inside, whose inner checksum is partial, and where that is.
pub fn vxlan(v6: bool, payload: usize, gso_size: u16) -> (Packet, Partial) {
    let inner = packet().from(&A).to(&B).tcp(9, 10).payload(payload).check(Check::Partial);
    let bytes = [&[8, 0, 0, 0, 0, 0, 7, 0], inner.build().as_slice()].concat();
    let outer = packet().from(&A).family(v6).udp(50_000, 4789).payload_bytes(&bytes);
    let outer = outer.check(Check::Value(0));
    let start = outer.header_len() + 8 + inner.l4_offset();
    (outer.marker(start as u8, 16, 3, gso_size), Partial { start: start as u16, offset: 16 })
}

#[test]
fn a_tunnel_inside_a_pod_keeps_its_inner_checksum_and_stays_on_the_node() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let name = |what: &str| format!("{family} vxlan {what}");
        let (small, partial) = vxlan(v6, 100, 0);
        let (to_b, out) = (small.clone().to(&B), small.dst(FAR[usize::from(v6)]));
        let sent = to_b.clone().forwarded(&B);
        cases.push(Case::new(name("to B"), &A, &to_b).sends_with(&B, &sent, Some(partial)));
        let sent = out.clone().delivered(&NODE);
        cases.push(Case::new(name("out"), &A, &out).sends_with(&NODE, &sent, Some(partial)));

        let (large, partial) = vxlan(v6, 20_000, 1_350);
        let (to_b, out) = (large.clone().to(&B), large.dst(FAR[usize::from(v6)]));
        let headers = usize::from(partial.start) + 20;
        let bytes = (to_b.build().len() + 14 * headers) as u64;
        let sent = to_b.clone().forwarded(&B);
        let case = Case::new(name("super to B"), &A, &to_b).sends_with(&B, &sent, Some(partial));
        cases.push(case.wire(15, bytes));
        let case = Case::new(name("super out"), &A, &out);
        cases.push(case.drops(DropReason::EncapsulatedSuperPacket).wire(15, bytes));
    }
    run_all(&cases);
}

#[test]
fn a_forged_marker_harms_only_its_sender() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let base = packet().from(&A).to(&B).family(v6).tcp(1, 2).payload(64);
        let (l4, len) = (base.l4_offset() as u8, base.build().len() as u8);
        let bad = |name: &str, packet: &Packet| {
            Case::new(format!("{family} {name}"), &A, packet).drops(DropReason::BadMarker)
        };
        let marked = |start, offset, flags, size| base.clone().marker(start, offset, flags, size);
        cases.push(bad("behind the end", &marked(255, 16, 1, 0)));
        cases.push(bad("across the end", &marked(len - 1, 0, 1, 0)));
        cases.push(bad("offset behind the end", &marked(l4, 255, 1, 0)));
        cases.push(bad("in the Ethernet header", &marked(0, 0, 1, 0)));
        cases.push(bad("in the addresses", &marked(14, 12, 1, 0)));
        cases.push(bad("just before L4", &marked(l4 - 1, 16, 1, 0)));
        cases.push(bad("size without checksum", &marked(0, 0, 0, 1000)));
        cases.push(bad("encapsulated size without checksum", &marked(0, 0, 2, 1000)));
        let padded = base.clone().padding(20).marker(len - 1, 0, 1, 0);
        cases.push(bad("in the padding", &padded));
        let mut good = |name: &str, packet: &Packet, partial| {
            let case = Case::new(format!("{family} {name}"), &A, packet);
            cases.push(case.sends_with(&B, &packet.clone().forwarded(&B), partial));
        };
        let at = |start: u8, offset| Some(Partial { start: u16::from(start), offset });
        good("up to the end", &marked(len - 2, 0, 1, 0), at(len - 2, 0));
        good("at L4", &marked(l4, 16, 1, 0), at(l4, 16));
        good("unknown flags", &marked(l4, 16, 0xfd, 0), at(l4, 16));
        good("nothing to do", &marked(0, 0, 0, 0), None);
    }
    run_all(&cases);
}

#[test]
fn many_tiny_segments_are_refused() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        for (size, payload) in [(1, 65), (100, 6_401), (535, 535 * 64 + 1)] {
            let tiny = tcp_super(v6, payload, size).to(&B).marked(size);
            let case = Case::new(format!("{family} {payload} by {size}"), &A, &tiny);
            cases.push(case.drops(DropReason::TinySegments));
        }
        for (size, payload) in [(1, 64), (100, 6_400), (535, 535 * 64), (536, 536 * 120)] {
            let few = tcp_super(v6, payload, size).to(&B).marked(size);
            let name = format!("{family} {payload} by {size}");
            cases.push(whole(name, &A, &B, &few, usize::from(size)));
        }
    }
    run_all(&cases);
}

#[test]
fn a_super_packet_whose_marker_names_another_header_is_not_cut() {
    for (v6, family) in FAMILIES {
        let out = tcp_super(v6, 9_000, 1_400).dst(FAR[usize::from(v6)]);
        let start = out.l4_offset() + 4;
        let forged = out.marker(start as u8, 6, 1, 1_400);
        let (len, headers) = (forged.build().len(), start + 8);
        let count = (len - headers).div_ceil(1_400);
        let bytes = len + (count - 1) * headers;
        let case = Case::new(format!("{family} shifted"), &A, &forged);
        case.drops(DropReason::BadMarker).wire(count as u64, bytes as u64).run();
    }
}

#[test]
fn a_pod_that_refuses_what_is_longer_than_its_route_takes_is_noted() {
    for (v6, family) in FAMILIES {
        let too_big = if v6 { (2, 0) } else { (3, 4) };
        let other = if v6 { (1, 4) } else { (3, 1) };
        let header_len = if v6 { 40 } else { 20 };
        for ((kind, code), ip_len, from, noted) in [
            (too_big, 1501, &B, 1),
            (too_big, 60_000, &B, 1),
            (too_big, 1500, &B, 0),
            (other, 60_000, &B, 0),
            (too_big, 60_000, &NODE, 0),
        ] {
            let mut node = Node::new(Setup::default());
            let refused = packet().family(v6).from(&A).to(from).tcp(1, 2);
            let refused = refused.payload(ip_len - header_len - 20);
            let quote = &refused.build()[14..][..header_len + 8];
            let error = packet().family(v6).from(from).to(&A).icmp(kind, code);
            node.inject(from.id, error.payload_bytes(quote).build());
            node.run();
            let name = format!("{family}, {kind}/{code} about {ip_len} bytes from {}", from.name);
            assert_eq!(node.refused_whole(from.id), noted, "{name}");
            assert_eq!(node.sent(A.id).len(), 1, "{name}: the sender is told, too");
        }
    }
}
