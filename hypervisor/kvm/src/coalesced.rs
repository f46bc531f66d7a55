use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use crate::EventAddress;

/// Guest writes that KVM keeps instead of leaving the guest for each of them.
///
/// Ranges are [added](Self::add); what a guest writes there waits in a ring that all vCPUs share, until somebody
/// [drains](Self::drain) it. Whoever is about to handle any other access of the guest drains it first, and so does whoever is
/// about to look at state that such writes change: then nobody sees them later than what the guest did after them.
pub struct Coalesced {
    vm: Arc<VmFd>,
    memory: bool,
    ports: bool,
    ring: OnceLock<Ring>,
    drained: AtomicU64,
}

impl Coalesced {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            memory: vm.check_extension(Cap::CoalescedMmio),
            ports: vm.check_extension(Cap::CoalescedPio),
            vm,
            ring: OnceLock::new(),
            drained: AtomicU64::new(0),
        }
    }

    /// KVM shows the ring with every vCPU; one is enough.
    pub(crate) fn found(&self, vcpu: &VcpuFd) -> io::Result<()> {
        if (self.memory || self.ports) && self.ring.get().is_none() {
            let _somebody_else_was_first = self.ring.set(Ring::map(vcpu)?);
        }
        Ok(())
    }

    /// Keeps writes that lie wholly in these `len` bytes from now on. False if this host's KVM cannot; the writes are exits then.
    pub fn add(&self, address: EventAddress, len: u32) -> io::Result<bool> {
        let able = match address {
            EventAddress::Mmio(_) => self.memory,
            EventAddress::Pio(_) => self.ports,
        };
        if able {
            let added = self.vm.register_coalesced_mmio(address.into(), len);
            added.map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
        }
        Ok(able)
    }

    /// Undoes [`add`](Self::add). What was kept meanwhile stays in the ring. What was never added is ignored.
    pub fn remove(&self, address: EventAddress, len: u32) {
        let _gone_already = self.vm.unregister_coalesced_mmio(address.into(), len);
    }

    /// Calls `apply` for every write that was in the ring when this was called, oldest first. When it returns, all of those
    /// have been applied, by this thread or by another. To be called with no lock held that `apply` takes.
    pub fn drain(&self, mut apply: impl FnMut(EventAddress, &[u8])) {
        if let Some(ring) = self.ring.get() {
            let count = ring.drain(&mut apply);
            if count > 0 {
                self.drained.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// How many writes came this way.
    pub fn drained(&self) -> u64 {
        self.drained.load(Ordering::Relaxed)
    }
}

const PAGE: usize = 4096;
/// Entries of the ring, of which one stays free.
const ENTRIES: u32 = ((PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

/// The page that KVM writes entries to, and whose `first` is ours.
struct Ring {
    page: NonNull<kvm_coalesced_mmio_ring>,
    /// Held while entries are applied.
    draining: Mutex<()>,
}

// SAFETY: the mapping is ours until `drop`; its two indices are only reached as atomics, its entries only under the lock.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    fn map(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new mapping of KVM's page, at an address that the kernel chooses, checked below.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                (KVM_COALESCED_MMIO_PAGE_OFFSET as usize * PAGE) as libc::off_t,
            )
        };
        match NonNull::new(page).filter(|page| page.as_ptr() != libc::MAP_FAILED) {
            Some(page) => Ok(Self {
                page: page.cast(),
                draining: Mutex::default(),
            }),
            None => Err(io::Error::last_os_error()),
        }
    }

    fn first(&self) -> &AtomicU32 {
        // SAFETY: aligned and mapped as long as `self`; KVM and we reach it as a whole.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.page.as_ptr()).first) }
    }

    fn last(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.page.as_ptr()).last) }
    }

    fn entry(&self, index: u32) -> kvm_coalesced_mmio {
        // SAFETY: `index` is below ENTRIES, so the entry lies in the page. KVM has finished writing it, because `last` is
        // past it, and does not write it again before `first` is. The guest cannot reach the page.
        unsafe {
            let entries = (&raw const (*self.page.as_ptr()).coalesced_mmio).cast::<kvm_coalesced_mmio>();
            entries.add(index as usize).read()
        }
    }

    fn drain(&self, apply: &mut impl FnMut(EventAddress, &[u8])) -> u64 {
        let end = self.last().load(Ordering::Acquire) % ENTRIES;
        // `first` moves after an entry was applied: where it is at the end, there is nobody to wait for.
        if self.first().load(Ordering::Acquire) == end {
            return 0;
        }
        let _order = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        // Others may have got further than `end` meanwhile: go to where KVM is now, which is at most one round away.
        let end = self.last().load(Ordering::Acquire) % ENTRIES;
        let mut at = self.first().load(Ordering::Relaxed) % ENTRIES;
        let mut count = 0;
        while at != end {
            let entry = self.entry(at);
            // SAFETY: both fields of the union are the same word.
            let is_port = unsafe { entry.__bindgen_anon_1.pio } != 0;
            let address = match is_port {
                true => EventAddress::Pio(entry.phys_addr as u16),
                false => EventAddress::Mmio(entry.phys_addr),
            };
            let len = (entry.len as usize).min(entry.data.len());
            apply(address, &entry.data[..len]);
            at = (at + 1) % ENTRIES;
            self.first().store(at, Ordering::Release);
            count += 1;
        }
        count
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`; nobody has a reference into it any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE) };
    }
}
