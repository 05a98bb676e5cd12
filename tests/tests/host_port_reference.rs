//! Host ports as the reference plugin of Debian, `portmap` 1.1.1, makes them, and as we do: the
//! same questions on the same topology. Where the answers differ on purpose stands in a table, each
//! with its reason; a difference that is not there fails, and so does one that is there and was not
//! seen.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Forwarder, Mapping, Wish};
use e2e::daemon::NODE_V4;
use e2e::host_ports::{
    CONTAINER_PORT, Client, FAMILIES, HOST_PORT, Scene, among_direct_nodes, is_of_node,
};
use e2e::netns::Namespace;
use e2e::pod::Pod;
use e2e::traffic::{Answer, Host, Transport, Visitor, attempt};

/// The transports that plain sockets speak.
const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

/// A difference that is wanted.
struct Difference {
    /// The questions it is about: all that begin so.
    question: &'static str,
    reference: &'static str,
    ours: &'static str,
    /// Why ours is right.
    why: &'static str,
}

const DIFFERENCES: [Difference; 6] = [
    Difference {
        question: "plain: Itself, IPv4",
        reference: "the pod sees the node",
        ours: "the pod sees the address it asked",
        why: "which address of the node it is depends on the routes there; the one that was asked \
               is known to the pod, and the same whoever carries the connection",
    },
    Difference {
        question: "plain: Node at the loopback, IPv6",
        reference: "silence",
        ours: "refused",
        why: "the pod cannot answer to ::1, so the reference takes the connection away from who \
               listens there, and loses it; we leave it alone",
    },
    Difference {
        question: "masqAll on: ",
        reference: "the pod sees itself",
        ours: "the pod sees the address it asked",
        why: "release 1.1.1 does not know the key",
    },
    Difference {
        question: "masqAll on: Itself, IPv4",
        reference: "the pod sees the node",
        ours: "the pod sees the address it asked",
        why: "as without the key",
    },
    Difference {
        question: "snat off: Node at the loopback, IPv4, udp",
        reference: "not sent",
        ours: "silence",
        why: "neither works, as was asked for",
    },
    Difference {
        question: "wildcard first: ",
        reference: "the first sees itself",
        ours: "the second sees itself",
        why: "the most specific address wins, not who came first: Kubernetes leaves it open, and \
               an order that nobody wrote down must not decide",
    },
];

/// Who comes where it matters which address is asked, not who asks.
const FEW: [Client; 2] = [Client::Outside, Client::Node];

/// What is asked for before the questions, and who comes then.
fn wishes() -> Vec<(&'static str, Wish, &'static [Client])> {
    let plain: Wish =
        TRANSPORTS.map(|t| Mapping::new(t, HOST_PORT, CONTAINER_PORT)).to_vec().into();
    let at = |addresses: &[IpAddr]| -> Wish {
        let mappings = plain.mappings.iter();
        mappings.flat_map(|m| addresses.iter().map(|a| m.at(*a))).collect::<Vec<_>>().into()
    };
    let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
    vec![
        ("plain", plain.clone(), &Client::ALL),
        ("at one address", at(&Cluster::address(0)), &FEW),
        ("at 0.0.0.0 and ::", at(&any), &FEW),
        ("at 0.0.0.0", at(&any[..1]), &FEW),
        ("at 127.0.0.1", at(&[Ipv4Addr::LOCALHOST.into()]), &FEW),
        ("snat off", Wish { snat: Some(false), ..plain.clone() }, &Client::ALL),
        ("masqAll on", Wish { masq_all: Some(true), ..plain }, &Client::ALL),
    ]
}

/// An answer in words that are the same whatever addresses the nodes have.
fn words(cluster: &Cluster, dial: SocketAddr, hosts: &[(&str, &Host)], answer: Answer) -> String {
    let node = cluster.node(0).namespace();
    match answer {
        Answer::Served(by, Visitor { own, seen }) => {
            let source = match seen {
                _ if seen == own => "itself",
                _ if seen.ip() == own.ip() => "itself, another port",
                _ if seen.ip() == dial.ip() => "the address it asked",
                _ if is_of_node(node, seen.ip()).is_ok() => "the node",
                _ => "a stranger",
            };
            format!("{} sees {source}", hosts[by].0)
        }
        Answer::OneWay(by) => format!("{} hears it in vain", hosts[by].0),
        Answer::NotSent => "not sent".to_owned(),
        Answer::Refused => "refused".to_owned(),
        Answer::Silence => "silence".to_owned(),
    }
}

/// Answers by question.
type Answers = BTreeMap<String, String>;

/// Asks by both transports.
fn ask(
    answers: &mut Answers,
    cluster: &Cluster,
    (question, from): (&str, &Namespace),
    dial: SocketAddr,
    hosts: &[(&str, &Host)],
) -> Result<()> {
    let doors: Vec<&Host> = hosts.iter().map(|(_, host)| *host).collect();
    for transport in TRANSPORTS {
        let family = if dial.is_ipv4() { "IPv4" } else { "IPv6" };
        let question = format!("{question}, {family}, {transport}");
        let answer = attempt(from, dial, transport, &doors)?;
        answers.insert(question, words(cluster, dial, hosts, answer));
    }
    Ok(())
}

/// Every client, one wish after another.
fn ask_everybody(answers: &mut Answers, cluster: &Cluster, scene: &mut Scene) -> Result<()> {
    for (name, wish, clients) in wishes() {
        scene.serve_anew(cluster, &wish, |_| Ok(()))?;
        let hosts = scene.hosts.each_ref().map(|host| ("the pod", host));
        for &client in clients {
            let from = (&*format!("{name}: {client:?}"), scene.namespace(cluster, client));
            for family in FAMILIES {
                let dial = SocketAddr::new(Scene::node_address(client)[family], HOST_PORT);
                ask(answers, cluster, from, dial, &hosts[family..=family])?;
            }
        }
        let node = cluster.node(0).namespace();
        let special =
            [("another address", NODE_V4.into()), ("the loopback", Ipv4Addr::LOCALHOST.into())];
        for (what, address) in special {
            let question = (&*format!("{name}: Node at {what}"), node);
            ask(answers, cluster, question, SocketAddr::new(address, HOST_PORT), &hosts[..1])?;
        }
        if name == "plain" {
            let loopback = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), HOST_PORT);
            let question = (&*format!("{name}: Node at the loopback"), node);
            ask(answers, cluster, question, loopback, &hosts[1..])?;
        }
    }
    Ok(())
}

/// Two pods that want the same number, one after the other; then the first is gone.
fn ask_of_overlaps(answers: &mut Answers, cluster: &Cluster, scene: &Scene) -> Result<()> {
    let port = HOST_PORT + 1;
    let wildcard = Mapping::new(Transport::Tcp, port, CONTAINER_PORT);
    let specific = wildcard.at(Cluster::address(0)[0]);
    let overlaps = [("wildcard first", wildcard, specific), ("specific first", specific, wildcard)];
    for (name, one, other) in overlaps {
        let wishes = [one, other].map(|mapping| Wish::from(vec![mapping]));
        let first = cluster.add_pod_with_host_ports(0, "first", &wishes[0])?;
        let second = cluster.add_pod_with_host_ports(0, "second", &wishes[1])?;
        let open = |pod: &Pod| Host::open(&pod.namespace, pod.v4.into(), CONTAINER_PORT);
        let doors = [open(&first)?, open(&second)?];
        let hosts = [("the first", &doors[0]), ("the second", &doors[1])];
        let dial = SocketAddr::new(Cluster::address(0)[0], port);
        for client in [Client::Outside, Client::Node, Client::Neighbour] {
            let from = (&*format!("{name}: {client:?}"), scene.namespace(cluster, client));
            ask(answers, cluster, from, dial, &hosts)?;
        }
        cluster.delete_pod_with_host_ports(0, &first, &wishes[0])?;
        let from = (&*format!("{name}, then gone: Outside"), &scene.outside);
        ask(answers, cluster, from, dial, &hosts)?;
        cluster.delete_pod_with_host_ports(0, &second, &wishes[1])?;
    }
    Ok(())
}

fn answers(forwarder: Forwarder) -> Result<Answers> {
    // The reference's nodes do not masquerade, so ours shall not either.
    let cluster = Cluster::start(among_direct_nodes(forwarder))?;
    let mut answers = Answers::new();
    let mut scene = Scene::set(&cluster, &Wish::default())?;
    ask_everybody(&mut answers, &cluster, &mut scene)?;
    ask_of_overlaps(&mut answers, &cluster, &scene)?;
    cluster.check()?;
    Ok(answers)
}

#[test]
#[ignore = "needs root"]
fn host_ports_differ_from_the_reference_exactly_where_they_are_meant_to() {
    let reference = answers(Forwarder::Kernel).expect("the reference answers");
    if std::env::var_os("VIADUCT_E2E_ORACLE").is_some() {
        for (question, answer) in &reference {
            println!("{question:60} {answer}");
        }
        return;
    }
    let ours = answers(Forwarder::viaduct(1)).expect("Viaduct answers");
    compare(&reference, &ours).expect("only known differences");
}

fn compare(reference: &Answers, ours: &Answers) -> Result<()> {
    let mut unknown = Vec::new();
    let mut seen = vec![0; DIFFERENCES.len()];
    for (question, theirs) in reference {
        let mine = ours.get(question).map_or("not asked", String::as_str);
        if theirs == mine {
            continue;
        }
        let known = DIFFERENCES.iter().position(|known| {
            question.starts_with(known.question) && known.reference == theirs && known.ours == mine
        });
        match known {
            Some(index) => seen[index] += 1,
            None => unknown.push(format!("{question}: reference: {theirs}; ours: {mine}")),
        }
    }
    ensure!(unknown.is_empty(), "not in the table: {unknown:#?}");
    ensure!(reference.len() == ours.len(), "both were asked the same");
    for (known, times) in DIFFERENCES.iter().zip(seen) {
        ensure!(times > 0, "not seen any more: {}, though {}", known.question, known.why);
    }
    Ok(())
}
