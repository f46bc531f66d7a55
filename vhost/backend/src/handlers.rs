//! One function per message. [`table`](treaty_vhost_protocol::table) has checked sizes, descriptors and protocol features before.

use std::mem::offset_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use treaty_memory::{DirtyLog, GuestMemory};
use treaty_vhost_protocol::payload::{
    Config, Log, MemoryRegion, MemoryTable as TableHeader, SingleRegion, VRING_FD_INDEX, VRING_FD_NONE,
    VRING_LOG, VringAddr, VringState,
};
use treaty_vhost_protocol::table::{Reply, frontend as code};
use treaty_vhost_protocol::{Message, features};
use treaty_virtio_device::{DeviceId, Features};
use treaty_virtio_spec::feature;
use treaty_virtio_spec::ring::MAX_QUEUE_SIZE;
use zerocopy::{FromBytes, IntoBytes};

use crate::inflight;
use crate::iotlb;
use crate::memory::{MAX_SLOTS, RegionRefused};
use crate::notify::set_nonblocking;
use crate::postcopy;
use crate::session::{Session, SessionError, refused};
use crate::state;
use crate::vring::Vring;

/// What a handler came to.
pub enum Outcome {
    /// Done; acknowledged if the peer asked for it.
    Done,
    /// An answer of its own.
    Payload(Vec<u8>, Vec<OwnedFd>),
    /// An answer to a request that has none otherwise.
    Extra(Vec<u8>),
    /// Not done, and the connection can go on if the peer hears of it.
    Rejected(String),
    /// Part of a feature that is not offered, and no harm if it is passed over.
    NotServed,
}

type Result<T> = std::result::Result<T, SessionError>;

/// Protocol features on offer. CONFIG only for devices that have a configuration: QEMU warns of it where it has no use for it.
/// PAGEFAULT only where it is wanted and the host has it.
pub fn offered_protocol(session: &Session<'_>) -> u64 {
    let mut offered = PROTOCOL_FEATURES;
    if session.device.description().config_len == 0 {
        offered &= !features::CONFIG;
    }
    if !session.postcopy.is_offered() {
        offered &= !features::PAGEFAULT;
    }
    offered
}

/// Protocol features on offer at most.
const PROTOCOL_FEATURES: u64 = features::MQ
    | features::LOG_SHMFD
    | features::REPLY_ACK
    | features::BACKEND_REQ
    | features::PAGEFAULT
    | features::CONFIG
    | features::INFLIGHT_SHMFD
    | features::RESET_DEVICE
    | features::CONFIGURE_MEM_SLOTS
    | features::STATUS
    | features::DEVICE_STATE;

pub fn handle(session: &mut Session<'_>, message: Message) -> Result<Outcome> {
    match message.row.code {
        code::GET_FEATURES => Ok(number(offered(session))),
        code::SET_FEATURES => set_features(session, &message),
        code::SET_OWNER | code::RESET_OWNER => Ok(Outcome::Done),
        code::GET_PROTOCOL_FEATURES => Ok(number(offered_protocol(session))),
        code::SET_PROTOCOL_FEATURES => set_protocol_features(session, &message),
        code::GET_QUEUE_NUM => Ok(number(queue_num(session))),
        code::SET_MEM_TABLE => set_mem_table(session, message),
        code::GET_MAX_MEM_SLOTS => Ok(number(MAX_SLOTS as u64)),
        code::ADD_MEM_REG => add_mem_reg(session, message),
        code::REM_MEM_REG => rem_mem_reg(session, &message),
        code::SET_LOG_BASE => set_log_base(session, message),
        // The log is read without being told that it changed.
        code::SET_LOG_FD => Ok(Outcome::Done),
        code::SET_VRING_NUM => set_vring_num(session, &message),
        code::SET_VRING_ADDR => set_vring_addr(session, &message),
        code::SET_VRING_BASE => set_vring_base(session, &message),
        code::GET_VRING_BASE => get_vring_base(session, &message),
        code::SET_VRING_KICK => set_vring_kick(session, message),
        code::SET_VRING_CALL => set_vring_call(session, message),
        code::SET_VRING_ERR => set_vring_err(session, message),
        code::SET_VRING_ENABLE => set_vring_enable(session, &message),
        code::SET_BACKEND_REQ_FD => set_backend_channel(session, message),
        code::GET_CONFIG => get_config(session, &message),
        code::SET_CONFIG => set_config(session, &message),
        code::GET_INFLIGHT_FD => inflight::get(session, &message),
        code::SET_INFLIGHT_FD => inflight::set(session, message),
        code::RESET_DEVICE => Ok(reset_device(session)),
        code::SET_STATUS => set_status(session, &message),
        code::GET_STATUS => Ok(number(u64::from(status(session)))),
        code::IOTLB_MSG => iotlb::message(session, &message),
        code::POSTCOPY_ADVISE if session.postcopy.is_offered() => postcopy::advise(session),
        code::POSTCOPY_LISTEN if session.postcopy.is_offered() => postcopy::listen(session),
        code::POSTCOPY_END if session.postcopy.is_offered() => postcopy::end(session),
        code::SET_DEVICE_STATE_FD => state::begin(session, message),
        code::CHECK_DEVICE_STATE => Ok(state::check(session)),
        _ => Ok(not_served(message)),
    }
}

/// The answer to messages of features that are not on offer. A front-end that sends them all the same hears no, in the form that
/// the message has for it, and goes on.
fn not_served(message: Message) -> Outcome {
    match message.row.code {
        // The question again, and no descriptor.
        code::GET_SHARED_OBJECT => Outcome::Payload(message.payload, Vec::new()),
        // No regions.
        code::GET_SHMEM_CONFIG => number(0),
        code::CREATE_CRYPTO_SESSION => number(u64::MAX),
        _ if message.row.reply == Reply::Ack => Outcome::NotServed,
        _ => number(1),
    }
}

pub fn number(value: u64) -> Outcome {
    Outcome::Payload(value.as_bytes().to_vec(), Vec::new())
}

/// Ring features on offer, whatever the device. Not RING_RESET, for which the protocol has no message of its own: QEMU (7.2 to
/// 10) lets the driver have it if we offer it, does not tell us of a reset, and we would go on in memory that the driver has
/// given to others. A front-end can do it all the same, with GET_VRING_BASE; ours does.
const RING_FEATURES: Features = feature::VERSION_1
    .with(feature::RING_PACKED)
    .with(feature::INDIRECT_DESC)
    .with(feature::EVENT_IDX)
    .with(feature::IN_ORDER);

/// Front-ends count the queues of a network card in pairs, and answer its control queue themselves.
fn queue_num(session: &Session<'_>) -> u64 {
    let rings = session.vrings.len() as u64;
    match session.device.description().id {
        DeviceId::NET => rings / 2,
        _ => rings,
    }
}

/// Everything that a driver may have, with the protocol's own bits.
fn offered(session: &Session<'_>) -> u64 {
    let device = session.device.description().features;
    let iommu = Features::when(session.iommu, feature::ACCESS_PLATFORM);
    device.0 | RING_FEATURES.0 | iommu.0 | features::PROTOCOL_FEATURES | features::LOG_ALL
}

fn set_features(session: &mut Session<'_>, message: &Message) -> Result<Outcome> {
    let wanted: u64 = message.read()?;
    if wanted & !offered(session) != 0 {
        let extra = wanted & !offered(session);
        return Err(refused(
            message.row.name,
            format!("bits {extra:#x} were not offered"),
        ));
    }
    if wanted & features::LOG_ALL != 0 && wanted & feature::ACCESS_PLATFORM.0 != 0 {
        // The log is of guest addresses, which an IOMMU's front-end does not tell.
        return Err(refused(message.row.name, "no dirty log behind an IOMMU"));
    }
    if wanted == session.accepted && session.negotiated {
        return Ok(Outcome::Done);
    }
    session.with_rings_stopped(|session| {
        let before = session.driver_features();
        session.accepted = wanted;
        let driver = session.driver_features();
        // Switching the dirty log is no negotiation.
        let negotiates = (driver != before || !session.negotiated) && driver.has(feature::VERSION_1);
        session.negotiated = true;
        if negotiates && !session.device.negotiate(driver) {
            return Err(refused(
                "SET_FEATURES",
                format!("the device does not take {driver:?}"),
            ));
        }
        state::restore(session).map_err(|reason| refused("SET_FEATURES", reason))?;
        if driver.has(feature::ACCESS_PLATFORM) != before.has(feature::ACCESS_PLATFORM) {
            iotlb::renew(session)?;
        }
        Ok(Outcome::Done)
    })
}

fn set_protocol_features(session: &mut Session<'_>, message: &Message) -> Result<Outcome> {
    let wanted: u64 = message.read()?;
    let extra = wanted & !offered_protocol(session);
    if extra != 0 {
        return Err(refused(
            message.row.name,
            format!("bits {extra:#x} were not offered"),
        ));
    }
    session.protocol_features = wanted;
    Ok(Outcome::Done)
}

fn memory_error(request: &'static str) -> impl Fn(RegionRefused) -> SessionError {
    move |source| SessionError::Memory { request, source }
}

fn set_mem_table(session: &mut Session<'_>, mut message: Message) -> Result<Outcome> {
    if session.postcopy.is_ack(&message) {
        return postcopy::acknowledged(session);
    }
    let name = message.row.name;
    let header: TableHeader = message.read()?;
    let rest = message
        .payload
        .get(size_of::<TableHeader>()..)
        .unwrap_or_default();
    let count = header.count as usize;
    if rest.len() < count.saturating_mul(size_of::<MemoryRegion>()) || count != message.fds.len() {
        return Err(refused(
            name,
            format!("{count} regions, {} descriptors", message.fds.len()),
        ));
    }
    let regions = rest.chunks_exact(size_of::<MemoryRegion>()).take(count);
    let regions = regions.filter_map(|bytes| MemoryRegion::read_from_bytes(bytes).ok());
    let table = regions.zip(message.fds.drain(..)).collect();
    session.with_rings_stopped(|session| {
        session.memory.replace(table).map_err(memory_error(name))?;
        iotlb::renew(session)?;
        postcopy::changed(session, message.payload, size_of::<TableHeader>())
    })
}

fn add_mem_reg(session: &mut Session<'_>, mut message: Message) -> Result<Outcome> {
    if session.postcopy.is_ack(&message) {
        return postcopy::acknowledged(session);
    }
    let name = message.row.name;
    let SingleRegion { region, .. } = message.read()?;
    let fd = message.take_fd().ok_or_else(|| refused(name, "no descriptor"))?;
    session.with_rings_stopped(|session| {
        session.memory.add(region, fd).map_err(memory_error(name))?;
        iotlb::renew(session)?;
        postcopy::changed(session, message.payload, offset_of!(SingleRegion, region))
    })
}

fn rem_mem_reg(session: &mut Session<'_>, message: &Message) -> Result<Outcome> {
    let name = message.row.name;
    let SingleRegion { region, .. } = message.read()?;
    session.with_rings_stopped(|session| {
        session.memory.remove(&region).map_err(memory_error(name))?;
        iotlb::renew(session)?;
        postcopy::cover(session)?;
        Ok(Outcome::Done)
    })
}

/// Hardening row 25: a log that does not cover all of memory is refused.
fn set_log_base(session: &mut Session<'_>, mut message: Message) -> Result<Outcome> {
    let name = message.row.name;
    let area: Log = message.read()?;
    let fd = message
        .take_fd()
        .ok_or_else(|| refused(name, "a log that is not shared memory"))?;
    let regions = session.memory.guest().map_or(&[][..], GuestMemory::regions);
    let end = regions
        .last()
        .map_or(0, |region| region.guest_start() + region.len() as u64);
    let need = DirtyLog::bytes_for(end);
    if area.size < need {
        return Err(refused(
            name,
            format!("{} bytes of log; this memory needs {need}", area.size),
        ));
    }
    let log = DirtyLog::of_peer(&fd.into(), area.offset, area.size, &session.watch).map_err(|source| {
        SessionError::Host {
            action: "map the dirty log",
            source,
        }
    })?;
    session.with_rings_stopped(|session| {
        session.log = Some(Arc::new(log));
        Ok(number(0))
    })
}

/// The ring that a message names.
fn vring<'s>(session: &'s mut Session<'_>, request: &'static str, index: u32) -> Result<&'s mut Vring> {
    let count = session.vrings.len();
    let found = usize::try_from(index)
        .ok()
        .and_then(|index| session.vrings.get_mut(index));
    found.ok_or_else(|| refused(request, format!("ring {index}; there are {count}")))
}

fn set_vring_num(session: &mut Session<'_>, message: &Message) -> Result<Outcome> {
    let VringState { index, num } = message.read()?;
    let vring = vring(session, message.row.name, index)?;
    // The front-end has told the driver how large a queue may be: the protocol has no way to ask the back-end.
    if num == 0 || num > u32::from(MAX_QUEUE_SIZE) {
        let reason = format!("{num} entries; at most {MAX_QUEUE_SIZE}");
        return Err(refused(message.row.name, reason));
    }
    if vring.running {
        return Err(refused(message.row.name, "the ring runs"));
    }
    vring.size = num;
    Ok(Outcome::Done)
}

fn set_vring_addr(session: &mut Session<'_>, message: &Message) -> Result<Outcome> {
    let addr: VringAddr = message.read()?;
    vring(session, message.row.name, addr.index)?;
    if addr.flags & !VRING_LOG != 0 {
        return Err(refused(message.row.name, format!("flags {:#x}", addr.flags)));
    }
    let index = addr.index as usize;
    session.with_rings_stopped(|session| {
        vring(session, "SET_VRING_ADDR", addr.index)?.addr = Some(addr);
        Ok(())
    })?;
    session.start_if_ready(index)?;
    Ok(Outcome::Done)
}

fn set_vring_base(session: &mut Session<'_>, message: &Message) -> Result<Outcome> {
    let VringState { index, num } = message.read()?;
    let vring = vring(session, message.row.name, index)?;
    if vring.running {
        return Err(refused(message.row.name, "the ring runs"));
    }
    vring.base = num;
    Ok(Outcome::Done)
}

/// Stops the ring. It starts again with the next kick descriptor.
fn get_vring_base(session: &mut Session<'_>, message: &Message) -> Result<Outcome> {
    let VringState { index, .. } = message.read()?;
    vring(session, message.row.name, index)?;
    session.stop_ring(index as usize);
    let vring = vring(session, message.row.name, index)?;
    vring.kick = None;
    let state = VringState {
        index,
        num: vring.base,
    };
    Ok(Outcome::Payload(state.as_bytes().to_vec(), Vec::new()))
}

/// Hardening row 11: a descriptor that is not an eventfd could block a worker (a full pipe) or never fall silent (a file).
fn check_eventfd(fd: &OwnedFd) -> std::result::Result<(), String> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map_err(|error| format!("cannot look at the descriptor: {error}"))?;
    if link.as_os_str() != "anon_inode:[eventfd]" {
        return Err(format!("an eventfd was expected, not {}", link.display()));
    }
    set_nonblocking(fd.as_raw_fd())
        .map_err(|error| format!("the descriptor cannot be made non-blocking: {error}"))
}

/// Ring index and descriptor of SET_VRING_KICK, _CALL and _ERR.
fn vring_fd(message: &mut Message) -> Result<(u32, Option<OwnedFd>)> {
    let word: u64 = message.read()?;
    let fd = message.take_fd();
    let name = message.row.name;
    if (word & VRING_FD_NONE != 0) == fd.is_some() {
        return Err(refused(name, "flag and descriptor contradict each other"));
    }
    if let Some(fd) = &fd {
        check_eventfd(fd).map_err(|reason| refused(name, reason))?;
    }
    Ok(((word & VRING_FD_INDEX) as u32, fd))
}

fn set_vring_kick(session: &mut Session<'_>, mut message: Message) -> Result<Outcome> {
    let (index, fd) = vring_fd(&mut message)?;
    let Some(fd) = fd else {
        return Err(refused(
            message.row.name,
            "rings without a kick descriptor are not served",
        ));
    };
    vring(session, message.row.name, index)?;
    session.with_rings_stopped(|session| {
        vring(session, "SET_VRING_KICK", index)?.kick = Some(fd);
        Ok(())
    })?;
    session.start_if_ready(index as usize)?;
    Ok(Outcome::Done)
}

fn duplicating(source: std::io::Error) -> SessionError {
    SessionError::Host {
        action: "duplicate an eventfd",
        source,
    }
}

fn set_vring_call(session: &mut Session<'_>, mut message: Message) -> Result<Outcome> {
    let (index, fd) = vring_fd(&mut message)?;
    let vring = vring(session, message.row.name, index)?;
    vring.call.set(fd).map_err(duplicating)?;
    if vring.running {
        // An interrupt may have gone to the descriptor that was replaced.
        vring.call.remind();
    }
    Ok(Outcome::Done)
}

fn set_vring_err(session: &mut Session<'_>, mut message: Message) -> Result<Outcome> {
    let (index, fd) = vring_fd(&mut message)?;
    let vring = vring(session, message.row.name, index)?;
    vring.err.set(fd).map_err(duplicating)?;
    Ok(Outcome::Done)
}

fn set_vring_enable(session: &mut Session<'_>, message: &Message) -> Result<Outcome> {
    let VringState { index, num } = message.read()?;
    // QEMU's network card sends it before SET_FEATURES: it counts once the protocol's bit has come.
    vring(session, message.row.name, index)?.enabled = num == 1;
    match num {
        0 if session.enables_rings() => session.stop_ring(index as usize),
        0 => {}
        1 => session.start_if_ready(index as usize)?,
        _ => return Err(refused(message.row.name, format!("{num} is neither 0 nor 1"))),
    }
    Ok(Outcome::Done)
}

fn set_backend_channel(session: &mut Session<'_>, mut message: Message) -> Result<Outcome> {
    let fd = message
        .take_fd()
        .ok_or_else(|| refused(message.row.name, "no descriptor"))?;
    session.events.set_channel(UnixStream::from(fd));
    Ok(Outcome::Done)
}

/// Offset, length and flags of a configuration access, if it lies in the device's configuration.
fn config_range(session: &Session<'_>, message: &Message) -> Result<Option<Config>> {
    let header: Config = message.read()?;
    let data = message.payload.len().saturating_sub(size_of::<Config>());
    if data < header.size as usize {
        return Err(message.bad_size().into());
    }
    let end = header.offset.checked_add(header.size);
    let limit = session.device.description().config_len;
    Ok(end.filter(|&end| end <= limit.max(CONFIG_SPACE)).map(|_| header))
}

/// Front-ends read this many bytes whatever the device has; what is beyond reads as zero. virtio 1.3 §2.5
const CONFIG_SPACE: u32 = 256;

fn get_config(session: &mut Session<'_>, message: &Message) -> Result<Outcome> {
    let Some(header) = config_range(session, message)? else {
        // The document's way to say no: a reply without bytes.
        return Ok(Outcome::Payload(
            Config::default().as_bytes().to_vec(),
            Vec::new(),
        ));
    };
    let mut payload = header.as_bytes().to_vec();
    payload.resize(size_of::<Config>() + header.size as usize, 0);
    if let Some(data) = payload.get_mut(size_of::<Config>()..) {
        session.device.read_config(header.offset, data);
    }
    Ok(Outcome::Payload(payload, Vec::new()))
}

fn set_config(session: &mut Session<'_>, message: &Message) -> Result<Outcome> {
    let Some(header) = config_range(session, message)? else {
        return Ok(Outcome::Rejected("outside the configuration".into()));
    };
    let start = size_of::<Config>();
    let data = message
        .payload
        .get(start..start + header.size as usize)
        .unwrap_or_default();
    session.device.write_config(header.offset, data);
    Ok(Outcome::Done)
}

fn reset_device(session: &mut Session<'_>) -> Outcome {
    session.reset();
    for vring in &mut session.vrings {
        vring.enabled = false;
        vring.base = 0;
    }
    Outcome::Done
}

fn set_status(session: &mut Session<'_>, message: &Message) -> Result<Outcome> {
    let wanted: u64 = message.read()?;
    let wanted = u8::try_from(wanted).map_err(|_| refused(message.row.name, "more than eight bits"))?;
    if wanted == 0 && session.status != 0 {
        session.reset();
    }
    session.status = wanted;
    Ok(Outcome::Done)
}

fn status(session: &Session<'_>) -> u8 {
    let broken = session.events.broken().is_some();
    session.status
        | if broken {
            treaty_virtio_spec::status::DEVICE_NEEDS_RESET
        } else {
            0
        }
}
