use treaty_chardev::Chardev;

/// How a console device is made.
pub struct ConsoleConfig {
    /// The ports; port 0 is used by drivers that know of one port only. 1 to [`MAX_PORTS`](Self::MAX_PORTS).
    pub ports: Vec<PortConfig>,
    /// Size of the console, if known.
    pub size: Option<WindowSize>,
    /// Largest queue size on offer.
    pub queue_size: u16,
}

/// One port.
pub struct PortConfig {
    /// Where its bytes go to and come from.
    pub chardev: Chardev,
    /// True for a console (`hvc`), false for a data port.
    pub console: bool,
    /// Name by which programs in the guest find a data port, at most [`MAX_NAME`](Self::MAX_NAME) bytes.
    pub name: Option<String>,
}

/// Characters of a console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WindowSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleConfigError {
    /// Number of ports.
    #[error("a console device has 1 to {max} ports, not {0}", max = ConsoleConfig::MAX_PORTS)]
    Ports(usize),
    /// A port's name.
    #[error("the name of port {0} is longer than {max} bytes", max = PortConfig::MAX_NAME)]
    Name(usize),
    /// The host would not give an eventfd.
    #[error("cannot make a console device: {0}")]
    Host(#[from] std::io::Error),
}

impl ConsoleConfig {
    /// The most ports of one device.
    pub const MAX_PORTS: usize = 31;

    /// One console on `chardev`.
    pub fn single(chardev: Chardev) -> Self {
        Self {
            ports: vec![PortConfig {
                chardev,
                console: true,
                name: None,
            }],
            size: None,
            queue_size: 128,
        }
    }

    /// True if the device needs control queues: more than one port, a name, or a port that is no console.
    pub fn multiport(&self) -> bool {
        self.ports.len() > 1 || self.ports.iter().any(|port| port.name.is_some() || !port.console)
    }

    pub(crate) fn check(&self) -> Result<(), ConsoleConfigError> {
        if !(1..=Self::MAX_PORTS).contains(&self.ports.len()) {
            return Err(ConsoleConfigError::Ports(self.ports.len()));
        }
        let too_long = |port: &PortConfig| {
            port.name
                .as_ref()
                .is_some_and(|name| name.len() > PortConfig::MAX_NAME)
        };
        match self.ports.iter().position(too_long) {
            Some(index) => Err(ConsoleConfigError::Name(index)),
            None => Ok(()),
        }
    }
}

impl PortConfig {
    /// The longest name in bytes.
    pub const MAX_NAME: usize = 64;
}
