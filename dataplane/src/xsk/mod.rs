//! AF_XDP and the BPF programs around it: the only `unsafe` of the project.

pub mod area;
mod close;
pub mod cursor;
pub mod port;
pub mod program;
pub mod ring;
pub mod sentinel;
pub mod socket;
pub mod uplink;
pub mod words;
