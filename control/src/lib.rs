//! Decides: CNI requests and kernel events in, tables for the workers out.

pub mod cli;
pub mod config;
mod connections;
pub mod ctnetlink;
pub mod daemon;
pub mod doctor;
pub mod endpoint;
pub mod engine;
pub mod ethtool;
pub mod fib;
pub mod flows;
pub mod genetlink;
pub mod host_ports;
pub mod ipam;
pub mod journal;
pub mod metrics;
pub mod netdev;
pub mod netlink;
pub mod nft;
pub mod node;
pub mod report;
pub mod server;
pub mod state;
pub mod sysctl;
pub mod uninstall;
pub mod uplink;
pub mod workers;
