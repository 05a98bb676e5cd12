//! The four rings of an XSK, mapped from the kernel: fill and tx, which we fill, rx and
//! completion, which we empty. Four types, so that a completion cannot be taken for a packet.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use libc::xdp_desc;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::net::xdp::XdpRingOffset;

use super::cursor::{ConsumerCursor, ProducerCursor};
use crate::sync::{AtomicU32, Ordering};

/// `XDP_RING_NEED_WAKEUP` (Documentation/networking/af_xdp.rst, "XDP_USE_NEED_WAKEUP").
const NEED_WAKEUP: u32 = 1;

/// The mapped memory of one ring with entries of type `T`.
#[derive(Debug)]
struct Mapping<T> {
    base: NonNull<u8>,
    bytes: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    size: u32,
}

// SAFETY: the mapping belongs to this value alone on our side; the kernel's side is ordered by
// the atomics.
unsafe impl<T: Send> Send for Mapping<T> {}

impl<T: Copy> Mapping<T> {
    fn new(fd: BorrowedFd<'_>, page: u64, at: XdpRingOffset, size: u32) -> io::Result<Mapping<T>> {
        let bytes = at.desc as usize + size as usize * size_of::<T>();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a fresh mapping of the socket's ring at an address the kernel chooses.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, prot, flags, fd, page)? };
        let base = NonNull::new(base.cast::<u8>()).expect("mmap returns no null on success");
        let inside = |offset: u64| {
            assert!(offset as usize + size_of::<u32>() <= bytes, "the kernel's offsets fit");
            // SAFETY: the offset is inside of the mapping (just checked).
            unsafe { base.add(offset as usize) }
        };
        let need_wakeup = at.flags.ok_or(io::ErrorKind::Unsupported)?;
        Ok(Mapping {
            producer: inside(at.producer).cast(),
            consumer: inside(at.consumer).cast(),
            flags: inside(need_wakeup).cast(),
            entries: inside(at.desc).cast(),
            base,
            bytes,
            size,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: points into the mapping, aligned by the kernel's layout; all access is atomic.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: as for `producer`.
        let flags = unsafe { self.flags.as_ref() };
        // Relaxed: a hint; a stale value costs one system call or one pass.
        flags.load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }

    #[inline]
    fn write(&mut self, slot: u32, entry: T) {
        assert!(slot < self.size);
        // SAFETY: the slot is inside of the ring (just checked).
        let at = unsafe { self.entries.add(slot as usize) };
        // SAFETY: the cursor reserved this slot: the kernel does not read it before the commit.
        unsafe { at.write_volatile(entry) }
    }

    #[inline]
    fn read(&self, slot: u32) -> T {
        assert!(slot < self.size);
        // SAFETY: the slot is inside of the ring (just checked).
        let at = unsafe { self.entries.add(slot as usize) };
        // SAFETY: the cursor saw the entry published and has not released it; any bit pattern is
        // a valid entry of our types.
        unsafe { at.read_volatile() }
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, unmapped once.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Fill ring: addresses of free frames, from us to the kernel.
#[derive(Debug)]
pub struct FillRing {
    memory: Mapping<u64>,
    cursor: ProducerCursor,
}

impl FillRing {
    pub(super) fn map(fd: BorrowedFd<'_>, at: XdpRingOffset, size: u32) -> io::Result<FillRing> {
        let memory = Mapping::new(fd, libc::XDP_UMEM_PGOFF_FILL_RING, at, size)?;
        let start = memory.producer().load(Ordering::Acquire);
        Ok(FillRing { memory, cursor: ProducerCursor::new(start, size) })
    }

    /// Frames that may be added so that the kernel has at most `max`.
    pub fn room(&mut self, max: u32) -> u32 {
        max.saturating_sub(self.cursor.pending(self.memory.consumer()))
    }

    /// Adds an address; `room` was asked before.
    pub fn push(&mut self, address: u64) {
        let slot = self.cursor.reserve();
        self.memory.write(slot, address);
    }

    /// Shows what was added to the kernel.
    pub fn commit(&mut self) {
        self.cursor.commit(self.memory.producer());
    }

    /// Whether a driver that found the ring empty waits to be woken: in zero-copy mode only.
    #[inline]
    #[must_use]
    pub fn needs_wakeup(&self) -> bool {
        self.memory.needs_wakeup()
    }
}

/// Rx ring: received descriptors, from the kernel to us.
#[derive(Debug)]
pub struct RxRing {
    memory: Mapping<xdp_desc>,
    cursor: ConsumerCursor,
}

impl RxRing {
    pub(super) fn map(fd: BorrowedFd<'_>, at: XdpRingOffset, size: u32) -> io::Result<RxRing> {
        let memory = Mapping::new(fd, libc::XDP_PGOFF_RX_RING as u64, at, size)?;
        let start = memory.consumer().load(Ordering::Acquire);
        Ok(RxRing { memory, cursor: ConsumerCursor::new(start, size) })
    }

    /// Whether no descriptor has arrived.
    #[inline]
    #[must_use]
    pub fn is_empty(&mut self) -> bool {
        self.cursor.ready(self.memory.producer()) == 0
    }

    /// The next descriptor, if one has arrived.
    #[inline]
    pub fn pop(&mut self) -> Option<xdp_desc> {
        if self.cursor.ready(self.memory.producer()) == 0 {
            return None;
        }
        let descriptor = self.memory.read(self.cursor.peek(0));
        self.cursor.advance(1);
        Some(descriptor)
    }

    /// Gives the slots back to the kernel.
    #[inline]
    pub fn release(&mut self) {
        self.cursor.release(self.memory.consumer());
    }
}

/// Tx ring: descriptors to send, from us to the kernel.
#[derive(Debug)]
pub struct TxRing {
    memory: Mapping<xdp_desc>,
    cursor: ProducerCursor,
}

impl TxRing {
    pub(super) fn map(fd: BorrowedFd<'_>, at: XdpRingOffset, size: u32) -> io::Result<TxRing> {
        let memory = Mapping::new(fd, libc::XDP_PGOFF_TX_RING as u64, at, size)?;
        let start = memory.producer().load(Ordering::Acquire);
        Ok(TxRing { memory, cursor: ProducerCursor::new(start, size) })
    }

    /// Whether `count` descriptors fit.
    #[inline]
    pub fn fits(&mut self, count: u32) -> bool {
        self.cursor.free(count, self.memory.consumer()) >= count
    }

    /// Adds a descriptor; `fits` was asked before.
    #[inline]
    pub fn push(&mut self, descriptor: xdp_desc) {
        let slot = self.cursor.reserve();
        self.memory.write(slot, descriptor);
    }

    /// Shows what was added to the kernel; false if that was nothing.
    #[inline]
    pub fn commit(&mut self) -> bool {
        self.cursor.commit(self.memory.producer())
    }

    /// Descriptors the kernel has not taken yet.
    pub fn pending(&mut self) -> u32 {
        self.cursor.pending(self.memory.consumer())
    }

    /// Whether the kernel must be woken to send.
    #[inline]
    #[must_use]
    pub fn needs_wakeup(&self) -> bool {
        self.memory.needs_wakeup()
    }
}

/// Completion ring: addresses of frames that were sent, from the kernel to us.
#[derive(Debug)]
pub struct CompletionRing {
    memory: Mapping<u64>,
    cursor: ConsumerCursor,
}

impl CompletionRing {
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        at: XdpRingOffset,
        size: u32,
    ) -> io::Result<CompletionRing> {
        let memory = Mapping::new(fd, libc::XDP_UMEM_PGOFF_COMPLETION_RING, at, size)?;
        let start = memory.consumer().load(Ordering::Acquire);
        Ok(CompletionRing { memory, cursor: ConsumerCursor::new(start, size) })
    }

    /// The next completed address.
    #[inline]
    pub fn pop(&mut self) -> Option<u64> {
        if self.cursor.ready(self.memory.producer()) == 0 {
            return None;
        }
        let address = self.memory.read(self.cursor.peek(0));
        self.cursor.advance(1);
        Some(address)
    }

    /// Gives the slots back to the kernel.
    #[inline]
    pub fn release(&mut self) {
        self.cursor.release(self.memory.consumer());
    }
}
