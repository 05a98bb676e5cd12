//! Forwarding between pods and the node: links, hop limits, checksums, padding.

use crate::case::{Case, run_all};
use crate::harness::packet::{Check, FIN, PSH, packet};
use crate::harness::{A, B, C, CUSTOM, FAR_V4, FAR_V6, NODE};

const FAMILIES: [(bool, &str); 2] = [(false, "v4"), (true, "v6")];

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
    for padding in [1, 18, 46] {
        let padded = packet().from(&A).to(&B).payload(0).padding(padding);
        let case = Case::new(format!("{padding} bytes of padding"), &A, &padded);
        cases.push(case.sends(&B, &padded.forwarded(&B)));
    }
    run_all(&cases);
}
