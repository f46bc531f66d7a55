use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use treaty_listen::ListenError;
use treaty_memory::GuestMemory;
use treaty_vhost_protocol::payload::{Config, Inflight, MemoryRegion, MemoryTable, VringAddr, VringState};
use treaty_vhost_protocol::table::{self, Row, backend as request, frontend as code};
use treaty_vhost_protocol::{BASELINE_REGIONS, Channel, Message, ProtocolError, features};
use treaty_virtio_device::Doorbell;
use treaty_virtio_spec::status;
use zerocopy::IntoBytes;

use crate::inflight::KeptLog;
use crate::ring::Ring;

/// Why a back-end cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Nobody listens.
    #[error("cannot reach a vhost-user back-end at {path}: {source}; start it first")]
    Connect {
        /// Socket path.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It cannot be listened for.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The conversation failed.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// It said no.
    #[error("the back-end refused {0}")]
    Refused(&'static str),
    /// It lacks what this device needs.
    #[error("the back-end lacks {0}")]
    Lacks(String),
    /// The system refused.
    #[error("{action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// How long a back-end may take to answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to drain a ring.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(60);
/// Protocol features that are used if the back-end has them.
const WANTED: u64 = features::MQ
    | features::REPLY_ACK
    | features::CONFIG
    | features::BACKEND_REQ
    | features::INFLIGHT_SHMFD
    | features::RESET_DEVICE
    | features::STATUS;
/// Requests of the back-end that are taken before anything else is looked at.
const REQUESTS_PER_TURN: usize = 64;
/// The most bytes of configuration in a message.
const CONFIG_BYTES: usize = 256;

/// How long a back-end is waited for.
#[derive(Clone)]
pub struct Patience {
    /// For an answer.
    pub answer: Duration,
    /// For a ring to drain.
    pub drain: Duration,
    /// No longer once this is rung.
    pub quit: Doorbell,
}

/// A connected back-end, after the first exchange of features.
pub struct Backend {
    channel: Channel,
    /// Every other memory table is.
    odd_table: bool,
    requests: Option<Channel>,
    pub patience: Patience,
    /// Virtio features on offer, with the protocol's bits.
    pub features: u64,
    protocol: u64,
    /// Queues it has, if it says so.
    pub queues: Option<u64>,
}

impl Backend {
    /// Learns what is at the other end of a new connection.
    pub fn greet(stream: UnixStream, patience: Patience) -> Result<Self, BackendError> {
        let channel = Channel::new(stream, &[]);
        let mut backend = Self {
            channel,
            requests: None,
            patience,
            odd_table: false,
            features: 0,
            protocol: 0,
            queues: None,
        };
        backend.features = backend.get(code::GET_FEATURES)?;
        if backend.features & features::PROTOCOL_FEATURES != 0 {
            backend.protocol = backend.get(code::GET_PROTOCOL_FEATURES)? & WANTED;
            backend.send(code::SET_PROTOCOL_FEATURES, backend.protocol.as_bytes(), &[])?;
        }
        backend.send(code::SET_OWNER, &[], &[])?;
        if backend.has(features::MQ) {
            backend.queues = Some(backend.get(code::GET_QUEUE_NUM)?);
        }
        if backend.has(features::BACKEND_REQ) {
            backend.open_requests()?;
        }
        Ok(backend)
    }

    fn open_requests(&mut self) -> Result<(), BackendError> {
        let (ours, theirs) = UnixStream::pair().map_err(|source| BackendError::Host {
            action: "make a socket pair",
            source,
        })?;
        self.send(code::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
        self.requests = Some(Channel::new(ours, table::backend::ROWS));
        Ok(())
    }

    fn has(&self, feature: u64) -> bool {
        self.protocol & feature != 0
    }

    /// Readable when the back-end hangs up.
    pub fn fd(&self) -> RawFd {
        self.channel.fd()
    }

    /// Readable when the back-end has a request.
    pub fn requests_fd(&self) -> Option<RawFd> {
        self.requests.as_ref().map(Channel::fd)
    }

    /// Takes the back-end's requests; true if the configuration changed. An error also if the back-end has gone or speaks out of turn.
    pub fn take_requests(&mut self) -> Result<bool, BackendError> {
        // There are no requests on the main channel: anything but silence is an error.
        self.channel.try_receive()?;
        let mut changed = false;
        let Some(channel) = &mut self.requests else {
            return Ok(false);
        };
        // Bounded: commands wait behind this.
        for _ in 0..REQUESTS_PER_TURN {
            let Some(message) = channel.try_receive()? else {
                break;
            };
            changed |= message.row.code == request::CONFIG_CHANGE_MSG;
            answer_request(channel, &message)?;
        }
        Ok(changed)
    }

    /// The first `len` bytes of the device configuration.
    pub fn config(&mut self, len: u32) -> Result<Vec<u8>, BackendError> {
        if len == 0 {
            return Ok(Vec::new());
        }
        if !self.has(features::CONFIG) {
            return Err(BackendError::Lacks("a device configuration".into()));
        }
        let header = Config {
            offset: 0,
            size: len,
            flags: 0,
        };
        let mut payload = header.as_bytes().to_vec();
        payload.resize(size_of::<Config>() + len as usize, 0);
        let reply = self.ask(code::GET_CONFIG, &payload, self.patience.answer)?;
        // A back-end that refuses answers with nothing.
        match reply.payload.get(size_of::<Config>()..) {
            Some(config) if config.len() == len as usize => Ok(config.to_vec()),
            _ => Err(BackendError::Lacks(format!(
                "a device configuration of {len} bytes"
            ))),
        }
    }

    /// Writes device configuration.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), BackendError> {
        if !self.has(features::CONFIG) || bytes.len() > CONFIG_BYTES {
            return Ok(());
        }
        let header = Config {
            offset,
            size: bytes.len() as u32,
            flags: 0,
        };
        let mut payload = header.as_bytes().to_vec();
        payload.extend_from_slice(bytes);
        self.set(code::SET_CONFIG, &payload, &[])
    }

    /// What comes before any ring: negotiated features and memory.
    pub fn prepare(&mut self, accepted: u64, memory: &GuestMemory) -> Result<(), BackendError> {
        let missing = accepted & !self.features;
        if missing != 0 {
            return Err(BackendError::Lacks(format!(
                "features {missing:#x} that the driver has accepted"
            )));
        }
        let bits = accepted | self.features & features::PROTOCOL_FEATURES;
        self.set(code::SET_FEATURES, bits.as_bytes(), &[])?;
        self.odd_table = !self.odd_table;
        self.set_memory(memory)
    }

    fn set_memory(&mut self, memory: &GuestMemory) -> Result<(), BackendError> {
        let regions = memory.regions();
        if regions.len() > BASELINE_REGIONS {
            return Err(BackendError::Lacks(format!(
                "room for {} memory regions",
                regions.len()
            )));
        }
        let header = MemoryTable {
            count: regions.len() as u32,
            padding: 0,
        };
        let mut payload = header.as_bytes().to_vec();
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        for region in regions {
            let Some((file, offset)) = region.file() else {
                return Err(BackendError::Lacks("guest memory that can be shared".into()));
            };
            let entry = MemoryRegion {
                guest_address: region.guest_start(),
                size: region.len() as u64,
                user_address: user_address(self.odd_table, region.guest_start()),
                mmap_offset: offset,
            };
            payload.extend_from_slice(entry.as_bytes());
            fds.push(file.as_fd());
        }
        self.set(code::SET_MEM_TABLE, &payload, &fds)
    }

    /// New in-flight logs for `queues` rings of at most `queue_size` entries, if the back-end knows of such.
    pub fn new_log(&mut self, queues: u16, queue_size: u16) -> Result<Option<KeptLog>, BackendError> {
        if !self.has(features::INFLIGHT_SHMFD) {
            return Ok(None);
        }
        let asked = Inflight {
            queues,
            queue_size,
            ..Inflight::default()
        };
        let mut reply = self.ask(code::GET_INFLIGHT_FD, asked.as_bytes(), ANSWER_LIMIT)?;
        let fd = reply.take_fd();
        Ok(KeptLog::new(reply.read_padded(), fd))
    }

    /// Hands in-flight logs over; false if the back-end does not know what to do with them.
    pub fn set_log(&mut self, log: &KeptLog) -> Result<bool, BackendError> {
        if !self.has(features::INFLIGHT_SHMFD) {
            return Ok(false);
        }
        self.set(code::SET_INFLIGHT_FD, log.area.as_bytes(), &[log.fd()])?;
        Ok(true)
    }

    /// Starts ring `index` at `base`.
    pub fn start(&mut self, index: u16, ring: &Ring, base: u32) -> Result<(), BackendError> {
        let number = u32::from(index);
        let state = |num| VringState { index: number, num };
        self.set(
            code::SET_VRING_NUM,
            state(u32::from(ring.config.size)).as_bytes(),
            &[],
        )?;
        self.set(code::SET_VRING_BASE, state(base).as_bytes(), &[])?;
        self.set(
            code::SET_VRING_ADDR,
            ring_address(self.odd_table, number, ring)?.as_bytes(),
            &[],
        )?;
        let call = [ring.call.as_fd()];
        self.set(code::SET_VRING_CALL, u64::from(index).as_bytes(), &call)?;
        let err = [ring.err.as_fd()];
        self.set(code::SET_VRING_ERR, u64::from(index).as_bytes(), &err)?;
        let kick = [ring.doorbell.as_fd()];
        self.set(code::SET_VRING_KICK, u64::from(index).as_bytes(), &kick)?;
        if self.features & features::PROTOCOL_FEATURES != 0 {
            self.set(code::SET_VRING_ENABLE, state(1).as_bytes(), &[])?;
        }
        Ok(())
    }

    /// After the rings of one start: the driver is ready.
    pub fn driver_ok(&mut self) -> Result<(), BackendError> {
        if !self.has(features::STATUS) {
            return Ok(());
        }
        let bits = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.set(code::SET_STATUS, u64::from(bits).as_bytes(), &[])
    }

    /// Drains ring `index`; where it stands.
    pub fn stop(&mut self, index: u16) -> Result<u32, BackendError> {
        let state = VringState {
            index: u32::from(index),
            num: 0,
        };
        let reply = self.ask(code::GET_VRING_BASE, state.as_bytes(), self.patience.drain)?;
        Ok(reply.read::<VringState>()?.num)
    }

    /// Back to power-on, if the back-end knows how.
    pub fn reset(&mut self) -> Result<(), BackendError> {
        if self.has(features::STATUS) {
            return self.set(code::SET_STATUS, 0u64.as_bytes(), &[]);
        }
        if self.has(features::RESET_DEVICE) {
            return self.set(code::RESET_DEVICE, &[], &[]);
        }
        Ok(())
    }

    fn get(&mut self, request: u32) -> Result<u64, BackendError> {
        Ok(self.ask(request, &[], self.patience.answer)?.read()?)
    }

    fn ask(&mut self, request: u32, payload: &[u8], limit: Duration) -> Result<Message, BackendError> {
        let row = row(request)?;
        self.channel.send(row, false, payload, &[])?;
        let quit = self.patience.quit.fd();
        Ok(self.channel.receive_reply_unless(row, limit, quit)?)
    }

    fn send(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), BackendError> {
        Ok(self.channel.send(row(request)?, false, payload, fds)?)
    }

    /// Sends, and waits for the acknowledgement where there is one.
    fn set(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), BackendError> {
        let row = row(request)?;
        let acks = self.has(features::REPLY_ACK);
        self.channel.send(row, acks, payload, fds)?;
        if !acks {
            return Ok(());
        }
        let (limit, quit) = (self.patience.answer, self.patience.quit.fd());
        match self.channel.receive_reply_unless(row, limit, quit)?.read()? {
            0u64 => Ok(()),
            _ => Err(BackendError::Refused(row.name)),
        }
    }
}

/// What is said to a request of the back-end. There is nothing here that shared objects, host notifiers or shared memory regions
/// could be of use to.
fn answer_request(channel: &Channel, message: &Message) -> Result<(), ProtocolError> {
    let done = u64::from(message.row.code != request::CONFIG_CHANGE_MSG);
    match message.row.reply {
        table::Reply::Ack if !message.need_reply => Ok(()),
        _ => channel.reply_value(message.row, &done),
    }
}

fn row(request: u32) -> Result<&'static Row, BackendError> {
    table::row(table::frontend::ROWS, request).ok_or(BackendError::Refused("a request of no table"))
}

/// What "user addresses" are is this side's affair. They differ from one memory table to the next: DPDK takes a table with the
/// addresses of the one before for the same memory, and a machine that reboots has other memory at the same place. They differ
/// by a page only: libvhost-user gives up if the rings' old addresses are not in the new table.
fn user_address(odd: bool, guest_address: u64) -> u64 {
    /// Beyond any guest's memory, so that no address is 0.
    const BASE: u64 = 1 << 44;
    const PAGE: u64 = 4096;
    BASE + guest_address + if odd { PAGE } else { 0 }
}

/// The ring's areas in the memory table's user addresses.
fn ring_address(odd: bool, index: u32, ring: &Ring) -> Result<VringAddr, BackendError> {
    let user = |addr: u64| {
        let outside = || BackendError::Lacks(format!("memory at ring address {addr:#x}"));
        ring.memory.range(addr, 1).ok_or_else(outside)?;
        Ok::<_, BackendError>(user_address(odd, addr))
    };
    Ok(VringAddr {
        index,
        flags: 0,
        descriptor: user(ring.config.descriptor_area)?,
        used: user(ring.config.device_area)?,
        available: user(ring.config.driver_area)?,
        log: ring.config.device_area,
    })
}
