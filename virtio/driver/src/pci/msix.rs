use super::capability::Msix;
use super::config::{Function, PciBus};
use crate::{DriverError, Registers};

/// Bytes of one table entry: address (64 bits), data, vector control.
const ENTRY: usize = 16;
const MESSAGE_ENABLE: u32 = 1 << 31;
const FUNCTION_MASK: u32 = 1 << 30;

/// Writes `vectors` to the first entries of the table, as many as there are, and turns MSI-X on. Says how many vectors
/// were set up. PCI Local Bus 3.0 §6.8.2
pub(crate) fn enable<B: PciBus>(
    bus: &B,
    function: Function,
    msix: &Msix,
    table: &B::Registers,
    vectors: &[(u64, u32)],
) -> Result<u16, DriverError> {
    let entries = msix.entries.min(u16::try_from(vectors.len()).unwrap_or(u16::MAX));
    if table.len() < usize::from(entries) * ENTRY {
        return Err(DriverError::NotVirtio("MSI-X table too short"));
    }
    let at = u16::from(msix.capability);
    let control = bus.read(function, at);
    bus.write(function, at, control | MESSAGE_ENABLE | FUNCTION_MASK);
    for (index, (address, data)) in vectors.iter().take(usize::from(entries)).enumerate() {
        table.write64(index * ENTRY, *address);
        table.write32(index * ENTRY + 8, *data);
        table.write32(index * ENTRY + 12, 0);
    }
    bus.write(function, at, (control | MESSAGE_ENABLE) & !FUNCTION_MASK);
    Ok(entries)
}
