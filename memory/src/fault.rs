//! What happens when a page of a mapping is not there any more.
//!
//! Another process owns the file behind a mapping and may truncate it; the next access then raises SIGBUS, whose default is
//! the end of the process. Mappings of files that others own are therefore registered here. The handler puts a page of zeros
//! where the file's was, marks the owner's [`FaultWatch`] as lost and wakes it; the access goes on. Whoever watches lets go of
//! the mapping. A SIGBUS anywhere else goes to the handler that was there before.
//!
//! The table of mappings and the handler are the process's own (`docs/decisions/0003-one-handler-for-sigbus.md`).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

/// Tells that some mapping of a group has lost pages. Cloning shares it.
#[derive(Clone)]
pub struct FaultWatch(Arc<Watched>);

struct Watched {
    lost: AtomicBool,
    wake: OwnedFd,
}

impl FaultWatch {
    /// Nothing is lost yet.
    ///
    /// # Errors
    /// If there is no descriptor left, or the handler cannot be installed.
    pub fn new() -> io::Result<Self> {
        install()?;
        // SAFETY: takes no pointers; the result is checked and owned below.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(Arc::new(Watched {
            lost: AtomicBool::new(false),
            // SAFETY: just created, no other owner.
            wake: unsafe { OwnedFd::from_raw_fd(fd) },
        })))
    }

    /// True once a page of a mapping was gone when somebody touched it. It reads as zeros since then.
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(SeqCst)
    }

    /// Readable once [lost](Self::is_lost), for good.
    pub fn fd(&self) -> RawFd {
        self.0.wake.as_raw_fd()
    }

    /// Watches a mapping until the guard is dropped.
    ///
    /// # Safety
    /// The range is one private or shared mapping of the caller's, whole pages long, and stays mapped until after the guard
    /// is dropped. Whoever touches it keeps it mapped meanwhile.
    pub(crate) unsafe fn guard(&self, start: NonNull<u8>, len: usize) -> io::Result<FaultGuard> {
        let free = |slot: &&Slot| slot.taken.compare_exchange(false, true, SeqCst, SeqCst).is_ok();
        let (index, slot) = SLOTS
            .iter()
            .enumerate()
            .find(|(_, slot)| free(slot))
            .ok_or_else(|| io::Error::other("too many mappings of other processes' memory"))?;
        IN_USE.fetch_max(index + 1, SeqCst);
        slot.set(start.as_ptr() as usize, len, Arc::as_ptr(&self.0).cast_mut());
        Ok(FaultGuard {
            slot,
            _watched: self.0.clone(),
        })
    }
}

/// A watched mapping; dropped before the mapping is.
pub(crate) struct FaultGuard {
    slot: &'static Slot,
    _watched: Arc<Watched>,
}

impl Drop for FaultGuard {
    fn drop(&mut self) {
        self.slot.set(0, 0, null_mut());
        self.slot.taken.store(false, SeqCst);
    }
}

/// One mapping in the table. Fields are written between two increments of `generation`: odd while they change.
struct Slot {
    taken: AtomicBool,
    generation: AtomicU32,
    start: AtomicUsize,
    len: AtomicUsize,
    watched: AtomicPtr<Watched>,
}

impl Slot {
    const fn empty() -> Self {
        Self {
            taken: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            watched: AtomicPtr::new(null_mut()),
        }
    }

    fn set(&self, start: usize, len: usize, watched: *mut Watched) {
        self.generation.fetch_add(1, SeqCst);
        self.start.store(start, SeqCst);
        self.len.store(len, SeqCst);
        self.watched.store(watched, SeqCst);
        self.generation.fetch_add(1, SeqCst);
    }

    /// Start, length and watch, if the mapping has `addr`. A slot that changes meanwhile is not the one looked for: that one's
    /// guard is held by whoever touched `addr`.
    fn find(&self, addr: usize) -> Option<(usize, usize, *mut Watched)> {
        let generation = self.generation.load(SeqCst);
        let (start, len) = (self.start.load(SeqCst), self.len.load(SeqCst));
        let watched = self.watched.load(SeqCst);
        let whole = generation.is_multiple_of(2) && self.generation.load(SeqCst) == generation;
        let inside = addr.checked_sub(start).is_some_and(|offset| offset < len);
        (whole && inside && !watched.is_null()).then_some((start, len, watched))
    }
}

/// More mappings at a time than this are refused: 32 connections with all their memory slots.
const MAPPINGS: usize = 8192;

static SLOTS: [Slot; MAPPINGS] = [const { Slot::empty() }; MAPPINGS];
/// Slots from here on were never taken.
static IN_USE: AtomicUsize = AtomicUsize::new(0);
/// What handled SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();

fn install() -> io::Result<()> {
    let result = INSTALLED.get_or_init(|| {
        // SAFETY: all-zero is a valid sigaction.
        let (mut ours, mut before): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        ours.sa_sigaction = handler as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: both live on this stack; the handler does only what a handler may.
        match unsafe { libc::sigaction(libc::SIGBUS, &ours, &mut before) } {
            0 => {
                let _ = BEFORE.set(before);
                Ok(())
            }
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
        }
    });
    result.map_err(io::Error::from_raw_os_error)
}

/// Async-signal-safe: atomics, mmap, write and sigaction, which are plain system calls; no allocation, no lock. Runs on the
/// thread that touched the page.
extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a siginfo, which has an address for this signal.
    let (code, addr) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let by_access = [libc::BUS_ADRERR, libc::BUS_MCEERR_AR].contains(&code);
    let found = SLOTS[..IN_USE.load(SeqCst)]
        .iter()
        .find_map(|slot| slot.find(addr));
    match found {
        Some((start, len, watched)) if by_access && put_zeros(addr, start, len) => {
            // SAFETY: the guard, held by whoever touched the mapping, keeps this alive.
            let watched = unsafe { &*watched };
            watched.lost.store(true, SeqCst);
            let one = 1u64.to_ne_bytes();
            // SAFETY: eight bytes on the stack, to a descriptor of ours. A full counter is readable too.
            unsafe { libc::write(watched.wake.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
        _ => pass_on(signal, info, context),
    }
}

/// Replaces the page; where a single one cannot be (huge pages, no room for one mapping more), the whole mapping.
fn put_zeros(addr: usize, start: usize, len: usize) -> bool {
    let page = addr & !4095;
    [(page, 4096), (start, len)].into_iter().any(|(at, len)| {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: lies inside a registered mapping, which its holder keeps; what it loses there is not in the file any more. All
        // access is by raw copies and atomics, so a change of contents is nothing new to it.
        let mapped = unsafe { libc::mmap(at as *mut libc::c_void, len, access, flags, -1, 0) };
        mapped != libc::MAP_FAILED
    })
}

fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    type WithInfo = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
    type Plain = extern "C" fn(i32);
    let before = BEFORE.get();
    let special = |handler| handler == libc::SIG_DFL || handler == libc::SIG_IGN;
    match before {
        Some(before) if !special(before.sa_sigaction) => {
            if before.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: it was installed as such a handler.
                unsafe { std::mem::transmute::<usize, WithInfo>(before.sa_sigaction)(signal, info, context) };
            } else {
                // SAFETY: it was installed as such a handler.
                unsafe { std::mem::transmute::<usize, Plain>(before.sa_sigaction)(signal) };
            }
        }
        _ => {
            // SAFETY: all-zero is the default action. The access is made again and ends the process.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &default, null_mut());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::{DirtyLog, GuestMemory, Region};

    fn memfd(len: u64) -> File {
        // SAFETY: a constant name; the result is checked below.
        let fd = unsafe { libc::memfd_create(c"theirs".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: just created, no other owner.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len).unwrap();
        file
    }

    /// Hardening row 11: a peer that takes its memory away ends nothing but its own mappings' contents.
    #[test]
    fn hardening_11_a_truncated_file_reads_as_zeros_and_is_reported() {
        let watch = FaultWatch::new().unwrap();
        let other = FaultWatch::new().unwrap();
        let file = memfd(0x4000);
        let peer = |file: &File, start, watch| {
            Region::of_peer(start, 0x4000, file.try_clone().unwrap(), 0, watch).unwrap()
        };
        let regions = vec![peer(&file, 0, &watch), peer(&memfd(0x4000), 0x4000, &other)];
        let memory = GuestMemory::new(regions).unwrap();
        memory.write(0, &[7; 0x8000]).unwrap();
        file.set_len(0x1000).unwrap();
        assert!(!watch.is_lost(), "nobody has touched it yet");
        let mut bytes = [9; 0x8000];
        memory.read(0, &mut bytes).unwrap();
        assert!(watch.is_lost());
        assert!(!other.is_lost());
        assert_eq!(bytes[..0x1000], [7; 0x1000], "what is there is still there");
        assert_eq!(bytes[0x1000..0x4000], [0; 0x3000]);
        assert_eq!(bytes[0x4000..], [7; 0x4000]);
        memory.write(0x3000, &[1]).unwrap();
        let mut poll = libc::pollfd {
            fd: watch.fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd on the stack.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, 0) }, 1);
    }

    #[test]
    fn hardening_25_a_truncated_dirty_log_is_survived() {
        let watch = FaultWatch::new().unwrap();
        let file = memfd(0x3000);
        let log = DirtyLog::of_peer(&file, 0x100, 0x2000, &watch).unwrap();
        file.set_len(0).unwrap();
        log.mark(0, 1 << 30);
        assert!(watch.is_lost());
    }

    #[test]
    fn slots_are_given_back() {
        let watch = FaultWatch::new().unwrap();
        let file = memfd(0x1000);
        for _ in 0..3 * MAPPINGS {
            drop(Region::of_peer(0, 0x1000, file.try_clone().unwrap(), 0, &watch).unwrap());
        }
        assert!(IN_USE.load(SeqCst) < MAPPINGS);
    }

    /// A fault in no watched mapping ends the process, as it always did.
    #[test]
    fn other_faults_are_not_swallowed() {
        const CHILD: &str = "TREATY_TEST_SIGBUS_CHILD";
        if std::env::var_os(CHILD).is_some() {
            let _watch = FaultWatch::new().unwrap();
            let file = memfd(0x1000);
            let region = Region::from_file(0, 0x1000, file.try_clone().unwrap(), 0).unwrap();
            file.set_len(0).unwrap();
            let _ = GuestMemory::new(vec![region]).unwrap().write(0, &[1]);
            return;
        }
        let name = "fault::tests::other_faults_are_not_swallowed";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let status = child
            .args(["--exact", name])
            .env(CHILD, "1")
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(libc::SIGBUS));
    }
}
