//! Queues of flows by who owns them and how long they may be idle. Whoever has been idle longest
//! is at the front, because every refresh moves a flow to the back; so the next to expire and the
//! next to be evicted are found without a search.

use super::state::{CLASSES, Class};

/// No flow.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Queue {
    front: u32,
    back: u32,
    len: u32,
}

const EMPTY: Queue = Queue { front: NONE, back: NONE, len: 0 };

/// One of the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueId(usize);

impl QueueId {
    /// Flows whose pod is gone, to be freed.
    pub(super) const RETIRED: QueueId = QueueId(0);

    /// Flows of an owner and class.
    #[inline]
    pub(super) fn of(owner: usize, class: Class) -> QueueId {
        QueueId(1 + owner * CLASSES + class as usize)
    }
}

/// All queues over the flows of a table. A flow is in one of them, or free.
pub(super) struct Queues {
    links: Box<[Link]>,
    queues: Box<[Queue]>,
    /// Free flows that have been used before, linked by `next`.
    free: u32,
    /// From here on no flow has ever been used: memory that nobody has touched yet.
    unused: u32,
    used: u32,
}

impl Queues {
    pub(super) fn new(flows: u32, owners: usize) -> Queues {
        Queues {
            links: vec![Link { prev: NONE, next: NONE }; flows as usize].into_boxed_slice(),
            queues: vec![EMPTY; 1 + owners * CLASSES].into_boxed_slice(),
            free: NONE,
            unused: 0,
            used: 0,
        }
    }

    /// A free flow, which is in no queue from now on.
    pub(super) fn take_free(&mut self) -> Option<u32> {
        if !self.has_free() {
            return None;
        }
        self.used += 1;
        let flow = self.free;
        if flow == NONE {
            self.unused += 1;
            return Some(self.unused - 1);
        }
        self.free = self.links[flow as usize].next;
        Some(flow)
    }

    /// Makes a flow free that is in no queue.
    pub(super) fn give_free(&mut self, flow: u32) {
        self.links[flow as usize] = Link { prev: NONE, next: self.free };
        self.free = flow;
        self.used -= 1;
    }

    /// Whether [`Queues::take_free`] would find one.
    pub(super) fn has_free(&self) -> bool {
        (self.used as usize) < self.links.len()
    }

    /// Flows that are not free.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    #[inline]
    pub(super) fn len(&self, queue: QueueId) -> u32 {
        self.queues[queue.0].len
    }

    /// The flow that has been idle longest.
    #[inline]
    pub(super) fn front(&self, queue: QueueId) -> Option<u32> {
        Some(self.queues[queue.0].front).filter(|flow| *flow != NONE)
    }

    pub(super) fn push_back(&mut self, queue: QueueId, flow: u32) {
        let queue = &mut self.queues[queue.0];
        self.links[flow as usize] = Link { prev: queue.back, next: NONE };
        match queue.back {
            NONE => queue.front = flow,
            back => self.links[back as usize].next = flow,
        }
        queue.back = flow;
        queue.len += 1;
    }

    pub(super) fn unlink(&mut self, queue: QueueId, flow: u32) {
        let queue = &mut self.queues[queue.0];
        let Link { prev, next } = self.links[flow as usize];
        match prev {
            NONE => queue.front = next,
            prev => self.links[prev as usize].next = next,
        }
        match next {
            NONE => queue.back = prev,
            next => self.links[next as usize].prev = prev,
        }
        queue.len -= 1;
    }

    /// Moves a whole queue to the back of another, in a few steps however long it is.
    pub(super) fn append(&mut self, from: QueueId, to: QueueId) {
        let Queue { front, back, len } = std::mem::replace(&mut self.queues[from.0], EMPTY);
        if front == NONE {
            return;
        }
        let queue = &mut self.queues[to.0];
        self.links[front as usize].prev = queue.back;
        match queue.back {
            NONE => queue.front = front,
            end => self.links[end as usize].next = front,
        }
        queue.back = back;
        queue.len += len;
    }

    /// The flows of a queue from front to back.
    #[cfg(test)]
    pub(super) fn iter(&self, queue: QueueId) -> impl Iterator<Item = u32> + '_ {
        let next = |flow: &u32| Some(self.links[*flow as usize].next).filter(|flow| *flow != NONE);
        std::iter::successors(self.front(queue), next)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Unlink(usize, usize),
        Append(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3usize).prop_map(Step::Push),
            2 => (0..3usize, any::<usize>()).prop_map(|(queue, at)| Step::Unlink(queue, at)),
            1 => (0..3usize, 0..3usize).prop_map(|(from, to)| Step::Append(from, to)),
        ]
    }

    proptest! {
        #[test]
        fn queues_equal_the_obvious_ones(steps in prop::collection::vec(step(), 0..200)) {
            let ids =
                [QueueId::RETIRED, QueueId::of(0, Class::Embryonic), QueueId::of(1, Class::Stream)];
            let mut queues = Queues::new(16, 2);
            let mut model: [VecDeque<u32>; 3] = Default::default();
            for step in steps {
                match step {
                    Step::Push(queue) => {
                        let used: usize = model.iter().map(VecDeque::len).sum();
                        let flow = queues.take_free();
                        prop_assert_eq!(flow.is_some(), used < 16);
                        if let Some(flow) = flow {
                            queues.push_back(ids[queue], flow);
                            model[queue].push_back(flow);
                        }
                    }
                    Step::Unlink(queue, at) if !model[queue].is_empty() => {
                        let at = at % model[queue].len();
                        let flow = model[queue].remove(at).unwrap();
                        queues.unlink(ids[queue], flow);
                        queues.give_free(flow);
                    }
                    Step::Append(from, to) if from != to => {
                        queues.append(ids[from], ids[to]);
                        let mut moved = std::mem::take(&mut model[from]);
                        model[to].append(&mut moved);
                    }
                    _ => {}
                }
                for (id, model) in ids.iter().zip(&model) {
                    prop_assert_eq!(&queues.iter(*id).collect::<VecDeque<_>>(), model);
                    prop_assert_eq!(queues.len(*id) as usize, model.len());
                    prop_assert_eq!(queues.front(*id), model.front().copied());
                }
            }
        }
    }
}
