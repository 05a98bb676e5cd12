//! Where a packet goes, and whether it may go there: the route, the hop limit, the size.

use super::Refusal;
use super::nat::{self, Reply};
use crate::conntrack::Replies;
use crate::crossing::Nat;
use crate::drop::DropReason;
use crate::fib;
use crate::icmp::ErrorKind;
use crate::offload::{Offload, OnWire};
use crate::parse::{Addresses, ETHERNET_BYTES, Fragment, Headers, protocol};
use crate::port::{Mac, PortId, WorkerId};
use crate::tables::{PortKind, PortSpec, Route, Tables};

/// ICMP type of a redirect (RFC 792).
const REDIRECT: u8 = 5;

/// The way a packet leaves by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exit {
    /// The port.
    pub port: PortId,
    /// The worker that owns it.
    pub worker: WorkerId,
    /// What is at its far end.
    pub kind: PortKind,
    /// MACs of the next link: the receiver's, and ours.
    pub mac: Mac,
    /// As above.
    pub gateway_mac: Mac,
    /// Bytes of an IP packet that the way beyond the port takes.
    pub mtu: usize,
    /// Bytes of the longest IP packet that can leave by the port as one: more than `mtu` where the
    /// receiver's interface takes super-packets.
    pub longest: usize,
    /// Its port completes checksums.
    pub tx_checksum: bool,
    /// What the receiver's worker has to do with the packet's flow.
    pub nat: Nat,
    /// We are a router between the two ends, and decrement the hop limit.
    pub is_hop: bool,
}

impl Exit {
    /// Looks the way up. A reply goes where it will be addressed to, or to the node; what was sent
    /// to a host port goes to the pod that this leads to.
    pub fn of_packet(
        tables: &Tables,
        worker: WorkerId,
        ingress: &PortSpec,
        head: &[u8],
        headers: &Headers,
        reply: Option<&Reply>,
    ) -> Result<Exit, Refusal> {
        let is_v4 = matches!(headers.addresses, Addresses::V4 { .. });
        if is_v4 && headers.icmp_type == Some(REDIRECT) {
            return Err(DropReason::IcmpRedirect.into());
        }
        let route = match reply {
            Some(Reply { replies: Replies::ByNode, .. }) => tables.node(),
            Some(reply) => tables.route(worker, reply.destination(headers), || flow(head, headers)),
            None => tables.route(worker, headers.destination(), || flow(head, headers)),
        };
        let exit = match (route, ingress.kind) {
            (Route::Local(port), _) => {
                let nat = match (tables.is_tracked(port.id), ingress.kind) {
                    (false, _) => Nat::None,
                    (true, PortKind::Node) => Nat::FromNode,
                    (true, PortKind::Pod | PortKind::Uplink) => Nat::Direct,
                };
                Exit { nat, ..Exit::by_port(ingress, port) }
            }
            // An address of the node is never one that its kernel's routes lead out of an uplink.
            (Route::Uplink(port, hop), PortKind::Pod) => {
                let mtu = hop.mtu.map_or(port.mtu, |mtu| port.mtu.min(mtu as usize));
                Exit { mac: hop.mac, mtu, longest: mtu, ..Exit::by_port(ingress, port) }
            }
            (route, PortKind::Pod | PortKind::Uplink) => {
                let asked = match reply {
                    Some(_) => None, // its flow says where it goes
                    None => nat::asked_pod(tables, ingress, head, headers)?,
                };
                match asked {
                    Some(pod) => Exit { nat: Nat::HostPort, ..Exit::by_port(ingress, pod) },
                    None => Exit::elsewhere(ingress, &route)?,
                }
            }
            (route, PortKind::Node) => Exit::elsewhere(ingress, &route)?,
        };
        // RFC 1812 §5.3.1, RFC 4443 §3.3: what would leave with hop limit 0 does not leave.
        if exit.is_hop && headers.hop_limit <= 1 {
            let error = Some(ErrorKind::TimeExceeded);
            return Err(Refusal { reason: DropReason::TtlExpired, error });
        }
        Ok(exit)
    }

    /// The way to what is neither a pod of this node nor behind an uplink.
    fn elsewhere(ingress: &PortSpec, route: &Route<'_>) -> Result<Exit, Refusal> {
        match (route, ingress.kind) {
            (Route::Node(port), PortKind::Pod) => Ok(Exit::by_port(ingress, port)),
            (Route::NoPod, _) => {
                let error = Some(ErrorKind::HostUnreachable);
                Err(Refusal { reason: DropReason::NoPod, error })
            }
            (Route::Nowhere, _) => Err(DropReason::PortDown.into()),
            (Route::Local(_) | Route::Uplink(..) | Route::Node(_), _) => {
                Err(DropReason::NotOurs.into())
            }
        }
    }

    fn by_port(ingress: &PortSpec, port: &PortSpec) -> Exit {
        Exit {
            port: port.id,
            worker: port.worker,
            kind: port.kind,
            mac: port.mac,
            gateway_mac: port.gateway_mac,
            mtu: port.mtu,
            longest: match port.kind {
                PortKind::Pod => port.device_mtu,
                PortKind::Node | PortKind::Uplink => port.mtu,
            },
            tx_checksum: port.tx_checksum,
            nat: Nat::None,
            // The node and we are one router.
            is_hop: ingress.kind != PortKind::Node && port.kind != PortKind::Node,
        }
    }

    /// What the packet is on a wire, if the way takes it or it may be fragmented (RFC 1812
    /// §5.2.6, RFC 4443 §3.2). What goes to the node is the kernel's to refuse.
    pub fn fit(
        &self,
        ingress: &PortSpec,
        head: &[u8],
        headers: &Headers,
        offload: &Offload,
    ) -> Result<OnWire, Refusal> {
        // The sender was told its own route MTU; what it left uncut is cut to that.
        let wire = offload.on_wire(head, headers, ingress.mtu.min(self.mtu))?;
        let too_big = self.kind != PortKind::Node && wire.largest - ETHERNET_BYTES > self.mtu;
        if too_big && headers.dont_fragment {
            let error = Some(ErrorKind::TooBig { mtu: self.mtu as u32 });
            return Err(Refusal { reason: DropReason::MtuExceeded, error });
        }
        match wire.packets == 1 && self.must_fragment(headers.len, headers) {
            true => Ok(self.in_fragments(headers, wire)),
            false => Ok(wire),
        }
    }

    /// What the packet is on a wire when it leaves in fragments: each has its header, and all but
    /// the last carry a multiple of 8 bytes (RFC 791 §3.2).
    fn in_fragments(&self, headers: &Headers, wire: OnWire) -> OnWire {
        let header_bytes = headers.l4_offset - ETHERNET_BYTES;
        let room = self.longest.saturating_sub(header_bytes).max(8) / 8 * 8;
        let packets = (headers.ip_len() - header_bytes).div_ceil(room);
        let bytes = wire.bytes + (packets - 1) * headers.l4_offset;
        OnWire { packets, bytes, segment_size: 0, ..wire }
    }

    /// Whether a packet of `len` bytes, Ethernet header included, must be fragmented before it
    /// leaves. The node's kernel fragments itself.
    pub fn must_fragment(&self, len: usize, headers: &Headers) -> bool {
        let too_long = len - ETHERNET_BYTES > self.longest;
        too_long && !headers.dont_fragment && self.kind != PortKind::Node
    }
}

/// What picks one of several equal ways: the same for every packet of a flow, and for all
/// fragments of a datagram.
pub(super) fn flow(head: &[u8], headers: &Headers) -> u32 {
    let has_ports = matches!(headers.protocol, protocol::TCP | protocol::UDP)
        && headers.fragment == Fragment::Whole;
    let ports = head.get(headers.l4_offset..).and_then(|l4| l4.first_chunk::<4>());
    let ports = ports.filter(|_| has_ports).map_or(0, |ports| u32::from_be_bytes(*ports));
    fib::flow_hash(headers.source(), headers.destination(), headers.protocol, ports)
}
