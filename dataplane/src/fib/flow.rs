//! A number for a flow, so that all its packets take one way.

use std::net::IpAddr;

/// The bits of pi after the point: numbers without a pattern.
const KEYS: [u64; 4] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89];

/// Hash of a flow, the same for all its packets, and spread evenly over all 32 bits. `ports`:
/// source and destination port, or 0 for protocols and fragments without.
#[inline]
#[must_use]
pub fn flow_hash(src: IpAddr, dst: IpAddr, protocol: u8, ports: u32) -> u32 {
    let addresses = fold(word(src) ^ KEYS[0], word(dst) ^ KEYS[1]);
    let rest = u64::from(ports) << 8 | u64::from(protocol);
    (fold(addresses ^ KEYS[2], rest ^ KEYS[3]) >> 32) as u32
}

/// An address as one word.
fn word(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => {
            let address = u128::from(address);
            fold((address >> 64) as u64 ^ KEYS[2], address as u64 ^ KEYS[3])
        }
    }
}

/// Both halves of the product, in which each bit depends on all of both factors.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_field_of_a_flow_counts_and_their_order_too() {
        for [a, b, c] in [["10.0.0.1", "10.0.0.2", "10.0.1.1"], ["fd00::1", "fd00::2", "fd00:1::1"]]
        {
            let [a, b, c] = [ip(a), ip(b), ip(c)];
            let base = flow_hash(a, b, 6, 1);
            assert_eq!(flow_hash(a, b, 6, 1), base);
            for (src, dst, protocol, ports) in
                [(b, a, 6, 1), (c, b, 6, 1), (a, c, 6, 1), (a, b, 17, 1), (a, b, 6, 2)]
            {
                assert_ne!(flow_hash(src, dst, protocol, ports), base);
            }
        }
    }

    /// 4096 flows that differ in few bits, in 16 classes by their highest bits: 256 each, and in
    /// random numbers no class is six standard deviations (of 15.5) away.
    fn assert_even(flow: impl Fn(u32) -> u32) {
        let mut counts = [0_u32; 16];
        for n in 0..4096 {
            counts[(flow(n) >> 28) as usize] += 1;
        }
        assert!(counts.iter().all(|count| count.abs_diff(256) < 93), "{counts:?}");
    }

    #[test]
    fn flows_that_differ_in_few_bits_spread_evenly() {
        let (a, b) = (ip("10.244.1.2"), ip("10.244.2.2"));
        assert_even(|n| flow_hash(a, b, 6, (32768 + n) << 16 | 80));
        assert_even(|n| flow_hash(a, b, 17, 53 << 16 | n));
        assert_even(|n| flow_hash(IpAddr::V4((0x0af4_0000 + n).into()), b, 6, 443));
        let v6 = |n: u32| IpAddr::V6((0xfd00_u128 << 112 | u128::from(n)).into());
        assert_even(|n| flow_hash(v6(n), v6(7), 6, 443));
        assert_even(|n| flow_hash(v6(1), v6(n), 58, 0));
    }
}
