//! The pod's end: its addresses, its gateways, and what its kernel may leave to us.

use super::{EndpointError, EndpointSpec};
use crate::ethtool::Ethtool;
use crate::netlink::{
    Address, AddressScope, Ipv4Setting, LinkSettings, Neighbor, Netlink, Request, Route, RouteKind,
};
use crate::node::{GATEWAY_V4, GATEWAY_V6, ROUTE_PROTOCOL, link_local};
use crate::sysctl;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::IpAddr;

/// `RT_TABLE_LOCAL`
const TABLE_LOCAL: u32 = 255;

/// Runs inside the pod's namespace.
pub(super) fn configure(spec: &EndpointSpec<'_>, index: u32) -> Result<(), EndpointError> {
    let name = spec.ifname;
    let ipv6 = sysctl::ipv6_exists();
    let mut netlink = Netlink::open()?;
    Ethtool::open()?.set_features(name, &spec.offloads.features())?;
    if ipv6 {
        sysctl::write(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        sysctl::write(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
    }
    if ipv6 && spec.v6().next().is_some() {
        // Some runtimes turn IPv6 off in new namespaces.
        sysctl::write(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
        sysctl::write(&format!("ipv6/conf/{name}/ndisc_notify"), "1")?;
    }
    let announce = [(Ipv4Setting::ArpNotify, 1)];
    let settings =
        LinkSettings { ipv4: &announce, ..LinkSettings::without_made_up_addresses(ipv6) };
    let mut requests = vec![Request::configure_link(name, &settings)];
    // When the interface comes up, the kernel announces the addresses that it has by then: a
    // gratuitous ARP for each of IPv4, an unsolicited advertisement for each of IPv6
    // (net/ipv4/devinet.c, `inetdev_event`; net/ipv6/ndisc.c, `ndisc_netdev_event`). There is no
    // XDP program on the host end yet, so no worker sees them.
    requests.extend(own_addresses(spec, index).iter().map(|own| Request::put_address(own, name)));
    requests.push(Request::bring_up(name));
    let local = |ip| Request::put_route(&local_route(IpAddr::V6(ip), index), name);
    requests.extend(spec.v6().map(local));
    requests.extend(v4_requests(spec, index));
    requests.extend(v6_requests(spec, index));
    Ok(netlink.execute(requests)?)
}

/// The pod's addresses, each alone in its subnet, and the link-local one that IPv6 needs beside
/// them. None waits for duplicate address detection.
fn own_addresses(spec: &EndpointSpec<'_>, index: u32) -> Vec<Address> {
    let own = |address: &IpAddr| Address {
        index,
        address: *address,
        prefix_len: IpNet::from(*address).prefix_len(),
        scope: AddressScope::Universe,
        preferred: true,
    };
    let link_local = Address {
        index,
        address: link_local(spec.mac).into(),
        prefix_len: 64,
        scope: AddressScope::Link,
        preferred: true,
    };
    let mut addresses: Vec<Address> = spec.addresses.iter().map(own).collect();
    addresses.extend(spec.v6().next().map(|_| link_local));
    addresses
}

/// Lets the pod take packets to an IPv6 address of its own at once.
///
/// Even without duplicate address detection the kernel leaves that to a work queue
/// (net/ipv6/addrconf.c, `addrconf_dad_start`), which on a busy node took more than 1 s, and until
/// then the pod drops them. The kernel's own route comes with a better metric and takes over.
fn local_route(address: IpAddr, index: u32) -> Route {
    let direct = Route::direct(IpNet::from(address), index, ROUTE_PROTOCOL);
    Route { table: TABLE_LOCAL, kind: RouteKind::Local, ..direct }
}

fn v4_requests(spec: &EndpointSpec<'_>, index: u32) -> Vec<Request> {
    let Some(src) = spec.v4().next() else {
        return Vec::new();
    };
    let (name, gateway) = (spec.ifname, IpAddr::from(GATEWAY_V4));
    // A second interface of the pod has routes of its own, behind those of the first.
    let (metric, mtu) = (index, Some(spec.route_mtu));
    let ours = |route: Route| Route { metric, mtu, src: Some(src.into()), ..route };
    let to_gateway = ours(Route::direct(IpNet::from(gateway), index, ROUTE_PROTOCOL));
    let mut requests = vec![
        Request::put_neighbor(&Neighbor::permanent(index, gateway, spec.host_mac), name),
        Request::put_route(&to_gateway, name),
    ];
    let everything = IpNet::V4(Ipv4Net::default());
    let extra = spec.routes.iter().copied().filter(|dst| dst.addr().is_ipv4());
    for dst in std::iter::once(everything).chain(extra) {
        let route = ours(Route::via(dst.trunc(), gateway, index, ROUTE_PROTOCOL));
        requests.push(Request::put_route(&route, name));
    }
    requests
}

fn v6_requests(spec: &EndpointSpec<'_>, index: u32) -> Vec<Request> {
    let Some(src) = spec.v6().next() else {
        return Vec::new();
    };
    let (name, gateway) = (spec.ifname, IpAddr::from(GATEWAY_V6));
    let mut requests =
        vec![Request::put_neighbor(&Neighbor::permanent(index, gateway, spec.host_mac), name)];
    let everything = IpNet::V6(Ipv6Net::default());
    let extra = spec.routes.iter().copied().filter(|dst| dst.addr().is_ipv6());
    for dst in std::iter::once(everything).chain(extra) {
        let route = Route {
            metric: index,
            mtu: Some(spec.route_mtu),
            src: Some(src.into()),
            ..Route::via(dst.trunc(), gateway, index, ROUTE_PROTOCOL)
        };
        requests.push(Request::put_route(&route, name));
    }
    requests
}
