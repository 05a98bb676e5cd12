//! Bytes of ctnetlink messages.
//!
//! netlink headers are in host byte order, values of ctnetlink in network byte order, except for
//! those of `CTA_FILTER`.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use dataplane::conntrack::{Endpoint, FlowKey, Transport};
use rustix::io::Errno;

use super::{KernelFlow, Selection};
use crate::attributes::{attribute, nest, put};
use crate::netlink::errno_of;
use crate::nfnetlink::{ACK, DUMP, KIND_DONE, KIND_ERROR, Received, put_request, u32_at};

/// `NLM_F_DUMP_INTR`: the table changed during the list.
const INTERRUPTED: u16 = 0x010;

/// `NFNL_SUBSYS_CTNETLINK`, the upper byte of every message type.
const SUBSYSTEM: u8 = 1;
/// `IPCTNL_MSG_CT_NEW`: what a flow is listed as.
const NEW: u8 = 0;
/// `IPCTNL_MSG_CT_GET`.
const GET: u8 = 1;
/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u8 = 2;

/// Families (linux/socket.h).
const UNSPECIFIED: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

// enum ctattr_type
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
// enum ctattr_tuple
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
// enum ctattr_ip
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
// enum ctattr_l4proto
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
// enum ctattr_protoinfo: kind, its attribute of the state, and the states of enum tcp_conntrack and
// sctp_conntrack in which the connection is being closed or is closed.
const CLOSING: [(u16, u16, RangeInclusive<u8>); 2] = [(1, 1, 4..=8), (3, 1, 5..=7)];
// enum ctattr_filter
const CTA_FILTER_ORIG_FLAGS: u16 = 1;

/// What of a tuple must be equal for a flow to be listed: protocol and destination port
/// (net/netfilter/nf_internals.h, `CTA_FILTER_F_CTA_PROTO_…`).
const SAME_PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;

/// A question for all flows, or the selected ones.
pub(super) fn list(sequence: u32, selection: Selection) -> Vec<u8> {
    let family = match selection {
        Selection::All => UNSPECIFIED,
        Selection::Asked { is_v4, .. } => family(is_v4),
    };
    request(sequence, GET, DUMP, family, |out| {
        let Selection::Asked { transport, port, .. } = selection else {
            return;
        };
        nest(out, CTA_TUPLE_ORIG, |tuple| {
            nest(tuple, CTA_TUPLE_PROTO, |proto| {
                put(proto, CTA_PROTO_NUM, &[transport as u8]);
                put(proto, CTA_PROTO_DST_PORT, &port.to_be_bytes());
            });
        });
        nest(out, CTA_FILTER, |filter| {
            put(filter, CTA_FILTER_ORIG_FLAGS, &SAME_PROTOCOL_AND_PORT.to_ne_bytes());
        });
    })
}

/// An order to delete a flow: this one, and none that came after it with the same key.
pub(super) fn delete(sequence: u32, flow: &KernelFlow) -> Vec<u8> {
    let KernelFlow { id, zone, original, .. } = flow;
    let family = family(original.src.address.is_ipv4());
    request(sequence, DELETE, ACK, family, |out| {
        nest(out, CTA_TUPLE_ORIG, |tuple| put_key(tuple, original));
        put(out, CTA_ID, &id.to_be_bytes());
        // A kernel without zones refuses even zone 0 by name.
        if *zone != 0 {
            put(out, CTA_ZONE, &zone.to_be_bytes());
        }
    })
}

fn put_key(tuple: &mut Vec<u8>, key: &FlowKey) {
    nest(tuple, CTA_TUPLE_IP, |out| {
        let [src, dst] = match key.src.address {
            IpAddr::V4(_) => [CTA_IP_V4_SRC, CTA_IP_V4_DST],
            IpAddr::V6(_) => [CTA_IP_V6_SRC, CTA_IP_V6_DST],
        };
        for (kind, end) in [(src, key.src), (dst, key.dst)] {
            match end.address {
                IpAddr::V4(address) => put(out, kind, &address.octets()),
                IpAddr::V6(address) => put(out, kind, &address.octets()),
            }
        }
    });
    nest(tuple, CTA_TUPLE_PROTO, |out| {
        put(out, CTA_PROTO_NUM, &[key.transport as u8]);
        put(out, CTA_PROTO_SRC_PORT, &key.src.port.to_be_bytes());
        put(out, CTA_PROTO_DST_PORT, &key.dst.port.to_be_bytes());
    });
}

fn family(is_v4: bool) -> u8 {
    if is_v4 { AF_INET } else { AF_INET6 }
}

fn request(
    sequence: u32,
    kind: u8,
    flags: u16,
    family: u8,
    content: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    let (mut attributes, mut bytes) = (Vec::new(), Vec::new());
    content(&mut attributes);
    let kind = u16::from_be_bytes([SUBSYSTEM, kind]);
    put_request(&mut bytes, kind, flags, sequence, [family, 0, 0, 0], &attributes);
    bytes
}

/// A received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Number of the request it answers.
    pub(super) sequence: u32,
    /// Whether the kernel's table changed so much during a list that flows may be missing in it.
    pub(super) is_interrupted: bool,
    /// What it says.
    pub(super) content: Content,
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A flow of a list.
    Flow(KernelFlow),
    /// The end of a list, or the answer to an order: `None` is success.
    End(Option<Errno>),
    /// A flow that we do not follow, or something else.
    Other,
}

impl Message {
    /// `None` if it is too short to say anything.
    pub(super) fn read(received: &Received<'_>) -> Option<Message> {
        let Received { kind, flags, sequence, payload, .. } = *received;
        let content = if kind == KIND_ERROR || kind == KIND_DONE {
            let code = u32_at(payload, 0)?.cast_signed();
            Content::End((code != 0).then(|| errno_of(code)))
        } else {
            match received.of(SUBSYSTEM) {
                Some((NEW, _, attributes)) => {
                    flow(attributes).map_or(Content::Other, Content::Flow)
                }
                _ => Content::Other,
            }
        };
        Some(Message { sequence, is_interrupted: flags & INTERRUPTED != 0, content })
    }
}

/// The flow that attributes describe, if it is one of those we follow.
fn flow(attributes: &[u8]) -> Option<KernelFlow> {
    let tuple = attribute(attributes, CTA_TUPLE_ORIG)?;
    let original = key(tuple)?;
    let reply = key(attribute(attributes, CTA_TUPLE_REPLY)?)?;
    let is_v4 = original.src.address.is_ipv4();
    if reply.src.address.is_ipv4() != is_v4 || reply.transport != original.transport {
        return None;
    }
    // The zone of both directions, or of the original one alone.
    let zone = attribute(attributes, CTA_ZONE).or_else(|| attribute(tuple, CTA_TUPLE_ZONE));
    let zone = zone.and_then(|zone| zone.first_chunk()).map_or(0, |zone| u16::from_be_bytes(*zone));
    let number = |kind| attribute(attributes, kind)?.first_chunk().copied().map(u32::from_be_bytes);
    let (id, status) = (number(CTA_ID)?, number(CTA_STATUS)?);
    let is_closing = attribute(attributes, CTA_PROTOINFO).is_some_and(is_closing);
    Some(KernelFlow { id, zone, status, original, reply, is_closing })
}

fn is_closing(protocol: &[u8]) -> bool {
    CLOSING.iter().any(|(kind, state, closing)| {
        let state = attribute(protocol, *kind).and_then(|of| attribute(of, *state)?.first());
        state.is_some_and(|state| closing.contains(state))
    })
}

fn key(tuple: &[u8]) -> Option<FlowKey> {
    let proto = attribute(tuple, CTA_TUPLE_PROTO)?;
    let number = *attribute(proto, CTA_PROTO_NUM)?.first()?;
    // Of ICMP there are type, code and identifier instead of ports.
    let transport = Transport::from_number(number).filter(|found| *found != Transport::Query)?;
    let ip = attribute(tuple, CTA_TUPLE_IP)?;
    let port = |kind| attribute(proto, kind)?.first_chunk().copied().map(u16::from_be_bytes);
    Some(FlowKey {
        transport,
        src: Endpoint {
            address: address(ip, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
            port: port(CTA_PROTO_SRC_PORT)?,
        },
        dst: Endpoint {
            address: address(ip, CTA_IP_V4_DST, CTA_IP_V6_DST)?,
            port: port(CTA_PROTO_DST_PORT)?,
        },
    })
}

fn address(ip: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    if let Some(octets) = attribute(ip, v4) {
        return octets.first_chunk::<4>().map(|octets| IpAddr::from(*octets));
    }
    attribute(ip, v6)?.first_chunk::<16>().map(|octets| IpAddr::from(*octets))
}
