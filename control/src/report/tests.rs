//! The keys that scripts rely on, and rows from real counters.

use serde_json::json;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use cni_bridge::protocol::{PortProtocol, RateRequest};
use dataplane::conntrack::{
    Endpoint, FlowCounters, FlowKey, FlowTable, HashSeed, NewFlow, Records, Replies, Signal,
    Source, TableParts, Transport,
};
use dataplane::counters::{DirectionCounters, WorkerCounters};
use dataplane::drop::DropReason;
use dataplane::port::PortId;
use dataplane::shaper::Limit;
use dataplane::xsk::words::Words;

use super::*;
use crate::metrics::{Operation, Outcome};
use crate::state::{HostPortAddress, HostPortRecord, PodRecord};

fn direction(packets: u64, bytes: u64, drops: &[(&str, u64)]) -> DirectionRow {
    DirectionRow {
        packets,
        bytes,
        wire_packets: packets * 40,
        wire_bytes: bytes + packets * 39 * 66,
        drops: drops.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
    }
}

fn worker(id: u16, received: u64, dropped: u64) -> WorkerRow {
    WorkerRow {
        id,
        core: usize::from(id) + 2,
        busy_ratio: 0.4375,
        busy_ns: 43_750_000_000,
        ports: 2,
        generation: 42,
        hugepages: id == 0,
        frames: FramesRow { free: 31_998, rx: 500, tx: 260, crossing: 8, held: 2, total: 32_768 },
        packets: PacketsRow {
            received,
            generated: 5,
            merged: 3,
            held: 1,
            sent: received - dropped - 14,
            dropped,
            port_down: u64::from(id),
            crossed_in: 15,
            crossed_out: 30,
        },
        flows: FlowsRow {
            entries: 3,
            room: 524_288,
            opened: 40,
            expired: 30,
            evicted: 7,
            refused_quota: 6,
            refused_full: 5,
            refused_port: 4,
            icmp_errors: 2,
        },
    }
}

/// A node with three pods, one of them on fallback.
pub(crate) fn sample() -> Report {
    let pod = |name: &str, addresses: &[&str], worker, from_pod, to_pod| PodRow {
        network: "viaduct".to_owned(),
        container_id: "0123456789abcdef0123456789abcdef".to_owned(),
        ifname: "eth0".to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        ips: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
        mac: "0a:58:0a:f4:01:05".to_owned(),
        host_ifname: format!("vd{name}"),
        worker,
        state: PodState::Userspace,
        fallback: FallbackAction::Pass,
        super_packets: true,
        from_pod,
        to_pod,
    };
    let port = |port, kind, device: &str, worker, row: &PodRow| PortRow {
        port,
        device: device.to_owned(),
        queue: 0,
        ifindex: 100 + u32::from(port),
        kind,
        mode: PortMode::Full,
        zero_copy: kind == PortKind::Uplink,
        worker,
        slot: u32::from(port),
        mtu: 1500,
        mac: "0a:58:0a:f4:01:05".to_owned(),
        from_pod: row.from_pod.clone(),
        to_pod: row.to_pod.clone(),
    };
    let both = ["10.244.1.5", "fd00:10:244:1::5"];
    let busy = direction(1_234_567, 71_604_886_000, &[("no_pod", 17), ("ttl_expired", 2)]);
    let cart = pod("cart-7d9f", &both, 0, busy, direction(999, 65_934, &[]));
    let pay = pod("payment-5c6b7", &both[..1], 1, direction(0, 0, &[]), direction(7, 700, &[]));
    let mut bare = pod("", &both[1..], 1, DirectionRow::default(), DirectionRow::default());
    bare.state = PodState::Fallback;
    bare.fallback = FallbackAction::Drop;
    bare.container_id = "fedcba9876543210fedcba9876543210".to_owned();
    let mut node = pay.clone();
    node.to_pod = direction(40, 4000, &[("not_ours", 3)]);
    let ports = vec![
        port(0, PortKind::Node, "viaduct1", 0, &node),
        port(1, PortKind::Pod, "vdcart-7d9f", 0, &cart),
        port(2, PortKind::Pod, "vdpayment-5c6b7", 1, &pay),
        port(3, PortKind::Uplink, "eth1", 0, &pay),
    ];
    let mut operations = OpTimes::default();
    operations.record(Operation::Add, Duration::from_micros(7300), Outcome::Success);
    let status = Status {
        version: "0.1.0".to_owned(),
        ready: true,
        problems: vec!["pod fedcba987654 is on fallback: its socket is not bound yet".to_owned()],
        uptime_s: 273_845,
        port_mode: PortMode::Full,
        features: Features {
            frags: true,
            sg: true,
            tx_checksum: true,
            tx_budget: false,
            csum_hint: true,
        },
        node_addresses: vec!["192.0.2.1".parse().expect("an address")],
        pod_cidrs: vec!["10.244.1.0/24".parse().expect("a prefix")],
        generation: 42,
        pods: 3,
        fallback_pods: 1,
        routes: 5,
        host_ports: 2,
        guard_dropped: Some(11),
        fallback_packets: [("passed", 120), ("unknown_port", 3), ("arp", 0), ("source_mac", 9)]
            .into_iter()
            .collect(),
        workers: vec![worker(0, 1_234_567_890, 17), worker(1, 999, 0)],
        uplinks: vec![
            UplinkRow {
                device: "eth1".to_owned(),
                queues: 1,
                zero_copy: 1,
                xdp: Some("native".to_owned()),
                mtu: 1500,
                note: None,
            },
            UplinkRow {
                device: "eth2".to_owned(),
                note: Some("it is down; run ip link set dev eth2 up".to_owned()),
                ..UplinkRow::default()
            },
        ],
        uplink_passed: [("not_ours", 17), ("fallback", 3)]
            .map(|(why, count)| (why.to_owned(), count))
            .into(),
    };
    let limits = sample_limits(&cart);
    Report { status, pods: vec![cart, pay, bare], ports, limits, operations }
}

/// Every drop of a report, as the daemon lists them.
pub(crate) fn sample_drops(report: &Report) -> Vec<DropRow> {
    let mut rows = report.status.fallback_packets.drop_rows();
    let port_down = report.status.workers.iter().map(|worker| worker.packets.port_down).sum();
    rows.extend(port_down_row(port_down));
    for port in &report.ports {
        rows.extend(drop_rows(port.port, &port.device, &port.from_pod, &port.to_pod));
    }
    rows
}

/// Routes as a node may have them.
pub(crate) fn sample_routes() -> Vec<RouteRow> {
    let route = |dst: &str, via: Option<&str>, dev: &str, port, source: &str| RouteRow {
        dst: dst.parse().expect("a prefix"),
        via: via.map(|address| address.parse().expect("an address")),
        dev: dev.to_owned(),
        port,
        source: source.to_owned(),
        hops: Vec::new(),
    };
    vec![
        route("10.244.1.5/32", None, "vdcart-7d9f", Some(1), "pod"),
        route("10.244.1.0/24", None, "", None, "no_pod"),
        route("0.0.0.0/0", Some("169.254.1.1"), "viaduct1", Some(0), "node"),
        route("fd00:10:244:1::5/128", None, "vdcart-7d9f", Some(1), "pod"),
    ]
}

/// Host ports of both kinds.
pub(crate) fn sample_host_ports() -> Vec<HostPortRow> {
    let id = "0123456789abcdef0123456789abcdef";
    let row = |record| HostPortRow::new(&record, id, "eth0");
    let any = HostPortRecord {
        transport: PortProtocol::Tcp,
        address: HostPortAddress::AnyV4,
        port: 8080,
        serving: ip("10.244.1.5"),
        container_port: 80,
    };
    let one = HostPortRecord {
        transport: PortProtocol::Udp,
        address: HostPortAddress::One(ip("2001:db8::1")),
        port: 53,
        serving: ip("fd00:10:244:1::5"),
        container_port: 5353,
    };
    vec![row(any), row(one)]
}

/// The limits of a pod as they are listed: one of a runtime's burst, one that is in debt.
fn sample_limits(pod: &PodRow) -> Vec<LimitRow> {
    let row = |direction, requested_burst_bits, tokens_bytes| LimitRow {
        network: pod.network.clone(),
        container_id: pod.container_id.clone(),
        ifname: pod.ifname.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        direction,
        requested_bps: 10_000_000,
        requested_burst_bits,
        applied_bps: 10_000_000,
        applied_burst_bytes: 65_536,
        tokens_bytes,
        queued_bytes: 30_280,
        dropped: 1234,
        marked: 56,
    };
    vec![
        row(LimitDirection::Ingress, u32::MAX.into(), 65_536),
        row(LimitDirection::Egress, 65_536 * 8, -1514),
    ]
}

/// A flow as it is listed: a client beyond, and the pod that asks itself.
pub(crate) fn sample_flows() -> Vec<FlowRow> {
    let row = |src: &str, nat_src: &str, state: &str, replies: &str| FlowRow {
        protocol: "tcp".to_owned(),
        src: ip(src),
        sport: 40_000,
        dst: ip("192.0.2.1"),
        dport: 8080,
        nat_src: ip(nat_src),
        nat_sport: 40_000,
        nat_dst: ip("10.244.1.5"),
        nat_dport: 80,
        state: state.to_owned(),
        replies: replies.to_owned(),
        idle_s: 61,
        worker: 1,
        container_id: "0123456789abcdef0123456789abcdef".to_owned(),
        ifname: "eth0".to_owned(),
    };
    vec![
        row("198.51.100.9", "198.51.100.9", "established", "route"),
        row("10.244.1.5", "192.0.2.1", "opening", "route"),
    ]
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn pods_have_the_keys_of_the_contract() {
    let row = serde_json::to_value(&sample().pods[0]).expect("a row is JSON");
    let mut expected = vec![
        "network",
        "container_id",
        "ifname",
        "namespace",
        "name",
        "ips",
        "mac",
        "host_ifname",
        "worker",
        "state",
        "fallback",
        "super_packets",
        "from_pod",
        "to_pod",
    ];
    expected.sort_unstable();
    assert_eq!(keys(&row), expected);
    assert_eq!(keys(&row["to_pod"]), ["bytes", "drops", "packets", "wire_bytes", "wire_packets"]);
    assert_eq!(row["from_pod"]["drops"], json!({"no_pod": 17, "ttl_expired": 2}));
    assert_eq!(row["ips"], json!(["10.244.1.5", "fd00:10:244:1::5"]));
    assert_eq!(row["state"], "userspace");
    let fallback = serde_json::to_value(&sample().pods[2]).expect("a row is JSON");
    assert_eq!((&fallback["state"], &fallback["fallback"]), (&json!("fallback"), &json!("drop")));
}

#[test]
fn routes_have_the_keys_of_the_contract_and_null_for_what_is_absent() {
    let rows = serde_json::to_value(sample_routes()).expect("rows are JSON");
    let expected =
        json!({"dst": "10.244.1.0/24", "via": null, "dev": "", "port": null, "source": "no_pod"});
    assert_eq!(rows[1], expected);
}

#[test]
fn status_has_the_keys_of_the_contract() {
    let status = serde_json::to_value(sample().status).expect("a status is JSON");
    for key in ["version", "ready", "workers", "port_mode", "features", "node_addresses"] {
        assert!(!status[key].is_null(), "{key} is missing");
    }
    let worker = &status["workers"][0];
    assert_eq!(worker["id"], 0);
    assert_eq!(worker["core"], 2);
    assert_eq!(worker["busy_ratio"], 0.4375);
    assert_eq!(worker["busy_ns"], 43_750_000_000_u64);
    assert_eq!(keys(&worker["frames"]), ["crossing", "free", "held", "rx", "total", "tx"]);
}

#[test]
fn names_of_enums_are_the_words_of_the_json() {
    let word = |value: serde_json::Value| value.as_str().expect("a word").to_owned();
    for state in [PodState::Userspace, PodState::Fallback] {
        assert_eq!(word(json!(state)), state.name());
    }
    for action in [FallbackAction::Pass, FallbackAction::Drop] {
        assert_eq!(word(json!(action)), action.name());
    }
    for mode in [PortMode::Full, PortMode::Basic] {
        assert_eq!(word(json!(mode)), mode.name());
    }
    for kind in [PortKind::Pod, PortKind::Node, PortKind::Uplink] {
        assert_eq!(word(json!(kind)), kind.name());
    }
    for way in [Direction::FromPod, Direction::ToPod] {
        assert_eq!(word(json!(way)), way.name());
    }
    let features = serde_json::to_value(sample().status.features).expect("an object");
    for (name, has) in sample().status.features.named() {
        assert_eq!(features[name], has);
    }
}

#[test]
fn a_reader_fills_in_what_an_older_daemon_does_not_say() {
    let old: Status = serde_json::from_value(json!({
        "version": "0.0.9", "ready": true, "workers": [{"id": 3, "core": 1, "busy_ratio": 0.5}],
        "a_key_of_the_future": 1,
    }))
    .expect("keys may be missing, and unknown ones are no error");
    assert_eq!(old.workers[0].id, 3);
    assert_eq!(old.uptime_s, 0);
}

#[test]
fn a_direction_shows_its_counters_and_only_the_drops_that_happened() {
    let counters = DirectionCounters::default();
    counters.packets.add(3);
    counters.bytes.add(180_000);
    counters.wire_packets.add(120);
    counters.wire_bytes.add(187_000);
    counters.drop(DropReason::NoPod);
    counters.drop(DropReason::NoPod);
    let row = DirectionRow::from(&counters);
    assert_eq!((row.packets, row.bytes), (3, 180_000));
    assert_eq!((row.wire_packets, row.wire_bytes), (120, 187_000));
    assert_eq!(row.drops, BTreeMap::from([("no_pod".to_owned(), 2)]));
    assert_eq!(row.dropped(), 2);
}

#[test]
fn every_drop_has_one_row_with_its_sentence_in_the_order_of_keys() {
    let rows = sample_drops(&sample());
    let seen: Vec<_> = rows
        .iter()
        .map(|row| (row.port, row.pod.as_str(), row.direction, row.reason.as_str(), row.count))
        .collect();
    let (from_pod, to_pod) = (Direction::FromPod, Direction::ToPod);
    assert_eq!(
        seen,
        [
            (None, "", from_pod, "fallback_source_mac", 9),
            (None, "", to_pod, "port_down", 1),
            (Some(0), "viaduct1", to_pod, "not_ours", 3),
            (Some(1), "vdcart-7d9f", from_pod, "no_pod", 17),
            (Some(1), "vdcart-7d9f", from_pod, "ttl_expired", 2),
        ]
    );
    assert!(rows.iter().all(|row| !row.sentence.is_empty()));
    assert!(rows.is_sorted_by(|one, next| one.key() < next.key()), "no two have one key");
}

#[test]
fn a_drop_for_a_reason_of_another_release_has_no_sentence() {
    let row = direction(1, 60, &[("a_reason_of_the_future", 1)]);
    let rows = drop_rows(7, "shop/cart", &DirectionRow::default(), &row);
    assert_eq!((rows[0].port, rows[0].sentence.as_str()), (Some(7), ""));
    let counts: FallbackCounts = [("an_outcome_of_the_future", 1)].into_iter().collect();
    let [row] = &counts.drop_rows()[..] else { panic!("what may be a drop is shown") };
    assert_eq!(
        (row.reason.as_str(), row.sentence.as_str()),
        ("fallback_an_outcome_of_the_future", "")
    );
}

#[test]
fn what_the_kernel_got_is_told_from_what_nobody_got() {
    let counts = sample().status.fallback_packets;
    assert_eq!(counts.passed(), 123);
    assert_eq!(counts.refused().collect::<Vec<_>>(), [("source_mac", 9)], "only what happened");
    let status = serde_json::to_value(sample().status).expect("a status is JSON");
    let expected = json!({"passed": 120, "unknown_port": 3, "arp": 0, "source_mac": 9});
    assert_eq!(status["fallback_packets"], expected);
}

#[test]
fn a_look_in_the_middle_of_a_pass_is_repeated_and_a_real_loss_shows() {
    let counters = WorkerCounters::default();
    counters.received.add(64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The pass ends while the reader looks.
            sleep(Duration::from_micros(200));
            counters.sent.add(63);
            counters.dropped.add(1);
        });
        // The thread may start late; a reader that looks for 1 ms at a time sees it in the end.
        let seen = (0..2000).map(|_| PacketsRow::read(&counters)).find(PacketsRow::conserved);
        assert_eq!(seen.expect("the pass ended").sent, 63);
    });
    counters.received.add(1);
    assert!(!PacketsRow::read(&counters).conserved());
    counters.frames_total.set(10);
    counters.frames_free.set(9);
    assert!(!FramesRow::read(&counters).conserved());
    counters.frames_crossing.set(1);
    assert!(FramesRow::read(&counters).conserved());
}

#[test]
fn a_pod_is_called_by_what_its_runtime_tells_of_it() {
    let titled = |namespace: &str, name: &str| {
        let container_id = "0123456789abcdef".to_owned();
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        PodRow { container_id, namespace, name, ..PodRow::default() }.title()
    };
    assert_eq!(titled("shop", "web-0"), "shop/web-0");
    assert_eq!(titled("", "web-0"), "web-0", "podman gives a name and no namespace");
    assert_eq!(titled("", ""), "0123456789ab");
    assert_eq!(titled("shop", ""), "0123456789ab");
}

#[test]
fn host_ports_have_the_keys_of_the_contract_and_any_address_is_the_unspecified_one() {
    let rows = sample_host_ports();
    let expected = json!({
        "host_ip": "0.0.0.0", "host_port": 8080, "protocol": "tcp", "container_ip": "10.244.1.5",
        "container_port": 80, "container_id": "0123456789abcdef0123456789abcdef",
        "ifname": "eth0",
    });
    assert_eq!(serde_json::to_value(&rows[0]).expect("a row is JSON"), expected);
    let any = HostPortRecord {
        transport: PortProtocol::Sctp,
        address: HostPortAddress::AnyV6,
        port: 9,
        serving: ip("fd00::5"),
        container_port: 9,
    };
    let row = HostPortRow::new(&any, "c", "eth0");
    assert_eq!((row.host_ip, row.protocol.as_str()), (ip("::"), "sctp"));
    assert_eq!(rows[1].host_ip, ip("2001:db8::1"));
}

#[test]
fn limits_have_the_keys_of_the_contract_and_what_came_of_them() {
    let record: PodRecord = serde_json::from_value(json!({
        "attachment": {"network": "viaduct", "container_id": "c", "ifname": "eth0"},
        "netns": "", "netns_inode": 1, "netns_dev": 4, "host_ifname": "vd0", "host_ifindex": 9,
        "mac": [10, 0, 0, 0, 0, 1], "host_mac": [10, 0, 0, 0, 0, 2], "addresses": [],
        "route_mtu": 1500, "worker": 0, "slot": 0, "pod_namespace": "shop", "pod_name": "cart",
        "fallback": "pass", "generation": 1,
    }))
    .expect("a record of an earlier release");
    let counters = DirectionCounters::default();
    for (reason, count) in
        [(DropReason::ShaperFull, 4), (DropReason::ShaperNoFrames, 3), (DropReason::NoPod, 9)]
    {
        (0..count).for_each(|_| counters.drop(reason));
    }
    counters.tokens.set((-1514_i64).cast_unsigned());
    counters.queued_bytes.set(3028);
    counters.marked.add(2);
    let requested = RateRequest { rate_bps: 10_000_000, burst_bits: 80 };
    let applied = Limit { bits_per_s: 10_000_000, burst_bytes: 3028, queue_ns: 25_000_000 };
    let row = |counters| {
        let row = LimitRow::new(&record, LimitDirection::Egress, requested, applied, counters);
        serde_json::to_value(row).expect("a row is JSON")
    };
    let expected = json!({
        "network": "viaduct", "container_id": "c", "ifname": "eth0", "namespace": "shop",
        "name": "cart", "direction": "egress", "requested_bps": 10_000_000,
        "requested_burst_bits": 80, "applied_bps": 10_000_000, "applied_burst_bytes": 3028,
        "tokens_bytes": -1514, "queued_bytes": 3028, "dropped": 7, "marked": 2,
    });
    assert_eq!(row(Some(&counters)), expected);
    let unserved = row(None);
    assert_eq!(unserved["requested_bps"], 10_000_000);
    assert_eq!((&unserved["tokens_bytes"], &unserved["dropped"]), (&json!(0), &json!(0)));
}

#[test]
fn flows_have_the_keys_of_the_contract() {
    let end = |address: &str, port| Endpoint { address: ip(address), port };
    let parts = || TableParts {
        records: Records::format(Arc::new(Words::anonymous(Records::words(4)).unwrap()), [1, 2]),
        flows_per_owner: 4,
        source_ports: 1024..=65535,
        seed: HashSeed([1, 2]),
        counters: Arc::default(),
    };
    let mut table = FlowTable::new(parts());
    table.admit_owner(PortId(200), 1);
    let asked = end("192.0.2.1", 8080);
    let original =
        FlowKey { transport: Transport::Udp, src: end("10.244.1.5", 40_000), dst: asked };
    let (serving, source) = (end("10.244.1.5", 80), Source::Asked);
    let replies = Replies::ByNode;
    let new = NewFlow { owner: PortId(200), original, serving, source, replies };
    table.open(&new, &Signal::Udp, 9_000_000_000).expect("there is room");
    let flow = table.records().iter().next().expect("it is there");
    let row = FlowRow::new(&flow, 3, 70, "c", "eth0");
    let expected = json!({
        "protocol": "udp", "src": "10.244.1.5", "sport": 40_000, "dst": "192.0.2.1", "dport": 8080,
        "nat_src": "192.0.2.1", "nat_sport": 40_000, "nat_dst": "10.244.1.5", "nat_dport": 80,
        "state": "unanswered", "replies": "node", "idle_s": 61, "worker": 3,
        "container_id": "c", "ifname": "eth0",
    });
    assert_eq!(serde_json::to_value(row).expect("a row is JSON"), expected);
    let counters = FlowCounters::default();
    counters.refused_quota.add(2);
    let row = FlowsRow::read(&counters, 4, 5);
    assert_eq!((row.room, row.refused_quota, row.icmp_errors, row.entries), (4, 2, 5, 0));
}
