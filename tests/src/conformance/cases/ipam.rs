//! Lines 21, 23 and 25 with a stand-in IPAM plugin: what a delegate is told, and what happens when
//! it fails.

use serde_json::{Value, json};

use super::result::usable_at_once;
use crate::conformance::answer::{self, code};
use crate::conformance::attached::{Snapshot, addresses, interface_goes, is_in_place};
use crate::conformance::case::{Case, Checked, Need, Stop, case, ensure, fail};
use crate::conformance::stand_in_ipam::{STDERR, StandInIpam, V4, V6, ipam_result};
use crate::conformance::trial::{Container, Trial};
use crate::plugin::{Invocation, Outcome};

/// An error code of a delegate's own (100 and up are free: CNI specification, section "Error").
const DELEGATES_CODE: u64 = 123;

/// The rows.
pub fn cases() -> Vec<Case> {
    let rows = on_add().into_iter().chain(on_other_verbs());
    rows.map(|case| case.needs(Need::DelegatedIpam)).collect()
}

/// What IPAM is told and answers on ADD.
fn on_add() -> Vec<Case> {
    vec![
        case("b21-ipam-error-passed-on")
            .says("an IPAM error on ADD is the plugin's")
            .ask(add_error),
        case("b21-ipam-without-address")
            .says("no address: ADD fails, releases IPAM")
            .ask(|t| released(t, &ipam_result(t, &[]))),
        case("b21-ipam-garbage").says("an IPAM result that is none: ADD fails, releases IPAM").ask(
            |t| released(t, &json!({"cniVersion": t.version, "ips": [{"address": "banana"}]})),
        ),
        case("b21-ipam-released-on-failure").says("an ADD that fails late releases IPAM").ask(late),
        case("b23-ipam-environment").says("IPAM gets the same environment").ask(environment),
        case("b23-ipam-complete-configuration")
            .says("IPAM gets the whole configuration")
            .ask(whole),
        case("b23-ipam-result-used").says("the addresses of IPAM are set and shown").ask(|t| {
            let ipam = StandInIpam::install(t, &ipam_result(t, &[V4]))?;
            let (container, result) = add(t, &ipam)?;
            shows(&result, &[V4])?;
            is_in_place(&result, &container)
        }),
        case("b23-ipam-stderr").says("stderr of IPAM is passed through").ask(|t| {
            let ipam = StandInIpam::install(t, &ipam_result(t, &[V4]))?;
            let container = t.container()?;
            let outcome = call(t, &ipam, "ADD", &container, json!({}))?;
            ensure(outcome.stderr.contains(STDERR), || "stderr of IPAM is lost".to_owned())
        }),
        case("b23-ipam-missing").says("an IPAM plugin that is not there is named").ask(missing),
        case("b25-dual-stack").says("both families are set and usable at once").ask(dual_stack),
    ]
}

/// What IPAM is told of the other verbs.
fn on_other_verbs() -> Vec<Case> {
    vec![
        case("b23-ipam-del").says("DEL is forwarded").ask(|t| forwarded(t, "DEL")),
        case("b23-ipam-check")
            .says("CHECK is forwarded")
            .ask(|t| forwarded(t, "CHECK"))
            .needs(Need::Verb("CHECK")),
        case("b23-ipam-status")
            .says("STATUS is forwarded")
            .ask(|t| forwarded(t, "STATUS"))
            .needs(Need::Verb("STATUS")),
        case("b23-ipam-gc")
            .says("GC is forwarded")
            .ask(|t| forwarded(t, "GC"))
            .needs(Need::Verb("GC")),
        case("b23-ipam-check-error")
            .says("a failing IPAM CHECK fails CHECK")
            .ask(|t| failing(t, "CHECK"))
            .needs(Need::Verb("CHECK")),
        case("b23-ipam-status-error")
            .says("a failing IPAM STATUS fails STATUS")
            .ask(|t| failing(t, "STATUS"))
            .needs(Need::Verb("STATUS")),
        case("b23-ipam-del-error").says("when IPAM fails on DEL, the rest is still cleaned").ask(
            |t| {
                let ipam = StandInIpam::install(t, &ipam_result(t, &[V4]))?;
                let (container, result) = add(t, &ipam)?;
                ipam.fail("DEL", &own_error())?;
                call(t, &ipam, "DEL", &container, json!({"prevResult": result}))?;
                interface_goes(&container)
            },
        ),
    ]
}

fn own_error() -> Value {
    let (msg, details) = ("the stand-in refuses", "as it was told");
    json!({"cniVersion": "1.0.0", "code": DELEGATES_CODE, "msg": msg, "details": details})
}

/// A call with the stand-in as IPAM and these keys added.
fn invocation(
    t: &Trial,
    ipam: &StandInIpam,
    verb: &str,
    container: &Container,
    keys: Value,
) -> Invocation {
    let mut conf = ipam.conf(t);
    if let Value::Object(keys) = keys {
        conf.extend(keys);
    }
    let mut call = match verb {
        "STATUS" | "GC" => t.network_invocation(verb, &conf),
        _ => t.invocation(verb, container, &conf),
    };
    call.set("CNI_PATH", Some(ipam.cni_path()));
    call
}

fn call(
    t: &Trial,
    ipam: &StandInIpam,
    verb: &str,
    container: &Container,
    keys: Value,
) -> Checked<Outcome> {
    t.ask(&invocation(t, ipam, verb, container, keys))
}

/// ADD that must succeed.
fn add(t: &Trial, ipam: &StandInIpam) -> Checked<(std::sync::Arc<Container>, Value)> {
    let container = t.container()?;
    let result = answer::result(&call(t, ipam, "ADD", &container, json!({}))?, "ADD")?;
    Ok((container, result))
}

fn shows(result: &Value, wanted: &[(&str, &str)]) -> Checked {
    let given: Vec<String> = addresses(result)?.iter().map(ToString::to_string).collect();
    for (address, _) in wanted {
        let address = address.split('/').next().unwrap_or(address);
        ensure(given.iter().any(|one| one == address), || {
            format!("IPAM gave {address}, the result shows {given:?}")
        })?;
    }
    Ok(())
}

fn add_error(t: &Trial) -> Checked {
    let ipam = StandInIpam::install(t, &json!({}))?;
    ipam.fail("ADD", &own_error())?;
    let container = t.container()?;
    let before = Snapshot::of(&t.node, &container)?;
    let outcome = call(t, &ipam, "ADD", &container, json!({}))?;
    let error = answer::error(&outcome, "ADD with a failing IPAM", &[DELEGATES_CODE])?;
    answer::names(&error, "ADD", &["the stand-in refuses"])?;
    before.holds_again(&t.node, &container)
}

/// ADD with an IPAM result that cannot be used fails, leaves nothing, and tells IPAM.
fn released(t: &Trial, result: &Value) -> Checked {
    let ipam = StandInIpam::install(t, result)?;
    let container = t.container()?;
    let before = Snapshot::of(&t.node, &container)?;
    answer::error(&call(t, &ipam, "ADD", &container, json!({}))?, "ADD", &[])?;
    before.holds_again(&t.node, &container)?;
    tells_del(&ipam)
}

/// A stranger's device occupies the name, so that ADD fails after IPAM has answered. A plugin that
/// looks first need not ask IPAM at all.
fn late(t: &Trial) -> Checked {
    let ipam = StandInIpam::install(t, &ipam_result(t, &[V4]))?;
    let container = t.container()?;
    let ifname = container.ifname.as_str();
    let peer = ["type", "veth", "peer", "name", "stranger"];
    container.netns.ip(&[&["link", "add", ifname], &peer[..]].concat())?;
    let before = Snapshot::of(&t.node, &container)?;
    answer::error(&call(t, &ipam, "ADD", &container, json!({}))?, "ADD", &[])?;
    before.holds_again(&t.node, &container)?;
    if ipam.verbs()?.is_empty() { Ok(()) } else { tells_del(&ipam) }
}

fn tells_del(ipam: &StandInIpam) -> Checked {
    let verbs = ipam.verbs()?;
    ensure(verbs == ["ADD", "DEL"], || {
        format!("IPAM must see ADD and then DEL, since ADD failed; it saw {verbs:?}")
    })
}

fn environment(t: &Trial) -> Checked {
    let ipam = StandInIpam::install(t, &ipam_result(t, &[V4]))?;
    let container = t.container()?;
    let mut call = invocation(t, &ipam, "ADD", &container, json!({}));
    call.set("CNI_ARGS", Some("IgnoreUnknown=1;K8S_POD_NAME=pod"));
    answer::result(&t.ask(&call)?, "ADD")?;
    let calls = ipam.calls()?;
    let Some(seen) = calls.first() else {
        return fail("IPAM was not called");
    };
    for wanted in [
        "CNI_COMMAND=ADD".to_owned(),
        format!("CNI_CONTAINERID={}", container.id),
        format!("CNI_NETNS={}", container.netns_path()),
        format!("CNI_IFNAME={}", container.ifname),
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=pod".to_owned(),
        format!("CNI_PATH={}", ipam.cni_path()),
    ] {
        ensure(seen.env.contains(&wanted), || {
            format!("IPAM did not see {wanted}: {:?}", seen.env)
        })?;
    }
    Ok(())
}

/// "The complete network configuration" includes keys that only the delegate understands.
fn whole(t: &Trial) -> Checked {
    let ipam = StandInIpam::install(t, &ipam_result(t, &[V4]))?;
    let container = t.container()?;
    let keys = json!({"runtimeConfig": {"dns": null}, "surprise": ["kept"]});
    let call = invocation(t, &ipam, "ADD", &container, keys);
    answer::result(&t.ask(&call)?, "ADD")?;
    let sent: Value = serde_json::from_slice(&call.stdin).unwrap_or_default();
    let calls = ipam.calls()?;
    let seen = calls.first().map(|call| &call.stdin);
    ensure(seen == Some(&sent), || format!("IPAM must read {sent}, it read {seen:?}"))
}

fn missing(t: &Trial) -> Checked {
    let container = t.container()?;
    let conf = t.conf_with(json!({"ipam": {"type": "conformance-nowhere"}}));
    let call = t.invocation("ADD", &container, &conf);
    let error = super::refused(t, &container, &call, &[])?;
    answer::names(&error, "ADD", &["conformance-nowhere"])
}

/// The verb succeeds and IPAM has seen it.
fn forwarded(t: &Trial, verb: &str) -> Checked {
    let ipam = StandInIpam::install(t, &ipam_result(t, &[V4]))?;
    let (container, result) = add(t, &ipam)?;
    let keys = json!({"prevResult": result, "cni.dev/valid-attachments": []});
    answer::silent(&call(t, &ipam, verb, &container, keys)?, verb)?;
    let verbs = ipam.verbs()?;
    ensure(verbs.iter().any(|seen| seen == verb), || format!("IPAM saw only {verbs:?}"))
}

/// The verb fails because IPAM fails on it.
fn failing(t: &Trial, verb: &str) -> Checked {
    let ipam = StandInIpam::install(t, &ipam_result(t, &[V4]))?;
    let (container, result) = add(t, &ipam)?;
    ipam.fail(verb, &own_error())?;
    let keys = if verb == "CHECK" { json!({"prevResult": result}) } else { json!({}) };
    let outcome = call(t, &ipam, verb, &container, keys)?;
    let codes = if verb == "STATUS" {
        // Line 33: what a runtime understands of a STATUS is 50 or 51.
        [DELEGATES_CODE, code::NOT_AVAILABLE, code::DEGRADED]
    } else {
        [DELEGATES_CODE; 3]
    };
    answer::error(&outcome, verb, &codes).map(|_| ())
}

fn dual_stack(t: &Trial) -> Checked {
    if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
        return Err(Stop::Skip("this kernel has no IPv6".to_owned()));
    }
    let ipam = StandInIpam::install(t, &ipam_result(t, &[V4, V6]))?;
    let container = t.container()?;
    let outcome = call(t, &ipam, "ADD", &container, json!({}))?;
    let result = answer::result(&outcome, "ADD")?;
    t.note(format!("a dual-stack ADD took {} ms", outcome.took.as_millis()));
    shows(&result, &[V4, V6])?;
    is_in_place(&result, &container)?;
    usable_at_once(&result, &container)
}
