//! Interrupts and doorbells as devices know them, done by KVM.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};

use treaty_kvm::{EventAddress, LevelLine, Msi, Routes, Vm};
use treaty_pci::{IntxLine, IoAddress, IoEvents, MsiProvider, MsiVector};

use crate::layout::DEVICE_GSIS;

/// Message-signalled interrupts by irqfd.
pub(crate) struct KvmMsis(pub(crate) Arc<Routes>);

impl MsiProvider for KvmMsis {
    fn vector(&self) -> io::Result<Box<dyn MsiVector>> {
        Ok(Box::new(KvmMsi(self.0.msi()?)))
    }
}

struct KvmMsi(Msi);

impl MsiVector for KvmMsi {
    fn route(&self, address: u64, data: u32) -> io::Result<()> {
        self.0.route(address, data)
    }

    fn mask(&self) -> io::Result<()> {
        self.0.mask()
    }

    fn signal(&self) {
        self.0.signal();
    }
}

/// Doorbells by ioeventfd.
pub(crate) struct KvmDoorbells(pub(crate) Arc<Vm>);

impl IoEvents for KvmDoorbells {
    fn register(&self, address: IoAddress, datamatch: Option<u32>, fd: RawFd) -> io::Result<()> {
        self.0.add_doorbell(event_address(address), datamatch, fd)
    }

    fn unregister(&self, address: IoAddress, datamatch: Option<u32>, fd: RawFd) {
        self.0.remove_doorbell(event_address(address), datamatch, fd);
    }
}

fn event_address(address: IoAddress) -> EventAddress {
    match address {
        IoAddress::Mmio(address) => EventAddress::Mmio(address),
        IoAddress::Pio(port) => EventAddress::Pio(port),
    }
}

/// The level-triggered pins that devices share.
pub(crate) struct Pins(Vec<Arc<Pin>>);

struct Pin {
    line: LevelLine,
    /// One bit per device on this pin: it is high while any is set.
    raised: Mutex<Raised>,
}

#[derive(Default)]
struct Raised {
    users: u32,
    high: u64,
}

impl Pins {
    pub(crate) fn new(vm: &Vm) -> Self {
        let pin = |gsi| {
            Arc::new(Pin {
                line: vm.level_line(gsi),
                raised: Mutex::default(),
            })
        };
        Self(DEVICE_GSIS.map(pin).collect())
    }

    /// The GSI of the device with number `device`, and a line to it that others may share.
    pub(crate) fn line(&self, device: usize) -> (u32, Arc<dyn IntxLine>) {
        let index = device % self.0.len();
        let pin = self.0[index].clone();
        let mut raised = pin.raised.lock().unwrap_or_else(PoisonError::into_inner);
        let bit = 1 << raised.users;
        raised.users += 1;
        assert!(
            raised.users < u64::BITS,
            "a pin has fewer devices than the machine"
        );
        drop(raised);
        (gsi_of(device), Arc::new(PinUser { pin, bit }))
    }
}

/// The GSI that [`Pins::line`] gives to the device with that number.
pub(crate) fn gsi_of(device: usize) -> u32 {
    DEVICE_GSIS.start + (device % DEVICE_GSIS.len()) as u32
}

struct PinUser {
    pin: Arc<Pin>,
    bit: u64,
}

impl IntxLine for PinUser {
    fn set(&self, level: bool) {
        // The lock is held while KVM is told, so that two devices cannot tell it in the wrong order.
        let mut raised = self.pin.raised.lock().unwrap_or_else(PoisonError::into_inner);
        let before = raised.high != 0;
        raised.high = if level {
            raised.high | self.bit
        } else {
            raised.high & !self.bit
        };
        let after = raised.high != 0;
        if before != after {
            self.pin.line.set(after);
        }
    }
}
