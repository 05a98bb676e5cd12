//! The same limit by Viaduct and by the reference's `bandwidth` plugin, with the same burst: how
//! exact it is under a stream that fills it, what the stream's neighbours wait, what is sent again,
//! and what it all costs.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use e2e::daemon::Setup;
use serde::Serialize;
use serde_json::json;

use super::arm::{Arm, Asked, Place, lane};
use super::delivered::Look;
use super::{CUBIC, Direction, Found, Options, Rate, largest, list, note};
use crate::internet::Family;
use crate::interrupt;
use crate::iperf::{self, Streams};
use crate::lane::Lane;
use crate::latency::samples;
use crate::machine::{CpuTimes, TICK_NS};
use crate::report::{Bound, Table, Target, progress, shown};
use crate::stats::{Ratio, Times, median};

/// The burst is what the rate carries in this time: with a token bucket of the kernel's, less would
/// cost it rate.
const BURST_S: f64 = 0.005;

/// Until a stream fills the limit, and what it lasts longer than is looked at.
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(1);

/// Round trips without a stream, to know what the limit adds.
const ALONE: Duration = Duration::from_secs(1);

/// Between two round trips: few enough to be nothing beside the limit of a slow path.
const EVERY: Duration = Duration::from_millis(10);

/// Streams at once, and their congestion control.
type Kind = (u32, &'static str);

/// A single stream leaves the queue empty at times, and BBR keeps it short by itself; several of
/// CUBIC keep it full.
const STREAMS: [Kind; 3] = [(1, CUBIC), (1, "bbr"), (16, CUBIC)];

/// What the kernel has at hand for streams (ip-sysctl).
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";

const NAMES: [&str; 2] = ["viaduct", "bandwidth"];

/// How far from the limit the rate may be, in percent.
const ERROR: f64 = 1.0;

/// One turn of an arm.
#[derive(Debug, Serialize)]
struct Turn {
    arm: &'static str,
    bits_per_s: Rate,
    direction: Direction,
    streams: u32,
    congestion: &'static str,
    delivered: f64,
    error_percent: f64,
    /// Round trips of a small packet without the stream, and beside it.
    alone: Times,
    beside: Times,
    lost: u64,
    /// Segments that the stream's sender sent again.
    retransmits: u64,
    /// CPU time of the whole machine per gigabit delivered, in s.
    cpu_s_per_gbit: f64,
    steal_percent: f64,
}

/// A limited pod of each arm, and what it is limited to.
struct Limited<'a> {
    asked: Asked,
    pods: [Place; 2],
    arms: &'a [Arm; 2],
    free: &'a [Place; 2],
}

/// Measures. Where a turn fails, its case is not judged, and the others go on.
///
/// # Errors
/// When a pod cannot be made, or it is interrupted.
pub fn measure(setup: &Setup, options: &Options) -> Result<Found> {
    let available = fs::read_to_string(AVAILABLE).with_context(|| format!("read {AVAILABLE}"))?;
    let streams = usable(&available);
    let cases = cases(options.rates(), &streams).filter(|case| options.names(&name_of(*case)));
    let cases: Vec<Case> = cases.collect();
    let arms = Arm::both(setup)?;
    let add = |arm: &Arm, id: &str, limit| {
        let place = arm.add(id, limit)?;
        if options.ecn {
            place.speak_ecn()?;
        }
        Ok(place)
    };
    let free = both(&arms, |arm| add(arm, "perf-free", None))?;
    let mut limited = Vec::new();
    for rate in options.rates() {
        for direction in Direction::BOTH {
            let asked = Asked { direction, rate: *rate, burst_bits: rate.burst_bits(BURST_S) };
            let id = format!("perf-{}-{rate}", direction.cni());
            let pods = both(&arms, |arm| add(arm, &id, Some(asked)))?;
            limited.push(Limited { asked, pods, arms: &arms, free: &free });
        }
    }
    let (mut turns, mut failures) = (Vec::new(), Vec::new());
    for pair in 0..options.pairs() {
        for limited in &limited {
            let cases = cases.iter().filter(|case| limited.is_asked(case));
            for (turn, case) in (0..2).flat_map(|turn| cases.clone().map(move |c| (turn, *c))) {
                interrupt::check()?;
                let arm = (pair + turn) as usize % 2;
                let name = format!(
                    "turn {} of {}: {}, {}",
                    pair + 1,
                    options.pairs(),
                    name_of(case),
                    NAMES[arm]
                );
                match limited.take_turn(arm, case.2, options.window()) {
                    Ok(turn) => {
                        let (error, p99_us) = (turn.error_percent, turn.beside.p99_us);
                        progress(&format!("{name}: error {error:+.2} %, p99 {p99_us:.0} µs"));
                        turns.push(turn);
                    }
                    Err(error) => note(&mut failures, &name, &error)?,
                }
            }
        }
    }
    Ok(Found { failures, ..sum_up(&cases, &turns, options.pairs()) })
}

/// The streams whose congestion control the kernel has; says so of others.
fn usable(available: &str) -> Vec<Kind> {
    let is_there = |(_, congestion): &Kind| {
        let is_there = available.split_whitespace().any(|name| name == *congestion);
        if !is_there {
            progress(&format!("no streams of {congestion}: modprobe tcp_{congestion} has them"));
        }
        is_there
    };
    STREAMS.into_iter().filter(is_there).collect()
}

/// What fills a limit.
type Case = (Rate, Direction, Kind);

fn name_of((rate, direction, (count, congestion)): Case) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{rate} {}, {count} {congestion} stream{plural}", direction.name())
}

impl Turn {
    fn case(&self) -> Case {
        (self.bits_per_s, self.direction, (self.streams, self.congestion))
    }
}

fn both<T>(arms: &[Arm; 2], make: impl Fn(&Arm) -> Result<T>) -> Result<[T; 2]> {
    let [viaduct, reference] = arms;
    Ok([make(viaduct)?, make(reference)?])
}

impl Limited<'_> {
    fn is_asked(&self, (rate, direction, _): &Case) -> bool {
        (self.asked.rate, self.asked.direction) == (*rate, *direction)
    }

    fn take_turn(&self, arm: usize, (count, congestion): Kind, window: Duration) -> Result<Turn> {
        let Asked { direction, rate, .. } = self.asked;
        let lane = lane(&self.arms[arm], direction, &self.pods[arm], &self.free[arm])?;
        let (alone, _) = samples(&lane, EVERY, ALONE)?;
        let (stream, beside) = thread::scope(|scope| {
            let seconds = (BEFORE + window + AFTER).as_secs();
            let streams = Streams { count, congestion: Some(congestion), ..Streams::one(seconds) };
            let fill = move || iperf::run(&lane, streams);
            let stream = scope.spawn(fill);
            let beside = look(&lane, window);
            let stream = stream.join().map_err(|_| anyhow!("the thread of a stream panicked"));
            (stream.flatten(), beside)
        });
        let (stream, Beside { delivered, times, lost, cpu }) = (stream?, beside?);
        let gbit = delivered * window.as_secs_f64() / 1e9;
        Ok(Turn {
            arm: lane.arm,
            bits_per_s: rate,
            direction,
            streams: count,
            congestion,
            delivered,
            error_percent: rate.error_percent(delivered),
            alone: Times::of(&alone),
            beside: times,
            lost,
            retransmits: stream.retransmits,
            cpu_s_per_gbit: (cpu.busy * TICK_NS) as f64 / 1e9 / gbit,
            steal_percent: cpu.steal_percent(),
        })
    }
}

/// What was seen beside a stream.
struct Beside {
    delivered: f64,
    times: Times,
    lost: u64,
    cpu: CpuTimes,
}

fn look(lane: &Lane<'_>, window: Duration) -> Result<Beside> {
    interrupt::pause(BEFORE)?;
    let (before, cpu) = (Look::at(lane.server)?, CpuTimes::now()?);
    let (times, lost) = samples(lane, EVERY, window)?;
    let (after, cpu) = (Look::at(lane.server)?, CpuTimes::now()?.since(cpu));
    let delivered = after.bits_per_s_since(&before, Some(Family::Ipv4));
    Ok(Beside { delivered, times: Times::of(&times), lost, cpu })
}

/// Judges the cases of which both arms have had so many turns.
fn sum_up(cases: &[Case], turns: &[Turn], pairs: u64) -> Found {
    let heads = [
        "limit, arm",
        "error %",
        "alone p50",
        "p50",
        "p99",
        "lost",
        "retransmits",
        "CPU s/Gbit",
        "steal %",
    ];
    let title = "streams that fill a limit, medians; round trips beside them in µs";
    let mut table = Table::new(title, &heads);
    let ratio = "added latency, viaduct / bandwidth, turn by turn";
    let mut paired = Table::new(ratio, &["limit", "p50", "turns", "p99", "turns"]);
    let (mut targets, mut ratios) = (Vec::new(), Vec::new());
    for case in cases.iter().copied() {
        let name = name_of(case);
        let of = |arm: &str| -> Vec<&Turn> {
            turns.iter().filter(|turn| turn.case() == case && turn.arm == arm).collect()
        };
        for arm in NAMES {
            table.row(row(&format!("{name}, {arm}"), &of(arm)));
        }
        let is_whole = NAMES.iter().all(|arm| of(arm).len() as u64 == pairs);
        let judged = |arm: &str| if is_whole { of(arm) } else { Vec::new() };
        let worst = largest(judged(NAMES[0]).iter().map(|turn| turn.error_percent));
        targets.push(Target::new(format!("{name}: error, %"), worst, Bound::AtMost(ERROR)));
        let ratio = |added: fn(&Turn) -> f64| {
            let [viaduct, reference] =
                NAMES.map(|arm| judged(arm).into_iter().map(added).collect::<Vec<f64>>());
            Ratio::of((NAMES[0], &viaduct), (NAMES[1], &reference))
        };
        let p50 = ratio(|turn| turn.beside.p50_us - turn.alone.p50_us);
        let p99 = ratio(|turn| turn.beside.p99_us - turn.alone.p50_us);
        let mut cells = vec![name.clone()];
        for (ratio, what) in [(&p50, "p50"), (&p99, "p99")] {
            let what = format!("{name}: added latency, {what}, {}", ratio.of);
            targets.push(Target::new(what, ratio.median, Bound::AtMost(1.0)));
            cells.extend([shown(ratio.median, 2), list(&ratio.turns, 2)]);
        }
        paired.row(cells);
        let (rate, direction, (count, congestion)) = case;
        ratios.push(json!({
            "bits_per_s": rate, "direction": direction, "streams": count,
            "congestion": congestion, "p50": p50, "p99": p99,
        }));
    }
    let figures = json!({ "turns": turns, "ratios": ratios });
    Found { tables: vec![table, paired], targets, failures: Vec::new(), figures }
}

/// Everything that is measured of each arm.
fn cases(rates: &[Rate], streams: &[Kind]) -> impl Iterator<Item = Case> {
    let streams =
        |(rate, direction)| streams.iter().map(move |streams| (rate, direction, *streams));
    let directions = |rate: &Rate| Direction::BOTH.map(|direction| (*rate, direction));
    rates.iter().flat_map(directions).flat_map(streams)
}

fn row(name: &str, turns: &[&Turn]) -> [String; 9] {
    if turns.is_empty() {
        // All of them failed.
        return [name, "-", "-", "-", "-", "-", "-", "-", "-"].map(str::to_owned);
    }
    let middle = |figure: fn(&Turn) -> f64| {
        median(&turns.iter().map(|turn| figure(turn)).collect::<Vec<f64>>())
    };
    [
        name.to_owned(),
        format!("{:+.2}", middle(|turn| turn.error_percent)),
        format!("{:.0}", middle(|turn| turn.alone.p50_us)),
        format!("{:.0}", middle(|turn| turn.beside.p50_us)),
        format!("{:.0}", middle(|turn| turn.beside.p99_us)),
        turns.iter().map(|turn| turn.lost).sum::<u64>().to_string(),
        format!("{:.0}", middle(|turn| turn.retransmits as f64)),
        format!("{:.2}", middle(|turn| turn.cpu_s_per_gbit)),
        format!("{:.1}", middle(|turn| turn.steal_percent)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(arm: &'static str, p50_us: f64) -> Turn {
        Turn {
            arm,
            bits_per_s: Rate(1_000_000),
            direction: Direction::ToPod,
            streams: 1,
            congestion: CUBIC,
            delivered: 1e6,
            error_percent: 0.5,
            alone: Times::default(),
            beside: Times { p50_us, p99_us: p50_us, ..Times::default() },
            lost: 0,
            retransmits: 0,
            cpu_s_per_gbit: 1.0,
            steal_percent: 0.0,
        }
    }

    #[test]
    fn a_case_is_judged_if_no_turn_of_it_has_failed() {
        let turns = [(0, 3.0), (1, 6.0), (1, 8.0), (0, 2.0)];
        let turns = turns.map(|(arm, p50_us)| turn(NAMES[arm], p50_us));
        let figures = |turns: &[Turn]| -> Vec<(bool, String)> {
            let found = sum_up(&[turns[0].case()], turns, 2);
            found.targets.iter().map(|t| (t.met, shown(t.measured, 3))).collect()
        };
        let met = |figure: &str| (true, figure.to_owned());
        assert_eq!(figures(&turns), [met("0.500"), met("0.375"), met("0.375")]);
        let unknown = (false, "-".to_owned());
        assert_eq!(figures(&turns[..3]), [(); 3].map(|()| unknown.clone()));
    }

    #[test]
    fn streams_whose_congestion_control_the_kernel_does_not_have_are_left_out() {
        assert_eq!(usable("reno bbr cubic\n"), STREAMS);
        assert_eq!(usable("reno cubic bbr2\n"), [(1, CUBIC), (16, CUBIC)]);
    }
}
