//! What arrives, against the law of a limit: in every window of time t at most rate · t + burst +
//! one packet; and against its promise: as much as the rate allows, where the machine can.
//!
//! Bytes are read with the time they are read at, so a slow machine changes no rate. From the
//! beginning on the law holds on any machine: what has arrived by now has passed the limit by now.
//! That as much arrives as may is asked of one window of many: a busy machine may need some.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

/// Length of the windows that are to be right.
const WINDOW: Duration = Duration::from_secs(2);

/// When so many bursts have arrived, the bucket is empty, if what is sent is 1.3 times the limit:
/// it has lost 0.3 / 1.3 of what has arrived.
const BURSTS_FIRST: u64 = 5;

/// They slide so far.
const STEP: Duration = Duration::from_millis(100);

/// One of them is right within this time, also on a busy machine.
const RIGHT_WITHIN: Duration = Duration::from_secs(60);

/// Bytes of the longest Ethernet frame of pods with the default MTU.
const FRAME_BYTES: u64 = 1514;

/// Bytes on a wire of the longest super-packet: 64 KiB, and a header for each segment.
const SUPER_PACKET_BYTES: u64 = 46 * FRAME_BYTES;

/// A limit as it should be applied, whatever the daemon says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Law {
    /// Rate in bits per second.
    pub bits_per_s: u64,
    /// Bytes that pass at once after a silence.
    pub burst_bytes: u64,
}

impl Law {
    /// The limit of a pod whose runtime asks for a burst without measure: 50 ms, and 64 KiB at
    /// least.
    #[must_use]
    pub fn of(bits_per_s: u64) -> Law {
        Law { bits_per_s, burst_bytes: (bits_per_s / 8 / 20).max(64 << 10) }
    }

    /// Bytes that may pass in this time.
    #[must_use]
    pub fn most_bytes(self, time: Duration) -> u64 {
        // What takes more than 0.6 ms is cut.
        let uncut = (self.bits_per_s * 3 / 40_000).min(SUPER_PACKET_BYTES);
        let passed = u128::from(self.bits_per_s) * time.as_nanos() / 8_000_000_000;
        passed as u64 + self.burst_bytes + uncut.max(FRAME_BYTES)
    }
}

/// Counts what arrives, and judges.
pub struct Meter<'a> {
    name: String,
    law: Law,
    tolerance: f64,
    /// Where the law was the same since, and nothing had arrived.
    since: Option<Instant>,
    wire_bytes: Box<dyn Fn() -> u64 + 'a>,
    readings: Vec<(Instant, u64)>,
    rate: f64,
}

impl<'a> Meter<'a> {
    /// Holds what has arrived, in bytes on a wire, to a law within a tolerance: 0.01 is a percent.
    /// Where the law was another one before, or something had arrived, it is not asked of the time
    /// since then, only of windows.
    pub fn new(
        name: impl Into<String>,
        law: Law,
        tolerance: f64,
        wire_bytes: impl Fn() -> u64 + 'a,
    ) -> Meter<'a> {
        Meter {
            name: name.into(),
            law,
            tolerance,
            since: None,
            wire_bytes: Box::new(wire_bytes),
            readings: Vec::new(),
            rate: 0.0,
        }
    }

    /// The law is to hold from a time on, before anything was sent.
    #[must_use]
    pub fn since(self, start: Instant) -> Meter<'a> {
        Meter { since: Some(start), ..self }
    }

    /// Reads, and holds what is read to the law.
    fn read(&mut self) -> Result<()> {
        let bytes = (self.wire_bytes)();
        let now = Instant::now();
        if let Some(start) = self.since {
            let most = self.law.most_bytes(now - start);
            let after = now - start;
            ensure!(bytes <= most, "{}: {bytes} bytes in {after:?}, at most {most}", self.name);
        }
        self.readings.push((now, bytes));
        Ok(())
    }

    /// Whether the window that has just ended is right. None begins before the burst has passed.
    fn is_right(&mut self) -> bool {
        let readings = self.readings.as_slice();
        let ([(_, first), ..], [.., (end, after)]) = (readings, readings) else { return false };
        let burst = BURSTS_FIRST * self.law.burst_bytes;
        let begun = |(at, bytes): &&(Instant, u64)| {
            end.duration_since(*at) >= WINDOW && bytes - first >= burst
        };
        let Some((start, before)) = readings.iter().rev().find(begun) else { return false };
        self.rate = 8.0 * (after - before) as f64 / (*end - *start).as_secs_f64();
        (self.rate / self.law.bits_per_s as f64 - 1.0).abs() <= self.tolerance
    }
}

/// Reads meters until each has seen a window of 2 s in which as much arrived as the rate allows,
/// and no more.
///
/// # Errors
/// When more arrives than the law allows, or a minute passes without such a window.
pub fn settle(meters: &mut [Meter<'_>]) -> Result<()> {
    let started = Instant::now();
    let mut right = vec![false; meters.len()];
    loop {
        for (meter, right) in meters.iter_mut().zip(&mut right) {
            meter.read()?;
            *right |= meter.is_right();
        }
        let wrong: Vec<String> = meters
            .iter()
            .zip(&right)
            .filter(|(_, right)| !**right)
            .map(|(meter, _)| {
                let (rate, wanted) = (meter.rate / 1e6, meter.law.bits_per_s as f64 / 1e6);
                format!("{}: {rate:.4} Mbit/s, not {wanted}", meter.name)
            })
            .collect();
        if wrong.is_empty() {
            return Ok(());
        }
        if started.elapsed() > RIGHT_WITHIN {
            bail!("no window of {WINDOW:?} was right:\n{}", wrong.join("\n"));
        }
        std::thread::sleep(STEP);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LAW: Law = Law { bits_per_s: 8_000_000, burst_bytes: 65_536 };

    /// As many bytes as come at a rate, in bytes per second, from now on.
    fn at(bytes_per_s: f64) -> impl Fn() -> u64 {
        let start = Instant::now();
        move || (start.elapsed().as_secs_f64() * bytes_per_s) as u64
    }

    #[test]
    fn a_steady_rate_is_right_at_once() {
        let start = Instant::now();
        let mut meters = [Meter::new("steady", LAW, 0.01, at(1e6)).since(start)];
        settle(&mut meters).expect("it is right");
        assert!(start.elapsed() < RIGHT_WITHIN / 2);
    }

    #[test]
    fn a_window_is_right_within_the_tolerance_and_not_beyond() {
        let start = Instant::now();
        for (bytes, right) in
            [(1_980_001, true), (2_019_999, true), (1_979_000, false), (2_021_000, false)]
        {
            let burst = BURSTS_FIRST * LAW.burst_bytes;
            let after = |halves: u32, bytes| (start + halves * WINDOW / 2, bytes);
            let mut meter = Meter::new("window", LAW, 0.01, || 0);
            meter.readings = vec![after(0, 0), after(1, burst), after(3, burst + bytes)];
            assert_eq!(meter.is_right(), right, "{bytes} bytes in two seconds");
            meter.readings[1].1 -= 1;
            meter.readings[2].1 -= 1;
            assert!(!meter.is_right(), "not before the burst has passed");
            meter.readings = vec![after(0, 0), after(2, burst), after(3, burst + bytes)];
            assert!(!meter.is_right(), "half a window is none");
        }
    }

    #[test]
    fn a_byte_too_many_breaks_the_law() {
        let bytes = Cell::new(0);
        let start = Instant::now();
        let mut meter = Meter::new("law", LAW, 0.01, || bytes.get()).since(start);
        bytes.set(LAW.most_bytes(Duration::ZERO));
        meter.read().expect("the burst and a packet");
        bytes.set(LAW.most_bytes(start.elapsed() + Duration::from_secs(60)));
        assert!(meter.read().is_err(), "a minute's bytes at once");
    }

    #[test]
    fn a_burst_is_fifty_milliseconds_and_64_kib_at_least() {
        assert_eq!(Law::of(10_000_000).burst_bytes, 65_536);
        assert_eq!(Law::of(100_000_000).burst_bytes, 625_000);
        assert_eq!(
            Law::of(8_000_000).most_bytes(Duration::from_secs(1)),
            1_000_000 + 65_536 + 1514
        );
    }
}
