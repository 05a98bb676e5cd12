//! The conservation laws under any sequence of events: packets good and bad, ports that come and
//! go, tables that lag behind, rings that fill, kernels that lie, one worker or two.
//!
//! [`Node`] asserts both laws after every pass, and that the reasons of all ports, those that are
//! gone included, add up to the packets dropped; and at the end that every frame is free again.

mod harness;

use dataplane::port::PortId;
use harness::packet::{Check, Packet, packet};
use harness::{ENDS, End, FAR_V4, FAR_V6, NOBODY_V4, Node, Setup, UPLINK, VETH_UPLINK};
use proptest::prelude::*;

/// Something that happens. Ports are given as an index of [`ENDS`].
#[derive(Clone, Debug)]
enum Event {
    Good {
        from: usize,
        to: usize,
        v6: bool,
        kind: u8,
        payload: usize,
        gso_size: u16,
    },
    Broken {
        from: usize,
        to: usize,
        v6: bool,
        at: usize,
        value: u8,
        len: usize,
    },
    /// Segments of one stream, one of which may have a wrong checksum.
    Stream {
        by_veth: bool,
        to: usize,
        v6: bool,
        size: usize,
        count: usize,
        wrong: usize,
    },
    Noise {
        from: usize,
        bytes: Vec<u8>,
    },
    Descriptor {
        from: usize,
        address: u64,
        len: u32,
    },
    Remove(usize),
    Reclaim(usize),
    Add(usize),
    Unlist(usize),
    List(usize),
    Stall(usize, bool),
    Burst(usize),
    Refuse(usize),
    Advance(u32),
    Pass(usize),
    Run,
}

fn event() -> impl Strategy<Value = Event> {
    let port = || 0..ENDS.len();
    prop_oneof![
        20 => (port(), port(), any::<bool>(), 0..6u8, sizes(), 0..3000u16).prop_map(
            |(from, to, v6, kind, payload, gso_size)| {
                Event::Good { from, to, v6, kind, payload, gso_size }
            }
        ),
        6 => (port(), port(), any::<bool>(), 0..120usize, any::<u8>(), 1..300usize).prop_map(
            |(from, to, v6, at, value, len)| Event::Broken { from, to, v6, at, value, len }
        ),
        12 => (any::<bool>(), port(), any::<bool>(), sizes(), 1..40usize, 0..80usize).prop_map(
            |(by_veth, to, v6, size, count, wrong)| {
                let (size, count) = (size.max(1), count.min(60_000 / size.max(1)));
                Event::Stream { by_veth, to, v6, size, count, wrong }
            }
        ),
        3 => (port(), prop::collection::vec(any::<u8>(), 1..200))
            .prop_map(|(from, bytes)| Event::Noise { from, bytes }),
        1 => (port(), 0..2_000_000u64, prop_oneof![0..5000u32, any::<u32>()])
            .prop_map(|(from, address, len)| Event::Descriptor { from, address, len }),
        2 => port().prop_map(Event::Remove),
        2 => port().prop_map(Event::Reclaim),
        2 => port().prop_map(Event::Add),
        1 => port().prop_map(Event::Unlist),
        1 => port().prop_map(Event::List),
        1 => (port(), any::<bool>()).prop_map(|(port, stalled)| Event::Stall(port, stalled)),
        1 => port().prop_map(Event::Burst),
        1 => port().prop_map(Event::Refuse),
        1 => any::<u32>().prop_map(Event::Advance),
        6 => (0..2usize).prop_map(Event::Pass),
        2 => Just(Event::Run),
    ]
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![0..100usize, 1000..2000usize, 3000..65_000usize]
}

fn setup() -> impl Strategy<Value = Setup> {
    (1..=2usize, 60..900u32, 1..64u32, 1..64usize, any::<bool>()).prop_map(
        |(workers, frames, fill, tx, tx_checksum)| Setup {
            workers,
            frames,
            fill,
            tx,
            tx_checksum,
            node_port: true,
        },
    )
}

fn good(from: &End, to: &End, v6: bool, kind: u8, payload: usize, gso_size: u16) -> Packet {
    let packet = packet().from(from).to(to).family(v6).payload(payload);
    match kind {
        0 => packet.udp(1, 2).marked(gso_size),
        1 => packet.tcp(1, 2).marked(gso_size),
        2 => packet.tcp(1, 2).dst(if v6 { FAR_V6 } else { FAR_V4 }).marked(gso_size),
        3 => packet.icmp(8, 0).dst(NOBODY_V4),
        4 => packet.tcp(1, 2).check(Check::Partial),
        _ => packet.ttl(gso_size as u8),
    }
}

/// Segments of a stream from another node. Of few ports, so that one goes on with another at times.
fn stream(from: &End, to: &End, v6: bool, size: usize, count: usize) -> Vec<Packet> {
    let stream = packet().from(from).to(to).family(v6).tcp(1 + count as u16 % 10, 2);
    stream.payload(size * count).segments(size)
}

/// Where a port is in its life: control removes, reclaims and adds in this order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Live,
    Removed,
    Reclaimed,
}

struct World {
    node: Node,
    setup: Setup,
    lives: [Life; ENDS.len()],
}

impl World {
    fn happen(&mut self, event: Event) {
        let id = |index: usize| ENDS[index].id;
        match event {
            Event::Good { from, to, v6, kind, payload, gso_size } => {
                let packet = good(ENDS[from], ENDS[to], v6, kind, payload, gso_size);
                self.node.inject(id(from), packet.build());
            }
            Event::Broken { from, to, v6, at, value, len } => {
                let mut bytes =
                    packet().from(ENDS[from]).to(ENDS[to]).family(v6).payload(99).build();
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
                bytes.truncate(len);
                self.node.inject(id(from), bytes);
            }
            Event::Stream { by_veth, to, v6, size, count, wrong } => {
                let from = if by_veth { &VETH_UPLINK } else { &UPLINK };
                let segments = stream(from, ENDS[to], v6, size, count);
                for (number, segment) in segments.into_iter().enumerate() {
                    let check =
                        if number == wrong { Check::Value(0x1234) } else { Check::Complete };
                    self.node.inject(from.id, segment.check(check).build());
                }
            }
            Event::Noise { from, bytes } => self.node.inject(id(from), bytes),
            Event::Descriptor { from, address, len } => self.node.corrupt(id(from), address, len),
            Event::Remove(port) => self.step(port, Life::Live, Life::Removed, Node::remove_port),
            Event::Reclaim(port) => {
                self.step(port, Life::Removed, Life::Reclaimed, Node::reclaim_port);
            }
            Event::Add(port) => self.step(port, Life::Reclaimed, Life::Live, Node::add_port),
            Event::Unlist(port) => self.node.unlist(id(port)),
            Event::List(port) if self.node.lists(id(port)) => {}
            Event::List(port) => self.node.list(ENDS[port]),
            Event::Stall(port, stalled) => self.node.stall(id(port), stalled),
            Event::Burst(port) => self.node.burst(id(port)),
            Event::Refuse(port) => self.node.refuse(id(port), 1),
            Event::Advance(ns) => self.node.advance(u64::from(ns)),
            Event::Pass(worker) => {
                self.node.pass(worker % self.setup.workers);
            }
            Event::Run => self.node.run(),
        }
    }

    fn step(&mut self, port: usize, from: Life, to: Life, act: fn(&mut Node, PortId)) {
        if self.lives[port] == from {
            self.lives[port] = to;
            act(&mut self.node, ENDS[port].id);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn both_laws_hold_and_every_drop_has_a_reason_whatever_happens(
        setup in setup(),
        events in prop::collection::vec(event(), 1..150),
    ) {
        let mut world =
            World { node: Node::new(setup), setup, lives: [Life::Live; ENDS.len()] };
        for event in events {
            world.happen(event);
        }
        world.node.run();
    }
}
