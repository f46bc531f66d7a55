//! Raw mode of the process's terminal, undone however the process ends.
//!
//! The terminal outlives the process and a signal handler has no other way to find it, so this is the one place with
//! process-wide state: a pointer that is set while a [`RawMode`] lives.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::sys;

struct Saved {
    fd: RawFd,
    settings: libc::termios,
}

static SAVED: AtomicPtr<Saved> = AtomicPtr::new(std::ptr::null_mut());
static HANDLERS: Once = Once::new();

/// Signals that end the process by default and leave the terminal as it is.
const DEADLY: [libc::c_int; 7] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGABRT,
    libc::SIGILL,
    libc::SIGFPE,
];

/// While it lives, the terminal is in raw mode. It is restored on drop, on `exit`, and by signals that would end the
/// process (where nobody else handles them).
pub(crate) struct RawMode(());

impl RawMode {
    /// Fails if `fd` is not a terminal or another `RawMode` lives. `fd` must stay open until the process ends.
    pub(crate) fn enter(fd: RawFd) -> io::Result<Self> {
        let settings = sys::terminal_settings(fd)?;
        // Never freed: a signal handler may be reading it. A process enters raw mode once or twice.
        let saved = Box::into_raw(Box::new(Saved { fd, settings }));
        let set = SAVED.compare_exchange(std::ptr::null_mut(), saved, Ordering::SeqCst, Ordering::SeqCst);
        if set.is_err() {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "the terminal is in raw mode already",
            ));
        }
        HANDLERS.call_once(install_handlers);
        sys::apply_terminal_settings(fd, &sys::raw_settings(&settings)).inspect_err(|_| restore())?;
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let saved = SAVED.swap(std::ptr::null_mut(), Ordering::SeqCst);
    // SAFETY: the pointer is null or comes from `enter` and is never freed.
    if let Some(saved) = unsafe { saved.as_ref() } {
        // The terminal may be gone; then there is nothing to restore.
        let _ = sys::apply_terminal_settings(saved.fd, &saved.settings);
    }
}

extern "C" fn at_exit() {
    restore();
}

extern "C" fn on_signal(signal: libc::c_int) {
    restore();
    // SAFETY: async-signal-safe. SA_RESETHAND has put the default action back, so this ends the process.
    unsafe { libc::raise(signal) };
}

fn install_handlers() {
    // SAFETY: the handlers are functions of this program, callable at any time: `restore` uses one atomic and tcsetattr,
    // both async-signal-safe. A signal that somebody handles already is left alone.
    unsafe {
        libc::atexit(at_exit);
        for signal in DEADLY {
            let mut before = std::mem::zeroed::<libc::sigaction>();
            if libc::sigaction(signal, std::ptr::null(), &raw mut before) != 0
                || before.sa_sigaction != libc::SIG_DFL
            {
                continue;
            }
            let mut action = std::mem::zeroed::<libc::sigaction>();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_RESETHAND;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}
