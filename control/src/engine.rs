//! The node as one value: kernel objects, programs, workers, state and journal, and the requests
//! that change them together. Only the control thread has it.
//!
//! A request goes `Change → State::apply → kernel → tables → adopted by all workers → journal`.
//! Every step has its undo beside it; a request that fails leaves nothing behind.

mod addresses;
mod adopt;
mod attach;
mod carried;
mod compile;
mod detach;
mod explain;
mod flows;
mod follow;
mod host_ports;
mod kernel_table;
mod limits;
mod listing;
mod pins;
mod ports;
mod reaper;
mod repair;
mod uplinks;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use cni_bridge::protocol::{Attachment, CallError, CheckRequest, GcRequest};
use dataplane::host_ports::HostPorts;
use dataplane::port::PortId;
use dataplane::xsk::program::{Fallback, PortEntry, PortKind, Programs};

use crate::config::Config;
use crate::ctnetlink::Purge;
use crate::endpoint::{self, EndpointError, EndpointSpec, HostSide, Offloads};
use crate::ethtool::Ethtool;
use crate::fib::Mirror;
use crate::ipam::Ipam;
use crate::journal::{Journal, Record, boot_id};
use crate::netlink::Netlink;
use crate::nft::NftTable;
use crate::node::{NODE_IFNAME, NodeConfig, NodePort, WORKER_IFNAME, cookie};
use crate::state::{Limits, PodRecord, State};
use crate::sysctl::SysctlLog;
use crate::workers::{Foundation, NODE_SLOT, UPLINK_PORTS_MAX, Workers, WorkersConfig};

use adopt::Remembered;
pub use attach::ADD_WAITS;
pub use ports::Ports;
pub use reaper::{Reaped, Reaper};
use uplinks::Uplinks;

/// Frames that one port holds at most: its fill ring, and as many under way.
const FRAMES_PER_PORT: u32 = 192;

/// Everything of this node.
pub struct Engine {
    config: Config,
    ports: Ports,
    programs: Programs,
    workers: Workers,
    state: State,
    ipam: Ipam,
    journal: Journal,
    host: HostSide,
    netlink: Netlink,
    node: NodePort,
    nft: NftTable,
    uplinks: Uplinks,
    /// The kernel's routes and neighbors, as far as they lead to direct addresses.
    mirror: Mirror,
    listing: follow::Listing,
    /// Route MTU in bytes of networks that name none.
    route_mtu: u32,
    reaper: Reaper,
    /// Host ends and ports on their way out, by number: an ADD of the same name waits for them.
    leaving: BTreeMap<PortId, Attachment>,
    /// Fallback pods: attached, but without a worker (its socket could not be bound).
    unserved: BTreeSet<Attachment>,
    /// Those of them whose interface is gone, and since when.
    lost: BTreeMap<Attachment, Instant>,
    /// Pods that get no super-packets, because their kernels have refused one.
    segments_only: BTreeSet<Attachment>,
    /// What was last seen of each worker.
    heartbeats: Vec<watch::Heartbeat>,
    /// Sockets of re-adopted pods, until they stand in the socket map.
    adopted_sockets: Vec<(PortId, OwnedFd)>,
    /// Addresses of the node for the tables.
    node_addresses: Vec<IpAddr>,
    /// Addresses that are local without being the node's.
    not_node: BTreeSet<IpAddr>,
    /// Ports of the node that workers lead to the pods they serve.
    host_ports: Arc<HostPorts>,
    /// Keeps the kernel's flows in step with host ports.
    purge: Purge,
    /// When the XDP program's map of host ports was last looked at.
    host_ports_seen: Instant,
    /// Packets that the kernel's guard had dropped when it was last asked.
    guarded: Option<u64>,
    started: Instant,
}

impl Engine {
    /// Brings the node up, or takes over what a daemon before us left: until the sentinels are
    /// in place, at the very end, the kernel carries the pods' traffic.
    pub fn start(config: Config, reaper: Reaper) -> anyhow::Result<Engine> {
        let started = Instant::now();
        let (journal, records) = Journal::open(&config.daemon.state_dir, &boot_id()?)?;
        let remembered = Remembered::from_records(records);
        let ports = Ports::choose(&config, remembered.pods.values())?;
        let programs = Programs::load(&config.daemon.bpf_dir)?;
        let mut sysctls = SysctlLog::open(&config.daemon.state_dir.join("sysctls"))?;
        let outside = outside(&config, remembered.pods.values());
        let mut netlink = Netlink::open()?;
        let route_mtu = uplinks::route_mtu(&config, &ports, &mut netlink)?;
        let node_config = node_config(&config, route_mtu, &ports, outside);
        NodePort::give_way(&node_config)?;
        let node = NodePort::ensure(&node_config, &mut sysctls)?;
        let nft = NftTable::open()?;
        if ports.node() == Offloads::Basic {
            let features = Offloads::Basic.features();
            Ethtool::open()?.set_features(NODE_IFNAME, &features)?;
        }
        // The program may run before there is a socket: it passes everything then.
        programs.set_port(node.worker_index, &node_entry())?;
        programs.attach(node.worker_index, WORKER_IFNAME)?;
        if ports.node() == Offloads::Full {
            // In basic mode the kernel completes checksums after the marker would have called them
            // partial, and workers would complete them once more.
            programs.attach_marker(node.node_index)?;
        }
        let (workers, foundations, node_socket) = Workers::lay(WorkersConfig {
            cores: &config.workers.cores,
            frames: config.workers.frames,
            features: ports.features,
            node_device: WORKER_IFNAME,
            node_ifindex: node.worker_index,
        })?;
        let limits = Limits {
            workers: config.workers.cores.len() as u16,
            slots: dataplane::port::PORTS_MAX as u32 - 1 - u32::from(UPLINK_PORTS_MAX),
            ports_per_worker: (config.workers.frames / FRAMES_PER_PORT)
                .saturating_sub(uplinks::frames_per_worker(&config) / FRAMES_PER_PORT),
        };
        let mut engine = Engine {
            state: State::new(limits),
            ipam: Ipam::new(&config.node.pod_cidrs),
            host: HostSide::open()?,
            netlink,
            node_addresses: Vec::new(),
            not_node: BTreeSet::new(),
            host_ports: Arc::new(HostPorts::beside(host_ports::ports_of_the_kernel()?)),
            purge: Purge::start()?,
            host_ports_seen: started,
            guarded: None,
            uplinks: Uplinks::new(&config.uplink.interfaces),
            mirror: Mirror::new(config.uplink.direct.clone()),
            listing: follow::Listing::default(),
            route_mtu,
            config,
            ports,
            programs,
            workers,
            journal,
            node,
            nft,
            reaper,
            leaving: BTreeMap::new(),
            unserved: BTreeSet::new(),
            adopted_sockets: Vec::new(),
            lost: BTreeMap::new(),
            segments_only: BTreeSet::new(),
            heartbeats: vec![watch::Heartbeat::new(); limits.workers.into()],
            started,
        };
        engine.take_up(remembered, foundations, &node_socket)?;
        Ok(engine)
    }

    /// Serves what an earlier daemon has left. What takes packets from the kernel comes last.
    fn take_up(
        &mut self,
        remembered: Remembered,
        foundations: Vec<Foundation>,
        node_socket: &OwnedFd,
    ) -> anyhow::Result<()> {
        (self.node_addresses, self.not_node) = self.discover_addresses();
        let adopted = self.adopt(remembered)?;
        self.ensure_nft()?;
        let flows = self.restore_flows()?;
        self.workers.raise(foundations, flows.tables)?;
        self.serve_adopted(&adopted);
        flows.files.settle()?;
        self.reach_pods()?;
        self.steer()?;
        self.steer_host_ports()?;
        self.publish()?;
        self.programs.set_socket(u32::from(NODE_SLOT), node_socket.as_fd())?;
        for (id, socket) in std::mem::take(&mut self.adopted_sockets) {
            self.programs.set_socket(u32::from(id.0), socket.as_fd())?;
        }
        // While there are no sentinels every packet of an uplink passes.
        self.watch_uplinks();
        for worker in 0..self.state.limits().workers {
            self.take_charge(worker)?;
        }
        self.take_carried_flows(&flows.taken);
        Ok(())
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The pods.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The workers.
    #[must_use]
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// How pods' ports are made.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The node port.
    #[must_use]
    pub fn node(&self) -> &NodePort {
        &self.node
    }

    /// Addresses of the node.
    #[must_use]
    pub fn node_addresses(&self) -> &[IpAddr] {
        &self.node_addresses
    }

    /// The BPF programs.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// When the daemon started.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Whether workers serve the pod.
    #[must_use]
    pub fn is_served(&self, attachment: &Attachment) -> bool {
        !self.unserved.contains(attachment)
    }

    /// Monotonic time in ns, for IPAM's cool-down.
    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Gives the workers the tables of the present state, and waits until all use them.
    fn publish(&mut self) -> Result<(), crate::workers::WorkersError> {
        let input = compile::tables(self);
        self.workers.publish(input)
    }

    /// The nft table, to watch it.
    #[must_use]
    pub fn nft(&self) -> &NftTable {
        &self.nft
    }

    /// CNI STATUS: whether an ADD would work now.
    pub fn check_ready(&mut self, delegated_ipam: bool) -> Result<(), CallError> {
        if let Some(problem) = self.hangs() {
            // 51: not available, and pods that exist suffer as well (CNI spec, "STATUS").
            return Err(CallError { code: 51, msg: problem, details: String::new() });
        }
        self.state.room().map_err(|error| call_error(50, &error))?;
        if !delegated_ipam {
            let now_ns = self.now_ns();
            self.ipam.room(now_ns).map_err(|error| call_error(50, &error))?;
        }
        Ok(())
    }

    /// CNI GC: detaches what is not listed. Goes on after an error.
    pub fn collect(&mut self, request: &GcRequest) -> Result<(), CallError> {
        let mut errors = Vec::new();
        for attachment in self.state.stale(request) {
            errors.extend(self.detach(&attachment).err().map(|error| error.msg));
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(CallError { code: 999, msg: errors.join("; "), details: String::new() }),
        }
    }

    /// CNI CHECK: the first difference between the attachment and reality.
    pub fn check(&mut self, request: &CheckRequest, netns: OwnedFd) -> Result<(), CallError> {
        let fail = |msg: String| CallError { code: 101, msg, details: String::new() };
        let Some(pod) = self.state.pod(&request.attachment).cloned() else {
            let Attachment { network, container_id, ifname } = &request.attachment;
            return Err(fail(format!(
                "network {network} knows no interface {ifname} of container {container_id}; \
                 run ADD"
            )));
        };
        self.check_record(&pod, request).map_err(fail)?;
        self.check_host_ports(&pod).map_err(fail)?;
        let addresses: Vec<IpAddr> = pod.addresses.iter().map(|a| a.address).collect();
        let cookie = pod_cookie(&pod.attachment);
        let spec = EndpointSpec {
            netns: netns.as_fd(),
            ifname: &pod.attachment.ifname,
            host_ifname: &pod.host_ifname,
            cookie: &cookie,
            mac: pod.mac,
            host_mac: pod.host_mac,
            addresses: &addresses,
            route_mtu: pod.route_mtu,
            device_mtu: pod.offloads.device_mtu(pod.route_mtu),
            offloads: pod.offloads,
            routes: &[],
        };
        endpoint::check(&mut self.host, &spec).map_err(|error| fail(error.to_string()))
    }

    /// What prevResult claims against what we gave.
    fn check_record(&self, pod: &PodRecord, request: &CheckRequest) -> Result<(), String> {
        let Attachment { container_id, ifname, .. } = &pod.attachment;
        for text in &request.addresses {
            let address = text.split('/').next().and_then(|text| text.parse::<IpAddr>().ok());
            if !pod.addresses.iter().any(|given| Some(given.address) == address) {
                return Err(format!("{ifname} of container {container_id} was not given {text}"));
            }
        }
        pod.check_host_ports(&request.port_mappings).map_err(|error| error.to_string())?;
        if !self.is_served(&pod.attachment) {
            return Err(format!(
                "{ifname} of container {container_id} is on the kernel's path: no worker serves it"
            ));
        }
        Ok(())
    }

    /// Stops: workers forward what they have, the kernel carries the pods from then on.
    pub fn stop(mut self) {
        for worker in self.workers.handles() {
            if let Err(error) = self.programs.clear_sentinels(u32::from(worker.id)) {
                tracing::warn!(%error, "leave the pods to the kernel");
            }
        }
        self.workers.stop();
    }
}

/// The cookie of an attachment's host end.
fn pod_cookie(attachment: &Attachment) -> String {
    cookie(&attachment.network, &attachment.container_id, &attachment.ifname)
}

fn call_error(code: u32, error: &dyn std::error::Error) -> CallError {
    CallError { code, msg: error.to_string(), details: String::new() }
}

/// Addresses that these pods have outside of `pod_cidrs`: a delegated IPAM plugin may give any.
fn outside<'a>(config: &Config, pods: impl Iterator<Item = &'a PodRecord>) -> BTreeSet<IpAddr> {
    let inside = |address: &IpAddr| config.node.pod_cidrs.iter().any(|cidr| cidr.contains(address));
    let addresses = pods.flat_map(|pod| &pod.addresses).map(|given| given.address);
    addresses.filter(|address| !inside(address)).collect()
}

fn node_config(
    config: &Config,
    route_mtu: u32,
    ports: &Ports,
    outside: BTreeSet<IpAddr>,
) -> NodeConfig {
    NodeConfig {
        pod_cidrs: config.node.pod_cidrs.clone(),
        outside,
        route_mtu,
        device_mtu: ports.node_device_mtu(),
        workers: config.workers.cores.len() as u32,
    }
}

fn node_entry() -> PortEntry {
    PortEntry {
        slot: u32::from(NODE_SLOT),
        worker: 0,
        fallback: Fallback::Pass,
        mac: crate::node::mac_for(NODE_IFNAME),
        kind: PortKind::Node,
    }
}
