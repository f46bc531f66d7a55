use treaty_bus::Ticket;
use treaty_virtio_device::{Features, QueueState};
use treaty_virtio_spec::status::{DRIVER_OK, FEATURES_OK};

use super::queue::{Queue, Run, Then};
use super::{Core, CoreState, SavedQueue, SavedRing, status};
use crate::{TransportRestoreError, TransportSaveError};

impl Core {
    /// Begins to stop every queue, keeping their state. The ticket is finished when they have drained.
    pub fn pause(&mut self) -> Option<Ticket> {
        self.poll();
        self.paused = true;
        for index in 0..self.queues.len() {
            self.stop(index, Then::Park);
        }
        self.poll();
        self.drain_ticket()
    }

    /// Starts again what was paused or restored. A ticket means that something still drains: wait, then resume again.
    pub fn resume(&mut self) -> Option<Ticket> {
        self.paused = false;
        self.poll();
        self.drain_ticket()
    }

    pub fn save(&mut self) -> Result<CoreState, TransportSaveError> {
        self.poll();
        if !self.paused {
            return Err(TransportSaveError::NotPaused);
        }
        let save = |(index, queue): (usize, &Queue)| {
            let ring = match queue.run {
                Run::Fresh => SavedRing::Fresh,
                Run::Parked(state) => state.into(),
                Run::Failed => SavedRing::Failed,
                Run::Running | Run::Draining(..) => return Err(TransportSaveError::Draining(index)),
            };
            Ok(SavedQueue {
                config: queue.config,
                ring,
            })
        };
        let queues = self
            .queues
            .iter()
            .enumerate()
            .map(save)
            .collect::<Result<_, _>>()?;
        Ok(CoreState {
            version: CoreState::VERSION,
            status: self.status(),
            driver_features: self.driver_features.0,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            queue_select: self.queue_select,
            generation: self.generation(),
            queues,
            device: self.device.save()?,
        })
    }

    /// Takes up a saved state, checked as if the guest had written it. Stays paused until [`resume`](Self::resume).
    pub fn restore(&mut self, state: &CoreState) -> Result<(), TransportRestoreError> {
        self.poll();
        let fresh = |queue: &Queue| matches!(queue.run, Run::Fresh);
        if self.status() != 0 || self.resetting || !self.queues.iter().all(fresh) {
            return Err(TransportRestoreError::InUse);
        }
        self.check(state)?;
        if let Err(error) = self.restore_device(state) {
            self.device.reset();
            return Err(error);
        }
        for (queue, saved) in self.queues.iter_mut().zip(&state.queues) {
            queue.config = saved.config;
            queue.run = match saved.ring {
                SavedRing::Fresh => Run::Fresh,
                SavedRing::Failed => Run::Failed,
                SavedRing::At {
                    next_avail,
                    next_used,
                } => Run::Parked(QueueState {
                    next_avail,
                    next_used,
                }),
            };
        }
        self.driver_features = Features(state.driver_features);
        self.device_feature_select = state.device_feature_select;
        self.driver_feature_select = state.driver_feature_select;
        self.queue_select = state.queue_select;
        self.paused = true;
        self.shared.replace_generation(state.generation);
        self.shared.replace_status(state.status);
        Ok(())
    }

    fn restore_device(&mut self, state: &CoreState) -> Result<(), TransportRestoreError> {
        let features = Features(state.driver_features);
        if state.status & FEATURES_OK != 0 && !self.negotiate(features) {
            return Err(TransportRestoreError::Features(features.0));
        }
        Ok(self.device.restore(state.device.clone())?)
    }

    fn check(&self, state: &CoreState) -> Result<(), TransportRestoreError> {
        if state.version != CoreState::VERSION {
            return Err(TransportRestoreError::Version(state.version));
        }
        if !status::is_reachable(state.status) {
            return Err(TransportRestoreError::Status(state.status));
        }
        let (found, expected) = (state.queues.len(), self.queues.len());
        if found != expected {
            return Err(TransportRestoreError::QueueCount { found, expected });
        }
        let driver_ok = state.status & DRIVER_OK != 0;
        for (index, (queue, saved)) in self.queues.iter().zip(&state.queues).enumerate() {
            let size_ok = (1..=queue.limits.max_size).contains(&saved.config.size);
            let started = saved.ring != SavedRing::Fresh;
            if !size_ok || started && !(saved.config.enabled && driver_ok) {
                return Err(TransportRestoreError::Queue(index));
            }
        }
        Ok(())
    }
}
