//! In-flight logs: what survives this process so that the next one can go on. The front-end keeps the memory; its layout and
//! use are the ring's affair.

use std::fs::File;

use treaty_memory::{FaultWatch, GuestMemory, MemoryError, Region, RegionError};
use treaty_vhost_protocol::Message;
use treaty_vhost_protocol::payload::{INFLIGHT_SHORT, Inflight};
use treaty_virtio_device::{InflightLog, Layout, QueueMemory, RingConfig, inflight_log_bytes};
use treaty_virtio_spec::ring::MAX_QUEUE_SIZE;
use zerocopy::IntoBytes;

use crate::handlers::Outcome;
use crate::session::{Session, SessionError, refused};

/// The logs of all rings of a connection, one behind the other.
pub struct Logs {
    memory: GuestMemory,
    queues: u16,
    entries: u16,
}

impl Logs {
    fn new(region: Region, area: &Inflight) -> Result<Self, MemoryError> {
        Ok(Self {
            memory: GuestMemory::new(vec![region])?,
            queues: area.queues,
            entries: entries(area),
        })
    }

    /// Ring `index`'s log; `None` if there is none for it. Whether it lies in the memory is checked where it is used.
    ///
    /// A ring that is larger than the log runs without one, as it would under a front-end that has none.
    pub fn of(&self, ring: &RingConfig, index: u16, fresh: bool) -> Option<InflightLog<QueueMemory>> {
        if ring.size > self.entries {
            let (size, entries) = (ring.size, self.entries);
            tracing::warn!(
                queue = index,
                size,
                entries,
                "the in-flight log is too small for this ring and not used"
            );
            return None;
        }
        (index < self.queues).then(|| InflightLog {
            memory: QueueMemory(self.memory.clone()),
            addr: u64::from(index) * inflight_log_bytes(ring.layout, self.entries),
            entries: self.entries,
            fresh,
        })
    }
}

/// Hardening row 11: numbers that the rings of this device could have.
fn check(session: &Session<'_>, name: &'static str, area: &Inflight) -> Result<(), SessionError> {
    let Inflight {
        queues, queue_size, ..
    } = *area;
    let most = session.vrings.len();
    if queues == 0 || usize::from(queues) > most || queue_size == 0 || queue_size > MAX_QUEUE_SIZE {
        let reason =
            format!("{queues} queues of {queue_size} entries; there are {most} of {MAX_QUEUE_SIZE} at most");
        return Err(refused(name, reason));
    }
    Ok(())
}

/// QEMU asks for logs of a default ring size and then lets the driver choose any size up to this.
const LARGEST_OF_QEMU: u16 = 1024;

/// Room for either layout, because features may come later, and for rings that are larger than was said.
fn bytes(area: &Inflight) -> u64 {
    let packed = inflight_log_bytes(Layout::Packed, area.queue_size.max(LARGEST_OF_QEMU));
    (u64::from(area.queues) * packed).next_multiple_of(PAGE)
}

/// Entries of each log: more than was said if there is the room that [`bytes`] provides.
fn entries(area: &Inflight) -> u16 {
    if area.mmap_size >= bytes(area) {
        area.queue_size.max(LARGEST_OF_QEMU)
    } else {
        area.queue_size
    }
}

const PAGE: u64 = 4096;

fn host(action: &'static str) -> impl Fn(RegionError) -> SessionError {
    move |source| SessionError::Host {
        action,
        source: std::io::Error::other(source),
    }
}

fn install(session: &mut Session<'_>, region: Region, area: &Inflight) -> Result<(), SessionError> {
    let logs = Logs::new(region, area).map_err(|error| SessionError::Host {
        action: "map the in-flight log",
        source: std::io::Error::other(error),
    })?;
    session.with_rings_stopped(|session| {
        session.logs = Some(logs);
        for vring in &mut session.vrings {
            vring.from_log = true;
        }
        Ok(())
    })
}

/// Makes new logs. They are sealed: whoever else has the descriptor cannot take the memory away.
pub fn get(session: &mut Session<'_>, message: &Message) -> Result<Outcome, SessionError> {
    let asked: Inflight = message.read_padded();
    check(session, message.row.name, &asked)?;
    let area = Inflight {
        mmap_size: bytes(&asked),
        mmap_offset: 0,
        ..asked
    };
    let len = usize::try_from(area.mmap_size).map_err(|_| message.bad_size())?;
    let region = Region::memfd(0, len).map_err(host("make the in-flight log"))?;
    let fd = region.file().map(|(file, _)| file.try_clone()).transpose();
    let fd = fd.map_err(|source| SessionError::Host {
        action: "duplicate the in-flight log's descriptor",
        source,
    })?;
    install(session, region, &area)?;
    let mut payload = area.as_bytes().to_vec();
    // As long as the question: some leave out the padding.
    payload.truncate(message.payload.len().max(INFLIGHT_SHORT));
    Ok(Outcome::Payload(
        payload,
        fd.into_iter().map(Into::into).collect(),
    ))
}

/// Takes logs that were kept, of this process or of one before. What they say is checked when a ring starts from them.
pub fn set(session: &mut Session<'_>, mut message: Message) -> Result<Outcome, SessionError> {
    let name = message.row.name;
    let area: Inflight = message.read_padded();
    check(session, name, &area)?;
    let file = File::from(message.take_fd().ok_or_else(|| refused(name, "no descriptor"))?);
    let region = map(&file, &area, &session.watch).map_err(|reason| refused(name, reason))?;
    install(session, region, &area)?;
    Ok(Outcome::Done)
}

/// Hardening row 11: all of the area must be in the file; not more of it is mapped than rings can use.
fn map(file: &File, area: &Inflight, watch: &FaultWatch) -> Result<Region, String> {
    let len = area.mmap_size.min(bytes(area));
    let least = u64::from(area.queues) * inflight_log_bytes(Layout::Split, area.queue_size);
    if area.mmap_size < least {
        return Err(format!(
            "{} bytes of log; these queues need {least}",
            area.mmap_size
        ));
    }
    let there = file.metadata().map_err(|error| error.to_string())?.len();
    match area.mmap_offset.checked_add(area.mmap_size) {
        Some(end) if end <= there => {}
        _ => return Err(format!("the log's file has only {there} bytes")),
    }
    let len = usize::try_from(len).map_err(|error| error.to_string())?;
    let file = file.try_clone().map_err(|error| error.to_string())?;
    Region::of_peer(0, len, file, area.mmap_offset, watch).map_err(|error| error.to_string())
}
