//! A simulated port: the rings as queues in memory, for [`crate::explain`], tests and benches. It
//! moves frames through the pool exactly as AF_XDP does, so the frame law holds or breaks in the
//! same places.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use crate::frame::{FramePool, Packet};
use crate::port::{KernelDrops, Kicked, PacketIo, Partial};

/// A packet that a simulated port has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The bytes on the link.
    pub bytes: Vec<u8>,
    /// What the checksum metadata asked for.
    pub partial: Option<Partial>,
}

/// The simulated port and, behind it, the simulated kernel.
#[derive(Debug)]
pub struct SimPort {
    slot: u16,
    tx_max: usize,
    fill: VecDeque<u64>,
    /// Address, length, and whether the packet ends.
    rx: VecDeque<(u64, u32, bool)>,
    tx: VecDeque<(u64, u32)>,
    completion: VecDeque<u64>,
    sent: Vec<Sent>,
    discard: bool,
    current: Vec<u8>,
    sent_count: u64,
    drops: KernelDrops,
    /// It may have named a frame that it used once more.
    lied: bool,
}

impl SimPort {
    /// A port in `slot` whose tx ring holds `tx_max` frames; its fill ring holds any share.
    #[must_use]
    pub fn new(slot: u16, tx_max: usize) -> SimPort {
        SimPort {
            slot,
            tx_max,
            fill: VecDeque::new(),
            rx: VecDeque::new(),
            tx: VecDeque::with_capacity(tx_max),
            completion: VecDeque::with_capacity(tx_max),
            sent: Vec::new(),
            discard: false,
            current: Vec::new(),
            sent_count: 0,
            drops: KernelDrops::default(),
            lied: false,
        }
    }

    /// Forgets what is sent instead of recording it: for benches and long runs.
    pub fn discard_sent(&mut self) {
        self.discard = true;
    }

    /// The packets sent since the last call.
    pub fn take_sent(&mut self) -> Vec<Sent> {
        std::mem::take(&mut self.sent)
    }

    /// How many packets were sent in all.
    #[must_use]
    pub fn sent_count(&self) -> u64 {
        self.sent_count
    }

    /// A packet arrives from the link. False, and counted as the kernel does, when the fill ring
    /// has too few frames for it.
    pub fn arrive(&mut self, pool: &mut FramePool, bytes: &[u8]) -> bool {
        use crate::frame::{FRAME_BYTES, HEADROOM};
        let room = FRAME_BYTES - usize::from(HEADROOM);
        if self.fill.len() < bytes.len().div_ceil(room) {
            self.drops.rx_fill_empty += 1;
            return false;
        }
        let mut left = bytes.len();
        for chunk in bytes.chunks(room) {
            let address = self.fill.pop_front().expect("counted above") + u64::from(HEADROOM);
            let ours = pool.write_as_kernel(address, chunk);
            assert!(ours || self.lied, "the fill ring holds frames of the kernel");
            left -= chunk.len();
            self.rx.push_back((address, chunk.len() as u32, left == 0));
        }
        true
    }

    /// A descriptor that the kernel would never write: for tests of the checks on them.
    pub fn corrupt_rx(&mut self, address: u64, len: u32) {
        self.lied = true;
        self.rx.push_back((address, len, true));
    }
}

impl PacketIo for SimPort {
    fn receive(&mut self, pool: &mut FramePool, batch: &mut Vec<Packet>, room: usize) -> u64 {
        let mut bad = 0;
        let full = batch.len() + room;
        let mut packet: Option<Packet> = None;
        while batch.len() < full {
            let Some((address, len, last)) = self.rx.pop_front() else { break };
            match (pool.from_rx(self.slot, address, len), &mut packet) {
                (None, _) => bad += 1,
                (Some(piece), None) => packet = Some(piece),
                (Some(piece), Some(chain)) => {
                    pool.append(chain, piece).expect("at most 18 pieces arrive");
                }
            }
            if last {
                batch.extend(packet.take());
            }
        }
        bad
    }

    fn transmit(
        &mut self,
        pool: &mut FramePool,
        packet: Packet,
        partial: Option<Partial>,
    ) -> Result<(), Packet> {
        if self.tx.len() + packet.frames() > self.tx_max {
            return Err(packet);
        }
        self.sent_count += 1;
        if !self.discard {
            self.current.clear();
            for piece in pool.pieces(&packet) {
                self.current.extend_from_slice(piece);
            }
            self.sent.push(Sent { bytes: self.current.clone(), partial });
        }
        let tx = &mut self.tx;
        pool.to_tx(packet, self.slot, |piece| tx.push_back((piece.address, piece.len)));
        Ok(())
    }

    fn reclaim(&mut self, pool: &mut FramePool) {
        while let Some(address) = self.completion.pop_front() {
            assert!(pool.complete(self.slot, address), "the simulated kernel completes its own");
        }
    }

    fn refill(&mut self, pool: &mut FramePool, share: u32) {
        while self.fill.len() + self.rx.len() < share as usize {
            let Some(frame) = pool.take() else { return };
            self.fill.push_back(pool.to_rx(frame, self.slot));
        }
    }

    fn kick(&mut self) -> Kicked {
        while let Some((address, _)) = self.tx.pop_front() {
            self.completion.push_back(address);
        }
        Kicked::default()
    }

    fn abandon(&mut self, _pool: &mut FramePool) {}

    fn kernel_drops(&self) -> KernelDrops {
        self.drops
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
