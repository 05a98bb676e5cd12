//! Ports of the node that lead to a pod: who reaches it by which path, and whom the pod sees. And
//! what has the same number but is somebody else's. Asked of plain Linux with the reference plugin
//! first, then of Viaduct with the daemon alive, dead, and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, ClusterSetup, DIRECT, Forwarder, Mapping, Wish, on_clusters};
use e2e::host_ports::{
    CONTAINER_PORT, Client, FAMILIES, HOST_PORT, Scene, everybody, is_seen_right, make_transit,
    outsider, some,
};
use e2e::pod::Pod;
use e2e::traffic::{Host, SctpSocket, Transport, Visitor, is_refused, udp_socket};
use rustix::process::Signal;

/// What the serving pod asks for.
fn wish() -> Wish {
    Mapping::all(HOST_PORT, CONTAINER_PORT).into()
}

/// Asks with the first node's daemon alive and dead; of plain Linux once.
fn alive_and_dead(cluster: &mut Cluster, ask: impl Fn(&Cluster) -> Result<()>) -> Result<()> {
    if !cluster.by_viaduct(0) {
        return ask(cluster);
    }
    ask(cluster).context("while the daemon lives")?;
    cluster.node_mut(0).stop_daemon(Signal::KILL)?;
    ask(cluster).context("while the daemon is dead")
}

/// Every client by every transport in both families, and a process of the node at 127.0.0.1.
fn all_paths_lead_to_the_pod(cluster: &Cluster, scene: &Scene) -> Result<()> {
    for transport in Transport::ALL {
        for client in Client::ALL {
            for family in FAMILIES {
                let dial = SocketAddr::new(Scene::node_address(client)[family], HOST_PORT);
                let visitor = scene.visit_at(cluster, client, dial, transport)?;
                is_seen_right(cluster, client, dial, visitor).with_context(|| transport.name())?;
            }
        }
        let dial = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), HOST_PORT);
        let visitor = scene.visit_at(cluster, Client::Node, dial, transport)?;
        is_seen_right(cluster, Client::Node, dial, visitor).with_context(|| transport.name())?;
    }
    scene.is_quiet()
}

#[test]
#[ignore = "needs root"]
fn every_path_leads_to_the_pod_and_shows_it_the_right_source() {
    on_clusters(everybody(), |cluster| {
        let scene = Scene::set(cluster, &wish())?;
        alive_and_dead(cluster, |cluster| all_paths_lead_to_the_pod(cluster, &scene))?;
        if cluster.by_viaduct(0) {
            cluster.node_mut(0).start_daemon()?;
            all_paths_lead_to_the_pod(cluster, &scene).context("after the daemon came back")?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn workers_carry_what_need_not_pass_the_kernel() {
    let setups = some().into_iter().filter(|setup| setup.forwarder != Forwarder::Kernel);
    on_clusters(setups.collect(), |cluster| {
        let scene = Scene::set(cluster, &wish())?;
        for transport in Transport::ALL {
            for client in [Client::Outside, Client::Neighbour, Client::Itself, Client::Remote] {
                for family in FAMILIES {
                    let visitor = scene.visit(cluster, client, transport, family)?;
                    let Visitor { own, seen } = visitor;
                    let from = if client == Client::Itself { own } else { seen };
                    let flow = flow_of(cluster, transport, from)
                        .with_context(|| format!("{transport} from {client:?}"))?;
                    let pod = scene.serving.addresses()[family];
                    let translated = (&flow["nat_dst"], &flow["nat_dport"]);
                    ensure!(
                        *translated.0 == pod.to_string() && *translated.1 == CONTAINER_PORT,
                        "no worker translates: {flow}"
                    );
                }
            }
        }
        Ok(())
    });
}

/// The row of a client in `viaduct flows`.
fn flow_of(
    cluster: &Cluster,
    transport: Transport,
    client: SocketAddr,
) -> Result<serde_json::Value> {
    let rows = cluster.node(0).list("flows")?;
    let mut rows = rows.as_array().context("flows are an array")?.iter();
    let row = rows.find(|row| {
        row["protocol"] == transport.name()
            && row["src"] == client.ip().to_string()
            && row["sport"] == client.port()
    });
    row.cloned().with_context(|| format!("viaduct flows shows {transport} from {client}"))
}

#[test]
#[ignore = "needs root"]
fn a_client_of_the_port_and_of_the_pod_hears_each_answer_from_where_it_asked() {
    on_clusters(some(), |cluster| {
        let scene = Scene::set(cluster, &wish())?;
        for client in [Client::Node, Client::Neighbour, Client::Remote] {
            for (host, node) in scene.hosts.iter().zip(Cluster::address(0)) {
                // One socket, so for the pod both are the same client, unless they are told apart.
                let from = scene.namespace(cluster, client);
                let any: IpAddr = if node.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
                let socket = udp_socket(from, any)?;
                let asked = [SocketAddr::new(node, HOST_PORT), host.address()];
                for dial in [asked, asked].concat() {
                    each_from_where_it_asked(&socket, host, dial)
                        .with_context(|| format!("{client:?} at {dial}"))?;
                }
            }
        }
        scene.is_quiet()
    });
}

fn each_from_where_it_asked(client: &UdpSocket, host: &Host, dial: SocketAddr) -> Result<()> {
    client.send_to(b"who answers?", dial)?;
    let mut text = [0; 64];
    let (_, seen) = host.udp().recv_from(&mut text).context("there")?;
    host.udp().send_to(b"I do", seen)?;
    let (_, answered) = client.recv_from(&mut text).with_context(|| format!("back to {seen}"))?;
    ensure!(answered == dial, "{answered} answers, who sees {seen}");
    Ok(())
}

/// A number out of `net.ipv4.ip_local_port_range`: ports that the kernel gives away.
const EPHEMERAL: u16 = 40000;

#[test]
#[ignore = "needs root"]
fn the_node_hears_answers_at_the_number_of_a_host_port_and_the_pod_what_is_for_it() {
    on_clusters(some(), |cluster| {
        let mapping = Mapping::new(Transport::Udp, EPHEMERAL, CONTAINER_PORT);
        let scene = Scene::set(cluster, &vec![mapping].into())?;
        let [server, _] = outsider();
        let server = Host::open(&scene.outside, server, CONTAINER_PORT)?;
        let own = SocketAddr::new(Scene::node_address(Client::Outside)[0], EPHEMERAL);
        let process = cluster.node(0).namespace().within(|| UdpSocket::bind(own))??;
        process.set_read_timeout(Some(Duration::from_secs(10)))?;
        process.connect(server.address())?;
        for _ in 0..3 {
            server.visited_by_udp(&process).context("of the node's own")?;
            scene.visit_at(cluster, Client::Outside, own, Transport::Udp)?;
        }
        scene.is_quiet()
    });
}

#[test]
#[ignore = "needs root"]
fn a_pod_may_talk_from_a_mapped_port_on_its_own_account() {
    on_clusters(some(), |cluster| {
        let scene = Scene::set(cluster, &wish())?;
        let peers = [
            (&scene.neighbour.namespace, scene.neighbour.addresses()),
            (&scene.remote.namespace, scene.remote.addresses()),
            (cluster.node(0).namespace(), Cluster::address(0)),
        ];
        for (namespace, addresses) in peers {
            for (host, address) in scene.hosts.iter().zip(addresses) {
                let peer = udp_socket(namespace, address)?;
                host.udp().send_to(b"may I?", peer.local_addr()?)?;
                let mut text = [0; 64];
                let (_, seen) =
                    peer.recv_from(&mut text).with_context(|| format!("at {address}"))?;
                ensure!(seen == host.address(), "{address} sees {seen}");
                peer.send_to(b"you may", seen)?;
                let (_, from) = host.udp().recv_from(&mut text).context("the answer")?;
                ensure!(from == peer.local_addr()?, "{from} answers");
            }
        }
        Ok(())
    });
}

/// Path 4: nothing on the IPv6 loopback leads to the pod; who listens there is served.
fn the_ipv6_loopback_is_the_nodes_own(cluster: &Cluster, scene: &Scene) -> Result<()> {
    let node = cluster.node(0).namespace();
    let loopback = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), HOST_PORT);
    is_refused(node, loopback, Transport::Tcp)?;
    is_refused(node, loopback, Transport::Udp)?;
    SctpSocket::towards(node, loopback)?.send_init(loopback)?;
    let listener = Host::open(node, loopback.ip(), HOST_PORT)?;
    for transport in Transport::ALL {
        listener.visited(node, loopback, transport)?;
    }
    scene.is_quiet()
}

// Not asked of the reference: its connections to ::1 leave for the pod and hang.
#[test]
#[ignore = "needs root"]
fn the_ipv6_loopback_leads_to_no_pod() {
    let setups = some().into_iter().filter(|setup| setup.forwarder != Forwarder::Kernel);
    on_clusters(setups.collect(), |cluster| {
        let scene = Scene::set(cluster, &wish())?;
        alive_and_dead(cluster, |cluster| the_ipv6_loopback_is_the_nodes_own(cluster, &scene))
    });
}

#[test]
#[ignore = "needs root"]
fn what_only_passes_the_node_is_left_alone() {
    on_clusters(some(), |cluster| {
        let scene = Scene::set(cluster, &wish())?;
        let transit = make_transit(cluster, &scene)?;
        // The same port of another node, where it leads to no pod.
        let [v4, v6] = Cluster::address(1);
        let other = cluster.node(1).namespace();
        let elsewhere = [Host::open(other, v4, HOST_PORT)?, Host::open(other, v6, HOST_PORT)?];
        alive_and_dead(cluster, |cluster| {
            for transport in Transport::ALL {
                for client in [Client::Outside, Client::Node, Client::Neighbour, Client::Itself] {
                    let from = scene.namespace(cluster, client);
                    for host in transit.iter().chain(&elsewhere) {
                        host.visited(from, host.address(), transport)
                            .with_context(|| format!("from {client:?}"))?;
                    }
                }
            }
            scene.is_quiet()
        })
    });
}

/// A Service as kube-proxy makes it, and an external address of it, with the number of the host
/// port; its backend has another one.
const SERVICE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10)),
];
const BACKEND_PORT: u16 = 9000;

/// Makes the Service on the first node, and shows the client on the switch the way there.
fn make_service(cluster: &Cluster, scene: &Scene, backend: &Pod) -> Result<()> {
    let [v4, v6] = SERVICE;
    let rules = format!(
        "ip daddr {v4} meta l4proto {{ tcp, udp, sctp }} th dport {HOST_PORT} \
           dnat ip to {}:{BACKEND_PORT}
         ip6 daddr {v6} meta l4proto {{ tcp, udp, sctp }} th dport {HOST_PORT} \
           dnat ip6 to [{}]:{BACKEND_PORT}\n",
        backend.v4, backend.v6
    );
    let chain =
        |hook: &str| format!("chain {hook} {{ type nat hook {hook} priority -100\n{rules}}}\n");
    let table = format!("table inet services {{ {}{} }}", chain("prerouting"), chain("output"));
    let output = cluster.node(0).namespace().run("nft", &[&table])?;
    ensure!(output.status.success(), "make a Service: {output:?}");
    for (service, node) in SERVICE.into_iter().zip(Cluster::address(0)) {
        e2e::daemon::ip(&scene.outside, &format!("route add {service} via {node}"))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_service_with_the_same_port_keeps_its_backend() {
    // A client in `direct` is answered past the kernel, by whom a Service is translated; that is so
    // without host ports, too.
    let direct = || DIRECT.map(str::to_owned).into();
    let setups = some().into_iter().map(|setup| ClusterSetup { direct: direct(), ..setup });
    on_clusters(setups.collect(), |cluster| {
        let scene = Scene::set(cluster, &wish())?;
        let backend = cluster.add_pod(0, "backend")?;
        let [v4, v6] = backend.addresses();
        let inside = &backend.namespace;
        let hosts = [Host::open(inside, v4, BACKEND_PORT)?, Host::open(inside, v6, BACKEND_PORT)?];
        make_service(cluster, &scene, &backend)?;
        alive_and_dead(cluster, |cluster| {
            for transport in Transport::ALL {
                for client in [Client::Outside, Client::Node, Client::Neighbour, Client::Itself] {
                    let from = scene.namespace(cluster, client);
                    for (host, service) in hosts.iter().zip(SERVICE) {
                        host.visited(from, SocketAddr::new(service, HOST_PORT), transport)
                            .with_context(|| format!("from {client:?}"))?;
                    }
                }
            }
            scene.is_quiet()
        })
    });
}
