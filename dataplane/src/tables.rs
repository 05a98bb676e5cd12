//! What workers forward by: one immutable snapshot, built by control. A change is a new snapshot;
//! workers adopt the newest between passes, so that no lock is on the packet path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::conntrack::{Endpoint, Transport};
use crate::fib::{Fib, Hop, UplinkId};
use crate::host_ports::{HostPorts, Target};
use crate::offload::Hints;
use crate::port::{Mac, PORTS_MAX, PortId, WorkerId};
use crate::shaper::Limits;

/// What is at the far end of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A pod.
    Pod,
    /// The node itself: its processes, its kernel's routing, and all beyond.
    Node,
    /// One queue of an interface to other nodes.
    Uplink,
}

/// A port as the path needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Its number.
    pub id: PortId,
    /// The worker that owns it.
    pub worker: WorkerId,
    /// What is at the far end.
    pub kind: PortKind,
    /// MAC address at the far end: the pod's, or viaduct0's. An uplink has many far ends, and zeros
    /// here.
    pub mac: Mac,
    /// Our MAC address on the link: the pod's gateway, or the uplink's own.
    pub gateway_mac: Mac,
    /// Route MTU in bytes of an IP packet: what the far end was told to send at most.
    pub mtu: usize,
    /// Longest IP packet in bytes that the far end's interface takes. A pod whose interface takes
    /// no more than its route MTU gets no super-packets.
    pub device_mtu: usize,
    /// Addresses of the pod; empty for the node and for uplinks.
    pub addresses: Vec<IpAddr>,
    /// What is known of the packets that come in by it.
    pub hints: Hints,
    /// Whether the port takes checksums by TX metadata.
    pub tx_checksum: bool,
    /// What a pod may send and get. The node and uplinks have no limits.
    pub limits: Limits,
}

impl PortSpec {
    /// Whether the pod may use `src`.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }
}

/// An IP prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// First address.
    pub address: IpAddr,
    /// Bits that count: at most 32 or 128.
    pub len: u8,
}

impl Prefix {
    /// Whether the prefix covers `address`; never across families.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(prefix), IpAddr::V4(address)) => {
                let differ = u32::from(prefix) ^ u32::from(address);
                differ.checked_shr(32 - u32::from(self.len)).unwrap_or(0) == 0
            }
            (IpAddr::V6(prefix), IpAddr::V6(address)) => {
                let differ = u128::from(prefix) ^ u128::from(address);
                differ.checked_shr(128 - u32::from(self.len)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// An interface to other nodes, as its queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its number.
    pub id: UplinkId,
    /// The port that each worker sends by, by worker: a queue of its own where the interface has
    /// enough of them. Never empty.
    pub ports: Vec<PortId>,
}

/// The snapshot.
#[derive(Debug)]
pub struct Tables {
    generation: u64,
    ports: Vec<Option<PortSpec>>,
    /// By port number: whether host ports lead to the pod.
    tracked: Vec<bool>,
    host_ports: Arc<HostPorts>,
    local: HashMap<IpAddr, PortId>,
    pod_cidrs: Vec<Prefix>,
    /// Longest first.
    direct: Vec<(Prefix, bool)>,
    uplinks: Vec<Uplink>,
    fib: Fib,
    node_port: Option<PortId>,
    node_addresses: HashSet<IpAddr>,
    icmp_source: (Ipv4Addr, Ipv6Addr),
}

/// What the snapshot is made from.
#[derive(Clone, Debug, Default)]
pub struct TablesInput {
    /// Ports of pods, and the node port.
    pub ports: Vec<PortSpec>,
    /// The pod network of this node: an address in it without a pod is unreachable.
    pub pod_cidrs: Vec<Prefix>,
    /// Prefixes whose addresses are reached by uplinks, as they are (`true`), and prefixes within
    /// them that are left to the node's kernel all the same. The longest one decides.
    pub direct: Vec<(Prefix, bool)>,
    /// Interfaces to other nodes that are there.
    pub uplinks: Vec<Uplink>,
    /// The way to direct addresses: the mirror of the node's own.
    pub fib: Fib,
    /// Addresses of the node. The first of each family is the source of ICMP errors.
    pub node_addresses: Vec<IpAddr>,
    /// Ports of the node that lead to pods. Shared, because a change of anything else makes a new
    /// snapshot too, and there may be ten thousand of them.
    pub host_ports: Arc<HostPorts>,
}

/// Source of ICMP errors on a node without an address: the gateway's, as pods know it.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// As [`GATEWAY_V4`], for IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Where a packet goes.
#[derive(Clone, Copy, Debug)]
pub enum Route<'a> {
    /// To a pod of this node.
    Local(&'a PortSpec),
    /// Out of this queue of an uplink, to a router or to the destination itself.
    Uplink(&'a PortSpec, Hop),
    /// To the node, whose kernel routes it on.
    Node(&'a PortSpec),
    /// An address of the pod network that no pod has.
    NoPod,
    /// To the node, whose port is gone.
    Nowhere,
}

impl Tables {
    /// Builds the snapshot. Panics when two ports have one number or one address: control's
    /// state excludes both.
    #[must_use]
    pub fn new(generation: u64, input: TablesInput) -> Tables {
        let TablesInput { ports: specs, pod_cidrs, mut direct, uplinks, .. } = input;
        let TablesInput { fib, node_addresses, host_ports, .. } = input;
        direct.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len));
        let len = specs.iter().map(|port| usize::from(port.id.0) + 1).max().unwrap_or(0);
        assert!(len <= PORTS_MAX, "control hands out port numbers below {PORTS_MAX}");
        let mut ports: Vec<Option<PortSpec>> = vec![None; len];
        let mut local = HashMap::new();
        let mut node_port = None;
        for spec in specs {
            match spec.kind {
                PortKind::Node => node_port = Some(spec.id),
                PortKind::Uplink => {}
                PortKind::Pod => {
                    for address in &spec.addresses {
                        let other = local.insert(*address, spec.id);
                        assert!(other.is_none(), "{address} belongs to one pod");
                    }
                }
            }
            let id = usize::from(spec.id.0);
            assert!(ports[id].is_none(), "port {id} stands once");
            ports[id] = Some(spec);
        }
        let tracked = (0..len).map(|id| host_ports.tracks(PortId(id as u16))).collect();
        let first4 = node_addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        let first6 = node_addresses.iter().find_map(|address| match address {
            IpAddr::V6(address) => Some(*address),
            IpAddr::V4(_) => None,
        });
        Tables {
            generation,
            ports,
            tracked,
            host_ports,
            local,
            pod_cidrs,
            direct,
            uplinks,
            fib,
            node_port,
            icmp_source: (first4.unwrap_or(GATEWAY_V4), first6.unwrap_or(GATEWAY_V6)),
            node_addresses: node_addresses.into_iter().collect(),
        }
    }

    /// Number of the snapshot; higher is newer.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The port with this number.
    #[inline]
    #[must_use]
    pub fn port(&self, id: PortId) -> Option<&PortSpec> {
        self.ports.get(usize::from(id.0))?.as_ref()
    }

    /// Where `worker` sends a packet for `dst`: the decision table of the design's "who routes".
    /// `flow` picks one of several equal ways, see [`crate::fib::flow_hash`]; it is asked only
    /// where there may be some.
    ///
    /// What the mirror of the kernel's routes does not lead out of an uplink, for whatever reason,
    /// is the kernel's: it forwards, resolves the neighbor, or refuses.
    #[inline]
    #[must_use]
    pub fn route(&self, worker: WorkerId, dst: IpAddr, flow: impl FnOnce() -> u32) -> Route<'_> {
        if let Some(port) = self.local.get(&dst).and_then(|id| self.port(*id)) {
            return Route::Local(port);
        }
        if self.pod_cidrs.iter().any(|prefix| prefix.contains(dst)) {
            return Route::NoPod;
        }
        if let Some((port, hop)) = self.uplink_to(worker, dst, flow) {
            return Route::Uplink(port, hop);
        }
        self.node()
    }

    /// The way to the node.
    #[inline]
    #[must_use]
    pub fn node(&self) -> Route<'_> {
        match self.node_port.and_then(|id| self.port(id)) {
            Some(port) => Route::Node(port),
            None => Route::Nowhere,
        }
    }

    fn uplink_to(
        &self,
        worker: WorkerId,
        dst: IpAddr,
        flow: impl FnOnce() -> u32,
    ) -> Option<(&PortSpec, Hop)> {
        if !self.is_direct(dst) {
            return None;
        }
        let hop = self.fib.route(dst, flow())?;
        let uplink = self.uplinks.iter().find(|uplink| uplink.id == hop.uplink)?;
        let port = uplink.ports.get(usize::from(worker.0))?;
        Some((self.port(*port)?, hop))
    }

    /// Whether `address` is reached by uplinks, as it is.
    #[inline]
    #[must_use]
    pub fn is_direct(&self, address: IpAddr) -> bool {
        let longest = self.direct.iter().find(|(prefix, _)| prefix.contains(address));
        longest.is_some_and(|(_, direct)| *direct)
    }

    /// Whether `address` is a pod's of this node, or would be.
    #[inline]
    #[must_use]
    pub fn is_pods(&self, address: IpAddr) -> bool {
        self.local.contains_key(&address)
            || self.pod_cidrs.iter().any(|prefix| prefix.contains(address))
    }

    /// Whether `address` is the node's own.
    #[inline]
    #[must_use]
    pub fn is_node(&self, address: IpAddr) -> bool {
        self.node_addresses.contains(&address)
    }

    /// Whether host ports lead to the pod with this port number, so that its flows may be in the
    /// table of its worker.
    #[inline]
    #[must_use]
    pub fn is_tracked(&self, id: PortId) -> bool {
        self.tracked.get(usize::from(id.0)).copied().unwrap_or(false)
    }

    /// Which pod is asked at this address and port, if they are a host port's that workers lead to
    /// it.
    #[inline]
    #[must_use]
    pub fn host_port(&self, transport: Transport, asked: Endpoint) -> Option<&Target> {
        if !self.host_ports.is_workers(asked.port) {
            return None;
        }
        self.host_ports.lookup(transport, asked, |address| self.is_node(address))
    }

    /// Whether host ports lead to this port of a pod.
    #[inline]
    #[must_use]
    pub fn is_mapped(&self, pod: PortId, transport: Transport, port: u16) -> bool {
        self.host_ports.leads_to(pod, transport, port)
    }

    /// Source addresses of ICMP errors.
    #[must_use]
    pub fn icmp_source(&self) -> (Ipv4Addr, Ipv6Addr) {
        self.icmp_source
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, len) = text.split_once('/').unwrap();
        Prefix { address: address.parse().unwrap(), len: len.parse().unwrap() }
    }

    #[test]
    fn a_prefix_contains_its_first_and_last_address_and_not_the_next() {
        for (text, first, last, next) in [
            ("10.1.0.0/16", "10.1.0.0", "10.1.255.255", "10.2.0.0"),
            ("10.1.2.3/32", "10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("fd00::/64", "fd00::", "fd00::ffff:ffff:ffff:ffff", "fd00:0:0:1::"),
            ("fd00::1/128", "fd00::1", "fd00::1", "fd00::2"),
        ] {
            let prefix = prefix(text);
            assert!(prefix.contains(first.parse().unwrap()), "{text} {first}");
            assert!(prefix.contains(last.parse().unwrap()), "{text} {last}");
            assert!(!prefix.contains(next.parse().unwrap()), "{text} {next}");
        }
        assert!(prefix("0.0.0.0/0").contains("255.1.1.1".parse().unwrap()));
        assert!(!prefix("0.0.0.0/0").contains("::1".parse().unwrap()));
    }
}
