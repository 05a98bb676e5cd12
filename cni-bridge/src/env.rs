//! The environment and standard input that a runtime hands to the plugin, checked once.
//!
//! Reading is separate from checking, so that tests and the fuzzer bring their own variables.

use std::ffi::OsString;
use std::io::Read;

use crate::protocol::Attachment;
use crate::spec::conf::is_name;
use crate::spec::{CniError, NetConf, Verb, code};

#[cfg(test)]
mod tests;

/// Standard input is read up to here, in bytes. The longest genuine input is a GC list: 1 MiB holds
/// some ten thousand attachments.
pub const STDIN_BYTES_MAX: u64 = 1 << 20;

/// Longest interface name in bytes: the kernel's IFNAMSIZ is 16 with the closing zero.
const IFNAME_BYTES_MAX: usize = 15;

/// The CNI variables, checked for one verb: what the verb requires is there and well formed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// CNI_CONTAINERID; empty for GC, STATUS and VERSION.
    pub container_id: String,
    /// CNI_IFNAME; empty for GC, STATUS and VERSION.
    pub ifname: String,
    /// CNI_NETNS verbatim; a DEL may come with none.
    pub netns: String,
    /// Whether CNI_NETNS_OVERRIDE allows the plugin's own namespace as CNI_NETNS.
    pub own_netns_allowed: bool,
    /// CNI_ARGS; empty when absent.
    pub args: String,
    /// CNI_PATH: directories in which delegated plugins are looked for.
    pub path: OsString,
}

/// Reads CNI_COMMAND; `None` when it is absent or empty, which is how a person calls the plugin.
///
/// # Errors
/// Code 4 for a verb that does not exist.
pub fn verb(lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<Verb>, CniError> {
    let text = text(lookup, "CNI_COMMAND")?;
    if text.is_empty() {
        return Ok(None);
    }
    Verb::find(&text).map(Some).ok_or_else(|| {
        invalid("CNI_COMMAND", &text, "it must be ADD, DEL, CHECK, STATUS, GC or VERSION")
    })
}

impl Environment {
    /// Reads and checks the variables that `verb` needs (SPEC.md, "Parameters" and "CNI
    /// operations"); `lookup` gives the value of one variable.
    ///
    /// # Errors
    /// Code 4 naming every variable that is missing, or the one that is malformed.
    pub fn read(verb: Verb, lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let required: &[&str] = match verb {
            Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Verb::Gc => &["CNI_PATH"],
            Verb::Status | Verb::Version => &[],
        };
        let is_missing = |name: &&str| lookup(name).is_none_or(|value| value.is_empty());
        let missing: Vec<&str> = required.iter().copied().filter(is_missing).collect();
        if !missing.is_empty() {
            let msg = format!("required env variables [{}] missing", missing.join(","));
            return Err(CniError::new(code::ENVIRONMENT, msg));
        }
        let environment = Self {
            container_id: text(lookup, "CNI_CONTAINERID")?,
            ifname: text(lookup, "CNI_IFNAME")?,
            netns: text(lookup, "CNI_NETNS")?,
            own_netns_allowed: is_true(&text(lookup, "CNI_NETNS_OVERRIDE")?),
            args: text(lookup, "CNI_ARGS")?,
            path: lookup("CNI_PATH").unwrap_or_default(),
        };
        if matches!(verb, Verb::Add | Verb::Check | Verb::Del) {
            check_container_id(&environment.container_id)?;
            check_ifname(&environment.ifname)?;
        }
        Ok(environment)
    }

    /// The attachment that the environment and the network's name make.
    pub fn attachment(&self, conf: &NetConf) -> Attachment {
        Attachment {
            network: conf.name.clone(),
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }
}

/// Reads standard input to its end.
///
/// # Errors
/// Code 5 when reading fails, 6 when there are [`STDIN_BYTES_MAX`] bytes or more; the rest is not
/// read.
pub fn read_stdin(input: &mut dyn Read) -> Result<Vec<u8>, CniError> {
    let mut bytes = Vec::new();
    input.take(STDIN_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| {
        CniError::new(code::IO, "The network configuration cannot be read from standard input")
            .with_details(error.to_string())
    })?;
    if bytes.len() as u64 >= STDIN_BYTES_MAX {
        let msg = format!(
            "Standard input is {STDIN_BYTES_MAX} bytes or longer; send one network configuration \
             shorter than that"
        );
        return Err(CniError::new(code::DECODE, msg));
    }
    Ok(bytes)
}

/// The value of `name` as text; absent is empty.
fn text(lookup: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Result<String, CniError> {
    lookup(name)
        .unwrap_or_default()
        .into_string()
        .map_err(|value| invalid(name, &value.to_string_lossy(), "it must be UTF-8"))
}

fn is_true(text: &str) -> bool {
    text == "1" || text.eq_ignore_ascii_case("true")
}

fn check_container_id(id: &str) -> Result<(), CniError> {
    if is_name(id) {
        return Ok(());
    }
    let why = "it must start with a letter or digit and go on with those, '_', '.' or '-'";
    Err(invalid("CNI_CONTAINERID", id, why))
}

/// The kernel's rule for interface names (net/core/dev.c, `dev_valid_name`), whose white space is
/// wider than ASCII's.
fn check_ifname(ifname: &str) -> Result<(), CniError> {
    let is_bad = |char: char| matches!(char, '/' | ':' | '\0' | '\u{a0}') || char.is_whitespace();
    let why = if ifname.len() > IFNAME_BYTES_MAX {
        "it must have at most 15 bytes"
    } else if ifname == "." || ifname == ".." {
        "'.' and '..' name no interface"
    } else if ifname.contains(is_bad) {
        "it must have no '/', ':' or white space"
    } else {
        return Ok(());
    };
    Err(invalid("CNI_IFNAME", ifname, why))
}

fn invalid(name: &str, value: &str, why: &str) -> CniError {
    let value = crate::spec::json::brief(value);
    CniError::new(code::ENVIRONMENT, format!("{name} is {value:?}: {why}"))
}
