//! The one way control talks to the kernel's routing tables: a small synchronous rtnetlink client.
//!
//! A [`Request`] is built without touching the kernel and carries the words its error will use.
//! [`Netlink::execute`] sends many of them in one system call, because an ADD needs about twenty
//! and its latency is the pod's start-up time. The message types come from
//! `netlink-packet-route`, whose API changes often: nothing outside this module names them.

mod address;
mod link;
mod monitor;
mod neighbor;
mod nexthop;
mod route;
mod rule;
mod towards;
mod wire;

pub use address::{Address, AddressScope};
pub use link::{AddressGeneration, Ipv4Setting, Link, LinkSettings, Veth, VethEnd};
pub use monitor::{Event, Monitor};
pub use neighbor::{Neighbor, NeighborState};
pub use nexthop::{Nexthop, NexthopRoute};
pub use route::{
    NextHop, Place, Route, RouteKind, RouteList, RouteScope, TABLE_MAIN, default_routes,
};
pub use rule::{Policy, Rule, Verdict};
pub(crate) use wire::errno_of;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE,
    NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use std::io;
use std::net::IpAddr;
use wire::{messages, parse, refused};

/// Requests of one send. Each is answered by an acknowledgement of about 1 kB of socket memory;
/// 32 of them stay well below the default receive buffer of 208 kB.
const BATCH_MAX: usize = 32;

/// Room for one answer: the kernel fills a dump's datagram up to 32 kB, and a single link with
/// all its attributes stays below that.
const RECEIVE_BYTES: usize = 64 * 1024;

/// How often a dump that changed under our eyes is repeated before we give up.
const DUMP_ATTEMPTS_MAX: usize = 10;

/// What went wrong while talking to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused the request; `detail` is its extended acknowledgement, or empty.
    #[error("{what}: {source}{detail}")]
    Refused {
        /// Operation and object, such as `add route 10.244.1.5/32 dev vd1234`.
        what: String,
        /// The kernel's error number.
        source: Errno,
        /// `": "` and the kernel's words, or empty.
        detail: String,
    },
    /// The socket itself failed.
    #[error("{what}: the netlink socket failed: {source}")]
    Socket {
        /// What was being done.
        what: String,
        /// The system call's error.
        source: io::Error,
    },
    /// A dump was interrupted by changes every time it was tried.
    #[error("{what}: the table kept changing during {DUMP_ATTEMPTS_MAX} attempts; try again")]
    Unsteady {
        /// What was being listed.
        what: String,
    },
    /// An interface that was brought up did not begin to work.
    #[error("{name} is up but not in operation after 5 s; is its other end up?")]
    NotOperational {
        /// Name of the interface.
        name: String,
    },
    /// The kernel answered with something this client cannot read.
    #[error("{what}: the kernel's answer cannot be read: {detail}")]
    Malformed {
        /// What was being done.
        what: String,
        /// What is wrong with the answer.
        detail: String,
    },
}

impl NetlinkError {
    /// The kernel's error number, if the kernel refused the request.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            NetlinkError::Refused { source, .. } => Some(*source),
            _ => None,
        }
    }
}

/// What a request may find without its being an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tolerance {
    None,
    /// The object is there already: fine for a request that only wants it there.
    Present,
    /// The object is gone already: fine for a request that only wants it gone.
    Absent,
}

impl Tolerance {
    fn accepts(self, errno: Errno) -> bool {
        match self {
            Tolerance::None => false,
            Tolerance::Present => errno == Errno::EXIST,
            // Links answer ENODEV, routes ESRCH, rules and neighbours ENOENT, addresses
            // EADDRNOTAVAIL.
            Tolerance::Absent => {
                matches!(errno, Errno::NODEV | Errno::SRCH | Errno::NOENT | Errno::ADDRNOTAVAIL)
            }
        }
    }
}

/// How an object is to be put into a table of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    /// It must not be there yet.
    Create,
    /// It replaces what is there.
    Replace,
}

impl Put {
    fn flags(self) -> u16 {
        match self {
            Put::Create => NLM_F_CREATE | NLM_F_EXCL,
            Put::Replace => NLM_F_CREATE | NLM_F_REPLACE,
        }
    }
}

/// One message to the kernel, with the words for its error.
#[derive(Debug, Clone)]
pub struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    what: String,
    tolerance: Tolerance,
}

impl Request {
    fn new(message: RouteNetlinkMessage, flags: u16, what: String) -> Request {
        Request { message, flags, what, tolerance: Tolerance::None }
    }

    /// Operation and object in words, as they stand in front of an error.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The same request, content with an object that is there already (`EEXIST`).
    pub fn if_absent(mut self) -> Request {
        self.tolerance = Tolerance::Present;
        self
    }

    /// The same request, content with an object that is gone already (`ENOENT` and its kin).
    pub fn if_present(mut self) -> Request {
        self.tolerance = Tolerance::Absent;
        self
    }
}

/// A list that the kernel is telling.
#[derive(Debug)]
struct Dump {
    sequence: u32,
    /// Nothing changed meanwhile (`NLM_F_DUMP_INTR`), as far as the kernel looks: otherwise an
    /// entry may be missing or there twice.
    steady: bool,
}

/// A synchronous rtnetlink connection to one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

impl Netlink {
    /// Connects to the network namespace the calling thread is in. The connection stays with that
    /// namespace, wherever it is used later.
    pub fn open() -> Result<Netlink, NetlinkError> {
        let connect = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            // A connected netlink socket takes messages from the kernel (port 0) only.
            socket.connect(&SocketAddr::new(0, 0))?;
            // Errors come with the kernel's words and without a copy of our message.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            // Dumps are filtered by the kernel instead of ignoring the filter (Linux 4.20).
            socket.set_netlink_get_strict_chk(true)?;
            Ok(socket)
        };
        let socket = connect().map_err(|source| socket_error("open rtnetlink", source))?;
        Ok(Netlink { socket, sequence: 0, received: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// Sends the requests in order and waits until the kernel has done them all.
    ///
    /// The kernel goes on after a refused request, so on an error the others of the same batch
    /// may have taken effect; the first error is returned.
    pub fn execute<I>(&mut self, requests: I) -> Result<(), NetlinkError>
    where
        I: IntoIterator<Item = Request>,
    {
        self.query(requests).map(drop)
    }

    /// Like [`Netlink::execute`], and returns the objects the kernel answered with, in order.
    fn query<I>(&mut self, requests: I) -> Result<Vec<RouteNetlinkMessage>, NetlinkError>
    where
        I: IntoIterator<Item = Request>,
    {
        let mut requests = requests.into_iter();
        let mut answers = Vec::new();
        loop {
            let batch: Vec<Request> = requests.by_ref().take(BATCH_MAX).collect();
            if batch.is_empty() {
                return Ok(answers);
            }
            self.exchange(batch, &mut answers)?;
        }
    }

    fn exchange(
        &mut self,
        batch: Vec<Request>,
        answers: &mut Vec<RouteNetlinkMessage>,
    ) -> Result<(), NetlinkError> {
        let first = self.sequence;
        let mut bytes = Vec::with_capacity(4096);
        let mut pending: Vec<(String, Tolerance)> = Vec::with_capacity(batch.len());
        for Request { message, flags, what, tolerance } in batch {
            self.append(&mut bytes, message, NLM_F_REQUEST | NLM_F_ACK | flags);
            pending.push((what, tolerance));
        }
        let operation = pending.first().map_or("", |(what, _)| what).to_owned();
        send(&self.socket, &bytes).map_err(|source| socket_error(&operation, source))?;

        let mut unanswered = pending.len();
        let mut refusal = None;
        while unanswered > 0 {
            self.receive().map_err(|source| socket_error(&operation, source))?;
            for part in messages(&self.received) {
                let part = part.map_err(|detail| malformed(&operation, detail))?;
                let place = part.sequence_number().wrapping_sub(first) as usize;
                // Anything else is a late answer to an exchange that failed half-way.
                let Some((what, tolerance)) = pending.get(place) else {
                    continue;
                };
                if part.message_type() != NLMSG_ERROR {
                    answers.extend(parse(&part, what));
                    continue;
                }
                unanswered -= 1;
                if let Some((source, detail)) = refused(&part)
                    && !tolerance.accepts(source)
                    && refusal.is_none()
                {
                    refusal = Some(NetlinkError::Refused { what: what.clone(), source, detail });
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Lists a table. A table that does not exist is an empty list.
    fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.dump_as(&message, what, |part| parse(part, what))
    }

    /// Lists a table, each entry as `read` makes it; `None` leaves it out. A table of a million
    /// routes never stands in memory as a million messages. `read` sees an entry again when the
    /// table changed meanwhile and the list is begun anew.
    fn dump_as<M, T>(
        &mut self,
        message: &M,
        what: &str,
        mut read: impl FnMut(&NetlinkBuffer<&[u8]>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError>
    where
        M: NetlinkSerializable + Clone,
    {
        for _ in 0..DUMP_ATTEMPTS_MAX {
            let mut list = Vec::new();
            let mut dump = self.begin_dump(message, what)?;
            while self.read_dump(&mut dump, what, |part| list.extend(read(part)))? {}
            if dump.steady {
                return Ok(list);
            }
        }
        Err(NetlinkError::Unsteady { what: what.to_owned() })
    }

    /// Asks for a list. A socket has one at a time: [`Netlink::read_dump`] it to its end.
    fn begin_dump<M>(&mut self, message: &M, what: &str) -> Result<Dump, NetlinkError>
    where
        M: NetlinkSerializable + Clone,
    {
        let dump = Dump { sequence: self.sequence, steady: true };
        let mut bytes = Vec::with_capacity(128);
        self.append(&mut bytes, message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
        send(&self.socket, &bytes).map_err(|source| socket_error(what, source))?;
        Ok(dump)
    }

    /// Reads the next datagram of a list. Returns whether there is more of it.
    fn read_dump(
        &mut self,
        dump: &mut Dump,
        what: &str,
        mut read: impl FnMut(&NetlinkBuffer<&[u8]>),
    ) -> Result<bool, NetlinkError> {
        self.receive().map_err(|source| socket_error(what, source))?;
        for part in messages(&self.received) {
            let part = part.map_err(|detail| malformed(what, detail))?;
            if part.sequence_number() != dump.sequence {
                continue;
            }
            dump.steady &= part.flags() & NLM_F_DUMP_INTR == 0;
            if !matches!(part.message_type(), NLMSG_DONE | NLMSG_ERROR) {
                read(&part);
                continue;
            }
            match refused(&part) {
                None | Some((Errno::NOENT, _)) => {}
                Some((Errno::INTR, _)) => dump.steady = false,
                Some((source, detail)) => {
                    return Err(NetlinkError::Refused { what: what.into(), source, detail });
                }
            }
            return Ok(false);
        }
        Ok(true)
    }

    fn append<M: NetlinkSerializable>(&mut self, bytes: &mut Vec<u8>, message: M, flags: u16) {
        let mut message =
            NetlinkMessage::new(Default::default(), NetlinkPayload::InnerMessage(message));
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        message.finalize();
        let start = bytes.len();
        // Messages of one send start on four-byte boundaries (NLMSG_ALIGN).
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.emit(&mut bytes[start..]);
    }

    fn receive(&mut self) -> io::Result<()> {
        self.received.clear();
        loop {
            match self.socket.recv(&mut self.received, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }
}

fn send(socket: &Socket, bytes: &[u8]) -> io::Result<()> {
    loop {
        match socket.send(bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(drop),
        }
    }
}

fn socket_error(what: &str, source: io::Error) -> NetlinkError {
    NetlinkError::Socket { what: what.to_owned(), source }
}

fn malformed(what: &str, detail: String) -> NetlinkError {
    NetlinkError::Malformed { what: what.to_owned(), detail }
}

fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The six bytes of an Ethernet address, or `None` for a link layer of another size.
fn mac_of(bytes: &[u8]) -> Option<[u8; 6]> {
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests;
