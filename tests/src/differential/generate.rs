//! Random Ethernet frames from a pod: most of them valid, each of the rest wrong in a way or two.
//! The same seed gives the same frames.
//!
//! Every IP frame carries its number where no router changes it: in the identification field of
//! IPv4, in the flow label of IPv6. So it is known again in fragments and in quotes of ICMP errors.

use std::net::IpAddr;

use super::facts::{ETHERNET, ones_complement, protocol, word};
use super::plan::{Place, Plan};
use super::station::Sending;

mod addresses;
mod barrier;
mod network;
mod random;
mod upper;

pub use barrier::{barrier, ended_batch};
pub use random::Random;

use network::{PACKET_MAX, finish_ipv4, finish_ipv6, ipv4_header, ipv6_header};

/// The highest number of a frame: IPv4 has 16 bits for it. Zero is that of barriers.
pub const NUMBER_MAX: u32 = 0xffff;

/// Makes frames.
#[derive(Debug)]
pub struct Generator<'a> {
    random: Random,
    plan: &'a Plan,
}

impl<'a> Generator<'a> {
    /// A generator for the network of `plan`.
    #[must_use]
    pub fn new(seed: u64, plan: &'a Plan) -> Generator<'a> {
        Generator { random: Random::new(seed), plan }
    }

    /// How a batch is sent: half of them past the queueing discipline.
    pub fn sending(&mut self) -> Sending {
        self.random.pick(&[Sending::Queued, Sending::Bypass])
    }

    /// A frame with a number from 1 to [`NUMBER_MAX`]. It has an Ethernet header, and is no longer
    /// than the link takes: a packet socket sends nothing else.
    pub fn frame(&mut self, number: u32) -> Vec<u8> {
        let mut packet = if self.random.chance(50) { self.ipv4(number) } else { self.ipv6(number) };
        if self.random.chance(4) {
            self.corrupt(&mut packet);
        }
        if self.random.chance(3) {
            packet.truncate(self.random.below(packet.len() + 1));
        } else if self.random.chance(15) {
            let padding = self.random.below(60);
            packet.extend(self.random.bytes(padding));
        }
        let mut frame = self.link_header(&packet);
        frame.extend(packet);
        frame.truncate(ETHERNET + self.plan.link_mtu);
        frame
    }

    /// A packet for each ICMP error that a worker sends: its limiter lets the first ones pass.
    pub fn one_per_error(&mut self, mut number: impl FnMut() -> u32) -> Vec<Vec<u8>> {
        let (b, nobody) = (self.plan.pod_b, self.plan.nobody);
        let jumbo = PACKET_MAX.min(self.plan.link_mtu);
        let mut frames = Vec::new();
        for (destination, hop_limit, len) in [
            (IpAddr::V4(b.0), 1, 100),
            (IpAddr::V6(b.1), 1, 100),
            (IpAddr::V4(nobody.0), 64, 100),
            (IpAddr::V6(nobody.1), 64, 100),
            (IpAddr::V4(b.0), 64, jumbo),
            (IpAddr::V6(b.1), 64, jumbo),
        ] {
            let packet = self.valid_udp(destination, number(), hop_limit, len);
            frames.push([self.honest_link(&packet), packet].concat());
        }
        frames
    }

    fn valid_udp(&mut self, to: IpAddr, number: u32, hop_limit: u8, len: usize) -> Vec<u8> {
        let (v4, v6) = self.plan.pod_a;
        match to {
            IpAddr::V4(to) => {
                let mut header = ipv4_header(v4, to, number, hop_limit);
                header[6] = 0x40; // don't fragment
                header[9] = protocol::UDP;
                finish_ipv4(header, &self.udp(v4.into(), to.into(), len - 20))
            }
            IpAddr::V6(to) => {
                let mut header = ipv6_header(v6, to, number, hop_limit);
                header[6] = protocol::UDP;
                finish_ipv6(header, &self.udp(v6.into(), to.into(), len - 40))
            }
        }
    }

    /// Changes a few bytes, but neither the number nor the version, which says where that is.
    fn corrupt(&mut self, packet: &mut [u8]) {
        let is_ipv4 = packet[0] >> 4 == 4;
        for _ in 0..=self.random.below(3) {
            let end = if self.random.chance(70) { 60.min(packet.len()) } else { packet.len() };
            let at = self.random.below(end);
            let is_number = if is_ipv4 { matches!(at, 4..=5) } else { matches!(at, 1..=3) };
            if at == 0 {
                packet[0] = packet[0] & 0xf0 | self.random.byte() & 0xf;
            } else if !is_number {
                packet[at] = self.random.byte();
            }
        }
        let header = usize::from(packet[0] & 0xf) * 4;
        if is_ipv4 && self.random.chance(60) && (20..=packet.len()).contains(&header) {
            packet[10..12].fill(0);
            let sum = !ones_complement(&packet[..header]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// An Ethernet header, with something wrong in one of nine.
    fn link_header(&mut self, packet: &[u8]) -> Vec<u8> {
        const STRANGER: [u8; 6] = [0x0a, 1, 2, 3, 4, 5];
        const GROUP: [u8; 6] = [0x01, 0, 0x5e, 0, 0, 1];
        let link = self.plan.link(Place::PodA);
        let mut header = self.honest_link(packet);
        match self.random.below(100) {
            0 => header[..6].fill(0xff),
            1 => header[..6].copy_from_slice(&GROUP),
            2 => header[..6].copy_from_slice(&STRANGER),
            3 => header[..6].copy_from_slice(&link.far),
            4 => header[6..12].copy_from_slice(&STRANGER),
            5 => header[6..12].copy_from_slice(&link.near),
            // What the program at the interface writes for a frame of a packet socket.
            6 => header[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0]),
            7..=8 => {
                let forged = self.forged_mark(packet);
                header[6..12].copy_from_slice(&forged);
            }
            9 => {
                let other = self.random.number(2) as u16;
                let ether_type = self.random.pick(&[0x0806, 0x0800, 0x86dd, 0x88cc, 46, other]);
                header[12..14].copy_from_slice(&ether_type.to_be_bytes());
            }
            10 => {
                let tag = self.random.pick(&[0, 0, 0x2000, 1, 100]);
                header.splice(12..12, [0x81, 0x00].into_iter().chain(u16::to_be_bytes(tag)));
            }
            _ => {}
        }
        header
    }

    /// A source MAC that claims to come from the program at the interface. None asks for segments,
    /// or for a checksum in place of ports or an ICMP type: what comes of these, no Linux router
    /// does.
    fn forged_mark(&mut self, packet: &[u8]) -> [u8; 6] {
        let total = word(packet, 2).map_or(0, usize::from);
        let start = if self.random.chance(50) { 34 } else { self.random.byte() };
        let offset = self.random.pick(&[6, 16, 200]);
        let mut flags = self.random.byte() & !2;
        if total > MARKED_MAX || packet.len() > MARKED_MAX {
            flags &= !1;
        }
        let size = if flags & 1 == 0 && self.random.chance(30) { 5 } else { 0 };
        [2, start, offset, flags, size, 0]
    }

    fn honest_link(&self, packet: &[u8]) -> Vec<u8> {
        let link = self.plan.link(Place::PodA);
        let is_ipv6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
        let ether_type: [u8; 2] = if is_ipv6 { [0x86, 0xdd] } else { [8, 0] };
        [&link.near[..], &link.far, &ether_type].concat()
    }
}

/// Packets whose checksum a router would have to complete are made no longer than this, in bytes,
/// so that none is cut or fragmented as well.
const MARKED_MAX: usize = 1400;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::facts;
    use crate::differential::plan::tests_plan;

    #[test]
    fn the_same_seed_gives_the_same_frames() {
        let plan = tests_plan();
        let frames = |seed| {
            let mut generator = Generator::new(seed, &plan);
            (1..100).map(|number| generator.frame(number)).collect::<Vec<_>>()
        };
        assert_eq!(frames(7), frames(7));
        assert_ne!(frames(7), frames(8));
    }

    #[test]
    fn most_frames_are_valid_and_some_are_not() {
        let plan = tests_plan();
        let mut generator = Generator::new(1, &plan);
        let frames: Vec<_> = (1..2000).map(|number| generator.frame(number)).collect();
        let is_ip = |frame: &Vec<u8>| facts::of(frame).is_some_and(|facts| facts.ip.is_some());
        let valid = frames.iter().filter(|frame| is_ip(frame)).count();
        assert!((1600..1980).contains(&valid), "{valid} of 1999");
    }
}
