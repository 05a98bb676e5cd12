//! Every drop reason occurs: for each there is something that happens, and is counted under it and
//! under no other. A reason that nothing can cause does not stay in the list.

mod harness;

use dataplane::drop::DropReason::{self, *};
use dataplane::port::KernelDrops;
use dataplane::shaper::{Limit, Limits};
use harness::packet::{Check, Packet, RST, packet};
use harness::{A, B, C, End, FAR_V4, HIDDEN, Mapped, NOBODY_V4, NODE, Node, Setup, TO_B, UPLINK};

/// An echo request, IPv4 or IPv6, that would be forwarded.
fn good(v6: bool) -> Packet {
    packet().from(&A).to(&B).family(v6).icmp(if v6 { 128 } else { 8 }, 0).payload(100)
}

/// A node after these bytes arrived from a port.
fn arrived(from: &End, bytes: Vec<u8>) -> Node {
    happened(Setup::default(), |node| node.inject(from.id, bytes))
}

/// A node after pod A sent this packet.
fn sent(packet: Packet) -> Node {
    arrived(&A, packet.build())
}

/// A node after pod A sent this packet with one byte changed.
fn changed(packet: Packet, at: usize, value: u8) -> Node {
    let mut bytes = packet.build();
    bytes[at] = value;
    arrived(&A, bytes)
}

/// A node after something happened, and workers have looked at the kernel's counters.
fn happened(setup: Setup, event: impl FnOnce(&mut Node)) -> Node {
    let mut node = Node::new(setup);
    event(&mut node);
    node.run();
    node.housekeep();
    node
}

/// A node after an event, then as many good packets of pod A, which pod B's worker sees late.
fn some_sent(packets: usize, setup: Setup, event: impl FnOnce(&mut Node)) -> Node {
    happened(setup, |node| {
        event(node);
        for _ in 0..packets {
            node.inject(A.id, good(false).build());
        }
        while node.pass(0) > 0 {}
    })
}

/// A node whose pod A has a limit of 1 byte per µs and sends so many good packets at once.
fn limited(frames: u32, queue_ns: u64, packets: usize) -> Node {
    let limit = Limit { bits_per_s: 8_000_000, burst_bytes: 1, queue_ns };
    happened(Setup { frames, ..Setup::default() }, |node| {
        node.limit(A.id, Limits { from_pod: Some(limit), to_pod: None });
        for _ in 0..packets {
            node.inject(A.id, good(false).build());
        }
    })
}

/// A node after its kernel counted something at the socket of pod A.
fn kernel(drops: KernelDrops) -> Node {
    happened(Setup::default(), |node| node.set_kernel_drops(A.id, drops))
}

/// An ARP request of pod A: byte 6 of it, and who asks for whom.
fn arp(protocol_high: u8, sender: [u8; 4], target: [u8; 4]) -> Node {
    let link = [[0xff; 6], A.mac].concat();
    let kind = [0x08, 0x06, 0, 1, protocol_high, 0, 6, 4, 0, 1];
    let request = [&link, &kind[..], &A.mac, &sender, &[0; 6], &target].concat();
    arrived(&A, request)
}

/// A neighbour solicitation of pod A from one link-local address for another.
fn solicitation(hop_limit: u8, from: &str, target_last: u8) -> Node {
    let mut target = [0; 16];
    (target[0], target[1], target[15]) = (0xfe, 0x80, target_last);
    let packet = packet().from(&A).src(from).dst("fe80::1").ttl(hop_limit);
    sent(packet.icmp(135, 0).payload_bytes(&target))
}

/// IPv6 destination options of one unit that claim to have more.
fn options(packet: Packet, more: u8) -> Packet {
    packet.extension(60, &[0, more, 1, 4, 0, 0, 0, 0])
}

/// TCP in VXLAN (RFC 7348) for beyond the node, marked as three segments.
fn tunnelled_super_packet() -> Packet {
    let inner = packet().from(&A).to(&B).tcp(1, 2).payload(4_000).check(Check::Partial);
    let vxlan = [&[8, 0, 0, 0, 0, 0, 7, 0], inner.build().as_slice()].concat();
    let outer = packet().from(&A).dst(FAR_V4).udp(9, 4789).payload_bytes(&vxlan);
    let start = outer.header_len() + 8 + inner.l4_offset();
    outer.check(Check::Value(0)).marker(start as u8, 16, 3, 1_350)
}

/// A node with host ports, after these packets came from these ports one after another.
fn hosted(setup: Setup, packets: &[(&End, Packet)]) -> Node {
    happened(Setup { host_ports: true, ..setup }, |node| {
        for (from, packet) in packets {
            node.inject(from.id, packet.build());
            node.run();
        }
    })
}

/// A datagram of a client for a host port; all clients have the same port.
fn asks<'a>(client: &'a End, host_port: &Mapped) -> (&'a End, Packet) {
    (client, packet().from(client).to(&NODE).udp(5_000, host_port.host_port))
}

/// A node with room for one flow, whose pod B has answered one client when another one asks.
fn crowded(setup: Setup) -> Node {
    let answer = packet().from(&B).to(&UPLINK).udp(TO_B.port, 5_000);
    hosted(setup, &[asks(&UPLINK, &TO_B), (&B, answer), asks(&A, &TO_B)])
}

/// Causes the reason. Whoever adds one adds a case here, or this does not compile.
fn cause(reason: DropReason) -> Node {
    let two = Setup { workers: 2, ..Setup::default() };
    match reason {
        // 142 bytes each: twenty may wait in any case, and one leaves at once.
        ShaperFull => limited(1024, 1_000_000, 22),
        // The ports hold all frames but 24, of which twenty may wait.
        ShaperNoFrames => limited(8 * 64 + 24, 1_000_000_000, 22),
        TooShort => arrived(&A, good(false).build()[..20].to_vec()),
        UnknownEtherType => changed(good(false), 13, 0x37),
        OtherHost => sent(good(false).dst_mac(B.mac)),
        LinkMulticast => sent(good(false).dst_mac([0x01, 0, 0x5e, 0, 0, 1])),
        Ipv4BadVersion => changed(good(false), 14, 0x65),
        Ipv4BadHeaderLength => changed(good(false), 14, 0x44),
        Ipv4BadLength => arrived(&A, good(false).build()[..60].to_vec()),
        Ipv4BadChecksum => changed(good(false), 24, 0),
        Ipv4SourceRoute => sent(good(false).options(&[131, 7, 4, 1, 2, 3, 4])),
        Ipv4BadOptions => sent(good(false).options(&[7, 0, 0, 0])),
        Ipv6BadVersion => changed(good(true), 14, 0x40),
        Ipv6BadLength => arrived(&A, good(true).build()[..60].to_vec()),
        Ipv6TooManyHeaders => sent((0..9).fold(good(true), |packet, _| options(packet, 0))),
        Ipv6BadExtension => sent(options(good(true), 255)),
        Ipv6RoutingType0 => sent(good(true).extension(43, &[0; 8])),
        L4TooShort => sent(good(false).protocol(6).payload(19)),
        UdpBadLength => changed(good(false).udp(1, 2), 14 + 20 + 5, 7),
        FragmentTooSmall => sent(good(false).protocol(17).payload(0).fragment(8, true)),
        SpoofedMac => sent(good(false).src_mac(B.mac)),
        SpoofedIpv4 => sent(good(false).src("10.244.1.12")),
        SpoofedIpv6 => sent(good(true).src("fd00:10:244:1::12")),
        SpoofedPod => arrived(&UPLINK, good(false).from(&UPLINK).src("10.244.1.12").to(&A).build()),
        SpoofedArp => arp(0x08, B.v4.octets(), [169, 254, 1, 1]),
        SpoofedNd => solicitation(255, "fe80::1", 1),
        BadMarker => sent(good(false).marker(255, 255, 1, 0)),
        TinySegments => sent(good(false).tcp(1, 2).payload(6_500).marked(100)),
        ArpMalformed => arp(0x09, A.v4.octets(), [169, 254, 1, 1]),
        ArpNotForGateway => arp(0x08, A.v4.octets(), B.v4.octets()),
        NdMalformed => solicitation(254, "fe80::aa", 1),
        NdNotForGateway => solicitation(255, "fe80::aa", 2),
        NdForbidden => sent(good(true).src("fe80::aa").dst("ff02::2").ttl(255).icmp(133, 0)),
        MartianSource => arrived(&NODE, good(false).from(&NODE).src("127.0.0.1").build()),
        MartianDestination => sent(good(false).dst("240.0.0.1")),
        Multicast => sent(good(false).dst("224.0.1.1")),
        LinkLocal => sent(good(false).dst("169.254.7.7")),
        IcmpRedirect => sent(good(false).icmp(5, 1)),
        NoPod => sent(good(false).dst(NOBODY_V4)),
        NotOurs => arrived(&NODE, good(false).from(&NODE).dst(FAR_V4).build()),
        TtlExpired => sent(good(false).ttl(1)),
        MtuExceeded => sent(good(false).to(&C).payload(1_400)),
        EncapsulatedSuperPacket => sent(tunnelled_super_packet()),
        PortDown => some_sent(1, two, |node| node.unlist(A.id)),
        NatNoFlow => {
            let reset = packet().from(&UPLINK).to(&NODE).tcp(5_000, TO_B.host_port).flags(RST);
            hosted(Setup::default(), &[(&UPLINK, reset)])
        }
        // One keeps its port, one gets the only other one there is, the last gets none.
        NatNoPort => {
            let clients = [&UPLINK, &A, &C].map(|client| asks(client, &HIDDEN));
            hosted(Setup::default(), &clients)
        }
        NatUntranslatable => {
            let sctp = |packet: Packet, src, dst| packet.sctp(src, dst, 0).payload(100);
            let asks = sctp(packet().from(&UPLINK).to(&NODE), 5_000, TO_B.host_port);
            let answer = sctp(packet().from(&B).to(&UPLINK), TO_B.port, 5_000);
            let first = answer.may_fragment().fragments(64).remove(0);
            hosted(Setup::default(), &[(&UPLINK, asks), (&B, first)])
        }
        FlowQuota => crowded(Setup { flows_per_pod: 1, ..Setup::default() }),
        FlowTableFull => crowded(Setup { flows: 1, ..Setup::default() }),
        IcmpErrorUnknownFlow => {
            let answer = packet().from(&NODE).to(&UPLINK).udp(TO_B.host_port, 5_000);
            let error = packet().from(&UPLINK).to(&NODE).icmp(3, 3);
            hosted(Setup::default(), &[(&UPLINK, error.payload_bytes(&answer.quoted()))])
        }
        FragmentWithoutFirst => {
            let datagram = packet().from(&B).to(&UPLINK).udp(TO_B.port, 5_000).payload(100);
            let last = datagram.may_fragment().fragments(64).remove(1);
            hosted(Setup::default(), &[(&B, last)])
        }
        // The three ports of each worker take all frames.
        NoFrames => some_sent(1, Setup { frames: 3 * two.fill, ..two }, |_| {}),
        CrossingFull => some_sent(1_025, Setup { frames: 2_048, ..two }, |_| {}),
        TxRingFull => some_sent(2, Setup { tx: 1, ..two }, |_| {}),
        TxRefused => some_sent(1, two, |node| node.refuse(B.id, 1)),
        BadDescriptor => happened(two, |node| node.corrupt(A.id, u64::MAX, 60)),
        RxFillEmpty => kernel(KernelDrops { rx_fill_empty: 3, ..KernelDrops::default() }),
        RxRingFull => kernel(KernelDrops { rx_ring_full: 3, ..KernelDrops::default() }),
        RxDropped => kernel(KernelDrops { rx_dropped: 3, ..KernelDrops::default() }),
        TxInvalid => kernel(KernelDrops { tx_invalid: 3, ..KernelDrops::default() }),
    }
}

#[test]
fn every_reason_has_something_that_is_counted_under_it_alone() {
    for reason in DropReason::all() {
        let counted: Vec<DropReason> =
            cause(reason).all_drops().into_iter().map(|(_, _, reason, _)| reason).collect();
        assert_eq!(counted, [reason]);
    }
}

#[test]
fn what_the_causes_change_is_dropped_for_nothing_else() {
    for v6 in [false, true] {
        let mut node = sent(good(v6));
        assert_eq!(node.all_drops(), []);
        assert_eq!(node.sent(B.id).len(), 1);
    }
}
