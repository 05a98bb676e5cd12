//! Where Viaduct may differ from Linux, and how exactly. A rule turns what Linux did with a frame
//! into what Viaduct has to do with it instead, so a rule that matches too much makes the
//! comparison fail as surely as one that is missing.

use std::net::IpAddr;

use super::facts::{Facts, Ip, protocol};
use super::outcome::{Arrival, IcmpError, Outcome};
use super::plan::{MTU, Place, Plan};
use super::station::Sending;

mod model;
mod refusal;

use model::{hop_undone, plain, reassembled};

/// A difference with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A source MAC that is neither the pod's nor a marker.
    SpoofedMac,
    /// A source MAC that looks like a marker and contradicts the packet.
    BadMarker,
    /// A VLAN tag with number 0.
    PriorityTag,
    /// IPv6 extension headers that cannot be followed.
    ExtensionHeaders,
    /// A link-local destination.
    LinkLocal,
    /// A destination that no host has.
    Reserved,
    /// A fragment that is empty or ends beyond the longest datagram.
    FragmentBounds,
    /// A transport header that is cut off.
    UpperTooShort,
    /// A UDP length that does not fit the packet.
    UdpLength,
    /// Neighbour discovery or MLD to somewhere else than the link.
    LinkControl,
    /// An ICMP redirect.
    Redirect,
    /// IPv4 options that cannot be walked.
    BadOptions,
    /// IPv4 options that Linux acts on.
    Options,
    /// A hop-by-hop header that Linux acts on.
    HopByHop,
    /// The oracle's hop to the node.
    NodeHop,
    /// A datagram that Linux fragments for a pod.
    Unfragmented,
    /// The reason why there is no pod.
    NobodyCode,
    /// The TTL in the quote of an ICMP error.
    QuotedHop,
    /// A transport checksum that looks unfinished.
    Completed,
    /// An ICMP error that the limit held back.
    LimitedError,
}

impl Rule {
    /// What differs, and why that is right.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Rule::SpoofedMac => "to be written",
            _ => "",
        }
    }
}

/// One frame, and how it was sent.
#[derive(Debug)]
pub struct Case<'a> {
    /// Who is where.
    pub plan: &'a Plan,
    /// How it left the pod.
    pub sending: Sending,
    /// The frame.
    pub facts: Facts<'a>,
}

/// What Viaduct has to do, given what Linux did, and the rules that made the difference.
#[must_use]
pub fn predict(case: &Case<'_>, linux: &Outcome) -> (Outcome, Vec<Rule>) {
    let mut rules = Vec::new();
    let Some(ip) = refusal::check(case).map_or_else(
        |rule| {
            rules.push(rule);
            None
        },
        |()| case.facts.ip,
    ) else {
        // A rule that changes nothing is none.
        rules.retain(|_| !linux.is_empty());
        return (if rules.is_empty() { linux.clone() } else { Outcome::new() }, rules);
    };
    let mut outcome = linux.clone();
    for rule in [options, hop_by_hop, node_hop, unfragmented, nobody_code, quoted_hop, completed] {
        if let Some((changed, name)) = rule(case, &ip, &outcome) {
            if changed != outcome {
                rules.push(name);
                outcome = changed;
            }
        }
    }
    outcome.sort();
    (outcome, rules)
}

type Changed = Option<(Outcome, Rule)>;

/// Whether the packet never reaches the kernel of Viaduct's node.
fn stays_with_worker(case: &Case<'_>, ip: &Ip<'_>) -> bool {
    case.plan.place_of(ip.destination) != Some(Place::Outside)
}

fn options(case: &Case<'_>, ip: &Ip<'_>, _: &Outcome) -> Changed {
    let acts = model::options_act(ip.options) && stays_with_worker(case, ip);
    acts.then(|| (plain(case, ip), Rule::Options))
}

fn hop_by_hop(case: &Case<'_>, ip: &Ip<'_>, _: &Outcome) -> Changed {
    let acts = ip.version == 6
        && ip.bytes[6] == protocol::HOP_BY_HOP
        && model::hop_by_hop_acts(&ip.bytes[40..])
        && stays_with_worker(case, ip);
    acts.then(|| (plain(case, ip), Rule::HopByHop))
}

fn node_hop(case: &Case<'_>, ip: &Ip<'_>, linux: &Outcome) -> Changed {
    if case.plan.place_of(ip.destination) != Some(Place::Node) {
        return None;
    }
    let time_exceeded = if ip.version == 4 { 11 } else { 3 };
    let changed = linux.iter().map(|arrival| match arrival {
        Arrival::Packet(Place::Node, frame) => Arrival::Packet(Place::Node, hop_undone(frame)),
        Arrival::Error(error) if (error.kind, error.code) == (time_exceeded, 0) => {
            return plain(case, ip).remove(0);
        }
        other => other.clone(),
    });
    let mut changed: Outcome = changed.collect();
    if linux.is_empty() && ip.hop_limit <= 1 {
        changed = plain(case, ip);
    }
    Some((changed, Rule::NodeHop))
}

fn unfragmented(case: &Case<'_>, ip: &Ip<'_>, linux: &Outcome) -> Changed {
    let place = case.plan.place_of(ip.destination)?;
    let to_pod = matches!(place, Place::PodA | Place::PodB);
    let expected = plain(case, ip);
    let whole = matches!(&expected[..], [Arrival::Packet(..)]);
    let is_ours = to_pod && ip.version == 4 && ip.bytes.len() > MTU && whole;
    (is_ours && reassembled(linux)? == ip.upper).then_some((expected, Rule::Unfragmented))
}

fn nobody_code(case: &Case<'_>, ip: &Ip<'_>, linux: &Outcome) -> Changed {
    if ip.version != 6 || case.plan.place_of(ip.destination).is_some() {
        return None;
    }
    let changed = linux.iter().cloned().map(|arrival| match arrival {
        Arrival::Error(IcmpError { place, kind: 1, code: 0, rest, quote, fault }) => {
            Arrival::Error(IcmpError { place, kind: 1, code: 3, rest, quote, fault })
        }
        other => other,
    });
    Some((changed.collect(), Rule::NobodyCode))
}

fn quoted_hop(_: &Case<'_>, ip: &Ip<'_>, linux: &Outcome) -> Changed {
    let changed = linux.iter().cloned().map(|arrival| match arrival {
        Arrival::Error(mut error) if ip.version == 6 && error.kind == 2 => {
            error.quote[7] = ip.hop_limit;
            Arrival::Error(error)
        }
        other => other,
    });
    Some((changed.collect(), Rule::QuotedHop))
}

fn completed(_: &Case<'_>, _: &Ip<'_>, _: &Outcome) -> Changed {
    None
}

/// Whether `ours` is what was predicted; ICMP errors may be missing where ours are limited.
#[must_use]
pub fn agree(ours: &Outcome, predicted: &Outcome, rules: &mut Vec<Rule>) -> bool {
    if ours == predicted {
        return true;
    }
    let is_packet = |arrival: &&Arrival| matches!(arrival, Arrival::Packet(..));
    let without: Outcome = predicted.iter().filter(is_packet).cloned().collect();
    let limited = *ours == without && without.len() + 1 == predicted.len();
    if limited {
        rules.push(Rule::LimitedError);
    }
    limited
}

/// The first octet of an IPv4 address.
fn first_octet(address: IpAddr) -> Option<u8> {
    match address {
        IpAddr::V4(address) => Some(address.octets()[0]),
        IpAddr::V6(_) => None,
    }
}
