//! What may happen to an uplink while it is in use: each fault is made, pods reach each other as
//! far as the kernel can carry them meanwhile, and when it is over workers carry them again by
//! themselves. Numbers are those of the faults' list: F14 link, F15 queues and program, F16 another
//! program, F17 MTU, F23 routes and rules, F24 pins, F25 detached.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::{Cluster, ClusterSetup, Forwarder, Networkd, UPLINK};
use e2e::cluster::{forget_neighbors, on_clusters};
use e2e::daemon::{Node, ip};
use e2e::netns::{Namespace, wait_until};
use e2e::pod::Pod;
use e2e::traffic::{Stream, Tap, connect, listen, ping, reaches, transfer};
use rustix::process::Signal;
use serde_json::Value;

/// From the end of a fault until workers carry again: a look at the interfaces comes every five
/// seconds at the latest.
const RECOVERED_WITHIN: Duration = Duration::from_secs(15);

/// A stream that is interrupted goes on: TCP's own timer has doubled a few times by then, and waits
/// for as long as the interruption was.
const STREAM_MOVES_WITHIN: Duration = Duration::from_secs(30);

/// Five answers of a daemon that has better things to do than to wait; it takes milliseconds.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Bytes per millisecond of a stream in the background, 160 Mbit/s.
const PACE: usize = 20_000;

/// Two nodes, with one worker and with two.
fn clusters() -> Vec<ClusterSetup> {
    Forwarder::viaducts().into_iter().map(|forwarder| ClusterSetup::new(forwarder, 2)).collect()
}

/// A pod on each node.
fn pods(cluster: &Cluster) -> Result<[Pod; 2]> {
    let pods = [cluster.add_pod(0, "pod-0")?, cluster.add_pod(1, "pod-1")?];
    carried(cluster, &pods).context("before the fault")?;
    Ok(pods)
}

/// Workers of both nodes carry what the pods say, in both families.
fn carried(cluster: &Cluster, pods: &[Pod; 2]) -> Result<()> {
    let [a, b] = pods;
    cluster.warm_up_within(RECOVERED_WITHIN, (0, a), b)?;
    cluster.warm_up_within(RECOVERED_WITHIN, (1, b), a)
}

/// The pods reach each other, by whomever.
fn reach_each_other(pods: &[Pod; 2]) -> Result<()> {
    let [a, b] = pods;
    for (from, to) in [(a, b), (b, a)] {
        for address in to.addresses() {
            wait_until("an echo comes back", RECOVERED_WITHIN, || {
                Ok(reaches(&from.namespace, address).is_ok())
            })
            .with_context(|| format!("from {} to {address}", from.container_id))?;
        }
    }
    Ok(())
}

/// A stream between the pods that must live through what is done to the cluster.
fn stream(pods: &[Pod; 2]) -> Result<Stream> {
    let [a, b] = pods;
    let listener = listen(&b.namespace, b.v4.into(), 0)?;
    let (client, server) = connect(&a.namespace, listener.local_addr()?, &listener)?;
    let stream = Stream::start(client, server, Some(PACE));
    stream.wait_for_progress(STREAM_MOVES_WITHIN)?;
    Ok(stream)
}

/// Makes a fault while pods of two nodes talk, a stream among them. When `fault` returns it is
/// over: workers carry again by themselves, and the stream has lived through it.
fn outlived(fault: impl Fn(&mut Cluster, &[Pod; 2], &Stream) -> Result<()>) {
    on_clusters(clusters(), |cluster| {
        let pods = pods(cluster)?;
        let stream = stream(&pods)?;
        fault(cluster, &pods, &stream)?;
        carried(cluster, &pods).context("after the fault")?;
        stream.wait_for_progress(STREAM_MOVES_WITHIN)?;
        stream.stop()?;
        Ok(())
    });
}

/// Nodes whose daemons have yet to be started: something is there before them.
fn before_the_daemons(fault: impl Fn(&mut Cluster) -> Result<()>) {
    for setup in clusters() {
        let mut cluster = Cluster::make(setup).expect("a cluster");
        let outcome = fault(&mut cluster);
        let log = cluster.node(0).log();
        outcome.unwrap_or_else(|error| panic!("{error:?}\n{log}"));
    }
}

/// The daemons are started although something stands in the way of the first one's uplink: pods are
/// carried by the kernel, and the status says why.
fn started_on_the_kernels_path(cluster: &mut Cluster, why: &str) -> Result<[Pod; 2]> {
    cluster.start_forwarding()?;
    let pods = [cluster.add_pod(0, "pod-0")?, cluster.add_pod(1, "pod-1")?];
    reach_each_other(&pods).context("by the kernel")?;
    let row = row(cluster.node(0))?;
    let note = row["note"].as_str().unwrap_or_default();
    ensure!(row["queues"] == 0 && note.contains(why), "the status says so: {row}");
    Ok(pods)
}

/// The first pod does not reach the other one.
fn no_way(pods: &[Pod; 2]) -> Result<()> {
    for address in pods[1].addresses() {
        // Not longer: TCP's patience doubles while there is no way.
        let ping = ping(&pods[0].namespace, address, "-c 1 -W 2")?;
        ensure!(ping.received == 0, "there is a way to {address}");
    }
    Ok(())
}

/// The first node's row of the uplink in `viaduct status`.
fn row(node: &Node) -> Result<Value> {
    let status = node.list("status")?;
    let mut rows = status["uplinks"].as_array().into_iter().flatten();
    rows.next().cloned().context("the status has an uplink")
}

fn run(namespace: &Namespace, line: &str) -> Result<Value> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = namespace.run(words[0], &words[1..])?;
    ensure!(output.status.success(), "{line}: {output:?}");
    Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
}

/// What a network manager does when the node's interface is back: its addresses and routes. IPv6
/// loses its addresses when an interface goes down, and both families their routes.
fn configure_again(cluster: &Cluster) -> Result<()> {
    let [v4, v6] = Cluster::address(0);
    let node = cluster.node(0).namespace();
    ip(node, &format!("addr replace {v4}/24 dev {UPLINK}"))?;
    ip(node, &format!("addr replace {v6}/64 dev {UPLINK} nodad"))?;
    cluster.add_routes(0, 1)
}

#[test]
#[ignore = "needs root"]
fn f14_an_uplink_goes_down_and_comes_up() {
    outlived(|cluster, pods, _| {
        let node = cluster.node(0).namespace();
        ip(node, &format!("link set {UPLINK} down"))?;
        no_way(pods)?;
        ip(node, &format!("link set {UPLINK} up"))?;
        configure_again(cluster)
    });
}

#[test]
#[ignore = "needs root"]
fn f14_the_carrier_is_lost_and_found() {
    outlived(|cluster, pods, _| {
        ip(cluster.switch(), "link set p0 down")?;
        no_way(pods)?;
        // Routes stay: the kernel marks them, and takes them up again.
        ip(cluster.switch(), "link set p0 up")
    });
}

#[test]
#[ignore = "needs root"]
fn f14_the_interface_is_removed_and_another_one_takes_its_name() {
    outlived(|cluster, _, _| {
        let node = cluster.node(0);
        let links = node.namespace().ip_json(&["link", "show", "dev", UPLINK])?;
        let mac = links[0]["address"].as_str().context("an Ethernet address")?.to_owned();
        ip(node.namespace(), &format!("link del {UPLINK}"))?;
        wait_until("the daemon has noticed", RECOVERED_WITHIN, || {
            let row = row(node)?;
            Ok(row["queues"] == 0 && row["note"].is_string())
        })?;
        node.forget_log(); // That it is gone is an error to be told.
        // As when a driver is loaded again: the NIC is the same. Another one would be found by the
        // other node's kernel when its neighbor entry has aged.
        cluster.plug_in(0)?;
        ip(node.namespace(), &format!("link set {UPLINK} address {mac}"))?;
        cluster.add_routes(0, 1)
    });
}

#[test]
#[ignore = "needs root"]
fn f14_the_interface_gets_another_mac() {
    outlived(|cluster, _, _| {
        let node = cluster.node(0).namespace();
        ip(node, &format!("link set {UPLINK} address 0a:00:00:00:00:77"))?;
        // The kernel does not say so to the others: their entries become stale, and are asked for.
        forget_neighbors(cluster.node(1).namespace())
    });
}

#[test]
#[ignore = "needs root"]
fn f17_packets_are_no_longer_than_what_the_uplinks_mtu_is_now() {
    on_clusters(clusters(), |cluster| {
        let pods = pods(cluster)?;
        for mtu in [1400, 1500] {
            for node in cluster.nodes() {
                ip(node.namespace(), &format!("link set {UPLINK} mtu {mtu}"))?;
            }
            wait_until("the daemons have noticed", RECOVERED_WITHIN, || {
                let rows = cluster.nodes().iter().map(row).collect::<Result<Vec<Value>>>()?;
                Ok(rows.iter().all(|row| row["mtu"] == mtu && row["queues"] != 0))
            })?;
            carried(cluster, &pods)?;
            let taps =
                ["p0", "p1"].map(|port| Tap::start(cluster.switch(), port, mtu, "ip or ip6"));
            for address in pods[1].addresses() {
                transfer(&pods[0].namespace, &pods[1].namespace, address, 1_000_000)?;
            }
            for tap in taps {
                let seen = tap?.stop()?;
                seen.all_right()?;
                ensure!(seen.tcp_segments > 1000, "streams were on the wire: {seen:?}");
            }
            // Pods have heard of the smaller MTU, and remember it for minutes.
            for (pod, other) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
                let heard = pod.namespace.ip_json(&["route", "get", &other.v4.to_string()])?;
                let heard = &heard[0]["metrics"][0]["mtu"];
                ensure!(*heard == 1400, "the pod's kernel knows {heard}");
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn f15_the_number_of_queues_changes() {
    outlived(|cluster, pods, _| {
        every_queue_has_a_worker(cluster, 4)?;
        // Kernels refuse to take queues away that have a socket: then nothing has changed.
        run(cluster.switch(), "ethtool -L p0 tx 2 rx 2")?;
        let fewer = format!("ethtool -L {UPLINK} rx 2 tx 2");
        let taken = run(cluster.node(0).namespace(), &fewer);
        let count = if taken.is_ok() { 2 } else { 4 };
        every_queue_has_a_worker(cluster, count).with_context(|| format!("after {taken:?}"))?;
        carried(cluster, pods)?;
        // With nobody there to use them they can be taken away, and come back later.
        cluster.node_mut(0).stop_daemon(Signal::KILL)?;
        wait_until("the sockets are gone", RECOVERED_WITHIN, || {
            Ok(run(cluster.node(0).namespace(), &fewer).is_ok())
        })?;
        cluster.node_mut(0).start_daemon()?;
        every_queue_has_a_worker(cluster, 2)?;
        carried(cluster, pods)?;
        run(cluster.node(0).namespace(), &format!("ethtool -L {UPLINK} rx 4 tx 4"))?;
        run(cluster.switch(), "ethtool -L p0 tx 4 rx 4")?;
        every_queue_has_a_worker(cluster, 4)
    });
}

/// Waits until the first node's uplink has so many queues in use.
fn every_queue_has_a_worker(cluster: &Cluster, count: u32) -> Result<()> {
    wait_until("every queue has a worker", RECOVERED_WITHIN, || {
        Ok(row(cluster.node(0))?["queues"] == count)
    })
}

/// Numbers of the links that hold the program at the uplink. Each daemon has loaded its own, and
/// that of the uplinks is another than that of the pods.
fn xdp_links(node: &Node) -> Result<Vec<u64>> {
    let program = xdp_program(node)?;
    let links = run(node.namespace(), "bpftool -j link show")?;
    let links = links.as_array().into_iter().flatten();
    let ours = links.filter(|link| link["type"] == "xdp" && link["prog_id"].as_u64() == program);
    Ok(ours.filter_map(|link| link["id"].as_u64()).collect())
}

/// Number of the XDP program at the uplink.
fn xdp_program(node: &Node) -> Result<Option<u64>> {
    let links = node.namespace().ip_json(&["-d", "link", "show", "dev", UPLINK])?;
    Ok(links[0]["xdp"]["prog"]["id"].as_u64())
}

#[test]
#[ignore = "needs root"]
fn f25_the_program_is_detached_by_somebody_else() {
    outlived(|cluster, pods, _| {
        let node = cluster.node(0);
        let before = xdp_program(node)?.context("there is a program")?;
        // What holds a link is not taken away like that, and nothing may have changed if it is not.
        if run(node.namespace(), &format!("ip link set dev {UPLINK} xdp off")).is_err() {
            ensure!(xdp_program(node)? == Some(before), "refused, but the program is another");
        }
        carried(cluster, pods).context("after ip link set xdp off")?;
        let links = xdp_links(node)?;
        let [link] = links[..] else { bail!("one link holds the program: {links:?}") };
        run(node.namespace(), &format!("bpftool link detach id {link}"))?;
        wait_until("another link holds the program", RECOVERED_WITHIN, || {
            Ok(xdp_program(node)?.is_some() && xdp_links(node)? != [link])
        })
    });
}

#[test]
#[ignore = "needs root"]
fn f16_the_place_of_the_program_is_taken_before_the_daemon_comes() {
    before_the_daemons(|cluster| {
        // Any program: this one finds nothing in its maps, and passes everything.
        let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dataplane/src/bpf/port.bpf.o");
        let place = format!("link set dev {UPLINK} xdpgeneric");
        let words = format!("{place} obj {} sec xdp.frags", object.display());
        if let Err(error) = ip(cluster.node(0).namespace(), &words) {
            eprintln!("skipped: this ip cannot attach XDP programs: {error:#}");
            return Ok(());
        }
        let theirs = xdp_program(cluster.node(0))?.context("there is a program")?;
        let pods = started_on_the_kernels_path(cluster, "XDP program")?;
        for address in pods[1].addresses() {
            transfer(&pods[0].namespace, &pods[1].namespace, address, 1_000_000)?;
        }
        ensure!(xdp_program(cluster.node(0))? == Some(theirs), "theirs stays where it is");
        ip(cluster.node(0).namespace(), &format!("{place} off"))?;
        carried(cluster, &pods).context("when theirs is gone")
    });
}

/// Binds an AF_XDP socket to a queue, and keeps it until its input ends.
const QUEUE_HOLDER: &str = r"
import ctypes, mmap, socket, struct, sys
interface, queue = sys.argv[1], int(sys.argv[2])
AF_XDP, SOL_XDP, RX_RING, UMEM_REG, FILL_RING, COMPLETION_RING, COPY = 44, 283, 2, 4, 5, 6, 2
holder = socket.socket(AF_XDP, socket.SOCK_RAW)
memory = mmap.mmap(-1, 4096 * 8)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
holder.setsockopt(SOL_XDP, UMEM_REG, struct.pack('QQIII4x', address, 4096 * 8, 4096, 0, 0))
for ring in (FILL_RING, COMPLETION_RING, RX_RING):
    holder.setsockopt(SOL_XDP, ring, struct.pack('I', 8))
place = struct.pack('HHIII', AF_XDP, COPY, socket.if_nametoindex(interface), queue, 0)
libc = ctypes.CDLL(None, use_errno=True)
if libc.bind(holder.fileno(), place, len(place)) != 0:
    sys.exit('bind: errno %d' % ctypes.get_errno())
print('bound', flush=True)
sys.stdin.read()
";

/// Somebody who holds a queue of the uplink.
fn hold_queue(node: &Node, queue: u32) -> Result<Child> {
    let queue = queue.to_string();
    let mut holder = node.namespace().within(|| {
        Command::new("python3")
            .args(["-c", QUEUE_HOLDER, UPLINK, &queue])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
    })??;
    let mut word = [0; 6];
    holder.stdout.take().context("its output")?.read_exact(&mut word).context("it is bound")?;
    Ok(holder)
}

#[test]
#[ignore = "needs root"]
fn f16_a_queue_belongs_to_somebody_else() {
    before_the_daemons(|cluster| {
        let mut holder = hold_queue(cluster.node(0), 1)?;
        let pods = started_on_the_kernels_path(cluster, "queue 1")?;
        let start = Instant::now();
        for _ in 0..5 {
            cluster.node(0).list("status")?;
        }
        ensure!(start.elapsed() < ANSWERS_WITHIN, "tries in vain keep nobody waiting");
        drop(holder.stdin.take());
        holder.wait()?;
        carried(cluster, &pods).context("when the queue is free")
    });
}

#[test]
#[ignore = "needs root"]
fn f23_routes_and_rules_are_flushed() {
    outlived(|cluster, pods, stream| {
        let node = cluster.node(0).namespace();
        let [v4, v6] = cluster.node(0).pod_cidrs();
        // What a network manager does to routes and rules that it did not make.
        for line in [
            format!("ip route flush table {}", 0x5644),
            format!("ip -6 route flush table {}", 0x5644),
            "ip rule del priority 220".to_owned(),
            "ip -6 rule del priority 220".to_owned(),
            format!("ip route flush root {v4}"),
            format!("ip -6 route flush root {v6}"),
        ] {
            run(node, &line)?;
        }
        stream.wait_for_progress(STREAM_MOVES_WITHIN).context("workers need none of them")?;
        for agents in cluster.nodes() {
            for address in pods[0].addresses() {
                wait_until("agents reach the pod", RECOVERED_WITHIN, || {
                    Ok(reaches(agents.namespace(), address).is_ok())
                })?;
            }
        }
        // The way to the other node, which is not ours to restore, and is followed as it is.
        let [v4, v6] = cluster.node(1).pod_cidrs();
        run(node, &format!("ip -4 route flush root {v4}"))?;
        run(node, &format!("ip -6 route flush root {v6}"))?;
        wait_until("there is no way", RECOVERED_WITHIN, || Ok(no_way(pods).is_ok()))?;
        cluster.add_routes(0, 1)
    });
}

/// The rules of a node, and its routes of our protocol, as `ip` prints them.
fn rules_and_routes(node: &Node) -> Result<String> {
    let mut all = String::new();
    for line in ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"] {
        let words: Vec<&str> = line.split(' ').collect();
        let output = node.namespace().run("ip", &words)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut ours: Vec<&str> = text.lines().filter(|line| line.contains(" 118")).collect();
        ours.sort_unstable();
        all += &ours.join("\n");
    }
    Ok(all)
}

#[test]
#[ignore = "needs root"]
fn f23_systemd_networkd_removes_what_it_did_not_make() {
    outlived(|cluster, pods, _| {
        let before = rules_and_routes(cluster.node(0))?;
        let networkd = Networkd::start(cluster, 0, "")?;
        // In both families it takes the rule, the end of our table and the way to the other node;
        // and hears that the first two are back.
        let back = |log: &str, removing: &str, new: &str, what: &str| {
            let told = |line: &str, verb: &str| line.contains(verb) && line.contains(what);
            let removed = log.lines().filter(|line| told(line, removing)).count();
            let last = log.lines().skip_while(|line| !told(line, removing));
            removed >= 2 && last.filter(|line| told(line, new)).count() >= 2
        };
        networkd.wait_for("our rules are back", |log| {
            back(log, "Removing foreign routing policy rule", "Remembering", "priority: 220")
        })?;
        networkd.wait_for("our routes are back", |log| {
            back(log, "Removing foreign route ", "Received new", "type: unreachable")
        })?;
        let after = rules_and_routes(cluster.node(0))?;
        ensure!(before == after, "ours were {before}\nand are {after}");
        let told = networkd.diagnosis(cluster, 0)?;
        let keys = ["(ManageForeignRoutes is yes)", "(ManageForeignRoutingPolicyRules is yes)"];
        ensure!(told.len() == keys.len(), "the doctor's rows: {told:?}");
        for ((well, found), key) in told.iter().zip(keys) {
            ensure!(!well && found.contains(key), "the doctor finds {key}: {found}");
        }
        cluster.add_routes(0, 1)?;
        carried(cluster, pods)?;
        // What the doctor says to do about it.
        drop(networkd);
        let networkd = Networkd::start(
            cluster,
            0,
            "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n",
        )?;
        let log = networkd.log();
        ensure!(!log.contains("Removing foreign"), "it leaves ours alone: {log}");
        let told = networkd.diagnosis(cluster, 0)?;
        ensure!(matches!(told[..], [(true, _)]), "the doctor is content: {told:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn f24_pins_are_removed() {
    outlived(|cluster, pods, _| {
        fs::remove_dir_all(cluster.node(0).bpf_dir())?;
        carried(cluster, pods).context("without pins")?;
        cluster.node_mut(0).stop_daemon(Signal::KILL)?;
        cluster.node_mut(0).start_daemon()?;
        carried(cluster, pods).context("after a restart")?;
        cluster.node(0).forget_log(); // What it had to mend is told as errors.
        let links = xdp_links(cluster.node(0))?;
        ensure!(links.len() == 1, "one program at the uplink, not another beside it: {links:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn f1_the_daemon_is_killed_and_the_kernel_carries_until_it_is_back() {
    outlived(|cluster, pods, stream| {
        for signal in [Signal::KILL, Signal::TERM] {
            cluster.node_mut(0).stop_daemon(signal)?;
            reach_each_other(pods).context("without the first node's daemon")?;
            stream.wait_for_progress(STREAM_MOVES_WITHIN)?;
            cluster.node_mut(0).start_daemon()?;
            carried(cluster, pods).context("with the daemon again")?;
            stream.wait_for_progress(STREAM_MOVES_WITHIN)?;
        }
        Ok(())
    });
}
