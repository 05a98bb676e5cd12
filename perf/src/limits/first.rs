//! The first seconds of a pod of 10 Mbit/s with the burst that runtimes ask for, which is half a
//! gigabyte: what is through then is what its owner measures.

use std::time::Duration;

use anyhow::Result;
use e2e::daemon::Setup;
use serde::Serialize;

use super::arm::{Arm, Asked, lane};
use super::delivered::Look;
use super::load::{Ends, Load};
use super::{Direction, Found, Rate, json};
use crate::internet::Family;
use crate::interrupt;
use crate::report::{Bound, Table, Target, progress};

const RATE: Rate = Rate(10_000_000);

/// What containerd asks for, in bits.
const RUNTIMES_BURST_BITS: u64 = u32::MAX as u64;

/// How long it is looked, and when the first time.
const WHOLE: Duration = Duration::from_secs(10);
const FIRST: Duration = Duration::from_secs(1);

/// How far the rate of the first seconds may be from the limit, in percent.
const TARGET_PERCENT: f64 = 2.0;

/// What a stream got.
#[derive(Debug, Serialize)]
struct Measured {
    arm: &'static str,
    direction: Direction,
    /// In the first second, and in the first ten.
    first_bits_per_s: f64,
    bits_per_s: f64,
    error_percent: f64,
}

/// Measures.
///
/// # Errors
/// When a pod cannot be made or loaded.
pub fn measure(setup: &Setup) -> Result<Found> {
    let arms = Arm::both(setup)?;
    let mut measured = Vec::new();
    for direction in Direction::BOTH {
        for arm in &arms {
            interrupt::check()?;
            progress(&format!("first seconds of {RATE} {}: {}", direction.name(), arm.name()));
            measured.push(look(arm, direction)?);
        }
    }
    Ok(sum_up(&measured))
}

fn look(arm: &Arm, direction: Direction) -> Result<Measured> {
    let asked = Asked { direction, rate: RATE, burst_bits: RUNTIMES_BURST_BITS };
    let free = arm.add(&format!("perf-free-{}", direction.cni()), None)?;
    let limited = arm.add(&format!("perf-first-{}", direction.cni()), Some(asked))?;
    let lane = lane(arm, direction, &limited, &free)?;
    let ends = Ends { client: lane.client, server: lane.server, address: lane.address.into() };
    let begin = Look::at(lane.server)?;
    let _stream = Load::tcp(&[(ends, 1)])?;
    interrupt::pause(FIRST)?;
    let first = Look::at(lane.server)?;
    interrupt::pause(WHOLE - FIRST)?;
    let end = Look::at(lane.server)?;
    let rate = |look: Look| look.bits_per_s_since(&begin, Some(Family::Ipv4));
    Ok(Measured {
        arm: arm.name(),
        direction,
        first_bits_per_s: rate(first),
        bits_per_s: rate(end),
        error_percent: RATE.error_percent(rate(end)),
    })
}

fn sum_up(measured: &[Measured]) -> Found {
    let title = format!("the first seconds of {RATE} with the burst that runtimes ask for, Mbit/s");
    let mut table =
        Table::new(title, &["direction, arm", "first second", "ten seconds", "error %"]);
    let mut targets = Vec::new();
    for one in measured {
        let name = format!("{}, {}", one.direction.name(), one.arm);
        table.row([
            name,
            format!("{:.2}", one.first_bits_per_s / 1e6),
            format!("{:.2}", one.bits_per_s / 1e6),
            format!("{:+.2}", one.error_percent),
        ]);
        if one.arm == "viaduct" {
            let what = format!("first 10 s of {RATE} {}, error in %", one.direction.name());
            let bound = Bound::AtMost(TARGET_PERCENT);
            targets.push(Target::new(what, one.error_percent.abs(), bound));
        }
    }
    Found { tables: vec![table], targets, failures: Vec::new(), figures: json(measured) }
}
