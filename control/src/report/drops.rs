//! `viaduct drops`: why packets were not forwarded, by workers and by the XDP program that stands
//! in for one.

use std::collections::BTreeMap;

use dataplane::drop::DropReason;
use dataplane::xsk::program::FALLBACK_OUTCOMES;
use serde::{Deserialize, Serialize};

use super::{Direction, DirectionRow};

/// One cause of drops at one port, `viaduct drops`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRow {
    /// Number of the port; absent where it is not known: what the XDP program refused while no
    /// worker was there is counted for all ports together, and so is what was under way to a port
    /// that went.
    pub port: Option<u16>,
    /// `namespace/name`, or the container ID where the runtime gave no name; the node port's
    /// device for the node; empty where the port is not known.
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

/// What tells a [`DropRow`] from all others: port, direction and reason. Rows are listed in its
/// order, those of no port first.
pub type DropKey = (Option<u16>, Direction, String);

impl DropRow {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> DropKey {
        (self.port, self.direction, self.reason.clone())
    }
}

/// The drops of one port, in the order of their keys.
#[must_use]
pub fn drop_rows(
    port: u16,
    pod: &str,
    from_pod: &DirectionRow,
    to_pod: &DirectionRow,
) -> Vec<DropRow> {
    let mut rows = Vec::new();
    for (direction, counts) in [(Direction::FromPod, from_pod), (Direction::ToPod, to_pod)] {
        rows.extend(counts.drops.iter().map(|(reason, count)| DropRow {
            port: Some(port),
            pod: pod.to_owned(),
            direction,
            reason: reason.clone(),
            count: *count,
            sentence: sentence(reason).to_owned(),
        }));
    }
    rows
}

/// What workers dropped because its port had gone: no port is left to list it under. `None` when
/// that never happened.
#[must_use]
pub fn port_down_row(count: u64) -> Option<DropRow> {
    let reason = DropReason::PortDown;
    (count > 0).then(|| DropRow {
        port: None,
        pod: String::new(),
        direction: Direction::ToPod,
        reason: reason.name().to_owned(),
        count,
        sentence: reason.sentence().to_owned(),
    })
}

/// The sentence of a reason; empty for one that another release knows.
fn sentence(reason: &str) -> &'static str {
    DropReason::all().find(|known| known.name() == reason).map_or("", DropReason::sentence)
}

/// What became of the packets that no worker took: a count for each of [`FALLBACK_OUTCOMES`] of the
/// XDP program. Its map is pinned, so they outlive the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FallbackCounts(BTreeMap<String, u64>);

/// Why packets with this outcome were refused, in a sentence; `None` for those that the kernel got.
/// An outcome that only another release knows may be a refusal, and has no sentence.
fn refusal(outcome: &str) -> Option<String> {
    match FALLBACK_OUTCOMES.into_iter().find(|(name, _)| *name == outcome) {
        Some((_, why)) => why.map(|why| format!("no worker took it, and {why}")),
        None => Some(String::new()),
    }
}

impl FromIterator<(&'static str, u64)> for FallbackCounts {
    fn from_iter<I: IntoIterator<Item = (&'static str, u64)>>(counts: I) -> FallbackCounts {
        FallbackCounts(counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect())
    }
}

impl FallbackCounts {
    /// Every outcome and its packets.
    pub fn outcomes(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(outcome, count)| (outcome.as_str(), *count))
    }

    /// Packets that the kernel got.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.outcomes().filter(|(name, _)| refusal(name).is_none()).map(|(_, count)| count).sum()
    }

    /// Packets that nobody got, by outcome; only outcomes that happened.
    pub fn refused(&self) -> impl Iterator<Item = (&str, u64)> {
        self.outcomes().filter(|(name, count)| *count > 0 && refusal(name).is_some())
    }

    /// The refused ones as drops, in the order of their keys. Of a pod they are all, since only
    /// what a pod sends is checked.
    #[must_use]
    pub fn drop_rows(&self) -> Vec<DropRow> {
        self.refused()
            .map(|(outcome, count)| DropRow {
                port: None,
                pod: String::new(),
                direction: Direction::FromPod,
                // Workers have a `too_short` too, and what it counts is something else.
                reason: format!("fallback_{outcome}"),
                count,
                sentence: refusal(outcome).unwrap_or_default(),
            })
            .collect()
    }
}
