use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Cap;

use crate::{KvmError, Vm};

const API_VERSION: i32 = 12;

const NEEDED: &[(Cap, &str)] = &[
    (
        Cap::Irqchip,
        "an in-kernel interrupt controller (KVM_CAP_IRQCHIP)",
    ),
    (Cap::Pit2, "an in-kernel interval timer (KVM_CAP_PIT2)"),
    (Cap::UserMemory, "user memory regions (KVM_CAP_USER_MEMORY)"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "CPUID control (KVM_CAP_EXT_CPUID)"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::IrqRouting, "interrupt routing (KVM_CAP_IRQ_ROUTING)"),
    (Cap::Irqfd, "interrupts by eventfd (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "doorbells by eventfd (KVM_CAP_IOEVENTFD)"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Interruptions in a row that are put up with.
const MAX_INTERRUPTIONS: usize = 1000;

/// The host's KVM.
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
    supported: CpuId,
}

impl Kvm {
    /// Opens `/dev/kvm` and checks that it has everything this crate uses.
    pub fn open() -> Result<Self, KvmError> {
        let fd = kvm_ioctls::Kvm::new().map_err(|errno| match errno.errno() {
            libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmError::Missing,
            libc::EACCES | libc::EPERM => KvmError::Permission,
            code => KvmError::Open(std::io::Error::from_raw_os_error(code)),
        })?;
        let version = fd.get_api_version();
        if version != API_VERSION {
            return Err(KvmError::ApiVersion(version));
        }
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !fd.check_extension(*cap)) {
            return Err(KvmError::Capability(name));
        }
        let supported = fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::call("read the supported CPUID"))?;
        Ok(Self { fd, supported })
    }

    /// A new VM for `vcpus` vCPUs, with its interrupt controllers and timer, and no memory.
    pub fn create_vm(&self, vcpus: u8) -> Result<Vm, KvmError> {
        let limit = self.fd.get_max_vcpus();
        if usize::from(vcpus) > limit {
            return Err(KvmError::TooManyVcpus {
                asked: usize::from(vcpus),
                limit,
            });
        }
        let fd = uninterrupted(|| self.fd.create_vm()).map_err(KvmError::call("create a VM"))?;
        let deadline_timer = self.fd.check_extension(Cap::TscDeadlineTimer);
        Vm::new(Arc::new(fd), self.supported.clone(), vcpus, deadline_timer)
    }
}

/// Calls again while the call is interrupted: creating a VM waits for a kernel thread, and an io_uring of this thread that has
/// something to say counts as a signal.
fn uninterrupted<T>(call: impl Fn() -> Result<T, kvm_ioctls::Error>) -> Result<T, kvm_ioctls::Error> {
    for _ in 1..MAX_INTERRUPTIONS {
        match call() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result,
        }
    }
    call()
}
