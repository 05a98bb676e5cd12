//! The program itself, against a daemon that a test plays: every verb, what it prints, and what it
//! does when the daemon or the delegate misbehaves. Needs no privileges: the test's own namespace
//! stands for the pod's.

mod delegation;
mod fake_daemon;
mod output;
mod verbs;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// What one run of the plugin printed.
struct Run {
    ok: bool,
    stdout: String,
    stderr: String,
}

impl Run {
    /// Standard output as the one JSON document that it must be.
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {:?} {:?}", self.stdout, self.stderr))
    }

    /// The error code, after checking that this is a whole error object.
    fn code(&self) -> u64 {
        let error = self.json();
        assert!(!self.ok, "{error}");
        assert!(error["cniVersion"].is_string(), "{error}");
        assert!(error["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{error}");
        error["code"].as_u64().expect("a code")
    }

    /// Asserts success without a word on standard output.
    fn silent(&self) {
        assert!(self.ok && self.stdout.is_empty(), "{:?} {:?}", self.stdout, self.stderr);
    }
}

/// The environment of `verb` as a runtime makes it; the test's own namespace stands for the pod's.
fn environment(verb: &str) -> Vec<(&'static str, String)> {
    let mut pairs = vec![("CNI_COMMAND", verb.to_owned()), ("CNI_PATH", "/nowhere".to_owned())];
    if matches!(verb, "ADD" | "DEL" | "CHECK") {
        pairs.extend([
            ("CNI_CONTAINERID", "c1".to_owned()),
            ("CNI_NETNS", "/proc/self/ns/net".to_owned()),
            ("CNI_NETNS_OVERRIDE", "1".to_owned()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web".to_owned()),
        ]);
    }
    pairs
}

/// A configuration of the newest version for the daemon in `dir`, with `extra` keys over it.
fn conf(dir: &Path, extra: Value) -> Value {
    let mut conf = json!({
        "cniVersion": "1.1.0",
        "name": "viaduct",
        "type": "viaduct-cni",
        "socket": dir.join("viaduct.sock"),
    });
    for (key, value) in extra.as_object().expect("an object") {
        conf[key] = value.clone();
    }
    conf
}

/// Runs the plugin with nothing in its environment but `pairs`, of which the last of a name holds.
fn run(pairs: &[(&'static str, String)], stdin: &[u8]) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_viaduct-cni"))
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .envs(pairs.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A plugin that refuses its environment does not read.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    Run {
        ok: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs `verb` with its usual environment.
fn call(verb: &str, conf: &Value) -> Run {
    run(&environment(verb), conf.to_string().as_bytes())
}
