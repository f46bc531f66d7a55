//! Starting, stopping, failing and leaving, on every reactor.

mod common;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use common::{SOON, add, collector, failure, text, workers};
use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_worker::{Exit, HostOp, OpKind, Progress, ReactorKind, Task, Turn, Worker};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn op(fd: i32, kind: OpKind, buffers: IoBuffers) -> HostOp {
    HostOp { fd, kind, buffers }
}

/// Buffers that say whether anybody still has them.
fn tracked() -> (IoBuffers, std::sync::Weak<AlignedBlock>) {
    let block = Arc::new(AlignedBlock::new(4096, 4096));
    let mut buffers = block.buffers();
    let weak = Arc::downgrade(&block);
    buffers.set_owner(block);
    (buffers, weak)
}

#[test]
fn hardening_29_a_panicking_task_fails_alone_and_is_drained_first() {
    for worker in workers() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fd = ours.as_raw_fd();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let file_fd = file.as_raw_fd();
        let (buffers, owner) = tracked();
        let (more, file_owner) = tracked();
        let mut buffers = Some((buffers, more));
        let (_, neighbour) = {
            let mut turns = 0;
            add(
                &worker.handle(),
                |_| {},
                move |turn| {
                    turns += 1;
                    turn.wake_at(turn.now() + 100_000);
                    if turns == 50 {
                        Progress::Finished
                    } else {
                        Progress::Idle
                    }
                },
            )
        };
        let (_id, exits) = add(
            &worker.handle(),
            move |turn| turn.watch_eventfd(fd),
            move |turn| {
                let (stream, more) = buffers.take().unwrap();
                turn.submit(op(fd, OpKind::ReadStream, stream), 1);
                turn.submit(op(fd, OpKind::PollReadable, IoBuffers::new()), 2);
                turn.submit(op(file_fd, OpKind::ReadAt(0), more), 3);
                panic!("guest said {}", 42);
            },
        );
        assert_eq!(failure(exits.recv_timeout(SOON).unwrap()), "guest said 42");
        assert_eq!(owner.strong_count() + file_owner.strong_count(), 0, "drained");
        assert!(matches!(neighbour.recv_timeout(SOON), Ok(Exit::Finished(_))));
        drop((theirs, file));
    }
}

#[test]
fn hardening_29_panics_in_start_drop_and_exit_callback_end_nothing_else() {
    struct Bomb(bool);
    impl Task for Bomb {
        fn start(&mut self, _: &mut Turn<'_>) {
            assert!(!self.0, "in start");
        }
        fn turn(&mut self, _: &mut Turn<'_>) -> Progress {
            panic!("in turn");
        }
    }
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    for worker in workers() {
        for at_start in [true, false] {
            let (sender, exits) = channel();
            worker.handle().add(
                Box::new(Bomb(at_start)),
                Box::new(move |exit| {
                    sender.send(failure(exit)).unwrap();
                    panic!("in the exit callback");
                }),
            );
            let expected = if at_start { "in start" } else { "in turn" };
            assert_eq!(exits.recv_timeout(SOON).unwrap(), expected);
        }
        let (_, alive) = add(&worker.handle(), |_| {}, |_| Progress::Finished);
        assert!(matches!(alive.recv_timeout(SOON), Ok(Exit::Finished(_))));
    }
}

#[test]
fn hardening_03_a_task_leaves_only_when_its_operations_have_ended() {
    for worker in workers() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fd = ours.as_raw_fd();
        let (buffers, owner) = tracked();
        let mut buffers = Some(buffers);
        let (sender, exits) = channel();
        let finisher = common::Script {
            start: |_: &mut Turn<'_>| {},
            turn: move |turn: &mut Turn<'_>| {
                // Wrong: it does not drain. The worker does it.
                turn.submit(op(fd, OpKind::ReadStream, buffers.take().unwrap()), 1);
                Progress::Finished
            },
        };
        worker.handle().add(
            Box::new(finisher),
            Box::new(move |exit| sender.send((owner.strong_count(), exit)).unwrap()),
        );
        let (users, exit) = exits.recv_timeout(SOON).unwrap();
        assert_eq!(users, 0, "nobody has the buffer at the exit");
        assert!(matches!(exit, Exit::Finished(_)));
        drop(theirs);
    }
}

#[test]
fn hardening_03_stopping_under_load_loses_no_completion() {
    for worker in workers() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let fd = file.as_raw_fd();
        for _ in 0..20 {
            let counts = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
            let seen = counts.clone();
            let (started, running) = channel();
            let block = AlignedBlock::new(65536, 4096);
            let (id, exits) = add(
                &worker.handle(),
                |_| {},
                move |turn| {
                    while turn.next_completion().is_some() {
                        seen.1.fetch_add(1, Ordering::Relaxed);
                    }
                    if turn.stopping() {
                        return if turn.in_flight() == 0 {
                            Progress::Finished
                        } else {
                            Progress::Idle
                        };
                    }
                    while turn.in_flight() < 64 {
                        turn.submit(op(fd, OpKind::ReadAt(0), block.buffers()), 0);
                        seen.0.fetch_add(1, Ordering::Relaxed);
                    }
                    let _ = started.send(());
                    Progress::More
                },
            );
            running.recv_timeout(SOON).unwrap();
            worker.handle().stop(id);
            assert!(matches!(exits.recv_timeout(SOON), Ok(Exit::Finished(_))));
            assert_eq!(counts.0.load(Ordering::Relaxed), counts.1.load(Ordering::Relaxed));
        }
    }
}

#[test]
fn every_exit_callback_is_called_exactly_once() {
    for worker in workers() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let exits = Arc::new(Mutex::new(Vec::new()));
        let handle = worker.handle();
        let fd = ours.as_raw_fd();
        let add = |name: &'static str| {
            let exits = exits.clone();
            let (sender, _) = channel();
            let task = common::Script {
                start: move |turn: &mut Turn<'_>| {
                    turn.submit(op(fd, OpKind::ReadStream, text(&[0; 8])), 1);
                },
                turn: collector(sender),
            };
            let on_exit = Box::new(move |exit: Exit| {
                let finished = matches!(exit, Exit::Finished(_));
                exits.lock().unwrap().push((name, finished));
            });
            handle.add(Box::new(task), on_exit)
        };
        let stopped = add("stopped");
        let left = add("left behind");
        handle.stop(stopped);
        handle.stop(stopped);
        drop(worker);
        handle.stop(stopped);
        handle.wake(left);
        add("too late");
        let mut exits = exits.lock().unwrap().clone();
        exits.sort_unstable();
        assert_eq!(
            exits,
            [("left behind", true), ("stopped", true), ("too late", false)]
        );
        drop(theirs);
    }
}

#[test]
fn a_worker_may_be_dropped_by_an_exit_callback_of_its_own() {
    for worker in workers() {
        let handle = worker.handle();
        let (sender, done) = channel();
        handle.add(
            Box::new(common::Script {
                start: |_: &mut Turn<'_>| {},
                turn: |_: &mut Turn<'_>| Progress::Finished,
            }),
            Box::new(move |_| {
                drop(worker);
                sender.send(()).unwrap();
            }),
        );
        done.recv_timeout(SOON).unwrap();
    }
}

#[test]
fn hardening_34_a_busy_task_does_not_starve_its_neighbour() {
    for worker in workers() {
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = turns.clone();
        let (busy, busy_exit) = add(
            &worker.handle(),
            |_| {},
            move |turn| {
                counted.fetch_add(1, Ordering::Relaxed);
                if turn.stopping() {
                    Progress::Finished
                } else {
                    Progress::More
                }
            },
        );
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        let fd = doorbell.as_raw_fd();
        let (sender, served) = channel();
        let (id, _exit) = add(
            &worker.handle(),
            move |turn| turn.watch_eventfd(fd),
            move |turn| {
                let _ = sender.send(());
                if turn.stopping() {
                    Progress::Finished
                } else {
                    Progress::Idle
                }
            },
        );
        for _ in 0..200 {
            while served.try_recv().is_ok() {}
            doorbell.write(1).unwrap();
            served.recv_timeout(SOON).expect("the neighbour got no turn");
        }
        worker.handle().stop(id);
        worker.handle().stop(busy);
        assert!(matches!(busy_exit.recv_timeout(SOON), Ok(Exit::Finished(_))));
        assert!(turns.load(Ordering::Relaxed) > 0);
    }
}

#[test]
fn an_idle_task_gets_no_turns_without_a_reason() {
    for worker in workers() {
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        let fd = doorbell.as_raw_fd();
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = turns.clone();
        let (sender, served) = channel();
        let (_id, _exit) = add(
            &worker.handle(),
            move |turn| turn.watch_eventfd(fd),
            move |turn| {
                counted.fetch_add(1, Ordering::Relaxed);
                let _ = sender.send(());
                if turn.stopping() {
                    Progress::Finished
                } else {
                    Progress::Idle
                }
            },
        );
        served.recv_timeout(SOON).unwrap();
        for _ in 0..100 {
            doorbell.write(1).unwrap();
            served.recv_timeout(SOON).unwrap();
        }
        // A second task's life passes through the same loop many times; the first must sleep through it.
        let mut left = 1000;
        let (_, exit) = add(
            &worker.handle(),
            |_| {},
            move |_| {
                left -= 1;
                if left == 0 {
                    Progress::Finished
                } else {
                    Progress::More
                }
            },
        );
        assert!(matches!(exit.recv_timeout(SOON), Ok(Exit::Finished(_))));
        assert!(turns.load(Ordering::Relaxed) <= 102);
    }
}

#[test]
fn no_wake_is_lost_between_a_turn_and_the_sleep_after_it() {
    for worker in workers() {
        let jobs = Arc::new(Mutex::new(Vec::new()));
        let inbox = jobs.clone();
        let (sender, answers) = channel();
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        let fd = doorbell.as_raw_fd();
        let (id, _exit) = add(
            &worker.handle(),
            move |turn| turn.watch_eventfd(fd),
            move |turn| {
                for job in std::mem::take(&mut *inbox.lock().unwrap()) {
                    let _ = sender.send(job);
                }
                if turn.stopping() {
                    Progress::Finished
                } else {
                    Progress::Idle
                }
            },
        );
        let handle = worker.handle();
        for round in 0..20_000u32 {
            jobs.lock().unwrap().push(round);
            if round % 2 == 0 {
                handle.wake(id);
            } else {
                doorbell.write(1).unwrap();
            }
            assert_eq!(answers.recv_timeout(SOON).expect("a lost wake"), round);
        }
    }
}

#[test]
fn a_task_that_always_has_more_sees_its_completions() {
    for worker in workers() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let fd = file.as_raw_fd();
        let (_, exits) = add(
            &worker.handle(),
            move |turn| turn.submit(op(fd, OpKind::ReadAt(0), text(&[0; 16])), 5),
            |turn| match turn.next_completion() {
                Some(completion) => {
                    assert_eq!(completion.key, 5);
                    Progress::Finished
                }
                None => Progress::More,
            },
        );
        assert!(matches!(exits.recv_timeout(SOON), Ok(Exit::Finished(_))));
    }
}

#[test]
fn a_descriptor_that_cannot_be_watched_fails_its_task() {
    for worker in workers() {
        let (_, exits) = add(
            &worker.handle(),
            |turn| turn.watch_eventfd(-1),
            |_| Progress::Idle,
        );
        let text = failure(exits.recv_timeout(SOON).unwrap());
        assert!(text.contains("cannot watch"), "{text}");
    }
}

#[test]
fn a_worker_says_which_reactor_it_has() {
    let worker = Worker::start("test", ReactorKind::Epoll).unwrap();
    assert_eq!(worker.reactor(), ReactorKind::Epoll);
    let worker = Worker::start("test", ReactorKind::Auto).unwrap();
    assert_ne!(worker.reactor(), ReactorKind::Auto);
}
