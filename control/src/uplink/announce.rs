//! Tells the link which Ethernet address our IPv6 addresses have now.
//!
//! Other nodes keep what they have learned for a minute, and the kernel does not correct them: it
//! resolves routers from its link-local address, so nobody learns the others by that. An interface
//! that was replaced would be out of reach for as long. IPv4 needs no such thing: every ARP request
//! corrects its receiver (RFC 826).

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sockopt};

/// All nodes of the link (RFC 4291 §2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Neighbor advertisement (RFC 4861 §4.4), and its length with one option.
const ADVERTISEMENT: u8 = 136;
const ADVERTISEMENT_BYTES: usize = 32;
/// Router, because a node forwards; override, because the address has changed.
const ROUTER_OVERRIDE: u8 = 0xa0;
/// Target link-layer address (RFC 4861 §4.6.1): type, and length in units of 8 bytes.
const TARGET_MAC: [u8; 2] = [2, 1];
/// What receivers insist on (RFC 4861 §7.1.2).
const HOP_LIMIT: u32 = 255;

/// Sends an unsolicited advertisement (RFC 4861 §7.2.6) for `address` of the interface `ifindex`,
/// in the network namespace of the calling thread.
///
/// # Errors
/// The address is not usable yet, or the interface is down.
pub fn announce(ifindex: u32, address: Ipv6Addr, mac: [u8; 6]) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::RAW;
    let protocol = Some(ipproto::ICMPV6);
    let socket = rustix::net::socket_with(AddressFamily::INET6, kind, flags, protocol)?;
    sockopt::set_ipv6_multicast_if(&socket, ifindex)?;
    sockopt::set_ipv6_multicast_hops(&socket, HOP_LIMIT)?;
    rustix::net::bind(&socket, &SocketAddrV6::new(address, 0, 0, ifindex))?;
    let everybody = SocketAddrV6::new(ALL_NODES, 0, 0, ifindex);
    // The kernel fills in the checksum of ICMPv6 (RFC 3542 §3.1).
    rustix::net::sendto(&socket, &advertisement(address, mac), SendFlags::DONTWAIT, &everybody)?;
    Ok(())
}

fn advertisement(address: Ipv6Addr, mac: [u8; 6]) -> [u8; ADVERTISEMENT_BYTES] {
    let mut bytes = [0; ADVERTISEMENT_BYTES];
    bytes[0] = ADVERTISEMENT;
    bytes[4] = ROUTER_OVERRIDE;
    bytes[8..24].copy_from_slice(&address.octets());
    bytes[24..26].copy_from_slice(&TARGET_MAC);
    bytes[26..32].copy_from_slice(&mac);
    bytes
}
