//! Ports of the node that lead to pods, in the words of those who serve them: the workers, the XDP
//! program and the kernel's table. Pure: what is in force, and in what order it comes to be, is the
//! engine's.

use std::net::IpAddr;

use cni_bridge::protocol::PortProtocol;
use dataplane::conntrack::{Endpoint, Transport};
use dataplane::host_ports::{HostAddress, HostPort, Masquerade, Target};
use dataplane::port::PortId;

use crate::state::{HostPortAddress, HostPortRecord, MasqueradeWish, PodRecord};

/// A host port and what it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lead {
    /// Where it is asked.
    pub host_port: HostPort,
    /// What answers.
    pub target: Target,
}

/// The host ports of a pod whose port is `id`, in the order of its record.
pub fn of_pod(pod: &PodRecord, id: PortId) -> impl Iterator<Item = Lead> {
    let masquerade = match pod.masquerade {
        MasqueradeWish::Itself => Masquerade::Itself,
        MasqueradeWish::Everybody => Masquerade::Everybody,
        MasqueradeWish::Nobody => Masquerade::Nobody,
    };
    pod.host_ports.iter().map(move |record| {
        let serving = Endpoint { address: record.serving, port: record.container_port };
        Lead { host_port: asked(record), target: Target { pod: id, serving, masquerade } }
    })
}

/// Where a host port is asked.
#[must_use]
pub fn asked(record: &HostPortRecord) -> HostPort {
    HostPort {
        transport: match record.transport {
            PortProtocol::Tcp => Transport::Tcp,
            PortProtocol::Udp => Transport::Udp,
            PortProtocol::Sctp => Transport::Sctp,
        },
        address: match record.address {
            HostPortAddress::One(address) => HostAddress::One(address),
            HostPortAddress::AnyV4 => HostAddress::AnyV4,
            HostPortAddress::AnyV6 => HostAddress::AnyV6,
        },
        port: record.port,
    }
}

/// Whether packets for this host port can come by a wire. Those for a loopback address cannot:
/// they are the kernel's alone.
#[must_use]
pub fn is_on_wire(host_port: &HostPort) -> bool {
    !matches!(host_port.address, HostAddress::One(address) if address.is_loopback())
}

/// The host port of every address that decides where this one, of a single address, does not.
/// `None` for one that is of every address itself.
#[must_use]
pub fn general(host_port: &HostPort) -> Option<HostPort> {
    let address = match host_port.address {
        HostAddress::One(IpAddr::V4(_)) => HostAddress::AnyV4,
        HostAddress::One(IpAddr::V6(_)) => HostAddress::AnyV6,
        HostAddress::AnyV4 | HostAddress::AnyV6 => return None,
    };
    Some(HostPort { address, ..*host_port })
}

#[cfg(test)]
mod tests {
    use cni_bridge::protocol::{Attachment, Bandwidth, PodAddress};

    use super::*;
    use crate::endpoint::Offloads;
    use crate::state::Fallback;

    fn pod(addresses: &[&str]) -> PodRecord {
        let address = |text: &&str| PodAddress { address: ip(text), prefix_len: 24, gateway: None };
        PodRecord {
            attachment: Attachment {
                network: "viaduct".to_owned(),
                container_id: "c".to_owned(),
                ifname: "eth0".to_owned(),
            },
            netns: String::new(),
            netns_inode: 1,
            netns_dev: 4,
            host_ifname: "vd0123456789ab".to_owned(),
            host_ifindex: 9,
            mac: [0x0a, 0, 0, 0, 0, 1],
            host_mac: [0x0a, 0, 0, 0, 0, 2],
            addresses: addresses.iter().map(address).collect(),
            route_mtu: 1500,
            offloads: Offloads::Full,
            worker: 0,
            slot: 0,
            pod_namespace: String::new(),
            pod_name: String::new(),
            fallback: Fallback::Pass,
            generation: 1,
            host_ports: Vec::new(),
            masquerade: MasqueradeWish::Itself,
            limits: Bandwidth::default(),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn end(address: &str, port: u16) -> Endpoint {
        Endpoint { address: ip(address), port }
    }

    fn lead(address: HostAddress, port: u16, serving: Endpoint) -> Lead {
        let host_port = HostPort { transport: Transport::Tcp, address, port };
        let target = Target { pod: PortId(200), serving, masquerade: Masquerade::Itself };
        Lead { host_port, target }
    }

    #[test]
    fn a_record_becomes_a_host_port_of_its_address_and_leads_to_the_pod() {
        let mut pod = pod(&["10.244.1.5", "fd00::5"]);
        pod.masquerade = MasqueradeWish::Everybody;
        let entry = |transport, address, serving: &str| HostPortRecord {
            transport,
            address,
            port: 8080,
            serving: ip(serving),
            container_port: 80,
        };
        let one = HostPortAddress::One(ip("192.0.2.1"));
        pod.host_ports = vec![
            entry(PortProtocol::Tcp, one, "10.244.1.5"),
            entry(PortProtocol::Udp, HostPortAddress::AnyV4, "10.244.1.5"),
            entry(PortProtocol::Sctp, HostPortAddress::AnyV6, "fd00::5"),
        ];
        let leads: Vec<Lead> = of_pod(&pod, PortId(7)).collect();
        let at = leads.iter().map(|lead| (lead.host_port.transport, lead.host_port.address));
        let expected = [
            (Transport::Tcp, HostAddress::One(ip("192.0.2.1"))),
            (Transport::Udp, HostAddress::AnyV4),
            (Transport::Sctp, HostAddress::AnyV6),
        ];
        assert_eq!(at.collect::<Vec<_>>(), expected);
        assert!(leads.iter().all(|lead| lead.host_port.port == 8080));
        assert_eq!(leads[2].target.serving, end("fd00::5", 80));
        assert_eq!(leads[2].target.pod, PortId(7));
        assert_eq!(leads[2].target.masquerade, Masquerade::Everybody);
    }

    #[test]
    fn only_loopback_addresses_never_come_by_a_wire() {
        let serving = end("10.244.1.5", 80);
        for (address, expected) in [
            (HostAddress::One(ip("127.0.0.1")), false),
            (HostAddress::One(ip("127.1.2.3")), false),
            (HostAddress::One(ip("192.0.2.1")), true),
            (HostAddress::AnyV4, true),
        ] {
            assert_eq!(is_on_wire(&lead(address, 1, serving).host_port), expected, "{address:?}");
        }
    }

    #[test]
    fn one_address_has_a_general_case_and_any_has_none() {
        let serving = end("10.244.1.5", 80);
        let of = |address| general(&lead(address, 1, serving).host_port).map(|port| port.address);
        assert_eq!(of(HostAddress::One(ip("192.0.2.1"))), Some(HostAddress::AnyV4));
        assert_eq!(of(HostAddress::One(ip("2001:db8::1"))), Some(HostAddress::AnyV6));
        assert_eq!(of(HostAddress::AnyV4), None);
        assert_eq!(of(HostAddress::AnyV6), None);
    }
}
