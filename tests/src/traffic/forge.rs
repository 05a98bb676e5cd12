//! Frames that no honest kernel would send, put on a pod's interface as a pod with CAP_NET_RAW
//! can.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::capture::Capture;
use super::wait_until_idle;
use crate::daemon::{NODE_V4, NODE_V6, Node, OUTSIDE_V4, OUTSIDE_V6};
use crate::netns::{Namespace, wait_until};
use crate::pod::{IFNAME, Pod, parse_mac};

/// Every forged UDP packet goes to this port, so that captures find it.
const FORGED_PORT: u16 = 6666;

/// An Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(Vec<u8>);

impl Frame {
    /// What `tcpdump` finds every frame of this module by.
    const FILTER: &'static str = "udp dst port 6666 or arp or (icmp6 and ip6[40] == 134)";

    /// A UDP packet.
    #[must_use]
    pub fn udp_v4(macs: Macs, src: Ipv4Addr, dst: Ipv4Addr) -> Frame {
        let udp = udp(); // without a checksum, which IPv4 allows (RFC 768)
        let total = (20 + udp.len()) as u16;
        let mut ip = vec![0x45, 0];
        ip.extend(total.to_be_bytes());
        ip.extend([0, 0, 0, 0, 64, 17, 0, 0]); // id, fragment, TTL, UDP, checksum
        ip.extend(src.octets());
        ip.extend(dst.octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        Frame::of(macs, 0x0800, &[&ip, &udp])
    }

    /// A UDP packet.
    #[must_use]
    pub fn udp_v6(macs: Macs, src: Ipv6Addr, dst: Ipv6Addr) -> Frame {
        let mut udp = udp();
        let sum = checksum_v6(src, dst, 17, &udp);
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        Frame::of(macs, 0x86dd, &[&ipv6_header(src, dst, 17, 64, udp.len()), &udp])
    }

    /// An ARP reply that claims an address, addressed to whoever hears it (RFC 826, RFC 5227).
    #[must_use]
    pub fn arp_claim(mac: [u8; 6], claimed: Ipv4Addr) -> Frame {
        let broadcast = [0xff; 6];
        let head = [0, 1, 8, 0, 6, 4, 0, 2]; // Ethernet, IPv4, lengths, reply
        let body = [&head[..], &mac, &claimed.octets(), &broadcast, &claimed.octets()];
        Frame::of(Macs { src: mac, dst: broadcast }, 0x0806, &body)
    }

    /// A router advertisement that makes its sender the default router (RFC 4861 §4.2).
    #[must_use]
    pub fn router_advertisement(mac: [u8; 6], src: Ipv6Addr) -> Frame {
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let mut ra = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
        let sum = checksum_v6(src, all_nodes, 58, &ra);
        ra[2..4].copy_from_slice(&sum.to_be_bytes());
        let macs = Macs { src: mac, dst: [0x33, 0x33, 0, 0, 0, 1] };
        Frame::of(macs, 0x86dd, &[&ipv6_header(src, all_nodes, 58, 255, ra.len()), &ra])
    }

    /// The same behind a VLAN tag (IEEE 802.1Q §9.6).
    #[must_use]
    pub fn tagged(self, vlan: u16) -> Frame {
        let (macs, rest) = self.0.split_at(12);
        Frame([macs, &[0x81, 0], &vlan.to_be_bytes(), rest].concat())
    }

    /// Its bytes, from the destination's Ethernet address on.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn of(macs: Macs, ether_type: u16, parts: &[&[u8]]) -> Frame {
        let head = [&macs.dst[..], &macs.src, &ether_type.to_be_bytes()].concat();
        Frame([head, parts.concat()].concat())
    }
}

/// Ethernet addresses of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Macs {
    /// Source.
    pub src: [u8; 6],
    /// Destination.
    pub dst: [u8; 6],
}

fn udp() -> Vec<u8> {
    let payload = b"forged";
    let mut udp = 4000_u16.to_be_bytes().to_vec();
    udp.extend(FORGED_PORT.to_be_bytes());
    udp.extend((8 + payload.len() as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    udp
}

fn ipv6_header(src: Ipv6Addr, dst: Ipv6Addr, next: u8, hops: u8, len: usize) -> Vec<u8> {
    let head = [0x60, 0, 0, 0];
    [&head[..], &(len as u16).to_be_bytes(), &[next, hops], &src.octets(), &dst.octets()].concat()
}

fn checksum_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, payload: &[u8]) -> u16 {
    let len = (payload.len() as u32).to_be_bytes();
    let tail = [0, 0, 0, protocol];
    checksum(&[&src.octets()[..], &dst.octets(), &len, &tail, payload].concat())
}

/// RFC 1071.
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Puts frames on an interface of a namespace: socat with a packet socket, which takes each from a
/// datagram. Killed when dropped.
#[derive(Debug)]
pub struct Forger {
    socat: Child,
    socket: UnixDatagram,
    _dir: TempDir,
}

impl Forger {
    /// Starts in a namespace, on an interface.
    ///
    /// # Errors
    /// When socat cannot be started.
    pub fn start(namespace: &Namespace, ifname: &str) -> Result<Forger> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("frames");
        let mut command = Command::new("socat");
        command.arg("-u").arg(format!("UNIX-RECV:{}", path.display()));
        command.arg(format!("INTERFACE:{ifname}")).stdin(Stdio::null());
        let socat = namespace.within(|| command.spawn())?.context("start socat")?;
        let socket = UnixDatagram::unbound()?;
        let forger = Forger { socat, socket, _dir: dir };
        wait_until("socat listens", Duration::from_secs(10), || {
            Ok(forger.socket.connect(&path).is_ok())
        })?;
        Ok(forger)
    }

    /// Sends one frame. Waits while socat is busy with earlier ones.
    ///
    /// # Errors
    /// When socat has ended.
    pub fn send(&self, frame: &Frame) -> Result<()> {
        self.socket.send(&frame.0).context("hand a frame to socat")?;
        Ok(())
    }

    /// Waits until all frames that were handed to it are on their way.
    ///
    /// # Errors
    /// When socat does not get to that.
    pub fn wait_until_sent(&self) -> Result<()> {
        wait_until_idle(&self.socat)
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        let _ = self.socat.kill(); // It may have ended.
        let _ = self.socat.wait();
    }
}

/// Frames that a pod may not send: each has something about it that is not the pod's. They go to
/// the victim, the node and the outside.
///
/// # Errors
/// When the pod's host end is gone.
pub fn forgeries(node: &Node, pod: &Pod, victim: &Pod) -> Result<Vec<Frame>> {
    let gateway = host_mac(node, pod)?;
    let own = Macs { src: pod.mac, dst: gateway };
    let stranger = Macs { src: [0x0a, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb], dst: gateway };
    let (v4, v6) = (Ipv4Addr::new(10, 9, 9, 9), Ipv6Addr::new(0xfd00, 9, 9, 9, 9, 9, 9, 9));
    let mut frames = vec![
        Frame::arp_claim(pod.mac, victim.v4),
        Frame::arp_claim(victim.mac, victim.v4),
        Frame::arp_claim(pod.mac, Ipv4Addr::new(169, 254, 1, 1)),
        Frame::router_advertisement(pod.mac, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
        Frame::router_advertisement(pod.mac, pod.v6),
    ];
    for (to4, to6) in destinations(victim) {
        frames.extend([
            Frame::udp_v4(own, v4, to4),
            Frame::udp_v4(own, victim.v4, to4),
            Frame::udp_v4(own, NODE_V4, to4),
            Frame::udp_v4(stranger, pod.v4, to4),
            Frame::udp_v6(own, v6, to6),
            Frame::udp_v6(own, victim.v6, to6),
            Frame::udp_v6(own, NODE_V6, to6),
            Frame::udp_v6(stranger, pod.v6, to6),
        ]);
    }
    Ok(frames)
}

/// What a pod may send to the victim, the node and the outside: two packets each.
///
/// # Errors
/// When the pod's host end is gone.
pub fn honest_frames(node: &Node, pod: &Pod, victim: &Pod) -> Result<Vec<Frame>> {
    let own = Macs { src: pod.mac, dst: host_mac(node, pod)? };
    let both = |(to4, to6)| [Frame::udp_v4(own, pod.v4, to4), Frame::udp_v6(own, pod.v6, to6)];
    Ok(destinations(victim).into_iter().flat_map(both).collect())
}

fn destinations(victim: &Pod) -> [(Ipv4Addr, Ipv6Addr); 3] {
    [(victim.v4, victim.v6), (NODE_V4, NODE_V6), (OUTSIDE_V4, OUTSIDE_V6)]
}

fn host_mac(node: &Node, pod: &Pod) -> Result<[u8; 6]> {
    let links = node.namespace().ip_json(&["link", "show", "dev", &pod.host_ifname])?;
    parse_mac(links[0]["address"].as_str().context("the host end has a MAC")?)
}

/// Watches for frames of this module wherever they could come out.
#[derive(Debug)]
pub struct Watch([(&'static str, Capture); 3]);

impl Watch {
    /// Starts to watch the node, the victim and the outside.
    ///
    /// # Errors
    /// When tcpdump cannot be started.
    pub fn start(node: &Node, victim: &Pod) -> Result<Watch> {
        let (node, victim, outside) = (node.namespace(), &victim.namespace, node.outside());
        // At a host end a tap sits behind XDP, so it sees what XDP has passed. The link to the
        // outside is left out of the node's view: it has honest ARP.
        let udp = "udp dst port 6666";
        Ok(Watch([
            ("the node", Capture::start(node, "-i any -Q in", Frame::FILTER)?),
            ("the victim", Capture::start(victim, &format!("-i {IFNAME} -Q in"), Frame::FILTER)?),
            ("the outside", Capture::start(outside, "-i eth0 -Q in", udp)?),
        ]))
    }

    /// Ends it and returns who saw what, a line a packet.
    ///
    /// # Errors
    /// When tcpdump does not end.
    pub fn stop(self) -> Result<[(&'static str, Vec<String>); 3]> {
        let [node, victim, outside] = self.0;
        let mut at_node = node.1.stop()?;
        at_node.retain(|line| !line.contains(" up0 "));
        Ok([(node.0, at_node), (victim.0, victim.1.stop()?), (outside.0, outside.1.stop()?)])
    }
}
