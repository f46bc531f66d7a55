use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_memory::GuestMemory;
use treaty_net::{MAX_FRAME, Offloads, PacketSender, Sent};
use treaty_virtio_device::{ChainReader, DeviceQueue, QueueState, QueueTask};
use treaty_virtio_ring::{Chain, Head, Segment};
use treaty_virtio_spec::Features;
use treaty_virtio_spec::net::{HEADER_SIZE, Header};
use treaty_worker::{HostOp, Progress, Turn};

use crate::TransmitCounters;
use crate::offload;
use crate::request::{check, header_size, is_plain, read_header};

/// Chains fetched at once.
const FETCH: usize = 64;
/// Frames sent in one turn.
const TURN_FRAMES: usize = 256;
/// Bytes sent in one turn.
const TURN_BYTES: usize = 1 << 20;
/// Bytes of an Ethernet header: no frame is shorter.
const ETHERNET_BYTES: usize = 14;

/// A transmit queue: guest to host.
pub(crate) struct TransmitQueue {
    queue: DeviceQueue,
    memory: GuestMemory,
    sender: Box<dyn PacketSender>,
    rules: Rules,
    /// The frame of the packet at hand.
    frame: IoBuffers,
    /// The packet at hand, if the back-end has no room for it. Its header was read once; the guest may change its own copy,
    /// not this one.
    waiting: Option<(Head, Header)>,
    polling: bool,
    counters: Arc<TransmitCounters>,
}

/// What was negotiated, as far as sending goes.
#[derive(Clone, Copy)]
struct Rules {
    header_size: usize,
    offloads: Offloads,
}

/// Why a turn ends.
enum Pause {
    RingEmpty,
    HostFull,
    BudgetSpent,
}

/// Why a chain is not sent.
enum Refused {
    Chain,
    Header,
}

/// Takes a packet apart: its header, checked, and the frame in the guest's own buffers.
#[inline(always)]
fn gather(
    memory: &GuestMemory,
    readable: &[Segment],
    rules: Rules,
    frame: &mut IoBuffers,
) -> Result<Header, Refused> {
    frame.clear_ranges();
    // Almost always: header and frame in one descriptor, and nothing to be done by the host.
    if let [one] = readable
        && rules.header_size == HEADER_SIZE
    {
        let frame_len = (one.len as usize).wrapping_sub(HEADER_SIZE);
        let mut bytes = [0; HEADER_SIZE];
        if (ETHERNET_BYTES..=MAX_FRAME).contains(&frame_len)
            && memory.read(one.addr, &mut bytes).is_ok()
            && let header = zerocopy::transmute!(bytes)
            && is_plain(&header)
        {
            let at = one.addr.wrapping_add(HEADER_SIZE as u64);
            let inside = memory.push_buffers(at, frame_len, frame).is_ok();
            return if inside {
                Ok(Header::default())
            } else {
                Err(Refused::Chain)
            };
        }
    }
    gather_any(memory, readable, rules, frame)
}

/// The same for any packet.
#[inline(never)]
fn gather_any(
    memory: &GuestMemory,
    readable: &[Segment],
    rules: Rules,
    frame: &mut IoBuffers,
) -> Result<Header, Refused> {
    let mut reader = ChainReader::new(memory, readable);
    let header = read_header(&mut reader, rules.header_size).ok_or(Refused::Chain)?;
    let frame_len = usize::try_from(reader.remaining()).unwrap_or(usize::MAX);
    if !(ETHERNET_BYTES..=MAX_FRAME).contains(&frame_len) || reader.take_buffers(frame_len, frame).is_err() {
        return Err(Refused::Chain);
    }
    check(&header, frame_len, rules.offloads).map_err(|_| Refused::Header)
}

impl TransmitQueue {
    pub(crate) fn new(
        queue: DeviceQueue,
        sender: Box<dyn PacketSender>,
        accepted: Features,
        counters: Arc<TransmitCounters>,
    ) -> Self {
        Self {
            memory: queue.memory().clone(),
            queue,
            sender,
            rules: Rules {
                header_size: header_size(accepted),
                offloads: offload::send(accepted),
            },
            frame: IoBuffers::new(),
            waiting: None,
            polling: false,
            counters,
        }
    }

    fn serve(&mut self) -> Pause {
        let mut bytes_left = TURN_BYTES;
        for _ in 0..TURN_FRAMES {
            if bytes_left == 0 {
                break;
            }
            match self.send_next(FETCH) {
                Some(true) => bytes_left = bytes_left.saturating_sub(self.frame.len()),
                Some(false) => return Pause::HostFull,
                None => return Pause::RingEmpty,
            }
        }
        Pause::BudgetSpent
    }

    /// Sends the waiting packet, or the next one; `None` if there is none, false if it has to wait.
    #[inline(always)]
    fn send_next(&mut self, fetch: usize) -> Option<bool> {
        if self.waiting.is_some() {
            return self.send_waiting();
        }
        let Chain { head, readable, .. } = self.queue.next(fetch)?;
        match gather(&self.memory, readable, self.rules, &mut self.frame) {
            Ok(header) => Some(self.send(head, header)),
            Err(why) => {
                self.refuse(head, why);
                Some(true)
            }
        }
    }

    #[inline(never)]
    fn send_waiting(&mut self) -> Option<bool> {
        let (head, header) = self.waiting.take()?;
        Some(self.send(head, header))
    }

    #[cold]
    fn refuse(&mut self, head: Head, why: Refused) {
        match why {
            Refused::Chain => self.counters.bad_chains.add(1),
            Refused::Header => self.counters.bad_headers.add(1),
        }
        self.queue.complete(head, 0);
    }

    /// Sends the frame at hand; false if it has to wait.
    #[inline(always)]
    fn send(&mut self, head: Head, header: Header) -> bool {
        match self.sender.send(&header, &self.frame) {
            Sent::Taken => {
                self.counters.packets.add(1);
                self.counters.bytes.add(self.frame.len() as u64);
            }
            Sent::Dropped => self.counters.dropped.add(1),
            Sent::Later => {
                self.counters.waits.add(1);
                self.waiting = Some((head, header));
                return false;
            }
        }
        self.queue.complete(head, 0);
        true
    }

    fn poll(&mut self, turn: &mut Turn<'_>) {
        let Some(fd) = self.sender.output_fd().filter(|_| !self.polling) else {
            return;
        };
        turn.submit(HostOp::writable(fd), 0);
        self.polling = true;
    }

    /// Sends what has been fetched as far as the host takes it at once; the rest is dropped and counted.
    fn drain(&mut self) -> Progress {
        while self.waiting.is_some() || self.queue.fetched() > 0 {
            if self.send_next(0).is_none() {
                break;
            }
            if let Some((head, _)) = self.waiting.take() {
                self.counters.dropped.add(1);
                self.queue.complete(head, 0);
            }
        }
        self.queue.publish();
        if self.polling {
            Progress::Idle
        } else {
            Progress::Finished
        }
    }
}

impl QueueTask for TransmitQueue {
    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        while turn.next_completion().is_some() {
            self.polling = false;
        }
        if turn.stopping() {
            return self.drain();
        }
        if self.waiting.is_some() && self.polling {
            // The host will say when it has room; doorbells do not make it come sooner.
            return Progress::Idle;
        }
        let before = self.queue.moved();
        self.queue.disarm(turn);
        let pause = self.serve();
        self.queue.publish();
        match pause {
            Pause::BudgetSpent => Progress::More,
            Pause::RingEmpty if turn.polling() => self.queue.look_again(before),
            Pause::RingEmpty if self.queue.arm() => Progress::More,
            Pause::RingEmpty => Progress::Idle,
            Pause::HostFull => {
                self.poll(turn);
                Progress::Idle
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn into_state(self: Box<Self>) -> QueueState {
        self.queue.into_state()
    }
}
