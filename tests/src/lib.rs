//! End-to-end test harness: namespaces, daemons, plugins.

pub mod conformance;
pub mod netns;
pub mod plugin;
