//! Ports on the queues of uplinks. Drivers want the fill ring full before the bind, so a worker
//! lends frames for a socket that it does not have yet.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use dataplane::port::PortId;
use dataplane::share::Share;
use dataplane::worker::{Command, Event};
use dataplane::xsk::port::{UPLINK_RINGS, XskPort};
use dataplane::xsk::program::AttachMode;
use dataplane::xsk::socket::{Queue, Socket};
use dataplane::xsk::uplink::{QueueMode, UplinkBind};

use super::{ADOPT_DEADLINE, NO_POD, WorkerHandle, Workers, WorkersError};

/// How long a bind waits for a queue that is in use. Short, because control does nothing else
/// meanwhile, and tries again every second.
const BIND_DEADLINE: Duration = Duration::from_millis(50);

/// A port that is to be.
#[derive(Clone, Copy, Debug)]
pub struct UplinkPort<'a> {
    /// The worker that will own it.
    pub worker: u16,
    /// Its number.
    pub id: PortId,
    /// The queue.
    pub queue: Queue<'a>,
    /// MTU of the interface in bytes.
    pub mtu: u32,
    /// How the interface runs its XDP program.
    pub attached: AttachMode,
    /// Frames it may hold to receive into.
    pub share: Share,
}

impl Workers {
    /// Binds a socket to a queue of an uplink and hands it to the worker. Returns the socket for
    /// the socket map, and how it exchanges packets.
    ///
    /// # Errors
    /// The queue is in use, or the worker does not answer. The number is free again, or was never
    /// taken, when [`Workers::poll`] says so: the frames have to come back first.
    pub fn add_uplink_port(
        &mut self,
        port: UplinkPort<'_>,
    ) -> Result<(OwnedFd, QueueMode), WorkersError> {
        let UplinkPort { worker, id, share, .. } = port;
        self.homes.insert(id, worker);
        let made = self.lend_and_bind(&port);
        let added = made.and_then(|(fd, socket, mode)| {
            let io = XskPort::new(socket, id.0, UPLINK_RINGS);
            self.enroll(worker, id, io, share, NO_POD)?;
            Ok((fd, mode))
        });
        if added.is_err() {
            // Orders are carried out in turn: whatever was lent has been lent by then.
            self.counters.remove(&id);
            self.reclaim_port(id)?;
        }
        added
    }

    fn lend_and_bind(
        &mut self,
        port: &UplinkPort<'_>,
    ) -> Result<(OwnedFd, Socket, QueueMode), WorkersError> {
        let UplinkPort { worker, id, queue, mtu, attached, share } = *port;
        let features = self.features;
        let handle = &mut self.workers[usize::from(worker)];
        let fill = handle.lend(id, share.frames())?;
        let (socket, mode) = Socket::bind_uplink(UplinkBind {
            queue,
            area: &handle.area,
            sizes: UPLINK_RINGS,
            features,
            mtu,
            attached,
            deadline: BIND_DEADLINE,
            fill: &fill,
        })?;
        let fd = socket.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| WorkersError::Start { worker, source })?;
        Ok((fd, socket, mode))
    }
}

impl WorkerHandle {
    /// Frames of this worker for the socket of a port that is to be.
    fn lend(&mut self, id: PortId, max: u32) -> Result<Vec<u64>, WorkersError> {
        /// Between looks: an order is carried out within a pass, some 10 µs, or a wake-up.
        const LOOK: Duration = Duration::from_micros(20);
        self.order(Command::Lend { id, max })?;
        let start = Instant::now();
        while start.elapsed() < ADOPT_DEADLINE {
            match self.events.pop() {
                Ok(Event::Lent(lent, frames)) if lent == id => return Ok(frames),
                Ok(other) => self.unread.push_back(other),
                Err(_) => std::thread::sleep(LOOK),
            }
        }
        Err(WorkersError::Busy(self.id))
    }
}
