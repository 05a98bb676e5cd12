//! The atomics of everything that two threads share, switchable to loom's so that the protocols
//! can be model-checked (`RUSTFLAGS="--cfg loom"`).

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
