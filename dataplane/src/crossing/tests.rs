//! Rings between workers: packets arrive whole and in order, frames return to their owner.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn pool(frames: u32) -> FramePool {
    FramePool::new(Arc::new(Area::map(frames).expect("memory")))
}

fn ring(from: &FramePool) -> (CrossingOut, CrossingIn) {
    crossing(from.area().clone(), Arc::new(Bell::new().expect("an eventfd")))
}

fn routed(egress: u16) -> Routed {
    let egress = PortId(egress);
    Routed { egress, offload: Offload::default(), nat: Nat::None, wire_packets: 1, wire_bytes: 9 }
}

fn send(out: &mut CrossingOut, pool: &mut FramePool, bytes: &[u8], egress: u16) -> bool {
    let Some(packet) = pool.packet_from(std::iter::once(bytes)) else { return false };
    match out.send(pool, packet, routed(egress)) {
        Ok(()) => true,
        Err(packet) => {
            pool.release(packet);
            false
        }
    }
}

/// Whether the bell of this ring has been rung since the last look.
fn rung(bell: &Bell) -> bool {
    rustix::io::read(&bell.event, &mut [0u8; 8]).is_ok()
}

/// Takes what has arrived and compares it with what was sent.
fn receive_all(
    incoming: &mut CrossingIn,
    pool: &mut FramePool,
    expected: &mut VecDeque<(u16, Vec<u8>)>,
) {
    while let Some(received) = incoming.receive(pool) {
        let (sent_to, bytes) = expected.pop_front().expect("no more than was sent");
        match received {
            Received::Packet(packet, routed) => {
                assert_eq!(routed.egress.0, sent_to);
                assert_eq!(pool.pieces(&packet).collect::<Vec<_>>().concat(), bytes);
                pool.release(packet);
            }
            Received::NoFrames(routed) => {
                assert_eq!(routed.egress.0, sent_to);
                assert!(bytes.len() > 4 * 3840, "{} bytes in 4 frames", bytes.len());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn packets_arrive_once_whole_and_in_order_and_their_frames_return(
        sizes in prop::collection::vec((1..12_000usize, 0..3u8), 1..60), receiver in 4..40u32,
    ) {
        let (mut from, mut to) = (pool(64), pool(receiver));
        let (mut out, mut incoming) = ring(&from);
        let mut expected = VecDeque::new();
        for (number, (size, step)) in sizes.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..size).map(|at| (at * 7 + number) as u8).collect();
            if send(&mut out, &mut from, &bytes, number as u16) {
                expected.push_back((number as u16, bytes));
            }
            match step {
                0 => receive_all(&mut incoming, &mut to, &mut expected),
                1 => out.take_returned(&mut from),
                _ => {}
            }
            prop_assert!(from.count().conserved() && to.count().conserved());
        }
        receive_all(&mut incoming, &mut to, &mut expected);
        prop_assert!(expected.is_empty() && incoming.is_empty());
        out.take_returned(&mut from);
        prop_assert_eq!((from.count().free, to.count().free), (64, receiver));
    }
}

#[test]
fn at_most_1024_frames_are_under_way() {
    let (mut from, mut to) = (pool(1100), pool(8));
    let (mut out, mut incoming) = ring(&from);
    let sent = (0..1100).filter(|_| send(&mut out, &mut from, b"x", 1)).count();
    assert_eq!(sent, FRAMES_MAX);
    assert_eq!(from.count().crossing as usize, FRAMES_MAX);
    // What was copied still counts until it is taken back: the returns must fit as well.
    for _ in 0..2 {
        let Some(Received::Packet(packet, _)) = incoming.receive(&mut to) else { panic!("one") };
        to.release(packet);
    }
    assert!(!send(&mut out, &mut from, b"x", 1));
    out.take_returned(&mut from);
    assert!(!send(&mut out, &mut from, &[0; 3 * 3840], 1), "three frames, room for two");
    assert!(send(&mut out, &mut from, &[0; 2 * 3840], 1));
}

#[test]
fn only_a_sleeper_is_woken_and_once_per_batch() {
    let bell = Arc::new(Bell::new().expect("an eventfd"));
    let mut from = pool(8);
    let (mut out, _incoming) = crossing(from.area().clone(), bell.clone());
    send(&mut out, &mut from, b"x", 1);
    out.ring_bell();
    assert!(!rung(&bell), "it is awake");
    bell.going_to_sleep();
    out.ring_bell();
    assert!(!rung(&bell), "nothing was sent since");
    send(&mut out, &mut from, b"x", 1);
    out.ring_bell();
    assert!(rung(&bell));
    send(&mut out, &mut from, b"x", 1);
    out.ring_bell();
    assert!(!rung(&bell), "it was woken already");
    bell.going_to_sleep();
    bell.ring();
    bell.awake();
    assert!(!rung(&bell), "waking up empties the bell");
}

#[test]
fn a_sleeper_on_another_thread_sees_what_was_sent() {
    let bell = Arc::new(Bell::new().expect("an eventfd"));
    let (mut from, mut to) = (pool(512), pool(8));
    let (mut out, mut incoming) = crossing(from.area().clone(), bell.clone());
    const PACKETS: usize = 20_000;
    let receiver = std::thread::spawn(move || {
        let mut got = 0;
        while got < PACKETS {
            if let Some(received) = incoming.receive(&mut to) {
                if let Received::Packet(packet, _) = received {
                    to.release(packet);
                }
                got += 1;
                continue;
            }
            bell.going_to_sleep();
            if incoming.is_empty() {
                let mut fds =
                    [rustix::event::PollFd::new(&bell.event, rustix::event::PollFlags::IN)];
                // No wake-up is lost: this never waits for its deadline.
                let deadline = Duration::from_secs(10).try_into().expect("a time");
                let woken = rustix::event::poll(&mut fds, Some(&deadline)).expect("poll");
                assert_eq!(woken, 1, "asleep after {got} packets");
            }
            bell.awake();
        }
    });
    let mut sent = 0;
    while sent < PACKETS {
        out.take_returned(&mut from);
        if send(&mut out, &mut from, b"packet", 1) {
            sent += 1;
        }
        out.ring_bell();
    }
    receiver.join().expect("the receiver got them all");
}
