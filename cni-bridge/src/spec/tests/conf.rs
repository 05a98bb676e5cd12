//! The configuration as every verb reads it.

use std::path::Path;

use proptest::prelude::*;

use super::super::conf::{asked_version, is_name};
use super::*;

#[test]
fn the_smallest_configuration_has_the_defaults() {
    let conf = NetConf::parse(br#"{"cniVersion":"1.0.0","name":"n"}"#).unwrap();
    assert_eq!(conf.version, CniVersion::V1_0_0);
    assert_eq!(conf.socket, Path::new("/run/viaduct/viaduct.sock"));
    assert_eq!(conf.ipam, None);
    assert_eq!(conf.prev_result(), Ok(None));
}

#[test]
fn keys_match_in_any_case_null_is_absence_and_unknown_keys_are_ignored() {
    let bytes = br#"{"CNIVersion":"1.0.0","Name":"n","IPAM":null,"prevResult":null,"socket":null,
        "externalSetMarkChain":"KUBE-MARK-MASQ","disableCheck":true}"#;
    let conf = NetConf::parse(bytes).unwrap();
    assert_eq!((conf.name.as_str(), conf.ipam.as_deref()), ("n", None));
    assert_eq!(conf.prev_result(), Ok(None));
    let ipam = NetConf::parse(br#"{"cniversion":"1.0.0","name":"n","Ipam":{"Type":"static"}}"#);
    assert_eq!(ipam.unwrap().ipam.as_deref(), Some("static"));
}

#[test]
fn input_that_is_no_object_is_code_6() {
    for input in ["", " \n", "[]", "null", "{", "{}x", "\u{feff}{}", r#"{"name":"a""#] {
        assert_eq!(NetConf::parse(input.as_bytes()).unwrap_err().code, 6, "{input:?}");
    }
    let deep = "[".repeat(1 << 16);
    assert_eq!(NetConf::parse(deep.as_bytes()).unwrap_err().code, 6);
}

#[test]
fn a_version_that_is_no_string_or_absent_is_code_1() {
    for input in [r#"{"name":"n"}"#, r#"{"name":"n","cniVersion":1}"#, "{}"] {
        assert_eq!(NetConf::parse(input.as_bytes()).unwrap_err().code, 1, "{input}");
    }
}

#[test]
fn a_name_socket_or_ipam_that_cannot_be_used_is_code_7_and_named() {
    let cases = [
        (json!({"name": null}), "name"),
        (json!({"name": ""}), "name"),
        (json!({"name": "../n"}), "name"),
        (json!({"name": 7}), "name"),
        (json!({"socket": "viaduct.sock"}), "socket"),
        (json!({"socket": ""}), "socket"),
        (json!({"socket": 1}), "socket"),
        (json!({"ipam": "host-local"}), "ipam"),
        (json!({"ipam": {}}), "ipam"),
        (json!({"ipam": {"type": "../evil"}}), "ipam.type"),
        (json!({"ipam": {"type": ""}}), "ipam.type"),
    ];
    for (extra, key) in cases {
        let error = conf(extra.clone()).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG, "{extra}");
        assert!(error.msg.contains(key), "{extra}: {}", error.msg);
    }
}

#[test]
fn names_have_the_alphabet_of_the_specification() {
    for name in ["a", "7", "k8s_POD-x.y", "A.."] {
        assert!(is_name(name), "{name}");
    }
    for name in ["", ".a", "-a", "_a", "a/b", "a b", "ä", "a\n"] {
        assert!(!is_name(name), "{name:?}");
    }
}

#[test]
fn gc_tells_an_absent_list_from_an_empty_one() {
    let list = |extra| conf(extra).unwrap().valid_attachments();
    assert_eq!(list(json!({})).unwrap_err().code, 7);
    assert_eq!(list(json!({"cni.dev/valid-attachments": null})).unwrap_err().code, 7);
    assert_eq!(list(json!({"cni.dev/valid-attachments": []})), Ok(vec![]));
    let one = json!([{"containerID": "c", "ifname": "eth0"}]);
    let pair = ("c".to_owned(), "eth0".to_owned());
    assert_eq!(list(json!({"cni.dev/valid-attachments": one})), Ok(vec![pair.clone()]));
    assert_eq!(list(json!({"cni.dev/attachments": one})), Ok(vec![pair]));
    let both = json!({"cni.dev/valid-attachments": [], "cni.dev/attachments": one});
    assert_eq!(list(both), Ok(vec![]), "the name of the specification wins");
}

#[test]
fn gc_removes_nothing_over_a_malformed_list() {
    for entries in [json!({}), json!("c"), json!([1]), json!([{"containerID": "c"}]), json!([{}])] {
        let conf = conf(json!({"cni.dev/valid-attachments": entries})).unwrap();
        assert_eq!(conf.valid_attachments().unwrap_err().code, 7, "{entries}");
    }
}

#[test]
fn a_downgraded_configuration_differs_only_in_its_version() {
    let conf = conf(json!({"ipam": {"type": "static", "x": [1.5]}})).unwrap();
    let value: Value = serde_json::from_slice(&conf.downgraded(CniVersion::V0_4_0)).unwrap();
    let mut golden = Value::Object(conf.map.clone());
    golden["cniVersion"] = json!("0.4.0");
    assert_eq!(value, golden);
}

/// Any JSON, with keys that the parser looks for among the keys.
fn any_json() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        proptest::sample::select(vec![
            "cniVersion",
            "name",
            "socket",
            "ipam",
            "type",
            "runtimeConfig",
            "args",
            "cni",
            "ips",
            "mac",
            "mtu",
            "ipRanges",
            "subnet",
            "portMappings",
            "hostPort",
            "containerPort",
            "hostIP",
            "protocol",
            "snat",
            "masqAll",
            "backend",
            "conditionsV4",
            "bandwidth",
            "dns",
            "ingressRate",
            "ingressBurst",
            "prevResult",
            "interfaces",
            "address",
            "interface",
            "routes",
            "dst",
            "cni.dev/valid-attachments",
            "containerID",
            "ifname",
        ])
        .prop_map(str::to_owned),
        "[a-z]{0,3}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[0-9a-f:./]{0,20}".prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        Just(Value::from("1.1.0")),
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = NetConf::parse(&bytes);
        let _ = asked_version(&bytes);
        let _ = CniError::parse(&bytes);
    }

    #[test]
    fn arbitrary_json_never_panics(value in any_json(), args in ".{0,40}") {
        let _ = NetConf::parse(value.to_string().as_bytes());
        let Value::Object(mut map) = value else { return Ok(()) };
        map.insert("cniVersion".to_owned(), Value::from("1.1.0"));
        map.insert("name".to_owned(), Value::from("n"));
        for key in ["socket", "ipam"] {
            map.remove(key);
        }
        let conf = NetConf::parse(Value::Object(map).to_string().as_bytes()).unwrap();
        let _ = AddOptions::parse(&conf, &args);
        let _ = conf.valid_attachments();
        let _ = conf.dns();
        if let Ok(Some(result)) = conf.prev_result() {
            for version in CniVersion::ALL {
                result.render(version);
            }
        }
    }
}
