/// How a command ended. SAM-5 §5.3.1
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// It was done.
    Good = 0,
    /// It was not; the sense data say why.
    CheckCondition = 2,
    /// Somebody else has reserved the unit.
    ReservationConflict = 0x18,
    /// There are too many commands.
    TaskSetFull = 0x28,
}

/// Why a command was not done. SPC-4 §4.5
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code.
    pub code: u8,
    /// Its qualifier.
    pub qualifier: u8,
}

impl Sense {
    /// Nothing to say.
    pub const NONE: Self = Self::new(0, 0, 0);
    /// There is no medium.
    pub const NO_MEDIUM: Self = Self::new(2, 0x3a, 0);
    /// The image could not be read.
    pub const READ_ERROR: Self = Self::new(3, 0x11, 0);
    /// The image could not be written.
    pub const WRITE_ERROR: Self = Self::new(3, 0x0c, 0);
    /// The host has no space left for the image.
    pub const NO_SPACE: Self = Self::new(7, 0x27, 7);
    /// The command is not known here.
    pub const INVALID_COMMAND: Self = Self::new(5, 0x20, 0);
    /// Blocks past the end.
    pub const OUT_OF_RANGE: Self = Self::new(5, 0x21, 0);
    /// A field of the command cannot be.
    pub const INVALID_FIELD: Self = Self::new(5, 0x24, 0);
    /// There is no such logical unit.
    pub const NO_UNIT: Self = Self::new(5, 0x25, 0);
    /// A field of the parameters cannot be.
    pub const INVALID_PARAMETER: Self = Self::new(5, 0x26, 0);
    /// The parameters are too short.
    pub const PARAMETER_LENGTH: Self = Self::new(5, 0x1a, 0);
    /// Saved values are not kept.
    pub const NOT_SAVED: Self = Self::new(5, 0x39, 0);
    /// The guest has forbidden removal.
    pub const REMOVAL_PREVENTED: Self = Self::new(5, 0x53, 2);
    /// There is another medium now.
    pub const MEDIUM_CHANGED: Self = Self::new(6, 0x28, 0);
    /// The unit was reset or switched on.
    pub const POWER_ON: Self = Self::new(6, 0x29, 0);
    /// The medium has other data than the initiator.
    pub const MISCOMPARE: Self = Self::new(14, 0x1d, 0);
    /// A command came with a name that another one has.
    pub const OVERLAPPED: Self = Self::new(11, 0x4e, 0);
    /// The image is read-only.
    pub const WRITE_PROTECTED: Self = Self::new(7, 0x27, 0);

    const fn new(key: u8, code: u8, qualifier: u8) -> Self {
        Self { key, code, qualifier }
    }

    /// In the fixed format. SPC-4 §4.5.3
    pub fn fixed(&self) -> [u8; 18] {
        let (key, code, qualifier) = (self.key, self.code, self.qualifier);
        [
            0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0,
        ]
    }
}
