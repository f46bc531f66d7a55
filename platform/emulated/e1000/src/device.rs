//! The PCI function: configuration space, the registers' two windows, and the task behind them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use treaty_bus::{Access, PostedWrites};
use treaty_memory::GuestMemory;
use treaty_net::{BackendError, Offloads, PacketBackend};
use treaty_pci::{BAR_COUNT, BarRange, ConfigSpace, Identity, IntxLine, LayoutError, PciDevice, PostedRange};
use treaty_worker::{Exit, TaskId, WorkerHandle};

use crate::mac::{Ask, Mac};
use crate::registers::{IMC, ITR};
use crate::task::EthernetTask;

/// Which controller it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// What most guests know.
    #[default]
    I82540em,
    /// For guests that ask for a server's controller (copper).
    I82545em,
}

impl Model {
    /// The PCI device ID.
    pub fn device_id(self) -> u16 {
        match self {
            Self::I82540em => 0x100e,
            Self::I82545em => 0x100f,
        }
    }
}

/// Monotonic nanoseconds; another clock makes a test's time its own.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The controller's properties.
#[derive(Clone)]
pub struct Config {
    /// Which one.
    pub model: Model,
    /// The address in its EEPROM.
    pub mac: [u8; 6],
    /// Its timers' time; the system's if missing.
    pub clock: Option<Clock>,
}

/// What the machine gives the controller.
pub struct Parts {
    /// Guest RAM: all that the controller can reach.
    pub memory: GuestMemory,
    /// Its interrupt pin.
    pub line: Arc<dyn IntxLine>,
    /// What firmware would have written to the interrupt line register.
    pub gsi: u8,
    /// Where its registers are at first: a multiple of [`E1000::BAR_LEN`] below 4 GiB.
    pub bar_address: u64,
    /// Where its ports are at first: a multiple of [`E1000::PORTS`].
    pub io_address: u16,
    /// Runs its packets.
    pub worker: WorkerHandle,
    /// Where packets go.
    pub backend: Box<dyn PacketBackend>,
    /// Writes to [`E1000::POSTED`] that have not come yet.
    pub posted: Arc<dyn PostedWrites>,
}

/// The controller could not be made.
#[derive(Debug, thiserror::Error)]
pub enum E1000Error {
    /// The back-end would not give its ways in and out.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// An address that it was given cannot be.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// What vCPUs and the task both have.
pub(crate) struct Shared {
    mac: Mutex<Mac>,
    pub(crate) counters: Counters,
}

impl Shared {
    pub(crate) fn mac(&self) -> MutexGuard<'_, Mac> {
        self.mac.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Packets and bytes, readable from any thread.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    dropped: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
    lost: AtomicU64,
}

impl Counters {
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(1, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }
}

/// The controller as a PCI function. Dropping it stops its task.
pub struct E1000 {
    shared: Arc<Shared>,
    config: ConfigSpace,
    worker: WorkerHandle,
    task: TaskId,
    /// The register that the ports show. 8254x 4.0 §13.2.2.1
    io_register: u32,
}

const REGISTER_BAR: u8 = 0;
const IO_BAR: u8 = 1;

const fn posted(register: u32) -> PostedRange {
    PostedRange {
        bar: REGISTER_BAR,
        offset: register as u64,
        len: 4,
    }
}

impl E1000 {
    /// Bytes of its registers.
    pub const BAR_LEN: u64 = 128 << 10;
    /// How many ports it has.
    pub const PORTS: u64 = 64;
    /// Registers whose writes may come late: ITR and IMC hold interrupts back, which the card's own thread raises, and it has
    /// such writes brought before it does. Not IMS and TDT: the guest may do nothing more and wait for what they set off. Not
    /// RDT: who waits for its buffers would have to ask for it again and again.
    pub const POSTED: [PostedRange; 2] = [posted(ITR), posted(IMC)];

    /// Makes it and starts its task.
    pub fn new(config: &Config, mut parts: Parts) -> Result<Self, E1000Error> {
        let space = config_space(config.model, &parts)?;
        parts.backend.set_receive_offloads(Offloads::NONE)?;
        let (sender, receiver) = (parts.backend.sender(0)?, parts.backend.receiver(0)?);
        let clock = config.clock.clone().unwrap_or_else(system_clock);
        let device = config.model.device_id();
        let mac = Mac::new(config.mac, device, true, parts.memory, parts.line, clock);
        let shared = Arc::new(Shared {
            mac: Mutex::new(mac),
            counters: Counters::default(),
        });
        let task = EthernetTask::new(shared.clone(), sender, receiver, parts.posted);
        let failed = shared.clone();
        let task = parts.worker.add(
            Box::new(task),
            Box::new(move |exit| {
                if let Exit::Failed(reason) = exit {
                    tracing::error!(%reason, "the network card's task failed; link down");
                    failed.mac().set_plugged(false);
                }
            }),
        );
        Ok(Self {
            shared,
            config: space,
            worker: parts.worker,
            task,
            io_register: 0,
        })
    }

    /// Plugs the cable in or out.
    pub fn set_link(&self, up: bool) {
        self.shared.mac().set_plugged(up);
        self.worker.wake(self.task);
    }

    /// Holds its rings: nothing is read from or written to guest memory until it goes on.
    pub fn set_paused(&self, paused: bool) {
        self.shared.mac().set_paused(paused);
        self.worker.wake(self.task);
    }

    /// Calls `each` with every counter's name and value.
    pub fn visit_counters(&self, each: &mut dyn FnMut(&'static str, u64)) {
        let counters = &self.shared.counters;
        for (name, value) in [
            ("tx_packets", &counters.sent),
            ("tx_bytes", &counters.sent_bytes),
            ("tx_dropped", &counters.dropped),
            ("rx_packets", &counters.received),
            ("rx_bytes", &counters.received_bytes),
            ("rx_lost", &counters.lost),
        ] {
            each(name, value.load(Ordering::Relaxed));
        }
    }

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Access {
        let (Ok(offset), true) = (u32::try_from(offset), data.len() == 4 && offset.is_multiple_of(4)) else {
            return Access::Fault;
        };
        data.copy_from_slice(&self.shared.mac().read(offset).to_le_bytes());
        Access::Done
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Access {
        let (Ok(offset), Ok(bytes)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) else {
            return Access::Fault;
        };
        if !offset.is_multiple_of(4) {
            return Access::Fault;
        }
        let ask = self.shared.mac().write(offset, u32::from_le_bytes(bytes));
        if ask == Ask::Turn {
            self.worker.wake(self.task);
        }
        Access::Done
    }

    /// The address port at 0 chooses the register that the data port at 4 shows. 8254x 4.0 §13.2.2
    fn read_port(&mut self, offset: u64, data: &mut [u8]) -> Access {
        match (offset, data.len()) {
            (0, 4) => {
                data.copy_from_slice(&self.io_register.to_le_bytes());
                Access::Done
            }
            (4, 4) => self.read_register(u64::from(self.io_register), data),
            _ => Access::Fault,
        }
    }

    fn write_port(&mut self, offset: u64, data: &[u8]) -> Access {
        match (offset, <[u8; 4]>::try_from(data)) {
            (0, Ok(bytes)) => {
                self.io_register = u32::from_le_bytes(bytes);
                Access::Done
            }
            (4, Ok(_)) => self.write_register(u64::from(self.io_register), data),
            _ => Access::Fault,
        }
    }
}

fn config_space(model: Model, parts: &Parts) -> Result<ConfigSpace, LayoutError> {
    let mut space = ConfigSpace::new(&Identity {
        vendor: 0x8086,
        device: model.device_id(),
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        class: 0x02_00_00,
        revision: 3,
    });
    space.add_bar_32(REGISTER_BAR, E1000::BAR_LEN, parts.bar_address)?;
    space.add_io_bar(IO_BAR, E1000::PORTS, parts.io_address)?;
    space.set_interrupt_pin(parts.gsi);
    Ok(space)
}

fn system_clock() -> Clock {
    let start = Instant::now();
    Arc::new(move || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

impl PciDevice for E1000 {
    fn bars(&self) -> [Option<BarRange>; BAR_COUNT] {
        self.config.bars()
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) -> Access {
        self.config.set_interrupt_status(self.shared.mac().level());
        self.config.read(offset, data);
        Access::Done
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
        self.config.write(offset, data);
        let mut mac = self.shared.mac();
        mac.set_intx_off(self.config.intx_disabled());
        mac.bus_master = self.config.bus_master();
        drop(mac);
        self.worker.wake(self.task);
        Access::Done
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) -> Access {
        match bar {
            REGISTER_BAR => self.read_register(offset, data),
            IO_BAR => self.read_port(offset, data),
            _ => Access::Fault,
        }
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Access {
        match bar {
            REGISTER_BAR => self.write_register(offset, data),
            IO_BAR => self.write_port(offset, data),
            _ => Access::Fault,
        }
    }
}

impl Drop for E1000 {
    fn drop(&mut self) {
        self.worker.stop(self.task);
    }
}
