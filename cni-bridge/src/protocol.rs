//! What the shim, the command line and the daemon say to each other over the unix socket.
//!
//! One frame is a 4-byte big-endian length and that many bytes of JSON. A connection carries
//! requests and replies in turn. The descriptor of the pod's network namespace travels beside the
//! first byte of an ADD or CHECK (`SCM_RIGHTS`), so that the daemon opens no path a request names.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// Version of this protocol. The daemon accepts one more and one less, so that a shim and a daemon
/// of neighbouring releases work together during an upgrade.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest frame in bytes, both ways: far above a full GC list, far below a memory bomb.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Names one attachment, as CNI does: (network, containerID, ifname).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// Network name of the CNI configuration.
    pub network: String,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

/// A request: the protocol version the sender speaks, and the call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// What is asked.
    pub call: Call,
}

/// Everything that can be asked of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Attach a pod; answers [`AddReply`]. The namespace descriptor comes beside it.
    Add(Box<AddRequest>),
    /// Detach a pod; succeeds when there is nothing to detach. Answers [`Reply::Done`].
    Del(DelRequest),
    /// Compare an attachment with reality; answers [`Reply::Done`]. The namespace descriptor comes
    /// beside it.
    Check(CheckRequest),
    /// Detach every attachment of a network that is not listed; answers [`Reply::Done`].
    Gc(GcRequest),
    /// Whether an ADD would work now; answers [`Reply::Done`], or an error of code 50 or 51.
    CniStatus {
        /// True when the network's addresses come from a delegated IPAM plugin, so that an
        /// exhausted embedded pool is no reason to refuse.
        delegated_ipam: bool,
    },
    /// A listing for people and programs; answers [`Reply::Listing`], or [`Reply::Page`] when it is
    /// long.
    List(Listing),
    /// The rest of a listing whose beginning was a [`Reply::Page`]; answers like [`Call::List`].
    ListAfter {
        /// What is listed.
        listing: Listing,
        /// `next` of the page before, verbatim.
        after: String,
    },
    /// `viaduct flows`: answers like [`Call::List`], but a page may be without rows, because the
    /// daemon looks at so many flows at a time, whether they are asked for or not.
    Flows {
        /// Which flows.
        filter: FlowFilter,
        /// `next` of the page before, verbatim; absent for the first.
        #[serde(default)]
        after: Option<String>,
    },
    /// `viaduct explain`: what becomes of a packet that is made up; answers [`Reply::Listing`] with
    /// an object.
    Explain(Box<ExplainRequest>),
    /// `viaduct limits set`: change the limits of a pod. Answers [`Reply::Done`] when every worker
    /// forwards by the new ones, and they would outlive the daemon.
    SetLimits(LimitsRequest),
}

/// A packet to be explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// Where it comes in: a container ID or its beginning, with or without `/ifname`; a pod's name,
    /// or `namespace/name`; `node`; or the name of an uplink.
    pub from: String,
    /// Its source; absent: the first address of the pod or the node.
    pub src: Option<IpAddr>,
    /// Its source port; of an echo request the identifier.
    pub sport: u16,
    /// Its destination.
    pub dst: IpAddr,
    /// Its destination port; of an echo request nothing.
    pub dport: u16,
    /// What is in it.
    pub content: ProbeContent,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Bytes of the IP packet; absent: as few as it has.
    pub bytes: Option<u16>,
    /// IPv4 "don't fragment".
    pub dont_fragment: bool,
}

/// What is in a packet to be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeContent {
    /// A TCP segment.
    Tcp {
        /// The flags: byte 13 of the header (RFC 9293 §3.1).
        flags: u8,
    },
    /// A UDP datagram.
    Udp,
    /// An SCTP packet (RFC 9260 §3.2).
    Sctp {
        /// It has an INIT chunk; else DATA.
        opens: bool,
    },
    /// An ICMP or ICMPv6 echo request.
    Icmp,
}

/// Which flows are listed: those that meet every condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowFilter {
    /// Of this pod: `namespace/name`, a name, or the beginning of a container ID.
    pub pod: Option<String>,
    /// From or to this address, before or after translation.
    pub address: Option<IpAddr>,
    /// From or to this port, before or after translation.
    pub port: Option<u16>,
}

/// What `viaduct` can list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Listing {
    /// `viaduct status`: an object.
    Status,
    /// `viaduct pods`: an array, as are the rest.
    Pods,
    /// `viaduct ports`.
    Ports,
    /// `viaduct routes`.
    Routes,
    /// `viaduct drops`.
    Drops,
    /// `viaduct hostports`.
    Hostports,
    /// `viaduct limits`.
    Limits,
}

/// An address with its prefix length, written `10.244.1.5/24`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAddress {
    /// The pod's address.
    pub address: IpAddr,
    /// Prefix length that the result shows (the pod itself is given a host route).
    pub prefix_len: u8,
    /// Gateway that the result shows; absent means the link-local gateway of the family.
    pub gateway: Option<IpAddr>,
}

/// Where a pod's addresses come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Addressing {
    /// The daemon allocates one address per family of `pod_cidrs`.
    Embedded {
        /// Addresses the runtime asked for (capability `ips`, `args.cni.ips`, CNI_ARGS `IP`).
        requested: Vec<IpAddr>,
        /// Ranges to allocate from instead of `pod_cidrs` (capability `ipRanges`), one inner list
        /// per address wanted; each entry is `(subnet CIDR, first, last)`.
        ranges: Vec<Vec<IpRange>>,
    },
    /// A delegated IPAM plugin has allocated these.
    Delegated(Vec<PodAddress>),
}

/// One range of the `ipRanges` capability.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpRange {
    /// The subnet in CIDR notation.
    pub subnet: String,
    /// First address to hand out; absent: the subnet's first usable one.
    pub range_start: Option<IpAddr>,
    /// Last address to hand out; absent: the subnet's last usable one.
    pub range_end: Option<IpAddr>,
    /// Gateway named by the range.
    pub gateway: Option<IpAddr>,
}

/// Attach a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddRequest {
    /// Whom to attach.
    pub attachment: Attachment,
    /// CNI_NETNS verbatim: shown in listings and results, never opened.
    pub netns: String,
    /// Where the addresses come from.
    pub addressing: Addressing,
    /// MAC address the runtime asked for; absent: the daemon chooses.
    pub mac: Option<String>,
    /// Route MTU in bytes of this network; absent: the node's.
    pub mtu: Option<u32>,
    /// Extra routes of the delegated IPAM result, each `(destination CIDR, gateway)`.
    pub routes: Vec<ExtraRoute>,
    /// K8S_POD_NAMESPACE, or empty.
    pub pod_namespace: String,
    /// K8S_POD_NAME, or empty.
    pub pod_name: String,
    /// Ports of the node that are to lead to the pod (capability `portMappings`). A daemon that is
    /// too old to read them says so by [`AddReply::port_mappings`].
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    /// Key `snat`: whether the pod's own connections to its host ports, and those of the node to
    /// 127.0.0.1, get another source; absent: they do.
    #[serde(default)]
    pub snat: Option<bool>,
    /// Key `masqAll`: whether every connection to the host ports gets another source.
    #[serde(default)]
    pub masq_all: bool,
    /// Limits of the pod (capability `bandwidth`). A daemon that is too old to read them says so by
    /// [`AddReply::bandwidth`].
    #[serde(default)]
    pub bandwidth: Bandwidth,
}

/// One entry of the `portMappings` capability: a port of the node that leads to one of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// `hostIP`: one address of the node, or the unspecified address of a family for all of that
    /// family; absent: all addresses of both.
    pub host_ip: Option<IpAddr>,
    /// `hostPort`; never 0, which asks for nothing and is left out.
    pub host_port: u16,
    /// `containerPort`; never 0.
    pub container_port: u16,
    /// `protocol`.
    pub protocol: PortProtocol,
}

/// What was asked for of a pod's bandwidth, in the words of Kubernetes and CNI: `ingress` is what
/// comes to the pod, `egress` what it sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bandwidth {
    /// Limit of what comes to the pod; absent: none.
    pub ingress: Option<RateRequest>,
    /// Limit of what the pod sends; absent: none.
    pub egress: Option<RateRequest>,
}

impl Bandwidth {
    /// Whether there is no limit, either way.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Bandwidth::default()
    }
}

/// A limit as it was asked for. What is applied has a burst of another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateRequest {
    /// Rate in bits per second; never 0, which asks for nothing and is left out.
    pub rate_bps: u64,
    /// Bits that may pass at once after a pause: 1 to [`RateRequest::BURST_BITS_MAX`].
    pub burst_bits: u64,
}

impl RateRequest {
    /// Largest burst in bits: the reference's bandwidth plugin refuses 2^32 - 1 bytes and more.
    pub const BURST_BITS_MAX: u64 = u32::MAX as u64 * 8 - 1;
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl PortProtocol {
    /// All of them.
    pub const ALL: [PortProtocol; 3] = [PortProtocol::Tcp, PortProtocol::Udp, PortProtocol::Sctp];

    /// Its name, as runtimes write it and listings show it.
    pub fn as_str(self) -> &'static str {
        match self {
            PortProtocol::Tcp => "tcp",
            PortProtocol::Udp => "udp",
            PortProtocol::Sctp => "sctp",
        }
    }
}

/// A route that IPAM wants in the pod beside the default one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraRoute {
    /// Destination in CIDR notation.
    pub dst: String,
    /// Next hop named by IPAM; Viaduct's pods reach everything through their link-local gateway, so
    /// it is only shown in the result.
    pub gw: Option<IpAddr>,
}

/// Change the limits of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsRequest {
    /// CNI_CONTAINERID, or a beginning of it that no other pod's has.
    pub container_id: String,
    /// CNI_IFNAME; absent: the pod has one interface only.
    pub ifname: Option<String>,
    /// What becomes of the limit of what comes to the pod; absent: it stays.
    pub ingress: Option<LimitChange>,
    /// What becomes of the limit of what the pod sends; absent: it stays.
    pub egress: Option<LimitChange>,
}

/// What becomes of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitChange {
    /// There is none from then on.
    Lift,
    /// It is this from then on.
    Set {
        /// Rate in bits per second, at least 1.
        rate_bps: u64,
        /// Burst in bits, 1 to [`RateRequest::BURST_BITS_MAX`]; absent: that of the limit before,
        /// and the largest if there was none.
        burst_bits: Option<u64>,
    },
}

/// Detach a pod: keyed by the attachment alone, never by the payload of a DEL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelRequest {
    /// Whom to detach.
    pub attachment: Attachment,
}

/// Compare an attachment with reality.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// Whom to check.
    pub attachment: Attachment,
    /// Addresses that prevResult says the interface has, each in CIDR notation.
    pub addresses: Vec<String>,
    /// MAC address that prevResult says the interface has.
    pub mac: Option<String>,
    /// Host-side interface name that prevResult gives.
    pub host_ifname: Option<String>,
    /// Route destinations (CIDR) that prevResult lists.
    pub routes: Vec<String>,
    /// Ports of the node that the runtime believes to lead to the pod.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
}

/// Detach what is not listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcRequest {
    /// Network name; attachments of other networks are never touched.
    pub network: String,
    /// `(containerID, ifname)` pairs that are to stay.
    pub valid: Vec<(String, String)>,
}

/// What ADD made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddReply {
    /// Name of the host end of the pod's veth pair.
    pub host_ifname: String,
    /// MAC address of the host end.
    pub host_mac: String,
    /// MAC address of the pod's interface.
    pub mac: String,
    /// Route MTU in bytes: the largest IP packet the pod should send.
    pub mtu: u32,
    /// The pod's addresses, IPv4 first.
    pub addresses: Vec<PodAddress>,
    /// How many of the request's port mappings were read, which is all of them but for a daemon of
    /// an earlier release: that knows of none, and leaves this out.
    #[serde(default)]
    pub port_mappings: usize,
    /// The limits that were read, which are those of the request but for a daemon of an earlier
    /// release, as with `port_mappings`.
    #[serde(default)]
    pub bandwidth: Bandwidth,
}

/// The daemon's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// ADD succeeded: every worker forwards for this pod.
    Added(AddReply),
    /// The call succeeded and has nothing to say.
    Done,
    /// The listing asked for, or all that was left of it, with the keys of the external contract.
    Listing(serde_json::Value),
    /// Rows of a listing of which more are left. The daemon remembers nothing of it: `next` says
    /// where the rest begins, so who asks for it may take its time and use a new connection. Rows
    /// come in the order of a key that no two share; what changes meanwhile may be missing or be
    /// shown as it was or as it is, but nothing is shown twice.
    Page {
        /// At least one row.
        rows: Vec<serde_json::Value>,
        /// Means something to the daemon alone.
        next: String,
    },
    /// The call failed.
    Error(CallError),
}

/// A failure, in CNI's terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallError {
    /// CNI error code (spec section "Error", 1-99), or 100 and above for Viaduct's own.
    pub code: u32,
    /// One sentence that names the object and the mend.
    pub msg: String,
    /// More for whoever looks closer; may be empty.
    pub details: String,
}
