use treaty_net::{MAX_FRAME, PacketReceiver, Received};
use treaty_virtio_spec::net::Header;

/// Bytes of staged frames: three of the largest, or 170 ordinary ones.
const STAGE_BYTES: usize = 256 * 1024;
/// Frames staged at once.
pub(crate) const STAGE_FRAMES: usize = 64;

/// Frames read from the host and not yet given to the driver, in order.
pub(crate) struct Stage {
    bytes: Vec<u8>,
    frames: [Frame; STAGE_FRAMES],
    next: usize,
    count: usize,
    end: usize,
}

/// One frame and where it lies.
#[derive(Clone, Copy, Default)]
struct Frame {
    header: Header,
    start: usize,
    len: usize,
}

/// Why filling ended.
pub(crate) enum Filled {
    /// The stage has frames or is full.
    Enough,
    /// The host has nothing more now.
    HostEmpty,
    /// The host will never have anything again.
    Down(String),
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; STAGE_BYTES],
            frames: [Frame::default(); STAGE_FRAMES],
            next: 0,
            count: 0,
            end: 0,
        }
    }

    /// Frames left.
    pub(crate) fn len(&self) -> usize {
        self.count - self.next
    }

    /// The next frame to deliver.
    pub(crate) fn front(&self) -> Option<(&Header, &[u8])> {
        let frame = self.frames.get(self.next..self.count)?.first()?;
        let bytes = self.bytes.get(frame.start..frame.start + frame.len)?;
        Some((&frame.header, bytes))
    }

    /// The next frame was delivered, or given up.
    pub(crate) fn pop(&mut self) {
        self.next = (self.next + 1).min(self.count);
    }

    /// Reads frames into an empty stage until it is full or the host has none. `admit` sees each frame and says what header
    /// the driver gets, or that it does not get the frame; it is also told of frames that were lost.
    pub(crate) fn fill(
        &mut self,
        receiver: &mut dyn PacketReceiver,
        mut admit: impl FnMut(Option<(&Header, &[u8])>) -> Option<Header>,
    ) -> Filled {
        (self.next, self.count, self.end) = (0, 0, 0);
        // Frames that are not admitted count too: a turn's work is bounded.
        for _ in 0..STAGE_FRAMES {
            let Some(room) = self.bytes.get_mut(self.end..self.end + MAX_FRAME) else {
                break;
            };
            match receiver.receive(room) {
                Received::Frame { header, len } => {
                    let bytes = room.get(..len).unwrap_or_default();
                    if let Some(header) = admit(Some((&header, bytes))) {
                        self.push(header, len);
                    }
                }
                Received::Lost => drop(admit(None)),
                Received::Nothing => return Filled::HostEmpty,
                Received::Down(reason) => return Filled::Down(reason),
            }
        }
        Filled::Enough
    }

    fn push(&mut self, header: Header, len: usize) {
        if let Some(slot) = self.frames.get_mut(self.count) {
            *slot = Frame {
                header,
                start: self.end,
                len,
            };
            self.count += 1;
            self.end += len;
        }
    }
}
