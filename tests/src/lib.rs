//! Tests that need several crates at once.
//!
//! Owns: nothing but the tests in `tests/`. Must not know: what a crate keeps to itself.
