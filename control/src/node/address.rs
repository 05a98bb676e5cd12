//! Which address the node uses when it talks to its pods.

use crate::netlink::{Address, AddressScope, Netlink, NetlinkError, Route, RouteKind};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The node's addresses as its pods see it; `None` if it has none of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeAddresses {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl NodeAddresses {
    /// The address of the family of `dst`.
    pub fn for_dst(&self, dst: &IpNet) -> Option<IpAddr> {
        match dst {
            IpNet::V4(_) => self.v4.map(IpAddr::V4),
            IpNet::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// Asks the kernel: of each family the source address of the default route, else the first
    /// global address of any interface.
    pub(super) fn discover(
        netlink: &mut Netlink,
        defaults: &[Route],
    ) -> Result<NodeAddresses, NetlinkError> {
        let addresses = netlink.addresses()?;
        Ok(NodeAddresses {
            v4: choose(defaults, &addresses, IpAddr::is_ipv4).and_then(|ip| match ip {
                IpAddr::V4(ip) => Some(ip),
                IpAddr::V6(_) => None,
            }),
            v6: choose(defaults, &addresses, IpAddr::is_ipv6).and_then(|ip| match ip {
                IpAddr::V4(_) => None,
                IpAddr::V6(ip) => Some(ip),
            }),
        })
    }
}

fn choose(routes: &[Route], addresses: &[Address], family: fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let fit: Vec<&Address> = addresses
        .iter()
        .filter(|a| family(&a.address) && a.scope == AddressScope::Universe && a.preferred)
        .collect();
    let default = routes
        .iter()
        .filter(|route| route.dst.prefix_len() == 0 && family(&route.dst.addr()))
        .filter(|route| route.kind == RouteKind::Unicast)
        .filter(|route| route.next_hops.iter().any(|hop| !hop.dead))
        .min_by_key(|route| route.metric);
    let by_default_route = default.and_then(|route| {
        let hop = route.next_hops.iter().find(|hop| !hop.dead)?;
        let on_device = || fit.iter().filter(|address| address.index == hop.index);
        // Like the kernel: the address whose subnet has the router in it, else the first.
        let beside_router = on_device().find(|address| {
            let subnet = IpNet::new(address.address, address.prefix_len);
            subnet.is_ok_and(|subnet| hop.via.is_some_and(|via| subnet.contains(&via)))
        });
        route.src.or(beside_router.or(on_device().next()).map(|address| address.address))
    });
    by_default_route.or(fit.first().map(|address| address.address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(index: u32, text: &str) -> Address {
        let net: IpNet = text.parse().expect("prefix");
        Address {
            index,
            address: net.addr(),
            prefix_len: net.prefix_len(),
            scope: AddressScope::Universe,
            preferred: true,
        }
    }

    fn default_via(via: &str, index: u32, metric: u32) -> Route {
        let router: IpAddr = via.parse().expect("address");
        let all = if router.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let dst = all.parse().expect("prefix");
        Route { metric, ..Route::via(dst, router, index, 4) }
    }

    fn chosen(routes: &[Route], addresses: &[Address]) -> Option<String> {
        choose(routes, addresses, IpAddr::is_ipv4).map(|ip| ip.to_string())
    }

    #[test]
    fn the_default_route_with_the_least_metric_decides() {
        let addresses = [address(2, "10.0.0.5/24"), address(3, "192.0.2.5/24")];
        let routes = [default_via("10.0.0.1", 2, 100), default_via("192.0.2.1", 3, 50)];
        assert_eq!(chosen(&routes, &addresses).as_deref(), Some("192.0.2.5"));
    }

    #[test]
    fn a_default_route_that_is_down_does_not_decide() {
        let addresses = [address(2, "10.0.0.5/24"), address(3, "192.0.2.5/24")];
        let mut dead = default_via("192.0.2.1", 3, 50);
        dead.next_hops[0].dead = true;
        assert_eq!(
            chosen(&[dead, default_via("10.0.0.1", 2, 100)], &addresses).as_deref(),
            Some("10.0.0.5")
        );
    }

    #[test]
    fn the_source_that_the_route_names_wins_over_the_interface() {
        let mut route = default_via("10.0.0.1", 2, 0);
        route.src = Some("198.51.100.7".parse().expect("address"));
        let addresses = [address(2, "10.0.0.5/24")];
        assert_eq!(chosen(&[route], &addresses).as_deref(), Some("198.51.100.7"));
    }

    #[test]
    fn of_two_subnets_on_an_interface_the_routers_is_taken() {
        let addresses = [address(2, "203.0.113.5/24"), address(2, "10.0.0.5/24")];
        let routes = [default_via("10.0.0.1", 2, 0)];
        assert_eq!(chosen(&routes, &addresses).as_deref(), Some("10.0.0.5"));
    }

    #[test]
    fn without_a_default_route_the_first_global_address_is_taken() {
        let mut local = address(1, "127.0.0.1/8");
        local.scope = AddressScope::Host;
        let mut old = address(2, "10.0.0.4/24");
        old.preferred = false;
        assert_eq!(chosen(&[], &[local, old]), None);
        let addresses = [local, old, address(4, "10.0.0.5/24")];
        assert_eq!(chosen(&[], &addresses).as_deref(), Some("10.0.0.5"));
    }

    #[test]
    fn families_do_not_mix() {
        let addresses = [address(2, "fd00::5/64")];
        let routes = [default_via("fe80::99", 2, 0)];
        assert_eq!(choose(&routes, &addresses, IpAddr::is_ipv4), None);
        assert_eq!(
            choose(&routes, &addresses, IpAddr::is_ipv6),
            Some("fd00::5".parse().expect("address"))
        );
    }
}
