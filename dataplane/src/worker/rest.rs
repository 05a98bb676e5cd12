//! The worker's thread: passes while there is work, sleep when there is none, housekeeping now
//! and then.

use std::num::NonZeroU64;
use std::time::Duration;

use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::thread::set_current_timer_slack;

use super::Worker;
use crate::port::{PacketIo, WorkerId};

/// How long the worker looks for packets in vain before it sleeps. Short: on a node with as many
/// busy pods as cores a spinning worker takes the CPU that a pod would use to send. Instead of 20
/// looks, which among 250 ports kept half a core busy for 10,000 packets a second, 0.5, 1, 2 and
/// 4 µs gave 1.13, 0.99, 0.94 and 0.95 times the rate of one TCP stream between two pods (medians
/// of six paired turns), and between nodes 0.91 (0.5 µs) and 1.02 (1 µs).
const SPIN_NS: u64 = 1_000;

/// Longest sleep: the kernel's drop counters are mirrored this often on an idle node.
const SLEEP_MAX: Duration = Duration::from_millis(250);

/// Sleep while a port has packets that the kernel did not take: its send buffer was full, and pods
/// empty theirs within a scheduling slice.
const SEND_AGAIN: Duration = Duration::from_millis(1);

/// Between two rounds of housekeeping on a busy node.
const HOUSEKEEPING_NS: u64 = 100_000_000;

/// How late the kernel may end a sleep, to end several at once: by default 50 µs, in which a limit
/// of 1 Gbit/s has become due for four packets.
const TIMER_SLACK_NS: u64 = 1_000;

/// Packets of a port in one pass from which on its packets are not to wake the worker until it is
/// about to sleep. To wake somebody who is awake was a quarter of the sender's core in a stream
/// between two nodes; without it one stream was 1.07 times as fast, four were 1.12 times (medians
/// of twelve paired turns of `viaduct-perf wire`).
const BUSY_PACKETS: usize = 8;

/// Whether packets of a port wake the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    /// Not now: the worker is awake and looks by itself. A new port begins so.
    No,
    /// They do.
    Yes,
    /// They did, and come in such numbers that the worker looks anyway.
    InVain,
    /// No more: its interface is gone.
    Never,
}

impl Watch {
    /// Notes how many packets came in a pass; true when it is time to stop watching.
    pub(super) fn is_in_vain(&mut self, packets: usize) -> bool {
        let is_busy = *self == Watch::Yes && packets >= BUSY_PACKETS;
        if is_busy {
            *self = Watch::InVain;
        }
        is_busy
    }
}

/// What a sleeping worker waits on: its bell, and the ports' sockets.
#[derive(Debug)]
pub struct Rest {
    epoll: OwnedFd,
}

impl Rest {
    /// Waits on nothing yet.
    pub fn new() -> std::io::Result<Rest> {
        Ok(Rest { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }
}

impl<P: PacketIo> Worker<P> {
    /// Runs until ordered to stop. Returns the worker's number for the log.
    pub fn run(mut self, rest: Rest) -> WorkerId {
        self.started_ns = monotonic_ns();
        // Where it cannot be had, limits are kept all the same, in larger steps.
        let _shorter = set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS));
        let bell = self.bell.clone();
        watch(&rest, bell.event(), BELL);
        let mut woken_by = Vec::with_capacity(1);
        let (mut busy, mut housekept) = (0, 0);
        while !self.stopping {
            let now_ns = monotonic_ns();
            let taken = self.pass(now_ns);
            if std::mem::take(&mut self.some_busy) {
                self.unwatch_busy(&rest);
            }
            if taken > 0 {
                busy = monotonic_ns();
                self.counters.busy_ns.add(busy - now_ns);
            }
            if now_ns - housekept >= HOUSEKEEPING_NS {
                housekept = now_ns;
                self.housekeep(now_ns);
            }
            if taken == 0 && now_ns - busy >= SPIN_NS {
                self.settle();
                self.housekeep_cheaply(now_ns);
                self.sleep(&rest, &mut woken_by);
            }
        }
        self.drain();
        self.id
    }

    /// Sends what waits for more to come: before the worker rests, which it does only when nothing
    /// has come for some microseconds.
    pub fn settle(&mut self) {
        self.let_all_go();
        self.kick();
    }

    /// Sleeps until a packet, the bell or the longest sleep.
    fn sleep(&mut self, rest: &Rest, woken_by: &mut Vec<epoll::Event>) {
        self.watch_ports(rest);
        self.bell.going_to_sleep();
        // What came in between is seen now, or rings the bell from now on.
        let newest = self.subscription.adopt().generation();
        let waiting = !self.commands.is_empty()
            || newest != self.tables.generation()
            || !self.flows.orders.is_empty()
            || self.incoming.iter().any(|i| !i.is_empty());
        if !waiting {
            // Nothing wakes us when the kernel has room for what it could not take.
            let longest = if self.to_kick.is_empty() { SLEEP_MAX } else { SEND_AGAIN };
            let timeout = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: self.until_due(longest).as_nanos() as i64,
            };
            // Who it was does not matter: the next pass looks at every port.
            woken_by.clear();
            let events = rustix::buffer::spare_capacity(woken_by);
            // An interrupted sleep is a short one.
            let _woken = epoll::wait(&rest.epoll, events, Some(&timeout));
            self.unwatch_dead(rest, woken_by);
        }
        self.bell.awake();
    }

    /// A socket whose interface is gone is readable for ever: it must not keep the worker awake
    /// until control takes the port away.
    fn unwatch_dead(&mut self, rest: &Rest, woken_by: &[epoll::Event]) {
        let dead = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        for event in woken_by {
            // Copied: the kernel's struct is packed.
            let (flags, token) = (event.flags, event.data.u64());
            if !flags.intersects(dead) {
                continue;
            }
            let port = self.ports.iter_mut().find(|port| u64::from(port.id.0) == token);
            if let Some(port) = port {
                unwatch(rest, port.io.readiness());
                port.watch = Watch::Never;
            }
        }
    }

    /// Before a sleep: whatever comes to a port from now on ends it. What has come already is ready
    /// at once. A closed socket leaves epoll by itself.
    fn watch_ports(&mut self, rest: &Rest) {
        for port in self.ports.iter_mut().filter(|port| port.watch == Watch::No) {
            if let Some(fd) = port.io.readiness() {
                watch(rest, fd, u64::from(port.id.0));
            }
            port.watch = Watch::Yes;
        }
    }

    fn unwatch_busy(&mut self, rest: &Rest) {
        for port in self.ports.iter_mut().filter(|port| port.watch == Watch::InVain) {
            unwatch(rest, port.io.readiness());
            port.watch = Watch::No;
        }
    }

    /// Everything that is not per packet; [`Worker::run`] does it ten times a second.
    pub fn housekeep(&mut self, now_ns: u64) {
        for index in 0..self.ports.len() {
            self.ports[index].mirror_kernel_drops(self.pool.count());
            self.publish_line(index);
        }
        self.housekeep_cheaply(now_ns);
    }

    /// The part of housekeeping that makes no system call: done before every sleep, so that the
    /// counters of a sleeping worker are exact.
    fn housekeep_cheaply(&mut self, now_ns: u64) {
        self.counters.running_ns.set(now_ns - self.started_ns);
        self.publish_frame_counts();
    }

    /// Publishes where the frames are.
    pub fn publish_frame_counts(&mut self) {
        let count = self.pool.count();
        debug_assert!(count.conserved(), "frame law: {count:?}");
        self.counters.frames_free.set(u64::from(count.free));
        self.counters.frames_rx.set(u64::from(count.rx));
        self.counters.frames_tx.set(u64::from(count.tx));
        self.counters.frames_crossing.set(u64::from(count.crossing));
        self.counters.frames_held.set(u64::from(count.work));
    }

    /// Stop is designed: what was received is served, what was queued is sent.
    fn drain(&mut self) {
        /// Passes until rings that nobody fills any more are empty.
        const PASSES_MAX: u32 = 64;
        for _ in 0..PASSES_MAX {
            if self.pass(self.now_ns) == 0 {
                break;
            }
        }
        self.let_waiting_go();
        self.settle();
        self.publish_frame_counts();
    }
}

/// Token of the bell: no port number.
const BELL: u64 = u64::MAX;

fn watch(rest: &Rest, fd: rustix::fd::BorrowedFd<'_>, token: u64) {
    let added =
        epoll::add(&rest.epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN);
    assert!(
        matches!(added, Ok(()) | Err(rustix::io::Errno::EXIST)),
        "epoll takes any live descriptor: {added:?}"
    );
}

fn unwatch(rest: &Rest, fd: Option<rustix::fd::BorrowedFd<'_>>) {
    let Some(fd) = fd else { return };
    let deleted = epoll::delete(&rest.epoll, fd);
    debug_assert!(deleted.is_ok(), "a watched descriptor can be unwatched");
}

/// The time that workers live by, in ns since the boot: the same for all processes of a boot, so
/// that flows outlive them.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // It begins at 0 with the boot, and ends in 584 years.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watched_port_that_is_busy_is_watched_in_vain_and_no_other_is() {
        for (watch, packets, in_vain) in [
            (Watch::Yes, BUSY_PACKETS, true),
            (Watch::Yes, BUSY_PACKETS - 1, false),
            (Watch::No, BUSY_PACKETS, false),
            (Watch::Never, BUSY_PACKETS, false),
        ] {
            let mut now = watch;
            assert_eq!(now.is_in_vain(packets), in_vain, "{watch:?}, {packets} packets");
            assert_eq!(now, if in_vain { Watch::InVain } else { watch });
        }
    }
}
