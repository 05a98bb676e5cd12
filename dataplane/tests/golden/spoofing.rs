//! Anti-spoofing: a pod sends with its own link and IP addresses or not at all. Each class of
//! forgery stands beside its neighbour that is good.

use dataplane::drop::DropReason;

use crate::FAMILIES;
use crate::case::{Case, run_all};
use crate::harness::packet::{Check, Packet, packet};
use crate::harness::{A, B, CUSTOM, End, FAR_V4, FAR_V6, NOBODY_V4, NOBODY_V6, NODE};

/// What a pod sends to another, by family.
fn base(v6: bool) -> Packet {
    packet().from(&A).to(&B).family(v6).payload(24)
}

/// Source addresses that are not pod A's, by class.
const FORGED: [(&str, [&str; 2]); 12] = [
    ("the receiver", ["10.244.1.12", "fd00:10:244:1::12"]),
    ("another pod", ["10.244.1.13", "fd00:10:244:1::13"]),
    ("the address before", ["10.244.1.10", "fd00:10:244:1::10"]),
    ("no pod", [NOBODY_V4, NOBODY_V6]),
    ("the node", ["192.0.2.1", "2001:db8::1"]),
    ("the gateway", ["169.254.1.1", "fe80::1"]),
    ("a link-local address", ["169.254.3.4", "fe80::3:4"]),
    ("somebody outside", [FAR_V4, FAR_V6]),
    ("nobody", ["0.0.0.0", "::"]),
    ("loopback", ["127.0.0.1", "::1"]),
    ("a group", ["224.0.0.251", "ff02::fb"]),
    ("everybody, or an IPv4 address in IPv6", ["255.255.255.255", "::ffff:10.244.1.11"]),
];

fn spoofed_ip(v6: bool) -> DropReason {
    if v6 { DropReason::SpoofedIpv6 } else { DropReason::SpoofedIpv4 }
}

#[test]
fn a_pod_cannot_send_in_the_name_of_another_address() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let mut forged = |what: &str, packet: Packet| {
            let case = Case::new(format!("{family} {what}"), &A, &packet);
            cases.push(case.drops(spoofed_ip(v6)));
        };
        for (what, addresses) in FORGED {
            let src = addresses[usize::from(v6)];
            forged(what, base(v6).src(src));
            // Whatever else the packet is, the source is looked at first.
            forged(&format!("{what}, marked"), base(v6).src(src).marked(0));
            forged(&format!("{what}, expired"), base(v6).src(src).ttl(1));
            let later = base(v6).src(src).protocol(17).fragment(80, false);
            forged(&format!("{what}, later fragment"), later);
            let far = base(v6).dst([FAR_V4, FAR_V6][usize::from(v6)]).src(src);
            forged(&format!("{what}, to far"), far);
            let other_mac = base(v6).src(src).dst_mac(B.mac);
            forged(&format!("{what}, to another MAC"), other_mac);
        }
        for kind in if v6 { [1, 128, 129] } else { [3, 8, 0] } {
            let src = FORGED[0].1[usize::from(v6)];
            forged(&format!("icmp {kind}"), base(v6).icmp(kind, 0).src(src));
        }
    }
    run_all(&cases);
}

#[test]
fn a_pod_sends_with_its_own_addresses() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        for from in [&A, &CUSTOM] {
            let own = base(v6).from(from).family(v6);
            let name = |what: &str| format!("{family} {} {what}", from.name);
            let good = [
                ("own", own.clone()),
                ("later fragment", own.clone().protocol(17).fragment(80, false)),
                ("icmp", own.clone().icmp(if v6 { 1 } else { 3 }, 0)),
            ];
            for (what, packet) in good {
                let case = Case::new(name(what), from, &packet);
                cases.push(case.sends(&B, &packet.clone().forwarded(&B)));
            }
            let marked = own.marked(0);
            let case = Case::new(name("marked"), from, &marked);
            cases.push(case.sends_partial(&B, &marked.clone().forwarded(&B)));
        }
    }
    run_all(&cases);
}

#[test]
fn a_pod_cannot_send_with_another_mac() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let derived = End { mac: [0x0a, 0, 0, 0, 0, 4], ..CUSTOM };
        for (what, from, mac) in [
            ("the receiver's", &A, B.mac),
            ("its gateway's", &A, A.gateway_mac),
            ("the node's", &A, NODE.mac),
            ("one bit off", &A, [0x0a, 0, 0, 0, 0, 0x11]),
            ("zero", &A, [0; 6]),
            ("everybody's", &A, [0xff; 6]),
            ("a group's", &A, [0x33, 0x33, 0, 0, 0, 1]),
            ("nearly a marker", &A, [0x03, 34, 6, 1, 0, 0]),
            ("the one it would have without its own", &CUSTOM, derived.mac),
        ] {
            let forged = base(v6).from(from).family(v6).src_mac(mac);
            let case = Case::new(format!("{family} {what}"), from, &forged);
            cases.push(case.drops(DropReason::SpoofedMac));
            let both = forged.src(FORGED[0].1[usize::from(v6)]);
            let case = Case::new(format!("{family} {what} and an address"), from, &both);
            cases.push(case.drops(DropReason::SpoofedMac));
        }
    }
    run_all(&cases);
}

#[test]
fn the_node_sends_in_the_name_of_others() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        for src in [FORGED[4].1, FORGED[7].1, FORGED[3].1] {
            let src = src[usize::from(v6)];
            for mac in [NODE.mac, [0x0e, 1, 2, 3, 4, 5]] {
                let packet = base(v6).from(&NODE).src(src).src_mac(mac);
                let case = Case::new(format!("{family} {src} {mac:02x?}"), &NODE, &packet);
                cases.push(case.sends(&B, &packet.clone().delivered(&B)));
            }
        }
    }
    run_all(&cases);
}

#[test]
fn completing_a_checksum_cannot_write_over_the_source_address() {
    // On a port that completes checksums in software, and in the node's kernel, the request of
    // the marker is carried out after the source was checked.
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let source_end = if v6 { 14 + 24 } else { 14 + 16 };
        let ip_end = if v6 { 14 + 40 } else { 14 + 20 };
        for start in 14..ip_end {
            let offset = (source_end - 2i32 - start).max(0);
            let forged = base(v6).marker(start as u8, offset as u8, 1, 0);
            let case = Case::new(format!("{family} from {start}"), &A, &forged);
            cases.push(case.drops(DropReason::BadMarker));
        }
        let good = base(v6).check(Check::Partial).marked(0);
        let case = Case::new(format!("{family} at the L4 header"), &A, &good);
        cases.push(case.sends_partial(&B, &good.clone().forwarded(&B)));
    }
    run_all(&cases);
}
