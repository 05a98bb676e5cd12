//! Which packets to the node itself `uplink` hands to a worker, by running it in the kernel on
//! made-up frames. What it takes, the worker's own parser has to find the same host port in.

use dataplane::checksum::Sum;
use dataplane::conntrack::{Endpoint, FlowKey, Transport};
use dataplane::host_ports::{HostAddress, HostPort};
use dataplane::nat::quote;
use dataplane::parse::{Parsed, headers};

use crate::copy::PASS;
use crate::frames::{ICMPV6, UDP, extension, fragment};
use crate::steering::*;

pub const TCP: u8 = 6;
pub const SCTP: u8 = 132;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ESP: u8 = 50;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Another address of the node.
const SECOND: &str = "192.0.2.2";
const SECOND6: &str = "2001:db8::2";
/// Where nobody but a host port is: at any address of the node, and at NODE only.
pub const ANY_PORT: u16 = 8080;
pub const ONE_PORT: u16 = 9090;
/// Of one protocol each.
const UDP_PORT: u16 = 5353;
const SCTP_PORT: u16 = 3868;
/// The client's.
const CLIENT_PORT: u16 = 40_000;

/// Of each family: the node, its other address, a client, and an address of nobody.
const FAMILIES: [[&str; 4]; 2] =
    [[NODE, SECOND, FOREIGN, "192.0.2.77"], [NODE6, SECOND6, FOREIGN6, "2001:db8::77"]];

pub fn host_port(transport: Transport, address: &str, port: u16) -> HostPort {
    let address = match address {
        "0.0.0.0" => HostAddress::AnyV4,
        "::" => HostAddress::AnyV6,
        one => HostAddress::One(one.parse().expect("an address")),
    };
    HostPort { transport, address, port }
}

/// A NIC, the node's addresses, and host ports of both families.
pub fn bench() -> Bench {
    let mut bench = Bench::new();
    let addresses = [NODE, SECOND, NODE6, SECOND6].map(|text| text.parse().expect("an address"));
    bench.programs.set_node_addresses(&addresses).expect("room");
    for [node, any] in [[NODE, "0.0.0.0"], [NODE6, "::"]] {
        let host_ports = [
            host_port(Transport::Tcp, any, ANY_PORT),
            host_port(Transport::Tcp, node, ONE_PORT),
            host_port(Transport::Udp, any, UDP_PORT),
            host_port(Transport::Sctp, any, SCTP_PORT),
        ];
        bench.programs.add_host_ports(&host_ports).expect("room");
    }
    bench
}

/// A transport header of twenty bytes, of whatever protocol has ports.
fn l4(protocol: u8, from: u16, to: u16) -> Vec<u8> {
    let mut header = [from.to_be_bytes(), to.to_be_bytes()].concat();
    header.resize(20, 0);
    match protocol {
        TCP => header[12] = 5 << 4,
        UDP => header[5] = 20,
        _ => {}
    }
    header
}

/// Sums the IPv4 header of a packet up, if it has one.
fn summed(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        let length = usize::from(packet[0] & 0xf) * 4;
        packet[10..12].fill(0);
        let sum = Sum::default().add_bytes(&packet[..length]).checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// A packet in a frame to the NIC.
fn framed(packet: Vec<u8>) -> Vec<u8> {
    to(MAC, &summed(packet))
}

/// A client's packet to a port.
pub fn ask(client: &str, protocol: u8, node: &str, port: u16) -> Vec<u8> {
    framed(packet(client, node, protocol, &l4(protocol, CLIENT_PORT, port)))
}

/// A packet that the node sent from a port to a client, as an error quotes it.
fn sent(node: &str, protocol: u8, port: u16, client: &str) -> Vec<u8> {
    packet(node, client, protocol, &l4(protocol, port, CLIENT_PORT))
}

/// An ICMP error of a router to the node, which speaks of a packet.
fn error(node: &str, kind: u8, quoted: &[u8]) -> Vec<u8> {
    let (router, protocol) =
        if node.contains(':') { ("2001:db8:5::1", ICMPV6) } else { ("203.0.113.1", ICMP) };
    framed(packet(router, node, protocol, &[&[kind, 0, 0, 0, 0, 0, 0, 0], quoted].concat()))
}

/// Changes two bytes of the IPv4 header in a packet: flags and offset of a fragment.
fn fragmented(mut packet: Vec<u8>, field: u16) -> Vec<u8> {
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    packet
}

/// The IPv4 packet with two words of options, none of which says anything.
fn with_options(packet: &[u8]) -> Vec<u8> {
    let mut packet = [&packet[..20], &[1; 8], &packet[20..]].concat();
    packet[0] = 0x47;
    let length = u16::try_from(packet.len()).expect("short");
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet
}

/// An IPv6 packet whose transport header is behind these headers; each is its number and the bytes
/// after the first, which says what follows.
fn behind(from: &str, node: &str, chain: &[(u8, &[u8])], last: u8, rest: &[u8]) -> Vec<u8> {
    let mut payload = rest.to_vec();
    let mut next = last;
    for (number, header) in chain.iter().rev() {
        payload = [&[next], *header, &payload].concat();
        next = *number;
    }
    packet(from, node, next, &payload)
}

/// The host port that a worker finds in a frame: where it goes, or what an error quotes.
fn found_by_worker(frame: &[u8]) -> Option<(Transport, Endpoint)> {
    let Ok(Parsed::Ip(headers)) = headers(frame, frame.len()) else { return None };
    match quote(frame, &headers) {
        Ok(Some(quote)) => Some((quote.key.transport, quote.key.src)),
        Ok(None) => FlowKey::of_packet(frame, &headers).map(|key| (key.transport, key.dst)),
        Err(_) => None,
    }
}

/// A worker gets the frame, and finds this end in it.
fn takes(bench: &Bench, what: &str, frame: &[u8], protocol: u8, node: &str, port: u16) {
    bench.takes(what, frame);
    let asked = Endpoint { address: node.parse().expect("an address"), port };
    let transport = Transport::from_number(protocol).expect("it has ports");
    assert_eq!(found_by_worker(frame), Some((transport, asked)), "{what}");
}

#[test]
#[ignore = "needs root"]
fn a_host_port_is_asked_at_the_nodes_addresses_in_its_protocol_only() {
    let bench = bench();
    for [node, second, client, nobody] in FAMILIES {
        let ports = [(TCP, ANY_PORT), (UDP, UDP_PORT), (SCTP, SCTP_PORT)];
        for (protocol, port) in ports {
            for address in [node, second] {
                let frame = ask(client, protocol, address, port);
                takes(&bench, "any address", &frame, protocol, address, port);
            }
            bench.passes("in transit", &ask(client, protocol, nobody, port), "not_ours");
            bench.passes("the next port", &ask(client, protocol, node, port + 1), "not_ours");
            let swapped = port.swap_bytes();
            bench.passes("swapped bytes", &ask(client, protocol, node, swapped), "not_ours");
            for other in [TCP, UDP, SCTP, 33, 136, ESP] {
                if other != protocol {
                    bench.passes("another protocol", &ask(client, other, node, port), "not_ours");
                }
            }
            let back = framed(packet(client, node, protocol, &l4(protocol, port, CLIENT_PORT)));
            bench.passes("from such a port", &back, "not_ours");
        }
        takes(&bench, "one address", &ask(client, TCP, node, ONE_PORT), TCP, node, ONE_PORT);
        bench.passes("at another address", &ask(client, TCP, second, ONE_PORT), "not_ours");
        takes(&bench, "a direct client", &ask(node, TCP, second, ANY_PORT), TCP, second, ANY_PORT);
    }
    // IPv6 addresses that would be the node's, were it not for the family.
    bench.passes("like the node", &ask(FOREIGN6, TCP, "c000:201::", ANY_PORT), "not_ours");
}

#[test]
#[ignore = "needs root"]
fn a_host_port_of_one_family_is_none_of_the_other() {
    let mut bench = Bench::new();
    let addresses = [NODE, NODE6].map(|text| text.parse().expect("an address"));
    bench.programs.set_node_addresses(&addresses).expect("room");
    for [any, node, client, other, other_client] in
        [["0.0.0.0", NODE, FOREIGN, NODE6, FOREIGN6], ["::", NODE6, FOREIGN6, NODE, FOREIGN]]
    {
        let mapped = [host_port(Transport::Tcp, any, ANY_PORT)];
        bench.programs.replace_host_ports(&mapped).expect("room");
        bench.takes("its family", &ask(client, TCP, node, ANY_PORT));
        bench.passes("the other", &ask(other_client, TCP, other, ANY_PORT), "not_ours");
    }
}

#[test]
#[ignore = "needs root"]
fn what_accepts_a_connection_from_such_a_port_is_the_kernels_that_masqueraded_it() {
    let bench = bench();
    let (fin, syn, rst, push, ack, ece) = (0x01, 0x02, 0x04, 0x08, 0x10, 0x40);
    for [node, _, client, _] in FAMILIES {
        let tcp = |flags| {
            let mut header = l4(TCP, CLIENT_PORT, ANY_PORT);
            header[13] = flags;
            framed(packet(client, node, TCP, &header))
        };
        for flags in [0, syn, ack, rst, syn | ece, ack | push, ack | fin, ack | rst] {
            takes(&bench, "of a client", &tcp(flags), TCP, node, ANY_PORT);
        }
        bench.passes("SYN and ACK", &tcp(syn | ack), "not_ours");
        bench.passes("SYN and ACK with ECN", &tcp(syn | ack | ece), "not_ours");
        let sctp = |chunk| {
            let mut header = l4(SCTP, CLIENT_PORT, SCTP_PORT);
            header[12] = chunk;
            framed(packet(client, node, SCTP, &header))
        };
        for chunk in [0, 1, 3, 6, 10, 14] {
            takes(&bench, "of a client", &sctp(chunk), SCTP, node, SCTP_PORT);
        }
        bench.passes("INIT ACK", &sctp(2), "not_ours");
        // In UDP the same bytes are its own affair.
        let mut header = l4(UDP, CLIENT_PORT, UDP_PORT);
        header[12..14].copy_from_slice(&[2, syn | ack]);
        bench.takes("UDP", &framed(packet(client, node, UDP, &header)));
    }
}

#[test]
#[ignore = "needs root"]
fn pods_prefixes_decide_before_host_ports() {
    let mut bench = bench();
    for (pod, direct, foreign) in [(POD, DIRECT, FOREIGN), (POD6, DIRECT6, FOREIGN6)] {
        bench.programs.set_node_addresses(&[pod.parse().expect("an address")]).expect("room");
        bench.takes("to a pod", &ask(direct, TCP, pod, ANY_PORT));
        bench.passes("the kernel's way", &ask(foreign, TCP, pod, ANY_PORT), "not_direct");
    }
}

#[test]
#[ignore = "needs root"]
fn fragments_to_the_node_are_the_kernels() {
    let bench = bench();
    let whole = || packet(FOREIGN, NODE, UDP, &l4(UDP, CLIENT_PORT, UDP_PORT));
    takes(&bench, "whole", &framed(fragmented(whole(), 0x4000)), UDP, NODE, UDP_PORT);
    for field in [0x2000, 0x6000, 0x2001, 0x0001, 0x1fff, 0x0100] {
        bench.passes("a fragment", &framed(fragmented(whole(), field)), "not_ours");
    }
    // ICMP in fragments as well, and fragments to pods as before.
    let quoted = sent(NODE, TCP, ANY_PORT, FOREIGN);
    let mut first = error(NODE, 3, &quoted);
    takes(&bench, "whole", &first, TCP, NODE, ANY_PORT);
    first[20] = 0x20;
    bench.passes("a first fragment of an error", &first, "not_ours");
    let to_pod = packet(DIRECT, POD, UDP, &l4(UDP, CLIENT_PORT, UDP_PORT));
    bench.takes("to a pod", &framed(fragmented(to_pod, 0x2001)));

    let header = |offset, more| fragment(UDP, offset, more)[1..].to_vec();
    let part = |offset, more| {
        let rest = l4(UDP, CLIENT_PORT, UDP_PORT);
        framed(behind(FOREIGN6, NODE6, &[(FRAGMENT, &header(offset, more))], UDP, &rest))
    };
    for (offset, more) in [(0, true), (1, true), (1, false), (0x1fff, false), (32, false)] {
        bench.passes("a fragment", &part(offset, more), "not_ours");
    }
    // RFC 6946: alone it is the whole datagram.
    takes(&bench, "an atomic fragment", &part(0, false), UDP, NODE6, UDP_PORT);
}

#[test]
#[ignore = "needs root"]
fn an_icmp_error_is_a_workers_if_a_host_port_sent_what_it_speaks_of() {
    let bench = bench();
    for ([node, second, client, nobody], kinds, others) in [
        (FAMILIES[0], [3, 4, 11, 12], [0, 5, 8, 13]),
        (FAMILIES[1], [1, 2, 3, 4], [128, 129, 135, 137]),
    ] {
        for kind in kinds {
            for (protocol, port) in [(TCP, ANY_PORT), (UDP, UDP_PORT), (SCTP, SCTP_PORT)] {
                let frame = error(node, kind, &sent(node, protocol, port, client));
                takes(&bench, "of a host port", &frame, protocol, node, port);
                let quoted = sent(node, protocol, port + 1, client);
                bench.passes("of another port", &error(node, kind, &quoted), "not_ours");
                let quoted = packet(node, client, protocol, &l4(protocol, CLIENT_PORT, port));
                bench.passes("to such a port", &error(node, kind, &quoted), "not_ours");
            }
            let quoted = sent(node, TCP, ONE_PORT, client);
            takes(&bench, "at one address", &error(node, kind, &quoted), TCP, node, ONE_PORT);
            let quoted = sent(second, TCP, ONE_PORT, client);
            bench.passes("at another", &error(second, kind, &quoted), "not_ours");
            // An error goes to whoever has sent the packet.
            let quoted = sent(second, TCP, ANY_PORT, client);
            takes(&bench, "to its address", &error(second, kind, &quoted), TCP, second, ANY_PORT);
            bench.passes("to another address", &error(node, kind, &quoted), "not_ours");
            let quoted = sent(nobody, TCP, ANY_PORT, client);
            bench.passes("in transit", &error(nobody, kind, &quoted), "not_ours");
            bench.passes("not of the node", &error(node, kind, &quoted), "not_ours");
            let quoted = sent(node, ESP, ANY_PORT, client);
            bench.passes("without ports", &error(node, kind, &quoted), "not_ours");
        }
        for kind in others {
            let quoted = sent(node, TCP, ANY_PORT, client);
            bench.passes("no error", &error(node, kind, &quoted), "not_ours");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_quote_is_read_as_far_as_it_goes() {
    let bench = bench();
    for (node, client, ip) in [(NODE, FOREIGN, 20), (NODE6, FOREIGN6, 40)] {
        let quoted = sent(node, TCP, ANY_PORT, client);
        let whole = error(node, 3, &quoted);
        let start = whole.len() - quoted.len();
        // Eight bytes of the transport are quoted at least (RFC 792); the first two decide.
        bench.takes("the ports", &whole[..start + ip + 2]);
        for length in start - 8..start + ip + 2 {
            bench.passes("cut short", &whole[..length], "malformed");
        }
        takes(&bench, "eight bytes", &error(node, 3, &quoted[..ip + 8]), TCP, node, ANY_PORT);
        let mut lying = quoted;
        lying[0] ^= 0x10;
        bench.passes("of another version", &error(node, 3, &lying), "malformed");
    }
    let quoted = || sent(NODE, UDP, UDP_PORT, FOREIGN);
    takes(&bench, "options", &error(NODE, 3, &with_options(&quoted())), UDP, NODE, UDP_PORT);
    let mut short = quoted();
    short[0] = 0x44;
    bench.passes("a header of 16 bytes", &error(NODE, 3, &short), "malformed");
    let first = fragmented(quoted(), 0x2000);
    takes(&bench, "a first fragment", &error(NODE, 11, &first), UDP, NODE, UDP_PORT);
    for field in [0x0001, 0x2001, 0x1fff] {
        let later = fragmented(quoted(), field);
        bench.passes("a later fragment", &error(NODE, 11, &later), "not_ours");
    }
    let chain = |offset, more| {
        let header = fragment(UDP, offset, more);
        let rest = l4(UDP, UDP_PORT, CLIENT_PORT);
        let chain: [(u8, &[u8]); 2] =
            [(DESTINATION_OPTIONS, &extension(0)[1..]), (FRAGMENT, &header[1..])];
        error(NODE6, 2, &behind(NODE6, FOREIGN6, &chain, UDP, &rest))
    };
    takes(&bench, "a first fragment", &chain(0, true), UDP, NODE6, UDP_PORT);
    bench.passes("a later fragment", &chain(1, true), "not_ours");
}

#[test]
#[ignore = "needs root"]
fn options_and_extension_headers_hide_no_port_but_those_beyond_the_eighth() {
    let bench = bench();
    let mut tcp = l4(TCP, CLIENT_PORT, ANY_PORT);
    tcp[12] = 15 << 4;
    tcp.resize(60, 1);
    let plain = packet(FOREIGN, NODE, TCP, &tcp);
    takes(&bench, "TCP with options", &framed(plain.clone()), TCP, NODE, ANY_PORT);
    takes(&bench, "IPv4 with options", &framed(with_options(&plain)), TCP, NODE, ANY_PORT);
    let quoted = sent(NODE, TCP, ANY_PORT, FOREIGN);
    let with = framed(with_options(&error(NODE, 3, &quoted)[14..]));
    takes(&bench, "an error with options", &with, TCP, NODE, ANY_PORT);

    let six = |chain: &[(u8, &[u8])], last: u8, rest: &[u8]| {
        framed(behind(FOREIGN6, NODE6, chain, last, rest))
    };
    let takes6 = |what: &str, chain: &[(u8, &[u8])]| {
        takes(&bench, what, &six(chain, TCP, &tcp), TCP, NODE6, ANY_PORT);
    };
    let (options, long) = (&extension(0)[1..], &[&[2_u8][..], &[1; 22]].concat()[..]);
    // RFC 4302: 24 bytes, in units of four less two.
    let authentication = &[&[4_u8][..], &[0; 22]].concat()[..];
    takes6("hop by hop", &[(HOP_BY_HOP, options)]);
    takes6("three units", &[(DESTINATION_OPTIONS, long)]);
    takes6("authentication", &[(AUTHENTICATION, authentication)]);
    // Type 4 (RFC 8754), whose last segment is here.
    let routing = |left: u8| [0, 4, left, 0, 0, 0, 0];
    takes6("routing, arrived", &[(ROUTING, &routing(0))]);
    let not_yet = six(&[(ROUTING, &routing(1))], TCP, &tcp);
    bench.passes("routing, to be sent on", &not_yet, "not_ours");
    takes6(
        "all",
        &[
            (HOP_BY_HOP, long),
            (DESTINATION_OPTIONS, options),
            (ROUTING, &routing(0)),
            (AUTHENTICATION, authentication),
        ],
    );
    takes6("eight", &[(DESTINATION_OPTIONS, options); 8]);
    let nine = six(&[(DESTINATION_OPTIONS, options); 9], TCP, &tcp);
    bench.passes("nine", &nine, "not_ours");
    bench.passes("no ports", &six(&[(HOP_BY_HOP, options)], ESP, &tcp), "not_ours");
    let wrong = l4(TCP, CLIENT_PORT, ANY_PORT + 1);
    bench.passes("another port", &six(&[(HOP_BY_HOP, long)], TCP, &wrong), "not_ours");
    let cut = six(&[(HOP_BY_HOP, options)], TCP, &tcp);
    bench.passes("cut in a header", &cut[..56], "not_ours");

    // An error may come behind headers too.
    let body = error(NODE6, 2, &sent(NODE6, TCP, ANY_PORT, FOREIGN6))[54..].to_vec();
    let frame = six(&[(HOP_BY_HOP, options)], ICMPV6, &body);
    takes(&bench, "an error", &frame, TCP, NODE6, ANY_PORT);
    let body = error(NODE6, 2, &sent(NODE6, TCP, ANY_PORT + 1, FOREIGN6))[54..].to_vec();
    bench.passes("an error", &six(&[(HOP_BY_HOP, options)], ICMPV6, &body), "not_ours");
}

#[test]
#[ignore = "needs root"]
fn only_untagged_frames_to_the_nics_own_mac_reach_a_host_port() {
    let bench = bench();
    for [node, _, client, _] in FAMILIES {
        let frame = ask(client, TCP, node, ANY_PORT);
        let inner = &frame[14..];
        bench.takes("to the NIC", &frame);
        bench.passes("broadcast", &to([0xff; 6], inner), "other_mac");
        let mut other = MAC;
        other[5] ^= 1;
        bench.passes("to another", &to(other, inner), "other_mac");
        for tag in [[0x81, 0x00, 0, 5], [0x88, 0xa8, 0, 5]] {
            let tagged = [&frame[..12], &tag, &frame[12..]].concat();
            bench.passes("tagged", &tagged, "ether_type");
        }
        let ports = frame.len() - 20;
        for length in ports..ports + 4 {
            bench.passes("cut short", &frame[..length], "malformed");
        }
        let mut large = frame;
        large.resize(60_000, 0);
        bench.takes("a super-packet", &large);
    }
}

#[test]
#[ignore = "needs root"]
fn without_its_worker_a_host_port_is_the_kernels() {
    let bench = bench();
    let frames = FAMILIES.map(|[node, _, client, _]| {
        [ask(client, TCP, node, ANY_PORT), error(node, 3, &sent(node, TCP, ANY_PORT, client))]
    });
    let frames = frames.concat();
    let all = |queue| frames.iter().all(|frame| bench.run(frame, queue).0 != PASS);
    assert!(all(0) && all(1));
    bench.programs.clear_sentinels(1).expect("cleared");
    assert!(all(0), "another worker");
    for frame in &frames {
        assert_eq!(bench.run(frame, 1), (PASS, Some("fallback")));
    }
    // Slot 10 is that of queue 0.
    bench.programs.clear_socket(10).expect("cleared");
    frames.iter().for_each(|frame| bench.passes("without socket", frame, "fallback"));
}
