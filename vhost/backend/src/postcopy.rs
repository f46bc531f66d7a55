//! Migration that brings the guest's memory after the guest has started here (PAGEFAULT): whoever touches a page that is not there
//! yet waits until the front-end has put it there.
//!
//! The front-end may never do so. Its device then stands still, and this connection's thread may as well: it reads a ring's
//! indices when the ring starts, and waits for rings that stop. A thread of its own therefore looks for the end of the connection
//! and of the daemon; then memory is given back before anything is drained, and who waits goes on with what is there.
//!
//! A front-end that has a userfaultfd of this process can fill pages of it and make others wait that are none of the guest's. So it
//! is offered only if whoever starts the daemon trusts its front-end.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use treaty_memory::{GuestMemory, Region, Userfault};
use treaty_vhost_protocol::Message;
use treaty_vhost_protocol::payload::MemoryRegion;
use treaty_virtio_device::Doorbell;
use zerocopy::{FromBytes, IntoBytes};

use crate::handlers::{Outcome, number};
use crate::session::{Session, SessionError, Stop, wait};

/// What a connection knows of it.
pub struct Postcopy {
    offered: bool,
    /// Of the daemon.
    stop: Option<Stop>,
    /// ADVISE has come, and no end yet.
    fault: Shared,
    /// LISTEN has come.
    guard: Option<Guard>,
    /// The front-end has a new table's addresses and has not said yet that it is ready for faults.
    awaits_ack: bool,
}

type Shared = Arc<Mutex<Option<Userfault>>>;

/// The thread that ends it when the connection or the daemon ends.
struct Guard {
    quit: Doorbell,
    thread: JoinHandle<()>,
}

impl Postcopy {
    /// Offers it if it is wanted and this process can have it.
    pub fn new(wanted: bool) -> Self {
        let offered = wanted
            && Userfault::new()
                .inspect_err(|error| tracing::warn!(%error, "no userfaultfd: PAGEFAULT is not offered"))
                .is_ok();
        Self {
            offered,
            stop: None,
            fault: Shared::default(),
            guard: None,
            awaits_ack: false,
        }
    }

    /// Whoever waits for pages is freed when the daemon is stopped.
    pub fn stop_with(&mut self, stop: &Stop) {
        self.stop = Some(stop.clone());
    }

    /// PAGEFAULT is on offer.
    pub fn is_offered(&self) -> bool {
        self.offered
    }

    /// No ring may start now.
    pub fn holds_rings(&self) -> bool {
        self.awaits_ack
    }

    /// True if `message` has no memory, but says that the front-end is ready for faults in what it was told of.
    pub fn is_ack(&self, message: &Message) -> bool {
        let zero = message.payload == 0u64.as_bytes() && message.fds.is_empty();
        zero && self.awaits_ack
    }

    /// Gives all memory back and frees who waits.
    pub fn end(&mut self) {
        give_back(&self.fault);
        self.awaits_ack = false;
        if let Some(Guard { quit, thread }) = self.guard.take() {
            quit.ring();
            if thread.join().is_err() {
                tracing::error!("the thread that watches over postcopy has panicked");
            }
        }
    }
}

impl Drop for Postcopy {
    fn drop(&mut self) {
        self.end();
    }
}

/// Gives the memory back, if nobody has done so before.
fn give_back(fault: &Shared) {
    drop(fault.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// POSTCOPY_ADVISE: the front-end gets a userfaultfd of ours.
pub fn advise(session: &mut Session<'_>) -> Result<Outcome, SessionError> {
    finish(session)?;
    let made = Userfault::new().and_then(|fault| Ok((fault.as_fd().try_clone_to_owned()?, fault)));
    match made {
        Ok((copy, fault)) => {
            *lock(session) = Some(fault);
            Ok(Outcome::Payload(Vec::new(), vec![copy]))
        }
        Err(error) => {
            tracing::warn!(%error, "no userfaultfd");
            Ok(number(1))
        }
    }
}

fn lock<'s>(session: &'s Session<'_>) -> MutexGuard<'s, Option<Userfault>> {
    let fault = &session.postcopy.fault;
    fault.lock().unwrap_or_else(PoisonError::into_inner)
}

/// POSTCOPY_LISTEN: memory that comes from now on is not all there.
pub fn listen(session: &mut Session<'_>) -> Result<Outcome, SessionError> {
    if lock(session).is_none() {
        return Ok(Outcome::Rejected("no POSTCOPY_ADVISE came before".into()));
    }
    if session.memory.guest().is_some() {
        return Ok(Outcome::Rejected("memory is in use already".into()));
    }
    if session.postcopy.guard.is_none() {
        session.postcopy.guard = Some(guard(session).map_err(host("watch over postcopy"))?);
    }
    tracing::info!("postcopy: pages arrive later");
    Ok(Outcome::Done)
}

fn guard(session: &Session<'_>) -> io::Result<Guard> {
    let quit = Doorbell::new()?;
    let ours = quit.as_fd().try_clone_to_owned()?;
    let socket = session.channel.as_fd().try_clone_to_owned()?;
    let stop = session.postcopy.stop.clone();
    let fault = session.postcopy.fault.clone();
    let watch = move || {
        let stop = stop.as_ref().map_or(-1, Stop::fd);
        let ends = [
            (ours.as_raw_fd(), libc::POLLIN),
            (socket.as_raw_fd(), libc::POLLRDHUP),
        ];
        if let Err(error) = wait(ends, stop, None) {
            tracing::error!(%error, "cannot watch over postcopy");
        }
        give_back(&fault);
    };
    let thread = std::thread::Builder::new().name("postcopy".into()).spawn(watch)?;
    Ok(Guard { quit, thread })
}

/// POSTCOPY_END: everything is here.
pub fn end(session: &mut Session<'_>) -> Result<Outcome, SessionError> {
    let advised = lock(session).is_some();
    finish(session)?;
    Ok(number(u64::from(!advised)))
}

fn finish(session: &mut Session<'_>) -> Result<(), SessionError> {
    session.postcopy.end();
    start_rings(session)
}

/// The front-end is ready for faults.
pub fn acknowledged(session: &mut Session<'_>) -> Result<Outcome, SessionError> {
    session.postcopy.awaits_ack = false;
    start_rings(session)?;
    Ok(Outcome::Done)
}

fn start_rings(session: &mut Session<'_>) -> Result<(), SessionError> {
    (0..session.vrings.len()).try_for_each(|index| session.start_if_ready(index))
}

/// Memory has changed, no ring runs: pages of it that are missing are waited for from now on. The answer to the request with
/// `payload`, in which regions begin at `at`.
pub fn changed(session: &mut Session<'_>, payload: Vec<u8>, at: usize) -> Result<Outcome, SessionError> {
    if session.postcopy.guard.is_none() {
        return Ok(Outcome::Done);
    }
    cover(session)?;
    session.postcopy.awaits_ack = true;
    Ok(Outcome::Extra(with_our_addresses(session, payload, at)))
}

/// The same when regions were taken away.
pub fn cover(session: &Session<'_>) -> Result<(), SessionError> {
    let regions = session.memory.guest().map_or(&[][..], GuestMemory::regions);
    let mut fault = lock(session);
    match fault.as_mut().filter(|_| session.postcopy.guard.is_some()) {
        Some(fault) => fault
            .cover(regions)
            .map_err(host("wait for pages of this memory")),
        None => Ok(()),
    }
}

/// The regions as they came, but with the addresses at which faults will be reported.
fn with_our_addresses(session: &Session<'_>, mut payload: Vec<u8>, at: usize) -> Vec<u8> {
    let regions = session.memory.guest().map_or(&[][..], GuestMemory::regions);
    let bytes = payload.get_mut(at..).unwrap_or_default();
    for bytes in bytes.chunks_exact_mut(size_of::<MemoryRegion>()) {
        let Ok(region) = MemoryRegion::read_from_bytes(bytes) else {
            continue;
        };
        let same = |mapped: &&Region| mapped.guest_start() == region.guest_address;
        let user_address = regions.iter().find(same).map_or(0, Region::host_address);
        let ours = MemoryRegion {
            user_address,
            ..region
        };
        bytes.copy_from_slice(ours.as_bytes());
    }
    payload
}

fn host(action: &'static str) -> impl Fn(io::Error) -> SessionError {
    move |source| SessionError::Host { action, source }
}
