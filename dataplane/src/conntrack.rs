//! Connection tracking: what a worker remembers of the flows of its pods that need it, because
//! they are translated, or because only the node's kernel knows how to answer them.
//!
//! ```text
//! packet ─► FlowKey ── lookup ─► Found { flow, direction } ── observe ─► state, timeout
//!              │                   │
//!              └─ open (first) ────┴─ sent ─► the FlowKey that the packet leaves with (crate::nat)
//! ```
//!
//! One table per worker, of fixed size; no other thread writes to it. A flow is one record that is
//! found by two keys: that of its original packets as they arrive, and that of the replies. What
//! the pod and its client see follows from these two keys alone.
//!
//! Room is shared by rules: a pod has a quota; a flow that is not confirmed by both of its ends
//! gives way first, and among those the longest idle one of the pod that has most of them; what is
//! established is not evicted unless it was idle for minutes.

mod index;
mod key;
mod queues;
mod record;
mod sctp;
mod state;
mod table;
mod tcp;

use crate::counters::Counter;
use crate::port::PortId;

pub(crate) use key::query_ports;
pub use key::{Endpoint, FlowKey, HashSeed, Transport};
pub use record::{Flow, LayoutError, Records};
pub use sctp::SctpChunk;
pub use state::{FlowState, Signal};
pub use table::{FlowTable, Found, Restored, TableParts};
pub use tcp::TcpSegment;

/// Direction of a packet within its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// That of the first packet: towards the pod that serves.
    Original = 0,
    /// That of the answers.
    Reply = 1,
}

impl Direction {
    /// The other one.
    #[must_use]
    pub fn opposite(self) -> Direction {
        match self {
            Direction::Original => Direction::Reply,
            Direction::Reply => Direction::Original,
        }
    }
}

/// Which way the packets of the pod leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Replies {
    /// By the route to their destination.
    ByRoute,
    /// By the node port: the node's kernel has sent the original packets, perhaps translated, and
    /// must see the answers.
    ByNode,
}

/// The source of original packets as the pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The client's address.
    Client,
    /// The address that the client has asked, so that the answer comes back here: for a pod that
    /// asks itself, and wherever the client's address shall be hidden.
    Asked,
}

/// A flow to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewFlow {
    /// The port of the pod that serves, and on whose home worker this is.
    pub owner: PortId,
    /// The first packet as it has arrived.
    pub original: FlowKey,
    /// What shall get it: an address and port of the pod. Of the client's family.
    pub serving: Endpoint,
    /// What the pod shall see as its source. The client's port is kept unless another flow has it
    /// already.
    pub source: Source,
    /// Which way the pod's packets shall leave.
    pub replies: Replies,
}

/// A flow that the node's kernel has carried while no worker was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The port of the pod that serves.
    pub owner: PortId,
    /// Its first packet as it arrived.
    pub original: FlowKey,
    /// The same as the pod got it.
    pub translated: FlowKey,
    /// Which way the pod's packets shall leave.
    pub replies: Replies,
    /// How far it has come.
    pub stage: Stage,
}

/// How far a flow has come that somebody else has followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nobody has answered yet.
    Unanswered,
    /// There were packets both ways.
    Answered,
    /// TCP and SCTP: one of its ends has closed it, or both.
    Closing,
}

/// Why a flow is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The first packet is one that only a flow that exists can have: RST, SYN and ACK, an answer.
    #[error("the packet belongs to a flow that is not there; drop it")]
    NoOpening,
    /// The owner has not been admitted, or is retired.
    #[error("the pod of the flow is not served by this worker; drop the packet")]
    NoOwner,
    /// There is a flow with this key.
    #[error("the flow is open already; look it up first")]
    Exists,
    /// Other flows have every source port that was tried.
    #[error("no source port is left for the flow; drop the packet, its sender tries again")]
    NoPort,
    /// The pod has as many flows as it may, all established.
    #[error("the pod has its full number of flows; close some, or raise flows in [nat]")]
    Quota,
    /// The table is full, and nothing in it may give way.
    #[error("the table of flows is full; raise flows in [nat]")]
    Full,
}

/// What happened in a table. Its worker writes, anybody reads.
#[derive(Debug, Default)]
pub struct FlowCounters {
    /// Flows that there are now, without those of pods that are gone.
    pub flows: Counter,
    /// Flows opened.
    pub opened: Counter,
    /// Flows that were idle for too long.
    pub expired: Counter,
    /// Flows that gave way to others.
    pub evicted: Counter,
    /// Flows not opened for [`OpenError::Quota`].
    pub refused_quota: Counter,
    /// Flows not opened for [`OpenError::Full`].
    pub refused_full: Counter,
    /// Flows not opened for [`OpenError::NoPort`].
    pub refused_port: Counter,
}
