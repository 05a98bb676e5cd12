//! Who gives way when a pod has its full number of flows, or the table is full.
//!
//! First what is not confirmed by both of its ends, of which an attacker can make any number; then
//! what has ended; then what was idle for minutes. Within these the longest idle flow goes: of the
//! pod itself for its quota; for the table that of the pod with the most unconfirmed flows, which
//! is the one that is flooded.

use super::super::OpenError;
use super::super::queues::{QueueId, Queues};
use super::super::state::Class;
use super::FlowTable;
use crate::port::PortId;

impl FlowTable {
    /// Sees to it that the owner may have one more flow, and that there is one.
    pub(super) fn make_room(&mut self, owner: PortId, now_s: u32) -> Result<(), OpenError> {
        let owner = usize::from(owner.0);
        if self.owners[owner].flows >= self.flows_per_owner {
            let mut classes = Class::ALL.into_iter();
            let Some(flow) = classes.find_map(|class| self.dispensable(owner, class, now_s)) else {
                self.counters.refused_quota.add(1);
                return Err(OpenError::Quota);
            };
            self.evict(flow);
        }
        if self.queues.has_free() || self.queues.front(QueueId::RETIRED).is_some() {
            return Ok(());
        }
        match self.dispensable_of_all(now_s) {
            Some(flow) => {
                self.evict(flow);
                Ok(())
            }
            None => {
                self.counters.refused_full.add(1);
                Err(OpenError::Full)
            }
        }
    }

    /// The longest idle flow of an owner and class, if it may be evicted.
    fn dispensable(&self, owner: usize, class: Class, now_s: u32) -> Option<u32> {
        let flow = self.queues.front(QueueId::of(owner, class))?;
        let idle_s = now_s.saturating_sub(self.records.life(flow).seen_s);
        (idle_s >= class.protected_s()).then_some(flow)
    }

    /// A flow that may be evicted when the table is full. Where it is full of embryonic ones this
    /// takes one step; a walk over all owners is for a table of ended and established ones.
    fn dispensable_of_all(&mut self, now_s: u32) -> Option<u32> {
        let embryonic =
            |queues: &Queues, owner: &usize| queues.len(QueueId::of(*owner, Class::Embryonic));
        if embryonic(&self.queues, &self.heaviest) == 0 {
            let owners = 0..self.owners_used;
            self.heaviest = owners.max_by_key(|owner| embryonic(&self.queues, owner))?;
        }
        if let Some(flow) = self.dispensable(self.heaviest, Class::Embryonic, now_s) {
            return Some(flow);
        }
        // From a place that moves on, so that no pod pays for all.
        let start = self.draw() as usize % self.owners_used;
        Class::ALL.into_iter().find_map(|class| {
            let mut owners = (start..self.owners_used).chain(0..start);
            owners.find_map(|owner| self.dispensable(owner, class, now_s))
        })
    }

    fn evict(&mut self, flow: u32) {
        self.counters.evicted.add(1);
        self.remove(flow);
    }
}
