//! The network configuration on standard input (SPEC.md, "Section 1" and "Execution
//! configuration"): what every verb needs of it.
//!
//! Unknown keys are ignored; ours are read in any case, and `null` is absence. What only ADD needs
//! is in [`AddOptions`](super::AddOptions), so that a DEL never fails over it.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::error::{CniError, code};
use super::json::{self, field};
use super::result::CniResult;
use super::version::CniVersion;

/// Where the daemon listens unless the configuration's `socket` names another place.
pub const SOCKET_DEFAULT: &str = "/run/viaduct/viaduct.sock";

/// A network configuration that passed the checks common to all verbs.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// Version of the specification that the answer is written in.
    pub version: CniVersion,
    /// Name of the network.
    pub name: String,
    /// Absolute path of the daemon's socket.
    pub socket: PathBuf,
    /// Name of the IPAM plugin to delegate to; `None` means that the daemon allocates.
    pub ipam: Option<String>,
    /// The whole configuration.
    pub map: Map<String, Value>,
}

impl NetConf {
    /// Parses standard input.
    ///
    /// # Errors
    /// Code 6 when `stdin` is empty or no JSON object, 1 for a version that is not spoken, 7 for
    /// `name`, `socket` or `ipam` that cannot be used.
    pub fn parse(stdin: &[u8]) -> Result<Self, CniError> {
        let map = decode(stdin)?;
        let version = match field(&map, "cniVersion") {
            Some(Value::String(text)) => CniVersion::negotiate(Some(text))?,
            Some(other) => CniVersion::negotiate(Some(&other.to_string()))?,
            None => CniVersion::negotiate(None)?,
        };
        let name = network_name(&map)?.to_owned();
        let socket = socket(&map)?;
        let ipam = ipam_plugin(&map)?;
        Ok(Self { version, name, socket, ipam, map })
    }

    /// The `prevResult` of the configuration, or `None` when there is none.
    ///
    /// # Errors
    /// Code 6 when it is no result of a version that is spoken.
    pub fn prev_result(&self) -> Result<Option<CniResult>, CniError> {
        field(&self.map, "prevResult")
            .map(|value| CniResult::from_value(value, "prevResult"))
            .transpose()
    }

    /// The DNS settings of the configuration itself, key `dns`.
    ///
    /// # Errors
    /// Code 7 when they are malformed.
    pub fn dns(&self) -> Result<super::result::Dns, CniError> {
        let Some(value) = field(&self.map, "dns") else {
            return Ok(Default::default());
        };
        serde_json::from_value(value.clone())
            .map_err(|error| json::invalid("dns", &value.to_string(), &error.to_string()))
    }

    /// The configuration rewritten for `version`, for a delegated plugin that does not speak ours.
    pub fn downgraded(&self, version: CniVersion) -> Vec<u8> {
        let mut map = self.map.clone();
        map.retain(|key, _| !key.eq_ignore_ascii_case("cniVersion"));
        map.insert("cniVersion".to_owned(), Value::from(version.as_str()));
        Value::Object(map).to_string().into_bytes()
    }

    /// The attachments that a GC is to leave alone, as `(containerID, ifname)`.
    ///
    /// Reads `cni.dev/valid-attachments`, or `cni.dev/attachments` of the runtimes that follow an
    /// error of the specification's first text (containernetworking/cni issue 1101).
    ///
    /// # Errors
    /// Code 7 when both keys are absent or null, or an entry is malformed: nothing is ever removed
    /// on a guess. An empty list is a statement, and removes everything.
    pub fn valid_attachments(&self) -> Result<Vec<(String, String)>, CniError> {
        const KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let Some((key, value)) =
            KEYS.iter().find_map(|key| field(&self.map, key).map(|value| (key, value)))
        else {
            let msg = format!(
                "GC of network {} got no key {}; send the list of attachments to keep, an empty \
                 one to keep none",
                self.name, KEYS[0]
            );
            return Err(CniError::new(code::INVALID_CONFIG, msg));
        };
        let entries = value.as_array().ok_or_else(|| json::wrong(key, "a list", value))?;
        entries.iter().map(|entry| valid_attachment(key, entry)).collect()
    }
}

fn valid_attachment(key: &str, entry: &Value) -> Result<(String, String), CniError> {
    let expected = "a list of {\"containerID\": ..., \"ifname\": ...}";
    let text = |name| entry.as_object().and_then(|map| field(map, name)).and_then(Value::as_str);
    match (text("containerID"), text("ifname")) {
        (Some(id), Some(ifname)) => Ok((id.to_owned(), ifname.to_owned())),
        _ => Err(json::wrong(key, expected, entry)),
    }
}

/// Reads the object on standard input, whatever is in it.
fn decode(stdin: &[u8]) -> Result<Map<String, Value>, CniError> {
    if stdin.iter().all(u8::is_ascii_whitespace) {
        return Err(CniError::new(
            code::DECODE,
            "Standard input is empty; send the network configuration there",
        ));
    }
    serde_json::from_slice(stdin).map_err(|error| {
        CniError::new(
            code::DECODE,
            "Standard input is not a JSON object; send one network configuration there",
        )
        .with_details(error.to_string())
    })
}

/// The `cniVersion` of whatever is on standard input, spoken or not; VERSION repeats it.
pub fn asked_version(stdin: &[u8]) -> Option<String> {
    let map = decode(stdin).ok()?;
    field(&map, "cniVersion")?.as_str().map(str::to_owned)
}

/// Whether `name` has the alphabet that container ids and network names share (SPEC.md,
/// "Parameters"): a letter or digit, then letters, digits, `_`, `.` and `-`.
pub fn is_name(name: &str) -> bool {
    let tail = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    match name.as_bytes() {
        [head, rest @ ..] => head.is_ascii_alphanumeric() && rest.iter().all(tail),
        [] => false,
    }
}

fn network_name(map: &Map<String, Value>) -> Result<&str, CniError> {
    match json::string(map, "name", "name")? {
        Some(name) if is_name(name) => Ok(name),
        Some(name) => Err(json::invalid(
            "name",
            &format!("{name:?}"),
            "it must start with a letter or digit and go on with those, '_', '.' or '-'",
        )),
        None => Err(CniError::new(
            code::INVALID_CONFIG,
            "The configuration has no name; give the network one",
        )),
    }
}

fn socket(map: &Map<String, Value>) -> Result<PathBuf, CniError> {
    match json::string(map, "socket", "socket")? {
        None => Ok(PathBuf::from(SOCKET_DEFAULT)),
        Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(PathBuf::from(path)),
        Some(path) => {
            Err(json::invalid("socket", &format!("{path:?}"), "it must be an absolute path"))
        }
    }
}

/// The name of the delegated plugin. It is looked for in CNI_PATH, so it must not lead out of it.
fn ipam_plugin(map: &Map<String, Value>) -> Result<Option<String>, CniError> {
    let Some(ipam) = json::object(map, "ipam", "ipam")? else {
        return Ok(None);
    };
    match json::string(ipam, "type", "ipam.type")? {
        Some(name) if is_name(name) => Ok(Some(name.to_owned())),
        Some(name) => Err(json::invalid(
            "ipam.type",
            &format!("{name:?}"),
            "it must be the bare name of a program in CNI_PATH",
        )),
        None => Err(CniError::new(
            code::INVALID_CONFIG,
            "The configuration's ipam has no type; name an IPAM plugin, or leave out ipam so that \
             viaductd allocates",
        )),
    }
}
