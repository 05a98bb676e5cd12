//! Policy routing rules: which table decides about which packets.

use super::{Netlink, NetlinkError, Put, Request};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

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
