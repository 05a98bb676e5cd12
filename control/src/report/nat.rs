//! `viaduct hostports` and `viaduct flows`: ports of the node that lead to pods, and who uses them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::conntrack::{Flow, FlowCounters, Replies};
use serde::{Deserialize, Serialize};

use crate::state::{HostPortAddress, HostPortRecord};

/// One port of the node that leads to a pod, `viaduct hostports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPortRow {
    /// Address of the node that is asked; `0.0.0.0` or `::` for any of the family.
    pub host_ip: IpAddr,
    /// Port of the node.
    pub host_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Address of the pod.
    pub container_ip: IpAddr,
    /// Port of the pod.
    pub container_port: u16,
    /// CNI_CONTAINERID of the pod.
    pub container_id: String,
    /// CNI_IFNAME of the pod.
    pub ifname: String,
}

impl HostPortRow {
    /// The row of a host port that leads to that container.
    #[must_use]
    pub fn new(record: &HostPortRecord, container_id: &str, ifname: &str) -> HostPortRow {
        HostPortRow {
            host_ip: match record.address {
                HostPortAddress::One(address) => address,
                HostPortAddress::AnyV4 => Ipv4Addr::UNSPECIFIED.into(),
                HostPortAddress::AnyV6 => Ipv6Addr::UNSPECIFIED.into(),
            },
            host_port: record.port,
            protocol: record.transport.as_str().to_owned(),
            container_ip: record.serving,
            container_port: record.container_port,
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
        }
    }
}

/// One flow that a worker follows, `viaduct flows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRow {
    /// `tcp`, `udp`, `sctp` or `icmp`.
    pub protocol: String,
    /// The client.
    pub src: IpAddr,
    /// Its port; of `icmp` the identifier.
    pub sport: u16,
    /// What the client has asked: an address of the node, or the pod's own.
    pub dst: IpAddr,
    /// The port it has asked.
    pub dport: u16,
    /// The client as the pod sees it.
    pub nat_src: IpAddr,
    /// Its port as the pod sees it.
    pub nat_sport: u16,
    /// The pod.
    pub nat_dst: IpAddr,
    /// Port of the pod.
    pub nat_dport: u16,
    /// Where it is in its life: `opening`, `established`, …
    pub state: String,
    /// Which way the pod's packets leave: `route`, or `node` when the node's kernel has sent the
    /// client's.
    pub replies: String,
    /// Seconds since its last packet.
    pub idle_s: u32,
    /// The worker that has it.
    pub worker: u16,
    /// CNI_CONTAINERID of the pod.
    pub container_id: String,
    /// CNI_IFNAME of the pod.
    pub ifname: String,
}

impl FlowRow {
    /// The row of a flow that `worker` has, in second `now_s` of the monotonic clock.
    #[must_use]
    pub fn new(flow: &Flow, worker: u16, now_s: u32, container_id: &str, ifname: &str) -> FlowRow {
        let Flow { original, translated, .. } = flow;
        FlowRow {
            protocol: original.transport.name().to_owned(),
            src: original.src.address,
            sport: original.src.port,
            dst: original.dst.address,
            dport: original.dst.port,
            nat_src: translated.src.address,
            nat_sport: translated.src.port,
            nat_dst: translated.dst.address,
            nat_dport: translated.dst.port,
            state: flow.state.name().to_owned(),
            replies: match flow.replies {
                Replies::ByRoute => "route",
                Replies::ByNode => "node",
            }
            .to_owned(),
            idle_s: now_s.saturating_sub(flow.seen_s),
            worker,
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
        }
    }
}

/// What happened to the flows of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowsRow {
    /// Flows that there are.
    pub entries: u64,
    /// Flows that there is room for.
    pub room: u64,
    /// Flows opened.
    pub opened: u64,
    /// Flows that were idle for too long.
    pub expired: u64,
    /// Flows that gave way to others.
    pub evicted: u64,
    /// Flows that were not opened, because their pod has its full number.
    pub refused_quota: u64,
    /// Flows that were not opened, because the table is full.
    pub refused_full: u64,
    /// Flows that were not opened, because no source port was left.
    pub refused_port: u64,
    /// ICMP errors that were translated.
    pub icmp_errors: u64,
}

impl FlowsRow {
    /// What `counters` say of a table with room for so many flows.
    #[must_use]
    pub fn read(counters: &FlowCounters, room: u32, icmp_errors: u64) -> FlowsRow {
        FlowsRow {
            entries: counters.flows.get(),
            room: room.into(),
            opened: counters.opened.get(),
            expired: counters.expired.get(),
            evicted: counters.evicted.get(),
            refused_quota: counters.refused_quota.get(),
            refused_full: counters.refused_full.get(),
            refused_port: counters.refused_port.get(),
            icmp_errors,
        }
    }
}
