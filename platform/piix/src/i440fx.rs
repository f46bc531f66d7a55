//! The host bridge. Intel 82441FX 290549-001

use std::ops::Range;

use treaty_bus::Access;
use treaty_pci::{ConfigSpace, PciDevice};

use crate::{identity, without_bars};

const DEVICE_ID: u16 = 0x1237;
const CLASS_HOST_BRIDGE: u32 = 0x06_00_00;
/// PAM0 to PAM6, two segments each; the lower half of PAM0 is reserved. 82441FX 290549-001 §3.2.18
const PAM: u16 = 0x59;
const PAM_LEN: usize = 7;
const PAM_WRITABLE: [u8; PAM_LEN] = [0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33];
/// System management RAM is not there: the register is kept and means nothing.
const SMRAM: u16 = 0x72;
const SMRAM_DEFAULT: u8 = 0x02;
const READ_ENABLE: u8 = 1;
const WRITE_ENABLE: u8 = 1 << 1;

/// The address ranges whose access is chosen by the PAM registers: 64 KiB of BIOS, then twelve of 16 KiB from 0xC0000 on.
pub const SEGMENTS: [Range<u64>; 13] = segments();

const fn segments() -> [Range<u64>; 13] {
    let mut segments = [const { 0xf_0000..0x10_0000 }; 13];
    let mut index = 1;
    while index < segments.len() {
        let start = 0xc_0000 + (index as u64 - 1) * 0x4000;
        #[allow(clippy::indexing_slicing)]
        {
            segments[index] = start..start + 0x4000;
        }
        index += 1;
    }
    segments
}

/// What answers in a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShadowAccess {
    /// What is on the bus: the firmware's ROM, or nobody.
    #[default]
    Bus,
    /// RAM, for reading.
    ReadOnly,
    /// RAM.
    ReadWrite,
}

impl ShadowAccess {
    /// A register that says so for both of its segments.
    fn register(self) -> u8 {
        match self {
            Self::Bus => 0,
            Self::ReadOnly => 0x11,
            Self::ReadWrite => 0x33,
        }
    }

    /// Writes to RAM with reads from the bus are not told apart from the bus alone.
    fn from_bits(bits: u8) -> Self {
        match (bits & READ_ENABLE != 0, bits & WRITE_ENABLE != 0) {
            (false, _) => Self::Bus,
            (true, false) => Self::ReadOnly,
            (true, true) => Self::ReadWrite,
        }
    }
}

/// Who maps the segments. Called on a vCPU thread when a guest has changed a register, and only for segments that differ.
pub trait Shadow: Send {
    /// Makes `access` what answers in [`SEGMENTS`]`[segment]`.
    fn set(&mut self, segment: usize, access: ShadowAccess);
}

/// The host bridge's PCI function.
pub struct I440fx {
    config: ConfigSpace,
    shadow: Box<dyn Shadow>,
    accesses: [ShadowAccess; SEGMENTS.len()],
}

impl I440fx {
    /// `initial` is what answers in all segments now: the bus, as after power-on, or what a firmware would have left.
    pub fn new(shadow: Box<dyn Shadow>, initial: ShadowAccess) -> Self {
        let mut config = ConfigSpace::new(&identity(DEVICE_ID, CLASS_HOST_BRIDGE));
        let values = PAM_WRITABLE.map(|mask| mask & initial.register());
        config.add_register(PAM, &values, &PAM_WRITABLE);
        config.add_register(SMRAM, &[SMRAM_DEFAULT], &[0x78]);
        Self {
            config,
            shadow,
            accesses: [initial; SEGMENTS.len()],
        }
    }

    /// Maps what the registers say, where it is not mapped yet.
    fn follow_registers(&mut self) {
        let mut registers = [0; PAM_LEN];
        self.config.read(PAM, &mut registers);
        let halves = registers.iter().flat_map(|byte| [byte & 0xf, byte >> 4]);
        // The reserved half comes first.
        for (index, (old, bits)) in self.accesses.iter_mut().zip(halves.skip(1)).enumerate() {
            let access = ShadowAccess::from_bits(bits);
            if *old != access {
                *old = access;
                self.shadow.set(index, access);
            }
        }
    }
}

impl PciDevice for I440fx {
    without_bars!();

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
        self.config.write(offset, data);
        self.follow_registers();
        Access::Done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Calls(Arc<Mutex<Vec<(usize, ShadowAccess)>>>);

    impl Shadow for Calls {
        fn set(&mut self, segment: usize, access: ShadowAccess) {
            self.0.lock().unwrap().push((segment, access));
        }
    }

    #[test]
    fn segments_cover_the_last_quarter_of_the_first_megabyte() {
        assert_eq!(SEGMENTS[1], 0xc_0000..0xc_4000);
        assert_eq!(SEGMENTS[12], 0xe_c000..0xf_0000);
        let len: u64 = SEGMENTS.iter().map(|range| range.end - range.start).sum();
        assert_eq!(len, 0x4_0000);
    }

    #[test]
    fn registers_choose_what_answers_in_each_segment() {
        let calls = Calls::default();
        let mut bridge = I440fx::new(Box::new(calls.clone()), ShadowAccess::Bus);
        let took = || std::mem::take(&mut *calls.0.lock().unwrap());
        bridge.write_config(0x59, &[0x3f]);
        assert_eq!(took(), [(0, ShadowAccess::ReadWrite)]);
        bridge.write_config(0x58, &[0, 0x10, 0x13, 0]);
        let expected = [
            (0, ShadowAccess::ReadOnly),
            (1, ShadowAccess::ReadWrite),
            (2, ShadowAccess::ReadOnly),
        ];
        assert_eq!(took(), expected);
        bridge.write_config(0x5a, &[0x23]);
        assert_eq!(took(), [(2, ShadowAccess::Bus)]);
        bridge.write_config(0x5f, &[0x30]);
        assert_eq!(took(), [(12, ShadowAccess::ReadWrite)]);
        bridge.write_config(0x5f, &[0x30]);
        bridge.write_config(4, &[0xff; 4]);
        assert_eq!(took(), [], "nothing changed");
        let mut bridge = I440fx::new(Box::new(calls.clone()), ShadowAccess::ReadWrite);
        bridge.write_config(0x59, &[0x30, 0x33, 0x33, 0x13]);
        assert_eq!(took(), [(6, ShadowAccess::ReadOnly)]);
    }
}
