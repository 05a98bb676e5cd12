//! Which versions of CNI are spoken, and which verb exists in which of them.

use std::fmt;

use super::error::{CniError, code};

/// A version of the CNI specification that Viaduct speaks, oldest first.
///
/// 0.1.0 and 0.2.0 are refused: their result has room for one address per family and for no
/// interface, so a chained plugin would be told less than it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CniVersion {
    /// 0.3.0: results with interfaces, chaining.
    V0_3_0,
    /// 0.3.1: the same shapes as 0.3.0.
    V0_3_1,
    /// 0.4.0: adds CHECK.
    V0_4_0,
    /// 1.0.0: drops `ips[].version`.
    V1_0_0,
    /// 1.1.0: adds GC and STATUS, and more keys in results.
    V1_1_0,
}

impl CniVersion {
    /// Every version spoken, oldest first: the answer to VERSION.
    pub const ALL: [Self; 5] =
        [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest version spoken; error objects carry it when the request named none of ours.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The version as configurations write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version named `text`, or `None` when we do not speak it.
    pub fn find(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// The version that a configuration asks for.
    ///
    /// # Errors
    /// Code 1 when `text` is absent or names a version that is not spoken. The specification lets
    /// a plugin assume 0.2.0 for an absent version, which we do not speak; every runtime in use
    /// sends one.
    pub fn negotiate(text: Option<&str>) -> Result<Self, CniError> {
        if let Some(version) = text.and_then(Self::find) {
            return Ok(version);
        }
        let asked = match text {
            Some(text) => format!("the configuration's cniVersion is {text:?}"),
            None => "the configuration has no cniVersion".to_owned(),
        };
        let details = format!("{asked}, viaduct-cni supports {:?}", Self::names());
        Err(CniError::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions")
            .with_details(details))
    }

    /// The names of [`CniVersion::ALL`].
    pub fn names() -> [&'static str; 5] {
        Self::ALL.map(Self::as_str)
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What the runtime asks for in `CNI_COMMAND` (SPEC.md 1.1, "CNI operations").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Compare an attachment with reality.
    Check,
    /// Say whether an ADD would work now.
    Status,
    /// Detach everything that is not listed.
    Gc,
    /// List the versions spoken.
    Version,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 6] =
        [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version];

    /// The verb as `CNI_COMMAND` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    /// The verb spelled `text`, in capitals as the specification has it.
    pub fn find(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == text)
    }

    /// The version of the specification that introduced the verb.
    pub fn since(self) -> CniVersion {
        match self {
            Self::Add | Self::Del | Self::Version => CniVersion::V0_3_0,
            Self::Check => CniVersion::V0_4_0,
            Self::Status | Self::Gc => CniVersion::V1_1_0,
        }
    }

    /// Refuses the verb for a configuration older than the verb.
    ///
    /// # Errors
    /// Code 1 naming the verb, the configuration's version and the version needed.
    pub fn gate(self, version: CniVersion) -> Result<(), CniError> {
        if version >= self.since() {
            return Ok(());
        }
        let details = format!(
            "the configuration's cniVersion is \"{version}\", {} exists since \"{}\"",
            self.as_str(),
            self.since()
        );
        Err(CniError::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions")
            .with_details(details))
    }
}
