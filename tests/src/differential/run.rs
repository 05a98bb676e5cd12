//! Batches in lock-step: the same frames into both networks, everything that arrives out of both.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::facts;
use super::generate::{Generator, NUMBER_MAX, barrier, ended_batch};
use super::outcome::{Key, Outcomes, hex, key, sort};
use super::plan::{PLACES, Place, Plan};
use super::report::Report;
use super::rules::{Case, agree, predict};
use super::station::Sending;
use super::topology::{self, Stations};
use crate::daemon::{NODE_V4, OUTSIDE_V4, Setup};

/// Frames in a batch: 9000 bytes take three frames of a fill ring of 128, and none may be lost.
const BATCH: usize = 32;

/// A batch takes a few milliseconds; a machine under load a thousand times that.
const BATCH_DEADLINE: Duration = Duration::from_secs(10);

/// Differences after which there is nothing new to learn.
const DIFFERENCES_MAX: usize = 10;

/// Frames sent in one go.
struct Batch {
    number: u32,
    sending: Sending,
    frames: Vec<Vec<u8>>,
}

/// Frames as they arrived, and where.
type Arrivals = Vec<(Place, Vec<u8>)>;

/// Sends `count` frames made from `seed` into both networks and compares what arrives where.
///
/// # Errors
/// When a network cannot be built, or stops to carry packets.
pub fn compare(setup: &Setup, seed: u64, count: usize) -> Result<Report> {
    let (mut viaduct, plan) = topology::viaduct(setup)?;
    let mut linux = topology::linux(&plan)?;
    let mut generator = Generator::new(seed, &plan);
    let mut report = Report::default();
    let mut last = 0;
    let mut number = || {
        last = last % NUMBER_MAX + 1;
        last
    };
    for batch in 1.. {
        let left = count.saturating_sub(report.frames);
        if left == 0 || report.differences.len() >= DIFFERENCES_MAX {
            break;
        }
        let batch = if batch == 1 {
            let frames = generator.one_per_error(&mut number);
            Batch { number: batch, sending: Sending::Queued, frames }
        } else {
            let sending = generator.sending();
            let frames = (0..BATCH.min(left)).map(|_| generator.frame(number())).collect();
            Batch { number: batch, sending, frames }
        };
        inject(&mut viaduct.stations, &plan, &batch)?;
        inject(&mut linux.stations, &plan, &batch)?;
        let ours = collect(&mut viaduct.stations, &plan, batch.number).context("Viaduct")?;
        let theirs = collect(&mut linux.stations, &plan, batch.number).context("Linux")?;
        judge(&plan, &batch, ours, theirs, &mut report);
    }
    report.drops = viaduct.node.pod_row(&viaduct.pods[0])?["from_pod"]["drops"].clone();
    viaduct.node.check()?;
    Ok(report)
}

/// Sends the frames of a batch and its barriers.
fn inject(stations: &mut Stations, plan: &Plan, batch: &Batch) -> Result<()> {
    let sender = &mut stations[Place::PodA as usize];
    for frame in &batch.frames {
        sender.queue(frame, batch.sending);
    }
    let link = plan.link(Place::PodA);
    for to in [plan.pod_b.0, NODE_V4, OUTSIDE_V4] {
        let frame = barrier([link.near, link.far], plan.pod_a.0, to, batch.number);
        sender.queue(&frame, batch.sending);
    }
    sender.send()
}

/// Receives until the batch's barriers have arrived everywhere.
fn collect(stations: &mut Stations, plan: &Plan, batch: u32) -> Result<Arrivals> {
    let deadline = Instant::now() + BATCH_DEADLINE;
    let mut arrivals = Vec::new();
    for place in [Place::PodB, Place::Node, Place::Outside] {
        gather(stations, plan, place, batch, 1, deadline, &mut arrivals)?;
    }
    // What the sender is told by workers and by kernels comes before these on the same ways.
    for (from, source) in [(Place::PodB, plan.pod_b.0), (Place::Outside, OUTSIDE_V4)] {
        let link = plan.link(from);
        let frame = barrier([link.near, link.far], source, plan.pod_a.0, batch);
        stations[from as usize].queue(&frame, Sending::Queued);
        stations[from as usize].send()?;
    }
    gather(stations, plan, Place::PodA, batch, 2, deadline, &mut arrivals)?;
    Ok(arrivals)
}

fn gather(
    stations: &Stations,
    plan: &Plan,
    place: Place,
    batch: u32,
    mut barriers: usize,
    deadline: Instant,
    arrivals: &mut Arrivals,
) -> Result<()> {
    let what = format!("the end of batch {batch}");
    stations[place as usize].receive_until(&what, deadline, |frame| {
        let ip = facts::of(&frame).and_then(|facts| facts.ip);
        // The node port also carries what only passes the node: that counts where it arrives.
        let is_for_place = place != Place::Node
            || ip.is_some_and(|ip| plan.place_of(ip.destination) == Some(place));
        match ended_batch(&frame) {
            _ if !is_for_place => {}
            Some(ended) => barriers -= usize::from(ended == batch),
            None => arrivals.push((place, frame)),
        }
        barriers == 0
    })
}

/// Compares what came of each frame of a batch.
fn judge(plan: &Plan, batch: &Batch, ours: Arrivals, theirs: Arrivals, report: &mut Report) {
    let keys: HashSet<Key> = batch.frames.iter().filter_map(|frame| key(frame)).collect();
    let mut ours = sort(plan, ours, &keys);
    let mut theirs = sort(plan, theirs, &keys);
    for (who, outcomes) in [("Viaduct", &ours), ("Linux", &theirs)] {
        for stranger in &outcomes.strangers {
            report.differences.push(format!("from nowhere, by {who}: {stranger:?}"));
        }
    }
    if let Some(place) = overtaken(&ours, &theirs) {
        report.differences.push(format!("batch {}: another order at {place:?}", batch.number));
    }
    for frame in &batch.frames {
        report.frames += 1;
        let Some(facts) = facts::of(frame) else { continue };
        let case = Case { plan, sending: batch.sending, facts };
        let (ours, linux) = (ours.take(frame), theirs.take(frame));
        let (predicted, mut rules) = predict(&case, &linux);
        if agree(&case, &ours, &predicted, &mut rules) {
            report.count(&ours, &rules);
        } else {
            let predicted = match &rules[..] {
                [] => String::new(),
                rules => format!("\n  predicted by {rules:?}: {predicted:?}"),
            };
            report.differences.push(format!(
                "sent {:?}: {}\n  Linux: {linux:?}{predicted}\n  Viaduct: {ours:?}",
                batch.sending,
                hex(frame),
            ));
        }
    }
}

/// A place at which frames that arrived in both networks did so in another order.
fn overtaken(ours: &Outcomes, theirs: &Outcomes) -> Option<Place> {
    PLACES.into_iter().find(|place| {
        let in_both = |of: &Outcomes, other: &Outcomes| -> Vec<Key> {
            let also_there = |key: &Key| other.order(*place).any(|also| also == *key);
            let mut order: Vec<Key> = of.order(*place).filter(also_there).collect();
            order.dedup(); // fragments
            order
        };
        in_both(ours, theirs) != in_both(theirs, ours)
    })
}
