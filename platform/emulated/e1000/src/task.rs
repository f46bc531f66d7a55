//! The controller's work on its worker: packets between the rings and the host.

use std::collections::VecDeque;
use std::sync::Arc;

use treaty_buffers::AlignedBlock;
use treaty_bus::PostedWrites;
use treaty_net::{MAX_FRAME, PacketReceiver, PacketSender, Received, Sent};
use treaty_virtio_spec::net::Header;
use treaty_worker::{HostOp, Progress, Task, Turn};

use crate::device::Shared;
use crate::interrupt::NEVER;
use crate::receive::{self, Delivery};
use crate::transmit::Transmit;

/// Frames received in one turn.
const RECEIVE_BUDGET: usize = 64;
/// Frames that come back to the sender and wait for buffers; what is more is lost.
const LOOPED_LIMIT: usize = 256;

/// What a completed host operation was.
const KEY_SEND: u64 = 0;
const KEY_RECEIVE: u64 = 1;

pub(crate) struct EthernetTask {
    shared: Arc<Shared>,
    sender: Box<dyn PacketSender>,
    receiver: Box<dyn PacketReceiver>,
    transmit: Transmit,
    /// Frames on their way out.
    outgoing: VecDeque<Vec<u8>>,
    block: AlignedBlock,
    /// Frames on their way in: at most one from the host, and those that came back.
    incoming: VecDeque<(Vec<u8>, Header)>,
    staging: Vec<u8>,
    sending: bool,
    receiving: bool,
    down: bool,
    posted: Arc<dyn PostedWrites>,
}

impl EthernetTask {
    pub(crate) fn new(
        shared: Arc<Shared>,
        sender: Box<dyn PacketSender>,
        receiver: Box<dyn PacketReceiver>,
        posted: Arc<dyn PostedWrites>,
    ) -> Self {
        Self {
            shared,
            sender,
            receiver,
            transmit: Transmit::default(),
            outgoing: VecDeque::new(),
            block: AlignedBlock::new(MAX_FRAME, 64),
            incoming: VecDeque::new(),
            staging: vec![0; MAX_FRAME],
            sending: false,
            receiving: false,
            down: false,
            posted,
        }
    }

    /// True if there is more to send at once.
    fn send(&mut self, turn: &mut Turn<'_>) -> bool {
        // What had to wait for the host keeps the ring waiting: it is looked at again after that.
        let mut more = !self.outgoing.is_empty();
        if !more {
            let mut frames = Vec::new();
            let mut mac = self.shared.mac();
            if mac.paused() {
                return false;
            }
            more = self.transmit.fetch(&mut mac, &mut frames);
            let (loops, up) = (mac.loops_back(), mac.link_is_up());
            drop(mac);
            if loops {
                let room = LOOPED_LIMIT.saturating_sub(self.incoming.len());
                let looped = frames.into_iter().take(room);
                self.incoming
                    .extend(looped.map(|frame| (frame, Header::default())));
            } else if up {
                self.outgoing.extend(frames);
            }
        }
        while let Some(frame) = self.outgoing.pop_front() {
            if !self.send_one(&frame, turn) {
                self.outgoing.push_front(frame);
                return false;
            }
        }
        more
    }

    /// False if the host has no room: it is polled.
    fn send_one(&mut self, frame: &[u8], turn: &mut Turn<'_>) -> bool {
        let mut buffers = self.block.buffers();
        let len = buffers.copy_from(frame);
        buffers.truncate(len);
        let counters = &self.shared.counters;
        match self.sender.send(&Header::default(), &buffers) {
            Sent::Taken => counters.sent(len),
            Sent::Dropped => counters.dropped(),
            Sent::Later => {
                if let Some(fd) = self.sender.output_fd().filter(|_| !self.sending) {
                    turn.submit(HostOp::writable(fd), KEY_SEND);
                    self.sending = true;
                }
                return false;
            }
        }
        true
    }

    /// True if there may be more to receive at once.
    fn receive(&mut self, turn: &mut Turn<'_>) -> bool {
        for _ in 0..RECEIVE_BUDGET {
            if self.incoming.is_empty() && !self.fill(turn) {
                return false;
            }
            let mut mac = self.shared.mac();
            if mac.paused() {
                return false;
            }
            let Some((frame, header)) = self.incoming.front_mut() else {
                return false;
            };
            let len = frame.len();
            if receive::deliver(&mut mac, frame, header) == Delivery::NoRoom {
                return false;
            }
            drop(mac);
            self.shared.counters.received(len);
            self.incoming.pop_front();
        }
        true
    }

    /// Takes one frame from the host, if there is room for it; false if there is none now.
    fn fill(&mut self, turn: &mut Turn<'_>) -> bool {
        if self.down || !receive::ready(&self.shared.mac()) {
            return false;
        }
        loop {
            match self.receiver.receive(&mut self.staging) {
                Received::Frame { header, len } => {
                    let frame = self.staging.get(..len).unwrap_or_default().to_vec();
                    self.incoming.push_back((frame, header));
                    return true;
                }
                Received::Lost => self.shared.counters.lost(),
                Received::Nothing => {
                    if let Some(fd) = self.receiver.input_fd().filter(|_| !self.receiving) {
                        turn.submit(HostOp::readable(fd), KEY_RECEIVE);
                        self.receiving = true;
                    }
                    return false;
                }
                Received::Down(reason) => {
                    tracing::error!(%reason, "the network back-end is gone; link down");
                    self.down = true;
                    self.shared.mac().set_plugged(false);
                    return false;
                }
            }
        }
    }
}

impl Task for EthernetTask {
    fn start(&mut self, _turn: &mut Turn<'_>) {}

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        while let Some(completion) = turn.next_completion() {
            match completion.key {
                KEY_SEND => self.sending = false,
                _ => self.receiving = false,
            }
        }
        if turn.stopping() {
            return if self.sending || self.receiving {
                Progress::Idle
            } else {
                Progress::Finished
            };
        }
        self.posted.bring();
        let more = self.send(turn) | self.receive(turn);
        match self.shared.mac().update_interrupt() {
            NEVER => {}
            wait => turn.wake_at(turn.now().saturating_add(wait)),
        }
        if more { Progress::More } else { Progress::Idle }
    }
}
