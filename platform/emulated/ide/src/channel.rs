//! One channel: two drives' places, the registers that choose between them, its bus master and its interrupt.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use treaty_bus::{Access, PostedWrites, Ticket};
use treaty_memory::GuestMemory;
use treaty_pci::IntxLine;
use treaty_storage::{BlockImage, BlockQueue, StorageError};
use treaty_worker::{Exit, TaskId, WorkerHandle};

use crate::bus_master::BusMaster;
use crate::command::IN_RESET;
use crate::drive::{Cx, Drive};
use crate::job::{Job, Outcome};
use crate::registers::{control, device};
use crate::task::DriveTask;

/// EXECUTE DEVICE DIAGNOSTIC: for both drives.
const DIAGNOSE: u8 = 0x90;

/// A channel, shared by vCPUs and its drives' tasks.
pub(crate) struct Channel {
    state: Mutex<State>,
    /// Who runs the drives' jobs.
    runners: Mutex<[Option<Runner>; 2]>,
    /// Writes of the guest that have not come yet.
    posted: Arc<dyn PostedWrites>,
}

/// Runs a drive's jobs: a task on a worker, unless the machine is paused.
pub(crate) struct Runner {
    pub(crate) worker: WorkerHandle,
    pub(crate) image: Arc<dyn BlockImage>,
    /// The ticket is finished when the task has left.
    task: Option<(TaskId, Ticket)>,
}

impl Runner {
    pub(crate) fn new(worker: WorkerHandle, image: Arc<dyn BlockImage>) -> Self {
        Self {
            worker,
            image,
            task: None,
        }
    }
}

struct State {
    drives: [Option<Drive>; 2],
    second: bool,
    control: u8,
    bus_master: BusMaster,
    may_master: bool,
    memory: GuestMemory,
    line: Arc<dyn IntxLine>,
    level: bool,
}

impl State {
    fn index(&self) -> usize {
        usize::from(self.second)
    }

    fn selected(&mut self) -> Option<&mut Drive> {
        let index = self.index();
        self.drives.get_mut(index)?.as_mut()
    }

    /// The drive at `index`, with what its work needs.
    fn drive(&mut self, index: usize) -> Option<(&mut Drive, Cx<'_>)> {
        let drive = self.drives.get_mut(index)?.as_mut()?;
        let cx = Cx {
            memory: &self.memory,
            bus_master: &mut self.bus_master,
            may_master: self.may_master,
        };
        Some((drive, cx))
    }

    /// Brings the interrupt to where the selected drive has it.
    fn update_line(&mut self) {
        let index = self.index();
        let drive = self.drives.get(index).and_then(Option::as_ref);
        let pending = drive.is_some_and(|drive| drive.interrupt);
        let level = pending && self.control & control::NIEN == 0;
        if level && !self.level {
            self.bus_master.set_interrupt();
        }
        if level != self.level {
            self.level = level;
            self.line.set(level);
        }
    }

    fn read_status(&mut self) -> u8 {
        if self.control & control::SRST != 0 {
            return IN_RESET;
        }
        self.selected().map_or(0, |drive| drive.status())
    }

    fn write_control(&mut self, value: u8) {
        let before = self.control;
        self.control = value;
        if value & control::SRST != 0 && before & control::SRST == 0 {
            self.drives.iter_mut().flatten().for_each(Drive::reset);
            self.second = false;
        }
    }

    fn write_task_file(&mut self, index: u8, value: u8) {
        self.control &= !control::HOB;
        if index == 6 {
            self.second = value & device::SECOND != 0;
        }
        // Both drives hear it; a busy one does not listen.
        for drive in self.drives.iter_mut().flatten() {
            if !drive.is_busy() {
                drive.registers.write(index, value);
            }
        }
    }

    fn command(&mut self, opcode: u8) {
        if opcode == DIAGNOSE {
            self.drives.iter_mut().flatten().for_each(Drive::diagnose);
            self.second = false;
            return;
        }
        let index = self.index();
        if let Some((drive, mut cx)) = self.drive(index) {
            drive.command(opcode, &mut cx);
        }
    }

    fn data(&mut self, access: impl FnOnce(&mut Drive) -> bool) {
        let index = self.index();
        if let Some((drive, mut cx)) = self.drive(index)
            && access(drive)
        {
            drive.block_ended(&mut cx);
        }
    }

    /// The drive whose command waits for the bus master.
    fn start_dma(&mut self) {
        for index in 0..2 {
            if let Some((drive, mut cx)) = self.drive(index) {
                drive.dma(&mut cx);
            }
        }
    }

    /// The host gives a transfer up. What runs in the guest's memory is waited for, because the guest will use that memory.
    fn stop_dma(&mut self) -> Option<Ticket> {
        self.bus_master.stopped();
        let running = self.drives.iter_mut().flatten().find(|drive| drive.desk.runs())?;
        let (ticket, holder) = Ticket::new();
        running.desk.when_idle(holder);
        Some(ticket)
    }
}

impl Channel {
    pub(crate) fn new(
        drives: [Option<Drive>; 2],
        memory: GuestMemory,
        line: Arc<dyn IntxLine>,
        posted: Arc<dyn PostedWrites>,
    ) -> Self {
        Self {
            state: Mutex::new(State {
                drives,
                second: false,
                control: 0,
                bus_master: BusMaster::default(),
                may_master: false,
                memory,
                line,
                level: false,
            }),
            runners: Mutex::default(),
            posted,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runners(&self) -> MutexGuard<'_, [Option<Runner>; 2]> {
        self.runners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives drive `index` what runs its jobs, and starts it.
    pub(crate) fn run(self: &Arc<Self>, index: usize, runner: Runner) -> Result<(), StorageError> {
        let (queue, worker) = (runner.image.queue()?, runner.worker.clone());
        if let Some(place) = self.runners().get_mut(index) {
            *place = Some(runner);
        }
        self.start(index, &worker, Ok(queue));
        Ok(())
    }

    /// Starts a task with a queue to the image, or one that fails all jobs.
    fn start(
        self: &Arc<Self>,
        index: usize,
        worker: &WorkerHandle,
        queue: Result<Box<dyn BlockQueue>, StorageError>,
    ) {
        let queue = queue
            .inspect_err(|error| tracing::error!(%error, drive = index, "an emulated drive has no image"));
        let task = DriveTask::new(self.clone(), index, queue.ok());
        let owner = self.clone();
        let (ticket, holder) = Ticket::new();
        let on_exit = move |exit| {
            if let Exit::Failed(reason) = exit {
                tracing::error!(%reason, drive = index, "an emulated drive's task failed");
                owner.job_ended(index, Outcome::Failed);
            }
            drop(holder);
        };
        // No lock is held: a worker that takes no more tasks says so at once.
        let id = worker.add(Box::new(task), Box::new(on_exit));
        if let Some(Some(runner)) = self.runners().get_mut(index) {
            runner.task = Some((id, ticket));
        }
    }

    /// Takes the tasks off their workers, and with them their queues to the images; a ticket if one is still there.
    pub(crate) fn stop_tasks(&self) -> Option<Ticket> {
        let mut runners = self.runners();
        for runner in runners.iter_mut().flatten() {
            runner.task = runner.task.take().filter(|(_, ticket)| !ticket.is_done());
            if let Some((id, _)) = &runner.task {
                runner.worker.stop(*id);
            }
        }
        let left = runners.iter().flatten().find_map(|runner| runner.task.as_ref());
        left.map(|(_, ticket)| ticket.clone())
    }

    /// Starts the tasks that were stopped, with new queues.
    pub(crate) fn start_tasks(self: &Arc<Self>) {
        for index in 0..2 {
            let stopped = match self.runners().get(index) {
                Some(Some(runner)) if runner.task.is_none() => (runner.worker.clone(), runner.image.clone()),
                _ => continue,
            };
            let (worker, image) = stopped;
            self.start(index, &worker, image.queue());
        }
        // For those whose jobs have waited.
        self.change(|_| ());
    }

    /// Does something to the state, then raises the interrupt and wakes whoever has something to do.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state();
        let result = change(&mut state);
        state.update_line();
        let wanted = [0, 1].map(|index| {
            let drive = state.drives.get(index).and_then(Option::as_ref);
            drive.is_some_and(|drive| drive.desk.is_busy() && !drive.desk.runs())
        });
        drop(state);
        let runners = self.runners();
        for (wanted, runner) in wanted.into_iter().zip(runners.iter()) {
            if let Some(runner) = runner.as_ref().filter(|_| wanted)
                && let Some((id, _)) = runner.task
            {
                runner.worker.wake(id);
            }
        }
        result
    }

    /// The ports of the command block.
    pub(crate) fn read_command_block(&self, offset: u64, data: &mut [u8]) -> Access {
        self.change(|state| match (offset, data) {
            (0, data) => state.data(|drive| drive.read_data(data)),
            (1, [byte]) => *byte = state.selected().map_or(0, |drive| drive.error),
            (offset @ 2..=6, [byte]) => {
                let older = state.control & control::HOB != 0;
                let read = |drive: &mut Drive| drive.registers.read(offset as u8, older);
                *byte = state.selected().map_or(0, read);
            }
            (7, [byte]) => {
                *byte = state.read_status();
                if let Some(drive) = state.selected() {
                    drive.interrupt = false;
                }
            }
            _ => {}
        });
        Access::Done
    }

    pub(crate) fn write_command_block(&self, offset: u64, data: &[u8]) -> Access {
        self.change(|state| match (offset, data) {
            (0, data) => state.data(|drive| drive.write_data(data)),
            (offset @ 1..=6, [byte]) => state.write_task_file(offset as u8, *byte),
            (7, [byte]) => state.command(*byte),
            _ => {}
        });
        Access::Done
    }

    /// The alternate status: reading it lowers nothing.
    pub(crate) fn read_control(&self) -> u8 {
        self.state().read_status()
    }

    pub(crate) fn write_control(&self, value: u8) {
        self.change(|state| state.write_control(value));
    }

    pub(crate) fn read_bus_master(&self, offset: u64, data: &mut [u8]) {
        let state = self.state();
        for (index, byte) in (offset..).zip(data) {
            *byte = state.bus_master.read(index);
        }
    }

    pub(crate) fn write_bus_master(&self, offset: u64, data: &[u8]) -> Access {
        let ticket = self.change(|state| {
            let mut ticket = None;
            for (index, byte) in (offset..).zip(data) {
                if !state.bus_master.write(index, *byte) {
                    continue;
                }
                if state.bus_master.is_started() {
                    state.start_dma();
                } else {
                    ticket = state.stop_dma();
                }
            }
            ticket
        });
        ticket.map_or(Access::Done, Access::Later)
    }

    pub(crate) fn set_may_master(&self, may: bool) {
        self.change(|state| {
            state.may_master = may;
            if may {
                state.start_dma();
            }
        });
    }

    /// For the task of drive `index`.
    pub(crate) fn take_job(&self, index: usize) -> Option<Job> {
        self.state().drive(index)?.0.desk.take()
    }

    /// For the task of drive `index`: its job has ended.
    pub(crate) fn job_ended(&self, index: usize, outcome: Outcome) {
        // Which drive's interrupt is seen depends on what the guest has written.
        self.posted.bring();
        self.change(|state| {
            if let Some((drive, mut cx)) = state.drive(index) {
                drive.ended(outcome, &mut cx);
            }
        });
    }
}
