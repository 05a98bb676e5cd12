//! Nodes on one switch, each with an uplink, a daemon of its own and pods. It exists so that a
//! test can say "nodes like these" and ask the same of Viaduct and of plain Linux: a cluster that
//! only the kernel forwards for shows what the questions are worth.
//!
//! ```text
//!   pods ─ node 0 ─ eth1 ──┐                    ┌── eth1 ─ node 1 ─ pods
//!                          p0 ┐  switch      ┌ p1
//!                             └── br0 ───────┘ p2 ── eth1 ─ node 2 ─ pods
//! ```
//!
//! Each node has a route to the others' pods by their address on the switch, as a CNI without an
//! overlay, FRR or an administrator would put it, and an outside of its own ([`Node`]).

mod bgp;
mod bird;
mod cable;
mod frr;
mod host_ports;
mod kernel;
mod networkd;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::daemon::{Node, PortMode, Setup, Uplinks, ip};
use crate::netns::{Namespace, wait_until};
use crate::pod::Pod;
use crate::traffic::{protocol_counter, reaches};

pub use bgp::{Speaker, Wanderer, start_speakers};
pub use bird::Bird;
pub use cable::{Cable, Offloads, mac_of, set_sysctl};
pub use frr::Frr;
pub use host_ports::{Mapping, Wish};
pub use networkd::Networkd;

/// The nodes' interface on the switch.
pub const UPLINK: &str = "eth1";

/// Their interface on a second switch, if there are two.
pub const SECOND_UPLINK: &str = "eth2";

/// Both, with the second switch's bridge and the first letter of its ports.
const SWITCHES: [(&str, &str, char); 2] = [(UPLINK, "br0", 'p'), (SECOND_UPLINK, "br1", 'q')];

/// Where all pods of all clusters are: every node's `pod_cidrs` are within.
pub const DIRECT: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];

/// Queues of an uplink: more than there are workers, and not a multiple of three.
const QUEUES: u32 = 4;

/// A gateway's Ethernet address is known, and in use, within a second of the first packet to it, or
/// some more on a busy machine.
const WARM_WITHIN: Duration = Duration::from_secs(15);

/// Who forwards the pods' packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarder {
    /// Linux, without a daemon: the oracle.
    Kernel,
    /// A daemon on each node.
    Viaduct {
        /// What its ports can do.
        port_mode: PortMode,
        /// How many workers it has.
        workers: usize,
    },
}

impl Forwarder {
    /// Linux, then Viaduct with one worker and with two.
    #[must_use]
    pub fn all() -> Vec<Forwarder> {
        [vec![Forwarder::Kernel], Forwarder::viaducts()].concat()
    }

    /// Viaduct with one worker and with two.
    #[must_use]
    pub fn viaducts() -> Vec<Forwarder> {
        [1, 2].map(Forwarder::viaduct).into()
    }

    /// Viaduct with so many workers, in the default port mode.
    #[must_use]
    pub fn viaduct(workers: usize) -> Forwarder {
        Forwarder::Viaduct { port_mode: PortMode::Auto, workers }
    }
}

impl fmt::Display for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Forwarder::Kernel => write!(f, "Linux"),
            Forwarder::Viaduct { port_mode, workers } => {
                write!(f, "Viaduct, port mode {port_mode:?}, {workers} worker(s)")
            }
        }
    }
}

/// Who tells the nodes where the others' pods are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routes {
    /// The cluster, when it is made: by the first uplink.
    Given,
    /// The test.
    Wanted,
}

/// What joins the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// Switches, one for each uplink.
    Switch,
    /// A cable between two nodes. A switch would be the kernel's work, on the sender's core.
    Cable,
}

/// What a cluster is like.
#[derive(Clone, Debug)]
pub struct ClusterSetup {
    /// Who forwards.
    pub forwarder: Forwarder,
    /// How many nodes there are.
    pub nodes: usize,
    /// How many of them, the last ones, are plain Linux whoever forwards on the others.
    pub plain: usize,
    /// How many uplinks of each node there are, 1 or 2.
    pub uplinks: usize,
    /// What joins them.
    pub wiring: Wiring,
    /// Who tells the nodes where the others' pods are.
    pub routes: Routes,
    /// MTU of the switch and the uplinks, in bytes; `[node] mtu` too.
    pub mtu: u32,
    /// What the uplinks and the switch's ports leave to each other.
    pub offloads: Offloads,
    /// `[uplink] direct`.
    pub direct: Vec<String>,
    /// `[uplink] kernel`.
    pub kernel: Vec<String>,
}

impl ClusterSetup {
    /// So many nodes on a wire with MTU 1500 that computes nothing.
    #[must_use]
    pub fn new(forwarder: Forwarder, nodes: usize) -> ClusterSetup {
        ClusterSetup {
            forwarder,
            nodes,
            plain: 0,
            uplinks: 1,
            wiring: Wiring::Switch,
            routes: Routes::Given,
            mtu: 1500,
            offloads: Offloads::Off,
            direct: DIRECT.map(str::to_owned).into(),
            kernel: Vec::new(),
        }
    }

    fn switches(&self) -> impl Iterator<Item = (&'static str, &'static str, char)> {
        SWITCHES.into_iter().take(self.uplinks)
    }

    /// Who forwards on a node.
    fn forwarder_of(&self, number: usize) -> Forwarder {
        if number + self.plain < self.nodes { self.forwarder } else { Forwarder::Kernel }
    }

    /// The setup of each of its nodes.
    fn node(&self) -> Setup {
        let (port_mode, workers) = match self.forwarder {
            Forwarder::Kernel => (PortMode::Auto, 1),
            Forwarder::Viaduct { port_mode, workers } => (port_mode, workers),
        };
        let uplinks = Uplinks {
            interfaces: self.switches().map(|(ifname, ..)| ifname.to_owned()).collect(),
            direct: self.direct.clone(),
            kernel: self.kernel.clone(),
        };
        Setup { mtu: self.mtu, uplinks, ..Setup::new(port_mode, workers) }
    }
}

/// Makes a node or a stranger forget its neighbors on the uplink. `ip` gives up when they are asked
/// for again in each of its ten rounds, which a daemon does.
///
/// # Errors
/// When that is so for long.
pub fn forget_neighbors(namespace: &Namespace) -> Result<()> {
    let line = format!("neigh flush dev {UPLINK}");
    wait_until("neighbors are forgotten", WARM_WITHIN, || Ok(ip(namespace, &line).is_ok()))
}

/// Runs a test on a cluster of each setup. After it every daemon must account for its frames and
/// packets, and must have logged no error. With `VIADUCT_E2E_ORACLE` in the environment only what
/// is asked of plain Linux is run: that needs no daemon, and shows that the test itself can pass.
///
/// # Panics
/// When the test fails, with the setup, the reason and what the daemons say.
pub fn on_clusters(setups: Vec<ClusterSetup>, test: impl Fn(&mut Cluster) -> Result<()>) {
    let oracle_only = std::env::var_os("VIADUCT_E2E_ORACLE").is_some();
    for setup in setups {
        if oracle_only && setup.forwarder != Forwarder::Kernel {
            continue;
        }
        let name = setup.forwarder.to_string();
        eprintln!("on {} nodes with {name}", setup.nodes);
        let mut cluster = match Cluster::start(setup) {
            Ok(cluster) => cluster,
            Err(error) => panic!("on nodes with {name}: {error:?}"),
        };
        let outcome = test(&mut cluster).and_then(|()| cluster.check());
        if let Err(error) = outcome {
            let said: Vec<String> = cluster.nodes.iter().map(describe).collect();
            panic!("on nodes with {name}: {error:?}\n{}", said.join("\n"));
        }
    }
}

/// What a node's daemon and its kernel say, for who has to find out why a test failed.
fn describe(node: &Node) -> String {
    let daemon = ["status", "ports", "routes", "hostports", "flows", "drops"]
        .map(|listing| node.viaduct(&[listing]).unwrap_or_else(|error| format!("{error}\n")));
    let kernel = ["link", "addr", "-4 route", "-6 route", "neigh"].map(|listing| {
        let args: Vec<&str> = ["-br"].into_iter().chain(listing.split(' ')).collect();
        let output = node.namespace().run("ip", &args).map(|output| output.stdout);
        String::from_utf8_lossy(&output.unwrap_or_default()).into_owned()
    });
    let table = node.namespace().run("nft", &["list", "table", "inet", "viaduct"]);
    let table =
        String::from_utf8_lossy(&table.map(|out| out.stdout).unwrap_or_default()).into_owned();
    format!("{:?}:\n{}{}{table}", node.pod_cidrs(), daemon.concat(), kernel.concat())
}

/// A cluster. Dropped, it takes its nodes and the switch with it.
#[derive(Debug)]
pub struct Cluster {
    setup: ClusterSetup,
    nodes: Vec<Node>,
    switch: Namespace,
}

impl Cluster {
    /// Makes a cluster; returns when its nodes forward.
    ///
    /// # Errors
    /// When a step fails, or a daemon ends or is not ready in time; with its log.
    pub fn start(setup: ClusterSetup) -> Result<Cluster> {
        let mut cluster = Cluster::make(setup)?;
        cluster.start_forwarding()?;
        Ok(cluster)
    }

    /// Makes a cluster in which nobody forwards yet.
    ///
    /// # Errors
    /// When a step fails.
    pub fn make(setup: ClusterSetup) -> Result<Cluster> {
        let switch = make_switch(&setup)?;
        let nodes = (0..setup.nodes).map(|_| Node::make(setup.node()));
        let nodes = nodes.collect::<Result<Vec<Node>>>()?;
        let cluster = Cluster { setup, nodes, switch };
        match cluster.setup.wiring {
            Wiring::Switch => {
                (0..cluster.nodes.len()).try_for_each(|node| cluster.plug_in(node))?
            }
            Wiring::Cable => cluster.join()?,
        }
        for from in (0..cluster.nodes.len()).filter(|_| cluster.setup.routes == Routes::Given) {
            for to in (0..cluster.nodes.len()).filter(|to| *to != from) {
                cluster.add_routes(from, to)?;
            }
        }
        Ok(cluster)
    }

    /// Starts the daemons, or makes the nodes routers.
    ///
    /// # Errors
    /// When one is not ready in time; with its log.
    pub fn start_forwarding(&mut self) -> Result<()> {
        for (number, node) in self.nodes.iter_mut().enumerate() {
            match self.setup.forwarder_of(number) {
                Forwarder::Kernel => kernel::forward(node)?,
                Forwarder::Viaduct { .. } => node.start_daemon()?,
            }
        }
        Ok(())
    }

    /// Puts a node on the switch: also one whose interface was taken away.
    ///
    /// # Errors
    /// When its interface is there.
    pub fn plug_in(&self, number: usize) -> Result<()> {
        self.connect(self.node(number).namespace(), number)
    }

    /// Lays the cable between two nodes.
    fn join(&self) -> Result<()> {
        ensure!(self.nodes.len() == 2 && self.setup.uplinks == 1, "a cable has two ends");
        let [one, other] = [0, 1].map(|number| (self.node(number).namespace(), UPLINK));
        self.cable().lay(one, other)?;
        give_addresses(one, 0, 0)?;
        give_addresses(other, 0, 1)
    }

    fn cable(&self) -> Cable {
        Cable { queues: QUEUES, mtu: self.setup.mtu, offloads: self.setup.offloads }
    }

    /// A host on the switch, which is no node: its numbers are above theirs. Pods are no part of
    /// what it knows.
    ///
    /// # Errors
    /// When there is a host of that number.
    pub fn add_host(&self, number: usize) -> Result<Namespace> {
        let host = Namespace::create("e2e-host")?;
        ip(&host, "link set lo up")?;
        self.connect(&host, number)?;
        Ok(host)
    }

    fn connect(&self, namespace: &Namespace, number: usize) -> Result<()> {
        for (switch, (ifname, bridge, letter)) in self.setup.switches().enumerate() {
            let port = format!("{letter}{number}");
            self.cable().lay((namespace, ifname), (&self.switch, &port))?;
            ip(&self.switch, &format!("link set {port} master {bridge}"))?;
            give_addresses((namespace, ifname), switch, number)?;
        }
        Ok(())
    }

    /// Routes from a node to the pods of another.
    ///
    /// # Errors
    /// When there are some.
    pub fn add_routes(&self, from: usize, to: usize) -> Result<()> {
        let gateways = Cluster::address(to);
        for (cidr, gateway) in self.node(to).pod_cidrs().iter().zip(gateways) {
            let line = format!("route add {cidr} via {gateway} dev {UPLINK}");
            ip(self.node(from).namespace(), &line)?;
        }
        Ok(())
    }

    /// Addresses of a node or host on the first switch, IPv4 first.
    #[must_use]
    pub fn address(number: usize) -> [IpAddr; 2] {
        Cluster::address_on(0, number)
    }

    /// The same on the second switch.
    #[must_use]
    pub fn second_address(number: usize) -> [IpAddr; 2] {
        Cluster::address_on(1, number)
    }

    fn address_on(switch: usize, number: usize) -> [IpAddr; 2] {
        let (net, last) = (switch as u8, number as u8 + 1);
        let v6 = Ipv6Addr::new(0xfd00, 0xa + u16::from(net), 0, 0, 0, 0, 0, last.into());
        [Ipv4Addr::new(10, 0, net, last).into(), v6.into()]
    }

    /// What it was made with.
    #[must_use]
    pub fn setup(&self) -> &ClusterSetup {
        &self.setup
    }

    /// Whether a node has a daemon.
    #[must_use]
    pub fn by_viaduct(&self, number: usize) -> bool {
        self.setup.forwarder_of(number) != Forwarder::Kernel
    }

    /// A node, from 0.
    ///
    /// # Panics
    /// When there is no such node.
    #[must_use]
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number]
    }

    /// A node, to start and stop its daemon.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node_mut(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number]
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The switches' namespace: the port to node n is `p<n>`, and `q<n>` of the second one.
    #[must_use]
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// A pod on a node.
    ///
    /// # Errors
    /// When it cannot be attached.
    pub fn add_pod(&self, number: usize, container_id: &str) -> Result<Pod> {
        self.add_pod_with_mtu(number, container_id, None)
    }

    /// The same, with a route MTU of its own.
    ///
    /// # Errors
    /// When it cannot be attached.
    pub fn add_pod_with_mtu(
        &self,
        number: usize,
        container_id: &str,
        mtu: Option<u32>,
    ) -> Result<Pod> {
        let node = self.node(number);
        match self.setup.forwarder_of(number) {
            Forwarder::Kernel => kernel::add_pod(node, container_id, mtu.unwrap_or(self.setup.mtu)),
            Forwarder::Viaduct { .. } => node.add_pod_with_mtu(container_id, mtu),
        }
    }

    /// Pods on each node, so many: `pods[node][n]`.
    ///
    /// # Errors
    /// When one cannot be attached.
    pub fn add_pods(&self, per_node: usize) -> Result<Vec<Vec<Pod>>> {
        let pods = |node| (0..per_node).map(move |n| (node, format!("pod-{node}-{n}")));
        let on_node = |node| pods(node).map(|(node, name)| self.add_pod(node, &name)).collect();
        (0..self.nodes.len()).map(on_node).collect()
    }

    /// Waits until a pod reaches another one and, with daemons, until the sender's workers send to
    /// it and hear from it by the uplink: the first packets may go by the kernel, which resolves
    /// the next hop.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub fn warm_up(&self, from: (usize, &Pod), to: &Pod) -> Result<()> {
        self.warm_up_within(WARM_WITHIN, from, to)
    }

    /// The same with another deadline.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub fn warm_up_within(&self, deadline: Duration, from: (usize, &Pod), to: &Pod) -> Result<()> {
        let (number, pod) = from;
        for address in to.addresses() {
            let mut last = None;
            wait_until("the path is warm", deadline, || {
                let carried = self.carries(number, pod, address);
                let warm = matches!(carried, Ok(true));
                last = Some(carried);
                Ok(warm)
            })
            .with_context(|| format!("from {} to {address}: {last:?}", pod.container_id))?;
        }
        Ok(())
    }

    /// Whether an echo to another node comes back, and both packets by the uplink's ports.
    fn carries(&self, number: usize, pod: &Pod, address: IpAddr) -> Result<bool> {
        let before = self.uplink_packets(number)?;
        reaches(&pod.namespace, address)?;
        let after = self.uplink_packets(number)?;
        Ok(!self.by_viaduct(number) || (after.sent > before.sent && after.came > before.came))
    }

    /// What a node's workers have received and sent by the uplink's ports.
    ///
    /// # Errors
    /// When its daemon does not answer.
    pub fn uplink_packets(&self, number: usize) -> Result<UplinkPackets> {
        if !self.by_viaduct(number) {
            return Ok(UplinkPackets::default());
        }
        uplink_packets(self.node(number))
    }

    /// Laws and logs of all daemons.
    ///
    /// # Errors
    /// See [`Node::check`].
    pub fn check(&self) -> Result<()> {
        self.nodes.iter().try_for_each(Node::check)
    }
}

/// What workers have received and sent by an uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UplinkPackets {
    /// Packets that came in by it.
    pub came: u64,
    /// Packets that left by it.
    pub sent: u64,
}

/// The sum over the ports of kind `uplink`, one for each queue.
///
/// # Errors
/// When the daemon does not answer, or has no such port.
pub fn uplink_packets(node: &Node) -> Result<UplinkPackets> {
    let rows = node.list("ports")?;
    let rows = rows.as_array().context("ports are an array")?;
    let uplinks: Vec<&Value> = rows.iter().filter(|row| row["kind"] == "uplink").collect();
    ensure!(!uplinks.is_empty(), "viaduct ports shows an uplink: {rows:#?}");
    let sum = |direction: &str| {
        let counts = uplinks.iter().map(|row| row[direction]["packets"].as_u64());
        counts.sum::<Option<u64>>().with_context(|| format!("packets {direction}"))
    };
    Ok(UplinkPackets { came: sum("from_pod")?, sent: sum("to_pod")? })
}

/// Packets that a namespace's kernel has forwarded, of both families.
///
/// # Errors
/// When the kernel does not say.
pub fn kernel_forwarded(namespace: &Namespace) -> Result<u64> {
    let v4 = protocol_counter(namespace, "Ip", "ForwDatagrams")?;
    let text = namespace.within(|| std::fs::read_to_string("/proc/thread-self/net/snmp6"))??;
    let v6 = text.lines().find_map(|line| line.strip_prefix("Ip6OutForwDatagrams"));
    let v6: u64 = v6.context("the kernel counts Ip6OutForwDatagrams")?.trim().parse()?;
    Ok(v4 + v6)
}

/// Gives an uplink the addresses of a node or host on a switch or cable.
fn give_addresses(uplink: (&Namespace, &str), switch: usize, number: usize) -> Result<()> {
    let (namespace, ifname) = uplink;
    let [v4, v6] = Cluster::address_on(switch, number);
    ip(namespace, &format!("addr add {v4}/24 dev {ifname}"))?;
    ip(namespace, &format!("addr add {v6}/64 dev {ifname} nodad"))
}

/// Bridges that forward at once and say nothing themselves.
fn make_switch(setup: &ClusterSetup) -> Result<Namespace> {
    let switch = Namespace::create("e2e-switch")?;
    for interfaces in ["all", "default"] {
        set_sysctl(&switch, &format!("net.ipv6.conf.{interfaces}.disable_ipv6"), "1")?;
    }
    ip(&switch, "link set lo up")?;
    for (_, bridge, _) in setup.switches() {
        let options = "type bridge stp_state 0 mcast_snooping 0";
        ip(&switch, &format!("link add {bridge} mtu {} {options}", setup.mtu))?;
        ip(&switch, &format!("link set {bridge} up"))?;
    }
    Ok(switch)
}
