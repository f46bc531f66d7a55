use super::config::{Function, PciBus, header, update_command};

/// A memory BAR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bar {
    /// Address; 0 if nobody assigned one.
    pub addr: u64,
    /// Bytes; 0 if there is no memory BAR of that number.
    pub len: u64,
}

/// Addresses for BARs that no firmware has placed.
#[derive(Clone, Copy, Debug)]
pub struct MemoryWindow {
    next: u64,
    end: u64,
}

impl MemoryWindow {
    /// A window of `[start, end)`, below 4 GiB. An empty one if nothing may be placed.
    pub const fn new(start: u64, end: u64) -> Self {
        Self { next: start, end }
    }

    /// Takes `len` bytes (a power of two), aligned to their size.
    fn take(&mut self, len: u64) -> Option<u64> {
        let start = self.next.checked_next_multiple_of(len)?;
        let end = start.checked_add(len).filter(|end| *end <= self.end)?;
        self.next = end;
        Some(start)
    }
}

const MEMORY_64: u32 = 4;
const TYPE_MASK: u32 = 6;
const IO: u32 = 1;

/// Sizes the memory BARs of a function and places those that have no address. I/O BARs are left alone.
/// Memory decoding is off meanwhile and on afterwards.
pub fn place_bars<B: PciBus>(bus: &B, function: Function, window: &mut MemoryWindow) -> [Bar; 6] {
    update_command(bus, function, 0, header::COMMAND_MEMORY);
    let mut bars = [Bar::default(); 6];
    let mut index = 0;
    while index < 6 {
        let at = header::BAR0 + 4 * index;
        let low = bus.read(function, at);
        let wide = low & IO == 0 && low & TYPE_MASK == MEMORY_64 && index < 5;
        if let Some(slot) = bars.get_mut(usize::from(index)).filter(|_| low & IO == 0) {
            *slot = size_bar(bus, function, at, wide, window);
        }
        index += if wide { 2 } else { 1 };
    }
    update_command(bus, function, header::COMMAND_MEMORY, 0);
    bars
}

fn size_bar<B: PciBus>(bus: &B, function: Function, at: u16, wide: bool, window: &mut MemoryWindow) -> Bar {
    let read = || {
        let low = u64::from(bus.read(function, at) & !0xf);
        let high = if wide { bus.read(function, at + 4) } else { 0 };
        u64::from(high) << 32 | low
    };
    let write = |value: u64| {
        bus.write(function, at, value as u32);
        if wide {
            bus.write(function, at + 4, (value >> 32) as u32);
        }
    };
    let addr = read();
    write(u64::MAX);
    let mask = if wide { read() } else { read() | u64::MAX << 32 };
    write(addr);
    let len = (!mask).wrapping_add(1);
    // A device may answer anything: only a power of two of at least 16 bytes is a BAR.
    if mask & !0xf == 0 || mask == u64::MAX << 32 || !len.is_power_of_two() || len < 16 {
        return Bar::default();
    }
    if addr != 0 {
        return Bar { addr, len };
    }
    match window.take(len) {
        Some(addr) => {
            write(addr);
            Bar { addr, len }
        }
        None => Bar { addr: 0, len },
    }
}
