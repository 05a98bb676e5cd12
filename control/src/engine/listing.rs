//! What the engine tells: the rows of listings and metrics, read from state and counters.

use std::sync::Arc;

use cni_bridge::protocol::{Attachment, Listing};
use dataplane::counters::PortCounters;
use dataplane::port::PortId;

use super::attach::text;
use super::compile::port_of;
use super::{Engine, Offloads};
use crate::metrics::OpTimes;
use crate::node::WORKER_IFNAME;
use crate::report::{
    DirectionRow, FallbackAction, Features, FramesRow, PacketsRow, PodRow, PodState, PortKind,
    PortMode, PortRow, Report, RouteRow, Status, WorkerRow, drop_rows,
};
use crate::state::{Fallback, PodRecord};
use crate::workers::{NODE_SLOT, WorkerHandle};

impl Engine {
    /// The answer to a listing, as the JSON of the external contract.
    #[must_use]
    pub fn list(&self, listing: Listing) -> serde_json::Value {
        let value = match listing {
            Listing::Status => serde_json::to_value(self.status()),
            Listing::Pods => serde_json::to_value(self.pod_rows()),
            Listing::Ports => serde_json::to_value(self.port_rows()),
            Listing::Routes => serde_json::to_value(self.route_rows()),
            Listing::Drops => serde_json::to_value(drop_rows(&self.pod_rows(), &self.port_rows())),
        };
        value.expect("rows have string keys and finite numbers")
    }

    /// Everything for the metrics page.
    #[must_use]
    pub fn report(&self, operations: &OpTimes) -> Report {
        Report {
            status: self.status(),
            pods: self.pod_rows(),
            ports: self.port_rows(),
            operations: operations.clone(),
        }
    }

    /// `viaduct status`.
    #[must_use]
    pub fn status(&self) -> Status {
        let features = self.ports.features;
        let generation = self.workers.generation();
        let mut problems: Vec<String> = self.hangs().into_iter().collect();
        let ready = problems.is_empty();
        problems.extend(self.unserved.iter().map(|attachment| {
            let Attachment { container_id, ifname, .. } = attachment;
            format!("no worker serves {ifname} of container {container_id}")
        }));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready,
            problems,
            uptime_s: self.started.elapsed().as_secs(),
            port_mode: match self.ports.offloads {
                Offloads::Full => PortMode::Full,
                Offloads::Basic => PortMode::Basic,
            },
            features: Features {
                frags: features.multi_buffer,
                sg: features.multi_buffer,
                tx_checksum: features.tx_checksum,
                tx_budget: features.tx_budget,
                csum_hint: self.programs.csum_hint(),
            },
            node_addresses: self.node_addresses.clone(),
            pod_cidrs: self.config.node.pod_cidrs.clone(),
            generation,
            pods: self.state.pods().len() as u32,
            fallback_pods: self.unserved.len() as u32,
            routes: self.route_rows().len() as u32,
            workers: self.workers.handles().iter().map(|w| self.worker_row(w)).collect(),
        }
    }

    fn worker_row(&self, worker: &WorkerHandle) -> WorkerRow {
        let counters = &worker.counters;
        let running = counters.running_ns.get().max(1);
        let pods = self.state.pods().filter(|pod| pod.worker == worker.id).count();
        WorkerRow {
            id: worker.id,
            core: worker.core,
            busy_ratio: (counters.busy_ns.get() as f64 / running as f64).min(1.0),
            ports: pods as u32 + u32::from(worker.id == 0),
            generation: counters.generation.get(),
            hugepages: worker.hugepages,
            frames: FramesRow::read(counters),
            packets: PacketsRow::read(counters),
        }
    }

    /// Whether the worker is in charge of its pods.
    fn moves(&self, worker: u16) -> bool {
        self.heartbeats.get(usize::from(worker)).is_some_and(|heartbeat| !heartbeat.is_out())
    }

    fn pod_rows(&self) -> Vec<PodRow> {
        self.state.pods().map(|pod| self.pod_row(pod)).collect()
    }

    fn pod_row(&self, pod: &PodRecord) -> PodRow {
        let (from_pod, to_pod) = self.directions(port_of(pod));
        PodRow {
            network: pod.attachment.network.clone(),
            container_id: pod.attachment.container_id.clone(),
            ifname: pod.attachment.ifname.clone(),
            namespace: pod.pod_namespace.clone(),
            name: pod.pod_name.clone(),
            ips: pod.addresses.iter().map(|address| address.address).collect(),
            mac: text(pod.mac),
            host_ifname: pod.host_ifname.clone(),
            worker: pod.worker,
            state: match self.is_served(&pod.attachment) && self.moves(pod.worker) {
                true => PodState::Userspace,
                false => PodState::Fallback,
            },
            fallback: match pod.fallback {
                Fallback::Pass => FallbackAction::Pass,
                Fallback::Drop => FallbackAction::Drop,
            },
            from_pod,
            to_pod,
        }
    }

    fn port_rows(&self) -> Vec<PortRow> {
        let (from_pod, to_pod) = self.directions(PortId(NODE_SLOT));
        let node = PortRow {
            port: NODE_SLOT,
            device: WORKER_IFNAME.to_owned(),
            ifindex: self.node.worker_index,
            kind: PortKind::Node,
            worker: 0,
            slot: u32::from(NODE_SLOT),
            mtu: self.config.node.mtu,
            mac: text(self.node.node_mac),
            from_pod,
            to_pod,
        };
        let pods = self.state.pods().map(|pod| {
            let id = port_of(pod);
            let (from_pod, to_pod) = self.directions(id);
            PortRow {
                port: id.0,
                device: pod.host_ifname.clone(),
                ifindex: pod.host_ifindex,
                kind: PortKind::Pod,
                worker: pod.worker,
                slot: u32::from(id.0),
                mtu: pod.route_mtu,
                mac: text(pod.mac),
                from_pod,
                to_pod,
            }
        });
        std::iter::once(node).chain(pods).collect()
    }

    /// Where workers send what: pods, the rest of the pod network, everything else.
    fn route_rows(&self) -> Vec<RouteRow> {
        let mut rows = Vec::new();
        for pod in self.state.pods() {
            rows.extend(pod.addresses.iter().map(|address| RouteRow {
                dst: address.address.into(),
                via: None,
                dev: pod.host_ifname.clone(),
                port: Some(port_of(pod).0),
                source: "pod".to_owned(),
            }));
        }
        rows.extend(self.config.node.pod_cidrs.iter().map(|cidr| RouteRow {
            dst: cidr.trunc(),
            via: None,
            dev: String::new(),
            port: None,
            source: "no_pod".to_owned(),
        }));
        for default in ["0.0.0.0/0", "::/0"] {
            rows.push(RouteRow {
                dst: default.parse().expect("a prefix"),
                via: None,
                dev: WORKER_IFNAME.to_owned(),
                port: Some(NODE_SLOT),
                source: "node".to_owned(),
            });
        }
        rows
    }

    fn directions(&self, id: PortId) -> (DirectionRow, DirectionRow) {
        let rows = |counters: &Arc<PortCounters>| {
            (DirectionRow::from(&counters.from_pod), DirectionRow::from(&counters.to_pod))
        };
        self.workers.counters(id).map(rows).unwrap_or_default()
    }
}
