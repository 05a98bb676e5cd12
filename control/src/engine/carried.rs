//! Flows to host ports that the node's kernel has carried while no worker was there.
//!
//! A worker that does not know a flow cannot tell what its pod's packets have to be translated to,
//! so it takes such flows over: those of before it runs with its table, those that begin until it
//! is in charge by an order. What workers carry from then on the kernel must forget: its idea of
//! sequence numbers would be stale when it has to carry the flow again, and with packets outside of
//! the window it saw last it does nothing (nf_conntrack_proto_tcp.c, `tcp_in_window`).

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use dataplane::conntrack::{Carried, Endpoint, Replies, Stage, Transport};
use dataplane::port::PortId;

use super::Engine;
use super::compile::port_of;
use crate::ctnetlink::{KernelFlow, KernelFlowError, KernelFlows};
use crate::host_ports::of_pod;

/// A flow that the kernel has, to a port of a pod that a host port leads to.
pub(super) struct Found {
    /// As the kernel knows it.
    kernel: KernelFlow,
    /// As a worker goes on with it.
    pub(super) carried: Carried,
    /// Home of the pod.
    pub(super) worker: u16,
}

impl Engine {
    /// The kernel's flows to ports of pods that host ports lead to.
    pub(super) fn carried_flows(&mut self) -> Vec<Found> {
        let pods = self.state.pods().map(|pod| (pod, port_of(pod)));
        let servers: HashMap<(Transport, Endpoint), (PortId, u16)> = pods
            .flat_map(|(pod, id)| of_pod(pod, id).map(move |lead| (lead, (id, pod.worker))))
            .map(|(lead, home)| ((lead.host_port.transport, lead.target.serving), home))
            .collect();
        if servers.is_empty() {
            return Vec::new();
        }
        let flows = match KernelFlows::open().and_then(|mut kernel| kernel.dump()) {
            Ok(flows) => flows,
            Err(error) => {
                tracing::warn!("flows that the kernel has carried wait for their clients: {error}");
                return Vec::new();
            }
        };
        let uplinks = self.uplink_indices();
        let mut ways: HashMap<IpAddr, bool> = HashMap::new();
        let mut found = Vec::new();
        for kernel in flows {
            let server = (kernel.reply.transport, kernel.reply.src);
            let Some((owner, worker)) = servers.get(&server).copied() else { continue };
            let client = kernel.original.src.address;
            let by_worker = self.host_ports.is_workers(kernel.original.dst.port)
                && *ways.entry(client).or_insert_with(|| self.comes_by_worker(client, &uplinks));
            found.push(Found { carried: carry(&kernel, owner, by_worker), kernel, worker });
        }
        found
    }

    /// When workers are in charge: they go on with what has begun since the flows of `before` were
    /// listed, and the kernel forgets what they carry now.
    pub(super) fn take_carried_flows(&mut self, before: &HashSet<u32>) {
        let found = self.carried_flows();
        let mut fresh: HashMap<u16, Vec<Carried>> = HashMap::new();
        for Found { kernel, carried, worker } in &found {
            if !before.contains(&kernel.id) {
                fresh.entry(*worker).or_default().push(*carried);
            }
        }
        for (worker, flows) in fresh {
            if let Err(error) = self.workers.take_over_flows(worker, flows.into()) {
                tracing::error!(%error, "go on with flows that the kernel has carried");
            }
        }
        let by_workers = found.iter().filter(|flow| flow.carried.replies == Replies::ByRoute);
        if let Err(error) = forget(by_workers) {
            tracing::warn!("flows that workers carry now stay with the kernel too: {error}");
        }
    }

    /// Whether packets of this client come to a worker first, and not to the kernel: a pod's do,
    /// the node's own do not, and others' if they come by an uplink, as answers leave.
    fn comes_by_worker(&mut self, client: IpAddr, uplinks: &[u32]) -> bool {
        if client.is_loopback() || self.node_addresses.contains(&client) {
            return false;
        }
        if self.state.pod_by_address(client).is_some() {
            return true;
        }
        let way =
            if uplinks.is_empty() { Ok(None) } else { self.netlink.interface_towards(client) };
        match way {
            Ok(index) => index.is_some_and(|index| uplinks.contains(&index)),
            Err(error) => {
                tracing::debug!(%error, "look up the way to a client");
                false
            }
        }
    }

    /// Interfaces whose packets workers get.
    fn uplink_indices(&mut self) -> Vec<u32> {
        let names = self.config.uplink.interfaces.iter();
        names.filter_map(|name| self.netlink.link(name).ok().flatten()).map(|l| l.index).collect()
    }
}

impl Found {
    /// What tells the kernel's flow from all others.
    pub(super) fn id(&self) -> u32 {
        self.kernel.id
    }
}

/// How a worker goes on with a flow of the kernel. One whose packets keep coming by the kernel is
/// translated there, there and back.
fn carry(flow: &KernelFlow, owner: PortId, by_worker: bool) -> Carried {
    let translated = flow.reply.inverse();
    let (original, replies) = match by_worker {
        true => (flow.original, Replies::ByRoute),
        false => (translated, Replies::ByNode),
    };
    let stage = match (flow.is_closing, flow.is_answered()) {
        (true, _) => Stage::Closing,
        (false, true) => Stage::Answered,
        (false, false) => Stage::Unanswered,
    };
    Carried { owner, original, translated, replies, stage }
}

fn forget<'a>(flows: impl Iterator<Item = &'a Found>) -> Result<(), KernelFlowError> {
    let mut flows = flows.peekable();
    if flows.peek().is_none() {
        return Ok(());
    }
    let mut kernel = KernelFlows::open()?;
    for flow in flows {
        kernel.delete(&flow.kernel)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use dataplane::conntrack::FlowKey;

    use super::*;

    fn end(text: &str) -> Endpoint {
        let socket: std::net::SocketAddr = text.parse().expect("an address and a port");
        Endpoint { address: socket.ip(), port: socket.port() }
    }

    /// To a host port; the kernel has given the client another port.
    fn kernel_flow() -> KernelFlow {
        let key = |src, dst| FlowKey { transport: Transport::Tcp, src: end(src), dst: end(dst) };
        let original = key("198.51.100.9:5000", "192.0.2.1:8080");
        let reply = key("10.244.1.5:80", "198.51.100.9:61000");
        let (status, is_closing) = (1 << 1 | 1 << 5, false);
        KernelFlow { id: 7, zone: 0, status, original, reply, is_closing }
    }

    #[test]
    fn what_comes_by_a_worker_is_translated_there_as_the_kernel_did() {
        let flow = kernel_flow();
        let carried = carry(&flow, PortId(200), true);
        assert_eq!(carried.original, flow.original);
        assert_eq!(carried.translated.src, end("198.51.100.9:61000"));
        assert_eq!(carried.translated.dst, end("10.244.1.5:80"));
        assert_eq!(carried.replies, Replies::ByRoute);
        assert_eq!(carried.stage, Stage::Answered);
        let closing = KernelFlow { is_closing: true, ..flow };
        assert_eq!(carry(&closing, PortId(200), true).stage, Stage::Closing);
    }

    #[test]
    fn what_keeps_coming_by_the_kernel_is_answered_through_it_as_it_is() {
        let flow = KernelFlow { status: 0, ..kernel_flow() };
        let carried = carry(&flow, PortId(200), false);
        assert_eq!(carried.original, carried.translated);
        assert_eq!(carried.original, flow.reply.inverse());
        assert_eq!(carried.replies, Replies::ByNode);
        assert_eq!(carried.stage, Stage::Unanswered);
    }
}
