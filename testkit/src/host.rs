//! The host side of the rigs: interrupts that are counted, ioeventfds without KVM.

use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use treaty_bus::Bus;
use treaty_pci::{IntxLine, IoAddress, IoEvents, MsiProvider, MsiVector};
use treaty_virtio_device::InterruptSink;

/// How long a vCPU of a rig waits for a device to drain before the test fails.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// Counts events by key and wakes who waits for one.
#[derive(Default)]
pub struct Hub {
    counts: Mutex<HashMap<u64, u64>>,
    changed: Condvar,
}

impl Hub {
    /// One more of `key`.
    pub fn add(&self, key: u64) {
        *self
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(key)
            .or_default() += 1;
        self.changed.notify_all();
    }

    /// How many there were.
    pub fn count(&self, key: u64) -> u64 {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&key).copied().unwrap_or(0)
    }

    /// Waits until there were more than `seen` and says how many; `None` when `limit` is up.
    pub fn wait_beyond(&self, key: u64, seen: u64, limit: Duration) -> Option<u64> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let few = |counts: &mut HashMap<u64, u64>| counts.get(&key).copied().unwrap_or(0) <= seen;
        let (counts, _) = self
            .changed
            .wait_timeout_while(counts, limit, few)
            .unwrap_or_else(PoisonError::into_inner);
        counts.get(&key).copied().filter(|count| *count > seen)
    }
}

/// An interrupt that adds to a hub.
pub struct HubSink {
    /// Where.
    pub hub: Arc<Hub>,
    /// As what.
    pub key: u64,
}

impl InterruptSink for HubSink {
    fn signal(&self) {
        self.hub.add(self.key);
    }
}

/// A line that adds to a hub each time it is raised.
pub struct HubLine(pub Arc<Hub>);

impl HubLine {
    /// The key that risings are counted under.
    pub const KEY: u64 = u64::MAX;
}

impl IntxLine for HubLine {
    fn set(&self, level: bool) {
        if level {
            self.0.add(Self::KEY);
        }
    }
}

/// Vectors that add to a hub under their message data.
pub struct HubMsi(pub Arc<Hub>);

impl MsiProvider for HubMsi {
    fn vector(&self) -> io::Result<Box<dyn MsiVector>> {
        Ok(Box::new(HubVector {
            hub: self.0.clone(),
            routed: Mutex::new(None),
        }))
    }
}

struct HubVector {
    hub: Arc<Hub>,
    routed: Mutex<Option<u32>>,
}

impl MsiVector for HubVector {
    fn route(&self, _address: u64, data: u32) -> io::Result<()> {
        *self.routed.lock().unwrap_or_else(PoisonError::into_inner) = Some(data);
        Ok(())
    }

    fn mask(&self) -> io::Result<()> {
        *self.routed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    fn signal(&self) {
        let routed = *self.routed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(data) = routed {
            self.hub.add(data.into());
        }
    }
}

/// ioeventfds that the rig's own guest writes are matched against, as KVM would.
pub struct FakeIoEvents {
    refuse: bool,
    places: Mutex<Vec<(IoAddress, Option<u32>, RawFd)>>,
}

impl FakeIoEvents {
    /// With `refuse`, there are none: notifications arrive as register writes.
    pub fn new(refuse: bool) -> Self {
        Self {
            refuse,
            places: Mutex::default(),
        }
    }

    /// Addresses registered now.
    pub fn addresses(&self) -> Vec<IoAddress> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.iter().map(|place| place.0).collect()
    }

    /// Signals what listens for this memory write; false if nothing does.
    #[allow(unsafe_code)]
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let word = <[u8; 4]>::try_from(data).ok().map(u32::from_le_bytes);
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let hit = places
            .iter()
            .find(|(at, value, _)| *at == IoAddress::Mmio(address) && (value.is_none() || *value == word));
        let Some((_, _, fd)) = hit else {
            return false;
        };
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes 8 bytes from a live array. The descriptor is open: its owner unregisters it first.
        unsafe { libc::write(*fd, one.as_ptr().cast(), one.len()) };
        true
    }
}

impl IoEvents for FakeIoEvents {
    fn register(&self, address: IoAddress, datamatch: Option<u32>, fd: RawFd) -> io::Result<()> {
        if self.refuse {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places
            .iter()
            .any(|place| (place.0, place.1) == (address, datamatch))
        {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        places.push((address, datamatch, fd));
        Ok(())
    }

    fn unregister(&self, address: IoAddress, datamatch: Option<u32>, fd: RawFd) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|place| *place != (address, datamatch, fd));
    }
}

/// A vCPU's loads and stores.
pub struct GuestBus {
    /// Everything memory-mapped.
    pub bus: Bus,
    /// Looked at before the bus.
    pub io: Arc<FakeIoEvents>,
}

impl GuestBus {
    /// Loads `data.len()` bytes.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        self.bus.read(address, data);
    }

    /// Stores.
    pub fn write(&self, address: u64, data: &[u8]) {
        if !self.io.write(address, data) {
            self.bus.write(address, data);
        }
    }

    /// Loads a little-endian value of 1, 2 or 4 bytes.
    pub fn load(&self, address: u64, len: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes[..len]);
        u32::from_le_bytes(bytes)
    }

    /// Stores a little-endian value of 1, 2 or 4 bytes.
    pub fn store(&self, address: u64, value: u32, len: usize) {
        self.write(address, &value.to_le_bytes()[..len]);
    }
}
