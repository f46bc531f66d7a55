use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::KvmError;

const IOAPIC_PINS: u32 = 24;
const PIC_PINS: u32 = 8;
/// The first GSI that is no pin of an interrupt controller.
const FIRST_MSI_GSI: u32 = IOAPIC_PINS;
const MAX_GSI: u32 = 1023;

/// The GSI routing table of a VM: the controllers' pins, and one row per unmasked message-signalled interrupt.
pub struct Routes {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u32,
    free: Vec<u32>,
    /// GSI to message (address, data).
    messages: BTreeMap<u32, (u64, u32)>,
}

impl Routes {
    pub(crate) fn new(vm: Arc<VmFd>) -> Result<Self, KvmError> {
        let table = Table {
            next: FIRST_MSI_GSI,
            ..Table::default()
        };
        install(&vm, &table).map_err(|source| KvmError::Call {
            action: "set the interrupt routes",
            source,
        })?;
        Ok(Self {
            vm,
            table: Mutex::new(table),
        })
    }

    /// A new message-signalled interrupt, masked.
    pub fn msi(self: &Arc<Self>) -> io::Result<Msi> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let gsi = self.take_gsi()?;
        let msi = Msi {
            routes: self.clone(),
            gsi,
            event,
        };
        self.vm.register_irqfd(&msi.event, gsi).map_err(errno)?;
        Ok(msi)
    }

    fn take_gsi(&self) -> io::Result<u32> {
        let mut table = self.lock();
        if let Some(gsi) = table.free.pop() {
            return Ok(gsi);
        }
        if table.next > MAX_GSI {
            return Err(io::Error::other("all interrupt routes are in use"));
        }
        table.next += 1;
        Ok(table.next - 1)
    }

    /// Sets or removes one row; the table is installed whole, as KVM wants it, and only when it changes.
    fn set(&self, gsi: u32, message: Option<(u64, u32)>) -> io::Result<()> {
        let mut table = self.lock();
        let before = match message {
            Some(message) => table.messages.insert(gsi, message),
            None => table.messages.remove(&gsi),
        };
        if before == message {
            return Ok(());
        }
        install(&self.vm, &table)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One message-signalled interrupt: an irqfd with a route. A GSI without a route swallows what is signalled.
pub struct Msi {
    routes: Arc<Routes>,
    gsi: u32,
    event: EventFd,
}

impl Msi {
    /// Sets the message and unmasks it.
    pub fn route(&self, address: u64, data: u32) -> io::Result<()> {
        self.routes.set(self.gsi, Some((address, data)))
    }

    /// Takes the route away: signals are lost from now on.
    pub fn mask(&self) -> io::Result<()> {
        self.routes.set(self.gsi, None)
    }

    /// Sends it. Never blocks: KVM empties the eventfd as it is written.
    pub fn signal(&self) {
        let _full_means_pending = self.event.write(1);
    }
}

impl Drop for Msi {
    fn drop(&mut self) {
        let _ = self.routes.set(self.gsi, None);
        if self.routes.vm.unregister_irqfd(&self.event, self.gsi).is_ok() {
            self.routes.lock().free.push(self.gsi);
        }
    }
}

/// An edge-triggered line, by irqfd.
pub struct EdgeLine(EventFd);

impl EdgeLine {
    pub(crate) fn new(vm: &VmFd, gsi: u32) -> Result<Self, KvmError> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(|source| KvmError::Call {
            action: "make an interrupt's eventfd",
            source,
        })?;
        vm.register_irqfd(&event, gsi)
            .map_err(KvmError::call("wire an interrupt line"))?;
        Ok(Self(event))
    }

    /// Sends one edge.
    pub fn pulse(&self) {
        let _full_means_pending = self.0.write(1);
    }
}

/// A level-triggered line.
pub struct LevelLine {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl LevelLine {
    pub(crate) fn new(vm: Arc<VmFd>, gsi: u32) -> Self {
        Self { vm, gsi }
    }

    /// Raises or lowers it. One caller at a time decides the level: lines are not shared here.
    pub fn set(&self, level: bool) {
        if let Err(error) = self.vm.set_irq_line(self.gsi, level) {
            tracing::error!(gsi = self.gsi, %error, "cannot set an interrupt line");
        }
    }
}

fn errno(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

fn install(vm: &VmFd, table: &Table) -> io::Result<()> {
    let mut entries: Vec<kvm_irq_routing_entry> = Vec::with_capacity(40 + table.messages.len());
    for pin in 0..PIC_PINS {
        entries.push(pin_entry(pin, KVM_IRQCHIP_PIC_MASTER, pin));
        entries.push(pin_entry(PIC_PINS + pin, KVM_IRQCHIP_PIC_SLAVE, pin));
    }
    // The interval timer's GSI 0 arrives at pin 2, as on every PC; the MADT says the same.
    entries.push(pin_entry(0, KVM_IRQCHIP_IOAPIC, 2));
    entries.extend(
        (1..IOAPIC_PINS)
            .filter(|pin| *pin != 2)
            .map(|pin| pin_entry(pin, KVM_IRQCHIP_IOAPIC, pin)),
    );
    entries.extend(
        table
            .messages
            .iter()
            .map(|(gsi, (address, data))| msi_entry(*gsi, *address, *data)),
    );
    let routing =
        KvmIrqRouting::from_entries(&entries).map_err(|_| io::Error::other("too many interrupt routes"))?;
    vm.set_gsi_routing(&routing).map_err(errno)
}

fn pin_entry(gsi: u32, chip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = chip;
    entry.u.irqchip.pin = pin;
    entry
}

fn msi_entry(gsi: u32, address: u64, data: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = address as u32;
    entry.u.msi.address_hi = (address >> 32) as u32;
    entry.u.msi.data = data;
    entry
}
