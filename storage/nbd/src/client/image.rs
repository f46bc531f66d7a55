use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use treaty_storage::{BlockImage, BlockQueue, Capabilities, Extent, StorageError};
use treaty_stream::{Address, ClientTls, Stream};

use super::control::{Control, connect};
use super::negotiation::{ExportInfo, Goal};
use super::queue::NbdQueue;
use crate::wire::{REQUEST_LEN, command, export_flag};
use crate::{NbdError, NbdUri, wire};

/// Longest transfer in one request, in bytes. Servers that say nothing take 32 MiB.
const MAX_TRANSFER: u32 = 16 << 20;

/// Idle connections that wait for the next queue.
const MAX_SPARE: usize = 64;

/// What a connection needs to be made (again).
pub(crate) struct Target {
    pub(crate) uri: NbdUri,
    pub(crate) name: String,
    pub(crate) address: Address,
    pub(crate) tls: Option<ClientTls>,
}

/// What the queues of an image share.
pub(crate) struct Shared {
    pub(crate) target: Target,
    pub(crate) export: ExportInfo,
    pub(crate) capabilities: Capabilities,
    links: Mutex<Links>,
}

#[derive(Default)]
struct Links {
    /// Queues that exist.
    queues: usize,
    /// Connections without a queue, ready for requests.
    spare: Vec<Stream>,
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that is ready, if one was left over.
    pub(crate) fn take_spare(&self) -> Option<Stream> {
        self.links().spare.pop()
    }

    /// A queue has gone; it may leave its connection.
    pub(crate) fn queue_gone(&self, stream: Option<Stream>) {
        let mut links = self.links();
        links.queues = links.queues.saturating_sub(1);
        if let Some(mut stream) = stream
            && links.spare.len() < MAX_SPARE
        {
            stream.leave_task();
            links.spare.push(stream);
        }
    }

    fn add_queue(&self) -> Result<(), StorageError> {
        let mut links = self.links();
        if links.queues > 0 && !self.export.has(export_flag::CAN_MULTI_CONN) {
            return Err(self.refused(
                "the server keeps one connection consistent, not several: give the disk one queue",
            ));
        }
        links.queues += 1;
        Ok(())
    }

    fn refused(&self, reason: impl Into<String>) -> StorageError {
        StorageError::Refused {
            path: PathBuf::from(&self.target.name),
            reason: reason.into(),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for stream in &mut self.links().spare {
            say_goodbye(stream);
        }
    }
}

/// Tells the server that nothing more comes, if it listens right now.
fn say_goodbye(stream: &mut Stream) {
    let request = wire::Writer::default()
        .u32(wire::REQUEST_MAGIC)
        .u16(0)
        .u16(command::DISCONNECT);
    let mut request = request.0;
    request.resize(REQUEST_LEN, 0);
    stream.send(&request);
    let _ = stream.flush();
}

/// An export of an NBD server as an image.
///
/// A connection that breaks is made again, with growing pauses, and the requests that were in flight are sent again; they
/// fail once they have waited for as long as the URI says (`reconnect`, 30 s). What the server had acknowledged and not
/// flushed when it went away is the server's affair, as it is with any disk whose power is cut.
pub struct NbdImage {
    shared: Arc<Shared>,
    control: Mutex<Option<Control>>,
}

impl NbdImage {
    /// Connects and asks for the export. Waits for the network.
    pub fn open(uri: &NbdUri, name: &str, read_only: bool) -> Result<Self, StorageError> {
        let refused = |reason: String| StorageError::Refused {
            path: PathBuf::from(name),
            reason,
        };
        let made = (|| {
            let target = Target {
                uri: uri.clone(),
                name: name.to_owned(),
                address: uri.address()?,
                tls: uri.client_tls()?,
            };
            let (stream, negotiation) = connect(&target, Goal::Go(uri.export.clone()))?;
            Ok::<_, NbdError>((target, stream, negotiation.export))
        })();
        let (target, stream, export) = made.map_err(|error| refused(error.to_string()))?;
        let capabilities = capabilities(&export, read_only).map_err(|reason| refused(reason.to_owned()))?;
        if capabilities.read_only && !read_only {
            return Err(refused(
                "the server exports it read-only; open it read-only".to_owned(),
            ));
        }
        let links = Links {
            queues: 0,
            spare: vec![stream],
        };
        Ok(Self {
            shared: Arc::new(Shared {
                target,
                export,
                capabilities,
                links: Mutex::new(links),
            }),
            control: Mutex::new(None),
        })
    }

    fn control(&self) -> MutexGuard<'_, Option<Control>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn capabilities(export: &ExportInfo, read_only: bool) -> Result<Capabilities, &'static str> {
    let (least, best, most) = export.block_sizes.unwrap_or((1, 4096, MAX_TRANSFER));
    let block_size = least.max(512);
    if block_size > 4096 {
        return Err("the server's blocks are larger than 4096 bytes");
    }
    if export.len == 0 || !export.len.is_multiple_of(u64::from(block_size)) {
        return Err("the export's length is not a multiple of the block size, so it is no disk");
    }
    if export.len > i64::MAX as u64 {
        return Err("the export is longer than any disk");
    }
    let read_only = read_only || export.has(export_flag::READ_ONLY);
    let most = most.min(MAX_TRANSFER) & !(block_size - 1);
    if most < block_size {
        return Err("the server takes no whole block in one request");
    }
    Ok(Capabilities {
        len: export.len,
        block_size,
        optimal_size: best.clamp(block_size, 1 << 20),
        read_only,
        discard: !read_only && export.has(export_flag::SEND_TRIM),
        write_zeroes: !read_only && export.has(export_flag::SEND_WRITE_ZEROES),
        max_transfer: most,
        growable: false,
    })
}

impl BlockImage for NbdImage {
    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        if !self.shared.export.has(export_flag::CAN_MULTI_CONN) {
            *self.control() = None;
        }
        self.shared.add_queue()?;
        Ok(Box::new(NbdQueue::new(self.shared.clone())))
    }

    /// Asks the server. One that allows a single connection is not asked while a queue has it: then all is data.
    fn map(&self, offset: u64, len: u64) -> Result<Vec<Extent>, StorageError> {
        let end = self.shared.capabilities.len.min(offset.saturating_add(len));
        let len = end.saturating_sub(offset);
        let data = |len| Extent {
            offset,
            len,
            data: true,
            zero: false,
            allocated: true,
            depth: 0,
            compressed: false,
            at: Some(offset),
        };
        if len == 0 {
            return Ok(Vec::new());
        }
        let mut control = self.control();
        if self.shared.export.allocation.is_none() {
            return Ok(vec![data(len)]);
        }
        if control.is_none() {
            if self.shared.add_queue().is_err() {
                return Ok(vec![data(len)]);
            }
            *control = Some(Control::start(self.shared.clone())?);
        }
        match control.as_ref() {
            Some(control) => control.map(offset, len),
            None => Ok(vec![data(len)]),
        }
    }
}
