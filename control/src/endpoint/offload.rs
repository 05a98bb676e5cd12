//! Which work a pod's kernel may leave to its "hardware", which is us.

use serde::{Deserialize, Serialize};

/// Device MTU with multi-buffer frames: the longest IP packet, so that a super-packet is one
/// packet.
const DEVICE_MTU_FULL: u32 = 65_535;

/// What the host end can carry, chosen at ADD (design §4, capabilities). The journal keeps the
/// names of the variants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offloads {
    /// Multi-buffer packets and checksum metadata work: the pod keeps TSO and checksum offload.
    Full,
    /// They do not: every packet the pod sends is complete and fits the route MTU.
    #[default]
    Basic,
}

/// Off in every mode. Workers finish TCP and UDP in plain IP packets. Inside a tunnel, and for
/// SCTP with its CRC32c, nobody would.
const NEVER: [&str; 12] = [
    "tx-gre-segmentation",
    "tx-gre-csum-segmentation",
    "tx-ipxip4-segmentation",
    "tx-ipxip6-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-checksum-sctp",
    "tx-sctp-segmentation",
    // A list of packets sent as one has no headers of its own to cut by.
    "tx-gso-list",
    // A tag that travels beside the frame is invisible to XDP, so a pod's tagged frames would
    // reach the workers as untagged ones.
    "tx-vlan-hw-insert",
    "tx-vlan-stag-hw-insert",
    "tx-gso-partial",
];

/// Off in basic mode as well. The last one exists since Linux 6.18.
const NOT_BASIC: [&str; 10] = [
    "tx-checksum-ip-generic",
    "tx-scatter-gather",
    "tx-scatter-gather-fraglist",
    "tx-generic-segmentation",
    "tx-udp-segmentation",
    "tx-tcp-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-accecn-segmentation",
];

impl Offloads {
    /// Device MTU of an interface in bytes, for its route MTU.
    pub fn device_mtu(self, route_mtu: u32) -> u32 {
        match self {
            Offloads::Full => DEVICE_MTU_FULL,
            Offloads::Basic => route_mtu,
        }
    }

    /// The features of the pod's interface to be turned off, by their ethtool names.
    pub fn features(self) -> Vec<(&'static str, bool)> {
        let basic: &[&str] = match self {
            Offloads::Full => &[],
            Offloads::Basic => &NOT_BASIC,
        };
        NEVER.iter().chain(basic).map(|name| (*name, false)).collect()
    }
}
