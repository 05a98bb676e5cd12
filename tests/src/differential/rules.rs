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

/// A difference with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// See [`Rule::sentence`], as for all.
    SpoofedMac,
    #[allow(missing_docs)]
    BadMarker,
    #[allow(missing_docs)]
    PriorityTag,
    #[allow(missing_docs)]
    ExtensionHeaders,
    #[allow(missing_docs)]
    LinkLocal,
    #[allow(missing_docs)]
    Reserved,
    #[allow(missing_docs)]
    FragmentBounds,
    #[allow(missing_docs)]
    UpperTooShort,
    #[allow(missing_docs)]
    UdpLength,
    #[allow(missing_docs)]
    LinkControl,
    #[allow(missing_docs)]
    Redirect,
    #[allow(missing_docs)]
    BadOptions,
    #[allow(missing_docs)]
    SpoofedError,
    #[allow(missing_docs)]
    Options,
    #[allow(missing_docs)]
    HopByHop,
    #[allow(missing_docs)]
    SilentQuery,
    #[allow(missing_docs)]
    SilentTooBig,
    #[allow(missing_docs)]
    NodeHop,
    #[allow(missing_docs)]
    Unfragmented,
    #[allow(missing_docs)]
    NobodyCode,
    #[allow(missing_docs)]
    QuotedHop,
    #[allow(missing_docs)]
    Completed,
    #[allow(missing_docs)]
    LimitedError,
}

impl Rule {
    /// What differs, and why that is right.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        ""
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
