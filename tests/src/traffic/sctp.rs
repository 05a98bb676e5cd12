//! SCTP (RFC 9260) without a kernel that has it: packets are made here and put on raw sockets, and
//! each that comes has its checksum verified bit by bit. Enough of the protocol to open an
//! association, which is all that a translator of addresses and ports looks at.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, getsockname,
    ipproto, recvfrom, sendto, socket_with,
};

use super::LOST_AFTER;
use crate::netns::Namespace;

/// Chunk types (RFC 9260 §3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

/// The parameter of an INIT ACK that holds the cookie (RFC 9260 §3.3.3.1).
const STATE_COOKIE: u16 = 7;

/// Bytes of an INIT or INIT ACK before its parameters: chunk header and five fields.
const INIT_BYTES: usize = 20;

/// Clients' ports, in the range that kernels choose from.
static PORTS: AtomicU16 = AtomicU16::new(0);

/// An end that speaks SCTP. It sees all SCTP packets to its address and takes those to its port.
#[derive(Debug)]
pub struct SctpSocket {
    fd: OwnedFd,
    local: SocketAddr,
    tag: u32,
}

/// A packet with one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    from: SocketAddr,
    tag: u32,
    chunk: u8,
    body: Vec<u8>,
}

impl SctpSocket {
    /// An end that waits at an address and port.
    ///
    /// # Errors
    /// When the address is none of the namespace's.
    pub fn listen(namespace: &Namespace, local: SocketAddr) -> Result<SctpSocket> {
        let fd = raw_socket(namespace, local.ip())?;
        bind(&fd, &SocketAddr::new(local.ip(), 0)).with_context(|| format!("bind to {local}"))?;
        Ok(SctpSocket { fd, local, tag: 0x5e41_0000 | u32::from(local.port()) })
    }

    /// An end with a port of its own that talks to `peer` and hears nobody else.
    ///
    /// # Errors
    /// When there is no route to it.
    pub fn towards(namespace: &Namespace, peer: SocketAddr) -> Result<SctpSocket> {
        let fd = raw_socket(namespace, peer.ip())?;
        connect(&fd, &SocketAddr::new(peer.ip(), 0)).with_context(|| format!("to {peer}"))?;
        let address: SocketAddr = getsockname(&fd)?.try_into()?;
        let port = 40_000 + PORTS.fetch_add(1, Ordering::Relaxed) % 20_000;
        let local = SocketAddr::new(address.ip(), port);
        Ok(SctpSocket { fd, local, tag: 0xc11e_0000 | u32::from(port) })
    }

    /// Where it is.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Begins an association with `peer` and expects no answer.
    ///
    /// # Errors
    /// When the packet cannot be sent.
    pub fn send_init(&self, peer: SocketAddr) -> Result<()> {
        self.send(peer, 0, INIT, &init(self.tag))
    }

    /// What came here and nobody has taken: who sent it.
    ///
    /// # Errors
    /// When a packet came damaged.
    pub fn waiting(&self) -> Result<Option<SocketAddr>> {
        Ok(self.receive_within(Duration::from_millis(1))?.map(|packet| packet.from))
    }

    fn send(&self, to: SocketAddr, tag: u32, chunk: u8, body: &[u8]) -> Result<()> {
        let packet = packet(self.local.port(), to.port(), tag, chunk, body);
        let sent = sendto(&self.fd, &packet, SendFlags::empty(), &SocketAddr::new(to.ip(), 0));
        sent.with_context(|| format!("send an SCTP packet to {to}"))?;
        Ok(())
    }

    fn receive(&self, chunk: u8) -> Result<Packet> {
        let packet = self.receive_within(LOST_AFTER)?;
        let packet = packet.with_context(|| format!("no SCTP packet came to {}", self.local))?;
        ensure!(packet.chunk == chunk, "chunk {} came, not {chunk}", packet.chunk);
        Ok(packet)
    }

    fn receive_within(&self, deadline: Duration) -> Result<Option<Packet>> {
        let end = Instant::now() + deadline;
        let mut buffer = [0; 2048];
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            set_socket_timeout(&self.fd, Timeout::Recv, Some(left))?;
            let (len, from) = match recvfrom(&self.fd, &mut buffer, RecvFlags::empty()) {
                Ok((len, _, from)) => (len, from.context("a packet has a source")?),
                Err(error) => match std::io::Error::from(error) {
                    error if super::is_timeout(&error) => return Ok(None),
                    // What an ICMP error said of a packet sent earlier.
                    error if error.raw_os_error().is_some() && is_news(&error) => continue,
                    error => return Err(error).context("receive an SCTP packet"),
                },
            };
            let from = SocketAddr::try_from(from)?.ip();
            let bytes = buffer.get(..len).context("no longer than the buffer")?;
            // A raw socket of IPv4 gets the header, too (raw(7)), one of IPv6 does not (ipv6(7)).
            let header = if from.is_ipv4() { usize::from(bytes[0] & 15) * 4 } else { 0 };
            let bytes = bytes.get(header..).context("longer than its header")?;
            if let Some(packet) = parse(from, self.local.port(), bytes)? {
                return Ok(Some(packet));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
        }
    }
}

/// Opens an association from `client` to `dial`, where `server` is expected to be reached. Returns
/// who the server thinks the client is, in all that it gets.
///
/// # Errors
/// When a packet is lost, damaged or from somebody else.
pub fn associate(client: &SctpSocket, dial: SocketAddr, server: &SctpSocket) -> Result<SocketAddr> {
    client.send_init(dial)?;
    let opening = server.receive(INIT)?;
    let cookie = format!("for {}", opening.from).into_bytes();
    let mut answer = init(server.tag);
    answer.extend(STATE_COOKIE.to_be_bytes());
    answer.extend((4 + cookie.len() as u16).to_be_bytes());
    answer.extend(&cookie);
    server.send(opening.from, client.tag, INIT_ACK, &answer)?;
    let answered = client.receive(INIT_ACK)?;
    ensure!(answered.from == dial, "{} answers in place of {dial}", answered.from);
    ensure!(answered.body == answer, "the answer came otherwise than it was sent");
    client.send(dial, server.tag, COOKIE_ECHO, &cookie)?;
    let echo = server.receive(COOKIE_ECHO)?;
    ensure!(echo.body == cookie, "the cookie came back otherwise");
    ensure!(echo.from == opening.from, "{} became {}", opening.from, echo.from);
    server.send(echo.from, client.tag, COOKIE_ACK, &[])?;
    let end = client.receive(COOKIE_ACK)?;
    ensure!(end.from == dial && end.tag == client.tag, "a stranger's COOKIE ACK: {end:?}");
    Ok(opening.from)
}

fn raw_socket(namespace: &Namespace, address: IpAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let open = || socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::SCTP));
    namespace.within(open)?.context("open a raw socket")
}

fn is_news(error: &std::io::Error) -> bool {
    use ErrorKind::{ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable};
    // ENOPROTOOPT: "protocol unreachable", of a host that has no SCTP (RFC 1122 §3.2.2.1).
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | Interrupted)
        || error.raw_os_error() == Some(rustix::io::Errno::NOPROTOOPT.raw_os_error())
}

/// The fields of an INIT, or of an INIT ACK without parameters.
fn init(tag: u32) -> Vec<u8> {
    let (window, streams, first_tsn) = (65_536_u32, 1_u16, 1_u32);
    let streams = streams.to_be_bytes();
    [&tag.to_be_bytes()[..], &window.to_be_bytes(), &streams, &streams, &first_tsn.to_be_bytes()]
        .concat()
}

fn packet(source: u16, destination: u16, tag: u32, chunk: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([chunk, 0]);
    packet.extend((4 + body.len() as u16).to_be_bytes());
    packet.extend(body);
    packet.resize(packet.len().next_multiple_of(4), 0);
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// A packet to `port`; none if it is to another one.
fn parse(from: IpAddr, port: u16, bytes: &[u8]) -> Result<Option<Packet>> {
    let head: &[u8; 16] = bytes.first_chunk().context("shorter than header and chunk header")?;
    let half = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    if half(2) != port {
        return Ok(None);
    }
    let mut zeroed = bytes.to_vec();
    zeroed[8..12].fill(0);
    let (told, right) = (&head[8..12], crc32c(&zeroed).to_le_bytes());
    if told != right {
        bail!("an SCTP packet from {from} with checksum {told:02x?}, not {right:02x?}");
    }
    let len = usize::from(half(14));
    let body = bytes.get(16..12 + len).context("a chunk shorter than it says")?;
    ensure!(head[12] != INIT || len >= INIT_BYTES, "a short INIT");
    let tag = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let from = SocketAddr::new(from, half(0));
    Ok(Some(Packet { from, tag, chunk: head[12], body: body.to_vec() }))
}

/// CRC32c by its definition, a division of polynomials bit by bit (RFC 9260 appendix A): slow, and
/// nothing like what it is to judge.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut remainder = !0_u32;
    for byte in bytes {
        remainder ^= u32::from(*byte);
        for _ in 0..8 {
            let odd = remainder & 1 == 1;
            remainder >>= 1;
            if odd {
                remainder ^= 0x82f6_3b78; // Castagnoli's polynomial, its bits in reverse
            }
        }
    }
    !remainder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_published_vectors() {
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), 0x46dd_794e);
    }

    #[test]
    fn a_packet_is_read_as_it_was_made_and_any_damage_is_told() {
        let from: IpAddr = [10, 0, 0, 1].into();
        let made = packet(1000, 80, 7, COOKIE_ECHO, b"abc");
        let read = parse(from, 80, &made).expect("whole").expect("to this port");
        assert_eq!((read.from.port(), read.tag, read.chunk), (1000, 7, COOKIE_ECHO));
        assert_eq!(read.body, b"abc");
        assert_eq!(parse(from, 81, &made).expect("whole"), None);
        for byte in (0..made.len()).filter(|byte| !(2..4).contains(byte)) {
            let mut damaged = made.clone();
            damaged[byte] ^= 4;
            assert!(parse(from, 80, &damaged).is_err(), "byte {byte}");
        }
    }
}
