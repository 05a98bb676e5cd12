//! A timing wheel: which lines are due, and when the next one is. Every operation takes a few
//! steps, however many lines there are (Varghese and Lauck, "Hashed and hierarchical timing
//! wheels", SOSP 1987; as a shaper: Saeed et al., "Carousel", SIGCOMM 2017).
//!
//! A slot holds the lines of 8 µs, and becomes due at its end, so that no line is early. What is
//! beyond the last slot waits there, and is put back by whoever finds it too early.

/// Time of a slot as a power of two: 8.192 µs. Below what waking a thread costs; at 5 Gbit/s three
/// packets, which every burst covers.
const SLOT_NS_SHIFT: u32 = 13;
const SLOT_NS: u64 = 1 << SLOT_NS_SHIFT;
/// 134 ms ahead: a line of 1 Mbit/s is due every 12 ms, and a slower one is looked at for nothing
/// a few times a second.
const SLOTS: usize = 1 << 14;
/// The list of lines that are due, behind those of the slots.
const DUE: usize = SLOTS;
const WORD_BITS: usize = u64::BITS as usize;
const WORDS: usize = SLOTS / WORD_BITS;

/// No line, or no list.
const NONE: u32 = u32::MAX;

/// A line's place: in a ring of all lines of its list.
#[derive(Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
    list: u32,
}

/// Lines by the time at which they are due.
pub(super) struct Wheel {
    now_ns: u64,
    links: Vec<Link>,
    /// The first line of each list.
    heads: Box<[u32]>,
    /// Slots that are not empty, and the words of it that are not 0.
    slots: [u64; WORDS],
    words: [u64; WORDS / WORD_BITS],
}

impl Wheel {
    /// An empty wheel at time 0.
    pub(super) fn new() -> Wheel {
        Wheel {
            now_ns: 0,
            links: Vec::new(),
            heads: vec![NONE; SLOTS + 1].into_boxed_slice(),
            slots: [0; WORDS],
            words: [0; WORDS / WORD_BITS],
        }
    }

    /// One more line, which is not scheduled. Lines are numbered from 0.
    pub(super) fn add_line(&mut self) -> u32 {
        self.links.push(Link { prev: NONE, next: NONE, list: NONE });
        self.links.len() as u32 - 1
    }

    /// The time of the last [`Wheel::advance`].
    #[inline]
    pub(super) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Makes the lines due whose time has come. If the clock has stepped back, all of them: when
    /// they are due by the new time, nobody here can tell.
    pub(super) fn advance(&mut self, now_ns: u64) {
        let last = if now_ns < self.now_ns { u64::MAX } else { now_ns >> SLOT_NS_SHIFT };
        while let Some(number) = self.first_slot().filter(|number| *number <= last) {
            let slot = number as usize % SLOTS;
            while self.heads[slot] != NONE {
                let line = self.heads[slot];
                self.unlink(line);
                self.append(DUE, line);
            }
        }
        self.now_ns = now_ns;
    }

    /// The line that is due and has been for longest.
    #[inline]
    pub(super) fn first_due(&self) -> Option<u32> {
        Some(self.heads[DUE]).filter(|line| *line != NONE)
    }

    /// Lets a line become due by the first [`Wheel::advance`] that is 8 µs after `at_ns`, or
    /// earlier if that is far away; if it has passed already, by the next one.
    pub(super) fn schedule(&mut self, line: u32, at_ns: u64) {
        self.cancel(line);
        let first = self.now_ns >> SLOT_NS_SHIFT;
        let number = if at_ns > self.now_ns {
            at_ns.div_ceil(SLOT_NS).min(first + SLOTS as u64 - 1)
        } else {
            first
        };
        self.append(number as usize % SLOTS, line);
    }

    /// Takes a line out, if it is there.
    pub(super) fn cancel(&mut self, line: u32) {
        if self.links[line as usize].list != NONE {
            self.unlink(line);
        }
    }

    /// The earliest time at which [`Wheel::advance`] makes a line due; in the past if one is.
    pub(super) fn next_ns(&self) -> Option<u64> {
        match self.first_due() {
            Some(_) => Some(self.now_ns),
            None => self.first_slot().map(|number| number.saturating_mul(SLOT_NS)),
        }
    }

    /// The number of the first slot that is not empty, counted from time 0. All are within one
    /// turn of the wheel from now.
    fn first_slot(&self) -> Option<u64> {
        let first = self.now_ns >> SLOT_NS_SHIFT;
        let start = first as usize % SLOTS;
        let (word, bit) = (start / WORD_BITS, start % WORD_BITS);
        let rest = self.slots[word] & (u64::MAX << bit);
        let slot = match rest {
            // The next word that has any; at last this one again, which has only slots before
            // `start` then: the end of the turn.
            0 => {
                let word = next_bit(&self.words, (word + 1) % WORDS)?;
                word * WORD_BITS + self.slots[word].trailing_zeros() as usize
            }
            rest => word * WORD_BITS + rest.trailing_zeros() as usize,
        };
        let ahead = (slot + SLOTS - start) % SLOTS;
        Some(first + ahead as u64)
    }

    fn append(&mut self, list: usize, line: u32) {
        let front = self.heads[list];
        let (prev, next) = match front {
            NONE => (line, line),
            front => (self.links[front as usize].prev, front),
        };
        self.links[line as usize] = Link { prev, next, list: list as u32 };
        self.links[prev as usize].next = line;
        self.links[next as usize].prev = line;
        if front == NONE {
            self.heads[list] = line;
            self.set_occupied(list, true);
        }
    }

    fn unlink(&mut self, line: u32) {
        let Link { prev, next, list } = self.links[line as usize];
        let head = &mut self.heads[list as usize];
        if next == line {
            *head = NONE;
            self.set_occupied(list as usize, false);
        } else if *head == line {
            *head = next;
        }
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.links[line as usize].list = NONE;
    }

    fn set_occupied(&mut self, list: usize, occupied: bool) {
        // The list of those that are due has no bit.
        let (word, bit) = (list / WORD_BITS, list % WORD_BITS);
        let Some(slots) = self.slots.get_mut(word) else { return };
        set_bit(slots, bit, occupied);
        set_bit(&mut self.words[word / WORD_BITS], word % WORD_BITS, *slots != 0);
    }
}

fn set_bit(word: &mut u64, bit: usize, value: bool) {
    *word = *word & !(1 << bit) | u64::from(value) << bit;
}

/// The first bit that is set, from `start` on and around.
fn next_bit(words: &[u64], start: usize) -> Option<usize> {
    let (first, bit) = (start / WORD_BITS, start % WORD_BITS);
    let rest = words[first] & (u64::MAX << bit);
    if rest != 0 {
        return Some(first * WORD_BITS + rest.trailing_zeros() as usize);
    }
    let around = (1..=words.len()).map(|ahead| (first + ahead) % words.len());
    let word = around.into_iter().find(|word| words[*word] != 0)?;
    Some(word * WORD_BITS + words[word].trailing_zeros() as usize)
}

#[cfg(test)]
mod tests;
