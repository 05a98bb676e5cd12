//! `viaduct-perf limits`: what limits of pods do to traffic. Whether the rate is the one asked for,
//! in every direction and with every kind of packets; what else they do to a stream, beside the
//! reference's plugin; and what hundreds of them at once cost.

mod arm;
mod beside;
mod crowd;
mod delivered;
mod first;
mod load;
mod matrix;

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Error, Result, ensure};
use e2e::daemon::{Node, Setup};
use e2e::pod::Pod;
use serde::Serialize;
use serde_json::{Map, Value, to_value};

use self::delivered::FULL_BYTES;
use crate::interrupt;
use crate::report::{Report, Table, Target, progress, shown};

/// Until the burst of a limit is spent and streams have found their pace: 64 KiB at 1 Mbit/s, of
/// which half is offered beyond the rate, take 1.1 s.
const WARM_UP: Duration = Duration::from_millis(2500);

/// Congestion control of TCP wherever nothing else is said: Linux's own default, so that figures do
/// not depend on what a machine has made its own.
const CUBIC: &str = "cubic";

/// What is measured, how long and how often.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only these parts; by default all of them
    #[arg(long, value_delimiter = ',', value_enum)]
    part: Vec<Part>,
    /// Seconds of each rate that is measured, after the burst is spent
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Turns of each arm, where arms take turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pairs: u64,
    /// A sample: an eighth of the matrix, one rate beside the plugin, and one turn of each arm
    #[arg(long)]
    quick: bool,
    /// Of the matrix, or beside the plugin, only what has this in its name: "UDP, mixed, 1G, from
    /// pod", or "1 cubic"
    #[arg(long)]
    only: Option<String>,
    /// Rates at which the plugin stands beside, as Kubernetes writes them
    #[arg(long, value_delimiter = ',', default_values_t = [Rate(100_000_000), Rate(1_000_000_000)])]
    rates: Vec<Rate>,
    /// Beside the plugin, let the streams of both arms understand congestion marks
    #[arg(long)]
    ecn: bool,
    /// Pods that have a limit at the same time
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(2..=250))]
    pods: u64,
    /// The lowest limit of these pods; each has 2 % of it more than the one before
    #[arg(long, default_value_t = Rate(100_000))]
    least: Rate,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Every rate, direction, family, kind of packets and number of flows
    Matrix,
    /// The same rate by Viaduct and by the reference's plugin: latency, retransmits, CPU
    Beside,
    /// The first seconds of a pod with the burst that runtimes ask for
    First,
    /// Hundreds of limits at once, and two pods without one beside them
    Crowd,
}

impl Part {
    const ALL: [Part; 4] = [Part::Matrix, Part::Beside, Part::First, Part::Crowd];
}

/// What one part found.
struct Found {
    tables: Vec<Table>,
    targets: Vec<Target>,
    failures: Vec<String>,
    figures: Value,
}

/// Measures. What fails is told, and the rest goes on.
///
/// # Errors
/// When nothing can be measured, or it is interrupted.
pub fn measure(setup: &Setup, options: &Options) -> Result<Report> {
    let (mut tables, mut targets, mut figures) = (Vec::new(), Vec::new(), Map::new());
    let mut failures = Vec::new();
    for part in Part::ALL {
        if !options.part.is_empty() && !options.part.contains(&part) {
            continue;
        }
        let (name, found) = match part {
            Part::Matrix => ("matrix", matrix::measure(setup, options)),
            Part::Beside => ("beside", beside::measure(setup, options)),
            Part::First => ("first", first::measure(setup)),
            Part::Crowd => ("crowd", crowd::measure(setup, options)),
        };
        match found {
            Ok(found) => {
                tables.extend(found.tables);
                targets.extend(found.targets);
                failures.extend(found.failures);
                figures.insert(name.to_owned(), found.figures);
            }
            Err(error) => note(&mut failures, name, &error)?,
        }
    }
    ensure!(!figures.is_empty(), "nothing could be measured: {}", failures.join("; "));
    let figures = Value::Object(figures);
    Ok(Report { measurement: "limits", tables, targets, failures, figures })
}

/// Notes and tells what has failed.
///
/// # Errors
/// When it was interrupted: then nothing has failed, and nothing goes on.
fn note(failures: &mut Vec<String>, name: &str, error: &Error) -> Result<()> {
    interrupt::check()?;
    let failure = format!("{name}: {error:#}");
    progress(&format!("failed: {failure}"));
    failures.push(failure);
    Ok(())
}

impl Options {
    fn pairs(&self) -> u64 {
        if self.quick { 1 } else { self.pairs }
    }

    fn rates(&self) -> &[Rate] {
        let count = if self.quick { 1 } else { self.rates.len() };
        &self.rates[..count.min(self.rates.len())]
    }

    /// Whether what is called so is to be measured.
    fn names(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|text| name.contains(text))
    }

    fn window(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Which packets of a pod a limit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Direction {
    ToPod,
    FromPod,
}

impl Direction {
    const BOTH: [Direction; 2] = [Direction::ToPod, Direction::FromPod];

    /// As tables say it.
    fn name(self) -> &'static str {
        match self {
            Direction::ToPod => "to pod",
            Direction::FromPod => "from pod",
        }
    }

    /// As CNI calls it.
    fn cni(self) -> &'static str {
        match self {
            Direction::ToPod => "ingress",
            Direction::FromPod => "egress",
        }
    }
}

/// Bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Rate(u64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let suffix = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let factor = match suffix {
            "" => Some(1),
            "k" => Some(1_000),
            "M" => Some(1_000_000),
            "G" => Some(1_000_000_000),
            _ => None,
        };
        let number: Option<u64> = text[..text.len() - suffix.len()].parse().ok();
        let rate = number.zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
        match rate {
            Some(rate @ 1_000..=1_000_000_000_000) => Ok(Rate(rate)),
            _ => {
                Err("a rate is a whole number of bits per second such as 100M: 1k to 1000G".into())
            }
        }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let suffixes = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
        match suffixes.iter().find(|(factor, _)| self.0.is_multiple_of(*factor)) {
            Some((factor, suffix)) => write!(out, "{}{suffix}", self.0 / factor),
            None => write!(out, "{}", self.0),
        }
    }
}

impl Rate {
    fn bits_per_s(self) -> f64 {
        self.0 as f64
    }

    /// A burst that is what the rate carries in this time, and two packets at least, in bits.
    fn burst_bits(self, seconds: f64) -> u64 {
        8 * ((self.bits_per_s() * seconds / 8.0) as u64).max(2 * FULL_BYTES as u64)
    }

    /// How far a measured rate is from this one, in percent of it.
    fn error_percent(self, measured_bits_per_s: f64) -> f64 {
        100.0 * (measured_bits_per_s / self.bits_per_s() - 1.0)
    }
}

/// Changes the limit of what one pod sends, or of what the other one gets of it: a rate, `none`, or
/// what else `viaduct limits set` takes.
fn set_limit(node: &Node, direction: Direction, ends: [&Pod; 2], limit: &str) -> Result<()> {
    let [sender, receiver] = ends;
    match direction {
        Direction::ToPod => node.set_limits(receiver, &format!("--ingress {limit}")),
        Direction::FromPod => node.set_limits(sender, &format!("--egress {limit}")),
    }
}

/// The largest of these errors, to whichever side. NaN for none, and where one was not measured.
fn largest(errors: impl Iterator<Item = f64>) -> f64 {
    // In this order NaN is behind all numbers.
    errors.map(f64::abs).max_by(f64::total_cmp).unwrap_or(f64::NAN)
}

/// Everything of a part as JSON.
fn json(figures: impl Serialize) -> Value {
    to_value(figures).expect("figures have names for keys")
}

/// A figure of every turn, for tables.
fn list(values: &[f64], digits: usize) -> String {
    values.iter().map(|value| shown(*value, digits)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_they_are_written() {
        for text in ["1k", "1001", "1500k", "10M", "5G"] {
            assert_eq!(text.parse::<Rate>().map(|rate| rate.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "M", "999", "1.5G", "10Mi", "1001G", "18446744073709551615G"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_burst_is_what_a_rate_carries_in_a_time_and_two_packets_at_least() {
        assert_eq!(Rate(100_000_000).burst_bits(0.005), 500_000);
        assert_eq!(Rate(1_000_000).burst_bits(0.005), 8 * 2 * 1514);
    }

    #[test]
    fn the_largest_error_is_known_only_if_all_are() {
        assert_eq!(largest([1.0, -2.0, 0.5].into_iter()), 2.0);
        assert!(largest([1.0, f64::NAN, 3.0].into_iter()).is_nan());
        assert!(largest([].into_iter()).is_nan());
    }

    #[test]
    fn an_error_is_what_is_too_much_or_missing() {
        assert!((Rate(1_000_000).error_percent(1_010_000.0) - 1.0).abs() < 1e-9);
        assert!((Rate(1_000_000).error_percent(500_000.0) + 50.0).abs() < 1e-9);
    }
}
