//! netlink attributes (linux/netlink.h, `struct nlattr`), as generic netlink and netfilter's have
//! them: written one after another, each padded to four bytes, and read back. Lengths and kinds are
//! in host byte order; of values their families say.

use netlink_packet_core::{NLA_F_NESTED, NLA_HEADER_SIZE, NLA_TYPE_MASK};

use crate::nfnetlink::u16_at;

/// A text with the zero at its end.
pub(crate) fn zero_ended(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// Appends an attribute.
pub(crate) fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let start = open(out, kind);
    out.extend(value);
    close(out, start);
}

/// Appends an attribute that holds what `fill` appends.
pub(crate) fn nest(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = open(out, kind | NLA_F_NESTED);
    fill(out);
    close(out, start);
}

/// Begins an attribute, which what is appended from now on belongs to. Returns where it begins.
pub(crate) fn open(out: &mut Vec<u8>, kind: u16) -> usize {
    let start = out.len();
    out.extend([0; 2]);
    out.extend(kind.to_ne_bytes());
    start
}

/// Ends the attribute that begins at `start`. Its length excludes the padding that follows it.
pub(crate) fn close(out: &mut Vec<u8>, start: usize) {
    let length = u16::try_from(out.len() - start)
        .expect("lists are cut into messages before an attribute reaches 64 KiB");
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The attributes in `bytes` as kind and value; ends early where the bytes make no sense.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(NLA_HEADER_SIZE..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of this kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// The value of an attribute of 4 bytes.
pub(crate) fn attribute_u32(bytes: &[u8], kind: u16) -> Option<u32> {
    attribute(bytes, kind)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// The value of an attribute of 8 bytes.
pub(crate) fn attribute_u64(bytes: &[u8], kind: u16) -> Option<u64> {
    attribute(bytes, kind)?.first_chunk().copied().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_padded_to_four_bytes_and_say_their_true_length() {
        let mut out = Vec::new();
        put(&mut out, 7, b"abc");
        assert_eq!(out.len(), 8);
        assert_eq!(out[..2], 7u16.to_ne_bytes());
        assert_eq!(attribute(&out, 7), Some(&b"abc"[..]));
        assert_eq!(attribute(&out, 8), None);
        assert_eq!(attribute_u32(&out, 7), None, "too short");
    }

    #[test]
    fn numbers_are_read_as_they_were_written() {
        let mut out = Vec::new();
        put(&mut out, 1, &7u32.to_ne_bytes());
        put(&mut out, 2, &(1u64 << 40).to_ne_bytes());
        assert_eq!((attribute_u32(&out, 1), attribute_u64(&out, 2)), (Some(7), Some(1 << 40)));
        assert_eq!((attribute_u64(&out, 1), attribute_u32(&out, 3)), (None, None));
    }

    #[test]
    fn what_is_nested_has_its_own_padding_inside_of_the_length() {
        let mut out = Vec::new();
        put(&mut out, 1, b"before");
        nest(&mut out, 2, |inner| put(inner, 3, b"abcde"));
        let kind = (NLA_F_NESTED | 2).to_ne_bytes();
        assert_eq!(out[12..16], [&16u16.to_ne_bytes()[..], &kind].concat());
        assert_eq!(
            attributes(attribute(&out, 2).unwrap()).collect::<Vec<_>>(),
            [(3, &b"abcde"[..])]
        );
    }

    proptest! {
        #[test]
        fn no_received_bytes_panic_or_loop(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(attributes(&bytes).count() <= bytes.len() / NLA_HEADER_SIZE);
        }
    }
}
