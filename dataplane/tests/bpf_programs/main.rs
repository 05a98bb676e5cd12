//! The BPF programs on a real kernel, in network namespaces of the tests' own.
//!
//! `cargo test -p dataplane --test bpf_programs -- --ignored` as root, with iproute2, ethtool,
//! nsenter and ping.

mod copy;
mod frames;
mod host_port_maps;
mod host_port_wire;
mod host_ports;
mod links;
mod machine;
mod marker;
mod queues;
mod steering;
mod trial;
mod uplinks;
mod verdicts;
