//! Lines 9 and 13 to 17: VERSION, what each version's results look like, and which verb exists in
//! which version.

use serde_json::{Value, json};

use super::{answered, attached, refused};
use crate::conformance::answer::{self, code};
use crate::conformance::attached::has_shape_of;
use crate::conformance::case::{Case, Checked, Need, case, ensure};
use crate::conformance::trial::Trial;
use crate::conformance::version::{SPOKEN, at_least, since};

/// The rows.
pub fn cases() -> Vec<Case> {
    let mut cases = listing();
    cases.extend([
        case("b14-absent-version")
            .says("without cniVersion: served as old, or refused")
            .ask(|t| version_of(t, None)),
        case("b14-null-version")
            .says("cniVersion null is like an absent one")
            .ask(|t| version_of(t, Some(Value::Null))),
        case("b14-number-as-version")
            .says("cniVersion as a number is answered properly")
            .ask(|t| version_of(t, Some(json!(1.0)))),
        case("b17-garbage-version").says("a cniVersion that is none is refused").ask(|t| {
            let container = t.container()?;
            let conf = t.conf_with(json!({"cniVersion": "banana"}));
            let call = t.invocation("ADD", &container, &conf);
            let codes = [code::VERSION, code::DECODE, code::CONFIG];
            refused(t, &container, &call, &codes).map(|_| ())
        }),
    ]);
    for version in SPOKEN {
        cases.extend(rows_of(version));
    }
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        let slug = format!("{}-of-the-future", verb.to_lowercase());
        let sentence = format!("{verb} in version 9.9.9 is code 1 and names both sides");
        let case = case(&format!("b17-{slug}")).says(&sentence).ask(move |t| future(t, verb));
        cases.push(if since(verb) == "0.3.0" { case } else { case.needs(Need::Verb(verb)) });
    }
    cases
}

/// Lines 9 and 13: the answer of VERSION.
fn listing() -> Vec<Case> {
    vec![
        case("b09-version-empty-stdin").says("VERSION works with an empty stdin").ask(|t| {
            let mut call = t.network_invocation("VERSION", &t.conf());
            call.stdin.clear();
            listed(&answer::result(&t.ask(&call)?, "VERSION")?)
        }),
        case("b09-version-dummy-variables").says("VERSION ignores dummy variables").ask(|t| {
            let mut call = t.network_invocation("VERSION", &t.conf());
            for variable in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"] {
                call.set(variable, Some("dummy"));
            }
            listed(&answer::result(&t.ask(&call)?, "VERSION")?)
        }),
        case("b09-version-only-in-stdin").says("VERSION needs cniVersion alone on stdin").ask(
            |t| {
                let mut call = t.network_invocation("VERSION", &t.conf());
                call.stdin = json!({"cniVersion": t.version}).to_string().into_bytes();
                listed(&answer::result(&t.ask(&call)?, "VERSION")?)
            },
        ),
        case("b13-lists-all-versions").says("VERSION lists 0.3.0 to 1.1.0").ask(|t| {
            let missing: Vec<_> =
                SPOKEN.iter().filter(|v| !t.supported.iter().any(|other| other == *v)).collect();
            ensure(missing.is_empty(), || format!("VERSION does not list {missing:?}"))
        }),
    ]
}

/// The rows of one version: VERSION echoes it, ADD and DEL work in it, other verbs as it has them.
fn rows_of(version: &'static str) -> Vec<Case> {
    let mut rows = vec![
        case(&format!("b09-version-echoes-{version}"))
            .says("VERSION answers with the cniVersion of its input")
            .ask(|t| {
                let call = t.network_invocation("VERSION", &t.conf());
                let answer = answer::result(&t.ask(&call)?, "VERSION")?;
                let echoed = answer.get("cniVersion").and_then(Value::as_str);
                ensure(echoed == Some(t.version), || {
                    format!("asked in {}, answered in {echoed:?}", t.version)
                })
            })
            .version(version),
        case(&format!("b15-result-{version}"))
            .says("the result has the version asked for, with its fields and no later ones")
            .ask(|t| has_shape_of(&attached(t)?.1, t.version))
            .version(version),
        case(&format!("b16-del-{version}"))
            .says("DEL works in every version")
            .ask(|t| {
                let (container, result) = attached(t)?;
                t.del(&container, &result)
            })
            .version(version),
    ];
    for verb in ["CHECK", "STATUS", "GC"] {
        let lower = verb.to_lowercase();
        let row = if at_least(version, since(verb)) {
            let slug = format!("{lower}-{version}");
            case(&format!("b16-{slug}"))
                .says("the verb works in versions that have it")
                .ask(move |t| answer::silent(&gated(t, verb)?, verb))
        } else {
            let slug = format!("{lower}-not-in-{version}");
            case(&format!("b16-{slug}"))
                .says("a verb that came later is code 1")
                .ask(move |t| answer::error(&gated(t, verb)?, verb, &[code::VERSION]).map(|_| ()))
        };
        rows.push(row.version(version).needs(Need::Verb(verb)));
    }
    rows
}

/// The verb after an ADD in the same version.
fn gated(t: &Trial, verb: &str) -> Checked<crate::plugin::Outcome> {
    let (container, result) = attached(t)?;
    match verb {
        "CHECK" => t.check(&container, &result),
        "GC" => {
            let keep = json!([{"containerID": container.id, "ifname": container.ifname}]);
            let conf = t.conf_with(json!({"cni.dev/valid-attachments": keep}));
            t.ask(&t.network_invocation(verb, &conf))
        }
        _ => t.ask(&t.network_invocation(verb, &t.conf())),
    }
}

/// The answer of VERSION has a list of versions, each a string.
fn listed(answer: &Value) -> Checked {
    let list = answer.get("supportedVersions").and_then(Value::as_array);
    let good = list.is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_string));
    ensure(good, || format!("supportedVersions is no list of versions: {answer}"))
}

fn version_of(t: &Trial, version: Option<Value>) -> Checked {
    let container = t.container()?;
    let mut conf = t.conf();
    conf.remove("cniVersion");
    if let Some(version) = version {
        conf.insert("cniVersion".to_owned(), version);
    }
    let served = answered(t, &container, &t.invocation("ADD", &container, &conf))?;
    t.note(format!("it was {}", if served { "served" } else { "refused" }));
    Ok(())
}

fn future(t: &Trial, verb: &str) -> Checked {
    let container = t.container()?;
    let conf = t.conf_with(json!({"cniVersion": "9.9.9"}));
    let call = match verb {
        "GC" | "STATUS" => t.network_invocation(verb, &conf),
        _ => t.invocation(verb, &container, &conf),
    };
    let error = refused(t, &container, &call, &[code::VERSION])?;
    answer::names(&error, verb, &["9.9.9", t.version])
}
