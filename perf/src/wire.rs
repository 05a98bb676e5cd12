//! `viaduct-perf wire`: TCP between pods of two nodes on one cable, forwarded by Viaduct, by DPDK's
//! testpmd and by the kernel in turns. What the nodes send each other has complete checksums
//! and is no longer than the MTU, as on a wire.

use std::collections::BTreeMap;
use std::fs;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, ClusterSetup, Forwarder, Wiring};
use e2e::daemon::{Node, Setup};
use e2e::pod::Pod;
use serde::Serialize;
use serde_json::json;

use crate::interrupt;
use crate::iperf::{self, Streams};
use crate::lane::{Lane, ROUTE_MTU, Turns};
use crate::machine::{CpuTimes, usable_cores, worker_ns};
use crate::report::{Bound, Report, Table, Target, progress};
use crate::stats::{Ratio, median};
use crate::testpmd::{Testpmd, plain_switch};

/// What Viaduct on both nodes has to be worth with one stream.
const TARGET_OF_TESTPMD: f64 = 2.0;

/// Numbers of streams that are run at once.
const STREAMS: [u32; 2] = [1, 4];

/// Names of the arms, in the order of a turn.
const ARMS: [&str; 3] = ["viaduct", "testpmd", "kernel"];

/// How long and how often, and beside what.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    turns: Turns,
    /// Leave testpmd out, where DPDK is not installed
    #[arg(long)]
    without_testpmd: bool,
    /// Put a switch between the nodes: a bridge, whose work is done on the sender's core
    #[arg(long)]
    switch: bool,
    /// Cores of iperf3's client and server, in every arm alike, or "any" to leave them to the
    /// scheduler; by default cores without a worker, or else the receiving worker's for both
    #[arg(long, value_name = "CLIENT,SERVER")]
    cores: Option<Cores>,
}

/// Cores of iperf3's client and server; `None`: the scheduler's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cores(Option<[usize; 2]>);

impl FromStr for Cores {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Cores, Self::Err> {
        if text == "any" {
            return Ok(Cores(None));
        }
        let numbers = text.split_once(',').ok_or("two numbers as in 0,1, or \"any\"")?;
        let number = |text: &str| text.parse().map_err(|_| "a core is a number");
        Ok(Cores(Some([number(numbers.0)?, number(numbers.1)?])))
    }
}

/// One run of iperf3.
#[derive(Debug, Serialize)]
struct Turn {
    arm: &'static str,
    streams: u32,
    gbit_per_s: f64,
    received_bytes: u64,
    retransmits: u64,
    /// Cores that were busy, pods included.
    busy_cores: f64,
    steal_percent: f64,
    /// Cores that the workers of the sender's node were busy on, and those of the receiver's.
    worker_cores: Option<[f64; 2]>,
    /// Bytes on the wire that workers sent by the sender's uplink, and received by the other.
    uplink_bytes: Option<[u64; 2]>,
    /// Packets that workers dropped, or saw the kernel drop, by node, port and reason.
    drops: BTreeMap<String, u64>,
}

/// Two nodes with a pod each.
struct Nodes {
    arm: &'static str,
    cluster: Cluster,
    pods: [Pod; 2],
}

/// What the workers of both nodes have counted so far.
#[derive(Debug, Default)]
struct Counted {
    uplink_bytes: [u64; 2],
    worker_ns: [u64; 2],
    drops: BTreeMap<String, u64>,
}

/// The three lanes; testpmd is there unless it was left out.
struct Arms {
    viaduct: Nodes,
    testpmd: Option<Testpmd>,
    kernel: Nodes,
}

/// Measures.
///
/// # Errors
/// When a lane cannot be built or a stream fails, or when bytes reached a pod past the workers.
pub fn measure(setup: &Setup, options: &Options) -> Result<Report> {
    progress("building the nodes");
    let viaduct = Forwarder::Viaduct { port_mode: setup.port_mode, workers: setup.workers };
    let wiring = if options.switch { Wiring::Switch } else { Wiring::Cable };
    let testpmd = (!options.without_testpmd).then(|| Testpmd::build_nodes(wiring));
    let arms = Arms {
        viaduct: Nodes::build("viaduct", viaduct, wiring)?,
        testpmd: testpmd.transpose()?,
        kernel: Nodes::build("kernel", Forwarder::Kernel, wiring)?,
    };
    let mut turns = Vec::new();
    let usual = || anyhow::Ok(Cores(Some(cores_of_pods(&usable_cores()?, setup.workers))));
    let Cores(cores) = options.cores.map_or_else(usual, Ok)?;
    for pair in 0..options.turns.pairs {
        for count in STREAMS {
            let streams = Streams { count, cores, ..Streams::one(options.turns.seconds) };
            for turn in 0..ARMS.len() {
                interrupt::check()?;
                // ABC CBA ABC: what drifts, drifts for all.
                let arm = if pair % 2 == 0 { turn } else { ARMS.len() - 1 - turn };
                let Some(turn) = arms.take_turn(arm, streams)? else {
                    continue;
                };
                progress(&format!(
                    "turn {} of {}: {}, {count} streams, {:.2} Gbit/s",
                    pair + 1,
                    options.turns.pairs,
                    turn.arm,
                    turn.gbit_per_s
                ));
                turns.push(turn);
            }
        }
    }
    Ok(sum_up(&turns))
}

impl Arms {
    fn take_turn(&self, arm: usize, streams: Streams<'_>) -> Result<Option<Turn>> {
        match (arm, &self.testpmd) {
            (0, _) => self.viaduct.take_turn(streams).map(Some),
            (1, Some(testpmd)) => {
                let _awake = testpmd.wake()?;
                run(&testpmd.lane(), streams).map(Some)
            }
            (1, None) => Ok(None),
            _ => run(&self.kernel.lane(), streams).map(Some),
        }
    }
}

impl Nodes {
    /// Builds the lane; returns when packets take the uplinks in both directions.
    fn build(arm: &'static str, forwarder: Forwarder, wiring: Wiring) -> Result<Nodes> {
        let setup = ClusterSetup { wiring, ..ClusterSetup::new(forwarder, 2) };
        let mut cluster = Cluster::make(setup)?;
        plain_switch(cluster.switch())?;
        if let Forwarder::Viaduct { workers, .. } = forwarder {
            for (number, cores) in cores_of_nodes(&usable_cores()?, workers).iter().enumerate() {
                pin(cluster.node(number), cores)?;
            }
        }
        cluster.start_forwarding()?;
        let pods = [cluster.add_pod(0, "perf-client")?, cluster.add_pod(1, "perf-server")?];
        cluster.warm_up((0, &pods[0]), &pods[1])?;
        cluster.warm_up((1, &pods[1]), &pods[0])?;
        Ok(Nodes { arm, cluster, pods })
    }

    /// From the first node's pod to the second's.
    fn lane(&self) -> Lane<'_> {
        let [client, server] = &self.pods;
        let (client, address) = (&client.namespace, server.v4);
        Lane { arm: self.arm, client, server: &server.namespace, address }
    }

    /// A turn of Viaduct, with what its workers counted.
    fn take_turn(&self, streams: Streams<'_>) -> Result<Turn> {
        let before = self.counted()?;
        let turn = run(&self.lane(), streams)?;
        let after = self.counted()?;
        let bytes = [0, 1].map(|node| after.uplink_bytes[node] - before.uplink_bytes[node]);
        for (bytes, what) in bytes.iter().zip(["sent by the", "received by the other"]) {
            ensure!(
                *bytes >= turn.received_bytes,
                "the pod received {} bytes, but workers {what} uplink only {bytes}: some came \
                 past them, which viaduct ports and the log may explain",
                turn.received_bytes
            );
        }
        let cores = |node: usize| {
            (after.worker_ns[node] - before.worker_ns[node]) as f64 / (streams.seconds as f64 * 1e9)
        };
        let earlier = |reason: &String| before.drops.get(reason).copied().unwrap_or(0);
        let fresh = after.drops.iter().map(|(reason, n)| (reason.clone(), n - earlier(reason)));
        Ok(Turn {
            worker_cores: Some([0, 1].map(cores)),
            uplink_bytes: Some(bytes),
            drops: fresh.filter(|(_, count)| *count > 0).collect(),
            ..turn
        })
    }

    fn counted(&self) -> Result<Counted> {
        let mut counted = Counted::default();
        for (number, node) in self.cluster.nodes().iter().enumerate() {
            counted.add(number, node)?;
        }
        Ok(counted)
    }
}

/// Cores of the workers of both nodes, from the last one down: each node has its own as far as the
/// machine has as many, because two nodes share no core.
pub fn cores_of_nodes(usable: &[usize], workers: usize) -> [Vec<usize>; 2] {
    let mut cores = usable.iter().rev().copied().cycle();
    [(); 2].map(|()| cores.by_ref().take(workers).collect())
}

/// Cores of the pods' programs in every arm: of no worker, or else both that of the receiving
/// worker, where Viaduct and testpmd were fastest (perf/README.md).
fn cores_of_pods(usable: &[usize], workers: usize) -> [usize; 2] {
    let nodes = cores_of_nodes(usable, workers);
    let free = usable.iter().filter(|core| !nodes.concat().contains(core));
    match free.copied().collect::<Vec<usize>>()[..] {
        [client, server, ..] => [client, server],
        [both] => [both; 2],
        [] => [nodes[1][0]; 2],
    }
}

/// Writes the cores into a node's configuration, in place of those that a node by itself gets.
///
/// # Errors
/// When it cannot be read or written.
pub fn pin(node: &Node, cores: &[usize]) -> Result<()> {
    let path = node.config_path();
    let text = fs::read_to_string(&path).context("read a node's configuration")?;
    let pinned = text.lines().map(|line| match line.starts_with("cores = ") {
        true => format!("cores = {cores:?}\n"),
        false => format!("{line}\n"),
    });
    fs::write(&path, pinned.collect::<String>()).context("write a node's configuration")
}

impl Counted {
    fn add(&mut self, number: usize, node: &Node) -> Result<()> {
        // By the sender's uplink packets leave, by the receiver's they come.
        let direction = ["to_pod", "from_pod"][number];
        let ports = node.list("ports")?;
        for port in ports.as_array().context("ports are an array")? {
            let kind = port["kind"].as_str().context("a port has a kind")?;
            if kind == "uplink" {
                let bytes = port[direction]["wire_bytes"].as_u64();
                self.uplink_bytes[number] += bytes.context("a port counts bytes")?;
            }
            for direction in ["from_pod", "to_pod"] {
                let drops = port[direction]["drops"].as_object();
                for (reason, count) in drops.into_iter().flatten() {
                    let name = format!("node {number}, {kind} {direction}: {reason}");
                    *self.drops.entry(name).or_default() += count.as_u64().unwrap_or(0);
                }
            }
        }
        self.worker_ns[number] = worker_ns(node.daemon_pid()?)?;
        Ok(())
    }
}

fn run(lane: &Lane<'_>, streams: Streams<'_>) -> Result<Turn> {
    let before = CpuTimes::now()?;
    let stream = iperf::run(lane, streams)?;
    let cpu = CpuTimes::now()?.since(before);
    Ok(Turn {
        arm: lane.arm,
        streams: streams.count,
        gbit_per_s: stream.gbit_per_s,
        received_bytes: stream.received_bytes,
        retransmits: stream.retransmits,
        busy_cores: cpu.busy_cores(),
        steal_percent: cpu.steal_percent(),
        worker_cores: None,
        uplink_bytes: None,
        drops: BTreeMap::new(),
    })
}

fn sum_up(turns: &[Turn]) -> Report {
    let title = format!("TCP between nodes, MTU {ROUTE_MTU}, Gbit/s received");
    let heads = ["arm, streams", "median", "turns", "retransmits", "busy cores", "steal %"];
    let mut table = Table::new(title, &heads);
    let mut paired = Table::new("turn by turn", &["ratio", "median", "turns"]);
    let (mut ratios, mut targets) = (Vec::new(), Vec::new());
    for streams in STREAMS {
        let of = |arm: &str| -> Vec<&Turn> {
            turns.iter().filter(|turn| turn.arm == arm && turn.streams == streams).collect()
        };
        for arm in ARMS {
            table_row(&mut table, &format!("{arm}, {streams}"), &of(arm));
        }
        let rates = |arm| of(arm).iter().map(|turn| turn.gbit_per_s).collect::<Vec<f64>>();
        for baseline in ["testpmd", "kernel"] {
            let ratio = Ratio::of(("viaduct", &rates("viaduct")), (baseline, &rates(baseline)));
            if ratio.turns.is_empty() {
                continue;
            }
            let name = format!("{}, {streams}", ratio.of);
            if baseline == "testpmd" && streams == 1 {
                let bound = Bound::AtLeast(TARGET_OF_TESTPMD);
                targets.push(Target::new(&name, ratio.median, bound));
            }
            paired.row([name, format!("{:.2}", ratio.median), list(&ratio.turns)]);
            ratios.push(json!({ "streams": streams, "ratio": ratio }));
        }
    }
    Report::new(
        "wire",
        vec![table, paired, workers_table(turns), drops_table(turns)],
        targets,
        json!({ "turns": turns, "ratios": ratios }),
    )
}

fn table_row(table: &mut Table, name: &str, turns: &[&Turn]) {
    if turns.is_empty() {
        return;
    }
    let each = |figure: fn(&Turn) -> f64| turns.iter().map(|turn| figure(turn)).collect();
    let rates: Vec<f64> = each(|turn| turn.gbit_per_s);
    let busy: Vec<f64> = each(|turn| turn.busy_cores);
    let steal = turns.iter().map(|turn| turn.steal_percent).fold(0.0, f64::max);
    let retransmits: u64 = turns.iter().map(|turn| turn.retransmits).sum();
    table.row([
        name.to_owned(),
        format!("{:.2}", median(&rates)),
        list(&rates),
        retransmits.to_string(),
        format!("{:.2}", median(&busy)),
        format!("{steal:.1}"),
    ]);
}

/// What the workers did in the turns of Viaduct.
fn workers_table(turns: &[Turn]) -> Table {
    let heads = ["streams", "sender's, cores", "receiver's, cores", "sent / received bytes"];
    let mut table = Table::new("workers, medians", &heads);
    for streams in STREAMS {
        let of = || turns.iter().filter(move |turn| turn.streams == streams);
        let cores = |node: usize| -> Vec<f64> {
            of().filter_map(|turn| turn.worker_cores).map(|cores| cores[node]).collect()
        };
        let bytes = of().filter_map(|turn| {
            let [sent, _] = turn.uplink_bytes?;
            Some(sent as f64 / turn.received_bytes.max(1) as f64)
        });
        table.row([
            streams.to_string(),
            format!("{:.2}", median(&cores(0))),
            format!("{:.2}", median(&cores(1))),
            format!("{:.3}", median(&bytes.collect::<Vec<f64>>())),
        ]);
    }
    table
}

fn drops_table(turns: &[Turn]) -> Table {
    let mut table = Table::new("packets dropped by workers, all turns", &["where and why", ""]);
    let mut drops: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, count) in turns.iter().flat_map(|turn| &turn.drops) {
        *drops.entry(reason).or_default() += count;
    }
    for (reason, count) in drops {
        table.row([reason.to_owned(), count.to_string()]);
    }
    table
}

fn list(values: &[f64]) -> String {
    values.iter().map(|value| format!("{value:.2}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_cores_of_their_own_where_there_are_enough() {
        assert_eq!(cores_of_nodes(&[0, 1], 1), [[1], [0]]);
        assert_eq!(cores_of_nodes(&[0, 1, 2, 5], 2), [[5, 2], [1, 0]]);
        // Two workers of one node never share a core; those of two nodes have to.
        assert_eq!(cores_of_nodes(&[0, 1], 2), [[1, 0], [1, 0]]);
        assert_eq!(cores_of_nodes(&[3], 1), [[3], [3]]);
    }

    #[test]
    fn programs_of_pods_have_cores_of_their_own_where_there_are_enough() {
        assert_eq!(cores_of_pods(&[0, 1, 2, 5], 1), [0, 1]);
        assert_eq!(cores_of_pods(&[0, 1, 2], 1), [0, 0]);
        assert_eq!(cores_of_pods(&[0, 1], 1), [0, 0]);
    }

    #[test]
    fn cores_are_two_numbers_or_any() {
        assert_eq!("1,0".parse(), Ok(Cores(Some([1, 0]))));
        assert_eq!("any".parse(), Ok(Cores(None)));
        for wrong in ["", "1", "1,", "1,x", "1,2,3"] {
            assert!(wrong.parse::<Cores>().is_err(), "{wrong}");
        }
    }
}
