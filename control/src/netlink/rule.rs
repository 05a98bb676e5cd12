//! Policy routing rules: which table decides about which packets.

use super::wire::parse;
use super::{Netlink, NetlinkError, Put, Request};
use netlink_packet_core::Nla;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::fmt;

/// `FRA_PAD` (linux/fib_rules.h).
const FRA_PAD: u16 = 18;

/// "Packets that came in by this interface are routed by this table."
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// IPv6 packets; otherwise IPv4.
    pub ipv6: bool,
    /// Order among the rules, 0 (first, the local table) to 32766 (the main table).
    pub priority: u32,
    /// Name of the interface the packets came in by; `None` is any.
    pub iif: Option<String>,
    /// The table that decides, if the rule names one.
    pub table: u32,
    /// Who made the rule (`RTPROT_*`); 0 if it does not say.
    pub protocol: u8,
}

impl Rule {
    /// `None` for a rule of another family: multicast routing has rules of its own.
    pub(super) fn from_message(message: RuleMessage) -> Option<Rule> {
        let ipv6 = match message.header.family {
            AddressFamily::Inet => false,
            AddressFamily::Inet6 => true,
            _ => return None,
        };
        let mut rule = Rule {
            ipv6,
            priority: 0,
            iif: None,
            table: u32::from(message.header.table),
            protocol: 0,
        };
        for attribute in message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = priority,
                RuleAttribute::Iifname(name) => rule.iif = Some(name),
                RuleAttribute::Table(table) => rule.table = table,
                RuleAttribute::Protocol(protocol) => rule.protocol = u8::from(protocol),
                _ => {}
            }
        }
        Some(rule)
    }

    fn message(&self) -> RuleMessage {
        let Rule { ipv6, priority, iif, table, protocol } = self;
        let mut message = RuleMessage::default();
        message.header.family = if *ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.header.action = RuleAction::ToTable;
        message.attributes.push(RuleAttribute::Priority(*priority));
        message.attributes.push(RuleAttribute::Table(*table));
        message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(*protocol)));
        message.attributes.extend(iif.clone().map(RuleAttribute::Iifname));
        message
    }

    fn words(&self) -> String {
        let family = if self.ipv6 { "IPv6" } else { "IPv4" };
        let iif = self.iif.as_deref().unwrap_or("any");
        format!("{family} rule {} iif {iif} lookup {}", self.priority, self.table)
    }
}

/// A rule in full: which packets it is for, and what it does with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// For IPv6 packets; otherwise IPv4.
    pub ipv6: bool,
    /// Order among the rules of its family, 0 first.
    pub priority: u32,
    /// What a packet must be for the rule to decide about it, in the words of ip-rule(8); empty is
    /// every packet.
    pub conditions: Vec<String>,
    /// Name of the interface that packets must have come in by, also one of `conditions`.
    pub iif: Option<String>,
    /// The rule is for the node's own packets only: no packet that is forwarded meets its
    /// conditions.
    pub own_packets: bool,
    /// What it does.
    pub verdict: Verdict,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Looks into this table, and goes on with the next rule if it has no route.
    Lookup(u32),
    /// Goes on with the rule of this priority.
    Goto(u32),
    /// Goes on with the next rule.
    Nop,
    /// Refuses or drops the packet.
    Refuse,
}

impl Policy {
    /// `None` for a rule of another family: multicast routing has rules of its own.
    fn from_message(message: &RuleMessage) -> Option<Policy> {
        let header = &message.header;
        let Rule { ipv6, priority, iif, table, .. } = Rule::from_message(message.clone())?;
        let mut conditions: Vec<String> = message
            .attributes
            .iter()
            .filter_map(|attribute| condition(attribute, header))
            .collect();
        if header.tos != 0 {
            conditions.push(format!("tos {:#x}", header.tos));
        }
        if header.flags.contains(RuleFlags::Invert) {
            conditions.insert(0, "not".to_owned());
        }
        let inverted = header.flags.contains(RuleFlags::Invert);
        // Packets that are forwarded come in by a real interface, and no socket has bound them to
        // one that they must go out by (net/core/fib_rules.c, `fib_rule_match`).
        let has_oif = message
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, RuleAttribute::Oifname(_)));
        let own_packets = !inverted && (iif.as_deref() == Some("lo") || has_oif);
        let target = message.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Goto(target) => Some(*target),
            _ => None,
        });
        let verdict = match header.action {
            RuleAction::ToTable => Verdict::Lookup(table),
            RuleAction::Goto => Verdict::Goto(target?),
            RuleAction::Nop => Verdict::Nop,
            _ => Verdict::Refuse,
        };
        Some(Policy { ipv6, priority, conditions, iif, own_packets, verdict })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IPv{} rule {}:", if self.ipv6 { 6 } else { 4 }, self.priority)?;
        for condition in &self.conditions {
            write!(f, " {condition}")?;
        }
        match self.verdict {
            Verdict::Lookup(table) => write!(f, " lookup {table}"),
            Verdict::Goto(target) => write!(f, " goto {target}"),
            Verdict::Nop => write!(f, " nop"),
            Verdict::Refuse => write!(f, " refuse"),
        }
    }
}

/// What an attribute asks of a packet; `None` for one that asks nothing.
fn condition(attribute: &RuleAttribute, header: &RuleHeader) -> Option<String> {
    Some(match attribute {
        // No mask says the same as this one.
        RuleAttribute::FwMask(0 | u32::MAX)
        | RuleAttribute::Goto(_)
        | RuleAttribute::Priority(_)
        | RuleAttribute::Realm(_)
        | RuleAttribute::Table(_)
        | RuleAttribute::Protocol(_)
        | RuleAttribute::L3MDev(false)
        // The kernel writes that nothing is suppressed as -1.
        | RuleAttribute::SuppressIfGroup(u32::MAX)
        | RuleAttribute::SuppressPrefixLen(u32::MAX) => return None,
        RuleAttribute::Source(address) => format!("from {address}/{}", header.src_len),
        RuleAttribute::Destination(address) => format!("to {address}/{}", header.dst_len),
        RuleAttribute::Iifname(name) => format!("iif {name}"),
        RuleAttribute::Oifname(name) => format!("oif {name}"),
        RuleAttribute::FwMark(mark) => format!("fwmark {mark:#x}"),
        RuleAttribute::FwMask(mask) => format!("mask {mask:#x}"),
        RuleAttribute::L3MDev(true) => "l3mdev".to_owned(),
        RuleAttribute::SuppressPrefixLen(len) => format!("suppress_prefixlength {len}"),
        RuleAttribute::SuppressIfGroup(group) => format!("suppress_ifgroup {group}"),
        RuleAttribute::UidRange(range) => format!("uidrange {}-{}", range.start, range.end),
        RuleAttribute::IpProtocol(protocol) => format!("ipproto {protocol:?}"),
        RuleAttribute::SourcePortRange(range) => format!("sport {}-{}", range.start, range.end),
        RuleAttribute::DestinationPortRange(range) => {
            format!("dport {}-{}", range.start, range.end)
        }
        RuleAttribute::TunId(id) => format!("tun_id {id}"),
        // FRA_PAD aligns the tunnel id. Anything else may be a condition of a newer kernel.
        RuleAttribute::Other(other) if other.kind() == FRA_PAD => return None,
        other => format!("attribute {}", other.kind()),
    })
}

impl Request {
    /// Adds a rule; refused with `EEXIST` if the same one is there.
    pub fn add_rule(rule: &Rule) -> Request {
        let what = format!("add {}", rule.words());
        let flags = Put::Create.flags();
        Request::new(RouteNetlinkMessage::NewRule(rule.message()), flags, what)
    }

    /// Deletes one rule that matches.
    pub fn delete_rule(rule: &Rule) -> Request {
        let what = format!("delete {}", rule.words());
        Request::new(RouteNetlinkMessage::DelRule(rule.message()), 0, what)
    }
}

impl Netlink {
    /// All IPv4 and IPv6 rules of the namespace in full, those of a family in the order of their
    /// priorities.
    pub fn policies(&mut self) -> Result<Vec<Policy>, NetlinkError> {
        let message = RouteNetlinkMessage::GetRule(RuleMessage::default());
        self.dump_as(&message, "list rules", |part| match parse(part, "list rules")? {
            RouteNetlinkMessage::NewRule(message) => Policy::from_message(&message),
            _ => None,
        })
    }

    /// All IPv4 and IPv6 rules of the namespace.
    pub fn rules(&mut self) -> Result<Vec<Rule>, NetlinkError> {
        let message = RouteNetlinkMessage::GetRule(RuleMessage::default());
        let list = self.dump(message, "list rules")?;
        let rules = list.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRule(message) => Rule::from_message(message),
            _ => None,
        });
        Ok(rules.collect())
    }
}
