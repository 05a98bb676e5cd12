//! Hundreds of pods on one node, each with another limit, which all send too much: whether each
//! limit holds, what a packet costs the worker, and what two pods without a limit feel of it.
//!
//! The pods stand in a ring, and each sends to the next one: so what each gets through is counted
//! by another pod's kernel. One turn limits what they send, the next one what they get.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::daemon::{Node, Setup, workers};
use e2e::pod::Pod;
use serde::Serialize;
use serde_json::json;

use super::delivered::{FULL_BYTES, Look};
use super::load::{Ends, Load};
use super::{CUBIC, Direction, Found, Options, Rate, WARM_UP, largest, list, note, set_limit};
use crate::idle::received;
use crate::interrupt;
use crate::iperf::{self, Streams};
use crate::lane::Lane;
use crate::latency::samples;
use crate::machine::worker_ns;
use crate::report::{Bound, Table, Target, progress, shown};
use crate::stats::{Ratio, Times, median};

/// Each limit is so much more than the one before, in parts of the lowest.
const STEP: f64 = 0.02;

/// What is offered, in parts of the limit.
const BEYOND: f64 = 1.5;

/// The burst is what the rate carries in this time: with the half of a rate that is offered beyond
/// it, each is spent before it is looked at.
const BURST_S: f64 = 0.05;

/// How long the pair is looked at, for its throughput and then for its round trips.
const PAIR_S: u64 = 3;

/// Between two of the pair's round trips.
const EVERY: Duration = Duration::from_millis(1);

/// Frames that the daemon wants for each pod (docs/viaductd.md, `workers.frames`).
const FRAMES_PER_POD: u32 = 192;

/// With fewer packets in a window, a pod's kernel sent something by itself.
const PACKETS_MIN: f64 = 1000.0;

/// What is to be reached: how far a rate may be from its limit in percent, what a packet may cost
/// against one limited pod, and what the pair keeps of its throughput and of its latency.
const ERROR_PERCENT: f64 = 2.0;
const COST: f64 = 1.2;
const THROUGHPUT: f64 = 0.95;
const LATENCY: f64 = 2.0;

/// What the ring does while the worker and the pair are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Ring {
    /// Nothing.
    Silent,
    /// Every pod has its limit, and sends more.
    Limited,
    /// No pod has a limit, and each sends what its limit would let through.
    Unlimited,
    /// One pod has the sum of all limits, and sends more; the others are silent.
    One,
}

/// One turn of an arm.
#[derive(Debug, Serialize)]
struct Turn {
    ring: Ring,
    direction: Direction,
    /// How far the rate of each pod is from its limit.
    error_percent: Vec<f64>,
    /// Time that workers spent in passes that moved packets, per packet that they took in; NaN if
    /// they took in none to speak of.
    busy_ns_per_packet: f64,
    /// Their CPU time, which has their looking for packets in it; NaN likewise.
    cpu_ns_per_packet: f64,
    packets_per_s: f64,
    /// Of the pair beside.
    pair_gbit_per_s: f64,
    pair: Times,
}

/// The node with its pods.
struct Crowd {
    node: Node,
    pods: Vec<Pod>,
    pair: [Pod; 2],
    limits: Vec<Rate>,
}

/// What workers have taken in, and what time they have spent.
#[derive(Clone, Copy, Debug)]
struct Spent {
    packets: f64,
    busy_ns: f64,
    cpu_ns: f64,
}

/// Measures. With a turn that fails it ends: who knows which limits are left.
///
/// # Errors
/// When a pod cannot be made, or it is interrupted.
pub fn measure(setup: &Setup, options: &Options) -> Result<Found> {
    progress(&format!("{} pods", options.pods));
    let crowd = Crowd::build(setup, options.pods as usize, options.least)?;
    let (mut turns, mut failures) = (Vec::new(), Vec::new());
    let measured = crowd.take_turns(options, &mut turns).and_then(|()| crowd.node.check());
    if let Err(error) = measured {
        note(&mut failures, &format!("crowd, after {} turns", turns.len()), &error)?;
    }
    let found = sum_up(&crowd.limits, &turns, failures.is_empty());
    Ok(Found { failures, ..found })
}

impl Ring {
    const ALL: [Ring; 4] = [Ring::Silent, Ring::Limited, Ring::Unlimited, Ring::One];

    fn name(self, pods: u64) -> String {
        match self {
            Ring::Silent => "nobody else".to_owned(),
            Ring::Limited => format!("{pods} limits"),
            Ring::Unlimited => format!("{pods} without limit, as many packets"),
            Ring::One => "one limit, as high as all".to_owned(),
        }
    }
}

impl Crowd {
    fn build(setup: &Setup, pods: usize, least: Rate) -> Result<Crowd> {
        // The pair, and the node's own port.
        let ports = pods as u32 + 3;
        let frames = (ports * FRAMES_PER_POD).next_power_of_two().max(setup.frames);
        let node = Node::start(Setup { frames, ..setup.clone() })?;
        let add = |number| {
            interrupt::check()?;
            node.add_pod(&format!("perf-ring-{number}"))
        };
        let pods: Vec<Pod> = (0..pods).map(add).collect::<Result<_>>()?;
        let pair = [node.add_pod("perf-client")?, node.add_pod("perf-server")?];
        let limit =
            |number| Rate((least.bits_per_s() * (1.0 + STEP * f64::from(number))).round() as u64);
        let limits = (0..pods.len() as u32).map(limit).collect();
        Ok(Crowd { node, pods, pair, limits })
    }

    fn take_turns(&self, options: &Options, turns: &mut Vec<Turn>) -> Result<()> {
        for pair in 0..options.pairs() {
            let direction = Direction::BOTH[pair as usize % 2];
            for index in 0..Ring::ALL.len() {
                interrupt::check()?;
                // ABC CBA ABC: what drifts, drifts for all.
                let index = if pair % 2 == 0 { index } else { Ring::ALL.len() - 1 - index };
                let turn = self.take_turn(Ring::ALL[index], direction, options.window())?;
                progress(&format!(
                    "turn {} of {}: {}, {:.0} packets per second, pair {:.1} Gbit/s, p99 {:.0} µs",
                    pair + 1,
                    options.pairs(),
                    turn.ring.name(options.pods),
                    turn.packets_per_s,
                    turn.pair_gbit_per_s,
                    turn.pair.p99_us
                ));
                turns.push(turn);
            }
        }
        Ok(())
    }

    fn take_turn(&self, ring: Ring, direction: Direction, window: Duration) -> Result<Turn> {
        let links = self.links(ring);
        if ring != Ring::Unlimited {
            self.set_limits(&links, direction, true)?;
        }
        let beyond = if ring == Ring::Unlimited { 1.0 } else { BEYOND };
        let _load = self.load(&links, beyond)?;
        interrupt::pause(WARM_UP)?;
        let (before, begin) = (self.looks(&links)?, self.spent()?);
        interrupt::pause(window)?;
        let spent = self.spent()?.since(&begin);
        let error = |((after, before), (_, limit)): ((&Look, &Look), &(usize, Rate))| {
            limit.error_percent(after.bits_per_s_since(before, None))
        };
        let after = self.looks(&links)?;
        let error_percent = after.iter().zip(&before).zip(&links).map(error).collect();
        let [client, server] = &self.pair;
        let (client, address) = (&client.namespace, server.v4);
        let pair = Lane { arm: "viaduct", client, server: &server.namespace, address };
        let stream = Streams { congestion: Some(CUBIC), ..Streams::one(PAIR_S) };
        let pair_gbit_per_s = iperf::run(&pair, stream)?.gbit_per_s;
        let (times, _) = samples(&pair, EVERY, Duration::from_secs(PAIR_S))?;
        if ring != Ring::Unlimited {
            self.set_limits(&links, direction, false)?;
        }
        Ok(Turn {
            ring,
            direction,
            error_percent,
            busy_ns_per_packet: spent.per_packet(spent.busy_ns),
            cpu_ns_per_packet: spent.per_packet(spent.cpu_ns),
            packets_per_s: spent.packets / window.as_secs_f64(),
            pair_gbit_per_s,
            pair: Times::of(&times),
        })
    }

    fn spent(&self) -> Result<Spent> {
        let (status, packets) = (self.node.list("status")?, received(&self.node)? as f64);
        let busy_ns: Option<u64> = workers(&status).map(|worker| worker["busy_ns"].as_u64()).sum();
        let busy_ns = busy_ns.context("viaduct status says how long each worker was busy")? as f64;
        let cpu_ns = worker_ns(self.node.daemon_pid()?)? as f64;
        Ok(Spent { packets, busy_ns, cpu_ns })
    }

    /// Who sends to the next one, and what its limit is.
    fn links(&self, ring: Ring) -> Vec<(usize, Rate)> {
        match ring {
            Ring::Silent => Vec::new(),
            Ring::Limited | Ring::Unlimited => self.limits.iter().copied().enumerate().collect(),
            Ring::One => vec![(0, Rate(self.limits.iter().map(|limit| limit.0).sum()))],
        }
    }

    fn next(&self, number: usize) -> &Pod {
        &self.pods[(number + 1) % self.pods.len()]
    }

    /// Sets the limits of these links, or takes them away.
    fn set_limits(&self, links: &[(usize, Rate)], direction: Direction, on: bool) -> Result<()> {
        for (number, limit) in links {
            interrupt::check()?;
            let ends = [&self.pods[*number], self.next(*number)];
            let wanted = match on {
                true => format!("{limit} --burst {}", limit.burst_bits(BURST_S)),
                false => "none".to_owned(),
            };
            set_limit(&self.node, direction, ends, &wanted)?;
        }
        Ok(())
    }

    fn load(&self, links: &[(usize, Rate)], beyond: f64) -> Result<Load> {
        let (mut flows, mut sinks) = (Vec::new(), Vec::new());
        for (number, limit) in links {
            let server = self.next(*number);
            let client = &self.pods[*number].namespace;
            let ends = Ends { client, server: &server.namespace, address: server.v4.into() };
            sinks.push(ends.sink()?);
            flows.extend(ends.paced(1, &[FULL_BYTES], beyond * limit.bits_per_s())?);
        }
        Ok(Load::udp(flows, sinks))
    }

    fn looks(&self, links: &[(usize, Rate)]) -> Result<Vec<Look>> {
        links.iter().map(|(number, _)| Look::at(&self.next(*number).namespace)).collect()
    }
}

/// What is to be reached: the ratios of these figures, and the bounds of some.
fn ratios(turns: &[Turn], pods: u64) -> Vec<(Ratio, Option<Bound>)> {
    let cost: Figure = |turn| turn.cpu_ns_per_packet;
    let throughput: Figure = |turn| turn.pair_gbit_per_s;
    let latency: Figure = |turn| turn.pair.p99_us;
    let (least, most) = (|bound| Some(Bound::AtLeast(bound)), |bound| Some(Bound::AtMost(bound)));
    let wanted = [
        ("worker's CPU time per packet", cost, Ring::One, most(COST)),
        ("pair's throughput", throughput, Ring::Silent, least(THROUGHPUT)),
        ("pair's p99", latency, Ring::Silent, most(LATENCY)),
        // What of it is the work of so many pods, and not of their limits.
        ("worker's CPU time per packet", cost, Ring::Unlimited, None),
        ("pair's throughput", throughput, Ring::Unlimited, None),
        ("pair's p99", latency, Ring::Unlimited, None),
    ];
    let ratio = |(what, figure, baseline, bound): (&str, Figure, Ring, Option<Bound>)| {
        let figures = [Ring::Limited, baseline].map(|ring| each(turns, ring, figure));
        let names = [Ring::Limited, baseline].map(|ring| ring.name(pods));
        let mut ratio = Ratio::of((&names[0], &figures[0]), (&names[1], &figures[1]));
        ratio.of = format!("{what}: {}", ratio.of);
        (ratio, bound)
    };
    wanted.map(ratio).into()
}

type Figure = fn(&Turn) -> f64;

fn each(turns: &[Turn], ring: Ring, figure: Figure) -> Vec<f64> {
    turns.iter().filter(|turn| turn.ring == ring).map(figure).collect()
}

fn largest_error(turns: &[Turn], ring: Ring) -> f64 {
    let turns = turns.iter().filter(|turn| turn.ring == ring);
    largest(turns.flat_map(|turn| turn.error_percent.iter().copied()))
}

/// Judges the turns if they are all there.
fn sum_up(limits: &[Rate], turns: &[Turn], is_whole: bool) -> Found {
    let pods = limits.len() as u64;
    let span = |limit: Option<&Rate>| limit.map_or(String::new(), Rate::to_string);
    let title = format!(
        "{pods} pods with limits from {} to {}, UDP of 1500 bytes, and a pair without; medians",
        span(limits.first()),
        span(limits.last())
    );
    let heads = [
        "who sends",
        "largest error %",
        "packets/s",
        "busy ns/packet",
        "CPU ns/packet",
        "pair Gbit/s",
        "pair p50 µs",
        "pair p99 µs",
    ];
    let mut table = Table::new(title, &heads);
    for ring in Ring::ALL {
        let middle = |figure: Figure| shown(median(&each(turns, ring, figure)), 0);
        let has_limits = matches!(ring, Ring::Limited | Ring::One);
        table.row([
            ring.name(pods),
            if has_limits { shown(largest_error(turns, ring), 2) } else { "-".to_owned() },
            middle(|turn| turn.packets_per_s),
            middle(|turn| turn.busy_ns_per_packet),
            middle(|turn| turn.cpu_ns_per_packet),
            shown(median(&each(turns, ring, |turn| turn.pair_gbit_per_s)), 1),
            middle(|turn| turn.pair.p50_us),
            middle(|turn| turn.pair.p99_us),
        ]);
    }
    let mut paired = Table::new("turn by turn", &["ratio", "median", "turns"]);
    let what = format!("{pods} limits: largest error of one, %");
    let judged = if is_whole { turns } else { &[] };
    let worst = largest_error(judged, Ring::Limited);
    let mut targets = vec![Target::new(what, worst, Bound::AtMost(ERROR_PERCENT))];
    let ratios = ratios(judged, pods);
    for (ratio, bound) in &ratios {
        paired.row([ratio.of.clone(), shown(ratio.median, 2), list(&ratio.turns, 2)]);
        targets.extend(bound.map(|bound| Target::new(&ratio.of, ratio.median, bound)));
    }
    let ratios: Vec<&Ratio> = ratios.iter().map(|(ratio, _)| ratio).collect();
    let figures = json!({ "limits": limits, "turns": turns, "ratios": ratios });
    Found { tables: vec![table, paired], targets, failures: Vec::new(), figures }
}

impl Spent {
    fn since(&self, before: &Spent) -> Spent {
        Spent {
            packets: self.packets - before.packets,
            busy_ns: self.busy_ns - before.busy_ns,
            cpu_ns: self.cpu_ns - before.cpu_ns,
        }
    }

    /// NaN if there were none to speak of.
    fn per_packet(&self, ns: f64) -> f64 {
        if self.packets >= PACKETS_MIN { ns / self.packets } else { f64::NAN }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(ring: Ring, cost: f64, gbit: f64, errors: &[f64]) -> Turn {
        Turn {
            ring,
            direction: Direction::ToPod,
            error_percent: errors.to_vec(),
            busy_ns_per_packet: 3.0 * cost,
            cpu_ns_per_packet: 2.0 * cost,
            packets_per_s: 1.0,
            pair_gbit_per_s: gbit,
            pair: Times { p99_us: cost, ..Times::default() },
        }
    }

    #[test]
    fn limits_are_judged_by_the_worst_one_and_against_one_limit_and_silence() {
        let turns = [
            turn(Ring::Silent, 20.0, 40.0, &[]),
            turn(Ring::Limited, 30.0, 39.0, &[0.5, -2.5, 1.0]),
            turn(Ring::Unlimited, 29.0, 39.0, &[-9.0]),
            turn(Ring::One, 24.0, 39.0, &[5.0]),
        ];
        let limits = [Rate(1_000_000), Rate(2_000_000)];
        let found = sum_up(&limits, &turns, true);
        let figures: Vec<(f64, bool)> =
            found.targets.iter().map(|target| (target.measured, target.met)).collect();
        assert_eq!(figures, [(2.5, false), (1.25, false), (0.975, true), (1.5, true)]);
        let found = sum_up(&limits, &turns, false);
        assert!(found.targets.iter().all(|target| !target.met && target.measured.is_nan()));
    }

    #[test]
    fn what_no_turn_has_measured_is_no_figure_in_a_table() {
        let found = sum_up(&[Rate(1_000_000)], &[turn(Ring::Silent, 20.0, 40.0, &[])], false);
        let tables: String = found.tables.iter().map(Table::to_string).collect();
        assert!(tables.contains("40.0") && !tables.contains("NaN"), "{tables}");
    }

    #[test]
    fn a_turn_without_packets_to_speak_of_leaves_the_target_of_their_cost_unmeasured() {
        let cost = |packets| Spent { packets, busy_ns: 6e6, cpu_ns: 6e6 }.per_packet(6e6);
        for (packets, is_known) in [(1000.0, true), (999.0, false)] {
            let limited = [cost(1000.0), cost(packets), cost(1000.0)];
            let turns = limited.map(|cost| turn(Ring::Limited, cost, 39.0, &[0.5]));
            let one = [(); 3].map(|()| turn(Ring::One, cost(1000.0), 39.0, &[0.5]));
            let turns: Vec<Turn> = turns.into_iter().chain(one).collect();
            let found = sum_up(&[Rate(1_000_000)], &turns, true);
            let target = &found.targets[1];
            assert!(target.what.contains("CPU time per packet"));
            assert_eq!((target.met, !target.measured.is_nan()), (is_known, is_known));
        }
    }
}
