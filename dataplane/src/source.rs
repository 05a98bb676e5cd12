//! Whether a packet may come from where it came, and as it came: anti-spoofing of pods, the link's
//! addresses, and addresses that no router forwards (RFC 1812 §5.3.7, RFC 6890, RFC 4291 §2.5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::drop::DropReason;
use crate::offload::MARKER;
use crate::parse::{Addresses, Headers};
use crate::port::Mac;
use crate::tables::{PortKind, PortSpec, Tables};

/// The first check after parsing: a pod sends with its own MAC (or the marker in its place) and
/// its own addresses. The node may send with any: it also routes for others. So may other nodes,
/// but not with addresses of this node's pods (RFC 3704 §2.2).
pub fn check(tables: &Tables, port: &PortSpec, headers: &Headers) -> Result<(), DropReason> {
    match port.kind {
        PortKind::Node => Ok(()),
        PortKind::Uplink if tables.is_pods(headers.source()) => Err(DropReason::SpoofedPod),
        PortKind::Uplink => Ok(()),
        PortKind::Pod => check_pod(port, headers),
    }
}

fn check_pod(port: &PortSpec, headers: &Headers) -> Result<(), DropReason> {
    check_mac(port, headers.src_mac)?;
    match headers.addresses {
        Addresses::V4 { src, .. } if !port.owns(IpAddr::V4(src)) => Err(DropReason::SpoofedIpv4),
        Addresses::V6 { src, .. } if !may_send_v6(port, src, headers) => {
            Err(DropReason::SpoofedIpv6)
        }
        _ => Ok(()),
    }
}

/// Source MAC of an IP packet: the pod's, or the marker.
fn check_mac(port: &PortSpec, mac: Mac) -> Result<(), DropReason> {
    if mac == port.mac || mac[0] == MARKER { Ok(()) } else { Err(DropReason::SpoofedMac) }
}

/// Link-local sources are only for the link itself: neighbour discovery, which is checked there.
fn may_send_v6(port: &PortSpec, src: Ipv6Addr, headers: &Headers) -> bool {
    if headers.is_link_control() {
        return src.is_unspecified() || src.is_unicast_link_local() || port.owns(IpAddr::V6(src));
    }
    port.owns(IpAddr::V6(src))
}

/// Addresses that are never forwarded, whoever sends them.
pub fn check_martians(headers: &Headers) -> Result<(), DropReason> {
    match headers.addresses {
        Addresses::V4 { src, dst } => check_v4(src, dst),
        Addresses::V6 { src, dst } => check_v6(src, dst),
    }
}

fn check_v4(src: Ipv4Addr, dst: Ipv4Addr) -> Result<(), DropReason> {
    let never = |address: Ipv4Addr| {
        let first = address.octets()[0];
        first == 0 || first == 127 || first >= 240
    };
    if never(src) || src.is_multicast() {
        return Err(DropReason::MartianSource);
    }
    if dst.is_multicast() || dst.is_broadcast() {
        return Err(DropReason::Multicast);
    }
    if never(dst) {
        return Err(DropReason::MartianDestination);
    }
    if src.is_link_local() || dst.is_link_local() {
        return Err(DropReason::LinkLocal);
    }
    Ok(())
}

fn check_v6(src: Ipv6Addr, dst: Ipv6Addr) -> Result<(), DropReason> {
    let never = |address: Ipv6Addr| {
        address.is_unspecified() || address.is_loopback() || address.to_ipv4_mapped().is_some()
    };
    if never(src) || src.is_multicast() {
        return Err(DropReason::MartianSource);
    }
    if dst.is_multicast() {
        return Err(DropReason::Multicast);
    }
    if never(dst) {
        return Err(DropReason::MartianDestination);
    }
    if src.is_unicast_link_local() || dst.is_unicast_link_local() {
        return Err(DropReason::LinkLocal);
    }
    Ok(())
}

/// A unicast packet must have been sent to the gateway's MAC.
pub fn check_link(port: &PortSpec, headers: &Headers) -> Result<(), DropReason> {
    if headers.dst_mac == port.gateway_mac {
        return Ok(());
    }
    let multicast = headers.dst_mac[0] & 1 != 0;
    let to_group = match headers.addresses {
        Addresses::V4 { dst, .. } => dst.is_multicast() || dst.is_broadcast(),
        Addresses::V6 { dst, .. } => dst.is_multicast(),
    };
    match (multicast, to_group) {
        (true, true) => Ok(()), // dropped as multicast by the next check
        (true, false) => Err(DropReason::LinkMulticast),
        (false, _) => Err(DropReason::OtherHost),
    }
}

#[cfg(test)]
mod tests;
