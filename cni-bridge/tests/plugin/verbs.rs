//! Each verb against a daemon that is there, away, or breaks off.

use std::fs;
use std::os::unix::fs::MetadataExt;

use cni_bridge::protocol::{
    Addressing, Bandwidth, Call, PortMapping, PortProtocol, RateRequest, Reply,
};
use cni_bridge::queue;
use serde_json::json;

use super::fake_daemon::{FakeDaemon, added};
use super::{call, conf, environment, run};

fn own_netns() -> (u64, u64) {
    let file = fs::metadata("/proc/self/ns/net").unwrap();
    (file.dev(), file.ino())
}

#[test]
fn add_sends_the_namespace_and_the_wishes_and_prints_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::willing(dir.path());
    let extra =
        json!({"mtu": 1400, "runtimeConfig": {"ips": ["10.244.1.5"], "portMappings": null}});
    let run = call("ADD", &conf(dir.path(), extra));
    assert!(run.ok, "{}", run.stdout);
    let golden = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "vd0123456789ab", "mac": "0a:00:00:00:00:01"},
            {"name": "eth0", "mac": "0a:00:00:00:00:02", "mtu": 1500,
             "sandbox": "/proc/self/ns/net"},
        ],
        "ips": [
            {"address": "10.244.1.5/24", "gateway": "169.254.1.1", "interface": 1},
            {"address": "fd00::5/64", "gateway": "fe80::1", "interface": 1},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::1"},
        ],
    });
    assert_eq!(run.json(), golden);

    let asked = daemon.asked();
    let [(Call::Add(request), Some(netns))] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(*netns, own_netns());
    assert_eq!(request.attachment.network, "viaduct");
    assert_eq!(request.attachment.container_id, "c1");
    assert_eq!(request.attachment.ifname, "eth0");
    assert_eq!(request.netns, "/proc/self/ns/net");
    assert_eq!((request.pod_namespace.as_str(), request.pod_name.as_str()), ("ns", "web"));
    assert_eq!(request.mtu, Some(1400));
    let requested = vec!["10.244.1.5".parse().unwrap()];
    assert_eq!(request.addressing, Addressing::Embedded { requested, ranges: vec![] });
}

#[test]
fn add_answers_in_the_version_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let _daemon = FakeDaemon::willing(dir.path());
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let result = call("ADD", &conf(dir.path(), json!({"cniVersion": version}))).json();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0].get("version").is_some(), version < "1.0.0", "{version}");
        let mtu = result["interfaces"][1].get("mtu");
        assert_eq!(mtu.is_some(), version == "1.1.0", "{version}");
    }
}

#[test]
fn an_error_of_the_daemon_is_the_plugins_error() {
    let dir = tempfile::tempdir().unwrap();
    let _daemon = FakeDaemon::failing(dir.path(), 117);
    for verb in ["ADD", "DEL", "STATUS"] {
        let run = call(verb, &conf(dir.path(), json!({})));
        assert_eq!(run.code(), 117, "{verb}");
        let error = run.json();
        assert_eq!((&error["msg"], &error["details"]), (&json!("refused"), &json!("d")));
    }
}

#[test]
fn without_a_daemon_add_and_check_are_to_be_tried_again_and_status_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let plain = conf(dir.path(), json!({}));
    assert_eq!(call("ADD", &plain).code(), 11);
    let eth0 = json!({"name": "eth0", "sandbox": "/proc/self/ns/net"});
    let check = conf(dir.path(), json!({"prevResult": {"interfaces": [eth0]}}));
    assert_eq!(call("CHECK", &check).code(), 11);
    assert_eq!(call("STATUS", &plain).code(), 50);
    let gc = conf(dir.path(), json!({"cni.dev/valid-attachments": []}));
    assert_eq!(call("GC", &gc).code(), 11);
}

#[test]
fn a_broken_off_add_is_detached_again_and_to_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::start(dir.path(), |call| match call {
        Call::Add(_) => None,
        _ => Some(Reply::Done),
    });
    assert_eq!(call("ADD", &conf(dir.path(), json!({}))).code(), 11);
    let asked = daemon.asked();
    assert!(matches!(asked.as_slice(), [(Call::Add(_), _), (Call::Del(_), None)]), "{asked:?}");
}

#[test]
fn del_looks_at_neither_namespace_nor_previous_result() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::willing(dir.path());
    let conf = conf(
        dir.path(),
        json!({
            "prevResult": {"ips": "torn"}, "mtu": "none",
            "runtimeConfig": {"portMappings": [{"hostPort": 80}], "mac": 7},
        }),
    );
    for netns in ["", "/run/netns/gone"] {
        let mut pairs = environment("DEL");
        pairs.push(("CNI_NETNS", netns.to_owned()));
        run(&pairs, conf.to_string().as_bytes()).silent();
    }
    assert_eq!(daemon.asked().len(), 2);
    assert!(daemon.asked().iter().all(|(_, descriptor)| descriptor.is_none()));
}

#[test]
fn del_without_a_daemon_succeeds_and_is_queued_once() {
    let dir = tempfile::tempdir().unwrap();
    call("DEL", &conf(dir.path(), json!({}))).silent();
    call("DEL", &conf(dir.path(), json!({}))).silent();
    let waiting = queue::read(&dir.path().join("del-queue"));
    let [(_, request)] = waiting.as_slice() else { panic!("{waiting:?}") };
    assert_eq!(request.attachment.container_id, "c1");
}

#[test]
fn a_queued_del_is_carried_out_before_an_add_of_the_same_attachment() {
    let dir = tempfile::tempdir().unwrap();
    call("DEL", &conf(dir.path(), json!({}))).silent();
    let daemon = FakeDaemon::willing(dir.path());
    assert!(call("ADD", &conf(dir.path(), json!({}))).ok);
    let asked = daemon.asked();
    assert!(matches!(asked.as_slice(), [(Call::Del(_), _), (Call::Add(_), _)]), "{asked:?}");
    assert!(queue::read(&dir.path().join("del-queue")).is_empty());
}

#[test]
fn a_del_that_the_daemon_carries_out_forgets_the_queued_one() {
    let dir = tempfile::tempdir().unwrap();
    call("DEL", &conf(dir.path(), json!({}))).silent();
    let _daemon = FakeDaemon::willing(dir.path());
    call("DEL", &conf(dir.path(), json!({}))).silent();
    assert!(queue::read(&dir.path().join("del-queue")).is_empty());
}

#[test]
fn check_sends_what_the_previous_result_says_of_our_interface() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::willing(dir.path());
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let plain = conf(dir.path(), json!({"cniVersion": version}));
        let result = call("ADD", &plain).json();
        let check = json!({"cniVersion": version, "prevResult": result});
        call("CHECK", &conf(dir.path(), check)).silent();
        let asked = daemon.asked();
        let Some((Call::Check(request), Some(netns))) = asked.last() else { panic!("{asked:?}") };
        assert_eq!(*netns, own_netns());
        assert_eq!(request.addresses, ["10.244.1.5/24", "fd00::5/64"]);
        assert_eq!(request.host_ifname.as_deref(), Some("vd0123456789ab"));
    }
    assert_eq!(call("CHECK", &conf(dir.path(), json!({}))).code(), 7, "no prevResult");
}

#[test]
fn add_sends_the_port_mappings_and_how_their_clients_are_to_be_seen() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::willing(dir.path());
    let entries = json!([
        {"hostPort": 8080, "containerPort": 80, "hostIP": "192.0.2.1"},
        {"containerPort": 81, "hostPort": 0},
        {"hostPort": 53, "containerPort": 53, "protocol": "UDP"},
    ]);
    let wishes = json!({"snat": false, "masqAll": true});
    let runtime = json!({"runtimeConfig": {"portMappings": entries}});
    let both = runtime.as_object().unwrap().clone().into_iter();
    let both = both.chain(wishes.as_object().unwrap().clone()).collect();
    assert!(call("ADD", &conf(dir.path(), both)).ok);
    assert!(call("ADD", &conf(dir.path(), runtime)).ok);
    let asked = daemon.asked();
    let [(Call::Add(asking), _), (Call::Add(plain), _)] = asked.as_slice() else {
        panic!("{asked:?}")
    };
    let mapping = |host_ip: Option<&str>, port, container_port, protocol| PortMapping {
        host_ip: host_ip.map(|text| text.parse().unwrap()),
        host_port: port,
        container_port,
        protocol,
    };
    let tcp = mapping(Some("192.0.2.1"), 8080, 80, PortProtocol::Tcp);
    assert_eq!(asking.port_mappings, [tcp, mapping(None, 53, 53, PortProtocol::Udp)]);
    assert_eq!((asking.snat, asking.masq_all), (Some(false), true));
    assert_eq!((plain.snat, plain.masq_all), (None, false));
    assert_eq!(plain.port_mappings.len(), 2);
}

#[test]
fn ten_thousand_port_mappings_fit_in_one_request() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::willing(dir.path());
    let entry = |port: u16| {
        let entry = json!({"hostPort": port, "containerPort": port, "protocol": "tcp"});
        (entry, port)
    };
    let (entries, ports): (Vec<_>, Vec<_>) = (20_000..30_000).map(entry).unzip();
    let runtime = json!({"runtimeConfig": {"portMappings": entries}});
    let run = call("ADD", &conf(dir.path(), runtime));
    assert!(run.ok, "{}", run.stdout);
    let asked = daemon.asked();
    let [(Call::Add(request), _)] = asked.as_slice() else { panic!("it is one ADD") };
    assert!(request.port_mappings.iter().map(|mapping| mapping.host_port).eq(ports));
}

#[test]
fn a_daemon_too_old_for_port_mappings_is_told_to_detach_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::start(dir.path(), |call| {
        Some(match call {
            Call::Add(_) => Reply::Added(added()),
            _ => Reply::Done,
        })
    });
    let entries = json!([{"hostPort": 8080, "containerPort": 80}]);
    let runtime = json!({"runtimeConfig": {"portMappings": entries}});
    let run = call("ADD", &conf(dir.path(), runtime));
    assert_eq!(run.code(), 102);
    let msg = run.json()["msg"].as_str().unwrap().to_owned();
    assert!(msg.contains("portMappings") && msg.contains("viaduct.sock"), "{msg}");
    let asked = daemon.asked();
    assert!(matches!(asked.as_slice(), [(Call::Add(_), _), (Call::Del(_), None)]), "{asked:?}");
    assert!(call("ADD", &conf(dir.path(), json!({}))).ok, "a pod without any is served");
}

#[test]
fn limits_reach_the_daemon_and_one_that_is_too_old_for_them_is_told_to_detach_and_named() {
    let runtime = json!({"runtimeConfig": {"bandwidth": {
        "ingressRate": 10_000_000, "ingressBurst": 4_294_967_295_u64,
    }}});
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::willing(dir.path());
    assert!(call("ADD", &conf(dir.path(), runtime.clone())).ok);
    let asked = daemon.asked();
    let [(Call::Add(request), _)] = asked.as_slice() else { panic!("{asked:?}") };
    let limit = RateRequest { rate_bps: 10_000_000, burst_bits: 4_294_967_295 };
    assert_eq!(request.bandwidth, Bandwidth { ingress: Some(limit), egress: None });
    drop(daemon);

    let daemon = FakeDaemon::start(dir.path(), |call| {
        Some(match call {
            Call::Add(_) => Reply::Added(added()),
            _ => Reply::Done,
        })
    });
    let run = call("ADD", &conf(dir.path(), runtime));
    assert_eq!(run.code(), 102);
    let msg = run.json()["msg"].as_str().unwrap().to_owned();
    assert!(msg.contains("bandwidth") && msg.contains("viaduct.sock"), "{msg}");
    let asked = daemon.asked();
    assert!(matches!(asked.as_slice(), [(Call::Add(_), _), (Call::Del(_), None)]), "{asked:?}");
}

#[test]
fn nonsense_about_limits_is_refused_by_add_and_nothing_to_other_verbs() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::willing(dir.path());
    let eth0 = json!({"name": "eth0", "sandbox": "/proc/self/ns/net"});
    let nonsense = json!({
        "prevResult": {"interfaces": [eth0]},
        "egressRate": -1,
        "runtimeConfig": {"bandwidth": "fast"},
    });
    let run = call("ADD", &conf(dir.path(), nonsense.clone()));
    assert_eq!(run.code(), 7);
    assert!(daemon.asked().is_empty());
    for verb in ["DEL", "CHECK", "STATUS"] {
        call(verb, &conf(dir.path(), nonsense.clone())).silent();
    }
}

#[test]
fn check_sends_the_port_mappings_and_refuses_those_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::willing(dir.path());
    let eth0 = json!({"name": "eth0", "sandbox": "/proc/self/ns/net"});
    let check = |entries: serde_json::Value| {
        let extra = json!({
            "prevResult": {"interfaces": [eth0]},
            "runtimeConfig": {"portMappings": entries},
        });
        call("CHECK", &conf(dir.path(), extra))
    };
    check(json!([{"hostPort": 8080, "containerPort": 80}, {"containerPort": 81}])).silent();
    check(json!(null)).silent();
    assert_eq!(check(json!([{"hostPort": -1, "containerPort": 80}])).code(), 7);
    let asked = daemon.asked();
    let [(Call::Check(mapped), _), (Call::Check(plain), _)] = asked.as_slice() else {
        panic!("{asked:?}")
    };
    let ports: Vec<_> =
        mapped.port_mappings.iter().map(|m| (m.host_port, m.container_port)).collect();
    assert_eq!(ports, [(8080, 80)]);
    assert!(plain.port_mappings.is_empty());
}

#[test]
fn gc_sends_the_list_and_refuses_to_guess_one() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::willing(dir.path());
    assert_eq!(call("GC", &conf(dir.path(), json!({}))).code(), 7);
    assert!(daemon.asked().is_empty());
    let list = json!([{"containerID": "c1", "ifname": "eth0"}]);
    call("GC", &conf(dir.path(), json!({"cni.dev/valid-attachments": list}))).silent();
    let asked = daemon.asked();
    let [(Call::Gc(request), None)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(request.network, "viaduct");
    assert_eq!(request.valid, [("c1".to_owned(), "eth0".to_owned())]);
}

#[test]
fn status_is_silent_when_the_daemon_is_willing() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::willing(dir.path());
    call("STATUS", &conf(dir.path(), json!({}))).silent();
    assert_eq!(daemon.asked(), [(Call::CniStatus { delegated_ipam: false }, None)]);
}

#[test]
fn verbs_are_refused_for_configurations_older_than_themselves() {
    let dir = tempfile::tempdir().unwrap();
    for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
        let run = call(verb, &conf(dir.path(), json!({"cniVersion": version})));
        assert_eq!(run.code(), 1, "{verb}");
        assert_eq!(run.json()["cniVersion"], version);
    }
}

#[test]
fn only_a_namespace_that_is_not_the_plugins_own_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let _daemon = FakeDaemon::willing(dir.path());
    let conf = conf(dir.path(), json!({})).to_string();
    let add = |netns: &str, allowed: &str| {
        let mut pairs = environment("ADD");
        pairs.push(("CNI_NETNS", netns.to_owned()));
        pairs.push(("CNI_NETNS_OVERRIDE", allowed.to_owned()));
        run(&pairs, conf.as_bytes())
    };
    assert_eq!(add("/proc/self/ns/net", "").code(), 8);
    assert!(add("/proc/self/ns/net", "true").ok);
    assert_eq!(add("/run/netns/gone", "").code(), 4);
    assert_eq!(add("/dev/null", "").code(), 4);
    assert_eq!(add(dir.path().to_str().unwrap(), "").code(), 4);
}
