//! The kernel's own path between pods and node, in real namespaces and without any XDP program:
//! what carries the pods while the daemon is away (needs root).

mod kernel;
mod namespace;

use control::endpoint::{
    Detached, Difference, EndpointError, EndpointSpec, HostSide, Offloads, attach, check, detach,
};
use control::netlink::{Event, Monitor, Netlink, default_routes};
use control::node::{
    HOST_MAC, NodeConfig, NodeError, NodePort, ROUTE_TABLE, cookie, host_ifname, mac_for,
};
use control::sysctl::SysctlLog;
use ipnet::IpNet;
use kernel::{talk, wait_for};
use namespace::Namespace;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

const ROUTE_MTU: u32 = 1500;
const DEVICE_MTU: u32 = 65535;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn config() -> NodeConfig {
    NodeConfig {
        pod_cidrs: vec![
            "10.244.1.0/24".parse().expect("prefix"),
            "fd00:10:244:1::/64".parse().expect("prefix"),
        ],
        outside: Default::default(),
        route_mtu: ROUTE_MTU,
        device_mtu: DEVICE_MTU,
        workers: 2,
    }
}

/// What the test says about a pod; the specification borrows from it.
struct Pod {
    netns: Namespace,
    ifname: String,
    host_ifname: String,
    cookie: String,
    mac: [u8; 6],
    addresses: Vec<IpAddr>,
    routes: Vec<IpNet>,
    offloads: Offloads,
}

impl Pod {
    fn new(number: u16) -> Pod {
        let container = format!("container{number}");
        let host_ifname = host_ifname("viaduct", &container, "eth0");
        Pod {
            netns: Namespace::new(),
            ifname: "eth0".to_owned(),
            mac: mac_for(&host_ifname),
            host_ifname,
            cookie: cookie("viaduct", &container, "eth0"),
            addresses: vec![
                ip(&format!("10.244.1.{number}")),
                ip(&format!("fd00:10:244:1::{number:x}")),
            ],
            routes: Vec::new(),
            offloads: Offloads::Full,
        }
    }

    fn spec(&self) -> EndpointSpec<'_> {
        EndpointSpec {
            netns: self.netns.fd(),
            ifname: &self.ifname,
            host_ifname: &self.host_ifname,
            cookie: &self.cookie,
            mac: self.mac,
            host_mac: HOST_MAC,
            addresses: &self.addresses,
            route_mtu: ROUTE_MTU,
            device_mtu: match self.offloads {
                Offloads::Full => DEVICE_MTU,
                Offloads::Basic => ROUTE_MTU,
            },
            offloads: self.offloads,
            routes: &self.routes,
        }
    }
}

/// A node with an uplink to a namespace beyond, which routes the pod network back to the node.
struct Node {
    netns: Namespace,
    outside: Namespace,
    log: SysctlLog,
}

const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const OUTSIDE: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

impl Node {
    fn new() -> Node {
        let (netns, outside) = (Namespace::new(), Namespace::new());
        let inner = outside.visit(|| File::open("/proc/thread-self/ns/net").expect("open"));
        let path = format!("/proc/{}/fd/{}", std::process::id(), fd_number(&inner));
        netns.run(&format!("ip link add up0 type veth peer name up0 netns {path}"));
        for (netns, own, other) in [(&netns, NODE, OUTSIDE), (&outside, OUTSIDE, NODE)] {
            netns.run("ip link set up0 addrgenmode none");
            netns.run("ip link set up0 up");
            netns.run("ip link set lo up");
            netns.run(&format!("ip address add {}/24 dev up0", own[0]));
            netns.run(&format!("ip address add {}/64 dev up0 nodad", own[1]));
            // Not left to the kernel, which would take a second to be sure that it is unique.
            netns.run(&format!("ip address add fe80::{}/64 dev up0 nodad", &own[1][10..]));
            netns.run(&format!("ip route add default via {}", other[0]));
            netns.run(&format!("ip -6 route add default via {}", other[1]));
        }
        for (netns, own) in [(&netns, NODE), (&outside, OUTSIDE)] {
            let mut netlink = netns.visit(Netlink::open).expect("open");
            netlink.await_operation("up0").expect("the uplink works");
            // And its IPv6 addresses, which get their routes from a work queue.
            let link_local = format!("fe80::{}", &own[1][10..]);
            for address in [own[1], &link_local] {
                wait_for("the uplink's address is in use", || {
                    netns.run(&format!("ip -6 route get {address}")).starts_with("local")
                });
            }
        }
        Node { netns, outside, log: SysctlLog::in_memory() }
    }

    fn ensure(&mut self) -> NodePort {
        let Node { netns, log, .. } = self;
        netns.visit(|| NodePort::ensure(&config(), log)).expect("make the node port")
    }

    fn attach(&self, pod: &Pod) {
        let attached = self.netns.visit(|| attach(&mut host(), &pod.spec()));
        attached.expect("attach the pod");
    }

    fn check(&self, pod: &Pod) -> Result<(), Difference> {
        self.netns.visit(|| check(&mut host(), &pod.spec()))
    }

    fn detach(&self, pod: &Pod) -> Result<Detached, EndpointError> {
        self.netns.visit(|| detach(&mut host(), &pod.host_ifname, &pod.cookie))
    }
}

fn fd_number(file: &File) -> i32 {
    use std::os::fd::AsRawFd;
    file.as_raw_fd()
}

/// On a thread that is in the node's namespace.
fn host() -> HostSide {
    HostSide::open().expect("open the host side")
}

#[test]
#[ignore = "needs root"]
fn the_kernel_alone_carries_pods_and_node_whatever_the_reverse_path_filter() {
    let mut node = Node::new();
    node.ensure();
    let (a, b) = (Pod::new(5), Pod::new(6));
    node.attach(&a);
    node.attach(&b);
    for filter in [0, 1, 2] {
        let setting = format!("net.ipv4.conf.all.rp_filter={filter}");
        node.netns.run(&format!("sysctl -qw {setting}"));
        for family in [0, 1] {
            let (node_ip, outside_ip) = (ip(NODE[family]), ip(OUTSIDE[family]));
            let (a_ip, b_ip) = (a.addresses[family], b.addresses[family]);
            talk(&a.netns, a_ip, &b.netns, b_ip);
            talk(&b.netns, b_ip, &a.netns, a_ip);
            talk(&a.netns, a_ip, &node.netns, node_ip);
            talk(&node.netns, node_ip, &a.netns, a_ip);
            talk(&a.netns, a_ip, &node.outside, outside_ip);
            talk(&node.outside, outside_ip, &a.netns, a_ip);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn basic_mode_is_carried_as_well() {
    let mut node = Node::new();
    node.ensure();
    let (mut a, mut b) = (Pod::new(5), Pod::new(6));
    (a.offloads, b.offloads) = (Offloads::Basic, Offloads::Basic);
    node.attach(&a);
    node.attach(&b);
    for family in [0, 1] {
        talk(&a.netns, a.addresses[family], &b.netns, b.addresses[family]);
        talk(&node.netns, ip(NODE[family]), &a.netns, a.addresses[family]);
    }
}

#[test]
#[ignore = "needs root"]
fn the_first_packet_after_attach_arrives() {
    let mut node = Node::new();
    node.ensure();
    for number in 1..=60 {
        let pod = Pod::new(number);
        node.attach(&pod);
        for (any, to) in ["0.0.0.0:0", "[::]:0"].into_iter().zip(&pod.addresses) {
            // UDP, so nothing is sent twice.
            let sender = node.netns.visit(|| UdpSocket::bind(any)).expect("bind");
            let receiver = pod.netns.visit(|| UdpSocket::bind((*to, 0))).expect("bind");
            receiver.set_read_timeout(Some(kernel::DEADLINE)).expect("set the deadline");
            sender.send_to(b"first", receiver.local_addr().expect("address")).expect("send");
            let result = receiver.recv_from(&mut [0; 16]);
            assert_eq!(result.unwrap_or_else(|error| panic!("to {to}: {error}")).0, 5);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_pod_of_one_family_is_carried_and_gets_nothing_of_the_other() {
    let mut node = Node::new();
    node.ensure();
    let (mut v4, mut v6) = (Pod::new(5), Pod::new(6));
    v4.addresses.retain(IpAddr::is_ipv4);
    v6.addresses.retain(IpAddr::is_ipv6);
    for (pod, family) in [(&v4, 0), (&v6, 1)] {
        node.attach(pod);
        node.check(pod).expect("as it should be");
        talk(&pod.netns, pod.addresses[0], &node.outside, ip(OUTSIDE[family]));
        talk(&node.netns, ip(NODE[family]), &pod.netns, pod.addresses[0]);
    }
    assert!(!v4.netns.run("ip -6 route").contains("default"));
    assert_eq!(v6.netns.run("ip -4 route"), "");
}

#[test]
#[ignore = "needs root"]
fn a_pod_announces_its_ipv4_address() {
    let netns = Namespace::new();
    let mut pod = Pod::new(5);
    pod.addresses.retain(IpAddr::is_ipv4);
    // Without IPv6 the announcement is the only packet there is.
    for netns in [&netns, &pod.netns] {
        netns.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
    }
    netns.visit(|| attach(&mut host(), &pod.spec())).expect("attach");
    let statistics = pod.netns.run("ip -s -j link show eth0");
    let sent = statistics.split_once("\"tx\":").expect("counters").1;
    assert!(sent.contains("\"packets\":1,"), "{statistics}");
}

#[test]
#[ignore = "needs root"]
fn the_nodes_own_packets_to_pods_carry_the_nodes_address() {
    let mut node = Node::new();
    let port = node.ensure();
    assert_eq!(port.addresses.v4.map(IpAddr::V4), Some(ip(NODE[0])));
    assert_eq!(port.addresses.v6.map(IpAddr::V6), Some(ip(NODE[1])));
    let pod = Pod::new(5);
    node.attach(&pod);
    for family in [0, 1] {
        let to = pod.addresses[family];
        let listener = pod.netns.visit(|| std::net::TcpListener::bind((to, 0))).expect("listen");
        let address = listener.local_addr().expect("address");
        // Not bound to an address: the route decides.
        let stream = node.netns.visit(|| TcpStream::connect_timeout(&address, kernel::DEADLINE));
        assert_eq!(stream.expect("connect").local_addr().expect("address").ip(), ip(NODE[family]));
    }
}

#[test]
#[ignore = "needs root"]
fn an_address_without_a_pod_is_unreachable_and_does_not_circle() {
    let mut node = Node::new();
    node.ensure();
    let pod = Pod::new(5);
    node.attach(&pod);
    for to in ["10.244.1.99", "fd00:10:244:1::99"] {
        for from in [&node.netns, &pod.netns, &node.outside] {
            let begin = Instant::now();
            let result =
                from.visit(|| TcpStream::connect_timeout(&(ip(to), 80).into(), kernel::DEADLINE));
            let error = result.expect_err("nobody is there");
            // ENETUNREACH, EHOSTUNREACH: the kernel answered. A packet that circles dies of its
            // TTL, after 64 passages of which the counter below would show most.
            assert!(matches!(error.raw_os_error(), Some(101 | 113)), "{to}: {error}");
            assert!(begin.elapsed() < Duration::from_secs(4), "{to}");
        }
    }
    // JSON of one line per device; the first "packets" is that of "rx".
    let statistics = node.netns.run("ip -s -j link show viaduct1");
    let after = statistics.split_once("\"packets\":").expect("a counter").1;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    let passages: u64 = digits.parse().expect("a number");
    assert!(passages > 0, "it is this way that they come");
    assert!(passages < 64, "{passages} packets came in by viaduct1");
}

#[test]
#[ignore = "needs root"]
fn a_hundred_pods_leave_nothing_behind() {
    let mut node = Node::new();
    node.ensure();
    let before = node.netns.contents();
    let pods: Vec<Pod> = (1..=100).map(Pod::new).collect();
    let (mut attached, mut detached) = (Vec::new(), Vec::new());
    node.netns.visit(|| {
        let mut host = host();
        for pod in &pods {
            let begin = Instant::now();
            attach(&mut host, &pod.spec()).expect("attach");
            attached.push(begin.elapsed());
        }
        for pod in &pods {
            check(&mut host, &pod.spec()).expect("check");
        }
        let routes = Netlink::open().and_then(|mut n| n.routes(Some(ROUTE_TABLE))).expect("routes");
        assert_eq!(routes.len(), 2 * pods.len() + 2, "two per pod and two ends");
        for pod in &pods {
            let begin = Instant::now();
            let result = detach(&mut host, &pod.host_ifname, &pod.cookie).expect("detach");
            detached.push(begin.elapsed());
            assert_eq!(result, Detached::Deleted);
            assert_eq!(
                detach(&mut host, &pod.host_ifname, &pod.cookie).expect("detach again"),
                Detached::Absent
            );
        }
    });
    assert_eq!(node.netns.contents(), before);
    for pod in &pods {
        assert!(!pod.netns.contents().contains("eth0"));
    }
    println!("attach {}", percentiles(&mut attached));
    println!("detach {}", percentiles(&mut detached));
}

fn percentiles(times: &mut [Duration]) -> String {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    format!("p50 {:?} p99 {:?} max {:?}", at(50), at(99), at(100))
}

#[test]
#[ignore = "needs root"]
fn a_failed_attach_leaves_nothing_behind() {
    let mut node = Node::new();
    node.ensure();
    let before = node.netns.contents();
    let attach_fails = |pod: &Pod, spec: &EndpointSpec<'_>| {
        let error = node.netns.visit(|| attach(&mut host(), spec)).expect_err("must fail");
        assert_eq!(node.netns.contents(), before, "after {error}");
        assert!(!pod.netns.run("ip -o link").contains("eth0@"), "after {error}");
        error
    };

    let mut multicast = Pod::new(5);
    multicast.addresses.push(ip("ff02::77"));
    let error = attach_fails(&multicast, &multicast.spec());
    assert!(error.to_string().contains("ff02::77"), "{error}");

    let pod = Pod::new(5);
    let no_namespace = File::open("/dev/null").expect("open");
    attach_fails(&pod, &EndpointSpec { netns: no_namespace.as_fd(), ..pod.spec() });
    attach_fails(&pod, &EndpointSpec { device_mtu: 70_000, ..pod.spec() });
    attach_fails(&pod, &EndpointSpec { mac: [0x0b, 0, 0, 0, 0, 1], ..pod.spec() });
    attach_fails(&pod, &EndpointSpec { ifname: "a/b", ..pod.spec() });
    attach_fails(&pod, &EndpointSpec { ifname: "", ..pod.spec() });

    pod.netns.run("ip link add eth0 type veth peer name eth9");
    let error = node.netns.visit(|| attach(&mut host(), &pod.spec())).expect_err("must fail");
    assert!(matches!(error, EndpointError::AlreadyExists { ref ifname } if ifname == "eth0"));
    assert_eq!(node.netns.contents(), before);
    assert!(pod.netns.run("ip -o link").contains("eth0@eth9"), "their eth0 is untouched");
}

#[test]
#[ignore = "needs root"]
fn a_device_of_somebody_else_is_never_touched() {
    let mut node = Node::new();
    node.ensure();
    let pod = Pod::new(5);
    node.netns.run(&format!("ip link add {} type veth peer name other", pod.host_ifname));
    let error = node.netns.visit(|| attach(&mut host(), &pod.spec())).expect_err("must fail");
    assert!(matches!(error, EndpointError::Foreign { .. }), "{error}");
    let error = node.detach(&pod).expect_err("must fail");
    assert!(matches!(error, EndpointError::Foreign { .. }), "{error}");
    assert!(node.netns.run("ip -o link").contains(&pod.host_ifname));

    let strangers = Namespace::new();
    strangers.run("ip link add viaduct0 type veth peer name viaduct1");
    let mut log = SysctlLog::in_memory();
    let result = strangers.visit(|| NodePort::ensure(&config(), &mut log));
    assert!(matches!(result, Err(NodeError::Foreign { .. })), "{result:?}");
    let errors = strangers.visit(|| NodePort::remove(&mut log));
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(strangers.run("ip -o link").contains("viaduct0"));
}

#[test]
#[ignore = "needs root"]
fn attaching_again_keeps_what_is_right_and_replaces_what_is_not() {
    let mut node = Node::new();
    node.ensure();
    let pod = Pod::new(5);
    let again = || node.netns.visit(|| attach(&mut host(), &pod.spec())).expect("attach");
    let first = again();
    assert_eq!(again(), first);
    pod.netns.run("ip route del default");
    let second = again();
    assert_ne!(second.host_index, first.host_index);
    node.check(&pod).expect("it is right now");
}

#[test]
#[ignore = "needs root"]
fn check_names_what_differs() {
    let mut node = Node::new();
    node.ensure();
    let pod = Pod::new(5);
    let missing = node.check(&pod).expect_err("not attached");
    assert!(missing.to_string().contains(&pod.host_ifname), "{missing}");
    let host = &pod.host_ifname;
    let table = ROUTE_TABLE;
    let damage = [
        (&pod.netns, "ip address del 10.244.1.5/32 dev eth0".to_owned(), "10.244.1.5"),
        (&pod.netns, "ip address del fd00:10:244:1::5/128 dev eth0".to_owned(), "fd00:10:244:1::5"),
        (&pod.netns, "ip link set eth0 address 0a:01:02:03:04:05".to_owned(), "Ethernet address"),
        (&pod.netns, "ip link set eth0 down".to_owned(), "down"),
        (&pod.netns, "ip link set eth0 name eth1".to_owned(), "eth0 in the pod"),
        (&pod.netns, "ip route del default".to_owned(), "169.254.1.1"),
        (&pod.netns, "ip -6 route del default".to_owned(), "fe80::1"),
        (&node.netns, format!("ip link set {host} alias someone"), "someone"),
        (&node.netns, format!("ip link set {host} down"), "down"),
        (&node.netns, format!("ip route del 10.244.1.5 table {table}"), "route to 10.244.1.5"),
        (&node.netns, format!("ip neigh del fd00:10:244:1::5 dev {host}"), "permanent neighbor"),
        (&node.netns, format!("ip link del {host}"), "missing"),
    ];
    for (netns, command, words) in damage {
        node.attach(&pod);
        node.check(&pod).expect("as it should be");
        netns.run(&command);
        let difference = node.check(&pod).expect_err(&command);
        assert!(difference.to_string().contains(words), "{command}: {difference}");
        if command.contains("alias") {
            node.netns.run(&format!("ip link del {host}"));
        } else {
            node.detach(&pod).expect("detach");
        }
    }
    // What a later plugin of a chain may add.
    node.attach(&pod);
    pod.netns.run("ip address add 198.51.100.9/24 dev eth0");
    pod.netns.run("ip route add 203.0.113.0/24 via 169.254.1.1");
    pod.netns.run("ip link set eth0 mtu 1400");
    node.check(&pod).expect("additions are no difference");
}

#[test]
#[ignore = "needs root"]
fn a_pod_has_what_its_specification_says() {
    let mut node = Node::new();
    node.ensure();
    let mut pod = Pod::new(5);
    pod.routes =
        vec!["172.16.0.0/12".parse().expect("prefix"), "fd77::/16".parse().expect("prefix")];
    // Some runtimes turn IPv6 off before the plugin runs.
    pod.netns
        .run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    node.attach(&pod);
    let v4 = pod.netns.run("ip -4 route");
    for route in [
        "default via 169.254.1.1 dev eth0 proto 118 src 10.244.1.5 metric 2 mtu 1500",
        "169.254.1.1 dev eth0 proto 118 scope link src 10.244.1.5 metric 2 mtu 1500",
        "172.16.0.0/12 via 169.254.1.1 dev eth0 proto 118 src 10.244.1.5 metric 2 mtu 1500",
    ] {
        assert!(v4.contains(route), "{route} is not in\n{v4}");
    }
    let v6 = pod.netns.run("ip -6 route");
    for route in ["default via fe80::1 dev eth0", "fd77::/16 via fe80::1 dev eth0"] {
        assert!(v6.contains(route), "{route} is not in\n{v6}");
    }
    assert!(v6.contains("src fd00:10:244:1::5 metric 2 mtu 1500"), "{v6}");
    let addresses = pod.netns.run("ip address show dev eth0");
    assert!(!addresses.contains("tentative"), "{addresses}");
    assert_eq!(addresses.matches("inet6 fe80::").count(), 1, "{addresses}");
    assert!(addresses.contains("mtu 65535"), "{addresses}");
    let neighbors = pod.netns.run("ip neigh show nud permanent");
    for gateway in ["169.254.1.1", "fe80::1"] {
        assert!(neighbors.contains(&format!("{gateway} dev eth0 lladdr 0a:00:00:00:00:01 ")));
    }
    assert!(pod.netns.run("ip link show lo").contains("DOWN"), "the loopback plugin's affair");
    let link = node.netns.run(&format!("ip link show {}", pod.host_ifname));
    assert!(link.contains(&format!("alias {}", pod.cookie)), "{link}");
    let host_end = node.netns.run(&format!("ip address show {}", pod.host_ifname));
    assert!(!host_end.contains("inet6"), "{host_end}");
    assert!(host_end.contains("inet 169.254.1.1/32 scope link"), "{host_end}");
    let setting = |path: &str| {
        let path = format!("/proc/sys/net/{}", path.replace("HOST", &pod.host_ifname));
        node.netns.visit(|| std::fs::read_to_string(path)).expect("read").trim().to_owned()
    };
    for (path, value) in [
        ("ipv4/conf/HOST/rp_filter", "2"),
        ("ipv4/conf/HOST/proxy_arp", "0"),
        ("ipv4/conf/HOST/arp_ignore", "1"),
        ("ipv4/conf/HOST/send_redirects", "0"),
        ("ipv4/conf/HOST/accept_redirects", "0"),
        ("ipv4/conf/HOST/forwarding", "1"),
        ("ipv6/conf/HOST/accept_ra", "0"),
        ("ipv6/conf/HOST/disable_ipv6", "0"),
        ("ipv6/conf/HOST/forwarding", "1"),
    ] {
        assert_eq!(setting(path), value, "{path}");
    }
}

#[test]
#[ignore = "needs root"]
fn offloads_follow_the_mode() {
    let mut node = Node::new();
    node.ensure();
    for (offloads, tso) in [(Offloads::Full, "on"), (Offloads::Basic, "off")] {
        let mut pod = Pod::new(5);
        pod.offloads = offloads;
        node.attach(&pod);
        let listed = pod.netns.run("ethtool -k eth0");
        let features: BTreeMap<&str, &str> = listed
            .lines()
            .filter_map(|line| line.trim().split_once(": "))
            .map(|(name, value)| (name, value.split(' ').next().unwrap_or("")))
            .collect();
        for (name, value) in &features {
            let tunnel = ["tnl", "gre", "ipxip", "sctp"].iter().any(|part| name.contains(part));
            if name.starts_with("tx-") && tunnel {
                assert_eq!(*value, "off", "{name} with {offloads:?}");
            }
            if name.starts_with("tx-tcp") || *name == "tx-udp-segmentation" {
                assert_eq!(*value, tso, "{name} with {offloads:?}");
            }
        }
        assert_eq!(features["tx-checksum-ip-generic"], tso);
        assert_eq!(features["scatter-gather"], tso);
        assert_eq!(features["generic-segmentation-offload"], tso);
        node.detach(&pod).expect("detach");
    }
}

#[test]
#[ignore = "needs root"]
fn features_this_kernel_has_no_name_for_are_left_out() {
    let netns = Namespace::new();
    netns.run("ip link add one type veth peer name two");
    let mut ethtool = netns.visit(control::ethtool::Ethtool::open).expect("open");
    let wish = [("tx-of-the-next-kernel", false), ("tx-tcp-segmentation", false)];
    ethtool.set_features("one", &wish).expect("set");
    let listed = netns.run("ethtool -k one");
    assert!(listed.contains("tx-tcp-segmentation: off"), "{listed}");
    let fixed = ethtool.set_features("one", &[("rx-fcs", true)]).expect_err("veth has none");
    assert!(fixed.to_string().contains("rx-fcs"), "{fixed}");
    let absent = ethtool.set_features("three", &wish).expect_err("no such device");
    assert!(absent.to_string().contains("three"), "{absent}");
}

/// All settings under a directory of `/proc/sys/net`, in the namespace of the calling thread.
fn settings(directory: &Path, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(directory).expect("list settings").flatten() {
        let path = entry.path();
        if path.is_dir() {
            settings(&path, found);
        } else if let Ok(value) = std::fs::read_to_string(&path) {
            found.insert(path.display().to_string(), value);
        }
    }
}

fn all_settings(netns: &Namespace) -> BTreeMap<String, String> {
    netns.visit(|| {
        let mut found = BTreeMap::new();
        for directory in ["ipv4/conf", "ipv6/conf"] {
            settings(&Path::new("/proc/sys/net").join(directory), &mut found);
        }
        let forward = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("read");
        found.insert("ip_forward".to_owned(), forward);
        // Random by design, new on each reading.
        found.retain(|key, _| !key.ends_with("stable_secret"));
        found
    })
}

#[test]
#[ignore = "needs root"]
fn removing_the_node_port_restores_every_setting() {
    let mut node = Node::new();
    node.netns.run("ip link add dum.5 type veth peer name dum6");
    node.netns.run("sysctl -qw net.ipv4.conf.dum6.forwarding=1 net.ipv6.conf.dum6.forwarding=1");
    node.netns.run("sysctl -qw net.ipv4.conf.all.accept_redirects=0");
    let (contents, before) = (node.netns.contents(), all_settings(&node.netns));
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("sysctl.json");
    node.log = SysctlLog::open(&file).expect("open");
    node.ensure();
    let during = all_settings(&node.netns);
    assert_eq!(during["/proc/sys/net/ipv6/conf/up0/accept_ra"], "2\n");
    assert_eq!(during["/proc/sys/net/ipv6/conf/default/accept_ra"], "1\n");
    assert_eq!(during["/proc/sys/net/ipv6/conf/all/forwarding"], "1\n");
    assert_eq!(during["ip_forward"], "1\n");
    assert_eq!(during["/proc/sys/net/ipv4/conf/viaduct1/accept_local"], "1\n");

    // A new daemon, after a crash of the old one: the originals are those of the first.
    node.log = SysctlLog::open(&file).expect("open again");
    node.ensure();
    let errors = node.netns.visit(|| NodePort::remove(&mut node.log));
    assert!(errors.is_empty(), "{errors:?}");
    let after = all_settings(&node.netns);
    for (key, value) in &before {
        assert_eq!(after.get(key), Some(value), "{key}");
    }
    assert_eq!(node.netns.contents(), contents);
    let errors = node.netns.visit(|| NodePort::remove(&mut node.log));
    assert!(errors.is_empty(), "a second time: {errors:?}");
}

#[test]
#[ignore = "needs root"]
fn ensuring_again_changes_nothing_and_mends_what_others_broke() {
    let mut node = Node::new();
    let first = node.ensure();
    let pod = Pod::new(5);
    node.attach(&pod);
    let contents = node.netns.contents();
    assert_eq!(node.ensure(), first);
    assert_eq!(node.netns.contents(), contents);
    for damage in [
        "ip route del 10.244.1.0/24",
        "ip -6 route del fd00:10:244:1::/64",
        "ip route change 10.244.1.0/24 via 169.254.1.2 dev viaduct0 onlink proto 118 mtu 900",
        "ip route flush table 22084 type unreachable",
        "ip -6 rule del priority 220",
        "ip rule del priority 220",
        "ip neigh del 169.254.1.2 dev viaduct0",
        "ip neigh replace fe80::1 lladdr 0a:00:00:00:00:09 dev viaduct0",
        "ip address del 169.254.1.1/32 dev viaduct1",
        "ip link set viaduct1 mtu 1500",
        "ip rule add priority 220 iif up0 lookup 22084 protocol 118",
        "ip route add 10.99.0.0/24 dev viaduct0 proto 118",
    ] {
        node.netns.run(damage);
        assert_ne!(node.netns.contents(), contents, "{damage} changes something");
        assert_eq!(node.ensure(), first, "{damage}");
        assert_eq!(sorted(&node.netns.contents()), sorted(&contents), "{damage}");
    }
    node.netns.run("ip link del viaduct0");
    let second = node.ensure();
    assert_eq!(second.node_mac, first.node_mac);
    for family in [0, 1] {
        talk(&node.netns, ip(NODE[family]), &pod.netns, pod.addresses[family]);
    }
    let more = NodeConfig { workers: 3, ..config() };
    let third = node.netns.visit(|| NodePort::ensure(&more, &mut node.log)).expect("ensure");
    assert_ne!(third.worker_index, second.worker_index);
    let link = node.netns.run("ip -d link show viaduct1");
    assert!(link.contains("numrxqueues 3"), "{link}");
    talk(&pod.netns, pod.addresses[0], &node.netns, ip(NODE[0]));
}

/// The order within a table is the kernel's affair.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
#[ignore = "needs root"]
fn the_source_address_follows_the_node() {
    let mut node = Node::new();
    let mut port = node.ensure();
    let mut netlink = node.netns.visit(Netlink::open).expect("open");
    assert!(
        !node
            .netns
            .visit(|| port.follow_addresses(&mut netlink, &default_routes().expect("list")))
            .expect("follow")
    );
    let source = |node: &Node| node.netns.run("ip route show 10.244.1.0/24");
    assert!(source(&node).contains("src 192.0.2.1 "), "{}", source(&node));
    node.netns.run("ip address add 192.0.2.77/24 dev up0");
    node.netns.run("ip route replace default via 192.0.2.2 src 192.0.2.77");
    assert!(
        node.netns
            .visit(|| port.follow_addresses(&mut netlink, &default_routes().expect("list")))
            .expect("follow")
    );
    assert!(source(&node).contains("src 192.0.2.77 "), "{}", source(&node));
    node.netns.run("ip link set up0 down");
    node.netns.run("ip address flush dev up0");
    assert!(
        node.netns
            .visit(|| port.follow_addresses(&mut netlink, &default_routes().expect("list")))
            .expect("follow")
    );
    assert_eq!((port.addresses.v4, port.addresses.v6), (None, None));
    assert!(!source(&node).contains("src"), "{}", source(&node));
}

#[test]
#[ignore = "needs root"]
fn a_node_without_any_address_still_carries_its_pods() {
    let netns = Namespace::new();
    netns.run("ip link set lo up");
    let mut log = SysctlLog::in_memory();
    netns.visit(|| NodePort::ensure(&config(), &mut log)).expect("make the node port");
    let (a, b) = (Pod::new(5), Pod::new(6));
    for pod in [&a, &b] {
        netns.visit(|| attach(&mut host(), &pod.spec())).expect("attach");
    }
    for family in [0, 1] {
        talk(&a.netns, a.addresses[family], &b.netns, b.addresses[family]);
    }
}

#[test]
#[ignore = "needs root"]
fn the_monitor_reports_changes_and_says_when_it_lost_some() {
    let netns = Namespace::new();
    let mut monitor = netns.visit(Monitor::open).expect("open");
    let mut events = Vec::new();
    assert!(!monitor.receive(&mut events, 1000).expect("receive"));
    assert!(events.is_empty());
    netns.run("ip link set lo up");
    netns.run("ip link add one type veth peer name two");
    netns.run("ip address add 192.0.2.9/24 dev one");
    netns.run("ip link set one up");
    netns.run("ip link set two up");
    netns.run("ip neigh add 192.0.2.10 lladdr 0a:00:00:00:00:09 dev one");
    netns.run("ip route add 198.51.100.0/24 via 192.0.2.10");
    netns.run("ip rule add priority 9 iif one lookup 77");
    netns.run("ip link del one");
    let mut has = |what: &str, test: &dyn Fn(&Event) -> bool| {
        wait_for(what, || {
            monitor.receive(&mut events, 1000).expect("receive");
            events.iter().any(test)
        });
    };
    let dst: IpNet = "198.51.100.0/24".parse().expect("prefix");
    has("link", &|event| matches!(event, Event::Link(link) if link.name == "one" && link.up));
    has("address", &|e| matches!(e, Event::Address(a) if a.address == ip("192.0.2.9")));
    has("route", &|event| matches!(event, Event::Route(route) if route.dst == dst));
    has("neighbor", &|e| matches!(e, Event::Neighbor(n) if n.address == ip("192.0.2.10")));
    has("rule", &|event| matches!(event, Event::Rule(rule) if rule.priority == 9));
    has("link gone", &|event| matches!(event, Event::LinkGone(link) if link.name == "one"));

    // 100,000 events without reading one are more than the socket holds.
    let batch: String = (0..50_000_u32)
        .flat_map(|i| {
            let route = format!("table 7 unreachable 10.{}.{}.0/24", i / 250 % 250, i % 250);
            [format!("route replace {route}\n"), format!("route del {route}\n")]
        })
        .collect();
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("batch");
    std::fs::write(&file, batch).expect("write");
    netns.run(&format!("ip -batch {}", file.display()));
    let mut events = Vec::new();
    while monitor.receive(&mut events, 1000).expect("receive") {}
    assert!(events.contains(&Event::Overrun), "{} events", events.len());
    netns.run("ip link add three type veth peer name four");
    wait_for("an event after the overrun", || {
        monitor.receive(&mut events, 1000).expect("receive");
        events.iter().any(|event| matches!(event, Event::Link(link) if link.name == "three"))
    });
}

#[test]
#[ignore = "needs root"]
fn errors_name_operation_and_object_and_the_kernels_reason() {
    let mut node = Node::new();
    node.ensure();
    let pod = Pod::new(5);
    let spec = EndpointSpec { device_mtu: 70_000, ..pod.spec() };
    let error = node.netns.visit(|| attach(&mut host(), &spec)).expect_err("must fail");
    let start = format!("create veth pair {} and eth0: Invalid argument", pod.host_ifname);
    assert!(error.to_string().starts_with(&start), "{error}");

    let addresses = [ip("fd00:10:244:1::5"), ip("ff02::77")];
    let spec = EndpointSpec { addresses: &addresses, ..pod.spec() };
    let error = node.netns.visit(|| attach(&mut host(), &spec)).expect_err("must fail");
    let words = "add address ff02::77/128 dev eth0: Cannot assign requested address";
    assert!(error.to_string().starts_with(words), "{error}");
}

#[test]
#[ignore = "needs root"]
fn the_way_towards_an_address_is_that_of_the_kernels_routes() {
    let namespace = Namespace::new();
    for command in [
        "ip link add up0 type veth peer name up1",
        "ip address add 192.0.2.1/24 dev up0",
        "ip address add 2001:db8::1/64 dev up0 nodad",
        "ip link set up0 up",
        "ip link set up1 up",
        "ip route add 198.51.100.0/24 via 192.0.2.254",
        "ip route add unreachable 198.51.100.128/25",
    ] {
        namespace.run(command);
    }
    namespace.visit(|| {
        let mut netlink = Netlink::open().expect("rtnetlink");
        let up0 = netlink.link("up0").expect("links").expect("it was made").index;
        let mut towards = |text| netlink.interface_towards(ip(text)).expect("asked");
        for there in ["192.0.2.9", "198.51.100.9", "2001:db8::9"] {
            assert_eq!(towards(there), Some(up0), "{there}");
        }
        for nowhere in ["203.0.113.1", "198.51.100.200", "2001:db8:1::1"] {
            assert_eq!(towards(nowhere), None, "{nowhere}");
        }
    });
}
