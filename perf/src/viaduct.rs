//! Viaduct as an arm: a node with two pods, attached by the real plugin.

use std::collections::BTreeMap;

use anyhow::Result;
use e2e::daemon::{Node, Setup};
use e2e::netns::wait_until;
use e2e::pod::Pod;
use serde_json::Value;

use crate::lane::Lane;
use crate::testpmd::LANE_DEADLINE;

/// A node with two pods.
#[derive(Debug)]
pub struct Viaduct {
    node: Node,
    pods: [Pod; 2],
}

/// What workers have counted for the two pods so far.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// Bytes on a wire that workers delivered to the server.
    pub wire_bytes: u64,
    /// Packets not forwarded, by `pod direction reason`, in both directions of both pods.
    pub drops: BTreeMap<String, u64>,
}

impl Viaduct {
    /// Builds the lane; returns when it carries packets.
    ///
    /// # Errors
    /// When a step fails.
    pub fn build(setup: &Setup) -> Result<Viaduct> {
        let node = Node::start(setup.clone())?;
        let pods = [node.add_pod("perf-client")?, node.add_pod("perf-server")?];
        let viaduct = Viaduct { node, pods };
        wait_until("viaductd forwards", LANE_DEADLINE, || viaduct.lane().answers())?;
        Ok(viaduct)
    }

    /// From the first pod to the second.
    pub fn lane(&self) -> Lane<'_> {
        let [client, server] = &self.pods;
        Lane {
            arm: "viaduct",
            client: &client.namespace,
            server: &server.namespace,
            address: server.v4,
        }
    }

    /// Reads the workers' counters.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn counted(&self) -> Result<Counted> {
        let mut counted = Counted::default();
        for (pod, name) in self.pods.iter().zip(["client", "server"]) {
            let row = self.node.pod_row(pod)?;
            for direction in ["from_pod", "to_pod"] {
                counted.add_drops(&format!("{name} {direction}"), &row[direction]["drops"]);
            }
            // The server is the last one.
            counted.wire_bytes = row["to_pod"]["wire_bytes"].as_u64().unwrap_or(0);
        }
        Ok(counted)
    }
}

impl Counted {
    fn add_drops(&mut self, place: &str, drops: &Value) {
        for (reason, count) in drops.as_object().into_iter().flatten() {
            let count = count.as_u64().unwrap_or(0);
            self.drops.insert(format!("{place} {reason}"), count);
        }
    }

    /// What was dropped since `before`, only reasons that happened.
    pub fn drops_since(&self, before: &Counted) -> BTreeMap<String, u64> {
        let earlier = |reason: &String| before.drops.get(reason).copied().unwrap_or(0);
        let fresh = self.drops.iter().map(|(reason, n)| (reason.clone(), n - earlier(reason)));
        fresh.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn drops_since_a_look_are_the_new_ones() {
        let mut before = Counted::default();
        before.add_drops("server to_pod", &json!({"tx_ring_full": 3, "no_pod": 1}));
        let mut after = Counted::default();
        after.add_drops("server to_pod", &json!({"tx_ring_full": 5, "no_pod": 1}));
        after.add_drops("client from_pod", &json!({"no_pod": 2}));
        let drops: Vec<(String, u64)> = after.drops_since(&before).into_iter().collect();
        let expected = [
            ("client from_pod no_pod".to_owned(), 2),
            ("server to_pod tx_ring_full".to_owned(), 2),
        ];
        assert_eq!(drops, expected);
    }
}
