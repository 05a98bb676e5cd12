//! A tunnel between two pods: VXLAN over their interfaces, as an overlay or a VPN inside of pods
//! has it. Workers see only the outer packet; the checksum that the sender's kernel left open is
//! the inner one. Every byte must arrive, and neither pod's kernel may find a checksum wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::daemon::{Node, PortMode, Setup, ip, on_each};
use e2e::netns::Namespace;
use e2e::pod::{IFNAME, Pod};
use e2e::traffic::{echo_datagrams, protocol_counter, reaches, transfer, udp_socket};

/// The tunnel's interface in both pods.
const TUNNEL: &str = "vx0";

/// Bytes of each transfer, there and again back.
const TRANSFER_BYTES: u64 = 20_000_000;

/// Payloads of datagrams: around what fits in an inner packet (1450 or 1430 less 28 or 48), then
/// in fragments, up to the longest.
const DATAGRAMS: [usize; 14] =
    [1, 2, 63, 1000, 1382, 1383, 1402, 1403, 1422, 1423, 4000, 9000, 32_768, 65_507];

/// Reasons to drop that say how busy the machine is: TCP sends again.
const BUSY: [&str; 6] =
    ["no_frames", "crossing_full", "tx_ring_full", "rx_fill_empty", "rx_ring_full", "rx_dropped"];

/// A pod's kernel reports its multicast groups when it likes to (RFC 3810); nobody asked.
const CHATTER: &str = "nd_forbidden";

/// What the tunnel is laid over, and whether its own packets have a checksum.
#[derive(Clone, Copy, Debug)]
struct Underlay {
    family: Family,
    udp_checksum: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with = if self.udp_checksum { "with" } else { "without" };
        write!(f, "VXLAN over {:?} {with} UDP checksum", self.family)
    }
}

impl Underlay {
    fn all() -> impl Iterator<Item = Underlay> {
        let both = |family| [true, false].map(|udp_checksum| Underlay { family, udp_checksum });
        [Family::V4, Family::V6].into_iter().flat_map(both)
    }

    fn address(self, pod: &Pod) -> IpAddr {
        match self.family {
            Family::V4 => pod.v4.into(),
            Family::V6 => pod.v6.into(),
        }
    }

    /// 1500 less the outer IP header and 30 bytes of UDP, VXLAN (RFC 7348) and inner Ethernet.
    fn mtu(self) -> u32 {
        match self.family {
            Family::V4 => 1450,
            Family::V6 => 1430,
        }
    }

    /// ip-link(8). Tunnels over IPv6 may do without, if both ends agree (RFC 6935 §5).
    fn options(self) -> &'static str {
        match (self.family, self.udp_checksum) {
            (Family::V4, true) => "udpcsum",
            (Family::V4, false) => "noudpcsum",
            (Family::V6, true) => "noudp6zerocsumtx noudp6zerocsumrx",
            (Family::V6, false) => "udp6zerocsumtx udp6zerocsumrx",
        }
    }
}

/// Two pods with a tunnel between them.
struct Tunnel<'a> {
    underlay: Underlay,
    pods: [&'a Pod; 2],
}

impl<'a> Tunnel<'a> {
    /// Lays it. The ends are told of each other when both listen: to a kernel without such a
    /// tunnel a datagram over IPv6 without a checksum has a wrong one (RFC 8200 §8.1).
    fn lay(underlay: Underlay, pods: [&'a Pod; 2]) -> Result<Tunnel<'a>> {
        let tunnel = Tunnel { underlay, pods };
        for (index, pod) in pods.into_iter().enumerate() {
            let [v4, v6] = Tunnel::inner(index);
            let (local, mtu, options) = (underlay.address(pod), underlay.mtu(), underlay.options());
            ip(
                &pod.namespace,
                &format!(
                    "link add {TUNNEL} mtu {mtu} type vxlan id 42 dstport 4789 dev {IFNAME} \
                     local {local} {options}"
                ),
            )?;
            ip(&pod.namespace, &format!("addr add {v4}/24 dev {TUNNEL}"))?;
            ip(&pod.namespace, &format!("addr add {v6}/64 dev {TUNNEL} nodad"))?;
            ip(&pod.namespace, &format!("link set {TUNNEL} up"))?;
        }
        tunnel.peers("append")?;
        Ok(tunnel)
    }

    /// `append` or `del`: each end's only peer, for all that it has learnt nothing better for.
    fn peers(&self, verb: &str) -> Result<()> {
        let [a, b] = self.pods;
        for (pod, peer) in [(a, b), (b, a)] {
            let peer = self.underlay.address(peer);
            let line = format!("fdb {verb} 00:00:00:00:00:00 dev {TUNNEL} dst {peer}");
            let args: Vec<&str> = line.split_whitespace().collect();
            let output = pod.namespace.run("bridge", &args)?;
            ensure!(output.status.success(), "bridge {line}: {output:?}");
        }
        Ok(())
    }

    /// Addresses inside of the tunnel, IPv4 first. Workers would drop them as spoofed.
    fn inner(index: usize) -> [IpAddr; 2] {
        let last = index as u8 + 1;
        let v6 = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, u16::from(last));
        [Ipv4Addr::new(172, 31, 99, last).into(), v6.into()]
    }

    /// Echoes, datagrams and streams, both ways, in both families.
    fn carry_everything(&self) -> Result<()> {
        let [a, b] = self.pods.map(|pod| &pod.namespace);
        for (here, there) in Tunnel::inner(0).into_iter().zip(Tunnel::inner(1)) {
            reaches(a, there)?;
            reaches(b, here)?;
            echo_datagrams(&udp_socket(a, here)?, &udp_socket(b, there)?, &DATAGRAMS)?;
            let started = Instant::now();
            transfer(a, b, there, TRANSFER_BYTES)?;
            let gigabits = 2.0 * 8.0 * TRANSFER_BYTES as f64 / 1e9;
            let rate = gigabits / started.elapsed().as_secs_f64();
            eprintln!("  {}, TCP to {there}: {rate:.1} Gbit/s", self.underlay);
        }
        Ok(())
    }

    /// Removes it, silenced first: see [`Tunnel::lay`].
    fn remove(self) -> Result<()> {
        self.peers("del")?;
        self.pods.iter().try_for_each(|pod| ip(&pod.namespace, &format!("link del {TUNNEL}")))
    }
}

/// What the workers have counted of a pod.
struct Carried {
    bytes: u64,
    packets: u64,
    wire_packets: u64,
    drops: BTreeMap<String, u64>,
}

impl Carried {
    fn by(node: &Node, pod: &Pod) -> Result<Carried> {
        let row = node.pod_row(pod)?;
        let count = |key: &str| row["from_pod"][key].as_u64().context(key.to_owned());
        let drops = ["from_pod", "to_pod"].into_iter().flat_map(|direction| {
            let drops = row[direction]["drops"].as_object().into_iter().flatten();
            drops.map(move |(reason, count)| (format!("{direction} {reason}"), count))
        });
        Ok(Carried {
            bytes: count("bytes")?,
            packets: count("packets")?,
            wire_packets: count("wire_packets")?,
            drops: drops.map(|(key, count)| (key, count.as_u64().unwrap_or_default())).collect(),
        })
    }
}

/// Counters of a pod's kernel that grow when a packet came damaged.
fn damages(pod: &Pod) -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for (protocol, counter) in [
        ("Ip", "InHdrErrors"),
        ("Icmp", "InCsumErrors"),
        ("Tcp", "InCsumErrors"),
        ("Tcp", "InErrs"),
        ("Udp", "InCsumErrors"),
    ] {
        let count = protocol_counter(&pod.namespace, protocol, counter)?;
        found.insert(format!("{protocol} {counter}"), count);
    }
    // TCP has one set of counters for both families.
    let v6 = counters_v6(&pod.namespace)?;
    for counter in ["Ip6InHdrErrors", "Icmp6InCsumErrors", "Udp6InCsumErrors"] {
        let count = v6.get(counter).with_context(|| format!("the kernel counts {counter}"))?;
        found.insert(counter.to_owned(), *count);
    }
    Ok(found)
}

/// `/proc/net/snmp6`: a name and a number per line.
fn counters_v6(namespace: &Namespace) -> Result<BTreeMap<String, u64>> {
    let text = namespace.within(|| std::fs::read_to_string("/proc/thread-self/net/snmp6"))??;
    let pairs = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    });
    Ok(pairs.collect())
}

/// Keys whose counts have grown.
fn grown(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Vec<String> {
    let growth = after.iter().filter_map(|(key, now)| {
        let more = now - before.get(key).copied().unwrap_or_default();
        (more > 0).then(|| format!("{key} +{more}"))
    });
    growth.collect()
}

/// Everything goes through the tunnel, by the workers; nothing comes damaged, and nothing is
/// dropped but for lack of room. Returns what the workers counted of each pod: before, after.
fn carries(node: &Node, underlay: Underlay, pods: [&Pod; 2]) -> Result<[[Carried; 2]; 2]> {
    let look = || {
        let [a, b] = pods;
        let carried = [Carried::by(node, a)?, Carried::by(node, b)?];
        Ok::<_, anyhow::Error>((carried, [damages(a)?, damages(b)?]))
    };
    let tunnel = Tunnel::lay(underlay, pods)?;
    let (carried, damaged) = look()?;
    let outcome = tunnel.carry_everything();
    let (carried_now, damaged_now) = look()?;
    for (index, pod) in pods.iter().enumerate() {
        // Before the outcome: what was damaged is why it did not arrive.
        let name = &pod.container_id;
        let damages = grown(&damaged[index], &damaged_now[index]);
        ensure!(damages.is_empty(), "{name} got damaged packets: {damages:?}, {outcome:?}");
        let mut drops = grown(&carried[index].drops, &carried_now[index].drops);
        let harmless = |drop: &String| {
            let reason = drop.split(' ').nth(1).unwrap_or_default();
            BUSY.contains(&reason) || reason == CHATTER
        };
        drops.retain(|drop| !harmless(drop));
        ensure!(drops.is_empty(), "packets of {name} were dropped: {drops:?}, {outcome:?}");
    }
    outcome?;
    for (index, pod) in pods.iter().enumerate() {
        let bytes = carried_now[index].bytes - carried[index].bytes;
        let sent = 2 * TRANSFER_BYTES; // both families
        ensure!(bytes > sent, "workers saw {bytes} of {sent} bytes from {}", pod.container_id);
    }
    tunnel.remove()?;
    Ok([carried, carried_now])
}

/// Whether an offload of an interface is on, by its ethtool name.
fn offload(namespace: &Namespace, ifname: &str, name: &str) -> Result<bool> {
    let output = namespace.run("ethtool", &["-k", ifname])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
    Ok(line.with_context(|| format!("ethtool -k {ifname} shows {name}"))?.starts_with("on"))
}

fn set_offloads(namespace: &Namespace, ifname: &str, switches: &str) -> Result<()> {
    let args = ["-K", ifname].into_iter().chain(switches.split_whitespace());
    let output = namespace.run("ethtool", &args.collect::<Vec<_>>())?;
    ensure!(output.status.success(), "ethtool -K {ifname} {switches}: {output:?}");
    Ok(())
}

fn two_pods(node: &Node) -> Result<[Pod; 2]> {
    Ok([node.add_pod("first")?, node.add_pod("second")?])
}

/// Both numbers of workers, where checksums are left to us.
fn checksums_by_us() -> Vec<Setup> {
    [1, 2].map(|workers| Setup::new(PortMode::Auto, workers)).into()
}

#[test]
#[ignore = "needs root"]
fn vxlan_between_two_pods_carries_every_byte_without_a_checksum_error() {
    on_each(Setup::modes_and_workers(), |node| {
        let [a, b] = two_pods(node)?;
        for pod in [&a, &b] {
            for name in ["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"] {
                ensure!(!offload(&pod.namespace, IFNAME, name)?, "ADD leaves {name} on");
            }
        }
        for underlay in Underlay::all() {
            carries(node, underlay, [&a, &b]).with_context(|| underlay.to_string())?;
        }
        Ok(())
    });
}

/// A pod's kernel believes a checksum that its own host completes later. Without the offload at
/// the host end the kernel completes it before it delivers, by what the worker says of where it
/// is; and the pod sums every packet up, the outer and the inner.
#[test]
#[ignore = "needs root"]
fn checksums_of_a_tunnel_are_right_for_a_receiver_that_checks_them_all() {
    on_each(checksums_by_us(), |node| {
        let [a, b] = two_pods(node)?;
        for pod in [&a, &b] {
            set_offloads(node.namespace(), &pod.host_ifname, "tx off")?;
        }
        for underlay in Underlay::all() {
            carries(node, underlay, [&a, &b]).with_context(|| underlay.to_string())?;
        }
        Ok(())
    });
}

/// Who may change offloads in a pod can turn on those that ADD has turned off.
#[test]
#[ignore = "needs root"]
fn super_packets_in_a_tunnel_arrive_uncut_at_a_pod_of_the_same_node() {
    on_each(checksums_by_us(), |node| {
        let [a, b] = two_pods(node)?;
        for pod in [&a, &b] {
            let switches = "tx-udp_tnl-segmentation on tx-udp_tnl-csum-segmentation on";
            set_offloads(&pod.namespace, IFNAME, switches)?;
        }
        for underlay in Underlay::all() {
            let [before, after] =
                carries(node, underlay, [&a, &b]).with_context(|| underlay.to_string())?;
            for (before, after) in before.iter().zip(&after) {
                let packets = after.packets - before.packets;
                let on_wire = after.wire_packets - before.wire_packets;
                ensure!(on_wire > 2 * packets, "{packets} packets are {on_wire} on a wire");
            }
        }
        Ok(())
    });
}
