//! Neighbors on the uplinks: which the kernel knows, and which it is asked to look after.
//!
//! What the workers send does not pass the kernel's neighbor table. So the kernel does not see that
//! an entry is in use: it neither renews it nor notices that the neighbor has gone. Routers are
//! therefore kept resolved by the kernel itself, and other entries that grow old are looked after
//! one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::port::Mac;

use crate::netlink::{Neighbor, NeighborState, Request};
use crate::node::ROUTE_PROTOCOL;

/// Entries kept. The kernel's own bound is 1024 per family by default (`gc_thresh3`).
const NEIGHBORS_MAX: usize = 8192;

/// Destinations on the links of the uplinks that workers send to; what exceeds it is the kernel's.
/// It also bounds how many are looked after: each costs the kernel a question every half minute.
const ON_LINK_MAX: usize = 1024;

/// Requests of one call. All [`ON_LINK_MAX`] are due within the 30 s for which the kernel believes
/// a neighbor (`base_reachable_time_ms`), so that 34 calls a second would do.
const REQUESTS_MAX: usize = 64;

/// An interface and an address on its link.
pub(super) type Place = (u32, IpAddr);

#[derive(Clone, Copy, Debug)]
struct Known {
    mac: Option<Mac>,
    state: NeighborState,
    /// The kernel keeps it resolved by itself.
    managed: bool,
    /// ... because we asked for it.
    ours: bool,
    /// Somebody else keeps it resolved.
    learned: bool,
    /// A worker may send to it without a router between.
    on_link: bool,
    /// The kernel was asked to look after it since it last told its state.
    asked: bool,
}

impl Known {
    /// Somebody has said what is true, and takes it back.
    fn is_settled(&self) -> bool {
        self.managed
            || self.learned
            || matches!(self.state, NeighborState::Permanent | NeighborState::Noarp)
    }
}

/// What a message about a neighbor changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Learned {
    /// Its MAC address is another now, for routes by it.
    pub(super) mac: bool,
    /// Workers send to it directly, by this MAC address, or no longer (`None`).
    pub(super) on_link: Option<Option<Mac>>,
}

/// The kernel's neighbor table, as far as it is about uplinks.
#[derive(Debug, Default)]
pub(super) struct Neighbors {
    known: BTreeMap<Place, Known>,
    on_link: usize,
}

impl Neighbors {
    /// Where packets to this neighbor go.
    pub(super) fn mac(&self, place: Place) -> Option<Mac> {
        self.known.get(&place)?.mac
    }

    /// Takes in what the kernel says. `direct`: workers may send to it without a router;
    /// `own`: the MAC address of the interface.
    pub(super) fn learn(&mut self, neighbor: &Neighbor, direct: bool, own: Option<Mac>) -> Learned {
        let place = (neighbor.index, neighbor.address);
        let mac = usable_mac(neighbor).filter(|mac| Some(*mac) != own);
        let before = self.known.get(&place).copied();
        if before.is_none() && self.known.len() >= NEIGHBORS_MAX {
            return Learned::default();
        }
        let was_on_link = before.is_some_and(|before| before.on_link);
        let room = was_on_link || self.on_link < ON_LINK_MAX;
        let known = Known {
            mac,
            state: neighbor.state,
            managed: neighbor.managed,
            ours: neighbor.managed && neighbor.protocol == ROUTE_PROTOCOL,
            learned: neighbor.learned,
            on_link: direct && mac.is_some() && room,
            asked: false,
        };
        self.on_link -= usize::from(was_on_link);
        self.on_link += usize::from(known.on_link);
        self.known.insert(place, known);
        let changed = before.and_then(|before| before.mac) != mac;
        let on_link = (was_on_link != known.on_link || changed && known.on_link)
            .then_some(mac.filter(|_| known.on_link));
        Learned { mac: changed, on_link }
    }

    /// An entry is gone.
    pub(super) fn forget(&mut self, place: Place) -> Learned {
        let Some(known) = self.known.remove(&place) else { return Learned::default() };
        self.on_link -= usize::from(known.on_link);
        Learned { mac: known.mac.is_some(), on_link: known.on_link.then_some(None) }
    }

    /// The entries there are.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.known.keys().copied()
    }

    /// What the kernel should do next about neighbors, at most [`REQUESTS_MAX`] things: keep the
    /// routers resolved, and no longer those that are routers no more; look whether destinations
    /// on the link are still there that it has not heard of for a while.
    pub(super) fn wanted(&mut self, routers: &BTreeSet<Place>) -> Vec<Request> {
        let unsettled =
            |place: &&Place| self.known.get(place).is_none_or(|known| !known.is_settled());
        let keep = routers.iter().filter(unsettled).copied();
        let mut requests: Vec<Request> = keep
            .take(REQUESTS_MAX)
            .map(|(index, address)| Request::keep_neighbor(index, address, ROUTE_PROTOCOL))
            .collect();
        for (place, known) in &mut self.known {
            let is_router = routers.contains(place);
            let no_longer = known.ours && !is_router;
            let old = known.on_link && known.state == NeighborState::Stale && !is_router;
            if requests.len() < REQUESTS_MAX
                && !known.asked
                && (no_longer || old && !known.is_settled())
            {
                known.asked = true;
                requests.push(Request::use_neighbor(place.0, place.1));
            }
        }
        requests
    }
}

/// The MAC address of a neighbor that the kernel would send to. One that is no single station's is
/// not believed (RFC 1812 §3.3.2).
fn usable_mac(neighbor: &Neighbor) -> Option<Mac> {
    let believed = matches!(
        neighbor.state,
        NeighborState::Reachable
            | NeighborState::Stale
            | NeighborState::Delay
            | NeighborState::Probe
            | NeighborState::Permanent
            | NeighborState::Noarp
    );
    neighbor.mac.filter(|mac| believed && mac[0] & 1 == 0 && *mac != [0; 6])
}

#[cfg(test)]
mod tests;
