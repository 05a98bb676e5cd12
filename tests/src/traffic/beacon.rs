//! Datagrams at a steady pace to one address, wherever that is at the moment: when did the first
//! come to a place, and the last? Beside it, when the kernel said that a route has changed.

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::is_timeout;
use crate::netns::{Namespace, wait_until};

/// Between two datagrams: how precise times of arrival are.
const PACE: Duration = Duration::from_micros(500);

/// `ip monitor` listens some milliseconds after it was started.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

/// How often a receiver looks whether it should end.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Sends until it is dropped.
#[derive(Debug)]
pub struct Beacon {
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
}

impl Beacon {
    /// Starts to send from a socket.
    #[must_use]
    pub fn start(from: UdpSocket, to: SocketAddr) -> Beacon {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let sender = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // An ICMP error about an earlier datagram is no reason to stop: there may be no way
                // now and one later.
                let _ = from.send_to(b"beacon", to);
                thread::sleep(PACE);
            }
        });
        Beacon { stop, sender: Some(sender) }
    }
}

impl Drop for Beacon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ = sender.join(); // It does not panic.
        }
    }
}

/// A place that datagrams may come to.
#[derive(Debug)]
pub struct Site {
    arrivals: Arc<Mutex<Vec<Instant>>>,
    stop: Arc<AtomicBool>,
}

impl Site {
    /// Starts to note when something comes to a socket.
    ///
    /// # Errors
    /// When the socket has no deadline.
    pub fn watch(socket: UdpSocket) -> Result<Site> {
        socket.set_read_timeout(Some(LOOK_UP))?;
        let site = Site { arrivals: Arc::default(), stop: Arc::default() };
        let (arrivals, stop) = (site.arrivals.clone(), site.stop.clone());
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match socket.recv(&mut [0; 16]) {
                    Ok(_) => arrivals.lock().expect("nobody panics with it").push(Instant::now()),
                    Err(error) if is_timeout(&error) => {}
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return, // Nothing comes any more: the test will find that.
                }
            }
        });
        Ok(site)
    }

    /// When the first came after a moment.
    #[must_use]
    pub fn first_after(&self, moment: Instant) -> Option<Instant> {
        let arrivals = self.arrivals.lock().expect("nobody panics with it");
        arrivals.iter().copied().find(|arrival| *arrival > moment)
    }

    /// When the last one came so far.
    #[must_use]
    pub fn last(&self) -> Option<Instant> {
        self.arrivals.lock().expect("nobody panics with it").last().copied()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What `ip monitor route` says, and when. Dropped, it ends.
#[derive(Debug)]
pub struct RouteEvents {
    monitor: Child,
    lines: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl RouteEvents {
    /// Starts to listen in a namespace; of routes of one family, `-4` or `-6`.
    ///
    /// # Errors
    /// When `ip` cannot be started.
    pub fn listen(namespace: &Namespace, family: &str) -> Result<RouteEvents> {
        let mut command = Command::new("ip");
        command.args([family, "monitor", "route"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut monitor = namespace.within(|| command.spawn())?.context("start ip monitor")?;
        let stdout = BufReader::new(monitor.stdout.take().context("stdout is piped")?);
        let lines: Arc<Mutex<Vec<(Instant, String)>>> = Arc::default();
        let heard = lines.clone();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                heard.lock().expect("nobody panics with it").push((Instant::now(), line));
            }
        });
        let events = RouteEvents { monitor, lines };
        // A route that leads nowhere, in a table that nobody looks at: heard of, it is listening.
        let (address, started) =
            (if family == "-4" { "203.0.113.77" } else { "2001:db8:77::77" }, Instant::now());
        wait_until("ip monitor listens", LISTENS_WITHIN, || {
            for verb in ["add", "del"] {
                namespace.ip(&[family, "route", verb, "unreachable", address, "table", "7777"])?;
            }
            Ok(events.first_after(started, address).is_some())
        })?;
        Ok(events)
    }

    /// When something that contains `words` was said first, after a moment.
    #[must_use]
    pub fn first_after(&self, moment: Instant, words: &str) -> Option<Instant> {
        let lines = self.lines.lock().expect("nobody panics with it");
        let told = |(when, line): &&(Instant, String)| *when > moment && line.contains(words);
        lines.iter().find(told).map(|(when, _)| *when)
    }
}

impl Drop for RouteEvents {
    fn drop(&mut self) {
        let _ = self.monitor.kill(); // It may have ended.
        let _ = self.monitor.wait();
    }
}
