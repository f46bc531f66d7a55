//! The qcow2 format, versions 2 and 3 (QEMU 10 docs/interop/qcow2.txt).
//!
//! An `Image` is a chain of qcow2 files over the stores that hold them. Its metadata is in memory in
//! pages (`pages`); requests look there and change it (`meta`), and what they miss is loaded and they look again
//! (`cx`). A request that one look can place (`near`) goes straight to the file or the store (`queue`, `direct`); all
//! others are jobs: `read`, `write`, `zero`. Compressed clusters are unpacked on threads of their own (`unpacked`,
//! `lanes`). `sync` brings changes to the disk in a safe order, `space` and `guards` say which clusters
//! may be used.

mod bytes;
mod check;
mod compress;
mod create;
mod cx;
mod direct;
mod entry;
mod geometry;
mod guards;
mod header;
mod image;
mod info;
mod lanes;
mod layout;
mod manage;
mod map;
mod meta;
mod near;
mod open;
mod pages;
mod preallocate;
mod prepare;
mod queue;
mod read;
mod rename;
mod resize;
mod run;
mod snapshot;
mod space;
mod sync;
mod tree;
mod unpacked;
mod write;
mod zero;

pub use check::{CheckReport, Repair};
pub use create::{CreateOptions, Preallocation};
pub use header::Compression;
pub use info::{Info, Measure, measure};
pub use manage::Qcow2Image;
pub use open::{Backing, Qcow2Options};
pub(crate) use open::{open, open_on};
pub use snapshot::Snapshot;
