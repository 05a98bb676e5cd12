//! What the engine looks after between requests: workers that hang, interfaces that vanish, pods
//! that no worker could serve yet.

use std::time::{Duration, Instant};

use cni_bridge::protocol::Attachment;

use super::Engine;
use super::compile::port_of;
use crate::state::PodRecord;

/// A worker that makes no pass for this long hangs: asleep it makes four a second, busy some
/// thousands.
const HANG: Duration = Duration::from_secs(2);

/// How long a pod without interface is kept for its DEL: CNI's own GC would come later, and
/// containerd sends none.
const LOST_KEPT: Duration = Duration::from_secs(60);

/// What was last seen of a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heartbeat {
    passes: u64,
    since: Instant,
}

impl Heartbeat {
    pub(super) fn new() -> Heartbeat {
        Heartbeat { passes: 0, since: Instant::now() }
    }
}

impl Engine {
    /// Looks after everything once; call it about once a second.
    pub fn watch(&mut self, now: Instant) {
        self.watch_workers(now);
        self.look_after_pins();
        self.look_after_uplinks();
        self.look_after_host_ports(now);
        self.look_after_guard();
        self.serve_unserved();
        self.spare_onward_pods();
        self.bury_lost(now);
    }

    /// Keeps super-packets from pods whose kernels have refused one: those with a network of their
    /// own behind them, as docker in docker. AF_XDP has no way to tell a receiver the segment size,
    /// so what such a pod hands on must come to it in segments.
    fn spare_onward_pods(&mut self) {
        let refuses = |pod: &&PodRecord| {
            let counters = self.workers.counters(port_of(pod));
            counters.is_some_and(|counters| counters.refused_whole.get() > 0)
        };
        let known = |pod: &&PodRecord| self.segments_only.contains(&pod.attachment);
        let fresh: Vec<Attachment> = self
            .state
            .pods()
            .filter(|pod| refuses(pod) && !known(pod))
            .map(|pod| pod.attachment.clone())
            .collect();
        if fresh.is_empty() {
            return;
        }
        for attachment in &fresh {
            tracing::info!(?attachment, "a pod hands packets on: it gets no super-packets");
        }
        self.segments_only.extend(fresh);
        if let Err(error) = self.publish() {
            tracing::error!(%error, "tell the workers which pods get no super-packets");
        }
    }

    /// What to say about workers that hang, if any does.
    pub(super) fn hangs(&self) -> Option<String> {
        let out = (0..self.state.limits().workers).find(|worker| self.workers.is_out(*worker))?;
        Some(format!("worker {out} hangs: the kernel carries its pods; restart viaductd"))
    }

    /// Leaves the pods of a worker that hangs to the kernel, until it moves again.
    fn watch_workers(&mut self, now: Instant) {
        for worker in 0..self.state.limits().workers {
            let index = usize::from(worker);
            let passes = self.workers.handles()[index].counters.passes.get();
            let heartbeat = &mut self.heartbeats[index];
            let moves = passes != heartbeat.passes;
            if moves {
                (heartbeat.passes, heartbeat.since) = (passes, now);
            }
            let out = self.workers.is_out(worker);
            let changed = match (out, moves) {
                (false, false) if now.duration_since(heartbeat.since) >= HANG => {
                    tracing::error!(worker, "hangs: the kernel carries its pods");
                    self.programs.clear_sentinels(u32::from(worker)).map_err(Into::into)
                }
                (true, true) => {
                    tracing::warn!(worker, "moves again and carries its pods");
                    self.take_charge(worker)
                }
                _ => continue,
            };
            match changed {
                Ok(()) => {
                    self.workers.set_out(worker, !out);
                    // Others send by queues whose workers move.
                    self.publish_routes();
                }
                Err(error) => tracing::error!(worker, "change who carries its pods: {error:#}"),
            }
        }
    }

    /// From now on the worker carries its ports: its sentinels stand in the map, and on guard.
    pub(super) fn take_charge(&mut self, worker: u16) -> anyhow::Result<()> {
        let sentinels = self.workers.sentinels(worker)?;
        let id = u32::from(worker);
        self.programs.set_sentinels(id, sentinels.first(), sentinels.second())?;
        self.workers.guard(worker, sentinels)?;
        Ok(())
    }

    /// An interface is gone. If it was a pod's host end, its worker lets go of it; the pod stays
    /// known until its DEL, which succeeds (CNI spec, "DEL").
    pub fn link_gone(&mut self, ifindex: u32) {
        let gone = self.state.pods().find(|pod| pod.host_ifindex == ifindex).cloned();
        let Some(pod) = gone.filter(|pod| self.is_served(&pod.attachment)) else { return };
        // Runtimes often take the namespace away first and send the DEL afterwards.
        tracing::info!(host_ifname = pod.host_ifname, "a pod's interface went before its DEL");
        self.release(&pod);
        self.unserved.insert(pod.attachment.clone());
        self.lost.insert(pod.attachment, Instant::now());
    }

    /// Detaches pods whose interface is gone for good: some runtimes never send their DEL. What is
    /// gone cannot come back under the same index, so nothing alive is touched.
    fn bury_lost(&mut self, now: Instant) {
        let due = |since: &Instant| now.duration_since(*since) >= LOST_KEPT;
        let lost: Vec<Attachment> =
            self.lost.iter().filter(|(_, since)| due(since)).map(|(who, _)| who.clone()).collect();
        for attachment in lost {
            self.detach_lost(&attachment);
        }
    }

    /// Detaches the pod of this attachment if its interface is gone: before a new ADD, and when
    /// nobody sends its DEL.
    pub fn detach_lost(&mut self, attachment: &Attachment) {
        self.lost.remove(attachment);
        let Some(pod) = self.state.pod(attachment).cloned() else { return };
        if self.is_there(&pod) {
            return;
        }
        tracing::info!(host_ifname = pod.host_ifname, "detach a pod whose interface is gone");
        if let Err(error) = self.detach(attachment) {
            tracing::error!("detach a pod whose interface is gone: {}", error.msg);
        }
    }

    /// Takes the port of a pod from its worker and from the XDP maps. Goes on after an error.
    pub(super) fn release(&mut self, pod: &PodRecord) {
        let id = port_of(pod);
        let ifindex = pod.host_ifindex;
        self.withdraw_host_ports(pod);
        let steps = [
            self.programs.clear_socket(u32::from(id.0)),
            self.programs.remove_port(ifindex),
            self.programs.forget_sources(ifindex),
            self.programs.detach(&pod.host_ifname),
        ];
        for error in steps.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, host_ifname = pod.host_ifname, "let go of a pod");
        }
        if !self.workers.has_port(id) || self.leaving.contains_key(&id) {
            return;
        }
        self.unserved.insert(pod.attachment.clone());
        let published = self.publish().and_then(|()| self.workers.remove_port(id));
        if let Err(error) = published {
            tracing::error!(%error, "take a port from its worker");
        }
        self.leaving.insert(id, pod.attachment.clone());
    }

    /// Tries again to serve the pods that no worker serves, if their interface is there.
    fn serve_unserved(&mut self) {
        let waiting: Vec<Attachment> = self.unserved.iter().cloned().collect();
        for attachment in waiting {
            let Some(pod) = self.state.pod(&attachment).cloned() else { continue };
            if self.leaving.contains_key(&port_of(&pod)) || !self.is_there(&pod) {
                continue;
            }
            self.unserved.remove(&attachment);
            if let Err(error) = self.serve(&pod) {
                tracing::warn!("serve {} again: {error:#}", pod.host_ifname);
                self.unserved.insert(attachment);
            }
        }
    }

    /// Whether the pod's host end is still the one we made.
    pub(super) fn is_there(&mut self, pod: &PodRecord) -> bool {
        let link = self.netlink.link(&pod.host_ifname).ok().flatten();
        link.is_some_and(|link| {
            link.index == pod.host_ifindex
                && link.alias.as_deref() == Some(super::pod_cookie(&pod.attachment).as_str())
        })
    }
}
