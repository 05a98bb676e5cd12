//! Start after a stop or a crash: the pods of the journal that the kernel still has are served
//! again; the rest is forgotten. Nothing that carries traffic is touched.

use std::collections::{BTreeMap, BTreeSet};

use cni_bridge::protocol::{Attachment, PodAddress};

use super::compile::{flow_generation, port_of};
use super::{Engine, Record};
use crate::journal::Record as JournalRecord;
use crate::node::{HOST_IFNAME_PREFIX, WORKER_IFNAME};
use crate::state::{Change, Effect, PodRecord};

/// What the journal remembers.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// Pods that are attached, unless they went while no daemon ran.
    pub(super) pods: BTreeMap<Attachment, PodRecord>,
    /// Pods that were detached, in this order.
    freed: Vec<PodRecord>,
}

impl Remembered {
    /// Reads the journal's records, oldest first.
    pub(super) fn from_records(records: Vec<JournalRecord>) -> Remembered {
        let mut remembered = Remembered::default();
        let Remembered { pods, freed } = &mut remembered;
        for record in records {
            match record {
                JournalRecord::Attached(pod) => {
                    pods.insert(pod.attachment.clone(), *pod);
                }
                JournalRecord::Detached(attachment) => freed.extend(pods.remove(&attachment)),
            }
        }
        remembered
    }
}

impl Engine {
    /// The journal's pods that are there, back in state, IPAM and XDP maps. No worker has to run
    /// yet: [`Engine::serve_adopted`] gives the pods to theirs.
    pub(super) fn adopt(&mut self, remembered: Remembered) -> anyhow::Result<Vec<PodRecord>> {
        let Remembered { pods, freed } = remembered;
        // Freed again in the same order, so that addresses rest as long as they should.
        for pod in freed {
            let now_ns = self.now_ns();
            for PodAddress { address, .. } in &pod.addresses {
                let _outside = self.ipam.reserve(&pod.attachment, *address);
            }
            self.ipam.free(&pod.attachment, now_ns);
        }
        let mut adopted = Vec::new();
        for pod in pods.into_values() {
            match self.readopt(pod)? {
                Ok(pod) => adopted.push(pod),
                Err(pod) => {
                    tracing::info!(host_ifname = pod.host_ifname, "a pod went while we were away");
                    self.journal.append(&Record::Detached(pod.attachment))?;
                }
            }
        }
        self.sweep(&adopted)?;
        Ok(adopted)
    }

    /// Serves pods again. The caller publishes the tables, once and not once per pod, and then puts
    /// the sentinels in place: up to then the kernel forwards, from then on the workers do.
    pub(super) fn serve_adopted(&mut self, adopted: &[PodRecord]) {
        for pod in adopted {
            let id = port_of(pod);
            let device = (pod.host_ifname.as_str(), pod.host_ifindex);
            match self.workers.add_port(pod.worker, id, device, flow_generation(pod)) {
                Ok(socket) => {
                    self.adopted_sockets.push((id, socket));
                    self.lead_host_ports(pod);
                }
                Err(error) => {
                    let host_ifname = &pod.host_ifname;
                    tracing::error!(%error, host_ifname, "a pod stays with the kernel");
                    self.unserved.insert(pod.attachment.clone());
                }
            }
        }
    }

    /// Back into state, IPAM and XDP maps, if its host end is still there.
    fn readopt(&mut self, mut pod: PodRecord) -> anyhow::Result<Result<PodRecord, PodRecord>> {
        if !self.is_there(&pod) {
            return Ok(Err(pod));
        }
        for PodAddress { address, .. } in &pod.addresses {
            let _delegated = self.ipam.reserve(&pod.attachment, *address);
        }
        lift_unusable_limits(&mut pod);
        match self.state.apply(Change::Restore(pod.clone())) {
            Ok(Effect::Added(pod)) => {
                self.guard(&pod)?;
                Ok(Ok(pod))
            }
            Ok(other) => unreachable!("a restored pod is added: {other:?}"),
            Err(error) => {
                tracing::error!(%error, host_ifname = pod.host_ifname, "a pod cannot come back");
                Ok(Err(pod))
            }
        }
    }

    /// Leftovers that no pod of ours explains: pins and map entries, and host ends of an ADD or
    /// a DEL that a crash cut short.
    fn sweep(&mut self, adopted: &[PodRecord]) -> anyhow::Result<()> {
        let names: BTreeSet<&str> = adopted.iter().map(|pod| pod.host_ifname.as_str()).collect();
        let indices: BTreeSet<u32> = adopted.iter().map(|pod| pod.host_ifindex).collect();
        for name in self.programs.links()? {
            if name != WORKER_IFNAME && !names.contains(name.as_str()) {
                self.programs.detach(&name)?;
            }
        }
        for name in self.programs.attached_uplinks()? {
            if !self.config.uplink.interfaces.contains(&name) {
                self.programs.detach_uplink(&name)?;
            }
        }
        // Those that are uplinks now get their entries when they are raised.
        for (ifindex, _) in self.programs.uplinks()? {
            self.programs.remove_uplink(ifindex)?;
        }
        for (ifindex, _) in self.programs.ports()? {
            if ifindex != self.node.worker_index && !indices.contains(&ifindex) {
                self.programs.remove_port(ifindex)?;
                self.programs.forget_sources(ifindex)?;
            }
        }
        for link in self.netlink.links()? {
            let ours = link.name.starts_with(HOST_IFNAME_PREFIX)
                && link.alias.as_deref().is_some_and(|alias| alias.starts_with("viaduct:"));
            if ours && !names.contains(link.name.as_str()) {
                let cookie = link.alias.unwrap_or_default();
                tracing::info!(host_ifname = link.name, "delete a leftover host end");
                crate::endpoint::detach(&mut self.host, &link.name, &cookie)?;
            }
        }
        Ok(())
    }
}

/// A limit that cannot be is no reason to cut a pod off: it comes back without.
fn lift_unusable_limits(pod: &mut PodRecord) {
    let unusable = pod.take_unusable_limits();
    if !unusable.is_unlimited() {
        let Attachment { container_id, ifname, .. } = &pod.attachment;
        tracing::error!(
            host_ifname = pod.host_ifname,
            ?unusable,
            "a pod comes back without limits that cannot be; give it others: \
             viaduct limits set {container_id} --ifname {ifname}"
        );
    }
}
