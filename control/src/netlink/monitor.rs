//! What changes in the kernel, as it changes: the control thread mirrors routes and neighbors
//! from these events (design §5) and repairs what others delete.

use super::nexthop::{RTM_DELNEXTHOP, RTM_NEWNEXTHOP};
use super::wire::{messages, parse};
use super::{Address, Link, Neighbor, NetlinkError, Nexthop, Place, Route, Rule, socket_error};
use netlink_packet_core::NetlinkBuffer;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

/// Multicast groups (linux/rtnetlink.h, `enum rtnetlink_groups`).
const GROUPS: [u32; 9] = [
    1,  // RTNLGRP_LINK
    3,  // RTNLGRP_NEIGH
    5,  // RTNLGRP_IPV4_IFADDR
    7,  // RTNLGRP_IPV4_ROUTE
    8,  // RTNLGRP_IPV4_RULE
    9,  // RTNLGRP_IPV6_IFADDR
    11, // RTNLGRP_IPV6_ROUTE
    19, // RTNLGRP_IPV6_RULE
    32, // RTNLGRP_NEXTHOP
];

/// Room for a burst of events: a BGP session that comes up announces some 10,000 routes within
/// milliseconds. More than that is an overrun, which costs one dump.
const BUFFER_BYTES: usize = 4 << 20;

/// Bytes of one event datagram; an interface with many virtual functions is the largest.
const EVENT_BYTES: usize = 32 * 1024;

/// A change in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An interface appeared or changed. When one goes down its IPv4 routes vanish without an
    /// event of their own.
    Link(Link),
    /// An interface is gone, and with it all its addresses, routes and neighbors.
    LinkGone(Link),
    /// An address appeared or changed.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route appeared or changed.
    Route(Route),
    /// A route is gone.
    RouteGone(Route),
    /// A neighbor appeared or changed.
    Neighbor(Neighbor),
    /// A neighbor is gone.
    NeighborGone(Neighbor),
    /// A nexthop object appeared or changed.
    Nexthop(Nexthop),
    /// The nexthop object with this id is gone, and with it all its routes; the IPv4 ones without
    /// an event of their own.
    NexthopGone(u32),
    /// A rule appeared.
    Rule(Rule),
    /// A rule is gone.
    RuleGone(Rule),
    /// Events were lost: list everything again.
    Overrun,
}

impl Event {
    fn from_part(part: &NetlinkBuffer<&[u8]>) -> Option<Event> {
        match part.message_type() {
            RTM_NEWNEXTHOP => Nexthop::from_payload(part.payload()).map(Event::Nexthop),
            RTM_DELNEXTHOP => {
                Nexthop::from_payload(part.payload()).map(|nexthop| Event::NexthopGone(nexthop.id))
            }
            _ => Event::from_message(parse(part, "watch the kernel")?, part.flags()),
        }
    }

    fn from_message(message: RouteNetlinkMessage, flags: u16) -> Option<Event> {
        Some(match message {
            // Bridges tell of their ports in the same messages.
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)
                if link.header.interface_family != AddressFamily::Unspec =>
            {
                return None;
            }
            RouteNetlinkMessage::NewLink(link) => Event::Link(Link::from_message(link)),
            RouteNetlinkMessage::DelLink(link) => Event::LinkGone(Link::from_message(link)),
            RouteNetlinkMessage::NewAddress(address) => {
                Event::Address(Address::from_message(address)?)
            }
            RouteNetlinkMessage::DelAddress(address) => {
                Event::AddressGone(Address::from_message(address)?)
            }
            RouteNetlinkMessage::NewRoute(route) => {
                let place = Place::from_flags(flags);
                Event::Route(Route { place, ..Route::from_message(route)? })
            }
            RouteNetlinkMessage::DelRoute(route) => Event::RouteGone(Route::from_message(route)?),
            RouteNetlinkMessage::NewNeighbour(neighbor) => {
                Event::Neighbor(Neighbor::from_message(neighbor)?)
            }
            RouteNetlinkMessage::DelNeighbour(neighbor) => {
                Event::NeighborGone(Neighbor::from_message(neighbor)?)
            }
            RouteNetlinkMessage::NewRule(rule) => Event::Rule(Rule::from_message(rule)?),
            RouteNetlinkMessage::DelRule(rule) => Event::RuleGone(Rule::from_message(rule)?),
            _ => return None,
        })
    }
}

/// A subscription to the changes of one network namespace. Register it with `mio` for reading.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    received: Vec<u8>,
    /// Events were lost, and those that are left are passed over.
    overrun: bool,
}

impl Monitor {
    /// Subscribes in the network namespace the calling thread is in. Open it before the first
    /// dump, so that no change falls between the two.
    pub fn open() -> Result<Monitor, NetlinkError> {
        let subscribe = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            // Beyond net.core.rmem_max, which CAP_NET_ADMIN allows.
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES)?;
            socket.set_non_blocking(true)?;
            socket.bind_auto()?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            Ok(socket)
        };
        let socket = subscribe().map_err(|source| socket_error("watch the kernel", source))?;
        Ok(Monitor { socket, received: Vec::with_capacity(EVENT_BYTES), overrun: false })
    }

    /// Appends what has happened since the last call: reads at most `limit` datagrams, of which
    /// nearly each is one event. Returns whether there may be more; the socket stays readable then.
    ///
    /// After an overrun it passes over all that is left, and says [`Event::Overrun`] behind it.
    /// Until there is nothing the kernel drops all that is new, and says so no second time
    /// (net/netlink/af_netlink.c, `netlink_overrun` and `NETLINK_S_CONGESTED`): a list that is made
    /// before would stay wrong.
    pub fn receive(&mut self, events: &mut Vec<Event>, limit: usize) -> Result<bool, NetlinkError> {
        for _ in 0..limit {
            self.received.clear();
            match self.socket.recv(&mut self.received, 0) {
                Ok(_) if self.overrun => {}
                Ok(_) => self.decode(events),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if std::mem::take(&mut self.overrun) {
                        events.push(Event::Overrun);
                    }
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) =>
                {
                    self.overrun = true;
                }
                Err(source) => return Err(socket_error("watch the kernel", source)),
            }
        }
        Ok(true)
    }

    fn decode(&self, events: &mut Vec<Event>) {
        for part in messages(&self.received) {
            match part {
                Ok(part) => events.extend(Event::from_part(&part)),
                // Half a message is as good as a lost one.
                Err(_) => events.push(Event::Overrun),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl mio::event::Source for Monitor {
    fn register(
        &mut self,
        registry: &mio::Registry,
        token: mio::Token,
        interests: mio::Interest,
    ) -> io::Result<()> {
        self.socket.register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &mio::Registry,
        token: mio::Token,
        interests: mio::Interest,
    ) -> io::Result<()> {
        self.socket.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &mio::Registry) -> io::Result<()> {
        self.socket.deregister(registry)
    }
}
