//! Visits: a client comes to an address behind which somebody else may serve, and asks "who do you
//! think I am?" The answer is what a translator of addresses is judged by.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};

use super::sctp::{SctpSocket, associate};
use super::{LOST_AFTER, connect, is_timeout, receive, udp_socket};
use crate::netns::Namespace;

/// What is said there, and back.
const QUESTION: &[u8] = b"who am I?";

/// Transport protocols with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260, by raw sockets.
    Sctp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::Sctp];

    /// As runtimes, nft and ss write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Serves an address and port by every transport. It has no thread: who visits it answers for it.
#[derive(Debug)]
pub struct Host {
    address: SocketAddr,
    tcp: TcpListener,
    udp: UdpSocket,
    sctp: SctpSocket,
}

/// Who a client was, by its own words and by those of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visitor {
    /// The client's end as the client sees it.
    pub own: SocketAddr,
    /// The client's end as the server sees it.
    pub seen: SocketAddr,
}

impl Host {
    /// Opens house in a namespace.
    ///
    /// # Errors
    /// When the address is none of the namespace's, or the port is taken.
    pub fn open(namespace: &Namespace, address: IpAddr, port: u16) -> Result<Host> {
        let address = SocketAddr::new(address, port);
        let tcp = namespace.within(|| TcpListener::bind(address))?;
        let tcp = tcp.with_context(|| format!("listen on {address}"))?;
        let udp = namespace.within(|| UdpSocket::bind(address))?;
        let udp = udp.with_context(|| format!("bind to {address}"))?;
        tcp.set_nonblocking(true)?;
        udp.set_read_timeout(Some(LOST_AFTER))?;
        Ok(Host { address, tcp, udp, sctp: SctpSocket::listen(namespace, address)? })
    }

    /// Where it serves.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client in `from` comes to `dial` and is served here; both directions carry data, and what
    /// the client gets comes from where it went.
    ///
    /// # Errors
    /// When it does not arrive, or not here.
    pub fn visited(
        &self,
        from: &Namespace,
        dial: SocketAddr,
        transport: Transport,
    ) -> Result<Visitor> {
        let visit = match transport {
            Transport::Tcp => self.visited_by_tcp(from, dial),
            Transport::Udp => self.visited_by_udp(&caller(from, dial)?),
            Transport::Sctp => SctpSocket::towards(from, dial).and_then(|client| {
                let seen = associate(&client, dial, &self.sctp)?;
                Ok(Visitor { own: client.local(), seen })
            }),
        };
        visit.with_context(|| format!("{transport} to {dial}, served at {}", self.address))
    }

    fn visited_by_tcp(&self, from: &Namespace, dial: SocketAddr) -> Result<Visitor> {
        let (mut client, mut server) = self.connected_from(from, dial)?;
        said(&mut client, &mut server).context("there")?;
        said(&mut server, &mut client).context("back")?;
        Ok(Visitor { own: client.local_addr()?, seen: server.peer_addr()? })
    }

    /// A connection that stays: the client's end and the server's, each with a deadline for what
    /// it waits for.
    ///
    /// # Errors
    /// When it is not made in time.
    pub fn connected_from(
        &self,
        from: &Namespace,
        dial: SocketAddr,
    ) -> Result<(TcpStream, TcpStream)> {
        connect(from, dial, &self.tcp)
    }

    /// A datagram comes from a connected socket and is answered: what is not from there, it does
    /// not hear.
    ///
    /// # Errors
    /// When one of them is lost.
    pub fn visited_by_udp(&self, client: &UdpSocket) -> Result<Visitor> {
        client.send(QUESTION).context("send")?;
        let seen = self.question().context("there")?;
        self.udp.send_to(QUESTION, seen)?;
        let mut buffer = [0; 64];
        let (len, _) = receive(client, &mut buffer).context("back")?;
        ensure!(&buffer[..len] == QUESTION, "something else came back");
        Ok(Visitor { own: client.local_addr()?, seen })
    }

    /// Who sent the next datagram.
    fn question(&self) -> Result<SocketAddr> {
        let mut buffer = [0; 64];
        let (len, seen) = receive(&self.udp, &mut buffer)?;
        ensure!(&buffer[..len] == QUESTION, "something else came");
        Ok(seen)
    }

    /// Its UDP socket.
    #[must_use]
    pub fn udp(&self) -> &UdpSocket {
        &self.udp
    }

    /// Who has come and was not served: the first of them. What a TCP client had to say is gone
    /// with its connection.
    ///
    /// # Errors
    /// When a socket cannot be read, or a packet came damaged.
    pub fn pending(&self, transport: Transport) -> Result<Option<SocketAddr>> {
        match transport {
            Transport::Tcp => Ok(self.tcp.accept().ok().map(|(_, client)| client)),
            Transport::Udp => {
                self.udp.set_nonblocking(true)?;
                let came = receive(&self.udp, &mut [0; 64]);
                self.udp.set_nonblocking(false)?;
                match came {
                    Ok((_, client)) => Ok(Some(client)),
                    Err(error) if is_timeout(&error) => Ok(None),
                    Err(error) => Err(error).context("look whether somebody came"),
                }
            }
            Transport::Sctp => self.sctp.waiting(),
        }
    }

    /// Nobody has come who was not served. Whoever was to come must have by now.
    ///
    /// # Errors
    /// When somebody has.
    pub fn is_alone(&self) -> Result<()> {
        for transport in Transport::ALL {
            let client = self.pending(transport)?;
            ensure!(client.is_none(), "{client:?} came to {} by {transport}", self.address);
        }
        Ok(())
    }
}

/// A UDP socket on any port, connected to where its datagrams go; it waits 10 s for one.
///
/// # Errors
/// When there is no route.
pub fn caller(from: &Namespace, dial: SocketAddr) -> Result<UdpSocket> {
    let any =
        if dial.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = udp_socket(from, any)?;
    socket.connect(dial).with_context(|| format!("a route to {dial}"))?;
    Ok(socket)
}

/// Nobody serves `dial` for a client in `from`, and it is told so at once: by a reset, by an ICMP
/// error. Not of SCTP: raw sockets are told nothing.
///
/// # Errors
/// When somebody answers, or nobody says anything.
pub fn is_refused(from: &Namespace, dial: SocketAddr, transport: Transport) -> Result<()> {
    let outcome = match transport {
        Transport::Tcp => from.within(|| TcpStream::connect_timeout(&dial, LOST_AFTER))?.map(drop),
        Transport::Udp => {
            let client = caller(from, dial)?;
            client.send(QUESTION).context("send")?;
            receive(&client, &mut [0; 64]).map(drop)
        }
        Transport::Sctp => anyhow::bail!("nobody tells raw sockets"),
    };
    let error = outcome.err().with_context(|| format!("somebody serves {transport} {dial}"))?;
    let told = matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
    );
    ensure!(told, "{transport} to {dial}: {error}");
    Ok(())
}

fn said(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    from.write_all(QUESTION)?;
    let mut heard = [0; QUESTION.len()];
    to.read_exact(&mut heard)?;
    ensure!(heard == *QUESTION, "something else came");
    Ok(())
}
