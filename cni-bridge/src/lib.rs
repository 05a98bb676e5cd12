//! Speaks CNI: the types of the specification, the plugin that a container runtime executes, and
//! the protocol between that plugin and the daemon. Knows no packet, no netlink beyond `lo`, and
//! links nothing that would make the plugin slow to start.
#![deny(unsafe_code)]

pub mod client;
pub mod env;
pub mod frame;
pub mod ipam;
pub mod loopback;
pub mod namespace;
pub mod protocol;
pub mod queue;
pub mod shim;
pub mod spec;
