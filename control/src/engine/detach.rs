//! DEL: the mirror of ADD. Forwarding ends before the answer; what takes time (the socket and the
//! veth pair, some 12 ms each) goes on the reaper's thread.

use cni_bridge::protocol::{Attachment, CallError};
use dataplane::port::PortId;

use super::compile::{FIRST_POD_PORT, port_of};
use super::reaper::Reaped;
use super::{Engine, Record, pod_cookie};
use crate::state::{Change, Effect, PodRecord};

impl Engine {
    /// CNI DEL. Succeeds when there is nothing to detach (CNI spec, "DEL").
    pub fn detach(&mut self, attachment: &Attachment) -> Result<(), CallError> {
        let Some(pod) = self.state.pod(attachment).cloned() else { return Ok(()) };
        // The journal first: a pod that is gone but remembered would come back after a restart,
        // one that is forgotten but there is found by its host end.
        if let Err(error) = self.journal.append(&Record::Detached(attachment.clone())) {
            tracing::warn!(%error, "the journal does not know of a DEL");
        }
        self.forget(&pod);
        let (id, cookie) = (port_of(&pod), pod_cookie(attachment));
        let has_port = self.leaving.insert(id, pod.attachment).is_some();
        self.state.hold_slot(pod.slot);
        self.reaper.bury_device(id, pod.host_ifname, cookie, has_port);
        Ok(())
    }

    /// Takes a pod out of everything that [`Engine::serve`] put it into. Goes on after an error:
    /// whatever stays behind, the pod is no longer ours.
    pub(super) fn forget(&mut self, pod: &PodRecord) {
        self.release(pod);
        if let Err(error) = self.workers.retire_flows(pod.worker, port_of(pod)) {
            tracing::error!(%error, "forget the flows of a pod");
        }
        match self.state.apply(Change::Remove(pod.attachment.clone())) {
            Ok(Effect::Removed(_) | Effect::Unchanged) => {}
            other => unreachable!("a removal removes or finds nothing: {other:?}"),
        }
        if let Err(error) = self.reach_pods() {
            tracing::warn!("take the way to a pod away: {error:#}");
        }
        let now_ns = self.now_ns();
        self.ipam.free(&pod.attachment, now_ns);
        if let Err(error) = self.remove_kernel_host_ports(pod) {
            let host_ifname = &pod.host_ifname;
            tracing::warn!(%error, host_ifname, "take host ports from the kernel");
        }
        self.purge_kernel_flows(pod);
        self.unserved.remove(&pod.attachment);
        self.lost.remove(&pod.attachment);
        self.segments_only.remove(&pod.attachment);
        if self.leaving.contains_key(&port_of(pod)) {
            self.state.hold_slot(pod.slot);
        }
    }

    /// Moves what is leaving one step on. To be called when a worker or the reaper may have
    /// something to say; returns whether an ADD that waits should be tried again.
    pub fn settle(&mut self) -> bool {
        let mut settled = false;
        for Reaped { id, had_port } in self.reaper.finished() {
            if !had_port {
                settled |= self.has_left(id);
            } else if let Err(error) = self.workers.reclaim_port(id) {
                tracing::error!(%error, "return the frames of a port");
            }
        }
        for id in self.workers.poll(|id, io| self.reaper.reap(id, io)) {
            settled |= self.has_left(id);
        }
        settled
    }

    /// Nothing of a port is left: its number can be used again.
    fn has_left(&mut self, id: PortId) -> bool {
        if id.0 < FIRST_POD_PORT {
            self.uplinks.has_left(id);
            return false;
        }
        self.state.release_slot(slot_of(id).expect("uplinks' ports are told apart above"));
        self.leaving.remove(&id).is_some()
    }

    /// Whether something is on its way out.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.leaving.is_empty() && self.uplinks.is_settled()
    }
}

/// The slot of the pod whose port this is; `None` for the ports of the node and of uplinks.
pub(super) fn slot_of(id: PortId) -> Option<u32> {
    id.0.checked_sub(FIRST_POD_PORT).map(u32::from)
}
