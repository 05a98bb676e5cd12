//! Who asks at a host port, by which way, and what the pod and the asker see.

use dataplane::drop::DropReason;

use super::{CLIENT, OTHER, Protocol, Scene, in_every_way, in_every_way_of};
use crate::harness::packet::{ACK, Packet, SYN};
use crate::harness::{
    A, B, BARE, C, CUSTOM, Direction, End, FAR_V4, FAR_V6, HIDDEN, NODE, PLAIN, TO_B, TO_PLAIN,
    UPLINK,
};

/// A port of B, C and PLAIN that host ports lead to.
const MAPPED: u16 = 80;

/// With an address beyond the node as its source, or as its destination.
fn far(scene: &Scene) -> &'static str {
    if scene.v6 { FAR_V6 } else { FAR_V4 }
}

#[test]
fn a_client_on_the_wire_asks_and_is_answered_from_the_address_it_asked() {
    in_every_way(|scene| {
        for make in [Scene::first, Scene::middle] {
            scene.b_is_asked(make, CLIENT);
            scene.b_answers(CLIENT);
        }
        assert_eq!(scene.flows_of(&B), 1);
    });
}

#[test]
fn a_client_that_no_uplink_leads_to_is_answered_by_the_nodes_kernel() {
    in_every_way(|scene| {
        let asked = scene.first(&UPLINK, &NODE, (CLIENT, TO_B.host_port)).src(far(scene));
        let got = scene.first(&UPLINK, &B, (CLIENT, TO_B.port)).src(far(scene)).forwarded(&B);
        scene.comes_in(&asked, &B, got);
        let answer = scene.middle(&B, &UPLINK, (TO_B.port, CLIENT)).dst(far(scene));
        let answered = scene.middle(&NODE, &UPLINK, (TO_B.host_port, CLIENT)).dst(far(scene));
        scene.between_pods(&B, &answer, &NODE, answered.delivered(&NODE));
    });
}

#[test]
fn a_pod_of_the_node_asks_and_sees_the_nodes_address_and_the_other_sees_its_own() {
    in_every_way(|scene| {
        for make in [Scene::first, Scene::middle] {
            let asked = make(scene, &A, &NODE, (CLIENT, TO_B.host_port));
            let got = make(scene, &A, &B, (CLIENT, TO_B.port)).forwarded(&B);
            scene.between_pods(&A, &asked, &B, got);
            let answer = scene.middle(&B, &A, (TO_B.port, CLIENT));
            let answered = scene.middle(&NODE, &A, (TO_B.host_port, CLIENT)).forwarded(&A);
            scene.between_pods(&B, &answer, &A, answered);
        }
    });
}

#[test]
fn a_pod_in_basic_mode_is_asked_and_gets_complete_checksums() {
    in_every_way(|scene| {
        let asked = scene.first(&A, &NODE, (CLIENT, TO_PLAIN.host_port));
        let got = scene.first(&A, &PLAIN, (CLIENT, TO_PLAIN.port)).forwarded(&PLAIN);
        let sent = scene.as_pod_sends(&asked);
        scene.sends(&A, &sent, &[(&PLAIN, got, None)]);
        // Its kernel completes checksums itself.
        let answer = scene.middle(&PLAIN, &A, (TO_PLAIN.port, CLIENT));
        let answered = scene.middle(&NODE, &A, (TO_PLAIN.host_port, CLIENT)).forwarded(&A);
        scene.sends(&PLAIN, &answer, &[(&A, answered, None)]);
    });
}

#[test]
fn a_pod_that_asks_itself_sees_the_nodes_address_on_both_sides() {
    in_every_way(|scene| {
        for make in [Scene::first, Scene::middle] {
            let asked = make(scene, &B, &NODE, (CLIENT, TO_B.host_port));
            let got = make(scene, &NODE, &B, (CLIENT, TO_B.port)).forwarded(&B);
            scene.between_pods(&B, &asked, &B, got);
            let answer = scene.middle(&B, &NODE, (TO_B.port, CLIENT));
            let answered = scene.middle(&NODE, &B, (TO_B.host_port, CLIENT)).forwarded(&B);
            scene.between_pods(&B, &answer, &B, answered);
        }
        assert_eq!(scene.flows_of(&B), 1);
    });
}

#[test]
fn a_pod_that_asks_itself_without_masquerade_sees_its_own_address() {
    in_every_way(|scene| {
        let asked = scene.first(&B, &NODE, (CLIENT, BARE.host_port));
        let got = scene.first(&B, &B, (CLIENT, BARE.port)).forwarded(&B);
        scene.between_pods(&B, &asked, &B, got);
    });
}

#[test]
fn where_everybody_is_masqueraded_the_pod_sees_the_asked_address_and_ports_that_differ() {
    in_every_way(|scene| {
        for (client, source) in [(&UPLINK, CLIENT), (&A, OTHER)] {
            let asked = scene.first(client, &NODE, (CLIENT, HIDDEN.host_port));
            let got = scene.first(&NODE, &B, (source, HIDDEN.port)).forwarded(&B);
            scene.sends(client, &asked, &[(&B, got, None)]);
        }
        for (client, source) in [(scene.uplink_of(&B), CLIENT), (&A, OTHER)] {
            let answer = scene.middle(&B, &NODE, (HIDDEN.port, source));
            let answered = scene.middle(&NODE, client, (HIDDEN.host_port, CLIENT));
            scene.sends(&B, &answer, &[(client, answered.forwarded(client), None)]);
        }
    });
}

#[test]
fn an_address_of_others_is_not_asked_even_at_the_same_port() {
    in_every_way(|scene| {
        let port = TO_B.host_port;
        let transit = scene.first(&A, &UPLINK, (CLIENT, port)).dst(far(scene));
        let out = transit.clone().delivered(&NODE);
        scene.sends(&A, &transit, &[(&NODE, out, None)]);
        let direct = scene.first(&A, &UPLINK, (CLIENT, port));
        let uplink = scene.uplink_of(&A);
        scene.sends(&A, &direct, &[(uplink, direct.clone().forwarded(uplink), None)]);
        let passing = scene.first(&UPLINK, &UPLINK, (CLIENT, port)).dst(far(scene));
        let not_ours = DropReason::NotOurs;
        scene.drops(&UPLINK, &passing, (&UPLINK, Direction::FromPod, not_ours));
        // Of a pod that no host port leads to.
        let pod = scene.first(&A, &CUSTOM, (CLIENT, port));
        scene.sends(&A, &pod, &[(&CUSTOM, pod.clone().forwarded(&CUSTOM), None)]);
        assert_eq!(scene.flows_of(&B) + scene.flows_of(&A), 0);
    });
}

#[test]
fn a_port_of_the_node_that_leads_to_no_pod_is_the_kernels() {
    in_every_way(|scene| {
        let asked = scene.first(&A, &NODE, (CLIENT, 9_999));
        scene.sends(&A, &asked, &[(&NODE, asked.clone().delivered(&NODE), None)]);
        let asked = scene.first(&UPLINK, &NODE, (CLIENT, 9_999));
        scene.drops(&UPLINK, &asked, (&UPLINK, Direction::FromPod, DropReason::NotOurs));
    });
}

#[test]
fn an_address_that_the_node_has_lost_leads_nowhere() {
    in_every_way(|scene| {
        scene.node.publish(|tables| tables.node_addresses.clear());
        let asked = scene.first(&A, &NODE, (CLIENT, TO_B.host_port));
        scene.sends(&A, &asked, &[(&NODE, asked.clone().delivered(&NODE), None)]);
    });
}

#[test]
fn nobody_on_a_wire_has_an_address_of_the_node() {
    in_every_way(|scene| {
        let asked = scene.first(&UPLINK, &NODE, (CLIENT, TO_B.host_port)).src_of(&NODE);
        let martian = DropReason::MartianSource;
        scene.drops(&UPLINK, &asked, (&UPLINK, Direction::FromPod, martian));
    });
}

#[test]
fn what_leads_to_no_flow_and_asks_for_none_is_dropped_at_the_pod() {
    in_every_way(|scene| {
        let ports = (CLIENT, TO_B.host_port);
        let no_flow = (&B, Direction::ToPod, DropReason::NatNoFlow);
        if let Some(last) = scene.last(&UPLINK, &NODE, ports) {
            scene.drops(&UPLINK, &last, no_flow);
        }
        if scene.protocol == Protocol::Tcp {
            let answer = scene.first(&UPLINK, &NODE, ports).flags(SYN | ACK);
            scene.drops(&UPLINK, &answer, no_flow);
        }
        assert_eq!(scene.flows_of(&B), 0);
    });
}

#[test]
fn a_connection_that_began_before_the_worker_is_picked_up_when_its_client_speaks() {
    in_every_way(|scene| {
        scene.b_is_asked(Scene::middle, CLIENT);
        scene.b_answers(CLIENT);
    });
}

/// Its client may have asked at another address: with the pod's own it must not leave.
#[test]
fn what_a_pod_sends_from_a_mapped_port_in_an_unknown_connection_stays_here() {
    for protocol in [Protocol::Tcp, Protocol::Sctp] {
        in_every_way_of(protocol, |scene| {
            let answer = scene.middle(&B, &UPLINK, (TO_B.port, CLIENT));
            let no_flow = DropReason::NatNoFlow;
            scene.drops(&B, &answer, (&B, Direction::FromPod, no_flow));
            // From any other port it goes its way.
            let other = scene.middle(&B, &UPLINK, (TO_B.port + 10, CLIENT));
            let uplink = scene.uplink_of(&B);
            scene.goes_out(&B, &other, uplink, other.clone().forwarded(uplink));
        });
    }
}

#[test]
fn a_pod_may_open_connections_from_a_mapped_port() {
    in_every_way(|scene| {
        let asked = scene.first(&B, &UPLINK, (TO_B.port, 443));
        let uplink = scene.uplink_of(&B);
        scene.goes_out(&B, &asked, uplink, asked.clone().forwarded(uplink));
        let answer = scene.answer(&UPLINK, &B, (443, TO_B.port));
        scene.comes_in(&answer, &B, answer.clone().forwarded(&B));
        let goes_on = scene.middle(&B, &UPLINK, (TO_B.port, 443));
        scene.goes_out(&B, &goes_on, uplink, goes_on.clone().forwarded(uplink));
    });
}

/// Its answers are for a port that host ports lead to: they are no packets of a new client.
#[test]
fn a_pod_may_ask_at_a_host_port_from_a_mapped_port() {
    for (client, pod) in [(&C, TO_B), (&PLAIN, TO_B), (&B, TO_PLAIN), (&B, TO_B)] {
        in_every_way(|scene| {
            let (port, serving) = (MAPPED, pod.pod);
            let seen = if client.id == serving.id { &NODE } else { client };
            for make in [Scene::first, Scene::middle, Scene::middle] {
                let asked = make(scene, client, &NODE, (port, pod.host_port));
                let got = make(scene, seen, serving, (port, pod.port)).forwarded(serving);
                asks_between(scene, client, &asked, serving, got);
                let answer = scene.answer(serving, seen, (pod.port, port));
                let answered = answer.clone().src_of(&NODE).to(client).ports(pod.host_port, port);
                asks_between(scene, serving, &answer, client, answered.forwarded(client));
            }
        });
    }
}

/// As between pods, of which one may be in basic mode: those have complete checksums.
fn asks_between(scene: &mut Scene, from: &End, packet: &Packet, to: &End, got: Packet) {
    if from.id == PLAIN.id || to.id == PLAIN.id {
        scene.sends(from, packet, &[(to, got, None)]);
    } else {
        scene.between_pods(from, packet, to, got);
    }
}

#[test]
fn an_answer_is_led_nowhere_although_a_masqueraded_client_has_the_port_of_a_host_port() {
    in_every_way(|scene| {
        let port = TO_B.host_port;
        let asked = scene.first(&UPLINK, &NODE, (port, HIDDEN.host_port)).src(far(scene));
        let got = scene.first(&NODE, &B, (port, HIDDEN.port)).forwarded(&B);
        scene.comes_in(&asked, &B, got);
        let answer = scene.middle(&B, &NODE, (HIDDEN.port, port));
        let answered = scene.middle(&NODE, &UPLINK, (HIDDEN.host_port, port)).dst(far(scene));
        scene.between_pods(&B, &answer, &NODE, answered.delivered(&NODE));
    });
}
