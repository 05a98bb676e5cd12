//! Whose a port of the node is: conflicts, wildcards, protocols, addresses that come and go, and a
//! table that somebody else flushes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, ClusterSetup, Forwarder, Mapping, UPLINK, Wish, on_clusters};
use e2e::daemon::{NODE_V4, NODE_V6, ip};
use e2e::host_ports::{CONTAINER_PORT, Client, FAMILIES, HOST_PORT, Scene, open};
use e2e::netns::{Namespace, wait_until};
use e2e::pod::{IFNAME, Pod};
use e2e::traffic::{Answer, Host, Transport, attempt, caller, is_refused};
use rustix::process::Signal;

/// What everybody wants in these tests.
const WANTED: Mapping = Mapping {
    host_ip: None,
    host_port: HOST_PORT,
    container_port: CONTAINER_PORT,
    transport: Transport::Tcp,
};

/// Code of an ADD that wants what another pod has.
const TAKEN: i64 = 101;

/// Damage to the node's tables is repaired within this, as a rule.
const REPAIRED_WITHIN: Duration = Duration::from_secs(1);

/// And a change of the node is followed, damage repaired, always within this, whatever else the
/// machine does.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(15);

fn viaduct() -> Vec<ClusterSetup> {
    vec![ClusterSetup::new(Forwarder::viaduct(2), 2)]
}

fn one(mapping: Mapping) -> Wish {
    vec![mapping].into()
}

/// `viaduct hostports`: who has what, as `protocol address port container`.
fn listed(cluster: &Cluster) -> Result<Vec<String>> {
    let rows = cluster.node(0).list("hostports")?;
    let rows = rows.as_array().context("hostports are an array")?;
    let text = |row: &serde_json::Value| {
        let words =
            ["protocol", "host_ip", "host_port", "container_id"].map(|key| row[key].to_string());
        words.join(" ").replace('"', "")
    };
    let mut lines: Vec<String> = rows.iter().map(text).collect();
    lines.sort();
    Ok(lines)
}

#[test]
#[ignore = "needs root"]
fn an_add_that_wants_a_taken_port_fails_names_the_owner_and_leaves_nothing() {
    on_clusters(viaduct(), |cluster| {
        let mut scene = Scene::set(cluster, &one(WANTED))?;
        let node = cluster.node(0);
        let before = listed(cluster)?;
        let inside = Namespace::create("e2e-pod")?;
        let mappings = vec![Mapping::new(Transport::Tcp, HOST_PORT + 1, 81), WANTED];
        let outcome = node.ask_for_host_ports("latecomer", &inside, &mappings.into())?;
        let error = outcome.json.as_ref().context("an error is printed")?;
        ensure!(error["code"] == TAKEN && outcome.code != Some(0), "{outcome:?}");
        for word in ["serving", &HOST_PORT.to_string()] {
            ensure!(outcome.stdout.contains(word), "the error does not name {word}: {error}");
        }
        ensure!(inside.ip(&["link", "show", "dev", IFNAME]).is_err(), "the interface is left");
        ensure!(listed(cluster)? == before, "host ports are left: {:?}", listed(cluster)?);
        scene.visit(cluster, Client::Outside, Transport::Tcp, 0)?;

        // The first owner goes, by a DEL that tells no ports; then the port is free.
        node.delete_pod(&scene.serving)?;
        ensure!(listed(cluster)?.is_empty(), "not freed: {:?}", listed(cluster)?);
        is_refused(&scene.outside, dial(0), Transport::Tcp)?;
        let heir = node.attach_as("heir", inside, &node.conf_with_host_ports(&one(WANTED)))?;
        scene.hosts = open(&heir)?;
        scene.visit(cluster, Client::Outside, Transport::Tcp, 0)?;

        // What the old owner's runtime repeats takes nothing from the heir.
        node.delete_pod(&scene.serving)?;
        ensure!(listed(cluster)?.len() == 2, "the heir's: {:?}", listed(cluster)?);
        scene.visit(cluster, Client::Outside, Transport::Tcp, 0)?;
        scene.visit(cluster, Client::Node, Transport::Tcp, 1).map(drop)
    });
}

/// The node's port in a family.
fn dial(family: usize) -> SocketAddr {
    SocketAddr::new(Cluster::address(0)[family], HOST_PORT)
}

/// Which of two hosts serves a client; none if it is refused.
fn serves(
    from: &Namespace,
    dial: SocketAddr,
    transport: Transport,
    hosts: [&Host; 2],
) -> Result<Option<usize>> {
    match attempt(from, dial, transport, &hosts)? {
        Answer::Served(by, _) => Ok(Some(by)),
        Answer::Refused => Ok(None),
        answer => anyhow::bail!("{transport} to {dial}: {answer:?}"),
    }
}

#[test]
#[ignore = "needs root"]
fn a_port_of_one_address_wins_over_that_of_all_in_either_order() {
    on_clusters(viaduct(), |cluster| {
        let scene = Scene::set(cluster, &Wish::default())?;
        let wishes = [one(WANTED), one(WANTED.at(Cluster::address(0)[0]))];
        for order in [[0, 1], [1, 0]] {
            let pods = order.map(|which| {
                cluster.add_pod_with_host_ports(0, ["any", "one"][which], &wishes[which])
            });
            let [first, second] = pods;
            let (first, second) = (first?, second?);
            let (any, specific) = if order == [0, 1] { (first, second) } else { (second, first) };
            let doors = [&any, &specific].map(open);
            let [any_hosts, specific_hosts] = doors;
            let (any_hosts, specific_hosts) = (any_hosts?, specific_hosts?);
            for client in [Client::Outside, Client::Node, Client::Neighbour] {
                let from = scene.namespace(cluster, client);
                let asked = |to, family: usize| {
                    let hosts = [&any_hosts[family], &specific_hosts[family]];
                    serves(from, SocketAddr::new(to, HOST_PORT), Transport::Tcp, hosts)
                        .with_context(|| format!("from {client:?}, order {order:?}"))
                };
                let [v4, v6] = Cluster::address(0);
                ensure!(asked(v4, 0)? == Some(1), "{client:?}: the specific one has its address");
                ensure!(asked(v6, 1)? == Some(0), "{client:?}: the wildcard has the other family");
                if client != Client::Outside {
                    ensure!(asked(NODE_V4.into(), 0)? == Some(0), "{client:?}: other addresses");
                }
            }
            cluster.node(0).delete_pod(&specific)?;
            let hosts = [&any_hosts[0], &specific_hosts[0]];
            let heir = serves(&scene.outside, dial(0), Transport::Tcp, hosts)?;
            ensure!(heir == Some(0), "the wildcard inherits the address: {heir:?}");
            cluster.node(0).delete_pod(&any)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_client_with_a_fixed_port_follows_the_specific_port_as_it_comes_and_goes() {
    on_clusters(viaduct(), |cluster| {
        let wildcard = Mapping { transport: Transport::Udp, ..WANTED };
        let scene = Scene::set(cluster, &one(wildcard))?;
        let mut clients = Vec::new();
        for client in [Client::Outside, Client::Remote, Client::Node, Client::Neighbour] {
            for family in FAMILIES {
                let socket = caller(scene.namespace(cluster, client), dial(family))?;
                clients.push((client, family, socket));
            }
        }
        let go_to = |hosts: &[Host; 2], when: &str| {
            clients.iter().try_for_each(|(client, family, socket)| {
                let host = &hosts[*family];
                // The kernel is made to forget a little after the ADD or DEL has been answered: until
                // then datagrams go elsewhere. Of all others the first one has to come.
                let (patience, lost_after) = match client {
                    Client::Node => (FOLLOWED_WITHIN, Duration::from_millis(100)),
                    _ => (Duration::ZERO, FOLLOWED_WITHIN),
                };
                host.udp().set_read_timeout(Some(lost_after))?;
                let mut visit = Ok(());
                wait_until("the client is served", patience, || {
                    while host.pending(Transport::Udp)?.is_some() {}
                    visit = host.visited_by_udp(socket).map(drop);
                    Ok(visit.is_ok())
                })
                .with_context(|| format!("{client:?}, family {family}, {when}: {visit:?}"))
            })
        };
        for round in 0..3 {
            go_to(&scene.hosts, "to the wildcard")?;
            let mappings = Cluster::address(0).map(|address| wildcard.at(address)).to_vec();
            let name = format!("specific-{round}");
            let specific = cluster.add_pod_with_host_ports(0, &name, &mappings.into())?;
            let hosts = open(&specific)?;
            go_to(&hosts, "to the specific one that has come")?;
            cluster.node(0).delete_pod(&specific)?;
        }
        go_to(&scene.hosts, "to the wildcard again")
    });
}

#[test]
#[ignore = "needs root"]
fn a_pod_that_goes_while_the_daemon_is_dead_leaves_its_port_free() {
    on_clusters(viaduct(), |cluster| {
        let mut scene = Scene::set(cluster, &one(WANTED))?;
        scene.visit(cluster, Client::Outside, Transport::Tcp, 0)?;
        cluster.node_mut(0).stop_daemon(Signal::KILL)?;
        cluster.node(0).delete_pod(&scene.serving)?; // The shim keeps it for the daemon.
        scene.serving.namespace.remove();
        cluster.node_mut(0).start_daemon()?;
        let heir = cluster.add_pod_with_host_ports(0, "heir", &one(WANTED))?;
        scene.hosts = open(&heir)?;
        for client in [Client::Outside, Client::Beyond, Client::Node, Client::Neighbour] {
            for family in FAMILIES {
                scene.visit(cluster, client, Transport::Tcp, family)?;
            }
        }
        let owners = listed(cluster)?;
        ensure!(owners.iter().all(|row| row.ends_with("heir")), "others: {owners:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn one_number_of_tcp_and_udp_is_two_ports() {
    on_clusters(viaduct(), |cluster| {
        let scene = Scene::set(cluster, &Wish::default())?;
        let node = cluster.node(0);
        let by_udp = Mapping { transport: Transport::Udp, ..WANTED };
        let add = |name, mapping| cluster.add_pod_with_host_ports(0, name, &one(mapping));
        let pods: [Pod; 2] = [add("web", WANTED)?, add("names", by_udp)?];
        let doors = [open(&pods[0])?, open(&pods[1])?];
        let expect = |doors: [&Host; 2], expected: [Option<usize>; 2]| -> Result<()> {
            for client in [Client::Outside, Client::Node, Client::Neighbour] {
                let from = scene.namespace(cluster, client);
                for (transport, expected) in
                    [Transport::Tcp, Transport::Udp].into_iter().zip(expected)
                {
                    let served = serves(from, dial(0), transport, doors)?;
                    ensure!(served == expected, "{transport} from {client:?}: {served:?}");
                }
            }
            Ok(())
        };
        expect([&doors[0][0], &doors[1][0]], [Some(0), Some(1)]).context("both")?;
        node.delete_pod(&pods[0])?;
        expect([&doors[0][0], &doors[1][0]], [None, Some(1)]).context("one is gone")?;
        // The number that is free again goes to another pod, and the other protocol stays.
        let anew = add("web-anew", WANTED)?;
        let anew = open(&anew).map(|doors| (anew, doors))?;
        expect([&anew.1[0], &doors[1][0]], [Some(0), Some(1)]).context("both again")
    });
}

#[test]
#[ignore = "needs root"]
fn a_port_of_the_loopback_is_for_the_nodes_own_processes() {
    on_clusters(viaduct(), |cluster| {
        let scene = Scene::set(cluster, &one(WANTED.at(Ipv4Addr::LOCALHOST.into())))?;
        let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), HOST_PORT);
        scene.visit_at(cluster, Client::Node, loopback, Transport::Tcp)?;
        for client in [Client::Outside, Client::Node, Client::Neighbour] {
            is_refused(scene.namespace(cluster, client), dial(0), Transport::Tcp)?;
        }
        // Nobody comes to it from elsewhere either, by a route to it.
        ip(&scene.outside, "addr del 127.0.0.1/8 dev lo")?;
        let [node, _] = Cluster::address(0);
        ip(&scene.outside, &format!("route add 127.0.0.1/32 via {node}"))?;
        e2e::cluster::set_sysctl(&scene.outside, "net.ipv4.conf.all.route_localnet", "1")?;
        let host = [&scene.hosts[0]];
        let answer = attempt(&scene.outside, loopback, Transport::Tcp, &host)?;
        ensure!(!matches!(answer, Answer::Served(..) | Answer::OneWay(_)), "{answer:?}");
        scene.is_quiet()
    });
}

/// An address that the node gets late.
const LATE: [&str; 2] = ["10.0.0.77", "fd00:a::77"];

#[test]
#[ignore = "needs root"]
fn an_address_that_the_node_gets_answers_and_one_that_it_loses_stops() {
    on_clusters(viaduct(), |cluster| {
        let wish: Wish = Mapping::all(HOST_PORT, CONTAINER_PORT).into();
        let scene = Scene::set(cluster, &wish)?;
        let node = cluster.node(0).namespace();
        for family in FAMILIES {
            let late: IpAddr = LATE[family].parse()?;
            let prefix = if late.is_ipv4() { "24" } else { "64 nodad" };
            let dial = SocketAddr::new(late, HOST_PORT);
            ip(node, &format!("addr add {late}/{prefix} dev {UPLINK}"))?;
            for client in [Client::Outside, Client::Neighbour, Client::Itself, Client::Node] {
                let from = scene.namespace(cluster, client);
                wait_until("the new address answers", FOLLOWED_WITHIN, || {
                    let answer = attempt(from, dial, Transport::Tcp, &[&scene.hosts[family]])?;
                    Ok(matches!(answer, Answer::Served(..)))
                })
                .with_context(|| format!("from {client:?}"))?;
                scene.visit_at(cluster, client, dial, Transport::Udp)?;
                scene.visit_at(cluster, client, dial, Transport::Sctp)?;
            }
            // Then it is another host's, which has a server of its own.
            ip(node, &format!("addr del {late}/{} dev {UPLINK}", &prefix[..2]))?;
            ip(&scene.outside, &format!("addr add {late}/{prefix} dev {UPLINK}"))?;
            let elsewhere = Host::open(&scene.outside, late, HOST_PORT)?;
            for client in [Client::Neighbour, Client::Itself, Client::Node] {
                let from = scene.namespace(cluster, client);
                let hosts = [&scene.hosts[family], &elsewhere];
                wait_until("the old address has moved", FOLLOWED_WITHIN, || {
                    let answer = attempt(from, dial, Transport::Tcp, &hosts)?;
                    Ok(matches!(answer, Answer::Served(1, _)))
                })
                .with_context(|| format!("from {client:?}"))?;
                elsewhere.visited(from, dial, Transport::Udp)?;
                elsewhere.visited(from, dial, Transport::Sctp)?;
            }
        }
        scene.is_quiet()
    });
}

/// What `nft` prints of our table, without counters.
fn table(cluster: &Cluster) -> Result<String> {
    let node = cluster.node(0).namespace();
    let output = node.run("nft", &["-s", "list", "table", "inet", "viaduct"])?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
#[ignore = "needs root"]
fn a_flushed_table_is_back_within_a_second_with_all_its_ports() {
    on_clusters(viaduct(), |cluster| {
        let wish: Wish = Mapping::all(HOST_PORT, CONTAINER_PORT).into();
        let scene = Scene::set(cluster, &wish)?;
        let node = cluster.node(0).namespace();
        let before = table(cluster)?;
        ensure!(before.contains(&scene.serving.v4.to_string()), "the pod is in it: {before}");
        let named = |kind: &str| -> Vec<String> {
            let names = before.lines().filter_map(|line| line.trim().strip_prefix(kind));
            names.filter_map(|rest| rest.strip_suffix(" {")).map(str::to_owned).collect()
        };
        let maps = named("map ").into_iter().map(|name| format!("flush map inet viaduct {name}"));
        let sets = named("set ").into_iter().map(|name| format!("flush set inet viaduct {name}"));
        let chains =
            named("chain ").into_iter().map(|name| format!("flush chain inet viaduct {name}"));
        let damages = ["flush ruleset".to_owned(), "delete table inet viaduct".to_owned()];
        let damages: Vec<String> =
            damages.into_iter().chain(maps).chain(sets).chain(chains).collect();
        ensure!(damages.len() > 6, "there are maps, sets and chains: {damages:?}");
        let mut times = Vec::new();
        for damage in damages {
            let damaged = Instant::now();
            let output = node.run("nft", &damage.split(' ').collect::<Vec<_>>())?;
            ensure!(output.status.success(), "{damage}: {output:?}");
            wait_until("it is repaired", FOLLOWED_WITHIN, || Ok(table(cluster)? == before))
                .with_context(|| format!("{damage}: now {}", table(cluster).unwrap_or_default()))?;
            times.push(damaged.elapsed());
            for family in FAMILIES {
                scene.visit(cluster, Client::Node, Transport::Tcp, family)?;
                scene.visit(cluster, Client::Beyond, Transport::Udp, family)?;
            }
        }
        times.sort();
        ensure!(times[times.len() / 2] <= REPAIRED_WITHIN, "as a rule: {times:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn the_nodes_own_listener_gets_its_port_back() {
    on_clusters(viaduct(), |cluster| {
        let scene = Scene::set(cluster, &one(WANTED))?;
        let node = cluster.node(0).namespace();
        let own = [
            Host::open(node, NODE_V4.into(), HOST_PORT)?,
            Host::open(node, NODE_V6.into(), HOST_PORT)?,
        ];
        for family in FAMILIES {
            let dial = own[family].address();
            let hosts = [&scene.hosts[family], &own[family]];
            for client in [Client::Node, Client::Neighbour] {
                let from = scene.namespace(cluster, client);
                let served = serves(from, dial, Transport::Tcp, hosts)?;
                ensure!(served == Some(0), "{client:?}: the pod shadows the listener: {served:?}");
                let served = serves(from, dial, Transport::Udp, hosts)?;
                ensure!(served == Some(1), "{client:?}: not by another protocol: {served:?}");
            }
        }
        cluster.node(0).delete_pod(&scene.serving)?;
        for family in FAMILIES {
            let hosts = [&scene.hosts[family], &own[family]];
            let served =
                serves(&scene.neighbour.namespace, own[family].address(), Transport::Tcp, hosts)?;
            ensure!(served == Some(1), "the listener is back: {served:?}");
        }
        Ok(())
    });
}
