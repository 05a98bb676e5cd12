//! Serves the metrics page and the health pages over HTTP/1.1, inside the control thread's poll.
//!
//! Every connection carries one request and is closed. Whoever can reach the address may ask, so
//! everything is bounded: [`CONNECTIONS_MAX`] connections, [`REQUEST_BYTES_MAX`] bytes of request,
//! and [`DEADLINE`] from the first byte to the last.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use thiserror::Error;
use tracing::warn;

use crate::connections::{ACCEPT_RETRY, Accepted, Connections, accept_waiting};

/// Connections at a time; a scraper has one, a prober another.
pub const CONNECTIONS_MAX: usize = 64;

/// Longest request in bytes, as most web servers have it.
pub const REQUEST_BYTES_MAX: usize = 8192;

/// How long a connection may last. A scrape over a slow link takes less than a second.
const DEADLINE: Duration = Duration::from_secs(5);

/// Most header fields of a request; Prometheus and kubelet send fewer than ten.
const HEADERS_MAX: usize = 64;

/// Bytes that are read and thrown away after the reply. Closing a socket with unread bytes resets
/// it, and a reset may overtake the reply (RFC 9112 §9.6).
const DRAIN_BYTES_MAX: usize = 1 << 16;

/// The pages cannot be served.
#[derive(Debug, Error)]
#[error("serve metrics on {address}: {source}; name a free address as [daemon] metrics")]
pub struct MetricsError {
    address: SocketAddr,
    source: io::Error,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `GET /metrics`.
    Metrics,
    /// `GET /healthz`: whether the daemon lives.
    Health,
    /// `GET /readyz`: whether an ADD would be served.
    Ready,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    status: u16,
    content_type: &'static str,
    body: String,
}

impl Response {
    /// The metrics page.
    #[must_use]
    pub fn metrics(body: String) -> Response {
        Response { status: 200, content_type: "text/plain; version=0.0.4; charset=utf-8", body }
    }

    /// Health or readiness: all is well.
    #[must_use]
    pub fn well() -> Response {
        Response::text(200, "ok")
    }

    /// Health or readiness: what is amiss, in a sentence. The status is 503.
    #[must_use]
    pub fn unwell(sentence: &str) -> Response {
        Response::text(503, sentence)
    }

    fn text(status: u16, sentence: &str) -> Response {
        let body = format!("{sentence}\n");
        Response { status, content_type: "text/plain; charset=utf-8", body }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let Response { status, content_type, body } = self;
        // RFC 9110 §15.5.6: a 405 names what is allowed.
        let allow = if *status == 405 { "Allow: GET\r\n" } else { "" };
        let reason = reason_phrase(*status);
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\n\
             Content-Length: {length}\r\n{allow}Connection: close\r\n\r\n"
        );
        (head + body).into_bytes()
    }
}

/// RFC 9110 §15, and RFC 6585 §5 for 431.
fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Bad Request",
    }
}

/// The server. One thread owns it, with the poll it is registered in.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    listener_token: Token,
    registry: Registry,
    connections: Connections<Connection>,
    /// When to try accept(2) again after it failed.
    accept_again: Option<Instant>,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// The request is coming in.
    Asking(Vec<u8>),
    /// The reply is going out.
    Answering { bytes: Vec<u8>, written: usize },
    /// The reply is out; we wait for the peer to close.
    Draining { drained: usize },
}

/// What reading a request led to.
enum Step {
    /// It is not complete.
    More,
    /// It asks for a page.
    Asked(Page),
    /// It is answered without asking anybody.
    Refused(Response),
    /// The peer has gone.
    Gone,
}

impl MetricsServer {
    /// Listens on `address`. `connections` are the tokens of the connections,
    /// [`CONNECTIONS_MAX`] or fewer.
    ///
    /// # Errors
    /// The address is in use, or not one of this node.
    pub fn bind(
        address: SocketAddr,
        registry: &Registry,
        listener_token: Token,
        connections: Range<usize>,
    ) -> Result<MetricsServer, MetricsError> {
        assert!(connections.len() <= CONNECTIONS_MAX && !connections.contains(&listener_token.0));
        let listen = || -> io::Result<MetricsServer> {
            let mut listener = TcpListener::bind(address)?;
            registry.register(&mut listener, listener_token, Interest::READABLE)?;
            Ok(MetricsServer {
                listener,
                listener_token,
                registry: registry.try_clone()?,
                connections: Connections::new(connections),
                accept_again: None,
            })
        };
        listen().map_err(|source| MetricsError { address, source })
    }

    /// The address it listens on: the port is known when 0 was asked for.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Takes an event of the poll; tokens of others are ignored. `answer` is asked for at most one
    /// page.
    pub fn on_event(
        &mut self,
        token: Token,
        now: Instant,
        answer: &mut dyn FnMut(Page) -> Response,
    ) {
        if token == self.listener_token {
            self.accept(now);
        } else if let Some(id) = self.connections.id(token)
            && let Some(connection) = self.connections.get(id)
            && connection.advance(answer) == Progress::Over
        {
            self.connections.remove(id);
        } else {
            self.watch(token);
        }
    }

    /// Closes the connections that lasted too long, and accepts again after a failure. Call it at
    /// [`MetricsServer::next_deadline`].
    pub fn expire(&mut self, now: Instant) {
        self.connections.expire(now);
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept(now);
        }
    }

    /// When [`MetricsServer::expire`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.accept_again.into_iter().chain(self.connections.next_deadline()).min()
    }

    fn accept(&mut self, now: Instant) {
        self.accept_again = None;
        let MetricsServer { listener, registry, connections, .. } = self;
        let accepted = accept_waiting(
            || listener.accept(),
            |(mut stream, _peer)| {
                // One too many is closed at once: HTTP clients understand that and come again.
                let Some(token) = connections.vacant() else {
                    return;
                };
                if registry.register(&mut stream, token, Interest::READABLE).is_ok() {
                    let phase = Phase::Asking(Vec::new());
                    connections.insert(token, Connection { stream, phase }, now + DEADLINE);
                }
            },
        );
        let (token, interest) = (self.listener_token, Interest::READABLE);
        let failed = match accepted {
            Accepted::All => return,
            Accepted::Some => self.registry.reregister(&mut self.listener, token, interest).err(),
            Accepted::Failed(error) => Some(error),
        };
        if let Some(error) = failed {
            warn!("accept a connection for metrics: {error}; trying again");
            self.accept_again = Some(now + ACCEPT_RETRY);
        }
    }

    /// Waits for what the connection needs next.
    fn watch(&mut self, token: Token) {
        let Some(id) = self.connections.id(token) else {
            return;
        };
        let Some(Connection { stream, phase }) = self.connections.get(id) else {
            return;
        };
        let interest = match phase {
            Phase::Answering { .. } => Interest::WRITABLE,
            Phase::Asking(_) => return, // As it was registered.
            Phase::Draining { .. } => Interest::READABLE,
        };
        if self.registry.reregister(stream, token, interest).is_err() {
            self.connections.remove(id);
        }
    }
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It waits for its peer.
    Waits,
    /// It is to be closed.
    Over,
}

impl Connection {
    fn advance(&mut self, answer: &mut dyn FnMut(Page) -> Response) -> Progress {
        if matches!(self.phase, Phase::Asking(_)) {
            let response = match self.read() {
                Step::More => return Progress::Waits,
                Step::Gone => return Progress::Over,
                Step::Asked(page) => answer(page),
                Step::Refused(response) => response,
            };
            self.phase = Phase::Answering { bytes: response.to_bytes(), written: 0 };
        }
        if matches!(self.phase, Phase::Answering { .. }) {
            match self.write() {
                Ok(false) => return Progress::Waits,
                Err(_gone) => return Progress::Over,
                Ok(true) => self.phase = Phase::Draining { drained: 0 },
            }
        }
        self.drain()
    }

    fn read(&mut self) -> Step {
        let Connection { stream, phase: Phase::Asking(request) } = self else {
            return Step::More;
        };
        let mut piece = [0; REQUEST_BYTES_MAX];
        loop {
            // One byte more than allowed, to see that there is more.
            let room = REQUEST_BYTES_MAX + 1 - request.len();
            let piece = &mut piece[..room.min(REQUEST_BYTES_MAX)];
            let bytes = match stream.read(piece) {
                Ok(0) => return Step::Gone,
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::More,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Step::Gone,
            };
            request.extend_from_slice(&piece[..bytes]);
            match understand(request) {
                Step::More if request.len() > REQUEST_BYTES_MAX => {
                    return Step::Refused(too_large());
                }
                Step::More => {}
                understood => return understood,
            }
        }
    }

    /// True when all is written.
    fn write(&mut self) -> io::Result<bool> {
        let Connection { stream, phase: Phase::Answering { bytes, written } } = self else {
            return Ok(true);
        };
        while let Some(rest) = bytes.get(*written..).filter(|rest| !rest.is_empty()) {
            match stream.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => *written += taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        stream.shutdown(Shutdown::Write)?;
        Ok(true)
    }

    fn drain(&mut self) -> Progress {
        let Connection { stream, phase: Phase::Draining { drained } } = self else {
            return Progress::Waits;
        };
        let mut piece = [0; REQUEST_BYTES_MAX];
        while *drained < DRAIN_BYTES_MAX {
            match stream.read(&mut piece) {
                Ok(0) => return Progress::Over,
                Ok(bytes) => *drained += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Waits,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Progress::Over,
            }
        }
        Progress::Over
    }
}

/// What the bytes of a request ask for. The body of a GET means nothing (RFC 9110 §9.3.1) and is
/// not waited for.
fn understand(bytes: &[u8]) -> Step {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => return Step::More,
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Step::Refused(too_large()),
        Err(error) => {
            return Step::Refused(Response::text(400, &format!("not an HTTP request: {error}")));
        }
    }
    let target = request.path.unwrap_or_default();
    let path = target.split_once('?').map_or(target, |(path, _query)| path);
    let page = match path {
        "/metrics" => Page::Metrics,
        "/healthz" => Page::Health,
        "/readyz" => Page::Ready,
        _ => {
            let sentence = "nothing here; ask for /metrics, /healthz or /readyz";
            return Step::Refused(Response::text(404, sentence));
        }
    };
    if request.method == Some("GET") {
        Step::Asked(page)
    } else {
        Step::Refused(Response::text(405, "only GET is answered"))
    }
}

fn too_large() -> Response {
    let sentence = format!("a request of at most {REQUEST_BYTES_MAX} bytes is answered");
    Response::text(431, &sentence)
}
