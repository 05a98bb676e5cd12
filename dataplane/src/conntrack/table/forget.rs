//! Flows that are forgotten before their time: by order of control, or for another one.

use super::super::queues::QueueId;
use super::super::record::Flow;
use super::super::state::Class;
use super::{FlowTable, Found};
use crate::port::PortId;

impl FlowTable {
    /// Forgets the flows of a pod that `is_one`. Takes as long as the pod has flows: for control's
    /// orders, not for packets.
    pub fn forget(&mut self, owner: PortId, is_one: impl Fn(&Flow) -> bool) -> u32 {
        let mut forgotten = 0;
        for class in Class::ALL {
            let queue = QueueId::of(usize::from(owner.0), class);
            // Whoever is looked at goes to the back, so the front is the next each time.
            for _ in 0..self.queues.len(queue) {
                let flow = self.queues.front(queue).expect("as long as it was");
                if self.records.flow(flow).is_some_and(|flow| is_one(&flow)) {
                    self.remove(flow);
                    forgotten += 1;
                } else {
                    self.queues.unlink(queue, flow);
                    self.queues.push_back(queue, flow);
                }
            }
        }
        forgotten
    }

    /// Forgets the flows of all pods that `is_one`, in steps: looks at `records` places from `from`
    /// on, and returns where to go on; `None` when it has seen all.
    pub fn sweep(
        &mut self,
        from: u32,
        records: u32,
        is_one: impl Fn(&Flow) -> bool,
    ) -> Option<u32> {
        let room = self.records.room();
        let end = from.saturating_add(records).min(room);
        for number in from..end {
            let flow = self.records.flow(number).filter(&is_one);
            if flow.is_some() && self.is_owned(&self.records.life(number)) {
                self.remove(number);
            }
        }
        (end < room).then_some(end)
    }

    /// Forgets one flow: another one takes the place that it has in the eyes of its pod.
    pub fn close(&mut self, found: Found) {
        self.remove(found.flow);
    }
}
