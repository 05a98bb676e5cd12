//! Attempts: what becomes of a client at an address where one of several may serve, or none. Who
//! compares two forwarders needs an answer also where a visit fails.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::is_timeout;
use super::visit::{Host, Transport, Visitor, caller};
use crate::netns::Namespace;

/// What has not come by then never will: a path that works takes microseconds, or seconds where a
/// busy machine keeps a worker waiting; and some of those that are tried do not work, which has to
/// be waited for.
const SILENT_AFTER: Duration = Duration::from_secs(2);

/// What became of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The host of this index serves it, both directions.
    Served(usize, Visitor),
    /// The host of this index hears it, but its answer is lost.
    OneWay(usize),
    /// It is told that nobody serves it.
    Refused,
    /// Its own kernel refuses to send.
    NotSent,
    /// It hears nothing, and no host does.
    Silence,
}

/// Tries TCP or UDP from a namespace.
///
/// # Errors
/// When a socket cannot be used; never for what becomes of the client.
pub fn attempt(
    from: &Namespace,
    dial: SocketAddr,
    transport: Transport,
    hosts: &[&Host],
) -> Result<Answer> {
    for host in hosts {
        while host.pending(transport)?.is_some() {}
    }
    match transport {
        Transport::Tcp => attempt_tcp(from, dial, hosts),
        Transport::Udp => attempt_udp(from, dial, hosts),
        Transport::Sctp => bail!("nobody tells raw sockets"),
    }
}

fn attempt_tcp(from: &Namespace, dial: SocketAddr, hosts: &[&Host]) -> Result<Answer> {
    let client = match from.within(|| TcpStream::connect_timeout(&dial, SILENT_AFTER))? {
        Ok(client) => client,
        Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(Answer::Silence),
        Err(error) if is_refusal(&error) => return Ok(Answer::Refused),
        Err(error) if error.kind() == ErrorKind::InvalidInput => return Ok(Answer::NotSent),
        Err(error) => return Err(error).with_context(|| format!("connect to {dial}")),
    };
    let own = client.local_addr()?;
    match first(Transport::Tcp, hosts, || Ok(false))? {
        Some((by, seen)) => Ok(Answer::Served(by, Visitor { own, seen })),
        None => bail!("somebody who was not asked serves {dial}"),
    }
}

fn attempt_udp(from: &Namespace, dial: SocketAddr, hosts: &[&Host]) -> Result<Answer> {
    let client = caller(from, dial)?;
    let own = client.local_addr()?;
    match client.send(b"?") {
        Err(error) if error.kind() == ErrorKind::InvalidInput => return Ok(Answer::NotSent),
        sent => sent.with_context(|| format!("send to {dial}"))?,
    };
    let mut refused = false;
    let heard = first(Transport::Udp, hosts, || {
        refused = client.take_error()?.is_some_and(|error| is_refusal(&error));
        Ok(refused)
    })?;
    let Some((by, seen)) = heard else {
        return Ok(if refused { Answer::Refused } else { Answer::Silence });
    };
    hosts[by].udp().send_to(b"!", seen)?;
    client.set_read_timeout(Some(SILENT_AFTER))?;
    match client.recv(&mut [0; 8]) {
        Ok(_) => Ok(Answer::Served(by, Visitor { own, seen })),
        Err(error) if is_timeout(&error) => Ok(Answer::OneWay(by)),
        Err(error) => Err(error).context("wait for an answer"),
    }
}

/// The first host that somebody comes to, and who; none if the client is told not to wait.
fn first(
    transport: Transport,
    hosts: &[&Host],
    mut is_told: impl FnMut() -> Result<bool>,
) -> Result<Option<(usize, SocketAddr)>> {
    let end = Instant::now() + SILENT_AFTER;
    loop {
        for (by, host) in hosts.iter().enumerate() {
            if let Some(seen) = host.pending(transport)? {
                return Ok(Some((by, seen)));
            }
        }
        if is_told()? || Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether an error is what somebody has told: a reset, or an ICMP error.
fn is_refusal(error: &std::io::Error) -> bool {
    use ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
}
