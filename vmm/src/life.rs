//! The life of a machine: which vCPUs run, pause and resume, and how it ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use treaty_chipset::{PowerControl, PowerRequest};
use treaty_kvm::Kicker;

use crate::api::{ControlError, MachineState};

/// Why the vCPUs were stopped for good (or until a reboot).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// Somebody outside asked for it.
    Quit,
    /// The guest's processor gave up (a triple fault); the text says where. A PC resets then.
    TripleFault(String),
    /// The machine cannot go on; the text says why.
    Crash(String),
}

/// What a vCPU does after it has looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Run,
    Stop,
}

/// Shared by the vCPU threads, the devices that end a machine, and whoever controls it. It outlives reboots.
///
/// Only its own lock is ever held in here, and nothing is waited for under another lock.
#[derive(Default)]
pub(crate) struct Life {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// True when vCPUs must look at `inner` before they enter the guest again.
    attention: AtomicBool,
}

#[derive(Default)]
struct Inner {
    kickers: Vec<Kicker>,
    paused: bool,
    parked: usize,
    started: bool,
    finished: bool,
    end: Option<End>,
    reboots: u64,
}

impl Life {
    /// The vCPUs of a new boot are about to run.
    pub(crate) fn begin(&self, kickers: Vec<Kicker>) {
        let mut inner = self.lock();
        inner.kickers = kickers;
        inner.started = true;
        // A command to quit that came while the machine was being built stands.
        self.attention
            .store(inner.paused || inner.end.is_some(), Ordering::SeqCst);
    }

    /// Ends the current boot. The first reason counts, but that somebody wants to quit is not lost in a reboot.
    pub(crate) fn end(&self, end: End) {
        let mut inner = self.lock();
        let reboots = matches!(inner.end, Some(End::Reset | End::TripleFault(_)));
        if inner.end.is_none() || (reboots && end == End::Quit) {
            tracing::debug!(?end, "machine ends");
            inner.end = Some(end);
        }
        self.interrupt(&inner);
    }

    /// Waits for the end of the current boot.
    pub(crate) fn wait_end(&self) -> End {
        let inner = self.lock();
        let ended = self.changed.wait_while(inner, |inner| inner.end.is_none());
        let inner = ended.unwrap_or_else(PoisonError::into_inner);
        inner.end.clone().unwrap_or(End::Quit)
    }

    /// The vCPUs and devices of this boot are gone, because of `end`. Returns what follows: another boot after a reset,
    /// unless somebody has quit meanwhile.
    pub(crate) fn close(&self, end: End) -> End {
        let mut inner = self.lock();
        inner.kickers.clear();
        inner.started = false;
        let end = if inner.end == Some(End::Quit) {
            End::Quit
        } else {
            end
        };
        if end == End::Reset {
            inner.reboots += 1;
            inner.end = None;
        } else {
            inner.finished = true;
            inner.end = Some(end.clone());
        }
        self.changed.notify_all();
        end
    }

    /// For vCPU threads, before each entry into the guest: waits while the machine is paused. `paused` is called once
    /// after each wait.
    pub(crate) fn checkpoint(&self, paused: impl Fn()) -> Next {
        if !self.attention.load(Ordering::SeqCst) {
            return Next::Run;
        }
        let mut inner = self.lock();
        if inner.paused && inner.end.is_none() {
            inner.parked += 1;
            self.changed.notify_all();
            let waited = self
                .changed
                .wait_while(inner, |inner| inner.paused && inner.end.is_none());
            inner = waited.unwrap_or_else(PoisonError::into_inner);
            inner.parked -= 1;
            paused();
        }
        match inner.end {
            Some(_) => Next::Stop,
            None => Next::Run,
        }
    }

    /// Stops the vCPUs; returns when none is in the guest.
    pub(crate) fn pause(&self) -> Result<(), ControlError> {
        let mut inner = self.lock();
        inner.paused = true;
        self.interrupt(&inner);
        let waited = self.changed.wait_while(inner, |inner| {
            inner.paused && inner.end.is_none() && inner.started && inner.parked < inner.kickers.len()
        });
        let inner = waited.unwrap_or_else(PoisonError::into_inner);
        match inner.state() {
            MachineState::Stopped => Err(ControlError::State(MachineState::Stopped)),
            _ => Ok(()),
        }
    }

    /// Lets the vCPUs go on.
    pub(crate) fn resume(&self) -> Result<(), ControlError> {
        let mut inner = self.lock();
        if inner.state() == MachineState::Stopped {
            return Err(ControlError::State(MachineState::Stopped));
        }
        inner.paused = false;
        self.attention.store(inner.end.is_some(), Ordering::SeqCst);
        self.changed.notify_all();
        Ok(())
    }

    pub(crate) fn state(&self) -> MachineState {
        self.lock().state()
    }

    pub(crate) fn reboots(&self) -> u64 {
        self.lock().reboots
    }

    /// Makes every vCPU come to its checkpoint.
    fn interrupt(&self, inner: &Inner) {
        self.attention.store(true, Ordering::SeqCst);
        inner.kickers.iter().for_each(Kicker::kick);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn state(&self) -> MachineState {
        match self {
            Self { finished: true, .. } => MachineState::Stopped,
            Self {
                end: Some(End::PowerOff | End::Quit | End::Crash(_)),
                ..
            } => MachineState::Stopped,
            Self { started: false, .. } | Self { end: Some(_), .. } => MachineState::Starting,
            Self { paused: true, .. } => MachineState::Paused,
            _ => MachineState::Running,
        }
    }
}

impl PowerControl for Life {
    fn request(&self, request: PowerRequest) {
        self.end(match request {
            PowerRequest::Reset => End::Reset,
            PowerRequest::Off => End::PowerOff,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_first_reason_counts_and_a_reset_can_be_followed() {
        let life = Life::default();
        assert_eq!(life.state(), MachineState::Starting);
        life.begin(Vec::new());
        assert_eq!(
            (life.state(), life.checkpoint(|| ())),
            (MachineState::Running, Next::Run)
        );
        life.request(PowerRequest::Reset);
        life.request(PowerRequest::Off);
        assert_eq!(
            (life.wait_end(), life.checkpoint(|| ())),
            (End::Reset, Next::Stop)
        );
        assert_eq!(life.close(End::Reset), End::Reset);
        assert_eq!((life.state(), life.reboots()), (MachineState::Starting, 1));
        life.begin(Vec::new());
        assert_eq!(life.checkpoint(|| ()), Next::Run);
        life.end(End::Quit);
        assert_eq!(life.close(life.wait_end()), End::Quit);
        assert_eq!(life.state(), MachineState::Stopped);
        assert!(life.pause().is_err() && life.resume().is_err());
    }

    #[test]
    fn a_pause_holds_across_a_reboot_and_ends_with_the_machine() {
        let life = Arc::new(Life::default());
        life.pause().unwrap();
        life.begin(Vec::new());
        assert_eq!(life.state(), MachineState::Paused);
        let vcpu = {
            let life = life.clone();
            std::thread::spawn(move || life.checkpoint(|| ()))
        };
        life.resume().unwrap();
        assert_eq!(vcpu.join().unwrap(), Next::Run);
        life.pause().unwrap();
        let vcpu = {
            let life = life.clone();
            std::thread::spawn(move || life.checkpoint(|| ()))
        };
        life.end(End::Quit);
        assert_eq!(vcpu.join().unwrap(), Next::Stop);
    }

    #[test]
    fn quitting_during_a_reboot_is_not_lost() {
        let life = Life::default();
        life.begin(Vec::new());
        life.end(End::Reset);
        let end = life.wait_end();
        life.end(End::Quit);
        assert_eq!(life.close(end), End::Quit);
        assert_eq!(life.state(), MachineState::Stopped);
    }

    #[test]
    fn quitting_while_the_machine_is_built_is_not_lost() {
        let life = Life::default();
        life.end(End::Quit);
        life.begin(Vec::new());
        assert_eq!(life.checkpoint(|| ()), Next::Stop);
    }
}
