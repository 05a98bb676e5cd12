//! What rules ask of a packet, each as a few expressions.

use super::expressions::{Comparison, End, Expression, Field, Membership};
use super::intervals::Family;

/// Bytes of an interface name in registers (`IFNAMSIZ`).
const IFNAME_LEN: usize = 16;
/// `RTN_LOCAL` of include/uapi/linux/rtnetlink.h: the address is one of this node's.
const LOCAL: u32 = 2;
/// `IPS_DST_NAT` of include/uapi/linux/netfilter/nf_conntrack_common.h: the destination of the
/// connection was translated.
const STATUS_DNAT: u32 = 1 << 5;

/// `NF_CT_STATE_INVALID_BIT`: conntrack makes no sense of the packet.
pub(super) const STATE_INVALID: u32 = 1 << 0;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`: it would open a connection.
pub(super) const STATE_NEW: u32 = 1 << 3;
/// `NF_CT_STATE_UNTRACKED_BIT`: conntrack did not look at it.
pub(super) const STATE_UNTRACKED: u32 = 1 << 6;

/// Loads fields side by side, as the key of a set has them.
pub(super) fn load(fields: &[Field]) -> Vec<Expression> {
    let mut register = 0;
    let place = |field: &Field| {
        let at = register;
        register += field.registers();
        Expression::Load(*field, at)
    };
    fields.iter().map(place).collect()
}

/// The field has this value.
pub(super) fn is(field: Field, value: &[u8]) -> Vec<Expression> {
    compare(field, Comparison::Equal, value)
}

/// The field has another value.
pub(super) fn is_not(field: Field, value: &[u8]) -> Vec<Expression> {
    compare(field, Comparison::NotEqual, value)
}

fn compare(field: Field, comparison: Comparison, value: &[u8]) -> Vec<Expression> {
    vec![Expression::Load(field, 0), Expression::Compare(comparison, value.to_vec())]
}

/// The field has one of these bits.
pub(super) fn has_bit_of(field: Field, mask: &[u8]) -> Vec<Expression> {
    vec![
        Expression::Load(field, 0),
        Expression::Mask(mask.to_vec()),
        Expression::Compare(Comparison::NotEqual, vec![0; mask.len()]),
    ]
}

/// The fields, side by side, are in the set.
pub(super) fn in_set(fields: &[Field], set: String) -> Vec<Expression> {
    [load(fields), vec![Expression::Lookup(set, Membership::In)]].concat()
}

/// The fields, side by side, are not in the set.
pub(super) fn not_in_set(fields: &[Field], set: String) -> Vec<Expression> {
    [load(fields), vec![Expression::Lookup(set, Membership::NotIn)]].concat()
}

/// The packet is of this family.
pub(super) fn family_is(family: Family) -> Vec<Expression> {
    is(Field::Family, &[family.number()])
}

/// The address is one of the node's.
pub(super) fn is_local(end: End) -> Vec<Expression> {
    is(Field::Kind(end), &LOCAL.to_ne_bytes())
}

/// The kernel translated the destination of the packet's connection.
pub(super) fn destination_was_translated() -> Vec<Expression> {
    has_bit_of(Field::ConnectionStatus, &STATUS_DNAT.to_ne_bytes())
}

/// The packet's connection is in one of these states, bits of `STATE_*`.
pub(super) fn state_is_one_of(states: u32) -> Vec<Expression> {
    has_bit_of(Field::ConnectionState, &states.to_ne_bytes())
}

/// The packet came in on this device.
pub(super) fn came_in_on(name: &str) -> Vec<Expression> {
    is(Field::InputName, &padded(name))
}

/// The packet came in on a device whose name begins so.
pub(super) fn came_in_on_one_of(prefix: &str) -> Vec<Expression> {
    is(Field::InputName, prefix.as_bytes())
}

/// The packet does not leave by this device.
pub(super) fn does_not_leave_by(name: &str) -> Vec<Expression> {
    is_not(Field::OutputName, &padded(name))
}

/// A name as it stands in registers: comparing all 16 bytes makes it exact, not a prefix.
fn padded(name: &str) -> Vec<u8> {
    assert!(name.len() < IFNAME_LEN, "ours are names of interfaces");
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(IFNAME_LEN, 0);
    bytes
}
