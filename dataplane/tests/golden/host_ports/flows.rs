//! The life of flows, as orders of control, time and lack of room decide it.

use std::net::IpAddr;
use std::sync::Arc;

use dataplane::conntrack::{Endpoint, Transport};
use dataplane::drop::DropReason;
use dataplane::host_ports::{HostAddress, HostPort, Masquerade, Target};

use super::{CLIENT, Protocol, Scene, in_every_way, in_every_way_of};
use crate::harness::packet::Packet;
use crate::harness::{A, B, C, Direction, End, NODE, PLAIN, TO_B, TO_PLAIN, UPLINK};

/// The host port [`TO_B`] at this address.
fn host_port(scene: &Scene, address: HostAddress) -> HostPort {
    let transport = match scene.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
    };
    HostPort { transport, address, port: TO_B.host_port }
}

/// Any address of this family.
fn any(v6: bool) -> HostAddress {
    if v6 { HostAddress::AnyV6 } else { HostAddress::AnyV4 }
}

/// This port of a pod.
fn target(pod: &End, port: u16, v6: bool) -> Target {
    let serving = Endpoint { address: address(pod, v6), port };
    Target { pod: pod.id, serving, masquerade: Masquerade::Itself }
}

fn address(end: &End, v6: bool) -> IpAddr {
    if v6 { end.v6.into() } else { end.v4.into() }
}

#[test]
fn flows_of_a_pod_that_is_gone_are_gone_at_once() {
    in_every_way(|scene| {
        scene.b_is_asked(Scene::first, CLIENT);
        let asked = scene.first(&UPLINK, &NODE, (CLIENT, TO_PLAIN.host_port));
        let got = scene.first(&UPLINK, &PLAIN, (CLIENT, TO_PLAIN.port)).forwarded(&PLAIN);
        scene.comes_in(&asked, &PLAIN, got);
        let flows = scene.node.flows(0).flows.get();
        scene.node.retire_flows(B.id);
        scene.node.run();
        let more = scene.middle(&UPLINK, &NODE, (CLIENT, TO_B.host_port));
        scene.drops(&UPLINK, &more, (&B, Direction::ToPod, DropReason::PortDown));
        let others = if scene.workers == 2 { flows } else { flows - 1 };
        assert_eq!(scene.node.flows(0).flows.get(), others, "PLAIN's go on");
    });
}

#[test]
fn flows_go_on_when_the_port_of_the_same_pod_is_built_again() {
    in_every_way(|scene| {
        scene.b_is_asked(Scene::first, CLIENT);
        scene.node.remove_port(B.id);
        scene.node.run();
        scene.node.reclaim_port(B.id);
        scene.node.run();
        scene.node.add_port(B.id);
        scene.node.run();
        scene.b_answers(CLIENT);
    });
}

#[test]
fn flows_of_a_host_port_that_leads_elsewhere_are_forgotten() {
    for forgets_one in [false, true] {
        in_every_way(|scene| {
            scene.b_is_asked(Scene::first, CLIENT);
            let one = HostAddress::One(address(&NODE, scene.v6));
            let forgotten = host_port(scene, if forgets_one { one } else { any(scene.v6) });
            // It leads to another pod from now on.
            let mut host_ports = crate::harness::host_ports();
            host_ports.insert(host_port(scene, one), target(&PLAIN, 99, scene.v6));
            scene.node.publish(|tables| tables.host_ports = Arc::new(host_ports));
            let asked = scene.first(&UPLINK, &NODE, (CLIENT, TO_B.host_port));
            if scene.workers == 1 {
                let no_flow = (&PLAIN, Direction::ToPod, DropReason::NatNoFlow);
                scene.drops(&UPLINK, &asked, no_flow);
            }
            scene.node.forget_flows(&[forgotten]);
            scene.node.run();
            assert_eq!(scene.flows_of(&B), 0, "{}", scene.name);
            let got = scene.first(&UPLINK, &PLAIN, (CLIENT, 99)).forwarded(&PLAIN);
            scene.comes_in(&asked, &PLAIN, got);
        });
    }
}

#[test]
fn flows_of_all_other_host_ports_stay() {
    in_every_way(|scene| {
        scene.b_is_asked(Scene::first, CLIENT);
        let own = host_port(scene, any(scene.v6));
        let transport = match own.transport {
            Transport::Tcp => Transport::Udp,
            _ => Transport::Tcp,
        };
        let others = [
            HostPort { port: own.port + 1, ..own },
            HostPort { transport, ..own },
            host_port(scene, any(!scene.v6)),
            host_port(scene, HostAddress::One(address(&A, scene.v6))),
        ];
        scene.node.forget_flows(&others);
        scene.node.run();
        scene.b_answers(CLIENT);
    });
}

#[test]
fn a_host_port_that_is_taken_away_leads_nowhere_new() {
    in_every_way(|scene| {
        scene.b_is_asked(Scene::first, CLIENT);
        scene.node.publish(|tables| tables.host_ports = Default::default());
        let other = scene.first(&A, &NODE, (CLIENT, TO_B.host_port));
        scene.sends(&A, &other, &[(&NODE, other.clone().delivered(&NODE), None)]);
    });
}

#[test]
fn a_flow_is_forgotten_when_nobody_speaks_and_not_before() {
    in_every_way_of(Protocol::Udp, |scene| {
        scene.b_is_asked(Scene::first, CLIENT);
        scene.b_answers(CLIENT);
        scene.b_is_asked(Scene::first, CLIENT + 1);
        assert_eq!(scene.flows_of(&B), 2);
        scene.wait(62);
        assert_eq!(scene.flows_of(&B), 1, "of the one without an answer nothing is left");
        scene.b_answers(CLIENT);
        scene.wait(299);
        assert_eq!(scene.flows_of(&B), 1);
        scene.wait(3);
        assert_eq!(scene.flows_of(&B), 0);
    });
}

#[test]
fn a_busy_worker_forgets_as_well() {
    in_every_way_of(Protocol::Udp, |scene| {
        scene.b_is_asked(Scene::first, CLIENT);
        let home = scene.home_of(&B);
        let noise = scene.first(&UPLINK, &B, (CLIENT, 7)).build();
        scene.node.advance(62_000_000_000);
        for _ in 0..32 {
            // By an uplink whose worker is the pod's.
            let uplink = scene.uplink_of(&B);
            scene.node.inject(uplink.id, noise.clone());
            assert_eq!(scene.node.pass(home), 1);
        }
        assert_eq!(scene.node.flows(home).expired.get(), 1);
        scene.node.run();
    });
}

#[test]
fn a_flood_of_openings_leaves_what_is_established_alone() {
    in_every_way(|scene| {
        // Both ends have spoken, as in a connection that is older than the worker.
        scene.b_is_asked(Scene::middle, CLIENT);
        scene.b_answers(CLIENT);
        for client in 0..100 {
            scene.b_is_asked(Scene::first, 10_000 + client);
        }
        let home = scene.home_of(&B);
        assert_eq!(scene.node.flows(home).flows.get(), 48, "{}", scene.name);
        assert!(scene.node.flows(home).evicted.get() >= 52);
        scene.b_answers(CLIENT);
    });
}

/// The worker of the pod has newer tables than that of the client.
#[test]
fn a_packet_that_was_led_by_older_tables_opens_nothing_at_a_pod_that_is_led_to_no_more() {
    in_every_way(|scene| {
        if scene.workers == 1 {
            return;
        }
        let asked = scene.first(&A, &NODE, (CLIENT, TO_B.host_port));
        scene.node.inject(A.id, asked.build());
        assert_eq!(scene.node.pass(0), 1);
        let mut host_ports = crate::harness::host_ports();
        let one = host_port(scene, HostAddress::One(address(&NODE, scene.v6)));
        host_ports.insert(one, target(&C, 99, scene.v6));
        scene.node.publish(|tables| tables.host_ports = Arc::new(host_ports));
        scene.node.run();
        scene.leaves(&[]);
        assert_eq!(scene.node.drops(B.id, Direction::ToPod, DropReason::NatNoFlow), 1);
        assert_eq!(scene.flows_of(&B), 0);
    });
}

/// A packet both ways, then one of the client every 200 s: an answered flow lives for 300.
fn lives_by_its_client(scene: &mut Scene, from: &End, asked: &Packet, got: &Packet) {
    for _ in 0..3 {
        scene.sends(from, asked, &[(&B, got.clone(), None)]);
        scene.wait(200);
        assert_eq!(scene.flows_of(&B), 1, "{}", scene.name);
    }
    scene.wait(102);
    assert_eq!(scene.flows_of(&B), 0, "{}", scene.name);
}

#[test]
fn a_flow_lives_as_long_as_its_client_speaks_by_whichever_way() {
    in_every_way_of(Protocol::Udp, |scene| {
        let asked = scene.first(&UPLINK, &NODE, (CLIENT, TO_B.host_port));
        let got = scene.first(&UPLINK, &B, (CLIENT, TO_B.port)).forwarded(&B);
        scene.b_is_asked(Scene::first, CLIENT);
        scene.b_answers(CLIENT);
        lives_by_its_client(scene, &UPLINK, &asked, &got);
        // To the pod's own address.
        let direct = scene.first(&UPLINK, &B, (CLIENT, TO_B.port));
        scene.comes_in(&direct, &B, direct.clone().forwarded(&B));
        let answer = scene.middle(&B, &UPLINK, (TO_B.port, CLIENT));
        let uplink = scene.uplink_of(&B);
        scene.goes_out(&B, &answer, uplink, answer.clone().forwarded(uplink));
        lives_by_its_client(scene, &UPLINK, &direct, &direct.clone().forwarded(&B));
        // As the kernel translates it.
        scene.b_is_asked(Scene::first, CLIENT);
        scene.b_answers(CLIENT);
        let by_kernel = scene.first(&NODE, &B, (CLIENT, TO_B.port)).src_of(&UPLINK);
        lives_by_its_client(scene, &NODE, &by_kernel, &by_kernel.clone().delivered(&B));
    });
}
