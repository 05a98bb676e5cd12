//! Shim and daemon of neighbouring releases: what the one leaves out, the other must read.

use serde_json::json;

use super::*;

fn attachment() -> serde_json::Value {
    json!({"network": "n", "container_id": "c1", "ifname": "eth0"})
}

#[test]
fn requests_of_a_shim_without_host_ports_and_limits_are_read() {
    let add = json!({"version": 1, "call": {"add": {
        "attachment": attachment(), "netns": "/run/netns/p", "mac": null, "mtu": null,
        "addressing": {"embedded": {"requested": [], "ranges": []}}, "routes": [],
        "pod_namespace": "", "pod_name": "",
    }}});
    let Call::Add(request) = serde_json::from_value::<Request>(add).unwrap().call else {
        panic!("it is an ADD")
    };
    assert_eq!((request.port_mappings.len(), request.snat, request.masq_all), (0, None, false));
    assert!(request.bandwidth.is_unlimited());
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
fn a_reply_of_a_daemon_without_host_ports_and_limits_says_that_it_read_none() {
    let reply = json!({"added": {
        "host_ifname": "vd0", "host_mac": "0a:00:00:00:00:01", "mac": "0a:00:00:00:00:02",
        "mtu": 1500, "addresses": [],
    }});
    let Reply::Added(reply) = serde_json::from_value(reply).unwrap() else {
        panic!("it is the reply to an ADD")
    };
    assert_eq!(reply.port_mappings, 0);
    assert!(reply.bandwidth.is_unlimited());
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

#[test]
fn limits_are_written_as_the_next_release_will_read_them() {
    let limit = RateRequest { rate_bps: 10_000_000, burst_bits: 4_294_967_295 };
    let bandwidth = Bandwidth { ingress: Some(limit), egress: None };
    let golden = json!({
        "ingress": {"rate_bps": 10_000_000, "burst_bits": 4_294_967_295_u64}, "egress": null,
    });
    assert_eq!(serde_json::to_value(bandwidth).unwrap(), golden);
    let of_one: Bandwidth = serde_json::from_value(json!({"ingress": golden["ingress"]})).unwrap();
    assert_eq!(of_one, bandwidth, "a key that is left out is no limit");

    let set = LimitChange::Set { rate_bps: 1, burst_bits: None };
    let call = Call::SetLimits(LimitsRequest {
        container_id: "c1".to_owned(),
        ifname: None,
        ingress: Some(set),
        egress: Some(LimitChange::Lift),
    });
    let golden = json!({"set_limits": {
        "container_id": "c1", "ifname": null,
        "ingress": {"set": {"rate_bps": 1, "burst_bits": null}}, "egress": "lift",
    }});
    assert_eq!(serde_json::to_value(call).unwrap(), golden);
}
