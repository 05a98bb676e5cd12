//! How many ICMP errors a worker sends: a token bucket over all of them and one per destination.
//!
//! RFC 1812 §4.3.2.8 and RFC 4443 §2.4 (f) ask for a limit; the numbers are those of Linux
//! (`icmp_msgs_per_sec`, `icmp_msgs_burst`, `icmp_ratelimit` in
//! Documentation/networking/ip-sysctl.rst). Each error costs a random number of tokens, one on
//! average, because counting the errors of a predictable limiter tells an outsider what the node
//! answered to others (Linux commit b38e7819cae9).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use super::ErrorKind;

/// Buckets of destinations per class. Destinations whose hashes meet share one: the price of
/// fixed memory (8 bytes a bucket) that no sender can fill.
const DESTINATIONS_LEN: usize = 512;
const _: () = assert!(DESTINATIONS_LEN.is_power_of_two());

/// All errors of a class: 1000 a second, 50 at once, as Linux.
const ALL: Rate = Rate { interval_ns: 1_000_000, burst: 50 };
/// Errors to one destination: 1 a second, 6 at once, as Linux. Two hops of a traceroute fit.
const DESTINATION: Rate = Rate { interval_ns: 1_000_000_000, burst: 6 };
/// Too-big errors to one destination: a sender needs one for each path it discovers (Linux does
/// not limit these at all), so a pod may learn 50 at once and 10 a second.
const DESTINATION_TOO_BIG: Rate = Rate { interval_ns: 100_000_000, burst: 50 };

/// Limits the ICMP errors of one worker. Fixed memory, no clock: time is passed in.
///
/// Too-big errors have buckets of their own, for all and per destination, so that unreachable
/// destinations cannot make path MTU discovery fail.
#[derive(Clone, Debug)]
pub struct Limiter {
    too_big: Class,
    other: Class,
    seed: u64,
    /// Random numbers drawn so far.
    drawn: u64,
}

impl Limiter {
    /// A limiter whose buckets are full. `seed` must be random and secret: it decides which
    /// destinations share a bucket and what each error costs.
    #[must_use]
    pub fn new(seed: u64) -> Limiter {
        let (too_big, other) = (Class::new(DESTINATION_TOO_BIG), Class::new(DESTINATION));
        Limiter { too_big, other, seed, drawn: 0 }
    }

    /// Whether an error of this kind may be sent to `destination` now, and takes its tokens if
    /// so. `now_ns` is a monotonic clock; a step back only delays new tokens.
    #[must_use]
    pub fn allow(&mut self, kind: ErrorKind, destination: IpAddr, now_ns: u64) -> bool {
        let bucket_index = self.hash(&destination) as usize % DESTINATIONS_LEN;
        let random = self.draw();
        match kind {
            ErrorKind::TooBig { .. } => self.too_big.allow(bucket_index, now_ns, random),
            _ => self.other.allow(bucket_index, now_ns, random),
        }
    }

    /// The standard library's hash (SipHash) keyed by the seed: without it neither buckets nor
    /// costs can be computed.
    fn hash(&self, value: &impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.seed.hash(&mut hasher);
        value.hash(&mut hasher);
        hasher.finish()
    }

    fn draw(&mut self) -> u64 {
        self.drawn = self.drawn.wrapping_add(1);
        self.hash(&self.drawn)
    }
}

/// The buckets of errors that are limited together.
#[derive(Clone, Debug)]
struct Class {
    all: Bucket,
    destination_rate: Rate,
    destinations: [Bucket; DESTINATIONS_LEN],
}

impl Class {
    fn new(destination_rate: Rate) -> Class {
        let destinations = [Bucket::default(); DESTINATIONS_LEN];
        Class { all: Bucket::default(), destination_rate, destinations }
    }

    /// Takes tokens from both buckets or from none, so that a flooded destination does not use
    /// up what the others share.
    fn allow(&mut self, bucket_index: usize, now_ns: u64, random: u64) -> bool {
        let Some(destination) = self.destinations.get_mut(bucket_index) else {
            return false;
        };
        let allowed =
            destination.has_token(self.destination_rate, now_ns) && self.all.has_token(ALL, now_ns);
        if allowed {
            // Two independent halves of one random number.
            destination.charge(self.destination_rate, now_ns, random as u32);
            self.all.charge(ALL, now_ns, (random >> 32) as u32);
        }
        allowed
    }
}

/// One token every `interval_ns`, at most `burst` saved up.
#[derive(Clone, Copy, Debug)]
struct Rate {
    interval_ns: u64,
    burst: u64,
}

/// A token bucket kept as the time at which it is full again: earlier than now means full.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_ns: u64,
}

impl Bucket {
    fn has_token(self, rate: Rate, now_ns: u64) -> bool {
        self.full_ns.saturating_sub(now_ns) <= (rate.burst - 1) * rate.interval_ns
    }

    /// Takes between 0 and 2 tokens, evenly spread by `random`.
    fn charge(&mut self, rate: Rate, now_ns: u64, random: u32) {
        let cost_ns = (u128::from(2 * rate.interval_ns) * u128::from(random)) >> 32;
        // Below 2 s, by the rates above: fits.
        self.full_ns = self.full_ns.max(now_ns).saturating_add(cost_ns as u64);
    }
}
