//! A worker before its thread: what control puts together.

use std::sync::Arc;

use super::merge::FLOWS_MAX;
use super::nat::Flows;
use super::{BATCH_MAX, CommandQueue, EventQueue, Worker};
use crate::conntrack::FlowTable;
use crate::counters::WorkerCounters;
use crate::crossing::{Bell, CrossingIn, CrossingOut};
use crate::frame::FramePool;
use crate::icmp::Limiter;
use crate::port::{PORTS_MAX, PacketIo, WorkerId};
use crate::publish::Subscription;
use crate::shaper::Shaper;

/// What a worker is made of.
pub struct WorkerParts<P> {
    /// Its number.
    pub id: WorkerId,
    /// Its frames.
    pub pool: FramePool,
    /// Where snapshots come from.
    pub subscription: Subscription,
    /// Orders of the control thread.
    pub commands: CommandQueue<P>,
    /// Answers to it.
    pub events: EventQueue<P>,
    /// Rings to the other workers, by worker number; its own place is `None`.
    pub out: Vec<Option<CrossingOut>>,
    /// Rings from the other workers.
    pub incoming: Vec<CrossingIn>,
    /// What wakes it.
    pub bell: Arc<Bell>,
    /// What it counts.
    pub counters: Arc<WorkerCounters>,
    /// The flows of its pods, with what was restored of them.
    pub flows: FlowTable,
    /// Random and secret: decides which ICMP errors the limiter lets pass, and where datagrams are
    /// remembered.
    pub seed: u64,
}

impl<P: PacketIo> Worker<P> {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: WorkerParts<P>) -> Worker<P> {
        let WorkerParts {
            id,
            pool,
            mut subscription,
            commands,
            events,
            out,
            incoming,
            bell,
            counters,
            flows,
            seed,
        } = parts;
        let frames = pool.count().total;
        counters.frames_total.set(u64::from(frames));
        let shaper = Shaper::new(frames); // each packet that waits has one at least
        Worker {
            id,
            tables: subscription.adopt().clone(),
            pool,
            subscription,
            commands,
            events,
            ports: Vec::new(),
            slots: vec![None; PORTS_MAX],
            out,
            incoming,
            bell,
            counters,
            flows: Flows::new(flows, seed.rotate_left(16)),
            limiter: Limiter::new(seed),
            wire_limiter: Limiter::new(seed.rotate_left(32)),
            batch: Vec::with_capacity(BATCH_MAX),
            to_kick: Vec::with_capacity(PORTS_MAX),
            held: Vec::with_capacity(FLOWS_MAX),
            shaper,
            now_ns: 0,
            started_ns: 0,
            some_busy: false,
            stopping: false,
        }
    }
}
