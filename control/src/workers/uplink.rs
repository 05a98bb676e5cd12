//! Ports on the queues of uplinks. Drivers want the fill ring full before the bind, so a worker
//! lends frames for a socket that it does not have yet.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use dataplane::port::PortId;
use dataplane::worker::{Command, Event};
use dataplane::xsk::port::{UPLINK_RINGS, UPLINK_SHARE, XskPort};
use dataplane::xsk::program::AttachMode;
use dataplane::xsk::socket::{Queue, Socket};
use dataplane::xsk::uplink::{QueueMode, UplinkBind};

use super::{ADOPT_DEADLINE, BIND_DEADLINE, WorkerHandle, Workers, WorkersError};

impl Workers {
    /// Binds a socket to a queue of an uplink of `mtu` bytes, whose XDP program runs as `attached`,
    /// and hands it to `worker`. Returns the socket for the socket map, and how it exchanges
    /// packets.
    pub fn add_uplink_port(
        &mut self,
        worker: u16,
        id: PortId,
        queue: Queue<'_>,
        mtu: u32,
        attached: AttachMode,
    ) -> Result<(OwnedFd, QueueMode), WorkersError> {
        let handle = &mut self.workers[usize::from(worker)];
        let fill = handle.lend(id, UPLINK_SHARE.frames())?;
        self.homes.insert(id, worker);
        let bound = Socket::bind_uplink(UplinkBind {
            queue,
            area: &handle.area,
            sizes: UPLINK_RINGS,
            features: self.features,
            mtu,
            attached,
            deadline: BIND_DEADLINE,
            fill: &fill,
        });
        let (socket, mode) = match bound {
            Ok(bound) => bound,
            Err(error) => {
                self.reclaim_port(id)?;
                return Err(error.into());
            }
        };
        let port = XskPort::new(socket, id.0, UPLINK_RINGS);
        let fd = port.fd().try_clone_to_owned();
        let fd = fd.map_err(|source| WorkersError::Start { worker, source })?;
        self.enroll(worker, id, port, UPLINK_SHARE)?;
        Ok((fd, mode))
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
