//! The uplinks' part of the metrics page.

use super::{Exposition, Source};
use crate::report::{Direction, PortKind, PortRow, Status};

impl Exposition {
    /// What the uplinks are, what they carried, and what they left to the kernel.
    pub(super) fn uplinks(&mut self, status: &Status, ports: &[PortRow]) {
        if status.uplinks.is_empty() {
            return;
        }
        let name = "viaduct_uplink_queues";
        self.family(name, "gauge", "Queues of an uplink that workers own, by how they exchange.");
        for uplink in &status.uplinks {
            let copied = uplink.queues - uplink.zero_copy;
            for (mode, queues) in [("zero_copy", uplink.zero_copy), ("copy", copied)] {
                self.sample(name, &[("device", &uplink.device), ("mode", mode)], queues);
            }
        }
        let name = "viaduct_uplink_passed_packets_total";
        self.family(name, "counter", "Packets that uplinks left to the kernel, by why.");
        for (why, count) in &status.uplink_passed {
            self.sample(name, &[("why", why)], count);
        }
        let ports: Vec<&PortRow> =
            ports.iter().filter(|port| port.kind == PortKind::Uplink).collect();
        let queues: Vec<String> = ports.iter().map(|port| port.queue.to_string()).collect();
        let sources: Vec<Source<'_>> =
            ports.iter().zip(&queues).map(|(port, queue)| Source::uplink(port, queue)).collect();
        self.traffic("viaduct_uplink", &sources);
    }
}

impl<'a> Source<'a> {
    fn uplink(port: &'a PortRow, queue: &'a str) -> Source<'a> {
        Source {
            labels: vec![("device", &port.device), ("queue", queue)],
            directions: [(Direction::FromPod, &port.from_pod), (Direction::ToPod, &port.to_pod)],
        }
    }
}
