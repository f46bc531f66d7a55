//! virtio over PCI, modern devices only. virtio 1.3 §4.1

mod common;
mod interrupts;
mod layout;

use std::sync::Arc;

use treaty_bus::{Access, Ticket};
use treaty_memory::GuestMemory;
use treaty_pci::{
    BAR_COUNT, BarRange, ConfigSpace, IntxLine, IoAddress, IoEvents, MsiProvider, Msix, MsixState, PciDevice,
};
use treaty_telemetry::AccessClass;
use treaty_telemetry::snapshot::InterruptMode;
use treaty_virtio_device::{DeviceId, Interrupt, VirtioDevice};
use treaty_virtio_spec::pci::{ISR_CONFIG, ISR_QUEUE};

use self::interrupts::{Event, Interrupts, Sink};
use self::layout::{BAR, Offsets};
use crate::core::{Core, CoreParts, CoreState};
use crate::isr::InterruptStatus;
use crate::lifecycle::{Lifecycle, TransportState, TransportView};
use crate::notifier::{Notifier, Place};
use crate::{BuildError, RingOffer, TransportRestoreError, TransportSaveError};

/// An interrupt pin.
pub struct Intx {
    /// INTA#, wired to an interrupt controller.
    pub line: Arc<dyn IntxLine>,
    /// What the interrupt line register says: the input that it is wired to.
    pub gsi: u8,
}

/// What a [`VirtioPci`] needs of the machine.
pub struct PciParts<'a> {
    /// Guest memory.
    pub memory: GuestMemory,
    /// Ring and transport features on offer.
    pub offer: RingOffer,
    /// Gives the vectors: one for each queue and one for configuration changes.
    pub msi: &'a dyn MsiProvider,
    /// The pin, for drivers that do not use MSI-X; without it there is none.
    pub intx: Option<Intx>,
    /// For doorbells without exits to user space.
    pub io: Arc<dyn IoEvents>,
    /// Where BAR 0 is at first: a multiple of [`VirtioPci::BAR_LEN`].
    pub bar_address: u64,
}

/// A virtio device as a PCI function.
///
/// While queues drain after a reset the status register keeps what it was; it reads 0 when they have.
pub struct VirtioPci {
    core: Core,
    config: ConfigSpace,
    power_on: ConfigSpace,
    offsets: Offsets,
    interrupts: Arc<Interrupts>,
    notifier: Notifier,
    /// Where the notifier's addresses were computed from.
    decoded: Option<BarRange>,
}

/// A [`VirtioPci`] in a snapshot.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PciState {
    /// Device, queues, negotiation.
    pub core: CoreState,
    /// The 256 bytes of configuration space.
    pub config: Vec<u8>,
    /// Vector table.
    pub msix: MsixState,
    /// Vector of configuration changes.
    pub config_vector: u16,
    /// Vector of each queue.
    pub queue_vectors: Vec<u16>,
    /// ISR.
    pub isr: u8,
}

impl VirtioPci {
    /// What an access to the BAR is for, by its offset.
    pub fn access_class(_bar: u8, offset: u64) -> AccessClass {
        match offset {
            layout::NOTIFY..layout::TABLE => AccessClass::Doorbell,
            layout::TABLE.. => AccessClass::MsixTable,
            _ => AccessClass::VirtioRegister,
        }
    }

    /// Bytes of BAR 0, which is the only one.
    pub const BAR_LEN: u64 = layout::BAR_LEN;

    /// Puts a PCI function in front of a device.
    pub fn new(device: Box<dyn VirtioDevice>, parts: PciParts<'_>) -> Result<Self, BuildError> {
        let description = device.description().clone();
        let queues = description.queues.len();
        let id = description.id;
        if queues > layout::MAX_QUEUES {
            return Err(BuildError::TooManyQueues {
                device: id.name(),
                count: queues,
                limit: layout::MAX_QUEUES,
            });
        }
        if description.config_len > layout::DEVICE_LIMIT {
            return Err(BuildError::ConfigTooLong {
                device: id.name(),
                len: description.config_len,
                limit: layout::DEVICE_LIMIT,
            });
        }
        let count = queues as u16 + 1;
        let msix = Msix::new(count, parts.msi).map_err(|source| BuildError::Vectors { count, source })?;
        let mut config = ConfigSpace::new(&layout::identity(id));
        config.add_bar(BAR, Self::BAR_LEN, parts.bar_address)?;
        if let Some(intx) = &parts.intx {
            config.set_interrupt_pin(intx.gsi);
        }
        let offsets = layout::add_capabilities(&mut config, &msix, queues as u16, description.config_len)?;
        let isr = InterruptStatus::new(parts.intx.map(|intx| intx.line));
        let interrupts = Arc::new(Interrupts::new(msix, isr, queues));
        let sink = |event| Interrupt::new(Arc::new(Sink(interrupts.clone(), event)));
        let core = Core::new(CoreParts {
            device,
            memory: parts.memory,
            offer: parts.offer,
            config_interrupt: sink(Event::Config),
            queue_interrupt: &|index| sink(Event::Queue(index)),
        })?;
        Ok(Self {
            core,
            power_on: config.clone(),
            config,
            offsets,
            interrupts,
            notifier: Notifier::new(parts.io),
            decoded: None,
        })
    }

    fn write_status(&mut self, value: u8) {
        self.core.write_status(value);
        if value == 0 && self.core.status() == 0 {
            self.interrupts.reset();
        }
    }

    /// Goes on with what waited for a drain.
    fn poll(&mut self) {
        let before = self.core.status();
        self.core.poll();
        if before != 0 && self.core.status() == 0 {
            self.interrupts.reset();
        }
    }

    /// Makes everything that depends on configuration space agree with it.
    fn follow_config(&mut self) {
        let control = self.config.read_u16(self.offsets.msix_control);
        self.interrupts.msix.set_control(control);
        let blocked = self.interrupts.msix.is_enabled() || self.config.intx_disabled();
        self.interrupts.isr.block(blocked);
        let [decoded, ..] = self.config.bars();
        if decoded == self.decoded {
            return;
        }
        self.decoded = decoded;
        let place = |start: u64| {
            let addresses = (start + layout::NOTIFY..).step_by(layout::NOTIFY_MULTIPLIER as usize);
            let place = |(address, doorbell): (u64, &_)| Place {
                address: IoAddress::Mmio(address),
                datamatch: None,
                doorbell: Clone::clone(doorbell),
            };
            addresses.zip(self.core.doorbells()).map(place).collect()
        };
        let places = decoded.map_or_else(Vec::new, |range| place(range.start));
        self.notifier.place(places);
    }

    /// What the PCI configuration access capability points to: an offset in the BAR, and a width. virtio 1.3 §4.1.4.9
    fn window(&self) -> Option<(u64, usize)> {
        let at = self.offsets.access;
        let length = self.config.read_u32(at.length) as usize;
        let offset = u64::from(self.config.read_u32(at.offset));
        let bar = self.config.read_u16(at.bar) as u8;
        let valid = matches!(length, 1 | 2 | 4) && bar == BAR && offset.is_multiple_of(length as u64);
        valid.then_some((offset, length))
    }

    fn read_isr(&mut self, data: &mut [u8]) -> Access {
        if let Some(first) = data.first_mut() {
            *first = self.interrupts.isr.take();
        }
        Access::Done
    }

    fn notify_at(&mut self, offset: u64, len: usize) -> Access {
        let index = u16::try_from(offset / layout::NOTIFY_MULTIPLIER);
        match index {
            Ok(index) if offset.is_multiple_of(layout::NOTIFY_MULTIPLIER) && matches!(len, 2 | 4) => {
                self.core.notify(index);
                Access::Done
            }
            _ => Access::Fault,
        }
    }
}

impl PciDevice for VirtioPci {
    fn bars(&self) -> [Option<BarRange>; BAR_COUNT] {
        self.config.bars()
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) -> Access {
        self.config.set_interrupt_status(self.interrupts.isr.is_high());
        if offset == self.offsets.access.data
            && let Some((at, length)) = self.window()
        {
            let mut bytes = [0; 4];
            if let Some(bytes) = bytes.get_mut(..length) {
                self.read_bar(BAR, at, bytes);
            }
            self.config.write(offset, &bytes);
        }
        self.config.read(offset, data);
        Access::Done
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
        self.config.write(offset, data);
        if offset == self.offsets.access.data
            && let Some((at, length)) = self.window()
            && let Some(bytes) = data.get(..length)
        {
            self.write_bar(BAR, at, bytes);
        }
        self.follow_config();
        Access::Done
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) -> Access {
        self.poll();
        if bar != BAR {
            return Access::Fault;
        }
        match offset {
            layout::COMMON..layout::ISR => self.read_common(offset as usize, data),
            layout::ISR if data.len() == 1 => self.read_isr(data),
            layout::DEVICE..layout::NOTIFY => {
                self.core.read_config(offset - layout::DEVICE, data);
                Access::Done
            }
            layout::NOTIFY..layout::TABLE => Access::Done,
            layout::TABLE..layout::PBA => self.interrupts.msix.read_table(offset - layout::TABLE, data),
            layout::PBA..layout::BAR_LEN => self.interrupts.msix.read_pba(offset - layout::PBA, data),
            _ => Access::Fault,
        }
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Access {
        self.poll();
        if bar != BAR {
            return Access::Fault;
        }
        match offset {
            layout::COMMON..layout::ISR => self.write_common(offset as usize, data),
            layout::DEVICE..layout::NOTIFY => {
                self.core.write_config(offset - layout::DEVICE, data);
                Access::Done
            }
            layout::NOTIFY..layout::TABLE => self.notify_at(offset - layout::NOTIFY, data.len()),
            layout::TABLE..layout::PBA => self.interrupts.msix.write_table(offset - layout::TABLE, data),
            _ => Access::Fault,
        }
    }
}

impl Lifecycle for VirtioPci {
    fn device_id(&self) -> DeviceId {
        self.core.description().id
    }

    fn pause(&mut self) -> Option<Ticket> {
        self.poll();
        self.core.pause()
    }

    fn resume(&mut self) -> Option<Ticket> {
        self.poll();
        self.core.resume()
    }

    fn power_on_reset(&mut self) -> Option<Ticket> {
        self.write_status(0);
        let ticket = self.core.drain_ticket();
        if ticket.is_none() {
            self.config = self.power_on.clone();
            self.follow_config();
        }
        ticket
    }

    fn save(&mut self) -> Result<TransportState, TransportSaveError> {
        Ok(TransportState::Pci(PciState {
            core: self.core.save()?,
            config: self.config.save(),
            msix: self.interrupts.msix.save(),
            config_vector: self.interrupts.vector(Event::Config),
            queue_vectors: self.interrupts.queue_vectors(),
            isr: self.interrupts.isr.bits(),
        }))
    }

    fn restore(&mut self, state: &TransportState) -> Result<(), TransportRestoreError> {
        let TransportState::Pci(state) = state else {
            return Err(TransportRestoreError::WrongTransport);
        };
        let mut config = self.power_on.clone();
        config.restore(&state.config)?;
        self.interrupts.msix.check(&state.msix)?;
        self.core.restore(&state.core)?;
        self.config = config;
        // A vector that does not exist unmaps, and missing ones stay unmapped: as if the guest had written them.
        self.interrupts.map(Event::Config, state.config_vector);
        for (index, vector) in (0..self.core.queue_count()).zip(&state.queue_vectors) {
            self.interrupts.map(Event::Queue(index), *vector);
        }
        self.interrupts.msix.restore(&state.msix)?;
        self.follow_config();
        self.interrupts.isr.replace(state.isr & (ISR_QUEUE | ISR_CONFIG));
        Ok(())
    }

    fn driver_faults(&self) -> u64 {
        self.core.faults()
    }

    fn view(&self) -> TransportView {
        let mut view = self.core.view();
        if self.interrupts.msix.is_enabled() {
            view.interrupt_mode = InterruptMode::Msix;
        }
        for (index, queue) in view.queues.iter_mut().enumerate() {
            queue.pin_interrupts = self.interrupts.by_pin(index);
        }
        view
    }
}

/// The regions do not touch.
const _: () = assert!(layout::COMMON_LEN <= layout::ISR && layout::MAX_QUEUES < 1024);
