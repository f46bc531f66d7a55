use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use treaty_bus::{Access, BusTarget};

use crate::{BAR_COUNT, BarRange, BarSpace, ConfigSpace, Identity, PciDevice};

/// Device numbers on bus 0.
pub const SLOT_COUNT: usize = 32;

/// Functions of one device.
const FUNCTION_COUNT: usize = 8;

/// Bytes of enhanced configuration space (ECAM) of the one bus there is.
pub const ECAM_LEN: u64 = 1 << 20;

/// First of the eight configuration ports 0xCF8 to 0xCFF.
pub const CONFIG_PORTS: u64 = 0xcf8;

type Function = Arc<Mutex<dyn PciDevice>>;

/// The slot is taken, or does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("PCI slot {0} is taken or out of range (0 is the host bridge, 31 the last)")]
pub struct SlotError(pub u8);

/// Bus 0: a host bridge in slot 0 and devices in the others, most of them with one function.
///
/// vCPUs reach it through these bus targets: [`ecam`](Self::ecam), [`ports`](Self::ports) and, for the ranges in which BARs lie,
/// [`window`](Self::window) and [`port_window`](Self::port_window). Each access locks one function only.
pub struct PciRoot {
    /// By device and function number.
    slots: RwLock<[Option<Function>; SLOT_COUNT * FUNCTION_COUNT]>,
    /// What is decoded now, sorted by start. Never locked while a function's lock is being waited for.
    decoded: RwLock<Vec<Decoded>>,
    /// The register at 0xCF8.
    address: AtomicU32,
}

struct Decoded {
    range: BarRange,
    slot: usize,
    bar: u8,
    function: Function,
}

impl Decoded {
    /// Memory before ports, then by address.
    fn key(&self) -> (bool, u64) {
        (self.range.space == BarSpace::Io, self.range.start)
    }
}

impl PciRoot {
    /// A bus with nothing but a host bridge that leads nowhere.
    pub fn new() -> Arc<Self> {
        Self::with_bridge(Arc::new(Mutex::new(host_bridge())))
    }

    /// A bus with nothing but that host bridge, which has no BARs.
    pub fn with_bridge(bridge: Arc<Mutex<dyn PciDevice>>) -> Arc<Self> {
        let mut slots = [const { None }; SLOT_COUNT * FUNCTION_COUNT];
        if let Some(first) = slots.first_mut() {
            *first = Some(bridge);
        }
        Arc::new(Self {
            slots: RwLock::new(slots),
            decoded: RwLock::new(Vec::new()),
            address: AtomicU32::new(0),
        })
    }

    /// Plugs in a device with one function.
    pub fn add(&self, slot: u8, function: Arc<Mutex<dyn PciDevice>>) -> Result<(), SlotError> {
        self.add_function(slot, 0, function)
    }

    /// Plugs in function `number` (0 to 7) of a device. Function 0 of a device with several says so itself:
    /// [`set_multifunction`](crate::ConfigSpace::set_multifunction).
    pub fn add_function(
        &self,
        slot: u8,
        number: u8,
        function: Arc<Mutex<dyn PciDevice>>,
    ) -> Result<(), SlotError> {
        if usize::from(number) >= FUNCTION_COUNT {
            return Err(SlotError(slot));
        }
        let index = usize::from(slot) * FUNCTION_COUNT + usize::from(number);
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        match slots.get_mut(index) {
            Some(free @ None) => {
                let bars = lock(&function).bars();
                self.redecode(index, &function, &bars);
                *free = Some(function);
                Ok(())
            }
            _ => Err(SlotError(slot)),
        }
    }

    /// Looks again where every function decodes its BARs: call it after a reset or restore that went past the bus.
    pub fn refresh(&self) {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner).clone();
        for (slot, function) in slots.iter().enumerate() {
            if let Some(function) = function {
                let device = lock(function);
                let bars = device.bars();
                self.redecode(slot, function, &bars);
            }
        }
    }

    /// The memory-mapped configuration space: [`ECAM_LEN`] bytes.
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn BusTarget> {
        Arc::new(Ecam(self.clone()))
    }

    /// The ports 0xCF8 to 0xCFF.
    pub fn ports(self: &Arc<Self>) -> Arc<dyn BusTarget> {
        Arc::new(Ports(self.clone()))
    }

    /// A range of guest physical addresses in which BARs may lie, starting at `start`.
    pub fn window(self: &Arc<Self>, start: u64) -> Arc<dyn BusTarget> {
        Arc::new(Window {
            root: self.clone(),
            space: BarSpace::Memory,
            start,
        })
    }

    /// A range of ports in which I/O BARs may lie, starting at `start`.
    pub fn port_window(self: &Arc<Self>, start: u64) -> Arc<dyn BusTarget> {
        Arc::new(Window {
            root: self.clone(),
            space: BarSpace::Io,
            start,
        })
    }

    /// The function at `bus << 8 | device << 3 | function`: only bus 0 exists.
    fn function(&self, routing_id: u32) -> Option<(usize, Function)> {
        let slot = routing_id as usize;
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.get(slot)?.clone().map(|function| (slot, function))
    }

    fn read_config(&self, routing_id: u32, register: u16, data: &mut [u8]) -> Access {
        match self.function(routing_id) {
            Some((_, function)) if is_register(register, data.len()) => {
                lock(&function).read_config(register, data)
            }
            _ => Access::Fault,
        }
    }

    fn write_config(&self, routing_id: u32, register: u16, data: &[u8]) -> Access {
        let Some((slot, function)) = self.function(routing_id) else {
            return Access::Fault;
        };
        if !is_register(register, data.len()) {
            return Access::Fault;
        }
        let mut device = lock(&function);
        let before = device.bars();
        let access = device.write_config(register, data);
        let after = device.bars();
        if before != after {
            self.redecode(slot, &function, &after);
        }
        access
    }

    /// Called with the function's lock held, so that two writers cannot leave an older map behind.
    fn redecode(&self, slot: usize, function: &Function, bars: &[Option<BarRange>; BAR_COUNT]) {
        let mut decoded = self.decoded.write().unwrap_or_else(PoisonError::into_inner);
        decoded.retain(|old| old.slot != slot);
        for (bar, range) in (0..).zip(bars) {
            if let Some(range) = *range {
                let function = function.clone();
                decoded.push(Decoded {
                    range,
                    slot,
                    bar,
                    function,
                });
            }
        }
        decoded.sort_by_key(Decoded::key);
    }

    /// Who decodes the whole access. Where a guest has made BARs overlap, the one that starts last wins.
    fn decode(&self, space: BarSpace, address: u64, len: usize) -> Option<(Function, u8, u64)> {
        let decoded = self.decoded.read().unwrap_or_else(PoisonError::into_inner);
        let at = decoded.partition_point(|entry| entry.key() <= (space == BarSpace::Io, address));
        let entry = decoded.get(at.checked_sub(1)?)?;
        if entry.range.space != space {
            return None;
        }
        let offset = address - entry.range.start;
        let end = offset.checked_add(len as u64)?;
        (end <= entry.range.len).then(|| (entry.function.clone(), entry.bar, offset))
    }
}

fn lock(function: &Function) -> MutexGuard<'_, dyn PciDevice + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 1, 2 or 4 bytes, aligned, below 4096.
fn is_register(register: u16, len: usize) -> bool {
    matches!(len, 1 | 2 | 4) && usize::from(register).is_multiple_of(len) && register < 4096
}

struct Ecam(Arc<PciRoot>);

impl BusTarget for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        match split_ecam(offset) {
            Some((routing_id, register)) => self.0.read_config(routing_id, register, data),
            None => Access::Fault,
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        match split_ecam(offset) {
            Some((routing_id, register)) => self.0.write_config(routing_id, register, data),
            None => Access::Fault,
        }
    }
}

fn split_ecam(offset: u64) -> Option<(u32, u16)> {
    let routing_id = u32::try_from(offset >> 12).ok()?;
    Some((routing_id, (offset & 0xfff) as u16))
}

struct Ports(Arc<PciRoot>);

impl Ports {
    /// What the data port at `offset` (4 to 7) stands for, if the address register is enabled.
    fn target(&self, offset: u64, len: usize) -> Option<(u32, u16)> {
        let address = self.0.address.load(Ordering::Relaxed);
        let byte = offset.checked_sub(4)?;
        if address >> 31 == 0 || byte + len as u64 > 4 {
            return None;
        }
        Some((address >> 8 & 0xffff, (address & 0xfc) as u16 | byte as u16))
    }
}

impl BusTarget for Ports {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.0.address.load(Ordering::Relaxed).to_le_bytes());
            return Access::Done;
        }
        match self.target(offset, data.len()) {
            Some((routing_id, register)) => self.0.read_config(routing_id, register, data),
            None => Access::Fault,
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        if let (0, &[a, b, c, d]) = (offset, data) {
            // Bits 24-30 are reserved and the low two are fixed.
            let address = u32::from_le_bytes([a, b, c, d]) & 0x80ff_fffc;
            self.0.address.store(address, Ordering::Relaxed);
            return Access::Done;
        }
        match self.target(offset, data.len()) {
            Some((routing_id, register)) => self.0.write_config(routing_id, register, data),
            None => Access::Fault,
        }
    }
}

struct Window {
    root: Arc<PciRoot>,
    space: BarSpace,
    start: u64,
}

impl Window {
    fn find(&self, offset: u64, len: usize) -> Option<(Function, u8, u64)> {
        self.root.decode(self.space, self.start.wrapping_add(offset), len)
    }
}

impl BusTarget for Window {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        match self.find(offset, data.len()) {
            Some((function, bar, offset)) => lock(&function).read_bar(bar, offset, data),
            None => Access::Fault,
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        match self.find(offset, data.len()) {
            Some((function, bar, offset)) => lock(&function).write_bar(bar, offset, data),
            None => Access::Fault,
        }
    }
}

/// A bridge to nowhere, so that slot 0 holds what every operating system expects there.
fn host_bridge() -> ConfigSpace {
    ConfigSpace::new(&Identity {
        vendor: 0x1b36,
        device: 0x0008,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        class: 0x06_00_00,
        revision: 0,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use treaty_bus::Bus;

    use super::*;

    /// One BAR whose bytes read as their offset.
    struct Plain(ConfigSpace);

    impl Plain {
        fn shared(address: u64) -> Function {
            let identity = Identity {
                vendor: 0x1234,
                device: 0x5678,
                subsystem_vendor: 0,
                subsystem: 0,
                class: 0xff_00_00,
                revision: 0,
            };
            let mut space = ConfigSpace::new(&identity);
            space.add_bar(2, 0x1000, address).unwrap();
            Arc::new(Mutex::new(Self(space)))
        }
    }

    impl PciDevice for Plain {
        fn bars(&self) -> [Option<BarRange>; BAR_COUNT] {
            self.0.bars()
        }
        fn read_config(&mut self, offset: u16, data: &mut [u8]) -> Access {
            self.0.read(offset, data);
            Access::Done
        }
        fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
            self.0.write(offset, data);
            Access::Done
        }
        fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) -> Access {
            data.fill(bar << 4 | offset as u8);
            Access::Done
        }
        fn write_bar(&mut self, _bar: u8, _offset: u64, _data: &[u8]) -> Access {
            Access::Done
        }
    }

    const ECAM: u64 = 0xe000_0000;

    fn machine() -> (Bus, Bus) {
        let root = PciRoot::new();
        root.add(3, Plain::shared(0x10_0000_0000)).unwrap();
        assert_eq!(root.add(3, Plain::shared(0)), Err(SlotError(3)));
        assert_eq!(root.add(0, Plain::shared(0)), Err(SlotError(0)));
        assert_eq!(root.add(32, Plain::shared(0)), Err(SlotError(32)));
        root.add_function(5, 3, Plain::shared(0)).unwrap();
        assert_eq!(root.add_function(5, 3, Plain::shared(0)), Err(SlotError(5)));
        assert_eq!(root.add_function(5, 8, Plain::shared(0)), Err(SlotError(5)));
        let mut memory = Bus::new(Duration::from_secs(10));
        memory.register(ECAM..ECAM + ECAM_LEN, root.ecam()).unwrap();
        let (start, end) = (0x10_0000_0000, 0x20_0000_0000);
        memory.register(start..end, root.window(start)).unwrap();
        let mut ports = Bus::new(Duration::from_secs(10));
        ports
            .register(CONFIG_PORTS..CONFIG_PORTS + 8, root.ports())
            .unwrap();
        (memory, ports)
    }

    fn read(bus: &Bus, address: u64) -> u32 {
        let mut data = [0; 4];
        bus.read(address, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn ecam_and_ports_reach_the_same_registers() {
        let (memory, ports) = machine();
        assert_eq!(read(&memory, ECAM), 0x0008_1b36);
        assert_eq!(read(&memory, ECAM + (3 << 15)), 0x5678_1234);
        assert_eq!(read(&memory, ECAM + (3 << 15) + 0x100), 0, "no extended space");
        assert_eq!(read(&memory, ECAM + (4 << 15)), !0, "empty slot");
        assert_eq!(read(&memory, ECAM + (3 << 15) + (1 << 12)), !0, "function 1");
        assert_eq!(read(&memory, ECAM + (5 << 15) + (3 << 12)), 0x5678_1234);
        ports.write(0xcfb, &[1]);
        assert_eq!(read(&ports, 0xcf8), 0, "only 32-bit writes are addresses");
        ports.write(0xcf8, &(1u32 << 31 | 3 << 11).to_le_bytes());
        assert_eq!(read(&ports, 0xcfc), 0x5678_1234);
        let mut half = [0; 2];
        ports.read(0xcfe, &mut half);
        assert_eq!(u16::from_le_bytes(half), 0x5678);
        ports.read(0xcfd, &mut half);
        assert_eq!(half, [0xff; 2], "unaligned");
        ports.write(0xcf8, &(1u32 << 31 | 1 << 16 | 3 << 11).to_le_bytes());
        assert_eq!(read(&ports, 0xcfc), !0, "bus 1");
        ports.write(0xcf8, &(3u32 << 11).to_le_bytes());
        assert_eq!(read(&ports, 0xcfc), !0, "not enabled");
        let mut wide = [0; 8];
        memory.read(ECAM, &mut wide);
        assert_eq!(wide, [0xff; 8], "too wide");
    }

    #[test]
    fn bars_are_decoded_where_the_guest_puts_them() {
        let (memory, _) = machine();
        let function = ECAM + (3 << 15);
        assert_eq!(read(&memory, 0x10_0000_0004), !0, "memory space is off");
        memory.write(function + 4, &[2, 0]);
        assert_eq!(read(&memory, 0x10_0000_0004), 0x2424_2424);
        assert_eq!(read(&memory, 0x10_0000_0ffe), !0, "across the end");
        memory.write(function + 0x1c, &0x11u32.to_le_bytes());
        assert_eq!(read(&memory, 0x10_0000_0004), !0);
        assert_eq!(read(&memory, 0x11_0000_0008), 0x2828_2828);
    }
}
