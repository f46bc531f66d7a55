//! Guest writes that KVM keeps until they matter: which ranges, and bringing them to their devices.

use std::cell::Cell;
use std::sync::{Arc, OnceLock, Weak};

use treaty_bus::{Bus, PostedWrites};
use treaty_kvm::{Coalesced, EventAddress};
use treaty_pci::{BAR_COUNT, BarRange, BarSpace, PostedRange};

thread_local! {
    /// This thread brings writes to their devices.
    static BRINGING: Cell<bool> = const { Cell::new(false) };
}

/// True while this thread brings writes that were no exits.
pub(crate) fn is_bringing() -> bool {
    BRINGING.get()
}

/// The writes that KVM has kept, and the buses that they go to.
pub(crate) struct Posted {
    kept: Arc<Coalesced>,
    /// Ports and memory, once they are complete. Devices have a `Posted`, and the buses have the devices.
    buses: OnceLock<(Weak<Bus>, Weak<Bus>)>,
}

impl Posted {
    pub(crate) fn new(kept: Arc<Coalesced>) -> Self {
        Self {
            kept,
            buses: OnceLock::new(),
        }
    }

    /// The buses are complete. Before that no vCPU has run.
    pub(crate) fn connect(&self, ports: &Arc<Bus>, memory: &Arc<Bus>) {
        let _only_once = self.buses.set((Arc::downgrade(ports), Arc::downgrade(memory)));
    }

    /// How many writes came without an exit of their own.
    pub(crate) fn count(&self) -> u64 {
        self.kept.drained()
    }
}

impl PostedWrites for Posted {
    fn bring(&self) {
        let Some((ports, memory)) = self.buses.get() else {
            return;
        };
        let before = BRINGING.replace(true);
        self.kept.drain(|address, data| {
            let (bus, address) = match address {
                EventAddress::Pio(port) => (ports, u64::from(port)),
                EventAddress::Mmio(address) => (memory, address),
            };
            // A machine that is going away has no guest that could miss them.
            if let Some(bus) = bus.upgrade() {
                bus.post(address, data);
            }
        });
        BRINGING.set(before);
    }
}

/// The ranges of one function whose writes KVM keeps, wherever the guest moves its BARs.
pub(crate) struct PostedRanges {
    kept: Arc<Coalesced>,
    ranges: &'static [PostedRange],
    placed: Vec<(EventAddress, u32)>,
}

impl PostedRanges {
    pub(crate) fn new(kept: Arc<Coalesced>, ranges: &'static [PostedRange]) -> Self {
        Self {
            kept,
            ranges,
            placed: Vec::new(),
        }
    }

    /// Keeps writes to `len` ports from `port` on, which no BAR moves.
    pub(crate) fn add_fixed(&self, port: u16, len: u32) {
        add(&self.kept, EventAddress::Pio(port), len);
    }

    /// Follows the BARs: call it after every write to the function's configuration, before the guest goes on.
    pub(crate) fn follow(&mut self, bars: &[Option<BarRange>; BAR_COUNT]) {
        let wanted: Vec<_> = self
            .ranges
            .iter()
            .filter_map(|range| place(range, bars))
            .collect();
        if wanted == self.placed {
            return;
        }
        for (address, len) in self.placed.drain(..) {
            self.kept.remove(address, len);
        }
        for (address, len) in &wanted {
            add(&self.kept, *address, *len);
        }
        self.placed = wanted;
    }
}

fn place(range: &PostedRange, bars: &[Option<BarRange>; BAR_COUNT]) -> Option<(EventAddress, u32)> {
    let bar = bars.get(usize::from(range.bar)).copied().flatten()?;
    let address = bar.start.checked_add(range.offset)?;
    let address = match bar.space {
        BarSpace::Memory => EventAddress::Mmio(address),
        BarSpace::Io => EventAddress::Pio(u16::try_from(address).ok()?),
    };
    Some((address, range.len))
}

/// A range that cannot be kept costs exits, and nothing else.
fn add(kept: &Coalesced, address: EventAddress, len: u32) {
    if let Err(error) = kept.add(address, len) {
        tracing::warn!(?address, %error, "KVM does not keep writes here");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_where_the_bars_are() {
        let range = PostedRange {
            bar: 1,
            offset: 8,
            len: 4,
        };
        let mut bars = [None; BAR_COUNT];
        assert_eq!(place(&range, &bars), None, "not decoded");
        let bar = |space, start| {
            Some(BarRange {
                space,
                start,
                len: 64,
            })
        };
        bars[1] = bar(BarSpace::Io, 0xc000);
        assert_eq!(place(&range, &bars), Some((EventAddress::Pio(0xc008), 4)));
        bars[1] = bar(BarSpace::Io, 0x1_0000);
        assert_eq!(place(&range, &bars), None, "no such port");
        bars[1] = bar(BarSpace::Memory, 0xe800_0000);
        assert_eq!(place(&range, &bars), Some((EventAddress::Mmio(0xe800_0008), 4)));
    }
}
