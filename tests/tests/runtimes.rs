//! Runtimes that nobody here wrote attach containers to a node: containerd by `ctr`, containerd as
//! a kubelet uses it, podman. The containers talk through the workers, and when they are gone
//! nothing of them is left. Needs the Debian packages containerd, runc, podman, conmon,
//! busybox-static and curl.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use e2e::daemon::{
    NODE_V4, NODE_V6, Node, PortMode, Setup, UPLINK_V4, UPLINK_V6, on_each, workers,
};
use e2e::netns::{Namespace, wait_until};
use e2e::runtimes::{Container, Containerd, Ctr, Kubelet, Machine, Podman, Runtime, output};
use e2e::traffic::{Transport, is_refused};

/// Bytes of a transfer.
const TRANSFER_BYTES: u64 = 100_000_000;

/// Where a transfer goes to.
const PORT: u16 = 7000;

/// Echo requests of a ping.
const PINGS: u64 = 20;

/// The kernel frees a namespace some 50 ms after its last reference; DEL answers before the veth
/// pair is gone.
const GONE_DEADLINE: Duration = Duration::from_secs(30);

#[test]
#[ignore = "needs root"]
fn containers_of_ctr_talk_through_the_workers_and_leave_nothing_behind() {
    on_each(Setup::modes(), |node| {
        let machine = Machine::start(node)?;
        let containerd = Containerd::start(&machine)?;
        let ctr = Ctr(&containerd);
        talk(node, &machine, [&ctr, &ctr])
    });
}

#[test]
#[ignore = "needs root"]
fn sandboxes_of_a_kubelet_talk_through_the_workers_and_leave_nothing_behind() {
    on_each(Setup::modes(), |node| {
        let machine = Machine::start(node)?;
        let containerd = Containerd::start(&machine)?;
        let kubelet = Kubelet::new(&containerd)?;
        talk(node, &machine, [&kubelet, &kubelet])
    });
}

#[test]
#[ignore = "needs root"]
fn containers_of_podman_talk_through_the_workers_and_leave_nothing_behind() {
    on_each(Setup::modes(), |node| {
        let machine = Machine::start(node)?;
        let podman = Podman::new(&machine)?;
        talk(node, &machine, [&podman, &podman])
    });
}

#[test]
#[ignore = "needs root"]
fn a_container_of_ctr_talks_to_one_of_podman_across_two_workers() {
    on_each(vec![Setup::new(PortMode::Auto, 2)], |node| {
        let machine = Machine::start(node)?;
        let containerd = Containerd::start(&machine)?;
        let podman = Podman::new(&machine)?;
        talk(node, &machine, [&Ctr(&containerd), &podman])
    });
}

#[test]
#[ignore = "needs root"]
fn a_sandbox_whose_namespace_was_lost_is_removed_without_a_trace() {
    on_each(vec![Setup::new(PortMode::Auto, 1)], |node| {
        let machine = Machine::start(node)?;
        let containerd = Containerd::start(&machine)?;
        let kubelet = Kubelet::new(&containerd)?;
        let before = settled_footprint(node, &machine)?;
        let container = kubelet.run("lost")?;
        kubelet.lose_namespace(&container)?;
        kubelet.remove(container)?;
        wait_for_footprint(node, &machine, &before)
    });
}

#[test]
#[ignore = "needs root"]
fn a_kubelet_tells_the_daemon_which_pod_it_is() {
    on_each(vec![Setup::new(PortMode::Auto, 1)], |node| {
        let machine = Machine::start(node)?;
        let containerd = Containerd::start(&machine)?;
        let kubelet = Kubelet::new(&containerd)?;
        let container = kubelet.run("web-0")?;
        let row = row(node, &container)?;
        ensure!(row["namespace"] == "e2e" && row["name"] == "web-0", "{row}");
        let loopback = output(&mut kubelet.exec(&container, "ping -c 1 -W 1 127.0.0.1"))?;
        ensure!(loopback.contains("1 packets received"), "lo does not answer: {loopback}");
        kubelet.remove(container)
    });
}

#[test]
#[ignore = "needs root"]
fn podman_gets_the_addresses_it_asks_for_also_after_a_restart() {
    on_each(vec![Setup::new(PortMode::Auto, 1)], |node| {
        let machine = Machine::start(node)?;
        let podman = Podman::new(&machine)?;
        let before = settled_footprint(node, &machine)?;
        let [wanted, _] = node.nobody();
        let mac = "0a:58:00:00:00:07";
        let options = ["--ip", &wanted.to_string(), "--mac-address", mac];
        let container = podman.run_with("wanted", &options)?;
        let peer = podman.run("peer")?;
        for _ in 0..2 {
            let row = row(node, &container)?;
            ensure!(row["mac"] == mac && row["ips"][0] == json!(wanted), "{row}");
            let link = output(&mut podman.exec(&container, "ip link show eth0"))?;
            ensure!(link.contains(mac), "eth0 does not have {mac}: {link}");
            ping([&podman, &podman], [&peer, &container], wanted)?;
            output(podman.command().args(["restart", "--time", "0", "wanted"]))?;
        }
        podman.remove(container)?;
        podman.remove(peer)?;
        wait_for_footprint(node, &machine, &before)
    });
}

/// The node's port that is published, and one that is for the node's own processes.
const PUBLISHED: u16 = 8080;
const PUBLISHED_LOCALLY: u16 = 8081;

#[test]
#[ignore = "needs root"]
fn a_port_that_podman_publishes_reaches_the_container_on_every_path() {
    on_each(Setup::modes(), |node| {
        let machine = Machine::start(node)?;
        let podman = Podman::new(&machine)?;
        let before = settled_footprint(node, &machine)?;
        let publish =
            [format!("{PUBLISHED}:{PORT}"), format!("127.0.0.1:{PUBLISHED_LOCALLY}:{PORT}")];
        let options = ["-p", &publish[0], "-p", &publish[1]];
        let container = podman.run_with("web", &options)?;
        let peer = podman.run("peer")?;
        is_reached(node, &podman, &container, &peer)?;
        let greeter = Greeter::start(&podman, &container)?;
        let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PUBLISHED_LOCALLY);
        greeter.greets(node.namespace(), local)?;
        let outside = SocketAddr::new(UPLINK_V4.into(), PUBLISHED_LOCALLY);
        is_refused(node.outside(), outside, Transport::Tcp)?;
        drop(greeter);
        // The port is free again for a container that comes later.
        podman.remove(container)?;
        let heir = podman.run_with("heir", &options)?;
        is_reached(node, &podman, &heir, &peer)?;
        podman.remove(heir)?;
        podman.remove(peer)?;
        wait_for_footprint(node, &machine, &before)
    });
}

#[test]
#[ignore = "needs root"]
fn a_host_port_of_a_kubelets_pod_reaches_its_container_on_every_path() {
    on_each(Setup::modes(), |node| {
        let machine = Machine::start(node)?;
        let containerd = Containerd::start(&machine)?;
        let kubelet = Kubelet::new(&containerd)?;
        let before = settled_footprint(node, &machine)?;
        let container = kubelet.run_with_ports("web", &[(PUBLISHED, PORT)])?;
        let peer = kubelet.run("peer")?;
        is_reached(node, &kubelet, &container, &peer)?;
        kubelet.remove(container)?;
        kubelet.remove(peer)?;
        wait_for_footprint(node, &machine, &before)
    });
}

/// A server in a container that greets whoever comes to [`PORT`], one after another.
struct Greeter(Child);

const GREETING: &str = "good day";

impl Greeter {
    fn start(runtime: &dyn Runtime, container: &Container) -> Result<Greeter> {
        let serve = format!("while echo {GREETING} | nc -l -p {PORT}; do :; done");
        let greeter = runtime.exec(container, &serve).spawn().context("run the server")?;
        let greeter = Greeter(greeter);
        wait_until("somebody listens", GONE_DEADLINE, || {
            let sockets = output(&mut runtime.exec(container, "netstat -ltn"))?;
            Ok(sockets.contains(&format!(":{PORT} ")))
        })?;
        Ok(greeter)
    }

    /// Somebody comes from a namespace of the node's. Between two visitors nobody listens for a
    /// moment, so a refusal is not the end.
    fn greets(&self, from: &Namespace, dial: SocketAddr) -> Result<()> {
        let mut last = String::new();
        wait_until("the container greets", GONE_DEADLINE, || {
            last = match from.within(|| greeting(dial))? {
                Ok(text) => text,
                Err(error) => error.to_string(),
            };
            Ok(last.trim() == GREETING)
        })
        .with_context(|| format!("from {} to {dial}: {last}", from.path().display()))
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        let _ = self.0.kill(); // What runs in the container ends with it.
        let _ = self.0.wait();
    }
}

/// What is said there.
fn greeting(dial: SocketAddr) -> std::io::Result<String> {
    let deadline = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&dial, deadline)?;
    stream.set_read_timeout(Some(deadline))?;
    let mut line = String::new();
    BufReader::new(&mut stream).read_line(&mut line)?;
    Ok(line)
}

/// The container's server is reached from outside of the node, by the node's own processes, also
/// at 127.0.0.1, by another container, and by itself.
fn is_reached(
    node: &Node,
    runtime: &dyn Runtime,
    container: &Container,
    peer: &Container,
) -> Result<()> {
    let greeter = Greeter::start(runtime, container)?;
    let here = |address: IpAddr| SocketAddr::new(address, PUBLISHED);
    for address in [IpAddr::from(UPLINK_V4), UPLINK_V6.into()] {
        greeter.greets(node.outside(), here(address))?;
    }
    for address in [NODE_V4.into(), NODE_V6.into(), IpAddr::from(Ipv4Addr::LOCALHOST)] {
        greeter.greets(node.namespace(), here(address))?;
    }
    for client in [peer, container] {
        for address in [IpAddr::from(NODE_V4), NODE_V6.into()] {
            let line = format!("nc -w 2 {address} {PUBLISHED} < /dev/null | head -n 1");
            wait_until("the container greets", GONE_DEADLINE, || {
                Ok(output(&mut runtime.exec(client, &line))
                    .is_ok_and(|text| text.trim() == GREETING))
            })
            .with_context(|| format!("{} to {address}", client.name))?;
        }
    }
    Ok(())
}

/// Runs a container by each runtime; they ping each other and send 100 MB on both families, and
/// the workers count every packet of it. Then nothing is left of them.
fn talk(node: &Node, machine: &Machine, runtimes: [&dyn Runtime; 2]) -> Result<()> {
    let before = settled_footprint(node, machine)?;
    let containers = [run(node, runtimes[0], "first")?, run(node, runtimes[1], "second")?];
    let both = [&containers[0], &containers[1]];
    let swapped = [&containers[1], &containers[0]];
    let addresses = [addresses(node, both[0])?, addresses(node, both[1])?];
    for address in addresses[1] {
        counted(node, both, PINGS, 0, || ping(runtimes, both, address))?;
        counted(node, both, 0, TRANSFER_BYTES, || transfer(runtimes, both, address))?;
    }
    for address in addresses[0] {
        let runtimes = [runtimes[1], runtimes[0]];
        counted(node, swapped, PINGS, 0, || ping(runtimes, swapped, address))?;
    }
    let started = Instant::now();
    for (runtime, container) in runtimes.into_iter().zip(containers) {
        runtime.remove(container)?;
    }
    eprintln!("removed both in {} ms", started.elapsed().as_millis());
    wait_for_footprint(node, machine, &before)
}

/// Runs a container and compares what the daemon says of it with what is in it.
fn run(node: &Node, runtime: &dyn Runtime, name: &str) -> Result<Container> {
    let started = Instant::now();
    let container = runtime.run(name)?;
    eprintln!("{}: {name} runs after {} ms", runtime.title(), started.elapsed().as_millis());
    let row = row(node, &container)?;
    ensure!(row["state"] == "userspace", "no worker forwards for {name}: {row}");
    let inside = output(&mut runtime.exec(&container, "ip addr show eth0"))?;
    for address in addresses(node, &container)? {
        let len = if address.is_ipv4() { 32 } else { 128 };
        ensure!(inside.contains(&format!("{address}/{len} ")), "no {address} in {name}: {inside}");
    }
    Ok(container)
}

/// All pings come back.
fn ping(runtimes: [&dyn Runtime; 2], [from, to]: [&Container; 2], address: IpAddr) -> Result<()> {
    let line = format!("ping -q -c {PINGS} -i 0.02 -W 5 {address}");
    let text = output(&mut runtimes[0].exec(from, &line))?;
    let all = format!("{PINGS} packets transmitted, {PINGS} packets received");
    ensure!(text.contains(&all), "{} pings {} at {address}: {text}", from.name, to.name);
    Ok(())
}

/// 100 MB arrive as they were sent.
fn transfer(
    runtimes: [&dyn Runtime; 2],
    [from, to]: [&Container; 2],
    address: IpAddr,
) -> Result<()> {
    // Pipes in /dev, since the rest of a sandbox is read-only. One opened for reading and writing
    // never ends, unlike the input that some runtimes give, at whose end nc would close its half of
    // the connection.
    let receive = format!(
        "rm -f /dev/quiet && mkfifo /dev/quiet && \
         nc -l -p {PORT} 0<>/dev/quiet | sha256sum"
    );
    let receiver = runtimes[1].exec(to, &receive).stdout(Stdio::piped()).spawn();
    let receiver = receiver.context("run the receiver")?;
    wait_until("somebody listens", GONE_DEADLINE, || {
        let sockets = output(&mut runtimes[1].exec(to, "netstat -ltn"))?;
        Ok(sockets.contains(&format!(":{PORT} ")))
    })?;
    let send = format!(
        "rm -f /dev/copy && mkfifo /dev/copy && {{ sha256sum < /dev/copy & }} && \
         head -c {TRANSFER_BYTES} /dev/urandom | tee /dev/copy | nc {address} {PORT} && wait"
    );
    let started = Instant::now();
    let sent = output(&mut runtimes[0].exec(from, &send))?;
    let took = started.elapsed();
    let received = receiver.wait_with_output()?;
    let received = String::from_utf8_lossy(&received.stdout);
    eprintln!(
        "{TRANSFER_BYTES} bytes from {} to {address} in {} ms",
        runtimes[0].title(),
        took.as_millis()
    );
    ensure!(sent.len() > 64 && received == sent, "sent {sent}but received {received}");
    Ok(())
}

/// Does something, during which the workers must take so many packets and bytes from one
/// container, and bring them to the other: then the traffic went through userspace.
fn counted(
    node: &Node,
    [from, to]: [&Container; 2],
    packets: u64,
    bytes: u64,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let count = || -> Result<[u64; 4]> {
        let (from, to) = (row(node, from)?, row(node, to)?);
        let figures = [
            &from["from_pod"]["packets"],
            &to["to_pod"]["packets"],
            &from["from_pod"]["bytes"],
            &to["to_pod"]["bytes"],
        ];
        Ok(figures.map(|figure| figure.as_u64().unwrap_or_default()))
    };
    let before = count()?;
    work()?;
    let after = count()?;
    for (index, least) in [packets, packets, bytes, bytes].into_iter().enumerate() {
        let seen = after[index] - before[index];
        ensure!(seen >= least, "of {least} packets or bytes the workers saw {seen}");
    }
    Ok(())
}

/// What `viaduct pods` shows of a container.
fn row(node: &Node, container: &Container) -> Result<Value> {
    let rows = node.list("pods")?;
    let mut rows = rows.as_array().into_iter().flatten();
    let row = rows.find(|row| row["container_id"] == container.cni_id.as_str());
    row.cloned().with_context(|| format!("viaduct pods shows {}", container.cni_id))
}

/// A container's addresses, one of each family.
fn addresses(node: &Node, container: &Container) -> Result<[IpAddr; 2]> {
    let row = row(node, container)?;
    let addresses: Vec<IpAddr> = serde_json::from_value(row["ips"].clone())?;
    addresses.try_into().ok().with_context(|| format!("one address of each family: {row}"))
}

/// Everything that a container could leave behind on a node, one line each.
type Footprint = BTreeSet<String>;

/// The footprint of a node that has just been made.
fn settled_footprint(node: &Node, machine: &Machine) -> Result<Footprint> {
    // The uplink's link-local address is in more rows once it is known to be no duplicate.
    wait_until("the node's own addresses are usable", GONE_DEADLINE, || {
        Ok(!node.namespace().ip_json(&["addr"])?.to_string().contains("\"tentative\":true"))
    })?;
    footprint(node, machine)
}

fn footprint(node: &Node, machine: &Machine) -> Result<Footprint> {
    let namespace = node.namespace();
    let mut lines = Footprint::new();
    for args in [
        &["addr"][..],
        &["-4", "route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
        &["-4", "rule"],
        &["-6", "rule"],
        &["neigh", "show", "nud", "permanent"],
    ] {
        let rows = namespace.ip_json(args)?;
        lines.extend(rows.as_array().into_iter().flatten().map(|row| format!("{args:?} {row}")));
    }
    for listing in ["pods", "ports", "routes"] {
        let rows = node.list(listing)?;
        // Without the counters, which go on for the node port.
        let key =
            |row: &Value| format!("{listing} {} {} {}", row["ips"], row["device"], row["dst"]);
        lines.extend(rows.as_array().into_iter().flatten().map(key));
    }
    let status = node.list("status")?;
    for worker in workers(&status) {
        lines.insert(format!("frames {} {}", worker["id"], worker["frames"]));
    }
    let protocols =
        namespace.within(|| fs::read_to_string("/proc/thread-self/net/protocols"))??;
    lines.insert(format!("XSKs {}", sockets(&protocols, "XDP")));
    // A namespace that a link leads to keeps its number here until its last reference is gone: a
    // process, a mount, a descriptor or a socket.
    let peers = namespace.run("ip", &["netns", "list-id"])?;
    lines.insert(format!("linked namespaces {}", String::from_utf8_lossy(&peers.stdout)));
    lines.extend(files(node.bpf_dir())?.iter().map(|path| format!("pinned {path}")));
    // Of the runtime: namespaces, and what libcni keeps until a DEL has succeeded.
    let find = "find /run/netns /var/lib/cni -name 'viaduct-*' -o -path '*netns/*'";
    let find = machine.shell(&format!("{find} 2>/dev/null || true"))?;
    lines.extend(find.lines().map(|path| format!("of the runtime {path}")));
    Ok(lines)
}

/// Waits until the node is as it was.
fn wait_for_footprint(node: &Node, machine: &Machine, before: &Footprint) -> Result<()> {
    let mut now = Footprint::new();
    wait_until("nothing is left of the containers", GONE_DEADLINE, || {
        now = footprint(node, machine)?;
        Ok(now == *before)
    })
    .map_err(|error| {
        let (left, lost): (Vec<_>, Vec<_>) =
            (now.difference(before).collect(), before.difference(&now).collect());
        error.context(format!("left behind: {left:#?}\nmissing: {lost:#?}"))
    })
}

/// Number of sockets of a protocol in /proc/net/protocols, which counts those of one network
/// namespace.
fn sockets(protocols: &str, name: &str) -> u64 {
    let mut rows = protocols.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row.first() == Some(&name));
    row.and_then(|row| row.get(2)?.parse().ok()).unwrap_or(0)
}

/// Paths below a directory.
fn files(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        found.push(entry.path().to_string_lossy().into_owned());
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        }
    }
    found.sort();
    Ok(found)
}
