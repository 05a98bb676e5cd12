//! The wishes of an ADD.

use std::net::IpAddr;

use super::*;

fn options(extra: Value, args: &str) -> Result<AddOptions, CniError> {
    AddOptions::parse(&conf(extra).unwrap(), args)
}

fn runtime(config: Value) -> Result<AddOptions, CniError> {
    options(json!({"runtimeConfig": config}), "")
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn nothing_asked_for_is_nothing() {
    assert_eq!(options(json!({}), ""), Ok(AddOptions::default()));
    let nulls = json!({"portMappings": null, "bandwidth": null, "ips": null, "mac": null,
        "ipRanges": null});
    assert_eq!(runtime(nulls), Ok(AddOptions::default()));
    let nulls = json!({"runtimeConfig": null, "args": null, "mtu": null});
    assert_eq!(options(nulls, ""), Ok(AddOptions::default()));
    assert_eq!(options(json!({"args": {"cni": null}}), ""), Ok(AddOptions::default()));
}

#[test]
fn addresses_come_from_the_strongest_place_that_has_any() {
    let everywhere = json!({
        "runtimeConfig": {"ips": ["10.0.0.1/24", "fd00::1"]},
        "args": {"cni": {"ips": ["10.0.0.2"]}},
    });
    let args = "IP=10.0.0.3,fd00::3/64";
    assert_eq!(options(everywhere, args).unwrap().ips, addresses(&["10.0.0.1", "fd00::1"]));
    let weaker = json!({"runtimeConfig": {"ips": []}, "args": {"cni": {"IPs": ["10.0.0.2"]}}});
    assert_eq!(options(weaker, args).unwrap().ips, addresses(&["10.0.0.2"]));
    assert_eq!(options(json!({}), args).unwrap().ips, addresses(&["10.0.0.3", "fd00::3"]));
}

#[test]
fn an_address_that_is_none_is_refused_and_named() {
    for text in ["10.0.0.256", "10.0.0.1/33", "10.0.0.1/+8", "10.0.0.1/", "", "pod"] {
        let error = runtime(json!({"ips": [text]})).unwrap_err();
        assert_eq!(error.code, 7, "{text}");
        assert!(error.msg.contains("runtimeConfig.ips"), "{}", error.msg);
    }
    assert_eq!(runtime(json!({"ips": "10.0.0.1"})).unwrap_err().code, 7);
    assert_eq!(options(json!({}), "IP=10.0.0.1,").unwrap_err().code, 4);
}

#[test]
fn a_mac_is_normalised_and_one_that_no_pod_may_have_is_refused() {
    let mac = |text: &str| runtime(json!({"mac": text})).map(|options| options.mac);
    assert_eq!(mac("0A-58-0a-F4-01-05"), Ok(Some("0a:58:0a:f4:01:05".to_owned())));
    assert_eq!(mac(""), Ok(None));
    for text in [
        "02:58:0a:f4:01:05", // reserved for what the pod's kernel knows
        "01:00:5e:00:00:01", // multicast
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "0a:58:0a:f4:01",
        "0a:58:0a:f4:01:05:06",
        "0a:58:0a:f4:01:+5",
        "0a:58:0a:f4:01:5",
    ] {
        assert_eq!(mac(text).unwrap_err().code, 7, "{text}");
    }
    let args = options(json!({}), "MAC=0a:00:00:00:00:01").unwrap();
    assert_eq!(args.mac.as_deref(), Some("0a:00:00:00:00:01"));
    assert_eq!(options(json!({}), "MAC=02:00:00:00:00:01").unwrap_err().code, 4);
}

#[test]
fn ranges_are_a_list_of_lists() {
    let config = json!({"ipRanges": [
        [{"subnet": "10.1.0.0/16", "rangeStart": "10.1.2.0", "rangeEnd": "10.1.3.0",
          "gateway": "10.1.0.1"}],
        [{"subnet": "fd00::/64"}],
    ]});
    let ranges = runtime(config).unwrap().ranges;
    assert_eq!(ranges.len(), 2);
    assert_eq!(ranges[0][0].range_end, Some("10.1.3.0".parse().unwrap()));
    assert_eq!(ranges[1][0].subnet, "fd00::/64");
    assert_eq!(ranges[1][0].gateway, None);
    for bad in [
        json!([{"subnet": "10.1.0.0/16"}]),
        json!([[{"subnet": "10.1.0.0"}]]),
        json!([[{"gateway": "10.1.0.1"}]]),
        json!([[{"subnet": "10.1.0.0/16", "rangeStart": "x"}]]),
        json!([["10.1.0.0/16"]]),
    ] {
        assert_eq!(runtime(json!({"ipRanges": bad})).unwrap_err().code, 7, "{bad}");
    }
}

#[test]
fn the_mtu_is_bounded_on_both_sides() {
    for (mtu, wanted) in [(json!(1280), 1280), (json!(65535), 65535)] {
        assert_eq!(options(json!({"mtu": mtu}), "").unwrap().mtu, Some(wanted));
    }
    for mtu in [json!(1279), json!(65536), json!(-1), json!(1500.5), json!("1500"), json!(0)] {
        let error = options(json!({"mtu": mtu}), "").unwrap_err();
        assert_eq!(error.code, 7, "{mtu}");
        assert!(error.msg.contains("mtu") && error.msg.contains(&mtu.to_string()));
    }
}

#[test]
fn a_host_port_is_a_wish_and_an_entry_without_one_is_nothing() {
    let wishes = |content: Value| runtime(content).unwrap().host_ports.mappings.len();
    let mapping = |port: Value| json!({"portMappings": [{"containerPort": 80, "hostPort": port}]});
    assert_eq!(wishes(mapping(json!(8080))), 1);
    assert_eq!(wishes(json!({"PortMappings": [{"HostPort": 80, "ContainerPort": 80}]})), 1);
    assert_eq!(wishes(mapping(json!(0))), 0);
    assert_eq!(wishes(json!({"portMappings": []})), 0);
}

#[test]
fn cni_args_are_read_leniently() {
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;nonsense;;K8S_POD_NAME=pod=x;FOO=;IP=";
    let options = options(json!({}), args).unwrap();
    assert_eq!((options.pod_namespace.as_str(), options.pod_name.as_str()), ("ns", "pod=x"));
    assert!(options.ips.is_empty());
}
