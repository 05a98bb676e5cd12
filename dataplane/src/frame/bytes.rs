//! The bytes of packets that lie in several frames: made, copied, joined and summed.

use super::{CHAIN_MAX, END, FRAME_BYTES, Frame, FramePool, FrameState, HEADROOM, Packet};
use crate::checksum::Sum;

impl FramePool {
    /// A packet of `len` undefined bytes, in as many frames as it takes. `None`, and nothing
    /// taken, when there are too few, or it takes more than [`CHAIN_MAX`].
    pub fn chain(&mut self, len: usize) -> Option<Packet> {
        const ROOM: usize = FRAME_BYTES - HEADROOM as usize;
        let frames = len.div_ceil(ROOM).max(1);
        if frames > CHAIN_MAX || self.free.len() < frames {
            return None;
        }
        let mut packet = self.packet(len.min(ROOM))?;
        for index in 1..frames {
            let piece = self.packet((len - index * ROOM).min(ROOM)).expect("counted above");
            self.append(&mut packet, piece).expect("counted above");
        }
        Some(packet)
    }

    /// Fills `target` from its byte `to` on with the bytes of `source` from `from` on. Panics when
    /// `source` is shorter, or `to` is not in the first frame: the caller has both lengths.
    pub fn copy_between(&mut self, source: &Packet, from: usize, target: &mut Packet, to: usize) {
        let area = self.area.clone();
        let (mut index, mut at, mut skip) = (target.head, from, to);
        while index != END {
            let state = &self.frames[index as usize];
            let out = &mut area.bytes_mut(index, state.offset, state.len)[skip..];
            self.copy_out(source, at, out);
            (index, at, skip) = (state.next, at + out.len(), 0);
        }
    }

    /// Copies bytes `from..from + out.len()` of the packet into `out`. Panics when the packet is
    /// shorter: the caller has its length.
    pub fn copy_out(&self, packet: &Packet, mut from: usize, out: &mut [u8]) {
        let mut done = 0;
        for piece in self.pieces(packet) {
            if done == out.len() {
                return;
            }
            if from >= piece.len() {
                from -= piece.len();
                continue;
            }
            let n = (piece.len() - from).min(out.len() - done);
            out[done..done + n].copy_from_slice(&piece[from..from + n]);
            done += n;
            from = 0;
        }
        assert_eq!(done, out.len(), "the packet has the bytes that were asked for");
    }

    /// A packet with a copy of `bytes`, in as many frames as it takes.
    pub fn packet_from<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> Option<Packet> {
        const ROOM: usize = FRAME_BYTES - HEADROOM as usize;
        let mut packet: Option<Packet> = None;
        for mut bytes in pieces {
            while !bytes.is_empty() {
                let n = bytes.len().min(ROOM);
                let Some(mut piece) = self.packet(n) else {
                    if let Some(packet) = packet {
                        self.release(packet);
                    }
                    return None;
                };
                self.head_mut(&mut piece).copy_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                packet = match packet.take() {
                    None => Some(piece),
                    Some(mut chain) => match self.append(&mut chain, piece) {
                        Ok(()) => Some(chain),
                        Err(piece) => {
                            self.release(piece);
                            self.release(chain);
                            return None;
                        }
                    },
                };
            }
        }
        packet
    }

    /// Appends the bytes of `more` behind its first `skip`, which lie in its first frame. They go
    /// into the room behind the packet's last byte as far as they fit; a frame that has some left
    /// becomes a piece of the packet, the others are freed. Fails, giving `more` back, where the
    /// packet could get more than [`CHAIN_MAX`] frames.
    pub fn pour(&mut self, packet: &mut Packet, more: Packet, skip: usize) -> Result<(), Packet> {
        let fits = more.len() - skip <= self.room_behind(packet);
        if !fits && usize::from(packet.frames + more.frames) > CHAIN_MAX {
            return Err(more);
        }
        packet.len += more.len - skip as u32;
        let (mut index, mut skip) = (more.head, skip as u16);
        while index != END {
            let FrameState { next, offset, len, holder } = self.frames[index as usize];
            let n = self.room_behind(packet).min(usize::from(len - skip)) as u16;
            let tail = &mut self.frames[packet.tail as usize];
            let room = self.area.bytes_mut(packet.tail, tail.offset + tail.len, n);
            room.copy_from_slice(self.area.bytes(index, offset + skip, n));
            tail.len += n;
            let (offset, len) = (offset + skip + n, len - skip - n);
            if len == 0 {
                self.give(Frame { index });
            } else {
                tail.next = index;
                self.frames[index as usize] = FrameState { next: END, offset, len, holder };
                packet.tail = index;
                packet.frames += 1;
            }
            (index, skip) = (next, 0);
        }
        Ok(())
    }

    /// Unused bytes behind the last one of a packet.
    fn room_behind(&self, packet: &Packet) -> usize {
        let tail = &self.frames[packet.tail as usize];
        FRAME_BYTES - usize::from(tail.offset) - usize::from(tail.len)
    }

    /// The sum of the packet's bytes from `start` on.
    #[must_use]
    pub fn sum_from(&self, packet: &Packet, start: usize) -> Sum {
        let mut skip = start;
        self.pieces(packet).fold(Sum::default(), |sum, piece| {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            sum.add_bytes(&piece[skipped..])
        })
    }
}
