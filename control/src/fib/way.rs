//! Ways: what routes do, apart from where they lead. A million routes of a routing daemon go a
//! handful of ways, so each way is kept once, and is one action of the data plane.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::fib::ActionId;
use ipnet::IpNet;

use crate::netlink::{NextHop, Route, RouteKind, RouteScope};

/// The action of prefixes that the mirror cannot decide about: the kernel's. Never a way.
pub(super) const KERNEL: ActionId = ActionId(0);

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Deed {
    /// Forwards by its hops.
    Forward,
    /// Sends the lookup on to the next table.
    Throw,
    /// Anything that only the kernel does, by its number `RTN_*`: local delivery, refusals.
    Other(u8),
}

/// By which hops a route forwards.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Hops {
    /// Its own.
    Own(Vec<NextHop>),
    /// Those of the nexthop object with this id.
    Object(u32),
}

impl Hops {
    /// Makes hops comparable: links tell what is dead, the kernel turns the order of IPv6 hops
    /// about, and the weight of an only hop says nothing.
    pub(super) fn own(mut hops: Vec<NextHop>) -> Hops {
        hops.sort_by_key(|hop| (hop.index, hop.via));
        hops.iter_mut().for_each(|hop| hop.dead = false);
        if let [only] = hops.as_mut_slice() {
            only.weight = 1;
        }
        Hops::Own(hops)
    }
}

/// All of a route but its destination, table and metric: two routes that agree in it are, for the
/// kernel, the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Way {
    pub(super) ipv6: bool,
    pub(super) deed: Deed,
    pub(super) hops: Hops,
    pub(super) mtu: Option<u32>,
    pub(super) protocol: u8,
    /// Source address of the node's own packets: an IPv4 route goes when the address goes.
    pub(super) src: Option<IpAddr>,
    /// Only for packets with this type of service; 0 is any.
    pub(super) tos: u8,
    /// Only for packets from these sources.
    pub(super) from: Option<IpNet>,
    pub(super) scope: u8,
    pub(super) encapsulates: bool,
}

impl Way {
    pub(super) fn of(route: &Route) -> Way {
        let deed = match route.kind {
            RouteKind::Unicast if !route.encapsulates => Deed::Forward,
            RouteKind::Throw => Deed::Throw,
            kind => Deed::Other(u8::from(kind)),
        };
        let hops = match route.nexthop {
            Some(id) => Hops::Object(id),
            None => Hops::own(route.next_hops.clone()),
        };
        let scope = match route.scope {
            RouteScope::Universe => 0,
            scope => u8::from(scope),
        };
        Way {
            ipv6: route.dst.addr().is_ipv6(),
            deed,
            hops,
            mtu: route.mtu,
            protocol: route.protocol,
            src: route.src,
            tos: route.tos,
            from: route.from,
            scope,
            encapsulates: route.encapsulates,
        }
    }

    /// What it does, in the kernel's words.
    pub(super) fn kind(&self) -> RouteKind {
        match self.deed {
            Deed::Forward => RouteKind::Unicast,
            Deed::Throw => RouteKind::Throw,
            Deed::Other(kind) => RouteKind::from(kind),
        }
    }

    /// Whether the route is for some packets to its destination only.
    pub(super) fn is_selective(&self) -> bool {
        self.tos != 0 || self.from.is_some()
    }
}

/// A way in use.
#[derive(Debug)]
struct Held {
    way: Arc<Way>,
    /// Routes that go it.
    routes: u32,
}

/// All ways in use, by the number of their action.
#[derive(Debug, Default)]
pub(super) struct Ways {
    numbers: HashMap<Arc<Way>, ActionId>,
    held: Vec<Option<Held>>,
    free: Vec<ActionId>,
}

/// Which ways could be used when routes were last chosen. An event that changes it takes a resync,
/// which chooses anew.
#[derive(Debug, Default)]
pub(super) struct Usable(Vec<bool>);

impl Usable {
    /// Whether this way could be used.
    pub(super) fn has(&self, id: ActionId) -> bool {
        self.0.get(place(id)).is_some_and(|usable| *usable)
    }

    /// Notes whether this way can be used.
    pub(super) fn set(&mut self, id: ActionId, usable: bool) {
        if self.0.len() <= place(id) {
            self.0.resize(place(id) + 1, false);
        }
        self.0[place(id)] = usable;
    }
}

impl Ways {
    /// The number of a way, and whether it is new: then nothing is known of it but itself.
    pub(super) fn number(&mut self, way: Way) -> (ActionId, bool) {
        if let Some(id) = self.numbers.get(&way) {
            return (*id, false);
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.held.push(None);
            // The first number is KERNEL's.
            ActionId(u32::try_from(self.held.len()).expect("less than 2^32 ways fit in memory"))
        });
        let way = Arc::new(way);
        self.numbers.insert(way.clone(), id);
        self.held[place(id)] = Some(Held { way, routes: 0 });
        (id, true)
    }

    /// The number of a way, if any route goes it.
    pub(super) fn find(&self, way: &Way) -> Option<ActionId> {
        self.numbers.get(way).copied()
    }

    /// The way with a number that a route has.
    pub(super) fn get(&self, id: ActionId) -> &Arc<Way> {
        &self.held[place(id)].as_ref().expect("a route's way is held").way
    }

    /// One more route goes this way.
    pub(super) fn hold(&mut self, id: ActionId) {
        self.held[place(id)].as_mut().expect("a route's way is held").routes += 1;
    }

    /// One route less goes this way. Its number is free when none does.
    pub(super) fn release(&mut self, id: ActionId) {
        let held = self.held[place(id)].as_mut().expect("a route's way is held");
        held.routes -= 1;
        if held.routes == 0 {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: ActionId) {
        if let Some(held) = self.held[place(id)].take() {
            self.numbers.remove(&held.way);
            self.free.push(id);
        }
    }

    /// All ways.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ActionId, &Arc<Way>)> {
        let numbered = (1..).map(ActionId).zip(&self.held);
        numbered.filter_map(|(id, held)| Some((id, &held.as_ref()?.way)))
    }
}

fn place(id: ActionId) -> usize {
    id.0 as usize - 1
}
