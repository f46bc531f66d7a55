use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_memory::GuestMemory;
use treaty_net::{Offloads, PacketReceiver};
use treaty_virtio_device::{ChainWriter, DeviceEvents, DeviceQueue, LogLimit, QueueState, QueueTask};
use treaty_virtio_ring::{Chain, Head};
use treaty_virtio_spec::Features;
use treaty_virtio_spec::net::{GSO_NONE, STATUS_LINK_UP, feature as bit};
use treaty_worker::{HostOp, Progress, Turn};

use crate::ReceiveCounters;
use crate::filter::Filter;
use crate::offload;
use crate::request::{admit, header_size};
use crate::shared::Shared;
use crate::stage::{Filled, Stage};

/// Times the stage is filled in one turn.
const TURN_STAGES: usize = 2;
/// Buffers one packet may span: the largest frame in buffers of 1 KiB.
const MAX_BUFFERS: usize = 65;
/// Bytes of a VLAN tag, which an MTU does not count.
const VLAN_TAG_BYTES: usize = 4;
/// Bytes of an Ethernet header.
const ETHERNET_BYTES: usize = 14;

/// What was negotiated, as far as receiving goes.
#[derive(Clone, Copy)]
struct Rules {
    header_size: usize,
    mergeable: bool,
    offloads: Offloads,
    /// Longest frame that is no offload packet.
    longest_plain: usize,
}

/// A receive queue: host to guest.
///
/// Only frames that are there make it take buffers, and a frame that is there takes all that it needs or, without
/// mergeable buffers, one. So buffers are held over a turn only in the middle of a packet when the driver has no more.
pub(crate) struct ReceiveQueue {
    queue: DeviceQueue,
    memory: GuestMemory,
    shared: Arc<Shared>,
    events: Option<DeviceEvents>,
    pair: u16,
    rules: Rules,
    receiver: Box<dyn PacketReceiver>,
    stage: Stage,
    filter: Filter,
    filter_version: u32,
    /// Buffers taken for the frame in front, which needs more.
    held: Vec<Held>,
    spare: Vec<IoBuffers>,
    polling: bool,
    down: bool,
    counters: Arc<ReceiveCounters>,
    log: LogLimit,
}

/// A buffer taken and not yet used.
struct Held {
    head: Head,
    room: IoBuffers,
}

/// Why a turn ends.
enum Pause {
    HostEmpty,
    NoBuffer,
    BudgetSpent,
}

/// What a receive queue is made of.
pub(crate) struct Setup {
    pub(crate) queue: DeviceQueue,
    pub(crate) shared: Arc<Shared>,
    pub(crate) events: Option<DeviceEvents>,
    pub(crate) pair: u16,
    pub(crate) receiver: Box<dyn PacketReceiver>,
    pub(crate) accepted: Features,
    pub(crate) mtu: Option<u16>,
    pub(crate) counters: Arc<ReceiveCounters>,
}

impl ReceiveQueue {
    pub(crate) fn new(setup: Setup) -> Self {
        let (filter, filter_version) = setup.shared.filter();
        let mtu = setup
            .mtu
            .filter(|_| setup.accepted.has(bit::MTU))
            .map(usize::from);
        let rules = Rules {
            header_size: header_size(setup.accepted),
            mergeable: setup.accepted.has(bit::MRG_RXBUF),
            offloads: offload::receive(setup.accepted),
            longest_plain: mtu.map_or(usize::MAX, |mtu| mtu + ETHERNET_BYTES + VLAN_TAG_BYTES),
        };
        // What a stopped queue had staged, unless headers are different now.
        let kept = setup.shared.take_stage(setup.pair);
        let stage = kept
            .filter(|stage| stage.header_size() == rules.header_size)
            .unwrap_or_else(|| Stage::new(rules.header_size));
        Self {
            memory: setup.queue.memory().clone(),
            queue: setup.queue,
            events: setup.events,
            pair: setup.pair,
            rules,
            receiver: setup.receiver,
            stage,
            shared: setup.shared,
            filter,
            filter_version,
            held: Vec::new(),
            spare: Vec::new(),
            polling: false,
            down: false,
            counters: setup.counters,
            log: LogLimit::new(),
        }
    }

    fn serve(&mut self, now_ns: u64) -> Pause {
        for _ in 0..TURN_STAGES {
            let mut host_empty = false;
            if self.stage.len() == 0 {
                host_empty = self.fill_stage(now_ns);
            }
            while self.stage.len() > 0 {
                if !self.deliver() {
                    self.counters.waits.add(1);
                    return Pause::NoBuffer;
                }
            }
            if host_empty {
                return Pause::HostEmpty;
            }
        }
        Pause::BudgetSpent
    }

    /// Reads frames from the host; true if it has no more for now.
    fn fill_stage(&mut self, now_ns: u64) -> bool {
        if self.down || self.pair >= self.shared.pairs() {
            return true;
        }
        if self.filter_version != self.shared.filter_version() {
            (self.filter, self.filter_version) = self.shared.filter();
        }
        let (filter, rules, counters) = (&self.filter, self.rules, &self.counters);
        let filled = self.stage.fill(&mut *self.receiver, |frame| {
            let Some((header, bytes)) = frame else {
                counters.lost.add(1);
                return None;
            };
            if !filter.accepts(bytes) {
                counters.filtered.add(1);
                return None;
            }
            let plain = header.gso_type == GSO_NONE;
            let shown =
                admit(header, rules.offloads).filter(|_| !plain || bytes.len() <= rules.longest_plain);
            if shown.is_none() {
                counters.unwanted.add(1);
            }
            shown
        });
        match filled {
            Filled::Enough => false,
            Filled::HostEmpty => true,
            Filled::Down(reason) => {
                self.down = true;
                if let Some(suppressed) = self.log.allow(now_ns) {
                    tracing::error!(pair = self.pair, %reason, suppressed, "the network back-end is gone; link down");
                }
                self.shared
                    .change_status(STATUS_LINK_UP, false, self.events.as_ref());
                true
            }
        }
    }

    /// Gives the packet in front to the driver; false if it has too few buffers for now.
    #[inline]
    fn deliver(&mut self) -> bool {
        let Some(packet) = self.stage.front() else {
            return true;
        };
        let needed = packet.len();
        if !self.held.is_empty() {
            return self.deliver_held(needed);
        }
        let Some(Chain { head, writable, .. }) = self.queue.next(self.stage.len()) else {
            return false;
        };
        // Almost always: the first descriptor has room for all.
        let written = match writable.first() {
            Some(first) if first.len as usize >= needed => self.memory.write(first.addr, packet),
            _ => {
                let mut writer = ChainWriter::new(&self.memory, writable);
                if writer.remaining() < needed as u64 {
                    let mut room = self.spare.pop().unwrap_or_default();
                    let taken = writer.take_buffers(usize::MAX, &mut room);
                    self.hold(head, room, taken.is_ok());
                    return self.deliver_held(needed);
                }
                writer.write(packet).map(drop)
            }
        };
        if written.is_err() {
            self.counters.bad_chains.add(1);
            self.queue.complete(head, 0);
            // The packet waits for the next buffer.
            return true;
        }
        self.counters.packets.add(1);
        self.counters.bytes.add((needed - self.rules.header_size) as u64);
        self.queue
            .complete(head, u32::try_from(needed).unwrap_or(u32::MAX));
        self.stage.pop();
        true
    }

    /// As [`deliver`](Self::deliver), for a packet that one buffer does not hold.
    fn deliver_held(&mut self, needed: usize) -> bool {
        let limit = if self.rules.mergeable { MAX_BUFFERS } else { 1 };
        loop {
            let room: usize = self.held.iter().map(|held| held.room.len()).sum();
            if room >= needed && !self.held.is_empty() {
                self.spread(needed);
                return true;
            }
            if self.held.len() >= limit {
                self.give_up();
                return true;
            }
            let Some(Chain { head, writable, .. }) = self.queue.next(1) else {
                return false;
            };
            let mut room = self.spare.pop().unwrap_or_default();
            let taken = ChainWriter::new(&self.memory, writable).take_buffers(usize::MAX, &mut room);
            self.hold(head, room, taken.is_ok());
        }
    }

    /// Keeps a buffer for the frame in front, or gives it back if it is of no use: the header must fit into the first.
    fn hold(&mut self, head: Head, room: IoBuffers, translated: bool) {
        let least = if self.held.is_empty() {
            self.rules.header_size
        } else {
            1
        };
        if translated && room.len() >= least {
            self.held.push(Held { head, room });
        } else {
            self.counters.bad_chains.add(1);
            self.queue.complete(head, 0);
            self.recycle(room);
        }
    }

    /// Copies the packet in front over the buffers held, which have room for it. virtio 1.3 §5.1.6.4
    fn spread(&mut self, needed: usize) {
        self.stage
            .set_buffers(u16::try_from(self.held.len()).unwrap_or(u16::MAX));
        let mut rest = self.stage.front().unwrap_or_default();
        self.counters.packets.add(1);
        self.counters.bytes.add((needed - self.rules.header_size) as u64);
        for mut held in self.held.drain(..) {
            let written = held.room.copy_from(rest);
            rest = rest.get(written..).unwrap_or_default();
            self.queue
                .complete(held.head, u32::try_from(written).unwrap_or(u32::MAX));
            held.room.clear_ranges();
            self.spare.push(held.room);
        }
        debug_assert!(rest.is_empty(), "the buffers were counted");
        self.stage.pop();
    }

    /// The frame in front does not fit. It is dropped; its buffers go back unused.
    fn give_up(&mut self) {
        self.counters.too_long.add(1);
        self.stage.pop();
        self.release();
    }

    fn release(&mut self) {
        for held in std::mem::take(&mut self.held) {
            self.queue.complete(held.head, 0);
            self.recycle(held.room);
        }
    }

    fn recycle(&mut self, mut room: IoBuffers) {
        room.clear_ranges();
        self.spare.push(room);
    }

    fn poll(&mut self, turn: &mut Turn<'_>) {
        let idle = self.polling || self.down || self.pair >= self.shared.pairs();
        let Some(fd) = self.receiver.input_fd().filter(|_| !idle) else {
            return;
        };
        turn.submit(HostOp::readable(fd), 0);
        self.polling = true;
    }

    /// Gives back what is held. Staged frames are kept for the next start.
    fn drain(&mut self) -> Progress {
        self.release();
        while self.queue.fetched() > 0 {
            if let Some(Chain { head, .. }) = self.queue.next(1) {
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

impl QueueTask for ReceiveQueue {
    fn start(&mut self, turn: &mut Turn<'_>) {
        if let Some(wake) = self.shared.wake(self.pair) {
            turn.watch_eventfd(wake.fd());
        }
    }

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        while turn.next_completion().is_some() {
            self.polling = false;
        }
        if turn.stopping() {
            return self.drain();
        }
        let before = self.queue.moved();
        self.queue.disarm(turn);
        let pause = self.serve(turn.now());
        self.queue.publish();
        match pause {
            Pause::BudgetSpent => Progress::More,
            Pause::NoBuffer | Pause::HostEmpty if turn.polling() => self.queue.look_again(before),
            Pause::NoBuffer if self.queue.arm() => Progress::More,
            Pause::NoBuffer => Progress::Idle,
            Pause::HostEmpty => {
                self.poll(turn);
                Progress::Idle
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn into_state(self: Box<Self>) -> QueueState {
        self.shared.keep_stage(self.pair, self.stage);
        self.queue.into_state()
    }
}
