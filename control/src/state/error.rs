//! Why the state refuses a change: each refusal names the object and, where it is another's, the
//! owner.

use std::net::IpAddr;

use cni_bridge::protocol::{Attachment, RateRequest};

use super::{ADDRESSES_PER_POD_MAX, HOST_PORTS_MAX, HostPortKey};

/// Why a change was refused; the state is then as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The attachment exists (CNI spec, "ADD": a second one without DEL is an error).
    #[error(
        "container {} of network {} already has interface {}; delete it before adding it again",
        .0.container_id, .0.network, .0.ifname
    )]
    AlreadyAttached(Attachment),
    /// Another pod has the address.
    #[error(
        "address {address} belongs to interface {} of container {}; choose another address or \
         delete that container",
        .owner.ifname, .owner.container_id
    )]
    AddressTaken {
        /// The address asked for.
        address: IpAddr,
        /// The attachment that has it.
        owner: Attachment,
    },
    /// Another pod has the host interface.
    #[error(
        "host interface {host_ifname} already serves interface {} of container {}; delete that \
         container",
        .owner.ifname, .owner.container_id
    )]
    HostInterfaceTaken {
        /// The interface name.
        host_ifname: String,
        /// The attachment that has it.
        owner: Attachment,
    },
    /// The pod has no address, or too many.
    #[error("container {container_id} has {found} addresses; give it 1 to {ADDRESSES_PER_POD_MAX}")]
    AddressCount {
        /// The container.
        container_id: String,
        /// How many addresses it has.
        found: usize,
    },
    /// The pod has one address twice.
    #[error("address {0} is given twice to one container; give it once")]
    AddressRepeated(IpAddr),
    /// The MAC address cannot be a pod's.
    #[error(
        "container {container_id} cannot have a MAC address whose first byte is {first_byte:02x}; \
         choose a unicast address that does not start with 02"
    )]
    UnusableMac {
        /// The container.
        container_id: String,
        /// First byte of the address asked for.
        first_byte: u8,
    },
    /// Another pod has the host port.
    #[error("{host_port} belongs to {who}; choose another hostPort or delete that container")]
    HostPortTaken {
        /// The host port asked for.
        host_port: HostPortKey,
        /// The attachment that has it.
        owner: Attachment,
        /// The owner as people know it.
        who: String,
    },
    /// Two mappings of one pod contradict each other.
    #[error("{0} is to lead to two ports of one container; map it once")]
    HostPortRepeated(HostPortKey),
    /// A host port that leads nowhere.
    #[error(
        "{host_port} cannot lead to interface {} of container {}: it names no port or address of \
         it; map it again", .attachment.ifname, .attachment.container_id
    )]
    HostPortUnusable {
        /// The host port.
        host_port: HostPortKey,
        /// Whom it should lead to.
        attachment: Attachment,
    },
    /// A host port that a pod was not given.
    #[error(
        "{host_port} does not lead to port {container_port} of interface {} of container {}; \
         delete the attachment and add it again", .attachment.ifname, .attachment.container_id
    )]
    HostPortMissing {
        /// The host port.
        host_port: HostPortKey,
        /// The pod's port that it should lead to.
        container_port: u16,
        /// Whom it should lead to.
        attachment: Attachment,
    },
    /// The node's host ports are used up.
    #[error(
        "{found} more host ports do not fit beside the {} of this node, of {HOST_PORTS_MAX}; map \
         fewer ports, or delete containers that have them", .used
    )]
    NoHostPorts {
        /// How many were asked for.
        found: usize,
        /// How many others have.
        used: usize,
    },
    /// A limit that nothing could pass by, or that has a burst out of all bounds.
    #[error(
        "interface {} of container {} cannot have a limit of {} bits per second with a burst of {} \
         bits; ask for at least 1 of each, and a burst of at most {} bits",
        .attachment.ifname, .attachment.container_id, .limit.rate_bps, .limit.burst_bits,
        RateRequest::BURST_BITS_MAX
    )]
    LimitUnusable {
        /// What was asked for.
        limit: RateRequest,
        /// Whom it should limit.
        attachment: Attachment,
    },
    /// No pod is called so.
    #[error(
        "no container with an ID that begins with \"{container_id}\" has an interface {}here; see \
         viaduct pods --json for those that there are",
        .ifname.as_deref().map_or(String::new(), |ifname| format!("{ifname} "))
    )]
    NoSuchPod {
        /// The beginning of its container ID.
        container_id: String,
        /// Its interface, if that was named.
        ifname: Option<String>,
    },
    /// More than one pod is called so.
    #[error(
        "\"{container_id}\" begins the container IDs of {found} interfaces, such as {such_as}; \
         give more of the ID, or name the interface with --ifname"
    )]
    SeveralPods {
        /// The beginning of their container IDs.
        container_id: String,
        /// How many there are.
        found: usize,
        /// Two of them.
        such_as: String,
    },
    /// No worker has memory for one more port, or no slot is left.
    #[error(
        "all {ports} ports of this node are in use; remove pods, or raise frames or cores in \
         [workers]"
    )]
    NoRoom {
        /// Ports that are in use.
        ports: usize,
    },
}

impl StateError {
    /// The CNI error code of this refusal (CNI spec, "Error").
    pub fn cni_code(&self) -> u32 {
        match self {
            // 50: the plugin is not available, that is, it cannot serve ADD now.
            StateError::NoRoom { .. } | StateError::NoHostPorts { .. } => 50,
            // 11: try again later; the other pod may be on its way out.
            StateError::AddressTaken { .. } | StateError::HostInterfaceTaken { .. } => 11,
            // 7: invalid network configuration.
            StateError::AddressCount { .. }
            | StateError::AddressRepeated(_)
            | StateError::UnusableMac { .. }
            | StateError::LimitUnusable { .. }
            | StateError::HostPortRepeated(_)
            | StateError::HostPortUnusable { .. } => 7,
            // 100 and above are our own; the specification has none for a second ADD.
            StateError::AlreadyAttached(_) => 100,
            StateError::HostPortTaken { .. }
            | StateError::HostPortMissing { .. }
            | StateError::NoSuchPod { .. }
            | StateError::SeveralPods { .. } => 101,
        }
    }
}
