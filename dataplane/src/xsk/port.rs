//! A port over AF_XDP: `PacketIo` on the four rings of one socket.

use std::os::fd::{AsFd, BorrowedFd};

use libc::{XDP_PKT_CONTD, XDP_TX_METADATA, xdp_desc};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, sockopt};

use super::socket::{RingSizes, Sends, Socket, TX_METADATA_BYTES};
use crate::frame::{FRAME_BYTES, FramePool, HEADROOM, Packet};
use crate::port::{KernelDrops, Kicked, PacketIo, Partial};
use crate::share::Share;

/// `XDP_TXMD_FLAGS_CHECKSUM` (Documentation/networking/xsk-tx-metadata.rst).
const TXMD_CHECKSUM: u64 = 1 << 1;

/// Wake-ups tried in one kick: each sends a ring full, or stops at one refused packet.
const KICKS_MAX: u32 = 64;

/// The same in zero-copy mode, where a wake-up starts the driver and does not wait for it.
const ZERO_COPY_KICKS: u32 = 1;

/// Rings of a pod's port. The tx ring holds 56 super-packets of 18 frames.
pub const POD_RINGS: RingSizes = RingSizes { fill: 512, completion: 1024, rx: 512, tx: 1024 };

/// Frames a pod's port may hold to receive into: 7 super-packets, and 28 if it needs them.
pub const POD_SHARE: Share = Share::between(128, POD_RINGS.fill);

/// Rings of the node port: it carries the node's own traffic, and all of the pods' to the outside.
pub const NODE_RINGS: RingSizes = RingSizes { fill: 2048, completion: 2048, rx: 2048, tx: 2048 };

/// Frames the node port may hold to receive into.
pub const NODE_SHARE: Share = Share::between(512, NODE_RINGS.fill);

/// Rings of each queue of an uplink: what two or three NIC rings hold, so that a worker which is
/// scheduled away for a while loses nothing.
pub const UPLINK_RINGS: RingSizes = RingSizes { fill: 2048, completion: 2048, rx: 2048, tx: 2048 };

/// Frames a queue of an uplink may hold to receive into. Many from the start: a wire does not wait,
/// and in zero-copy mode the NIC takes those that its own ring holds as well.
pub const UPLINK_SHARE: Share = Share::between(1024, UPLINK_RINGS.fill);

/// A bound socket as a port.
#[derive(Debug)]
pub struct XskPort {
    socket: Socket,
    slot: u16,
    fill_max: u32,
    /// The share that the fill ring was last filled to, if nothing was received since; else 0.
    filled: u32,
    /// Frames between [`PacketIo::transmit`] and [`PacketIo::reclaim`].
    unsent: u32,
    /// A packet whose last descriptor has not arrived, though rings deliver whole packets.
    partial: Option<Packet>,
    /// The rest of the present packet is thrown away: one of its descriptors was bad.
    skipping: bool,
    uncommitted: bool,
    /// Frames were added to the fill ring since the driver was last woken to take them.
    refilled: bool,
    /// The interface was down when the kernel was last woken, and the tx ring still holds what it
    /// could not send. Nothing is added to that meanwhile: it would be old when it leaves.
    down: bool,
    /// Packets lost since the last kick: the interface refused them, or could not have sent them.
    refused: u64,
}

impl XskPort {
    /// A port in `slot` on a socket with rings of `sizes`.
    #[must_use]
    pub fn new(socket: Socket, slot: u16, sizes: RingSizes) -> XskPort {
        XskPort {
            socket,
            slot,
            fill_max: sizes.fill,
            filled: 0,
            unsent: 0,
            partial: None,
            skipping: false,
            uncommitted: false,
            // By whoever made the socket.
            refilled: true,
            down: false,
            refused: 0,
        }
    }

    /// The socket, for the socket map and for sharing its memory.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd.as_fd()
    }

    /// Whether the NIC reads and writes the worker's frames.
    pub(super) fn is_zero_copy(&self) -> bool {
        self.socket.sends.zero_copy
    }

    /// Interface and queue.
    pub(super) fn place(&self) -> (u32, u32) {
        self.socket.place
    }

    /// Adds a piece to the packet that is arriving. `None`, and all of it freed, when the piece is
    /// bad, an earlier one was, or there are more than the kernel would send on.
    fn join(&mut self, pool: &mut FramePool, piece: Option<Packet>) -> Option<Packet> {
        let (chain, piece) = match (self.partial.take(), piece) {
            (None, Some(piece)) if !self.skipping => return Some(piece),
            (Some(mut chain), Some(piece)) => match pool.append(&mut chain, piece) {
                Ok(()) => return Some(chain),
                Err(piece) => (Some(chain), Some(piece)),
            },
            rest => rest,
        };
        for packet in chain.into_iter().chain(piece) {
            pool.release(packet);
        }
        None
    }

    /// The packet in a form that the socket can send: a chain too long for it is copied together.
    /// `None`, and the packet freed, when it has no such form, or there are no frames for it.
    fn fit(
        &self,
        pool: &mut FramePool,
        packet: Packet,
        partial: Option<Partial>,
    ) -> Option<Packet> {
        let Sends { tx_metadata, segments_max, zero_copy: _ } = self.socket.sends;
        if partial.is_some() && !tx_metadata {
            pool.release(packet);
            return None;
        }
        if packet.frames() <= segments_max {
            return Some(packet);
        }
        let mut copy = pool.chain(packet.len());
        if let Some(copy) = &mut copy {
            pool.copy_between(&packet, 0, copy, 0);
        }
        pool.release(packet);
        match copy {
            Some(copy) if copy.frames() > segments_max => {
                pool.release(copy);
                None
            }
            copy => copy,
        }
    }

    /// Moves what has arrived to `batch`, and counts what no packet can be made of.
    fn take_received(&mut self, pool: &mut FramePool, batch: &mut Vec<Packet>, room: usize) -> u64 {
        let mut bad = 0;
        let full = batch.len() + room;
        while batch.len() < full {
            let Some(descriptor) = self.socket.rx.pop() else { break };
            self.filled = 0;
            let last = descriptor.options & XDP_PKT_CONTD == 0;
            let piece = pool.from_rx(self.slot, descriptor.addr, descriptor.len);
            match self.join(pool, piece) {
                Some(packet) if last => batch.push(packet),
                Some(packet) => self.partial = Some(packet),
                None => bad += u64::from(!std::mem::replace(&mut self.skipping, true)),
            }
            self.skipping &= !last;
        }
        self.socket.rx.release();
        bad
    }

    /// Frees what the kernel has sent.
    fn take_completed(&mut self, pool: &mut FramePool) {
        while let Some(address) = self.socket.completion.pop() {
            // An address that is not in our tx ring is the kernel's error; believing it would
            // free a frame twice.
            self.unsent -= u32::from(pool.complete(self.slot, address));
        }
        self.socket.completion.release();
        if self.down {
            // No kick comes for what waits for the interface: a worker need not hurry for it.
            self.wake_sender();
        }
    }

    /// Fills the fill ring up to `share` frames, or as far as there are any.
    fn fill(&mut self, pool: &mut FramePool, share: u32) {
        let room = self.socket.fill.room(share.min(self.fill_max));
        let mut added = 0;
        while added < room {
            let Some(frame) = pool.take() else { break };
            self.socket.fill.push(pool.to_rx(frame, self.slot));
            added += 1;
        }
        if added > 0 {
            self.socket.fill.commit();
            self.refilled = true;
        }
        // A NIC takes frames before it has packets for them, and may want to be woken.
        if added == room && !self.is_zero_copy() {
            self.filled = share;
        }
        self.wake_receiver();
    }

    /// Wakes a driver that has run out of frames to receive into and has got new ones: it sleeps
    /// until then (Documentation/networking/af_xdp.rst, "XDP_USE_NEED_WAKEUP bind flag"). A driver
    /// that falls asleep just after this look is woken in the next pass.
    fn wake_receiver(&mut self) {
        if self.refilled && self.socket.fill.needs_wakeup() {
            self.refilled = false;
            // An interface that is down has no receiver; it starts with what is in the ring.
            let _woken = rustix::net::recv(&self.socket.fd, &mut [0u8; 0][..], RecvFlags::DONTWAIT);
        }
    }

    /// Wakes the kernel until it has taken what the tx ring holds, or goes no further.
    fn wake_sender(&mut self) {
        let tries = if self.socket.sends.zero_copy { ZERO_COPY_KICKS } else { KICKS_MAX };
        for _ in 0..tries {
            // A driver that is down need not ask for it.
            if !self.down && !self.socket.tx.needs_wakeup() {
                break;
            }
            match rustix::net::send(&self.socket.fd, &[], SendFlags::DONTWAIT) {
                Ok(_) => {}
                // The interface refused one packet and the kernel went no further
                // (net/xdp/xsk.c, __xsk_generic_xmit).
                Err(Errno::BUSY) => self.refused += 1,
                // The send buffer is full, or memory is short: try again in the next pass.
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => break,
                Err(Errno::NETDOWN) => {
                    self.down = true;
                    break;
                }
                // The interface is gone; control takes the port away.
                Err(_) => {
                    (self.uncommitted, self.down) = (false, false);
                    return;
                }
            }
            if self.socket.tx.pending() == 0 {
                break;
            }
        }
        self.uncommitted = self.socket.tx.pending() > 0;
        self.down &= self.uncommitted;
    }

    /// Writes the request to complete a checksum before the packet's bytes.
    fn write_metadata(&self, pool: &mut FramePool, packet: &mut Packet, partial: Partial) {
        let metadata = pool.before_head(packet, TX_METADATA_BYTES as usize);
        metadata.fill(0);
        metadata[..8].copy_from_slice(&TXMD_CHECKSUM.to_ne_bytes());
        metadata[8..10].copy_from_slice(&partial.start.to_ne_bytes());
        metadata[10..12].copy_from_slice(&partial.offset.to_ne_bytes());
    }
}

const _: () = assert!(HEADROOM as u32 >= TX_METADATA_BYTES);
const _: () = assert!(FRAME_BYTES.is_power_of_two());

/// In every pass each port is asked for news, and most have none: these looks are short.
impl PacketIo for XskPort {
    #[inline]
    fn receive(&mut self, pool: &mut FramePool, batch: &mut Vec<Packet>, room: usize) -> u64 {
        if self.socket.rx.is_empty() { 0 } else { self.take_received(pool, batch, room) }
    }

    fn transmit(
        &mut self,
        pool: &mut FramePool,
        packet: Packet,
        partial: Option<Partial>,
    ) -> Result<(), Packet> {
        if self.down {
            pool.release(packet);
            self.refused += 1;
            return Ok(());
        }
        let segments = packet.frames().min(self.socket.sends.segments_max);
        if !self.socket.tx.fits(segments as u32) {
            return Err(packet);
        }
        let Some(mut packet) = self.fit(pool, packet, partial) else {
            self.refused += 1;
            return Ok(());
        };
        let mut options = 0;
        if let Some(partial) = partial {
            self.write_metadata(pool, &mut packet, partial);
            options = XDP_TX_METADATA;
        }
        self.unsent += packet.frames() as u32;
        let tx = &mut self.socket.tx;
        pool.to_tx(packet, self.slot, |piece| {
            let more = if piece.last { 0 } else { XDP_PKT_CONTD };
            tx.push(xdp_desc { addr: piece.address, len: piece.len, options: options | more });
            options = 0;
        });
        self.uncommitted = true;
        Ok(())
    }

    #[inline]
    fn reclaim(&mut self, pool: &mut FramePool) {
        if self.unsent > 0 {
            self.take_completed(pool);
        }
    }

    #[inline]
    fn refill(&mut self, pool: &mut FramePool, share: u32) {
        if self.filled < share || !self.socket.rx.is_empty() {
            self.fill(pool, share);
        }
    }

    fn kick(&mut self) -> Kicked {
        if self.uncommitted {
            self.socket.tx.commit();
            self.wake_sender();
        }
        let pending = self.uncommitted && !self.down;
        Kicked { refused: std::mem::take(&mut self.refused), pending }
    }

    fn abandon(&mut self, pool: &mut FramePool) {
        if let Some(packet) = self.partial.take() {
            pool.release(packet);
        }
    }

    fn kernel_drops(&self) -> KernelDrops {
        match sockopt::xdp_statistics(&self.socket.fd) {
            Ok(statistics) => {
                let fill_empty = statistics.rx_fill_ring_empty_descs.unwrap_or(0);
                KernelDrops {
                    // A packet of one frame that finds no frame counts in both (net/xdp/xsk.c,
                    // `__xsk_rcv` after `xp_alloc`); here it has one reason.
                    rx_dropped: statistics.rx_dropped.saturating_sub(fill_empty),
                    rx_ring_full: statistics.rx_ring_full.unwrap_or(0),
                    rx_fill_empty: fill_empty,
                    tx_invalid: statistics.tx_invalid_descs,
                }
            }
            // The interface is gone; so are its statistics.
            Err(_) => KernelDrops::default(),
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.fd.as_fd())
    }
}
