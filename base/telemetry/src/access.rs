use crate::Counter;

/// What a guest's access to a device's registers was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessClass {
    /// A register of a device that exists as hardware.
    Emulated,
    /// A virtio register: status, features, queues, configuration.
    VirtioRegister,
    /// A virtio doorbell that reached the monitor.
    Doorbell,
    /// The table or the pending bits of MSI-X.
    MsixTable,
    /// PCI configuration space.
    PciConfig,
}

/// Where the register was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// In memory.
    Mmio,
    /// Behind a port.
    Pio,
    /// In PCI configuration space, by either way.
    Config,
}

/// The accesses to one device that left the guest and reached user space. Any thread counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct AccessCounters([ClassCounters; 5]);

#[derive(Debug, Default)]
struct ClassCounters {
    mmio: Counter,
    pio: Counter,
    config: Counter,
    time_ns: Counter,
}

/// What was counted of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accesses {
    /// By memory.
    pub mmio: u64,
    /// By port.
    pub pio: u64,
    /// In PCI configuration space.
    pub config: u64,
    /// Nanoseconds that the device's model took, waiting included.
    pub time_ns: u64,
}

impl Accesses {
    /// However they came.
    pub fn all(&self) -> u64 {
        self.mmio + self.pio + self.config
    }
}

impl AccessCounters {
    fn class(&self, class: AccessClass) -> &ClassCounters {
        let [emulated, register, doorbell, msix, config] = &self.0;
        match class {
            AccessClass::Emulated => emulated,
            AccessClass::VirtioRegister => register,
            AccessClass::Doorbell => doorbell,
            AccessClass::MsixTable => msix,
            AccessClass::PciConfig => config,
        }
    }

    /// Counts one access that took `time_ns`.
    pub fn count(&self, class: AccessClass, space: Space, time_ns: u64) {
        let class = self.class(class);
        match space {
            Space::Mmio => class.mmio.add_shared(1),
            Space::Pio => class.pio.add_shared(1),
            Space::Config => class.config.add_shared(1),
        }
        class.time_ns.add_shared(time_ns);
    }

    /// What was counted of `class` so far.
    pub fn of(&self, class: AccessClass) -> Accesses {
        let class = self.class(class);
        Accesses {
            mmio: class.mmio.get(),
            pio: class.pio.get(),
            config: class.config.get(),
            time_ns: class.time_ns.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_counted_by_class_and_space() {
        let counters = AccessCounters::default();
        counters.count(AccessClass::Doorbell, Space::Mmio, 5);
        counters.count(AccessClass::Doorbell, Space::Pio, 7);
        counters.count(AccessClass::PciConfig, Space::Config, 1);
        let doorbell = counters.of(AccessClass::Doorbell);
        assert_eq!((doorbell.mmio, doorbell.pio, doorbell.time_ns), (1, 1, 12));
        assert_eq!(counters.of(AccessClass::PciConfig).all(), 1);
        assert_eq!(counters.of(AccessClass::Emulated), Accesses::default());
    }
}
