//! The mirror's routes as a listing shows them, and those that the node itself asks for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::fib::{ActionId, UplinkId};

use super::routes::Spot;
use super::{Mirror, RouteKey};
use crate::netlink::{Route, RouteKind, RouteScope};

/// A route of the mirror; destination, table and metric are in its [`RouteKey`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRoute {
    /// What it does.
    pub kind: RouteKind,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// Its ways; none for a route that forwards nothing.
    pub hops: Vec<ListedHop>,
    /// Longest packet in bytes, where the route says so.
    pub mtu: Option<u32>,
    /// Whether it is the one that decides about its destination in its table.
    pub decides: bool,
}

/// One way of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedHop {
    /// The router; `None` if destinations are on the link.
    pub via: Option<IpAddr>,
    /// Name of the interface; its number, if the interface is gone.
    pub dev: String,
    /// The uplink that the interface is. Otherwise the kernel takes the packets.
    pub uplink: Option<UplinkId>,
    /// Share of the flows among the ways.
    pub weight: u16,
    /// Whether the router's MAC address is known; `false` without router.
    pub resolved: bool,
}

impl Mirror {
    /// The routes behind a key, or all: IPv4 first, by destination, table and metric. It looks at
    /// nothing beyond what the caller takes.
    pub fn routes_after(
        &self,
        after: Option<RouteKey>,
    ) -> impl Iterator<Item = (RouteKey, ListedRoute)> {
        self.routes.after(after).map(|(key, id)| {
            let way = self.ways.get(id);
            let kind = way.kind();
            let hops = self.reach.hops(way).unwrap_or_default().into_iter();
            let hops = hops.map(|hop| ListedHop {
                via: hop.via,
                dev: match self.reach.wires.get(&hop.index) {
                    Some(wire) => wire.name.clone(),
                    None => hop.index.to_string(),
                },
                uplink: self.reach.uplinks.get(&hop.index).copied(),
                weight: hop.weight,
                resolved: hop
                    .via
                    .is_some_and(|via| self.reach.neighbors.mac((hop.index, via)).is_some()),
            });
            let decides = self.routes.decides(key.spot(), &self.ways, &self.usable) == Some(id);
            let (protocol, mtu) = (way.protocol, way.mtu);
            (key, ListedRoute { kind, protocol, hops: hops.collect(), mtu, decides })
        })
    }

    /// The default routes of a table, as the kernel lists them.
    pub fn default_routes(&self, table: u32) -> Vec<Route> {
        let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let spots = all.map(|address| Spot { address, len: 0, table });
        let routes = spots.into_iter().flat_map(|spot| self.routes.at(spot));
        let route = |(key, id): (RouteKey, ActionId)| {
            let way = self.ways.get(id);
            let mut next_hops = self.reach.hops(way).unwrap_or_default();
            next_hops.iter_mut().for_each(|hop| hop.dead = !self.reach.has_carrier(hop.index));
            let (metric, kind) = (key.metric(), way.kind());
            let (scope, src, mtu) = (RouteScope::from(way.scope), way.src, way.mtu);
            let plain = Route::direct(key.dst(), 0, way.protocol);
            Route { table, metric, kind, scope, src, mtu, next_hops, ..plain }
        };
        routes.map(route).collect()
    }

    /// Routes that the mirror keeps.
    pub fn routes(&self) -> usize {
        self.routes.len()
    }
}
