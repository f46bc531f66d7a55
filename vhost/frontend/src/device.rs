use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use treaty_virtio_device::{
    Description, DeviceEvents, DeviceQueue, Doorbell, Features, QueueDescription, QueueState, Reply,
    RestoreError, SaveError, SavedState, StartError, VirtioDevice,
};
use treaty_virtio_spec::feature;

use crate::backend::{ANSWER_LIMIT, Backend, BackendError, DRAIN_LIMIT, Patience};
use crate::kind::{ConfigSource, Kind};
use crate::link::{Command, Line, LinkStatus, Shared};
use crate::peer::Peer;
use crate::ring::Ring;
use crate::thread::{Keeper, fetch_config};

/// Ring features that the back-end decides.
const RING_FEATURES: Features = feature::VERSION_1
    .with(feature::RING_PACKED)
    .with(feature::INDIRECT_DESC)
    .with(feature::EVENT_IDX)
    .with(feature::IN_ORDER);

/// The connection to a back-end, and the thread that keeps it. It outlives the devices over it, one after the other: a machine's
/// reboot is none of the back-end's business.
pub struct Link {
    path: PathBuf,
    description: Description,
    ring_features: Features,
    line: Line,
    keeper: Option<JoinHandle<()>>,
}

impl Link {
    /// Reaches the back-end and learns what it offers. Later it may come and go.
    pub fn open(peer: Peer, kind: Kind) -> Result<Self, BackendError> {
        Self::open_within(peer, kind, ANSWER_LIMIT, DRAIN_LIMIT)
    }

    /// The same with limits of the caller's choice on how long the back-end may take to answer, and to drain a ring.
    pub fn open_within(
        peer: Peer,
        kind: Kind,
        answer: Duration,
        drain: Duration,
    ) -> Result<Self, BackendError> {
        let host = |action| move |source| BackendError::Host { action, source };
        let quit = Doorbell::new().map_err(host("make an eventfd"))?;
        let patience = Patience {
            answer,
            drain,
            quit: quit.clone(),
        };
        let mut backend = Backend::greet(peer.first()?, patience)?;
        let offered = Features(backend.features);
        if !offered.has(feature::VERSION_1) {
            return Err(BackendError::Lacks("VERSION_1".into()));
        }
        let queues = kind.queues_of(backend.queues).max(1);
        let config = match &kind.config {
            ConfigSource::Own(config) => config.clone(),
            ConfigSource::Backend { .. } => fetch_config(&mut backend, &kind, queues)?.unwrap_or_default(),
        };
        let queue = QueueDescription {
            max_size: kind.queue_size,
            max_chain: kind.queue_size,
        };
        let description = Description {
            id: kind.id,
            features: offered & kind.features | kind.own_features,
            queues: vec![queue; usize::from(queues)],
            config_len: config.len() as u32,
        };
        let wake = Doorbell::new().map_err(host("make an eventfd"))?;
        let (commands, inbox) = mpsc::channel();
        let shared = Arc::new(Shared::new(config));
        let path = peer.path().to_owned();
        let keeper = Keeper::new(peer, kind, queues, backend, inbox, wake.clone(), shared.clone());
        let keeper = std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || keeper.run())
            .map_err(host("start a thread"))?;
        Ok(Self {
            path,
            description,
            // The protocol has it under another name: GET_VRING_BASE, and another start.
            ring_features: offered & RING_FEATURES | feature::RING_RESET,
            line: Line {
                commands,
                wake,
                quit,
                shared,
            },
            keeper: Some(keeper),
        })
    }

    /// The back-end's socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ring features that a transport may offer for this device.
    pub fn ring_features(&self) -> Features {
        self.ring_features
    }

    /// How it is now.
    pub fn status(&self) -> LinkStatus {
        self.line.shared.status()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.line.quit.ring();
        self.line.send(Command::Quit);
        if let Some(keeper) = self.keeper.take() {
            // Its panic was reported when it happened.
            let _ = keeper.join();
        }
    }
}

/// A device run by a vhost-user back-end.
pub struct VhostUserDevice {
    link: Arc<Link>,
    running: Vec<bool>,
}

impl VhostUserDevice {
    /// Connects to the back-end that listens on `path`.
    pub fn connect(path: PathBuf, kind: Kind) -> Result<Self, BackendError> {
        Ok(Self::new(Arc::new(Link::open(Peer::Connect(path), kind)?)))
    }

    /// The device at the end of `link`. The one before must be gone.
    pub fn new(link: Arc<Link>) -> Self {
        Self {
            running: vec![false; link.description.queues.len()],
            link,
        }
    }

    /// The ring features that a transport may offer for this device.
    pub fn ring_features(&self) -> Features {
        self.link.ring_features
    }

    /// A way to look at the link while a transport owns the device.
    pub fn link(&self) -> impl Fn() -> LinkStatus + Send + Sync + 'static {
        let shared = self.link.line.shared.clone();
        move || shared.status()
    }
}

impl Drop for VhostUserDevice {
    fn drop(&mut self) {
        let line = &self.link.line;
        for (index, _) in (0..).zip(&self.running).filter(|(_, running)| **running) {
            line.send(Command::Stop(index, Reply::new(|_| ())));
        }
        line.send(Command::Reset);
        line.shared.detach();
    }
}

impl VirtioDevice for VhostUserDevice {
    fn description(&self) -> &Description {
        &self.link.description
    }

    fn attach(&mut self, events: DeviceEvents) {
        self.link.line.shared.attach(events);
    }

    fn read_config(&self, offset: u32, dst: &mut [u8]) {
        self.link.line.shared.read_config(offset, dst);
    }

    fn write_config(&mut self, offset: u32, src: &[u8]) {
        let line = &self.link.line;
        if line.shared.admit_config_write() {
            line.send(Command::SetConfig(offset, src.to_vec()));
        }
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
        self.link.line.send(Command::Start(index, ring, accepted.0));
        Ok(())
    }

    fn stop_queue(&mut self, index: u16, reply: Reply<Option<QueueState>>) {
        match self.running.get_mut(usize::from(index)).map(std::mem::take) {
            Some(true) => self.link.line.send(Command::Stop(index, reply)),
            _ => reply.send(None),
        }
    }

    fn reset(&mut self) {
        self.link.line.send(Command::Reset);
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
