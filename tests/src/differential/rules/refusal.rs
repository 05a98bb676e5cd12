//! Frames that Viaduct drops and a Linux router may forward.

use std::net::IpAddr;

use super::{Case, Rule};
use crate::differential::facts::{
    Chain, ETHERNET, FIRST_FRAME, Facts, Fragment, Ip, protocol, upper_sum, word,
};
use crate::differential::plan::{Mac, Place};

/// First byte of a marker.
const MARKER: u8 = 2;
/// EtherType of a VLAN tag (IEEE 802.1Q).
const VLAN: u16 = 0x8100;

/// The rule by which Viaduct drops a frame.
pub(super) fn check(case: &Case<'_>) -> Result<(), Rule> {
    let facts = &case.facts;
    if facts.ether_type == VLAN && word(facts.frame, 14).is_some_and(|tag| tag & 0xfff == 0) {
        return Err(Rule::PriorityTag);
    }
    let Some(ip) = &facts.ip else { return Ok(()) };
    if !case.is_marked() {
        check_mac(facts, ip, case.plan.link(Place::PodA).far)?;
    }
    check_network(ip)?;
    check_transport(ip)
}

/// The program at the pod's interface replaces source MACs; only what passes it by has its own.
fn check_mac(facts: &Facts<'_>, ip: &Ip<'_>, own: Mac) -> Result<(), Rule> {
    let [first, start, offset, flags, size @ ..] = facts.from;
    if facts.from == own {
        return Ok(());
    }
    if first != MARKER {
        return Err(Rule::SpoofedMac);
    }
    let partial = flags & 1 != 0;
    let (start, offset) = (usize::from(start), usize::from(offset));
    let upper_at = ETHERNET + ip.bytes.len() - ip.upper.len();
    let outside = start < upper_at || start + offset + 2 > ETHERNET + ip.bytes.len();
    let bad = if partial { outside } else { size != [0, 0] };
    if bad { Err(Rule::BadMarker) } else { Ok(()) }
}

/// Where the checksum is that Viaduct takes for unfinished: from what byte of the frame on it
/// sums, and where it writes the sum.
pub(super) fn marked_sum(case: &Case<'_>, ip: &Ip<'_>) -> Option<(usize, usize)> {
    if case.is_marked() {
        return None;
    }
    let [first, start, offset, flags, ..] = case.facts.from;
    if first == MARKER {
        let start = usize::from(start);
        return (flags & 1 != 0).then_some((start, start + usize::from(offset)));
    }
    let offset = match ip.protocol {
        protocol::UDP => 6,
        protocol::TCP => 16,
        _ => return None,
    };
    let zeros = vec![0; ip.upper.len()];
    let pseudo_header = upper_sum(ip.source, ip.destination, ip.protocol, &zeros);
    let looks_so = ip.fragment == Fragment::Whole
        && word(ip.upper, offset) == Some(pseudo_header)
        && (ip.protocol, pseudo_header) != (protocol::UDP, 0);
    let start = ETHERNET + ip.bytes.len() - ip.upper.len();
    looks_so.then_some((start, start + offset))
}

fn check_network(ip: &Ip<'_>) -> Result<(), Rule> {
    if ip.chain != Chain::Sound {
        return Err(Rule::ExtensionHeaders);
    }
    let (link_local, reserved) = match ip.destination {
        IpAddr::V4(to) => (to.is_link_local(), matches!(to.octets()[0], 0 | 240..)),
        IpAddr::V6(to) => {
            let reserved = to.is_unspecified() || to.to_ipv4_mapped().is_some();
            (to.is_unicast_link_local(), reserved)
        }
    };
    if link_local {
        return Err(Rule::LinkLocal);
    }
    if reserved {
        return Err(Rule::Reserved);
    }
    if ip.fragment != Fragment::Whole
        && (ip.fragment_len == 0 || ip.fragment_offset + ip.fragment_len > 0xffff)
    {
        return Err(Rule::FragmentBounds);
    }
    check_options(ip.options)
}

/// RFC 791 §3.1: every option but the two single bytes has its length.
fn check_options(mut options: &[u8]) -> Result<(), Rule> {
    loop {
        options = match options {
            [] | [0, ..] => return Ok(()),
            [1, rest @ ..] => rest,
            [131 | 137, ..] => return Err(Rule::BadOptions),
            [_, len @ 2..=255, ..] => options.get(usize::from(*len)..).ok_or(Rule::BadOptions)?,
            _ => return Err(Rule::BadOptions),
        }
    }
}

fn check_transport(ip: &Ip<'_>) -> Result<(), Rule> {
    if ip.fragment == Fragment::Later {
        return Ok(());
    }
    let least = match ip.protocol {
        protocol::TCP => 20,
        protocol::UDP => 8,
        own if own == ip.icmp() => 8,
        protocol::SCTP => 12,
        _ => 0,
    };
    let upper_at = ETHERNET + ip.bytes.len() - ip.upper.len();
    if ip.upper.len() < least || upper_at + least > FIRST_FRAME {
        return Err(Rule::UpperTooShort);
    }
    if ip.protocol == protocol::UDP && ip.fragment == Fragment::Whole {
        let len = word(ip.upper, 4).map_or(0, usize::from);
        if len < 8 || len > ip.upper.len() {
            return Err(Rule::UdpLength);
        }
    }
    match (ip.version, ip.icmp_type()) {
        (6, Some(130..=137 | 143)) => Err(Rule::LinkControl),
        (4, Some(5)) => Err(Rule::Redirect),
        _ => Ok(()),
    }
}
