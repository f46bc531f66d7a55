//! The transceiver (Marvell 88E1011) behind the management interface. 8254x 4.0 §8, §13.4.6

/// MDIC's fields.
const READY: u32 = 1 << 28;
const ERROR: u32 = 1 << 30;
const OP_WRITE: u32 = 1;
const OP_READ: u32 = 2;
/// The only transceiver's address.
const ADDRESS: u32 = 1;

const CONTROL: usize = 0;
const STATUS: usize = 1;
const SPECIFIC_STATUS: usize = 17;

const CONTROL_RESET: u16 = 1 << 15;
const CONTROL_LOOPBACK: u16 = 1 << 14;
const CONTROL_AUTONEGOTIATE: u16 = 1 << 12;
const CONTROL_RESTART: u16 = 1 << 9;
const STATUS_LINK: u16 = 1 << 2;
const STATUS_NEGOTIATED: u16 = 1 << 5;
const SPECIFIC_LINK: u16 = 1 << 10;

const REGISTERS: usize = 32;

/// Registers at the start: number, value, bits that can be written.
const AT_START: [(usize, u16, u16); 14] = [
    (CONTROL, 0x1140, 0x7dff),
    (STATUS, 0x7949, 0),
    (2, 0x0141, 0),
    (3, 0x0c20, 0),
    // What we advertise, and what the partner does.
    (4, 0x0de1, 0xffff),
    (5, 0x4de1, 0),
    (6, 0x0001, 0),
    // 1000BASE-T control and status.
    (9, 0x0e00, 0xffff),
    (10, 0x3c00, 0),
    (15, 0x3000, 0),
    (16, 0x0360, 0xffff),
    // 1000 Mb/s, full duplex, resolved.
    (SPECIFIC_STATUS, 0xa808, 0),
    (18, 0x0000, 0xffff),
    (20, 0x0d60, 0xffff),
];

/// The transceiver.
pub(crate) struct Phy {
    registers: [u16; REGISTERS],
    plugged: bool,
}

/// What a write to the transceiver led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing else.
    None,
    /// The link was negotiated anew.
    Negotiated,
}

impl Phy {
    /// With a cable plugged in, or none.
    pub(crate) fn new(plugged: bool) -> Self {
        let mut phy = Self {
            registers: [0; REGISTERS],
            plugged,
        };
        phy.reset();
        phy
    }

    pub(crate) fn reset(&mut self) {
        for (number, value, _) in AT_START {
            self.set(number, value);
        }
        self.set_plugged(self.plugged);
    }

    /// Plugs the cable in or out.
    pub(crate) fn set_plugged(&mut self, plugged: bool) {
        self.plugged = plugged;
        let change = |value: u16, bits: u16| if plugged { value | bits } else { value & !bits };
        self.set(STATUS, change(self.get(STATUS), STATUS_LINK | STATUS_NEGOTIATED));
        self.set(SPECIFIC_STATUS, change(self.get(SPECIFIC_STATUS), SPECIFIC_LINK));
    }

    pub(crate) fn is_plugged(&self) -> bool {
        self.plugged
    }

    /// True if what is sent comes back.
    pub(crate) fn loops_back(&self) -> bool {
        self.get(CONTROL) & CONTROL_LOOPBACK != 0
    }

    /// MDIC's new value after a write of it, and what that did.
    pub(crate) fn access(&mut self, value: u32) -> (u32, Outcome) {
        let number = (value >> 16 & 0x1f) as usize;
        match (value >> 21 & 0x1f, value >> 26 & 3) {
            (ADDRESS, OP_READ) => (
                value & !0xffff | u32::from(self.get(number)) | READY,
                Outcome::None,
            ),
            (ADDRESS, OP_WRITE) => {
                let outcome = self.write(number, value as u16);
                (value | READY, outcome)
            }
            _ => (value | READY | ERROR, Outcome::None),
        }
    }

    fn write(&mut self, number: usize, value: u16) -> Outcome {
        let row = AT_START.iter().find(|row| row.0 == number);
        let writable = row.map_or(0, |row| row.2);
        if number == CONTROL && value & CONTROL_RESET != 0 {
            self.reset();
            return Outcome::Negotiated;
        }
        self.set(number, self.get(number) & !writable | value & writable);
        let restart = CONTROL_AUTONEGOTIATE | CONTROL_RESTART;
        if number == CONTROL && value & restart == restart {
            return Outcome::Negotiated;
        }
        Outcome::None
    }

    fn get(&self, number: usize) -> u16 {
        self.registers.get(number).copied().unwrap_or(0)
    }

    fn set(&mut self, number: usize, value: u16) {
        if let Some(register) = self.registers.get_mut(number) {
            *register = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(phy: &mut Phy, number: u32) -> u32 {
        phy.access(OP_READ << 26 | ADDRESS << 21 | number << 16).0
    }

    #[test]
    fn a_driver_finds_it_and_its_link() {
        let mut phy = Phy::new(true);
        assert_eq!(read(&mut phy, 2) & 0xffff, 0x0141);
        assert_eq!(read(&mut phy, 3) & 0xfff0, 0x0c20);
        assert_ne!(read(&mut phy, 1) & 0x24, 0);
        phy.set_plugged(false);
        assert_eq!(read(&mut phy, 1) & 0x24, 0);
        assert_eq!(read(&mut phy, 17) & 0x400, 0);
        let (value, _) = phy.access(OP_READ << 26 | 2 << 21);
        assert_ne!(value & ERROR, 0, "there is no second one");
    }

    #[test]
    fn control_bits_that_restart_do_not_stay() {
        let mut phy = Phy::new(true);
        let write = |phy: &mut Phy, value: u32| phy.access(OP_WRITE << 26 | ADDRESS << 21 | value).1;
        assert_eq!(write(&mut phy, 0x1340), Outcome::Negotiated);
        assert_eq!(read(&mut phy, 0) & 0xffff, 0x1140);
        assert_eq!(write(&mut phy, 0x5140), Outcome::None);
        assert!(phy.loops_back());
        assert_eq!(write(&mut phy, 0x9140), Outcome::Negotiated);
        assert!(!phy.loops_back());
    }
}
