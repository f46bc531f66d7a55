//! Workers that look on instead of sleeping, on every reactor.

mod common;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use common::{SOON, add};
use treaty_worker::{Exit, Poll, Progress, ReactorKind, Worker, WorkerOptions};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn workers(poll: Poll) -> Vec<Worker> {
    let start = |reactor| {
        let options = WorkerOptions {
            reactor,
            poll,
            cpu: Some(0),
        };
        match Worker::start_with("test", options) {
            Ok(worker) => Some(worker),
            Err(error) => {
                println!("SKIPPED: {reactor:?}: {error}");
                None
            }
        }
    };
    [ReactorKind::Uring, ReactorKind::Epoll]
        .into_iter()
        .filter_map(start)
        .collect()
}

#[test]
fn a_polling_task_finds_what_nobody_tells_it() {
    for worker in workers(Poll::Always) {
        let (flag, (seen, done)) = (Arc::new(AtomicBool::new(false)), channel());
        let of_task = flag.clone();
        let (id, exits) = add(
            &worker.handle(),
            |_| {},
            move |turn| {
                if turn.stopping() {
                    return Progress::Finished;
                }
                assert!(turn.polling());
                if of_task.swap(false, Ordering::AcqRel) {
                    let _ = seen.send(());
                    return Progress::More;
                }
                Progress::Polling
            },
        );
        for _ in 0..10 {
            flag.store(true, Ordering::Release);
            done.recv_timeout(SOON).unwrap();
        }
        worker.handle().stop(id);
        assert!(matches!(exits.recv_timeout(SOON), Ok(Exit::Finished(_))));
    }
}

/// However long a budget is, each time it is spent the task gets a turn in which it arms; nothing is lost in between.
#[test]
fn an_adaptive_worker_arms_before_it_sleeps() {
    const BELLS: usize = 2000;
    for worker in workers(Poll::Adaptive { max_us: 50 }) {
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        let (offered, armed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
        let polled = Arc::new(AtomicUsize::new(0));
        let (seen, done) = channel();
        let (fd, of_task, of_polled) = (bell.as_raw_fd(), (offered.clone(), armed.clone()), polled.clone());
        let mut taken = 0;
        let (id, exits) = add(
            &worker.handle(),
            move |turn| turn.watch_eventfd(fd),
            move |turn| {
                let (offered, armed) = &of_task;
                if turn.stopping() {
                    return Progress::Finished;
                }
                armed.store(false, Ordering::SeqCst);
                let now = offered.load(Ordering::SeqCst);
                if std::mem::replace(&mut taken, now) != now {
                    let _ = seen.send(now);
                    return Progress::More;
                }
                if turn.polling() {
                    of_polled.fetch_add(1, Ordering::Relaxed);
                    return Progress::Polling;
                }
                armed.store(true, Ordering::SeqCst);
                if offered.load(Ordering::SeqCst) == taken {
                    Progress::Idle
                } else {
                    Progress::More
                }
            },
        );
        for bell_number in 1..=BELLS {
            offered.store(bell_number, Ordering::SeqCst);
            if armed.load(Ordering::SeqCst) {
                bell.write(1).unwrap();
            }
            while done.recv_timeout(SOON).expect("lost a bell") < bell_number {}
        }
        println!(
            "{} of {BELLS} rounds found nothing while polling",
            polled.load(Ordering::Relaxed)
        );
        worker.handle().stop(id);
        assert!(matches!(exits.recv_timeout(SOON), Ok(Exit::Finished(_))));
    }
}

#[test]
fn tasks_without_polling_are_served_beside_one_that_polls() {
    for worker in workers(Poll::Always) {
        let (_, _polling) = add(
            &worker.handle(),
            |_| {},
            |turn| {
                if turn.stopping() {
                    Progress::Finished
                } else {
                    Progress::Polling
                }
            },
        );
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        let (fd, (seen, done)) = (bell.as_raw_fd(), channel());
        let (_, _idle) = add(
            &worker.handle(),
            move |turn| turn.watch_eventfd(fd),
            move |turn| {
                if turn.stopping() {
                    return Progress::Finished;
                }
                let _ = seen.send(());
                Progress::Idle
            },
        );
        for _ in 0..3 {
            done.recv_timeout(SOON).unwrap();
            bell.write(1).unwrap();
        }
    }
}
