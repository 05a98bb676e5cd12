//! ARP and neighbour discovery: answered for the gateway, refused for everything else.

use dataplane::drop::DropReason;
use dataplane::port::Mac;

use crate::case::{Case, run_all};
use crate::harness::packet::{Check, Packet, packet};
use crate::harness::{A, B, CUSTOM, End, NODE};

const BROADCAST: Mac = [0xff; 6];
const GATEWAY_V4: [u8; 4] = [169, 254, 1, 1];
/// The group of fe80::1 on the link and in IPv6.
const GATEWAY_GROUP: Mac = [0x33, 0x33, 0xff, 0, 0, 1];
const GATEWAY_GROUP_V6: &str = "ff02::1:ff00:1";

/// An ARP packet for IPv4 over Ethernet (RFC 826).
#[derive(Clone)]
struct Arp {
    link: (Mac, Mac),
    operation: u8,
    sender: (Mac, [u8; 4]),
    target: (Mac, [u8; 4]),
}

impl Arp {
    /// What a pod asks for its gateway.
    fn request(end: &End) -> Arp {
        Arp {
            link: (BROADCAST, end.mac),
            operation: 1,
            sender: (end.mac, end.v4.octets()),
            target: ([0; 6], GATEWAY_V4),
        }
    }

    /// The answer to it.
    fn reply(end: &End, asker: [u8; 4]) -> Arp {
        Arp {
            link: (end.mac, end.gateway_mac),
            operation: 2,
            sender: (end.gateway_mac, GATEWAY_V4),
            target: (end.mac, asker),
        }
    }

    fn build(&self) -> Vec<u8> {
        [
            self.link.0.as_slice(),
            &self.link.1,
            &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, self.operation],
            &self.sender.0,
            &self.sender.1,
            &self.target.0,
            &self.target.1,
        ]
        .concat()
    }
}

#[test]
fn a_pod_that_asks_for_its_gateway_is_answered() {
    let mut cases = Vec::new();
    for end in [&A, &B, &CUSTOM] {
        let request = Arp::request(end);
        let own = end.v4.octets();
        let answered = |name: &str, bytes, asker| {
            let case = Case::of_bytes(format!("{} {name}", end.name), end, bytes);
            case.answers(end, Arp::reply(end, asker).build())
        };
        cases.push(answered("broadcast", request.build(), own));
        let unicast = Arp { link: (end.gateway_mac, end.mac), ..request.clone() };
        cases.push(answered("unicast", unicast.build(), own));
        let probe = Arp { sender: (end.mac, [0; 4]), ..request.clone() };
        cases.push(answered("probe", probe.build(), [0; 4]));
        let padded = [request.build(), vec![0; 18]].concat();
        cases.push(answered("padded to 60 bytes", padded, own));
    }
    run_all(&cases);
}

#[test]
fn every_other_arp_packet_is_refused() {
    let request = Arp::request(&A);
    let (own, other) = (A.v4.octets(), B.v4.octets());
    let mut cases = Vec::new();
    let mut refused = |name: &str, arp: Arp, reason| {
        cases.push(Case::of_bytes(name, &A, arp.build()).drops(reason));
    };
    let ask = |address| Arp { target: ([0; 6], address), ..request.clone() };
    let not_gateway = DropReason::ArpNotForGateway;
    refused("for another pod", ask(other), not_gateway);
    refused("for the node", ask([192, 0, 2, 1]), not_gateway);
    refused("for the next gateway", ask([169, 254, 1, 2]), not_gateway);
    refused("for its own address", ask(own), not_gateway);
    let probe = Arp { sender: (A.mac, [0; 4]), ..ask(own) };
    refused("conflict probe (RFC 5227)", probe, not_gateway);
    refused("announcement", Arp { sender: (A.mac, own), ..ask(own) }, not_gateway);
    refused("reply", Arp { operation: 2, ..request.clone() }, not_gateway);
    refused("operation 3", Arp { operation: 3, ..request.clone() }, not_gateway);
    let to_other = Arp { link: (B.mac, A.mac), ..request.clone() };
    refused("to another MAC", to_other, not_gateway);
    let spoofed = DropReason::SpoofedArp;
    let sender = |mac, address| Arp { sender: (mac, address), ..request.clone() };
    refused("in the name of another pod", sender(A.mac, other), spoofed);
    refused("in the name of the gateway", sender(A.mac, GATEWAY_V4), spoofed);
    refused("with another sender MAC", sender(B.mac, own), spoofed);
    refused("with the gateway's MAC", sender(A.gateway_mac, own), spoofed);
    let link = Arp { link: (BROADCAST, B.mac), ..request.clone() };
    refused("with another link source", link, spoofed);
    let marker = Arp { link: (BROADCAST, [0x02, 34, 6, 1, 0, 0]), ..request.clone() };
    refused("with a marker as link source", marker, spoofed);

    let bytes = request.build();
    for at in 14..20 {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let case = Case::of_bytes(format!("byte {at} changed"), &A, changed);
        cases.push(case.drops(DropReason::ArpMalformed));
    }
    for len in [14, 28, 41] {
        let case = Case::of_bytes(format!("{len} bytes"), &A, bytes[..len].to_vec());
        cases.push(case.drops(DropReason::ArpMalformed));
    }
    let from_node = Arp::request(&NODE).build();
    cases.push(Case::of_bytes("from the node", &NODE, from_node).drops(spoofed));
    run_all(&cases);
}

/// Where a solicitation is sent from and what it asks for.
fn solicitation(end: &End, src: &str, target: &str) -> Packet {
    let link_address = [[1, 1].as_slice(), &end.mac].concat();
    solicitation_with(end, src, target, &link_address)
}

fn solicitation_with(end: &End, src: &str, target: &str, options: &[u8]) -> Packet {
    let target: std::net::Ipv6Addr = target.parse().expect("an address");
    let message = [target.octets().as_slice(), options].concat();
    let packet = packet().from(end).src(src).dst(GATEWAY_GROUP_V6).dst_mac(GATEWAY_GROUP);
    packet.ttl(255).icmp(135, 0).payload_bytes(&message)
}

/// The gateway's answer to `asker`.
fn advertisement(end: &End, asker: &str) -> Vec<u8> {
    let gateway: std::net::Ipv6Addr = "fe80::1".parse().expect("an address");
    let message = [gateway.octets().as_slice(), &[2, 1], &end.gateway_mac].concat();
    let packet = packet().src("fe80::1").dst(asker).ttl(255).icmp(136, 0);
    packet.icmp_rest(0xe000_0000).payload_bytes(&message).delivered(end).build()
}

#[test]
fn a_pod_that_solicits_its_gateway_is_answered() {
    let mut cases = Vec::new();
    for end in [&A, &B, &CUSTOM] {
        let own = end.v6.to_string();
        for src in ["fe80::aaaa", &own] {
            let mut answered = |name: &str, packet: &Packet| {
                let case = Case::new(format!("{} {src} {name}", end.name), end, packet);
                cases.push(case.answers(end, advertisement(end, src)));
            };
            let asked = solicitation(end, src, "fe80::1");
            answered("to the group", &asked);
            answered("marked", &asked.clone().marker(0, 0, 0, 0));
            answered("padded", &asked.clone().padding(3));
            answered("without option", &solicitation_with(end, src, "fe80::1", &[]));
            let unknown = [14, 1, 0, 0, 0, 0, 0, 0];
            answered("unknown option", &solicitation_with(end, src, "fe80::1", &unknown));
            answered("reachability probe", &asked.dst("fe80::1").dst_mac(end.gateway_mac));
        }
    }
    run_all(&cases);
}

#[test]
fn every_other_solicitation_is_refused() {
    let mut cases = Vec::new();
    let good = solicitation(&A, "fe80::aaaa", "fe80::1");
    let mut refused = |name: &str, packet: Packet, reason| {
        cases.push(Case::new(name, &A, &packet).drops(reason));
    };
    let ask = |src, target| solicitation(&A, src, target);
    let not_gateway = DropReason::NdNotForGateway;
    refused("for another pod", ask("fe80::aaaa", "fd00:10:244:1::12"), not_gateway);
    refused("for another link-local address", ask("fe80::aaaa", "fe80::2"), not_gateway);
    refused("for its own address", ask("fe80::aaaa", "fd00:10:244:1::11"), not_gateway);
    let probe = |target| solicitation_with(&A, "::", target, &[]);
    refused("duplicate probe of its link-local", probe("fe80::aaaa"), not_gateway);
    refused("duplicate probe of its address", probe("fd00:10:244:1::11"), not_gateway);
    refused("duplicate probe of the gateway", probe("fe80::1"), not_gateway);
    refused("to another MAC", good.clone().dst_mac(B.mac), not_gateway);
    refused("to another group", good.clone().dst("ff02::1"), not_gateway);

    let spoofed = DropReason::SpoofedNd;
    refused("in the name of the gateway", ask("fe80::1", "fe80::1"), spoofed);
    let lie = [[1, 1].as_slice(), &B.mac].concat();
    let lying = solicitation_with(&A, "fe80::aaaa", "fe80::1", &lie);
    refused("with another's link address", lying, spoofed);
    let other_pod = ask("fd00:10:244:1::12", "fe80::1");
    refused("in the name of another pod", other_pod, DropReason::SpoofedIpv6);
    refused("with another MAC", good.clone().src_mac(B.mac), DropReason::SpoofedMac);

    let malformed = DropReason::NdMalformed;
    refused("hop limit 254", good.clone().ttl(254), malformed);
    refused("hop limit 1", good.clone().ttl(1), malformed);
    refused("code 1", good.clone().icmp(135, 1), malformed);
    refused("wrong checksum", good.clone().check(Check::Value(1)), malformed);
    let option = |bytes: &[u8]| solicitation_with(&A, "fe80::aaaa", "fe80::1", bytes);
    refused("option of length 0", option(&[1, 0, 0, 0, 0, 0, 0, 0]), malformed);
    refused("option cut off", option(&[1, 2, 0, 0, 0, 0, 0, 0]), malformed);
    refused("one byte of option", option(&[1]), malformed);
    refused("target cut off", good.clone().payload(15), malformed);
    let hop_by_hop = good.extension(0, &[0, 0, 1, 4, 0, 0, 0, 0]);
    refused("behind hop-by-hop options", hop_by_hop, malformed);
    run_all(&cases);
}

#[test]
fn what_only_routers_send_and_what_only_links_need_is_refused() {
    let mut cases = Vec::new();
    let types = [
        (130, "ff02::1", "listener query"),
        (131, "ff02::16", "listener report"),
        (132, "ff02::2", "listener done"),
        (133, "ff02::2", "router solicitation"),
        (134, "ff02::1", "router advertisement"),
        (136, "ff02::1", "unsolicited advertisement"),
        (137, "ff02::1", "redirect"),
        (143, "ff02::16", "version 2 listener report"),
    ];
    for (kind, group, name) in types {
        for src in ["fe80::aaaa", "::", "fd00:10:244:1::11"] {
            for dst in [group, "fe80::1", "fd00:10:244:1::12"] {
                let packet = packet().from(&A).src(src).dst(dst).ttl(255).icmp(kind, 0);
                let case = Case::new(format!("{name} {src} to {dst}"), &A, &packet.payload(40));
                cases.push(case.drops(DropReason::NdForbidden));
            }
        }
        let from_node = packet().from(&NODE).src("fe80::9").dst(group).ttl(255).icmp(kind, 0);
        let case = Case::new(format!("{name} from the node"), &NODE, &from_node.payload(40));
        cases.push(case.drops(DropReason::NdForbidden));
    }
    let spoofed = packet().from(&A).src("fd00:10:244:1::12").dst("ff02::1").icmp(134, 0);
    let case = Case::new("router advertisement of another pod", &A, &spoofed.payload(40));
    cases.push(case.drops(DropReason::SpoofedIpv6));
    run_all(&cases);
}
