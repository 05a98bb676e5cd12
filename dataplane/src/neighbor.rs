//! Answers a pod that asks for its gateway's link address.
//!
//! Every pod has the same gateways, 169.254.1.1 and fe80::1, and the worker that serves its port
//! answers for them (RFC 826, RFC 4861). Nothing is learned from what pods send, and nothing else
//! is answered: a question for another address, above all for the pod's own, would break its
//! duplicate address detection (RFC 5227 §2.1, RFC 4862 §5.4). Each refusal has its reason.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::Sum;
use crate::tables::{GATEWAY_V4, GATEWAY_V6};

#[cfg(test)]
mod tests;

/// Length of an ARP packet with its Ethernet header, in bytes.
pub const ARP_BYTES: usize = 42;
/// Length of a neighbor advertisement with one link address option, Ethernet and IPv6 header, in
/// bytes.
pub const ADVERTISEMENT_BYTES: usize = 86;

const ETHERNET_BYTES: usize = 14;
const IPV6_BYTES: usize = 40;
/// Type, code, checksum, flags and target of solicitation and advertisement (RFC 4861 §4.3).
const ND_BYTES: usize = 24;

const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const BROADCAST_MAC: [u8; 6] = [0xff; 6];
/// Ethernet (1), IPv4 (0x0800), address lengths 6 and 4 (RFC 826).
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];

const PROTOCOL_ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// RFC 4861 §7.1: a lower hop limit means that the packet has crossed a router.
const HOP_LIMIT: u8 = 255;
const OPTION_SOURCE_LINK_ADDRESS: u8 = 1;
const OPTION_TARGET_LINK_ADDRESS: u8 = 2;
/// Flags of an advertisement (RFC 4861 §4.4).
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// What a port may claim to be.
#[derive(Clone, Copy, Debug)]
pub struct PodIdentity<'a> {
    /// The link address assigned to the pod's interface.
    pub mac: [u8; 6],
    /// The addresses assigned to it. Its IPv6 link-local addresses need not be among them.
    pub addresses: &'a [IpAddr],
}

/// Why a neighbor packet of a pod is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NeighborDrop {
    /// Shorter than its headers or its length field say.
    #[error("the neighbor packet is cut off")]
    TooShort,
    /// Not ARP for IPv4 over Ethernet, or not ICMPv6 directly after the IPv6 header.
    #[error("not an ARP or neighbor discovery packet for Ethernet")]
    NotNeighbor,
    /// An ARP reply, an advertisement, a router solicitation or another message: nothing is
    /// learned from pods.
    #[error("neither an ARP request nor a neighbor solicitation: nothing is learned from pods")]
    NotRequest,
    /// The link or IP address of the sender is not the pod's.
    #[error("the sender's address in the neighbor packet is not the pod's own")]
    SpoofedSender,
    /// The link destination is neither the gateway nor a group.
    #[error("the neighbor packet is sent to a link address that is not the gateway's")]
    WrongReceiver,
    /// The address asked for, or the IPv6 destination, is not the gateway's.
    #[error("the neighbor packet asks for another address than the gateway's")]
    NotGateway,
    /// Duplicate address detection: nobody else has a pod's address, so nobody answers.
    #[error("a probe for a duplicate address is never answered")]
    DuplicateProbe,
    /// Hop limit below 255: it came from beyond the link.
    #[error("the hop limit of the solicitation is not 255")]
    HopLimit,
    /// ICMPv6 code other than 0.
    #[error("the code of the solicitation is not 0")]
    Code,
    /// The ICMPv6 checksum is wrong.
    #[error("the checksum of the solicitation is wrong")]
    Checksum,
    /// An option of length 0, or one that does not end inside the packet.
    #[error("an option of the solicitation has a length of 0 or is cut off")]
    Option,
    /// The output does not hold the answer.
    #[error("the output for a neighbor answer holds less than {ADVERTISEMENT_BYTES} bytes")]
    NoRoom,
}

/// Writes the ARP reply to a pod's request for [`GATEWAY_V4`] into `out` and returns its length
/// ([`ARP_BYTES`]). `packet` is the request with its Ethernet header, without VLAN tag.
///
/// A request with sender address 0.0.0.0 (an RFC 5227 probe) for the gateway is answered too, so
/// that no pod can believe the gateway's address to be free.
///
/// # Errors
/// See [`NeighborDrop`]; `out` is unchanged then.
pub fn answer_arp(
    packet: &[u8],
    pod: &PodIdentity<'_>,
    gateway_mac: [u8; 6],
    out: &mut [u8],
) -> Result<usize, NeighborDrop> {
    let packet = packet.first_chunk::<ARP_BYTES>().ok_or(NeighborDrop::TooShort)?;
    if packet[12..14] != ETHERTYPE_ARP || packet[14..20] != ARP_ETHERNET_IPV4 {
        return Err(NeighborDrop::NotNeighbor);
    }
    if packet[20..22] != ARP_REQUEST {
        return Err(NeighborDrop::NotRequest);
    }
    if packet[..6] != BROADCAST_MAC && packet[..6] != gateway_mac {
        return Err(NeighborDrop::WrongReceiver);
    }
    let sender = Ipv4Addr::new(packet[28], packet[29], packet[30], packet[31]);
    let sender_known = sender.is_unspecified() || pod.addresses.contains(&IpAddr::V4(sender));
    if packet[6..12] != pod.mac || packet[22..28] != pod.mac || !sender_known {
        return Err(NeighborDrop::SpoofedSender);
    }
    if packet[38..42] != GATEWAY_V4.octets() {
        return Err(NeighborDrop::NotGateway);
    }
    let from = ArpEnd { mac: gateway_mac, address: GATEWAY_V4 };
    let to = ArpEnd { mac: pod.mac, address: sender };
    write(out, &arp_reply(from, to))
}

/// Writes the advertisement that answers a pod's solicitation for [`GATEWAY_V6`] into `out` and
/// returns its length ([`ADVERTISEMENT_BYTES`]). `packet` is the solicitation with its Ethernet
/// header, without VLAN tag; its source MAC is not looked at, since a pod's IP packets carry a
/// hint there.
///
/// All of RFC 4861 §7.1.1 is checked. Stricter than it: the sender must be one of the pod's
/// addresses or a link-local one, the destination the gateway or its solicited-node group, a
/// source link address the pod's, and no extension header is accepted (RFC 6980 forbids the
/// fragment header; nobody sends others).
///
/// # Errors
/// See [`NeighborDrop`]; `out` is unchanged then.
pub fn answer_nd(
    packet: &[u8],
    pod: &PodIdentity<'_>,
    gateway_mac: [u8; 6],
    out: &mut [u8],
) -> Result<usize, NeighborDrop> {
    let (ethernet, ip) =
        packet.split_first_chunk::<ETHERNET_BYTES>().ok_or(NeighborDrop::TooShort)?;
    if ethernet[12..14] != ETHERTYPE_IPV6 {
        return Err(NeighborDrop::NotNeighbor);
    }
    let sender = check_solicitation(ip, pod)?;
    if ethernet[..6] != solicited_node_mac(GATEWAY_V6) && ethernet[..6] != gateway_mac {
        return Err(NeighborDrop::WrongReceiver);
    }
    let answer =
        Advertisement { dst_mac: pod.mac, mac: gateway_mac, dst: sender, target: GATEWAY_V6 };
    write(out, &answer.packet())
}

#[derive(Clone, Copy)]
struct ArpEnd {
    mac: [u8; 6],
    address: Ipv4Addr,
}

fn arp_reply(from: ArpEnd, to: ArpEnd) -> [u8; ARP_BYTES] {
    let mut packet = [0; ARP_BYTES];
    packet[..6].copy_from_slice(&to.mac);
    packet[6..12].copy_from_slice(&from.mac);
    packet[12..14].copy_from_slice(&ETHERTYPE_ARP);
    packet[14..20].copy_from_slice(&ARP_ETHERNET_IPV4);
    packet[20..22].copy_from_slice(&ARP_REPLY);
    packet[22..28].copy_from_slice(&from.mac);
    packet[28..32].copy_from_slice(&from.address.octets());
    packet[32..38].copy_from_slice(&to.mac);
    packet[38..42].copy_from_slice(&to.address.octets());
    packet
}

/// Checks an IPv6 packet from a pod and returns who asks for the gateway.
fn check_solicitation(ip: &[u8], pod: &PodIdentity<'_>) -> Result<Ipv6Addr, NeighborDrop> {
    let (header, rest) = ip.split_first_chunk::<IPV6_BYTES>().ok_or(NeighborDrop::TooShort)?;
    if header[0] >> 4 != 6 || header[6] != PROTOCOL_ICMPV6 {
        return Err(NeighborDrop::NotNeighbor);
    }
    let payload_bytes = u16::from_be_bytes([header[4], header[5]]);
    let message = rest.get(..usize::from(payload_bytes)).ok_or(NeighborDrop::TooShort)?;
    if message.first().is_some_and(|&kind| kind != SOLICITATION) {
        return Err(NeighborDrop::NotRequest);
    }
    let (fixed, options) = message.split_first_chunk::<ND_BYTES>().ok_or(NeighborDrop::TooShort)?;
    if header[7] != HOP_LIMIT {
        return Err(NeighborDrop::HopLimit);
    }
    if fixed[1] != 0 {
        return Err(NeighborDrop::Code);
    }
    // Addresses, length and next header: the pseudo-header (RFC 8200 §8.1).
    let pseudo_header = Sum::default()
        .add_bytes(&header[8..])
        .add_word(payload_bytes)
        .add_word(u16::from(PROTOCOL_ICMPV6));
    if pseudo_header.add_bytes(message).checksum() != 0 {
        return Err(NeighborDrop::Checksum);
    }
    check_options(options, pod.mac)?;

    let (src, dst) = (address(header, 8), address(header, 24));
    if src.is_unspecified() {
        return Err(NeighborDrop::DuplicateProbe);
    }
    // The target is compared whole, so it is not multicast either. A destination of the target
    // itself is a reachability probe.
    let target = address(fixed, 8);
    if target != GATEWAY_V6 || (dst != target && dst != solicited_node(target)) {
        return Err(NeighborDrop::NotGateway);
    }
    // A link-local address is whatever the pod's kernel made up; the answer goes to its port only.
    let link_local = src.is_unicast_link_local() && src != GATEWAY_V6;
    if !link_local && !pod.addresses.contains(&IpAddr::V6(src)) {
        return Err(NeighborDrop::SpoofedSender);
    }
    Ok(src)
}

/// Walks options of type, length in units of 8 bytes, content (RFC 4861 §4.6). Unknown ones are
/// skipped, as the RFC wants.
fn check_options(mut options: &[u8], pod_mac: [u8; 6]) -> Result<(), NeighborDrop> {
    while let Some((&kind, rest)) = options.split_first() {
        let units = rest.first().filter(|&&units| units > 0).ok_or(NeighborDrop::Option)?;
        let (option, after) =
            options.split_at_checked(usize::from(*units) * 8).ok_or(NeighborDrop::Option)?;
        if kind == OPTION_SOURCE_LINK_ADDRESS && option[2..] != pod_mac {
            return Err(NeighborDrop::SpoofedSender);
        }
        options = after;
    }
    Ok(())
}

struct Advertisement {
    dst_mac: [u8; 6],
    /// Sends it, and is announced.
    mac: [u8; 6],
    dst: Ipv6Addr,
    /// Sends it, and is announced.
    target: Ipv6Addr,
}

impl Advertisement {
    fn packet(&self) -> [u8; ADVERTISEMENT_BYTES] {
        const MESSAGE_BYTES: u8 = (ADVERTISEMENT_BYTES - ETHERNET_BYTES - IPV6_BYTES) as u8;
        let mut packet = [0; ADVERTISEMENT_BYTES];
        packet[..6].copy_from_slice(&self.dst_mac);
        packet[6..12].copy_from_slice(&self.mac);
        packet[12..14].copy_from_slice(&ETHERTYPE_IPV6);

        packet[14] = 0x60;
        packet[19] = MESSAGE_BYTES;
        packet[20] = PROTOCOL_ICMPV6;
        packet[21] = HOP_LIMIT;
        packet[22..38].copy_from_slice(&self.target.octets());
        packet[38..54].copy_from_slice(&self.dst.octets());

        packet[54] = ADVERTISEMENT;
        packet[58] = ROUTER | SOLICITED | OVERRIDE;
        packet[62..78].copy_from_slice(&self.target.octets());
        packet[78] = OPTION_TARGET_LINK_ADDRESS;
        packet[79] = 1;
        packet[80..86].copy_from_slice(&self.mac);

        let check = Sum::default()
            .add_bytes(&packet[22..54])
            .add_word(u16::from(MESSAGE_BYTES))
            .add_word(u16::from(PROTOCOL_ICMPV6))
            .add_bytes(&packet[54..])
            .checksum();
        packet[56..58].copy_from_slice(&check.to_be_bytes());
        packet
    }
}

/// The group of nodes that may have this address (RFC 4291 §2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | address.to_bits() & 0x00ff_ffff)
}

/// The Ethernet group of [`solicited_node`] (RFC 2464 §7).
fn solicited_node_mac(address: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c] = address.octets();
    [0x33, 0x33, 0xff, a, b, c]
}

/// The IPv6 address at `offset`, which the caller knows to be inside `header`.
fn address<const BYTES: usize>(header: &[u8; BYTES], offset: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[offset..offset + 16]);
    Ipv6Addr::from(octets)
}

fn write(out: &mut [u8], packet: &[u8]) -> Result<usize, NeighborDrop> {
    let out = out.get_mut(..packet.len()).ok_or(NeighborDrop::NoRoom)?;
    out.copy_from_slice(packet);
    Ok(packet.len())
}
