//! The map against a list of prefixes that is searched from end to end.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
struct Entry {
    prefix: u128,
    len: u8,
}

impl Entry {
    fn new(address: u128, len: u8) -> Entry {
        Entry { prefix: address & !host_bits(len), len }
    }

    fn first(self) -> u128 {
        self.prefix
    }

    fn last(self) -> u128 {
        self.prefix | host_bits(self.len)
    }

    fn covers(self, address: u128) -> bool {
        (self.first()..=self.last()).contains(&address)
    }
}

fn host_bits(len: u8) -> u128 {
    u128::MAX.checked_shr(u32::from(len)).unwrap_or(0)
}

/// The map as anybody would write it.
#[derive(Clone, Debug, Default)]
struct List(Vec<(Entry, u32)>);

impl List {
    fn insert(&mut self, entry: Entry, value: u32) {
        self.remove(entry);
        self.0.push((entry, value));
    }

    fn remove(&mut self, entry: Entry) {
        self.0.retain(|(other, _)| (other.prefix, other.len) != (entry.prefix, entry.len));
    }

    fn lookup(&self, address: u128) -> Option<u32> {
        let covering = self.0.iter().filter(|(entry, _)| entry.covers(address));
        covering.max_by_key(|(entry, _)| entry.len).map(|(_, value)| *value)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Entry, u32),
    Remove(Entry),
    /// Removes one that is there, by its place in the list.
    RemoveKnown(prop::sample::Index),
    Clone,
}

/// Prefixes that cover one another, are neighbors, or part ways at any bit.
fn entry() -> impl Strategy<Value = Entry> {
    let address = prop_oneof![
        4 => Just(0x0af4_0000_0000_0000_0000_0000_0000_0000),
        4 => Just(0xfd00_0010_0244_0001_0000_0000_0000_0000),
        1 => Just(0),
        1 => Just(u128::MAX),
        1 => any::<u128>(),
    ];
    let flips = prop::collection::vec(0_u32..128, 0..3);
    let len = prop_oneof![
        3 => 0_u8..=128,
        2 => prop::sample::select(vec![0, 1, 6, 7, 12, 13, 24, 31, 32, 48, 64, 127, 128]),
    ];
    (address, flips, len).prop_map(|(address, flips, len)| {
        Entry::new(flips.iter().fold(address, |address, bit| address ^ 1 << bit), len)
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (entry(), any::<u32>()).prop_map(|(entry, value)| Step::Insert(entry, value)),
        1 => entry().prop_map(Step::Remove),
        3 => any::<prop::sample::Index>().prop_map(Step::RemoveKnown),
        1 => Just(Step::Clone),
    ]
}

/// Both give the same answer inside, at the borders and just outside of every prefix.
fn assert_same(map: &PrefixMap<u32>, list: &List, known: &[Entry]) {
    for entry in known {
        for border in [entry.first(), entry.last()] {
            for address in [border.wrapping_sub(1), border, border.wrapping_add(1)] {
                assert_eq!(map.lookup(address), list.lookup(address), "{address:x} at {entry:x?}");
            }
        }
    }
    assert_eq!(map.len(), list.0.len());
    assert_tidy(map);
}

/// Its counts are true, and no node is there for nothing.
fn assert_tidy(map: &PrefixMap<u32>) {
    let mut counted = Size { values: usize::from(map.default.is_some()), nodes: 0, arrays: 0 };
    for half in &map.halves {
        count(half, &mut counted);
    }
    let counts = |size: Size| (size.values, size.nodes, size.arrays);
    assert_eq!(counts(map.size), counts(counted));
}

fn count(node: &Node<u32>, size: &mut Size) {
    assert_eq!(node.internal.count_ones() as usize, node.values.len());
    assert_eq!(node.external.count_ones() as usize, node.children.len());
    assert!(node.skip.len() <= Skip::LEN_MAX && node.skip.len().is_multiple_of(STRIDE));
    size.values += node.values.len();
    size.nodes += node.children.len();
    size.arrays += usize::from(!node.values.is_empty()) + usize::from(!node.children.is_empty());
    for child in &*node.children {
        assert!(!child.is_empty(), "an empty node");
        count(child, size);
    }
}

fn v4(text: &str) -> u128 {
    u128::from(u32::from(text.parse::<std::net::Ipv4Addr>().unwrap())) << 96
}

fn v6(text: &str) -> u128 {
    u128::from(text.parse::<std::net::Ipv6Addr>().unwrap())
}

proptest! {
    #[test]
    fn the_map_answers_like_the_list_and_so_do_its_clones(
        steps in prop::collection::vec(step(), 1..80)
    ) {
        let (mut map, mut list) = (PrefixMap::default(), List::default());
        let (mut clones, mut known) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Insert(entry, value) => {
                    map.insert(entry.prefix, entry.len, value);
                    list.insert(entry, value);
                    known.push(entry);
                }
                Step::Remove(entry) => {
                    map.remove(entry.prefix, entry.len);
                    list.remove(entry);
                    known.push(entry);
                }
                Step::RemoveKnown(index) if !list.0.is_empty() => {
                    let (entry, _) = list.0[index.index(list.0.len())];
                    map.remove(entry.prefix, entry.len);
                    list.remove(entry);
                }
                Step::RemoveKnown(_) => {}
                Step::Clone => clones.push((map.clone(), list.clone())),
            }
            assert_same(&map, &list, &known);
        }
        for (map, list) in &clones {
            assert_same(map, list, &known);
        }
        for (entry, _) in &list.0 {
            map.remove(entry.prefix, entry.len);
        }
        assert_eq!((map.len(), map.bytes()), (0, 0));
        for (map, list) in &clones {
            assert_same(map, list, &known);
        }
    }

    #[test]
    fn bits_beyond_the_length_do_not_count(address: u128, len in 0_u8..=128, noise: u128) {
        let mut map = PrefixMap::default();
        map.insert(address, len, 7_u32);
        let other = address ^ (noise & host_bits(len));
        prop_assert_eq!(map.lookup(other), Some(7));
        map.insert(other, len, 8);
        prop_assert_eq!((map.len(), map.lookup(address)), (1, Some(8)));
        map.remove(other, len);
        prop_assert_eq!(map.lookup(address), None);
    }

    #[test]
    fn what_a_skip_is_cut_into_joins_again(bits: u128, chunks in 1_u8..=9, at in 0_u8..9) {
        let whole = Skip::new(bits, chunks * STRIDE);
        let (above, chunk, below) = whole.cut(at.min(chunks - 1) * STRIDE);
        prop_assert!(above.covers(bits) && whole.covers(bits));
        prop_assert_eq!(above.join(chunk, below).map(|skip| skip.0), Some(whole.0));
    }
}

#[test]
fn an_empty_map_covers_nothing() {
    let map = PrefixMap::<u32>::default();
    for address in [0, 1, v4("10.0.0.1"), v6("fd00::1"), u128::MAX] {
        assert_eq!(map.lookup(address), None);
    }
}

#[test]
fn the_default_route_covers_what_nothing_else_does() {
    let mut map = PrefixMap::default();
    map.insert(0, 0, 1);
    map.insert(v4("10.0.0.0"), 8, 2);
    assert_eq!(map.lookup(v4("9.255.255.255")), Some(1));
    assert_eq!(map.lookup(v4("10.0.0.0")), Some(2));
    assert_eq!(map.lookup(v4("255.255.255.255")), Some(1));
    map.remove(0, 0);
    assert_eq!(map.lookup(v4("9.255.255.255")), None);
    assert_eq!(map.lookup(v4("10.255.255.255")), Some(2));
}

#[test]
fn hosts_lie_between_their_neighbors() {
    let mut map = PrefixMap::default();
    map.insert(v4("10.1.2.3"), 32, 4);
    map.insert(v6("fd00::3"), 128, 6);
    assert_eq!(map.lookup(v4("10.1.2.3")), Some(4));
    assert_eq!(map.lookup(v4("10.1.2.2")), None);
    assert_eq!(map.lookup(v4("10.1.2.4")), None);
    assert_eq!(map.lookup(v6("fd00::3")), Some(6));
    assert_eq!(map.lookup(v6("fd00::2")), None);
    assert_eq!(map.lookup(v6("fd00::4")), None);
}

#[test]
fn the_next_shorter_prefix_covers_again_when_a_longer_one_goes() {
    let mut map = PrefixMap::default();
    let address = v4("10.1.2.3");
    for len in 0..=32_u8 {
        map.insert(address, len, u32::from(len));
        assert_eq!(map.lookup(address), Some(u32::from(len)));
    }
    for len in (1..=32_u8).rev() {
        map.remove(address, len);
        assert_eq!(map.lookup(address), Some(u32::from(len) - 1));
        assert_tidy(&map);
    }
}

#[test]
fn what_is_not_there_cannot_be_removed() {
    let mut map = PrefixMap::default();
    map.insert(v4("10.1.2.0"), 24, 1);
    for (address, len) in [("10.1.2.0", 23), ("10.1.2.0", 25), ("10.1.3.0", 24), ("0.0.0.0", 0)] {
        map.remove(v4(address), len);
        assert_eq!((map.len(), map.lookup(v4("10.1.2.9"))), (1, Some(1)), "{address}/{len}");
    }
}

#[test]
fn a_change_after_a_clone_copies_its_path_and_no_more() {
    let mut map = PrefixMap::default();
    for network in 0..=255_u32 {
        map.insert(u128::from(10 << 24 | network << 8) << 96, 24, network);
        map.insert(u128::from(200 << 24 | network << 8) << 96, 24, network);
    }
    let before = map.clone();
    map.insert(v4("10.0.7.0"), 24, 1000);
    assert!(!Arc::ptr_eq(&map.halves[0].children, &before.halves[0].children));
    assert!(Arc::ptr_eq(&map.halves[1].children, &before.halves[1].children));
    let shared = iter::zip(&*map.halves[0].children, &*before.halves[0].children)
        .filter(|(now, before)| Arc::ptr_eq(&now.values, &before.values))
        .count();
    assert_eq!(shared, map.halves[0].children.len() - 1);
    assert_eq!(before.lookup(v4("10.0.7.1")), Some(7));
    assert_eq!(map.lookup(v4("10.0.7.1")), Some(1000));
}

#[test]
fn nodes_where_ways_no_longer_part_are_joined_again() {
    let mut map = PrefixMap::default();
    map.insert(v6("fd00:10:244:1::"), 64, 1);
    map.insert(v6("fd00:10:244:1::7"), 128, 2);
    let (nodes, bytes) = (map.size.nodes, map.bytes());
    for sibling in ["fd00:10:999::", "fd00:11::", "fd01::", "fd00:10:244:2::"] {
        map.insert(v6(sibling), 64, 3);
    }
    assert!(map.size.nodes > nodes);
    for sibling in ["fd00:10:999::", "fd00:11::", "fd01::", "fd00:10:244:2::"] {
        map.remove(v6(sibling), 64);
        assert_tidy(&map);
    }
    assert_eq!((map.size.nodes, map.bytes()), (nodes, bytes));
    assert_eq!(map.lookup(v6("fd00:10:244:1::7")), Some(2));
    assert_eq!(map.lookup(v6("fd00:10:244:1::8")), Some(1));
}

#[test]
fn networks_of_a_cluster_take_few_nodes() {
    let mut map = PrefixMap::default();
    for node in 0..64_u128 {
        map.insert(v6("fd00:10:244::") | node << 64, 64, 0);
    }
    // One for the bits they share, and one for every three bits of 61 to 64 that follow.
    assert!(map.size.nodes <= 10, "{} nodes", map.size.nodes);
}
