use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use treaty_virtio_device::{
    ChainReader, ChainWriter, Description, DeviceEvents, DeviceId, DeviceQueue, Features, QueueCounters,
    QueueDescription, QueueSet, QueueState, QueueTask, Reply, RestoreError, SaveError, SavedState,
    StartError, VirtioDevice, read_config_bytes,
};
use treaty_virtio_ring::Head;
use treaty_worker::{Progress, Turn, WorkerHandle};

use crate::{Driver, Subject, Token};

/// A device for testing transports and rigs: it copies a chain's readable bytes to its writable ones.
///
/// Queue 0 answers at once, queue 1 after a millisecond, queue 2 not while its [gate](Echo::gate) is shut, not even to stop.
/// Asked [`PANIC`], the queue's task panics. The configuration is eight bytes that the driver may write.
pub struct Echo {
    description: Description,
    config: [u8; 8],
    worker: WorkerHandle,
    queues: QueueSet,
    counters: Arc<QueueCounters>,
    invert: bool,
    gate: Arc<AtomicBool>,
}

/// With this feature the answer is the complement of the question.
pub const INVERT: Features = Features::bit(3);
/// Without [`INVERT`] this one is refused.
pub const NEEDS_INVERT: Features = Features::bit(4);

/// What the device has no answer to.
pub const PANIC: &[u8] = b"panic!";

/// How long queue 1 takes.
const DELAY_NS: u64 = 1_000_000;
/// The longest echo.
const LIMIT: usize = 4096;

impl Echo {
    /// A type number that no real device has.
    pub const ID: DeviceId = DeviceId(0xbf);

    /// Its queues will run on `worker`.
    pub fn new(worker: WorkerHandle) -> Self {
        let queue = QueueDescription {
            max_size: 128,
            max_chain: 64,
        };
        Self {
            description: Description {
                id: Self::ID,
                features: INVERT | NEEDS_INVERT,
                queues: vec![queue; 3],
                config_len: 8,
            },
            config: *b"treaty!\n",
            worker,
            queues: QueueSet::new(3),
            counters: Arc::default(),
            invert: false,
            gate: Arc::new(AtomicBool::new(true)),
        }
    }

    /// True while queue 2 answers.
    pub fn gate(&self) -> Arc<AtomicBool> {
        self.gate.clone()
    }

    /// What all queues counted.
    pub fn counters(&self) -> Arc<QueueCounters> {
        self.counters.clone()
    }
}

impl VirtioDevice for Echo {
    fn description(&self) -> &Description {
        &self.description
    }

    fn attach(&mut self, events: DeviceEvents) {
        self.queues.attach(events);
    }

    fn negotiate(&mut self, accepted: Features) -> bool {
        self.invert = accepted.has(INVERT);
        self.invert || !accepted.has(NEEDS_INVERT)
    }

    fn read_config(&self, offset: u32, dst: &mut [u8]) {
        read_config_bytes(&self.config, offset, dst);
    }

    fn write_config(&mut self, offset: u32, src: &[u8]) {
        for (byte, new) in self.config.iter_mut().skip(offset as usize).zip(src) {
            *byte = *new;
        }
        if let Some(events) = self.queues.events() {
            events.config_changed();
        }
    }

    fn start_queue(
        &mut self,
        index: u16,
        mut queue: DeviceQueue,
        accepted: Features,
    ) -> Result<(), StartError> {
        self.queues.check_free(index)?;
        queue.count_into(self.counters.clone());
        let doorbell = queue.doorbell().clone();
        let task = EchoQueue {
            delay_ns: if index == 0 { 0 } else { DELAY_NS },
            gate: (index == 2).then(|| self.gate.clone()),
            invert: accepted.has(INVERT),
            queue,
            late: VecDeque::new(),
        };
        self.queues.start(index, &self.worker, &doorbell, task)
    }

    fn stop_queue(&mut self, index: u16, reply: Reply<Option<QueueState>>) {
        self.queues.stop(index, reply);
    }

    fn reset(&mut self) {
        self.config = *b"treaty!\n";
        self.invert = false;
    }

    fn save(&self) -> Result<SavedState, SaveError> {
        match self.queues.running() {
            Some(index) => Err(SaveError::QueueRunning(index)),
            None => SavedState::v1(Self::ID, &self.config),
        }
    }

    fn restore(&mut self, state: SavedState) -> Result<(), RestoreError> {
        self.config = state.read_v1(Self::ID)?;
        Ok(())
    }
}

struct EchoQueue {
    queue: DeviceQueue,
    delay_ns: u64,
    gate: Option<Arc<AtomicBool>>,
    invert: bool,
    /// When, what, how many bytes.
    late: VecDeque<(u64, Head, u32)>,
}

impl EchoQueue {
    fn take(&mut self, now_ns: u64) -> bool {
        let memory = self.queue.memory().clone();
        let Some(chain) = self.queue.next(16) else {
            return false;
        };
        let mut bytes = [0; LIMIT];
        let len = ChainReader::new(&memory, chain.readable)
            .read(&mut bytes)
            .unwrap_or(0);
        assert!(&bytes[..len] != PANIC, "asked to panic");
        if self.invert {
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
        }
        let mut writer = ChainWriter::new(&memory, chain.writable);
        let written = writer.write(&bytes[..len]).unwrap_or(0) as u32;
        self.late.push_back((now_ns + self.delay_ns, chain.head, written));
        true
    }
}

impl QueueTask for EchoQueue {
    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        self.queue.disarm(turn);
        let mut budget = 64;
        while !turn.stopping() && budget > 0 && self.take(turn.now()) {
            budget -= 1;
        }
        // What was fetched in a burst has to be answered before the queue stops.
        while turn.stopping() && self.queue.fetched() > 0 && self.take(turn.now()) {}
        let now = turn.now();
        let open = self.gate.as_ref().is_none_or(|gate| gate.load(Ordering::SeqCst));
        while let Some((_, head, written)) = self.late.pop_front_if(|entry| open && entry.0 <= now) {
            self.queue.complete(head, written);
        }
        self.queue.publish();
        if let Some((due, ..)) = self.late.front() {
            turn.wake_at((*due).max(now + DELAY_NS / 2));
        }
        if turn.stopping() {
            return if self.in_flight() == 0 {
                Progress::Finished
            } else {
                Progress::Idle
            };
        }
        if budget == 0 || self.queue.arm() {
            return Progress::More;
        }
        Progress::Idle
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn into_state(self: Box<Self>) -> QueueState {
        self.queue.into_state()
    }
}

/// [`Echo`] under the conformance suite.
#[derive(Default)]
pub struct EchoSubject;

impl EchoSubject {
    fn expect(driver: &Driver, asked: &[u8]) -> Vec<u8> {
        let invert = driver.accepted().has(INVERT);
        asked
            .iter()
            .map(|byte| if invert { !byte } else { *byte })
            .collect()
    }
}

impl Subject for EchoSubject {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn device(&mut self, worker: &WorkerHandle) -> Box<dyn VirtioDevice> {
        Box::new(Echo::new(worker.clone()))
    }

    fn queues(&self, _accepted: Features) -> Vec<u16> {
        vec![0, 1, 2]
    }

    fn fewest_queues(&self, _accepted: Features) -> Vec<u16> {
        vec![1]
    }

    fn prepare(&mut self, driver: &mut Driver) {
        assert_eq!(driver.read_config::<10>(0), *b"treaty!\n\0\0");
    }

    fn io(&mut self, driver: &mut Driver, round: u64) {
        let question: Vec<u8> = (0..100 + round).map(|at| (at * 7 + round) as u8).collect();
        let expected = Self::expect(driver, &question);
        let (first, second) = question.split_at(33);
        let done = driver.transfer(1, &[first, second], &[5, 200]);
        assert_eq!(done.data(), expected);
        assert!(done.bytes[question.len()..].iter().all(|byte| *byte == 0));
    }

    fn begin(&mut self, driver: &mut Driver) -> Vec<Token> {
        let tokens = (0..8u8).map(|at| driver.offer(1, &[&[at; 64]], &[64])).collect();
        driver.kick(1);
        tokens
    }

    fn victim(&self) -> u16 {
        1
    }
}
