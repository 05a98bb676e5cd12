//! The addresses that both networks have in common: who is where, and what is sent to whom.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::daemon::{NODE_V4, NODE_V6, UPLINK_V4, UPLINK_V6};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What the routes of pods, and the link to the outside, take: bytes of an IP packet.
pub const MTU: usize = 1500;

/// Where frames are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The pod that sends.
    PodA,
    /// The pod beside it.
    PodB,
    /// What is for the node itself, as it reaches the node's kernel.
    Node,
    /// Behind the node.
    Outside,
}

/// All places.
pub const PLACES: [Place; 4] = [Place::PodA, Place::PodB, Place::Node, Place::Outside];

/// One end of a link as its other end sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The MAC address at the place.
    pub far: Mac,
    /// The MAC address of the router, worker or node before it.
    pub near: Mac,
}

/// What Viaduct gave out, and what is then built again with plain Linux.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Addresses of the sender, IPv4 first.
    pub pod_a: (Ipv4Addr, Ipv6Addr),
    /// Addresses of the other pod.
    pub pod_b: (Ipv4Addr, Ipv6Addr),
    /// Addresses of the pods' network that no pod has.
    pub nobody: (Ipv4Addr, Ipv6Addr),
    /// Prefixes of the pods' network.
    pub pod_cidrs: [String; 2],
    /// Bytes of an IP packet that the links of pods and node take.
    pub link_mtu: usize,
    /// Whether pods keep their offloads: a program marks what their kernels send, and checksums are
    /// left to devices. In basic port mode there is no program, and workers complete checksums.
    pub offloads: bool,
    /// The links, in the order of [`PLACES`].
    pub links: [Link; 4],
}

impl Plan {
    /// Where a router puts what is for `destination`; `None` when there is nobody.
    #[must_use]
    pub fn place_of(&self, destination: IpAddr) -> Option<Place> {
        let is = |(v4, v6)| destination == IpAddr::V4(v4) || destination == IpAddr::V6(v6);
        if is(self.pod_a) {
            Some(Place::PodA)
        } else if is(self.pod_b) {
            Some(Place::PodB)
        } else if is((NODE_V4, NODE_V6)) {
            Some(Place::Node)
        } else {
            (!self.is_pod_network(destination)).then_some(Place::Outside)
        }
    }

    /// Whether an address is in the pods' network; its prefixes are a /24 and a /64.
    #[must_use]
    pub fn is_pod_network(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address.octets()[..3] == self.nobody.0.octets()[..3],
            IpAddr::V6(address) => address.octets()[..8] == self.nobody.1.octets()[..8],
        }
    }

    /// Whether `address` is the sender's.
    #[must_use]
    pub fn is_sender(&self, address: IpAddr) -> bool {
        self.place_of(address) == Some(Place::PodA)
    }

    /// The link at `place`.
    #[must_use]
    pub fn link(&self, place: Place) -> Link {
        self.links[place as usize]
    }
}

/// Whether `address` is one that a router or the node sends ICMP errors from.
#[must_use]
pub fn is_router(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => [NODE_V4, UPLINK_V4].contains(&address),
        IpAddr::V6(address) => [NODE_V6, UPLINK_V6].contains(&address),
    }
}

/// Writes a MAC address as `ip` wants it.
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads a MAC address as `ip` shows it.
#[must_use]
pub fn mac_of(text: &str) -> Option<Mac> {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

/// A plan with made-up addresses.
#[cfg(test)]
pub(super) fn tests_plan() -> Plan {
    let link = |last| Link { far: [0x0a, 0, 0, 0, 1, last], near: [0x0a, 0, 0, 0, 2, last] };
    let v6 = |last| Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, last);
    Plan {
        pod_a: (Ipv4Addr::new(10, 244, 0, 1), v6(1)),
        pod_b: (Ipv4Addr::new(10, 244, 0, 2), v6(2)),
        nobody: (Ipv4Addr::new(10, 244, 0, 250), v6(0xfeed)),
        pod_cidrs: ["10.244.0.0/24".into(), "fd00:10:244::/64".into()],
        link_mtu: 65535,
        offloads: true,
        links: [link(1), link(2), link(3), link(4)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_survives_its_text() {
        let mac = [0x0a, 0, 0xff, 0x10, 1, 2];
        assert_eq!(mac_of(&mac_text(mac)), Some(mac));
        assert_eq!(mac_of("0a:00:ff"), None);
    }
}
