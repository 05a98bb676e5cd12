//! Values by IP prefix, found by the longest one that covers an address.
//!
//! A tree bitmap (Eatherton, Varghese, Dittia: "Tree Bitmap: Hardware/Software IP Lookups with
//! Incremental Updates", 2004): a node stands for [`STRIDE`] bits of the address, and two bitmaps
//! say which prefixes end in it and which children it has. Nodes are shared between clones; a
//! change copies those on its path that another clone still uses, and no others.

use std::iter;
use std::mem;
use std::sync::Arc;

/// Bits of the address per node: the prefixes that end in a node, and its children, then fit a
/// `u64` each.
const STRIDE: u8 = 6;

/// For the bits of an address within a node: the prefixes among the node's 63 that cover it.
const COVERING: [u64; 64] = covering();

/// Two reference counts stand before what an `Arc` points to.
const ARRAY_HEAD_BYTES: usize = 2 * size_of::<usize>();

/// Maps prefixes to values. Addresses are left-aligned: the first bit of either family is bit 127.
///
/// The first bit of an address chooses a half, and nodes divide the rest. So they start at bits 1,
/// 7, 13, 19, 25 and 31, 43, 61, 127: the usual lengths (/24, /32, /48, /64, /128) come late in a
/// node and share it with their neighbors, where a node for each would start with them otherwise.
#[derive(Clone, Debug)]
pub(crate) struct PrefixMap<V> {
    /// Of the prefix of length 0.
    default: Option<V>,
    halves: [Node<V>; 2],
    size: Size,
}

/// What a map consists of, `halves` apart.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    values: usize,
    nodes: usize,
    /// Arrays of nodes or of values.
    arrays: usize,
}

#[derive(Clone, Debug)]
struct Node<V> {
    /// Bits before those that the node stands for.
    skip: Skip,
    /// Bit `(1 << len) - 1 + prefix`: whether that prefix, of `len` more bits, has a value.
    internal: u64,
    /// Bit `chunk`: whether there is a child for the next six bits being `chunk`.
    external: u64,
    /// One for each bit of `external`, in order.
    children: Arc<[Node<V>]>,
    /// One for each bit of `internal`, in order.
    values: Arc<[V]>,
}

/// Bits of the address that all below a node share, left-aligned, so that no chain of nodes with
/// one child each stands for them; and their number in the lowest bits.
#[derive(Clone, Copy, Debug, Default)]
struct Skip(u64);

impl<V> Default for PrefixMap<V> {
    fn default() -> PrefixMap<V> {
        PrefixMap { default: None, halves: Default::default(), size: Size::default() }
    }
}

impl<V> Default for Node<V> {
    fn default() -> Node<V> {
        Node {
            skip: Skip::default(),
            internal: 0,
            external: 0,
            children: Arc::default(),
            values: Arc::default(),
        }
    }
}

impl<V: Copy> PrefixMap<V> {
    /// Sets the value of a prefix, in place of what it had. Bits beyond `len` do not count.
    pub(crate) fn insert(&mut self, prefix: u128, len: u8, value: V) {
        let Some((half, mut rest, mut len)) = split(prefix, len) else {
            self.size.values += usize::from(self.default.is_none());
            self.default = Some(value);
            return;
        };
        let mut node = &mut self.halves[half];
        loop {
            node.make_way(rest, len, &mut self.size);
            (rest, len) = (rest << node.skip.len(), len - node.skip.len());
            if len < STRIDE {
                return node.set(place(rest, len), value, &mut self.size);
            }
            node = node.child_or_new(chunk(rest), &mut self.size);
            (rest, len) = (rest << STRIDE, len - STRIDE);
        }
    }

    /// Forgets a prefix, if it has a value.
    pub(crate) fn remove(&mut self, prefix: u128, len: u8) {
        let Some((half, rest, len)) = split(prefix, len) else {
            self.size.values -= usize::from(self.default.take().is_some());
            return;
        };
        let half = &mut self.halves[half];
        // Looked for first: what is not there copies nothing.
        if half.has(rest, len) {
            half.remove(rest, len, &mut self.size);
        }
    }

    /// The value of the longest prefix that covers `address`.
    #[inline]
    pub(crate) fn lookup(&self, address: u128) -> Option<V> {
        let mut node = &self.halves[usize::from(address >> 127 == 1)];
        let mut rest = address << 1;
        let mut best = None;
        loop {
            // Most nodes skip nothing: a branch that is foreseen beats a shift that must be done.
            if node.skip.len() > 0 {
                if !node.skip.covers(rest) {
                    break;
                }
                rest <<= node.skip.len();
            }
            let chunk = chunk(rest);
            let covering = node.internal & COVERING[chunk];
            if covering != 0 {
                best = Some((node, covering));
            }
            if node.external >> chunk & 1 == 0 {
                break;
            }
            node = &node.children[rank(node.external, chunk)];
            rest <<= STRIDE;
        }
        let Some((node, covering)) = best else { return self.default };
        // Longer prefixes have higher bits.
        Some(node.values[rank(node.internal, covering.ilog2() as usize)])
    }

    /// Prefixes that have a value.
    pub(crate) fn len(&self) -> usize {
        self.size.values
    }

    /// Memory in bytes behind this value, what the allocator adds apart.
    pub(crate) fn bytes(&self) -> usize {
        let Size { values, nodes, arrays } = self.size;
        values * size_of::<V>() + nodes * size_of::<Node<V>>() + arrays * ARRAY_HEAD_BYTES
    }
}

impl<V: Copy> Node<V> {
    fn is_empty(&self) -> bool {
        self.internal == 0 && self.external == 0
    }

    /// Makes the node one that the prefix passes or ends in: an empty one takes its place as far
    /// down as it can; one that skips more than they share moves down, below a new one.
    fn make_way(&mut self, rest: u128, len: u8, size: &mut Size) {
        let len = len / STRIDE * STRIDE;
        if self.is_empty() {
            self.skip = Skip::new(rest, len.min(Skip::LEN_MAX));
            return;
        }
        let shared = self.skip.shared(rest).min(len);
        if shared < self.skip.len() {
            let (above, chunk, below) = self.skip.cut(shared);
            let child = Node { skip: below, ..mem::take(self) };
            *self = Node {
                skip: above,
                external: 1 << chunk,
                children: Arc::new([child]),
                ..Node::default()
            };
            size.nodes += 1;
            size.arrays += 1;
        }
    }

    fn child_or_new(&mut self, chunk: usize, size: &mut Size) -> &mut Node<V> {
        let rank = rank(self.external, chunk);
        if self.external >> chunk & 1 == 0 {
            self.external |= 1 << chunk;
            size.nodes += 1;
            size.arrays += usize::from(self.children.is_empty());
            put(&mut self.children, rank, Node::default());
        }
        &mut Arc::make_mut(&mut self.children)[rank]
    }

    fn set(&mut self, place: usize, value: V, size: &mut Size) {
        let rank = rank(self.internal, place);
        if self.internal >> place & 1 == 1 {
            Arc::make_mut(&mut self.values)[rank] = value;
            return;
        }
        self.internal |= 1 << place;
        size.values += 1;
        size.arrays += usize::from(self.values.is_empty());
        put(&mut self.values, rank, value);
    }

    fn has(&self, mut rest: u128, mut len: u8) -> bool {
        let mut node = self;
        while node.skip.len() <= len && node.skip.covers(rest) {
            (rest, len) = (rest << node.skip.len(), len - node.skip.len());
            if len < STRIDE {
                return node.internal >> place(rest, len) & 1 == 1;
            }
            let chunk = chunk(rest);
            if node.external >> chunk & 1 == 0 {
                return false;
            }
            node = &node.children[rank(node.external, chunk)];
            (rest, len) = (rest << STRIDE, len - STRIDE);
        }
        false
    }

    /// Removes a prefix that has a value, and the nodes that nothing needs then.
    fn remove(&mut self, rest: u128, len: u8, size: &mut Size) {
        let (rest, len) = (rest << self.skip.len(), len - self.skip.len());
        if len < STRIDE {
            let place = place(rest, len);
            self.internal &= !(1 << place);
            take(&mut self.values, rank(self.internal, place));
            size.values -= 1;
            size.arrays -= usize::from(self.values.is_empty());
        } else {
            let chunk = chunk(rest);
            let rank = rank(self.external, chunk);
            let child = &mut Arc::make_mut(&mut self.children)[rank];
            child.remove(rest << STRIDE, len - STRIDE, size);
            if child.is_empty() {
                self.external &= !(1 << chunk);
                take(&mut self.children, rank);
                size.nodes -= 1;
                size.arrays -= usize::from(self.children.is_empty());
            }
        }
        self.join_only_child(size);
    }

    /// Takes the place of the only child, if it is all there is and the skip has room for both.
    fn join_only_child(&mut self, size: &mut Size) {
        if let (0, [child]) = (self.internal, &*self.children) {
            let chunk = self.external.trailing_zeros() as usize;
            if let Some(skip) = self.skip.join(chunk, child.skip) {
                *self = Node { skip, ..child.clone() };
                size.nodes -= 1;
                size.arrays -= 1;
            }
        }
    }
}

impl Skip {
    /// Whole chunks that leave room for the length.
    const LEN_MAX: u8 = 54;

    /// The bits of the length.
    const LEN_MASK: u64 = 0x3f;

    /// The first `len` bits: whole chunks, and at most `LEN_MAX`.
    fn new(rest: u128, len: u8) -> Skip {
        let bits = (rest >> 64) as u64;
        Skip(bits & !(u64::MAX >> len) | u64::from(len))
    }

    #[inline]
    fn len(self) -> u8 {
        (self.0 & Self::LEN_MASK) as u8
    }

    /// The bits, left-aligned as those of an address.
    fn bits(self) -> u128 {
        u128::from(self.0 & !Self::LEN_MASK) << 64
    }

    /// Whether `rest` begins with these bits.
    #[inline]
    fn covers(self, rest: u128) -> bool {
        let differ = (rest >> 64) as u64 ^ self.0;
        // In two steps, because a shift by 64 is none.
        differ >> (64 - Self::LEN_MAX) >> (Self::LEN_MAX - self.len()) == 0
    }

    /// How many bits, in whole chunks, `rest` begins with.
    fn shared(self, rest: u128) -> u8 {
        let same = ((rest >> 64) as u64 ^ self.0).leading_zeros() as u8;
        same.min(self.len()) / STRIDE * STRIDE
    }

    /// What is before, in and after the chunk at bit `at`.
    fn cut(self, at: u8) -> (Skip, usize, Skip) {
        let rest = self.bits() << at;
        let after = Skip::new(rest << STRIDE, self.len() - at - STRIDE);
        (Skip::new(self.bits(), at), chunk(rest), after)
    }

    /// The reverse of a cut, if it fits.
    fn join(self, chunk: usize, after: Skip) -> Option<Skip> {
        let len = self.len() + STRIDE + after.len();
        let chunk = (chunk as u128) << (128 - STRIDE) >> self.len();
        let after = after.bits() >> (self.len() + STRIDE);
        (len <= Self::LEN_MAX).then(|| Skip::new(self.bits() | chunk | after, len))
    }
}

/// The half of a prefix, and what is left of its bits and length. `None` for length 0.
fn split(prefix: u128, len: u8) -> Option<(usize, u128, u8)> {
    Some((usize::from(prefix >> 127 == 1), prefix << 1, len.checked_sub(1)?))
}

/// The bits that choose a child.
#[inline]
fn chunk(rest: u128) -> usize {
    (rest >> (128 - STRIDE)) as usize
}

/// The bit of a prefix of `len` more bits, less than [`STRIDE`], in a node's `internal`.
fn place(rest: u128, len: u8) -> usize {
    (1 << len) - 1 + (chunk(rest) >> (STRIDE - len))
}

/// How many bits of `map` stand before `bit`.
#[inline]
fn rank(map: u64, bit: usize) -> usize {
    (map & ((1 << bit) - 1)).count_ones() as usize
}

fn put<T: Clone>(array: &mut Arc<[T]>, index: usize, item: T) {
    let (before, after) = array.split_at(index);
    let items = before.iter().cloned().chain(iter::once(item)).chain(after.iter().cloned());
    *array = items.collect();
}

fn take<T: Clone>(array: &mut Arc<[T]>, index: usize) {
    *array = array[..index].iter().chain(&array[index + 1..]).cloned().collect();
}

const fn covering() -> [u64; 64] {
    let mut table = [0; 64];
    let mut chunk = 0;
    while chunk < table.len() {
        let mut len = 0;
        while len < STRIDE {
            table[chunk] |= 1 << ((1 << len) - 1 + (chunk >> (STRIDE - len)));
            len += 1;
        }
        chunk += 1;
    }
    table
}

#[cfg(test)]
mod tests;
