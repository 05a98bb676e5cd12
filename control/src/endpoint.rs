//! A pod's interface: how it is made, compared with what it should be, and taken away.
//!
//! The kernel alone can carry a pod made here: both ends have permanent neighbors, and the node
//! has a route to each address. The workers' part (XDP, XSK) comes on top, so a pod stays
//! connected while the daemon is away.
//!
//! Everything but the loopback's being up hangs on the veth pair, so the undo of every step is to
//! delete the host end: addresses, routes, neighbors and per-device settings go with it.

mod check;
mod namespace;
mod offload;
mod pod;

pub use check::{Difference, check};
pub use namespace::in_namespace;
pub use offload::Offloads;

use crate::ethtool::EthtoolError;
use crate::netlink::{
    Address, AddressScope, Ipv4Setting, Link, LinkSettings, Neighbor, Netlink, NetlinkError,
    Request, Route, Veth, VethEnd,
};
use crate::node::{GATEWAY_V4, ROUTE_PROTOCOL, ROUTE_TABLE};
use crate::sysctl::{self, SysctlError};
use ipnet::IpNet;
use rustix::io::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

/// A pod's interface as it should be.
#[derive(Debug, Clone)]
pub struct EndpointSpec<'a> {
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
    /// Name of the interface in the pod.
    pub ifname: &'a str,
    /// Name of the host end, from [`crate::node::host_ifname`].
    pub host_ifname: &'a str,
    /// Whose it is, from [`crate::node::cookie`]; at most 255 bytes. Kept as the host end's alias.
    pub cookie: &'a str,
    /// The pod's Ethernet address: unicast, and its first octet is not `02`.
    pub mac: [u8; 6],
    /// The host end's Ethernet address, usually [`crate::node::HOST_MAC`].
    pub host_mac: [u8; 6],
    /// The pod's addresses, IPv4 and IPv6. The first of a family is the pod's source address.
    pub addresses: &'a [IpAddr],
    /// Largest IP packet on a wire, in bytes, 1280 to 65535.
    pub route_mtu: u32,
    /// Largest IP packet between the pod and its worker, in bytes; `route_mtu` in basic mode.
    pub device_mtu: u32,
    /// What the pod's kernel may leave to us.
    pub offloads: Offloads,
    /// Destinations beside the default route that lead to the gateway, too.
    pub routes: &'a [IpNet],
}

impl EndpointSpec<'_> {
    fn v4(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.addresses.iter().filter_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })
    }

    fn v6(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.addresses.iter().filter_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(*address),
        })
    }
}

/// A pod's interface that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Index of the host end in the node's namespace.
    pub host_index: u32,
    /// Index of the pod's interface in the pod's namespace.
    pub pod_index: u32,
}

/// What became of a host end that was to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// It is gone now.
    Deleted,
    /// It was not there.
    Absent,
}

/// Why a pod's interface could not be made or deleted.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The pod has an interface of that name.
    #[error("the pod already has an interface {ifname}; delete it or choose another CNI_IFNAME")]
    AlreadyExists {
        /// Name of the interface.
        ifname: String,
    },
    /// A device with the name of the host end is not ours.
    #[error("{host_ifname} is not ours (its alias is {alias:?}); delete or rename that device")]
    Foreign {
        /// Name of the device.
        host_ifname: String,
        /// Its alias, or empty.
        alias: String,
    },
    /// An IPv6 address on a node without IPv6.
    #[error("the node has no IPv6 for {address}; boot it without ipv6.disable=1")]
    NoIpv6 {
        /// The address.
        address: Ipv6Addr,
    },
    /// The pod's network namespace could not be entered.
    #[error("enter the pod's network namespace: {0}")]
    Namespace(#[source] io::Error),
    /// The kernel refused a step.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A setting could not be written.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The pod's offloads could not be set.
    #[error(transparent)]
    Ethtool(#[from] EthtoolError),
    /// A step failed, and so did its undo: the host end is still there.
    #[error("{cause}; and taking {host_ifname} away again failed: {undo}")]
    HalfMade {
        /// Name of the host end.
        host_ifname: String,
        /// Why it was to be taken away.
        cause: Box<EndpointError>,
        /// Why it was not.
        undo: NetlinkError,
    },
}

/// The node's side of all endpoints: a connection to the kernel in the node's namespace.
///
/// Open it on a thread in that namespace, and use it on threads that are there: settings are
/// files that follow the thread. Several threads may have one each.
#[derive(Debug)]
pub struct HostSide {
    netlink: Netlink,
    ipv6: bool,
}

impl HostSide {
    /// Connects to the network namespace the calling thread is in.
    pub fn open() -> Result<HostSide, NetlinkError> {
        Ok(HostSide { netlink: Netlink::open()?, ipv6: sysctl::ipv6_exists() })
    }
}

/// Makes a pod's interface and everything the kernel needs to carry its traffic.
///
/// Called again with the same specification it returns what is there, or makes it anew if it is
/// damaged. A failed call leaves nothing behind.
pub fn attach(host: &mut HostSide, spec: &EndpointSpec<'_>) -> Result<Endpoint, EndpointError> {
    if let Some(address) = spec.v6().next().filter(|_| !host.ipv6) {
        return Err(EndpointError::NoIpv6 { address });
    }
    let link = match create(host, spec) {
        Err(error) if error.errno() == Some(Errno::EXIST) => {
            match host.netlink.link(spec.host_ifname)? {
                None => {
                    return Err(EndpointError::AlreadyExists { ifname: spec.ifname.into() });
                }
                Some(link) if check(host, spec).is_ok() => return Ok(endpoint(&link)),
                Some(_) => {
                    detach(host, spec.host_ifname, spec.cookie)?;
                    create(host, spec)?
                }
            }
        }
        result => result?,
    };
    // From here on there is something to undo.
    let Err(cause) = configure(host, spec, &link) else { return Ok(endpoint(&link)) };
    match host.netlink.execute([Request::delete_link(link.index, &link.name).if_present()]) {
        Ok(()) => Err(cause),
        Err(undo) => {
            Err(EndpointError::HalfMade { host_ifname: link.name, cause: Box::new(cause), undo })
        }
    }
}

/// Deletes a pod's host end, and with it the pod's interface, if it carries this cookie. Takes 12
/// to 16 ms in the kernel; the caller may do it on a thread of its own with its own `HostSide`.
pub fn detach(
    host: &mut HostSide,
    host_ifname: &str,
    cookie: &str,
) -> Result<Detached, EndpointError> {
    let Some(link) = host.netlink.link(host_ifname)? else {
        return Ok(Detached::Absent);
    };
    let alias = link.alias.unwrap_or_default();
    if alias != cookie {
        return Err(EndpointError::Foreign { host_ifname: host_ifname.to_owned(), alias });
    }
    // By index, so that a device that took the name meanwhile is safe.
    host.netlink.execute([Request::delete_link(link.index, host_ifname).if_present()])?;
    Ok(Detached::Deleted)
}

fn create(host: &mut HostSide, spec: &EndpointSpec<'_>) -> Result<Link, NetlinkError> {
    host.netlink.create_veth(&Veth {
        near: VethEnd { name: spec.host_ifname, mac: spec.host_mac, queues: 1, namespace: None },
        far: VethEnd { name: spec.ifname, mac: spec.mac, queues: 1, namespace: Some(spec.netns) },
        mtu: spec.device_mtu,
        alias: spec.cookie,
    })
}

fn endpoint(link: &Link) -> Endpoint {
    Endpoint { host_index: link.index, pod_index: link.peer_index.unwrap_or(0) }
}

/// IPv4 settings of a host end. It has the gateway's address and no subnet ("unnumbered").
const HOST_IPV4: [(Ipv4Setting, u32); 7] = [
    (Ipv4Setting::Forwarding, 1),
    // The way back to a pod leads by the node port, never by the interface it came in: loose.
    (Ipv4Setting::RpFilter, 2),
    // Answer ARP for the gateway's address only, and for nothing the node could route.
    (Ipv4Setting::ProxyArp, 0),
    (Ipv4Setting::ArpIgnore, 1),
    // There is no better router than us on this link, and the pod is none.
    (Ipv4Setting::SendRedirects, 0),
    (Ipv4Setting::AcceptRedirects, 0),
    (Ipv4Setting::AcceptLocal, 0),
];

fn configure(
    host: &mut HostSide,
    spec: &EndpointSpec<'_>,
    link: &Link,
) -> Result<(), EndpointError> {
    configure_host_end(host, spec, link)?;
    let pod_index = endpoint(link).pod_index;
    in_namespace(spec.netns, || pod::configure(spec, pod_index))
        .map_err(EndpointError::Namespace)??;
    Ok(host.netlink.await_operation(spec.host_ifname)?)
}

fn configure_host_end(
    host: &mut HostSide,
    spec: &EndpointSpec<'_>,
    link: &Link,
) -> Result<(), EndpointError> {
    let name = spec.host_ifname;
    if host.ipv6 {
        // First, so that the interface never acts on a router advertisement from the pod.
        sysctl::write(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        sysctl::write(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
        sysctl::write(&format!("ipv6/conf/{name}/forwarding"), "1")?;
    }
    let gateway = Address {
        index: link.index,
        address: GATEWAY_V4.into(),
        prefix_len: 32,
        scope: AddressScope::Link,
        preferred: true,
    };
    let settings =
        LinkSettings { ipv4: &HOST_IPV4, ..LinkSettings::without_made_up_addresses(host.ipv6) };
    let mut requests = vec![
        Request::configure_link(name, &settings),
        Request::bring_up(name),
        // Without an address even loose reverse path filtering drops all that comes in.
        Request::put_address(&gateway, name),
    ];
    requests.extend(kernel_path(link.index, name, spec.mac, spec.addresses));
    Ok(host.netlink.execute(requests)?)
}

/// How the kernel reaches a pod while no worker does: a neighbor and a route per address. Put
/// again they repair what somebody removed.
pub fn kernel_path(
    host_index: u32,
    host_ifname: &str,
    mac: [u8; 6],
    addresses: &[IpAddr],
) -> Vec<Request> {
    let mut requests = Vec::with_capacity(2 * addresses.len());
    for address in addresses {
        let neighbor = Neighbor::permanent(host_index, *address, mac);
        let direct = Route::direct(IpNet::from(*address), host_index, ROUTE_PROTOCOL);
        let route = Route { table: ROUTE_TABLE, ..direct };
        requests.push(Request::put_neighbor(&neighbor, host_ifname));
        requests.push(Request::put_route(&route, host_ifname));
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::HostSide;

    #[test]
    fn a_host_side_can_move_to_a_thread_that_deletes() {
        fn is_send<T: Send>() {}
        is_send::<HostSide>();
    }
}
