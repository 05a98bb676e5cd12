//! Where Viaduct may differ from Linux, and how exactly. A rule turns what Linux did with a frame
//! into what Viaduct has to do with it instead, so a rule that matches too much makes the
//! comparison fail as surely as one that is missing.

use super::facts::{Chain, Facts, Fragment, Ip, protocol};
use super::outcome::{Arrival, Outcome};
use super::plan::{Place, Plan};
use super::station::Sending;

/// A difference with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    SpoofedMac,
    PriorityTag,
    ExtensionHeaders,
    LinkLocal,
    Reserved,
    FragmentBounds,
    UpperTooShort,
    UdpLength,
    LinkControl,
    Redirect,
    NodeHop,
    LimitedError,
}

/// One frame, how it was sent, and where.
pub struct Case<'a> {
    pub plan: &'a Plan,
    pub sending: Sending,
    pub facts: Facts<'a>,
}

/// What Viaduct has to do, given what Linux did, and the rules that made the difference.
pub fn predict(case: &Case<'_>, linux: &Outcome) -> (Outcome, Vec<Rule>) {
    if let Some(rule) = refusal(case) {
        let rules = if linux.is_empty() { Vec::new() } else { vec![rule] };
        return (Outcome::new(), rules);
    }
    let mut rules = Vec::new();
    let mut outcome = linux.clone();
    if let Some(ip) = &case.facts.ip {
        if case.plan.place_of(ip.destination) == Some(Place::Node) {
            for arrival in &mut outcome {
                if let Arrival::Packet(Place::Node, frame) = arrival {
                    undo_hop(frame);
                    rules.push(Rule::NodeHop);
                }
                if matches!(arrival, Arrival::Error(error) if error.kind == if ip.version == 4 { 11 } else { 3 }) {
                    *arrival = Arrival::Packet(Place::Node, delivered(case, ip, Place::Node));
                    rules.push(Rule::NodeHop);
                }
            }
        }
    }
    (outcome, rules)
}

fn delivered(case: &Case<'_>, ip: &Ip<'_>, place: Place) -> Vec<u8> {
    let link = case.plan.link(place);
    [&link.far[..], &link.near, &case.facts.ether_type.to_be_bytes(), ip.bytes].concat()
}

fn undo_hop(frame: &mut [u8]) {
    if frame[14] >> 4 == 6 {
        frame[21] += 1;
        return;
    }
    frame[22] += 1;
    let header = 14 + usize::from(frame[14] & 15) * 4;
    frame[24..26].fill(0);
    let sum = !super::facts::ones_complement(&frame[14..header]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// The rule by which Viaduct drops a frame that a Linux router may forward.
fn refusal(case: &Case<'_>) -> Option<Rule> {
    let facts = &case.facts;
    if facts.ether_type == 0x8100 {
        return Some(Rule::PriorityTag);
    }
    let ip = facts.ip?;
    let link = case.plan.link(Place::PodA);
    if case.sending == Sending::Bypass && facts.from != link.far && facts.from[0] != 2 {
        return Some(Rule::SpoofedMac);
    }
    if ip.chain != Chain::Sound {
        return Some(Rule::ExtensionHeaders);
    }
    match ip.destination {
        std::net::IpAddr::V4(to) if to.is_link_local() => return Some(Rule::LinkLocal),
        std::net::IpAddr::V6(to) if to.is_unicast_link_local() => return Some(Rule::LinkLocal),
        std::net::IpAddr::V4(to) if to.octets()[0] >= 240 => return Some(Rule::Reserved),
        std::net::IpAddr::V6(to) if to.to_ipv4_mapped().is_some() => return Some(Rule::Reserved),
        _ => {}
    }
    if ip.fragment != Fragment::Whole
        && (ip.upper.is_empty() || ip.fragment_offset + ip.upper.len() > 0xffff)
    {
        return Some(Rule::FragmentBounds);
    }
    if ip.fragment != Fragment::Later {
        let least = match ip.protocol {
            protocol::TCP => 20,
            protocol::UDP | protocol::ICMP | protocol::ICMPV6 => 8,
            protocol::SCTP => 12,
            _ => 0,
        };
        if ip.upper.len() < least {
            return Some(Rule::UpperTooShort);
        }
    }
    if ip.protocol == protocol::UDP && ip.fragment == Fragment::Whole {
        let len = usize::from(super::facts::word(ip.upper, 4)?);
        if len < 8 || len > ip.upper.len() {
            return Some(Rule::UdpLength);
        }
    }
    match (ip.version, ip.icmp_type()) {
        (6, Some(130..=137 | 143)) => Some(Rule::LinkControl),
        (4, Some(5)) => Some(Rule::Redirect),
        _ => None,
    }
}

/// Whether `ours` is what was predicted; ICMP errors may be missing where ours are limited.
pub fn agree(ours: &Outcome, predicted: &Outcome, rules: &mut Vec<Rule>) -> bool {
    if ours == predicted {
        return true;
    }
    let without: Outcome =
        predicted.iter().filter(|a| matches!(a, Arrival::Packet(..))).cloned().collect();
    if *ours == without && without.len() + 1 == predicted.len() {
        rules.push(Rule::LimitedError);
        return true;
    }
    false
}
