//! Guest memory: regions, whole-range translation, copies and pinned buffers.
//!
//! Owns: [`GuestMemory`], the immutable set of mapped regions of one guest, and everything that turns a guest
//! physical address into a host one. It is the only crate that hands out host pointers.
//! Must not know: rings, devices, KVM. The monitor, a vhost-user connection and a test rig each build one.
//!
//! A range is always translated whole (start *and* end), and may cross adjoining regions. Bytes in guest memory
//! can change at any moment: they are copied, never borrowed as `&[u8]`. Memory that another process owns can go away as
//! well: [`FaultWatch`].
#![allow(unsafe_code)]

mod dirty;
mod fault;
mod guest;
mod iotlb;
mod region;
mod userfault;

pub use dirty::{DIRTY_PAGE, DirtyLog};
pub use fault::FaultWatch;
pub use guest::{GuestMemory, MemoryError};
pub use iotlb::{Access, Iotlb, Miss};
pub use region::{HostRange, Region, RegionError};
pub use userfault::Userfault;
