//! Neighbor entries: which Ethernet address answers for an IP address on an interface.

use super::{Netlink, NetlinkError, Put, Request, family_of, mac_of};
use netlink_packet_route::RouteNetlinkMessage;
pub use netlink_packet_route::neighbour::NeighbourState as NeighborState;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::RouteType;
use std::net::IpAddr;

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
}

impl Neighbor {
    /// An entry that never expires and is never asked for.
    pub fn permanent(index: u32, address: IpAddr, mac: [u8; 6]) -> Neighbor {
        Neighbor { index, address, mac: Some(mac), state: NeighborState::Permanent }
    }

    pub(super) fn from_message(message: NeighbourMessage) -> Option<Neighbor> {
        let (mut address, mut mac) = (None, None);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    address = Some(IpAddr::V4(ip));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    address = Some(IpAddr::V6(ip));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = mac_of(&bytes),
                _ => {}
            }
        }
        let index = message.header.ifindex;
        Some(Neighbor { index, address: address?, mac, state: message.header.state })
    }
}

impl Request {
    /// Writes a neighbor entry over what is there.
    pub fn put_neighbor(neighbor: &Neighbor, device: &str) -> Request {
        let Neighbor { index, address, mac, state } = *neighbor;
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
