//! Lines 31, 32 and 35 for the optional capability `portMappings`: which entries are served, which
//! refused, whose a port of the node is, and when it is free again. Whether packets arrive is asked
//! elsewhere: it takes traffic.

use std::sync::Arc;

use serde_json::{Value, json};

use super::refused;
use crate::conformance::answer;
use crate::conformance::attached::{Snapshot, is_in_place};
use crate::conformance::case::{Case, Checked, Need, case};
use crate::conformance::trial::{Conf, Container, Trial};

/// The rows.
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = served_entries().into_iter().chain(refused_entries()).collect();
    cases.extend(owners());
    cases.into_iter().map(|case| case.needs(Need::Capability("portMappings"))).collect()
}

/// Entries as runtimes send them.
fn served_entries() -> Vec<Case> {
    let rows = [
        ("any-address", json!([{"hostPort": 20001, "containerPort": 80, "protocol": "tcp"}])),
        ("without-protocol", json!([{"hostPort": 20002, "containerPort": 80}])),
        (
            "empty-address",
            json!([{"hostPort": 20003, "containerPort": 80, "protocol": "udp", "hostIP": ""}]),
        ),
        (
            "wildcards",
            json!([
                {"hostPort": 20004, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0"},
                {"hostPort": 20004, "containerPort": 80, "protocol": "tcp", "hostIP": "::"},
            ]),
        ),
        (
            "both-protocols",
            json!([
                {"hostPort": 20005, "containerPort": 53, "protocol": "tcp"},
                {"hostPort": 20005, "containerPort": 53, "protocol": "udp"},
            ]),
        ),
        (
            "address-of-either-family",
            json!([
                {"hostPort": 20006, "containerPort": 80, "hostIP": "127.0.0.1"},
                {"hostPort": 20006, "containerPort": 80, "hostIP": "2001:db8::6"},
            ]),
        ),
        ("range", (20100..20400).map(|port| entry(port, port)).collect()),
    ];
    let row = |(slug, entries): (&str, Value)| {
        case(&format!("b35-port-mappings-{slug}"))
            .says("port mappings as runtimes send them are served, and CHECK finds them")
            .ask(move |t| {
                let conf = mapped(t, &entries);
                let (container, result) = add(t, &conf)?;
                is_in_place(&result, &container)?;
                if crate::conformance::version::at_least(t.version, "0.4.0") {
                    answer::silent(&check(t, &container, &conf, &result)?, "CHECK")?;
                }
                Ok(())
            })
    };
    rows.into_iter().map(row).collect()
}

/// Entries that must not be taken for something else.
fn refused_entries() -> Vec<Case> {
    let with = |key: &str, value: Value| {
        let mut entry = entry(20401, 80);
        entry[key] = value;
        json!([entry])
    };
    let rows = [
        ("negative", with("hostPort", json!(-1))),
        ("too-large", with("hostPort", json!(65536))),
        ("no-container-port", with("containerPort", json!(0))),
        ("container-port-too-large", with("containerPort", json!(65536))),
        ("protocol-unknown", with("protocol", json!("icmp"))),
        ("address-garbage", with("hostIP", json!("banana"))),
        ("text", with("hostPort", json!("20401"))),
        ("contradiction", json!([entry(20401, 80), entry(20401, 81)])),
    ];
    let row = |(slug, entries): (&str, Value)| {
        case(&format!("b35-port-mappings-{slug}"))
            .says("a port mapping that cannot be is refused, and nothing is left of the ADD")
            .ask(move |t| {
                let container = t.container()?;
                let call = t.invocation("ADD", &container, &mapped(t, &entries));
                refused(t, &container, &call, &[]).map(|_| ())
            })
    };
    rows.into_iter().map(row).collect()
}

/// Whose a port of the node is.
fn owners() -> Vec<Case> {
    vec![
        case("b35-port-mappings-taken").says("a port of another container is refused").ask(|t| {
            let conf = mapped(t, &json!([entry(20501, 80)]));
            let (owner, _) = add(t, &conf)?;
            let second = t.container()?;
            let error = refused(t, &second, &t.invocation("ADD", &second, &conf), &[])?;
            answer::names(&error, "ADD", &["20501", &owner.id])
        }),
        case("b35-port-mappings-one-beside-all")
            .says("a port of one address beside that of all is no conflict")
            .ask(|t| {
                add(t, &mapped(t, &json!([entry(20502, 80)])))?;
                let mut one = entry(20502, 80);
                one["hostIP"] = json!("127.0.0.2");
                add(t, &mapped(t, &json!([one]))).map(|_| ())
            }),
        case("b31-port-mappings-freed-without-payload")
            .says("DEL frees the ports, also when the runtime has forgotten them")
            .ask(|t| {
                let conf = mapped(t, &json!([entry(20503, 80)]));
                let (first, result) = add(t, &conf)?;
                t.del(&first, &result)?;
                add(t, &conf).map(|_| ())
            }),
        case("b31-port-mappings-of-a-successor")
            .says("a repeated DEL of the old sandbox spares the ports of the new one")
            .ask(|t| {
                let conf = mapped(t, &json!([entry(20504, 80)]));
                let third = t.container()?;
                let before = Snapshot::of(&t.node, &third)?;
                let (old, result) = add(t, &conf)?;
                t.del(&old, &result)?;
                // A plugin may remove the interface after its answer, and the refusal below must
                // change nothing.
                before.holds_again(&t.node, &third)?;
                let (new, _) = add(t, &conf)?;
                let late = t.invocation("DEL", &old, &conf);
                answer::silent(&t.ask(&late)?, "DEL of the old sandbox")?;
                let error = refused(t, &third, &t.invocation("ADD", &third, &conf), &[])?;
                answer::names(&error, "ADD", &[&new.id])
            }),
        case("b31-port-mappings-garbage-at-del")
            .says("DEL succeeds whatever its port mappings are")
            .ask(|t| {
                let conf = mapped(t, &json!([entry(20505, 80)]));
                let (container, _) = add(t, &conf)?;
                let garbage = mapped(t, &json!([{"hostPort": -1, "hostIP": 7}, "x"]));
                let call = t.invocation("DEL", &container, &garbage);
                answer::silent(&t.ask(&call)?, "DEL")?;
                add(t, &conf).map(|_| ())
            }),
        case("b32-notices-port-mapping-missing")
            .says("CHECK notices a port that does not lead to the container")
            .ask(|t| {
                let conf = mapped(t, &json!([entry(20506, 80)]));
                let (container, result) = add(t, &conf)?;
                let other = mapped(t, &json!([entry(20506, 80), entry(20507, 80)]));
                let checked = check(t, &container, &other, &result)?;
                answer::error(&checked, "CHECK", &[]).map(|_| ())
            })
            .needs(Need::Verb("CHECK")),
    ]
}

fn entry(host_port: u16, container_port: u16) -> Value {
    json!({"hostPort": host_port, "containerPort": container_port, "protocol": "tcp"})
}

/// The configuration with these port mappings, as a runtime puts them in.
fn mapped(t: &Trial, entries: &Value) -> Conf {
    t.conf_with(json!({"runtimeConfig": {"portMappings": entries}}))
}

/// ADD of a new container that must succeed; both.
fn add(t: &Trial, conf: &Conf) -> Checked<(Arc<Container>, Value)> {
    let container = t.container()?;
    let result = t.add_with(&container, conf)?;
    Ok((container, result))
}

/// CHECK with the port mappings of `conf`.
fn check(
    t: &Trial,
    container: &Container,
    conf: &Conf,
    result: &Value,
) -> Checked<crate::plugin::Outcome> {
    let mut conf = conf.clone();
    conf.insert("prevResult".to_owned(), result.clone());
    t.ask(&t.invocation("CHECK", container, &conf))
}
