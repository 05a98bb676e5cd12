//! Sets and maps of the table, and messages that put elements into them or take elements out.

use super::TABLE;
use super::encode::{Attributes, Batch, TABLE_NAME, message};
use super::expressions::DATA_VALUE;
use super::intervals::{Family, Interval};

/// `NFT_SET_INTERVAL`: elements come in pairs, where an interval begins and where it has ended.
const SET_INTERVAL: u32 = 0x4;
/// `NFT_SET_MAP`: each element has a value.
const SET_MAP: u32 = 0x8;
/// `NFT_SET_ELEM_INTERVAL_END`: the first key that is no longer inside.
const ELEMENT_INTERVAL_END: u32 = 0x1;
/// Elements, or intervals, in one message. Either takes at most 80 bytes, and the list is one
/// attribute, whose length is a 16-bit number.
const ELEMENTS_PER_MESSAGE: usize = 512;
/// Bits that each part of a key has in the number of its type (`TYPE_BITS` of nft's datatype.h).
const TYPE_BITS: u32 = 6;

/// A part of a key or value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Address(Family),
    /// The number of a protocol above IP.
    Transport,
    Port,
}

impl Part {
    /// The number by which `nft` recognises the type when it lists a set (`TYPE_INET_PROTOCOL`,
    /// `TYPE_INET_SERVICE` of its datatype.h); the kernel only stores it.
    fn kind(self) -> u32 {
        match self {
            Part::Address(family) => family.key_type(),
            Part::Transport => 12,
            Part::Port => 13,
        }
    }

    /// Bytes it takes in registers, which are of four.
    fn len(self) -> u32 {
        match self {
            Part::Address(family) => family.address_len(),
            Part::Transport | Part::Port => 4,
        }
    }
}

/// What a set holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) key: Vec<Part>,
    /// What each key leads to; empty in a plain set.
    pub(super) value: Vec<Part>,
}

impl Shape {
    fn kind(parts: &[Part]) -> u32 {
        parts.iter().fold(0, |kind, part| kind << TYPE_BITS | part.kind())
    }

    fn len(parts: &[Part]) -> u32 {
        parts.iter().map(|part| part.len()).sum()
    }
}

/// An element as its bytes in registers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    /// Empty in a plain set, and not needed to take an element out.
    pub(super) value: Vec<u8>,
}

/// Makes an empty set; its number `id` is like no other's in the batch.
pub(super) fn make(batch: &mut Batch, id: u32, name: &str, shape: &Shape) {
    let kind = if shape.value.is_empty() { "set" } else { "map" };
    batch.add(message::NEWSET, format!("{kind} {name}"), |attributes| {
        attributes.text(TABLE_NAME, TABLE);
        attributes.text(2, name); // NFTA_SET_NAME
        let flags = if shape.value.is_empty() { 0 } else { SET_MAP };
        attributes.number(3, flags); // NFTA_SET_FLAGS
        attributes.number(4, Shape::kind(&shape.key)); // NFTA_SET_KEY_TYPE
        attributes.number(5, Shape::len(&shape.key)); // NFTA_SET_KEY_LEN
        if !shape.value.is_empty() {
            attributes.number(6, Shape::kind(&shape.value)); // NFTA_SET_DATA_TYPE
            attributes.number(7, Shape::len(&shape.value)); // NFTA_SET_DATA_LEN
        }
        attributes.number(10, id); // NFTA_SET_ID
    });
}

/// Puts elements in. One that is there already, with the same value, is no error.
pub(super) fn put(batch: &mut Batch, name: &str, elements: &[Element]) {
    change(batch, message::NEWSETELEM, name, elements);
}

/// Takes elements out. One that is not there makes the kernel refuse the batch.
pub(super) fn take(batch: &mut Batch, name: &str, elements: &[Element]) {
    change(batch, message::DELSETELEM, name, elements);
}

fn change(batch: &mut Batch, kind: u8, name: &str, elements: &[Element]) {
    lists(batch, kind, name, elements, |list, element| {
        list.nested(1, |attributes| {
            attributes.nested(1, |key| key.raw(DATA_VALUE, &element.key)); // NFTA_SET_ELEM_KEY
            if !element.value.is_empty() {
                // NFTA_SET_ELEM_DATA
                attributes.nested(2, |value| value.raw(DATA_VALUE, &element.value));
            }
        }); // NFTA_LIST_ELEM
    });
}

/// Makes a set that holds the addresses inside of these intervals.
pub(super) fn make_of_intervals(
    batch: &mut Batch,
    id: u32,
    family: Family,
    name: &str,
    intervals: &[Interval],
) {
    batch.add(message::NEWSET, format!("interval set {name}"), |attributes| {
        attributes.text(TABLE_NAME, TABLE);
        attributes.text(2, name); // NFTA_SET_NAME
        attributes.number(3, SET_INTERVAL); // NFTA_SET_FLAGS
        attributes.number(4, family.key_type()); // NFTA_SET_KEY_TYPE
        attributes.number(5, family.address_len()); // NFTA_SET_KEY_LEN
        attributes.number(10, id); // NFTA_SET_ID
    });
    change_intervals(batch, message::NEWSETELEM, family, name, intervals);
}

/// Puts intervals in, or takes them out, by the type of message: the same ones that are in the set.
pub(super) fn change_intervals(
    batch: &mut Batch,
    kind: u8,
    family: Family,
    name: &str,
    intervals: &[Interval],
) {
    lists(batch, kind, name, intervals, |list, interval| write_interval(list, family, interval));
}

/// An interval is its first key and, unless it reaches the end of the family, the key after its
/// last one, marked as an end.
fn write_interval(list: &mut Attributes, family: Family, interval: &Interval) {
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

/// Messages about elements, as many as their number takes.
fn lists<T>(
    batch: &mut Batch,
    kind: u8,
    name: &str,
    elements: &[T],
    mut write: impl FnMut(&mut Attributes, &T),
) {
    for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
        batch.add(kind, format!("the elements of set {name}"), |attributes| {
            attributes.text(TABLE_NAME, TABLE);
            attributes.text(2, name); // NFTA_SET_ELEM_LIST_SET
            attributes.nested(3, |list| {
                part.iter().for_each(|element| write(list, element));
            }); // NFTA_SET_ELEM_LIST_ELEMENTS
        });
    }
}
