use std::sync::{Arc, Mutex};
use std::time::Duration;

use treaty_bus::Bus;
use treaty_memory::GuestMemory;
use treaty_virtio_device::{Features, RingConfig, VirtioDevice};
use treaty_virtio_spec::mmio as reg;
use treaty_virtio_transport::{MmioParts, MmioTransport, RingOffer};

use super::shared::{self, SharedLine};
use super::{Rig, RigHost, RigKind, Wait};
use crate::host::{DRAIN_LIMIT, FakeIoEvents, GuestBus, Hub, HubLine};

/// Where the registers are; above anything that a test uses as memory.
pub const BASE: u64 = 0xd000_0000;

/// Drives a device through virtio-mmio registers as a guest's driver does.
pub struct MmioRig {
    guest: Arc<GuestBus>,
    transport: Arc<Mutex<MmioTransport>>,
    interrupts: SharedLine,
}

pub(super) struct Mmio {
    pub ioeventfd: bool,
}

impl RigKind for Mmio {
    fn name(&self) -> &'static str {
        "mmio"
    }
    fn build(&self, device: Box<dyn VirtioDevice>, memory: GuestMemory) -> Box<dyn Rig> {
        Box::new(MmioRig::new(device, memory, self.ioeventfd))
    }
}

impl MmioRig {
    /// Puts the device behind registers. Without `ioeventfd`, notifications are register writes.
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory, ioeventfd: bool) -> Self {
        let hub = Arc::new(Hub::default());
        let io = Arc::new(FakeIoEvents::new(!ioeventfd));
        let parts = MmioParts {
            memory,
            offer: RingOffer::ALL,
            line: Arc::new(HubLine(hub.clone())),
            io: io.clone(),
            address: BASE,
        };
        let transport = MmioTransport::new(device, parts).expect("the device fits");
        let transport = Arc::new(Mutex::new(transport));
        let mut bus = Bus::new(DRAIN_LIMIT);
        bus.register(BASE..BASE + MmioTransport::LEN, transport.clone())
            .expect("the bus is empty");
        Self {
            guest: Arc::new(GuestBus { bus, io }),
            transport,
            interrupts: SharedLine::new(hub),
        }
    }

    /// The transport, for what a test asks of it beside the trait of rigs.
    pub fn transport(&self) -> Arc<Mutex<MmioTransport>> {
        self.transport.clone()
    }

    /// The guest's loads and stores.
    pub fn guest(&self) -> Arc<GuestBus> {
        self.guest.clone()
    }

    /// Loads a register.
    pub fn load(&self, register: usize) -> u32 {
        self.guest.load(BASE + register as u64, 4)
    }

    /// Stores to a register.
    pub fn store(&self, register: usize, value: u32) {
        self.guest.store(BASE + register as u64, value, 4);
    }

    fn store_wide(&self, low: usize, value: u64) {
        self.store(low, value as u32);
        self.store(low + 4, (value >> 32) as u32);
    }
}

impl Rig for MmioRig {
    fn device_id(&mut self) -> u16 {
        assert_eq!(self.load(reg::MAGIC_VALUE), reg::MAGIC);
        assert_eq!(self.load(reg::VERSION), reg::VERSION_2);
        self.load(reg::DEVICE_ID) as u16
    }

    fn offered(&mut self) -> Features {
        let word = |select| {
            self.store(reg::DEVICE_FEATURES_SEL, select);
            u64::from(self.load(reg::DEVICE_FEATURES))
        };
        Features(word(0) | word(1) << 32)
    }

    fn write_features(&mut self, accepted: Features) {
        for select in 0..2 {
            self.store(reg::DRIVER_FEATURES_SEL, select);
            self.store(reg::DRIVER_FEATURES, (accepted.0 >> (32 * select)) as u32);
        }
    }

    fn status(&mut self) -> u8 {
        self.load(reg::STATUS) as u8
    }

    fn write_status(&mut self, value: u8) {
        self.store(reg::STATUS, value.into());
        if value == 0 {
            assert_eq!(self.status(), 0, "the write is complete when the reset is");
        }
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        self.store(reg::QUEUE_SEL, index.into());
        self.load(reg::QUEUE_SIZE_MAX) as u16
    }

    fn enable_queue(&mut self, index: u16, config: &RingConfig) {
        self.store(reg::QUEUE_SEL, index.into());
        assert_eq!(self.load(reg::QUEUE_READY), 0, "queue {index} is live already");
        self.store(reg::QUEUE_SIZE, config.size.into());
        self.store_wide(reg::QUEUE_DESC_LOW, config.descriptor_area);
        self.store_wide(reg::QUEUE_DRIVER_LOW, config.driver_area);
        self.store_wide(reg::QUEUE_DEVICE_LOW, config.device_area);
        self.store(reg::QUEUE_READY, 1);
        assert_eq!(self.load(reg::QUEUE_READY), 1);
    }

    fn reset_queue(&mut self, index: u16) -> bool {
        self.store(reg::QUEUE_SEL, index.into());
        self.store(reg::QUEUE_RESET, 1);
        assert_eq!(self.load(reg::QUEUE_RESET), 0);
        assert_eq!(self.load(reg::QUEUE_READY), 0);
        true
    }

    fn notify(&mut self, index: u16, data: Option<u16>) {
        let value = u32::from(data.unwrap_or(0)) << 16 | u32::from(index);
        self.store(reg::QUEUE_NOTIFY, value);
    }

    fn wait_interrupt(&mut self, which: Wait, limit: Duration) -> bool {
        let guest = &self.guest;
        self.interrupts.wait(which, limit, || {
            let bits = guest.load(BASE + reg::INTERRUPT_STATUS as u64, 4);
            guest.store(BASE + reg::INTERRUPT_ACK as u64, bits, 4);
            bits as u8
        })
    }

    fn read_config(&mut self, offset: u32, dst: &mut [u8]) {
        for (at, byte) in (0..).zip(dst) {
            let address = BASE + (reg::CONFIG + offset as usize + at) as u64;
            *byte = self.guest.load(address, 1) as u8;
        }
    }

    fn write_config(&mut self, offset: u32, src: &[u8]) {
        let address = BASE + (reg::CONFIG + offset as usize) as u64;
        self.guest.write(address, src);
    }
}

impl RigHost for MmioRig {
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
        shared::restore(&*self.transport, state)
    }
}
