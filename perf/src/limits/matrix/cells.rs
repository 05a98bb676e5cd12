//! What the matrix has to measure: its cells, a sample of them, and which are measured together.

use std::fmt;

use serde::Serialize;

use super::super::delivered::FULL_BYTES;
use super::super::{Direction, Rate};
use crate::internet::Family;

/// Limits.
pub const RATES: [Rate; 5] = [
    Rate(1_000_000),
    Rate(10_000_000),
    Rate(100_000_000),
    Rate(1_000_000_000),
    Rate(5_000_000_000),
];

/// Flows that share a limit.
pub const FLOWS: [u32; 2] = [1, 16];

/// What they go over.
pub const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// From this rate on, it is looked before and after whether the path carries that much without a
/// limit. What is slower is carried everywhere.
pub const FAST: Rate = Rate(100_000_000);

/// Pairs of pods, which are measured at the same time as far as they do not disturb each other:
pub const PAIRS: usize = 16;

/// a tenth of the packets that one worker can carry per second,
const TOGETHER_PACKETS: f64 = 100_000.0;

/// and less than what a single fast one has.
const TOGETHER_BITS: f64 = 400e6;

/// One measurement in this many is the sample.
const SAMPLE: usize = 8;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Packets {
    UdpSmall,
    UdpFull,
    UdpMixed,
    Tcp,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cell {
    pub packets: Packets,
    pub bits_per_s: Rate,
    pub direction: Direction,
    pub family: Family,
    pub flows: u32,
}

/// Every cell.
pub fn all() -> impl Iterator<Item = Cell> {
    numbered().map(|(_, cell)| cell)
}

/// Cells that every rate, direction, family, kind and number of flows is in.
pub fn sample() -> impl Iterator<Item = Cell> {
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
pub fn together(cells: &[Cell]) -> Vec<Vec<Cell>> {
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
    /// In the order of tables.
    pub const ALL: [Packets; 4] =
        [Packets::UdpSmall, Packets::UdpFull, Packets::UdpMixed, Packets::Tcp];

    /// As tables say it.
    pub fn name(self) -> &'static str {
        match self {
            Packets::UdpSmall => "UDP, 64 bytes",
            Packets::UdpFull => "UDP, 1500 bytes",
            Packets::UdpMixed => "UDP, mixed",
            Packets::Tcp => "TCP",
        }
    }

    /// Bytes of Ethernet frames, as limits count them, one after another. Mixed ones are 7 small
    /// ones, 4 of 594 and a full one (the "IMIX" of RFC 6985, its middle size rounded to cells).
    pub fn frames(self) -> &'static [usize] {
        match self {
            Packets::UdpSmall => &[64],
            Packets::UdpMixed => &[64, 594, 64, 594, 64, 64, 594, 64, 594, 64, 64, FULL_BYTES],
            Packets::UdpFull | Packets::Tcp => &[FULL_BYTES],
        }
    }
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
    pub fn offered_bits_per_s(&self) -> f64 {
        let beyond = if self.bits_per_s < FAST { 1.5 } else { 1.2 };
        beyond * self.bits_per_s.bits_per_s()
    }

    fn packets_per_s(&self) -> f64 {
        let frames = self.packets.frames();
        let bytes = frames.iter().sum::<usize>() as f64 / frames.len() as f64;
        self.offered_bits_per_s() / (8.0 * bytes)
    }

    /// Its family, if it is TCP.
    pub fn tcp(&self) -> Option<Family> {
        (self.packets == Packets::Tcp).then_some(self.family)
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
    fn mixed_packets_are_seven_small_ones_four_of_594_bytes_and_a_full_one() {
        let mut mixed = Packets::UdpMixed.frames().to_vec();
        mixed.sort_unstable();
        assert_eq!(mixed, [[64; 7].as_slice(), &[594; 4], &[1514]].concat());
        assert_eq!(Packets::UdpSmall.frames(), [64]);
        assert_eq!(Packets::UdpFull.frames(), [1514]);
    }
}
