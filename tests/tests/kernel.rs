//! Living with the kernel: the node and its pods, the world outside, Services made by others,
//! routes and rules of others and ours, with the daemon alive and dead. And spoofing, which must
//! get a pod nowhere in any of these states.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::daemon::{
    NODE_V4, NODE_V6, Node, OUTSIDE_V4, OUTSIDE_V6, Setup, UPLINK_V4, UPLINK_V6, ip, on_each,
};
use e2e::netns::{Namespace, wait_until};
use e2e::pod::{IFNAME, Pod};
use e2e::traffic::{
    Capture, Forger, Stream, Watch, connect, forgeries, honest_frames, listen, ping,
    protocol_counter, pump, reaches, transfer,
};
use rustix::process::Signal;

/// Enough for TCP to leave slow start, and for a thousand packets of 1500 bytes.
const SOME_BYTES: u64 = 4_000_000;

/// A connection that is alive moves within so long: TCP's patience doubles from 200 ms.
const MOVES_WITHIN: Duration = Duration::from_secs(12);

/// What others remove of ours is back within this, as a rule.
const REPAIRED_WITHIN: Duration = Duration::from_secs(1);

/// And always within this, whatever else the machine does.
const REPAIRED_AT_LAST: Duration = Duration::from_secs(15);

fn each_state(node: &mut Node, test: impl Fn(&Node) -> Result<()>) -> Result<()> {
    test(node).context("while the daemon lives")?;
    node.stop_daemon(Signal::KILL)?;
    test(node).context("while the daemon is dead")?;
    node.start_daemon()?;
    test(node).context("after the daemon came back")
}

#[test]
#[ignore = "needs root"]
fn the_node_and_its_pods_reach_each_other_whether_the_daemon_lives_or_not() {
    on_each(Setup::modes_and_workers(), |node| {
        let pod = node.add_pod("one")?;
        let other = node.add_pod("two")?;
        for filter in ["0", "1"] {
            let key = format!("net.ipv4.conf.all.rp_filter={filter}");
            let output = node.namespace().run("sysctl", &["-qw", &key])?;
            ensure!(output.status.success(), "{key}: {output:?}");
            each_state(node, |node| {
                let pairs = pod.addresses().into_iter().zip([NODE_V4.into(), NODE_V6.into()]);
                for (address, own) in pairs {
                    reaches(node.namespace(), address)?;
                    reaches(&pod.namespace, own)?;
                    transfer(node.namespace(), &pod.namespace, address, SOME_BYTES)?;
                    transfer(&pod.namespace, node.namespace(), own, SOME_BYTES)?;
                }
                for address in other.addresses() {
                    transfer(&pod.namespace, &other.namespace, address, SOME_BYTES)?;
                }
                Ok(())
            })
            .context(key)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn pods_reach_the_outside_under_the_nodes_address() {
    on_each(Setup::modes(), |node| {
        let pod = node.add_pod("one")?;
        each_state(node, |node| {
            let ways = [
                (IpAddr::from(OUTSIDE_V4), IpAddr::from(UPLINK_V4)),
                (OUTSIDE_V6.into(), UPLINK_V6.into()),
            ];
            for (outside, expected) in ways {
                reaches(&pod.namespace, outside)?;
                let listener = listen(node.outside(), outside, 0)?;
                let (client, server) = connect(&pod.namespace, listener.local_addr()?, &listener)?;
                let seen = server.peer_addr()?.ip();
                ensure!(seen == expected, "the outside sees {seen}");
                pump(&client, &server, SOME_BYTES)?;
                pump(&server, &client, SOME_BYTES)?;
            }
            Ok(())
        })
    });
}

#[test]
#[ignore = "needs root"]
fn without_masquerade_the_outside_sees_the_pod() {
    let setup = |setup| Setup { masquerade: false, ..setup };
    on_each(Setup::modes().into_iter().map(setup).collect(), |node| {
        let pod = node.add_pod("one")?;
        let [cidr, _] = node.pod_cidrs();
        ip(node.outside(), &format!("route add {cidr} via {UPLINK_V4}"))?;
        let listener = listen(node.outside(), OUTSIDE_V4.into(), 0)?;
        let (_client, server) = connect(&pod.namespace, listener.local_addr()?, &listener)?;
        ensure!(server.peer_addr()?.ip() == pod.v4, "seen: {server:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn what_a_pod_uploads_is_cut_to_the_mtu_and_has_right_checksums() {
    on_each(Setup::modes_and_workers(), |node| {
        let pod = node.add_pod("one")?;
        let long = "tcp and greater 1515"; // 1500 and an Ethernet header
        let capture = Capture::start(node.outside(), "-i eth0 -Q in", long)?;
        let bad = |node: &Node| protocol_counter(node.outside(), "Tcp", "InCsumErrors");
        let before = bad(node)?;
        for address in [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()] {
            let listener = listen(node.outside(), address, 0)?;
            let (client, server) = connect(&pod.namespace, listener.local_addr()?, &listener)?;
            pump(&client, &server, 50_000_000)?;
        }
        let long = capture.stop()?;
        ensure!(long.is_empty(), "{} packets above the MTU: {:?}", long.len(), long.first());
        ensure!(bad(node)? == before, "{} segments with a bad checksum", bad(node)? - before);
        Ok(())
    });
}

/// A Service as kube-proxy makes it: its address becomes that of a backend.
const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10);
const SERVICE_PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;

fn make_service(node: &Node, backend: &Pod) -> Result<()> {
    let chain = |name: &str, hook: &str| {
        format!(
            "chain {name} {{ type nat hook {hook} priority -100;
               ip daddr {SERVICE_V4} tcp dport {SERVICE_PORT} dnat ip to {}:{BACKEND_PORT}
               ip6 daddr {SERVICE_V6} tcp dport {SERVICE_PORT} dnat ip6 to [{}]:{BACKEND_PORT}
             }}\n",
            backend.v4, backend.v6
        )
    };
    let table = format!(
        "table inet services {{ {}{} }}",
        chain("prerouting", "prerouting"),
        chain("output", "output")
    );
    let output = node.namespace().run("nft", &[&table])?;
    ensure!(output.status.success(), "make a Service: {output:?}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn services_of_others_reach_a_local_backend_whatever_the_daemon_does() {
    on_each(Setup::modes_and_workers(), |node| {
        let client = node.add_pod("client")?;
        let backend = node.add_pod("backend")?;
        make_service(node, &backend)?;
        let services = [IpAddr::from(SERVICE_V4), SERVICE_V6.into()];
        let listeners = [
            listen(&backend.namespace, Ipv4Addr::UNSPECIFIED.into(), BACKEND_PORT)?,
            listen(&backend.namespace, backend.v6.into(), BACKEND_PORT)?,
        ];
        // One connection of each kind lives through all that follows.
        let mut streams = Vec::new();
        for (service, listener) in services.into_iter().zip(&listeners) {
            let dial = SocketAddr::new(service, SERVICE_PORT);
            for from in [&client.namespace, node.namespace(), &backend.namespace] {
                let (there, here) = connect(from, dial, listener)
                    .with_context(|| format!("from {}", from.path().display()))?;
                streams.push(Stream::start(there, here, Some(20_000)));
            }
        }
        each_state(node, |node| {
            for (service, listener) in services.into_iter().zip(&listeners) {
                let dial = SocketAddr::new(service, SERVICE_PORT);
                for from in [&client.namespace, node.namespace(), &backend.namespace] {
                    let (there, here) = connect(from, dial, listener)
                        .with_context(|| format!("from {}", from.path().display()))?;
                    let from = || format!("from {} to {service}", from.path().display());
                    pump(&there, &here, SOME_BYTES).with_context(from)?;
                    pump(&here, &there, SOME_BYTES).with_context(from)?;
                }
            }
            streams.iter().try_for_each(|s| s.wait_for_progress(MOVES_WITHIN))
        })?;
        for stream in streams {
            stream.stop()?;
        }
        Ok(())
    });
}

/// What `nft` prints, without counters.
fn ruleset(node: &Node, args: &str) -> Result<String> {
    let args: Vec<&str> = ["-s", "list"].into_iter().chain(args.split_whitespace()).collect();
    let output = node.namespace().run("nft", &args)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Routes of all tables and rules, as lines in no particular order.
fn routing(node: &Node) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for args in ["-4 route show table all", "-6 route show table all", "-4 rule", "-6 rule"] {
        let output = node.namespace().run("ip", &args.split_whitespace().collect::<Vec<_>>())?;
        lines.extend(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned));
    }
    // What the kernel itself makes and remakes.
    lines.retain(|line| !line.contains("proto kernel") && !line.contains("table local"));
    lines.sort();
    Ok(lines)
}

#[test]
#[ignore = "needs root"]
fn what_others_made_stays_and_what_of_ours_is_removed_comes_back_within_a_second() {
    on_each(Setup::modes(), |node| {
        let pod = node.add_pod("one")?;
        make_service(node, &pod)?;
        ip(node.namespace(), "route add 203.0.113.0/24 via 198.51.100.2 table 77")?;
        ip(node.namespace(), "rule add from 203.0.113.7 table 77 priority 221")?;
        let foreign = ruleset(node, "table inet services")?;
        let (ours, routes) = (ruleset(node, "table inet viaduct")?, routing(node)?);
        ensure!(!ours.is_empty(), "our table is there");
        let [v4, v6] = node.pod_cidrs();
        let damages = [
            "nft flush ruleset".to_owned(),
            "nft delete table inet viaduct".to_owned(),
            "nft flush chain inet viaduct postrouting".to_owned(),
            format!("ip route del {v4}"),
            format!("ip -6 route del {v6}"),
            "ip rule del priority 220".to_owned(),
            "ip -6 rule del priority 220".to_owned(),
            format!("ip route del unreachable {v4} table {}", 0x5644),
            format!("ip route flush table {}", 0x5644),
            format!("ip -6 route flush table {}", 0x5644),
        ];
        let mut times = Vec::new();
        for damage in damages {
            let words: Vec<&str> = damage.split_whitespace().collect();
            let output = node.namespace().run(words[0], &words[1..])?;
            ensure!(output.status.success(), "{damage}: {output:?}");
            let damaged = Instant::now();
            wait_until("it is repaired", REPAIRED_AT_LAST, || {
                Ok(ruleset(node, "table inet viaduct")? == ours && routing(node)? == routes)
            })
            .with_context(|| {
                let now = routing(node).unwrap_or_default();
                let missing: Vec<_> = routes.iter().filter(|line| !now.contains(line)).collect();
                format!("after {damage}: missing {missing:#?}")
            })?;
            times.push(damaged.elapsed());
            if damage.contains("flush ruleset") {
                ensure!(ruleset(node, "table inet services")?.is_empty(), "we repair only ours");
                make_service(node, &pod)?;
            }
        }
        times.sort();
        ensure!(times[times.len() / 2] <= REPAIRED_WITHIN, "as a rule: {times:?}");
        ensure!(ruleset(node, "table inet services")? == foreign, "the others' table stays");
        node.stop_daemon(Signal::KILL)?;
        for address in pod.addresses() {
            reaches(node.namespace(), address).context("the repaired path, without the daemon")?;
        }
        node.start_daemon()
    });
}

/// Every setting of the namespace's network but those of interfaces that we make.
fn settings(namespace: &Namespace) -> Result<Vec<String>> {
    let output = namespace.run("sysctl", &["-a", "--pattern", r"^net\."])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ours = |line: &str| line.contains(".viaduct") || line.contains(".vd");
    Ok(text.lines().filter(|line| !ours(line)).map(str::to_owned).collect())
}

/// Settings that are turned on, and those that the kernel changes with them (ip-sysctl.rst,
/// `ip_forward` and `conf/all/forwarding`).
fn may_change(setting: &str) -> bool {
    let key = setting.split(' ').next().unwrap_or_default();
    let interface = |suffix: &str| key.starts_with("net.ipv") && key.ends_with(suffix);
    key == "net.ipv4.ip_forward"
        || interface(".forwarding")
        || interface(".accept_ra")
        || key == "net.ipv4.conf.all.accept_redirects"
        // Figures and the kernel's own bookkeeping, not settings.
        || key.contains("nf_conntrack_count")
        || key.contains("nf_conntrack_")
        || key.contains("nf_log")
}

#[test]
#[ignore = "needs root"]
fn no_setting_of_the_node_changes_but_those_for_forwarding() {
    let node = Node::make(Setup::modes().remove(0)).expect("a node");
    let before = settings(node.namespace()).expect("settings");
    let mut node = node;
    node.start_daemon().expect("the daemon starts");
    let pod = node.add_pod("one").expect("a pod");
    let after = settings(node.namespace()).expect("settings");
    node.delete_pod(&pod).expect("DEL");
    let changed: Vec<_> =
        after.iter().filter(|line| !before.contains(line) && !may_change(line)).collect();
    assert!(changed.is_empty(), "changed: {changed:#?}");
    assert!(after.len() > 100, "settings were read");
}

/// Packets that the XDP program refused for this reason while no worker was there, as
/// `viaduct drops` has them. `viaduct status` must have the same.
fn refused_without_worker(node: &Node, outcome: &str) -> Result<u64> {
    let (drops, status) = (node.list("drops")?, node.list("status")?);
    let drops = drops.as_array().context("drops are an array")?;
    let reason = format!("fallback_{outcome}");
    let row = drops.iter().find(|row| row["reason"] == reason.as_str());
    let count = row.map_or(Some(0), |row| row["count"].as_u64()).context("a count")?;
    let sentence = row.is_none_or(|row| row["sentence"].as_str().is_some_and(|s| !s.is_empty()));
    ensure!(sentence && row.is_none_or(|row| row["port"].is_null()), "{row:?}");
    let same = &status["fallback_packets"][outcome];
    ensure!(same.as_u64() == Some(count), "{outcome}: {count} in drops, {same} in status");
    Ok(count)
}

#[test]
#[ignore = "needs root"]
fn forged_frames_get_nowhere_while_the_daemon_lives_dies_and_returns() {
    on_each(Setup::modes_and_workers(), |node| {
        let pod = node.add_pod("forger")?;
        let victim = node.add_pod("victim")?;
        let frames = forgeries(node, &pod, &victim)?;
        // A pod that may forge may also remove the marker, which else replaces the source MAC of
        // whatever the pod sends.
        pod.namespace.run("tc", &["qdisc", "del", "dev", IFNAME, "clsact"])?;
        let forger = Forger::start(&pod.namespace, IFNAME)?;
        let watch = Watch::start(node, &victim)?;
        let send = |times: usize| -> Result<()> {
            (0..times).flat_map(|_| &frames).try_for_each(|frame| forger.send(frame))
        };
        send(20)?;
        let early = refused_without_worker(node, "source_mac")?;
        ensure!(early == 0, "{early} frames got to the fallback before there was one");
        node.signal_daemon(Signal::KILL)?;
        send(100)?; // in the middle of its death
        node.reap_daemon()?;
        send(20)?;
        std::thread::scope(|scope| {
            let restarted = scope.spawn(|| node.start_daemon());
            while !restarted.is_finished() {
                send(5)?; // in the middle of its return
            }
            restarted.join().expect("the restart does not panic")
        })?;
        send(20)?;
        // A burst may be more than the pod's port holds on a busy machine: what is sent now waits
        // until it is served.
        let served = || {
            [victim.v4.into(), victim.v6.into(), OUTSIDE_V4.into(), OUTSIDE_V6.into()]
                .iter()
                .try_for_each(|to| {
                    wait_until("what was sent before is served", Duration::from_secs(10), || {
                        Ok(reaches(&pod.namespace, *to).is_ok())
                    })
                })
        };
        served()?;
        // The honest neighbours of all these are seen: the watch sees what passes.
        honest_frames(node, &pod, &victim)?.iter().try_for_each(|frame| forger.send(frame))?;
        served()?;
        // Each of the forgeries came 20 times while the daemon was dead for certain: 7 with the MAC
        // of another, 9 and 10 with an address of another, 2 claims by ARP, and a router
        // advertisement that is too short for the neighbour discovery that pods may send.
        let counted = [("source_mac", 7), ("source_ipv4", 9), ("source_ipv6", 10), ("arp", 2)];
        for (outcome, frames) in counted.into_iter().chain([("too_short", 1)]) {
            let refused = refused_without_worker(node, outcome)?;
            ensure!(refused >= 20 * frames, "{outcome}: {refused} refused");
        }
        for (who, seen) in watch.stop()? {
            // The node sees what is for itself, and what it forwards to the outside.
            let expected = if who == "the node" { 4 } else { 2 };
            let from_pod = |line: &&String| {
                let sources = [pod.v4.into(), pod.v6.into(), UPLINK_V4.into(), UPLINK_V6.into()];
                sources.iter().any(|source: &IpAddr| line.contains(&format!(" {source}.4000 >")))
            };
            let honest = seen.iter().filter(from_pod).count();
            let few: Vec<_> = seen.iter().take(10).collect();
            ensure!(seen.len() == honest, "{who} saw forged packets: {few:#?}");
            // With a stranger's MAC and an honest address there would be more.
            ensure!(honest == expected, "{who} saw {honest} packets, not {expected}: {few:#?}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_pod_that_is_unreachable_for_the_kernel_too_is_answered_at_once() {
    on_each(Setup::modes(), |node| {
        let pod = node.add_pod("one")?;
        each_state(node, |node| {
            for nobody in node.nobody() {
                for from in [&pod.namespace, node.namespace()] {
                    let ping = ping(from, nobody, "-c 1 -W 2")?;
                    ensure!(ping.text.to_lowercase().contains("unreachable"), "{}", ping.text);
                }
            }
            Ok(())
        })
    });
}

#[test]
#[ignore = "needs root"]
fn a_graceful_stop_keeps_connections() {
    on_each(Setup::modes_and_workers(), |node| {
        let (a, b) = (node.add_pod("one")?, node.add_pod("two")?);
        let listener = listen(&b.namespace, b.v4.into(), 0)?;
        let (client, server) = connect(&a.namespace, listener.local_addr()?, &listener)?;
        let stream = Stream::start(client, server, None);
        stream.wait_for_progress(MOVES_WITHIN)?;
        let status = node.stop_daemon(Signal::TERM)?;
        ensure!(status.success(), "SIGTERM ends it well: {status}");
        stream.wait_for_progress(MOVES_WITHIN).context("after the stop")?;
        for address in b.addresses() {
            reaches(&a.namespace, address)?;
            reaches(node.namespace(), address)?;
        }
        node.start_daemon()?;
        stream.wait_for_progress(MOVES_WITHIN).context("after the start")?;
        let before = node.packets_from(&a)?;
        wait_until("workers carry it again", MOVES_WITHIN, || {
            Ok(node.packets_from(&a)? > before + 100)
        })?;
        stream.stop()?;
        Ok(())
    });
}
