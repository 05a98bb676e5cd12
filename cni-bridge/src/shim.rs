//! The plugin: reads what the runtime asks, has it carried out, and says what is to be printed.
//!
//! It prints nothing itself. Standard output must hold one JSON document or nothing, whatever goes
//! wrong on the way; so the one place that writes it is `main`, from the [`Outcome`].

use std::ffi::OsString;
use std::io::Read;
use std::panic::{self, AssertUnwindSafe};

use serde_json::{Value, json};

use crate::env::{self, Environment};
use crate::loopback;
use crate::spec::conf::asked_version;
use crate::spec::{CniError, CniVersion, NetConf, Verb, code};

mod attach;
mod detach;
mod inspect;
#[cfg(test)]
mod tests;

/// Which plugin the program was called as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// `viaduct-cni`, or any other name.
    Viaduct,
    /// `loopback`: brings `lo` up, with no daemon.
    Loopback,
}

/// What the process prints and how it exits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// One JSON document, or nothing.
    pub stdout: String,
    /// For a person who called the plugin by hand.
    pub stderr: String,
    /// Exit status: 0, or 1 with an error object in `stdout`.
    pub status: u8,
}

impl Outcome {
    fn success(result: Option<Value>) -> Self {
        Self {
            stdout: result.map(|value| value.to_string()).unwrap_or_default(),
            ..Self::default()
        }
    }

    fn failure(error: &CniError, version: CniVersion) -> Self {
        Self { stdout: error.render(version).to_string(), status: 1, ..Self::default() }
    }
}

/// One call of the plugin, its input checked.
struct Invocation {
    environment: Environment,
    conf: NetConf,
    /// The configuration as it came, for a delegate.
    stdin: Vec<u8>,
}

/// Carries out what `lookup` (the environment's variables) and `stdin` ask of `plugin`.
pub fn run(
    plugin: Plugin,
    lookup: &dyn Fn(&str) -> Option<OsString>,
    stdin: &mut dyn Read,
) -> Outcome {
    let verb = match env::verb(lookup) {
        Ok(Some(verb)) => verb,
        Ok(None) => {
            return Outcome { stderr: about(), ..Outcome::default() };
        }
        Err(error) => return Outcome::failure(&error, CniVersion::NEWEST),
    };
    let mut input = Vec::new();
    let result = env::read_stdin(stdin).and_then(|bytes| {
        input = bytes;
        if verb == Verb::Version {
            return Ok(Some(versions(&input)));
        }
        let invocation = parse(verb, lookup, &input)?;
        match plugin {
            Plugin::Viaduct => invocation.dispatch(verb),
            Plugin::Loopback => loopback::run(verb, &invocation.environment, &invocation.conf),
        }
    });
    match result {
        Ok(result) => Outcome::success(result),
        Err(error) => {
            let asked = asked_version(&input).as_deref().and_then(CniVersion::find);
            Outcome::failure(&error, asked.unwrap_or(CniVersion::NEWEST))
        }
    }
}

/// Runs `body`; a panic in it becomes an error object of code 999, because a runtime can show
/// nothing of an empty output. The panic's own message goes to standard error.
pub fn guard(body: impl FnOnce() -> Outcome) -> Outcome {
    panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        let msg = "viaduct-cni panicked; report this with what it wrote to standard error";
        Outcome::failure(&CniError::new(code::GENERIC, msg), CniVersion::NEWEST)
    })
}

/// Checks environment and configuration of any verb but VERSION. The fuzzer's way in.
///
/// # Errors
/// Codes 1, 4, 6 and 7.
pub fn check_input(
    verb: Verb,
    lookup: &dyn Fn(&str) -> Option<OsString>,
    stdin: &[u8],
) -> Result<(), CniError> {
    let Invocation { environment, conf, .. } = parse(verb, lookup, stdin)?;
    match verb {
        Verb::Gc => drop(conf.valid_attachments()?),
        _ => drop((attach::options(&conf, &environment)?, conf.prev_result()?, conf.dns()?)),
    }
    Ok(())
}

fn parse(
    verb: Verb,
    lookup: &dyn Fn(&str) -> Option<OsString>,
    stdin: &[u8],
) -> Result<Invocation, CniError> {
    let environment = Environment::read(verb, lookup)?;
    let conf = NetConf::parse(stdin)?;
    verb.gate(conf.version)?;
    Ok(Invocation { environment, conf, stdin: stdin.to_vec() })
}

impl Invocation {
    fn dispatch(&self, verb: Verb) -> Result<Option<Value>, CniError> {
        match verb {
            Verb::Add => attach::add(self).map(Some),
            Verb::Del => detach::del(self).map(|()| None),
            Verb::Gc => detach::gc(self).map(|()| None),
            Verb::Check => inspect::check(self).map(|()| None),
            Verb::Status => inspect::status(self).map(|()| None),
            Verb::Version => Ok(Some(versions(&self.stdin))),
        }
    }
}

/// The answer to VERSION (SPEC.md, "VERSION: probe plugin version support"). Runtimes of the first
/// versions send no configuration, so it repeats a version only if there is one.
fn versions(stdin: &[u8]) -> Value {
    let asked = asked_version(stdin).unwrap_or_else(|| CniVersion::NEWEST.to_string());
    json!({ "cniVersion": asked, "supportedVersions": CniVersion::names() })
}

fn about() -> String {
    format!(
        "viaduct-cni {}: CNI plugin of Viaduct, executed by container runtimes.\n\
         CNI versions: {}. Called as loopback it is the loopback plugin.\n",
        env!("CARGO_PKG_VERSION"),
        CniVersion::names().join(", ")
    )
}
