//! Power management. Intel 82371AB 290562-001 §7

use treaty_bus::Access;
use treaty_pci::{ConfigSpace, PciDevice};

use crate::{identity, without_bars};

const DEVICE_ID: u16 = 0x7113;
const CLASS_OTHER_BRIDGE: u32 = 0x06_80_00;
const PM_BASE: u16 = 0x40;
const PORTS: u32 = 1;
/// Device activity B. 82371AB 290562-001 §7.1.9
const ACTIVITY: u16 = 0x58;
/// System management interrupts are armed, so firmware does not set up a mode that the processor does not have.
const SMI_ON_APMC: u32 = 1 << 25;
/// PMREGMISC: the ports are decoded. 82371AB 290562-001 §7.1.13
const MISC: u16 = 0x80;
const DECODED: u8 = 1;

/// The PCI function that says where the power management ports are. They do not move, and somebody else answers there.
pub struct Piix4Pm {
    config: ConfigSpace,
}

impl Piix4Pm {
    /// `ports` is the first of the power management ports; `irq` the system control interrupt.
    pub fn new(ports: u16, irq: u8) -> Self {
        let mut config = ConfigSpace::new(&identity(DEVICE_ID, CLASS_OTHER_BRIDGE));
        config.add_register(PM_BASE, &(u32::from(ports) | PORTS).to_le_bytes(), &[]);
        config.add_register(ACTIVITY, &SMI_ON_APMC.to_le_bytes(), &[]);
        config.add_register(MISC, &[DECODED], &[]);
        config.set_interrupt_pin(irq);
        Self { config }
    }
}

impl PciDevice for Piix4Pm {
    without_bars!();

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
        self.config.write(offset, data);
        Access::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_stay_where_they_are() {
        let mut function = Piix4Pm::new(0x600, 9);
        function.write_config(0x40, &0xb001u32.to_le_bytes());
        let mut base = [0; 4];
        function.read_config(0x40, &mut base);
        assert_eq!(u32::from_le_bytes(base), 0x601);
        function.read_config(0x58, &mut base);
        assert_eq!(base[3], 2);
    }
}
