//! Checks of the kernel's settings: forwarding, reverse path filtering, router advertisements,
//! connection tracking.

use super::Row;
use super::facts::{Facts, is_ours};
use crate::netlink::{Address, AddressScope, Link, Route};
use crate::node::NODE_IFNAME;

/// `RTPROT_RA` (linux/rtnetlink.h): a router announced the route.
const PROTOCOL_RA: u8 = 9;

/// Loose reverse path filtering (ip-sysctl.rst, `rp_filter`).
const LOOSE: u32 = 2;

/// Whether the kernel tracks a TCP connection that it sees in its middle first
/// (nf_conntrack-sysctl.rst). Not there before connection tracking is loaded, and on by default.
pub(super) const TCP_LOOSE: &str = "netfilter/nf_conntrack_tcp_loose";

/// Where routers and forwarding are switched.
const FORWARDING: [(&str, &str); 2] = [
    ("ipv4/ip_forward", "net.ipv4.ip_forward"),
    ("ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
];

/// The node forwards what its pods send, once a daemon has been started.
pub(super) fn forwarding(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "forwarding";
    let network = &facts.network;
    let started = network.our_link(NODE_IFNAME).is_some();
    let cidrs = facts.pod_cidrs();
    if cidrs.is_empty() {
        return vec![Row::unknown(CHECK, "without a configuration the families are not known", "")];
    }
    let mut off = Vec::new();
    for (ipv6, (key, name)) in [false, true].into_iter().zip(FORWARDING) {
        if cidrs.iter().any(|cidr| cidr.addr().is_ipv6() == ipv6) && network.setting(key) != "1" {
            off.push(name);
        }
    }
    if !started && !off.is_empty() {
        let found = format!("viaductd turns {} on when it starts", off.join(" and "));
        return vec![Row::well(CHECK, found)];
    }
    let row = |name: &str| {
        let found = format!("{name} is off: the kernel forwards nothing for the pods");
        let mend = format!("sysctl -w {name}=1, and see what in /etc/sysctl.d turns it off");
        Row::amiss(CHECK, found, mend)
    };
    Row::all_or(off.into_iter().map(row).collect(), || {
        Row::well(CHECK, "the kernel forwards for every family of the pods")
    })
}

/// Our interfaces filter loosely. Strict filtering elsewhere is fine.
pub(super) fn rp_filter(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "rp_filter";
    let network = &facts.network;
    if let Err(why) = &network.links {
        return vec![Row::unknown(CHECK, why, "")];
    }
    let value = |name: &str| -> u32 {
        network.setting(&format!("ipv4/conf/{name}/rp_filter")).parse().unwrap_or(0)
    };
    let all = value("all");
    // The larger of both counts (include/linux/inetdevice.h, `IN_DEV_RPFILTER`).
    let wrong = network.ours().filter(|link| value(&link.name).max(all) != LOOSE).map(|link| {
        let (name, in_effect) = (&link.name, value(&link.name).max(all));
        let word = if in_effect == 1 { "strict" } else { "off" };
        let found = format!(
            "reverse path filtering of {name} is {word} (its rp_filter {}, all {all}): it must be \
             loose",
            value(name)
        );
        let mend = format!(
            "sysctl -w net/ipv4/conf/{name}/rp_filter={LOOSE}, and keep /etc/sysctl.d from \
             changing interfaces named viaduct* and vd*"
        );
        Row::amiss(CHECK, found, mend)
    });
    Row::all_or(wrong.collect(), || {
        let found = match network.ours().count() {
            0 => "viaductd sets its interfaces to loose".to_owned(),
            count => format!("loose on all {count} interfaces of ours"),
        };
        Row::well(CHECK, format!("{found}; all {all}, default {}", value("default")))
    })
}

/// No interface has stopped to listen to its router because the node forwards.
pub(super) fn accept_ra(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "accept_ra";
    let network = &facts.network;
    let read = (&network.links, &network.routes, &network.addresses);
    let (links, routes, addresses) = match read {
        (Ok(links), Ok(routes), Ok(addresses)) => (links, routes, addresses),
        (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => {
            return vec![Row::unknown(CHECK, why, "")];
        }
    };
    let deaf = |link: &&Link| {
        let setting = |key| network.setting(&format!("ipv6/conf/{}/{key}", link.name));
        setting("forwarding") == "1" && setting("accept_ra") == "1"
    };
    let wrong = links.iter().filter(|link| !is_ours(link) && !link.loopback && deaf(link));
    let wrong = wrong.filter(|link| needs_its_router(link, routes, addresses)).map(|link| {
        let name = &link.name;
        let found = format!(
            "{name} ignores its IPv6 router, because the node forwards and accept_ra is 1: the \
             default route goes when its lifetime ends"
        );
        let mend = format!(
            "sysctl -w net/ipv6/conf/{name}/accept_ra=2, or 0 if no router announces itself there"
        );
        Row::amiss(CHECK, found, mend)
    });
    Row::all_or(wrong.collect(), || {
        Row::well(CHECK, "no interface that needs its router ignores it")
    })
}

/// The kernel takes over connections to host ports that workers have opened.
pub(super) fn tcp_loose(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "tcp_loose";
    vec![if facts.network.setting(TCP_LOOSE) == "0" {
        let found = "the kernel picks up no TCP connection in its middle (nf_conntrack_tcp_loose \
                     is 0): those to host ports stand still while no daemon runs";
        let mend = "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1, and see what in \
                    /etc/sysctl.d turns it off";
        Row::amiss(CHECK, found, mend)
    } else {
        Row::well(CHECK, "the kernel picks up TCP connections that workers have opened")
    }]
}

/// Whether the node's way out may come from a router on this link: one has announced it, or it has
/// none any more and addresses there.
fn needs_its_router(link: &Link, routes: &[Route], addresses: &[Address]) -> bool {
    let mut defaults = routes
        .iter()
        .filter(|route| route.dst.addr().is_ipv6() && route.dst.prefix_len() == 0)
        .filter(|route| !route.next_hops.is_empty())
        .peekable();
    if defaults.peek().is_none() {
        // Links of containers have no addresses of the node.
        return link.controller.is_none()
            && addresses.iter().any(|address| {
                address.index == link.index
                    && address.address.is_ipv6()
                    && address.scope == AddressScope::Universe
            });
    }
    defaults.any(|route| {
        route.protocol == PROTOCOL_RA && route.next_hops.iter().any(|hop| hop.index == link.index)
    })
}
