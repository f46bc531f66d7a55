use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_chardev::Chardev;
use treaty_memory::GuestMemory;
use treaty_virtio_device::{ChainReader, DeviceQueue, QueueState, QueueTask};
use treaty_virtio_ring::Head;
use treaty_worker::{HostOp, Progress, Turn};

use crate::PortCounters;
use crate::port::Shared;

/// Bytes handed to the host at once.
const CHUNK_BYTES: usize = 4096;
/// Bytes handled in one turn.
const TURN_BYTES: usize = 64 * 1024;
/// Chains fetched at once.
const FETCH: usize = 16;
/// An empty chain costs as much as this many bytes.
const CHAIN_COST: usize = 64;

/// A port's transmit queue: guest to host.
pub(crate) struct TransmitQueue {
    queue: DeviceQueue,
    memory: GuestMemory,
    chardev: Chardev,
    /// Output that finds no room is dropped: a console's driver spins until its buffer comes back.
    lossy: bool,
    sending: Option<Sending>,
    spare: IoBuffers,
    chunk: Vec<u8>,
    polling: bool,
    counters: Arc<PortCounters>,
}

/// The chain being output. What the host has taken is gone from `data`.
struct Sending {
    head: Head,
    data: IoBuffers,
}

/// Why a turn ends.
enum Pause {
    RingEmpty,
    HostFull,
    BudgetSpent,
}

impl TransmitQueue {
    /// `None` if the device has no such port.
    pub(crate) fn new(
        queue: DeviceQueue,
        shared: &Shared,
        port: usize,
        counters: Arc<PortCounters>,
    ) -> Option<Self> {
        let port = shared.ports.get(port)?;
        Some(Self {
            memory: queue.memory().clone(),
            queue,
            chardev: port.chardev.clone(),
            lossy: port.console,
            sending: None,
            spare: IoBuffers::new(),
            chunk: vec![0; CHUNK_BYTES],
            polling: false,
            counters,
        })
    }

    fn serve(&mut self) -> Pause {
        let mut left = TURN_BYTES;
        while left > 0 {
            let Some(mut sending) = self.sending.take().or_else(|| self.next_chain()) else {
                return Pause::RingEmpty;
            };
            let before = sending.data.len();
            let took_all = self.output(&mut sending.data, left);
            left = left.saturating_sub((before - sending.data.len()).max(CHAIN_COST));
            if sending.data.is_empty() {
                self.finish(sending);
            } else {
                self.sending = Some(sending);
                if !took_all {
                    return Pause::HostFull;
                }
            }
        }
        Pause::BudgetSpent
    }

    /// Takes a chain, without its data if any of it lies outside guest memory.
    fn next_chain(&mut self) -> Option<Sending> {
        let chain = self.queue.next(FETCH)?;
        let mut data = std::mem::take(&mut self.spare);
        let mut reader = ChainReader::new(&self.memory, chain.readable);
        let len = usize::try_from(reader.remaining()).unwrap_or(usize::MAX);
        if reader.take_buffers(len, &mut data).is_err() || data.is_empty() {
            data.clear();
            self.counters.bad_chains.add(1);
        }
        Some(Sending {
            head: chain.head,
            data,
        })
    }

    /// Outputs up to `limit` bytes; false if the host takes no more now.
    fn output(&mut self, data: &mut IoBuffers, limit: usize) -> bool {
        let mut left = limit;
        while left > 0 && !data.is_empty() {
            let room = CHUNK_BYTES.min(left);
            let count = data.copy_to(self.chunk.get_mut(..room).unwrap_or_default());
            let bytes = self.chunk.get(..count).unwrap_or_default();
            let taken = if self.lossy {
                self.chardev.write_lossy(bytes);
                count
            } else {
                self.chardev.write(bytes)
            };
            data.advance(taken);
            self.counters.bytes.add(taken as u64);
            left -= taken;
            if taken < count {
                return false;
            }
        }
        true
    }

    fn finish(&mut self, mut sending: Sending) {
        self.queue.complete(sending.head, 0);
        sending.data.clear();
        self.spare = sending.data;
    }

    /// Waits for the host to take what it has not taken yet, if anything.
    fn poll(&mut self, turn: &mut Turn<'_>) {
        let Some(fd) = self.chardev.output_fd().filter(|_| !self.polling) else {
            return;
        };
        turn.submit(HostOp::writable(fd), 0);
        self.polling = true;
    }

    /// Gives back every chain. The host gets one more chance to take their bytes.
    fn drain(&mut self) -> Progress {
        while let Some(mut sending) = self.sending.take().or_else(|| {
            let more = self.queue.fetched() > 0;
            more.then(|| self.next_chain()).flatten()
        }) {
            self.output(&mut sending.data, TURN_BYTES);
            self.counters.abandoned_bytes.add(sending.data.len() as u64);
            self.finish(sending);
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
        self.chardev.flush();
        if turn.stopping() {
            return self.drain();
        }
        self.queue.disarm(turn);
        let pause = self.serve();
        self.queue.publish();
        self.poll(turn);
        match pause {
            Pause::BudgetSpent => Progress::More,
            Pause::RingEmpty if self.queue.arm() => Progress::More,
            Pause::RingEmpty | Pause::HostFull => Progress::Idle,
        }
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn into_state(self: Box<Self>) -> QueueState {
        self.queue.into_state()
    }
}
