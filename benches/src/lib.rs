//! What the benchmarks share: the report, instruction counts by callgrind, the cache-line probe.
//!
//! Owns: the form of a report (a table, or one JSON object), and how a figure is taken.
//! Must not know: what is measured; each benchmark is a binary of its own.

pub mod callgrind;
pub mod cores;
mod report;

pub use report::{Better, Case, Report, median};
