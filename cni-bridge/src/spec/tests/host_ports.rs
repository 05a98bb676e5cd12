//! The wishes for host ports: entries of the capability, and the keys of portmap.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::protocol::{PortMapping, PortProtocol};

fn parse(extra: Value) -> Result<HostPortOptions, CniError> {
    let conf = conf(extra).unwrap();
    let empty = serde_json::Map::new();
    let runtime = json::object(&conf.map, "runtimeConfig", "runtimeConfig").unwrap();
    HostPortOptions::parse(&conf, runtime.unwrap_or(&empty))
}

fn mappings(entries: Value) -> Result<Vec<PortMapping>, CniError> {
    let conf = conf(json!({"runtimeConfig": {"portMappings": entries}})).unwrap();
    let check = HostPortOptions::check(&conf);
    let add = parse(Value::Object(conf.map)).map(|options| options.mappings);
    assert_eq!(add, check, "ADD and CHECK read the same");
    add
}

fn mapping(host_ip: Option<&str>, host_port: u16, container_port: u16) -> PortMapping {
    let host_ip = host_ip.map(|text| text.parse().unwrap());
    PortMapping { host_ip, host_port, container_port, protocol: PortProtocol::Tcp }
}

/// Code 7, and a sentence that shows the entry.
fn refuses(entry: &Value) {
    let error = mappings(json!([{"hostPort": 1, "containerPort": 1}, entry])).unwrap_err();
    assert_eq!(error.code, 7, "{entry}: {}", error.msg);
    assert!(error.msg.contains(&entry.to_string()), "{entry}: {}", error.msg);
}

#[test]
fn no_entries_however_that_is_said_are_no_wish() {
    for runtime in [
        json!(null),
        json!({}),
        json!({"portMappings": null}),
        json!({"portMappings": []}),
        json!({"portMappings": [null]}),
        json!({"portMappings": [{}]}),
        json!({"portMappings": [{"containerPort": 80}]}),
        json!({"portMappings": [{"hostPort": 0, "containerPort": 80, "protocol": "tcp"}]}),
        json!({"portMappings": [{"hostPort": null, "containerPort": 80}]}),
    ] {
        assert_eq!(parse(json!({"runtimeConfig": runtime})), Ok(HostPortOptions::default()));
    }
    for list in [json!({}), json!("8080"), json!(8080)] {
        assert_eq!(mappings(list).unwrap_err().code, 7);
    }
}

#[test]
fn an_entry_is_read_as_runtimes_write_it_and_the_rest_of_the_list_stays() {
    let entries = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
        {"containerPort": 9, "protocol": "udp"},
        {"HostPort": 53, "containerport": 5353, "Protocol": "UDP", "hostip": "192.0.2.1"},
        {"hostPort": 65535, "containerPort": 65535, "protocol": "sctp", "hostIP": "::"},
    ]);
    let udp = PortMapping { protocol: PortProtocol::Udp, ..mapping(Some("192.0.2.1"), 53, 5353) };
    let sctp = PortMapping { protocol: PortProtocol::Sctp, ..mapping(Some("::"), 65535, 65535) };
    assert_eq!(mappings(entries), Ok(vec![mapping(None, 8080, 80), udp, sctp]));
}

#[test]
fn an_absent_protocol_is_tcp() {
    for protocol in [json!(null), json!(""), json!("tcp"), json!("TCP")] {
        let entry = json!({"hostPort": 1, "containerPort": 2, "protocol": protocol});
        assert_eq!(mappings(json!([entry])), Ok(vec![mapping(None, 1, 2)]));
    }
    assert_eq!(mappings(json!([{"hostPort": 1, "containerPort": 2}])).unwrap().len(), 1);
}

#[test]
fn a_port_that_is_none_is_refused_and_the_entry_named() {
    for port in [json!(-1), json!(65536), json!(4294967376_u64), json!(80.5), json!("80")] {
        refuses(&json!({"hostPort": port, "containerPort": 80}));
        refuses(&json!({"hostPort": 80, "containerPort": port}));
    }
    refuses(&json!({"hostPort": 80, "containerPort": 0}));
    refuses(&json!({"hostPort": 80, "containerPort": null}));
    refuses(&json!({"hostPort": 80}));
    refuses(&json!("80"));
    refuses(&json!([80]));
}

#[test]
fn a_protocol_or_an_address_that_is_none_is_refused_and_the_entry_named() {
    for protocol in [json!("icmp"), json!("tcp6"), json!(" tcp"), json!(6), json!(["tcp"])] {
        refuses(&json!({"hostPort": 80, "containerPort": 80, "protocol": protocol}));
    }
    for address in [
        json!("localhost"),
        json!("192.0.2"),
        json!("192.0.2.1/24"),
        json!("192.0.2.1:80"),
        json!("[::1]"),
        json!("fe80::1%eth0"),
        json!("*"),
        json!(" "),
        json!(0),
        // No address of a node: nothing would ever arrive there.
        json!("224.0.0.1"),
        json!("255.255.255.255"),
        json!("ff02::1"),
    ] {
        refuses(&json!({"hostPort": 80, "containerPort": 80, "hostIP": address}));
    }
}

#[test]
fn a_host_address_is_one_or_all_of_a_family_or_all_of_both() {
    let host_ip = |text: Value| {
        let entries = json!([{"hostPort": 80, "containerPort": 80, "hostIP": text}]);
        mappings(entries).unwrap()[0].host_ip.map(|address| address.to_string())
    };
    assert_eq!(host_ip(json!("")), None);
    assert_eq!(host_ip(json!(null)), None);
    for text in ["0.0.0.0", "::", "127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", "fe80::1"] {
        assert_eq!(host_ip(json!(text)).as_deref(), Some(text));
    }
    assert_eq!(host_ip(json!("::ffff:192.0.2.1")).as_deref(), Some("192.0.2.1"));
    assert_eq!(host_ip(json!("::ffff:0.0.0.0")).as_deref(), Some("0.0.0.0"));
    assert_eq!(host_ip(json!("2001:DB8:0::1")).as_deref(), Some("2001:db8::1"));
}

#[test]
fn an_entry_for_several_ports_is_code_2_unless_they_are_one() {
    let entry = |range| json!([{"hostPort": 80, "containerPort": 80, "range": range}]);
    for range in [json!(null), json!(0), json!(1)] {
        assert_eq!(mappings(entry(range)), Ok(vec![mapping(None, 80, 80)]));
    }
    for range in [json!(2), json!(-1), json!("2")] {
        let error = mappings(entry(range)).unwrap_err();
        assert_eq!(error.code, code::UNSUPPORTED_FIELD);
        assert!(error.msg.contains("range"), "{}", error.msg);
    }
}

#[test]
fn a_thousand_entries_of_an_expanded_range_are_read() {
    let entry = |port: u16| json!({"hostPort": port, "containerPort": port, "protocol": "udp"});
    let read = mappings((20_000..21_000).map(entry).collect()).unwrap();
    assert_eq!(read.len(), 1000);
    assert!(read.iter().all(|entry| entry.protocol == PortProtocol::Udp));
}

#[test]
fn snat_and_masq_all_are_read_in_any_case_and_must_be_truth_values() {
    let read = |extra: Value| parse(extra).map(|options| (options.snat, options.masq_all));
    assert_eq!(read(json!({})), Ok((None, false)));
    assert_eq!(read(json!({"snat": null, "masqAll": null})), Ok((None, false)));
    assert_eq!(read(json!({"snat": true, "masqAll": false})), Ok((Some(true), false)));
    assert_eq!(read(json!({"SNAT": false, "masqall": true})), Ok((Some(false), true)));
    for key in ["snat", "masqAll"] {
        for value in [json!("true"), json!(0), json!([])] {
            let error = read(json!({key: value})).unwrap_err();
            assert_eq!(error.code, 7);
            assert!(error.msg.contains(key) && error.msg.contains(&value.to_string()));
        }
    }
}

#[test]
fn keys_of_portmap_that_would_mean_something_else_are_code_2_by_key_and_value() {
    for (key, fine, refused) in [
        ("backend", vec![json!("nftables")], vec![json!("iptables"), json!("NFTables"), json!("")]),
        ("markMasqBit", vec![json!(13)], vec![json!(14), json!(0), json!(32), json!("13")]),
        ("externalSetMarkChain", vec![], vec![json!("KUBE-MARK-MASQ"), json!("")]),
        ("conditionsV4", vec![json!([])], vec![json!(["!", "-d", "192.0.2.0/24"]), json!("")]),
        ("conditionsV6", vec![json!([])], vec![json!(["-i", "eth0"]), json!({})]),
        ("portMappings", vec![json!([])], vec![json!([{"hostPort": 80, "containerPort": 80}])]),
    ] {
        for value in fine.into_iter().chain([Value::Null]) {
            let read = parse(json!({key: value}));
            assert_eq!(read, Ok(HostPortOptions::default()), "{key} = {value}");
        }
        for value in refused {
            let error = parse(json!({key.to_uppercase(): value})).unwrap_err();
            assert_eq!(error.code, code::UNSUPPORTED_FIELD, "{key} = {value}");
            let named = format!("{key} = {value} is not supported ");
            assert!(error.msg.starts_with(&named), "{}", error.msg);
        }
    }
}

/// A value of a key, and what the entry comes to by it: `None` is a refusal.
type Part<T> = (Option<Value>, Option<T>);

fn port() -> impl Strategy<Value = Part<u16>> {
    prop_oneof![
        6 => any::<u16>().prop_map(|port| (Some(json!(port)), Some(port))),
        1 => Just((Some(json!(0)), Some(0))),
        1 => Just((None, Some(0))),
        1 => (65_536..u64::MAX).prop_map(|port| (Some(json!(port)), None)),
        1 => (i64::MIN..0).prop_map(|port| (Some(json!(port)), None)),
    ]
}

fn protocol() -> impl Strategy<Value = Part<PortProtocol>> {
    let read = |name: &str, protocol| Just((Some(json!(name)), Some(protocol)));
    prop_oneof![
        read("tcp", PortProtocol::Tcp),
        read("Udp", PortProtocol::Udp),
        read("SCTP", PortProtocol::Sctp),
        Just((None, Some(PortProtocol::Tcp))),
        Just((Some(json!("dccp")), None)),
    ]
}

fn host_ip() -> impl Strategy<Value = Part<Option<IpAddr>>> {
    let none = |text| Just((text, Some(None)));
    prop_oneof![
        none(None),
        none(Some(json!(""))),
        (1..0xe000_0000_u32).prop_map(|bits| {
            let address = IpAddr::V4(bits.into());
            (Some(json!(address.to_string())), Some(Some(address)))
        }),
        (0x2000_u128..0x4000).prop_map(|bits| {
            let address = IpAddr::V6((bits << 112 | 1).into());
            (Some(json!(address.to_string())), Some(Some(address)))
        }),
        Just((Some(json!("node")), None)),
    ]
}

proptest! {
    #[test]
    fn any_entry_is_read_skipped_or_refused_by_its_parts(
        (host_key, host_port) in port(),
        (container_key, container_port) in port(),
        (protocol_key, protocol) in protocol(),
        (address_key, host_ip) in host_ip(),
    ) {
        let keys = [
            ("hostPort", host_key),
            ("containerPort", container_key),
            ("protocol", protocol_key),
            ("hostIP", address_key),
        ];
        let entry: serde_json::Map<String, Value> = keys
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?)))
            .collect();
        let read = mappings(json!([entry]));
        let whole = || {
            let container_port = container_port.filter(|port| *port > 0)?;
            let (protocol, host_ip) = (protocol?, host_ip?);
            let host_port = host_port?;
            Some(PortMapping { host_ip, host_port, container_port, protocol })
        };
        match (host_port, whole()) {
            (Some(0), _) => prop_assert_eq!(read, Ok(vec![])),
            (_, Some(wanted)) => prop_assert_eq!(read, Ok(vec![wanted])),
            (_, None) => prop_assert_eq!(read.unwrap_err().code, 7),
        }
    }
}
