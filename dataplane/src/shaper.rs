//! Holds pods to their limits: one *line* per limited pod and direction, each with a token bucket
//! and the packets that wait for it, first come, first served. One shaper per worker, because
//! everything about a pod happens on its home worker; so a limit is exact whatever queue a packet
//! came by.
//!
//! ```text
//!  offer ──► tokens, and nobody waits? ── Go: charged, send it now
//!                │ no
//!                ▼
//!            too long a line? ── Refuse     pop_due ──► charged, send it now
//!                │ no                          ▲
//!                ▼                             │ begin_pass: lines whose time has come
//!              Wait ──► push ──► FIFO of the line, the line on the timing wheel
//! ```
//!
//! A packet leaves when its bucket holds any tokens, and may leave it in debt. So in every window
//! of time t a line sends at most rate · t + burst + one packet. Time is that of the last
//! [`Shaper::begin_pass`]: the clock is read once per pass. Bytes are those on a wire, Ethernet
//! header included and frame check sequence not, as Linux's tbf counts them (`qdisc_pkt_len`).
//!
//! No allocation but in [`Shaper::new`] and [`Shaper::open`].

mod bucket;
#[cfg(test)]
mod tests;
mod waiting;
mod wheel;

use crate::drop::DropReason;
use crate::frame::CHAIN_MAX;
use bucket::Bucket;
use waiting::{Fifo, Waiting};
use wheel::Wheel;

/// Packets that may always wait, however slow the line and scarce the memory. A queue of 25 ms at
/// 1 Mbit/s is two packets and starves TCP (0.967 Mbit/s measured); ten packets gave 1.000.
pub const ALWAYS_WAIT_MAX: u32 = 10;

/// As many more may wait that are no longer than this: TCP segments without data, questions and
/// their answers. Where streams take each place at once that becomes free, nobody else would be
/// heard: beside 15 of them at 1 Mbit/s no connection was made in 10 s.
const SHORT_BYTES: u32 = 256;

/// Frames that all of these may hold: those of ten packets of 9,000 bytes. Ten super-packets would
/// hold 180, and take 5 s at 1 Mbit/s where a new rate has found them uncut.
const ALWAYS_HOLD_MAX: u32 = 3 * ALWAYS_WAIT_MAX;
const _: () = assert!(CHAIN_MAX as u32 <= ALWAYS_HOLD_MAX, "any packet may wait in an empty line");

/// A line may hold one frame for each four that are free: what a busy line gets shrinks while
/// others need more, and there is always something left for a line that starts to wait. This is
/// the dynamic threshold of shared-memory switches (Choudhury and Hahne, "Dynamic queue length
/// thresholds for shared-memory packet switches", IEEE/ACM Transactions on Networking 6(2), 1998).
const FREE_FRAMES_PER_HELD: u32 = 4;

/// Packets that leave a line in one pass: as many as a worker takes from a port in one, so that no
/// line keeps the others waiting.
const LEAVE_MAX: u32 = 64;

/// A super-packet that takes longer than this at the line's rate is to be cut: segments that
/// others could leave between would leave at once, and the rate would hold over long times only.
///
/// Beside one stream of BBR at 100 Mbit/s round trips took 4.1 to 4.4 ms with a bound of 1 ms, and
/// 3.2 to 3.5 with 0.6 and with 0.25. The longest super-packet of 1448-byte segments takes 0.55 ms
/// at 1 Gbit/s and stays whole.
const UNCUT_NS_MAX: u64 = 600_000;

/// What one direction of a pod may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Rate in bits per second, at least 1: 0 is taken for 1.
    pub bits_per_s: u64,
    /// Bytes that may leave at once after a time of silence, at least 1: 0 is taken for 1.
    pub burst_bytes: u64,
    /// A packet that would be through later than this is refused, in nanoseconds; fewer than
    /// [`ALWAYS_WAIT_MAX`] waiting packets are never too many, unless some are super-packets, and
    /// short ones find room behind as many more.
    pub queue_ns: u64,
}

impl Limit {
    /// Bytes on a wire of the longest super-packet that is not cut before it is offered.
    #[must_use]
    pub fn uncut_bytes(&self) -> u64 {
        // Where it saturates it is 2.3 GB, which no packet has.
        self.bits_per_s.max(1).saturating_mul(UNCUT_NS_MAX) / 8_000_000_000
    }

    /// Whether a super-packet of so many bytes on a wire is to be cut before it is offered, being
    /// too long for the rate.
    #[must_use]
    pub fn cuts(&self, wire_bytes: u32) -> bool {
        u64::from(wire_bytes) > self.uncut_bytes()
    }
}

/// The limits of a pod; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of what the pod sends.
    pub from_pod: Option<Limit>,
    /// Of what is sent to the pod.
    pub to_pod: Option<Limit>,
}

/// What a packet costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes on a wire that the line is charged: the sum of all segments of a super-packet.
    pub wire_bytes: u32,
    /// Frames of the worker that the packet holds while it waits.
    pub frames: u32,
}

/// What is to become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It is charged and leaves now.
    Go,
    /// It is to wait: [`Shaper::push`] it.
    Wait {
        /// It would wait for more than half of what it may, so its sender is to slow down: set CE
        /// if its transport understands that ([`crate::ecn::mark`]).
        mark: bool,
    },
    /// It is dropped: [`DropReason::ShaperFull`] or [`DropReason::ShaperNoFrames`].
    Refuse(DropReason),
}

/// A line of a [`Shaper`], until it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineId(u32);

impl LineId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// What there is to see of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineState {
    /// Bytes that may leave at once; negative: the debt of the last packet.
    pub tokens_bytes: i64,
    /// Bytes on a wire of the packets that wait.
    pub queued_bytes: u64,
    /// Packets that wait.
    pub queued_packets: u32,
}

struct Line {
    bucket: Bucket,
    queue_ns: u64,
    fifo: Fifo,
}

impl Line {
    /// Whether one more packet may wait, however slow the line and scarce the memory.
    fn always_takes(&self, size: Size) -> bool {
        let is_short = size.wire_bytes <= SHORT_BYTES;
        let packets = if is_short { 2 * ALWAYS_WAIT_MAX } else { ALWAYS_WAIT_MAX };
        self.fifo.packets < packets && self.fifo.frames + size.frames <= ALWAYS_HOLD_MAX
    }

    /// Whether one more packet would be through later than the line's bound allows. Its own time
    /// counts, so that where long packets take all the room there is some for short ones:
    /// acknowledgements, questions and their answers.
    fn is_full(&self, size: Size) -> bool {
        let bytes = self.fifo.wire_bytes + u64::from(size.wire_bytes);
        !self.always_takes(size) && self.bucket.is_ready_later(bytes, self.queue_ns)
    }

    /// Whether one more packet would wait for more than half of what is possible.
    fn is_half_full(&self) -> bool {
        let Fifo { packets, frames, wire_bytes, .. } = self.fifo;
        (packets >= ALWAYS_WAIT_MAX / 2 || frames >= ALWAYS_HOLD_MAX / 2)
            && self.bucket.is_ready_later(wire_bytes, self.queue_ns / 2)
    }

    /// Whether one more packet would be more than the line's share of the worker's memory.
    fn holds_too_much(&self, size: Size, free_frames: u32) -> bool {
        let most = free_frames / FREE_FRAMES_PER_HELD;
        !self.always_takes(size) && self.fifo.frames + size.frames > most
    }
}

/// The lines of one worker. `T` is what waits in them: a packet, and all that its way needs to be
/// taken up again.
///
/// A line is on the wheel exactly while packets wait in it.
pub struct Shaper<T> {
    lines: Vec<Line>,
    /// Lines that are closed, to be opened again.
    closed: Vec<LineId>,
    waiting: Waiting<T>,
    wheel: Wheel,
    /// Packets that the first line that is due may still send in this pass.
    leave_left: u32,
}

impl<T> Shaper<T> {
    /// A shaper without lines, in which at most `waiting_max` packets wait: all the worker's
    /// frames, as each holds one.
    #[must_use]
    pub fn new(waiting_max: u32) -> Shaper<T> {
        Shaper {
            lines: Vec::new(),
            closed: Vec::new(),
            waiting: Waiting::new(waiting_max),
            wheel: Wheel::new(),
            leave_left: LEAVE_MAX,
        }
    }

    /// Takes the time of a pass, and gives every line its share of the pass.
    ///
    /// A clock that steps back keeps nobody waiting: every line's bucket is asked again, and goes
    /// on from the new time with the tokens it has.
    pub fn begin_pass(&mut self, now_ns: u64) {
        self.wheel.advance(now_ns);
        self.leave_left = LEAVE_MAX;
    }

    /// A new line whose bucket is full.
    #[must_use]
    pub fn open(&mut self, limit: &Limit) -> LineId {
        let bucket = Bucket::full(limit, self.wheel.now_ns());
        let line = Line { bucket, queue_ns: limit.queue_ns, fifo: Fifo::default() };
        if let Some(id) = self.closed.pop() {
            self.lines[id.index()] = line;
            return id;
        }
        self.lines.push(line);
        self.closed.reserve(self.lines.len());
        LineId(self.wheel.add_line())
    }

    /// Forgets a line. Nothing may wait in it: see [`Shaper::take_back`].
    pub fn close(&mut self, id: LineId) {
        assert!(self.lines[id.index()].fifo.packets == 0, "a line is closed when it is empty");
        self.closed.push(id);
    }

    /// Holds a line to another limit from now on. It keeps its tokens, as far as the new burst
    /// allows, and its debt. What waits may now be too much: see [`Shaper::shed`].
    pub fn change(&mut self, id: LineId, limit: &Limit) {
        let line = &mut self.lines[id.index()];
        line.bucket.refill(self.wheel.now_ns());
        line.bucket.change(limit);
        line.queue_ns = limit.queue_ns;
        if line.fifo.packets > 0 {
            self.wheel.schedule(id.0, line.bucket.ready_ns());
        }
    }

    /// What is to become of a packet of a line, while `free_frames` of the worker are free.
    #[inline]
    pub fn offer(&mut self, id: LineId, size: Size, free_frames: u32) -> Offer {
        let line = &mut self.lines[id.index()];
        line.bucket.refill(self.wheel.now_ns());
        // Whoever finds others waiting waits behind them, whatever the bucket holds.
        if line.fifo.packets == 0 && line.bucket.take(size.wire_bytes) {
            return Offer::Go;
        }
        if line.is_full(size) {
            return Offer::Refuse(DropReason::ShaperFull);
        }
        if line.holds_too_much(size, free_frames) || !self.waiting.has_room() {
            return Offer::Refuse(DropReason::ShaperNoFrames);
        }
        Offer::Wait { mark: line.is_half_full() }
    }

    /// Lets a packet wait, after [`Shaper::offer`] said so in this pass.
    pub fn push(&mut self, id: LineId, size: Size, packet: T) {
        let line = &mut self.lines[id.index()];
        self.waiting.push(&mut line.fifo, size, packet);
        if line.fifo.packets == 1 {
            self.wheel.schedule(id.0, line.bucket.ready_ns());
        }
    }

    /// The next packet that leaves in this pass, charged to its line. `None`: that is all.
    #[inline]
    pub fn pop_due(&mut self) -> Option<(LineId, T)> {
        while let Some(index) = self.wheel.first_due() {
            let id = LineId(index);
            let line = &mut self.lines[id.index()];
            line.bucket.refill(self.wheel.now_ns());
            let front = self.waiting.front(&line.fifo).expect("in a line that is due packets wait");
            if self.leave_left > 0 && line.bucket.take(front.wire_bytes) {
                self.leave_left -= 1;
                return Some((id, self.pop(id)?));
            }
            self.wheel.schedule(index, line.bucket.ready_ns());
            self.leave_left = LEAVE_MAX;
        }
        None
    }

    /// Takes the packet out that has waited longest, without charge: of a line that is to be
    /// closed. `None`: the line is empty.
    pub fn take_back(&mut self, id: LineId) -> Option<T> {
        self.pop(id)
    }

    /// Takes the packet out that has waited longest, without charge, if the last one would be
    /// refused now: after [`Shaper::change`] to a lower rate it would wait too long. To be dropped
    /// as [`DropReason::ShaperFull`]; the first, because its sender learns soonest by it. Before a
    /// last one that is short, as many as 19 others stay.
    pub fn shed(&mut self, id: LineId) -> Option<T> {
        let line = &mut self.lines[id.index()];
        line.bucket.refill(self.wheel.now_ns());
        let last = self.waiting.back(&line.fifo)?;
        let before = Line { fifo: line.fifo.less(last), ..*line };
        if before.is_full(last) { self.pop(id) } else { None }
    }

    /// When [`Shaper::begin_pass`] is to be called next, at the latest: not before a line is due.
    /// In the past if there is still something to do; `None` while nothing waits.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        self.wheel.next_ns()
    }

    /// Packets that wait, in all lines.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.waiting.len()
    }

    /// What there is to see of a line, at the time of this pass.
    #[must_use]
    pub fn state(&self, id: LineId) -> LineState {
        let Line { mut bucket, fifo, .. } = self.lines[id.index()];
        bucket.refill(self.wheel.now_ns());
        LineState {
            tokens_bytes: bucket.tokens_bytes(),
            queued_bytes: fifo.wire_bytes,
            queued_packets: fifo.packets,
        }
    }

    fn pop(&mut self, id: LineId) -> Option<T> {
        let fifo = &mut self.lines[id.index()].fifo;
        let packet = self.waiting.pop(fifo);
        if fifo.packets == 0 {
            self.wheel.cancel(id.0);
            self.leave_left = LEAVE_MAX;
        }
        packet
    }
}
