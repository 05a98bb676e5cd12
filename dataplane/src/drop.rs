//! Why a packet was not forwarded. One list: every reason has one name, one sentence and one
//! counter per port and direction, grouped by the stage that raises it.

/// The one cause recorded for a packet that is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    // Parse.
    /// The frame ends before the headers it announces.
    TooShort,
    /// Neither IPv4, IPv6 nor ARP.
    UnknownEtherType,
    /// Sent to another MAC address than the gateway's.
    OtherHost,
    /// A unicast IP packet sent to a link multicast address.
    LinkMulticast,
    /// EtherType says IPv4, the header does not.
    Ipv4BadVersion,
    /// IPv4 header length below 20 bytes.
    Ipv4BadHeaderLength,
    /// IPv4 total length does not fit header or frame.
    Ipv4BadLength,
    /// IPv4 header checksum is wrong.
    Ipv4BadChecksum,
    /// IPv4 source routing is not forwarded (RFC 7126).
    Ipv4SourceRoute,
    /// An IPv4 option has an impossible length.
    Ipv4BadOptions,
    /// EtherType says IPv6, the header does not.
    Ipv6BadVersion,
    /// IPv6 payload length does not fit the frame.
    Ipv6BadLength,
    /// More than 8 IPv6 extension headers.
    Ipv6TooManyHeaders,
    /// An IPv6 extension header is cut off.
    Ipv6BadExtension,
    /// IPv6 routing header type 0 (RFC 5095).
    Ipv6RoutingType0,
    /// The packet ends inside its TCP, UDP or ICMP header.
    L4TooShort,
    /// UDP length does not fit the packet.
    UdpBadLength,
    /// A fragment that is empty or ends out of range.
    FragmentTooSmall,
    // Anti-spoofing.
    /// Source MAC is neither the pod's nor an offload marker.
    SpoofedMac,
    /// Source address is not one of the pod's IPv4 addresses.
    SpoofedIpv4,
    /// Source address is not one of the pod's IPv6 addresses.
    SpoofedIpv6,
    /// From another node, with an address of this node's pods.
    SpoofedPod,
    /// ARP sender is not the pod.
    SpoofedArp,
    /// Neighbour discovery names another's address.
    SpoofedNd,
    // Offload marker.
    /// The offload marker contradicts the packet.
    BadMarker,
    /// Segment size below 536 bytes with more than 64 segments.
    TinySegments,
    // Neighbours.
    /// Not an Ethernet/IPv4 ARP request or reply.
    ArpMalformed,
    /// ARP for an address that is not the gateway.
    ArpNotForGateway,
    /// Neighbour discovery breaks RFC 4861 section 7.1.
    NdMalformed,
    /// Solicits an address that is not the gateway.
    NdNotForGateway,
    /// Router discovery, redirect or MLD is not for a pod to send.
    NdForbidden,
    // Addresses.
    /// A source address that may never be forwarded.
    MartianSource,
    /// A destination that may never be forwarded.
    MartianDestination,
    /// Multicast and broadcast are not forwarded.
    Multicast,
    /// Link-local addresses are not forwarded.
    LinkLocal,
    /// ICMP redirects are not forwarded.
    IcmpRedirect,
    // Route.
    /// An address of the pod network that no pod has.
    NoPod,
    /// From the node or another one, but not to a pod of this node.
    NotOurs,
    /// TTL or hop limit reached zero.
    TtlExpired,
    /// Larger than the route MTU and may not be fragmented.
    MtuExceeded,
    /// A tunnelled super-packet can only go to a pod of this node.
    EncapsulatedSuperPacket,
    /// The port it came from or goes to is gone.
    PortDown,
    // Host ports.
    /// Of a connection of a host port, or of its pod's port, that is not there.
    NatNoFlow,
    /// Every source port that was tried belongs to another flow of the pod.
    NatNoPort,
    /// Addresses or ports of the packet cannot be rewritten.
    NatUntranslatable,
    /// The pod has its full number of flows.
    FlowQuota,
    /// The worker's table of flows is full.
    FlowTableFull,
    /// An ICMP error that speaks of no flow there is.
    IcmpErrorUnknownFlow,
    /// A later fragment came without the first, which has the ports.
    FragmentWithoutFirst,
    // Limits.
    /// By the pod's limit it would wait too long.
    ShaperFull,
    /// What waits by the pod's limit has its share of the worker's frames.
    ShaperNoFrames,
    // Memory and rings.
    /// The worker has no free frame.
    NoFrames,
    /// The ring to the destination's worker is full.
    CrossingFull,
    /// The destination takes packets more slowly than they come.
    TxRingFull,
    /// The destination's interface refused the packet.
    TxRefused,
    /// A ring held a descriptor that names no frame of it.
    BadDescriptor,
    // The kernel's own counters of the XSK.
    /// The kernel found no frame in the fill ring.
    RxFillEmpty,
    /// The kernel found the rx ring full.
    RxRingFull,
    /// The kernel found too few frames for a long packet.
    RxDropped,
    /// The kernel rejected a tx descriptor.
    TxInvalid,
}

/// Name and sentence of every reason, in the order of the enum.
pub const TABLE: [(DropReason, &str, &str); DropReason::COUNT] = {
    use DropReason::*;
    [
        (TooShort, "too_short", "the frame ends before the headers it announces"),
        (UnknownEtherType, "unknown_ether_type", "neither IPv4, IPv6 nor ARP"),
        (OtherHost, "other_host", "sent to another MAC address than the gateway's"),
        (LinkMulticast, "link_multicast", "a unicast IP packet sent to a link multicast address"),
        (Ipv4BadVersion, "ipv4_bad_version", "EtherType says IPv4, the header does not"),
        (Ipv4BadHeaderLength, "ipv4_bad_header_length", "IPv4 header length below 20 bytes"),
        (Ipv4BadLength, "ipv4_bad_length", "IPv4 total length does not fit header or frame"),
        (Ipv4BadChecksum, "ipv4_bad_checksum", "IPv4 header checksum is wrong"),
        (Ipv4SourceRoute, "ipv4_source_route", "IPv4 source routing is not forwarded (RFC 7126)"),
        (Ipv4BadOptions, "ipv4_bad_options", "an IPv4 option has an impossible length"),
        (Ipv6BadVersion, "ipv6_bad_version", "EtherType says IPv6, the header does not"),
        (Ipv6BadLength, "ipv6_bad_length", "IPv6 payload length does not fit the frame"),
        (Ipv6TooManyHeaders, "ipv6_too_many_headers", "more than 8 IPv6 extension headers"),
        (Ipv6BadExtension, "ipv6_bad_extension", "an IPv6 extension header is cut off"),
        (Ipv6RoutingType0, "ipv6_routing_type_0", "IPv6 routing header type 0 (RFC 5095)"),
        (L4TooShort, "l4_too_short", "the packet ends inside its TCP, UDP or ICMP header"),
        (UdpBadLength, "udp_bad_length", "UDP length does not fit the packet"),
        (FragmentTooSmall, "fragment_too_small", "a fragment that is empty or ends out of range"),
        (SpoofedMac, "spoofed_mac", "source MAC is neither the pod's nor an offload marker"),
        (SpoofedIpv4, "spoofed_ipv4", "source address is not one of the pod's IPv4 addresses"),
        (SpoofedIpv6, "spoofed_ipv6", "source address is not one of the pod's IPv6 addresses"),
        (SpoofedPod, "spoofed_pod", "from another node, with an address of this node's pods"),
        (SpoofedArp, "spoofed_arp", "ARP sender is not the pod"),
        (SpoofedNd, "spoofed_nd", "neighbour discovery names another's address"),
        (BadMarker, "bad_marker", "the offload marker contradicts the packet"),
        (TinySegments, "tiny_segments", "segment size below 536 bytes with more than 64 segments"),
        (ArpMalformed, "arp_malformed", "not an Ethernet/IPv4 ARP request or reply"),
        (ArpNotForGateway, "arp_not_for_gateway", "ARP for an address that is not the gateway"),
        (NdMalformed, "nd_malformed", "neighbour discovery breaks RFC 4861 section 7.1"),
        (NdNotForGateway, "nd_not_for_gateway", "solicits an address that is not the gateway"),
        (NdForbidden, "nd_forbidden", "router discovery, redirect or MLD is not for a pod to send"),
        (MartianSource, "martian_source", "a source address that may never be forwarded"),
        (MartianDestination, "martian_destination", "a destination that may never be forwarded"),
        (Multicast, "multicast", "multicast and broadcast are not forwarded"),
        (LinkLocal, "link_local", "link-local addresses are not forwarded"),
        (IcmpRedirect, "icmp_redirect", "ICMP redirects are not forwarded"),
        (NoPod, "no_pod", "an address of the pod network that no pod has"),
        (NotOurs, "not_ours", "from outside, but not to a pod of this node"),
        (TtlExpired, "ttl_expired", "TTL or hop limit reached zero"),
        (MtuExceeded, "mtu_exceeded", "larger than the route MTU and may not be fragmented"),
        (
            EncapsulatedSuperPacket,
            "encapsulated_super_packet",
            "a tunnelled super-packet can only go to a pod of this node",
        ),
        (PortDown, "port_down", "the port it came from or goes to is gone"),
        (NatNoFlow, "nat_no_flow", "of a connection to a port of a pod that is not there"),
        (NatNoPort, "nat_no_port", "the source ports that were tried belong to other flows"),
        (
            NatUntranslatable,
            "nat_untranslatable",
            "addresses or ports of the packet cannot be rewritten",
        ),
        (FlowQuota, "flow_quota", "the pod has its full number of flows"),
        (FlowTableFull, "flow_table_full", "the worker's table of flows is full"),
        (
            IcmpErrorUnknownFlow,
            "icmp_error_unknown_flow",
            "an ICMP error about a host port that speaks of no known flow",
        ),
        (
            FragmentWithoutFirst,
            "fragment_without_first",
            "a later fragment came without the first, which has the ports",
        ),
        (ShaperFull, "shaper_full", "by the pod's limit it would wait too long"),
        (
            ShaperNoFrames,
            "shaper_no_frames",
            "what waits by the pod's limit has its share of the frames",
        ),
        (NoFrames, "no_frames", "the worker has no free frame"),
        (CrossingFull, "crossing_full", "the ring to the destination's worker is full"),
        (TxRingFull, "tx_ring_full", "the destination takes packets more slowly than they come"),
        (TxRefused, "tx_refused", "the destination's interface refused the packet"),
        (BadDescriptor, "bad_descriptor", "a ring held a descriptor that names no frame of it"),
        (RxFillEmpty, "rx_fill_empty", "the kernel found no frame in the fill ring"),
        (RxRingFull, "rx_ring_full", "the kernel found the rx ring full"),
        (RxDropped, "rx_dropped", "the kernel found too few frames for a long packet"),
        (TxInvalid, "tx_invalid", "the kernel rejected a tx descriptor"),
    ]
};

impl DropReason {
    /// Number of reasons.
    pub const COUNT: usize = DropReason::TxInvalid as usize + 1;

    /// Stable name: the key in listings and the label in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// What happened, in a sentence.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        TABLE[self as usize].2
    }

    /// Every reason, in order.
    pub fn all() -> impl Iterator<Item = DropReason> {
        TABLE.iter().map(|row| row.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_the_order_of_the_enum_and_names_are_unique() {
        let mut names = std::collections::HashSet::new();
        for (index, (reason, name, sentence)) in TABLE.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{name} is out of order");
            assert!(names.insert(name), "{name} stands twice");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            );
            assert!(!sentence.is_empty() && !sentence.ends_with('.'));
        }
    }
}
