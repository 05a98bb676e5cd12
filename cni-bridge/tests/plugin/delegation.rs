//! Delegated IPAM, played by a shell script that logs its verbs and its input.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cni_bridge::protocol::{Addressing, Call};
use serde_json::{Value, json};

use super::fake_daemon::FakeDaemon;
use super::{Run, conf, environment, run};

/// What the script answers to ADD.
const ALLOCATED: &str = r#"{"cniVersion":"1.1.0","ips":[{"address":"10.9.0.7/16",
    "gateway":"10.9.0.1"}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"10.96.0.0/12"}],
    "dns":{"nameservers":["10.96.0.10"]}}"#;

/// Installs the IPAM plugin `fake` in `dir`: it logs, then runs `body` with the input in `$input`.
fn install(dir: &Path, body: &str) {
    let path = dir.join("fake");
    let log = dir.join("log");
    let script = format!(
        "#!/bin/sh\ninput=$(cat)\necho \"$CNI_COMMAND $CNI_CONTAINERID\" >> {log}\n\
         printf %s \"$input\" > {log}.$CNI_COMMAND\n{body}\n",
        log = log.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A script's body that allocates, and succeeds at all else.
fn obliging() -> String {
    format!("[ $CNI_COMMAND = ADD ] && cat <<'END'\n{ALLOCATED}\nEND\nexit 0")
}

fn log(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn delegating(dir: &Path, extra: Value) -> Value {
    let mut conf = conf(dir, extra);
    conf["ipam"] = json!({"type": "fake", "key": [1.5]});
    conf
}

fn call(verb: &str, dir: &Path, conf: &Value) -> Run {
    let mut pairs = environment(verb);
    pairs.push(("CNI_PATH", format!("/nowhere:{}", dir.display())));
    run(&pairs, conf.to_string().as_bytes())
}

#[test]
fn add_sends_what_ipam_allocated_and_shows_its_routes_and_dns() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path(), &obliging());
    let daemon = FakeDaemon::willing(dir.path());
    let conf = delegating(dir.path(), json!({}));
    let run = call("ADD", dir.path(), &conf);
    assert!(run.ok, "{}", run.stdout);
    let result = run.json();
    let dsts: Vec<&Value> =
        result["routes"].as_array().unwrap().iter().map(|route| &route["dst"]).collect();
    assert_eq!(dsts, ["0.0.0.0/0", "::/0", "10.96.0.0/12"]);
    assert_eq!(result["dns"], json!({"nameservers": ["10.96.0.10"]}));

    let asked = daemon.asked();
    let [(Call::Add(request), Some(_))] = asked.as_slice() else { panic!("{asked:?}") };
    let Addressing::Delegated(addresses) = &request.addressing else { panic!("{request:?}") };
    assert_eq!(addresses[0].address, "10.9.0.7".parse::<IpAddr>().unwrap());
    assert_eq!(addresses[0].prefix_len, 16);
    assert_eq!(addresses[0].gateway, Some("10.9.0.1".parse().unwrap()));
    assert_eq!(log(dir.path()), ["ADD c1"]);
    let sent: Value =
        serde_json::from_slice(&fs::read(dir.path().join("log.ADD")).unwrap()).unwrap();
    assert_eq!(sent, conf, "the delegate gets the complete configuration");
}

#[test]
fn what_ipam_allocated_is_released_when_the_daemon_refuses_or_is_away() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path(), &obliging());
    let conf = delegating(dir.path(), json!({}));
    assert_eq!(call("ADD", dir.path(), &conf).code(), 11);
    let daemon = FakeDaemon::failing(dir.path(), 50);
    assert_eq!(call("ADD", dir.path(), &conf).code(), 50);
    assert_eq!(log(dir.path()), ["ADD c1", "DEL c1", "ADD c1", "DEL c1"]);
    assert_eq!(daemon.asked().len(), 1);
}

#[test]
fn the_delegates_error_is_ours_and_reaches_no_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::willing(dir.path());
    let conf = delegating(dir.path(), json!({}));
    install(dir.path(), r#"echo '{"cniVersion":"1.1.0","code":110,"msg":"none left"}'; exit 1"#);
    let run = call("ADD", dir.path(), &conf);
    assert_eq!((run.code(), &run.json()["msg"]), (110, &json!("none left")));
    install(dir.path(), "echo oops >&2; exit 3");
    let run = call("ADD", dir.path(), &conf);
    assert_eq!(run.code(), 999);
    assert!(run.json()["msg"].as_str().unwrap().contains("fake"));
    assert_eq!(run.stderr, "oops\n", "its standard error is passed through");
    assert!(daemon.asked().is_empty());
}

#[test]
fn a_result_without_an_address_or_that_is_none_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let _daemon = FakeDaemon::willing(dir.path());
    let conf = delegating(dir.path(), json!({}));
    install(dir.path(), "echo '{}'");
    assert_eq!(call("ADD", dir.path(), &conf).code(), 999);
    install(dir.path(), "echo nonsense");
    assert_eq!(call("ADD", dir.path(), &conf).code(), 6);
    assert_eq!(log(dir.path()), ["ADD c1", "DEL c1", "ADD c1", "DEL c1"]);
}

#[test]
fn every_verb_is_forwarded_after_ours() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path(), &obliging());
    let daemon = FakeDaemon::willing(dir.path());
    let eth0 = json!({"name": "eth0", "sandbox": "/proc/self/ns/net"});
    let conf = delegating(
        dir.path(),
        json!({
            "cni.dev/valid-attachments": [],
            "prevResult": {"interfaces": [eth0]},
        }),
    );
    for verb in ["DEL", "CHECK", "GC", "STATUS"] {
        call(verb, dir.path(), &conf).silent();
    }
    assert_eq!(log(dir.path()), ["DEL c1", "CHECK c1", "GC ", "STATUS "]);
    assert_eq!(daemon.asked().last().unwrap().0, Call::CniStatus { delegated_ipam: true });
}

#[test]
fn del_releases_also_while_the_daemon_is_away_but_not_what_it_refuses_to_detach() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path(), &obliging());
    let conf = delegating(dir.path(), json!({}));
    call("DEL", dir.path(), &conf).silent();
    assert_eq!(log(dir.path()), ["DEL c1"]);
    let _daemon = FakeDaemon::failing(dir.path(), 5);
    assert_eq!(call("DEL", dir.path(), &conf).code(), 5);
    assert_eq!(log(dir.path()), ["DEL c1"], "a pod may still have the address");
}

#[test]
fn an_older_delegate_is_asked_in_its_own_version() {
    let dir = tempfile::tempdir().unwrap();
    // As plugins of the time answer: they speak up to 1.0.0 and know neither GC nor STATUS.
    install(
        dir.path(),
        concat!(
            "case $CNI_COMMAND in\n",
            "VERSION)\n",
            "  echo '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.2.0\",\"1.0.0\"]}';;\n",
            "GC|STATUS) echo '{\"code\":4,\"msg\":\"unknown CNI_COMMAND\"}'; exit 1;;\n",
            "*) case $input in\n",
            "  *'\"cniVersion\":\"1.0.0\"'*)\n",
            "    echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.9.0.7/16\"}]}';;\n",
            "  *) echo '{\"code\":1,\"msg\":\"incompatible CNI versions\"}'; exit 1;;\n",
            "  esac;;\n",
            "esac",
        ),
    );
    let _daemon = FakeDaemon::willing(dir.path());
    let conf = delegating(dir.path(), json!({"cni.dev/valid-attachments": []}));
    let run = call("ADD", dir.path(), &conf);
    assert!(run.ok, "{}", run.stdout);
    assert_eq!(run.json()["cniVersion"], "1.1.0");
    for verb in ["GC", "STATUS", "DEL"] {
        call(verb, dir.path(), &conf).silent();
    }
}

#[test]
fn a_delegate_that_is_not_installed_is_code_4_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let _daemon = FakeDaemon::willing(dir.path());
    let run = call("ADD", dir.path(), &delegating(dir.path(), json!({})));
    assert_eq!(run.code(), 4);
    assert!(run.json()["msg"].as_str().unwrap().contains("fake"));
}

#[test]
fn a_delegate_that_writes_without_end_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let _daemon = FakeDaemon::willing(dir.path());
    install(dir.path(), "[ $CNI_COMMAND = ADD ] && yes; exit 0");
    assert_eq!(call("ADD", dir.path(), &delegating(dir.path(), json!({}))).code(), 6);
}

#[test]
#[ignore = "needs the reference plugins in /usr/lib/cni"]
fn the_reference_static_plugin_allocates_whatever_versions_it_speaks() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::willing(dir.path());
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let address = json!({"address": "10.10.0.1/24", "gateway": "10.10.0.254"});
        let route = json!({"dst": "10.96.0.0/12", "gw": "10.10.0.253"});
        let ipam = json!({"type": "static", "addresses": [address], "routes": [route]});
        let conf = conf(dir.path(), json!({"cniVersion": version, "ipam": ipam}));
        let mut pairs = environment("ADD");
        pairs.push(("CNI_PATH", "/usr/lib/cni".to_owned()));
        let run = run(&pairs, conf.to_string().as_bytes());
        assert!(run.ok, "{version}: {}", run.stdout);
        assert_eq!(run.json()["routes"][2]["gw"], "10.10.0.253", "{version}");
        let asked = daemon.asked();
        let Some((Call::Add(request), _)) = asked.last() else { panic!("{asked:?}") };
        let Addressing::Delegated(addresses) = &request.addressing else { panic!("{request:?}") };
        assert_eq!(addresses[0].gateway, Some("10.10.0.254".parse().unwrap()));
    }
}
