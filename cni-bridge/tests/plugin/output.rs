//! Standard output holds one JSON document or nothing, whatever goes in.

use serde_json::json;

use super::fake_daemon::FakeDaemon;
use super::{call, conf, environment, run};

#[test]
fn called_by_hand_it_introduces_itself_on_standard_error() {
    let run = run(&[], b"");
    assert!(run.ok && run.stdout.is_empty());
    assert!(run.stderr.contains("viaduct-cni") && run.stderr.contains("1.1.0"), "{}", run.stderr);
}

#[test]
fn a_verb_that_does_not_exist_is_code_4() {
    assert_eq!(run(&environment("UPDATE"), b"{}").code(), 4);
}

#[test]
fn a_missing_variable_is_code_4_and_named() {
    let pairs = [("CNI_COMMAND", "ADD".to_owned()), ("CNI_IFNAME", "eth0".to_owned())];
    let run = run(&pairs, br#"{"cniVersion":"0.4.0","name":"n"}"#);
    assert_eq!(run.code(), 4);
    let error = run.json();
    assert_eq!(error["msg"], "required env variables [CNI_CONTAINERID,CNI_NETNS] missing");
    assert_eq!(error["cniVersion"], "0.4.0");
}

#[test]
fn broken_input_is_an_error_object_of_its_code() {
    let cases: [(&[u8], u64); 7] = [
        (b"", 6),
        (b"{", 6),
        (b"[]", 6),
        (b"\xff\xfe", 6),
        (br#"{"name":"n"}"#, 1),
        (br#"{"cniVersion":"0.2.0","name":"n"}"#, 1),
        (br#"{"cniVersion":"1.0.0"}"#, 7),
    ];
    for (stdin, code) in cases {
        for verb in ["ADD", "DEL"] {
            let run = run(&environment(verb), stdin);
            assert_eq!(run.code(), code, "{verb} {:?}", String::from_utf8_lossy(stdin));
        }
    }
    let huge = vec![b' '; (1 << 20) + 1];
    assert_eq!(run(&environment("ADD"), &huge).code(), 6);
}

#[test]
fn an_unsupported_wish_is_code_2_and_reaches_no_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = FakeDaemon::willing(dir.path());
    let run = call("ADD", &conf(dir.path(), json!({"markMasqBit": 14})));
    assert_eq!(run.code(), 2);
    assert!(run.json()["msg"].as_str().unwrap().contains("14"));
    assert!(daemon.asked().is_empty());
}

#[test]
fn version_needs_neither_environment_nor_input() {
    let run = run(&[("CNI_COMMAND", "VERSION".to_owned())], b"");
    assert!(run.ok);
    assert_eq!(run.json()["supportedVersions"][4], "1.1.0");
}
