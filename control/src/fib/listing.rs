//! The mirror's routes as a listing shows them.

use std::net::IpAddr;

use dataplane::fib::UplinkId;

use super::way::Deed;
use super::{Mirror, RouteKey};
use crate::netlink::RouteKind;

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
            let kind = match way.deed {
                Deed::Forward => RouteKind::Unicast,
                Deed::Throw => RouteKind::Throw,
                Deed::Other(kind) => RouteKind::from(kind),
            };
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

    /// Routes that the mirror keeps.
    pub fn routes(&self) -> usize {
        self.routes.len()
    }
}
