//! Traffic between namespaces, and what became of it. A socket belongs to the namespace it was
//! made in, whoever uses it: so senders and receivers are threads of the test, not programs.

mod attempt;
mod beacon;
mod capture;
mod flood;
mod forge;
mod load;
mod meter;
mod sctp;
mod sequence;
mod stream;
mod tap;
mod trace;
mod visit;

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::{Namespace, wait_until};

pub use attempt::{Answer, attempt};
pub use beacon::{Beacon, RouteEvents, Site};
pub use capture::Capture;
pub use flood::{Flood, Flooded};
pub use forge::{Forger, Frame, Macs, Watch, forgeries, honest_frames};
pub use load::Load;
pub use meter::{Law, Meter, settle};
pub use sctp::{SctpSocket, associate};
pub use sequence::{Sequence, sequence};
pub use stream::{Stream, connect, listen, pump, transfer};
pub use tap::{Seen, Tap};
pub use trace::{Hop, trace};
pub use visit::{Host, Transport, Visitor, caller, is_refused};

/// A packet that has not come by then is lost: the longest path here takes microseconds, but a busy
/// machine may keep a worker waiting for seconds.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// What a program has still to do when traffic has ended takes it milliseconds.
const DONE_WITHIN: Duration = Duration::from_secs(10);

/// What came of `ping`.
#[derive(Clone, Debug)]
pub struct Ping {
    /// Echo requests sent.
    pub sent: u32,
    /// Echo replies received.
    pub received: u32,
    /// Everything it printed.
    pub text: String,
}

/// Runs `ping` with the words of a line as options, in a namespace.
///
/// # Errors
/// When it cannot be run, or prints no summary.
pub fn ping(from: &Namespace, to: IpAddr, options: &str) -> Result<Ping> {
    let to = to.to_string();
    let args: Vec<&str> = options.split_whitespace().chain(["-n", to.as_str()]).collect();
    let output = from.run("ping", &args)?;
    let text =
        [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned());
    let text = text.concat();
    let figure = |what: &str| {
        let words: Vec<&str> =
            text.lines().find(|l| l.contains("transmitted"))?.split(", ").collect();
        let word = words.iter().find(|word| word.contains(what))?;
        word.split_whitespace().next()?.parse().ok()
    };
    let context = || format!("ping {}: {text}", args.join(" "));
    let sent = figure("transmitted").with_context(context)?;
    let received = figure("received").with_context(context)?;
    Ok(Ping { sent, received, text })
}

/// An echo request is answered. One: of several, `ping` waits for the last no longer than twice
/// the time that the others took.
///
/// # Errors
/// When it is not.
pub fn reaches(from: &Namespace, to: IpAddr) -> Result<()> {
    let ping = ping(from, to, "-c 1 -W 5")?;
    ensure!(ping.received == ping.sent, "{to} does not answer: {}", ping.text);
    Ok(())
}

/// A UDP socket in a namespace, on any port. It waits 10 s for a datagram, and has room for as many
/// as a test sends.
///
/// # Errors
/// When it cannot be made.
pub fn udp_socket(namespace: &Namespace, address: IpAddr) -> Result<UdpSocket> {
    /// 10,000 small datagrams, at the 1-2 kB each that the kernel accounts.
    const RECEIVE_BYTES: usize = 32 << 20;
    let socket = namespace.within(|| UdpSocket::bind(SocketAddr::new(address, 0)))??;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BYTES)?;
    socket.set_read_timeout(Some(LOST_AFTER))?;
    Ok(socket)
}

/// One datagram. A receive with a deadline is not restarted by the kernel when a signal passes by
/// (signal(7)).
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

/// A datagram of each size goes there and comes back whole.
///
/// # Errors
/// When one does not.
pub fn echo_datagrams(client: &UdpSocket, server: &UdpSocket, sizes: &[usize]) -> Result<()> {
    let to = server.local_addr()?;
    let mut buffer = vec![0; 1 << 16];
    for &size in sizes {
        let sent = stream::pattern(size as u64, size);
        client.send_to(sent, to).with_context(|| format!("send {size} bytes to {to}"))?;
        let (len, from) =
            receive(server, &mut buffer).with_context(|| format!("{size} bytes at {to}"))?;
        ensure!(&buffer[..len] == sent, "{size} bytes arrive at {to} as they were sent");
        server.send_to(sent, from)?;
        let (len, _) =
            receive(client, &mut buffer).with_context(|| format!("{size} bytes from {to}"))?;
        ensure!(&buffer[..len] == sent, "{size} bytes come back from {to} as they were sent");
    }
    Ok(())
}

/// Waits until a program has dealt with all that has come for it: then it sleeps in poll(2) or
/// select(2), which ends at once when more comes (proc(5), `wchan`).
fn wait_until_idle(program: &Child) -> Result<()> {
    let wchan = format!("/proc/{}/wchan", program.id());
    wait_until("a program has nothing left to do", DONE_WITHIN, || {
        Ok(fs::read_to_string(&wchan)?.contains("poll"))
    })
}

/// Whether an error means that nothing came in time.
fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A counter of the namespace's protocols, as `/proc/net/snmp` has it: `("Tcp", "InCsumErrors")`.
///
/// # Errors
/// When there is no such counter.
pub fn protocol_counter(namespace: &Namespace, protocol: &str, counter: &str) -> Result<u64> {
    // The thread's, not the process's: `/proc/net` is that of the main thread.
    let text = namespace.within(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut rows = text.lines().filter(|line| line.split(':').next() == Some(protocol));
    let (names, values) = rows.next().zip(rows.next()).context(protocol.to_owned())?;
    let pair = names.split_whitespace().zip(values.split_whitespace());
    let value = pair.into_iter().find(|(name, _)| *name == counter).map(|(_, value)| value);
    Ok(value.with_context(|| format!("{protocol} has no {counter}"))?.parse()?)
}
