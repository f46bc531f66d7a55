use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_memory::GuestMemory;
use treaty_net::{MAX_FRAME, Offloads, PacketSender, Sent};
use treaty_virtio_device::{ChainReader, DeviceQueue, QueueState, QueueTask};
use treaty_virtio_ring::{Chain, Head};
use treaty_virtio_spec::Features;
use treaty_virtio_spec::net::Header;
use treaty_worker::{HostOp, OpKind, Progress, Turn};

use crate::TransmitCounters;
use crate::offload;
use crate::request::{check, header_size, read_header};

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
    header_size: usize,
    offloads: Offloads,
    /// The frame that the back-end has no room for.
    waiting: Option<Packet>,
    spare: IoBuffers,
    polling: bool,
    counters: Arc<TransmitCounters>,
}

/// A checked packet. Its header was read once; the guest may change its own copy, not this one.
struct Packet {
    head: Head,
    header: Header,
    frame: IoBuffers,
}

/// Why a turn ends.
enum Pause {
    RingEmpty,
    HostFull,
    BudgetSpent,
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
            header_size: header_size(accepted),
            offloads: offload::send(accepted),
            waiting: None,
            spare: IoBuffers::new(),
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
            let packet = match self.waiting.take() {
                Some(packet) => packet,
                None => match self.next_packet() {
                    Next::Packet(packet) => packet,
                    Next::Refused => continue,
                    Next::RingEmpty => return Pause::RingEmpty,
                },
            };
            bytes_left = bytes_left.saturating_sub(packet.frame.len());
            if !self.send(packet) {
                return Pause::HostFull;
            }
        }
        Pause::BudgetSpent
    }

    /// Takes a chain and checks it; a chain that is refused has been completed.
    fn next_packet(&mut self) -> Next {
        let Some(Chain { head, readable, .. }) = self.queue.next(FETCH) else {
            return Next::RingEmpty;
        };
        let mut frame = std::mem::take(&mut self.spare);
        let mut reader = ChainReader::new(&self.memory, readable);
        let header = read_header(&mut reader, self.header_size);
        let len = usize::try_from(reader.remaining()).unwrap_or(usize::MAX);
        let fits = (ETHERNET_BYTES..=MAX_FRAME).contains(&len);
        let whole = fits && reader.take_buffers(len, &mut frame).is_ok();
        let Some(header) = header.filter(|_| whole) else {
            self.counters.bad_chains.add(1);
            return self.refuse(head, frame);
        };
        match check(&header, len, self.offloads) {
            Ok(header) => Next::Packet(Packet { head, header, frame }),
            Err(_) => {
                self.counters.bad_headers.add(1);
                self.refuse(head, frame)
            }
        }
    }

    fn refuse(&mut self, head: Head, frame: IoBuffers) -> Next {
        self.finish(head, frame);
        Next::Refused
    }

    /// Sends a packet; false if it has to wait.
    fn send(&mut self, packet: Packet) -> bool {
        match self.sender.send(&packet.header, &packet.frame) {
            Sent::Taken => {
                self.counters.packets.add(1);
                self.counters.bytes.add(packet.frame.len() as u64);
            }
            Sent::Dropped => self.counters.dropped.add(1),
            Sent::Later => {
                self.counters.waits.add(1);
                self.waiting = Some(packet);
                return false;
            }
        }
        self.finish(packet.head, packet.frame);
        true
    }

    fn finish(&mut self, head: Head, mut frame: IoBuffers) {
        self.queue.complete(head, 0);
        frame.clear();
        self.spare = frame;
    }

    fn poll(&mut self, turn: &mut Turn<'_>) {
        let Some(fd) = self.sender.output_fd().filter(|_| !self.polling) else {
            return;
        };
        let op = HostOp {
            fd,
            kind: OpKind::PollWritable,
            buffers: IoBuffers::new(),
        };
        turn.submit(op, 0);
        self.polling = true;
    }

    /// Sends what has been fetched as far as the host takes it at once; the rest is dropped and counted.
    fn drain(&mut self) -> Progress {
        loop {
            let packet = match self.waiting.take() {
                Some(packet) => packet,
                None if self.queue.fetched() == 0 => break,
                None => match self.next_packet() {
                    Next::Packet(packet) => packet,
                    Next::Refused => continue,
                    Next::RingEmpty => break,
                },
            };
            if !self.send(packet)
                && let Some(packet) = self.waiting.take()
            {
                self.counters.dropped.add(1);
                self.finish(packet.head, packet.frame);
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

/// What the ring had.
enum Next {
    Packet(Packet),
    Refused,
    RingEmpty,
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
        self.queue.disarm();
        let pause = self.serve();
        self.queue.publish();
        match pause {
            Pause::BudgetSpent => Progress::More,
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
