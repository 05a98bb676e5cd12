//! What the fuzz targets do with their bytes.

#[path = "../../tests/harness/mod.rs"]
mod harness;

use dataplane::offload;
use dataplane::parse::{self, Parsed};
use harness::{ENDS, Node, Setup};

/// Reads the bytes as a frame, and as the first frame of a longer packet.
pub fn read(bytes: &[u8]) {
    for total in [bytes.len(), bytes.len() + 60_000] {
        let Ok(Parsed::Ip(headers)) = parse::headers(bytes, total) else { continue };
        assert!(headers.l4_offset <= headers.len && headers.len <= total);
        if let Ok(offload) = offload::of_packet(bytes, &headers) {
            for mtu in [0, 1280, 1500, 65_535] {
                let _ = offload.on_wire(bytes, &headers, mtu);
            }
        }
    }
}

/// Forwards a sequence of packets on a node in memory, which asserts both conservation laws after
/// every pass. The first byte chooses one worker or two; each packet is the index of its port, its
/// length in two bytes and its bytes.
pub fn forward(bytes: &[u8]) {
    let Some((workers, mut rest)) = bytes.split_first() else { return };
    let workers = usize::from(workers % 2) + 1;
    let mut node = Node::new(Setup { workers, frames: 256, fill: 20, tx: 32, ..Setup::default() });
    while let [port, high, low, after @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (packet, after) = after.split_at(len);
        if !packet.is_empty() {
            node.inject(ENDS[usize::from(*port) % ENDS.len()].id, packet.to_vec());
        }
        rest = after;
    }
    node.run();
}
