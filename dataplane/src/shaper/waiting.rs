//! The packets that wait, of all lines: linked lists through one array, so that any line can hold
//! any part of it and none needs memory of its own.

use super::Size;

/// No place.
const NONE: u32 = u32::MAX;

struct Place<T> {
    /// The next one of the same line, or the next free one.
    next: u32,
    size: Size,
    /// `None` in a free place.
    packet: Option<T>,
}

/// The packets of one line, first come, first served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fifo {
    front: u32,
    back: u32,
    pub(super) packets: u32,
    pub(super) frames: u32,
    pub(super) wire_bytes: u64,
}

impl Default for Fifo {
    fn default() -> Fifo {
        Fifo { front: NONE, back: NONE, packets: 0, frames: 0, wire_bytes: 0 }
    }
}

impl Fifo {
    /// The same without one packet of this size.
    pub(super) fn less(self, size: Size) -> Fifo {
        let (packets, frames) = (self.packets - 1, self.frames - size.frames);
        Fifo { packets, frames, wire_bytes: self.wire_bytes - u64::from(size.wire_bytes), ..self }
    }
}

/// The places of all packets that wait.
pub(super) struct Waiting<T> {
    /// Places that have been used before. Grows up to its capacity, which is there from the
    /// start: memory that nobody has touched yet.
    places: Vec<Place<T>>,
    places_max: u32,
    free: u32,
    len: u32,
}

impl<T> Waiting<T> {
    pub(super) fn new(places_max: u32) -> Waiting<T> {
        let places = Vec::with_capacity(places_max as usize);
        Waiting { places, places_max, free: NONE, len: 0 }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn has_room(&self) -> bool {
        self.len < self.places_max
    }

    pub(super) fn push(&mut self, fifo: &mut Fifo, size: Size, packet: T) {
        assert!(self.has_room(), "only packets that were told to wait are pushed");
        let place = Place { next: NONE, size, packet: Some(packet) };
        let index = match self.free {
            NONE => {
                self.places.push(place);
                self.places.len() as u32 - 1
            }
            free => {
                self.free = self.places[free as usize].next;
                self.places[free as usize] = place;
                free
            }
        };
        match fifo.back {
            NONE => fifo.front = index,
            back => self.places[back as usize].next = index,
        }
        fifo.back = index;
        fifo.packets += 1;
        fifo.frames += size.frames;
        fifo.wire_bytes += u64::from(size.wire_bytes);
        self.len += 1;
    }

    /// The size of the packet that has waited longest.
    #[inline]
    pub(super) fn front(&self, fifo: &Fifo) -> Option<Size> {
        self.places.get(fifo.front as usize).map(|place| place.size)
    }

    /// The size of the packet that came last.
    pub(super) fn back(&self, fifo: &Fifo) -> Option<Size> {
        self.places.get(fifo.back as usize).map(|place| place.size)
    }

    /// Takes out the packet that has waited longest.
    pub(super) fn pop(&mut self, fifo: &mut Fifo) -> Option<T> {
        let index = fifo.front;
        let place = self.places.get_mut(index as usize)?;
        let packet = place.packet.take();
        fifo.front = std::mem::replace(&mut place.next, self.free);
        if fifo.front == NONE {
            fifo.back = NONE;
        }
        *fifo = fifo.less(place.size);
        self.free = index;
        self.len -= 1;
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again_so_that_nothing_is_allocated() {
        let mut waiting = Waiting::new(3);
        let mut lines = [Fifo::default(); 2];
        let size = Size { wire_bytes: 60, frames: 1 };
        for number in 0..100 {
            let (one, two) = (number % 2, 1 - number % 2);
            waiting.push(&mut lines[one], size, number);
            waiting.push(&mut lines[two], size, number);
            waiting.push(&mut lines[one], size, number + 1);
            let left = [one, two, one].map(|line| waiting.pop(&mut lines[line]));
            assert_eq!(left, [Some(number), Some(number), Some(number + 1)]);
        }
        assert_eq!((waiting.places.len(), waiting.len()), (3, 0));
        assert_eq!(waiting.pop(&mut lines[0]), None);
    }
}
