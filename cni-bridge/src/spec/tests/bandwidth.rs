//! The wishes for limits: the capability, and the static keys that go before it.

use proptest::prelude::*;

use super::*;
use crate::protocol::{Bandwidth, RateRequest};

fn parse(extra: Value) -> Result<Bandwidth, CniError> {
    let conf = conf(extra).unwrap();
    AddOptions::parse(&conf, "").map(|options| options.bandwidth)
}

fn capability(bandwidth: Value) -> Result<Bandwidth, CniError> {
    parse(json!({"runtimeConfig": {"bandwidth": bandwidth}}))
}

fn limit(rate_bps: u64, burst_bits: u64) -> Option<RateRequest> {
    Some(RateRequest { rate_bps, burst_bits })
}

/// Refused wherever it stands, with the key, where it stands, and the value.
fn refuses(keys: Value, key: &str, value: &Value) {
    for (found, path) in [
        (capability(keys.clone()), format!("runtimeConfig.bandwidth.{key}")),
        (parse(keys), format!("configuration's {key}")),
    ] {
        let error = found.unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG, "{}", error.msg);
        let named = format!("{path} is {value}: ");
        assert!(error.msg.contains(&named), "{}", error.msg);
    }
}

#[test]
fn no_rates_however_that_is_said_are_no_wish() {
    let zeros = json!({"ingressRate": 0, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0});
    let nulls = json!({"ingressRate": null, "ingressBurst": null, "egressRate": 0});
    for none in [json!({}), json!(null), zeros, nulls] {
        assert_eq!(capability(none.clone()), Ok(Bandwidth::default()), "{none}");
        if none.is_object() {
            assert_eq!(parse(none.clone()), Ok(Bandwidth::default()), "{none}");
        }
    }
    for wrong in [json!([]), json!("10M"), json!(10)] {
        assert_eq!(capability(wrong).unwrap_err().code, code::INVALID_CONFIG);
    }
}

#[test]
fn ingress_and_egress_are_two_and_keep_their_units() {
    let both = json!({
        "ingressRate": 10_000_000, "ingressBurst": 4_294_967_295_u64,
        "egressRate": 1000, "egressBurst": 8,
    });
    let wanted = Bandwidth { ingress: limit(10_000_000, 4_294_967_295), egress: limit(1000, 8) };
    assert_eq!(capability(both.clone()), Ok(wanted));
    assert_eq!(parse(both), Ok(wanted));
    let one = capability(json!({"egressRate": 1, "egressBurst": 1}));
    assert_eq!(one, Ok(Bandwidth { ingress: None, egress: limit(1, 1) }));
}

#[test]
fn keys_are_read_in_any_case() {
    let runtime = json!({"bandWidth": {"INGRESSRATE": 5, "ingressburst": 6}});
    let wanted = Ok(Bandwidth { ingress: limit(5, 6), egress: None });
    assert_eq!(parse(json!({"runtimeConfig": runtime})), wanted);
    assert_eq!(parse(json!({"IngressRate": 5, "IngressBurst": 6})), wanted);
}

#[test]
fn a_direction_that_the_configuration_speaks_of_is_its_own_and_the_other_the_runtimes() {
    let runtime = json!({"bandwidth": {
        "ingressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4,
    }});
    let with = |mut keys: Value| {
        keys["runtimeConfig"] = runtime.clone();
        parse(keys)
    };
    let (ingress, egress) = (limit(1, 2), limit(3, 4));
    assert_eq!(with(json!({})), Ok(Bandwidth { ingress, egress }));
    let own = with(json!({"ingressRate": 10, "ingressBurst": 20}));
    assert_eq!(own, Ok(Bandwidth { ingress: limit(10, 20), egress }));
    let unlimited = with(json!({"egressRate": 0}));
    assert_eq!(unlimited, Ok(Bandwidth { ingress, egress: None }), "0 is a word too");
    // Half of a direction is not filled up with the other's half.
    assert!(with(json!({"ingressRate": 10})).is_err());
}

#[test]
fn a_rate_and_its_burst_come_together_or_not_at_all() {
    refuses(json!({"ingressRate": 1000}), "ingressRate", &json!(1000));
    refuses(json!({"ingressRate": 1000, "ingressBurst": 0}), "ingressRate", &json!(1000));
    refuses(json!({"ingressBurst": 1000}), "ingressBurst", &json!(1000));
    refuses(json!({"egressBurst": 7, "egressRate": 0}), "egressBurst", &json!(7));
    // The burst of the other direction is no help.
    let crossed = json!({"egressRate": 5, "ingressBurst": 6, "ingressRate": 6});
    refuses(crossed, "egressRate", &json!(5));
}

#[test]
fn a_burst_of_four_gib_and_more_is_refused() {
    let bits = |bytes: u64| bytes * 8;
    let limit_bytes = u64::from(u32::MAX);
    let burst = |bits: u64| json!({"egressRate": 1000, "egressBurst": bits});
    for refused in [bits(limit_bytes), bits(limit_bytes) + 7, u64::MAX] {
        refuses(burst(refused), "egressBurst", &json!(refused));
    }
    let most = bits(limit_bytes) - 1;
    assert_eq!(capability(burst(most)).unwrap().egress, limit(1000, most));
    assert_eq!(RateRequest::BURST_BITS_MAX, most);
}

#[test]
fn a_value_that_is_no_whole_number_is_refused() {
    for value in [json!(-1), json!(1.5), json!(1e30), json!("10M"), json!(true), json!([1])] {
        refuses(json!({"ingressRate": value, "ingressBurst": 1}), "ingressRate", &value);
        refuses(json!({"egressRate": 1, "egressBurst": value}), "egressBurst", &value);
    }
}

#[test]
fn subnets_without_limits_are_refused_and_none_of_them_are_no_wish() {
    let limited = |key: &str, value: &Value| {
        let mut keys = json!({"ingressRate": 5, "ingressBurst": 6});
        keys[key] = value.clone();
        keys
    };
    for key in ["unshapedSubnets", "shapedSubnets", "UnShapedSubnets"] {
        for value in [json!(["10.0.0.0/8"]), json!([""]), json!("10.0.0.0/8"), json!({})] {
            for (found, path) in [
                (capability(limited(key, &value)), "runtimeConfig.bandwidth."),
                (parse(limited(key, &value)), ""),
                // Without a limit beside them too: the runtime may send one for the next pod.
                (parse(json!({key: value})), ""),
            ] {
                let error = found.unwrap_err();
                assert_eq!(error.code, code::UNSUPPORTED_FIELD, "{}", error.msg);
                let named = format!("{path}{key} = {value} is not supported").to_lowercase();
                assert!(error.msg.to_lowercase().starts_with(&named), "{}", error.msg);
                assert!(error.msg.ends_with("leave it out"), "{}", error.msg);
            }
        }
        for none in [json!([]), json!(null)] {
            let wanted = Ok(Bandwidth { ingress: limit(5, 6), egress: None });
            assert_eq!(capability(limited(key, &none)), wanted, "{none}");
            assert_eq!(parse(limited(key, &none)), wanted, "{none}");
        }
    }
}

proptest! {
    #[test]
    fn a_limit_is_read_exactly_if_both_its_numbers_can_be_used(
        rate in prop_oneof![Just(0), any::<u64>()],
        burst in prop_oneof![
            Just(0),
            any::<u64>(),
            RateRequest::BURST_BITS_MAX - 2..=RateRequest::BURST_BITS_MAX + 2,
        ],
    ) {
        let found = capability(json!({"ingressRate": rate, "ingressBurst": burst}));
        // As the reference has it: burst / 8 >= 2^32 - 1 is too much.
        let can_be = (rate == 0) == (burst == 0) && burst / 8 < u64::from(u32::MAX);
        prop_assert_eq!(found.is_ok(), can_be);
        if let Ok(found) = found {
            prop_assert_eq!(found.ingress, limit(rate, burst).filter(|_| rate > 0));
        }
    }
}
