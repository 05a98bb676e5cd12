//! The flows that workers follow: made from what earlier daemons left, and listed from the workers'
//! memory while they work.

use std::collections::HashSet;
use std::sync::Arc;

use cni_bridge::protocol::{FlowFilter, Reply};
use dataplane::conntrack::{Endpoint, Flow, FlowTable, HashSeed, TableParts};
use dataplane::worker::monotonic_ns;

use super::Engine;
use super::carried::Found;
use super::compile::{flow_generation, port_of};
use crate::flows::{FlowFiles, boot_words};
use crate::journal::boot_id;
use crate::report::FlowRow;
use crate::server::sieved_page;
use crate::workers::{WorkerFlows, random};

/// Places of flows looked at for one page: some 5 ms of the control thread, in which an ADD waits.
const LOOKS_PER_PAGE: usize = 1 << 16;

/// Ports that a flow gets as its source where its client's is taken: those that are nobody's by
/// right (RFC 6335 section 6; RFC 4787 REQ-3).
pub(super) const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 1024..=65535;

/// A place of a flow: its worker, and the number in the worker's memory.
type Place = (u16, u32);

/// Flows for the workers to begin with.
pub(super) struct Restored {
    /// By worker.
    pub(super) tables: Vec<WorkerFlows>,
    /// To be settled when the workers have them.
    pub(super) files: FlowFiles,
    /// Numbers of those of the kernel that are among them.
    pub(super) taken: HashSet<u32>,
}

impl Engine {
    /// A table for each worker, with what earlier daemons of this boot have left of the flows of
    /// its pods, and of what the kernel has carried since.
    pub(super) fn restore_flows(&mut self) -> anyhow::Result<Restored> {
        let workers = self.state.limits().workers;
        let mut files = FlowFiles::open(&self.config.daemon.state_dir, boot_words(&boot_id()?))?;
        let room = self.config.nat.flows.div_ceil(workers.into());
        let carried = self.carried_flows();
        let mut tables = Vec::with_capacity(workers.into());
        let now_ns = monotonic_ns();
        for worker in 0..workers {
            let counters = Arc::default();
            let mut table = FlowTable::new(TableParts {
                records: files.create(worker, room)?,
                flows_per_owner: self.config.nat.flows_per_pod,
                source_ports: SOURCE_PORTS,
                seed: HashSeed([random()?, random()?]),
                counters: Arc::clone(&counters),
            });
            for pod in self.state.pods().filter(|pod| pod.worker == worker) {
                table.admit_owner(port_of(pod), flow_generation(pod));
            }
            let restored = files.left().iter().map(|left| table.restore(left, now_ns).restored);
            let flows: u32 = restored.sum();
            for found in carried.iter().filter(|found| found.worker == worker) {
                // What is known already goes on as it is known.
                let _known = table.take_over(&found.carried, now_ns);
            }
            tracing::debug!(worker, flows, "flows go on");
            tables.push(WorkerFlows { table, counters });
        }
        let taken = carried.iter().map(Found::id).collect();
        Ok(Restored { tables, files, taken })
    }

    /// The answer to `viaduct flows`, from the flow behind `after` on.
    #[must_use]
    pub fn list_flows(&self, filter: &FlowFilter, after: Option<&str>) -> Reply {
        let now_s = monotonic_s();
        sieved_page(after, LOOKS_PER_PAGE, |after: Option<Place>| {
            let (first, start) = after.map_or((0, 0), |(worker, place)| (worker, place + 1));
            let workers = self.workers.handles().iter().skip(first.into());
            workers.flat_map(move |worker| {
                let start = if worker.id == first { start } else { 0 };
                worker.flows.places(start).map(move |(place, flow)| {
                    let row = flow.and_then(|flow| self.flow_row(&flow, worker.id, now_s, filter));
                    ((worker.id, place), row)
                })
            })
        })
    }

    /// The row of a flow, if it is asked for. A pod's DEL ends its flows at once, though their
    /// memory is freed later: those of another generation are not there any more.
    fn flow_row(
        &self,
        flow: &Flow,
        worker: u16,
        now_s: u32,
        filter: &FlowFilter,
    ) -> Option<FlowRow> {
        let pod = self.pod_at(flow.owner)?;
        let Flow { original, translated, .. } = flow;
        let ends = [original.src, original.dst, translated.src, translated.dst];
        let is_asked = flow_generation(pod) == flow.generation
            && filter.pod.as_ref().is_none_or(|text| pod.is_called(text))
            && is_met(filter, &ends);
        let (container_id, ifname) = (&pod.attachment.container_id, &pod.attachment.ifname);
        is_asked.then(|| FlowRow::new(flow, worker, now_s, container_id, ifname))
    }
}

/// Whether a flow between these ends is asked for, whosever it is: address and port are those of
/// one end.
fn is_met(filter: &FlowFilter, ends: &[Endpoint]) -> bool {
    let FlowFilter { pod: _, address, port } = filter;
    let is_end = |end: &Endpoint| {
        address.is_none_or(|address| end.address == address)
            && port.is_none_or(|port| end.port == port)
    };
    ends.iter().any(is_end)
}

/// The second that flows are dated by, see [`Flow::seen_s`].
fn monotonic_s() -> u32 {
    u32::try_from(monotonic_ns() / 1_000_000_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_flow_meets_address_and_port_at_one_end() {
        let ends = [("198.51.100.9", 40_000), ("192.0.2.1", 8080), ("10.244.1.5", 80)]
            .map(|(text, port)| Endpoint { address: text.parse::<IpAddr>().unwrap(), port });
        let meets = |address: Option<&str>, port| {
            let address = address.map(|text| text.parse().expect("an address"));
            is_met(&FlowFilter { pod: None, address, port }, &ends)
        };
        assert!(meets(None, None));
        assert!(meets(Some("192.0.2.1"), Some(8080)));
        assert!(meets(None, Some(40_000)) && meets(Some("10.244.1.5"), None));
        assert!(!meets(Some("192.0.2.1"), Some(80)), "of two ends");
        assert!(!meets(Some("192.0.2.2"), None) && !meets(None, Some(81)));
    }
}
