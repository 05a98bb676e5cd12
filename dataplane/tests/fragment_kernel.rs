//! The fragmenter against the kernel, byte by byte: the same packets go through a router of the
//! kernel with a smaller MTU on its way out, and through ours.
//!
//! ```text
//!   namespace vdfrag-<test>-<pid>
//!   AF_PACKET ──► far0 ═══ veth ═══ in0 (mtu 65535) ──routes──► out0 (mtu) ═══ far1 ──► AF_PACKET
//! ```
//!
//! A router also takes one off the TTL and writes its own MACs, so the same is done to the packet
//! before our fragmenter sees it; the identification stays. A packet that the router refuses
//! (Don't Fragment) must be one that the fragmenter refuses. Needs root.

mod kernel;

use dataplane::checksum::{self, Sum};
use dataplane::fragment::{
    FRAGMENT_HEADER_BYTES_MAX, FragmentError, Fragmenter, LongPacket, MTU_MIN,
};

use kernel::{Kernel, Namespace, Random, VIRTIO_BYTES, assert_the_kernels};

/// The identification of markers, which no packet has.
const MARKER_ID: u16 = 0xffff;
/// The virtio_net_hdr of a packet that the kernel need not cut or complete.
const FINISHED: [u8; VIRTIO_BYTES] = [0; VIRTIO_BYTES];
const L3: usize = 14;
/// The router's interfaces, as all packets are addressed.
const IN_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 1];
const OUT_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 2];
const FAR_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 3];
const SOURCE: [u8; 4] = [10, 77, 0, 9];
const DESTINATION: [u8; 4] = [10, 77, 1, 9];

/// A namespace with a router and what it is connected to.
fn router(test: &str) -> Namespace {
    let namespace = Namespace::new(&format!("vdfrag-{test}"));
    namespace.set("ipv4/ip_forward=1");
    namespace.set("ipv4/conf/all/rp_filter=0");
    for line in [
        "link add in0 mtu 65535 address 0a:00:00:00:00:01 type veth peer name far0 mtu 65535",
        "link add out0 address 0a:00:00:00:00:02 type veth peer name far1 mtu 65535",
        "addr add 10.77.0.1/24 dev in0",
        "addr add 10.77.1.1/24 dev out0",
        "link set in0 up",
        "link set far0 up",
        "link set out0 up",
        "link set far1 up",
        "neigh add 10.77.1.9 lladdr 0a:00:00:00:00:03 dev out0",
        "neigh add 10.77.0.9 lladdr 0a:00:00:00:00:04 dev in0",
    ] {
        namespace.run(&format!("ip {line}"));
    }
    namespace
}

/// The kernel's router.
fn kernel_of(namespace: &Namespace) -> Kernel {
    let marker = Packet { id: MARKER_ID, ..Packet::of(vec![0; 8]) };
    // From the EtherType to the identification: a router leaves these bytes as they are.
    Kernel::start(namespace, ["far0", "far1"], &marker.sent(), 12..L3 + 6)
}

#[derive(Clone, Debug)]
struct Packet {
    tos: u8,
    id: u16,
    /// Flags and offset.
    place: u16,
    protocol: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Packet {
    fn of(payload: Vec<u8>) -> Packet {
        Packet { tos: 0, id: 1, place: 0, protocol: 17, options: Vec::new(), payload }
    }

    /// With a payload that needs about `fragments` fragments; every third is one itself.
    fn random(random: &mut Random, mtu: u32, fragments: usize) -> Packet {
        let options = options(random);
        let room = 65_535 - 20 - options.len();
        let length = (random.below(mtu as usize * fragments) + mtu as usize / 2).min(room);
        let mut packet = Packet { options, ..Packet::of(random.bytes(length)) };
        packet.tos = random.next() as u8 & !3; // Congestion marks are none of a router's business.
        packet.id = random.below(usize::from(MARKER_ID)) as u16;
        packet.protocol = [17, 6, 1, 253][random.below(4)];
        if random.below(3) == 0 {
            let more = random.below(2) == 0;
            if more {
                packet.payload.truncate(length - length % 8);
            }
            let offset = random.below(1 + (room - packet.payload.len()) / 8) as u16;
            packet.place = offset | if more { 0x2000 } else { 0 };
        }
        packet
    }

    /// As the sender writes it, to the router.
    fn sent(&self) -> Vec<u8> {
        self.bytes(IN_MAC, [0x0a, 0, 0, 0, 0, 4], 64)
    }

    /// As the router would pass it on, were its way wider.
    fn routed(&self) -> Vec<u8> {
        let mut bytes = self.bytes(FAR_MAC, OUT_MAC, 64);
        let header = bytes[L3..].first_chunk_mut::<20>().expect("a header");
        assert_eq!(checksum::decrement_ttl(header), Some(63));
        bytes
    }

    fn header_bytes(&self) -> usize {
        L3 + 20 + self.options.len()
    }

    fn bytes(&self, to: [u8; 6], from: [u8; 6], ttl: u8) -> Vec<u8> {
        let mut ip = vec![0x40 | ((20 + self.options.len()) / 4) as u8, self.tos];
        ip.extend(((20 + self.options.len() + self.payload.len()) as u16).to_be_bytes());
        ip.extend(self.id.to_be_bytes());
        ip.extend(self.place.to_be_bytes());
        ip.extend([ttl, self.protocol, 0, 0]);
        ip.extend([SOURCE, DESTINATION].concat());
        ip.extend(&self.options);
        let check = Sum::default().add_bytes(&ip).checksum();
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        [&to[..], &from, &[0x08, 0], &ip, &self.payload].concat()
    }

    fn fragments(&self, mtu: u32) -> Result<Vec<Vec<u8>>, FragmentError> {
        let bytes = self.routed();
        let (header, payload) = bytes.split_at(self.header_bytes());
        let packet = LongPacket { header, l3_offset: L3, payload_bytes: payload.len(), mtu };
        let mut fragmenter = Fragmenter::new(packet)?;
        let mut out = Vec::new();
        let mut header = [0; FRAGMENT_HEADER_BYTES_MAX];
        while let Some(fragment) = fragmenter.next(&mut header)? {
            let part = &payload[fragment.payload_offset..][..fragment.payload_bytes];
            out.push([&header[..fragment.header_bytes], part].concat());
        }
        Ok(out)
    }
}

/// Options that a router passes on as they are: copied and not, known and not; a full record
/// route. Half of the packets have none.
fn options(random: &mut Random) -> Vec<u8> {
    const CHOICES: [&[u8]; 7] = [
        &[1],                                      // No operation.
        &[0x94, 4, 0, 0],                          // Router alert (RFC 2113), copied.
        &[0x88, 4, 0xab, 0xcd],                    // Stream identifier, copied.
        &[7, 7, 8, 10, 9, 8, 7],                   // Record route without room, not copied.
        &[0x1e, 5, 1, 2, 3],                       // An experiment (RFC 4727), not copied.
        &[0x9e, 6, 1, 2, 3, 4],                    // An experiment, copied.
        &[0x52, 12, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], // Traceroute (RFC 1393), not copied.
    ];
    let mut options = Vec::new();
    let count = if random.below(2) == 0 { 0 } else { random.below(6) };
    for _ in 0..count {
        let option = CHOICES[random.below(CHOICES.len())];
        // A known option may be there once only (Linux `__ip_options_compile`).
        let is_known = [0x94, 7].contains(&option[0]);
        if options.len() + option.len() <= 40 && !(is_known && options.contains(&option[0])) {
            options.extend(option);
        }
    }
    // The end of the list, or no-operations.
    let pad = random.below(2) as u8;
    options.resize(options.len().next_multiple_of(4), pad);
    options
}

#[test]
#[ignore = "needs root"]
fn fragments_are_the_kernels() {
    let namespace = router("cut");
    let mut kernel = kernel_of(&namespace);
    let mut random = Random::new();
    let (mut packets, mut with_options, mut cut_again, mut compared) = (0, 0, 0, 0);
    for mtu in [MTU_MIN, 69, 75, 76, 577, 1006, 1500, 4001, 9000] {
        namespace.run(&format!("ip link set out0 mtu {mtu}"));
        for round in 0..80 {
            // A veth queues 1000 packets (net.core.netdev_max_backlog); with all options a fragment
            // has as little as an eighth of its MTU.
            let packet = Packet::random(&mut random, mtu, if round == 0 { 100 } else { 8 });
            let theirs = kernel.send(FINISHED, &packet.sent());
            let ours = packet.fragments(mtu).expect("a packet that may be cut");
            let what = format!("mtu {mtu}, round {round}, {:02x?}", packet.options);
            assert_the_kernels(&ours, &theirs, &what);
            packets += 1;
            with_options += usize::from(!packet.options.is_empty());
            cut_again += usize::from(packet.place != 0 && ours.len() > 1);
            compared += ours.len();
        }
    }
    eprintln!(
        "{compared} fragments of {packets} packets are the kernel's; {with_options} packets had \
         options, {cut_again} were fragments themselves"
    );
    assert!(with_options > 100 && cut_again > 100, "{with_options} {cut_again}");
}

#[test]
#[ignore = "needs root"]
fn what_the_kernel_does_not_fragment_is_refused() {
    const DONT_FRAGMENT: u16 = 0x4000;
    let namespace = router("refused");
    namespace.run("ip link set out0 mtu 600");
    let mut kernel = kernel_of(&namespace);
    let mut fragments = |packet: &Packet| kernel.send(FINISHED, &packet.sent());
    let packet = Packet { place: DONT_FRAGMENT, ..Packet::of(vec![7; 1000]) };
    assert_eq!(fragments(&packet), Vec::<Vec<u8>>::new());
    assert_eq!(packet.fragments(600), Err(FragmentError::DontFragment));
    let false_length = Packet { options: vec![0x94, 9, 0, 0], ..Packet::of(vec![7; 1000]) };
    assert_eq!(fragments(&false_length), Vec::<Vec<u8>>::new());
    assert_eq!(false_length.fragments(600), Err(FragmentError::Options));
    // The neighbour that both cut.
    let packet = Packet::of(vec![7; 1000]);
    assert_eq!(fragments(&packet), packet.fragments(600).expect("may be cut"));
}
