//! How fast does this KVM run guest kernel code? A two-instruction loop in 64-bit mode at CPL 0, timed.

use std::io;
use std::time::Instant;

use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

/// Why the measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum SpeedError {
    /// /dev/kvm could not be opened.
    #[error("/dev/kvm: {0}")]
    Open(#[source] io::Error),
    /// A KVM call failed.
    #[error("KVM cannot {action}: {source}")]
    Call {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The guest left the loop in an unexpected way.
    #[error("KVM left a minimal guest by an unexpected exit: {0}")]
    Exit(String),
}

const TABLES: usize = 0x1000;
const CODE: usize = 0x4000;
const MEMORY_LEN: usize = 0x5000;
/// Turns of the long run; on an interpreting KVM at 6 us a turn this is 60 ms.
const TURNS: u32 = 10_000;

/// Nanoseconds of one turn of `dec ecx; jnz` at CPL 0. A short run is subtracted, so that set-up and page faults do not count.
pub fn guest_kernel_turn_ns() -> Result<f64, SpeedError> {
    let kvm = Kvm::new().map_err(|error| SpeedError::Open(error.into()))?;
    let memory = Memory::new()?;
    let vm = kvm.create_vm().map_err(failed("create a virtual machine"))?;
    memory.register(&vm)?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("create a vCPU"))?;
    run_loop(&mut vcpu, 1)?;
    let short = run_loop(&mut vcpu, 1)?;
    let long = run_loop(&mut vcpu, TURNS)?;
    Ok((long - short).max(0.0) / f64::from(TURNS - 1))
}

fn failed(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> SpeedError {
    move |error| SpeedError::Call {
        action,
        source: error.into(),
    }
}

/// Runs the loop `turns` times from the start; nanoseconds until HLT.
fn run_loop(vcpu: &mut VcpuFd, turns: u32) -> Result<f64, SpeedError> {
    enter_long_mode(vcpu)?;
    let mut regs = vcpu.get_regs().map_err(failed("read registers"))?;
    regs.rip = CODE as u64;
    regs.rcx = u64::from(turns);
    regs.rflags = 2;
    vcpu.set_regs(&regs).map_err(failed("set registers"))?;
    let start = Instant::now();
    match vcpu.run().map_err(failed("run a vCPU"))? {
        VcpuExit::Hlt => Ok(start.elapsed().as_nanos() as f64),
        other => Err(SpeedError::Exit(format!("{other:?}"))),
    }
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), SpeedError> {
    let mut sregs = vcpu.get_sregs().map_err(failed("read system registers"))?;
    let flat = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: 8,
        type_: 11,
        l: 1,
        ..flat
    };
    let data = kvm_segment {
        selector: 16,
        type_: 3,
        db: 1,
        ..flat
    };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cr3 = TABLES as u64;
    sregs.cr4 |= 1 << 5; // PAE
    sregs.cr0 |= 1 | 1 << 31; // PE, PG
    sregs.efer |= 1 << 8 | 1 << 10; // LME, LMA
    vcpu.set_sregs(&sregs).map_err(failed("enter 64-bit mode"))
}

/// Five pages: three of page tables that map the first 2 MiB one to one, and the code.
struct Memory(*mut u8);

impl Memory {
    fn new() -> Result<Self, SpeedError> {
        // SAFETY: a new anonymous mapping at an address the kernel chooses.
        let ptr = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(
                std::ptr::null_mut(),
                MEMORY_LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if ptr == libc::MAP_FAILED {
            return Err(SpeedError::Call {
                action: "map guest memory",
                source: io::Error::last_os_error(),
            });
        }
        let memory = Self(ptr.cast());
        memory.put(TABLES, &(TABLES as u64 + 0x1003).to_le_bytes());
        memory.put(TABLES + 0x1000, &(TABLES as u64 + 0x2003).to_le_bytes());
        memory.put(TABLES + 0x2000, &0x83u64.to_le_bytes());
        memory.put(CODE, &[0xff, 0xc9, 0x75, 0xfc, 0xf4]); // 1: dec ecx; jnz 1b; hlt
        Ok(memory)
    }

    fn put(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= MEMORY_LEN);
        // SAFETY: inside the mapping by the assertion; no guest runs yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(offset), bytes.len()) };
    }

    fn register(&self, vm: &VmFd) -> Result<(), SpeedError> {
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY_LEN as u64,
            userspace_addr: self.0 as u64,
        };
        // SAFETY: the mapping outlives the VM: it was made before it and is dropped after it.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed("register guest memory"))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length.
        unsafe { libc::munmap(self.0.cast(), MEMORY_LEN) };
    }
}
