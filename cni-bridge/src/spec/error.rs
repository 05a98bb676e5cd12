//! The error object of CNI (SPEC.md, "Error") and its codes.

use serde_json::{Value, json};

use super::json::field;
use super::version::CniVersion;
use crate::protocol::CallError;

/// The codes of the specification, those that libcni adds, and one of our own. Others from 100 to
/// 998 are the daemon's.
pub mod code {
    /// The configuration's version is not spoken.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration asks for something that does not exist here.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// An environment variable is missing or invalid.
    pub const ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// Input is not the JSON that was expected.
    pub const DECODE: u32 = 6;
    /// The configuration is invalid.
    pub const INVALID_CONFIG: u32 = 7;
    /// CNI_NETNS is the namespace of the plugin itself (libcni `ErrInvalidNetNS`).
    pub const INVALID_NETNS: u32 = 8;
    /// A transient condition: the runtime should try again.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: an ADD would not work now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// Shim and daemon are of releases too far apart for what is asked; the daemon says it too.
    pub const RELEASES_APART: u32 = 102;
    /// Whatever has no code of its own (libcni `ErrInternal`).
    pub const GENERIC: u32 = 999;
}

/// A failure as the runtime is told it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// One of [`code`], or 100 and above from the daemon.
    pub code: u32,
    /// One sentence that names the object and the mend.
    pub msg: String,
    /// More for whoever looks closer; may be empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same error with `details`, after those it has.
    #[must_use]
    pub fn with_details(mut self, details: impl AsRef<str>) -> Self {
        if !self.details.is_empty() {
            self.details.push_str("; ");
        }
        self.details.push_str(details.as_ref());
        self
    }

    /// The error object that goes to standard output. Keys and shape are the same in all versions.
    pub fn render(&self, version: CniVersion) -> Value {
        let mut object = json!({
            "cniVersion": version.as_str(),
            "code": self.code,
            "msg": self.msg,
        });
        if let (Some(map), false) = (object.as_object_mut(), self.details.is_empty()) {
            map.insert("details".to_owned(), Value::from(self.details.as_str()));
        }
        object
    }

    /// Reads the error object that a delegated plugin printed; `None` when `bytes` is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let map = value.as_object()?;
        let code = field(map, "code")?.as_u64()?;
        let text = |key| field(map, key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Self {
            code: u32::try_from(code).unwrap_or(code::GENERIC),
            msg: text("msg"),
            details: text("details"),
        })
    }
}

impl From<CallError> for CniError {
    fn from(error: CallError) -> Self {
        Self { code: error.code, msg: error.msg, details: error.details }
    }
}
