use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Instant;

use crate::OpKind;
use crate::engine::{Engine, Wait};
use crate::pool::Pool;
use crate::slots::{Phase, Token, Work};
use crate::sys::{self, EpollFd, READABLE, WRITABLE};
use crate::tasks::Tasks;

/// Events taken from the kernel at once.
const EVENTS: usize = 64;

const CANCELLED: i64 = -(libc::ECANCELED as i64);

/// What an event is about, in the two top bits of its data; the rest is a descriptor or a slot's index.
const KIND: u64 = 3 << 62;
const BELL: u64 = 0;
const WATCH: u64 = 1 << 62;
const READY: u64 = 2 << 62;

/// The fallback where the kernel has no io_uring (or forbids it).
///
/// Streams are read and written on the worker's thread when they are ready. File operations that may wait for a disk go
/// to helper threads, so that one slow disk does not stop the worker's other tasks; a read that the page cache can
/// answer is done at once.
pub(crate) struct Epoll {
    epoll: EpollFd,
    events: Vec<libc::epoll_event>,
    /// Slots that wait for a descriptor. Entries stay (empty) for the next wait on the same descriptor.
    waiting: HashMap<RawFd, Vec<u32>>,
    /// The duplicate that is registered for a watch, by slot. A watch has its own registration, so that operations on
    /// the same descriptor do not disturb it.
    watches: HashMap<u32, OwnedFd>,
    pool: Pool,
    /// File operations are done at once, whether they wait or not.
    inline: bool,
    epoch: Instant,
}

impl Epoll {
    pub(crate) fn new(name: &str, mailbox: RawFd, inline: bool) -> io::Result<Self> {
        let epoll = EpollFd::new()?;
        let pool = Pool::new(name)?;
        // Edge-triggered: every write to the eventfd is an event, whether or not anybody reads the counter.
        let events = (libc::EPOLLIN | libc::EPOLLET) as u32;
        epoll.control(libc::EPOLL_CTL_ADD, mailbox, events, BELL)?;
        epoll.control(libc::EPOLL_CTL_ADD, pool.fd(), events, BELL)?;
        Ok(Self {
            epoll,
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS],
            waiting: HashMap::new(),
            watches: HashMap::new(),
            pool,
            inline,
            epoch: Instant::now(),
        })
    }

    fn watch(&mut self, tasks: &mut Tasks, index: u32) {
        let fd = tasks.slots.get(index).fd;
        let registered = sys::duplicate(fd).and_then(|twin| {
            let events = (libc::EPOLLIN | libc::EPOLLET) as u32;
            self.epoll.control(
                libc::EPOLL_CTL_ADD,
                twin.as_raw_fd(),
                events,
                WATCH | u64::from(index),
            )?;
            Ok(twin)
        });
        match registered {
            Ok(twin) => {
                self.watches.insert(index, twin);
            }
            Err(error) => tasks.watch_failed(index, -i64::from(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }

    /// Reads or writes a stream, or waits until it is ready.
    fn stream(&mut self, tasks: &mut Tasks, index: u32, kind: OpKind) {
        let slot = tasks.slots.get(index);
        let fd = slot.fd;
        let result = sys::transfer_now(fd, kind, &slot.buffers);
        if !blocked(result) {
            return tasks.complete(index, result);
        }
        if result != -i64::from(libc::EAGAIN) || sys::is_file(fd) {
            // It cannot say whether it would block: ask, then trust the answer.
            let events = if slot.work.needs_writable() {
                WRITABLE
            } else {
                READABLE
            };
            if sys::is_file(fd) {
                return self.send_to_pool(tasks, index, kind);
            }
            if sys::poll_now(fd, events) > 0 {
                let result = sys::execute(fd, kind, &slot.buffers);
                if result != -i64::from(libc::EAGAIN) {
                    return tasks.complete(index, result);
                }
            }
        }
        self.wait_ready(tasks, index);
    }

    fn send_to_pool(&mut self, tasks: &mut Tasks, index: u32, kind: OpKind) {
        let token = tasks.slots.token(index);
        let slot = tasks.slots.get_mut(index);
        let buffers = std::mem::take(&mut slot.buffers);
        self.pool.send(token, slot.fd, kind, buffers);
    }

    fn wait_ready(&mut self, tasks: &mut Tasks, index: u32) {
        let slot = tasks.slots.get_mut(index);
        slot.waiting = true;
        let fd = slot.fd;
        self.waiting.entry(fd).or_default().push(index);
        if let Err(error) = self.arm(tasks, fd) {
            self.waiting
                .entry(fd)
                .or_default()
                .retain(|&other| other != index);
            // What cannot be polled is always ready.
            let result = match error.raw_os_error() {
                Some(libc::EPERM) => i64::from(if tasks.slots.get(index).work.needs_writable() {
                    WRITABLE
                } else {
                    READABLE
                }),
                other => -i64::from(other.unwrap_or(libc::EIO)),
            };
            tasks.complete(index, result);
        }
    }

    /// Asks for one event when the descriptor is ready for any of its waiting slots.
    fn arm(&mut self, tasks: &Tasks, fd: RawFd) -> io::Result<()> {
        let waiting = self.waiting.get(&fd).map_or(&[][..], Vec::as_slice);
        let mut events = libc::EPOLLONESHOT as u32;
        for &index in waiting {
            let writable = tasks.slots.get(index).work.needs_writable();
            events |= if writable { libc::EPOLLOUT } else { libc::EPOLLIN } as u32;
        }
        // A descriptor that was closed since has left the epoll set by itself.
        let data = READY | fd as u32 as u64;
        match self.epoll.control(libc::EPOLL_CTL_MOD, fd, events, data) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                self.epoll.control(libc::EPOLL_CTL_ADD, fd, events, data)
            }
            result => result,
        }
    }

    /// Goes on with the slots that waited for a descriptor.
    fn ready(&mut self, tasks: &mut Tasks, fd: RawFd, mask: u32) {
        let errors = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
        let mut left = self.waiting.get(&fd).map_or(0, Vec::len);
        let mut position = 0;
        while left > 0 {
            left -= 1;
            let Some(waiting) = self.waiting.get_mut(&fd) else {
                return;
            };
            let index = waiting[position];
            let slot = tasks.slots.get_mut(index);
            let wanted = if slot.work.needs_writable() {
                libc::EPOLLOUT
            } else {
                libc::EPOLLIN
            } as u32;
            if mask & (wanted | errors) == 0 {
                position += 1;
                continue;
            }
            waiting.remove(position);
            slot.waiting = false;
            match slot.work {
                Work::Op(kind @ (OpKind::ReadStream | OpKind::WriteStream)) => {
                    self.stream(tasks, index, kind)
                }
                _ => tasks.complete(index, i64::from(mask)),
            }
        }
        if position > 0 && self.arm(tasks, fd).is_err() {
            tracing::error!(fd, "a descriptor was closed while operations waited for it");
        }
    }

    /// Whole milliseconds until the deadline, rounded up: a timer is never early.
    fn timeout_ms(&self, wait: Wait) -> i32 {
        match wait {
            Wait::No => 0,
            Wait::Forever => -1,
            Wait::Until(deadline_ns) => {
                let left = deadline_ns.saturating_sub(self.now());
                i32::try_from(left.div_ceil(1_000_000)).unwrap_or(i32::MAX)
            }
        }
    }
}

/// True if a non-blocking attempt was refused rather than answered.
fn blocked(result: i64) -> bool {
    [libc::EAGAIN, libc::EOPNOTSUPP, libc::EINVAL]
        .iter()
        .any(|&errno| result == -i64::from(errno))
}

impl Engine for Epoll {
    fn start(&mut self, tasks: &mut Tasks, index: u32) {
        let slot = tasks.slots.get(index);
        match slot.work {
            Work::Watch => self.watch(tasks, index),
            Work::Op(OpKind::PollReadable | OpKind::PollWritable) => self.wait_ready(tasks, index),
            Work::Op(kind @ (OpKind::ReadStream | OpKind::WriteStream)) => self.stream(tasks, index, kind),
            Work::Op(kind) if self.inline => {
                let result = sys::execute(slot.fd, kind, &slot.buffers);
                tasks.complete(index, result);
            }
            Work::Op(kind @ OpKind::ReadAt(_)) => {
                let result = sys::transfer_now(slot.fd, kind, &slot.buffers);
                if blocked(result) {
                    self.send_to_pool(tasks, index, kind);
                } else {
                    tasks.complete(index, result);
                }
            }
            Work::Op(kind) => self.send_to_pool(tasks, index, kind),
        }
    }

    fn cancel(&mut self, tasks: &mut Tasks, index: u32) {
        let slot = tasks.slots.get(index);
        if slot.work == Work::Watch {
            if let Some(twin) = self.watches.remove(&index) {
                // Closing it would do, unless somebody else has the file open; an explicit removal always does.
                let _ = self.epoll.control(libc::EPOLL_CTL_DEL, twin.as_raw_fd(), 0, 0);
            }
            return tasks.watch_ended(index);
        }
        if slot.waiting {
            if let Some(waiting) = self.waiting.get_mut(&slot.fd) {
                waiting.retain(|&other| other != index);
            }
            tasks.complete(index, CANCELLED);
        }
        // What a helper thread has is bounded by the disk: it is waited for.
    }

    fn wait(&mut self, tasks: &mut Tasks, wait: Wait) {
        let mut events = std::mem::take(&mut self.events);
        let count = self.epoll.wait(&mut events, self.timeout_ms(wait));
        for event in &events[..count] {
            let (mask, data) = (event.events, event.u64);
            match data & KIND {
                WATCH => {
                    let index = data as u32;
                    // An event taken from the kernel before the watch was removed in this very pass is stale.
                    if self.watches.contains_key(&index) {
                        tasks.watch_fired(index);
                    }
                }
                READY => self.ready(tasks, data as u32 as RawFd, mask),
                _ => {}
            }
        }
        self.events = events;
        for (Token(token), result, buffers) in self.pool.take_done() {
            if let Some(index) = tasks.slots.resolve(Token(token)) {
                let slot = tasks.slots.get_mut(index);
                debug_assert!(slot.phase != Phase::Ended);
                slot.buffers = buffers;
                tasks.complete(index, result);
            }
        }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}
