//! Random Ethernet frames from a pod: most of them valid, each of the rest wrong in a way or two.
//! The same seed gives the same frames.
//!
//! Every IP frame carries its number where no router changes it: in the identification field of
//! IPv4, in the flow label of IPv6. So it is known again in fragments and in quotes of ICMP errors.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::facts::{ETHERNET, ones_complement, protocol, upper_sum};
use super::plan::{MTU, Place, Plan};
use super::station::Sending;
use crate::daemon::{NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6};

/// The longest IP packet that is made, in bytes: jumbo frames.
const PACKET_MAX: usize = 9000;

/// Pseudo-random numbers: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence that depends on the seed alone.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `end - 1`.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// True in `percent` of 100 cases.
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn number(&mut self, octets: usize) -> u128 {
        self.bytes(octets).iter().fold(0, |number, byte| number << 8 | u128::from(*byte))
    }
}

/// Makes frames.
#[derive(Debug)]
pub struct Generator<'a> {
    random: Random,
    plan: &'a Plan,
}

/// Frames without one of these are useless to tell apart; more would wrap IPv4's 16 bits.
pub const NUMBER_MAX: u32 = 0xffff;

impl<'a> Generator<'a> {
    /// A generator for the network of `plan`.
    #[must_use]
    pub fn new(seed: u64, plan: &'a Plan) -> Generator<'a> {
        Generator { random: Random::new(seed), plan }
    }

    /// Half of the batches go past the queueing discipline.
    pub fn sending(&mut self) -> Sending {
        self.random.pick(&[Sending::Queued, Sending::Bypass])
    }

    /// The next frame. `number` is from 1 to [`NUMBER_MAX`]. No longer than the link takes.
    pub fn frame(&mut self, number: u32) -> Vec<u8> {
        let mut packet = if self.random.chance(50) { self.ipv4(number) } else { self.ipv6(number) };
        if self.random.chance(4) {
            self.corrupt(&mut packet);
        }
        if self.random.chance(3) {
            packet.truncate(self.random.below(packet.len() + 1));
        } else if self.random.chance(15) {
            // Ethernet padding: zeros up to the shortest frame, or anything.
            let padding = self.random.below(60);
            packet.extend(self.random.bytes(padding));
        }
        let mut frame = self.link_header(&packet);
        frame.extend(packet);
        frame.truncate(ETHERNET + self.plan.link_mtu);
        frame
    }

    /// One packet for each ICMP error that a worker sends: its limiter lets the first ones pass.
    pub fn one_per_error(&mut self, numbers: &mut impl FnMut() -> u32) -> Vec<Vec<u8>> {
        let plan = self.plan;
        let (b, nobody) = (plan.pod_b, plan.nobody);
        let jumbo = PACKET_MAX.min(plan.link_mtu);
        let mut packets = Vec::new();
        for (destination, ttl, len) in [
            (b.0.into(), 1, 100),
            (nobody.0.into(), 64, 100),
            (b.0.into(), 64, jumbo),
            (b.1.into(), 1, 100),
            (nobody.1.into(), 64, 100),
            (b.1.into(), 64, jumbo),
        ] {
            let number = numbers();
            let header = if matches!(destination, IpAddr::V4(_)) { 20 } else { 40 };
            let source = self.sender(destination);
            let upper = self.udp(source, destination, len - header);
            packets.push(match (source, destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    let mut packet = ipv4_header(source, destination, number, ttl);
                    packet[6] = 0x40;
                    packet[9] = protocol::UDP;
                    finish_ipv4(packet, &upper)
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    let mut packet = ipv6_header(source, destination, number, ttl);
                    packet[6] = protocol::UDP;
                    finish_ipv6(packet, &upper)
                }
                _ => unreachable!("both are of one family"),
            });
        }
        packets.into_iter().map(|packet| [self.honest_link(&packet), packet].concat()).collect()
    }

    fn sender(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.plan.pod_a.0.into() } else { self.plan.pod_a.1.into() }
    }

    fn ipv4(&mut self, number: u32) -> Vec<u8> {
        let destination = self.destination_v4();
        let source = self.source_v4();
        let hop_limit = self.hop_limit();
        let mut packet = ipv4_header(source, destination, number, hop_limit);
        packet[1] = self.random.byte();
        if self.random.chance(10) {
            packet.extend(self.options());
        }
        let room = self.length().saturating_sub(packet.len());
        let (number, upper) = self.upper(source.into(), destination.into(), room);
        packet[9] = number;
        if self.random.chance(50) {
            packet[6] |= 0x40;
        }
        if self.random.chance(10) {
            self.fragment_v4(&mut packet);
        }
        if self.random.chance(1) {
            packet[6] |= 0x80; // reserved, "must be zero"
        }
        finish_ipv4(packet, &upper)
    }

    fn fragment_v4(&mut self, packet: &mut [u8]) {
        let offset = match self.random.below(4) {
            0 => 0,
            1 => 0x1fff - self.random.below(4) as u16,
            _ => self.random.below(0x2000) as u16,
        };
        let more = u16::from(self.random.chance(60)) << 13;
        let field = u16::from(packet[6] & 0xc0) << 8 | more | offset;
        packet[6..8].copy_from_slice(&field.to_be_bytes());
    }

    /// RFC 791 §3.1: mostly well formed, of known and unknown kinds.
    fn options(&mut self) -> Vec<u8> {
        let mut options = Vec::new();
        for _ in 0..=self.random.below(3) {
            let room = 40 - options.len();
            let kind = self.random.pick(&[0, 1, 7, 68, 130, 131, 134, 136, 137, 148, 222, 30]);
            let random = if self.random.chance(20) { self.random.byte() } else { kind };
            let len = 3 + self.random.below(9);
            match random {
                0 | 1 => options.push(random),
                _ if len > room => break,
                kind => {
                    options.push(kind);
                    let told = if self.random.chance(8) { self.random.byte() } else { len as u8 };
                    options.push(told);
                    options.push(if self.random.chance(70) { 4 } else { self.random.byte() });
                    options.extend(self.random.bytes(len - 3));
                }
            }
        }
        options.resize(options.len().next_multiple_of(4).min(40), 0);
        options
    }

    fn ipv6(&mut self, number: u32) -> Vec<u8> {
        let destination = self.destination_v6();
        let source = self.source_v6();
        let hop_limit = self.hop_limit();
        let mut packet = ipv6_header(source, destination, number, hop_limit);
        let class = self.random.byte();
        packet[0] |= class >> 4;
        packet[1] |= class << 4;
        let mut chain = if self.random.chance(20) { self.extensions() } else { Vec::new() };
        let headers: usize = chain.iter().map(|(_, header)| header.len()).sum();
        let room = self.length().saturating_sub(40 + headers);
        let (last, upper) = self.upper(source.into(), destination.into(), room);
        let mut next = last;
        let mut body = upper;
        while let Some((kind, mut header)) = chain.pop() {
            header[0] = next;
            next = kind;
            body = [header, body].concat();
        }
        packet[6] = next;
        finish_ipv6(packet, &body)
    }

    /// Extension headers in any order, each with its own number; the first byte is set later.
    fn extensions(&mut self) -> Vec<(u8, Vec<u8>)> {
        let many = self.random.chance(10);
        let count = if many { 7 + self.random.below(4) } else { 1 + self.random.below(3) };
        (0..count).map(|_| self.extension()).collect()
    }

    fn extension(&mut self) -> (u8, Vec<u8>) {
        let kind = self.random.pick(&[
            protocol::HOP_BY_HOP,
            protocol::DESTINATION,
            protocol::DESTINATION,
            protocol::ROUTING,
            protocol::FRAGMENT,
            protocol::AUTHENTICATION,
            protocol::MOBILITY,
        ]);
        let units = self.random.below(3);
        let mut header = match kind {
            protocol::FRAGMENT => {
                let mut header = self.random.bytes(8);
                match self.random.below(3) {
                    0 => header[2..4].fill(0), // atomic
                    1 => (header[2], header[3]) = (0, 1),
                    _ => {}
                }
                return (kind, header);
            }
            protocol::AUTHENTICATION => {
                let header = self.random.bytes((units * 2 + 2) * 4);
                [&[0, units as u8 * 2], &header[2..]].concat()
            }
            _ => {
                // One PadN over all (RFC 8200 §4.2); Linux takes no longer one than this.
                let units = units.saturating_sub(1);
                let mut header = vec![0; (units + 1) * 8];
                header[1] = units as u8;
                (header[2], header[3]) = (1, (units * 8 + 4) as u8);
                header
            }
        };
        if kind == protocol::ROUTING {
            let after = self.random.bytes(header.len() - 2);
            header[2..].copy_from_slice(&after);
            header[2] = self.random.pick(&[0, 2, 3, 4, 200]);
            header[3] = self.random.pick(&[0, 0, 1, 2]);
        }
        if self.random.chance(15) {
            let after = self.random.bytes(header.len() - 2);
            header[2..].copy_from_slice(&after);
        }
        if self.random.chance(5) {
            header[1] = self.random.byte();
        }
        (kind, header)
    }

    /// Length of the IP packet that is aimed at, in bytes.
    fn length(&mut self) -> usize {
        let len = match self.random.below(100) {
            0..=44 => 20 + self.random.below(180),
            45..=79 => 20 + self.random.below(MTU - 19),
            80..=89 => MTU - 2 + self.random.below(6),
            _ => MTU + self.random.below(PACKET_MAX - MTU + 1),
        };
        len.min(self.plan.link_mtu)
    }

    fn hop_limit(&mut self) -> u8 {
        match self.random.below(100) {
            0..=69 => self.random.pick(&[64, 128, 255]),
            70..=76 => 1,
            77..=81 => 0,
            82..=87 => 2,
            _ => self.random.byte(),
        }
    }

    /// A protocol number and `room` bytes of it, or what its header needs.
    fn upper(&mut self, source: IpAddr, destination: IpAddr, room: usize) -> (u8, Vec<u8>) {
        let icmp = if source.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
        let (number, mut upper) = match self.random.below(100) {
            0..=34 => (protocol::UDP, self.udp(source, destination, room)),
            35..=59 => (protocol::TCP, self.tcp(source, destination, room)),
            60..=79 => (icmp, self.icmp(source, destination, room)),
            80..=84 => (protocol::SCTP, self.random.bytes(room.max(12))),
            85..=88 => (protocol::NO_NEXT, self.random.bytes(room)),
            89..=90 => (protocol::ESP, self.random.bytes(room)),
            _ => (self.random.byte(), self.random.bytes(room)),
        };
        if self.random.chance(3) {
            upper.truncate(self.random.below(24));
        }
        (number, upper)
    }

    fn udp(&mut self, source: IpAddr, destination: IpAddr, room: usize) -> Vec<u8> {
        let mut datagram = self.random.bytes(room.max(8));
        let len = if self.random.chance(3) { self.random.next() as u16 } else { 0 };
        let len = if len == 0 { datagram.len() as u16 } else { len };
        datagram[4..6].copy_from_slice(&len.to_be_bytes());
        self.sum(source, destination, protocol::UDP, &mut datagram, 6);
        datagram
    }

    fn tcp(&mut self, source: IpAddr, destination: IpAddr, room: usize) -> Vec<u8> {
        let mut segment = self.random.bytes(room.max(20));
        if self.random.chance(95) {
            segment[12] = 0x50;
        }
        self.sum(source, destination, protocol::TCP, &mut segment, 16);
        segment
    }

    fn icmp(&mut self, source: IpAddr, destination: IpAddr, room: usize) -> Vec<u8> {
        let mut message = self.random.bytes(room.max(8));
        message[0] = if source.is_ipv4() {
            self.random.pick(&[0, 3, 4, 5, 8, 8, 8, 11, 12, 13, 14, 17, 42, message[0]])
        } else {
            self.random.pick(&[1, 2, 3, 4, 128, 128, 128, 129, 130, 133, 135, 136, 137, message[0]])
        };
        message[1] = self.random.pick(&[0, 0, 0, 1, 4]);
        if source.is_ipv4() {
            message[2..4].fill(0);
            let sum = !ones_complement(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        } else {
            self.sum(source, destination, protocol::ICMPV6, &mut message, 2);
        }
        message
    }

    /// Fills the checksum field at `at`: mostly right, else absent, wrong, or the sum of the
    /// pseudo-header alone, as a kernel writes it for its device to complete.
    fn sum(&mut self, source: IpAddr, to: IpAddr, number: u8, upper: &mut [u8], at: usize) {
        upper[at..at + 2].fill(0);
        let sum = match self.random.below(100) {
            0..=84 => !upper_sum(source, to, number, upper),
            85..=89 => 0,
            90..=94 => {
                let zeros = vec![0; upper.len()];
                upper_sum(source, to, number, &zeros)
            }
            _ => self.random.next() as u16,
        };
        upper[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    fn destination_v4(&mut self) -> Ipv4Addr {
        let plan = self.plan;
        let any = self.random.number(4) as u32;
        match self.random.below(100) {
            0..=49 => plan.pod_b.0,
            50..=61 => NODE_V4,
            62..=71 => OUTSIDE_V4,
            72..=74 => Ipv4Addr::from(0xcb00_7100 | any & 0xff), // 203.0.113.0/24
            75..=81 => plan.nobody.0,
            82..=84 => plan.pod_a.0,
            85..=86 => Ipv4Addr::new(169, 254, 1, 1),
            87..=88 => Ipv4Addr::from(0xa9fe_0000 | any & 0xffff), // link-local
            89..=90 => Ipv4Addr::from(0x7f00_0000 | any & 0xff_ffff), // loopback
            91 => Ipv4Addr::from(any & 0xff_ffff),                 // this network
            92..=95 => Ipv4Addr::from(0xe000_0000 | any & 0x0fff_ffff), // multicast
            96..=97 => Ipv4Addr::from(0xf000_0000 | any & 0x0fff_ffff), // reserved
            _ => Ipv4Addr::BROADCAST,
        }
    }

    fn source_v4(&mut self) -> Ipv4Addr {
        let plan = self.plan;
        let any = self.random.number(4) as u32;
        if self.random.chance(92) {
            return plan.pod_a.0;
        }
        match self.random.below(9) {
            0 => plan.pod_b.0,
            1 => NODE_V4,
            2 => plan.nobody.0,
            3 => OUTSIDE_V4,
            4 => Ipv4Addr::UNSPECIFIED,
            5 => Ipv4Addr::from(0xa9fe_0000 | any & 0xffff),
            6 => Ipv4Addr::from(0x7f00_0000 | any & 0xff_ffff),
            7 => Ipv4Addr::from(0xe000_0000 | any & 0x1fff_ffff),
            _ => Ipv4Addr::from(any),
        }
    }

    fn destination_v6(&mut self) -> Ipv6Addr {
        let plan = self.plan;
        let any = self.random.number(16);
        match self.random.below(100) {
            0..=49 => plan.pod_b.1,
            50..=61 => NODE_V6,
            62..=71 => OUTSIDE_V6,
            72..=74 => Ipv6Addr::from(0x2001_0db8_ffff_u128 << 80 | any & 0xffff),
            75..=81 => plan.nobody.1,
            82..=84 => plan.pod_a.1,
            85..=86 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
            87..=88 => Ipv6Addr::from(0xfe80_u128 << 112 | any >> 64),
            89..=90 => Ipv6Addr::LOCALHOST,
            91 => Ipv6Addr::UNSPECIFIED,
            92..=96 => Ipv6Addr::from(0xff_u128 << 120 | any >> 8), // multicast of any scope
            97 => Ipv4Addr::from(any as u32).to_ipv6_mapped(),
            98 => Ipv6Addr::from(0xfec0_u128 << 112 | any >> 64), // site-local of old
            _ => Ipv6Addr::from(0x3fff_u128 << 112 | any >> 16),  // documentation (RFC 9637)
        }
    }

    fn source_v6(&mut self) -> Ipv6Addr {
        let plan = self.plan;
        let any = self.random.number(16);
        if self.random.chance(92) {
            return plan.pod_a.1;
        }
        match self.random.below(9) {
            0 => plan.pod_b.1,
            1 => NODE_V6,
            2 => plan.nobody.1,
            3 => OUTSIDE_V6,
            4 => Ipv6Addr::UNSPECIFIED,
            5 => Ipv6Addr::from(0xfe80_u128 << 112 | any >> 64),
            6 => Ipv6Addr::LOCALHOST,
            7 => Ipv6Addr::from(0xff_u128 << 120 | any >> 8),
            _ => Ipv4Addr::from(any as u32).to_ipv6_mapped(),
        }
    }

    /// Changes a few bytes, but never the number.
    fn corrupt(&mut self, packet: &mut [u8]) {
        for _ in 0..=self.random.below(3) {
            let near = if self.random.chance(70) { 60.min(packet.len()) } else { packet.len() };
            let at = self.random.below(near);
            let is_number =
                if packet[0] >> 4 == 4 { matches!(at, 4..=5) } else { matches!(at, 1..=3) };
            // The version says where the number is.
            let is_version = at == 0;
            if is_version {
                packet[0] = packet[0] & 0xf0 | self.random.byte() & 0xf;
            } else if !is_number {
                packet[at] = self.random.byte();
            }
        }
    }

    fn link_header(&mut self, packet: &[u8]) -> Vec<u8> {
        let link = self.plan.link(Place::PodA);
        let mut header = self.honest_link(packet);
        match self.random.below(100) {
            0 => header[..6].fill(0xff),
            1 => header[..6].copy_from_slice(&[0x01, 0, 0x5e, 0, 0, 1]),
            2 => header[..6].copy_from_slice(&[0x0a, 1, 2, 3, 4, 5]),
            3 => header[..6].copy_from_slice(&link.far),
            4 => header[6..12].copy_from_slice(&[0x0a, 1, 2, 3, 4, 5]),
            5 => header[6..12].copy_from_slice(&link.near),
            // A marker as the program at the interface writes it for a frame of a packet socket.
            6..=7 => header[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0]),
            8 => {
                let forged = self.random.bytes(5);
                header[7..12].copy_from_slice(&forged);
                header[6] = 2;
            }
            9 => {
                let other = self.random.next() as u16;
                let ether_type = self.random.pick(&[0x0806, 0x0800, 0x86dd, 0x88cc, 46, other]);
                header[12..14].copy_from_slice(&ether_type.to_be_bytes());
            }
            10 => {
                let tag = self.random.pick(&[0, 0, 0x2000, 1, 100]);
                let tagged = [&[0x81, 0x00][..], &u16::to_be_bytes(tag)].concat();
                header.splice(12..12, tagged);
            }
            _ => {}
        }
        header
    }

    fn honest_link(&self, packet: &[u8]) -> Vec<u8> {
        let link = self.plan.link(Place::PodA);
        let is_ipv6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
        let ether_type: [u8; 2] = if is_ipv6 { [0x86, 0xdd] } else { [8, 0] };
        [&link.near[..], &link.far, &ether_type].concat()
    }
}

fn ipv4_header(source: Ipv4Addr, destination: Ipv4Addr, number: u32, ttl: u8) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[4..6].copy_from_slice(&(number as u16).to_be_bytes());
    packet[8] = ttl;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    packet
}

fn ipv6_header(source: Ipv6Addr, destination: Ipv6Addr, number: u32, hop_limit: u8) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[..4].copy_from_slice(&(6 << 28 | number).to_be_bytes());
    packet[7] = hop_limit;
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&destination.octets());
    packet
}

/// Puts the upper layer behind the header, and lengths and checksum into it.
fn finish_ipv4(mut packet: Vec<u8>, upper: &[u8]) -> Vec<u8> {
    let header = packet.len();
    packet.extend(upper);
    packet[0] = 0x40 | (header / 4) as u8;
    let total = packet.len() as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = !ones_complement(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Puts the payload behind the header, and its length into it.
fn finish_ipv6(mut packet: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend(payload);
    packet
}

/// A frame that ends a batch: UDP between two places, with the batch's number as payload and 0 as
/// its own.
#[must_use]
pub fn marker(link: [[u8; 6]; 2], source: Ipv4Addr, to: Ipv4Addr, batch: u32) -> Vec<u8> {
    let mut datagram = vec![0, 9, 0, 9, 0, 16, 0, 0];
    datagram.extend(MARKER);
    datagram.extend(batch.to_be_bytes());
    let mut packet = ipv4_header(source, to, 0, 64);
    packet[9] = protocol::UDP;
    [&link[0][..], &link[1], &[8, 0], &finish_ipv4(packet, &datagram)].concat()
}

/// The batch that a frame ends.
#[must_use]
pub fn ended_batch(frame: &[u8]) -> Option<u32> {
    let payload = frame.get(ETHERNET + 28..)?;
    let batch = payload.strip_prefix(&MARKER)?;
    Some(u32::from_be_bytes(batch.try_into().ok()?))
}

/// Not in any random payload of eight bytes, in all likelihood.
const MARKER: [u8; 4] = *b"vdm\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::facts;

    fn plan() -> Plan {
        crate::differential::plan::tests_plan()
    }

    #[test]
    fn the_same_seed_gives_the_same_frames() {
        let plan = plan();
        let frames = |seed| {
            let mut generator = Generator::new(seed, &plan);
            (1..100).map(|number| generator.frame(number)).collect::<Vec<_>>()
        };
        assert_eq!(frames(7), frames(7));
        assert_ne!(frames(7), frames(8));
    }

    #[test]
    fn most_frames_are_valid_and_some_are_not() {
        let plan = plan();
        let mut generator = Generator::new(1, &plan);
        let frames: Vec<_> = (1..2000).map(|number| generator.frame(number)).collect();
        let is_ip = |frame: &Vec<u8>| facts::of(frame).is_some_and(|facts| facts.ip.is_some());
        let valid = frames.iter().filter(|frame| is_ip(frame)).count();
        assert!((1600..1980).contains(&valid), "{valid} of 1999");
    }

    #[test]
    fn a_marker_names_its_batch_and_nothing_else_does() {
        let plan = plan();
        let frame = marker([[0; 6]; 2], plan.pod_a.0, plan.pod_b.0, 77);
        assert_eq!(ended_batch(&frame), Some(77));
        assert!(facts::of(&frame).is_some_and(|facts| facts.ip.is_some()));
        assert_eq!(ended_batch(&Generator::new(1, &plan).frame(1)), None);
    }
}
