//! Headers: options, extension headers, fragments, EtherTypes, lengths.

use dataplane::drop::DropReason;

use crate::FAMILIES;
use crate::case::{Case, run_all};
use crate::harness::packet::{Check, Packet, packet, sum};
use crate::harness::{A, B, NODE};

const UDP: u8 = 17;
const TCP: u8 = 6;

fn forwarded(name: impl Into<String>, packet: &Packet) -> Case {
    Case::new(name, &A, packet).sends(&B, &packet.clone().forwarded(&B))
}

fn base(v6: bool) -> Packet {
    packet().from(&A).to(&B).family(v6).payload(40)
}

#[test]
fn unknown_ipv4_options_pass_unchanged() {
    let mut cases = Vec::new();
    let good: [(&str, &[u8]); 8] = [
        ("router alert", &[0x94, 4, 0, 0]),
        ("timestamp", &[68, 12, 5, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("record route", &[7, 7, 4, 0, 0, 0, 0]),
        ("no operation", &[1, 1, 1, 1]),
        ("unknown", &[0x55, 3, 9]),
        ("unknown of two bytes", &[0x55, 2]),
        ("whatever follows the end", &[0, 131, 137, 1]),
        ("40 bytes", &[1; 40]),
    ];
    for (name, options) in good {
        cases.push(forwarded(name, &base(false).options(options)));
    }
    run_all(&cases);
}

#[test]
fn source_routes_and_broken_options_are_dropped() {
    let mut cases = Vec::new();
    let bad: [(&str, &[u8], DropReason); 9] = [
        ("loose", &[131, 7, 4, 10, 244, 1, 12], DropReason::Ipv4SourceRoute),
        ("strict", &[137, 7, 4, 10, 244, 1, 12], DropReason::Ipv4SourceRoute),
        ("loose behind others", &[1, 0x94, 4, 0, 0, 131, 3, 4], DropReason::Ipv4SourceRoute),
        ("strict without length", &[1, 1, 1, 137], DropReason::Ipv4SourceRoute),
        ("length 0", &[68, 0, 0, 0], DropReason::Ipv4BadOptions),
        ("length 1", &[68, 1, 0, 0], DropReason::Ipv4BadOptions),
        ("length beyond the header", &[68, 5, 0, 0], DropReason::Ipv4BadOptions),
        ("length 255", &[68, 255, 0, 0], DropReason::Ipv4BadOptions),
        ("no length", &[1, 1, 1, 68], DropReason::Ipv4BadOptions),
    ];
    for (name, options, reason) in bad {
        cases.push(Case::new(name, &A, &base(false).options(options)).drops(reason));
    }
    run_all(&cases);
}

/// An extension header of `units` times 8 bytes filled with PadN.
fn padding_header(units: usize) -> Vec<u8> {
    let mut bytes = vec![0; units * 8];
    (bytes[1], bytes[2], bytes[3]) = ((units - 1) as u8, 1, (units * 8 - 4) as u8);
    bytes
}

#[test]
fn ipv6_extension_headers_are_walked() {
    let mut cases = Vec::new();
    let pad = padding_header(1);
    let segment_route = [0, 2, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6];
    let authentication = [[0, 4, 0, 0].as_slice(), &[9; 20]].concat();
    let one = |number, bytes: &[u8]| base(true).extension(number, bytes);
    cases.push(forwarded("hop by hop", &one(0, &pad)));
    cases.push(forwarded("destination options", &one(60, &pad)));
    cases.push(forwarded("24 bytes of options", &one(60, &padding_header(3))));
    cases.push(forwarded("segment routing", &one(43, &segment_route)));
    cases.push(forwarded("authentication", &one(51, &authentication)));
    cases.push(forwarded("mobility", &one(135, &pad)));
    cases.push(forwarded("unknown next header", &one(60, &pad).protocol(253)));
    cases.push(forwarded("no next header", &base(true).protocol(59)));
    cases.push(forwarded("tcp behind three", &one(0, &pad).extension(60, &pad).tcp(1, 2)));
    let chain = |count| (0..count).fold(base(true), |packet, _| packet.extension(60, &pad));
    cases.push(forwarded("eight", &chain(8)));
    let nine = Case::new("nine", &A, &chain(9)).drops(DropReason::Ipv6TooManyHeaders);
    cases.push(nine);
    let type_0 = [&[0, 2, 0, 1], [0; 20].as_slice()].concat();
    let routed = Case::new("routing type 0", &A, &one(43, &type_0));
    cases.push(routed.drops(DropReason::Ipv6RoutingType0));
    // Offloads behind extension headers.
    let partial = one(0, &pad).check(Check::Partial);
    cases.push(
        Case::new("inferred", &A, &partial).sends_partial(&B, &partial.clone().forwarded(&B)),
    );
    let marked = one(0, &pad).tcp(1, 2).marked(0);
    cases.push(Case::new("marked", &A, &marked).sends_partial(&B, &marked.clone().forwarded(&B)));
    run_all(&cases);
}

#[test]
fn a_cut_off_extension_header_is_dropped() {
    let mut cases = Vec::new();
    for (name, number, bytes) in [
        ("options longer than the packet", 60, [0, 200, 1, 4, 0, 0, 0, 0].as_slice()),
        ("authentication longer than the packet", 51, &[0, 200, 0, 0, 0, 0, 0, 0]),
        ("one byte of options", 60, &[0]),
        ("half a fragment header", 44, &[0, 0, 0, 1]),
    ] {
        let cut = packet().from(&A).to(&B).ipv6().protocol(59).extension(number, bytes);
        cases.push(Case::new(name, &A, &cut).drops(DropReason::Ipv6BadExtension));
    }
    // RFC 2675: a length of 0 and hop-by-hop options announce more than any frame holds.
    let mut jumbogram = base(true).extension(0, &[0, 0, 0xc2, 4, 0, 1, 0, 0]).build();
    jumbogram[18..20].fill(0);
    let case = Case::of_bytes("jumbogram", &A, jumbogram);
    cases.push(case.drops(DropReason::Ipv6BadLength));
    run_all(&cases);
}

#[test]
fn fragments_are_forwarded_and_impossible_ones_are_not() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let name = |what: &str| format!("{family} {what}");
        let fragment = |offset, more| base(v6).fragment(offset, more);
        cases.push(forwarded(name("first"), &fragment(0, true)));
        cases.push(forwarded(name("first of tcp"), &fragment(0, true).tcp(1, 2)));
        // The length of the datagram, which a first fragment does not have.
        let announced = [0, 1, 0, 2, 0x0b, 0xb8, 0, 0];
        let first = fragment(0, true).protocol(UDP).payload_bytes(&announced);
        cases.push(forwarded(name("first of a long datagram"), &first));
        cases.push(forwarded(name("middle"), &fragment(40, true).protocol(UDP)));
        cases.push(forwarded(name("last"), &fragment(1480, false).protocol(TCP)));
        cases.push(forwarded(
            name("last of one byte"),
            &fragment(8, false).protocol(UDP).payload(1),
        ));
        let at_the_end = fragment(65_520, false).protocol(UDP).payload(15);
        cases.push(forwarded(name("up to 65535"), &at_the_end));
        // What looks like a pseudo-header sum in the middle of a datagram is none.
        let partial = fragment(0, true).check(Check::Partial);
        cases.push(forwarded(name("first with a partial sum"), &partial));

        let bad = |what, packet: Packet, reason| Case::new(name(what), &A, &packet).drops(reason);
        let tiny = fragment(0, true).protocol(TCP).payload(8);
        cases.push(bad("tiny first", tiny, DropReason::L4TooShort));
        let empty = fragment(8, true).protocol(UDP).payload(0);
        cases.push(bad("empty", empty, DropReason::FragmentTooSmall));
        let empty = fragment(0, true).protocol(UDP).payload(0);
        cases.push(bad("empty first", empty, DropReason::FragmentTooSmall));
        let over = fragment(65_520, false).protocol(UDP).payload(16);
        cases.push(bad("beyond 65535", over, DropReason::FragmentTooSmall));
    }
    cases.push(forwarded("atomic", &base(true).fragment(0, false)));
    let atomic = base(true).fragment(0, false).check(Check::Partial);
    cases.push(
        Case::new("atomic, partial", &A, &atomic).sends_partial(&B, &atomic.clone().forwarded(&B)),
    );
    // A part of a datagram does not become whole by a second fragment header.
    let nested = base(true).extension(44, &[0, 0, 0, 1, 0, 0, 0, 1]).fragment(0, false);
    cases.push(forwarded("first in atomic", &nested.check(Check::Partial)));
    run_all(&cases);
}

#[test]
fn other_ether_types_are_dropped() {
    let mut cases = Vec::new();
    for (name, ether_type) in [
        ("lldp", [0x88, 0xcc]),
        ("vlan", [0x81, 0x00]),
        ("q in q", [0x88, 0xa8]),
        ("mpls", [0x88, 0x47]),
        ("pppoe", [0x88, 0x64]),
        ("802.3 length", [0x00, 0x2e]),
        ("loopback", [0x90, 0x00]),
    ] {
        for end in [&A, &NODE] {
            let mut bytes = base(false).from(end).build();
            bytes[12..14].copy_from_slice(&ether_type);
            let case = Case::of_bytes(format!("{name} from {}", end.name), end, bytes);
            cases.push(case.drops(DropReason::UnknownEtherType));
        }
    }
    let mut tagged = base(false).build();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    let case = Case::of_bytes("tagged IPv4", &A, tagged);
    cases.push(case.drops(DropReason::UnknownEtherType));
    run_all(&cases);
}

/// The bytes of a good packet, changed, with a right header checksum.
fn changed(v6: bool, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = base(v6).build();
    change(&mut bytes);
    if !v6 && bytes.len() >= 34 {
        bytes[24..26].fill(0);
        let check = !sum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&check.to_be_bytes());
    }
    bytes
}

#[test]
fn lengths_and_checksums_that_lie_are_dropped() {
    let mut cases = Vec::new();
    let mut bad = |name: &str, bytes, reason| {
        cases.push(Case::of_bytes(name, &A, bytes).drops(reason));
    };
    for (v6, family) in FAMILIES {
        for len in [1, 13, 14, 15, if v6 { 53 } else { 33 }] {
            let cut = changed(v6, |bytes| bytes.truncate(len));
            bad(&format!("{family} {len} bytes"), cut, DropReason::TooShort);
        }
    }
    let v4 = |change: fn(&mut Vec<u8>)| changed(false, change);
    bad("v4 says 6", v4(|b| b[14] = 0x65), DropReason::Ipv4BadVersion);
    bad("v4 header of 16", v4(|b| b[14] = 0x44), DropReason::Ipv4BadHeaderLength);
    bad("v4 header of 0", v4(|b| b[14] = 0x40), DropReason::Ipv4BadHeaderLength);
    bad("v4 total of 19", v4(|b| b[16..18].copy_from_slice(&[0, 19])), DropReason::Ipv4BadLength);
    bad("v4 total of 0", v4(|b| b[16..18].fill(0)), DropReason::Ipv4BadLength);
    bad("v4 one byte missing", v4(|b| b.truncate(81)), DropReason::Ipv4BadLength);
    bad("v4 udp of 7", v4(|b| b[38..40].copy_from_slice(&[0, 7])), DropReason::UdpBadLength);
    bad("v4 udp of 49", v4(|b| b[38..40].copy_from_slice(&[0, 49])), DropReason::UdpBadLength);
    for at in 15..34 {
        let mut bytes = base(false).build();
        bytes[at] ^= 1;
        match at {
            // Both bits make the length (68) larger, which is found before the checksum is.
            16 | 17 => bad(&format!("v4 byte {at}"), bytes, DropReason::Ipv4BadLength),
            _ => bad(&format!("v4 byte {at}"), bytes, DropReason::Ipv4BadChecksum),
        }
    }
    let v6 = |change: fn(&mut Vec<u8>)| changed(true, change);
    bad("v6 says 4", v6(|b| b[14] = 0x45), DropReason::Ipv6BadVersion);
    bad("v6 one byte missing", v6(|b| b.truncate(101)), DropReason::Ipv6BadLength);
    bad("v6 length too large", v6(|b| b[19] = 49), DropReason::Ipv6BadLength);
    bad("v6 udp of 7", v6(|b| b[58..60].copy_from_slice(&[0, 7])), DropReason::UdpBadLength);
    bad("v6 udp of 49", v6(|b| b[58..60].copy_from_slice(&[0, 49])), DropReason::UdpBadLength);
    run_all(&cases);
}

#[test]
fn a_packet_that_ends_inside_its_l4_header_is_dropped() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let icmp = if v6 { 58 } else { 1 };
        for (protocol, least) in [(UDP, 8), (TCP, 20), (icmp, 8), (132, 12)] {
            for len in [0, least - 1] {
                let short = base(v6).protocol(protocol).payload(len);
                let name = format!("{family} protocol {protocol}, {len} bytes");
                cases.push(Case::new(name, &A, &short).drops(DropReason::L4TooShort));
                // Padding does not count.
                let padded = base(v6).protocol(protocol).payload(len).padding(40);
                let name = format!("{family} protocol {protocol}, {len} bytes, padded");
                cases.push(Case::new(name, &A, &padded).drops(DropReason::L4TooShort));
            }
        }
        let udp_within = base(v6).protocol(UDP).payload_bytes(&[0, 1, 0, 2, 0, 8, 0, 0, 9, 9]);
        cases.push(forwarded(format!("{family} udp shorter than ip"), &udp_within));
    }
    run_all(&cases);
}
