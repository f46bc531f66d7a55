use std::io;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use treaty_net::{BackendError, PacketBackend};
use treaty_virtio_device::{DeviceEvents, Doorbell};
use treaty_virtio_spec::Features;
use treaty_virtio_spec::net::{STATUS_ANNOUNCE, STATUS_LINK_UP};

use crate::filter::Filter;
use crate::offload;
use crate::stage::Stage;

/// What the queues of one card share. Packets touch only atomics; the locks are for commands, starts and stops.
pub(crate) struct Shared {
    backend: Mutex<Box<dyn PacketBackend>>,
    filter: Mutex<Filter>,
    /// Counts changes of the filter: receive queues keep a copy.
    filter_version: AtomicU32,
    status: AtomicU16,
    /// Pairs that carry packets.
    pairs: AtomicU16,
    /// Receive offloads that are on, as feature bits.
    offloads: AtomicU64,
    receivers: Vec<ReceiverSlot>,
}

/// What there is for each receive queue, running or not.
struct ReceiverSlot {
    /// Rung when the queue should look again.
    wake: Doorbell,
    /// Frames that a stopped queue had read and not delivered.
    stage: Mutex<Option<Stage>>,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(backend: Box<dyn PacketBackend>, filter: Filter) -> io::Result<Self> {
        let slot = || {
            Ok(ReceiverSlot {
                wake: Doorbell::new()?,
                stage: Mutex::new(None),
            })
        };
        let pairs = backend.capabilities().max_pairs;
        Ok(Self {
            receivers: (0..pairs).map(|_| slot()).collect::<io::Result<_>>()?,
            backend: Mutex::new(backend),
            filter: Mutex::new(filter),
            filter_version: AtomicU32::new(0),
            status: AtomicU16::new(STATUS_LINK_UP),
            pairs: AtomicU16::new(1),
            offloads: AtomicU64::new(0),
        })
    }

    pub(crate) fn backend(&self) -> MutexGuard<'_, Box<dyn PacketBackend>> {
        lock(&self.backend)
    }

    /// A copy of the filter and its version.
    pub(crate) fn filter(&self) -> (Filter, u32) {
        let filter = lock(&self.filter);
        (filter.clone(), self.filter_version.load(Ordering::Acquire))
    }

    pub(crate) fn filter_version(&self) -> u32 {
        self.filter_version.load(Ordering::Acquire)
    }

    pub(crate) fn change_filter<T>(&self, change: impl FnOnce(&mut Filter) -> T) -> T {
        let mut filter = lock(&self.filter);
        let answer = change(&mut filter);
        self.filter_version.fetch_add(1, Ordering::AcqRel);
        answer
    }

    pub(crate) fn status(&self) -> u16 {
        self.status.load(Ordering::Acquire)
    }

    /// Sets or clears bits of the status field and tells the driver if that changed it.
    pub(crate) fn change_status(&self, bits: u16, on: bool, events: Option<&DeviceEvents>) {
        let before = if on {
            self.status.fetch_or(bits, Ordering::AcqRel)
        } else {
            self.status.fetch_and(!bits, Ordering::AcqRel)
        };
        let changed = (before & bits != 0) != on;
        if let Some(events) = events.filter(|_| changed) {
            events.config_changed();
        }
    }

    pub(crate) fn announcing(&self) -> bool {
        self.status() & STATUS_ANNOUNCE != 0
    }

    pub(crate) fn pairs(&self) -> u16 {
        self.pairs.load(Ordering::Acquire)
    }

    /// The first `count` pairs carry packets from now on.
    pub(crate) fn set_pairs(&self, count: u16) -> Result<(), BackendError> {
        self.backend().set_pairs(count)?;
        self.pairs.store(count, Ordering::Release);
        for slot in &self.receivers {
            slot.wake.ring();
        }
        Ok(())
    }

    /// Receive offloads that are on.
    pub(crate) fn offloads(&self) -> Features {
        Features(self.offloads.load(Ordering::Acquire))
    }

    /// Switches receive offloads: `wanted` are feature bits that were accepted.
    pub(crate) fn set_offloads(&self, wanted: Features) -> Result<(), BackendError> {
        self.backend().set_receive_offloads(offload::receive(wanted))?;
        self.offloads.store(wanted.0, Ordering::Release);
        Ok(())
    }

    pub(crate) fn wake(&self, pair: u16) -> Option<&Doorbell> {
        self.receivers.get(usize::from(pair)).map(|slot| &slot.wake)
    }

    pub(crate) fn take_stage(&self, pair: u16) -> Option<Stage> {
        lock(&self.receivers.get(usize::from(pair))?.stage).take()
    }

    pub(crate) fn keep_stage(&self, pair: u16, stage: Stage) {
        if let Some(slot) = self.receivers.get(usize::from(pair)) {
            *lock(&slot.stage) = Some(stage);
        }
    }

    pub(crate) fn forget_stages(&self) {
        for slot in &self.receivers {
            *lock(&slot.stage) = None;
        }
    }
}
