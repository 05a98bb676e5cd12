//! How a TCP connection proceeds, as a box between its ends can tell (RFC 9293 §3.3.2, RFC 5382).
//!
//! Nothing here decides whether a packet passes: only how long its flow is remembered, and how
//! readily it is forgotten for others. So sequence numbers are followed as far as it takes to keep
//! a stranger, who does not see the packets, from making an established flow look ended or his own
//! look established; windows are left to the ends.

use super::Direction;
use super::state::{FlowState, Progress, Side};

const FIN: u8 = 1 << 0;
const SYN: u8 = 1 << 1;
const RST: u8 = 1 << 2;
const ACK: u8 = 1 << 4;

/// The shortest TCP header in bytes.
const HEADER_BYTES: usize = 20;

/// The largest window there is (RFC 7323 §2.3): a sequence number further ahead is no successor.
const WINDOW_MAX: u32 = 1 << 30;

/// How far beyond what its sender is known to have sent a RST may be: what was sent may have been
/// lost before it came here. The largest window without scaling.
const RST_SLACK: u32 = 0xffff;

/// What the state of a connection depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSegment {
    /// The flags: byte 13 of the header (RFC 9293 §3.1).
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number; without meaning unless the flag is set.
    pub acknowledgment: u32,
    /// Bytes of data; of a super-packet, all of them.
    pub payload_bytes: u32,
}

impl TcpSegment {
    /// Reads the header at the start of `l4`; header and data are `l4_bytes` long. `None` if the
    /// header is cut off.
    #[must_use]
    pub fn read(l4: &[u8], l4_bytes: usize) -> Option<TcpSegment> {
        let header = l4.first_chunk::<HEADER_BYTES>()?;
        let header_bytes = usize::from(header[12] >> 4) * 4;
        let payload_bytes = l4_bytes.checked_sub(header_bytes.max(HEADER_BYTES))?;
        Some(TcpSegment {
            flags: header[13],
            sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            acknowledgment: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
            payload_bytes: u32::try_from(payload_bytes).ok()?,
        })
    }

    /// Whether it asks for a connection: SYN alone.
    pub(super) fn asks(&self) -> bool {
        self.flags & (SYN | ACK | RST) == SYN
    }

    /// See [`super::Signal::in_the_middle`].
    pub(super) fn in_the_middle(self) -> TcpSegment {
        let is_answer = self.flags & (SYN | ACK | RST) == SYN | ACK;
        let flags = if is_answer { self.flags & !SYN } else { self.flags };
        // The SYN occupies a number.
        let sequence = self.sequence.wrapping_add(u32::from(is_answer));
        TcpSegment { flags, sequence, ..self }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The sequence number after everything that the segment occupies, SYN and FIN included
    /// (RFC 9293 §3.4).
    fn end(&self) -> u32 {
        let flags = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        self.sequence.wrapping_add(self.payload_bytes).wrapping_add(flags)
    }
}

/// See [`Progress::first`]: a SYN opens a connection, anything else but a RST or a SYN with ACK
/// may be the middle of one that was opened before we looked.
pub(super) fn first(segment: &TcpSegment) -> Option<Progress> {
    let state = match (segment.has(RST), segment.has(SYN), segment.has(ACK)) {
        (true, ..) | (_, true, true) | (_, false, false) => return None,
        (_, true, false) => FlowState::Opening,
        (_, false, true) => FlowState::PickedUp,
    };
    let mut client = Side::default();
    client.proceed(segment, None);
    Some(Progress { state, sides: [client, Side::default()] })
}

/// See [`Progress::after`].
pub(super) fn after(
    mut progress: Progress,
    direction: Direction,
    segment: &TcpSegment,
) -> Progress {
    let (own, other) = (direction as usize, 1 - direction as usize);
    if segment.has(RST) {
        if is_credible(segment, progress.sides[own], progress.sides[other]) {
            progress.state = FlowState::Reset;
        }
        return progress;
    }
    if segment.has(SYN) {
        return after_syn(progress, direction, segment);
    }
    let acknowledged = progress.sides[own].proceed(segment, progress.sides[other].next);
    progress.state = match progress.state {
        // Only who has got the answer can acknowledge its number.
        FlowState::Answered if direction == Direction::Original && acknowledged => {
            FlowState::Established
        }
        FlowState::PickedUp if direction == Direction::Reply && segment.has(ACK) => {
            FlowState::Established
        }
        state => state,
    };
    let [client, server] = progress.sides;
    if progress.state == FlowState::Established && (client.fin || server.fin) {
        progress.state = FlowState::Closing;
    }
    let both_acknowledge = acknowledges(&progress, 0) && acknowledges(&progress, 1);
    if progress.state == FlowState::Closing && client.fin && server.fin && both_acknowledge {
        progress.state = FlowState::TimeWait;
    }
    progress
}

fn after_syn(mut progress: Progress, direction: Direction, segment: &TcpSegment) -> Progress {
    let (own, other) = (direction as usize, 1 - direction as usize);
    match (progress.state, direction) {
        // The client asks again, perhaps with another number; or it opens a new connection on the
        // ports of one that has ended (RFC 9293 §3.6.1).
        (
            FlowState::Opening
            | FlowState::PickedUp
            | FlowState::Closing
            | FlowState::TimeWait
            | FlowState::Reset,
            Direction::Original,
        ) if !segment.has(ACK) => first(segment).unwrap_or(progress),
        // An answer names what it answers. The bare SYN of a simultaneous open does not, but the
        // ACK after it must (RFC 9293 §3.5).
        (FlowState::Opening, Direction::Reply) => {
            let asked = progress.sides[other].next;
            let answers = asked.is_some_and(|next| is_just_before(segment.acknowledgment, next));
            if !segment.has(ACK) || answers {
                progress.sides[own].proceed(segment, asked);
                // So that to acknowledge this SYN is progress.
                progress.sides[other].acked = Some(segment.sequence);
                progress.state = FlowState::Answered;
            }
            progress
        }
        // The second half of a simultaneous open.
        (FlowState::Answered, Direction::Original) if segment.has(ACK) => {
            if progress.sides[own].proceed(segment, progress.sides[other].next) {
                progress.state = FlowState::Established;
            }
            progress
        }
        // A repeated answer, or a SYN that an established end answers by a challenge (RFC 5961 §4).
        _ => progress,
    }
}

/// Whether side `own` has acknowledged all that the other has sent.
fn acknowledges(progress: &Progress, own: usize) -> bool {
    match (progress.sides[own].acked, progress.sides[1 - own].next) {
        (Some(acked), Some(next)) => acked == next,
        _ => false,
    }
}

/// Whether a RST comes from the connection: its number is one that the receiver expects, or, while
/// the receiver has acknowledged nothing, it acknowledges the receiver's SYN (RFC 9293 §3.5.3).
fn is_credible(segment: &TcpSegment, own: Side, other: Side) -> bool {
    match (other.acked, other.next) {
        (Some(acked), _) => {
            let sent = own.next.unwrap_or(acked).wrapping_sub(acked);
            let sent = if sent <= WINDOW_MAX { sent } else { 0 };
            segment.sequence.wrapping_sub(acked) <= sent.saturating_add(RST_SLACK)
        }
        (None, Some(next)) if segment.has(ACK) => is_just_before(segment.acknowledgment, next),
        // The client takes back its SYN.
        (None, None) => own.next.is_none_or(|next| segment.sequence == next),
        (None, Some(_)) => false,
    }
}

/// Whether `number` is `next` or lies before it by at most one unscaled window: data in a SYN need
/// not be acknowledged at once (RFC 7413 §3).
fn is_just_before(number: u32, next: u32) -> bool {
    next.wrapping_sub(number) <= RST_SLACK
}

impl Side {
    /// Takes a segment of this side into account; the other side has sent up to `other_next`.
    /// Returns whether it acknowledges something that was not acknowledged before.
    fn proceed(&mut self, segment: &TcpSegment, other_next: Option<u32>) -> bool {
        let end = segment.end();
        if end.wrapping_sub(self.next.unwrap_or(end)) <= WINDOW_MAX {
            self.next = Some(end);
            self.fin |= segment.has(FIN);
        }
        let number = segment.acknowledgment;
        let ahead = number.wrapping_sub(self.acked.unwrap_or(number));
        let was_sent = other_next.is_none_or(|next| next.wrapping_sub(number) <= WINDOW_MAX);
        let is_news = segment.has(ACK) && ahead <= WINDOW_MAX && was_sent;
        if is_news {
            self.acked = Some(number);
        }
        is_news && ahead > 0
    }
}

#[cfg(test)]
mod tests;
