use std::ops::Range;

use treaty_net::{MAX_FRAME, PacketReceiver, Received};
use treaty_virtio_spec::net::{HEADER_SIZE, Header, LEGACY_HEADER_SIZE};
use zerocopy::IntoBytes;

/// Bytes of staged packets: three of the largest, or all that are staged at once of ordinary ones.
const STAGE_BYTES: usize = 256 * 1024;
/// Frames staged at once.
pub(crate) const STAGE_FRAMES: usize = 64;

/// Packets read from the host and not yet given to the driver, in order: each a header as the driver sees it, and the frame.
pub(crate) struct Stage {
    bytes: Vec<u8>,
    packets: [Range<usize>; STAGE_FRAMES],
    header_size: usize,
    next: usize,
    count: usize,
    end: usize,
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
    /// For packets whose headers have `header_size` bytes, at most [`HEADER_SIZE`].
    pub(crate) fn new(header_size: usize) -> Self {
        Self {
            bytes: vec![0; STAGE_BYTES],
            packets: [const { 0..0 }; STAGE_FRAMES],
            header_size: header_size.min(HEADER_SIZE),
            next: 0,
            count: 0,
            end: 0,
        }
    }

    /// Bytes of each packet's header.
    pub(crate) fn header_size(&self) -> usize {
        self.header_size
    }

    /// Packets left.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.count - self.next
    }

    /// The next packet to deliver. `num_buffers` is 1.
    #[inline]
    pub(crate) fn front(&self) -> Option<&[u8]> {
        if self.next >= self.count {
            return None;
        }
        self.bytes.get(self.packets.get(self.next)?.clone())
    }

    /// Says in the next packet's header how many buffers it spans. A legacy header has no such field.
    pub(crate) fn set_buffers(&mut self, count: u16) {
        let Some(packet) = self.packets.get(self.next) else {
            return;
        };
        let field = packet.start + LEGACY_HEADER_SIZE..packet.start + HEADER_SIZE;
        if let Some(bytes) = self
            .bytes
            .get_mut(field)
            .filter(|_| self.header_size == HEADER_SIZE)
        {
            bytes.copy_from_slice(&count.to_le_bytes());
        }
    }

    /// The next packet was delivered, or given up.
    #[inline]
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
            let start = self.end + self.header_size;
            let Some(room) = self.bytes.get_mut(start..start + MAX_FRAME) else {
                break;
            };
            match receiver.receive(room) {
                Received::Frame { header, len } => {
                    let frame = room.get(..len).unwrap_or_default();
                    if let Some(header) = admit(Some((&header, frame))) {
                        let end = start + frame.len();
                        self.push(&header, end);
                    }
                }
                Received::Lost => drop(admit(None)),
                Received::Nothing => return Filled::HostEmpty,
                Received::Down(reason) => return Filled::Down(reason),
            }
        }
        Filled::Enough
    }

    /// Puts the header before a frame that ends at `end`.
    #[inline]
    fn push(&mut self, header: &Header, end: usize) {
        let (bytes, slot) = (header.as_bytes(), self.packets.get_mut(self.count));
        let room = self.bytes.get_mut(self.end..self.end + self.header_size);
        if let (Some(slot), Some(room), Some(bytes)) = (slot, room, bytes.get(..self.header_size)) {
            room.copy_from_slice(bytes);
            *slot = self.end..end;
            self.count += 1;
            self.end = end;
        }
    }
}
