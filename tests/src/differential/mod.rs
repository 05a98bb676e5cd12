//! Random packets through Viaduct and through Linux, side by side.
//!
//! ```text
//!                    ┌── Viaduct: pod A, pod B, node, outside ──┐
//!   generate ──► run ┤                                          ├──► outcome ──► rules ──► report
//!                    └── Linux:   the same, routed by a kernel ─┘
//! ```
//!
//! [`compare`] sends batches of the same frames from pod A into both networks (`topology`), each
//! ended by barriers, and collects what arrives at four places (`station`). What became of one
//! frame is its `outcome`. It has to be the same in both networks, byte by byte, or what the
//! `rules` make of what Linux did, judging by the `facts` of the frame.

pub mod facts;
pub mod generate;
pub mod outcome;
pub mod plan;
pub mod rules;
pub mod station;
pub mod topology;

mod report;
mod run;

pub use report::Report;
pub use run::compare;
