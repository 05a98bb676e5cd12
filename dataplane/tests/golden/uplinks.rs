//! Packets to and from other nodes.

use dataplane::drop::DropReason;

use crate::FAMILIES;
use crate::case::{Case, run_all};
use crate::harness::packet::{Check, Packet, packet};
use crate::harness::{
    A, B, C, CARVED_OUT, ELSEWHERE, NARROW, NARROW_MTU, NODE, Node, Setup, UNRESOLVED, UPLINK,
    VETH_UPLINK,
};

/// "Fragmentation needed" and "packet too big" with this MTU, by family.
fn too_big(v6: bool, mtu: u32) -> (u8, u8, u32) {
    if v6 { (2, 0, mtu) } else { (3, 4, mtu) }
}

/// A UDP packet whose IP packet has `ip_len` bytes.
fn udp_of(v6: bool, ip_len: usize) -> Packet {
    packet().family(v6).payload(ip_len - 8 - if v6 { 40 } else { 20 })
}

#[test]
fn a_pod_reaches_the_pods_of_other_nodes_and_they_it_a_hop_farther() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let out = packet().family(v6).from(&A).to(&UPLINK).payload(100);
        let case = Case::new(format!("{family} out"), &A, &out);
        cases.push(case.sends(&UPLINK, &out.forwarded(&UPLINK)));
        for uplink in [&UPLINK, &VETH_UPLINK] {
            for to in [&A, &B] {
                let back = packet().family(v6).from(uplink).to(to).payload(100);
                let case = Case::new(
                    format!("{family} from {} to {}", uplink.name, to.name),
                    uplink,
                    &back,
                );
                cases.push(case.sends(to, &back.forwarded(to)));
            }
        }
    }
    run_all(&cases);
}

#[test]
fn what_the_mirror_does_not_lead_out_of_an_uplink_is_the_kernels() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        for addresses in [UNRESOLVED, ELSEWHERE, CARVED_OUT] {
            let to = addresses[usize::from(v6)];
            let out = packet().family(v6).from(&A).dst(to).payload(100);
            let case = Case::new(format!("{family} to {to}"), &A, &out);
            cases.push(case.sends(&NODE, &out.delivered(&NODE)));
        }
    }
    run_all(&cases);
}

#[test]
fn we_carry_nothing_from_one_node_to_another() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        for (to, name) in [(UPLINK.v4, UPLINK.v6), (NODE.v4, NODE.v6)].iter().zip(["pod", "node"]) {
            let to = if v6 { to.1.to_string() } else { to.0.to_string() };
            let through = packet().family(v6).from(&UPLINK).dst(&to);
            let case = Case::new(format!("{family} through to a {name}"), &UPLINK, &through);
            cases.push(case.drops(DropReason::NotOurs));
            let through = packet().family(v6).from(&NODE).to(&UPLINK);
            let case = Case::new(format!("{family} of the node"), &NODE, &through);
            cases.push(case.drops(DropReason::NotOurs));
        }
    }
    run_all(&cases);
}

#[test]
fn nobody_outside_has_the_address_of_a_pod_of_ours() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let of_a = if v6 { A.v6.to_string() } else { A.v4.to_string() };
        let nobodys = ["10.244.1.200", "fd00:10:244:1::200"][usize::from(v6)];
        for src in [of_a.as_str(), nobodys] {
            let forged = packet().family(v6).from(&UPLINK).to(&B).src(src);
            let case = Case::new(format!("{family} from {src}"), &UPLINK, &forged);
            cases.push(case.drops(DropReason::SpoofedPod));
        }
    }
    run_all(&cases);
}

#[test]
fn other_nodes_are_told_what_stands_against_their_packets() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let late = packet().family(v6).from(&UPLINK).to(&A).ttl(1);
        let case = Case::new(format!("{family} late"), &UPLINK, &late);
        let exceeded = if v6 { (3, 0, 0) } else { (11, 0, 0) };
        cases.push(case.drops(DropReason::TtlExpired).tells(&UPLINK, exceeded));

        let nobody = ["10.244.1.200", "fd00:10:244:1::200"][usize::from(v6)];
        let lost = packet().family(v6).from(&UPLINK).dst(nobody);
        let case = Case::new(format!("{family} to nobody"), &UPLINK, &lost);
        let unreachable = if v6 { (1, 3, 0) } else { (3, 1, 0) };
        cases.push(case.drops(DropReason::NoPod).tells(&UPLINK, unreachable));
    }
    run_all(&cases);
}

#[test]
fn a_wire_takes_its_mtu_and_a_route_may_take_less() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let fits = udp_of(v6, 1500).from(&A).to(&UPLINK);
        let case = Case::new(format!("{family} 1500"), &A, &fits);
        cases.push(case.sends(&UPLINK, &fits.forwarded(&UPLINK)));
        let long = udp_of(v6, 1501).from(&A).to(&UPLINK);
        let case = Case::new(format!("{family} 1501"), &A, &long);
        cases.push(case.drops(DropReason::MtuExceeded).tells(&A, too_big(v6, 1500)));

        let narrow = NARROW[usize::from(v6)];
        let fits = udp_of(v6, NARROW_MTU as usize).from(&A).dst(narrow);
        let case = Case::new(format!("{family} narrow, fits"), &A, &fits);
        cases.push(case.sends(&UPLINK, &fits.forwarded(&UPLINK)));
        let long = udp_of(v6, NARROW_MTU as usize + 1).from(&A).dst(narrow);
        let case = Case::new(format!("{family} narrow, too long"), &A, &long);
        cases.push(case.drops(DropReason::MtuExceeded).tells(&A, too_big(v6, NARROW_MTU)));
    }
    run_all(&cases);
}

#[test]
fn a_stream_leaves_by_a_wire_in_the_segments_its_sender_meant() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let most = if v6 { 1440 } else { 1460 };
        // The last fits the wire as it is, but not what its receiver asked for.
        for (size, payload) in [(most, 30_000), (988, 9_881), (536, 5_360), (536, 1_072)] {
            let stream = packet().family(v6).from(&A).to(&UPLINK).tcp(1, 2).payload(payload);
            let marked = stream.clone().check(Check::Partial).marked(size);
            let mut case = Case::new(format!("{family} {payload} by {size}"), &A, &marked);
            for segment in stream.segments(usize::from(size)) {
                case = case.sends(&UPLINK, &segment.forwarded(&UPLINK));
            }
            cases.push(case);
        }
    }
    run_all(&cases);
}

#[test]
fn without_dont_fragment_a_long_packet_leaves_by_a_wire_in_fragments() {
    for payload in [1473, 2960, 8000] {
        let long = packet().ipv4().from(&A).to(&UPLINK).may_fragment().payload(payload);
        let mut case = Case::new(format!("{payload} in fragments"), &A, &long);
        for fragment in long.forwarded(&UPLINK).fragments(1480) {
            case = case.sends(&UPLINK, &fragment);
        }
        case.run();
    }
}

#[test]
fn what_comes_off_a_wire_is_complete_and_what_comes_by_a_veth_may_not_be() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let partial = packet().family(v6).tcp(1, 2).payload(100).check(Check::Partial);
        // The sum of the pseudo-header is a wrong checksum: the pod finds that out.
        let wire = partial.clone().from(&UPLINK).to(&A);
        let case = Case::new(format!("{family} wire"), &UPLINK, &wire);
        cases.push(case.sends(&A, &wire.forwarded(&A)));
        let veth = partial.from(&VETH_UPLINK).to(&A);
        let case = Case::new(format!("{family} veth"), &VETH_UPLINK, &veth);
        cases.push(case.sends_partial(&A, &veth.forwarded(&A)));
    }
    run_all(&cases);
}

#[test]
fn a_mac_of_another_node_that_looks_like_a_marker_is_none() {
    let mut cases = Vec::new();
    for uplink in [&UPLINK, &VETH_UPLINK] {
        // As container networks hand them out.
        let from = packet().from(uplink).to(&A).payload(100).src_mac([2, 0x42, 0xac, 0x11, 0, 2]);
        let case = Case::new(format!("02:42 by {}", uplink.name), uplink, &from);
        cases.push(case.sends(&A, &from.forwarded(&A)));
    }
    run_all(&cases);
}

#[test]
fn a_wire_cannot_use_up_what_pods_are_told() {
    for workers in [1, 2] {
        let mut node = Node::new(Setup { workers, ..Setup::default() });
        // More than all the errors of a second, from as many senders.
        for number in 0..2_000_u32 {
            let src = std::net::Ipv4Addr::from(0x0af4_0900 + number).to_string();
            let long = packet().from(&UPLINK).src(&src).to(&C).payload(1400);
            node.inject(UPLINK.id, long.build());
        }
        node.run();
        let told = node.sent(UPLINK.id).len();
        assert!((1..200).contains(&told), "senders on the wire are told, and not all: {told}");
        node.inject(A.id, packet().from(&A).to(&C).payload(1400).build());
        node.run();
        assert_eq!(node.sent(A.id).len(), 1, "the pod is told");
    }
}
