use std::os::fd::RawFd;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::irq::Routes;
use crate::{Coalesced, EdgeLine, KvmError, LevelLine, Vcpu, cpuid, registers};

/// Three pages for Intel hosts without unrestricted guests, and the page before them; inside the hole below 4 GiB.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// Where an eventfd listens for guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventAddress {
    /// Guest physical address.
    Mmio(u64),
    /// Port.
    Pio(u16),
}

/// A virtual machine.
pub struct Vm {
    fd: Arc<VmFd>,
    supported: CpuId,
    vcpus: u8,
    deadline_timer: bool,
    routes: Arc<Routes>,
    coalesced: Arc<Coalesced>,
}

impl Vm {
    pub(crate) fn new(
        fd: Arc<VmFd>,
        supported: CpuId,
        vcpus: u8,
        deadline_timer: bool,
    ) -> Result<Self, KvmError> {
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(KvmError::call("place the identity map"))?;
        fd.set_tss_address(TSS_ADDRESS)
            .map_err(KvmError::call("place the TSS"))?;
        fd.create_irq_chip()
            .map_err(KvmError::call("create the interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(pit)
            .map_err(KvmError::call("create the interval timer"))?;
        let routes = Arc::new(Routes::new(fd.clone())?);
        let coalesced = Arc::new(Coalesced::new(fd.clone()));
        Ok(Self {
            fd,
            supported,
            vcpus,
            deadline_timer,
            routes,
            coalesced,
        })
    }

    /// Makes `len` bytes at `host_address` the guest's memory at `guest_address`.
    ///
    /// # Safety
    /// The host range is a mapping of ours that stays in place until this VM and all its vCPUs are gone, and no Rust
    /// reference to it exists meanwhile. The guest can then write anything there, at any time.
    pub unsafe fn map_memory(
        &self,
        slot: u32,
        guest_address: u64,
        len: u64,
        host_address: u64,
    ) -> Result<(), KvmError> {
        // SAFETY: passed on to our caller.
        unsafe { self.map(slot, 0, guest_address, len, host_address) }
    }

    /// The same, but guest writes do not reach it: they come back as [`Exit::MmioWrite`](crate::Exit::MmioWrite).
    ///
    /// # Safety
    /// As for [`map_memory`](Self::map_memory).
    pub unsafe fn map_rom(
        &self,
        slot: u32,
        guest_address: u64,
        len: u64,
        host_address: u64,
    ) -> Result<(), KvmError> {
        // SAFETY: passed on to our caller.
        unsafe { self.map(slot, KVM_MEM_READONLY, guest_address, len, host_address) }
    }

    /// Takes away what `slot` maps.
    pub fn unmap(&self, slot: u32) -> Result<(), KvmError> {
        // SAFETY: length 0 removes the slot; no host memory is named.
        unsafe { self.map(slot, 0, 0, 0, 0) }
    }

    /// # Safety
    /// As for [`map_memory`](Self::map_memory).
    unsafe fn map(
        &self,
        slot: u32,
        flags: u32,
        guest_address: u64,
        len: u64,
        host_address: u64,
    ) -> Result<(), KvmError> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: guest_address,
            memory_size: len,
            userspace_addr: host_address,
        };
        // SAFETY: passed on to our caller.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(KvmError::call("map guest memory"))
    }

    /// vCPU number `index`, with its CPUID; it waits for INIT unless it is [started](Vcpu::start_at).
    pub fn create_vcpu(&self, index: u8) -> Result<Vcpu, KvmError> {
        let fd = self
            .fd
            .create_vcpu(u64::from(index))
            .map_err(KvmError::call("create a vCPU"))?;
        let cpuid = cpuid::for_guest(&self.supported, index, self.vcpus, self.deadline_timer);
        fd.set_cpuid2(&cpuid)
            .map_err(KvmError::call("set a vCPU's CPUID"))?;
        registers::set_msrs(&fd)?;
        self.coalesced.found(&fd).map_err(|source| KvmError::Call {
            action: "map the ring of coalesced writes",
            source,
        })?;
        Vcpu::new(fd)
    }

    /// Writes that KVM may keep for a while.
    pub fn coalesced(&self) -> Arc<Coalesced> {
        self.coalesced.clone()
    }

    /// The table that message-signalled interrupts are routed by.
    pub fn routes(&self) -> Arc<Routes> {
        self.routes.clone()
    }

    /// An edge-triggered line to pin `gsi` of the interrupt controllers.
    pub fn edge_line(&self, gsi: u32) -> Result<EdgeLine, KvmError> {
        EdgeLine::new(&self.fd, gsi)
    }

    /// A level-triggered line to pin `gsi` of the interrupt controllers.
    pub fn level_line(&self, gsi: u32) -> LevelLine {
        LevelLine::new(self.fd.clone(), gsi)
    }

    /// Signals `fd` for guest writes of any width at `address` without an exit; with `datamatch`, only for 32-bit writes of that value.
    pub fn add_doorbell(
        &self,
        address: EventAddress,
        datamatch: Option<u32>,
        fd: RawFd,
    ) -> std::io::Result<()> {
        let event = borrow_eventfd(fd)?;
        let result = match datamatch {
            Some(value) => self.fd.register_ioevent(&event, &address.into(), value),
            None => self.fd.register_ioevent(&event, &address.into(), NoDatamatch),
        };
        result.map_err(|errno| std::io::Error::from_raw_os_error(errno.errno()))
    }

    /// Undoes [`add_doorbell`](Self::add_doorbell). What was never added is ignored.
    pub fn remove_doorbell(&self, address: EventAddress, datamatch: Option<u32>, fd: RawFd) {
        let Ok(event) = borrow_eventfd(fd) else { return };
        let _gone_already = match datamatch {
            Some(value) => self.fd.unregister_ioevent(&event, &address.into(), value),
            None => self.fd.unregister_ioevent(&event, &address.into(), NoDatamatch),
        };
    }
}

impl From<EventAddress> for IoEventAddress {
    fn from(address: EventAddress) -> Self {
        match address {
            EventAddress::Mmio(addr) => Self::Mmio(addr),
            EventAddress::Pio(port) => Self::Pio(u64::from(port)),
        }
    }
}

/// A second descriptor for the caller's eventfd, because the ioctl wrappers want to own one for the length of the call.
fn borrow_eventfd(fd: RawFd) -> std::io::Result<EventFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: F_DUPFD_CLOEXEC takes no pointers; a bad `fd` is an error, checked before the result is owned.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: just made, no other owner.
    Ok(unsafe { EventFd::from_raw_fd(copy) })
}
