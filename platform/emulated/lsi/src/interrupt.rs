//! What is pending, and whether the pin shows it. 53C895A 2.2 §2.2.16

use crate::registers::{DIEN, SIEN0, SIEN1, dstat, istat, sist};

/// Conditions that let scripts go on when they are masked.
const NOT_FATAL: u16 = sist::GEN | sist::HTH | sist::CMP | sist::SEL | sist::RSL;

/// The conditions that the guest has not read yet.
#[derive(Default)]
pub(crate) struct Pending {
    dma: u8,
    scsi: u16,
    /// An interrupt on the fly.
    pub(crate) fly: bool,
}

/// What the guest wants to hear of.
#[derive(Clone, Copy)]
pub(crate) struct Enabled {
    dma: u8,
    scsi: u16,
}

impl Enabled {
    pub(crate) fn of(registers: &crate::registers::Registers) -> Self {
        Self {
            dma: registers.get(DIEN),
            scsi: u16::from_le_bytes([registers.get(SIEN0), registers.get(SIEN1)]),
        }
    }
}

impl Pending {
    pub(crate) fn add_dma(&mut self, bits: u8) {
        self.dma |= bits;
    }

    /// True if scripts must stop for it.
    pub(crate) fn add_scsi(&mut self, bits: u16, enabled: Enabled) -> bool {
        self.scsi |= bits;
        bits & (enabled.scsi | !NOT_FATAL) != 0
    }

    /// DSTAT is read: what it had is gone.
    pub(crate) fn take_dma(&mut self) -> u8 {
        std::mem::take(&mut self.dma) | dstat::DFE
    }

    /// SIST0 is read, or SIST1.
    pub(crate) fn take_scsi(&mut self, upper: bool) -> u8 {
        let [low, high] = self.scsi.to_le_bytes();
        let (taken, left) = if upper { (high, [low, 0]) } else { (low, [0, high]) };
        self.scsi = u16::from_le_bytes(left);
        taken
    }

    /// The bits of ISTAT0. What is neither fatal nor enabled is not shown there.
    pub(crate) fn summary(&self, enabled: Enabled) -> u8 {
        let mut bits = 0;
        if self.dma != 0 {
            bits |= istat::DIP;
        }
        if self.scsi & (enabled.scsi | !NOT_FATAL) != 0 {
            bits |= istat::SIP;
        }
        if self.fly {
            bits |= istat::INTF;
        }
        bits
    }

    /// What the pin shows if nothing holds it back.
    pub(crate) fn level(&self, enabled: Enabled) -> bool {
        self.fly || self.dma & enabled.dma != 0 || self.scsi & enabled.scsi != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Enabled = Enabled { dma: 0, scsi: 0 };
    const ALL: Enabled = Enabled {
        dma: 0xff,
        scsi: 0xffff,
    };

    #[test]
    fn masked_conditions_are_seen_if_they_are_fatal() {
        let mut pending = Pending::default();
        assert!(!pending.add_scsi(sist::GEN, NOTHING));
        assert_eq!(pending.summary(NOTHING), 0);
        assert!(pending.add_scsi(sist::GEN, ALL));
        assert!(pending.add_scsi(sist::MA, NOTHING));
        assert_eq!(pending.summary(NOTHING), istat::SIP);
        assert!(!pending.level(NOTHING));
        assert!(pending.level(ALL));
        assert_eq!(pending.take_scsi(false), sist::MA as u8);
        assert_eq!(pending.take_scsi(true), (sist::GEN >> 8) as u8);
        assert_eq!(pending.summary(ALL), 0);
    }

    #[test]
    fn a_read_of_dstat_takes_what_is_pending() {
        let mut pending = Pending::default();
        pending.add_dma(dstat::SIR);
        assert_eq!(pending.summary(NOTHING), istat::DIP);
        assert_eq!(pending.take_dma(), dstat::SIR | dstat::DFE);
        assert_eq!(pending.take_dma(), dstat::DFE);
    }
}
