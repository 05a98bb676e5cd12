use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const LINES: u32 = 12;
const HORIZON_NS: u64 = SLOTS as u64 * SLOT_NS;

#[derive(Clone, Debug)]
enum Step {
    /// So many nanoseconds from now on, or before now.
    Schedule(u32, i64),
    Cancel(u32),
    Advance(u64),
    Back(u64),
    Pop,
}

fn step() -> impl Strategy<Value = Step> {
    let lengths = [1_000, 100_000, HORIZON_NS, 3 * HORIZON_NS];
    let ns = || prop::sample::select(lengths.to_vec()).prop_flat_map(|most| 0..most);
    prop_oneof![
        8 => (0..LINES, ns()).prop_map(|(line, ns)| Step::Schedule(line, ns as i64)),
        1 => (0..LINES, ns()).prop_map(|(line, ns)| Step::Schedule(line, -(ns as i64))),
        2 => (0..LINES).prop_map(Step::Cancel),
        8 => ns().prop_map(Step::Advance),
        1 => ns().prop_map(Step::Back),
        8 => Just(Step::Pop),
    ]
}

/// The same by a sorted map: lines by the end of their slot, and then in the order in which they
/// were put there.
#[derive(Default)]
struct Model {
    now_ns: u64,
    count: u64,
    scheduled: BTreeMap<(u64, u64), u32>,
    due: Vec<u32>,
}

impl Model {
    fn cancel(&mut self, line: u32) {
        self.scheduled.retain(|_, other| *other != line);
        self.due.retain(|other| *other != line);
    }

    fn schedule(&mut self, line: u32, at_ns: u64) {
        self.cancel(line);
        let last_ns = (self.now_ns / SLOT_NS + SLOTS as u64 - 1) * SLOT_NS;
        let end_ns = at_ns.div_ceil(SLOT_NS) * SLOT_NS;
        let end_ns = if at_ns <= self.now_ns { self.now_ns } else { end_ns };
        self.count += 1;
        self.scheduled.insert((end_ns.min(last_ns.max(self.now_ns)), self.count), line);
    }

    fn advance(&mut self, now_ns: u64) {
        let last_ns = if now_ns < self.now_ns { u64::MAX } else { now_ns };
        while let Some(entry) = self.scheduled.first_entry() {
            if entry.key().0 > last_ns {
                break;
            }
            self.due.push(entry.remove());
        }
        self.now_ns = now_ns;
    }
}

fn wheel() -> Wheel {
    let mut wheel = Wheel::new();
    for line in 0..LINES {
        assert_eq!(wheel.add_line(), line);
    }
    wheel
}

fn due(wheel: &mut Wheel) -> Vec<u32> {
    let pop = || {
        let line = wheel.first_due()?;
        wheel.cancel(line);
        Some(line)
    };
    std::iter::from_fn(pop).collect()
}

proptest! {
    #[test]
    fn a_wheel_equals_a_sorted_map(
        start in 0..4 * HORIZON_NS,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let (mut wheel, mut model) = (wheel(), Model::default());
        wheel.advance(start);
        model.advance(start);
        for step in steps {
            let now_ns = model.now_ns;
            match step {
                Step::Schedule(line, ns) => {
                    let at_ns = now_ns.saturating_add_signed(ns);
                    wheel.schedule(line, at_ns);
                    model.schedule(line, at_ns);
                }
                Step::Cancel(line) => {
                    wheel.cancel(line);
                    model.cancel(line);
                }
                Step::Advance(ns) => {
                    wheel.advance(now_ns + ns);
                    model.advance(now_ns + ns);
                }
                Step::Back(ns) => {
                    wheel.advance(now_ns.saturating_sub(ns));
                    model.advance(now_ns.saturating_sub(ns));
                }
                Step::Pop => {
                    prop_assert_eq!(wheel.first_due(), model.due.first().copied());
                    if let Some(line) = wheel.first_due() {
                        wheel.cancel(line);
                        model.due.remove(0);
                    }
                }
            }
            prop_assert_eq!(wheel.now_ns(), model.now_ns);
            let first = model.scheduled.keys().next().map(|(end_ns, _)| *end_ns);
            match (model.due.is_empty(), first) {
                (true, None) => prop_assert_eq!(wheel.next_ns(), None),
                (true, Some(end_ns)) if end_ns > model.now_ns => {
                    prop_assert_eq!(wheel.next_ns(), Some(end_ns));
                }
                _ => prop_assert!(wheel.next_ns().is_some_and(|at_ns| at_ns <= model.now_ns)),
            }
        }
        prop_assert_eq!(due(&mut wheel), model.due);
    }

    #[test]
    fn no_line_is_early_and_none_is_a_slot_late(
        now_ns in any::<u32>(),
        ahead_ns in 1..HORIZON_NS - 2 * SLOT_NS,
    ) {
        let (now_ns, mut wheel) = (u64::from(now_ns), wheel());
        wheel.advance(now_ns);
        wheel.schedule(3, now_ns + ahead_ns);
        let next_ns = wheel.next_ns().expect("one is scheduled");
        prop_assert!((now_ns + ahead_ns..now_ns + ahead_ns + SLOT_NS).contains(&next_ns));
        wheel.advance(next_ns - 1);
        prop_assert_eq!(wheel.first_due(), None);
        wheel.advance(next_ns);
        prop_assert_eq!(wheel.first_due(), Some(3));
    }
}

#[test]
fn every_slot_is_found_from_every_place_of_the_wheel() {
    let mut wheel = wheel();
    for start in (0..SLOTS as u64).step_by(61) {
        for ahead in (1..SLOTS as u64).step_by(67).chain([SLOTS as u64 - 1]) {
            wheel.now_ns = start * SLOT_NS;
            wheel.schedule(0, (start + ahead) * SLOT_NS);
            assert_eq!(wheel.next_ns(), Some((start + ahead) * SLOT_NS), "{start} + {ahead}");
            wheel.cancel(0);
            assert_eq!(wheel.next_ns(), None);
        }
    }
}

#[test]
fn a_line_beyond_the_wheel_waits_in_its_last_slot() {
    let mut wheel = wheel();
    for at_ns in [HORIZON_NS, 10 * HORIZON_NS, u64::MAX] {
        wheel.schedule(0, at_ns);
        assert_eq!(wheel.next_ns(), Some(HORIZON_NS - SLOT_NS));
    }
}

#[test]
fn a_line_that_should_have_left_already_is_due_by_the_next_advance() {
    let mut wheel = wheel();
    wheel.advance(20_000);
    wheel.schedule(0, 20_000);
    wheel.schedule(1, 0);
    assert_eq!(wheel.first_due(), None, "not by this one");
    assert!(wheel.next_ns().is_some_and(|at_ns| at_ns <= 20_000));
    wheel.advance(20_000);
    assert_eq!(due(&mut wheel), [0, 1]);
}

#[test]
fn a_long_absence_makes_everything_due_in_order() {
    let mut wheel = wheel();
    for line in 0..LINES {
        wheel.schedule(line, u64::from((line * 7) % LINES) * 1_000_000);
    }
    wheel.advance(u64::MAX);
    let sorted = due(&mut wheel);
    assert_eq!(
        sorted.iter().map(|line| (line * 7) % LINES).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    );
    wheel.schedule(5, u64::MAX);
    wheel.advance(u64::MAX);
    assert_eq!(wheel.first_due(), Some(5));
}

#[test]
fn the_end_of_time_is_no_overflow() {
    let mut wheel = wheel();
    wheel.advance(u64::MAX - 1);
    wheel.schedule(0, u64::MAX);
    assert_eq!(wheel.next_ns(), Some(u64::MAX));
}
