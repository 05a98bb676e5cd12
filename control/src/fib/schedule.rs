//! When the kernel is listed: as soon as it has to be, but never for most of the time. What makes
//! lists necessary, such as a routing daemon that fills its table, may go on for long.

use std::time::{Duration, Instant};

/// The least rest after a list, however short it was: a hundred a second are many.
const REST_MIN: Duration = Duration::from_millis(10);

/// Until the kernel is asked again when it could not be.
const RETRY: Duration = Duration::from_secs(1);

/// A list that was disturbed rests this many times as long as it took until it is made again: 2 %
/// of the control thread's time where routes never stop changing. With a full table of the internet
/// that is once in two minutes.
const AGAIN: u32 = 50;

/// How a list ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is complete, and what the kernel has.
    Exact,
    /// It is complete, but routes changed meanwhile.
    Disturbed,
    /// Too much changed meanwhile: it is as good as not made.
    Void,
    /// The kernel could not be asked.
    Failed,
}

/// When the next list is to be begun.
#[derive(Debug, Default)]
pub struct Schedule {
    begun: Option<Instant>,
    not_before: Option<Instant>,
    /// The last one was not exact, and is made again then.
    again: Option<Instant>,
    tried: bool,
}

impl Schedule {
    /// How long to wait until a list is to be begun; zero: begin. `None`: until there is a reason.
    /// `due`: there is one already.
    #[must_use]
    pub fn wait(&self, due: bool, now: Instant) -> Option<Duration> {
        let at = if due { Some(self.not_before.unwrap_or(now)) } else { self.again };
        at.map(|at| at.saturating_duration_since(now))
    }

    /// A list is begun.
    pub fn begin(&mut self, now: Instant) {
        self.begun = Some(now);
        self.again = None;
    }

    /// The list has ended. The next one waits as long as this one took, so that lists take half of
    /// the time at most.
    pub fn end(&mut self, how: Ended, now: Instant) {
        let took = self.begun.take().map_or(Duration::ZERO, |begun| now - begun).max(REST_MIN);
        let rest = if how == Ended::Failed { RETRY } else { took };
        self.not_before = Some(now + rest);
        self.again = match how {
            Ended::Exact => None,
            Ended::Disturbed => Some(now + took * AGAIN),
            Ended::Void | Ended::Failed => Some(now + rest),
        };
        self.tried |= how != Ended::Void;
    }

    /// Whether the first list has been made; or could not be, and its routes are left to the kernel
    /// until another one can.
    #[must_use]
    pub fn has_tried(&self) -> bool {
        self.tried
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_list_is_made_at_once_and_none_without_a_reason() {
        let (schedule, now) = (Schedule::default(), Instant::now());
        assert_eq!(schedule.wait(true, now), Some(Duration::ZERO));
        assert_eq!(schedule.wait(false, now), None);
        assert!(!schedule.has_tried());
    }

    #[test]
    fn lists_take_half_of_the_time_at_most() {
        let (mut schedule, mut now) = (Schedule::default(), Instant::now());
        for how in [Ended::Exact, Ended::Void, Ended::Void, Ended::Disturbed] {
            schedule.begin(now);
            now += 2 * SECOND;
            schedule.end(how, now);
            assert_eq!(schedule.wait(true, now), Some(2 * SECOND), "{how:?}");
            now += 2 * SECOND;
            assert_eq!(schedule.wait(true, now), Some(Duration::ZERO), "{how:?}");
        }
        schedule.begin(now);
        schedule.end(Ended::Exact, now);
        assert_eq!(schedule.wait(true, now), Some(REST_MIN), "short ones too");
    }

    #[test]
    fn a_disturbed_list_is_made_again_and_an_exact_one_is_not() {
        let (mut schedule, mut now) = (Schedule::default(), Instant::now());
        schedule.begin(now);
        now += SECOND;
        schedule.end(Ended::Disturbed, now);
        assert_eq!(schedule.wait(false, now), Some(SECOND * AGAIN));
        now += SECOND * AGAIN;
        assert_eq!(schedule.wait(false, now), Some(Duration::ZERO));
        schedule.begin(now);
        now += SECOND;
        schedule.end(Ended::Exact, now);
        assert_eq!(schedule.wait(false, now), None);
        assert!(schedule.has_tried());
    }

    #[test]
    fn one_that_fails_is_tried_a_second_later_and_keeps_nobody_waiting() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        schedule.begin(now);
        schedule.end(Ended::Void, now);
        assert!(!schedule.has_tried(), "the next one follows soon");
        assert_eq!(schedule.wait(false, now), Some(REST_MIN), "without another reason");
        schedule.end(Ended::Failed, now);
        assert_eq!(schedule.wait(true, now), Some(RETRY));
        assert!(schedule.has_tried());
    }
}
