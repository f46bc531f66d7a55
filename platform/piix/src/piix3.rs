//! The ISA bridge. Intel 82371SB 290550-001

use std::sync::{Arc, Mutex, PoisonError};

use treaty_bus::{Access, BusTarget};
use treaty_chipset::{PowerControl, PowerRequest};
use treaty_pci::{ConfigSpace, PciDevice};

use crate::{PIRQS, PirqRouter, identity, without_bars};

const DEVICE_ID: u16 = 0x7000;
const CLASS_ISA_BRIDGE: u32 = 0x06_01_00;
/// PIRQRC: routes of PIRQA# to PIRQD#. 82371SB 290550-001 §2.2.13
const ROUTES: u16 = 0x60;
const ROUTE_DEFAULT: u8 = 0x80;
const ROUTE_WRITABLE: u8 = 0x8f;

/// The ISA bridge's PCI function: function 0 of a device that has others.
pub struct Piix3 {
    config: ConfigSpace,
    router: Arc<PirqRouter>,
}

impl Piix3 {
    /// `router` hears of the guest's routes.
    pub fn new(router: Arc<PirqRouter>) -> Self {
        let mut config = ConfigSpace::new(&identity(DEVICE_ID, CLASS_ISA_BRIDGE));
        config.set_multifunction();
        config.add_register(ROUTES, &[ROUTE_DEFAULT; PIRQS], &[ROUTE_WRITABLE; PIRQS]);
        Self { config, router }
    }
}

impl PciDevice for Piix3 {
    without_bars!();

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
        let mut before = [0; PIRQS];
        self.config.read(ROUTES, &mut before);
        self.config.write(offset, data);
        let mut after = before;
        self.config.read(ROUTES, &mut after);
        for (pirq, (old, new)) in before.iter().zip(after).enumerate() {
            if *old != new {
                self.router.route(pirq, new);
            }
        }
        Access::Done
    }
}

/// Offset of the reset control register among the configuration ports.
const RESET_CONTROL: u64 = 1;
/// A hard reset, not only of the processor; kept.
const SYSTEM_RESET: u8 = 1 << 1;
const RESET_CPU: u8 = 1 << 2;

/// The ports 0xCF8 to 0xCFF: those of PCI configuration, and among them the byte at 0xCF9 that resets.
/// 82371SB 290550-001 §2.5.2
pub struct ConfigPorts {
    config: Arc<dyn BusTarget>,
    power: Arc<dyn PowerControl>,
    reset_control: Mutex<u8>,
}

impl ConfigPorts {
    /// `config` takes all other accesses.
    pub fn new(config: Arc<dyn BusTarget>, power: Arc<dyn PowerControl>) -> Self {
        Self {
            config,
            power,
            reset_control: Mutex::new(0),
        }
    }

    fn write_reset_control(&self, value: u8) {
        if value & RESET_CPU != 0 {
            self.power.request(PowerRequest::Reset);
        }
        *self.reset_control.lock().unwrap_or_else(PoisonError::into_inner) = value & SYSTEM_RESET;
    }
}

impl BusTarget for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        match (offset, data) {
            (RESET_CONTROL, [byte]) => {
                *byte = *self.reset_control.lock().unwrap_or_else(PoisonError::into_inner);
                Access::Done
            }
            (_, data) => self.config.read(offset, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        match (offset, data) {
            (RESET_CONTROL, [value]) => {
                self.write_reset_control(*value);
                Access::Done
            }
            (_, data) => self.config.write(offset, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use treaty_pci::{IntxLine, PciRoot};

    use super::*;
    use crate::pirq::tests::Lines;

    #[test]
    fn route_registers_move_interrupts() {
        let (lines, router) = Lines::router();
        let mut bridge = Piix3::new(router.clone());
        router.line(2).set(true);
        bridge.write_config(0x60, &[0x80, 0x80, 11, 0x80]);
        assert_eq!(lines.high(), [11, 18]);
        bridge.write_config(0x62, &[0xff]);
        assert_eq!(lines.high(), [18]);
        let mut header = [0];
        bridge.read_config(0x0e, &mut header);
        assert_eq!(header, [0x80]);
    }

    #[derive(Default)]
    struct Asked(Mutex<Vec<PowerRequest>>);

    impl PowerControl for Asked {
        fn request(&self, request: PowerRequest) {
            self.0.lock().unwrap().push(request);
        }
    }

    #[test]
    fn the_reset_register_is_among_the_configuration_ports() {
        let asked = Arc::new(Asked::default());
        let ports = ConfigPorts::new(PciRoot::new().ports(), asked.clone());
        ports.write(1, &[2]);
        let mut byte = [0];
        ports.read(1, &mut byte);
        assert_eq!((byte, asked.0.lock().unwrap().len()), ([2], 0));
        ports.write(0, &0x8000_0600u32.to_le_bytes());
        assert!(asked.0.lock().unwrap().is_empty(), "a configuration address");
        ports.write(1, &[6]);
        assert_eq!(*asked.0.lock().unwrap(), [PowerRequest::Reset]);
    }
}
