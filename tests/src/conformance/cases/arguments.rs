//! Lines 35 to 38: runtimeConfig, CNI_ARGS, args.cni, and the keys that are the runtime's own.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::refused;
use crate::conformance::answer;
use crate::conformance::attached::{
    addresses, container_interface, first_v4, interface_goes, is_in_place, link, text,
};
use crate::conformance::case::{Case, Checked, Need, case, ensure};
use crate::conformance::trial::Trial;

/// A unicast MAC address that no plugin would choose.
const MAC: &str = "0a:58:0a:f4:01:63";

/// runtimeConfig contents that ask for nothing, or for what no plugin knows.
fn harmless() -> [(&'static str, Value); 11] {
    [
        ("null", Value::Null),
        ("empty", json!({})),
        ("port-mappings-null", json!({"portMappings": null})),
        ("port-mappings-empty", json!({"portMappings": []})),
        (
            "port-mappings-without-host-port",
            json!({"portMappings": [{"containerPort": 80, "protocol": "tcp"}, {"hostPort": 0}]}),
        ),
        ("bandwidth-null", json!({"bandwidth": null})),
        ("bandwidth-empty", json!({"bandwidth": {}})),
        (
            "bandwidth-zero",
            json!({"bandwidth": {
            "ingressRate": 0, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0}}),
        ),
        (
            "all-null",
            json!({"ips": null, "mac": null, "ipRanges": null, "dns": null,
            "deviceID": null, "infinibandGUID": null, "aliases": null, "cgroupPath": null}),
        ),
        ("pod-annotations", json!({"io.kubernetes.cri.pod-annotations": {"a/b": "c"}})),
        ("unknown-capability", json!({"surprise": {"a": [1, null]}})),
    ]
}

/// CNI_ARGS that runtimes send, or that must not hurt.
const ARGS: [(&str, &str); 4] = [
    (
        "kubernetes",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;\
         K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=1b4e28ba-2fa1-11d2-883f-0016d3cca427",
    ),
    ("empty", ""),
    ("ignore-unknown", "IgnoreUnknown=1;COLOUR=blue"),
    ("unknown-key", "COLOUR=blue"),
];

/// The rows.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (slug, content) in harmless() {
        let sentence = "a runtimeConfig that asks for nothing known is served";
        cases.push(
            case(&format!("b35-{slug}"))
                .says(sentence)
                .ask(move |t| served(t, json!({"runtimeConfig": content}))),
        );
    }
    cases.extend(asking_for_addresses());
    cases.extend(asking_for_a_mac());
    for (slug, args) in ARGS {
        let sentence = "CNI_ARGS of runtimes and with unknown keys are served";
        cases.push(case(&format!("b36-args-{slug}")).says(sentence).ask(move |t| {
            let container = t.container()?;
            let mut call = t.invocation("ADD", &container, &t.conf());
            call.set("CNI_ARGS", Some(args));
            let result = answer::result(&t.ask(&call)?, "ADD")?;
            is_in_place(&result, &container)
        }));
    }
    cases.extend([
        case("b36-args-labels").says("args.cni.labels are tolerated").ask(|t| {
            served(t, json!({"args": {"cni": {"labels": [{"key": "app", "value": "web"}]}}}))
        }),
        case("b37-capabilities-present")
            .says("capabilities in the configuration do no harm")
            .ask(|t| served(t, json!({"capabilities": {"portMappings": true, "surprise": false}}))),
        case("b37-capabilities-absent")
            .says("absent capabilities do no harm")
            .ask(|t| served(t, json!({"runtimeConfig": {}}))),
        case("b38-runtime-keys").says("keys of the runtime are ignored").ask(|t| {
            served(
                t,
                json!({
                    "disableCheck": true, "disableGC": true, "loadOnlyInlinedPlugins": true,
                    "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
                }),
            )
        }),
    ]);
    cases
}

/// Rows of the optional capability `ips`.
fn asking_for_addresses() -> Vec<Case> {
    let rows = vec![
        case("b35-ips").says("the address that runtimeConfig.ips asks for is given").ask(|t| {
            let wanted = asked_address(t)?;
            gives(t, wanted, json!({"runtimeConfig": {"ips": [wanted.to_string()]}}), None)
        }),
        case("b35-ips-taken").says("an address that is taken is refused").ask(|t| {
            let wanted = asked_address(t)?;
            let conf = t.conf_with(json!({"runtimeConfig": {"ips": [wanted.to_string()]}}));
            t.add_with(&*t.container()?, &conf)?;
            let second = t.container()?;
            refused(t, &second, &t.invocation("ADD", &second, &conf), &[]).map(|_| ())
        }),
        case("b35-ips-garbage").says("an address that is none is refused").ask(|t| {
            let container = t.container()?;
            let conf = t.conf_with(json!({"runtimeConfig": {"ips": ["banana"]}}));
            refused(t, &container, &t.invocation("ADD", &container, &conf), &[]).map(|_| ())
        }),
        case("b36-args-ip").says("the address that CNI_ARGS asks for is given").ask(|t| {
            let wanted = asked_address(t)?;
            gives(t, wanted, json!({}), Some(wanted))
        }),
        case("b36-args-cni-ips-win").says("args.cni.ips win over CNI_ARGS").ask(|t| {
            let wanted = asked_address(t)?;
            let loser = beside(wanted);
            gives(t, wanted, json!({"args": {"cni": {"ips": [wanted.to_string()]}}}), Some(loser))
        }),
    ];
    rows.into_iter().map(|case| case.needs(Need::Capability("ips"))).collect()
}

/// Rows of the optional capability `mac`.
fn asking_for_a_mac() -> Vec<Case> {
    let rows = vec![
        case("b35-mac").says("the MAC that runtimeConfig.mac asks for is set and shown").ask(|t| {
            let container = t.container()?;
            let conf = t.conf_with(json!({"runtimeConfig": {"mac": MAC}}));
            let result = t.add_with(&container, &conf)?;
            let shown = text(container_interface(&result, &container)?.1, "mac");
            let link = link(&container.netns, &container.ifname)?.unwrap_or_default();
            let real = text(&link, "address");
            ensure(shown.eq_ignore_ascii_case(MAC) && real == MAC, || {
                format!("asked for {MAC}, shown is {shown}, set is {real}")
            })
        }),
        case("b35-mac-garbage").says("a MAC that is none is refused").ask(|t| {
            let container = t.container()?;
            let conf = t.conf_with(json!({"runtimeConfig": {"mac": "banana"}}));
            refused(t, &container, &t.invocation("ADD", &container, &conf), &[]).map(|_| ())
        }),
    ];
    rows.into_iter().map(|case| case.needs(Need::Capability("mac"))).collect()
}

/// ADD with these keys works.
fn served(t: &Trial, keys: Value) -> Checked {
    let container = t.container()?;
    let result = t.add_with(&container, &t.conf_with(keys))?;
    is_in_place(&result, &container)
}

/// ADD with these keys, and this address in CNI_ARGS, gives the wanted address.
fn gives(t: &Trial, wanted: IpAddr, keys: Value, in_args: Option<IpAddr>) -> Checked {
    let container = t.container()?;
    let mut call = t.invocation("ADD", &container, &t.conf_with(keys));
    let args = in_args.map(|address| format!("IgnoreUnknown=1;IP={address}"));
    call.set("CNI_ARGS", args.as_deref());
    let result = answer::result(&t.ask(&call)?, "ADD")?;
    let given = addresses(&result)?;
    ensure(given.contains(&wanted), || format!("asked for {wanted}, given was {given:?}"))?;
    is_in_place(&result, &container)
}

/// A free address of the network, learned from the one that a container gets and gives back.
pub fn asked_address(t: &Trial) -> Checked<IpAddr> {
    let container = t.container()?;
    let result = t.add(&container)?;
    let given = first_v4(&result)?;
    t.del(&container, &result)?;
    interface_goes(&container)?;
    Ok(beside(IpAddr::V4(given)))
}

/// An address 50 above in the same /24, between .10 and .209: nobody is given it soon.
fn beside(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            let d = (u16::from(d) + 50) % 200 + 10;
            IpAddr::V4(Ipv4Addr::new(a, b, c, u8::try_from(d).expect("at most 209")))
        }
        IpAddr::V6(_) => address,
    }
}
