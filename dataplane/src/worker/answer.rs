//! What a worker answers itself: ARP and neighbour discovery for the gateway, and ICMP errors. And
//! the one ICMP error of pods that it listens to.

use std::net::IpAddr;

use super::Worker;
use crate::crossing::{Nat, Routed};
use crate::drop::DropReason;
use crate::frame::Packet;
use crate::icmp::{self, ErrorKind};
use crate::neighbor::{self, ADVERTISEMENT_BYTES, ARP_BYTES, NeighborDrop, PodIdentity};
use crate::offload::Offload;
use crate::parse::{ETHERNET_BYTES, Headers};
use crate::port::{Mac, PacketIo};
use crate::tables::{PortKind, PortSpec, Tables};

/// A builder of answers: request, who asks, our MAC, the answer's bytes; returns their number.
type Build = fn(&[u8], &PodIdentity<'_>, Mac, &mut [u8]) -> Result<usize, NeighborDrop>;

impl<P: PacketIo> Worker<P> {
    /// Tells the sender why its packet goes nowhere, unless it must not be told or was told often.
    pub(super) fn send_icmp_error(
        &mut self,
        tables: &Tables,
        ingress: usize,
        port: &PortSpec,
        offender: &Packet,
        kind: ErrorKind,
    ) {
        let head = self.pool.head(offender);
        let Some(sender) = sender_of(head) else { return };
        let limiter = match port.kind {
            PortKind::Uplink => &mut self.wire_limiter,
            PortKind::Pod | PortKind::Node => &mut self.limiter,
        };
        if !icmp::may_answer(kind, head, ETHERNET_BYTES)
            || !limiter.allow(kind, sender, self.now_ns)
        {
            return;
        }
        let (v4, v6) = tables.icmp_source();
        let source = if sender.is_ipv4() { IpAddr::V4(v4) } else { IpAddr::V6(v6) };
        // To whoever sent it over the link: a pod's MAC is its own, an uplink has many senders.
        let dst_mac = match port.kind {
            PortKind::Uplink => mac_of_sender(head),
            PortKind::Pod | PortKind::Node => port.mac,
        };
        let envelope = icmp::Envelope { src_mac: port.gateway_mac, dst_mac, source };
        let Some(mut answer) = self.pool.packet(icmp::ERROR_BYTES_MAX) else { return };
        // Two frames of one pool: the offender is read, the answer written.
        let (head, out) = self.pool.head_and_head_mut(offender, &mut answer);
        match icmp::build(kind, head, ETHERNET_BYTES, &envelope, out) {
            Ok(len) => {
                self.pool.truncate(&mut answer, len);
                self.counters.generated.add(1);
                self.send_back(tables, ingress, answer);
            }
            Err(_) => self.pool.release(answer),
        }
    }

    /// The reply to an ARP request of a pod for its gateway.
    pub(super) fn answer_arp(
        &mut self,
        port: &PortSpec,
        request: &Packet,
    ) -> Result<Packet, DropReason> {
        self.answer(port, request, ARP_BYTES, neighbor::answer_arp, arp_reason)
    }

    /// The advertisement for a neighbour solicitation of a pod for its gateway.
    pub(super) fn answer_neighbor_discovery(
        &mut self,
        port: &PortSpec,
        request: &Packet,
    ) -> Result<Packet, DropReason> {
        self.answer(port, request, ADVERTISEMENT_BYTES, neighbor::answer_nd, nd_reason)
    }

    fn answer(
        &mut self,
        port: &PortSpec,
        request: &Packet,
        bytes_max: usize,
        build: Build,
        reason: fn(NeighborDrop) -> DropReason,
    ) -> Result<Packet, DropReason> {
        let mut answer = self.pool.packet(bytes_max).ok_or(DropReason::NoFrames)?;
        let pod = PodIdentity { mac: port.mac, addresses: &port.addresses };
        let (request, out) = self.pool.head_and_head_mut(request, &mut answer);
        match build(request, &pod, port.gateway_mac, out) {
            Ok(len) => {
                self.pool.truncate(&mut answer, len);
                Ok(answer)
            }
            Err(drop) => {
                self.pool.release(answer);
                Err(reason(drop))
            }
        }
    }

    /// Notes that a pod's kernel has refused a super-packet, for control to keep them from the pod.
    /// What a pod claims here harms nobody else: its own streams come to it in segments.
    pub(super) fn note_refusal(
        &self,
        ingress: usize,
        port: &PortSpec,
        packet: &Packet,
        headers: &Headers,
    ) {
        let message = self.pool.head(packet).get(headers.l4_offset..).unwrap_or_default();
        let refused = icmp::refused_tcp_bytes(headers.destination(), message);
        if port.kind == PortKind::Pod && refused.is_some_and(|bytes| bytes > port.mtu) {
            self.ports[ingress].counters.refused_whole.add(1);
        }
    }

    /// Sends one of our own packets by the port whose packet it answers.
    pub(super) fn send_back(&mut self, tables: &Tables, ingress: usize, packet: Packet) {
        let len = packet.len() as u32;
        let egress = self.ports[ingress].id;
        let offload = Offload::default();
        let (nat, wire_packets) = (Nat::None, 1);
        let routed = Routed { egress, offload, nat, wire_packets, wire_bytes: len };
        self.deliver(tables, packet, routed);
    }
}

/// Source MAC of a frame that was long enough to be parsed.
fn mac_of_sender(head: &[u8]) -> Mac {
    head.get(6..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
}

/// Source address of an IP packet, as far as it can be read.
fn sender_of(head: &[u8]) -> Option<IpAddr> {
    let ip = head.get(ETHERNET_BYTES..)?;
    match ip.first()? >> 4 {
        4 => Some(IpAddr::from(*ip.get(12..)?.first_chunk::<4>()?)),
        6 => Some(IpAddr::from(*ip.get(8..)?.first_chunk::<16>()?)),
        _ => None,
    }
}

/// Reasons of ARP packets that are not answered.
fn arp_reason(drop: NeighborDrop) -> DropReason {
    match drop {
        NeighborDrop::SpoofedSender => DropReason::SpoofedArp,
        NeighborDrop::NotGateway | NeighborDrop::WrongReceiver | NeighborDrop::NotRequest => {
            DropReason::ArpNotForGateway
        }
        _ => DropReason::ArpMalformed,
    }
}

/// Reasons of neighbour discovery packets that are not answered.
fn nd_reason(drop: NeighborDrop) -> DropReason {
    match drop {
        NeighborDrop::SpoofedSender => DropReason::SpoofedNd,
        NeighborDrop::NotGateway | NeighborDrop::WrongReceiver | NeighborDrop::DuplicateProbe => {
            DropReason::NdNotForGateway
        }
        NeighborDrop::NotRequest => DropReason::NdForbidden,
        _ => DropReason::NdMalformed,
    }
}
