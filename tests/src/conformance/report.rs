//! What came of a run, for programs (JSON) and for people (a table).

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// What came of one case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// The plugin does what the sentence says.
    Pass,
    /// It does not.
    Fail {
        /// What it did instead.
        reason: String,
    },
    /// It was not asked.
    Skipped {
        /// Why not.
        reason: String,
    },
}

/// One case of a run.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// The case's stable id.
    pub id: String,
    /// Line of the checklist.
    pub line: u8,
    /// What a plugin that passes does.
    pub sentence: String,
    /// What came of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Observations that decide nothing, such as times.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Time the case took in ms; decides nothing.
    pub took_ms: u128,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The plugin that was asked.
    pub plugin: PathBuf,
    /// The versions it lists.
    pub supported_versions: Vec<String>,
    /// One entry per case that was selected, in the order of the table.
    pub cases: Vec<CaseReport>,
}

/// How many cases of a kind passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub pass: usize,
    /// Failed.
    pub fail: usize,
    /// Skipped.
    pub skipped: usize,
}

/// The sections of the checklist: name, and its last line.
const SECTIONS: [(&str, u8); 8] = [
    ("process contract", 12),
    ("versions", 17),
    ("ADD", 26),
    ("DEL", 31),
    ("CHECK", 32),
    ("STATUS", 33),
    ("GC", 34),
    ("runtimeConfig, args", 38),
];

impl Report {
    /// Counts over all cases.
    pub fn counts(&self) -> Counts {
        count(self.cases.iter())
    }

    /// The cases as a JSON array.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&self.cases)
    }
}

fn count<'a>(cases: impl Iterator<Item = &'a CaseReport>) -> Counts {
    cases.fold(Counts::default(), |mut counts, case| {
        match case.verdict {
            Verdict::Pass => counts.pass += 1,
            Verdict::Fail { .. } => counts.fail += 1,
            Verdict::Skipped { .. } => counts.skipped += 1,
        }
        counts
    })
}

impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verdict {
            Verdict::Pass => write!(f, "pass  {}", self.id)?,
            Verdict::Fail { reason } => {
                write!(
                    f,
                    "FAIL  {}\n      wanted: {}\n      found:  {reason}",
                    self.id, self.sentence
                )?;
            }
            Verdict::Skipped { reason } => write!(f, "skip  {} ({reason})", self.id)?,
        }
        self.notes.iter().try_for_each(|note| write!(f, "\n      note:   {note}"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in &self.cases {
            writeln!(f, "{case}")?;
        }
        let versions = self.supported_versions.join(", ");
        writeln!(f, "\n{} speaks {versions}\n", self.plugin.display())?;
        writeln!(f, "{:<22}{:>6}{:>6}{:>6}", "", "pass", "fail", "skip")?;
        let mut first = 1;
        for (name, last) in SECTIONS {
            let lines = first..=last;
            let counts = count(self.cases.iter().filter(|case| lines.contains(&case.line)));
            write_counts(f, name, counts)?;
            first = last + 1;
        }
        write_counts(f, "all", self.counts())
    }
}

fn write_counts(f: &mut fmt::Formatter<'_>, name: &str, counts: Counts) -> fmt::Result {
    let Counts { pass, fail, skipped } = counts;
    writeln!(f, "{name:<22}{pass:>6}{fail:>6}{skipped:>6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(line: u8, verdict: Verdict) -> CaseReport {
        let (id, sentence) = (format!("b{line:02}-x"), "it works".to_owned());
        CaseReport { id, line, sentence, verdict, notes: Vec::new(), took_ms: 1 }
    }

    fn report() -> Report {
        let failed = Verdict::Fail { reason: "it does not".to_owned() };
        let skipped = Verdict::Skipped { reason: "no GC".to_owned() };
        Report {
            plugin: "/p".into(),
            supported_versions: vec!["1.0.0".to_owned()],
            cases: vec![case(1, Verdict::Pass), case(38, failed), case(34, skipped)],
        }
    }

    #[test]
    fn every_case_is_counted_once_in_its_section_and_once_in_all() {
        assert_eq!(report().counts(), Counts { pass: 1, fail: 1, skipped: 1 });
        let table = report().to_string();
        assert!(table.contains("process contract           1     0     0"), "{table}");
        assert!(table.contains("runtimeConfig, args        0     1     0"), "{table}");
        assert!(table.contains("all                        1     1     1"), "{table}");
    }

    #[test]
    fn json_says_verdict_and_reason_beside_the_id() {
        let json: serde_json::Value = serde_json::from_str(&report().to_json().unwrap()).unwrap();
        assert_eq!(json[1]["id"], "b38-x");
        assert_eq!(json[1]["verdict"], "fail");
        assert_eq!(json[1]["reason"], "it does not");
        assert_eq!(json[0]["verdict"], "pass");
    }
}
