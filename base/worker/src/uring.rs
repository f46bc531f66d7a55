//! The io_uring engine: one ring per worker, submitted once per pass of the loop.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use io_uring::register::Restriction;
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::OpKind;
use crate::engine::{Engine, Wait};
use crate::slots::{Slot, Token, Work};
use crate::sys::{self, MAX_RANGES};
use crate::tasks::Tasks;

const SUBMISSION_ENTRIES: u32 = 256;
const COMPLETION_ENTRIES: u32 = 4096;

/// Longest transfer of one system call (MAX_RW_COUNT of the kernel).
const MAX_BYTES: usize = 0x7fff_f000;

const CANCELLED: i64 = -(libc::ECANCELED as i64);

/// Completions that are not about a slot. Slot tokens have an index below the limit of slots.
const MAILBOX: u64 = u64::MAX;
const CANCELLATION: u64 = u64::MAX - 1;

/// The operations that a worker's ring carries out. The kernel refuses every other one, so that code that takes over
/// the process cannot use the ring to get round a seccomp filter.
const ALLOWED: [u8; 8] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
    opcode::AsyncCancel::CODE,
];

pub(crate) struct Uring {
    ring: IoUring,
    /// Entries that wait for room; in order.
    backlog: VecDeque<squeue::Entry>,
    /// Entries given to the kernel whose last completion has not been seen. Kept below the completion queue's size, so
    /// that the kernel never has to allocate for an overflow.
    carried: u32,
    mailbox: RawFd,
    epoch: Instant,
    /// Sleep in `poll`, not in io_uring_enter.
    poll_to_sleep: bool,
}

impl Uring {
    /// Makes a ring for the calling thread, which must be the only one to use it.
    pub(crate) fn new(mailbox: RawFd) -> io::Result<Self> {
        let ring = build()?;
        let parameters = ring.params();
        if !parameters.is_feature_ext_arg() || !parameters.is_feature_nodrop() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel's io_uring is older than 5.11",
            ));
        }
        let submitter = ring.submitter();
        submitter.register_restrictions(&mut ALLOWED.map(Restriction::sqe_op))?;
        submitter.register_enable_rings()?;
        let mut engine = Self {
            ring,
            backlog: VecDeque::with_capacity(SUBMISSION_ENTRIES as usize),
            carried: 0,
            mailbox,
            epoch: Instant::now(),
            poll_to_sleep: under_valgrind(),
        };
        engine.backlog.push_back(watch_entry(mailbox, MAILBOX));
        Ok(engine)
    }

    /// Puts an entry where it will be submitted at the end of this pass of the loop.
    #[inline]
    fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() && self.carried < COMPLETION_ENTRIES {
            // SAFETY: as in `fill`.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                self.carried += 1;
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    /// Moves waiting entries to the submission queue as far as there is room. Returns how many wait to be submitted.
    fn fill(&mut self) -> usize {
        let mut queue = self.ring.submission();
        while self.carried < COMPLETION_ENTRIES
            && !queue.is_full()
            && let Some(entry) = self.backlog.pop_front()
        {
            // SAFETY: the entry's buffers and iovecs are owned by its slot, which stays taken until the completion is
            // seen (`Slots::release` is called by nothing else), and on a broken loop is leaked.
            if unsafe { queue.push(&entry) }.is_err() {
                self.backlog.push_front(entry);
                break;
            }
            self.carried += 1;
        }
        queue.len()
    }

    /// One io_uring_enter, if there is a reason for it.
    fn enter(&mut self, wait: Wait) {
        let pending = self.fill();
        let mut wait = wait;
        // Completions that are visible already leave nothing to wait for.
        if !self.ring.completion().is_empty() {
            wait = Wait::No;
        }
        if self.poll_to_sleep && wait != Wait::No {
            self.sleep_in_poll();
            wait = Wait::No;
        }
        let result = match wait {
            Wait::No => {
                let queue = self.ring.submission();
                let asked = queue.taskrun() || queue.cq_overflow();
                drop(queue);
                if pending == 0 && !asked {
                    return;
                }
                self.ring.submitter().submit()
            }
            Wait::Forever => self.ring.submitter().submit_and_wait(1),
            Wait::Until(deadline_ns) => {
                let left = deadline_ns.saturating_sub(self.now());
                let time = Timespec::new()
                    .sec(left / 1_000_000_000)
                    .nsec((left % 1_000_000_000) as u32);
                let arguments = SubmitArgs::new().timespec(&time);
                self.ring.submitter().submit_with_args(1, &arguments)
            }
        };
        match result {
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                // A signal, the deadline, or a full completion queue: look at what there is.
                Some(libc::EINTR | libc::ETIME | libc::EBUSY) => {}
                // The kernel has no memory for the moment.
                Some(libc::EAGAIN) => std::thread::yield_now(),
                _ => panic!("io_uring_enter: {error}"),
            },
        }
    }

    /// Submits, then sleeps a little, or until the ring has something to say.
    fn sleep_in_poll(&mut self) {
        if self.ring.submitter().submit().is_ok() && self.ring.completion().is_empty() {
            // Briefly: the kernel's first wake of a poll on such a ring can get lost.
            sys::sleep_until_readable(self.ring.as_raw_fd(), 1);
        }
    }

    /// Reports every visible completion.
    fn reap(&mut self, tasks: &mut Tasks) {
        let Self {
            ring,
            backlog,
            carried,
            mailbox,
            ..
        } = self;
        for event in ring.completion() {
            let more = cqueue::more(event.flags());
            *carried -= u32::from(!more);
            match event.user_data() {
                CANCELLATION => {}
                MAILBOX if more => {}
                MAILBOX => backlog.push_back(watch_entry(*mailbox, MAILBOX)),
                token => {
                    let token = Token(token);
                    let Some(index) = tasks.slots.resolve(token) else {
                        continue;
                    };
                    let result = i64::from(event.result());
                    if tasks.slots.get(index).work.is_file_operation() {
                        tasks.complete(index, result);
                    } else if let Some(entry) = ended(tasks, index, token, result, more) {
                        backlog.push_back(entry);
                    }
                }
            }
        }
    }
}

/// Valgrind runs one thread at a time and does not know that io_uring_enter may block: a worker asleep there would stop
/// the whole process.
fn under_valgrind() -> bool {
    std::env::var_os("LD_PRELOAD").is_some_and(|list| list.to_string_lossy().contains("vgpreload"))
}

/// A ring whose completions are run by its own thread when it looks for them. Older kernels know fewer flags.
fn build() -> io::Result<IoUring> {
    let common = |builder: &mut io_uring::Builder| {
        builder
            .setup_cqsize(COMPLETION_ENTRIES)
            .setup_r_disabled()
            .dontfork();
    };
    let mut newest = IoUring::builder();
    common(&mut newest);
    newest
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag();
    match newest.build(SUBMISSION_ENTRIES) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let mut oldest = IoUring::builder();
            common(&mut oldest);
            oldest.build(SUBMISSION_ENTRIES)
        }
        result => result,
    }
}

fn watch_entry(fd: RawFd, token: u64) -> squeue::Entry {
    // Every write to the eventfd wakes the poll, whether or not anybody reads the counter: so nobody does.
    opcode::PollAdd::new(Fd(fd), sys::READABLE as u32)
        .multi(true)
        .build()
        .user_data(token)
}

fn poll_entry(slot: &Slot) -> squeue::Entry {
    let events = if slot.work.needs_writable() {
        sys::WRITABLE
    } else {
        sys::READABLE
    };
    opcode::PollAdd::new(Fd(slot.fd), events as u32).build()
}

/// The submission entry of a slot's operation.
fn entry_of(slot: &Slot, token: Token) -> squeue::Entry {
    let fd = Fd(slot.fd);
    let entry = match slot.work {
        Work::Watch => return watch_entry(slot.fd, token.0),
        Work::Op(OpKind::ReadAt(offset)) => read_entry(slot, offset),
        Work::Op(OpKind::ReadStream) => read_entry(slot, u64::MAX),
        Work::Op(OpKind::WriteAt(offset)) => write_entry(slot, offset, 0),
        Work::Op(OpKind::WriteAtDsync(offset)) => write_entry(slot, offset, libc::RWF_DSYNC),
        Work::Op(OpKind::WriteStream) => write_entry(slot, u64::MAX, 0),
        Work::Op(OpKind::DataSync) => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        Work::Op(OpKind::Allocate { mode, offset, len }) => {
            opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build()
        }
        Work::Op(OpKind::PollReadable | OpKind::PollWritable) => poll_entry(slot),
    };
    entry.user_data(token.0)
}

fn read_entry(slot: &Slot, offset: u64) -> squeue::Entry {
    let fd = Fd(slot.fd);
    match slot.buffers.iovecs() {
        [one] => {
            let len = one.iov_len.min(MAX_BYTES) as u32;
            opcode::Read::new(fd, one.iov_base.cast(), len)
                .offset(offset)
                .build()
        }
        ranges => opcode::Readv::new(fd, ranges.as_ptr(), ranges.len().min(MAX_RANGES) as u32)
            .offset(offset)
            .build(),
    }
}

fn write_entry(slot: &Slot, offset: u64, flags: i32) -> squeue::Entry {
    let fd = Fd(slot.fd);
    match slot.buffers.iovecs() {
        [one] => {
            let len = one.iov_len.min(MAX_BYTES) as u32;
            opcode::Write::new(fd, one.iov_base.cast(), len)
                .offset(offset)
                .rw_flags(flags)
                .build()
        }
        ranges => opcode::Writev::new(fd, ranges.as_ptr(), ranges.len().min(MAX_RANGES) as u32)
            .offset(offset)
            .rw_flags(flags)
            .build(),
    }
}

/// Deals with one completion of a slot; may answer with a follow-up entry.
fn ended(tasks: &mut Tasks, index: u32, token: Token, result: i64, more: bool) -> Option<squeue::Entry> {
    let slot = tasks.slots.get_mut(index);
    let cancelling = slot.phase == crate::slots::Phase::Cancelling;
    match slot.work {
        Work::Watch if more => tasks.watch_fired(index),
        Work::Watch if cancelling => tasks.watch_ended(index),
        Work::Watch if result < 0 || result & i64::from(libc::POLLERR | libc::POLLHUP) != 0 => {
            tasks.watch_failed(index, if result < 0 { result } else { -i64::from(libc::EIO) });
        }
        Work::Watch => {
            tasks.watch_fired(index);
            return Some(watch_entry(tasks.slots.get(index).fd, token.0));
        }
        Work::Op(OpKind::PollReadable | OpKind::PollWritable) if result == -i64::from(libc::EINVAL) => {
            // No wait queue to poll (a regular file): whatever it is, it is now.
            let events = if slot.work.needs_writable() {
                sys::WRITABLE
            } else {
                sys::READABLE
            };
            let result = sys::poll_now(slot.fd, events);
            tasks.complete(index, result);
        }
        Work::Op(OpKind::ReadStream | OpKind::WriteStream) if slot.waiting => {
            slot.waiting = false;
            if result < 0 || cancelling {
                tasks.complete(index, if cancelling { CANCELLED } else { result });
            } else {
                return Some(entry_of(tasks.slots.get(index), token));
            }
        }
        Work::Op(OpKind::ReadStream | OpKind::WriteStream) if result == -i64::from(libc::EAGAIN) => {
            if cancelling {
                tasks.complete(index, CANCELLED);
                return None;
            }
            // io_uring does not wait on a non-blocking descriptor by itself.
            slot.waiting = true;
            return Some(poll_entry(tasks.slots.get(index)).user_data(token.0));
        }
        Work::Op(_) => tasks.complete(index, result),
    }
    None
}

impl Engine for Uring {
    fn start(&mut self, tasks: &mut Tasks, index: u32) {
        let token = tasks.slots.token(index);
        self.push(entry_of(tasks.slots.get(index), token));
    }

    fn cancel(&mut self, tasks: &mut Tasks, index: u32) {
        let token = tasks.slots.token(index);
        let entry = opcode::AsyncCancel::new(token.0).build();
        self.push(entry.user_data(CANCELLATION));
    }

    fn wait(&mut self, tasks: &mut Tasks, wait: Wait) {
        self.enter(wait);
        self.reap(tasks);
        // More than the ring holds: hand over the rest now, rather than after the tasks' next turns.
        while !self.backlog.is_empty() && self.carried < COMPLETION_ENTRIES {
            self.enter(Wait::No);
            self.reap(tasks);
        }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Slots outlive a broken ring by being leaked; after an orderly end only the mailbox's poll is left.
        self.backlog.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use io_uring::{opcode, types};

    use super::Uring;
    use crate::sys;

    #[test]
    fn hardening_26_the_ring_refuses_operations_that_workers_do_not_use() {
        let mailbox = sys::eventfd().unwrap();
        let mut engine = match Uring::new(mailbox.as_raw_fd()) {
            Ok(engine) => engine,
            Err(error) => return println!("SKIPPED: no io_uring: {error}"),
        };
        engine.backlog.clear();
        let path = c"/etc/passwd";
        let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
        let socket = opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build();
        for entry in [open, socket] {
            // SAFETY: the path is static; a socket takes no pointers.
            unsafe { engine.ring.submission().push(&entry).unwrap() };
            engine.ring.submit_and_wait(1).unwrap();
            let result = engine.ring.completion().next().unwrap().result();
            assert_eq!(result, -libc::EACCES);
        }
        let refused = engine.ring.submitter().register_files(&[0]);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
}
