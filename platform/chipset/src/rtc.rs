use treaty_bus::{Access, BusDevice};

use crate::calendar::{self, Date};

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// The numbers of the units that their names end with, 16 bits unless said otherwise.
const BASE_MEMORY_KIB: u8 = 0x15;
const EXTENDED_MEMORY_KIB: u8 = 0x17;
const EXTENDED_MEMORY_KIB_AGAIN: u8 = 0x30;
const MEMORY_ABOVE_16M_64KIB: u8 = 0x34;
/// 24 bits.
const MEMORY_ABOVE_4G_64KIB: u8 = 0x5b;
const OTHER_CPUS: u8 = 0x5f;
const BASE_MEMORY: u16 = 640;

/// 32.768 kHz base, 1024 Hz rate; never "update in progress".
const A_DEFAULT: u8 = 0x26;
const B_24_HOURS: u8 = 1 << 1;
const B_BINARY: u8 = 1 << 2;
const B_SET: u8 = 1 << 7;
/// Interrupts are not offered: their enable bits stay clear.
const B_WRITABLE: u8 = B_SET | B_BINARY | B_24_HOURS | 1;
const D_VALID: u8 = 1 << 7;
const HOUR_PM: u8 = 1 << 7;

/// A battery-backed clock of the MC146818 kind: index register at offset 0, data at 1. It shows the host's time (UTC); what the guest
/// sets lasts as long as the machine.
pub struct Rtc {
    index: u8,
    ram: [u8; 128],
    /// What the guest has set it ahead of the host, in seconds.
    ahead_s: i64,
    now_unix_s: Box<dyn Fn() -> i64 + Send>,
    /// The time registers while the guest holds SET.
    frozen: Option<Date>,
}

impl Rtc {
    /// `now_unix_s` is the host's clock.
    pub fn new(now_unix_s: Box<dyn Fn() -> i64 + Send>) -> Self {
        Self {
            index: 0,
            ram: [0; 128],
            ahead_s: 0,
            now_unix_s,
            frozen: None,
        }
        .with_defaults()
    }

    /// Writes what a PC's firmware finds in the clock's memory: bytes of RAM below and above 4 GiB, and the number of processors.
    pub fn set_machine(&mut self, low_bytes: u64, high_bytes: u64, cpus: u8) {
        const MIB: u64 = 1 << 20;
        let kib_above = |start: u64| u16::try_from(low_bytes.saturating_sub(start) >> 10).unwrap_or(u16::MAX);
        let above_16m = u16::try_from(low_bytes.saturating_sub(16 * MIB) >> 16).unwrap_or(u16::MAX);
        self.store_u16(BASE_MEMORY_KIB, BASE_MEMORY);
        self.store_u16(EXTENDED_MEMORY_KIB, kib_above(MIB));
        self.store_u16(EXTENDED_MEMORY_KIB_AGAIN, kib_above(MIB));
        self.store_u16(MEMORY_ABOVE_16M_64KIB, above_16m);
        let [a, b, c, ..] = (high_bytes >> 16).to_le_bytes();
        for (index, byte) in (MEMORY_ABOVE_4G_64KIB..).zip([a, b, c]) {
            self.store(index, byte);
        }
        self.store(OTHER_CPUS, cpus.saturating_sub(1));
    }

    fn store_u16(&mut self, index: u8, value: u16) {
        let [low, high] = value.to_le_bytes();
        self.store(index, low);
        self.store(index.saturating_add(1), high);
    }

    fn with_defaults(mut self) -> Self {
        self.store(REGISTER_A, A_DEFAULT);
        self.store(REGISTER_B, B_24_HOURS);
        self
    }

    fn load(&self, index: u8) -> u8 {
        self.ram.get(usize::from(index)).copied().unwrap_or(0)
    }

    fn store(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.ram.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    fn date(&self) -> Date {
        self.frozen
            .unwrap_or_else(|| calendar::from_unix((self.now_unix_s)() + self.ahead_s))
    }

    fn get(&self, index: u8) -> u8 {
        let date = self.date();
        match index {
            SECONDS => self.encode(date.second),
            MINUTES => self.encode(date.minute),
            HOURS => self.encode_hour(date.hour),
            WEEKDAY => self.encode(date.weekday),
            DAY => self.encode(date.day),
            MONTH => self.encode(date.month),
            YEAR => self.encode(date.year.rem_euclid(100) as u8),
            CENTURY => self.encode(date.year.div_euclid(100).rem_euclid(100) as u8),
            REGISTER_C => 0,
            REGISTER_D => D_VALID,
            _ => self.load(index),
        }
    }

    fn set(&mut self, index: u8, value: u8) {
        match index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => self.set_time(index, value),
            REGISTER_A => self.store(REGISTER_A, value & 0x7f),
            REGISTER_B => {
                self.store(REGISTER_B, value & B_WRITABLE);
                self.hold(value & B_SET != 0);
            }
            REGISTER_C | REGISTER_D => {}
            _ => self.store(index, value),
        }
    }

    /// SET stops the clock for the guest to write it; clearing SET starts it from there.
    fn hold(&mut self, hold: bool) {
        match (hold, self.frozen) {
            (true, None) => self.frozen = Some(self.date()),
            (false, Some(date)) => {
                self.ahead_s = calendar::to_unix(date) - (self.now_unix_s)();
                self.frozen = None;
            }
            _ => {}
        }
    }

    fn set_time(&mut self, index: u8, value: u8) {
        let mut date = self.date();
        let number = self.decode(value);
        match index {
            SECONDS => date.second = number,
            MINUTES => date.minute = number,
            HOURS => date.hour = self.decode_hour(value),
            DAY => date.day = number,
            MONTH => date.month = number.clamp(1, 12),
            YEAR => date.year = date.year.div_euclid(100) * 100 + i64::from(number),
            CENTURY => date.year = i64::from(number) * 100 + date.year.rem_euclid(100),
            _ => {}
        }
        if self.frozen.is_some() {
            self.frozen = Some(date);
        } else {
            self.ahead_s = calendar::to_unix(date) - (self.now_unix_s)();
        }
    }

    fn encode(&self, number: u8) -> u8 {
        let bcd = self.load(REGISTER_B) & B_BINARY == 0;
        if bcd {
            ((number / 10) << 4) | (number % 10)
        } else {
            number
        }
    }

    fn decode(&self, value: u8) -> u8 {
        let bcd = self.load(REGISTER_B) & B_BINARY == 0;
        if bcd {
            (value >> 4) * 10 + (value & 0xf)
        } else {
            value
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.load(REGISTER_B) & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { HOUR_PM } else { 0 };
        self.encode(match hour % 12 {
            0 => 12,
            hour => hour,
        }) | pm
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.load(REGISTER_B) & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let pm = if value & HOUR_PM != 0 { 12 } else { 0 };
        self.decode(value & !HOUR_PM) % 12 + pm
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Access {
        match (offset, data) {
            (1, [byte]) => *byte = self.get(self.index),
            (0, [byte]) => *byte = self.index,
            _ => return Access::Fault,
        }
        Access::Done
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Access {
        match (offset, data) {
            // Bit 7 masks the NMI on a PC.
            (0, [index]) => self.index = index & 0x7f,
            (1, [value]) => self.set(self.index, *value),
            _ => return Access::Fault,
        }
        Access::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2000-02-29 12:34:56, a Tuesday.
    const NOW: i64 = 951_827_696;

    fn read(rtc: &mut Rtc, index: u8) -> u8 {
        rtc.write(0, &[index]);
        let mut byte = [0];
        rtc.read(1, &mut byte);
        byte[0]
    }

    fn write(rtc: &mut Rtc, index: u8, value: u8) {
        rtc.write(0, &[index]);
        rtc.write(1, &[value]);
    }

    #[test]
    fn it_shows_the_hosts_time_in_bcd() {
        let mut rtc = Rtc::new(Box::new(|| NOW));
        let registers = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];
        let shown = registers.map(|index| read(&mut rtc, index));
        assert_eq!(shown, [0x56, 0x34, 0x12, 3, 0x29, 2, 0, 0x20]);
        assert_eq!(read(&mut rtc, REGISTER_A) & 0x80, 0, "never busy");
        assert_eq!(read(&mut rtc, REGISTER_D), D_VALID);
    }

    #[test]
    fn twelve_hours_and_binary() {
        let mut rtc = Rtc::new(Box::new(|| NOW));
        write(&mut rtc, REGISTER_B, B_BINARY);
        assert_eq!(
            (read(&mut rtc, MINUTES), read(&mut rtc, HOURS)),
            (34, HOUR_PM | 12)
        );
    }

    #[test]
    fn what_the_guest_sets_runs_on() {
        let mut rtc = Rtc::new(Box::new(|| NOW));
        write(&mut rtc, REGISTER_B, B_24_HOURS | B_SET);
        for (index, value) in [
            (SECONDS, 0x01),
            (MINUTES, 0),
            (HOURS, 0),
            (DAY, 1),
            (MONTH, 1),
            (YEAR, 0x70),
            (CENTURY, 0x19),
        ] {
            write(&mut rtc, index, value);
        }
        write(&mut rtc, REGISTER_B, B_24_HOURS);
        assert_eq!(rtc.ahead_s, 1 - NOW);
        assert_eq!((read(&mut rtc, SECONDS), read(&mut rtc, YEAR)), (0x01, 0x70));
    }

    #[test]
    fn firmware_finds_how_much_memory_there_is() {
        let mut rtc = Rtc::new(Box::new(|| NOW));
        rtc.set_machine(0xe000_0000, 5 << 30, 4);
        let word = |rtc: &mut Rtc, index| u16::from_le_bytes([read(rtc, index), read(rtc, index + 1)]);
        assert_eq!(word(&mut rtc, 0x15), 640);
        assert_eq!(word(&mut rtc, 0x30), 0xffff, "as much as fits");
        assert_eq!(word(&mut rtc, 0x34), 0xdf00);
        assert_eq!(
            [0x5b, 0x5c, 0x5d].map(|index| read(&mut rtc, index)),
            [0, 0x40, 1]
        );
        assert_eq!(read(&mut rtc, 0x5f), 3);
        rtc.set_machine(8 << 20, 0, 1);
        assert_eq!((word(&mut rtc, 0x17), word(&mut rtc, 0x34)), (7 << 10, 0));
    }

    #[test]
    fn wrong_widths_and_values_do_no_harm() {
        let mut rtc = Rtc::new(Box::new(|| NOW));
        assert!(matches!(rtc.read(1, &mut [0; 2]), Access::Fault));
        for index in 0..=0xff {
            write(&mut rtc, index, 0xff);
        }
        for index in 0..=0xff {
            read(&mut rtc, index);
        }
    }
}
