//! Tests that need several crates at once.
//!
//! Owns: what the crash tests share with the daemon that they kill, besides the tests in `tests/`. Must not know: what a crate
//! keeps to itself.

mod crash;

pub use crash::{CrashStep, die_with_parent, kill_self, signal};
//! Owns: nothing but the tests in `tests/`. Must not know: what a crate keeps to itself.

pub mod qemu_img;
