//! The PCI function of a PIIX3 and its fixed ports. Intel 82371SB 290550-001 §2.3

use std::ops::Range;
use std::sync::Arc;

use treaty_bus::{Access, BusTarget, PostedWrites, Ticket};
use treaty_memory::GuestMemory;
use treaty_pci::{BAR_COUNT, BarRange, ConfigSpace, Identity, IntxLine, LayoutError, PciDevice, PostedRange};
use treaty_scsi_target::{Kind, Unit, UnitConfig};
use treaty_storage::{BlockImage, StorageError};
use treaty_worker::WorkerHandle;

use crate::channel::{Channel, Runner};
use crate::drive::{Disk, Drive, Media, SECTOR};
use crate::registers::Geometry;

/// What is in a drive's place.
pub struct DriveConfig {
    /// The medium; none in an empty CD-ROM.
    pub image: Arc<dyn BlockImage>,
    /// A CD-ROM, not a disk.
    pub cdrom: bool,
    /// At most 20 characters.
    pub serial: String,
    /// Runs its requests.
    pub worker: WorkerHandle,
}

/// What the machine gives the controller.
pub struct Parts {
    /// Guest RAM: all that bus-master DMA can reach.
    pub memory: GuestMemory,
    /// Interrupts 14 and 15, of the first and the second channel.
    pub lines: [Arc<dyn IntxLine>; 2],
    /// Where the bus masters' ports are at first: a multiple of 16.
    pub io_address: u16,
    /// First and second drive of the first channel, then of the second.
    pub drives: [Option<DriveConfig>; 4],
    /// Writes to [`Ide::POSTED_FIXED`] and [`Ide::POSTED`] that have not come yet.
    pub posted: Arc<dyn PostedWrites>,
}

/// The controller could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IdeError {
    /// An image gave no queue.
    #[error(transparent)]
    Image(#[from] StorageError),
    /// An address that it was given cannot be.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// The controller. Dropping it stops its tasks.
pub struct Ide {
    config: ConfigSpace,
    channels: [Arc<Channel>; 2],
}

const BUS_MASTER_BAR: u8 = 4;
/// Ports of one channel's bus master.
const BUS_MASTER_PORTS: u64 = 8;

/// SFF-8038i 1.0 §2.3
const fn table_address(channel: u64) -> PostedRange {
    PostedRange {
        bar: BUS_MASTER_BAR,
        offset: channel * BUS_MASTER_PORTS + 4,
        len: 4,
    }
}

/// IDETIM: timings of each channel, and whether its ports are decoded. 82371SB 290550-001 §2.3.11
const TIMINGS: u16 = 0x40;

impl Ide {
    /// How many ports the bus masters have.
    pub const PORTS: u64 = 2 * BUS_MASTER_PORTS;
    /// The fixed ports: of each channel, the command block and the control register.
    pub const FIXED_PORTS: [(Range<u64>, Range<u64>); 2] =
        [(0x1f0..0x1f8, 0x3f6..0x3f7), (0x170..0x178, 0x376..0x377)];
    /// Ports, as first and count, whose writes may come late: of each channel the task file, which only the next command or read
    /// looks at. Choosing a drive also chooses whose interrupt is seen: a drive's thread has such writes brought before it
    /// raises one.
    pub const POSTED_FIXED: [(u16, u32); 2] = [(0x1f1, 6), (0x171, 6)];
    /// The same in the bus masters' BAR: the address of each channel's table. Not their status: what it clears must not be
    /// something newer.
    pub const POSTED: [PostedRange; 2] = [table_address(0), table_address(1)];

    /// Makes it and starts its drives' tasks.
    pub fn new(parts: Parts) -> Result<Self, IdeError> {
        let config = config_space(parts.io_address)?;
        let [first, second] = parts.lines;
        let [a, b, c, d] = parts.drives;
        let channels = [
            channel([a, b], &parts.memory, first, &parts.posted)?,
            channel([c, d], &parts.memory, second, &parts.posted)?,
        ];
        Ok(Self { config, channels })
    }

    /// The targets of [`FIXED_PORTS`](Self::FIXED_PORTS), in the same order.
    pub fn fixed_ports(&self) -> [(Arc<dyn BusTarget>, Arc<dyn BusTarget>); 2] {
        self.channels.clone().map(|channel| {
            let command: Arc<dyn BusTarget> = Arc::new(CommandBlock(channel.clone()));
            let control: Arc<dyn BusTarget> = Arc::new(ControlBlock(channel));
            (command, control)
        })
    }

    /// Holds requests back and closes the queues to the images; a ticket if it has to be asked again.
    pub fn pause(&self) -> Option<Ticket> {
        let tickets = self.channels.each_ref().map(|channel| channel.stop_tasks());
        tickets.into_iter().flatten().next()
    }

    /// Lets requests go on, with new queues to the images.
    pub fn resume(&self) {
        self.channels.iter().for_each(Channel::start_tasks);
    }

    fn channel_of(&self, offset: u64) -> Option<(&Arc<Channel>, u64)> {
        let channel = self.channels.get((offset / BUS_MASTER_PORTS) as usize)?;
        Some((channel, offset % BUS_MASTER_PORTS))
    }
}

fn channel(
    configs: [Option<DriveConfig>; 2],
    memory: &GuestMemory,
    line: Arc<dyn IntxLine>,
    posted: &Arc<dyn PostedWrites>,
) -> Result<Arc<Channel>, IdeError> {
    let mut runners = Vec::new();
    for (index, config) in configs.iter().enumerate() {
        if let Some(config) = config {
            let runner = Runner::new(config.worker.clone(), config.image.clone());
            runners.push((index, runner));
        }
    }
    let drives = configs.map(|config| config.map(|config| drive(&config)));
    let channel = Arc::new(Channel::new(drives, memory.clone(), line, posted.clone()));
    for (index, runner) in runners {
        channel.run(index, runner)?;
    }
    Ok(channel)
}

fn drive(config: &DriveConfig) -> Drive {
    let capabilities = config.image.capabilities();
    let media = if config.cdrom {
        Media::Cdrom(Box::new(Unit::new(UnitConfig {
            kind: Kind::Cdrom,
            vendor: "TREATY".into(),
            product: "DVD-ROM".into(),
            serial: config.serial.clone(),
            len: Some(capabilities.len),
            block_size: 2048,
            optimal_size: 2048,
            read_only: true,
            discard: false,
        })))
    } else {
        Media::Disk(Disk {
            sectors: capabilities.len / SECTOR,
            geometry: Geometry::USUAL,
            multiple: 0,
            write_cache: true,
            read_only: capabilities.read_only,
            discard: capabilities.discard,
        })
    };
    Drive::new(config.serial.clone(), media)
}

fn config_space(io_address: u16) -> Result<ConfigSpace, LayoutError> {
    let mut space = ConfigSpace::new(&Identity {
        vendor: 0x8086,
        device: 0x7010,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        // IDE at the fixed ports, with a bus master.
        class: 0x01_01_80,
        revision: 0,
    });
    space.add_io_bar(BUS_MASTER_BAR, Ide::PORTS, io_address)?;
    // Both channels are decoded. Timings are kept and mean nothing.
    space.add_register(TIMINGS, &[0, 0x80, 0, 0x80, 0], &[0xff; 5]);
    Ok(space)
}

impl PciDevice for Ide {
    fn bars(&self) -> [Option<BarRange>; BAR_COUNT] {
        self.config.bars()
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) -> Access {
        self.config.read(offset, data);
        Access::Done
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
        self.config.write(offset, data);
        let may = self.config.bus_master();
        self.channels
            .iter()
            .for_each(|channel| channel.set_may_master(may));
        Access::Done
    }

    fn read_bar(&mut self, _bar: u8, offset: u64, data: &mut [u8]) -> Access {
        match self.channel_of(offset) {
            Some((channel, offset)) => {
                channel.read_bus_master(offset, data);
                Access::Done
            }
            None => Access::Fault,
        }
    }

    fn write_bar(&mut self, _bar: u8, offset: u64, data: &[u8]) -> Access {
        match self.channel_of(offset) {
            Some((channel, offset)) => channel.write_bus_master(offset, data),
            None => Access::Fault,
        }
    }
}

impl Drop for Ide {
    fn drop(&mut self) {
        for channel in &self.channels {
            // The worker waits for them.
            channel.stop_tasks();
        }
    }
}

/// A channel's eight ports.
struct CommandBlock(Arc<Channel>);

impl BusTarget for CommandBlock {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        self.0.read_command_block(offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        self.0.write_command_block(offset, data)
    }
}

/// A channel's control port.
struct ControlBlock(Arc<Channel>);

impl BusTarget for ControlBlock {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Access {
        data.fill(self.0.read_control());
        Access::Done
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Access {
        if let [value] = data {
            self.0.write_control(*value);
        }
        Access::Done
    }
}
