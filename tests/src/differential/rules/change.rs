//! Frames that both forward or refuse, in different ways.

use super::model::{complete, hop_by_hop_acts, hop_undone, options_act, plain, reassembled};
use super::refusal::marked_sum;
use super::{Case, Change, Rule};
use crate::differential::facts::{ETHERNET, Ip, protocol};
use crate::differential::outcome::{Arrival, Outcome};
use crate::differential::plan::{MTU, Place};

/// The changes in their order: first what makes a packet one that options do not concern.
pub(super) const CHANGES: [(Rule, Change); 10] = [
    (Rule::SpoofedError, spoofed_error),
    (Rule::StrayError, stray_error),
    (Rule::Options, options),
    (Rule::HopByHop, hop_by_hop),
    (Rule::SilentQuery, silent_query),
    (Rule::SilentUnreachable, silent_unreachable),
    (Rule::NodeHop, node_hop),
    (Rule::Unfragmented, unfragmented),
    (Rule::NobodyCode, nobody_code),
    (Rule::Completed, completed),
];

/// Whether a worker alone decides: the packet is honestly addressed, and its way does not lead
/// through the kernel of Viaduct's node.
pub(super) fn worker_decides(case: &Case<'_>, ip: &Ip<'_>) -> bool {
    let Case { plan, facts, .. } = case;
    plan.is_sender(ip.source)
        && facts.to == plan.link(Place::PodA).near
        && plan.place_of(ip.destination) != Some(Place::Outside)
}

fn spoofed_error(case: &Case<'_>, ip: &Ip<'_>, linux: &Outcome) -> Option<Outcome> {
    let only_error = matches!(linux[..], [Arrival::Error(_)]);
    (only_error && !case.plan.is_sender(ip.source)).then(Outcome::new)
}

fn stray_error(case: &Case<'_>, ip: &Ip<'_>, linux: &Outcome) -> Option<Outcome> {
    let stray = case.facts.to != case.plan.link(Place::PodA).near;
    let is_stray = stray || ip.destination.is_multicast();
    match &linux[..] {
        [Arrival::Error(error)] if is_stray && error.version() == 6 && error.kind == 4 => {
            Some(Outcome::new())
        }
        _ => None,
    }
}

fn options(case: &Case<'_>, ip: &Ip<'_>, _: &Outcome) -> Option<Outcome> {
    let acts = options_act(ip.options) && worker_decides(case, ip);
    acts.then(|| plain(case, ip))
}

fn hop_by_hop(case: &Case<'_>, ip: &Ip<'_>, _: &Outcome) -> Option<Outcome> {
    let acts = ip.version == 6
        && ip.bytes[6] == protocol::HOP_BY_HOP
        && hop_by_hop_acts(&ip.bytes[40..])
        && worker_decides(case, ip);
    acts.then(|| plain(case, ip))
}

fn silent_query(case: &Case<'_>, ip: &Ip<'_>, linux: &Outcome) -> Option<Outcome> {
    let extended_echo = ip.version == 4 && matches!(ip.icmp_type(), Some(42 | 43));
    let silent = linux.is_empty() && worker_decides(case, ip);
    (silent && extended_echo && ip.fragment_offset == 0).then(|| plain(case, ip))
}

fn silent_unreachable(case: &Case<'_>, ip: &Ip<'_>, linux: &Outcome) -> Option<Outcome> {
    let nobody = case.plan.place_of(ip.destination).is_none();
    let silent = linux.is_empty() && worker_decides(case, ip);
    (silent && ip.version == 4 && nobody).then(|| plain(case, ip))
}

fn node_hop(case: &Case<'_>, ip: &Ip<'_>, linux: &Outcome) -> Option<Outcome> {
    if case.plan.place_of(ip.destination) != Some(Place::Node) {
        return None;
    }
    let time_exceeded = if ip.version == 4 { (11, 0) } else { (3, 0) };
    match &linux[..] {
        [Arrival::Packet(Place::Node, frame)] if frame[..] != plain_frame(case, ip)? => {
            Some(vec![Arrival::Packet(Place::Node, hop_undone(frame))])
        }
        [Arrival::Error(error)] if (error.kind, error.code) == time_exceeded => {
            Some(plain(case, ip))
        }
        // Of a packet about which no error may be sent.
        [] if ip.hop_limit <= 1 && worker_decides(case, ip) => Some(plain(case, ip)),
        _ => None,
    }
}

/// The one frame of a packet that nothing is wrong with.
fn plain_frame(case: &Case<'_>, ip: &Ip<'_>) -> Option<Vec<u8>> {
    match plain(case, ip).pop() {
        Some(Arrival::Packet(_, frame)) => Some(frame),
        _ => None,
    }
}

fn unfragmented(case: &Case<'_>, ip: &Ip<'_>, linux: &Outcome) -> Option<Outcome> {
    let to_pod = matches!(case.plan.place_of(ip.destination)?, Place::PodA | Place::PodB);
    if !to_pod || ip.version != 4 || ip.bytes.len() <= MTU {
        return None;
    }
    let frame = plain_frame(case, ip)?;
    let place = case.plan.place_of(ip.destination)?;
    (reassembled(linux)? == ip.upper).then(|| vec![Arrival::Packet(place, frame)])
}

fn nobody_code(case: &Case<'_>, ip: &Ip<'_>, linux: &Outcome) -> Option<Outcome> {
    let nobody = ip.version == 6 && case.plan.place_of(ip.destination).is_none();
    match &linux[..] {
        [Arrival::Error(error)] if nobody && (error.kind, error.code) == (1, 0) => {
            let mut error = error.clone();
            error.code = 3;
            Some(vec![Arrival::Error(error)])
        }
        _ => None,
    }
}

fn completed(case: &Case<'_>, ip: &Ip<'_>, linux: &Outcome) -> Option<Outcome> {
    let (start, field) = marked_sum(case, ip)?;
    let offloads = case.plan.offloads;
    match &linux[..] {
        // Left to the device of the pod or node, which nobody asks to.
        [Arrival::Packet(Place::PodA | Place::PodB | Place::Node, _)] if offloads => None,
        [Arrival::Packet(place, frame)] => {
            Some(vec![Arrival::Packet(*place, complete(frame, start, field, offloads))])
        }
        // The node's kernel quotes what it got from the worker.
        [Arrival::Error(error)] if !offloads && !worker_decides(case, ip) => {
            let frame = &case.facts.frame[..ETHERNET + ip.bytes.len()];
            let frame = complete(frame, start, field, false);
            let mut error = error.clone();
            let quoted = error.quote.iter_mut().zip(&frame[ETHERNET..]);
            for (quoted, byte) in quoted.skip(field - ETHERNET).take(2) {
                *quoted = *byte;
            }
            Some(vec![Arrival::Error(error)])
        }
        _ => None,
    }
}
