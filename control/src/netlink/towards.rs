//! Which way the kernel would send a packet.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rustix::io::Errno;

use super::{Netlink, NetlinkError, Request, family_of};

impl Netlink {
    /// Index of the interface by which the kernel would send a packet of its own to `dst` now;
    /// `None` if it would not send it.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn interface_towards(&mut self, dst: IpAddr) -> Result<Option<u32>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(dst);
        message.header.destination_prefix_length = if dst.is_ipv4() { 32 } else { 128 };
        let address = match dst {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        };
        message.attributes.push(RouteAttribute::Destination(address));
        let message = RouteNetlinkMessage::GetRoute(message);
        match self.query([Request::new(message, 0, format!("look up the route to {dst}"))]) {
            Ok(answers) => Ok(answers.into_iter().find_map(interface)),
            Err(error) => match error.errno() {
                // No route, or one that says so (RTN_UNREACHABLE, RTN_BLACKHOLE, RTN_PROHIBIT).
                Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::INVAL | Errno::ACCESS) => {
                    Ok(None)
                }
                _ => Err(error),
            },
        }
    }
}

fn interface(message: RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_oneself_is_the_loopback_interface() {
        let mut netlink = Netlink::open().expect("rtnetlink");
        let lo = netlink.link("lo").expect("links").expect("every namespace has one").index;
        let local = "127.0.0.1".parse().expect("an address");
        assert_eq!(netlink.interface_towards(local).expect("asked"), Some(lo));
    }
}
