//! Golden packets: what goes in, what comes out or why not, and what is counted, by theme.
//!
//! Every case runs on a node with one worker and on one with two, where it crosses, and asserts
//! *all* counters: what a case does not name stays zero.

mod case;
mod forwarding;
#[path = "../harness/mod.rs"]
mod harness;
