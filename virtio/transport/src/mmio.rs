use std::sync::Arc;

use treaty_bus::{Access, BusDevice, Ticket};
use treaty_memory::GuestMemory;
use treaty_pci::{IntxLine, IoAddress, IoEvents};
use treaty_telemetry::AccessClass;
use treaty_virtio_device::{DeviceId, Interrupt, InterruptSink, VirtioDevice};
use treaty_virtio_spec::mmio as reg;
use treaty_virtio_spec::pci::{ISR_CONFIG, ISR_QUEUE};

use crate::core::{Area, Core, CoreParts, CoreState};
use crate::isr::InterruptStatus;
use crate::lifecycle::{Lifecycle, TransportState, TransportView};
use crate::notifier::{Notifier, Place};
use crate::{BuildError, RingOffer, TransportRestoreError, TransportSaveError};

/// What a [`MmioTransport`] needs of the machine.
pub struct MmioParts {
    /// Guest memory.
    pub memory: GuestMemory,
    /// Ring and transport features on offer.
    pub offer: RingOffer,
    /// The device's interrupt. Level: follows InterruptStatus. Edge: act on each rising call only.
    pub line: Arc<dyn IntxLine>,
    /// For doorbells without exits to user space.
    pub io: Arc<dyn IoEvents>,
    /// Guest physical address of the registers.
    pub address: u64,
}

/// A virtio device behind virtio-mmio registers, version 2. virtio 1.3 §4.2
///
/// Linux does not poll for the end of a reset here, so a write that begins to drain queues is [`Access::Later`]: it is complete when
/// they have drained.
pub struct MmioTransport {
    core: Core,
    status: Arc<InterruptStatus>,
    /// Unregisters the doorbells when dropped.
    _notifier: Notifier,
}

/// A [`MmioTransport`] in a snapshot.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct MmioState {
    /// Device, queues, negotiation.
    pub core: CoreState,
    /// InterruptStatus.
    pub interrupt_status: u8,
}

struct Line(Arc<InterruptStatus>, u8);

impl InterruptSink for Line {
    fn signal(&self) {
        self.0.raise(self.1);
    }
}

impl MmioTransport {
    /// What an access to the registers is for, by its offset.
    pub fn access_class(_bar: u8, offset: u64) -> AccessClass {
        match offset == reg::QUEUE_NOTIFY as u64 {
            true => AccessClass::Doorbell,
            false => AccessClass::VirtioRegister,
        }
    }

    /// Bytes of registers and configuration.
    pub const LEN: u64 = 0x1000;

    /// Puts registers in front of a device.
    pub fn new(device: Box<dyn VirtioDevice>, parts: MmioParts) -> Result<Self, BuildError> {
        let description = device.description();
        let limit = Self::LEN as u32 - reg::CONFIG as u32;
        if description.config_len > limit {
            return Err(BuildError::ConfigTooLong {
                device: description.id.name(),
                len: description.config_len,
                limit,
            });
        }
        let status = Arc::new(InterruptStatus::new(Some(parts.line)));
        let line = |bit| Interrupt::new(Arc::new(Line(status.clone(), bit)));
        let core = Core::new(CoreParts {
            device,
            memory: parts.memory,
            offer: parts.offer,
            config_interrupt: line(ISR_CONFIG),
            queue_interrupt: &|_| line(ISR_QUEUE),
        })?;
        let mut notifier = Notifier::new(parts.io);
        let place = |(index, doorbell): (u32, &_)| Place {
            address: IoAddress::Mmio(parts.address + reg::QUEUE_NOTIFY as u64),
            datamatch: Some(index),
            doorbell: Clone::clone(doorbell),
        };
        notifier.place((0..).zip(core.doorbells()).map(place).collect());
        Ok(Self {
            core,
            status,
            _notifier: notifier,
        })
    }

    fn read_register(&mut self, offset: u64) -> Option<u32> {
        let core = &self.core;
        Some(match usize::try_from(offset).ok()? {
            reg::MAGIC_VALUE => reg::MAGIC,
            reg::VERSION => reg::VERSION_2,
            reg::DEVICE_ID => core.description().id.0.into(),
            reg::VENDOR_ID => treaty_virtio_spec::pci::VENDOR_ID.into(),
            reg::DEVICE_FEATURES => core.device_features(),
            reg::QUEUE_SIZE_MAX => core.queue_max_size().into(),
            reg::QUEUE_READY => core.queue_enabled().into(),
            reg::INTERRUPT_STATUS => self.status.bits().into(),
            reg::STATUS => core.status().into(),
            // No shared memory regions: virtio 1.3 §4.2.2.1
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => !0,
            reg::QUEUE_RESET => core.queue_reset_pending().into(),
            reg::CONFIG_GENERATION => core.generation(),
            _ => return None,
        })
    }

    fn write_register(&mut self, offset: usize, value: u32) -> Access {
        let core = &mut self.core;
        match offset {
            reg::DEVICE_FEATURES_SEL => core.device_feature_select = value,
            reg::DRIVER_FEATURES => core.write_driver_features(value),
            reg::DRIVER_FEATURES_SEL => core.driver_feature_select = value,
            reg::QUEUE_SEL => core.queue_select = value,
            reg::QUEUE_SIZE => core.write_queue_size(value),
            reg::QUEUE_READY => return self.write_ready(value),
            // With NOTIFICATION_DATA the upper half is where the driver stands. virtio 1.3 §4.2.2
            reg::QUEUE_NOTIFY => core.notify(value as u16),
            reg::INTERRUPT_ACK => self.status.acknowledge(value as u8),
            reg::STATUS => return self.write_status(value),
            reg::QUEUE_DESC_LOW => write_half(core, Area::Descriptor, 0, value),
            reg::QUEUE_DESC_HIGH => write_half(core, Area::Descriptor, 32, value),
            reg::QUEUE_DRIVER_LOW => write_half(core, Area::Driver, 0, value),
            reg::QUEUE_DRIVER_HIGH => write_half(core, Area::Driver, 32, value),
            reg::QUEUE_DEVICE_LOW => write_half(core, Area::Device, 0, value),
            reg::QUEUE_DEVICE_HIGH => write_half(core, Area::Device, 32, value),
            reg::SHM_SEL => {}
            reg::QUEUE_RESET => return self.write_queue_reset(value),
            _ => return Access::Fault,
        }
        Access::Done
    }

    fn write_status(&mut self, value: u32) -> Access {
        match u8::try_from(value) {
            Ok(0) => {
                self.begin_reset();
                self.when_drained()
            }
            Ok(value) => {
                self.core.write_status(value);
                Access::Done
            }
            Err(_) => {
                self.core.fault("status wider than 8 bits");
                Access::Done
            }
        }
    }

    fn begin_reset(&mut self) {
        self.core.reset();
        if self.core.status() == 0 {
            self.status.replace(0);
        }
    }

    /// 1 makes the queue live, 0 stops it. virtio 1.3 §4.2.2
    fn write_ready(&mut self, value: u32) -> Access {
        match value {
            0 => self.core.reset_queue(),
            1 => self.core.enable_queue(),
            _ => self.core.fault("QueueReady is neither 0 nor 1"),
        }
        self.when_drained()
    }

    /// virtio 1.3 §4.2.2.1, §2.6.1
    fn write_queue_reset(&mut self, value: u32) -> Access {
        if value == 1 && self.core.ring_reset_accepted() {
            self.core.reset_queue();
        } else {
            self.core.fault("queue reset that was not negotiated");
        }
        self.when_drained()
    }

    fn when_drained(&self) -> Access {
        match self.core.drain_ticket() {
            Some(ticket) => Access::Later(ticket),
            None => Access::Done,
        }
    }

    /// Goes on with what waited for a drain.
    fn poll(&mut self) {
        let before = self.core.status();
        self.core.poll();
        if before != 0 && self.core.status() == 0 {
            self.status.replace(0);
        }
    }
}

fn write_half(core: &mut Core, area: Area, shift: u32, value: u32) {
    core.write_queue_area(area, 0xffff_ffff << shift, u64::from(value) << shift);
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Access {
        self.poll();
        if let Some(at) = offset.checked_sub(reg::CONFIG as u64) {
            self.core.read_config(at, data);
            return Access::Done;
        }
        // virtio 1.3 §4.2.2.2: 32 bits wide and aligned.
        let value = if data.len() == 4 {
            self.read_register(offset)
        } else {
            None
        };
        match value {
            Some(value) => {
                data.copy_from_slice(&value.to_le_bytes());
                Access::Done
            }
            None => {
                self.core.fault("read of no register");
                Access::Fault
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Access {
        self.poll();
        if let Some(at) = offset.checked_sub(reg::CONFIG as u64) {
            self.core.write_config(at, data);
            return Access::Done;
        }
        // The offset is below CONFIG.
        let access = match <[u8; 4]>::try_from(data) {
            Ok(bytes) => self.write_register(offset as usize, u32::from_le_bytes(bytes)),
            Err(_) => Access::Fault,
        };
        if matches!(access, Access::Fault) {
            self.core.fault("write to no register");
        }
        access
    }
}

impl Lifecycle for MmioTransport {
    fn device_id(&self) -> DeviceId {
        self.core.description().id
    }

    fn pause(&mut self) -> Option<Ticket> {
        self.poll();
        self.core.pause()
    }

    fn resume(&mut self) -> Option<Ticket> {
        self.poll();
        self.core.resume()
    }

    fn power_on_reset(&mut self) -> Option<Ticket> {
        self.begin_reset();
        self.core.drain_ticket()
    }

    fn save(&mut self) -> Result<TransportState, TransportSaveError> {
        Ok(TransportState::Mmio(MmioState {
            core: self.core.save()?,
            interrupt_status: self.status.bits(),
        }))
    }

    fn restore(&mut self, state: &TransportState) -> Result<(), TransportRestoreError> {
        let TransportState::Mmio(state) = state else {
            return Err(TransportRestoreError::WrongTransport);
        };
        self.core.restore(&state.core)?;
        let known = ISR_QUEUE | ISR_CONFIG;
        self.status.replace(state.interrupt_status & known);
        Ok(())
    }

    fn driver_faults(&self) -> u64 {
        self.core.faults()
    }

    fn view(&self) -> TransportView {
        self.core.view()
    }
}
