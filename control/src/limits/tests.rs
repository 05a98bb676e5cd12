//! The clamp by hand and against its formula, and what a change leaves alone.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SHAPING: Shaping =
    Shaping { queue: Duration::from_millis(25), burst: Duration::from_millis(50) };

fn request(rate_bps: u64, burst_bits: u64) -> Option<RateRequest> {
    Some(RateRequest { rate_bps, burst_bits })
}

/// The burst in bytes of a limit on a network with packets of 1500 bytes.
fn burst(rate_bps: u64, burst_bits: u64) -> u64 {
    let bandwidth = Bandwidth { ingress: request(rate_bps, burst_bits), egress: None };
    let limits = applied(&bandwidth, &SHAPING, 1500);
    assert_eq!(limits.from_pod, None, "nobody asked for it");
    limits.to_pod.expect("it was asked for").burst_bytes
}

#[test]
fn ingress_is_what_comes_to_the_pod_and_each_direction_has_its_own_numbers() {
    let both = Bandwidth { ingress: request(10_000_000, 400_000), egress: request(1000, 1) };
    let queue_ns = 25_000_000;
    let to_pod = Limit { bits_per_s: 10_000_000, burst_bytes: 50_000, queue_ns };
    let from_pod = Limit { bits_per_s: 1000, burst_bytes: 3028, queue_ns };
    let wanted = Limits { from_pod: Some(from_pod), to_pod: Some(to_pod) };
    assert_eq!(applied(&both, &SHAPING, 1500), wanted);
    assert_eq!(applied(&Bandwidth::default(), &SHAPING, 1500), Limits::default());
}

#[test]
fn the_burst_of_a_runtime_that_means_no_burst_is_what_the_rate_carries_in_its_time() {
    let runtimes = u64::from(u32::MAX);
    assert_eq!(burst(1_000_000, runtimes), 65_536, "as much as one super-packet");
    assert_eq!(burst(10_000_000, runtimes), 65_536, "62,500 bytes would be less");
    assert_eq!(burst(100_000_000, runtimes), 625_000);
    assert_eq!(burst(1_000_000_000, runtimes), 6_250_000);
    assert_eq!(burst(1_000_000_000_000, runtimes), runtimes / 8, "asked for is less");
}

#[test]
fn a_burst_below_two_packets_is_two_packets() {
    for bits in [1, 7, 8, 200, 3028 * 8 - 1] {
        assert_eq!(burst(800, bits), 3028, "{bits} bits");
    }
    assert_eq!(burst(800, 3029 * 8), 3029);
}

#[test]
fn two_packets_go_before_every_other_bound() {
    let bandwidth = Bandwidth { ingress: None, egress: request(800, u64::from(u32::MAX)) };
    let limits = applied(&bandwidth, &SHAPING, 65_535);
    assert_eq!(limits.from_pod.expect("it was asked for").burst_bytes, 2 * (65_535 + 14));
}

#[test]
fn a_change_leaves_the_other_direction_and_a_burst_that_it_does_not_name() {
    let before = Bandwidth { ingress: request(10, 20), egress: request(30, 40) };
    let set = |rate_bps, burst_bits| Some(LimitChange::Set { rate_bps, burst_bits });
    assert_eq!(changed(&before, None, None), before);
    let faster = Bandwidth { ingress: request(11, 20), ..before };
    assert_eq!(changed(&before, set(11, None), None), faster);
    let burstier = Bandwidth { egress: request(31, 41), ..before };
    assert_eq!(changed(&before, None, set(31, Some(41))), burstier);
    let lifted = Bandwidth { egress: None, ..before };
    assert_eq!(changed(&before, None, Some(LimitChange::Lift)), lifted);
    assert_eq!(changed(&lifted, None, Some(LimitChange::Lift)), lifted);
    let anew = changed(&Bandwidth::default(), set(1, None), None);
    assert_eq!(anew.ingress, request(1, RateRequest::BURST_BITS_MAX));
}

proptest! {
    #[test]
    fn a_burst_is_the_clamp_and_never_a_black_hole(
        rate_bps in prop_oneof![1..2_000_000_000_u64, 1..=u64::MAX],
        burst_bits in prop_oneof![1..1_000_000_u64, 1..=RateRequest::BURST_BITS_MAX],
        mtu in 1280..=65_535_u32,
        burst_ms in 1..=1000_u64,
    ) {
        let shaping = Shaping { burst: Duration::from_millis(burst_ms), ..SHAPING };
        let bandwidth = Bandwidth { ingress: request(rate_bps, burst_bits), egress: None };
        let limit = applied(&bandwidth, &shaping, mtu).to_pod.expect("it was asked for");
        prop_assert_eq!(limit.bits_per_s, rate_bps);
        let least = 2 * (u128::from(mtu) + 14);
        prop_assert!(u128::from(limit.burst_bytes) >= least);
        let most = (u128::from(rate_bps) * u128::from(burst_ms) / 8000).max(65_536);
        let wanted = if least > most { least } else {
            u128::from(burst_bits / 8).clamp(least, most)
        };
        prop_assert_eq!(u128::from(limit.burst_bytes), wanted);
    }
}
