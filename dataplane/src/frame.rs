//! Frames and packets as owned tokens, and the pool that owns the memory behind them.
//!
//! A frame is one slot of UMEM memory. Whoever has its [`Frame`] token may use the bytes; a frame
//! in a ring has no token, its holder is recorded in the pool instead. So a frame can be neither
//! leaked nor held twice, and the frame law can be counted at any time:
//! free + rx side + tx side + in work + crossing = total.
//!
//! A packet is a chain of 1 to [`CHAIN_MAX`] frames. The links live in the pool, beside the bytes.

mod bytes;

use std::sync::Arc;

use crate::xsk::area::Area;

/// Bytes of a frame: one page, the largest chunk AF_XDP takes (Documentation/networking/af_xdp.rst,
/// "XDP_UMEM_REG"). 65,549 bytes, the largest super-packet, fit into 18 of them.
pub const FRAME_BYTES: usize = 4096;

/// Where a packet starts in its first frame: the kernel leaves XDP_PACKET_HEADROOM before what it
/// receives. Our own packets start there too, so that TX metadata has room before any packet.
pub const HEADROOM: u16 = 256;

/// Frames of the longest packet: MAX_SKB_FRAGS + 1, what the kernel sends at most.
pub const CHAIN_MAX: usize = 18;

/// Link of the last frame of a chain.
const END: u32 = u32::MAX;

/// Who holds a frame that has no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// The free list.
    Free,
    /// A token: a packet in work.
    Work,
    /// The ring to another worker.
    Crossing,
    /// Fill or rx ring of the port in this slot.
    Rx(u16),
    /// Tx or completion ring of the port in this slot.
    Tx(u16),
}

#[derive(Clone, Copy, Debug)]
struct FrameState {
    next: u32,
    offset: u16,
    len: u16,
    holder: Holder,
}

/// The token of one frame.
#[derive(Debug)]
#[must_use = "a frame that is not given on is lost"]
pub struct Frame {
    index: u32,
}

/// The token of a packet: a chain of frames.
#[derive(Debug)]
#[must_use = "a packet that is not given on loses its frames"]
pub struct Packet {
    head: u32,
    tail: u32,
    frames: u16,
    len: u32,
}

impl Packet {
    /// Bytes of the packet, Ethernet header included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True when the packet has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Frames in the chain, 1 to [`CHAIN_MAX`].
    #[must_use]
    pub fn frames(&self) -> usize {
        usize::from(self.frames)
    }
}

/// One frame of a packet as rings describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset of the bytes in the area.
    pub address: u64,
    /// Their number.
    pub len: u32,
    /// Whether this is the last piece of its packet.
    pub last: bool,
}

/// Where a worker's frames are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCount {
    /// On the free list.
    pub free: u32,
    /// In fill or rx rings.
    pub rx: u32,
    /// In tx or completion rings.
    pub tx: u32,
    /// In packets that have a token.
    pub work: u32,
    /// On the way to another worker.
    pub crossing: u32,
    /// All.
    pub total: u32,
}

impl FrameCount {
    /// The frame law.
    #[must_use]
    pub fn conserved(&self) -> bool {
        self.free + self.rx + self.tx + self.work + self.crossing == self.total
    }
}

/// The frames of one worker.
#[derive(Debug)]
pub struct FramePool {
    area: Arc<Area>,
    frames: Box<[FrameState]>,
    free: Vec<u32>,
    count: FrameCount,
}

impl FramePool {
    /// Takes over all frames of `area`.
    #[must_use]
    pub fn new(area: Arc<Area>) -> FramePool {
        let total = area.frames();
        let state = FrameState { next: END, offset: 0, len: 0, holder: Holder::Free };
        FramePool {
            frames: vec![state; total as usize].into_boxed_slice(),
            // Reversed, so that the first frames are handed out first.
            free: (0..total).rev().collect(),
            count: FrameCount { free: total, total, ..FrameCount::default() },
            area,
        }
    }

    /// Where the frames are.
    #[must_use]
    pub fn count(&self) -> FrameCount {
        self.count
    }

    /// The memory behind the frames.
    #[must_use]
    pub fn area(&self) -> &Arc<Area> {
        &self.area
    }

    /// Takes a free frame.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        let index = self.free.pop()?;
        debug_assert_eq!(self.frames[index as usize].holder, Holder::Free);
        self.frames[index as usize].holder = Holder::Work;
        self.count.free -= 1;
        self.count.work += 1;
        Some(Frame { index })
    }

    /// Gives a frame back.
    #[inline]
    pub fn give(&mut self, frame: Frame) {
        let state = &mut self.frames[frame.index as usize];
        assert_eq!(state.holder, Holder::Work, "a token names a frame in work");
        state.holder = Holder::Free;
        self.count.work -= 1;
        self.count.free += 1;
        self.free.push(frame.index);
    }

    /// Gives all frames of a packet back.
    #[inline]
    pub fn release(&mut self, packet: Packet) {
        let mut index = packet.head;
        while index != END {
            let next = self.frames[index as usize].next;
            self.give(Frame { index });
            index = next;
        }
    }

    /// Hands a frame to the fill ring of `slot`; returns its address.
    #[inline]
    pub fn to_rx(&mut self, frame: Frame, slot: u16) -> u64 {
        self.frames[frame.index as usize].holder = Holder::Rx(slot);
        self.count.work -= 1;
        self.count.rx += 1;
        u64::from(frame.index) * FRAME_BYTES as u64
    }

    /// Takes back a frame that the rx ring of `slot` names. `None` when the descriptor names no
    /// frame that this ring can hold, or bytes outside of it.
    #[inline]
    pub fn from_rx(&mut self, slot: u16, address: u64, len: u32) -> Option<Packet> {
        let (index, offset) = self.locate(address)?;
        let state = self.frames.get_mut(index as usize)?;
        if state.holder != Holder::Rx(slot) || len > FRAME_BYTES as u32 - u32::from(offset) {
            return None;
        }
        *state = FrameState { next: END, offset, len: len as u16, holder: Holder::Work };
        self.count.rx -= 1;
        self.count.work += 1;
        Some(Packet { head: index, tail: index, frames: 1, len })
    }

    /// Hands a packet to the tx ring of `slot`; `write` gets each piece in order.
    #[inline]
    pub fn to_tx(&mut self, packet: Packet, slot: u16, mut write: impl FnMut(Piece)) {
        let mut index = packet.head;
        while index != END {
            let state = &mut self.frames[index as usize];
            state.holder = Holder::Tx(slot);
            let address = u64::from(index) * FRAME_BYTES as u64 + u64::from(state.offset);
            write(Piece { address, len: u32::from(state.len), last: state.next == END });
            index = state.next;
        }
        self.count.work -= u32::from(packet.frames);
        self.count.tx += u32::from(packet.frames);
    }

    /// Frees a frame that the completion ring of `slot` names; false when it names none of it.
    #[inline]
    pub fn complete(&mut self, slot: u16, address: u64) -> bool {
        let Some((index, _)) = self.locate(address) else { return false };
        let Some(state) = self.frames.get_mut(index as usize) else { return false };
        if state.holder != Holder::Tx(slot) {
            return false;
        }
        state.holder = Holder::Free;
        self.count.tx -= 1;
        self.count.free += 1;
        self.free.push(index);
        true
    }

    /// Takes all frames back that the rings of `slot` hold. Only after the port is closed, when
    /// the kernel can no longer write into them. Returns how many there were.
    pub fn reclaim_port(&mut self, slot: u16) -> u32 {
        let mut taken = 0;
        for (index, state) in self.frames.iter_mut().enumerate() {
            match state.holder {
                Holder::Rx(holder) if holder == slot => self.count.rx -= 1,
                Holder::Tx(holder) if holder == slot => self.count.tx -= 1,
                _ => continue,
            }
            state.holder = Holder::Free;
            self.count.free += 1;
            self.free.push(index as u32);
            taken += 1;
        }
        taken
    }

    /// Hands a packet to another worker; `write` gets each piece in order.
    #[inline]
    pub fn to_crossing(&mut self, packet: Packet, mut write: impl FnMut(Piece)) {
        let mut index = packet.head;
        while index != END {
            let state = &mut self.frames[index as usize];
            state.holder = Holder::Crossing;
            let address = u64::from(index) * FRAME_BYTES as u64 + u64::from(state.offset);
            write(Piece { address, len: u32::from(state.len), last: state.next == END });
            index = state.next;
        }
        self.count.work -= u32::from(packet.frames);
        self.count.crossing += u32::from(packet.frames);
    }

    /// Takes back a frame that another worker has copied.
    #[inline]
    pub fn from_crossing(&mut self, address: u64) {
        let (index, _) = self.locate(address).expect("a peer returns what it was given");
        let state = &mut self.frames[index as usize];
        assert_eq!(state.holder, Holder::Crossing, "a peer returns a frame once");
        state.holder = Holder::Free;
        self.count.crossing -= 1;
        self.count.free += 1;
        self.free.push(index);
    }

    /// Appends the frames of `more` to `packet`. Fails, giving `more` back, beyond [`CHAIN_MAX`].
    #[inline]
    pub fn append(&mut self, packet: &mut Packet, more: Packet) -> Result<(), Packet> {
        if usize::from(packet.frames + more.frames) > CHAIN_MAX {
            return Err(more);
        }
        self.frames[packet.tail as usize].next = more.head;
        packet.tail = more.tail;
        packet.frames += more.frames;
        packet.len += more.len;
        Ok(())
    }

    /// A packet of one frame with `len` undefined bytes, at [`HEADROOM`].
    pub fn packet(&mut self, len: usize) -> Option<Packet> {
        assert!(len <= FRAME_BYTES - usize::from(HEADROOM), "one frame holds {len} bytes");
        let Frame { index } = self.take()?;
        let state = &mut self.frames[index as usize];
        (state.next, state.offset, state.len) = (END, HEADROOM, len as u16);
        Some(Packet { head: index, tail: index, frames: 1, len: len as u32 })
    }

    /// Cuts a packet down to `len` bytes; frames beyond are freed.
    pub fn truncate(&mut self, packet: &mut Packet, len: usize) {
        assert!(len > 0 && len <= packet.len(), "truncate only shortens");
        let mut index = packet.head;
        let mut left = len;
        let mut frames = 1;
        while usize::from(self.frames[index as usize].len) < left {
            left -= usize::from(self.frames[index as usize].len);
            index = self.frames[index as usize].next;
            frames += 1;
        }
        let state = &mut self.frames[index as usize];
        state.len = left as u16;
        let rest = std::mem::replace(&mut state.next, END);
        if rest != END {
            self.release(Packet { head: rest, tail: packet.tail, frames: 0, len: 0 });
        }
        (packet.tail, packet.frames, packet.len) = (index, frames, len as u32);
    }

    /// Bytes of the first frame: all headers are there.
    #[inline]
    #[must_use]
    pub fn head(&self, packet: &Packet) -> &[u8] {
        let state = &self.frames[packet.head as usize];
        self.area.bytes(packet.head, state.offset, state.len)
    }

    /// Bytes of the first frame, to change.
    #[inline]
    pub fn head_mut(&mut self, packet: &mut Packet) -> &mut [u8] {
        let state = &self.frames[packet.head as usize];
        self.area.bytes_mut(packet.head, state.offset, state.len)
    }

    /// The first frame of one packet to read and of another to write.
    pub fn head_and_head_mut<'a>(
        &'a mut self,
        read: &Packet,
        write: &'a mut Packet,
    ) -> (&'a [u8], &'a mut [u8]) {
        assert_ne!(read.head, write.head, "two packets have two frames");
        let (from, to) = (&self.frames[read.head as usize], &self.frames[write.head as usize]);
        let bytes = self.area.bytes(read.head, from.offset, from.len);
        (bytes, self.area.bytes_mut(write.head, to.offset, to.len))
    }

    /// The `len` bytes before the packet: TX metadata lies there.
    pub(crate) fn before_head(&mut self, packet: &mut Packet, len: usize) -> &mut [u8] {
        let offset = usize::from(self.frames[packet.head as usize].offset);
        assert!(len <= offset, "packets start behind their headroom");
        self.area.bytes_mut(packet.head, (offset - len) as u16, len as u16)
    }

    /// Writes into a frame, as the kernel would. False if no fill ring holds it.
    pub(crate) fn write_as_kernel(&mut self, address: u64, bytes: &[u8]) -> bool {
        let (index, offset) = self.locate(address).expect("an address of the fill ring");
        self.area.bytes_mut(index, offset, bytes.len() as u16).copy_from_slice(bytes);
        matches!(self.frames[index as usize].holder, Holder::Rx(_))
    }

    /// The bytes of every frame, in order.
    pub fn pieces<'a>(&'a self, packet: &Packet) -> impl Iterator<Item = &'a [u8]> {
        let mut index = packet.head;
        std::iter::from_fn(move || {
            if index == END {
                return None;
            }
            let state = &self.frames[index as usize];
            let bytes = self.area.bytes(index, state.offset, state.len);
            index = state.next;
            Some(bytes)
        })
    }

    /// Frame index and offset of an address; `None` outside of the area.
    #[inline]
    fn locate(&self, address: u64) -> Option<(u32, u16)> {
        let index = address / FRAME_BYTES as u64;
        (index < u64::from(self.count.total))
            .then_some((index as u32, (address % FRAME_BYTES as u64) as u16))
    }
}

#[cfg(test)]
mod tests;
