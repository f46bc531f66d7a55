//! The drivers of the `virtio-drivers` crate over our rigs: a second opinion on what a driver does.
//!
//! `virtio-drivers` reaches memory through a type without a value ([`PeerHal`]), so the memory is the thread's: a driver is
//! made and used on the thread that called [`PeerTransport::new`], and one at a time.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;
use std::time::Duration;

use treaty_memory::GuestMemory;
use treaty_virtio_device::{Features, Layout, RingConfig, RingFeatures};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::memory::Allocator;
use crate::rig::{Rig, Wait};

thread_local! {
    static DMA: RefCell<Option<Dma>> = const { RefCell::new(None) };
}

struct Dma {
    memory: GuestMemory,
    allocator: Allocator,
    /// Addresses given back, by number of pages.
    free: BTreeMap<usize, Vec<u64>>,
}

impl Dma {
    fn with<R>(use_it: impl FnOnce(&mut Self) -> R) -> R {
        DMA.with_borrow_mut(|dma| {
            use_it(
                dma.as_mut()
                    .expect("PeerTransport::new was called on this thread"),
            )
        })
    }

    fn take(&mut self, pages: usize) -> u64 {
        let reused = self.free.get_mut(&pages).and_then(Vec::pop);
        reused.unwrap_or_else(|| self.allocator.take(pages * PAGE_SIZE, PAGE_SIZE as u64))
    }

    fn give_back(&mut self, addr: u64, pages: usize) {
        self.free.entry(pages).or_default().push(addr);
    }
}

/// DMA memory inside the thread's guest memory. Shared buffers are copied there and back.
pub struct PeerHal;

// SAFETY: pages come from a mapped region that the thread's `GuestMemory` keeps; each is handed out once until it is given back,
// page aligned and zeroed.
unsafe impl Hal for PeerHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        Dma::with(|dma| {
            let addr = dma.take(pages);
            let len = pages * PAGE_SIZE;
            dma.memory.write(addr, &vec![0; len]).expect("allocated");
            let range = dma.memory.range(addr, len).expect("allocated");
            (addr, range.ptr)
        })
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        Dma::with(|dma| dma.give_back(paddr, pages));
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("registers are reached through a rig")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        Dma::with(|dma| {
            let addr = dma.take(buffer.len().div_ceil(PAGE_SIZE));
            // SAFETY: the caller gives a valid buffer that nobody else touches during this call.
            let bytes = unsafe { buffer.as_ref() };
            dma.memory.write(addr, bytes).expect("allocated");
            addr
        })
    }

    unsafe fn unshare(paddr: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        Dma::with(|dma| {
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: the caller gives a valid buffer that nobody else touches during this call.
                let bytes = unsafe { buffer.as_mut() };
                dma.memory.read(paddr, bytes).expect("allocated");
            }
            dma.give_back(paddr, buffer.len().div_ceil(PAGE_SIZE));
        });
    }
}

/// A rig as a transport of `virtio-drivers`. Dropping it resets the device.
pub struct PeerTransport {
    rig: RefCell<Box<dyn Rig>>,
    accepted: Cell<Features>,
    live: BTreeSet<u16>,
}

impl PeerTransport {
    /// Over a rig that was built with `memory`, which becomes the thread's DMA memory.
    pub fn new(rig: Box<dyn Rig>, memory: GuestMemory) -> Self {
        DMA.set(Some(Dma {
            memory,
            allocator: Allocator::new(),
            free: BTreeMap::new(),
        }));
        Self {
            rig: RefCell::new(rig),
            accepted: Cell::new(Features::NONE),
            live: BTreeSet::new(),
        }
    }

    /// Takes an interrupt of queue `index`, waiting up to `limit`.
    pub fn wait_interrupt(&self, index: u16, limit: Duration) -> bool {
        self.rig.borrow_mut().wait_interrupt(Wait::Queue(index), limit)
    }
}

impl Drop for PeerTransport {
    fn drop(&mut self) {
        self.rig.get_mut().write_status(0);
    }
}

impl Transport for PeerTransport {
    fn device_type(&self) -> DeviceType {
        let id = self.rig.borrow_mut().device_id();
        DeviceType::try_from(id).expect("a type that virtio-drivers knows")
    }

    fn read_device_features(&mut self) -> u64 {
        self.rig.get_mut().offered().0
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.accepted.set(Features(driver_features));
        self.rig.get_mut().write_features(Features(driver_features));
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.rig.get_mut().queue_max_size(queue).into()
    }

    fn notify(&mut self, queue: u16) {
        self.rig.get_mut().notify(queue, None);
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.rig.borrow_mut().status().into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.rig.get_mut().write_status(status.bits() as u8);
        if status.is_empty() {
            self.live.clear();
        }
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {
        // Legacy devices only.
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let config = RingConfig {
            layout: Layout::Split,
            size: size as u16,
            descriptor_area: descriptors,
            driver_area,
            device_area,
            features: RingFeatures {
                indirect: self
                    .accepted
                    .get()
                    .has(treaty_virtio_spec::feature::INDIRECT_DESC),
                event_idx: self.accepted.get().has(treaty_virtio_spec::feature::EVENT_IDX),
                in_order: false,
            },
            max_chain: size as u16,
        };
        self.rig.get_mut().enable_queue(queue, &config);
        self.live.insert(queue);
    }

    fn queue_unset(&mut self, _queue: u16) {
        // RING_RESET is not negotiated by these drivers; the reset on drop stops all queues.
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.live.contains(&queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let rig = self.rig.get_mut();
        let mut status = InterruptStatus::empty();
        for queue in &self.live {
            if rig.wait_interrupt(Wait::Queue(*queue), Duration::ZERO) {
                status |= InterruptStatus::QUEUE_INTERRUPT;
            }
        }
        if rig.wait_interrupt(Wait::Config, Duration::ZERO) {
            status |= InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT;
        }
        status
    }

    fn read_config_generation(&self) -> u32 {
        // The devices under these tests do not change their configuration while it is being read.
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        self.rig
            .borrow_mut()
            .read_config(offset as u32, value.as_mut_bytes());
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        self.rig.get_mut().write_config(offset as u32, value.as_bytes());
        Ok(())
    }
}
