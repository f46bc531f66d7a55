//! Random lives of tasks on the simulated worker: whatever the host does, nothing is lost and nobody leaves too early.

mod common;

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_worker::sim::{Faults, Random, Sim, run_seeds};
use treaty_worker::{Exit, HostOp, OpKind, Progress, Task, TaskId, Turn, WorkerHandle};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What a task has done and how it ended.
#[derive(Default)]
struct Life {
    submitted: u64,
    completed: u64,
    exits: Vec<Result<(), String>>,
}

/// Submits at random, may panic, may leave without draining.
struct Wild {
    random: Random,
    fd: i32,
    doorbell: EventFd,
    life: Arc<Mutex<Life>>,
    block: Arc<AlignedBlock>,
    /// How it ends: by draining, by a panic, or by leaving at once.
    ending: u64,
}

impl Wild {
    fn op(&mut self) -> HostOp {
        let mut buffers = self.block.buffers();
        // The block itself is the owner, so that its users can be counted.
        buffers.set_owner(self.block.clone());
        let offset = self.random.below(8) * 4096;
        let kind = match self.random.below(5) {
            0 => OpKind::ReadAt(offset),
            1 => OpKind::WriteAt(offset),
            2 => OpKind::DataSync,
            3 => OpKind::PollReadable,
            _ => OpKind::ReadStream,
        };
        let fd = match kind {
            OpKind::PollReadable | OpKind::ReadStream => self.doorbell.as_raw_fd(),
            _ => self.fd,
        };
        if !matches!(kind, OpKind::ReadAt(_) | OpKind::WriteAt(_) | OpKind::ReadStream) {
            buffers = IoBuffers::new();
        }
        HostOp { fd, kind, buffers }
    }
}

impl Task for Wild {
    fn start(&mut self, turn: &mut Turn<'_>) {
        turn.watch_eventfd(self.doorbell.as_raw_fd());
    }

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        while turn.next_completion().is_some() {
            self.life.lock().unwrap().completed += 1;
        }
        if turn.stopping() {
            match self.ending {
                0 => panic!("wild"),
                1 => return Progress::Finished,
                _ if turn.in_flight() == 0 => return Progress::Finished,
                _ => return Progress::Idle,
            }
        }
        for _ in 0..self.random.below(4) {
            let (op, key) = (self.op(), self.random.next_u64());
            turn.submit(op, key);
            self.life.lock().unwrap().submitted += 1;
        }
        if self.random.chance(100) {
            turn.wake_at(turn.now() + self.random.below(10_000));
        }
        if self.random.chance(200) {
            Progress::More
        } else {
            Progress::Idle
        }
    }
}

/// A file that is gone when it is closed.
fn nameless_file(seed: u64) -> std::fs::File {
    let path = std::env::temp_dir().join(format!("treaty-sim-{}-{seed}", std::process::id()));
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

/// A task as the scenario sees it.
struct Subject {
    id: TaskId,
    life: Arc<Mutex<Life>>,
    bell: EventFd,
    ending: u64,
}

/// Adds a task that lives by `seed` and ends as `ending` says.
fn add_wild(handle: &WorkerHandle, file: &std::fs::File, seed: u64, ending: u64) -> Subject {
    let life = Arc::new(Mutex::new(Life::default()));
    let block = Arc::new(AlignedBlock::new(4096, 4096));
    let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
    let bell = doorbell.try_clone().unwrap();
    let (ends, users) = (life.clone(), Arc::downgrade(&block));
    let wild = Wild {
        random: Random::new(seed),
        fd: file.as_raw_fd(),
        doorbell,
        life: life.clone(),
        block,
        ending,
    };
    let on_exit = Box::new(move |exit: Exit| {
        let result = match exit {
            Exit::Finished(task) => {
                drop(task);
                Ok(())
            }
            Exit::Failed(reason) => Err(reason),
        };
        assert_eq!(users.strong_count(), 0, "an operation outlives its task");
        ends.lock().unwrap().exits.push(result);
    });
    let id = handle.add(Box::new(wild), on_exit);
    Subject {
        id,
        life,
        bell,
        ending,
    }
}

fn scenario(seed: u64) {
    let mut random = Random::new(seed);
    let faults = Faults {
        errors: 50,
        shorts: 200,
        retries: 50,
        max_delay_ns: 100_000,
        ..Faults::default()
    };
    let mut sim = Sim::new(seed, faults);
    let handle = sim.handle();
    let file = nameless_file(seed);
    let subjects: Vec<_> = (0..4)
        .map(|number| add_wild(&handle, &file, seed * 7 + number, (seed + number) % 4))
        .collect();
    for _ in 0..200 {
        let subject = &subjects[random.below(4) as usize];
        match random.below(60) {
            0..30 => subject.bell.write(1).unwrap(),
            30..58 => handle.wake(subject.id),
            _ => handle.stop(subject.id),
        }
        sim.step();
    }
    for subject in &subjects {
        handle.stop(subject.id);
    }
    sim.run_until_quiet();
    for Subject { life, ending, .. } in &subjects {
        let life = life.lock().unwrap();
        match ending {
            0 => assert_eq!(life.exits, [Err("wild".to_owned())]),
            1 => assert_eq!(life.exits, [Ok(())]),
            _ => {
                assert_eq!(life.exits, [Ok(())]);
                assert_eq!(life.submitted, life.completed, "a completion was lost");
            }
        }
    }
}

#[test]
fn hardening_03_tasks_of_every_temper_leave_once_and_drained() {
    // The panics are part of the test: keep them out of its output.
    std::panic::set_hook(Box::new(|panic| {
        if panic.payload().downcast_ref::<&str>() != Some(&"wild") {
            eprintln!("{panic}");
        }
    }));
    run_seeds(500, scenario);
}

#[test]
fn virtual_time_passes_only_when_nothing_else_happens() {
    let mut sim = Sim::new(1, Faults::default());
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = times.clone();
    let task = common::Script {
        start: |_: &mut Turn<'_>| {},
        turn: move |turn: &mut Turn<'_>| {
            let mut seen = seen.lock().unwrap();
            seen.push(turn.now());
            turn.wake_at(turn.now() + 3_600_000_000_000);
            if seen.len() == 3 {
                Progress::Finished
            } else {
                Progress::Idle
            }
        },
    };
    sim.handle().add(Box::new(task), Box::new(|_| {}));
    sim.run_until_quiet();
    let times = times.lock().unwrap();
    assert_eq!(times.len(), 3);
    assert!(times[2] - times[0] >= 7_200_000_000_000, "two hours went by");
}
