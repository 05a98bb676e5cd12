//! `viaduct ports` and `viaduct routes`: what workers forward from, and by.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{DirectionRow, PortMode};

/// One port, `viaduct ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortRow {
    /// Its number.
    pub port: u16,
    /// Name of the host's interface.
    pub device: String,
    /// Queue of it.
    pub queue: u32,
    /// Index of that interface.
    pub ifindex: u32,
    /// What is at its other end.
    pub kind: PortKind,
    /// What it can carry: a pod's is chosen at its ADD, and stays.
    pub mode: PortMode,
    /// The NIC reads and writes the worker's frames in place.
    pub zero_copy: bool,
    /// The worker that owns it.
    pub worker: u16,
    /// Its place in the socket map.
    pub slot: u32,
    /// Route MTU in bytes: the largest IP packet that leaves by it.
    pub mtu: u32,
    /// MAC address of the other end; of an uplink, which has many, its own.
    pub mac: String,
    /// What came in by it; for the node port "pod" means the node, for an uplink other nodes.
    pub from_pod: DirectionRow,
    /// What left by it.
    pub to_pod: DirectionRow,
}

/// What is at the other end of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortKind {
    /// A pod.
    #[default]
    Pod,
    /// The node's own kernel.
    Node,
    /// Other nodes.
    Uplink,
}

impl PortKind {
    /// The word that stands in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PortKind::Pod => "pod",
            PortKind::Node => "node",
            PortKind::Uplink => "uplink",
        }
    }
}

/// One route, `viaduct routes`: those of workers' own first, then those of the kernel that they
/// follow, each in the order of rows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteRow {
    /// Destination prefix.
    pub dst: IpNet,
    /// Next hop, the first of several; absent where the destination is on the link.
    pub via: Option<IpAddr>,
    /// Name of the interface it leaves by.
    pub dev: String,
    /// Number of the port it leaves by; absent where nothing is sent (`no_pod`).
    pub port: Option<u16>,
    /// Where the route comes from: `pod`, `no_pod`, `node`, or `kernel` for one that is followed.
    pub source: String,
    /// All next hops of a route that has several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<HopRow>,
}

/// One of several next hops.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HopRow {
    /// Next hop; absent where the destination is on the link.
    pub via: Option<IpAddr>,
    /// Name of the interface it leaves by.
    pub dev: String,
    /// Share of the flows among the next hops.
    pub weight: u16,
}
