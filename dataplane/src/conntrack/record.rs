//! The fixed layout in which flows lie in memory: words of a file mapping, so that the next
//! process finds them after a crash, and control can list them while their worker works on.
//!
//! ```text
//! header   word 0    "VIADUCTF"
//!               1    VERSION << 32 | words of a record
//!               2    flows that there is room for
//!               3-4  the boot in which it was written
//!               5-15 0
//! flow     word 0    state | transport << 8 | flags << 16 | owner << 32 | epoch << 48; 0 when free
//!               1    second it was last seen in | generation of the owner << 32
//!               2    ports: client, asked, serving, source << 48
//!               3    client's side: next | acked << 32
//!               4    server's side: the same
//!               5-6  client's address
//!               7-8  asked address
//!               9-10 serving address
//!               11   0
//! ```
//!
//! The *client* has sent the first packet, to the *asked* address; the *serving* one got it. Its
//! source was then the client's address, or the asked one (`SOURCE_IS_ASKED`), with the *source*
//! port.
//!
//! Only the owning worker writes. Word 0 is written last and cleared first, so a flow that a crash
//! left half written is free. All other words mean something on their own, in any combination.

mod left;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::key::{address_of_words, address_words};
use super::state::{FlowState, Progress, Side};
use super::{Direction, Endpoint, FlowKey, Replies, Transport};
use crate::port::PortId;
use crate::xsk::words::Words;

const MAGIC: u64 = u64::from_be_bytes(*b"VIADUCTF");
/// Of the layout above. Every change of it is another number.
const VERSION: u64 = 1;

const HEADER_WORDS: usize = 16;
const RECORD_WORDS: usize = 12;

/// The translated source is the asked address, not the client's.
const SOURCE_IS_ASKED: u64 = 1 << 0;
/// Replies leave by the node port.
const BY_NODE: u64 = 1 << 1;
/// What is known of the client's side; the server's three bits follow.
const NEXT_KNOWN: u64 = 1 << 2;
const ACKED_KNOWN: u64 = 1 << 3;
const FIN_SENT: u64 = 1 << 4;
const SIDE_BITS: u32 = 3;

const STATE_SHIFT: u32 = 0;
const TRANSPORT_SHIFT: u32 = 8;
const FLAGS_SHIFT: u32 = 16;
const OWNER_SHIFT: u32 = 32;
const EPOCH_SHIFT: u32 = 48;

/// A flow as it is listed, and kept over a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The pod's port.
    pub owner: PortId,
    /// Generation of the pod, by its lower 32 bits.
    pub generation: u32,
    /// The first packet as it arrived.
    pub original: FlowKey,
    /// The first packet as the pod got it.
    pub translated: FlowKey,
    /// Which way the pod's packets leave.
    pub replies: Replies,
    /// Where it is in its life.
    pub state: FlowState,
    /// The second of the monotonic clock in which its last packet passed.
    pub seen_s: u32,
    pub(super) sides: [Side; 2],
}

impl Flow {
    /// Whether a table may have made it: what lies in a file of another process need not be so.
    pub(super) fn is_sound(&self) -> bool {
        // Its packets and their answers would be found by one key.
        let is_ambiguous = self.original == self.translated.inverse();
        self.state.is_of(self.original.transport) && !is_ambiguous
    }
}

/// Why flows that an earlier process has written cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// It is no file of flows, or its end is missing.
    #[error("the file of flows is damaged; it is discarded, and a new one is made")]
    Damaged,
    /// Another release wrote it.
    #[error("the file of flows has layout {found} and not {VERSION}; it is discarded")]
    Version {
        /// Its version.
        found: u64,
    },
    /// It was written before the machine started.
    #[error("the file of flows is of another boot; it is discarded")]
    OtherBoot,
    /// Reading failed, or there is no memory for what it holds.
    #[error("the file of flows cannot be read ({kind}); it is discarded")]
    Unreadable {
        /// What the kernel said.
        kind: io::ErrorKind,
    },
}

/// The flows of one worker in memory.
#[derive(Clone, Debug)]
pub struct Records {
    words: Arc<Words>,
    flows: u32,
}

impl Records {
    /// Words that `flows` flows take.
    #[must_use]
    pub fn words(flows: u32) -> usize {
        HEADER_WORDS + flows as usize * RECORD_WORDS
    }

    /// Makes an empty table of memory that is all zero. `boot` identifies this boot of the kernel.
    ///
    /// # Panics
    /// The memory does not hold a flow, or is not empty.
    #[must_use]
    pub fn format(words: Arc<Words>, boot: [u64; 2]) -> Records {
        let room = words.len().saturating_sub(HEADER_WORDS) / RECORD_WORDS;
        assert!(room > 0, "memory for flows holds one at least");
        assert!(words[0].load(Ordering::Relaxed) == 0, "memory for flows is new");
        let flows = room.min(super::index::FLOWS_MAX as usize) as u32;
        for (word, value) in words[1..].iter().zip(header(flows, boot)) {
            word.store(value, Ordering::Relaxed);
        }
        // Release: a process that finds the mark finds the rest of the header.
        words[0].store(MAGIC, Ordering::Release);
        Records { words, flows }
    }

    /// The flows that an earlier process of this boot has left.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn open(words: Arc<Words>, boot: [u64; 2]) -> Result<Records, LayoutError> {
        let header: Vec<u64> =
            words.iter().take(HEADER_WORDS).map(|word| word.load(Ordering::Acquire)).collect();
        let flows = left::check(&header, boot)?;
        if words.len() < Records::words(flows) {
            return Err(LayoutError::Damaged);
        }
        Ok(Records { words, flows })
    }

    /// The memory, to be opened by another reader.
    #[must_use]
    pub fn memory(&self) -> Arc<Words> {
        self.words.clone()
    }

    /// How many flows there is room for.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.flows
    }

    /// All flows that are whole. While their worker lives it is a list of what there was meanwhile,
    /// in which a flow may be mixed with its successor; what is left by a dead one is exact.
    pub fn iter(&self) -> impl Iterator<Item = Flow> + '_ {
        self.places(0).filter_map(|(_, flow)| flow)
    }

    /// The places of flows from this one on, each with the flow that is there: for a list that is
    /// made bit by bit. As for [`Records::iter`], which passes over the free ones.
    pub fn places(&self, from: u32) -> impl Iterator<Item = (u32, Option<Flow>)> + '_ {
        (from..self.flows).map(|place| (place, self.flow(place)))
    }

    /// A flow with all that is known of it; `None` if it is free, or no flow of ours.
    pub(super) fn flow(&self, flow: u32) -> Option<Flow> {
        let words = self.record(flow);
        let before = words[0].load(Ordering::Acquire);
        let state = FlowState::from_number((before >> STATE_SHIFT) as u8)?;
        let transport = Transport::from_number((before >> TRANSPORT_SHIFT) as u8)?;
        let flags = flags(before);
        let read = |at: usize| words[at].load(Ordering::Relaxed);
        let (seen, ports) = (read(1), read(2));
        let end = |high: usize, shift: u32| Endpoint {
            address: address_of_words([read(high), read(high + 1)]),
            port: (ports >> shift) as u16,
        };
        let (client, asked, serving) = (end(5, 0), end(7, 16), end(9, 32));
        let is_v4 = client.address.is_ipv4();
        if [asked, serving].iter().any(|end| end.address.is_ipv4() != is_v4) {
            return None;
        }
        let source = if flags & SOURCE_IS_ASKED != 0 { asked.address } else { client.address };
        let source = Endpoint { address: source, port: (ports >> 48) as u16 };
        let flow = Flow {
            owner: PortId((before >> OWNER_SHIFT) as u16),
            generation: (seen >> 32) as u32,
            original: FlowKey { transport, src: client, dst: asked },
            translated: FlowKey { transport, src: source, dst: serving },
            replies: if flags & BY_NODE != 0 { Replies::ByNode } else { Replies::ByRoute },
            state,
            seen_s: seen as u32,
            sides: [side(flags, read(3)), side(flags >> SIDE_BITS, read(4))],
        };
        // Acquire: what was read above is not read after this; see `write`.
        fence(Ordering::Acquire);
        (words[0].load(Ordering::Relaxed) == before).then_some(flow)
    }

    /// Writes a flow over a free one, in this epoch of its owner.
    pub(super) fn write(&self, at: u32, flow: &Flow, epoch: u16) {
        let words = self.record(at);
        let write = |at: usize, word: u64| words[at].store(word, Ordering::Relaxed);
        // Release: what follows is written after `clear` has made the record free, for a reader at
        // work and for one after a crash.
        fence(Ordering::Release);
        let (original, translated) = (flow.original, flow.translated);
        let ports = [original.src, original.dst, translated.dst, translated.src];
        let ports = ports.iter().rev().fold(0, |word, end| word << 16 | u64::from(end.port));
        write(1, u64::from(flow.generation) << 32 | u64::from(flow.seen_s));
        write(2, ports);
        write(3, side_word(&flow.sides[0]));
        write(4, side_word(&flow.sides[1]));
        let ends = [original.src, original.dst, translated.dst];
        let addresses = ends.into_iter().flat_map(|end| address_words(end.address));
        (5..).zip(addresses).for_each(|(at, word)| write(at, word));
        write(11, 0);
        let mut flags = side_flags(&flow.sides);
        if translated.src.address != original.src.address {
            flags |= SOURCE_IS_ASKED;
        }
        if flow.replies == Replies::ByNode {
            flags |= BY_NODE;
        }
        let head = (flow.state as u64) << STATE_SHIFT
            | (original.transport as u64) << TRANSPORT_SHIFT
            | flags << FLAGS_SHIFT
            | u64::from(flow.owner.0) << OWNER_SHIFT
            | u64::from(epoch) << EPOCH_SHIFT;
        // Release: who sees the flow, in this process or the next, sees all of it.
        words[0].store(head, Ordering::Release);
    }

    /// Makes a flow free.
    pub(super) fn clear(&self, flow: u32) {
        // Relaxed: `write` orders it before what comes to lie here next.
        self.record(flow)[0].store(0, Ordering::Relaxed);
    }

    /// Whether packets with `key` are those of `flow` in this direction.
    #[inline]
    pub(super) fn is(&self, flow: u32, direction: Direction, key: &FlowKey) -> bool {
        let words = self.record(flow);
        let read = |at: usize| words[at].load(Ordering::Relaxed);
        let (head, ports) = (read(0), read(2));
        // Source and destination, as places of their port and address.
        let source = if flags(head) & SOURCE_IS_ASKED != 0 { 7 } else { 5 };
        let [(src_port, src), (dst_port, dst)] = match direction {
            Direction::Original => [(0, 5), (16, 7)],
            Direction::Reply => [(32, 9), (48, source)],
        };
        let same = |end: &Endpoint, shift: u32, at: usize| {
            let address = address_words(end.address);
            (ports >> shift) as u16 == end.port && address == [read(at), read(at + 1)]
        };
        (head >> TRANSPORT_SHIFT) as u8 == key.transport as u8
            && same(&key.src, src_port, src)
            && same(&key.dst, dst_port, dst)
    }

    /// What decides whether the flow still lives.
    #[inline]
    pub(super) fn life(&self, flow: u32) -> Life {
        let words = self.record(flow);
        let (head, seen) = (words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed));
        Life {
            owner: PortId((head >> OWNER_SHIFT) as u16),
            epoch: (head >> EPOCH_SHIFT) as u16,
            generation: (seen >> 32) as u32,
            state: FlowState::from_number(head as u8).expect("a flow in a queue has a state"),
            seen_s: seen as u32,
        }
    }

    /// State and sides.
    #[inline]
    pub(super) fn progress(&self, flow: u32, state: FlowState) -> Progress {
        let words = self.record(flow);
        let read = |at: usize| words[at].load(Ordering::Relaxed);
        let flags = flags(read(0));
        Progress { state, sides: [side(flags, read(3)), side(flags >> SIDE_BITS, read(4))] }
    }

    /// Writes what has changed of state and sides.
    pub(super) fn set_progress(&self, flow: u32, progress: &Progress) {
        let words = self.record(flow);
        let kept = SOURCE_IS_ASKED | BY_NODE;
        let head = words[0].load(Ordering::Relaxed);
        let mask = 0xff << STATE_SHIFT | !kept << FLAGS_SHIFT & 0xffff << FLAGS_SHIFT;
        let flags = side_flags(&progress.sides);
        let new = head & !mask | (progress.state as u64) << STATE_SHIFT | flags << FLAGS_SHIFT;
        words[3].store(side_word(&progress.sides[0]), Ordering::Relaxed);
        words[4].store(side_word(&progress.sides[1]), Ordering::Relaxed);
        words[0].store(new, Ordering::Relaxed);
    }

    /// Writes when the flow was last seen.
    #[inline]
    pub(super) fn set_seen(&self, flow: u32, life: &Life, seen_s: u32) {
        let word = u64::from(life.generation) << 32 | u64::from(seen_s);
        self.record(flow)[1].store(word, Ordering::Relaxed);
    }

    #[inline]
    fn record(&self, flow: u32) -> &[AtomicU64; RECORD_WORDS] {
        let records = self.words[HEADER_WORDS..].as_chunks().0;
        &records[flow as usize]
    }
}

/// What decides whether a flow still lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) owner: PortId,
    pub(super) epoch: u16,
    pub(super) generation: u32,
    pub(super) state: FlowState,
    pub(super) seen_s: u32,
}

/// Words 1 to 4 of the header.
fn header(flows: u32, [boot0, boot1]: [u64; 2]) -> [u64; 4] {
    [VERSION << 32 | RECORD_WORDS as u64, u64::from(flows), boot0, boot1]
}

fn flags(head: u64) -> u64 {
    head >> FLAGS_SHIFT & 0xffff
}

fn side(flags: u64, word: u64) -> Side {
    Side {
        next: (flags & NEXT_KNOWN != 0).then_some(word as u32),
        acked: (flags & ACKED_KNOWN != 0).then_some((word >> 32) as u32),
        fin: flags & FIN_SENT != 0,
    }
}

fn side_word(side: &Side) -> u64 {
    u64::from(side.acked.unwrap_or(0)) << 32 | u64::from(side.next.unwrap_or(0))
}

fn side_flags([client, server]: &[Side; 2]) -> u64 {
    let of = |side: &Side| {
        let bits = [
            (side.next.is_some(), NEXT_KNOWN),
            (side.acked.is_some(), ACKED_KNOWN),
            (side.fin, FIN_SENT),
        ];
        bits.iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, bit)| flags | bit)
    };
    of(client) | (of(server) << SIDE_BITS)
}

#[cfg(test)]
mod tests;
