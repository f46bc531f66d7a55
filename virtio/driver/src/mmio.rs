use treaty_virtio_spec::{DeviceId, Features, mmio};

use crate::transport::{CONFIG_ATTEMPTS, POLL_LIMIT, read_window};
use crate::{Doorbell, DoorbellForm, DriverError, QueueAddresses, Registers, Transport};
use treaty_virtio_spec::feature;

/// A virtio-mmio device, version 2. virtio 1.3 §4.2
pub struct MmioTransport<R> {
    registers: R,
    device_id: DeviceId,
    doorbells: DoorbellForm,
}

impl<R: Registers> MmioTransport<R> {
    /// Looks at the registers. `Ok(None)` is a place without a device. virtio 1.3 §4.2.3.1.1
    pub fn probe(registers: R) -> Result<Option<Self>, DriverError> {
        if registers.len() < mmio::CONFIG {
            return Err(DriverError::NotVirtio("the register window is too short"));
        }
        if registers.read32(mmio::MAGIC_VALUE) != mmio::MAGIC {
            return Err(DriverError::NotVirtio("wrong magic value"));
        }
        if registers.read32(mmio::VERSION) != mmio::VERSION_2 {
            return Err(DriverError::NotVirtio("a legacy or unknown register layout"));
        }
        Ok(match registers.read32(mmio::DEVICE_ID) {
            0 => None,
            id => Some(Self {
                registers,
                device_id: DeviceId(u16::try_from(id).unwrap_or(u16::MAX)),
                doorbells: DoorbellForm::Index32,
            }),
        })
    }
}

impl<R: Registers> Transport for MmioTransport<R> {
    type Registers = R;

    fn device_id(&self) -> DeviceId {
        self.device_id
    }

    fn status(&mut self) -> u8 {
        self.registers.read32(mmio::STATUS) as u8
    }

    fn set_status(&mut self, status: u8) -> Result<(), DriverError> {
        self.registers.write32(mmio::STATUS, u32::from(status));
        if status != 0 {
            return Ok(());
        }
        let done = (0..POLL_LIMIT).any(|_| self.registers.read32(mmio::STATUS) == 0);
        done.then_some(()).ok_or(DriverError::ResetTimeout)
    }

    fn features(&mut self) -> Features {
        self.registers.write32(mmio::DEVICE_FEATURES_SEL, 0);
        let low = self.registers.read32(mmio::DEVICE_FEATURES);
        self.registers.write32(mmio::DEVICE_FEATURES_SEL, 1);
        let high = self.registers.read32(mmio::DEVICE_FEATURES);
        Features(u64::from(high) << 32 | u64::from(low))
    }

    fn accept(&mut self, features: Features) {
        self.registers.write32(mmio::DRIVER_FEATURES_SEL, 0);
        self.registers.write32(mmio::DRIVER_FEATURES, features.0 as u32);
        self.registers.write32(mmio::DRIVER_FEATURES_SEL, 1);
        self.registers
            .write32(mmio::DRIVER_FEATURES, (features.0 >> 32) as u32);
        self.doorbells = match features.has(feature::NOTIFICATION_DATA) {
            true => DoorbellForm::Data32,
            false => DoorbellForm::Index32,
        };
    }

    fn queue_size_max(&mut self, index: u16) -> u16 {
        self.registers.write32(mmio::QUEUE_SEL, u32::from(index));
        u16::try_from(self.registers.read32(mmio::QUEUE_SIZE_MAX)).unwrap_or(u16::MAX)
    }

    fn start_queue(
        &mut self,
        index: u16,
        addresses: &QueueAddresses,
        _vector: Option<u16>,
    ) -> Result<Doorbell<R>, DriverError> {
        let registers = &self.registers;
        registers.write32(mmio::QUEUE_SEL, u32::from(index));
        if registers.read32(mmio::QUEUE_READY) != 0 {
            return Err(DriverError::Nonsense("a queue that was never started is ready"));
        }
        if registers.read32(mmio::QUEUE_SIZE_MAX) < u32::from(addresses.size) {
            return Err(DriverError::NoQueue(index));
        }
        registers.write32(mmio::QUEUE_SIZE, u32::from(addresses.size));
        let areas = [
            (mmio::QUEUE_DESC_LOW, addresses.descriptor_area),
            (mmio::QUEUE_DRIVER_LOW, addresses.driver_area),
            (mmio::QUEUE_DEVICE_LOW, addresses.device_area),
        ];
        for (offset, area) in areas {
            registers.write64(offset, area);
        }
        registers.write32(mmio::QUEUE_READY, 1);
        Doorbell::new(registers.clone(), mmio::QUEUE_NOTIFY, index, self.doorbells)
            .ok_or(DriverError::NotifyAddress(index))
    }

    fn reset_queue(&mut self, index: u16) -> Result<(), DriverError> {
        self.registers.write32(mmio::QUEUE_SEL, u32::from(index));
        self.registers.write32(mmio::QUEUE_RESET, 1);
        let done = (0..POLL_LIMIT).any(|_| self.registers.read32(mmio::QUEUE_RESET) == 0);
        done.then_some(()).ok_or(DriverError::ResetTimeout)
    }

    fn read_config(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), DriverError> {
        for _ in 0..CONFIG_ATTEMPTS {
            let before = self.registers.read32(mmio::CONFIG_GENERATION);
            read_window(&self.registers, mmio::CONFIG, offset, bytes);
            if self.registers.read32(mmio::CONFIG_GENERATION) == before {
                return Ok(());
            }
        }
        Err(DriverError::Nonsense(
            "the configuration space never stands still",
        ))
    }

    fn acknowledge_interrupt(&mut self) -> u8 {
        let pending = self.registers.read32(mmio::INTERRUPT_STATUS);
        if pending != 0 {
            self.registers.write32(mmio::INTERRUPT_ACK, pending);
        }
        pending as u8
    }
}
