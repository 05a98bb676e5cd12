//! `viaduct-perf hostports`: what a packet through a host port costs where there is one host port
//! on the node, and where there are thousands: the first packet of a flow, a stream of small
//! packets, and ADD with and without mappings.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::{Cluster, ClusterSetup, Forwarder, Mapping, Wiring, Wish, uplink_packets};
use e2e::daemon::{Setup, binary};
use e2e::netns::{Namespace, wait_until};
use e2e::pod::Pod;
use e2e::traffic::Transport;
use serde::Serialize;
use serde_json::json;

use crate::interrupt;
use crate::lane::{Lane, Turns};
use crate::machine::usable_cores;
use crate::plugin::{Container, Plugin};
use crate::pps;
use crate::report::{Bound, Report, Table, Target, progress};
use crate::stats::{Ratio, Times, median};
use crate::wire::{cores_of_nodes, pin};

/// The host port that is measured, and the container's.
const PORT: u16 = pps::PORT;

/// The other host ports begin here.
const FIRST_FILLER: u16 = 1024;

/// Mappings of one of the pods that have the other host ports.
const MAPPINGS_PER_POD: u16 = 100;

/// Host ports that the pods of a node may have in all: it has addresses for 253.
const PORTS_MAX: u16 = 20_000;

/// Mappings of the ADD that is compared with one without, from this port on: below the others.
const ADD_MAPPINGS: u16 = 10;
const ADD_PORTS_FROM: u16 = 100;

/// The clients' ports: each once, so that each of them is another flow.
const CLIENT_PORTS: Range<u16> = 2000..62_000;

/// A packet that is not back by then is lost.
const LOST_AFTER: Duration = Duration::from_millis(500);

/// After the last pod of a turn is gone, until its namespaces are, too.
const SETTLE: Duration = Duration::from_millis(500);

/// Until the first packet gets through a host port.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// What many host ports may cost against one, and what ten mappings may add to an ADD.
const RATE_OF_ONE: f64 = 0.95;
const ADD_MORE_MS: f64 = 2.0;

/// How many host ports, how long and how often.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    turns: Turns,
    /// Host ports of the node: each number is an arm, compared with the first one
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10_000],
        value_parser = clap::value_parser!(u16).range(1..=i64::from(PORTS_MAX)))]
    ports: Vec<u16>,
    /// New flows of one turn
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u16).range(1..))]
    flows: u16,
    /// Pods that are attached in one turn, with and without mappings each
    // A worker has room for 128 ports by default, and the second arm has 101 pods.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=12))]
    adds: u64,
}

/// Two nodes: a pod of one asks the host port of the other.
#[derive(Debug)]
struct Nodes {
    ports: u16,
    cluster: Cluster,
    client: Pod,
    server: Pod,
    /// Pods that have the other host ports, if there are any.
    _others: Vec<Pod>,
}

/// One turn of an arm.
#[derive(Debug, Serialize)]
struct Turn {
    ports: u16,
    /// The round trip of a flow's first packet, and of the second.
    first: Times,
    second: Times,
    /// First packets in a second, one after another.
    first_per_s: f64,
    lost: u64,
    offered_pps: f64,
    delivered_pps: f64,
    cpu_ns_per_packet: f64,
    steal_percent: f64,
    add_plain: Times,
    add_mapped: Times,
}

/// Measures.
///
/// # Errors
/// When the nodes cannot be built, a host port leads nowhere, or packets came past the workers.
pub fn measure(setup: &Setup, options: &Options) -> Result<Report> {
    let flows = u64::from(options.flows) * options.turns.pairs;
    let ports = u64::from(CLIENT_PORTS.end - CLIENT_PORTS.start);
    ensure!(flows <= ports, "{flows} flows need a port each, and a client has {ports}");
    // As many pods in every arm: a worker looks at each of them in every pass.
    let most = options.ports.iter().max().context("--ports names an arm")?;
    let pods = (most - 1).div_ceil(MAPPINGS_PER_POD);
    let mut arms = Vec::new();
    for ports in &options.ports {
        progress(&format!("building nodes with {ports} host ports"));
        arms.push(Nodes::build(setup, *ports, pods)?);
    }
    let mut turns = Vec::new();
    for pair in 0..options.turns.pairs {
        for index in 0..arms.len() {
            interrupt::check()?;
            // ABC CBA ABC: what drifts, drifts for all.
            let index = if pair % 2 == 0 { index } else { arms.len() - 1 - index };
            let turn = arms[index].take_turn(pair as u16, options)?;
            progress(&format!(
                "turn {} of {}: {} host ports, first packet {:.1} µs, {:.0} packets per second",
                pair + 1,
                options.turns.pairs,
                turn.ports,
                turn.first.p50_us,
                turn.delivered_pps
            ));
            turns.push(turn);
        }
    }
    Ok(sum_up(&options.ports, &turns))
}

impl Nodes {
    /// Builds the nodes, one with so many host ports, and so many pods to have all but one of them;
    /// returns when packets get through that one.
    fn build(setup: &Setup, ports: u16, pods: u16) -> Result<Nodes> {
        let Setup { port_mode, workers, .. } = *setup;
        let forwarder = Forwarder::Viaduct { port_mode, workers };
        let setup = ClusterSetup { wiring: Wiring::Cable, ..ClusterSetup::new(forwarder, 2) };
        let mut cluster = Cluster::make(setup)?;
        for (number, cores) in cores_of_nodes(&usable_cores()?, workers).iter().enumerate() {
            pin(cluster.node(number), cores)?;
        }
        cluster.start_forwarding()?;
        let mapped = |number: u16, name: &str, mappings: Vec<Mapping>| {
            let wish = Wish::from(mappings);
            cluster.add_pod_with_host_ports(usize::from(number), name, &wish)
        };
        let server = mapped(0, "perf-server", udp_mappings(PORT..PORT + 1))?;
        let client = mapped(1, "perf-client", Vec::new())?;
        let last = FIRST_FILLER + ports - 1;
        let mut others = Vec::new();
        for number in 0..pods {
            interrupt::check()?;
            let from = FIRST_FILLER + number * MAPPINGS_PER_POD;
            let mappings = udp_mappings(from..last.min(from + MAPPINGS_PER_POD));
            others.push(mapped(0, &format!("perf-other-{number}"), mappings)?);
        }
        cluster.warm_up((1, &client), &server)?;
        let nodes = Nodes { ports, cluster, client, server, _others: others };
        let echo = Echo::start(&nodes.server.namespace)?;
        wait_until("a packet gets through the host port", READY_WITHIN, || {
            let (first, ..) = nodes.ask(CLIENT_PORTS.start - 1..CLIENT_PORTS.start)?;
            Ok(!first.is_empty())
        })?;
        drop(echo);
        Ok(nodes)
    }

    fn take_turn(&self, turn: u16, options: &Options) -> Result<Turn> {
        let from = CLIENT_PORTS.start + turn * options.flows;
        let echo = Echo::start(&self.server.namespace)?;
        let (first, second, lost) = self.ask(from..from + options.flows)?;
        drop(echo);
        let stream = self.stream(options)?;
        let [add_plain, add_mapped] = self.add(options.adds)?;
        let in_all: Duration = first.iter().sum();
        Ok(Turn {
            ports: self.ports,
            first_per_s: first.len() as f64 / in_all.as_secs_f64().max(f64::MIN_POSITIVE),
            first: Times::of(&first),
            second: Times::of(&second),
            lost,
            offered_pps: stream.offered_pps,
            delivered_pps: stream.delivered_pps,
            cpu_ns_per_packet: stream.cpu_ns_per_packet,
            steal_percent: stream.steal_percent,
            add_plain,
            add_mapped,
        })
    }

    /// The address that the client asks: the node's on the cable.
    fn address() -> Result<Ipv4Addr> {
        match Cluster::address(0)[0] {
            std::net::IpAddr::V4(address) => Ok(address),
            std::net::IpAddr::V6(_) => bail!("a node's first address is IPv4"),
        }
    }

    /// Two round trips from each of these ports; how many were lost.
    fn ask(&self, ports: Range<u16>) -> Result<(Vec<Duration>, Vec<Duration>, u64)> {
        let target = SocketAddr::from((Nodes::address()?, PORT));
        self.client.namespace.within(|| {
            let (mut first, mut second, mut lost) = (Vec::new(), Vec::new(), 0);
            for port in ports {
                interrupt::check()?;
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
                socket.connect(target)?;
                socket.set_read_timeout(Some(LOST_AFTER))?;
                for times in [&mut first, &mut second] {
                    match round_trip(&socket)? {
                        Some(took) => times.push(took),
                        None => lost += 1,
                    }
                }
            }
            Ok((first, second, lost))
        })?
    }

    /// Small packets of one flow, as many as there is time for.
    fn stream(&self, options: &Options) -> Result<pps::Turn> {
        let lane = Lane {
            arm: "viaduct",
            client: &self.client.namespace,
            server: &self.server.namespace,
            address: Nodes::address()?,
        };
        let before = uplink_packets(self.cluster.node(0))?;
        let stream = pps::load(&lane, options.turns.seconds, 1)?;
        let after = uplink_packets(self.cluster.node(0))?;
        let delivered = stream.delivered_pps * options.turns.seconds as f64;
        ensure!(
            (after.came - before.came) as f64 > 0.9 * delivered,
            "{delivered:.0} packets were delivered, but workers received {} by the uplink: the \
             kernel served the host port",
            after.came - before.came
        );
        Ok(stream)
    }

    /// ADD without mappings and with some, in turns; then all of these pods go. An ADD right behind
    /// a DEL would wait for the kernel, which takes its time to take an interface away.
    fn add(&self, count: u64) -> Result<[Times; 2]> {
        let node = self.cluster.node(0);
        let plugin = |mappings| Plugin {
            program: binary("viaduct-cni"),
            cni_path: "/nonexistent".to_owned(),
            conf: node.conf_with_host_ports(&Wish::from(mappings)),
            node: node.namespace(),
        };
        let containers = Container::many(2 * count as usize)?;
        let mut times = [Vec::new(), Vec::new()];
        for (pair, containers) in (0..).zip(containers.chunks(2)) {
            let from = ADD_PORTS_FROM + pair * ADD_MAPPINGS;
            let mapped = udp_mappings(from..from + ADD_MAPPINGS);
            let mut calls = [(0, plugin(Vec::new())), (1, plugin(mapped))];
            calls.rotate_left(usize::from(pair) % 2);
            for ((which, plugin), container) in calls.iter().zip(containers) {
                interrupt::check()?;
                times[*which].push(plugin.call("ADD", container)?.0);
            }
        }
        let plain = plugin(Vec::new());
        containers.iter().try_for_each(|container| plain.call("DEL", container).map(drop))?;
        drop(containers);
        interrupt::pause(SETTLE)?;
        Ok(times.map(|times| Times::of(&times)))
    }
}

/// Each of these host ports, to the same port of the container.
fn udp_mappings(ports: Range<u16>) -> Vec<Mapping> {
    ports.map(|port| Mapping::new(Transport::Udp, port, port)).collect()
}

/// Sends a packet and waits for it; `None` if it does not come back.
fn round_trip(socket: &UdpSocket) -> Result<Option<Duration>> {
    let (sent, mut answer) = (Instant::now(), [0; 64]);
    socket.send(b"there and back").context("send a packet")?;
    match socket.recv(&mut answer) {
        Ok(_) => Ok(Some(sent.elapsed())),
        // Refused: nobody listens, or no mapping is there yet.
        Err(error) if is_loss(error.kind()) => Ok(None),
        Err(error) => Err(error).context("receive a packet"),
    }
}

fn is_loss(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused)
}

/// Sends back whatever comes to the container's port, until it is dropped.
#[derive(Debug)]
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Echo {
    fn start(namespace: &Namespace) -> Result<Echo> {
        let socket = namespace.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))?;
        let socket = socket.context("bind the echo socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let echo = move || {
            let mut packet = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                // A timeout lets us look at `stopped`; what cannot be sent is a lost packet.
                if let Ok((len, from)) = socket.recv_from(&mut packet) {
                    let _ = socket.send_to(&packet[..len], from);
                }
            }
        };
        Ok(Echo { stop, thread: Some(thread::spawn(echo)) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed); // orders nothing
        if let Some(thread) = self.thread.take() {
            // An echo that panicked has lost every packet, which is counted.
            let _ = thread.join();
        }
    }
}

fn sum_up(arms: &[u16], turns: &[Turn]) -> Report {
    let of = |ports: u16, figure: fn(&Turn) -> f64| -> Vec<f64> {
        turns.iter().filter(|turn| turn.ports == ports).map(figure).collect()
    };
    type Figure = (&'static str, fn(&Turn) -> f64);
    let figures: [Figure; 10] = [
        ("first packet and back, p50, µs", |turn| turn.first.p50_us),
        ("first packet and back, p99, µs", |turn| turn.first.p99_us),
        ("second packet and back, p50, µs", |turn| turn.second.p50_us),
        ("new flows per second", |turn| turn.first_per_s),
        ("packets per second, thousands", |turn| turn.delivered_pps / 1e3),
        ("CPU of all, ns a packet", |turn| turn.cpu_ns_per_packet),
        ("ADD, p50, ms", |turn| turn.add_plain.p50_us / 1e3),
        ("ADD with 10 mappings, p50, ms", |turn| turn.add_mapped.p50_us / 1e3),
        ("ADD, p99, ms", |turn| turn.add_plain.p99_us / 1e3),
        ("ADD with 10 mappings, p99, ms", |turn| turn.add_mapped.p99_us / 1e3),
    ];
    let heads: Vec<String> = arms.iter().map(|ports| format!("{ports} host ports")).collect();
    let heads: Vec<&str> = [""].into_iter().chain(heads.iter().map(String::as_str)).collect();
    let mut table = Table::new("UDP through a host port from another node, medians", &heads);
    for (name, figure) in figures {
        let cells = arms.iter().map(|ports| format!("{:.2}", median(&of(*ports, figure))));
        table.row([name.to_owned()].into_iter().chain(cells));
    }
    let mut paired = Table::new("turn by turn", &["ratio", "median", "turns"]);
    let (mut ratios, mut targets) = (Vec::new(), Vec::new());
    let (first, others) = arms.split_first().map_or((1, arms), |(first, rest)| (*first, rest));
    let rates: [Figure; 2] =
        [("new flows", |turn| turn.first_per_s), ("packets", |turn| turn.delivered_pps)];
    for ports in others {
        for (name, figure) in rates {
            let names = [*ports, first].map(|ports| format!("{name} with {ports}"));
            let [many, one] = [*ports, first].map(|ports| of(ports, figure));
            let ratio = Ratio::of((&names[0], &many), (&names[1], &one));
            let each: Vec<String> = ratio.turns.iter().map(|turn| format!("{turn:.2}")).collect();
            paired.row([ratio.of.clone(), format!("{:.3}", ratio.median), each.join(" ")]);
            targets.push(Target::new(&ratio.of, ratio.median, Bound::AtLeast(RATE_OF_ONE)));
            ratios.push(ratio);
        }
    }
    for ports in arms {
        let more = of(*ports, |turn| (turn.add_mapped.p50_us - turn.add_plain.p50_us) / 1e3);
        let what = format!("ms that 10 mappings add to ADD beside {ports} host ports");
        targets.push(Target::new(what, median(&more), Bound::AtMost(ADD_MORE_MS)));
    }
    let lost: u64 = turns.iter().map(|turn| turn.lost).sum();
    paired.row(["round trips lost, in all".to_owned(), lost.to_string()]);
    Report::new(
        "hostports",
        vec![table, paired],
        targets,
        json!({ "turns": turns, "ratios": ratios }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(ports: u16, first_per_s: f64, add: [f64; 2]) -> Turn {
        let times = |ms: f64| Times { p50_us: ms * 1e3, ..Times::default() };
        Turn {
            ports,
            first: Times::default(),
            second: Times::default(),
            first_per_s,
            lost: 0,
            offered_pps: 0.0,
            delivered_pps: 500.0,
            cpu_ns_per_packet: 0.0,
            steal_percent: 0.0,
            add_plain: times(add[0]),
            add_mapped: times(add[1]),
        }
    }

    #[test]
    fn arms_are_compared_with_the_first_one_turn_by_turn() {
        let turns = [
            turn(1, 100.0, [4.0, 5.0]),
            turn(9, 99.0, [4.0, 7.0]),
            turn(9, 450.0, [4.0, 7.0]),
            turn(1, 500.0, [4.0, 5.5]),
        ];
        let report = sum_up(&[1, 9], &turns);
        let found: Vec<(&str, f64, bool)> = report
            .targets
            .iter()
            .map(|target| (target.what.as_str(), target.measured, target.met))
            .collect();
        let [flows, packets, one, many] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((flows.0, flows.2), ("new flows with 9 / new flows with 1", false));
        assert!((flows.1 - 0.945).abs() < 1e-9, "the median of 0.99 and 0.9");
        assert_eq!((packets.1, packets.2), (1.0, true));
        assert_eq!((one.1, one.2), (1.25, true));
        assert_eq!((many.1, many.2), (3.0, false));
    }

    #[test]
    fn every_host_port_is_mapped_once() {
        let mappings = udp_mappings(5..8);
        let ports: Vec<_> = mappings.iter().map(|m| (m.host_port, m.container_port)).collect();
        assert_eq!(ports, [(5, 5), (6, 6), (7, 7)]);
    }
}
