//! The two control queues. virtio 1.3 §5.3.6.2

use std::sync::Arc;

use treaty_memory::GuestMemory;
use treaty_virtio_device::{ChainReader, ChainWriter, DeviceQueue, LogLimit, QueueState, QueueTask};
use treaty_virtio_ring::Chain;
use treaty_virtio_spec::console::{CONTROL_SIZE, Control, Size, event};
use treaty_worker::{Progress, Turn};
use zerocopy::{FromBytes, IntoBytes};

use crate::port::{Port, Shared, due};
use crate::{ControlCounters, PortConfig};

/// Messages handled in one turn.
const TURN_MESSAGES: usize = 64;
/// The longest message: a header and a name.
const MAX_MESSAGE: usize = CONTROL_SIZE + PortConfig::MAX_NAME;

/// Messages to the driver. They are not queued: each port has a set of those that are due, and a buffer is taken only when
/// there is one to send.
pub(crate) struct ControlReceive {
    queue: DeviceQueue,
    memory: GuestMemory,
    shared: Arc<Shared>,
    counters: Arc<ControlCounters>,
}

impl ControlReceive {
    pub(crate) fn new(queue: DeviceQueue, shared: Arc<Shared>, counters: Arc<ControlCounters>) -> Self {
        Self {
            memory: queue.memory().clone(),
            queue,
            shared,
            counters,
        }
    }

    /// The first message due: its port and bit.
    fn next_due(&self) -> Option<(usize, u32)> {
        self.shared.ports.iter().enumerate().find_map(|(id, port)| {
            let bit = port.due().trailing_zeros();
            (bit < due::BITS).then(|| (id, 1 << bit))
        })
    }

    /// Sends what is due; says why anything is left.
    fn serve(&mut self) -> Option<Pause> {
        for _ in 0..TURN_MESSAGES {
            let (id, bit) = self.next_due()?;
            let Some(Chain { head, writable, .. }) = self.queue.next(1) else {
                return Some(Pause::NoBuffer);
            };
            let shared = &self.shared;
            let port = shared.ports.get(id)?;
            // Settled before the state is read: a change in between makes it due again.
            port.settle(bit);
            let mut bytes = [0; MAX_MESSAGE];
            let len = encode(shared, id, port, bit, &mut bytes);
            let message = bytes.get(..len).unwrap_or_default();
            let mut writer = ChainWriter::new(&self.memory, writable);
            let fits = writer.remaining() >= len as u64;
            let written = match writer.write(message) {
                Ok(written) if fits => written,
                _ => 0,
            };
            if written == 0 {
                self.counters.bad_chains.add(1);
            } else {
                self.counters.messages.add(1);
            }
            self.queue
                .complete(head, u32::try_from(written).unwrap_or(u32::MAX));
        }
        Some(Pause::BudgetSpent)
    }
}

/// Why messages are left.
enum Pause {
    NoBuffer,
    BudgetSpent,
}

/// Writes the message for `bit` to the front of `bytes`; returns its length.
fn encode(shared: &Shared, id: usize, port: &Port, bit: u32, bytes: &mut [u8; MAX_MESSAGE]) -> usize {
    let (event, value) = match bit {
        due::ADD => (event::DEVICE_ADD, 1),
        due::CONSOLE => (event::CONSOLE_PORT, 1),
        due::RESIZE => (event::RESIZE, 0),
        due::NAME => (event::PORT_NAME, 1),
        _ => (event::PORT_OPEN, u16::from(port.host_open())),
    };
    let header = Control {
        id: u32::try_from(id).unwrap_or(u32::MAX).into(),
        event: event.into(),
        value: value.into(),
    };
    let size = Size {
        cols: shared.size().cols.into(),
        rows: shared.size().rows.into(),
    };
    let data = match bit {
        due::RESIZE => size.as_bytes(),
        due::NAME => port.name.as_deref().unwrap_or_default().as_bytes(),
        _ => &[],
    };
    let mut len = 0;
    for byte in header.as_bytes().iter().chain(data) {
        if let Some(slot) = bytes.get_mut(len) {
            *slot = *byte;
            len += 1;
        }
    }
    len
}

impl QueueTask for ControlReceive {
    fn start(&mut self, turn: &mut Turn<'_>) {
        turn.watch_eventfd(self.shared.control.fd());
    }

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        if turn.stopping() {
            return Progress::Finished;
        }
        self.queue.disarm(turn);
        let pause = self.serve();
        self.queue.publish();
        match pause {
            Some(Pause::BudgetSpent) => Progress::More,
            Some(Pause::NoBuffer) if self.queue.arm() => Progress::More,
            Some(Pause::NoBuffer) | None => Progress::Idle,
        }
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn into_state(self: Box<Self>) -> QueueState {
        self.queue.into_state()
    }
}

/// Messages from the driver.
pub(crate) struct ControlTransmit {
    queue: DeviceQueue,
    memory: GuestMemory,
    shared: Arc<Shared>,
    counters: Arc<ControlCounters>,
    log: LogLimit,
}

impl ControlTransmit {
    pub(crate) fn new(queue: DeviceQueue, shared: Arc<Shared>, counters: Arc<ControlCounters>) -> Self {
        Self {
            memory: queue.memory().clone(),
            queue,
            shared,
            counters,
            log: LogLimit::new(),
        }
    }

    /// Handles one message; false if there is none.
    fn serve_one(&mut self, now_ns: u64) -> bool {
        let Some(Chain { head, readable, .. }) = self.queue.next(TURN_MESSAGES) else {
            return false;
        };
        let message = ChainReader::new(&self.memory, readable).read_array::<CONTROL_SIZE>();
        self.queue.complete(head, 0);
        match message.and_then(|bytes| Control::read_from_bytes(&bytes).ok()) {
            None => self.counters.bad_chains.add(1),
            Some(message) => {
                self.counters.messages.add(1);
                self.handle(message, now_ns);
            }
        }
        true
    }

    fn handle(&mut self, message: Control, now_ns: u64) {
        let known = match (message.event.get(), message.value.get()) {
            (event::DEVICE_READY, value) => {
                self.driver_ready(value == 1);
                true
            }
            (event::PORT_READY, value) => self.with_port(message, |shared, port| {
                if value == 1 {
                    shared.owe(port, introduction(shared, port));
                }
            }),
            (event::PORT_OPEN, value) => self.with_port(message, |_, port| port.set_guest_open(value == 1)),
            _ => false,
        };
        if !known {
            self.counters.ignored.add(1);
            if let Some(suppressed) = self.log.allow(now_ns) {
                tracing::warn!(?message, suppressed, "console control message ignored");
            }
        }
    }

    fn driver_ready(&self, ready: bool) {
        for port in self.shared.ports.iter().filter(|_| ready) {
            self.shared.owe(port, due::ADD);
        }
    }

    fn with_port(&self, message: Control, act: impl FnOnce(&Shared, &Port)) -> bool {
        let index = usize::try_from(message.id.get()).unwrap_or(usize::MAX);
        let Some(port) = self.shared.ports.get(index) else {
            return false;
        };
        act(&self.shared, port);
        true
    }
}

/// What a driver that knows a port is told about it.
fn introduction(shared: &Shared, port: &Port) -> u32 {
    let mut bits = due::OPEN;
    if port.name.is_some() {
        bits |= due::NAME;
    }
    if port.console {
        bits |= due::CONSOLE;
    }
    if port.console && shared.size().cols > 0 {
        bits |= due::RESIZE;
    }
    bits
}

impl QueueTask for ControlTransmit {
    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        if turn.stopping() {
            while self.queue.fetched() > 0 && self.serve_one(turn.now()) {}
            self.queue.publish();
            return Progress::Finished;
        }
        self.queue.disarm(turn);
        let served = (0..TURN_MESSAGES)
            .take_while(|_| self.serve_one(turn.now()))
            .count();
        self.queue.publish();
        if served == TURN_MESSAGES || self.queue.arm() {
            Progress::More
        } else {
            Progress::Idle
        }
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn into_state(self: Box<Self>) -> QueueState {
        self.queue.into_state()
    }
}
