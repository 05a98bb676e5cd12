//! Limits of pods: from what was asked for to what workers apply.
//!
//! Runtimes ask for bursts of half a gigabyte (containerd: 2^32 - 1 bits), with which a pod of
//! 10 Mbit/s would run unshaped for minutes. So the burst is what was asked for only as far as it
//! makes sense: two packets at least, or much of the rate would be lost, and at most what the rate
//! carries in `[shaping] burst`, or 64 KiB, which is one super-packet.

use cni_bridge::protocol::{Bandwidth, LimitChange, RateRequest};
use dataplane::shaper::{Limit, Limits};

use crate::config::Shaping;

#[cfg(test)]
mod tests;

/// Bytes of an Ethernet header: limits count packets as Linux's tbf does, with the header and
/// without the frame check sequence.
const HEADER_BYTES: u64 = 14;

/// Packets of the route MTU that the smallest burst has room for. A packet passes by a smaller one
/// too, and leaves a debt; but tokens that come while the bucket is full are lost: in the 10 µs of
/// a pass, or the 50 µs that a sleeping worker takes to wake.
const PACKETS_MIN: u64 = 2;

/// A burst that every rate may have: a super-packet, which is 64 KiB at most.
const BURST_BYTES_ANY: u64 = 64 << 10;

/// What workers apply to a pod with this route MTU in bytes, of which this was asked for.
#[must_use]
pub fn applied(requested: &Bandwidth, shaping: &Shaping, route_mtu: u32) -> Limits {
    let Bandwidth { ingress, egress } = requested;
    let limit = |request: &RateRequest| limit(request, shaping, route_mtu);
    Limits { from_pod: egress.as_ref().map(limit), to_pod: ingress.as_ref().map(limit) }
}

fn limit(request: &RateRequest, shaping: &Shaping, route_mtu: u32) -> Limit {
    let RateRequest { rate_bps, burst_bits } = *request;
    let least = PACKETS_MIN * (u64::from(route_mtu) + HEADER_BYTES);
    let most = carried_bytes(rate_bps, shaping.burst).max(BURST_BYTES_ANY);
    Limit {
        bits_per_s: rate_bps,
        // A network of long packets may need more than its rate makes sense of.
        burst_bytes: (burst_bits / 8).min(most).max(least),
        queue_ns: nanoseconds(shaping.queue),
    }
}

/// Bytes that pass at a rate of so many bits per second in `time`.
fn carried_bytes(rate_bps: u64, time: std::time::Duration) -> u64 {
    let bytes = u128::from(rate_bps) * u128::from(nanoseconds(time)) / (8 * 1_000_000_000);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Times of the configuration are a second at most.
fn nanoseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The limits that a pod with `before` has after these changes; `None` changes nothing.
#[must_use]
pub fn changed(
    before: &Bandwidth,
    ingress: Option<LimitChange>,
    egress: Option<LimitChange>,
) -> Bandwidth {
    let change = |before: Option<RateRequest>, change| match change {
        None => before,
        Some(LimitChange::Lift) => None,
        Some(LimitChange::Set { rate_bps, burst_bits }) => {
            let burst = burst_bits.or(before.map(|before| before.burst_bits));
            let burst_bits = burst.unwrap_or(RateRequest::BURST_BITS_MAX);
            Some(RateRequest { rate_bps, burst_bits })
        }
    };
    Bandwidth { ingress: change(before.ingress, ingress), egress: change(before.egress, egress) }
}
