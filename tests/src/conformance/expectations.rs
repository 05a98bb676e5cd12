//! The known differences of a plugin from the kit: a file of case ids with reasons. A run agrees
//! with it only if exactly those cases fail, so that neither a new fault nor a mended one goes
//! unnoticed.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, bail};

use super::report::{Report, Verdict};

/// Case ids that are known to fail, each with the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectations {
    reasons: BTreeMap<String, String>,
}

/// How a run differs from what was expected. Empty when it agrees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Cases that failed unexpectedly, `id: reason`.
    pub unexpected: Vec<String>,
    /// Ids that were expected to fail and did not, or do not exist.
    pub vanished: Vec<String>,
}

impl Expectations {
    /// Reads `id: reason` lines. Empty lines and lines that start with `#` are comments.
    ///
    /// # Errors
    /// A line without a reason, or an id that is given twice; the sentence names the line.
    pub fn parse(text: &str) -> Result<Self> {
        let mut reasons = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (id, reason) = line.split_once(':').unwrap_or((line, ""));
            let (id, reason) = (id.trim(), reason.trim());
            if reason.is_empty() {
                bail!("line {}: write `{id}: why the plugin differs`", index + 1);
            }
            if reasons.insert(id.to_owned(), reason.to_owned()).is_some() {
                bail!("line {}: {id} is given twice; keep one", index + 1);
            }
        }
        Ok(Self { reasons })
    }

    /// Compares a run of the whole table with what was expected.
    pub fn compare(&self, report: &Report) -> Differences {
        self.differences(report, |_| true)
    }

    /// Compares a run of a part of the table: what was not asked is not missed.
    pub fn compare_part(&self, report: &Report) -> Differences {
        self.differences(report, |id| report.cases.iter().any(|case| case.id == id))
    }

    fn differences(&self, report: &Report, counts: impl Fn(&str) -> bool) -> Differences {
        let failed: BTreeMap<&str, &str> = report
            .cases
            .iter()
            .filter_map(|case| match &case.verdict {
                Verdict::Fail { reason } => Some((case.id.as_str(), reason.as_str())),
                Verdict::Pass | Verdict::Skipped { .. } => None,
            })
            .collect();
        let unexpected = failed.iter().filter(|(id, _)| !self.reasons.contains_key(**id));
        let vanished = self.reasons.keys().filter(|id| counts(id) && !failed.contains_key(&***id));
        Differences {
            unexpected: unexpected.map(|(id, reason)| format!("{id}: {reason}")).collect(),
            vanished: vanished.cloned().collect(),
        }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.unexpected {
            writeln!(f, "unexpected failure: {line}")?;
        }
        for id in &self.vanished {
            writeln!(f, "expected to fail, but did not: {id}")?;
        }
        Ok(())
    }
}

impl Differences {
    /// Whether the run agrees with the expectations.
    pub fn is_empty(&self) -> bool {
        let Self { unexpected, vanished } = self;
        unexpected.is_empty() && vanished.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::CaseReport;
    use super::*;

    fn report(cases: &[(&str, Verdict)]) -> Report {
        let case = |(id, verdict): &(&str, Verdict)| CaseReport {
            id: (*id).to_owned(),
            line: 1,
            sentence: String::new(),
            verdict: verdict.clone(),
            notes: Vec::new(),
            took_ms: 0,
        };
        Report {
            plugin: "plugin".into(),
            supported_versions: Vec::new(),
            cases: cases.iter().map(case).collect(),
        }
    }

    fn failed() -> Verdict {
        Verdict::Fail { reason: "wrong".to_owned() }
    }

    #[test]
    fn a_run_agrees_only_if_exactly_the_expected_cases_fail() {
        let expected = Expectations::parse("# known\nb01-a: it is so\n").unwrap();
        assert!(expected.compare(&report(&[("b01-a", failed())])).is_empty());

        let more = expected.compare(&report(&[("b01-a", failed()), ("b02-b", failed())]));
        assert_eq!(more.unexpected, ["b02-b: wrong"]);

        let mended = expected.compare(&report(&[("b01-a", Verdict::Pass)]));
        assert_eq!(mended.vanished, ["b01-a"]);
    }

    #[test]
    fn a_part_of_the_table_does_not_miss_what_was_not_asked() {
        let expected = Expectations::parse("b01-a: it is so\nb02-b: so too").unwrap();
        let part = report(&[("b01-a", failed())]);
        assert!(expected.compare_part(&part).is_empty());
        assert_eq!(expected.compare(&part).vanished, ["b02-b"]);
    }

    #[test]
    fn a_difference_without_a_reason_is_refused() {
        assert!(Expectations::parse("b01-a").is_err());
        assert!(Expectations::parse("b01-a: ").is_err());
        assert!(Expectations::parse("b01-a: x\nb01-a: y").is_err());
    }
}
