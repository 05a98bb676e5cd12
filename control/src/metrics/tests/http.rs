//! The server over real loopback sockets, driven by a real poll.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::ops::Range;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::metrics::{CONNECTIONS_MAX, MetricsServer, Page, REQUEST_BYTES_MAX, Response};

/// How long a test waits for something that is to happen.
const SOON: Duration = Duration::from_secs(5);

const TOKENS: Range<usize> = 100..100 + CONNECTIONS_MAX;

struct Bench {
    server: MetricsServer,
    poll: Poll,
    events: Events,
    ready: bool,
    asked: Vec<Page>,
}

impl Bench {
    fn new() -> Bench {
        let poll = Poll::new().expect("a poll");
        let any = "127.0.0.1:0".parse().expect("an address");
        let server =
            MetricsServer::bind(any, poll.registry(), Token(7), TOKENS).expect("a free port");
        Bench { server, poll, events: Events::with_capacity(16), ready: true, asked: Vec::new() }
    }

    fn connect(&self) -> TcpStream {
        let address = self.server.local_addr().expect("it has one");
        let peer = TcpStream::connect(address).expect("the server listens");
        peer.set_read_timeout(Some(SOON)).expect("a timeout");
        peer
    }

    fn turn(&mut self, wait: Duration) {
        self.poll.poll(&mut self.events, Some(wait)).expect("the poll works");
        let Bench { server, events, ready, asked, .. } = self;
        for event in &*events {
            server.on_event(event.token(), Instant::now(), &mut |page| {
                asked.push(page);
                match page {
                    Page::Metrics => Response::metrics("viaduct_ready 1\n".repeat(20_000)),
                    Page::Health => Response::well(),
                    Page::Ready if *ready => Response::well(),
                    Page::Ready => Response::unwell("worker 0 hangs"),
                }
            });
        }
    }

    fn settle(&mut self) {
        loop {
            self.turn(Duration::from_millis(20));
            if self.events.is_empty() {
                return;
            }
        }
    }

    /// Sends a request and reads to the end of the connection, the server running meanwhile.
    fn exchange(&mut self, request: &[u8]) -> String {
        let mut peer = self.connect();
        let request = request.to_vec();
        let client = std::thread::spawn(move || {
            // Of a request that is too long the server does not read all.
            let _written = peer.write_all(&request);
            let mut reply = Vec::new();
            peer.read_to_end(&mut reply).expect("a reply and its end");
            String::from_utf8(reply).expect("text")
        });
        let start = Instant::now();
        while !client.is_finished() {
            assert!(start.elapsed() < SOON, "no reply came");
            self.turn(Duration::from_millis(5));
        }
        client.join().expect("a reply")
    }

    fn get(&mut self, target: &str) -> String {
        self.exchange(format!("GET {target} HTTP/1.1\r\nHost: node\r\n\r\n").as_bytes())
    }
}

#[test]
fn serves_the_page_whole_and_closes() {
    let mut bench = Bench::new();
    for target in ["/metrics", "/metrics?name=viaduct_ready"] {
        let reply = bench.get(target);
        let (head, body) = reply.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
        assert!(head.contains("Connection: close"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        assert_eq!(body.len(), 20_000 * "viaduct_ready 1\n".len());
    }
    assert_eq!(bench.asked, [Page::Metrics, Page::Metrics]);
}

#[test]
fn an_address_in_use_is_an_error_that_names_it() {
    let bench = Bench::new();
    let address = bench.server.local_addr().expect("it has one");
    let refused = MetricsServer::bind(address, bench.poll.registry(), Token(8), 200..210);
    let error = refused.expect_err("it is in use").to_string();
    assert!(error.contains(&address.to_string()) && error.contains("[daemon] metrics"), "{error}");
}

#[test]
fn health_and_readiness_differ_when_something_is_amiss() {
    let mut bench = Bench::new();
    assert!(bench.get("/readyz").starts_with("HTTP/1.1 200 OK\r\n"));
    bench.ready = false;
    assert!(bench.get("/healthz").starts_with("HTTP/1.1 200 OK\r\n"));
    let unready = bench.get("/readyz");
    assert!(unready.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{unready}");
    assert!(unready.ends_with("\r\n\r\nworker 0 hangs\n"), "{unready}");
}

#[test]
fn other_paths_and_methods_are_refused_without_asking_the_daemon() {
    let mut bench = Bench::new();
    for target in ["/", "/metrics/", "/metricsx", "//metrics"] {
        assert!(bench.get(target).starts_with("HTTP/1.1 404 Not Found\r\n"), "{target}");
    }
    let posted = bench.exchange(b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello");
    assert!(posted.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{posted}");
    assert!(posted.contains("\r\nAllow: GET\r\n"), "{posted}");
    assert!(bench.asked.is_empty());
}

#[test]
fn garbage_is_refused_with_a_sentence() {
    let mut bench = Bench::new();
    let garbage: [&[u8]; 4] =
        [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / \0\r\n"];
    for request in garbage {
        let reply = bench.exchange(request);
        assert!(reply.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{request:?}: {reply}");
    }
    assert!(bench.asked.is_empty());
}

#[test]
fn a_request_up_to_the_limit_is_answered_and_a_longer_one_is_not() {
    let mut bench = Bench::new();
    let request = |bytes: usize| {
        let (head, end) = ("GET /healthz HTTP/1.1\r\nX: ", "\r\n\r\n");
        let filler = "x".repeat(bytes - head.len() - end.len());
        [head, &filler, end].concat().into_bytes()
    };
    let reply = bench.exchange(&request(REQUEST_BYTES_MAX));
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    for bytes in [REQUEST_BYTES_MAX + 2, 3 * REQUEST_BYTES_MAX] {
        let reply = bench.exchange(&request(bytes));
        assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    }
    let headers = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
    let reply = bench.exchange(headers.as_bytes());
    assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    peer.set_nodelay(true).expect("an option");
    for byte in b"GET /healthz HTTP/1.0\r\n\r\n" {
        assert!(bench.asked.is_empty(), "not before the last byte");
        peer.write_all(&[*byte]).expect("the socket takes it");
        bench.turn(Duration::from_millis(1));
    }
    bench.settle();
    assert_eq!(bench.asked, [Page::Health]);
}

#[test]
fn a_slow_request_is_closed_at_its_deadline() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    peer.write_all(b"GET /met").expect("the socket takes it");
    bench.settle();
    let deadline = bench.server.next_deadline().expect("somebody is to hurry");
    peer.write_all(b"rics").expect("the socket takes it");
    bench.settle();
    assert_eq!(bench.server.next_deadline(), Some(deadline), "a byte prolongs nothing");
    bench.server.expire(deadline - Duration::from_millis(1));
    assert!(bench.server.next_deadline().is_some());
    bench.server.expire(deadline);
    assert_eq!(bench.server.next_deadline(), None);
    assert_eq!(peer.read(&mut [0]).unwrap_or(0), 0, "closed");
    assert!(bench.asked.is_empty());
}

#[test]
fn a_peer_that_never_reads_its_page_is_closed_at_its_deadline() {
    let mut bench = Bench::new();
    let mut peers = Vec::new();
    for _ in 0..8 {
        let mut peer = bench.connect();
        peer.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("the socket takes it");
        bench.settle();
        peers.push(peer);
    }
    assert_eq!(bench.asked.len(), 8);
    bench.server.expire(Instant::now() + 2 * SOON);
    assert_eq!(bench.server.next_deadline(), None, "no connection is left");
}

#[test]
fn idle_connections_cannot_take_more_than_their_places() {
    let mut bench = Bench::new();
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        idle.push(bench.connect());
        bench.turn(Duration::ZERO);
    }
    bench.settle();
    let mut late = bench.connect();
    bench.settle();
    assert_eq!(late.read(&mut [0]).unwrap_or(0), 0, "closed at once");
    bench.server.expire(Instant::now() + SOON);
    assert!(bench.get("/healthz").starts_with("HTTP/1.1 200 OK\r\n"));
}
