//! ICMP errors about flows of host ports: each end gets one that speaks of the packet it has sent.

use dataplane::drop::DropReason;

use super::{CLIENT, OTHER, Protocol, Scene, in_every_way, in_every_way_of};
use crate::harness::packet::{Packet, icmp_error, packet};
use crate::harness::{A, B, Direction, End, FAR_V4, FAR_V6, HIDDEN, NODE, TO_B, UPLINK};

/// Unreachable, too big, time exceeded: types and codes of both families.
const ERRORS: [[(u8, u8); 2]; 3] = [[(3, 3), (1, 4)], [(3, 4), (2, 0)], [(11, 0), (3, 0)]];

/// Bytes of the quoted packet beyond its IP header: all, what old routers quote, and the ports.
const QUOTED: [usize; 3] = [usize::MAX, 8, 4];

/// An error about `about`, of which `quoted` bytes follow the IP header.
fn error(
    scene: &Scene,
    (from, to): (&End, &End),
    kind: [(u8, u8); 2],
    about: &Packet,
    quoted: usize,
) -> Packet {
    let (kind, code) = kind[usize::from(scene.v6)];
    let mut quote = about.quoted();
    quote.truncate(if scene.v6 { 40 } else { 20 } + quoted.min(1_000));
    let error = packet().from(from).to(to).family(scene.v6).icmp(kind, code).icmp_rest(1_280);
    error.payload_bytes(&quote)
}

/// Calls `check` for every kind of error and length of the quote.
fn every_error(check: impl Fn([(u8, u8); 2], usize)) {
    for kind in ERRORS {
        for quoted in QUOTED {
            check(kind, quoted);
        }
    }
}

/// A flow of a client on the wire, with one packet both ways.
fn open(scene: &mut Scene) {
    scene.b_is_asked(Scene::first, CLIENT);
    scene.b_answers(CLIENT);
}

#[test]
fn a_router_on_the_way_to_the_client_tells_the_pod_of_the_packet_that_the_pod_sent() {
    every_error(|kind, quoted| {
        in_every_way(|scene| {
            open(scene);
            let answer = scene.middle(&B, &UPLINK, (TO_B.port, CLIENT));
            let answered = scene.middle(&NODE, &UPLINK, (TO_B.host_port, CLIENT));
            let router = if scene.v6 { FAR_V6 } else { FAR_V4 };
            let told = error(scene, (&UPLINK, &NODE), kind, &answered, quoted).src(router);
            let got = error(scene, (&UPLINK, &B), kind, &answer, quoted).src(router);
            scene.comes_in(&told, &B, got.forwarded(&B));
            let home = scene.home_of(&B);
            assert_eq!(scene.node.worker(home).icmp_errors_translated.get(), 1);
        });
    });
}

#[test]
fn the_client_itself_tells_the_pod() {
    in_every_way(|scene| {
        open(scene);
        let answer = scene.middle(&B, &UPLINK, (TO_B.port, CLIENT));
        let answered = scene.middle(&NODE, &UPLINK, (TO_B.host_port, CLIENT));
        let told = error(scene, (&UPLINK, &NODE), ERRORS[0], &answered, 8);
        let got = error(scene, (&UPLINK, &B), ERRORS[0], &answer, 8);
        scene.comes_in(&told, &B, got.forwarded(&B));
    });
}

#[test]
fn the_pod_tells_the_client_of_the_packet_that_the_client_sent() {
    every_error(|kind, quoted| {
        in_every_way(|scene| {
            open(scene);
            let asked = scene.middle(&UPLINK, &NODE, (CLIENT, TO_B.host_port));
            let got = scene.middle(&UPLINK, &B, (CLIENT, TO_B.port));
            let tells = error(scene, (&B, &UPLINK), kind, &got, quoted);
            let told = error(scene, (&NODE, &UPLINK), kind, &asked, quoted);
            let uplink = scene.uplink_of(&B);
            scene.sends(&B, &tells, &[(uplink, told.forwarded(uplink), None)]);
        });
    });
}

#[test]
fn a_pod_that_asks_itself_is_told_by_itself() {
    in_every_way(|scene| {
        let asked = scene.first(&B, &NODE, (CLIENT, TO_B.host_port));
        let got = scene.first(&NODE, &B, (CLIENT, TO_B.port));
        scene.between_pods(&B, &asked, &B, got.clone().forwarded(&B));
        let tells = error(scene, (&B, &NODE), ERRORS[0], &got, 8);
        let told = error(scene, (&NODE, &B), ERRORS[0], &asked, 8);
        scene.sends(&B, &tells, &[(&B, told.forwarded(&B), None)]);
    });
}

#[test]
fn a_pod_that_was_the_client_tells_the_one_that_answered() {
    in_every_way(|scene| {
        let asked = scene.first(&A, &NODE, (CLIENT, TO_B.host_port));
        let got = scene.first(&A, &B, (CLIENT, TO_B.port)).forwarded(&B);
        scene.between_pods(&A, &asked, &B, got);
        let answer = scene.middle(&B, &A, (TO_B.port, CLIENT));
        let answered = scene.middle(&NODE, &A, (TO_B.host_port, CLIENT));
        let tells = error(scene, (&A, &NODE), ERRORS[0], &answered, 8);
        let told = error(scene, (&A, &B), ERRORS[0], &answer, 8);
        scene.sends(&A, &tells, &[(&B, told.forwarded(&B), None)]);
    });
}

#[test]
fn errors_about_direct_flows_pass_as_they_are() {
    in_every_way(|scene| {
        let asked = scene.first(&UPLINK, &B, (CLIENT, TO_B.port));
        scene.comes_in(&asked, &B, asked.clone().forwarded(&B));
        let answer = scene.middle(&B, &UPLINK, (TO_B.port, CLIENT));
        let tells = error(scene, (&UPLINK, &B), ERRORS[0], &answer, 8);
        scene.comes_in(&tells, &B, tells.clone().forwarded(&B));
        let tells = error(scene, (&B, &UPLINK), ERRORS[0], &asked, 8);
        let uplink = scene.uplink_of(&B);
        scene.sends(&B, &tells, &[(uplink, tells.clone().forwarded(uplink), None)]);
        let home = scene.home_of(&B);
        assert_eq!(scene.node.worker(home).icmp_errors_translated.get(), 0);
    });
}

#[test]
fn an_error_for_a_host_port_about_no_flow_is_dropped_and_opens_none() {
    in_every_way(|scene| {
        let answered = scene.middle(&NODE, &UPLINK, (TO_B.host_port, CLIENT));
        let tells = error(scene, (&UPLINK, &NODE), ERRORS[0], &answered, 8);
        let unknown = DropReason::IcmpErrorUnknownFlow;
        scene.drops(&UPLINK, &tells, (&B, Direction::ToPod, unknown));
        assert_eq!(scene.flows_of(&B), 0);
        // The pod itself may say that of any packet.
        let got = scene.middle(&UPLINK, &B, (CLIENT, TO_B.port));
        let tells = error(scene, (&B, &UPLINK), ERRORS[0], &got, 8);
        let uplink = scene.uplink_of(&B);
        scene.sends(&B, &tells, &[(uplink, tells.clone().forwarded(uplink), None)]);
    });
}

/// Whoever can make errors would keep flows alive for ever (RFC 5508 REQ-6).
#[test]
fn an_error_does_not_keep_a_flow_alive() {
    in_every_way_of(Protocol::Udp, |scene| {
        let asked = scene.first(&UPLINK, &NODE, (CLIENT, TO_B.host_port));
        let got = scene.first(&UPLINK, &B, (CLIENT, TO_B.port));
        scene.comes_in(&asked, &B, got.clone().forwarded(&B));
        scene.wait(55);
        let answered = scene.middle(&NODE, &UPLINK, (TO_B.host_port, CLIENT));
        let answer = scene.middle(&B, &UPLINK, (TO_B.port, CLIENT));
        let tells = error(scene, (&UPLINK, &NODE), ERRORS[0], &answered, 8);
        let told = error(scene, (&UPLINK, &B), ERRORS[0], &answer, 8);
        scene.comes_in(&tells, &B, told.forwarded(&B));
        let tells = error(scene, (&B, &UPLINK), ERRORS[0], &got, 8);
        let told = error(scene, (&NODE, &UPLINK), ERRORS[0], &asked, 8);
        let uplink = scene.uplink_of(&B);
        scene.sends(&B, &tells, &[(uplink, told.forwarded(uplink), None)]);
        assert_eq!(scene.flows_of(&B), 1);
        scene.wait(10);
        assert_eq!(scene.flows_of(&B), 0);
    });
}

#[test]
fn errors_of_the_worker_quote_the_packet_as_its_sender_knows_it() {
    in_every_way(|scene| {
        let (kind, code) = if scene.v6 { (3, 0) } else { (11, 0) };
        let asked = scene.first(&UPLINK, &NODE, (CLIENT, TO_B.host_port)).ttl(1);
        let bytes = asked.build();
        scene.node.inject(UPLINK.id, bytes.clone());
        scene.node.run();
        let sent = scene.node.sent(UPLINK.id);
        let expected = icmp_error(&UPLINK, &bytes, kind, code, 0);
        assert_eq!(sent.len(), 1, "{}", scene.name);
        assert_eq!(sent[0].bytes, expected, "{}", scene.name);
        assert_eq!(scene.flows_of(&B), 0, "what goes no further opens nothing");
    });
}

#[test]
fn an_error_about_a_flow_whose_port_was_changed_speaks_of_the_port_that_the_pod_knows() {
    in_every_way(|scene| {
        scene.a_asks_at_both_addresses();
        let answered = scene.middle(&B, &A, (TO_B.port, CLIENT));
        let answer = scene.middle(&B, &A, (TO_B.port, OTHER));
        let tells = error(scene, (&A, &B), ERRORS[0], &answered, 8);
        let told = error(scene, (&A, &B), ERRORS[0], &answer, 8);
        scene.sends(&A, &tells, &[(&B, told.forwarded(&B), None)]);
    });
}

#[test]
fn an_error_that_the_pod_tells_somebody_else_reaches_him() {
    in_every_way(|scene| {
        open(scene);
        let asked = scene.middle(&UPLINK, &NODE, (CLIENT, TO_B.host_port));
        let got = scene.middle(&UPLINK, &B, (CLIENT, TO_B.port));
        let tells = error(scene, (&B, &A), ERRORS[0], &got, 8);
        let told = error(scene, (&NODE, &A), ERRORS[0], &asked, 8);
        scene.sends(&B, &tells, &[(&A, told.forwarded(&A), None)]);
    });
}

#[test]
fn an_error_at_another_address_than_what_it_quotes_was_sent_from_is_the_kernels() {
    in_every_way(|scene| {
        open(scene);
        let other = if scene.v6 { "2001:db8::2" } else { "192.0.2.2" };
        scene.node.publish(|tables| tables.node_addresses.push(other.parse().unwrap()));
        let answered = scene.middle(&NODE, &UPLINK, (TO_B.host_port, CLIENT));
        let tells = error(scene, (&A, &NODE), ERRORS[0], &answered, 8).dst(other);
        scene.sends(&A, &tells, &[(&NODE, tells.clone().delivered(&NODE), None)]);
    });
}

/// What a pod's kernel refuses as too long is told in the addresses that it knows, and counted.
#[test]
fn a_pod_that_refuses_a_merged_stream_of_a_hidden_client_gets_segments_from_then_on() {
    in_every_way_of(Protocol::Tcp, |scene| {
        let asked = scene.middle(&UPLINK, &NODE, (CLIENT, HIDDEN.host_port));
        let got = scene.middle(&NODE, &B, (CLIENT, HIDDEN.port));
        scene.comes_in(&asked, &B, got.clone().forwarded(&B));
        let long = |packet: &Packet| packet.clone().payload(20_000);
        let tells = error(scene, (&B, &NODE), ERRORS[1], &long(&got), 8);
        let told = error(scene, (&NODE, &UPLINK), ERRORS[1], &long(&asked), 8);
        let uplink = scene.uplink_of(&B);
        scene.sends(&B, &tells, &[(uplink, told.forwarded(uplink), None)]);
        assert_eq!(scene.node.refused_whole(B.id), 1, "{}", scene.name);
    });
}
