//! What tells flows apart, and its keyed hash.

use std::net::{IpAddr, Ipv6Addr};

use crate::parse::{Fragment, Headers, protocol, u16_at};

/// ICMP types of echo (RFC 792, RFC 4443 §4): the queries whose flows are followed.
const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
const ECHO_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// Offset of the identifier in an ICMP query.
const QUERY_ID: usize = 4;

/// A protocol whose flows can be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Transport {
    /// ICMP or ICMPv6 echo. The asker's port is the identifier, that of the asked is 0.
    Query = 1,
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP.
    Sctp = 132,
}

impl Transport {
    /// The transport with this number, which for [`Transport::Query`] is that of ICMP in both
    /// families.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Transport> {
        match number {
            protocol::ICMP => Some(Transport::Query),
            protocol::TCP => Some(Transport::Tcp),
            protocol::UDP => Some(Transport::Udp),
            protocol::SCTP => Some(Transport::Sctp),
            _ => None,
        }
    }

    /// Name in listings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Transport::Query => "icmp",
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp => "sctp",
        }
    }
}

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its address. Never an IPv4-mapped IPv6 address: no router forwards those.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// What all packets of a flow in one direction have in common. Both ends are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The protocol.
    pub transport: Transport,
    /// Whom the packet is from.
    pub src: Endpoint,
    /// Whom it is for.
    pub dst: Endpoint,
}

impl FlowKey {
    /// The key of a packet whose first frame is `head`. `None` if it has no ports, because it is a
    /// later fragment, an ICMP message other than echo, or of another protocol.
    #[must_use]
    pub fn of_packet(head: &[u8], headers: &Headers) -> Option<FlowKey> {
        if headers.fragment == Fragment::Later {
            return None;
        }
        let (transport, src_port, dst_port) = match headers.icmp_type {
            Some(kind) => {
                let id = u16_at(head, headers.l4_offset + QUERY_ID)?;
                let (src_port, dst_port) = query_ports(kind, headers.source().is_ipv4(), id)?;
                (Transport::Query, src_port, dst_port)
            }
            None => {
                let transport = Transport::from_number(headers.protocol)
                    .filter(|transport| *transport != Transport::Query)?;
                let src_port = u16_at(head, headers.l4_offset)?;
                (transport, src_port, u16_at(head, headers.l4_offset + 2)?)
            }
        };
        Some(FlowKey {
            transport,
            src: Endpoint { address: headers.source(), port: src_port },
            dst: Endpoint { address: headers.destination(), port: dst_port },
        })
    }

    /// The key of the answers, if nobody translates.
    #[must_use]
    pub fn inverse(self) -> FlowKey {
        FlowKey { transport: self.transport, src: self.dst, dst: self.src }
    }

    /// SipHash-1-3 of the key: whoever does not know `seed` cannot make keys that meet in one
    /// place of a table.
    #[inline]
    #[must_use]
    pub(super) fn hash(&self, seed: HashSeed) -> u64 {
        let ports = u64::from(self.src.port) << 32 | u64::from(self.dst.port) << 16;
        let rest = ports | self.transport as u64;
        match (self.src.address, self.dst.address) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let addresses = u64::from(u32::from(src)) << 32 | u64::from(u32::from(dst));
                siphash13(seed, &[addresses, rest])
            }
            (src, dst) => {
                let ([a, b], [c, d]) = (address_words(src), address_words(dst));
                siphash13(seed, &[a, b, c, d, rest])
            }
        }
    }
}

/// Source and destination port in the key of an ICMP message: the asker's is the identifier.
pub(crate) fn query_ports(kind: u8, is_v4: bool, id: u16) -> Option<(u16, u16)> {
    match (is_v4, kind) {
        (true, ECHO) | (false, ECHO_V6) => Some((id, 0)),
        (true, ECHO_REPLY) | (false, ECHO_REPLY_V6) => Some((0, id)),
        _ => None,
    }
}

/// An address in 128 bits, IPv4 as IPv4-mapped IPv6.
#[inline]
pub(super) fn address_words(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    [(bits >> 64) as u64, bits as u64]
}

/// The inverse of [`address_words`].
#[inline]
pub(super) fn address_of_words([high, low]: [u64; 2]) -> IpAddr {
    Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).to_canonical()
}

/// Key of the hash: random and secret, drawn at every start.
#[derive(Clone, Copy, Debug)]
pub struct HashSeed(pub [u64; 2]);

/// SipHash (Aumasson and Bernstein, 2012) with one round per word and three at the end, over whole
/// words: the variant that hash tables use.
#[inline]
fn siphash13(HashSeed([k0, k1]): HashSeed, words: &[u64]) -> u64 {
    let mut state = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let absorb = |state: &mut [u64; 4], word: u64| {
        state[3] ^= word;
        round(state);
        state[0] ^= word;
    };
    for word in words {
        absorb(&mut state, *word);
    }
    // The last block: no bytes are left over, and the highest is the length.
    absorb(&mut state, (words.len() as u64 * 8) << 56);
    state[2] ^= 0xff;
    for _ in 0..3 {
        round(&mut state);
    }
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

#[inline]
fn round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *b = b.rotate_left(13) ^ *a;
    *a = a.rotate_left(32);
    *c = c.wrapping_add(*d);
    *d = d.rotate_left(16) ^ *c;
    *a = a.wrapping_add(*d);
    *d = d.rotate_left(21) ^ *a;
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hasher};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The standard library's hasher is SipHash-1-3 with a key of zeros.
        #[test]
        fn the_hash_is_that_of_the_standard_library(
            words in prop::collection::vec(any::<u64>(), 0..6),
        ) {
            let mut oracle = DefaultHasher::new();
            words.iter().for_each(|word| oracle.write(&word.to_le_bytes()));
            prop_assert_eq!(siphash13(HashSeed([0, 0]), &words), oracle.finish());
        }

        #[test]
        fn addresses_are_read_back_as_they_were_written(v4: u32, v6: u128) {
            let mapped = Ipv6Addr::from_bits(v6).to_ipv4_mapped().is_some();
            for address in [IpAddr::V4(v4.into()), IpAddr::V6(v6.into())] {
                prop_assert!(mapped || address_of_words(address_words(address)) == address);
            }
        }
    }

    #[test]
    fn every_part_of_a_key_and_of_the_seed_changes_the_hash() {
        let end = |address: &str, port| Endpoint { address: address.parse().unwrap(), port };
        for (a, b, c) in [("10.0.0.1", "10.0.0.2", "10.0.0.3"), ("fd00::1", "fd00::2", "fd00::3")] {
            let (src, dst) = (end(a, 1), end(b, 2));
            let key = FlowKey { transport: Transport::Tcp, src, dst };
            let hash = key.hash(HashSeed([1, 2]));
            let others = [
                FlowKey { transport: Transport::Udp, ..key },
                FlowKey { src: end(c, 1), ..key },
                FlowKey { src: end(a, 3), ..key },
                FlowKey { dst: end(c, 2), ..key },
                FlowKey { dst: end(b, 3), ..key },
                key.inverse(),
            ];
            for other in others {
                assert_ne!(other.hash(HashSeed([1, 2])), hash, "{other:?}");
            }
            assert_ne!(key.hash(HashSeed([2, 2])), hash);
            assert_ne!(key.hash(HashSeed([1, 1])), hash);
        }
    }
}
