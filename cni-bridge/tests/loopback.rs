//! The loopback plugin in a namespace of its own, called as a runtime calls it: by that name.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// A process in a network namespace of its own, which lives as long as this.
struct Pod(Child);

impl Pod {
    fn start() -> Self {
        let mut command = Command::new("unshare");
        // `cat` waits for the end of its input: when this test dies, the pod does.
        command.args(["--net", "sh", "-c", "echo ready; exec cat"]).process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        Self(child)
    }

    fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    fn lo(&self) -> String {
        let pid = self.0.id().to_string();
        let output = Command::new("nsenter")
            .args(["-t", &pid, "-n", "ip", "-o", "addr", "show", "dev", "lo", "up"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Calls the plugin under the name `loopback`; gives success and standard output.
fn call(verb: &str, netns: &str, extra: Value) -> (bool, String) {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "cni-loopback", "type": "loopback"});
    for (key, value) in extra.as_object().unwrap() {
        conf[key] = value.clone();
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("loopback");
    symlink(env!("CARGO_BIN_EXE_viaduct-cni"), &program).unwrap();
    let mut child = Command::new(program)
        .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", netns)])
        .envs([("CNI_IFNAME", "lo"), ("CNI_PATH", "/nowhere")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
#[ignore = "needs root"]
fn add_brings_lo_up_and_check_notices_when_it_is_down() {
    let pod = Pod::start();
    let netns = pod.netns();
    assert_eq!(pod.lo(), "", "a new namespace has lo down");
    let (ok, error) = call("CHECK", &netns, json!({}));
    assert!(!ok && json_of(&error)["code"] == 999, "{error}");

    let (ok, result) = call("ADD", &netns, json!({}));
    assert!(ok, "{result}");
    let golden = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": netns}],
        "ips": [
            {"address": "127.0.0.1/8", "interface": 0},
            {"address": "::1/128", "interface": 0},
        ],
    });
    assert_eq!(json_of(&result), golden);
    assert!(pod.lo().contains("127.0.0.1/8"), "{}", pod.lo());
    assert_eq!(call("CHECK", &netns, json!({})), (true, String::new()));
    assert_eq!(call("DEL", &netns, json!({})), (true, String::new()));
}

#[test]
#[ignore = "needs root"]
fn a_previous_result_is_passed_through() {
    let pod = Pod::start();
    let previous = json!({
        "cniVersion": "0.3.1",
        "interfaces": [{"name": "eth0", "sandbox": pod.netns()}],
        "ips": [{"version": "4", "address": "10.0.0.1/24", "interface": 0}],
        "dns": {},
    });
    let extra = json!({"cniVersion": "0.3.1", "prevResult": previous});
    let (ok, result) = call("ADD", &pod.netns(), extra);
    assert!(ok, "{result}");
    assert_eq!(json_of(&result), previous);
    assert!(!pod.lo().is_empty());
}

#[test]
fn del_status_and_gc_succeed_without_a_namespace() {
    assert_eq!(call("DEL", "/run/netns/gone", json!({})), (true, String::new()));
    assert_eq!(call("DEL", "", json!({})), (true, String::new()));
    assert_eq!(call("STATUS", "", json!({})), (true, String::new()));
    let empty = json!({"cni.dev/valid-attachments": []});
    assert_eq!(call("GC", "", empty), (true, String::new()));
}

#[test]
fn the_plugins_own_namespace_and_what_is_none_are_refused() {
    let (ok, error) = call("ADD", "/proc/self/ns/net", json!({}));
    assert!(!ok && json_of(&error)["code"] == 8, "{error}");
    let (ok, error) = call("ADD", "/dev/null", json!({}));
    assert!(!ok && json_of(&error)["code"] == 4, "{error}");
    let (ok, answer) = call("VERSION", "", json!({}));
    assert!(ok && json_of(&answer)["supportedVersions"][0] == "0.3.0", "{answer}");
}
