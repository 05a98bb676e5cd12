//! Routes, in both directions: the few we add, and the kernel's FIB as we mirror it.

use super::wire::parse;
use super::{Dump, Netlink, NetlinkError, Put, Request, family_of};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_EXCL, NLM_F_REPLACE, NetlinkBuffer};
pub use netlink_packet_route::route::RouteScope;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteProtocol, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `RT_TABLE_MAIN`
pub const TABLE_MAIN: u32 = 254;

/// What a route does with a packet.
pub type RouteKind = RouteType;

/// Where the kernel puts a new route among those of the same destination, table and metric, by the
/// flags of its message (rtnetlink(7); net/ipv4/fib_trie.c, `fib_table_insert`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// There is no other (`NLM_F_EXCL`).
    Alone,
    /// Before the others, as `ip route prepend` has it.
    Before,
    /// After the others (`NLM_F_APPEND`), and each route of a list.
    #[default]
    After,
    /// In the place of one that was there (`NLM_F_REPLACE`).
    Over,
}

impl Place {
    /// By the flags of an `RTM_NEWROUTE` that the kernel sent.
    pub(super) fn from_flags(flags: u16) -> Place {
        if flags & NLM_F_REPLACE != 0 {
            Place::Over
        } else if flags & NLM_F_APPEND != 0 {
            Place::After
        } else if flags & NLM_F_EXCL != 0 {
            Place::Alone
        } else {
            Place::Before
        }
    }
}

/// One way a route can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// The router; `None` if the destination itself is on the link.
    pub via: Option<IpAddr>,
    /// Index of the outgoing interface.
    pub index: u32,
    /// Share among the ways of a multipath route, 1 to 256.
    pub weight: u16,
    /// The router is taken to be on the link although no address says so.
    pub onlink: bool,
    /// The kernel does not use it now: the interface is down or has no carrier.
    pub dead: bool,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destinations it is for.
    pub dst: IpNet,
    /// Routing table.
    pub table: u32,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// How far away its destinations are.
    pub scope: RouteScope,
    /// What it does.
    pub kind: RouteKind,
    /// Of two routes with one destination the one with the smaller metric wins.
    pub metric: u32,
    /// The ways it can take; none for a route that forwards nothing.
    pub next_hops: Vec<NextHop>,
    /// Source address of the node's own packets that take it.
    pub src: Option<IpAddr>,
    /// Largest packet in bytes, if smaller than the device's.
    pub mtu: Option<u32>,
    /// A route the kernel keeps for one destination only (`RTM_F_CLONED`): not part of the FIB.
    pub cloned: bool,
    /// Where it stands among its like, in a message of the kernel.
    pub place: Place,
    /// The nexthop object that has its ways (`RTA_NH_ID`); `next_hops` may repeat them.
    pub nexthop: Option<u32>,
    /// The type of service, in its upper six bits, that it is only for; 0 is any.
    pub tos: u8,
    /// The sources that it is only for.
    pub from: Option<IpNet>,
    /// Packets that take it are wrapped into something, such as MPLS or another IP header.
    pub encapsulates: bool,
}

impl Route {
    /// A route of ours to `dst` straight out of an interface.
    pub fn direct(dst: IpNet, index: u32, protocol: u8) -> Route {
        let hop = NextHop { via: None, index, weight: 1, onlink: false, dead: false };
        Route {
            dst,
            table: TABLE_MAIN,
            protocol,
            // The kernel has no scopes for IPv6 and reports "universe".
            scope: if dst.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe },
            kind: RouteKind::Unicast,
            metric: 0,
            next_hops: vec![hop],
            src: None,
            mtu: None,
            cloned: false,
            place: Place::After,
            nexthop: None,
            tos: 0,
            from: None,
            encapsulates: false,
        }
    }

    /// A route of ours to `dst` by a router.
    pub fn via(dst: IpNet, router: IpAddr, index: u32, protocol: u8) -> Route {
        let hop = NextHop { via: Some(router), index, weight: 1, onlink: false, dead: false };
        Route {
            scope: RouteScope::Universe,
            next_hops: vec![hop],
            ..Route::direct(dst, index, protocol)
        }
    }

    pub(super) fn from_message(message: RouteMessage) -> Option<Route> {
        let header = message.header;
        let unspecified: IpAddr = match header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let mut route = Route {
            dst: IpNet::new(unspecified, header.destination_prefix_length).ok()?,
            table: u32::from(header.table),
            protocol: u8::from(header.protocol),
            scope: header.scope,
            kind: header.kind,
            metric: 0,
            next_hops: Vec::new(),
            src: None,
            mtu: None,
            cloned: header.flags.contains(RouteFlags::Cloned),
            place: Place::After,
            nexthop: None,
            tos: header.tos,
            from: None,
            encapsulates: false,
        };
        let (mut via, mut index) = (None, None);
        for attribute in message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    let address = ip(address)?;
                    route.dst = IpNet::new(address, header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Source(address) => {
                    route.from = IpNet::new(ip(address)?, header.source_prefix_length).ok();
                }
                RouteAttribute::Gateway(address) => via = ip(address),
                RouteAttribute::Via(address) => via = via_ip(address),
                RouteAttribute::Oif(oif) => index = Some(oif),
                RouteAttribute::Table(table) => route.table = table,
                RouteAttribute::Priority(metric) => route.metric = metric,
                RouteAttribute::PrefSource(address) => route.src = ip(address),
                RouteAttribute::Metrics(metrics) => route.mtu = mtu_of(&metrics),
                RouteAttribute::NhId(id) => route.nexthop = Some(id),
                RouteAttribute::EncapType(_) => route.encapsulates = true,
                RouteAttribute::MultiPath(hops) => {
                    route.encapsulates |= hops.iter().any(encapsulates);
                    route.next_hops.extend(hops.into_iter().map(next_hop));
                }
                _ => {}
            }
        }
        if let Some(index) = index
            && route.next_hops.is_empty()
        {
            let dead = header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown);
            let onlink = header.flags.contains(RouteFlags::Onlink);
            route.next_hops.push(NextHop { via, index, weight: 1, onlink, dead });
        }
        Some(route)
    }

    fn message(&self) -> RouteMessage {
        let Route { dst, table, protocol, scope, kind, metric, next_hops, src, mtu, .. } = self;
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(dst.addr());
        message.header.destination_prefix_length = dst.prefix_len();
        message.header.protocol = RouteProtocol::from(*protocol);
        message.header.scope = *scope;
        message.header.kind = *kind;
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Destination(dst.addr().into()));
        attributes.push(RouteAttribute::Table(*table));
        if *metric != 0 {
            attributes.push(RouteAttribute::Priority(*metric));
        }
        attributes.extend(src.map(|src| RouteAttribute::PrefSource(src.into())));
        attributes.extend(mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        assert!(next_hops.len() <= 1, "our own routes have one way");
        for hop in next_hops {
            attributes.push(RouteAttribute::Oif(hop.index));
            attributes.extend(hop.via.map(|via| RouteAttribute::Gateway(via.into())));
            if hop.onlink {
                message.header.flags = RouteFlags::Onlink;
            }
        }
        message
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind != RouteKind::Unicast {
            write!(f, "{:?} ", self.kind)?;
        }
        write!(f, "{}", self.dst)?;
        for via in self.next_hops.iter().filter_map(|hop| hop.via) {
            write!(f, " via {via}")?;
        }
        if self.table != TABLE_MAIN {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

fn next_hop(hop: RouteNextHop) -> NextHop {
    let via = hop.attributes.into_iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(address) => via_ip(address),
        _ => None,
    });
    NextHop {
        via,
        index: hop.interface_index,
        // The kernel counts hops from 0 (linux/rtnetlink.h, struct rtnexthop).
        weight: u16::from(hop.hops) + 1,
        onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
        dead: hop.flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown),
    }
}

fn encapsulates(hop: &RouteNextHop) -> bool {
    hop.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::EncapType(_)))
}

fn mtu_of(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn ip(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(ip.into()),
        RouteAddress::Inet6(ip) => Some(ip.into()),
        _ => None,
    }
}

fn via_ip(address: RouteVia) -> Option<IpAddr> {
    match address {
        RouteVia::Inet(ip) => Some(ip.into()),
        RouteVia::Inet6(ip) => Some(ip.into()),
        _ => None,
    }
}

impl Request {
    /// Writes a route over one with the same destination, table and metric, or adds it. `device`
    /// is for the words of the error.
    pub fn put_route(route: &Route, device: &str) -> Request {
        let what = format!("add route {route} dev {device}");
        let flags = Put::Replace.flags();
        Request::new(RouteNetlinkMessage::NewRoute(route.message()), flags, what)
    }

    /// Deletes a route.
    pub fn delete_route(route: &Route) -> Request {
        let what = format!("delete route {route}");
        Request::new(RouteNetlinkMessage::DelRoute(route.message()), 0, what)
    }
}

impl Netlink {
    /// All IPv4 and IPv6 routes of one table, or of all tables.
    pub fn routes(&mut self, table: Option<u32>) -> Result<Vec<Route>, NetlinkError> {
        self.list_routes(table, None)
    }

    /// The routes of one table that `protocol` (`RTPROT_*`) made. The kernel leaves the others out:
    /// where it has a million it takes 0.1 s.
    pub fn routes_of(&mut self, table: u32, protocol: u8) -> Result<Vec<Route>, NetlinkError> {
        self.list_routes(Some(table), Some(protocol))
    }

    fn list_routes(
        &mut self,
        table: Option<u32>,
        protocol: Option<u8>,
    ) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for family in FAMILIES {
            let message = get_routes(family, table, protocol);
            routes.extend(self.dump_as(&message, LIST, |part| {
                // A kernel that does not filter (before 4.20) sends all.
                listed(part)
                    .filter(|route| table.is_none_or(|table| route.table == table))
                    .filter(|route| protocol.is_none_or(|protocol| route.protocol == protocol))
            })?);
        }
        Ok(routes)
    }
}

/// Of a list: its families in their order, and the words for its errors.
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];
const LIST: &str = "list routes";

fn get_routes(
    family: AddressFamily,
    table: Option<u32>,
    protocol: Option<u8>,
) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    // `RTPROT_UNSPEC`, 0, is any.
    message.header.protocol = RouteProtocol::from(protocol.unwrap_or(0));
    message.attributes.extend(table.map(RouteAttribute::Table));
    RouteNetlinkMessage::GetRoute(message)
}

/// A route of a list.
fn listed(part: &NetlinkBuffer<&[u8]>) -> Option<Route> {
    match parse(part, LIST)? {
        RouteNetlinkMessage::NewRoute(message) => {
            Route::from_message(message).filter(|route| !route.cloned)
        }
        _ => None,
    }
}

/// The default routes of the main table of the network namespace the calling thread is in. Of a
/// million IPv4 routes it takes no longer than of ten: the kernel tells them in the order of their
/// addresses (net/ipv4/fib_trie.c, `fib_table_dump`), so that the rest need not be read. IPv6 tells
/// the default route last (net/ipv6/ip6_fib.c, `fib6_walk_continue`): 200,000 routes take 0.14 s.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn default_routes() -> Result<Vec<Route>, NetlinkError> {
    let mut routes = Vec::new();
    for family in FAMILIES {
        // A list that is not read to its end goes with its socket.
        let mut netlink = Netlink::open()?;
        let mut dump = netlink.begin_dump(&get_routes(family, Some(TABLE_MAIN), None), LIST)?;
        let (mut more, mut beyond) = (true, false);
        while more && !beyond {
            more = netlink.read_dump(&mut dump, LIST, |part| match part.payload().get(1) {
                // The length of the destination in struct rtmsg (linux/rtnetlink.h).
                Some(0) => routes.extend(listed(part).filter(|route| route.table == TABLE_MAIN)),
                Some(_) if family == AddressFamily::Inet && !beyond => {
                    beyond = listed(part).is_some_and(|route| !route.dst.addr().is_unspecified());
                }
                _ => {}
            })?;
        }
    }
    Ok(routes)
}

/// All routes of a namespace, IPv4 first, read bit by bit: a million take more than a second, and
/// whoever reads them may have other things to do.
///
/// The list is no snapshot. Routes that change between two reads may be missing, there twice, or
/// what they were, and nothing says so: the kernel does not set `NLM_F_DUMP_INTR` for routes (seen
/// on 6.18). A route that does not change may be missing as well: where IPv6 goes on in a tree that
/// has changed, it passes over as many destinations as it has told, also when some of these are
/// gone (net/ipv6/ip6_fib.c, `fib6_dump_table`).
#[derive(Debug)]
pub struct RouteList {
    /// Of its own, since a socket has one list at a time.
    netlink: Netlink,
    dump: Dump,
    rest: std::array::IntoIter<AddressFamily, 1>,
}

impl RouteList {
    /// Asks for the routes of the network namespace the calling thread is in.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn begin() -> Result<RouteList, NetlinkError> {
        let [first, rest @ ..] = FAMILIES;
        let mut netlink = Netlink::open()?;
        let dump = netlink.begin_dump(&get_routes(first, None, None), LIST)?;
        Ok(RouteList { netlink, dump, rest: rest.into_iter() })
    }

    /// Reads one datagram of the kernel, up to 32 kB or some 500 routes. Returns whether there are
    /// more.
    ///
    /// # Errors
    /// When the kernel breaks off; the list is of no use then.
    pub fn read(&mut self, mut take: impl FnMut(Route)) -> Result<bool, NetlinkError> {
        let RouteList { netlink, dump, rest } = self;
        let more = netlink.read_dump(dump, LIST, |part| {
            if let Some(route) = listed(part) {
                take(route);
            }
        })?;
        if more {
            return Ok(true);
        }
        let Some(family) = rest.next() else { return Ok(false) };
        *dump = netlink.begin_dump(&get_routes(family, None, None), LIST)?;
        Ok(true)
    }
}
