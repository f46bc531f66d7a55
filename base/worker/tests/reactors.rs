//! Operations, watches and timers on both reactors.

mod common;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;

use common::{SOON, add, bytes, collector, text, workers};
use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_worker::{Exit, HostOp, OpKind, Progress, ReactorKind, Worker};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn op(fd: i32, kind: OpKind, buffers: IoBuffers) -> HostOp {
    HostOp { fd, kind, buffers }
}

fn temporary(name: &str) -> std::fs::File {
    let path = std::env::temp_dir().join(format!("treaty-worker-{}-{name}", std::process::id()));
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    file
}

#[test]
fn file_operations_move_bytes_and_give_buffers_back() {
    let inline = Worker::start("test", ReactorKind::Inline).unwrap();
    for worker in workers().into_iter().chain([inline]) {
        let file = temporary("ops");
        let fd = file.as_raw_fd();
        let (sender, done) = channel();
        let steps = [
            op(fd, OpKind::WriteAt(4096), text(b"hello")),
            op(fd, OpKind::WriteAtDsync(4101), text(b" disk")),
            op(fd, OpKind::DataSync, IoBuffers::new()),
            op(fd, OpKind::ReadAt(4096), text(&[0; 64])),
            op(
                fd,
                OpKind::Allocate {
                    mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    offset: 0,
                    len: 8192,
                },
                IoBuffers::new(),
            ),
            op(fd, OpKind::ReadAt(4096), text(&[1; 5])),
            op(-1, OpKind::ReadAt(0), text(&[0; 1])),
        ];
        let (mut steps, mut key) = (steps.into_iter(), 0);
        let (_, exits) = add(
            &worker.handle(),
            |_| {},
            move |turn| {
                while let Some(completion) = turn.next_completion() {
                    sender.send(completion).unwrap();
                }
                if turn.in_flight() == 0 {
                    let Some(step) = steps.next() else {
                        return Progress::Finished;
                    };
                    turn.submit(step, key);
                    key += 1;
                }
                Progress::Idle
            },
        );
        assert!(matches!(exits.recv_timeout(SOON), Ok(Exit::Finished(_))));
        let results = done.try_iter().map(|c| (c.key, c.result.ok(), bytes(&c.buffers)));
        let results: Vec<_> = results.collect();
        assert_eq!(results[0], (0, Some(5), b"hello".to_vec()));
        assert_eq!(results[1].1, Some(5));
        assert_eq!(results[2].1, Some(0));
        assert_eq!(results[3].1, Some(10), "a short read: the file ends there");
        assert_eq!(&results[3].2[..10], b"hello disk");
        assert_eq!(results[4].1, Some(0));
        assert_eq!(results[5], (5, Some(5), vec![0; 5]));
        assert_eq!(results[6].1, None, "a bad descriptor is an error, not a panic");
    }
}

#[test]
fn streams_wait_for_their_peer_blocking_or_not() {
    for worker in workers() {
        for nonblocking in [true, false] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(nonblocking).unwrap();
            let fd = ours.as_raw_fd();
            let (sender, done) = channel();
            let (id, exits) = add(
                &worker.handle(),
                move |turn| {
                    turn.submit(op(fd, OpKind::PollReadable, IoBuffers::new()), 1);
                    turn.submit(op(fd, OpKind::ReadStream, text(&[0; 8])), 2);
                    turn.submit(op(fd, OpKind::PollWritable, IoBuffers::new()), 3);
                    turn.submit(op(fd, OpKind::WriteStream, text(b"to them")), 4);
                },
                collector(sender),
            );
            let mut answer = [0; 7];
            theirs.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"to them");
            theirs.write_all(b"to us").unwrap();
            let mut results: Vec<_> = (0..4).map(|_| done.recv_timeout(SOON).unwrap()).collect();
            results.sort_by_key(|completion| completion.key);
            assert!(matches!(results[0].result, Ok(mask) if mask & 1 != 0));
            assert!(matches!(results[1].result, Ok(5)));
            assert_eq!(&bytes(&results[1].buffers)[..5], b"to us");
            assert!(matches!(results[2].result, Ok(mask) if mask & 4 != 0));
            assert!(matches!(results[3].result, Ok(7)));
            worker.handle().stop(id);
            assert!(matches!(exits.recv_timeout(SOON), Ok(Exit::Finished(_))));
        }
    }
}

#[test]
fn polling_a_regular_file_is_ready_at_once() {
    for worker in workers() {
        let file = temporary("poll");
        let fd = file.as_raw_fd();
        let (sender, done) = channel();
        let (_id, _exits) = add(
            &worker.handle(),
            move |turn| {
                turn.submit(op(fd, OpKind::PollReadable, IoBuffers::new()), 0);
                turn.submit(op(fd, OpKind::WriteStream, text(b"log line")), 1);
            },
            collector(sender),
        );
        for _ in 0..2 {
            let completion = done.recv_timeout(SOON).unwrap();
            assert!(completion.result.unwrap() > 0);
        }
        drop(worker);
        let mut log = [0; 8];
        assert_eq!(
            std::os::unix::fs::FileExt::read_at(&file, &mut log, 0).unwrap(),
            8
        );
        assert_eq!(&log, b"log line");
    }
}

#[test]
fn stop_cancels_waits_and_streams_and_the_task_drains() {
    for worker in workers() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let fd = ours.as_raw_fd();
        let (sender, done) = channel();
        let (id, exits) = add(
            &worker.handle(),
            move |turn| {
                turn.submit(op(fd, OpKind::PollReadable, IoBuffers::new()), 1);
                turn.submit(op(fd, OpKind::ReadStream, text(&[0; 8])), 2);
            },
            collector(sender),
        );
        worker.handle().stop(id);
        assert!(matches!(exits.recv_timeout(SOON), Ok(Exit::Finished(_))));
        let mut ends: Vec<_> = done.try_iter().collect();
        ends.sort_by_key(|completion| completion.key);
        assert_eq!(ends.len(), 2);
        for end in ends {
            assert_eq!(end.result.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
        }
        drop(theirs);
    }
}

#[test]
fn every_ring_of_a_watched_doorbell_gives_a_turn() {
    for worker in workers() {
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        let fd = doorbell.as_raw_fd();
        let (sender, turns) = channel();
        let (id, exits) = add(
            &worker.handle(),
            move |turn| turn.watch_eventfd(fd),
            move |turn| {
                if turn.stopping() {
                    return Progress::Finished;
                }
                let _ = sender.send(());
                Progress::Idle
            },
        );
        turns.recv_timeout(SOON).unwrap();
        for _ in 0..500 {
            while turns.try_recv().is_ok() {}
            doorbell.write(1).unwrap();
            turns.recv_timeout(SOON).unwrap();
        }
        worker.handle().stop(id);
        assert!(matches!(exits.recv_timeout(SOON), Ok(Exit::Finished(_))));
    }
}

#[test]
fn a_timer_is_never_early_and_comes_once() {
    for worker in workers() {
        let (sender, turns) = channel();
        let mut asked = None;
        let (_id, exits) = add(
            &worker.handle(),
            |_| {},
            move |turn| {
                let now = turn.now();
                match asked {
                    None => {
                        turn.wake_at(now + 3_000_000);
                        asked = Some(now);
                        Progress::Idle
                    }
                    Some(then) => {
                        let _ = sender.send(now - then);
                        Progress::Finished
                    }
                }
            },
        );
        assert!(turns.recv_timeout(SOON).unwrap() >= 3_000_000);
        assert!(matches!(exits.recv_timeout(SOON), Ok(Exit::Finished(_))));
    }
}

#[test]
fn more_operations_than_the_ring_holds_all_complete() {
    for worker in workers() {
        let file = temporary("many");
        file.set_len(4096).unwrap();
        let fd = file.as_raw_fd();
        let (sender, done) = channel();
        let block = AlignedBlock::new(4096, 4096);
        let (_id, _exits) = add(
            &worker.handle(),
            move |turn| {
                for key in 0..20_000 {
                    turn.submit(op(fd, OpKind::ReadAt(0), block.buffers()), key);
                }
            },
            collector(sender),
        );
        let mut seen = vec![false; 20_000];
        for _ in 0..20_000 {
            let completion = done.recv_timeout(SOON).unwrap();
            assert!(matches!(completion.result, Ok(4096)));
            assert!(
                !std::mem::replace(&mut seen[completion.key as usize], true),
                "twice"
            );
        }
    }
}
