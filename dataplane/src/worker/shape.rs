//! Limits: what a pod sends, and what it gets, pays one bucket each, and waits in its line while
//! that has nothing left.
//!
//! What a pod sends waits before it is routed, so that it leaves by the tables of the moment when
//! its turn comes. What it gets waits before its port. A super-packet that the rate would need long
//! for is cut first.

use std::time::Duration;

use super::rest::monotonic_ns;
use super::{Admitted, BATCH_MAX, Direction, Worker};
use crate::counters::DirectionCounters;
use crate::crossing::Routed;
use crate::drop::DropReason;
use crate::ecn;
use crate::frame::Packet;
use crate::offload::Offload;
use crate::parse::{self, Parsed};
use crate::port::{PacketIo, PortId};
use crate::shaper::{Limit, Limits, LineId, Offer, Size};
use crate::tables::{PortSpec, Tables};

/// The lines of a port: one for each direction that has a limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lines {
    pub from_pod: Option<LineId>,
    pub to_pod: Option<LineId>,
}

/// A packet that waits for its turn.
pub(super) struct Waiting {
    /// The port of the pod whose limit it is.
    port: PortId,
    packet: Packet,
    way: Way,
}

/// Where it goes on.
enum Way {
    /// The pod sends it: it is routed.
    FromPod(Admitted),
    /// It is for the pod: it is transmitted.
    ToPod(Routed),
}

impl Waiting {
    fn direction(&self) -> Direction {
        match self.way {
            Way::FromPod(_) => Direction::FromPod,
            Way::ToPod(_) => Direction::ToPod,
        }
    }
}

/// Whether a packet is cut before it pays.
fn is_cut(limit: Option<Limit>, offload: &Offload, wire_bytes: u32) -> bool {
    let can_be_cut = offload.gso_size > 0 && !offload.encapsulated;
    can_be_cut && limit.is_some_and(|limit| limit.cuts(wire_bytes))
}

impl<P: PacketIo> Worker<P> {
    /// A packet of a pod with a limit: it leaves now, or when it is its turn.
    pub(super) fn shape_from_pod(
        &mut self,
        tables: &Tables,
        pod: &PortSpec,
        line: LineId,
        packet: Packet,
        admitted: Admitted,
    ) {
        let (port, index) = (pod.id, self.index_of(pod.id));
        let Admitted { headers, mut offload } = admitted;
        let wire_bytes = match offload.on_wire(self.pool.head(&packet), &headers, pod.mtu) {
            Ok(wire) => wire.bytes as u32,
            Err(reason) => return self.discard(index, Direction::FromPod, packet, reason),
        };
        // Where nobody said how long segments are, the way says it: not known before its turn.
        if !is_cut(self.ports[index].limits.from_pod, &offload, wire_bytes) {
            let way = Way::FromPod(Admitted { headers, offload });
            return self.offer(tables, line, wire_bytes, Waiting { port, packet, way });
        }
        let mut pieces = match self.pieces(&packet, &offload, &headers) {
            Ok(pieces) => pieces,
            Err(reason) => return self.discard(index, Direction::FromPod, packet, reason),
        };
        offload.gso_size = 0;
        while let Some(piece) = self.next_piece(&packet, &mut pieces) {
            let len = piece.len();
            let way = Way::FromPod(Admitted { headers: headers.of_segment(len), offload });
            self.offer(tables, line, len as u32, Waiting { port, packet: piece, way });
        }
        self.count_lost_pieces(index, Direction::FromPod, pieces.left);
        self.pool.release(packet);
    }

    /// A packet for a pod with a limit: it is delivered now, or when it is its turn.
    pub(super) fn shape_to_pod(
        &mut self,
        tables: &Tables,
        egress: usize,
        line: LineId,
        packet: Packet,
        mut routed: Routed,
    ) {
        let port = routed.egress;
        if !is_cut(self.ports[egress].limits.to_pod, &routed.offload, routed.wire_bytes) {
            let waiting = Waiting { port, packet, way: Way::ToPod(routed) };
            return self.offer(tables, line, routed.wire_bytes, waiting);
        }
        let pieces = match parse::headers(self.pool.head(&packet), packet.len()) {
            Ok(Parsed::Ip(headers)) => self.pieces(&packet, &routed.offload, &headers),
            Ok(Parsed::Arp { .. }) => Err(DropReason::BadMarker),
            Err(reason) => Err(reason),
        };
        let mut pieces = match pieces {
            Ok(pieces) => pieces,
            Err(reason) => return self.discard(egress, Direction::ToPod, packet, reason),
        };
        while let Some(piece) = self.next_piece(&packet, &mut pieces) {
            routed.be_one_packet(piece.len());
            let waiting = Waiting { port, packet: piece, way: Way::ToPod(routed) };
            self.offer(tables, line, routed.wire_bytes, waiting);
        }
        self.count_lost_pieces(egress, Direction::ToPod, pieces.left);
        self.pool.release(packet);
    }

    fn offer(&mut self, tables: &Tables, line: LineId, wire_bytes: u32, mut waiting: Waiting) {
        let size = Size { wire_bytes, frames: waiting.packet.frames() as u32 };
        match self.shaper.offer(line, size, self.pool.count().free) {
            Offer::Go => self.send_waiting(tables, waiting),
            Offer::Wait { mark } => {
                if mark && ecn::mark(self.pool.head_mut(&mut waiting.packet)) {
                    self.counters_of(&waiting).marked.add(1);
                }
                self.shaper.push(line, size, waiting);
                self.count_held();
            }
            Offer::Refuse(reason) => self.refuse(waiting, reason),
        }
    }

    /// Sends what it is the turn of. Returns how many packets that were.
    pub(super) fn send_due(&mut self, tables: &Tables) -> usize {
        let mut sent = 0;
        while let Some((_, packet)) = self.shaper.pop_due() {
            self.count_held();
            self.send_waiting(tables, packet);
            sent += 1;
        }
        sent
    }

    fn send_waiting(&mut self, tables: &Tables, waiting: Waiting) {
        let Waiting { port: id, packet, way } = waiting;
        let index = self.index_of(id);
        match way {
            Way::FromPod(admitted) => match tables.port(id) {
                Some(port) => self.send_on(tables, index, port, packet, admitted),
                None => self.discard(index, Direction::FromPod, packet, DropReason::PortDown),
            },
            Way::ToPod(routed) => self.transmit(tables, index, packet, routed),
        }
    }

    fn refuse(&mut self, waiting: Waiting, reason: DropReason) {
        let (index, direction) = (self.index_of(waiting.port), waiting.direction());
        self.discard(index, direction, waiting.packet, reason);
    }

    /// Holds every port to what the newest tables say of it.
    pub(super) fn follow_limits(&mut self) {
        for index in 0..self.ports.len() {
            self.follow_limits_of(index);
        }
    }

    /// Holds one port to what the newest tables say of it.
    pub(super) fn follow_limits_of(&mut self, index: usize) {
        let tables = self.tables.clone();
        let spec = tables.port(self.ports[index].id);
        self.limit(&tables, index, spec.map_or(Limits::default(), |spec| spec.limits));
    }

    /// Lets everything go that waits, whatever the limits say: the worker stops, or explains.
    pub(crate) fn let_waiting_go(&mut self) {
        let tables = self.tables.clone();
        for index in 0..self.ports.len() {
            self.limit(&tables, index, Limits::default());
        }
    }

    fn limit(&mut self, tables: &Tables, index: usize, limits: Limits) {
        let port = &mut self.ports[index];
        if port.limits == limits {
            return;
        }
        port.limits = limits;
        let Lines { from_pod, to_pod } = port.lines;
        let from_pod = self.follow_limit(tables, from_pod, limits.from_pod);
        self.ports[index].lines.from_pod = from_pod;
        let to_pod = self.follow_limit(tables, to_pod, limits.to_pod);
        self.ports[index].lines.to_pod = to_pod;
        self.publish_line(index);
    }

    /// Opens a line, closes it, or changes its rate. What would wait too long at a new rate is
    /// dropped; what has no limit any more leaves at once.
    fn follow_limit(
        &mut self,
        tables: &Tables,
        line: Option<LineId>,
        limit: Option<Limit>,
    ) -> Option<LineId> {
        match (line, limit) {
            (None, None) => None,
            (None, Some(limit)) => Some(self.shaper.open(&limit)),
            (Some(line), Some(limit)) => {
                self.shaper.change(line, &limit);
                while let Some(packet) = self.shaper.shed(line) {
                    self.refuse(packet, DropReason::ShaperFull);
                }
                self.count_held();
                Some(line)
            }
            (Some(line), None) => {
                let mut sent = 0;
                while let Some(packet) = self.shaper.take_back(line) {
                    self.count_held();
                    self.send_waiting(tables, packet);
                    sent += 1;
                    if sent % BATCH_MAX == 0 {
                        self.kick(); // more may have waited than a tx ring holds
                    }
                }
                self.shaper.close(line);
                None
            }
        }
    }

    /// Drops what waits at a port that is going.
    pub(super) fn stop_waiting(&mut self, index: usize) {
        let Lines { from_pod, to_pod } = std::mem::take(&mut self.ports[index].lines);
        for line in [from_pod, to_pod].into_iter().flatten() {
            while let Some(packet) = self.shaper.take_back(line) {
                self.refuse(packet, DropReason::PortDown);
            }
            self.shaper.close(line);
        }
        self.count_held();
        self.publish_line(index);
    }

    /// How long the worker may sleep, `longest` at most, and not past the next packet's turn.
    pub(super) fn until_due(&self, longest: Duration) -> Duration {
        let Some(next_ns) = self.shaper.next_ns() else { return longest };
        longest.min(Duration::from_nanos(next_ns.saturating_sub(monotonic_ns())))
    }

    /// Publishes how the lines of a port stand.
    pub(super) fn publish_line(&self, index: usize) {
        let port = &self.ports[index];
        for (line, counters) in [
            (port.lines.from_pod, &port.counters.from_pod),
            (port.lines.to_pod, &port.counters.to_pod),
        ] {
            let state = line.map(|line| self.shaper.state(line));
            counters.queued_bytes.set(state.map_or(0, |state| state.queued_bytes));
            counters.tokens.set(state.map_or(0, |state| state.tokens_bytes as u64));
        }
    }

    fn counters_of(&self, waiting: &Waiting) -> &DirectionCounters {
        let counters = &self.ports[self.index_of(waiting.port)].counters;
        match waiting.direction() {
            Direction::FromPod => &counters.from_pod,
            Direction::ToPod => &counters.to_pod,
        }
    }

    fn index_of(&self, port: PortId) -> usize {
        let index = self.slots[usize::from(port.0)];
        usize::from(index.expect("nothing waits at a port that went"))
    }
}
