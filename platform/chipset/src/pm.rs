use std::sync::Arc;
use std::time::Instant;

use treaty_bus::{Access, BusDevice};

use crate::{PowerControl, PowerRequest};

/// Bytes of the register block.
pub const PM_LEN: u64 = 0x10;
/// PM1a event block: status, then enable, 2 bytes each. ACPI 6.5 §4.8.3.1
pub const PM_EVENT_OFFSET: u64 = 0;
/// PM1a control block: 2 bytes. ACPI 6.5 §4.8.3.2
pub const PM_CONTROL_OFFSET: u64 = 4;
/// PM timer: 4 bytes. ACPI 6.5 §4.8.3.3
pub const PM_TIMER_OFFSET: u64 = 8;
/// Reset register: 1 byte. ACPI 6.5 §4.8.3.6
pub const PM_RESET_OFFSET: u64 = 12;
/// What resets when written to it.
pub const PM_RESET_VALUE: u8 = 1;
/// The sleep type that is soft-off, S5.
pub const PM_SLEEP_TYPE_OFF: u8 = 5;

const TIMER_HZ: u128 = 3_579_545;
const POWER_BUTTON: u16 = 1 << 8;
/// The events there are enable bits for; only the power button ever happens.
const EVENTS: u16 = 1 | 1 << 5 | POWER_BUTTON | 1 << 9 | 1 << 10;
const SCI_ENABLED: u16 = 1;
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

/// ACPI fixed hardware: power button, soft-off, timer, reset register. It is always in ACPI mode.
pub struct PowerManagement {
    status: u16,
    enable: u16,
    control: u16,
    started: Instant,
    power: Arc<dyn PowerControl>,
    /// Sets the level of the system control interrupt.
    sci: Box<dyn Fn(bool) + Send>,
}

impl PowerManagement {
    /// `sci` sets the level of the system control interrupt; it must not block.
    pub fn new(power: Arc<dyn PowerControl>, sci: Box<dyn Fn(bool) + Send>) -> Self {
        Self {
            status: 0,
            enable: 0,
            control: SCI_ENABLED,
            started: Instant::now(),
            power,
            sci,
        }
    }

    /// The power button was pressed: an event for the guest, if it has enabled it.
    pub fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON;
        self.update_sci();
    }

    fn update_sci(&self) {
        (self.sci)(self.status & self.enable != 0);
    }

    fn timer(&self) -> u32 {
        (self.started.elapsed().as_nanos() * TIMER_HZ / 1_000_000_000) as u32
    }

    fn image(&self) -> [u8; PM_LEN as usize] {
        let ([s0, s1], [e0, e1]) = (self.status.to_le_bytes(), self.enable.to_le_bytes());
        let [c0, c1] = self.control.to_le_bytes();
        let [t0, t1, t2, t3] = self.timer().to_le_bytes();
        [s0, s1, e0, e1, c0, c1, 0, 0, t0, t1, t2, t3, 0, 0, 0, 0]
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        let shift = (offset & 1) * 8;
        let bits = u16::from(value) << shift;
        let kept = !(0xff << shift);
        match offset {
            0 | 1 => self.status &= !bits,
            2 | 3 => self.enable = (self.enable & kept | bits) & EVENTS,
            4 => self.control = self.control & kept | bits | SCI_ENABLED,
            5 => self.write_sleep(value),
            PM_RESET_OFFSET if value == PM_RESET_VALUE => self.power.request(PowerRequest::Reset),
            _ => {}
        }
        self.update_sci();
    }

    /// The upper half of PM1 control. SLP_EN reads as zero.
    fn write_sleep(&mut self, value: u8) {
        let kind = value >> SLEEP_TYPE_SHIFT & 7;
        self.control = self.control & 0xff | u16::from(value & !SLEEP_ENABLE) << 8;
        if value & SLEEP_ENABLE != 0 && kind == PM_SLEEP_TYPE_OFF {
            self.power.request(PowerRequest::Off);
        }
    }
}

impl BusDevice for PowerManagement {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Access {
        let image = self.image();
        for (byte, value) in data.iter_mut().zip(image.iter().skip(offset as usize)) {
            *byte = *value;
        }
        Access::Done
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Access {
        for (at, value) in (offset..).zip(data) {
            self.write_byte(at, *value);
        }
        Access::Done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Default)]
    struct Asked(Mutex<Vec<PowerRequest>>);

    impl PowerControl for Asked {
        fn request(&self, request: PowerRequest) {
            self.0.lock().unwrap().push(request);
        }
    }

    fn device() -> (PowerManagement, Arc<Asked>, Arc<AtomicBool>) {
        let (asked, level) = (Arc::new(Asked::default()), Arc::new(AtomicBool::new(false)));
        let sci = level.clone();
        let device = PowerManagement::new(
            asked.clone(),
            Box::new(move |level| sci.store(level, Ordering::Relaxed)),
        );
        (device, asked, level)
    }

    #[test]
    fn the_power_button_raises_sci_until_it_is_acknowledged() {
        let (mut pm, _, level) = device();
        pm.press_power_button();
        assert!(!level.load(Ordering::Relaxed), "not enabled");
        pm.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(level.load(Ordering::Relaxed));
        let mut status = [0; 2];
        pm.read(0, &mut status);
        assert_eq!(u16::from_le_bytes(status), POWER_BUTTON);
        pm.write(0, &status);
        assert!(!level.load(Ordering::Relaxed));
        pm.read(0, &mut status);
        assert_eq!(status, [0; 2]);
    }

    #[test]
    fn soft_off_needs_the_type_and_the_enable_bit() {
        let (mut pm, asked, _) = device();
        pm.write(4, &((5u16 << 10) | 1).to_le_bytes());
        pm.write(4, &((3u16 << 10) | (1 << 13) | 1).to_le_bytes());
        assert!(asked.0.lock().unwrap().is_empty());
        pm.write(4, &((5u16 << 10) | (1 << 13) | 1).to_le_bytes());
        assert_eq!(*asked.0.lock().unwrap(), [PowerRequest::Off]);
        let mut control = [0; 2];
        pm.read(4, &mut control);
        assert_eq!(u16::from_le_bytes(control), (5 << 10) | 1, "SLP_EN is write-only");
    }

    #[test]
    fn the_reset_register_resets_on_its_value_only() {
        let (mut pm, asked, _) = device();
        pm.write(PM_RESET_OFFSET, &[0]);
        assert!(asked.0.lock().unwrap().is_empty());
        pm.write(PM_RESET_OFFSET, &[PM_RESET_VALUE]);
        assert_eq!(*asked.0.lock().unwrap(), [PowerRequest::Reset]);
    }

    #[test]
    fn the_timer_counts() {
        let (mut pm, _, _) = device();
        let mut read = || {
            let mut bytes = [0; 4];
            pm.read(PM_TIMER_OFFSET, &mut bytes);
            u32::from_le_bytes(bytes)
        };
        let first = read();
        while read() == first {}
    }
}
