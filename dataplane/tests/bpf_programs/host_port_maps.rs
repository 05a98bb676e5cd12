//! Which host ports workers serve: maps that are edited by element, outlive the daemon, and did not
//! exist in earlier versions; and what looking them up costs.

use std::fs;
use std::time::{Duration, Instant};

use dataplane::conntrack::Transport;
use dataplane::host_ports::{HostAddress, HostPort};
use dataplane::xsk::program::{AttachMode, HOST_PORTS_MAX, NODE_ADDRESSES_MAX, Programs};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::copy::REDIRECT;
use crate::host_ports::{ANY_PORT, ONE_PORT, TCP, ask, bench, host_port};
use crate::machine::Netns;
use crate::steering::*;

/// Pins that versions before host ports do not have.
const NEW_PINS: [&str; 3] = ["node_addresses", "host_ports", "host_ports_in_use"];
/// What the issue asks for.
const MANY: u16 = 10_000;

fn any(port: u16) -> HostPort {
    HostPort { transport: Transport::Tcp, address: HostAddress::AnyV4, port }
}

/// Ports 10,001 to 20,000 at any address.
fn many() -> Vec<HostPort> {
    (1..=MANY).map(|number| any(MANY + number)).collect()
}

fn ask_node(port: u16) -> Vec<u8> {
    ask(FOREIGN, TCP, NODE, port)
}

fn map(bench: &Bench, name: &str) -> MapHandle {
    MapHandle::from_pinned_path(bench.dir.path().join(name)).expect("the map is pinned")
}

/// What the program reads before it looks for a host port.
fn in_use(bench: &Bench) -> bool {
    let value = map(bench, "host_ports_in_use").lookup(&[0; 4], MapFlags::ANY);
    value.expect("read").expect("an array has all its entries") != [0; 4]
}

/// The daemon is replaced by another one over the same pins.
fn restarted(mut bench: Bench) -> Bench {
    bench.programs = Programs::load(bench.dir.path()).expect("loads over the pins");
    bench
}

#[test]
#[ignore = "needs root"]
fn a_host_port_is_served_from_its_addition_to_its_removal() {
    let mut bench = Bench::new();
    bench.programs.set_node_addresses(&[NODE.parse().expect("an address")]).expect("room");
    let (first, second) = (any(1), host_port(Transport::Tcp, NODE, 2));
    let served = |bench: &Bench| [1, 2].map(|port| bench.run(&ask_node(port), 0).0 == REDIRECT);
    assert_eq!((served(&bench), in_use(&bench)), ([false; 2], false));
    bench.programs.add_host_ports(&[]).expect("nothing to add");
    assert!(!in_use(&bench));
    bench.programs.add_host_ports(&[first, second]).expect("room");
    bench.programs.add_host_ports(&[first]).expect("no error when there");
    assert_eq!((served(&bench), in_use(&bench)), ([true; 2], true));
    bench.programs.remove_host_ports(&[first, any(3)]).expect("no error when absent");
    assert_eq!((served(&bench), in_use(&bench)), ([false, true], true));
    bench.passes("removed", &ask_node(1), "not_ours");
    bench.programs.remove_host_ports(&[first]).expect("no error when absent");
    assert!(in_use(&bench), "the other is still there");
    // That at any address is another one than that at this address.
    bench.programs.remove_host_ports(&[any(2)]).expect("no error when absent");
    assert_eq!(served(&bench), [false, true]);
    bench.programs.remove_host_ports(&[second]).expect("removed");
    assert_eq!((served(&bench), in_use(&bench)), ([false; 2], false));
}

#[test]
#[ignore = "needs root"]
fn without_host_ports_in_use_none_is_looked_up() {
    let bench = bench();
    bench.takes("in use", &ask_node(ANY_PORT));
    // Only here the map has entries nevertheless, so that it shows.
    map(&bench, "host_ports_in_use").update(&[0; 4], &[0; 4], MapFlags::ANY).expect("written");
    bench.passes("not in use", &ask_node(ANY_PORT), "not_ours");
}

#[test]
#[ignore = "needs root"]
fn an_address_answers_while_the_node_has_it() {
    let mut bench = bench();
    let mut set = |addresses: &[&str]| {
        let addresses: Vec<_> = addresses.iter().map(|a| a.parse().expect("an address")).collect();
        bench.programs.set_node_addresses(&addresses).expect("room");
        let asked = [NODE, "192.0.2.3", NODE6, "2001:db8::3"];
        asked.map(|node| {
            let client = if node.contains(':') { FOREIGN6 } else { FOREIGN };
            bench.run(&ask(client, TCP, node, ANY_PORT), 0).0 == REDIRECT
        })
    };
    assert_eq!(set(&[NODE, NODE6]), [true, false, true, false]);
    assert_eq!(set(&["192.0.2.3", NODE6]), [false, true, true, false]);
    assert_eq!(set(&["192.0.2.3", "192.0.2.3", "2001:db8::3"]), [false, true, false, true]);
    assert_eq!(set(&[]), [false; 4]);
    // A host port of an address that the node has lost leads nowhere until the address is back.
    bench.passes("lost", &ask_node(ONE_PORT), "not_ours");
    bench.programs.set_node_addresses(&[NODE.parse().expect("an address")]).expect("room");
    bench.takes("back", &ask_node(ONE_PORT));
}

#[test]
#[ignore = "needs root"]
fn the_next_daemon_replaces_what_the_last_one_left() {
    let mut bench = Bench::new();
    bench.programs.set_node_addresses(&[NODE.parse().expect("an address")]).expect("room");
    bench.programs.add_host_ports(&[any(1), any(2)]).expect("room");
    let mut bench = restarted(bench);
    bench.takes("left", &ask_node(1));
    bench.programs.replace_host_ports(&[any(2), any(3)]).expect("room");
    bench.passes("not wanted any more", &ask_node(1), "not_ours");
    bench.takes("stayed", &ask_node(2));
    bench.takes("new", &ask_node(3));

    // It counts what it found, also without a comparison.
    let mut bench = restarted(bench);
    bench.programs.remove_host_ports(&[any(2)]).expect("removed");
    assert!(in_use(&bench));
    bench.takes("stayed", &ask_node(3));
    bench.programs.remove_host_ports(&[any(3)]).expect("removed");
    assert!(!in_use(&bench));

    bench.programs.add_host_ports(&[any(1)]).expect("room");
    let mut bench = restarted(bench);
    bench.programs.replace_host_ports(&[]).expect("removed");
    assert!(!in_use(&bench));
    bench.passes("none is wanted", &ask_node(1), "not_ours");
}

/// What stays is there all the while: looked at from another thread during replacements.
#[test]
#[ignore = "needs root"]
fn replacing_keeps_what_stays_without_a_gap() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let mut bench = bench();
    let Bench { programs, copy, ifindex, netns, .. } = &mut bench;
    programs.replace_host_ports(&[any(1)]).expect("room");
    let done = AtomicBool::new(false);
    let looks = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            netns.enter(|| {
                let (stays, never) = (ask_node(1), ask_node(3));
                let mut looks = 0_u32;
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(copy.run(&stays, *ifindex, 0), REDIRECT, "look {looks}");
                    assert_ne!(copy.run(&never, *ifindex, 0), REDIRECT, "look {looks}");
                    looks += 1;
                }
                looks
            })
        });
        let node = [NODE, NODE6].map(|text| text.parse().expect("an address"));
        for turn in 1..=2000_u16 {
            programs.replace_host_ports(&[any(1), any(100 + turn % 7)]).expect("room");
            programs.set_node_addresses(&node[..1 + usize::from(turn % 2)]).expect("room");
        }
        done.store(true, Ordering::Relaxed);
        watcher.join().expect("no gap was seen")
    });
    assert!(looks > 1000, "only {looks} looks");
}

#[test]
#[ignore = "needs root"]
fn pins_of_a_version_without_host_ports_are_taken_over_with_their_link() {
    let bench = Bench::new();
    let attach = |bench: &Bench| {
        let programs = &bench.programs;
        let attach = || programs.attach_uplink(bench.ifindex, "nic", AttachMode::Native);
        assert_eq!(bench.netns.enter(attach).expect("attaches").refused, None);
        let link = bench.dir.path().join("uplink-links/nic");
        libbpf_rs::Link::open(link).expect("pinned").info().expect("the link answers").id
    };
    let link = attach(&bench);
    for name in NEW_PINS {
        fs::remove_file(bench.dir.path().join(name)).expect("it was pinned");
    }
    let mut bench = restarted(bench);
    assert_eq!(attach(&bench), link, "never detached");
    // The copy has the maps that were there before: it is loaded over the new ones.
    bench.copy = crate::copy::Copy::load(bench.dir.path(), "uplink");
    let pod = ask(DIRECT, TCP, POD, ANY_PORT);
    bench.takes("pods are steered as before", &pod);
    bench.passes("there is no host port yet", &ask_node(ANY_PORT), "not_ours");
    bench.programs.set_node_addresses(&[NODE.parse().expect("an address")]).expect("room");
    bench.programs.add_host_ports(&[any(ANY_PORT)]).expect("room");
    bench.takes("now there is", &ask_node(ANY_PORT));
    bench.takes("pods all the while", &pod);
}

#[test]
#[ignore = "needs root"]
fn pins_that_somebody_removed_come_back_with_their_entries() {
    let mut bench = bench();
    for entry in fs::read_dir(bench.dir.path()).expect("a folder") {
        let path = entry.expect("an entry").path();
        let removed = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        removed.expect("removed");
    }
    assert!(bench.programs.restore_pins().expect("pinned"));
    let mut bench = restarted(bench);
    bench.takes("still there", &ask_node(ANY_PORT));
    bench.programs.replace_host_ports(&[]).expect("removed");
    assert!(!in_use(&bench));
}

#[test]
#[ignore = "needs root"]
fn ten_thousand_host_ports_come_and_go() {
    let mut bench = bench();
    let many = many();
    let started = Instant::now();
    bench.programs.add_host_ports(&many).expect("room");
    let added = started.elapsed();
    for port in [MANY + 1, MANY + 5000, 2 * MANY, ANY_PORT] {
        bench.takes("each is served", &ask_node(port));
    }
    bench.passes("before the first", &ask_node(MANY), "not_ours");
    bench.passes("behind the last", &ask_node(2 * MANY + 1), "not_ours");

    // An ADD with ten host ports and its DEL, among all the others.
    let ten: Vec<_> = (1..=10).map(any).collect();
    let started = Instant::now();
    bench.programs.add_host_ports(&ten).expect("room");
    bench.programs.remove_host_ports(&ten).expect("removed");
    let one_pod = started.elapsed();

    let started = Instant::now();
    bench.programs.replace_host_ports(&many[1..]).expect("room");
    let replaced = started.elapsed();
    bench.passes("replaced", &ask_node(MANY + 1), "not_ours");
    bench.passes("replaced", &ask_node(ANY_PORT), "not_ours");
    let started = Instant::now();
    bench.programs.remove_host_ports(&many).expect("removed");
    let removed = started.elapsed();
    assert!(!in_use(&bench));
    assert_eq!(map(&bench, "host_ports").keys().count(), 0);
    println!("{MANY} host ports: added in {added:?}, compared in {replaced:?}, removed in");
    println!("{removed:?}; ten among them added and removed in {one_pod:?}");
    assert!(added + replaced + removed < Duration::from_secs(10), "it is no square");
}

#[test]
#[ignore = "needs root"]
fn a_full_map_is_an_error_that_leaves_nothing_half_done() {
    let mut bench = bench();
    bench.programs.replace_host_ports(&[]).expect("removed");
    let ports = |transport, count: u32| {
        let number = |port| u16::try_from(port).expect("a port");
        let port = move |port| HostPort { port: number(port), ..any(0) };
        (0..count).map(port).map(move |port| HostPort { transport, ..port }).collect::<Vec<_>>()
    };
    bench.programs.add_host_ports(&ports(Transport::Tcp, HOST_PORTS_MAX)).expect("room");
    let more = [any(1), host_port(Transport::Udp, "0.0.0.0", 1)];
    let full = bench.programs.add_host_ports(&more).expect_err("no room").to_string();
    assert!(full.contains("host_ports (of at most 65536 entries)"), "{full}");
    bench.takes("it was there before", &ask_node(1));
    bench.programs.remove_host_ports(&[any(2)]).expect("removed");
    bench.programs.add_host_ports(&more).expect("there is room again");
    let two = [any(3), host_port(Transport::Udp, "0.0.0.0", 2)];
    bench.programs.remove_host_ports(&two[..1]).expect("removed");
    let three = [&two[..], &[any(2)]].concat();
    bench.programs.add_host_ports(&three).expect_err("room for one of three");
    bench.passes("none of them", &ask_node(3), "not_ours");
    assert_eq!(map(&bench, "host_ports").keys().count() as u32, HOST_PORTS_MAX - 1);

    let addresses = (0..=NODE_ADDRESSES_MAX).map(|number| std::net::Ipv4Addr::from(number).into());
    let addresses: Vec<_> = addresses.collect();
    bench.programs.set_node_addresses(&addresses).expect_err("one too many");
    bench.programs.set_node_addresses(&[]).expect("removed");
    bench.programs.set_node_addresses(&addresses[1..]).expect("room");
}

/// Prints what a packet costs in the program, and holds it to that host ports are not searched.
#[test]
#[ignore = "needs root"]
fn a_packet_costs_the_same_among_ten_thousand_host_ports() {
    let mut bench = bench();
    let udp = ask(FOREIGN, crate::frames::UDP, NODE, 4);
    let packets = [
        ("to a pod", ask(DIRECT, TCP, POD, 80)),
        ("to a host port", ask_node(MANY + 1)),
        ("to another port of the node", ask_node(22)),
        ("of another protocol to the node", udp),
        ("in transit", ask(FOREIGN, TCP, "192.0.2.77", 80)),
    ];
    let measure = |netns: &Netns, copy: &crate::copy::Copy, ifindex| {
        netns.enter(|| {
            packets.each_ref().map(|(_, frame)| {
                // The least of several: what others do on the machine only adds.
                let times = (0..9).map(|_| copy.repeat(frame, ifindex, 0, 50_000).1);
                times.min().expect("some").as_nanos()
            })
        })
    };
    let mut rows = Vec::new();
    for (count, host_ports) in [(0, vec![]), (1, vec![any(MANY + 1)]), (MANY, many())] {
        bench.programs.replace_host_ports(&host_ports).expect("room");
        rows.push((count, measure(&bench.netns, &bench.copy, bench.ifindex)));
    }
    for (column, (what, _)) in packets.iter().enumerate() {
        let ns: Vec<_> = rows.iter().map(|(_, row)| row[column]).collect();
        println!("{what}: {ns:?} ns with none, 1 and {MANY} host ports");
        assert!(ns[2] < 2 * ns[1] + 100, "{what}: {ns:?}");
    }
}
