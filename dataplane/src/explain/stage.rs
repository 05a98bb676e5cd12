//! The stages of the packet path, as people hear of them.

use crate::drop::DropReason;

/// A stage that may refuse a packet. In the order in which they are told of; the path itself is
/// [`crate::worker`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Whether the packet is one at all.
    Parse,
    /// Whether it may come from where it comes.
    Source,
    /// Which flow it belongs to.
    Flow,
    /// What a host port makes of its addresses and ports.
    HostPort,
    /// Where it goes.
    Route,
    /// Whether it may go one hop further.
    HopLimit,
    /// Whether the way takes it.
    Size,
    /// What limits it pays, and whether it may wait for them.
    Limit,
    /// Whether its receiver takes it.
    Deliver,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Stage; 9] = [
        Stage::Parse,
        Stage::Source,
        Stage::Flow,
        Stage::HostPort,
        Stage::Route,
        Stage::HopLimit,
        Stage::Size,
        Stage::Limit,
        Stage::Deliver,
    ];

    /// Stable name: the value of `stage` in `viaduct explain`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::Parse => "parse",
            Stage::Source => "source",
            Stage::Flow => "flow",
            Stage::HostPort => "host_port",
            Stage::Route => "route",
            Stage::HopLimit => "hop_limit",
            Stage::Size => "size",
            Stage::Limit => "limit",
            Stage::Deliver => "deliver",
        }
    }

    /// The stage that raises a reason.
    #[must_use]
    pub fn of(reason: DropReason) -> Stage {
        use DropReason::*;
        match reason {
            TooShort | UnknownEtherType | Ipv4BadVersion | Ipv4BadHeaderLength | Ipv4BadLength
            | Ipv4BadChecksum | Ipv4SourceRoute | Ipv4BadOptions | Ipv6BadVersion
            | Ipv6BadLength | Ipv6TooManyHeaders | Ipv6BadExtension | Ipv6RoutingType0
            | L4TooShort | UdpBadLength | FragmentTooSmall | BadMarker | ArpMalformed
            | ArpNotForGateway | NdMalformed | NdNotForGateway | NdForbidden => Stage::Parse,
            OtherHost | LinkMulticast | SpoofedMac | SpoofedIpv4 | SpoofedIpv6 | SpoofedPod
            | SpoofedArp | SpoofedNd | MartianSource => Stage::Source,
            NatNoFlow | NatNoPort | FlowQuota | FlowTableFull | IcmpErrorUnknownFlow
            | FragmentWithoutFirst => Stage::Flow,
            NatUntranslatable => Stage::HostPort,
            MartianDestination | Multicast | LinkLocal | IcmpRedirect | NoPod | NotOurs
            | PortDown => Stage::Route,
            TtlExpired => Stage::HopLimit,
            MtuExceeded | EncapsulatedSuperPacket | TinySegments => Stage::Size,
            ShaperFull | ShaperNoFrames => Stage::Limit,
            NoFrames | CrossingFull | TxRingFull | TxRefused | BadDescriptor | RxFillEmpty
            | RxRingFull | RxDropped | TxInvalid => Stage::Deliver,
        }
    }
}
