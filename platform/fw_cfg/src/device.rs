use std::collections::BTreeMap;

use treaty_bus::{Access, BusDevice};
use treaty_memory::{GuestMemory, MemoryError};

use crate::{Contents, key};

const SELECTOR: u64 = 0;
const DATA: u64 = 1;
const DMA_HIGH: u64 = 4;
const DMA_LOW: u64 = 8;
/// What the DMA register reads as.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

const CONTROL_ERROR: u32 = 1;
const CONTROL_READ: u32 = 1 << 1;
const CONTROL_SKIP: u32 = 1 << 2;
const CONTROL_SELECT: u32 = 1 << 3;
const CONTROL_WRITE: u32 = 1 << 4;
const DESCRIPTOR_LEN: usize = 16;

/// Reads behind the end of an item give zeros; one DMA access asks for at most so many, in bytes.
const MOST_ZEROS: usize = 64 << 10;
const ZEROS: [u8; 4096] = [0; 4096];

/// The device, at offset 0 of its twelve ports. Nothing in it can be written. DMA reaches RAM only, and one access
/// copies no more than the rest of the selected item and 64 KiB of zeros.
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    memory: GuestMemory,
    selected: u16,
    /// Of the next byte of the selected item.
    offset: usize,
    dma_high: u32,
}

impl FwCfg {
    /// How many ports it has.
    pub const PORTS: u64 = 12;

    /// `memory` is what its DMA reaches.
    pub fn new(contents: Contents, memory: GuestMemory) -> Self {
        Self {
            items: contents.into_items(),
            memory,
            selected: key::SIGNATURE,
            offset: 0,
            dma_high: 0,
        }
    }

    fn select(&mut self, key: u16) {
        (self.selected, self.offset) = (key, 0);
    }

    /// What is left of the selected item.
    fn rest(&self) -> &[u8] {
        let item = self.items.get(&self.selected).map_or(&[][..], Vec::as_slice);
        item.get(self.offset..).unwrap_or(&[])
    }

    fn skip(&mut self, len: usize) {
        self.offset = self.offset.saturating_add(len);
    }

    /// Carries out the descriptor at `address` and writes its outcome over its first field.
    fn run_dma(&mut self, address: u64) {
        let mut bytes = [0; DESCRIPTOR_LEN];
        if self.memory.read(address, &mut bytes).is_err() {
            return;
        }
        let [a, b, c, d, e, f, g, h, to @ ..] = bytes;
        let control = u32::from_be_bytes([a, b, c, d]);
        let len = u32::from_be_bytes([e, f, g, h]) as usize;
        let outcome = match self.transfer(control, len, u64::from_be_bytes(to)) {
            Ok(()) => 0,
            Err(_) => CONTROL_ERROR,
        };
        // The descriptor was just read there.
        let _ = self.memory.write(address, &outcome.to_be_bytes());
    }

    fn transfer(&mut self, control: u32, len: usize, to: u64) -> Result<(), MemoryError> {
        if control & CONTROL_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        if control & CONTROL_READ != 0 {
            self.read_into(len, to)?;
        } else if control & CONTROL_WRITE != 0 {
            return Err(MemoryError::OutOfRange { addr: to, len });
        }
        if control & (CONTROL_READ | CONTROL_SKIP) != 0 {
            self.skip(len);
        }
        Ok(())
    }

    fn read_into(&self, len: usize, to: u64) -> Result<(), MemoryError> {
        let rest = self.rest();
        let item = rest.get(..len).unwrap_or(rest);
        let zeros = len - item.len();
        if zeros > MOST_ZEROS || !self.memory.contains(to, len) {
            return Err(MemoryError::OutOfRange { addr: to, len });
        }
        self.memory.write(to, item)?;
        let mut at = to + item.len() as u64;
        for start in (0..zeros).step_by(ZEROS.len()) {
            let piece = ZEROS.get(..zeros - start).unwrap_or(&ZEROS);
            self.memory.write(at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

impl BusDevice for FwCfg {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Access {
        match (offset, data) {
            (DATA, [byte]) => {
                *byte = self.rest().first().copied().unwrap_or(0);
                self.skip(1);
                Access::Done
            }
            (DMA_HIGH.., data) => {
                let signature = DMA_SIGNATURE.iter().skip((offset - DMA_HIGH) as usize);
                for (byte, value) in data.iter_mut().zip(signature) {
                    *byte = *value;
                }
                Access::Done
            }
            _ => Access::Fault,
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Access {
        match (offset, data) {
            (SELECTOR, &[low, high]) => self.select(u16::from_le_bytes([low, high])),
            (DMA_HIGH, &[a, b, c, d]) => self.dma_high = u32::from_be_bytes([a, b, c, d]),
            (DMA_LOW, &[a, b, c, d]) => {
                let low = u64::from(u32::from_be_bytes([a, b, c, d]));
                self.run_dma(u64::from(self.dma_high) << 32 | low);
                self.dma_high = 0;
            }
            // The data register has not been writable for long.
            (DATA, [_]) => {}
            _ => return Access::Fault,
        }
        Access::Done
    }
}

#[cfg(test)]
mod tests {
    use treaty_memory::Region;

    use super::*;
    use crate::files;

    const RAM: usize = 1 << 20;
    const DESCRIPTOR: u64 = 0x100;

    fn device() -> (FwCfg, GuestMemory) {
        let memory = GuestMemory::new(vec![Region::memfd(0, RAM).unwrap()]).unwrap();
        let mut contents = Contents::default();
        contents.add_item(key::CPU_COUNT, vec![4, 0]);
        contents.add_file("etc/b", files::number(7));
        contents.add_file("bootorder", files::boot_order(&["/a".into(), "/b".into()]));
        (FwCfg::new(contents, memory.clone()), memory)
    }

    fn read_item(device: &mut FwCfg, key: u16, len: usize) -> Vec<u8> {
        device.write(SELECTOR, &key.to_le_bytes());
        let mut byte = [0];
        let bytes = (0..len).map(|_| {
            device.read(DATA, &mut byte);
            byte[0]
        });
        bytes.collect()
    }

    /// The outcome.
    fn dma(device: &mut FwCfg, memory: &GuestMemory, control: u32, len: u32, to: u64) -> u32 {
        let mut bytes = control.to_be_bytes().to_vec();
        bytes.extend(len.to_be_bytes());
        bytes.extend(to.to_be_bytes());
        memory.write(DESCRIPTOR, &bytes).unwrap();
        device.write(DMA_HIGH, &[0; 4]);
        device.write(DMA_LOW, &(DESCRIPTOR as u32).to_be_bytes());
        let mut outcome = [0; 4];
        memory.read(DESCRIPTOR, &mut outcome).unwrap();
        u32::from_be_bytes(outcome)
    }

    #[test]
    fn items_and_files_are_read_byte_by_byte() {
        let (mut device, _) = device();
        assert_eq!(read_item(&mut device, key::SIGNATURE, 4), b"QEMU");
        assert_eq!(
            read_item(&mut device, key::CPU_COUNT, 4),
            [4, 0, 0, 0],
            "then zeros"
        );
        assert_eq!(read_item(&mut device, 0x1234, 2), [0, 0], "no such item");
        let directory = read_item(&mut device, key::FILE_DIRECTORY, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        assert_eq!(directory[4..10], [0, 0, 0, 6, 0, 0x20]);
        assert_eq!(&directory[12..22], b"bootorder\0");
        assert_eq!(read_item(&mut device, 0x20, 6), b"/a\n/b\0");
        assert_eq!(read_item(&mut device, 0x21, 8), [7, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn dma_selects_skips_and_reads() {
        let (mut device, memory) = device();
        let mut signature = [0; 8];
        device.read(DMA_HIGH, &mut signature);
        assert_eq!(&signature, b"QEMU CFG");
        memory.write(0x1000, &[0xee; 8]).unwrap();
        let select = u32::from(0x20u16) << 16 | CONTROL_SELECT;
        assert_eq!(dma(&mut device, &memory, select | CONTROL_SKIP, 3, 0), 0);
        assert_eq!(dma(&mut device, &memory, CONTROL_READ, 5, 0x1000), 0);
        let mut bytes = [0; 6];
        memory.read(0x1000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"/b\0\0\0\xee");
        assert_eq!(dma(&mut device, &memory, CONTROL_WRITE, 1, 0x1000), CONTROL_ERROR);
    }

    /// Hardening rows 20 and 22: a transfer has an end that the guest does not choose, and reaches RAM only.
    #[test]
    fn hardening_22_dma_is_bounded_and_reaches_ram_only() {
        let (mut device, memory) = device();
        let select = u32::from(key::SIGNATURE) << 16 | CONTROL_SELECT | CONTROL_READ;
        let end = RAM as u64;
        for (len, to) in [
            (4, end),
            (4, end - 3),
            (4, u64::MAX - 1),
            (u32::MAX, 0),
            (0x2_0000, 0),
        ] {
            assert_eq!(
                dma(&mut device, &memory, select, len, to),
                CONTROL_ERROR,
                "{len:#x} {to:#x}"
            );
        }
        assert_eq!(dma(&mut device, &memory, select, MOST_ZEROS as u32, 0x2000), 0);
        for _ in 0..3 {
            assert_eq!(dma(&mut device, &memory, CONTROL_SKIP, u32::MAX, 0), 0);
        }
        assert_eq!(dma(&mut device, &memory, CONTROL_READ, 1, 0x2000), 0);
        device.write(DMA_LOW, &[0xff; 4]);
        device.write(DMA_HIGH, &[0xff; 4]);
        device.write(DMA_LOW, &[0xff; 4]);
    }

    #[test]
    fn odd_accesses_do_no_harm() {
        let (mut device, _) = device();
        for offset in 0..FwCfg::PORTS {
            for len in [1, 2, 4, 8] {
                device.read(offset, &mut vec![0; len]);
                device.write(offset, &vec![0xff; len]);
            }
        }
    }
}
