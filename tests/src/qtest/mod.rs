//! Register-level tests over QEMU's qtest protocol: our machine, and a session that drives it or QEMU's.

mod command;
pub mod machine;
mod session;

pub use command::run;
pub use session::Session;
