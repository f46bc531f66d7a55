//! The lab: a machine with real KVM and stock Debian guests on a host that may have neither.
//!
//! Three machines, one inside the other:
//!
//! - the host: where this code runs. Nothing is installed on it but a few small tools, and those only by root;
//! - L1: a QEMU machine emulated with SVM, so Debian's `kvm-amd` works in it. Its root is the host's, read-only
//!   under a memory overlay, so that a program built on the host runs in L1 by the same path;
//! - L2: a guest of `treaty run` in L1, with a stock Debian kernel and a small initramfs.
//!
//! Without KVM and L1: a guest of QEMU on the host itself, with `treaty serve` behind its devices ([`VhostTest`]).
//!
//! Owns: fetching and unpacking the packages ([`Cache`], [`peers`]), the two initramfs images, booting L1 ([`Lab`]), running
//! guests in it and judging them ([`GuestTest`]), building and reading the probe ([`build_probe`]), and the suite of tests that need a real Linux guest ([`suite`]).
//!
//! Must not know: how the monitor works; it uses the `treaty` program as an operator would.

mod apt;
mod batch;
mod boot_disk;
mod cache;
mod clone;
mod cpio;
mod exec;
mod fio;
mod guest;
mod initramfs;
mod kernel;
mod l1;
mod modules;
pub mod peers;
mod probe;
mod qemu;
mod qmp;
pub mod suite;
mod tools;
mod tree;
mod tsc;
mod vhost;
mod web;

pub use batch::{Batch, Verdict};
pub use cache::{Cache, KernelFiles};
pub use cache::{target_dir, workspace_root};
pub use guest::{Expect, Guest, GuestTest, Image, Kernel};
pub use l1::{L1Script, Lab, Outcome, Place};
pub use probe::{PROBE_PASSED, ProbeFigures, ProbeMachine, ProbeReport, build_probe, probe_cargo};
pub use qmp::Qmp;
pub use tools::ensure_host_tools;
pub use tree::Tree;
pub use vhost::{Qemu, Served, VhostTest};
