//! Conversations through host ports, as the fuzz target `nat_sequence` plays them: its seeds, and
//! some at random, also where nobody fuzzes.

#[path = "../fuzz/src/bytes.rs"]
mod bytes;
mod harness;
#[path = "../fuzz/src/sequence/mod.rs"]
mod sequence;

use std::path::Path;

use proptest::prelude::*;
use sequence::nat_sequence;

#[test]
fn everybody_hears_whom_he_has_asked() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/nat_sequence");
    let mut played = 0;
    for entry in std::fs::read_dir(folder).expect("the seeds are committed") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        nat_sequence(&std::fs::read(path).expect("a seed"));
        played += 1;
    }
    assert!(played > 20, "{played} seeds");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn everybody_hears_whom_he_has_asked_in_any_order(
        bytes in prop::collection::vec(any::<u8>(), 1..400),
    ) {
        nat_sequence(&bytes);
    }
}
