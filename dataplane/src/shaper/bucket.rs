//! A token bucket without rounding: it counts in billionths of a bit, of which a rate of r bits
//! per second brings exactly r each nanosecond. So no remainder is ever lost, at any rate.

use super::Limit;

/// Tokens of a byte: 8 bits of 10⁹ billionths.
const TOKENS_PER_BYTE: i128 = 8_000_000_000;

/// The tokens of a line.
///
/// They are at most the burst (2⁶⁴ bytes, below 2⁹⁸ tokens), and above the debt of one packet
/// (2³² bytes, below 2⁶⁶ tokens): no sum below can overflow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// Tokens a nanosecond: bits a second.
    rate: u64,
    /// What the bucket holds at most.
    burst: i128,
    /// What it held at `at_ns`; zero and less: nobody may leave.
    tokens: i128,
    at_ns: u64,
}

impl Bucket {
    /// A bucket with its full burst.
    pub(super) fn full(limit: &Limit, now_ns: u64) -> Bucket {
        let burst = i128::from(limit.burst_bytes.max(1)) * TOKENS_PER_BYTE;
        Bucket { rate: limit.bits_per_s.max(1), burst, tokens: burst, at_ns: now_ns }
    }

    /// Goes on with another limit, and with the tokens or the debt that there are.
    pub(super) fn change(&mut self, limit: &Limit) {
        let full = Bucket::full(limit, self.at_ns);
        *self = Bucket { tokens: self.tokens.min(full.burst), ..full };
    }

    /// Brings the tokens up to this time, to which the other functions refer. A clock that has
    /// stepped back brings none and goes on from there.
    #[inline]
    pub(super) fn refill(&mut self, now_ns: u64) {
        // (2⁶⁴ - 1)² fits.
        let gain = u128::from(self.rate) * u128::from(now_ns.saturating_sub(self.at_ns));
        let room = self.burst.abs_diff(self.tokens);
        self.tokens = if gain < room { self.tokens + gain as i128 } else { self.burst };
        self.at_ns = now_ns;
    }

    /// Takes the tokens of a packet, if there are any: the last packet may leave a debt.
    #[inline]
    pub(super) fn take(&mut self, wire_bytes: u32) -> bool {
        let may_leave = self.tokens > 0;
        if may_leave {
            self.tokens -= i128::from(wire_bytes) * TOKENS_PER_BYTE;
        }
        may_leave
    }

    /// The first time at which [`Bucket::take`] succeeds, if nothing is taken until then.
    pub(super) fn ready_ns(&self) -> u64 {
        if self.tokens > 0 {
            return self.at_ns;
        }
        // One more than the debt is needed; what is beyond the end of time comes at its end.
        let wait_ns = self.tokens.unsigned_abs() / u128::from(self.rate) + 1;
        u64::try_from(wait_ns).map_or(u64::MAX, |wait_ns| self.at_ns.saturating_add(wait_ns))
    }

    /// Whether whoever comes after `bytes_before` more can leave later than in `ns` only.
    #[inline]
    pub(super) fn is_ready_later(&self, bytes_before: u64, ns: u64) -> bool {
        let debt = i128::from(bytes_before) * TOKENS_PER_BYTE - self.tokens;
        debt >= 0 && debt.unsigned_abs() >= self.tokens_in(ns)
    }

    /// Tokens in bytes, towards zero.
    pub(super) fn tokens_bytes(&self) -> i64 {
        i64::try_from(self.tokens / TOKENS_PER_BYTE).unwrap_or(i64::MAX)
    }

    #[inline]
    fn tokens_in(&self, ns: u64) -> u128 {
        u128::from(self.rate) * u128::from(ns)
    }
}

#[cfg(test)]
mod tests;
