use crate::action::{Action, Answer};
use crate::reserve::Reservations;
use crate::table;
use crate::{Sense, bytes};

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A direct-access block device.
    Disk,
    /// A CD or DVD drive. Blocks have 2048 bytes, whatever the configuration says.
    Cdrom,
}

/// Who sends a command: one number for each path from an initiator to this unit.
pub type Nexus = u64;

/// What a unit says of itself and of its medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitConfig {
    /// Disk or CD-ROM.
    pub kind: Kind,
    /// Eight characters.
    pub vendor: String,
    /// Sixteen characters.
    pub product: String,
    /// Tells it from others; at most 36 characters.
    pub serial: String,
    /// Bytes of the medium; `None` without one.
    pub len: Option<u64>,
    /// Bytes of a block: a power of two, 512 or more.
    pub block_size: u32,
    /// Best unit in bytes; a multiple of the block's.
    pub optimal_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// The image can be told that contents do not matter.
    pub discard: bool,
}

/// Something that the guest did to the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The medium was thrown out.
    Ejected,
}

/// A logical unit.
pub struct Unit {
    pub(crate) config: UnitConfig,
    /// To be told once, with the next command that may fail.
    pub(crate) attention: Option<Sense>,
    /// Of the last command, for REQUEST SENSE.
    pub(crate) last: Sense,
    /// A write cache is on: flushes matter.
    pub(crate) write_cache: bool,
    /// The guest forbids removal.
    pub(crate) locked: bool,
    /// What GET EVENT STATUS NOTIFICATION has to tell. MMC-6 §6.6
    pub(crate) media_event: u8,
    pub(crate) tray_open: bool,
    pub(crate) events: Vec<Event>,
    pub(crate) reservations: Reservations,
}

impl Unit {
    /// Most bytes that WRITE SAME fills with a block that is not zero.
    pub const MAX_FILL: u32 = 1 << 20;
    /// Most bytes that a command compares.
    pub const MAX_COMPARE: u32 = 1 << 16;
    /// Most ranges of one UNMAP.
    pub const MAX_UNMAP_RANGES: usize = 256;

    /// A unit that has just been switched on.
    pub fn new(config: UnitConfig) -> Self {
        let mut unit = Self {
            config,
            attention: Some(Sense::POWER_ON),
            last: Sense::NONE,
            write_cache: true,
            locked: false,
            media_event: 0,
            tray_open: false,
            events: Vec::new(),
            reservations: Reservations::default(),
        };
        if unit.config.kind == Kind::Cdrom {
            unit.config.block_size = 2048;
            unit.config.read_only = true;
        }
        unit
    }

    /// A reset of the unit or of its bus.
    pub fn reset(&mut self) {
        self.attention = Some(Sense::POWER_ON);
        self.last = Sense::NONE;
        self.write_cache = true;
        self.locked = false;
        self.reservations.release_old();
    }

    /// Another medium of that many bytes, or none. `None` if the guest has locked the tray.
    pub fn change_medium(&mut self, len: Option<u64>) -> Option<()> {
        if self.locked {
            return None;
        }
        self.config.len = len;
        self.tray_open = false;
        self.media_event = match len {
            // New medium; media removal.
            Some(_) => 2,
            None => 3,
        };
        if len.is_some() {
            self.attention = Some(Sense::MEDIUM_CHANGED);
        }
        Some(())
    }

    /// What the guest did since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Disk or CD-ROM.
    pub fn kind(&self) -> Kind {
        self.config.kind
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u32 {
        self.config.block_size
    }

    /// Begins a command. `cdb` may be longer than the command.
    pub fn command(&mut self, nexus: Nexus, cdb: &[u8]) -> Action {
        const REQUEST_SENSE: u8 = 0x03;
        // It is kept only for the command that comes next. SPC-4 §4.5.1
        if cdb.first() != Some(&REQUEST_SENSE) {
            self.last = Sense::NONE;
        }
        let action = self.checked(nexus, cdb);
        self.note(&action);
        action
    }

    /// Goes on with a command that asked for [`Action::Parameters`].
    pub fn parameters(&mut self, nexus: Nexus, cdb: &[u8], data: &[u8]) -> Action {
        let action = match table::find(self.config.kind, cdb).and_then(|row| row.parameters) {
            Some(handler) => handler(self, nexus, cdb, data),
            None => Sense::INVALID_COMMAND.into(),
        };
        self.note(&action);
        action
    }

    /// Ends a command whose work on the image failed.
    pub fn failed(&mut self, sense: Sense) -> Answer {
        self.last = sense;
        Answer::check(sense)
    }

    fn checked(&mut self, nexus: Nexus, cdb: &[u8]) -> Action {
        let Some(row) = table::find(self.config.kind, cdb) else {
            return Sense::INVALID_COMMAND.into();
        };
        if !row.always {
            if let Some(attention) = self.attention.take() {
                return attention.into();
            }
            if !self.reservations.allows(nexus, row.access) {
                return Answer::conflict().into();
            }
        }
        (row.handler)(self, nexus, cdb)
    }

    /// Remembers what REQUEST SENSE would tell.
    fn note(&mut self, action: &Action) {
        if let Action::Answer(Answer {
            sense: Some(sense), ..
        }) = action
        {
            self.last = *sense;
        }
    }

    /// The blocks of the medium.
    pub(crate) fn blocks(&self) -> Option<u64> {
        self.config.len.map(|len| len / u64::from(self.config.block_size))
    }
}

/// What the initiator allows an answer to be long.
pub(crate) fn cut(mut data: Vec<u8>, allocated: usize) -> Action {
    data.truncate(allocated);
    Answer::data(data).into()
}

/// The length that a command's list at `at` has, of two bytes.
pub(crate) fn allocation(cdb: &[u8], at: usize) -> usize {
    usize::from(bytes::u16_at(cdb, at))
}
