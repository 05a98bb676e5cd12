//! Forwards packets. Knows no JSON, netlink or Kubernetes word: control gives it ports and tables.
//!
//! Read [`worker`] first: it is the packet path, top to bottom.
//!
//! ```text
//! drop, frame, port ◄── parse ◄── source, offload, checksum ◄── fib, tables ◄── worker
//!        ▲                                                                       │ owns
//!        └── xsk (AF_XDP, the only unsafe), sim (a port in memory) ◄─────────────┘
//! ```

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::panic))]

pub mod checksum;
pub mod conntrack;
pub mod counters;
pub mod crc32c;
pub mod crossing;
pub mod drop;
pub mod ecn;
pub mod explain;
pub mod fib;
pub mod first_fragments;
pub mod fragment;
pub mod frame;
pub mod host_ports;
pub mod icmp;
pub mod merge;
pub mod nat;
pub mod neighbor;
pub mod offload;
pub mod parse;
pub mod port;
pub mod publish;
pub mod segment;
pub mod shaper;
pub mod share;
pub mod sim;
pub mod source;
pub mod sync;
pub mod tables;
pub mod worker;
pub mod xsk;
