//! Gives every device its place on a bus.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use treaty_bus::Ticket;
use treaty_catalog::{Built, LiveHandle, StopHandle, WorkerPool, poll_of};
use treaty_pci::{BarAllocator, PciDevice, SLOT_COUNT};
use treaty_piix::PIIX_SLOT;
use treaty_tables::MmioDevice;
use treaty_telemetry::AccessCounters;
use treaty_vhost_frontend::{Link, VhostUserDevice};
use treaty_virtio_device::{DeviceCounters, DeviceId, VirtioDevice};
use treaty_virtio_transport::{
    Intx, Lifecycle, MmioParts, MmioTransport, PciParts, RingOffer, TransportView, VirtioPci,
};
use treaty_worker::ReactorKind;

use super::BuildError;
use super::build::Build;
use super::emulated;
use crate::devices::{Slot, Source};
use crate::guard::Guarded;
use crate::interrupts::{KvmDoorbells, KvmMsis, Pins};
use crate::layout;
use crate::plan::{MachineKind, RingChoice, TransportChoice};
use crate::remote;

/// The most virtio-mmio devices.
const MMIO_LIMIT: usize = 32;
/// The longest that a machine waits for one device to drain.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// A device in its place, for one boot.
pub(crate) struct Attached {
    pub(crate) name: String,
    pub(crate) transport: TransportChoice,
    /// `00:03.0`, or the address of the registers.
    pub(crate) location: String,
    pub(crate) counters: DeviceCounters,
    /// To its back-end, if that is another process.
    pub(crate) link: Option<Arc<Link>>,
    /// Of a disk that stops on errors.
    pub(crate) stop: Option<StopHandle>,
    /// The disks in it of which snapshots can be taken, by name.
    pub(crate) disks: Vec<(String, LiveHandle)>,
    /// The queues of a device that is no virtio device: index, and what it is for.
    pub(super) names: Vec<(u16, String)>,
    /// The guest's accesses to it that reached the monitor.
    pub(crate) accesses: Arc<AccessCounters>,
    pub(super) registers: Arc<Mutex<dyn Registers>>,
    /// After the transport, whose device uses them.
    pub(super) _workers: WorkerPool,
}

/// Hands out places. One per machine build.
pub(super) struct Places {
    pub(super) pins: Pins,
    msis: KvmMsis,
    doorbells: Arc<KvmDoorbells>,
    bars: BarAllocator,
    pub(super) bars_32: BarAllocator,
    pub(super) io_bars: BarAllocator,
    /// The next PCI device number; 0 is the host bridge, and on a PC 1 is the ISA bridge.
    pub(super) slot: u8,
}

/// Makes the device of every slot and puts it on its bus.
pub(super) fn add(build: &mut Build<'_>, slots: &[Slot]) -> Result<Vec<Attached>, BuildError> {
    let (kind, ram) = (build.plan.machine, build.plan.memory.bytes());
    let mut places = Places {
        pins: match &build.router {
            Some(router) => Pins::of_pc(router),
            None => Pins::of_apic(&build.vm),
        },
        msis: KvmMsis(build.vm.routes()),
        doorbells: Arc::new(KvmDoorbells(build.vm.clone())),
        bars: BarAllocator::new(layout::pci_window_64(ram)),
        bars_32: BarAllocator::new(layout::pci_window_32(kind, ram)),
        io_bars: BarAllocator::new(layout::pci_ports(kind)),
        slot: match kind {
            MachineKind::Virt => 1,
            MachineKind::Pc => PIIX_SLOT + 1,
        },
    };
    slots
        .iter()
        .map(|slot| attach(build, &mut places, slot))
        .collect()
}

fn attach(build: &mut Build<'_>, places: &mut Places, slot: &Slot) -> Result<Attached, BuildError> {
    let poll = poll_of(build.plan.poll, build.plan.poll_us).unwrap_or_default();
    let mut workers = WorkerPool::new(ReactorKind::Auto, poll);
    let packed = slot.ring == RingChoice::Packed;
    let (name, built, offer, link) = match &slot.source {
        Source::Emulated(device) => return emulated::attach(build, places, device, workers),
        Source::Here(opened) => {
            let offer = RingOffer {
                packed,
                ..RingOffer::USUAL
            };
            (opened.name(), opened.build(&mut workers)?, offer, None)
        }
        Source::Elsewhere(name, link) => {
            let built = Built {
                device: Box::new(VhostUserDevice::new(link.clone())),
                counters: DeviceCounters::default(),
            };
            (
                name.as_str(),
                built,
                remote::offer(link, packed),
                Some(link.clone()),
            )
        }
    };
    let Built { device, counters } = built;
    let (stop, live) = match &slot.source {
        Source::Here(opened) => (opened.stop_handle().cloned(), opened.live_handle().cloned()),
        Source::Elsewhere(..) | Source::Emulated(_) => (None, None),
    };
    counters.time_by(build.plan.telemetry.rule());
    let (location, registers, accesses) = match slot.transport {
        TransportChoice::Pci => attach_pci(build, places, name, device, offer)?,
        TransportChoice::Mmio => attach_mmio(build, places, name, device, offer)?,
    };
    let (name, transport) = (name.to_owned(), slot.transport);
    Ok(Attached {
        disks: live.map(|live| (name.clone(), live)).into_iter().collect(),
        name,
        transport,
        location,
        counters,
        link,
        stop,
        names: Vec::new(),
        accesses,
        registers,
        _workers: workers,
    })
}

type Placed = (String, Arc<Mutex<dyn Registers>>, Arc<AccessCounters>);

fn attach_pci(
    build: &Build<'_>,
    places: &mut Places,
    name: &str,
    device: Box<dyn VirtioDevice>,
    offer: RingOffer,
) -> Result<Placed, BuildError> {
    let full = || BuildError::NoPlace {
        name: name.to_owned(),
        limit: SLOT_COUNT - 1,
        transport: "pci",
    };
    let number = places.slot;
    let bar_address = places.bars.allocate(VirtioPci::BAR_LEN).ok_or_else(full)?;
    let (gsi, line) = places.pins.line(usize::from(number));
    let parts = PciParts {
        memory: build.memory.clone(),
        offer,
        msi: &places.msis,
        intx: Some(Intx { line, gsi: gsi as u8 }),
        io: places.doorbells.clone(),
        bar_address,
    };
    let transport = VirtioPci::new(device, parts).map_err(|error| transport_fault(name, error))?;
    let function = Guarded::new(name, transport).with_class(VirtioPci::access_class);
    let accesses = function.accesses();
    let function = Arc::new(Mutex::new(function));
    let plugged: Arc<Mutex<dyn PciDevice>> = function.clone();
    build.pci.add(number, plugged).map_err(|_| full())?;
    places.slot += 1;
    Ok((format!("00:{number:02x}.0"), function, accesses))
}

fn attach_mmio(
    build: &mut Build<'_>,
    places: &Places,
    name: &str,
    device: Box<dyn VirtioDevice>,
    offer: RingOffer,
) -> Result<Placed, BuildError> {
    let index = build.mmio_devices.len();
    if index == MMIO_LIMIT {
        return Err(BuildError::NoPlace {
            name: name.to_owned(),
            limit: MMIO_LIMIT,
            transport: "mmio",
        });
    }
    let range = mmio_range(index);
    let (gsi, line) = places.pins.line(index);
    let parts = MmioParts {
        memory: build.memory.clone(),
        offer,
        line,
        io: places.doorbells.clone(),
        address: range.start,
    };
    let transport = MmioTransport::new(device, parts).map_err(|error| transport_fault(name, error))?;
    let registers = Guarded::new(name, transport).with_class(MmioTransport::access_class);
    let accesses = registers.accesses();
    let registers = Arc::new(Mutex::new(registers));
    build.mmio.register(range.clone(), registers.clone())?;
    build.mmio_devices.push(MmioDevice {
        base: range.start as u32,
        len: MmioTransport::LEN as u32,
        gsi,
    });
    Ok((format!("{:#x}", range.start), registers, accesses))
}

fn mmio_range(index: usize) -> Range<u64> {
    let start = layout::MMIO_DEVICES_START + index as u64 * layout::MMIO_DEVICE_STRIDE;
    start..start + MmioTransport::LEN
}

fn transport_fault(name: &str, error: treaty_virtio_transport::BuildError) -> BuildError {
    BuildError::Transport {
        name: name.to_owned(),
        source: error,
    }
}

/// A device's registers, as the machine's life needs them.
pub(super) trait Registers: Send {
    /// Its type's name, and what its driver has made of it.
    fn view(&self) -> (&'static str, TransportView);
    /// Its device type, if it is a virtio device.
    fn device_id(&self) -> Option<DeviceId> {
        None
    }
    /// Stops its queues, keeping where they are; a ticket if it has to be asked again.
    fn pause(&mut self) -> Option<Ticket>;
    /// Starts them again.
    fn resume(&mut self) -> Option<Ticket>;
    /// Stops it for good.
    fn end(&mut self) -> Option<Ticket>;
    /// Counters that belong to no virtqueue.
    fn visit_counters(&self, _each: &mut dyn FnMut(&'static str, u64)) {}
}

impl<T: Lifecycle> Registers for Guarded<T> {
    fn view(&self) -> (&'static str, TransportView) {
        let transport = self.device();
        (transport.device_id().name(), transport.view())
    }

    fn device_id(&self) -> Option<DeviceId> {
        Some(self.device().device_id())
    }

    fn pause(&mut self) -> Option<Ticket> {
        self.device_mut().pause()
    }

    fn resume(&mut self) -> Option<Ticket> {
        self.device_mut().resume()
    }

    fn end(&mut self) -> Option<Ticket> {
        self.device_mut().power_on_reset()
    }
}

impl Attached {
    /// Its type's name, and what its driver has made of it.
    pub(crate) fn view(&self) -> (&'static str, TransportView) {
        self.lock().view()
    }

    /// Its device type, if it is a virtio device.
    pub(crate) fn device_id(&self) -> Option<DeviceId> {
        self.lock().device_id()
    }

    /// The queues of a device that is no virtio device: index, and what it is for.
    pub(crate) fn queue_names(&self) -> impl Iterator<Item = (u16, String)> {
        self.names.iter().map(|(index, name)| (*index, name.clone()))
    }

    /// Counters that belong to no virtqueue.
    pub(crate) fn visit_counters(&self, each: &mut dyn FnMut(&'static str, u64)) {
        self.lock().visit_counters(each);
    }

    /// Stops its queues, keeping where they are. False if it did not drain in time.
    pub(crate) fn pause(&self) -> bool {
        self.repeat(|registers| registers.pause())
    }

    /// Starts them again.
    pub(crate) fn resume(&self) -> bool {
        self.repeat(|registers| registers.resume())
    }

    /// Stops it for good.
    pub(super) fn shut_down(&self) {
        if !self.repeat(|registers| registers.end()) {
            tracing::warn!(device = %self.name, "did not drain in time");
        }
    }

    /// Calls until there is nothing to wait for; waits with no lock held.
    fn repeat(&self, call: impl Fn(&mut dyn Registers) -> Option<Ticket>) -> bool {
        loop {
            let ticket = call(&mut *self.lock());
            match ticket {
                None => return true,
                Some(ticket) if !ticket.wait(DRAIN_LIMIT) => return false,
                Some(_) => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, dyn Registers + 'static> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
