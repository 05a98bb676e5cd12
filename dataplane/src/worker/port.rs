//! A port as its worker has it: the rings, and what the worker knows of them.

use std::sync::Arc;

use super::rest::Watch;
use super::shape::Lines;
use crate::counters::PortCounters;
use crate::drop::DropReason;
use crate::frame::FrameCount;
use crate::port::{PacketIo, PortId};
use crate::shaper::Limits;
use crate::share::Share;

/// A port that the worker owns.
pub(super) struct Port<P> {
    pub id: PortId,
    pub io: P,
    pub share: Share,
    pub counters: Arc<PortCounters>,
    /// What the newest tables limit it to, and the lines that hold it to that.
    pub limits: Limits,
    pub lines: Lines,
    /// Something was queued since the last kick, or the kernel has not taken everything: the port
    /// is in the worker's `to_kick`.
    pub pending: bool,
    /// Whether its packets wake the worker.
    pub watch: Watch,
}

impl<P: PacketIo> Port<P> {
    /// Without limits until tables say otherwise.
    pub fn new(id: PortId, io: P, share: Share, counters: Arc<PortCounters>) -> Port<P> {
        let (limits, lines) = (Limits::default(), Lines::default());
        Port { id, io, share, counters, limits, lines, pending: false, watch: Watch::No }
    }

    /// Wakes the kernel for what was queued. True: it has not taken everything, and may in the next
    /// pass.
    pub fn kick(&mut self) -> bool {
        let kicked = self.io.kick();
        self.pending = kicked.pending;
        if kicked.refused > 0 {
            // Counted as sent when it was queued; the interface has refused it since.
            self.counters.to_pod.drops[DropReason::TxRefused as usize].add(kicked.refused);
        }
        kicked.pending
    }

    /// What the kernel dropped at the socket becomes reasons of the port, and frames for it.
    pub fn mirror_kernel_drops(&mut self, pool: FrameCount) {
        let drops = self.io.kernel_drops();
        self.share.adjust(&drops, pool);
        for (counters, reason, value) in [
            (&self.counters.from_pod, DropReason::RxDropped, drops.rx_dropped),
            (&self.counters.from_pod, DropReason::RxRingFull, drops.rx_ring_full),
            (&self.counters.from_pod, DropReason::RxFillEmpty, drops.rx_fill_empty),
            (&self.counters.to_pod, DropReason::TxInvalid, drops.tx_invalid),
        ] {
            counters.drops[reason as usize].set(value);
        }
    }
}
