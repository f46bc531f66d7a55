use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

/// Makes a vCPU leave the guest, from any thread. Clones kick the same vCPU; it may be gone already.
#[derive(Clone)]
pub struct Kicker(Arc<Mutex<Target>>);

/// Whom to kick: the `immediate_exit` byte while the vCPU lives, the thread while it runs.
struct Target {
    immediate_exit: Option<NonNull<u8>>,
    thread: Option<libc::pthread_t>,
}

// SAFETY: the pointer is used only under the mutex, as an atomic byte, and only until `Kicker::retire`.
unsafe impl Send for Target {}

/// While it lives, kicks reach the thread that made it. Dropped by that thread before it ends.
pub struct KickGuard(Kicker);

impl Kicker {
    /// # Safety
    /// `immediate_exit` is mapped until [`retire`](Self::retire) is called.
    pub(crate) unsafe fn new(immediate_exit: NonNull<u8>) -> Self {
        Self(Arc::new(Mutex::new(Target {
            immediate_exit: Some(immediate_exit),
            thread: None,
        })))
    }

    /// The vCPU's mapping is about to go.
    pub(crate) fn retire(&self) {
        self.lock().immediate_exit = None;
    }

    /// Directs kicks at the calling thread.
    pub(crate) fn enter_thread(&self) -> KickGuard {
        install_handler();
        // SAFETY: no arguments, cannot fail.
        self.lock().thread = Some(unsafe { libc::pthread_self() });
        KickGuard(self.clone())
    }

    /// The next or current [`Vcpu::run`](crate::Vcpu::run) returns [`Exit::Kicked`](crate::Exit::Kicked). Raise the reason first.
    pub fn kick(&self) {
        let target = self.lock();
        if let Some(byte) = target.immediate_exit {
            // SAFETY: mapped, because `retire` has not been called and cannot be while we hold the lock. Everybody
            // else (KVM, the vCPU thread) reads and writes this byte as a whole.
            unsafe { AtomicU8::from_ptr(byte.as_ptr()) }.store(1, Ordering::SeqCst);
        }
        if let Some(thread) = target.thread {
            // SAFETY: the thread lives: its guard takes this lock to remove it before it ends.
            unsafe { libc::pthread_kill(thread, signal_number()) };
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Target> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for KickGuard {
    fn drop(&mut self) {
        self.0.lock().thread = None;
    }
}

fn signal_number() -> i32 {
    libc::SIGRTMIN()
}

/// The handler does nothing: that the signal interrupts KVM_RUN is all we want of it.
extern "C" fn on_kick(_: libc::c_int) {}

fn install_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: a zeroed sigaction is valid; the handler is async-signal-safe (it does nothing); no SA_RESTART, so
        // that KVM_RUN returns EINTR.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_kick as extern "C" fn(libc::c_int) as libc::sighandler_t;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(signal_number(), &action, std::ptr::null_mut());
        }
    });
}
