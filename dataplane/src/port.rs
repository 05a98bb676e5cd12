//! A port: an interface we forward on. `PacketIo` is the seam between packet logic and rings:
//! the worker knows only these verbs, so it runs the same over AF_XDP and over a simulated port.

use std::os::fd::BorrowedFd;

use crate::frame::{FramePool, Packet};

/// Number of a port, unique on the node: its slot in the socket map of the XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

/// Number of a worker, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u16);

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Ports of one node: the pods of the largest Kubernetes node (110, up to 512 in practice), and
/// room for churn while old ports close.
pub const PORTS_MAX: usize = 4096;

/// A checksum field that holds only the pseudo-header sum: the receiver completes or trusts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Offset from the start of the frame where summing starts: the L4 header, at most 255.
    pub start: u16,
    /// Offset of the checksum field from `start`.
    pub offset: u16,
}

/// What a wake-up of the kernel brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kicked {
    /// Packets that the interface refused; they are lost and were counted as sent before.
    pub refused: u64,
    /// The kernel has not taken everything, and may the next time: kick again in the next pass.
    pub pending: bool,
}

/// Packets that the kernel dropped at the socket: totals since the socket was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelDrops {
    /// `rx_dropped`: too few frames in the fill ring for a packet of several, or too large.
    pub rx_dropped: u64,
    /// `rx_ring_full`.
    pub rx_ring_full: u64,
    /// `rx_fill_ring_empty_descs`.
    pub rx_fill_empty: u64,
    /// `tx_invalid_descs`.
    pub tx_invalid: u64,
}

/// The rings of one port. Frames move between the pool and the rings; packets are tokens.
pub trait PacketIo {
    /// Moves received packets to `batch`, at most `room` of them. Descriptors that name no frame
    /// of this port are dropped and counted in the result.
    fn receive(&mut self, pool: &mut FramePool, batch: &mut Vec<Packet>, room: usize) -> u64;

    /// Queues a packet for sending, its checksum to be completed as `partial` says. Gives it
    /// back when the ring is full.
    fn transmit(
        &mut self,
        pool: &mut FramePool,
        packet: Packet,
        partial: Option<Partial>,
    ) -> Result<(), Packet>;

    /// Frees the frames of packets that the kernel has sent.
    fn reclaim(&mut self, pool: &mut FramePool);

    /// Gives the kernel free frames to receive into, so that its fill ring has `share`, or is
    /// full.
    fn refill(&mut self, pool: &mut FramePool, share: u32);

    /// Wakes the kernel if it has something to send and asks to be woken.
    fn kick(&mut self) -> Kicked;

    /// Frees what the port holds outside of its rings, before it goes.
    fn abandon(&mut self, pool: &mut FramePool);

    /// The kernel's own drop counters.
    fn kernel_drops(&self) -> KernelDrops;

    /// What becomes readable when a packet arrives; `None` for a port that is only polled.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;
}
