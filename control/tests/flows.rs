//! Flows outlive `kill -9`: processes that keep tables in files are killed one after another, at
//! whatever they are doing, and the last one finds every flow that any of them has told of. Also:
//! what happens when the file system is too small.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use control::flows::{FlowFileError, FlowFiles};
use dataplane::conntrack::{
    Endpoint, FlowKey, FlowTable, HashSeed, NewFlow, Records, Replies, Signal, Source, TableParts,
    Transport,
};
use dataplane::port::PortId;

const BOOT: [u64; 2] = [11, 12];

/// Held while a program is started: until it runs, it has all files of this process open, and none
/// of those gives its room back.
static STARTING: Mutex<()> = Mutex::new(());

/// The pods; each is homed on the worker that has the rest of its number.
const OWNERS: u16 = 4;

fn table(records: Records, worker: u16, workers: u16) -> FlowTable {
    let mut table = FlowTable::new(TableParts {
        records,
        flows_per_owner: u32::MAX,
        source_ports: 1024..=65_535,
        seed: HashSeed([1, 2]),
        counters: Default::default(),
    });
    let homed = (0..OWNERS).filter(|owner| owner % workers == worker);
    homed.for_each(|owner| table.admit_owner(PortId(owner), 1));
    table
}

/// The flow with this number: every number is another client.
fn open_flow(tables: &mut [FlowTable], number: u32) {
    let owner = (number % u32::from(OWNERS)) as u16;
    let end = |address: u32, port| Endpoint { address: Ipv4Addr::from(address).into(), port };
    let serving = end(0x0a00_0000 + u32::from(owner), 80);
    let original =
        FlowKey { transport: Transport::Udp, src: end(number, 5000), dst: end(0xc000_0201, 80) };
    let (owner, source, replies) = (PortId(owner), Source::Client, Replies::ByRoute);
    let new = NewFlow { owner, original, serving, source, replies };
    let home = usize::from(owner.0) % tables.len();
    tables[home].open(&new, &Signal::Udp, 0).expect("there is room");
}

fn numbers(records: &Records) -> Vec<u32> {
    let client = |flow: dataplane::conntrack::Flow| match flow.original.src.address {
        std::net::IpAddr::V4(address) => u32::from(address),
        std::net::IpAddr::V6(address) => panic!("nobody made a flow of {address}"),
    };
    records.iter().map(client).collect()
}

/// A start as the daemon does it; `tell` is called between its steps.
fn start(dir: &Path, workers: u16, room: u32, mut tell: impl FnMut(&str)) -> Vec<FlowTable> {
    let mut files = FlowFiles::open(dir, BOOT).expect("read what is left");
    tell("opened");
    let mut tables: Vec<_> = (0..workers)
        .map(|worker| {
            let records = files.create(worker, room).expect("make a file");
            tell("created");
            table(records, worker, workers)
        })
        .collect();
    for left in files.left() {
        for table in &mut tables {
            table.restore(left, 0);
            tell("restored");
        }
    }
    files.settle().expect("settle");
    tell("settled");
    tables
}

const DIR: &str = "VIADUCT_TEST_FLOWS_DIR";
const ROUND: &str = "VIADUCT_TEST_FLOWS_ROUND";

/// Tells of each flow that it has opened, until it is killed. A part of the test below, which starts
/// it in a process of its own; by itself it has nothing to do.
#[test]
fn a_process_that_opens_flows_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let round: u32 = std::env::var(ROUND).expect("a round").parse().expect("a number");
    let mut out = std::io::stdout().lock();
    let mut tell = |line: &str| {
        writeln!(out, "tells {line}").and_then(|()| out.flush()).expect("somebody listens");
    };
    let workers = 1 + (round % 3) as u16;
    // Neither the number of the workers nor the size of their tables stays as it was.
    let mut tables = start(Path::new(&dir), workers, 20_000 + round * 8, &mut tell);
    for number in 0..3_000 {
        open_flow(&mut tables, round << 16 | number);
        tell(&number.to_string());
    }
    tell("end");
    std::thread::park();
}

fn spawn(dir: &Path, round: u32) -> Child {
    let program = std::env::current_exe().expect("our own name");
    let name = "a_process_that_opens_flows_until_it_is_killed";
    let mut command = Command::new(program);
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command.env(DIR, dir).env(ROUND, round.to_string());
    run(command.stdout(Stdio::piped()).stderr(Stdio::null()))
}

fn run(command: &mut Command) -> Child {
    let _alone = STARTING.lock();
    command.spawn().expect("start a process")
}

#[test]
fn a_table_that_one_process_wrote_is_found_by_the_next_whenever_it_was_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut told = BTreeSet::new();
    // Killed at the n-th thing it tells: within the start, right after it, and later.
    for (round, lines) in (1..).zip([300, 1, 2, 40, 3, 4, 500, 5, 6, 7, 8, 9, 10, 11, 12, 1000]) {
        let mut child = spawn(dir.path(), round);
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let mut seen = 0;
        for line in output.lines() {
            let line = line.expect("text");
            // libtest begins the first line with the name of the test.
            let Some((_, what)) = line.split_once("tells ") else { continue };
            seen += 1;
            if seen == lines {
                child.kill().expect("kill -9");
            }
            // What it had told before the signal came counts too.
            told.extend(what.parse::<u32>().map(|number| round << 16 | number));
        }
        assert!(seen >= lines, "round {round}: killed after {seen} of {lines}");
        child.wait().expect("it has ended");
    }
    assert!(told.len() > 1500, "{} flows", told.len());
    let tables = start(dir.path(), 1, 60_000, |_| ());
    let found = numbers(tables[0].records());
    let distinct: BTreeSet<u32> = found.iter().copied().collect();
    assert_eq!(found.len(), distinct.len(), "a flow is there once");
    let lost: Vec<_> = told.difference(&distinct).collect();
    assert!(lost.is_empty(), "{} of {} flows are lost: {lost:?}", lost.len(), told.len());
    let files = std::fs::read_dir(dir.path().join("flows")).expect("the files").count();
    assert_eq!(files, 1, "of all processes only the last one's file is left");
}

/// A small file system of its own.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(kilobytes: usize) -> Tmpfs {
        let dir = tempfile::tempdir().expect("a directory");
        let options = format!("size={kilobytes}k");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path());
        assert!(run(&mut command).wait().expect("mount").success());
        Tmpfs(dir)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(self.0.path())).wait();
    }
}

#[test]
fn a_full_file_system_is_a_refusal_that_names_the_setting() {
    let tmpfs = Tmpfs::new(1024);
    let mut files = FlowFiles::open(tmpfs.0.path(), BOOT).expect("read nothing");
    // 96 bytes each: 960 kB fit and 1.9 MB do not.
    files.create(0, 10_000).expect("there is room for these");
    let refused = files.create(1, 20_000).expect_err("and not for those");
    assert!(matches!(refused, FlowFileError::NoRoom { .. }), "{refused}");
    let text = refused.to_string();
    assert!(text.contains("lower flows in [nat]") && text.contains("state_dir"), "{text}");
    drop(files);
    let left = std::fs::read_dir(tmpfs.0.path().join("flows")).expect("the directory").count();
    assert_eq!(left, 0, "what was made is taken back");
}

/// One table fits and two do not: a restart succeeds all the same, with all flows.
#[test]
fn a_file_system_with_room_for_one_table_loses_no_flow_in_a_restart() {
    let tmpfs = Tmpfs::new(1024);
    let _nobody_starts = STARTING.lock();
    for round in 0..5 {
        let mut tables = start(tmpfs.0.path(), 1, 8_000, |_| ());
        let found = numbers(tables[0].records()).len();
        assert_eq!(found, round * 100);
        (0..100).for_each(|number| open_flow(&mut tables, (round as u32) << 16 | number));
    }
}
