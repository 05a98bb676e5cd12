//! Lines 1 to 3: the environment a plugin is called with.

use serde_json::json;

use super::refused;
use crate::conformance::answer::{self, code};
use crate::conformance::attached::is_in_place;
use crate::conformance::case::{Case, Checked, Need, case, ensure};
use crate::conformance::trial::Trial;
use crate::conformance::version::since;

/// Variables that each verb requires (CNI specification, section 2, "CNI operations").
const REQUIRED: [(&str, &[&str]); 4] = [
    ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
    ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
    ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
    ("GC", &["CNI_PATH"]),
];

/// Container ids outside the alphabet of the specification.
const BAD_IDS: [(&str, &str); 5] = [
    ("slash", "a/b"),
    ("leading-dot", ".a"),
    ("leading-dash", "-a"),
    ("space", "a b"),
    ("newline", "a\n"),
];

/// Interface names that the kernel or the specification refuses; 16 bytes do not fit IFNAMSIZ.
const BAD_IFNAMES: [(&str, &str); 7] = [
    ("of-16-bytes", "eth0123456789abc"),
    ("dot", "."),
    ("dot-dot", ".."),
    ("slash", "a/b"),
    ("colon", "a:b"),
    ("space", "a b"),
    ("tab", "a\tb"),
];

/// The rows.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("b01-unknown-verb")
            .says("an unknown verb is refused with code 4")
            .ask(|t| verb(t, "FROB")),
        case("b01-lower-case-verb")
            .says("verbs are upper case; `add` is code 4")
            .ask(|t| verb(t, "add")),
        case("b01-absent-verb")
            .says("without CNI_COMMAND: text on stderr, exit 0")
            .ask(absent_verb),
        case("b02-add-names-all-missing")
            .says("the message names every missing variable")
            .ask(all_named),
        case("b02-version-needs-only-command")
            .says("VERSION needs CNI_COMMAND alone")
            .ask(bare_version),
        case("b03-longest-ifname")
            .says("an interface name of 15 bytes is served")
            .ask(longest_ifname),
        case("b03-id-alphabet").says("an id of letters, digits, `_.-` is served").ask(id_alphabet),
    ];
    for (verb, variables) in REQUIRED {
        for variable in variables {
            cases.extend(missing_variable(verb, variable));
        }
    }
    for (slug, id) in BAD_IDS {
        cases.push(
            case(&format!("b03-container-id-with-{slug}"))
                .says("a container id outside the alphabet is code 4")
                .ask(move |t| bad_variable(t, "CNI_CONTAINERID", id)),
        );
    }
    for (slug, ifname) in BAD_IFNAMES {
        cases.push(
            case(&format!("b03-ifname-{slug}"))
                .says("an interface name the kernel refuses is code 4")
                .ask(move |t| bad_variable(t, "CNI_IFNAME", ifname)),
        );
    }
    cases
}

/// Two rows: the variable absent, and present but empty.
fn missing_variable(verb: &'static str, variable: &'static str) -> [Case; 2] {
    let short = variable.trim_start_matches("CNI_").to_lowercase();
    [("without", None), ("with-empty", Some(""))].map(|(how, value)| {
        let slug = format!("{}-{how}-{short}", verb.to_lowercase());
        let sentence = format!("{verb} {how} {variable} is code 4 and names the variable");
        let sentence = sentence.replace("with-empty", "with an empty");
        let case = case(&format!("b02-{slug}")).says(&sentence).ask(move |t| {
            let container = t.container()?;
            let mut call = match verb {
                "GC" => {
                    let conf = t.conf_with(json!({"cni.dev/valid-attachments": []}));
                    t.network_invocation(verb, &conf)
                }
                _ => t.invocation(verb, &container, &t.conf()),
            };
            call.set(variable, value);
            let error = refused(t, &container, &call, &[code::ENVIRONMENT])?;
            answer::names(&error, verb, &[variable])
        });
        if since(verb) == "0.3.0" { case } else { case.needs(Need::Verb(verb)) }
    })
}

fn verb(t: &Trial, verb: &str) -> Checked {
    let container = t.container()?;
    let call = t.invocation(verb, &container, &t.conf());
    refused(t, &container, &call, &[code::ENVIRONMENT]).map(|_| ())
}

fn absent_verb(t: &Trial) -> Checked {
    let container = t.container()?;
    let mut call = t.invocation("ADD", &container, &t.conf());
    call.set("CNI_COMMAND", None);
    let outcome = t.ask(&call)?;
    answer::silent(&outcome, "a call without CNI_COMMAND")?;
    ensure(!outcome.stderr.is_empty(), || "nothing on stderr tells what this is".to_owned())
}

fn all_named(t: &Trial) -> Checked {
    let container = t.container()?;
    let mut call = t.invocation("ADD", &container, &t.conf());
    for variable in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        call.set(variable, None);
    }
    let error = refused(t, &container, &call, &[code::ENVIRONMENT])?;
    answer::names(&error, "ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])
}

fn bare_version(t: &Trial) -> Checked {
    let mut call = t.network_invocation("VERSION", &t.conf());
    call.set("CNI_PATH", None);
    answer::result(&t.ask(&call)?, "VERSION").map(|_| ())
}

fn bad_variable(t: &Trial, variable: &str, value: &str) -> Checked {
    let container = t.container()?;
    let mut call = t.invocation("ADD", &container, &t.conf());
    call.set(variable, Some(value));
    refused(t, &container, &call, &[code::ENVIRONMENT]).map(|_| ())
}

fn longest_ifname(t: &Trial) -> Checked {
    let container = t.second_interface(&*t.container()?, "eth0123456789ab");
    let result = t.add(&container)?;
    is_in_place(&result, &container)
}

fn id_alphabet(t: &Trial) -> Checked {
    let container = t.container()?;
    let mut call = t.invocation("ADD", &container, &t.conf());
    call.set("CNI_CONTAINERID", Some(&format!("0A_.-{}", container.id)));
    answer::result(&t.ask(&call)?, "ADD").map(|_| ())
}
