//! Sends packets, and judges what comes out.

use dataplane::conntrack::FlowKey;
use dataplane::parse::{self, Parsed};

use super::World;
use super::cast::{Way, end_of, translated};
use crate::harness::packet::Packet;
use crate::harness::{ENDS, End, NODE, UPLINK, VETH_UPLINK};

/// What has to come out of a packet.
pub(super) enum Expected {
    Nothing,
    /// These, where the way leads.
    Out(Way, Vec<Packet>),
}

impl World {
    /// Sends a packet that a pod gets with one of these keys, or that nobody gets.
    pub(super) fn observe(
        &mut self,
        from: &'static End,
        pod: &'static End,
        question: &Packet,
        may_be: &[FlowKey],
    ) -> Option<FlowKey> {
        trace(|| format!("{} begins {question:?}", from.name));
        self.node.inject(from.id, question.build());
        self.node.run();
        let sent = self.all_sent();
        let [(end, bytes)] = sent.as_slice() else {
            assert!(sent.is_empty(), "one packet became {}", sent.len());
            return None;
        };
        assert_eq!(end.id, pod.id, "{} got what is for {}", end.name, pod.name);
        let Ok(Parsed::Ip(headers)) = parse::headers(bytes, bytes.len()) else {
            panic!("{} got no packet", pod.name);
        };
        let seen = FlowKey::of_packet(bytes, &headers).expect("it has ports");
        assert!(may_be.contains(&seen), "{} got {seen:?}, and not one of {may_be:?}", pod.name);
        let out = self.through(from, Way::Pod(pod.name), translated(question, &seen));
        self.compare(&out, &sent);
        Some(seen)
    }

    pub(super) fn through(&self, from: &End, way: Way, packet: Packet) -> Expected {
        Expected::Out(way, vec![self.at_end(from, way, packet)])
    }

    /// As it arrives: between pods and other nodes we are a router, with the node we are one.
    pub(super) fn at_end(&self, from: &End, way: Way, packet: Packet) -> Packet {
        let to = match way {
            Way::Pod(name) => end_of(name),
            Way::Uplink => &UPLINK,
            Way::Node => &NODE,
        };
        let is_hop = from.id != NODE.id && to.id != NODE.id;
        if is_hop { packet.forwarded(to) } else { packet.delivered(to) }
    }

    pub(super) fn send(&mut self, from: &End, packets: Vec<Packet>, expected: &Expected) {
        trace(|| format!("{} sends {packets:?}", from.name));
        for packet in packets {
            self.node.inject(from.id, packet.build());
        }
        self.node.run();
        let sent = self.all_sent();
        self.compare(expected, &sent);
    }

    pub(super) fn all_sent(&mut self) -> Vec<(&'static End, Vec<u8>)> {
        let mut all = Vec::new();
        for end in ENDS {
            all.extend(self.node.sent(end.id).into_iter().map(|sent| (end, sent.bytes)));
        }
        all
    }

    pub(super) fn compare(&self, expected: &Expected, sent: &[(&'static End, Vec<u8>)]) {
        let (way, packets) = match expected {
            Expected::Nothing => {
                assert!(sent.is_empty(), "{} got what nobody should: {sent:02x?}", sent[0].0.name);
                return;
            }
            Expected::Out(way, packets) => (way, packets),
        };
        let lost = || format!("to {way:?}; drops: {:?}", self.node.all_drops());
        assert_eq!(sent.len(), packets.len(), "{}", lost());
        for ((end, bytes), packet) in sent.iter().zip(packets) {
            let is_there = match way {
                Way::Pod(name) => end.name == *name,
                Way::Uplink => [UPLINK.id, VETH_UPLINK.id].contains(&end.id),
                Way::Node => end.id == NODE.id,
            };
            assert!(is_there, "{} got what goes to {way:?}", end.name);
            assert_eq!(*bytes, packet.build(), "{} got {packet:?} otherwise", end.name);
        }
    }
}

/// With `FUZZ_TRACE` in the environment: tells who has found an input that fails what it does.
pub(super) fn trace(what: impl FnOnce() -> String) {
    if std::env::var_os("FUZZ_TRACE").is_some() {
        eprintln!("{}", what());
    }
}
