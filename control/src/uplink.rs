//! Interfaces to other nodes: what can be one, and how others learn of it.

pub mod announce;
pub mod channels;
pub mod fitness;
