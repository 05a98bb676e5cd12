//! Random packets through Viaduct and through Linux.

use e2e::daemon::{PortMode, Setup};
use e2e::differential;

#[test]
#[ignore = "needs root"]
fn random_packets_fare_as_with_linux() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let count = number("VIADUCT_DIFFERENTIAL_PACKETS").unwrap_or(100_000);
    let seed = number("VIADUCT_DIFFERENTIAL_SEED").unwrap_or(1) as u64;
    let report =
        differential::compare(&Setup::new(PortMode::Auto, 2), seed, count as usize).unwrap();
    println!("seed {seed}: {report}");
    assert!(report.differences.is_empty());
}
