//! Batches in lock-step: the same frames into both networks, everything that arrives out of both.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::facts;
use super::generate::{Generator, NUMBER_MAX, ended_batch, marker};
use super::outcome::{Key, Outcomes, hex, key, sort};
use super::plan::{Place, Plan};
use super::rules::{Case, Rule, agree, predict};
use super::station::Sending;
use super::topology::{self, Stations};
use crate::daemon::{NODE_V4, OUTSIDE_V4, Setup};

/// Frames in a batch: 9000 bytes take three frames of a fill ring of 128, and none may be lost.
const BATCH: usize = 32;

/// A batch takes a few milliseconds; a machine under load a thousand times that.
const BATCH_DEADLINE: Duration = Duration::from_secs(10);

/// Differences after which there is nothing new to learn.
const DIFFERENCES_MAX: usize = 12;

/// What came of a comparison.
#[derive(Debug, Default)]
pub struct Report {
    /// Frames injected.
    pub frames: usize,
    /// Frames with which both did the same, byte by byte.
    pub same: usize,
    /// Of these, how many arrived somewhere.
    pub delivered: usize,
    /// Uses of each rule.
    pub rules: BTreeMap<Rule, usize>,
    /// Unexplained differences.
    pub differences: Vec<String>,
}

/// Sends `count` frames into both networks.
///
/// # Errors
/// When a network cannot be built, or stops to carry markers.
pub fn compare(setup: Setup, seed: u64, count: usize) -> Result<Report> {
    let (mut viaduct, plan) = topology::viaduct(setup)?;
    let mut linux = topology::linux(&plan)?;
    let mut generator = Generator::new(seed, &plan);
    let mut report = Report::default();
    let mut last = 0;
    let mut number = move || {
        last = last % NUMBER_MAX + 1;
        last
    };
    let mut batch = 0;
    while report.frames < count && report.differences.len() < DIFFERENCES_MAX {
        batch += 1;
        let (sending, frames) = if batch == 1 {
            (Sending::Queued, generator.one_per_error(&mut number))
        } else {
            let size = BATCH.min(count - report.frames);
            let sending = generator.sending();
            (sending, (0..size).map(|_| generator.frame(number())).collect())
        };
        inject(&mut viaduct.stations, &plan, batch, sending, &frames)?;
        inject(&mut linux.stations, &plan, batch, sending, &frames)?;
        let keys: Vec<Key> = frames.iter().filter_map(|frame| key(frame)).collect();
        let ours = collect(&mut viaduct.stations, &plan, batch)
            .with_context(|| format!("batch {batch} of Viaduct"))?;
        let theirs = collect(&mut linux.stations, &plan, batch)
            .with_context(|| format!("batch {batch} of Linux"))?;
        let ours: Vec<_> = ours
            .into_iter()
            .filter(|(place, frame)| {
                *place != Place::Node
                    || facts::of(frame)
                        .and_then(|f| f.ip)
                        .is_some_and(|ip| plan.place_of(ip.destination) == Some(Place::Node))
            })
            .collect();
        let ours = sort(&plan, ours, &keys);
        let theirs = sort(&plan, theirs, &keys);
        judge(&plan, sending, &frames, ours, theirs, &mut report);
    }
    eprintln!("{:#}", viaduct.node.list("pods")?);
    Ok(report)
}

fn inject(
    stations: &mut Stations,
    plan: &Plan,
    batch: u32,
    sending: Sending,
    frames: &[Vec<u8>],
) -> Result<()> {
    let sender = &mut stations[Place::PodA as usize];
    for frame in frames {
        if frame.len() >= facts::ETHERNET {
            sender.queue(frame, sending);
        }
    }
    let link = plan.link(Place::PodA);
    for to in [plan.pod_b.0, NODE_V4, OUTSIDE_V4] {
        sender.queue(&marker([link.near, link.far], plan.pod_a.0, to, batch), sending);
    }
    sender.send()
}

fn collect(stations: &mut Stations, plan: &Plan, batch: u32) -> Result<Vec<(Place, Vec<u8>)>> {
    let deadline = Instant::now() + BATCH_DEADLINE;
    let mut arrivals = Vec::new();
    let mut gather = |stations: &Stations, place: Place, markers: usize, to: Option<_>| {
        let mut left = markers;
        stations[place as usize].receive_until(
            &format!("the end of batch {batch}"),
            deadline,
            |frame| {
                match ended_batch(&frame) {
                    Some(ended)
                        if to.is_none_or(|to| {
                            facts::of(&frame)
                                .and_then(|f| f.ip)
                                .is_some_and(|ip| ip.destination == to)
                        }) =>
                    {
                        left -= usize::from(ended == batch)
                    }
                    Some(_) => {}
                    None => arrivals.push((place, frame)),
                }
                left == 0
            },
        )
    };
    gather(stations, Place::PodB, 1, None)?;
    gather(stations, Place::Node, 1, Some(std::net::IpAddr::V4(NODE_V4)))?;
    gather(stations, Place::Outside, 1, None)?;
    for (from, source) in [(Place::PodB, plan.pod_b.0), (Place::Outside, OUTSIDE_V4)] {
        let link = plan.link(from);
        let frame = marker([link.near, link.far], source, plan.pod_a.0, batch);
        // The outside's kernel is silent towards what arrives, not towards what is sent there.
        stations[from as usize].queue(&frame, Sending::Queued);
        stations[from as usize].send()?;
    }
    gather(stations, Place::PodA, 2, None)?;
    Ok(arrivals)
}

fn judge(
    plan: &Plan,
    sending: Sending,
    frames: &[Vec<u8>],
    mut ours: Outcomes,
    mut theirs: Outcomes,
    report: &mut Report,
) {
    for (who, strangers) in [("Viaduct", &ours.strangers), ("Linux", &theirs.strangers)] {
        for stranger in strangers {
            report.differences.push(format!("from nowhere, by {who}: {stranger:?}"));
        }
    }
    for frame in frames {
        report.frames += 1;
        let take = |outcomes: &mut Outcomes| {
            key(frame).and_then(|key| outcomes.by_key.remove(&key)).unwrap_or_default()
        };
        let (ours, linux) = (take(&mut ours), take(&mut theirs));
        let Some(facts) = facts::of(frame) else { continue };
        let case = Case { plan, sending, facts };
        if ours == linux {
            report.same += 1;
            report.delivered += usize::from(!ours.is_empty());
        }
        let (predicted, mut rules) = predict(&case, &linux);
        if agree(&ours, &predicted, &mut rules) {
            for rule in rules {
                *report.rules.entry(rule).or_default() += 1;
            }
        } else {
            let predicted = if rules.is_empty() {
                String::new()
            } else {
                format!("\n  predicted: {predicted:?} by {rules:?}")
            };
            report.differences.push(format!(
                "sent {sending:?}: {}\n  Linux: {linux:?}{predicted}\n  Viaduct: {ours:?}",
                hex(frame)
            ));
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} frames, {} the same, {} of these delivered",
            self.frames, self.same, self.delivered
        )?;
        for (rule, count) in &self.rules {
            writeln!(f, "{count:8} {rule:?}")?;
        }
        for difference in &self.differences {
            writeln!(f, "{difference}\n")?;
        }
        Ok(())
    }
}
