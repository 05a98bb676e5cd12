//! Counters of ports and workers. One thread writes each (the port's home worker), anybody reads.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::drop::DropReason;

/// A counter with a single writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker may call this: a plain load and store, no locked
    /// instruction, so two writers would lose counts.
    #[inline]
    pub fn add(&self, n: u64) {
        // Relaxed: a reader wants the value, and orders nothing by it.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Replaces the value: for counters that mirror the kernel's.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The current value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one port did in one direction.
#[derive(Debug)]
pub struct DirectionCounters {
    /// Units as the port saw them: a super-packet is one.
    pub packets: Counter,
    /// Their bytes, Ethernet header included.
    pub bytes: Counter,
    /// What they are on a wire: a super-packet counts its segments.
    pub wire_packets: Counter,
    /// Bytes on a wire, each segment with its own headers.
    pub wire_bytes: Counter,
    /// Packets not forwarded, by reason.
    pub drops: [Counter; DropReason::COUNT],
    /// Packets that would have waited so long for the limit that they were marked with CE
    /// (RFC 3168): their senders slow down.
    pub marked: Counter,
    /// Bytes on a wire that wait for the limit at present; 0 without one.
    pub queued_bytes: Counter,
    /// Bytes that may leave at once by the limit, as of the worker's newest look at it, in two's
    /// complement: less than 0 is the debt of the last packet. 0 without a limit.
    pub tokens: Counter,
}

impl Default for DirectionCounters {
    fn default() -> Self {
        DirectionCounters {
            packets: Counter::default(),
            bytes: Counter::default(),
            wire_packets: Counter::default(),
            wire_bytes: Counter::default(),
            drops: std::array::from_fn(|_| Counter::default()),
            marked: Counter::default(),
            queued_bytes: Counter::default(),
            tokens: Counter::default(),
        }
    }
}

impl DirectionCounters {
    /// Counts one dropped packet.
    #[inline]
    pub fn drop(&self, reason: DropReason) {
        self.drops[reason as usize].add(1);
    }

    /// Sum of the drops, the kernel's own included.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.iter().map(Counter::get).sum()
    }

    /// Drops by reason, only those that happened.
    pub fn drops_by_reason(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::all()
            .map(|reason| (reason, self.drops[reason as usize].get()))
            .filter(|(_, count)| *count > 0)
    }
}

/// Both directions of a port, as the pod sees them: `from_pod` is what the pod sent.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Packets the port received from the pod (or the node).
    pub from_pod: DirectionCounters,
    /// Packets for the pod (or the node).
    pub to_pod: DirectionCounters,
    /// Packets longer than the route MTU that the pod's kernel has refused as too big for a link
    /// behind it: the pod hands on what comes to it, and cannot cut a super-packet again.
    pub refused_whole: Counter,
}

/// What a worker did.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Passes of the loop, empty ones included.
    pub passes: Counter,
    /// Time in passes that moved packets, in ns.
    pub busy_ns: Counter,
    /// Time since the worker started, in ns, as of its newest housekeeping.
    pub running_ns: Counter,
    /// Packets taken from rx rings.
    pub received: Counter,
    /// Packets made here: ICMP errors, and segments beyond the first of a super-packet cut here.
    pub generated: Counter,
    /// Packets that joined one before them, and went on as a part of it.
    pub merged: Counter,
    /// Packets that are held at present: for others to join them, or until their limit allows
    /// them.
    pub held: Counter,
    /// Packets given to tx rings.
    pub sent: Counter,
    /// Packets not forwarded: each for a reason of a port, or counted in `port_down`.
    pub dropped: Counter,
    /// Those of them whose port went while they were under way: drop reason `port_down`, which no
    /// port is left to count.
    pub port_down: Counter,
    /// Packets handed to another worker, and taken from one.
    pub crossed_out: Counter,
    /// Packets taken from another worker.
    pub crossed_in: Counter,
    /// Frames that nobody holds.
    pub frames_free: Counter,
    /// Frames in fill or rx rings.
    pub frames_rx: Counter,
    /// Frames in tx or completion rings.
    pub frames_tx: Counter,
    /// Frames on the way to another worker.
    pub frames_crossing: Counter,
    /// Frames of packets that are held.
    pub frames_held: Counter,
    /// ICMP errors whose addresses, and those of the packet that they speak of, were translated.
    pub icmp_errors_translated: Counter,
    /// All frames of the worker.
    pub frames_total: Counter,
    /// Generation of the tables that the worker forwards by.
    pub generation: Counter,
}

impl WorkerCounters {
    /// The packet law: what came in or was made here is accounted for. The two sides are equal
    /// between passes (`received` and `sent` count what crossed rings; what the kernel dropped
    /// before or after is a drop reason of the port).
    #[must_use]
    pub fn packets_conserved(&self) -> bool {
        let into = self.received.get() + self.generated.get() + self.crossed_in.get();
        let out = self.sent.get() + self.dropped.get() + self.crossed_out.get();
        into == out + self.merged.get() + self.held.get()
    }

    /// The frame law: every frame is somewhere.
    #[must_use]
    pub fn frames_conserved(&self) -> bool {
        let held = self.frames_free.get()
            + self.frames_rx.get()
            + self.frames_tx.get()
            + self.frames_crossing.get()
            + self.frames_held.get();
        held == self.frames_total.get()
    }
}
