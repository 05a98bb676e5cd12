//! `viaduct doctor`: what on this machine stands in the way of Viaduct, each finding with its mend.
//!
//! It is needed most where the daemon does not start, so it looks at the machine itself and asks a
//! daemon only for what a daemon alone knows. It changes nothing.
//!
//! [`Facts::read`] looks, once; each check is a pure function of the facts. What could not be read
//! is a third state: neither well nor amiss. Without uplinks there are no rows about them.
//!
//! ```text
//! reader, nic, others ──► Facts ──► machine, settings, node_port, firewall, plugins, daemon,
//!                                   uplink ──► Row
//! ```

use serde::{Deserialize, Serialize};

mod daemon;
mod facts;
mod firewall;
mod machine;
mod nic;
mod node_port;
mod others;
mod plugins;
mod reader;
mod settings;
#[cfg(test)]
mod tests;
mod uplink;

pub use facts::{Facts, Places};

/// What one check says about one object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// Name of the check. A check that finds several things has a row for each.
    pub check: String,
    /// Whether all is well; `None` (in JSON: null) if that could not be found out.
    pub ok: Option<bool>,
    /// What was found, with the object's name.
    pub found: String,
    /// What to do; of a check that found nothing amiss, what would be better still. May be empty.
    pub mend: String,
}

impl Row {
    fn new(check: &str, ok: Option<bool>, found: impl Into<String>, mend: &str) -> Row {
        Row { check: check.to_owned(), ok, found: found.into(), mend: mend.to_owned() }
    }

    /// Nothing amiss.
    fn well(check: &str, found: impl Into<String>) -> Row {
        Row::new(check, Some(true), found, "")
    }

    /// A finding.
    fn amiss(check: &str, found: impl Into<String>, mend: impl AsRef<str>) -> Row {
        Row::new(check, Some(false), found, mend.as_ref())
    }

    /// A check that cannot be made.
    fn unknown(check: &str, why: impl Into<String>, mend: impl AsRef<str>) -> Row {
        Row::new(check, None, why, mend.as_ref())
    }

    /// The findings, or a row that says that there are none.
    fn all_or(findings: Vec<Row>, none: impl FnOnce() -> Row) -> Vec<Row> {
        if findings.is_empty() { vec![none()] } else { findings }
    }
}

/// A check: what the facts say about one thing, in at least one row.
type Check = fn(&Facts) -> Vec<Row>;

/// All checks but those of uplinks, in the order one would look: the file, the machine, the
/// network, the daemon.
const CHECKS: [Check; 26] = [
    machine::configuration,
    machine::rights,
    machine::kernel,
    machine::af_xdp,
    machine::port_mode,
    machine::btf,
    machine::bpf_dir,
    machine::locked_memory,
    machine::hugepages,
    machine::cores,
    machine::modules,
    settings::forwarding,
    settings::rp_filter,
    settings::accept_ra,
    settings::tcp_loose,
    node_port::pod_cidrs,
    node_port::devices,
    node_port::rules,
    node_port::routes,
    node_port::xdp,
    firewall::nft_table,
    firewall::forward_policy,
    plugins::chained,
    plugins::loopback,
    plugins::networkd,
    daemon::daemon,
];

/// Makes every check.
#[must_use]
pub fn examine(facts: &Facts) -> Vec<Row> {
    CHECKS.iter().chain(&uplink::CHECKS).flat_map(|check| check(facts)).collect()
}
