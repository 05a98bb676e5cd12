//! The same small network twice: served by Viaduct, and routed by plain Linux.
//!
//! ```text
//!      Viaduct                                    Linux, the oracle
//!   pod A ── worker ── pod B                   pod A ── router ── pod B
//!               │ node port                             │    │
//!             node ── outside                         node  outside
//! ```
//!
//! The oracle is a namespace of its own with nothing of ours in it: veths, routes, strict
//! `rp_filter`. The fallback path of a killed daemon would have the same links, but its program
//! checks sources with our own code, so it could not tell when that is wrong.
//!
//! In the oracle the node hangs on a link of its own, because what reaches a router's own
//! addresses cannot be seen frame by frame. That hop costs one TTL (rule `NodeHop`).

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::plan::{Link, MTU, Mac, PLACES, Place, Plan, mac_of, mac_text};
use super::station::Station;
use crate::daemon::{
    NODE_V4, NODE_V6, Node, OUTSIDE_V4, OUTSIDE_V6, PortMode, Setup, UPLINK_V4, UPLINK_V6, ip,
};
use crate::netns::Namespace;
use crate::pod::Pod;

/// Processors of the senders. The two networks work at the same time, one on each.
const VIADUCT_CPU: usize = 0;
const LINUX_CPU: usize = 1;

/// No limit on ICMP errors: 0 turns the limit per destination off, a million a second is more than
/// are ever asked for (ip-sysctl.rst).
const NO_ICMP_LIMITS: [(&str, &str); 5] = [
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv4/icmp_ratemask", "0"),
    ("ipv4/icmp_msgs_per_sec", "1000000"),
    ("ipv4/icmp_msgs_burst", "1000000"),
    ("ipv6/icmp/ratelimit", "0"),
];

/// What makes a namespace a router that believes no forged source.
const ROUTER: [(&str, &str); 6] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    // Redirects tell a host of a better hop on its link: a pod's link has none.
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
];

/// The stations of one network, in the order of [`PLACES`].
pub type Stations = [Station; 4];

/// The network that Viaduct serves.
#[derive(Debug)]
pub struct Viaduct {
    /// Where frames are sent and seen.
    pub stations: Stations,
    /// The node with its daemon.
    pub node: Node,
    /// Its pods, sender first.
    pub pods: [Pod; 2],
}

/// The network that Linux routes.
#[derive(Debug)]
pub struct Oracle {
    /// Where frames are sent and seen.
    pub stations: Stations,
    _namespaces: Vec<Namespace>,
}

/// Builds the network that Viaduct serves; the plan says what addresses it gave out.
///
/// # Errors
/// When a part of it cannot be made; what there is already is removed.
pub fn viaduct(setup: &Setup) -> Result<(Viaduct, Plan)> {
    let node = Node::start(Setup { masquerade: false, ..setup.clone() })?;
    let pods = [node.add_pod("sender")?, node.add_pod("receiver")?];
    let namespace = node.namespace();
    write_sysctls(namespace, &NO_ICMP_LIMITS)?;
    // What is for the node stays unanswered. What passes it stays untracked: reassembly by the
    // node's conntrack is the kernel's, and would hide the fragments that the worker sent.
    let rules = format!(
        "table netdev silence {{ chain ingress {{
            type filter hook ingress device viaduct0 priority 0;
            ip daddr {NODE_V4} drop
            ip6 daddr {NODE_V6} drop
        }}
        }}
        table inet untracked {{ chain prerouting {{
            type filter hook prerouting priority -500;
            notrack
        }}
        }}"
    );
    load_rules(namespace, &rules)?;
    let gateway = |pod: &Pod| mac_of_link(namespace, &pod.host_ifname);
    let links = [
        Link { far: pods[0].mac, near: gateway(&pods[0])? },
        Link { far: pods[1].mac, near: gateway(&pods[1])? },
        Link {
            far: mac_of_link(namespace, "viaduct0")?,
            near: mac_of_link(namespace, "viaduct1")?,
        },
        Link { far: mac_of_link(node.outside(), "eth0")?, near: mac_of_link(namespace, "up0")? },
    ];
    finish_outside(namespace, node.outside(), links[3].far)?;
    let [IpAddr::V4(nobody4), IpAddr::V6(nobody6)] = node.nobody() else {
        bail!("nobody has an address of each family");
    };
    let plan = Plan {
        pod_a: (pods[0].v4, pods[0].v6),
        pod_b: (pods[1].v4, pods[1].v6),
        nobody: (nobody4, nobody6),
        pod_cidrs: node.pod_cidrs(),
        link_mtu: mtu_of_link(&pods[0].namespace, "eth0")?,
        offloads: setup.port_mode == PortMode::Auto,
        links,
    };
    for pod in &pods {
        silence(&pod.namespace, "eth0")?;
    }
    let stations = [
        Station::start(&pods[0].namespace, "eth0", VIADUCT_CPU)?,
        Station::start(&pods[1].namespace, "eth0", VIADUCT_CPU)?,
        Station::start(namespace, "viaduct0", VIADUCT_CPU)?,
        Station::start(node.outside(), "eth0", VIADUCT_CPU)?,
    ];
    Ok((Viaduct { stations, node, pods }, plan))
}

/// Builds the same network with plain Linux.
///
/// # Errors
/// When a part of it cannot be made; what there is already is removed.
pub fn linux(plan: &Plan) -> Result<Oracle> {
    let router = Namespace::create("vdl-router")?;
    ip(&router, "link set lo up")?;
    write_sysctls(&router, &NO_ICMP_LIMITS)?;
    write_sysctls(&router, &ROUTER)?;
    let mut places = Vec::new();
    for place in PLACES {
        let far = Namespace::create("vdl-place")?;
        connect(plan, place, &router, &far)?;
        places.push(far);
    }
    for cidr in &plan.pod_cidrs {
        ip(&router, &format!("route add unreachable {cidr}"))?;
    }
    let start = |place: Place| Station::start(&places[place as usize], "eth0", LINUX_CPU);
    let stations =
        [start(Place::PodA)?, start(Place::PodB)?, start(Place::Node)?, start(Place::Outside)?];
    places.push(router);
    Ok(Oracle { stations, _namespaces: places })
}

/// Joins a place to the router as it is joined to the node or worker in the other network.
fn connect(plan: &Plan, place: Place, router: &Namespace, far: &Namespace) -> Result<()> {
    let (name, mtu, addresses, route_mtu) = match place {
        Place::PodA => ("pod-a", plan.link_mtu, plan.pod_a, Some(MTU)),
        Place::PodB => ("pod-b", plan.link_mtu, plan.pod_b, Some(MTU)),
        Place::Node => ("node", plan.link_mtu, (NODE_V4, NODE_V6), None),
        Place::Outside => ("up0", MTU, (OUTSIDE_V4, OUTSIDE_V6), None),
    };
    let link = plan.link(place);
    let [near_mac, far_mac] = [mac_text(link.near), mac_text(link.far)];
    let peer = far.path().file_name().context("a named namespace")?.to_string_lossy();
    ip(
        router,
        &format!(
            "link add {name} mtu {mtu} address {near_mac} type veth \
             peer name eth0 mtu {mtu} address {far_mac} netns {peer}"
        ),
    )?;
    // No link-local addresses: with one the router would send redirects.
    ip(router, &format!("link set {name} addrgenmode none up"))?;
    ip(far, "link set eth0 addrgenmode none up")?;
    if place == Place::Outside {
        ip(router, &format!("addr add {UPLINK_V4}/24 dev up0"))?;
        ip(router, &format!("addr add {UPLINK_V6}/64 dev up0 nodad"))?;
        ip(router, &format!("route add default via {OUTSIDE_V4}"))?;
        ip(router, &format!("-6 route add default via {OUTSIDE_V6}"))?;
        return finish_outside(router, far, link.far);
    }
    for (address, lock) in [(IpAddr::V4(addresses.0), ""), (IpAddr::V6(addresses.1), "lock")] {
        // IPv6 forwards by a route's MTU only when it is locked (ip6_dst_mtu_maybe_forward), else
        // finds the packet too long when it is about to leave, where it looks at headers again.
        let mtu = route_mtu.map_or(String::new(), |mtu| format!("mtu {lock} {mtu}"));
        ip(router, &format!("route add {address} dev {name} {mtu}"))?;
        ip(router, &format!("neigh add {address} lladdr {far_mac} dev {name} nud permanent"))?;
    }
    // IPv6 has no rp_filter setting; this is what stands in its place.
    let rules = format!(
        "table netdev rpfilter-{name} {{ chain ingress {{
            type filter hook ingress device {name} priority 0;
            meta protocol ip6 fib saddr . iif oif missing drop
        }}
        }}"
    );
    load_rules(router, &rules)?;
    silence(far, "eth0")
}

/// Resolves the outside once and for all, and keeps it silent. All that is beyond the node goes
/// there, also what looks like a neighbour: that a neighbour is missing, kernels only say after
/// seconds.
fn finish_outside(router: &Namespace, outside: &Namespace, mac: Mac) -> Result<()> {
    let mac = mac_text(mac);
    for via in [IpAddr::V4(OUTSIDE_V4), IpAddr::V6(OUTSIDE_V6)] {
        ip(router, &format!("neigh replace {via} lladdr {mac} dev up0 nud permanent"))?;
    }
    for family in ["-4", "-6"] {
        ip(router, &format!("{family} route flush dev up0 proto kernel"))?;
    }
    silence(outside, "eth0")
}

/// Keeps the kernel behind `interface` from answering. Packet sockets see frames before this.
fn silence(namespace: &Namespace, interface: &str) -> Result<()> {
    let rules = format!(
        "table netdev silence {{ chain ingress {{
            type filter hook ingress device {interface} priority 0; policy drop
        }}
        }}"
    );
    load_rules(namespace, &rules)
}

fn load_rules(namespace: &Namespace, rules: &str) -> Result<()> {
    let output = namespace.run("nft", &[rules])?;
    if !output.status.success() {
        bail!("load rules into {}: {output:?}", namespace.path().display());
    }
    Ok(())
}

fn write_sysctls(namespace: &Namespace, settings: &[(&str, &str)]) -> Result<()> {
    for (name, value) in settings {
        namespace
            .within(|| fs::write(Path::new("/proc/sys/net").join(name), value))?
            .with_context(|| format!("set {name} to {value}"))?;
    }
    Ok(())
}

fn link_of(namespace: &Namespace, name: &str) -> Result<Value> {
    let links = namespace.ip_json(&["link", "show", "dev", name])?;
    links.get(0).cloned().with_context(|| format!("find the link {name}"))
}

fn mac_of_link(namespace: &Namespace, name: &str) -> Result<Mac> {
    let link = link_of(namespace, name)?;
    let mac = link["address"].as_str().and_then(mac_of);
    mac.with_context(|| format!("find the MAC address of {name} in {link}"))
}

fn mtu_of_link(namespace: &Namespace, name: &str) -> Result<usize> {
    let link = link_of(namespace, name)?;
    let mtu = link["mtu"].as_u64().and_then(|mtu| usize::try_from(mtu).ok());
    mtu.with_context(|| format!("find the MTU of {name} in {link}"))
}
