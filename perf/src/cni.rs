//! `viaduct-perf cni`: how long a container runtime waits for ADD, CHECK and DEL: one pod after
//! another until the node is full, a hundred at once, and the reference plugins beside them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::daemon::{Node, Setup, binary};
use e2e::netns::Namespace;
use serde::Serialize;
use serde_json::json;
use tempfile::TempDir;

use crate::interrupt;
use crate::plugin::{Container, Plugin};
use crate::report::{Bound, Report, Table, Target, progress};
use crate::stats::Times;

/// The verbs of the specification that are measured, in the order of a pod's life.
const VERBS: [&str; 3] = ["ADD", "CHECK", "DEL"];

/// Where Debian puts the reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// Where the daemon's metrics are (`e2e`'s configuration).
const METRICS: &str = "127.0.0.1:9477";

/// What a pod's start may be delayed by: a tenth of what an image that is there takes to start.
const ADD_P50_MS: f64 = 5.0;

/// No call of a hundred should be felt.
const P99_MS: f64 = 20.0;

/// How many pods.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Pods attached one after another; 110 is what a kubelet allows by default
    #[arg(long, default_value_t = 110, value_parser = parse_pods)]
    pods: usize,
    /// Pods attached, and then detached, at the same time
    #[arg(long, default_value_t = 100, value_parser = parse_pods)]
    at_once: usize,
    /// Pods attached by the reference plugins (ptp, host-local); each takes 2 s
    #[arg(long, default_value_t = 4)]
    reference: usize,
}

/// The node's prefix has addresses for so many.
fn parse_pods(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(pods @ 1..=200) => Ok(pods),
        _ => Err("1 to 200 pods".to_owned()),
    }
}

/// Times of one verb under one load.
#[derive(Clone, Debug, Serialize)]
struct Row {
    plugin: &'static str,
    load: String,
    verb: &'static str,
    times: Times,
    /// From the first call's start to the last one's end, where calls ran at the same time.
    wall_ms: Option<f64>,
    /// Mean time inside the daemon: the rest is the shim, its start, and the socket.
    daemon_mean_us: Option<f64>,
}

/// Measures.
///
/// # Errors
/// When a call fails.
pub fn measure(setup: &Setup, options: &Options) -> Result<Report> {
    let mut rows = one_by_one(setup, options.pods)?;
    rows.extend(at_once(setup, options.at_once)?);
    if options.reference > 0 {
        rows.extend(reference(options.reference)?);
    }
    Ok(sum_up(&rows))
}

fn shim(node: &Node) -> Plugin<'_> {
    Plugin {
        program: binary("viaduct-cni"),
        cni_path: REFERENCE_PLUGINS.to_owned(),
        conf: node.conf(None),
        node: node.namespace(),
    }
}

fn one_by_one(setup: &Setup, pods: usize) -> Result<Vec<Row>> {
    progress(&format!("{pods} pods, one after another"));
    let mut containers = Container::many(pods)?;
    let node = Node::start(setup.clone())?;
    let plugin = shim(&node);
    let load = "one by one".to_owned();
    // VERSION asks nobody: it is the time to start and end the shim.
    let starts: Result<Vec<Duration>> =
        (0..50).map(|_| Ok(plugin.call("VERSION", &containers[0])?.0)).collect();
    let mut rows = vec![Row::new("viaduct", &load, "VERSION", &starts?)];
    rows.extend(lives("viaduct", &load, &plugin, &mut containers)?);
    let metrics = node.namespace().within(scrape)??;
    for row in &mut rows {
        row.daemon_mean_us = daemon_mean_us(&metrics, row.verb);
    }
    Ok(rows)
}

fn at_once(setup: &Setup, pods: usize) -> Result<Vec<Row>> {
    progress(&format!("{pods} pods at once"));
    let containers = Container::many(pods)?;
    let node = Node::start(setup.clone())?;
    let plugin = shim(&node);
    let mut rows = Vec::new();
    for verb in ["ADD", "DEL"] {
        interrupt::check()?;
        let (times, wall) = plugin.call_at_once(verb, &containers)?;
        let mut row = Row::new("viaduct", &format!("{pods} at once"), verb, &times);
        row.wall_ms = Some(wall.as_secs_f64() * 1e3);
        rows.push(row);
    }
    Ok(rows)
}

/// ptp with host-local addresses, dual-stack: what most of the reference plugins' users compare.
fn reference(pods: usize) -> Result<Vec<Row>> {
    progress(&format!("{pods} pods by the reference plugins"));
    let mut containers = Container::many(pods)?;
    let node = Namespace::create("perf-reference")?;
    let leases = TempDir::new()?;
    let conf = json!({
        "cniVersion": "1.0.0", "name": "perf-reference", "type": "ptp",
        "ipam": {
            "type": "host-local", "dataDir": leases.path(),
            "ranges": [[{"subnet": "10.97.0.0/16"}], [{"subnet": "fd00:10:97::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    });
    let program = format!("{REFERENCE_PLUGINS}/ptp").into();
    let cni_path = REFERENCE_PLUGINS.to_owned();
    let plugin = Plugin { program, cni_path, conf, node: &node };
    lives("ptp + host-local", "one by one", &plugin, &mut containers)
}

/// ADD for all containers, then CHECK, then DEL.
fn lives(
    name: &'static str,
    load: &str,
    plugin: &Plugin<'_>,
    containers: &mut [Container],
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for verb in VERBS {
        let mut times = Vec::with_capacity(containers.len());
        for container in &mut *containers {
            interrupt::check()?;
            let (took, answer) = plugin.call(verb, container)?;
            times.push(took);
            if verb == "ADD" {
                container.result = answer;
            }
        }
        rows.push(Row::new(name, load, verb, &times));
    }
    Ok(rows)
}

impl Row {
    fn new(plugin: &'static str, load: &str, verb: &'static str, times: &[Duration]) -> Row {
        let (load, times) = (load.to_owned(), Times::of(times));
        Row { plugin, load, verb, times, wall_ms: None, daemon_mean_us: None }
    }
}

/// The daemon's metrics; runs in the node's namespace.
fn scrape() -> Result<String> {
    let mut stream = TcpStream::connect(METRICS).context("connect to the metrics")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: perf\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("read the metrics")?;
    Ok(text)
}

/// Mean time of an operation inside the daemon; `None` for what it never sees.
fn daemon_mean_us(metrics: &str, verb: &str) -> Option<f64> {
    let operation = verb.to_lowercase();
    let value = |what: &str| {
        let sample = format!("viaduct_cni_operation_seconds_{what}{{operation=\"{operation}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&sample)?.parse::<f64>().ok())
    };
    let count = value("count").filter(|count| *count > 0.0)?;
    Some(value("sum")? / count * 1e6)
}

fn sum_up(rows: &[Row]) -> Report {
    let ms = |us: f64| format!("{:.2}", us / 1e3);
    let heads = ["plugin", "load", "verb", "calls", "p50", "p99", "max", "mean in daemon", "wall"];
    let mut table = Table::new("CNI calls, dual-stack, in ms", &heads);
    for row in rows {
        table.row([
            row.plugin.to_owned(),
            row.load.clone(),
            row.verb.to_owned(),
            row.times.count.to_string(),
            ms(row.times.p50_us),
            ms(row.times.p99_us),
            ms(row.times.max_us),
            row.daemon_mean_us.map_or("-".to_owned(), ms),
            row.wall_ms.map_or("-".to_owned(), |wall| format!("{wall:.0}")),
        ]);
    }
    let mut targets = Vec::new();
    for row in rows.iter().filter(|row| row.plugin == "viaduct" && row.load == "one by one") {
        let Times { p50_us, p99_us, .. } = row.times;
        if row.verb == "ADD" {
            targets.push(Target::new("ADD p50, ms", p50_us / 1e3, Bound::AtMost(ADD_P50_MS)));
        }
        if row.verb != "VERSION" {
            let what = format!("{} p99, ms", row.verb);
            targets.push(Target::new(what, p99_us / 1e3, Bound::AtMost(P99_MS)));
        }
    }
    Report::new("cni", vec![table], targets, json!({ "rows": rows }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_mean_is_sum_by_count_of_that_operation() {
        let metrics = "viaduct_cni_operation_seconds_sum{operation=\"add\"} 0.5\n\
                       viaduct_cni_operation_seconds_count{operation=\"add\"} 100\n\
                       viaduct_cni_operation_seconds_sum{operation=\"del\"} 9\n\
                       viaduct_cni_operation_seconds_count{operation=\"del\"} 0\n";
        assert_eq!(daemon_mean_us(metrics, "ADD"), Some(5000.0));
        assert_eq!(daemon_mean_us(metrics, "DEL"), None);
        assert_eq!(daemon_mean_us(metrics, "VERSION"), None);
    }
}
