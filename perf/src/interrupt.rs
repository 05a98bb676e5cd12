//! Ctrl-C: ends the measurement at its next pause, so that everything it made is removed on the
//! way out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM};

/// How soon an interrupt ends a pause.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on SIGINT and SIGTERM are remembered instead of ending the process at once.
///
/// # Errors
/// When the kernel refuses the signal handlers.
pub fn watch() -> Result<()> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, flag.clone()).context("watch for signals")?;
    }
    Ok(())
}

/// # Errors
/// When the measurement was interrupted.
pub fn check() -> Result<()> {
    // Relaxed: the flag orders nothing.
    if INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
        bail!("interrupted; everything is removed");
    }
    Ok(())
}

/// Lets time pass.
///
/// # Errors
/// As soon as the measurement is interrupted.
pub fn pause(duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(LOOK_AGAIN));
    }
}
