use treaty_net::BackendError;

/// How a network card is made.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// Its address; a random one of the locally administered kind if absent.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes; the back-end's if absent.
    pub mtu: Option<u16>,
    /// Largest queue size on offer, for each queue.
    pub queue_size: u16,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            mac: None,
            mtu: None,
            queue_size: 256,
        }
    }
}

/// A network card could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A group address cannot be a card's own.
    #[error("{0} is a group address; a network card's address has an even first byte")]
    GroupAddress(String),
    /// Too small for IPv4.
    #[error("an MTU of {0} is below {min}", min = treaty_virtio_spec::net::MIN_MTU)]
    Mtu(u16),
    /// A device needs somewhere to run.
    #[error("a network card needs at least one worker")]
    NoWorker,
    /// The back-end refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The host would not give an eventfd or randomness.
    #[error("cannot make a network card: {0}")]
    Host(#[from] std::io::Error),
}
