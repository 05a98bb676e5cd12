//! The table: how flows are found, opened, followed and forgotten. Every operation takes a bounded
//! number of steps and no memory; what takes longer says so.

mod forget;
mod room;

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::index::Index;
use super::queues::{QueueId, Queues};
use super::record::{Flow, Life, Records};
use super::state::{Class, Progress};
use super::{
    Carried, Direction, Endpoint, FlowCounters, FlowKey, FlowState, HashSeed, NewFlow, OpenError,
    Signal, Source, Stage, Transport,
};
use crate::port::{PORTS_MAX, PortId};

/// Source ports tried for a flow whose client's port is taken. With half of all ports taken, one
/// flow in 2^32 finds none.
const PORT_TRIES: usize = 32;

/// Owners looked at in one call of [`FlowTable::expire`]: all there can be within a minute, even on
/// a worker that makes four passes a second, for 0.1 µs a pass.
const OWNERS_PER_CALL: usize = 16;

/// A flow that a packet belongs to. Valid until the next change of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    flow: u32,
    direction: Direction,
}

impl Found {
    /// The packet's direction.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The same flow, for a packet of the other direction.
    #[must_use]
    pub fn opposite(self) -> Found {
        Found { direction: self.direction.opposite(), ..self }
    }
}

/// What became of the flows of an earlier process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Flows that go on.
    pub restored: u32,
    /// Flows of pods that this table does not have, too old, or without room.
    pub passed_over: u32,
}

/// A pod, by its port's number.
#[derive(Clone, Copy, Debug, Default)]
struct Owner {
    /// Generation of the pod; `None`: no flow of this port lives.
    generation: Option<u32>,
    /// Counts the times that its flows were retired: flows of an earlier epoch are not there any
    /// more. Wraps after 65,536 times, long after such flows have been freed.
    epoch: u16,
    flows: u32,
}

/// The flows of a worker's pods.
pub struct FlowTable {
    records: Records,
    index: Index,
    queues: Queues,
    owners: Box<[Owner]>,
    /// Owners from here on have never been admitted.
    owners_used: usize,
    /// The owner to look at next for what has expired.
    cursor: usize,
    /// An owner with more embryonic flows than most.
    heaviest: usize,
    flows_per_owner: u32,
    source_ports: RangeInclusive<u16>,
    seed: HashSeed,
    /// Random numbers drawn so far.
    drawn: u64,
    counters: Arc<FlowCounters>,
}

/// What a table is made of.
pub struct TableParts {
    /// Empty memory for the flows.
    pub records: Records,
    /// Most flows of one pod.
    pub flows_per_owner: u32,
    /// Ports that a flow gets as source where its client's is taken. Not empty.
    pub source_ports: RangeInclusive<u16>,
    /// Random and secret.
    pub seed: HashSeed,
    /// What is counted.
    pub counters: Arc<FlowCounters>,
}

impl FlowTable {
    /// An empty table. Allocates all that it will ever use.
    #[must_use]
    pub fn new(parts: TableParts) -> FlowTable {
        let TableParts { records, flows_per_owner, source_ports, seed, counters } = parts;
        assert!(flows_per_owner > 0, "a pod may have flows");
        assert!(!source_ports.is_empty(), "there are source ports to give");
        let room = records.room();
        FlowTable {
            index: Index::new(room),
            queues: Queues::new(room, PORTS_MAX),
            records,
            owners: vec![Owner::default(); PORTS_MAX].into_boxed_slice(),
            owners_used: 0,
            cursor: 0,
            heaviest: 0,
            flows_per_owner,
            source_ports,
            seed,
            drawn: 0,
            counters,
        }
    }

    /// Flows of this pod may be opened from now on. `generation`: the lower 32 bits of the pod's.
    /// Flows of another pod that had the port before are retired; those of the same pod go on.
    pub fn admit_owner(&mut self, owner: PortId, generation: u32) {
        let index = usize::from(owner.0);
        if self.owners[index].generation == Some(generation) {
            return;
        }
        self.retire_owner(owner);
        self.owners[index].generation = Some(generation);
        self.owners_used = self.owners_used.max(index + 1);
    }

    /// Forgets all flows of a pod, at once: none of them is found any more. Their memory is freed
    /// by [`FlowTable::expire`], or taken for new flows.
    pub fn retire_owner(&mut self, owner: PortId) {
        let index = usize::from(owner.0);
        let epoch = self.owners[index].epoch.wrapping_add(1);
        self.owners[index] = Owner { generation: None, epoch, flows: 0 };
        for class in Class::ALL {
            self.queues.append(QueueId::of(index, class), QueueId::RETIRED);
        }
        self.count_flows();
    }

    /// The flow that packets with this key belong to, at monotonic time `now_ns`.
    #[inline]
    #[must_use]
    pub fn lookup(&self, key: &FlowKey, now_ns: u64) -> Option<Found> {
        let found = self.find(key)?;
        let Life { state, seen_s, .. } = self.records.life(found.flow);
        (!is_expired(state, seen_s, second(now_ns))).then_some(found)
    }

    /// The key that a packet of this flow and direction leaves with.
    #[inline]
    #[must_use]
    pub fn sent(&self, found: Found) -> FlowKey {
        let flow = self.flow(found);
        match found.direction {
            Direction::Original => flow.translated,
            Direction::Reply => flow.original.inverse(),
        }
    }

    /// The key that a packet of this flow and direction arrives with.
    #[inline]
    #[must_use]
    pub fn received(&self, found: Found) -> FlowKey {
        let flow = self.flow(found);
        match found.direction {
            Direction::Original => flow.original,
            Direction::Reply => flow.translated.inverse(),
        }
    }

    /// All that is known of a flow.
    #[inline]
    #[must_use]
    pub fn flow(&self, found: Found) -> Flow {
        self.records.flow(found.flow).expect("what was found is a flow until the table changes")
    }

    /// Takes a packet of a flow into account: its state follows, and it lives on.
    pub fn observe(&mut self, found: Found, signal: &Signal, now_ns: u64) {
        let life = self.records.life(found.flow);
        let before = self.records.progress(found.flow, life.state);
        let after = before.after(found.direction, signal);
        if after != before {
            self.records.set_progress(found.flow, &after);
        }
        let now_s = second(now_ns).max(life.seen_s);
        let (from, to) = (before.state.class(), after.state.class());
        if from == to && now_s == life.seen_s {
            return;
        }
        self.records.set_seen(found.flow, &life, now_s);
        let owner = usize::from(life.owner.0);
        self.queues.unlink(QueueId::of(owner, from), found.flow);
        self.enqueue(owner, to, found.flow);
    }

    /// Opens a flow for a first packet, at the cost of others if there is no room.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing has changed then but that others may have been evicted.
    pub fn open(
        &mut self,
        new: &NewFlow,
        signal: &Signal,
        now_ns: u64,
    ) -> Result<Found, OpenError> {
        let NewFlow { owner, original, serving, source, replies } = *new;
        let now_s = second(now_ns);
        let generation = self.owners[usize::from(owner.0)].generation;
        let generation = generation.ok_or(OpenError::NoOwner)?;
        let Progress { state, sides } = Progress::first(signal).ok_or(OpenError::NoOpening)?;
        if !self.vacate(&original, now_s) {
            return Err(OpenError::Exists);
        }
        let Some(translated) = self.translate(&original, serving, source, now_s) else {
            self.counters.refused_port.add(1);
            return Err(OpenError::NoPort);
        };
        let seen_s = now_s;
        let flow = Flow { owner, generation, original, translated, replies, state, seen_s, sides };
        self.admit(&flow)
    }

    /// Goes on with a flow that the node's kernel has carried so far.
    ///
    /// # Errors
    /// See [`OpenError`]. [`OpenError::NoOpening`]: its keys are none that a flow of ours can have,
    /// or are one.
    pub fn take_over(&mut self, carried: &Carried, now_ns: u64) -> Result<Found, OpenError> {
        let Carried { owner, original, translated, replies, stage } = *carried;
        let now_s = second(now_ns);
        let generation = self.owners[usize::from(owner.0)].generation;
        let generation = generation.ok_or(OpenError::NoOwner)?;
        let ends = [original.src.address, original.dst.address];
        if !ends.contains(&translated.src.address) || translated.inverse() == original {
            return Err(OpenError::NoOpening);
        }
        if !self.vacate(&original, now_s) || !self.vacate(&translated.inverse(), now_s) {
            return Err(OpenError::Exists);
        }
        let state = match (original.transport, stage) {
            (Transport::Tcp | Transport::Sctp, Stage::Closing) => FlowState::Closing,
            (Transport::Tcp | Transport::Sctp, Stage::Answered) => FlowState::Established,
            (Transport::Tcp | Transport::Sctp, Stage::Unanswered) => FlowState::PickedUp,
            (Transport::Udp, Stage::Unanswered) => FlowState::Unanswered,
            (Transport::Udp, _) => FlowState::Stream,
            (Transport::Query, _) => FlowState::Query,
        };
        let (seen_s, sides) = (now_s, Default::default());
        let flow = Flow { owner, generation, original, translated, replies, state, seen_s, sides };
        self.admit(&flow)
    }

    /// Adds a flow whose keys are free, at the cost of others if there is no room.
    fn admit(&mut self, flow: &Flow) -> Result<Found, OpenError> {
        self.make_room(flow.owner, flow.seen_s)?;
        let Some(number) = self.insert(flow) else {
            self.counters.refused_full.add(1);
            return Err(OpenError::Full);
        };
        self.counters.opened.add(1);
        Ok(Found { flow: number, direction: Direction::Original })
    }

    /// Forgets what has been idle for too long, and frees the memory of retired pods: at most
    /// `work` flows. Returns how many.
    pub fn expire(&mut self, now_ns: u64, work: usize) -> usize {
        let now_s = second(now_ns);
        let mut done = 0;
        while done < work && self.free_retired() {
            done += 1;
        }
        for _ in 0..OWNERS_PER_CALL.min(self.owners_used) {
            self.cursor = (self.cursor + 1) % self.owners_used;
            if self.owners[self.cursor].flows == 0 {
                continue;
            }
            for class in Class::ALL {
                let queue = QueueId::of(self.cursor, class);
                while let Some(flow) = self.queues.front(queue) {
                    if done == work {
                        return done;
                    }
                    let Life { state, seen_s, .. } = self.records.life(flow);
                    if !is_expired(state, seen_s, now_s) {
                        break;
                    }
                    self.counters.expired.add(1);
                    self.remove(flow);
                    done += 1;
                }
            }
        }
        done
    }

    /// Goes on with the flows that an earlier process has left, of pods that were admitted here
    /// with the generation they had; also with those it had retired and not freed yet, if the same
    /// pod is back. Allocates; for the start of a worker.
    pub fn restore(&mut self, left: &Records, now_ns: u64) -> Restored {
        self.go_on(left.iter().collect(), now_ns)
    }

    /// The same with flows that were read already.
    pub fn go_on(&mut self, mut flows: Vec<Flow>, now_ns: u64) -> Restored {
        let now_s = second(now_ns);
        // None lives longer for having been seen in the future.
        flows.iter_mut().for_each(|flow| flow.seen_s = flow.seen_s.min(now_s));
        // Queues are in the order in which their flows were last seen.
        flows.sort_by_key(|flow| flow.seen_s);
        let mut result = Restored::default();
        for flow in flows {
            let Flow { owner, generation, original, translated, state, seen_s, .. } = flow;
            let home = self.owners.get(usize::from(owner.0)).copied().unwrap_or_default();
            let fits = home.generation == Some(generation)
                && home.flows < self.flows_per_owner
                && flow.is_sound()
                && !is_expired(state, seen_s, now_s)
                && self.find(&original).is_none()
                && self.find(&translated.inverse()).is_none();
            match fits.then(|| self.insert(&flow)).flatten() {
                Some(_) => result.restored += 1,
                None => result.passed_over += 1,
            }
        }
        result
    }

    /// The memory of the flows, to be listed by another thread.
    #[must_use]
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The flow with this key, of a pod that is there, expired or not.
    #[inline]
    fn find(&self, key: &FlowKey) -> Option<Found> {
        let is_it = |flow, direction| {
            self.records.is(flow, direction, key) && self.is_owned(&self.records.life(flow))
        };
        let (flow, direction) = self.index.find(key.hash(self.seed), is_it)?;
        Some(Found { flow, direction })
    }

    /// Whether the flow's pod is still the one that it was opened for.
    #[inline]
    fn is_owned(&self, life: &Life) -> bool {
        self.owners[usize::from(life.owner.0)].epoch == life.epoch
    }

    /// Frees a key that only an expired flow has. Whether the key is free then.
    fn vacate(&mut self, key: &FlowKey, now_s: u32) -> bool {
        let Some(found) = self.find(key) else { return true };
        let Life { state, seen_s, .. } = self.records.life(found.flow);
        let expired = is_expired(state, seen_s, now_s);
        if expired {
            self.counters.expired.add(1);
            self.remove(found.flow);
        }
        expired
    }

    /// The key that original packets leave with, whose replies belong to no other flow: with the
    /// client's port, or another one.
    fn translate(
        &mut self,
        original: &FlowKey,
        serving: Endpoint,
        source: Source,
        now_s: u32,
    ) -> Option<FlowKey> {
        let address = match source {
            Source::Client => original.src.address,
            Source::Asked => original.dst.address,
        };
        let mut port = original.src.port;
        for _ in 0..=PORT_TRIES {
            let src = Endpoint { address, port };
            let translated = FlowKey { transport: original.transport, src, dst: serving };
            // A pod may ask itself from the very port that serves: then the reply would look like
            // the question.
            let replies = translated.inverse();
            if replies != *original && self.vacate(&replies, now_s) {
                return Some(translated);
            }
            let (first, last) = (*self.source_ports.start(), *self.source_ports.end());
            let ports = u64::from(last - first) + 1;
            port = first + (self.draw() % ports) as u16;
        }
        None
    }

    /// Adds a flow whose keys are free. `None` if there is no room.
    fn insert(&mut self, flow: &Flow) -> Option<u32> {
        let number = match self.queues.take_free() {
            Some(number) => number,
            None => {
                self.free_retired().then_some(())?;
                self.queues.take_free()?
            }
        };
        let original = flow.original.hash(self.seed);
        let reply = flow.translated.inverse().hash(self.seed);
        if !self.index.insert(original, number, Direction::Original) {
            self.queues.give_free(number);
            return None;
        }
        if !self.index.insert(reply, number, Direction::Reply) {
            self.index.remove(original, number, Direction::Original);
            self.queues.give_free(number);
            return None;
        }
        let owner = usize::from(flow.owner.0);
        self.records.write(number, flow, self.owners[owner].epoch);
        self.owners[owner].flows += 1;
        self.enqueue(owner, flow.state.class(), number);
        self.count_flows();
        Some(number)
    }

    fn enqueue(&mut self, owner: usize, class: Class, flow: u32) {
        self.queues.push_back(QueueId::of(owner, class), flow);
        let embryonic = |owner| self.queues.len(QueueId::of(owner, Class::Embryonic));
        if class == Class::Embryonic && embryonic(owner) > embryonic(self.heaviest) {
            self.heaviest = owner;
        }
    }

    /// Takes a flow of a pod that is there out of the table.
    fn remove(&mut self, flow: u32) {
        let life = self.records.life(flow);
        let owner = usize::from(life.owner.0);
        self.queues.unlink(QueueId::of(owner, life.state.class()), flow);
        self.owners[owner].flows -= 1;
        self.release(flow);
        self.count_flows();
    }

    /// Frees a flow of a pod that is gone, if there is one.
    fn free_retired(&mut self) -> bool {
        let Some(flow) = self.queues.front(QueueId::RETIRED) else { return false };
        self.queues.unlink(QueueId::RETIRED, flow);
        self.release(flow);
        true
    }

    /// Frees the keys and the memory of a flow that is in no queue.
    fn release(&mut self, number: u32) {
        let flow = self.records.flow(number).expect("a flow that was in a queue is whole");
        self.index.remove(flow.original.hash(self.seed), number, Direction::Original);
        let reply = flow.translated.inverse().hash(self.seed);
        self.index.remove(reply, number, Direction::Reply);
        self.records.clear(number);
        self.queues.give_free(number);
    }

    fn count_flows(&self) {
        let retired = self.queues.len(QueueId::RETIRED);
        self.counters.flows.set(u64::from(self.queues.used() - retired));
    }

    /// A number that nobody can foresee (SplitMix64, Steele et al., 2014, from a secret seed).
    fn draw(&mut self) -> u64 {
        self.drawn = self.drawn.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = self.seed.0[0].wrapping_add(self.drawn);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// The second that a time is in, as flows keep it: enough for 136 years after the boot.
fn second(now_ns: u64) -> u32 {
    u32::try_from(now_ns / 1_000_000_000).unwrap_or(u32::MAX)
}

/// Whether a flow was idle for its whole timeout, whenever in their seconds it was seen and it is
/// now. A clock that is behind expires nothing.
#[inline]
fn is_expired(state: FlowState, seen_s: u32, now_s: u32) -> bool {
    now_s.saturating_sub(seen_s) > state.class().timeout_s()
}

#[cfg(test)]
mod tests;
