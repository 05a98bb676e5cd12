//! Segments that come off a wire one after another, and the packets that a pod gets of them.

use dataplane::sim::Sent;
use dataplane::tables::TablesInput;

use crate::FAMILIES;
use crate::harness::packet::{ACK, Check, FIN, PSH, Packet, packet, sum};
use crate::harness::{A, B, C, Direction, End, FAR_V4, FAR_V6, NODE, Node, PLAIN, Setup};
use crate::harness::{UPLINK, VETH_UPLINK};

/// No-operation twice, then timestamps (RFC 7323 §3.2): what Linux sends in every segment.
pub const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 4, 7, 0, 0, 9, 9];

/// Payload bytes of a segment: at MTU 1500 they leave room for IPv6, timestamps and more.
const SIZE: usize = 1400;

/// A stream as its sender's kernel has it, before it is cut.
fn stream(v6: bool, from: &End, to: &End, payload: usize) -> Packet {
    let packet = packet().family(v6).from(from).to(to).tcp(443, 4000);
    packet.tcp_options(&TIMESTAMPS).payload(payload)
}

/// So many segments of a stream from the wire.
fn segments(v6: bool, to: &End, count: usize) -> Vec<Packet> {
    stream(v6, &UPLINK, to, count * SIZE).segments(SIZE)
}

/// A packet with its checksum complete, as the pod's kernel sees it.
pub fn completed(sent: &Sent) -> Vec<u8> {
    let mut bytes = sent.bytes.clone();
    if let Some(partial) = sent.partial {
        let start = usize::from(partial.start);
        let field = start + usize::from(partial.offset);
        let check = !sum(&bytes[start..]);
        bytes[field..field + 2].copy_from_slice(&check.to_be_bytes());
    }
    bytes
}

/// `packets` arrive by `from`, and `to` gets them in runs of these lengths: a run of one unchanged,
/// others as one packet whose checksum is left to do. Everything is counted.
fn check(name: &str, node: &mut Node, ends: (&End, &End), packets: &[Packet], runs: &[usize]) {
    let (from, to) = ends;
    for packet in packets {
        node.inject(from.id, packet.build());
    }
    node.run();
    assert_eq!(node.all_drops(), [], "{name}");
    let arrives = |packet: Packet| match from.id == NODE.id || to.id == NODE.id {
        true => packet.delivered(to),
        false => packet.forwarded(to),
    };
    let sent = node.sent(to.id);
    let lengths: Vec<usize> = sent.iter().map(|sent| sent.bytes.len()).collect();
    assert_eq!(sent.len(), runs.len(), "{name}: packets sent, of {lengths:?} bytes");
    let mut rest = packets;
    for (number, (sent, &run)) in sent.iter().zip(runs).enumerate() {
        let (those, after) = rest.split_at(run);
        rest = after;
        let whole = if run == 1 { those[0].clone() } else { Packet::whole(those) };
        let whole = arrives(whole);
        let partial = (run > 1).then(|| whole.partial());
        assert_eq!(sent.partial, partial, "{name}: checksum request of packet {number}");
        assert_eq!(sent.bytes, whole.build(), "{name}: packet {number}");
        if run > 1 {
            let right = whole.check(Check::Complete).build();
            assert_eq!(completed(sent), right, "{name}: packet {number}, completed");
        }
    }
    assert!(rest.is_empty(), "{name}: the runs are of all packets");
    let counted = |id, direction| {
        let counters = node.counters(id, direction);
        [&counters.packets, &counters.bytes, &counters.wire_packets, &counters.wire_bytes]
            .map(|counter| counter.get() as usize)
    };
    let arrived: usize = packets.iter().map(|packet| packet.build().len()).sum();
    let on_wire: usize =
        packets.iter().map(|packet| packet.clone().delivered(to).build().len()).sum();
    let expected = [packets.len(), arrived, packets.len(), on_wire];
    assert_eq!(counted(from.id, Direction::FromPod), expected, "{name}: from {}", from.name);
    let expected = [runs.len(), lengths.iter().sum(), packets.len(), on_wire];
    assert_eq!(counted(to.id, Direction::ToPod), expected, "{name}: to {}", to.name);
}

/// The same on one worker and on two, from the wire to A, on the worker of the wire, and to B,
/// which it may cross to.
fn check_from_wire(name: &str, packets: impl Fn(&End) -> Vec<Packet>, runs: &[usize]) {
    for workers in [1, 2] {
        for to in [&A, &B] {
            let name = format!("{name}, to {} of {workers} workers", to.name);
            let mut node = Node::new(Setup { workers, ..Setup::default() });
            check(&name, &mut node, (&UPLINK, to), &packets(to), runs);
        }
    }
}

/// All links take this much.
fn set_mtu(mtu: usize) -> impl FnOnce(&mut TablesInput) {
    move |tables| tables.ports.iter_mut().for_each(|port| port.mtu = mtu)
}

#[test]
fn segments_of_a_stream_arrive_as_one_packet() {
    for (v6, family) in FAMILIES {
        for count in [2, 3, 20] {
            let name = format!("{family}, {count}");
            check_from_wire(&name, |to| segments(v6, to, count), &[count]);
        }
        // The last is shorter, and pushed: its sender has nothing more.
        let last = |to: &End| stream(v6, &UPLINK, to, 9 * SIZE + 1).flags(ACK | PSH).segments(SIZE);
        check_from_wire(&format!("{family}, pushed"), last, &[10]);
        // By a veth too, if its sums are complete.
        for to in [&A, &B] {
            let packets = stream(v6, &VETH_UPLINK, to, 5 * SIZE).segments(SIZE);
            let mut node = Node::new(Setup { workers: 2, ..Setup::default() });
            check(&format!("{family}, veth"), &mut node, (&VETH_UPLINK, to), &packets, &[5]);
        }
    }
}

#[test]
fn a_sequence_number_wraps() {
    for (v6, family) in FAMILIES {
        let start = u32::MAX - 2 * SIZE as u32;
        let packets = |to: &End| stream(v6, &UPLINK, to, 5 * SIZE).sequence(start).segments(SIZE);
        check_from_wire(family, packets, &[5]);
    }
}

#[test]
fn the_padding_of_a_short_frame_is_no_part_of_the_stream() {
    let packets = |to: &End| {
        let stream = packet().from(&UPLINK).to(to).tcp(443, 4000).payload(6);
        stream.segments(1).into_iter().map(|packet| packet.padding(5)).collect()
    };
    check_from_wire("padded", packets, &[6]);
}

#[test]
fn a_segment_with_a_wrong_checksum_arrives_alone_and_unchanged() {
    for (v6, family) in FAMILIES {
        for (wrong, runs) in
            [(0, &[1, 6][..]), (1, &[1, 1, 5]), (3, &[3, 1, 3]), (5, &[5, 1, 1]), (6, &[6, 1])]
        {
            // The sum of the pseudo-header is no checksum either: it came off a wire.
            for check in [Check::Value(0x1234), Check::Partial] {
                let packets = |to: &End| {
                    let mut packets = segments(v6, to, 7);
                    packets[wrong] = packets[wrong].clone().check(check);
                    packets
                };
                check_from_wire(&format!("{family}, {wrong} wrong, {check:?}"), packets, runs);
            }
        }
    }
}

#[test]
fn what_does_not_continue_a_packet_leaves_behind_it() {
    type Change = fn(Vec<Packet>) -> Vec<Packet>;
    let cases: [(&str, Change, &[usize]); 10] = [
        ("a gap", |all| [&all[..3], &all[4..]].concat(), &[3, 4]),
        ("a retransmission", |all| [&all[..3], &all[1..2], &all[3..]].concat(), &[3, 1, 5]),
        ("one twice", |all| [&all[..3], &all[2..]].concat(), &[3, 6]),
        (
            "two exchanged",
            |all| [&all[..3], &all[4..5], &all[3..4], &all[5..]].concat(),
            &[3, 1, 1, 3],
        ),
        ("a push", |all| changed(all, 2, |packet| packet.flags(ACK | PSH)), &[3, 5]),
        ("a push at first", |all| changed(all, 0, |packet| packet.flags(ACK | PSH)), &[1, 7]),
        ("the end", |all| changed(all, 7, |packet| packet.flags(ACK | FIN)), &[7, 1]),
        ("an acknowledgement", |all| with_bare(all, ACK), &[3, 1, 5]),
        ("a reset", |all| with_bare(all, 0x04), &[3, 1, 5]),
        ("no flag", |all| changed(all, 3, |packet| packet.flags(0)), &[3, 1, 4]),
    ];
    for (v6, family) in FAMILIES {
        for (name, change, runs) in cases {
            check_from_wire(&format!("{family}, {name}"), |to| change(segments(v6, to, 8)), runs);
        }
        for flag in [0x01, 0x02, 0x04, 0x20, 0x40, 0x80] {
            let name = format!("{family}, flag {flag:#04x}");
            let packets =
                |to: &End| changed(segments(v6, to, 8), 3, |packet| packet.flags(ACK | flag));
            check_from_wire(&name, packets, &[3, 1, 4]);
        }
    }
}

/// The segments with another in place of one of them.
fn changed(mut all: Vec<Packet>, at: usize, change: impl FnOnce(Packet) -> Packet) -> Vec<Packet> {
    all[at] = change(all[at].clone());
    all
}

/// The segments with a packet of the same flow, but without payload, before the fourth.
fn with_bare(mut all: Vec<Packet>, flags: u8) -> Vec<Packet> {
    let bare = all[3].clone().flags(flags).payload_bytes(&[]);
    all.insert(3, bare);
    all
}

#[test]
fn what_is_told_with_a_segment_reaches_the_pod() {
    type Change = fn(Packet) -> Packet;
    let cases: [(&str, Change); 5] = [
        ("window", |packet| packet.window(0x1000)),
        ("hop limit", |packet| packet.ttl(63)),
        ("congestion", |packet| packet.service(3)),
        ("timestamp", |packet| packet.tcp_options(&[1, 1, 8, 10, 0, 0, 4, 8, 0, 0, 9, 9])),
        ("no options", |packet| packet.tcp_options(&[])),
    ];
    for (v6, family) in FAMILIES {
        for (name, change) in cases {
            let name = format!("{family}, {name}");
            let one = |to: &End| changed(segments(v6, to, 8), 3, change);
            check_from_wire(&name, one, &[3, 1, 4]);
            let from_there_on = |to: &End| {
                let mut all = segments(v6, to, 8);
                all[3..].iter_mut().for_each(|packet| *packet = change(packet.clone()));
                all
            };
            check_from_wire(&format!("{name} from there on"), from_there_on, &[3, 5]);
        }
    }
}

#[test]
fn a_packet_that_may_belong_to_the_flow_does_not_overtake_it() {
    let options = |to: &End| changed(segments(false, to, 8), 3, |packet| packet.options(&[1; 4]));
    check_from_wire("IPv4 options", options, &[3, 1, 4]);
    let extended = |to: &End| {
        changed(segments(true, to, 8), 3, |packet| packet.extension(60, &[0, 0, 1, 4, 0, 0, 0, 0]))
    };
    check_from_wire("an extension header", extended, &[3, 1, 4]);
    let fragments = |to: &End| {
        let all = segments(false, to, 8);
        [&all[..3], &all[3].clone().may_fragment().fragments(800), &all[4..]].concat()
    };
    check_from_wire("fragments", fragments, &[3, 1, 1, 4]);
}

/// Segments of as many flows, one of each in turn.
fn interleaved(flows: usize, each: usize) -> Vec<Vec<Packet>> {
    let flow = |number: usize| {
        let stream = stream(number % 2 == 1, &UPLINK, &A, each * 500);
        stream.tcp(1000 + number as u16, 4000).segments(500)
    };
    (0..flows).map(flow).collect()
}

/// What arrives of them, completed.
fn arrived(flows: &[Vec<Packet>]) -> Vec<Vec<u8>> {
    let mut node = Node::new(Setup::default());
    for turn in 0..flows[0].len() {
        flows.iter().for_each(|flow| node.inject(UPLINK.id, flow[turn].build()));
    }
    node.run();
    assert_eq!(node.all_drops(), []);
    node.sent(A.id).iter().map(completed).collect()
}

#[test]
fn eight_flows_are_merged_side_by_side() {
    let flows = interleaved(8, 8);
    let whole =
        |flow: &Vec<Packet>| Packet::whole(flow).check(Check::Complete).forwarded(&A).build();
    assert_eq!(arrived(&flows), flows.iter().map(whole).collect::<Vec<_>>());
}

#[test]
fn of_nine_flows_each_stays_in_order() {
    let flows = interleaved(9, 7);
    let arrived = arrived(&flows);
    for (number, flow) in flows.iter().enumerate() {
        let port = (1000 + number as u16).to_be_bytes();
        let ports = if number % 2 == 1 { 54..56 } else { 34..36 };
        let own = arrived.iter().filter(|bytes| {
            (bytes[12] == 0x86) == (number % 2 == 1) && bytes[ports.clone()] == port
        });
        let header_bytes = flow[0].header_len();
        let payload: Vec<u8> = own.flat_map(|bytes| bytes[header_bytes..].to_vec()).collect();
        let expected = Packet::whole(flow).build().split_off(header_bytes);
        assert_eq!(payload, expected, "flow {number}");
    }
}

#[test]
fn a_pod_gets_segments_of_its_own_streams_only() {
    for (v6, family) in FAMILIES {
        let mut node = Node::new(Setup { workers: 2, ..Setup::default() });
        let (to_a, to_b) = (segments(v6, &A, 5), segments(v6, &B, 5));
        for (a, b) in to_a.iter().zip(&to_b) {
            node.inject(UPLINK.id, a.build());
            node.inject(UPLINK.id, b.build());
        }
        node.run();
        for (to, all) in [(&A, to_a), (&B, to_b)] {
            let sent = node.sent(to.id);
            assert_eq!(sent.len(), 1, "{family}, {}", to.name);
            assert_eq!(sent[0].bytes, Packet::whole(&all).forwarded(to).build());
        }
    }
}

#[test]
fn a_pod_that_completes_no_checksums_gets_segments() {
    for (v6, family) in FAMILIES {
        for workers in [1, 2] {
            let mut node = Node::new(Setup { workers, ..Setup::default() });
            let packets = segments(v6, &PLAIN, 4);
            check(family, &mut node, (&UPLINK, &PLAIN), &packets, &[1; 4]);
            for to in [&A, &B] {
                let mut node = Node::new(Setup { workers, tx_checksum: false, ..Setup::default() });
                check(family, &mut node, (&UPLINK, to), &segments(v6, to, 4), &[1; 4]);
            }
        }
    }
}

#[test]
fn only_what_comes_off_a_wire_for_a_pod_is_merged() {
    for (v6, family) in FAMILIES {
        for (from, to) in [(&A, &B), (&A, &A), (&NODE, &A), (&A, &UPLINK), (&A, &NODE)] {
            let far = if v6 { FAR_V6 } else { FAR_V4 };
            let mut stream = stream(v6, from, to, 4 * SIZE);
            if to.id == NODE.id {
                stream = stream.dst(far);
            }
            if from.id == NODE.id {
                stream = stream.src(far);
            }
            let name = format!("{family} from {} to {}", from.name, to.name);
            let mut node = Node::new(Setup { workers: 2, ..Setup::default() });
            check(&name, &mut node, (from, to), &stream.segments(SIZE), &[1; 4]);
        }
    }
}

#[test]
fn segments_of_several_frames_are_merged() {
    for (v6, family) in FAMILIES {
        for to in [&A, &B] {
            let setup = Setup { workers: 2, fill: 256, frames: 4096, ..Setup::default() };
            let mut node = Node::new(setup);
            node.publish(set_mtu(9000));
            let packets = stream(v6, &UPLINK, to, 5 * 8900 + 7).segments(8900);
            check(family, &mut node, (&UPLINK, to), &packets, &[6]);
        }
    }
}

#[test]
fn a_merged_packet_is_as_long_as_its_header_can_say() {
    for (v6, family) in FAMILIES {
        let whole = packet().family(v6).from(&UPLINK).to(&A).tcp(443, 4000);
        // Two segments fill a frame, so that the frames of a packet suffice.
        let size = (3840 - whole.header_len()) / 2;
        let rest = 65_535 + 14 - whole.header_len() - 34 * size;
        for (rest, runs) in [(rest, &[35][..]), (rest + 1, &[34, 1])] {
            let packets = whole.clone().payload(34 * size);
            let mut packets = packets.segments(size);
            let sequence = 1000 + (34 * size) as u32;
            packets.push(whole.clone().sequence(sequence).payload(rest));
            let mut node = Node::new(Setup::default());
            node.publish(set_mtu(9000));
            check(family, &mut node, (&UPLINK, &A), &packets, runs);
        }
    }
}

#[test]
fn a_batch_of_one_stream_becomes_a_few_long_packets() {
    for (v6, family) in FAMILIES {
        let mut node = Node::new(Setup { fill: 128, ..Setup::default() });
        let packets = segments(v6, &A, 64);
        packets.iter().for_each(|packet| node.inject(UPLINK.id, packet.build()));
        node.run();
        let sent = node.sent(A.id);
        assert_eq!(sent.len(), 2, "{family}");
        let header_len = packets[0].header_len();
        let payload = |bytes: Vec<u8>| bytes[header_len..].to_vec();
        let expected: Vec<u8> = packets.iter().flat_map(|packet| payload(packet.build())).collect();
        let arrived: Vec<u8> = sent.iter().flat_map(|sent| payload(completed(sent))).collect();
        assert_eq!(arrived, expected, "{family}");
    }
}

#[test]
fn what_a_veth_leaves_to_do_passes_as_it_is() {
    for (v6, family) in FAMILIES {
        for to in [&A, &B, &C] {
            let mut node = Node::new(Setup { workers: 2, ..Setup::default() });
            let packets = stream(v6, &VETH_UPLINK, to, 3 * 1200).segments(1200);
            for packet in &packets {
                node.inject(VETH_UPLINK.id, packet.clone().check(Check::Partial).build());
            }
            node.run();
            let sent = node.sent(to.id);
            assert_eq!(sent.len(), 3, "{family}");
            for (packet, sent) in packets.iter().zip(&sent) {
                let expected = packet.clone().check(Check::Partial).forwarded(to);
                assert_eq!(sent.bytes, expected.build(), "{family}");
                assert_eq!(sent.partial, Some(expected.partial()), "{family}");
            }
        }
    }
}

#[test]
fn a_super_packet_by_a_veth_that_is_longer_than_the_pods_interface_takes_is_cut() {
    // Only IPv6 can say so much: its length does not count the header.
    let mut node = Node::new(Setup { frames: 4096, ..Setup::default() });
    let long = packet().ipv6().from(&VETH_UPLINK).to(&A).tcp(443, 4000).payload(65_500);
    node.inject(VETH_UPLINK.id, long.clone().check(Check::Partial).build());
    node.run();
    let sent: Vec<Vec<u8>> = node.sent(A.id).iter().map(completed).collect();
    let segments = long.segments(1440);
    let expected: Vec<Vec<u8>> =
        segments.into_iter().map(|segment| segment.forwarded(&A).build()).collect();
    assert_eq!(node.all_drops(), []);
    assert_eq!(sent.len(), expected.len(), "segments");
    assert_eq!(sent, expected);
}

#[test]
fn nothing_is_held_when_the_wire_brings_nothing_more() {
    for (v6, family) in FAMILIES {
        let mut node = Node::new(Setup::default());
        let packets = segments(v6, &A, 4);
        for two in packets.chunks(2) {
            two.iter().for_each(|packet| node.inject(UPLINK.id, packet.build()));
            node.run();
            let sent = node.sent(A.id);
            assert_eq!(sent.len(), 1, "{family}");
            assert_eq!(sent[0].bytes, Packet::whole(two).forwarded(&A).build(), "{family}");
        }
    }
}

#[test]
fn segments_of_consecutive_passes_are_merged() {
    for (v6, family) in FAMILIES {
        let mut node = Node::new(Setup::default());
        let packets = segments(v6, &A, 6);
        for two in packets.chunks(2) {
            two.iter().for_each(|packet| node.inject(UPLINK.id, packet.build()));
            node.pass(0);
        }
        node.run();
        let sent = node.sent(A.id);
        assert_eq!(sent.len(), 1, "{family}");
        assert_eq!(sent[0].bytes, Packet::whole(&packets).forwarded(&A).build(), "{family}");
    }
}

#[test]
fn a_segment_waits_twenty_microseconds_whatever_else_its_port_brings() {
    for (v6, family) in FAMILIES {
        for workers in [1, 2] {
            let mut node = Node::new(Setup { workers, ..Setup::default() });
            let first = segments(v6, &A, 2).remove(0);
            let alone = first.clone().forwarded(&A).build();
            node.inject(UPLINK.id, first.build());
            for number in 0..=20u32 {
                node.pass(0);
                let sent = node.sent(A.id);
                let gone = sent.iter().any(|sent| sent.bytes == alone);
                assert_eq!(gone, number == 20, "{family}, after {number} microseconds");
                // Of another stream, which is held and merged all the time.
                let other = stream(v6, &UPLINK, &A, 1).tcp(7, 7).sequence(1000 + number);
                node.inject(UPLINK.id, other.build());
                node.advance(1000);
            }
        }
    }
}

#[test]
fn what_is_held_leaves_before_ports_and_tables_change() {
    type Change = fn(&mut Node);
    let changes: [(&str, Change); 4] = [
        ("its pod goes", |node| node.remove_port(A.id)),
        ("its wire goes", |node| node.remove_port(UPLINK.id)),
        ("another port goes", |node| node.remove_port(NODE.id)),
        ("new tables", |node| node.publish(|_| ())),
    ];
    for (v6, family) in FAMILIES {
        for (name, change) in changes {
            let mut node = Node::new(Setup::default());
            let packets = segments(v6, &A, 3);
            packets.iter().for_each(|packet| node.inject(UPLINK.id, packet.build()));
            node.pass(0);
            change(&mut node);
            node.pass(0);
            let sent = node.sent(A.id);
            assert_eq!(sent.len(), 1, "{family}, {name}");
            assert_eq!(sent[0].bytes, Packet::whole(&packets).forwarded(&A).build());
            assert_eq!(node.all_drops(), [], "{family}, {name}");
        }
    }
}

#[test]
fn what_arrives_with_the_order_to_stop_is_not_held_for_ever() {
    for (v6, family) in FAMILIES {
        let mut node = Node::new(Setup::default());
        let packets = segments(v6, &A, 3);
        packets.iter().for_each(|packet| node.inject(UPLINK.id, packet.build()));
        node.stop();
        let sent = node.sent(A.id);
        assert_eq!(sent.len(), 1, "{family}");
        assert_eq!(sent[0].bytes, Packet::whole(&packets).forwarded(&A).build(), "{family}");
        assert_eq!(node.all_drops(), [], "{family}");
    }
}

#[test]
fn segments_of_two_queues_are_merged_apart() {
    for (v6, family) in FAMILIES {
        let mut node = Node::new(Setup::default());
        let packets = segments(v6, &A, 4);
        let (by_one, by_other) = packets.split_at(2);
        by_one.iter().for_each(|packet| node.inject(UPLINK.id, packet.build()));
        by_other.iter().for_each(|packet| node.inject(VETH_UPLINK.id, packet.build()));
        node.run();
        let sent: Vec<Vec<u8>> = node.sent(A.id).into_iter().map(|sent| sent.bytes).collect();
        let expected = [by_one, by_other].map(|two| Packet::whole(two).forwarded(&A).build());
        assert_eq!(sent, expected, "{family}");
    }
}
