//! Datagrams through a port of the node that are harder than others: from a client that outlives
//! the pod behind the port, longer than the MTU, on a way that is narrow, and the ICMP errors that
//! tell of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cable, Cluster, Mapping, Offloads, Wish, on_clusters, set_sysctl};
use e2e::daemon::ip;
use e2e::host_ports::{
    CONTAINER_PORT, Client, FAMILIES, HOST_PORT, Scene, is_of_node, is_seen_right, some,
};
use e2e::netns::{Namespace, wait_until};
use e2e::traffic::{Hop, Host, Transport, Visitor, caller, is_refused, pump, trace};
use rustix::process::Signal;

/// A port that leads to a pod, at which nobody listens.
const CLOSED: u16 = HOST_PORT + 1;

fn wish() -> Wish {
    let closed = Mapping::new(Transport::Udp, CLOSED, CONTAINER_PORT + 1);
    [Mapping::all(HOST_PORT, CONTAINER_PORT), vec![closed]].concat().into()
}

/// Whether the tests may take minutes.
fn long() -> bool {
    std::env::var_os("VIADUCT_E2E_LONG").is_some()
}

/// After a DEL nothing leads to the pod any more within so long, on a busy machine, too.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(10);

/// A client that keeps its socket, so its port.
struct Faithful {
    client: Client,
    family: usize,
    socket: UdpSocket,
}

/// Every client in both families, and a process of the node at 127.0.0.1.
fn faithful_clients(cluster: &Cluster, scene: &Scene) -> Result<Vec<Faithful>> {
    let mut clients = Vec::new();
    let outliving = Client::ALL.into_iter().filter(|client| *client != Client::Itself);
    for client in outliving {
        for family in FAMILIES {
            let dial = SocketAddr::new(Scene::node_address(client)[family], HOST_PORT);
            let socket = caller(scene.namespace(cluster, client), dial)?;
            clients.push(Faithful { client, family, socket });
        }
    }
    let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), HOST_PORT);
    let socket = caller(cluster.node(0).namespace(), loopback)?;
    clients.push(Faithful { client: Client::Node, family: 0, socket });
    Ok(clients)
}

/// What the kernel tracks on the first node.
fn kernels_flows(cluster: &Cluster, family: &str) -> Result<String> {
    let output = cluster.node(0).namespace().run("conntrack", &["-L", "-f", family])?;
    ensure!(output.status.success(), "conntrack -L: {output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Nothing that is tracked leads to these addresses any more, by us or by the kernel.
fn is_forgotten(cluster: &Cluster, gone: [IpAddr; 2]) -> Result<()> {
    if !cluster.by_viaduct(0) {
        return Ok(()); // The reference forgets at the next ADD.
    }
    let ours = cluster.node(0).list("flows")?.to_string();
    for (family, address) in ["ipv4", "ipv6"].into_iter().zip(gone) {
        let kernels = kernels_flows(cluster, family)?;
        let address = address.to_string();
        let left = kernels.lines().find(|line| {
            line.split_whitespace().any(|word| word == format!("src={address}"))
                && line.contains(&format!("sport={CONTAINER_PORT} "))
        });
        ensure!(left.is_none(), "the kernel leads to {address}: {left:?}");
        ensure!(!ours.contains(&format!("\"{address}\"")), "viaduct flows: {address} in {ours}");
    }
    Ok(())
}

/// Waits until no flow of the kernel leads past the pod that serves the port now: those that began
/// while there was none are forgotten some milliseconds after ADD.
fn until_all_lead_to_the_pod(cluster: &Cluster) -> Result<()> {
    if !cluster.by_viaduct(0) {
        return Ok(()); // The reference has forgotten them when it answers.
    }
    let [asked, answers] = [format!("dport={HOST_PORT} "), format!("sport={CONTAINER_PORT} ")];
    wait_until("the kernel leads to the pod", FORGOTTEN_WITHIN, || {
        let kernels = kernels_flows(cluster, "ipv4")? + &kernels_flows(cluster, "ipv6")?;
        let mut udp = kernels.lines().filter(|line| line.starts_with("udp"));
        Ok(!udp.any(|line| line.contains(&asked) && !line.contains(&answers)))
    })
}

#[test]
#[ignore = "needs root"]
fn a_client_with_a_fixed_port_reaches_whoever_is_behind_the_port_now() {
    let replaced = if long() { 100 } else { 10 };
    on_clusters(some(), |cluster| {
        let mut scene = Scene::set(cluster, &wish())?;
        let clients = faithful_clients(cluster, &scene)?;
        for round in 0..replaced {
            until_all_lead_to_the_pod(cluster)?;
            for Faithful { client, family, socket } in &clients {
                // What it was told while there was no pod.
                while let Ok(Some(_)) = socket.take_error() {}
                let visit = scene.hosts[*family].visited_by_udp(socket);
                visit.with_context(|| format!("{client:?} {socket:?}, {round} times replaced"))?;
            }
            let gone = scene.serving.addresses();
            let pause = |cluster: &Cluster| -> Result<()> {
                // Meanwhile they go on, so there are flows that lead nowhere.
                for Faithful { socket, .. } in &clients {
                    let _ = socket.send(b"is nobody there?"); // It may be told so by an error.
                }
                let mut left = Ok(());
                wait_until("the pod's flows are forgotten", FORGOTTEN_WITHIN, || {
                    left = is_forgotten(cluster, gone);
                    Ok(left.is_ok())
                })
                .with_context(|| format!("{left:?}"))
            };
            scene.serve_anew(cluster, &wish(), pause)?;
        }
        Ok(())
    });
}

/// A datagram goes there and back whole.
fn carries(host: &Host, client: &UdpSocket, bytes: usize) -> Result<SocketAddr> {
    let sent: Vec<u8> = (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect();
    let mut buffer = vec![0; 1 << 16];
    client.send(&sent)?;
    let (len, seen) = host.udp().recv_from(&mut buffer).context("there")?;
    ensure!(buffer[..len] == sent, "another datagram comes there");
    host.udp().send_to(&sent, seen)?;
    let len = client.recv(&mut buffer).context("back")?;
    ensure!(buffer[..len] == sent, "another datagram comes back");
    Ok(seen)
}

/// Payloads that just fit a packet of either family, that just do not, and 4 kB.
const SIZES: [usize; 5] = [1452, 1453, 1472, 1473, 4096];

#[test]
#[ignore = "needs root"]
fn datagrams_longer_than_the_mtu_go_through_the_port_both_ways() {
    on_clusters(some(), |cluster| {
        let scene = Scene::set(cluster, &wish())?;
        let ask = |cluster: &Cluster| -> Result<()> {
            for client in Client::ALL {
                for family in FAMILIES {
                    let host = &scene.hosts[family];
                    let dial = SocketAddr::new(Scene::node_address(client)[family], HOST_PORT);
                    let socket = caller(scene.namespace(cluster, client), dial)?;
                    for bytes in SIZES {
                        let seen = carries(host, &socket, bytes)
                            .with_context(|| format!("{bytes} bytes from {client:?} to {dial}"))?;
                        let visitor = Visitor { own: socket.local_addr()?, seen };
                        is_seen_right(cluster, client, dial, visitor)
                            .with_context(|| format!("{bytes} bytes"))?;
                    }
                }
            }
            Ok(())
        };
        ask(cluster)?;
        if cluster.by_viaduct(0) {
            cluster.node_mut(0).stop_daemon(Signal::KILL)?;
            ask(cluster).context("while the daemon is dead")?;
        }
        Ok(())
    });
}

/// A client two routers away, behind a link that is narrower than those at either end.
///
/// ```text
///   far ──1500── second ──1300── outside ──1500── switch ── node
/// ```
struct Narrow {
    far: Namespace,
    _second: Namespace,
    /// Addresses of the routers as the client sees them, nearest first, in both families.
    routers: [[IpAddr; 2]; 2],
}

const NARROW_MTU: u32 = 1300;

/// Nets of the far link and the narrow one; the last byte is 1 towards the node, 2 from it.
const NETS: [[&str; 2]; 2] = [["172.16.1.", "fd00:f1::"], ["172.16.2.", "fd00:f2::"]];

fn make_narrow(cluster: &Cluster, scene: &Scene) -> Result<Narrow> {
    let (far, second) = (Namespace::create("e2e-far")?, Namespace::create("e2e-second")?);
    let first = &scene.outside;
    let wire = |mtu| Cable { queues: 1, mtu, offloads: Offloads::Off };
    for namespace in [&far, &second] {
        ip(namespace, "link set lo up")?;
    }
    wire(1500).lay((&second, "near"), (&far, "eth0"))?;
    wire(NARROW_MTU).lay((first, "narrow"), (&second, "narrow"))?;
    for namespace in [first, &second] {
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            set_sysctl(namespace, key, "1")?;
        }
    }
    let ends = [
        (&second, "near", 0, 1),
        (&far, "eth0", 0, 2),
        (first, "narrow", 1, 1),
        (&second, "narrow", 1, 2),
    ];
    for (namespace, ifname, net, last) in ends {
        let [v4, v6] = NETS[net];
        ip(namespace, &format!("addr add {v4}{last}/24 dev {ifname}"))?;
        ip(namespace, &format!("addr add {v6}{last}/64 dev {ifname} nodad"))?;
    }
    for family in FAMILIES {
        let [link, narrow] = [NETS[0][family], NETS[1][family]];
        let len = if family == 0 { "0/24" } else { "/64" };
        let outsider = e2e::host_ports::outsider()[family];
        let option = if family == 0 { "-4" } else { "-6" };
        ip(&far, &format!("{option} route add default via {link}1"))?;
        ip(&second, &format!("{option} route add default via {narrow}1"))?;
        ip(first, &format!("route add {link}{len} via {narrow}2"))?;
        for net in [link, narrow] {
            ip(cluster.node(0).namespace(), &format!("route add {net}{len} via {outsider}"))?;
        }
    }
    let address = |net: usize| -> Result<[IpAddr; 2]> {
        let [v4, v6] = NETS[net].map(|net| format!("{net}1").parse());
        Ok([v4?, v6?])
    };
    Ok(Narrow { far, _second: second, routers: [address(0)?, address(1)?] })
}

/// What the serving pod's kernel knows of the way to an address, in bytes.
fn learned_mtu(scene: &Scene, to: IpAddr) -> Result<Option<u64>> {
    let route = scene.serving.namespace.ip_json(&["route", "get", &to.to_string()])?;
    Ok(route[0]["metrics"][0]["mtu"].as_u64())
}

#[test]
#[ignore = "needs root"]
fn a_narrow_link_is_found_by_path_mtu_discovery_through_the_port() {
    on_clusters(some(), |cluster| {
        let scene = Scene::set(cluster, &wish())?;
        let narrow = make_narrow(cluster, &scene)?;
        for family in FAMILIES {
            let host = &scene.hosts[family];
            let dial = SocketAddr::new(Cluster::address(0)[family], HOST_PORT);
            let socket = caller(&narrow.far, dial)?;
            let far = socket.local_addr()?.ip();
            let before = learned_mtu(&scene, far)?;
            ensure!(before != Some(NARROW_MTU.into()), "the pod knows the way to {far} before");
            let (client, server) = host.connected_from(&narrow.far, dial)?;
            pump(&client, &server, 300_000).with_context(|| format!("from {far}"))?;
            pump(&server, &client, 1_000_000).with_context(|| format!("to {far}"))?;
            let learned = learned_mtu(&scene, far)?;
            ensure!(learned == Some(NARROW_MTU.into()), "to {far} the pod knows {learned:?}");
            // Knowing it, the pod sends datagrams in pieces, the first of which has the ports.
            carries(host, &socket, 1252).with_context(|| format!("1252 bytes to {far}"))?;
            carries(host, &socket, 1400).with_context(|| format!("1400 bytes to {far}"))?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn traceroute_finds_every_hop_and_the_end_of_the_way_through_the_port() {
    on_clusters(some(), |cluster| {
        let scene = Scene::set(cluster, &wish())?;
        let narrow = make_narrow(cluster, &scene)?;
        for (family, node) in Cluster::address(0).into_iter().enumerate() {
            let dial = SocketAddr::new(node, CLOSED);
            let hops = trace(&narrow.far, dial)?;
            let [second, first] = narrow.routers.map(|addresses| addresses[family]);
            // At the node, it is any of its addresses.
            let [Hop::Passed(one), Hop::Passed(two), Hop::Passed(three), Hop::Arrived(end)] =
                hops[..]
            else {
                anyhow::bail!("to {dial}: {hops:?}");
            };
            ensure!([one, two, end] == [second, first, node], "to {dial}: {hops:?}");
            is_of_node(cluster.node(0).namespace(), three)?;
        }
        for client in Client::ALL.into_iter().filter(|client| *client != Client::Beyond) {
            for node in Cluster::address(0) {
                is_refused(
                    scene.namespace(cluster, client),
                    SocketAddr::new(node, CLOSED),
                    Transport::Udp,
                )
                .with_context(|| format!("{client:?} is told that nobody listens"))?;
            }
        }
        Ok(())
    });
}
