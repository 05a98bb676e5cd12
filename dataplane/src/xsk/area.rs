//! The memory that frames live in: one mapping per worker, shared with the kernel as UMEM.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::frame::FRAME_BYTES;

/// A mapping of whole frames.
///
/// It hands out the bytes of a frame by index. Exclusivity is not checked here: `FramePool`
/// (the only caller, beside the copy at a crossing) proves it by frame tokens.
#[derive(Debug)]
pub struct Area {
    base: NonNull<u8>,
    frames: u32,
    memory: OwnedFd,
    hugepages: bool,
}

// SAFETY: the mapping is plain memory owned by this value; access to the bytes of a frame is
// given only to the holder of its token, on whatever thread that is.
unsafe impl Send for Area {}
// SAFETY: as above; `bytes` and `bytes_mut` of different frames do not overlap.
unsafe impl Sync for Area {}

impl Area {
    /// Maps memory for `frames` frames: a memfd, on hugepages when the machine has enough free.
    pub fn map(frames: u32) -> io::Result<Area> {
        assert!(frames > 0, "an area has frames");
        let bytes = frames as usize * FRAME_BYTES;
        match Self::map_memfd(frames, bytes, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB, true) {
            Ok(area) => Ok(area),
            Err(_) => Self::map_memfd(frames, bytes, MemfdFlags::empty(), false),
        }
    }

    fn map_memfd(frames: u32, bytes: usize, kind: MemfdFlags, huge: bool) -> io::Result<Area> {
        let memory = rustix::fs::memfd_create("viaduct-umem", MemfdFlags::CLOEXEC | kind)?;
        rustix::fs::ftruncate(&memory, bytes as u64)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // Populated now: a page fault on the packet path would be a latency spike, and missing
        // hugepages must show here, not as SIGBUS later.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a fresh mapping at an address the kernel chooses; nothing else refers to it.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), bytes, prot, flags, memory.as_fd(), 0)?
        };
        let base = NonNull::new(base.cast::<u8>()).expect("mmap returns no null on success");
        if !huge {
            // SAFETY: base..base+bytes is the mapping made above; the advice changes no contents.
            let advised =
                unsafe { rustix::mm::madvise(base.as_ptr().cast(), bytes, Advice::LinuxHugepage) };
            // Only a hint: shared memory without transparent hugepages answers EINVAL.
            let _hint = advised;
        }
        Ok(Area { base, frames, memory, hugepages: huge })
    }

    /// Number of frames.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Bytes of the mapping.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames as usize * FRAME_BYTES
    }

    /// Never: an area has at least one frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether hugepages back the mapping.
    #[must_use]
    pub fn hugepages(&self) -> bool {
        self.hugepages
    }

    /// The memfd behind the mapping.
    #[must_use]
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// Address of the mapping, for UMEM registration.
    pub(super) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// `len` bytes at `offset` of frame `index`. The caller holds the frame's token, or the
    /// message that lends it the frame at a crossing.
    #[inline]
    pub(crate) fn bytes(&self, index: u32, offset: u16, len: u16) -> &[u8] {
        let at = self.offset(index, offset, len);
        // SAFETY: `at` is inside of the mapping (checked by `offset`).
        let start = unsafe { self.base.add(at) };
        // SAFETY: start..start+len is inside of the mapping, which lives as long as self; no one
        // writes to it while the caller's token is borrowed.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), usize::from(len)) }
    }

    /// `len` bytes at `offset` of frame `index`, to change. The caller holds the frame's token,
    /// mutably borrowed.
    #[inline]
    #[allow(clippy::mut_from_ref)] // Exclusive by the token, not by &self.
    pub(crate) fn bytes_mut(&self, index: u32, offset: u16, len: u16) -> &mut [u8] {
        let at = self.offset(index, offset, len);
        // SAFETY: `at` is inside of the mapping (checked by `offset`).
        let start = unsafe { self.base.add(at) };
        // SAFETY: as in `bytes`, and the token is borrowed mutably: nobody else reads these bytes.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), usize::from(len)) }
    }

    /// `len` bytes at `address`, of a frame that another worker has lent.
    pub(crate) fn at(&self, address: u64, len: u32) -> &[u8] {
        let index = address / FRAME_BYTES as u64;
        let offset = address % FRAME_BYTES as u64;
        self.bytes(index as u32, offset as u16, len as u16)
    }

    #[inline]
    fn offset(&self, index: u32, offset: u16, len: u16) -> usize {
        assert!(index < self.frames, "frame {index} of {}", self.frames);
        assert!(usize::from(offset) + usize::from(len) <= FRAME_BYTES, "bytes inside of a frame");
        index as usize * FRAME_BYTES + usize::from(offset)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map_memfd`, unmapped once; borrows of it have ended.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len()) };
        debug_assert!(unmapped.is_ok());
    }
}
