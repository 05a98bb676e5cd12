//! IPv4 packets that are longer than their way takes, and whose sender lets routers fragment them,
//! leave in pieces.

use super::exit::Exit;
use super::{Direction, Worker};
use crate::crossing::Routed;
use crate::drop::DropReason;
use crate::fragment::{FRAGMENT_HEADER_BYTES_MAX, Fragmenter, LongPacket};
use crate::frame::Packet;
use crate::parse::ETHERNET_BYTES;
use crate::port::PacketIo;
use crate::tables::Tables;

impl<P: PacketIo> Worker<P> {
    /// Fragments a packet and passes the fragments on.
    pub(super) fn fragment(
        &mut self,
        tables: &Tables,
        ingress: usize,
        mut packet: Packet,
        mut routed: Routed,
        exit: &Exit,
    ) {
        // No fragment has all that the checksum covers.
        if let Some(open) = routed.offload.partial.take() {
            self.complete_checksum(&mut packet, open);
        }
        match self.fragmenter(&packet, exit) {
            Ok(mut fragmenter) => {
                self.send_fragments(tables, ingress, &packet, routed, exit, &mut fragmenter);
                // Received once; each fragment but one was generated here.
                self.pool.release(packet);
            }
            Err(reason) => self.discard(ingress, Direction::FromPod, packet, reason),
        }
    }

    fn fragmenter(&self, packet: &Packet, exit: &Exit) -> Result<Fragmenter, DropReason> {
        let head = self.pool.head(packet);
        let header_words = head.get(ETHERNET_BYTES).ok_or(DropReason::TooShort)? & 0x0f;
        let header_len = ETHERNET_BYTES + 4 * usize::from(header_words);
        Fragmenter::new(LongPacket {
            header: head.get(..header_len).ok_or(DropReason::TooShort)?,
            l3_offset: ETHERNET_BYTES,
            payload_bytes: packet.len() - header_len,
            mtu: exit.longest as u32,
        })
        // The parser has excluded all but a fragment that no reassembly would take, and a route
        // whose MTU is below what IPv4 needs.
        .map_err(|_| DropReason::FragmentTooSmall)
    }

    fn send_fragments(
        &mut self,
        tables: &Tables,
        ingress: usize,
        packet: &Packet,
        mut routed: Routed,
        exit: &Exit,
        fragmenter: &mut Fragmenter,
    ) {
        let header_len = fragmenter.header_bytes();
        let mut left = fragmenter.fragments();
        self.counters.generated.add(left as u64 - 1);
        let mut header = [0; FRAGMENT_HEADER_BYTES_MAX];
        while let Ok(Some(fragment)) = fragmenter.next(&mut header) {
            let len = header_len + fragment.payload_bytes;
            let Some(mut piece) = self.pool.chain(len) else { break };
            self.pool.head_mut(&mut piece)[..header_len].copy_from_slice(&header[..header_len]);
            let from = header_len + fragment.payload_offset;
            self.pool.copy_between(packet, from, &mut piece, header_len);
            (routed.wire_packets, routed.wire_bytes) = (1, len as u32);
            self.pass_on(tables, ingress, exit.worker, piece, routed);
            left -= 1;
        }
        self.count_lost_pieces(ingress, left);
    }

    /// Out of frames in the middle: what is missing is lost, as on a wire.
    pub(super) fn count_lost_pieces(&self, ingress: usize, pieces: usize) {
        let pieces = pieces as u64;
        self.counters.dropped.add(pieces);
        self.ports[ingress].counters.from_pod.drops[DropReason::NoFrames as usize].add(pieces);
    }
}
