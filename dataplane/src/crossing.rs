//! Rings between workers. A packet for a pod of another worker crosses one single-producer
//! single-consumer ring; the receiver copies it into its own frames and returns the sender's, so
//! a frame never changes worker.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rtrb::{Consumer, Producer, RingBuffer};
use rustix::event::{EventfdFlags, eventfd};

use crate::frame::{CHAIN_MAX, FramePool, Packet, Piece};
use crate::offload::Offload;
use crate::port::PortId;
use crate::sync::{AtomicBool, Ordering};
use crate::xsk::area::Area;

/// Frames under way on one ring: 1024 packets, or 56 super-packets, some 0.3 ms of work.
const FRAMES_MAX: usize = 1024;

/// What the to-pod half has to see to: what comes to pods that host ports lead to, and is no reply
/// of such a pod itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Nat {
    /// Nothing.
    None,
    /// It was sent to a host port that leads to the pod.
    HostPort,
    /// It was sent to an address of the pod.
    Direct,
    /// The same, by the node's kernel, which may have translated it.
    FromNode,
}

/// What the receiver needs to know of a packet beside its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Routed {
    /// The port it leaves by.
    pub egress: PortId,
    /// What is left to do in it.
    pub offload: Offload,
    /// What is left to do with its flow.
    pub nat: Nat,
    /// What it is on a wire: packets, bytes.
    pub wire_packets: u32,
    /// As above.
    pub wire_bytes: u32,
}

impl Routed {
    /// It speaks of a packet of `len` bytes now that is to be cut no more.
    pub fn be_one_packet(&mut self, len: usize) {
        self.offload.gso_size = 0;
        (self.wire_packets, self.wire_bytes) = (1, len as u32);
    }
}

/// It is copied with every frame: a cache line holds it and a [`Piece`].
const _: () = assert!(size_of::<Crossing>() <= 40);

/// One frame under way.
#[derive(Clone, Copy, Debug)]
struct Crossing {
    piece: Piece,
    routed: Routed,
}

/// Whether a worker sleeps: the half of its [`Bell`] that needs no kernel, so that the protocol
/// can be model-checked.
///
/// All writes are swaps, so they form one chain. A ringer's swap comes after the one with which
/// the worker goes to sleep, and wakes it; or before, and the worker sees what the ringer wrote.
#[derive(Debug)]
pub struct Sleeper(AtomicBool);

impl Sleeper {
    /// A worker that is awake.
    #[must_use]
    pub fn awake() -> Sleeper {
        Sleeper(AtomicBool::new(false))
    }

    /// Whether the worker must be woken to see what was written before. True for one caller only.
    pub fn must_wake(&self) -> bool {
        // Release: pairs with the acquire of `going_to_sleep`.
        self.0.swap(false, Ordering::Release)
    }

    /// The worker is about to sleep: it must look for work once more after this.
    pub fn going_to_sleep(&self) {
        // Acquire: pairs with the release of every `must_wake` before.
        let _asleep = self.0.swap(true, Ordering::Acquire);
    }

    /// The worker has woken up.
    pub fn woken(&self) {
        // Relaxed: the chain goes on, and `going_to_sleep` acquires through it.
        let _asleep = self.0.swap(false, Ordering::Relaxed);
    }
}

/// How to wake a worker that sleeps.
#[derive(Debug)]
pub struct Bell {
    sleeper: Sleeper,
    event: OwnedFd,
}

impl Bell {
    /// A bell of a worker that is awake.
    pub fn new() -> std::io::Result<Bell> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Bell { sleeper: Sleeper::awake(), event: eventfd(0, flags)? })
    }

    /// Wakes the worker if it sleeps; what was written before is visible to it then.
    pub fn ring(&self) {
        if self.sleeper.must_wake() {
            // A full counter means that it is being woken already.
            let _woken = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// The worker is about to sleep: it must look for work once more after this.
    pub fn going_to_sleep(&self) {
        self.sleeper.going_to_sleep();
    }

    /// The worker is awake.
    pub fn awake(&self) {
        self.sleeper.woken();
        // Nothing to read means that something else woke it.
        let _emptied = rustix::io::read(&self.event, &mut [0u8; 8]);
    }

    /// What becomes readable when the bell rings.
    #[must_use]
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// The sending end.
#[derive(Debug)]
pub struct CrossingOut {
    ring: Producer<Crossing>,
    returned: Consumer<u64>,
    under_way: usize,
    bell: Arc<Bell>,
    rung: bool,
}

/// The receiving end.
#[derive(Debug)]
pub struct CrossingIn {
    ring: Consumer<Crossing>,
    returned: Producer<u64>,
    area: Arc<Area>,
}

/// A ring from the worker that owns `area` to the one that `bell` wakes.
#[must_use]
pub fn crossing(area: Arc<Area>, bell: Arc<Bell>) -> (CrossingOut, CrossingIn) {
    let (ring_in, ring_out) = RingBuffer::new(FRAMES_MAX);
    let (returned_in, returned_out) = RingBuffer::new(FRAMES_MAX);
    let out = CrossingOut { ring: ring_in, returned: returned_out, under_way: 0, bell, rung: true };
    (out, CrossingIn { ring: ring_out, returned: returned_in, area })
}

impl CrossingOut {
    /// Sends a packet; gives it back when too many frames are under way.
    pub fn send(
        &mut self,
        pool: &mut FramePool,
        packet: Packet,
        routed: Routed,
    ) -> Result<(), Packet> {
        let frames = packet.frames();
        // Counted here, not by the ring's slots: the returns must fit into their ring as well.
        if self.under_way + frames > FRAMES_MAX {
            return Err(packet);
        }
        let Ok(chunk) = self.ring.write_chunk_uninit(frames) else { return Err(packet) };
        let mut pieces = [None; CHAIN_MAX];
        let mut next = 0;
        pool.to_crossing(packet, |piece| {
            pieces[next] = Some(Crossing { piece, routed });
            next += 1;
        });
        chunk.fill_from_iter(pieces.into_iter().flatten());
        self.under_way += frames;
        self.rung = false;
        Ok(())
    }

    /// Takes back the frames that the receiver has copied.
    pub fn take_returned(&mut self, pool: &mut FramePool) {
        while let Ok(address) = self.returned.pop() {
            pool.from_crossing(address);
            self.under_way -= 1;
        }
    }

    /// Wakes the receiver if something was sent since the last call.
    pub fn ring_bell(&mut self) {
        if !self.rung {
            self.bell.ring();
            self.rung = true;
        }
    }
}

/// What the receiver found.
pub enum Received {
    /// A packet, copied into frames of the receiver.
    Packet(Packet, Routed),
    /// A packet, but no frames to copy it to.
    NoFrames(Routed),
}

impl CrossingIn {
    /// Whether nothing is waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Takes one packet.
    pub fn receive(&mut self, pool: &mut FramePool) -> Option<Received> {
        let mut pieces = [(0u64, 0u32); CHAIN_MAX];
        let mut count = 0;
        let first = self.ring.peek().ok()?.routed;
        // A sender commits whole packets, so the last piece is there.
        while let Ok(crossing) = self.ring.pop() {
            pieces[count] = (crossing.piece.address, crossing.piece.len);
            count += 1;
            if crossing.piece.last {
                break;
            }
        }
        let pieces = &pieces[..count];
        let packet =
            pool.packet_from(pieces.iter().map(|(address, len)| self.area.at(*address, *len)));
        for (address, _) in pieces {
            self.returned.push(*address).expect("the sender bounds what is under way");
        }
        Some(match packet {
            Some(packet) => Received::Packet(packet, first),
            None => Received::NoFrames(first),
        })
    }
}

#[cfg(test)]
mod tests;
