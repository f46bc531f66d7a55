//! The PCI function: configuration space, the registers' two windows, the RAM on the chip, and the task behind them.

use std::sync::Arc;

use treaty_bus::{Access, Ticket};
use treaty_memory::GuestMemory;
use treaty_pci::{BAR_COUNT, BarRange, BarSpace, ConfigSpace, Identity, IntxLine, LayoutError, PciDevice};
use treaty_scsi_target::{Kind, Unit, UnitConfig};
use treaty_storage::{BlockImage, StorageError};
use treaty_worker::{Exit, TaskId, WorkerHandle};

use crate::bus::Bus;
use crate::chip::Chip;
use crate::dma::RAM_BYTES;
use crate::registers::dstat;
use crate::target::{PLACES, Target, Tasks};
use crate::task::{Image, ScsiTask, Shared};

/// What is at one number of the bus.
pub struct TargetConfig {
    /// The medium.
    pub image: Arc<dyn BlockImage>,
    /// A CD-ROM, not a disk.
    pub cdrom: bool,
    /// At most 36 characters.
    pub serial: String,
}

/// What the machine gives the controller.
pub struct Parts {
    /// Guest RAM: with the RAM on the chip, all that scripts can reach.
    pub memory: GuestMemory,
    /// Its interrupt pin.
    pub line: Arc<dyn IntxLine>,
    /// What firmware would have written to the interrupt line register.
    pub gsi: u8,
    /// Where its ports are at first: a multiple of [`Lsi::PORTS`].
    pub io_address: u16,
    /// Where its registers are at first: a multiple of [`Lsi::REGISTER_BYTES`] below 4 GiB.
    pub register_address: u64,
    /// Where its RAM is at first: a multiple of [`Lsi::RAM_BYTES`] below 4 GiB.
    pub ram_address: u64,
    /// Runs its scripts and requests.
    pub worker: WorkerHandle,
    /// By number on the bus; number 7 is the controller's own.
    pub targets: [Option<TargetConfig>; PLACES],
}

/// The controller could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LsiError {
    /// An image gave no queue.
    #[error(transparent)]
    Image(#[from] StorageError),
    /// An address that it was given cannot be.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// The controller. Dropping it stops its task.
pub struct Lsi {
    shared: Arc<Shared>,
    config: ConfigSpace,
    worker: WorkerHandle,
    task: TaskId,
}

/// Cache Line Size. PCI Local Bus 3.0 §6.2.4
const CACHE_LINE: u16 = 0x0c;
const IO_BAR: u8 = 0;
const REGISTER_BAR: u8 = 1;
const RAM_BAR: u8 = 2;

impl Lsi {
    /// How many ports it has.
    pub const PORTS: u64 = 256;
    /// Bytes of its registers in memory.
    pub const REGISTER_BYTES: u64 = 1024;
    /// Bytes of its RAM.
    pub const RAM_BYTES: u64 = RAM_BYTES as u64;
    /// Numbers on the bus.
    pub const PLACES: usize = PLACES;
    /// The controller's own number.
    pub const OWN: usize = 7;

    /// Makes it and starts its task.
    pub fn new(parts: Parts) -> Result<Self, LsiError> {
        let config = config_space(&parts)?;
        let mut images = Vec::new();
        for (number, target) in (0..).zip(&parts.targets) {
            if let Some(target) = target {
                let queue = target.image.queue()?;
                images.push(Image {
                    target: number,
                    queue,
                });
            }
        }
        let targets = parts.targets.map(|config| config.map(|config| target(&config)));
        let bus = Bus::new(Tasks::new(targets));
        let chip = Chip::new(parts.memory, bus, parts.line);
        let shared = Arc::new(Shared::new(chip));
        let failed = shared.clone();
        let task = parts.worker.add(
            Box::new(ScsiTask::new(shared.clone(), images)),
            Box::new(move |exit| {
                if let Exit::Failed(reason) = exit {
                    tracing::error!(%reason, "the SCSI controller's task failed");
                    let mut chip = failed.chip();
                    chip.raise_dma(dstat::BF);
                    chip.update_line();
                }
            }),
        );
        let mut controller = Self {
            shared,
            config,
            worker: parts.worker,
            task,
        };
        controller.configured();
        Ok(controller)
    }

    /// Holds scripts and requests back; a ticket if some have to end first.
    pub fn pause(&self) -> Option<Ticket> {
        let mut chip = self.shared.chip();
        chip.paused = true;
        if !chip.bus.tasks.is_busy() {
            return None;
        }
        let (ticket, holder) = Ticket::new();
        self.shared.when_idle(holder);
        drop(chip);
        self.worker.wake(self.task);
        Some(ticket)
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.shared.chip().paused = false;
        self.worker.wake(self.task);
    }

    /// Brings the chip what configuration space says.
    fn configured(&mut self) {
        let bars = self.config.bars();
        let place = |index: u8| {
            let range = bars.get(usize::from(index)).copied().flatten()?;
            (range.space == BarSpace::Memory).then_some(range.start)
        };
        let mut chip = self.shared.chip();
        chip.dma.may_master = self.config.bus_master();
        chip.dma.ram_at = place(RAM_BAR);
        chip.registers_at = place(REGISTER_BAR).unwrap_or(0) as u32;
        chip.intx_off = self.config.intx_disabled();
        chip.update_line();
    }

    fn read_registers(&self, offset: u64, data: &mut [u8]) {
        let mut chip = self.shared.chip();
        for (at, byte) in (offset..).zip(data) {
            *byte = chip.read(at as u8);
        }
        chip.update_line();
    }

    fn write_registers(&self, offset: u64, data: &[u8]) {
        let mut chip = self.shared.chip();
        for (at, byte) in (offset..).zip(data) {
            chip.write(at as u8, *byte);
        }
        chip.update_line();
        let stirred = chip.take_stirred();
        drop(chip);
        if stirred {
            self.worker.wake(self.task);
        }
    }
}

fn target(config: &TargetConfig) -> Target {
    let capabilities = config.image.capabilities();
    let (kind, product) = if config.cdrom {
        (Kind::Cdrom, "DVD-ROM")
    } else {
        (Kind::Disk, "DISK")
    };
    Target {
        unit: Unit::new(UnitConfig {
            kind,
            vendor: "TREATY".into(),
            product: product.into(),
            serial: config.serial.clone(),
            len: Some(capabilities.len),
            block_size: capabilities.block_size,
            optimal_size: capabilities.optimal_size.max(capabilities.block_size),
            read_only: capabilities.read_only,
            discard: capabilities.discard,
        }),
        zeroes: capabilities.write_zeroes,
        told: false,
    }
}

fn config_space(parts: &Parts) -> Result<ConfigSpace, LayoutError> {
    let mut space = ConfigSpace::new(&Identity {
        vendor: 0x1000,
        device: 0x0012,
        subsystem_vendor: 0x1000,
        subsystem: 0x1000,
        // SCSI.
        class: 0x01_00_00,
        revision: 0,
    });
    space.add_io_bar(IO_BAR, Lsi::PORTS, parts.io_address)?;
    space.add_bar_32(REGISTER_BAR, Lsi::REGISTER_BYTES, parts.register_address)?;
    space.add_bar_32(RAM_BAR, Lsi::RAM_BYTES, parts.ram_address)?;
    // Kept, and without a meaning here; Linux's driver gives up if it cannot be set.
    space.add_register(CACHE_LINE, &[0], &[0xff]);
    space.set_interrupt_pin(parts.gsi);
    Ok(space)
}

impl PciDevice for Lsi {
    fn bars(&self) -> [Option<BarRange>; BAR_COUNT] {
        self.config.bars()
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) -> Access {
        self.config.set_interrupt_status(self.shared.chip().level());
        self.config.read(offset, data);
        Access::Done
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
        self.config.write(offset, data);
        self.configured();
        Access::Done
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) -> Access {
        match bar {
            IO_BAR | REGISTER_BAR => self.read_registers(offset, data),
            RAM_BAR => {
                let len = data.len();
                let mut chip = self.shared.chip();
                data.iter_mut()
                    .zip(chip.dma.ram(offset, len))
                    .for_each(|(to, from)| *to = *from);
            }
            _ => return Access::Fault,
        }
        Access::Done
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Access {
        match bar {
            IO_BAR | REGISTER_BAR => self.write_registers(offset, data),
            RAM_BAR => {
                let mut chip = self.shared.chip();
                let ram = chip.dma.ram(offset, data.len());
                ram.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
            }
            _ => return Access::Fault,
        }
        Access::Done
    }
}

impl Drop for Lsi {
    fn drop(&mut self) {
        self.worker.stop(self.task);
    }
}
