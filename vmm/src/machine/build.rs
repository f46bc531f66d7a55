use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use treaty_bus::Bus;
use treaty_kvm::{Entry, Vcpu, Vm};
use treaty_memory::{GuestMemory, Region};
use treaty_pci::{CONFIG_PORTS, ECAM_LEN, PciRoot};
use treaty_piix::PirqRouter;
use treaty_tables::MmioDevice;

use super::chipset::Power;
use super::pc::Rom;
use super::virtio::Attached;
use super::{BuildError, Host, Machine, chipset, firmware, pc, virtio};
use crate::boot::{self, Boot};
use crate::exits::Exits;
use crate::layout;
use crate::plan::{MachineKind, MachinePlan};
use crate::posted::Posted;
use crate::vcpu::Buses;

/// The longest that a vCPU waits for a device that has to drain.
const ACCESS_LIMIT: Duration = Duration::from_secs(30);

/// A machine half built. Steps fill it; none looks at what a later one does.
pub(super) struct Build<'a> {
    pub(super) plan: &'a MachinePlan,
    pub(super) host: &'a Host,
    pub(super) memory: GuestMemory,
    pub(super) vm: Arc<Vm>,
    pub(super) ports: Bus,
    pub(super) mmio: Bus,
    pub(super) pci: Arc<PciRoot>,
    pub(super) posted: Arc<Posted>,
    /// A PC's PCI interrupts.
    pub(super) router: Option<Arc<PirqRouter>>,
    /// virtio-mmio register blocks placed so far.
    pub(super) mmio_devices: Vec<MmioDevice>,
}

/// Builds the machine for one boot.
pub(crate) fn build(plan: &MachinePlan, host: &Host) -> Result<Machine, BuildError> {
    let memory = step("memory", || guest_memory(plan))?;
    let rom = plan.firmware_path();
    let rom = step("firmware", || rom.as_deref().map(Rom::read).transpose())?;
    let firmware = rom.is_some();
    let vm = step("virtual machine", || {
        virtual_machine(plan, host, &memory, rom.as_ref())
    })?;
    let (pci, router) = match plan.machine {
        MachineKind::Virt => (PciRoot::new(), None),
        MachineKind::Pc => {
            let (root, router) = step("board", || pc::pci(&vm, &memory, rom))?;
            (root, Some(router))
        }
    };
    let mut build = Build {
        plan,
        host,
        memory,
        posted: Arc::new(Posted::new(vm.coalesced())),
        vm,
        ports: Bus::new(ACCESS_LIMIT),
        mmio: Bus::new(ACCESS_LIMIT),
        pci,
        router,
        mmio_devices: Vec::new(),
    };
    let power = step("chipset", || chipset::add(&mut build))?;
    step("PCI bus", || add_pci(&mut build))?;
    let devices = step("devices", || virtio::add(&mut build, &host.slots))?;
    let entry = if firmware {
        step("fw_cfg", || pc::add_fw_cfg(&mut build, &devices))?;
        None
    } else {
        let rsdp = step("ACPI tables", || firmware::write_tables(&build))?;
        Some(step("kernel", || load_kernel(&build, rsdp))?)
    };
    let vcpus = step("vCPUs", || create_vcpus(&build, entry))?;
    Ok(finish(build, vcpus, power, devices))
}

fn step<T>(name: &'static str, run: impl FnOnce() -> Result<T, BuildError>) -> Result<T, BuildError> {
    let started = Instant::now();
    let result = run();
    tracing::debug!(
        step = name,
        ms = started.elapsed().as_millis() as u64,
        ok = result.is_ok(),
        "machine build"
    );
    result
}

fn guest_memory(plan: &MachinePlan) -> Result<GuestMemory, BuildError> {
    let huge_pages = plan.hugepages;
    let mut regions = Vec::new();
    for (start, len) in layout::ram(plan.memory.bytes()) {
        let len = len as usize;
        let region = if huge_pages {
            Region::memfd_huge_pages(start, len)
        } else {
            Region::memfd(start, len)
        };
        let region = region.map_err(|source| BuildError::Memory { source, huge_pages })?;
        region.advise_huge_pages();
        regions.push(region);
    }
    Ok(GuestMemory::new(regions)?)
}

fn virtual_machine(
    plan: &MachinePlan,
    host: &Host,
    memory: &GuestMemory,
    rom: Option<&Rom>,
) -> Result<Arc<Vm>, BuildError> {
    let vm = host.kvm.create_vm(plan.cpus)?;
    if plan.machine == MachineKind::Pc {
        pc::map_memory(&vm, memory, rom)?;
        return Ok(Arc::new(vm));
    }
    for (slot, region) in (0..).zip(memory.regions()) {
        map_region(&vm, slot, region, 0..region.len() as u64)?;
    }
    Ok(Arc::new(vm))
}

/// Maps a part of a region where it is in the guest.
#[allow(unsafe_code)]
pub(super) fn map_region(vm: &Vm, slot: u32, region: &Region, part: Range<u64>) -> Result<(), BuildError> {
    let (start, host) = (
        region.guest_start() + part.start,
        region.host_address() + part.start,
    );
    // SAFETY: the machine keeps its `GuestMemory` until its vCPU threads have been joined, and nothing makes Rust
    // references to guest memory.
    Ok(unsafe { vm.map_memory(slot, start, part.end - part.start, host) }?)
}

/// Maps a part of a region at `address`, for reading.
#[allow(unsafe_code)]
pub(super) fn map_rom(
    vm: &Vm,
    slot: u32,
    address: u64,
    region: &Region,
    part: Range<u64>,
) -> Result<(), BuildError> {
    let host = region.host_address() + part.start;
    // SAFETY: as in `map_region`; the ROM's region is kept by the PCI bus, which the machine has as long as its memory.
    Ok(unsafe { vm.map_rom(slot, address, part.end - part.start, host) }?)
}

fn add_pci(build: &mut Build<'_>) -> Result<(), BuildError> {
    let (kind, ram) = (build.plan.machine, build.plan.memory.bytes());
    match kind {
        MachineKind::Virt => {
            let ecam = layout::PCI_ECAM_START;
            build.mmio.register(ecam..ecam + ECAM_LEN, build.pci.ecam())?;
            build
                .ports
                .register(CONFIG_PORTS..CONFIG_PORTS + 8, build.pci.ports())?;
        }
        MachineKind::Pc => pc::add_ports(build)?,
    }
    for window in [
        layout::pci_window_32(kind, ram),
        layout::pci_decoded_64(kind, ram),
    ] {
        let target = build.pci.window(window.start);
        build.mmio.register(window, target)?;
    }
    // The guest may move I/O BARs anywhere that nobody else answers; those that it leaves are here.
    let ports = layout::pci_ports(kind);
    let target = build.pci.port_window(ports.start);
    build.ports.register(ports, target)?;
    Ok(())
}

fn load_kernel(build: &Build<'_>, rsdp: u64) -> Result<Entry, BuildError> {
    let plan = build.plan;
    let kernel = plan.kernel.as_deref().unwrap_or_else(|| "".as_ref());
    let ecam_len = if plan.machine == MachineKind::Virt {
        ECAM_LEN
    } else {
        0
    };
    let memory_map = layout::memory_map(plan.memory.bytes(), ecam_len);
    let boot = Boot {
        kernel,
        initrd: plan.initrd.as_deref(),
        cmdline: &plan.cmdline,
        memory_map: &memory_map,
        rsdp,
    };
    Ok(boot::load(&boot, &build.memory)?)
}

/// The first starts the kernel, or at the firmware's reset vector; the others wait for it to wake them.
fn create_vcpus(build: &Build<'_>, entry: Option<Entry>) -> Result<Vec<Vcpu>, BuildError> {
    let vcpus = (0..build.plan.cpus)
        .map(|index| build.vm.create_vcpu(index))
        .collect::<Result<Vec<_>, _>>()?;
    if let (Some(first), Some(entry)) = (vcpus.first(), entry) {
        first.start_at(entry)?;
    }
    Ok(vcpus)
}

fn finish(build: Build<'_>, vcpus: Vec<Vcpu>, power: Power, devices: Vec<Attached>) -> Machine {
    let (ports, memory) = (Arc::new(build.ports), Arc::new(build.mmio));
    build.posted.connect(&ports, &memory);
    let stats = vcpus.iter().filter_map(Vcpu::stats).collect();
    let exits = Arc::new(Exits::new(build.posted.clone(), stats));
    Machine {
        vcpus,
        buses: Buses {
            ports,
            memory,
            posted: build.posted,
            exits: exits.clone(),
        },
        exits,
        life: build.host.life.clone(),
        power,
        devices: Arc::new(devices),
        _memory: build.memory,
    }
}
