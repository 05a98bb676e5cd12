//! The expressions rules are made of: each is one step of a small machine that loads a value into
//! a register, compares it, or acts on the packet.
//!
//! Numbers are those of include/uapi/linux/netfilter/nf_tables.h. All expressions share one
//! register of 16 bytes, which is room for an IPv6 address or an interface name.

use super::encode::Attributes;
use super::intervals::Family;

/// `NFT_REG_1`.
const REGISTER: u32 = 1;
/// `NFTA_LIST_ELEM`: one element of a list of expressions.
const LIST_ELEMENT: u16 = 1;
/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `NFTA_DATA_VALUE`: a value to compare with, mask by, or look up.
pub(super) const DATA_VALUE: u16 = 1;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK_HEADER: u32 = 1;
/// `NFT_META_IIFNAME`, `NFT_META_OIFNAME`, `NFT_META_NFPROTO`.
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
/// `NFT_CT_STATUS`.
const CT_STATUS: u32 = 2;
/// `IPS_DST_NAT` of include/uapi/linux/netfilter/nf_conntrack_common.h: the destination of the
/// connection was translated.
const STATUS_DNAT: u32 = 1 << 5;
/// `NFT_LOOKUP_F_INV`: match what is *not* in the set.
const LOOKUP_INVERTED: u32 = 1;
/// Bytes of an interface name in a register (`IFNAMSIZ`).
const IFNAME_LEN: usize = 16;

/// How a value is compared (`NFT_CMP_EQ`, `NFT_CMP_NEQ`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Comparison {
    Equal = 0,
    NotEqual = 1,
}

/// Which address of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Address {
    Source,
    Destination,
}

/// Whether a rule goes on for members of a set or for all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Membership {
    In,
    NotIn,
}

/// One expression. Those that load, fill the register; those that compare, end the rule unless
/// the register satisfies them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    /// Loads the protocol family, one byte.
    LoadFamily,
    /// Loads the name of the device the packet came in on, padded with zeros to 16 bytes.
    LoadInputName,
    /// Loads the name of the device the packet leaves by, padded with zeros to 16 bytes.
    LoadOutputName,
    /// Loads an address of the packet.
    LoadAddress(Family, Address),
    /// Loads the status bits of the packet's connection (host byte order).
    LoadConnectionStatus,
    /// Keeps only these bits of the register.
    Mask([u8; 4]),
    /// Compares the register with a value.
    Compare(Comparison, Vec<u8>),
    /// Looks the register up in the named set.
    Lookup(String, Membership),
    /// Counts packets and bytes that came this far.
    Counter,
    /// Gives the connection the address of the outgoing device as source; keeps the port if free.
    Masquerade,
    /// Keeps conntrack, and so NAT, away from the packet.
    Untrack,
}

impl Expression {
    /// The name by which the kernel finds the implementation.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Expression::LoadFamily | Expression::LoadInputName | Expression::LoadOutputName => {
                "meta"
            }
            Expression::LoadAddress(..) => "payload",
            Expression::LoadConnectionStatus => "ct",
            Expression::Mask(_) => "bitwise",
            Expression::Compare(..) => "cmp",
            Expression::Lookup(..) => "lookup",
            Expression::Counter => "counter",
            Expression::Masquerade => "masq",
            Expression::Untrack => "notrack",
        }
    }

    /// Writes the expression as an element of a rule's list.
    pub(super) fn encode(&self, list: &mut Attributes) {
        list.mark_expression(self.name());
        list.nested(LIST_ELEMENT, |element| {
            element.text(EXPRESSION_NAME, self.name());
            element.nested(EXPRESSION_DATA, |data| self.encode_operands(data));
        });
    }

    fn encode_operands(&self, data: &mut Attributes) {
        match self {
            Expression::LoadFamily => load_meta(data, META_NFPROTO),
            Expression::LoadInputName => load_meta(data, META_IIFNAME),
            Expression::LoadOutputName => load_meta(data, META_OIFNAME),
            Expression::LoadAddress(family, address) => {
                data.number(1, REGISTER); // NFTA_PAYLOAD_DREG
                data.number(2, NETWORK_HEADER); // NFTA_PAYLOAD_BASE
                data.number(3, address_offset(*family, *address)); // NFTA_PAYLOAD_OFFSET
                data.number(4, family.address_len()); // NFTA_PAYLOAD_LEN
            }
            Expression::LoadConnectionStatus => {
                data.number(1, REGISTER); // NFTA_CT_DREG
                data.number(2, CT_STATUS); // NFTA_CT_KEY
            }
            Expression::Mask(mask) => {
                data.number(1, REGISTER); // NFTA_BITWISE_SREG
                data.number(2, REGISTER); // NFTA_BITWISE_DREG
                data.number(3, 4); // NFTA_BITWISE_LEN: bytes of the mask
                data.nested(4, |value| value.raw(DATA_VALUE, mask)); // NFTA_BITWISE_MASK
                data.nested(5, |value| value.raw(DATA_VALUE, &[0; 4])); // NFTA_BITWISE_XOR
            }
            Expression::Compare(comparison, with) => {
                data.number(1, REGISTER); // NFTA_CMP_SREG
                data.number(2, *comparison as u32); // NFTA_CMP_OP
                data.nested(3, |value| value.raw(DATA_VALUE, with)); // NFTA_CMP_DATA
            }
            Expression::Lookup(set, membership) => {
                data.text(1, set); // NFTA_LOOKUP_SET
                data.number(2, REGISTER); // NFTA_LOOKUP_SREG
                if *membership == Membership::NotIn {
                    data.number(5, LOOKUP_INVERTED); // NFTA_LOOKUP_FLAGS
                }
            }
            Expression::Counter | Expression::Masquerade | Expression::Untrack => {}
        }
    }
}

fn load_meta(data: &mut Attributes, key: u32) {
    data.number(1, REGISTER); // NFTA_META_DREG
    data.number(2, key); // NFTA_META_KEY
}

/// Where an address stands in its header (RFC 791 §3.1, RFC 8200 §3).
fn address_offset(family: Family, address: Address) -> u32 {
    match (family, address) {
        (Family::V4, Address::Source) => 12,
        (Family::V4, Address::Destination) => 16,
        (Family::V6, Address::Source) => 8,
        (Family::V6, Address::Destination) => 24,
    }
}

/// The packet is of this family.
pub(super) fn family_is(family: Family) -> [Expression; 2] {
    let number = vec![family.number()];
    [Expression::LoadFamily, Expression::Compare(Comparison::Equal, number)]
}

/// The address is (not) in the set. Must follow [`family_is`].
pub(super) fn address_in(
    family: Family,
    address: Address,
    membership: Membership,
    set: String,
) -> [Expression; 2] {
    [Expression::LoadAddress(family, address), Expression::Lookup(set, membership)]
}

/// The kernel translated the destination of the packet's connection.
pub(super) fn destination_was_translated() -> [Expression; 3] {
    // Conntrack keeps the status as a host-order integer.
    [
        Expression::LoadConnectionStatus,
        Expression::Mask(STATUS_DNAT.to_ne_bytes()),
        Expression::Compare(Comparison::NotEqual, vec![0; 4]),
    ]
}

/// The packet came in on this device.
pub(super) fn came_in_on(name: &str) -> [Expression; 2] {
    [Expression::LoadInputName, Expression::Compare(Comparison::Equal, padded(name))]
}

/// The packet does not leave by this device.
pub(super) fn does_not_leave_by(name: &str) -> [Expression; 2] {
    [Expression::LoadOutputName, Expression::Compare(Comparison::NotEqual, padded(name))]
}

/// A name as it stands in a register: comparing all 16 bytes makes it exact, not a prefix.
fn padded(name: &str) -> Vec<u8> {
    assert!(name.len() < IFNAME_LEN, "interface names are checked before rules are made");
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(IFNAME_LEN, 0);
    bytes
}
