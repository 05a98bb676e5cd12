//! Closing a port so that its frames can be used again.
//!
//! In copy mode the kernel writes into frames while somebody sends, and no longer once the socket
//! is closed. In zero-copy mode the driver has frames of the worker in its own rings, and lets go
//! of them some time after the close, on a work queue (net/xdp/xsk_buff_pool.c,
//! xp_release_deferred): until then a packet from the wire may be written into them. The queue is
//! in use that long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::area::Area;
use super::port::XskPort;
use super::socket::{Memory, Queue, RingSizes, Socket, SocketError, SocketFeatures};

/// Between two looks; a release takes some 12 ms.
const LOOK: Duration = Duration::from_millis(5);

/// Rings of a socket that is bound only to see whether it can be.
const PROBE_RINGS: RingSizes = RingSizes { fill: 2, completion: 2, rx: 2, tx: 2 };

impl XskPort {
    /// Closes the socket and waits until the kernel writes into its frames no more. `false`: it
    /// still may after `deadline`, so the frames must never be used again.
    #[must_use]
    pub fn close(self, deadline: Duration) -> bool {
        let zero_copy = self.is_zero_copy();
        let place = self.place();
        drop(self);
        let end = Instant::now() + deadline;
        while zero_copy && is_in_use(place) {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}

/// Whether the kernel still has a socket's memory at the queue of the interface. An error of
/// another kind means that there is no such queue any more, and so nobody who writes.
fn is_in_use((ifindex, queue): (u32, u32)) -> bool {
    let queue = Queue { device: "(closing)", ifindex, queue };
    let none = SocketFeatures { multi_buffer: false, tx_checksum: false, tx_budget: false };
    let Ok(area) = Area::map(1).map(Arc::new) else { return true };
    let now = Duration::ZERO;
    match Socket::bind(queue, &area, Memory::Own, PROBE_RINGS, none, now, |_| {}) {
        Err(SocketError { source, .. }) => {
            source.raw_os_error() == Some(Errno::BUSY.raw_os_error())
        }
        Ok(_) => false,
    }
}
