//! The segmenter against the kernel, byte by byte: the same super-packets go through the kernel's
//! own software segmentation and through ours.
//!
//! ```text
//!   namespace vdseg-<mode>-<pid>
//!   AF_PACKET + PACKET_VNET_HDR ──► seg0 (tso, gso, uso off) ═══ veth ═══ seg1 ──► AF_PACKET
//! ```
//!
//! A device without segmentation offload makes the kernel cut what is sent through it. With
//! `tx on` the segments keep partial checksums, with `tx off` the kernel completes them too.
//! Needs root and ethtool.

mod kernel;

use dataplane::checksum::{Sum, pseudo_header_v4, pseudo_header_v6, udp_field};
use dataplane::segment::{HEADER_BYTES_MAX, Segmenter, SuperPacket};

use kernel::{Kernel, Namespace, Random, VIRTIO_BYTES, assert_the_kernels};

/// A namespace with a veth pair whose end `seg0` cuts in software.
fn cutter(mode: &str) -> Namespace {
    let namespace = Namespace::new(&format!("vdseg-{mode}"));
    namespace.run("ip link add seg0 mtu 9000 type veth peer name seg1 mtu 9000");
    namespace.run("ip link set seg0 up");
    namespace.run("ip link set seg1 up");
    namespace.run("ethtool -K seg0 tso off gso off tx-udp-segmentation off");
    namespace.run("ethtool -K seg1 gro off");
    namespace
}

/// The kernel's segmentation.
fn kernel_of(namespace: &Namespace) -> Kernel {
    // Told by the EtherType, the first of IEEE 802 for experiments.
    let marker = [&MACS[..], &[0x88, 0xb5], &[0; 46]].concat();
    Kernel::start(namespace, ["seg0", "seg1"], &marker, 12..L3)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Tcp,
    Udp,
}

/// A super-packet with a partial checksum, as a pod's kernel hands it over.
#[derive(Debug)]
struct Super {
    family: Family,
    protocol: Protocol,
    bytes: Vec<u8>,
    l4_offset: usize,
    header_bytes: usize,
    gso_size: u16,
}

const L3: usize = 14;
/// The receiver's and the sender's.
const MACS: [u8; 12] = [0x0a, 1, 2, 3, 4, 5, 0x0a, 9, 8, 7, 6, 5];

impl Super {
    fn random(random: &mut Random, family: Family, protocol: Protocol) -> Super {
        // The kernel refuses to segment what fits one segment.
        let gso_size = [1, 7, 536, 988, 1448, 8000][random.below(6)] + random.below(300);
        let payload_bytes = (gso_size + 1 + random.below(gso_size * 44)).min(65_000);
        let l4_header = match protocol {
            Protocol::Tcp => tcp(random),
            Protocol::Udp => udp(random, payload_bytes),
        };
        let l4_bytes = l4_header.len() + payload_bytes;
        let number = if protocol == Protocol::Tcp { 6 } else { 17 };
        let ip = match family {
            Family::V4 => ipv4(random, number, l4_bytes),
            Family::V6 => ipv6(random, number, l4_bytes),
        };
        let ethertype: &[u8] = if family == Family::V4 { &[0x08, 0] } else { &[0x86, 0xdd] };
        let ethernet = [&MACS[..], ethertype].concat();
        let mut bytes = [ethernet, ip, l4_header].concat();
        let header_bytes = bytes.len();
        bytes.extend(random.bytes(payload_bytes));
        let l4_offset = bytes.len() - l4_bytes;
        let mut packet =
            Super { family, protocol, bytes, l4_offset, header_bytes, gso_size: gso_size as u16 };
        packet.write_partial_checksum(number, l4_bytes);
        packet
    }

    fn checksum_offset(&self) -> usize {
        if self.protocol == Protocol::Tcp { 16 } else { 6 }
    }

    fn write_partial_checksum(&mut self, number: u8, l4_bytes: usize) {
        let array4 = |at: usize| self.bytes[at..at + 4].try_into().expect("4 bytes");
        let array16 = |at: usize| self.bytes[at..at + 16].try_into().expect("16 bytes");
        let partial = match self.family {
            Family::V4 => pseudo_header_v4(array4(26), array4(30), number, l4_bytes as u16),
            Family::V6 => pseudo_header_v6(array16(22), array16(38), number, l4_bytes as u32),
        };
        let at = self.l4_offset + self.checksum_offset();
        self.bytes[at..at + 2].copy_from_slice(&partial.fold().to_be_bytes());
    }

    /// `struct virtio_net_hdr` (include/uapi/linux/virtio_net.h), which PACKET_VNET_HDR takes in
    /// the byte order of the machine.
    fn virtio_header(&self) -> [u8; VIRTIO_BYTES] {
        const NEEDS_CHECKSUM: u8 = 1;
        const ECN: u8 = 0x80;
        let gso_type = match (self.protocol, self.family) {
            (Protocol::Tcp, Family::V4) => 1,
            (Protocol::Tcp, Family::V6) => 4,
            (Protocol::Udp, _) => 5,
        };
        let congested =
            self.protocol == Protocol::Tcp && self.bytes[self.l4_offset + 13] & 0x80 != 0;
        let ecn = if congested { ECN } else { 0 };
        let mut bytes = vec![NEEDS_CHECKSUM, gso_type | ecn];
        bytes.extend((self.header_bytes as u16).to_ne_bytes());
        bytes.extend(self.gso_size.to_ne_bytes());
        bytes.extend((self.l4_offset as u16).to_ne_bytes());
        bytes.extend((self.checksum_offset() as u16).to_ne_bytes());
        bytes.try_into().expect("the length of the struct")
    }

    /// Completes the checksum of a segment: the field holds the sum of the pseudo-header.
    fn complete(&self, segment: &mut [u8]) {
        let check = Sum::default().add_bytes(&segment[self.l4_offset..]).checksum();
        let check = if self.protocol == Protocol::Udp { udp_field(check) } else { check };
        let at = self.l4_offset + self.checksum_offset();
        segment[at..at + 2].copy_from_slice(&check.to_be_bytes());
    }

    fn segments(&self, checksums: Checksums) -> Vec<Vec<u8>> {
        let (header, payload) = self.bytes.split_at(self.header_bytes);
        let mut segmenter = Segmenter::new(SuperPacket {
            header,
            l3_offset: L3,
            l4_offset: self.l4_offset,
            gso_size: self.gso_size,
            payload_bytes: payload.len(),
        })
        .expect("a good super-packet");
        let mut out = Vec::new();
        let mut header = [0; HEADER_BYTES_MAX];
        while let Some(segment) = segmenter.next(&mut header).expect("room") {
            let payload = &payload[segment.payload_offset..][..segment.payload_bytes];
            let mut bytes = [&header[..segment.header_bytes], payload].concat();
            if checksums == Checksums::Complete {
                self.complete(&mut bytes);
            }
            out.push(bytes);
        }
        out
    }
}

/// All flags and reserved bits at random; options are no-operations.
fn tcp(random: &mut Random) -> Vec<u8> {
    let options = 4 * random.below(11);
    let mut header = random.bytes(20);
    if random.below(4) == 0 {
        header[4..8].fill(0xff); // The sequence number wraps.
    }
    header[12] = (((20 + options) / 4) << 4) as u8 | (header[12] & 0x0f);
    header.resize(20 + options, 1);
    header
}

fn udp(random: &mut Random, payload_bytes: usize) -> Vec<u8> {
    let mut header = random.bytes(8);
    header[4..6].copy_from_slice(&(8 + payload_bytes as u16).to_be_bytes());
    header
}

fn ipv4(random: &mut Random, protocol: u8, l4_bytes: usize) -> Vec<u8> {
    let options = if random.below(3) == 0 { 4 * random.below(11) } else { 0 };
    let mut header = random.bytes(20);
    header[0] = 0x40 | ((20 + options) / 4) as u8;
    header[2..4].copy_from_slice(&((20 + options + l4_bytes) as u16).to_be_bytes());
    if random.below(4) == 0 {
        header[4..6].fill(0xff); // The identification wraps.
    }
    header[6] &= 0x40; // Don't Fragment or not.
    header[7] = 0;
    header[9] = protocol;
    header[10..12].fill(0);
    header.resize(20 + options, 1);
    let check = Sum::default().add_bytes(&header).checksum();
    header[10..12].copy_from_slice(&check.to_be_bytes());
    header
}

/// With hop-by-hop and destination options before the L4 header now and then.
fn ipv6(random: &mut Random, protocol: u8, l4_bytes: usize) -> Vec<u8> {
    let mut header = random.bytes(40);
    header[0] = 0x60 | header[0] & 0x0f;
    header[6] = protocol;
    if random.below(3) == 0 {
        header[6] = 0;
        header.extend([60, 0, 1, 4, 0, 0, 0, 0]);
        header.extend([protocol, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    let payload_bytes = (header.len() - 40 + l4_bytes) as u16;
    header[4..6].copy_from_slice(&payload_bytes.to_be_bytes());
    header
}

#[derive(Clone, Copy, PartialEq)]
enum Checksums {
    Partial,
    Complete,
}

fn compare(namespace: &Namespace, checksums: Checksums) {
    let mut kernel = kernel_of(namespace);
    let mut random = Random::new();
    let mut compared = 0;
    for round in 0..60 {
        for family in [Family::V4, Family::V6] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let packet = Super::random(&mut random, family, protocol);
                let theirs = kernel.send(packet.virtio_header(), &packet.bytes);
                let ours = packet.segments(checksums);
                let what = format!(
                    "round {round}, {family:?} {protocol:?}, {} bytes of headers, {} of payload, \
                     segments of {}",
                    packet.header_bytes,
                    packet.bytes.len() - packet.header_bytes,
                    packet.gso_size
                );
                assert_the_kernels(&ours, &theirs, &what);
                compared += ours.len();
            }
        }
    }
    eprintln!("{compared} segments are the kernel's");
}

#[test]
#[ignore = "needs root"]
fn segments_with_partial_checksums_are_the_kernels() {
    let namespace = cutter("partial");
    compare(&namespace, Checksums::Partial);
}

#[test]
#[ignore = "needs root"]
fn segments_with_complete_checksums_are_the_kernels() {
    let namespace = cutter("complete");
    namespace.run("ethtool -K seg0 tx off");
    compare(&namespace, Checksums::Complete);
}
