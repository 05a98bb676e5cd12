//! A black-box conformance kit for CNI plugins: a table of cases, each a numbered line of the
//! checklist in `tests/README.md`, asked of any plugin binary from outside. Nobody else has one
//! (containernetworking/cni issue 540), so it is written to judge other plugins too: it knows
//! nothing of Viaduct.
//!
//! [`run`] asks everything; [`Plugin`] says whom; [`Report`] says what came of it.

mod answer;
mod attached;
mod case;
mod cases;
mod expectations;
mod report;
mod stand_in_ipam;
mod trial;
mod version;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

pub use case::Case;
pub use expectations::{Differences, Expectations};
pub use report::{CaseReport, Report, Verdict};

use case::Stop;
use trial::Trial;

/// The plugin under test, and what it says of itself.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// The executable.
    pub binary: PathBuf,
    /// The plugin configuration that every case starts from. Name and cniVersion are replaced;
    /// `{scratch}` inside any string becomes a directory of the case that is removed after it.
    pub conf: Map<String, Value>,
    /// CNI_PATH: where the plugin finds its delegates.
    pub cni_path: String,
    /// Namespace to run the plugin in, for a plugin whose daemon lives somewhere. Absent: each
    /// case gets an empty one of its own.
    pub node: Option<PathBuf>,
    /// Capabilities the plugin declares (`ips`, `mac`, …). Cases of others are skipped.
    pub capabilities: BTreeSet<String>,
    /// Whether the plugin takes addresses from the plugin that the key `ipam` names. Cases with a
    /// stand-in IPAM plugin are skipped without.
    pub delegates_ipam: bool,
}

impl Plugin {
    /// A plugin and its configuration, which may be a plugin's or a list's, of which the first
    /// plugin is taken. Capabilities and delegation are read from it; CNI_PATH is the directory
    /// of the binary. All can be changed afterwards.
    ///
    /// # Errors
    /// When the configuration is no object, or a list without plugins.
    pub fn new(binary: impl Into<PathBuf>, conf: &Value) -> Result<Self> {
        let binary = binary.into();
        let conf = match conf.get("plugins") {
            Some(plugins) => plugins.get(0).context("the list of plugins is empty: name one")?,
            None => conf,
        };
        let Some(conf) = conf.as_object() else {
            bail!("the network configuration must be a JSON object, not {conf}");
        };
        let declared = conf.get("capabilities").and_then(Value::as_object).into_iter().flatten();
        let capabilities = declared
            .filter(|(_, wanted)| **wanted == Value::Bool(true))
            .map(|(name, _)| name.clone())
            .collect();
        let ipam_type = conf.get("ipam").and_then(|ipam| ipam.get("type"));
        Ok(Self {
            cni_path: binary.parent().unwrap_or(Path::new("/")).display().to_string(),
            conf: conf.clone(),
            node: None,
            capabilities,
            delegates_ipam: ipam_type.is_some(),
            binary,
        })
    }
}

/// Every case of the kit, in the order of the checklist.
pub fn cases() -> Vec<Case> {
    cases::all()
}

/// Asks the plugin everything. Needs root, and makes and removes its own namespaces. What goes
/// wrong in the kit itself is a failed case too, so that it cannot go unnoticed.
pub fn run(plugin: &Plugin) -> Report {
    run_only(plugin, |_| true)
}

/// Asks the plugin the cases that `wanted` selects.
pub fn run_only(plugin: &Plugin, wanted: impl Fn(&Case) -> bool) -> Report {
    let supported = trial::supported_versions(plugin);
    let selected = cases().into_iter().filter(wanted);
    Report {
        plugin: plugin.binary.clone(),
        cases: selected.map(|case| run_case(plugin, &supported, &case)).collect(),
        supported_versions: supported,
    }
}

fn run_case(plugin: &Plugin, supported: &[String], case: &Case) -> CaseReport {
    let started = Instant::now();
    let mut notes = Vec::new();
    let verdict = match ask(plugin, supported, case, &mut notes) {
        Ok(()) => Verdict::Pass,
        Err(Stop::Fail(reason)) => Verdict::Fail { reason },
        Err(Stop::Skip(reason)) => Verdict::Skipped { reason },
    };
    CaseReport {
        id: case.id.clone(),
        line: case.line,
        sentence: case.sentence.clone(),
        verdict,
        notes,
        took_ms: started.elapsed().as_millis(),
    }
}

fn ask(
    plugin: &Plugin,
    supported: &[String],
    case: &Case,
    notes: &mut Vec<String>,
) -> Result<(), Stop> {
    let version = case.version_to_speak(supported)?;
    case.check_needs(plugin, supported)?;
    let trial = Trial::start(plugin, supported, version)?;
    let outcome = (case.run)(&trial);
    notes.extend(trial.notes());
    outcome
}
