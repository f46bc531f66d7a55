//! Gives a device that is not virtio its place on the PCI bus.

use std::sync::{Arc, Mutex};

use treaty_bus::{Access, Ticket};
use treaty_catalog::WorkerPool;
use treaty_e1000::{E1000, Parts};
use treaty_pci::{BAR_COUNT, BarRange, PciDevice, SLOT_COUNT};
use treaty_virtio_device::{DeviceCounters, Features};

use treaty_virtio_transport::TransportView;

use super::BuildError;
use super::build::Build;
use super::virtio::{Attached, Places, Registers};
use crate::emulated::Card;
use crate::guard::Guarded;
use crate::plan::TransportChoice;

/// Makes the card and plugs it in.
pub(super) fn attach(
    build: &Build<'_>,
    places: &mut Places,
    card: &Card,
    mut workers: WorkerPool,
) -> Result<Attached, BuildError> {
    let name = card.name();
    let full = || BuildError::NoPlace {
        name: name.to_owned(),
        limit: SLOT_COUNT - 1,
        transport: "pci",
    };
    let number = places.slot;
    let bar_address = places.bars_32.allocate(E1000::BAR_LEN).ok_or_else(full)?;
    let io_address = places.io_bars.allocate(E1000::PORTS).ok_or_else(full)?;
    let (gsi, line) = places.pins.line(usize::from(number));
    let worker = workers.for_card(name)?;
    let built = card.build(|backend| Parts {
        memory: build.memory.clone(),
        line,
        gsi: gsi as u8,
        bar_address,
        io_address: io_address as u16,
        worker,
        backend,
    });
    let device = built.map_err(|source| BuildError::Emulated {
        name: name.to_owned(),
        source,
    })?;
    let function = Arc::new(Mutex::new(Guarded::new(name, Plugged(device))));
    let plugged: Arc<Mutex<dyn PciDevice>> = function.clone();
    build.pci.add(number, plugged).map_err(|_| full())?;
    places.slot += 1;
    Ok(Attached {
        name: name.to_owned(),
        transport: TransportChoice::Pci,
        location: format!("00:{number:02x}.0"),
        counters: DeviceCounters::default(),
        link: None,
        stop: None,
        registers: function,
        _workers: workers,
    })
}

/// A card in the machine.
struct Plugged(E1000);

impl Registers for Guarded<Plugged> {
    fn view(&self) -> (&'static str, TransportView) {
        let view = TransportView {
            status: 0,
            offered: Features::NONE,
            accepted: Features::NONE,
            needs_reset: None,
            queues: Vec::new(),
        };
        ("e1000", view)
    }

    fn pause(&mut self) -> Option<Ticket> {
        self.device().0.set_paused(true);
        None
    }

    fn resume(&mut self) -> Option<Ticket> {
        self.device().0.set_paused(false);
        None
    }

    fn end(&mut self) -> Option<Ticket> {
        self.pause()
    }

    fn visit_counters(&self, each: &mut dyn FnMut(&'static str, u64)) {
        self.device().0.visit_counters(each);
    }
}

impl PciDevice for Plugged {
    fn bars(&self) -> [Option<BarRange>; BAR_COUNT] {
        self.0.bars()
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) -> Access {
        self.0.read_config(offset, data)
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
        self.0.write_config(offset, data)
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) -> Access {
        self.0.read_bar(bar, offset, data)
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Access {
        self.0.write_bar(bar, offset, data)
    }
}
