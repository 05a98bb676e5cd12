//! `viaduct-perf idle`: CPU that a node takes when no pod sends anything.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::daemon::{Node, Setup};
use e2e::pod::Pod;
use serde::Serialize;
use serde_json::json;

use crate::interrupt;
use crate::machine::thread_times;
use crate::report::{Bound, Report, Table, Target, progress};

/// After the last ADD, until pods' kernels have sent what they send by themselves (router
/// solicitations, multicast reports).
const SETTLE: Duration = Duration::from_secs(8);

/// An operator should not find the daemon in `top`.
const TARGET_PERCENT: f64 = 2.0;

/// How long.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Pods of the full node; 110 is what a kubelet allows by default
    #[arg(long, default_value_t = 110, value_parser = clap::value_parser!(u64).range(2..=200))]
    pods: u64,
}

/// CPU of a node with some pods.
#[derive(Debug, Serialize)]
struct Idle {
    pods: usize,
    /// Of one core, all threads of the daemon together.
    percent: f64,
    /// The same, by name of the thread.
    threads: BTreeMap<String, f64>,
    /// Packets that workers took in meanwhile, per second: none on a node that is really idle.
    packets_per_s: f64,
}

/// Measures.
///
/// # Errors
/// When a pod cannot be attached.
pub fn measure(setup: &Setup, options: &Options) -> Result<Report> {
    let node = Node::start(setup.clone())?;
    let mut pods: Vec<Pod> = Vec::new();
    let mut found = Vec::new();
    for wanted in [2, options.pods] {
        progress(&format!("{wanted} idle pods"));
        while (pods.len() as u64) < wanted {
            interrupt::check()?;
            pods.push(node.add_pod(&format!("perf-idle-{}", pods.len()))?);
        }
        interrupt::pause(SETTLE)?;
        found.push(watch(&node, pods.len(), Duration::from_secs(options.seconds))?);
    }
    Ok(sum_up(&found))
}

fn watch(node: &Node, pods: usize, duration: Duration) -> Result<Idle> {
    let pid = node.daemon_pid()?;
    let packets = received(node)?;
    // After the listing, which costs the daemon more than its idleness.
    let (before, started) = (thread_times(pid)?, Instant::now());
    interrupt::pause(duration)?;
    let (after, elapsed) = (thread_times(pid)?, started.elapsed());
    let percent = |ns: u64| 100.0 * ns as f64 / elapsed.as_nanos() as f64;
    let mut threads: BTreeMap<String, u64> = BTreeMap::new();
    for (name, ns) in after {
        *threads.entry(name).or_default() += ns;
    }
    for (name, ns) in before {
        threads.entry(name).and_modify(|total| *total = total.saturating_sub(ns));
    }
    Ok(Idle {
        pods,
        percent: percent(threads.values().sum()),
        threads: threads.into_iter().map(|(name, ns)| (name, percent(ns))).collect(),
        packets_per_s: (received(node)? - packets) as f64 / elapsed.as_secs_f64(),
    })
}

/// Packets that workers have taken in so far.
///
/// # Errors
/// When the daemon does not answer.
pub fn received(node: &Node) -> Result<u64> {
    let status = node.list("status")?;
    let workers = status["workers"].as_array().into_iter().flatten();
    Ok(workers.filter_map(|worker| worker["packets"]["received"].as_u64()).sum())
}

fn sum_up(found: &[Idle]) -> Report {
    let heads = ["pods", "% of a core", "packets/s", "threads"];
    let mut table = Table::new("CPU of the daemon on an idle node", &heads);
    let mut targets = Vec::new();
    for Idle { pods, percent, threads, packets_per_s } in found {
        let named = threads.iter().map(|(name, percent)| format!("{name} {percent:.2}"));
        table.row([
            pods.to_string(),
            format!("{percent:.2}"),
            format!("{packets_per_s:.1}"),
            named.collect::<Vec<_>>().join(", "),
        ]);
        let what = format!("idle CPU with {pods} pods, % of a core");
        targets.push(Target::new(what, *percent, Bound::AtMost(TARGET_PERCENT)));
    }
    Report::new("idle", vec![table], targets, json!({ "nodes": found }))
}
