//! What Viaduct tells about itself: the rows of the listings, with the keys that scripts rely on.
//!
//! A row is made by the daemon, travels as JSON, and is read again by `viaduct` to draw a table.
//! Keys are added, never renamed or removed; a reader fills in what its daemon does not know yet.

use crate::metrics::OpTimes;

mod drops;
mod explain;
mod limits;
mod nat;
mod pods;
mod ports;
mod status;
#[cfg(test)]
pub(crate) mod tests;
mod traffic;
mod workers;

pub use drops::{DropKey, DropRow, FallbackCounts, drop_rows, port_down_row};
pub use explain::{Explanation, StageRow, TCP_FLAGS};
pub use limits::{LimitDirection, LimitKey, LimitRow};
pub use nat::{FlowRow, FlowsRow, HostPortRow};
pub use pods::{FallbackAction, PodRow, PodState, pod_name};
pub use ports::{HopRow, PortKind, PortRow, RouteRow};
pub use status::{Features, PortMode, Status, UplinkRow};
pub use traffic::{Direction, DirectionRow};
pub use workers::{FramesRow, PacketsRow, WorkerRow};

/// Everything the metrics are rendered from.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The daemon and its workers.
    pub status: Status,
    /// Every attachment.
    pub pods: Vec<PodRow>,
    /// Every port.
    pub ports: Vec<PortRow>,
    /// Every limit.
    pub limits: Vec<LimitRow>,
    /// How long CNI operations took.
    pub operations: OpTimes,
}
