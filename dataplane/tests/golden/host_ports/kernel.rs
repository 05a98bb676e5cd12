//! Flows that the node's kernel carries or translates, beside those of the workers: what came by
//! the node port is answered by it, and the pod sees one client where there is one.

use dataplane::drop::DropReason;

use super::{CLIENT, OTHER, Protocol, Scene, in_every_way, in_every_way_of};
use crate::harness::{A, B, Direction, FAR_V4, FAR_V6, HIDDEN, NODE, TO_B, UPLINK};

#[test]
fn what_came_by_the_node_port_is_answered_by_it_although_the_client_is_direct() {
    in_every_way(|scene| {
        let asked = scene.first(&NODE, &B, (CLIENT, TO_B.port)).src_of(&UPLINK);
        scene.sends(&NODE, &asked, &[(&B, asked.clone().delivered(&B), None)]);
        let answer = scene.middle(&B, &UPLINK, (TO_B.port, CLIENT));
        scene.between_pods(&B, &answer, &NODE, answer.clone().delivered(&NODE));
        // Another client of the same kind came by the wire.
        let other = scene.first(&UPLINK, &B, (CLIENT + 1, TO_B.port));
        scene.comes_in(&other, &B, other.clone().forwarded(&B));
        let answer = scene.middle(&B, &UPLINK, (TO_B.port, CLIENT + 1));
        let uplink = scene.uplink_of(&B);
        scene.goes_out(&B, &answer, uplink, answer.clone().forwarded(uplink));
    });
}

#[test]
fn a_pod_of_the_node_that_the_kernel_led_here_is_answered_through_the_kernel() {
    in_every_way(|scene| {
        let asked = scene.first(&NODE, &B, (CLIENT, TO_B.port)).src_of(&A);
        scene.sends(&NODE, &asked, &[(&B, asked.clone().delivered(&B), None)]);
        let answer = scene.middle(&B, &A, (TO_B.port, CLIENT));
        scene.between_pods(&B, &answer, &NODE, answer.clone().delivered(&NODE));
    });
}

#[test]
fn a_port_that_no_host_port_leads_to_is_not_followed() {
    in_every_way(|scene| {
        let asked = scene.first(&NODE, &B, (CLIENT, 7)).src_of(&UPLINK);
        scene.sends(&NODE, &asked, &[(&B, asked.clone().delivered(&B), None)]);
        let answer = scene.middle(&B, &UPLINK, (7, CLIENT));
        let uplink = scene.uplink_of(&B);
        scene.goes_out(&B, &answer, uplink, answer.clone().forwarded(uplink));
        assert_eq!(scene.flows_of(&B), 0);
    });
}

#[test]
fn one_client_port_that_asks_at_both_addresses_is_two_clients_for_the_pod() {
    in_every_way(|scene| {
        scene.a_asks_at_both_addresses();
        for (source, from, port) in [(CLIENT, &NODE, TO_B.host_port), (OTHER, &B, TO_B.port)] {
            let answer = scene.middle(&B, &A, (TO_B.port, source));
            let answered = scene.middle(from, &A, (port, CLIENT)).forwarded(&A);
            scene.between_pods(&B, &answer, &A, answered);
        }
        let more = scene.middle(&A, &B, (CLIENT, TO_B.port));
        let got = scene.middle(&A, &B, (OTHER, TO_B.port)).forwarded(&B);
        scene.between_pods(&A, &more, &B, got);
    });
}

/// As the long datagrams of a client are, which come in fragments.
#[test]
fn what_the_kernel_translates_of_a_workers_flow_is_of_that_flow() {
    in_every_way(|scene| {
        scene.b_is_asked(Scene::first, CLIENT);
        let by_kernel = scene.middle(&NODE, &B, (CLIENT, TO_B.port)).src_of(&UPLINK);
        scene.sends(&NODE, &by_kernel, &[(&B, by_kernel.clone().delivered(&B), None)]);
        assert_eq!(scene.flows_of(&B), 1);
        scene.b_answers(CLIENT);
    });
}

#[test]
fn a_client_that_the_kernel_led_here_first_keeps_its_port_when_the_worker_does() {
    in_every_way(|scene| {
        let by_kernel = scene.first(&NODE, &B, (CLIENT, TO_B.port)).src_of(&UPLINK);
        scene.sends(&NODE, &by_kernel, &[(&B, by_kernel.clone().delivered(&B), None)]);
        scene.b_is_asked(Scene::middle, CLIENT);
        assert_eq!(scene.flows_of(&B), 1);
        scene.b_answers(CLIENT);
    });
}

/// The node's kernel does not know which ports workers masquerade with.
#[test]
fn a_process_of_the_node_with_the_port_of_a_masqueraded_client_must_take_another() {
    for protocol in [Protocol::Tcp, Protocol::Sctp] {
        in_every_way_of(protocol, |scene| {
            let asked = scene.first(&A, &NODE, (CLIENT, HIDDEN.host_port));
            let got = scene.first(&NODE, &B, (CLIENT, HIDDEN.port)).forwarded(&B);
            scene.between_pods(&A, &asked, &B, got);
            let process = scene.first(&NODE, &B, (CLIENT, HIDDEN.port));
            scene.drops(&NODE, &process, (&B, Direction::ToPod, DropReason::NatNoPort));
            let process = scene.first(&NODE, &B, (CLIENT + 1, HIDDEN.port));
            scene.sends(&NODE, &process, &[(&B, process.clone().delivered(&B), None)]);
        });
    }
}

#[test]
fn a_client_beyond_the_node_that_asks_the_pod_itself_is_answered_by_the_kernel() {
    in_every_way(|scene| {
        let far = if scene.v6 { FAR_V6 } else { FAR_V4 };
        let asked = scene.first(&NODE, &B, (CLIENT, TO_B.port)).src(far);
        scene.sends(&NODE, &asked, &[(&B, asked.clone().delivered(&B), None)]);
        let answer = scene.middle(&B, &A, (TO_B.port, CLIENT)).dst(far);
        scene.between_pods(&B, &answer, &NODE, answer.clone().delivered(&NODE));
    });
}

#[test]
fn whoever_comes_first_another_client_with_its_port_is_another_one() {
    in_every_way(|scene| {
        let direct = scene.first(&A, &B, (CLIENT, TO_B.port));
        scene.between_pods(&A, &direct, &B, direct.clone().forwarded(&B));
        let asked = scene.first(&A, &NODE, (CLIENT, TO_B.host_port));
        let got = scene.first(&A, &B, (OTHER, TO_B.port)).forwarded(&B);
        scene.between_pods(&A, &asked, &B, got);
        assert_eq!(scene.flows_of(&B), 2);
    });
}

#[test]
fn an_address_of_the_node_that_the_nodes_kernel_sends_here_is_not_ours() {
    in_every_way(|scene| {
        let asked = scene.first(&NODE, &NODE, (CLIENT, TO_B.host_port)).src(FAR_V4);
        let asked = if scene.v6 { asked.src(FAR_V6) } else { asked };
        scene.drops(&NODE, &asked, (&NODE, Direction::FromPod, DropReason::NotOurs));
    });
}

/// Only what the kernel has led here may go on without a flow: it ends what began elsewhere.
#[test]
fn what_ends_a_connection_of_the_pods_own_address_passes_and_opens_nothing() {
    for protocol in [Protocol::Tcp, Protocol::Sctp] {
        in_every_way_of(protocol, |scene| {
            let last = scene.last(&UPLINK, &B, (CLIENT, TO_B.port)).expect("it has one");
            scene.comes_in(&last, &B, last.clone().forwarded(&B));
            assert_eq!(scene.flows_of(&B), 0);
        });
    }
}

#[test]
fn nobody_ends_what_the_kernel_carries_by_a_packet_that_opens_nothing() {
    for protocol in [Protocol::Tcp, Protocol::Sctp] {
        in_every_way_of(protocol, |scene| {
            let by_kernel = scene.first(&NODE, &B, (CLIENT, TO_B.port)).src_of(&UPLINK);
            scene.sends(&NODE, &by_kernel, &[(&B, by_kernel.clone().delivered(&B), None)]);
            let last = scene.last(&UPLINK, &NODE, (CLIENT, TO_B.host_port)).expect("it has one");
            scene.drops(&UPLINK, &last, (&B, Direction::ToPod, DropReason::NatNoFlow));
            let answer = scene.middle(&B, &UPLINK, (TO_B.port, CLIENT));
            scene.between_pods(&B, &answer, &NODE, answer.clone().delivered(&NODE));
        });
    }
}
