//! The packet path, top to bottom.
//!
//! ```text
//!             free frames
//!          ▲              │ refill
//!  reclaim │              ▼
//!    completion         fill ──► kernel ──► rx ── receive ──► from_pod: parse → source → route
//!         ▲                                                      │            │
//!         │                          another worker ◄── cross ◄──┤            └► discard(reason)
//!         │                                └── receive ──►┐      │
//!         └──── kernel ◄── tx ◄── transmit ◄── to_pod ◄───┴──────┘
//!                           (kick)
//! ```
//!
//! A worker is one pinned thread. It owns the ports of the pods homed on it, their frames and
//! everything stateful about these pods. The path has two halves: *from-pod* runs on the worker of
//! the sender, *to-pod* on the worker of the receiver; where these differ the packet crosses one
//! ring. From the node's port, and from an uplink, a packet enters like from a pod's.

mod answer;
mod command;
mod cut;
mod exit;
mod flow_orders;
mod fragment;
mod merge;
mod nat;
mod parts;
mod port;
mod rest;
mod shape;

use std::sync::Arc;

use crate::checksum::decrement_ttl;
use crate::counters::WorkerCounters;
use crate::crossing::{Bell, CrossingIn, CrossingOut, Nat, Received, Routed};
use crate::drop::DropReason;
use crate::frame::{FramePool, Packet};
use crate::icmp::{ErrorKind, Limiter};
use crate::offload::{self, Offload};
use crate::parse::{self, Addresses, ETHERNET_BYTES, Headers, Parsed};
use crate::port::{PacketIo, PortId, WorkerId};
use crate::publish::Subscription;
use crate::shaper::Shaper;
use crate::source;
use crate::sync::{Ordering, fence};
use crate::tables::{PortKind, PortSpec, Tables};

pub use command::{Command, CommandQueue, Event, EventQueue, queues};
use exit::Exit;
pub use parts::WorkerParts;
use port::Port;
pub use rest::{Rest, monotonic_ns};

/// Packets taken from one port in one pass: the kernel's own NAPI budget, so that one busy port
/// delays the others by no more than the kernel would.
pub const BATCH_MAX: usize = 64;

/// ICMPv6 type of a neighbour solicitation (RFC 4861 §4.3), the only one that is answered.
const NEIGHBOR_SOLICITATION: u8 = 135;

/// One worker. Generic in the port alone: AF_XDP or simulated.
pub struct Worker<P> {
    id: WorkerId,
    pool: FramePool,
    subscription: Subscription,
    tables: Arc<Tables>,
    commands: CommandQueue<P>,
    events: EventQueue<P>,
    /// Ports in use, in no order; `slots` finds them by number.
    ports: Vec<Port<P>>,
    slots: Vec<Option<u16>>,
    out: Vec<Option<CrossingOut>>,
    incoming: Vec<CrossingIn>,
    bell: Arc<Bell>,
    counters: Arc<WorkerCounters>,
    limiter: Limiter,
    /// Of errors to other nodes: whoever sends by a wire cannot use up what pods are told.
    wire_limiter: Limiter,
    batch: Vec<Packet>,
    /// Ports that are `pending`, so that a pass looks at these alone.
    to_kick: Vec<PortId>,
    /// Packets from uplinks that the next ones may join.
    held: Vec<merge::Held>,
    /// Packets of limited pods that wait for their turn.
    shaper: Shaper<shape::Waiting>,
    flows: nat::Flows,
    now_ns: u64,
    started_ns: u64,
    /// Some port is so busy that its packets need not wake the worker.
    some_busy: bool,
    stopping: bool,
}

/// Why a packet is not forwarded, and what its sender is told.
struct Refusal {
    reason: DropReason,
    error: Option<ErrorKind>,
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Refusal {
        Refusal { reason, error: None }
    }
}

/// A packet that its sender may send.
struct Admitted {
    headers: Headers,
    offload: Offload,
}

/// What becomes of a packet that arrives.
enum Verdict {
    /// It goes on.
    Admit(Admitted),
    /// This answer goes back in its place: ARP and neighbour discovery.
    Answer(Packet),
}

/// Which direction of a port's counters a packet belongs to.
#[derive(Clone, Copy)]
enum Direction {
    FromPod,
    ToPod,
}

impl<P: PacketIo> Worker<P> {
    /// One pass at monotonic time `now_ns`. Returns how many packets it took in. Every stage is
    /// bounded by [`BATCH_MAX`] per port.
    pub fn pass(&mut self, now_ns: u64) -> usize {
        self.now_ns = now_ns;
        self.shaper.begin_pass(now_ns);
        self.obey(); // orders of control: ports come and go
        let tables = self.adopt(); // the newest tables
        self.flows.obey(now_ns); // those of its orders that take several passes
        let mut taken = self.send_due(&tables); // what has waited for its limit long enough
        for index in 0..self.ports.len() {
            taken += self.serve(&tables, index); // reclaim, refill, receive; from-pod half
        }
        for index in 0..self.incoming.len() {
            taken += self.receive_crossings(&tables, index); // from other workers: to-pod half
        }
        self.let_old_go(&tables); // what waited to be merged
        self.forget_flows(taken); // what was idle for too long
        self.kick(); // wake the kernel and the workers that got something
        self.counters.passes.add(1);
        taken
    }

    /// Takes the newest snapshot, for a whole pass: one reference count per pass, not per packet.
    /// The old one is freed by control.
    fn adopt(&mut self) -> Arc<Tables> {
        if self.subscription.adopt().generation() != self.tables.generation() {
            self.let_all_go();
            self.tables = self.subscription.adopt().clone();
            self.follow_limits();
            // Release: pairs with the fence in `Publisher::retire`; who reads the generation set
            // below may rely on our having let go of every older snapshot.
            fence(Ordering::Release);
        }
        self.counters.generation.set(self.tables.generation());
        self.tables.clone()
    }

    /// Moves frames of one port, and forwards what it has received.
    fn serve(&mut self, tables: &Tables, index: usize) -> usize {
        let port = &mut self.ports[index];
        port.io.reclaim(&mut self.pool);
        port.io.refill(&mut self.pool, port.share.frames());
        let mut batch = std::mem::take(&mut self.batch);
        let bad = port.io.receive(&mut self.pool, &mut batch, BATCH_MAX);
        if bad > 0 {
            port.counters.from_pod.drops[DropReason::BadDescriptor as usize].add(bad);
        }
        let taken = batch.len();
        self.some_busy |= port.watch.is_in_vain(taken);
        self.counters.received.add(taken as u64);
        for packet in batch.drain(..) {
            self.forward(tables, index, packet);
        }
        self.batch = batch;
        taken
    }

    /// One packet from a port of ours. Read this to know what the product does.
    fn forward(&mut self, tables: &Tables, ingress: usize, mut packet: Packet) {
        let counters = &self.ports[ingress].counters.from_pod;
        counters.packets.add(1);
        counters.bytes.add(packet.len() as u64);
        let Some(port) = tables.port(self.ports[ingress].id) else {
            return self.discard(ingress, Direction::FromPod, packet, DropReason::PortDown);
        };
        match self.admit(tables, port, &mut packet) {
            Ok(Verdict::Admit(admitted)) => match self.ports[ingress].lines.from_pod {
                None => self.send_on(tables, ingress, port, packet, admitted),
                Some(line) => self.shape_from_pod(tables, port, line, packet, admitted),
            },
            Ok(Verdict::Answer(answer)) => {
                self.pool.release(packet);
                self.send_back(tables, ingress, answer);
            }
            Err(reason) => self.discard(ingress, Direction::FromPod, packet, reason),
        }
    }

    /// The from-pod half, on the sender's worker: may this packet be sent? (Egress policy joins
    /// here. What has a limit waits between this and `send_on`.)
    fn admit(
        &mut self,
        tables: &Tables,
        port: &PortSpec,
        packet: &mut Packet,
    ) -> Result<Verdict, DropReason> {
        let headers = match parse::headers(self.pool.head(packet), packet.len())? {
            // The kernel of the node answers on its own interfaces.
            Parsed::Arp { .. } if port.kind == PortKind::Uplink => {
                return Err(DropReason::NotOurs);
            }
            Parsed::Arp { .. } => return self.answer_arp(port, packet).map(Verdict::Answer),
            Parsed::Ip(headers) => headers,
        };
        source::check(tables, port, &headers)?;
        if headers.is_link_control() {
            if port.kind == PortKind::Uplink || headers.icmp_type != Some(NEIGHBOR_SOLICITATION) {
                return Err(DropReason::NdForbidden);
            }
            return self.answer_neighbor_discovery(port, packet).map(Verdict::Answer);
        }
        source::check_link(port, &headers)?;
        source::check_martians(&headers)?;
        let offload = offload::of_packet(self.pool.head(packet), &headers, port.hints)?;
        if headers.len < packet.len() {
            self.pool.truncate(packet, headers.len); // Ethernet padding
        }
        Ok(Verdict::Admit(Admitted { headers, offload }))
    }

    /// The rest of the from-pod half, when it is the packet's turn: where does it go?
    fn send_on(
        &mut self,
        tables: &Tables,
        ingress: usize,
        port: &PortSpec,
        mut packet: Packet,
        admitted: Admitted,
    ) {
        let Admitted { mut headers, offload } = admitted;
        let (routed, exit) = match self.route(tables, port, &mut packet, &mut headers, offload) {
            Ok(way) => way,
            Err(refusal) => {
                if let Some(error) = refusal.error {
                    self.send_icmp_error(tables, ingress, port, &packet, error);
                }
                return self.discard(ingress, Direction::FromPod, packet, refusal.reason);
            }
        };
        let counters = &self.ports[ingress].counters.from_pod;
        counters.wire_packets.add(u64::from(routed.wire_packets));
        counters.wire_bytes.add(u64::from(routed.wire_bytes));
        if headers.icmp_type.is_some() {
            self.note_refusal(ingress, port, &packet, &headers);
        }
        self.rewrite(&exit, &mut packet, &headers);
        if merge::may_merge(tables, port, &exit, &headers) {
            self.merge(tables, ingress, packet, routed, &headers, &exit);
        } else {
            self.hand_over(tables, ingress, packet, routed, &headers, &exit);
        }
    }

    /// The way that a packet takes, and whether the way takes it. A reply by a host port gets the
    /// addresses that its receiver knows.
    fn route(
        &mut self,
        tables: &Tables,
        port: &PortSpec,
        packet: &mut Packet,
        headers: &mut Headers,
        mut offload: Offload,
    ) -> Result<(Routed, Exit), Refusal> {
        let head = self.pool.head(packet);
        let reply = match tables.is_tracked(port.id) {
            true => {
                let (pod, now_ns) = (port, self.now_ns);
                self.flows.find_reply(&nat::Seen { tables, pod, head, headers, now_ns })?
            }
            false => None,
        };
        let exit = Exit::of_packet(tables, self.id, port, head, headers, reply.as_ref())?;
        let wire = exit.fit(port, head, headers, &offload)?;
        offload.gso_size = wire.segment_size; // cut as counted, also where nobody said
        let routed = Routed {
            egress: exit.port,
            offload,
            nat: exit.nat,
            wire_packets: wire.packets as u32,
            wire_bytes: wire.bytes as u32,
        };
        if let Some(reply) = reply {
            self.translate(packet, headers, &reply.rewrite, offload.partial)?;
        }
        Ok((routed, exit))
    }

    /// MACs of the next link, and the hop limit: between pods, and between them and other nodes, we
    /// are a router; to and from the node we and the node's kernel are one router, and the kernel
    /// decrements what it forwards.
    fn rewrite(&mut self, exit: &Exit, packet: &mut Packet, headers: &Headers) {
        let head = self.pool.head_mut(packet);
        head[..6].copy_from_slice(&exit.mac);
        head[6..12].copy_from_slice(&exit.gateway_mac);
        if !exit.is_hop {
            return;
        }
        match headers.addresses {
            Addresses::V4 { .. } => {
                let ip = head[ETHERNET_BYTES..].first_chunk_mut().expect("parsed as IPv4");
                decrement_ttl(ip).expect("the hop limit was checked");
            }
            Addresses::V6 { .. } => head[ETHERNET_BYTES + 7] -= 1,
        }
    }

    /// To the receiver, in as many packets as its link takes.
    fn hand_over(
        &mut self,
        tables: &Tables,
        ingress: usize,
        packet: Packet,
        routed: Routed,
        headers: &Headers,
        exit: &Exit,
    ) {
        if cut::must_cut(tables, exit, &packet, &routed, headers) {
            return self.cut(tables, ingress, packet, routed, headers, exit);
        }
        self.leave(tables, ingress, packet, routed, headers, exit);
    }

    /// One packet of its sender, or its fragments.
    fn leave(
        &mut self,
        tables: &Tables,
        ingress: usize,
        packet: Packet,
        routed: Routed,
        headers: &Headers,
        exit: &Exit,
    ) {
        // What goes to a host port is fragmented later, with the address of the pod: fragments have
        // no ports to find a flow by.
        if exit.must_fragment(packet.len(), headers) && routed.nat != Nat::HostPort {
            let cutter = fragment::Cutter::from_pod(ingress, exit);
            return self.fragment(tables, packet, routed, cutter);
        }
        self.pass_on(tables, ingress, exit.worker, packet, routed);
    }

    /// To the receiver's worker: this one, or another by its ring.
    fn pass_on(
        &mut self,
        tables: &Tables,
        ingress: usize,
        worker: WorkerId,
        packet: Packet,
        routed: Routed,
    ) {
        if worker == self.id {
            return self.deliver(tables, packet, routed);
        }
        let crossed = match self.out.get_mut(usize::from(worker.0)).and_then(Option::as_mut) {
            Some(out) => out.send(&mut self.pool, packet, routed),
            None => Err(packet),
        };
        match crossed {
            Ok(()) => self.counters.crossed_out.add(1),
            Err(packet) => {
                self.discard(ingress, Direction::FromPod, packet, DropReason::CrossingFull);
            }
        }
    }

    /// The to-pod half, on the receiver's worker. (Ingress policy joins here. What has a limit
    /// waits between this and `transmit`.)
    fn deliver(&mut self, tables: &Tables, packet: Packet, routed: Routed) {
        let Some(index) = self.slots[usize::from(routed.egress.0)].map(usize::from) else {
            self.count_stray();
            return self.pool.release(packet);
        };
        if routed.nat != Nat::None {
            return self.deliver_tracked(tables, index, packet, routed);
        }
        match self.ports[index].lines.to_pod {
            None => self.transmit(tables, index, packet, routed),
            Some(line) => self.shape_to_pod(tables, index, line, packet, routed),
        }
    }

    /// The end of the to-pod half: to the port's tx ring.
    fn transmit(&mut self, tables: &Tables, index: usize, mut packet: Packet, routed: Routed) {
        let tx_checksum = tables.port(routed.egress).is_none_or(|port| port.tx_checksum);
        let mut partial = routed.offload.partial;
        if let Some(open) = partial.filter(|_| !tx_checksum) {
            self.complete_checksum(&mut packet, open);
            partial = None;
        }
        let len = packet.len();
        let port = &mut self.ports[index];
        match port.io.transmit(&mut self.pool, packet, partial) {
            Ok(()) => {
                if !std::mem::replace(&mut port.pending, true) {
                    self.to_kick.push(port.id);
                }
                let counters = &port.counters.to_pod;
                counters.packets.add(1);
                counters.bytes.add(len as u64);
                counters.wire_packets.add(u64::from(routed.wire_packets));
                counters.wire_bytes.add(u64::from(routed.wire_bytes));
                self.counters.sent.add(1);
            }
            Err(packet) => {
                self.discard(index, Direction::ToPod, packet, DropReason::TxRingFull);
            }
        }
    }

    /// Takes packets of one other worker.
    fn receive_crossings(&mut self, tables: &Tables, from: usize) -> usize {
        let mut taken = 0;
        while taken < BATCH_MAX {
            match self.incoming[from].receive(&mut self.pool) {
                None => break,
                Some(Received::Packet(packet, routed)) => {
                    self.counters.crossed_in.add(1);
                    self.deliver(tables, packet, routed);
                }
                Some(Received::NoFrames(routed)) => {
                    self.counters.crossed_in.add(1);
                    self.count_without_frames(routed.egress);
                }
            }
            taken += 1;
        }
        taken
    }

    /// Counts a packet that crossed, and was not copied for want of frames.
    fn count_without_frames(&self, egress: PortId) {
        let Some(index) = self.slots[usize::from(egress.0)] else { return self.count_stray() };
        self.ports[usize::from(index)].counters.to_pod.drop(DropReason::NoFrames);
        self.counters.dropped.add(1);
    }

    /// Counts a packet whose port went while it was under way: by the worker itself, because its
    /// sender's counters may be another worker's.
    fn count_stray(&self) {
        self.counters.port_down.add(1);
        self.counters.dropped.add(1);
    }

    /// Wakes the kernel for ports that have something to send, and the workers that were sent
    /// something; takes back what they have copied.
    fn kick(&mut self) {
        self.to_kick.retain(|id| {
            let index = self.slots[usize::from(id.0)].expect("a port that goes is kicked no more");
            self.ports[usize::from(index)].kick()
        });
        for out in self.out.iter_mut().flatten() {
            out.ring_bell();
            out.take_returned(&mut self.pool);
        }
    }

    /// The one exit of a packet that is not forwarded: counts it, frees its frames.
    fn discard(&mut self, port: usize, direction: Direction, packet: Packet, reason: DropReason) {
        let counters = &self.ports[port].counters;
        match direction {
            Direction::FromPod => counters.from_pod.drop(reason),
            Direction::ToPod => counters.to_pod.drop(reason),
        }
        self.counters.dropped.add(1);
        self.pool.release(packet);
    }
}
