//! Gives the SCSI controller its place on the PCI bus.

use treaty_bus::{Access, Ticket};
use treaty_catalog::WorkerPool;
use treaty_lsi::{Lsi, Parts};
use treaty_pci::{BAR_COUNT, BarRange, PciDevice};
use treaty_virtio_transport::TransportView;

use super::BuildError;
use super::build::Build;
use super::emulated::{full, is_its_device, plain_view, plug};
use super::virtio::{Attached, Places, Registers};
use crate::emulated::Targets;
use crate::guard::Guarded;
use crate::posted::PostedRanges;

/// Makes the controller and plugs it in.
pub(super) fn attach(
    build: &Build<'_>,
    places: &mut Places,
    targets: &Targets,
    mut workers: WorkerPool,
) -> Result<Attached, BuildError> {
    let name = targets.name();
    let full = || full(name);
    let io_address = places.io_bars.allocate(Lsi::PORTS).ok_or_else(full)?;
    let register_address = places.bars_32.allocate(Lsi::REGISTER_BYTES).ok_or_else(full)?;
    let ram_address = places.bars_32.allocate(Lsi::RAM_BYTES).ok_or_else(full)?;
    let (gsi, line) = places.pins.line(usize::from(places.slot));
    let built = Lsi::new(Parts {
        memory: build.memory.clone(),
        line,
        gsi: gsi as u8,
        io_address: io_address as u16,
        register_address,
        ram_address,
        worker: workers.for_card(name)?,
        targets: targets.build(),
    });
    let device = built.map_err(|source| BuildError::Emulated {
        name: name.to_owned(),
        source: Box::new(source),
    })?;
    let posted = PostedRanges::new(build.vm.coalesced(), &[]);
    let device = Guarded::new(name, Scsi(device, posted));
    let attached = plug(build, places, name, device, workers)?;
    Ok(Attached {
        disks: targets.disks(),
        ..attached
    })
}

/// The SCSI controller in the machine. No write to it comes late: each may start a script.
struct Scsi(Lsi, PostedRanges);

impl Registers for Guarded<Scsi> {
    fn view(&self) -> (&'static str, TransportView) {
        plain_view("lsi53c895a")
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

is_its_device!(Scsi);
