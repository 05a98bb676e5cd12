//! Bytes of nf_tables netlink messages: attributes, messages, batches.
//!
//! netlink headers are in host byte order, nf_tables integers in network byte order
//! (include/uapi/linux/netlink.h, include/uapi/linux/netfilter/nf_tables.h).

use netlink_packet_core::NLA_F_NESTED;

use crate::attributes::{close, open, put, zero_ended};
use crate::nfnetlink::{ACK, DUMP, NETFILTER_HEADER_LEN, NETLINK_HEADER_LEN, put_request};

/// `NLM_F_CREATE`, `NLM_F_APPEND`.
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of every nf_tables message type.
pub(super) const SUBSYSTEM: u8 = 10;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NFPROTO_INET`: IPv4 and IPv6 in one table.
pub(super) const FAMILY_INET: u8 = 1;
/// `NFPROTO_UNSPEC`: in a question, every family.
pub(super) const FAMILY_UNSPECIFIED: u8 = 0;

/// Attribute that names the table, the same number in messages about tables, chains, rules, sets
/// and elements (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, …).
pub(super) const TABLE_NAME: u16 = 1;

/// Message types (`enum nf_tables_msg_types`).
pub(super) mod message {
    pub(crate) const NEWTABLE: u8 = 0;
    pub(crate) const GETTABLE: u8 = 1;
    pub(crate) const DELTABLE: u8 = 2;
    pub(crate) const NEWCHAIN: u8 = 3;
    pub(crate) const GETCHAIN: u8 = 4;
    pub(crate) const NEWRULE: u8 = 6;
    pub(crate) const GETRULE: u8 = 7;
    pub(crate) const NEWSET: u8 = 9;
    pub(crate) const NEWSETELEM: u8 = 12;
    pub(crate) const DELSETELEM: u8 = 14;
    pub(crate) const NEWOBJ: u8 = 18;
    pub(crate) const GETOBJ: u8 = 19;
}

/// Attributes that are being written.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    bytes: Vec<u8>,
    /// Where each expression of a rule begins, to find the one an error points at.
    expressions: Vec<(usize, &'static str)>,
}

impl Attributes {
    /// Writes a number of four bytes.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.raw(kind, &value.to_be_bytes());
    }

    /// Writes a string with the zero byte that ends it.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.raw(kind, &zero_ended(value));
    }

    /// Writes bytes as they are.
    pub(super) fn raw(&mut self, kind: u16, value: &[u8]) {
        put(&mut self.bytes, kind, value);
    }

    /// Writes an attribute whose payload is what `inner` writes.
    pub(super) fn nested(&mut self, kind: u16, inner: impl FnOnce(&mut Attributes)) {
        let start = open(&mut self.bytes, kind | NLA_F_NESTED);
        inner(self);
        close(&mut self.bytes, start);
    }

    /// Remembers that the expression `name` begins with the next attribute.
    pub(super) fn mark_expression(&mut self, name: &'static str) {
        self.expressions.push((self.bytes.len(), name));
    }
}

/// One message of a batch, as errors speak of it.
#[derive(Debug)]
pub(super) struct Step {
    start: usize,
    /// The message type, or `None` for the frame of the batch.
    pub(super) kind: Option<u8>,
    /// What the message makes, as in "the kernel refused …".
    pub(super) object: String,
    expressions: Vec<(usize, &'static str)>,
}

impl Step {
    /// Name of the expression that begins `offset` bytes into the message.
    pub(super) fn expression_at(&self, offset: u32) -> Option<&'static str> {
        let found = self.expressions.iter().find(|(start, _)| u32::try_from(*start) == Ok(offset));
        found.map(|(_, name)| *name)
    }
}

/// Messages that the kernel applies together or not at all. The sequence number of a message is
/// its index in `steps`.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    steps: Vec<Step>,
}

impl Batch {
    /// A batch with its opening message.
    pub(super) fn begin() -> Batch {
        let mut batch = Batch { bytes: Vec::new(), steps: Vec::new() };
        batch.frame(BATCH_BEGIN);
        batch
    }

    /// A question outside any batch.
    pub(super) fn single(kind: u8, object: &str, content: impl FnOnce(&mut Attributes)) -> Batch {
        let mut batch = Batch { bytes: Vec::new(), steps: Vec::new() };
        batch.push(kind, object.to_owned(), 0, content);
        batch
    }

    /// A question for every object of a kind, in one family or in all.
    pub(super) fn list(kind: u8, family: u8, content: impl FnOnce(&mut Attributes)) -> Batch {
        let mut batch = Batch { bytes: Vec::new(), steps: Vec::new() };
        let full = u16::from_be_bytes([SUBSYSTEM, kind]);
        batch.message(full, Some(kind), "a list".to_owned(), DUMP, [family, 0, 0, 0], content);
        batch
    }

    /// Adds a message that makes (or, by its type, removes) an object.
    pub(super) fn add(&mut self, kind: u8, object: String, content: impl FnOnce(&mut Attributes)) {
        // A rule without NLM_F_APPEND would come before those written earlier.
        self.push(kind, object, CREATE | APPEND, content);
    }

    /// Closes the batch. The last message asks for an acknowledgement: the frame itself is
    /// acknowledged only since Linux 6.10.
    pub(super) fn finish(mut self) -> Batch {
        let last = self.steps.last().expect("a batch has its opening message");
        let flags = last.start + 6;
        let with_ack = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]) | ACK;
        self.bytes[flags..flags + 2].copy_from_slice(&with_ack.to_ne_bytes());
        self.frame(BATCH_END);
        self
    }

    /// The messages as they are sent.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The message with this sequence number.
    pub(super) fn step(&self, sequence: u32) -> Option<&Step> {
        self.steps.get(usize::try_from(sequence).ok()?)
    }

    /// Whether there is no message in its frame.
    pub(super) fn is_empty(&self) -> bool {
        self.steps.iter().all(|step| step.kind.is_none())
    }

    /// Whether this is the number of the last message before the closing one.
    pub(super) fn is_last(&self, sequence: u32) -> bool {
        usize::try_from(sequence).is_ok_and(|index| index + 2 == self.steps.len())
    }

    fn frame(&mut self, kind: u16) {
        // nfnetlink takes the subsystem of a batch from res_id, in network byte order.
        let header = [FAMILY_UNSPECIFIED, 0, 0, SUBSYSTEM];
        self.message(kind, None, "a change".to_owned(), 0, header, |_| ());
    }

    fn push(
        &mut self,
        kind: u8,
        object: String,
        flags: u16,
        content: impl FnOnce(&mut Attributes),
    ) {
        let header = [FAMILY_INET, 0, 0, 0];
        let full = u16::from_be_bytes([SUBSYSTEM, kind]);
        self.message(full, Some(kind), object, flags, header, content);
    }

    fn message(
        &mut self,
        full_kind: u16,
        kind: Option<u8>,
        object: String,
        flags: u16,
        header: [u8; NETFILTER_HEADER_LEN],
        content: impl FnOnce(&mut Attributes),
    ) {
        let mut attributes = Attributes::default();
        content(&mut attributes);
        let sequence = u32::try_from(self.steps.len()).expect("a batch has few messages");
        let start = self.bytes.len();
        put_request(&mut self.bytes, full_kind, flags, sequence, header, &attributes.bytes);
        let headers = NETLINK_HEADER_LEN + NETFILTER_HEADER_LEN;
        let expressions =
            attributes.expressions.into_iter().map(|(at, name)| (at + headers, name)).collect();
        self.steps.push(Step { start, kind, object, expressions });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attributes::attributes;
    use crate::nfnetlink::{REQUEST, messages};

    #[test]
    fn a_message_reads_back_as_it_was_written() {
        let mut batch = Batch::begin();
        batch.add(message::NEWTABLE, "a table".into(), |attributes| {
            attributes.text(TABLE_NAME, "abc");
            attributes.nested(4, |inner| inner.number(2, 100));
        });
        let batch = batch.finish();
        let received: Vec<_> = messages(batch.bytes()).collect();
        assert_eq!(received.len(), 3);
        assert_eq!((received[0].kind, received[2].kind), (BATCH_BEGIN, BATCH_END));
        assert_eq!(received[0].payload, [0, 0, 0, 10]);
        assert_eq!((received[1].kind, received[1].sequence), (10 << 8, 1));
        assert_eq!(received[1].flags, REQUEST | ACK | CREATE | APPEND);
        let (kind, family, rest) = received[1].of(SUBSYSTEM).unwrap();
        assert_eq!((kind, family), (message::NEWTABLE, FAMILY_INET));
        let read: Vec<_> = attributes(rest).collect();
        assert_eq!(read[0], (TABLE_NAME, &b"abc\0"[..]));
        assert_eq!(attributes(read[1].1).collect::<Vec<_>>(), [(2, &[0, 0, 0, 100][..])]);
        assert!(batch.is_last(1) && !batch.is_last(2) && !batch.is_last(0));
    }

    #[test]
    fn a_text_is_padded_but_its_length_is_not() {
        let mut attributes = Attributes::default();
        attributes.text(2, "pods4");
        assert_eq!(attributes.bytes, [&[10, 0, 2, 0][..], b"pods4\0\0\0"].concat());
    }

    #[test]
    fn an_expression_is_found_by_its_offset_in_the_message() {
        let mut batch = Batch::begin();
        batch.add(message::NEWRULE, "a rule".into(), |attributes| {
            attributes.number(1, 0);
            attributes.mark_expression("masq");
            attributes.number(1, 0);
        });
        let step = batch.step(1).unwrap();
        assert_eq!(step.expression_at(28), Some("masq"));
        assert_eq!(step.expression_at(20), None);
    }

    proptest! {
        #[test]
        fn no_received_bytes_panic_or_loop(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for received in messages(&bytes) {
                let _ = received.of(SUBSYSTEM);
                prop_assert!(attributes(received.payload).count() <= bytes.len() / 4);
            }
            prop_assert!(messages(&bytes).count() <= bytes.len() / NETLINK_HEADER_LEN);
        }
    }
}
