//! A router that acts on no option: what Viaduct does where Linux acts on one.

use super::Case;
use crate::differential::facts::{self, ETHERNET, Fragment, Ip, ones_complement};
use crate::differential::outcome::{Arrival, IcmpError, Outcome};
use crate::differential::plan::{MTU, Place};

/// What comes of a packet that is not refused, when no option is acted on.
pub(super) fn plain(case: &Case<'_>, ip: &Ip<'_>) -> Outcome {
    let plan = case.plan;
    let Some(place) = plan.place_of(ip.destination) else {
        return refused(ip, if ip.version == 4 { (3, 1) } else { (1, 3) }, 0);
    };
    let link = plan.link(place);
    let head = [&link.far[..], &link.near, &case.facts.ether_type.to_be_bytes()].concat();
    if place == Place::Node {
        return vec![Arrival::Packet(place, [&head, ip.bytes].concat())];
    }
    if ip.hop_limit <= 1 {
        return refused(ip, if ip.version == 4 { (11, 0) } else { (3, 0) }, 0);
    }
    if ip.dont_fragment && ip.bytes.len() > MTU {
        return refused(ip, if ip.version == 4 { (3, 4) } else { (2, 0) }, MTU as u32);
    }
    vec![Arrival::Packet(place, hop_done(&[&head, ip.bytes].concat()))]
}

/// An ICMP error to the sender, if there may be one.
fn refused(ip: &Ip<'_>, (kind, code): (u8, u8), rest: u32) -> Outcome {
    if !may_be_told(ip) {
        return Outcome::new();
    }
    // RFC 1812 §4.3.2.3 and RFC 4443 §2.4 (c), less the error's own headers.
    let quoted = if ip.version == 4 { 576 - 28 } else { 1280 - 48 };
    let quote = ip.bytes[..quoted.min(ip.bytes.len())].to_vec();
    let place = Place::PodA;
    vec![Arrival::Error(IcmpError { place, kind, code, rest, quote, fault: None })]
}

/// RFC 1812 §4.3.2.7 and RFC 4443 §2.4 (e), for a packet with honest addresses: no error about a
/// later fragment, nor about ICMP that is no query (RFC 792, 950, 1256, 8335; 4443 §2.1).
fn may_be_told(ip: &Ip<'_>) -> bool {
    let harmless = match (ip.version, ip.icmp_type()) {
        (4, Some(kind)) => matches!(kind, 0 | 8..=10 | 13..=18 | 42 | 43),
        (_, Some(kind)) => kind >= 128 && kind != 137,
        (_, None) => true,
    };
    harmless && ip.fragment_offset == 0
}

/// The frame one hop on.
pub(super) fn hop_done(frame: &[u8]) -> Vec<u8> {
    with_hop_limit(frame, |limit| limit.wrapping_sub(1))
}

/// The frame one hop before.
pub(super) fn hop_undone(frame: &[u8]) -> Vec<u8> {
    with_hop_limit(frame, |limit| limit.wrapping_add(1))
}

fn with_hop_limit(frame: &[u8], change: impl Fn(u8) -> u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let packet = &mut frame[ETHERNET..];
    if packet[0] >> 4 == 6 {
        packet[7] = change(packet[7]);
        return frame;
    }
    packet[8] = change(packet[8]);
    let header = usize::from(packet[0] & 0xf) * 4;
    packet[10..12].fill(0);
    let sum = !ones_complement(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The frame with the checksum of all bytes from `start` at `field`, which holds part of it. A
/// checksum of zero is written in its other form if it is UDP's (RFC 768), by Linux if it is any
/// (net/core/dev.c, `skb_checksum_help`).
pub(super) fn complete(frame: &[u8], start: usize, field: usize, by_linux: bool) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let is_udp = field - start == 6;
    let sum = match !ones_complement(&frame[start..]) {
        0 if is_udp || by_linux => 0xffff,
        sum => sum,
    };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The payload of a datagram from its IPv4 fragments, if they follow on each other.
pub(super) fn reassembled(fragments: &Outcome) -> Option<Vec<u8>> {
    let mut parts = Vec::new();
    for fragment in fragments {
        let Arrival::Packet(_, frame) = fragment else { return None };
        let ip = facts::of(frame)?.ip.filter(|ip| ip.fragment != Fragment::Whole)?;
        parts.push((ip.fragment_offset, ip.upper.to_vec()));
    }
    parts.sort();
    let mut next = parts.first()?.0;
    for (offset, part) in &parts {
        if *offset != next {
            return None;
        }
        next += part.len();
    }
    Some(parts.into_iter().flat_map(|(_, part)| part).collect())
}

/// Whether Linux acts on IPv4 options that are well formed: it fills in routes and times, refuses
/// what it cannot fill in, and clears what comes after the last option (net/ipv4/ip_options.c,
/// `__ip_options_compile`).
pub(super) fn options_act(mut options: &[u8]) -> bool {
    loop {
        options = match options {
            [0, rest @ ..] if rest.iter().any(|byte| *byte != 0) => return true,
            [] | [0, ..] => return false,
            [1, rest @ ..] => rest,
            // Record route, timestamp, CIPSO, router alert.
            [7 | 68 | 134 | 148, ..] => return true,
            [_, len @ 2..=255, ..] => options.get(usize::from(*len)..).unwrap_or_default(),
            _ => return false,
        }
    }
}

/// Whether Linux acts on a hop-by-hop header: on anything that is no short padding of zeros.
pub(super) fn hop_by_hop_acts(header: &[u8]) -> bool {
    let Some(&[_, units]) = header.first_chunk() else { return true };
    let Some(mut options) = header.get(2..(usize::from(units) + 1) * 8) else { return true };
    // net/ipv6/exthdrs.c, ip6_parse_tlv: no more than seven bytes of padding in a row.
    let mut padding = 0;
    loop {
        options = match options {
            [] => return false,
            [0, rest @ ..] => {
                padding += 1;
                rest
            }
            [1, len, rest @ ..] if rest.len() >= usize::from(*len) => {
                let (pad, rest) = rest.split_at(usize::from(*len));
                padding += 2 + pad.len();
                if pad.iter().any(|byte| *byte != 0) {
                    return true;
                }
                rest
            }
            _ => return true,
        };
        if padding > 7 {
            return true;
        }
    }
}
