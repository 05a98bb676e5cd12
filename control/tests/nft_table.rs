//! Table `inet viaduct` in a real kernel: what `nft` lists is what was asked for, nobody else's
//! tables change, and connections of pods work while a worker lives and while none does.
//!
//! Every test builds its own network namespaces and removes them, also when it fails. Pods are
//! veth pairs. A living worker is played by a namespace that holds the pods' host ends and
//! `viaduct1`, and routes without conntrack; a dead one leaves all of that to the node's kernel.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use control::nft::{NftConfig, NftMonitor, NftTable};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

/// How long a packet may take before the test takes it for lost.
const PATIENCE: Duration = Duration::from_millis(1000);
/// How long a condition may take to come true.
const DEADLINE: Duration = Duration::from_secs(10);

// ------------------------------------------------------------------------------- namespaces

/// A network namespace of this test, removed when dropped.
struct Namespace {
    name: String,
}

impl Namespace {
    fn new(role: &str) -> Namespace {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vdnft-{}-{count}-{role}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        Namespace { name }
    }

    /// Calls `action` on a thread inside the namespace. Sockets opened there stay there.
    fn inside<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        let enter = move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network).unwrap();
            action()
        };
        std::thread::scope(|scope| scope.spawn(enter).join()).unwrap()
    }

    /// Runs shell commands inside the namespace and returns what they print.
    fn shell(&self, script: &str) -> String {
        self.inside(|| run(Command::new("sh").args(["-euc", script])))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come true in {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

// -------------------------------------------------------------------------------- the table

fn config(pods: &[&str], direct: &[&str]) -> NftConfig<'static> {
    let parse = |list: &[&str]| list.iter().map(|prefix| prefix.parse().unwrap()).collect();
    NftConfig {
        pod_cidrs: parse(pods),
        direct: parse(direct),
        kernel: vec![],
        masquerade: true,
        node_port: "viaduct0",
        worker_end: "viaduct1",
    }
}

fn usual_config() -> NftConfig<'static> {
    let pods = ["10.244.1.0/24", "fd00:10:244:1::/64"];
    config(&pods, &["10.244.0.0/16", "fd00:10:244::/48"])
}

/// The objects of our table as `nft` lists them, of one kind (`set`, `chain`, `rule`).
fn listed(namespace: &Namespace, kind: &str) -> Vec<Value> {
    let text = namespace.shell("nft -j -s list table inet viaduct");
    let all: Value = serde_json::from_str(&text).unwrap();
    let objects = all["nftables"].as_array().unwrap();
    objects.iter().filter_map(|object| object.get(kind).cloned()).collect()
}

fn elements(namespace: &Namespace, set: &str) -> Value {
    let sets = listed(namespace, "set");
    sets.into_iter().find(|listed| listed["name"] == set).unwrap()["elem"].take()
}

fn has_element(namespace: &Namespace, set: &str, address: &str) -> bool {
    namespace.inside(|| {
        let element = format!("{{ {address} }}");
        let arguments = ["get", "element", "inet", "viaduct", set, &element];
        Command::new("nft").args(arguments).output().unwrap().status.success()
    })
}

fn prefix(address: &str, len: u8) -> Value {
    json!({"prefix": {"addr": address, "len": len}})
}

fn equals(left: Value, right: &str) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn differs(left: Value, right: &str) -> Value {
    json!({"match": {"op": "!=", "left": left, "right": right}})
}

fn address(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

#[test]
#[ignore = "needs root"]
fn the_kernel_lists_what_was_asked_for() {
    let namespace = Namespace::new("list");
    namespace.inside(|| NftTable::open().unwrap().ensure(&usual_config()).unwrap());

    assert_eq!(elements(&namespace, "pods4"), json!([prefix("10.244.1.0", 24)]));
    assert_eq!(elements(&namespace, "direct4"), json!([prefix("10.244.0.0", 16)]));
    assert_eq!(elements(&namespace, "pods6"), json!([prefix("fd00:10:244:1::", 64)]));
    assert_eq!(elements(&namespace, "direct6"), json!([prefix("fd00:10:244::", 48)]));

    let chains = listed(&namespace, "chain");
    let hooks: Vec<_> = chains
        .iter()
        .map(|chain| (&chain["name"], &chain["type"], &chain["prio"], &chain["policy"]))
        .collect();
    let (pre, post) = (json!("prerouting"), json!("postrouting"));
    let accept = json!("accept");
    assert_eq!(
        hooks,
        [
            (&pre, &json!("filter"), &json!(-450), &accept),
            (&post, &json!("nat"), &json!(100), &accept),
        ]
    );
    assert_eq!(chains[0]["hook"], pre);
    assert_eq!(chains[1]["hook"], post);
}

#[test]
#[ignore = "needs root"]
fn the_rules_are_those_of_the_design() {
    let namespace = Namespace::new("rules");
    namespace.inside(|| NftTable::open().unwrap().ensure(&usual_config()).unwrap());
    let rules = listed(&namespace, "rule");
    let found: Vec<_> = rules.iter().map(|rule| (&rule["chain"], &rule["expr"])).collect();
    let meta = |key: &str| json!({"meta": {"key": key}});
    let untrack = json!([equals(meta("iifname"), "viaduct1"), {"notrack": null}]);
    let (pre, post) = (json!("prerouting"), json!("postrouting"));
    let mut expected = vec![(pre, untrack)];
    for (protocol, pods, direct) in [("ip", "@pods4", "@direct4"), ("ip6", "@pods6", "@direct6")] {
        let from_pods = equals(address(protocol, "saddr"), pods);
        let translated = json!({"match":
            {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}});
        let elsewhere = differs(address(protocol, "daddr"), direct);
        let outwards = differs(meta("oifname"), "viaduct0");
        let (counter, masquerade) = (json!({"counter": null}), json!({"masquerade": null}));
        expected.push((post.clone(), json!([from_pods, translated, counter, masquerade])));
        expected.push((post.clone(), json!([from_pods, elsewhere, outwards, counter, masquerade])));
    }
    let expected: Vec<_> = expected.iter().map(|(chain, rule)| (chain, rule)).collect();
    assert_eq!(found, expected);
    assert!(rules.iter().all(|rule| rule["comment"].is_string()), "{rules:?}");
}

#[test]
#[ignore = "needs root"]
fn overlapping_adjacent_and_extreme_prefixes_make_sets() {
    let namespace = Namespace::new("sets");
    let pods = ["10.0.1.0/24", "10.0.2.0/24", "10.0.1.128/25", "10.0.1.0/24", "::/0"];
    let mut config = config(&pods, &["0.0.0.0/1", "128.0.0.0/1", "fd00::/8", "ffff::/16"]);
    config.kernel = vec!["192.0.2.0/24".parse().unwrap()];
    let mut table = namespace.inside(|| NftTable::open().unwrap());
    table.ensure(&config).unwrap();

    for (set, inside, outside) in [
        ("pods4", vec!["10.0.1.0", "10.0.1.200", "10.0.2.255"], vec!["10.0.0.255", "10.0.3.0"]),
        ("pods6", vec!["::", "fd00::1", "ffff:ffff::"], vec![]),
        (
            "direct4",
            vec!["0.0.0.0", "192.0.1.255", "192.0.3.0", "255.255.255.255"],
            vec!["192.0.2.0", "192.0.2.255"],
        ),
        ("direct6", vec!["fd00::", "fdff::1", "ffff::1"], vec!["fc00::", "fe00::", "fffe::"]),
    ] {
        for address in inside {
            assert!(has_element(&namespace, set, address), "{address} should be in {set}");
        }
        for address in outside {
            assert!(!has_element(&namespace, set, address), "{address} should not be in {set}");
        }
    }
    config.pod_cidrs.clear();
    config.direct.clear();
    table.ensure(&config).unwrap();
    assert_eq!(elements(&namespace, "direct4"), Value::Null);
}

#[test]
#[ignore = "needs root"]
fn thousands_of_prefixes_fit_one_batch() {
    let namespace = Namespace::new("many");
    let mut config = usual_config();
    config.direct = (0..8000u32)
        .map(|index| format!("{}.{}.0.0/24", index / 250 + 11, index % 250))
        .chain((0..8000u32).map(|index| format!("fd00:{:x}::/64", index * 2)))
        .map(|text| text.parse().unwrap())
        .collect();
    namespace.inside(|| NftTable::open().unwrap().ensure(&config).unwrap());
    assert!(has_element(&namespace, "direct4", "11.3.0.7"));
    assert!(has_element(&namespace, "direct6", "fd00:3e7e::7"));
    assert!(!has_element(&namespace, "direct6", "fd00:3e7d::7"));
}

#[test]
#[ignore = "needs root"]
fn tables_of_others_stay_untouched() {
    let namespace = Namespace::new("others");
    namespace.shell(
        "nft add table inet viaduct2; nft add table ip viaduct; nft add chain ip viaduct c; \
         nft add rule ip viaduct c counter accept",
    );
    let before = namespace.shell("nft -a list ruleset");
    let mut table = namespace.inside(|| NftTable::open().unwrap());
    assert!(!table.present().unwrap());
    table.remove().unwrap();
    for _ in 0..3 {
        table.ensure(&usual_config()).unwrap();
    }
    assert!(table.present().unwrap());
    let with_ours = namespace.shell("nft -a list ruleset");
    assert_eq!(with_ours.matches("table inet viaduct {").count(), 1);
    assert!(with_ours.starts_with(&before));
    table.remove().unwrap();
    table.remove().unwrap();
    assert!(!table.present().unwrap());
    assert_eq!(namespace.shell("nft -a list ruleset"), before);
}

#[test]
#[ignore = "needs root"]
fn ensure_replaces_what_strangers_left_in_our_table() {
    let namespace = Namespace::new("stale");
    namespace.shell(
        "nft add table inet viaduct; nft add chain inet viaduct old '{ type filter hook input \
         priority 0; policy drop; }'; nft add set inet viaduct pods4 '{ type ipv6_addr; }'",
    );
    namespace.inside(|| NftTable::open().unwrap().ensure(&usual_config()).unwrap());
    assert_eq!(listed(&namespace, "chain").len(), 2);
    assert_eq!(elements(&namespace, "pods4"), json!([prefix("10.244.1.0", 24)]));
}

#[test]
#[ignore = "needs root"]
fn an_impossible_interface_name_changes_nothing() {
    let namespace = Namespace::new("name");
    let mut table = namespace.inside(|| NftTable::open().unwrap());
    for name in ["", "sixteen-letters-", "zero\0"] {
        let mut config = usual_config();
        config.node_port = name;
        let error = table.ensure(&config).unwrap_err();
        assert!(error.to_string().contains("is no interface name"), "{error}");
    }
    assert!(!table.present().unwrap());
    table.ensure(&NftConfig { node_port: "fifteen-letters", ..usual_config() }).unwrap();
}

// ------------------------------------------------------------------------------- the monitor

/// Whether the monitor's descriptor becomes readable within `patience`.
fn readable(monitor: &NftMonitor, patience: Duration) -> bool {
    let descriptor = monitor.as_fd();
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let timeout = Timespec::try_from(patience).unwrap();
    rustix::event::poll(&mut polled, Some(&timeout)).unwrap() == 1
}

#[test]
#[ignore = "needs root"]
fn what_others_do_to_our_table_is_noticed_and_mended() {
    let namespace = Namespace::new("watch");
    let (mut table, mut monitor) = namespace.inside(|| {
        let table = NftTable::open().unwrap();
        let monitor = table.monitor().unwrap();
        (table, monitor)
    });
    table.ensure(&usual_config()).unwrap();
    let intact = namespace.shell("nft -s list table inet viaduct");
    assert!(readable(&monitor, DEADLINE));
    assert!(!monitor.changed().unwrap(), "our own change was taken for another's");

    for change in [
        "nft flush ruleset",
        "nft delete table inet viaduct",
        "nft flush table inet viaduct",
        "nft flush chain inet viaduct postrouting",
        "nft add element inet viaduct pods4 '{ 10.9.0.0/16 }'",
    ] {
        namespace.shell(change);
        assert!(readable(&monitor, DEADLINE), "{change}");
        assert!(monitor.changed().unwrap(), "{change} was not noticed");
        table.ensure(&usual_config()).unwrap();
        assert!(!monitor.changed().unwrap());
        assert_eq!(namespace.shell("nft -s list table inet viaduct"), intact, "after {change}");
    }
}

#[test]
#[ignore = "needs root"]
fn what_others_do_to_their_tables_is_not_our_concern() {
    let namespace = Namespace::new("ignore");
    let (mut table, mut monitor) = namespace.inside(|| {
        let table = NftTable::open().unwrap();
        let monitor = table.monitor().unwrap();
        (table, monitor)
    });
    table.ensure(&usual_config()).unwrap();
    assert!(!monitor.changed().unwrap());
    namespace.shell("nft add table inet viaduct2; nft add table ip viaduct; nft list ruleset");
    assert!(readable(&monitor, DEADLINE));
    assert!(!monitor.changed().unwrap());
    namespace.shell("nft delete table ip viaduct; nft delete table inet viaduct2");
    assert!(!monitor.changed().unwrap());
    table.remove().unwrap();
    assert!(!monitor.changed().unwrap());
}

#[test]
#[ignore = "needs root"]
fn notifications_that_were_lost_count_as_a_change() {
    let namespace = Namespace::new("overrun");
    let mut monitor = namespace.inside(|| NftTable::open().unwrap().monitor().unwrap());
    // Each element is announced; together they exceed the monitor's receive buffer.
    namespace.shell(
        "{ echo 'table ip other { set many { type ipv4_addr; elements = {'
           seq -f '10.0.%.0f.1,' 0 255
           for high in $(seq 1 80); do seq -f \"10.$high.%.0f.1,\" 0 255; done
           echo '}; }; }'; } | nft -f -",
    );
    assert!(monitor.changed().unwrap());
    assert!(!monitor.changed().unwrap());
}

// ------------------------------------------------------------------------------- connections

const POD_A: [&str; 2] = ["10.244.1.10", "fd00:10:244:1::10"];
const POD_B: [&str; 2] = ["10.244.1.11", "fd00:10:244:1::11"];
const NODE: [&str; 2] = ["192.0.2.1", "fd00:2::1"];
const OUTSIDE: [&str; 2] = ["192.0.2.2", "fd00:2::2"];
/// A pod on another node: an address inside `direct`.
const REMOTE: [&str; 2] = ["10.244.9.9", "fd00:10:244:9::9"];
const SERVICE: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
const POD_PORT: u16 = 8080;
const SERVICE_PORT: u16 = 80;
const NODE_PORT: u16 = 30080;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worker {
    Alive,
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

/// A node with two pods, an outside machine, and a Service whose only backend is pod B.
struct Network {
    node: Namespace,
    pod_a: Namespace,
    pod_b: Namespace,
    outside: Namespace,
    table: NftTable,
    /// Plays the worker while one lives.
    worker: Option<Namespace>,
}

impl Network {
    fn new(worker: Worker) -> Network {
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
    fn kill_worker(&mut self) {
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
    fn sources(
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
const SYSCTLS: &str = "
    cd /proc/sys/net
    for name in all default; do
        echo 1 > ipv4/conf/$name/forwarding
        echo 0 > ipv4/conf/$name/send_redirects
        echo 2 > ipv4/conf/$name/rp_filter
        echo 1 > ipv6/conf/$name/forwarding
        echo 0 > ipv6/conf/$name/accept_dad
    done
    ip link set lo up";

const NODE_SCRIPT: &str = "
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
const SERVICES: &str = "nft -f - <<'RULES'
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

const OUTSIDE_SCRIPT: &str = "
    ip link set eth0 up
    ip addr add 192.0.2.2/24 dev eth0
    ip addr add fd00:2::2/64 dev eth0 nodad
    ip addr add 10.244.9.9/32 dev lo
    ip addr add fd00:10:244:9::9/128 dev lo
    ip route add 10.244.1.0/24 via 192.0.2.1
    ip route add fd00:10:244:1::/64 via fd00:2::1";

/// Pods reach each other here; all else goes through the node port.
const WORKER_SCRIPT: &str = "
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
const FALLBACK_SCRIPT: &str = "
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
fn attach(home: &Namespace, host_end: &str, pod: &Namespace, [v4, v6]: [&str; 2]) {
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
fn host_end_script(host_end: &str) -> String {
    format!(
        "ip link set {host_end} up
         ip addr add 169.254.1.1/32 dev {host_end} scope link
         ip addr add fe80::1/64 dev {host_end} nodad"
    )
}

/// Connects by TCP; returns both ends.
fn open_stream(
    from: &Namespace,
    target: (&str, u16),
    (to, address, port): (&Namespace, &str, u16),
) -> io::Result<[TcpStream; 2]> {
    let target = SocketAddr::new(target.0.parse().unwrap(), target.1);
    let server = to.inside(|| TcpListener::bind((address, port)))?;
    let client = from.inside(|| TcpStream::connect_timeout(&target, PATIENCE))?;
    let (accepted, _) = server.accept()?;
    Ok([client, accepted])
}

/// Sends a byte each way, waiting at most `patience` for each.
fn exchange([client, accepted]: &mut [TcpStream; 2], patience: Duration) -> io::Result<()> {
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
fn exchange_datagrams(
    from: &Namespace,
    target: (&str, u16),
    (to, address, port): (&Namespace, &str, u16),
) -> io::Result<IpAddr> {
    let target = SocketAddr::new(target.0.parse().unwrap(), target.1);
    let server = to.inside(|| UdpSocket::bind((address, port)))?;
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
fn connect(
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

fn seen(addresses: [&str; 2]) -> [Result<String, String>; 2] {
    addresses.map(|address| Ok(address.to_owned()))
}

fn plain_traffic_is_translated_only_where_it_leaves_the_pod_network(worker: Worker) {
    let network = Network::new(worker);
    let Network { node, pod_a, pod_b, outside, .. } = &network;
    let to_pod_b = ((POD_B, POD_PORT), (pod_b, POD_B));
    let to_outside = ((OUTSIDE, POD_PORT), (outside, OUTSIDE));
    let to_remote = ((REMOTE, POD_PORT), (outside, REMOTE));
    let to_node = ((NODE, POD_PORT), (node, NODE));
    for (from, (target, server), source) in [
        (pod_a, to_outside, NODE),
        (pod_a, to_remote, POD_A),
        (pod_a, to_pod_b, POD_A),
        (pod_a, to_node, POD_A),
        (node, to_pod_b, NODE),
        (outside, to_pod_b, OUTSIDE),
    ] {
        let result = network.sources(from, target, server);
        assert_eq!(result, seen(source), "{} to {target:?}", from.name);
    }
}

#[test]
#[ignore = "needs root"]
fn a_living_worker_keeps_the_addresses_of_pods_but_not_towards_the_outside() {
    plain_traffic_is_translated_only_where_it_leaves_the_pod_network(Worker::Alive);
}

#[test]
#[ignore = "needs root"]
fn without_a_worker_the_same_addresses_are_kept() {
    plain_traffic_is_translated_only_where_it_leaves_the_pod_network(Worker::Dead);
}

#[test]
#[ignore = "needs root"]
fn without_masquerade_pods_leave_with_their_own_address() {
    let mut network = Network::new(Worker::Alive);
    network.table.ensure(&NftConfig { masquerade: false, ..usual_config() }).unwrap();
    let Network { pod_a, pod_b, outside, .. } = &network;
    let plain = network.sources(pod_a, (OUTSIDE, POD_PORT), (outside, OUTSIDE));
    assert_eq!(plain, seen(POD_A));
    let service = network.sources(pod_a, (SERVICE, SERVICE_PORT), (pod_b, POD_B));
    assert_eq!(service, seen(NODE));
}

fn services_work(worker: Worker) {
    let network = Network::new(worker);
    let Network { node, pod_a, pod_b, outside, .. } = &network;
    for (from, target, source) in [
        (pod_a, (SERVICE, SERVICE_PORT), NODE),
        (pod_b, (SERVICE, SERVICE_PORT), NODE),
        (node, (SERVICE, SERVICE_PORT), NODE),
        (pod_a, (NODE, NODE_PORT), NODE),
        (outside, (NODE, NODE_PORT), OUTSIDE),
    ] {
        let result = network.sources(from, target, (pod_b, POD_B));
        assert_eq!(result, seen(source), "{} to {target:?}", from.name);
    }
}

#[test]
#[ignore = "needs root"]
fn services_with_a_local_backend_work_while_a_worker_lives() {
    services_work(Worker::Alive);
}

#[test]
#[ignore = "needs root"]
fn services_with_a_local_backend_work_while_no_worker_lives() {
    services_work(Worker::Dead);
}

#[test]
#[ignore = "needs root"]
fn open_connections_outlive_the_worker() {
    let mut network = Network::new(Worker::Alive);
    let mut streams = Vec::new();
    for side in [0, 1] {
        let Network { pod_a, pod_b, outside, .. } = &network;
        let backend = (pod_b, POD_B[side], POD_PORT);
        for (from, target, server) in [
            (pod_a, (SERVICE[side], SERVICE_PORT), backend),
            (pod_b, (SERVICE[side], SERVICE_PORT), backend),
            (pod_a, (POD_B[side], POD_PORT), backend),
            (outside, (NODE[side], NODE_PORT), backend),
            (pod_a, (OUTSIDE[side], POD_PORT), (outside, OUTSIDE[side], POD_PORT)),
        ] {
            let mut stream = open_stream(from, target, server).unwrap();
            exchange(&mut stream, PATIENCE).unwrap();
            streams.push((target, stream));
        }
    }
    network.kill_worker();
    for (target, stream) in &mut streams {
        // TCP repeats what was lost while the devices moved.
        exchange(stream, DEADLINE).unwrap_or_else(|error| panic!("to {target:?}: {error}"));
    }
}

/// The proof that each of the two chains is needed: without it, the same connection fails.
#[test]
#[ignore = "needs root"]
fn a_service_breaks_without_the_chain_that_mends_it() {
    for (worker, chain) in [(Worker::Alive, "postrouting"), (Worker::Dead, "prerouting")] {
        let mut network = Network::new(worker);
        let reach = |network: &Network, side: usize| {
            let server = (&network.pod_b, POD_B[side], POD_PORT);
            let target = (SERVICE[side], SERVICE_PORT);
            connect(Transport::Tcp, &network.pod_a, target, server)
        };
        network.node.shell(&format!("nft flush chain inet viaduct {chain}"));
        for side in [0, 1] {
            let broken = reach(&network, side);
            assert!(broken.is_err(), "{worker:?} without {chain}: {broken:?}");
        }
        network.table.ensure(&usual_config()).unwrap();
        for side in [0, 1] {
            reach(&network, side).unwrap();
        }
    }
}
