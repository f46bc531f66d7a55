use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use treaty_virtio_ring::QueueState;
use treaty_worker::{Exit, Progress, Task, TaskId, Turn, WorkerHandle};

use crate::{DeviceEvents, QueueTask, Reply, StartError};

/// The running queues of one device: what every device needs to start and stop its tasks on workers.
pub struct QueueSet {
    slots: Vec<Option<Running>>,
    events: Option<DeviceEvents>,
}

struct Running {
    worker: WorkerHandle,
    task: TaskId,
    shared: Arc<Mutex<Ended>>,
}

/// Meeting point of "somebody wants the state" and "the task has left".
enum Ended {
    Running,
    Awaited(Reply<Option<QueueState>>),
    Left(Option<QueueState>),
}

impl QueueSet {
    /// Room for `count` queues.
    pub fn new(count: usize) -> Self {
        Self {
            slots: (0..count).map(|_| None).collect(),
            events: None,
        }
    }

    /// Keep the device's line to its transport: a task that fails is reported there.
    pub fn attach(&mut self, events: DeviceEvents) {
        self.events = Some(events);
    }

    /// The device's line to its transport, once attached.
    pub fn events(&self) -> Option<&DeviceEvents> {
        self.events.as_ref()
    }

    /// Fails if queue `index` does not exist or runs.
    pub fn check_free(&self, index: u16) -> Result<(), StartError> {
        match self.slots.get(usize::from(index)) {
            None => Err(StartError::NoSuchQueue(index)),
            Some(Some(_)) => Err(StartError::AlreadyRunning(index)),
            Some(None) => Ok(()),
        }
    }

    /// True if any queue runs, and which.
    pub fn running(&self) -> Option<u16> {
        self.slots
            .iter()
            .position(Option::is_some)
            .and_then(|index| u16::try_from(index).ok())
    }

    /// Moves a queue's task to its worker. `doorbell` is watched on its behalf.
    pub fn start(
        &mut self,
        index: u16,
        worker: &WorkerHandle,
        doorbell: &crate::Doorbell,
        task: impl QueueTask,
    ) -> Result<(), StartError> {
        self.check_free(index)?;
        let shared = Arc::new(Mutex::new(Ended::Running));
        let runner = Runner {
            task: Box::new(task),
            doorbell: doorbell.clone(),
        };
        let on_exit = exit_handler(index, shared.clone(), self.events.clone());
        let task = worker.add(Box::new(runner), on_exit);
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            *slot = Some(Running {
                worker: worker.clone(),
                task,
                shared,
            });
        }
        Ok(())
    }

    /// Asks a queue to drain and answers with its state; with `None` at once if it does not run.
    pub fn stop(&mut self, index: u16, reply: Reply<Option<QueueState>>) {
        let running = self.slots.get_mut(usize::from(index)).and_then(Option::take);
        let Some(running) = running else {
            return reply.send(None);
        };
        let answer = {
            let mut ended = running.shared.lock().unwrap_or_else(PoisonError::into_inner);
            match std::mem::replace(&mut *ended, Ended::Left(None)) {
                Ended::Left(state) => Some((reply, state)),
                Ended::Running | Ended::Awaited(_) => {
                    *ended = Ended::Awaited(reply);
                    None
                }
            }
        };
        match answer {
            Some((reply, state)) => reply.send(state),
            None => running.worker.stop(running.task),
        }
    }

    /// Gives a queue's task a turn soon (a packet arrived, the configuration changed).
    pub fn wake(&self, index: u16) {
        if let Some(Some(running)) = self.slots.get(usize::from(index)) {
            running.worker.wake(running.task);
        }
    }
}

fn exit_handler(
    index: u16,
    shared: Arc<Mutex<Ended>>,
    events: Option<DeviceEvents>,
) -> Box<dyn FnOnce(Exit) + Send> {
    Box::new(move |exit| {
        let state = match exit {
            Exit::Finished(task) => (task as Box<dyn Any>)
                .downcast::<Runner>()
                .ok()
                .map(|runner| runner.task.into_state_boxed()),
            Exit::Failed(reason) => {
                tracing::error!(queue = index, %reason, "queue task failed");
                if let Some(events) = &events {
                    events.needs_reset(&format!("queue {index}: {reason}"));
                }
                None
            }
        };
        let mut ended = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *ended, Ended::Left(state));
        drop(ended);
        if let Ended::Awaited(reply) = before {
            reply.send(state);
        }
    })
}

/// Object-safe form of [`QueueTask::into_state`] for a boxed task.
trait BoxedTask: QueueTask {
    fn into_state_boxed(self: Box<Self>) -> QueueState;
}

impl<T: QueueTask> BoxedTask for T {
    fn into_state_boxed(self: Box<Self>) -> QueueState {
        self.into_state()
    }
}

/// A queue task as a worker sees it.
struct Runner {
    task: Box<dyn BoxedTask>,
    doorbell: crate::Doorbell,
}

impl Task for Runner {
    fn start(&mut self, turn: &mut Turn<'_>) {
        turn.watch_eventfd(self.doorbell.fd());
        self.task.start(turn);
    }

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        self.task.turn(turn)
    }
}
