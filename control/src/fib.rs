//! The mirror of the kernel's routes: what `ip route`, a routing daemon or a router advertisement
//! says, workers follow.
//!
//! A [`Resync`] lists what the kernel has into a new mirror, [`Mirror::apply`] follows the kernel's
//! messages, and both edit the data plane's [`Fib`]. What is not followed is left to the kernel,
//! which is always right: routes by other interfaces, refusals, rules that ask for more than a
//! destination.
//!
//! ```text
//! rules ──► order ──┐
//! routes ─► routes ─┼──► Fib      way: what a route does; each way is one action
//! links, neighbors, │             reach: what a way comes to
//! nexthop objects ──┴─► reach
//! ```

mod listing;
mod neighbors;
mod order;
mod reach;
mod resync;
mod routes;
mod schedule;
mod way;

use std::net::IpAddr;
use std::sync::Arc;

use dataplane::fib::{Action, ActionId, Fib, UplinkId};
use dataplane::tables::Prefix;
use ipnet::IpNet;

pub use self::listing::{ListedHop, ListedRoute};
pub use self::resync::Resync;
pub use self::routes::RouteKey;
pub use self::schedule::{Ended, Schedule};

use self::neighbors::{Learned, Place};
use self::order::Order;
use self::reach::{Reach, Wire};
use self::routes::{Routes, Spot};
use self::way::{KERNEL, Usable, Way, Ways};
use crate::netlink::{Event, Link, Neighbor, Request, Route};
use crate::node::WORKER_IFNAME;

/// What an event came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// The [`Fib`] is another now.
    pub changed: bool,
    /// The kernel has changed more than it says in events: a [`Resync`] is due. Until it is
    /// complete more than needed is left to the kernel.
    pub resync: bool,
}

impl Followed {
    /// What two events came to.
    #[must_use]
    pub fn and(self, other: Followed) -> Followed {
        Followed { changed: self.changed | other.changed, resync: self.resync | other.resync }
    }
}

/// What the next [`Resync`] must list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Due {
    /// Everything.
    #[default]
    All,
    /// The rules; the rest only if they put the tables into another order.
    Rules,
    /// Nothing that events said; so if it is called, everything.
    Nothing,
}

/// The kernel's routes to the destinations that workers reach without it, and all that decides
/// whether a worker can follow them.
#[derive(Debug, Default)]
pub struct Mirror {
    direct: Vec<IpNet>,
    order: Order,
    routes: Routes,
    ways: Ways,
    usable: Usable,
    reach: Reach,
    fib: Fib,
    due: Due,
}

impl Mirror {
    /// An empty mirror. Of the kernel's routes it keeps default routes, and those that overlap a
    /// prefix of `direct`.
    pub fn new(direct: Vec<IpNet>) -> Mirror {
        let mut mirror = Mirror { direct, ..Mirror::default() };
        mirror.fib.set_action(KERNEL, Action::Kernel);
        mirror
    }

    /// The interface that an uplink is now; `None` while it is not there. Its neighbors are known
    /// only after the next [`Resync`]. Returns whether it was another.
    pub fn set_uplink(&mut self, id: UplinkId, ifindex: Option<u32>) -> bool {
        let before = self.reach.uplinks.iter().find(|(_, uplink)| **uplink == id);
        let before = before.map(|(index, _)| *index);
        if before == ifindex {
            return false;
        }
        if let Some(index) = before {
            let places = self.reach.neighbors.places();
            let theirs: Vec<Place> = places.filter(|place| place.0 == index).collect();
            for place in theirs {
                self.forget_neighbor(place);
            }
            self.reach.uplinks.remove(&index);
        }
        if let Some(index) = ifindex {
            self.reach.uplinks.insert(index, id);
        }
        self.due = Due::All;
        self.reassess(|_, _| true);
        true
    }

    /// Whether the mirror is behind the kernel until the next [`Resync`] is complete.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.due != Due::Nothing
    }

    /// Follows one event of the kernel. Give it all of them, in their order.
    pub fn apply(&mut self, event: &Event) -> Followed {
        let followed = self.follow(event);
        if followed.resync {
            let rules = matches!(event, Event::Rule(_) | Event::RuleGone(_));
            self.due = if rules && self.due != Due::All { Due::Rules } else { Due::All };
        }
        followed
    }

    fn follow(&mut self, event: &Event) -> Followed {
        match event {
            Event::Link(link) => self.follow_link(link),
            Event::LinkGone(link) => self.follow_link_gone(link.index),
            Event::Route(route) if self.follows(route) => self.follow_route(route),
            Event::RouteGone(route) if self.follows(route) => self.follow_route_gone(route),
            Event::Neighbor(neighbor) => self.follow_neighbor(neighbor),
            Event::NeighborGone(neighbor) => {
                self.forget_neighbor((neighbor.index, neighbor.address))
            }
            Event::Nexthop(object) => {
                self.reach.objects.insert(object.id, object.route.clone());
                self.reassess(|reach, way| reach.goes_by(way, object.id))
            }
            Event::NexthopGone(id) => {
                self.reach.objects.remove(id);
                self.reassess(|reach, way| reach.goes_by(way, *id))
            }
            // Until Linux 6.7 the IPv4 routes that name the address as source go without a word.
            Event::AddressGone(address) => {
                let names = |way: &Arc<Way>| !way.ipv6 && way.src == Some(address.address);
                let resync = self.ways.iter().any(|(_, way)| names(way));
                Followed { changed: false, resync }
            }
            // Our own leads what comes back from the workers to their pods.
            Event::Rule(rule) | Event::RuleGone(rule) => {
                let ours = rule.iif.as_deref() == Some(WORKER_IFNAME);
                Followed { changed: false, resync: !ours }
            }
            Event::Overrun => Followed { changed: false, resync: true },
            Event::Route(_) | Event::RouteGone(_) | Event::Address(_) => Followed::default(),
        }
    }

    /// The tables for the workers; a clone of them is cheap.
    pub fn fib(&self) -> &Fib {
        &self.fib
    }

    /// What the kernel should do next about neighbors on the uplinks, a bounded number of things:
    /// keep the routers resolved, look after destinations on the link. Execute them and call again
    /// about once a second, and after a change.
    pub fn wanted(&mut self) -> Vec<Request> {
        let ways = self.ways.iter().map(|(_, way)| &**way);
        let routers = self.reach.routers(ways);
        self.reach.neighbors.wanted(&routers)
    }

    /// Says into which tables an empty mirror looks.
    fn look_into(&mut self, order: Order) {
        self.fib.set_tables(order.len());
        self.order = order;
    }

    /// Whether the route is kept: the node's own address may come from any default route.
    fn follows(&self, route: &Route) -> bool {
        !route.cloned
            && self.order.place(route.dst.addr().is_ipv6(), route.table).is_some()
            && (route.dst.prefix_len() == 0 || overlaps(&self.direct, &route.dst))
    }

    fn follow_link(&mut self, link: &Link) -> Followed {
        let wire = Wire::of(link);
        let before = self.reach.wires.insert(link.index, wire.clone());
        if before.as_ref() == Some(&wire) {
            return Followed::default();
        }
        self.follow_wire(link.index, wire.differs_silently(before.as_ref()))
    }

    fn follow_link_gone(&mut self, index: u32) -> Followed {
        self.reach.wires.remove(&index);
        self.follow_wire(index, true)
    }

    /// An interface is not as it was; `silent`: its routes may have come or gone without a message.
    /// Interfaces that no route leads to, such as those of pods, cost nothing.
    fn follow_wire(&mut self, index: u32, silent: bool) -> Followed {
        let objects = self.reach.lose_objects(index);
        let followed = self.reassess(|reach, way| {
            reach.has_hop(way, |hop| hop.index == index)
                || objects.iter().any(|object| reach.goes_by(way, *object))
        });
        Followed { resync: followed.resync || followed.changed && silent, ..followed }
    }

    fn follow_route(&mut self, route: &Route) -> Followed {
        let way = self.routes.joined(route, &self.ways);
        let id = self.number(way);
        self.edit(Spot::of(route), |mirror| mirror.routes.put(route, id, &mut mirror.ways))
    }

    fn follow_route_gone(&mut self, route: &Route) -> Followed {
        let way = Way::of(route);
        self.edit(Spot::of(route), |mirror| {
            if let Some(shrunk) = mirror.routes.remove(route, &way, &mut mirror.ways) {
                let id = mirror.number(shrunk.left);
                mirror.routes.shrink(shrunk.key, id, &mut mirror.ways);
            }
        })
    }

    /// Edits the routes of one destination, and has the result decide there.
    fn edit(&mut self, spot: Spot, edit: impl FnOnce(&mut Mirror)) -> Followed {
        let before = self.routes.decides(spot, &self.ways, &self.usable);
        edit(self);
        let after = self.routes.decides(spot, &self.ways, &self.usable);
        if before != after {
            decide(&mut self.fib, &self.order, spot, after);
        }
        Followed { changed: before != after, resync: false }
    }

    /// The number of a way, whose action stands.
    fn number(&mut self, way: Way) -> ActionId {
        let (id, new) = self.ways.number(way);
        if new {
            let action = self.reach.action(self.ways.get(id));
            self.usable.set(id, action.is_some());
            self.fib.set_action(id, action.unwrap_or(Action::Kernel));
        }
        id
    }

    /// Finds out anew what some ways come to.
    fn reassess(&mut self, which: impl Fn(&Reach, &Way) -> bool) -> Followed {
        let mut followed = Followed::default();
        for (id, way) in self.ways.iter().filter(|(_, way)| which(&self.reach, way)) {
            let action = self.reach.action(way);
            // Whether its routes decide, or shorter prefixes do, is chosen by the resync.
            followed.resync |= action.is_some() != self.usable.has(id);
            followed.changed = true;
            self.fib.set_action(id, action.unwrap_or(Action::Kernel));
        }
        followed
    }

    fn follow_neighbor(&mut self, neighbor: &Neighbor) -> Followed {
        if !self.reach.uplinks.contains_key(&neighbor.index) {
            return Followed::default();
        }
        let direct = self.direct.iter().any(|prefix| prefix.contains(&neighbor.address));
        let own = self.reach.wires.get(&neighbor.index).and_then(|wire| wire.mac);
        let learned = self.reach.neighbors.learn(neighbor, direct, own);
        self.take_learned((neighbor.index, neighbor.address), learned)
    }

    fn forget_neighbor(&mut self, place: Place) -> Followed {
        let learned = self.reach.neighbors.forget(place);
        self.take_learned(place, learned)
    }

    fn take_learned(&mut self, place: Place, learned: Learned) -> Followed {
        let (index, address) = place;
        let mut followed = Followed::default();
        if let (Some(mac), Some(uplink)) = (learned.on_link, self.reach.uplinks.get(&index)) {
            self.fib.set_neighbor(*uplink, address, mac);
            followed.changed = true;
        }
        if learned.mac {
            let by = |hop: &_| is_by(hop, index, address);
            followed = followed.and(self.reassess(|reach, way| reach.has_hop(way, by)));
        }
        followed
    }
}

fn overlaps(direct: &[IpNet], dst: &IpNet) -> bool {
    direct.iter().any(|prefix| prefix.contains(dst) || dst.contains(prefix))
}

fn is_by(hop: &crate::netlink::NextHop, index: u32, router: IpAddr) -> bool {
    hop.index == index && hop.via == Some(router)
}

fn decide(fib: &mut Fib, order: &Order, spot: Spot, id: Option<ActionId>) {
    let table = order.place(spot.address.is_ipv6(), spot.table);
    let table = table.expect("only routes of tables that are followed are kept");
    let prefix = Prefix { address: spot.address, len: spot.len };
    match id {
        Some(id) => fib.insert(table, prefix, id),
        None => fib.remove(table, prefix),
    }
}

#[cfg(test)]
mod tests;
