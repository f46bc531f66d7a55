use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use treaty_bus::Bus;
use treaty_memory::GuestMemory;
use treaty_pci::{CONFIG_PORTS, ECAM_LEN, MSIX_CAPABILITY, MSIX_ENABLE, PciRoot};
use treaty_virtio_device::{Features, RingConfig, VirtioDevice};
use treaty_virtio_spec::pci::{CAP_VENDOR, DEVICE_ID_BASE, NO_VECTOR, VENDOR_ID, cap, common};
use treaty_virtio_transport::{Intx, PciParts, RingOffer, VirtioPci};

use super::shared::{self, SharedLine};
use super::{Rig, RigHost, RigKind, Wait};
use crate::host::{DRAIN_LIMIT, FakeIoEvents, GuestBus, Hub, HubLine, HubMsi};

/// Enhanced configuration space.
pub(crate) const ECAM: u64 = 0xe000_0000;
/// Where BARs may lie; the first is at the start.
pub const WINDOW: u64 = 0x10_0000_0000;
const WINDOW_END: u64 = 0x20_0000_0000;
/// The device's slot.
const SLOT: u8 = 5;
/// Message data of vector 0; the others follow.
pub const FIRST_MESSAGE: u32 = 0x40;
/// Where x86 machines take messages.
const MESSAGE_ADDRESS: u32 = 0xfee0_0000;
/// Vector of configuration changes; queue `n` has `n + 1`.
const CONFIG_VECTOR: u16 = 0;

/// Drives a device through PCI configuration space and BARs as a guest's driver does.
pub struct PciRig {
    guest: Arc<GuestBus>,
    memory: GuestMemory,
    transport: Arc<Mutex<VirtioPci>>,
    root: Arc<PciRoot>,
    line: SharedLine,
    msix: bool,
    taken: BTreeMap<u32, u64>,
    /// BAR address of each structure, by type.
    structures: BTreeMap<u8, u64>,
    notify_multiplier: u32,
}

pub(super) struct Pci {
    pub ioeventfd: bool,
    pub msix: bool,
}

impl RigKind for Pci {
    fn name(&self) -> &'static str {
        if self.msix { "pci" } else { "pci-intx" }
    }
    fn build(&self, device: Box<dyn VirtioDevice>, memory: GuestMemory) -> Box<dyn Rig> {
        Box::new(PciRig::new(device, memory, self.ioeventfd, self.msix))
    }
}

impl PciRig {
    /// Plugs the device in and probes it. Without `ioeventfd`, notifications are register writes; without `msix`, the driver
    /// uses the interrupt pin.
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory, ioeventfd: bool, msix: bool) -> Self {
        Self::offering(device, memory, (ioeventfd, msix), RingOffer::ALL)
    }

    /// The same with these ring and transport features. `(ioeventfd, msix)`
    pub fn offering(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        (ioeventfd, msix): (bool, bool),
        offer: RingOffer,
    ) -> Self {
        let hub = Arc::new(Hub::default());
        let io = Arc::new(FakeIoEvents::new(!ioeventfd));
        let parts = PciParts {
            memory: memory.clone(),
            offer,
            msi: &HubMsi(hub.clone()),
            intx: Some(Intx {
                line: Arc::new(HubLine(hub.clone())),
                gsi: 11,
            }),
            io: io.clone(),
            bar_address: WINDOW,
        };
        let transport = VirtioPci::new(device, parts).expect("the device fits");
        let transport = Arc::new(Mutex::new(transport));
        let root = PciRoot::new();
        root.add(SLOT, transport.clone()).expect("the slot is free");
        let mut bus = Bus::new(DRAIN_LIMIT);
        for (range, target) in [
            (ECAM..ECAM + ECAM_LEN, root.ecam()),
            (WINDOW..WINDOW_END, root.window(WINDOW)),
            // There is one address space in a rig: ports are memory here.
            (CONFIG_PORTS..CONFIG_PORTS + 8, root.ports()),
        ] {
            bus.register(range, target).expect("the ranges are apart");
        }
        let mut rig = Self {
            guest: Arc::new(GuestBus { bus, io }),
            memory,
            transport,
            root,
            line: SharedLine::new(hub),
            msix,
            taken: BTreeMap::new(),
            structures: BTreeMap::new(),
            notify_multiplier: 0,
        };
        rig.probe();
        rig
    }

    /// The transport, for what a test asks of it beside the trait of rigs.
    pub fn transport(&self) -> Arc<Mutex<VirtioPci>> {
        self.transport.clone()
    }

    /// What the rig was built with.
    pub fn memory(&self) -> GuestMemory {
        self.memory.clone()
    }

    /// The guest's loads and stores.
    pub fn guest(&self) -> Arc<GuestBus> {
        self.guest.clone()
    }

    /// Where interrupts are counted: MSI-X under their message data, the pin under [`HubLine::KEY`].
    pub fn hub(&self) -> Arc<Hub> {
        self.line.hub.clone()
    }

    /// The root bus.
    pub fn root(&self) -> Arc<PciRoot> {
        self.root.clone()
    }

    /// Loads from the function's configuration space.
    pub fn load_config(&self, register: u16, len: usize) -> u32 {
        self.guest.load(config_address(register), len)
    }

    /// Stores to the function's configuration space.
    pub fn store_config(&self, register: u16, value: u32, len: usize) {
        self.guest.store(config_address(register), value, len);
    }

    /// Guest physical address of a structure ([`cap::COMMON_CFG`] and the others).
    pub fn structure(&self, kind: u8) -> u64 {
        self.structures[&kind]
    }

    /// Offset of the first capability with that ID whose byte 3 is `kind` (any if `None`).
    pub fn capability(&self, id: u8, kind: Option<u8>) -> Option<u16> {
        let mut at = self.load_config(0x34, 1) as u16;
        for _ in 0..64 {
            if at == 0 {
                return None;
            }
            let found = self.load_config(at, 4).to_le_bytes();
            if found[0] == id && kind.is_none_or(|kind| found[cap::TYPE] == kind) {
                return Some(at);
            }
            at = found[1].into();
        }
        panic!("the capability list loops");
    }

    /// Turns memory space on, walks the capabilities and sets MSI-X up.
    pub fn probe(&mut self) {
        assert_eq!(self.load_config(0, 2), u32::from(VENDOR_ID));
        self.store_config(4, 0b110, 2);
        let bar = u64::from(self.load_config(0x10, 4) & !0xf) | u64::from(self.load_config(0x14, 4)) << 32;
        for kind in cap::COMMON_CFG..=cap::DEVICE_CFG {
            if let Some(at) = self.capability(CAP_VENDOR, Some(kind)) {
                assert_eq!(self.load_config(at + cap::BAR as u16, 1), 0);
                let offset = self.load_config(at + cap::OFFSET as u16, 4);
                self.structures.insert(kind, bar + u64::from(offset));
            }
        }
        let notify = self
            .capability(CAP_VENDOR, Some(cap::NOTIFY_CFG))
            .expect("notify");
        self.notify_multiplier = self.load_config(notify + cap::NOTIFY_MULTIPLIER as u16, 4);
        if self.msix {
            self.enable_msix(bar);
        }
    }

    fn enable_msix(&self, bar: u64) {
        let at = self.capability(MSIX_CAPABILITY, None).expect("MSI-X");
        self.store_config(at + 2, MSIX_ENABLE.into(), 2);
        let vectors = (self.load_config(at + 2, 2) & 0x7ff) + 1;
        let table = bar + u64::from(self.load_config(at + 4, 4) & !7);
        for vector in 0..vectors {
            let entry = table + u64::from(vector) * 16;
            self.guest.store(entry, MESSAGE_ADDRESS, 4);
            self.guest.store(entry + 4, 0, 4);
            self.guest.store(entry + 8, FIRST_MESSAGE + vector, 4);
            self.guest.store(entry + 12, 0, 4);
        }
    }

    /// Loads a field of the common configuration.
    pub fn load(&self, field: usize, len: usize) -> u32 {
        self.guest
            .load(self.structure(cap::COMMON_CFG) + field as u64, len)
    }

    /// Stores to a field of the common configuration.
    pub fn store(&self, field: usize, value: u32, len: usize) {
        self.guest
            .store(self.structure(cap::COMMON_CFG) + field as u64, value, len);
    }

    fn store_wide(&self, field: usize, value: u64) {
        self.store(field, value as u32, 4);
        self.store(field + 4, (value >> 32) as u32, 4);
    }

    fn select(&self, index: u16) {
        self.store(common::QUEUE_SELECT, index.into(), 2);
    }

    fn map_vector(&self, field: usize, vector: u16) {
        if self.msix {
            self.store(field, vector.into(), 2);
            assert_ne!(
                self.load(field, 2),
                u32::from(NO_VECTOR),
                "vector {vector} was refused"
            );
        }
    }
}

/// Guest physical address of a register of the function's configuration space.
pub fn config_address(register: u16) -> u64 {
    ECAM + (u64::from(SLOT) << 15) + u64::from(register)
}

impl Rig for PciRig {
    fn device_id(&mut self) -> u16 {
        self.load_config(2, 2) as u16 - DEVICE_ID_BASE
    }

    fn offered(&mut self) -> Features {
        let word = |select| {
            self.store(common::DEVICE_FEATURE_SELECT, select, 4);
            u64::from(self.load(common::DEVICE_FEATURE, 4))
        };
        Features(word(0) | word(1) << 32)
    }

    fn write_features(&mut self, accepted: Features) {
        for select in 0..2 {
            let word = (accepted.0 >> (32 * select)) as u32;
            self.store(common::DRIVER_FEATURE_SELECT, select, 4);
            self.store(common::DRIVER_FEATURE, word, 4);
            assert_eq!(self.load(common::DRIVER_FEATURE, 4), word);
        }
    }

    fn status(&mut self) -> u8 {
        self.load(common::DEVICE_STATUS, 1) as u8
    }

    fn write_status(&mut self, value: u8) {
        self.store(common::DEVICE_STATUS, value.into(), 1);
        if value == 0 {
            // A driver polls. virtio 1.3 §4.1.4.3.2
            while self.status() != 0 {
                std::thread::yield_now();
            }
        }
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        self.select(index);
        self.load(common::QUEUE_SIZE, 2) as u16
    }

    fn enable_queue(&mut self, index: u16, config: &RingConfig) {
        self.map_vector(common::CONFIG_MSIX_VECTOR, CONFIG_VECTOR);
        self.select(index);
        assert_eq!(
            self.load(common::QUEUE_ENABLE, 2),
            0,
            "queue {index} is live already"
        );
        self.store(common::QUEUE_SIZE, config.size.into(), 2);
        self.map_vector(common::QUEUE_MSIX_VECTOR, index + 1);
        self.store_wide(common::QUEUE_DESC, config.descriptor_area);
        self.store_wide(common::QUEUE_DRIVER, config.driver_area);
        self.store_wide(common::QUEUE_DEVICE, config.device_area);
        self.store(common::QUEUE_ENABLE, 1, 2);
        assert_eq!(self.load(common::QUEUE_ENABLE, 2), 1);
    }

    fn reset_queue(&mut self, index: u16) -> bool {
        self.select(index);
        self.store(common::QUEUE_RESET, 1, 2);
        while self.load(common::QUEUE_RESET, 2) != 0 {
            std::thread::yield_now();
        }
        assert_eq!(self.load(common::QUEUE_ENABLE, 2), 0);
        true
    }

    fn notify(&mut self, index: u16, data: Option<u16>) {
        self.select(index);
        let offset = self.load(common::QUEUE_NOTIFY_OFF, 2) * self.notify_multiplier;
        let address = self.structure(cap::NOTIFY_CFG) + u64::from(offset);
        match data {
            Some(data) => {
                let value = u32::from(data) << 16 | u32::from(index);
                self.guest.store(address, value, 4);
            }
            None => self.guest.store(address, index.into(), 2),
        }
    }

    fn wait_interrupt(&mut self, which: Wait, limit: Duration) -> bool {
        if !self.msix {
            let isr = self.structure(cap::ISR_CFG);
            let guest = &self.guest;
            return self.line.wait(which, limit, || guest.load(isr, 1) as u8);
        }
        let vector = match which {
            Wait::Config => CONFIG_VECTOR,
            Wait::Queue(index) => index + 1,
        };
        let message = FIRST_MESSAGE + u32::from(vector);
        let taken = self.taken.entry(message).or_default();
        match self.line.hub.wait_beyond(message.into(), *taken, limit) {
            Some(count) => {
                *taken = count;
                true
            }
            None => false,
        }
    }

    fn read_config(&mut self, offset: u32, dst: &mut [u8]) {
        let base = self.structures.get(&cap::DEVICE_CFG).copied();
        for (at, byte) in (0..).zip(dst) {
            *byte = base.map_or(0, |base| self.guest.load(base + u64::from(offset) + at, 1) as u8);
        }
    }

    fn write_config(&mut self, offset: u32, src: &[u8]) {
        let address = self.structure(cap::DEVICE_CFG) + u64::from(offset);
        self.guest.write(address, src);
    }
}

impl RigHost for PciRig {
    fn pause(&mut self) {
        shared::pause(&*self.transport);
    }
    fn resume(&mut self) {
        shared::resume(&*self.transport);
    }
    fn save(&mut self) -> Option<Result<String, String>> {
        Some(shared::save(&*self.transport))
    }
    fn restore(&mut self, state: &str) -> Result<(), String> {
        shared::restore(&*self.transport, state)?;
        self.root.refresh();
        Ok(())
    }
}
