//! Cursors against a naive queue, with counters that start anywhere, and against a kernel that
//! writes nonsense.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// The other side of a ring, as simple as can be: a queue, and free-running counters.
struct Kernel {
    slots: Vec<u64>,
    producer: AtomicU32,
    consumer: AtomicU32,
}

impl Kernel {
    fn new(start: u32, size: u32) -> Kernel {
        Kernel {
            slots: vec![0; size as usize],
            producer: AtomicU32::new(start),
            consumer: AtomicU32::new(start),
        }
    }

    fn slot(&mut self, counter: u32) -> &mut u64 {
        let size = self.slots.len();
        &mut self.slots[counter as usize % size]
    }

    /// Takes the oldest entry that it can see.
    fn take(&mut self) -> Option<u64> {
        let next = self.consumer.load(Ordering::Acquire);
        if self.producer.load(Ordering::Acquire) == next {
            return None;
        }
        let entry = *self.slot(next);
        self.consumer.store(next.wrapping_add(1), Ordering::Release);
        Some(entry)
    }

    /// Adds an entry if it can see a free slot.
    fn add(&mut self, entry: u64) -> bool {
        let next = self.producer.load(Ordering::Acquire);
        if next.wrapping_sub(self.consumer.load(Ordering::Acquire)) as usize == self.slots.len() {
            return false;
        }
        *self.slot(next) = entry;
        self.producer.store(next.wrapping_add(1), Ordering::Release);
        true
    }
}

/// Counters near the wrap, and anywhere.
fn start() -> impl Strategy<Value = u32> {
    prop_oneof![u32::MAX - 20..=u32::MAX, 0..20u32, any::<u32>()]
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// We write or read this many, as far as there is room.
    Move(u32),
    /// We show what we did.
    Publish,
    /// The kernel moves this many.
    Kernel(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1..10u32).prop_map(Step::Move),
        Just(Step::Publish),
        (1..10u32).prop_map(Step::Kernel),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn what_is_produced_arrives_once_and_in_order(
        start in start(), size in (0..5u32).prop_map(|power| 1 << power), steps in steps(),
    ) {
        let mut kernel = Kernel::new(start, size);
        let mut cursor = ProducerCursor::new(start, size);
        // What was written, and how much of it the kernel may see.
        let (mut written, mut shown, mut next) = (VecDeque::new(), 0, 0u64);
        for step in steps {
            match step {
                Step::Move(count) => {
                    let free = cursor.free(count, &kernel.consumer);
                    prop_assert!(free as usize <= size as usize - written.len());
                    if free < count {
                        prop_assert_eq!(free as usize, size as usize - written.len());
                    }
                    for _ in 0..count.min(free) {
                        kernel.slots[cursor.reserve() as usize] = next;
                        written.push_back(next);
                        next += 1;
                    }
                }
                Step::Publish => {
                    prop_assert_eq!(cursor.commit(&kernel.producer), shown < written.len());
                    shown = written.len();
                }
                Step::Kernel(count) => {
                    for _ in 0..count {
                        let expected = (shown > 0).then(|| written.pop_front()).flatten();
                        prop_assert_eq!(kernel.take(), expected);
                        shown = shown.saturating_sub(1);
                    }
                    prop_assert_eq!(cursor.pending(&kernel.consumer) as usize, written.len());
                }
            }
        }
    }

    #[test]
    fn what_the_kernel_produces_is_read_once_and_in_order(
        start in start(), size in (0..5u32).prop_map(|power| 1 << power), steps in steps(),
    ) {
        let mut kernel = Kernel::new(start, size);
        let mut cursor = ConsumerCursor::new(start, size);
        // What the kernel wrote and we have not read; what we read and have not given back.
        let (mut waiting, mut kept, mut next) = (VecDeque::new(), 0, 0u64);
        for step in steps {
            match step {
                Step::Move(count) => {
                    for _ in 0..count {
                        let ready = cursor.ready(&kernel.producer);
                        prop_assert!(ready as usize <= waiting.len());
                        prop_assert_eq!(ready == 0, waiting.is_empty());
                        let Some(expected) = waiting.pop_front() else { break };
                        prop_assert_eq!(kernel.slots[cursor.peek(0) as usize], expected);
                        cursor.advance(1);
                        kept += 1;
                    }
                }
                Step::Publish => {
                    cursor.release(&kernel.consumer);
                    kept = 0;
                }
                Step::Kernel(count) => {
                    for _ in 0..count {
                        let room = waiting.len() + kept < size as usize;
                        prop_assert_eq!(kernel.add(next), room);
                        if room {
                            waiting.push_back(next);
                            next += 1;
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_hostile_consumer_counter_never_frees_what_is_not_there(
        start in start(), values in prop::collection::vec(any::<u32>(), 1..50),
    ) {
        let size = 8;
        let consumer = AtomicU32::new(start);
        let producer = AtomicU32::new(start);
        let mut cursor = ProducerCursor::new(start, size);
        for value in values {
            consumer.store(value, Ordering::Relaxed);
            let free = cursor.free(size, &consumer);
            prop_assert!(free <= size);
            prop_assert!(cursor.pending(&consumer) <= size);
            for _ in 0..free {
                prop_assert!(cursor.reserve() < size);
            }
            cursor.commit(&producer);
        }
    }

    #[test]
    fn a_hostile_producer_counter_never_shows_more_than_a_ring_full(
        start in start(), values in prop::collection::vec(any::<u32>(), 1..50),
    ) {
        let size = 8;
        let producer = AtomicU32::new(start);
        let consumer = AtomicU32::new(start);
        let mut cursor = ConsumerCursor::new(start, size);
        for value in values {
            producer.store(value, Ordering::Relaxed);
            let ready = cursor.ready(&producer);
            prop_assert!(ready <= size);
            for ahead in 0..ready {
                prop_assert!(cursor.peek(ahead) < size);
            }
            cursor.advance(ready);
            cursor.release(&consumer);
        }
    }
}

#[test]
fn a_counter_that_ran_too_far_is_believed_again_once_it_is_sane() {
    let (size, consumer) = (4, AtomicU32::new(0));
    let mut cursor = ProducerCursor::new(0, size);
    for _ in 0..4 {
        assert!(cursor.free(1, &consumer) >= 1);
        cursor.reserve();
    }
    for nonsense in [5, 100, u32::MAX, 1 << 31] {
        consumer.store(nonsense, Ordering::Relaxed);
        assert_eq!(cursor.free(1, &consumer), 0, "{nonsense}");
    }
    consumer.store(3, Ordering::Relaxed);
    assert_eq!(cursor.free(4, &consumer), 3);

    let producer = AtomicU32::new(5);
    let mut cursor = ConsumerCursor::new(0, size);
    assert_eq!(cursor.ready(&producer), 0, "five entries in a ring of four");
    producer.store(4, Ordering::Relaxed);
    assert_eq!(cursor.ready(&producer), 4);
}

#[test]
fn nothing_is_stored_when_nothing_was_done() {
    let counter = AtomicU32::new(7);
    let mut producer = ProducerCursor::new(7, 4);
    assert!(!producer.commit(&counter));
    let mut consumer = ConsumerCursor::new(7, 4);
    counter.store(9, Ordering::Relaxed);
    consumer.release(&counter);
    assert_eq!(counter.load(Ordering::Relaxed), 9, "not written to");
}

#[test]
#[should_panic(expected = "power of two")]
fn a_ring_whose_size_is_no_power_of_two_is_refused() {
    let _cursor = ProducerCursor::new(0, 3);
}
