use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::{Access, BusDevice};

/// Who answers for a range of addresses, from any thread. A `Mutex<impl BusDevice>` is one: its lock is held for the
/// access and for nothing longer. A dispatcher (the PCI root) is another, and locks only the device that it finds.
pub trait BusTarget: Send + Sync {
    /// As [`BusDevice::read`].
    fn read(&self, offset: u64, data: &mut [u8]) -> Access;
    /// As [`BusDevice::write`].
    fn write(&self, offset: u64, data: &[u8]) -> Access;
}

impl<T: BusDevice + ?Sized> BusTarget for Mutex<T> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, data)
    }
}

/// A range could not be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range is empty.
    #[error("bus range {0:#x?} is empty")]
    Empty(Range<u64>),
    /// Somebody answers there already.
    #[error("bus range {new:#x?} overlaps {old:#x?}")]
    Overlap {
        /// Asked for.
        new: Range<u64>,
        /// Registered before.
        old: Range<u64>,
    },
}

/// One address space (memory-mapped or port): which target answers where.
///
/// Built by one thread, then shared by the vCPUs behind an `Arc`; looking up takes no lock.
pub struct Bus {
    /// Sorted by start, not overlapping.
    entries: Vec<(Range<u64>, Arc<dyn BusTarget>)>,
    wait_limit: Duration,
}

impl Bus {
    /// An empty address space. An access that is finished [`Later`](Access::Later) is waited for no longer than
    /// `wait_limit`: a host that does not answer must not hold a vCPU for ever.
    pub fn new(wait_limit: Duration) -> Self {
        Self {
            entries: Vec::new(),
            wait_limit,
        }
    }

    /// Gives `range` to `target`.
    pub fn register(&mut self, range: Range<u64>, target: Arc<dyn BusTarget>) -> Result<(), BusError> {
        if range.is_empty() {
            return Err(BusError::Empty(range));
        }
        let at = self.entries.partition_point(|(old, _)| old.start < range.start);
        let before = at.checked_sub(1).and_then(|before| self.entries.get(before));
        let neighbours = before.into_iter().chain(self.entries.get(at));
        for (old, _) in neighbours {
            if old.start < range.end && range.start < old.end {
                return Err(BusError::Overlap {
                    new: range,
                    old: old.clone(),
                });
            }
        }
        self.entries.insert(at, (range, target));
        Ok(())
    }

    /// The target of the whole access `[address, address + len)` and the offset in its range.
    pub fn lookup(&self, address: u64, len: usize) -> Option<(&Arc<dyn BusTarget>, u64)> {
        let at = self.entries.partition_point(|(range, _)| range.start <= address);
        let (range, target) = self.entries.get(at.checked_sub(1)?)?;
        let end = address.checked_add(len as u64)?;
        (address < range.end && end <= range.end).then(|| (target, address - range.start))
    }

    /// A guest read. Waits, with no lock held, where the device asks for it, then repeats the read once. All ones if
    /// nobody answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let Some((target, offset)) = self.lookup(address, data.len()) else {
            return data.fill(0xff);
        };
        data.fill(0);
        let mut access = target.read(offset, data);
        if let Access::Later(ticket) = access {
            ticket.wait(self.wait_limit);
            data.fill(0);
            access = target.read(offset, data);
        }
        if !matches!(access, Access::Done) {
            data.fill(0xff);
        }
    }

    /// A guest write: returns when it is complete. Dropped if nobody answers.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((target, offset)) = self.lookup(address, data.len())
            && let Access::Later(ticket) = target.write(offset, data)
        {
            ticket.wait(self.wait_limit);
        }
    }

    /// A guest write that nobody waits for: it may not be complete when this returns.
    pub fn post(&self, address: u64, data: &[u8]) {
        if let Some((target, offset)) = self.lookup(address, data.len()) {
            let _may_end_later = target.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ticket;

    struct Echo(u8);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) -> Access {
            data.fill(self.0.wrapping_add(offset as u8));
            Access::Done
        }
        fn write(&mut self, _offset: u64, data: &[u8]) -> Access {
            self.0 = data[0];
            Access::Done
        }
    }

    fn bus_of(ranges: &[Range<u64>]) -> Bus {
        let mut bus = Bus::new(Duration::from_secs(10));
        for (index, range) in ranges.iter().enumerate() {
            bus.register(range.clone(), Arc::new(Mutex::new(Echo(index as u8 * 0x10))))
                .unwrap();
        }
        bus
    }

    #[test]
    fn an_access_reaches_the_range_that_holds_all_of_it() {
        let bus = bus_of(&[0x2000..0x3000, 0x1000..0x1800]);
        let read = |address, len| {
            let mut data = vec![0; len];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(0x2003, 1), [0x03]);
        assert_eq!(read(0x1004, 2), [0x14, 0x14]);
        assert_eq!(read(0xfff, 1), [0xff], "below");
        assert_eq!(read(0x1800, 1), [0xff], "between");
        assert_eq!(read(0x17fe, 4), [0xff; 4], "across the end");
        assert_eq!(read(u64::MAX, 8), [0xff; 8], "wraps around");
        bus.write(0x2000, &[0x40]);
        assert_eq!(read(0x2000, 1), [0x40]);
        bus.write(0x1800, &[0x41]);
    }

    #[test]
    fn overlapping_and_empty_ranges_are_refused() {
        let mut bus = bus_of(&[0x1000..0x2000, 0x3000..0x4000]);
        let target = || Arc::new(Mutex::new(Echo(0)));
        for bad in [0x1fff..0x2001, 0x0..0x5000, 0x1000..0x1001, 0x2fff..0x3001] {
            assert!(matches!(
                bus.register(bad, target()),
                Err(BusError::Overlap { .. })
            ));
        }
        assert_eq!(
            bus.register(0x10..0x10, target()),
            Err(BusError::Empty(0x10..0x10))
        );
        bus.register(0x2000..0x3000, target()).unwrap();
    }

    /// Answers when the ticket of its first access is finished, which takes its lock.
    struct Slow {
        holder: Option<crate::TicketHolder>,
        ticket: Ticket,
        accesses: u32,
    }

    impl BusDevice for Slow {
        fn read(&mut self, _offset: u64, data: &mut [u8]) -> Access {
            self.accesses += 1;
            if self.holder.is_some() {
                return Access::Later(self.ticket.clone());
            }
            data.fill(7);
            Access::Done
        }
        fn write(&mut self, _offset: u64, _data: &[u8]) -> Access {
            Access::Done
        }
    }

    #[test]
    fn a_later_access_is_waited_for_without_the_device_lock() {
        let (ticket, holder) = Ticket::new();
        let slow = Arc::new(Mutex::new(Slow {
            holder: Some(holder),
            ticket,
            accesses: 0,
        }));
        let mut bus = Bus::new(Duration::from_secs(60));
        bus.register(0..8, slow.clone()).unwrap();
        let finisher = {
            let slow = slow.clone();
            std::thread::spawn(move || {
                loop {
                    let mut slow = slow.lock().unwrap();
                    if slow.accesses == 1 {
                        slow.holder = None;
                        return;
                    }
                    drop(slow);
                    std::thread::yield_now();
                }
            })
        };
        let mut data = [0; 4];
        bus.read(0, &mut data);
        finisher.join().unwrap();
        assert_eq!(data, [7; 4]);
        assert_eq!(slow.lock().unwrap().accesses, 2, "repeated once");
    }
}
