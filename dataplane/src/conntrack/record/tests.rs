//! Flows as they lie in memory: read back as written, and whatever lies there.

use proptest::prelude::*;

use super::*;

const BOOT: [u64; 2] = [1, 2];

fn memory(flows: u32) -> Arc<Words> {
    Arc::new(Words::anonymous(Records::words(flows)).unwrap())
}

fn end(is_v4: bool, address: u128, port: u16) -> Endpoint {
    let address = match is_v4 {
        true => std::net::Ipv4Addr::from(address as u32).into(),
        false => std::net::Ipv6Addr::from(address | 1 << 127).into(),
    };
    Endpoint { address, port }
}

prop_compose! {
    fn any_side()(next: Option<u32>, acked: Option<u32>, fin: bool) -> Side {
        Side { next, acked, fin }
    }
}

prop_compose! {
    pub(crate) fn any_flow()(
        is_v4: bool,
        addresses: [u128; 3],
        ports: [u16; 4],
        owner: u16,
        generation: u32,
        seen_s: u32,
        state in 1u8..=10,
        transport in prop_oneof![Just(1u8), Just(6), Just(17), Just(132)],
        by_node: bool,
        asked_source: bool,
        sides in [any_side(), any_side()],
    ) -> Flow {
        let [client, asked, serving] = [0, 1, 2].map(|n| end(is_v4, addresses[n], ports[n]));
        let source = if asked_source { asked.address } else { client.address };
        let source = Endpoint { address: source, port: ports[3] };
        let transport = Transport::from_number(transport).unwrap();
        Flow {
            owner: PortId(owner),
            generation,
            original: FlowKey { transport, src: client, dst: asked },
            translated: FlowKey { transport, src: source, dst: serving },
            replies: if by_node { Replies::ByNode } else { Replies::ByRoute },
            state: FlowState::from_number(state).unwrap(),
            seen_s,
            sides,
        }
    }
}

proptest! {
    #[test]
    fn a_flow_is_read_back_as_it_was_written(
        flow in any_flow(),
        other in any_flow(),
        epoch: u16,
    ) {
        let records = Records::format(memory(2), BOOT);
        records.write(1, &other, 1);
        records.clear(1);
        prop_assert_eq!(records.iter().count(), 0);
        records.write(1, &flow, epoch);
        prop_assert_eq!(records.flow(1), Some(flow));
        prop_assert!(records.is(1, Direction::Original, &flow.original));
        prop_assert!(records.is(1, Direction::Reply, &flow.translated.inverse()));
        let other_is = records.is(1, Direction::Original, &other.original);
        prop_assert_eq!(other_is, other.original == flow.original);

        let progress = Progress { state: other.state, sides: other.sides };
        records.set_progress(1, &progress);
        let life = records.life(1);
        prop_assert_eq!((life.owner, life.epoch), (flow.owner, epoch));
        records.set_seen(1, &life, other.seen_s);
        let changed = Flow { state: other.state, sides: other.sides, seen_s: other.seen_s, ..flow };
        prop_assert_eq!(records.flow(1), Some(changed));
        prop_assert_eq!(records.progress(1, other.state), progress);
        let found: Vec<_> = records.iter().collect();
        prop_assert_eq!(found, vec![changed]);
    }

    #[test]
    fn whatever_lies_in_memory_is_read_without_a_panic(
        words in prop::collection::vec(any::<u64>(), 40),
        version in prop_oneof![4 => Just(1u64), 1 => any::<u64>()],
        flows in prop_oneof![4 => Just(2u64), 1 => any::<u64>()],
    ) {
        let memory = memory(2);
        for (word, value) in memory.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        prop_assert_eq!(Records::open(memory.clone(), BOOT).err(), Some(LayoutError::Damaged));
        let layout = version << 32 | RECORD_WORDS as u64;
        let header = [MAGIC, layout, flows, BOOT[0], BOOT[1]];
        memory.iter().zip(header).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        if let Ok(records) = Records::open(memory, BOOT) {
            prop_assert!(records.iter().count() <= 2);
        }
    }
}

#[test]
fn only_flows_of_this_layout_and_boot_are_opened() {
    let words = memory(3);
    let damaged = Records::open(words.clone(), BOOT).err();
    assert_eq!(damaged, Some(LayoutError::Damaged), "never formatted");
    let _records = Records::format(words.clone(), BOOT);
    assert_eq!(Records::open(words.clone(), BOOT).unwrap().room(), 3);
    assert_eq!(Records::open(words.clone(), [1, 3]).err(), Some(LayoutError::OtherBoot));
    words[2].store(4, Ordering::Relaxed);
    assert_eq!(Records::open(words.clone(), BOOT).err(), Some(LayoutError::Damaged), "too short");
    words[1].store(2 << 32 | RECORD_WORDS as u64, Ordering::Relaxed);
    assert_eq!(Records::open(words, BOOT).err(), Some(LayoutError::Version { found: 2 }));
}

#[test]
#[should_panic(expected = "memory for flows is new")]
fn memory_with_flows_is_not_formatted_again() {
    let words = memory(1);
    let _first = Records::format(words.clone(), BOOT);
    let _second = Records::format(words, BOOT);
}

/// A crash ends the process between two stores: a flow is there when all of it is.
#[test]
fn a_flow_that_is_half_written_is_not_there() {
    let records = Records::format(memory(1), BOOT);
    for at in 1..RECORD_WORDS {
        records.record(0)[at].store(u64::MAX, Ordering::Relaxed);
        assert_eq!(records.iter().count(), 0);
    }
}
