//! A node with pods in network namespaces, for the tests of table `inet viaduct`.
//!
//! Pods are veth pairs. A living worker is played by a namespace that holds the pods' host ends and
//! `viaduct1`, and routes without conntrack; a dead one leaves all of that to the node's kernel.

// Each test program uses some of it.
#![allow(dead_code)]

pub mod raw;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use control::nft::{NftConfig, NftTable};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long a packet may take before the test takes it for lost.
pub const PATIENCE: Duration = Duration::from_millis(1000);
/// How long a condition may take to come true.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// A network namespace of this test, removed when dropped.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(role: &str) -> Namespace {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vdnft-{}-{count}-{role}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        Namespace { name }
    }

    /// Calls `action` on a thread inside the namespace. Sockets opened there stay there.
    pub fn inside<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        let enter = move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network).unwrap();
            action()
        };
        std::thread::scope(|scope| scope.spawn(enter).join()).unwrap()
    }

    /// Runs shell commands inside the namespace and returns what they print. The sh of a machine of
    /// scripts/vm has its own, lesser ip.
    pub fn shell(&self, script: &str) -> String {
        self.inside(|| run(Command::new("bash").args(["-euc", script])))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come true in {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn config(pods: &[&str], direct: &[&str]) -> NftConfig {
    let parse = |list: &[&str]| list.iter().map(|prefix| prefix.parse().unwrap()).collect();
    let (pod_cidrs, direct) = (parse(pods), parse(direct));
    NftConfig { pod_cidrs, direct, masquerade: true, ..NftConfig::default() }
}

pub fn usual_config() -> NftConfig {
    let pods = ["10.244.1.0/24", "fd00:10:244:1::/64"];
    config(&pods, &["10.244.0.0/16", "fd00:10:244::/48"])
}

pub const POD_A: [&str; 2] = ["10.244.1.10", "fd00:10:244:1::10"];
pub const POD_B: [&str; 2] = ["10.244.1.11", "fd00:10:244:1::11"];
pub const NODE: [&str; 2] = ["192.0.2.1", "fd00:2::1"];
pub const OUTSIDE: [&str; 2] = ["192.0.2.2", "fd00:2::2"];
/// A pod on another node: an address inside `direct`.
pub const REMOTE: [&str; 2] = ["10.244.9.9", "fd00:10:244:9::9"];
pub const SERVICE: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
pub const POD_PORT: u16 = 8080;
pub const SERVICE_PORT: u16 = 80;
pub const NODE_PORT: u16 = 30080;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    Alive,
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A node with two pods, an outside machine, and a Service whose only backend is pod B.
pub struct Network {
    pub node: Namespace,
    pub pod_a: Namespace,
    pub pod_b: Namespace,
    pub outside: Namespace,
    pub table: NftTable,
    /// Plays the worker while one lives.
    pub worker: Option<Namespace>,
}

impl Network {
    pub fn new(worker: Worker) -> Network {
        let [node, pod_a, pod_b, outside] = ["node", "a", "b", "out"].map(Namespace::new);
        let alive = (worker == Worker::Alive).then(|| Namespace::new("worker"));
        for namespace in [&node, &pod_a, &pod_b, &outside].into_iter().chain(&alive) {
            namespace.shell(SYSCTLS);
        }
        let home = alive.as_ref().unwrap_or(&node);
        node.shell(&format!(
            "ip link add viaduct0 address 0a:00:00:00:00:10 type veth \
                 peer name viaduct1 address 0a:00:00:00:00:11 netns {}
             ip link add uplink type veth peer name eth0 netns {}",
            home.name, outside.name
        ));
        node.shell(NODE_SCRIPT);
        node.shell(SERVICES);
        outside.shell(OUTSIDE_SCRIPT);
        for (pod, addresses, host_end) in [(&pod_a, POD_A, "vda"), (&pod_b, POD_B, "vdb")] {
            attach(home, host_end, pod, addresses);
        }
        home.shell(match worker {
            Worker::Alive => WORKER_SCRIPT,
            Worker::Dead => FALLBACK_SCRIPT,
        });
        let mut table = node.inside(|| NftTable::open().unwrap());
        table.ensure(&usual_config()).unwrap();
        let network = Network { node, pod_a, pod_b, outside, table, worker: alive };
        for (side, address) in NODE.iter().enumerate() {
            for pod in [&network.pod_a, &network.pod_b] {
                wait_until("pod reaches node", || {
                    let to = (&network.node, *address, POD_PORT);
                    connect(Transport::Udp, pod, (address, POD_PORT), to).is_ok()
                });
            }
            wait_until("node reaches outside", || {
                let address = OUTSIDE[side];
                let to = (&network.outside, address, POD_PORT);
                connect(Transport::Udp, &network.node, (address, POD_PORT), to).is_ok()
            });
        }
        network
    }

    /// Takes the worker away: its devices go to the node's kernel, as XDP's `PASS` would do.
    pub fn kill_worker(&mut self) {
        let worker = self.worker.take().unwrap();
        for device in ["viaduct1", "vda", "vdb"] {
            worker.shell(&format!("ip link set {device} netns {}", self.node.name));
        }
        for host_end in ["vda", "vdb"] {
            self.node.shell(&host_end_script(host_end));
        }
        self.node.shell(FALLBACK_SCRIPT);
    }

    /// The source that a server sees, for both transports and both families: `[IPv4, IPv6]`.
    pub fn sources(
        &self,
        from: &Namespace,
        target: ([&str; 2], u16),
        server: (&Namespace, [&str; 2]),
    ) -> [Result<String, String>; 2] {
        [0, 1].map(|side| {
            let target = (target.0[side], target.1);
            let server = (server.0, server.1[side], POD_PORT);
            let tcp = connect(Transport::Tcp, from, target, server)?;
            let udp = connect(Transport::Udp, from, target, server)?;
            if tcp == udp { Ok(tcp.to_string()) } else { Err(format!("{tcp} but {udp}")) }
        })
    }
}

/// No duplicate address detection, so that addresses work at once; no redirects, because the node
/// port leads packets out where they came in; loose reverse path checks for unnumbered ends.
pub const SYSCTLS: &str = "
    cd /proc/sys/net
    for name in all default; do
        echo 1 > ipv4/conf/$name/forwarding
        echo 0 > ipv4/conf/$name/send_redirects
        echo 2 > ipv4/conf/$name/rp_filter
        echo 1 > ipv6/conf/$name/forwarding
        echo 0 > ipv6/conf/$name/accept_dad
    done
    ip link set lo up";

pub const NODE_SCRIPT: &str = "
    ip link set viaduct0 up
    ip link set uplink up
    ip addr add 192.0.2.1/24 dev uplink
    ip addr add fd00:2::1/64 dev uplink nodad
    ip neigh add 169.254.1.1 lladdr 0a:00:00:00:00:11 dev viaduct0 nud permanent
    ip neigh add fe80::1 lladdr 0a:00:00:00:00:11 dev viaduct0 nud permanent
    ip route add 10.244.1.0/24 via 169.254.1.1 dev viaduct0 onlink src 192.0.2.1
    ip route add fd00:10:244:1::/64 via fe80::1 dev viaduct0 onlink src fd00:2::1
    ip route add default via 192.0.2.2
    ip route add default via fd00:2::2";

/// Services as kube-proxy makes them, for a traffic policy that keeps the client's address.
pub const SERVICES: &str = "nft -f - <<'RULES'
    define transport = { tcp, udp }
    table inet services {
        chain translate {
            ip daddr 10.96.0.1 meta l4proto $transport th dport 80 \
                dnat ip to 10.244.1.11:8080
            ip daddr 192.0.2.1 meta l4proto $transport th dport 30080 \
                dnat ip to 10.244.1.11:8080
            ip6 daddr fd00:96::1 meta l4proto $transport th dport 80 \
                dnat ip6 to [fd00:10:244:1::11]:8080
            ip6 daddr fd00:2::1 meta l4proto $transport th dport 30080 \
                dnat ip6 to [fd00:10:244:1::11]:8080
        }
        chain prerouting { type nat hook prerouting priority dstnat; jump translate; }
        chain output { type nat hook output priority -100; jump translate; }
    }\nRULES";

pub const OUTSIDE_SCRIPT: &str = "
    ip link set eth0 up
    ip addr add 192.0.2.2/24 dev eth0
    ip addr add fd00:2::2/64 dev eth0 nodad
    ip addr add 10.244.9.9/32 dev lo
    ip addr add fd00:10:244:9::9/128 dev lo
    ip route add 10.244.1.0/24 via 192.0.2.1
    ip route add fd00:10:244:1::/64 via fd00:2::1";

/// Pods reach each other here; all else goes through the node port.
pub const WORKER_SCRIPT: &str = "
    ip link set viaduct1 up
    ip neigh add 169.254.1.2 lladdr 0a:00:00:00:00:10 dev viaduct1 nud permanent
    ip neigh add fe80::2 lladdr 0a:00:00:00:00:10 dev viaduct1 nud permanent
    ip route add default via 169.254.1.2 dev viaduct1 onlink
    ip route add default via fe80::2 dev viaduct1 onlink
    ip route add 10.244.1.10 dev vda
    ip route add 10.244.1.11 dev vdb
    ip route add fd00:10:244:1::10 dev vda
    ip route add fd00:10:244:1::11 dev vdb";

/// What comes out of the node port's far end goes to a pod or nowhere.
pub const FALLBACK_SCRIPT: &str = "
    ip link set viaduct1 up
    ip addr add 169.254.1.1/32 dev viaduct1 scope link
    echo 1 > /proc/sys/net/ipv4/conf/viaduct1/accept_local
    ip rule add iif viaduct1 lookup 77
    ip -6 rule add iif viaduct1 lookup 77
    ip route add 10.244.1.10 dev vda table 77
    ip route add 10.244.1.11 dev vdb table 77
    ip route add unreachable 10.244.1.0/24 table 77
    ip route add fd00:10:244:1::10 dev vda table 77
    ip route add fd00:10:244:1::11 dev vdb table 77
    ip route add unreachable fd00:10:244:1::/64 table 77";

/// Joins a pod to the namespace where its host end lives.
pub fn attach(home: &Namespace, host_end: &str, pod: &Namespace, [v4, v6]: [&str; 2]) {
    home.shell(&format!("ip link add {host_end} type veth peer name eth0 netns {}", pod.name));
    home.shell(&host_end_script(host_end));
    pod.shell(&format!(
        "ip link set eth0 up
         ip addr add {v4}/32 dev eth0
         ip addr add {v6}/128 dev eth0 nodad
         ip route add default via 169.254.1.1 dev eth0 onlink
         ip route add default via fe80::1 dev eth0"
    ));
}

/// Gives a pod's host end the addresses of the pod's gateway.
pub fn host_end_script(host_end: &str) -> String {
    format!(
        "ip link set {host_end} up
         ip addr add 169.254.1.1/32 dev {host_end} scope link
         ip addr add fe80::1/64 dev {host_end} nodad"
    )
}

/// Binds a port that was just closed: commands that another test is starting may hold it for a
/// moment, between fork and exec.
fn when_free<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

/// Connects by TCP; returns both ends.
pub fn open_stream(
    from: &Namespace,
    target: (&str, u16),
    (to, address, port): (&Namespace, &str, u16),
) -> io::Result<[TcpStream; 2]> {
    let target = SocketAddr::new(target.0.parse().unwrap(), target.1);
    let server = to.inside(|| when_free(|| TcpListener::bind((address, port))))?;
    let client = from.inside(|| TcpStream::connect_timeout(&target, PATIENCE))?;
    let (accepted, _) = server.accept()?;
    Ok([client, accepted])
}

/// Sends a byte each way, waiting at most `patience` for each.
pub fn exchange([client, accepted]: &mut [TcpStream; 2], patience: Duration) -> io::Result<()> {
    client.set_read_timeout(Some(patience))?;
    accepted.set_read_timeout(Some(patience))?;
    let mut byte = [0];
    client.write_all(b"?")?;
    accepted.read_exact(&mut byte)?;
    accepted.write_all(b"!")?;
    client.read_exact(&mut byte)
}

/// Sends a datagram each way; returns the client's address as the server sees it. The client is
/// connected, so it takes no answer from another address than the target.
pub fn exchange_datagrams(
    from: &Namespace,
    target: (&str, u16),
    (to, address, port): (&Namespace, &str, u16),
) -> io::Result<IpAddr> {
    let target = SocketAddr::new(target.0.parse().unwrap(), target.1);
    let server = to.inside(|| when_free(|| UdpSocket::bind((address, port))))?;
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = from.inside(|| UdpSocket::bind(any))?;
    client.connect(target)?;
    client.set_read_timeout(Some(PATIENCE))?;
    server.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    client.send(b"?")?;
    let (_, peer) = server.recv_from(&mut byte)?;
    server.send_to(b"!", peer)?;
    client.recv(&mut byte)?;
    Ok(peer.ip())
}

/// Exchanges data both ways; returns the client's address as the server sees it.
pub fn connect(
    transport: Transport,
    from: &Namespace,
    target: (&str, u16),
    server: (&Namespace, &str, u16),
) -> Result<IpAddr, String> {
    let source = match transport {
        Transport::Tcp => open_stream(from, target, server).and_then(|mut stream| {
            exchange(&mut stream, PATIENCE)?;
            Ok(stream[1].peer_addr()?.ip())
        }),
        Transport::Udp => exchange_datagrams(from, target, server),
    };
    source.map_err(|error| format!("{transport:?} to {target:?}: {error}"))
}

pub fn seen(addresses: [&str; 2]) -> [Result<String, String>; 2] {
    addresses.map(|address| Ok(address.to_owned()))
}
