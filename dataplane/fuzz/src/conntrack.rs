//! The table of flows against a list that is searched from end to end: what it opens, finds,
//! refuses and forgets, and whom it lets give way.

mod rules;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use dataplane::conntrack::{
    Direction, Endpoint, Flow, FlowCounters, FlowKey, FlowTable, Found, HashSeed, NewFlow,
    OpenError, Records, Replies, SctpChunk, Signal, Source, TableParts, TcpSegment, Transport,
};
use dataplane::port::PortId;
use dataplane::xsk::words::Words;

use self::rules::{may_follow, opens, rules, signal};
use crate::bytes::Bytes;

const BOOT: [u64; 2] = [3, 4];
const SECOND: u64 = 1_000_000_000;

/// Pods that flows are opened for; the last one is never admitted by what an input says.
const OWNERS: u16 = 4;
/// Steps of one input: enough for every room below to fill several times.
const STEPS_MAX: usize = 250;

/// Ports that are given where the client's is taken: few, so that they run out.
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 5000..=5004;
/// Port that all pods serve.
const SERVING: u16 = 80;

/// Plays a table of a size that the first byte says; the rest are steps.
pub fn conntrack(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let (room, quota) = bytes.choice(&[(6, 6), (12, 5), (24, 8), (24, 24), (64, 64)]);
    let mut play = Play::new(room, quota);
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() {
            break;
        }
        play.step(&mut bytes);
        play.assert_equal();
    }
    while play.table.expire(play.now_ns(), 64) > 0 {}
    play.drop_expired();
    assert_eq!(play.counters.flows.get() as usize, play.flows.len());
    assert_eq!(play.table.records().iter().count(), play.flows.len());
}

/// The table, and what it should remember.
struct Play {
    table: FlowTable,
    counters: Arc<FlowCounters>,
    room: u32,
    quota: u32,
    flows: Vec<Flow>,
    owners: BTreeMap<u16, u32>,
    now_s: u64,
}

fn table(room: u32, quota: u32, counters: &Arc<FlowCounters>) -> FlowTable {
    let words = Words::anonymous(Records::words(room)).expect("memory");
    FlowTable::new(TableParts {
        records: Records::format(Arc::new(words), BOOT),
        flows_per_owner: quota,
        source_ports: SOURCE_PORTS,
        seed: HashSeed([5, 6]),
        counters: counters.clone(),
    })
}

/// An end in a small world, where flows meet.
fn end(is_v4: bool, host: u8, port: u16) -> Endpoint {
    let address = match is_v4 {
        true => IpAddr::from(Ipv4Addr::new(10, 0, 0, host)),
        false => IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host))),
    };
    Endpoint { address, port }
}

impl Play {
    fn new(room: u32, quota: u32) -> Play {
        let counters = Arc::default();
        let table = table(room, quota, &counters);
        let (flows, owners) = (Vec::new(), BTreeMap::new());
        let mut play = Play { table, counters, room, quota, flows, owners, now_s: 7 };
        (0..2).for_each(|owner| play.admit(owner, 1));
        play
    }

    fn now_ns(&self) -> u64 {
        self.now_s * SECOND
    }

    fn lives(&self, flow: &Flow) -> bool {
        self.now_s.saturating_sub(u64::from(flow.seen_s)) <= rules(flow.state).0
    }

    fn drop_expired(&mut self) {
        let flows = std::mem::take(&mut self.flows);
        self.flows = flows.into_iter().filter(|flow| self.lives(flow)).collect();
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

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(16) {
            0..7 => self.open(bytes),
            7..10 => self.packet(bytes),
            10 => self.confirm_all(),
            11 => {
                let seconds = [0, 1, 59, 60, 61, 120, 121, 240, 241, 299, 300, 301, 86_400, 86_401];
                self.now_s += bytes.choice(&seconds);
                self.drop_expired();
            }
            12 => {
                let work = bytes.below(9);
                assert!(self.table.expire(self.now_ns(), work) <= work);
            }
            13 => {
                let owner = bytes.below(usize::from(OWNERS)) as u16;
                self.table.retire_owner(PortId(owner));
                self.owners.remove(&owner);
                self.flows.retain(|flow| flow.owner.0 != owner);
            }
            14 => {
                let owner = bytes.below(usize::from(OWNERS) - 1) as u16;
                self.admit(owner, 1 + bytes.below(2) as u32);
            }
            _ if bytes.byte() < 128 => self.forget(bytes),
            _ => self.crash(),
        }
    }

    fn admit(&mut self, owner: u16, generation: u32) {
        self.table.admit_owner(PortId(owner), generation);
        if self.owners.insert(owner, generation) != Some(generation) {
            self.flows.retain(|flow| flow.owner.0 != owner);
        }
    }

    fn forget(&mut self, bytes: &mut Bytes<'_>) {
        let owner = bytes.below(usize::from(OWNERS)) as u16;
        let port = 8000 + bytes.below(3) as u16;
        let is_one = |flow: &Flow| flow.original.dst.port == port;
        let before = self.flows.len();
        self.flows.retain(|flow| flow.owner.0 != owner || !is_one(flow));
        let counted = self.counters.flows.get();
        let is_it = |flow: &Flow| flow.owner == PortId(owner) && is_one(flow);
        assert_eq!(self.table.sweep(0, u32::MAX, is_it), None);
        let forgotten = counted - self.counters.flows.get();
        // It may find some that have expired as well.
        assert!(forgotten as usize >= before - self.flows.len());
    }

    /// The process dies, and another one goes on.
    fn crash(&mut self) {
        // Of a pod that went and came back it would find what was not freed by then.
        while self.table.expire(self.now_ns(), 64) > 0 {}
        let left = Records::open(self.table.records().memory(), BOOT).expect("it was written here");
        self.table = table(self.room, self.quota, &self.counters);
        for (owner, generation) in &self.owners {
            self.table.admit_owner(PortId(*owner), *generation);
        }
        let restored = self.table.restore(&left, self.now_ns());
        assert_eq!((restored.restored as usize, restored.passed_over), (self.flows.len(), 0));
    }

    fn packet(&mut self, bytes: &mut Bytes<'_>) {
        let (flow, is_reply) = (usize::from(bytes.byte()), bytes.byte() & 1 == 1);
        if let Some(index) = flow.checked_rem(self.flows.len()) {
            let direction = if is_reply { Direction::Reply } else { Direction::Original };
            let signal = signal(self.flows[index].original.transport, bytes);
            self.observe(index, direction, &signal);
        }
    }

    /// Both ends of every flow show that they can receive, as far as one packet each does.
    fn confirm_all(&mut self) {
        let tcp = |flags, sequence, acknowledgment| {
            Signal::Tcp(TcpSegment { flags, sequence, acknowledgment, payload_bytes: 0 })
        };
        for index in 0..self.flows.len() {
            let (answer, more) = match self.flows[index].original.transport {
                Transport::Tcp => (tcp(0x12, 20, 0), tcp(0x10, 1, 21)),
                Transport::Udp => (Signal::Udp, Signal::Udp),
                Transport::Query => (Signal::Query, Signal::Query),
                Transport::Sctp => {
                    let chunk = SctpChunk { tag: 3, kind: 0, flags: 0, initiate_tag: None };
                    (Signal::Sctp(chunk), Signal::Sctp(chunk))
                }
            };
            self.observe(index, Direction::Reply, &answer);
            self.observe(index, Direction::Original, &more);
        }
    }

    fn observe(&mut self, index: usize, direction: Direction, signal: &Signal) {
        let before = self.flows[index];
        let key = match direction {
            Direction::Original => before.original,
            Direction::Reply => before.translated.inverse(),
        };
        let found = self.table.lookup(&key, self.now_ns()).expect("it lives");
        assert_eq!((found.direction(), self.table.received(found)), (direction, key));
        self.table.observe(found, signal, self.now_ns());
        let after = self.table.flow(found);
        assert!(
            may_follow(before.state, after.state, direction),
            "{:?} became {:?} by {signal:?}, {direction:?}",
            before.state,
            after.state
        );
        assert_eq!((after.original, after.translated), (before.original, before.translated));
        assert_eq!((after.owner, after.generation), (before.owner, before.generation));
        assert_eq!((after.replies, u64::from(after.seen_s)), (before.replies, self.now_s));
        self.flows[index] = after;
    }

    fn open(&mut self, bytes: &mut Bytes<'_>) {
        let transport = bytes.choice(&[
            Transport::Tcp,
            Transport::Tcp,
            Transport::Udp,
            Transport::Sctp,
            Transport::Query,
        ]);
        let (choices, ends) = (bytes.byte(), bytes.byte());
        let owner = u16::from(ends) % OWNERS;
        let is_v4 = choices & 1 == 0;
        let source = if choices & 2 == 0 { Source::Client } else { Source::Asked };
        let replies = if choices & 4 == 0 { Replies::ByRoute } else { Replies::ByNode };
        let serving = end(is_v4, 100 + owner as u8, SERVING);
        // The client may be the pod, on the port that serves; and may ask the pod itself.
        let src = match choices >> 3 & 3 {
            0 => serving,
            _ => end(is_v4, choices >> 5 & 3, 2000 + u16::from(ends >> 4 & 3)),
        };
        let dst = match ends >> 6 {
            3 => serving,
            host => end(is_v4, 200 + host, 8000 + u16::from(ends >> 2 & 3)),
        };
        let original = FlowKey { transport, src, dst };
        let new = NewFlow { owner: PortId(owner), original, serving, source, replies };
        let signal = signal(transport, bytes);
        let of_pod = |flow: &Flow| flow.owner == new.owner;
        let in_memory = self.table.records().iter().filter(of_pod).count();
        let before = (self.counters.flows.get(), in_memory);
        // Before anybody gives way: ports are looked for first.
        let kept = self.translated(&new, src.port);
        let is_kept = self.is_free(&kept, &new);
        let evicted = self.counters.evicted.get();
        let result = self.table.open(&new, &signal, self.now_ns());
        match self.refusal(&new, &signal) {
            Some(error) => {
                assert_eq!(result, Err(error));
                assert_eq!(self.counters.evicted.get(), evicted);
                return;
            }
            // Whoever had the keys and has expired is gone, before anybody gives way.
            None => self.judge_room(&new, before, result.map(|_| ())),
        }
        match result {
            Ok(found) => {
                self.opened(&new, found);
                let is_same = self.table.sent(found) == kept;
                assert_eq!(is_same, is_kept, "the client's port is kept if it is free");
            }
            Err(OpenError::NoPort) => self.judge_ports(&new),
            Err(_) => {}
        }
    }

    /// What must be refused, by order of the checks.
    fn refusal(&self, new: &NewFlow, signal: &Signal) -> Option<OpenError> {
        if !self.owners.contains_key(&new.owner.0) {
            Some(OpenError::NoOwner)
        } else if !opens(signal) {
            Some(OpenError::NoOpening)
        } else {
            self.find(&new.original).is_some().then_some(OpenError::Exists)
        }
    }

    fn opened(&mut self, new: &NewFlow, found: Found) {
        let flow = self.table.flow(found);
        assert_eq!(found.direction(), Direction::Original);
        assert_eq!(self.table.sent(found), flow.translated);
        assert_eq!((flow.original, flow.owner), (new.original, new.owner));
        assert_eq!((flow.generation, flow.replies), (self.owners[&new.owner.0], new.replies));
        assert_eq!(u64::from(flow.seen_s), self.now_s);
        assert_eq!(flow.translated, self.translated(new, flow.translated.src.port));
        assert!(self.is_free(&flow.translated, new));
        self.flows.push(flow);
    }

    fn translated(&self, new: &NewFlow, port: u16) -> FlowKey {
        let address = match new.source {
            Source::Client => new.original.src.address,
            Source::Asked => new.original.dst.address,
        };
        FlowKey { src: Endpoint { address, port }, dst: new.serving, ..new.original }
    }

    /// Whether replies to packets that leave so belong to nobody else.
    fn is_free(&self, translated: &FlowKey, new: &NewFlow) -> bool {
        let reply = translated.inverse();
        reply != new.original && self.find(&reply).is_none()
    }

    fn judge_ports(&self, new: &NewFlow) {
        let is_free = |port: &u16| self.is_free(&self.translated(new, *port), new);
        assert!(!is_free(&new.original.src.port));
        // Chance may miss one that is left, in 32 tries, but not two.
        assert!(SOURCE_PORTS.filter(is_free).count() <= 1);
    }

    /// Whether the right one gave way for a new flow, if somebody had to; the list drops him.
    /// `flows` and `of_pod`: what was in memory before, expired or not, in all and of the new
    /// one's pod.
    fn judge_room(
        &mut self,
        new: &NewFlow,
        (flows, of_pod): (u64, usize),
        result: Result<(), OpenError>,
    ) {
        let now_ns = self.now_ns();
        let is_gone = |flow: &&Flow| self.table.lookup(&flow.original, now_ns).is_none();
        let gone: Vec<Flow> = self.flows.iter().filter(is_gone).copied().collect();
        let is_full = flows == u64::from(self.room);
        match gone.as_slice() {
            [] => {}
            [victim] => self.judge_victim(new, victim, is_full, of_pod >= self.quota as usize),
            several => panic!("one gives way for one: {several:?}"),
        }
        let idle_s = |flow: &Flow| self.now_s.saturating_sub(u64::from(flow.seen_s));
        let may_go = |flow: &Flow| idle_s(flow) >= rules(flow.state).1;
        let own = || self.flows.iter().filter(|flow| flow.owner == new.owner);
        match result {
            Ok(()) => {
                let had_to = own().count() >= self.quota as usize;
                assert!(!had_to || gone.len() == 1, "the quota holds");
            }
            Err(OpenError::Quota) => assert!(!own().any(may_go), "somebody might go"),
            Err(OpenError::Full) => {
                assert!(is_full && !self.flows.iter().any(may_go), "somebody might go");
            }
            Err(OpenError::NoPort) => assert!(gone.is_empty()),
            Err(error) => panic!("{error:?} for no reason"),
        }
        self.flows.retain(|flow| !gone.contains(flow));
    }

    fn judge_victim(&self, new: &NewFlow, victim: &Flow, is_full: bool, is_quota_full: bool) {
        let idle_s = |flow: &Flow| self.now_s.saturating_sub(u64::from(flow.seen_s));
        let (_, protected_s, rank) = rules(victim.state);
        assert!(idle_s(victim) >= protected_s, "{victim:?} is protected");
        let same_pod = |flow: &&Flow| flow.owner == victim.owner;
        let mut rivals = self.flows.iter().filter(same_pod);
        let is_older = |flow: &Flow| rules(flow.state).2 == rank && flow.seen_s < victim.seen_s;
        assert!(!rivals.any(is_older), "the longest idle one goes, not {victim:?}");
        let for_quota = is_quota_full && victim.owner == new.owner;
        assert!(for_quota || is_full, "{victim:?} went without need");
        // For its own quota a pod pays; for the table whoever has what goes first.
        let is_before = |flow: &&Flow| {
            let (_, protected_s, other) = rules(flow.state);
            other < rank && idle_s(flow) >= protected_s && (!for_quota || same_pod(flow))
        };
        assert_eq!(self.flows.iter().find(is_before), None, "goes before {victim:?}");
    }

    /// Both remember the same.
    fn assert_equal(&self) {
        for flow in &self.flows {
            let keys = [
                (flow.original, Direction::Original, flow.translated),
                (flow.translated.inverse(), Direction::Reply, flow.original.inverse()),
            ];
            for (key, direction, sent) in keys {
                let found = self.table.lookup(&key, self.now_ns());
                assert_eq!(found.map(|found| found.direction()), Some(direction), "{flow:?}");
                let found = found.expect("compared above");
                assert_eq!((self.table.sent(found), self.table.flow(found)), (sent, *flow));
            }
        }
        // Nor does it remember anything else.
        for flow in self.table.records().iter() {
            let found = self.table.lookup(&flow.original, self.now_ns());
            assert_eq!(found.is_some(), self.find(&flow.original).is_some(), "{flow:?}");
        }
        let in_memory = self.counters.flows.get();
        assert!(in_memory >= self.flows.len() as u64 && in_memory <= u64::from(self.room));
        for owner in self.owners.keys() {
            let flows = self.flows.iter().filter(|flow| flow.owner.0 == *owner).count();
            assert!(flows as u32 <= self.quota);
        }
    }
}
