use std::ptr::NonNull;

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::{Entry, KickGuard, Kicker, KvmError, VcpuStats, registers};

/// Why a vCPU came back from the guest.
#[derive(Debug)]
pub enum Exit<'a> {
    /// Reads from a port, one after the other for string instructions: fill `data` in pieces of `width` bytes.
    PortIn {
        /// Port number.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        width: usize,
        /// To be filled before the next run.
        data: &'a mut [u8],
    },
    /// Writes to a port, in pieces of `width` bytes.
    PortOut {
        /// Port number.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        width: usize,
        /// What was written.
        data: &'a [u8],
    },
    /// Reads memory that is not there.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// To be filled before the next run.
        data: &'a mut [u8],
    },
    /// Writes memory that is not there.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// What was written.
        data: &'a [u8],
    },
    /// Somebody [kicked](Kicker::kick), or a signal came.
    Kicked,
    /// Triple fault, or the guest asked KVM for a reset or shutdown.
    Shutdown(&'static str),
    /// The vCPU cannot go on; the text says what KVM said.
    Broken(String),
}

/// A virtual CPU. Made on one thread, then moved to the one that runs it.
pub struct Vcpu {
    fd: VcpuFd,
    kicker: Kicker,
}

impl Vcpu {
    pub(crate) fn new(mut fd: VcpuFd) -> Result<Self, KvmError> {
        let byte = NonNull::from(&mut fd.get_kvm_run().immediate_exit);
        // SAFETY: the run page stays mapped as long as `fd`, and `Drop` retires the kicker before `fd` goes.
        let kicker = unsafe { Kicker::new(byte) };
        Ok(Self { fd, kicker })
    }

    /// Sets every register for the entry. The boot processor only: the others wait for the guest's INIT and SIPI.
    pub fn start_at(&self, entry: Entry) -> Result<(), KvmError> {
        registers::set(&self.fd, entry)
    }

    /// KVM's counts of it. To be called before it runs; `None` if this host's KVM counts nothing.
    pub fn stats(&self) -> Option<VcpuStats> {
        VcpuStats::open(&self.fd)
    }

    /// For making it leave the guest.
    pub fn kicker(&self) -> Kicker {
        self.kicker.clone()
    }

    /// Call first on the thread that will [`run`](Self::run) it, and keep the guard until it does no more.
    pub fn enter_thread(&self) -> KickGuard {
        self.kicker.enter_thread()
    }

    /// Tells the guest's clock that the vCPU stood still, so that it does not report a lock-up.
    pub fn note_pause(&self) {
        // EINVAL when the guest does not use kvmclock: then there is nothing to tell.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Instruction pointer, stack pointer and control registers, for a message about a crash.
    pub fn describe(&self) -> String {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => format!(
                "rip {:#x} rsp {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
                regs.rip, regs.rsp, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer
            ),
            _ => "registers cannot be read".into(),
        }
    }

    /// Runs the guest until something has to be done for it.
    pub fn run(&mut self) -> Exit<'_> {
        let exit = match self.fd.run() {
            Ok(exit) => Raw::from(exit),
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => Raw::Kicked,
            Err(error) => Raw::Broken(format!("KVM_RUN: {error}")),
        };
        let run = self.fd.get_kvm_run();
        match exit {
            Raw::PortIn(port, ptr, len) => {
                // SAFETY: the slice that KVM's run page held a moment ago; `&mut self` keeps it mapped and ours.
                let data = unsafe { std::slice::from_raw_parts_mut(ptr, len) };
                Exit::PortIn {
                    port,
                    width: port_width(run),
                    data,
                }
            }
            Raw::PortOut(port, ptr, len) => {
                // SAFETY: as above.
                let data = unsafe { std::slice::from_raw_parts(ptr, len) };
                Exit::PortOut {
                    port,
                    width: port_width(run),
                    data,
                }
            }
            Raw::MmioRead(address, ptr, len) => {
                // SAFETY: as above.
                let data = unsafe { std::slice::from_raw_parts_mut(ptr, len) };
                Exit::MmioRead { address, data }
            }
            Raw::MmioWrite(address, ptr, len) => {
                // SAFETY: as above.
                let data = unsafe { std::slice::from_raw_parts(ptr, len) };
                Exit::MmioWrite { address, data }
            }
            Raw::Kicked => {
                run.immediate_exit = 0;
                Exit::Kicked
            }
            Raw::Shutdown(why) => Exit::Shutdown(why),
            Raw::Broken(why) => Exit::Broken(why),
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.kicker.retire();
    }
}

/// A [`VcpuExit`] without its borrow, so that the run page can be asked for the width of a port access.
enum Raw {
    PortIn(u16, *mut u8, usize),
    PortOut(u16, *const u8, usize),
    MmioRead(u64, *mut u8, usize),
    MmioWrite(u64, *const u8, usize),
    Kicked,
    Shutdown(&'static str),
    Broken(String),
}

impl From<VcpuExit<'_>> for Raw {
    fn from(exit: VcpuExit<'_>) -> Self {
        match exit {
            VcpuExit::IoIn(port, data) => Self::PortIn(port, data.as_mut_ptr(), data.len()),
            VcpuExit::IoOut(port, data) => Self::PortOut(port, data.as_ptr(), data.len()),
            VcpuExit::MmioRead(address, data) => Self::MmioRead(address, data.as_mut_ptr(), data.len()),
            VcpuExit::MmioWrite(address, data) => Self::MmioWrite(address, data.as_ptr(), data.len()),
            VcpuExit::Intr => Self::Kicked,
            VcpuExit::Shutdown => Self::Shutdown("a triple fault"),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Self::Shutdown("a reset asked of KVM"),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Self::Shutdown("a shutdown asked of KVM"),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => Self::Shutdown("a crash reported to KVM"),
            VcpuExit::FailEntry(reason, cpu) => Self::Broken(format!(
                "the processor refused to enter the guest: reason {reason:#x} on host CPU {cpu}"
            )),
            VcpuExit::InternalError => Self::Broken("KVM could not emulate an instruction".into()),
            other => Self::Broken(format!("unexpected exit: {other:?}")),
        }
    }
}

fn port_width(run: &kvm_run) -> usize {
    // SAFETY: the exit was a port access, so `io` is the union's live field; all its bit patterns are valid.
    usize::from(unsafe { run.__bindgen_anon_1.io.size }).max(1)
}
