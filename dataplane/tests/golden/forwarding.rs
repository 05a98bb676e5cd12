//! Forwarding between pods and the node: links, hop limits, checksums, padding.

use dataplane::drop::DropReason;

use crate::FAMILIES;
use crate::case::{Case, run_all};
use crate::harness::packet::{Check, FIN, PSH, packet};
use crate::harness::{A, B, C, CUSTOM, FAR_V4, FAR_V6, NOBODY_V4, NOBODY_V6, NODE, PLAIN, Setup};

/// ICMP "time exceeded in transit", by family.
const TIME_EXCEEDED: [(u8, u8, u32); 2] = [(11, 0, 0), (3, 0, 0)];
/// ICMP "host unreachable" and ICMPv6 "address unreachable".
const HOST_UNREACHABLE: [(u8, u8, u32); 2] = [(3, 1, 0), (1, 3, 0)];
/// ICMP "net unreachable" and ICMPv6 "no route to destination".

#[test]
fn pod_to_pod_is_one_hop_of_a_router() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        let base = packet().from(&A).to(&B).family(v6).payload(64);
        let mut forwarded = |name: &str, packet| {
            let case = Case::new(format!("{family} {name}"), &A, &packet);
            cases.push(case.sends(&B, &packet.forwarded(&B)));
        };
        forwarded("udp", base.clone());
        forwarded("udp without payload", base.clone().payload(0));
        forwarded("udp of odd length", base.clone().payload(65));
        forwarded("udp without checksum", base.clone().check(Check::Value(0)));
        forwarded("udp with a wrong checksum", base.clone().check(Check::Value(0xbad)));
        forwarded("tcp", base.clone().tcp(40000, 443));
        forwarded("tcp with flags", base.clone().tcp(1, 2).flags(FIN | PSH));
        forwarded("icmp echo", base.clone().icmp(if v6 { 128 } else { 8 }, 0));
        forwarded("icmp error", base.clone().icmp(if v6 { 1 } else { 3 }, 3));
        forwarded("unknown protocol", base.clone().protocol(253));
        forwarded("sctp", base.clone().protocol(132));
        forwarded("no bytes above ip", base.clone().protocol(253).payload(0));
        forwarded("dscp and ecn", base.clone().service(0xb9));
        forwarded("ttl 255", base.clone().ttl(255));
        forwarded("ttl 2", base.clone().ttl(2));
        forwarded("largest", base.clone().payload(if v6 { 1452 } else { 1472 }));
    }
    run_all(&cases);
}

#[test]
fn ethernet_padding_is_trimmed() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        for padding in [1, 2, 18, 46, 4000] {
            let padded = packet().from(&A).to(&B).family(v6).payload(1).padding(padding);
            let case = Case::new(format!("{family} {padding} bytes of padding"), &A, &padded);
            let sent = padded.forwarded(&B);
            cases.push(case.sends(&B, &sent));
        }
    }
    run_all(&cases);
}

#[test]
fn pods_reach_themselves_and_each_other_whatever_their_mac() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        for (from, to) in [(&A, &A), (&A, &CUSTOM), (&CUSTOM, &A), (&C, &B), (&B, &PLAIN)] {
            let packet = packet().from(from).to(to).family(v6).payload(9);
            let name = format!("{family} {} to {}", from.name, to.name);
            cases.push(Case::new(name, from, &packet).sends(to, &packet.clone().forwarded(to)));
        }
    }
    run_all(&cases);
}

#[test]
fn the_node_and_we_are_one_router() {
    let mut cases = Vec::new();
    for ((v6, family), far) in FAMILIES.into_iter().zip([FAR_V4, FAR_V6]) {
        for ttl in [0, 1, 2, 255] {
            let base = packet().family(v6).payload(32).ttl(ttl);
            let name = |what: &str| format!("{family} ttl {ttl} {what}");
            let out = base.clone().from(&A).dst(far);
            cases.push(
                Case::new(name("pod to far"), &A, &out).sends(&NODE, &out.clone().delivered(&NODE)),
            );
            let own = base.clone().from(&B).to(&NODE).family(v6);
            cases.push(
                Case::new(name("pod to node"), &B, &own)
                    .sends(&NODE, &own.clone().delivered(&NODE)),
            );
            let back = base.clone().from(&NODE).to(&B).src(far);
            cases.push(
                Case::new(name("far to pod"), &NODE, &back).sends(&B, &back.clone().delivered(&B)),
            );
            let from = base.clone().from(&NODE).to(&A).family(v6);
            cases.push(
                Case::new(name("node to pod"), &NODE, &from).sends(&A, &from.clone().delivered(&A)),
            );
        }
    }
    run_all(&cases);
}

#[test]
fn what_the_node_sends_to_others_than_pods_is_not_ours() {
    let mut cases = Vec::new();
    for (dst, src) in [(FAR_V4, FAR_V4), (FAR_V6, FAR_V6), ("192.0.2.1", "192.0.2.1")] {
        let packet = packet().from(&NODE).src(src).dst(dst).payload(4);
        let case = Case::new(format!("node to {dst}"), &NODE, &packet);
        cases.push(case.drops(DropReason::NotOurs));
    }
    run_all(&cases);
}

#[test]
fn a_hop_limit_that_would_become_zero_is_dropped_and_told() {
    let mut cases = Vec::new();
    for (v6, family) in FAMILIES {
        for ttl in [0, 1] {
            for payload in [0, 64, 900] {
                let packet = packet().from(&A).to(&B).family(v6).ttl(ttl).payload(payload);
                let name = format!("{family} ttl {ttl}, {payload} bytes");
                let case = Case::new(name, &A, &packet).drops(DropReason::TtlExpired);
                cases.push(case.tells(&A, TIME_EXCEEDED[usize::from(v6)]));
            }
        }
    }
    run_all(&cases);
}

#[test]
fn an_address_of_the_pod_network_without_a_pod_is_unreachable() {
    let mut cases = Vec::new();
    for ((v6, family), nobody) in FAMILIES.into_iter().zip([NOBODY_V4, NOBODY_V6]) {
        let told = HOST_UNREACHABLE[usize::from(v6)];
        let echo = if v6 { 128 } else { 8 };
        let error = if v6 { 1 } else { 3 };
        let base = packet().from(&A).dst(nobody).payload(300);
        let case = |name: &str, packet| {
            Case::new(format!("{family} {name}"), &A, &packet).drops(DropReason::NoPod)
        };
        cases.push(case("udp", base.clone()).tells(&A, told));
        cases.push(case("tcp", base.clone().tcp(5, 6)).tells(&A, told));
        cases.push(case("echo", base.clone().icmp(echo, 0)).tells(&A, told));
        cases.push(case("first fragment", base.clone().fragment(0, true)).tells(&A, told));
        cases.push(case("marked", base.clone().marked(0)).tells(&A, told));
        // RFC 1812 §4.3.2.7, RFC 4443 §2.4 (e): never about an error or a later fragment.
        cases.push(case("icmp error", base.clone().icmp(error, 0)));
        cases.push(case("later fragment", base.clone().protocol(17).fragment(8, false)));
        let from_node = base.clone().from(&NODE);
        let case = Case::new(format!("{family} from the node"), &NODE, &from_node);
        cases.push(case.drops(DropReason::NoPod).tells(&NODE, told));
    }
    run_all(&cases);
}

#[test]
fn without_a_node_port_pods_reach_each_other_and_nothing_beyond() {
    for ((v6, family), far) in FAMILIES.into_iter().zip([FAR_V4, FAR_V6]) {
        let setup = Setup { node_port: false, ..Setup::default() };
        let out = packet().from(&A).dst(far).payload(3);
        let case = Case::new(format!("{family} beyond"), &A, &out);
        case.drops(DropReason::PortDown).run_on(setup);
        let local = packet().from(&A).to(&B).family(v6).payload(3);
        let case = Case::new(format!("{family} pod to pod"), &A, &local);
        case.sends(&B, &local.forwarded(&B)).run_on(setup);
    }
}
