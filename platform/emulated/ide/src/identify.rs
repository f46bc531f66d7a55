//! What drives say of themselves: 256 words. ATA/ATAPI-7 §6.16, §6.17

use crate::drive::{Disk, Drive};
use crate::registers::Geometry;

/// Sectors of one PIO block at most.
pub(crate) const MAX_MULTIPLE: u8 = 16;
/// Sectors that 28 bits can count.
const MAX_28: u64 = 0x0fff_ffff;
const MODEL: &str = "TREATY HARDDISK";
const CD_MODEL: &str = "TREATY DVD-ROM";
const FIRMWARE: &str = "1.0";

struct Words(Vec<u8>);

impl Words {
    fn new() -> Self {
        Self(vec![0; 512])
    }

    fn set(&mut self, word: usize, value: u16) {
        let bytes = self
            .0
            .get_mut(word * 2..)
            .and_then(|rest| rest.first_chunk_mut::<2>());
        if let Some(place) = bytes {
            *place = value.to_le_bytes();
        }
    }

    fn set_long(&mut self, word: usize, value: u64, words: usize) {
        for index in 0..words {
            self.set(word + index, (value >> (16 * index)) as u16);
        }
    }

    /// Two characters to a word, the first in its upper half.
    fn text(&mut self, word: usize, words: usize, text: &str) {
        let mut bytes = text
            .bytes()
            .map(|byte| {
                if byte.is_ascii_graphic() || byte == b' ' {
                    byte
                } else {
                    b'?'
                }
            })
            .chain(std::iter::repeat(b' '));
        for index in 0..words {
            let pair = [bytes.next().unwrap_or(b' '), bytes.next().unwrap_or(b' ')];
            self.set(word + index, u16::from_be_bytes(pair));
        }
    }

    /// A checksum over all. ATA/ATAPI-7 §6.17.60
    fn finish(mut self) -> Vec<u8> {
        self.set(255, 0x00a5);
        let sum = self.0.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        self.set(255, u16::from(sum.wrapping_neg()) << 8 | 0xa5);
        self.0
    }
}

/// What both kinds say alike.
fn common(words: &mut Words, drive: &Drive, model: &str) {
    words.text(10, 10, &drive.serial);
    words.text(23, 4, FIRMWARE);
    words.text(27, 20, model);
    // 32-bit PIO.
    words.set(48, 1);
    // DMA, LBA, IORDY.
    words.set(49, 0x0b00);
    // Words 64 to 70 and 88 are valid.
    words.set(53, 7);
    let (multiword, ultra) = drive.dma_modes();
    words.set(63, multiword);
    words.set(64, 3);
    for word in 65..69 {
        words.set(word, 120);
    }
    words.set(88, ultra);
}

pub(crate) fn disk(drive: &Drive, disk: &Disk) -> Vec<u8> {
    let mut words = Words::new();
    common(&mut words, drive, MODEL);
    words.set(0, 0x0040);
    let Geometry { heads, sectors } = Geometry::USUAL;
    let track = u64::from(heads) * u64::from(sectors);
    let cylinders = (disk.sectors / track).min(16383);
    for (at, geometry) in [(0, Geometry::USUAL), (53, disk.geometry)] {
        words.set(at + 1, cylinders as u16);
        words.set(at + if at == 0 { 3 } else { 2 }, u16::from(geometry.heads));
        words.set(at + if at == 0 { 6 } else { 3 }, u16::from(geometry.sectors));
    }
    words.set(53, 7);
    words.set_long(57, cylinders * track, 2);
    words.set(47, 0x8000 | u16::from(MAX_MULTIPLE));
    words.set(59, 0x100 | u16::from(disk.multiple));
    words.set_long(60, disk.sectors.min(MAX_28), 2);
    // ATA-4 to ATA-7.
    words.set(80, 0x00f0);
    // Write cache, NOP; flushes, 48 bits; FUA.
    words.set(82, 0x4020);
    words.set(83, 0x7400);
    words.set(84, 0x4040);
    words.set(85, 0x4000 | if disk.write_cache { 0x20 } else { 0 });
    words.set(86, 0x3400);
    words.set(87, 0x4040);
    words.set(93, 0x6001);
    words.set_long(100, disk.sectors, 4);
    if disk.discard {
        // One block of ranges; trimmed sectors have no defined contents.
        words.set(105, 1);
        words.set(169, 1);
    }
    // It does not rotate.
    words.set(217, 1);
    words.finish()
}

pub(crate) fn cdrom(drive: &Drive) -> Vec<u8> {
    let mut words = Words::new();
    common(&mut words, drive, CD_MODEL);
    // Packets of twelve bytes, CD-ROM, removable, DRQ within 50 us.
    words.set(0, 0x85c0);
    words.set(71, 30);
    words.set(72, 30);
    words.set(80, 0x001e);
    words.finish()
}

impl Geometry {
    /// What disks of this size have always said.
    pub(crate) const USUAL: Self = Self {
        heads: 16,
        sectors: 63,
    };
}
