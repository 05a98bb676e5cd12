//! More than a limit lets through: datagrams of one size or of several at a steady rate, or as fast
//! as they can be sent, and what of them arrives, in bytes as on a wire.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::is_timeout;

/// Between bursts: the shortest sleep that costs no more than it gives on a busy machine.
const TICK: Duration = Duration::from_millis(1);

/// A sender that got no time for longer leaves out what it could not send: the rest would come in
/// one burst.
const CATCH_UP: Duration = Duration::from_millis(50);

/// How soon a receiver that hears nothing notices that it is to stop.
const LOOK_UP: Duration = Duration::from_millis(100);

/// Bytes of Ethernet, IP and UDP headers, IPv4 and IPv6.
const HEADERS: [u64; 2] = [14 + 20 + 8, 14 + 40 + 8];

/// Datagrams under way, until it is dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
}

impl Load {
    /// Sends datagrams from one socket to `dial`, where the other one is expected to get them:
    /// with each of these numbers of bytes in turn; `bits_per_s` of them, as on a wire, or without a
    /// pause.
    ///
    /// Several loads may come to one socket: then only the sum of what arrived means anything.
    ///
    /// # Errors
    /// When the sockets cannot be used.
    pub fn start(
        from: &UdpSocket,
        to: &UdpSocket,
        dial: SocketAddr,
        payloads: &'static [usize],
        bits_per_s: Option<u64>,
    ) -> Result<Load> {
        let load = Load { stop: Arc::default(), arrived: Arc::default() };
        let headers = HEADERS[usize::from(dial.is_ipv6())];
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        to.set_read_timeout(Some(LOOK_UP))?;
        let stop = load.stop.clone();
        let turn_bits: u64 = payloads.iter().map(|payload| 8 * (*payload as u64 + headers)).sum();
        let turns = bits_per_s.map(|bits| bits as f64 / turn_bits as f64);
        let rate = turns.map(|turns| turns * payloads.len() as f64);
        thread::spawn(move || send(&from, dial, payloads, rate, &stop));
        let (stop, arrived) = (load.stop.clone(), load.arrived.clone());
        thread::spawn(move || receive(&to, headers, &stop, &arrived));
        Ok(load)
    }

    /// Bytes that have arrived so far, Ethernet header included.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn send(
    socket: &UdpSocket,
    dial: SocketAddr,
    payloads: &[usize],
    per_second: Option<f64>,
    stop: &AtomicBool,
) {
    let zeros = vec![0; payloads.iter().copied().max().unwrap_or_default()];
    let mut payloads = payloads.iter().cycle();
    let (mut next, mut looked) = (0.0, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        // Without a pause: as many as make the look at the clock cheap.
        let passed = looked.elapsed().min(CATCH_UP).as_secs_f64();
        looked = Instant::now();
        next += per_second.map_or(64.0, |rate| passed * rate);
        while next >= 1.0 && !stop.load(Ordering::Relaxed) {
            let payload = &zeros[..*payloads.next().expect("there is a size")];
            // A socket that is not connected hears nothing of ICMP errors; a full queue of the
            // sender's own (ENOBUFS) is a loss like any other.
            let _ = socket.send_to(payload, dial);
            next -= 1.0;
        }
        if per_second.is_some() {
            thread::sleep(TICK);
        }
    }
}

fn receive(socket: &UdpSocket, headers: u64, stop: &AtomicBool, arrived: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut buffer) {
            Ok(len) => {
                arrived.fetch_add(len as u64 + headers, Ordering::Relaxed);
            }
            Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("receive a datagram"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::wait_until;

    #[test]
    fn what_arrives_is_counted_with_its_headers_and_comes_at_the_rate() {
        let [from, to] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        let dial = to.local_addr().expect("an address");
        let started = Instant::now();
        // 1042 bytes of each on average.
        let load = Load::start(&from, &to, dial, &[900, 1100], Some(8 * 1042 * 1000));
        let load = load.expect("a load");
        wait_until("a hundred have come", Duration::from_secs(20), || {
            Ok(load.wire_bytes() >= 100 * 1042)
        })
        .expect("a thousand a second");
        assert!([0, 942].contains(&(load.wire_bytes() % 2084)), "whole datagrams, in turn");
        let came = load.wire_bytes() as f64 / 1042.0;
        let most = started.elapsed().as_secs_f64() * 1000.0;
        assert!(came <= most + 1.0, "{came} of {most}");
    }
}
