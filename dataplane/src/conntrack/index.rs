//! Finds flows by key: a table of buckets of one cache line each. A key has two buckets, so a
//! lookup reads two lines at most, however full the table is and whatever keys an attacker sends.

use super::Direction;

/// Slots of a bucket: a cache line of 64 bytes.
const WAYS: usize = 16;
/// A key goes into its first bucket while that has so many free slots: then most lookups need one
/// line only, and the second bucket is left for the few first ones that are crowded.
const FREE_WAYS_MIN: usize = 4;

/// Flows that slots can name: a slot has 24 bits for the number.
pub(super) const FLOWS_MAX: u32 = 1 << 24;

/// A slot is 0 when it is free, and else the flow's number, the direction of the key, and a tag of
/// the key's hash that is never 0.
const TAG_SHIFT: u32 = 25;
const TAGS: u64 = 127;

#[derive(Clone)]
#[repr(align(64))]
struct Bucket([u32; WAYS]);

/// Keys of flows, two of each.
pub(super) struct Index {
    buckets: Box<[Bucket]>,
}

impl Index {
    /// Room for the keys of `flows` flows, half full then: 32 to 64 bytes a flow.
    pub(super) fn new(flows: u32) -> Index {
        assert!((1..=FLOWS_MAX).contains(&flows), "a flow's number fits a slot");
        let buckets = (flows as usize * 2).div_ceil(WAYS / 2).next_power_of_two().max(2);
        Index { buckets: vec![Bucket([0; WAYS]); buckets].into_boxed_slice() }
    }

    /// The flow with this hash that `is_it`.
    #[inline]
    pub(super) fn find(
        &self,
        hash: u64,
        is_it: impl Fn(u32, Direction) -> bool,
    ) -> Option<(u32, Direction)> {
        let tag = tag(hash);
        self.places(hash).into_iter().find_map(|place| {
            let slots = self.buckets[place].0.iter();
            slots.filter(|slot| **slot >> TAG_SHIFT == tag).find_map(|slot| {
                let (flow, direction) = open(*slot);
                is_it(flow, direction).then_some((flow, direction))
            })
        })
    }

    /// Adds a key. False if both of its buckets are full.
    #[must_use]
    pub(super) fn insert(&mut self, hash: u64, flow: u32, direction: Direction) -> bool {
        let [first, second] = self.places(hash);
        let free = |place: usize| self.buckets[place].0.iter().filter(|slot| **slot == 0).count();
        let free_first = free(first);
        let crowded = free_first < FREE_WAYS_MIN && free(second) > free_first;
        let place = if crowded { second } else { first };
        match self.buckets[place].0.iter_mut().find(|slot| **slot == 0) {
            Some(slot) => {
                *slot = slot_of(hash, flow, direction);
                true
            }
            None => false,
        }
    }

    /// Takes a key out.
    pub(super) fn remove(&mut self, hash: u64, flow: u32, direction: Direction) {
        let value = slot_of(hash, flow, direction);
        let found = self.places(hash).into_iter().find_map(|place| {
            let way = self.buckets[place].0.iter().position(|slot| *slot == value)?;
            Some((place, way))
        });
        let (place, way) = found.expect("a flow that is there has both of its keys in the index");
        self.buckets[place].0[way] = 0;
    }

    /// The buckets of a key: two different ones, by bits that the tag does not use.
    #[inline]
    fn places(&self, hash: u64) -> [usize; 2] {
        let mask = self.buckets.len() - 1;
        let first = hash as usize & mask;
        let second = (hash >> 32) as usize & mask;
        [first, if second == first { first ^ 1 } else { second }]
    }
}

#[inline]
fn tag(hash: u64) -> u32 {
    ((hash >> 57) % TAGS) as u32 + 1
}

fn slot_of(hash: u64, flow: u32, direction: Direction) -> u32 {
    tag(hash) << TAG_SHIFT | flow << 1 | direction as u32
}

fn open(slot: u32) -> (u32, Direction) {
    let direction = if slot & 1 == 0 { Direction::Original } else { Direction::Reply };
    (slot >> 1 & (FLOWS_MAX - 1), direction)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    #[test]
    fn all_keys_of_a_full_table_find_room_and_are_found() {
        for flows in [1, 7, 1000, 65_536] {
            let mut index = Index::new(flows);
            let mut seed = u64::from(flows);
            let hashes: Vec<_> =
                (0..flows).map(|_| [random(&mut seed), random(&mut seed)]).collect();
            for (flow, [a, b]) in (0..).zip(&hashes) {
                assert!(index.insert(*a, flow, Direction::Original));
                assert!(index.insert(*b, flow, Direction::Reply));
            }
            for (flow, [a, b]) in (0..).zip(&hashes) {
                let original = (flow, Direction::Original);
                let reply = (flow, Direction::Reply);
                assert_eq!(index.find(*a, |x, y| (x, y) == original), Some(original));
                assert_eq!(index.find(*b, |x, y| (x, y) == reply), Some(reply));
                index.remove(*a, flow, Direction::Original);
                assert_eq!(index.find(*a, |x, y| (x, y) == original), None);
            }
        }
    }

    #[test]
    fn keys_of_one_hash_fill_two_buckets_and_no_more() {
        let mut index = Index::new(1000);
        let room = (0..100).take_while(|flow| index.insert(42, *flow, Direction::Reply)).count();
        assert_eq!(room, 2 * WAYS);
        index.remove(42, 31, Direction::Reply);
        assert!(index.insert(42, 77, Direction::Original));
        assert!(!index.insert(42, 78, Direction::Original));
        let last = (FLOWS_MAX - 1, Direction::Reply);
        assert_eq!(open(slot_of(u64::MAX, last.0, last.1)), last);
    }
}
