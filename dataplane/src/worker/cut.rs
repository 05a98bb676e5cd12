//! Super-packets that leave the node are cut here: beyond an uplink lies a wire, and beyond the
//! node port the node's kernel, which gets them without their segment size and would find them too
//! long. So are those for a pod whose interface does not take them, and UDP super-packets wherever
//! they go.

use super::exit::Exit;
use super::{Direction, Worker};
use crate::checksum::udp_field;
use crate::crossing::Routed;
use crate::drop::DropReason;
use crate::frame::Packet;
use crate::offload::Offload;
use crate::parse::{ETHERNET_BYTES, Headers, protocol};
use crate::port::{PacketIo, Partial};
use crate::segment::{HEADER_BYTES_MAX, Segmenter, SuperPacket};
use crate::tables::{PortKind, Tables};

/// A packet that is being cut, and all that is known of it.
#[derive(Clone, Copy)]
struct Cut<'a> {
    packet: &'a Packet,
    routed: Routed,
    headers: &'a Headers,
    exit: &'a Exit,
}

/// A super-packet on its way to be segments.
pub(super) struct Pieces {
    segmenter: Segmenter,
    header: [u8; HEADER_BYTES_MAX],
    /// Segments that are still to be made.
    pub left: usize,
}

/// Whether a packet must be cut before it leaves. A stream stays whole between pods, unless the
/// receiver's interface does not take it. It is cut towards wires and the node, however short: the
/// segment size may be all that the receiver, or a link far away, takes. That holds for the node's
/// own addresses too, since the kernel may forward it all the same (a reply of a masqueraded
/// Service). Datagrams are always cut: each is a message, and who got several as one could not tell
/// where they end. What is in a tunnel cannot be cut, and passes to the node's own addresses.
pub(super) fn must_cut(
    tables: &Tables,
    exit: &Exit,
    packet: &Packet,
    routed: &Routed,
    headers: &Headers,
) -> bool {
    let tunnelled = routed.offload.encapsulated;
    let datagrams = headers.protocol == protocol::UDP && !tunnelled;
    let stays_whole = match exit.kind {
        PortKind::Pod => packet.len() - ETHERNET_BYTES <= exit.longest,
        PortKind::Node => tunnelled && tables.is_node(headers.destination()),
        PortKind::Uplink => false,
    };
    let segments = if routed.offload.gso_size > 0 { routed.wire_packets } else { 1 };
    segments > 1 && (datagrams || !stays_whole)
}

impl<P: PacketIo> Worker<P> {
    /// Cuts a packet and passes its segments on.
    pub(super) fn cut(
        &mut self,
        tables: &Tables,
        ingress: usize,
        packet: Packet,
        routed: Routed,
        headers: &Headers,
        exit: &Exit,
    ) {
        if routed.offload.encapsulated {
            let reason = DropReason::EncapsulatedSuperPacket;
            return self.discard(ingress, Direction::FromPod, packet, reason);
        }
        match self.pieces(&packet, &routed.offload, headers) {
            Ok(mut pieces) => {
                let cut = Cut { packet: &packet, routed, headers, exit };
                self.send_pieces(tables, ingress, &cut, &mut pieces);
                // The super-packet was received once and leaves as its segments: each but one
                // was generated here, and each was sent or dropped.
                self.pool.release(packet);
            }
            Err(reason) => self.discard(ingress, Direction::FromPod, packet, reason),
        }
    }

    /// The segments of a super-packet, to be taken by [`Worker::next_piece`].
    pub(super) fn pieces(
        &self,
        packet: &Packet,
        offload: &Offload,
        headers: &Headers,
    ) -> Result<Pieces, DropReason> {
        let head = self.pool.head(packet);
        let header_len = offload.header_len(head, headers);
        let segmenter = Segmenter::new(SuperPacket {
            header: head.get(..header_len).ok_or(DropReason::BadMarker)?,
            l3_offset: ETHERNET_BYTES,
            l4_offset: headers.l4_offset,
            gso_size: offload.gso_size,
            payload_bytes: headers.len - header_len,
        })
        .map_err(|_| DropReason::BadMarker)?;
        self.counters.generated.add(segmenter.segments() as u64 - 1);
        Ok(Pieces { left: segmenter.segments(), segmenter, header: [0; HEADER_BYTES_MAX] })
    }

    /// The next segment of a packet as one of its own. `None`: that was all, or the worker is out
    /// of frames; what is left then is to be counted as lost.
    pub(super) fn next_piece(&mut self, packet: &Packet, pieces: &mut Pieces) -> Option<Packet> {
        let Pieces { left, segmenter, header } = pieces;
        let segment = segmenter.next(header).ok().flatten()?;
        let header_len = segmenter.header_bytes();
        let mut piece = self.pool.chain(header_len + segment.payload_bytes)?;
        self.pool.head_mut(&mut piece)[..header_len].copy_from_slice(&header[..header_len]);
        let from = header_len + segment.payload_offset;
        self.pool.copy_between(packet, from, &mut piece, header_len);
        *left -= 1;
        Some(piece)
    }

    fn send_pieces(&mut self, tables: &Tables, ingress: usize, cut: &Cut<'_>, pieces: &mut Pieces) {
        let Cut { packet, mut routed, headers, exit } = *cut;
        while let Some(piece) = self.next_piece(packet, pieces) {
            routed.be_one_packet(piece.len());
            self.leave(tables, ingress, piece, routed, headers, exit);
        }
        self.count_lost_pieces(ingress, Direction::FromPod, pieces.left);
    }

    /// Completes a checksum in software, for a port that has no TX metadata.
    pub(super) fn complete_checksum(&mut self, packet: &mut Packet, partial: Partial) {
        let start = usize::from(partial.start);
        let field = start + usize::from(partial.offset);
        // The field holds the pseudo-header sum, so the sum over all is that of a packet with a
        // field of zero plus its pseudo-header.
        let check = self.pool.sum_from(packet, start).checksum();
        let udp = partial.offset == UDP_FIELD;
        let check = if udp { udp_field(check) } else { check };
        if let Some(field) = self.pool.head_mut(packet).get_mut(field..field + 2) {
            field.copy_from_slice(&check.to_be_bytes());
        }
    }
}

/// Offset of the checksum in a UDP header: 0 there means that there is none.
const UDP_FIELD: u16 = 6;
