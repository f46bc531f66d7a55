//! Offsets and bits of the registers, and the bytes behind them. 53C895A 2.2 §4.2

pub(crate) const SCNTL1: u8 = 0x01;
pub(crate) const SCNTL2: u8 = 0x02;
pub(crate) const SCNTL3: u8 = 0x03;
pub(crate) const SCID: u8 = 0x04;
pub(crate) const SXFER: u8 = 0x05;
pub(crate) const SDID: u8 = 0x06;
pub(crate) const GPREG: u8 = 0x07;
pub(crate) const SFBR: u8 = 0x08;
pub(crate) const SOCL: u8 = 0x09;
pub(crate) const SSID: u8 = 0x0a;
pub(crate) const SBCL: u8 = 0x0b;
pub(crate) const DSTAT: u8 = 0x0c;
pub(crate) const SSTAT0: u8 = 0x0d;
pub(crate) const SSTAT1: u8 = 0x0e;
pub(crate) const SSTAT2: u8 = 0x0f;
pub(crate) const DSA: u8 = 0x10;
pub(crate) const ISTAT0: u8 = 0x14;
pub(crate) const ISTAT1: u8 = 0x15;
pub(crate) const CTEST1: u8 = 0x19;
pub(crate) const CTEST2: u8 = 0x1a;
pub(crate) const CTEST3: u8 = 0x1b;
pub(crate) const TEMP: u8 = 0x1c;
pub(crate) const DBC: u8 = 0x24;
pub(crate) const DCMD: u8 = 0x27;
pub(crate) const DNAD: u8 = 0x28;
pub(crate) const DSP: u8 = 0x2c;
pub(crate) const DSPS: u8 = 0x30;
pub(crate) const SCRATCHA: u8 = 0x34;
pub(crate) const DMODE: u8 = 0x38;
pub(crate) const DIEN: u8 = 0x39;
pub(crate) const DCNTL: u8 = 0x3b;
pub(crate) const SIEN0: u8 = 0x40;
pub(crate) const SIEN1: u8 = 0x41;
pub(crate) const SIST0: u8 = 0x42;
pub(crate) const SIST1: u8 = 0x43;
pub(crate) const MACNTL: u8 = 0x46;
pub(crate) const GPCNTL: u8 = 0x47;
pub(crate) const STIME0: u8 = 0x48;
pub(crate) const STIME1: u8 = 0x49;
pub(crate) const STEST0: u8 = 0x4c;
pub(crate) const STEST3: u8 = 0x4f;
pub(crate) const SIDL: u8 = 0x50;
pub(crate) const STEST4: u8 = 0x52;
pub(crate) const CCNTL0: u8 = 0x56;
pub(crate) const CCNTL1: u8 = 0x57;
pub(crate) const SBDL: u8 = 0x58;
pub(crate) const SCRATCHB: u8 = 0x5c;
/// SCRATCHC to SCRATCHR: the first sixteen selectors of 64-bit table moves.
pub(crate) const SCRATCHC: u8 = 0x60;
pub(crate) const MMRS: u8 = 0xa0;
pub(crate) const MMWS: u8 = 0xa4;
pub(crate) const SFS: u8 = 0xa8;
pub(crate) const DRS: u8 = 0xac;
pub(crate) const SBMS: u8 = 0xb0;
pub(crate) const DNAD64: u8 = 0xb8;
pub(crate) const PMJAD1: u8 = 0xc0;
pub(crate) const PMJAD2: u8 = 0xc4;
pub(crate) const RBC: u8 = 0xc8;
pub(crate) const UA: u8 = 0xcc;
pub(crate) const ESA: u8 = 0xd0;
pub(crate) const IA: u8 = 0xd4;
pub(crate) const SBC: u8 = 0xd8;
pub(crate) const CSBC: u8 = 0xdc;

/// SCNTL1: connected, and the reset line.
pub(crate) const CON: u8 = 1 << 4;
pub(crate) const RST_LINE: u8 = 1 << 3;
/// SCNTL2: a disconnection that is not expected is an error; and bits that have no use on a narrow bus.
pub(crate) const SDU: u8 = 1 << 7;
const SCNTL2_KEPT: u8 = 0x96;
/// SSID: it is valid.
pub(crate) const SSID_VALID: u8 = 1 << 7;
/// DSTAT
pub(crate) mod dstat {
    pub(crate) const DFE: u8 = 1 << 7;
    pub(crate) const BF: u8 = 1 << 5;
    pub(crate) const ABRT: u8 = 1 << 4;
    pub(crate) const SSI: u8 = 1 << 3;
    pub(crate) const SIR: u8 = 1 << 2;
    pub(crate) const IID: u8 = 1;
}
/// SIST0 and SIEN0, SIST1 and SIEN1 as one number.
pub(crate) mod sist {
    pub(crate) const STO: u16 = 1 << 10;
    pub(crate) const GEN: u16 = 1 << 9;
    pub(crate) const HTH: u16 = 1 << 8;
    pub(crate) const MA: u16 = 1 << 7;
    pub(crate) const CMP: u16 = 1 << 6;
    pub(crate) const SEL: u16 = 1 << 5;
    pub(crate) const RSL: u16 = 1 << 4;
    pub(crate) const UDC: u16 = 1 << 2;
    pub(crate) const RST: u16 = 1 << 1;
}
/// ISTAT0
pub(crate) mod istat {
    pub(crate) const ABRT: u8 = 1 << 7;
    pub(crate) const SRST: u8 = 1 << 6;
    pub(crate) const SIGP: u8 = 1 << 5;
    pub(crate) const SEM: u8 = 1 << 4;
    pub(crate) const CON: u8 = 1 << 3;
    pub(crate) const INTF: u8 = 1 << 2;
    pub(crate) const SIP: u8 = 1 << 1;
    pub(crate) const DIP: u8 = 1;
}
/// ISTAT1: scripts run; the pin is held back.
pub(crate) const SRUN: u8 = 1 << 1;
pub(crate) const SIRQD: u8 = 1;
/// CTEST2: SIGP of ISTAT0, the ways in that are configured, and the scratch registers showing where the chip is.
pub(crate) const CTEST2_SIGP: u8 = 1 << 6;
pub(crate) const CTEST2_WAYS: u8 = 0x30;
pub(crate) const CTEST2_SRTCH: u8 = 1 << 3;
/// DMODE: a write of DSP does not start the script.
pub(crate) const MAN: u8 = 1;
/// DCNTL
pub(crate) const SSM: u8 = 1 << 4;
pub(crate) const STD: u8 = 1 << 2;
pub(crate) const IRQD: u8 = 1 << 1;
/// CCNTL0: jump on a phase that was not expected; which of the two addresses; also when no data are moved.
pub(crate) const ENPMJ: u8 = 1 << 7;
pub(crate) const PMJCTL: u8 = 1 << 6;
pub(crate) const ENNDJ: u8 = 1 << 5;
/// CCNTL1: what the upper byte of a table entry means; 64-bit moves by table and direct.
pub(crate) const XTIMOD: u8 = 1 << 2;
pub(crate) const EXTIBMV: u8 = 1 << 1;
pub(crate) const EXDBMV: u8 = 1;
/// SBCL and SOCL
pub(crate) const LINE_REQ: u8 = 1 << 7;
pub(crate) const LINE_ACK: u8 = 1 << 6;
pub(crate) const LINE_BSY: u8 = 1 << 5;
pub(crate) const LINE_ATN: u8 = 1 << 3;
/// STEST4: a low-voltage bus, and the clock's multiplier is locked.
const STEST4_VALUE: u8 = 0xe0;
/// MACNTL: the chip's type.
const MACNTL_TYPE: u8 = 0xf0;

/// Registers that hold what was written last, or what the chip has put there.
pub(crate) struct Registers([u8; 256]);

/// Read-only, as far as a write goes that comes from outside the chip.
const READ_ONLY: [u8; 13] = [
    SBCL, DSTAT, SSTAT0, SSTAT1, SSTAT2, CTEST1, SIST0, SIST1, STEST0, SIDL, STEST4, SBDL, SSID,
];

impl Registers {
    pub(crate) fn new() -> Self {
        let mut registers = Self([0; 256]);
        registers.reset();
        registers
    }

    /// As after a hardware or software reset.
    pub(crate) fn reset(&mut self) {
        self.0.fill(0);
        for (register, value) in [
            (0x00, 0xc0),
            (SCID, 7),
            (CTEST1, 0xf0),
            (MACNTL, MACNTL_TYPE),
            (GPCNTL, 0x0f),
            (STEST4, STEST4_VALUE),
        ] {
            self.set(register, value);
        }
    }

    pub(crate) fn get(&self, register: u8) -> u8 {
        self.0.get(usize::from(register)).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, register: u8, value: u8) {
        if let Some(byte) = self.0.get_mut(usize::from(register)) {
            *byte = value;
        }
    }

    /// Keeps a write, as far as the register can be written.
    pub(crate) fn keep(&mut self, register: u8, value: u8) {
        if READ_ONLY.contains(&register) {
            return;
        }
        let kept = match register {
            SCNTL1 => value & !CON,
            SCNTL2 => value & SCNTL2_KEPT,
            ISTAT1 => value & SIRQD,
            CTEST2 => value & CTEST2_SRTCH,
            // Clearing and flushing FIFOs is done at once.
            CTEST3 => value & !0x0c,
            STEST3 => value & !0x02,
            DCNTL => value & !(STD | 0x40),
            MACNTL => MACNTL_TYPE | value & 0x0f,
            _ => value,
        };
        self.set(register, kept);
    }

    pub(crate) fn u32(&self, register: u8) -> u32 {
        let bytes = [0, 1, 2, 3].map(|at| self.get(register.wrapping_add(at)));
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn set_u32(&mut self, register: u8, value: u32) {
        for (at, byte) in (0..).zip(value.to_le_bytes()) {
            self.set(register.wrapping_add(at), byte);
        }
    }

    /// The byte counter, without the command's byte above it.
    pub(crate) fn set_count(&mut self, count: u32) {
        let command = u32::from(self.get(DCMD)) << 24;
        self.set_u32(DBC, command | count & 0x00ff_ffff);
    }

    /// An address whose upper half is in a selector register.
    pub(crate) fn wide(&self, selector: u8, low: u32) -> u64 {
        u64::from(self.u32(selector)) << 32 | u64::from(low)
    }

    pub(crate) fn has(&self, register: u8, bits: u8) -> bool {
        self.get(register) & bits != 0
    }

    /// Pins: what is an output keeps its value, inputs are pulled up.
    pub(crate) fn pins(&self) -> u8 {
        let inputs = self.get(GPCNTL) & 0x1f;
        self.get(GPREG) & !inputs | inputs
    }
}
