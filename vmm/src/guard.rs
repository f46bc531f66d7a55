//! A device model that panics fails alone: from then on nobody answers at its registers, and the guest goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use treaty_bus::{Access, BusDevice, BusTarget};
use treaty_pci::{BAR_COUNT, BarRange, BarSpace, PciDevice};
use treaty_telemetry::{AccessClass, AccessCounters, Clock, Space, Ticks};

use crate::posted;

/// A device that is not asked again once it has panicked.
pub(crate) struct Guarded<T> {
    name: String,
    device: T,
    failed: bool,
    /// What its registers are for, by BAR and offset.
    class: fn(u8, u64) -> AccessClass,
    accesses: Arc<AccessCounters>,
}

impl<T> Guarded<T> {
    pub(crate) fn new(name: impl Into<String>, device: T) -> Self {
        Self {
            name: name.into(),
            device,
            failed: false,
            class: |_, _| AccessClass::Emulated,
            accesses: Arc::default(),
        }
    }

    /// Its registers are for this, by BAR and offset.
    pub(crate) fn with_class(self, class: fn(u8, u64) -> AccessClass) -> Self {
        Self { class, ..self }
    }

    /// Counts accesses there.
    pub(crate) fn counted_in(self, accesses: Arc<AccessCounters>) -> Self {
        Self { accesses, ..self }
    }

    /// What its registers are accessed for.
    pub(crate) fn accesses(&self) -> Arc<AccessCounters> {
        self.accesses.clone()
    }

    /// The device itself, past the guard.
    pub(crate) fn device(&self) -> &T {
        &self.device
    }

    /// The same, to change it.
    pub(crate) fn device_mut(&mut self) -> &mut T {
        &mut self.device
    }

    fn call<R>(&mut self, at: At, failed: R, access: impl FnOnce(&mut T) -> R) -> R {
        let accesses = self.accesses.clone();
        counted(&accesses, at, || self.guard(failed, access))
    }

    fn guard<R>(&mut self, failed: R, access: impl FnOnce(&mut T) -> R) -> R {
        if self.failed {
            return failed;
        }
        // A half-changed device is not looked at again, so nothing broken is observed.
        catch_unwind(AssertUnwindSafe(|| access(&mut self.device))).unwrap_or_else(|_| {
            self.failed = true;
            tracing::error!(device = %self.name, "the device model panicked: nobody answers at its registers any more");
            failed
        })
    }
}

/// What an access is for, and how it came.
pub(crate) type At = (AccessClass, Space);

const CONFIG: At = (AccessClass::PciConfig, Space::Config);

impl<T: BusDevice> Guarded<T> {
    fn at(&self, offset: u64) -> At {
        ((self.class)(0, offset), Space::Mmio)
    }
}

impl<T: PciDevice> Guarded<T> {
    fn at_bar(&self, bar: u8, offset: u64) -> At {
        let bars = self.device.bars();
        let range = bars.get(usize::from(bar)).copied().flatten();
        let space = match range.map(|range| range.space) {
            Some(BarSpace::Io) => Space::Pio,
            _ => Space::Mmio,
        };
        ((self.class)(bar, offset), space)
    }
}

impl<T: BusDevice> BusDevice for Guarded<T> {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Access {
        self.call(self.at(offset), Access::Fault, |device| device.read(offset, data))
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Access {
        self.call(self.at(offset), Access::Fault, |device| {
            device.write(offset, data)
        })
    }
}

impl<T: PciDevice> PciDevice for Guarded<T> {
    fn bars(&self) -> [Option<BarRange>; BAR_COUNT] {
        if self.failed {
            [None; BAR_COUNT]
        } else {
            self.device.bars()
        }
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) -> Access {
        self.call(CONFIG, Access::Fault, |device| device.read_config(offset, data))
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
        self.call(CONFIG, Access::Fault, |device| device.write_config(offset, data))
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) -> Access {
        let at = self.at_bar(bar, offset);
        self.call(at, Access::Fault, |device| device.read_bar(bar, offset, data))
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Access {
        let at = self.at_bar(bar, offset);
        self.call(at, Access::Fault, |device| device.write_bar(bar, offset, data))
    }
}

/// Ports of emulated hardware outside its BARs; accesses are counted with the rest of the device.
pub(crate) struct Counted {
    target: Arc<dyn BusTarget>,
    accesses: Arc<AccessCounters>,
}

impl Counted {
    pub(crate) fn new(target: Arc<dyn BusTarget>, accesses: Arc<AccessCounters>) -> Self {
        Self { target, accesses }
    }

    fn count(&self, access: impl FnOnce(&dyn BusTarget) -> Access) -> Access {
        let at = (AccessClass::Emulated, Space::Pio);
        counted(&self.accesses, at, || access(&*self.target))
    }
}

/// Counts an access, and the time it takes, unless it is a write that KVM has kept: that was no exit.
pub(crate) fn counted<R>(accesses: &AccessCounters, (class, space): At, access: impl FnOnce() -> R) -> R {
    if posted::is_bringing() {
        return access();
    }
    let started = Ticks::now();
    let result = access();
    accesses.count(class, space, Clock::new().ns(Ticks::now().since(started)));
    result
}

impl BusTarget for Counted {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        self.count(|target| target.read(offset, data))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        self.count(|target| target.write(offset, data))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use treaty_bus::Bus;

    use super::*;

    struct Faulty;

    impl BusDevice for Faulty {
        fn read(&mut self, _offset: u64, data: &mut [u8]) -> Access {
            data.fill(1);
            Access::Done
        }

        fn write(&mut self, _offset: u64, _data: &[u8]) -> Access {
            panic!("a bug in a device model");
        }
    }

    /// Hardening row 29: a panic in a device model ends that device, not the VM.
    #[test]
    fn hardening_29_a_panicking_device_fails_alone() {
        let mut bus = Bus::new(Duration::from_secs(1));
        for start in [0x100, 0x200] {
            let device = Arc::new(Mutex::new(Guarded::new("faulty", Faulty)));
            bus.register(start..start + 8, device).unwrap();
        }
        let read = |address| {
            let mut byte = [0];
            bus.read(address, &mut byte);
            byte[0]
        };
        assert_eq!(read(0x100), 1);
        bus.write(0x100, &[0]);
        assert_eq!((read(0x100), read(0x200)), (0xff, 1));
        bus.write(0x100, &[0]);
    }
}
