//! What stands in table `inet viaduct`, as a pure function of the configuration.
//!
//! ```text
//! set pods4, pods6        the pods of this node
//! set direct4, direct6    what pods reach with their own address
//! chain prerouting        filter, priority -450 (before defragmentation and conntrack)
//!   1. from viaduct1: notrack
//! chain postrouting       nat, priority 100 (srcnat)
//!   2. from pods, destination translated: masquerade
//!   3. from pods, not to direct, not through viaduct0: masquerade      (if configured)
//! ```
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

use super::encode::{Attributes, Batch, TABLE_NAME, message};
use super::expressions::{
    Address, DATA_VALUE, Expression, Membership, address_in, came_in_on,
    destination_was_translated, does_not_leave_by, family_is,
};
use super::intervals::{Family, Interval, difference, union};
use super::{NftConfig, TABLE};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PODS: &str = "pods";
const DIRECT: &str = "direct";

/// `NFT_SET_INTERVAL`: elements come in pairs, where an interval begins and where it has ended.
const SET_INTERVAL: u32 = 0x4;
/// `NFT_SET_ELEM_INTERVAL_END`: the first key that is no longer inside.
const ELEMENT_INTERVAL_END: u32 = 0x1;
/// Intervals in one message. An interval takes at most 80 bytes (IPv6), and the list is one
/// attribute, whose length is a 16-bit number.
const INTERVALS_PER_MESSAGE: usize = 512;

/// A chain that the kernel itself calls.
struct Chain {
    name: &'static str,
    /// `filter` or `nat`.
    kind: &'static str,
    /// Hook number (include/uapi/linux/netfilter.h, `enum nf_inet_hooks`).
    hook: u32,
    priority: i32,
}

/// Decides which packets conntrack sees: its priority is `NF_IP_PRI_RAW_BEFORE_DEFRAG`.
const PREROUTING: Chain = Chain { name: "prerouting", kind: "filter", hook: 0, priority: -450 };
/// Translates sources: its priority is `NF_IP_PRI_NAT_SRC`, that of all masquerading.
const POSTROUTING: Chain = Chain { name: "postrouting", kind: "nat", hook: 4, priority: 100 };

/// A rule: what `nft list` shows beside it, and its steps.
struct Rule {
    chain: &'static str,
    comment: &'static str,
    expressions: Vec<Expression>,
}

/// The batch that makes the table what `config` asks for, whatever it is now.
pub(super) fn replacement(config: &NftConfig<'_>) -> Batch {
    let mut batch = Batch::begin();
    clear(&mut batch);
    table(&mut batch, message::NEWTABLE, "the table");
    let mut set_id = 0;
    for family in FAMILIES {
        let pods = union(family, &config.pod_cidrs);
        let direct = difference(&union(family, &config.direct), &union(family, &config.kernel));
        for (name, intervals) in [(PODS, pods), (DIRECT, direct)] {
            set_id += 1;
            set(&mut batch, set_id, family, &set_name(name, family), &intervals);
        }
    }
    for definition in [PREROUTING, POSTROUTING] {
        chain(&mut batch, &definition);
    }
    for definition in rules(config) {
        rule(&mut batch, &definition);
    }
    batch.finish()
}

/// The batch that removes the table, if there is one.
pub(super) fn removal() -> Batch {
    let mut batch = Batch::begin();
    clear(&mut batch);
    batch.finish()
}

fn rules(config: &NftConfig<'_>) -> Vec<Rule> {
    let mut rules = vec![Rule {
        chain: PREROUTING.name,
        comment: "second pass while no worker is alive",
        expressions: [&came_in_on(config.worker_end)[..], &[Expression::Untrack]].concat(),
    }];
    for family in FAMILIES {
        let pods = address_in(family, Address::Source, Membership::In, set_name(PODS, family));
        rules.push(Rule {
            chain: POSTROUTING.name,
            comment: "the reply has to pass the node again",
            expressions: [
                &family_is(family)[..],
                &pods,
                &destination_was_translated(),
                &[Expression::Counter, Expression::Masquerade],
            ]
            .concat(),
        });
        if !config.masquerade {
            continue;
        }
        let elsewhere = set_name(DIRECT, family);
        rules.push(Rule {
            chain: POSTROUTING.name,
            comment: "pods leave the pod network",
            expressions: [
                &family_is(family)[..],
                &pods,
                &address_in(family, Address::Destination, Membership::NotIn, elsewhere),
                &does_not_leave_by(config.node_port),
                &[Expression::Counter, Expression::Masquerade],
            ]
            .concat(),
        });
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

fn set(batch: &mut Batch, id: u32, family: Family, name: &str, intervals: &[Interval]) {
    batch.add(message::NEWSET, format!("interval set {name}"), |attributes| {
        attributes.text(TABLE_NAME, TABLE);
        attributes.text(2, name); // NFTA_SET_NAME
        attributes.number(3, SET_INTERVAL); // NFTA_SET_FLAGS
        attributes.number(4, family.key_type()); // NFTA_SET_KEY_TYPE
        attributes.number(5, family.address_len()); // NFTA_SET_KEY_LEN
        attributes.number(10, id); // NFTA_SET_ID: unique in the batch
    });
    for part in intervals.chunks(INTERVALS_PER_MESSAGE) {
        batch.add(message::NEWSETELEM, format!("the elements of set {name}"), |attributes| {
            attributes.text(TABLE_NAME, TABLE);
            attributes.text(2, name); // NFTA_SET_ELEM_LIST_SET
            attributes.nested(3, |list| {
                for interval in part {
                    elements(list, family, interval);
                }
            }); // NFTA_SET_ELEM_LIST_ELEMENTS
        });
    }
}

/// An interval is its first key and, unless it reaches the end of the family, the key after its
/// last one, marked as an end.
fn elements(list: &mut Attributes, family: Family, interval: &Interval) {
    let key = |element: &mut Attributes, address: u128| {
        element.nested(1, |key| key.raw(DATA_VALUE, &family.address_bytes(address)));
    }; // NFTA_SET_ELEM_KEY
    list.nested(1, |element| key(element, interval.first)); // NFTA_LIST_ELEM
    if let Some(end) = interval.end(family) {
        list.nested(1, |element| {
            key(element, end);
            element.number(3, ELEMENT_INTERVAL_END); // NFTA_SET_ELEM_FLAGS
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use ipnet::{IpNet, Ipv6Net};

    use super::*;
    use crate::nft::encode::messages;

    fn config(pod_cidrs: Vec<IpNet>) -> NftConfig<'static> {
        NftConfig {
            direct: pod_cidrs.clone(),
            pod_cidrs,
            kernel: vec![],
            masquerade: true,
            node_port: "viaduct0",
            worker_end: "viaduct1",
        }
    }

    /// Message types of a batch, without its frame.
    fn kinds(batch: &Batch) -> Vec<u8> {
        let all = messages(batch.bytes());
        all.filter_map(|received| received.nf_tables().map(|(kind, ..)| kind)).collect()
    }

    #[test]
    fn a_replacement_makes_removes_and_makes_the_table_before_anything_else() {
        let kinds = kinds(&replacement(&config(vec!["10.0.0.0/24".parse().unwrap()])));
        assert_eq!(kinds[..3], [message::NEWTABLE, message::DELTABLE, message::NEWTABLE]);
        assert_eq!(kinds.iter().filter(|kind| **kind == message::NEWRULE).count(), 5);
    }

    #[test]
    fn without_masquerade_only_translated_connections_are_masqueraded() {
        let mut config = config(vec![]);
        config.masquerade = false;
        let rules = rules(&config);
        assert_eq!(rules.len(), 3);
        for rule in &rules[1..] {
            assert!(rule.expressions.contains(&Expression::LoadConnectionStatus));
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
