//! What changes in the kernel's routing reaches the workers: events go into the mirror, the
//! mirror's FIB into their tables, and what it wants of neighbors back to the kernel. Where events
//! do not say enough the kernel is listed anew, a bit in each turn of the loop.

use std::time::{Duration, Instant};

use dataplane::fib::UplinkId;

use super::Engine;
use crate::fib::{Ended, Followed, Mirror, Resync, Schedule};
use crate::netlink::{Event, NetlinkError, Route, TABLE_MAIN, default_routes};

/// What a turn of the loop may list: less than a request for an ADD takes, and so much that the
/// turn itself, some 10 µs, does not count. A read of the kernel, 0.5 ms, is not divided.
const LIST_STEP: Duration = Duration::from_millis(2);

/// Listing the kernel anew.
#[derive(Debug, Default)]
pub(super) struct Listing {
    running: Option<Resync>,
    schedule: Schedule,
}

impl Engine {
    /// Follows what has changed in the kernel's routing: routes, rules, neighbors, links. Give it
    /// every event, in order. Without uplinks there is nobody to follow it.
    pub fn follow(&mut self, events: &[Event]) {
        if self.config.uplink.interfaces.is_empty() {
            return;
        }
        let mut followed = Followed::default();
        let mut uplink_changed = false;
        for event in events {
            followed = followed.and(self.mirror.apply(event));
            if let Some(resync) = &mut self.listing.running {
                resync.note(event);
            }
            uplink_changed |= match event {
                Event::Link(link) | Event::LinkGone(link) => self.uplinks.is_named(&link.name),
                Event::Overrun => true,
                _ => false,
            };
            if let Event::Address(address) = event {
                self.uplinks.announce(address);
            }
        }
        if uplink_changed {
            self.watch_uplinks();
        }
        if self.listing.running.as_ref().is_some_and(Resync::is_void) {
            self.end_listing(Ended::Void);
        }
        if followed.changed {
            self.publish_routes();
        }
    }

    /// How long until [`Engine::list_routes`] has something to do; `None`: until an event comes.
    #[must_use]
    pub fn lists_in(&self, now: Instant) -> Option<Duration> {
        if self.config.uplink.interfaces.is_empty() {
            return None;
        }
        let Listing { running, schedule } = &self.listing;
        match running {
            Some(_) => Some(Duration::ZERO),
            None => schedule.wait(self.mirror.is_due(), now),
        }
    }

    /// Whether the mirror knows the kernel's routes; or cannot, and leaves them to the kernel.
    #[must_use]
    pub fn knows_routes(&self) -> bool {
        self.config.uplink.interfaces.is_empty() || self.listing.schedule.has_tried()
    }

    /// Lists the kernel anew if that is due, as far as one turn of the loop allows. Call it in each
    /// turn in which all events have been followed: those that are older than the list spoil it.
    pub fn list_routes(&mut self, now: Instant) {
        if self.lists_in(now) != Some(Duration::ZERO) {
            return;
        }
        let Listing { running, schedule } = &mut self.listing;
        let stepped = match running {
            Some(resync) => resync.step(now + LIST_STEP),
            None => Resync::begin(&mut self.mirror, &mut self.netlink).map(|begun| {
                let is_current = begun.is_none();
                if !is_current {
                    schedule.begin(now);
                    *running = begun;
                }
                is_current
            }),
        };
        match stepped {
            Ok(false) => {}
            Ok(true) => {
                self.take_listing();
                if let Err(error) = self.follow_addresses() {
                    tracing::error!("follow the node's addresses: {error:#}");
                }
            }
            Err(error) => {
                tracing::error!(%error, "list the kernel's routes");
                self.end_listing(Ended::Failed);
            }
        }
    }

    /// The default routes of the main table; `None` while the mirror is behind the kernel, after
    /// which [`Engine::follow_addresses`] is called again. It saves listing all routes for them.
    pub(super) fn default_routes(&self) -> Result<Option<Vec<Route>>, NetlinkError> {
        if self.config.uplink.interfaces.is_empty() {
            return default_routes().map(Some);
        }
        Ok((!self.mirror.is_due()).then(|| self.mirror.default_routes(TABLE_MAIN)))
    }

    /// Workers forward by what was listed, if anything was.
    fn take_listing(&mut self) {
        let Some(resync) = self.listing.running.take() else { return };
        let how = if resync.was_disturbed() { Ended::Disturbed } else { Ended::Exact };
        let before = std::mem::replace(&mut self.mirror, resync.into_mirror());
        self.listing.schedule.end(how, Instant::now());
        self.publish_routes();
        // The last that holds on to it, now that workers have other tables.
        free(before);
    }

    /// The list that is being made leads to nothing.
    fn end_listing(&mut self, how: Ended) {
        self.listing.schedule.end(how, Instant::now());
        if let Some(resync) = self.listing.running.take() {
            free(resync.into_mirror());
        }
    }

    /// The interface that an uplink is now. Its neighbors are not in a list that is being made.
    pub(super) fn set_uplink(&mut self, id: UplinkId, ifindex: Option<u32>) {
        if self.mirror.set_uplink(id, ifindex) && self.listing.running.is_some() {
            self.end_listing(Ended::Void);
        }
    }

    /// Brings the uplinks, and the neighbors that lie on them, up to date once a second.
    pub(super) fn look_after_uplinks(&mut self) {
        if self.config.uplink.interfaces.is_empty() {
            return;
        }
        self.watch_uplinks();
        self.resolve_neighbors();
        if let Err(error) = self.steer() {
            tracing::error!("tell the uplinks' program what is ours: {error:#}");
        }
    }

    /// Gives the workers the routes of now.
    pub(super) fn publish_routes(&mut self) {
        if let Err(error) = self.publish() {
            tracing::error!(%error, "tell the workers about routes");
        }
        self.resolve_neighbors();
    }

    /// Lets the kernel resolve the routers, and look whether neighbors are still there.
    fn resolve_neighbors(&mut self) {
        let wanted = self.mirror.wanted();
        if wanted.is_empty() {
            return;
        }
        if let Err(error) = self.netlink.execute(wanted) {
            tracing::warn!(%error, "ask the kernel to resolve neighbors");
        }
    }
}

/// Frees a mirror on a thread of its own: one of a million routes takes some 0.1 s. Where there can
/// be no thread, it takes them here.
fn free(mirror: Mirror) {
    let freed = std::thread::Builder::new().name("free".into()).spawn(move || drop(mirror));
    if let Err(error) = freed {
        tracing::debug!(%error, "start a thread to free a mirror");
    }
}
