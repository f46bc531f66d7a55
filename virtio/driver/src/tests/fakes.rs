use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

use crate::Registers;
use crate::pci::{Function, PciBus};

/// Registers that keep what is written, and tell what was.
#[derive(Clone)]
pub struct FakeRegisters {
    bytes: Rc<RefCell<Vec<u8>>>,
    pub writes: Rc<RefCell<Vec<(usize, u32)>>>,
    len: usize,
    base: usize,
}

impl FakeRegisters {
    pub fn new(len: usize) -> Self {
        Self {
            bytes: Rc::new(RefCell::new(vec![0; len])),
            writes: Rc::default(),
            len,
            base: 0,
        }
    }

    /// A part of the same registers.
    pub fn part(&self, base: usize, len: usize) -> Self {
        Self {
            base: self.base + base,
            len,
            ..self.clone()
        }
    }

    pub fn poke(&self, offset: usize, bytes: &[u8]) {
        let at = self.base + offset;
        self.bytes.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset + N <= self.len, "read outside the window at {offset:#x}");
        assert_eq!(offset % N, 0, "unaligned read at {offset:#x}");
        let at = self.base + offset;
        self.bytes.borrow()[at..at + N].try_into().unwrap()
    }

    fn set<const N: usize>(&self, offset: usize, bytes: [u8; N]) {
        assert!(offset + N <= self.len, "write outside the window at {offset:#x}");
        assert_eq!(offset % N, 0, "unaligned write at {offset:#x}");
        self.poke(offset, &bytes);
        let mut value = [0; 4];
        value[..N].copy_from_slice(&bytes);
        self.writes.borrow_mut().push((offset, u32::from_le_bytes(value)));
    }
}

impl Registers for FakeRegisters {
    fn len(&self) -> usize {
        self.len
    }
    fn read8(&self, offset: usize) -> u8 {
        let [byte] = self.get(offset);
        byte
    }
    fn read16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }
    fn read32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }
    fn write8(&self, offset: usize, value: u8) {
        self.set(offset, [value]);
    }
    fn write16(&self, offset: usize, value: u16) {
        self.set(offset, value.to_le_bytes());
    }
    fn write32(&self, offset: usize, value: u32) {
        self.set(offset, value.to_le_bytes());
    }
}

/// A bus whose functions have 256 bytes of configuration space each, and BARs of one size.
pub struct FakeBus {
    pub functions: RefCell<BTreeMap<u32, [u8; 256]>>,
    /// Size of each BAR; 0 is none, [`HIGH_HALF`] the upper word of the one before.
    pub bar_sizes: [u32; 6],
    pub reads: RefCell<usize>,
    /// What is mapped: address and length.
    pub mapped: RefCell<Vec<(u64, u64)>>,
    pub memory: FakeRegisters,
    pub memory_at: u64,
}

pub const HIGH_HALF: u32 = 1;

pub const AT: Function = Function {
    bus: 0,
    device: 3,
    function: 0,
};

impl FakeBus {
    /// One function, at [`AT`].
    pub fn with(space: [u8; 256]) -> Self {
        Self {
            functions: RefCell::new(BTreeMap::from([(AT.number(), space)])),
            bar_sizes: [0; 6],
            reads: RefCell::new(0),
            mapped: RefCell::default(),
            memory: FakeRegisters::new(0x4000),
            memory_at: 0xe000_0000,
        }
    }
}

impl PciBus for FakeBus {
    type Registers = FakeRegisters;

    fn read(&self, function: Function, offset: u16) -> u32 {
        *self.reads.borrow_mut() += 1;
        let functions = self.functions.borrow();
        let Some(space) = functions.get(&function.number()) else {
            return u32::MAX;
        };
        let at = usize::from(offset & 0xfc);
        u32::from_le_bytes(space[at..at + 4].try_into().unwrap())
    }

    fn write(&self, function: Function, offset: u16, value: u32) {
        let mut functions = self.functions.borrow_mut();
        let space = functions.get_mut(&function.number()).unwrap();
        let at = usize::from(offset & 0xfc);
        let value = match at {
            0x10..0x28 => {
                let kind = u32::from(space[at] & 0xf);
                match self.bar_sizes[(at - 0x10) / 4] {
                    0 => u32::from_le_bytes(space[at..at + 4].try_into().unwrap()),
                    HIGH_HALF => value,
                    size => value & !(size - 1) | kind,
                }
            }
            _ => value,
        };
        space[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn map(&self, addr: u64, len: u64) -> Option<FakeRegisters> {
        self.mapped.borrow_mut().push((addr, len));
        let base = usize::try_from(addr.checked_sub(self.memory_at)?).ok()?;
        let len = usize::try_from(len).ok()?;
        (base + len <= self.memory.len()).then(|| self.memory.part(base, len))
    }
}
