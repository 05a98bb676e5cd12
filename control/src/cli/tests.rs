//! The command line against a daemon made of a thread, and the tables before one's eyes.

use clap::CommandFactory as _;
use cni_bridge::frame::{Decoder, encode, receive};
use cni_bridge::protocol::{FRAME_BYTES_MAX, LimitChange, LimitsRequest, Request};
use ipnet::IpNet;
use mio::{Events, Poll, Token};
use serde_json::json;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tempfile::TempDir;

use super::limits::Limits;
use super::*;
use crate::doctor::Row;
use crate::report::tests::{sample, sample_drops, sample_flows, sample_host_ports, sample_routes};
use crate::report::{Report, RouteRow};
use crate::server::{ControlServer, Incoming, page};

const TABLE: Format = Format { json: false };
const JSON: Format = Format { json: true };

/// Answers requests with these replies, one after another. Its thread returns what was asked.
fn daemon(replies: Vec<Reply>) -> (TempDir, PathBuf, std::thread::JoinHandle<Vec<Call>>) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("viaduct.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let thread = std::thread::spawn(move || {
        let answer = |reply: Reply| {
            let (mut stream, _peer) = listener.accept().expect("somebody asks");
            let mut decoder = Decoder::default();
            let mut piece = [0; 4096];
            loop {
                let bytes = receive(&stream, &mut piece).expect("a request comes").bytes;
                decoder.push(&piece[..bytes]);
                if let Some(request) = decoder.decode::<Request>().expect("a request") {
                    stream.write_all(&encode(&reply).expect("a reply")).expect("it is taken");
                    return request.call;
                }
            }
        };
        replies.into_iter().map(answer).collect()
    });
    (directory, path, thread)
}

fn run_against_all(
    replies: Vec<Reply>,
    command: Command,
) -> (Result<(), String>, String, Vec<Call>) {
    let (_directory, path, thread) = daemon(replies);
    let mut out = Vec::new();
    let result = run(&path, command, &mut out).map_err(|error| error.to_string());
    let calls = thread.join().expect("the daemon lives");
    (result, String::from_utf8(out).expect("text"), calls)
}

fn run_against(reply: Reply, command: Command) -> (Result<(), String>, String, Call) {
    let (result, out, mut calls) = run_against_all(vec![reply], command);
    (result, out, calls.pop().expect("it asked"))
}

#[test]
fn every_command_asks_for_its_listing_and_is_in_the_help() {
    let all = [
        (Command::Status(JSON), Listing::Status, "status"),
        (Command::Pods(JSON), Listing::Pods, "pods"),
        (Command::Ports(JSON), Listing::Ports, "ports"),
        (Command::Routes(JSON), Listing::Routes, "routes"),
        (Command::Drops(JSON), Listing::Drops, "drops"),
        (Command::Hostports(JSON), Listing::Hostports, "hostports"),
        (Command::Limits(Limits { format: JSON, change: None }), Listing::Limits, "limits"),
    ];
    let help = Arguments::command().render_long_help().to_string();
    for (command, listing, name) in all {
        let value = if name == "status" { json!({"ready": true}) } else { json!([]) };
        let (result, out, call) = run_against(Reply::Listing(value.clone()), command);
        assert_eq!(result, Ok(()), "{name}");
        assert_eq!(call, Call::List(listing));
        assert_eq!(serde_json::from_str::<Value>(&out).expect("JSON"), value);
        assert!(help.contains(name));
    }
}

#[test]
fn the_socket_can_be_named_before_and_after_the_command() {
    for line in [["viaduct", "--socket", "/s", "pods"], ["viaduct", "pods", "--socket", "/s"]] {
        assert_eq!(Arguments::parse_from(line).socket, Path::new("/s"));
    }
    let default = Arguments::parse_from(["viaduct", "pods"]).socket;
    assert_eq!(default, Path::new("/run/viaduct/viaduct.sock"));
    assert!(Arguments::try_parse_from(["viaduct", "policy"]).is_err(), "it does not exist");
    Arguments::command().debug_assert();
}

#[test]
fn json_is_passed_on_with_keys_that_this_release_does_not_know() {
    let rows = json!([{"container_id": "c", "a_key_of_the_future": 1}]);
    let (result, out, _) = run_against(Reply::Listing(rows.clone()), Command::Pods(JSON));
    assert_eq!(result, Ok(()));
    assert_eq!(serde_json::from_str::<Value>(&out).expect("JSON"), rows);
    let (result, out, _) = run_against(Reply::Listing(rows), Command::Pods(TABLE));
    assert_eq!(result, Ok(()));
    assert!(out.lines().nth(1).expect("a row").starts_with("c "), "{out}");
}

#[test]
fn no_daemon_is_one_sentence_with_socket_and_mend() {
    let directory = tempfile::tempdir().expect("a directory");
    let nothing = directory.path().join("viaduct.sock");
    let stale = directory.path().join("stale.sock");
    drop(UnixListener::bind(&stale).expect("a socket"));
    for path in [nothing, stale] {
        let error = run(&path, Command::Pods(TABLE), &mut Vec::new()).expect_err("nobody answers");
        let sentence = format!(
            "no daemon answers on {}: start viaductd or name its socket with --socket",
            path.display()
        );
        assert_eq!(error.to_string(), sentence);
    }
}

#[test]
fn what_the_daemon_reports_is_passed_on() {
    let error =
        CallError { code: 100, msg: "two versions".to_owned(), details: "1 and 3".to_owned() };
    let (result, out, _) = run_against(Reply::Error(error), Command::Pods(TABLE));
    assert_eq!(result, Err("viaductd says: two versions: 1 and 3".to_owned()));
    assert_eq!(out, "");
    let (result, ..) = run_against(Reply::Done, Command::Pods(TABLE));
    assert!(result.expect_err("not a listing").contains("something else"));
    let (result, ..) = run_against(Reply::Listing(json!("pods")), Command::Pods(TABLE));
    assert!(result.expect_err("not rows").contains("release"));
}

#[test]
fn status_fails_until_the_daemon_is_ready_but_shows_what_there_is() {
    let mut status = sample().status;
    status.ready = false;
    for format in [TABLE, JSON] {
        let reply = Reply::Listing(json!(status));
        let (result, out, _) = run_against(reply, Command::Status(format));
        let error = result.expect_err("not ready");
        assert!(error.contains("not ready: pod fedcba987654 is on fallback"), "{error}");
        assert!(out.contains("0.1.0"));
    }
    status.ready = true;
    let (result, ..) = run_against(Reply::Listing(json!(status)), Command::Status(TABLE));
    assert_eq!(result, Ok(()), "problems alone do not make it unready");
}

#[test]
fn status_shows_a_broken_law() {
    let mut status = sample().status;
    assert!(!views::status(&status).contains("BROKEN"));
    status.workers[1].packets.sent -= 1;
    let broken: Vec<String> = views::status(&status)
        .lines()
        .filter(|line| line.contains("BROKEN"))
        .map(str::to_owned)
        .collect();
    assert_eq!(broken.len(), 1, "one law of one worker");
}

#[test]
fn tables_have_a_line_per_row_and_fit_a_wide_terminal() {
    let drops = sample_drops(&sample());
    let Report { status, pods, ports, limits, .. } = sample();
    let tables = [
        (views::status(&status), 17),
        (views::pods(&pods), pods.len() + 1),
        (views::ports(&ports), ports.len() + 1),
        (views::routes(&sample_routes()), sample_routes().len() + 1),
        (views::drops(&drops), drops.len() + 1),
        (nat::host_ports(&sample_host_ports()), sample_host_ports().len() + 1),
        (nat::flows(&sample_flows()), sample_flows().len() + 1),
        (limits::table(&limits), limits.len() + 1),
    ];
    for (table, lines) in tables {
        assert_eq!(table.lines().count(), lines, "{table}");
        // Addresses and sentences stand last and may be longer.
        assert!(table.lines().all(|line| line.chars().count() <= 120), "{table}");
    }
}

#[test]
fn empty_listings_say_so() {
    for table in [views::pods(&[]), views::ports(&[]), views::routes(&[]), views::drops(&[])] {
        assert_eq!(table.lines().count(), 1);
    }
    for table in [nat::host_ports(&[]), nat::flows(&[]), limits::table(&[])] {
        assert_eq!(table.lines().count(), 1);
    }
}

/// A daemon that has only routes, behind the real control socket, until `stop`.
fn serve_routes(path: &Path, routes: &[RouteRow], stop: &AtomicBool) {
    let mut poll = Poll::new().expect("a poll");
    let mut server = ControlServer::bind(path, poll.registry(), Token(0), 1..9).expect("a socket");
    let mut events = Events::with_capacity(8);
    while !stop.load(Ordering::Relaxed) {
        poll.poll(&mut events, Some(Duration::from_millis(5))).expect("the poll works");
        let mut incoming = Vec::new();
        for event in &events {
            server.on_event(event.token(), Instant::now(), &mut incoming);
        }
        for Incoming { connection, request, .. } in incoming {
            let after = match &request.call {
                Call::List(Listing::Routes) => None,
                Call::ListAfter { listing: Listing::Routes, after } => Some(after.as_str()),
                call => panic!("nobody asks for {call:?}"),
            };
            let reply = page(after, |after: Option<RouteRow>| {
                let rest = routes.partition_point(|row| Some(row) <= after.as_ref());
                routes[rest..].iter().map(|row| (row.clone(), row))
            });
            server.reply(connection, &reply, Instant::now());
        }
    }
}

#[test]
fn a_listing_of_several_frames_is_one_array_and_one_table() {
    let routes: Vec<RouteRow> = (0..30_000_u32)
        .map(|number| RouteRow {
            dst: IpNet::new(Ipv4Addr::from(0x0a00_0000 + number).into(), 32).expect("a prefix"),
            port: Some(1),
            dev: "vd0123456789ab".to_owned(),
            source: "pod".to_owned(),
            via: None,
            hops: Vec::new(),
        })
        .collect();
    let whole = serde_json::to_string(&routes).expect("rows are JSON");
    assert!(whole.len() > 2 * FRAME_BYTES_MAX, "several frames: {}", whole.len());
    let directory = tempfile::tempdir().expect("a directory");
    let (path, stop) = (directory.path().join("viaduct.sock"), AtomicBool::new(false));
    let print = |format| {
        let mut out = Vec::new();
        let start = Instant::now();
        // The socket comes into being with the thread.
        while !path.exists() && start.elapsed() < DEADLINE {
            std::thread::yield_now();
        }
        run(&path, Command::Routes(format), &mut out).map_err(|error| error.to_string())?;
        Ok::<_, String>(String::from_utf8(out).expect("text"))
    };
    let printed = std::thread::scope(|scope| {
        scope.spawn(|| serve_routes(&path, &routes, &stop));
        let printed = [JSON, TABLE].map(print);
        stop.store(true, Ordering::Relaxed);
        printed
    });
    let [json, table] = printed.map(|text| text.expect("a listing"));
    let read: Vec<RouteRow> = serde_json::from_str(&json).expect("one array");
    assert!(read == routes);
    assert_eq!(table.lines().count(), routes.len() + 1);
}

#[test]
fn pages_that_lead_nowhere_are_no_listing() {
    let empty = || Reply::Page { rows: Vec::new(), next: "0".to_owned() };
    let (result, out, _) = run_against_all(vec![empty(), empty()], Command::Routes(JSON));
    assert!(result.expect_err("it would never end").contains("something else"));
    assert_eq!(out, "");
}

#[test]
fn flows_are_asked_for_by_filter_through_pages_without_rows() {
    let line = ["viaduct", "flows", "--pod", "shop/cart", "--address", "fd00::5", "--port", "80"];
    let command = Arguments::parse_from(line.into_iter().chain(["--json"])).command;
    let page = |next: &str| Reply::Page { rows: Vec::new(), next: next.to_owned() };
    let rows = json!(sample_flows());
    let replies = vec![page("1"), page("2"), Reply::Listing(rows.clone())];
    let (result, out, calls) = run_against_all(replies, command);
    assert_eq!(result, Ok(()));
    assert_eq!(serde_json::from_str::<Value>(&out).expect("JSON"), rows);
    let filter = FlowFilter {
        pod: Some("shop/cart".to_owned()),
        address: Some("fd00::5".parse().expect("an address")),
        port: Some(80),
    };
    let after = [None, Some("1".to_owned()), Some("2".to_owned())];
    let expected = after.map(|after| Call::Flows { filter: filter.clone(), after });
    assert_eq!(calls, expected);
    assert!(Arguments::try_parse_from(["viaduct", "flows", "--port", "65536"]).is_err());
}

#[test]
fn a_flow_shows_what_the_pod_sees_only_where_that_is_not_the_client() {
    let table = nat::flows(&sample_flows());
    let cells = |line: usize| -> Vec<&str> {
        table.lines().nth(line).expect("a row").split_whitespace().collect()
    };
    assert_eq!(cells(1)[8..], ["-", "route"], "{table}");
    assert_eq!(cells(2)[8..], ["192.0.2.1:40000", "route"], "{table}");
}

#[test]
fn drops_are_shown_to_people_with_most_packets_first() {
    let table = views::drops(&sample_drops(&sample()));
    let counts: Vec<&str> =
        table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(counts, ["17", "9", "3", "2", "1"]);
}

/// What `viaduct limits set` with these arguments does with a daemon that is done.
fn set_limits(args: &[&str]) -> (Result<(), String>, Option<LimitsRequest>) {
    let line = ["viaduct", "limits", "set"].iter().chain(args);
    let command = Arguments::try_parse_from(line).map(|arguments| arguments.command);
    let command = match command {
        Ok(command) => command,
        Err(error) => return (Err(error.to_string()), None),
    };
    let (_directory, path, thread) = daemon(vec![Reply::Done]);
    let mut out = Vec::new();
    let result = run(&path, command, &mut out).map_err(|error| error.to_string());
    assert!(out.is_empty(), "there is nothing to say");
    if result.is_err() {
        // Nobody has asked the daemon, which waits for somebody.
        let _other = run(&path, Command::Pods(JSON), &mut Vec::new());
    }
    let call = thread.join().expect("the daemon lives").pop();
    match call {
        Some(Call::SetLimits(request)) => (result, Some(request)),
        _ => (result, None),
    }
}

#[test]
fn limits_are_set_as_quantities_and_an_unnamed_direction_stays() {
    let set = |rate_bps, burst_bits| Some(LimitChange::Set { rate_bps, burst_bits });
    let whose = |ifname: Option<&str>, ingress, egress| LimitsRequest {
        container_id: "c0ffee".to_owned(),
        ifname: ifname.map(str::to_owned),
        ingress,
        egress,
    };
    for (args, wanted) in [
        (&["--ingress", "20M"][..], whose(None, set(20_000_000, None), None)),
        (&["--egress=none"], whose(None, None, Some(LimitChange::Lift))),
        (
            &["--ifname", "net1", "--ingress", "1.5Gi", "--egress", "800", "--burst", "1M"],
            whose(Some("net1"), set(1_610_612_736, Some(1_000_000)), set(800, Some(1_000_000))),
        ),
    ] {
        let (result, request) = set_limits(&[&["c0ffee"], args].concat());
        assert_eq!((result, request), (Ok(()), Some(wanted)));
    }
}

#[test]
fn limits_that_say_nothing_or_nonsense_are_one_sentence_and_reach_no_daemon() {
    for (args, part) in [
        (&["c0ffee"][..], "--ingress 20M"),
        (&["c0ffee", "--burst", "1M"], "--ingress 20M"),
        (&["c0ffee", "--burst", "1M", "--egress", "none"], "burst without a rate"),
        (&["c0ffee", "--ingress", "fast"], "as in 10M"),
        (&["c0ffee", "--ingress", "0"], "less than 1"),
        (&["c0ffee", "--ingress", "0"], "for no limit write none"),
        (&["c0ffee", "--egress", "100m"], "less than 1"),
        (&["c0ffee", "--egress", "20E"], "does not fit"),
        (&["c0ffee", "--egress", "None"], "as in 10M"),
        (&["--ingress", "20M"], "CONTAINER_ID"),
    ] {
        let (result, request) = set_limits(args);
        let error = result.expect_err("it is refused");
        assert!(error.contains(part) && request.is_none(), "{args:?}: {error}");
    }
}

#[test]
fn a_refusal_of_limits_is_the_daemons_sentence() {
    let refusal = CallError { code: 101, msg: "no container".to_owned(), details: String::new() };
    let line = ["viaduct", "limits", "set", "c", "--ingress", "1M"];
    let command = Arguments::parse_from(line).command;
    let (result, _, _) = run_against(Reply::Error(refusal), command);
    assert_eq!(result, Err("viaductd says: no container".to_owned()));
    let socket =
        Arguments::parse_from(["viaduct", "limits", "--socket", "/s"].iter().chain(&line[2..]));
    assert_eq!(socket.socket, Path::new("/s"));
}

#[test]
fn limits_are_a_table_of_what_is_applied_beside_what_was_asked_for() {
    let expected = "\
CONTAINER     IFNAME  POD             DIRECTION  RATE    BURST    ASKED    TOKENS   QUEUED  DROPPED  MARKED
0123456789ab  eth0    shop/cart-7d9f  ingress     10M  65.5 kB   537 MB   65.5 kB  30.3 kB     1234      56
0123456789ab  eth0    shop/cart-7d9f  egress      10M  65.5 kB  65.5 kB  -1.51 kB  30.3 kB     1234      56
";
    assert_eq!(limits::table(&sample().limits), expected);
}

fn doctor(format: Format) -> Command {
    let nowhere = || PathBuf::from("/nonexistent");
    Command::Doctor(Examination {
        format,
        config: nowhere(),
        cni_conf: nowhere(),
        cni_bin: nowhere(),
    })
}

#[test]
fn the_doctor_needs_no_daemon_and_fails_when_something_is_amiss() {
    let help = Arguments::command().render_long_help().to_string();
    assert!(help.contains("doctor"));
    let socket = Path::new("/nonexistent/viaduct.sock");
    let mut out = Vec::new();
    let error = run(socket, doctor(JSON), &mut out).expect_err("there is no configuration");
    assert!(error.to_string().contains("amiss"), "{error}");
    let rows: Vec<Row> = serde_json::from_slice(&out).expect("an array of rows");
    let of = |check| rows.iter().find(|row| row.check == check).expect(check);
    assert_eq!(of("configuration").ok, Some(false));
    assert!(of("configuration").found.contains("/nonexistent"));
    assert_eq!(of("daemon").ok, None, "no daemon is no failure");
    assert!(of("daemon").found.contains("/nonexistent/viaduct.sock"));
    let mut out = Vec::new();
    assert!(run(socket, doctor(TABLE), &mut out).is_err());
    assert!(String::from_utf8(out).expect("text").contains("amiss"));
}

#[test]
fn the_doctor_says_what_to_do_below_its_table() {
    let row = |check: &str, ok, mend: &str| Row {
        check: check.to_owned(),
        ok,
        found: format!("what {check} is"),
        mend: mend.to_owned(),
    };
    let rows = [
        row("kernel", Some(true), ""),
        row("rule", Some(false), "put it\x1b back"),
        row("hugepages", Some(true), "reserve some"),
        row("daemon", None, ""),
    ];
    let expected = "\
CHECK      RESULT   FOUND
kernel     ok       what kernel is
rule       amiss    what rule is
hugepages  ok       what hugepages is
daemon     unknown  what daemon is

To mend:
  rule: put it? back

Could be better:
  hugepages: reserve some
";
    assert_eq!(views::doctor(&rows), expected);
    assert!(!views::doctor(&rows[..1]).contains(':'), "nothing to mend");
}

#[test]
#[ignore = "prints tables and help for eyes: run with --ignored --nocapture"]
fn prints_everything() {
    let Report { status, pods, ports, limits, .. } = sample();
    println!("{}", views::status(&status));
    println!("{}", views::pods(&pods));
    println!("{}", views::ports(&ports));
    println!("{}", views::routes(&sample_routes()));
    println!("{}", views::drops(&sample_drops(&sample())));
    let mut command = Arguments::command();
    println!("{}", command.render_help());
    println!("{}", nat::host_ports(&sample_host_ports()));
    println!("{}", nat::flows(&sample_flows()));
    println!("{}", limits::table(&limits));
    for name in
        ["status", "pods", "ports", "routes", "drops", "hostports", "flows", "limits", "doctor"]
    {
        println!("{}", command.find_subcommand_mut(name).expect(name).render_long_help());
    }
    let limits = command.find_subcommand_mut("limits").expect("limits");
    println!("{}", limits.find_subcommand_mut("set").expect("set").render_long_help());
}
