//! The kernel's own flows, on a real kernel: they are listed with both directions and deleted one
//! by one, and a client that never rests finds a new pod when, and only when, its flow is purged.
//!
//! A client, a node with rules that translate, and two pods, each a network namespace.

mod namespace;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use control::ctnetlink::{KernelFlow, KernelFlows, Purge, Selection, Serving};
use dataplane::conntrack::{Endpoint, FlowKey, Transport};
use dataplane::host_ports::{HostAddress, HostPort, HostPorts, Masquerade, Target};
use dataplane::port::PortId;
use namespace::Namespace;

/// How long a datagram may take before the test takes it for lost.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long a condition may take to come true.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the client asks, and what serves.
const HOST_PORT: u16 = 8080;
const CONTAINER_PORT: u16 = 80;

const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const CLIENT: [&str; 2] = ["192.0.2.9", "2001:db8::9"];
/// Of each pod the last number.
const PODS: [&str; 2] = ["10.9.0.", "fd09::"];

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
    }
}

struct Site {
    client: Namespace,
    node: Namespace,
    pods: Namespace,
}

impl Site {
    /// The pods' addresses end with 2 and 3. Nothing is translated yet.
    fn new() -> Site {
        let site =
            Site { client: Namespace::new(), node: Namespace::new(), pods: Namespace::new() };
        let Site { client, node, pods } = &site;
        let pid = std::process::id();
        for namespace in [client, node, pods] {
            // Else IPv6 begins after a second, when nobody has claimed the same address.
            namespace.run("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        }
        for (other, name) in [(client, "c"), (pods, "p")] {
            node.run(&format!("ip link add {name} type veth peer name peer-{pid}"));
            other.run("ip link set lo up");
            let target = format!("/proc/{pid}/fd/{}", other.0.as_raw_fd());
            node.run(&format!("ip link set peer-{pid} netns {target}"));
            other.run(&format!("ip link set peer-{pid} name eth0 up"));
            node.run(&format!("ip link set {name} up"));
        }
        node.run("ip link set lo up");
        for (family, length) in [(0, 24), (1, 64)] {
            let (nodes, clients, prefix) = (NODE[family], CLIENT[family], PODS[family]);
            node.run(&format!("ip address add {nodes}/{length} dev c nodad"));
            client.run(&format!("ip address add {clients}/{length} dev eth0 nodad"));
            node.run(&format!("ip address add {prefix}1/{length} dev p nodad"));
            for last in [2, 3] {
                pods.run(&format!("ip address add {prefix}{last}/{length} dev eth0 nodad"));
            }
            pods.run(&format!("ip route add default via {prefix}1"));
        }
        node.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        node.run("nft add table inet t");
        // The kernel follows flows while a rule asks for it.
        node.run("nft add chain inet t track { type filter hook prerouting priority 0 ; }");
        node.run("nft add rule inet t track ct state new accept");
        node.run("nft add chain inet t pre { type nat hook prerouting priority -100 ; }");
        site
    }

    /// Has new flows lead to this pod.
    fn lead_to(&self, last: u8) {
        self.lead_nowhere();
        for (ip, node, prefix) in [("ip", NODE[0], PODS[0]), ("ip6", NODE[1], PODS[1])] {
            let open = if ip == "ip6" { "[" } else { "" };
            let close = if ip == "ip6" { "]" } else { "" };
            self.node.run(&format!(
                "nft add rule inet t pre {ip} daddr {node} meta l4proto {{ tcp, udp }} \
                 th dport {HOST_PORT} dnat {ip} to {open}{prefix}{last}{close}:{CONTAINER_PORT}",
            ));
        }
    }

    fn lead_nowhere(&self) {
        self.node.run("nft flush chain inet t pre");
    }

    /// Somebody else than the kernel carries TCP over IPv4 to pod 2, as workers do: its connection
    /// tracking does not see it.
    fn carry(&self) {
        let (node, port, to) = (NODE[0], HOST_PORT, CONTAINER_PORT);
        let pod = pod(0, 2);
        for command in [
            "table inet w".to_owned(),
            "chain inet w raw { type filter hook prerouting priority -300 ; }".to_owned(),
            "chain inet w post { type filter hook postrouting priority 300 ; }".to_owned(),
            format!(
                "rule inet w raw iifname c ip daddr {node} tcp dport {port} notrack \
                 ip daddr set {pod} tcp dport set {to}"
            ),
            format!("rule inet w raw iifname p ip saddr {pod} tcp sport {to} notrack"),
            format!(
                "rule inet w post iifname p ip saddr {pod} tcp sport {to} \
                 ip saddr set {node} tcp sport set {port}"
            ),
        ] {
            self.node.run(&format!("nft add {command}"));
        }
    }

    /// And the kernel again.
    fn carry_no_more(&self) {
        self.node.run("nft delete table inet w");
    }

    fn flows(&self) -> KernelFlows {
        self.node.visit(KernelFlows::open).expect("open the kernel's flows")
    }

    fn client_udp(&self, family: usize, port: u16) -> UdpSocket {
        let from = (ip(CLIENT[family]), port);
        let socket = self.client.visit(|| UdpSocket::bind(from)).expect("bind the client");
        socket.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        socket.connect((ip(NODE[family]), HOST_PORT)).expect("connect the client");
        socket
    }

    /// A server that answers with the last number of its address.
    fn serve_udp(&self, family: usize, last: u8) -> Server {
        let at = (pod(family, last), CONTAINER_PORT);
        let socket = self.pods.visit(|| UdpSocket::bind(at)).expect("bind a server");
        socket.set_read_timeout(Some(Duration::from_millis(10))).expect("set a timeout");
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = is_over.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !seen.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    // Its client may be gone by now.
                    let _ = socket.send_to(&[last], from);
                }
            }
        });
        Server { is_over, thread: Some(thread) }
    }
}

struct Server {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn pod(family: usize, last: u8) -> IpAddr {
    ip(&format!("{}{last}", PODS[family]))
}

fn end(address: IpAddr, port: u16) -> Endpoint {
    Endpoint { address, port }
}

/// Who answers a datagram, by its last number; `None` if nobody does.
fn ask(client: &UdpSocket) -> Option<u8> {
    let mut answer = [0];
    // An ICMP error that came meanwhile is told by the next call.
    for _ in 0..3 {
        match client.send(b"?").and_then(|_| client.recv(&mut answer)) {
            Ok(_) => return Some(answer[0]),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(_) => return None,
        }
    }
    None
}

/// Who answers, once somebody does: neighbors may have to be found first.
fn answer(client: &UdpSocket) -> Option<u8> {
    let end = Instant::now() + DEADLINE;
    std::iter::repeat_with(|| ask(client)).find(|who| who.is_some() || Instant::now() > end)?
}

fn translated(transport: Transport, family: usize, client: u16, last: u8) -> [FlowKey; 2] {
    let client = end(ip(CLIENT[family]), client);
    let served = end(pod(family, last), CONTAINER_PORT);
    let key = |src, dst| FlowKey { transport, src, dst };
    [key(client, end(ip(NODE[family]), HOST_PORT)), key(served, client)]
}

fn keys(flow: &KernelFlow) -> [FlowKey; 2] {
    [flow.original, flow.reply]
}

#[test]
fn flows_are_listed_with_both_directions_and_purged_one_by_one() {
    let site = Site::new();
    site.lead_to(2);
    let mut flows = site.flows();
    assert_eq!(flows.dump().expect("list an empty table"), []);
    let mut expected = Vec::new();
    let mut held = Vec::new();
    for family in [0, 1] {
        let _server = site.serve_udp(family, 2);
        for port in [5001, 5002] {
            assert_eq!(answer(&site.client_udp(family, port)), Some(2), "family {family}");
            expected.push(translated(Transport::Udp, family, port, 2));
        }
        let at = (pod(family, 2), CONTAINER_PORT);
        let listener = site.pods.visit(|| TcpListener::bind(at)).expect("listen");
        let to = SocketAddr::new(ip(NODE[family]), HOST_PORT);
        let stream = site.client.visit(|| TcpStream::connect_timeout(&to, DEADLINE));
        let stream = stream.expect("connect through the host port");
        let port = stream.local_addr().expect("its address").port();
        expected.push(translated(Transport::Tcp, family, port, 2));
        held.push((listener, stream));
    }
    // A flow of ICMP, which is not followed.
    site.client.run(&format!("ping -c 1 -W 5 {}", NODE[0]));

    let mut found = flows.dump().expect("list the flows");
    let sorted = |mut list: Vec<[FlowKey; 2]>| {
        list.sort_by_key(|[original, _]| (original.transport, original.src));
        list
    };
    let listed = |found: &[KernelFlow]| sorted(found.iter().map(keys).collect());
    assert_eq!(listed(&found), sorted(expected.clone()));
    assert!(found.iter().all(KernelFlow::is_destination_translated));
    assert!(found.iter().all(KernelFlow::is_answered));

    // One by its key and number: and not what came after it with the same key.
    let victim = found.pop().expect("six flows");
    let mistaken = KernelFlow { id: victim.id ^ 1, ..victim };
    assert!(!flows.delete(&mistaken).expect("look for another one"));
    assert_eq!(flows.dump().expect("list the flows").len(), 6);
    assert!(flows.delete(&victim).expect("delete one"));
    assert!(!flows.delete(&victim).expect("look for it again"));
    assert_eq!(listed(&flows.dump().expect("list the flows")), listed(&found));

    // Many by what they are.
    let is_one = |flow: &KernelFlow| flow.original.src.port == 5001;
    let chosen = found.iter().filter(|flow| is_one(flow)).count();
    assert!(chosen > 0 && chosen < found.len());
    assert_eq!(flows.purge(is_one).expect("purge") as usize, chosen);
    found.retain(|flow| !is_one(flow));
    assert_eq!(listed(&flows.dump().expect("list the flows")), listed(&found));
    assert_eq!(flows.purge(is_one).expect("purge again"), 0);
}

/// The kernel itself leaves out what was not asked for: else a purge would read all there is.
#[test]
fn a_selection_sees_the_flows_that_were_asked_at_a_port_and_no_others() {
    let site = Site::new();
    site.lead_to(2);
    let _servers = [site.serve_udp(0, 2), site.serve_udp(1, 2)];
    for family in [0, 1] {
        assert_eq!(answer(&site.client_udp(family, 5001)), Some(2));
    }
    let mut flows = site.flows();
    let mut seen = |transport, is_v4, port| {
        let mut seen = Vec::new();
        let selection = Selection::Asked { transport, is_v4, port };
        let purged = flows.purge_among(selection, |flow| {
            seen.push(keys(flow));
            false
        });
        assert_eq!(purged.expect("look at the selected"), 0);
        seen
    };
    assert_eq!(seen(Transport::Udp, true, HOST_PORT), [translated(Transport::Udp, 0, 5001, 2)]);
    assert_eq!(seen(Transport::Udp, false, HOST_PORT), [translated(Transport::Udp, 1, 5001, 2)]);
    assert!(seen(Transport::Tcp, true, HOST_PORT).is_empty());
    assert!(seen(Transport::Udp, true, CONTAINER_PORT).is_empty());
}

/// The black hole: whoever asked before there was a pod, and goes on asking.
#[test]
fn a_client_that_never_rests_finds_its_pod_after_a_purge_and_not_without() {
    let site = Site::new();
    let mut flows = site.flows();
    for family in [0, 1] {
        let client = site.client_udp(family, 5003);
        let _servers = [site.serve_udp(family, 2), site.serve_udp(family, 3)];
        let purge = |flows: &mut KernelFlows, last| {
            let serving = end(pod(family, last), CONTAINER_PORT);
            let asked = end(ip(NODE[family]), HOST_PORT);
            let is_stale =
                |flow: &KernelFlow| flow.original.dst == asked && flow.reply.src != serving;
            flows.purge(is_stale).expect("purge")
        };
        site.lead_nowhere();
        assert_eq!(ask(&client), None, "nobody serves");
        site.lead_to(2);
        assert_eq!(ask(&client), None, "family {family}: the old flow leads to the node");
        assert_eq!(purge(&mut flows, 2), 1);
        assert_eq!(answer(&client), Some(2), "family {family}");
        assert_eq!(purge(&mut flows, 2), 0, "it is right now");
        site.lead_to(3);
        assert_eq!(answer(&client), Some(2), "family {family}: the old flow leads to the old pod");
        assert_eq!(purge(&mut flows, 3), 1);
        assert_eq!(answer(&client), Some(3), "family {family}");
    }
}

/// The same by the thread, which is told of a change as the engine tells it, again and again.
#[test]
fn the_thread_leads_a_client_to_each_new_pod_and_no_other_client_astray() {
    const ROUNDS: u8 = 20;
    let site = Site::new();
    let purge = site.node.visit(Purge::start).expect("start the thread");
    let _servers = [site.serve_udp(0, 2), site.serve_udp(0, 3)];
    let client = site.client_udp(0, 5004);
    site.lead_to(2);
    assert_eq!(answer(&client), Some(2));
    // Somebody whose flow merely passes through the node, to the same number elsewhere.
    site.client.run(&format!("ip route add 10.9.0.0/24 via {}", NODE[0]));
    let passing = site.client.visit(|| UdpSocket::bind((ip(CLIENT[0]), 5005))).expect("bind");
    passing.send_to(b"?", (pod(0, 2), HOST_PORT)).expect("send");

    let (transport, address) = (Transport::Udp, HostAddress::AnyV4);
    let changed = HostPort { transport, address, port: HOST_PORT };
    for round in 0..ROUNDS {
        let last = 3 - round % 2;
        let mut host_ports = HostPorts::default();
        let serving = end(pod(0, last), CONTAINER_PORT);
        let (pod, masquerade) = (PortId(1), Masquerade::Itself);
        host_ports.insert(changed, Target { pod, serving, masquerade });
        site.lead_to(last);
        let node = Arc::new([ip(NODE[0])]);
        purge.after([changed], Serving { host_ports: Arc::new(host_ports), node });
        wait_for("the client finds the new pod", || ask(&client) == Some(last));
    }
    assert_eq!(purge.purged(), u64::from(ROUNDS));
    let is_passing = |flow: &KernelFlow| flow.original.src.port == 5005;
    assert!(site.flows().dump().expect("list").iter().any(is_passing), "it was not ours");
}

/// Far more than any window: what the kernel knows of sequence numbers is history after it.
const BYTES: usize = 30_000_000;

fn transfer(from: &mut TcpStream, to: &TcpStream) {
    let mut to = to.try_clone().expect("a second descriptor");
    let reader = std::thread::spawn(move || to.read_exact(&mut vec![0; BYTES]));
    from.write_all(&vec![0; BYTES]).expect("send");
    reader.join().expect("the reader").expect("receive");
}

/// Why the kernel must forget what workers carry: when it has to carry the connection again after
/// they have died, it would take every packet for one of somebody else's.
#[test]
fn a_connection_that_others_carried_goes_on_in_the_kernel_only_if_it_has_forgotten_it() {
    for forgets in [true, false] {
        let site = Site::new();
        site.lead_to(2);
        let at = (pod(0, 2), CONTAINER_PORT);
        let listener = site.pods.visit(|| TcpListener::bind(at)).expect("listen");
        let to = SocketAddr::new(ip(NODE[0]), HOST_PORT);
        let client = site.client.visit(|| TcpStream::connect_timeout(&to, DEADLINE));
        let mut client = client.expect("connect through the host port");
        let (mut server, _) = listener.accept().expect("accept");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(DEADLINE)).expect("set a timeout");
        }
        site.carry();
        transfer(&mut client, &server);
        transfer(&mut server, &client);
        if forgets {
            assert_eq!(site.flows().purge(|_| true).expect("purge"), 1);
        }
        site.carry_no_more();
        client.write_all(b"?").expect("ask");
        if forgets {
            server.read_exact(&mut [0]).expect("the connection goes on");
            server.write_all(b"!").expect("answer");
            client.read_exact(&mut [0]).expect("in both directions");
        } else {
            // Out of the window, so not translated: the node has no such connection of its own.
            let end = client.read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
        }
    }
}
