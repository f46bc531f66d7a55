//! Finding the machine's virtio devices.

use alloc::vec::Vec;
use core::fmt;

use treaty_virtio_driver::pci::{Function, MemoryWindow, PciTransport, scan, virtio_device_id};
use treaty_virtio_driver::{DriverError, MmioTransport};

use crate::clock::Clock;
use crate::emulated::Kind;
use crate::interrupts::{self, DEVICE_MSI};
use crate::measure::Mode;
use crate::params::{MmioRow, Params};
use crate::pci::Pci;
use crate::window::Window;
use crate::work::{Place, Tally, emulated, run_device};

/// A virtio-mmio place.
struct MmioPlace {
    base: u64,
    len: u64,
    gsi: Option<u32>,
}

impl fmt::Display for MmioPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mmio {:#x}", self.base)
    }
}

impl Place for MmioPlace {
    fn has_interrupt(&self) -> bool {
        self.gsi.is_some()
    }
}

/// A function on PCI.
struct PciPlace(Function);

impl fmt::Display for PciPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pci {}", self.0)
    }
}

impl Place for PciPlace {
    /// MSI-X, which every virtio device on PCI has.
    fn has_interrupt(&self) -> bool {
        true
    }
}

/// Runs the workloads on every device found, PCI first.
pub fn run(params: &Params, clock: &Clock) -> Tally {
    let mut tally = Tally::default();
    let pci = if params.pci { Pci::find(params.ecam) } else { None };
    if let Some(bus) = pci {
        run_pci(params, clock, &bus, &mut tally);
    }
    for row in &params.mmio {
        // A guess must not read registers of some PCI device.
        if row.is_guess && pci.is_some() {
            continue;
        }
        for index in 0..row.count {
            run_mmio(params, clock, row, index, &mut tally);
        }
    }
    tally
}

fn run_pci(params: &Params, clock: &Clock, bus: &Pci, tally: &mut Tally) {
    let mut functions = Vec::new();
    let mut others = Vec::new();
    scan(bus, |function| {
        if let Some(kind) = Kind::of(bus, function) {
            others.push((function, kind));
        }
        if virtio_device_id(bus, function).is_some() {
            functions.push(function);
        }
    });
    let mut window = MemoryWindow::new(params.bars.0, params.bars.1);
    for function in functions {
        let mut open = |mode| {
            let vectors: &[(u64, u32)] = match mode {
                Mode::Polled => &[],
                Mode::Interrupt => &[DEVICE_MSI],
            };
            PciTransport::probe(bus, function, &mut window, vectors)
        };
        run_device(params, clock, &PciPlace(function), &mut open, tally);
    }
    for (function, kind) in others {
        let context = emulated::Context {
            params,
            clock,
            bus,
            function,
        };
        emulated::run(&context, kind, &PciPlace(function), &mut window, tally);
    }
}

fn run_mmio(params: &Params, clock: &Clock, row: &MmioRow, index: u64, tally: &mut Tally) {
    let place = MmioPlace {
        base: row.base + index * row.stride,
        len: row.stride,
        gsi: row.gsi.map(|gsi| gsi + index as u32),
    };
    let open = |mode| {
        // SAFETY: the command line, or the machine's layout, says that there is a device.
        let window = unsafe { Window::new(place.base, place.len) };
        let window = window.ok_or(DriverError::NotVirtio("address"))?;
        if let (Mode::Interrupt, Some(gsi)) = (mode, place.gsi) {
            interrupts::route(gsi);
        }
        MmioTransport::probe(window)?.ok_or(DriverError::NotVirtio("no device"))
    };
    // Most places are empty.
    if open(Mode::Polled).is_ok() {
        run_device(params, clock, &place, open, tally);
    }
}
