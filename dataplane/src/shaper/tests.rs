use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
/// Passes of a busy worker, and the slots of the wheel, are shorter than this.
const SLACK_NS: u64 = 20_000;
const PACKET: Size = Size { wire_bytes: 1_514, frames: 1 };
const PLENTY: u32 = 1 << 20;

fn limit(bits_per_s: u64, burst_bytes: u64) -> Limit {
    Limit { bits_per_s, burst_bytes, queue_ns: 25 * MS }
}

/// Offers a packet as a worker does. Returns whether it goes at once; `None` if it is refused.
fn send<T>(shaper: &mut Shaper<T>, id: LineId, size: Size, packet: T) -> Option<bool> {
    match shaper.offer(id, size, PLENTY) {
        Offer::Go => Some(true),
        Offer::Wait { .. } => {
            shaper.push(id, size, packet);
            Some(false)
        }
        Offer::Refuse(_) => None,
    }
}

/// Offers packets numbered from `first` until one is refused. Returns the number of that one.
fn fill(shaper: &mut Shaper<u32>, id: LineId, first: u32) -> u32 {
    (first..).find(|number| send(shaper, id, PACKET, *number).is_none()).expect("an end")
}

fn leaving<T>(shaper: &mut Shaper<T>, now_ns: u64) -> Vec<T> {
    shaper.begin_pass(now_ns);
    std::iter::from_fn(|| shaper.pop_due()).map(|(_, packet)| packet).collect()
}

/// A shaper with one line whose burst is spent: two packets of 1 Mbit/s.
fn busy() -> (Shaper<u32>, LineId) {
    let mut shaper = Shaper::new(1_000);
    shaper.begin_pass(5 * SECOND);
    let id = shaper.open(&limit(1_000_000, 3_028));
    assert_eq!(send(&mut shaper, id, PACKET, 0), Some(true));
    assert_eq!(send(&mut shaper, id, PACKET, 0), Some(true));
    (shaper, id)
}

#[test]
fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
    let (mut shaper, id) = busy();
    for number in 1..=4 {
        assert_eq!(send(&mut shaper, id, PACKET, number), Some(false));
    }
    assert_eq!(shaper.waiting(), 4);
    // The bucket is empty and has to hold more than nothing: 1 ns. A packet takes 12.112 ms.
    for (number, ready_ns) in [(1, 1), (2, 12_112_001), (3, 24_224_001), (4, 36_336_001)] {
        let due_ns = shaper.next_ns().expect("some wait");
        let ready_ns = 5 * SECOND + ready_ns;
        assert!((ready_ns..ready_ns + SLACK_NS).contains(&due_ns), "{number}: {due_ns}");
        assert_eq!(leaving(&mut shaper, due_ns - 1), []);
        assert_eq!(leaving(&mut shaper, due_ns), [number]);
    }
    assert_eq!((shaper.waiting(), shaper.next_ns()), (0, None));
    shaper.begin_pass(10 * SECOND);
    assert_eq!(send(&mut shaper, id, PACKET, 5), Some(true), "after a silence there is a burst");
}

#[test]
fn nobody_overtakes_who_waits_even_when_there_are_tokens() {
    let (mut shaper, id) = busy();
    assert_eq!(send(&mut shaper, id, PACKET, 1), Some(false));
    shaper.begin_pass(6 * SECOND);
    assert!(shaper.state(id).tokens_bytes > 0);
    let small = Size { wire_bytes: 60, frames: 1 };
    assert_eq!(send(&mut shaper, id, small, 2), Some(false));
    assert_eq!(leaving(&mut shaper, 6 * SECOND), [1, 2]);
}

#[test]
fn who_would_wait_longer_than_the_bound_is_refused() {
    let mut shaper = Shaper::new(10_000);
    let id = shaper.open(&limit(100_000_000, 15_140));
    // 25 ms at 100 Mbit/s are 312,500 bytes: 206.4 packets.
    assert_eq!(fill(&mut shaper, id, 0), 10 + 206);
    assert_eq!(shaper.offer(id, PACKET, PLENTY), Offer::Refuse(DropReason::ShaperFull));
    let short = Size { wire_bytes: 100, frames: 1 };
    assert!(matches!(shaper.offer(id, short, PLENTY), Offer::Wait { mark: true }));
    assert_eq!(leaving(&mut shaper, MS).len(), 9, "1 ms is 8.3 packets");
    assert!(matches!(shaper.offer(id, PACKET, PLENTY), Offer::Wait { mark: true }));
}

#[test]
fn ten_packets_wait_however_slow_the_line_and_scarce_the_memory() {
    let (mut shaper, id) = busy();
    assert_eq!(fill(&mut shaper, id, 0), 10);
    assert_eq!(shaper.offer(id, PACKET, PLENTY), Offer::Refuse(DropReason::ShaperFull));
    let mut shaper = Shaper::new(100);
    let id = shaper.open(&limit(1_000_000_000, 1));
    assert_eq!(send(&mut shaper, id, PACKET, 0), Some(true));
    let jumbo = Size { wire_bytes: 9_014, frames: 3 };
    for number in 0..10 {
        assert!(matches!(shaper.offer(id, jumbo, 0), Offer::Wait { .. }));
        shaper.push(id, jumbo, number);
    }
    assert_eq!(shaper.offer(id, jumbo, 0), Offer::Refuse(DropReason::ShaperNoFrames));
    assert_eq!(shaper.offer(id, jumbo, 4 * 33 - 1), Offer::Refuse(DropReason::ShaperNoFrames));
    assert_eq!(shaper.offer(id, jumbo, 4 * 33), Offer::Wait { mark: false });
}

#[test]
fn where_long_packets_take_every_place_short_ones_are_heard() {
    let mut shaper = Shaper::new(100);
    let id = shaper.open(&limit(1_000_000, 1));
    assert_eq!(fill(&mut shaper, id, 0), 11);
    let full = Offer::Refuse(DropReason::ShaperFull);
    assert_eq!(shaper.offer(id, Size { wire_bytes: 257, frames: 1 }, PLENTY), full);
    let short = Size { wire_bytes: 256, frames: 1 };
    for number in 0..10 {
        assert_eq!(shaper.offer(id, short, 0), Offer::Wait { mark: true });
        shaper.push(id, short, number);
    }
    assert_eq!(shaper.offer(id, short, PLENTY), full, "an eleventh");
}

#[test]
fn one_super_packet_waits_however_slow_the_line_and_scarce_the_memory_and_not_ten() {
    let whole = Size { wire_bytes: 68_000, frames: 17 };
    for (bits_per_s, reason, free, mark) in [
        (1_000_000, DropReason::ShaperFull, PLENTY, true),
        (1_000_000_000, DropReason::ShaperNoFrames, 0, false),
    ] {
        let mut shaper = Shaper::new(100);
        let id = shaper.open(&limit(bits_per_s, 1));
        assert_eq!(send(&mut shaper, id, PACKET, 0), Some(true));
        assert!(matches!(shaper.offer(id, whole, free), Offer::Wait { mark: false }));
        shaper.push(id, whole, 1);
        assert_eq!(shaper.offer(id, whole, free), Offer::Refuse(reason), "34 frames");
        // Nine more packets may wait with it, of 13 frames: here 5 of one and 4 of two.
        for (number, frames) in (2..).zip([1, 2, 1, 2, 1, 2, 1, 2, 1]) {
            let size = Size { wire_bytes: 1_514, frames };
            assert_eq!(shaper.offer(id, size, free), Offer::Wait { mark }, "{number}");
            shaper.push(id, size, number);
        }
        assert_eq!(shaper.offer(id, PACKET, free), Offer::Refuse(reason), "an eleventh");
    }
}

#[test]
fn a_lower_rate_leaves_no_more_super_packets_than_it_has_room_for() {
    let mut shaper = Shaper::new(100);
    let id = shaper.open(&limit(1_000_000_000, 1));
    let whole = Size { wire_bytes: 68_000, frames: 17 };
    for number in 0..10 {
        assert_eq!(send(&mut shaper, id, whole, number), Some(number == 0));
    }
    shaper.change(id, &limit(1_000_000, 1));
    let shed: Vec<u32> = std::iter::from_fn(|| shaper.shed(id)).collect();
    assert_eq!(shed, (1..9).collect::<Vec<_>>());
    assert_eq!(shaper.take_back(id), Some(9));
}

#[test]
fn a_line_holds_a_quarter_of_the_free_frames() {
    let mut shaper = Shaper::new(10_000);
    let id = shaper.open(&limit(1_000_000_000, 1));
    let mut free = 1_000;
    let refused = loop {
        match shaper.offer(id, PACKET, free) {
            Offer::Go => {}
            Offer::Wait { .. } => {
                shaper.push(id, PACKET, ());
                free -= 1;
            }
            Offer::Refuse(reason) => break reason,
        }
    };
    assert_eq!(refused, DropReason::ShaperNoFrames);
    assert_eq!((shaper.waiting(), free), (200, 800), "a quarter of what is left");
    let other = shaper.open(&limit(1_000_000_000, 1));
    assert_eq!(send(&mut shaper, other, PACKET, ()), Some(true));
    assert!(matches!(shaper.offer(other, PACKET, free), Offer::Wait { .. }), "others have theirs");
}

#[test]
fn no_more_wait_than_there_are_places() {
    let mut shaper = Shaper::new(3);
    let id = shaper.open(&limit(1_000_000_000, 1));
    assert_eq!(fill(&mut shaper, id, 0), 4);
    assert_eq!(shaper.offer(id, PACKET, PLENTY), Offer::Refuse(DropReason::ShaperNoFrames));
}

#[test]
fn who_waits_for_more_than_half_of_the_bound_is_marked() {
    let mut shaper = Shaper::new(10_000);
    let id = shaper.open(&limit(100_000_000, 1));
    assert_eq!(send(&mut shaper, id, PACKET, 0), Some(true));
    // 12.5 ms are 156,250 bytes, 103.2 packets: the debt of the first, and 103 more.
    for before in 0..207 {
        let Offer::Wait { mark } = shaper.offer(id, PACKET, PLENTY) else { break };
        assert_eq!(mark, before > 102, "{before} packets before");
        shaper.push(id, PACKET, before);
    }
    assert_eq!(shaper.waiting(), 205);
}

#[test]
fn half_of_ten_packets_are_not_marked_however_slow_the_line() {
    let (mut shaper, id) = busy();
    for before in 0..10 {
        let mark = before >= 5;
        assert_eq!(shaper.offer(id, PACKET, PLENTY), Offer::Wait { mark });
        shaper.push(id, PACKET, before);
    }
}

#[test]
fn a_line_takes_no_more_of_a_pass_than_its_share() {
    let mut shaper = Shaper::new(1_000);
    let lines = [(); 2].map(|()| shaper.open(&limit(100_000_000, 400_000)));
    for id in lines {
        fill(&mut shaper, id, 0);
    }
    // 265 are gone. A second later the tokens are there for the 205 that wait.
    let order: Vec<u32> = (265..470).collect();
    for (pass, share) in [(0, 0..64), (1, 64..128), (2, 128..192), (3, 192..205)] {
        shaper.begin_pass(SECOND + pass);
        let mut left = [Vec::new(), Vec::new()];
        while let Some((id, number)) = shaper.pop_due() {
            left[id.index()].push(number);
        }
        assert_eq!(left, [&order[share.clone()], &order[share]]);
        let more = shaper.next_ns().is_some_and(|at_ns| at_ns <= SECOND + pass);
        assert_eq!(more, pass < 3, "a worker does not sleep while some may leave");
    }
}

#[test]
fn what_a_line_sends_in_a_pass_is_not_taken_from_the_next_line() {
    let mut shaper = Shaper::new(1_000);
    let lines = [(); 3].map(|()| shaper.open(&limit(100_000_000, 150_000)));
    for id in lines {
        let waiting = |number: &u32| send(&mut shaper, id, PACKET, *number) == Some(false);
        assert_eq!((0..).filter(waiting).take(50).count(), 50);
    }
    assert_eq!(leaving(&mut shaper, SECOND).len(), 150);
}

#[test]
fn a_share_of_a_pass_that_is_not_asked_for_is_there_in_the_next() {
    let mut shaper = Shaper::new(1_000);
    let id = shaper.open(&limit(100_000_000, 400_000));
    fill(&mut shaper, id, 0);
    shaper.begin_pass(SECOND);
    assert_eq!(shaper.pop_due(), Some((id, 265)));
    assert_eq!(shaper.next_ns(), Some(SECOND));
    assert_eq!(leaving(&mut shaper, SECOND).len(), 64);
}

#[test]
fn a_clock_that_steps_back_delays_nobody() {
    let (mut shaper, id) = busy();
    assert_eq!(send(&mut shaper, id, PACKET, 1), Some(false));
    assert_eq!(send(&mut shaper, id, PACKET, 2), Some(false));
    assert_eq!(leaving(&mut shaper, MS), [], "the bucket is as empty as it was");
    let due_ns = shaper.next_ns().expect("they wait still");
    assert!(due_ns < MS + SLACK_NS, "{due_ns}");
    assert_eq!(leaving(&mut shaper, due_ns), [1]);
    assert!(shaper.next_ns().is_some_and(|at_ns| at_ns < 14 * MS));
}

#[test]
fn a_clock_that_steps_forward_gives_one_burst() {
    let (mut shaper, id) = busy();
    assert_eq!(fill(&mut shaper, id, 0), 10);
    assert_eq!(leaving(&mut shaper, u64::MAX - SECOND), [0, 1]);
    assert_eq!(shaper.state(id).tokens_bytes, 0);
    assert_eq!(leaving(&mut shaper, u64::MAX - SECOND + 13 * MS), [2, 3]);
}

#[test]
fn a_line_of_800_bits_a_second_sends_its_packets_in_time() {
    let mut shaper = Shaper::new(100);
    let id = shaper.open(&limit(800, 3_028));
    assert_eq!(fill(&mut shaper, id, 0), 12);
    let (mut now_ns, mut passes, mut left) = (0, 0, Vec::new());
    while let Some(at_ns) = shaper.next_ns() {
        now_ns = at_ns.max(now_ns + 1);
        passes += 1;
        for number in leaving(&mut shaper, now_ns) {
            left.push((number, now_ns / MS));
        }
    }
    let expected: Vec<(u32, u64)> = (0..10).map(|n| (n + 2, u64::from(n) * 15_140)).collect();
    assert_eq!(left, expected, "one every 15.14 s");
    assert!(passes < 1_100, "the wheel is turned {passes} times in 136 s");
}

#[test]
fn a_packet_larger_than_the_burst_leaves_and_is_paid_for_after() {
    let mut shaper = Shaper::new(100);
    let id = shaper.open(&limit(8_000_000, 25));
    assert_eq!(send(&mut shaper, id, PACKET, 0), Some(true));
    assert_eq!(shaper.state(id).tokens_bytes, -1_489);
    assert_eq!(send(&mut shaper, id, PACKET, 1), Some(false));
    assert_eq!(leaving(&mut shaper, 1_489_000), []);
    assert_eq!(leaving(&mut shaper, 1_489_000 + SLACK_NS), [1]);
}

#[test]
fn a_change_holds_for_those_that_wait() {
    let (mut shaper, id) = busy();
    assert_eq!(fill(&mut shaper, id, 0), 10);
    assert_eq!(leaving(&mut shaper, 5 * SECOND + MS), [0], "the next one has to wait 12 ms");
    shaper.change(id, &limit(1_000_000_000, 3_028));
    let due_ns = shaper.next_ns().expect("some wait");
    assert!(due_ns <= 5 * SECOND + MS + 12_000 + SLACK_NS, "12 µs, and a slot: {due_ns}");
    assert_eq!(leaving(&mut shaper, due_ns), [1]);
    shaper.change(id, &limit(1, 3_028));
    assert_eq!(leaving(&mut shaper, 60 * SECOND), []);
    shaper.change(id, &limit(1_000_000_000, 1 << 20));
    assert_eq!(leaving(&mut shaper, 61 * SECOND), [2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn a_lower_rate_sheds_the_oldest_of_what_would_wait_too_long() {
    let mut shaper = Shaper::new(1_000);
    let id = shaper.open(&limit(100_000_000, 1));
    let refused = fill(&mut shaper, id, 0);
    assert_eq!(shaper.shed(id), None, "it is as full as it may be");
    shaper.change(id, &limit(10_000_000, 1));
    let shed: Vec<u32> = std::iter::from_fn(|| shaper.shed(id)).collect();
    assert_eq!(shed.first(), Some(&1));
    // 25 ms are 20.6 packets, of which the debt of the first is one.
    let left: Vec<u32> = std::iter::from_fn(|| shaper.take_back(id)).collect();
    assert_eq!(left, (refused - 19..refused).collect::<Vec<_>>());
}

#[test]
fn a_rate_that_is_not_lower_sheds_nothing() {
    for bits_per_s in [1_000_000, 1_100_000] {
        let (mut shaper, id) = busy();
        fill(&mut shaper, id, 0);
        let short = Size { wire_bytes: 256, frames: 1 };
        let shorts = (0..).take_while(|number| send(&mut shaper, id, short, *number).is_some());
        assert_eq!((shorts.count(), shaper.waiting()), (10, 20));
        shaper.change(id, &limit(bits_per_s, 3_028));
        assert_eq!(shaper.shed(id), None, "{bits_per_s}");
    }
}

#[test]
fn a_line_that_is_closed_leaves_nothing_to_its_successor() {
    let (mut shaper, id) = busy();
    assert_eq!(fill(&mut shaper, id, 0), 10);
    // One of them is due, and does not come to leave.
    shaper.begin_pass(5 * SECOND + MS);
    let back: Vec<u32> = std::iter::from_fn(|| shaper.take_back(id)).collect();
    assert_eq!(back, (0..10).collect::<Vec<_>>());
    assert_eq!((shaper.waiting(), shaper.next_ns()), (0, None));
    shaper.close(id);
    let next = shaper.open(&limit(8_000, 100));
    assert_eq!(next, id, "its place is used again");
    assert_ne!(shaper.open(&limit(8_000, 100)), id);
    let state = LineState { tokens_bytes: 100, queued_bytes: 0, queued_packets: 0 };
    assert_eq!(shaper.state(next), state);
    assert_eq!(leaving(&mut shaper, 100 * SECOND), []);
}

#[test]
#[should_panic(expected = "a line is closed when it is empty")]
fn a_line_with_packets_cannot_be_closed() {
    let (mut shaper, id) = busy();
    assert_eq!(send(&mut shaper, id, PACKET, 1), Some(false));
    shaper.close(id);
}

#[test]
fn super_packets_of_more_than_600_us_are_to_be_cut() {
    let limit = limit(640_000_000, 1);
    assert!(!limit.cuts(48_000));
    assert!(limit.cuts(48_001));
    let extremes = [0, 1, u64::MAX].map(|bits_per_s| Limit { bits_per_s, ..limit });
    assert_eq!(extremes.map(|limit| limit.cuts(1)), [true, true, false]);
    assert!(!extremes[2].cuts(2_000_000_000));
}

#[test]
fn lines_of_many_rates_send_exactly_what_they_may() {
    // 250 lines, all of them saturated for a second by passes of uneven length: nobody gets more
    // than rate · t + burst + a packet, and nobody less than a packet and a few passes below it.
    let mut shaper = Shaper::new(250 * 600);
    let rates: Vec<u64> = (1..=250).map(|line| line * line * 4_001).collect();
    let lines: Vec<LineId> =
        rates.iter().map(|rate| shaper.open(&limit(*rate, rate / 160 + 3_028))).collect();
    let mut sent = vec![0u64; lines.len()];
    let (mut now_ns, mut pass) = (0, 0);
    while now_ns < SECOND {
        shaper.begin_pass(now_ns);
        while let Some((id, ())) = shaper.pop_due() {
            sent[id.index()] += u64::from(PACKET.wire_bytes);
        }
        for id in &lines {
            while let Some(went) = send(&mut shaper, *id, PACKET, ()) {
                sent[id.index()] += if went { u64::from(PACKET.wire_bytes) } else { 0 };
            }
        }
        pass += 1;
        now_ns += 30_000 + pass * 7_919 % 90_000;
    }
    for (sent, rate) in sent.into_iter().zip(rates) {
        let most = rate / 8 + rate / 160 + 3_028 + 1_514;
        let least = most - 2 * 1_514 - rate / 8 * 150 / 1_000_000;
        assert!((least..=most).contains(&sent), "{rate} bit/s: {sent} of {least} to {most} bytes");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Offer(usize, Size, u32),
    Pass(u64),
    PassWhenDue,
    Back(u64),
    Leave,
    Change(usize, Limit),
    TakeBack(usize),
    Shed(usize),
    Reopen(usize, Limit),
}

fn any_limit() -> impl Strategy<Value = Limit> {
    let rates = [1, 800, 1_000_000, 10_000_000, 1_000_000_000, 5_000_000_000, 1_000_000_000_000];
    let queues = [0, MS, 25 * MS, SECOND];
    (prop::sample::select(rates.to_vec()), 1..50_000u64, prop::sample::select(queues.to_vec()))
        .prop_map(|(bits_per_s, burst_bytes, queue_ns)| Limit { bits_per_s, burst_bytes, queue_ns })
}

fn step() -> impl Strategy<Value = Step> {
    let line = || 0..3usize;
    let size = prop_oneof![60..1_515u32, Just(1_514), 1..70_000u32]
        .prop_map(|wire_bytes| Size { wire_bytes, frames: wire_bytes.div_ceil(4_096) });
    let gap = prop_oneof![0..20_000u64, 0..20 * MS, 0..2 * SECOND];
    prop_oneof![
        40 => (line(), size, prop_oneof![9 => Just(PLENTY), 1 => 0..200u32])
            .prop_map(|(line, size, free)| Step::Offer(line, size, free)),
        6 => gap.clone().prop_map(Step::Pass),
        6 => Just(Step::PassWhenDue),
        12 => Just(Step::Leave),
        1 => gap.prop_map(Step::Back),
        1 => (line(), any_limit()).prop_map(|(line, limit)| Step::Change(line, limit)),
        1 => line().prop_map(Step::TakeBack),
        1 => line().prop_map(Step::Shed),
        1 => (line(), any_limit()).prop_map(|(line, limit)| Step::Reopen(line, limit)),
    ]
}

/// A line by the book: its packets, its level as a plain sum of all it got and gave, in billionths
/// of a bit, when it is to be looked at next, and whether a pass has found that it is time.
#[derive(Clone)]
struct ModelLine {
    limit: Limit,
    level: i128,
    at_ns: u64,
    queue: VecDeque<(Size, u32)>,
    due_ns: u64,
    is_due: bool,
}

const BYTE: i128 = 8 * SECOND as i128;

impl ModelLine {
    fn new(limit: Limit, now_ns: u64) -> ModelLine {
        let level = i128::from(limit.burst_bytes) * BYTE;
        let queue = VecDeque::new();
        ModelLine { limit, level, at_ns: now_ns, queue, due_ns: 0, is_due: false }
    }

    fn at(&mut self, now_ns: u64) -> &mut ModelLine {
        let gone = i128::from(now_ns) - i128::from(self.at_ns);
        let gain = gone.max(0) * i128::from(self.limit.bits_per_s);
        self.level = (self.level + gain).min(i128::from(self.limit.burst_bytes) * BYTE);
        self.at_ns = now_ns;
        self
    }

    fn take(&mut self, size: Size) -> bool {
        let may = self.level > 0;
        self.level -= if may { i128::from(size.wire_bytes) * BYTE } else { 0 };
        may
    }

    /// How long somebody waits who comes behind so many bytes more than wait now.
    fn wait_ns(&self, more: u32) -> i128 {
        let before: u32 = self.queue.iter().map(|(size, _)| size.wire_bytes).sum();
        let missing = i128::from(before + more) * BYTE - self.level;
        if missing < 0 { 0 } else { missing / i128::from(self.limit.bits_per_s) + 1 }
    }

    fn frames(&self) -> u32 {
        self.queue.iter().map(|(size, _)| size.frames).sum()
    }

    fn is_beyond_what_always_may(&self, own: Size) -> bool {
        let packets = if own.wire_bytes <= 256 { 20 } else { 10 };
        self.queue.len() >= packets || self.frames() + own.frames > 30
    }

    fn is_full(&self, own: Size) -> bool {
        self.is_beyond_what_always_may(own)
            && self.wait_ns(own.wire_bytes) > self.limit.queue_ns.into()
    }

    fn offer(&mut self, size: Size, free: u32) -> Offer {
        if self.queue.is_empty() && self.take(size) {
            return Offer::Go;
        }
        let frames = self.frames() + size.frames;
        if self.is_full(size) {
            Offer::Refuse(DropReason::ShaperFull)
        } else if self.is_beyond_what_always_may(size) && frames > free / 4 {
            Offer::Refuse(DropReason::ShaperNoFrames)
        } else {
            let half = i128::from(self.limit.queue_ns / 2);
            let is_much = self.queue.len() >= 5 || self.frames() >= 15;
            Offer::Wait { mark: is_much && self.wait_ns(0) > half }
        }
    }

    /// To be looked at when its next packet may leave, or 134 ms from now.
    fn schedule(&mut self) {
        let wait_ns = if self.level > 0 {
            0
        } else {
            (-self.level / i128::from(self.limit.bits_per_s) + 1) as u64
        };
        // Slots of 8.192 µs, of which the wheel has 16384.
        let slot = |ns: u64| ns / 8_192;
        let last = slot(self.at_ns) + 16_383;
        let ready_ns = self.at_ns + wait_ns;
        let end = if wait_ns == 0 { slot(self.at_ns) } else { slot(ready_ns + 8_191) };
        self.due_ns = end.min(last) * 8_192;
        self.is_due = false;
    }
}

proptest! {
    #[test]
    fn a_shaper_equals_queues_and_sums(
        limits in prop::array::uniform3(any_limit()),
        steps in prop::collection::vec(step(), 1..400),
    ) {
        // All steps back together are shorter: each of them is one.
        let mut now_ns = 1_000 * SECOND;
        let mut shaper = Shaper::new(1_000);
        shaper.begin_pass(now_ns);
        let mut ids = limits.map(|limit| shaper.open(&limit));
        let mut model = limits.map(|limit| ModelLine::new(limit, now_ns));
        for (number, step) in steps.into_iter().enumerate() {
            let number = number as u32;
            let (mut pass, mut leave) = (false, false);
            match step {
                Step::Offer(line, size, free) => {
                    let offer = shaper.offer(ids[line], size, free);
                    prop_assert_eq!(offer, model[line].at(now_ns).offer(size, free));
                    if matches!(offer, Offer::Wait { .. }) {
                        shaper.push(ids[line], size, number);
                        model[line].queue.push_back((size, number));
                        if model[line].queue.len() == 1 {
                            model[line].schedule();
                        }
                    }
                }
                Step::Pass(gap) => (now_ns, pass) = (now_ns + gap, true),
                Step::PassWhenDue => {
                    (now_ns, pass) = (shaper.next_ns().unwrap_or(now_ns).max(now_ns), true);
                }
                Step::Back(gap) => {
                    (now_ns, pass) = (now_ns.saturating_sub(gap + 1), true);
                    model.iter_mut().for_each(|line| line.due_ns = 0);
                }
                Step::Leave => leave = true,
                Step::Change(line, limit) => {
                    shaper.change(ids[line], &limit);
                    let line = model[line].at(now_ns);
                    line.level = line.level.min(i128::from(limit.burst_bytes) * BYTE);
                    line.limit = limit;
                    line.schedule();
                }
                Step::TakeBack(line) => {
                    let first = model[line].queue.pop_front().map(|(_, number)| number);
                    prop_assert_eq!(shaper.take_back(ids[line]), first);
                }
                Step::Shed(line) => {
                    let line_model = model[line].at(now_ns);
                    let mut others = line_model.clone();
                    let last = others.queue.pop_back();
                    let full = last.is_some_and(|(size, _)| others.is_full(size));
                    let first = if full { line_model.queue.pop_front() } else { None };
                    prop_assert_eq!(shaper.shed(ids[line]), first.map(|(_, number)| number));
                }
                Step::Reopen(line, limit) => {
                    while let Some((_, number)) = model[line].queue.pop_front() {
                        prop_assert_eq!(shaper.take_back(ids[line]), Some(number));
                    }
                    shaper.close(ids[line]);
                    ids[line] = shaper.open(&limit);
                    model[line] = ModelLine::new(limit, now_ns);
                }
            }
            if pass {
                shaper.begin_pass(now_ns);
                for line in &mut model {
                    line.is_due |= line.due_ns <= now_ns;
                }
            }
            if leave {
                let mut left: [Vec<u32>; 3] = Default::default();
                while let Some((id, number)) = shaper.pop_due() {
                    let line = ids.iter().position(|other| *other == id).expect("one of ours");
                    left[line].push(number);
                }
                for (line, left) in model.iter_mut().zip(left) {
                    let mut expected = Vec::new();
                    if line.queue.front().is_some() && line.is_due {
                        line.at(now_ns);
                        while let Some((size, number)) = line.queue.front().copied() {
                            if expected.len() == 64 || !line.take(size) {
                                break;
                            }
                            line.queue.pop_front();
                            expected.push(number);
                        }
                        line.schedule();
                    }
                    prop_assert_eq!(left, expected);
                }
            }
            let waiting: usize = model.iter().map(|line| line.queue.len()).sum();
            prop_assert_eq!(shaper.waiting() as usize, waiting);
            let busy = model.iter().filter(|line| !line.queue.is_empty());
            let next_ns = busy.map(|line| line.due_ns.max(now_ns)).min();
            prop_assert_eq!(shaper.next_ns().map(|at_ns| at_ns.max(now_ns)), next_ns);
            for (id, line) in ids.iter().zip(&model) {
                let state = shaper.state(*id);
                let mut line = line.clone();
                line.at(now_ns);
                let bytes = line.queue.iter().map(|(size, _)| u64::from(size.wire_bytes)).sum();
                prop_assert_eq!(i128::from(state.tokens_bytes), line.level / BYTE);
                prop_assert_eq!(state.queued_bytes, bytes);
                prop_assert_eq!(state.queued_packets as usize, line.queue.len());
            }
        }
    }

    #[test]
    fn in_every_window_a_line_keeps_to_its_rates(
        mut limit in any_limit(),
        steps in prop::collection::vec(
            (0..40_000u64, 0..4u32, 60..70_000u32, prop::option::weighted(0.1, any_limit())),
            1..150,
        ),
    ) {
        let mut shaper = Shaper::new(1_000);
        let id = shaper.open(&limit);
        // Billionths of a bit that the rates have brought since the beginning.
        let (mut now_ns, mut brought, mut sent) = (0, 0, Vec::new());
        for (gap, packets, wire_bytes, change) in steps {
            now_ns += gap;
            brought += u128::from(limit.bits_per_s) * u128::from(gap);
            shaper.begin_pass(now_ns);
            if let Some(new) = change {
                limit = new;
                shaper.change(id, &limit);
            }
            let size = Size { wire_bytes, frames: 1 };
            let mut left: Vec<u32> =
                std::iter::from_fn(|| shaper.pop_due()).map(|(_, bytes)| bytes).collect();
            let goes = |_: &u32| send(&mut shaper, id, size, wire_bytes) == Some(true);
            left.extend((0..packets).filter(goes).map(|_| wire_bytes));
            sent.extend(left.into_iter().map(|bytes| (brought, limit.burst_bytes, bytes)));
        }
        // In a window over a change the burst before it holds.
        for (first, (brought_before, burst, _)) in sent.iter().enumerate() {
            let mut total = 0;
            for (brought, _, bytes) in &sent[first..] {
                total += u128::from(*bytes);
                let most = u128::from(*burst) + u128::from(*bytes);
                let brought = brought - brought_before;
                prop_assert!((total - most.min(total)) * 8 * u128::from(SECOND) <= brought);
            }
        }
    }
}
