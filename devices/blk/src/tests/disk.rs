use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use treaty_storage::{BlockImage, BlockQueue, Capabilities, Finished, Request, RequestKind, StorageError};
use treaty_worker::Turn;

/// What [`Disk`] does to a request instead of doing it.
pub type Fault = Box<dyn FnMut(&RequestKind) -> Option<StorageError> + Send>;

/// An image in memory whose operations happen when they are submitted and finish when the test says.
pub struct Disk {
    pub capabilities: Capabilities,
    pub data: Vec<u8>,
    /// Operations in the order in which they were submitted.
    pub log: Vec<RequestKind>,
    /// Finished operations wait for [`ScriptedImage::release`].
    pub hold: bool,
    pub held: VecDeque<Finished>,
    ready: Vec<Finished>,
    /// Operations of the image itself, under way.
    pub own: usize,
    pub fault: Option<Fault>,
}

#[derive(Clone)]
pub struct ScriptedImage(Arc<Mutex<Disk>>);

impl ScriptedImage {
    pub fn new(len: u64, block_size: u32) -> Self {
        let capabilities = Capabilities {
            len,
            block_size,
            optimal_size: 4096,
            read_only: false,
            discard: true,
            write_zeroes: true,
            max_transfer: 1 << 20,
            growable: false,
        };
        Self(Arc::new(Mutex::new(Disk {
            capabilities,
            data: vec![0; len as usize],
            log: Vec::new(),
            hold: false,
            held: VecDeque::new(),
            ready: Vec::new(),
            own: 0,
            fault: None,
        })))
    }

    pub fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    /// Lets the held operation at `index` (modulo their number) finish.
    pub fn release(&self, index: usize) {
        let mut disk = self.disk();
        if !disk.held.is_empty() {
            let index = index % disk.held.len();
            let finished = disk.held.remove(index).unwrap();
            disk.ready.push(finished);
        }
    }
}

impl BlockImage for ScriptedImage {
    fn capabilities(&self) -> Capabilities {
        self.disk().capabilities
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        Ok(Box::new(self.clone()))
    }
}

impl BlockQueue for ScriptedImage {
    fn submit(&mut self, _turn: &mut Turn<'_>, mut request: Request) {
        let mut disk = self.disk();
        disk.log.push(request.kind);
        let fault = disk.fault.as_mut().and_then(|fault| fault(&request.kind));
        let result = match fault {
            Some(error) => Err(Box::new(error)),
            None => {
                disk.act(&mut request);
                Ok(())
            }
        };
        let finished = Finished {
            tag: request.tag,
            result,
            buffers: request.buffers,
        };
        if disk.hold {
            disk.held.push_back(finished);
        } else {
            disk.ready.push(finished);
        }
    }

    fn poll(&mut self, _turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        done.append(&mut self.disk().ready);
    }

    fn in_flight(&self) -> usize {
        let disk = self.disk();
        disk.held.len() + disk.ready.len() + disk.own
    }
}

impl Disk {
    fn act(&mut self, request: &mut Request) {
        let len = request.buffers.len();
        match request.kind {
            RequestKind::Read { offset } => {
                let offset = offset as usize;
                request.buffers.copy_from(&self.data[offset..offset + len]);
            }
            RequestKind::Write { offset, .. } => {
                let offset = offset as usize;
                request.buffers.copy_to(&mut self.data[offset..offset + len]);
            }
            RequestKind::Flush => {}
            RequestKind::Discard { offset, len } | RequestKind::WriteZeroes { offset, len, .. } => {
                self.data[offset as usize..][..len as usize].fill(0);
            }
        }
    }
}
