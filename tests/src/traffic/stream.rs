//! TCP: transfers that check every byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::netns::{Namespace, wait_until};

/// A connection that moves nothing for so long is dead. TCP's own patience after a loss doubles
/// from 200 ms: four losses of the same segment take 6 s.
const DEAD_AFTER: Duration = Duration::from_secs(12);

/// A transfer that takes so long loses most of its packets: the longest here is 50 MB.
const TOO_SLOW: Duration = Duration::from_secs(20);

/// Bytes per write.
const PIECE_BYTES: usize = 1 << 17;

/// The pattern repeats after so many bytes: a prime number, so that no lost or doubled packet,
/// frame or page shifts it onto itself.
const PERIOD: usize = 1_000_003;

/// The pattern, and its beginning once more, so that no piece has to wrap.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let byte = |_| {
        // Xorshift: looks random, and is the same everywhere.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    let mut pattern: Vec<u8> = (0..PERIOD).map(byte).collect();
    pattern.extend_from_within(..PIECE_BYTES);
    pattern
});

/// `len` bytes (at most 128 KiB) of the pattern that every stream carries, from `offset` on.
pub(super) fn pattern(offset: u64, len: usize) -> &'static [u8] {
    let start = (offset % PERIOD as u64) as usize;
    &PATTERN[start..start + len]
}

/// Listens in a namespace; port 0 chooses one.
///
/// # Errors
/// When the address cannot be bound.
pub fn listen(namespace: &Namespace, address: IpAddr, port: u16) -> Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    namespace.within(|| TcpListener::bind(address))?.with_context(|| format!("listen on {address}"))
}

/// Connects from a namespace to `dial`, where `listener` is expected to be reached.
///
/// # Errors
/// When it is not.
pub fn connect(
    from: &Namespace,
    dial: SocketAddr,
    listener: &TcpListener,
) -> Result<(TcpStream, TcpStream)> {
    let client = from.within(|| TcpStream::connect_timeout(&dial, DEAD_AFTER))?;
    let client = client.with_context(|| format!("connect to {dial}"))?;
    listener.set_nonblocking(true)?;
    let mut accepted = None;
    wait_until("the connection is accepted", DEAD_AFTER, || {
        accepted = listener.accept().ok();
        Ok(accepted.is_some())
    })?;
    let (server, _) = accepted.context("it was accepted")?;
    server.set_nonblocking(false)?;
    for end in [&client, &server] {
        end.set_read_timeout(Some(DEAD_AFTER))?;
        end.set_write_timeout(Some(DEAD_AFTER))?;
    }
    Ok((client, server))
}

/// Sends `bytes` from one end to the other and checks each.
///
/// # Errors
/// When one is missing or another.
pub fn pump(from: &TcpStream, to: &TcpStream, bytes: u64) -> Result<()> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(from, 0, bytes));
        let received = receive_all(to, bytes);
        if received.is_err() {
            let _ = from.shutdown(Shutdown::Both); // so that the sender ends, too
        }
        let sent = sender.join().expect("the sender does not panic");
        received.and(sent)
    })
}

fn receive_all(from: &TcpStream, bytes: u64) -> Result<()> {
    let started = Instant::now();
    let mut seen = 0;
    let mut buffer = vec![0; PIECE_BYTES];
    while seen < bytes {
        let most = (bytes - seen).min(PIECE_BYTES as u64) as usize;
        let len = receive(from, seen, &mut buffer[..most])?;
        ensure!(len > 0, "the stream ends after {seen} of {bytes} bytes");
        seen += len as u64;
        let took = started.elapsed();
        ensure!(took < TOO_SLOW, "only {seen} of {bytes} bytes came in {took:.1?}");
    }
    Ok(())
}

/// A connection there and a transfer over it, both ways.
///
/// # Errors
/// When one fails.
pub fn transfer(from: &Namespace, to: &Namespace, address: IpAddr, bytes: u64) -> Result<()> {
    let listener = listen(to, address, 0)?;
    let (client, server) = connect(from, listener.local_addr()?, &listener)?;
    pump(&client, &server, bytes).with_context(|| format!("{bytes} bytes to {address}"))?;
    pump(&server, &client, bytes).with_context(|| format!("{bytes} bytes from {address}"))
}

fn send(mut stream: &TcpStream, mut offset: u64, end: u64) -> Result<()> {
    while offset < end {
        let len = (end - offset).min(PIECE_BYTES as u64) as usize;
        stream.write_all(pattern(offset, len)).with_context(|| format!("send byte {offset}"))?;
        offset += len as u64;
    }
    Ok(())
}

fn receive(mut stream: &TcpStream, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    // A read with a deadline is not restarted by the kernel when a signal passes by (signal(7)).
    let len = loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => break read.with_context(|| format!("receive byte {offset}"))?,
        }
    };
    ensure!(buffer[..len] == *pattern(offset, len), "bytes from {offset} on are not what was sent");
    Ok(len)
}

/// A transfer that goes on in the background until it is stopped.
#[derive(Debug)]
pub struct Stream {
    ends: [Arc<TcpStream>; 2],
    stop: Arc<AtomicBool>,
    moved: Arc<AtomicU64>,
    sender: JoinHandle<Result<()>>,
    receiver: JoinHandle<Result<()>>,
}

impl Stream {
    /// Starts to send from one end to the other. At most `pace` bytes are sent per millisecond, or
    /// as many as there is room for.
    #[must_use]
    pub fn start(from: TcpStream, to: TcpStream, pace: Option<usize>) -> Stream {
        let ends = [from, to].map(Arc::new);
        let [from, to] = ends.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let moved = Arc::new(AtomicU64::new(0));
        let (stopped, arrived) = (stop.clone(), moved.clone());
        let sender = thread::spawn(move || {
            let piece = pace.unwrap_or(PIECE_BYTES).min(PIECE_BYTES) as u64;
            let mut offset = 0;
            while !stopped.load(Ordering::Relaxed) {
                send(&from, offset, offset + piece)?;
                offset += piece;
                if pace.is_some() {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(from.shutdown(Shutdown::Write)?)
        });
        let receiver = thread::spawn(move || {
            let mut buffer = vec![0; PIECE_BYTES];
            let mut seen = 0;
            loop {
                match receive(&to, seen, &mut buffer)? {
                    0 => return Ok(()),
                    len => seen += len as u64,
                }
                arrived.store(seen, Ordering::Relaxed);
            }
        });
        Stream { ends, stop, moved, sender, receiver }
    }

    /// Bytes that have arrived so far.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Waits until something more arrives.
    ///
    /// # Errors
    /// When nothing does within `deadline`.
    pub fn wait_for_progress(&self, deadline: Duration) -> Result<()> {
        let before = self.moved();
        wait_until("the connection moves", deadline, || Ok(self.moved() > before))
    }

    /// Ends the transfer, waits until all has arrived, and returns how many bytes did.
    ///
    /// # Errors
    /// When the connection broke, or carried something else than was sent.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().expect("the sender does not panic")?;
        self.receiver.join().expect("the receiver does not panic")?;
        Ok(self.moved.load(Ordering::Relaxed))
    }

    /// Ends the transfer where it is, whatever is still under way.
    ///
    /// # Errors
    /// When something else than was sent has arrived.
    pub fn abandon(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        // Whoever waits for room or for bytes waits no longer. The other end may have gone.
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
        let _ = self.sender.join().expect("the sender does not panic");
        match self.receiver.join().expect("the receiver does not panic") {
            // A reset, for what came after the end.
            Err(error) if error.is::<std::io::Error>() => Ok(()),
            received => received,
        }
    }
}
