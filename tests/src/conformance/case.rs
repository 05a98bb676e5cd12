//! One row of the table: what is asked, what the plugin must be able to for the question to be
//! fair, and how a case ends early.

use super::Plugin;
use super::trial::Trial;
use super::version::{newest_common, since};

/// Why a case ended before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The plugin is wrong; the sentence says in what.
    Fail(String),
    /// The question cannot be put to this plugin; the sentence says why.
    Skip(String),
}

/// What a step of a case comes to.
pub type Checked<T = ()> = Result<T, Stop>;

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::Fail(format!("the kit itself failed: {error:#}"))
    }
}

/// Ends the case: the plugin is wrong.
pub fn fail<T>(reason: impl Into<String>) -> Checked<T> {
    Err(Stop::Fail(reason.into()))
}

/// Ends the case as failed unless `holds`.
pub fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { fail(reason()) }
}

/// What a plugin must be able to for a case to be fair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A version of its VERSION list has this verb.
    Verb(&'static str),
    /// It declares this optional capability.
    Capability(&'static str),
    /// It delegates address management.
    DelegatedIpam,
}

/// One row of the table.
pub struct Case {
    /// Stable name, `b<line>-<slug>`.
    pub id: String,
    /// Line of the checklist in `tests/README.md`.
    pub line: u8,
    /// What a plugin that passes does.
    pub sentence: String,
    needs: Vec<Need>,
    /// The version that the configuration names; `None`: the newest both sides speak.
    version: Option<&'static str>,
    pub(super) run: Box<dyn Fn(&Trial) -> Checked>,
}

/// A row before it is known what it asks.
pub struct Row {
    id: String,
    sentence: String,
}

/// Begins a row. Its id is `b<line>-<slug>`, the line of two digits.
pub fn case(id: &str) -> Row {
    Row { id: id.to_owned(), sentence: String::new() }
}

impl Row {
    /// What a plugin that passes does.
    pub fn says(mut self, sentence: &str) -> Self {
        self.sentence = sentence.to_owned();
        self
    }

    /// How to find out.
    ///
    /// # Panics
    /// When the id does not begin with its line.
    pub fn ask(self, run: impl Fn(&Trial) -> Checked + 'static) -> Case {
        let Self { id, sentence } = self;
        let line = id.get(1..3).and_then(|digits| digits.parse().ok());
        let line = line.expect("the id of a case is b<line>-<slug>");
        Case { id, line, sentence, needs: Vec::new(), version: None, run: Box::new(run) }
    }
}

impl Case {
    /// The same row, only for plugins that can do this.
    pub(super) fn needs(mut self, need: Need) -> Self {
        self.needs.push(need);
        self
    }

    /// The same row, spoken in this version.
    pub(super) fn version(mut self, version: &'static str) -> Self {
        self.version = Some(version);
        self
    }

    /// The optional capability that the row is about, if any.
    pub fn optional_capability(&self) -> Option<&'static str> {
        self.needs.iter().find_map(|need| match need {
            Need::Capability(name) => Some(*name),
            Need::Verb(_) | Need::DelegatedIpam => None,
        })
    }

    pub(super) fn version_to_speak(&self, supported: &[String]) -> Checked<&'static str> {
        match self.version {
            Some(version) if supported.iter().any(|other| other == version) => Ok(version),
            Some(version) => Err(Stop::Skip(format!("the plugin's VERSION list has no {version}"))),
            // A plugin without a usable VERSION list has failed the cases about that already; the
            // rest is asked in the version that most configurations name.
            None => Ok(newest_common(supported).unwrap_or("1.0.0")),
        }
    }

    pub(super) fn check_needs(&self, plugin: &Plugin, supported: &[String]) -> Checked {
        for need in &self.needs {
            let missing = match need {
                Need::Verb(verb) => {
                    let has = supported.iter().any(|v| super::version::at_least(v, since(verb)));
                    (!has).then(|| format!("the plugin's VERSION list has no version with {verb}"))
                }
                Need::Capability(name) => (!plugin.capabilities.contains(*name))
                    .then(|| format!("the plugin does not declare the optional capability {name}")),
                Need::DelegatedIpam => (!plugin.delegates_ipam)
                    .then(|| "the plugin is said not to delegate address management".to_owned()),
            };
            if let Some(reason) = missing {
                return Err(Stop::Skip(reason));
            }
        }
        Ok(())
    }
}
