//! IPv4 packets that are longer than their way takes, and whose sender lets routers fragment them,
//! leave in pieces.

use super::exit::Exit;
use super::{Direction, Worker};
use crate::crossing::Routed;
use crate::drop::DropReason;
use crate::fragment::{FRAGMENT_HEADER_BYTES_MAX, Fragmenter, LongPacket};
use crate::frame::Packet;
use crate::parse::ETHERNET_BYTES;
use crate::port::{PacketIo, WorkerId};
use crate::tables::Tables;

/// Where fragments go, and whose they are.
#[derive(Clone, Copy)]
pub(super) struct Cutter {
    /// Bytes of the longest IP packet that can leave as one.
    longest: usize,
    /// The worker of the port that they leave by.
    worker: WorkerId,
    /// Whose counters count what is dropped.
    port: usize,
    direction: Direction,
}

impl Cutter {
    /// In the from-pod half.
    pub fn from_pod(ingress: usize, exit: &Exit) -> Cutter {
        let (longest, worker) = (exit.longest, exit.worker);
        Cutter { longest, worker, port: ingress, direction: Direction::FromPod }
    }

    /// In the to-pod half, by a port of the worker `home` whose interface takes `longest` bytes.
    pub fn to_pod(egress: usize, home: WorkerId, longest: usize) -> Cutter {
        Cutter { longest, worker: home, port: egress, direction: Direction::ToPod }
    }
}

impl<P: PacketIo> Worker<P> {
    /// Fragments a packet and passes the fragments on.
    pub(super) fn fragment(
        &mut self,
        tables: &Tables,
        mut packet: Packet,
        mut routed: Routed,
        cutter: Cutter,
    ) {
        // No fragment has all that the checksum covers.
        if let Some(open) = routed.offload.partial.take() {
            self.complete_checksum(&mut packet, open);
        }
        match self.fragmenter(&packet, cutter.longest) {
            Ok(mut fragmenter) => {
                self.send_fragments(tables, &packet, routed, cutter, &mut fragmenter);
                // Received once; each fragment but one was generated here.
                self.pool.release(packet);
            }
            Err(reason) => self.discard(cutter.port, cutter.direction, packet, reason),
        }
    }

    fn fragmenter(&self, packet: &Packet, longest: usize) -> Result<Fragmenter, DropReason> {
        let head = self.pool.head(packet);
        let header_words = head.get(ETHERNET_BYTES).ok_or(DropReason::TooShort)? & 0x0f;
        let header_len = ETHERNET_BYTES + 4 * usize::from(header_words);
        Fragmenter::new(LongPacket {
            header: head.get(..header_len).ok_or(DropReason::TooShort)?,
            l3_offset: ETHERNET_BYTES,
            payload_bytes: packet.len() - header_len,
            mtu: longest as u32,
        })
        // The parser has excluded all but a fragment that no reassembly would take, and a route
        // whose MTU is below what IPv4 needs.
        .map_err(|_| DropReason::FragmentTooSmall)
    }

    fn send_fragments(
        &mut self,
        tables: &Tables,
        packet: &Packet,
        mut routed: Routed,
        cutter: Cutter,
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
            self.pass_on(tables, cutter.port, cutter.worker, piece, routed);
            left -= 1;
        }
        self.count_lost_pieces(cutter.port, cutter.direction, left);
    }

    /// Out of frames in the middle: what is missing is lost, as on a wire.
    pub(super) fn count_lost_pieces(&self, port: usize, direction: Direction, pieces: usize) {
        let pieces = pieces as u64;
        self.counters.dropped.add(pieces);
        let counters = &self.ports[port].counters;
        let counters = match direction {
            Direction::FromPod => &counters.from_pod,
            Direction::ToPod => &counters.to_pod,
        };
        counters.drops[DropReason::NoFrames as usize].add(pieces);
    }
}
