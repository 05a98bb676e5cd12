//! Addresses that are never forwarded, and frames that were not sent to us.

use dataplane::drop::DropReason;
use dataplane::port::Mac;

use crate::FAMILIES;
use crate::case::{Case, run_all};
use crate::harness::packet::{Packet, packet};
use crate::harness::{A, B, FAR_V4, FAR_V6, NODE};

const BROADCAST: Mac = [0xff; 6];

/// A packet that the node sends to pod B in the name of `src`.
fn from_node(src: &str) -> Packet {
    packet().from(&NODE).to(&B).src(src).payload(20)
}

/// A packet that pod A sends to `dst`.
fn to(dst: &str) -> Packet {
    packet().from(&A).dst(dst).payload(20)
}

#[test]
fn no_martian_source_is_forwarded_even_for_the_node() {
    let mut cases = Vec::new();
    let martians = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.255.255.255",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.254",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:10.0.0.1",
        "ff02::1",
        "ff0e::7",
    ];
    for src in martians {
        let case = Case::new(format!("from {src}"), &NODE, &from_node(src));
        cases.push(case.drops(DropReason::MartianSource));
    }
    let neighbours = [
        "1.0.0.1",
        "126.255.255.255",
        "128.0.0.1",
        "223.255.255.255",
        "10.0.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "::2",
        "::fffe:a00:1",
        "fc00::1",
        "fd00::1",
        FAR_V4,
        FAR_V6,
    ];
    for src in neighbours {
        let packet = from_node(src);
        let case = Case::new(format!("from {src}"), &NODE, &packet);
        cases.push(case.sends(&B, &packet.clone().delivered(&B)));
    }
    run_all(&cases);
}

#[test]
fn no_martian_destination_is_forwarded() {
    let mut cases = Vec::new();
    let martians = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "240.0.0.1",
        "255.255.255.254",
        "::",
        "::1",
        "::ffff:10.0.0.1",
    ];
    for dst in martians {
        let case = Case::new(format!("to {dst}"), &A, &to(dst));
        cases.push(case.drops(DropReason::MartianDestination));
    }
    for dst in ["1.0.0.1", "126.0.0.1", "128.0.0.1", "223.255.255.255", "::2", "64:ff9b::1"] {
        let packet = to(dst);
        let case = Case::new(format!("to {dst}"), &A, &packet);
        cases.push(case.sends(&NODE, &packet.clone().delivered(&NODE)));
    }
    run_all(&cases);
}

#[test]
fn groups_are_not_forwarded_whatever_the_link_address() {
    let mut cases = Vec::new();
    let groups: [(&str, Mac); 6] = [
        ("224.0.0.1", [0x01, 0, 0x5e, 0, 0, 1]),
        ("239.1.2.3", [0x01, 0, 0x5e, 1, 2, 3]),
        ("255.255.255.255", BROADCAST),
        ("ff02::1", [0x33, 0x33, 0, 0, 0, 1]),
        ("ff05::2", [0x33, 0x33, 0, 0, 0, 2]),
        ("ff0e::1234", [0x33, 0x33, 0, 0, 0x12, 0x34]),
    ];
    for (dst, mac) in groups {
        for (what, mac) in [("its group", mac), ("the gateway", A.gateway_mac)] {
            let packet = to(dst).dst_mac(mac);
            let case = Case::new(format!("{dst} at {what}"), &A, &packet);
            cases.push(case.drops(DropReason::Multicast));
            let packet = packet.from(&NODE).dst_mac(if what == "its group" {
                mac
            } else {
                NODE.gateway_mac
            });
            let case = Case::new(format!("{dst} at {what} from the node"), &NODE, &packet);
            cases.push(case.drops(DropReason::Multicast));
        }
    }
    run_all(&cases);
}

#[test]
fn link_local_addresses_stay_on_their_link() {
    let mut cases = Vec::new();
    for dst in ["169.254.1.1", "169.254.169.254", "fe80::1", "fe80::abcd"] {
        let udp = Case::new(format!("udp to {dst}"), &A, &to(dst));
        cases.push(udp.drops(DropReason::LinkLocal));
        let kind = if dst.contains(':') { 128 } else { 8 };
        let ping = Case::new(format!("ping to {dst}"), &A, &to(dst).icmp(kind, 0));
        cases.push(ping.drops(DropReason::LinkLocal));
    }
    for src in ["169.254.9.9", "fe80::9"] {
        let case = Case::new(format!("from {src}"), &NODE, &from_node(src));
        cases.push(case.drops(DropReason::LinkLocal));
    }
    for dst in ["169.253.255.255", "169.255.0.1", "fec0::1"] {
        let packet = to(dst);
        let case = Case::new(format!("to {dst}"), &A, &packet);
        cases.push(case.sends(&NODE, &packet.clone().delivered(&NODE)));
    }
    run_all(&cases);
}

#[test]
fn redirects_are_not_forwarded_and_other_icmp_is() {
    let mut cases = Vec::new();
    for (dst, end) in [("10.244.1.12", &B), ("fd00:10:244:1::12", &B), (FAR_V4, &NODE)] {
        let redirect = to(dst).icmp(if dst.contains(':') { 137 } else { 5 }, 1);
        let reason =
            if dst.contains(':') { DropReason::NdForbidden } else { DropReason::IcmpRedirect };
        cases.push(Case::new(format!("redirect to {dst}"), &A, &redirect).drops(reason));
        let other = to(dst).icmp(if dst.contains(':') { 129 } else { 4 }, 1);
        let case = Case::new(format!("other icmp to {dst}"), &A, &other);
        let sent = if end.id == NODE.id { other.delivered(end) } else { other.forwarded(end) };
        cases.push(case.sends(end, &sent));
    }
    let from_node = from_node(FAR_V4).icmp(5, 0);
    let case = Case::new("redirect from the node", &NODE, &from_node);
    cases.push(case.drops(DropReason::IcmpRedirect));
    run_all(&cases);
}

#[test]
fn only_what_was_sent_to_the_gateway_is_forwarded() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let base = packet().from(&A).to(&B).family(v6).payload(5);
        let others = [
            ("the pod itself", A.mac, DropReason::OtherHost),
            ("the receiver", B.mac, DropReason::OtherHost),
            ("the receiver's gateway", B.gateway_mac, DropReason::OtherHost),
            ("nobody", [0; 6], DropReason::OtherHost),
            ("everybody", BROADCAST, DropReason::LinkMulticast),
            ("an IPv4 group", [0x01, 0, 0x5e, 0, 0, 1], DropReason::LinkMulticast),
            ("an IPv6 group", [0x33, 0x33, 0, 0, 0, 1], DropReason::LinkMulticast),
        ];
        for (what, mac, reason) in others {
            let case = Case::new(format!("{family} to {what}"), &A, &base.clone().dst_mac(mac));
            cases.push(case.drops(reason));
        }
        // Not even told: the sender did not send it to us (RFC 1812 §4.3.2.7).
        let expired = base.clone().ttl(1).dst_mac(BROADCAST);
        let case = Case::new(format!("{family} expired to everybody"), &A, &expired);
        cases.push(case.drops(DropReason::LinkMulticast));
        let from_node = base.from(&NODE).dst_mac(B.mac);
        let case = Case::new(format!("{family} from the node to B's MAC"), &NODE, &from_node);
        cases.push(case.drops(DropReason::OtherHost));
    }
    run_all(&cases);
}
