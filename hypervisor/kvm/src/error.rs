/// The host's KVM does not do what is asked of it. No guest action leads here.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no KVM on this host.
    #[error(
        "/dev/kvm does not exist: load the kvm-intel or kvm-amd module, or allow nested virtualisation in the outer VM"
    )]
    Missing,
    /// This user may not use it.
    #[error(
        "no permission to open /dev/kvm: run as root or join the group that owns it (usually `adduser $USER kvm`)"
    )]
    Permission,
    /// It could not be opened for another reason.
    #[error("cannot open /dev/kvm: {0}")]
    Open(std::io::Error),
    /// Its interface is not the one of every Linux since 2.6.22.
    #[error("/dev/kvm speaks API version {0}, not 12")]
    ApiVersion(i32),
    /// A needed capability is missing.
    #[error("this host's KVM lacks {0}; a Linux of 5.10 or newer has it")]
    Capability(&'static str),
    /// More vCPUs than the host can run in one VM.
    #[error("{asked} vCPUs are more than this host's KVM runs in one machine ({limit})")]
    TooManyVcpus {
        /// Wanted.
        asked: usize,
        /// The host's limit.
        limit: usize,
    },
    /// An ioctl failed.
    #[error("KVM: cannot {action}: {source}")]
    Call {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl KvmError {
    /// For `map_err`: names what was tried.
    pub(crate) fn call(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |errno| Self::Call {
            action,
            source: std::io::Error::from_raw_os_error(errno.errno()),
        }
    }
}
