//! What is known of one pod. The journal keeps [`PodRecord`]s, so their JSON form outlives a
//! release: add fields with `#[serde(default)]`, never rename or remove one.

use cni_bridge::protocol::{Attachment, Bandwidth, PodAddress};
use serde::{Deserialize, Serialize};

use super::{HostPortRecord, MasqueradeWish};
use crate::endpoint::Offloads;

/// What the kernel does with a pod's packets while no daemon serves its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// The kernel forwards them: the pod keeps its network.
    Pass,
    /// They are dropped: a policy selects the pod, and only workers can hold it.
    Drop,
}

/// A pod to attach, plumbed by the kernel but not yet served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPod {
    /// Whom it is.
    pub attachment: Attachment,
    /// CNI_NETNS verbatim, for listings.
    pub netns: String,
    /// Inode number of the pod's network namespace.
    pub netns_inode: u64,
    /// Device number of the file system that inode is on.
    pub netns_dev: u64,
    /// Name of the host end of the veth pair.
    pub host_ifname: String,
    /// Interface index of the host end, in the daemon's namespace.
    pub host_ifindex: u32,
    /// MAC address of the pod's end.
    pub mac: [u8; 6],
    /// MAC address of the host end.
    pub host_mac: [u8; 6],
    /// The pod's addresses: 1 to [`super::ADDRESSES_PER_POD_MAX`], IPv4 first.
    pub addresses: Vec<PodAddress>,
    /// Largest IP packet in bytes that the pod's routes allow.
    pub route_mtu: u32,
    /// What the pod's kernel leaves to us.
    pub offloads: Offloads,
    /// Kubernetes namespace, or empty.
    pub pod_namespace: String,
    /// Kubernetes pod name, or empty.
    pub pod_name: String,
    /// What happens to its packets while no daemon runs.
    pub fallback: Fallback,
    /// Ports of the node that lead to it, made by [`super::host_ports_of`]; none of another pod's.
    pub host_ports: Vec<HostPortRecord>,
    /// Whose connections to them get another source.
    pub masquerade: MasqueradeWish,
    /// The limits that were asked for.
    pub limits: Bandwidth,
}

/// An attached pod: a [`NewPod`] with its home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// Whom it is.
    pub attachment: Attachment,
    /// CNI_NETNS verbatim, for listings.
    pub netns: String,
    /// Inode number of the pod's network namespace.
    pub netns_inode: u64,
    /// Device number of the file system that inode is on.
    pub netns_dev: u64,
    /// Name of the host end of the veth pair.
    pub host_ifname: String,
    /// Interface index of the host end, in the daemon's namespace.
    pub host_ifindex: u32,
    /// MAC address of the pod's end.
    pub mac: [u8; 6],
    /// MAC address of the host end.
    pub host_mac: [u8; 6],
    /// The pod's addresses: 1 to [`super::ADDRESSES_PER_POD_MAX`], IPv4 first.
    pub addresses: Vec<PodAddress>,
    /// Largest IP packet in bytes that the pod's routes allow.
    pub route_mtu: u32,
    /// What the pod's kernel leaves to us: chosen at ADD, for as long as the attachment lives. A
    /// record that does not say is read as `basic`, which is right for every pod, if slower.
    #[serde(default)]
    pub offloads: Offloads,
    /// Index of the worker that everything about this pod happens on.
    pub worker: u16,
    /// Index of its port among all ports of the node, below [`super::Limits::slots`].
    pub slot: u32,
    /// Kubernetes namespace, or empty.
    pub pod_namespace: String,
    /// Kubernetes pod name, or empty.
    pub pod_name: String,
    /// What happens to its packets while no daemon runs.
    pub fallback: Fallback,
    /// Generation of the state that first had this pod. No two pods share one, so it tells apart
    /// the pods that had the same slot, address or name one after another.
    pub generation: u64,
    /// Ports of the node that lead to it, in the order of their keys. A record that does not say
    /// is of a release without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPortRecord>,
    /// Whose connections to them get another source.
    #[serde(default)]
    pub masquerade: MasqueradeWish,
    /// The limits that were asked for, last by `viaduct limits set` or else at ADD. A record that
    /// does not say is of a pod without any.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub limits: Bandwidth,
}

impl NewPod {
    /// The record of this pod once its home is chosen.
    pub(super) fn at_home(self, worker: u16, slot: u32, generation: u64) -> PodRecord {
        let NewPod {
            attachment,
            netns,
            netns_inode,
            netns_dev,
            host_ifname,
            host_ifindex,
            mac,
            host_mac,
            addresses,
            route_mtu,
            offloads,
            pod_namespace,
            pod_name,
            fallback,
            mut host_ports,
            masquerade,
            limits,
        } = self;
        host_ports.sort_by_key(HostPortRecord::key);
        PodRecord {
            attachment,
            netns,
            netns_inode,
            netns_dev,
            host_ifname,
            host_ifindex,
            mac,
            host_mac,
            addresses,
            route_mtu,
            offloads,
            worker,
            slot,
            pod_namespace,
            pod_name,
            fallback,
            generation,
            host_ports,
            masquerade,
            limits,
        }
    }
}
