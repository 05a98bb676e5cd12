use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use cni_bridge::protocol::{Bandwidth, PortProtocol, RateRequest};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::state::{Fallback, HostPortAddress, HostPortRecord, MasqueradeWish, PodRecord};

const BOOT: &str = "6f1c2b1e-0000-4000-8000-000000000001";

fn attachment(id: u32) -> Attachment {
    Attachment {
        network: "viaduct".to_owned(),
        container_id: format!("c{id}"),
        ifname: "eth0".to_owned(),
    }
}

fn attached(id: u32) -> Record {
    Record::Attached(Box::new(PodRecord {
        attachment: attachment(id),
        netns: "/run/netns/line\nbreak \u{1f40d}".to_owned(),
        netns_inode: 4_026_532_000,
        netns_dev: 4,
        host_ifname: format!("vd{id}"),
        host_ifindex: 7,
        mac: [10, 0, 0, 0, 0, 1],
        host_mac: [14, 0, 0, 0, 0, 1],
        addresses: Vec::new(),
        route_mtu: 1500,
        offloads: crate::endpoint::Offloads::Full,
        worker: 1,
        slot: id,
        pod_namespace: "default".to_owned(),
        pod_name: format!("pod-{id}"),
        fallback: Fallback::Drop,
        generation: u64::from(id),
        host_ports: Vec::new(),
        masquerade: MasqueradeWish::Itself,
        limits: Bandwidth::default(),
    }))
}

fn detached(id: u32) -> Record {
    Record::Detached(attachment(id))
}

fn state_dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(dir: &Path) -> (Journal, Vec<Record>) {
    Journal::open(dir, BOOT).unwrap()
}

fn file(dir: &Path) -> PathBuf {
    dir.join(FILE_NAME)
}

/// Bytes of a journal with these records, made by appending.
fn written(records: &[Record]) -> Vec<u8> {
    let dir = state_dir();
    let (mut journal, _) = open(dir.path());
    records.iter().for_each(|record| journal.append(record).unwrap());
    fs::read(file(dir.path())).unwrap()
}

/// What a journal with these bytes remembers, and again after one more append and reopening.
fn remembered(bytes: &[u8]) -> Vec<Record> {
    let dir = state_dir();
    fs::write(file(dir.path()), bytes).unwrap();
    let (mut journal, records) = open(dir.path());
    let last = detached(999);
    journal.append(&last).unwrap();
    drop(journal);
    let (_, again) = open(dir.path());
    assert_eq!(again.split_last(), Some((&last, records.as_slice())));
    records
}

/// What a sequence of records says about the present.
fn present(records: &[Record]) -> BTreeMap<Attachment, PodRecord> {
    let mut pods = BTreeMap::new();
    for record in records.iter().cloned() {
        match record {
            Record::Attached(pod) => drop(pods.insert(pod.attachment.clone(), *pod)),
            Record::Detached(attachment) => drop(pods.remove(&attachment)),
        }
    }
    pods
}

#[test]
fn what_was_appended_is_there_after_reopening() {
    let dir = state_dir();
    let (mut journal, records) = open(dir.path());
    assert!(records.is_empty());
    let all = [attached(1), attached(2), detached(1)];
    for record in &all {
        journal.append(record).unwrap();
    }
    drop(journal);
    assert_eq!(open(dir.path()).1, all);
    assert_eq!(open(dir.path()).1, all, "reading changes nothing");
}

#[test]
fn the_sum_is_the_crc_32_of_ieee_802_3() {
    // The check value of CRC-32/ISO-HDLC in the catalogue of parametrised CRC algorithms.
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    assert_eq!(crc32(b""), 0);
}

#[test]
fn the_journal_of_another_boot_is_void() {
    let dir = state_dir();
    let (mut journal, _) = open(dir.path());
    journal.append(&attached(1)).unwrap();
    drop(journal);
    let (mut journal, records) = Journal::open(dir.path(), "another boot").unwrap();
    assert!(records.is_empty());
    journal.append(&attached(2)).unwrap();
    drop(journal);
    assert_eq!(Journal::open(dir.path(), "another boot").unwrap().1, [attached(2)]);
    assert!(open(dir.path()).1.is_empty(), "nor does the first boot come back");
}

#[test]
fn the_kernel_names_the_boot() {
    let boot = boot_id().unwrap();
    assert_eq!(boot.len(), 36, "{boot}");
    assert_eq!(boot, boot_id().unwrap());
}

#[test]
fn a_file_cut_at_any_byte_keeps_every_whole_record_before_the_cut() {
    let all = [attached(1), attached(2), detached(1), attached(3)];
    let bytes = written(&all);
    let line_ends: Vec<usize> = (1..=bytes.len()).filter(|end| bytes[end - 1] == b'\n').collect();
    assert_eq!(line_ends.len(), all.len() + 1);
    for cut in 0..=bytes.len() {
        let whole = line_ends.iter().filter(|end| **end <= cut).count().saturating_sub(1);
        assert_eq!(remembered(&bytes[..cut]), all[..whole], "cut at byte {cut}");
    }
}

#[test]
fn files_of_garbage_are_empty_journals() {
    for garbage in
        [&b""[..], b"\n", b"\n\n\n", b"\0\0\0\0", b"{}", b"\xff\xfe\n\x80\n", &[b'x'; 70_000]]
    {
        assert!(remembered(garbage).is_empty());
    }
}

#[test]
fn a_damaged_line_is_passed_over_and_its_neighbours_stay() {
    let all = [attached(1), attached(2), attached(3)];
    let bytes = written(&all);
    let text = String::from_utf8(bytes).unwrap();
    let damaged = text.replace("pod-2", "pod-9");
    assert_eq!(remembered(damaged.as_bytes()), [attached(1), attached(3)]);
    let spliced = text.replacen('\n', "\nnot a record\n\n", 2);
    assert_eq!(remembered(spliced.as_bytes()), all);
}

#[test]
fn a_damaged_header_makes_the_journal_void() {
    let text = String::from_utf8(written(&[attached(1)])).unwrap();
    assert!(remembered(text.replacen("boot_id", "boot_ix", 1).as_bytes()).is_empty());
}

#[test]
fn records_of_an_unknown_kind_and_unknown_fields_are_skipped() {
    let mut text = String::from_utf8(written(&[attached(1)])).unwrap();
    text += &line(&serde_json::json!({"hostport": {"port": 80}})).unwrap();
    let mut newer = serde_json::to_value(detached(1)).unwrap();
    newer["detached"]["reason"] = "gc".into();
    text += &line(&newer).unwrap();
    text += &line(&serde_json::json!({"hostport": {"port": 81}})).unwrap();
    assert_eq!(remembered(text.as_bytes()), [attached(1), detached(1)]);
}

#[test]
fn a_record_that_an_earlier_release_wrote_is_passed_over_and_is_no_damage() {
    // Sysctls stood in the journal once; they have a file of their own now.
    let old = serde_json::json!({"sysctl": {"name": "net/ipv4/ip_forward", "value": "0"}});
    let mut text = String::from_utf8(written(&[attached(1)])).unwrap();
    text += &line(&old).unwrap();
    text += &line(&attached(2)).unwrap();
    assert_eq!(remembered(text.as_bytes()), [attached(1), attached(2)]);
    let Parsed::Intact { len, damaged, unknown, .. } = parse(text.as_bytes(), BOOT) else {
        panic!("the journal is readable");
    };
    assert_eq!((len, damaged, unknown), (text.len(), 0, 1));
    let Parsed::Intact { damaged, unknown, .. } = parse((text + "torn").as_bytes(), BOOT) else {
        panic!("the journal is readable");
    };
    assert_eq!((damaged, unknown), (1, 1), "damage is told apart");
}

#[test]
fn a_journal_written_before_there_were_limits_is_read_and_new_limits_replace_earlier_ones() {
    let mut old = serde_json::to_value(attached(1)).unwrap();
    assert!(old["attached"].as_object_mut().unwrap().remove("limits").is_none(), "none, no key");
    let mut text = String::from_utf8(written(&[])).unwrap();
    text += &line(&old).unwrap();
    assert_eq!(remembered(text.as_bytes()), [attached(1)]);

    let dir = state_dir();
    let limited = |rate_bps| {
        let Record::Attached(mut pod) = attached(1) else { panic!("it is attached") };
        pod.limits.egress = Some(RateRequest { rate_bps, burst_bits: 8 });
        Record::Attached(pod)
    };
    let (mut journal, _) = open(dir.path());
    for record in [attached(1), limited(5), limited(6)] {
        journal.append(&record).unwrap();
        assert_accounts(&journal);
    }
    let (_, records) = open(dir.path());
    assert_eq!(compacted(&records), [limited(6)]);
    assert_eq!(present(&records).len(), 1);
}

#[test]
fn limits_that_nobody_can_have_written_leave_the_record_before_them_in_force() {
    let limits = |limits: serde_json::Value| {
        let mut record = serde_json::to_value(attached(1)).unwrap();
        record["attached"]["limits"] = limits;
        line(&record).unwrap()
    };
    let mut text = String::from_utf8(written(&[attached(1)])).unwrap();
    for wrong in [
        serde_json::json!(5),
        serde_json::json!({"ingress": 5}),
        serde_json::json!({"egress": {"rate_bps": 5}}),
        serde_json::json!({"egress": {"rate_bps": -5, "burst_bits": 8}}),
        serde_json::json!({"egress": {"rate_bps": 1.5, "burst_bits": 8}}),
        serde_json::json!({"egress": {"rate_bps": 1e30, "burst_bits": 8}}),
        serde_json::json!({"egress": {"rate_bps": "10M", "burst_bits": 8}}),
    ] {
        text += &limits(wrong);
        assert_eq!(remembered(text.as_bytes()), [attached(1)], "{text}");
    }
    // As large as can be is no damage.
    let most = serde_json::json!({"rate_bps": u64::MAX, "burst_bits": RateRequest::BURST_BITS_MAX});
    text += &limits(serde_json::json!({"egress": most}));
    let records = remembered(text.as_bytes());
    let [_, Record::Attached(pod)] = &records[..] else { panic!("{records:?}") };
    assert_eq!(pod.limits.egress.map(|limit| limit.rate_bps), Some(u64::MAX));
}

#[test]
fn the_next_format_is_read_and_the_one_after_it_is_refused_and_kept() {
    let with_format = |format| {
        let header = line(&Header { format, boot_id: BOOT.to_owned() }).unwrap();
        header + &line(&attached(1)).unwrap()
    };
    assert_eq!(remembered(with_format(FORMAT + 1).as_bytes()), [attached(1)]);
    let dir = state_dir();
    let text = with_format(FORMAT + 2);
    fs::write(file(dir.path()), &text).unwrap();
    let refused = Journal::open(dir.path(), BOOT).unwrap_err();
    assert!(matches!(refused, JournalError::Format { found, .. } if found == FORMAT + 2));
    assert_eq!(fs::read_to_string(file(dir.path())).unwrap(), text);
}

#[test]
fn a_crash_during_a_rewrite_leaves_the_old_journal() {
    let dir = state_dir();
    let (mut journal, _) = open(dir.path());
    journal.append(&attached(1)).unwrap();
    drop(journal);
    fs::write(dir.path().join(NEW_FILE_NAME), b"half a journ").unwrap();
    assert_eq!(open(dir.path()).1, [attached(1)]);
}

#[test]
fn the_journal_is_rewritten_when_most_of_it_is_past() {
    let dir = state_dir();
    let (mut journal, _) = open(dir.path());
    let mut all = vec![attached(1), attached(2)];
    all.extend((10..4000).flat_map(|id| [attached(id), detached(id)]));
    let (mut longest, mut rewrites) = (0, 0);
    for record in &all {
        let before = journal.len;
        journal.append(record).unwrap();
        longest = longest.max(journal.len);
        if journal.len < before {
            rewrites += 1;
            assert_accounts(&journal);
        }
    }
    let kept_bytes = DETACHED_KEPT as u64 * 1000;
    assert!(longest <= DEAD_BYTES_MAX + kept_bytes, "{longest}");
    assert!((1..4).contains(&rewrites), "{rewrites} rewrites of 2.5 MB");
    drop(journal);
    let (journal, records) = open(dir.path());
    assert_eq!(present(&records), present(&all));
    assert_eq!(journal.records.len(), records.len());
    let newest = &all[all.len() - 2 * DETACHED_KEPT..];
    assert!(records.ends_with(newest), "the newest detached pods are remembered");
    assert!(!dir.path().join(NEW_FILE_NAME).exists());
    let mode = fs::metadata(file(dir.path())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// The lengths that the journal goes by are those in the file.
fn assert_accounts(journal: &Journal) {
    assert_eq!(fs::metadata(file(&journal.dir)).unwrap().len(), journal.len);
    assert_eq!(journal.attached.values().sum::<u64>(), journal.live_bytes);
    let live = present(&journal.records);
    assert!(live.keys().eq(journal.attached.keys()));
    let length = |pod| line(&Record::Attached(Box::new(pod))).unwrap().len() as u64;
    assert_eq!(live.into_values().map(length).sum::<u64>(), journal.live_bytes);
}

/// A pod with this many host ports.
fn attached_with(id: u32, host_ports: u16) -> Record {
    let Record::Attached(mut pod) = attached(id) else { unreachable!("it is attached") };
    let port = |port| HostPortRecord {
        transport: PortProtocol::Udp,
        address: HostPortAddress::AnyV4,
        port,
        serving: "10.244.1.5".parse().unwrap(),
        container_port: port,
    };
    pod.host_ports = (1..=host_ports).map(port).collect();
    Record::Attached(pod)
}

#[test]
fn pods_with_thousands_of_host_ports_come_and_go_in_bounded_room() {
    let dir = state_dir();
    let (mut journal, _) = open(dir.path());
    let ranges = 2000;
    let stays = attached_with(1, ranges);
    journal.append(&stays).unwrap();
    let bytes = journal.len;
    for id in 2..40 {
        journal.append(&attached_with(id, ranges)).unwrap();
        journal.append(&detached(id)).unwrap();
        assert!(journal.len < 3 * bytes + 2 * DEAD_BYTES_MAX, "{} at pod {id}", journal.len);
        assert_accounts(&journal);
    }
    // A pod that is replaced by a later record of its own is not the present either.
    for _ in 0..20 {
        journal.append(&stays).unwrap();
        assert!(journal.len < 3 * bytes + 2 * DEAD_BYTES_MAX);
        assert_accounts(&journal);
    }
    drop(journal);
    let (_, records) = open(dir.path());
    assert_eq!(present(&records), present(&[stays]));
}

#[test]
fn records_that_another_release_wrote_longer_are_counted_as_they_are() {
    let dir = state_dir();
    let mut newer = serde_json::to_value(attached(1)).unwrap();
    newer["attached"]["from_the_future"] = "x".repeat(5000).into();
    let text = String::from_utf8(written(&[])).unwrap() + &line(&newer).unwrap();
    fs::write(file(dir.path()), &text).unwrap();
    let (mut journal, records) = open(dir.path());
    assert_eq!(records, [attached(1)]);
    journal.compact();
    assert_accounts(&journal);
    assert!(journal.len < 2000, "what we do not know is not rewritten");
    journal.append(&detached(1)).unwrap();
    assert_eq!((journal.live_bytes, journal.dead_bytes()), (0, journal.len));
}

#[test]
fn a_pod_that_went_is_kept_without_its_host_ports_and_one_that_is_there_with_them() {
    let records = [attached_with(1, 3), attached_with(2, 3), detached(1)];
    assert_eq!(compacted(&records), [attached(1), attached_with(2, 3), detached(1)]);
}

#[test]
fn a_rewrite_keeps_the_newest_pods_that_came_and_went() {
    let pods = u32::try_from(DETACHED_KEPT).unwrap() + 5;
    let all: Vec<Record> = (0..pods).flat_map(|id| [attached(id), detached(id)]).collect();
    assert_eq!(compacted(&all), all[2 * 5..]);
}

#[test]
fn a_failed_rewrite_loses_nothing_and_is_tried_again_later() {
    let dir = state_dir();
    let (mut journal, _) = open(dir.path());
    // A directory of that name cannot be opened for writing, whoever we are.
    fs::create_dir(dir.path().join(NEW_FILE_NAME)).unwrap();
    let all: Vec<Record> = (0..4000).flat_map(|id| [attached(id), detached(id)]).collect();
    let mut records = all.iter();
    let early = records.by_ref().take_while(|record| {
        journal.append(record).unwrap();
        journal.len <= DEAD_BYTES_MAX + 10_000
    });
    let early = early.count() + 1;
    assert_eq!(journal.records.len(), early);
    assert_eq!(journal.dead_bytes_max, 2 * DEAD_BYTES_MAX, "not at every append");
    fs::remove_dir(dir.path().join(NEW_FILE_NAME)).unwrap();
    records.for_each(|record| journal.append(record).unwrap());
    assert!(journal.records.len() < all.len());
    let kept_bytes = DETACHED_KEPT as u64 * 1000;
    assert!(journal.dead_bytes_max < DEAD_BYTES_MAX + kept_bytes, "as if it had not failed");
    drop(journal);
    assert_eq!(present(&open(dir.path()).1), present(&all));
}

#[test]
fn the_state_directory_is_made_private_and_one_that_others_can_write_is_refused() {
    let dir = state_dir();
    let made = dir.path().join("run/viaduct");
    Journal::open(&made, BOOT).unwrap();
    assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o700);
    for (mode, is_fine) in [(0o755, true), (0o775, false), (0o1777, false)] {
        fs::set_permissions(&made, fs::Permissions::from_mode(mode)).unwrap();
        let opened = Journal::open(&made, BOOT);
        assert_eq!(opened.is_ok(), is_fine, "{mode:o}");
        assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o7777, mode);
    }
}

#[test]
fn a_state_directory_that_is_a_file_is_refused_with_its_name() {
    let dir = state_dir();
    let path = dir.path().join("file");
    fs::write(&path, b"").unwrap();
    let refused = Journal::open(&path, BOOT).unwrap_err().to_string();
    assert!(refused.contains(path.to_str().unwrap()), "{refused}");
}

/// Set for the child of the test below, to the directory it is to fill.
const FULL_DIR: &str = "JOURNAL_TEST_FULL_DIR";

#[test]
fn an_append_that_finds_no_room_fails_and_leaves_the_file_as_it_was() {
    // A limit on the file's size, in a child of our own, ends a write half-way as a full disk does.
    let dir = state_dir();
    // Its output goes through a pipe: the limit is for every file, a log that it would share too.
    let child = Command::new("sh")
        .args(["-c", r#"trap "" XFSZ; ulimit -f 8; exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--test-threads=1"])
        .arg(format!(
            "{}::appends_until_there_is_no_room",
            module_path!().split_once("::").unwrap().1
        ))
        .env(FULL_DIR, dir.path())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let (_, records) = open(dir.path());
    let expected: Vec<Record> = (0..u32::try_from(records.len()).unwrap()).map(attached).collect();
    assert_eq!(records, expected);
    assert!((5..16).contains(&records.len()), "{}", records.len());
    let bytes = fs::read(file(dir.path())).unwrap();
    assert_eq!(bytes.last(), Some(&b'\n'), "no torn tail");
}

#[test]
#[ignore = "the child of the test above: it needs a file size limit"]
fn appends_until_there_is_no_room() {
    // Without a directory it was started by name or by `--ignored`, and has nothing to do.
    let Some(dir) = std::env::var_os(FULL_DIR).map(PathBuf::from) else {
        return;
    };
    let (mut journal, _) = open(&dir);
    let failed = (0..100).find(|id| journal.append(&attached(*id)).is_err());
    let failed = failed.expect("the limit is below 100 records");
    let len = fs::metadata(file(&dir)).unwrap().len();
    assert_eq!(len, journal.len, "the torn tail is cut");
    assert!(!journal.has_torn_tail);
    // A second try fails likewise, and a shorter record that fits still succeeds later.
    assert!(journal.append(&attached(failed)).is_err());
    assert_eq!(fs::metadata(file(&dir)).unwrap().len(), len);
}

#[test]
#[ignore = "measures; run alone with --release and --nocapture"]
fn an_append_on_tmpfs_takes_well_under_a_millisecond() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (mut journal, _) = open(dir.path());
    let mut times_us: Vec<u128> = (0..5000)
        .flat_map(|id| [attached(id), detached(id)])
        .map(|record| {
            let start = std::time::Instant::now();
            journal.append(&record).unwrap();
            start.elapsed().as_micros()
        })
        .collect();
    times_us.sort_unstable();
    let at = |percent: usize| times_us[(times_us.len() - 1) * percent / 100];
    println!("append: p50 {} us, p99 {} us, max {} us", at(50), at(99), at(100));
    assert!(at(99) < 500, "{} us", at(99));
}

fn record() -> impl Strategy<Value = Record> {
    prop_oneof![(0..8_u32).prop_map(attached), (0..8_u32).prop_map(detached),]
}

proptest! {
    #[test]
    fn one_wrong_byte_costs_no_record_but_its_neighbourhood(
        records in prop::collection::vec(record(), 1..12),
        place in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let mut bytes = written(&records);
        let place = place.index(bytes.len());
        let line = bytes[..place].iter().filter(|byte| **byte == b'\n').count();
        let is_line_end = bytes[place] == b'\n';
        bytes[place] ^= flip;
        let kept = remembered(&bytes);
        let expected: Vec<Record> = if line == 0 {
            Vec::new()
        } else {
            // A lost line break costs the line after it too.
            let lost = if is_line_end { line - 1..line + 1 } else { line - 1..line };
            let indexed = records.iter().enumerate();
            indexed.filter(|(i, _)| !lost.contains(i)).map(|(_, r)| r.clone()).collect()
        };
        prop_assert_eq!(kept, expected);
    }

    #[test]
    fn any_bytes_behind_whole_records_cost_none_of_them(
        records in prop::collection::vec(record(), 0..6),
        garbage in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = written(&records);
        bytes.extend(garbage);
        prop_assert_eq!(remembered(&bytes), records);
    }

    #[test]
    fn compacting_keeps_the_present_and_the_order(
        records in prop::collection::vec(record(), 0..200),
    ) {
        let kept = compacted(&records);
        prop_assert_eq!(present(&kept), present(&records));
        prop_assert_eq!(&compacted(&kept), &kept);
        let mut rest = records.iter();
        prop_assert!(kept.iter().all(|record| rest.any(|other| other == record)));
    }
}
