//! Tests without a device: fakes of configuration space and registers, most of them hostile.
extern crate std;

mod fakes;
mod mmio;
mod pci;
