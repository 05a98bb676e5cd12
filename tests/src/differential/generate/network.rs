//! IPv4 and IPv6 headers, options, extension headers, fragments.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Generator;
use crate::differential::facts::{ones_complement, protocol};
use crate::differential::plan::MTU;

/// The longest IP packet that is made, in bytes: jumbo frames.
pub(super) const PACKET_MAX: usize = 9000;

impl Generator<'_> {
    pub(super) fn ipv4(&mut self, number: u32) -> Vec<u8> {
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

    pub(super) fn ipv6(&mut self, number: u32) -> Vec<u8> {
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
}

pub(super) fn ipv4_header(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    number: u32,
    ttl: u8,
) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[4..6].copy_from_slice(&(number as u16).to_be_bytes());
    packet[8] = ttl;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    packet
}

pub(super) fn ipv6_header(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    number: u32,
    hop_limit: u8,
) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[..4].copy_from_slice(&(6 << 28 | number).to_be_bytes());
    packet[7] = hop_limit;
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&destination.octets());
    packet
}

/// Puts the upper layer behind the header, and lengths and checksum into it.
pub(super) fn finish_ipv4(mut packet: Vec<u8>, upper: &[u8]) -> Vec<u8> {
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
pub(super) fn finish_ipv6(mut packet: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend(payload);
    packet
}
