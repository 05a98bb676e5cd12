//! Segments against a naive oracle: headers parsed into structures, changed field by field,
//! written out again and summed, all by another library. `tests/segment_kernel.rs` compares with
//! the kernel itself.

use etherparse::{
    Ethernet2Header, IpHeaders, PacketBuilder, PacketHeaders, TcpHeader, TransportHeader,
};
use proptest::prelude::*;

use super::*;
use crate::checksum;

const L3: usize = 14;
const V4: ([u8; 4], [u8; 4]) = ([10, 244, 1, 7], [198, 51, 100, 9]);
const V6: ([u8; 16], [u8; 16]) = ([0xfd; 16], [0x20; 16]);

/// A super-packet as a pod sends it, and where its headers are.
#[derive(Clone, Debug)]
struct Super {
    bytes: Vec<u8>,
    l4_offset: usize,
    header_bytes: usize,
}

impl Super {
    fn new(bytes: Vec<u8>, l4_offset: usize, l4_bytes: usize) -> Super {
        Super { bytes, l4_offset, header_bytes: l4_offset + l4_bytes }
    }

    fn payload(&self) -> &[u8] {
        &self.bytes[self.header_bytes..]
    }

    fn segmenter(&self, gso_size: u16) -> Result<Segmenter, SegmentError> {
        Segmenter::new(SuperPacket {
            header: &self.bytes[..self.header_bytes],
            l3_offset: L3,
            l4_offset: self.l4_offset,
            gso_size,
            payload_bytes: self.payload().len(),
        })
    }
}

fn ipv4_header(id: u16, options: &[u8]) -> etherparse::Ipv4Header {
    let (source, destination) = V4;
    etherparse::Ipv4Header {
        identification: id,
        dont_fragment: true,
        time_to_live: 63,
        source,
        destination,
        options: options.try_into().expect("a multiple of 4, at most 40"),
        ..Default::default()
    }
}

fn tcp_header(sequence: u32, flags: u8, options: &[u8]) -> TcpHeader {
    let mut header = TcpHeader::new(4000, 443, sequence, 7000);
    header.set_options_raw(options).expect("a multiple of 4, at most 40");
    header.acknowledgment_number = 99;
    (header.fin, header.psh, header.ack) = (flags & FIN != 0, flags & PSH != 0, true);
    (header.cwr, header.ece, header.urg) = (flags & CWR != 0, flags & 0x40 != 0, flags & 0x20 != 0);
    header
}

fn builder() -> etherparse::PacketBuilderStep<Ethernet2Header> {
    PacketBuilder::ethernet2([2; 6], [4; 6])
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 % 251) as u8).collect()
}

fn tcp_v4(id: u16, options: &[u8], tcp: &TcpHeader, length: usize) -> Super {
    let ip = IpHeaders::Ipv4(ipv4_header(id, options), Default::default());
    let mut bytes = Vec::new();
    builder().ip(ip).tcp_header(tcp.clone()).write(&mut bytes, &payload(length)).expect("fits");
    Super::new(bytes, L3 + 20 + options.len(), tcp.header_len())
}

fn tcp_v6(tcp: &TcpHeader, length: usize) -> Super {
    let mut bytes = Vec::new();
    let step = builder().ipv6(V6.0, V6.1, 60).tcp_header(tcp.clone());
    step.write(&mut bytes, &payload(length)).expect("fits");
    Super::new(bytes, L3 + 40, tcp.header_len())
}

fn udp_v4(id: u16, length: usize) -> Super {
    let ip = IpHeaders::Ipv4(ipv4_header(id, &[]), Default::default());
    let mut bytes = Vec::new();
    builder().ip(ip).udp(5000, 4433).write(&mut bytes, &payload(length)).expect("fits");
    Super::new(bytes, L3 + 20, 8)
}

fn udp_v6(length: usize) -> Super {
    let mut bytes = Vec::new();
    let step = builder().ipv6(V6.0, V6.1, 60).udp(5000, 4433);
    step.write(&mut bytes, &payload(length)).expect("fits");
    Super::new(bytes, L3 + 40, 8)
}

/// A segment with its checksum, as whoever completes the partial one writes it.
fn complete(header: &[u8], payload: &[u8], l4_offset: usize) -> Vec<u8> {
    let mut segment = [header, payload].concat();
    let udp = header.len() - l4_offset == UDP_BYTES;
    let field = l4_offset + if udp { UDP_CHECK } else { TCP_CHECK };
    if segment[field..field + 2] == [0, 0] {
        assert!(udp, "TCP has a checksum");
        return segment;
    }
    let check = Sum::default().add_bytes(&segment[l4_offset..]).checksum();
    let check = if udp { checksum::udp_field(check) } else { check };
    segment[field..field + 2].copy_from_slice(&check.to_be_bytes());
    segment
}

/// All segments with complete checksums.
fn segments(packet: &Super, gso_size: u16) -> Vec<Vec<u8>> {
    let mut segmenter = packet.segmenter(gso_size).expect("a good super-packet");
    let mut out = Vec::new();
    let mut header = [0xee; HEADER_BYTES_MAX];
    while let Some(segment) = segmenter.next(&mut header).expect("room") {
        let payload = &packet.payload()[segment.payload_offset..][..segment.payload_bytes];
        out.push(complete(&header[..segment.header_bytes], payload, packet.l4_offset));
    }
    assert_eq!(out.len(), packet.segmenter(gso_size).expect("the same").segments());
    out
}

/// The same, by the plain rules.
fn naive(packet: &Super, gso_size: u16) -> Vec<Vec<u8>> {
    let chunks: Vec<&[u8]> = packet.payload().chunks(usize::from(gso_size)).collect();
    let chunks = if chunks.is_empty() { vec![&[][..]] } else { chunks };
    let headers = PacketHeaders::from_ethernet_slice(&packet.bytes).expect("parses");
    let mut offset = 0;
    let mut out = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        let mut transport = headers.transport.clone().expect("TCP or UDP");
        if let TransportHeader::Tcp(tcp) = &mut transport {
            let last = index + 1 == chunks.len();
            tcp.sequence_number = tcp.sequence_number.wrapping_add(offset as u32);
            (tcp.fin, tcp.psh) = (tcp.fin && last, tcp.psh && last);
            tcp.cwr &= index == 0;
        }
        if let TransportHeader::Udp(udp) = &mut transport {
            udp.length = 8 + chunk.len() as u16;
        }
        let l4_bytes = transport.header_len() + chunk.len();
        let mut bytes = Vec::new();
        headers.link.clone().expect("Ethernet").write(&mut bytes).expect("fits");
        match headers.net.clone().expect("IP") {
            etherparse::NetHeaders::Ipv4(mut ip, _) => {
                ip.identification = ip.identification.wrapping_add(index as u16);
                ip.set_payload_len(l4_bytes).expect("fits");
                ip.header_checksum = ip.calc_header_checksum();
                transport.update_checksum_ipv4(&ip, chunk).expect("fits");
                ip.write_raw(&mut bytes).expect("fits");
            }
            etherparse::NetHeaders::Ipv6(mut ip, extensions) => {
                let first = ip.next_header;
                ip.set_payload_length(l4_bytes + extensions.header_len()).expect("fits");
                transport.update_checksum_ipv6(&ip, chunk).expect("fits");
                ip.write(&mut bytes).expect("fits");
                extensions.write(&mut bytes, first).expect("fits");
            }
            other => panic!("not IP: {other:?}"),
        }
        transport.write(&mut bytes).expect("fits");
        bytes.extend_from_slice(chunk);
        out.push(bytes);
        offset += chunk.len();
    }
    out
}

/// Multiples of four, as the options of IPv4 and TCP are.
fn options() -> impl Strategy<Value = Vec<u8>> {
    (0usize..=10).prop_flat_map(|words| prop::collection::vec(1u8..=1, words * 4))
}

proptest! {
    #[test]
    fn tcp_segments_equal_the_naive_ones(
        id in any::<u16>(),
        (ip_options, tcp_options) in (options(), options()),
        (sequence, flags) in any::<(u32, u8)>(),
        length in 0usize..6000,
        gso_size in 1u16..3000,
    ) {
        // A thousand segments show what ten thousand would.
        let gso_size = gso_size.max(length as u16 / 1000);
        let tcp = tcp_header(sequence, flags, &tcp_options);
        let v4 = tcp_v4(id, &ip_options, &tcp, length);
        prop_assert_eq!(segments(&v4, gso_size), naive(&v4, gso_size));
        let v6 = tcp_v6(&tcp, length);
        prop_assert_eq!(segments(&v6, gso_size), naive(&v6, gso_size));
    }

    #[test]
    fn udp_segments_equal_the_naive_ones(
        id in any::<u16>(), length in 0usize..6000, gso_size in 1u16..3000,
    ) {
        let gso_size = gso_size.max(length as u16 / 1000);
        prop_assert_eq!(segments(&udp_v4(id, length), gso_size),
            naive(&udp_v4(id, length), gso_size));
        prop_assert_eq!(segments(&udp_v6(length), gso_size),
            naive(&udp_v6(length), gso_size));
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn arbitrary_bytes_never_panic(
        mut header in prop::collection::vec(any::<u8>(), 0..300),
        first in prop::sample::select(vec![0x45u8, 0x45, 0x46, 0x60, 0x60]),
        protocol in prop::sample::select(vec![6u8, 6, 6, 17, 0, 43, 60]),
        l3_offset in 0usize..40,
        l4_from_l3 in prop::sample::select(vec![0usize, 20, 20, 24, 40, 40, 48, 139]),
        gso_size in 0u16..200,
        payload_bytes in 0usize..3000,
        repair in any::<bool>(),
    ) {
        if repair && header.len() > l3_offset + 40 {
            let ip = &mut header[l3_offset..];
            ip[0] = first;
            // The IPv6 next header, or IPv4's fragment flags.
            ip[6] = if first >> 4 == 6 { protocol } else { 0 };
            (ip[7], ip[9]) = (0, protocol);
            let field = payload_bytes as u16 + 20;
            ip[2..4].copy_from_slice(&(field + 20).to_be_bytes());
            ip[4..6].copy_from_slice(&field.to_be_bytes());
        }
        let l4_offset = l3_offset + l4_from_l3;
        if let (true, Some(tcp)) = (repair, header.get_mut(l4_offset..l4_offset + 20)) {
            tcp[12] = 0x50;
        }
        let packet =
            SuperPacket { header: &header, l3_offset, l4_offset, gso_size, payload_bytes };
        if let Ok(mut segmenter) = Segmenter::new(packet) {
            let mut out = [0; HEADER_BYTES_MAX];
            let mut sent = 0;
            while let Some(segment) = segmenter.next(&mut out).expect("room") {
                prop_assert_eq!(segment.payload_offset, sent);
                sent += segment.payload_bytes;
            }
            prop_assert_eq!(sent, payload_bytes);
        }
    }
}

#[test]
fn the_largest_super_packet_of_one_byte_segments_wraps_identification_and_sequence() {
    let tcp = tcp_header(u32::MAX - 10, FIN | PSH | CWR, &[]);
    let packet = tcp_v4(65_000, &[], &tcp, 65_535 - 40);
    assert_eq!(segments(&packet, 1), naive(&packet, 1));
    assert_eq!(packet.segmenter(1).expect("good").segments(), 65_495);
}

#[test]
fn a_partial_checksum_is_the_folded_pseudo_header_sum_of_the_segment() {
    let packet = tcp_v4(1, &[], &tcp_header(1, 0, &[]), 3000);
    let mut segmenter = packet.segmenter(1400).expect("good");
    let mut header = [0; HEADER_BYTES_MAX];
    for payload_bytes in [1400, 1400, 200] {
        segmenter.next(&mut header).expect("room").expect("one more");
        let expected = checksum::pseudo_header_v4(V4.0, V4.1, 6, 20 + payload_bytes).fold();
        assert_eq!(header[50..52], expected.to_be_bytes());
    }
    let packet = udp_v6(3000);
    let mut segmenter = packet.segmenter(2000).expect("good");
    for payload_bytes in [2000, 1000] {
        segmenter.next(&mut header).expect("room").expect("one more");
        let expected = checksum::pseudo_header_v6(V6.0, V6.1, 17, 8 + payload_bytes).fold();
        assert_eq!(header[60..62], expected.to_be_bytes());
    }
    assert_eq!(segmenter.next(&mut header), Ok(None));
    assert_eq!(segmenter.next(&mut header), Ok(None));
}

#[test]
fn the_checksum_of_the_super_packet_does_not_matter() {
    let complete = tcp_v4(1, &[], &tcp_header(1, 0, &[]), 3000);
    let mut partial = complete.clone();
    partial.bytes[50..52].copy_from_slice(&[0x12, 0x34]);
    assert_eq!(segments(&partial, 1000), segments(&complete, 1000));
}

#[test]
fn udp_without_checksum_stays_without() {
    for mut packet in [udp_v4(1, 3000), udp_v6(3000)] {
        let check = packet.l4_offset + 6;
        packet.bytes[check..check + 2].fill(0);
        for segment in segments(&packet, 1000) {
            assert_eq!(segment[check..check + 2], [0, 0]);
        }
    }
}

#[test]
fn a_vlan_tag_moves_every_header_and_is_copied_to_every_segment() {
    let tcp = tcp_header(1, PSH, &[]);
    for plain in [tcp_v4(1, &[], &tcp, 3000), tcp_v6(&tcp, 3000), udp_v4(1, 3000), udp_v6(3000)] {
        let tagged = |bytes: &[u8]| [&bytes[..12], &[0x81, 0, 0, 5], &bytes[12..]].concat();
        let bytes = tagged(&plain.bytes);
        let mut segmenter = Segmenter::new(SuperPacket {
            header: &bytes,
            l3_offset: L3 + 4,
            l4_offset: plain.l4_offset + 4,
            gso_size: 1400,
            payload_bytes: 3000,
        })
        .expect("good");
        let mut header = [0; HEADER_BYTES_MAX];
        for expected in segments(&plain, 1400) {
            let segment = segmenter.next(&mut header).expect("room").expect("one more");
            let payload = &plain.payload()[segment.payload_offset..][..segment.payload_bytes];
            let header = &header[..segment.header_bytes];
            let written = complete(header, payload, plain.l4_offset + 4);
            assert_eq!(written, tagged(&expected));
        }
    }
}

/// An IPv6 TCP super-packet with these bytes between the fixed header and TCP.
fn with_extensions(first: u8, extensions: &[u8]) -> Super {
    let plain = tcp_v6(&tcp_header(5, PSH, &[]), 3000);
    let mut bytes = plain.bytes;
    bytes.splice(54..54, extensions.iter().copied());
    let length = (bytes.len() - 54) as u16;
    bytes[18..20].copy_from_slice(&length.to_be_bytes());
    bytes[20] = first;
    Super::new(bytes, 54 + extensions.len(), 20)
}

#[test]
fn ipv6_extension_headers_are_copied_to_every_segment() {
    let hop_by_hop = [60, 0, 1, 4, 0, 0, 0, 0];
    let destination = [43, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let routed = [6, 0, 4, 0, 0, 0, 0, 0];
    let packet = with_extensions(0, &[&hop_by_hop[..], &destination, &routed].concat());
    let cut = segments(&packet, 1200);
    assert_eq!(cut.len(), 3);
    for segment in &cut {
        assert_eq!(segment[54..86], packet.bytes[54..86]);
        let l4 = &segment[86..];
        let pseudo_header = checksum::pseudo_header_v6(V6.0, V6.1, 6, l4.len() as u32);
        assert_eq!(pseudo_header.add_bytes(l4).checksum(), 0);
        let length = u16::from_be_bytes([segment[18], segment[19]]);
        assert_eq!(usize::from(length), segment.len() - 54);
    }
}

#[test]
fn ipv6_headers_that_cannot_be_copied_are_refused() {
    let unfinished_route = [6, 0, 4, 1, 0, 0, 0, 0];
    let fragment = [6, 0, 0, 1, 0, 0, 0, 9];
    let authentication = [6, 0, 0, 0, 0, 0, 0, 9];
    for (first, header) in [(43, unfinished_route), (44, fragment), (51, authentication)] {
        let refused = with_extensions(first, &header).segmenter(1200);
        assert_eq!(refused.map(|_| ()), Err(SegmentError::Layout));
    }
    // Longer than the way to the L4 offset.
    let refused = with_extensions(0, &[6, 1, 0, 0, 0, 0, 0, 0]).segmenter(1200);
    assert_eq!(refused.map(|_| ()), Err(SegmentError::Layout));
    let next = |index| if index == 29 { 6 } else { 60 };
    let many: Vec<u8> = (0..30).flat_map(|index| [next(index), 0, 1, 4, 0, 0, 0, 0]).collect();
    let refused = with_extensions(0, &many).segmenter(1200);
    assert_eq!(refused.map(|_| ()), Err(SegmentError::HeaderTooLong));
}

/// The error for a good TCP super-packet after a change to what is told about it.
fn refusal(change: impl FnOnce(&mut Vec<u8>, &mut SuperPacket<'static>)) -> SegmentError {
    let good = tcp_v4(1, &[], &tcp_header(1, 0, &[]), 3000);
    let mut header = good.bytes[..good.header_bytes].to_vec();
    let mut told = SuperPacket {
        header: &[],
        l3_offset: L3,
        l4_offset: good.l4_offset,
        gso_size: 1400,
        payload_bytes: 3000,
    };
    change(&mut header, &mut told);
    Segmenter::new(SuperPacket { header: &header, ..told }).map(|_| ()).expect_err("refused")
}

#[test]
fn a_super_packet_that_contradicts_itself_is_refused() {
    assert_eq!(refusal(|_, told| told.gso_size = 0), SegmentError::ZeroSize);
    assert_eq!(refusal(|header, _| header.truncate(53)), SegmentError::TooShort);
    assert_eq!(refusal(|header, _| header.clear()), SegmentError::TooShort);
    assert_eq!(refusal(|_, told| told.l3_offset = usize::MAX), SegmentError::TooShort);
    assert_eq!(refusal(|_, told| told.l4_offset = usize::MAX), SegmentError::Layout);
    assert_eq!(refusal(|_, told| told.l4_offset = 0), SegmentError::Layout);
    assert_eq!(refusal(|_, told| told.l4_offset = 38), SegmentError::Layout);
    assert_eq!(refusal(|header, _| header[L3] = 0x55), SegmentError::Layout);
    assert_eq!(refusal(|header, _| header[L3] = 0x44), SegmentError::Layout);
    assert_eq!(refusal(|header, _| header[46] = 0x40), SegmentError::Layout);
    assert_eq!(refusal(|header, _| header[46] = 0x60), SegmentError::TooShort);
    assert_eq!(refusal(|header, _| header[L3 + 6] |= 0x20), SegmentError::Fragment);
    assert_eq!(refusal(|header, _| header[L3 + 7] |= 1), SegmentError::Fragment);
    assert_eq!(refusal(|header, _| header[L3 + 9] = 1), SegmentError::Protocol(1));
    let length = SegmentError::Length { field: 3040, actual: 3041 };
    assert_eq!(refusal(|_, told| told.payload_bytes = 3001), length);
    let mut udp = udp_v4(1, 3000);
    udp.bytes[39] -= 1;
    let refused = udp.segmenter(1400).map(|_| ());
    assert_eq!(refused, Err(SegmentError::Length { field: 3007, actual: 3008 }));
}

#[test]
fn an_output_one_byte_too_short_is_refused_and_loses_no_segment() {
    let packet = tcp_v4(1, &[], &tcp_header(1, 0, &[]), 2000);
    let mut segmenter = packet.segmenter(1400).expect("good");
    let mut header = [0; 54];
    let refused = segmenter.next(&mut header[..53]);
    assert_eq!(refused, Err(SegmentError::NoRoom { need: 54, have: 53 }));
    let first = segmenter.next(&mut header).expect("room").expect("the first");
    assert_eq!(first, Segment { header_bytes: 54, payload_offset: 0, payload_bytes: 1400 });
}
