//! Lines 31, 32 and 35 for the optional capability `bandwidth`: which limits are served, which
//! refused, and that DEL and CHECK heed none. Whether they hold is asked elsewhere: it takes
//! traffic.

use std::sync::Arc;

use serde_json::{Value, json};

use super::refused;
use crate::conformance::answer;
use crate::conformance::attached::{interface_goes, is_in_place};
use crate::conformance::case::{Case, Checked, Need, case};
use crate::conformance::trial::{Conf, Container, Trial};

/// The rows.
pub fn cases() -> Vec<Case> {
    let cases = served().into_iter().chain(refusals()).chain(later());
    cases.map(|case| case.needs(Need::Capability("bandwidth"))).collect()
}

/// Limits as runtimes send them.
fn served() -> Vec<Case> {
    let rows = [
        ("both", rates((10_000_000, 1_000_000), (5_000_000, 1_000_000))),
        ("ingress-only", json!({"ingressRate": 10_000_000, "ingressBurst": 1_000_000})),
        ("egress-only", json!({"egressRate": 10_000_000, "egressBurst": 1_000_000})),
        ("ingress-and-zeros", rates((10_000_000, 1_000_000), (0, 0))),
        ("burst-of-runtimes", rates((10_000_000, u32::MAX.into()), (10_000_000, u32::MAX.into()))),
        ("burst-below-a-packet", rates((8000, 200), (8000, 200))),
        ("burst-just-below-the-limit", rates((10_000_000, BURST_BITS_MAX), (0, 0))),
        ("slow", rates((800, 8000), (800, 8000))),
        ("fast", rates((40_000_000_000, 8_000_000_000), (40_000_000_000, 8_000_000_000))),
    ];
    let row = |(slug, limits): (&str, Value)| {
        case(&format!("b35-bandwidth-{slug}"))
            .says("limits as runtimes send them are served, and CHECK finds the container well")
            .ask(move |t| {
                let conf = limited(t, &limits);
                let (container, result) = add(t, &conf)?;
                is_in_place(&result, &container)?;
                if crate::conformance::version::at_least(t.version, "0.4.0") {
                    check(t, &container, &conf, &result)?;
                }
                Ok(())
            })
    };
    rows.into_iter().map(row).collect()
}

/// The reference refuses 2^32 - 1 bytes.
const BURST_BITS_MAX: u64 = u32::MAX as u64 * 8 - 1;

/// Limits that must not be taken for something else.
fn refusals() -> Vec<Case> {
    let rows = [
        ("ingress-without-burst", json!({"ingressRate": 10_000_000}), "10000000"),
        ("egress-without-burst", json!({"egressRate": 10_000_000, "egressBurst": 0}), "10000000"),
        ("ingress-without-rate", json!({"ingressBurst": 1_000_001}), "1000001"),
        ("egress-without-rate", json!({"egressRate": 0, "egressBurst": 1_000_001}), "1000001"),
        (
            "burst-too-large",
            json!({"ingressRate": 1000, "ingressBurst": BURST_BITS_MAX + 1}),
            "34359738360",
        ),
        ("negative", json!({"ingressRate": -5, "ingressBurst": 1000}), "-5"),
        ("text", json!({"egressRate": "10M", "egressBurst": 1000}), "10M"),
        ("fraction", json!({"egressRate": 1000, "egressBurst": 7.5}), "7.5"),
    ];
    let row = |(slug, limits, value): (&str, Value, &'static str)| {
        case(&format!("b35-bandwidth-{slug}"))
            .says("a limit that cannot be is refused by its value, and nothing is left of the ADD")
            .ask(move |t| {
                let container = t.container()?;
                let call = t.invocation("ADD", &container, &limited(t, &limits));
                let error = refused(t, &container, &call, &[])?;
                answer::names(&error, "ADD", &[value])
            })
    };
    rows.into_iter().map(row).collect()
}

/// What becomes of limits after ADD.
fn later() -> Vec<Case> {
    vec![
        case("b31-bandwidth-garbage-at-del").says("DEL succeeds whatever its limits are").ask(
            |t| {
                let (container, _) = add(t, &limited(t, &rates((1_000_000, 80_000), (0, 0))))?;
                let garbage = limited(t, &json!({"ingressRate": -1, "egressBurst": "x"}));
                let call = t.invocation("DEL", &container, &garbage);
                answer::silent(&t.ask(&call)?, "DEL")?;
                interface_goes(&container)
            },
        ),
        case("b32-bandwidth-at-check")
            .says("CHECK lets limits be others than at ADD: they may have been changed since")
            .ask(|t| {
                let conf = limited(t, &rates((1_000_000, 80_000), (0, 0)));
                let (container, result) = add(t, &conf)?;
                for limits in [json!(null), rates((2_000_000, 80_000), (1_000_000, 80_000))] {
                    check(t, &container, &limited(t, &limits), &result)?;
                }
                Ok(())
            })
            .needs(Need::Verb("CHECK")),
    ]
}

/// Rate and burst of both directions.
fn rates((ingress, ingress_burst): (u64, u64), (egress, egress_burst): (u64, u64)) -> Value {
    json!({
        "ingressRate": ingress, "ingressBurst": ingress_burst,
        "egressRate": egress, "egressBurst": egress_burst,
    })
}

/// The configuration with these limits, as a runtime puts them in.
fn limited(t: &Trial, limits: &Value) -> Conf {
    t.conf_with(json!({"runtimeConfig": {"bandwidth": limits}}))
}

/// ADD of a new container that must succeed; both.
fn add(t: &Trial, conf: &Conf) -> Checked<(Arc<Container>, Value)> {
    let container = t.container()?;
    let result = t.add_with(&container, conf)?;
    Ok((container, result))
}

/// CHECK with the limits of `conf`, which must succeed.
fn check(t: &Trial, container: &Container, conf: &Conf, result: &Value) -> Checked {
    let mut conf = conf.clone();
    conf.insert("prevResult".to_owned(), result.clone());
    answer::silent(&t.ask(&t.invocation("CHECK", container, &conf))?, "CHECK")
}
