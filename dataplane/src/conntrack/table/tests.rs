//! The table against a list that is searched from end to end, and its rules when room is short.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::super::{Replies, TcpSegment, Transport};
use super::*;
use crate::xsk::words::Words;

const BOOT: [u64; 2] = [3, 4];
const SECOND: u64 = 1_000_000_000;

fn table(flows: u32, flows_per_owner: u32) -> FlowTable {
    let words = Words::anonymous(Records::words(flows)).unwrap();
    FlowTable::new(TableParts {
        records: Records::format(Arc::new(words), BOOT),
        flows_per_owner,
        source_ports: 1024..=65_535,
        seed: HashSeed([5, 6]),
        counters: Arc::default(),
    })
}

fn end(address: u32, port: u16) -> Endpoint {
    Endpoint { address: Ipv4Addr::from(address).into(), port }
}

/// The node's address, and the serving end of an owner.
const NODE: u32 = 0xc0a8_0001;

fn serving(owner: u16) -> Endpoint {
    end(0x0af4_0000 + u32::from(owner), 80)
}

/// A flow to a host port that leads to the owner: the port 8000 and its number.
fn new_flow(owner: u16, transport: Transport, client: u32, source: Source) -> NewFlow {
    let src = end(0x0a00_0000 + client / 1000, 2000 + (client % 1000) as u16);
    let dst = end(NODE, 8000 + owner);
    let original = FlowKey { transport, src, dst };
    let replies = Replies::ByRoute;
    NewFlow { owner: PortId(owner), original, serving: serving(owner), source, replies }
}

fn tcp(flags: u8, sequence: u32, acknowledgment: u32) -> Signal {
    Signal::Tcp(TcpSegment { flags, sequence, acknowledgment, payload_bytes: 0 })
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

fn established(table: &mut FlowTable, new: &NewFlow, now_ns: u64) -> Result<Found, OpenError> {
    let found = table.open(new, &tcp(SYN, 100, 0), now_ns)?;
    let reply = Found { direction: Direction::Reply, ..found };
    table.observe(reply, &tcp(SYN | ACK, 500, 101), now_ns);
    table.observe(found, &tcp(ACK, 101, 501), now_ns);
    assert_eq!(table.flow(found).state, FlowState::Established);
    Ok(found)
}

#[derive(Clone, Debug)]
enum Step {
    Open { owner: u16, transport: Transport, client: u32, source: Source },
    Packet { flow: usize, direction: Direction, flags: u8 },
    Wait { seconds: u64 },
    Expire { work: usize },
    Retire { owner: u16 },
    Admit { owner: u16, generation: u32 },
    Forget { owner: u16, client: u32 },
}

const OWNERS: u16 = 3;

fn step() -> impl Strategy<Value = Step> {
    let source = prop_oneof![Just(Source::Client), Just(Source::Asked)];
    let transport = prop_oneof![Just(Transport::Tcp), Just(Transport::Udp), Just(Transport::Query)];
    let direction = prop_oneof![Just(Direction::Original), Just(Direction::Reply)];
    let seconds = prop_oneof![0..3u64, 50..70u64, 110..130u64, 230..310u64, Just(86_400u64)];
    prop_oneof![
        8 => (0..OWNERS, transport, 0..12u32, source).prop_map(
            |(owner, transport, client, source)| Step::Open { owner, transport, client, source },
        ),
        8 => (any::<usize>(), direction, prop_oneof![Just(ACK), Just(SYN | ACK), Just(ACK | 1)])
            .prop_map(|(flow, direction, flags)| Step::Packet { flow, direction, flags }),
        4 => seconds.prop_map(|seconds| Step::Wait { seconds }),
        3 => (0..5usize).prop_map(|work| Step::Expire { work }),
        1 => (0..OWNERS).prop_map(|owner| Step::Retire { owner }),
        1 => (0..OWNERS, 1..4u32)
            .prop_map(|(owner, generation)| Step::Admit { owner, generation }),
        1 => (0..OWNERS, 0..12u32).prop_map(|(owner, client)| Step::Forget { owner, client }),
    ]
}

/// What the table should remember: flows in a list.
#[derive(Default)]
struct Model {
    flows: Vec<Flow>,
    owners: HashMap<u16, u32>,
    now_s: u64,
}

impl Model {
    fn now_ns(&self) -> u64 {
        self.now_s * SECOND
    }

    fn drop_expired(&mut self) {
        let now_s = self.now_s;
        let lives = |flow: &Flow| {
            let idle = now_s - u64::from(flow.seen_s);
            idle <= u64::from(flow.state.class().timeout_s())
        };
        self.flows.retain(lives);
    }

    fn find(&self, key: &FlowKey) -> Option<(usize, Direction)> {
        self.flows.iter().enumerate().find_map(|(index, flow)| {
            if flow.original == *key {
                Some((index, Direction::Original))
            } else {
                (flow.translated.inverse() == *key).then_some((index, Direction::Reply))
            }
        })
    }
}

/// Does a step to both, and compares its result.
fn run(table: &mut FlowTable, model: &mut Model, step: Step) -> Result<(), TestCaseError> {
    let now_ns = model.now_ns();
    match step {
        Step::Open { owner, transport, client, source } => {
            let new = new_flow(owner, transport, client, source);
            let signal = match transport {
                Transport::Tcp => tcp(SYN, 1, 0),
                Transport::Udp => Signal::Udp,
                _ => Signal::Query,
            };
            let result = table.open(&new, &signal, now_ns);
            let Some(generation) = model.owners.get(&owner).copied() else {
                prop_assert_eq!(result, Err(OpenError::NoOwner));
                return Ok(());
            };
            if model.find(&new.original).is_some() {
                prop_assert_eq!(result, Err(OpenError::Exists));
                return Ok(());
            }
            let flow = table.flow(result.expect("there is room, and a port"));
            prop_assert_eq!((flow.original, flow.owner), (new.original, new.owner));
            prop_assert_eq!((flow.generation, flow.seen_s), (generation, model.now_s as u32));
            let mut kept = flow.translated;
            kept.src.port = new.original.src.port;
            prop_assert_eq!(kept.dst, new.serving);
            let taken = model.find(&kept.inverse()).is_some();
            prop_assert_eq!(flow.translated != kept, taken, "the port is kept if it is free");
            prop_assert!(model.find(&flow.translated.inverse()).is_none());
            model.flows.push(flow);
        }
        Step::Packet { flow, direction, flags } if !model.flows.is_empty() => {
            let index = flow % model.flows.len();
            let flow = &mut model.flows[index];
            let key = match direction {
                Direction::Original => flow.original,
                Direction::Reply => flow.translated.inverse(),
            };
            let signal = match flow.original.transport {
                Transport::Tcp => tcp(flags, 2, 2),
                Transport::Udp => Signal::Udp,
                _ => Signal::Query,
            };
            let found = table.lookup(&key, now_ns).expect("it lives");
            prop_assert_eq!((found.direction(), table.received(found)), (direction, key));
            table.observe(found, &signal, now_ns);
            let progress = Progress { state: flow.state, sides: flow.sides };
            let Progress { state, sides } = progress.after(direction, &signal);
            (flow.state, flow.sides, flow.seen_s) = (state, sides, model.now_s as u32);
            prop_assert_eq!(table.flow(found), *flow);
        }
        Step::Packet { .. } => {}
        Step::Wait { seconds } => {
            model.now_s += seconds;
            model.drop_expired();
        }
        Step::Expire { work } => prop_assert!(table.expire(now_ns, work) <= work),
        Step::Retire { owner } => {
            table.retire_owner(PortId(owner));
            model.owners.remove(&owner);
            model.flows.retain(|flow| flow.owner.0 != owner);
        }
        Step::Admit { owner, generation } => {
            table.admit_owner(PortId(owner), generation);
            if model.owners.insert(owner, generation) != Some(generation) {
                model.flows.retain(|flow| flow.owner.0 != owner);
            }
        }
        Step::Forget { owner, client } => {
            let port = 2000 + client as u16;
            let is_one = |flow: &Flow| flow.original.src.port == port;
            let before = model.flows.len();
            model.flows.retain(|flow| flow.owner.0 != owner || !is_one(flow));
            let counted = table.counters.flows.get();
            let is_it = |flow: &Flow| flow.owner == PortId(owner) && is_one(flow);
            prop_assert_eq!(table.sweep(0, u32::MAX, is_it), None);
            let forgotten = counted - table.counters.flows.get();
            // It may find some that have expired as well.
            prop_assert!(forgotten as usize >= before - model.flows.len());
        }
    }
    Ok(())
}

/// Both remember the same.
fn assert_equal(table: &FlowTable, model: &Model) -> Result<(), TestCaseError> {
    for flow in &model.flows {
        let keys = [
            (flow.original, Direction::Original, flow.translated),
            (flow.translated.inverse(), Direction::Reply, flow.original.inverse()),
        ];
        for (key, direction, sent) in keys {
            let found = table.lookup(&key, model.now_ns());
            prop_assert_eq!(found.map(|found| found.direction()), Some(direction));
            let found = found.unwrap();
            prop_assert_eq!((table.sent(found), table.flow(found)), (sent, *flow));
        }
    }
    for owner in 0..OWNERS {
        for client in 0..12 {
            let key = new_flow(owner, Transport::Tcp, client, Source::Client).original;
            let found = table.lookup(&key, model.now_ns()).is_some();
            prop_assert_eq!(found, model.find(&key).is_some());
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn the_table_equals_a_list(steps in prop::collection::vec(step(), 1..120)) {
        let (mut table, mut model) = (table(256, 256), Model { now_s: 7, ..Model::default() });
        for owner in 0..2 {
            run(&mut table, &mut model, Step::Admit { owner, generation: 1 })?;
        }
        for step in steps {
            run(&mut table, &mut model, step)?;
            assert_equal(&table, &model)?;
        }
        // Every owner is looked at, and all that is due goes.
        while table.expire(model.now_ns(), 64) > 0 {}
        prop_assert_eq!(table.counters.flows.get() as usize, model.flows.len());
        prop_assert_eq!(table.records().iter().count(), model.flows.len());
        prop_assert_eq!(table.queues.used() as usize, model.flows.len());
    }

    /// A crash loses nothing: the next process finds the same flows.
    #[test]
    fn flows_are_restored_as_they_were(steps in prop::collection::vec(step(), 1..120)) {
        let (mut before, mut model) = (table(256, 256), Model { now_s: 7, ..Model::default() });
        for owner in 0..OWNERS {
            run(&mut before, &mut model, Step::Admit { owner, generation: 9 })?;
        }
        for step in steps {
            run(&mut before, &mut model, step)?;
        }
        // A pod that went and came back may find what had not been freed by then.
        while before.expire(model.now_ns(), 64) > 0 {}
        let left = Records::open(before.records().memory(), BOOT).unwrap();
        drop(before);
        let mut after = table(512, 512);
        for (owner, generation) in &model.owners {
            after.admit_owner(PortId(*owner), *generation);
        }
        let restored = after.restore(&left, model.now_ns());
        prop_assert_eq!(restored.restored as usize, model.flows.len());
        assert_equal(&after, &model)?;
        // A second time there is nothing to do.
        let again = after.restore(&left, model.now_ns());
        prop_assert_eq!(again.restored, 0);
    }

    /// However full it is: what two ends have established lives on, and quotas hold.
    #[test]
    fn nothing_established_gives_way_before_its_time(
        opens in prop::collection::vec((0..OWNERS, any::<bool>(), 0..20u64), 1..200),
    ) {
        let (mut table, mut now_s) = (table(16, 8), 1000);
        (0..OWNERS).for_each(|owner| table.admit_owner(PortId(owner), 1));
        let mut kept: Vec<(NewFlow, u64)> = Vec::new();
        for (client, (owner, establish, seconds)) in (0..).zip(opens) {
            now_s += seconds;
            let new = new_flow(owner, Transport::Tcp, client, Source::Client);
            let opened = match establish {
                true => established(&mut table, &new, now_s * SECOND)
                    .map(|_| kept.push((new, now_s))),
                false => table.open(&new, &tcp(SYN, 1, 0), now_s * SECOND).map(|_| ()),
            };
            let refused = matches!(opened, Err(OpenError::Quota | OpenError::Full));
            prop_assert!(opened.is_ok() || refused);
            kept.retain(|(_, seen_s)| now_s - seen_s < 300);
            for (new, _) in &kept {
                prop_assert!(table.lookup(&new.original, now_s * SECOND).is_some());
            }
            prop_assert!(table.queues.used() <= 16);
            prop_assert!(table.owners.iter().all(|owner| owner.flows <= 8));
            if refused {
                let full = kept.len() >= 16;
                let of_owner = kept.iter().filter(|(new, _)| new.owner == PortId(owner)).count();
                prop_assert!(full || of_owner >= 8, "refused although others may go");
            }
        }
    }
}

#[test]
fn a_flood_of_one_pod_takes_nothing_from_the_others() {
    const FLOODED: u16 = 0;
    let mut table = table(4096, 1024);
    (0..8).for_each(|owner| table.admit_owner(PortId(owner), 1));
    let now_ns = 1000 * SECOND;
    let others: Vec<NewFlow> = (1..8)
        .flat_map(|owner| (0..300).map(move |n| new_flow(owner, Transport::Tcp, n, Source::Client)))
        .collect();
    for new in &others {
        established(&mut table, new, now_ns).unwrap();
    }
    for n in 0..100_000 {
        let new = new_flow(FLOODED, Transport::Tcp, n, Source::Client);
        table.open(&new, &tcp(SYN, n, 0), now_ns + u64::from(n) * 10_000).unwrap();
        if n % 1000 == 0 {
            let owner = 1 + (n / 1000 % 7) as u16;
            let new = new_flow(owner, Transport::Tcp, 1000 + n, Source::Client);
            established(&mut table, &new, now_ns + u64::from(n) * 10_000).unwrap();
        }
    }
    for new in &others {
        assert!(table.lookup(&new.original, now_ns + SECOND).is_some());
    }
    assert_eq!(table.owners[usize::from(FLOODED)].flows, 1024);
    assert_eq!(table.counters.refused_full.get() + table.counters.refused_quota.get(), 0);
}

#[test]
fn a_flood_of_several_pods_that_fills_the_table_still_leaves_room_for_the_others() {
    let mut table = table(4096, 1024);
    (0..8).for_each(|owner| table.admit_owner(PortId(owner), 1));
    let now_ns = 1000 * SECOND;
    let mut handshakes = Vec::new();
    for n in 0..100_000 {
        let flooded = 1 + (n % 6) as u16;
        let new = new_flow(flooded, Transport::Tcp, n, Source::Client);
        table.open(&new, &tcp(SYN, n, 0), now_ns).unwrap();
        if n % 500 == 0 {
            let new = new_flow(0, Transport::Tcp, n, Source::Client);
            let found = table.open(&new, &tcp(SYN, 100, 0), now_ns).unwrap();
            handshakes.push((n, new, table.sent(found).inverse()));
        }
        // The handshake ends 400 SYNs later.
        if let Some((_, new, reply)) = handshakes.pop_if(|(at, ..)| *at + 400 == n) {
            let found = table.lookup(&reply, now_ns).expect("others pay first");
            table.observe(found, &tcp(SYN | ACK, 500, 101), now_ns);
            let found = table.lookup(&new.original, now_ns).unwrap();
            table.observe(found, &tcp(ACK, 101, 501), now_ns);
            assert_eq!(table.flow(found).state, FlowState::Established);
        }
    }
    assert_eq!(table.queues.used(), 4096);
    assert_eq!(table.owners[0].flows, 200);
}

#[test]
fn a_pod_may_ask_itself_from_the_port_that_serves() {
    let mut table = table(16, 16);
    table.admit_owner(PortId(1), 1);
    let end = serving(1);
    // The host port is the container's, too.
    let asked = Endpoint { port: end.port, address: Ipv4Addr::from(NODE).into() };
    let original = FlowKey { transport: Transport::Udp, src: end, dst: asked };
    let (owner, replies) = (PortId(1), Replies::ByRoute);
    let new = NewFlow { owner, original, serving: end, source: Source::Asked, replies };
    let found = table.open(&new, &Signal::Udp, 0).unwrap();
    let sent = table.sent(found);
    assert_eq!((sent.src.address, sent.dst), (asked.address, end));
    assert_ne!(sent.inverse(), original);
    let reply = table.lookup(&sent.inverse(), 0).unwrap();
    assert_eq!(reply.direction(), Direction::Reply);
    assert_eq!(table.sent(reply), original.inverse());
}

#[test]
fn no_port_is_given_twice_and_without_any_left_the_flow_is_refused() {
    let mut table = table(64, 64);
    table.source_ports = 5000..=5002;
    table.admit_owner(PortId(1), 1);
    // One client asks one pod by several addresses of the node, from one port.
    let ask = |node: u32| {
        let mut new = new_flow(1, Transport::Udp, 3000, Source::Client);
        new.original.dst.address = Ipv4Addr::from(NODE + node).into();
        new
    };
    let mut ports = std::collections::BTreeSet::new();
    let mut refused = 0;
    for node in 0..8 {
        match table.open(&ask(node), &Signal::Udp, 0) {
            Ok(found) => assert!(ports.insert(table.sent(found).src.port)),
            Err(error) => {
                assert_eq!(error, OpenError::NoPort);
                refused += 1;
            }
        }
    }
    assert_eq!((ports, refused), ([2000, 5000, 5001, 5002].into(), 4));
    assert_eq!(table.counters.refused_port.get(), 4);
}

#[test]
fn retiring_a_pod_takes_a_few_steps_and_its_memory_is_used_again_at_once() {
    let mut table = table(100, 100);
    table.admit_owner(PortId(1), 1);
    let new = |n| new_flow(1, Transport::Udp, n, Source::Client);
    (0..100).for_each(|n| assert!(table.open(&new(n), &Signal::Udp, 0).is_ok()));
    table.admit_owner(PortId(1), 2);
    assert_eq!(table.counters.flows.get(), 0);
    assert!((0..100).all(|n| table.lookup(&new(n).original, 0).is_none()));
    // Before anything was freed by `expire`.
    (0..100).for_each(|n| assert!(table.open(&new(n), &Signal::Udp, 0).is_ok()));
    assert_eq!(table.counters.evicted.get(), 0);
}

#[test]
fn flows_of_another_pod_or_time_are_not_restored() {
    let mut before = table(8, 8);
    (1..4).for_each(|owner| before.admit_owner(PortId(owner), 1));
    for owner in 1..4 {
        let new = new_flow(owner, Transport::Udp, 1, Source::Client);
        before.open(&new, &Signal::Udp, 0).unwrap();
    }
    let mut after = table(8, 8);
    after.admit_owner(PortId(1), 1);
    after.admit_owner(PortId(2), 2); // another pod has the port now
    let left = Records::open(before.records().memory(), BOOT).unwrap();
    let result = after.restore(&left, 0);
    assert_eq!(result, Restored { restored: 1, passed_over: 2 });
    let mut late = table(8, 8);
    (1..4).for_each(|owner| late.admit_owner(PortId(owner), 1));
    let result = late.restore(&left, 61 * SECOND);
    assert_eq!(result, Restored { restored: 0, passed_over: 3 });
}

#[test]
fn restored_flows_give_way_in_the_order_in_which_they_were_seen() {
    let mut before = table(4, 4);
    before.admit_owner(PortId(1), 1);
    let new = |n| new_flow(1, Transport::Udp, n, Source::Client);
    let found = before.open(&new(1), &Signal::Udp, 10 * SECOND).unwrap();
    before.open(&new(2), &Signal::Udp, 20 * SECOND).unwrap();
    before.observe(found, &Signal::Udp, 30 * SECOND);
    let mut after = table(2, 2);
    after.admit_owner(PortId(1), 1);
    let left = Records::open(before.records().memory(), BOOT).unwrap();
    assert_eq!(after.restore(&left, 40 * SECOND).restored, 2);
    after.open(&new(3), &Signal::Udp, 40 * SECOND).unwrap();
    assert!(after.lookup(&new(1).original, 40 * SECOND).is_some());
    assert!(after.lookup(&new(2).original, 40 * SECOND).is_none());
}

#[test]
fn of_two_flows_with_the_same_replies_one_is_restored() {
    let mut after = table(8, 8);
    after.admit_owner(PortId(1), 1);
    let mut restored = Restored::default();
    // Two workers had one each; now they share a table.
    for node in 0..2 {
        let mut before = table(8, 8);
        before.admit_owner(PortId(1), 1);
        let mut new = new_flow(1, Transport::Udp, 1, Source::Client);
        new.original.dst.address = Ipv4Addr::from(NODE + node).into();
        before.open(&new, &Signal::Udp, 0).unwrap();
        let left = Records::open(before.records().memory(), BOOT).unwrap();
        let Restored { restored: one, passed_over } = after.restore(&left, 0);
        restored.restored += one;
        restored.passed_over += passed_over;
    }
    assert_eq!(restored, Restored { restored: 1, passed_over: 1 });
}

#[test]
fn a_clock_that_steps_back_expires_nothing() {
    let mut table = table(8, 8);
    table.admit_owner(PortId(1), 1);
    let new = new_flow(1, Transport::Udp, 1, Source::Client);
    let found = table.open(&new, &Signal::Udp, 1000 * SECOND).unwrap();
    assert!(table.lookup(&new.original, 0).is_some());
    table.observe(found, &Signal::Udp, 0);
    assert_eq!(table.flow(found).seen_s, 1000);
    assert_eq!(table.expire(0, 10), 0);
    assert_eq!(table.expire(1060 * SECOND, 10), 0);
    assert_eq!(table.expire(1061 * SECOND, 10), 1);
}

#[test]
fn what_ends_or_answers_a_connection_opens_none() {
    let mut table = table(8, 8);
    table.admit_owner(PortId(1), 1);
    let new = new_flow(1, Transport::Tcp, 1, Source::Client);
    for flags in [0x04, SYN | ACK] {
        assert_eq!(table.open(&new, &tcp(flags, 0, 0), 0), Err(OpenError::NoOpening));
    }
    assert_eq!(table.queues.used(), 0);
}

#[test]
fn a_flow_that_the_kernel_has_carried_goes_on_as_it_was_translated_there() {
    let mut table = table(8, 8);
    let new = new_flow(1, Transport::Tcp, 7, Source::Client);
    // The kernel has chosen another source port.
    let src = Endpoint { port: 61_000, ..new.original.src };
    let translated = FlowKey { src, dst: new.serving, ..new.original };
    let carried = Carried {
        owner: new.owner,
        original: new.original,
        translated,
        replies: Replies::ByRoute,
        stage: Stage::Answered,
    };
    assert_eq!(table.take_over(&carried, 0), Err(OpenError::NoOwner));
    table.admit_owner(new.owner, 1);
    let found = table.take_over(&carried, SECOND).unwrap();
    assert_eq!(table.sent(found), translated);
    assert_eq!(table.flow(found).state, FlowState::Established);
    let reply = table.lookup(&translated.inverse(), SECOND).expect("the server speaks first");
    assert_eq!(table.sent(reply), new.original.inverse());
    table.observe(reply, &tcp(ACK, 900, 5), 2 * SECOND);
    assert_eq!(table.flow(found).state, FlowState::Established);
    assert_eq!(table.take_over(&carried, SECOND), Err(OpenError::Exists));
    // Nobody who looks at the record can tell a third source address.
    let third = FlowKey { src: end(9, 9), ..translated };
    let strange = Carried { translated: third, ..carried };
    assert_eq!(table.take_over(&strange, SECOND), Err(OpenError::NoOpening));
}

#[test]
fn a_flow_of_the_kernel_goes_on_where_it_was() {
    let mut table = table(8, 8);
    table.admit_owner(PortId(1), 1);
    for (client, transport, stage, state) in [
        (1, Transport::Tcp, Stage::Unanswered, FlowState::PickedUp),
        (2, Transport::Sctp, Stage::Answered, FlowState::Established),
        (3, Transport::Udp, Stage::Unanswered, FlowState::Unanswered),
        (4, Transport::Udp, Stage::Answered, FlowState::Stream),
        (5, Transport::Tcp, Stage::Closing, FlowState::Closing),
    ] {
        let new = new_flow(1, transport, client, Source::Client);
        let translated = FlowKey { dst: new.serving, ..new.original };
        let (owner, original, replies) = (new.owner, new.original, Replies::ByRoute);
        let carried = Carried { owner, original, translated, replies, stage };
        let found = table.take_over(&carried, 0).unwrap();
        assert_eq!(table.flow(found).state, state);
    }
}

#[test]
fn a_sweep_sees_every_flow_in_steps_and_takes_only_what_it_is_asked_for() {
    let mut table = table(10, 10);
    for owner in 0..3 {
        table.admit_owner(PortId(owner), 1);
        for client in 0..3 {
            let new = new_flow(owner, Transport::Udp, client, Source::Client);
            table.open(&new, &Signal::Udp, SECOND).unwrap();
        }
    }
    // Of a pod that is gone nothing is left to forget.
    table.retire_owner(PortId(2));
    let is_one = |flow: &Flow| flow.original.src.port != 2001;
    let steps = std::iter::successors(Some(0), |from| table.sweep(*from, 4, is_one));
    assert_eq!(steps.collect::<Vec<u32>>(), [0, 4, 8]);
    let all = (0..3).flat_map(|owner| (0..3).map(move |client| (owner, client)));
    let left = all.filter(|(owner, client)| {
        let key = new_flow(*owner, Transport::Udp, *client, Source::Client).original;
        table.lookup(&key, SECOND).is_some()
    });
    assert_eq!(left.collect::<Vec<_>>(), [(0, 1), (1, 1)]);
    assert_eq!(table.counters.flows.get(), 2);
}
