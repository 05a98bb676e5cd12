//! How an SCTP association proceeds, as a box between its ends can tell (RFC 9260 §4, §8.4, §8.5).
//! The verification tag does what sequence numbers do for TCP: a stranger does not know it.

use super::Direction;
use super::state::{FlowState, Progress, Side};

/// Bytes of the common header (RFC 9260 §3.1) and of a chunk's own (§3.2).
const COMMON_BYTES: usize = 12;
const CHUNK_HEADER_BYTES: usize = 4;

/// Chunk types (RFC 9260 §3.2).
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// The T bit of ABORT and SHUTDOWN COMPLETE: the sender has no association, and reflects the tag
/// that it was sent (RFC 9260 §3.3.7, §8.5.1).
const REFLECTED: u8 = 1 << 0;

/// What the state of an association depends on. A packet that changes it begins with the chunk
/// that does (RFC 9260 §6.10: INIT, INIT ACK and SHUTDOWN COMPLETE stand alone, §5.1: COOKIE ECHO
/// and COOKIE ACK come first).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SctpChunk {
    /// Verification tag of the packet.
    pub tag: u32,
    /// Type of its first chunk.
    pub kind: u8,
    /// Flags of its first chunk.
    pub flags: u8,
    /// Of INIT and INIT ACK: the tag that packets to its sender shall have.
    pub initiate_tag: Option<u32>,
}

impl SctpChunk {
    /// Reads the packet that begins with `l4`. `None` if it ends before its first chunk does.
    #[must_use]
    pub fn read(l4: &[u8]) -> Option<SctpChunk> {
        let common = l4.first_chunk::<COMMON_BYTES>()?;
        let chunk = l4.get(COMMON_BYTES..)?;
        let &[kind, flags, ..] = chunk.first_chunk::<CHUNK_HEADER_BYTES>()?;
        let initiate_tag = match kind {
            INIT | INIT_ACK => {
                let tag = chunk.get(CHUNK_HEADER_BYTES..)?.first_chunk()?;
                Some(u32::from_be_bytes(*tag))
            }
            _ => None,
        };
        let tag = u32::from_be_bytes([common[4], common[5], common[6], common[7]]);
        Some(SctpChunk { tag, kind, flags, initiate_tag })
    }

    /// Whether it asks for an association.
    pub(super) fn asks(&self) -> bool {
        self.kind == INIT
    }

    /// See [`super::Signal::in_the_middle`].
    pub(super) fn in_the_middle(self) -> SctpChunk {
        let is_answer = matches!(self.kind, INIT_ACK | COOKIE_ACK);
        SctpChunk { kind: if is_answer { DATA } else { self.kind }, ..self }
    }
}

/// See [`Progress::first`]: INIT opens an association, and what neither ends nor answers one may be
/// the middle of one that was opened before we looked.
pub(super) fn first(chunk: &SctpChunk) -> Option<Progress> {
    let side = |next| Side { next, ..Side::default() };
    match chunk.kind {
        INIT => Some(Progress {
            state: FlowState::Opening,
            sides: [Side::default(), side(chunk.initiate_tag)],
        }),
        INIT_ACK | COOKIE_ACK | ABORT | SHUTDOWN_ACK | SHUTDOWN_COMPLETE => None,
        _ => Some(Progress {
            state: FlowState::PickedUp,
            sides: [side(Some(chunk.tag)), Side::default()],
        }),
    }
}

/// See [`Progress::after`].
pub(super) fn after(mut progress: Progress, direction: Direction, chunk: &SctpChunk) -> Progress {
    let (own, other) = (direction as usize, 1 - direction as usize);
    if chunk.kind == INIT && direction == Direction::Original {
        return match progress.state {
            // Asked again, or anew; an established association goes on until its end restarts it.
            FlowState::Established | FlowState::Answered => progress,
            _ => first(chunk).unwrap_or(progress),
        };
    }
    let reflected = chunk.flags & REFLECTED != 0 && matches!(chunk.kind, ABORT | SHUTDOWN_COMPLETE);
    let expected = progress.sides[if reflected { other } else { own }].next;
    if expected.is_some_and(|tag| tag != chunk.tag) {
        return progress;
    }
    progress.state = match (progress.state, chunk.kind, direction) {
        // Nobody has shown this tag yet, so it does not tell a stranger from an end.
        (state, ABORT | SHUTDOWN | SHUTDOWN_ACK | SHUTDOWN_COMPLETE, _) if expected.is_none() => {
            state
        }
        (_, ABORT, _) => FlowState::Reset,
        (FlowState::Opening, INIT_ACK, Direction::Reply) => {
            progress.sides[other].next = chunk.initiate_tag;
            FlowState::Answered
        }
        // The cookie has come back to who made it (RFC 9260 §5.1): the client is where it says.
        (FlowState::Answered, COOKIE_ACK, Direction::Reply) => FlowState::Established,
        (FlowState::Established, SHUTDOWN | SHUTDOWN_ACK, _) => FlowState::Closing,
        (FlowState::Established | FlowState::Closing, SHUTDOWN_COMPLETE, _) => FlowState::TimeWait,
        (FlowState::PickedUp, _, Direction::Reply) => {
            progress.sides[own].next = Some(chunk.tag);
            FlowState::Established
        }
        (state, ..) => state,
    };
    progress
}

#[cfg(test)]
mod tests;
