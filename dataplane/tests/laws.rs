//! The conservation laws under any sequence of events: packets good and bad, ports that come and
//! go, tables that lag behind, limits that change, clocks that step, rings that fill, kernels that
//! lie, one worker or two.
//!
//! [`Node`] asserts both laws after every pass, and that the reasons of all ports, those that are
//! gone included, add up to the packets dropped; and at the end that every frame is free again.

mod harness;

use dataplane::port::PortId;
use dataplane::shaper::{Limit, Limits};
use harness::packet::{Check, Packet, packet};
use harness::{ENDS, End, FAR_V4, FAR_V6, NOBODY_V4, NODE, Node, Setup, UPLINK, VETH_UPLINK};
use harness::{HIDDEN, Mapped, TO_B, TO_C, TO_PLAIN, host_ports};
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
    /// Something about a host port, by its index in [`MAPPED`].
    Led {
        client: usize,
        mapped: usize,
        v6: bool,
        kind: u8,
        payload: usize,
        changed: Option<(usize, u8)>,
    },
    Retire(usize),
    Forget(bool),
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
    Limit(usize, Limits),
    Housekeep,
    Advance(u32),
    StepBack(u32),
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
        16 => (port(), 0..MAPPED.len(), any::<bool>(), 0..8u8, sizes(), change()).prop_map(
            |(client, mapped, v6, kind, payload, changed)| {
                Event::Led { client, mapped, v6, kind, payload, changed }
            }
        ),
        1 => port().prop_map(Event::Retire),
        1 => any::<bool>().prop_map(Event::Forget),
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
        6 => (port(), limits()).prop_map(|(port, limits)| Event::Limit(port, limits)),
        1 => Just(Event::Housekeep),
        1 => any::<u32>().prop_map(Event::Advance),
        4 => (0..20_000_000u32).prop_map(Event::Advance),
        1 => any::<u32>().prop_map(Event::StepBack),
        6 => (0..2usize).prop_map(Event::Pass),
        2 => Just(Event::Run),
    ]
}

/// Where a packet is changed, and to what.
fn change() -> impl Strategy<Value = Option<(usize, u8)>> {
    prop::option::weighted(0.2, (0..120usize, any::<u8>()))
}

/// From what lets a packet go in a year to what nobody notices.
fn limits() -> impl Strategy<Value = Limits> {
    let rate = prop_oneof![1..1_000u64, 1_000_000..1_000_000_000u64, Just(u64::MAX)];
    let limit =
        (rate, 0..100_000u64, 0..50_000_000u64).prop_map(|(bits_per_s, burst_bytes, queue_ns)| {
            Limit { bits_per_s, burst_bytes, queue_ns }
        });
    let of = || prop::option::of(limit.clone());
    (of(), of()).prop_map(|(from_pod, to_pod)| Limits { from_pod, to_pod })
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![0..100usize, 1000..2000usize, 3000..65_000usize]
}

fn setup() -> impl Strategy<Value = Setup> {
    let (flows, flows_per_pod) = (1..20u32, 1..20u32);
    let rings = (60..900u32, 1..64u32, 1..64usize);
    (1..=2usize, rings, any::<bool>(), flows, flows_per_pod, any::<bool>()).prop_map(
        |(workers, (frames, fill, tx), tx_checksum, flows, flows_per_pod, host_ports)| Setup {
            workers,
            frames,
            fill,
            tx,
            tx_checksum,
            node_port: true,
            flows,
            flows_per_pod,
            host_ports,
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

const MAPPED: [Mapped; 4] = [TO_B, HIDDEN, TO_PLAIN, TO_C];

/// A packet about a host port, and by which port it comes: asked, replied, direct, in fragments, in
/// an error of either end.
fn led(
    client: &'static End,
    mapped: &Mapped,
    v6: bool,
    kind: u8,
    payload: usize,
) -> (&'static End, Packet) {
    let pod = mapped.pod;
    let of = |from, to| packet().from(from).to(to).family(v6).payload(payload);
    let (asked, served, port) = (mapped.host_port, mapped.port, 5_000 + payload as u16 % 30);
    let error = |from, to, about: Packet| {
        of(from, to).icmp(if v6 { 1 } else { 3 }, 3).payload_bytes(&about.payload(9).quoted())
    };
    match kind {
        0 => (client, of(client, &NODE).udp(port, asked).may_fragment()),
        1 => (client, of(client, &NODE).tcp(port, asked).marked(1_400)),
        2 => (client, of(client, &NODE).payload(payload % 1_400).sctp(port, asked, 0)),
        3 => (client, of(client, pod).udp(port, served)),
        4 => (pod, of(pod, client).udp(served, port).marked(0)),
        5 => (pod, of(pod, client).udp(served, port).fragment(8 * (port % 2), true)),
        6 => (client, error(client, &NODE, of(&NODE, client).udp(asked, port))),
        _ => (pod, error(pod, client, of(client, pod).udp(port, served))),
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
            Event::Led { client, mapped, v6, kind, payload, changed } => {
                let (from, packet) = led(ENDS[client], &MAPPED[mapped], v6, kind, payload);
                let mut bytes = packet.build();
                if let Some((at, value)) = changed
                    && let Some(byte) = bytes.get_mut(at)
                {
                    *byte = value;
                }
                self.node.inject(from.id, bytes);
            }
            Event::Retire(port) => self.node.retire_flows(id(port)),
            Event::Forget(all) => {
                let host_ports: Vec<_> = host_ports().iter().map(|(port, _)| *port).collect();
                self.node.forget_flows(if all { &host_ports } else { &host_ports[..3] });
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
            Event::Limit(port, limits) if self.node.lists(id(port)) => {
                self.node.limit(id(port), limits);
            }
            Event::Limit(..) => {}
            Event::Housekeep => self.node.housekeep(),
            Event::StepBack(ns) => {
                self.node.set_time(self.node.now_ns().saturating_sub(u64::from(ns)));
            }
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
        for end in ENDS.iter().filter(|end| world.node.lists(end.id)).collect::<Vec<_>>() {
            world.node.limit(end.id, Limits::default());
        }
        world.node.run(); // asserts that nothing is held any more
    }
}
