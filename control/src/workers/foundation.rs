//! What a worker stands on: its memory, its bell, and the socket on its queue of the node port,
//! with which all its ports share that memory.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use dataplane::crossing::Bell;
use dataplane::frame::FramePool;
use dataplane::xsk::area::Area;
use dataplane::xsk::port::{NODE_RINGS, NODE_SHARE, XskPort};
use dataplane::xsk::socket::{Memory, Queue, RingSizes, Socket, SocketFeatures, prefill};

use super::{BIND_DEADLINE, NODE_SLOT, WorkersError};

/// Rings of a socket that only anchors a worker's memory.
const ANCHOR_RINGS: RingSizes = RingSizes { fill: 2, completion: 2, rx: 2, tx: 2 };

/// What exists of a worker before its thread.
#[derive(Debug)]
pub struct Foundation {
    pub(super) core: usize,
    pub(super) pool: FramePool,
    pub(super) bell: Arc<Bell>,
    pub(super) anchor: OwnedFd,
    pub(super) anchor_socket: Option<Socket>,
    pub(super) node_port: Option<XskPort>,
}

impl Foundation {
    pub(super) fn lay(
        queue: Queue<'_>,
        core: usize,
        frames: u32,
        features: SocketFeatures,
    ) -> Result<Foundation, WorkersError> {
        let worker = queue.queue as u16;
        let start = |source| WorkersError::Start { worker, source };
        let area =
            Area::map(frames).map_err(|source| WorkersError::Memory { worker, frames, source })?;
        let area = Arc::new(area);
        let mut pool = FramePool::new(area.clone());
        let is_node = worker == 0;
        let rings = if is_node { NODE_RINGS } else { ANCHOR_RINGS };
        let socket =
            Socket::bind(queue, &area, Memory::Own, rings, features, BIND_DEADLINE, |fill| {
                if is_node {
                    prefill(fill, &mut pool, NODE_SLOT, NODE_SHARE.frames());
                }
            })?;
        let anchor = socket.fd().try_clone_to_owned().map_err(start)?;
        let (node_port, anchor_socket) = if is_node {
            (Some(XskPort::new(socket, NODE_SLOT, rings)), None)
        } else {
            (None, Some(socket))
        };
        let bell = Arc::new(Bell::new().map_err(start)?);
        Ok(Foundation { core, pool, bell, anchor, anchor_socket, node_port })
    }
}
