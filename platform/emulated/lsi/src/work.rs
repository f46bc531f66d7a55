//! What targets do with their images for a command.

use std::io::ErrorKind;

use treaty_buffers::IoBuffers;
use treaty_scsi_target::{Action, Answer, Range, Sense, Status, missing_unit};
use treaty_storage::{RequestKind, StorageError};

use crate::command::{Command, Plan, Stage};
use crate::target::Tasks;

/// Bytes of a command's buffer: more than that is moved in several rounds.
pub(crate) const BUFFER_BYTES: usize = 256 << 10;
/// Bytes of the buffer of a command that does not move blocks.
pub(crate) const SMALL_BYTES: usize = 512;
/// There is one initiator.
const NEXUS: u64 = 0;

/// A request for a target's image.
pub(crate) struct Job {
    pub(crate) slot: usize,
    pub(crate) target: u8,
    pub(crate) kind: RequestKind,
    pub(crate) buffers: IoBuffers,
}

impl Tasks {
    /// Takes a command up.
    pub(crate) fn begin(&mut self, slot: usize) {
        let Some(command) = self.command(slot) else { return };
        let (id, lun, small) = (command.target, command.lun, command.asks_why());
        let cdb = command.cdb.clone();
        let block = self.lend(small);
        if let Some(command) = self.command(slot) {
            command.block = Some(block);
            command.stage = Stage::Host;
        }
        let action = match self.target(id) {
            Some(target) if lun == 0 => target.unit.command(NEXUS, &cdb),
            _ => missing_unit(&cdb).into(),
        };
        self.act(slot, action);
    }

    fn act(&mut self, slot: usize, action: Action) {
        let zeroes = match self.nexus(slot) {
            Some((id, ..)) => self.target(id).is_some_and(|target| target.zeroes),
            None => return,
        };
        let Some(command) = self.command(slot) else { return };
        let room = command.block.as_ref().map_or(0, |block| block.len());
        match action {
            Action::Answer(answer) => command.answer(answer, room),
            Action::Read(range) => self.go_on(slot, Plan::Read(range)),
            Action::Verify(range) => self.go_on(slot, Plan::Verify(range)),
            Action::Write { range, durable } => {
                command.plan = Plan::Write { range, durable };
                command.want(range.len, room);
            }
            Action::Parameters(bytes) if bytes as usize <= room => {
                command.plan = Plan::Parameters;
                command.want(u64::from(bytes), room);
            }
            Action::Parameters(_) => command.fail(Sense::INVALID_FIELD),
            Action::Flush => self.submit(slot, Plan::End, RequestKind::Flush, 0),
            Action::Discard(mut ranges) => {
                ranges.reverse();
                self.go_on(slot, Plan::Discard(ranges));
            }
            Action::Zero { range, unmap } if zeroes => {
                let kind = RequestKind::WriteZeroes {
                    offset: range.offset,
                    len: range.len,
                    unmap,
                };
                self.submit(slot, Plan::End, kind, 0);
            }
            Action::Zero { range, .. } => self.fill(slot, range, &[0; 512]),
            Action::Fill { range, block } => self.fill(slot, range, &block),
            Action::Compare {
                offset,
                expected,
                new,
            } => self.go_on(
                slot,
                Plan::Compare {
                    offset,
                    expected,
                    new,
                },
            ),
        }
    }

    fn fill(&mut self, slot: usize, range: Range, block: &[u8]) {
        let Some(command) = self.command(slot) else { return };
        let pattern = block.repeat(BUFFER_BYTES / block.len().max(1));
        command.buffer(0, pattern.len()).copy_from(&pattern);
        self.go_on(slot, Plan::Fill(range));
    }

    /// The next request of a plan, or the end.
    fn go_on(&mut self, slot: usize, plan: Plan) {
        let (kind, len) = match &plan {
            Plan::Read(range) | Plan::Verify(range) if range.len > 0 => {
                (RequestKind::Read { offset: range.offset }, range.len)
            }
            Plan::Fill(range) if range.len > 0 => {
                let kind = RequestKind::Write {
                    offset: range.offset,
                    durable: false,
                };
                (kind, range.len)
            }
            Plan::Compare { offset, expected, .. } => {
                (RequestKind::Read { offset: *offset }, expected.len() as u64)
            }
            Plan::Discard(ranges) => match ranges.last() {
                Some(range) => {
                    let (offset, len) = (range.offset, range.len);
                    (RequestKind::Discard { offset, len }, 0)
                }
                None => return self.done(slot),
            },
            _ => return self.done(slot),
        };
        self.submit(slot, plan, kind, len);
    }

    fn done(&mut self, slot: usize) {
        if let Some(command) = self.command(slot) {
            command.done();
        }
    }

    fn submit(&mut self, slot: usize, plan: Plan, kind: RequestKind, len: u64) {
        let Some(command) = self.command(slot) else { return };
        let room = command.block.as_ref().map_or(0, |block| block.len());
        let buffers = command.buffer(0, room.min(usize::try_from(len).unwrap_or(room)));
        (command.stage, command.plan) = (Stage::Host, plan);
        let target = command.target;
        self.jobs.push(Job {
            slot,
            target,
            kind,
            buffers,
        });
    }

    /// For the worker: what is to be submitted.
    pub(crate) fn take_jobs(&mut self) -> Vec<Job> {
        let jobs = std::mem::take(&mut self.jobs);
        for job in &jobs {
            if let Some(command) = self.command(job.slot) {
                command.running = true;
            }
        }
        jobs
    }

    /// For the worker: a request has ended.
    pub(crate) fn job_done(&mut self, slot: usize, result: Result<(), &StorageError>) {
        let Some(command) = self.command(slot) else { return };
        command.running = false;
        if command.given_up {
            return self.remove(slot);
        }
        let plan = std::mem::replace(&mut command.plan, Plan::End);
        if let Err(error) = result {
            command.fail(sense_of(error, &plan));
            return self.begin_waiting();
        }
        self.continue_plan(slot, plan);
        self.begin_waiting();
    }

    /// A round of a plan is through.
    fn continue_plan(&mut self, slot: usize, plan: Plan) {
        let Some(command) = self.command(slot) else { return };
        match plan {
            Plan::Read(range) => {
                let len = range.len.min(BUFFER_BYTES as u64);
                command.plan = Plan::Read(rest(range));
                command.stage = Stage::In {
                    len: len as usize,
                    done: 0,
                };
            }
            Plan::Write { range, durable } => {
                let range = rest(range);
                command.plan = Plan::Write { range, durable };
                command.want(range.len, BUFFER_BYTES);
            }
            Plan::Verify(range) => self.go_on(slot, Plan::Verify(rest(range))),
            Plan::Fill(range) => self.go_on(slot, Plan::Fill(rest(range))),
            Plan::Discard(mut ranges) => {
                ranges.pop();
                self.go_on(slot, Plan::Discard(ranges));
            }
            Plan::Compare {
                offset,
                expected,
                new,
            } => self.compared(slot, offset, &expected, &new),
            Plan::End | Plan::Parameters => command.done(),
        }
    }

    fn compared(&mut self, slot: usize, offset: u64, expected: &[u8], new: &[u8]) {
        let Some(command) = self.command(slot) else { return };
        let mut found = vec![0; expected.len()];
        command.buffer(0, expected.len()).copy_to(&mut found);
        if found != expected {
            return command.fail(Sense::MISCOMPARE);
        }
        if new.is_empty() {
            return command.done();
        }
        command.buffer(0, new.len()).copy_from(new);
        let kind = RequestKind::Write {
            offset,
            durable: false,
        };
        self.submit(slot, Plan::End, kind, new.len() as u64);
    }

    /// So many bytes went over the bus, to or from the buffer.
    pub(crate) fn moved(&mut self, slot: usize, bytes: usize) {
        let Some(command) = self.command(slot) else { return };
        let (input, len, done) = match command.stage {
            Stage::In { len, done } => (true, len, done + bytes),
            Stage::Out { len, done } => (false, len, done + bytes),
            _ => return,
        };
        if done < len {
            command.stage = if input {
                Stage::In { len, done }
            } else {
                Stage::Out { len, done }
            };
            return;
        }
        let plan = std::mem::replace(&mut command.plan, Plan::End);
        match plan {
            Plan::Read(range) => self.go_on(slot, Plan::Read(range)),
            Plan::Write { range, durable } => {
                let kind = RequestKind::Write {
                    offset: range.offset,
                    durable,
                };
                self.submit(slot, Plan::Write { range, durable }, kind, len as u64);
            }
            Plan::Parameters => self.parameters(slot, len),
            // The answer was given.
            _ => command.done(),
        }
    }

    fn parameters(&mut self, slot: usize, len: usize) {
        let Some(command) = self.command(slot) else { return };
        let mut data = vec![0; len];
        command.buffer(0, len).copy_to(&mut data);
        let (id, cdb) = (command.target, command.cdb.clone());
        command.stage = Stage::Host;
        if let Some(target) = self.target(id) {
            let action = target.unit.parameters(NEXUS, &cdb, &data);
            self.act(slot, action);
        }
    }
}

impl Command {
    fn answer(&mut self, answer: Answer, room: usize) {
        let len = answer.data.len().min(room);
        if answer.status != Status::Good || len == 0 {
            return self.end(answer.status, answer.sense);
        }
        self.buffer(0, len).copy_from(&answer.data);
        (self.plan, self.stage) = (Plan::End, Stage::In { len, done: 0 });
    }

    /// The initiator is to send the next of `len` bytes; none is the end.
    fn want(&mut self, len: u64, room: usize) {
        let len = room.min(usize::try_from(len).unwrap_or(room));
        if len == 0 {
            return self.done();
        }
        self.stage = Stage::Out { len, done: 0 };
    }
}

/// What a buffer's worth leaves of a range.
fn rest(range: Range) -> Range {
    let moved = range.len.min(BUFFER_BYTES as u64);
    Range {
        offset: range.offset + moved,
        len: range.len - moved,
    }
}

fn sense_of(error: &StorageError, plan: &Plan) -> Sense {
    match (error, plan) {
        (StorageError::ReadOnly, _) => Sense::WRITE_PROTECTED,
        (StorageError::Host { source, .. }, _) if source.kind() == ErrorKind::StorageFull => Sense::NO_SPACE,
        (_, Plan::Read(_) | Plan::Verify(_) | Plan::Compare { .. }) => Sense::READ_ERROR,
        _ => Sense::WRITE_ERROR,
    }
}
