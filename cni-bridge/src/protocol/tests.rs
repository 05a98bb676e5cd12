//! Shim and daemon of neighbouring releases: what the one leaves out, the other must read.

use serde_json::json;

use super::*;

fn attachment() -> serde_json::Value {
    json!({"network": "n", "container_id": "c1", "ifname": "eth0"})
}

#[test]
fn requests_of_a_shim_without_host_ports_are_read() {
    let add = json!({"version": 1, "call": {"add": {
        "attachment": attachment(), "netns": "/run/netns/p", "mac": null, "mtu": null,
        "addressing": {"embedded": {"requested": [], "ranges": []}}, "routes": [],
        "pod_namespace": "", "pod_name": "",
    }}});
    let Call::Add(request) = serde_json::from_value::<Request>(add).unwrap().call else {
        panic!("it is an ADD")
    };
    assert_eq!((request.port_mappings.len(), request.snat, request.masq_all), (0, None, false));
    let check = json!({"version": 1, "call": {"check": {
        "attachment": attachment(), "addresses": [], "mac": null, "host_ifname": null,
        "routes": [],
    }}});
    let Call::Check(request) = serde_json::from_value::<Request>(check).unwrap().call else {
        panic!("it is a CHECK")
    };
    assert!(request.port_mappings.is_empty());
}

#[test]
fn a_reply_of_a_daemon_without_host_ports_says_that_it_read_none() {
    let reply = json!({"added": {
        "host_ifname": "vd0", "host_mac": "0a:00:00:00:00:01", "mac": "0a:00:00:00:00:02",
        "mtu": 1500, "addresses": [],
    }});
    let Reply::Added(reply) = serde_json::from_value(reply).unwrap() else {
        panic!("it is the reply to an ADD")
    };
    assert_eq!(reply.port_mappings, 0);
}

#[test]
fn a_mapping_is_written_as_the_next_release_will_read_it() {
    let mapping = PortMapping {
        host_ip: Some("192.0.2.1".parse().unwrap()),
        host_port: 8080,
        container_port: 80,
        protocol: PortProtocol::Sctp,
    };
    let golden = json!({
        "host_ip": "192.0.2.1", "host_port": 8080, "container_port": 80, "protocol": "sctp",
    });
    assert_eq!(serde_json::to_value(mapping).unwrap(), golden);
    for protocol in PortProtocol::ALL {
        assert_eq!(serde_json::to_value(protocol).unwrap(), protocol.as_str());
    }
}
