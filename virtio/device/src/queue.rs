use std::sync::Arc;

use treaty_memory::GuestMemory;
use treaty_telemetry::Timer;
use treaty_virtio_ring::{
    Burst, Chain, ConfigError, DeviceRing, Head, InflightLog, QueueState, RingConfig, Witness,
};
use treaty_worker::{Progress, Turn};

use crate::log::Recorder;
use crate::parked::Parking;
use crate::{DeviceEvents, Doorbell, Interrupt, QueueCounters, QueueLog, QueueMemory, StartError};

/// A running queue: the ring with the memory, doorbell and interrupt that it was started with.
pub struct DeviceQueue {
    index: u16,
    ring: DeviceRing<QueueMemory>,
    burst: Burst,
    memory: GuestMemory,
    doorbell: Doorbell,
    interrupt: Interrupt,
    events: DeviceEvents,
    timer: Timer,
    unpublished: bool,
    /// The driver may have been asked for doorbells.
    armed: bool,
    recorder: Option<Box<Recorder>>,
    /// Where addresses are translated.
    parking: Option<Box<Parking>>,
}

/// What a [`DeviceQueue`] is made of.
pub struct QueueParts {
    /// Queue index in its device.
    pub index: u16,
    /// Guest memory that ring and buffers lie in.
    pub memory: GuestMemory,
    /// Rung by the driver.
    pub doorbell: Doorbell,
    /// Signalled by the device.
    pub interrupt: Interrupt,
    /// Where a violation is reported.
    pub events: DeviceEvents,
}

impl DeviceQueue {
    /// Starts the ring: `config` is copied and frozen. `state` is [`QueueState::fresh`] unless the queue goes on.
    pub fn start(parts: QueueParts, config: &RingConfig, state: QueueState) -> Result<Self, StartError> {
        Self::over(parts, |memory| DeviceRing::start(memory, config, state))
    }

    /// As [`start`](Self::start), with a log of what is in flight that outlives this process; see [`DeviceRing::resume`].
    pub fn resume(
        parts: QueueParts,
        config: &RingConfig,
        state: QueueState,
        log: InflightLog<QueueMemory>,
    ) -> Result<Self, StartError> {
        Self::over(parts, |memory| DeviceRing::resume(memory, config, state, log))
    }

    fn over(
        parts: QueueParts,
        ring: impl FnOnce(QueueMemory) -> Result<DeviceRing<QueueMemory>, ConfigError>,
    ) -> Result<Self, StartError> {
        let QueueParts {
            index,
            memory,
            doorbell,
            interrupt,
            events,
        } = parts;
        let ring = ring(QueueMemory(memory.clone())).map_err(|error| StartError::Ring(index, error))?;
        let max_chain = ring.config().max_chain;
        let parking = memory.iotlb().cloned();
        let parking = parking.map(|iotlb| Box::new(Parking::new(iotlb, max_chain, ring.state())));
        let timer = Timer::new(Arc::default(), ring.config().size);
        Ok(Self {
            index,
            burst: Burst::new(max_chain),
            ring,
            memory,
            doorbell,
            interrupt,
            events,
            timer,
            unpublished: false,
            armed: true,
            recorder: None,
            parking,
        })
    }

    /// Lets a test see the steps of a queue that has an in-flight log.
    pub fn watch(&mut self, witness: Box<dyn Witness>) {
        self.ring.watch(witness);
    }

    /// Counts into `counters` from now on: a device keeps one set per queue over stops and resets.
    pub fn count_into(&mut self, counters: Arc<QueueCounters>) {
        self.timer = Timer::new(counters, self.size());
    }

    /// Records from now on what is written to guest memory. Nothing has been [taken](Self::next) yet.
    pub fn log_into(&mut self, target: QueueLog) {
        self.recorder = Some(Box::new(Recorder::new(target, self.ring.config())));
    }

    /// Queue index.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.ring.config().size
    }

    /// Guest memory, for reaching the chains' bytes.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The doorbell; the worker watches it already.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// The next chain in the driver's order; fetches a burst of up to `budget` when none is at hand. A chain must be
    /// [completed](Self::complete) before the queue stops.
    ///
    /// A violation is counted, logged once and reported as NEEDS_RESET; from then on there are no more chains.
    #[inline]
    pub fn next(&mut self, budget: usize) -> Option<Chain<'_>> {
        if self.burst.is_empty() {
            self.fetch(budget);
        }
        let chain = self.burst.pop()?;
        if let Some(recorder) = &mut self.recorder {
            recorder.taken(&chain);
        }
        Some(chain)
    }

    /// Chains fetched and not yet handed out by [`next`](Self::next), now or by a process that died: a stopping task hands
    /// these out too.
    #[inline]
    pub fn fetched(&self) -> usize {
        self.burst.remaining() + self.ring.lost()
    }

    /// Once a burst: kept apart from the loops that [`next`](Self::next) is inlined into.
    #[inline(never)]
    fn fetch(&mut self, budget: usize) {
        let Some(parking) = &mut self.parking else {
            return self.take(budget);
        };
        if parking.is_taken() {
            return parking.leave(&mut self.burst);
        }
        let before = self.ring.state();
        self.take(budget.min(1));
        if let Some(parking) = &mut self.parking {
            parking.enter(&mut self.burst, before);
        }
    }

    #[inline(always)]
    fn take(&mut self, budget: usize) {
        match self.ring.next_burst(&mut self.burst, budget) {
            Ok(0) => {}
            Ok(count) => {
                if self.timer.took(count) {
                    self.time_one_of(count);
                }
            }
            Err(violation) => {
                let violations = &self.timer.counters().violations;
                violations.add(1);
                // A guest can reset and do it again: ever fewer of them are logged.
                let count = violations.get();
                if count.is_power_of_two() {
                    tracing::error!(queue = self.index, count, %violation, "queue retired");
                }
                self.events
                    .needs_reset(&format!("queue {}: {violation}", self.index));
            }
        }
    }

    /// Chooses a chain of the burst that was just taken, to see how long its stages take.
    #[cold]
    #[inline(never)]
    fn time_one_of(&mut self, count: usize) {
        let Some(head) = self.burst.head_at(self.timer.place(count)) else {
            return;
        };
        let config = self.ring.config();
        // Almost always a chain of several segments is an indirect one where that is possible.
        let descriptors = match config.features.indirect {
            true => 1,
            false => self.burst.segments().div_ceil(count.max(1)),
        };
        self.timer.sample(head, count, config.size, descriptors as u64);
    }

    /// All chains taken in this turn have been given to whom they are for. A task whose back-end answers later calls it;
    /// elsewhere [`publish`](Self::publish) does.
    #[inline]
    pub fn submitted(&mut self) {
        self.timer.submitted();
    }

    /// The device is done with a chain and wrote `written` bytes. Seen by the driver after [`publish`](Self::publish).
    #[inline]
    pub fn complete(&mut self, head: Head, written: u32) {
        self.timer.completed(head.index());
        self.unpublished = true;
        if let Some(recorder) = &mut self.recorder {
            recorder.completed(head.index());
        }
        self.ring.complete(head, written);
    }

    /// Makes completions visible and interrupts the driver if it asked for it. Does nothing if there is none.
    #[inline]
    pub fn publish(&mut self) {
        self.timer.submitted();
        if !std::mem::take(&mut self.unpublished) {
            return;
        }
        let wanted = self.ring.publish();
        self.ring_written();
        let published = self.timer.publishing();
        if wanted {
            self.timer.counters().interrupts.add(1);
            self.interrupt.signal();
        } else {
            self.timer.counters().interrupts_suppressed.add(1);
        }
        if let Some(published) = published {
            self.timer.published(published, wanted);
        }
    }

    /// Grows whenever a chain is taken or completed.
    #[inline]
    pub fn moved(&self) -> u64 {
        let counters = self.timer.counters();
        counters.chains.get().wrapping_add(counters.completed.get())
    }

    /// What a task answers that polls instead of [arming](Self::arm); `before` is [`moved`](Self::moved) when its turn
    /// began.
    #[inline]
    pub fn look_again(&self, before: u64) -> Progress {
        if self.moved() == before {
            Progress::Polling
        } else {
            Progress::More
        }
    }

    /// Asks for doorbells, then looks once more: if true there is work and the task must not idle.
    pub fn arm(&mut self) -> bool {
        self.armed = true;
        let more = self.ring.arm();
        self.ring_written();
        // Behind a chain that waits for its translations nothing is taken.
        let more = more && !self.is_parked();
        if !more {
            self.timer.sleeps();
        }
        more
    }

    fn is_parked(&self) -> bool {
        self.parking.as_ref().is_some_and(|parking| parking.is_taken())
    }

    fn ring_written(&self) {
        if let Some(recorder) = &self.recorder {
            recorder.ring_written(self.ring.config());
        }
    }

    /// Asks for no doorbells while the task runs. Called at the beginning of a turn, before chains are taken.
    #[inline]
    pub fn disarm(&mut self, turn: &Turn<'_>) {
        if std::mem::take(&mut self.armed) {
            self.timer.gets_up(turn.woken());
            self.ring.disarm();
            self.ring_written();
        }
    }

    /// Chains fetched and not completed, including those not handed out yet.
    pub fn in_flight(&self) -> usize {
        self.ring.in_flight() - usize::from(self.is_parked())
    }

    /// True after a violation.
    pub fn is_retired(&self) -> bool {
        self.ring.is_retired()
    }

    /// Counters so far.
    pub fn counters(&self) -> &QueueCounters {
        self.timer.counters()
    }

    /// Takes the queue apart for a device that runs its rings elsewhere (vhost, vhost-user): nothing has been
    /// [fetched](Self::next) from it.
    pub fn into_parts(self) -> (QueueParts, RingConfig, QueueState) {
        let (config, state) = (*self.ring.config(), self.ring.state());
        let Self {
            index,
            memory,
            doorbell,
            interrupt,
            events,
            ..
        } = self;
        (
            QueueParts {
                index,
                memory,
                doorbell,
                interrupt,
                events,
            },
            config,
            state,
        )
    }

    /// Ends the queue; nothing may be in flight. What was completed and not published is published first.
    pub fn into_state(mut self) -> QueueState {
        self.publish();
        let state = self.ring.state();
        match &self.parking {
            Some(parking) => parking.without(state),
            None => state,
        }
    }
}
