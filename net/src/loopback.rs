use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use treaty_buffers::IoBuffers;
use treaty_virtio_spec::net::Header;

use crate::{
    BackendError, Capabilities, MAX_FRAME, Offloads, PacketBackend, PacketReceiver, PacketSender, Received,
    Sent, sys,
};

/// Frames a lane holds before its sender has to wait.
const LANE_FRAMES: usize = 256;

/// Packets that stay in the process, header and all. For tests and measurements.
pub struct Loopback {
    capabilities: Capabilities,
    out: Vec<Arc<Lane>>,
    back: Vec<Arc<Lane>>,
}

/// One direction of one pair.
struct Lane {
    frames: Mutex<Frames>,
    /// Readable if the receiver asked for it and there are frames.
    filled: File,
    /// Writable while there may be room: its counter is 0 or as high as it goes.
    room: File,
}

/// Frames on their way: a ring of slots whose memory is kept.
struct Frames {
    slots: Vec<(Header, Vec<u8>)>,
    first: usize,
    count: usize,
    /// The receiver has said that it will wait, and `filled` is not readable yet.
    awaited: bool,
    /// `filled` is readable.
    readable: bool,
    /// `room` is not writable.
    blocked: bool,
}

impl Frames {
    fn new() -> Self {
        Self {
            slots: (0..LANE_FRAMES)
                .map(|_| (Header::default(), Vec::new()))
                .collect(),
            first: 0,
            count: 0,
            awaited: false,
            readable: false,
            blocked: false,
        }
    }

    /// A slot for one more frame of `len` bytes.
    fn push(&mut self, header: &Header, len: usize) -> Option<&mut [u8]> {
        if self.count == LANE_FRAMES {
            return None;
        }
        let (place, bytes) = self.slots.get_mut((self.first + self.count) % LANE_FRAMES)?;
        *place = *header;
        bytes.resize(len, 0);
        self.count += 1;
        Some(bytes)
    }

    fn pop(&mut self) -> Option<&(Header, Vec<u8>)> {
        self.count = self.count.checked_sub(1)?;
        let slot = self.slots.get(self.first);
        self.first = (self.first + 1) % LANE_FRAMES;
        slot
    }
}

impl Loopback {
    /// What goes out on a pair comes back on it.
    pub fn echo(pairs: u16) -> Result<Self, BackendError> {
        let lanes = lanes(pairs)?;
        Ok(Self::new(lanes.clone(), lanes))
    }

    /// The two ends of a cable.
    pub fn cable(pairs: u16) -> Result<(Self, Self), BackendError> {
        let (there, back) = (lanes(pairs)?, lanes(pairs)?);
        Ok((Self::new(there.clone(), back.clone()), Self::new(back, there)))
    }

    fn new(out: Vec<Arc<Lane>>, back: Vec<Arc<Lane>>) -> Self {
        let capabilities = Capabilities {
            send: Offloads::ALL,
            receive: Offloads::ALL,
            max_pairs: u16::try_from(out.len()).unwrap_or(u16::MAX),
            mtu: None,
        };
        Self {
            capabilities,
            out,
            back,
        }
    }
}

fn lanes(pairs: u16) -> Result<Vec<Arc<Lane>>, BackendError> {
    let lane = || -> io::Result<Arc<Lane>> {
        Ok(Arc::new(Lane {
            frames: Mutex::new(Frames::new()),
            filled: sys::eventfd()?,
            room: sys::eventfd()?,
        }))
    };
    (0..pairs.max(1))
        .map(|_| lane().map_err(BackendError::host("make an eventfd")))
        .collect()
}

fn pick(lanes: &[Arc<Lane>], pair: u16) -> Result<Box<End>, BackendError> {
    match lanes.get(usize::from(pair)) {
        Some(lane) => Ok(Box::new(End(lane.clone()))),
        None => Err(BackendError::Refused(format!("loopback has no pair {pair}"))),
    }
}

impl PacketBackend for Loopback {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn set_receive_offloads(&mut self, _: Offloads) -> Result<(), BackendError> {
        Ok(())
    }

    fn set_pairs(&mut self, _: u16) -> Result<(), BackendError> {
        Ok(())
    }

    fn sender(&mut self, pair: u16) -> Result<Box<dyn PacketSender>, BackendError> {
        Ok(pick(&self.out, pair)?)
    }

    fn receiver(&mut self, pair: u16) -> Result<Box<dyn PacketReceiver>, BackendError> {
        Ok(pick(&self.back, pair)?)
    }
}

struct End(Arc<Lane>);

impl Lane {
    fn frames(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(mut event: &File, count: u64) {
    // Fails only if the counter is full, and then it has the state wanted.
    let _ = event.write(&count.to_ne_bytes());
}

fn clear(mut event: &File) {
    // Fails only if the counter is 0 already.
    let _ = event.read(&mut [0; 8]);
}

impl PacketSender for End {
    fn send(&mut self, header: &Header, frame: &IoBuffers) -> Sent {
        if frame.is_empty() || frame.len() > MAX_FRAME {
            return Sent::Dropped;
        }
        let mut frames = self.0.frames();
        let Some(bytes) = frames.push(header, frame.len()) else {
            if !std::mem::replace(&mut frames.blocked, true) {
                add(&self.0.room, u64::MAX - 1);
            }
            return Sent::Later;
        };
        frame.copy_to(bytes);
        if frames.awaited {
            (frames.awaited, frames.readable) = (false, true);
            add(&self.0.filled, 1);
        }
        Sent::Taken
    }

    fn output_fd(&self) -> Option<RawFd> {
        Some(self.0.room.as_raw_fd())
    }
}

impl PacketReceiver for End {
    fn receive(&mut self, dst: &mut [u8]) -> Received {
        let mut frames = self.0.frames();
        if frames.count == 0 && std::mem::take(&mut frames.readable) {
            clear(&self.0.filled);
        }
        if std::mem::take(&mut frames.blocked) {
            clear(&self.0.room);
        }
        let Some((header, bytes)) = frames.pop() else {
            return Received::Nothing;
        };
        match dst.get_mut(..bytes.len()) {
            None => Received::Lost,
            Some(part) => {
                part.copy_from_slice(bytes);
                Received::Frame {
                    header: *header,
                    len: bytes.len(),
                }
            }
        }
    }

    fn input_fd(&self) -> Option<RawFd> {
        let mut frames = self.0.frames();
        if frames.count > 0 && !std::mem::replace(&mut frames.readable, true) {
            add(&self.0.filled, 1);
        }
        frames.awaited = !frames.readable;
        Some(self.0.filled.as_raw_fd())
    }
}
