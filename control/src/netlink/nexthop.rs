//! Nexthop objects: ways that many routes share by an id, so that one message changes them all
//! (linux/nexthop.h). `netlink-packet-route` does not know them.

use super::{Netlink, NetlinkError, NextHop};
use netlink_packet_core::{NetlinkSerializable, NlasIterator};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `RTM_NEWNEXTHOP` (linux/rtnetlink.h).
pub(super) const RTM_NEWNEXTHOP: u16 = 104;
/// `RTM_DELNEXTHOP`
pub(super) const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;

/// Bytes of `struct nhmsg`: family, scope, protocol, a reserved byte, flags.
const HEADER_BYTES: usize = 8;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP_TYPE: u16 = 7;
const NHA_FDB: u16 = 11;

/// Bytes of `struct nexthop_grp`, a member of a group: id, weight less one in two parts, reserved.
const MEMBER_BYTES: usize = 8;

/// A nexthop object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nexthop {
    /// Its number, unique in its namespace.
    pub id: u32,
    /// What it does.
    pub route: NexthopRoute,
}

/// What a nexthop object does with packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NexthopRoute {
    /// Sends them one way.
    Way(NextHop),
    /// Spreads them over other objects; each with its weight, 1 to 65536.
    Group(Vec<(u32, u32)>),
    /// Something else: drops them, wraps them into something, or is no way of an IP route.
    Other,
}

impl Nexthop {
    /// Reads an `RTM_NEWNEXTHOP` or `RTM_DELNEXTHOP`; `None` for one that makes no sense.
    pub(super) fn from_payload(payload: &[u8]) -> Option<Nexthop> {
        let attributes = payload.get(HEADER_BYTES..)?;
        let (mut id, mut index, mut via, mut group, mut other) = (None, None, None, None, false);
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute.ok()?;
            let value = attribute.value();
            match attribute.kind() {
                NHA_ID => id = Some(number(value)?),
                NHA_OIF => index = Some(number(value)?),
                NHA_GATEWAY => via = Some(address(value)?),
                NHA_GROUP => {
                    let members = value.chunks_exact(MEMBER_BYTES).filter_map(member);
                    group = Some(members.collect());
                }
                NHA_BLACKHOLE | NHA_ENCAP_TYPE | NHA_FDB => other = true,
                _ => {}
            }
        }
        let route = match (index, group) {
            (_, Some(members)) if !other => NexthopRoute::Group(members),
            (Some(index), None) if !other => {
                let hop = NextHop { via, index, weight: 1, onlink: false, dead: false };
                NexthopRoute::Way(hop)
            }
            _ => NexthopRoute::Other,
        };
        Some(Nexthop { id: id?, route })
    }
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into())
}

/// A member of a group and its weight, which is sent less one; its upper byte is in use since
/// Linux 6.12.
fn member(bytes: &[u8]) -> Option<(u32, u32)> {
    let (id, rest) = bytes.split_at_checked(4)?;
    let [low, high, ..] = rest else { return None };
    Some((number(id)?, u32::from(u16::from_le_bytes([*low, *high])) + 1))
}

/// "List all nexthop objects."
#[derive(Debug, Clone)]
struct GetNexthops;

impl NetlinkSerializable for GetNexthops {
    fn message_type(&self) -> u16 {
        RTM_GETNEXTHOP
    }

    fn buffer_len(&self) -> usize {
        HEADER_BYTES
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

impl Netlink {
    /// All nexthop objects of the namespace.
    pub fn nexthops(&mut self) -> Result<Vec<Nexthop>, NetlinkError> {
        self.dump_as(&GetNexthops, "list nexthop objects", |part| {
            if part.message_type() != RTM_NEWNEXTHOP {
                return None;
            }
            Nexthop::from_payload(part.payload())
        })
    }
}
