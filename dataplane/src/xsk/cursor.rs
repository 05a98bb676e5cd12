//! Where we are in a ring shared with the kernel: the arithmetic and the memory ordering, apart
//! from the memory itself, so that both can be tested without a kernel.
//!
//! A ring is a power of two of slots and two free-running 32-bit counters: the producer writes
//! entries and then moves `producer`, the consumer reads them and then moves `consumer`
//! (Documentation/networking/af_xdp.rst, "Rings"). Each side keeps the other's counter cached and
//! reads it again only when the cached one leaves too little.

use crate::sync::{AtomicU32, Ordering};

/// Our side of a ring that we fill: fill and tx.
#[derive(Debug)]
pub struct ProducerCursor {
    next: u32,
    committed: u32,
    consumed: u32,
    size: u32,
}

impl ProducerCursor {
    /// At `start` in a ring of `size` slots that the kernel has emptied.
    #[must_use]
    pub fn new(start: u32, size: u32) -> ProducerCursor {
        assert!(size.is_power_of_two(), "the kernel makes rings of a power of two");
        ProducerCursor { next: start, committed: start, consumed: start, size }
    }

    /// Slots free for at least `want` entries, or fewer when the ring has not more.
    #[inline]
    pub fn free(&mut self, want: u32, consumer: &AtomicU32) -> u32 {
        let free = self.size - self.next.wrapping_sub(self.consumed);
        if free >= want {
            return free;
        }
        // Acquire: pairs with the kernel's release of `consumer` after it has read the entries;
        // the slots may be overwritten from now on.
        let consumed = consumer.load(Ordering::Acquire);
        // A counter that has run backwards or past what we produced is not believed.
        if self.next.wrapping_sub(consumed) <= self.size {
            self.consumed = consumed;
        }
        self.size - self.next.wrapping_sub(self.consumed)
    }

    /// The slot of the next entry; the caller has asked `free` before.
    #[inline]
    pub fn reserve(&mut self) -> u32 {
        debug_assert!(self.next.wrapping_sub(self.consumed) < self.size);
        let slot = self.next & (self.size - 1);
        self.next = self.next.wrapping_add(1);
        slot
    }

    /// Shows the entries written since the last commit to the kernel; false if there are none.
    #[inline]
    pub fn commit(&mut self, producer: &AtomicU32) -> bool {
        if self.committed == self.next {
            return false;
        }
        // Release: pairs with the kernel's acquire of `producer`; the entries come before it.
        producer.store(self.next, Ordering::Release);
        self.committed = self.next;
        true
    }

    /// Entries that the kernel has not taken yet, as of now.
    #[inline]
    pub fn pending(&mut self, consumer: &AtomicU32) -> u32 {
        let free = self.free(self.size, consumer);
        self.size - free
    }
}

/// Our side of a ring that the kernel fills: rx and completion.
#[derive(Debug)]
pub struct ConsumerCursor {
    next: u32,
    released: u32,
    produced: u32,
    size: u32,
}

impl ConsumerCursor {
    /// At `start` in a ring of `size` slots.
    #[must_use]
    pub fn new(start: u32, size: u32) -> ConsumerCursor {
        assert!(size.is_power_of_two(), "the kernel makes rings of a power of two");
        ConsumerCursor { next: start, released: start, produced: start, size }
    }

    /// Entries ready to be read.
    #[inline]
    pub fn ready(&mut self, producer: &AtomicU32) -> u32 {
        let ready = self.produced.wrapping_sub(self.next);
        if ready > 0 {
            return ready;
        }
        // Acquire: pairs with the kernel's release of `producer`; the entries can be read.
        let produced = producer.load(Ordering::Acquire);
        // A counter that leaves more than a ring full is not believed.
        if produced.wrapping_sub(self.next) <= self.size {
            self.produced = produced;
        }
        self.produced.wrapping_sub(self.next)
    }

    /// The slot `ahead` entries on; the caller has asked `ready` before.
    #[inline]
    #[must_use]
    pub fn peek(&self, ahead: u32) -> u32 {
        self.next.wrapping_add(ahead) & (self.size - 1)
    }

    /// Steps over `count` entries.
    #[inline]
    pub fn advance(&mut self, count: u32) {
        debug_assert!(count <= self.produced.wrapping_sub(self.next));
        self.next = self.next.wrapping_add(count);
    }

    /// Gives the slots of the entries read back to the kernel.
    #[inline]
    pub fn release(&mut self, consumer: &AtomicU32) {
        if self.released != self.next {
            // Release: pairs with the kernel's acquire of `consumer`; our reads come before it.
            consumer.store(self.next, Ordering::Release);
            self.released = self.next;
        }
    }
}

#[cfg(test)]
mod tests;
