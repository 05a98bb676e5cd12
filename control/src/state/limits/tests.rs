//! Which pod is meant, and what new limits leave alone.

use super::super::tests::{attachment, pod};
use super::super::{Change, Limits, NewPod};
use super::*;

fn limit(rate_bps: u64, burst_bits: u64) -> Option<RateRequest> {
    Some(RateRequest { rate_bps, burst_bits })
}

/// A state with these container IDs and interfaces, each another pod.
fn state(pods: &[(&str, &str)]) -> State {
    let mut state = State::new(Limits { workers: 1, slots: 10, ports_per_worker: 10 });
    for (id, (container_id, ifname)) in (1..).zip(pods) {
        let mut new = pod(id, &[id]);
        new.attachment.network = "n".to_owned();
        new.attachment.container_id = (*container_id).to_owned();
        new.attachment.ifname = (*ifname).to_owned();
        state.apply(Change::Add(new)).unwrap();
    }
    state
}

#[test]
fn a_pod_is_found_by_as_much_of_its_id_as_tells_it_from_the_others() {
    let state = state(&[("abc1", "eth0"), ("abc1", "net1"), ("abd", "eth0"), ("abdicate", "eth0")]);
    let find = |id: &str, ifname: Option<&str>| {
        let found = state.find(id, ifname).map(|pod| &pod.attachment);
        found.map(|found| (found.container_id.as_str(), found.ifname.as_str()))
    };
    assert_eq!(find("abc", Some("eth0")), Ok(("abc1", "eth0")));
    assert_eq!(find("abc1", Some("net1")), Ok(("abc1", "net1")));
    assert_eq!(find("abd", None), Ok(("abd", "eth0")), "a whole ID, though another begins so");
    assert_eq!(find("abdi", None), Ok(("abdicate", "eth0")));
    for (id, ifname) in [("abe", None), ("", None), ("abc", Some("eth1")), ("bc", None)] {
        let error = find(id, ifname).unwrap_err();
        assert!(matches!(error, StateError::NoSuchPod { .. }), "{id}: {error}");
        assert!(error.to_string().contains(id) && error.to_string().contains("viaduct pods"));
        assert!(error.to_string().contains(ifname.unwrap_or("an interface here")), "{error}");
    }
    for (id, ifname, several) in [("abc1", None, 2), ("ab", None, 4), ("ab", Some("eth0"), 3)] {
        let error = find(id, ifname).unwrap_err();
        let StateError::SeveralPods { found, .. } = &error else { panic!("{error}") };
        assert_eq!(*found, several);
        let sentence = error.to_string();
        for part in [id, "eth0 of abc1", "--ifname"] {
            assert!(sentence.contains(part), "{sentence}");
        }
    }
}

#[test]
fn new_limits_change_nothing_else_and_the_same_ones_nothing_at_all() {
    let mut state = state(&[("a", "eth0"), ("b", "eth0")]);
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
            let mut state = state(&[("a", "eth0")]);
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
fn a_record_of_an_earlier_release_is_of_a_pod_without_limits() {
    let mut state = state(&[("a", "eth0")]);
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
