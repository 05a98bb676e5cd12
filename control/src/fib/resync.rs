//! Listing the kernel anew while the mirror goes on: another mirror is filled bit by bit, and takes
//! the place of the first when it is complete.
//!
//! A million routes take the kernel, and us, more than a second, in which the control thread has
//! others to answer. So a [`Resync`] goes by steps. Until the last of them workers forward by the
//! mirror that is, which goes on following events: an uplink that fails is left at once.
//!
//! What is listed is no snapshot ([`RouteList`]). All events since before the list are kept and
//! followed behind its end, in their order. So whatever the list says of a route that changed, its
//! last event has the last word. Two things are left: routes that the list passed over because
//! others changed, and routes beside others of the same metric, whose older events may take the
//! place of a neighbor. Both need a change of routes between the first and the last read. Such a
//! list is taken as the best there is, and is made again ([`Resync::was_disturbed`]): a list that
//! nothing disturbed, and the events behind it, are what the kernel has.

use std::collections::VecDeque;
use std::time::Instant;

use super::order::Order;
use super::reach::Wire;
use super::{Due, Mirror};
use crate::netlink::{Event, Netlink, NetlinkError, RouteList};

/// Events that are kept while the kernel is listed, some 300 bytes each. Where there are more, a
/// routing daemon is filling its table, and the list is as good as wrong: another one, made when
/// that is over, costs less than to follow them all.
const EVENTS_MAX: usize = 100_000;

/// Events that are followed between two looks at the clock: they take less than 0.1 ms.
const EVENTS_STEP: usize = 32;

/// A list of the kernel that is being made.
#[derive(Debug)]
pub struct Resync {
    /// As far as it has come.
    mirror: Mirror,
    /// What is still to be read of routes; all has been read if it is `None`.
    list: Option<RouteList>,
    /// What is still to be followed.
    events: VecDeque<Event>,
    disturbed: bool,
    void: bool,
}

impl Resync {
    /// Begins to list what `mirror` is about, in the network namespace of the calling thread:
    /// everything but routes at once, since that is little. Returns `None` if only the rules were
    /// in doubt, and they lead to the same tables as before: the mirror is up to date then.
    ///
    /// From now on [`Resync::note`] every event.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn begin(
        mirror: &mut Mirror,
        netlink: &mut Netlink,
    ) -> Result<Option<Resync>, NetlinkError> {
        let order = Order::of(&netlink.policies()?);
        if mirror.due == Due::Rules && order == mirror.order {
            mirror.due = Due::Nothing;
            return Ok(None);
        }
        let mut listed = Mirror::new(mirror.direct.clone());
        listed.look_into(order);
        listed.due = Due::Nothing;
        let reach = &mut listed.reach;
        reach.uplinks.clone_from(&mirror.reach.uplinks);
        let links = netlink.links()?;
        reach.wires = links.iter().map(|link| (link.index, Wire::of(link))).collect();
        let objects = netlink.nexthops()?.into_iter();
        reach.objects = objects.map(|object| (object.id, object.route)).collect();
        for neighbor in netlink.neighbors(None)? {
            listed.follow_neighbor(&neighbor);
        }
        Ok(Some(Resync {
            mirror: listed,
            list: Some(RouteList::begin()?),
            events: VecDeque::new(),
            disturbed: false,
            void: false,
        }))
    }

    /// Takes note of an event that came since the list was begun, in its order.
    pub fn note(&mut self, event: &Event) {
        if let Event::Route(route) | Event::RouteGone(route) = event {
            if !self.mirror.follows(route) {
                return;
            }
            self.disturbed |= self.list.is_some();
        }
        self.void |= *event == Event::Overrun || self.events.len() >= EVENTS_MAX;
        if !self.void {
            self.events.push_back(event.clone());
        }
    }

    /// Whether too much has happened meanwhile, or events were lost: it leads to nothing.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.void
    }

    /// Goes on: reads once, and again until `end`. Returns whether it is complete.
    ///
    /// # Errors
    /// When the kernel breaks off; the list leads to nothing then.
    pub fn step(&mut self, end: Instant) -> Result<bool, NetlinkError> {
        loop {
            match &mut self.list {
                Some(list) => {
                    let mirror = &mut self.mirror;
                    let more = list.read(|route| {
                        mirror.apply(&Event::Route(route));
                    })?;
                    if !more {
                        self.list = None;
                    }
                }
                None => {
                    let some = self.events.len().min(EVENTS_STEP);
                    for event in self.events.drain(..some) {
                        self.mirror.apply(&event);
                    }
                }
            }
            if self.list.is_none() && self.events.is_empty() {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
        }
    }

    /// Whether routes changed while they were listed: what was listed may be wrong here and there.
    #[must_use]
    pub fn was_disturbed(&self) -> bool {
        self.disturbed
    }

    /// The mirror of what was listed. [`Mirror::is_due`] tells whether events have made it old
    /// already.
    #[must_use]
    pub fn into_mirror(self) -> Mirror {
        self.mirror
    }
}
