//! Streams from the wire in any mixture, with gaps, repetitions, damage and whatever a sender
//! changes on the way: each pod gets of each flow what arrived, in order, merged or not.

use dataplane::sim::Sent;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::harness::packet::{ACK, FIN, PSH, Packet, packet, sum};
use crate::harness::{A, B, C, CUSTOM, End, Node, PLAIN, Setup, UPLINK};
use crate::merging::completed;

/// More than are merged at once.
const FLOWS: usize = 10;

/// What a flow does next.
#[derive(Clone, Debug)]
enum Step {
    Data(usize),
    Flags(u8, usize),
    Bare(u8),
    Again,
    Gap(u32),
    Damaged(Index, u8),
    Window(u16),
    HopLimit(u8),
    Service(u8),
    Time(u8),
    Extended,
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop_oneof![1 => 1..9usize, 4 => 100..1200usize];
    prop_oneof![
        40 => size().prop_map(Step::Data),
        3 => (prop_oneof![Just(ACK | PSH), Just(ACK | FIN), any::<u8>()], size())
            .prop_map(|(flags, size)| Step::Flags(flags, size)),
        2 => prop_oneof![Just(ACK), any::<u8>()].prop_map(Step::Bare),
        2 => Just(Step::Again),
        2 => (1..3000u32).prop_map(Step::Gap),
        2 => (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Step::Damaged(at, bit)),
        1 => any::<u16>().prop_map(Step::Window),
        1 => (2..255u8).prop_map(Step::HopLimit),
        1 => any::<u8>().prop_map(Step::Service),
        1 => any::<u8>().prop_map(Step::Time),
        1 => Just(Step::Extended),
    ]
}

/// One flow, and what its pod would get of it if nothing was merged.
struct Flow {
    to: &'static End,
    next: Packet,
    sequence: u32,
    last: Option<Vec<u8>>,
    arrived: Vec<Vec<u8>>,
}

impl Flow {
    fn new(number: usize) -> Flow {
        let to = [&A, &B, &C, &CUSTOM, &PLAIN][number % 5];
        let next = packet().family(number % 2 == 1).from(&UPLINK).to(to);
        Flow {
            to,
            next: next.tcp(1000 + number as u16, 4000).tcp_options(&[1; 4]),
            // Some of them wrap.
            sequence: 0_u32.wrapping_sub(1000 * number as u32),
            last: None,
            arrived: Vec::new(),
        }
    }

    /// Bytes that arrive from the wire, if the step sends any.
    fn step(&mut self, step: &Step) -> Option<Vec<u8>> {
        let l4_offset = self.next.l4_offset();
        match *step {
            Step::Data(size) => Some(self.send(ACK, size)),
            Step::Flags(flags, size) => Some(self.send(flags, size)),
            Step::Bare(flags) => Some(self.send(flags, 0)),
            Step::Again => {
                let last = self.last.clone()?;
                self.arrived.push(self.arrived.last()?.clone());
                Some(last)
            }
            Step::Gap(bytes) => {
                self.sequence = self.sequence.wrapping_add(bytes);
                None
            }
            Step::Damaged(at, bit) => {
                let mut bytes = self.send(ACK, 500);
                let arrived = self.arrived.last_mut()?;
                // Anywhere but in the ports, which would make it another flow's.
                let at = l4_offset + 4 + at.index(bytes.len() - l4_offset - 4);
                bytes[at] ^= 1 << bit;
                arrived[at] ^= 1 << bit;
                self.last = Some(bytes.clone());
                Some(bytes)
            }
            Step::Window(window) => self.change(|packet| packet.window(window)),
            Step::HopLimit(ttl) => self.change(|packet| packet.ttl(ttl)),
            Step::Service(service) => self.change(|packet| packet.service(service)),
            Step::Time(value) => {
                let options = [1, 1, 8, 10, 0, 0, 0, value, 0, 0, 0, 1];
                self.change(|packet| packet.tcp_options(&options))
            }
            Step::Extended => {
                let plain = self.next.clone();
                let v6 = plain.build()[12] == 0x86;
                self.change(|packet| match v6 {
                    true => packet.extension(60, &[0, 0, 1, 4, 0, 0, 0, 0]),
                    false => packet.options(&[1; 4]),
                });
                let bytes = self.send(ACK, 300);
                self.next = plain;
                Some(bytes)
            }
        }
    }

    fn change(&mut self, change: impl FnOnce(Packet) -> Packet) -> Option<Vec<u8>> {
        self.next = change(self.next.clone());
        None
    }

    fn send(&mut self, flags: u8, size: usize) -> Vec<u8> {
        let first = self.sequence as usize % 251;
        let payload: Vec<u8> = (first..first + size).map(|at| (at % 251) as u8).collect();
        let packet = self.next.clone().sequence(self.sequence).flags(flags).payload_bytes(&payload);
        self.sequence = self.sequence.wrapping_add(size as u32);
        self.arrived.push(packet.clone().forwarded(self.to).build());
        let bytes = packet.build();
        self.last = Some(bytes.clone());
        bytes
    }
}

/// A TCP packet, read naively.
#[derive(Debug)]
struct Read {
    /// All headers with zeros where segments of one stream differ.
    same: Vec<u8>,
    source_port: u16,
    sequence: u32,
    pushed: bool,
    payload: Vec<u8>,
    right: bool,
}

fn read(bytes: &[u8]) -> Read {
    let v6 = bytes[12] == 0x86;
    let (l4, addresses) = match v6 {
        true => (14 + 40 + if bytes[20] == 60 { 8 } else { 0 }, 22..54),
        false => (14 + usize::from(bytes[14] & 15) * 4, 26..34),
    };
    let tcp = &bytes[l4..];
    let header = (usize::from(tcp[12] >> 4) * 4).clamp(20, tcp.len());
    let pseudo = [&bytes[addresses], &[0, 6], &(tcp.len() as u32).to_be_bytes(), tcp].concat();
    let mut same = bytes[..l4 + header].to_vec();
    // Length; identification and checksum of IPv4; sequence number and checksum.
    same[if v6 { 18..20 } else { 16..20 }].fill(0);
    if !v6 {
        same[24..26].fill(0);
    }
    same[l4 + 4..l4 + 8].fill(0);
    same[l4 + 16..l4 + 18].fill(0);
    same[l4 + 13] &= !PSH;
    Read {
        same,
        source_port: u16::from_be_bytes([tcp[0], tcp[1]]),
        sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
        pushed: tcp[13] & PSH != 0,
        payload: tcp[header..].to_vec(),
        right: sum(&pseudo) == 0xffff,
    }
}

/// Checks that a packet is made of the next ones that arrived, and takes these.
fn consume(sent: &Sent, arrived: &mut impl Iterator<Item = Vec<u8>>) -> Result<(), TestCaseError> {
    let first = arrived.next();
    prop_assert!(first.is_some(), "the pod got more than arrived");
    let first = first.unwrap_or_default();
    if sent.partial.is_none() {
        prop_assert_eq!(&sent.bytes, &first, "alone, so as it came");
        return Ok(());
    }
    let whole = read(&completed(sent));
    let mut last = read(&first);
    prop_assert!(whole.right && last.right, "nothing damaged is in it: {:?}", last);
    prop_assert_eq!((&whole.same, whole.sequence), (&last.same, last.sequence));
    let mut payload = last.payload.clone();
    while payload.len() < whole.payload.len() {
        let Some(next) = arrived.next() else { break };
        let next = read(&next);
        prop_assert!(next.right, "nothing damaged is in it: {:?}", next);
        prop_assert!(!last.pushed && !next.payload.is_empty(), "{:?}", next);
        prop_assert_eq!(&next.same, &whole.same);
        prop_assert_eq!(next.sequence, last.sequence.wrapping_add(last.payload.len() as u32));
        payload.extend(&next.payload);
        last = next;
    }
    prop_assert_eq!(payload, whole.payload);
    prop_assert_eq!(last.pushed, whole.pushed);
    // A header of IPv4 is right too.
    let bytes = &sent.bytes;
    prop_assert!(bytes[12] == 0x86 || sum(&bytes[14..34]) == 0xffff);
    let said = if bytes[12] == 0x86 { 18..20 } else { 16..18 };
    let said = u16::from_be_bytes([bytes[said.start], bytes[said.start + 1]]);
    prop_assert_eq!(usize::from(said), bytes.len() - if bytes[12] == 0x86 { 54 } else { 14 });
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn of_each_flow_a_pod_gets_in_order_what_arrived(
        workers in 1..=2usize,
        steps in prop::collection::vec((0..FLOWS, 1..5usize, step()), 1..150),
        passes in any::<bool>(),
    ) {
        let setup = Setup { workers, frames: 4096, fill: 128, ..Setup::default() };
        let mut node = Node::new(setup);
        let mut flows: Vec<Flow> = (0..FLOWS).map(Flow::new).collect();
        for (flow, times, step) in &steps {
            let times = if matches!(step, Step::Data(_)) { *times } else { 1 };
            for _ in 0..times {
                let bytes = flows[*flow].step(step);
                bytes.into_iter().for_each(|bytes| node.inject(UPLINK.id, bytes));
            }
            if passes {
                node.pass(0);
            }
        }
        node.run();
        prop_assert_eq!(node.all_drops(), []);
        let mut arrived: Vec<_> =
            flows.into_iter().map(|flow| flow.arrived.into_iter()).collect();
        for end in [&A, &B, &C, &CUSTOM, &PLAIN] {
            for sent in node.sent(end.id) {
                let flow = usize::from(read(&sent.bytes).source_port) - 1000;
                consume(&sent, &mut arrived[flow])?;
            }
        }
        for (flow, arrived) in arrived.iter().enumerate() {
            prop_assert_eq!(arrived.len(), 0, "flow {} is whole", flow);
        }
    }
}
