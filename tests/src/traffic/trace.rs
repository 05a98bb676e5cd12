//! The hops to a UDP port, as traceroute(8) finds them: datagrams with a rising hop limit, and the
//! ICMP errors that come of them. What these quote has to be what was sent, whatever was translated
//! on the way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::sockopt::{Timeout, set_ip_ttl, set_ipv6_unicast_hops, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto, recvfrom, socket_with,
};

use super::LOST_AFTER;
use super::visit::caller;
use crate::netns::Namespace;

/// Types of ICMP and ICMPv6 (RFC 792, RFC 4443).
const UNREACHABLE: [u8; 2] = [3, 1];
const TIME_EXCEEDED: [u8; 2] = [11, 3];

/// What a hop says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// The hop limit ended here.
    Passed(IpAddr),
    /// The datagram arrived, and nobody listens.
    Arrived(IpAddr),
}

/// Finds the hops from a namespace to a port on which nobody listens.
///
/// # Errors
/// When a hop is silent, or quotes something else than was sent.
pub fn trace(from: &Namespace, dial: SocketAddr) -> Result<Vec<Hop>> {
    let errors = raw_socket(from, dial.is_ipv6())?;
    let mut hops = Vec::new();
    for limit in 1..=8_u8 {
        let probe = caller(from, dial)?;
        if dial.is_ipv4() {
            set_ip_ttl(&probe, limit.into())?;
        } else {
            set_ipv6_unicast_hops(&probe, Some(limit))?;
        }
        probe.send(b"how far is it?")?;
        let hop = hop(&errors, probe.local_addr()?, dial)
            .with_context(|| format!("hop {limit} to {dial}, after {hops:?}"))?;
        hops.push(hop);
        if let Hop::Arrived(_) = hop {
            break;
        }
    }
    Ok(hops)
}

/// The error about a datagram between these ends.
fn hop(errors: &OwnedFd, own: SocketAddr, dial: SocketAddr) -> Result<Hop> {
    let end = Instant::now() + LOST_AFTER;
    let mut buffer = [0; 2048];
    while Instant::now() < end {
        let Ok((len, _, from)) = recvfrom(errors, &mut buffer, RecvFlags::empty()) else {
            continue; // a short deadline has passed
        };
        let from = SocketAddr::try_from(from.context("a packet has a source")?)?.ip();
        let family = usize::from(from.is_ipv6());
        // A raw socket of IPv4 gets the header, too (raw(7)), one of IPv6 does not (ipv6(7)).
        let header = if from.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
        let error = buffer.get(header..len).context("longer than its header")?;
        let kind = *error.first().context("a type")?;
        if kind != UNREACHABLE[family] && kind != TIME_EXCEEDED[family] {
            continue; // of neighbour discovery
        }
        let quoted = quoted_ends(error.get(8..).context("a quote")?).context("a whole quote")?;
        ensure!(quoted == (own, dial), "{from} quotes {quoted:?}, not {:?}", (own, dial));
        let passed = kind == TIME_EXCEEDED[family];
        return Ok(if passed { Hop::Passed(from) } else { Hop::Arrived(from) });
    }
    anyhow::bail!("no answer")
}

/// Source and destination of a UDP packet of which at least the ports are there.
fn quoted_ends(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (addresses, ports): ([IpAddr; 2], &[u8]) = if packet.first()? >> 4 == 4 {
        let at = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?).into());
        ([at(12)?, at(16)?], packet.get(usize::from(packet.first()? & 15) * 4..)?)
    } else {
        let at = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?).into());
        ([at(8)?, at(24)?], packet.get(40..)?)
    };
    let port = |at: usize| Some(u16::from_be_bytes(*ports.get(at..)?.first_chunk()?));
    Some((SocketAddr::new(addresses[0], port(0)?), SocketAddr::new(addresses[1], port(2)?)))
}

fn raw_socket(namespace: &Namespace, v6: bool) -> Result<OwnedFd> {
    let (family, protocol) = if v6 {
        (AddressFamily::INET6, ipproto::ICMPV6)
    } else {
        (AddressFamily::INET, ipproto::ICMP)
    };
    let open = || socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol));
    let fd = namespace.within(open)?.context("open a raw socket")?;
    set_socket_timeout(&fd, Timeout::Recv, Some(Duration::from_millis(50)))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::quoted_ends;
    use crate::traffic::{Frame, Macs};

    #[test]
    fn the_ends_of_a_quoted_packet_are_read() {
        let macs = Macs { src: [2; 6], dst: [4; 6] };
        let v4 = Frame::udp_v4(macs, [10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let ends = quoted_ends(&v4.bytes()[14..14 + 28]).expect("ends");
        assert_eq!(ends, ("10.0.0.1:4000".parse().unwrap(), "10.0.0.2:6666".parse().unwrap()));
        let [src, dst] = ["fd00::1", "fd00::2"].map(|text| text.parse().unwrap());
        let v6 = Frame::udp_v6(macs, src, dst);
        let ends = quoted_ends(&v6.bytes()[14..]).expect("ends");
        assert_eq!(ends, ("[fd00::1]:4000".parse().unwrap(), "[fd00::2]:6666".parse().unwrap()));
        assert_eq!(quoted_ends(&v6.bytes()[14..14 + 43]), None);
    }
}
