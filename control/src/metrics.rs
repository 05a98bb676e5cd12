//! The metrics page: a [`Report`] in Prometheus' text format, version 0.0.4.
//!
//! Rendering is pure: what a scrape sees is what the listings show, under the same words. Units are
//! Prometheus' base units, bytes and seconds. A drop reason has a series from its first drop on:
//! fifty reasons times both directions of every pod would be ten thousand series of zeros.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use crate::report::{
    Direction, DirectionRow, FallbackAction, FallbackCounts, PodRow, PodState, PortKind, PortRow,
    Report, Status, WorkerRow,
};

mod flows;
mod http;
mod limits;
#[cfg(test)]
mod tests;
mod uplinks;

pub use http::{CONNECTIONS_MAX, MetricsError, MetricsServer, Page, REQUEST_BYTES_MAX, Response};

/// Upper bounds of the histogram of CNI operations, in seconds. An ADD takes some milliseconds; a
/// runtime gives up after minutes, and what takes longer than 10 s is equally bad news.
pub const BOUNDS_S: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// A CNI operation whose time is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Attach a pod.
    Add,
    /// Detach a pod.
    Del,
    /// Compare a pod with reality.
    Check,
}

impl Operation {
    /// Every operation, in the order of the enum.
    pub const ALL: [Operation; 3] = [Operation::Add, Operation::Del, Operation::Check];

    /// The value of the label `operation`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Operation::Add => "add",
            Operation::Del => "del",
            Operation::Check => "check",
        }
    }
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Success,
    /// With an error reply.
    Failure,
}

/// How long operations of one kind took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OpTime {
    /// Operations answered, errors included.
    pub count: u64,
    /// Those answered with an error.
    pub errors: u64,
    /// Time of all of them together, in seconds.
    pub sum_s: f64,
    /// Operations that took no longer than the bound of the same index in [`BOUNDS_S`], and longer
    /// than the bound before it.
    pub buckets: [u64; BOUNDS_S.len()],
}

/// How long CNI operations took, from the request's last byte to the reply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OpTimes {
    times: [OpTime; Operation::ALL.len()],
}

impl OpTimes {
    /// Takes note of one operation.
    pub fn record(&mut self, operation: Operation, took: Duration, outcome: Outcome) {
        let time = &mut self.times[operation as usize];
        let took_s = took.as_secs_f64();
        time.count += 1;
        time.sum_s += took_s;
        if outcome == Outcome::Failure {
            time.errors += 1;
        }
        // What is above the last bound is in `count` alone: the bucket `+Inf`.
        if let Some(bucket) = BOUNDS_S.iter().position(|bound| took_s <= *bound) {
            time.buckets[bucket] += 1;
        }
    }

    /// The operations of one kind.
    #[must_use]
    pub fn get(&self, operation: Operation) -> &OpTime {
        &self.times[operation as usize]
    }
}

/// Renders the page.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut page = Exposition::default();
    page.daemon(&report.status);
    page.workers(&report.status.workers);
    page.flows(&report.status.workers, report.status.guard_dropped);
    page.host_ports(report.status.host_ports);
    page.pod_states(&report.pods);
    page.pod_traffic(&report.pods);
    page.limits(&report.limits);
    page.node_traffic(&report.ports);
    page.uplinks(&report.status, &report.ports);
    page.fallback(&report.status.fallback_packets);
    page.operations(&report.operations);
    page.text
}

/// Label names and values of one sample.
type Labels<'a> = [(&'static str, &'a str)];

/// One figure of a direction: the metric's middle name, its help, and how to read it.
type Figure = (&'static str, &'static str, fn(&DirectionRow) -> u64);

const FIGURES: [Figure; 4] = [
    ("packets", "Units as the port saw them: a super-packet is one.", |row| row.packets),
    ("bytes", "Bytes of these units, Ethernet header included.", |row| row.bytes),
    ("wire_packets", "Packets as on a wire: a super-packet is its segments.", |row| {
        row.wire_packets
    }),
    ("wire_bytes", "Bytes as on a wire, every segment with its own headers.", |row| row.wire_bytes),
];

/// The text as it grows. A metric's `# HELP` and `# TYPE` stand before its samples, and all
/// samples of a metric stand together (exposition formats, "Grouping and sorting").
#[derive(Default)]
struct Exposition {
    text: String,
}

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &Labels<'_>, value: impl Display) {
        self.text.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            escape(value, &mut self.text);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        self.line(format_args!(" {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a String takes every write");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn daemon(&mut self, status: &Status) {
        self.family("viaduct_info", "gauge", "Release and port mode of the daemon; always 1.");
        let labels = [("version", status.version.as_str()), ("port_mode", status.port_mode.name())];
        self.sample("viaduct_info", &labels, 1);
        let ready = u8::from(status.ready);
        self.single("viaduct_ready", "gauge", "1 when an ADD would be served.", ready);
        let help = "Seconds since the daemon started.";
        self.single("viaduct_uptime_seconds", "gauge", help, status.uptime_s);
        let help = "Generation of the newest tables.";
        self.single("viaduct_generation", "gauge", help, status.generation);
        self.single("viaduct_routes", "gauge", "Routes of the newest tables.", status.routes);
    }

    fn per_worker<V: Display>(
        &mut self,
        workers: &[WorkerRow],
        (name, help): (&str, &str),
        value: impl Fn(&WorkerRow) -> V,
    ) {
        self.family(name, "gauge", help);
        for worker in workers {
            self.sample(name, &[("worker", &worker.id.to_string())], value(worker));
        }
    }

    fn workers(&mut self, workers: &[WorkerRow]) {
        let metric = (
            "viaduct_worker_busy_ratio",
            "Share of the worker's time spent in passes that moved packets.",
        );
        self.per_worker(workers, metric, |worker| worker.busy_ratio);
        let metric = ("viaduct_worker_ports", "Ports the worker owns.");
        self.per_worker(workers, metric, |worker| worker.ports);
        let metric =
            ("viaduct_worker_generation", "Generation of the tables the worker forwards by.");
        self.per_worker(workers, metric, |worker| worker.generation);
        let metric = ("viaduct_worker_hugepages", "1 when hugepages back the worker's memory.");
        self.per_worker(workers, metric, |worker| u8::from(worker.hugepages));
        let metric = ("viaduct_worker_frames_owned", "All frames of the worker.");
        self.per_worker(workers, metric, |worker| worker.frames.total);
        self.worker_laws(workers);
    }

    /// Both laws: their terms, and whether they hold.
    fn worker_laws(&mut self, workers: &[WorkerRow]) {
        let name = "viaduct_worker_frames";
        self.family(name, "gauge", "Frames of the worker by place; they add up to frames_owned.");
        for worker in workers {
            let frames = &worker.frames;
            let places = [
                ("free", frames.free),
                ("rx", frames.rx),
                ("tx", frames.tx),
                ("crossing", frames.crossing),
                ("held", frames.held),
            ];
            for (place, count) in places {
                self.sample(name, &[("worker", &worker.id.to_string()), ("place", place)], count);
            }
        }
        let name = "viaduct_worker_packets_total";
        let help = "Packets of the worker by event: received, generated and crossed_in add up to \
                    merged, sent, dropped, crossed_out and held_packets.";
        self.family(name, "counter", help);
        for worker in workers {
            let packets = &worker.packets;
            let events = [
                ("received", packets.received),
                ("generated", packets.generated),
                ("crossed_in", packets.crossed_in),
                ("merged", packets.merged),
                ("sent", packets.sent),
                ("dropped", packets.dropped),
                ("crossed_out", packets.crossed_out),
            ];
            for (event, count) in events {
                self.sample(name, &[("worker", &worker.id.to_string()), ("event", event)], count);
            }
        }
        let name = "viaduct_worker_held_packets";
        self.family(name, "gauge", "Packets of the worker held for others to join them.");
        for worker in workers {
            let id = worker.id.to_string();
            self.sample(name, &[("worker", &id)], worker.packets.held);
        }
        let name = "viaduct_worker_drops_total";
        let help = "Dropped packets of the worker that no port counts: theirs had gone.";
        self.family(name, "counter", help);
        for worker in workers {
            let labels = [("worker", &*worker.id.to_string()), ("reason", "port_down")];
            self.sample(name, &labels, worker.packets.port_down);
        }
        let name = "viaduct_conserved";
        self.family(
            name,
            "gauge",
            "1 while no frame and no packet of the worker is lost track of.",
        );
        for worker in workers {
            let laws =
                [("frames", worker.frames.conserved()), ("packets", worker.packets.conserved())];
            for (law, holds) in laws {
                let labels = [("worker", &*worker.id.to_string()), ("law", law)];
                self.sample(name, &labels, u8::from(holds));
            }
        }
    }

    fn pod_states(&mut self, pods: &[PodRow]) {
        let name = "viaduct_pods";
        let help = "Pods by who forwards for them, and by what happens when no worker does.";
        self.family(name, "gauge", help);
        for state in [PodState::Userspace, PodState::Fallback] {
            for action in [FallbackAction::Pass, FallbackAction::Drop] {
                let count = pods.iter().filter(|pod| pod.state == state && pod.fallback == action);
                let labels = [("state", state.name()), ("fallback", action.name())];
                self.sample(name, &labels, count.count());
            }
        }
    }

    fn pod_traffic(&mut self, pods: &[PodRow]) {
        let sources: Vec<Source<'_>> = pods.iter().map(Source::pod).collect();
        self.traffic("viaduct_pod", &sources);
    }

    /// Ports of pods and uplinks are left out: pods and uplinks have metrics of their own.
    fn node_traffic(&mut self, ports: &[PortRow]) {
        let nodes = ports.iter().filter(|port| port.kind == PortKind::Node);
        let sources: Vec<Source<'_>> = nodes.map(Source::node).collect();
        self.traffic("viaduct_node", &sources);
    }

    fn traffic(&mut self, prefix: &str, sources: &[Source<'_>]) {
        for (figure, help, read) in FIGURES {
            let name = format!("{prefix}_{figure}_total");
            self.family(&name, "counter", help);
            for source in sources {
                for (direction, row) in source.directions {
                    let labels = source.labels_and(&[("direction", direction.name())]);
                    self.sample(&name, &labels, read(row));
                }
            }
        }
        let name = format!("{prefix}_drops_total");
        self.family(&name, "counter", "Packets not forwarded, by reason.");
        for source in sources {
            for (direction, row) in source.directions {
                for (reason, count) in &row.drops {
                    let labels =
                        source.labels_and(&[("direction", direction.name()), ("reason", reason)]);
                    self.sample(&name, &labels, count);
                }
            }
        }
    }

    fn fallback(&mut self, counts: &FallbackCounts) {
        let name = "viaduct_fallback_packets_total";
        let help = "Packets that no worker took, by what the XDP program did: passed and \
                    unknown_port went to the kernel, all others were dropped.";
        self.family(name, "counter", help);
        for (outcome, count) in counts.outcomes() {
            self.sample(name, &[("outcome", outcome)], count);
        }
    }

    fn operations(&mut self, operations: &OpTimes) {
        let name = "viaduct_cni_operation_seconds";
        self.family(name, "histogram", "Time of CNI operations in the daemon.");
        let bucket = format!("{name}_bucket");
        for operation in Operation::ALL {
            let time = operations.get(operation);
            let labels = [("operation", operation.name())];
            let mut below = 0;
            for (bound, count) in BOUNDS_S.iter().zip(time.buckets) {
                below += count;
                self.sample(&bucket, &[labels[0], ("le", &bound.to_string())], below);
            }
            self.sample(&bucket, &[labels[0], ("le", "+Inf")], time.count);
            self.sample(&format!("{name}_sum"), &labels, time.sum_s);
            self.sample(&format!("{name}_count"), &labels, time.count);
        }
        let name = "viaduct_cni_operation_errors_total";
        self.family(name, "counter", "CNI operations answered with an error.");
        for operation in Operation::ALL {
            let labels = [("operation", operation.name())];
            self.sample(name, &labels, operations.get(operation).errors);
        }
    }
}

/// Whose traffic it is, and both directions of it.
struct Source<'a> {
    labels: Vec<(&'static str, &'a str)>,
    directions: [(Direction, &'a DirectionRow); 2],
}

impl<'a> Source<'a> {
    /// The labels hold what CNI names an attachment by, so no two pods share a series.
    fn pod(pod: &'a PodRow) -> Source<'a> {
        Source {
            labels: vec![
                ("network", &pod.network),
                ("namespace", &pod.namespace),
                ("pod", &pod.name),
                ("container_id", &pod.container_id),
                ("ifname", &pod.ifname),
            ],
            directions: [(Direction::FromPod, &pod.from_pod), (Direction::ToPod, &pod.to_pod)],
        }
    }

    fn node(port: &'a PortRow) -> Source<'a> {
        Source {
            labels: vec![("device", &port.device)],
            directions: [(Direction::FromPod, &port.from_pod), (Direction::ToPod, &port.to_pod)],
        }
    }

    fn labels_and<'b>(&'b self, more: &[(&'static str, &'b str)]) -> Vec<(&'static str, &'b str)> {
        self.labels.iter().chain(more).copied().collect()
    }
}

/// Escapes a label's value: backslash, quote and line feed (exposition formats, "Comments, help
/// text, and type information").
fn escape(value: &str, text: &mut String) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}
