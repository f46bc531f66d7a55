use std::fmt;
use std::str::FromStr;

/// How an image and the host's page cache go together, by QEMU's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// O_DIRECT, past the page cache. A flush makes durable.
    None,
    /// Through the page cache. A flush makes durable.
    #[default]
    Writeback,
    /// Through the page cache; every write is durable when it completes.
    Writethrough,
    /// O_DIRECT; every write is durable when it completes.
    DirectSync,
    /// Through the page cache, and flushes do nothing: for contents that nobody needs after a crash of the host.
    Unsafe,
}

impl CacheMode {
    /// All modes, in the order in which messages name them.
    pub const ALL: [Self; 5] = [
        Self::None,
        Self::Writeback,
        Self::Writethrough,
        Self::DirectSync,
        Self::Unsafe,
    ];

    /// The name that users write.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Writeback => "writeback",
            Self::Writethrough => "writethrough",
            Self::DirectSync => "directsync",
            Self::Unsafe => "unsafe",
        }
    }

    /// Past the page cache.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::DirectSync)
    }

    /// Every write is to be durable when it completes. What submits the requests sees to that: a disk starts in
    /// writethrough mode, a server marks every write.
    pub fn writes_through(self) -> bool {
        matches!(self, Self::Writethrough | Self::DirectSync)
    }

    /// Flushes do nothing.
    pub fn ignores_flushes(self) -> bool {
        self == Self::Unsafe
    }
}

impl fmt::Display for CacheMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CacheMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("cache={text}: give one of {names}")
        })
    }
}
