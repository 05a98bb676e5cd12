//! What limits are refused, what new ones leave alone, and when they end.

use super::super::tests::{attachment, pod, state_of};
use super::super::{Change, Limits, NewPod};
use super::*;

fn limit(rate_bps: u64, burst_bits: u64) -> Option<RateRequest> {
    Some(RateRequest { rate_bps, burst_bits })
}

#[test]
fn new_limits_change_nothing_else_and_the_same_ones_nothing_at_all() {
    let mut state = state_of(&[("a", "eth0"), ("b", "eth0")]);
    let before: Vec<PodRecord> = state.pods().cloned().collect();
    let generation = state.generation();
    let limits = Bandwidth { ingress: limit(10, 80), egress: None };
    let [first, second] = &before[..] else { panic!("there are two") };
    let set = || Change::SetLimits(first.attachment.clone(), limits);
    let limited = PodRecord { limits, ..first.clone() };
    assert_eq!(state.apply(set()), Ok(Effect::Limited(limited.clone())));
    assert!(state.pods().eq([&limited, second]));
    assert!(state.generation() > generation);
    let generation = state.generation();
    assert_eq!(state.apply(set()), Ok(Effect::Unchanged));
    assert_eq!(state.generation(), generation);
    let gone = Change::SetLimits(attachment(9), limits);
    assert!(matches!(state.apply(gone), Err(StateError::NoSuchPod { .. })));
}

#[test]
fn limits_that_cannot_be_are_refused_at_add_at_restore_and_later() {
    let most = RateRequest::BURST_BITS_MAX;
    for (wrong, is_fine) in [
        (limit(0, 8), false),
        (limit(1, 0), false),
        (limit(1, most + 1), false),
        (limit(1, 1), true),
        (limit(u64::MAX, most), true),
        (None, true),
    ] {
        for limits in [
            Bandwidth { ingress: wrong, egress: limit(1, 8) },
            Bandwidth { ingress: None, egress: wrong },
        ] {
            let mut state = state_of(&[("a", "eth0")]);
            let before = state.clone();
            let record = state.pods().next().unwrap().clone();
            let other = NewPod { limits, ..pod(7, &[7]) };
            let changes =
                [Change::Add(other), Change::SetLimits(record.attachment.clone(), limits)];
            for change in changes {
                let done = state.apply(change);
                assert_eq!(done.is_ok(), is_fine, "{done:?}");
                if let Err(error) = done {
                    assert_eq!(error.cni_code(), 7);
                    assert!(state.pods().eq(before.pods()) && error.to_string().contains("burst"));
                }
            }
            let restore = Change::Restore(PodRecord { limits, ..record });
            let mut anew = State::new(Limits { workers: 1, slots: 10, ports_per_worker: 10 });
            assert_eq!(anew.apply(restore).is_ok(), is_fine);
        }
    }
}

#[test]
fn of_a_record_only_the_limits_that_cannot_be_are_taken() {
    let (zero, fine) = (limit(0, 8), limit(1, 8));
    let record = state_of(&[("a", "eth0")]).pods().next().unwrap().clone();
    for (limits, kept, taken) in [
        ((zero, fine), (None, fine), (zero, None)),
        ((fine, limit(1, 0)), (fine, None), (None, limit(1, 0))),
        ((zero, zero), (None, None), (zero, zero)),
        ((fine, fine), (fine, fine), (None, None)),
        ((None, fine), (None, fine), (None, None)),
    ] {
        let [limits, kept, taken] =
            [limits, kept, taken].map(|(ingress, egress)| Bandwidth { ingress, egress });
        let mut found = PodRecord { limits, ..record.clone() };
        assert_eq!(found.take_unusable_limits(), taken);
        assert_eq!(found, PodRecord { limits: kept, ..record.clone() });
        assert_eq!(found.check_limits(), Ok(()));
    }
}

#[test]
fn limits_end_with_the_pod_and_a_refused_add_changes_none() {
    let limits = Bandwidth { ingress: limit(10, 80), egress: limit(20, 80) };
    let mut state = State::new(Limits { workers: 1, slots: 10, ports_per_worker: 10 });
    state.apply(Change::Add(NewPod { limits, ..pod(1, &[1]) })).unwrap();
    let later = Bandwidth { ingress: None, ..limits };
    state.apply(Change::SetLimits(attachment(1), later)).unwrap();
    let again = state.apply(Change::Add(NewPod { limits, ..pod(1, &[1]) }));
    assert_eq!(again, Err(StateError::AlreadyAttached(attachment(1))));
    assert_eq!(state.pod(&attachment(1)).map(|pod| pod.limits), Some(later));

    state.apply(Change::Remove(attachment(1))).unwrap();
    let gone = state.apply(Change::SetLimits(attachment(1), limits));
    assert!(matches!(gone, Err(StateError::NoSuchPod { .. })));
    state.apply(Change::Add(pod(1, &[1]))).unwrap();
    assert_eq!(state.pod(&attachment(1)).map(|pod| pod.limits), Some(Bandwidth::default()));
}

#[test]
fn a_record_of_an_earlier_release_is_of_a_pod_without_limits() {
    let mut state = state_of(&[("a", "eth0")]);
    let unlimited = state.pods().next().unwrap().clone();
    let json = serde_json::to_value(&unlimited).unwrap();
    assert_eq!(json.get("limits"), None, "what earlier releases wrote");
    assert_eq!(serde_json::from_value::<PodRecord>(json).unwrap(), unlimited);

    let limits = Bandwidth { ingress: None, egress: limit(5, 6) };
    state.apply(Change::SetLimits(unlimited.attachment, limits)).unwrap();
    let limited = state.pods().next().unwrap();
    let json = serde_json::to_value(limited).unwrap();
    let golden = serde_json::json!({"ingress": null, "egress": {"rate_bps": 5, "burst_bits": 6}});
    assert_eq!(json["limits"], golden);
    assert_eq!(&serde_json::from_value::<PodRecord>(json).unwrap(), limited);
}
