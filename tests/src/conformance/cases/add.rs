//! Lines 18, 19, 21 and 22: what ADD refuses, what it keeps of others, what it leaves behind when
//! it fails.

use serde_json::{Value, json};

use super::{attached, occupy, refused};
use crate::conformance::answer;
use crate::conformance::attached::{
    Snapshot, container_interface, interface_goes, ips_point_at_the_container, is_in_place, list,
    text,
};
use crate::conformance::case::{Case, Checked, Need, case, ensure, fail};
use crate::conformance::trial::{Container, Trial};
use crate::conformance::version::at_least;

/// An address of the plugin before ours in the chain, from the documentation range (RFC 5737).
const OTHER_ADDRESS: &str = "192.0.2.9/24";

/// The rows.
pub fn cases() -> Vec<Case> {
    refusing_and_keeping().into_iter().chain(after_it_failed()).collect()
}

/// Lines 18 and 19: what ADD refuses and what it keeps.
fn refusing_and_keeping() -> Vec<Case> {
    vec![
        case("b18-existing-interface").says("ADD onto an interface that exists fails").ask(|t| {
            let container = t.container()?;
            occupy(&container)?;
            let call = t.invocation("ADD", &container, &t.conf());
            refused(t, &container, &call, &[]).map(|_| ())
        }),
        case("b18-add-twice")
            .says("a second ADD fails and leaves the first as it was")
            .ask(add_twice),
        case("b18-add-twice-then-check")
            .says("after a refused second ADD the first passes CHECK")
            .ask(|t| {
                let (container, result) = attached(t)?;
                let again = t.ask(&t.invocation("ADD", &container, &t.conf()))?;
                answer::error(&again, "a second ADD", &[])?;
                answer::silent(&t.check(&container, &result)?, "CHECK after a refused second ADD")
            })
            .needs(Need::Verb("CHECK")),
        case("b19-prev-result-kept")
            .says("the result keeps what prevResult holds")
            .ask(|t| prev_result_kept(t, t.version)),
        case("b19-prev-result-converted")
            .says("a prevResult of 0.4.0 is converted")
            .ask(|t| prev_result_kept(t, "0.4.0")),
    ]
}

/// Lines 21 and 22: what is left, and what works again.
fn after_it_failed() -> Vec<Case> {
    vec![
        case("b21-failed-add-frees-name").says("after a failed ADD the next one works").ask(|t| {
            let container = t.container()?;
            occupy(&container)?;
            let call = t.invocation("ADD", &container, &t.conf());
            refused(t, &container, &call, &[])?;
            container.netns.ip(&["link", "del", &container.ifname])?;
            is_in_place(&t.add(&container)?, &container)
        }),
        case("b22-del-after-failed-add").says("DEL after a failed ADD succeeds").ask(|t| {
            let container = t.container()?;
            let mut call = t.invocation("ADD", &container, &t.conf());
            call.set("CNI_NETNS", Some("/var/run/netns/conformance-nowhere"));
            answer::error(&t.ask(&call)?, "ADD", &[])?;
            let call = t.invocation("DEL", &container, &t.conf());
            answer::silent(&t.ask(&call)?, "DEL")
        }),
        case("b22-del-spares-what-it-did-not-add")
            .says("DEL after a refused ADD spares the stranger's interface")
            .ask(|t| {
                let container = t.container()?;
                occupy(&container)?;
                let call = t.invocation("ADD", &container, &t.conf());
                let before = Snapshot::of(&t.node, &container)?;
                answer::error(&t.ask(&call)?, "ADD", &[])?;
                let call = t.invocation("DEL", &container, &t.conf());
                answer::silent(&t.ask(&call)?, "DEL")?;
                before.holds_again(&t.node, &container)
            }),
        case("b22-add-again-after-del").says("the same container can be added again").ask(|t| {
            let (container, result) = attached(t)?;
            t.del(&container, &result)?;
            interface_goes(&container)?;
            is_in_place(&t.add(&container)?, &container)
        }),
    ]
}

fn add_twice(t: &Trial) -> Checked {
    let (container, result) = attached(t)?;
    let call = t.invocation("ADD", &container, &t.conf());
    refused(t, &container, &call, &[])?;
    is_in_place(&result, &container)?;
    t.del(&container, &result)?;
    interface_goes(&container)
}

/// What a plugin before ours in the chain has made, in a result of this version.
fn prev_result(version: &str, container: &Container) -> Value {
    let mut ip = json!({"address": OTHER_ADDRESS, "interface": 0});
    if !at_least(version, "1.0.0") {
        ip["version"] = json!("4");
    }
    json!({
        "cniVersion": version,
        "interfaces": [{
            "name": "other0", "mac": "0a:00:00:00:00:01", "sandbox": container.netns_path(),
        }],
        "ips": [ip],
        "routes": [{"dst": "198.51.100.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    })
}

fn prev_result_kept(t: &Trial, prev_version: &str) -> Checked {
    let container = t.container()?;
    let conf = t.conf_with(json!({"prevResult": prev_result(prev_version, &container)}));
    let result = t.add_with(&container, &conf)?;
    let interfaces = list(&result, "interfaces");
    let other = interfaces.iter().position(|interface| text(interface, "name") == "other0");
    let Some(other) = other else {
        return fail(format!("the interface of prevResult is lost: {result}"));
    };
    let kept = list(&result, "ips").iter().find(|ip| text(ip, "address") == OTHER_ADDRESS);
    let points_at = kept.and_then(|ip| ip.get("interface")?.as_u64());
    ensure(points_at == Some(other as u64), || {
        format!("the address of prevResult is lost or points elsewhere: {result}")
    })?;
    let route = list(&result, "routes").iter().any(|r| text(r, "dst") == "198.51.100.0/24");
    ensure(route, || format!("the route of prevResult is lost: {result}"))?;
    let dns = result.pointer("/dns/nameservers/0");
    ensure(dns == Some(&json!("192.0.2.53")), || format!("dns of prevResult is lost: {result}"))?;
    container_interface(&result, &container)?;
    let mut ours = result.clone();
    if let Some(ips) = ours.get_mut("ips").and_then(Value::as_array_mut) {
        ips.retain(|ip| text(ip, "address") != OTHER_ADDRESS);
    }
    ips_point_at_the_container(&ours, &container)
}
