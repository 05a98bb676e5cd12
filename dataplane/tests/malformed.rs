//! Malformed frames by the thousand: every one is counted under the reason of its kind, none is
//! forwarded, nothing panics, and both conservation laws hold.
//!
//! Each kind takes a good frame made from a seed and breaks one thing in it, so the reason is
//! known. The seeds are fixed: a failure names its kind and seed and repeats.

mod harness;

use dataplane::drop::DropReason::{self, *};
use harness::packet::{Packet, packet, sum};
use harness::{A, B, Direction, ENDS, FAR_V4, FAR_V6, Node, Setup};

/// Frames of each kind.
const SEEDS: u64 = 250;

/// Numbers that depend on the seed alone (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn within(&mut self, start: usize, end: usize) -> usize {
        start + self.below(end - start)
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }
}

/// A good packet of pod A that would be forwarded.
fn good(random: &mut Random, v6: bool) -> Packet {
    let packet = packet().from(&A).ttl(random.within(2, 256) as u8).service(random.byte());
    let packet = match random.below(2) {
        0 => packet.to(&B).family(v6),
        _ => packet.dst(if v6 { FAR_V6 } else { FAR_V4 }),
    };
    let (src, dst) = (random.next() as u16, random.next() as u16);
    let packet = match random.below(3) {
        0 => packet.udp(src, dst),
        1 => packet.tcp(src, dst),
        _ => packet.icmp(if v6 { 128 } else { 8 }, 0),
    };
    packet.payload(random.within(60, 1200))
}

fn v4(random: &mut Random) -> Vec<u8> {
    good(random, false).build()
}

fn v6(random: &mut Random) -> Vec<u8> {
    good(random, true).build()
}

/// Puts a right checksum into a changed IPv4 header.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = 14 + usize::from(bytes[14] & 0xf).max(5) * 4;
    bytes[24..26].fill(0);
    let check = !sum(&bytes[14..end]);
    bytes[24..26].copy_from_slice(&check.to_be_bytes());
    bytes
}

/// An IPv6 packet whose extension headers are `chain`, each of one unit.
fn extended(random: &mut Random, chain: &[u8]) -> Packet {
    let packet = good(random, true);
    chain.iter().fold(packet, |packet, number| packet.extension(*number, &[0, 0, 1, 4, 0, 0, 0, 0]))
}

/// A frame whose first bytes are those of a good one, and the rest noise.
fn noise(random: &mut Random, keep: usize, len: usize) -> Vec<u8> {
    let mut bytes = v4(random);
    bytes.truncate(keep);
    bytes.resize_with(len.max(keep), || random.byte());
    bytes
}

type Kind = (&'static str, DropReason, fn(&mut Random) -> Vec<u8>);

const KINDS: [Kind; 52] = [
    ("shorter than Ethernet", TooShort, |r| {
        let len = r.within(1, 14);
        noise(r, 12.min(len), len)
    }),
    ("no IP header", TooShort, |r| v4(r)[..14].to_vec()),
    ("half an IPv4 header", TooShort, |r| v4(r)[..r.within(15, 34)].to_vec()),
    ("half an IPv6 header", TooShort, |r| v6(r)[..r.within(15, 54)].to_vec()),
    ("options cut off", TooShort, |r| {
        let bytes = good(r, false).options(&[1; 40]).build();
        bytes[..r.within(34, 74)].to_vec()
    }),
    ("unknown EtherType", UnknownEtherType, |r| {
        let mut bytes = v4(r);
        bytes[12] = [0x07, 0x81, 0x88, 0x90, 0xff][r.below(5)];
        bytes
    }),
    ("VLAN tag", UnknownEtherType, |r| {
        let mut bytes = v4(r);
        bytes.splice(12..12, [0x81, 0x00, r.byte(), r.byte()]);
        bytes
    }),
    ("two VLAN tags", UnknownEtherType, |r| {
        let mut bytes = v6(r);
        bytes.splice(12..12, [0x88, 0xa8, 0, r.byte(), 0x81, 0x00, 0, r.byte()]);
        bytes
    }),
    ("IPv4 with another version", Ipv4BadVersion, |r| {
        let mut bytes = v4(r);
        bytes[14] = ([0, 1, 2, 3, 5, 6, 15][r.below(7)] << 4) | 5;
        bytes
    }),
    ("IPv4 header too short", Ipv4BadHeaderLength, |r| {
        let mut bytes = v4(r);
        bytes[14] = 0x40 | r.below(5) as u8;
        bytes
    }),
    ("IPv4 total below the header", Ipv4BadLength, |r| {
        let mut bytes = v4(r);
        bytes[16..18].copy_from_slice(&[0, r.below(20) as u8]);
        sealed(bytes)
    }),
    ("IPv4 total beyond the frame", Ipv4BadLength, |r| {
        let mut bytes = v4(r);
        let len = r.within(bytes.len() - 13, 0x1_0000) as u16;
        bytes[16..18].copy_from_slice(&len.to_be_bytes());
        sealed(bytes)
    }),
    ("IPv4 cut off", Ipv4BadLength, |r| {
        let bytes = v4(r);
        let len = r.within(34, bytes.len());
        bytes[..len].to_vec()
    }),
    ("IPv4 bit flipped", Ipv4BadChecksum, |r| {
        let mut bytes = v4(r);
        let at = [15, 18, 19, 20, 22, 23, 24, 25, 30, 31, 32, 33][r.below(12)];
        bytes[at] ^= 1 << r.below(8);
        bytes
    }),
    ("loose source route", Ipv4SourceRoute, |r| {
        let skip = vec![1; r.below(4)];
        good(r, false).options(&[skip, vec![131, 7, 4, 1, 2, 3, 4]].concat()).build()
    }),
    ("strict source route", Ipv4SourceRoute, |r| {
        let skip = vec![1; r.below(4)];
        good(r, false).options(&[skip, vec![137, r.byte(), 4, 1, 2, 3, 4]].concat()).build()
    }),
    ("option of length 0 or 1", Ipv4BadOptions, |r| {
        let kind = [7, 68, 0x94, 0x55][r.below(4)];
        good(r, false).options(&[kind, r.below(2) as u8, 0, 0]).build()
    }),
    ("option beyond the header", Ipv4BadOptions, |r| {
        let kind = [7, 68, 0x94, 0x55][r.below(4)];
        good(r, false).options(&[kind, r.within(5, 256) as u8, 0, 0]).build()
    }),
    ("option without length", Ipv4BadOptions, |r| {
        let kind = [7, 68, 0x94, 0x55][r.below(4)];
        good(r, false).options(&[1, 1, 1, kind]).build()
    }),
    ("IPv6 with another version", Ipv6BadVersion, |r| {
        let mut bytes = v6(r);
        bytes[14] = [0, 1, 2, 3, 4, 5, 7, 15][r.below(8)] << 4;
        bytes
    }),
    ("IPv6 length beyond the frame", Ipv6BadLength, |r| {
        let mut bytes = v6(r);
        let len = r.within(bytes.len() - 53, 0x1_0000) as u16;
        bytes[18..20].copy_from_slice(&len.to_be_bytes());
        bytes
    }),
    ("IPv6 cut off", Ipv6BadLength, |r| {
        let bytes = v6(r);
        let len = r.within(54, bytes.len());
        bytes[..len].to_vec()
    }),
    ("jumbogram", Ipv6BadLength, |r| {
        let mut bytes = extended(r, &[0]).build();
        bytes[18..20].fill(0);
        bytes
    }),
    ("too many extension headers", Ipv6TooManyHeaders, |r| {
        let chain = vec![[0, 43, 60, 135][r.within(2, 4)]; r.within(9, 60)];
        extended(r, &chain).build()
    }),
    ("extension header beyond the packet", Ipv6BadExtension, |r| {
        let number = [0, 60, 135][r.below(3)];
        good(r, true).extension(number, &[0, 0xff, 1, 4, 0, 0, 0, 0]).build()
    }),
    ("authentication header beyond the packet", Ipv6BadExtension, |r| {
        packet()
            .from(&A)
            .to(&B)
            .ipv6()
            .protocol(59)
            .extension(51, &[0, r.within(1, 256) as u8, 0, 0, 0, 0, 0, 0])
            .build()
    }),
    ("extension header of a byte", Ipv6BadExtension, |r| {
        let number = [0, 43, 44, 51, 60, 135][r.below(6)];
        packet().from(&A).to(&B).ipv6().protocol(59).extension(number, &[0]).build()
    }),
    ("fragment header cut off", Ipv6BadExtension, |r| {
        let bytes = vec![0; r.within(2, 8)];
        packet().from(&A).to(&B).ipv6().protocol(59).extension(44, &bytes).build()
    }),
    ("routing type 0", Ipv6RoutingType0, |r| {
        let left = r.byte();
        good(r, true).extension(43, &[0, 0, 0, left, 0, 0, 0, 0]).build()
    }),
    ("IPv4 L4 cut off", L4TooShort, |r| short_l4(r, false)),
    ("IPv6 L4 cut off", L4TooShort, |r| short_l4(r, true)),
    ("tiny first fragment", L4TooShort, |r| {
        let v6 = r.below(2) == 1;
        good(r, v6).protocol(6).payload(8 * r.within(1, 3)).fragment(0, true).build()
    }),
    ("UDP length below 8", UdpBadLength, |r| {
        let v6 = r.below(2) == 1;
        bad_udp(r, v6, |r, _| r.below(8))
    }),
    ("UDP length beyond the packet", UdpBadLength, |r| {
        let v6 = r.below(2) == 1;
        bad_udp(r, v6, |r, payload| r.within(payload + 9, 0x1_0000))
    }),
    ("empty fragment", FragmentTooSmall, |r| {
        let v6 = r.below(2) == 1;
        let (offset, more) = (8 * r.within(1, 8000) as u16, r.below(2) == 1);
        good(r, v6).protocol(17).payload(0).fragment(offset, more).build()
    }),
    ("fragment beyond 65535", FragmentTooSmall, |r| {
        let v6 = r.below(2) == 1;
        let more = r.below(2) == 1;
        good(r, v6).protocol(17).payload(r.within(16, 900)).fragment(65_520, more).build()
    }),
    ("another's MAC", SpoofedMac, |r| {
        let mut bytes = v4(r);
        bytes[6] = [0x00, 0x0b, 0x33, 0xff, 0x12][r.below(5)];
        bytes
    }),
    ("another's IPv4 address", SpoofedIpv4, |r| {
        let mut bytes = v4(r);
        bytes[26 + r.below(4)] ^= 1 << r.below(8);
        sealed(bytes)
    }),
    ("another's IPv6 address", SpoofedIpv6, |r| {
        let mut bytes = v6(r);
        bytes[22 + r.below(16)] ^= 1 << r.below(8);
        bytes
    }),
    ("another receiver", OtherHost, |r| {
        let mut bytes = v6(r);
        bytes[1 + r.below(5)] ^= 1 << r.below(8);
        bytes
    }),
    ("group on the link", LinkMulticast, |r| {
        let mut bytes = v4(r);
        bytes[..6].copy_from_slice(&[0x01, 0, 0x5e, r.byte() & 0x7f, r.byte(), r.byte()]);
        bytes
    }),
    ("martian destination", MartianDestination, |r| {
        let mut bytes = v4(r);
        bytes[30] = [0, 127, 240, 254][r.below(4)];
        sealed(bytes)
    }),
    ("IPv4 group", Multicast, |r| {
        let mut bytes = v4(r);
        bytes[30] = r.within(224, 240) as u8;
        sealed(bytes)
    }),
    ("IPv6 group", Multicast, |r| {
        let mut bytes = v6(r);
        bytes[38] = 0xff;
        bytes
    }),
    ("link-local destination", LinkLocal, |r| {
        let mut bytes = v4(r);
        bytes[30..32].copy_from_slice(&[169, 254]);
        sealed(bytes)
    }),
    ("redirect", IcmpRedirect, |r| {
        let code = r.below(4) as u8;
        good(r, false).icmp(5, code).build()
    }),
    ("marker behind the packet", BadMarker, |r| {
        // The payload is between 60 and 1200 bytes; start and offset reach 512 at most.
        let v6 = r.below(2) == 1;
        let packet = good(r, v6).payload(60);
        packet.marker(255, r.byte(), r.byte() | 1, 0).build()
    }),
    ("marker before L4", BadMarker, |r| {
        let v6 = r.below(2) == 1;
        let packet = good(r, v6);
        let start = r.below(packet.l4_offset()) as u8;
        packet.marker(start, r.byte() & 31, 1, 0).build()
    }),
    ("segments without checksum", BadMarker, |r| {
        let v6 = r.below(2) == 1;
        let size = r.within(1, 0x1_0000) as u16;
        good(r, v6).marker(r.byte(), r.byte(), r.byte() & !1, size).build()
    }),
    ("tiny segments", TinySegments, |r| {
        let v6 = r.below(2) == 1;
        let size = r.within(1, 536);
        let packet = good(r, v6).tcp(1, 2).payload(size * 64 + r.within(1, 1000));
        packet.marked(size as u16).build()
    }),
    ("broken ARP", ArpMalformed, |r| {
        let mut bytes = noise(r, 12, 42);
        bytes[12..20].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4]);
        bytes[14 + r.below(6)] ^= 1 << r.below(8);
        bytes
    }),
    ("solicitation from afar", NdMalformed, |r| {
        let packet = packet().from(&A).src("fe80::aa").dst("ff02::1:ff00:1").icmp(135, 0);
        packet.ttl(r.below(255) as u8).payload(r.within(16, 64)).build()
    }),
];

fn short_l4(random: &mut Random, v6: bool) -> Vec<u8> {
    let icmp = if v6 { 58 } else { 1 };
    let (protocol, least) = [(6, 20), (17, 8), (icmp, 8), (132, 12)][random.below(4)];
    let (len, padding) = (random.below(least), random.below(60));
    good(random, v6).protocol(protocol).payload(len).padding(padding).build()
}

fn bad_udp(random: &mut Random, v6: bool, len: fn(&mut Random, usize) -> usize) -> Vec<u8> {
    let payload = random.within(0, 900);
    let packet = good(random, v6).udp(1, 2).payload(payload);
    let mut bytes = packet.build();
    let field = packet.l4_offset() + 4;
    bytes[field..field + 2].copy_from_slice(&(len(random, payload) as u16).to_be_bytes());
    bytes
}

#[test]
fn every_malformed_frame_is_counted_under_its_reason_and_none_is_forwarded() {
    for (workers, host_ports) in [(1, false), (1, true), (2, true)] {
        let mut node = Node::new(Setup { workers, host_ports, ..Setup::default() });
        let mut counted = 0;
        for (number, (name, reason, make)) in KINDS.into_iter().enumerate() {
            for seed in 0..SEEDS {
                let mut random = Random(seed << 8 | number as u64);
                let before = node.drops(A.id, Direction::FromPod, reason);
                let bytes = make(&mut random);
                node.inject(A.id, bytes);
                node.pass(0);
                let after = node.drops(A.id, Direction::FromPod, reason);
                assert_eq!(after, before + 1, "{name}, seed {seed}: {:?}", node.all_drops());
                counted += 1;
            }
        }
        node.run();
        assert!(counted >= 10_000, "{counted} frames");
        let dropped: u64 = node.all_drops().into_iter().map(|(_, _, _, count)| count).sum();
        assert_eq!(dropped, counted, "each is counted once");
        for end in ENDS {
            assert!(node.sent(end.id).is_empty(), "nothing to {}", end.name);
        }
    }
}

#[test]
fn what_the_kinds_are_made_from_is_forwarded() {
    let mut node = Node::new(Setup::default());
    for seed in 0..2 * SEEDS {
        let mut random = Random(seed);
        let packet = good(&mut random, seed % 2 == 1);
        node.inject(A.id, packet.build());
        node.pass(0);
        assert_eq!(node.all_drops(), [], "seed {seed}: {packet:?}");
    }
    assert_eq!(node.worker(0).sent.get(), 2 * SEEDS);
}

#[test]
fn noise_of_any_length_is_never_forwarded() {
    let mut node = Node::new(Setup::default());
    let mut random = Random(1);
    for _ in 0..10_000 {
        let len = random.within(1, 300);
        let keep = random.below(len.min(26) + 1);
        let bytes = noise(&mut random, keep, len);
        node.inject(A.id, bytes);
        node.pass(0);
    }
    let dropped: u64 = node.all_drops().into_iter().map(|(_, _, _, count)| count).sum();
    assert_eq!(dropped, 10_000);
}
