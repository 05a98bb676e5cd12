//! Segments of a stream that arrive from a wire one after another are handed to the pod as one
//! packet: the kernel's way to the pod's socket costs by the packet, not by the byte. What is held
//! waits for more until its sender pushes, [`HOLD_NS`] have passed, or the worker is about to rest.

use super::Worker;
use super::exit::{self, Exit};
use crate::crossing::Routed;
use crate::frame::Packet;
use crate::merge::{Unit, is_plain, same_flow};
use crate::parse::{Headers, protocol};
use crate::port::{PacketIo, PortId, WorkerId};
use crate::tables::{PortKind, PortSpec, Tables};

/// Flows merged at once. Beyond it the oldest goes, so that what interleaves more of them than this
/// merges nothing; the kernel's GRO has room for 64.
pub(super) const FLOWS_MAX: usize = 32;

/// How long a packet may grow, in ns: what a NIC waits before it interrupts, and people set for
/// `gro_flush_timeout`. At 10 Gbit/s 17 segments of 1448 bytes come in it.
const HOLD_NS: u64 = 20_000;

/// The longest IP packet whose length its header can say.
const IP_BYTES_MAX: usize = u16::MAX as usize;

/// A packet that the next ones may join.
#[derive(Debug)]
pub(super) struct Held {
    /// The port it came in by, and when.
    ingress: usize,
    since_ns: u64,
    /// Hash of its addresses and ports.
    flow: u32,
    packet: Packet,
    routed: Routed,
    worker: WorkerId,
    unit: Unit,
    /// Bytes of an IP packet that the receiver takes.
    longest: usize,
    /// Bytes on a wire that its limit leaves whole.
    uncut_bytes: u64,
    /// It has more than one segment; their sums are right.
    merged: bool,
}

/// Whether a packet goes by way of the merging: it comes from a wire, and its receiver takes long
/// packets whose checksum is left to do, and has no limit that would have the longest of them cut.
pub(super) fn may_merge(
    tables: &Tables,
    ingress: &PortSpec,
    exit: &Exit,
    headers: &Headers,
) -> bool {
    ingress.kind == PortKind::Uplink
        && exit.kind == PortKind::Pod
        && headers.protocol == protocol::TCP
        && exit.longest > exit.mtu
        && exit.tx_checksum
        && uncut_bytes(tables, exit.port) >= IP_BYTES_MAX as u64
}

/// Bytes on a wire of the longest packet that the limit of what a port gets leaves whole.
fn uncut_bytes(tables: &Tables, port: PortId) -> u64 {
    let limit = tables.port(port).and_then(|port| port.limits.to_pod);
    limit.map_or(u64::MAX, |limit| limit.uncut_bytes())
}

impl<P: PacketIo> Worker<P> {
    /// Joins a packet to what is held of its flow, or holds it; what it does not continue leaves
    /// before it.
    pub(super) fn merge(
        &mut self,
        tables: &Tables,
        ingress: usize,
        mut packet: Packet,
        routed: Routed,
        headers: &Headers,
        exit: &Exit,
    ) {
        if !is_plain(headers) {
            // It may belong to any of the flows.
            self.let_all_go();
            return self.hand_over(tables, ingress, packet, routed, headers, exit);
        }
        let head = self.pool.head(&packet);
        let unit = Unit::of_packet(head, headers, &routed.offload);
        let flow = exit::flow(head, headers);
        let same = |held: &Held| {
            held.flow == flow
                && held.ingress == ingress
                && held.unit.l4_offset() == headers.l4_offset
                && same_flow(self.pool.head(&held.packet), head, headers.l4_offset)
        };
        if let Some(place) = self.held.iter().position(same) {
            match self.join(place, packet, &routed, unit.as_ref()) {
                Ok(()) if self.held[place].unit.is_complete() => {
                    return self.let_go(tables, place);
                }
                Ok(()) => return,
                Err(back) => packet = back,
            }
            self.let_go(tables, place);
        }
        let longest = exit.longest.min(IP_BYTES_MAX);
        let may_grow = |unit: &Unit| !unit.is_complete() && unit.ip_bytes() < longest;
        let Some(unit) = unit.filter(may_grow) else {
            return self.hand_over(tables, ingress, packet, routed, headers, exit);
        };
        if self.held.len() == FLOWS_MAX {
            self.let_go(tables, 0);
        }
        self.held.push(Held {
            ingress,
            since_ns: self.now_ns,
            flow,
            packet,
            routed,
            worker: exit.worker,
            unit,
            longest,
            uncut_bytes: uncut_bytes(tables, exit.port),
            merged: false,
        });
        self.count_held();
    }

    /// Appends a packet to a held one, if it continues that and both have come unharmed; else
    /// gives it back.
    fn join(
        &mut self,
        place: usize,
        packet: Packet,
        routed: &Routed,
        unit: Option<&Unit>,
    ) -> Result<(), Packet> {
        let held = &mut self.held[place];
        let Some(next) = unit else { return Err(packet) };
        let heads = (self.pool.head(&held.packet), self.pool.head(&packet));
        let wire_bytes = held.routed.wire_bytes + routed.wire_bytes;
        let fits = held.unit.ip_bytes() + packet.len() - next.header_bytes() <= held.longest
            && u64::from(wire_bytes) <= held.uncut_bytes;
        if !fits || !held.unit.continued_by(heads.0, next, heads.1) {
            return Err(packet);
        }
        let sums =
            |unit: &Unit, packet| unit.verifies(self.pool.sum_from(packet, unit.l4_offset()));
        if !(held.merged || sums(&held.unit, &held.packet)) || !sums(next, &packet) {
            return Err(packet);
        }
        self.pool.pour(&mut held.packet, packet, next.header_bytes())?;
        held.unit.extend(next);
        held.merged = true;
        held.routed.wire_packets += routed.wire_packets;
        held.routed.wire_bytes = wire_bytes;
        self.counters.merged.add(1);
        Ok(())
    }

    /// Passes one held packet on.
    fn let_go(&mut self, tables: &Tables, place: usize) {
        let held = self.held.remove(place);
        self.count_held();
        let Held { ingress, mut packet, mut routed, worker, unit, merged, .. } = held;
        if merged {
            routed.offload = unit.write_headers(self.pool.head_mut(&mut packet));
        }
        self.pass_on(tables, ingress, worker, packet, routed);
    }

    /// Passes on what has waited long enough.
    pub(super) fn let_old_go(&mut self, tables: &Tables) {
        // The oldest come first. Wrapping: whatever the clock does, nothing waits for ever.
        let now_ns = self.now_ns;
        let is_old = |held: &Held| now_ns.wrapping_sub(held.since_ns) >= HOLD_NS;
        while self.held.first().is_some_and(is_old) {
            self.let_go(tables, 0);
        }
    }

    /// Passes on all that is held, the oldest first: before the ports or the tables change by which
    /// it was to leave.
    pub(super) fn let_all_go(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let tables = self.tables.clone();
        while !self.held.is_empty() {
            self.let_go(&tables, 0);
        }
    }

    /// Counts what waits: to be merged, or for its limit.
    pub(super) fn count_held(&self) {
        self.counters.held.set(self.held.len() as u64 + u64::from(self.shaper.waiting()));
    }
}
