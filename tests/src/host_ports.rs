//! A pod behind a port of its node, and clients on every path to it. It exists so that the same
//! clients come to Viaduct and to the reference.
//!
//! ```text
//!   beyond ── up0 ─ node 0 ─ eth1 ──┐ switch ┌── eth1 ─ node 1 ─ remote
//!          serving, neighbour ┘     └────────┴── eth1 ─ outside
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, ClusterSetup, Forwarder, Wish};
use crate::daemon::{OUTSIDE_V4, OUTSIDE_V6, PortMode, UPLINK_V4, UPLINK_V6, ip};
use crate::netns::Namespace;
use crate::pod::Pod;
use crate::traffic::{Host, Transport, Visitor};

/// The node's port.
pub const HOST_PORT: u16 = 8080;

/// The container's port, another one: so ports and checksums have to be changed.
pub const CONTAINER_PORT: u16 = 80;

/// Number of the client on the switch, above the nodes'.
const OUTSIDER: usize = 9;

/// Addresses beyond the node, which routes packets to them: transit.
const TRANSIT: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 9)),
];

/// Where the nodes are, and the client on the switch.
const NODES: [&str; 2] = ["10.0.0.0/24", "fd00:a::/64"];

/// The families, as an index of every pair of addresses.
pub const FAMILIES: [usize; 2] = [0, 1];

/// Who comes to the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// A host on the switch: it comes by the uplink, and no route of `direct` leads to it.
    Outside,
    /// A host behind an interface that no worker receives from.
    Beyond,
    /// A process of the node.
    Node,
    /// Another pod of the node.
    Neighbour,
    /// The serving pod itself.
    Itself,
    /// A pod of another node.
    Remote,
}

impl Client {
    /// All of them.
    pub const ALL: [Client; 6] = [
        Client::Outside,
        Client::Beyond,
        Client::Node,
        Client::Neighbour,
        Client::Itself,
        Client::Remote,
    ];
}

/// The serving pod, its servers and its clients.
#[derive(Debug)]
pub struct Scene {
    /// Its node is the first one.
    pub serving: Pod,
    /// Servers in it, at [`CONTAINER_PORT`] of each of its addresses.
    pub hosts: [Host; 2],
    /// A pod beside it.
    pub neighbour: Pod,
    /// A pod of the second node.
    pub remote: Pod,
    /// A host on the switch.
    pub outside: Namespace,
    /// What the serving pod has asked for.
    wish: Wish,
}

impl Scene {
    /// Sets a scene in a cluster of at least two nodes.
    ///
    /// # Errors
    /// When a pod cannot be attached.
    pub fn set(cluster: &Cluster, wish: &Wish) -> Result<Scene> {
        let serving = cluster.add_pod_with_host_ports(0, "serving", wish)?;
        let scene = Scene {
            hosts: open(&serving)?,
            serving,
            neighbour: cluster.add_pod(0, "neighbour")?,
            remote: cluster.add_pod(1, "remote")?,
            outside: cluster.add_host(OUTSIDER)?,
            wish: wish.clone(),
        };
        for (from, to) in
            [((1, &scene.remote), &scene.serving), ((0, &scene.serving), &scene.remote)]
        {
            cluster.warm_up(from, to)?;
        }
        Ok(scene)
    }

    /// Replaces the serving pod by one with other host ports. Something may be done in between.
    ///
    /// # Errors
    /// When a step fails.
    pub fn serve_anew(
        &mut self,
        cluster: &Cluster,
        wish: &Wish,
        between: impl FnOnce(&Cluster) -> Result<()>,
    ) -> Result<()> {
        cluster.delete_pod_with_host_ports(0, &self.serving, &self.wish)?;
        between(cluster)?;
        self.serving = cluster.add_pod_with_host_ports(0, "serving", wish)?;
        (self.hosts, self.wish) = (open(&self.serving)?, wish.clone());
        Ok(())
    }

    /// Where a client is.
    #[must_use]
    pub fn namespace<'a>(&'a self, cluster: &'a Cluster, client: Client) -> &'a Namespace {
        match client {
            Client::Outside => &self.outside,
            Client::Beyond => cluster.node(0).outside(),
            Client::Node => cluster.node(0).namespace(),
            Client::Neighbour => &self.neighbour.namespace,
            Client::Itself => &self.serving.namespace,
            Client::Remote => &self.remote.namespace,
        }
    }

    /// The address of the node that a client knows, in each family.
    #[must_use]
    pub fn node_address(client: Client) -> [IpAddr; 2] {
        match client {
            Client::Beyond => [UPLINK_V4.into(), UPLINK_V6.into()],
            _ => Cluster::address(0),
        }
    }

    /// A client comes to the node's port and is served by the pod.
    ///
    /// # Errors
    /// See [`Host::visited`].
    pub fn visit(
        &self,
        cluster: &Cluster,
        client: Client,
        transport: Transport,
        family: usize,
    ) -> Result<Visitor> {
        let dial = SocketAddr::new(Scene::node_address(client)[family], HOST_PORT);
        self.visit_at(cluster, client, dial, transport)
    }

    /// The same, at an address of the test's choice.
    ///
    /// # Errors
    /// See [`Host::visited`].
    pub fn visit_at(
        &self,
        cluster: &Cluster,
        client: Client,
        dial: SocketAddr,
        transport: Transport,
    ) -> Result<Visitor> {
        let host = &self.hosts[usize::from(dial.is_ipv6())];
        let visit = host.visited(self.namespace(cluster, client), dial, transport);
        visit.with_context(|| format!("a visit from {client:?}"))
    }

    /// Nobody has come to the pod who was not served.
    ///
    /// # Errors
    /// When somebody has.
    pub fn is_quiet(&self) -> Result<()> {
        self.hosts.iter().try_for_each(Host::is_alone)
    }
}

/// Addresses of the host on the switch.
#[must_use]
pub fn outsider() -> [IpAddr; 2] {
    Cluster::address(OUTSIDER)
}

/// Servers in a pod, at [`CONTAINER_PORT`] of each of its addresses.
///
/// # Errors
/// When the port is taken.
pub fn open(pod: &Pod) -> Result<[Host; 2]> {
    let [v4, v6] = pod.addresses();
    Ok([
        Host::open(&pod.namespace, v4, CONTAINER_PORT)?,
        Host::open(&pod.namespace, v6, CONTAINER_PORT)?,
    ])
}

/// Linux with Debian's `portmap`; Viaduct with one worker and two, with the ports of Linux 6.1, and
/// with nodes whose own addresses are in `direct`: pods reach them without translation.
#[must_use]
pub fn everybody() -> Vec<ClusterSetup> {
    let viaducts = Forwarder::viaducts().into_iter();
    let mut all = some();
    all.extend(viaducts.map(|forwarder| ClusterSetup::new(forwarder, 2)));
    all
}

/// Those that differ most: Linux with `portmap`, Viaduct with the ports of Linux 6.1, and with two
/// workers among nodes in `direct`.
#[must_use]
pub fn some() -> Vec<ClusterSetup> {
    let basic = Forwarder::Viaduct { port_mode: PortMode::Basic, workers: 1 };
    let [linux, basic] =
        [Forwarder::Kernel, basic].map(|forwarder| ClusterSetup::new(forwarder, 2));
    vec![linux, basic, among_direct_nodes(Forwarder::viaduct(2))]
}

/// Nodes whose own addresses are in `direct`, and with them that of the host on the switch.
#[must_use]
pub fn among_direct_nodes(forwarder: Forwarder) -> ClusterSetup {
    let mut setup = ClusterSetup::new(forwarder, 2);
    setup.direct.extend(NODES.map(str::to_owned));
    setup
}

/// Whom the pod has to see: the client as it is, or the node in its place where the client's own
/// address would not bring the answer back.
///
/// # Errors
/// When it sees somebody else.
pub fn is_seen_right(
    cluster: &Cluster,
    client: Client,
    dial: SocketAddr,
    visitor: Visitor,
) -> Result<()> {
    let Visitor { own, seen } = visitor;
    let node = cluster.node(0).namespace();
    let nodes_are_direct = cluster.setup().direct.iter().any(|prefix| prefix == NODES[0]);
    let expected = match client {
        Client::Node if dial.ip().is_loopback() => return is_of_node(node, seen.ip()),
        Client::Itself if !cluster.by_viaduct(0) => return is_of_node(node, seen.ip()),
        Client::Itself => dial.ip(),
        // Its own node sends what is not `direct` under its own address.
        Client::Remote if cluster.by_viaduct(1) && !nodes_are_direct => {
            Cluster::address(1)[usize::from(dial.is_ipv6())]
        }
        _ => {
            ensure!(seen == own, "of {client:?} at {dial} the pod sees {seen}, not {own}");
            return Ok(());
        }
    };
    ensure!(seen.ip() == expected, "of {client:?} at {dial} the pod sees {seen}, not {expected}");
    Ok(())
}

/// That an address is the node's own, and one that others can answer to.
///
/// # Errors
/// When it is not.
pub fn is_of_node(node: &Namespace, address: IpAddr) -> Result<()> {
    let own = node.ip_json(&["addr", "show", "to", &address.to_string()])?;
    let own =
        own.as_array().is_some_and(|links| links.iter().any(|link| link.get("ifname").is_some()));
    ensure!(own && !address.is_loopback(), "{address} is no address of the node");
    Ok(())
}

/// Makes the node a router to an address at the other end of the link to the outside, with a server
/// there that has the same port as the pod behind the node's. The client on the switch is shown the
/// way, and the server the way back.
///
/// # Errors
/// When an address or route is there.
pub fn make_transit(cluster: &Cluster, scene: &Scene) -> Result<[Host; 2]> {
    let (node, beyond) = (cluster.node(0).namespace(), cluster.node(0).outside());
    let back = [(NODES[0], IpAddr::from(UPLINK_V4)), (NODES[1], UPLINK_V6.into())];
    let pods = cluster.node(0).pod_cidrs();
    let onward = [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()];
    for family in FAMILIES {
        let (transit, router) = (TRANSIT[family], Cluster::address(0)[family]);
        let (net, via) = back[family];
        let (len, dad) = if transit.is_ipv4() { (32, "") } else { (128, "nodad") };
        ip(beyond, &format!("addr add {transit}/{len} dev lo {dad}"))?;
        for net in [net, &pods[family]] {
            ip(beyond, &format!("route add {net} via {via}"))?;
        }
        ip(node, &format!("route add {transit}/{len} via {}", onward[family]))?;
        ip(&scene.outside, &format!("route add {transit}/{len} via {router}"))?;
    }
    let [v4, v6] = TRANSIT;
    Ok([Host::open(beyond, v4, HOST_PORT)?, Host::open(beyond, v6, HOST_PORT)?])
}
