//! Lines 5 to 12: stdout, exit code, error object, namespaces, concurrency.

use std::collections::BTreeSet;
use std::thread;

use serde_json::Value;

use super::{attached, refused};
use crate::conformance::answer::{self, code};
use crate::conformance::attached::{addresses, interface_stays, is_in_place};
use crate::conformance::case::{Case, Checked, Need, Stop, case, ensure, fail};
use crate::conformance::trial::Trial;

/// Containers added at once: more than a node starts at once, few enough for a small machine.
const PARALLEL: usize = 20;

/// The rows.
pub fn cases() -> Vec<Case> {
    vec![
        case("b05-add-prints-one-document")
            .says("ADD prints one result and nothing else")
            .ask(add_once),
        case("b05-del-prints-nothing").says("a DEL that succeeds prints nothing").ask(|t| {
            let (container, result) = attached(t)?;
            t.del(&container, &result)
        }),
        case("b05-check-prints-nothing")
            .says("a CHECK that succeeds prints nothing")
            .ask(|t| {
                let (container, result) = attached(t)?;
                answer::silent(&t.check(&container, &result)?, "CHECK")
            })
            .needs(Need::Verb("CHECK")),
        case("b06-error-on-stdout")
            .says("an error is on stdout and the exit code not 0")
            .ask(|t| error_object(t).map(|_| ())),
        case("b07-error-names-version")
            .says("an error object has the cniVersion")
            .ask(error_version),
        case("b07-error-fields")
            .says("an error object has code, msg and no unknown key")
            .ask(error_fields),
        case("b08-own-namespace").says("CNI_NETNS must not be the plugin's own").ask(own_namespace),
        case("b08-own-namespace-override")
            .says("with CNI_NETNS_OVERRIDE=1 the plugin's own namespace is served")
            .ask(override_own),
        case("b08-absent-namespace")
            .says("ADD with a path that is not there fails")
            .ask(|t| bad_netns(t, "/var/run/netns/conformance-nowhere")),
        case("b08-file-as-namespace")
            .says("ADD with a file that is no namespace fails")
            .ask(|t| bad_netns(t, "/etc/hostname")),
        case("b10-parallel-containers").says("20 ADDs at once all work").ask(parallel_containers),
        case("b10-parallel-interfaces")
            .says("two interfaces of a container at once")
            .ask(two_at_once),
        case("b12-tracing-variables")
            .says("tracing variables are tolerated")
            .ask(tracing_variables),
    ]
}

fn add_once(t: &Trial) -> Checked {
    let (_, result) = attached(t)?;
    ensure(result.is_object(), || format!("the result is no object: {result}"))
}

/// An error that every plugin must give: ADD without a container id.
fn error_object(t: &Trial) -> Checked<answer::ErrorObject> {
    let container = t.container()?;
    let mut call = t.invocation("ADD", &container, &t.conf());
    call.set("CNI_CONTAINERID", None);
    answer::error(&t.ask(&call)?, "ADD", &[])
}

fn error_version(t: &Trial) -> Checked {
    let error = error_object(t)?;
    let version = error.object.get("cniVersion").and_then(Value::as_str);
    ensure(version.is_some(), || "the error object has no cniVersion".to_owned())
}

fn error_fields(t: &Trial) -> Checked {
    let error = error_object(t)?;
    let known = ["cniVersion", "code", "msg", "details"];
    let unknown: Vec<_> = error.object.keys().filter(|key| !known.contains(&&***key)).collect();
    ensure(unknown.is_empty(), || format!("unknown keys in the error object: {unknown:?}"))?;
    // CNI specification, section "Error": 1 to 99 are reserved; these are given out.
    let given = [1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51];
    ensure(given.contains(&error.code) || error.code >= 100, || {
        format!("code {} is reserved", error.code)
    })
}

/// The process runs in a namespace of its own for this, so that the node stays out of it.
fn own_namespace(t: &Trial) -> Checked {
    let container = t.container()?;
    let call = t.invocation("ADD", &container, &t.conf());
    let outcome = t.ask_in(&container.netns, &call)?;
    answer::error(&outcome, "ADD into the plugin's own namespace", &[code::NETNS]).map(|_| ())
}

fn override_own(t: &Trial) -> Checked {
    let container = t.container()?;
    let mut call = t.invocation("ADD", &container, &t.conf());
    call.extra_env.push(("CNI_NETNS_OVERRIDE".to_owned(), "1".to_owned()));
    let outcome = t.ask_in(&container.netns, &call)?;
    answer::result(&outcome, "ADD with CNI_NETNS_OVERRIDE=1").map(|_| ())
}

fn bad_netns(t: &Trial, path: &str) -> Checked {
    let container = t.container()?;
    let mut call = t.invocation("ADD", &container, &t.conf());
    call.set("CNI_NETNS", Some(path));
    refused(t, &container, &call, &[]).map(|_| ())
}

fn parallel_containers(t: &Trial) -> Checked {
    let mut containers = Vec::new();
    for _ in 0..PARALLEL {
        containers.push(t.container()?);
    }
    let results = thread::scope(|scope| {
        let adds: Vec<_> = containers.iter().map(|one| scope.spawn(|| t.add(one))).collect();
        adds.into_iter().map(|add| add.join().expect("an ADD does not panic")).collect::<Vec<_>>()
    });
    let mut seen = BTreeSet::new();
    for (result, container) in results.into_iter().zip(&containers) {
        let result = result?;
        is_in_place(&result, container)?;
        for address in addresses(&result)? {
            ensure(seen.insert(address), || format!("{address} was given to two containers"))?;
        }
        t.del(container, &result)?;
    }
    Ok(())
}

/// go-cni sets up all networks of a container in parallel.
fn two_at_once(t: &Trial) -> Checked {
    let first = t.container()?;
    let second = t.second_interface(&first, "eth1");
    let (one, two) = thread::scope(|scope| {
        let one = scope.spawn(|| t.add(&first));
        let two = t.add(&second);
        (one.join().expect("an ADD does not panic"), two)
    });
    for (outcome, container) in [(one, &first), (two, &second)] {
        if let Err(Stop::Fail(reason)) = outcome {
            return fail(format!("{}: {reason}", container.ifname));
        }
        interface_stays(container)?;
    }
    Ok(())
}

/// W3C Trace Context, which newer libcni hands on.
fn tracing_variables(t: &Trial) -> Checked {
    let container = t.container()?;
    let mut call = t.invocation("ADD", &container, &t.conf());
    for (name, value) in [
        ("TRACEPARENT", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("TRACESTATE", "a=1,b=2"),
        ("BAGGAGE", "k=v"),
    ] {
        call.extra_env.push((name.to_owned(), value.to_owned()));
    }
    answer::result(&t.ask(&call)?, "ADD").map(|_| ())
}
