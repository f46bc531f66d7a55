use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use treaty_virtio_device::{
    Description, DeviceEvents, DeviceId, DeviceQueue, Doorbell, Features, QueueDescription, QueueState,
    Reply, RestoreError, SaveError, SavedState, StartError, VirtioDevice,
};
use treaty_virtio_spec::feature;

use crate::backend::{Backend, BackendError};
use crate::link::{Command, Line, LinkStatus, Shared};
use crate::ring::Ring;
use crate::thread::Keeper;

/// What vhost-user does not tell of a device.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Device type.
    pub id: DeviceId,
    /// Queues, where the back-end does not say how many it has.
    pub queues: u16,
    /// Largest queue size to offer.
    pub queue_size: u16,
    /// Device-type features to keep from the back-end's offer.
    pub features: Features,
    /// Configuration, where it is not the back-end's affair (the MAC address of a network card).
    pub config: Option<Vec<u8>>,
}

/// Ring features that the back-end decides.
const RING_FEATURES: Features = feature::RING_PACKED
    .with(feature::INDIRECT_DESC)
    .with(feature::EVENT_IDX)
    .with(feature::IN_ORDER)
    .with(feature::RING_RESET);

/// A device run by a vhost-user back-end.
pub struct VhostUserDevice {
    description: Description,
    ring_features: Features,
    line: Line,
    keeper: Option<JoinHandle<()>>,
    running: Vec<bool>,
}

impl VhostUserDevice {
    /// Connects to the back-end that listens on `path` and learns what it offers. Later it may come and go.
    pub fn connect(path: PathBuf, kind: Kind) -> Result<Self, BackendError> {
        let mut backend = Backend::connect(&path)?;
        if backend.features & feature::VERSION_1.0 == 0 {
            return Err(BackendError::Lacks("VERSION_1".into()));
        }
        let own_config = kind.config.is_some();
        let config = match kind.config {
            Some(config) => config,
            None => backend.config()?.unwrap_or_default(),
        };
        let offered = backend.features;
        let queues = backend
            .queues
            .map_or(kind.queues, |queues| {
                kind.queues.min(u16::try_from(queues).unwrap_or(u16::MAX))
            })
            .max(1);
        let queue = QueueDescription {
            max_size: kind.queue_size,
            max_chain: kind.queue_size,
        };
        let description = Description {
            id: kind.id,
            features: Features(offered) & kind.features,
            queues: vec![queue; usize::from(queues)],
            config_len: config.len() as u32,
        };
        let host = |action| move |source| BackendError::Host { action, source };
        let wake = Doorbell::new().map_err(host("make an eventfd"))?;
        let (commands, inbox) = mpsc::channel();
        let shared = Arc::new(Shared::new(config));
        let keeper = Keeper::new(path, backend, inbox, wake.clone(), shared.clone(), own_config);
        let keeper = std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || keeper.run())
            .map_err(host("start a thread"))?;
        Ok(Self {
            running: vec![false; usize::from(queues)],
            description,
            ring_features: Features(offered) & RING_FEATURES,
            line: Line {
                commands,
                wake,
                shared,
            },
            keeper: Some(keeper),
        })
    }

    /// The ring features that a transport may offer for this device.
    pub fn ring_features(&self) -> Features {
        self.ring_features
    }

    /// A way to look at the link while a transport owns the device.
    pub fn link(&self) -> impl Fn() -> LinkStatus + Send + Sync + 'static {
        let shared = self.line.shared.clone();
        move || shared.status()
    }
}

impl Drop for VhostUserDevice {
    fn drop(&mut self) {
        self.line.send(Command::Quit);
        if let Some(keeper) = self.keeper.take() {
            // Its panic was reported when it happened.
            let _ = keeper.join();
        }
    }
}

impl VirtioDevice for VhostUserDevice {
    fn description(&self) -> &Description {
        &self.description
    }

    fn attach(&mut self, events: DeviceEvents) {
        self.line.shared.attach(events);
    }

    fn read_config(&self, offset: u32, dst: &mut [u8]) {
        self.line.shared.read_config(offset, dst);
    }

    fn write_config(&mut self, offset: u32, src: &[u8]) {
        self.line.send(Command::SetConfig(offset, src.to_vec()));
    }

    fn start_queue(&mut self, index: u16, queue: DeviceQueue, accepted: Features) -> Result<(), StartError> {
        let running = self
            .running
            .get_mut(usize::from(index))
            .ok_or(StartError::NoSuchQueue(index))?;
        if std::mem::replace(running, true) {
            return Err(StartError::AlreadyRunning(index));
        }
        let eventfd = || {
            Doorbell::new().map_err(|source| StartError::Host {
                index,
                action: "make an eventfd",
                source,
            })
        };
        let ring = Ring::new(queue, eventfd()?, eventfd()?);
        self.line.send(Command::Start(index, ring, accepted.0));
        Ok(())
    }

    fn stop_queue(&mut self, index: u16, reply: Reply<Option<QueueState>>) {
        match self.running.get_mut(usize::from(index)).map(std::mem::take) {
            Some(true) => self.line.send(Command::Stop(index, reply)),
            _ => reply.send(None),
        }
    }

    fn reset(&mut self) {
        self.line.send(Command::Reset);
    }

    fn save(&self) -> Result<SavedState, SaveError> {
        Err(SaveError::Device(
            "a vhost-user device's state is the back-end's, which cannot hand it out".into(),
        ))
    }

    fn restore(&mut self, _: SavedState) -> Result<(), RestoreError> {
        Err(RestoreError::Invalid(
            "a vhost-user device's state is the back-end's, which cannot take it".into(),
        ))
    }
}
