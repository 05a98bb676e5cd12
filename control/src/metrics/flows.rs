//! The flows' part of the metrics page.

use super::Exposition;
use crate::report::{FlowsRow, WorkerRow};

/// A counter of flows: the value of its label, and how to read it.
type Event = (&'static str, fn(&FlowsRow) -> u64);

const EVENTS: [Event; 3] = [
    ("opened", |flows| flows.opened),
    ("expired", |flows| flows.expired),
    ("evicted", |flows| flows.evicted),
];

const REFUSALS: [Event; 3] = [
    ("quota", |flows| flows.refused_quota),
    ("full", |flows| flows.refused_full),
    ("no_port", |flows| flows.refused_port),
];

impl Exposition {
    /// What workers remember of connections, and what they could not.
    pub(super) fn flows(&mut self, workers: &[WorkerRow], guard_drops: Option<u64>) {
        let metric = ("viaduct_flows", "Flows that the worker follows.");
        self.per_worker(workers, metric, |worker| worker.flows.entries);
        let metric = ("viaduct_flows_room", "Flows that the worker has room for.");
        self.per_worker(workers, metric, |worker| worker.flows.room);
        let help =
            "Flows of the worker that were opened, idle for too long, or gave way to others.";
        self.flow_events(workers, ("viaduct_flow_events_total", help), ("event", &EVENTS));
        let help = "Flows that the worker did not open, by what there was too little of.";
        self.flow_events(workers, ("viaduct_flows_refused_total", help), ("why", &REFUSALS));
        let name = "viaduct_icmp_errors_translated_total";
        self.family(name, "counter", "ICMP errors whose quoted packet the worker translated.");
        for worker in workers {
            let id = worker.id.to_string();
            self.sample(name, &[("worker", &id)], worker.flows.icmp_errors);
        }
        if let Some(drops) = guard_drops {
            let name = "viaduct_guard_dropped_packets_total";
            let help = "Packets of pods' mapped ports that the kernel dropped while no worker was \
                        there, because they would have left untranslated.";
            self.single(name, "counter", help, drops);
        }
    }

    /// How many ports of the node lead to pods.
    pub(super) fn host_ports(&mut self, host_ports: u32) {
        let help = "Ports of the node that lead to pods, by protocol and address.";
        self.single("viaduct_host_ports", "gauge", help, host_ports);
    }

    fn flow_events(
        &mut self,
        workers: &[WorkerRow],
        (name, help): (&str, &str),
        (label, events): (&'static str, &[Event]),
    ) {
        self.family(name, "counter", help);
        for worker in workers {
            let id = worker.id.to_string();
            for (value, read) in events {
                self.sample(name, &[("worker", &id), (label, value)], read(&worker.flows));
            }
        }
    }
}
