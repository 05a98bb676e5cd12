//! Where Viaduct may differ from Linux, and how exactly. A rule turns what Linux did with a frame
//! into what Viaduct has to do with it instead, so a rule that matches too much makes the
//! comparison fail as surely as one that is missing.

use super::facts::{Facts, Ip};
use super::outcome::{Arrival, Outcome};
use super::plan::Plan;
use super::station::Sending;

mod change;
mod model;
mod refusal;
#[cfg(test)]
mod tests;

/// A difference with a name. First those by which Viaduct drops what Linux may forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "`Rule::sentence` says what each is")]
pub enum Rule {
    SpoofedMac,
    BadMarker,
    PriorityTag,
    ExtensionHeaders,
    LinkLocal,
    Reserved,
    FragmentBounds,
    UpperTooShort,
    UdpLength,
    LinkControl,
    Redirect,
    BadOptions,
    SpoofedError,
    StrayError,
    Options,
    HopByHop,
    SilentQuery,
    SilentUnreachable,
    NodeHop,
    Unfragmented,
    NobodyCode,
    Completed,
    LimitedError,
}

impl Rule {
    /// What differs, and why that is right.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Rule::SpoofedMac => {
                "Linux looks at no source MAC; a pod may only use its own, or a marker"
            }
            Rule::BadMarker => "Linux knows no markers; one that contradicts its packet is dropped",
            Rule::PriorityTag => {
                "Linux strips a VLAN tag with number 0 (IEEE 802.1Q priority tag); pods' links \
                 have no VLANs, so tagged frames are of an unknown EtherType"
            }
            Rule::ExtensionHeaders => {
                "Linux forwards without following the chain (RFC 8200 §4); Viaduct has to find \
                 the ports, so it drops cut-off chains, long ones (RFC 8504 §5.3), and \
                 routing type 0 (RFC 5095 §3)"
            }
            Rule::LinkLocal => {
                "Linux forwards to link-local addresses by any route; RFC 3927 §7 and RFC 4291 \
                 §2.5.6 forbid it"
            }
            Rule::Reserved => {
                "Linux forwards to 0/8, 240/4, :: and IPv4-mapped addresses by any route; RFC \
                 1812 §5.3.7, RFC 6890 §2.2 and RFC 4291 §2.5.2 forbid it"
            }
            Rule::FragmentBounds => {
                "Linux forwards fragments that are empty or end beyond the longest datagram, which \
                 no receiver can use (RFC 791 §3.2, RFC 8200 §4.5)"
            }
            Rule::UpperTooShort => {
                "Linux forwards cut-off transport headers; Viaduct needs their ports (RFC 1858 \
                 §3, RFC 7112 §5)"
            }
            Rule::UdpLength => {
                "Linux forwards UDP whose length does not fit the packet (RFC 768); Viaduct has to \
                 know where its payload ends"
            }
            Rule::LinkControl => {
                "Linux routes neighbour discovery and MLD to unicast addresses; receivers drop it \
                 as its hop limit is no longer right (RFC 4861 §7.1, RFC 3810 §5)"
            }
            Rule::Redirect => {
                "Linux forwards ICMP redirects; these concern the link they are sent on (RFC 1122 \
                 §3.2.2.2)"
            }
            Rule::BadOptions => {
                "options that cannot be walked: Linux answers parameter problem, which RFC 1812 \
                 §4.3.3.5 asks for; Viaduct drops silently, as it does with all malformed headers"
            }
            Rule::SpoofedError => {
                "Linux looks at options and finds routes before it validates the source, and sends \
                 ICMP errors to forged ones; Viaduct checks the source first"
            }
            Rule::StrayError => {
                "Linux reads the hop-by-hop header before it sees that it does not forward the \
                 packet, for another MAC address or a group, and answers parameter problem"
            }
            Rule::Options => {
                "Linux fills routes and times into IPv4 options, clears what follows the last one \
                 and refuses what it cannot fill in; Viaduct forwards as if there were no options, \
                 one of the choices of RFC 7126 §4.6"
            }
            Rule::HopByHop => {
                "Linux refuses unknown hop-by-hop options and more than 7 bytes of padding; \
                 Viaduct is not configured to look at them (RFC 8200 §4)"
            }
            Rule::SilentQuery => {
                "Linux sends no errors about ICMP types above 18; extended echo is a query (RFC \
                 8335 §2) and may be answered"
            }
            Rule::SilentUnreachable => {
                "Linux tells each sender only once a second that a host is unreachable (error_cost \
                 in /proc/sys/net/ipv4/route, which no namespace has of its own)"
            }
            Rule::NodeHop => {
                "the oracle's router is a hop before the node; Viaduct's worker and the node are \
                 one router, so it leaves the TTL to the node (RFC 1812 §5.3.1)"
            }
            Rule::Unfragmented => {
                "Linux fragments for the route's MTU; a pod's link takes 65535 bytes, so the \
                 datagram goes whole, with the same bytes as the fragments reassembled"
            }
            Rule::NobodyCode => {
                "Linux answers ICMPv6 1/0 (no route) for an unreachable route; Viaduct says 1/3 \
                 (address unreachable, RFC 4443 §3.1) of an address without a pod, as in IPv4"
            }
            Rule::Completed => {
                "past its program, a pod's frame tells an unfinished checksum only by holding the \
                 pseudo-header's sum, or by a forged marker; Viaduct finishes it, Linux knows \
                 better"
            }
            Rule::LimitedError => {
                "Viaduct sends fewer ICMP errors than Linux without limits (RFC 1812 §4.3.2.8, RFC \
                 4443 §2.4 (f))"
            }
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

impl Case<'_> {
    /// Whether the program at the pod's interface has replaced the source MAC.
    #[must_use]
    pub fn is_marked(&self) -> bool {
        self.sending == Sending::Queued && self.plan.offloads
    }
}

/// What Viaduct has to do, given what Linux did, and the rules that made the difference.
#[must_use]
pub fn predict(case: &Case<'_>, linux: &Outcome) -> (Outcome, Vec<Rule>) {
    let mut outcome = linux.clone();
    let mut rules = Vec::new();
    let mut change = |rule: Rule, changed: Outcome| {
        // A rule that changes nothing is not used.
        if changed != outcome {
            outcome = changed;
            rules.push(rule);
        }
        outcome.clone()
    };
    match (refusal::check(case), &case.facts.ip) {
        (Err(rule), _) => {
            change(rule, Outcome::new());
        }
        (Ok(()), Some(ip)) => {
            let mut now = linux.clone();
            for (rule, apply) in change::CHANGES {
                if let Some(mut changed) = apply(case, ip, &now) {
                    changed.sort();
                    now = change(rule, changed);
                }
            }
        }
        (Ok(()), None) => {}
    }
    (outcome, rules)
}

/// How a rule changes an outcome, where it applies.
type Change = fn(&Case<'_>, &Ip<'_>, &Outcome) -> Option<Outcome>;

/// Whether `ours` is what was predicted; adds the rule by which an ICMP error may be missing.
#[must_use]
pub fn agree(case: &Case<'_>, ours: &Outcome, predicted: &Outcome, rules: &mut Vec<Rule>) -> bool {
    if ours == predicted {
        return true;
    }
    // The kernel of Viaduct's node, which speaks for what goes outside, has no limits here.
    let by_worker = case.facts.ip.is_some_and(|ip| change::worker_decides(case, &ip));
    let limited = by_worker && ours.is_empty() && matches!(predicted[..], [Arrival::Error(_)]);
    if limited {
        rules.push(Rule::LimitedError);
    }
    limited
}
