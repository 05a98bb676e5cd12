//! Results, written per version and read back.

use super::super::result::{Dns, Interface, Ip, Route, parse_cidr};
use super::*;

/// A result that uses every key of the newest version.
fn full() -> CniResult {
    let host = Interface {
        name: "vd0123456789ab".to_owned(),
        mac: "0a:00:00:00:00:01".to_owned(),
        ..Interface::default()
    };
    let container = Interface {
        name: "eth0".to_owned(),
        mac: "0a:00:00:00:00:02".to_owned(),
        mtu: Some(1500),
        sandbox: "/run/netns/pod".to_owned(),
        socket_path: Some("/run/x".to_owned()),
        pci_id: Some("0000:00:01.0".to_owned()),
    };
    let ip = |address: &str, gateway: &str| Ip {
        address: address.to_owned(),
        gateway: Some(gateway.to_owned()),
        interface: Some(1),
    };
    let route = Route {
        dst: "0.0.0.0/0".to_owned(),
        gw: Some("169.254.1.1".to_owned()),
        mtu: Some(1400),
        advmss: Some(1360),
        priority: Some(7),
        table: Some(100),
        scope: Some(0),
    };
    CniResult {
        interfaces: vec![host, container],
        ips: vec![ip("10.244.1.5/24", "169.254.1.1"), ip("fd00::5/64", "fe80::1")],
        routes: vec![route],
        dns: Dns { nameservers: vec!["10.96.0.10".to_owned()], ..Dns::default() },
    }
}

#[test]
fn version_1_1_0_has_every_key() {
    let golden = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "vd0123456789ab", "mac": "0a:00:00:00:00:01"},
            {"name": "eth0", "mac": "0a:00:00:00:00:02", "mtu": 1500, "sandbox": "/run/netns/pod",
             "socketPath": "/run/x", "pciID": "0000:00:01.0"},
        ],
        "ips": [
            {"address": "10.244.1.5/24", "gateway": "169.254.1.1", "interface": 1},
            {"address": "fd00::5/64", "gateway": "fe80::1", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1400, "advmss": 1360,
            "priority": 7, "table": 100, "scope": 0}],
        "dns": {"nameservers": ["10.96.0.10"]},
    });
    assert_eq!(full().render(CniVersion::V1_1_0), golden);
}

#[test]
fn version_1_0_0_drops_the_keys_of_1_1_0() {
    let golden = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "vd0123456789ab", "mac": "0a:00:00:00:00:01"},
            {"name": "eth0", "mac": "0a:00:00:00:00:02", "sandbox": "/run/netns/pod"},
        ],
        "ips": [
            {"address": "10.244.1.5/24", "gateway": "169.254.1.1", "interface": 1},
            {"address": "fd00::5/64", "gateway": "fe80::1", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
        "dns": {"nameservers": ["10.96.0.10"]},
    });
    assert_eq!(full().render(CniVersion::V1_0_0), golden);
}

#[test]
fn versions_before_1_0_0_name_the_family_of_each_address() {
    for version in [CniVersion::V0_3_0, CniVersion::V0_3_1, CniVersion::V0_4_0] {
        let mut golden = full().render(CniVersion::V1_0_0);
        golden["cniVersion"] = json!(version.as_str());
        golden["ips"][0]["version"] = json!("4");
        golden["ips"][1]["version"] = json!("6");
        assert_eq!(full().render(version), golden);
    }
}

#[test]
fn empty_dns_is_left_out_since_1_0_0_and_an_empty_object_before() {
    let result = CniResult { dns: Dns::default(), ..full() };
    assert_eq!(result.render(CniVersion::V1_0_0).get("dns"), None);
    assert_eq!(result.render(CniVersion::V0_4_0).get("dns"), Some(&json!({})));
}

#[test]
fn what_is_written_is_read_back_in_every_version() {
    let newest = full().render(CniVersion::NEWEST);
    assert_eq!(CniResult::from_value(&newest, "it"), Ok(full()));
    for version in CniVersion::ALL {
        let written = full().render(version);
        let read = CniResult::from_value(&written, "it").unwrap();
        assert_eq!(read.render(version), written, "{version}");
    }
}

#[test]
fn nulls_absent_lists_and_an_absent_version_are_read() {
    let value = json!({"interfaces": null, "ips": null, "routes": null, "dns": null});
    assert_eq!(CniResult::from_value(&value, "it"), Ok(CniResult::default()));
    assert_eq!(CniResult::from_value(&json!({}), "it"), Ok(CniResult::default()));
    let value = json!({"dns": {"nameservers": null, "domain": null, "search": ["a"]}});
    assert_eq!(CniResult::from_value(&value, "it").unwrap().dns.search, ["a"]);
}

#[test]
fn a_result_of_a_version_that_is_not_spoken_is_code_1() {
    let value = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/24"}});
    let error = CniResult::from_value(&value, "prevResult").unwrap_err();
    assert_eq!(error.code, code::INCOMPATIBLE_VERSION);
    assert!(error.details.contains("prevResult") && error.details.contains("0.2.0"));
}

#[test]
fn a_malformed_result_is_code_6() {
    for value in [
        json!([]),
        json!("x"),
        json!({"ips": [{"address": "10.0.0.1"}]}),
        json!({"ips": [{}]}),
        json!({"ips": [{"address": "10.0.0.1/24", "interface": 0}]}),
        json!({"ips": [{"address": "10.0.0.1/24", "interface": -1}]}),
        json!({"ips": [{"address": "10.0.0.1/24", "gateway": "x"}]}),
        json!({"routes": [{"gw": "10.0.0.1"}]}),
        json!({"routes": [{"dst": "default"}]}),
        json!({"interfaces": {}}),
    ] {
        let error = CniResult::from_value(&value, "prevResult").unwrap_err();
        assert_eq!(error.code, code::DECODE, "{value}");
        assert!(error.msg.contains("prevResult"));
    }
}

#[test]
fn a_prefix_length_fits_its_family() {
    assert_eq!(parse_cidr("10.0.0.1/32"), Some(("10.0.0.1".parse().unwrap(), 32)));
    assert_eq!(parse_cidr("::1/128"), Some(("::1".parse().unwrap(), 128)));
    for text in ["10.0.0.1/33", "::1/129", "10.0.0.1", "10.0.0.1/-1", "/8", "10.0.0.1/8/8", "a/8"] {
        assert_eq!(parse_cidr(text), None, "{text}");
    }
}
