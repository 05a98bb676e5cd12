//! Table `inet viaduct` in a real kernel: what `nft` lists is what was asked for, nobody else's
//! tables change, and connections of pods work while a worker lives and while none does.
//!
//! Every test builds its own network namespaces and removes them, also when it fails. What is there
//! for host ports is tested in `nft_host_ports.rs`.

mod nft_network;

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use control::nft::{NftConfig, NftError, NftMonitor, NftTable};
use ipnet::IpNet;
use nft_network::{
    DEADLINE, NODE, NODE_PORT, Namespace, Network, OUTSIDE, PATIENCE, POD_A, POD_B, POD_PORT,
    REMOTE, SERVICE, SERVICE_PORT, Transport, Worker, config, connect, exchange, open_stream, seen,
    usual_config,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::{Value, json};

// -------------------------------------------------------------------------------- the table

/// The objects of our table as `nft` lists them, of one kind (`set`, `chain`, `rule`).
fn listed(namespace: &Namespace, kind: &str) -> Vec<Value> {
    let text = namespace.shell("nft -j -s list table inet viaduct");
    let all: Value = serde_json::from_str(&text).unwrap();
    let objects = all["nftables"].as_array().unwrap();
    objects.iter().filter_map(|object| object.get(kind).cloned()).collect()
}

fn elements(namespace: &Namespace, set: &str) -> Value {
    let sets = listed(namespace, "set");
    sets.into_iter().find(|listed| listed["name"] == set).unwrap()["elem"].take()
}

fn has_element(namespace: &Namespace, set: &str, address: &str) -> bool {
    namespace.inside(|| {
        let element = format!("{{ {address} }}");
        let arguments = ["get", "element", "inet", "viaduct", set, &element];
        Command::new("nft").args(arguments).output().unwrap().status.success()
    })
}

fn prefix(address: &str, len: u8) -> Value {
    json!({"prefix": {"addr": address, "len": len}})
}

fn equals(left: Value, right: &str) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn differs(left: Value, right: &str) -> Value {
    json!({"match": {"op": "!=", "left": left, "right": right}})
}

fn address(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

#[test]
#[ignore = "needs root"]
fn the_kernel_lists_what_was_asked_for() {
    let namespace = Namespace::new("list");
    namespace.inside(|| NftTable::open().unwrap().ensure(&usual_config()).unwrap());

    assert_eq!(elements(&namespace, "pods4"), json!([prefix("10.244.1.0", 24)]));
    assert_eq!(elements(&namespace, "direct4"), json!([prefix("10.244.0.0", 16)]));
    assert_eq!(elements(&namespace, "pods6"), json!([prefix("fd00:10:244:1::", 64)]));
    assert_eq!(elements(&namespace, "direct6"), json!([prefix("fd00:10:244::", 48)]));

    let chains = listed(&namespace, "chain");
    let hooks: Vec<_> = chains
        .iter()
        .map(|chain| (&chain["name"], &chain["type"], &chain["prio"], &chain["policy"]))
        .collect();
    let (pre, post) = (json!("prerouting"), json!("postrouting"));
    let accept = json!("accept");
    let host_ports = ["guard", "host_ports", "host_ports_output"].map(|name| json!(name));
    let (filter, nat) = (json!("filter"), json!("nat"));
    assert_eq!(
        hooks,
        [
            (&pre, &filter, &json!(-450), &accept),
            (&post, &nat, &json!(100), &accept),
            (&host_ports[0], &filter, &json!(-150), &accept),
            (&host_ports[1], &nat, &json!(-105), &accept),
            (&host_ports[2], &nat, &json!(-105), &accept),
        ]
    );
    assert_eq!(chains[0]["hook"], pre);
    assert_eq!(chains[1]["hook"], post);
}

/// Whether a rule is one of those that only host ports need.
fn for_host_ports(rule: &Value) -> bool {
    let comment = rule["comment"].as_str().unwrap();
    let chain = rule["chain"].as_str().unwrap();
    let last = ["workers' answers of host ports", "no pod reaches 127.0.0.1 of the node"];
    !["prerouting", "postrouting"].contains(&chain)
        || comment.starts_with("host ports:")
        || last.contains(&comment)
}

#[test]
#[ignore = "needs root"]
fn the_rules_are_those_of_the_design() {
    let namespace = Namespace::new("rules");
    namespace.inside(|| NftTable::open().unwrap().ensure(&usual_config()).unwrap());
    let rules = listed(&namespace, "rule");
    let of_pods = |rule: &&Value| !for_host_ports(rule);
    let of_pods = rules.iter().filter(of_pods);
    let found: Vec<_> = of_pods.map(|rule| (&rule["chain"], &rule["expr"])).collect();
    let meta = |key: &str| json!({"meta": {"key": key}});
    let untrack = json!([equals(meta("iifname"), "viaduct1"), {"notrack": null}]);
    let (pre, post) = (json!("prerouting"), json!("postrouting"));
    let mut expected = vec![(pre, untrack)];
    for (protocol, pods, direct) in [("ip", "@pods4", "@direct4"), ("ip6", "@pods6", "@direct6")] {
        let from_pods = equals(address(protocol, "saddr"), pods);
        let translated = json!({"match":
            {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}});
        let elsewhere = differs(address(protocol, "daddr"), direct);
        let outwards = differs(meta("oifname"), "viaduct0");
        let (counter, masquerade) = (json!({"counter": null}), json!({"masquerade": null}));
        expected.push((post.clone(), json!([from_pods, translated, counter, masquerade])));
        expected.push((post.clone(), json!([from_pods, elsewhere, outwards, counter, masquerade])));
    }
    let expected: Vec<_> = expected.iter().map(|(chain, rule)| (chain, rule)).collect();
    assert_eq!(found, expected);
    assert!(rules.iter().all(|rule| rule["comment"].is_string()), "{rules:?}");
}

#[test]
#[ignore = "needs root"]
fn overlapping_adjacent_and_extreme_prefixes_make_sets() {
    let namespace = Namespace::new("sets");
    let pods = ["10.0.1.0/24", "10.0.2.0/24", "10.0.1.128/25", "10.0.1.0/24", "::/0"];
    let mut config = config(&pods, &["0.0.0.0/1", "128.0.0.0/1", "fd00::/8", "ffff::/16"]);
    config.kernel = vec!["192.0.2.0/24".parse().unwrap()];
    let mut table = namespace.inside(|| NftTable::open().unwrap());
    table.ensure(&config).unwrap();

    for (set, inside, outside) in [
        ("pods4", vec!["10.0.1.0", "10.0.1.200", "10.0.2.255"], vec!["10.0.0.255", "10.0.3.0"]),
        ("pods6", vec!["::", "fd00::1", "ffff:ffff::"], vec![]),
        (
            "direct4",
            vec!["0.0.0.0", "192.0.1.255", "192.0.3.0", "255.255.255.255"],
            vec!["192.0.2.0", "192.0.2.255"],
        ),
        ("direct6", vec!["fd00::", "fdff::1", "ffff::1"], vec!["fc00::", "fe00::", "fffe::"]),
    ] {
        for address in inside {
            assert!(has_element(&namespace, set, address), "{address} should be in {set}");
        }
        for address in outside {
            assert!(!has_element(&namespace, set, address), "{address} should not be in {set}");
        }
    }
    config.pod_cidrs.clear();
    config.direct.clear();
    table.ensure(&config).unwrap();
    assert_eq!(elements(&namespace, "direct4"), Value::Null);
}

#[test]
#[ignore = "needs root"]
fn pods_that_come_and_go_leave_the_sets_that_a_new_table_would_have() {
    let [ours, anew] = ["step", "anew"].map(Namespace::new);
    let [mut table, mut other] = [&ours, &anew].map(|n| n.inside(|| NftTable::open().unwrap()));
    let mut now = usual_config();
    table.ensure(&now).unwrap();
    let handle = |namespace: &Namespace| {
        let text = namespace.shell("nft -a list table inet viaduct");
        text.lines().next().filter(|line| line.contains("# handle ")).unwrap().to_owned()
    };
    let first = handle(&ours);
    // Alone, beside others and between them, at both ends, into a prefix, all at once and none.
    for pods in [
        &["192.0.2.1", "2001:db8::1"][..],
        &["192.0.2.1", "192.0.2.3", "2001:db8::1", "2001:db8::3"],
        &["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2", "2001:db8::3"],
        &["192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::3"],
        &["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "2001:db8::3"],
        &["192.0.2.2", "192.0.2.4", "0.0.0.0", "255.255.255.255"],
        &["255.255.255.254", "255.255.255.255", "10.244.2.0", "10.244.0.255"],
        &["255.255.255.255", "10.244.2.0", "10.244.1.7"],
        &["10.244.2.0"],
        &["10.244.2.0"],
        &[],
    ] {
        let mut after = usual_config();
        let prefix = |text: &&str| IpNet::from(text.parse::<IpAddr>().unwrap());
        after.pod_cidrs.extend(pods.iter().map(prefix));
        table.change_pods(&now.pod_cidrs, &after.pod_cidrs).unwrap();
        other.ensure(&after).unwrap();
        let [found, wanted] = [&ours, &anew].map(|n| n.shell("nft -s list table inet viaduct"));
        assert_eq!(found, wanted, "{pods:?}");
        now = after;
    }
    assert_eq!(handle(&ours), first, "the table is the same one");

    // Where the table is not what it was, nothing is changed, and the caller is told.
    let (usual, more) = (usual_config().pod_cidrs, "192.0.2.9/32".parse().unwrap());
    let before = ours.shell("nft -s list table inet viaduct");
    let refused = table.change_pods(&[&usual[..], &[more]].concat(), &usual).unwrap_err();
    assert!(matches!(refused, NftError::Changed { .. }), "{refused}");
    assert_eq!(ours.shell("nft -s list table inet viaduct"), before);
}

#[test]
#[ignore = "needs root"]
fn thousands_of_prefixes_fit_one_batch() {
    let namespace = Namespace::new("many");
    let mut config = usual_config();
    config.direct = (0..8000u32)
        .map(|index| format!("{}.{}.0.0/24", index / 250 + 11, index % 250))
        .chain((0..8000u32).map(|index| format!("fd00:{:x}::/64", index * 2)))
        .map(|text| text.parse().unwrap())
        .collect();
    namespace.inside(|| NftTable::open().unwrap().ensure(&config).unwrap());
    assert!(has_element(&namespace, "direct4", "11.3.0.7"));
    assert!(has_element(&namespace, "direct6", "fd00:3e7e::7"));
    assert!(!has_element(&namespace, "direct6", "fd00:3e7d::7"));
}

#[test]
#[ignore = "needs root"]
fn tables_of_others_stay_untouched() {
    let namespace = Namespace::new("others");
    namespace.shell(
        "nft add table inet viaduct2; nft add table ip viaduct; nft add chain ip viaduct c; \
         nft add rule ip viaduct c counter accept",
    );
    let before = namespace.shell("nft -a list ruleset");
    let mut table = namespace.inside(|| NftTable::open().unwrap());
    assert!(!table.present().unwrap());
    table.remove().unwrap();
    for _ in 0..3 {
        table.ensure(&usual_config()).unwrap();
    }
    assert!(table.present().unwrap());
    let with_ours = namespace.shell("nft -a list ruleset");
    assert_eq!(with_ours.matches("table inet viaduct {").count(), 1);
    assert!(with_ours.starts_with(&before));
    table.remove().unwrap();
    table.remove().unwrap();
    assert!(!table.present().unwrap());
    assert_eq!(namespace.shell("nft -a list ruleset"), before);
}

#[test]
#[ignore = "needs root"]
fn ensure_replaces_what_strangers_left_in_our_table() {
    let namespace = Namespace::new("stale");
    namespace.shell(
        "nft add table inet viaduct; nft add chain inet viaduct old '{ type filter hook input \
         priority 0; policy drop; }'; nft add set inet viaduct pods4 '{ type ipv6_addr; }'",
    );
    namespace.inside(|| NftTable::open().unwrap().ensure(&usual_config()).unwrap());
    assert_eq!(listed(&namespace, "chain").len(), 5);
    assert_eq!(elements(&namespace, "pods4"), json!([prefix("10.244.1.0", 24)]));
}

// ------------------------------------------------------------------------------- the monitor

/// Whether the monitor's descriptor becomes readable within `patience`.
fn readable(monitor: &NftMonitor, patience: Duration) -> bool {
    let descriptor = monitor.as_fd();
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let timeout = Timespec::try_from(patience).unwrap();
    rustix::event::poll(&mut polled, Some(&timeout)).unwrap() == 1
}

#[test]
#[ignore = "needs root"]
fn what_others_do_to_our_table_is_noticed_and_mended() {
    let namespace = Namespace::new("watch");
    let (mut table, mut monitor) = namespace.inside(|| {
        let table = NftTable::open().unwrap();
        let monitor = table.monitor().unwrap();
        (table, monitor)
    });
    table.ensure(&usual_config()).unwrap();
    let intact = namespace.shell("nft -s list table inet viaduct");
    assert!(readable(&monitor, DEADLINE));
    assert!(!monitor.changed().unwrap(), "our own change was taken for another's");

    for change in [
        "nft flush ruleset",
        "nft delete table inet viaduct",
        "nft flush table inet viaduct",
        "nft flush chain inet viaduct postrouting",
        "nft add element inet viaduct pods4 '{ 10.9.0.0/16 }'",
    ] {
        namespace.shell(change);
        assert!(readable(&monitor, DEADLINE), "{change}");
        assert!(monitor.changed().unwrap(), "{change} was not noticed");
        table.ensure(&usual_config()).unwrap();
        assert!(!monitor.changed().unwrap());
        assert_eq!(namespace.shell("nft -s list table inet viaduct"), intact, "after {change}");
    }
}

#[test]
#[ignore = "needs root"]
fn what_others_do_to_their_tables_is_not_our_concern() {
    let namespace = Namespace::new("ignore");
    let (mut table, mut monitor) = namespace.inside(|| {
        let table = NftTable::open().unwrap();
        let monitor = table.monitor().unwrap();
        (table, monitor)
    });
    table.ensure(&usual_config()).unwrap();
    assert!(!monitor.changed().unwrap());
    namespace.shell("nft add table inet viaduct2; nft add table ip viaduct; nft list ruleset");
    assert!(readable(&monitor, DEADLINE));
    assert!(!monitor.changed().unwrap());
    namespace.shell("nft delete table ip viaduct; nft delete table inet viaduct2");
    assert!(!monitor.changed().unwrap());
    table.remove().unwrap();
    assert!(!monitor.changed().unwrap());
}

#[test]
#[ignore = "needs root"]
fn notifications_that_were_lost_count_as_a_change() {
    let namespace = Namespace::new("overrun");
    let mut monitor = namespace.inside(|| NftTable::open().unwrap().monitor().unwrap());
    set_socket_recv_buffer_size(&monitor, 64 << 10).unwrap();
    // Each element is announced; together they exceed the monitor's receive buffer.
    namespace.shell(
        "{ echo 'table ip other { set many { type ipv4_addr; elements = {'
           for high in {0..80}; do printf \"10.$high.%d.1,\" {0..255}; done
           echo '}; }; }'; } | nft -f -",
    );
    assert!(monitor.changed().unwrap());
    assert!(!monitor.changed().unwrap());
}

// ------------------------------------------------------------------------------- connections

fn plain_traffic_is_translated_only_where_it_leaves_the_pod_network(worker: Worker) {
    let network = Network::new(worker);
    let Network { node, pod_a, pod_b, outside, .. } = &network;
    let to_pod_b = ((POD_B, POD_PORT), (pod_b, POD_B));
    let to_outside = ((OUTSIDE, POD_PORT), (outside, OUTSIDE));
    let to_remote = ((REMOTE, POD_PORT), (outside, REMOTE));
    let to_node = ((NODE, POD_PORT), (node, NODE));
    for (from, (target, server), source) in [
        (pod_a, to_outside, NODE),
        (pod_a, to_remote, POD_A),
        (pod_a, to_pod_b, POD_A),
        (pod_a, to_node, POD_A),
        (node, to_pod_b, NODE),
        (outside, to_pod_b, OUTSIDE),
    ] {
        let result = network.sources(from, target, server);
        assert_eq!(result, seen(source), "{} to {target:?}", from.name);
    }
}

#[test]
#[ignore = "needs root"]
fn a_living_worker_keeps_the_addresses_of_pods_but_not_towards_the_outside() {
    plain_traffic_is_translated_only_where_it_leaves_the_pod_network(Worker::Alive);
}

#[test]
#[ignore = "needs root"]
fn without_a_worker_the_same_addresses_are_kept() {
    plain_traffic_is_translated_only_where_it_leaves_the_pod_network(Worker::Dead);
}

#[test]
#[ignore = "needs root"]
fn without_masquerade_pods_leave_with_their_own_address() {
    let mut network = Network::new(Worker::Alive);
    network.table.ensure(&NftConfig { masquerade: false, ..usual_config() }).unwrap();
    let Network { pod_a, pod_b, outside, .. } = &network;
    let plain = network.sources(pod_a, (OUTSIDE, POD_PORT), (outside, OUTSIDE));
    assert_eq!(plain, seen(POD_A));
    let service = network.sources(pod_a, (SERVICE, SERVICE_PORT), (pod_b, POD_B));
    assert_eq!(service, seen(NODE));
}

fn services_work(worker: Worker) {
    let network = Network::new(worker);
    let Network { node, pod_a, pod_b, outside, .. } = &network;
    for (from, target, source) in [
        (pod_a, (SERVICE, SERVICE_PORT), NODE),
        (pod_b, (SERVICE, SERVICE_PORT), NODE),
        (node, (SERVICE, SERVICE_PORT), NODE),
        (pod_a, (NODE, NODE_PORT), NODE),
        (outside, (NODE, NODE_PORT), OUTSIDE),
    ] {
        let result = network.sources(from, target, (pod_b, POD_B));
        assert_eq!(result, seen(source), "{} to {target:?}", from.name);
    }
}

#[test]
#[ignore = "needs root"]
fn services_with_a_local_backend_work_while_a_worker_lives() {
    services_work(Worker::Alive);
}

#[test]
#[ignore = "needs root"]
fn services_with_a_local_backend_work_while_no_worker_lives() {
    services_work(Worker::Dead);
}

#[test]
#[ignore = "needs root"]
fn open_connections_outlive_the_worker() {
    let mut network = Network::new(Worker::Alive);
    let mut streams = Vec::new();
    for side in [0, 1] {
        let Network { pod_a, pod_b, outside, .. } = &network;
        let backend = (pod_b, POD_B[side], POD_PORT);
        for (from, target, server) in [
            (pod_a, (SERVICE[side], SERVICE_PORT), backend),
            (pod_b, (SERVICE[side], SERVICE_PORT), backend),
            (pod_a, (POD_B[side], POD_PORT), backend),
            (outside, (NODE[side], NODE_PORT), backend),
            (pod_a, (OUTSIDE[side], POD_PORT), (outside, OUTSIDE[side], POD_PORT)),
        ] {
            let mut stream = open_stream(from, target, server).unwrap();
            exchange(&mut stream, PATIENCE).unwrap();
            streams.push((target, stream));
        }
    }
    network.kill_worker();
    for (target, stream) in &mut streams {
        // TCP repeats what was lost while the devices moved.
        exchange(stream, DEADLINE).unwrap_or_else(|error| panic!("to {target:?}: {error}"));
    }
}

/// The proof that each of the two chains is needed: without it, the same connection fails.
#[test]
#[ignore = "needs root"]
fn a_service_breaks_without_the_chain_that_mends_it() {
    for (worker, chain) in [(Worker::Alive, "postrouting"), (Worker::Dead, "prerouting")] {
        let mut network = Network::new(worker);
        let reach = |network: &Network, side: usize| {
            let server = (&network.pod_b, POD_B[side], POD_PORT);
            let target = (SERVICE[side], SERVICE_PORT);
            connect(Transport::Tcp, &network.pod_a, target, server)
        };
        network.node.shell(&format!("nft flush chain inet viaduct {chain}"));
        for side in [0, 1] {
            let broken = reach(&network, side);
            assert!(broken.is_err(), "{worker:?} without {chain}: {broken:?}");
        }
        network.table.ensure(&usual_config()).unwrap();
        for side in [0, 1] {
            reach(&network, side).unwrap();
        }
    }
}
