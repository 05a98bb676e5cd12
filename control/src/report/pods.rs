//! `viaduct pods`: one row for each attachment.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::DirectionRow;

/// One attachment, `viaduct pods`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodRow {
    /// Network name of the CNI configuration.
    pub network: String,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// Kubernetes namespace, or empty.
    pub namespace: String,
    /// Kubernetes pod name, or empty.
    pub name: String,
    /// Its addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// MAC address of its interface.
    pub mac: String,
    /// Name of the host end of its veth pair.
    pub host_ifname: String,
    /// Its home worker.
    pub worker: u16,
    /// Who forwards for it now.
    pub state: PodState,
    /// What happens to its packets while no worker forwards for it.
    pub fallback: FallbackAction,
    /// Streams come to it in packets of up to 64 kB. Not with a `basic` port, and not if it hands
    /// packets on and its kernel has refused one as too big.
    pub super_packets: bool,
    /// What the pod sent.
    pub from_pod: DirectionRow,
    /// What was for the pod.
    pub to_pod: DirectionRow,
}

impl PodRow {
    /// What people call the pod: its name, or the first 12 characters of the container ID (as
    /// container tools print it) where the runtime gave no name.
    #[must_use]
    pub fn title(&self) -> String {
        pod_name(&self.namespace, &self.name)
            .unwrap_or_else(|| self.container_id.chars().take(12).collect())
    }
}

/// The name of a pod: `namespace/name`; `name` alone where the runtime has no namespaces, as
/// podman; none where the runtime gave no name.
#[must_use]
pub fn pod_name(namespace: &str, name: &str) -> Option<String> {
    match (namespace, name) {
        (_, "") => None,
        ("", name) => Some(name.to_owned()),
        (namespace, name) => Some(format!("{namespace}/{name}")),
    }
}

/// Who forwards for a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// A worker.
    #[default]
    Userspace,
    /// The kernel, or nobody: as [`FallbackAction`] says.
    Fallback,
}

impl PodState {
    /// The word that stands in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PodState::Userspace => "userspace",
            PodState::Fallback => "fallback",
        }
    }
}

/// What happens to a pod's packets while no worker forwards for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallbackAction {
    /// The kernel routes them.
    #[default]
    Pass,
    /// They are dropped: a policy selects the pod, and the kernel would not heed it.
    Drop,
}

impl FallbackAction {
    /// The word that stands in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FallbackAction::Pass => "pass",
            FallbackAction::Drop => "drop",
        }
    }
}
