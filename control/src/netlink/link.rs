//! Network interfaces: the veth pairs we make, and what the kernel says about any interface.

use super::{Netlink, NetlinkError, Request, mac_of};
use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth,
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, LinkXdp, State,
};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// A busy kernel's work queue waits for its turn behind the deletion of namespaces, which was seen
/// to take more than 1 s.
const OPERATION_DEADLINE: Duration = Duration::from_secs(5);

/// Between two looks at an interface that is not in operation yet.
const OPERATION_PAUSE: Duration = Duration::from_micros(200);

/// `IFLA_INET_CONF` (linux/if_link.h).
const IFLA_INET_CONF: u16 = 1;

/// An interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Interface index, unique within its namespace.
    pub index: u32,
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// Ethernet address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Device MTU in bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// The carrier is there (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// In operation (RFC 2863 `ifOperStatus` up): the kernel has taken note of the carrier and
    /// gives packets to the driver.
    pub operational: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// The text given with `ip link set … alias`; our devices carry their cookie here.
    pub alias: Option<String>,
    /// Driver kind, such as `veth`; hardware has none.
    pub kind: Option<String>,
    /// Of a veth: the index of its other end, in the namespace that end is in.
    pub peer_index: Option<u32>,
    /// Whether the other end is in another namespace.
    pub peer_elsewhere: bool,
    /// Receive queues.
    pub rx_queues: u32,
    /// Transmit queues.
    pub tx_queues: u32,
    /// Index of the bridge or bond it belongs to.
    pub controller: Option<u32>,
    /// Id of an XDP program that runs on it, in whatever mode.
    pub xdp_program: Option<u32>,
    /// IPv4 routes over it are passed over while it has no carrier
    /// (`ignore_routes_with_linkdown`, Documentation/networking/ip-sysctl.rst).
    pub ignore_linkdown_v4: bool,
    /// As `ignore_linkdown_v4`, for IPv6.
    pub ignore_linkdown_v6: bool,
}

impl Link {
    pub(super) fn from_message(message: LinkMessage) -> Link {
        let flags = message.header.flags;
        let mut link = Link {
            index: message.header.index,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            loopback: flags.contains(LinkFlags::Loopback),
            ..Link::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => link.mac = mac_of(&bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::OperState(state) => link.operational = state == State::Up,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Link(index) => link.peer_index = Some(index),
                LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
                LinkAttribute::NumRxQueues(count) => link.rx_queues = count,
                LinkAttribute::NumTxQueues(count) => link.tx_queues = count,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Xdp(facts) => link.xdp_program = facts.iter().find_map(xdp_program),
                LinkAttribute::AfSpecUnspec(families) => {
                    families.iter().for_each(|family| link.read_family(family));
                }
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }

    fn read_family(&mut self, family: &AfSpecUnspec) {
        match family {
            AfSpecUnspec::Inet(settings) => {
                self.ignore_linkdown_v4 = settings.iter().any(|setting| match setting {
                    AfSpecInet::DevConf(all) => all.ignore_routes_with_linkdown != 0,
                    _ => false,
                });
            }
            AfSpecUnspec::Inet6(settings) => {
                self.ignore_linkdown_v6 = settings.iter().any(|setting| match setting {
                    AfSpecInet6::DevConf(all) => all.ignore_routes_with_linkdown != 0,
                    _ => false,
                });
            }
            _ => {}
        }
    }
}

/// With programs in several modes the kernel names each of them, and none as "the" program
/// (net/core/rtnetlink.c, `rtnl_xdp_fill`).
fn xdp_program(fact: &LinkXdp) -> Option<u32> {
    match fact {
        LinkXdp::ProgId(id)
        | LinkXdp::DrvProgId(id)
        | LinkXdp::SkbProgId(id)
        | LinkXdp::HwProgId(id) => (*id != 0).then_some(*id),
        _ => None,
    }
}

/// One end of a veth pair to be made.
#[derive(Debug, Clone)]
pub struct VethEnd<'a> {
    /// Interface name, at most 15 bytes.
    pub name: &'a str,
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Receive and transmit queues, at least 1.
    pub queues: u32,
    /// The namespace it is put into; `None` is the namespace of the connection.
    pub namespace: Option<BorrowedFd<'a>>,
}

/// A veth pair to be made, in one message: there is no moment at which an end has a wrong name or
/// is in a wrong namespace.
#[derive(Debug, Clone)]
pub struct Veth<'a> {
    /// The end we keep.
    pub near: VethEnd<'a>,
    /// The other end.
    pub far: VethEnd<'a>,
    /// Device MTU of both ends in bytes, 68 to 65535.
    pub mtu: u32,
    /// Alias of the near end, at most 255 bytes.
    pub alias: &'a str,
}

/// Per-device IPv4 settings, set by netlink (`IFLA_INET_CONF`) instead of a file each. Numbers
/// are `IPV4_DEVCONF_*` of linux/ip.h; meanings are in Documentation/networking/ip-sysctl.rst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Ipv4Setting {
    /// `forwarding`
    Forwarding = 1,
    /// `proxy_arp`
    ProxyArp = 3,
    /// `accept_redirects`
    AcceptRedirects = 4,
    /// `send_redirects`
    SendRedirects = 6,
    /// `rp_filter`
    RpFilter = 8,
    /// `arp_ignore`
    ArpIgnore = 19,
    /// `arp_notify`
    ArpNotify = 22,
    /// `accept_local`
    AcceptLocal = 23,
    /// `route_localnet`
    RouteLocalnet = 26,
}

/// Whether the kernel invents a link-local address when an interface comes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressGeneration {
    /// Leave it as it is; the only choice on a kernel without IPv6.
    Keep,
    /// It does not (`addr_gen_mode none`).
    Off,
}

/// What to change on an interface that exists, before it is brought up.
#[derive(Debug, Clone)]
pub struct LinkSettings<'a> {
    /// IPv4 settings and their values.
    pub ipv4: &'a [(Ipv4Setting, u32)],
    /// IPv6 address generation.
    pub address_generation: AddressGeneration,
    /// New alias.
    pub alias: Option<&'a str>,
    /// New device MTU in bytes.
    pub mtu: Option<u32>,
}

impl LinkSettings<'_> {
    /// What every interface of ours gets, if this kernel has IPv6: no address that the kernel
    /// makes up.
    pub fn without_made_up_addresses(ipv6: bool) -> LinkSettings<'static> {
        let address_generation =
            if ipv6 { AddressGeneration::Off } else { AddressGeneration::Keep };
        LinkSettings { ipv4: &[], address_generation, alias: None, mtu: None }
    }

    fn attributes(&self) -> Vec<LinkAttribute> {
        let LinkSettings { ipv4, address_generation, alias, mtu } = self;
        let mut attributes = Vec::new();
        attributes.extend(mtu.map(LinkAttribute::Mtu));
        attributes.extend(alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())));
        let mut families = Vec::new();
        if !ipv4.is_empty() {
            // The crate's own encoder leaves out zeros, which are what we mostly want to set.
            let mut values = Vec::with_capacity(ipv4.len() * 8);
            for (setting, value) in ipv4.iter() {
                values.extend(8u16.to_ne_bytes());
                values.extend((*setting as u16).to_ne_bytes());
                values.extend(value.to_ne_bytes());
            }
            let nested = DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, values);
            families.push(AfSpecUnspec::Inet(vec![AfSpecInet::Other(nested)]));
        }
        if *address_generation == AddressGeneration::Off {
            let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
            families.push(AfSpecUnspec::Inet6(vec![mode]));
        }
        if !families.is_empty() {
            attributes.push(LinkAttribute::AfSpecUnspec(families));
        }
        attributes
    }
}

impl Request {
    fn create_veth(veth: &Veth<'_>) -> Request {
        let Veth { near, far, mtu, alias: _ } = veth;
        let end = |end: &VethEnd<'_>| {
            let mut attributes = vec![
                LinkAttribute::IfName(end.name.to_owned()),
                LinkAttribute::Address(end.mac.to_vec()),
                LinkAttribute::Mtu(*mtu),
                LinkAttribute::NumRxQueues(end.queues),
                LinkAttribute::NumTxQueues(end.queues),
            ];
            attributes.extend(end.namespace.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
            attributes
        };
        let mut peer = LinkMessage::default();
        peer.attributes = end(far);
        let mut message = LinkMessage::default();
        message.attributes = end(near);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let what = format!("create veth pair {} and {}", near.name, far.name);
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        Request::new(RouteNetlinkMessage::NewLink(message), flags, what)
    }

    /// Changes settings of the interface with this name.
    pub fn configure_link(name: &str, settings: &LinkSettings<'_>) -> Request {
        let mut message = LinkMessage::default();
        message.attributes = settings.attributes();
        Request::set_link(name, message, format!("configure {name}"))
    }

    /// Brings the interface with this name up.
    pub fn bring_up(name: &str) -> Request {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        Request::set_link(name, message, format!("bring up {name}"))
    }

    fn set_link(name: &str, mut message: LinkMessage, what: String) -> Request {
        // The name selects the interface because the index is zero.
        message.attributes.insert(0, LinkAttribute::IfName(name.to_owned()));
        Request::new(RouteNetlinkMessage::SetLink(message), 0, what)
    }

    /// Deletes the interface with this index; a veth takes its other end with it.
    pub fn delete_link(index: u32, name: &str) -> Request {
        let mut message = LinkMessage::default();
        message.header.index = index;
        Request::new(RouteNetlinkMessage::DelLink(message), 0, format!("delete {name}"))
    }

    fn get_link(name: &str) -> Request {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
        ];
        Request::new(RouteNetlinkMessage::GetLink(message), 0, format!("look up {name}"))
    }
}

impl Netlink {
    /// The interface with this name, or `None`.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        match self.query([Request::get_link(name)]) {
            Ok(answers) => Ok(answers.into_iter().find_map(new_link)),
            Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a veth pair and returns its near end; refused with `EEXIST` if either name is taken.
    ///
    /// The kernel ignores an alias in the message that creates, so a second message gives it.
    /// Both are in one send: the kernel works on it to its end even if we are killed meanwhile,
    /// so there is no device of ours without its alias.
    pub fn create_veth(&mut self, veth: &Veth<'_>) -> Result<Link, NetlinkError> {
        let create = Request::create_veth(veth);
        let what = create.what.clone();
        let name = veth.near.name;
        // Asked before, since the kernel goes on after a refused message, and the second would
        // then give our alias to somebody else's device.
        if self.link(name)?.is_some() {
            let detail = format!(": {name} is taken");
            return Err(NetlinkError::Refused { what, source: Errno::EXIST, detail });
        }
        let mut aliased = LinkMessage::default();
        aliased.attributes.push(LinkAttribute::IfAlias(veth.alias.to_owned()));
        let alias = Request::set_link(name, aliased, format!("set the alias of {name}"));
        let answers = self.query([create, alias, Request::get_link(name)])?;
        answers.into_iter().find_map(new_link).ok_or(NetlinkError::Malformed {
            what,
            detail: "the new interface was not described".to_owned(),
        })
    }

    /// Waits until an interface that was brought up is in operation.
    ///
    /// Of a veth pair the end that comes up first has no carrier yet. When the other follows, a
    /// kernel thread turns the first one's queue on some time later, and until then all that the
    /// kernel sends by it is dropped. Describing an interface does that thread's work at once
    /// (net/core/rtnetlink.c, `rtnl_getlink`), since Linux 6.8; before, it takes a millisecond.
    pub fn await_operation(&mut self, name: &str) -> Result<(), NetlinkError> {
        let end = Instant::now() + OPERATION_DEADLINE;
        while !self.link(name)?.is_some_and(|link| link.operational) {
            if Instant::now() > end {
                return Err(NetlinkError::NotOperational { name: name.to_owned() });
            }
            std::thread::sleep(OPERATION_PAUSE);
        }
        Ok(())
    }

    /// All interfaces of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        let list = self.dump(RouteNetlinkMessage::GetLink(message), "list interfaces")?;
        Ok(list.into_iter().filter_map(new_link).collect())
    }
}

fn new_link(message: RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(message) => Some(Link::from_message(message)),
        _ => None,
    }
}
