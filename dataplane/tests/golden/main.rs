//! Golden packets: what goes in, what comes out or why not, and what is counted, by theme.
//!
//! Every case runs on a node with one worker and on one with two, where it crosses, and asserts
//! *all* counters: what a case does not name stays zero.

mod addresses;
mod case;
mod explain;
mod forwarding;
#[path = "../harness/mod.rs"]
mod harness;
mod headers;
mod host_ports;
mod interleaving;
mod merging;
mod neighbors;
mod rings;
mod shaping;
mod sizes;
mod spoofing;
mod uplinks;

/// Both IP versions, for cases that have one of each.
const FAMILIES: [(bool, &str); 2] = [(false, "v4"), (true, "v6")];
