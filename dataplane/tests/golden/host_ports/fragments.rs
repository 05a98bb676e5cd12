//! Fragments: those for a host port are the kernel's; those that its pod sends in reply follow
//! their first one.

use dataplane::drop::DropReason;

use super::{CLIENT, Protocol, Scene, in_every_way_of};
use crate::harness::packet::Packet;
use crate::harness::{A, B, Direction, End, NODE, PLAIN, TO_B, TO_PLAIN, UPLINK};

/// A datagram that needs several packets.
fn long(scene: &Scene, from: &End, to: &End, ports: (u16, u16)) -> Packet {
    scene.middle(from, to, ports).payload(4_000).may_fragment()
}

/// A fragment that leaves by an uplink.
fn goes_out(scene: &mut Scene, fragment: &Packet, got: &Packet) {
    let uplink = scene.uplink_of(&B);
    scene.sends(&B, fragment, &[(uplink, got.clone().forwarded(uplink), None)]);
}

#[test]
fn all_fragments_of_a_reply_leave_with_the_address_that_was_asked() {
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        in_every_way_of(protocol, |scene| {
            scene.b_is_asked(Scene::first, CLIENT);
            let answer = long(scene, &B, &UPLINK, (TO_B.port, CLIENT)).fragments(1_448);
            let answered = long(scene, &NODE, &UPLINK, (TO_B.host_port, CLIENT)).fragments(1_448);
            assert_eq!(answer.len(), 3);
            for (fragment, got) in answer.iter().zip(&answered) {
                goes_out(scene, fragment, got);
            }
        });
    }
}

#[test]
fn fragments_of_a_reply_to_the_node_go_to_the_node_as_they_are() {
    in_every_way_of(Protocol::Udp, |scene| {
        let asked = scene.first(&NODE, &B, (CLIENT, TO_B.port)).src_of(&UPLINK);
        scene.sends(&NODE, &asked, &[(&B, asked.clone().delivered(&B), None)]);
        for fragment in long(scene, &B, &UPLINK, (TO_B.port, CLIENT)).fragments(1_448) {
            scene.sends(&B, &fragment, &[(&NODE, fragment.clone().delivered(&NODE), None)]);
        }
    });
}

#[test]
fn fragments_of_what_is_no_reply_pass_as_they_are() {
    in_every_way_of(Protocol::Udp, |scene| {
        for port in [TO_B.port, 7] {
            for fragment in long(scene, &B, &UPLINK, (port, 9)).fragments(1_448) {
                goes_out(scene, &fragment, &fragment);
            }
        }
        assert_eq!(scene.flows_of(&B), 0);
    });
}

#[test]
fn a_later_fragment_without_its_first_is_dropped_if_the_pod_has_host_ports() {
    in_every_way_of(Protocol::Udp, |scene| {
        scene.b_is_asked(Scene::first, CLIENT);
        let answer = long(scene, &B, &UPLINK, (TO_B.port, CLIENT)).fragments(1_448);
        let without = (&B, Direction::FromPod, DropReason::FragmentWithoutFirst);
        scene.drops(&B, &answer[1], without);
        // Of another pod it passes.
        let other = long(scene, &A, &UPLINK, (7, CLIENT)).fragments(1_448);
        let uplink = scene.uplink_of(&A);
        scene.sends(&A, &other[1], &[(uplink, other[1].clone().forwarded(uplink), None)]);
        // One that comes seconds after its first is of another datagram.
        let answered = long(scene, &NODE, &UPLINK, (TO_B.host_port, CLIENT)).fragments(1_448);
        goes_out(scene, &answer[0], &answered[0]);
        scene.wait(2);
        scene.drops(&B, &answer[1], without);
    });
}

#[test]
fn fragments_for_a_host_port_are_the_kernels() {
    in_every_way_of(Protocol::Udp, |scene| {
        for fragment in long(scene, &A, &NODE, (CLIENT, TO_B.host_port)).fragments(1_448) {
            scene.sends(&A, &fragment, &[(&NODE, fragment.clone().delivered(&NODE), None)]);
        }
        assert_eq!(scene.flows_of(&B), 0);
    });
}

#[test]
fn fragments_that_the_kernel_has_led_here_are_answered_through_it() {
    in_every_way_of(Protocol::Udp, |scene| {
        for fragment in long(scene, &NODE, &B, (CLIENT, TO_B.port)).src_of(&UPLINK).fragments(1_448)
        {
            scene.sends(&NODE, &fragment, &[(&B, fragment.clone().delivered(&B), None)]);
        }
        let answer = scene.middle(&B, &UPLINK, (TO_B.port, CLIENT));
        scene.between_pods(&B, &answer, &NODE, answer.clone().delivered(&NODE));
    });
}

/// The pod's address is in all of them, its port only in the first.
#[test]
fn a_datagram_that_the_pod_does_not_take_whole_is_fragmented_with_the_pods_address() {
    in_every_way_of(Protocol::Udp, |scene| {
        if scene.v6 {
            return; // no router fragments IPv6
        }
        let asked = long(scene, &A, &NODE, (CLIENT, TO_PLAIN.host_port));
        let sent = scene.as_pod_sends(&asked);
        let got = long(scene, &A, &PLAIN, (CLIENT, TO_PLAIN.port)).fragments(1_480);
        let got = got.into_iter().map(|got| (&PLAIN, got.forwarded(&PLAIN), None));
        let out: Vec<_> = got.collect();
        scene.sends(&A, &sent, &out);
        assert_eq!(out.len(), 3);
    });
}

#[test]
fn ports_of_fragmented_sctp_cannot_be_changed() {
    in_every_way_of(Protocol::Sctp, |scene| {
        scene.b_is_asked(Scene::first, CLIENT);
        let answer = long(scene, &B, &UPLINK, (TO_B.port, CLIENT)).fragments(1_448);
        let reason = DropReason::NatUntranslatable;
        scene.drops(&B, &answer[0], (&B, Direction::FromPod, reason));
    });
}

#[test]
fn datagrams_whose_fragments_come_in_turns_are_told_apart() {
    in_every_way_of(Protocol::Udp, |scene| {
        scene.b_is_asked(Scene::first, CLIENT);
        let of = |scene: &Scene, from, ports, id| {
            long(scene, from, &UPLINK, ports).id(id).fragments(1_448)
        };
        let answer = of(scene, &B, (TO_B.port, CLIENT), 1);
        let answered = of(scene, &NODE, (TO_B.host_port, CLIENT), 1);
        let other = of(scene, &B, (7, CLIENT), 2);
        for number in 0..3 {
            goes_out(scene, &answer[number], &answered[number]);
            goes_out(scene, &other[number], &other[number]);
        }
    });
}
