//! Lines 3 (network names) and 4: the configuration on stdin, from empty to oversized.

use serde_json::{Value, json};

use super::arguments::asked_address;
use super::{answered, attached, refused};
use crate::conformance::answer::{self, code};
use crate::conformance::case::{Case, Checked, Need, case, ensure};
use crate::conformance::trial::Trial;
use crate::plugin::Outcome;

/// Bytes of an oversized configuration: more than a pipe holds, than a socket buffer holds, and
/// than a plugin with a daemon may want to pass on.
const OVERSIZED_BYTES: usize = 8 << 20;

/// Depth of a configuration that overflows the stack of a careless recursive parser.
const DEEP: usize = 200_000;

/// Network names outside the alphabet that container ids share.
const BAD_NAMES: [(&str, &str); 4] =
    [("empty", ""), ("slash", "a/b"), ("space", "a b"), ("leading-dot", ".net")];

/// The rows.
pub fn cases() -> Vec<Case> {
    let mut cases = undecodable_rows();
    cases.extend([
        case("b04-oversized").says("8 MiB are served or refused, with nothing left").ask(oversized),
        case("b04-unknown-keys")
            .says("unknown keys are ignored or named with code 2")
            .ask(unknown_keys),
        case("b04-case-variants")
            .says("keys of runtimeConfig match in any case")
            .ask(case_variants)
            .needs(Need::Capability("ips")),
    ]);
    for (slug, name) in BAD_NAMES {
        cases.push(
            case(&format!("b03-network-name-{slug}"))
                .says("a network name outside the alphabet is code 7")
                .ask(move |t| {
                    let conf = t.conf_with(json!({"name": name}));
                    undecodable(t, Value::Object(conf).to_string().into_bytes(), &[code::CONFIG])
                }),
        );
    }
    cases
}

/// What cannot be decoded.
fn undecodable_rows() -> Vec<Case> {
    vec![
        case("b03-network-name-missing").says("a configuration without name is code 7").ask(|t| {
            let mut conf = t.conf();
            conf.remove("name");
            let object = Value::Object(conf).to_string();
            undecodable(t, object.into_bytes(), &[code::CONFIG])
        }),
        case("b04-empty")
            .says("an empty stdin is code 6")
            .ask(|t| undecodable(t, Vec::new(), &[code::DECODE])),
        case("b04-garbage")
            .says("text that is no JSON is code 6")
            .ask(|t| undecodable(t, b"hello, plugin".to_vec(), &[code::DECODE])),
        case("b04-truncated").says("half a configuration is code 6").ask(|t| {
            let whole = Value::Object(t.conf()).to_string();
            let half = whole.len() / 2;
            undecodable(t, whole.into_bytes()[..half].to_vec(), &[code::DECODE])
        }),
        case("b04-array")
            .says("JSON that is no object is code 6")
            .ask(|t| undecodable(t, b"[1, 2]".to_vec(), &[code::DECODE])),
        case("b04-null").says("`null` is refused").ask(|t| undecodable(t, b"null".to_vec(), &[])),
        case("b04-two-documents").says("a second document after the first is code 6").ask(|t| {
            let one = Value::Object(t.conf()).to_string();
            undecodable(t, format!("{one}{one}").into_bytes(), &[code::DECODE])
        }),
        case("b04-deeply-nested")
            .says("200,000 open brackets do not crash the plugin")
            .ask(|t| undecodable(t, vec![b'['; DEEP], &[])),
        case("b04-binary")
            .says("bytes that are no UTF-8 are refused")
            .ask(|t| undecodable(t, vec![0xff, 0xfe, 0x00, 0x80], &[])),
        case("b04-wrong-type").says("a name that is a number is code 6 or 7").ask(|t| {
            let conf = t.conf_with(json!({"name": 5}));
            let stdin = Value::Object(conf).to_string().into_bytes();
            undecodable(t, stdin, &[code::DECODE, code::CONFIG])
        }),
    ]
}

fn undecodable(t: &Trial, stdin: Vec<u8>, codes: &[u64]) -> Checked {
    let container = t.container()?;
    let mut call = t.invocation("ADD", &container, &t.conf());
    call.stdin = stdin;
    refused(t, &container, &call, codes).map(|_| ())
}

fn oversized(t: &Trial) -> Checked {
    let container = t.container()?;
    let conf = t.conf_with(json!({"comment": "x".repeat(OVERSIZED_BYTES)}));
    let served = answered(t, &container, &t.invocation("ADD", &container, &conf))?;
    t.note(format!("8 MiB were {}", if served { "served" } else { "refused" }));
    // The plugin, and its daemon if there is one, must be none the worse.
    attached(t).map(|_| ())
}

fn unknown_keys(t: &Trial) -> Checked {
    let container = t.container()?;
    let conf = t.conf_with(json!({"surpriseKey": "surpriseValue", "another": {"deep": [null]}}));
    let outcome: Outcome = t.ask(&t.invocation("ADD", &container, &conf))?;
    if outcome.code == Some(0) {
        return Ok(());
    }
    let error = answer::error(&outcome, "ADD", &[code::UNSUPPORTED_FIELD])?;
    answer::names(&error, "ADD", &["surpriseKey", "surpriseValue"])
}

/// Go decodes keys in any case, and configurations in the wild rely on it.
fn case_variants(t: &Trial) -> Checked {
    let wanted = asked_address(t)?;
    let container = t.container()?;
    let conf = t.conf_with(json!({"RuntimeConfig": {"IPs": [wanted.to_string()]}}));
    let result = t.add_with(&container, &conf)?;
    let given = crate::conformance::attached::addresses(&result)?;
    ensure(given.contains(&wanted), || {
        format!("RuntimeConfig.IPs asked for {wanted}, given was {given:?}")
    })
}
