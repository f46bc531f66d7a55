use treaty_virtio_spec::pci::{DEVICE_ID_BASE, NO_VECTOR, VENDOR_ID, common};
use treaty_virtio_spec::{DeviceId, Features, feature};

use super::bars::{Bar, MemoryWindow, place_bars};
use super::capability::{Capabilities, Structure};
use super::config::{Function, PciBus, header, update_command};
use super::msix;
use crate::transport::{CONFIG_ATTEMPTS, POLL_LIMIT, read_window};
use crate::{Doorbell, DoorbellForm, DriverError, QueueAddresses, Registers, Transport};

/// A virtio device on PCI. virtio 1.3 §4.1
pub struct PciTransport<R> {
    device_id: DeviceId,
    common: R,
    notify: R,
    notify_multiplier: u32,
    isr: R,
    device: Option<R>,
    vectors: u16,
    doorbells: DoorbellForm,
}

/// The virtio device ID of a PCI function, or `None` if it is no virtio device of version 1.x. Transitional devices are
/// recognised by their PCI device IDs as well. virtio 1.3 §4.1.2.1
pub fn virtio_device_id<B: PciBus>(bus: &B, function: Function) -> Option<DeviceId> {
    let id = bus.read(function, header::ID);
    if id as u16 != VENDOR_ID {
        return None;
    }
    match (id >> 16) as u16 {
        0x1000 => Some(DeviceId::NET),
        0x1001 => Some(DeviceId::BLK),
        0x1003 => Some(DeviceId::CONSOLE),
        0x1005 => Some(DeviceId::RNG),
        device @ DEVICE_ID_BASE..0x1080 => Some(DeviceId(device - DEVICE_ID_BASE)),
        _ => None,
    }
}

impl<R: Registers> PciTransport<R> {
    /// Finds and maps the structures of the device, placing BARs in `window` if nobody has. Interrupts are off: with
    /// `vectors`, each MSI-X entry gets the (address, data) of its element and MSI-X goes on; without, INTx stays masked.
    pub fn probe<B: PciBus<Registers = R>>(
        bus: &B,
        function: Function,
        window: &mut MemoryWindow,
        vectors: &[(u64, u32)],
    ) -> Result<Self, DriverError> {
        let device_id = virtio_device_id(bus, function).ok_or(DriverError::NotVirtio("PCI IDs"))?;
        let found = Capabilities::read(bus, function);
        let bars = place_bars(bus, function, window);
        let map = |structure: Structure| map_structure(bus, &bars, structure);
        let need =
            |structure: Option<Structure>, what| structure.and_then(map).ok_or(DriverError::NotVirtio(what));
        let common = need(found.common, "no common configuration capability")?;
        if common.len() < common::QUEUE_DEVICE + 8 {
            return Err(DriverError::NotVirtio("the common configuration is too short"));
        }
        let notify = need(found.notify.map(|(at, _)| at), "no notification capability")?;
        let isr = need(found.isr, "no ISR capability")?;
        update_command(bus, function, header::COMMAND_MASTER | header::COMMAND_NO_INTX, 0);
        let vectors = match found.msix.filter(|_| !vectors.is_empty()) {
            Some(found) => {
                let table = map(found.table).ok_or(DriverError::NotVirtio("MSI-X table outside its BAR"))?;
                msix::enable(bus, function, &found, &table, vectors)?
            }
            None => 0,
        };
        Ok(Self {
            device_id,
            common,
            notify,
            notify_multiplier: found.notify.map_or(0, |(_, multiplier)| multiplier),
            isr,
            device: found.device.and_then(map),
            vectors,
            doorbells: DoorbellForm::Index16,
        })
    }

    /// MSI-X vectors that can be given to queues.
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    fn select(&self, index: u16) {
        self.common.write16(common::QUEUE_SELECT, index);
    }
}

/// Maps a structure if it lies wholly inside a memory BAR that has an address.
fn map_structure<B: PciBus>(bus: &B, bars: &[Bar; 6], structure: Structure) -> Option<B::Registers> {
    let bar = bars.get(usize::from(structure.bar)).filter(|bar| bar.addr != 0)?;
    let end = u64::from(structure.offset) + u64::from(structure.length);
    if end > bar.len {
        return None;
    }
    let addr = bar.addr.checked_add(u64::from(structure.offset))?;
    bus.map(addr, u64::from(structure.length))
}

impl<R: Registers> Transport for PciTransport<R> {
    type Registers = R;

    fn device_id(&self) -> DeviceId {
        self.device_id
    }

    fn status(&mut self) -> u8 {
        self.common.read8(common::DEVICE_STATUS)
    }

    fn set_status(&mut self, status: u8) -> Result<(), DriverError> {
        self.common.write8(common::DEVICE_STATUS, status);
        if status != 0 {
            return Ok(());
        }
        let done = (0..POLL_LIMIT).any(|_| self.common.read8(common::DEVICE_STATUS) == 0);
        done.then_some(()).ok_or(DriverError::ResetTimeout)
    }

    fn features(&mut self) -> Features {
        self.common.write32(common::DEVICE_FEATURE_SELECT, 0);
        let low = self.common.read32(common::DEVICE_FEATURE);
        self.common.write32(common::DEVICE_FEATURE_SELECT, 1);
        let high = self.common.read32(common::DEVICE_FEATURE);
        Features(u64::from(high) << 32 | u64::from(low))
    }

    fn accept(&mut self, features: Features) {
        self.common.write32(common::DRIVER_FEATURE_SELECT, 0);
        self.common.write32(common::DRIVER_FEATURE, features.0 as u32);
        self.common.write32(common::DRIVER_FEATURE_SELECT, 1);
        self.common
            .write32(common::DRIVER_FEATURE, (features.0 >> 32) as u32);
        self.doorbells = match features.has(feature::NOTIFICATION_DATA) {
            true => DoorbellForm::Data32,
            false => DoorbellForm::Index16,
        };
    }

    fn queue_size_max(&mut self, index: u16) -> u16 {
        if index >= self.common.read16(common::NUM_QUEUES) {
            return 0;
        }
        self.select(index);
        self.common.read16(common::QUEUE_SIZE)
    }

    fn start_queue(
        &mut self,
        index: u16,
        addresses: &QueueAddresses,
        vector: Option<u16>,
    ) -> Result<Doorbell<R>, DriverError> {
        self.select(index);
        if self.common.read16(common::QUEUE_ENABLE) != 0 {
            return Err(DriverError::Nonsense("a queue that was never started is enabled"));
        }
        self.common.write16(common::QUEUE_SIZE, addresses.size);
        let vector = vector
            .filter(|vector| *vector < self.vectors)
            .unwrap_or(NO_VECTOR);
        self.common.write16(common::QUEUE_MSIX_VECTOR, vector);
        // virtio 1.3 §4.1.5.1.2.2: a device that cannot map the vector says so by NO_VECTOR.
        if vector != NO_VECTOR && self.common.read16(common::QUEUE_MSIX_VECTOR) != vector {
            return Err(DriverError::Vector(index));
        }
        self.common.write64(common::QUEUE_DESC, addresses.descriptor_area);
        self.common.write64(common::QUEUE_DRIVER, addresses.driver_area);
        self.common.write64(common::QUEUE_DEVICE, addresses.device_area);
        let offset = u64::from(self.common.read16(common::QUEUE_NOTIFY_OFF));
        self.common.write16(common::QUEUE_ENABLE, 1);
        let offset = usize::try_from(offset * u64::from(self.notify_multiplier)).unwrap_or(usize::MAX);
        Doorbell::new(self.notify.clone(), offset, index, self.doorbells)
            .ok_or(DriverError::NotifyAddress(index))
    }

    fn reset_queue(&mut self, index: u16) -> Result<(), DriverError> {
        if self.common.len() < common::QUEUE_RESET + 2 {
            return Err(DriverError::NotVirtio(
                "the common configuration has no queue_reset",
            ));
        }
        self.select(index);
        self.common.write16(common::QUEUE_RESET, 1);
        let done = (0..POLL_LIMIT).any(|_| self.common.read16(common::QUEUE_RESET) == 0);
        done.then_some(()).ok_or(DriverError::ResetTimeout)
    }

    fn read_config(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), DriverError> {
        let Some(window) = &self.device else {
            bytes.fill(0);
            return Ok(());
        };
        for _ in 0..CONFIG_ATTEMPTS {
            let before = self.common.read8(common::CONFIG_GENERATION);
            read_window(window, 0, offset, bytes);
            if self.common.read8(common::CONFIG_GENERATION) == before {
                return Ok(());
            }
        }
        Err(DriverError::Nonsense(
            "the configuration space never stands still",
        ))
    }

    /// With MSI-X the message says it all, and the register is not used: reading it would be an exit. virtio 1.3 §4.1.4.5
    fn acknowledge_interrupt(&mut self) -> u8 {
        match self.vectors {
            0 => self.isr.read8(0),
            _ => 0,
        }
    }
}
