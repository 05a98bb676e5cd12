//! What Viaduct tells about itself: the rows of the listings, with the keys that scripts rely on.
//!
//! A row is made by the daemon, travels as JSON, and is read again by `viaduct` to draw a table.
//! Keys are added, never renamed or removed; a reader fills in what its daemon does not know yet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use dataplane::counters::{DirectionCounters, WorkerCounters};
use dataplane::drop::DropReason;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::metrics::OpTimes;

#[cfg(test)]
pub(crate) mod tests;

/// Everything the metrics are rendered from.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The daemon and its workers.
    pub status: Status,
    /// Every attachment.
    pub pods: Vec<PodRow>,
    /// Every port.
    pub ports: Vec<PortRow>,
    /// How long CNI operations took.
    pub operations: OpTimes,
}

/// `viaduct status`: the daemon and its workers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Release of the daemon.
    pub version: String,
    /// Whether an ADD would be served and packets are forwarded.
    pub ready: bool,
    /// What stands against being ready or is otherwise amiss, a sentence each.
    pub problems: Vec<String>,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Whether ports carry super-packets.
    pub port_mode: PortMode,
    /// What the kernel's sockets can do here.
    pub features: Features,
    /// Addresses of the node that pods see it by.
    pub node_addresses: Vec<IpAddr>,
    /// The prefixes the node's pods are numbered from.
    pub pod_cidrs: Vec<IpNet>,
    /// Generation of the newest tables.
    pub generation: u64,
    /// Number of attachments.
    pub pods: u32,
    /// Those of them that the kernel forwards for.
    pub fallback_pods: u32,
    /// Number of routes.
    pub routes: u32,
    /// Every worker, by number.
    pub workers: Vec<WorkerRow>,
}

/// How ports work (design: `port_mode` of the configuration, and what the kernel can do).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortMode {
    /// Pods keep TSO: a unit of 64 kB is one packet.
    Full,
    /// A packet is at most one frame; pods send what fits the route MTU.
    #[default]
    Basic,
}

impl PortMode {
    /// The word that stands in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PortMode::Full => "full",
            PortMode::Basic => "basic",
        }
    }
}

/// Capabilities of the kernel, probed at start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Features {
    /// Generic XDP passes packets of several fragments (Linux 6.9).
    pub frags: bool,
    /// Sockets take packets of several descriptors, `XDP_USE_SG` (Linux 6.6).
    pub sg: bool,
    /// Checksums by TX metadata (Linux 6.8).
    pub tx_checksum: bool,
    /// `XDP_MAX_TX_SKB_BUDGET` (Linux 6.17).
    pub tx_budget: bool,
    /// The pod's kernel tells checksum state and segment size in the source MAC.
    pub csum_hint: bool,
}

impl Features {
    /// Every capability by the name of its key.
    #[must_use]
    pub fn named(&self) -> [(&'static str, bool); 5] {
        let Features { frags, sg, tx_checksum, tx_budget, csum_hint } = *self;
        [
            ("frags", frags),
            ("sg", sg),
            ("tx_checksum", tx_checksum),
            ("tx_budget", tx_budget),
            ("csum_hint", csum_hint),
        ]
    }
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerRow {
    /// Its number.
    pub id: u16,
    /// The core it is pinned to.
    pub core: usize,
    /// Share of its time spent in passes that moved packets, 0 to 1.
    pub busy_ratio: f64,
    /// Ports it owns.
    pub ports: u32,
    /// Generation of the tables it forwards by.
    pub generation: u64,
    /// Whether hugepages back its memory.
    pub hugepages: bool,
    /// Where its frames are.
    pub frames: FramesRow,
    /// What became of its packets, since it started.
    pub packets: PacketsRow,
}

/// Where a worker's frames are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FramesRow {
    /// Held by nobody.
    pub free: u64,
    /// In fill or rx rings.
    pub rx: u64,
    /// In tx or completion rings.
    pub tx: u64,
    /// On the way to another worker.
    pub crossing: u64,
    /// All of them.
    pub total: u64,
}

impl FramesRow {
    /// The frame law: every frame is somewhere.
    #[must_use]
    pub fn conserved(&self) -> bool {
        self.free + self.rx + self.tx + self.crossing == self.total
    }
}

/// What became of a worker's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PacketsRow {
    /// Taken from rx rings.
    pub received: u64,
    /// Made here: ICMP errors, and segments beyond the first of a super-packet.
    pub generated: u64,
    /// Given to tx rings.
    pub sent: u64,
    /// Not forwarded.
    pub dropped: u64,
    /// Taken from another worker.
    pub crossed_in: u64,
    /// Handed to another worker.
    pub crossed_out: u64,
}

impl PacketsRow {
    /// The packet law: what came in or was made here is accounted for.
    #[must_use]
    pub fn conserved(&self) -> bool {
        self.received + self.generated + self.crossed_in
            == self.sent + self.dropped + self.crossed_out
    }
}

impl FramesRow {
    fn glance(counters: &WorkerCounters) -> FramesRow {
        FramesRow {
            free: counters.frames_free.get(),
            rx: counters.frames_rx.get(),
            tx: counters.frames_tx.get(),
            crossing: counters.frames_crossing.get(),
            total: counters.frames_total.get(),
        }
    }

    /// Reads the frame counters of a running worker; see [`PacketsRow::read`].
    #[must_use]
    pub fn read(counters: &WorkerCounters) -> FramesRow {
        look_again(|| FramesRow::glance(counters), FramesRow::conserved)
    }
}

impl PacketsRow {
    fn glance(counters: &WorkerCounters) -> PacketsRow {
        PacketsRow {
            received: counters.received.get(),
            generated: counters.generated.get(),
            sent: counters.sent.get(),
            dropped: counters.dropped.get(),
            crossed_in: counters.crossed_in.get(),
            crossed_out: counters.crossed_out.get(),
        }
    }

    /// Reads the packet counters of a running worker. In the middle of a pass they do not add up,
    /// so a look that breaks the law is repeated: a law that holds once holds, because a packet or
    /// frame that is really lost is missing in every later look too. Takes 2 ms at most.
    #[must_use]
    pub fn read(counters: &WorkerCounters) -> PacketsRow {
        look_again(|| PacketsRow::glance(counters), PacketsRow::conserved)
    }
}

/// Looks until a law holds, and gives up with the last look.
fn look_again<T>(glance: impl Fn() -> T, conserved: impl Fn(&T) -> bool) -> T {
    /// A full pass takes less than 100 µs; twenty looks in the middle of one are no chance.
    const LOOKS_MAX: u32 = 20;
    /// About one pass of a busy worker.
    const BETWEEN: Duration = Duration::from_micros(50);
    let mut seen = glance();
    for _ in 1..LOOKS_MAX {
        if conserved(&seen) {
            break;
        }
        sleep(BETWEEN);
        seen = glance();
    }
    seen
}

/// One attachment, `viaduct pods`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodRow {
    /// Network name of the CNI configuration.
    pub network: String,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// Kubernetes namespace, or empty.
    pub namespace: String,
    /// Kubernetes pod name, or empty.
    pub name: String,
    /// Its addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// MAC address of its interface.
    pub mac: String,
    /// Name of the host end of its veth pair.
    pub host_ifname: String,
    /// Its home worker.
    pub worker: u16,
    /// Who forwards for it now.
    pub state: PodState,
    /// What happens to its packets while no worker forwards for it.
    pub fallback: FallbackAction,
    /// What the pod sent.
    pub from_pod: DirectionRow,
    /// What was for the pod.
    pub to_pod: DirectionRow,
}

impl PodRow {
    /// What people call the pod: `namespace/name`; `name` alone where the runtime has no
    /// namespaces, as podman; or the first 12 characters of the container ID (as container tools
    /// print it) where the runtime gave no name.
    #[must_use]
    pub fn title(&self) -> String {
        match (self.namespace.as_str(), self.name.as_str()) {
            (_, "") => self.container_id.chars().take(12).collect(),
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        }
    }
}

/// Who forwards for a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// A worker.
    #[default]
    Userspace,
    /// The kernel, or nobody: as [`FallbackAction`] says.
    Fallback,
}

impl PodState {
    /// The word that stands in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PodState::Userspace => "userspace",
            PodState::Fallback => "fallback",
        }
    }
}

/// What happens to a pod's packets while no worker forwards for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallbackAction {
    /// The kernel routes them.
    #[default]
    Pass,
    /// They are dropped: a policy selects the pod, and the kernel would not heed it.
    Drop,
}

impl FallbackAction {
    /// The word that stands in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FallbackAction::Pass => "pass",
            FallbackAction::Drop => "drop",
        }
    }
}

/// What a port did in one direction since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DirectionRow {
    /// Units as the port saw them: a super-packet is one.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// What they are on a wire: a super-packet counts its segments.
    pub wire_packets: u64,
    /// Bytes on a wire, each segment with its own headers.
    pub wire_bytes: u64,
    /// Packets not forwarded, by the name of the reason; only reasons that happened.
    pub drops: BTreeMap<String, u64>,
}

impl DirectionRow {
    /// Sum of the drops.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.values().sum()
    }
}

impl From<&DirectionCounters> for DirectionRow {
    fn from(counters: &DirectionCounters) -> DirectionRow {
        DirectionRow {
            packets: counters.packets.get(),
            bytes: counters.bytes.get(),
            wire_packets: counters.wire_packets.get(),
            wire_bytes: counters.wire_bytes.get(),
            drops: counters
                .drops_by_reason()
                .map(|(reason, count)| (reason.name().to_owned(), count))
                .collect(),
        }
    }
}

/// One port, `viaduct ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortRow {
    /// Its number.
    pub port: u16,
    /// Name of the host's interface.
    pub device: String,
    /// Index of that interface.
    pub ifindex: u32,
    /// What is at its other end.
    pub kind: PortKind,
    /// The worker that owns it.
    pub worker: u16,
    /// Its place in the socket map.
    pub slot: u32,
    /// Route MTU in bytes: the largest IP packet that leaves by it.
    pub mtu: u32,
    /// MAC address of the other end.
    pub mac: String,
    /// What came in by it; for the node port "pod" means the node.
    pub from_pod: DirectionRow,
    /// What left by it.
    pub to_pod: DirectionRow,
}

/// What is at the other end of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortKind {
    /// A pod.
    #[default]
    Pod,
    /// The node's own kernel.
    Node,
}

impl PortKind {
    /// The word that stands in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PortKind::Pod => "pod",
            PortKind::Node => "node",
        }
    }
}

/// One route, `viaduct routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRow {
    /// Destination prefix.
    pub dst: IpNet,
    /// Next hop; absent where the destination is on the link.
    pub via: Option<IpAddr>,
    /// Name of the interface it leaves by.
    pub dev: String,
    /// Number of the port it leaves by; absent where nothing is sent (`no_pod`).
    pub port: Option<u16>,
    /// Where the route comes from, such as `pod` or `node`.
    pub source: String,
}

/// One cause of drops at one port, `viaduct drops`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRow {
    /// Number of the port; absent for a pod whose port is gone.
    pub port: Option<u16>,
    /// `namespace/name`, or the container ID where the runtime gave no name; the node port's
    /// device for the node.
    pub pod: String,
    /// Which way the packets went.
    pub direction: Direction,
    /// Name of the drop reason.
    pub reason: String,
    /// Packets dropped for it.
    pub count: u64,
    /// What the reason means.
    pub sentence: String,
}

/// Which way packets went, as the pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Sent by the pod.
    FromPod,
    /// For the pod.
    ToPod,
}

impl Direction {
    /// The word that stands in JSON and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Direction::FromPod => "from_pod",
            Direction::ToPod => "to_pod",
        }
    }
}

/// All drops of pods and the node, most first.
#[must_use]
pub fn drop_rows(pods: &[PodRow], ports: &[PortRow]) -> Vec<DropRow> {
    let number = |device: &str| ports.iter().find(|row| row.device == device).map(|row| row.port);
    let of_pods = pods.iter().map(|row| {
        let name = if row.name.is_empty() { row.container_id.clone() } else { row.title() };
        (number(&row.host_ifname), name, &row.from_pod, &row.to_pod)
    });
    let of_node = ports
        .iter()
        .filter(|row| row.kind == PortKind::Node)
        .map(|row| (Some(row.port), row.device.clone(), &row.from_pod, &row.to_pod));
    let mut rows = Vec::new();
    for (port, pod, from_pod, to_pod) in of_pods.chain(of_node) {
        for (direction, counts) in [(Direction::FromPod, from_pod), (Direction::ToPod, to_pod)] {
            rows.extend(counts.drops.iter().map(|(reason, count)| DropRow {
                port,
                pod: pod.clone(),
                direction,
                reason: reason.clone(),
                count: *count,
                sentence: sentence(reason).to_owned(),
            }));
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.count));
    rows
}

/// The sentence of a reason; empty for one that another release knows.
fn sentence(reason: &str) -> &'static str {
    DropReason::all().find(|known| known.name() == reason).map_or("", DropReason::sentence)
}
