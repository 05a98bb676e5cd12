//! The pool under any sequence of operations, and what it refuses.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::checksum::Sum;

const ROOM: usize = FRAME_BYTES - HEADROOM as usize;

fn pool(frames: u32) -> FramePool {
    FramePool::new(Arc::new(Area::map(frames).expect("memory")))
}

/// Bytes that do not repeat in step with frames.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ (at / 4096) as u8).collect()
}

/// A packet with these bytes.
fn packet(pool: &mut FramePool, bytes: &[u8]) -> Packet {
    pool.packet_from(std::iter::once(bytes)).expect("enough frames")
}

fn bytes(pool: &FramePool, packet: &Packet) -> Vec<u8> {
    pool.pieces(packet).collect::<Vec<_>>().concat()
}

/// A packet that has arrived in `slot`: fill ring, kernel, rx ring.
fn arrived(pool: &mut FramePool, slot: u16, bytes: &[u8]) -> Packet {
    let frame = pool.take().expect("a free frame");
    let address = pool.to_rx(frame, slot) + u64::from(HEADROOM);
    assert!(pool.write_as_kernel(address, bytes));
    pool.from_rx(slot, address, bytes.len() as u32).expect("a frame of the ring")
}

/// The addresses of a packet's pieces in the tx ring of `slot`.
fn queued(pool: &mut FramePool, slot: u16, packet: Packet) -> Vec<u64> {
    let mut addresses = Vec::new();
    pool.to_tx(packet, slot, |piece| addresses.push(piece.address));
    addresses
}

/// A packet whose pieces lie at these offsets in their frames, and its bytes.
fn laid_out(pool: &mut FramePool, pieces: &[(u16, u16)], first: u8) -> (Packet, Vec<u8>) {
    let mut whole: Option<Packet> = None;
    let len: usize = pieces.iter().map(|&(_, len)| usize::from(len)).sum();
    let bytes: Vec<u8> = pattern(len).iter().map(|byte| byte.wrapping_add(first)).collect();
    let mut at = 0;
    for &(offset, len) in pieces {
        let mut piece = pool.packet(0).expect("enough frames");
        let state = &mut pool.frames[piece.head as usize];
        (state.offset, state.len, piece.len) = (offset, len, u32::from(len));
        pool.head_mut(&mut piece).copy_from_slice(&bytes[at..at + usize::from(len)]);
        at += usize::from(len);
        whole = Some(match whole.take() {
            None => piece,
            Some(mut chain) => {
                pool.append(&mut chain, piece).expect("at most 18");
                chain
            }
        });
    }
    (whole.expect("a piece"), bytes)
}

/// Where pieces lie: the first behind its headroom, as they arrive or as merging leaves them.
fn layout() -> impl Strategy<Value = Vec<(u16, u16)>> {
    let room = |offset: u16| FRAME_BYTES as u16 - offset;
    let piece = (HEADROOM..FRAME_BYTES as u16, 0..=100u8, any::<u16>()).prop_map(
        move |(offset, percent, any)| match percent {
            0..30 => (HEADROOM, room(HEADROOM)),
            30..60 => (HEADROOM, any % 1515),
            60..70 => (offset, room(offset)),
            _ => (offset, any % (room(offset) + 1)),
        },
    );
    prop_oneof![
        4 => prop::collection::vec(piece.clone(), 1..4),
        1 => prop::collection::vec(piece, 1..=CHAIN_MAX),
    ]
}

#[test]
fn a_frame_is_handed_out_once() {
    let mut pool = pool(4);
    let frames: Vec<Frame> = std::iter::from_fn(|| pool.take()).collect();
    let mut indices: Vec<u32> = frames.iter().map(|frame| frame.index).collect();
    indices.sort_unstable();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(pool.count(), FrameCount { work: 4, total: 4, ..FrameCount::default() });
    frames.into_iter().for_each(|frame| pool.give(frame));
    assert_eq!(pool.count(), FrameCount { free: 4, total: 4, ..FrameCount::default() });
}

#[test]
fn a_completion_frees_a_frame_of_its_ring_and_only_once() {
    let mut pool = pool(4);
    let sent = packet(&mut pool, &pattern(10));
    let [address] = queued(&mut pool, 3, sent)[..] else { panic!("one piece") };
    assert!(!pool.complete(2, address), "another port's ring");
    assert!(pool.complete(3, address));
    assert!(!pool.complete(3, address), "twice");
    let working = pool.take().expect("a frame");
    for address in [u64::MAX, 4 * FRAME_BYTES as u64, 3 * FRAME_BYTES as u64, address] {
        assert!(!pool.complete(3, address), "{address}");
    }
    pool.give(working);
    assert_eq!(pool.count().free, 4);
    assert!(pool.count().conserved());
}

#[test]
fn a_received_descriptor_names_a_frame_of_its_ring_and_bytes_inside_of_it() {
    let mut pool = pool(4);
    let frame = pool.take().expect("a frame");
    let base = pool.to_rx(frame, 1);
    let end = base + FRAME_BYTES as u64;
    for (slot, address, len) in [
        (2, base + 256, 64),
        (1, end, 64),
        (1, 100 * FRAME_BYTES as u64, 64),
        (1, u64::MAX, 1),
        (1, base, FRAME_BYTES as u32 + 1),
        (1, base + 256, ROOM as u32 + 1),
        (1, base + 256, u32::MAX),
        (1, base + 4095, 2),
        (1, base + 1, u32::MAX),
    ] {
        assert!(pool.from_rx(slot, address, len).is_none(), "{slot} {address} {len}");
        assert_eq!(pool.count().rx, 1);
    }
    let packet = pool.from_rx(1, base + 256, ROOM as u32).expect("as long as the frame");
    assert!(pool.from_rx(1, base + 256, 64).is_none(), "twice");
    pool.release(packet);
    assert_eq!(pool.count().free, 4);
}

#[test]
fn closing_a_port_frees_its_frames_and_no_others() {
    let mut pool = pool(8);
    for slot in [1, 2] {
        let frame = pool.take().expect("a frame");
        pool.to_rx(frame, slot);
        let sent = packet(&mut pool, &pattern(ROOM + 1));
        queued(&mut pool, slot, sent);
    }
    let working = packet(&mut pool, b"x");
    assert_eq!(pool.reclaim_port(1), 3);
    assert_eq!(pool.reclaim_port(1), 0);
    let count = FrameCount { free: 4, rx: 1, tx: 2, work: 1, crossing: 0, total: 8 };
    assert_eq!(pool.count(), count);
    pool.release(working);
    assert_eq!(pool.reclaim_port(2), 3);
    assert_eq!(pool.count().free, 8);
}

#[test]
fn a_packet_has_at_most_18_frames() {
    let mut pool = pool(40);
    let mut long = pool.chain(CHAIN_MAX * ROOM).expect("18 frames");
    assert_eq!((long.frames(), long.len()), (18, 18 * ROOM));
    let more = packet(&mut pool, b"one more");
    let refused = pool.append(&mut long, more).expect_err("a nineteenth");
    assert_eq!((long.frames(), refused.len()), (18, 8));
    pool.release(refused);
    pool.release(long);
    assert!(pool.chain(CHAIN_MAX * ROOM + 1).is_none());
    let bytes = pattern(CHAIN_MAX * ROOM + 1);
    assert!(pool.packet_from(std::iter::once(&bytes[..])).is_none());
    assert_eq!(pool.count().free, 40, "what was refused is free again");
}

#[test]
fn too_few_frames_take_none() {
    let mut pool = pool(3);
    assert!(pool.chain(3 * ROOM + 1).is_none());
    let bytes = pattern(3 * ROOM + 1);
    assert!(pool.packet_from(std::iter::once(&bytes[..])).is_none());
    assert_eq!(pool.count().free, 3);
    let all = pool.chain(3 * ROOM).expect("exactly as many");
    assert!(pool.take().is_none() && pool.packet(0).is_none());
    pool.release(all);
}

#[test]
fn what_is_poured_fills_the_room_behind_and_frees_the_frames_that_are_empty_then() {
    let mut pool = pool(8);
    let room = FRAME_BYTES - usize::from(HEADROOM) - 1000;
    for (len, frames) in [(room - 1, 1), (room, 1), (room + 1, 2)] {
        let mut first = packet(&mut pool, &pattern(1000));
        let more = packet(&mut pool, &pattern(54 + len));
        pool.pour(&mut first, more, 54).expect("room in the chain");
        assert_eq!((first.frames(), first.len()), (frames, 1000 + len));
        assert_eq!(pool.count().work as usize, frames, "{len} bytes");
        pool.release(first);
    }
    // Nothing is left behind the headers.
    let mut first = packet(&mut pool, b"first");
    let headers = packet(&mut pool, &pattern(54));
    pool.pour(&mut first, headers, 54).expect("nothing to pour");
    assert_eq!((first.frames(), first.len(), pool.count().work), (1, 5, 1));
    // The headers end where the first of several frames does.
    let more = packet(&mut pool, &pattern(ROOM + 10));
    pool.pour(&mut first, more, ROOM).expect("room in the frame");
    let expected = [b"first", &pattern(ROOM + 10)[ROOM..]].concat();
    assert_eq!((bytes(&pool, &first), first.frames()), (expected, 1));
    pool.release(first);
    assert_eq!(pool.count().free, 8);
}

#[test]
fn a_chain_of_18_frames_takes_what_fits_its_last_and_gives_the_rest_back_unchanged() {
    let mut pool = pool(40);
    let full = pattern(CHAIN_MAX * ROOM - 100);
    let mut long = packet(&mut pool, &full);
    let more = packet(&mut pool, &pattern(54 + 101));
    let more = pool.pour(&mut long, more, 54).expect_err("a nineteenth");
    assert_eq!((more.len(), more.frames(), long.frames()), (155, 1, 18));
    assert_eq!((bytes(&pool, &more), bytes(&pool, &long)), (pattern(155), full.clone()));
    pool.pour(&mut long, more, 55).expect("one byte less fits");
    assert_eq!((long.len(), long.frames()), (CHAIN_MAX * ROOM, 18));
    assert_eq!(bytes(&pool, &long), [full.as_slice(), &pattern(155)[55..]].concat());
    pool.release(long);
    assert_eq!(pool.count().free, 40);
}

#[test]
#[should_panic(expected = "a peer returns a frame once")]
fn a_crossing_frame_that_returns_twice_is_our_own_error() {
    let mut pool = pool(1);
    let sent = packet(&mut pool, b"x");
    let mut addresses = Vec::new();
    pool.to_crossing(sent, |piece| addresses.push(piece.address));
    pool.from_crossing(addresses[0]);
    pool.from_crossing(addresses[0]);
}

#[test]
#[should_panic(expected = "truncate only shortens")]
fn truncating_to_nothing_is_our_own_error() {
    let mut pool = pool(1);
    let mut short = packet(&mut pool, b"x");
    pool.truncate(&mut short, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_packet_has_the_bytes_it_was_made_from(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 1..6),
    ) {
        let mut pool = pool(20);
        let expected = pieces.concat();
        match pool.packet_from(pieces.iter().map(Vec::as_slice)) {
            None => prop_assert!(expected.is_empty()),
            Some(packet) => {
                prop_assert_eq!(packet.len(), expected.len());
                prop_assert_eq!(bytes(&pool, &packet), expected);
                pool.release(packet);
            }
        }
        prop_assert_eq!(pool.count().free, 20);
    }

    #[test]
    fn truncating_keeps_the_first_bytes_and_frees_the_rest(
        len in 1..20_000usize, cut in 0..20_000usize,
    ) {
        let mut pool = pool(8);
        let original = pattern(len);
        let mut packet = packet(&mut pool, &original);
        let cut = cut % len + 1;
        pool.truncate(&mut packet, cut);
        prop_assert_eq!((packet.len(), packet.frames()), (cut, cut.div_ceil(ROOM)));
        prop_assert_eq!(bytes(&pool, &packet), &original[..cut]);
        prop_assert_eq!(pool.count().work as usize, packet.frames());
        // The chain still ends: something can be put behind it.
        let tail = pool.packet_from(std::iter::once(&b"tail"[..])).expect("a frame");
        pool.append(&mut packet, tail).expect("room in the chain");
        let expected = [&original[..cut], b"tail"].concat();
        prop_assert_eq!(bytes(&pool, &packet), expected);
        pool.release(packet);
        prop_assert_eq!(pool.count().free, 8);
    }

    #[test]
    fn copying_between_packets_equals_copying_between_slices(
        len in 1..20_000usize, from in 0..20_000usize, to in 0..ROOM, room in 0..15_000usize,
    ) {
        let mut pool = pool(16);
        let source_bytes = pattern(len);
        let from = from % len;
        let copied = room.min(len - from);
        let source = packet(&mut pool, &source_bytes);
        let mut target = pool.chain(to + copied).expect("enough frames");
        let to = to.min(ROOM.min(target.len()));
        pool.copy_between(&source, from, &mut target, to);
        let copied = target.len() - to;
        prop_assert_eq!(&bytes(&pool, &target)[to..], &source_bytes[from..from + copied]);
        let mut out = vec![0; copied];
        pool.copy_out(&source, from, &mut out);
        prop_assert_eq!(&out, &source_bytes[from..from + copied]);
        pool.release(source);
        pool.release(target);
        prop_assert_eq!(pool.count().free, 16);
    }

    #[test]
    fn pouring_equals_concatenation(
        layouts in prop::collection::vec(layout(), 2..6), skips in any::<[u16; 6]>(),
    ) {
        let mut pool = pool(2 * CHAIN_MAX as u32);
        let (mut whole, mut expected) = laid_out(&mut pool, &layouts[0], 0);
        for (number, layout) in layouts.iter().enumerate().skip(1) {
            let (more, more_bytes) = laid_out(&mut pool, layout, number as u8);
            // At times at the very end of the first frame.
            let skip = usize::from(skips[number].min(layout[0].1));
            let tail = &pool.frames[whole.tail as usize];
            let room = FRAME_BYTES - usize::from(tail.offset + tail.len);
            let fits = more_bytes.len() - skip <= room;
            let before = (whole.frames(), more.frames());
            let refused = !fits && before.0 + before.1 > CHAIN_MAX;
            match pool.pour(&mut whole, more, skip) {
                Ok(()) => {
                    prop_assert!(!refused);
                    expected.extend(&more_bytes[skip..]);
                    prop_assert!(whole.frames() <= before.0 + before.1);
                    prop_assert!(!fits || whole.frames() == before.0);
                }
                Err(more) => {
                    prop_assert!(refused);
                    prop_assert_eq!((whole.frames(), more.frames()), before);
                    prop_assert_eq!(&bytes(&pool, &more), &more_bytes);
                    prop_assert_eq!(more.len(), more_bytes.len());
                    pool.release(more);
                }
            }
            prop_assert_eq!(&bytes(&pool, &whole), &expected);
            prop_assert_eq!(whole.len(), expected.len());
            prop_assert_eq!(pool.pieces(&whole).count(), whole.frames());
            prop_assert_eq!(pool.count().work as usize, whole.frames());
            prop_assert!(pool.count().conserved());
        }
        pool.release(whole);
        prop_assert_eq!(pool.count().free, 2 * CHAIN_MAX as u32);
    }

    #[test]
    fn the_sum_over_pieces_is_that_over_the_bytes(layout in layout(), from in any::<u16>()) {
        let mut pool = pool(CHAIN_MAX as u32);
        let (packet, bytes) = laid_out(&mut pool, &layout, 3);
        let from = usize::from(from) % (bytes.len() + 1);
        let expected = Sum::default().add_bytes(&bytes[from..]);
        prop_assert_eq!(pool.sum_from(&packet, from).checksum(), expected.checksum());
        pool.release(packet);
    }

    #[test]
    fn the_frame_law_holds_and_bytes_survive_whatever_happens(
        steps in prop::collection::vec((0..10u8, 0..3u16, 1..9000usize), 1..200),
    ) {
        let mut pool = pool(24);
        let mut world = World::default();
        for (step, slot, len) in steps {
            world.step(&mut pool, step, slot, len);
            let count = pool.count();
            prop_assert!(count.conserved(), "{:?}", count);
            prop_assert_eq!(count.free as usize, pool.free.len());
            for (packet, expected) in &world.working {
                prop_assert_eq!(&bytes(&pool, packet), expected);
            }
        }
        world.end(&mut pool);
        prop_assert_eq!(pool.count().free, 24);
    }
}

/// Everything outside of the pool, naively.
#[derive(Default)]
struct World {
    working: VecDeque<(Packet, Vec<u8>)>,
    sending: Vec<(u16, u64)>,
    crossing: Vec<u64>,
}

impl World {
    fn step(&mut self, pool: &mut FramePool, step: u8, slot: u16, len: usize) {
        match step {
            0 if pool.count().free > 0 => {
                let bytes = pattern(len.min(ROOM));
                let packet = arrived(pool, slot, &bytes);
                self.working.push_back((packet, bytes));
            }
            1 => {
                let bytes = pattern(len);
                let made = pool.packet_from(std::iter::once(&bytes[..]));
                self.working.extend(made.map(|packet| (packet, bytes)));
            }
            2 => self.take(|world, packet| {
                world.sending.extend(queued(pool, slot, packet).into_iter().map(|a| (slot, a)));
            }),
            3 if !self.sending.is_empty() => {
                let (slot, address) = self.sending.swap_remove(len % self.sending.len());
                assert!(!pool.complete(slot + 1, address));
                assert!(pool.complete(slot, address));
                assert!(!pool.complete(slot, address));
            }
            4 => self.take(|world, packet| {
                pool.to_crossing(packet, |piece| world.crossing.push(piece.address));
            }),
            5 if !self.crossing.is_empty() => {
                pool.from_crossing(self.crossing.swap_remove(len % self.crossing.len()));
            }
            6 => self.take(|_, packet| pool.release(packet)),
            7 => {
                let Some((mut packet, mut bytes)) = self.working.pop_front() else { return };
                bytes.truncate(len % bytes.len() + 1);
                pool.truncate(&mut packet, bytes.len());
                self.working.push_back((packet, bytes));
            }
            8 => {
                pool.reclaim_port(slot);
                self.sending.retain(|(holder, _)| *holder != slot);
            }
            9 if self.working.len() > 1 => {
                let (mut whole, mut bytes) = self.working.pop_front().expect("two");
                let (more, more_bytes) = self.working.pop_front().expect("two");
                let skip = len % (more_bytes.len().min(ROOM) + 1);
                let skip = skip.min(pool.head(&more).len());
                match pool.pour(&mut whole, more, skip) {
                    Ok(()) => bytes.extend(&more_bytes[skip..]),
                    Err(more) => self.working.push_front((more, more_bytes)),
                }
                self.working.push_back((whole, bytes));
            }
            _ => {}
        }
    }

    fn take(&mut self, act: impl FnOnce(&mut World, Packet)) {
        if let Some((packet, _)) = self.working.pop_front() {
            act(self, packet);
        }
    }

    fn end(&mut self, pool: &mut FramePool) {
        while !self.working.is_empty() {
            self.take(|_, packet| pool.release(packet));
        }
        self.crossing.drain(..).for_each(|address| pool.from_crossing(address));
        (0..3).for_each(|slot| {
            pool.reclaim_port(slot);
        });
    }
}
