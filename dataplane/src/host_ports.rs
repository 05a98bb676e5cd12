//! Which pod serves a port of the node. Built by control, read by workers: a change is a new map
//! beside the old one.

use std::hash::Hash;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use hashbrown::HashMap;

use crate::conntrack::{Endpoint, Source, Transport};
use crate::port::PortId;
use crate::tables::PortSpec;

/// Addresses of the node that a host port is asked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostAddress {
    /// This one.
    One(IpAddr),
    /// Any IPv4 address that the node has.
    AnyV4,
    /// Any IPv6 address that the node has.
    AnyV6,
}

/// A port of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// The protocol: the same number is another port in another protocol.
    pub transport: Transport,
    /// Where.
    pub address: HostAddress,
    /// Its number.
    pub port: u16,
}

impl HostPort {
    /// Whether packets of this transport for `asked` are for this host port, if that is an address
    /// of the node and no more special host port has it.
    #[must_use]
    pub fn covers(&self, transport: Transport, asked: Endpoint) -> bool {
        let is_there = match self.address {
            HostAddress::One(address) => address == asked.address,
            HostAddress::AnyV4 => asked.address.is_ipv4(),
            HostAddress::AnyV6 => asked.address.is_ipv6(),
        };
        is_there && self.port == asked.port && self.transport == transport
    }
}

/// Whose packets the pod sees with the asked address as their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// Its own: it could not answer itself otherwise.
    Itself,
    /// Everybody's (`masqAll`).
    Everybody,
    /// Nobody's (`snat: false`).
    Nobody,
}

/// What a host port leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The pod's port.
    pub pod: PortId,
    /// Address and port of the pod, of the family of the host port.
    pub serving: Endpoint,
    /// Whose source is hidden.
    pub masquerade: Masquerade,
}

impl Target {
    /// The source that `pod`, which is the target's, sees in a flow of `client`.
    #[must_use]
    pub fn source(&self, pod: &PortSpec, client: IpAddr) -> Source {
        match self.masquerade {
            Masquerade::Everybody => Source::Asked,
            Masquerade::Itself if pod.owns(client) => Source::Asked,
            Masquerade::Itself | Masquerade::Nobody => Source::Client,
        }
    }
}

/// A port of a pod that host ports lead to.
type ContainerPort = (PortId, Transport, u16);

/// All host ports of the node.
#[derive(Clone, Debug, Default)]
pub struct HostPorts {
    targets: HashMap<HostPort, Target>,
    /// Host ports by what they lead to: how many.
    container_ports: HashMap<ContainerPort, u32>,
    /// Host ports by pod: how many.
    pods: HashMap<PortId, u32>,
    kernels: Option<RangeInclusive<u16>>,
}

impl HostPorts {
    /// None yet. Those of these numbers will be led by the node's kernel: it gives such ports to
    /// connections that the node opens, or masquerades, and it alone can tell their answers from
    /// what is for the host port of the same number.
    #[must_use]
    pub fn beside(kernels: RangeInclusive<u16>) -> HostPorts {
        HostPorts { kernels: Some(kernels), ..HostPorts::default() }
    }

    /// Whether workers lead host ports of this number to pods, and not the kernel.
    #[inline]
    #[must_use]
    pub fn is_workers(&self, port: u16) -> bool {
        !self.kernels.as_ref().is_some_and(|kernels| kernels.contains(&port))
    }

    /// Adds a host port.
    ///
    /// # Panics
    /// It is there already, or leads to an address of the other family: control's state excludes
    /// both.
    pub fn insert(&mut self, host_port: HostPort, target: Target) {
        let is_v4 = match host_port.address {
            HostAddress::One(address) => address.is_ipv4(),
            HostAddress::AnyV4 => true,
            HostAddress::AnyV6 => false,
        };
        assert_eq!(is_v4, target.serving.address.is_ipv4(), "both ends are of one family");
        let other = self.targets.insert(host_port, target);
        assert!(other.is_none(), "{host_port:?} leads to one pod");
        *self.container_ports.entry(container_port(&host_port, &target)).or_default() += 1;
        *self.pods.entry(target.pod).or_default() += 1;
    }

    /// Takes a host port out; nothing happens if it is not there.
    pub fn remove(&mut self, host_port: &HostPort) -> Option<Target> {
        let target = self.targets.remove(host_port)?;
        count_down(&mut self.container_ports, &container_port(host_port, &target));
        count_down(&mut self.pods, &target.pod);
        Some(target)
    }

    /// Where a packet for `asked` leads, an address of which `is_node` says whether the node has
    /// it. A host port of one address decides before that of any.
    ///
    /// An address that is not the node's, or is no longer, leads nowhere even if a host port names
    /// it: its packets are in transit.
    #[inline]
    #[must_use]
    pub fn lookup(
        &self,
        transport: Transport,
        asked: Endpoint,
        is_node: impl FnOnce(IpAddr) -> bool,
    ) -> Option<&Target> {
        if self.targets.is_empty() || !is_node(asked.address) {
            return None;
        }
        let any = match asked.address {
            IpAddr::V4(_) => HostAddress::AnyV4,
            IpAddr::V6(_) => HostAddress::AnyV6,
        };
        let at = |address| self.targets.get(&HostPort { transport, address, port: asked.port });
        at(HostAddress::One(asked.address)).or_else(|| at(any))
    }

    /// What this host port leads to, if it is there.
    #[must_use]
    pub fn get(&self, host_port: &HostPort) -> Option<&Target> {
        self.targets.get(host_port)
    }

    /// Whether host ports lead to this port of a pod: then its flows are followed.
    #[inline]
    #[must_use]
    pub fn leads_to(&self, pod: PortId, transport: Transport, port: u16) -> bool {
        self.container_ports.contains_key(&(pod, transport, port))
    }

    /// Whether host ports lead to this pod.
    #[must_use]
    pub fn tracks(&self, pod: PortId) -> bool {
        self.pods.contains_key(&pod)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&HostPort, &Target)> + '_ {
        self.targets.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }
}

/// One less under `key`, whose entry goes with the last.
fn count_down<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: &K) {
    let count = counts.get_mut(key).expect("it was counted when it came");
    *count -= 1;
    if *count == 0 {
        counts.remove(key);
    }
}

fn container_port(host_port: &HostPort, target: &Target) -> ContainerPort {
    (target.pod, host_port.transport, target.serving.port)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::offload::Hints;
    use crate::port::WorkerId;
    use crate::tables::PortKind;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(address: HostAddress, port: u16) -> HostPort {
        HostPort { transport: Transport::Tcp, address, port }
    }

    fn target(pod: u16, serving: &str) -> Target {
        let serving = Endpoint { address: ip(serving), port: 80 };
        Target { pod: PortId(pod), serving, masquerade: Masquerade::Itself }
    }

    #[test]
    fn one_address_decides_before_any_and_only_the_nodes_addresses_lead_anywhere() {
        let mut host_ports = HostPorts::default();
        host_ports.insert(at(HostAddress::AnyV4, 8080), target(1, "10.244.1.1"));
        host_ports.insert(at(HostAddress::One(ip("192.0.2.1")), 8080), target(2, "10.244.1.2"));
        host_ports.insert(at(HostAddress::One(ip("192.0.2.9")), 8080), target(3, "10.244.1.3"));
        host_ports.insert(at(HostAddress::AnyV6, 8080), target(4, "fd00::4"));
        let node = [ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1")];
        let pod = |address: &str, port| {
            let asked = Endpoint { address: ip(address), port };
            let found = host_ports.lookup(Transport::Tcp, asked, |address| node.contains(&address));
            found.map(|target| target.pod.0)
        };
        assert_eq!(pod("192.0.2.1", 8080), Some(2));
        assert_eq!(pod("192.0.2.2", 8080), Some(1));
        assert_eq!(pod("2001:db8::1", 8080), Some(4));
        assert_eq!(pod("192.0.2.9", 8080), None, "the node has lost this address");
        assert_eq!(pod("192.0.2.3", 8080), None, "in transit");
        assert_eq!(pod("192.0.2.1", 8081), None);
        let asked = Endpoint { address: ip("192.0.2.1"), port: 8080 };
        assert_eq!(host_ports.lookup(Transport::Udp, asked, |_| true), None);
    }

    #[test]
    fn the_kernels_numbers_lead_to_pods_and_are_not_the_workers() {
        let mut host_ports = HostPorts::beside(32768..=60999);
        host_ports.insert(at(HostAddress::AnyV4, 40000), target(1, "10.244.1.1"));
        for (port, is_workers) in
            [(32767, true), (32768, false), (40000, false), (60999, false), (61000, true)]
        {
            assert_eq!(host_ports.is_workers(port), is_workers, "{port}");
        }
        assert!(HostPorts::default().is_workers(40000));
        // What the pod replies is followed all the same.
        assert!(host_ports.leads_to(PortId(1), Transport::Tcp, 80));
        let asked = Endpoint { address: ip("192.0.2.1"), port: 40000 };
        assert!(host_ports.lookup(Transport::Tcp, asked, |_| true).is_some());
        let tables = crate::tables::TablesInput {
            node_addresses: vec![asked.address],
            host_ports: host_ports.into(),
            ..Default::default()
        };
        let tables = crate::tables::Tables::new(1, tables);
        assert!(tables.host_port(Transport::Tcp, asked).is_none());
    }

    #[test]
    fn a_container_port_is_led_to_until_its_last_host_port_goes() {
        let mut host_ports = HostPorts::default();
        let leads = |ports: &HostPorts| ports.leads_to(PortId(1), Transport::Tcp, 80);
        assert!(!leads(&host_ports));
        let (first, second) = (at(HostAddress::AnyV4, 8080), at(HostAddress::AnyV4, 8081));
        host_ports.insert(first, target(1, "10.244.1.1"));
        host_ports.insert(second, target(1, "10.244.1.1"));
        assert!(!host_ports.leads_to(PortId(1), Transport::Udp, 80));
        assert!(!host_ports.leads_to(PortId(1), Transport::Tcp, 8080));
        assert!(host_ports.remove(&first).is_some());
        assert!(leads(&host_ports) && host_ports.tracks(PortId(1)));
        assert!(host_ports.remove(&first).is_none());
        assert!(host_ports.remove(&second).is_some());
        assert!(!leads(&host_ports) && host_ports.is_empty());
        assert!(!host_ports.tracks(PortId(1)));
    }

    #[test]
    fn a_pod_that_asks_itself_sees_the_asked_address_and_others_only_if_that_is_wished() {
        let pod = PortSpec {
            id: PortId(1),
            worker: WorkerId(0),
            kind: PortKind::Pod,
            mac: [0; 6],
            gateway_mac: [0; 6],
            mtu: 1500,
            device_mtu: 1500,
            // Its second address is its own as well.
            addresses: vec![ip("10.244.1.1"), ip("10.244.1.9")],
            hints: Hints::Marker,
            tx_checksum: true,
            limits: crate::shaper::Limits::default(),
        };
        for (masquerade, itself, other) in [
            (Masquerade::Itself, Source::Asked, Source::Client),
            (Masquerade::Everybody, Source::Asked, Source::Asked),
            (Masquerade::Nobody, Source::Client, Source::Client),
        ] {
            let target = Target { masquerade, ..target(1, "10.244.1.1") };
            for own in &pod.addresses {
                assert_eq!(target.source(&pod, *own), itself);
            }
            assert_eq!(target.source(&pod, ip("10.244.1.2")), other);
        }
    }

    proptest! {
        #[test]
        fn a_lookup_equals_a_search_through_all(
            entries in prop::collection::vec((0u32..6, 0u16..4, 0u16..9), 0..20),
            removed in prop::collection::vec((0u32..6, 0u16..4), 0..5),
            asked in (1u32..6, 0u16..4),
        ) {
            // Number 0 is any address.
            let address = |number: u32| match number {
                0 => HostAddress::AnyV4,
                number => HostAddress::One(Ipv4Addr::from(number).into()),
            };
            let mut host_ports = HostPorts::default();
            let mut list: Vec<(u32, u16, u16)> = Vec::new();
            for (number, port, pod) in entries {
                if !list.iter().any(|(a, b, _)| (*a, *b) == (number, port)) {
                    host_ports.insert(at(address(number), port), target(pod, "10.244.1.1"));
                    list.push((number, port, pod));
                }
            }
            for (number, port) in removed {
                host_ports.remove(&at(address(number), port));
                list.retain(|(a, b, _)| (*a, *b) != (number, port));
            }
            let find = |number: u32| {
                let mut entries = list.iter();
                entries.find(|(a, b, _)| (*a, *b) == (number, asked.1)).map(|entry| entry.2)
            };
            let end = Endpoint { address: Ipv4Addr::from(asked.0).into(), port: asked.1 };
            let found = host_ports.lookup(Transport::Tcp, end, |_| true);
            prop_assert_eq!(found.map(|target| target.pod.0), find(asked.0).or_else(|| find(0)));
            prop_assert_eq!(host_ports.len(), list.len());
            for pod in 0..9 {
                let leads = list.iter().any(|entry| entry.2 == pod);
                prop_assert_eq!(host_ports.tracks(PortId(pod)), leads);
                prop_assert_eq!(host_ports.leads_to(PortId(pod), Transport::Tcp, 80), leads);
            }
        }
    }
}
