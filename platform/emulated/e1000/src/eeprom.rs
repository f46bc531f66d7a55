//! The 64 words of configuration, reached by a register or by wiggling a serial bus's pins. 8254x 4.0 §5

const WORDS: usize = 64;
/// All words sum up to this. 8254x 4.0 §5.6.35
const CHECKSUM: u16 = 0xbaba;

/// Pins in EECD. 8254x 4.0 §13.4.3
const SK: u32 = 1;
const CS: u32 = 1 << 1;
const DI: u32 = 1 << 2;
const DO: u32 = 1 << 3;
const REQUEST: u32 = 1 << 6;
const GRANT: u32 = 1 << 7;
const PRESENT: u32 = 1 << 8;

/// EERD. 8254x 4.0 §13.4.4
const START: u32 = 1;
const DONE: u32 = 1 << 4;

/// Start bit and read command of the Microwire bus, then six bits of address.
const READ: u16 = 0b110;
const ADDRESS_BITS: u16 = 6;

/// The EEPROM and its serial bus.
pub(crate) struct Eeprom {
    words: [u16; WORDS],
    pins: u32,
    /// Command and address bits shifted in since the chip was selected.
    shifted: u16,
    count: u16,
    /// The word being shifted out, and how many of its bits are left.
    out: u16,
    left: u16,
    next: usize,
}

impl Eeprom {
    /// For a controller with that address and PCI device ID.
    pub(crate) fn new(mac: [u8; 6], device: u16) -> Self {
        let mut words = [0xffff; WORDS];
        let pairs = mac
            .as_chunks::<2>()
            .0
            .iter()
            .map(|pair| u16::from_le_bytes(*pair));
        let identity = [
            // Compatibility: no boot agent, no server; LEDs and lengths as they come.
            (3, 0x0000),
            (8, 0xffff),
            (9, 0xffff),
            // Initialization control 1: load the IDs, no power management.
            (0x0a, 0x4408),
            // Subsystem ID and vendor, device ID and vendor.
            (0x0b, 0x1100),
            (0x0c, 0x1af4),
            (0x0d, device),
            (0x0e, 0x8086),
            // Initialization control 2.
            (0x0f, 0x3040),
        ];
        for (word, value) in pairs.enumerate().chain(identity) {
            if let Some(place) = words.get_mut(word) {
                *place = value;
            }
        }
        let (last, others) = {
            let others = words
                .iter()
                .take(WORDS - 1)
                .fold(0u16, |sum, word| sum.wrapping_add(*word));
            (words.last_mut(), others)
        };
        if let Some(last) = last {
            *last = CHECKSUM.wrapping_sub(others);
        }
        Self {
            words,
            pins: 0,
            shifted: 0,
            count: 0,
            out: 0,
            left: 0,
            next: 0,
        }
    }

    /// EERD's new value after a write of it. 8254x 4.0 §13.4.4
    pub(crate) fn read_register(&self, value: u32) -> u32 {
        if value & START == 0 {
            return value & !DONE;
        }
        let word = value >> 8 & 0xff;
        u32::from(self.word(word as usize)) << 16 | word << 8 | DONE
    }

    /// EECD as it reads.
    pub(crate) fn pins(&self) -> u32 {
        // Between words the bus floats high.
        let bit = self.left == 0 || self.out >> (self.left - 1) & 1 != 0;
        let grant = if self.pins & REQUEST != 0 { GRANT } else { 0 };
        self.pins | grant | PRESENT | if bit { DO } else { 0 }
    }

    /// A write of EECD: bits move on the clock's rising edge.
    pub(crate) fn set_pins(&mut self, value: u32) {
        let before = self.pins;
        self.pins = value & (SK | CS | DI | REQUEST | 0x30 | 0x200);
        if value & CS == 0 {
            (self.shifted, self.count, self.left) = (0, 0, 0);
            return;
        }
        if before & SK != 0 || value & SK == 0 {
            return;
        }
        if self.count < ADDRESS_BITS + 3 {
            self.shift_in(value & DI != 0);
        } else {
            self.shift_out();
        }
    }

    fn shift_in(&mut self, bit: bool) {
        // Zeros before the start bit do not count.
        if self.count == 0 && !bit {
            return;
        }
        self.shifted = self.shifted << 1 | u16::from(bit);
        self.count += 1;
        if self.count == ADDRESS_BITS + 3 {
            self.next = usize::from(self.shifted & 0x3f);
            if self.shifted >> ADDRESS_BITS == READ {
                // A zero comes first.
                (self.out, self.left) = (0, 1);
            }
        }
    }

    fn shift_out(&mut self) {
        if self.shifted >> ADDRESS_BITS != READ {
            return;
        }
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            (self.out, self.left) = (self.word(self.next), 16);
            self.next = (self.next + 1) % WORDS;
        }
    }

    fn word(&self, index: usize) -> u16 {
        self.words.get(index).copied().unwrap_or(0xffff)
    }

    /// What EERD and EECD are at the start.
    pub(crate) fn reset(&mut self) {
        (self.pins, self.shifted, self.count, self.left) = (0, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eeprom() -> Eeprom {
        Eeprom::new([0x52, 0x54, 0, 0x12, 0x34, 0x56], 0x100e)
    }

    /// As a driver does it: clock low with the bit, clock high, clock low.
    fn clock(eeprom: &mut Eeprom, bit: bool) -> bool {
        let data = if bit { DI } else { 0 };
        eeprom.set_pins(REQUEST | CS | data);
        eeprom.set_pins(REQUEST | CS | data | SK);
        let out = eeprom.pins() & DO != 0;
        eeprom.set_pins(REQUEST | CS | data);
        out
    }

    #[test]
    fn both_ways_read_the_same() {
        let mut eeprom = eeprom();
        let mut sum = 0u16;
        for word in 0..64u32 {
            let register = eeprom.read_register(word << 8 | START);
            assert_eq!(register & 0xffff, word << 8 | DONE);
            eeprom.set_pins(REQUEST);
            assert_eq!(eeprom.pins() & GRANT, GRANT);
            for bit in (0..9).rev() {
                clock(
                    &mut eeprom,
                    (READ as u32) << 6 >> bit & 1 != 0 || word >> bit & 1 != 0,
                );
            }
            let serial = (0..16).fold(0u16, |value, _| value << 1 | u16::from(clock(&mut eeprom, false)));
            assert_eq!(u32::from(serial), register >> 16, "word {word}");
            eeprom.set_pins(0);
            sum = sum.wrapping_add(serial);
        }
        assert_eq!(sum, CHECKSUM);
        assert_eq!(eeprom.read_register(START) >> 16, 0x5452);
    }
}
