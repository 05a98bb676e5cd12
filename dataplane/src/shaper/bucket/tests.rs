use proptest::prelude::*;

use super::*;

/// Bits of a gigabyte-per-second line: a byte each nanosecond, so that small numbers can be
/// followed by hand.
const BYTE_PER_NS: u64 = 8_000_000_000;

fn limit(bits_per_s: u64, burst_bytes: u64) -> Limit {
    Limit { bits_per_s, burst_bytes, queue_ns: 0 }
}

/// Numbers of every length up to `bits`.
fn any_length(bits: u32) -> impl Strategy<Value = u64> {
    (0..bits, any::<u64>()).prop_map(|(shift, number)| (number >> (63 - shift)).max(1))
}

fn any_limit() -> impl Strategy<Value = Limit> {
    (any_length(40), any_length(40)).prop_map(|(rate, burst)| limit(rate, burst))
}

fn take(bucket: &mut Bucket, wire_bytes: u32, now_ns: u64) -> bool {
    bucket.refill(now_ns);
    bucket.take(wire_bytes)
}

/// The oracle remembers everything that was taken and every limit, and keeps no level: of any
/// window that ends now, what was taken in it leaves the burst at its start, and what the rates
/// bring in it, less that.
struct Remembered {
    /// From when on which limit holds, and the bytes that are taken at that time.
    past: Vec<(u64, Limit, u32)>,
}

impl Remembered {
    /// Billionths of a bit.
    fn tokens(&self, now_ns: u64) -> i128 {
        let (mut left, mut more, mut until_ns) = (i128::MAX, 0, now_ns);
        for (at_ns, limit, wire_bytes) in self.past.iter().rev() {
            let burst = i128::from(limit.burst_bytes) * 8_000_000_000;
            left = left.min(burst + more);
            more += i128::from(limit.bits_per_s) * i128::from(until_ns - at_ns);
            more -= i128::from(*wire_bytes) * 8_000_000_000;
            left = left.min(burst + more);
            until_ns = *at_ns;
        }
        left
    }
}

proptest! {
    #[test]
    fn a_bucket_equals_the_memory_of_all_that_was_taken(
        mut limit in any_limit(),
        start in any_length(60),
        steps in prop::collection::vec(
            (0..3u8, any_length(36), 0..70_000u32, prop::option::weighted(0.1, any_limit())),
            1..60,
        ),
    ) {
        let mut oracle = Remembered { past: vec![(start, limit, 0)] };
        let mut bucket = Bucket::full(&limit, start);
        let mut now_ns = start;
        for (kind, gap, wire_bytes, change) in steps {
            match kind {
                0 => {}
                1 => now_ns += gap,
                _ => now_ns = bucket.ready_ns().min(now_ns + (1 << 40)),
            }
            bucket.refill(now_ns);
            if let Some(new) = change {
                limit = new;
                bucket.change(&limit);
                oracle.past.push((now_ns, limit, 0));
            }
            let tokens = oracle.tokens(now_ns);
            prop_assert_eq!(bucket.tokens, tokens);
            prop_assert_eq!(i128::from(bucket.tokens_bytes()), tokens / 8_000_000_000);
            prop_assert_eq!(bucket.take(wire_bytes), tokens > 0);
            if tokens > 0 {
                oracle.past.push((now_ns, limit, wire_bytes));
            }
            let ready_ns = bucket.ready_ns();
            prop_assert!(oracle.tokens(ready_ns) > 0);
            prop_assert!(ready_ns == now_ns || oracle.tokens(ready_ns - 1) <= 0);
        }
    }

    #[test]
    fn who_waits_longer_is_who_is_ready_later(
        rate in any_length(40),
        spent in 0..200_000u32,
        before in 0..200_000u32,
        waits in prop::collection::vec(any_length(40), 0..8),
    ) {
        let mut bucket = Bucket::full(&limit(rate, 1000), 0);
        prop_assert!(bucket.take(spent));
        let mut behind = bucket;
        behind.tokens -= i128::from(before) * TOKENS_PER_BYTE;
        let wait_ns = behind.ready_ns();
        for ns in waits.into_iter().chain([0, wait_ns.saturating_sub(1), wait_ns, wait_ns + 1]) {
            prop_assert_eq!(bucket.is_ready_later(before.into(), ns), wait_ns > ns);
        }
    }

    #[test]
    fn no_number_is_too_large(
        rate in any::<u64>(),
        burst in any::<u64>(),
        steps in prop::collection::vec((any::<u64>(), any::<u32>(), any::<u64>()), 0..20),
    ) {
        for (rate, burst) in [(rate, burst), (u64::MAX, u64::MAX), (0, 0), (1, u64::MAX)] {
            let mut bucket = Bucket::full(&limit(rate, burst), 0);
            for (now_ns, wire_bytes, bytes) in &steps {
                // Times in no order: a clock that steps back and forth.
                bucket.refill(*now_ns);
                prop_assert!(bucket.tokens <= bucket.burst);
                bucket.take(u32::MAX);
                bucket.take(*wire_bytes);
                prop_assert!(bucket.ready_ns() >= *now_ns);
                prop_assert!(bucket.tokens_bytes() >= -i64::from(u32::MAX));
                let later = bucket.is_ready_later(*bytes, u64::MAX);
                prop_assert!(!later || bucket.is_ready_later(*bytes, 0));
                bucket.change(&limit(*bytes, *now_ns));
            }
        }
    }

    #[test]
    fn a_clock_that_steps_back_makes_nobody_wait_longer(
        rate in any_length(40),
        spent in 0..200_000u32,
        from in any_length(50),
        to in any_length(50),
    ) {
        let mut bucket = Bucket::full(&limit(rate, 1), from);
        prop_assert!(bucket.take(spent));
        let wait_ns = bucket.ready_ns() - from;
        bucket.refill(from.min(to));
        prop_assert_eq!(bucket.ready_ns() - from.min(to), wait_ns);
    }
}

#[test]
fn every_window_of_every_small_case_keeps_the_law() {
    // All ways to send five packets of 1 to 4 bytes, each 0 to 2 ns after the one before, or as
    // soon as it may.
    for burst in 1..=4u64 {
        for case in 0..16u32.pow(5) {
            let mut bucket = Bucket::full(&limit(BYTE_PER_NS, burst), 0);
            let mut sent: [(u64, u64); 5] = [(0, 0); 5];
            let mut now_ns = 0;
            for (index, sent) in sent.iter_mut().enumerate() {
                let choice = case >> (index * 4) & 15;
                let (gap, bytes) = (u64::from(choice >> 2), (choice & 3) + 1);
                now_ns = if gap == 3 { bucket.ready_ns() } else { now_ns + gap };
                let took = take(&mut bucket, bytes, now_ns);
                *sent = (now_ns, if took { bytes.into() } else { 0 });
            }
            for first in 0..5 {
                let mut total = 0;
                // 0 bytes: it was not let go.
                for &(at_ns, bytes) in sent[first..].iter().filter(|(_, bytes)| *bytes > 0) {
                    total += bytes;
                    assert!(total <= at_ns - sent[first].0 + burst + bytes, "{burst} {case:#x}");
                }
            }
        }
    }
}

#[test]
fn every_window_of_every_small_case_keeps_the_law_over_changes() {
    // All ways to send four packets of 1 to 3 bytes, each at once, 1 ns after the one before or as
    // soon as it may, and each with one of three limits.
    let limits = [(1, 1), (4, 2), (2, 4)];
    for case in 0..27usize.pow(4) {
        let choice = |index: u32| case / 27usize.pow(index) % 27;
        let (mut rate, mut burst) = limits[choice(0) % 3];
        let mut bucket = Bucket::full(&limit(rate * BYTE_PER_NS, burst), 0);
        // Bytes that the rates have brought, the burst, and what has left.
        let (mut now_ns, mut brought, mut sent) = (0, 0, Vec::new());
        for choice in (0..4).map(choice) {
            let ready_ns = if choice / 9 == 2 { bucket.ready_ns() } else { now_ns };
            let at_ns = ready_ns + u64::from(choice / 9 == 1);
            brought += rate * (at_ns - now_ns);
            now_ns = at_ns;
            bucket.refill(now_ns);
            (rate, burst) = limits[choice % 3];
            bucket.change(&limit(rate * BYTE_PER_NS, burst));
            let bytes = choice as u64 / 3 % 3 + 1;
            if bucket.take(bytes as u32) {
                sent.push((brought, burst, bytes));
            }
        }
        for (first, (before, burst, _)) in sent.iter().enumerate() {
            let mut total = 0;
            for (brought, _, bytes) in &sent[first..] {
                total += bytes;
                assert!(total <= brought - before + burst + bytes, "{case}: {sent:?}");
            }
        }
    }
}

#[test]
fn nothing_is_lost_over_a_long_time_at_any_rate() {
    for rate in [1, 3, 800, 7_777, 1_000_000, 999_999_937, 5_000_000_000, 999_999_999_989] {
        let mut bucket = Bucket::full(&limit(rate, 3_000), 0);
        let mut now_ns = 0;
        for sent in 0..100_000u128 {
            let owed = (sent * 1_514).saturating_sub(3_000) * 8_000_000_000;
            let expected = if sent * 1_514 < 3_000 { 0 } else { owed / u128::from(rate) + 1 };
            assert_eq!(u128::from(now_ns), expected, "packet {sent} at {rate} bit/s");
            assert!(take(&mut bucket, 1_514, now_ns));
            now_ns = bucket.ready_ns();
        }
    }
}

#[test]
fn silence_saves_no_more_than_the_burst() {
    let mut bucket = Bucket::full(&limit(BYTE_PER_NS, 100), 0);
    assert!(take(&mut bucket, 100, u64::MAX / 2));
    assert!(!take(&mut bucket, 1, u64::MAX / 2), "an empty bucket gives nothing");
    assert!(take(&mut bucket, 100, u64::MAX / 2 + 1), "one byte is enough for any packet");
    assert_eq!(bucket.ready_ns(), u64::MAX / 2 + 101);
}

#[test]
fn a_change_keeps_the_debt_and_caps_the_tokens() {
    let mut bucket = Bucket::full(&limit(BYTE_PER_NS, 1_000), 0);
    bucket.change(&limit(BYTE_PER_NS, 10));
    assert_eq!(bucket.tokens_bytes(), 10);
    bucket.change(&limit(BYTE_PER_NS, 1_000));
    assert_eq!(bucket.tokens_bytes(), 10, "a larger burst has to be saved first");
    assert!(bucket.take(1_010));
    bucket.change(&limit(BYTE_PER_NS / 10, 2_000));
    assert_eq!(bucket.tokens_bytes(), -1_000);
    assert_eq!(bucket.ready_ns(), 10_001);
}
