//! Neighbor entries: which Ethernet address answers for an IP address on an interface.

use super::{Netlink, NetlinkError, Put, Request, family_of, mac_of};
use netlink_packet_route::RouteNetlinkMessage;
pub use netlink_packet_route::neighbour::NeighbourState as NeighborState;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::{RouteProtocol, RouteType};
use std::net::{IpAddr, Ipv4Addr};

/// A neighbor entry of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbor {
    /// Index of the interface.
    pub index: u32,
    /// The neighbor's IP address.
    pub address: IpAddr,
    /// Its Ethernet address, if known.
    pub mac: Option<[u8; 6]>,
    /// How much the kernel believes it.
    pub state: NeighborState,
    /// Who made it (`RTPROT_*`); 0 if the kernel learned it, or nobody said.
    pub protocol: u8,
    /// The kernel keeps it resolved by itself (`NTF_EXT_MANAGED`).
    pub managed: bool,
    /// Somebody else keeps it resolved, such as a routing daemon (`NTF_EXT_LEARNED`).
    pub learned: bool,
}

impl Neighbor {
    /// An entry that never expires and is never asked for.
    pub fn permanent(index: u32, address: IpAddr, mac: [u8; 6]) -> Neighbor {
        Neighbor {
            mac: Some(mac),
            state: NeighborState::Permanent,
            ..Neighbor::new(index, address)
        }
    }

    fn new(index: u32, address: IpAddr) -> Neighbor {
        Neighbor {
            index,
            address,
            mac: None,
            state: NeighborState::None,
            protocol: 0,
            managed: false,
            learned: false,
        }
    }

    pub(super) fn from_message(message: NeighbourMessage) -> Option<Neighbor> {
        let mut neighbor = Neighbor {
            state: message.header.state,
            learned: message.header.flags.contains(NeighbourFlags::ExtLearned),
            ..Neighbor::new(message.header.ifindex, Ipv4Addr::UNSPECIFIED.into())
        };
        let mut address = None;
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    address = Some(IpAddr::V4(ip));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    address = Some(IpAddr::V6(ip));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => neighbor.mac = mac_of(&bytes),
                NeighbourAttribute::Protocol(protocol) => neighbor.protocol = u8::from(protocol),
                NeighbourAttribute::ExtFlags(flags) => {
                    neighbor.managed = flags.contains(NeighbourExtFlags::Managed);
                }
                _ => {}
            }
        }
        Some(Neighbor { address: address?, ..neighbor })
    }
}

/// An entry without a MAC address, to be changed by its flags.
fn flagged(index: u32, address: IpAddr, flags: NeighbourFlags) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(address);
    message.header.ifindex = index;
    message.header.kind = RouteType::Unicast;
    message.header.flags = flags;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

impl Request {
    /// Writes a neighbor entry over what is there.
    pub fn put_neighbor(neighbor: &Neighbor, device: &str) -> Request {
        let Neighbor { index, address, mac, state, .. } = *neighbor;
        let mut message = NeighbourMessage::default();
        message.header.family = family_of(address);
        message.header.ifindex = index;
        message.header.state = state;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        message
            .attributes
            .extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
        let what = format!("add neighbor {address} dev {device}");
        Request::new(RouteNetlinkMessage::NewNeighbour(message), Put::Replace.flags(), what)
    }

    /// Has the kernel resolve a neighbor now, and again whenever it is about to forget it
    /// (`NTF_EXT_MANAGED`, Linux 5.16). `protocol` is noted as its maker. Not for a permanent
    /// entry, which would stop being one.
    pub fn keep_neighbor(index: u32, address: IpAddr, protocol: u8) -> Request {
        let mut message = flagged(index, address, NeighbourFlags::empty());
        message.attributes.extend([
            NeighbourAttribute::Protocol(RouteProtocol::from(protocol)),
            NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed),
        ]);
        let what = format!("keep neighbor {address} on interface {index} resolved");
        Request::new(RouteNetlinkMessage::NewNeighbour(message), Put::Replace.flags(), what)
    }

    /// Has the kernel look whether a neighbor is still there (`NTF_USE`), as if it had a packet for
    /// it; and not keep it resolved any longer. Not for a permanent entry, as above.
    pub fn use_neighbor(index: u32, address: IpAddr) -> Request {
        let message = flagged(index, address, NeighbourFlags::Use);
        let what = format!("ask for neighbor {address} on interface {index}");
        Request::new(RouteNetlinkMessage::NewNeighbour(message), Put::Replace.flags(), what)
    }
}

impl Netlink {
    /// The neighbor entries of one interface, or of all.
    pub fn neighbors(&mut self, index: Option<u32>) -> Result<Vec<Neighbor>, NetlinkError> {
        let mut message = NeighbourMessage::default();
        // Strict checking takes the filter as an attribute and refuses it in the header.
        message.attributes.extend(index.map(NeighbourAttribute::IfIndex));
        let message = RouteNetlinkMessage::GetNeighbour(message);
        let list = self.dump(message, "list neighbors")?;
        let neighbors = list.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => Neighbor::from_message(message),
            _ => None,
        });
        Ok(neighbors.collect())
    }
}
