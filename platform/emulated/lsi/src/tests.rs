//! A driver's view of the controller: small scripts in guest memory, register by register.

mod commands;
mod hostile;
mod rig;
mod scripts;
