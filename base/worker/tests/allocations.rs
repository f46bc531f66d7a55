//! The steady path allocates nothing.
#![allow(unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use common::{SOON, add, workers};
use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_worker::{HostOp, OpKind, Progress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Turns before counting starts, and turns counted.
const WARM_UP: usize = 200;
const COUNTED: usize = 2000;

#[test]
fn an_operation_allocates_nothing_once_warm() {
    for worker in workers() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let fd = file.as_raw_fd();
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        let bell = doorbell.as_raw_fd();
        let block = AlignedBlock::new(4096, 4096);
        let mut spare: Vec<IoBuffers> = (0..32).map(|_| block.buffers()).collect();
        let (sender, counts) = channel();
        let (mut turns, mut before) = (0, 0);
        let (_id, _exit) = add(
            &worker.handle(),
            move |turn| turn.watch_eventfd(bell),
            move |turn| {
                while let Some(completion) = turn.next_completion() {
                    assert!(matches!(completion.result, Ok(4096)));
                    spare.push(completion.buffers);
                }
                turns += 1;
                if turns == WARM_UP {
                    before = ALLOCATIONS.load(Ordering::Relaxed);
                }
                if turns >= WARM_UP + COUNTED {
                    if turns == WARM_UP + COUNTED {
                        let after = ALLOCATIONS.load(Ordering::Relaxed);
                        sender.send(after - before).unwrap();
                    }
                    let drained = turn.in_flight() == 0;
                    return if drained {
                        Progress::Finished
                    } else {
                        Progress::Idle
                    };
                }
                while let Some(buffers) = spare.pop() {
                    let kind = OpKind::ReadAt(0);
                    turn.submit(HostOp { fd, kind, buffers }, 1);
                }
                doorbell.write(1).unwrap();
                turn.wake_at(turn.now() + 1000);
                Progress::Idle
            },
        );
        let count = counts.recv_timeout(SOON).unwrap();
        assert_eq!(count, 0, "{:?} allocates", worker.reactor());
    }
}
