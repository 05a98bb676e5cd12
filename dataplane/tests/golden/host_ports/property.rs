//! What a client sends to a host port and the echo that comes back are its own addresses and ports,
//! with right checksums: whoever asks, from wherever, and however many others do.

use std::collections::HashMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::Protocol;
use crate::harness::packet::{ACK, DATA, Packet, crc32c, packet, sum};
use crate::harness::{
    A, B, BARE, C, CUSTOM, End, HIDDEN, Mapped, NODE, Node, Setup, TO_B, TO_C, TO_PLAIN, UPLINK,
};

/// A packet of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ask {
    client: usize,
    port: u16,
    host_port: usize,
    v6: bool,
    protocol: usize,
}

const CLIENTS: [&End; 5] = [&UPLINK, &A, &B, &C, &CUSTOM];
const MAPPED: [Mapped; 5] = [TO_B, HIDDEN, BARE, TO_PLAIN, TO_C];

fn ask() -> impl Strategy<Value = Ask> {
    let parts = (0..CLIENTS.len(), 1..6u16, 0..MAPPED.len(), any::<bool>(), 0..3usize);
    parts.prop_map(|(client, port, host_port, v6, protocol)| Ask {
        client,
        port: 1_000 + port,
        host_port,
        v6,
        protocol,
    })
}

impl Ask {
    fn packet(&self, payload: usize) -> Packet {
        let client = CLIENTS[self.client];
        let asked = packet().from(client).to(&NODE).family(self.v6).payload(payload);
        let (src, dst) = (self.port, MAPPED[self.host_port].host_port);
        match super::PROTOCOLS[self.protocol] {
            Protocol::Tcp => asked.tcp(src, dst).flags(ACK),
            Protocol::Udp => asked.udp(src, dst),
            Protocol::Sctp => asked.sctp(src, dst, DATA),
        }
    }

    /// A pod that asks itself without masquerade answers itself, and nobody sees that.
    fn is_answered(&self) -> bool {
        let Mapped { pod, host_port, .. } = MAPPED[self.host_port];
        !(host_port == BARE.host_port && CLIENTS[self.client].id == pod.id)
    }
}

/// What a reader sees of a packet.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    src: (IpAddr, u16),
    dst: (IpAddr, u16),
}

/// Reads a packet without extension headers, and checks every checksum by a naive sum.
fn read(bytes: &[u8], partial: bool) -> Seen {
    let v6 = bytes[12] == 0x86;
    let ip = &bytes[14..];
    let address = |at: usize| -> IpAddr {
        match v6 {
            true => IpAddr::from(*ip[at..].first_chunk::<16>().unwrap()),
            false => IpAddr::from(*ip[at..].first_chunk::<4>().unwrap()),
        }
    };
    let (src, dst, header, protocol) = match v6 {
        true => (address(8), address(24), 40, ip[6]),
        false => (address(12), address(16), 20, ip[9]),
    };
    if !v6 {
        assert_eq!(sum(&ip[..20]), 0xffff, "of the IPv4 header");
    }
    let l4 = &ip[header..];
    match protocol {
        132 => {
            let mut zeroed = l4.to_vec();
            zeroed[8..12].fill(0);
            assert_eq!(crc32c(&zeroed).to_le_bytes(), l4[8..12], "of SCTP");
        }
        _ => {
            let mut pseudo = ip[if v6 { 8..40 } else { 12..20 }].to_vec();
            pseudo.extend((l4.len() as u32).to_be_bytes());
            pseudo.extend([0, protocol]);
            let at = if protocol == 6 { 16 } else { 6 };
            if partial {
                let field = u16::from_be_bytes([l4[at], l4[at + 1]]);
                assert_eq!(field, sum(&pseudo), "of the pseudo-header");
            } else {
                assert_eq!(sum(&[&pseudo, l4].concat()), 0xffff, "of protocol {protocol}");
            }
        }
    }
    let port = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
    Seen { src: (src, port(0)), dst: (dst, port(2)) }
}

/// What the pod sends back: the same packet with its ends exchanged. Sums do not change by that.
fn echo(pod: &End, got: &[u8]) -> Vec<u8> {
    let mut bytes = got.to_vec();
    bytes[..6].copy_from_slice(&pod.gateway_mac);
    bytes[6..12].copy_from_slice(&pod.mac);
    let (addresses, half, l4) = if bytes[12] == 0x86 { (22, 16, 54) } else { (26, 4, 34) };
    let swap = |bytes: &mut Vec<u8>, at: usize, half: usize| {
        let (a, b) = bytes[at..at + 2 * half].split_at_mut(half);
        a.swap_with_slice(b);
    };
    swap(&mut bytes, addresses, half);
    swap(&mut bytes, l4, 2);
    if bytes[12] == 0x86 || bytes[23] != 132 {
        return sealed(bytes);
    }
    sealed(bytes)
}

/// With the CRC of SCTP made anew: that one depends on where the ports are.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let (protocol, l4) = if bytes[12] == 0x86 { (bytes[20], 54) } else { (bytes[23], 34) };
    if protocol == 132 {
        bytes[l4 + 8..l4 + 12].fill(0);
        let crc = crc32c(&bytes[l4..]).to_le_bytes();
        bytes[l4 + 8..l4 + 12].copy_from_slice(&crc);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_client_is_answered_from_the_address_and_port_that_it_asked(
        asks in prop::collection::vec((ask(), 0..200usize, any::<bool>()), 1..40),
        workers in 1..=2usize,
    ) {
        let (flows, flows_per_pod) = (512, 256);
        let setup =
            Setup { workers, host_ports: true, flows, flows_per_pod, ..Setup::default() };
        let mut node = Node::new(setup);
        // What the pods see: no two clients look alike to one of them.
        let mut seen_by_pods: HashMap<(u16, Vec<u8>), Ask> = HashMap::new();
        for (ask, payload, open) in asks {
            let client = CLIENTS[ask.client];
            let pod = MAPPED[ask.host_port].pod;
            let mut asked = ask.packet(payload);
            let sctp = super::PROTOCOLS[ask.protocol] == Protocol::Sctp;
            if open && client.is_pod() && !sctp {
                asked = asked.marked(0);
            }
            node.inject(client.id, asked.build());
            node.run();
            let got = node.sent(pod.id);
            let drops = node.all_drops();
            if got.is_empty() {
                // With five clients on one port there may be no other port to give.
                prop_assert!(drops.iter().all(|(_, _, reason, _)| reason.name() == "nat_no_port"));
                continue;
            }
            prop_assert_eq!(got.len(), 1);
            let partial = got[0].partial.is_some();
            let seen = read(&got[0].bytes, partial);
            prop_assert_eq!(seen.dst, (address(pod, ask.v6), MAPPED[ask.host_port].port));
            let l4 = if ask.v6 { 54 } else { 34 };
            let protocol = got[0].bytes[if ask.v6 { 20 } else { 23 }];
            let addresses = &got[0].bytes[if ask.v6 { 22..54 } else { 26..34 }];
            let tuple = [addresses, &[protocol], &got[0].bytes[l4..l4 + 4]].concat();
            let other = *seen_by_pods.entry((pod.id.0, tuple)).or_insert(ask);
            prop_assert_eq!(other, ask);

            let mut answer = echo(pod, &got[0].bytes);
            if partial {
                let offset = if protocol == 6 { 16 } else { 6 };
                answer[6..12].copy_from_slice(&[0x02, l4 as u8, offset, 1, 0, 0]);
            }
            if !ask.is_answered() {
                continue;
            }
            node.inject(pod.id, answer);
            node.run();
            let ends = crate::harness::ENDS.into_iter().filter(|end| end.mac == client.mac);
            let back: Vec<_> = ends.flat_map(|end| node.sent(end.id)).collect();
            prop_assert_eq!(back.len(), 1, "{:?}", node.all_drops());
            let seen = read(&back[0].bytes, back[0].partial.is_some());
            let asked_at = (address(&NODE, ask.v6), MAPPED[ask.host_port].host_port);
            prop_assert_eq!(seen, Seen { src: asked_at, dst: (address(client, ask.v6), ask.port) });
        }
    }
}

fn address(end: &End, v6: bool) -> IpAddr {
    if v6 { end.v6.into() } else { end.v4.into() }
}
