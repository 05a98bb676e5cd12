//! What came of a comparison.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::outcome::{Arrival, Outcome};
use super::plan::Place;
use super::rules::Rule;

/// Counts, and the differences that no rule explains.
#[derive(Debug, Default)]
pub struct Report {
    /// Frames injected.
    pub frames: usize,
    /// Frames of which something arrived by Viaduct, by place.
    pub delivered: BTreeMap<Place, usize>,
    /// ICMP errors of Viaduct that Linux sent too, by type and code of each IP version.
    pub errors: BTreeMap<(u8, u8, u8), usize>,
    /// Frames with which both did the same, byte by byte.
    pub same: usize,
    /// Frames with which Viaduct did what these rules make of what Linux did.
    pub rules: BTreeMap<Rule, usize>,
    /// What Viaduct's daemon says it dropped, by reason.
    pub drops: Value,
    /// Unexplained, and a few lines each.
    pub differences: Vec<String>,
}

impl Report {
    /// Counts a frame on which both agree, by these rules.
    pub(super) fn count(&mut self, ours: &Outcome, rules: &[Rule]) {
        self.same += usize::from(rules.is_empty());
        for rule in rules {
            *self.rules.entry(*rule).or_default() += 1;
        }
        let Some(first) = ours.first() else { return };
        match first {
            Arrival::Packet(place, _) => *self.delivered.entry(*place).or_default() += 1,
            Arrival::Error(error) => {
                let what = (error.version(), error.kind, error.code);
                *self.errors.entry(what).or_default() += 1;
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} frames; {} fared the same", self.frames, self.same)?;
        for (place, count) in &self.delivered {
            writeln!(f, "{count:8} arrived at {place:?}")?;
        }
        for ((version, kind, code), count) in &self.errors {
            writeln!(f, "{count:8} answered with ICMP error {kind}/{code} of IPv{version}")?;
        }
        for (rule, count) in &self.rules {
            writeln!(f, "{count:8} {rule:?}: {}", rule.sentence())?;
        }
        writeln!(f, "dropped by Viaduct: {}", self.drops)?;
        writeln!(f, "{} unexplained differences", self.differences.len())?;
        self.differences.iter().try_for_each(|difference| writeln!(f, "\n{difference}"))
    }
}
