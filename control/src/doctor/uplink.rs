//! Checks of the uplinks: whether each interface can be one, how well, and what of its settings
//! gets in the way. They give no rows without uplinks in the configuration.
//!
//! What only costs speed is well, with the better way as its mend. What else an uplink needs is
//! looked at for every node: forwarding, routers (`accept_ra`), networkd, memory.

use super::Check;
use super::Row;
use super::facts::{Facts, Nic};
use crate::config::{Config, MTU_MIN};
use crate::netlink::{Link, Policy};
use crate::node::{HOST_IFNAME_PREFIX, NODE_IFNAME};
use crate::uplink::fitness::judge;
use crate::workers::UPLINK_PORTS_MAX;

#[cfg(test)]
mod tests;
mod xdp;

/// All of them.
pub(super) const CHECKS: [Check; 8] =
    [interfaces, queues, xdp::xdp, xdp::zero_copy, mtu, offloads, rp_filter, rules];

/// Strict reverse path filtering (ip-sysctl.rst, `rp_filter`).
const STRICT: u32 = 1;

/// The configuration, if it names uplinks.
fn config(facts: &Facts) -> Option<&Config> {
    facts.config.as_ref().ok().filter(|config| !config.uplink.interfaces.is_empty())
}

/// The uplinks that are there and can be some.
fn fit(facts: &Facts) -> impl Iterator<Item = (&Link, &Nic)> {
    let links = facts.network.links.as_deref().unwrap_or_default();
    let names = config(facts).into_iter().flat_map(|config| &config.uplink.interfaces);
    names.filter_map(|name| {
        let nic = facts.network.nics.iter().find(|nic| nic.name == *name)?;
        Some((judge(name, links).ok()?, nic))
    })
}

/// A row that is well, and could be better if it has a mend.
fn could(check: &str, found: String, mend: &str) -> Row {
    Row::new(check, Some(true), found, mend)
}

/// Each interface is there, can be an uplink, and carries packets.
fn interfaces(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "uplink";
    let Some(config) = config(facts) else { return Vec::new() };
    let links = match &facts.network.links {
        Ok(links) => links,
        Err(why) => return vec![Row::unknown(CHECK, why, "")],
    };
    let row = |name: &String| match judge(name, links) {
        Err(unfit) => {
            // "found: mend".
            let sentence = unfit.to_string();
            let (found, mend) = sentence.split_once(": ").unwrap_or((sentence.as_str(), ""));
            Row::amiss(CHECK, found, mend)
        }
        Ok(link) if !link.up => {
            Row::amiss(CHECK, format!("{name} is down"), format!("ip link set {name} up"))
        }
        Ok(link) if !link.carrier => {
            let mend = format!("see to its cable and its other end; ethtool {name} says more");
            Row::amiss(CHECK, format!("{name} has no carrier"), mend)
        }
        Ok(_) => {
            let nic = facts.network.nics.iter().find(|nic| nic.name == *name);
            let driver = nic.and_then(|nic| nic.driver.as_deref());
            let driver =
                driver.map_or_else(String::new, |driver| format!("; its driver: {driver}"));
            Row::well(CHECK, format!("{name} is up{driver}"))
        }
    };
    config.uplink.interfaces.iter().map(row).collect()
}

/// Every worker has a queue of each uplink, and every queue a worker.
fn queues(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "uplink_queues";
    let Some(config) = config(facts) else { return Vec::new() };
    let workers = config.workers.cores.len() as u32;
    let most = u32::from(UPLINK_PORTS_MAX) / config.uplink.interfaces.len() as u32;
    let row = |(link, nic): (&Link, &Nic)| {
        let name = &link.name;
        let channels = match &nic.channels {
            Ok(channels) => channels,
            Err(why) => return Row::unknown(CHECK, why, ""),
        };
        let could_have = channels.map_or(1, |channels| channels.receive_queues_max());
        let now = channels.map_or(1, |channels| channels.receive_queues());
        let queues = config.uplink.channels.unwrap_or(now);
        if queues > could_have.max(now) {
            let found = format!("{name} cannot have {queues} queues, at most {could_have}");
            let mend = format!("lower uplink.channels to {could_have}");
            return Row::amiss(CHECK, found, mend);
        }
        let found = format!("{name} has {} for {workers} workers", count(queues));
        if queues > most {
            let found = format!("{found}, which can own {most} of them: the kernel gets the rest");
            return Row::amiss(CHECK, found, format!("uplink.channels = {most}"));
        }
        let without = (queues..workers).map(|worker| {
            format!("worker {worker} sends through worker {}", worker % queues.max(1))
        });
        let without: Vec<String> = without.collect();
        if without.is_empty() {
            return Row::well(CHECK, found);
        }
        let mend = if could_have >= workers {
            format!("uplink.channels = {workers}")
        } else {
            format!("a NIC with {workers} queues, or fewer workers")
        };
        could(CHECK, format!("{found}: {}", without.join(", ")), &mend)
    };
    fit(facts).map(row).collect()
}

fn count(queues: u32) -> String {
    if queues == 1 { "1 receive queue".to_owned() } else { format!("{queues} receive queues") }
}

/// What pods send fits the uplinks.
fn mtu(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "uplink_mtu";
    let Some(config) = config(facts) else { return Vec::new() };
    let row = |(link, _): (&Link, &Nic)| {
        let (name, mtu) = (&link.name, link.mtu);
        let (need, whose) = match config.node.mtu {
            Some(configured) => (configured, "node.mtu"),
            None => (MTU_MIN, "IPv6"),
        };
        if mtu >= need {
            return Row::well(
                CHECK,
                format!("the MTU of {name} is {mtu}, enough for the {need} of {whose}"),
            );
        }
        let found = format!(
            "the MTU of {name} is {mtu}, less than the {need} of {whose}: packets of pods are cut \
             or refused there"
        );
        let mend = match config.node.mtu {
            Some(_) if mtu >= MTU_MIN => {
                format!("ip link set {name} mtu {need}, or node.mtu = {mtu}")
            }
            _ => format!("ip link set {name} mtu {need}"),
        };
        Row::amiss(CHECK, found, mend)
    };
    fit(facts).map(row).collect()
}

/// The NIC shows frames to XDP as they came.
fn offloads(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "uplink_offloads";
    let links = facts.network.links.as_deref().unwrap_or_default();
    let mut rows = Vec::new();
    for (link, nic) in fit(facts) {
        let name = &link.name;
        let on = match &nic.features {
            Ok(on) => on,
            Err(why) => {
                rows.push(Row::unknown(CHECK, why, ""));
                continue;
            }
        };
        let mut findings = Vec::new();
        for merging in ["rx-lro", "rx-gro-hw"] {
            // Of virtio it is the host's work, which the driver stops by itself if it can.
            if !on.contains(merging) || nic.virtio.is_some() {
                continue;
            }
            let found = format!(
                "{name} merges what it receives ({merging}): its driver may refuse XDP, or show \
                 packets above its MTU"
            );
            findings.push(Row::amiss(CHECK, found, format!("ethtool -K {name} {merging} off")));
        }
        findings.extend(hidden_tags(link, links, on.contains("rx-vlan-hw-parse")));
        rows.extend(Row::all_or(findings, || {
            Row::well(CHECK, format!("{name} neither merges packets nor hides tags that matter"))
        }));
    }
    rows
}

fn is_veth(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth")
}

/// A NIC that takes tags off shows tagged frames to XDP as if they had none, and the program takes
/// those for pods to be the workers'.
fn hidden_tags(link: &Link, links: &[Link], takes_off: bool) -> Option<Row> {
    let is_of =
        |vlan: &&Link| vlan.kind.as_deref() == Some("vlan") && vlan.peer_index == Some(link.index);
    let vlan = links.iter().find(|vlan| is_of(vlan) && !vlan.peer_elsewhere)?;
    let name = &link.name;
    let so = "what comes tagged and is for a pod is taken for untagged";
    if is_veth(link) {
        // Which end hides them is the other end's business, and often in another namespace.
        let found = format!("{} is a VLAN of the veth {name}: {so}, if tags come apart", vlan.name);
        let mend = format!("ethtool -K DEVICE txvlan off for the other end of {name}");
        return Some(could("uplink_offloads", found, &mend));
    }
    let found = format!("{name} takes off the tags of {} before XDP: {so}", vlan.name);
    let mend = format!("ethtool -K {name} rxvlan off");
    takes_off.then(|| Row::amiss("uplink_offloads", found, mend))
}

/// With several uplinks a packet may come by one and its answer leave by another, which strict
/// filtering in the kernel drops whenever it carries the packets.
fn rp_filter(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "uplink_rp_filter";
    let Some(config) = config(facts) else { return Vec::new() };
    let value = |name: &str| -> u32 {
        let key = format!("ipv4/conf/{name}/rp_filter");
        facts.network.setting(&key).parse().unwrap_or(0)
    };
    let several = config.uplink.interfaces.len() > 1;
    let row = |(link, _): (&Link, &Nic)| {
        let name = &link.name;
        let in_effect = value(name).max(value("all"));
        if in_effect != STRICT || !several {
            let found = format!("reverse path filtering of {name} is fine ({in_effect})");
            return Row::well(CHECK, found);
        }
        let found = format!(
            "reverse path filtering of {name} is strict: while the kernel carries the pods it \
             drops what leaves by one uplink and comes by another"
        );
        Row::amiss(CHECK, found, format!("sysctl -w net/ipv4/conf/{name}/rp_filter=2"))
    };
    fit(facts).map(row).collect()
}

/// No rule would send what pods send another way than the workers do.
fn rules(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "uplink_rules";
    if config(facts).is_none() {
        return Vec::new();
    }
    let policies = match &facts.network.policies {
        Ok(policies) => policies,
        Err(why) => return vec![Row::unknown(CHECK, why, "")],
    };
    let unfollowed = policies.iter().filter(|policy| {
        !policy.conditions.is_empty() && !policy.own_packets && concerns_pods(policy)
    });
    let rows = unfollowed.map(|policy| {
        let found = format!("{policy} asks more than where a packet goes: workers pass it over");
        let mend = "leave the prefixes it is for to the kernel with uplink.kernel, or route them \
                    without it";
        Row::amiss(CHECK, found, mend)
    });
    Row::all_or(rows.collect(), || {
        Row::well(CHECK, "workers follow every rule that packets of pods can meet")
    })
}

/// Whether a packet of a pod can meet the conditions: it has no mark and no socket, belongs to no
/// VRF, and came in by an interface of ours.
fn concerns_pods(policy: &Policy) -> bool {
    let asks = |what: &str| policy.conditions.iter().any(|condition| condition.starts_with(what));
    if asks("not") {
        return true;
    }
    // What workers give the kernel comes in by viaduct0, and without workers by the host ends; our
    // own rule is for what comes in by viaduct1.
    let elsewhere = policy
        .iif
        .as_deref()
        .is_some_and(|iif| iif != NODE_IFNAME && !iif.starts_with(HOST_IFNAME_PREFIX));
    !elsewhere && !["fwmark", "l3mdev", "uidrange"].into_iter().any(asks)
}
