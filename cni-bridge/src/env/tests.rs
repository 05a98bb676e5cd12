//! Tests of the environment's checks.

use std::cell::Cell;
use std::io;
use std::os::unix::ffi::OsStringExt;

use super::*;

const FULL: [(&str, &str); 5] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/pod"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_PATH", "/opt/cni/bin"),
];

/// Reads for `verb` from [`FULL`] with `changes` over it; an empty value stands for itself.
fn read(verb: Verb, changes: &[(&str, &str)]) -> Result<Environment, CniError> {
    Environment::read(verb, &|name| {
        let pairs = changes.iter().chain(FULL.iter());
        pairs.clone().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    })
}

#[test]
fn the_verb_is_one_of_six_or_absent() {
    let verb = |text: Option<&str>| verb(&|_| text.map(OsString::from));
    assert_eq!(verb(None), Ok(None));
    assert_eq!(verb(Some("")), Ok(None));
    assert_eq!(verb(Some("GC")), Ok(Some(Verb::Gc)));
    for text in ["add", "ADD ", "UPDATE"] {
        let error = verb(Some(text)).unwrap_err();
        assert_eq!(error.code, 4);
        assert!(error.msg.contains(text));
    }
}

#[test]
fn every_missing_variable_is_named() {
    let none = |verb| Environment::read(verb, &|_| None).map_err(|error| (error.code, error.msg));
    let missing = |names: &str| (4, format!("required env variables [{names}] missing"));
    assert_eq!(none(Verb::Add), Err(missing("CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME")));
    assert_eq!(none(Verb::Check), Err(missing("CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME")));
    assert_eq!(none(Verb::Del), Err(missing("CNI_CONTAINERID,CNI_IFNAME")));
    assert_eq!(none(Verb::Gc), Err(missing("CNI_PATH")));
    assert_eq!(none(Verb::Status), Ok(Environment::default()));
    assert_eq!(none(Verb::Version), Ok(Environment::default()));
    let error = read(Verb::Add, &[("CNI_IFNAME", "")]).unwrap_err();
    assert_eq!(error.msg, "required env variables [CNI_IFNAME] missing", "empty is missing");
}

#[test]
fn del_needs_no_namespace() {
    assert_eq!(read(Verb::Del, &[("CNI_NETNS", "")]).unwrap().netns, "");
}

#[test]
fn container_ids_and_interface_names_have_their_alphabets() {
    for id in ["-a", "a/b", "a b", ".", "../x"] {
        let error = read(Verb::Del, &[("CNI_CONTAINERID", id)]).unwrap_err();
        assert_eq!(error.code, 4, "{id}");
        assert!(error.msg.contains("CNI_CONTAINERID") && error.msg.contains(id));
    }
    for name in ["sixteen-letters-", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\u{a0}b"] {
        let error = read(Verb::Add, &[("CNI_IFNAME", name)]).unwrap_err();
        assert_eq!(error.code, 4, "{name}");
        assert!(error.msg.contains("CNI_IFNAME"));
    }
    for name in ["fifteen-letters", "...", "eth0.100", "ä"] {
        assert!(read(Verb::Add, &[("CNI_IFNAME", name)]).is_ok(), "{name}");
    }
}

#[test]
fn the_override_takes_one_and_true_in_any_case() {
    let allowed =
        |value| read(Verb::Add, &[("CNI_NETNS_OVERRIDE", value)]).unwrap().own_netns_allowed;
    assert!(allowed("1") && allowed("true") && allowed("TRUE"));
    assert!(!allowed("0") && !allowed("") && !allowed("yes"));
}

#[test]
fn a_variable_that_is_not_utf8_is_refused_and_named() {
    let lookup = |name: &str| match name {
        "CNI_NETNS" => Some(OsString::from_vec(vec![b'/', 0xff])),
        _ => Some(OsString::from("a")),
    };
    let error = Environment::read(Verb::Add, &lookup).unwrap_err();
    assert_eq!(error.code, 4);
    assert!(error.msg.contains("CNI_NETNS"));
}

/// Gives zeros without end, and counts them.
struct Endless<'a>(&'a Cell<u64>);

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.set(self.0.get() + buffer.len() as u64);
        Ok(buffer.len())
    }
}

#[test]
fn standard_input_is_not_read_beyond_its_limit() {
    let count = Cell::new(0);
    assert_eq!(read_stdin(&mut Endless(&count)).unwrap_err().code, code::DECODE);
    assert_eq!(count.get(), STDIN_BYTES_MAX);

    let longest = vec![b' '; STDIN_BYTES_MAX as usize - 1];
    assert_eq!(read_stdin(&mut longest.as_slice()).unwrap().len(), longest.len());
}
