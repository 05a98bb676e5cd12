//! The mirror of the kernel's routes beside the kernel itself: whatever is done to routes, rules,
//! neighbors, nexthop objects and links, the mirror that followed the events is the mirror that
//! lists everything anew, and both send where the kernel would (needs root).

// Its traffic is for another test.
#[allow(dead_code)]
mod kernel;
mod namespace;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use control::fib::{Followed, Mirror, Resync};
use control::netlink::{Event, Monitor, Netlink};
use dataplane::fib::{Hop, UplinkId};
use dataplane::port::Mac;
use ipnet::IpNet;
use kernel::{DEADLINE, wait_for};
use namespace::Namespace;

/// Uplinks of the node, and one interface that is none.
const UPLINKS: [&str; 2] = ["u0", "u1"];
const OTHER: &str = "x0";

/// Flows that are tried per destination: each way of a multipath route gets some.
const FLOWS: u32 = 64;

fn direct() -> Vec<IpNet> {
    ["10.0.0.0/8", "fd10::/16", "192.0.2.0/24", "fd01::/64"]
        .map(|prefix| prefix.parse().expect("prefix"))
        .to_vec()
}

/// A node with two uplinks and another interface; their far ends are in a namespace of their own.
struct Node {
    netns: Namespace,
    far: Namespace,
    netlink: Netlink,
    monitor: Monitor,
    mirror: Mirror,
}

impl Node {
    fn new() -> Node {
        let (netns, far) = (Namespace::new(), Namespace::new());
        netns.visit(|| {
            // An interface that comes up again has its addresses again.
            std::fs::write("/proc/sys/net/ipv6/conf/default/keep_addr_on_down", "1")
                .expect("sysctl");
            std::fs::write("/proc/sys/net/ipv6/conf/all/keep_addr_on_down", "1").expect("sysctl");
        });
        far.run("ip link set lo up");
        netns.run("ip link set lo up");
        for (number, name) in UPLINKS.into_iter().chain([OTHER]).enumerate() {
            far.run(&format!("ip link add {name} type veth peer name p{number}"));
            move_link(&far, name, &netns);
            far.run(&format!("ip link set p{number} up"));
            netns.run(&format!("ip link set {name} up"));
        }
        netns.run("ip addr add 192.0.2.1/24 dev u0");
        netns.run("ip addr add 198.51.100.1/24 dev u1");
        netns.run("ip addr add 203.0.113.1/24 dev x0");
        netns.run("ip addr add fd01::1/64 dev u0 nodad");
        netns.run("ip addr add fd02::1/64 dev u1 nodad");
        netns.run("ip addr add fd03::1/64 dev x0 nodad");
        let (netlink, monitor) =
            netns.visit(|| (Netlink::open().expect("netlink"), Monitor::open().expect("monitor")));
        let mut node = Node { netns, far, netlink, monitor, mirror: Mirror::new(direct()) };
        set_uplinks(&mut node.mirror, &mut node.netlink);
        node.resync();
        node
    }

    /// Follows the events there are, as the daemon does.
    fn follow(&mut self) -> Followed {
        let events = self.events();
        let followed = self.apply(&events);
        if followed.resync {
            self.resync();
        }
        followed
    }

    /// Follows the events there are, but lists nothing.
    fn follow_without_list(&mut self) {
        let events = self.events();
        self.apply(&events);
    }

    fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while self.monitor.receive(&mut events, 4096).expect("receive") {}
        events
    }

    fn apply(&mut self, events: &[Event]) -> Followed {
        let applied = events.iter().map(|event| self.mirror.apply(event));
        applied.fold(Followed::default(), Followed::and)
    }

    /// A mirror that has seen no event.
    fn fresh(&mut self) -> Mirror {
        let mut fresh = Mirror::new(direct());
        set_uplinks(&mut fresh, &mut self.netlink);
        self.netns.visit(|| list(&mut fresh, &mut self.netlink));
        fresh
    }

    /// Lists the kernel in one go.
    fn resync(&mut self) {
        self.netns.visit(|| list(&mut self.mirror, &mut self.netlink));
    }

    /// Begins to list the kernel.
    fn begin(&mut self) -> Option<Resync> {
        let begin = || Resync::begin(&mut self.mirror, &mut self.netlink);
        self.netns.visit(begin).expect("begin to list")
    }

    /// Follows the events there are while the kernel is listed.
    fn follow_beside(&mut self, resync: &mut Resync) {
        let events = self.events();
        events.iter().for_each(|event| resync.note(event));
        self.apply(&events);
    }

    /// Runs `ip` with these words; some of what the tests try is refused.
    fn ip(&self, words: &str) -> bool {
        let mut command = Command::new("ip");
        let here = words.split_whitespace().filter(|word| *word != "far");
        command.args(here).stdout(Stdio::null()).stderr(Stdio::null());
        let netns = if words.contains(" far ") { &self.far } else { &self.netns };
        netns.visit(|| command.status()).expect("run ip").success()
    }

    fn route(&self, dst: &str) -> BTreeSet<String> {
        ways(&self.mirror, dst.parse().expect("address"))
    }
}

fn move_link(from: &Namespace, name: &str, to: &Namespace) {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/{}/fd/{}", std::process::id(), to.fd().as_raw_fd());
    from.run(&format!("ip link set {name} netns {path}"));
}

fn list(mirror: &mut Mirror, netlink: &mut Netlink) {
    let Some(mut resync) = Resync::begin(mirror, netlink).expect("begin to list") else { return };
    while !resync.step(Instant::now()).expect("list") {}
    *mirror = resync.into_mirror();
}

fn set_uplinks(mirror: &mut Mirror, netlink: &mut Netlink) {
    for (number, name) in (0..).zip(UPLINKS) {
        let link = netlink.link(name).expect("look up");
        mirror.set_uplink(UplinkId(number), link.map(|link| link.index));
    }
}

/// How packets to a destination leave, over all flows; empty if the kernel takes them.
fn ways(mirror: &Mirror, dst: IpAddr) -> BTreeSet<String> {
    let hops = (0..FLOWS).filter_map(|flow| mirror.fib().route(dst, flow * (u32::MAX / FLOWS)));
    hops.map(|Hop { uplink, mac, mtu }| {
        format!("{} {} {mtu:?}", UPLINKS[uplink.0 as usize], text(mac))
    })
    .collect()
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// All that a mirror says, to be compared with another's.
fn contents(mirror: &Mirror) -> Vec<String> {
    let routes = mirror.routes_after(None).map(|(key, route)| {
        format!("{} table {} metric {} {route:?}", key.dst(), key.table(), key.metric())
    });
    let samples = samples().into_iter().map(|dst| format!("{dst}: {:?}", ways(mirror, dst)));
    routes.chain(samples).collect()
}

fn samples() -> Vec<IpAddr> {
    [
        "10.9.9.9",
        "10.1.9.9",
        "10.1.2.9",
        "10.1.2.3",
        "10.2.0.1",
        "192.0.2.2",
        "192.0.2.9",
        "fd10:9::9",
        "fd10:1:9::9",
        "fd10:1:2::9",
        "fd10:1:2::3",
        "fd10:2::1",
        "fd01::2",
        "fd01::9",
    ]
    .map(|address| address.parse().expect("address"))
    .to_vec()
}

#[test]
#[ignore = "needs root"]
fn a_route_by_a_resolved_router_is_followed_and_one_by_another_interface_is_not() {
    let mut node = Node::new();
    assert!(node.ip("neigh replace 192.0.2.2 lladdr 06:00:00:00:00:02 dev u0 nud permanent"));
    assert!(node.ip("route add 10.1.0.0/16 via 192.0.2.2 mtu 1400"));
    assert!(node.ip("route add 10.2.0.0/16 via 203.0.113.2"));
    assert!(node.follow().changed);
    assert_eq!(node.route("10.1.0.1"), ["u0 06:00:00:00:00:02 Some(1400)".to_owned()].into());
    assert!(node.route("10.2.0.1").is_empty(), "by an interface that is no uplink");
    assert!(node.route("10.3.0.1").is_empty(), "no route");
    assert!(node.ip("route del 10.1.0.0/16"));
    assert!(node.follow().changed);
    assert!(node.route("10.1.0.1").is_empty());
}

#[test]
#[ignore = "needs root"]
fn routes_by_a_link_that_goes_down_are_followed_at_once_and_come_back() {
    let mut node = Node::new();
    for words in [
        "neigh replace 192.0.2.2 lladdr 06:00:00:00:00:02 dev u0 nud permanent",
        "neigh replace 198.51.100.2 lladdr 06:00:00:00:00:03 dev u1 nud permanent",
        "route add 10.0.0.0/8 via 192.0.2.2",
        "route add 10.1.0.0/16 via 198.51.100.2",
        "route add 10.2.0.0/16 nexthop via 192.0.2.2 nexthop via 198.51.100.2",
    ] {
        assert!(node.ip(words), "{words}");
    }
    node.follow();
    let (u0, u1) = ("u0 06:00:00:00:00:02 None", "u1 06:00:00:00:00:03 None");
    assert_eq!(node.route("10.1.0.1"), [u1.to_owned()].into());
    assert_eq!(node.route("10.2.0.1"), [u0.to_owned(), u1.to_owned()].into());

    assert!(node.ip("link set u1 down"));
    let events = node.events();
    let vanishes =
        |event: &&Event| matches!(event, Event::RouteGone(route) if route.dst.addr().is_ipv4());
    assert_eq!(events.iter().find(vanishes), None, "the kernel says nothing about IPv4 routes");
    let followed = node.apply(&events);
    assert_eq!(followed, Followed { changed: true, resync: true });
    assert!(node.route("10.1.0.1").is_empty(), "before anything is listed, the kernel's");
    assert_eq!(node.route("10.2.0.1"), [u0.to_owned()].into());
    node.resync();
    assert_eq!(node.route("10.1.0.1"), [u0.to_owned()].into(), "by the shorter prefix");

    assert!(node.ip("link set u1 up"));
    assert!(node.ip("neigh replace 198.51.100.2 lladdr 06:00:00:00:00:03 dev u1 nud permanent"));
    assert!(node.ip("route add 10.1.0.0/16 via 198.51.100.2"));
    wait_for("both ways again", || {
        node.follow();
        let both = node.route("10.2.0.1") == [u0.to_owned(), u1.to_owned()].into();
        both && node.route("10.1.0.1") == [u1.to_owned()].into()
    });
}

#[test]
#[ignore = "needs root"]
fn a_wire_without_carrier_is_the_kernels_and_another_hop_takes_over() {
    let mut node = Node::new();
    for words in [
        "neigh replace 192.0.2.2 lladdr 06:00:00:00:00:02 dev u0 nud permanent",
        "neigh replace 198.51.100.2 lladdr 06:00:00:00:00:03 dev u1 nud permanent",
        "route add 10.1.0.0/16 via 198.51.100.2",
        "route add 10.1.0.0/16 via 192.0.2.2 metric 10",
        "route add 10.2.0.0/16 nexthop via 192.0.2.2 nexthop via 198.51.100.2",
        "link set far p1 down",
    ] {
        assert!(node.ip(words), "{words}");
    }
    wait_for("the carrier of u1 is gone", || {
        node.follow();
        node.route("10.2.0.1") == ["u0 06:00:00:00:00:02 None".to_owned()].into()
    });
    assert!(node.route("10.1.0.1").is_empty(), "the kernel loses such packets, and so may it");
    node.netns.visit(|| {
        let setting = "/proc/sys/net/ipv4/conf/u1/ignore_routes_with_linkdown";
        std::fs::write(setting, "1").expect("sysctl");
    });
    node.resync();
    let backup = ["u0 06:00:00:00:00:02 None".to_owned()].into();
    assert_eq!(node.route("10.1.0.1"), backup, "the kernel passes the route over");
}

#[test]
#[ignore = "needs root"]
fn routers_are_resolved_by_the_kernel_and_let_go_with_their_routes() {
    let mut node = Node::new();
    node.far.run("ip addr add 192.0.2.2/24 dev p0");
    node.far.run("ip addr add fd01::2/64 dev p0 nodad");
    assert!(node.ip("route add 10.1.0.0/16 via 192.0.2.2"));
    assert!(node.ip("-6 route add fd10::/32 via fd01::2"));
    assert!(node.ip("route add 10.2.0.0/16 via inet6 fd01::2"));
    let mut far = node.far.visit(|| Netlink::open().expect("netlink"));
    let mac = text(far.link("p0").expect("look up").expect("p0").mac.expect("a MAC address"));
    let by_u0: BTreeSet<String> = [format!("u0 {mac} None")].into();
    wait_for("the routers are resolved", || {
        node.follow();
        let wanted = node.mirror.wanted();
        node.netlink.execute(wanted).expect("the kernel takes the requests");
        ["10.1.0.1", "fd10::1", "10.2.0.1"].iter().all(|dst| node.route(dst) == by_u0)
    });
    node.follow();
    assert!(node.mirror.wanted().is_empty(), "the kernel has been asked once");
    let managed = |node: &Node| node.netns.run("ip neigh show").matches("managed").count();
    assert_eq!(managed(&node), 2);

    assert!(node.ip("route del 10.1.0.0/16"));
    wait_for("the first router is let go", || {
        node.follow();
        let wanted = node.mirror.wanted();
        node.netlink.execute(wanted).expect("the kernel takes the requests");
        managed(&node) == 1
    });
    assert_eq!(node.route("10.2.0.1"), by_u0, "the other is still in use");
}

#[test]
#[ignore = "needs root"]
fn a_router_with_another_mac_address_is_followed() {
    let mut node = Node::new();
    assert!(node.ip("neigh replace fd01::2 lladdr 06:00:00:00:00:02 dev u0 nud reachable"));
    assert!(node.ip("nexthop add id 1 via fd01::2 dev u0"));
    assert!(node.ip("nexthop add id 9 group 1"));
    assert!(node.ip("-6 route add fd10::/32 nhid 9"));
    node.follow();
    assert_eq!(node.route("fd10::1"), ["u0 06:00:00:00:00:02 None".to_owned()].into());
    assert!(node.ip("neigh replace fd01::2 lladdr 06:00:00:00:00:03 dev u0 nud stale"));
    assert_eq!(node.follow(), Followed { changed: true, resync: false });
    assert_eq!(node.route("fd10::1"), ["u0 06:00:00:00:00:03 None".to_owned()].into());
    for mac in ["07:00:00:00:00:03", "00:00:00:00:00:00"] {
        assert!(node.ip(&format!("neigh replace fd01::2 lladdr {mac} dev u0 nud permanent")));
        node.follow();
        assert!(node.route("fd10::1").is_empty(), "{mac} is no station's");
    }
}

/// Feeds `ip -batch` with lines; as fast as routes get into a kernel from outside.
fn batch(node: &Node, lines: impl Iterator<Item = String>) {
    let mut child = node.netns.visit(|| {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped());
        command.spawn().expect("run ip")
    });
    let mut input = std::io::BufWriter::new(child.stdin.take().expect("piped"));
    lines.for_each(|line| writeln!(input, "{line}").expect("write"));
    drop(input);
    assert!(child.wait().expect("ip ends").success());
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kilobytes = line.trim().trim_end_matches(" kB");
    kilobytes.parse::<usize>().expect("a number") * 1024
}

#[test]
#[ignore = "needs root"]
fn after_more_events_than_fit_the_mirror_lists_anew_and_changes_stay_fast() {
    // A full table of the internet takes half a minute to write into the kernel.
    let long = std::env::var_os("VIADUCT_E2E_LONG").is_some();
    let (v4, v6): (u32, u32) = if long { (1_000_000, 200_000) } else { (50_000, 10_000) };
    let mut node = Node::new();
    assert!(node.ip("neigh replace 192.0.2.2 lladdr 06:00:00:00:00:02 dev u0 nud permanent"));
    assert!(node.ip("neigh replace fd01::2 lladdr 06:00:00:00:00:02 dev u0 nud permanent"));
    let first = u32::from(std::net::Ipv4Addr::new(10, 0, 0, 0));
    let dst_v4 = move |number: u32| std::net::Ipv4Addr::from(first + number * 4);
    let dst_v6 = |number: u32| format!("fd10:{:x}:{:x}::", number >> 16, number & 0xffff);
    batch(&node, (0..v4).map(|number| format!("route add {}/30 via 192.0.2.2", dst_v4(number))));
    batch(&node, (0..v6).map(|number| format!("route add {}/48 via fd01::2", dst_v6(number))));
    let events = node.events();
    assert!(events.contains(&Event::Overrun), "events were lost, and the kernel says so");
    node.apply(&events);
    drop(events);

    let before = resident();
    let start = Instant::now();
    node.resync();
    let listed = start.elapsed();
    let (fib, all) = (node.mirror.fib().bytes(), resident() - before);
    assert!(node.mirror.routes() >= (v4 + v6) as usize);
    assert_eq!(node.route("10.0.0.1"), ["u0 06:00:00:00:00:02 None".to_owned()].into());
    let start = Instant::now();
    node.resync();
    let again = start.elapsed();

    // Each change after a publication, which shares the tables with the workers.
    let mut worst = Vec::new();
    for number in 0..500 {
        let verb = if number % 2 == 0 { "del" } else { "add" };
        let number = (number / 2) * 97 % v4;
        assert!(node.ip(&format!("route {verb} {}/30 via 192.0.2.2", dst_v4(number))));
        let events = node.events();
        let published = node.mirror.fib().clone();
        let start = Instant::now();
        assert_eq!(node.apply(&events), Followed { changed: true, resync: false });
        worst.push(start.elapsed());
        drop(published);
    }
    worst.sort();
    println!(
        "{} routes: listed in {listed:?}, again in {again:?}; {} bytes a route resident, of which \
         {} the workers' tables; a change: median {:?}, p99 {:?}",
        node.mirror.routes(),
        all / node.mirror.routes(),
        fib / node.mirror.routes(),
        worst[worst.len() / 2],
        worst[worst.len() * 99 / 100],
    );
    assert_eq!(contents(&node.fresh()), contents(&node.mirror));
}

/// The routes that [`many`] adds, of each family.
const MANY: u32 = 4000;

fn one_v4(number: u32) -> String {
    format!("10.{}.{}.0/25", 128 + (number >> 8), number & 0xff)
}

fn one_v6(number: u32) -> String {
    format!("fd10:ffff:{number:x}::/48")
}

/// Routes for some twenty reads of the kernel's list.
fn many(node: &Node) {
    batch(node, (0..MANY).map(|number| format!("route add {} via 192.0.2.2", one_v4(number))));
    batch(node, (0..MANY).map(|number| format!("route add {} via fd01::2", one_v6(number))));
}

#[test]
#[ignore = "needs root"]
fn what_the_kernels_list_passed_over_is_in_the_next() {
    let mut node = Node::new();
    many(&node);
    node.follow();
    let mut resync = node.begin().expect("everything is listed");
    let mut steps = 0;
    while !resync.step(Instant::now()).expect("list") {
        // What is gone stood before where the list has come to, so the kernel passes over others.
        let (gone, new) = (one_v6(steps), one_v6(MANY + steps));
        assert!(node.ip(&format!("-6 route del {gone}")));
        assert!(node.ip(&format!("-6 route add {new} via fd01::2")));
        node.follow_beside(&mut resync);
        steps += 1;
    }
    assert!(steps > 10, "only {steps} steps");
    assert!(resync.was_disturbed(), "nobody may take it for what the kernel has");
    let listed = resync.into_mirror();
    println!("{} routes of {} were passed over", node.mirror.routes() - listed.routes(), MANY);
    node.mirror = listed;
    node.follow();

    let mut resync = node.begin().expect("everything is listed");
    while !resync.step(Instant::now()).expect("list") {
        assert!(node.ip("neigh replace 192.0.2.9 lladdr 06:00:00:00:00:02 dev u0 nud permanent"));
        assert!(node.ip("route replace 172.16.0.0/12 via 192.0.2.2"));
        node.follow_beside(&mut resync);
    }
    assert!(!resync.was_disturbed(), "neither by a neighbor nor by a route that is not followed");
    node.mirror = resync.into_mirror();
    assert_eq!(contents(&node.mirror), contents(&node.fresh()));
}

#[test]
#[ignore = "needs root"]
fn a_list_that_events_are_lost_of_leads_to_nothing_and_the_mirror_goes_on() {
    let mut node = Node::new();
    many(&node);
    assert!(node.ip("neigh replace 192.0.2.2 lladdr 06:00:00:00:00:02 dev u0 nud permanent"));
    node.follow();
    let mut resync = node.begin().expect("everything is listed");
    assert!(!resync.step(Instant::now()).expect("list"), "it takes more than a step");
    assert!(node.ip("route add 10.1.0.0/16 via 192.0.2.2"));
    node.events().iter().for_each(|event| {
        node.mirror.apply(event);
        resync.note(event);
    });
    let way: BTreeSet<String> = ["u0 06:00:00:00:00:02 None".to_owned()].into();
    assert_eq!(node.route("10.1.0.1"), way, "what is told is followed at once");
    assert!(!resync.is_void());
    resync.note(&Event::Overrun);
    assert!(resync.is_void());
}

/// Lists the kernel by single reads while anything else changes; returns what was listed, and
/// whether it says of itself that it is exact.
fn list_amid_changes(node: &mut Node, dice: &mut Dice) -> bool {
    let Some(mut resync) = node.begin() else { return false };
    let routes_change = dice.roll(3) > 0;
    while !resync.step(Instant::now()).expect("list") {
        for _ in 0..dice.roll(3) {
            let words = if routes_change { dice.change() } else { dice.neighbor() };
            node.ip(&words);
        }
        if dice.roll(2) == 0 {
            node.follow_beside(&mut resync);
        }
    }
    let exact = !resync.was_disturbed();
    node.mirror = resync.into_mirror();
    node.follow_without_list();
    exact && !node.mirror.is_due()
}

#[test]
#[ignore = "needs root"]
fn a_list_amid_changes_and_the_events_since_are_what_the_kernel_has() {
    let long = std::env::var_os("VIADUCT_E2E_LONG").is_some();
    let seeds = if long { 50 } else { 2 };
    let (mut agreed, mut disagreed) = (0, 0);
    for seed in 1..=seeds {
        let mut node = Node::new();
        let mut dice = Dice(seed);
        many(&node);
        node.follow();
        for _ in 0..60 {
            node.ip(&dice.neighbor());
        }
        for round in 0..40 {
            let exact = list_amid_changes(&mut node, &mut dice);
            // Carriers and addresses change behind the end of a command.
            let end = Instant::now() + if exact { DEADLINE } else { Duration::ZERO };
            loop {
                node.follow_without_list();
                let same = contents(&node.mirror) == contents(&node.fresh());
                let compared = compare(&mut node);
                if same && compared.is_ok() {
                    agreed += 1;
                    break;
                }
                if Instant::now() >= end {
                    assert!(
                        !exact || node.mirror.is_due(),
                        "seed {seed} round {round}: {compared:?}"
                    );
                    disagreed += 1;
                    break;
                }
            }
            // As the daemon does when a list was not exact. (The first may be about rules only.)
            wait_for("nothing changes any more, and a list is exact", || {
                node.resync();
                node.follow_without_list();
                contents(&node.mirror) == contents(&node.fresh())
            });
        }
    }
    println!("{agreed} lists were right at once, {disagreed} when they were made again");
    assert!(agreed > 0);
}

/// Numbers without order, always the same: a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // Knuth's MMIX generator; its upper bits are good.
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % sides
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }

    /// A change of something, in the words of ip(8).
    fn change(&mut self) -> String {
        match self.roll(24) {
            0..=7 => self.route(false),
            8..=13 => self.route(true),
            14..=18 => self.neighbor(),
            19 | 20 => self.nexthop(),
            21 => self.rule(),
            _ => self.link(),
        }
    }

    fn router(&mut self, ipv6: bool) -> String {
        let last = 2 + self.roll(4);
        let nets = if ipv6 {
            ["fd01::", "fd02::", "fd03::"]
        } else {
            ["192.0.2.", "198.51.100.", "203.0.113."]
        };
        // The interface that is no uplink more seldom.
        let net = nets[[0, 0, 1, 1, 2][self.roll(5)]];
        format!("{net}{last}")
    }

    fn route(&mut self, ipv6: bool) -> String {
        let family = if ipv6 { "-6 " } else { "" };
        let verb = self.one(&[
            "add", "append", "append", "prepend", "replace", "replace", "change", "del", "del",
        ]);
        let prefixes = if ipv6 {
            ["default", "fd10::/16", "fd10:1::/32", "fd10:1:2::/48", "fd10:1:2::3/128"]
        } else {
            ["default", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"]
        };
        let prefix = self.one(&prefixes);
        let metric = self.one(&["", "", " metric 10", " metric 20"]);
        let table = self.one(&["", "", "", " table 100", " table 200"]);
        let rest = match (ipv6, prefix) {
            (false, _) => self.one(&["", "", "", " mtu 1400", " proto bird"]),
            // Parts of one multipath route may differ here, of which the kernel lists the first's.
            (true, "fd10:1::/32") => " mtu 1400",
            (true, _) => "",
        };
        if verb == "del" && self.roll(2) == 0 {
            return format!("{family}route del {prefix}{table}{metric}");
        }
        let kind = self.one(&["blackhole", "unreachable", "throw", "prohibit"]);
        // The kernel's list of IPv6 routes leaves out what stands between the parts of a multipath
        // route of the same metric (seen on 6.18), so other routes have other metrics.
        match self.roll(12) {
            0 => {
                let metric = if ipv6 { " metric 40" } else { metric };
                return format!("{family}route {verb} {kind} {prefix}{table}{metric}");
            }
            1 => {
                let device = self.one(&["u0", "u1", "x0"]);
                let metric = if ipv6 { " metric 30" } else { metric };
                return format!("{family}route {verb} {prefix} dev {device}{table}{metric}{rest}");
            }
            2 | 3 => {
                let id = 1 + self.roll(6);
                let metric = if ipv6 { " metric 50" } else { metric };
                return format!("{family}route {verb} {prefix} nhid {id}{table}{metric}{rest}");
            }
            4 if !ipv6 => {
                let router = self.router(true);
                let words = format!("via inet6 {router}");
                return format!("route {verb} {prefix} {words}{table}{metric}{rest}");
            }
            5 | 6 => {
                let hops: String = (0..2 + self.roll(2))
                    .map(|_| {
                        format!(" nexthop via {} weight {}", self.router(ipv6), 1 + self.roll(3))
                    })
                    .collect();
                return format!("{family}route {verb} {prefix}{table}{metric}{rest}{hops}");
            }
            _ => {}
        }
        let router = self.router(ipv6);
        format!("{family}route {verb} {prefix} via {router}{table}{metric}{rest}")
    }

    fn neighbor(&mut self) -> String {
        let ipv6 = self.roll(2) == 0;
        let router = self.router(ipv6);
        let device = device(&router);
        let mac = 2 + self.roll(3);
        match self.roll(4) {
            0 => format!("neigh del {router} dev {device}"),
            1 => format!(
                "neigh replace {router} lladdr 06:00:00:00:01:{mac:02x} dev {device} nud stale"
            ),
            _ => format!(
                "neigh replace {router} lladdr 06:00:00:00:00:{mac:02x} dev {device} nud permanent"
            ),
        }
    }

    fn nexthop(&mut self) -> String {
        let id = 1 + self.roll(4);
        let group = 5 + self.roll(2);
        match self.roll(8) {
            0 => format!("nexthop del id {id}"),
            1 => format!("nexthop del id {group}"),
            2 => format!("nexthop replace id {group} group {}", 1 + self.roll(4)),
            3 | 4 => {
                let (a, b) = (1 + self.roll(4), 1 + self.roll(4));
                format!("nexthop replace id {group} group {a},{}/{b}", 1 + self.roll(3))
            }
            5 => format!("nexthop replace id {id} blackhole"),
            _ => {
                let router = self.router(self.0 & 1 << 40 != 0);
                format!("nexthop replace id {id} via {router} dev {}", device(&router))
            }
        }
    }

    fn rule(&mut self) -> String {
        let family = self.one(&["", "-6 "]);
        let verb = self.one(&["add", "add", "del"]);
        let priority = 100 * (1 + self.roll(3));
        let rule = self.one(&[
            "lookup 100",
            "lookup 200",
            "lookup 100",
            "goto 300",
            "goto 32766",
            "fwmark 1 lookup 200",
            "iif x0 lookup 100",
            "nop",
        ]);
        format!("{family}rule {verb} pref {priority} {rule}")
    }

    fn link(&mut self) -> String {
        let device = self.one(&["u0", "u1", "u1", "x0", "far p0", "far p1", "far p2"]);
        let state = self.one(&["down", "up", "up", "up"]);
        format!("link set {device} {state}")
    }
}

/// The interface that a router is on.
fn device(router: &str) -> &'static str {
    match router {
        _ if router.starts_with("192") || router.starts_with("fd01") => "u0",
        _ if router.starts_with("198") || router.starts_with("fd02") => "u1",
        _ => "x0",
    }
}

/// What the kernel itself answers for the sample destinations: interface, and router if any.
fn answers(node: &Node) -> BTreeMap<IpAddr, (String, Option<IpAddr>)> {
    let mut child = node.netns.visit(|| {
        let mut command = Command::new("ip");
        command.args(["-force", "-batch", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().expect("run ip")
    });
    let lines: String = samples().iter().map(|dst| format!("route get {dst}\n")).collect();
    child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("write");
    let output = child.wait_with_output().expect("ip ends");
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let dst = words.first()?.parse().ok()?;
        let behind = |word| words.iter().skip_while(move |other| **other != word).skip(1);
        let via =
            behind("via").find(|word| !word.starts_with("inet")).and_then(|word| word.parse().ok());
        Some((dst, (behind("dev").next()?.to_string(), via)))
    };
    output.lines().filter_map(answer).collect()
}

/// The MAC addresses that the kernel would use, by interface and address.
fn macs(node: &Node) -> BTreeMap<(String, IpAddr), String> {
    let output = node.netns.run("ip neigh show");
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let behind = |word| words.iter().skip_while(move |other| **other != word).nth(1);
        let address = words.first()?.parse().ok()?;
        if words.contains(&"FAILED") {
            return None;
        }
        Some(((behind("dev")?.to_string(), address), behind("lladdr")?.to_string()))
    };
    output.lines().filter_map(entry).collect()
}

/// Compares with the kernel's own answers. Returns how many destinations workers send to.
fn compare(node: &mut Node) -> Result<usize, String> {
    let (answers, macs) = (answers(node), macs(node));
    let links = node.netlink.links().expect("list interfaces");
    let mut sent = 0;
    for dst in samples() {
        let ours = ways(&node.mirror, dst);
        sent += usize::from(!ours.is_empty());
        let Some((device, via)) = answers.get(&dst) else {
            if ours.is_empty() {
                continue;
            }
            return Err(format!("{dst}: the kernel refuses, workers send {ours:?}"));
        };
        // There the kernel loses packets, and workers take another way if there is one.
        if links.iter().any(|link| link.name == *device && !link.carrier) {
            continue;
        }
        let mac = macs.get(&(device.clone(), via.unwrap_or(dst)));
        let theirs = mac.map(|mac| format!("{device} {mac} "));
        let agree =
            ours.iter().any(|ours| theirs.as_ref().is_some_and(|theirs| ours.starts_with(theirs)));
        // Of several ways the kernel may choose one whose router it has yet to resolve.
        if !ours.is_empty() && !agree && (ours.len() == 1 && theirs.is_some()) {
            return Err(format!(
                "{dst}: the kernel sends {device} {via:?} {mac:?}, workers {ours:?}"
            ));
        }
    }
    Ok(sent)
}

#[test]
#[ignore = "needs root"]
fn by_events_anew_and_by_the_kernel_are_one_whatever_changes() {
    // More of the same for a night, not for every day.
    let seeds = if std::env::var_os("VIADUCT_E2E_LONG").is_some() { 100 } else { 4 };
    let mut sent = 0;
    for seed in 1..=seeds {
        let mut node = Node::new();
        let mut dice = Dice(seed);
        let mut done = Vec::new();
        for _ in 0..60 {
            node.ip(&dice.neighbor());
        }
        for step in 0..400 {
            let words = dice.change();
            if node.ip(&words) {
                done.push(words);
            }
            // Some messages, of carriers and addresses, come after the command has ended.
            let end = Instant::now() + DEADLINE;
            loop {
                node.follow();
                let fresh = contents(&node.fresh());
                let followed = contents(&node.mirror);
                let compared = compare(&mut node);
                if let (Ok(destinations), true) = (&compared, followed == fresh) {
                    sent += destinations;
                    break;
                }
                if Instant::now() > end {
                    let only = |a: &[String], b: &[String]| -> Vec<String> {
                        a.iter().filter(|line| !b.contains(line)).cloned().collect()
                    };
                    panic!(
                        "seed {seed} step {step}: {compared:?}\nby events only: {:#?}\n\
                         anew only: {:#?}\nafter {}",
                        only(&followed, &fresh),
                        only(&fresh, &followed),
                        done.join("\n"),
                    );
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        println!("seed {seed}: {} changes, {sent} destinations sent to", done.len());
    }
    assert!(sent > 1600, "the workers hardly send anything: {sent}");
}
