//! Files of flows over several starts, and what else may lie beside them.

use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt as _, symlink};

use dataplane::conntrack::{
    Endpoint, FlowKey, FlowTable, HashSeed, NewFlow, Replies, Signal, Source, TableParts, Transport,
};
use dataplane::port::PortId;
use proptest::prelude::*;

use super::*;

const BOOT: [u64; 2] = [1, 2];
const OWNER: PortId = PortId(5);

fn table(records: Records) -> FlowTable {
    let mut table = FlowTable::new(TableParts {
        records,
        flows_per_owner: 1000,
        source_ports: 1024..=65_535,
        seed: HashSeed([1, 2]),
        counters: Arc::default(),
    });
    table.admit_owner(OWNER, 1);
    table
}

fn key(client: u16) -> FlowKey {
    let end = |last, port| Endpoint { address: Ipv4Addr::new(192, 0, 2, last).into(), port };
    FlowKey { transport: Transport::Udp, src: end(1, client), dst: end(2, 80) }
}

fn open_flow(table: &mut FlowTable, client: u16, served_at: u16) {
    let original = key(client);
    let serving = Endpoint { address: Ipv4Addr::new(10, 0, 0, 1).into(), port: served_at };
    let (source, replies) = (Source::Client, Replies::ByRoute);
    let new = NewFlow { owner: OWNER, original, serving, source, replies };
    table.open(&new, &Signal::Udp, 0).expect("there is room");
}

/// A whole life of a daemon: the flows of `clients` are there when it has died.
fn live(dir: &Path, workers: u16, clients: impl IntoIterator<Item = u16>) {
    let mut files = FlowFiles::open(dir, BOOT).unwrap();
    let mut tables: Vec<_> =
        (0..workers).map(|worker| table(files.create(worker, 64).unwrap())).collect();
    files.left().iter().for_each(|left| {
        tables[0].restore(left, 0);
    });
    files.settle().unwrap();
    clients.into_iter().for_each(|client| open_flow(&mut tables[0], client, 80));
}

fn clients(files: &FlowFiles) -> Vec<u16> {
    files.left().iter().flat_map(Records::iter).map(|flow| flow.original.src.port).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let listed = fs::read_dir(dir.join(DIRECTORY)).unwrap();
    let mut names: Vec<_> =
        listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn flows_outlive_their_process_whatever_the_number_of_workers() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path(), 3, [1, 2]);
    assert_eq!(names(dir.path()), ["flows-1-0", "flows-1-1", "flows-1-2"]);
    live(dir.path(), 1, [3]);
    assert_eq!(names(dir.path()), ["flows-2-0"]);
    let mut found = clients(&FlowFiles::open(dir.path(), BOOT).unwrap());
    found.sort_unstable();
    assert_eq!(found, [1, 2, 3]);
}

#[test]
fn files_are_for_root_alone_and_have_their_room_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path(), 1, []);
    let of = |path: &Path| fs::metadata(path).unwrap();
    let directory = dir.path().join(DIRECTORY);
    assert_eq!(of(&directory).mode() & 0o777, 0o700);
    let file = of(&directory.join("flows-1-0"));
    assert_eq!(file.mode() & 0o777, 0o600);
    let bytes = Records::words(64) as u64 * 8;
    assert_eq!(file.len(), bytes);
    assert!(file.blocks() * 512 >= bytes, "blocks are allocated ahead");
}

#[test]
fn a_start_that_fails_leaves_everything_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path(), 2, [1]);
    let mut files = FlowFiles::open(dir.path(), BOOT).unwrap();
    files.create(0, 64).unwrap();
    assert_eq!(names(dir.path()), ["flows-1-0", "flows-1-1", "new-0"]);
    drop(files);
    assert_eq!(names(dir.path()), ["flows-1-0", "flows-1-1"]);
    assert_eq!(clients(&FlowFiles::open(dir.path(), BOOT).unwrap()), [1]);
}

#[test]
fn a_start_that_is_killed_loses_nothing_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path(), 2, [1]);
    for _ in 0..3 {
        let mut files = FlowFiles::open(dir.path(), BOOT).unwrap();
        let mut half = table(files.create(0, 64).unwrap());
        half.restore(&files.left()[0], 0);
        std::mem::forget(files);
    }
    let files = FlowFiles::open(dir.path(), BOOT).unwrap();
    assert_eq!(clients(&files), [1]);
    assert_eq!(names(dir.path()), ["flows-1-0", "flows-1-1"]);
}

/// Nothing old is removed before everything new has its name, or a process that is killed in between
/// would leave nothing.
#[test]
fn as_long_as_a_new_file_has_not_its_name_the_old_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path(), 1, [1]);
    let mut files = FlowFiles::open(dir.path(), BOOT).unwrap();
    files.create(0, 64).unwrap();
    files.create(1, 64).unwrap();
    fs::remove_file(dir.path().join(DIRECTORY).join("new-1")).unwrap();
    let error = files.settle().unwrap_err().to_string();
    assert!(error.contains("cannot rename"), "{error}");
    assert_eq!(names(dir.path()), ["flows-1-0", "flows-2-0"]);
}

/// Killed between renaming and removing: the files of two processes are there.
#[test]
fn what_the_newest_process_knew_of_a_flow_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let served = [90, 91, 92];
    for (start, port) in [2, 11, 9].into_iter().zip(served) {
        let path = dir.path().join(DIRECTORY).join(format!("{SETTLED}{start}-0"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let records = Records::format(Arc::new(make(&path, 64).unwrap()), BOOT);
        open_flow(&mut table(records), 1, port);
    }
    let mut files = FlowFiles::open(dir.path(), BOOT).unwrap();
    let mut table = table(files.create(0, 64).unwrap());
    let restored: Vec<_> =
        files.left().iter().map(|left| table.restore(left, 0).restored).collect();
    assert_eq!(restored, [1, 0, 0]);
    let found = table.lookup(&key(1), 0).unwrap();
    assert_eq!(table.sent(found).dst.port, 91, "that of start 11");
    files.settle().unwrap();
    assert_eq!(names(dir.path()), ["flows-12-0"]);
}

#[test]
fn what_cannot_be_read_is_discarded_and_what_is_not_ours_stays() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path(), 1, [1]);
    let at = |name: &str| dir.path().join(DIRECTORY).join(name);
    let whole = fs::read(at("flows-1-0")).unwrap();
    fs::write(at("flows-2-0"), &whole[..whole.len() - 1]).unwrap();
    fs::write(at("flows-2-1"), b"").unwrap();
    let mut newer = whole.clone();
    newer[12] = 9; // the upper half of word 1: the version
    fs::write(at("flows-2-2"), &newer).unwrap();
    symlink(at("flows-1-0"), at("flows-2-3")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, at("flows-2-4"), fifo, mode, 0).unwrap();
    let foreign = ["flows", "flows-1", "flows-1-0-0", "flows-1-99999", "new-", "new-x", "x"];
    foreign.iter().for_each(|name| fs::write(at(name), b"").unwrap());
    fs::create_dir(at("flows-9-9")).unwrap();

    let mut files = FlowFiles::open(dir.path(), BOOT).unwrap();
    assert_eq!(clients(&files), [1]);
    files.create(0, 64).unwrap();
    files.settle().unwrap();
    let mut expected: Vec<_> = foreign.into_iter().chain(["flows-10-0", "flows-9-9"]).collect();
    expected.sort_unstable();
    assert_eq!(names(dir.path()), expected);
}

#[test]
fn flows_of_another_boot_are_discarded() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path(), 1, [1]);
    let files = FlowFiles::open(dir.path(), [1, 3]).unwrap();
    assert!(files.left().is_empty());
    files.settle().unwrap();
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_boot_id_is_two_words() {
    let id = "01234567-89ab-cdef-0011-223344556677";
    assert_eq!(boot_words(id), [0x0123_4567_89ab_cdef, 0x0011_2233_4455_6677]);
    let real = crate::journal::boot_id().unwrap();
    let [a, b] = boot_words(&real);
    assert_eq!(format!("{a:016x}{b:016x}"), real.replace('-', ""));
}

#[test]
fn after_uninstall_there_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    remove_all(dir.path()).unwrap();
    live(dir.path(), 2, [1]);
    remove_all(dir.path()).unwrap();
    assert!(!dir.path().join(DIRECTORY).exists());
}

proptest! {
    #[test]
    fn no_content_of_a_file_is_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..1000),
        headed: bool,
        cut in 0..8000usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        live(dir.path(), 1, [1, 2, 3]);
        let path = dir.path().join(DIRECTORY).join("flows-1-0");
        let mut content = fs::read(&path).unwrap();
        if headed {
            let start = cut.min(content.len());
            let end = (start + bytes.len()).min(content.len());
            content[start..end].copy_from_slice(&bytes[..end - start]);
        } else {
            content = bytes;
        }
        fs::write(&path, content).unwrap();
        let mut files = FlowFiles::open(dir.path(), BOOT).unwrap();
        let mut table = table(files.create(0, 64).unwrap());
        files.left().iter().for_each(|left| {
            table.restore(left, 0);
        });
        prop_assert!(table.records().iter().count() <= 64);
        files.settle().unwrap();
        prop_assert_eq!(names(dir.path()), ["flows-2-0"]);
    }
}
