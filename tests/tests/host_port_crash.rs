//! The daemon is killed and comes back while clients use ports of the node: their connections go
//! on, whoever speaks first, and no answer of a pod leaves the node with the pod's own address.
//!
//! Usually two kills; `VIADUCT_E2E_LONG=1` makes them 20, and 50 for what leaves the node.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, ClusterSetup, Forwarder, Mapping, Wish, on_clusters};
use e2e::host_ports::{CONTAINER_PORT, Client, HOST_PORT, Scene, among_direct_nodes};
use e2e::netns::wait_until;
use e2e::traffic::{Capture, Stream, caller};
use rustix::process::Signal;

/// A connection goes on within so long after the daemon is ready: TCP doubles its patience from
/// 200 ms, and a restart takes a second, or some on a busy machine.
const GOES_ON_WITHIN: Duration = Duration::from_secs(15);

/// What a thread or a worker does is done within so long on a busy machine, too.
const DONE_WITHIN: Duration = Duration::from_secs(15);

/// Between datagrams of a pod that talks without being asked.
const TALKS_EVERY: Duration = Duration::from_micros(500);

/// Between datagrams of a client that keeps its flow alive.
const ASKS_EVERY: Duration = Duration::from_millis(10);

/// Bytes per millisecond of a download.
const PACE: usize = 10_000;

/// For so long traffic goes on before a kill.
const A_WHILE: Duration = Duration::from_millis(150);

/// So many times the pod has something to say to everybody after a kill.
const NEWS: u64 = 200;

/// Whether the tests may take minutes.
fn long() -> bool {
    std::env::var_os("VIADUCT_E2E_LONG").is_some()
}

fn wish() -> Wish {
    Mapping::all(HOST_PORT, CONTAINER_PORT).into()
}

fn viaducts() -> Vec<ClusterSetup> {
    vec![ClusterSetup::new(Forwarder::viaduct(1), 2), among_direct_nodes(Forwarder::viaduct(2))]
}

/// Who speaks first after the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// The client, while the daemon is dead.
    Client,
    /// The server, while the daemon is dead: nothing tells the kernel of the connection.
    Server,
    /// Nobody before the daemon is back; then the server.
    Idle,
}

/// A connection that was made before the kill.
struct Kept {
    who: Client,
    first: First,
    client: TcpStream,
    server: TcpStream,
}

impl Kept {
    fn open(cluster: &Cluster, scene: &Scene) -> Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for who in Client::ALL {
            for first in [First::Client, First::Server, First::Idle] {
                for (host, address) in scene.hosts.iter().zip(Scene::node_address(who)) {
                    let dial = SocketAddr::new(address, HOST_PORT);
                    let (client, server) =
                        host.connected_from(scene.namespace(cluster, who), dial)?;
                    kept.push(Kept { who, first, client, server });
                }
            }
        }
        kept.iter().try_for_each(|kept| {
            kept.hears(Side::Server, "before")?;
            kept.hears(Side::Client, "before")
        })?;
        Ok(kept)
    }

    /// One side hears what the other says.
    fn hears(&self, side: Side, when: &str) -> Result<()> {
        self.says(side.other(), when)?;
        let mut heard = vec![0; when.len()];
        let mut ear = self.end(side);
        ear.read_exact(&mut heard)
            .with_context(|| format!("{:?} of {self} hears nothing {when}", side))?;
        ensure!(heard == when.as_bytes(), "{self}: something else comes {when}");
        Ok(())
    }

    fn says(&self, side: Side, what: &str) -> Result<()> {
        let mut mouth = self.end(side);
        mouth.write_all(what.as_bytes()).with_context(|| format!("{self} breaks {what}"))
    }

    fn end(&self, side: Side) -> &TcpStream {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} ({:?} first, {:?})", self.who, self.first, self.client)
    }
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Client,
    Server,
}

impl Side {
    fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

/// An end of the daemon and a restart: every connection goes on, in both directions.
fn survives(cluster: &mut Cluster, scene: &Scene, end: Signal) -> Result<()> {
    let kept = Kept::open(cluster, scene)?;
    let of = |first: First| kept.iter().filter(move |kept| kept.first == first);
    cluster.node_mut(0).stop_daemon(end)?;
    for kept in of(First::Client) {
        kept.hears(Side::Server, "while the daemon is dead")?;
        kept.hears(Side::Client, "while the daemon is dead")?;
    }
    for kept in of(First::Server) {
        kept.says(Side::Server, "unheard")?;
    }
    cluster.node_mut(0).start_daemon()?;
    let back = Instant::now();
    for kept in of(First::Server) {
        let mut heard = [0; "unheard".len()];
        let mut ear = kept.end(Side::Client);
        ear.read_exact(&mut heard).with_context(|| format!("what {kept} said comes late"))?;
    }
    for kept in of(First::Server).chain(of(First::Idle)).chain(of(First::Client)) {
        kept.hears(Side::Client, "after the restart")?;
        kept.hears(Side::Server, "after the restart")?;
    }
    let took = back.elapsed();
    println!("{} connections went on {} ms after the restart", kept.len(), took.as_millis());
    ensure!(took < GOES_ON_WITHIN, "it took {took:?}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn connections_outlive_a_kill_whoever_speaks_first() {
    on_clusters(viaducts(), |cluster| {
        let scene = Scene::set(cluster, &wish())?;
        for kill in 0..if long() { 20 } else { 2 } {
            survives(cluster, &scene, Signal::KILL).with_context(|| format!("kill {kill}"))?;
        }
        survives(cluster, &scene, Signal::TERM).context("a stop in good order")
    });
}

/// Looks for packets with the container's port where they would leave the node: as the pod's own,
/// or masqueraded, they are nobody's answer.
struct Wires([Capture; 2]);

impl Wires {
    fn watch(cluster: &Cluster) -> Result<Wires> {
        // tcpdump reads the ports of IPv6, too (pcap-filter(7)).
        let filter = format!("src port {CONTAINER_PORT}");
        let beyond = cluster.node(0).outside();
        Ok(Wires([
            Capture::start(cluster.switch(), "-i p0 -Q in", &filter)?,
            Capture::start(beyond, "-i eth0 -Q in", &filter)?,
        ]))
    }

    fn stop(self) -> Result<Vec<String>> {
        let [switch, beyond] = self.0.map(Capture::stop);
        Ok([switch?, beyond?].concat())
    }
}

/// Packets that the guard has dropped so far.
fn guarded(cluster: &Cluster) -> Result<u64> {
    let node = cluster.node(0).namespace();
    let output = node.run("nft", &["list", "counter", "inet", "viaduct", "guarded"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let count = text.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    count.with_context(|| format!("the guard's counter: {output:?}"))
}

/// A pod that talks to clients without being asked: downloads by TCP, and datagrams by UDP to
/// clients that keep asking and to clients that do not.
struct Talk<'a> {
    server: [&'a UdpSocket; 2],
    /// Where the server sees the clients.
    clients: Vec<(usize, SocketAddr)>,
    /// The clients by UDP, and whether they keep asking.
    sockets: Vec<(UdpSocket, bool)>,
    downloads: Vec<Stream>,
    /// How often everybody has been told something.
    told: AtomicU64,
}

impl<'a> Talk<'a> {
    fn begin(cluster: &Cluster, scene: &'a Scene) -> Result<Talk<'a>> {
        let server = scene.hosts.each_ref().map(|host| host.udp());
        let (clients, sockets, downloads) = (vec![], vec![], vec![]);
        let mut talk = Talk { server, clients, sockets, downloads, told: AtomicU64::new(0) };
        for who in [Client::Outside, Client::Beyond, Client::Remote] {
            let from = scene.namespace(cluster, who);
            for (family, address) in Scene::node_address(who).into_iter().enumerate() {
                let (dial, host) = (SocketAddr::new(address, HOST_PORT), &scene.hosts[family]);
                for asks in [true, false] {
                    let client = caller(from, dial)?;
                    talk.clients.push((family, host.visited_by_udp(&client)?.seen));
                    talk.sockets.push((client, asks));
                }
                let (client, server) = host.connected_from(from, dial)?;
                talk.downloads.push(Stream::start(server, client, Some(PACE)));
            }
        }
        Ok(talk)
    }

    /// Waits until everybody has been told some more; what was said has left the pod then.
    fn wait_for_news(&self) -> Result<()> {
        let enough = self.told.load(Ordering::Relaxed) + NEWS;
        wait_until("the pod has talked", DONE_WITHIN, || {
            Ok(self.told.load(Ordering::Relaxed) >= enough)
        })
    }

    /// Talks until told to stop.
    fn go_on(&self, stop: &AtomicBool) -> Result<()> {
        let mut asked = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            for (family, client) in &self.clients {
                let _ = self.server[*family].send_to(b"news", client); // An error is news, too.
            }
            self.told.fetch_add(1, Ordering::Relaxed);
            if asked.elapsed() > ASKS_EVERY {
                asked = Instant::now();
                for (socket, _) in self.sockets.iter().filter(|(_, asks)| *asks) {
                    let _ = socket.send(b"more");
                }
            }
            thread::sleep(TALKS_EVERY);
        }
        Ok(())
    }
}

/// Does something while the pod talks.
fn while_it_talks(talk: &Talk<'_>, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let talking = scope.spawn(|| talk.go_on(&stop));
        let outcome = work();
        stop.store(true, Ordering::Relaxed);
        talking.join().expect("talking does not panic")?;
        outcome
    })
}

#[test]
#[ignore = "needs root"]
fn no_answer_leaves_the_node_untranslated_when_the_daemon_is_killed() {
    on_clusters(viaducts(), |cluster| {
        let scene = Scene::set(cluster, &wish())?;
        let mut talk = Talk::begin(cluster, &scene)?;
        let wires = Wires::watch(cluster)?;
        let mut dropped = 0;
        while_it_talks(&talk, || {
            for kill in 0..if long() { 50 } else { 3 } {
                // Not always at the same moment of what the daemon does by itself.
                thread::sleep(A_WHILE + Duration::from_millis(kill * 7 % 50));
                cluster.node_mut(0).stop_daemon(Signal::KILL)?;
                talk.wait_for_news()?;
                dropped = guarded(cluster)?.max(dropped);
                cluster.node_mut(0).start_daemon()?;
                for download in &talk.downloads {
                    download.wait_for_progress(GOES_ON_WITHIN).context("a download")?;
                }
            }
            Ok(())
        })?;
        let leaked = wires.stop()?;
        ensure!(leaked.is_empty(), "{} left as they were: {:#?}", leaked.len(), leaked.first());
        ensure!(dropped > 0, "the guard had nothing to do: the test shows nothing");
        println!("the guard dropped {dropped} packets");
        // What leaves untranslated is answered by resets, so the downloads come to their end first.
        for download in std::mem::take(&mut talk.downloads) {
            download.stop().context("a download")?;
        }
        without_the_guard_they_leave(cluster, &talk)
    });
}

/// The same without the guard shows that the wires would tell.
fn without_the_guard_they_leave(cluster: &mut Cluster, talk: &Talk<'_>) -> Result<()> {
    let wires = Wires::watch(cluster)?;
    while_it_talks(talk, || {
        cluster.node_mut(0).stop_daemon(Signal::KILL)?;
        let flush = ["flush", "chain", "inet", "viaduct", "guard"];
        let output = cluster.node(0).namespace().run("nft", &flush)?;
        ensure!(output.status.success(), "flush the guard: {output:?}");
        talk.wait_for_news()?;
        cluster.node_mut(0).start_daemon()
    })?;
    let leaked = wires.stop()?;
    ensure!(!leaked.is_empty(), "without the guard nothing leaves either: the test shows nothing");
    println!("without the guard {} packets left untranslated", leaked.len());
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_restart_forgets_no_flow_and_a_pod_that_is_gone_is_not_remembered() {
    on_clusters(viaducts(), |cluster| {
        let scene = Scene::set(cluster, &wish())?;
        let talk = Talk::begin(cluster, &scene)?;
        let before = flows(cluster)?;
        ensure!(before.len() >= talk.clients.len(), "flows are listed: {before:?}");
        cluster.node_mut(0).stop_daemon(Signal::KILL)?;
        cluster.node_mut(0).start_daemon()?;
        let after = flows(cluster)?;
        let lost: Vec<_> = before.iter().filter(|flow| !after.contains(flow)).collect();
        ensure!(lost.is_empty(), "lost by the restart: {lost:#?}");
        cluster.node(0).delete_pod(&scene.serving)?;
        for state in ["deleted", "deleted, and the daemon restarted"] {
            let of_pod = |address: IpAddr| format!("\"{address}\"");
            let gone = scene.serving.addresses().map(of_pod);
            let mut left = None;
            wait_until("its flows are gone", DONE_WITHIN, || {
                let is_left = |flow: &String| gone.iter().any(|address| flow.contains(address));
                left = flows(cluster)?.into_iter().find(is_left);
                Ok(left.is_none())
            })
            .with_context(|| format!("{state}: {left:?}"))?;
            if state == "deleted" {
                cluster.node_mut(0).stop_daemon(Signal::KILL)?;
                cluster.node_mut(0).start_daemon()?;
            }
        }
        Ok(())
    });
}

/// `viaduct flows`, a flow a line, without what changes by itself.
fn flows(cluster: &Cluster) -> Result<Vec<String>> {
    let mut rows = None;
    wait_until("the flows are listed", DONE_WITHIN, || {
        rows = cluster.node(0).list("flows").ok();
        Ok(rows.is_some())
    })?;
    let rows = rows.context("listed")?;
    let line = |row: &serde_json::Value| {
        let keys = ["protocol", "src", "sport", "dst", "dport", "nat_dst", "nat_dport"];
        keys.map(|key| row[key].to_string()).join(" ")
    };
    Ok(rows.as_array().context("flows are an array")?.iter().map(line).collect())
}
