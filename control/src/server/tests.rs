//! The control socket under good and bad peers, over real sockets, driven by a real poll.

use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as Peer;

use cni_bridge::protocol::{Call, Listing};
use mio::{Events, Poll};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::json;
use tempfile::TempDir;

use super::*;

/// How long a test waits for something that is to happen.
const SOON: Duration = Duration::from_secs(5);

/// A server with its poll, on a socket of its own.
struct Bench {
    server: ControlServer,
    poll: Poll,
    events: Events,
    incoming: Vec<Incoming>,
    _directory: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let directory = tempfile::tempdir().expect("a directory");
        let poll = Poll::new().expect("a poll");
        let path = directory.path().join("run/viaduct.sock");
        let server = ControlServer::bind(&path, poll.registry(), Token(0), 1..1 + CONNECTIONS_MAX)
            .expect("the socket is ours");
        let events = Events::with_capacity(16);
        Bench { server, poll, events, incoming: Vec::new(), _directory: directory }
    }

    fn connect(&self) -> Peer {
        let peer = Peer::connect(self.server.path()).expect("the server listens");
        peer.set_read_timeout(Some(SOON)).expect("a timeout");
        peer
    }

    /// Gives the server the events there are within `wait`.
    fn turn(&mut self, wait: Duration) {
        self.poll.poll(&mut self.events, Some(wait)).expect("the poll works");
        for event in &self.events {
            self.server.on_event(event.token(), Instant::now(), &mut self.incoming);
        }
    }

    /// Runs the server until `until` holds.
    fn run(&mut self, what: &str, mut until: impl FnMut(&mut Bench) -> bool) {
        let start = Instant::now();
        while !until(self) {
            assert!(start.elapsed() < SOON, "{what} did not happen");
            self.turn(Duration::from_millis(5));
        }
    }

    fn next(&mut self) -> Incoming {
        self.run("a request", |bench| !bench.incoming.is_empty());
        self.incoming.remove(0)
    }

    /// Takes events until there are none: what is not here then will not come.
    fn settle(&mut self) {
        loop {
            self.turn(Duration::from_millis(20));
            if self.events.is_empty() {
                return;
            }
        }
    }

    /// What a peer that is refused and closed is told.
    fn refusal(&mut self, mut peer: Peer) -> CallError {
        // Not the end yet: before the connection is accepted there is none either.
        self.run("a reply", |_| {
            let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            rustix::net::recv(&peer, &mut [0; 1][..], peek).is_ok()
        });
        self.run("the end of the connection", |bench| bench.server.connections.len() == 0);
        assert!(self.incoming.is_empty(), "a refused request does not reach the engine");
        let reply = read_reply(&mut peer);
        assert_eq!(peer.read(&mut [0]).unwrap_or(0), 0, "the connection is closed");
        match reply {
            Reply::Error(error) => error,
            other => panic!("{other:?} is no refusal"),
        }
    }
}

fn read_reply(peer: &mut Peer) -> Reply {
    let mut length = [0; 4];
    peer.read_exact(&mut length).expect("a reply comes");
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    peer.read_exact(&mut body).expect("a reply is whole");
    serde_json::from_slice(&body).expect("a reply is JSON")
}

fn list(listing: Listing) -> Vec<u8> {
    let request = Request { version: PROTOCOL_VERSION, call: Call::List(listing) };
    encode(&request).expect("a request is short")
}

fn send_beside(peer: &Peer, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    let sent = sendmsg(peer, &[IoSlice::new(bytes)], &mut control, SendFlags::empty());
    assert_eq!(sent.expect("the socket takes a request"), bytes.len());
}

#[test]
fn requests_and_replies_take_turns_on_a_connection() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    for listing in [Listing::Pods, Listing::Routes, Listing::Status] {
        peer.write_all(&list(listing)).expect("the socket takes it");
        let incoming = bench.next();
        assert_eq!(incoming.request.call, Call::List(listing));
        assert!(incoming.descriptor.is_none());
        assert!(bench.server.reply(incoming.connection, &Reply::Done, Instant::now()));
        assert_eq!(read_reply(&mut peer), Reply::Done);
    }
    drop(peer);
    bench.run("the end of the connection", |bench| bench.server.connections.len() == 0);
}

#[test]
fn an_answer_may_come_late_and_a_request_may_already_wait_behind_it() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    peer.write_all(&list(Listing::Pods)).expect("the socket takes it");
    let first = bench.next();
    // Ahead of its turn, but not read before the answer: so it is the next request.
    peer.write_all(&list(Listing::Drops)).expect("the socket takes it");
    bench.settle();
    bench.server.expire(Instant::now() + 100 * PEER_DEADLINE);
    assert!(bench.incoming.is_empty());
    assert!(bench.server.reply(first.connection, &Reply::Done, Instant::now()));
    assert_eq!(read_reply(&mut peer), Reply::Done);
    assert_eq!(bench.next().request.call, Call::List(Listing::Drops));
}

#[test]
fn two_requests_in_one_piece_are_refused() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    let both = [list(Listing::Pods), list(Listing::Pods)].concat();
    peer.write_all(&both).expect("the socket takes it");
    assert!(bench.refusal(peer).msg.contains("one at a time"));
}

#[test]
fn a_torn_request_is_put_together() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    for byte in list(Listing::Ports) {
        assert!(bench.incoming.is_empty(), "not before the last byte");
        peer.write_all(&[byte]).expect("the socket takes it");
        bench.settle_one();
    }
    assert_eq!(bench.next().request.call, Call::List(Listing::Ports));
}

impl Bench {
    /// One look, without waiting.
    fn settle_one(&mut self) {
        self.turn(Duration::ZERO);
    }
}

#[test]
fn a_peer_that_leaves_in_the_middle_of_a_request_is_forgotten() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    peer.write_all(&list(Listing::Pods)[..9]).expect("the socket takes it");
    bench.run("the connection", |bench| bench.server.connections.len() == 1);
    drop(peer);
    bench.run("the end of the connection", |bench| bench.server.connections.len() == 0);
    assert!(bench.incoming.is_empty());
}

#[test]
fn an_announced_length_above_the_limit_is_refused_before_its_bytes_come() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    peer.write_all(&u32::MAX.to_be_bytes()).expect("the socket takes it");
    let error = bench.refusal(peer);
    assert_eq!(error.code, code::DECODE);
    assert!(error.msg.contains("4294967295") && error.msg.contains("1048576"), "{}", error.msg);
}

#[test]
fn what_is_no_json_or_no_request_is_refused_with_a_sentence() {
    let bodies: [&[u8]; 6] = [
        b"\xff\xfe garbage",
        b"",
        b"[]",
        b"{\"call\":{\"list\":\"pods\"}}",
        b"{\"version\":1,\"call\":{\"fly\":\"away\"}}",
        b"{\"version\":-1,\"call\":{\"list\":\"pods\"}}",
    ];
    for body in bodies {
        let mut bench = Bench::new();
        let mut peer = bench.connect();
        let length = u32::try_from(body.len()).expect("it is short").to_be_bytes();
        peer.write_all(&[&length, body].concat()).expect("the socket takes it");
        let error = bench.refusal(peer);
        assert_eq!(error.code, code::DECODE, "{}", String::from_utf8_lossy(body));
        assert!(!error.msg.is_empty());
    }
    // Deep nesting must not exhaust the stack.
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    let deep = vec![b'['; 100_000];
    let length = 100_000_u32.to_be_bytes();
    let writer = std::thread::spawn(move || {
        // The server may close before it has read all of it.
        let _written = peer.write_all(&[&length[..], &deep].concat());
        peer
    });
    bench.run("the connection", |bench| bench.server.connections.len() == 1);
    bench.run("the end of the connection", |bench| bench.server.connections.len() == 0);
    writer.join().expect("the writer ends");
    assert!(bench.incoming.is_empty());
}

#[test]
fn neighbouring_versions_are_understood_and_farther_ones_told_both_numbers() {
    for (version, understood) in
        [(PROTOCOL_VERSION + 1, true), (PROTOCOL_VERSION - 1, true), (PROTOCOL_VERSION + 2, false)]
    {
        let mut bench = Bench::new();
        let mut peer = bench.connect();
        // A far release may have calls of any shape.
        let call = if understood { json!({"list": "pods"}) } else { json!(["what", "is", "this"]) };
        let request = encode(&json!({"version": version, "call": call})).expect("it is short");
        peer.write_all(&request).expect("the socket takes it");
        if understood {
            assert_eq!(bench.next().request.version, version);
        } else {
            let error = bench.refusal(peer);
            assert_eq!(error.code, CODE_PROTOCOL_VERSION);
            let both = [version, PROTOCOL_VERSION].map(|number| format!("{number}"));
            assert!(both.iter().all(|number| error.msg.contains(number)), "{}", error.msg);
        }
    }
}

#[test]
fn a_slow_request_is_closed_at_its_deadline_however_it_trickles() {
    let mut bench = Bench::new();
    let start = Instant::now();
    let mut slow = bench.connect();
    let idle = bench.connect();
    bench.run("both connections", |bench| bench.server.connections.len() == 2);
    let before = bench.server.next_deadline().expect("somebody is to hurry");
    assert!(before >= start + PEER_DEADLINE && before <= Instant::now() + PEER_DEADLINE);
    bench.server.expire(before - Duration::from_millis(1));
    assert_eq!(bench.server.connections.len(), 2);
    slow.write_all(&list(Listing::Pods)[..5]).expect("the socket takes it");
    bench.settle();
    assert_eq!(bench.server.next_deadline(), Some(before), "a byte prolongs nothing");
    bench.server.expire(Instant::now() + PEER_DEADLINE);
    assert_eq!(bench.server.connections.len(), 0);
    assert_eq!(bench.server.next_deadline(), None);
    for mut peer in [slow, idle] {
        assert_eq!(peer.read(&mut [0]).unwrap_or(0), 0, "closed");
    }
}

#[test]
fn a_peer_that_does_not_read_its_reply_is_closed_at_its_deadline() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    peer.write_all(&list(Listing::Pods)).expect("the socket takes it");
    let id = bench.next().connection;
    let long = Reply::Listing(json!("x".repeat(1_000_000)));
    assert!(bench.server.reply(id, &long, Instant::now()));
    bench.settle();
    assert_eq!(bench.server.connections.len(), 1, "the rest of the reply waits");
    bench.server.expire(Instant::now() + PEER_DEADLINE);
    assert_eq!(bench.server.connections.len(), 0);
}

#[test]
fn a_long_reply_arrives_whole_and_one_that_is_too_long_says_so() {
    let mut bench = Bench::new();
    let peer = bench.connect();
    for (length, fits) in [(1_000_000, true), (1_100_000, false)] {
        (&peer).write_all(&list(Listing::Routes)).expect("the socket takes it");
        let id = bench.next().connection;
        let long = Reply::Listing(json!("x".repeat(length)));
        let mut reading = peer.try_clone().expect("a second handle");
        let reader = std::thread::spawn(move || read_reply(&mut reading));
        assert!(bench.server.reply(id, &long, Instant::now()));
        bench.run("the reply", |_| reader.is_finished());
        match reader.join().expect("a reply") {
            reply if fits => assert!(reply == long),
            Reply::Error(error) => assert!(error.msg.contains("1048576"), "{}", error.msg),
            _ => panic!("a reply above the limit was sent"),
        }
    }
}

#[test]
fn a_reply_to_a_peer_that_has_gone_is_nobodys_and_its_place_is_free() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    peer.write_all(&list(Listing::Pods)).expect("the socket takes it");
    let id = bench.next().connection;
    drop(peer);
    bench.settle();
    assert!(!bench.server.reply(id, &Reply::Done, Instant::now()));
    assert_eq!(bench.server.connections.len(), 0);
    let _next = bench.connect();
    bench.run("the next connection", |bench| bench.server.connections.len() == 1);
    assert!(!bench.server.reply(id, &Reply::Done, Instant::now()), "not to a stranger");
}

#[test]
fn the_descriptor_beside_a_request_is_the_one_that_was_sent() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    for _ in 0..2 {
        let file = tempfile::tempfile().expect("a file");
        send_beside(&peer, &list(Listing::Pods), &[file.as_fd()]);
        let incoming = bench.next();
        let received = incoming.descriptor.expect("a descriptor came");
        let [sent, received] = [file.as_fd(), received.as_fd()]
            .map(|fd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)));
        assert_eq!(sent, received);
        assert!(bench.server.reply(incoming.connection, &Reply::Done, Instant::now()));
        read_reply(&mut peer);
    }
    // A request without one does not get that of the request before.
    peer.write_all(&list(Listing::Pods)).expect("the socket takes it");
    assert!(bench.next().descriptor.is_none());
}

#[test]
fn a_received_descriptor_is_closed_on_exec() {
    let mut bench = Bench::new();
    let peer = bench.connect();
    let file = tempfile::tempfile().expect("a file");
    send_beside(&peer, &list(Listing::Pods), &[file.as_fd()]);
    let descriptor = bench.next().descriptor.expect("a descriptor came");
    let flags = rustix::io::fcntl_getfd(&descriptor).expect("it is open");
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn descriptors_beside_both_halves_of_a_request_are_refused() {
    let mut bench = Bench::new();
    let peer = bench.connect();
    let file = tempfile::tempfile().expect("a file");
    let request = list(Listing::Pods);
    let (first, second) = request.split_at(6);
    send_beside(&peer, first, &[file.as_fd()]);
    send_beside(&peer, second, &[file.as_fd()]);
    assert!(bench.refusal(peer).msg.contains("two descriptors"));
}

#[test]
fn many_descriptors_beside_a_request_are_refused() {
    let mut bench = Bench::new();
    let peer = bench.connect();
    let file = tempfile::tempfile().expect("a file");
    send_beside(&peer, &list(Listing::Pods), &[file.as_fd(); 8]);
    assert!(bench.refusal(peer).msg.contains("more than one descriptor"));
}

#[test]
fn the_257th_connection_is_told_to_try_again_and_serves_when_another_leaves() {
    let mut bench = Bench::new();
    let mut peers = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        peers.push(bench.connect());
        bench.settle_one();
    }
    bench.run("all connections", |bench| bench.server.connections.len() == CONNECTIONS_MAX);
    let mut late = bench.connect();
    bench.settle();
    let Reply::Error(error) = read_reply(&mut late) else { panic!("one too many is served") };
    assert_eq!(error.code, code::TRY_AGAIN);
    assert_eq!(bench.server.connections.len(), CONNECTIONS_MAX);
    peers.pop();
    bench.run("a free place", |bench| bench.server.connections.len() < CONNECTIONS_MAX);
    let mut next = bench.connect();
    next.write_all(&list(Listing::Pods)).expect("the socket takes it");
    bench.next();
}

#[test]
fn a_storm_of_connections_is_taken_in_several_turns() {
    let mut bench = Bench::new();
    let peers: Vec<Peer> = (0..200).map(|_| bench.connect()).collect();
    bench.run("all connections", |bench| bench.server.connections.len() == peers.len());
}

#[test]
fn another_user_is_refused_even_where_the_mode_of_the_socket_lets_them_in() {
    if !rustix::process::geteuid().is_root() {
        return; // Only root can become somebody else.
    }
    let mut bench = Bench::new();
    let path = bench.server.path().to_owned();
    for directory in path.ancestors().skip(1).take(2) {
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory, open).expect("the directory is ours");
    }
    let open = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(&path, open).expect("the socket is ours");
    let connecting = std::thread::spawn(move || {
        // Of this thread alone (setuid(2), "C library/kernel differences").
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_uid(nobody).expect("root may become nobody");
        let peer = Peer::connect(path).expect("the mode allows it");
        peer.set_read_timeout(Some(SOON)).expect("a timeout");
        peer
    });
    let mut peer = connecting.join().expect("a connection");
    bench.settle();
    let Reply::Error(error) = read_reply(&mut peer) else { panic!("nobody was served") };
    assert!(error.msg.contains("65534") && error.msg.contains("root"), "{}", error.msg);
    assert_eq!(bench.server.connections.len(), 0);
}

mod file {
    //! The socket's file.

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("it exists").permissions().mode() & 0o7777
    }

    #[test]
    fn only_the_owner_can_connect_and_the_file_goes_with_the_server() {
        let bench = Bench::new();
        let path = bench.server.path().to_owned();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("it has a directory")), 0o700);
        let directory = bench._directory;
        drop(bench.server);
        assert!(!path.exists());
        drop(directory);
    }

    #[test]
    fn a_daemon_that_answers_keeps_its_socket() {
        let bench = Bench::new();
        let again = SocketFile::listen(bench.server.path());
        assert!(matches!(again, Err(SocketError::Answered { .. })), "{again:?}");
        bench.connect();
    }

    #[test]
    fn a_socket_left_by_a_dead_daemon_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("viaduct.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        assert!(path.exists());
        let (_file, _listener) = SocketFile::listen(&path).expect("nobody answers there");
        Peer::connect(&path).expect("we do");
    }

    #[test]
    fn what_is_no_socket_is_never_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("viaduct.sock");
        std::fs::write(&path, "precious").expect("a file");
        let refused = SocketFile::listen(&path);
        assert!(matches!(refused, Err(SocketError::NotASocket { .. })), "{refused:?}");
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "precious");
        let link = directory.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        let refused = SocketFile::listen(&link);
        assert!(matches!(refused, Err(SocketError::NotASocket { .. })), "{refused:?}");
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused_unless_it_is_sticky() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("viaduct.sock");
        for (mode, allowed) in [(0o777, false), (0o770, false), (0o1777, true), (0o755, true)] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(directory.path(), permissions).expect("it is ours");
            assert_eq!(SocketFile::listen(&path).is_ok(), allowed, "mode {mode:o}");
        }
    }

    #[test]
    fn a_file_that_another_daemon_made_meanwhile_is_left_to_it() {
        let bench = Bench::new();
        let path = bench.server.path().to_owned();
        std::fs::rename(&path, path.with_extension("old")).expect("it is there");
        let (_other, _listener) = SocketFile::listen(&path).expect("the name is free");
        drop(bench.server);
        assert!(path.exists());
        Peer::connect(&path).expect("the other daemon listens");
    }

    #[test]
    fn a_path_that_is_too_long_is_an_error_that_names_it() {
        let path = Path::new("/tmp").join("x".repeat(200));
        let error = SocketFile::listen(&path).expect_err("108 bytes is the limit");
        assert!(error.to_string().contains("xxx"), "{error}");
    }
}
