//! Rules of host ports: what the kernel does for them beside the workers, and all of it while no
//! worker lives. Numbers go on from those of `ruleset.rs`.
//!
//! ```text
//! chain prerouting        filter, priority -450
//!   4. from viaduct0, source local, not ICMP: notrack
//!   5. from viaduct0 or vd*, source or destination in 127.0.0.0/8: drop
//! chain guard             filter, priority -150 (after conntrack, before NAT)
//!   6. from vd*, new, invalid or untracked, source in container_ports: count, drop
//!   7. from vd*, invalid, an ICMP error that quotes a packet for container_ports: count, drop
//!   8. from viaduct0, invalid, source local, ICMP: notrack
//! chain host_ports        nat, prerouting, priority -105
//! chain host_ports_output nat, output, priority -105
//!   9. destination local, not in not_node, in host_ports_one: label, dnat
//!  10. the same with host_ports_any
//!      (in output, neither for ::1; in prerouting, neither for 127.0.0.0/8)
//! chain postrouting       before what is there for pods
//!  11. labelled, source in 127.0.0.0/8, pod in hairpins: masquerade
//!  12. labelled, source and destination in hairpins: source becomes the address that was asked
//!  13. labelled, destination in masquerade_all: the same
//!  14. labelled: accept
//! ```
//!
//! **Rule 4.** Workers send answers of host ports by the node port if their way out is not direct.
//! The kernel did not see what they answer: conntrack would take them for invalid or for new, and
//! firewalls drop one and NAT spoils the other. Nobody but workers has a local source there: they
//! let no pod use one. ICMP is left to rule 8, because a worker's error about a packet that the
//! kernel translated has to be translated back by the kernel.
//!
//! **Rule 5.** `route_localnet` on these devices, for rule 11, would open 127.0.0.0/8 to pods.
//!
//! **Rule 6.** The kernel knows no connection that a worker carried. While no worker lives, the
//! pod's answer in one would leave with the pod's own address: the client would answer by a reset.
//! Dropped, it is repeated until the client speaks, by which the kernel learns of the connection.
//! `ct direction` could not say this: an invalid packet has no connection, and so no direction.
//! While a worker lives pods' packets come in by viaduct0, and pods may open connections from any
//! port.
//!
//! **Priority -105.** Workers serve a host port before anybody's Service or port forwarding at the
//! same address and port; so does the kernel, whoever has made chains at -100.
//!
//! **The label** tells connections that rules 9 and 10 led from those that a Service led to the
//! same pod: only the latter are rule 2's. A mark would say so as well, but people route by marks.
//!
//! **Rule 12.** The worker chooses the same source (`Target::source`): a connection survives that
//! it changes from one to the other.

use super::conditions::{
    STATE_INVALID, STATE_NEW, STATE_UNTRACKED, came_in_on, came_in_on_one_of, family_is,
    has_bit_of, in_set, is, is_local, is_not, load, not_in_set, state_is_one_of,
};
use super::expressions::{End, Expression, Field, LABELS_LEN, Verdict};
use super::host_ports::Set;
use super::intervals::Family;
use super::ruleset::{Chain, POSTROUTING, PREROUTING, Rule};
use crate::node::{HOST_IFNAME_PREFIX, NODE_IFNAME};

/// Name of the counter of rules 6 and 7.
pub(super) const GUARDED: &str = "guarded";

/// Between conntrack (`NF_IP_PRI_CONNTRACK`, -200) and destination NAT.
const GUARD: Chain = Chain { name: "guard", kind: "filter", hook: 0, priority: -150 };
/// A little before `NF_IP_PRI_NAT_DST` (-100), where everybody else's destination NAT is.
const ENTERING: Chain = Chain { name: "host_ports", kind: "nat", hook: 0, priority: -105 };
const OF_NODE: Chain = Chain { name: "host_ports_output", kind: "nat", hook: 3, priority: -105 };

/// The chains that only host ports need.
pub(super) const CHAINS: [Chain; 3] = [GUARD, ENTERING, OF_NODE];

/// First byte of 127.0.0.0/8.
const LOOPBACK_V4: u8 = 127;
/// `::1`, which has no `route_localnet`: translated, it would lead nowhere.
const LOOPBACK_V6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// `IPPROTO_ICMP`, `IPPROTO_ICMPV6`.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Our label, one of 128 that all users of conntrack share: the 118th bit, 'v' in ASCII.
const LABEL: [u8; LABELS_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0];
/// Where the label passes through registers: behind what the map of host ports gave.
const LABEL_REGISTER: u32 = 8;

/// Rules 4 to 10.
pub(super) fn before_routing() -> Vec<Rule> {
    let mut rules = vec![answers_are_not_tracked()];
    rules.extend(loopback_stays_inside());
    for family in Family::ALL {
        rules.push(guard(family));
        rules.push(guard_against_errors(family));
        rules.push(errors_are_not_invalid(family));
    }
    for chain in [ENTERING.name, OF_NODE.name] {
        for family in Family::ALL {
            for set in [Set::One, Set::Any] {
                rules.push(lead(chain, family, set));
            }
        }
    }
    rules
}

/// Rules 11 to 14.
pub(super) fn after_routing() -> Vec<Rule> {
    let labelled = || has_bit_of(Field::ConnectionLabels, &LABEL);
    let rule = |comment, conditions: Vec<Vec<Expression>>, action: Vec<Expression>| Rule {
        chain: POSTROUTING.name,
        comment,
        expressions: [conditions.concat(), vec![Expression::Counter], action].concat(),
    };
    let v4 = family_is(Family::V4);
    let from_loopback = is(Field::FirstByte(End::Source), &[LOOPBACK_V4]);
    let [pod, _, transport, port] = flow(Family::V4, End::Destination, End::Source);
    let wished = in_set(&[pod, pod, transport, port], Set::Hairpins.name(Family::V4));
    let mut rules = vec![rule(
        "host ports: no pod can answer 127.0.0.1",
        vec![v4, labelled(), from_loopback, wished],
        vec![Expression::Masquerade],
    )];
    for family in Family::ALL {
        let [pod, client, transport, port] = flow(family, End::Destination, End::Source);
        let itself = in_set(&[client, pod, transport, port], Set::Hairpins.name(family));
        let wished = in_set(&[pod, transport, port], Set::MasqueradeAll.name(family));
        let asked = || {
            let address = load(&[Field::AskedAddress(family)]);
            [address, vec![Expression::TranslateSource(family)]].concat()
        };
        rules.push(rule(
            "host ports: a pod that asks itself",
            vec![family_is(family), labelled(), itself],
            asked(),
        ));
        rules.push(rule(
            "host ports: masqAll",
            vec![family_is(family), labelled(), wished],
            asked(),
        ));
    }
    let accept = vec![Expression::Verdict(Verdict::Accept)];
    rules.push(rule("host ports: clients keep their address", vec![labelled()], accept));
    rules
}

/// The packet's end `near`, its end `far`, its protocol and the port of `near`.
fn flow(family: Family, near: End, far: End) -> [Field; 4] {
    let addresses = [near, far].map(|end| Field::Address(family, end));
    [addresses[0], addresses[1], Field::Transport, Field::Port(near)]
}

fn answers_are_not_tracked() -> Rule {
    Rule {
        chain: PREROUTING.name,
        comment: "workers' answers of host ports",
        expressions: [
            came_in_on(NODE_IFNAME),
            is_not(Field::Transport, &[ICMP]),
            is_not(Field::Transport, &[ICMPV6]),
            is_local(End::Source),
            vec![Expression::Untrack],
        ]
        .concat(),
    }
}

fn loopback_stays_inside() -> Vec<Rule> {
    let mut rules = Vec::new();
    for came_in in [came_in_on(NODE_IFNAME), came_in_on_one_of(HOST_IFNAME_PREFIX)] {
        for end in [End::Source, End::Destination] {
            rules.push(Rule {
                chain: PREROUTING.name,
                comment: "no pod reaches 127.0.0.1 of the node",
                expressions: [
                    came_in.clone(),
                    family_is(Family::V4),
                    is(Field::FirstByte(end), &[LOOPBACK_V4]),
                    vec![Expression::Counter, Expression::Verdict(Verdict::Drop)],
                ]
                .concat(),
            });
        }
    }
    rules
}

fn guarded() -> Vec<Expression> {
    vec![Expression::NamedCounter(GUARDED.to_owned()), Expression::Verdict(Verdict::Drop)]
}

fn guard(family: Family) -> Rule {
    let [pod, _, transport, port] = flow(family, End::Source, End::Destination);
    Rule {
        chain: GUARD.name,
        comment: "an answer that nobody would translate",
        expressions: [
            came_in_on_one_of(HOST_IFNAME_PREFIX),
            family_is(family),
            state_is_one_of(STATE_NEW | STATE_INVALID | STATE_UNTRACKED),
            in_set(&[pod, transport, port], Set::ContainerPorts.name(family)),
            guarded(),
        ]
        .concat(),
    }
}

fn guard_against_errors(family: Family) -> Rule {
    let quoted = [
        Field::QuotedAddress(family, End::Destination),
        Field::QuotedTransport(family),
        Field::QuotedPort(family, End::Destination),
    ];
    Rule {
        chain: GUARD.name,
        comment: "an ICMP error that nobody would translate",
        expressions: [
            came_in_on_one_of(HOST_IFNAME_PREFIX),
            is_icmp(family),
            state_is_one_of(STATE_INVALID),
            in_set(&quoted, Set::ContainerPorts.name(family)),
            guarded(),
        ]
        .concat(),
    }
}

fn errors_are_not_invalid(family: Family) -> Rule {
    Rule {
        chain: GUARD.name,
        comment: "workers' ICMP errors about what the kernel does not know",
        expressions: [
            came_in_on(NODE_IFNAME),
            is_icmp(family),
            state_is_one_of(STATE_INVALID),
            is_local(End::Source),
            vec![Expression::Untrack],
        ]
        .concat(),
    }
}

fn is_icmp(family: Family) -> Vec<Expression> {
    let number = match family {
        Family::V4 => ICMP,
        Family::V6 => ICMPV6,
    };
    [family_is(family), is(Field::Transport, &[number])].concat()
}

/// Leads connections to the pod that a map names.
fn lead(chain: &'static str, family: Family, set: Set) -> Rule {
    let [asked, _, transport, port] = flow(family, End::Destination, End::Source);
    let key = match set {
        Set::One => vec![asked, transport, port],
        _ => vec![transport, port],
    };
    let may_lead = match (chain == OF_NODE.name, family) {
        (true, Family::V6) => is_not(asked, &LOOPBACK_V6),
        // RFC 1122 section 3.2.1.3: nothing of these comes off a wire. The kernel would see so only
        // when it routes, and then the packet would have the pod's address.
        (false, Family::V4) => is_not(Field::FirstByte(End::Destination), &[LOOPBACK_V4]),
        _ => Vec::new(),
    };
    Rule {
        chain,
        comment: match set {
            Set::One => "host ports of one address",
            _ => "host ports of every address",
        },
        expressions: [
            family_is(family),
            may_lead,
            is_local(End::Destination),
            not_in_set(&[asked], Set::NotNode.name(family)),
            load(&key),
            vec![
                Expression::LookupMap(set.name(family)),
                Expression::Label(LABEL, LABEL_REGISTER),
                Expression::Counter,
                Expression::TranslateDestination(family),
            ],
        ]
        .concat(),
    }
}
