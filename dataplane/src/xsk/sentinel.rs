//! Sentinels: sockets that exist to be closed first.
//!
//! When the process dies the kernel closes its descriptors in ascending order, each XSK taking
//! some 12 ms: the last of 110 pods would be cut off for more than a second. The XDP program
//! therefore leaves a worker's ports to the kernel as soon as one of the worker's two sentinels
//! is gone from its map. One has the lowest descriptor number of all sockets and closes first;
//! the other has the highest, should the order ever be reversed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::socket::{Queue, Socket, SocketError};

/// Where the search for a high descriptor number starts: just below the soft limit of open files.
fn high_descriptor() -> i32 {
    /// Below the limit by this much, so that there is room to search upwards.
    const MARGIN: u64 = 32;
    /// Without a limit, or with an enormous one, this is high enough.
    const CEILING: u64 = 60_000;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    i32::try_from(limit.unwrap_or(CEILING).min(CEILING).saturating_sub(MARGIN)).unwrap_or(0)
}

/// The two sentinels of one worker.
#[derive(Debug)]
pub struct Sentinels {
    low: OwnedFd,
    high: OwnedFd,
}

impl Sentinels {
    /// Makes both on the queue of `first`, a bound socket of the worker. `low` must have been
    /// reserved by [`reserve_low`] before any port's socket was made.
    pub fn bind(
        queue: Queue<'_>,
        first: BorrowedFd<'_>,
        low: OwnedFd,
    ) -> Result<Sentinels, SocketError> {
        let step = |source: rustix::io::Errno| SocketError::Step {
            step: "number sentinel",
            device: queue.device.to_owned(),
            queue: queue.queue,
            source: source.into(),
        };
        let lowest = Socket::bind_beside(queue, first)?;
        let mut low = low;
        rustix::io::dup3(&lowest, &mut low, rustix::io::DupFlags::CLOEXEC).map_err(step)?;
        let highest = Socket::bind_beside(queue, first)?;
        let high = rustix::io::fcntl_dupfd_cloexec(&highest, high_descriptor()).map_err(step)?;
        Ok(Sentinels { low, high })
    }

    /// The one with the lowest number.
    #[must_use]
    pub fn low(&self) -> BorrowedFd<'_> {
        self.low.as_fd()
    }

    /// The one with the highest number.
    #[must_use]
    pub fn high(&self) -> BorrowedFd<'_> {
        self.high.as_fd()
    }
}

/// Reserves a low descriptor number at start, before anything else is opened.
pub fn reserve_low() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?)
}
