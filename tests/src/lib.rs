//! End-to-end test harness: namespaces, daemons, plugins.

pub mod bandwidth;
pub mod cluster;
pub mod conformance;
pub mod daemon;
pub mod differential;
pub mod host_ports;
pub mod netns;
pub mod plugin;
pub mod pod;
pub mod runtimes;
pub mod traces;
pub mod traffic;
