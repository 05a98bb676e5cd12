//! The expressions rules are made of: each is one step of a small machine that loads a value into
//! registers, compares it, looks it up, or acts on the packet.
//!
//! Numbers are those of include/uapi/linux/netfilter/nf_tables.h. There are sixteen registers of
//! four bytes; what is longer takes several in a row. A comparison, a mask and a lookup look at
//! those from the first one on, so a key of several fields is loaded field after field from there
//! ([`Field::registers`]).

use super::encode::Attributes;
use super::intervals::Family;

/// `NFT_REG_VERDICT`: where a verdict is put. `NFT_REG32_00`: the first of the other registers.
const VERDICT_REGISTER: u32 = 0;
const FIRST_REGISTER: u32 = 8;
/// `NFTA_LIST_ELEM`: one element of a list of expressions.
const LIST_ELEMENT: u16 = 1;
/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `NFTA_DATA_VALUE`: a value to compare with, mask by, or look up. `NFTA_DATA_VERDICT`.
pub(super) const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// `NFT_META_IIFNAME`, `NFT_META_OIFNAME`, `NFT_META_NFPROTO`, `NFT_META_L4PROTO`.
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `NFT_CT_STATE`, `NFT_CT_STATUS`, `NFT_CT_LABELS`, `NFT_CT_DST_IP`, `NFT_CT_DST_IP6`.
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const CT_LABELS: u32 = 13;
const CT_DST_IP: u32 = 20;
const CT_DST_IP6: u32 = 22;
/// `IP_CT_DIR_ORIGINAL`: of the first packet's direction.
const DIRECTION_ORIGINAL: u8 = 0;
/// `NFT_FIB_RESULT_ADDRTYPE`; `NFTA_FIB_F_SADDR`, `NFTA_FIB_F_DADDR`.
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_OF_SOURCE: u32 = 1 << 0;
const FIB_OF_DESTINATION: u32 = 1 << 1;
/// `NFT_NAT_SNAT`, `NFT_NAT_DNAT`.
const NAT_SOURCE: u32 = 0;
const NAT_DESTINATION: u32 = 1;
/// `NFT_OBJECT_COUNTER`.
pub(super) const OBJECT_COUNTER: u32 = 1;
/// `NFT_LOOKUP_F_INV`: match what is *not* in the set.
const LOOKUP_INVERTED: u32 = 1;
/// Bytes of the labels of a connection (`NF_CT_LABELS_MAX_SIZE`).
pub(super) const LABELS_LEN: usize = 16;

/// How a value is compared (`NFT_CMP_EQ`, `NFT_CMP_NEQ`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Comparison {
    Equal = 0,
    NotEqual = 1,
}

/// Which end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

/// Whether a rule goes on for members of a set or for all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Membership {
    In,
    NotIn,
}

/// What is done with a packet for good (`NF_DROP`, `NF_ACCEPT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Verdict {
    Drop = 0,
    /// As far as the rules of this chain go.
    Accept = 1,
}

/// What is known of a packet. Numbers of more than one byte are in network byte order, unless
/// another is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// Its protocol family, one byte.
    Family,
    /// The protocol above IP, one byte.
    Transport,
    /// Name of the device that it came in on, padded with zeros to 16 bytes.
    InputName,
    /// Name of the device that it leaves by, padded with zeros to 16 bytes.
    OutputName,
    /// An address.
    Address(Family, End),
    /// The first byte of an IPv4 address.
    FirstByte(End),
    /// A port of TCP, UDP or SCTP, two bytes. There is none in a later fragment.
    Port(End),
    /// An address of the packet that an ICMP error quotes.
    QuotedAddress(Family, End),
    /// The protocol of the packet that an ICMP error quotes, one byte.
    QuotedTransport(Family),
    /// A port of the packet that an ICMP error quotes, if no options stand before it.
    QuotedPort(Family, End),
    /// What an address is to this node, by its routes (`RTN_*`, host byte order).
    Kind(End),
    /// State of the connection (`NF_CT_STATE_*`, host byte order).
    ConnectionState,
    /// Status bits of the connection (`IPS_*`, host byte order).
    ConnectionStatus,
    /// The labels of the connection: 128 bits, of which each user has one.
    ConnectionLabels,
    /// Whom the first packet of the connection was addressed to by its sender.
    AskedAddress(Family),
}

impl Field {
    /// How many registers it takes.
    pub(super) fn registers(self) -> u32 {
        match self {
            Field::InputName | Field::OutputName | Field::ConnectionLabels => 4,
            Field::Address(family, _)
            | Field::QuotedAddress(family, _)
            | Field::AskedAddress(family) => family.address_len() / 4,
            _ => 1,
        }
    }

    fn expression(self) -> &'static str {
        match self {
            Field::Family | Field::Transport | Field::InputName | Field::OutputName => "meta",
            Field::Kind(_) => "fib",
            Field::ConnectionState
            | Field::ConnectionStatus
            | Field::ConnectionLabels
            | Field::AskedAddress(_) => "ct",
            _ => "payload",
        }
    }

    fn encode(self, data: &mut Attributes, register: u32) {
        data.number(1, register); // NFTA_META_DREG, NFTA_PAYLOAD_DREG, NFTA_CT_DREG, NFTA_FIB_DREG
        match self {
            Field::Family => meta(data, META_NFPROTO),
            Field::Transport => meta(data, META_L4PROTO),
            Field::InputName => meta(data, META_IIFNAME),
            Field::OutputName => meta(data, META_OIFNAME),
            Field::Address(family, end) => {
                payload(data, NETWORK_HEADER, address_offset(family, end), family.address_len());
            }
            Field::FirstByte(end) => {
                payload(data, NETWORK_HEADER, address_offset(Family::V4, end), 1);
            }
            Field::Port(end) => payload(data, TRANSPORT_HEADER, port_offset(end), 2),
            Field::QuotedAddress(family, end) => {
                let offset = QUOTE + address_offset(family, end);
                payload(data, TRANSPORT_HEADER, offset, family.address_len());
            }
            Field::QuotedTransport(family) => {
                payload(data, TRANSPORT_HEADER, QUOTE + transport_offset(family), 1);
            }
            Field::QuotedPort(family, end) => {
                let offset = QUOTE + header_len(family) + port_offset(end);
                payload(data, TRANSPORT_HEADER, offset, 2);
            }
            Field::Kind(end) => {
                data.number(2, FIB_ADDRESS_TYPE); // NFTA_FIB_RESULT
                let of = match end {
                    End::Source => FIB_OF_SOURCE,
                    End::Destination => FIB_OF_DESTINATION,
                };
                data.number(3, of); // NFTA_FIB_FLAGS
            }
            Field::ConnectionState => data.number(2, CT_STATE), // NFTA_CT_KEY
            Field::ConnectionStatus => data.number(2, CT_STATUS),
            Field::ConnectionLabels => data.number(2, CT_LABELS),
            Field::AskedAddress(family) => {
                let key = match family {
                    Family::V4 => CT_DST_IP,
                    Family::V6 => CT_DST_IP6,
                };
                data.number(2, key);
                data.raw(3, &[DIRECTION_ORIGINAL]); // NFTA_CT_DIRECTION
            }
        }
    }
}

/// One expression. Those that compare or look up end the rule unless they succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    /// Loads a field into the registers from this one on.
    Load(Field, u32),
    /// Keeps only these bits of the first registers.
    Mask(Vec<u8>),
    /// Compares the first registers with a value.
    Compare(Comparison, Vec<u8>),
    /// Looks the first registers up in the named set.
    Lookup(String, Membership),
    /// Looks the first registers up in the named map and puts what is found over them.
    LookupMap(String),
    /// Adds a label to the connection, by way of the registers from this one on.
    Label([u8; LABELS_LEN], u32),
    /// Counts packets and bytes that came this far.
    Counter,
    /// Counts them by the named counter, which rules may share.
    NamedCounter(String),
    /// Gives the connection the address of the outgoing device as source; keeps the port if free.
    Masquerade,
    /// Gives the connection the address in the first registers as source; keeps the port if free.
    TranslateSource(Family),
    /// Gives the connection the address and the port in the first registers as destination.
    TranslateDestination(Family),
    /// Keeps conntrack, and so NAT, away from the packet.
    Untrack,
    /// Ends the chain.
    Verdict(Verdict),
}

impl Expression {
    /// The name by which the kernel finds the implementation of the last step that it takes.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Expression::Load(field, _) => field.expression(),
            Expression::Mask(_) => "bitwise",
            Expression::Compare(..) => "cmp",
            Expression::Lookup(..) | Expression::LookupMap(_) => "lookup",
            Expression::Label(..) => "ct",
            Expression::Counter => "counter",
            Expression::NamedCounter(_) => "objref",
            Expression::Masquerade => "masq",
            Expression::TranslateSource(_) | Expression::TranslateDestination(_) => "nat",
            Expression::Untrack => "notrack",
            Expression::Verdict(_) => "immediate",
        }
    }

    /// Writes the expression as an element of a rule's list.
    pub(super) fn encode(&self, list: &mut Attributes) {
        if let Expression::Label(label, register) = self {
            // The kernel takes labels from registers only.
            element(list, "immediate", |data| {
                data.number(1, FIRST_REGISTER + register); // NFTA_IMMEDIATE_DREG
                data.nested(2, |value| value.raw(DATA_VALUE, label)); // NFTA_IMMEDIATE_DATA
            });
        }
        element(list, self.name(), |data| self.encode_operands(data));
    }

    fn encode_operands(&self, data: &mut Attributes) {
        match self {
            Expression::Load(field, register) => field.encode(data, FIRST_REGISTER + register),
            Expression::Mask(mask) => {
                let len = u32::try_from(mask.len()).expect("a mask is a few bytes long");
                data.number(1, FIRST_REGISTER); // NFTA_BITWISE_SREG
                data.number(2, FIRST_REGISTER); // NFTA_BITWISE_DREG
                data.number(3, len); // NFTA_BITWISE_LEN
                data.nested(4, |value| value.raw(DATA_VALUE, mask)); // NFTA_BITWISE_MASK
                let zeros = vec![0; mask.len()];
                data.nested(5, |value| value.raw(DATA_VALUE, &zeros)); // NFTA_BITWISE_XOR
            }
            Expression::Compare(comparison, with) => {
                data.number(1, FIRST_REGISTER); // NFTA_CMP_SREG
                data.number(2, *comparison as u32); // NFTA_CMP_OP
                data.nested(3, |value| value.raw(DATA_VALUE, with)); // NFTA_CMP_DATA
            }
            Expression::Lookup(set, membership) => {
                data.text(1, set); // NFTA_LOOKUP_SET
                data.number(2, FIRST_REGISTER); // NFTA_LOOKUP_SREG
                if *membership == Membership::NotIn {
                    data.number(5, LOOKUP_INVERTED); // NFTA_LOOKUP_FLAGS
                }
            }
            Expression::LookupMap(map) => {
                data.text(1, map); // NFTA_LOOKUP_SET
                data.number(2, FIRST_REGISTER); // NFTA_LOOKUP_SREG
                data.number(3, FIRST_REGISTER); // NFTA_LOOKUP_DREG
            }
            Expression::Label(_, register) => {
                data.number(2, CT_LABELS); // NFTA_CT_KEY
                data.number(4, FIRST_REGISTER + register); // NFTA_CT_SREG
            }
            Expression::NamedCounter(name) => {
                data.number(1, OBJECT_COUNTER); // NFTA_OBJREF_IMM_TYPE
                data.text(2, name); // NFTA_OBJREF_IMM_NAME
            }
            Expression::TranslateSource(family) => translate(data, NAT_SOURCE, *family),
            Expression::TranslateDestination(family) => {
                translate(data, NAT_DESTINATION, *family);
                let port = FIRST_REGISTER + family.address_len() / 4;
                data.number(5, port); // NFTA_NAT_REG_PROTO_MIN
                data.number(6, port); // NFTA_NAT_REG_PROTO_MAX
            }
            Expression::Verdict(verdict) => {
                data.number(1, VERDICT_REGISTER); // NFTA_IMMEDIATE_DREG
                data.nested(2, |value| {
                    let code = *verdict as u32;
                    value.nested(DATA_VERDICT, |inner| inner.number(1, code)); // NFTA_VERDICT_CODE
                }); // NFTA_IMMEDIATE_DATA
            }
            Expression::Counter | Expression::Masquerade | Expression::Untrack => {}
        }
    }
}

fn element(list: &mut Attributes, name: &'static str, operands: impl FnOnce(&mut Attributes)) {
    list.mark_expression(name);
    list.nested(LIST_ELEMENT, |element| {
        element.text(EXPRESSION_NAME, name);
        element.nested(EXPRESSION_DATA, operands);
    });
}

fn meta(data: &mut Attributes, key: u32) {
    data.number(2, key); // NFTA_META_KEY
}

fn payload(data: &mut Attributes, base: u32, offset: u32, len: u32) {
    data.number(2, base); // NFTA_PAYLOAD_BASE
    data.number(3, offset); // NFTA_PAYLOAD_OFFSET
    data.number(4, len); // NFTA_PAYLOAD_LEN
}

fn translate(data: &mut Attributes, kind: u32, family: Family) {
    data.number(1, kind); // NFTA_NAT_TYPE
    data.number(2, family.number().into()); // NFTA_NAT_FAMILY
    data.number(3, FIRST_REGISTER); // NFTA_NAT_REG_ADDR_MIN
    data.number(4, FIRST_REGISTER); // NFTA_NAT_REG_ADDR_MAX
}

/// Where the quoted packet begins in an ICMP error (RFC 792, RFC 4443 §3): behind type, code,
/// checksum and four more bytes.
const QUOTE: u32 = 8;

/// Where an address stands in its header (RFC 791 §3.1, RFC 8200 §3).
fn address_offset(family: Family, end: End) -> u32 {
    match (family, end) {
        (Family::V4, End::Source) => 12,
        (Family::V4, End::Destination) => 16,
        (Family::V6, End::Source) => 8,
        (Family::V6, End::Destination) => 24,
    }
}

/// Where the number of the next protocol stands in its header (RFC 791 §3.1, RFC 8200 §3).
fn transport_offset(family: Family) -> u32 {
    match family {
        Family::V4 => 9,
        Family::V6 => 6,
    }
}

/// Bytes of a header without options.
fn header_len(family: Family) -> u32 {
    match family {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

/// Where a port stands in its header, in TCP (RFC 9293 §3.1), UDP and SCTP alike.
fn port_offset(end: End) -> u32 {
    match end {
        End::Source => 0,
        End::Destination => 2,
    }
}
