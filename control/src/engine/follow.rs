//! What changes in the kernel's routing reaches the workers: events go into the mirror, the
//! mirror's FIB into their tables, and what it wants of neighbors back to the kernel.

use super::Engine;
use crate::fib::Followed;
use crate::netlink::Event;

impl Engine {
    /// Follows what has changed in the kernel's routing: routes, rules, neighbors, links. Give it
    /// every event, in order.
    pub fn follow(&mut self, events: &[Event]) {
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
        if followed.resync {
            self.resync();
        }
        let changed = (uplink_changed && self.watch_uplinks()) | followed.changed | followed.resync;
        if changed {
            self.publish_routes();
        }
    }

    /// Brings the uplinks, and the neighbors that lie on them, up to date once a second.
    pub(super) fn look_after_uplinks(&mut self) {
        let stale = self.mirror_is_stale;
        if stale {
            self.resync();
        }
        if self.watch_uplinks() | stale {
            self.publish_routes();
        }
        self.resolve_neighbors();
        if let Err(error) = self.steer() {
            tracing::error!("tell the uplinks' program what is ours: {error:#}");
        }
    }

    /// Lists the kernel's routes anew; when that fails, again a second later.
    pub(super) fn resync(&mut self) {
        let listed = self.mirror.resync(&mut self.netlink);
        self.mirror_is_stale = listed.is_err();
        if let Err(error) = listed {
            tracing::error!(%error, "list the kernel's routes");
        }
    }

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
