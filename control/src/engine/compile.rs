//! State to tables: the only place where the words of control become those of the data plane.

use dataplane::offload::Hints;
use dataplane::port::{PortId, WorkerId};
use dataplane::shaper::Limits;
use dataplane::tables::{PortKind, PortSpec, Prefix, TablesInput};

use ipnet::IpNet;

use super::Engine;
use crate::limits;
use crate::state::PodRecord;
use crate::workers::{NODE_SLOT, UPLINK_PORTS_MAX};

/// The port of the pod with slot 0: before it come the node port and the uplinks'.
pub(super) const FIRST_POD_PORT: u16 = NODE_SLOT + 1 + UPLINK_PORTS_MAX;

/// The port number of a pod.
pub(super) fn port_of(pod: &PodRecord) -> PortId {
    let slot = u16::try_from(pod.slot).expect("slots are below PORTS_MAX");
    PortId(FIRST_POD_PORT + slot)
}

/// What tells the flows of a pod from those of others that had its port. Never 0, which is that of
/// ports without a pod.
pub(super) fn flow_generation(pod: &PodRecord) -> u32 {
    (pod.generation as u32).max(1)
}

/// A prefix in the words of the data plane.
pub(super) fn prefix(net: &IpNet) -> Prefix {
    Prefix { address: net.network(), len: net.prefix_len() }
}

/// What the workers forward by.
pub(super) fn tables(engine: &Engine) -> TablesInput {
    let mut ports = vec![node_port(engine)];
    let served = engine.state.pods().filter(|pod| engine.is_served(&pod.attachment));
    ports.extend(served.map(|pod| pod_port(engine, pod)));
    let workers = engine.state.limits().workers;
    let (uplinks, uplink_ports) =
        engine.uplinks.compile(workers, |worker| engine.workers.is_out(worker));
    ports.extend(uplink_ports);
    let direct = engine.config.uplink.direct.iter().map(|net| (prefix(net), true));
    let kernel = engine.config.uplink.kernel.iter().map(|net| (prefix(net), false));
    TablesInput {
        ports,
        pod_cidrs: engine.config.node.pod_cidrs.iter().map(prefix).collect(),
        // Of two equal prefixes the kernel's comes first.
        direct: kernel.chain(direct).collect(),
        uplinks,
        fib: engine.mirror.fib().clone(),
        node_addresses: engine.node_addresses.clone(),
        host_ports: engine.host_ports.clone(),
    }
}

fn node_port(engine: &Engine) -> PortSpec {
    PortSpec {
        id: PortId(NODE_SLOT),
        worker: WorkerId(0),
        kind: PortKind::Node,
        mac: engine.node.node_mac,
        gateway_mac: engine.node.worker_mac,
        mtu: engine.route_mtu as usize,
        device_mtu: engine.ports.node_device_mtu() as usize,
        addresses: Vec::new(),
        hints: Hints::Marker,
        tx_checksum: engine.ports.features.tx_checksum,
        limits: Limits::default(),
    }
}

fn pod_port(engine: &Engine, pod: &PodRecord) -> PortSpec {
    PortSpec {
        id: port_of(pod),
        worker: WorkerId(pod.worker),
        kind: PortKind::Pod,
        mac: pod.mac,
        gateway_mac: pod.host_mac,
        mtu: pod.route_mtu as usize,
        device_mtu: longest(engine, pod) as usize,
        addresses: pod.addresses.iter().map(|address| address.address).collect(),
        hints: Hints::Marker,
        tx_checksum: engine.ports.features.tx_checksum,
        limits: limits(engine, pod),
    }
}

/// What workers apply of a pod's limits.
pub(super) fn limits(engine: &Engine, pod: &PodRecord) -> Limits {
    limits::applied(&pod.limits, &engine.config.shaping, pod.route_mtu)
}

/// Bytes of the longest IP packet that a pod gets: a super-packet, unless it could not hand it on.
pub(super) fn longest(engine: &Engine, pod: &PodRecord) -> u32 {
    match engine.segments_only.contains(&pod.attachment) {
        true => pod.route_mtu,
        false => pod.offloads.device_mtu(pod.route_mtu),
    }
}
