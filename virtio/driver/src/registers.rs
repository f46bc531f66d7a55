/// A window of device registers, little-endian, accessed with exactly the width asked for.
///
/// Offsets are bytes from the start of the window and are kept inside `len()` by the callers in this crate: windows
/// are checked for size when a transport is made, offsets that a device chooses (notification offsets) when they are
/// read. An implementor answers an offset outside with ones and drops the write.
pub trait Registers: Clone {
    /// Bytes in the window.
    fn len(&self) -> usize;
    /// Reads 8 bits.
    fn read8(&self, offset: usize) -> u8;
    /// Reads 16 bits.
    fn read16(&self, offset: usize) -> u16;
    /// Reads 32 bits.
    fn read32(&self, offset: usize) -> u32;
    /// Writes 8 bits.
    fn write8(&self, offset: usize, value: u8);
    /// Writes 16 bits.
    fn write16(&self, offset: usize, value: u16);
    /// Writes 32 bits.
    fn write32(&self, offset: usize, value: u32);

    /// True if there is no register.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes 64 bits as two words, low one first. virtio 1.3 §4.1.3.1
    fn write64(&self, offset: usize, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }
}

/// Where and how one queue is notified. virtio 1.3 §4.1.5.2, §4.2.3.3
#[derive(Clone, Debug)]
pub struct Doorbell<R> {
    registers: R,
    offset: usize,
    queue: u16,
    form: DoorbellForm,
}

/// How wide the register is and what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorbellForm {
    /// 16 bits: the queue index (PCI).
    Index16,
    /// 32 bits: the queue index (mmio).
    Index32,
    /// 32 bits: the queue index below the available index (NOTIFICATION_DATA). virtio 1.3 §2.9
    Data32,
}

impl<R: Registers> Doorbell<R> {
    /// A doorbell for `queue` at `offset`, or `None` if the register is not inside the window.
    pub fn new(registers: R, offset: usize, queue: u16, form: DoorbellForm) -> Option<Self> {
        let width = if form == DoorbellForm::Index16 { 2 } else { 4 };
        (offset.checked_add(width)? <= registers.len()).then_some(Self {
            registers,
            offset,
            queue,
            form,
        })
    }

    /// Notifies the device. `notification_data` is [`DriverRing::notification_data`]'s value.
    ///
    /// [`DriverRing::notification_data`]: treaty_virtio_ring::DriverRing::notification_data
    pub fn ring(&self, notification_data: u16) {
        match self.form {
            DoorbellForm::Index16 => self.registers.write16(self.offset, self.queue),
            DoorbellForm::Index32 => self.registers.write32(self.offset, u32::from(self.queue)),
            DoorbellForm::Data32 => {
                let data = u32::from(self.queue) | u32::from(notification_data) << 16;
                self.registers.write32(self.offset, data);
            }
        }
    }
}
