//! Sentinels: sockets that exist to be closed first.
//!
//! When the process dies the kernel frees its memory, then closes its descriptors one after
//! another, each XSK taking some 12 ms: the last of 110 pods would be cut off for more than a
//! second, and the first for as long as 128 MiB of frames take to unmap. The XDP program therefore
//! leaves a worker's ports to the kernel as soon as one of the worker's two sentinels is gone from
//! its map.
//!
//! To close before everything else, sentinels are in a descriptor table of their own, that of a
//! thread which does nothing but hold them (unshare(2), `CLONE_FILES`): a thread that is killed
//! closes its table at once, whatever the rest of the process still has to do. And it runs before
//! ordinary threads, so that it need not wait for its turn to die on a busy node. The figures are
//! in docs/decisions/0010-sentinels-in-a-table-of-their-own.md.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::thread::UnshareFlags;

use super::socket::{Queue, Socket, SocketError};

/// The two sentinels of one worker, while the map entries are made.
#[derive(Debug)]
pub struct Sentinels {
    first: OwnedFd,
    second: OwnedFd,
}

/// Sentinels on guard. Dropped, they close, and the kernel carries the worker's ports.
#[derive(Debug)]
pub struct Guard {
    _end: Sender<()>,
}

impl Sentinels {
    /// Makes both on the queue of `socket`, a bound socket of the worker.
    pub fn bind(queue: Queue<'_>, socket: BorrowedFd<'_>) -> Result<Sentinels, SocketError> {
        let first = Socket::bind_beside(queue, socket)?;
        Ok(Sentinels { first, second: Socket::bind_beside(queue, socket)? })
    }

    /// One of them, for the map.
    #[must_use]
    pub fn first(&self) -> BorrowedFd<'_> {
        self.first.as_fd()
    }

    /// The other.
    #[must_use]
    pub fn second(&self) -> BorrowedFd<'_> {
        self.second.as_fd()
    }

    /// Moves them to a thread of their own. To be called when they stand in the map: from then on
    /// nobody else can reach them.
    pub fn stand_guard(self) -> io::Result<Guard> {
        let numbers = [self.first.as_raw_fd(), self.second.as_raw_fd()];
        let (end, ended) = channel();
        let (ready, done) = channel();
        std::thread::Builder::new().name("sentinel".into()).spawn(move || {
            // Who may not set priorities has a sentinel that waits for its turn.
            let _first = run_first();
            // Whoever waits for the answer has it; nobody waits for the end.
            let _told = ready.send(keep_only(numbers));
            wait(&ended);
        })?;
        let kept = done.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        kept.map(|()| Guard { _end: end })
        // `self` is dropped here: the thread's table has the only descriptors that are left.
    }
}

/// Waits until the guard is dropped. The thread's table closes with the thread.
fn wait(ended: &Receiver<()>) {
    let _dropped = ended.recv();
}

/// Makes the calling thread run before all that are not of the real-time class (sched(7),
/// `SCHED_FIFO`). It only waits, so it takes time from nobody. Needs CAP_SYS_NICE.
fn run_first() -> io::Result<()> {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads one sched_param, which lives until the call returns; 0 is the
    // calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread a descriptor table of its own with these two descriptors in it.
fn keep_only(mut numbers: [RawFd; 2]) -> io::Result<()> {
    numbers.sort_unstable();
    let [low, high] = numbers.map(|number| number as u32);
    // SAFETY: this thread uses no descriptor from here on: it waits for a channel and ends. So no
    // owner of a descriptor can find another file, or none, behind its number.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FILES)? };
    close_range(0, low.saturating_sub(1))?;
    if high > low + 1 {
        close_range(low + 1, high - 1)?;
    }
    close_range(high + 1, u32::MAX)
}

/// close_range(2), which rustix has no form of.
fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the table is this thread's own (see `keep_only`): no owner of these descriptors
    // looks for them here.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
