//! What a way comes to: the kernel's links, neighbors and nexthop objects make it an action of the
//! data plane.
//!
//! A hop is dead while its interface is down: the kernel does not use it either. One without
//! carrier the kernel does use, and loses packets by it, unless the interface is told otherwise
//! (`ignore_routes_with_linkdown`). The mirror never sends by a wire without carrier: other hops
//! take over; where there are none, the route is left to the kernel, or, if the kernel passes it
//! over, it is passed over.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dataplane::fib::{Action, NextHop as Leaves, UplinkId};
use dataplane::port::Mac;

use super::neighbors::{Neighbors, Place};
use super::way::{Deed, Hops, Way};
use crate::netlink::{Link, NextHop, NexthopRoute};

/// What matters about an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wire {
    pub(super) name: String,
    pub(super) mac: Option<Mac>,
    up: bool,
    carrier: bool,
    /// Routes are passed over while it has no carrier: IPv4, IPv6.
    passed_over: (bool, bool),
}

impl Wire {
    pub(super) fn of(link: &Link) -> Wire {
        Wire {
            name: link.name.clone(),
            mac: link.mac,
            up: link.up,
            carrier: link.carrier,
            passed_over: (link.ignore_linkdown_v4, link.ignore_linkdown_v6),
        }
    }

    /// Whether routes by this interface may have come or gone without a message.
    pub(super) fn differs_silently(&self, before: Option<&Wire>) -> bool {
        before.is_none_or(|before| before.up != self.up)
    }
}

/// The surroundings of ways.
#[derive(Debug, Default)]
pub(super) struct Reach {
    pub(super) uplinks: BTreeMap<u32, UplinkId>,
    pub(super) wires: BTreeMap<u32, Wire>,
    pub(super) objects: HashMap<u32, NexthopRoute>,
    pub(super) neighbors: Neighbors,
}

impl Reach {
    /// What a way comes to; `None` if it cannot be used, so that the lookup passes its routes over.
    pub(super) fn action(&self, way: &Way) -> Option<Action> {
        match way.deed {
            // The kernel takes the routes of an object away with it, whatever they do.
            _ if self.lacks_object(way) => return None,
            Deed::Forward => {}
            Deed::Throw => return Some(Action::Throw),
            Deed::Other(_) => return Some(Action::Kernel),
        }
        let Some(hops) = self.hops(way) else { return Some(Action::Kernel) };
        let alive: Vec<NextHop> =
            hops.into_iter().filter(|hop| !self.is_passed_over(hop, way.ipv6)).collect();
        if alive.is_empty() {
            return None;
        }
        let carried = alive.iter().filter(|hop| self.has_carrier(hop.index));
        let leaves: Option<Vec<Leaves>> = carried.map(|hop| self.leaves(hop)).collect();
        Some(match leaves {
            Some(hops) if !hops.is_empty() => Action::Uplink { hops, mtu: way.mtu },
            _ => Action::Kernel,
        })
    }

    /// The hops of a way, whatever their state; `None` if it has something that is no hop.
    pub(super) fn hops(&self, way: &Way) -> Option<Vec<NextHop>> {
        let id = match &way.hops {
            Hops::Own(hops) => return Some(hops.clone()),
            Hops::Object(id) => id,
        };
        match self.objects.get(id) {
            None => Some(Vec::new()),
            Some(NexthopRoute::Way(hop)) => Some(vec![*hop]),
            Some(NexthopRoute::Other) => None,
            Some(NexthopRoute::Group(members)) => {
                let mut hops = Vec::with_capacity(members.len());
                for (id, weight) in members {
                    match self.objects.get(id) {
                        Some(NexthopRoute::Way(hop)) => {
                            let weight = u16::try_from(*weight).unwrap_or(u16::MAX);
                            hops.push(NextHop { weight, ..*hop });
                        }
                        Some(_) => return None,
                        // The kernel takes it out of the group in its next message.
                        None => {}
                    }
                }
                Some(hops)
            }
        }
    }

    /// Forgets the nexthop objects of an interface without carrier, as the kernel does without a
    /// message (net/ipv4/nexthop.c, `nexthop_flush_dev`). Returns their ids.
    pub(super) fn lose_objects(&mut self, index: u32) -> Vec<u32> {
        if self.has_carrier(index) {
            return Vec::new();
        }
        let over =
            |route: &NexthopRoute| matches!(route, NexthopRoute::Way(hop) if hop.index == index);
        let lost = self.objects.extract_if(|_, route| over(route));
        lost.map(|(id, _)| id).collect()
    }

    fn lacks_object(&self, way: &Way) -> bool {
        matches!(way.hops, Hops::Object(id) if !self.objects.contains_key(&id))
    }

    /// Whether a way has a hop that fits.
    pub(super) fn has_hop(&self, way: &Way, fits: impl Fn(&NextHop) -> bool) -> bool {
        self.hops(way).is_some_and(|hops| hops.iter().any(fits))
    }

    /// Whether a way goes by this nexthop object, itself or as a member of its group.
    pub(super) fn goes_by(&self, way: &Way, object: u32) -> bool {
        let Hops::Object(id) = way.hops else { return false };
        let member = || match self.objects.get(&id) {
            Some(NexthopRoute::Group(members)) => members.iter().any(|(id, _)| *id == object),
            _ => false,
        };
        id == object || member()
    }

    /// The routers that these ways need on uplinks that work.
    pub(super) fn routers<'a>(&self, ways: impl Iterator<Item = &'a Way>) -> BTreeSet<Place> {
        let forwarding = ways.filter(|way| way.deed == Deed::Forward);
        let hops = forwarding.filter_map(|way| self.hops(way)).flatten();
        let works = |index| self.uplinks.contains_key(&index) && self.has_carrier(index);
        hops.filter_map(|hop| Some((hop.index, hop.via?))).filter(|hop| works(hop.0)).collect()
    }

    fn is_passed_over(&self, hop: &NextHop, ipv6: bool) -> bool {
        self.wires.get(&hop.index).is_none_or(|wire| {
            let (v4, v6) = wire.passed_over;
            !wire.up || !wire.carrier && if ipv6 { v6 } else { v4 }
        })
    }

    pub(super) fn has_carrier(&self, index: u32) -> bool {
        self.wires.get(&index).is_some_and(|wire| wire.up && wire.carrier)
    }

    /// The hop as workers take it; `None` if it is not by an uplink.
    fn leaves(&self, hop: &NextHop) -> Option<Leaves> {
        let uplink = *self.uplinks.get(&hop.index)?;
        let mac = hop.via.and_then(|via| self.neighbors.mac((hop.index, via)));
        Some(Leaves { uplink, via: hop.via, mac, weight: hop.weight })
    }
}
