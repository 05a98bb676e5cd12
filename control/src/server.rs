//! The control socket: who may ask, how much, and for how long. It takes requests off the wire and
//! puts replies on it; what a request means is the engine's.
//!
//! A connection is in one of three phases: it asks, it waits for the engine (an ADD may take a
//! while), or it takes its answer. While it asks or takes, its peer has [`PEER_DEADLINE`]; bytes
//! that trickle in do not prolong it. Threats T9 of the design: only root, frames of at most 1 MiB,
//! at most [`CONNECTIONS_MAX`] connections.

use std::io::{self, Write as _};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use cni_bridge::frame::{Decoder, FrameError, encode, receive};
use cni_bridge::protocol::{CallError, PROTOCOL_VERSION, Reply, Request};
use cni_bridge::spec::error::code;
use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::sockopt::socket_peercred;
use serde_json::Value;
use tracing::warn;

pub use crate::connections::ConnectionId;
use crate::connections::{ACCEPT_RETRY, Accepted, Connections, accept_waiting};

mod page;
mod socket;
#[cfg(test)]
mod tests;

pub use page::{PAGE_BYTES_MAX, page, sieved_page};
pub use socket::SocketError;
use socket::SocketFile;

/// Connections at a time: every pod of a full node may be attached at once, and some to spare.
pub const CONNECTIONS_MAX: usize = 256;

/// How long a peer may take for its request, and for reading the reply.
pub const PEER_DEADLINE: Duration = Duration::from_secs(10);

/// Code of the reply to a request of a release too far away (CNI leaves 100 and above to plugins).
pub const CODE_PROTOCOL_VERSION: u32 = 102;

/// Bytes received at a time.
const PIECE_BYTES: usize = 1 << 16;

/// A request that has come in whole.
#[derive(Debug)]
pub struct Incoming {
    /// Whom to reply to.
    pub connection: ConnectionId,
    /// What is asked, in a protocol version that we speak.
    pub request: Request,
    /// The descriptor that came beside it.
    pub descriptor: Option<OwnedFd>,
}

/// The control socket and its connections. One thread owns it, with the poll it is registered in.
#[derive(Debug)]
pub struct ControlServer {
    file: SocketFile,
    listener: UnixListener,
    listener_token: Token,
    registry: Registry,
    connections: Connections<Connection>,
    /// When to try accept(2) again after it failed.
    accept_again: Option<Instant>,
    piece: Vec<u8>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// A request is coming in.
    Asking { decoder: Decoder, descriptor: Option<OwnedFd> },
    /// The engine has the request.
    Waiting,
    /// A reply is going out.
    Answering { frame: Vec<u8>, written: usize, then: Then },
}

/// What follows a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The next request.
    Ask,
    /// The end: after a refusal nothing that follows can be understood.
    Close,
}

/// What a receive led to.
enum Step {
    /// The request is not complete.
    More,
    /// The request is complete.
    Request(Request, Option<OwnedFd>),
    /// The peer is to be told why, and the connection closed.
    Refuse(CallError),
    /// The peer has gone.
    Gone,
}

impl ControlServer {
    /// Listens on `path`, which only root can connect to. A socket left by a dead daemon is
    /// replaced. `connections` are the tokens of the connections, [`CONNECTIONS_MAX`] or fewer.
    ///
    /// # Errors
    /// [`SocketError`], among them that another daemon answers there.
    pub fn bind(
        path: &Path,
        registry: &Registry,
        listener_token: Token,
        connections: Range<usize>,
    ) -> Result<ControlServer, SocketError> {
        assert!(connections.len() <= CONNECTIONS_MAX && !connections.contains(&listener_token.0));
        let (file, listener) = SocketFile::listen(path)?;
        let mut listener = UnixListener::from_std(listener);
        let registered = |source| SocketError::step("watch", path, source);
        registry.register(&mut listener, listener_token, Interest::READABLE).map_err(registered)?;
        Ok(ControlServer {
            file,
            listener,
            listener_token,
            registry: registry.try_clone().map_err(registered)?,
            connections: Connections::new(connections),
            accept_again: None,
            piece: vec![0; PIECE_BYTES],
        })
    }

    /// The path it listens on.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Takes an event of the poll; tokens of others are ignored. Requests that have come in whole
    /// are appended to `incoming`: each is to be answered by [`ControlServer::reply`].
    pub fn on_event(&mut self, token: Token, now: Instant, incoming: &mut Vec<Incoming>) {
        if token == self.listener_token {
            self.accept(now);
        } else if let Some(id) = self.connections.id(token) {
            self.advance(id, now, incoming);
        }
    }

    /// Answers a request. Returns false when the peer has gone: nobody hears the reply. A reply
    /// that is too long for a frame is answered by an error that says so; listings are cut into
    /// [`page`]s that fit.
    pub fn reply(&mut self, id: ConnectionId, reply: &Reply, now: Instant) -> bool {
        let Some(connection) = self.connections.get(id) else {
            return false;
        };
        assert!(matches!(connection.phase, Phase::Waiting), "a request is answered once");
        let frame = encode(reply).unwrap_or_else(|error| {
            encode(&Reply::Error(unanswerable(&error))).expect("a sentence fits in a frame")
        });
        self.answer(id, frame, Then::Ask, now)
    }

    /// Closes the connections whose peers were too slow, and accepts again after a failure. Call it
    /// at [`ControlServer::next_deadline`].
    pub fn expire(&mut self, now: Instant) {
        let expired = self.connections.expire(now);
        if expired > 0 {
            warn!(
                connections = expired,
                "closed connections to {} that took longer than {PEER_DEADLINE:?}",
                self.path().display()
            );
        }
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept(now);
        }
    }

    /// When [`ControlServer::expire`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.accept_again.into_iter().chain(self.connections.next_deadline()).min()
    }

    fn accept(&mut self, now: Instant) {
        self.accept_again = None;
        let ControlServer { listener, registry, connections, .. } = self;
        let accepted = accept_waiting(
            || listener.accept(),
            |(stream, _peer)| welcome(stream, registry, connections, now),
        );
        let (token, interest) = (self.listener_token, Interest::READABLE);
        let failed = match accepted {
            Accepted::All => return,
            Accepted::Some => self.registry.reregister(&mut self.listener, token, interest).err(),
            Accepted::Failed(error) => Some(error),
        };
        if let Some(error) = failed {
            warn!("accept a connection to {}: {error}; trying again", self.path().display());
            self.accept_again = Some(now + ACCEPT_RETRY);
        }
    }

    fn advance(&mut self, id: ConnectionId, now: Instant, incoming: &mut Vec<Incoming>) {
        let ControlServer { connections, piece, .. } = self;
        let Some(connection) = connections.get(id) else {
            return;
        };
        match &connection.phase {
            Phase::Asking { .. } => match connection.read(piece) {
                Step::More => {}
                Step::Request(request, descriptor) => {
                    connection.phase = Phase::Waiting;
                    connections.set_deadline(id, None);
                    incoming.push(Incoming { connection: id, request, descriptor });
                }
                Step::Refuse(error) => {
                    let frame = encode(&Reply::Error(error)).expect("a sentence fits in a frame");
                    self.answer(id, frame, Then::Close, now);
                }
                Step::Gone => connections.remove(id),
            },
            // Were the peer gone, the write of the reply would find out.
            Phase::Waiting => {}
            Phase::Answering { .. } => {
                self.write(id, now);
            }
        }
    }

    fn answer(&mut self, id: ConnectionId, frame: Vec<u8>, then: Then, now: Instant) -> bool {
        let Some(connection) = self.connections.get(id) else {
            return false;
        };
        connection.phase = Phase::Answering { frame, written: 0, then };
        self.connections.set_deadline(id, Some(now + PEER_DEADLINE));
        self.write(id, now)
    }

    /// Writes what the socket takes; returns false when the peer has gone.
    fn write(&mut self, id: ConnectionId, now: Instant) -> bool {
        let token = self.connections.token(id);
        let Some(Connection { stream, phase }) = self.connections.get(id) else {
            return false;
        };
        let Phase::Answering { frame, written, then } = phase else {
            return true;
        };
        let all = match write_on(stream, frame, written) {
            Ok(all) => all,
            Err(_gone) => {
                self.connections.remove(id);
                return false;
            }
        };
        if all && *then == Then::Close {
            self.connections.remove(id);
            return true;
        }
        // The poll is edge-triggered; registering again tells of what has come meanwhile.
        let interest = if all { Interest::READABLE } else { Interest::WRITABLE };
        let registered = self.registry.reregister(stream, token, interest);
        if all {
            *phase = Phase::Asking { decoder: Decoder::default(), descriptor: None };
            self.connections.set_deadline(id, Some(now + PEER_DEADLINE));
        }
        if registered.is_err() {
            self.connections.remove(id);
        }
        true
    }
}

impl Connection {
    /// Reads until a request is complete or nothing more is there.
    fn read(&mut self, piece: &mut [u8]) -> Step {
        let Phase::Asking { decoder, descriptor } = &mut self.phase else {
            return Step::More;
        };
        loop {
            let received = match receive(&self.stream, piece) {
                Ok(received) => received,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Step::More,
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::InvalidData => {
                        return Step::Refuse(refusal(code::DECODE, error.to_string()));
                    }
                    _ => return Step::Gone,
                },
            };
            if received.bytes == 0 {
                return Step::Gone;
            }
            if received.descriptor.is_some() && descriptor.is_some() {
                let msg = "two descriptors came beside one request; send one, with its first byte";
                return Step::Refuse(refusal(code::DECODE, msg.to_owned()));
            }
            *descriptor = received.descriptor.or(descriptor.take());
            decoder.push(piece.get(..received.bytes).unwrap_or_default());
            let request = match decoder.decode::<Value>() {
                Ok(Some(value)) => understand(value),
                Ok(None) => continue,
                Err(error) => Err(incomprehensible(&error)),
            };
            return match request {
                Err(error) => Step::Refuse(error),
                // A descriptor beside the next request could not be told from this one's.
                Ok(_) if !decoder.is_empty() => {
                    let msg = "a request came before the reply to the one before; send one at a \
                               time on a connection";
                    Step::Refuse(refusal(code::DECODE, msg.to_owned()))
                }
                Ok(request) => Step::Request(request, descriptor.take()),
            };
        }
    }
}

/// Writes from `written` on; true when all is written, false when the socket takes no more.
fn write_on(stream: &mut UnixStream, frame: &[u8], written: &mut usize) -> io::Result<bool> {
    while let Some(rest) = frame.get(*written..).filter(|rest| !rest.is_empty()) {
        match stream.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => *written += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Keeps a new connection, or tells its peer why not.
fn welcome(
    mut stream: UnixStream,
    registry: &Registry,
    connections: &mut Connections<Connection>,
    now: Instant,
) {
    let refused = match (may_ask(&stream), connections.vacant()) {
        (Err(refused), _) => refused,
        (Ok(()), None) => {
            let msg = format!("{} connections are open already; try again", connections.len());
            refusal(code::TRY_AGAIN, msg)
        }
        (Ok(()), Some(token)) => {
            if registry.register(&mut stream, token, Interest::READABLE).is_ok() {
                let phase = Phase::Asking { decoder: Decoder::default(), descriptor: None };
                connections.insert(token, Connection { stream, phase }, now + PEER_DEADLINE);
            }
            return;
        }
    };
    // A fresh socket takes a sentence; a peer that has gone already needs none.
    let frame = encode(&Reply::Error(refused)).expect("a sentence fits in a frame");
    let _told = write_on(&mut stream, &frame, &mut 0);
}

/// Only root may ask, and whoever runs the daemon, which is root but for tests. The mode of the
/// socket says so already; this holds when somebody changes it.
fn may_ask(stream: &UnixStream) -> Result<(), CallError> {
    let refused = |peer: String| refusal(code::ENVIRONMENT, format!("{peer}; ask as root"));
    match socket_peercred(stream) {
        Ok(peer) if peer.uid.is_root() || peer.uid == rustix::process::geteuid() => Ok(()),
        Ok(peer) => Err(refused(format!("user {} may not ask viaductd", peer.uid.as_raw()))),
        Err(error) => Err(refused(format!("viaductd cannot see who asks: {error}"))),
    }
}

/// The request in a frame, if it is of a release that we understand: the version is looked at
/// first, because a call of a far release may have any shape.
fn understand(frame: Value) -> Result<Request, CallError> {
    let version = frame.get("version").and_then(Value::as_u64).ok_or_else(|| {
        refusal(code::DECODE, "a request names no protocol version; use viaduct".to_owned())
    })?;
    if version.abs_diff(u64::from(PROTOCOL_VERSION)) > 1 {
        let msg = format!(
            "the request speaks protocol version {version}, viaductd speaks {PROTOCOL_VERSION} and \
             understands its neighbours; install both from neighbouring releases"
        );
        return Err(refusal(CODE_PROTOCOL_VERSION, msg));
    }
    serde_json::from_value(frame).map_err(|error| incomprehensible(&FrameError::Malformed(error)))
}

fn incomprehensible(error: &FrameError) -> CallError {
    let mend = "ask with viaduct or viaduct-cni of a neighbouring release";
    refusal(code::DECODE, format!("{error}; {mend}"))
}

fn unanswerable(error: &FrameError) -> CallError {
    let msg = format!("the answer cannot be sent: {error}; report this, it is a fault of viaductd");
    refusal(code::GENERIC, msg)
}

fn refusal(code: u32, msg: String) -> CallError {
    CallError { code, msg, details: String::new() }
}
