//! Every rate in both directions, over both families, with small, full and mixed packets of UDP and
//! with TCP, as one flow and as sixteen: how far what gets through is from the limit.

mod cells;

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::daemon::{Node, Setup};
use e2e::pod::Pod;
use serde::Serialize;
use serde_json::Value;

use self::cells::{Cell, FAMILIES, FAST, FLOWS, PAIRS, Packets, RATES, all, sample, together};
use super::delivered::Look;
use super::load::{Ends, Load};
use super::{Direction, Found, Options, WARM_UP, json, largest, note, set_limit};
use crate::internet::Family;
use crate::interrupt;
use crate::lane::ROUTE_MTU;
use crate::report::{Bound, Table, Target, progress};

/// How far from the limit the rate may be, in percent.
const TARGET_PERCENT: f64 = 1.0;

/// How long a path without a limit is looked at, and how long before it is loaded.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_WARM_UP: Duration = Duration::from_millis(500);

/// A path that carries less than this without a limit says nothing about one. It is offered more.
const FASTER_THAN_LIMIT: f64 = 1.05;

/// What came of it. Rates are bits per second of Ethernet frames without FCS.
#[derive(Debug, Serialize)]
struct Measured {
    #[serde(flatten)]
    cell: Cell,
    /// The least that got through without a limit, where that was looked at.
    without_limit: Option<f64>,
    /// What gets through, by the counters of the pod's kernel; `None` if the path was found to be
    /// too slow before.
    delivered: Option<f64>,
    /// The same, by the workers'.
    counted_by_workers: Option<f64>,
    error_percent: Option<f64>,
    /// Why there are no figures, or not all.
    failed: Option<String>,
}

/// A node whose pods have limits in turn.
struct Pairs {
    node: Node,
    pairs: Vec<[Pod; 2]>,
}

/// Measures. Where a group cannot be measured, the others are.
///
/// # Errors
/// When a pod cannot be made, or it is interrupted.
pub fn measure(setup: &Setup, options: &Options) -> Result<Found> {
    let mut cells: Vec<Cell> = match options.quick {
        true => sample().collect(),
        false => all().collect(),
    };
    cells.retain(|cell| options.names(&cell.to_string()));
    ensure!(!cells.is_empty(), "no rate is called so; progress shows their names");
    let together = together(&cells);
    progress(&format!("{} rates, in {} groups", cells.len(), together.len()));
    let pairs = Pairs::build(setup)?;
    let (mut measured, mut failures) = (Vec::new(), Vec::new());
    for (number, cells) in together.iter().enumerate() {
        interrupt::check()?;
        progress(&format!("group {} of {}: {}", number + 1, together.len(), describe(cells)));
        let mut group: Vec<Measured> = cells.iter().copied().map(Measured::new).collect();
        if let Err(error) = pairs.measure(&mut group, options.window()) {
            note(&mut failures, &describe(cells), &error)?;
            group.iter_mut().for_each(|one| one.failed = Some(format!("{error:#}")));
        }
        measured.extend(group);
    }
    if let Err(error) = pairs.node.check() {
        note(&mut failures, "the node", &error)?;
    }
    Ok(Found { failures, ..sum_up(&measured) })
}

fn describe(cells: &[Cell]) -> String {
    match cells.len() - 1 {
        0 => cells[0].to_string(),
        more => format!("{}; and {more} more", cells[0]),
    }
}

impl Measured {
    fn new(cell: Cell) -> Measured {
        Measured {
            cell,
            without_limit: None,
            delivered: None,
            counted_by_workers: None,
            error_percent: None,
            failed: None,
        }
    }

    /// Of several looks at a path the worst one counts: the machine is not always as fast.
    fn saw_without_limit(&mut self, bits_per_s: f64) {
        let before = self.without_limit.unwrap_or(f64::INFINITY);
        self.without_limit = Some(before.min(bits_per_s));
    }

    /// Whether the path carries more than the limit, as far as that was looked at.
    fn is_carried(&self) -> bool {
        let least = FASTER_THAN_LIMIT * self.cell.bits_per_s.bits_per_s();
        self.without_limit.is_none_or(|rate| rate >= least)
    }

    /// What the limit is judged by; NaN if that is not known.
    fn error(&self) -> Option<f64> {
        match self.failed {
            Some(_) => Some(f64::NAN),
            None => self.error_percent.filter(|_| self.is_carried()),
        }
    }
}

impl Pairs {
    fn build(setup: &Setup) -> Result<Pairs> {
        let node = Node::start(setup.clone())?;
        let pair = |number| {
            let pod = |what| node.add_pod(&format!("perf-{what}-{number}"));
            Ok([pod("client")?, pod("server")?])
        };
        let pairs = (0..PAIRS).map(pair).collect::<Result<Vec<_>>>()?;
        Ok(Pairs { node, pairs })
    }

    /// Measures cells at the same time, each between a pair of its own.
    fn measure(&self, measured: &mut [Measured], window: Duration) -> Result<()> {
        let cells: Vec<Cell> = measured.iter().map(|one| one.cell).collect();
        let is_fast = cells.iter().any(|cell| cell.bits_per_s >= FAST);
        let mut carried: Vec<(usize, &Cell)> = cells.iter().enumerate().collect();
        let look = |measured: &mut [Measured], carried: &mut Vec<(usize, &Cell)>| {
            let rates = self.run(carried, LOOK_WARM_UP, LOOK)?;
            for ((index, _), (rate, _)) in carried.iter().zip(rates) {
                measured[*index].saw_without_limit(rate);
            }
            carried.retain(|(index, _)| measured[*index].is_carried());
            Ok::<(), anyhow::Error>(())
        };
        self.free(cells.len())?;
        if is_fast {
            look(measured, &mut carried)?;
        }
        for (index, cell) in &carried {
            let ends = self.pairs[*index].each_ref();
            // The burst is as much as there can be, as runtimes ask.
            set_limit(&self.node, cell.direction, ends, &cell.bits_per_s.to_string())?;
        }
        let rates = self.run(&carried, WARM_UP, window)?;
        for ((index, cell), (delivered, counted)) in carried.iter().zip(rates) {
            measured[*index].delivered = Some(delivered);
            measured[*index].counted_by_workers = Some(counted);
            measured[*index].error_percent = Some(cell.bits_per_s.error_percent(delivered));
        }
        if is_fast {
            self.free(cells.len())?;
            look(measured, &mut carried)?;
        }
        Ok(())
    }

    /// Takes away the limits of so many pairs, whatever group has left them.
    fn free(&self, pairs: usize) -> Result<()> {
        for ends in &self.pairs[..pairs] {
            for direction in Direction::BOTH {
                set_limit(&self.node, direction, ends.each_ref(), "none")?;
            }
        }
        Ok(())
    }

    /// Loads all of these pairs. Returns what each got per second, and what workers say it got.
    fn run(
        &self,
        cells: &[(usize, &Cell)],
        warm_up: Duration,
        window: Duration,
    ) -> Result<Vec<(f64, f64)>> {
        if cells.is_empty() {
            return Ok(Vec::new());
        }
        let load = self.load(cells)?;
        interrupt::pause(warm_up)?;
        let looks = || -> Result<Vec<Look>> {
            cells.iter().map(|(index, _)| Look::at(&self.pairs[*index][1].namespace)).collect()
        };
        let (counted_before, before) = (self.counted(cells)?, looks()?);
        let started = Instant::now();
        interrupt::pause(window)?;
        let (counted, after) = (self.counted(cells)?, looks()?);
        let seconds = started.elapsed().as_secs_f64();
        drop(load);
        Ok((0..cells.len())
            .map(|i| {
                let delivered = after[i].bits_per_s_since(&before[i], cells[i].1.tcp());
                let counted = (counted[i] - counted_before[i]) as f64;
                (delivered, 8.0 * counted / seconds)
            })
            .collect())
    }

    fn load(&self, cells: &[(usize, &Cell)]) -> Result<Load> {
        let ends = |index: usize, family| {
            let [client, server] = &self.pairs[index];
            let address: IpAddr = match family {
                Family::Ipv4 => server.v4.into(),
                Family::Ipv6 => server.v6.into(),
            };
            Ends { client: &client.namespace, server: &server.namespace, address }
        };
        if cells.iter().all(|(_, cell)| cell.packets == Packets::Tcp) {
            let streams = cells.iter().map(|(index, cell)| (ends(*index, cell.family), cell.flows));
            return Load::tcp(&streams.collect::<Vec<_>>());
        }
        let (mut flows, mut sinks) = (Vec::new(), Vec::<UdpSocket>::new());
        for (index, cell) in cells {
            let ends = ends(*index, cell.family);
            sinks.push(ends.sink()?);
            let frames = cell.packets.frames();
            flows.extend(ends.paced(cell.flows, frames, cell.offered_bits_per_s())?);
        }
        Ok(Load::udp(flows, sinks))
    }

    /// Bytes on a wire that workers have sent to the servers of these cells so far.
    fn counted(&self, cells: &[(usize, &Cell)]) -> Result<Vec<u64>> {
        let pods = self.node.list("pods")?;
        let bytes = |(index, _): &(usize, &Cell)| {
            let id = self.pairs[*index][1].container_id.as_str();
            let mut rows = pods.as_array().into_iter().flatten();
            let row: Option<&Value> = rows.find(|row| row["container_id"] == id);
            row.and_then(|row| row["to_pod"]["wire_bytes"].as_u64())
        };
        cells.iter().map(|cell| bytes(cell).context("viaduct pods shows every pod")).collect()
    }
}

fn sum_up(measured: &[Measured]) -> Found {
    let mut table = Table::new(
        format!(
            "limits: error of the delivered rate in %, MTU {ROUTE_MTU} (in brackets: without a \
             limit, in Gbit/s, the path carries no more)"
        ),
        &[
            "packets, limit",
            "to v4, 1",
            "16",
            "to v6, 1",
            "16",
            "from v4, 1",
            "16",
            "from v6, 1",
            "16",
        ],
    );
    for packets in Packets::ALL {
        for rate in RATES {
            let row = |direction, family, flows| {
                let cell = Cell { packets, bits_per_s: rate, direction, family, flows };
                measured.iter().find(|one| one.cell == cell).map_or(String::new(), show)
            };
            let columns = Direction::BOTH.into_iter().flat_map(|direction| {
                FAMILIES.into_iter().flat_map(move |family| {
                    FLOWS.into_iter().map(move |flows| row(direction, family, flows))
                })
            });
            let columns: Vec<String> = columns.collect();
            if columns.iter().any(|column| !column.is_empty()) {
                let name = format!("{}, {rate}", packets.name());
                table.row([name].into_iter().chain(columns));
            }
        }
    }
    let worst = largest(measured.iter().filter_map(Measured::error));
    let what = "limits: largest error of a rate, %";
    Found {
        tables: vec![table],
        targets: vec![Target::new(what, worst, Bound::AtMost(TARGET_PERCENT))],
        failures: Vec::new(),
        figures: json(measured),
    }
}

fn show(one: &Measured) -> String {
    match (one.error(), one.without_limit) {
        _ if one.failed.is_some() => "failed".to_owned(),
        (Some(error), _) => format!("{error:+.2}"),
        (None, Some(rate)) => format!("({:.2})", rate / 1e9),
        (None, None) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_once_carried_no_more_than_the_limit_judges_nothing() {
        let mut one = Measured::new(all().next().expect("a cell"));
        one.error_percent = Some(-7.0);
        assert_eq!((one.error(), show(&one)), (Some(-7.0), "-7.00".to_owned()));
        one.saw_without_limit(1_200_000.0);
        assert_eq!(one.error(), Some(-7.0));
        one.saw_without_limit(1_040_000.0);
        one.saw_without_limit(1_200_000.0);
        assert_eq!((one.error(), show(&one)), (None, "(0.00)".to_owned()));
    }

    #[test]
    fn a_group_that_fails_is_shown_and_leaves_the_target_unmeasured() {
        let mut measured: Vec<Measured> = all().take(2).map(Measured::new).collect();
        measured.iter_mut().for_each(|one| one.error_percent = Some(0.5));
        let target = |measured: &[Measured]| {
            let target = sum_up(measured).targets.remove(0);
            (target.met, target.measured)
        };
        assert_eq!(target(&measured), (true, 0.5));
        measured[1].failed = Some("nobody listens".to_owned());
        let (met, figure) = target(&measured);
        assert!(!met && figure.is_nan(), "{figure}");
        assert_eq!(show(&measured[1]), "failed");
        assert_eq!(sum_up(&measured).figures[1]["failed"], "nobody listens");
        assert!(!target(&[]).0, "nothing was measured");
    }
}
