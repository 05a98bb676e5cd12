//! Workers: where their frames are and what became of their packets, with the two laws that hold
//! between passes.

use std::thread::sleep;
use std::time::Duration;

use dataplane::counters::WorkerCounters;
use serde::{Deserialize, Serialize};

use super::FlowsRow;

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerRow {
    /// Its number.
    pub id: u16,
    /// The core it is pinned to.
    pub core: usize,
    /// Share of its time spent in passes that moved packets, 0 to 1.
    pub busy_ratio: f64,
    /// Time it has spent in such passes since it began, in ns.
    pub busy_ns: u64,
    /// Ports it owns.
    pub ports: u32,
    /// Generation of the tables it forwards by.
    pub generation: u64,
    /// Whether hugepages back its memory.
    pub hugepages: bool,
    /// Where its frames are.
    pub frames: FramesRow,
    /// What became of its packets, since it started.
    pub packets: PacketsRow,
    /// What it remembers of connections with its pods' host ports.
    pub flows: FlowsRow,
}

/// Where a worker's frames are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FramesRow {
    /// Held by nobody.
    pub free: u64,
    /// In fill or rx rings.
    pub rx: u64,
    /// In tx or completion rings.
    pub tx: u64,
    /// On the way to another worker.
    pub crossing: u64,
    /// In packets that are held to be merged.
    pub held: u64,
    /// All of them.
    pub total: u64,
}

impl FramesRow {
    /// The frame law: every frame is somewhere.
    #[must_use]
    pub fn conserved(&self) -> bool {
        self.free + self.rx + self.tx + self.crossing + self.held == self.total
    }

    fn glance(counters: &WorkerCounters) -> FramesRow {
        FramesRow {
            free: counters.frames_free.get(),
            rx: counters.frames_rx.get(),
            tx: counters.frames_tx.get(),
            crossing: counters.frames_crossing.get(),
            held: counters.frames_held.get(),
            total: counters.frames_total.get(),
        }
    }

    /// Reads the frame counters of a running worker; see [`PacketsRow::read`].
    #[must_use]
    pub fn read(counters: &WorkerCounters) -> FramesRow {
        look_again(|| FramesRow::glance(counters), FramesRow::conserved)
    }
}

/// What became of a worker's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PacketsRow {
    /// Taken from rx rings.
    pub received: u64,
    /// Made here: ICMP errors, and segments beyond the first of a super-packet.
    pub generated: u64,
    /// Those that joined one before them, and went on as a part of it.
    pub merged: u64,
    /// Held at present, for others to join them.
    pub held: u64,
    /// Given to tx rings.
    pub sent: u64,
    /// Not forwarded.
    pub dropped: u64,
    /// Those of them that no port counts, because theirs went while they were under way.
    pub port_down: u64,
    /// Taken from another worker.
    pub crossed_in: u64,
    /// Handed to another worker.
    pub crossed_out: u64,
}

impl PacketsRow {
    /// The packet law: what came in or was made here is accounted for.
    #[must_use]
    pub fn conserved(&self) -> bool {
        self.received + self.generated + self.crossed_in
            == self.merged + self.held + self.sent + self.dropped + self.crossed_out
    }

    fn glance(counters: &WorkerCounters) -> PacketsRow {
        PacketsRow {
            received: counters.received.get(),
            generated: counters.generated.get(),
            merged: counters.merged.get(),
            held: counters.held.get(),
            sent: counters.sent.get(),
            dropped: counters.dropped.get(),
            port_down: counters.port_down.get(),
            crossed_in: counters.crossed_in.get(),
            crossed_out: counters.crossed_out.get(),
        }
    }

    /// Reads the packet counters of a running worker. In the middle of a pass they do not add up,
    /// so a look that breaks the law is repeated: a law that holds once holds, because a packet or
    /// frame that is really lost is missing in every later look too. Takes 2 ms at most.
    #[must_use]
    pub fn read(counters: &WorkerCounters) -> PacketsRow {
        look_again(|| PacketsRow::glance(counters), PacketsRow::conserved)
    }
}

/// Looks until a law holds, and gives up with the last look.
fn look_again<T>(glance: impl Fn() -> T, conserved: impl Fn(&T) -> bool) -> T {
    /// A full pass takes less than 100 µs; twenty looks in the middle of one are no chance.
    const LOOKS_MAX: u32 = 20;
    /// About one pass of a busy worker.
    const BETWEEN: Duration = Duration::from_micros(50);
    let mut seen = glance();
    for _ in 1..LOOKS_MAX {
        if conserved(&seen) {
            break;
        }
        sleep(BETWEEN);
        seen = glance();
    }
    seen
}
