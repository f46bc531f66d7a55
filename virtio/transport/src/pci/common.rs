//! The common configuration structure. virtio 1.3 §4.1.4.3

use treaty_bus::Access;
use treaty_virtio_spec::pci::common as field;

use super::VirtioPci;
use super::interrupts::Event;
use crate::core::Area;

impl VirtioPci {
    /// Each field is accessed in its own width, 64-bit ones also by halves. virtio 1.3 §4.1.3.1
    pub(super) fn read_common(&mut self, offset: usize, data: &mut [u8]) -> Access {
        let value = match data.len() {
            1 => self.read_common_u8(offset).map(u64::from),
            2 => self.read_common_u16(offset).map(u64::from),
            4 => self.read_common_u32(offset).map(u64::from),
            8 => area_of(offset)
                .filter(|&(_, shift)| shift == 0)
                .map(|(area, _)| self.core.queue_area(area)),
            _ => None,
        };
        let Some(value) = value else {
            self.core.fault("read of no common configuration field");
            return Access::Fault;
        };
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
        Access::Done
    }

    fn read_common_u8(&self, offset: usize) -> Option<u8> {
        match offset {
            field::DEVICE_STATUS => Some(self.core.status()),
            field::CONFIG_GENERATION => Some(self.core.generation() as u8),
            _ => None,
        }
    }

    fn read_common_u16(&self, offset: usize) -> Option<u16> {
        let core = &self.core;
        Some(match offset {
            field::CONFIG_MSIX_VECTOR => self.interrupts.vector(Event::Config),
            field::NUM_QUEUES => core.queue_count(),
            field::QUEUE_SELECT => core.queue_select as u16,
            field::QUEUE_SIZE => core.queue_size(),
            field::QUEUE_MSIX_VECTOR => self.interrupts.vector(self.selected()),
            field::QUEUE_ENABLE => core.queue_enabled().into(),
            field::QUEUE_NOTIFY_OFF => core.queue_select as u16,
            // Exists only with NOTIF_CONFIG_DATA, which is not on offer.
            field::QUEUE_NOTIF_CONFIG_DATA => 0,
            field::QUEUE_RESET => core.queue_reset_pending().into(),
            _ => return None,
        })
    }

    fn read_common_u32(&self, offset: usize) -> Option<u32> {
        let core = &self.core;
        Some(match offset {
            field::DEVICE_FEATURE_SELECT => core.device_feature_select,
            field::DEVICE_FEATURE => core.device_features(),
            field::DRIVER_FEATURE_SELECT => core.driver_feature_select,
            field::DRIVER_FEATURE => core.driver_features(),
            _ => {
                let (area, shift) = area_of(offset)?;
                (core.queue_area(area) >> shift) as u32
            }
        })
    }

    pub(super) fn write_common(&mut self, offset: usize, data: &[u8]) -> Access {
        let done = match *data {
            [value] => self.write_common_u8(offset, value),
            [a, b] => self.write_common_u16(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_common_u32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => match area_of(offset) {
                Some((area, 0)) => {
                    let value = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                    self.core.write_queue_area(area, !0, value);
                    true
                }
                _ => false,
            },
            _ => false,
        };
        if done {
            return Access::Done;
        }
        self.core.fault("write to no common configuration field");
        Access::Fault
    }

    fn write_common_u8(&mut self, offset: usize, value: u8) -> bool {
        if offset == field::DEVICE_STATUS {
            self.write_status(value);
        }
        offset == field::DEVICE_STATUS
    }

    fn write_common_u16(&mut self, offset: usize, value: u16) -> bool {
        match offset {
            field::CONFIG_MSIX_VECTOR => self.interrupts.map(Event::Config, value),
            field::QUEUE_SELECT => self.core.queue_select = value.into(),
            field::QUEUE_SIZE => self.core.write_queue_size(value.into()),
            field::QUEUE_MSIX_VECTOR => self.interrupts.map(self.selected(), value),
            // The driver must not write 0; only a reset disables. virtio 1.3 §4.1.4.3.2
            field::QUEUE_ENABLE if value == 1 => self.core.enable_queue(),
            field::QUEUE_ENABLE => self.core.fault("queue_enable is not 1"),
            field::QUEUE_RESET => self.write_queue_reset(value),
            _ => return false,
        }
        true
    }

    fn write_common_u32(&mut self, offset: usize, value: u32) -> bool {
        let core = &mut self.core;
        match offset {
            field::DEVICE_FEATURE_SELECT => core.device_feature_select = value,
            field::DRIVER_FEATURE_SELECT => core.driver_feature_select = value,
            field::DRIVER_FEATURE => core.write_driver_features(value),
            _ => match area_of(offset) {
                Some((area, shift)) => {
                    core.write_queue_area(area, 0xffff_ffff << shift, u64::from(value) << shift);
                }
                None => return false,
            },
        }
        true
    }

    /// virtio 1.3 §4.1.4.3.1, §2.6.1
    fn write_queue_reset(&mut self, value: u16) {
        if value == 1 && self.core.ring_reset_accepted() {
            self.core.reset_queue();
        } else {
            self.core.fault("queue reset that was not negotiated");
        }
    }

    fn selected(&self) -> Event {
        Event::Queue(self.core.queue_select as u16)
    }
}

/// The area, and the shift of its half, that a 32-bit access at `offset` is about.
fn area_of(offset: usize) -> Option<(Area, u32)> {
    let area = match offset & !7 {
        field::QUEUE_DESC => Area::Descriptor,
        field::QUEUE_DRIVER => Area::Driver,
        field::QUEUE_DEVICE => Area::Device,
        _ => return None,
    };
    match offset & 7 {
        0 => Some((area, 0)),
        4 => Some((area, 32)),
        _ => None,
    }
}
