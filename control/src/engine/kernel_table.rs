//! The kernel's nf_tables table as the state wants it: written whole at start and after somebody
//! has touched it, element by element for each pod.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Engine;
use super::compile::port_of;
use crate::host_ports::{Lead, of_pod};
use crate::nft::{HostPortEntry, NftConfig, NftError};
use crate::state::PodRecord;

impl Engine {
    /// The table for the pods of now, in one step: whoever changed it.
    pub(super) fn ensure_nft(&mut self) -> Result<(), NftError> {
        let config = self.nft_config();
        self.nft.ensure(&config)
    }

    fn nft_config(&self) -> NftConfig {
        let config = &self.config;
        NftConfig {
            pod_cidrs: self.node.destinations(),
            direct: config.uplink.direct.clone(),
            kernel: config.uplink.kernel.clone(),
            masquerade: config.node.masquerade,
            host_ports: self.state.pods().flat_map(entries).collect(),
            not_node: self.not_node.iter().copied().collect(),
        }
    }

    /// Pods are where the node port leads to now, which was elsewhere `before`.
    pub(super) fn masquerade_pods(&mut self, before: &[IpNet]) -> Result<(), NftError> {
        let changed = self.nft.change_pods(before, &self.node.destinations());
        self.or_anew(changed)
    }

    /// The kernel leads the host ports of a pod, which the state has, to it.
    pub(super) fn add_kernel_host_ports(&mut self, pod: &PodRecord) -> Result<(), NftError> {
        let entries: Vec<HostPortEntry> = entries(pod).collect();
        let added = self.nft.add_host_ports(&entries);
        self.or_anew(added)
    }

    /// The kernel leads the host ports of a pod, which the state has no more, nowhere.
    pub(super) fn remove_kernel_host_ports(&mut self, pod: &PodRecord) -> Result<(), NftError> {
        let entries: Vec<HostPortEntry> = entries(pod).collect();
        let removed = self.nft.remove_host_ports(&entries);
        self.or_anew(removed)
    }

    /// From now on these addresses are local without being the node's, and no others.
    pub(super) fn exempt_addresses(&mut self, not_node: BTreeSet<IpAddr>) -> Result<(), NftError> {
        let before = std::mem::replace(&mut self.not_node, not_node);
        let came: Vec<IpAddr> = self.not_node.difference(&before).copied().collect();
        let went: Vec<IpAddr> = before.difference(&self.not_node).copied().collect();
        let changed = self.nft.change_not_node(&came, &went);
        self.or_anew(changed)
    }

    /// Asks what the guard has dropped so far.
    pub(super) fn look_after_guard(&mut self) {
        self.guarded = match self.nft.guarded() {
            Ok(guarded) => Some(guarded.packets),
            Err(error) => {
                tracing::debug!(%error, "read what the guard of host ports has dropped");
                None
            }
        };
    }

    /// Where a change failed, the table is written anew, with the change: somebody has touched it
    /// meanwhile, or who knows what is there. The next change would name what differs from this
    /// one, and never this one again.
    fn or_anew(&mut self, changed: Result<(), NftError>) -> Result<(), NftError> {
        changed.or_else(|error| {
            tracing::warn!(%error, "the nft table is written anew");
            self.ensure_nft()
        })
    }
}

/// The host ports of a pod in the words of the table.
fn entries(pod: &PodRecord) -> impl Iterator<Item = HostPortEntry> {
    of_pod(pod, port_of(pod)).map(|Lead { host_port, target }| HostPortEntry {
        host_port,
        serving: target.serving,
        masquerade: target.masquerade,
    })
}
