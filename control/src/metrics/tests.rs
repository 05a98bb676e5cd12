//! The page against a small reader of the format, and the server over loopback sockets.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::report::tests::sample;

mod http;

/// Reads the format strictly: the samples of a page, by name and labels.
fn read(page: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut done = BTreeSet::new();
    let mut family = String::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help has words");
            assert!(done.insert(std::mem::replace(&mut family, name.to_owned())), "{line}");
            assert!(!done.contains(name), "{name} stands in two places");
            assert!(help.ends_with('.') && !help.contains('\\'), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type has a word");
            assert_eq!(name, family, "the type stands under its help");
            assert!(["gauge", "counter", "histogram"].contains(&kind));
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            let name = series.split('{').next().expect("a split has a first part");
            assert!(name.starts_with(&family), "{name} stands under {family}");
            let value = value.parse().expect("a value is a number");
            assert_eq!(samples.insert(series.to_owned(), value), None, "{series} stands twice");
        }
    }
    assert!(page.ends_with('\n'));
    samples
}

#[test]
fn every_series_stands_once_under_its_own_help() {
    let samples = read(&render(&sample()));
    assert_eq!(samples["viaduct_ready"], 1.0);
    assert_eq!(samples["viaduct_info{version=\"0.1.0\",port_mode=\"full\"}"], 1.0);
    let pod = "network=\"viaduct\",namespace=\"shop\",pod=\"cart-7d9f\",\
               container_id=\"0123456789abcdef0123456789abcdef\",ifname=\"eth0\"";
    let series =
        format!("viaduct_pod_drops_total{{{pod},direction=\"from_pod\",reason=\"no_pod\"}}");
    assert_eq!(samples[&series], 17.0);
    assert_eq!(samples["viaduct_worker_drops_total{worker=\"1\",reason=\"port_down\"}"], 1.0);
    assert_eq!(samples["viaduct_pods{state=\"fallback\",fallback=\"drop\"}"], 1.0);
    assert_eq!(samples["viaduct_pods{state=\"fallback\",fallback=\"pass\"}"], 0.0);
    let node = "viaduct_node_packets_total{device=\"viaduct1\",direction=\"to_pod\"}";
    assert_eq!(samples[node], 40.0);
}

#[test]
fn what_the_xdp_program_did_without_a_worker_is_on_the_page_by_outcome() {
    let samples = read(&render(&sample()));
    let of = |outcome: &str| {
        samples[&format!("viaduct_fallback_packets_total{{outcome=\"{outcome}\"}}")]
    };
    assert_eq!((of("passed"), of("source_mac"), of("arp")), (120.0, 9.0, 0.0));
}

#[test]
fn flows_are_on_the_page_by_worker_event_and_refusal() {
    let mut report = sample();
    let samples = read(&render(&report));
    assert_eq!(samples["viaduct_flows{worker=\"1\"}"], 3.0);
    assert_eq!(samples["viaduct_flow_events_total{worker=\"0\",event=\"evicted\"}"], 7.0);
    let refused =
        |why: &str| samples[&format!("viaduct_flows_refused_total{{worker=\"0\",why=\"{why}\"}}")];
    assert_eq!((refused("quota"), refused("full"), refused("no_port")), (6.0, 5.0, 4.0));
    assert_eq!(samples["viaduct_icmp_errors_translated_total{worker=\"0\"}"], 2.0);
    assert_eq!(samples["viaduct_guard_dropped_packets_total"], 11.0);
    assert_eq!(samples["viaduct_host_ports"], 2.0);
    report.status.guard_dropped = None;
    assert!(!read(&render(&report)).contains_key("viaduct_guard_dropped_packets_total"));
}

#[test]
fn limits_are_on_the_page_in_bytes_by_pod_and_direction() {
    let samples = read(&render(&sample()));
    let of = |figure: &str, direction: &str| {
        let pod = "network=\"viaduct\",namespace=\"shop\",pod=\"cart-7d9f\",\
                   container_id=\"0123456789abcdef0123456789abcdef\",ifname=\"eth0\"";
        samples[&format!("viaduct_limit_{figure}{{{pod},direction=\"{direction}\"}}")]
    };
    assert_eq!(of("rate_bytes_per_second", "ingress"), 1_250_000.0);
    assert_eq!(of("burst_bytes", "ingress"), 65_536.0);
    assert_eq!(of("requested_burst_bytes", "ingress"), 536_870_911.875);
    assert_eq!(of("tokens_bytes", "egress"), -1514.0);
    assert_eq!(of("queued_bytes", "egress"), 30_280.0);
    assert_eq!(of("dropped_packets_total", "egress"), 1234.0);
    assert_eq!(of("marked_packets_total", "ingress"), 56.0);
}

#[test]
fn an_empty_report_is_a_valid_page() {
    let samples = read(&render(&Report::default()));
    assert_eq!(samples["viaduct_ready"], 0.0);
    assert!(samples.keys().all(|series| !series.contains("worker=")));
}

#[test]
fn terms_of_both_laws_are_on_the_page_and_a_broken_law_shows() {
    let mut report = sample();
    report.status.workers[1].frames.free -= 1;
    let samples = read(&render(&report));
    for worker in ["0", "1"] {
        let sum = |name: &str, terms: &[&str]| -> f64 {
            let term = |term: &&str| samples[&format!("{name}{{worker=\"{worker}\",{term}\"}}")];
            terms.iter().map(term).sum()
        };
        let places =
            ["place=\"free", "place=\"rx", "place=\"tx", "place=\"crossing", "place=\"held"];
        let owned = samples[&format!("viaduct_worker_frames_owned{{worker=\"{worker}\"}}")];
        let missing = owned - sum("viaduct_worker_frames", &places);
        assert_eq!(missing, if worker == "1" { 1.0 } else { 0.0 });
        let into = ["event=\"received", "event=\"generated", "event=\"crossed_in"];
        let out = ["event=\"merged", "event=\"sent", "event=\"dropped", "event=\"crossed_out"];
        let name = "viaduct_worker_packets_total";
        let held = samples[&format!("viaduct_worker_held_packets{{worker=\"{worker}\"}}")];
        assert_eq!(sum(name, &into), sum(name, &out) + held);
    }
    assert_eq!(samples["viaduct_conserved{worker=\"0\",law=\"frames\"}"], 1.0);
    assert_eq!(samples["viaduct_conserved{worker=\"1\",law=\"frames\"}"], 0.0);
    assert_eq!(samples["viaduct_conserved{worker=\"1\",law=\"packets\"}"], 1.0);
}

#[test]
fn labels_are_escaped() {
    let mut report = sample();
    report.pods[0].name = "a\"b\\c\nd".to_owned();
    let page = render(&report);
    assert!(page.contains("pod=\"a\\\"b\\\\c\\nd\""), "{page}");
    read(&page);
}

#[test]
fn histogram_is_cumulative_and_a_time_on_a_bound_belongs_below_it() {
    let mut report = Report::default();
    for ms in [1, 2, 7, 11_000] {
        report.operations.record(Operation::Add, Duration::from_millis(ms), Outcome::Success);
    }
    report.operations.record(Operation::Add, Duration::from_millis(7), Outcome::Failure);
    let samples = read(&render(&report));
    let bucket = |bound: &str| {
        samples
            [&format!("viaduct_cni_operation_seconds_bucket{{operation=\"add\",le=\"{bound}\"}}")]
    };
    assert_eq!(bucket("0.001"), 1.0);
    assert_eq!(bucket("0.0025"), 2.0);
    assert_eq!(bucket("0.005"), 2.0);
    assert_eq!(bucket("0.01"), 4.0);
    assert_eq!(bucket("10"), 4.0);
    assert_eq!(bucket("+Inf"), 5.0);
    assert_eq!(samples["viaduct_cni_operation_seconds_count{operation=\"add\"}"], 5.0);
    assert!(samples["viaduct_cni_operation_seconds_sum{operation=\"add\"}"] > 11.0);
    assert_eq!(samples["viaduct_cni_operation_errors_total{operation=\"add\"}"], 1.0);
    assert_eq!(samples["viaduct_cni_operation_errors_total{operation=\"del\"}"], 0.0);
}

#[test]
#[ignore = "prints the page for eyes: run with --ignored --nocapture"]
fn prints_the_page() {
    println!("{}", render(&sample()));
}
