//! `viaduct-perf tcp`: one TCP stream from pod to pod, forwarded by Viaduct, by DPDK's testpmd and
//! by the kernel in turns.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use e2e::daemon::Setup;
use serde::Serialize;
use serde_json::json;

use crate::interrupt;
use crate::iperf::{self, Streams};
use crate::kernel::KernelRouting;
use crate::lane::{Lane, ROUTE_MTU, Turns};
use crate::machine::CpuTimes;
use crate::report::{Bound, Report, Table, Target, progress};
use crate::stats::{Ratio, median};
use crate::testpmd::Testpmd;
use crate::viaduct::Viaduct;

/// What a worker with super-packets has to be worth (the project's goal).
const TARGET_OF_TESTPMD: f64 = 3.0;

/// How long and how often, and beside what.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    turns: Turns,
    /// Leave testpmd out, where DPDK is not installed
    #[arg(long)]
    without_testpmd: bool,
}

/// One stream.
#[derive(Debug, Serialize)]
struct Turn {
    arm: &'static str,
    gbit_per_s: f64,
    received_bytes: u64,
    retransmits: u64,
    /// Cores that were busy, pods included.
    busy_cores: f64,
    steal_percent: f64,
    /// Bytes on a wire that workers counted during the turn.
    worker_wire_bytes: Option<u64>,
    /// Packets that workers dropped, or saw the kernel drop, by place and reason.
    drops: BTreeMap<String, u64>,
}

/// The three lanes; testpmd is there unless it was left out.
struct Arms {
    viaduct: Viaduct,
    testpmd: Option<Testpmd>,
    kernel: KernelRouting,
}

/// Measures.
///
/// # Errors
/// When a lane cannot be built or a stream fails, or when bytes reached a pod past the workers.
pub fn measure(setup: &Setup, options: &Options) -> Result<Report> {
    progress("building the lanes");
    let arms = Arms {
        viaduct: Viaduct::build(setup)?,
        testpmd: if options.without_testpmd { None } else { Some(Testpmd::build()?) },
        kernel: KernelRouting::build()?,
    };
    let mut turns = Vec::new();
    for pair in 0..options.turns.pairs {
        for turn in 0..3 {
            interrupt::check()?;
            // ABC CBA ABC: what drifts, drifts for all.
            let arm = if pair % 2 == 0 { turn } else { 2 - turn };
            if let Some(turn) = arms.take_turn(arm, options.turns.seconds)? {
                progress(&format!(
                    "turn {} of {}: {} {:.1} Gbit/s",
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
    fn take_turn(&self, arm: usize, seconds: u64) -> Result<Option<Turn>> {
        match (arm, &self.testpmd) {
            (0, _) => {
                let before = self.viaduct.counted()?;
                let mut turn = stream(&self.viaduct.lane(), seconds)?;
                let after = self.viaduct.counted()?;
                let counted = after.wire_bytes - before.wire_bytes;
                ensure!(
                    counted >= turn.received_bytes,
                    "the pod received {} bytes, but workers forwarded only {counted}: some came \
                     past them, which viaduct pods and its log may explain",
                    turn.received_bytes
                );
                turn.worker_wire_bytes = Some(counted);
                turn.drops = after.drops_since(&before);
                Ok(Some(turn))
            }
            (1, Some(testpmd)) => {
                let _awake = testpmd.wake()?;
                stream(&testpmd.lane(), seconds).map(Some)
            }
            (1, None) => Ok(None),
            _ => stream(&self.kernel.lane(), seconds).map(Some),
        }
    }
}

fn stream(lane: &Lane<'_>, seconds: u64) -> Result<Turn> {
    let before = CpuTimes::now()?;
    let stream = iperf::run(lane, Streams::one(seconds))?;
    let cpu = CpuTimes::now()?.since(before);
    Ok(Turn {
        arm: lane.arm,
        gbit_per_s: stream.gbit_per_s,
        received_bytes: stream.received_bytes,
        retransmits: stream.retransmits,
        busy_cores: cpu.busy_cores(),
        steal_percent: cpu.steal_percent(),
        worker_wire_bytes: None,
        drops: BTreeMap::new(),
    })
}

fn sum_up(turns: &[Turn]) -> Report {
    let rates = |arm: &str| -> Vec<f64> {
        turns.iter().filter(|turn| turn.arm == arm).map(|turn| turn.gbit_per_s).collect()
    };
    let [viaduct, testpmd, kernel] = ["viaduct", "testpmd", "kernel"].map(rates);
    let mut ratios = vec![Ratio::of(("viaduct", &viaduct), ("kernel", &kernel))];
    let mut targets = Vec::new();
    if !testpmd.is_empty() {
        let ratio = Ratio::of(("viaduct", &viaduct), ("testpmd", &testpmd));
        let bound = Bound::AtLeast(TARGET_OF_TESTPMD);
        targets.push(Target::new("TCP, viaduct / testpmd", ratio.median, bound));
        ratios.insert(0, ratio);
    }
    let title = format!("one TCP stream, pod to pod, routes of MTU {ROUTE_MTU}, Gbit/s received");
    let heads = ["arm", "median", "turns", "retransmits", "busy cores", "steal %"];
    let mut table = Table::new(title, &heads);
    for (arm, rates) in [("viaduct", viaduct), ("testpmd", testpmd), ("kernel", kernel)] {
        let of_arm = || turns.iter().filter(|turn| turn.arm == arm);
        if rates.is_empty() {
            continue;
        }
        let busy: Vec<f64> = of_arm().map(|turn| turn.busy_cores).collect();
        let steal = of_arm().map(|turn| turn.steal_percent).fold(0.0, f64::max);
        let retransmits: u64 = of_arm().map(|turn| turn.retransmits).sum();
        table.row([
            arm.to_owned(),
            format!("{:.2}", median(&rates)),
            list(&rates),
            retransmits.to_string(),
            format!("{:.2}", median(&busy)),
            format!("{steal:.1}"),
        ]);
    }
    let mut paired = Table::new("turn by turn", &["ratio", "median", "turns"]);
    for ratio in &ratios {
        paired.row([ratio.of.clone(), format!("{:.2}", ratio.median), list(&ratio.turns)]);
    }
    let received: u64 = of(turns, |turn| turn.received_bytes);
    let counted: u64 = of(turns, |turn| turn.worker_wire_bytes.unwrap_or(0));
    let mut proof = Table::new("what workers counted", &["viaduct, all turns", ""]);
    proof.row(["bytes the pod received".to_owned(), received.to_string()]);
    proof.row(["bytes on a wire that workers sent it".to_owned(), counted.to_string()]);
    let mut drops: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, count) in turns.iter().flat_map(|turn| &turn.drops) {
        *drops.entry(reason).or_default() += count;
    }
    for (reason, count) in drops {
        proof.row([format!("packets dropped: {reason}"), count.to_string()]);
    }
    Report::new(
        "tcp",
        vec![table, paired, proof],
        targets,
        json!({ "turns": turns, "ratios": ratios }),
    )
}

/// A sum over the turns of Viaduct.
fn of(turns: &[Turn], figure: impl Fn(&Turn) -> u64) -> u64 {
    turns.iter().filter(|turn| turn.arm == "viaduct").map(figure).sum()
}

fn list(values: &[f64]) -> String {
    values.iter().map(|value| format!("{value:.2}")).collect::<Vec<_>>().join(" ")
}
