//! Tests of what needs neither daemon nor namespace: results, VERSION, panics. The rest is in
//! `tests/`, with the program itself.

use super::*;
use crate::protocol::{AddReply, Attachment, Bandwidth, PodAddress};
use crate::shim::attach::Made;
use crate::spec::CniResult;
use crate::spec::result::{Dns, Interface, Ip, Route};

fn environment() -> Environment {
    Environment {
        container_id: "c1".to_owned(),
        ifname: "eth0".to_owned(),
        netns: "/run/netns/pod".to_owned(),
        ..Environment::default()
    }
}

fn reply(addresses: &[(&str, u8, Option<&str>)]) -> AddReply {
    let address = |(address, prefix_len, gateway): &(&str, u8, Option<&str>)| PodAddress {
        address: address.parse().unwrap(),
        prefix_len: *prefix_len,
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
    };
    AddReply {
        host_ifname: "vd00".to_owned(),
        host_mac: "0a:00:00:00:00:01".to_owned(),
        mac: "0a:00:00:00:00:02".to_owned(),
        mtu: 1500,
        addresses: addresses.iter().map(address).collect(),
        port_mappings: 0,
        bandwidth: Bandwidth::default(),
    }
}

fn made<'a>(environment: &'a Environment, reply: &'a AddReply) -> Made<'a> {
    Made { environment, reply, routes: Vec::new(), dns: Dns::default() }
}

#[test]
fn a_dual_stack_result_has_both_interfaces_and_both_default_routes() {
    let environment = environment();
    let reply = reply(&[("10.244.1.5", 24, None), ("fd00::5", 64, Some("fd00::1"))]);
    let result = attach::result(CniResult::default(), made(&environment, &reply));
    let golden = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "vd00", "mac": "0a:00:00:00:00:01"},
            {"name": "eth0", "mac": "0a:00:00:00:00:02", "mtu": 1500, "sandbox": "/run/netns/pod"},
        ],
        "ips": [
            {"address": "10.244.1.5/24", "gateway": "169.254.1.1", "interface": 1},
            {"address": "fd00::5/64", "gateway": "fd00::1", "interface": 1},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::1"},
        ],
    });
    assert_eq!(result.render(CniVersion::V1_1_0), golden);
}

#[test]
fn a_pod_of_one_family_has_only_that_default_route() {
    let environment = environment();
    let reply = reply(&[("fd00::5", 64, None)]);
    let result = attach::result(CniResult::default(), made(&environment, &reply));
    let dsts: Vec<&str> = result.routes.iter().map(|route| route.dst.as_str()).collect();
    assert_eq!(dsts, ["::/0"]);
}

#[test]
fn a_chained_result_is_appended_to_and_its_indices_stay_right() {
    let environment = environment();
    let reply = reply(&[("10.244.1.5", 24, None)]);
    let earlier = Interface {
        name: "net1".to_owned(),
        sandbox: "/run/netns/pod".to_owned(),
        ..Interface::default()
    };
    let previous = CniResult {
        interfaces: vec![earlier.clone()],
        ips: vec![Ip { address: "192.0.2.1/24".to_owned(), gateway: None, interface: Some(0) }],
        routes: vec![Route { dst: "192.0.2.0/24".to_owned(), ..Route::default() }],
        dns: Dns { domain: "earlier".to_owned(), ..Dns::default() },
    };
    let ours = Dns { domain: "ours".to_owned(), ..Dns::default() };
    let made = Made { dns: ours, ..made(&environment, &reply) };
    let result = attach::result(previous.clone(), made);
    assert_eq!(result.interfaces[0], earlier);
    assert_eq!(result.ips[0], previous.ips[0]);
    assert_eq!(result.ips[1].interface, Some(2));
    assert_eq!(result.interfaces[2].name, "eth0");
    assert_eq!(result.routes[0], previous.routes[0]);
    assert_eq!(result.dns.domain, "earlier");
}

#[test]
fn routes_of_ipam_follow_ours_and_its_default_is_not_listed_twice() {
    let environment = environment();
    let reply = reply(&[("10.244.1.5", 24, None)]);
    let route = |dst: &str| Route { dst: dst.to_owned(), ..Route::default() };
    let routes = vec![route("0.0.0.0/0"), route("10.96.0.0/12")];
    let made = Made { routes, ..made(&environment, &reply) };
    let result = attach::result(CniResult::default(), made);
    let dsts: Vec<&str> = result.routes.iter().map(|route| route.dst.as_str()).collect();
    assert_eq!(dsts, ["0.0.0.0/0", "10.96.0.0/12"]);
}

#[test]
fn check_finds_its_own_part_of_a_longer_chain() {
    let environment = environment();
    let reply = reply(&[("10.244.1.5", 24, None), ("fd00::5", 64, None)]);
    let mut result = attach::result(CniResult::default(), made(&environment, &reply));
    result.interfaces.push(Interface { name: "ifb0".to_owned(), ..Interface::default() });
    result.ips.push(Ip { address: "192.0.2.1/24".to_owned(), gateway: None, interface: None });
    let attachment = Attachment {
        network: "n".to_owned(),
        container_id: "c1".to_owned(),
        ifname: "eth0".to_owned(),
    };
    let request = inspect::request(&environment, attachment.clone(), &result).unwrap();
    assert_eq!(request.addresses, ["10.244.1.5/24", "fd00::5/64"]);
    assert_eq!(request.mac.as_deref(), Some("0a:00:00:00:00:02"));
    assert_eq!(request.host_ifname.as_deref(), Some("vd00"));
    assert_eq!(request.routes, ["0.0.0.0/0", "::/0"]);

    result.interfaces[1].sandbox = "/run/netns/other".to_owned();
    let error = inspect::request(&environment, attachment, &result).unwrap_err();
    assert_eq!(error.code, code::INVALID_CONFIG);
}

#[test]
fn a_panic_becomes_an_error_object() {
    let outcome = guard(|| panic!("on purpose"));
    let value: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((outcome.status, &value["code"]), (1, &json!(999)));
    assert_eq!(value["cniVersion"], "1.1.0");
}

#[test]
fn version_repeats_the_version_asked_for_and_needs_no_input() {
    let ask = |input: &str| {
        let lookup = |name: &str| (name == "CNI_COMMAND").then(|| OsString::from("VERSION"));
        let outcome = run(Plugin::Viaduct, &lookup, &mut input.as_bytes());
        assert_eq!(outcome.status, 0);
        serde_json::from_str::<Value>(&outcome.stdout).unwrap()
    };
    let supported = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    let golden = |version: &str| json!({"cniVersion": version, "supportedVersions": supported});
    assert_eq!(ask(""), golden("1.1.0"));
    assert_eq!(ask(r#"{"cniVersion":"0.4.0"}"#), golden("0.4.0"));
    assert_eq!(ask(r#"{"cniVersion":"0.2.0"}"#), golden("0.2.0"));
    assert_eq!(ask("nonsense"), golden("1.1.0"));
}
