//! Reading the kernel's datagrams: what they hold is checked here and trusted elsewhere.

use netlink_packet_core::{
    NLM_F_ACK_TLVS, NLMSG_ERROR, NLMSG_NOOP, NetlinkBuffer, NlasIterator, ParseableParametrized,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;

/// `NLMSGERR_ATTR_MSG` (linux/netlink.h): the kernel's own words about an error.
const EXT_ACK_MESSAGE: u16 = 1;

/// The messages of one datagram; the iterator ends after the first that cannot be read.
pub(super) fn messages(
    datagram: &[u8],
) -> impl Iterator<Item = Result<NetlinkBuffer<&[u8]>, String>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match NetlinkBuffer::new_checked(rest) {
            Ok(message) => {
                let length = (message.length() as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                Some(Ok(message))
            }
            Err(error) => {
                rest = &[];
                Some(Err(error.to_string()))
            }
        }
    })
}

/// The object in a message, or `None` for a message without one. An object with an attribute
/// that `netlink-packet-route` cannot read is left out and logged: one exotic device of the host
/// must not stop the daemon.
pub(super) fn parse(part: &NetlinkBuffer<&[u8]>, what: &str) -> Option<RouteNetlinkMessage> {
    if part.message_type() == NLMSG_NOOP {
        return None;
    }
    match RouteNetlinkMessage::parse_with_param(part.payload(), part.message_type()) {
        Ok(message) => Some(message),
        Err(error) => {
            tracing::warn!("{what}: left out one object that cannot be read: {error}");
            None
        }
    }
}

/// The error number and the kernel's words in an `NLMSG_ERROR` or `NLMSG_DONE` message; `None` if
/// it reports success (Documentation/userspace-api/netlink/intro.rst, "Extended ACK").
pub(super) fn refused(part: &NetlinkBuffer<&[u8]>) -> Option<(Errno, String)> {
    let payload = part.payload();
    let code = payload.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if code == 0 {
        return None;
    }
    // An error repeats the header of the request (NETLINK_CAP_ACK: nothing more of it).
    let attributes_at = if part.message_type() == NLMSG_ERROR { 4 + 16 } else { 4 };
    let detail = if part.flags() & NLM_F_ACK_TLVS == 0 {
        String::new()
    } else {
        ext_ack_message(payload.get(attributes_at..).unwrap_or_default())
    };
    Some((errno_of(code), detail))
}

/// The error number in an answer of the kernel, which says it negated. What the kernel cannot mean
/// is read as a protocol error, since `Errno` holds only 1 to 4095.
pub(crate) fn errno_of(code: i32) -> Errno {
    match code.saturating_neg() {
        number @ 1..4096 => Errno::from_raw_os_error(number),
        _ => Errno::PROTO,
    }
}

fn ext_ack_message(attributes: &[u8]) -> String {
    for attribute in NlasIterator::new(attributes).map_while(Result::ok) {
        if attribute.kind() == EXT_ACK_MESSAGE {
            let text = String::from_utf8_lossy(attribute.value());
            return format!(": {}", text.trim_end_matches(['\0', '.']));
        }
    }
    String::new()
}
