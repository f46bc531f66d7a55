use std::ops::Range;
use std::sync::Arc;

use treaty_memory::GuestMemory;
use treaty_virtio_device::{ChainWriter, DeviceQueue, QueueState, QueueTask};
use treaty_virtio_ring::Chain;
use treaty_worker::{HostOp, Progress, Turn};

use crate::PortCounters;
use crate::port::{Port, Shared};

/// Input bytes read at once, and kept while the driver has no buffer.
pub(crate) const STAGE_BYTES: usize = 4096;
/// Buffers filled in one turn.
const TURN_CHAINS: usize = 16;

/// A port's receive queue: host to guest. A chain is taken only when there are bytes for it, so none is in flight when the
/// queue stops.
pub(crate) struct ReceiveQueue {
    queue: DeviceQueue,
    memory: GuestMemory,
    shared: Arc<Shared>,
    port: usize,
    /// The driver must open the port first. virtio 1.3 §5.3.6.2
    multiport: bool,
    stage: Vec<u8>,
    filled: Range<usize>,
    polling: bool,
    counters: Arc<PortCounters>,
}

/// Why a turn ends.
enum Pause {
    NoInput,
    NoBuffer,
    BudgetSpent,
}

impl ReceiveQueue {
    pub(crate) fn new(
        queue: DeviceQueue,
        shared: Arc<Shared>,
        port: usize,
        multiport: bool,
        counters: Arc<PortCounters>,
    ) -> Self {
        let mut stage = shared
            .ports
            .get(port)
            .map(Port::take_leftover)
            .unwrap_or_default();
        let filled = 0..stage.len().min(STAGE_BYTES);
        stage.resize(STAGE_BYTES, 0);
        let memory = queue.memory().clone();
        Self {
            queue,
            memory,
            shared,
            port,
            multiport,
            stage,
            filled,
            polling: false,
            counters,
        }
    }

    fn serve(&mut self) -> Pause {
        for _ in 0..TURN_CHAINS {
            if self.filled.is_empty() && !self.fill_stage() {
                return Pause::NoInput;
            }
            if !self.deliver() {
                return Pause::NoBuffer;
            }
        }
        Pause::BudgetSpent
    }

    /// Reads what the host has; false if that is nothing, or the driver has not opened the port. A closed port accepts a
    /// client all the same, so that the driver hears of it.
    fn fill_stage(&mut self) -> bool {
        let Some(port) = self.shared.ports.get(self.port) else {
            return false;
        };
        let room = if self.open(port) { STAGE_BYTES } else { 0 };
        let count = port.chardev.read(self.stage.get_mut(..room).unwrap_or_default());
        if self.multiport {
            self.shared.check_host_side(port);
        }
        self.filled = 0..count;
        count > 0
    }

    fn open(&self, port: &Port) -> bool {
        !self.multiport || port.guest_open()
    }

    /// Gives staged bytes to the driver; false if it has no buffer.
    fn deliver(&mut self) -> bool {
        let Some(Chain { head, writable, .. }) = self.queue.next(1) else {
            return false;
        };
        let part = self.stage.get(self.filled.clone()).unwrap_or_default();
        // A chain that reaches outside guest memory gets nothing; the bytes wait for the next one.
        let written = ChainWriter::new(&self.memory, writable).write(part).unwrap_or(0);
        if written == 0 {
            self.counters.bad_chains.add(1);
        }
        self.filled.start += written;
        self.counters.bytes.add(written as u64);
        self.queue
            .complete(head, u32::try_from(written).unwrap_or(u32::MAX));
        true
    }

    /// Waits for input, or for a client. A port that the driver has closed waits for neither once a client is there.
    fn poll(&mut self, turn: &mut Turn<'_>) {
        let Some(port) = self.shared.ports.get(self.port) else {
            return;
        };
        let wanted = !self.polling && (self.open(port) || !port.chardev.connected());
        let Some(fd) = port.chardev.input_fd().filter(|_| wanted) else {
            return;
        };
        turn.submit(HostOp::readable(fd), 0);
        self.polling = true;
    }

    /// Buffers that a process which died had taken are given back empty: they are not handed out twice.
    fn give_back(&mut self) {
        while self.queue.fetched() > 0 {
            if let Some(Chain { head, .. }) = self.queue.next(1) {
                self.queue.complete(head, 0);
            }
        }
        self.queue.publish();
    }
}

impl QueueTask for ReceiveQueue {
    fn start(&mut self, turn: &mut Turn<'_>) {
        if let Some(port) = self.shared.ports.get(self.port) {
            turn.watch_eventfd(port.wake.fd());
        }
    }

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        while turn.next_completion().is_some() {
            self.polling = false;
        }
        if turn.stopping() {
            self.give_back();
            return if self.polling {
                Progress::Idle
            } else {
                Progress::Finished
            };
        }
        self.queue.disarm(turn);
        let pause = self.serve();
        self.queue.publish();
        match pause {
            Pause::BudgetSpent => Progress::More,
            Pause::NoBuffer if self.queue.arm() => Progress::More,
            Pause::NoBuffer => Progress::Idle,
            Pause::NoInput => {
                self.poll(turn);
                Progress::Idle
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn into_state(self: Box<Self>) -> QueueState {
        if let Some(port) = self.shared.ports.get(self.port) {
            port.keep_leftover(self.stage.get(self.filled).unwrap_or_default().to_vec());
        }
        self.queue.into_state()
    }
}
