use std::io;
use std::os::fd::RawFd;

use treaty_buffers::IoBuffers;
use treaty_virtio_spec::net::{Header, MAX_FRAME_SIZE};

/// The largest frame in bytes that any back-end carries, Ethernet header included.
pub const MAX_FRAME: usize = MAX_FRAME_SIZE;

/// Work on packets that one side leaves to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums may be left to the taker. The others need it.
    pub csum: bool,
    /// TCPv4 packets longer than the MTU.
    pub tso4: bool,
    /// TCPv6 packets longer than the MTU.
    pub tso6: bool,
    /// TCP packets longer than the MTU, with ECN.
    pub ecn: bool,
    /// UDP datagrams longer than the MTU, to be fragmented.
    pub ufo: bool,
    /// UDP packets longer than the MTU, to be segmented (IPv4 and IPv6).
    pub uso: bool,
}

impl Offloads {
    /// None.
    pub const NONE: Self = Self {
        csum: false,
        tso4: false,
        tso6: false,
        ecn: false,
        ufo: false,
        uso: false,
    };
    /// All.
    pub const ALL: Self = Self {
        csum: true,
        tso4: true,
        tso6: true,
        ecn: true,
        ufo: true,
        uso: true,
    };
}

/// What a back-end can do. It does not change while the back-end lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What may be left to it in packets that it is given.
    pub send: Offloads,
    /// What can be left to the receiver in packets that it brings, if [asked](PacketBackend::set_receive_offloads).
    pub receive: Offloads,
    /// Queue pairs, at least 1.
    pub max_pairs: u16,
    /// Its greatest MTU in bytes, if it has one.
    pub mtu: Option<u16>,
}

/// The host would not do its part.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It cannot be used as it is; the text says what to do.
    #[error("{0}")]
    Refused(String),
}

impl BackendError {
    pub(crate) fn host(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Host { action, source }
    }
}

/// Where a network card's packets go to and come from.
pub trait PacketBackend: Send {
    /// Abilities.
    fn capabilities(&self) -> &Capabilities;

    /// What the receiver takes upon itself, out of [`Capabilities::receive`]. Nothing until first called.
    fn set_receive_offloads(&mut self, offloads: Offloads) -> Result<(), BackendError>;

    /// From now on, packets arrive on the first `count` pairs only. One until first called.
    fn set_pairs(&mut self, count: u16) -> Result<(), BackendError>;

    /// A pair's way out, for one thread. The one made before for that pair must have been dropped.
    fn sender(&mut self, pair: u16) -> Result<Box<dyn PacketSender>, BackendError>;

    /// A pair's way in, for one thread. The one made before for that pair must have been dropped.
    fn receiver(&mut self, pair: u16) -> Result<Box<dyn PacketReceiver>, BackendError>;
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Taken,
    /// There is no room now; wait for [`PacketSender::output_fd`] and send it again.
    Later,
    /// It is lost: nobody is at the other end, or the packet was refused.
    Dropped,
}

/// What there was to receive.
#[derive(Debug)]
pub enum Received {
    /// One frame, `len` bytes long.
    Frame {
        /// What is left to the receiver; `num_buffers` has no meaning here.
        header: Header,
        /// Bytes, at least 1.
        len: usize,
    },
    /// A frame was lost: too long or malformed. There may be more.
    Lost,
    /// Nothing now.
    Nothing,
    /// There will never be anything again, and why.
    Down(String),
}

/// One pair's way out.
pub trait PacketSender: Send {
    /// Sends one frame of at most [`MAX_FRAME`] bytes. `header` uses nothing beyond [`Capabilities::send`].
    fn send(&mut self, header: &Header, frame: &IoBuffers) -> Sent;

    /// What to poll for room after [`Sent::Later`].
    fn output_fd(&self) -> Option<RawFd>;
}

/// One pair's way in.
pub trait PacketReceiver: Send {
    /// Receives one frame to the front of `frame`, which has room for [`MAX_FRAME`] bytes.
    fn receive(&mut self, frame: &mut [u8]) -> Received;

    /// What to poll after [`Received::Nothing`]; asked for each time.
    fn input_fd(&self) -> Option<RawFd>;
}
