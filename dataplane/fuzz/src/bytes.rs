//! Takes an input apart. An input that ends goes on with zeros, so that every input means
//! something.

#![allow(dead_code)] // Every target takes other parts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is left of an input.
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// A number below `end`, which is 256 at most.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// One of these.
    pub fn choice<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// The next two bytes, the higher one first.
    pub fn number(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    /// The next address: four bytes or sixteen. One that is IPv4 in IPv6 is changed to another.
    pub fn address(&mut self, is_v4: bool) -> IpAddr {
        if is_v4 {
            return Ipv4Addr::from(self.array::<4>()).into();
        }
        let address = Ipv6Addr::from(self.array::<16>());
        match address.to_ipv4_mapped() {
            Some(_) => Ipv6Addr::from_bits(address.to_bits() | 1 << 127).into(),
            None => address.into(),
        }
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.0.len().min(N);
        let (bytes, rest) = self.0.split_at(taken);
        array[..taken].copy_from_slice(bytes);
        self.0 = rest;
        array
    }
}
