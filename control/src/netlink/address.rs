//! Addresses of interfaces.

use super::{Netlink, NetlinkError, Put, Request, family_of};
use netlink_packet_route::RouteNetlinkMessage;
pub use netlink_packet_route::address::AddressScope;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use std::net::IpAddr;

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface it is on.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of the on-link prefix, up to 32 or 128.
    pub prefix_len: u8,
    /// How far the address is valid.
    pub scope: AddressScope,
    /// Whether new connections may choose it: not deprecated, not tentative, not a second address
    /// of its subnet, not a temporary one.
    pub preferred: bool,
}

impl Address {
    pub(super) fn from_message(message: AddressMessage) -> Option<Address> {
        let header = message.header;
        let mut flags = AddressFlags::from_bits_retain(u32::from(header.flags.bits()));
        let (mut address, mut local) = (None, None);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Address(ip) => address = Some(ip),
                // On a point-to-point interface IFA_ADDRESS is the peer; IFA_LOCAL is ours.
                AddressAttribute::Local(ip) => local = Some(ip),
                AddressAttribute::Flags(wide) => flags = wide,
                _ => {}
            }
        }
        // IFA_F_SECONDARY and IFA_F_TEMPORARY are one bit: a second IPv4 address of a subnet, a
        // temporary IPv6 address.
        let unfit = AddressFlags::Deprecated
            | AddressFlags::Tentative
            | AddressFlags::Dadfailed
            | AddressFlags::Secondary;
        Some(Address {
            index: header.index,
            address: local.or(address)?,
            prefix_len: header.prefix_len,
            scope: header.scope,
            preferred: !flags.intersects(unfit),
        })
    }

    fn message(&self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = family_of(self.address);
        message.header.prefix_len = self.prefix_len;
        message.header.scope = self.scope;
        message.header.index = self.index;
        message.attributes.push(AddressAttribute::Local(self.address));
        message.attributes.push(AddressAttribute::Address(self.address));
        message
    }
}

impl Request {
    /// Gives an interface an address, or keeps it if it has it. IPv6 addresses are used at once,
    /// without duplicate address detection, which would cost 1 to 2 s (RFC 4862 §5.4).
    pub fn put_address(address: &Address, device: &str) -> Request {
        let mut message = address.message();
        if address.address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        let what = format!("add address {}/{} dev {device}", address.address, address.prefix_len);
        Request::new(RouteNetlinkMessage::NewAddress(message), Put::Replace.flags(), what)
    }
}

impl Netlink {
    /// All addresses of the namespace.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let list = self.dump(message, "list addresses")?;
        let addresses = list.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => Address::from_message(message),
            _ => None,
        });
        Ok(addresses.collect())
    }
}
