//! Gives a device that is not virtio its place on the PCI bus.

use std::sync::{Arc, Mutex};

use treaty_bus::{Access, Ticket};
use treaty_catalog::WorkerPool;
use treaty_e1000::{E1000, Parts};
use treaty_ide::Ide;
use treaty_pci::{BAR_COUNT, BarRange, IntxLine, PciDevice, SLOT_COUNT, WithRom};
use treaty_piix::{IDE_FUNCTION, PIIX_SLOT};
use treaty_telemetry::AccessCounters;
use treaty_telemetry::snapshot::InterruptMode;
use treaty_virtio_device::{DeviceCounters, Features};

use treaty_virtio_transport::TransportView;

use super::build::Build;
use super::virtio::{Attached, Places, Registers};
use super::{BuildError, scsi};
use crate::emulated::{Card, Drives, Emulated};
use crate::guard::{Counted, Guarded};
use crate::interrupts::KvmLine;
use crate::layout;
use crate::plan::{MachineKind, TransportChoice};
use crate::posted::PostedRanges;

/// Makes the device and plugs it in.
pub(super) fn attach(
    build: &mut Build<'_>,
    places: &mut Places,
    device: &Emulated,
    workers: WorkerPool,
) -> Result<Attached, BuildError> {
    match device {
        Emulated::Card(card) => attach_card(build, places, card, workers),
        Emulated::Drives(drives) => attach_drives(build, places, drives, workers),
        Emulated::Targets(targets) => scsi::attach(build, places, targets, workers),
    }
}

pub(super) fn full(name: &str) -> BuildError {
    BuildError::NoPlace {
        name: name.to_owned(),
        limit: SLOT_COUNT - 1,
        transport: "pci",
    }
}

fn attach_card(
    build: &Build<'_>,
    places: &mut Places,
    card: &Card,
    mut workers: WorkerPool,
) -> Result<Attached, BuildError> {
    let name = card.name();
    let bar_address = places
        .bars_32
        .allocate(E1000::BAR_LEN)
        .ok_or_else(|| full(name))?;
    let io_address = places.io_bars.allocate(E1000::PORTS).ok_or_else(|| full(name))?;
    let (gsi, line) = places.pins.line(usize::from(places.slot));
    let worker = workers.for_card(name)?;
    let built = card.build(|backend| Parts {
        memory: build.memory.clone(),
        line,
        gsi: gsi as u8,
        bar_address,
        io_address: io_address as u16,
        worker,
        backend,
        posted: build.posted.clone(),
    });
    let device = built.map_err(|source| BuildError::Emulated {
        name: name.to_owned(),
        source: Box::new(source),
    })?;
    let posted = PostedRanges::new(build.vm.coalesced(), &E1000::POSTED);
    let device = WithRom::new(device, card.rom().to_vec());
    let device = Card1000(device, posted);
    plug(build, places, name, Guarded::new(name, device), workers)
}

fn attach_drives(
    build: &mut Build<'_>,
    places: &mut Places,
    drives: &Drives,
    mut workers: WorkerPool,
) -> Result<Attached, BuildError> {
    let name = drives.name();
    let io_address = places.io_bars.allocate(Ide::PORTS).ok_or_else(|| full(name))?;
    let lines =
        layout::IDE_GSIS.map(|gsi| -> Arc<dyn IntxLine> { Arc::new(KvmLine(build.vm.level_line(gsi))) });
    let disks = drives.disks();
    let drives = drives.build(|worker| workers.for_card(worker))?;
    let built = Ide::new(treaty_ide::Parts {
        memory: build.memory.clone(),
        lines,
        io_address: io_address as u16,
        drives,
        posted: build.posted.clone(),
    });
    let device = built.map_err(|source| BuildError::Emulated {
        name: name.to_owned(),
        source: Box::new(source),
    })?;
    let accesses = Arc::<AccessCounters>::default();
    let counted = |target| Arc::new(Counted::new(target, accesses.clone()));
    for ((command, control), targets) in Ide::FIXED_PORTS.into_iter().zip(device.fixed_ports()) {
        build.ports.register(command, counted(targets.0))?;
        build.ports.register(control, counted(targets.1))?;
    }
    let posted = PostedRanges::new(build.vm.coalesced(), &Ide::POSTED);
    for (port, len) in Ide::POSTED_FIXED {
        posted.add_fixed(port, len);
    }
    let device = Guarded::new(name, Controller(device, posted)).counted_in(accesses);
    let attached = match build.plan.machine {
        MachineKind::Virt => plug(build, places, name, device, workers)?,
        MachineKind::Pc => plug_at(build, (PIIX_SLOT, IDE_FUNCTION), name, device, workers)?,
    };
    Ok(Attached { disks, ..attached })
}

pub(super) fn plug<T: PciDevice + 'static>(
    build: &Build<'_>,
    places: &mut Places,
    name: &str,
    device: Guarded<T>,
    workers: WorkerPool,
) -> Result<Attached, BuildError>
where
    Guarded<T>: Registers,
{
    let attached = plug_at(build, (places.slot, 0), name, device, workers)?;
    places.slot += 1;
    Ok(attached)
}

/// Plugs it in as that function of the device with that number.
fn plug_at<T: PciDevice + 'static>(
    build: &Build<'_>,
    (slot, number): (u8, u8),
    name: &str,
    device: Guarded<T>,
    workers: WorkerPool,
) -> Result<Attached, BuildError>
where
    Guarded<T>: Registers,
{
    let accesses = device.accesses();
    let function = Arc::new(Mutex::new(device));
    let plugged: Arc<Mutex<dyn PciDevice>> = function.clone();
    let added = build.pci.add_function(slot, number, plugged);
    added.map_err(|_| full(name))?;
    Ok(Attached {
        name: name.to_owned(),
        transport: TransportChoice::Pci,
        location: format!("00:{slot:02x}.{number}"),
        counters: DeviceCounters::default(),
        link: None,
        stop: None,
        disks: Vec::new(),
        names: Vec::new(),
        accesses,
        registers: function,
        _workers: workers,
    })
}

/// No virtqueues, no features.
pub(super) fn plain_view(kind: &'static str) -> (&'static str, TransportView) {
    let view = TransportView {
        status: 0,
        offered: Features::NONE,
        accepted: Features::NONE,
        needs_reset: None,
        interrupt_mode: InterruptMode::Intx,
        queues: Vec::new(),
    };
    (kind, view)
}

/// A network card in the machine.
struct Card1000(WithRom<E1000>, PostedRanges);

impl Registers for Guarded<Card1000> {
    fn view(&self) -> (&'static str, TransportView) {
        plain_view("e1000")
    }

    fn pause(&mut self) -> Option<Ticket> {
        self.device().0.inner().set_paused(true);
        None
    }

    fn resume(&mut self) -> Option<Ticket> {
        self.device().0.inner().set_paused(false);
        None
    }

    fn end(&mut self) -> Option<Ticket> {
        self.pause()
    }

    fn visit_counters(&self, each: &mut dyn FnMut(&'static str, u64)) {
        self.device().0.inner().visit_counters(each);
    }
}

/// The IDE controller in the machine.
struct Controller(Ide, PostedRanges);

impl Registers for Guarded<Controller> {
    fn view(&self) -> (&'static str, TransportView) {
        plain_view("ide")
    }

    fn pause(&mut self) -> Option<Ticket> {
        self.device().0.pause()
    }

    fn resume(&mut self) -> Option<Ticket> {
        self.device().0.resume();
        None
    }

    fn end(&mut self) -> Option<Ticket> {
        self.pause()
    }
}

/// Its registers are those of what it holds, some of which may be written late.
macro_rules! is_its_device {
    ($name:ident) => {
        impl PciDevice for $name {
            fn bars(&self) -> [Option<BarRange>; BAR_COUNT] {
                self.0.bars()
            }

            fn read_config(&mut self, offset: u16, data: &mut [u8]) -> Access {
                self.0.read_config(offset, data)
            }

            fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
                let access = self.0.write_config(offset, data);
                self.1.follow(&self.0.bars());
                access
            }

            fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) -> Access {
                self.0.read_bar(bar, offset, data)
            }

            fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Access {
                self.0.write_bar(bar, offset, data)
            }
        }
    };
}

pub(super) use is_its_device;

is_its_device!(Card1000);
is_its_device!(Controller);
