//! Judges a plugin's answer by itself: exit code, stdout discipline, error object (checklist lines
//! 5 to 7).

use serde_json::{Map, Value};

use super::case::{Checked, ensure, fail};
use crate::plugin::{Ended, KILL_AFTER, Outcome};

/// Codes of the specification, section "Error", and of its libraries (8: types/types.go).
pub mod code {
    /// Incompatible CNI version.
    pub const VERSION: u64 = 1;
    /// Unsupported field in the configuration.
    pub const UNSUPPORTED_FIELD: u64 = 2;
    /// Missing or malformed environment variable.
    pub const ENVIRONMENT: u64 = 4;
    /// The configuration cannot be decoded.
    pub const DECODE: u64 = 6;
    /// The configuration is decoded but invalid.
    pub const CONFIG: u64 = 7;
    /// CNI_NETNS is not a namespace that may be used.
    pub const NETNS: u64 = 8;
    /// The plugin cannot serve an ADD now.
    pub const NOT_AVAILABLE: u64 = 50;
    /// Nor do existing attachments work fully.
    pub const DEGRADED: u64 = 51;
}

/// The error object a plugin printed.
#[derive(Clone, Debug)]
pub struct ErrorObject {
    /// `code`.
    pub code: u64,
    /// `msg` and `details`, as one text to search.
    pub text: String,
    /// All of it.
    pub object: Map<String, Value>,
}

/// What holds for every answer: it ended by itself, in time, and stdout is nothing or exactly one
/// JSON object.
pub fn disciplined(outcome: &Outcome) -> Checked {
    match outcome.ended {
        Ended::Exited(_) => {}
        Ended::Crashed(signal) => return fail(format!("crashed by signal {signal}")),
        Ended::Killed => {
            return fail(format!("no answer within {} s; killed", KILL_AFTER.as_secs()));
        }
        Ended::HeldStdout => {
            return fail("left a process behind that keeps stdout open: runtimes hang on that");
        }
    }
    let one_object = outcome.json.as_ref().is_some_and(Value::is_object);
    ensure(outcome.stdout.is_empty() || one_object, || {
        format!("stdout is not exactly one JSON object: {}", excerpt(&outcome.stdout))
    })
}

/// The call succeeded and printed nothing, as DEL, CHECK, GC and STATUS do.
pub fn silent(outcome: &Outcome, what: &str) -> Checked {
    succeeded(outcome, what)?;
    ensure(outcome.stdout.is_empty(), || {
        format!("{what} succeeded but printed: {}", excerpt(&outcome.stdout))
    })
}

/// The call succeeded and printed one object, as ADD and VERSION do.
pub fn result(outcome: &Outcome, what: &str) -> Checked<Value> {
    succeeded(outcome, what)?;
    match &outcome.json {
        Some(json) => Ok(json.clone()),
        None => fail(format!("{what} succeeded but printed no result")),
    }
}

fn succeeded(outcome: &Outcome, what: &str) -> Checked {
    ensure(outcome.code == Some(0), || {
        format!("{what} failed: {} {}", excerpt(&outcome.stdout), excerpt(&outcome.stderr))
    })
}

/// The call failed with an error object on stdout. `codes` lists the acceptable ones; empty means
/// that any will do.
pub fn error(outcome: &Outcome, what: &str, codes: &[u64]) -> Checked<ErrorObject> {
    ensure(outcome.code != Some(0), || format!("{what} succeeded but must fail"))?;
    let Some(Value::Object(object)) = &outcome.json else {
        let stderr = excerpt(&outcome.stderr);
        return fail(format!("{what} failed without an error object on stdout; stderr: {stderr}"));
    };
    let Some(code) = object.get("code").and_then(Value::as_u64) else {
        return fail(format!(
            "{what}: the error has no numeric code: {}",
            excerpt(&outcome.stdout)
        ));
    };
    let text_of = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    ensure(!text_of("msg").is_empty(), || format!("{what}: the error of code {code} has no msg"))?;
    let text = format!("{} {}", text_of("msg"), text_of("details")).trim().to_owned();
    ensure(codes.is_empty() || codes.contains(&code), || {
        format!("{what}: code is {code}, wanted {codes:?}: {text}")
    })?;
    Ok(ErrorObject { code, text, object: object.clone() })
}

/// The error's text contains each of `words`.
pub fn names(error: &ErrorObject, what: &str, words: &[&str]) -> Checked {
    for word in words {
        ensure(error.text.contains(word), || {
            format!("{what}: the message does not name {word}: {}", error.text)
        })?;
    }
    Ok(())
}

/// One line of at most 300 characters, to quote in a reason.
pub fn excerpt(text: &str) -> String {
    let line: Vec<&str> = text.split_whitespace().collect();
    line.join(" ").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn outcome(code: i32, stdout: &str) -> Outcome {
        Outcome {
            code: Some(code),
            ended: Ended::Exited(code),
            stdout: stdout.to_owned(),
            stderr: String::new(),
            json: serde_json::from_str(stdout).ok(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn a_log_line_before_the_result_breaks_the_discipline() {
        assert!(disciplined(&outcome(0, "started\n{}")).is_err());
        assert!(disciplined(&outcome(0, "{} {}")).is_err());
        assert!(disciplined(&outcome(0, "[]")).is_err());
        assert!(disciplined(&outcome(0, " {}\n")).is_ok());
        assert!(disciplined(&outcome(0, "")).is_ok());
    }

    #[test]
    fn a_silent_success_prints_nothing_at_all() {
        assert!(silent(&outcome(0, ""), "DEL").is_ok());
        assert!(silent(&outcome(0, "{}"), "DEL").is_err());
        assert!(silent(&outcome(1, ""), "DEL").is_err());
    }

    #[test]
    fn an_error_needs_an_exit_code_an_object_a_code_and_a_message() {
        let good = r#"{"code":4,"msg":"required","details":"CNI_IFNAME"}"#;
        assert!(error(&outcome(1, good), "ADD", &[4]).is_ok());
        assert!(error(&outcome(0, good), "ADD", &[4]).is_err(), "exit code 0");
        assert!(error(&outcome(1, good), "ADD", &[7]).is_err(), "other code");
        assert!(error(&outcome(1, r#"{"code":4}"#), "ADD", &[4]).is_err(), "no msg");
        assert!(error(&outcome(1, r#"{"code":"4","msg":"m"}"#), "ADD", &[]).is_err(), "no number");
        assert!(error(&outcome(1, ""), "ADD", &[]).is_err(), "nothing printed");
    }

    #[test]
    fn details_count_as_part_of_the_message() {
        let answer = outcome(1, r#"{"code":4,"msg":"missing","details":"CNI_IFNAME"}"#);
        let error = error(&answer, "ADD", &[]).unwrap();
        assert!(names(&error, "ADD", &["missing", "CNI_IFNAME"]).is_ok());
        assert!(names(&error, "ADD", &["CNI_NETNS"]).is_err());
    }
}
