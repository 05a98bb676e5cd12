//! Numbered datagrams, as many as the receiver keeps up with: do they come in order?

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::is_timeout;

/// Datagrams that may be under way: few enough for the shortest queue on any path, which holds
/// 128, and enough to keep it from running empty.
const UNDER_WAY_MAX: u64 = 96;

/// A datagram that has not come by then is lost; the next ones are sent without it. Longer than a
/// busy machine keeps a worker waiting: more under way than have room would be lost indeed.
const LOST_AFTER: Duration = Duration::from_secs(2);

/// After the last datagram was sent, one that has not come by then never will.
const LINGER: Duration = Duration::from_secs(2);

/// What became of a sequence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sequence {
    /// Datagrams that came.
    pub came: u64,
    /// Datagrams that never came.
    pub lost: u64,
    /// Datagrams that came when a later one, or themselves, had come before.
    pub late: u64,
    /// From the first that was sent to the last that came.
    pub took: Duration,
}

/// Sends `count` numbered datagrams from one socket to the other, no more at a time than have room
/// on the way.
///
/// # Errors
/// When the sockets cannot be used.
pub fn sequence(from: &UdpSocket, to: &UdpSocket, count: u64) -> Result<Sequence> {
    from.connect(to.local_addr()?)?;
    to.set_read_timeout(Some(LINGER))?;
    // Datagrams up to this number have come, or something later has.
    let reached = AtomicU64::new(0);
    let all_sent = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(to, count, &reached, &all_sent));
        let sent = send(from, count, &reached);
        all_sent.store(true, Ordering::Relaxed);
        let received = receiver.join().expect("the receiver does not panic");
        sent.and(received)
    })
}

fn send(socket: &UdpSocket, count: u64, reached: &AtomicU64) -> Result<()> {
    // What the window is counted from: beyond `reached` when datagrams were lost.
    let mut base = 0;
    for number in 0..count {
        let stalled = Instant::now();
        while number >= base + UNDER_WAY_MAX {
            base = base.max(reached.load(Ordering::Relaxed));
            if stalled.elapsed() > LOST_AFTER {
                base = number;
            }
            thread::yield_now();
        }
        socket.send(&number.to_be_bytes()).with_context(|| format!("send datagram {number}"))?;
    }
    Ok(())
}

fn receive(
    socket: &UdpSocket,
    count: u64,
    reached: &AtomicU64,
    all_sent: &AtomicBool,
) -> Result<Sequence> {
    let started = Instant::now();
    let mut sequence = Sequence::default();
    let mut next = 0;
    let mut number = [0; 8];
    while next < count {
        match socket.recv(&mut number) {
            Ok(8) => {
                let number = u64::from_be_bytes(number);
                sequence.came += 1;
                sequence.took = started.elapsed();
                sequence.late += u64::from(number < next);
                next = next.max(number + 1);
                reached.store(next, Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(error) if is_timeout(&error) && all_sent.load(Ordering::Relaxed) => break,
            Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("receive a datagram"),
        }
    }
    sequence.lost = (count + sequence.late).saturating_sub(sequence.came);
    Ok(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_the_loopback_everything_comes_in_order() {
        let [from, to] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        let Sequence { came, lost, late, .. } = sequence(&from, &to, 10_000).expect("a sequence");
        assert_eq!((came, lost, late), (10_000, 0, 0));
    }

    #[test]
    fn datagrams_that_overtake_and_that_are_missing_are_counted() {
        let [from, to] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        to.set_read_timeout(Some(Duration::from_millis(10))).expect("a deadline");
        from.connect(to.local_addr().expect("an address")).expect("connect");
        for number in [0_u64, 2, 1, 3, 3, 7] {
            from.send(&number.to_be_bytes()).expect("send");
        }
        let (reached, all_sent) = (AtomicU64::new(0), AtomicBool::new(true));
        let seen = receive(&to, 9, &reached, &all_sent).expect("receive");
        assert_eq!((seen.came, seen.late, seen.lost), (6, 2, 5));
        assert_eq!(reached.into_inner(), 8);
    }
}
