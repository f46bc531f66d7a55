//! QEMU's command line: what it asks for, and the machine of ours that is the same.
//!
//! Owns: which options QEMU has and how they are written ([`Line`]), what a device's name means ([`device`]), the way from
//! there to a plan and what is not taken on it ([`Translation`]), and the way back from a plan to our flags ([`run_flags`]).
//! Must not know: KVM, how a plan is built, how a running QEMU is asked. It opens no file.

mod advice;
pub mod device;
mod flags;
mod keys;
mod line;
mod options;
mod plan;
mod shorthand;

pub use flags::{FlagsError, run_flags};
pub use keys::Keys;
pub use line::{Line, LineError, Opt};
pub use plan::{Remark, Severity, Translation, translate};
