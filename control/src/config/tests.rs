use super::*;

const PATH: &str = "/etc/viaduct/viaduct.toml";
const CORES: [usize; 4] = [0, 1, 2, 5];

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new(PATH), &CORES)
}

/// The parts of a refusal.
fn refusal(text: &str) -> (usize, String, String) {
    match parse(text) {
        Err(ConfigError::Invalid { path, line, key, problem }) => {
            assert_eq!(path, Path::new(PATH));
            (line, key, problem)
        }
        other => panic!("{text:?} gave {other:?}"),
    }
}

/// Asserts the line and key of a refusal, and a part of its sentence.
#[track_caller]
fn refused(text: &str, line: usize, key: &str, part: &str) {
    let (found_line, found_key, problem) = refusal(text);
    assert_eq!((found_line, found_key.as_str()), (line, key), "{problem}");
    assert!(problem.contains(part), "{problem:?} lacks {part:?}");
    assert!(!problem.contains('\n'), "{problem:?} is one line");
}

/// A file with the required key in lines 1 and 2, and `rest` from line 3 on.
fn with(rest: &str) -> String {
    format!("[node]\npod_cidrs = [\"10.244.1.0/24\"]\n{rest}")
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

#[test]
fn only_pod_cidrs_is_required_and_the_rest_has_the_documented_defaults() {
    let config = parse("[node]\npod_cidrs = [\"10.244.1.0/24\", \"fd00:10:244:1::/64\"]").unwrap();
    let pod_cidrs = nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]);
    let expected = Config {
        node: Node { pod_cidrs: pod_cidrs.clone(), mtu: None, masquerade: true },
        workers: Workers { cores: vec![5], frames: 32768, port_mode: PortMode::Auto },
        uplink: Uplink {
            interfaces: Vec::new(),
            channels: None,
            direct: pod_cidrs,
            kernel: Vec::new(),
        },
        nat: Nat { flows: 262_144, flows_per_pod: 65_536 },
        shaping: Shaping { queue: Duration::from_millis(25), burst: Duration::from_millis(50) },
        daemon: Daemon {
            socket: "/run/viaduct/viaduct.sock".into(),
            state_dir: "/run/viaduct".into(),
            bpf_dir: "/sys/fs/bpf/viaduct".into(),
            metrics: Some("127.0.0.1:9477".parse().unwrap()),
        },
    };
    assert_eq!(config, expected);
}

#[test]
fn every_key_can_be_set() {
    let text = r#"
        [node]
        pod_cidrs = ["10.244.1.0/24"]
        mtu = 9000
        masquerade = false
        [workers]
        cores = [2, 1]
        frames = 4096
        port_mode = "basic"
        [uplink]
        interfaces = []
        direct = ["10.244.0.0/16", "0.0.0.0/0"]
        kernel = ["10.244.7.0/24"]
        [nat]
        flows = 2000
        flows_per_pod = 300
        [shaping]
        queue = "1s"
        burst = "1500us"
        [daemon]
        socket = "/a/s"
        state_dir = "/a"
        bpf_dir = "/b"
        metrics = ""
    "#;
    let expected = Config {
        node: Node { pod_cidrs: nets(&["10.244.1.0/24"]), mtu: Some(9000), masquerade: false },
        workers: Workers { cores: vec![2, 1], frames: 4096, port_mode: PortMode::Basic },
        uplink: Uplink {
            interfaces: Vec::new(),
            channels: None,
            direct: nets(&["10.244.0.0/16", "0.0.0.0/0"]),
            kernel: nets(&["10.244.7.0/24"]),
        },
        nat: Nat { flows: 2000, flows_per_pod: 300 },
        shaping: Shaping { queue: Duration::from_secs(1), burst: Duration::from_micros(1500) },
        daemon: Daemon {
            socket: "/a/s".into(),
            state_dir: "/a".into(),
            bpf_dir: "/b".into(),
            metrics: None,
        },
    };
    assert_eq!(parse(text).unwrap(), expected);
}

#[test]
fn a_refusal_is_one_sentence_with_file_line_and_key() {
    let error = parse(&with("mtu = 1279\n")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/etc/viaduct/viaduct.toml:3: node.mtu: 1279 is not within 1280 to 65535; choose a number \
         that is"
    );
}

#[test]
fn unknown_keys_tables_and_wrong_types_are_refused_with_their_place() {
    refused(&with("mtuu = 1\n"), 3, "node.mtuu", "unknown field `mtuu`");
    refused(&with("[wrokers]\n"), 3, "wrokers", "unknown field `wrokers`");
    refused(&with("\n[daemon]\nsokcet = \"/s\"\n"), 5, "daemon.sokcet", "expected one of `socket`");
    refused(&with("mtu = \"big\"\n"), 3, "node.mtu", "invalid type: string");
    refused(&with("masquerade = 1\n"), 3, "node.masquerade", "expected a boolean");
    refused(&with("[workers]\ncores = 3\n"), 4, "workers.cores", "expected a sequence");
    refused(&with("[workers]\nport_mode = \"fast\"\n"), 4, "workers.port_mode", "`basic`");
    refused(&with("[node]\n"), 3, "syntax", "duplicate key");
    refused(&with("mtu = \n"), 3, "syntax", "");
    refused(&with("mtu = 1500\nmtu = 1500\n"), 4, "syntax", "duplicate key");
}

#[test]
fn pod_cidrs_must_be_there_and_not_be_empty() {
    refused("", 1, "node.pod_cidrs", "is missing");
    refused("\n\n[node]\nmtu = 1500\n", 3, "node.pod_cidrs", "is missing");
    refused("[node]\npod_cidrs = []\n", 2, "node.pod_cidrs", "has 0 prefixes");
    let many: Vec<String> = (0..=POD_CIDRS_MAX).map(|i| format!("\"10.0.{i}.0/24\"")).collect();
    refused(&format!("[node]\npod_cidrs = [{}]", many.join(",")), 2, "node.pod_cidrs", "has 17");
    let most = many[1..].join(",");
    assert!(parse(&format!("[node]\npod_cidrs = [{most}]")).is_ok());
}

#[test]
fn pod_cidrs_are_prefixes_that_pods_can_live_in() {
    let cases = [
        ("10.244.1.0", "is not a prefix"),
        ("10.244.1.5/24", "write \"10.244.1.0/24\""),
        ("10.0.0.0/31", "at most /30"),
        ("10.0.0.0/32", "at most /30"),
        ("fd00::/128", "at most /127"),
        ("0.0.0.0/0", "overlaps 0.0.0.0/8"),
        ("127.5.0.0/16", "loopback"),
        ("169.254.8.0/24", "gateway"),
        ("239.0.0.0/24", "multicast"),
        ("::/64", "reserved"),
        ("fe80::/64", "gateway"),
        ("ff05::/64", "multicast"),
    ];
    for (cidr, part) in cases {
        refused(&format!("[node]\npod_cidrs = [\n  \"{cidr}\",\n]"), 3, "node.pod_cidrs", part);
    }
    for cidr in ["10.0.0.0/30", "10.0.0.0/8", "fd00::/127", "2001:db8::/32"] {
        assert!(parse(&format!("[node]\npod_cidrs = [\"{cidr}\"]")).is_ok(), "{cidr}");
    }
}

#[test]
fn pod_cidrs_may_not_overlap_but_may_touch() {
    let two = |a: &str, b: &str| format!("[node]\npod_cidrs = [\n\"{a}\",\n\"{b}\"]");
    refused(&two("10.1.0.0/16", "10.1.9.0/24"), 4, "node.pod_cidrs", "overlaps 10.1.0.0/16");
    refused(&two("10.1.9.0/24", "10.1.0.0/16"), 4, "node.pod_cidrs", "overlaps 10.1.9.0/24");
    refused(&two("fd00::/64", "fd00::/64"), 4, "node.pod_cidrs", "overlaps fd00::/64");
    assert!(parse(&two("10.1.0.0/24", "10.1.1.0/24")).is_ok());
}

#[test]
fn numbers_outside_their_range_are_refused_and_the_bounds_are_not() {
    let cases = [
        ("[node]\npod_cidrs = [\"10.0.0.0/24\"]\nmtu", "node.mtu", 1280, 65535),
        (&with("[nat]\nflows"), "nat.flows", 1024, 1 << 24),
        (&with("[nat]\nflows_per_pod"), "nat.flows_per_pod", 64, 1 << 24),
        (&with("[workers]\nframes"), "workers.frames", 4096, 262_144),
    ];
    for (before, key, min, max) in cases {
        let line = before.lines().count();
        for wrong in [min - 1, max + 1, -1, i64::MAX, i64::MIN] {
            refused(&format!("{before} = {wrong}"), line, key, "is not within");
        }
        for right in [min, max] {
            assert!(parse(&format!("{before} = {right}")).is_ok(), "{key} = {right}");
        }
    }
}

#[test]
fn frames_are_a_power_of_two() {
    refused(&with("[workers]\nframes = 5000"), 4, "workers.frames", "use 8192");
}

#[test]
fn cores_are_some_each_once_and_usable() {
    let cores = |list: &str| with(&format!("[workers]\ncores = {list}"));
    refused(&cores("[]"), 4, "workers.cores", "is empty");
    refused(&cores("[1,\n 1]"), 5, "workers.cores", "named twice");
    refused(&cores("[3]"), 4, "workers.cores", "choose from [0, 1, 2, 5]");
    refused(&cores("[-1]"), 4, "workers.cores", "core -1");
    assert_eq!(parse(&cores("[5, 0, 1]")).unwrap().workers.cores, [5, 0, 1]);
}

#[test]
fn uplinks_are_named_once_and_by_names_that_interfaces_can_have() {
    let uplink = |names: &str| with(&format!("[uplink]\ninterfaces = [{names}]"));
    let config = parse(&uplink("\"eth1\", \"eth2\"")).unwrap();
    assert_eq!(config.uplink.interfaces, ["eth1", "eth2"]);
    assert_eq!(config.uplink.channels, None);
    refused(&uplink("\"eth1\", \"eth1\""), 4, "uplink.interfaces", "named twice");
    refused(&uplink("\"\""), 4, "uplink.interfaces", "no name of an interface");
    refused(&uplink("\"abcdefghijklmnop\""), 4, "uplink.interfaces", "no name of an interface");
    let nine: Vec<String> = (0..9).map(|n| format!("\"eth{n}\"")).collect();
    refused(&uplink(&nine.join(",")), 4, "uplink.interfaces", "more than 8");
    let channels = |n: u32| with(&format!("[uplink]\nchannels = {n}"));
    assert_eq!(parse(&channels(4)).unwrap().uplink.channels, Some(4));
    refused(&channels(0), 4, "uplink.channels", "not within 1 to 128");
}

#[test]
fn direct_and_kernel_are_prefixes_and_kernel_is_part_of_direct() {
    refused(&with("[uplink]\ndirect = [\"10.0.0.1/8\"]"), 4, "uplink.direct", "host bits");
    refused(&with("[uplink]\nkernel = [\"10\"]"), 4, "uplink.kernel", "is not a prefix");
    let outside =
        "[uplink]\ndirect = [\"10.0.0.0/8\"]\nkernel = [\n\"10.1.0.0/16\", \n\"11.0.0.0/8\"]";
    refused(&with(outside), 7, "uplink.kernel", "11.0.0.0/8 is in none");
    let many: Vec<String> = (0..65).map(|n| format!("\"10.{n}.0.0/16\"")).collect();
    let list = |n: usize| with(&format!("[uplink]\ndirect = [{}]", many[..n].join(",")));
    assert_eq!(parse(&list(64)).unwrap().uplink.direct.len(), 64);
    refused(&list(65), 4, "uplink.direct", "65 prefixes are more than 64");
}

#[test]
fn durations_have_a_unit_and_bounds() {
    for wrong in [
        "25",
        "ms",
        "2.5ms",
        "25 ms",
        "-1ms",
        "999us",
        "1001ms",
        "2s",
        "1m",
        "",
        "99999999999999999999s",
        "٢٥ms",
    ] {
        let text = with(&format!("[shaping]\nqueue = \"{wrong}\""));
        refused(&text, 4, "shaping.queue", "as in \"25ms\"");
    }
    for right in ["1ms", "1000us", "1s", "1000ms"] {
        assert!(parse(&with(&format!("[shaping]\nburst = \"{right}\""))).is_ok(), "{right}");
    }
}

#[test]
fn paths_are_absolute_and_the_socket_fits_its_address() {
    for key in ["socket", "state_dir", "bpf_dir"] {
        for wrong in ["run/x", "", "/run/\\u0000"] {
            let text = with(&format!("[daemon]\n{key} = \"{wrong}\""));
            refused(&text, 4, &format!("daemon.{key}"), "absolute path");
        }
    }
    let socket = |len: usize| with(&format!("[daemon]\nsocket = \"/{}\"", "s".repeat(len - 1)));
    refused(&socket(108), 4, "daemon.socket", "has 108 bytes");
    assert!(parse(&socket(107)).is_ok());
}

#[test]
fn metrics_need_an_address_and_a_port() {
    for wrong in ["9477", ":9477", "localhost:9477", "127.0.0.1", "127.0.0.1:99999"] {
        let text = with(&format!("[daemon]\nmetrics = \"{wrong}\""));
        refused(&text, 4, "daemon.metrics", "is not an address with a port");
    }
    let config = parse(&with("[daemon]\nmetrics = \"[::]:80\"")).unwrap();
    assert_eq!(config.daemon.metrics, Some("[::]:80".parse().unwrap()));
}

#[test]
fn a_file_is_loaded_for_the_cores_of_this_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("viaduct.toml");
    let missing = Config::load(&path).unwrap_err();
    assert!(matches!(missing, ConfigError::Read { .. }));
    assert!(missing.to_string().contains(path.to_str().unwrap()), "{missing}");
    fs::write(&path, with("")).unwrap();
    assert_eq!(Config::load(&path).unwrap().workers.cores.len(), 1);
    fs::write(&path, with("[workers]\ncores = [100000]\n")).unwrap();
    assert!(matches!(Config::load(&path), Err(ConfigError::Invalid { line: 4, .. })));
}
