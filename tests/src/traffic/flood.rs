//! UDP with sequence numbers at a steady rate: counts what is lost, and when.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::is_timeout;
use crate::netns::wait_until;

/// Between bursts: the shortest sleep that costs no more than it gives on a busy machine.
const TICK: Duration = Duration::from_millis(1);

/// After the last datagram was sent, one that has not come by then never will.
const LINGER: Duration = Duration::from_secs(1);

/// Waits are for a few thousand datagrams, at thousands a second.
const SENT_WITHIN: Duration = Duration::from_secs(30);

/// Datagrams under way at a steady rate.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<Vec<u64>>>,
}

/// What became of them.
#[derive(Clone, Debug)]
pub struct Flooded {
    /// Datagrams sent; their numbers are 0 to this, exclusive.
    pub sent: u64,
    /// The numbers of those that never came, ascending.
    pub lost: Vec<u64>,
    /// Datagrams that came more than once.
    pub doubled: u64,
}

impl Flooded {
    /// How many of the numbers from `first` to `end`, exclusive, were lost.
    #[must_use]
    pub fn lost_between(&self, first: u64, end: u64) -> u64 {
        self.lost.iter().filter(|number| (first..end).contains(number)).count() as u64
    }
}

impl Flood {
    /// Sends `rate` datagrams per second from one socket to the other until stopped.
    ///
    /// # Errors
    /// When the sockets cannot be used.
    pub fn start(from: UdpSocket, to: UdpSocket, rate: u32) -> Result<Flood> {
        from.connect(to.local_addr()?)?;
        to.set_read_timeout(Some(LINGER))?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (stop.clone(), sent.clone());
        let sender = thread::spawn(move || send(&from, rate, &stopped, &count));
        let ended = stop.clone();
        let receiver = thread::spawn(move || receive(&to, &ended));
        Ok(Flood { stop, sent, sender, receiver })
    }

    /// The number of the next datagram: those before it have been sent by now.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until `count` more have been sent: at a steady rate, the time that takes. Returns the
    /// number of the next.
    ///
    /// # Errors
    /// When sending has stopped.
    pub fn wait_for(&self, count: u64) -> Result<u64> {
        let end = self.mark() + count;
        wait_until("datagrams are sent", SENT_WITHIN, || Ok(self.mark() >= end))?;
        Ok(self.mark())
    }

    /// Ends it and counts.
    ///
    /// # Errors
    /// When sending or receiving failed.
    pub fn stop(self) -> Result<Flooded> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender does not panic")?;
        let times = self.receiver.join().expect("the receiver does not panic")?;
        let came = |number: &u64| times.get(*number as usize).copied().unwrap_or_default();
        let lost = (0..sent).filter(|number| came(number) == 0).collect();
        let doubled = times.iter().map(|times| times.saturating_sub(1)).sum();
        Ok(Flooded { sent, lost, doubled })
    }
}

/// Sends what is due at each tick, also what a late tick has left over.
fn send(socket: &UdpSocket, rate: u32, stop: &AtomicBool, sent: &AtomicU64) -> Result<u64> {
    let started = Instant::now();
    let mut next = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while next < due {
            match socket.send(&next.to_be_bytes()) {
                Ok(_) => next += 1,
                // What an ICMP error said of an earlier datagram; this one was not sent.
                Err(error) if error.raw_os_error().is_some() && is_news(&error) => {}
                Err(error) => return Err(error).context("send a datagram"),
            }
            sent.store(next, Ordering::Relaxed);
        }
        thread::sleep(TICK);
    }
    Ok(next)
}

fn is_news(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
}

/// How often each number came.
fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Result<Vec<u64>> {
    let mut times = Vec::new();
    let mut number = [0; 8];
    loop {
        match socket.recv(&mut number) {
            Ok(8) => {
                let index = u64::from_be_bytes(number) as usize;
                if times.len() <= index {
                    times.resize(index + 1, 0);
                }
                times[index] += 1;
            }
            Ok(_) => {}
            Err(error) if is_timeout(&error) && stop.load(Ordering::Relaxed) => return Ok(times),
            Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("receive a datagram"),
        }
    }
}
