//! Our own drivers (`virtio/driver`) over the register rigs: the code that runs bare-metal in the probe, in process.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use treaty_memory::GuestMemory;
use treaty_virtio_device::{QueueMemory, VirtioDevice};
use treaty_virtio_driver::pci::{Function, MemoryWindow, PciBus, PciTransport, scan, virtio_device_id};
use treaty_virtio_driver::{DmaMemory, MmioTransport, Registers};
use treaty_virtio_ring::{RawArea, RingMemory};
use treaty_virtio_transport::RingOffer;

use crate::host::GuestBus;
use crate::memory::Allocator;
use crate::rig::{self, MmioRig, PciRig};

/// A range of a rig's addresses.
#[derive(Clone)]
pub struct RigRegisters {
    guest: Arc<GuestBus>,
    base: u64,
    len: usize,
}

impl RigRegisters {
    fn load(&self, offset: usize, width: usize) -> u32 {
        assert!(offset + width <= self.len, "a driver reads outside its window");
        self.guest.load(self.base + offset as u64, width)
    }

    fn store(&self, offset: usize, value: u32, width: usize) {
        assert!(offset + width <= self.len, "a driver writes outside its window");
        self.guest.store(self.base + offset as u64, value, width);
    }
}

impl Registers for RigRegisters {
    fn len(&self) -> usize {
        self.len
    }
    fn read8(&self, offset: usize) -> u8 {
        self.load(offset, 1) as u8
    }
    fn read16(&self, offset: usize) -> u16 {
        self.load(offset, 2) as u16
    }
    fn read32(&self, offset: usize) -> u32 {
        self.load(offset, 4)
    }
    fn write8(&self, offset: usize, value: u8) {
        self.store(offset, value.into(), 1);
    }
    fn write16(&self, offset: usize, value: u16) {
        self.store(offset, value.into(), 2);
    }
    fn write32(&self, offset: usize, value: u32) {
        self.store(offset, value, 4);
    }
}

/// A rig's PCI segment, by ECAM.
#[derive(Clone)]
pub struct RigPci(Arc<GuestBus>);

impl PciBus for RigPci {
    type Registers = RigRegisters;

    fn read(&self, function: Function, offset: u16) -> u32 {
        self.0.load(ecam_address(function, offset), 4)
    }

    fn write(&self, function: Function, offset: u16, value: u32) {
        self.0.store(ecam_address(function, offset), value, 4);
    }

    fn map(&self, addr: u64, len: u64) -> Option<RigRegisters> {
        Some(RigRegisters {
            guest: self.0.clone(),
            base: addr,
            len: usize::try_from(len).ok()?,
        })
    }
}

fn ecam_address(function: Function, offset: u16) -> u64 {
    rig::pci::ECAM + (u64::from(function.number()) << 12) + u64::from(offset & 0xffc)
}

/// Guest memory as a driver allocates from it.
#[derive(Clone)]
pub struct RigDma {
    memory: QueueMemory,
    allocator: Rc<RefCell<Allocator>>,
}

impl RigDma {
    /// All of `memory` that rigs leave to drivers.
    pub fn new(memory: GuestMemory) -> Self {
        Self {
            memory: QueueMemory(memory),
            allocator: Rc::default(),
        }
    }
}

// SAFETY: everything is `QueueMemory`'s, which lives as long as `self`.
unsafe impl RingMemory for RigDma {
    type Area = RawArea;

    fn map(&self, addr: u64, len: usize) -> Option<RawArea> {
        self.memory.map(addr, len)
    }

    fn read(&self, addr: u64, dst: &mut [u8]) -> bool {
        self.memory.read(addr, dst)
    }
}

impl DmaMemory for RigDma {
    fn allocate(&self, len: usize, align: usize) -> Option<u64> {
        let addr = self.allocator.borrow_mut().take(len, align as u64);
        self.store(addr, &vec![0; len]);
        Some(addr)
    }

    fn store(&self, addr: u64, bytes: &[u8]) {
        self.memory
            .0
            .write(addr, bytes)
            .expect("a driver writes to its own memory");
    }

    fn load(&self, addr: u64, bytes: &mut [u8]) {
        self.memory
            .0
            .read(addr, bytes)
            .expect("a driver reads its own memory");
    }
}

/// Our driver's transport to a device behind virtio-mmio registers.
pub fn mmio(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> MmioTransport<RigRegisters> {
    let registers = RigRegisters {
        guest: MmioRig::new(device, memory, true).guest(),
        base: rig::mmio::BASE,
        len: 0x200,
    };
    let found = MmioTransport::probe(registers).expect("a virtio-mmio device");
    found.expect("a place with a device")
}

/// Our driver's transport to a device on PCI, which it finds by scanning the bus.
pub fn pci(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> PciTransport<RigRegisters> {
    pci_offering(device, memory, RingOffer::ALL)
}

/// The same for a device that cannot have all ring features.
pub fn pci_offering(
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    offer: RingOffer,
) -> PciTransport<RigRegisters> {
    let bus = RigPci(PciRig::offering(device, memory, (true, false), offer).guest());
    let mut functions = Vec::new();
    scan(&bus, |function| functions.push(function));
    functions.retain(|function| virtio_device_id(&bus, *function).is_some());
    let [function] = functions[..] else {
        panic!("one virtio device was plugged in, found {functions:?}");
    };
    // The BARs have addresses already.
    PciTransport::probe(&bus, function, &mut MemoryWindow::new(0, 0), &[]).expect("a virtio device")
}
