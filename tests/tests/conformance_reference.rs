//! The conformance kit against Debian's reference plugin `ptp`. Its known differences are written
//! down with reasons; that exactly those are found shows both that the kit asks what the reference
//! can answer, and that it can fail.

use std::path::Path;

use e2e::conformance::{self, Expectations, Plugin};

/// From Debian's package containernetworking-plugins, release 1.1.1 (Debian 12).
const PTP: &str = "/usr/lib/cni/ptp";

#[test]
#[ignore = "needs root"]
fn the_reference_ptp_differs_exactly_where_it_is_known_to() {
    assert!(Path::new(PTP).exists(), "{PTP} is missing: install containernetworking-plugins");
    let conf = include_str!("../conformance/reference-ptp.json");
    let conf = serde_json::from_str(conf).expect("the configuration is JSON");
    let plugin = Plugin::new(PTP, &conf).expect("the configuration names a plugin");
    let expected = Expectations::parse(include_str!("../conformance/reference-ptp.expect"))
        .expect("every difference has a reason");

    let report = conformance::run(&plugin);

    let differences = expected.compare(&report);
    assert!(differences.is_empty(), "{report}\n{differences}");
}
