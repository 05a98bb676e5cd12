//! Random packets through Viaduct and through Linux side by side.

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
