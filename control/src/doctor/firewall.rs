//! Checks of packet filters: our nf_tables table, and what others drop on the way to the pods.

use super::Row;
use super::facts::Facts;
use crate::nft::{Accepted, ForwardChain, TABLE};
use crate::node::NODE_IFNAME;
use ipnet::IpNet;

/// The table of the older iptables that has a chain FORWARD.
const LEGACY_FILTER: &str = "filter";

/// Our table is there, once a daemon was started here.
pub(super) fn nft_table(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "nft_table";
    let started = facts.network.our_link(NODE_IFNAME).is_some();
    vec![match (&facts.network.nft_table, started) {
        (Ok(true), _) => Row::well(CHECK, format!("table inet {TABLE} is there")),
        (Ok(false), false) => Row::well(CHECK, format!("viaductd makes table inet {TABLE}")),
        (Ok(false), true) => Row::amiss(
            CHECK,
            format!("table inet {TABLE} is missing: pods do not get out under the node's address"),
            "start viaductd, which puts it back; while it runs it looks once a second",
        ),
        (Err(why), _) => Row::unknown(CHECK, why, ""),
    }]
}

/// No chain drops what the pods send through the kernel.
pub(super) fn forward_policy(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "forward_policy";
    let network = &facts.network;
    let dropping = match &network.dropping {
        Ok(dropping) => dropping,
        Err(why) => return vec![Row::unknown(CHECK, why, "")],
    };
    let cidrs = facts.pod_cidrs();
    let mut findings = Vec::new();
    for chain in dropping {
        let ForwardChain { family, table, name, accepted } = chain;
        for cidr in cidrs.iter().filter(|cidr| chain.sees(cidr)) {
            if accepted.iter().any(|accepted| covers(accepted, cidr)) {
                continue;
            }
            let word = if cidr.addr().is_ipv4() { "ip" } else { "ip6" };
            let found = format!(
                "chain {name} of table {family} {table} drops what no rule accepts, and none \
                 accepts all that comes from {cidr}"
            );
            let mend = format!(
                "nft insert rule {family} {table} {name} {word} saddr {cidr} accept, and the same \
                 with daddr; keep both where your firewall keeps its rules"
            );
            findings.push(Row::amiss(CHECK, found, mend));
        }
    }
    Row::all_or(findings, || {
        if cidrs.is_empty() && !dropping.is_empty() {
            let why = "chains drop what is forwarded, but the pods' prefixes are not known";
            return Row::unknown(CHECK, why, "");
        }
        if !network.legacy_tables.iter().any(|table| table == LEGACY_FILTER) {
            return Row::well(CHECK, "no chain drops by policy what pods send through the kernel");
        }
        let why = "iptables-legacy has rules too, which are not read here";
        Row::unknown(CHECK, why, "see iptables-legacy -S FORWARD and ip6tables-legacy -S FORWARD")
    })
}

/// Whether what a rule accepts has all packets from the prefix in it.
fn covers(accepted: &Accepted, cidr: &IpNet) -> bool {
    match accepted {
        Accepted::All => true,
        Accepted::Source(source) => source.contains(cidr),
        // What pods send to others comes in by the node port while a worker lives.
        Accepted::Interface(name) => match name.strip_suffix('*') {
            Some(begin) => NODE_IFNAME.starts_with(begin),
            None => name == NODE_IFNAME,
        },
    }
}
