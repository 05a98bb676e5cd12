//! Which interfaces can be uplinks, and what to do about one that cannot.
//!
//! An uplink is an interface that owns its wire: a NIC, or a veth that stands in for one. What sits
//! above a NIC (bond, bridge, VLAN, tunnel) has no queues of its own that an AF_XDP socket could be
//! bound to, and what is put below one of those loses its packets to it. Such interfaces are
//! refused by name, with the mend. Pure: the caller lists the interfaces.

use crate::netlink::Link;
use crate::node::{COOKIE_PREFIX, NODE_IFNAME, WORKER_IFNAME};

/// Kinds of interfaces that can be uplinks, beside hardware, which has none: a veth, and the
/// kernel's own simulated NIC.
const KINDS: [&str; 2] = ["veth", "netdevsim"];

/// Why an interface cannot be an uplink.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is not there; it may come later.
    #[error(
        "there is no interface {name}: bring it into this network namespace, or correct \
         uplink.interfaces"
    )]
    Missing {
        /// The name that was looked for.
        name: String,
    },
    /// It is there, and what it is or where it belongs forbids it.
    #[error("{found}: {mend}")]
    Refused {
        /// What it is, with its name.
        found: String,
        /// What to do.
        mend: String,
    },
}

impl Unfit {
    fn refused(found: String, mend: impl Into<String>) -> Unfit {
        Unfit::Refused { found, mend: mend.into() }
    }
}

/// The interface with this name among all of a network namespace, if it can be an uplink. Whether
/// it is up is not asked: that changes.
///
/// # Errors
/// See [`Unfit`].
pub fn judge<'a>(name: &str, links: &'a [Link]) -> Result<&'a Link, Unfit> {
    let link = links
        .iter()
        .find(|link| link.name == name)
        .ok_or_else(|| Unfit::Missing { name: name.to_owned() })?;
    refusal(link, links).map_or(Ok(link), Err)
}

/// Whether this interface can be an uplink. Cheaper than [`judge`], because the others need not be
/// listed; a refusal does not know their names either.
///
/// # Errors
/// [`Unfit::Refused`].
pub fn check(link: &Link) -> Result<(), Unfit> {
    refusal(link, &[]).map_or(Ok(()), Err)
}

/// Why not. `links` may be any part of the network namespace: they give names to sentences.
fn refusal(link: &Link, links: &[Link]) -> Option<Unfit> {
    by_nature(link, links).or_else(|| by_controller(link, links))
}

fn by_nature(link: &Link, links: &[Link]) -> Option<Unfit> {
    let name = &link.name;
    let cookie = link.alias.as_deref().is_some_and(|alias| alias.starts_with(COOKIE_PREFIX));
    let inner = if cookie || [NODE_IFNAME, WORKER_IFNAME].contains(&name.as_str()) {
        Some("an interface of Viaduct itself")
    } else {
        link.loopback.then_some("the loopback interface")
    };
    if let Some(what) = inner {
        let mend = "name the interface that leads to other nodes";
        return Some(Unfit::refused(format!("{name} is {what}"), mend));
    }
    match link.kind.as_deref() {
        None => {}
        Some(kind) if KINDS.contains(&kind) => {}
        Some(kind) => return Some(of_kind(link, kind, links)),
    }
    let not_ethernet = || {
        let found = format!("{name} has no Ethernet address");
        Unfit::refused(found, "name an Ethernet interface")
    };
    link.mac.is_none().then(not_ethernet)
}

/// The refusal of an interface that is neither hardware nor of one of [`KINDS`].
fn of_kind(link: &Link, kind: &str, links: &[Link]) -> Unfit {
    let name = &link.name;
    let members = members(link, links);
    let parent = parent(link, links);
    match kind {
        "bond" | "team" => Unfit::refused(
            format!("{name} is a {kind}{members}, and bonds are not supported"),
            format!(
                "take its members out of {name}, give each its own address, name them in \
                 uplink.interfaces, and let the routes have a next hop by each (ECMP)"
            ),
        ),
        "bridge" | "openvswitch" => Unfit::refused(
            format!("{name} is a bridge{members}"),
            "name a NIC that belongs to no bridge, with the node's address on the NIC",
        ),
        "vlan" => Unfit::refused(
            format!("{name} is a VLAN of {parent}"),
            format!(
                "name {parent} if other nodes' pods are reached without a tag; tagged packets are \
                 the kernel's, and their prefixes belong in uplink.kernel"
            ),
        ),
        "macvlan" | "macvtap" | "ipvlan" | "ipvtap" => Unfit::refused(
            format!("{name} shares {parent} ({kind})"),
            format!("name {parent} itself"),
        ),
        "vrf" => Unfit::refused(
            format!("{name} is a VRF{members}"),
            "name a NIC that belongs to no VRF: routes of VRFs are not followed",
        ),
        "wireguard" | "tun" => Unfit::refused(
            format!("{name} leads into a process or a tunnel ({kind})"),
            "name the NIC below it, and leave prefixes behind the tunnel to the kernel with \
             uplink.kernel",
        ),
        _ => Unfit::refused(
            format!("{name} is of kind {kind}, which cannot be an uplink"),
            "name a NIC or a veth",
        ),
    }
}

/// The refusal of an interface that belongs to another one.
fn by_controller(link: &Link, links: &[Link]) -> Option<Unfit> {
    let index = link.controller?;
    let name = &link.name;
    let leave = format!("ip link set {name} nomaster");
    let controller = links.iter().find(|link| link.index == index);
    let kind = controller.map(|link| (link.name.as_str(), link.kind.as_deref()));
    let (found, mend) = match kind {
        None => (
            format!("{name} belongs to interface {index} (a bridge, bond or VRF)"),
            format!("{leave}, and give {name} the node's address, or name another NIC"),
        ),
        Some((of, Some("bond" | "team"))) => (
            format!("{name} is a member of bond {of}, and bonds are not supported"),
            format!(
                "{leave}, likewise the other members, each with its own address, and let the \
                 routes have a next hop by each (ECMP)"
            ),
        ),
        Some((of, Some("vrf"))) => (
            format!("{name} belongs to VRF {of}, whose routes are not followed"),
            format!("{leave}, or name another NIC"),
        ),
        Some((of, _)) => (
            format!("{name} is a port of bridge {of}, which gets its packets"),
            format!("{leave} and give {name} the node's address, or name another NIC"),
        ),
    };
    Some(Unfit::refused(found, mend))
}

/// What an interface sits on, by name if that is known.
fn parent(link: &Link, links: &[Link]) -> String {
    let index = link.peer_index.filter(|_| !link.peer_elsewhere);
    let parent = index.and_then(|index| links.iter().find(|link| link.index == index));
    match (parent, index) {
        (Some(parent), _) => parent.name.clone(),
        (None, Some(index)) => format!("interface {index}"),
        (None, None) => "an interface of another network namespace".to_owned(),
    }
}

/// " of …", the interfaces that belong to this one, as far as they are known.
fn members(link: &Link, links: &[Link]) -> String {
    let members = links.iter().filter(|member| member.controller == Some(link.index));
    let names: Vec<&str> = members.map(|member| member.name.as_str()).collect();
    if names.is_empty() { String::new() } else { format!(" of {}", names.join(" and ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            mac: Some([0, 1, 2, 3, 4, index as u8]),
            ..Link::default()
        }
    }

    fn node() -> Vec<Link> {
        let member = |index, name, controller| Link {
            controller: Some(controller),
            ..link(index, name, None)
        };
        let above = |index, name, kind, parent| Link {
            peer_index: Some(parent),
            ..link(index, name, Some(kind))
        };
        let viaduct = |index, name: &str, alias: &str| Link {
            alias: Some(alias.to_owned()),
            ..link(index, name, Some("veth"))
        };
        vec![
            Link { loopback: true, ..link(1, "lo", None) },
            link(2, "eth0", None),
            link(3, "veth0", Some("veth")),
            link(4, "br0", Some("bridge")),
            member(5, "eth5", 4),
            link(6, "bond0", Some("bond")),
            member(7, "eth7", 6),
            member(8, "eth8", 6),
            link(9, "red", Some("vrf")),
            member(10, "eth10", 9),
            above(11, "eth0.7", "vlan", 2),
            above(12, "mac0", "macvlan", 2),
            Link { mac: None, ..link(13, "wg0", Some("wireguard")) },
            link(14, "tap0", Some("tun")),
            Link { mac: None, ..link(15, "ib0", None) },
            link(16, "vxlan1", Some("vxlan")),
            viaduct(17, "viaduct0", "viaduct:node"),
            viaduct(18, "vd0123456789ab", "viaduct:net/one/eth0"),
            link(19, "viaduct1", Some("dummy")),
            Link { peer_elsewhere: true, ..above(20, "far7", "vlan", 2) },
            member(21, "port0", 99),
            link(22, "bond1", Some("bond")),
            link(23, "eni1np1", Some("netdevsim")),
        ]
    }

    fn refuses(name: &str, found: &str, mend: &str) {
        let links = node();
        let refused = judge(name, &links).expect_err(name);
        let Unfit::Refused { found: what, mend: how } = &refused else {
            panic!("{name} is there: {refused}");
        };
        assert!(what.contains(name), "{what}");
        assert!(what.contains(found), "{what} lacks {found}");
        assert!(how.contains(mend), "{how} lacks {mend}");
        assert_eq!(refused.to_string(), format!("{what}: {how}"));
    }

    #[test]
    fn hardware_and_a_veth_are_fit() {
        let links = node();
        for name in ["eth0", "veth0", "eni1np1"] {
            assert_eq!(judge(name, &links).map(|link| link.name.as_str()), Ok(name));
        }
    }

    #[test]
    fn one_that_is_not_there_may_come_later() {
        let missing = Unfit::Missing { name: "eth9".to_owned() };
        assert_eq!(judge("eth9", &node()), Err(missing.clone()));
        assert!(missing.to_string().starts_with("there is no interface eth9: "));
    }

    #[test]
    fn what_cannot_be_an_uplink_is_refused_by_name_with_what_to_do() {
        for (name, found, mend) in [
            ("lo", "loopback", "leads to other nodes"),
            ("viaduct0", "of Viaduct itself", "leads to other nodes"),
            ("vd0123456789ab", "of Viaduct itself", "leads to other nodes"),
            // Somebody else's with our name: never an uplink either.
            ("viaduct1", "of Viaduct itself", "leads to other nodes"),
            // The mend of a bond is an uplink for each member.
            ("bond0", "a bond of eth7 and eth8", "ECMP"),
            ("bond1", "bond1 is a bond, and", "ECMP"),
            ("eth7", "a member of bond bond0", "ip link set eth7 nomaster"),
            ("br0", "a bridge of eth5", "belongs to no bridge"),
            ("eth5", "a port of bridge br0", "ip link set eth5 nomaster"),
            ("port0", "belongs to interface 99 (a bridge, bond or VRF)", "nomaster"),
            ("red", "a VRF of eth10", "not followed"),
            ("eth10", "belongs to VRF red", "ip link set eth10 nomaster"),
            // What sits on a NIC names the NIC.
            ("eth0.7", "a VLAN of eth0", "name eth0 if"),
            ("mac0", "shares eth0 (macvlan)", "name eth0 itself"),
            ("far7", "a VLAN of an interface of another network namespace", "tagged"),
            ("wg0", "(wireguard)", "uplink.kernel"),
            ("tap0", "(tun)", "uplink.kernel"),
            ("vxlan1", "of kind vxlan", "a NIC or a veth"),
            ("ib0", "no Ethernet address", "an Ethernet interface"),
        ] {
            refuses(name, found, mend);
        }
    }

    #[test]
    fn without_the_others_the_verdict_is_the_same() {
        let links = node();
        for link in &links {
            let alone = check(link);
            assert_eq!(alone.is_ok(), judge(&link.name, &links).is_ok(), "{}", link.name);
            if let Err(refused) = alone {
                assert!(refused.to_string().contains(&link.name), "{refused}");
            }
        }
        let vlan = links.iter().find(|link| link.name == "eth0.7").expect("it is there");
        let words = check(vlan).expect_err("refused").to_string();
        assert!(
            words.starts_with("eth0.7 is a VLAN of interface 2: name interface 2 if"),
            "{words}"
        );
    }
}
