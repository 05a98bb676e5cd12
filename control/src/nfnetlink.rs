//! The netlink of netfilter, as far as `nft` and `ctnetlink` speak it alike: sockets, headers, and
//! how received bytes are taken apart.
//!
//! The kernel works on a request within `sendto`, and writes the next part of a list while it is
//! asked for one (net/netlink/af_netlink.c, `netlink_recvmsg`). So every answer is in the receive
//! queue when a call returns, and sockets never block: an answer that is not there will not come.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// Bytes of `struct nlmsghdr` and of `struct nfgenmsg`, the two headers of every message.
pub(crate) const NETLINK_HEADER_LEN: usize = 16;
pub(crate) const NETFILTER_HEADER_LEN: usize = 4;

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_DUMP`.
pub(crate) const REQUEST: u16 = 0x001;
pub(crate) const ACK: u16 = 0x004;
pub(crate) const DUMP: u16 = 0x300;

/// `NLMSG_ERROR`: an acknowledgement or an error.
pub(crate) const KIND_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a list, with an error number or 0.
pub(crate) const KIND_DONE: u16 = 3;

/// Room for the largest datagram: the kernel fills up to 32 kB with a part of a list
/// (net/netlink/af_netlink.c, `netlink_dump`).
pub(crate) const RECEIVE_BYTES: usize = 64 << 10;

/// A socket with the datagram that was received last.
pub(crate) struct Connection {
    pub(crate) socket: Socket,
    received: Vec<u8>,
}

impl Connection {
    /// Opens one in the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Connection> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        // Answers then repeat only the header of the message they are about, not its content.
        socket.set_cap_ack(true)?;
        Ok(Connection { socket, received: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// Has the kernel work on messages.
    pub(crate) fn send(&self, messages: &[u8]) -> io::Result<()> {
        self.socket.send_to(messages, &SocketAddr::new(0, 0), 0).map(|_| ())
    }

    /// Takes the next datagram out of the queue: its messages, or `None` if there is none.
    pub(crate) fn receive(&mut self) -> io::Result<Option<impl Iterator<Item = Received<'_>>>> {
        loop {
            self.received.clear();
            match self.socket.recv(&mut self.received, 0) {
                Ok(_) => return Ok(Some(messages(&self.received))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Appends a request: its headers, of which `netfilter` is the second one, and its attributes.
pub(crate) fn put_request(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    netfilter: [u8; NETFILTER_HEADER_LEN],
    attributes: &[u8],
) {
    let len = u32::try_from(NETLINK_HEADER_LEN + NETFILTER_HEADER_LEN + attributes.len())
        .expect("a message holds one bounded list");
    out.extend(len.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend((flags | REQUEST).to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend(0u32.to_ne_bytes()); // port id: the kernel fills in ours
    out.extend(netfilter);
    out.extend(attributes);
}

/// A received message: header fields and what follows the header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) port_id: u32,
    pub(crate) payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// Message type, family and attributes, if this is a message of `subsystem`.
    pub(crate) fn of(&self, subsystem: u8) -> Option<(u8, u8, &'a [u8])> {
        let [upper, kind] = self.kind.to_be_bytes();
        let (header, attributes) = self.payload.split_at_checked(NETFILTER_HEADER_LEN)?;
        (upper == subsystem).then_some((kind, *header.first()?, attributes))
    }
}

/// The messages of a datagram; ends early where the bytes make no sense.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let len = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let payload = bytes.get(NETLINK_HEADER_LEN..len)?;
        let received = Received {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            port_id: u32_at(bytes, 12)?,
            payload,
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    })
}

/// Two bytes in host order.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Four bytes in host order.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}
