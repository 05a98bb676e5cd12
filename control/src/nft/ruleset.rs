//! What stands in table `inet viaduct`, as a pure function of the configuration.
//!
//! ```text
//! set pods4, pods6        the pods of this node
//! set direct4, direct6    what pods reach with their own address
//! chain prerouting        filter, priority -450 (before defragmentation and conntrack)
//!   1. from viaduct1: notrack
//! chain postrouting       nat, priority 100 (srcnat), after the rules for host ports
//!   2. from pods, destination translated: masquerade
//!   3. from pods, not to direct, not through viaduct0: masquerade      (if configured)
//! ```
//!
//! What host ports need is in `host_ports.rs` (sets) and `host_port_rules.rs` (rules 4 to 14).
//!
//! **Rule 1.** While a worker lives, no packet enters the kernel by `viaduct1`. When none does, a
//! packet for a local pod leaves by `viaduct0`, comes out of `viaduct1` and passes the kernel a
//! second time. A veth drops the packet's conntrack entry even inside one namespace
//! (`skb_scrub_packet`, net/core/skbuff.c), so conntrack looks the packet up anew. It still knows
//! a packet that was not translated. A translated one looks like a new connection whose replies
//! would equal those of the first entry; to keep them apart NAT gives it another source port, and
//! the reply then finds the second entry only: it is never translated back, and the connection
//! dies. Every Service with a local backend would break. Untracked, the second pass translates
//! nothing, and the reply, which passes `viaduct1` last, meets the first entry. Before priority
//! -400 the rule also saves reassembling and fragmenting again.
//!
//! **Rule 2.** A worker delivers a local backend's reply straight to the pod it is addressed to.
//! The kernel would not see it and could not put the Service's address back. With the node's
//! address as source the reply goes to the node first. So this holds with `masquerade = false` too,
//! and towards pods behind `viaduct0`.
//!
//! **Never translated**: pod to pod (`direct`, or through `viaduct0`), pod to node (such packets do
//! not pass postrouting), node to pod (the source is no pod), and packets on their second pass.

use ipnet::IpNet;

use super::conditions::{
    came_in_on, destination_was_translated, does_not_leave_by, family_is, in_set, not_in_set,
};
use super::encode::{Batch, TABLE_NAME, message};
use super::expressions::{End, Expression, Field, OBJECT_COUNTER};
use super::host_port_rules::{self, GUARDED};
use super::intervals::{Family, Interval, difference, union};
use super::{Guarded, NftConfig, TABLE, host_ports, sets};
use crate::attributes::attribute;
use crate::node::{NODE_IFNAME, WORKER_IFNAME};

const PODS: &str = "pods";
const DIRECT: &str = "direct";

/// A chain that the kernel itself calls.
pub(super) struct Chain {
    pub(super) name: &'static str,
    /// `filter` or `nat`.
    pub(super) kind: &'static str,
    /// Hook number (include/uapi/linux/netfilter.h, `enum nf_inet_hooks`).
    pub(super) hook: u32,
    pub(super) priority: i32,
}

/// Decides which packets conntrack sees: its priority is `NF_IP_PRI_RAW_BEFORE_DEFRAG`.
pub(super) const PREROUTING: Chain =
    Chain { name: "prerouting", kind: "filter", hook: 0, priority: -450 };
/// Translates sources: its priority is `NF_IP_PRI_NAT_SRC`, that of all masquerading.
pub(super) const POSTROUTING: Chain =
    Chain { name: "postrouting", kind: "nat", hook: 4, priority: 100 };

/// A rule: what `nft list` shows beside it, and its steps.
pub(super) struct Rule {
    pub(super) chain: &'static str,
    pub(super) comment: &'static str,
    pub(super) expressions: Vec<Expression>,
}

/// The batch that makes the table what `config` asks for, whatever it is now. The guard's counter
/// goes on from `guarded`.
pub(super) fn replacement(config: &NftConfig, guarded: Guarded) -> Batch {
    let mut batch = Batch::begin();
    clear(&mut batch);
    table(&mut batch, message::NEWTABLE, "the table");
    let mut set_id = 0;
    for family in Family::ALL {
        let pods = union(family, &config.pod_cidrs);
        let direct = difference(&union(family, &config.direct), &union(family, &config.kernel));
        for (name, intervals) in [(PODS, pods), (DIRECT, direct)] {
            set_id += 1;
            let name = set_name(name, family);
            sets::make_of_intervals(&mut batch, set_id, family, &name, &intervals);
        }
    }
    host_ports::make(&mut batch, set_id + 1, &config.host_ports, &config.not_node);
    counter(&mut batch, GUARDED, guarded);
    for definition in [PREROUTING, POSTROUTING].iter().chain(&host_port_rules::CHAINS) {
        chain(&mut batch, definition);
    }
    for definition in rules(config) {
        rule(&mut batch, &definition);
    }
    batch.finish()
}

/// The batch that makes these the pods' prefixes in a table where they were `before`: what touches
/// is one interval, so an address that comes or goes may change its neighbors'.
pub(super) fn pods_change(before: &[IpNet], after: &[IpNet]) -> Batch {
    let mut batch = Batch::begin();
    for family in Family::ALL {
        let name = set_name(PODS, family);
        let [before, after] = [before, after].map(|prefixes| union(family, prefixes));
        for (kind, whole, others) in
            [(message::DELSETELEM, &before, &after), (message::NEWSETELEM, &after, &before)]
        {
            let differ = whole.iter().filter(|part| others.binary_search(part).is_err());
            let differ: Vec<Interval> = differ.copied().collect();
            sets::change_intervals(&mut batch, kind, family, &name, &differ);
        }
    }
    batch.finish()
}

/// The batch that removes the table, if there is one.
pub(super) fn removal() -> Batch {
    let mut batch = Batch::begin();
    clear(&mut batch);
    batch.finish()
}

fn rules(config: &NftConfig) -> Vec<Rule> {
    let mut rules = vec![Rule {
        chain: PREROUTING.name,
        comment: "second pass while no worker is alive",
        expressions: [came_in_on(WORKER_IFNAME), vec![Expression::Untrack]].concat(),
    }];
    rules.extend(host_port_rules::before_routing());
    rules.extend(host_port_rules::after_routing());
    for family in Family::ALL {
        rules.extend(masquerade(config, family));
    }
    rules
}

/// Rules 2 and 3.
fn masquerade(config: &NftConfig, family: Family) -> Vec<Rule> {
    let [source, destination] =
        [End::Source, End::Destination].map(|end| [Field::Address(family, end)]);
    let pods = [family_is(family), in_set(&source, set_name(PODS, family))].concat();
    let action = vec![Expression::Counter, Expression::Masquerade];
    let rule = |comment, conditions: Vec<Expression>| Rule {
        chain: POSTROUTING.name,
        comment,
        expressions: [pods.clone(), conditions, action.clone()].concat(),
    };
    let mut rules =
        vec![rule("the reply has to pass the node again", destination_was_translated())];
    if config.masquerade {
        let elsewhere = not_in_set(&destination, set_name(DIRECT, family));
        let outwards = does_not_leave_by(NODE_IFNAME);
        rules.push(rule("pods leave the pod network", [elsewhere, outwards].concat()));
    }
    rules
}

fn set_name(name: &str, family: Family) -> String {
    format!("{name}{}", family.suffix())
}

/// Removing what does not exist is an error, and making what exists is none: so make, then remove.
fn clear(batch: &mut Batch) {
    table(batch, message::NEWTABLE, "the table");
    table(batch, message::DELTABLE, "the removal");
}

fn table(batch: &mut Batch, kind: u8, object: &str) {
    batch.add(kind, object.to_owned(), |attributes| attributes.text(TABLE_NAME, TABLE));
}

fn chain(batch: &mut Batch, chain: &Chain) {
    batch.add(message::NEWCHAIN, format!("{} chain {}", chain.kind, chain.name), |attributes| {
        attributes.text(TABLE_NAME, TABLE);
        attributes.text(3, chain.name); // NFTA_CHAIN_NAME
        attributes.nested(4, |hook| {
            hook.number(1, chain.hook); // NFTA_HOOK_HOOKNUM
            hook.number(2, chain.priority.cast_unsigned()); // NFTA_HOOK_PRIORITY
        }); // NFTA_CHAIN_HOOK
        attributes.text(7, chain.kind); // NFTA_CHAIN_TYPE
    });
}

fn rule(batch: &mut Batch, rule: &Rule) {
    batch.add(message::NEWRULE, format!("a rule of chain {}", rule.chain), |attributes| {
        attributes.text(TABLE_NAME, TABLE);
        attributes.text(2, rule.chain); // NFTA_RULE_CHAIN
        attributes.nested(4, |list| {
            for expression in &rule.expressions {
                expression.encode(list);
            }
        }); // NFTA_RULE_EXPRESSIONS
        attributes.raw(7, &comment(rule.comment)); // NFTA_RULE_USERDATA
    });
}

/// A comment in the form that `nft` stores it: type 0, length, text with its zero byte
/// (libnftnl, include/libnftnl/udata.h). The kernel keeps the bytes without reading them.
fn comment(text: &str) -> Vec<u8> {
    let len = u8::try_from(text.len() + 1).expect("our comments are short");
    [&[0, len], text.as_bytes(), &[0]].concat()
}

/// A counter that rules share, with what it has counted before.
fn counter(batch: &mut Batch, name: &str, counted: Guarded) {
    batch.add(message::NEWOBJ, format!("counter {name}"), |attributes| {
        attributes.text(TABLE_NAME, TABLE);
        attributes.text(2, name); // NFTA_OBJ_NAME
        attributes.number(3, OBJECT_COUNTER); // NFTA_OBJ_TYPE
        attributes.nested(4, |data| {
            data.raw(1, &counted.bytes.to_be_bytes()); // NFTA_COUNTER_BYTES
            data.raw(2, &counted.packets.to_be_bytes()); // NFTA_COUNTER_PACKETS
        }); // NFTA_OBJ_DATA
    });
}

/// The question for that counter.
pub(super) fn counter_question(name: &str) -> Batch {
    Batch::single(message::GETOBJ, "the guard's counter", |attributes| {
        attributes.text(TABLE_NAME, TABLE);
        attributes.text(2, name); // NFTA_OBJ_NAME
        attributes.number(3, OBJECT_COUNTER); // NFTA_OBJ_TYPE
    })
}

/// What an answer to [`counter_question`] says, from its attributes.
pub(super) fn counted(object: &[u8]) -> Option<Guarded> {
    let data = attribute(object, 4)?; // NFTA_OBJ_DATA
    let number = |kind| Some(u64::from_be_bytes(attribute(data, kind)?.try_into().ok()?));
    Some(Guarded { bytes: number(1)?, packets: number(2)? })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use ipnet::{IpNet, Ipv6Net};

    use super::*;
    use crate::nfnetlink::messages;
    use crate::nft::encode::SUBSYSTEM;

    fn config(pod_cidrs: Vec<IpNet>) -> NftConfig {
        let direct = pod_cidrs.clone();
        NftConfig { pod_cidrs, direct, masquerade: true, ..NftConfig::default() }
    }

    fn replacement(config: &NftConfig) -> Batch {
        super::replacement(config, Guarded::default())
    }

    /// Message types of a batch, without its frame.
    fn kinds(batch: &Batch) -> Vec<u8> {
        let all = messages(batch.bytes());
        all.filter_map(|received| received.of(SUBSYSTEM).map(|(kind, ..)| kind)).collect()
    }

    #[test]
    fn a_replacement_makes_removes_and_makes_the_table_before_anything_else() {
        let kinds = kinds(&replacement(&config(vec!["10.0.0.0/24".parse().unwrap()])));
        assert_eq!(kinds[..3], [message::NEWTABLE, message::DELTABLE, message::NEWTABLE]);
        assert_eq!(kinds.iter().filter(|kind| **kind == message::NEWRULE).count(), 30);
    }

    #[test]
    fn without_masquerade_only_translated_connections_are_masqueraded() {
        let mut config = config(vec![]);
        config.masquerade = false;
        for family in Family::ALL {
            let rules = masquerade(&config, family);
            assert_eq!(rules.len(), 1);
            let status = Expression::Load(Field::ConnectionStatus, 0);
            assert!(rules[0].expressions.contains(&status));
        }
    }

    #[test]
    fn a_long_list_of_prefixes_is_cut_into_messages() {
        // Every second /64: none of them touch, so none are merged.
        let prefixes = (0..2000u128)
            .map(|index| Ipv6Addr::from((0xfd00 << 112) | (index << 65)))
            .map(|address| Ipv6Net::new(address, 64).unwrap().into());
        let kinds = kinds(&replacement(&config(prefixes.collect())));
        assert_eq!(kinds.iter().filter(|kind| **kind == message::NEWSETELEM).count(), 8);
    }
}
