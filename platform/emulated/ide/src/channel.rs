//! One channel: two drives' places, the registers that choose between them, its bus master and its interrupt.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use treaty_bus::{Access, Ticket};
use treaty_memory::GuestMemory;
use treaty_pci::IntxLine;
use treaty_worker::{TaskId, WorkerHandle};

use crate::bus_master::BusMaster;
use crate::command::IN_RESET;
use crate::drive::{Cx, Drive};
use crate::job::{Job, Outcome};
use crate::registers::{control, device};

/// EXECUTE DEVICE DIAGNOSTIC: for both drives.
const DIAGNOSE: u8 = 0x90;

/// A channel, shared by vCPUs and its drives' tasks.
pub(crate) struct Channel {
    state: Mutex<State>,
    /// Who runs the drives' jobs; set once when the controller is made.
    tasks: Mutex<[Option<(WorkerHandle, TaskId)>; 2]>,
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
    paused: bool,
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
    pub(crate) fn new(drives: [Option<Drive>; 2], memory: GuestMemory, line: Arc<dyn IntxLine>) -> Self {
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
                paused: false,
            }),
            tasks: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_task(&self, index: usize, worker: WorkerHandle, task: TaskId) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = tasks.get_mut(index) {
            *place = Some((worker, task));
        }
    }

    /// Takes the tasks off their workers.
    pub(crate) fn stop_tasks(&self) {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for (worker, task) in tasks.iter().flatten() {
            worker.stop(*task);
        }
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
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for (wanted, task) in wanted.into_iter().zip(tasks.iter()) {
            if let Some((worker, task)) = task.as_ref().filter(|_| wanted) {
                worker.wake(*task);
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

    /// Holds the drives' jobs back, or lets them go on. A ticket if one has to end first.
    pub(crate) fn set_paused(&self, paused: bool) -> Option<Ticket> {
        self.change(|state| {
            state.paused = paused;
            let running = state.drives.iter_mut().flatten().find(|drive| drive.desk.runs());
            running.filter(|_| paused).map(|drive| {
                let (ticket, holder) = Ticket::new();
                drive.desk.when_idle(holder);
                ticket
            })
        })
    }

    /// For the task of drive `index`.
    pub(crate) fn take_job(&self, index: usize) -> Option<Job> {
        let mut state = self.state();
        if state.paused {
            return None;
        }
        state.drive(index)?.0.desk.take()
    }

    /// For the task of drive `index`: its job has ended.
    pub(crate) fn job_ended(&self, index: usize, outcome: Outcome) {
        self.change(|state| {
            if let Some((drive, mut cx)) = state.drive(index) {
                drive.ended(outcome, &mut cx);
            }
        });
    }
}
