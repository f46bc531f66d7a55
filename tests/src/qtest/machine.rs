//! The board of `treaty run --machine pc`, without processors and without KVM: what a qtest session reads and writes.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use treaty_bus::{Bus, BusDevice, BusTarget, NothingPosted};
use treaty_catalog::{DiskContext, image};
use treaty_chipset::{I8042, PM_LEN, PowerControl, PowerManagement, PowerRequest, Rtc, SystemControl};
use treaty_e1000::{Config, E1000, Model};
use treaty_fw_cfg::{Contents, FwCfg};
use treaty_ide::{DriveConfig, Ide};
use treaty_memory::{GuestMemory, Region};
use treaty_net::Null;
use treaty_pci::{CONFIG_PORTS, IntxLine, PciDevice, PciRoot, WithRom};
use treaty_piix::{
    ConfigPorts, I440fx, IDE_FUNCTION, PIIX_SLOT, PM_FUNCTION, Piix3, Piix4Pm, PirqRouter, Shadow,
    ShadowAccess, pirq_of,
};
use treaty_plan::from_flag;
use treaty_worker::{ReactorKind, Worker, WorkerHandle};

/// Guest memory in bytes.
pub const RAM: usize = 64 << 20;
/// Slot of the network card.
pub const CARD_SLOT: u8 = 2;
/// Hardware address of the network card.
pub const CARD_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

const ACCESS_LIMIT: Duration = Duration::from_secs(30);
const PM_START: u64 = 0x600;
const MMIO: std::ops::Range<u64> = 0x8000_0000..0xfec0_0000;
const SCI: usize = 9;

/// Says which interrupts change, once it is asked to.
#[derive(Default)]
pub struct Interrupts {
    on: AtomicBool,
    /// A bit for each GSI.
    levels: AtomicU64,
}

impl Interrupts {
    /// From now on changes are said.
    pub fn intercept(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
    }
}

struct Line(Arc<Interrupts>, usize);

impl IntxLine for Line {
    fn set(&self, level: bool) {
        let bit = 1 << self.1;
        let levels = &self.0.levels;
        let before = match level {
            true => levels.fetch_or(bit, Ordering::SeqCst),
            false => levels.fetch_and(!bit, Ordering::SeqCst),
        };
        if (before & bit != 0) != level && self.0.on.load(Ordering::SeqCst) {
            let how = if level { "raise" } else { "lower" };
            say(&format!("IRQ {how} {}", self.1));
        }
    }
}

/// One line to whoever drives the machine, whole.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Who does not listen any more will not be missed.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

struct Power;

impl PowerControl for Power {
    fn request(&self, request: PowerRequest) {
        say(&format!("# {request:?}"));
    }
}

/// Nothing is mapped anew: reads and writes below 1 MiB reach RAM.
struct FlatMemory;

impl Shadow for FlatMemory {
    fn set(&mut self, _segment: usize, _access: ShadowAccess) {}
}

/// The machine.
pub struct Machine {
    /// Guest memory.
    pub memory: GuestMemory,
    /// Ports.
    pub ports: Bus,
    /// Registers in memory.
    pub mmio: Bus,
    /// Interrupts of the controllers' pins.
    pub interrupts: Arc<Interrupts>,
    _workers: Vec<Worker>,
}

impl Machine {
    /// With `disk`, a raw image, as the first drive, and `rom`, an expansion ROM, in the network card.
    pub fn new(disk: &Path, rom: &Path) -> Result<Self> {
        let memory = GuestMemory::new(vec![Region::memfd(0, RAM)?])?;
        let interrupts = Arc::new(Interrupts::default());
        let line = |gsi| -> Arc<dyn IntxLine> { Arc::new(Line(interrupts.clone(), gsi)) };
        let router = PirqRouter::new(
            std::array::from_fn(line),
            std::array::from_fn(|pirq| line(16 + pirq)),
        );
        let bridge = I440fx::new(Box::new(FlatMemory), ShadowAccess::Bus);
        let root = PciRoot::with_bridge(Arc::new(Mutex::new(bridge)));
        let mut ports = Bus::new(ACCESS_LIMIT);
        let workers = vec![
            Worker::start("disk", ReactorKind::Auto)?,
            Worker::start("card", ReactorKind::Auto)?,
        ];
        let [disk_worker, card_worker] = [0, 1].map(|index: usize| workers[index].handle());
        let ide = controller(disk, &memory, [line(14), line(15)], disk_worker)?;
        for ((command, control), targets) in Ide::FIXED_PORTS.into_iter().zip(ide.fixed_ports()) {
            ports.register(command, targets.0)?;
            ports.register(control, targets.1)?;
        }
        let card = card(&memory, Arc::new(router.line(pirq_of(CARD_SLOT))), card_worker)?;
        root.add(PIIX_SLOT, function(Piix3::new(router)))?;
        root.add_function(PIIX_SLOT, IDE_FUNCTION, function(ide))?;
        root.add_function(
            PIIX_SLOT,
            PM_FUNCTION,
            function(Piix4Pm::new(PM_START as u16, SCI as u8)),
        )?;
        let card = WithRom::new(card, std::fs::read(rom)?);
        root.add(CARD_SLOT, function(card))?;
        let config = ConfigPorts::new(root.ports(), Arc::new(Power));
        ports.register(CONFIG_PORTS..CONFIG_PORTS + 8, Arc::new(config))?;
        ports.register(0xc000..0x1_0000, root.port_window(0xc000))?;
        let mut mmio = Bus::new(ACCESS_LIMIT);
        mmio.register(MMIO, root.window(MMIO.start))?;
        add_chipset(&mut ports, &memory, line(SCI))?;
        Ok(Self {
            memory,
            ports,
            mmio,
            interrupts,
            _workers: workers,
        })
    }
}

/// The IDE controller with one drive.
fn controller(
    disk: &Path,
    memory: &GuestMemory,
    lines: [Arc<dyn IntxLine>; 2],
    worker: WorkerHandle,
) -> Result<Ide> {
    let plan = from_flag(&format!("path={},format=raw,if=ide", disk.display()), None)?;
    let drive = DriveConfig {
        image: image("disk0", &plan, &mut DiskContext::default())?.0,
        cdrom: false,
        serial: "QM00001".into(),
        worker,
    };
    Ok(Ide::new(treaty_ide::Parts {
        memory: memory.clone(),
        lines,
        io_address: 0,
        drives: [Some(drive), None, None, None],
        posted: Arc::new(NothingPosted),
    })?)
}

/// A network card whose frames vanish.
fn card(memory: &GuestMemory, line: Arc<dyn IntxLine>, worker: WorkerHandle) -> Result<E1000> {
    let config = Config {
        model: Model::I82540em,
        mac: CARD_MAC,
        clock: None,
    };
    let parts = treaty_e1000::Parts {
        memory: memory.clone(),
        line,
        gsi: 0,
        bar_address: 0,
        io_address: 0,
        worker,
        backend: Box::new(Null::new(1)),
        posted: Arc::new(NothingPosted),
    };
    Ok(E1000::new(&config, parts)?)
}

fn add_chipset(ports: &mut Bus, memory: &GuestMemory, sci: Arc<dyn IntxLine>) -> Result<()> {
    let mut clock = Rtc::new(Box::new(|| 0));
    clock.set_machine(RAM as u64, 0, 1);
    let power = PowerManagement::new(Arc::new(Power), Box::new(move |level| sci.set(level)));
    let fw_cfg = FwCfg::new(Contents::default(), memory.clone());
    ports.register(0x70..0x72, device(clock))?;
    ports.register(0x60..0x65, device(I8042::new(Arc::new(Power))))?;
    ports.register(0x92..0x93, device(SystemControl::new(Arc::new(Power))))?;
    ports.register(0x510..0x510 + FwCfg::PORTS, device(fw_cfg))?;
    ports.register(PM_START..PM_START + PM_LEN, device(power))?;
    Ok(())
}

fn device(device: impl BusDevice + 'static) -> Arc<dyn BusTarget> {
    Arc::new(Mutex::new(device))
}

fn function(function: impl PciDevice + 'static) -> Arc<Mutex<dyn PciDevice>> {
    Arc::new(Mutex::new(function))
}
