//! Flows that are forgotten before their time: by order of control, or for another one.

use super::super::record::Flow;
use super::{FlowTable, Found};

impl FlowTable {
    /// Forgets the flows that `is_one`, in steps: looks at `records` places from `from` on, and
    /// returns where to go on; `None` when it has seen all.
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
