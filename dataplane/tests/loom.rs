//! The protocols between threads under every interleaving, and every staleness, that the memory
//! model allows.
//!
//! Runs only with its own configuration:
//! `RUSTFLAGS="--cfg loom" cargo test -p dataplane --test loom --release --target-dir target/loom`
//!
//! What a protocol guards is a [`Guarded`] cell: two accesses that are not ordered by the protocol
//! fail the model, whatever values they would have seen.

#![cfg(loom)]

use dataplane::crossing::Sleeper;
use dataplane::sync::{AtomicU32, Ordering, fence};
use dataplane::xsk::cursor::{ConsumerCursor, ProducerCursor};
use loom::cell::UnsafeCell;
use loom::sync::{Arc, Mutex, Notify};
use loom::thread;

/// Something that one thread at a time may touch, or several may read.
struct Guarded(UnsafeCell<()>);

// SAFETY: there is nothing in the cell; loom fails the model at the first access that races.
unsafe impl Sync for Guarded {}

impl Guarded {
    fn new() -> Guarded {
        Guarded(UnsafeCell::new(()))
    }

    fn read(&self) {
        self.0.with(|_nothing| ());
    }

    fn write(&self) {
        self.0.with_mut(|_nothing| ());
    }
}

/// A ring of two entries as both sides see it.
struct Ring {
    slots: [(Guarded, AtomicU32); SIZE as usize],
    producer: AtomicU32,
    consumer: AtomicU32,
}

const SIZE: u32 = 2;
/// Entries that pass: one more than fit, so that a slot is used again.
const ENTRIES: u32 = 3;
/// The counters wrap in the middle.
const START: u32 = u32::MAX - 1;

impl Ring {
    fn new() -> Arc<Ring> {
        let slot = || (Guarded::new(), AtomicU32::new(0));
        Arc::new(Ring {
            slots: [slot(), slot()],
            producer: AtomicU32::new(START),
            consumer: AtomicU32::new(START),
        })
    }

    fn write(&self, slot: u32, entry: u32) {
        let (guarded, value) = &self.slots[slot as usize];
        guarded.write();
        value.store(entry, Ordering::Relaxed);
    }

    fn read(&self, slot: u32) -> u32 {
        let (guarded, value) = &self.slots[slot as usize];
        guarded.read();
        value.load(Ordering::Relaxed)
    }
}

/// The other side of a ring: does the same with every entry, given its counter and its value.
fn kernel(ring: &Arc<Ring>, step: fn(&Ring, u32, u32)) -> thread::JoinHandle<()> {
    let ring = ring.clone();
    thread::spawn(move || {
        for entry in 0..ENTRIES {
            step(&ring, START.wrapping_add(entry), entry);
        }
    })
}

#[test]
fn the_kernel_reads_what_the_producer_wrote_and_the_producer_overwrites_only_what_it_has_read() {
    loom::model(|| {
        let ring = Ring::new();
        let kernel = kernel(&ring, |ring, next, entry| {
            while ring.producer.load(Ordering::Acquire) == next {
                thread::yield_now();
            }
            assert_eq!(ring.read(next % SIZE), entry);
            ring.consumer.store(next.wrapping_add(1), Ordering::Release);
        });
        let mut cursor = ProducerCursor::new(START, SIZE);
        for entry in 0..ENTRIES {
            while cursor.free(1, &ring.consumer) == 0 {
                thread::yield_now();
            }
            ring.write(cursor.reserve(), entry);
            assert!(cursor.commit(&ring.producer));
        }
        kernel.join().expect("the kernel got them all");
    });
}

#[test]
fn the_consumer_reads_what_the_kernel_wrote_and_the_kernel_overwrites_only_what_was_released() {
    loom::model(|| {
        let ring = Ring::new();
        let kernel = kernel(&ring, |ring, next, entry| {
            while next.wrapping_sub(ring.consumer.load(Ordering::Acquire)) == SIZE {
                thread::yield_now();
            }
            ring.write(next % SIZE, entry);
            ring.producer.store(next.wrapping_add(1), Ordering::Release);
        });
        let mut cursor = ConsumerCursor::new(START, SIZE);
        for entry in 0..ENTRIES {
            while cursor.ready(&ring.producer) == 0 {
                thread::yield_now();
            }
            assert_eq!(ring.read(cursor.peek(0)), entry);
            cursor.advance(1);
            cursor.release(&ring.consumer);
        }
        kernel.join().expect("the kernel wrote them all");
    });
}

/// Ringers that each leave one piece of work, and a worker that does them all. A wake-up that is
/// lost leaves the worker asleep for ever, which loom reports as a deadlock.
fn a_worker_and(ringers: u32) {
    let sleeper = Arc::new(Sleeper::awake());
    let work = Arc::new(AtomicU32::new(0));
    // Stands for the eventfd. A wait may also end by itself, as a sleep that is long enough does.
    let event = Arc::new(Notify::new());
    let ringers: Vec<_> = (0..ringers)
        .map(|_| {
            let (sleeper, work, event) = (sleeper.clone(), work.clone(), event.clone());
            thread::spawn(move || {
                work.fetch_add(1, Ordering::Relaxed);
                if sleeper.must_wake() {
                    event.notify();
                }
            })
        })
        .collect();
    while work.load(Ordering::Relaxed) < ringers.len() as u32 {
        sleeper.going_to_sleep();
        if work.load(Ordering::Relaxed) < ringers.len() as u32 {
            event.wait();
        }
        sleeper.woken();
    }
    for ringer in ringers {
        ringer.join().expect("it has rung");
    }
}

#[test]
fn no_wake_up_is_lost() {
    loom::model(|| a_worker_and(1));
}

#[test]
fn no_wake_up_is_lost_between_two_ringers() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| a_worker_and(2));
}

/// A snapshot of the tables: read by the worker, freed by control.
struct Snapshot {
    generation: u32,
    memory: Guarded,
}

/// A published snapshot. The mutex stands for the arc-swap, which loom cannot see into.
type Slot = Mutex<Arc<Snapshot>>;

fn snapshot(generation: u32) -> Arc<Snapshot> {
    Arc::new(Snapshot { generation, memory: Guarded::new() })
}

/// The worker's side: as `Worker::adopt`.
fn adopt(tables: &mut Arc<Snapshot>, slot: &Slot, generation: &AtomicU32) {
    let newest = slot.lock().expect("no thread panicked").clone();
    if newest.generation != tables.generation {
        *tables = newest;
        fence(Ordering::Release);
    }
    generation.store(tables.generation, Ordering::Relaxed);
}

#[test]
fn a_snapshot_is_freed_by_control_after_its_last_use() {
    const NEWEST: u32 = 3;
    loom::model(|| {
        let mut kept = vec![snapshot(1)];
        let slot = Arc::new(Mutex::new(kept[0].clone()));
        let generation = Arc::new(AtomicU32::new(1));
        let worker = thread::spawn({
            let (slot, generation) = (slot.clone(), generation.clone());
            let mut tables = kept[0].clone();
            move || {
                while tables.generation < NEWEST {
                    adopt(&mut tables, &slot, &generation);
                    tables.memory.read(); // forwards by it
                    thread::yield_now();
                }
            }
        });
        for next in 2..=NEWEST {
            let newest = snapshot(next);
            kept.push(newest.clone());
            // What was in the slot is dropped here; `kept` has it still.
            *slot.lock().expect("no thread panicked") = newest;
            // Retires whatever every worker is past: as `Publisher::retire`.
            let adopted = generation.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            for freed in kept.extract_if(.., |kept| kept.generation < adopted) {
                freed.memory.write();
                let last = Arc::try_unwrap(freed).is_ok();
                assert!(last, "the last reference is control's");
            }
        }
        worker.join().expect("it has adopted the newest");
        assert_eq!(generation.load(Ordering::Relaxed), NEWEST);
    });
}
