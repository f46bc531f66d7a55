//! A driver for the 8254x. Its manual is Intel's "PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's
//! Manual", revision 4.0.

use treaty_virtio_driver::pci::{Function, MemoryWindow, PciBus, place_bars};
use treaty_virtio_driver::{DmaMemory, DriverError, Registers};

use crate::clock::{self, Clock};
use crate::dma::Arena;
use crate::interrupts;
use crate::measure::{Failure, Mode};
use crate::pci::Pci;
use crate::window::Window;

const CTRL: usize = 0x0000;
const MDIC: usize = 0x0020;
const ICR: usize = 0x00c0;
const IMS: usize = 0x00d0;
const IMC: usize = 0x00d8;
const RCTL: usize = 0x0100;
const TCTL: usize = 0x0400;
const TIPG: usize = 0x0410;
const RDBAL: usize = 0x2800;
const TDBAL: usize = 0x3800;
const TIDV: usize = 0x3820;
const TADV: usize = 0x382c;
const RAL: usize = 0x5400;

const CTRL_RST: u32 = 1 << 26;
const CTRL_SLU: u32 = 1 << 6;
const CTRL_ASDE: u32 = 1 << 5;
/// Write, PHY 1, the control register.
const MDIC_WRITE_CONTROL: u32 = 1 << 26 | 1 << 21;
const MDIC_READY: u32 = 1 << 28;
const PHY_LOOPBACK: u32 = 1 << 14 | 1 << 6 | 1 << 8;
const PHY_NORMAL: u32 = 1 << 12 | 1 << 8 | 1 << 6;
/// Receives everything that comes, without its checksum; 2048 bytes a buffer.
const RCTL_ALL: u32 = 1 << 1 | 1 << 3 | 1 << 15 | 1 << 26;
/// Sends, pads; the usual collision numbers. 8254x 4.0 §13.4.33
const TCTL_ON: u32 = 1 << 1 | 1 << 3 | 0x0f << 4 | 0x40 << 12;
const TIPG_USUAL: u32 = 10 | 8 << 10 | 6 << 20;
/// A descriptor was written back.
const CAUSE_TXDW: u32 = 1;

/// End of packet, checksum of the wire, report.
const SEND: u8 = 1 | 1 << 1 | 1 << 3;
/// The interrupt may be delayed.
const DELAYED: u8 = 1 << 7;
const DONE: u8 = 1;

const RING: u32 = 256;
const DESCRIPTOR: u64 = 16;
const BUFFER: u64 = 2048;
/// What Linux's driver asks for: 8 and 32 units of 1.024 us.
const DELAYS: (u32, u32) = (8, 32);
const RESET_MS: u64 = 20;

/// A card with both rings set up.
pub struct Card {
    registers: Window,
    /// Receive buffers follow their ring.
    receive: u64,
    transmit: u64,
    buffers: u64,
    mode: Mode,
    /// Next to give, next to see done.
    tail: u32,
    head: u32,
    received: u32,
    /// Writes of the doorbell.
    pub doorbells: u64,
}

fn allocate(len: u64) -> Result<u64, Failure> {
    let addr = Arena.allocate(len as usize, 4096);
    addr.ok_or(Failure::Driver(DriverError::OutOfMemory))
}

impl Card {
    /// Resets the card and gives it its rings.
    pub fn start(
        bus: &Pci,
        function: Function,
        window: &mut MemoryWindow,
        mode: Mode,
        clock: &Clock,
    ) -> Result<Self, Failure> {
        let bar = place_bars(bus, function, window)[0];
        super::enable(bus, function);
        let registers = bus.map(bar.addr, bar.len).filter(|_| bar.len >= 1 << 17);
        let registers = registers.ok_or(Failure::Data("its registers cannot be reached"))?;
        let mut card = Self {
            registers,
            receive: allocate(u64::from(RING) * (DESCRIPTOR + BUFFER))?,
            transmit: allocate(u64::from(RING) * DESCRIPTOR)?,
            buffers: allocate(u64::from(RING) * BUFFER)?,
            mode,
            tail: 0,
            head: 0,
            received: 0,
            doorbells: 0,
        };
        card.reset(clock)?;
        card.rings();
        if mode == Mode::Interrupt {
            interrupts::route(super::interrupt_line(bus, function));
            card.registers.write32(TIDV, DELAYS.0);
            card.registers.write32(TADV, DELAYS.1);
            card.registers.write32(IMS, CAUSE_TXDW);
        }
        Ok(card)
    }

    /// 8254x 4.0 §14.3
    fn reset(&mut self, clock: &Clock) -> Result<(), Failure> {
        self.registers.write32(IMC, !0);
        self.registers.write32(CTRL, CTRL_RST);
        let limit = clock::now() + clock.cycles_in_ms(RESET_MS);
        while self.registers.read32(CTRL) & CTRL_RST != 0 {
            if clock::now() > limit {
                return Err(Failure::Data("the reset does not end"));
            }
        }
        self.registers.write32(IMC, !0);
        self.registers.read32(ICR);
        self.registers.write32(CTRL, CTRL_SLU | CTRL_ASDE);
        Ok(())
    }

    /// 8254x 4.0 §14.4, §14.5
    fn rings(&mut self) {
        for index in 0..u64::from(RING) {
            let buffer = self.receive + u64::from(RING) * DESCRIPTOR + index * BUFFER;
            Arena.store(self.receive + index * DESCRIPTOR, &buffer.to_le_bytes());
        }
        for (start, ring, tail) in [(RDBAL, self.receive, RING - 1), (TDBAL, self.transmit, 0)] {
            self.registers.write32(start, ring as u32);
            self.registers.write32(start + 4, (ring >> 32) as u32);
            self.registers.write32(start + 8, RING * DESCRIPTOR as u32);
            self.registers.write32(start + 0x10, 0);
            self.registers.write32(start + 0x18, tail);
        }
        self.registers.write32(RCTL, RCTL_ALL);
        self.registers.write32(TIPG, TIPG_USUAL);
        self.registers.write32(TCTL, TCTL_ON);
    }

    /// The address in the first receive address register.
    pub fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.registers.read32(RAL).to_le_bytes();
        let [e, f, ..] = self.registers.read32(RAL + 4).to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// What is sent comes back, at the transceiver, or goes to the wire.
    pub fn set_loopback(&mut self, on: bool) -> Result<(), Failure> {
        let control = if on { PHY_LOOPBACK } else { PHY_NORMAL };
        self.registers.write32(MDIC, MDIC_WRITE_CONTROL | control);
        for _ in 0..1000 {
            if self.registers.read32(MDIC) & MDIC_READY != 0 {
                return Ok(());
            }
        }
        Err(Failure::Data("the transceiver does not answer"))
    }

    /// Puts a frame (at most 1514 bytes) into the ring; the doorbell is for the caller. False if the ring is full.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        let next = (self.tail + 1) % RING;
        if next == self.head {
            return false;
        }
        let slot = u64::from(self.tail);
        let buffer = self.buffers + slot * BUFFER;
        Arena.store(buffer, frame);
        let delayed = if self.mode == Mode::Interrupt { DELAYED } else { 0 };
        let mut descriptor = [0; DESCRIPTOR as usize];
        descriptor[..8].copy_from_slice(&buffer.to_le_bytes());
        descriptor[8..10].copy_from_slice(&(frame.len() as u16).to_le_bytes());
        descriptor[11] = SEND | delayed;
        Arena.store(self.transmit + slot * DESCRIPTOR, &descriptor);
        self.tail = next;
        true
    }

    /// The doorbell. The descriptors are in memory before the register is written: stores are not reordered.
    pub fn notify(&mut self) {
        self.doorbells += 1;
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        self.registers.write32(TDBAL + 0x18, self.tail);
    }

    /// True if the oldest frame has left; its place is free again.
    pub fn reap(&mut self) -> bool {
        if self.head == self.tail || !is_done(self.transmit, self.head) {
            return false;
        }
        self.head = (self.head + 1) % RING;
        true
    }

    /// The next frame that has come; its length.
    pub fn receive(&mut self, frame: &mut [u8]) -> Option<usize> {
        if !is_done(self.receive, self.received) {
            return None;
        }
        let at = self.receive + u64::from(self.received) * DESCRIPTOR;
        let mut len = [0; 2];
        Arena.load(at + 8, &mut len);
        let len = usize::from(u16::from_le_bytes(len)).min(frame.len());
        let buffer = self.receive + u64::from(RING) * DESCRIPTOR + u64::from(self.received) * BUFFER;
        Arena.load(buffer, &mut frame[..len]);
        Arena.store(at + 12, &[0]);
        self.registers.write32(RDBAL + 0x18, self.received);
        self.received = (self.received + 1) % RING;
        Some(len)
    }

    /// Takes the interrupt's causes away, which lowers its line.
    pub fn acknowledge(&mut self) {
        self.registers.read32(ICR);
    }

    /// Nothing goes in or out any more.
    pub fn stop(&mut self) {
        self.registers.write32(IMC, !0);
        self.registers.write32(RCTL, 0);
        self.registers.write32(TCTL, 0);
        self.registers.write32(CTRL, CTRL_RST);
        self.registers.read32(ICR);
    }
}

fn is_done(ring: u64, index: u32) -> bool {
    let mut status = [0];
    Arena.load(ring + u64::from(index) * DESCRIPTOR + 12, &mut status);
    status[0] & DONE != 0
}
