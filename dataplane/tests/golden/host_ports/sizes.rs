//! Super-packets, merged streams and what is too long, through host ports.

use super::{CLIENT, Protocol, Scene, in_every_way_of};
use crate::harness::packet::{ACK, Check, Packet, icmp_error};
use crate::harness::{A, B, C, End, NODE, PLAIN, TO_B, TO_C, TO_PLAIN, UPLINK, VETH_UPLINK};

const SEGMENT: usize = 1_400;

/// Several segments of a stream in one packet.
fn stream(scene: &Scene, from: &End, to: &End, ports: (u16, u16)) -> Packet {
    scene.middle(from, to, ports).payload(10 * SEGMENT - 7)
}

fn in_every_way_of_tcp(play: impl Fn(&mut Scene)) {
    in_every_way_of(Protocol::Tcp, play);
}

/// A flow of pod A to a host port.
fn open(scene: &mut Scene) {
    let asked = scene.first(&A, &NODE, (CLIENT, TO_B.host_port));
    let got = scene.first(&A, &B, (CLIENT, TO_B.port)).forwarded(&B);
    scene.between_pods(&A, &asked, &B, got);
}

#[test]
fn a_super_packet_reaches_the_pod_in_one_piece_and_so_does_its_answer() {
    in_every_way_of_tcp(|scene| {
        open(scene);
        let asked = stream(scene, &A, &NODE, (CLIENT, TO_B.host_port));
        let got = stream(scene, &A, &B, (CLIENT, TO_B.port)).check(Check::Partial);
        let out = (&B, got.clone().forwarded(&B), Some(got.partial()));
        scene.sends(&A, &asked.marked(SEGMENT as u16), &[out]);
        let answer = stream(scene, &B, &A, (TO_B.port, CLIENT)).marked(SEGMENT as u16);
        let answered = stream(scene, &NODE, &A, (TO_B.host_port, CLIENT)).check(Check::Partial);
        let out = (&A, answered.clone().forwarded(&A), Some(answered.partial()));
        scene.sends(&B, &answer, &[out]);
    });
}

#[test]
fn a_super_packet_for_a_pod_in_basic_mode_is_cut_and_every_segment_is_led() {
    in_every_way_of_tcp(|scene| {
        let asked = stream(scene, &A, &NODE, (CLIENT, TO_PLAIN.host_port));
        let got = stream(scene, &A, &PLAIN, (CLIENT, TO_PLAIN.port)).segments(SEGMENT);
        let got = got.into_iter().map(|segment| (&PLAIN, segment.forwarded(&PLAIN), None));
        scene.sends(&A, &asked.marked(SEGMENT as u16), &got.collect::<Vec<_>>());
    });
}

#[test]
fn a_super_packet_in_reply_is_cut_for_the_wire_with_the_asked_address_in_every_segment() {
    in_every_way_of_tcp(|scene| {
        scene.b_is_asked(Scene::first, CLIENT);
        let answer = stream(scene, &B, &UPLINK, (TO_B.port, CLIENT));
        let answered = stream(scene, &NODE, &UPLINK, (TO_B.host_port, CLIENT)).segments(SEGMENT);
        let uplink = scene.uplink_of(&B);
        let out = answered.into_iter().map(|segment| (uplink, segment.forwarded(uplink), None));
        scene.sends(&B, &answer.marked(SEGMENT as u16), &out.collect::<Vec<_>>());
    });
}

#[test]
fn a_stream_from_the_wire_is_merged_whether_or_not_its_worker_is_the_pods() {
    in_every_way_of_tcp(|scene| {
        scene.b_is_asked(Scene::first, CLIENT);
        for uplink in [&UPLINK, &VETH_UPLINK] {
            let segments = stream(scene, uplink, &NODE, (CLIENT, TO_B.host_port)).segments(SEGMENT);
            for segment in &segments {
                scene.node.inject(uplink.id, segment.build());
            }
            scene.node.run();
            let got = stream(scene, uplink, &B, (CLIENT, TO_B.port)).segments(SEGMENT);
            let got = Packet::whole(&got).flags(ACK);
            scene.leaves(&[(&B, got.clone().forwarded(&B), Some(got.partial()))]);
        }
        assert_eq!(scene.node.all_drops(), []);
    });
}

#[test]
fn what_is_too_long_for_the_pod_is_refused_in_the_words_of_the_client() {
    for protocol in super::PROTOCOLS {
        in_every_way_of(protocol, |scene| {
            let asked = scene.middle(&A, &NODE, (CLIENT, TO_C.host_port)).payload(1_400);
            let bytes = asked.build();
            scene.node.inject(A.id, bytes.clone());
            scene.node.run();
            let (kind, code) = if scene.v6 { (2, 0) } else { (3, 4) };
            let expected = icmp_error(&A, &bytes, kind, code, C.mtu as u32);
            let sent = scene.node.sent(A.id);
            assert_eq!(sent.len(), 1, "{}", scene.name);
            assert_eq!(sent[0].bytes, expected, "{}", scene.name);
            assert_eq!(scene.flows_of(&C), 0);
        });
    }
}

#[test]
fn a_reply_that_is_too_long_for_the_client_is_refused_in_the_words_of_the_pod() {
    for protocol in super::PROTOCOLS {
        in_every_way_of(protocol, |scene| {
            let asked = scene.first(&C, &NODE, (CLIENT, TO_B.host_port));
            let got = scene.first(&C, &B, (CLIENT, TO_B.port)).forwarded(&B);
            scene.between_pods(&C, &asked, &B, got);
            let bytes = scene.middle(&B, &C, (TO_B.port, CLIENT)).payload(1_400).build();
            scene.node.inject(B.id, bytes.clone());
            scene.node.run();
            let (kind, code) = if scene.v6 { (2, 0) } else { (3, 4) };
            let expected = icmp_error(&B, &bytes, kind, code, C.mtu as u32);
            let sent = scene.node.sent(B.id);
            assert_eq!(sent.len(), 1, "{}", scene.name);
            assert_eq!(sent[0].bytes, expected, "{}", scene.name);
        });
    }
}
