//! The blocking client of the daemon: one connection, one request, one reply, one deadline. The
//! shim and the command line use it.

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};

use crate::frame::{self, Decoder, FrameError};
use crate::protocol::{Call, PROTOCOL_VERSION, Reply, Request};

/// How long a call may take altogether, unless the caller says otherwise. An ADD takes
/// milliseconds; an ADD that waits for an earlier removal, at most a second or two.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Bytes received at a time.
const PIECE_BYTES: usize = 1 << 16;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The path does not fit in a socket address (108 bytes).
    #[error("socket path {socket} is too long; choose one of at most 107 bytes")]
    Path {
        /// The path.
        socket: PathBuf,
    },
    /// Nobody listens there: nothing was asked.
    #[error("viaductd does not answer at {socket}: {source}; start it, or name its socket")]
    Unreachable {
        /// The path.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The deadline passed after the connection was made: the call may or may not take effect.
    #[error("viaductd at {socket} gave no reply within {deadline:?}; look at its log")]
    Deadline {
        /// The path.
        socket: PathBuf,
        /// The deadline that passed.
        deadline: Duration,
    },
    /// The connection broke: the call may or may not take effect.
    #[error("viaductd at {socket} broke the connection off: {source}; look at its log")]
    Broken {
        /// The path.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The request fits in no frame: nothing was asked.
    #[error("the request to viaductd at {socket} cannot be sent: {source}; ask for less at once")]
    Request {
        /// The path.
        socket: PathBuf,
        /// What is wrong with it.
        source: FrameError,
    },
    /// The reply does not fit the protocol: the call may or may not take effect.
    #[error(
        "what answers at {socket} is no viaductd of a neighbouring release ({source}); name \
         viaductd's socket, or install all of Viaduct from one release"
    )]
    Reply {
        /// The path.
        socket: PathBuf,
        /// What is wrong with it.
        source: FrameError,
    },
}

/// Asks the daemon at `socket` and waits for its reply for at most `deadline` in total.
/// `descriptor` travels beside the first byte of the request.
///
/// # Errors
/// [`ClientError`]; an error that the daemon replies is no error here.
pub fn ask(
    socket: &Path,
    call: Call,
    descriptor: Option<BorrowedFd<'_>>,
    deadline: Duration,
) -> Result<Reply, ClientError> {
    let request = frame::encode(&Request { version: PROTOCOL_VERSION, call })
        .map_err(|source| ClientError::Request { socket: socket.to_owned(), source })?;
    let clock = Clock { start: Instant::now(), deadline };
    let mut stream = open(socket, &clock)?;
    let told = |source: io::Error| clock.failure(socket, source);
    send(&mut stream, &request, descriptor, &clock).map_err(told)?;
    let mut decoder = Decoder::default();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let left = clock.left().map_err(told)?;
        set_socket_timeout(&stream, Timeout::Recv, Some(left)).map_err(|e| told(e.into()))?;
        match frame::receive(&stream, &mut piece) {
            Ok(received) if received.bytes == 0 => {
                return Err(told(io::ErrorKind::UnexpectedEof.into()));
            }
            Ok(received) => decoder.push(piece.get(..received.bytes).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(told(error)),
        }
        match decoder.decode() {
            Ok(None) => {}
            Ok(Some(reply)) => return Ok(reply),
            Err(source) => return Err(ClientError::Reply { socket: socket.to_owned(), source }),
        }
    }
}

/// One deadline over all the waits of a call.
struct Clock {
    start: Instant,
    deadline: Duration,
}

impl Clock {
    /// What is left, never zero (a socket timeout of zero means none).
    fn left(&self) -> io::Result<Duration> {
        self.deadline
            .checked_sub(self.start.elapsed())
            .filter(|left| *left >= Duration::from_millis(1))
            .ok_or_else(|| io::ErrorKind::TimedOut.into())
    }

    fn failure(&self, socket: &Path, source: io::Error) -> ClientError {
        let socket = socket.to_owned();
        match source.kind() {
            // A socket timeout shows as `WouldBlock`.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientError::Deadline { socket, deadline: self.deadline }
            }
            _ => ClientError::Broken { socket, source },
        }
    }
}

fn open(path: &Path, clock: &Clock) -> Result<UnixStream, ClientError> {
    let socket = || path.to_owned();
    let address = SocketAddrUnix::new(path).map_err(|_| ClientError::Path { socket: socket() })?;
    let connected = || -> io::Result<UnixStream> {
        let stream =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // unix(7): connecting blocks while the backlog is full, for the send timeout.
        set_socket_timeout(&stream, Timeout::Send, Some(clock.left()?))?;
        connect(&stream, &address)?;
        Ok(stream.into())
    };
    connected().map_err(|source| ClientError::Unreachable { socket: socket(), source })
}

fn send(
    stream: &mut UnixStream,
    request: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
    clock: &Clock,
) -> io::Result<()> {
    set_socket_timeout(&*stream, Timeout::Send, Some(clock.left()?))?;
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
        assert!(fits, "the space was made for one descriptor");
    }
    // Without NOSIGNAL a daemon that has just died would kill the caller by SIGPIPE.
    let sent = sendmsg(&*stream, &[IoSlice::new(request)], &mut control, SendFlags::NOSIGNAL)?;
    // Each further write has the same timeout; a daemon that reads nothing for that long is hung.
    let rest = request.get(sent..).unwrap_or_default();
    stream.write_all(rest)
}

#[cfg(test)]
mod tests;
