//! Interrupts and doorbells as devices know them, done by KVM.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};

use treaty_kvm::{EventAddress, LevelLine, Msi, Routes, Vm};
use treaty_pci::{IntxLine, IoAddress, IoEvents, MsiProvider, MsiVector};

use treaty_piix::{PIRQS, PirqRouter, pirq_of};

use crate::layout::DEVICE_GSIS;
use crate::plan::MachineKind;

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

/// A level-triggered pin of the interrupt controllers that nobody shares.
pub(crate) struct KvmLine(pub(crate) LevelLine);

impl IntxLine for KvmLine {
    fn set(&self, level: bool) {
        self.0.set(level);
    }
}

/// The level-triggered pins that devices share.
pub(crate) struct Pins {
    kind: MachineKind,
    pins: Vec<Arc<Pin>>,
}

struct Pin {
    line: Box<dyn IntxLine>,
    /// One bit per device on this pin: it is high while any is set.
    raised: Mutex<Raised>,
}

#[derive(Default)]
struct Raised {
    users: u32,
    high: u64,
}

impl Pins {
    /// Pins of the I/O APIC.
    pub(crate) fn of_apic(vm: &Vm) -> Self {
        let lines = DEVICE_GSIS.map(|gsi| -> Box<dyn IntxLine> { Box::new(KvmLine(vm.level_line(gsi))) });
        Self::new(MachineKind::Virt, lines)
    }

    /// A PC's four PCI interrupts.
    pub(crate) fn of_pc(router: &Arc<PirqRouter>) -> Self {
        let lines = (0..PIRQS).map(|pirq| -> Box<dyn IntxLine> { Box::new(router.line(pirq)) });
        Self::new(MachineKind::Pc, lines)
    }

    fn new(kind: MachineKind, lines: impl Iterator<Item = Box<dyn IntxLine>>) -> Self {
        let pin = |line| {
            Arc::new(Pin {
                line,
                raised: Mutex::default(),
            })
        };
        let pins = lines.map(pin).collect();
        Self { kind, pins }
    }

    /// The GSI of the device with number `device`, and a line to it that others may share.
    pub(crate) fn line(&self, device: usize) -> (u32, Arc<dyn IntxLine>) {
        let pin = self.pins[pin_of(self.kind, device)].clone();
        let mut raised = pin.raised.lock().unwrap_or_else(PoisonError::into_inner);
        let bit = 1 << raised.users;
        raised.users += 1;
        assert!(
            raised.users < u64::BITS,
            "a pin has fewer devices than the machine"
        );
        drop(raised);
        (gsi_of(self.kind, device), Arc::new(PinUser { pin, bit }))
    }
}

/// The GSI that [`Pins::line`] gives to the device with that number.
pub(crate) fn gsi_of(kind: MachineKind, device: usize) -> u32 {
    DEVICE_GSIS.start + pin_of(kind, device) as u32
}

fn pin_of(kind: MachineKind, device: usize) -> usize {
    match kind {
        MachineKind::Virt => device % DEVICE_GSIS.len(),
        MachineKind::Pc => pirq_of(device as u8),
    }
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
