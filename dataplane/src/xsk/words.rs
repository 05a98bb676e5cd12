//! Memory of 64-bit words that outlives the process: a file mapping. One thread writes, others
//! may read at the same time, and another process reads what is left after a crash; so every word
//! is atomic.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// A mapping of whole words, as a slice of atomics.
pub struct Words {
    base: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the mapping is owned by this value, and atomics may be used from any thread.
unsafe impl Send for Words {}
// SAFETY: as above; all access is through `&[AtomicU64]`.
unsafe impl Sync for Words {}

impl Words {
    /// Maps the first `len` words of `file` for reading and writing, and gives the file that
    /// length. Its blocks are allocated now: on a full file system a later write would end the
    /// process with SIGBUS. Nobody may shorten the file while it is mapped.
    ///
    /// # Errors
    /// The file system has no room for it, or does not map files.
    pub fn of_file(file: BorrowedFd<'_>, len: usize) -> io::Result<Words> {
        assert!(len > 0, "a mapping has words");
        let bytes = len * size_of::<AtomicU64>();
        rustix::fs::ftruncate(file, bytes as u64)?;
        rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes as u64)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // Populated now: a page fault on the packet path would be a latency spike.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, prot, flags, file, 0)? };
        let base = NonNull::new(base.cast()).expect("mmap returns no null on success");
        Ok(Words { base, len })
    }

    /// Words of zero that end with the process.
    ///
    /// # Errors
    /// There is no memory.
    pub fn anonymous(len: usize) -> io::Result<Words> {
        let file = rustix::fs::memfd_create("viaduct-words", MemfdFlags::CLOEXEC)?;
        Words::of_file(file.as_fd(), len)
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: base is page-aligned and maps len words for as long as self lives; every bit
        // pattern is a u64, and other processes and threads change words only as atomics.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Words").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<AtomicU64>();
        // SAFETY: the mapping made in `of_file`, unmapped once; borrows of it have ended.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn what_is_written_to_a_file_is_there_for_the_next_who_maps_it() {
        let file = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        let first = Words::of_file(file.as_fd(), 1000).unwrap();
        assert!(first.iter().all(|word| word.load(Relaxed) == 0));
        first[999].store(7, Relaxed);
        drop(first);
        let second = Words::of_file(file.as_fd(), 1000).unwrap();
        assert_eq!((second.len(), second[999].load(Relaxed)), (1000, 7));
    }
}
