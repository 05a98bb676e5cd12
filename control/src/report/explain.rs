//! `viaduct explain`: what becomes of one packet, stage by stage.

use serde::{Deserialize, Serialize};

/// TCP flags (RFC 9293 §3.1): their names here, and their bits.
pub const TCP_FLAGS: [(&str, u8); 6] =
    [("fin", 0x01), ("syn", 0x02), ("rst", 0x04), ("psh", 0x08), ("ack", 0x10), ("urg", 0x20)];

/// What becomes of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// Where it comes in: `CONTAINER/IFNAME`, `node`, or an uplink.
    pub from: String,
    /// What it is.
    pub packet: String,
    /// `forwarded`, `dropped`, or `kernel`: no worker gets it, the node's kernel does.
    pub verdict: String,
    /// Of a dropped packet the name of the reason, as in `viaduct drops`.
    pub reason: Option<String>,
    /// What its sender is told, if anything.
    pub answer: Option<String>,
    /// Every stage that it came to, in order. The last one is where it was dropped, if it was.
    pub stages: Vec<StageRow>,
}

/// What one stage makes of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageRow {
    /// `xdp`, `parse`, `source`, `flow`, `host_port`, `route`, `hop_limit`, `size`,
    /// `limit`, `deliver`.
    pub stage: String,
    /// A word; `drop` where the packet ends.
    pub verdict: String,
    /// A sentence.
    pub detail: String,
}
