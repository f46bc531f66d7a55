use core::fmt;

use crate::Registers;

/// One PCI function of segment 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Function {
    /// Bus.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

impl Function {
    /// Its number in ECAM and CF8 order: bus, device, function.
    pub const fn number(self) -> u32 {
        (self.bus as u32) << 8 | (self.device as u32 & 31) << 3 | self.function as u32 & 7
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Access to PCI configuration space and to the memory that BARs name.
pub trait PciBus {
    /// Registers behind a BAR.
    type Registers: Registers;

    /// Reads the aligned 32-bit word at `offset` (below 4096; ones if the bus or the offset cannot be reached).
    fn read(&self, function: Function, offset: u16) -> u32;

    /// Writes it.
    fn write(&self, function: Function, offset: u16, value: u32);

    /// Makes device memory accessible. `None` if it cannot be reached.
    fn map(&self, addr: u64, len: u64) -> Option<Self::Registers>;
}

/// Standard header offsets, as words. PCI Local Bus 3.0 §6.1
pub(crate) mod header {
    pub const ID: u16 = 0x00;
    pub const COMMAND: u16 = 0x04;
    pub const CLASS: u16 = 0x08;
    pub const TYPE: u16 = 0x0c;
    pub const BAR0: u16 = 0x10;
    pub const BUSES: u16 = 0x18;
    pub const CAPABILITIES: u16 = 0x34;

    /// Command: answers to memory accesses.
    pub const COMMAND_MEMORY: u32 = 1 << 1;
    /// Command: may do DMA.
    pub const COMMAND_MASTER: u32 = 1 << 2;
    /// Command: does not drive INTx.
    pub const COMMAND_NO_INTX: u32 = 1 << 10;
    /// Status (upper half): has a capability list.
    pub const STATUS_CAPABILITIES: u32 = 1 << 20;
    /// Header type: more than one function.
    pub const MULTIFUNCTION: u32 = 1 << 23;
}

/// Reads the byte at `offset`.
pub(crate) fn read8<B: PciBus>(bus: &B, function: Function, offset: u16) -> u8 {
    (bus.read(function, offset & !3) >> (u32::from(offset & 3) * 8)) as u8
}

/// Sets and clears bits of the command register. The status half is written as zeros: ones would clear it.
pub(crate) fn update_command<B: PciBus>(bus: &B, function: Function, set: u32, clear: u32) {
    let command = bus.read(function, header::COMMAND) & 0xffff;
    bus.write(function, header::COMMAND, (command | set) & !clear & 0xffff);
}

/// Calls `found` for each function that answers, on the root bus and on buses behind bridges that somebody has numbered.
/// Bounded by the number of buses; a bridge that points backwards is ignored.
pub fn scan<B: PciBus>(bus: &B, mut found: impl FnMut(Function)) {
    let mut pending = [0_u64; 4];
    let mut next = Some(0_u8);
    while let Some(number) = next {
        for device in 0..32 {
            scan_device(bus, number, device, &mut found, &mut pending);
        }
        next = (number..=u8::MAX).skip(1).find(|&bus| {
            let word = pending.get(usize::from(bus / 64)).copied().unwrap_or(0);
            word >> (bus % 64) & 1 != 0
        });
    }
}

fn scan_device<B: PciBus>(
    bus: &B,
    number: u8,
    device: u8,
    found: &mut impl FnMut(Function),
    pending: &mut [u64; 4],
) {
    let mut functions = 1;
    for function in 0..8 {
        let at = Function {
            bus: number,
            device,
            function,
        };
        if function >= functions || bus.read(at, header::ID) & 0xffff == 0xffff {
            continue;
        }
        let kind = bus.read(at, header::TYPE);
        if function == 0 && kind & header::MULTIFUNCTION != 0 {
            functions = 8;
        }
        if kind >> 16 & 0x7f == 1 {
            let secondary = (bus.read(at, header::BUSES) >> 8) as u8;
            if let Some(word) = pending
                .get_mut(usize::from(secondary / 64))
                .filter(|_| secondary > number)
            {
                *word |= 1 << (secondary % 64);
            }
        }
        found(at);
    }
}

/// The class, subclass and programming interface of a function, as one number.
pub fn class<B: PciBus>(bus: &B, function: Function) -> u32 {
    bus.read(function, header::CLASS) >> 8
}
