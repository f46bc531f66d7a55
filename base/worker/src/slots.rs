use std::os::fd::RawFd;

use treaty_buffers::IoBuffers;

use crate::OpKind;

/// "No slot" in links between slots.
pub(crate) const NONE: u32 = u32::MAX;

/// Slots made when a worker starts; more are added by doubling when a task needs them.
const FIRST_SLOTS: usize = 256;

/// Most operations and watches of one worker. Beyond it an operation completes at once with ENOBUFS.
pub(crate) const MAX_SLOTS: usize = 1 << 16;

/// What a slot is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// An operation of a task.
    Op(OpKind),
    /// An eventfd that is watched until its task leaves.
    Watch,
}

impl Work {
    /// True for what may never end by itself and is therefore cancelled when its task stops.
    #[inline]
    pub(crate) fn waits_for_peer(self) -> bool {
        matches!(
            self,
            Self::Op(OpKind::PollReadable | OpKind::PollWritable | OpKind::ReadStream | OpKind::WriteStream)
        )
    }

    /// True for what always ends by itself, with nothing for the engine to do.
    #[inline]
    pub(crate) fn is_file_operation(self) -> bool {
        !matches!(self, Self::Watch) && !self.waits_for_peer()
    }

    /// True if the descriptor must be writable (not readable) for it to go on.
    pub(crate) fn needs_writable(self) -> bool {
        matches!(self, Self::Op(OpKind::PollWritable | OpKind::WriteStream))
    }
}

/// One operation, from its submission until its completion is taken. It owns the buffers meanwhile.
pub(crate) struct Slot {
    pub(crate) buffers: IoBuffers,
    pub(crate) key: u64,
    pub(crate) work: Work,
    pub(crate) fd: RawFd,
    /// Index of the task's entry.
    pub(crate) task: u32,
    /// Next slot of the free list or of the task's list of ended operations.
    pub(crate) next: u32,
    /// Counts the slot's users, so that a late event for an earlier one is recognised.
    generation: u32,
    pub(crate) phase: Phase,
    /// The engine waits for the descriptor to become ready before it tries again.
    pub(crate) waiting: bool,
    /// Bytes moved or a negative errno, once ended.
    pub(crate) result: i64,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            buffers: IoBuffers::new(),
            key: 0,
            work: Work::Watch,
            fd: -1,
            task: NONE,
            next: NONE,
            generation: 0,
            phase: Phase::Free,
            waiting: false,
            result: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Free,
    /// With the engine.
    Busy,
    /// With the engine, and asked to end early.
    Cancelling,
    /// Waiting for its task to take the completion.
    Ended,
}

/// A slot's name that is never reused: index in the low half, generation in the high half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(pub(crate) u64);

impl Token {
    pub(crate) fn index(self) -> u32 {
        self.0 as u32
    }
}

/// All slots of one worker.
pub(crate) struct Slots {
    slots: Vec<Slot>,
    free: u32,
}

impl Slots {
    pub(crate) fn new() -> Self {
        let mut slots = Self {
            slots: Vec::new(),
            free: NONE,
        };
        slots.grow(FIRST_SLOTS);
        slots
    }

    /// Adds `count` slots; called with an empty free list.
    fn grow(&mut self, count: usize) {
        let first = self.slots.len();
        let end = first + count;
        self.slots.reserve_exact(count);
        for next in first + 1..=end {
            self.slots.push(Slot {
                next: if next == end { NONE } else { next as u32 },
                ..Slot::default()
            });
        }
        self.free = first as u32;
    }

    /// Takes a free slot for the engine; `None` at the limit. Its buffers are empty.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<(u32, &mut Slot)> {
        if self.free == NONE {
            self.grow_more()?;
        }
        let index = self.free;
        let slot = self.slots.get_mut(index as usize)?;
        self.free = slot.next;
        slot.next = NONE;
        slot.phase = Phase::Busy;
        slot.waiting = false;
        Some((index, slot))
    }

    #[cold]
    fn grow_more(&mut self) -> Option<()> {
        let count = self.slots.len().min(MAX_SLOTS - self.slots.len());
        (count > 0).then(|| self.grow(count))
    }

    /// Frees a slot whose operation the engine has let go of; its buffers come back.
    #[inline]
    pub(crate) fn release(&mut self, index: u32) -> IoBuffers {
        let free = self.free;
        let slot = self.get_mut(index);
        slot.phase = Phase::Free;
        slot.generation = slot.generation.wrapping_add(1);
        slot.next = free;
        let buffers = std::mem::take(&mut slot.buffers);
        self.free = index;
        buffers
    }

    pub(crate) fn get(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }

    pub(crate) fn token(&self, index: u32) -> Token {
        Token(u64::from(self.get(index).generation) << 32 | u64::from(index))
    }

    /// The slot that a token names, if the engine still holds it.
    #[inline]
    pub(crate) fn resolve(&self, token: Token) -> Option<u32> {
        let slot = self.slots.get(token.index() as usize)?;
        let held = matches!(slot.phase, Phase::Busy | Phase::Cancelling);
        (held && self.token(token.index()) == token).then_some(token.index())
    }

    /// Slots that the engine holds for a task. Walks all of them: for stopping, not for the data path.
    pub(crate) fn held_by(&self, task: u32) -> Vec<u32> {
        let held = |slot: &Slot| slot.task == task && matches!(slot.phase, Phase::Busy | Phase::Cancelling);
        let indices = self.slots.iter().zip(0u32..);
        indices
            .filter(|(slot, _)| held(slot))
            .map(|(_, index)| index)
            .collect()
    }

    /// Gives up every slot without freeing any buffer: the engine may still hold some.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.slots));
        self.free = NONE;
    }
}
