//! What the engine tells: the rows of listings and metrics, read from state and counters.

use std::collections::BTreeMap;
use std::sync::Arc;

use cni_bridge::protocol::{Attachment, Listing, Reply};
use dataplane::counters::PortCounters;
use dataplane::port::PortId;
use serde::{Deserialize, Serialize};

use super::attach::text;
use super::compile::{FIRST_POD_PORT, longest, port_of};
use super::{Engine, Offloads};
use crate::fib::{ListedHop, ListedRoute, RouteKey};
use crate::metrics::OpTimes;
use crate::node::WORKER_IFNAME;
use crate::report::{
    DirectionRow, DropKey, DropRow, FallbackAction, FallbackCounts, Features, FlowsRow, FramesRow,
    HopRow, PacketsRow, PodRow, PodState, PortKind, PortMode, PortRow, Report, RouteRow, Status,
    WorkerRow, drop_rows, port_down_row,
};
use crate::server::page;
use crate::state::{Fallback, PodRecord};
use crate::workers::{NODE_SLOT, WorkerHandle};

/// Where a row of `viaduct routes` stands: workers' own routes first, then those of the kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum RowKey {
    Own(RouteRow),
    Followed(RouteKey),
}

impl Engine {
    /// The answer to a listing, from the row behind `after` on, as the JSON of the external
    /// contract. Every listing has an order that does not change while it is read by pages.
    #[must_use]
    pub fn list(&self, listing: Listing, after: Option<&str>) -> Reply {
        match listing {
            Listing::Status => Reply::Listing(
                serde_json::to_value(self.status()).expect("a status has finite numbers"),
            ),
            Listing::Pods => page(after, |after: Option<Attachment>| {
                let pods = self.state.pods_after(after.as_ref());
                pods.map(|pod| (pod.attachment.clone(), self.pod_row(pod)))
            }),
            Listing::Ports => page(after, |after: Option<u16>| {
                let first = after.map_or(NODE_SLOT, |port| port.saturating_add(1));
                self.port_rows(first).map(|row| (row.port, row))
            }),
            Listing::Routes => page(after, |after| self.route_rows(after)),
            Listing::Drops => page(after, |after| self.drop_rows(after)),
            Listing::Hostports => page(after, |after| self.host_port_rows(after)),
            Listing::Limits => page(after, |after| self.limit_rows(after)),
        }
    }

    /// Everything for the metrics page.
    #[must_use]
    pub fn report(&self, operations: &OpTimes) -> Report {
        Report {
            status: self.status(),
            pods: self.state.pods().map(|pod| self.pod_row(pod)).collect(),
            ports: self.port_rows(NODE_SLOT).collect(),
            limits: self.limit_rows(None).map(|(_, row)| row).collect(),
            operations: operations.clone(),
        }
    }

    /// `viaduct status`.
    #[must_use]
    pub fn status(&self) -> Status {
        let features = self.ports.features;
        let generation = self.workers.generation();
        let mut problems: Vec<String> = self.hangs().into_iter().collect();
        if !self.knows_routes() {
            let words = "the kernel's routes are not listed yet: it carries what leaves by uplinks";
            problems.push(words.to_owned());
        }
        let ready = problems.is_empty();
        problems.extend(self.uplinks.problems());
        problems.extend(self.unserved.iter().map(|attachment| {
            let Attachment { container_id, ifname, .. } = attachment;
            let whose = format!("{ifname} of container {container_id}");
            match self.lost.contains_key(attachment) {
                true => format!("{whose} is gone without a DEL: delete the container"),
                false => format!(
                    "no worker serves {whose}: the kernel carries it; viaductd tries again every \
                     second and logs why"
                ),
            }
        }));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready,
            problems,
            uptime_s: self.started.elapsed().as_secs(),
            port_mode: mode(self.ports.offloads),
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
            routes: (self.own_routes().count() + self.mirror.routes()) as u32,
            host_ports: self.state.pods().map(|pod| pod.host_ports.len() as u32).sum(),
            guard_dropped: self.guarded,
            fallback_packets: self.fallback_counts(),
            workers: self.workers.handles().iter().map(|w| self.worker_row(w)).collect(),
            uplinks: self.uplinks.rows().collect(),
            uplink_passed: self.uplink_counts(),
        }
    }

    fn worker_row(&self, worker: &WorkerHandle) -> WorkerRow {
        let counters = &worker.counters;
        let (busy_ns, running) = (counters.busy_ns.get(), counters.running_ns.get().max(1));
        let pods = self.state.pods().filter(|pod| pod.worker == worker.id).count();
        WorkerRow {
            id: worker.id,
            core: worker.core,
            busy_ratio: (busy_ns as f64 / running as f64).min(1.0),
            busy_ns,
            ports: pods as u32 + u32::from(worker.id == 0),
            generation: counters.generation.get(),
            hugepages: worker.hugepages,
            frames: FramesRow::read(counters),
            packets: PacketsRow::read(counters),
            flows: FlowsRow::read(
                &worker.flow_counters,
                worker.flows.room(),
                counters.icmp_errors_translated.get(),
            ),
        }
    }

    /// Whether the worker is in charge of its pods.
    fn moves(&self, worker: u16) -> bool {
        !self.workers.is_out(worker)
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
            super_packets: longest(self, pod) > pod.route_mtu,
            from_pod,
            to_pod,
        }
    }

    /// The ports from this number on, in the order of their numbers: the node's is the first.
    fn port_rows(&self, first: u16) -> impl Iterator<Item = PortRow> {
        let node = (first == NODE_SLOT).then(|| self.node_port_row());
        let uplinks = self.uplink_port_rows().filter(move |row| row.port >= first);
        let pods = self.pods_from_port(first).map(|pod| self.pod_port_row(pod));
        node.into_iter().chain(uplinks).chain(pods)
    }

    fn uplink_port_rows(&self) -> impl Iterator<Item = PortRow> {
        self.uplinks.queues().map(|(name, id, queue, raised)| {
            let (from_pod, to_pod) = self.directions(id);
            PortRow {
                port: id.0,
                device: name.to_owned(),
                queue: queue.into(),
                ifindex: raised.nic.ifindex,
                kind: PortKind::Uplink,
                mode: mode(self.ports.node()),
                zero_copy: raised.zero_copy[usize::from(queue)],
                worker: queue % self.state.limits().workers,
                slot: u32::from(id.0),
                mtu: raised.nic.mtu,
                mac: text(raised.nic.mac),
                from_pod,
                to_pod,
            }
        })
    }

    /// The pods at the ports from this number on; see [`port_of`].
    fn pods_from_port(&self, first: u16) -> impl Iterator<Item = &PodRecord> {
        self.state.pods_from_slot(u32::from(first).saturating_sub(u32::from(FIRST_POD_PORT)))
    }

    fn node_port_row(&self) -> PortRow {
        let (from_pod, to_pod) = self.directions(PortId(NODE_SLOT));
        PortRow {
            port: NODE_SLOT,
            device: WORKER_IFNAME.to_owned(),
            queue: 0,
            ifindex: self.node.worker_index,
            kind: PortKind::Node,
            mode: mode(self.ports.node()),
            zero_copy: false,
            worker: 0,
            slot: u32::from(NODE_SLOT),
            mtu: self.route_mtu,
            mac: text(self.node.node_mac),
            from_pod,
            to_pod,
        }
    }

    fn pod_port_row(&self, pod: &PodRecord) -> PortRow {
        let id = port_of(pod);
        let (from_pod, to_pod) = self.directions(id);
        PortRow {
            port: id.0,
            device: pod.host_ifname.clone(),
            queue: 0,
            ifindex: pod.host_ifindex,
            kind: PortKind::Pod,
            mode: mode(pod.offloads),
            zero_copy: false,
            worker: pod.worker,
            slot: u32::from(id.0),
            mtu: pod.route_mtu,
            mac: text(pod.mac),
            from_pod,
            to_pod,
        }
    }

    /// Where workers send what, behind the row of this key.
    fn route_rows(&self, after: Option<RowKey>) -> impl Iterator<Item = (RowKey, RouteRow)> {
        let (own, followed) = match after {
            None => (self.own_routes_after(None), None),
            Some(RowKey::Own(row)) => (self.own_routes_after(Some(&row)), None),
            Some(RowKey::Followed(key)) => (Vec::new(), Some(key)),
        };
        let own = own.into_iter().map(|row| (RowKey::Own(row.clone()), row));
        let followed = self.mirror.routes_after(followed).filter(|(_, route)| route.decides);
        let row = |(key, route)| (RowKey::Followed(key), self.followed_row(&key, route));
        own.chain(followed.map(row))
    }

    /// At most a row for each address of each pod, and a few more.
    fn own_routes_after(&self, after: Option<&RouteRow>) -> Vec<RouteRow> {
        let mut rows: Vec<RouteRow> = self.own_routes().filter(|row| after < Some(row)).collect();
        rows.sort_unstable();
        rows
    }

    /// What needs no mirror: pods, the rest of the pod network, everything else.
    fn own_routes(&self) -> impl Iterator<Item = RouteRow> {
        let pods = self.state.pods().flat_map(|pod| {
            pod.addresses.iter().map(|address| RouteRow {
                dst: address.address.into(),
                via: None,
                dev: pod.host_ifname.clone(),
                port: Some(port_of(pod).0),
                source: "pod".to_owned(),
                hops: Vec::new(),
            })
        });
        let no_pod = self.config.node.pod_cidrs.iter().map(|cidr| RouteRow {
            dst: cidr.trunc(),
            via: None,
            dev: String::new(),
            port: None,
            source: "no_pod".to_owned(),
            hops: Vec::new(),
        });
        let node = ["0.0.0.0/0", "::/0"].map(|default| RouteRow {
            dst: default.parse().expect("a prefix"),
            via: None,
            dev: WORKER_IFNAME.to_owned(),
            port: Some(NODE_SLOT),
            source: "node".to_owned(),
            hops: Vec::new(),
        });
        pods.chain(no_pod).chain(node)
    }

    /// A route of the kernel that the mirror follows: out of an uplink, or left to the kernel.
    fn followed_row(&self, key: &RouteKey, route: ListedRoute) -> RouteRow {
        let uplink = route.hops.first().and_then(|hop| hop.uplink);
        let all = route.hops.iter().all(|hop| hop.uplink.is_some());
        let port = uplink.filter(|_| all).and_then(|id| self.uplinks.first_port(id));
        let first = route.hops.first();
        let hop =
            |hop: &ListedHop| HopRow { via: hop.via, dev: hop.dev.clone(), weight: hop.weight };
        RouteRow {
            dst: key.dst(),
            via: first.and_then(|hop| hop.via),
            dev: first.map(|hop| hop.dev.clone()).unwrap_or_default(),
            port: Some(port.map_or(NODE_SLOT, |port| port.0)),
            source: "kernel".to_owned(),
            hops: if route.hops.len() > 1 {
                route.hops.iter().map(hop).collect()
            } else {
                Vec::new()
            },
        }
    }

    /// Drops behind the row of this key: those that are nobody's first, then port by port.
    fn drop_rows(&self, after: Option<DropKey>) -> impl Iterator<Item = (DropKey, DropRow)> {
        let first = after.as_ref().and_then(|(port, ..)| *port).unwrap_or(NODE_SLOT);
        let node = (first == NODE_SLOT).then(|| self.port_drops(PortId(NODE_SLOT), WORKER_IFNAME));
        let pods = self.pods_from_port(first).map(|pod| {
            let name = pod.name();
            self.port_drops(port_of(pod), name.as_ref().unwrap_or(&pod.attachment.container_id))
        });
        let port_down = self.workers.handles().iter().map(|w| w.counters.port_down.get()).sum();
        let nobodys =
            [self.fallback_counts().drop_rows(), Vec::from_iter(port_down_row(port_down))];
        let uplinks = self.uplinks.queues().filter(move |(_, id, ..)| id.0 >= first);
        let uplinks = uplinks.map(|(name, id, ..)| self.port_drops(id, name));
        let rows = nobodys.into_iter().chain(node).chain(uplinks).chain(pods).flatten();
        rows.map(|row| (row.key(), row)).filter(move |(key, _)| after.as_ref() < Some(key))
    }

    fn port_drops(&self, id: PortId, pod: &str) -> Vec<DropRow> {
        let (from_pod, to_pod) = self.directions(id);
        drop_rows(id.0, pod, &from_pod, &to_pod)
    }

    /// What the XDP program did with packets that no worker took.
    fn fallback_counts(&self) -> FallbackCounts {
        let counts = self.programs.fallback_counts().unwrap_or_else(|error| {
            tracing::warn!(%error, "packets without a worker are not shown");
            Vec::new()
        });
        counts.into_iter().collect()
    }

    /// What passed the uplinks' program, by why.
    fn uplink_counts(&self) -> BTreeMap<String, u64> {
        let counts = self.programs.uplink_counts().unwrap_or_else(|error| {
            tracing::warn!(%error, "what passes the uplinks is not shown");
            Vec::new()
        });
        counts.into_iter().map(|(why, count)| (why.to_owned(), count)).collect()
    }

    fn directions(&self, id: PortId) -> (DirectionRow, DirectionRow) {
        let rows = |counters: &Arc<PortCounters>| {
            (DirectionRow::from(&counters.from_pod), DirectionRow::from(&counters.to_pod))
        };
        self.workers.counters(id).map(rows).unwrap_or_default()
    }
}

fn mode(offloads: Offloads) -> PortMode {
    match offloads {
        Offloads::Full => PortMode::Full,
        Offloads::Basic => PortMode::Basic,
    }
}
