//! The CNI specification as types: versions, errors, network configuration and results.
//!
//! Everything here is pure: bytes in, values out. The runtime's JSON is parsed once, at this edge;
//! the rest of the crate works with the validated types.

mod bandwidth;
pub mod conf;
pub mod error;
pub mod host_ports;
pub mod json;
pub mod options;
pub mod result;
pub mod version;

pub use conf::NetConf;
pub use error::{CniError, code};
pub use host_ports::HostPortOptions;
pub use options::AddOptions;
pub use result::CniResult;
pub use version::{CniVersion, Verb};

#[cfg(test)]
mod tests;
