//! How many frames a port may hold in its fill ring.
//!
//! Frames in a fill ring cannot be taken back, so a port starts with few. Few are seven
//! super-packets: a pod that sends faster than its worker serves it loses packets although most of
//! the worker's memory lies idle. So the share doubles when the kernel found too few frames and
//! there is plenty, and falls back when memory is short; what lies in the ring then is used up and
//! not replaced.

use crate::frame::FrameCount;
use crate::port::KernelDrops;

/// Frames that a port may hold in its fill ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    frames: u32,
    least: u32,
    most: u32,
    /// Packets for which the kernel found too few frames, when it was last asked.
    lacked: u64,
}

impl Share {
    /// From `least`, where it starts, to `most` frames: the size of the fill ring.
    #[must_use]
    pub const fn between(least: u32, most: u32) -> Share {
        assert!(least > 0 && least <= most, "a port needs frames to receive into");
        Share { frames: least, least, most, lacked: 0 }
    }

    /// Always `frames`.
    #[must_use]
    pub const fn fixed(frames: u32) -> Share {
        Share::between(frames, frames)
    }

    /// Frames that the port may hold now.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Frames that the port may ever hold.
    #[must_use]
    pub fn most(&self) -> u32 {
        self.most
    }

    /// Follows what the kernel has dropped at the socket, and how full the worker's memory is.
    /// More than half of it stays free of what ports have beyond their least.
    pub fn adjust(&mut self, drops: &KernelDrops, pool: FrameCount) {
        let lacked = drops.rx_dropped + drops.rx_fill_empty;
        if pool.free < pool.total / 4 {
            self.frames = self.least;
        } else if lacked > self.lacked && pool.free > pool.total / 2 {
            self.frames = (2 * self.frames).min(self.most);
        }
        self.lacked = lacked;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: u32 = 1024;

    fn pool(free: u32) -> FrameCount {
        FrameCount { free, rx: TOTAL - free, total: TOTAL, ..FrameCount::default() }
    }

    fn lacking(packets: u64) -> KernelDrops {
        KernelDrops { rx_fill_empty: packets, ..KernelDrops::default() }
    }

    #[test]
    fn doubles_up_to_the_ring_while_the_kernel_lacks_frames() {
        let mut share = Share::between(128, 500);
        let sizes = (1..=4).map(|packets| {
            share.adjust(&lacking(packets), pool(TOTAL));
            share.frames()
        });
        assert_eq!(sizes.collect::<Vec<_>>(), [256, 500, 500, 500]);
    }

    #[test]
    fn packets_of_several_frames_count_as_well() {
        let mut share = Share::between(128, 512);
        share.adjust(&KernelDrops { rx_dropped: 1, ..KernelDrops::default() }, pool(TOTAL));
        assert_eq!(share.frames(), 256);
    }

    #[test]
    fn stays_when_nothing_new_was_dropped() {
        let mut share = Share::between(128, 512);
        share.adjust(&lacking(1), pool(TOTAL));
        share.adjust(&lacking(1), pool(TOTAL));
        assert_eq!(share.frames(), 256);
    }

    #[test]
    fn a_full_rx_ring_is_not_mended_by_more_frames() {
        let mut share = Share::between(128, 512);
        share.adjust(&KernelDrops { rx_ring_full: 9, ..KernelDrops::default() }, pool(TOTAL));
        assert_eq!(share.frames(), 128);
    }

    #[test]
    fn does_not_grow_into_the_half_that_others_may_need() {
        let mut share = Share::between(128, 512);
        share.adjust(&lacking(1), pool(TOTAL / 2));
        assert_eq!(share.frames(), 128);
        share.adjust(&lacking(2), pool(TOTAL / 2 + 1));
        assert_eq!(share.frames(), 256);
    }

    #[test]
    fn falls_back_when_memory_is_short() {
        let mut share = Share::between(128, 512);
        share.adjust(&lacking(1), pool(TOTAL));
        share.adjust(&lacking(2), pool(TOTAL / 4));
        assert_eq!(share.frames(), 256, "a quarter is not short");
        share.adjust(&lacking(3), pool(TOTAL / 4 - 1));
        assert_eq!(share.frames(), 128);
    }
}
