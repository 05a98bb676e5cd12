//! The node port: the node itself as a port like any other, and the kernel's way to the pods.
//!
//! `viaduct0` is the kernel's end: the route to the pod network leads into it. `viaduct1` is the
//! workers' end, an XSK. While the workers are away, what the kernel sends into `viaduct0` comes
//! back to it by `viaduct1`; a rule for that interface leads to a table with one route per pod,
//! which ends in `unreachable`, so that nothing circles between the two.
//!
//! [`NodePort::ensure`] may be called at any time: it leaves alone what is right and mends what is
//! not, after a crash as after somebody's `ip route flush`.

mod address;
mod forwarding;
mod names;

pub use address::NodeAddresses;
pub use names::{
    COOKIE_PREFIX, GATEWAY_V4, GATEWAY_V6, HOST_IFNAME_PREFIX, HOST_MAC, NODE_COOKIE,
    NODE_GATEWAY_V4, NODE_IFNAME, ROUTE_PROTOCOL, ROUTE_TABLE, RULE_PRIORITY, WORKER_IFNAME,
    cookie, host_ifname, link_local, mac_for,
};

use crate::endpoint::Offloads;
use crate::netlink::{
    Address, AddressScope, Ipv4Setting, Link, LinkSettings, Neighbor, Netlink, NetlinkError,
    Request, Route, RouteKind, RouteScope, Rule, TABLE_MAIN, Veth, VethEnd, default_routes,
};
use crate::sysctl::{self, SysctlError, SysctlLog};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Metric of the `unreachable` routes: worse than any route somebody sets by hand.
const UNREACHABLE_METRIC: u32 = 1 << 30;

/// What the node port depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Prefixes of this node's pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of pods that none of these prefixes covers.
    pub outside: BTreeSet<IpAddr>,
    /// Largest IP packet between node and pods, in bytes, 1280 to 65535.
    pub route_mtu: u32,
    /// Device MTU of the node port in bytes: 65535 in full mode, else at least `route_mtu`.
    pub device_mtu: u32,
    /// Queues of the workers' end, at least 1.
    pub workers: u32,
}

impl NodeConfig {
    /// Where all pods of this node are.
    fn destinations(&self) -> impl Iterator<Item = IpNet> {
        let outside = self.outside.iter().copied().map(IpNet::from);
        self.pod_cidrs.iter().map(IpNet::trunc).chain(outside)
    }

    /// Whether pods have addresses of this family.
    fn has_family(&self, ipv6: bool) -> bool {
        self.destinations().any(|dst| dst.addr().is_ipv6() == ipv6)
    }
}

/// What [`NodePort::reach`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// Nothing: these were the addresses.
    Same,
    /// Routes came or went.
    Changed,
    /// Nothing: pods have a family that the node does not forward yet. [`NodePort::ensure`] does.
    NewFamily,
}

/// Why the node port could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A device with one of our names is not ours.
    #[error("{ifname} is not ours (its alias is {alias:?}); delete or rename that device")]
    Foreign {
        /// Name of the device.
        ifname: String,
        /// Its alias, or empty.
        alias: String,
    },
    /// An IPv6 pod network on a node without IPv6.
    #[error("the node has no IPv6 for {cidr}; boot it without ipv6.disable=1 or drop that prefix")]
    NoIpv6 {
        /// The prefix.
        cidr: IpNet,
    },
    /// The kernel refused a step.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A setting could not be read, recorded or written.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// The node port, as it is in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePort {
    /// Index of [`NODE_IFNAME`].
    pub node_index: u32,
    /// Ethernet address of [`NODE_IFNAME`]: where workers send what is for the kernel.
    pub node_mac: [u8; 6],
    /// Index of [`WORKER_IFNAME`].
    pub worker_index: u32,
    /// Ethernet address of [`WORKER_IFNAME`].
    pub worker_mac: [u8; 6],
    /// The node's addresses towards its pods.
    pub addresses: NodeAddresses,
    config: NodeConfig,
    /// Addresses outside of `pod_cidrs` of which nobody knows whether the kernel leads to them:
    /// a change failed half-way. The next one puts or deletes their routes again.
    unsure: BTreeSet<IpAddr>,
}

impl NodePort {
    /// Makes the node port in the network namespace the calling thread is in, or mends what
    /// differs, and turns forwarding on; takes away what an earlier configuration left. Originals
    /// of the node's settings go into `log` first.
    ///
    /// A change of `workers` replaces the devices, which cuts node-to-pod traffic for some
    /// milliseconds; everything else is changed in place.
    pub fn ensure(config: &NodeConfig, log: &mut SysctlLog) -> Result<NodePort, NodeError> {
        let ipv6 = sysctl::ipv6_exists();
        if let Some(cidr) = config.pod_cidrs.iter().find(|cidr| cidr.addr().is_ipv6() && !ipv6) {
            return Err(NodeError::NoIpv6 { cidr: *cidr });
        }
        let mut netlink = Netlink::open()?;
        forwarding::forward_ipv4(log)?;
        if config.has_family(true) {
            forwarding::forward_ipv6(log)?;
        }
        let (node, worker) = ensure_pair(&mut netlink, config)?;
        let port = NodePort {
            node_index: node.index,
            node_mac: mac_for(NODE_IFNAME),
            worker_index: worker.index,
            worker_mac: mac_for(WORKER_IFNAME),
            addresses: NodeAddresses::discover(&mut netlink, &default_routes()?)?,
            config: config.clone(),
            unsure: BTreeSet::new(),
        };
        port.configure(&mut netlink, ipv6)?;
        for name in [NODE_IFNAME, WORKER_IFNAME] {
            netlink.await_operation(name)?;
        }
        port.delete_stale(&mut netlink)?;
        Ok(port)
    }

    /// Deletes a node port of the other port mode, whose features and marker would be wrong. For
    /// the start of a daemon: node-to-pod traffic is cut until [`NodePort::ensure`].
    pub fn give_way(config: &NodeConfig) -> Result<(), NodeError> {
        let mut netlink = Netlink::open()?;
        let full = |mtu| mtu == Offloads::Full.device_mtu(config.route_mtu);
        match netlink.link(NODE_IFNAME)? {
            Some(node) if full(node.mtu) != full(config.device_mtu) => delete_pair(&mut netlink),
            _ => Ok(()),
        }
    }

    /// Leads the node to these addresses of pods outside of `pod_cidrs`, and no longer to those
    /// it knew before. After an error those before are still what it knows, and whatever comes
    /// next begins with what has failed.
    pub fn reach(
        &mut self,
        netlink: &mut Netlink,
        outside: &BTreeSet<IpAddr>,
    ) -> Result<Reached, NodeError> {
        if *outside == self.config.outside && self.unsure.is_empty() {
            return Ok(Reached::Same);
        }
        let new = NodeConfig { outside: outside.clone(), ..self.config.clone() };
        if [false, true].iter().any(|v6| new.has_family(*v6) && !self.config.has_family(*v6)) {
            return Ok(Reached::NewFamily);
        }
        let known = &self.config.outside - &self.unsure;
        let went = &(&self.config.outside | &self.unsure) - outside;
        let came = outside - &known;
        let mut requests = Vec::new();
        for dst in came.iter().copied().map(IpNet::from) {
            requests.push(put_table_end(&table_end(dst)));
            requests.push(put_by_node_port(&self.pod_route(dst)));
        }
        for dst in went.iter().copied().map(IpNet::from) {
            for route in [self.pod_route(dst), table_end(dst)] {
                requests.push(Request::delete_route(&route).if_present());
            }
        }
        // Until the kernel has taken them all: some may be done when one is refused.
        self.unsure = &came | &went;
        netlink.execute(requests)?;
        self.unsure.clear();
        self.config = new;
        Ok(Reached::Changed)
    }

    /// Where it leads to: the prefixes of all pods of this node.
    #[must_use]
    pub fn destinations(&self) -> Vec<IpNet> {
        self.config.destinations().collect()
    }

    /// Whether the interface with this index is one of its ends.
    pub fn is_end(&self, index: u32) -> bool {
        index == self.node_index || index == self.worker_index
    }

    /// Whether this route is one that [`NodePort::ensure`] puts.
    pub fn wants(&self, route: &Route) -> bool {
        let ours = match route.table {
            TABLE_MAIN => route.next_hops.iter().any(|hop| hop.index == self.node_index),
            table => table == ROUTE_TABLE && route.kind == RouteKind::Unreachable,
        };
        ours && self.config.destinations().any(|dst| dst == route.dst)
    }

    /// Looks the node's addresses up again, and makes new connections to pods use them. Returns
    /// whether they changed. To be called when an address or a default route changes, with the
    /// default routes of now.
    pub fn follow_addresses(
        &mut self,
        netlink: &mut Netlink,
        defaults: &[Route],
    ) -> Result<bool, NodeError> {
        let addresses = NodeAddresses::discover(netlink, defaults)?;
        if addresses == self.addresses {
            return Ok(false);
        }
        self.addresses = addresses;
        netlink.execute(self.pod_routes().iter().map(put_by_node_port))?;
        Ok(true)
    }

    /// Takes everything away that [`NodePort::ensure`] made, and puts the node's settings back.
    /// Goes on after an error and returns all of them; may be called again.
    ///
    /// Pods that are still attached lose their connection: this is for uninstalling.
    pub fn remove(log: &mut SysctlLog) -> Vec<NodeError> {
        let mut errors = Vec::new();
        match Netlink::open() {
            Ok(mut netlink) => {
                for step in [delete_rules, delete_routes, delete_pair] {
                    errors.extend(step(&mut netlink).err());
                }
            }
            Err(error) => errors.push(error.into()),
        }
        errors.extend(log.restore().into_iter().map(NodeError::Sysctl));
        errors
    }

    fn configure(&self, netlink: &mut Netlink, ipv6: bool) -> Result<(), NodeError> {
        if ipv6 {
            for name in [NODE_IFNAME, WORKER_IFNAME] {
                sysctl::write(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
                sysctl::write(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
                sysctl::write(&format!("ipv6/conf/{name}/forwarding"), "1")?;
            }
        }
        let settings = |ipv4| LinkSettings {
            ipv4,
            alias: Some(NODE_COOKIE),
            mtu: Some(self.config.device_mtu),
            ..LinkSettings::without_made_up_addresses(ipv6)
        };
        netlink.execute([
            Request::configure_link(NODE_IFNAME, &settings(&NODE_IPV4)),
            Request::configure_link(WORKER_IFNAME, &settings(&WORKER_IPV4)),
            Request::bring_up(NODE_IFNAME),
            Request::bring_up(WORKER_IFNAME),
        ])?;
        self.mend(netlink)
    }

    /// Puts back what somebody took away of the ways between the node and its pods. The devices
    /// themselves are left alone: whatever is set of one, the kernel looks through all its IPv6
    /// routes (net/ipv6/route.c, `rt6_sync_up`), of which there may be some 100,000.
    pub fn mend(&self, netlink: &mut Netlink) -> Result<(), NodeError> {
        let unnumbered = |index| Address {
            index,
            address: GATEWAY_V4.into(),
            prefix_len: 32,
            scope: AddressScope::Link,
            preferred: true,
        };
        let mut requests = vec![
            // Without an address even loose reverse path filtering drops all that comes in but by
            // the way it would go out.
            Request::put_address(&unnumbered(self.node_index), NODE_IFNAME),
            Request::put_address(&unnumbered(self.worker_index), WORKER_IFNAME),
        ];
        let mut gateways = vec![IpAddr::from(NODE_GATEWAY_V4)];
        gateways.extend(sysctl::ipv6_exists().then_some(IpAddr::from(GATEWAY_V6)));
        for gateway in gateways {
            let neighbor = Neighbor::permanent(self.node_index, gateway, self.worker_mac);
            requests.push(Request::put_neighbor(&neighbor, NODE_IFNAME));
        }
        // The end of the table before its rule: at no moment may a packet find the rule and fall
        // through to the main table, which would send it into viaduct0 again.
        requests.extend(self.config.destinations().map(|dst| put_table_end(&table_end(dst))));
        requests.extend(self.rules().iter().map(|rule| Request::add_rule(rule).if_absent()));
        requests.extend(self.pod_routes().iter().map(put_by_node_port));
        Ok(netlink.execute(requests)?)
    }

    /// The ways to all pods, in the main table.
    fn pod_routes(&self) -> Vec<Route> {
        self.config.destinations().map(|dst| self.pod_route(dst)).collect()
    }

    /// `POD_CIDR via GATEWAY dev viaduct0 onlink src NODE mtu MTU`, in the main table.
    fn pod_route(&self, dst: IpNet) -> Route {
        let gateway: IpAddr =
            if dst.addr().is_ipv4() { NODE_GATEWAY_V4.into() } else { GATEWAY_V6.into() };
        let mut route = Route::via(dst, gateway, self.node_index, ROUTE_PROTOCOL);
        // No address of viaduct0 says that this router is on its link. The kernel needs no such
        // word for a link-local one, but BIRD does.
        route.next_hops.iter_mut().for_each(|hop| hop.onlink = true);
        Route { src: self.addresses.for_dst(&dst), mtu: Some(self.config.route_mtu), ..route }
    }

    /// `iif viaduct1 lookup TABLE`, for each family that has pods.
    fn rules(&self) -> Vec<Rule> {
        let rule = |ipv6| Rule {
            ipv6,
            priority: RULE_PRIORITY,
            iif: Some(WORKER_IFNAME.to_owned()),
            table: ROUTE_TABLE,
            protocol: ROUTE_PROTOCOL,
        };
        [false, true].into_iter().filter(|ipv6| self.config.has_family(*ipv6)).map(rule).collect()
    }

    /// Deletes what an earlier configuration left.
    fn delete_stale(&self, netlink: &mut Netlink) -> Result<(), NodeError> {
        let ours: BTreeSet<IpNet> = self.config.destinations().collect();
        let mut stale: Vec<Route> = routes_of_ours(netlink)?;
        stale.retain(|route| !ours.contains(&route.dst));
        let mut requests: Vec<Request> =
            stale.iter().map(|route| Request::delete_route(route).if_present()).collect();
        let wanted = self.rules();
        let rules = netlink.rules()?;
        let stale = rules.iter().filter(|rule| is_our_rule(rule) && !wanted.contains(rule));
        requests.extend(stale.map(|rule| Request::delete_rule(rule).if_present()));
        Ok(netlink.execute(requests)?)
    }
}

/// IPv4 settings of the kernel's end. Pods' packets come in here from the workers, and their way
/// back leads out here, but sources beyond the pod network do not: loose. What workers tell the
/// node in an ICMP error comes from the node's own address: local. Connections to 127.0.0.1 that
/// the kernel leads to a pod leave and come back here (ip-sysctl.rst, `route_localnet`); the nft
/// table drops what a pod sends there.
const NODE_IPV4: [(Ipv4Setting, u32); 8] = [
    (Ipv4Setting::RouteLocalnet, 1),
    (Ipv4Setting::AcceptLocal, 1),
    (Ipv4Setting::Forwarding, 1),
    (Ipv4Setting::RpFilter, 2),
    (Ipv4Setting::ArpIgnore, 1),
    (Ipv4Setting::ProxyArp, 0),
    (Ipv4Setting::SendRedirects, 0),
    (Ipv4Setting::AcceptRedirects, 0),
];

/// IPv4 settings of the workers' end, where the node's own packets come back in on their way to a
/// pod: their source address is local.
const WORKER_IPV4: [(Ipv4Setting, u32); 7] = [
    (Ipv4Setting::AcceptLocal, 1),
    (Ipv4Setting::Forwarding, 1),
    (Ipv4Setting::RpFilter, 2),
    (Ipv4Setting::ArpIgnore, 1),
    (Ipv4Setting::ProxyArp, 0),
    (Ipv4Setting::SendRedirects, 0),
    (Ipv4Setting::AcceptRedirects, 0),
];

/// `unreachable POD_CIDR`, in our table.
fn table_end(dst: IpNet) -> Route {
    Route {
        table: ROUTE_TABLE,
        kind: RouteKind::Unreachable,
        scope: RouteScope::Universe,
        metric: UNREACHABLE_METRIC,
        next_hops: Vec::new(),
        ..Route::direct(dst, 0, ROUTE_PROTOCOL)
    }
}

fn put_by_node_port(route: &Route) -> Request {
    Request::put_route(route, NODE_IFNAME)
}

fn put_table_end(route: &Route) -> Request {
    Request::put_route(route, "lo")
}

fn ensure_pair(netlink: &mut Netlink, config: &NodeConfig) -> Result<(Link, Link), NodeError> {
    let found = (netlink.link(NODE_IFNAME)?, netlink.link(WORKER_IFNAME)?);
    if let (Some(node), Some(worker)) = &found
        && is_our_pair(node, worker)
        && worker.rx_queues == config.workers
    {
        return Ok((node.clone(), worker.clone()));
    }
    delete_pair(netlink)?;
    let end = |name, queues| VethEnd { name, mac: mac_for(name), queues, namespace: None };
    let node = netlink.create_veth(&Veth {
        near: end(NODE_IFNAME, 1),
        far: end(WORKER_IFNAME, config.workers),
        mtu: config.device_mtu,
        alias: NODE_COOKIE,
    })?;
    let worker = Link {
        index: node.peer_index.unwrap_or(0),
        name: WORKER_IFNAME.to_owned(),
        ..Link::default()
    };
    Ok((node, worker))
}

fn is_our_pair(node: &Link, worker: &Link) -> bool {
    node.alias.as_deref() == Some(NODE_COOKIE)
        && !node.peer_elsewhere
        && node.peer_index == Some(worker.index)
        && node.mac == Some(mac_for(NODE_IFNAME))
        && worker.mac == Some(mac_for(WORKER_IFNAME))
}

fn delete_pair(netlink: &mut Netlink) -> Result<(), NodeError> {
    for name in [NODE_IFNAME, WORKER_IFNAME] {
        // The second is gone with the first, unless somebody tore the pair apart.
        let Some(link) = netlink.link(name)? else {
            continue;
        };
        let alias = link.alias.unwrap_or_default();
        if alias != NODE_COOKIE {
            return Err(NodeError::Foreign { ifname: name.to_owned(), alias });
        }
        netlink.execute([Request::delete_link(link.index, name).if_present()])?;
    }
    Ok(())
}

fn delete_rules(netlink: &mut Netlink) -> Result<(), NodeError> {
    let rules = netlink.rules()?;
    let ours = rules.iter().filter(|rule| is_our_rule(rule));
    Ok(netlink.execute(ours.map(|rule| Request::delete_rule(rule).if_present()))?)
}

/// Routes to pods stay: they go with the pods' interfaces.
fn delete_routes(netlink: &mut Netlink) -> Result<(), NodeError> {
    let routes = routes_of_ours(netlink)?;
    Ok(netlink.execute(routes.iter().map(|route| Request::delete_route(route).if_present()))?)
}

/// The routes that the node port made: into it, and the ends of our table.
fn routes_of_ours(netlink: &mut Netlink) -> Result<Vec<Route>, NodeError> {
    let mut routes = netlink.routes_of(TABLE_MAIN, ROUTE_PROTOCOL)?;
    let ends = netlink.routes_of(ROUTE_TABLE, ROUTE_PROTOCOL)?;
    routes.extend(ends.into_iter().filter(|route| route.kind == RouteKind::Unreachable));
    // To be deleted a route is named by destination, table and metric alone.
    routes.iter_mut().for_each(|route| route.next_hops.clear());
    Ok(routes)
}

fn is_our_rule(rule: &Rule) -> bool {
    rule.priority == RULE_PRIORITY && rule.protocol == ROUTE_PROTOCOL
}
