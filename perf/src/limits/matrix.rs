//! Every rate in both directions, over both families, with small, full and mixed packets of UDP and
//! with TCP, as one flow and as sixteen: how far what gets through is from the limit.

use std::fmt;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::daemon::{Node, Setup};
use e2e::pod::Pod;
use serde::Serialize;
use serde_json::Value;

use super::delivered::{FULL_BYTES, Look};
use super::load::{Ends, Load};
use super::{Direction, Found, Options, Rate, WARM_UP, json};
use crate::internet::Family;
use crate::interrupt;
use crate::lane::ROUTE_MTU;
use crate::report::{Bound, Table, Target, progress};

const RATES: [Rate; 5] = [
    Rate(1_000_000),
    Rate(10_000_000),
    Rate(100_000_000),
    Rate(1_000_000_000),
    Rate(5_000_000_000),
];

const FLOWS: [u32; 2] = [1, 16];

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// How far from the limit the rate may be, in percent.
const TARGET_PERCENT: f64 = 1.0;

/// From this rate on, it is looked before and after whether the path carries that much without a
/// limit. What is slower is carried everywhere.
const FAST: Rate = Rate(100_000_000);

/// How long a path without a limit is looked at, and how long before it is loaded.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_WARM_UP: Duration = Duration::from_millis(500);

/// A path that carries less than this without a limit says nothing about one. It is offered more.
const FASTER_THAN_LIMIT: f64 = 1.05;

/// Pairs of pods, which are measured at the same time as far as they do not disturb each other:
const PAIRS: usize = 16;

/// a tenth of the packets that one worker can carry per second,
const TOGETHER_PACKETS: f64 = 100_000.0;

/// and less than what a single fast one has.
const TOGETHER_BITS: f64 = 400e6;

/// One measurement in this many is the sample.
const SAMPLE: usize = 8;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Packets {
    UdpSmall,
    UdpFull,
    UdpMixed,
    Tcp,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Cell {
    packets: Packets,
    bits_per_s: Rate,
    direction: Direction,
    family: Family,
    flows: u32,
}

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
}

/// A node whose pods have limits in turn.
struct Pairs {
    node: Node,
    pairs: Vec<[Pod; 2]>,
}

/// Measures.
///
/// # Errors
/// When a pod cannot be made or loaded.
pub fn measure(setup: &Setup, options: &Options) -> Result<Found> {
    let mut cells: Vec<Cell> = match options.quick {
        true => sample().collect(),
        false => all().collect(),
    };
    if let Some(text) = &options.only {
        cells.retain(|cell| cell.to_string().contains(text));
        ensure!(!cells.is_empty(), "no rate is called \"{text}\"; progress shows their names");
    }
    let together = together(&cells);
    progress(&format!("{} rates, in {} groups", cells.len(), together.len()));
    let pairs = Pairs::build(setup)?;
    let mut measured = Vec::new();
    for (number, cells) in together.iter().enumerate() {
        interrupt::check()?;
        progress(&format!("group {} of {}: {}", number + 1, together.len(), describe(cells)));
        measured.extend(pairs.measure(cells, options.window())?);
    }
    pairs.node.check()?;
    Ok(sum_up(&measured))
}

fn describe(cells: &[Cell]) -> String {
    match cells.len() - 1 {
        0 => cells[0].to_string(),
        more => format!("{}; and {more} more", cells[0]),
    }
}

fn all() -> impl Iterator<Item = Cell> {
    numbered().map(|(_, cell)| cell)
}

/// Cells that every rate, direction, family, kind and number of flows is in.
fn sample() -> impl Iterator<Item = Cell> {
    numbered().filter(|(sum, _)| sum.is_multiple_of(SAMPLE)).map(|(_, cell)| cell)
}

/// All cells, each with a number that differs from that of those which differ from it in one thing.
fn numbered() -> impl Iterator<Item = (usize, Cell)> {
    let choices = [RATES.len(), 2, 2, 2];
    Packets::ALL.into_iter().enumerate().flat_map(move |(kind, packets)| {
        (0..choices.iter().product()).map(move |index| {
            let [family, direction, flows] = [index % 2, index / 2 % 2, index / 4 % 2];
            let rate = index / 8;
            let cell = Cell {
                packets,
                bits_per_s: RATES[rate],
                direction: Direction::BOTH[direction],
                family: FAMILIES[family],
                flows: FLOWS[flows],
            };
            (2 * kind + 3 * rate + family + 2 * direction + 4 * flows, cell)
        })
    })
}

/// Cells that are measured at the same time.
fn together(cells: &[Cell]) -> Vec<Vec<Cell>> {
    let mut groups: Vec<Vec<Cell>> = Vec::new();
    for cell in cells {
        let fits = |group: &&mut Vec<Cell>| {
            let sum =
                |figure: fn(&Cell) -> f64| -> f64 { group.iter().chain([cell]).map(figure).sum() };
            let is_tcp = |cell: &Cell| cell.packets == Packets::Tcp;
            group.len() < PAIRS
                // Without a limit, streams would take all there is.
                && is_tcp(cell) == is_tcp(&group[0])
                && sum(Cell::packets_per_s) <= TOGETHER_PACKETS
                && sum(|cell| cell.bits_per_s.bits_per_s()) <= TOGETHER_BITS
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(*cell),
            None => groups.push(vec![*cell]),
        }
    }
    groups
}

impl Packets {
    const ALL: [Packets; 4] =
        [Packets::UdpSmall, Packets::UdpFull, Packets::UdpMixed, Packets::Tcp];

    fn name(self) -> &'static str {
        match self {
            Packets::UdpSmall => "UDP, 64 bytes",
            Packets::UdpFull => "UDP, 1500 bytes",
            Packets::UdpMixed => "UDP, mixed",
            Packets::Tcp => "TCP",
        }
    }

    /// Payloads of UDP, in bytes. Small packets have 64 as limits count them. Mixed ones are 7 of
    /// these, 4 of 594 and a full one (the "IMIX" of RFC 6985, its middle size rounded to cells).
    fn payloads(self, family: Family) -> &'static [usize] {
        match (self, family) {
            (Packets::UdpSmall, Family::Ipv4) => &[22],
            (Packets::UdpSmall, Family::Ipv6) => &[2],
            (Packets::UdpMixed, Family::Ipv4) => {
                &[22, 552, 22, 552, 22, 22, 552, 22, 552, 22, 22, 1472]
            }
            (Packets::UdpMixed, Family::Ipv6) => &[2, 532, 2, 532, 2, 2, 532, 2, 532, 2, 2, 1452],
            (Packets::UdpFull | Packets::Tcp, Family::Ipv4) => &[1472],
            (Packets::UdpFull | Packets::Tcp, Family::Ipv6) => &[1452],
        }
    }
}

/// Bytes of Ethernet, IP and UDP.
fn udp_header_bytes(family: Family) -> usize {
    FULL_BYTES - Packets::UdpFull.payloads(family)[0]
}

impl fmt::Display for Cell {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { packets, bits_per_s, direction, family, flows } = self;
        let (packets, direction, plural) =
            (packets.name(), direction.name(), if *flows == 1 { "" } else { "s" });
        write!(out, "{packets}, {bits_per_s}, {direction}, {family:?}, {flows} flow{plural}")
    }
}

impl Cell {
    /// Of what is sent by UDP, per second: enough beyond the limit to be held back, and no more
    /// than that costs.
    fn offered_bits_per_s(&self) -> f64 {
        let beyond = if self.bits_per_s < FAST { 1.5 } else { 1.2 };
        beyond * self.bits_per_s.bits_per_s()
    }

    fn packets_per_s(&self) -> f64 {
        let payloads = self.packets.payloads(self.family);
        let bytes = payloads.iter().sum::<usize>() as f64 / payloads.len() as f64;
        let bytes = bytes + udp_header_bytes(self.family) as f64;
        self.offered_bits_per_s() / (8.0 * bytes)
    }

    fn tcp(&self) -> Option<Family> {
        (self.packets == Packets::Tcp).then_some(self.family)
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

    /// What the limit is judged by.
    fn error(&self) -> Option<f64> {
        self.error_percent.filter(|_| self.is_carried())
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
    fn measure(&self, cells: &[Cell], window: Duration) -> Result<Vec<Measured>> {
        let is_fast = cells.iter().any(|cell| cell.bits_per_s >= FAST);
        let mut measured: Vec<Measured> = cells.iter().copied().map(Measured::new).collect();
        let mut carried: Vec<(usize, &Cell)> = cells.iter().enumerate().collect();
        let look = |measured: &mut Vec<Measured>, carried: &mut Vec<(usize, &Cell)>| {
            let rates = self.run(carried, LOOK_WARM_UP, LOOK)?;
            for ((index, _), (rate, _)) in carried.iter().zip(rates) {
                measured[*index].saw_without_limit(rate);
            }
            carried.retain(|(index, _)| measured[*index].is_carried());
            Ok::<(), anyhow::Error>(())
        };
        if is_fast {
            look(&mut measured, &mut carried)?;
        }
        for (index, cell) in &carried {
            self.limit(*index, cell, &cell.bits_per_s.to_string())?;
        }
        let rates = self.run(&carried, WARM_UP, window)?;
        for (index, cell) in &carried {
            self.limit(*index, cell, "none")?;
        }
        for ((index, cell), (delivered, counted)) in carried.iter().zip(rates) {
            measured[*index].delivered = Some(delivered);
            measured[*index].counted_by_workers = Some(counted);
            measured[*index].error_percent = Some(cell.bits_per_s.error_percent(delivered));
        }
        if is_fast {
            look(&mut measured, &mut carried)?;
        }
        Ok(measured)
    }

    /// Sets the limit of a cell's pod. The burst is as much as there can be, as runtimes ask.
    fn limit(&self, pair: usize, cell: &Cell, rate: &str) -> Result<()> {
        let [client, server] = &self.pairs[pair];
        let pod = match cell.direction {
            Direction::ToPod => server,
            Direction::FromPod => client,
        };
        let line = ["limits", "set", &pod.container_id, cell.direction.option(), rate];
        self.node.viaduct(&line).map(drop)
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
            let payloads = cell.packets.payloads(cell.family);
            let header = udp_header_bytes(cell.family);
            sinks.push(ends.sink()?);
            flows.extend(ends.paced(cell.flows, payloads, header, cell.offered_bits_per_s())?);
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
    let errors = measured.iter().filter_map(Measured::error);
    let worst = errors.map(f64::abs).fold(0.0, f64::max);
    let what = "limits: largest error of a rate, %";
    Found {
        tables: vec![table],
        targets: vec![Target::new(what, worst, Bound::AtMost(TARGET_PERCENT))],
        figures: json(measured),
    }
}

fn show(one: &Measured) -> String {
    match (one.error(), one.without_limit) {
        (Some(error), _) => format!("{error:+.2}"),
        (None, Some(rate)) => format!("({:.2})", rate / 1e9),
        (None, None) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_has_every_cell_once() {
        let cells: Vec<Cell> = all().collect();
        assert_eq!(cells.len(), 5 * 2 * 2 * 4 * 2);
        for (index, cell) in cells.iter().enumerate() {
            assert!(!cells[..index].contains(cell), "{cell:?}");
        }
    }

    #[test]
    fn the_sample_has_every_rate_direction_family_kind_and_number_of_flows() {
        let cells: Vec<Cell> = sample().collect();
        assert!((15..=25).contains(&cells.len()), "{}", cells.len());
        for cell in all() {
            assert!(cells.iter().any(|one| one.bits_per_s == cell.bits_per_s));
            assert!(cells.iter().any(|one| one.packets == cell.packets));
            let others = |one: &&Cell| one.direction == cell.direction && one.family == cell.family;
            assert!(cells.iter().filter(others).any(|one| one.flows == cell.flows), "{cell:?}");
        }
    }

    #[test]
    fn cells_that_are_measured_together_leave_each_other_room() {
        let cells: Vec<Cell> = all().collect();
        let groups = together(&cells);
        assert_eq!(groups.concat().len(), cells.len());
        // Fast ones are alone.
        assert!(groups.len() < 100, "{} groups take too long", groups.len());
        for group in groups.iter().filter(|group| group.len() > 1) {
            let bits: f64 = group.iter().map(|cell| cell.bits_per_s.bits_per_s()).sum();
            assert!(group.len() <= PAIRS && bits <= TOGETHER_BITS);
            let tcp = group.iter().filter(|cell| cell.packets == Packets::Tcp).count();
            assert!(tcp == 0 || tcp == group.len());
        }
    }

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

    /// Ethernet 14, IPv4 20 or IPv6 40, UDP 8.
    fn header_of(family: Family) -> usize {
        if family == Family::Ipv4 { 42 } else { 62 }
    }

    #[test]
    fn payloads_make_the_packets_that_they_say() {
        for family in FAMILIES {
            let header = udp_header_bytes(family);
            let sizes = |packets: Packets| {
                packets.payloads(family).iter().map(|len| len + header).collect::<Vec<_>>()
            };
            assert_eq!(sizes(Packets::UdpSmall), [64]);
            assert_eq!((header, sizes(Packets::UdpFull)), (header_of(family), vec![1514]));
            let mut mixed = sizes(Packets::UdpMixed);
            mixed.sort_unstable();
            assert_eq!(mixed, [[64; 7].as_slice(), &[594; 4], &[1514]].concat());
        }
    }
}
