//! What IP carries: UDP, TCP, ICMP, and protocols that a router need not know.

use std::net::IpAddr;

use super::Generator;
use crate::differential::facts::{ones_complement, protocol, upper_sum};

impl Generator<'_> {
    /// A protocol number and `room` bytes of it, or what its header needs.
    pub(super) fn upper(&mut self, source: IpAddr, to: IpAddr, room: usize) -> (u8, Vec<u8>) {
        let icmp = if source.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
        let (number, mut upper) = match self.random.below(100) {
            0..=34 => (protocol::UDP, self.udp(source, to, room)),
            35..=59 => (protocol::TCP, self.tcp(source, to, room)),
            60..=79 => (icmp, self.icmp(source, to, room)),
            80..=84 => (protocol::SCTP, self.random.bytes(room.max(12))),
            85..=88 => (protocol::NO_NEXT, self.random.bytes(room)),
            89..=90 => (protocol::ESP, self.random.bytes(room)),
            _ => (self.random.byte(), self.random.bytes(room)),
        };
        if self.random.chance(3) {
            upper.truncate(self.random.below(24));
        } else if number == protocol::UDP && upper.len() >= 8 && self.random.chance(3) {
            upper[4..6].copy_from_slice(&(self.random.number(2) as u16).to_be_bytes());
        }
        (number, upper)
    }

    /// A valid datagram but for its checksum, see [`Generator::sum`].
    pub(super) fn udp(&mut self, source: IpAddr, to: IpAddr, room: usize) -> Vec<u8> {
        let mut datagram = self.random.bytes(room.max(8));
        let len = datagram.len() as u16;
        datagram[4..6].copy_from_slice(&len.to_be_bytes());
        self.sum(source, to, protocol::UDP, &mut datagram, 6);
        datagram
    }

    fn tcp(&mut self, source: IpAddr, to: IpAddr, room: usize) -> Vec<u8> {
        let mut segment = self.random.bytes(room.max(20));
        if self.random.chance(95) {
            segment[12] = 0x50;
        }
        self.sum(source, to, protocol::TCP, &mut segment, 16);
        segment
    }

    fn icmp(&mut self, source: IpAddr, to: IpAddr, room: usize) -> Vec<u8> {
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
            self.sum(source, to, protocol::ICMPV6, &mut message, 2);
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
            90..=94 if upper.len() < super::MARKED_MAX - 100 => {
                let zeros = vec![0; upper.len()];
                upper_sum(source, to, number, &zeros)
            }
            _ => self.random.number(2) as u16,
        };
        upper[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}
