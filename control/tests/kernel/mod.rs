//! Traffic between network namespaces, for the tests of the kernel's own path.

use crate::namespace::Namespace;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How long anything may take. On an idle machine it is less than 1 ms.
pub const DEADLINE: Duration = Duration::from_secs(10);

impl Namespace {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// All a test may leave behind: links, addresses, routes, rules and neighbors, in words.
    pub fn contents(&self) -> String {
        let commands = [
            "ip -d link show",
            "ip address show",
            "ip -4 route show table all",
            "ip -6 route show table all",
            "ip -4 rule show",
            "ip -6 rule show",
            "ip neigh show nud permanent",
        ];
        commands.map(|command| self.run(command)).join("\n")
    }
}

/// Exchanges data by TCP and by UDP, and checks that the server saw the client's true address.
pub fn talk(client: &Namespace, from: IpAddr, server: &Namespace, to: IpAddr) {
    let words = format!("{from} to {to}");
    talk_tcp(client, from, server, to).unwrap_or_else(|error| panic!("TCP {words}: {error}"));
    talk_udp(client, from, server, to).unwrap_or_else(|error| panic!("UDP {words}: {error}"));
}

/// 300 kB and back: enough for many units of 64 kB.
pub fn talk_tcp(
    client: &Namespace,
    from: IpAddr,
    server: &Namespace,
    to: IpAddr,
) -> io::Result<()> {
    const BYTES: usize = 300_000;
    let listener = server.visit(|| TcpListener::bind((to, 0)))?;
    let address = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> io::Result<SocketAddr> {
        let (mut stream, peer) = listener.accept()?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let mut data = vec![0; BYTES];
        stream.read_exact(&mut data)?;
        stream.write_all(&data)?;
        Ok(peer)
    });
    // If this fails the test fails, and its thread ends with the process.
    let mut stream = client.visit(|| TcpStream::connect_timeout(&address, DEADLINE))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let data: Vec<u8> = (0..BYTES).map(|i| (i % 251) as u8).collect();
    stream.write_all(&data)?;
    let mut back = vec![0; BYTES];
    stream.read_exact(&mut back)?;
    assert!(data == back, "the data came back changed");
    let peer = echo.join().expect("the echo thread")?;
    assert_eq!(peer.ip(), from, "the server sees another source address");
    Ok(())
}

/// Datagrams of one byte, of one full packet, and of three fragments.
pub fn talk_udp(
    client: &Namespace,
    from: IpAddr,
    server: &Namespace,
    to: IpAddr,
) -> io::Result<()> {
    let there = server.visit(|| UdpSocket::bind((to, 0)))?;
    let here = client.visit(|| UdpSocket::bind((from, 0)))?;
    there.set_read_timeout(Some(DEADLINE))?;
    here.set_read_timeout(Some(DEADLINE))?;
    for size in [1, 1400, 4000] {
        let sent = vec![size as u8; size];
        let mut buffer = vec![0; 65536];
        here.send_to(&sent, there.local_addr()?)?;
        let (length, peer) = there.recv_from(&mut buffer)?;
        assert_eq!((length, peer), (size, here.local_addr()?));
        there.send_to(&sent, peer)?;
        let (length, _) = here.recv_from(&mut buffer)?;
        assert_eq!(length, size);
    }
    Ok(())
}

/// Waits until a condition holds.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
