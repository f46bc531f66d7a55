//! The SCSI bus: who is connected, in which phase, and the bytes that go over it. SPI-4 §10

use std::collections::VecDeque;

use treaty_buffers::IoBuffers;
use treaty_scsi_target::command_len;

use crate::command::{Stage, Tag};
use crate::message::{Heard, Parser};
use crate::registers::{LINE_BSY, LINE_REQ};
use crate::target::Tasks;

/// Messages of a target. SPI-4 §16
const COMMAND_COMPLETE: u8 = 0x00;
const SAVE_POINTERS: u8 = 0x02;
const DISCONNECT: u8 = 0x04;
const IDENTIFY: u8 = 0x80;
const SIMPLE: u8 = 0x20;

/// What is on the bus; the numbers are those of the phase lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    DataOut = 0,
    DataIn = 1,
    Command = 2,
    Status = 3,
    MessageOut = 6,
    MessageIn = 7,
}

impl Phase {
    pub(crate) fn is_data(self) -> bool {
        matches!(self, Self::DataIn | Self::DataOut)
    }
}

/// A connection between the chip and a target.
struct Link {
    target: u8,
    /// IDENTIFY's bits, and the tag that came with it.
    lun: u8,
    may_disconnect: bool,
    tag: Option<Tag>,
    parser: Parser,
    cdb: Vec<u8>,
    /// The command that the connection is about.
    slot: Option<usize>,
    /// What the target says next.
    says: VecDeque<u8>,
    /// It lets the bus go when it has said that.
    leaves: bool,
    /// The chip has not acknowledged the last byte of a message yet.
    held: bool,
    /// Selected without ATN: the target takes a message and a command alike, because some drivers send one all the same.
    lenient: bool,
    /// The lines while nothing is asked for.
    last: Phase,
}

pub(crate) struct Bus {
    pub(crate) tasks: Tasks,
    link: Option<Link>,
    /// A selection that nobody answers is under way.
    pub(crate) nobody: bool,
    /// The chip has something to say.
    pub(crate) atn: bool,
}

impl Bus {
    pub(crate) fn new(tasks: Tasks) -> Self {
        Self {
            tasks,
            link: None,
            nobody: false,
            atn: false,
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    pub(crate) fn holds_ack(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.held)
    }

    /// What the target asks for; `None` while it asks for nothing.
    pub(crate) fn phase(&self) -> Option<Phase> {
        let link = self.link.as_ref()?;
        if link.held {
            return Some(Phase::MessageIn);
        }
        if self.atn {
            return Some(Phase::MessageOut);
        }
        if !link.says.is_empty() {
            return Some(Phase::MessageIn);
        }
        let Some(slot) = link.slot else {
            return Some(if link.lenient {
                Phase::MessageOut
            } else {
                Phase::Command
            });
        };
        match self.tasks.stage(slot) {
            Stage::In { .. } => Some(Phase::DataIn),
            Stage::Out { .. } => Some(Phase::DataOut),
            Stage::Status => Some(Phase::Status),
            Stage::Waiting | Stage::Host => None,
        }
    }

    /// True if the lines show that phase, whether or not something is asked for.
    pub(crate) fn is_in_phase(&self, phase: u8) -> bool {
        let Some(link) = &self.link else {
            return false;
        };
        let shown = self.phase().unwrap_or(link.last);
        shown as u8 == phase || link.lenient && phase == Phase::Command as u8
    }

    /// As [`phase`](Self::phase); a lenient target follows a script that goes on to the command.
    pub(crate) fn meet(&mut self, wanted: u8) -> Option<Phase> {
        if let Some(link) = &mut self.link
            && wanted == Phase::Command as u8
        {
            link.lenient = false;
        }
        self.phase()
    }

    /// REQ, BSY and the phase, as SBCL has them.
    pub(crate) fn lines(&self) -> u8 {
        let Some(link) = &self.link else { return 0 };
        match self.phase() {
            Some(phase) if !link.held => LINE_REQ | LINE_BSY | phase as u8,
            Some(phase) => LINE_BSY | phase as u8,
            None => LINE_BSY | link.last as u8,
        }
    }

    /// The chip has won the bus and selects `id`; nobody answers to a place that is empty, or the chip's `own`.
    pub(crate) fn select(&mut self, id: u8, own: bool, atn: bool) {
        if own || !self.tasks.has(id) {
            self.nobody = true;
            return;
        }
        self.atn = atn;
        self.link = Some(Link::new(id, !atn));
    }

    /// A target with news takes the bus. Its number.
    pub(crate) fn reselect(&mut self) -> Option<u8> {
        if self.link.is_some() || self.nobody {
            return None;
        }
        let slot = self.tasks.next_ready()?;
        let (target, lun, tag) = self.tasks.nexus(slot)?;
        let mut link = Link::new(target, false);
        link.says.push_back(IDENTIFY | lun);
        if let Some(tag) = tag {
            link.says.extend([SIMPLE, tag.number]);
        }
        (link.lun, link.tag, link.slot) = (lun, tag, Some(slot));
        link.may_disconnect = true;
        self.link = Some(link);
        Some(target)
    }

    /// The chip takes ACK away: the target may go on. True if it has let the bus go.
    pub(crate) fn release_ack(&mut self) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        if !std::mem::take(&mut link.held) || !link.says.is_empty() || !link.leaves || self.atn {
            return false;
        }
        self.leave();
        true
    }

    /// The bus is free, as far as the target goes.
    fn leave(&mut self) {
        self.atn = false;
        if let Some(slot) = self.link.take().and_then(|link| link.slot) {
            self.tasks.left(slot);
        }
    }

    /// The chip lets the bus go without a word: what the connection was about is given up.
    pub(crate) fn let_go(&mut self) {
        self.nobody = false;
        self.atn = false;
        if let Some(slot) = self.link.take().and_then(|link| link.slot) {
            self.tasks.give_up(slot);
        }
    }

    pub(crate) fn reset(&mut self) {
        self.link = None;
        self.nobody = false;
        self.atn = false;
        self.tasks.reset();
    }

    /// How many bytes of that phase the target takes now.
    pub(crate) fn takes(&self, phase: Phase) -> u32 {
        match (&self.link, phase) {
            (Some(link), Phase::Command) => {
                command_len(&link.cdb).saturating_sub(link.cdb.len()).max(1) as u32
            }
            _ => u32::MAX,
        }
    }

    /// Bytes of a command or a message for the target.
    pub(crate) fn given(&mut self, phase: Phase, bytes: &[u8]) {
        let Some(link) = &mut self.link else { return };
        link.last = phase;
        if phase == Phase::MessageOut {
            link.parser.take(bytes);
            return;
        }
        link.cdb.extend_from_slice(bytes);
        if link.cdb.len() < command_len(&link.cdb) {
            return;
        }
        let cdb = std::mem::take(&mut link.cdb);
        let slot = self.tasks.receive(link.target, link.lun, link.tag, cdb);
        link.slot = Some(slot);
        self.say_goodbye(false);
    }

    /// The message is whole, and ATN is gone. True if the target has let the bus go.
    pub(crate) fn message_sent(&mut self) -> bool {
        self.atn = false;
        let Some(link) = &mut self.link else {
            return false;
        };
        link.lenient = false;
        for heard in link.parser.end() {
            match heard {
                Heard::Identify { lun, may_disconnect } => {
                    (link.lun, link.may_disconnect) = (lun, may_disconnect);
                }
                Heard::Tag(tag) => link.tag = Some(tag),
                Heard::Reply(bytes) => link.says.extend(bytes),
                Heard::Abort(scope) => {
                    let (target, lun, tag) = (link.target, link.lun, link.tag);
                    self.link = None;
                    self.tasks.abort(scope, target, lun, tag);
                    return true;
                }
            }
        }
        false
    }

    /// The next bytes from the target, of a message or its status.
    pub(crate) fn given_back(&mut self, phase: Phase, left: u32) -> Vec<u8> {
        let Some(link) = &mut self.link else {
            return Vec::new();
        };
        link.last = phase;
        if phase == Phase::MessageIn {
            let count = link.says.len().min(left as usize);
            link.held = true;
            return link.says.drain(..count).collect();
        }
        let Some(slot) = link.slot else {
            return Vec::new();
        };
        link.says.push_back(COMMAND_COMPLETE);
        link.leaves = true;
        vec![self.tasks.status(slot)]
    }

    /// The target's buffer for the next bytes of data, at most `left`.
    pub(crate) fn data(&self, left: u32) -> IoBuffers {
        match self.link.as_ref().and_then(|link| link.slot) {
            Some(slot) => self.tasks.buffer(slot, left as usize),
            None => IoBuffers::new(),
        }
    }

    /// So many bytes of that buffer have been moved.
    pub(crate) fn moved(&mut self, len: usize) -> u32 {
        if let Some(link) = &mut self.link
            && let Some(slot) = link.slot
        {
            link.last = match self.tasks.stage(slot) {
                Stage::In { .. } => Phase::DataIn,
                _ => Phase::DataOut,
            };
            self.tasks.moved(slot, len);
            self.say_goodbye(true);
        }
        len as u32
    }

    /// A target that has to wait for its image lets others have the bus, if it may.
    fn say_goodbye(&mut self, moved_data: bool) {
        let Some(link) = &mut self.link else { return };
        let waits = link
            .slot
            .is_some_and(|slot| matches!(self.tasks.stage(slot), Stage::Host | Stage::Waiting));
        if waits && link.may_disconnect {
            if moved_data {
                link.says.push_back(SAVE_POINTERS);
            }
            link.says.push_back(DISCONNECT);
            link.leaves = true;
        }
    }
}

impl Link {
    fn new(target: u8, lenient: bool) -> Self {
        Self {
            target,
            lun: 0,
            may_disconnect: false,
            tag: None,
            parser: Parser::default(),
            cdb: Vec::new(),
            slot: None,
            says: VecDeque::new(),
            leaves: false,
            held: false,
            lenient,
            last: Phase::MessageOut,
        }
    }
}
