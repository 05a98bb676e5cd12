//! Limits at their edges: bursts shorter than a packet, rates of a hundred bytes a second, changes
//! while traffic flows, silence, congestion marks, and pods and daemons that misbehave. Nothing gets
//! stuck, nothing overflows, and nobody else pays.

use std::fs;
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::bandwidth::Bandwidth;
use e2e::cluster::set_sysctl;
use e2e::daemon::{Node, PortMode, Setup, on_each, workers};
use e2e::netns::wait_until;
use e2e::pod::Pod;
use e2e::traffic::{
    Law, Load, Meter, Stream, connect, listen, ping, protocol_counter, settle, udp_socket,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const MBIT: u64 = 1_000_000;

/// UDP payload that fills an MTU of 1500.
const LONG: usize = 1472;

/// What becomes free when nothing waits any more does so within milliseconds.
const SOON: Duration = Duration::from_secs(20);

/// On a busy machine it takes some windows until one is undisturbed.
const BUSY: Duration = Duration::from_secs(60);

/// Where a program listens that is to be stopped.
const SINK_PORT: u16 = 5001;

/// Datagrams from one pod to another by IPv4 at a rate, or as fast as they can be sent.
fn load(from: &Pod, to: &Pod, bits_per_s: Option<u64>) -> Result<Load> {
    let sender = udp_socket(&from.namespace, from.v4.into())?;
    let receiver = udp_socket(&to.namespace, to.v4.into())?;
    Load::start(&sender, &receiver, receiver.local_addr()?, &[LONG], bits_per_s)
}

/// Holds what arrives of a load to a rate, within 1 %.
fn meter<'a>(name: &str, bits_per_s: u64, load: &'a Load) -> Meter<'a> {
    Meter::new(name, Law::of(bits_per_s), 0.01, || load.wire_bytes())
}

/// Waits until as much arrives as a rate allows, and no more.
fn settles(name: &str, bits_per_s: u64, load: &Load) -> Result<()> {
    settle(&mut [meter(name, bits_per_s, load)])
}

/// A count of a pod's limit, by its key in `viaduct limits`.
fn count_of_limit(node: &Node, pod: &Pod, direction: &str, key: &str) -> Result<u64> {
    let count = node.limit_row(pod, direction)?[key].as_u64();
    count.with_context(|| format!("{key} of {}, {direction}", pod.container_id))
}

fn dropped(node: &Node, pod: &Pod, direction: &str) -> Result<u64> {
    count_of_limit(node, pod, direction, "dropped")
}

fn queued(node: &Node, pod: &Pod, direction: &str) -> Result<u64> {
    count_of_limit(node, pod, direction, "queued_bytes")
}

fn marked(node: &Node, pod: &Pod, direction: &str) -> Result<u64> {
    count_of_limit(node, pod, direction, "marked")
}

#[test]
#[ignore = "needs root"]
fn a_burst_shorter_than_a_packet_and_a_hundred_bytes_a_second_stop_nothing() {
    on_each(Setup::modes(), |node| {
        let peer = node.add_pod("peer")?;
        let mut conf = node.conf(None);
        conf["runtimeConfig"]["bandwidth"] = json!({
            "ingressRate": 800, "ingressBurst": 8, "egressRate": 800, "egressBurst": 8,
        });
        let pod = node.attach_in_new_namespace("slow", &conf)?;
        let law = Law { bits_per_s: 800, burst_bytes: 2 * 1514 };
        // Whatever fits a packet passes at once, in both families and directions.
        for address in pod.addresses() {
            let ping = ping(&peer.namespace, address, "-c 1 -W 5 -s 1400")?;
            ensure!(ping.received == 1, "the first packet passes: {}", ping.text);
        }
        // Ten packets always wait, and no more: the eleventh is told so by being dropped.
        let since = Instant::now();
        let to_pod = load(&peer, &pod, Some(MBIT))?;
        let from_pod = load(&pod, &peer, Some(MBIT))?;
        for direction in ["ingress", "egress"] {
            wait_until("the line is full", SOON, || {
                let queued = queued(node, &pod, direction)?;
                ensure!(queued <= 10 * 1514, "{direction}: {queued} bytes wait");
                Ok(queued == 10 * 1514 && dropped(node, &pod, direction)? > 100)
            })?;
        }
        for (load, name) in [(&to_pod, "to the pod"), (&from_pod, "from the pod")] {
            let (bytes, most) = (load.wire_bytes(), law.most_bytes(since.elapsed()));
            ensure!(bytes <= most, "{name}: {bytes} bytes, at most {most}");
        }
        drop((to_pod, from_pod));
        // The queue would take two and a half minutes; with another rate it is gone at once.
        node.set_limits(&pod, "--ingress 100M --egress 100M --burst 1M")?;
        for direction in ["ingress", "egress"] {
            wait_until("nothing waits", SOON, || Ok(queued(node, &pod, direction)? == 0))?;
        }
        for address in pod.addresses() {
            let ping = ping(&peer.namespace, address, "-c 3 -i 0.1 -W 5")?;
            ensure!(ping.received == 3, "nothing is stuck: {}", ping.text);
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_limit_changes_and_goes_while_traffic_flows_and_the_other_direction_has_none() {
    on_each(vec![Setup::new(PortMode::Auto, 1)], |node| {
        let peer = node.add_pod("peer")?;
        let pod = node.add_limited_pod("pod", Bandwidth::ingress(10 * MBIT))?;
        let limited = load(&peer, &pod, Some(60 * MBIT))?;
        let free = load(&pod, &peer, Some(30 * MBIT))?;
        settles("as asked for", 10 * MBIT, &limited)?;
        for mbit in [40, 5, 20] {
            node.set_limits(&pod, &format!("--ingress {mbit}M"))?;
            settles("as changed", mbit * MBIT, &limited)?;
        }
        node.set_limits(&pod, "--ingress none")?;
        settles("without a limit, all that is sent", 60 * MBIT, &limited)?;
        node.set_limits(&pod, "--ingress 15M")?;
        settles("with a limit again", 15 * MBIT, &limited)?;
        settles("the other direction, all that is sent", 30 * MBIT, &free)?;
        let drops = node.pod_row(&pod)?["from_pod"]["drops"].clone();
        ensure!(drops["shaper_full"].is_null(), "nothing of the other direction waits: {drops}");
        Ok(())
    });
}

/// Fills a pod's bucket and sends so many packets at once, to the pod or from it: they all arrive.
/// Returns their two ends.
fn pass_at_once(
    node: &Node,
    (pod, peer): (&Pod, &Pod),
    direction: &str,
    burst_bytes: u64,
    packets: usize,
) -> Result<[UdpSocket; 2]> {
    let (from, to) = if direction == "ingress" { (peer, pod) } else { (pod, peer) };
    let receiver = udp_socket(&to.namespace, to.v4.into())?;
    let sender = udp_socket(&from.namespace, from.v4.into())?;
    sender.connect(receiver.local_addr()?)?;
    // The packet that asks for the pod's Ethernet address is part of no burst.
    wait_until("the bucket is full", SOON, || {
        Ok(node.limit_row(pod, direction)?["tokens_bytes"].as_u64() == Some(burst_bytes))
    })?;
    for _ in 0..packets {
        sender.send(&[0; LONG])?;
    }
    let mut buffer = [0; LONG];
    for number in 0..packets {
        receiver
            .recv(&mut buffer)
            .with_context(|| format!("{direction}: {number} of {packets}"))?;
    }
    ensure!(dropped(node, pod, direction)? == 0, "{direction}: nothing is dropped");
    Ok([sender, receiver])
}

#[test]
#[ignore = "needs root"]
fn after_a_silence_the_burst_passes_at_once_and_what_is_more_does_not() {
    on_each(Setup::modes(), |node| {
        let peer = node.add_pod("peer")?;
        let pods = [
            (node.add_limited_pod("in", Bandwidth::ingress(MBIT / 10))?, "ingress"),
            (node.add_limited_pod("out", Bandwidth::egress(MBIT / 10))?, "egress"),
        ];
        // 43 of these are a burst of 64 KiB, a 44th leaves in debt, and ten wait.
        let (in_burst, all) = (43, 100);
        for (pod, direction) in &pods {
            let law = Law::of(MBIT / 10);
            let [sender, _receiver] =
                pass_at_once(node, (pod, &peer), direction, law.burst_bytes, in_burst)?;
            for _ in 0..all {
                sender.send(&[0; LONG])?;
            }
            wait_until("the rest is too much", SOON, || {
                Ok(dropped(node, pod, direction)? + 20 > all)
            })?;
        }
        Ok(())
    });
}

/// TCP by IPv4 from one pod to another, as much as passes.
fn stream(from: &Pod, to: &Pod) -> Result<Stream> {
    let listener = listen(&to.namespace, to.v4.into(), 0)?;
    let (client, server) = connect(&from.namespace, listener.local_addr()?, &listener)?;
    Ok(Stream::start(client, server, None))
}

/// Bytes that a worker has sent in a direction, as on a wire.
fn wire_bytes(direction: &Value) -> u64 {
    direction["wire_bytes"].as_u64().unwrap_or_default()
}

fn retransmitted(pod: &Pod) -> Result<u64> {
    protocol_counter(&pod.namespace, "Tcp", "RetransSegs")
}

#[test]
#[ignore = "needs root"]
fn where_the_transport_knows_congestion_marks_they_take_the_place_of_losses() {
    on_each(Setup::modes(), |node| {
        let to = node.add_limited_pod("to", Bandwidth::ingress(20 * MBIT))?;
        let from = node.add_limited_pod("from", Bandwidth::egress(20 * MBIT))?;
        let (plain_to, plain_from) = (
            node.add_limited_pod("plain-to", Bandwidth::ingress(20 * MBIT))?,
            node.add_limited_pod("plain-from", Bandwidth::egress(20 * MBIT))?,
        );
        let (peer, plain_peer) = (node.add_pod("peer")?, node.add_pod("plain-peer")?);
        for (pods, ecn) in
            [([&to, &from, &peer], "1"), ([&plain_to, &plain_from, &plain_peer], "0")]
        {
            for pod in pods {
                set_sysctl(&pod.namespace, "net.ipv4.tcp_ecn", ecn)?;
                // Every kernel has it, and it heeds marks and losses; BBR heeds neither.
                set_sysctl(&pod.namespace, "net.ipv4.tcp_congestion_control", "reno")?;
            }
        }
        let pairs = [
            ("to a pod", &peer, &to),
            ("from a pod", &from, &peer),
            ("to a pod, plain", &plain_peer, &plain_to),
            ("from a pod, plain", &plain_from, &plain_peer),
        ];
        let streams = pairs.map(|(name, from, to)| Ok((name, stream(from, to)?)));
        let streams = streams.into_iter().collect::<Result<Vec<_>>>()?;
        let heed = || {
            let meters = streams.iter().map(|(name, stream)| {
                let wire_bytes = || stream.moved() * 1514 / 1448;
                Meter::new(*name, Law::of(20 * MBIT), 0.02, wire_bytes)
            });
            settle(&mut meters.collect::<Vec<_>>())?;
            let again = [&peer, &from, &plain_peer, &plain_from].map(retransmitted);
            let limits = [(&to, "ingress"), (&from, "egress")];
            let [one, other] = limits.map(|(pod, direction)| marked(node, pod, direction));
            Ok::<_, anyhow::Error>((again.into_iter().collect::<Result<Vec<_>>>()?, [one?, other?]))
        };
        // How fast it may go a connection finds out by losses, with marks, too.
        let mut before = heed()?;
        wait_until("those without marks lose packets, and the others none", BUSY, || {
            let (again, marks) = heed()?;
            let lost: Vec<u64> = again.iter().zip(&before.0).map(|(now, old)| now - old).collect();
            let is_marked = marks.iter().zip(&before.1).all(|(now, old)| now > old);
            before = (again, marks);
            eprintln!("sent again by those with marks, then by those without: {lost:?}");
            Ok(is_marked && lost[..2] == [0, 0] && lost[2] > 0 && lost[3] > 0)
        })?;
        for (pod, direction) in [(&plain_to, "ingress"), (&plain_from, "egress")] {
            ensure!(marked(node, pod, direction)? == 0, "who knows no marks gets none");
        }
        streams.into_iter().try_for_each(|(_, stream)| stream.abandon())
    });
}

/// A receiver of datagrams that can be stopped.
struct Sink(Child);

impl Sink {
    fn start(pod: &Pod, port: u16) -> Result<Sink> {
        let mut command = Command::new("socat");
        command.arg("-u").arg(format!("UDP4-RECV:{port}")).arg("OPEN:/dev/null");
        command.stdin(Stdio::null());
        let sink = Sink(pod.namespace.within(|| command.spawn())?.context("start socat")?);
        let is_bound = || {
            let sockets = pod.namespace.run("ss", &["-Hlun"])?;
            Ok(String::from_utf8_lossy(&sockets.stdout).contains(&format!(":{port} ")))
        };
        wait_until("socat listens", SOON, is_bound)?;
        Ok(sink)
    }

    fn stop(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.0), Signal::STOP)?)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The workers' counts of frames or packets by their keys, together.
fn count(node: &Node, part: &str, keys: &[&str]) -> Result<u64> {
    let status = node.list("status")?;
    let counts =
        workers(&status).flat_map(|worker| keys.iter().map(move |key| worker[part][*key].as_u64()));
    counts.sum::<Option<u64>>().with_context(|| format!("{keys:?} of {part}"))
}

#[test]
#[ignore = "needs root"]
fn a_pod_that_reads_no_more_and_pods_that_flood_cost_others_nothing_and_hold_no_memory() {
    on_each(Setup::modes(), |node| {
        let limited = Bandwidth { ingress: Some(10 * MBIT), egress: Some(10 * MBIT) };
        let stopped = node.add_limited_pod("stopped", limited)?;
        let flooder = node.add_limited_pod("flooder", limited)?;
        let free_flooder = node.add_pod("free-flooder")?;
        let neighbour = node.add_limited_pod("neighbour", Bandwidth::ingress(8 * MBIT))?;
        let peer = node.add_pod("peer")?;

        let sink = Sink::start(&stopped, SINK_PORT)?;
        sink.stop()?;
        let sender = udp_socket(&free_flooder.namespace, free_flooder.v4.into())?;
        // Nobody reads: what arrives is what the worker says that it sent.
        let deaf = udp_socket(&free_flooder.namespace, free_flooder.v4.into())?;
        let since = Instant::now();
        let dial = (stopped.v4, SINK_PORT).into();
        let at_stopped = Load::start(&sender, &deaf, dial, &[LONG], None)?;
        let from_flooder = load(&flooder, &peer, None)?;
        let to_neighbour = load(&peer, &neighbour, Some(12 * MBIT))?;
        let free_pair = load(&neighbour, &peer, Some(20 * MBIT))?;
        settle(&mut [
            Meter::new("to the stopped pod", Law::of(10 * MBIT), 0.01, || {
                node.pod_row(&stopped).map_or(0, |row| wire_bytes(&row["to_pod"]))
            })
            .since(since),
            meter("from the flooding pod", 10 * MBIT, &from_flooder).since(since),
            meter("to its limited neighbour", 8 * MBIT, &to_neighbour).since(since),
            // Five percent are the promise; there are two cores for all of this.
            Meter::new("without a limit", Law::of(20 * MBIT), 0.05, || free_pair.wire_bytes()),
        ])?;
        let held = count(node, "frames", &["held"])?;
        // What three limits carry in 25 ms are 58 packets of a frame each.
        ensure!(held < 100, "{held} frames hold what waits");
        let drops = node.pod_row(&flooder)?["from_pod"]["drops"].clone();
        ensure!(drops["shaper_full"].as_u64() > Some(0), "the flooding pod pays: {drops}");
        let drops = node.pod_row(&peer)?["from_pod"]["drops"].clone();
        ensure!(drops["shaper_full"].is_null(), "who has no limit does not wait: {drops}");

        drop((at_stopped, from_flooder, to_neighbour, free_pair, sink));
        wait_until("nothing waits, and every frame is free or waits for a packet", SOON, || {
            let idle = count(node, "frames", &["free", "rx"])?;
            Ok(count(node, "packets", &["held"])? == 0
                && idle == count(node, "frames", &["total"])?)
        })
    });
}

#[test]
#[ignore = "needs root"]
fn a_limit_holds_again_after_a_kill() {
    on_each(Setup::modes(), |node| {
        let limits = Bandwidth { ingress: Some(10 * MBIT), egress: Some(6 * MBIT) };
        let (pod, peer) = (node.add_limited_pod("pod", limits)?, node.add_pod("peer")?);
        node.set_limits(&pod, "--ingress 8M")?;
        let (to_pod, from_pod) =
            (load(&peer, &pod, Some(12 * MBIT))?, load(&pod, &peer, Some(12 * MBIT))?);
        let both_settle = || {
            settle(&mut [
                meter("to the pod", 8 * MBIT, &to_pod),
                meter("from the pod", 6 * MBIT, &from_pod),
            ])
        };
        both_settle()?;
        node.stop_daemon(Signal::KILL)?;
        node.start_daemon()?;
        both_settle()
    });
}

#[test]
#[ignore = "needs root"]
fn after_a_restart_a_running_pod_is_held_to_what_the_new_configuration_makes_of_its_limits() {
    on_each(vec![Setup::new(PortMode::Auto, 1)], |node| {
        let limits = Bandwidth { ingress: Some(4 * MBIT), egress: Some(4 * MBIT) };
        let (pod, peer) = (node.add_limited_pod("pod", limits)?, node.add_pod("peer")?);
        let config = fs::read_to_string(node.config_path())?;
        // 125,000 bytes are 250 ms and 82 packets. By default 43 pass at once, and ten wait.
        for (line, burst_bytes, at_once, signal) in [
            ("burst = \"250ms\"", 125_000, 82, Signal::TERM),
            ("queue = \"250ms\"", 65_536, 43 + 82, Signal::KILL),
        ] {
            node.stop_daemon(signal)?;
            fs::write(node.config_path(), format!("{config}[shaping]\n{line}\n"))?;
            node.start_daemon()?;
            for direction in ["ingress", "egress"] {
                let applied = count_of_limit(node, &pod, direction, "applied_burst_bytes")?;
                ensure!(applied == burst_bytes, "{line}, {direction}: {applied} bytes");
                pass_at_once(node, (&pod, &peer), direction, burst_bytes, at_once).context(line)?;
            }
            let law = Law { bits_per_s: 4 * MBIT, burst_bytes };
            let since = Instant::now();
            let (to_pod, from_pod) =
                (load(&peer, &pod, Some(12 * MBIT))?, load(&pod, &peer, Some(12 * MBIT))?);
            let meter = |name, load| Meter::new(name, law, 0.01, move || Load::wire_bytes(load));
            settle(&mut [
                meter("to the pod", &to_pod).since(since),
                meter("from the pod", &from_pod).since(since),
            ])
            .context(line)?;
        }
        Ok(())
    });
}
