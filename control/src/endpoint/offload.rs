//! Which work a pod's kernel may leave to its "hardware", which is us.

/// What the host end can carry, probed at start (design §4, capabilities).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offloads {
    /// Multi-buffer packets and checksum metadata work: the pod keeps TSO and checksum offload.
    Full,
    /// They do not: every packet the pod sends is complete and fits the route MTU.
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
    /// The features of the pod's interface to be turned off, by their ethtool names.
    pub fn features(self) -> Vec<(&'static str, bool)> {
        let basic: &[&str] = match self {
            Offloads::Full => &[],
            Offloads::Basic => &NOT_BASIC,
        };
        NEVER.iter().chain(basic).map(|name| (*name, false)).collect()
    }
}
