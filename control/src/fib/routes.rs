//! The kernel's routes as far as they matter, in order, and which of them decides.
//!
//! The kernel keeps the routes of one destination and table as a list, by metric, and its messages
//! say where in the list a new one stands. The two families differ (net/ipv4/fib_trie.c,
//! `fib_table_insert`; net/ipv6/ip6_fib.c, `fib6_add_rt2node`): IPv4 keeps routes of one metric
//! one behind the other, the first of them decides; IPv6 makes one multipath route of those by
//! routers, and tells it as a whole when it grows, but only the part that goes when it shrinks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound;

use dataplane::fib::ActionId;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::way::{Hops, KERNEL, Usable, Way, Ways};
use crate::netlink::{NextHop, Place, Route};

/// `RTPROT_RA`: made by a router advertisement.
const PROTOCOL_RA: u8 = 9;

/// A destination in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Spot {
    pub(super) address: IpAddr,
    pub(super) len: u8,
    pub(super) table: u32,
}

impl Spot {
    pub(super) fn of(route: &Route) -> Spot {
        let dst = route.dst.trunc();
        Spot { address: dst.addr(), len: dst.prefix_len(), table: route.table }
    }

    pub(super) fn dst(&self) -> IpNet {
        IpNet::new(self.address, self.len).expect("a route's length fits its family")
    }

    fn first(self) -> RouteKey {
        RouteKey { spot: self, metric: 0, order: i32::MIN }
    }

    fn last(self) -> RouteKey {
        RouteKey { spot: self, metric: u32::MAX, order: i32::MAX }
    }
}

/// A route's place in the order of the listing; no two routes share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteKey {
    spot: Spot,
    metric: u32,
    /// Place among those of one metric, which decides where the kernel lets the first decide.
    order: i32,
}

impl RouteKey {
    pub(super) fn spot(&self) -> Spot {
        self.spot
    }

    /// Destinations the route is for.
    pub fn dst(&self) -> IpNet {
        self.spot.dst()
    }

    /// The table it is in.
    pub fn table(&self) -> u32 {
        self.spot.table
    }

    /// How far away its destinations are.
    pub fn metric(&self) -> u32 {
        self.metric
    }
}

/// Routes in order, each with its way.
#[derive(Debug, Default)]
pub(super) struct Routes(BTreeMap<RouteKey, ActionId>);

impl Routes {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The routes behind a key, or all, in order.
    pub(super) fn after(
        &self,
        after: Option<RouteKey>,
    ) -> impl Iterator<Item = (RouteKey, ActionId)> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.0.range((start, Bound::Unbounded)).map(|(key, id)| (*key, *id))
    }

    /// The routes of one destination, table and metric, in order.
    fn rivals(&self, spot: Spot, metric: u32) -> Vec<(RouteKey, ActionId)> {
        let key = |order| RouteKey { spot, metric, order };
        self.0.range(key(i32::MIN)..=key(i32::MAX)).map(|(key, id)| (*key, *id)).collect()
    }

    /// The routes of one destination in a table, in order.
    pub(super) fn at(&self, spot: Spot) -> impl Iterator<Item = (RouteKey, ActionId)> {
        self.0.range(spot.first()..=spot.last()).map(|(key, id)| (*key, *id))
    }

    /// What decides about packets to a destination in a table; `None` if no route can be used, so
    /// that a shorter prefix decides.
    pub(super) fn decides(&self, spot: Spot, ways: &Ways, usable: &Usable) -> Option<ActionId> {
        let choose = |choice: Choice, (key, id)| choice.with(key, id, ways, usable);
        self.at(spot).fold(Choice::default(), choose).id()
    }

    /// The way of a route that the kernel tells of: its own, or, if it has joined a multipath route
    /// of IPv6, that one's with the hops of both. The parts may differ in MTU or maker; a list
    /// shows what the first has, so that is kept.
    pub(super) fn joined(&self, route: &Route, ways: &Ways) -> Way {
        let way = Way::of(route);
        if route.place == Place::Over || !is_multipath(&way) {
            return way;
        }
        let rivals = self.rivals(Spot::of(route), route.metric);
        let mut rivals = rivals.iter().map(|(_, rival)| ways.get(*rival));
        match rivals.find(|rival| class(rival) == class(&way)) {
            Some(first) => Way { hops: way.hops, ..Way::clone(first) },
            None => way,
        }
    }

    /// Follows the kernel's message that there is a route now, which goes the way with this number.
    pub(super) fn put(&mut self, route: &Route, id: ActionId, ways: &mut Ways) {
        let spot = Spot::of(route);
        let rivals = self.rivals(spot, route.metric);
        let way = ways.get(id).clone();
        let alike = |(_, rival): &&(RouteKey, ActionId)| {
            let rival = ways.get(*rival);
            class(rival) == class(&way)
        };
        let over = rivals.iter().find(alike);
        let same = rivals.iter().find(|(_, rival)| *rival == id);
        // Told of by the way when its nexthop object changes, even into a blackhole.
        let changed = rivals.iter().find(|(_, rival)| by_one_object(ways.get(*rival), &way));
        let behind = rivals.last().map_or(0, |(key, _)| key.order.saturating_add(1));
        // What goes, and where the new one stands.
        let (gone, order): (Vec<RouteKey>, i32) = match (route.place, way.ipv6) {
            // The message is older than the list. (IPv6 does put a route beside its equal.)
            (Place::Over, false) if same.is_some() => return,
            (Place::Over, _) if changed.is_some() => replace(changed, behind),
            // IPv6 replaces what is of its class, or else whatever has its metric.
            (Place::Over, true) => replace(over.or(rivals.first()), behind),
            (Place::Over, false) => replace(over, behind),
            (_, true) if is_multipath(&way) => replace(over, behind),
            (_, true) => (keys(same), behind),
            (Place::Alone, false) => (keys(rivals.iter().filter(alike)), behind),
            (Place::After, false) => (keys(same), behind),
            (Place::Before, false) => {
                let before = rivals.first().map_or(0, |(key, _)| key.order.saturating_sub(1));
                (keys(same), before)
            }
        };
        ways.hold(id);
        let gone: Vec<ActionId> = gone.iter().filter_map(|key| self.0.remove(key)).collect();
        let hidden = self.0.insert(RouteKey { spot, metric: route.metric, order }, id);
        gone.into_iter().chain(hidden).for_each(|id| ways.release(id));
    }

    /// Follows the kernel's message that a route is gone. Returns the way that a multipath route
    /// goes instead, if only some of its hops are gone; the caller numbers it and calls
    /// [`Routes::shrink`].
    pub(super) fn remove(&mut self, route: &Route, way: &Way, ways: &mut Ways) -> Option<Shrunk> {
        let rivals = self.rivals(Spot::of(route), route.metric);
        let found = ways.find(way).and_then(|id| rivals.iter().find(|(_, rival)| *rival == id));
        if let Some((key, id)) = found {
            self.0.remove(key);
            ways.release(*id);
            return None;
        }
        if !is_multipath(way) {
            return None;
        }
        let alike = |(_, rival): &&(RouteKey, ActionId)| class(ways.get(*rival)) == class(way);
        let (key, id) = *rivals.iter().find(alike)?;
        let mut left = Way::clone(ways.get(id));
        if let (Hops::Own(hops), Hops::Own(gone)) = (&left.hops, &way.hops) {
            let stays = |hop: &&NextHop| {
                !gone.iter().any(|gone| (gone.index, gone.via) == (hop.index, hop.via))
            };
            let hops: Vec<NextHop> = hops.iter().filter(stays).copied().collect();
            if hops.is_empty() {
                self.0.remove(&key);
                ways.release(id);
                return None;
            }
            left.hops = Hops::own(hops);
        }
        Some(Shrunk { key, left })
    }

    /// Lets a multipath route go the way that is left of it.
    pub(super) fn shrink(&mut self, key: RouteKey, id: ActionId, ways: &mut Ways) {
        ways.hold(id);
        if let Some(before) = self.0.insert(key, id) {
            ways.release(before);
        }
    }
}

/// A multipath route that has lost hops.
#[derive(Debug)]
pub(super) struct Shrunk {
    pub(super) key: RouteKey,
    pub(super) left: Way,
}

fn keys<'a>(routes: impl IntoIterator<Item = &'a (RouteKey, ActionId)>) -> Vec<RouteKey> {
    routes.into_iter().map(|(key, _)| *key).collect()
}

/// Whether two ways by a nexthop object differ in nothing but what the object does.
fn by_one_object(one: &Way, other: &Way) -> bool {
    let by_object = matches!(one.hops, Hops::Object(_));
    by_object && *one == Way { deed: one.deed, ..other.clone() }
}

/// The place of a route that is replaced; or the one behind all, if there is none.
fn replace(over: Option<&(RouteKey, ActionId)>, behind: i32) -> (Vec<RouteKey>, i32) {
    (keys(over), over.map_or(behind, |(key, _)| key.order))
}

/// Among routes of one destination, table and metric: those that the kernel takes for versions of
/// one another. IPv4 tells them apart by type of service, IPv6 by source, and by whether they can
/// be parts of one multipath route.
fn class(way: &Way) -> (u8, Option<IpNet>, bool) {
    (way.tos, way.from, is_multipath(way))
}

/// Whether IPv6 makes one route of this and others like it (include/net/ip6_route.h,
/// `rt6_qualify_for_ecmp`): by routers of its own, and not from a router advertisement.
fn is_multipath(way: &Way) -> bool {
    let by_routers = match &way.hops {
        Hops::Own(hops) => !hops.is_empty() && hops.iter().all(|hop| hop.via.is_some()),
        Hops::Object(_) => false,
    };
    way.ipv6 && by_routers && way.protocol != PROTOCOL_RA
}

/// Which of the routes to one destination in one table decides, as far as they have been looked at.
#[derive(Clone, Copy, Default)]
struct Choice {
    best: Option<(u32, ActionId)>,
    /// It takes more than the destination to choose.
    kernels: bool,
}

impl Choice {
    /// Looks at the next route.
    fn with(self, key: RouteKey, id: ActionId, ways: &Ways, usable: &Usable) -> Choice {
        let way = ways.get(id);
        let candidate = usable.has(id);
        match self.best {
            _ if way.is_selective() => Choice { kernels: true, ..self },
            None if candidate => Choice { best: Some((key.metric, id)), ..self },
            Some((metric, _)) if candidate && metric == key.metric && by_routers(way, key) => {
                Choice { kernels: true, ..self }
            }
            _ => self,
        }
    }

    fn id(self) -> Option<ActionId> {
        if self.kernels { Some(KERNEL) } else { self.best.map(|(_, id)| id) }
    }
}

/// Whether the kernel chooses among routes of one metric by what it knows of their routers, and not
/// the first: IPv6 (net/ipv6/route.c, `find_match`), and IPv4 for its default routes
/// (net/ipv4/fib_semantics.c, `fib_select_default`).
fn by_routers(way: &Way, key: RouteKey) -> bool {
    way.ipv6 || key.spot.len == 0
}
