//! Traffic that fills a limit: UDP at a pace, and TCP as fast as it goes. Both until dropped.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::netns::Namespace;
use rustix::net::sockopt::{set_socket_linger, set_tcp_congestion};

use super::CUBIC;
use super::delivered::{ETHERNET_BYTES, FULL_BYTES};
use crate::pps;

/// Between two looks at what is due: a tenth of what a port's ring holds, at a million packets per
/// second.
const TICK: Duration = Duration::from_micros(100);

/// A sender that got no time for longer does not make up for it: that would be a burst.
const LATE_MAX_NS: f64 = 5e6;

/// A thread that sends or receives TCP looks that often whether it is to stop.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A connection through a limit that is full takes some tries.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of one call, as iperf3's.
const CHUNK: usize = 128 << 10;

/// Of the packets that flows send in a circle: how far they are from each other.
const STRIDE: usize = 5;

/// commplex-link, which iperf takes, too.
const TCP_PORT: u16 = 5001;

/// Threads that end when this is dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Where UDP goes: nobody reads it, which costs least.
    _sinks: Vec<UdpSocket>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed); // orders nothing
        for thread in self.threads.drain(..) {
            // One that panicked has sent less, which the counters show.
            let _ = thread.join();
        }
    }
}

/// A flow of UDP that is sent at a pace.
#[derive(Debug)]
pub struct Paced {
    socket: UdpSocket,
    /// Bytes of one Ethernet frame after another, again and again.
    frames: &'static [usize],
    /// Of each, beside the payload.
    header_bytes: usize,
    bits_per_s: f64,
    next: usize,
    /// When the next one is due, in ns since the sender started.
    due_ns: f64,
}

/// Where a load comes from and goes to.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// Sends.
    pub client: &'a Namespace,
    /// Receives.
    pub server: &'a Namespace,
    /// The server's address.
    pub address: IpAddr,
}

impl Ends<'_> {
    /// Connections of UDP that share a pace, for [`Load::udp`]. Frames, in bytes, are those of a
    /// UDP packet over IPv6 at least.
    ///
    /// # Errors
    /// When a socket cannot be made.
    pub fn paced(
        &self,
        flows: u32,
        frames: &'static [usize],
        bits_per_s: f64,
    ) -> Result<Vec<Paced>> {
        let header_bytes = udp_header_bytes(self.address);
        let target = SocketAddr::new(self.address, pps::PORT);
        let flow = |number: u32| {
            let socket = self.client.within(|| UdpSocket::bind(any(self.address, 0)))??;
            socket.connect(target).with_context(|| format!("connect to {target}"))?;
            let bits_per_s = bits_per_s / f64::from(flows);
            // Flows in step would send all at once, and then nothing for a while.
            let (next, due_ns) = (number as usize * STRIDE % frames.len(), 0.0);
            let mut flow = Paced { socket, frames, header_bytes, bits_per_s, next, due_ns };
            flow.due_ns = flow.take() * f64::from(number) / f64::from(flows);
            Ok(flow)
        };
        (0..flows).map(flow).collect()
    }

    /// A socket that takes what comes, for [`Load::udp`].
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn sink(&self) -> Result<UdpSocket> {
        let socket = self.server.within(|| UdpSocket::bind(any(self.address, pps::PORT)))?;
        socket.context("bind the receiving socket")
    }
}

impl Load {
    /// Sends all of these flows from one thread, which sleeps when nothing is due.
    pub fn udp(mut flows: Vec<Paced>, sinks: Vec<UdpSocket>) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let send = move || {
            let started = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let now_ns = started.elapsed().as_nanos() as f64;
                for flow in &mut flows {
                    flow.send_due(now_ns);
                }
                let spent_ns = started.elapsed().as_nanos() as f64 - now_ns;
                // What takes long to send is not to wait as well.
                if spent_ns < TICK.as_nanos() as f64 {
                    thread::sleep(TICK);
                }
            }
        };
        Load { stop, threads: vec![thread::spawn(send)], _sinks: sinks }
    }

    /// Sends as many streams of TCP as are asked for, from and to a thread each.
    ///
    /// # Errors
    /// When a stream cannot be connected.
    pub fn tcp(ends: &[(Ends<'_>, u32)]) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = Load { stop, threads: Vec::new(), _sinks: Vec::new() };
        for (Ends { client, server, address }, flows) in ends {
            let listener = server.within(|| TcpListener::bind(any(*address, TCP_PORT)))?;
            let listener = listener.context("listen")?;
            let target = SocketAddr::new(*address, TCP_PORT);
            for _ in 0..*flows {
                let connect = || TcpStream::connect_timeout(&target, CONNECT_DEADLINE);
                let sender = client.within(connect)?;
                let sender = sender.with_context(|| format!("connect to {target}"))?;
                set_tcp_congestion(&sender, CUBIC).context("choose CUBIC")?;
                load.stream(sender, listener.accept().context("accept")?.0)?;
            }
        }
        Ok(load)
    }

    fn stream(&mut self, mut sender: TcpStream, mut receiver: TcpStream) -> Result<()> {
        for socket in [&sender, &receiver] {
            // At the end nothing is to be sent any more: the next load wants an empty path.
            set_socket_linger(socket, Some(Duration::ZERO))?;
            socket.set_read_timeout(Some(LOOK_AGAIN))?;
            socket.set_write_timeout(Some(LOOK_AGAIN))?;
        }
        let bytes = vec![0; CHUNK];
        let write = move || sender.write(&bytes).map(drop);
        let mut buffer = vec![0; CHUNK];
        let read = move || receiver.read(&mut buffer).map(drop);
        self.threads.push(until_stopped(&self.stop, write));
        self.threads.push(until_stopped(&self.stop, read));
        Ok(())
    }
}

/// Does something over and over on a thread.
fn until_stopped(
    stop: &Arc<AtomicBool>,
    mut work: impl FnMut() -> std::io::Result<()> + Send + 'static,
) -> JoinHandle<()> {
    let stop = stop.clone();
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match work() {
                Ok(()) => {}
                Err(error) if is_pause(error.kind()) => {}
                // The other end has stopped already.
                Err(_) => return,
            }
        }
    })
}

fn is_pause(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Any address of a family.
fn any(like: IpAddr, port: u16) -> SocketAddr {
    match like {
        IpAddr::V4(_) => SocketAddr::from(([0; 4], port)),
        IpAddr::V6(_) => SocketAddr::from(([0; 16], port)),
    }
}

/// Bytes of Ethernet, IP and UDP.
fn udp_header_bytes(address: IpAddr) -> usize {
    ETHERNET_BYTES + if address.is_ipv4() { 20 } else { 40 } + 8
}

impl Paced {
    fn send_due(&mut self, now_ns: f64) {
        const ZEROS: [u8; FULL_BYTES] = [0; FULL_BYTES];
        self.due_ns = self.due_ns.max(now_ns - LATE_MAX_NS);
        while self.due_ns <= now_ns {
            // What the kernel refuses counts as sent: the pace is what is offered.
            let _ = self.socket.send(&ZEROS[self.header_bytes..self.frames[self.next]]);
            self.due_ns += self.take();
        }
    }

    /// How long the next packet takes at the pace, in ns.
    fn take(&mut self) -> f64 {
        let bytes = self.frames[self.next];
        self.next = (self.next + 1) % self.frames.len();
        8e9 * bytes as f64 / self.bits_per_s
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_paced_flow_sends_what_its_rate_carries_and_no_more_after_a_pause() {
        let sink = UdpSocket::bind(("127.0.0.1", 0)).expect("a sink");
        let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
        socket.connect(sink.local_addr().expect("its address")).expect("connect");
        sink.set_nonblocking(true).expect("set up");
        let came = || std::iter::from_fn(|| sink.recv(&mut [0; 2000]).ok()).collect::<Vec<_>>();
        // 1000 and 500 bytes at 12 Mbit/s: a pair of packets in each millisecond.
        let frames = &[1000, 500];
        let header_bytes = udp_header_bytes(Ipv4Addr::LOCALHOST.into());
        let mut flow =
            Paced { socket, frames, header_bytes, bits_per_s: 12e6, next: 0, due_ns: 0.0 };
        flow.send_due(0.0);
        assert_eq!(came(), [958], "the first one is due at once");
        flow.send_due(2.9e6);
        assert_eq!(came(), [458, 958, 458, 958, 458]);
        flow.send_due(1e9 + 1.0);
        assert_eq!(came().len(), 11, "5 ms of a second are made up for");
    }

    #[test]
    fn headers_of_udp_are_20_bytes_longer_over_ipv6() {
        let header_bytes = |address: &str| udp_header_bytes(address.parse().expect("an address"));
        assert_eq!((header_bytes("127.0.0.1"), header_bytes("::1")), (42, 62));
    }
}
