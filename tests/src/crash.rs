use treaty_virtio_device::Step;

/// Where in a request's life a daemon dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashStep {
    /// See [`Step::Fetched`].
    Fetched,
    /// See [`Step::Logged`].
    Logged,
    /// The storage has the request.
    Submitted,
    /// The host has done it; the device has not heard.
    HostDone,
    /// See [`Step::Completed`].
    Completed,
    /// See [`Step::UsedWritten`].
    UsedWritten,
    /// See [`Step::Listed`].
    Listed,
    /// See [`Step::Published`].
    Published,
    /// See [`Step::Cleared`].
    Cleared,
    /// See [`Step::Settled`]; the driver was not interrupted yet.
    Settled,
}

impl CrashStep {
    /// All, in the order of a request's life.
    pub const ALL: [Self; 10] = [
        Self::Fetched,
        Self::Logged,
        Self::Submitted,
        Self::HostDone,
        Self::Completed,
        Self::UsedWritten,
        Self::Listed,
        Self::Published,
        Self::Cleared,
        Self::Settled,
    ];

    /// By its name in [`Debug`].
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| format!("{step:?}") == name)
    }

    /// A ring's step.
    pub fn of_ring(step: Step) -> Self {
        match step {
            Step::Fetched => Self::Fetched,
            Step::Logged => Self::Logged,
            Step::Completed => Self::Completed,
            Step::UsedWritten => Self::UsedWritten,
            Step::Listed => Self::Listed,
            Step::Published => Self::Published,
            Step::Cleared => Self::Cleared,
            Step::Settled => Self::Settled,
        }
    }
}

/// Ends this process as if somebody had pulled its plug.
pub fn kill_self() -> ! {
    #[allow(unsafe_code)]
    // SAFETY: takes no pointers.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
    }
    loop {
        std::thread::park();
    }
}

/// Sends a signal to a child of ours.
#[allow(unsafe_code)]
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: takes no pointers.
    let sent = unsafe { libc::kill(pid.cast_signed(), signal) };
    assert_eq!(sent, 0, "signal {signal} to {pid}");
}

/// This process does not outlive the thread that started it.
#[allow(unsafe_code)]
pub fn die_with_parent() {
    // SAFETY: takes no pointers.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
}
