//! `viaduct status`: the daemon as a whole.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{FallbackCounts, WorkerRow};

/// `viaduct status`: the daemon and its workers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Release of the daemon.
    pub version: String,
    /// Whether an ADD would be served and packets are forwarded.
    pub ready: bool,
    /// What stands against being ready or is otherwise amiss, a sentence each.
    pub problems: Vec<String>,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Whether ports carry super-packets.
    pub port_mode: PortMode,
    /// What the kernel's sockets can do here.
    pub features: Features,
    /// Addresses of the node that pods see it by.
    pub node_addresses: Vec<IpAddr>,
    /// The prefixes the node's pods are numbered from.
    pub pod_cidrs: Vec<IpNet>,
    /// Generation of the newest tables.
    pub generation: u64,
    /// Number of attachments.
    pub pods: u32,
    /// Those of them that the kernel forwards for.
    pub fallback_pods: u32,
    /// Number of routes.
    pub routes: u32,
    /// Ports of the node that lead to pods: as many as `viaduct hostports` has rows.
    pub host_ports: u32,
    /// Packets of pods' mapped ports that the kernel's guard dropped while no worker was there;
    /// `None` if the kernel does not tell.
    pub guard_dropped: Option<u64>,
    /// What became of the packets that no worker took.
    pub fallback_packets: FallbackCounts,
    /// Every worker, by number.
    pub workers: Vec<WorkerRow>,
    /// Every configured uplink.
    pub uplinks: Vec<UplinkRow>,
    /// What passed the uplinks' program to the kernel, by why.
    pub uplink_passed: BTreeMap<String, u64>,
}

/// One configured uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UplinkRow {
    /// Name of the interface.
    pub device: String,
    /// Queues that workers own; 0 while the kernel carries its packets.
    pub queues: u32,
    /// Those of them whose frames the NIC reads and writes in place.
    pub zero_copy: u32,
    /// Where the program runs: `native`, in the driver, or `generic`, behind it.
    pub xdp: Option<String>,
    /// Longest IP packet in bytes.
    pub mtu: u32,
    /// Why it does less than it could; `None` where all is well.
    pub note: Option<String>,
}

/// How ports work (design: `port_mode` of the configuration, and what the kernel can do).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortMode {
    /// Pods keep TSO: a unit of 64 kB is one packet.
    Full,
    /// A packet is at most one frame; pods send what fits the route MTU.
    #[default]
    Basic,
}

impl PortMode {
    /// The word that stands in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PortMode::Full => "full",
            PortMode::Basic => "basic",
        }
    }
}

/// Capabilities of the kernel, probed at start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Features {
    /// Generic XDP passes packets of several fragments (Linux 6.9).
    pub frags: bool,
    /// Sockets take packets of several descriptors, `XDP_USE_SG` (Linux 6.6).
    pub sg: bool,
    /// Checksums by TX metadata (Linux 6.8).
    pub tx_checksum: bool,
    /// `XDP_MAX_TX_SKB_BUDGET` (Linux 6.17).
    pub tx_budget: bool,
    /// The pod's kernel tells checksum state and segment size in the source MAC.
    pub csum_hint: bool,
}

impl Features {
    /// Every capability by the name of its key.
    #[must_use]
    pub fn named(&self) -> [(&'static str, bool); 5] {
        let Features { frags, sg, tx_checksum, tx_budget, csum_hint } = *self;
        [
            ("frags", frags),
            ("sg", sg),
            ("tx_checksum", tx_checksum),
            ("tx_budget", tx_budget),
            ("csum_hint", csum_hint),
        ]
    }
}
