//! What is said of a packet that never arrives, beside what every case and scene of this program
//! checks: that it is what happens when the packet does.

use std::net::{IpAddr, SocketAddr};

use dataplane::counters::Counter;
use dataplane::drop::DropReason;
use dataplane::explain::{Content, Outcome, Probe, Stage};
use dataplane::port::PortId;
use dataplane::shaper::{Limit, Limits};

use crate::harness::packet::{ACK, SYN, packet};
use crate::harness::{
    A, B, C, Direction, ENDS, End, FAR_V4, HIDDEN, NOBODY_V4, NODE, Node, Setup, TO_B, UPLINK,
};

fn node(workers: usize) -> Node {
    Node::new(Setup { workers, host_ports: true, ..Setup::default() })
}

/// A UDP datagram of A's, to be changed.
fn probe(dst: IpAddr, port: u16) -> Probe {
    Probe {
        src_mac: A.mac,
        dst_mac: A.gateway_mac,
        src: SocketAddr::new(if dst.is_ipv4() { A.v4.into() } else { A.v6.into() }, 5000),
        dst: SocketAddr::new(dst, port),
        content: Content::Udp,
        hop_limit: 64,
        ip_bytes: 200,
        dont_fragment: false,
    }
}

fn explain(node: &Node, from: &End, frame: &[u8]) -> Outcome {
    node.explain(from.id, frame).expect("no flow was retired")
}

/// The reason, the stage that it belongs to, and the way out by which it was dropped.
fn refusal(outcome: &Outcome) -> Option<(DropReason, Stage, Option<PortId>)> {
    assert!(outcome.dropped.is_none() || outcome.sent.is_empty(), "{outcome:?}");
    outcome.dropped.map(|dropped| {
        let leaving = dropped.is_leaving.then_some(dropped.port);
        (dropped.reason, Stage::of(dropped.reason), leaving)
    })
}

#[test]
fn every_stage_refuses_and_the_neighbour_of_what_it_refuses_goes_on() {
    let good = probe(B.v4.into(), 53);
    let unmapped = Content::Tcp { flags: ACK };
    let cases = [
        ("spoofed", Probe { src: SocketAddr::new(C.v4.into(), 5000), ..good }, Stage::Source),
        ("another MAC", Probe { src_mac: C.mac, ..good }, Stage::Source),
        ("another gateway", Probe { dst_mac: C.mac, ..good }, Stage::Source),
        ("nobody", probe(NOBODY_V4.parse().unwrap(), 53), Stage::Route),
        ("multicast", probe([224, 0, 0, 9].into(), 53), Stage::Route),
        ("no hop left", Probe { hop_limit: 1, ..good }, Stage::HopLimit),
        (
            "too long",
            Probe { ip_bytes: 1400, dont_fragment: true, ..probe(C.v4.into(), 53) },
            Stage::Size,
        ),
        (
            "of no flow",
            Probe {
                src_mac: B.mac,
                dst_mac: B.gateway_mac,
                src: SocketAddr::new(B.v4.into(), TO_B.port),
                content: unmapped,
                ..probe(A.v4.into(), 5000)
            },
            Stage::Flow,
        ),
    ];
    for workers in [1, 2] {
        let node = node(workers);
        for (name, probe, stage) in cases {
            let from = if probe.src.ip() == IpAddr::V4(B.v4) { &B } else { &A };
            let outcome = explain(&node, from, &probe.frame());
            let refused = refusal(&outcome).unwrap_or_else(|| panic!("{name}: {outcome:?}"));
            assert_eq!(refused.1, stage, "{name}: {outcome:?}");
        }
        let neighbours = [
            good,
            Probe { hop_limit: 2, ..good },
            Probe { ip_bytes: 1400, ..probe(C.v4.into(), 53) },
            Probe { ip_bytes: 1300, dont_fragment: true, ..probe(C.v4.into(), 53) },
            Probe { content: Content::Echo, ..good },
            Probe { content: Content::Sctp { chunk: 1 }, ..probe(B.v6.into(), 9) },
            Probe { content: Content::Tcp { flags: SYN }, ..probe(B.v6.into(), 9) },
            probe(FAR_V4.parse().unwrap(), 53),
        ];
        for probe in neighbours {
            let outcome = explain(&node, &A, &probe.frame());
            assert_eq!(refusal(&outcome), None, "{probe:?}: {outcome:?}");
            assert!(!outcome.sent.is_empty(), "{probe:?}");
        }
    }
}

#[test]
fn the_longest_packet_is_fragmented_on_its_way() {
    for workers in [1, 2] {
        let long = Probe { ip_bytes: u16::MAX, ..probe(FAR_V4.parse().unwrap(), 53) };
        let node = node(workers);
        let by_uplink = Probe { dst: SocketAddr::new(UPLINK.v4.into(), 53), ..long };
        let outcome = explain(&node, &A, &by_uplink.frame());
        assert_eq!(refusal(&outcome), None, "{:?}", outcome.dropped);
        assert_eq!(outcome.sent.len(), usize::from(u16::MAX).div_ceil(1480), "{workers} workers");
        assert!(outcome.sent.iter().all(|(_, bytes)| bytes.len() <= 14 + 1500));
    }
}

#[test]
fn what_waits_for_a_limit_arrives() {
    for workers in [1, 2] {
        let mut node = node(workers);
        let limit = Limit { bits_per_s: 8_000_000, burst_bytes: 3_000, queue_ns: 25_000_000 };
        node.limit(C.id, Limits { to_pod: Some(limit), ..Limits::default() });
        // The burst is through with the third fragment, and the others wait.
        let outcome =
            explain(&node, &A, &Probe { ip_bytes: 8_000, ..probe(C.v4.into(), 53) }.frame());
        assert_eq!(refusal(&outcome), None, "{:?}", outcome.dropped);
        let sent: usize = outcome.sent.iter().map(|(_, bytes)| bytes.len() - 14 - 20).sum();
        assert_eq!(sent, 8_000 - 20, "{workers} workers: {} fragments", outcome.sent.len());
    }
}

#[test]
fn a_host_port_is_explained_there_and_back_with_the_flow_that_is_there() {
    for workers in [1, 2] {
        let mut node = node(workers);
        let asked = packet().from(&A).to(&NODE).family(false).tcp(5000, HIDDEN.host_port);
        let asked = asked.flags(SYN).payload(0).build();
        let before = explain(&node, &A, &asked);
        let opened = before.flow.expect("it opens a flow");
        assert!(opened.is_new && before.sent[0].0 == B.id, "{before:?}");

        let answer = packet().from(&B).to(&NODE).family(false).tcp(HIDDEN.port, 5000);
        let answer = answer.flags(SYN | ACK).payload(0).build();
        let unknown = explain(&node, &B, &answer);
        assert_eq!(refusal(&unknown).map(|refused| refused.0), Some(DropReason::NatNoFlow));

        node.inject(A.id, asked.clone());
        node.run();
        let again = explain(&node, &A, &asked);
        assert!(again.flow.is_some_and(|followed| !followed.is_new), "{again:?}");
        let back = explain(&node, &B, &answer);
        assert_eq!(back.sent.len(), 1, "{back:?}");
        assert_eq!(back.sent[0].0, A.id, "from the host port to who asked it");
        assert!(back.flow.is_some_and(|followed| !followed.is_new), "{back:?}");
        assert_eq!(node.sent(B.id).len(), 1, "the one that arrived");
    }
}

#[test]
fn nothing_that_lives_is_changed() {
    for workers in [1, 2] {
        let mut node = node(workers);
        let asked = packet().from(&A).to(&NODE).family(false).tcp(5000, TO_B.host_port);
        node.inject(A.id, asked.clone().flags(SYN).payload(0).build());
        node.run();
        let counted = |node: &Node| {
            let ports = ENDS.iter().flat_map(|end| {
                [Direction::FromPod, Direction::ToPod].map(|direction| {
                    let counters = node.counters(end.id, direction);
                    let [packets, bytes] = [&counters.packets, &counters.bytes].map(Counter::get);
                    (packets, bytes, counters.dropped())
                })
            });
            let flows = (0..workers).map(|worker| {
                let counters = node.flows(worker);
                (counters.flows.get(), counters.opened.get(), counters.evicted.get())
            });
            (ports.collect::<Vec<_>>(), flows.collect::<Vec<_>>(), node.all_flows())
        };
        let before = counted(&node);
        // Of the flow that is there, one that ends it, one that opens another, and one that fails.
        for frame in [
            asked.clone().flags(ACK).payload(10).build(),
            asked.flags(crate::harness::packet::RST).payload(0).build(),
            packet().from(&A).to(&NODE).family(false).udp(1, TO_B.host_port).payload(1).build(),
            probe(NOBODY_V4.parse().unwrap(), 1).frame(),
        ] {
            let outcome = explain(&node, &A, &frame);
            assert!(!outcome.sent.is_empty() || outcome.answer.is_some(), "{outcome:?}");
        }
        assert_eq!(counted(&node), before, "{workers} workers");
        node.assert_laws();
    }
}

#[test]
fn a_sender_that_is_told_of_a_refusal_is_told_here_too() {
    let node = node(2);
    let told = |probe: Probe| explain(&node, &A, &probe.frame()).answer;
    let good = probe(B.v4.into(), 53);
    // ICMP type and code of what A gets.
    let kinds = |answer: Option<Vec<u8>>| answer.map(|bytes| (bytes[34], bytes[35]));
    assert_eq!(kinds(told(Probe { hop_limit: 1, ..good })), Some((11, 0)));
    assert_eq!(kinds(told(probe(NOBODY_V4.parse().unwrap(), 53))), Some((3, 1)));
    let long = Probe { ip_bytes: 1400, dont_fragment: true, ..probe(C.v4.into(), 53) };
    assert_eq!(kinds(told(long)), Some((3, 4)));
    assert_eq!(told(Probe { src: SocketAddr::new(C.v4.into(), 1), ..good }), None);
    assert_eq!(told(good), None);
}
