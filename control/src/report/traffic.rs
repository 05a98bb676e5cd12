//! What went through a port, and which way.

use std::collections::BTreeMap;

use dataplane::counters::DirectionCounters;
use serde::{Deserialize, Serialize};

/// Which way packets went, as the pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
