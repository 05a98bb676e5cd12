//! Offload features of an interface, by generic netlink (Documentation/networking/
//! ethtool-netlink.rst): the pod's kernel must not hand us packets that only hardware can finish.
//!
//! One message changes any number of features by name. Names that an older kernel does not know
//! are left out, since what a kernel does not know it does not do.

use crate::netlink::errno_of;
use netlink_packet_core::{NLA_F_NESTED, NlaBuffer, NlasIterator};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use rustix::io::Errno;
use std::collections::HashSet;
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

// linux/ethtool_netlink.h
const ETHTOOL_GENL_VERSION: u8 = 1;
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_HW: u16 = 2;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;

/// Room for one answer; a description of all features of an interface takes about 4 kB.
const RECEIVE_BYTES: usize = 32 * 1024;

/// A feature request that failed.
#[derive(Debug, thiserror::Error)]
pub enum EthtoolError {
    /// The kernel refused.
    #[error("{what}: {source}")]
    Refused {
        /// Operation and interface.
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
    /// The driver holds on to features.
    #[error("set features of {device}: the driver does not change {}", names.join(", "))]
    Fixed {
        /// The interface.
        device: String,
        /// Features that stayed as they were.
        names: Vec<String>,
    },
}

/// A connection to ethtool in one network namespace.
#[derive(Debug)]
pub struct Ethtool {
    socket: Socket,
    family: u16,
    sequence: u32,
    received: Vec<u8>,
}

/// The kernel gives the family a number at boot, the same in every namespace.
static FAMILY: OnceLock<u16> = OnceLock::new();

/// The features this kernel has names for; asked only if it does not know one of ours.
static KNOWN: OnceLock<HashSet<String>> = OnceLock::new();

impl Ethtool {
    /// Connects to the network namespace the calling thread is in, for good.
    pub fn open() -> Result<Ethtool, EthtoolError> {
        let what = "open ethtool netlink";
        let connect = || {
            let mut socket = Socket::new(NETLINK_GENERIC)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket =
            connect().map_err(|source| EthtoolError::Socket { what: what.to_owned(), source })?;
        let received = Vec::with_capacity(RECEIVE_BYTES);
        let mut ethtool = Ethtool { socket, family: GENL_ID_CTRL, sequence: 0, received };
        ethtool.family = match FAMILY.get() {
            Some(family) => *family,
            None => {
                let family = ethtool.resolve_family(what)?;
                *FAMILY.get_or_init(|| family)
            }
        };
        Ok(ethtool)
    }

    /// Turns features of an interface on or off. Returns `Fixed` if one did not follow.
    pub fn set_features(
        &mut self,
        device: &str,
        features: &[(&str, bool)],
    ) -> Result<(), EthtoolError> {
        if KNOWN.get().is_none() {
            match self.request_features(device, features) {
                // A name this kernel does not know; or an interface without these features, which
                // the second attempt will say again.
                Err(EthtoolError::Refused { source: Errno::OPNOTSUPP, .. }) => {}
                other => return other,
            }
            let known = self.known_features(device)?;
            KNOWN.get_or_init(|| known);
        }
        let known = KNOWN.get().expect("set just above");
        let features: Vec<_> =
            features.iter().copied().filter(|(name, _)| known.contains(*name)).collect();
        self.request_features(device, &features)
    }

    fn request_features(
        &mut self,
        device: &str,
        features: &[(&str, bool)],
    ) -> Result<(), EthtoolError> {
        let what = format!("set features of {device}");
        let mut body = Vec::with_capacity(1024);
        put_header(&mut body, device);
        nest(&mut body, ETHTOOL_A_FEATURES_WANTED, |body| {
            nest(body, ETHTOOL_A_BITSET_BITS, |body| {
                for (name, on) in features {
                    nest(body, ETHTOOL_A_BITSET_BITS_BIT, |body| {
                        put(body, ETHTOOL_A_BITSET_BIT_NAME, &zero_ended(name));
                        // A bit without this flag is cleared.
                        if *on {
                            put(body, ETHTOOL_A_BITSET_BIT_VALUE, &[]);
                        }
                    });
                }
            });
        });
        let answer = self.exchange(&what, ETHTOOL_MSG_FEATURES_SET, &body)?;
        // The answer lists under "wanted" the bits that are not as they were asked for.
        let names: Vec<String> = answer
            .as_deref()
            .and_then(|answer| attribute(answer, ETHTOOL_A_FEATURES_WANTED))
            .map(bit_names)
            .unwrap_or_default();
        if names.is_empty() {
            return Ok(());
        }
        Err(EthtoolError::Fixed { device: device.to_owned(), names })
    }

    /// All features this kernel knows, which the description of any interface lists.
    fn known_features(&mut self, device: &str) -> Result<HashSet<String>, EthtoolError> {
        let what = format!("list features of {device}");
        let mut body = Vec::new();
        put_header(&mut body, device);
        let answer = self.exchange(&what, ETHTOOL_MSG_FEATURES_GET, &body)?;
        let changeable =
            answer.as_deref().and_then(|answer| attribute(answer, ETHTOOL_A_FEATURES_HW));
        let names = changeable.map(bit_names).ok_or(EthtoolError::Malformed { what })?;
        Ok(names.into_iter().collect())
    }

    fn resolve_family(&mut self, what: &str) -> Result<u16, EthtoolError> {
        let mut body = Vec::new();
        put(&mut body, CTRL_ATTR_FAMILY_NAME, &zero_ended("ethtool"));
        let answer = self.exchange(what, CTRL_CMD_GETFAMILY, &body)?;
        let id = answer.as_deref().and_then(|answer| attribute(answer, CTRL_ATTR_FAMILY_ID));
        let bytes = id.and_then(|id| id.first_chunk::<2>().copied());
        bytes
            .map(u16::from_ne_bytes)
            .ok_or_else(|| EthtoolError::Malformed { what: what.to_owned() })
    }

    /// Sends one command and waits for its acknowledgement; returns the attributes of the answer,
    /// if it had one.
    fn exchange(
        &mut self,
        what: &str,
        command: u8,
        body: &[u8],
    ) -> Result<Option<Vec<u8>>, EthtoolError> {
        let socket_error = |source| EthtoolError::Socket { what: what.to_owned(), source };
        let malformed = || EthtoolError::Malformed { what: what.to_owned() };
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
                        Err(EthtoolError::Refused { what: what.to_owned(), source })
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
        message.extend([command, ETHTOOL_GENL_VERSION, 0, 0]);
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

fn put_header(body: &mut Vec<u8>, device: &str) {
    nest(body, ETHTOOL_A_FEATURES_HEADER, |body| {
        put(body, ETHTOOL_A_HEADER_DEV_NAME, &zero_ended(device));
    });
}

fn zero_ended(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("attributes are small");
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn nest(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put(out, kind | NLA_F_NESTED, &inner);
}

fn attributes(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes).map_while(Result::ok)
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    // Cut from `bytes` itself, since the iterator's items end with it.
    let mut at = 0;
    for found in attributes(bytes) {
        let length = usize::from(found.length());
        if found.kind() == kind {
            return bytes.get(at + 4..at + length);
        }
        at += length.next_multiple_of(4);
    }
    None
}

/// The names of the bits that a bitset lists.
fn bit_names(bitset: &[u8]) -> Vec<String> {
    let bits = attribute(bitset, ETHTOOL_A_BITSET_BITS).unwrap_or_default();
    attributes(bits)
        .filter_map(|bit| {
            let name = attribute(bit.value(), ETHTOOL_A_BITSET_BIT_NAME)?;
            Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitset(names: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        nest(&mut out, ETHTOOL_A_BITSET_BITS, |out| {
            for name in names {
                nest(out, ETHTOOL_A_BITSET_BITS_BIT, |out| {
                    put(out, ETHTOOL_A_BITSET_BIT_NAME, &zero_ended(name));
                });
            }
        });
        out
    }

    #[test]
    fn a_bitset_lists_its_names() {
        let names = ["tx-gso", "a", "tx-tcp-segmentation"];
        assert_eq!(bit_names(&bitset(&names)), names);
        assert!(bit_names(&bitset(&[])).is_empty());
    }

    #[test]
    fn damaged_answers_are_read_without_a_panic() {
        let whole = bitset(&["tx-gso", "tx-tcp-segmentation"]);
        for end in 0..whole.len() {
            bit_names(&whole[..end]);
            assert!(Part::read(&whole[..end]).is_none_or(|part| part.length <= end));
        }
        for byte in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[byte] ^= 0xff;
            bit_names(&damaged);
        }
    }

    #[test]
    fn attributes_are_padded_to_four_bytes_and_say_their_true_length() {
        let mut out = Vec::new();
        put(&mut out, 7, b"abc");
        assert_eq!(out.len(), 8);
        assert_eq!(out[..2], 7u16.to_ne_bytes());
        assert_eq!(attribute(&out, 7), Some(&b"abc"[..]));
        assert_eq!(attribute(&out, 8), None);
    }
}
