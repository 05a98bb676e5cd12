//! Random packets from a pod fare with Viaduct as they fare with a Linux router, but for the named
//! differences of `e2e::differential::rules`.
//!
//! `VIADUCT_DIFFERENTIAL_PACKETS` (100,000 unless told) says how many, `VIADUCT_DIFFERENTIAL_SEED`
//! which.

use std::env;

use e2e::daemon::{PortMode, Setup};
use e2e::differential::plan::PLACES;
use e2e::differential::{Report, compare};

const PACKETS: usize = 100_000;
const SEED: u64 = 1;

fn number<T: std::str::FromStr>(variable: &str, default: T) -> T {
    match env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => default,
    }
}

/// Compares, prints the report, and judges all of it that holds in any mode.
fn compared(setup: &Setup) -> Report {
    let packets = number("VIADUCT_DIFFERENTIAL_PACKETS", PACKETS);
    let seed = number("VIADUCT_DIFFERENTIAL_SEED", SEED);
    println!("on a node with {setup}, seed {seed}:");
    let report = match compare(setup, seed, packets) {
        Ok(report) => report,
        Err(error) => panic!("{error:?}"),
    };
    println!("{report}");
    assert!(report.differences.is_empty(), "see the report above; its seed is {seed}");
    assert_eq!(report.frames, packets);
    // A comparison of drops alone would be none.
    for place in PLACES {
        let arrived = report.delivered.get(&place).copied().unwrap_or_default();
        assert!(arrived > packets / 200, "{arrived} packets arrived at {place:?}");
    }
    report
}

/// The errors whose first ones no limit holds back: each was sent and is the same as Linux's.
fn assert_answered(report: &Report, errors: &[(u8, u8, u8)]) {
    for error in errors {
        assert!(report.errors.contains_key(error), "no ICMP error {error:?} was compared");
    }
}

#[test]
#[ignore = "needs root"]
fn random_packets_fare_as_with_a_linux_router() {
    let report = compared(&Setup::new(PortMode::Auto, 2));
    assert_answered(&report, &[(4, 3, 1), (4, 3, 4), (4, 11, 0), (6, 1, 3), (6, 2, 0), (6, 3, 0)]);
}

#[test]
#[ignore = "needs root"]
fn random_packets_fare_as_with_a_linux_router_in_basic_mode() {
    // The links of pods take no more than their routes, so nothing is ever too big.
    let report = compared(&Setup::new(PortMode::Basic, 1));
    assert_answered(&report, &[(4, 3, 1), (4, 11, 0), (6, 1, 3), (6, 3, 0)]);
}
