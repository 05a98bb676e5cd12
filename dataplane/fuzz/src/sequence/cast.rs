//! Who takes part, and what is sent.

use std::net::IpAddr;

use dataplane::conntrack::{FlowKey, Transport};

use crate::harness::packet::{self, ABORT, ACK, DATA, FIN, INIT, INIT_ACK, Packet, RST, SYN};
use crate::harness::{A, B, C, CUSTOM, ENDS, End, NODE, PLAIN, UPLINK, VETH_UPLINK};

/// Bytes of payload: several fragments, and all that a chunk of SCTP needs.
pub(super) const PAYLOAD: usize = 72;
pub(super) const FRAGMENT: usize = 24;

/// Somebody who asks.
#[derive(Debug)]
pub(super) struct Client {
    /// Where his packets come in.
    pub(super) end: &'static End,
    /// His addresses.
    pub(super) addresses: [&'static str; 2],
    /// Where answers to him go, but those to clients of the node's kernel.
    pub(super) back: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To this pod.
    Pod(&'static str),
    /// By the uplink, by any of its queues.
    Uplink,
    /// By the node port.
    Node,
}

pub(super) const REMOTE: [&str; 2] = ["10.244.2.9", "fd00:10:244:2::9"];
/// A host on the node's network, which no route of `direct` leads to.
pub(super) const NEIGHBOUR: [&str; 2] = ["192.0.2.77", "2001:db8::77"];
/// A pod of another node that the node's kernel translates for, because its packets came in pieces
/// or by another interface.
pub(super) const BY_KERNEL: [&str; 2] = ["10.244.2.8", "fd00:10:244:2::8"];
/// A router on the way.
pub(super) const ROUTER: [&str; 2] = ["192.0.2.254", "2001:db8::254"];

const fn pod(end: &'static End, addresses: [&'static str; 2]) -> Client {
    Client { end, addresses, back: Way::Pod(end.name) }
}

pub(super) static CLIENTS: [Client; 10] = [
    pod(&A, ["10.244.1.11", "fd00:10:244:1::11"]),
    pod(&B, ["10.244.1.12", "fd00:10:244:1::12"]),
    pod(&C, ["10.244.1.13", "fd00:10:244:1::13"]),
    pod(&CUSTOM, ["10.244.1.14", "fd00:10:244:1::14"]),
    pod(&PLAIN, ["10.244.1.15", "fd00:10:244:1::15"]),
    Client { end: &UPLINK, addresses: REMOTE, back: Way::Uplink },
    Client { end: &VETH_UPLINK, addresses: REMOTE, back: Way::Uplink },
    Client { end: &UPLINK, addresses: NEIGHBOUR, back: Way::Node },
    Client { end: &NODE, addresses: BY_KERNEL, back: Way::Node },
    Client { end: &NODE, addresses: ["192.0.2.1", "2001:db8::1"], back: Way::Node },
];

/// What a packet says to who follows connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// SYN, INIT.
    Ask,
    /// SYN and ACK, INIT ACK.
    Answer,
    /// ACK, DATA.
    More,
    /// FIN and ACK; SCTP has more data.
    End,
    /// RST, ABORT.
    Abort,
}

pub(super) const ALL_SAYS: [Says; 6] =
    [Says::Ask, Says::Ask, Says::More, Says::Answer, Says::End, Says::Abort];

pub(super) fn end_of(name: &str) -> &'static End {
    ENDS.into_iter().find(|end| end.name == name).expect("one of the ends")
}

pub(super) fn family(is_v6: bool) -> usize {
    usize::from(is_v6)
}

pub(super) fn address(end: &End, is_v6: bool) -> IpAddr {
    if is_v6 { end.v6.into() } else { end.v4.into() }
}

pub(super) fn parsed(text: &str) -> IpAddr {
    text.parse().expect("the tables hold addresses")
}

/// A packet of this key, by whom it is sent.
pub(super) fn packet_of(key: &FlowKey, end: &End, says: Says) -> Packet {
    let (src, dst) = (key.src.port, key.dst.port);
    let packet = packet::packet().from(end).payload(PAYLOAD);
    let packet = match (key.transport, says) {
        (Transport::Udp, _) => packet.udp(src, dst),
        (Transport::Tcp, says) => packet.tcp(src, dst).flags(match says {
            Says::Ask => SYN,
            Says::Answer => SYN | ACK,
            Says::More => ACK,
            Says::End => FIN | ACK,
            Says::Abort => RST,
        }),
        (_, says) => packet.sctp(
            src,
            dst,
            match says {
                Says::Ask => INIT,
                Says::Answer => INIT_ACK,
                Says::More | Says::End => DATA,
                Says::Abort => ABORT,
            },
        ),
    };
    with_addresses(packet, key.src.address, key.dst.address)
}

pub(super) fn with_addresses(packet: Packet, src: IpAddr, dst: IpAddr) -> Packet {
    packet.src(&src.to_string()).dst(&dst.to_string())
}

/// The packet with another key.
pub(super) fn translated(packet: &Packet, key: &FlowKey) -> Packet {
    let packet = packet.clone().ports(key.src.port, key.dst.port);
    with_addresses(packet, key.src.address, key.dst.address)
}

/// Destination unreachable: by `src`, about a packet.
pub(super) fn error_of(end: &End, src: IpAddr, dst: IpAddr, about: &Packet) -> Packet {
    let (kind, code) = if src.is_ipv6() { (1, 4) } else { (3, 3) };
    let quoted = about.quoted();
    let error = packet::packet().from(end).icmp(kind, code).payload_bytes(&quoted);
    with_addresses(error, src, dst)
}
