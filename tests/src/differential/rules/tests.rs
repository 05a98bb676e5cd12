//! What the rules explain, and what they must not explain.

use super::*;
use crate::daemon::NODE_V4;
use crate::differential::facts;
use crate::differential::generate::barrier;
use crate::differential::outcome::IcmpError;
use crate::differential::plan::{Place, tests_plan};
use crate::differential::rules::model::{hop_done, hop_undone};

/// A valid UDP packet from pod A to `place`.
fn honest(plan: &Plan, place: Place) -> Vec<u8> {
    let to = if place == Place::Node { NODE_V4 } else { plan.pod_b.0 };
    let link = plan.link(Place::PodA);
    barrier([link.near, link.far], plan.pod_a.0, to, 1)
}

/// The frame as it arrives at `place`, one hop on.
fn forwarded(plan: &Plan, frame: &[u8], place: Place) -> Vec<u8> {
    let link = plan.link(place);
    hop_done(&[&link.far[..], &link.near, &frame[12..]].concat())
}

fn case<'a>(plan: &'a Plan, sending: Sending, frame: &'a [u8]) -> Case<'a> {
    Case { plan, sending, facts: facts::of(frame).expect("an Ethernet frame") }
}

fn error_about(frame: &[u8]) -> Arrival {
    let quote = frame[facts::ETHERNET..].to_vec();
    let (kind, code, rest) = (11, 0, 0);
    Arrival::Error(IcmpError { place: Place::PodA, kind, code, rest, quote, fault: None })
}

#[test]
fn what_no_rule_concerns_has_to_be_as_linux_did() {
    let plan = tests_plan();
    let frame = honest(&plan, Place::PodB);
    let case = case(&plan, Sending::Queued, &frame);
    let arrived = forwarded(&plan, &frame, Place::PodB);
    let linux = vec![Arrival::Packet(Place::PodB, arrived.clone())];
    let (predicted, mut rules) = predict(&case, &linux);
    assert_eq!((&predicted, &rules), (&linux, &vec![]));
    assert!(agree(&case, &linux, &predicted, &mut rules));

    let mut other = arrived;
    *other.last_mut().expect("a payload") ^= 1;
    for ours in [vec![], vec![Arrival::Packet(Place::PodB, other)], [&linux[..], &linux].concat()] {
        assert!(!agree(&case, &ours, &predicted, &mut rules), "{ours:?}");
    }
    assert_eq!(rules, []);
}

#[test]
fn a_forged_mac_is_refused_where_the_pod_passes_its_program_by() {
    let plan = tests_plan();
    let mut frame = honest(&plan, Place::PodB);
    frame[6..12].copy_from_slice(&[0x0a, 9, 9, 9, 9, 9]);
    let linux = vec![Arrival::Packet(Place::PodB, forwarded(&plan, &frame, Place::PodB))];
    let bypass = predict(&case(&plan, Sending::Bypass, &frame), &linux);
    assert_eq!(bypass, (vec![], vec![Rule::SpoofedMac]));
    let queued = predict(&case(&plan, Sending::Queued, &frame), &linux);
    assert_eq!(queued, (linux, vec![]));
}

#[test]
fn a_rule_that_changes_nothing_is_not_used() {
    let plan = tests_plan();
    let mut frame = honest(&plan, Place::PodB);
    frame[6..12].copy_from_slice(&[0x0a, 9, 9, 9, 9, 9]);
    let nothing = predict(&case(&plan, Sending::Bypass, &frame), &vec![]);
    assert_eq!(nothing, (vec![], vec![]));
}

#[test]
fn the_hop_to_the_node_is_the_oracles_alone() {
    let plan = tests_plan();
    let frame = honest(&plan, Place::Node);
    let case = case(&plan, Sending::Queued, &frame);
    let linux = forwarded(&plan, &frame, Place::Node);
    let (predicted, rules) = predict(&case, &vec![Arrival::Packet(Place::Node, linux.clone())]);
    assert_eq!(predicted, [Arrival::Packet(Place::Node, hop_undone(&linux))]);
    assert_eq!(rules, [Rule::NodeHop]);
}

#[test]
fn an_error_may_be_missing_and_a_packet_may_not() {
    let plan = tests_plan();
    let frame = honest(&plan, Place::PodB);
    let case = case(&plan, Sending::Queued, &frame);
    let mut rules = Vec::new();
    assert!(agree(&case, &vec![], &vec![error_about(&frame)], &mut rules));
    assert_eq!(rules, [Rule::LimitedError]);

    let packet = Arrival::Packet(Place::PodB, frame.clone());
    assert!(!agree(&case, &vec![], &vec![packet], &mut rules));
    assert!(!agree(&case, &vec![error_about(&frame)], &vec![], &mut rules));
}
