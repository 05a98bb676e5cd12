//! Files of earlier processes: whole ones give their flows, and no bytes at all break a table.

use proptest::prelude::*;

use super::*;
use crate::conntrack::record::tests::any_flow;
use crate::conntrack::{
    Direction, Flow, FlowState, FlowTable, HashSeed, Restored, TableParts, Transport,
};
use crate::port::PortId;

const BOOT: [u64; 2] = [7, 8];
const SECOND: u64 = 1_000_000_000;

fn records(flows: u32) -> Records {
    Records::format(Arc::new(Words::anonymous(Records::words(flows)).unwrap()), BOOT)
}

/// What a file of these records has in it.
fn file(records: &Records) -> Vec<u8> {
    let memory = records.memory();
    memory.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect()
}

fn table(flows: u32, flows_per_owner: u32) -> FlowTable {
    FlowTable::new(TableParts {
        records: records(flows),
        flows_per_owner,
        source_ports: 1024..=65_535,
        seed: HashSeed([1, 2]),
        counters: Arc::default(),
    })
}

/// A word of a record with its bits where a table has them, so that some records pass for flows,
/// and from few values, so that they contradict each other.
fn head() -> impl Strategy<Value = u64> {
    let transport = prop_oneof![Just(1u64), Just(6), Just(17), Just(132), Just(5)];
    let whole = (0..12u64, transport, 0..4u64, 0..4u64, any::<u16>()).prop_map(
        |(state, transport, flags, owner, epoch)| {
            state | transport << 8 | flags << 16 | owner << 32 | u64::from(epoch) << 48
        },
    );
    prop_oneof![8 => whole, 1 => any::<u64>()]
}

fn record() -> impl Strategy<Value = Vec<u64>> {
    let seen = prop_oneof![Just(1u64 << 32 | 50), Just(1 << 32 | 90), Just(1 << 32 | 0xffff_ffff)];
    let ports = prop_oneof![Just(0u64), Just(80 << 32 | 80 << 16), Just(0x5000_5000_5000_5000)];
    let mapped = |last: u64| [0, 0xffff_0000_0000 | last];
    let address = prop_oneof![
        Just(mapped(1)),
        Just(mapped(2)),
        Just([1 << 61, 1]),
        any::<[u64; 2]>().boxed(),
    ];
    (head(), seen, ports, any::<[u64; 2]>(), prop::array::uniform3(address)).prop_map(
        |(head, seen, ports, sides, addresses)| {
            let mut words = vec![head, seen, ports, sides[0], sides[1]];
            words.extend(addresses.as_flattened());
            words.push(0);
            words
        },
    )
}

fn assert_whole(table: &FlowTable, now_ns: u64) -> Result<(), TestCaseError> {
    let listed: Vec<Flow> = table.records().iter().collect();
    for flow in &listed {
        let original = table.lookup(&flow.original, now_ns);
        let reply = table.lookup(&flow.translated.inverse(), now_ns);
        let (original, reply) = (original.expect("found"), reply.expect("found"));
        prop_assert_eq!(original.direction(), Direction::Original);
        prop_assert_eq!(reply.direction(), Direction::Reply);
        prop_assert_eq!(table.flow(original), *flow);
        prop_assert_eq!(table.flow(reply), *flow);
        prop_assert!(flow.seen_s <= 100, "seen in the future: it would never expire");
    }
    Ok(())
}

proptest! {
    #[test]
    fn flows_are_read_from_a_file_as_they_were_written(
        flows in prop::collection::vec((any_flow(), any::<bool>()), 0..20),
    ) {
        let written = records(20);
        for (at, (flow, is_freed)) in (0..).zip(&flows) {
            written.write(at, flow, 3);
            if *is_freed {
                written.clear(at);
            }
        }
        let left = Records::read(file(&written).as_slice(), BOOT).unwrap();
        let expected: Vec<Flow> = written.iter().collect();
        prop_assert_eq!(left.room() as usize, expected.len(), "memory for what was in use only");
        prop_assert_eq!(left.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn no_bytes_at_all_are_a_panic(
        is_headed: bool,
        room in 0..20u64,
        bytes in prop::collection::vec(any::<u8>(), 0..1500),
    ) {
        let header = [MAGIC, VERSION << 32 | RECORD_WORDS as u64, room, BOOT[0], BOOT[1]];
        let mut file = Vec::new();
        if is_headed {
            file.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
        }
        file.extend(bytes);
        if let Ok(left) = Records::read(file.as_slice(), BOOT) {
            let mut table = table(8, 4);
            (0..4).for_each(|owner| table.admit_owner(PortId(owner), 1));
            table.restore(&left, 100 * SECOND);
            assert_whole(&table, 100 * SECOND)?;
        }
    }

    /// Records that contradict each other, themselves, or the clock: what is restored of them is
    /// found by both keys, within the quota, and expires.
    #[test]
    fn whatever_is_restored_obeys_the_laws_of_the_table(
        hostile in prop::collection::vec(record(), 1..40),
    ) {
        let room = hostile.len() as u64;
        let mut words = vec![MAGIC, VERSION << 32 | RECORD_WORDS as u64, room, BOOT[0], BOOT[1]];
        words.resize(HEADER_WORDS, 0);
        words.extend(hostile.iter().flatten());
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let left = Records::read(bytes.as_slice(), BOOT).unwrap();
        let mut table = table(16, 4);
        (0..3).for_each(|owner| table.admit_owner(PortId(owner), 1));
        let restored = table.restore(&left, 100 * SECOND).restored;
        prop_assert!(restored <= 12);
        prop_assert_eq!(table.records().iter().count() as u32, restored);
        assert_whole(&table, 100 * SECOND)?;
        table.retire_owner(PortId(0));
        table.sweep(0, u32::MAX, |flow| flow.owner == PortId(1));
        let later = (100 + 86_401) * SECOND;
        while table.expire(later, 64) > 0 {}
        prop_assert_eq!(table.records().iter().count(), 0);
    }

    /// One in a state that its transport does not have, one whose keys cannot be told apart, and
    /// one beside them that is sound.
    #[test]
    fn unsound_flows_are_passed_over_and_their_neighbor_is_not(mut flow in any_flow()) {
        (flow.owner, flow.generation, flow.seen_s) = (PortId(1), 1, 100);
        flow.original.transport = Transport::Tcp;
        flow.translated.transport = Transport::Tcp;
        flow.translated.src.address = flow.original.src.address;
        flow.state = FlowState::Established;
        prop_assume!(flow.is_sound());
        let misplaced = Flow { state: FlowState::Stream, ..flow };
        let mut ambiguous = flow;
        ambiguous.original.dst = flow.original.src;
        ambiguous.translated = ambiguous.original.inverse();
        let left = records(3);
        (0..).zip([misplaced, ambiguous, flow]).for_each(|(at, flow)| left.write(at, &flow, 0));
        let mut table = table(8, 8);
        table.admit_owner(PortId(1), 1);
        let result = table.restore(&left, 100 * SECOND);
        prop_assert_eq!(result, Restored { restored: 1, passed_over: 2 });
        prop_assert_eq!(table.records().iter().collect::<Vec<_>>(), [flow]);
    }
}

#[test]
fn only_whole_files_of_this_layout_and_boot_are_read() {
    let whole = file(&records(3));
    let read = |bytes: &[u8], boot| Records::read(bytes, boot).map(|left| left.room());
    assert_eq!(read(&whole, BOOT), Ok(0));
    for end in 0..whole.len() {
        assert_eq!(read(&whole[..end], BOOT), Err(LayoutError::Damaged), "{end} bytes");
    }
    assert_eq!(read(&whole, [7, 9]), Err(LayoutError::OtherBoot));
    let with = |at: usize, word: u64| {
        let mut bytes = whole.clone();
        bytes[at * 8..(at + 1) * 8].copy_from_slice(&word.to_ne_bytes());
        read(&bytes, BOOT)
    };
    assert_eq!(with(0, MAGIC + 1), Err(LayoutError::Damaged));
    assert_eq!(with(1, 2 << 32 | 12), Err(LayoutError::Version { found: 2 }));
    assert_eq!(with(1, VERSION << 32 | 13), Err(LayoutError::Damaged));
    for room in [0, u64::from(FLOWS_MAX) + 1, u64::MAX] {
        assert_eq!(with(2, room), Err(LayoutError::Damaged), "room for {room}");
    }
}

#[test]
fn a_disk_that_fails_is_named_as_such() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
    let expected = LayoutError::Unreadable { kind: io::ErrorKind::PermissionDenied };
    assert_eq!(Records::read(Broken, BOOT).err(), Some(expected));
}
