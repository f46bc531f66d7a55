//! Tests that need several crates at once.
//!
//! Owns: what the crash tests share with the daemon that they kill, the judges and the store of the image tests, a machine for
//! register-level tests, besides the tests in `tests/`. Must not know: what a crate keeps to itself.

mod crash;
pub mod platter;
pub mod qemu_img;
pub mod qtest;
pub mod recorder;
pub mod script;

pub use crash::{CrashStep, die_with_parent, kill_self, signal};
