//! Checks of the kernel path: the node port, its rules and routes, and the XDP programs on our
//! interfaces. What there should be is known once a daemon was started here.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Row;
use super::facts::{Facts, TABLE_MAIN};
use crate::netlink::{Link, Route, RouteKind};
use crate::node::{
    NODE_COOKIE, NODE_IFNAME, ROUTE_PROTOCOL, ROUTE_TABLE, RULE_PRIORITY, WORKER_IFNAME,
};

/// What puts our objects back.
const RESTORES: &str = "start viaductd, which puts it back; while it runs it looks once a second";

/// No address and no route of others lies within the prefixes of the pods.
pub(super) fn pod_cidrs(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "pod_cidrs";
    let cidrs = facts.pod_cidrs();
    if cidrs.is_empty() {
        return vec![Row::unknown(CHECK, "without a configuration they are not known", "")];
    }
    let network = &facts.network;
    let (links, addresses, routes) = match (&network.links, &network.addresses, &network.routes) {
        (Ok(links), Ok(addresses), Ok(routes)) => (links, addresses, routes),
        (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => {
            return vec![Row::unknown(CHECK, why, "")];
        }
    };
    let device = |index: u32| {
        let link = links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    };
    let around = |ip: &IpAddr| cidrs.iter().find(|cidr| cidr.contains(ip));
    let mut findings = Vec::new();
    for address in addresses {
        let Some(cidr) = around(&address.address) else { continue };
        let (ip, device) = (address.address, device(address.index));
        let found = format!("address {ip} of {device} lies within the pods' {cidr}");
        let mend = format!(
            "ip address delete {ip}/{} dev {device}, or give the pods another \
             prefix in node.pod_cidrs",
            address.prefix_len
        );
        findings.push(Row::amiss(CHECK, found, mend));
    }
    for route in routes.iter().filter(|route| is_foreign(route)) {
        // A wider route of others loses against ours.
        let Some(cidr) = cidrs.iter().find(|cidr| within(&route.dst, cidr)) else { continue };
        let by = route.next_hops.first().map_or_else(
            || format!("{:?}", route.kind).to_lowercase(),
            |hop| format!("dev {}", device(hop.index)),
        );
        let found = format!("the route to {} ({by}) lies within the pods' {cidr}", route.dst);
        let mend = format!(
            "find out who makes it, and ip route delete {}, or give the pods \
             another prefix in node.pod_cidrs",
            route.dst
        );
        findings.push(Row::amiss(CHECK, found, mend));
    }
    Row::all_or(findings, || {
        let names: Vec<String> = cidrs.iter().map(IpNet::to_string).collect();
        Row::well(CHECK, format!("nobody else uses {}", names.join(", ")))
    })
}

fn is_foreign(route: &Route) -> bool {
    route.table == TABLE_MAIN && route.protocol != ROUTE_PROTOCOL
}

fn within(inner: &IpNet, outer: &IpNet) -> bool {
    outer.contains(inner)
}

/// Both ends of the node port are there, ours, and up.
pub(super) fn devices(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "node_port";
    let links = match &facts.network.links {
        Ok(links) => links,
        Err(why) => return vec![Row::unknown(CHECK, why, "")],
    };
    let ends = [NODE_IFNAME, WORKER_IFNAME]
        .map(|name| (name, links.iter().find(|link| link.name == name)));
    let runs = facts.daemon.here == Ok(true);
    if ends.iter().all(|(_, end)| end.is_none()) && !runs {
        return vec![Row::well(CHECK, format!("viaductd makes {NODE_IFNAME} when it starts"))];
    }
    let finding = |(name, end): (&str, Option<&Link>)| {
        let link = match end {
            Some(link) => link,
            None => {
                let found = format!("{name} is missing");
                return Some(Row::amiss(CHECK, found, "restart viaductd, which makes it"));
            }
        };
        if link.alias.as_deref() != Some(NODE_COOKIE) {
            let found = format!("{name} is not ours: viaductd does not start beside it");
            return Some(Row::amiss(CHECK, found, "delete or rename that device"));
        }
        let mend = format!("ip link set {name} up");
        (!link.up).then(|| Row::amiss(CHECK, format!("{name} is down"), mend))
    };
    Row::all_or(ends.into_iter().filter_map(finding).collect(), || {
        Row::well(CHECK, format!("{NODE_IFNAME} and {WORKER_IFNAME} are up"))
    })
}

/// The rule that leads what comes in by the workers' end to the pods is there for each family.
pub(super) fn rules(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "rule";
    if let Err(why) = &facts.network.links {
        return vec![Row::unknown(CHECK, why, "")];
    }
    if facts.network.our_link(WORKER_IFNAME).is_none() {
        return vec![Row::well(CHECK, "viaductd makes it with the node port")];
    }
    let rules = match &facts.network.rules {
        Ok(rules) => rules,
        Err(why) => return vec![Row::unknown(CHECK, why, "")],
    };
    let cidrs = facts.pod_cidrs();
    let missing = [(false, "IPv4"), (true, "IPv6")].into_iter().filter(|(ipv6, _)| {
        let wanted = cidrs.iter().any(|cidr| cidr.addr().is_ipv6() == *ipv6);
        let there = rules.iter().any(|rule| {
            rule.ipv6 == *ipv6
                && rule.priority == RULE_PRIORITY
                && rule.iif.as_deref() == Some(WORKER_IFNAME)
                && rule.table == ROUTE_TABLE
        });
        wanted && !there
    });
    let missing = missing.map(|(_, family)| {
        let found = format!(
            "the {family} rule {RULE_PRIORITY} (iif {WORKER_IFNAME} lookup {ROUTE_TABLE}) is \
             missing: without a worker the kernel does not reach the pods"
        );
        Row::amiss(CHECK, found, RESTORES)
    });
    Row::all_or(missing.collect(), || {
        Row::well(
            CHECK,
            format!("rule {RULE_PRIORITY} leads {WORKER_IFNAME} to table {ROUTE_TABLE}"),
        )
    })
}

/// The way into the node port, and the end of our table, are there for each prefix.
pub(super) fn routes(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "routes";
    let network = &facts.network;
    if let Err(why) = &network.links {
        return vec![Row::unknown(CHECK, why, "")];
    }
    let Some(node) = network.our_link(NODE_IFNAME) else {
        return vec![Row::well(CHECK, "viaductd makes them with the node port")];
    };
    let routes = match &network.routes {
        Ok(routes) => routes,
        Err(why) => return vec![Row::unknown(CHECK, why, "")],
    };
    let mut findings = Vec::new();
    for cidr in facts.pod_cidrs() {
        let way = |route: &&Route| {
            route.table == TABLE_MAIN && route.next_hops.iter().any(|hop| hop.index == node.index)
        };
        let end =
            |route: &&Route| route.table == ROUTE_TABLE && route.kind == RouteKind::Unreachable;
        let of_cidr = || routes.iter().filter(|route| route.dst == cidr);
        if !of_cidr().any(|route| way(&route)) {
            let found = format!("the route to {cidr} by {NODE_IFNAME} is missing in table main");
            findings.push(Row::amiss(CHECK, found, RESTORES));
        }
        if !of_cidr().any(|route| end(&route)) {
            let found = format!("the route unreachable {cidr} is missing in table {ROUTE_TABLE}");
            findings.push(Row::amiss(CHECK, found, RESTORES));
        }
    }
    Row::all_or(findings, || {
        Row::well(CHECK, format!("the kernel knows its way to the pods, by {NODE_IFNAME}"))
    })
}

/// No XDP program of others is on our interfaces, and ours is on the node port.
pub(super) fn xdp(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "xdp";
    let network = &facts.network;
    if let Err(why) = &network.links {
        return vec![Row::unknown(CHECK, why, "")];
    }
    let mut findings = Vec::new();
    // Workers receive by the workers' end and the host ends, not by the kernel's end.
    for link in network.ours().filter(|link| link.name != NODE_IFNAME) {
        let name = &link.name;
        match (link.xdp_program, network.pinned.get(name)) {
            (Some(running), pinned) if pinned != Some(&running) => {
                let found = format!("{name} runs XDP program {running}, which is not ours");
                let mend = format!(
                    "see whose it is with bpftool prog show id {running}, detach it with ip link \
                     set dev {name} xdp off (or bpftool link detach), and restart viaductd"
                );
                findings.push(Row::amiss(CHECK, found, mend));
            }
            // A host end is without one for a moment in its ADD.
            (None, _) if name == WORKER_IFNAME => {
                let found = format!("{name} runs no XDP program: no worker gets its packets");
                findings.push(Row::amiss(CHECK, found, "restart viaductd, which attaches it"));
            }
            _ => {}
        }
    }
    Row::all_or(findings, || match network.ours().next() {
        None => Row::well(CHECK, "viaductd attaches its program when it starts"),
        Some(_) => Row::well(CHECK, "our interfaces run our program and no other"),
    })
}
