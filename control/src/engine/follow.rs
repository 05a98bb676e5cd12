//! What changes in the kernel's routing reaches the workers: events go into the mirror, the
//! mirror's FIB into their tables, and what it wants of neighbors back to the kernel.

use super::Engine;
use crate::fib::Followed;
use crate::netlink::Event;

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
        if followed.changed || followed.resync {
            self.publish_routes();
        }
    }

    /// Brings the uplinks, and the neighbors that lie on them, up to date once a second.
    pub(super) fn look_after_uplinks(&mut self) {
        if self.config.uplink.interfaces.is_empty() {
            return;
        }
        self.watch_uplinks();
        if self.mirror.is_due() {
            self.publish_routes(); // the kernel could not be asked before
        }
        self.resolve_neighbors();
        if let Err(error) = self.steer() {
            tracing::error!("tell the uplinks' program what is ours: {error:#}");
        }
    }

    /// Gives the workers the routes of now. The kernel's are listed first if they have to be; when
    /// that fails, again a second later.
    pub(super) fn publish_routes(&mut self) {
        let is_due = self.mirror.is_due() && !self.config.uplink.interfaces.is_empty();
        if is_due && let Err(error) = self.mirror.resync(&mut self.netlink) {
            tracing::error!(%error, "list the kernel's routes");
        }
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
