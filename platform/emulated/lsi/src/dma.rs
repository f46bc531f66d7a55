//! What scripts can reach: guest RAM, and the RAM on the chip.

use treaty_buffers::IoBuffers;
use treaty_memory::GuestMemory;

/// Bytes of RAM on the chip.
pub(crate) const RAM_BYTES: usize = 8192;

/// The chip's side of the PCI bus.
pub(crate) struct Dma {
    memory: GuestMemory,
    ram: Box<[u8; RAM_BYTES]>,
    /// Where the guest has put that RAM.
    pub(crate) ram_at: Option<u64>,
    /// The guest lets the function reach memory.
    pub(crate) may_master: bool,
}

/// The address is neither RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault;

impl Dma {
    pub(crate) fn new(memory: GuestMemory) -> Self {
        Self {
            memory,
            ram: Box::new([0; RAM_BYTES]),
            ram_at: None,
            may_master: false,
        }
    }

    /// The chip's RAM at `offset`; shorter if it ends before.
    pub(crate) fn ram(&mut self, offset: u64, len: usize) -> &mut [u8] {
        let start = usize::try_from(offset).unwrap_or(RAM_BYTES).min(RAM_BYTES);
        let end = start.saturating_add(len).min(RAM_BYTES);
        self.ram.get_mut(start..end).unwrap_or_default()
    }

    /// The chip's RAM, if all of the range lies there.
    fn on_chip(&mut self, address: u64, len: usize) -> Option<&mut [u8]> {
        let offset = address.checked_sub(self.ram_at?)?;
        let found = self.ram(offset, len);
        (found.len() == len).then_some(found)
    }

    pub(crate) fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), Fault> {
        if let Some(ram) = self.on_chip(address, data.len()) {
            data.copy_from_slice(ram);
            return Ok(());
        }
        self.reach()?.read(address, data).map_err(|_| Fault)
    }

    pub(crate) fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        if let Some(ram) = self.on_chip(address, data.len()) {
            ram.copy_from_slice(data);
            return Ok(());
        }
        self.reach()?.write(address, data).map_err(|_| Fault)
    }

    pub(crate) fn read_u32(&mut self, address: u64) -> Result<u32, Fault> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// From a target's buffer to memory.
    pub(crate) fn fill(&mut self, address: u64, from: &IoBuffers) -> Result<(), Fault> {
        if let Some(ram) = self.on_chip(address, from.len()) {
            from.copy_to(ram);
            return Ok(());
        }
        let mut to = IoBuffers::new();
        let memory = self.reach()?;
        memory
            .push_buffers(address, from.len(), &mut to)
            .map_err(|_| Fault)?;
        from.copy_to_buffers(&mut to);
        Ok(())
    }

    /// From memory to a target's buffer.
    pub(crate) fn drain(&mut self, address: u64, to: &mut IoBuffers) -> Result<(), Fault> {
        if let Some(ram) = self.on_chip(address, to.len()) {
            to.copy_from(ram);
            return Ok(());
        }
        let mut from = IoBuffers::new();
        let memory = self.reach()?;
        memory
            .push_buffers(address, to.len(), &mut from)
            .map_err(|_| Fault)?;
        from.copy_to_buffers(to);
        Ok(())
    }

    fn reach(&self) -> Result<&GuestMemory, Fault> {
        if self.may_master {
            Ok(&self.memory)
        } else {
            Err(Fault)
        }
    }
}
