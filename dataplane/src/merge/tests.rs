//! Merging against its inverse, [`Segmenter`], and every bit of the headers that must not differ.
//! What is put together is written and summed by another library.

use etherparse::{IpHeaders, Ipv4Header, PacketBuilder, TcpHeader};
use proptest::prelude::*;

use super::*;
use crate::parse::{Parsed, headers};
use crate::segment::{HEADER_BYTES_MAX, Segmenter, SuperPacket};

/// No-operation twice, then timestamps (RFC 7323 §3.2): what Linux sends in every segment.
const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 4, 7, 0, 0, 9, 9];

const FLAGS: usize = 13;

/// What a sender sends.
#[derive(Clone, Debug)]
struct Stream {
    v6: bool,
    id: u16,
    sequence: u32,
    options: Vec<u8>,
    pushed: bool,
    payload: Vec<u8>,
}

impl Stream {
    fn new(v6: bool, payload_bytes: usize) -> Stream {
        Stream {
            v6,
            id: 0x1234,
            sequence: 1000,
            options: TIMESTAMPS.to_vec(),
            pushed: false,
            payload: (0..payload_bytes).map(|at| (at * 31 % 251) as u8).collect(),
        }
    }

    fn l4_offset(&self) -> usize {
        ETHERNET_BYTES + if self.v6 { IPV6_BYTES } else { IPV4_BYTES }
    }

    fn header_bytes(&self) -> usize {
        self.l4_offset() + TCP_BYTES + self.options.len()
    }

    /// As one packet, its checksum complete.
    fn whole(&self) -> Vec<u8> {
        let mut tcp = TcpHeader::new(4000, 443, self.sequence, 7000);
        tcp.set_options_raw(&self.options).expect("a multiple of 4, at most 40");
        (tcp.acknowledgment_number, tcp.ack, tcp.psh) = (99, true, self.pushed);
        let ethernet = PacketBuilder::ethernet2([10; 6], [12; 6]);
        let step = if self.v6 {
            ethernet.ipv6([0xfd; 16], [0x20; 16], 60)
        } else {
            let ip = Ipv4Header {
                identification: self.id,
                dont_fragment: true,
                time_to_live: 60,
                source: [10, 244, 2, 9],
                destination: [10, 244, 1, 7],
                ..Default::default()
            };
            ethernet.ip(IpHeaders::Ipv4(ip, Default::default()))
        };
        let mut bytes = Vec::new();
        step.tcp_header(tcp).write(&mut bytes, &self.payload).expect("fits");
        bytes
    }

    /// As it comes off a wire: each segment with all sums complete.
    fn segments(&self, size: u16) -> Vec<Vec<u8>> {
        let whole = self.whole();
        let mut segmenter = Segmenter::new(SuperPacket {
            header: &whole[..self.header_bytes()],
            l3_offset: ETHERNET_BYTES,
            l4_offset: self.l4_offset(),
            gso_size: size,
            payload_bytes: self.payload.len(),
        })
        .expect("a super-packet");
        let mut out = Vec::new();
        let mut header = [0; HEADER_BYTES_MAX];
        while let Some(segment) = segmenter.next(&mut header).expect("room") {
            let payload = &self.payload[segment.payload_offset..][..segment.payload_bytes];
            let header = &mut header[..segment.header_bytes];
            out.push(self.completed([header, payload].concat()));
        }
        out
    }

    /// The packet with its checksum, whose field holds the sum of the pseudo-header.
    fn completed(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let check = Sum::default().add_bytes(&bytes[self.l4_offset()..]).checksum();
        bytes[self.l4_offset() + 16..][..2].copy_from_slice(&check.to_be_bytes());
        bytes
    }

    /// The first two segments of many.
    fn two(&self) -> [Vec<u8>; 2] {
        let [first, second, ..] = &self.segments(100)[..] else { panic!("a longer stream") };
        [first.clone(), second.clone()]
    }
}

fn parsed(bytes: &[u8]) -> Option<Headers> {
    match headers(bytes, bytes.len()) {
        Ok(Parsed::Ip(headers)) => Some(headers),
        _ => None,
    }
}

fn unit(bytes: &[u8]) -> Option<Unit> {
    Unit::of_packet(bytes, &parsed(bytes)?, &Offload::default())
}

/// Whether `next` joins `first`.
fn joins(first: &[u8], next: &[u8]) -> bool {
    let first_unit = unit(first).expect("a segment with payload");
    unit(next).is_some_and(|unit| first_unit.continued_by(first, &unit, next))
}

/// A packet whose IPv4 header has its checksum put right.
fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes[ETHERNET_BYTES] >> 4 == 4 {
        put(&mut bytes, ETHERNET_BYTES + 10, u16::to_be_bytes(0));
        let header = ETHERNET_BYTES..ETHERNET_BYTES + usize::from(bytes[ETHERNET_BYTES] & 15) * 4;
        let check = bytes.get(header).map_or(0, naive_sum);
        put(&mut bytes, ETHERNET_BYTES + 10, u16::to_be_bytes(!check));
    }
    bytes
}

/// RFC 1071 as it is written.
fn naive_sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |&low| u64::from(low)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A packet with another byte; its IPv4 header stays right.
fn with(bytes: &[u8], at: usize, change: impl FnOnce(u8) -> u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] = change(bytes[at]);
    summed(bytes)
}

/// What the segments become: the headers, what is left to do, and the payload.
fn merged(segments: &[Vec<u8>]) -> (Vec<u8>, Offload, Vec<u8>) {
    let first = &segments[0];
    let mut whole = unit(first).expect("the first segment is one");
    let mut head = first[..whole.header_bytes()].to_vec();
    let mut payload = first[whole.header_bytes()..].to_vec();
    for segment in &segments[1..] {
        assert!(!whole.is_complete(), "only the last is pushed");
        let next = unit(segment).expect("a segment");
        assert!(next.verifies(Sum::default().add_bytes(&segment[next.l4_offset()..])));
        assert!(whole.continued_by(first, &next, segment), "{segment:02x?}");
        whole.extend(&next);
        payload.extend(&segment[next.header_bytes()..]);
    }
    assert_eq!(whole.ip_bytes(), head.len() - ETHERNET_BYTES + payload.len());
    let offload = whole.write_headers(&mut head);
    (head, offload, payload)
}

fn stream() -> impl Strategy<Value = Stream> {
    let sequence = prop_oneof![any::<u32>(), u32::MAX - 60_000..=u32::MAX];
    let options =
        prop_oneof![Just(TIMESTAMPS.to_vec()), (0..=10usize).prop_map(|words| vec![1; 4 * words]),];
    let payload = prop_oneof![1..4000usize, 4000..65_400usize];
    (any::<bool>(), any::<u16>(), sequence, options, any::<bool>(), payload).prop_map(
        |(v6, id, sequence, options, pushed, payload)| {
            let whole_bytes = if v6 { IPV6_BYTES } else { IPV4_BYTES } + 60;
            let payload = payload.min(usize::from(u16::MAX) - whole_bytes);
            Stream { id, sequence, options, pushed, ..Stream::new(v6, payload) }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_was_cut_is_merged_to_what_it_was_cut_from(
        stream in stream(), size in 1..9000u16, some in 0..100usize,
    ) {
        let size = size.max(stream.payload.len().div_ceil(64) as u16);
        let segments = stream.segments(size);
        let (head, offload, payload) = merged(&segments);
        let (start, field) = (stream.l4_offset(), stream.l4_offset() + 16);
        let mut expected = stream.whole();
        expected.truncate(stream.header_bytes());
        // The field has the sum over the addresses, the protocol and the length.
        let ip = ETHERNET_BYTES + if stream.v6 { 8 } else { 12 };
        let l4_bytes = (stream.header_bytes() - start + stream.payload.len()) as u16;
        let words = [[0, protocol::TCP], l4_bytes.to_be_bytes()].concat();
        let pseudo = naive_sum(&[&expected[ip..start], &words].concat());
        expected[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
        prop_assert_eq!(head, expected);
        prop_assert_eq!(&payload, &stream.payload);
        let partial = Partial { start: start as u16, offset: 16 };
        prop_assert_eq!(offload, Offload { partial: Some(partial), ..Offload::default() });
        // So it is of any run of the segments.
        let from = some % segments.len();
        let (_, _, payload) = merged(&segments[from..]);
        prop_assert_eq!(&payload, &stream.payload[from * usize::from(size)..]);
    }

    #[test]
    fn a_segment_that_was_damaged_does_not_verify(
        stream in stream(), at in any::<prop::sample::Index>(), bit in 0..8u8,
    ) {
        let mut bytes = stream.whole();
        let unit = unit(&bytes).expect("a segment");
        let l4 = unit.l4_offset();
        let verifies = |bytes: &[u8]| unit.verifies(Sum::default().add_bytes(&bytes[l4..]));
        prop_assert!(verifies(&bytes));
        let at = l4 + at.index(bytes.len() - l4);
        bytes[at] ^= 1 << bit;
        prop_assert!(!verifies(&bytes));
    }

    #[test]
    fn no_bytes_are_read_beyond_their_end(
        v6 in any::<bool>(), shown in 0..200usize, offset in any::<u8>(), flags in any::<u8>(),
    ) {
        let stream = Stream::new(v6, 60);
        let mut bytes = stream.whole();
        let headers = parsed(&bytes).expect("a packet");
        bytes[headers.l4_offset + 12] = offset;
        bytes[headers.l4_offset + FLAGS] = flags;
        let head = &bytes[..shown.min(bytes.len())];
        let whole = stream.whole();
        if let Some(next) = Unit::of_packet(head, &headers, &Offload::default()) {
            prop_assert!(next.header_bytes() <= head.len());
            prop_assert!(next.ip_bytes() == headers.ip_len());
            // Whatever it is: it is looked at, and continues no segment of the same number.
            let first = unit(&whole).expect("a segment");
            prop_assert!(!first.continued_by(&whole, &next, head));
            prop_assert!(!next.continued_by(head, &first, &whole));
        }
    }
}

/// Bits of a segment's headers in which it may differ from the one before: identification,
/// checksums and PSH. Its sequence number is the next; its length is its own.
fn may_differ(stream: &Stream, at: usize, bit: u8) -> bool {
    let l4 = stream.l4_offset();
    let own_lengths = if stream.v6 { 18..20 } else { 16..18 };
    own_lengths.contains(&at)
        || (!stream.v6 && (18..20).contains(&at))
        || (!stream.v6 && (24..26).contains(&at))
        || (l4 + 16..l4 + 18).contains(&at)
        || (at == l4 + FLAGS && 1 << bit == PSH)
}

#[test]
fn a_segment_that_differs_in_any_other_bit_of_its_headers_does_not_join() {
    for v6 in [false, true] {
        let stream = Stream::new(v6, 500);
        let [first, second] = stream.two();
        assert!(joins(&first, &second));
        let mut refused = 0;
        for at in ETHERNET_BYTES..stream.header_bytes() {
            for bit in (0..8).filter(|&bit| !may_differ(&stream, at, bit)) {
                let other = with(&second, at, |byte| byte ^ 1 << bit);
                assert!(!joins(&first, &other), "v6 {v6}: byte {at}, bit {bit}");
                refused += 1;
            }
        }
        let free = if v6 { 2 + 2 } else { 2 + 2 + 2 + 2 };
        assert_eq!(refused, 8 * (stream.header_bytes() - ETHERNET_BYTES - free) - 1);
    }
}

#[test]
fn identification_checksums_and_push_may_differ() {
    for v6 in [false, true] {
        let stream = Stream::new(v6, 500);
        let [first, second] = stream.two();
        let l4 = stream.l4_offset();
        for (at, bit) in (ETHERNET_BYTES..stream.header_bytes())
            .flat_map(|at| (0..8).map(move |bit| (at, bit)))
            .filter(|&(at, bit)| may_differ(&stream, at, bit))
        {
            let is_length = at < 20 && (v6 || at < 18);
            if !is_length {
                let other = with(&second, at, |byte| byte ^ 1 << bit);
                assert!(joins(&first, &other), "v6 {v6}: byte {at}, bit {bit}");
            }
        }
        // A shorter one may follow, and a longer one.
        let [_, _, third, ..] = &stream.segments(40)[..] else { panic!("several") };
        let short = &stream.segments(80)[0];
        assert!(joins(short, third));
        let long = &stream.segments(400)[1];
        let [_, _, _, fourth, ..] = &stream.segments(100)[..] else { panic!("several") };
        assert!(!joins(fourth, &stream.segments(100)[3]), "itself");
        assert!(joins(fourth, long));
        // What was pushed is complete.
        let pushed = with(&first, l4 + FLAGS, |flags| flags | PSH);
        assert!(unit(&pushed).expect("a segment").is_complete());
        assert!(!unit(&first).expect("a segment").is_complete());
        assert!(!joins(&pushed, &second));
    }
}

#[test]
fn a_segment_joins_only_where_the_other_ends() {
    for v6 in [false, true] {
        let all = Stream::new(v6, 500).segments(100);
        for (first, a) in all.iter().enumerate() {
            for (next, b) in all.iter().enumerate() {
                assert_eq!(joins(a, b), next == first + 1, "{next} behind {first}");
            }
        }
    }
}

#[test]
fn a_segment_with_another_flag_than_ack_and_push_is_no_unit() {
    for v6 in [false, true] {
        let stream = Stream::new(v6, 100);
        let whole = stream.whole();
        for flags in 0..=255u8 {
            let other = with(&whole, stream.l4_offset() + FLAGS, |_| flags);
            let ordinary = flags == ACK || flags == ACK | PSH;
            assert_eq!(unit(&other).is_some(), ordinary, "{flags:#04x}");
        }
        // Accurate ECN (RFC 9768), and what is reserved.
        for bit in 0..4 {
            let other = with(&whole, stream.l4_offset() + 12, |byte| byte | 1 << bit);
            assert!(unit(&other).is_none(), "bit {bit}");
        }
    }
}

#[test]
fn a_segment_without_payload_is_no_unit_and_one_with_a_byte_is() {
    for v6 in [false, true] {
        assert!(unit(&Stream::new(v6, 0).whole()).is_none());
        assert_eq!(unit(&Stream::new(v6, 1).whole()).expect("a segment").payload_bytes, 1);
        // The header says that it is longer than all there is, or shorter than a header.
        let stream = Stream::new(v6, 8);
        let at = stream.l4_offset() + 12;
        for (words, is_unit) in [(4, false), (5, true), (8, true), (10, false), (15, false)] {
            let other = with(&stream.whole(), at, |_| words << 4);
            assert_eq!(unit(&other).is_some(), is_unit, "{words} words");
        }
    }
}

#[test]
fn a_segment_whose_checksum_is_left_to_do_is_no_unit() {
    let bytes = Stream::new(false, 100).whole();
    let headers = parsed(&bytes).expect("a packet");
    let partial = Some(Partial { start: 34, offset: 16 });
    for offload in [
        Offload { partial, ..Offload::default() },
        Offload { gso_size: 1448, ..Offload::default() },
        Offload { encapsulated: true, ..Offload::default() },
        Offload { marked: true, ..Offload::default() },
    ] {
        assert!(Unit::of_packet(&bytes, &headers, &offload).is_none(), "{offload:?}");
    }
    assert!(Unit::of_packet(&bytes, &headers, &Offload::default()).is_some());
}

#[test]
fn only_tcp_right_behind_an_ip_header_is_plain() {
    let v4 = Stream::new(false, 100).whole();
    let v6 = Stream::new(true, 100).whole();
    for whole in [&v4, &v6] {
        assert!(is_plain(&parsed(whole).expect("a packet")));
        assert!(unit(whole).is_some());
    }
    let v4_header = |change: fn(&mut Vec<u8>)| {
        let mut bytes = v4.clone();
        change(&mut bytes);
        summed(bytes)
    };
    let v6_extended = |number: u8, bytes: [u8; 8]| {
        let mut packet = [&v6[..54], &bytes, &v6[54..]].concat();
        packet[54] = std::mem::replace(&mut packet[20], number);
        let len = word(&packet, 18) + 8;
        put(&mut packet, 18, u16::to_be_bytes(len));
        packet
    };
    let others = [
        ("UDP", v4_header(|bytes| bytes[23] = protocol::UDP)),
        ("more fragments", v4_header(|bytes| bytes[20] |= 0x20)),
        ("a later fragment", v4_header(|bytes| bytes[21] = 1)),
        ("IPv4 options", {
            let mut bytes = [&v4[..34], &[1; 4], &v4[34..]].concat();
            bytes[14] = 0x46;
            let len = word(&bytes, 16) + 4;
            put(&mut bytes, 16, u16::to_be_bytes(len));
            summed(bytes)
        }),
        ("hop by hop", v6_extended(0, [0, 0, 1, 4, 0, 0, 0, 0])),
        ("destination options", v6_extended(60, [0, 0, 1, 4, 0, 0, 0, 0])),
        ("a first fragment", v6_extended(44, [0, 0, 0, 1, 0, 0, 0, 7])),
        ("an atomic fragment", v6_extended(44, [0, 0, 0, 0, 0, 0, 0, 7])),
    ];
    for (name, bytes) in others {
        if name == "UDP" {
            // Its length would have to be right to be parsed.
            let mut headers = parsed(&v4).expect("a packet");
            headers.protocol = protocol::UDP;
            assert!(!is_plain(&headers));
            assert!(Unit::of_packet(&bytes, &headers, &Offload::default()).is_none());
            continue;
        }
        assert!(!is_plain(&parsed(&bytes).expect(name)), "{name}");
        assert!(unit(&bytes).is_none(), "{name}");
    }
}

#[test]
fn a_flow_is_two_addresses_and_two_ports() {
    for v6 in [false, true] {
        let stream = Stream::new(v6, 100);
        let (whole, l4) = (stream.whole(), stream.l4_offset());
        let addresses = ETHERNET_BYTES + if v6 { 8 } else { 12 };
        for at in 0..stream.header_bytes() {
            let other = with(&whole, at, |byte| byte ^ 0x10);
            let of_flow = !(addresses..l4 + 4).contains(&at);
            assert_eq!(same_flow(&whole, &other, l4), of_flow, "v6 {v6}: byte {at}");
        }
        assert!(!same_flow(&whole, &whole[..l4 + 3], l4), "cut off");
    }
}
