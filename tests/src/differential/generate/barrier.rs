//! The frame that ends a batch: once it has arrived, all before it has arrived or never will.

use std::net::Ipv4Addr;

use super::network::{finish_ipv4, ipv4_header};
use crate::differential::facts::{ETHERNET, protocol};
use crate::differential::plan::Mac;

/// In no random payload of exactly eight bytes, in all likelihood.
const MAGIC: [u8; 4] = *b"end\n";

/// A valid UDP packet between two places, with the batch's number as payload and 0 as its own;
/// `macs` are destination and source.
#[must_use]
pub fn barrier(macs: [Mac; 2], source: Ipv4Addr, to: Ipv4Addr, batch: u32) -> Vec<u8> {
    let mut datagram = vec![0, 9, 0, 9, 0, 16, 0, 0];
    datagram.extend(MAGIC);
    datagram.extend(batch.to_be_bytes());
    let mut header = ipv4_header(source, to, 0, 64);
    header[9] = protocol::UDP;
    [&macs.concat()[..], &[8, 0], &finish_ipv4(header, &datagram)].concat()
}

/// The number of the batch that a frame ends, if it is a barrier.
#[must_use]
pub fn ended_batch(frame: &[u8]) -> Option<u32> {
    let batch = frame.get(ETHERNET + 28..)?.strip_prefix(&MAGIC)?;
    Some(u32::from_be_bytes(batch.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::facts;
    use crate::differential::generate::Generator;
    use crate::differential::plan::tests_plan;

    #[test]
    fn a_barrier_is_valid_and_names_its_batch() {
        let plan = tests_plan();
        let frame = barrier([[0; 6]; 2], plan.pod_a.0, plan.pod_b.0, 77);
        assert_eq!(ended_batch(&frame), Some(77));
        assert!(facts::of(&frame).is_some_and(|facts| facts.ip.is_some()));
    }

    #[test]
    fn a_random_frame_is_no_barrier() {
        let plan = tests_plan();
        let mut generator = Generator::new(1, &plan);
        assert!((1..1000).all(|number| ended_batch(&generator.frame(number)).is_none()));
    }
}
