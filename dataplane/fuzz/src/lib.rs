//! What the fuzz targets do with their bytes.

mod bytes;
mod conntrack;
#[path = "../../tests/harness/mod.rs"]
mod harness;
mod nat;
mod sequence;

use std::cell::RefCell;

use dataplane::offload::{self, Hints};
use dataplane::parse::{self, Parsed};
use harness::ENDS;
use harness::input::Nodes;

pub use conntrack::conntrack;
pub use nat::nat;
pub use sequence::nat_sequence;

/// Reads the bytes as a frame, and as the first frame of a longer packet.
pub fn read(bytes: &[u8]) {
    for total in [bytes.len(), bytes.len() + 60_000] {
        let Ok(Parsed::Ip(headers)) = parse::headers(bytes, total) else { continue };
        assert!(headers.l4_offset <= headers.len && headers.len <= total);
        if let Ok(offload) = offload::of_packet(bytes, &headers, Hints::Marker) {
            for mtu in [0, 1280, 1500, 65_535] {
                let _ = offload.on_wire(bytes, &headers, mtu);
            }
        }
    }
}

/// Forwards a sequence of packets on a node in memory, which asserts both conservation laws after
/// every pass, and that nothing is under way at the end: see [`harness::input`].
pub fn forward(bytes: &[u8]) {
    thread_local! {
        static NODES: RefCell<Nodes> = RefCell::new(Nodes::new());
    }
    NODES.with_borrow_mut(|nodes| {
        let node = nodes.play(bytes);
        for end in ENDS {
            drop(node.sent(end.id));
        }
    });
}
