//! `viaduct limits`: what was asked for of a pod's bandwidth, what is applied, and what came of it.

use cni_bridge::protocol::{Attachment, RateRequest};
use dataplane::counters::DirectionCounters;
use dataplane::drop::DropReason;
use dataplane::shaper::Limit;
use serde::{Deserialize, Serialize};

use crate::state::PodRecord;

/// The direction of a limit, in the words of those who ask for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitDirection {
    /// What comes to the pod.
    #[default]
    Ingress,
    /// What the pod sends.
    Egress,
}

impl LimitDirection {
    /// The word that stands in JSON and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            LimitDirection::Ingress => "ingress",
            LimitDirection::Egress => "egress",
        }
    }
}

/// What tells a [`LimitRow`] from all others. Rows are listed in its order.
pub type LimitKey = (Attachment, LimitDirection);

/// One limit of one pod, `viaduct limits`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitRow {
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
    /// Which way.
    pub direction: LimitDirection,
    /// Rate asked for, in bits per second.
    pub requested_bps: u64,
    /// Burst asked for, in bits.
    pub requested_burst_bits: u64,
    /// Rate that the pod's worker holds it to, in bits per second.
    pub applied_bps: u64,
    /// Burst that it is held to, in bytes.
    pub applied_burst_bytes: u64,
    /// Bytes that may pass at once now; negative: the debt of the last packet.
    pub tokens_bytes: i64,
    /// Bytes that wait now.
    pub queued_bytes: u64,
    /// Packets dropped because they would have waited too long, or held too much memory.
    pub dropped: u64,
    /// Packets marked, so that their senders slow down (ECN, RFC 3168).
    pub marked: u64,
}

impl LimitRow {
    /// The row of a pod's limit. Without a worker there are no counters.
    #[must_use]
    pub fn new(
        pod: &PodRecord,
        direction: LimitDirection,
        requested: RateRequest,
        applied: Limit,
        counters: Option<&DirectionCounters>,
    ) -> LimitRow {
        let Attachment { network, container_id, ifname } = pod.attachment.clone();
        let row = LimitRow {
            network,
            container_id,
            ifname,
            namespace: pod.pod_namespace.clone(),
            name: pod.pod_name.clone(),
            direction,
            requested_bps: requested.rate_bps,
            requested_burst_bits: requested.burst_bits,
            applied_bps: applied.bits_per_s,
            applied_burst_bytes: applied.burst_bytes,
            ..LimitRow::default()
        };
        let Some(counters) = counters else { return row };
        let dropped = [DropReason::ShaperFull, DropReason::ShaperNoFrames];
        LimitRow {
            tokens_bytes: counters.tokens.get().cast_signed(),
            queued_bytes: counters.queued_bytes.get(),
            dropped: dropped.iter().map(|reason| counters.drops[*reason as usize].get()).sum(),
            marked: counters.marked.get(),
            ..row
        }
    }
}
