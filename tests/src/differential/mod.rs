//! Random packets through Viaduct and through Linux side by side.

pub mod facts;
pub mod generate;
pub mod outcome;
pub mod plan;
pub mod rules;
pub mod station;
pub mod topology;

mod run;

pub use run::{Report, compare};
