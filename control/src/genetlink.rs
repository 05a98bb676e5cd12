//! Generic netlink, as far as the families `ethtool` and `netdev` need it: one command, one answer
//! (Documentation/userspace-api/netlink/intro.rst, "Generic Netlink").

use crate::attributes::{attribute, put, zero_ended};
use crate::netlink::errno_of;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use rustix::io::Errno;
use std::io;
use std::sync::OnceLock;

// linux/netlink.h
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_HEADER_BYTES: usize = 16;

// linux/genetlink.h
const GENL_HEADER_BYTES: usize = 4;
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// The version of every family that is used here; the kernel does not look at it.
const VERSION: u8 = 1;

/// Room for one answer; the longest, a description of all features of an interface, takes about
/// 4 kB.
const RECEIVE_BYTES: usize = 32 * 1024;

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub enum GenetlinkError {
    /// The kernel refused.
    #[error("{what}: {source}")]
    Refused {
        /// Operation and object.
        what: String,
        /// The kernel's error number.
        source: Errno,
    },
    /// The socket failed.
    #[error("{what}: the netlink socket failed: {source}")]
    Socket {
        /// What was being done.
        what: String,
        /// The system call's error.
        source: io::Error,
    },
    /// The kernel answered with something this client cannot read.
    #[error("{what}: the kernel's answer cannot be read")]
    Malformed {
        /// What was being done.
        what: String,
    },
}

impl GenetlinkError {
    /// Whether the kernel refused with this error number.
    #[must_use]
    pub fn is(&self, errno: Errno) -> bool {
        matches!(self, GenetlinkError::Refused { source, .. } if *source == errno)
    }
}

/// A family of commands: its name and, once it was asked for, the number that the kernel gave it
/// at boot, the same in every namespace.
#[derive(Debug)]
pub(crate) struct Family {
    name: &'static str,
    number: OnceLock<u16>,
}

impl Family {
    pub(crate) const fn new(name: &'static str) -> Family {
        Family { name, number: OnceLock::new() }
    }
}

/// A connection to one family in one network namespace.
#[derive(Debug)]
pub(crate) struct Genetlink {
    socket: Socket,
    family: u16,
    sequence: u32,
    received: Vec<u8>,
}

impl Genetlink {
    /// Connects to the network namespace the calling thread is in, for good. Refused with `ENOENT`
    /// by a kernel without the family.
    pub(crate) fn open(family: &Family) -> Result<Genetlink, GenetlinkError> {
        let what = format!("open {} netlink", family.name);
        let connect = || {
            let mut socket = Socket::new(NETLINK_GENERIC)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket =
            connect().map_err(|source| GenetlinkError::Socket { what: what.clone(), source })?;
        let received = Vec::with_capacity(RECEIVE_BYTES);
        let mut genetlink = Genetlink { socket, family: GENL_ID_CTRL, sequence: 0, received };
        genetlink.family = match family.number.get() {
            Some(number) => *number,
            None => {
                let number = genetlink.resolve(&what, family.name)?;
                *family.number.get_or_init(|| number)
            }
        };
        Ok(genetlink)
    }

    fn resolve(&mut self, what: &str, name: &str) -> Result<u16, GenetlinkError> {
        let mut body = Vec::new();
        put(&mut body, CTRL_ATTR_FAMILY_NAME, &zero_ended(name));
        let answer = self.exchange(what, CTRL_CMD_GETFAMILY, &body)?;
        let id = answer.as_deref().and_then(|answer| attribute(answer, CTRL_ATTR_FAMILY_ID));
        let bytes = id.and_then(|id| id.first_chunk::<2>().copied());
        bytes
            .map(u16::from_ne_bytes)
            .ok_or_else(|| GenetlinkError::Malformed { what: what.to_owned() })
    }

    /// Sends one command and waits for its acknowledgement; returns the attributes of the answer,
    /// if it had one.
    pub(crate) fn exchange(
        &mut self,
        what: &str,
        command: u8,
        body: &[u8],
    ) -> Result<Option<Vec<u8>>, GenetlinkError> {
        let socket_error = |source| GenetlinkError::Socket { what: what.to_owned(), source };
        let malformed = || GenetlinkError::Malformed { what: what.to_owned() };
        self.sequence = self.sequence.wrapping_add(1);
        let message = self.message(command, body);
        self.socket.send(&message, 0).map_err(socket_error)?;
        let mut answer = None;
        loop {
            self.received.clear();
            self.socket.recv(&mut self.received, 0).map_err(socket_error)?;
            let mut rest = self.received.as_slice();
            while !rest.is_empty() {
                let part = Part::read(rest).ok_or_else(malformed)?;
                rest = rest.get(part.length.next_multiple_of(4)..).unwrap_or_default();
                if part.sequence != self.sequence {
                    continue;
                }
                if part.kind != NLMSG_ERROR {
                    answer =
                        Some(part.payload.get(GENL_HEADER_BYTES..).unwrap_or_default().to_vec());
                    continue;
                }
                let code = part.payload.first_chunk::<4>().ok_or_else(malformed)?;
                return match i32::from_ne_bytes(*code) {
                    0 => Ok(answer),
                    code => {
                        let source = errno_of(code);
                        Err(GenetlinkError::Refused { what: what.to_owned(), source })
                    }
                };
            }
        }
    }

    fn message(&self, command: u8, body: &[u8]) -> Vec<u8> {
        let length = NLMSG_HEADER_BYTES + GENL_HEADER_BYTES + body.len();
        let mut message = Vec::with_capacity(length);
        message.extend(u32::try_from(length).expect("requests are small").to_ne_bytes());
        message.extend(self.family.to_ne_bytes());
        message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend([command, VERSION, 0, 0]);
        message.extend(body);
        message
    }
}

/// One netlink message of a datagram.
struct Part<'a> {
    length: usize,
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Part<'_> {
    fn read(bytes: &[u8]) -> Option<Part<'_>> {
        let length = u32::from_ne_bytes(*bytes.first_chunk::<4>()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk::<2>()?);
        let sequence = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk::<4>()?);
        let payload = bytes.get(NLMSG_HEADER_BYTES..length)?;
        Some(Part { length, kind, sequence, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_messages_are_read_without_a_panic() {
        let mut whole = 40u32.to_ne_bytes().to_vec();
        whole.resize(40, 3);
        for end in 0..whole.len() {
            assert!(Part::read(&whole[..end]).is_none_or(|part| part.length <= end));
        }
        whole[..4].copy_from_slice(&5u32.to_ne_bytes());
        assert!(Part::read(&whole).is_none(), "shorter than its own header");
    }

    #[test]
    fn a_kernel_without_a_family_says_so() {
        static FAMILY: Family = Family::new("viaduct-none");
        let refused = Genetlink::open(&FAMILY).expect_err("no such family");
        assert!(refused.is(Errno::NOENT), "{refused}");
        assert!(!refused.is(Errno::PERM));
    }
}
