//! Targets and the commands that they have: which may begin, which has news, which end together.

use std::collections::VecDeque;

use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_scsi_target::{Sense, Status, Unit};

use crate::command::{Command, Plan, Stage, Tag};
use crate::message::Scope;
use crate::work::{BUFFER_BYTES, Job, SMALL_BYTES};

/// Commands that targets keep, all together. More are told that the queue is full.
pub(crate) const MOST_COMMANDS: usize = 256;
/// Of those, commands at work, each with a buffer.
pub(crate) const MOST_AT_WORK: usize = 32;
/// Numbers on the bus.
pub(crate) const PLACES: usize = 16;

/// A target with one logical unit, number 0.
pub(crate) struct Target {
    pub(crate) unit: Unit,
    /// The image can write zeroes by itself.
    pub(crate) zeroes: bool,
    /// It has told of a failure and begins nothing before the initiator's next command, which may ask why. SAM-2 §5.9
    pub(crate) told: bool,
}

/// All targets, and their commands by slot.
pub(crate) struct Tasks {
    pub(crate) targets: [Option<Target>; PLACES],
    pub(crate) slots: Vec<Option<Command>>,
    /// Slots whose commands have not begun, in order.
    waiting: VecDeque<usize>,
    /// Requests for the worker to submit.
    pub(crate) jobs: Vec<Job>,
    /// Buffers that nobody uses.
    spare: Vec<AlignedBlock>,
    /// Where the search for news begins, so that everybody gets a turn.
    next: usize,
}

impl Tasks {
    pub(crate) fn new(targets: [Option<Target>; PLACES]) -> Self {
        Self {
            targets,
            slots: Vec::new(),
            waiting: VecDeque::new(),
            jobs: Vec::new(),
            spare: Vec::new(),
            next: 0,
        }
    }

    pub(crate) fn has(&self, id: u8) -> bool {
        matches!(self.targets.get(usize::from(id)), Some(Some(_)))
    }

    pub(crate) fn command(&mut self, slot: usize) -> Option<&mut Command> {
        self.slots.get_mut(slot)?.as_mut()
    }

    pub(crate) fn target(&mut self, id: u8) -> Option<&mut Target> {
        self.targets.get_mut(usize::from(id))?.as_mut()
    }

    fn each(&self) -> impl Iterator<Item = &Command> {
        self.slots.iter().flatten()
    }

    pub(crate) fn stage(&self, slot: usize) -> Stage {
        let command = self.slots.get(slot).and_then(Option::as_ref);
        command.map_or(Stage::Status, |command| command.stage)
    }

    pub(crate) fn nexus(&self, slot: usize) -> Option<(u8, u8, Option<Tag>)> {
        let command = self.slots.get(slot)?.as_ref()?;
        Some((command.target, command.lun, command.tag))
    }

    /// True while a request is under way for the image.
    pub(crate) fn is_busy(&self) -> bool {
        self.each().any(|command| command.running)
    }

    /// A command has come over the bus. Its slot.
    pub(crate) fn receive(&mut self, target: u8, lun: u8, tag: Option<Tag>, cdb: Vec<u8>) -> usize {
        let mut command = Command {
            target,
            lun,
            tag,
            cdb,
            stage: Stage::Waiting,
            plan: Plan::End,
            status: Status::Good,
            sense: None,
            away: false,
            running: false,
            given_up: false,
            told: false,
            block: None,
        };
        let answers = self
            .target(target)
            .is_some_and(|target| std::mem::take(&mut target.told));
        let overlapped = self.find(target, lun, tag);
        if let Some(other) = overlapped {
            // Two with one name: neither is done. SAM-5 §5.11
            self.give_up(other);
            command.fail(Sense::OVERLAPPED);
        } else if self.each().count() >= MOST_COMMANDS {
            command.end(Status::TaskSetFull, None);
        }
        let (waits, asks, first) = (
            !command.is_at_work(),
            command.asks_why(),
            answers || command.is_first(),
        );
        let slot = self.place(command);
        match (waits, asks, first) {
            (false, ..) => {}
            // Nothing that comes between may change what it will be told.
            (true, true, _) => self.begin(slot),
            (true, false, true) => self.waiting.push_front(slot),
            (true, false, false) => self.waiting.push_back(slot),
        }
        self.begin_waiting();
        slot
    }

    fn find(&self, target: u8, lun: u8, tag: Option<Tag>) -> Option<usize> {
        let number = tag.map(|tag| tag.number);
        self.slots.iter().position(|command| {
            command.as_ref().is_some_and(|command| {
                let same = command.tag.map(|tag| tag.number) == number;
                !command.given_up && (command.target, command.lun) == (target, lun) && same
            })
        })
    }

    fn place(&mut self, command: Command) -> usize {
        match self.slots.iter().position(Option::is_none) {
            Some(slot) => {
                if let Some(place) = self.slots.get_mut(slot) {
                    *place = Some(command);
                }
                slot
            }
            None => {
                self.slots.push(Some(command));
                self.slots.len() - 1
            }
        }
    }

    /// Begins what may begin, each target's commands in their order.
    pub(crate) fn begin_waiting(&mut self) {
        let lent = |command: &&Command| {
            let block = command.block.as_ref();
            block.is_some_and(|block| block.len() == BUFFER_BYTES)
        };
        let mut at_work = self.each().filter(lent).count();
        let mut held: u32 = 0;
        let mut at = 0;
        while let Some(&slot) = self.waiting.get(at) {
            if at_work >= MOST_AT_WORK {
                return;
            }
            if self.may_begin(slot, held) {
                self.waiting.remove(at);
                at_work += 1;
                self.begin(slot);
            } else {
                if let Some((target, ..)) = self.nexus(slot) {
                    held |= 1 << (target & 15);
                }
                at += 1;
            }
        }
    }

    /// `held` has the targets with an earlier command that must wait.
    fn may_begin(&self, slot: usize, held: u32) -> bool {
        let Some(command) = self.slots.get(slot).and_then(Option::as_ref) else {
            return true;
        };
        let target = self.targets.get(usize::from(command.target));
        let told = target.and_then(Option::as_ref).is_some_and(|target| target.told);
        if told || held & 1 << (command.target & 15) != 0 {
            return false;
        }
        let mut others = self.each().filter(|other| {
            // A request that was given up may still write.
            let works = other.is_at_work() && other.stage != Stage::Status || other.running;
            other.target == command.target && works
        });
        if command.is_alone() {
            others.next().is_none()
        } else {
            !others.any(|other| other.is_alone() || other.given_up)
        }
    }

    /// A buffer for a command; what never waits for one has a small one.
    pub(crate) fn lend(&mut self, small: bool) -> AlignedBlock {
        if small {
            return AlignedBlock::new(SMALL_BYTES, 16);
        }
        let spare = self.spare.pop();
        spare.unwrap_or_else(|| AlignedBlock::new(BUFFER_BYTES, 4096))
    }

    /// A command that was left and has something to tell.
    pub(crate) fn next_ready(&mut self) -> Option<usize> {
        let count = self.slots.len();
        let from = self.next;
        let found = (from..count).chain(0..from.min(count)).find(|slot| {
            let command = self.slots.get(*slot).and_then(Option::as_ref);
            command.is_some_and(|command| {
                let target = self.targets.get(usize::from(command.target));
                let told = target.and_then(Option::as_ref).is_some_and(|target| target.told);
                let ready = !matches!(command.stage, Stage::Waiting | Stage::Host);
                command.away && ready && !command.given_up && !told
            })
        })?;
        self.next = found + 1;
        self.command(found)?.away = false;
        Some(found)
    }

    pub(crate) fn buffer(&self, slot: usize, left: usize) -> IoBuffers {
        let Some(command) = self.slots.get(slot).and_then(Option::as_ref) else {
            return IoBuffers::new();
        };
        match command.stage {
            Stage::In { len, done } | Stage::Out { len, done } => {
                command.buffer(done, left.min(len.saturating_sub(done)))
            }
            _ => IoBuffers::new(),
        }
    }

    /// The status byte goes to the initiator.
    pub(crate) fn status(&mut self, slot: usize) -> u8 {
        let Some(command) = self.command(slot) else {
            return Status::Good as u8;
        };
        command.told = true;
        let (status, sense, id, lun) = (command.status, command.sense, command.target, command.lun);
        if let (Some(sense), 0, Some(target)) = (sense, lun, self.target(id)) {
            target.unit.failed(sense);
            target.told = true;
        }
        status as u8
    }

    /// The target has let the bus go: the command is over, or its news come later.
    pub(crate) fn left(&mut self, slot: usize) {
        match self.command(slot) {
            Some(command) if !command.told => command.away = true,
            _ => self.remove(slot),
        }
    }

    /// The command is gone.
    pub(crate) fn remove(&mut self, slot: usize) {
        let command = self.slots.get_mut(slot).and_then(Option::take);
        self.spare.extend(
            command
                .and_then(|command| command.block)
                .filter(|block| block.len() == BUFFER_BYTES),
        );
        self.waiting.retain(|waits| *waits != slot);
        self.begin_waiting();
    }

    /// Nobody wants to know any more how a command ends.
    pub(crate) fn give_up(&mut self, slot: usize) {
        match self.command(slot) {
            Some(command) if command.running => {
                command.given_up = true;
                command.away = false;
            }
            Some(_) => {
                self.jobs.retain(|job| job.slot != slot);
                self.remove(slot);
            }
            None => {}
        }
    }

    pub(crate) fn abort(&mut self, scope: Scope, target: u8, lun: u8, tag: Option<Tag>) {
        let slots = 0..self.slots.len();
        let concerned: Vec<usize> = slots
            .filter(|slot| match self.nexus(*slot) {
                Some((at, of, name)) if at == target => match scope {
                    Scope::Target => true,
                    Scope::Unit | Scope::Everybody => of == lun,
                    Scope::Task => of == lun && name.map(|tag| tag.number) == tag.map(|tag| tag.number),
                },
                _ => false,
            })
            .collect();
        for slot in concerned {
            self.give_up(slot);
        }
        if let Some(target) = self.target(target) {
            target.told = false;
            if scope == Scope::Target {
                target.unit.reset();
            }
        }
        self.begin_waiting();
    }

    /// The bus was reset: all commands are gone.
    pub(crate) fn reset(&mut self) {
        for target in self.targets.iter_mut().flatten() {
            target.told = false;
            target.unit.reset();
        }
        self.waiting.clear();
        for slot in 0..self.slots.len() {
            self.give_up(slot);
        }
    }
}
