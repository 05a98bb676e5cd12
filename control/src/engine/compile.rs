//! State to tables: the only place where the words of control become those of the data plane.

use dataplane::port::{PortId, WorkerId};
use dataplane::tables::{PortKind, PortSpec, Prefix, TablesInput};

use super::Engine;
use crate::state::PodRecord;
use crate::workers::NODE_SLOT;

/// The port number of a pod. Slot 0 of the socket map is the node port's.
pub(super) fn port_of(pod: &PodRecord) -> PortId {
    PortId(u16::try_from(pod.slot + 1).expect("slots are below PORTS_MAX"))
}

/// What the workers forward by.
pub(super) fn tables(engine: &Engine) -> TablesInput {
    let mut ports = vec![node_port(engine)];
    let served = engine.state.pods().filter(|pod| engine.is_served(&pod.attachment));
    ports.extend(served.map(|pod| pod_port(engine, pod)));
    let prefix = |cidr: &ipnet::IpNet| Prefix { address: cidr.network(), len: cidr.prefix_len() };
    TablesInput {
        ports,
        pod_cidrs: engine.config.node.pod_cidrs.iter().map(prefix).collect(),
        node_addresses: engine.node_addresses.clone(),
    }
}

fn node_port(engine: &Engine) -> PortSpec {
    PortSpec {
        id: PortId(NODE_SLOT),
        worker: WorkerId(0),
        kind: PortKind::Node,
        mac: engine.node.node_mac,
        gateway_mac: engine.node.worker_mac,
        mtu: engine.config.node.mtu as usize,
        device_mtu: engine.ports.node_device_mtu() as usize,
        addresses: Vec::new(),
        tx_checksum: engine.ports.features.tx_checksum,
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
        device_mtu: pod.offloads.device_mtu(pod.route_mtu) as usize,
        addresses: pod.addresses.iter().map(|address| address.address).collect(),
        tx_checksum: engine.ports.features.tx_checksum,
    }
}
