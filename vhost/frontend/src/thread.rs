use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use treaty_virtio_device::{DeviceId, Doorbell, Features, QueueState, Reply, vhost_base, vhost_state};
use treaty_virtio_spec::feature;

use crate::backend::{Backend, BackendError, Patience};
use crate::inflight::KeptLog;
use crate::kind::{ConfigSource, Kind};
use crate::link::{Command, Shared};
use crate::peer::Peer;
use crate::ring::Ring;

/// The thread that keeps the back-end: it alone talks to it.
pub struct Keeper {
    peer: Peer,
    patience: Patience,
    kind: Kind,
    /// On offer.
    queues: u16,
    backend: Option<Backend>,
    inbox: Receiver<Command>,
    wake: Doorbell,
    shared: Arc<Shared>,
    /// What runs, or would run if the back-end were here.
    rings: BTreeMap<u16, Ring>,
    accepted: u64,
    /// What is in flight, for the back-end's successor.
    log: Option<KeptLog>,
    /// Rings that were started since it was made.
    logged: BTreeSet<u16>,
    pause: Duration,
    next_try: Instant,
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Keeper {
    pub fn new(
        peer: Peer,
        kind: Kind,
        queues: u16,
        backend: Backend,
        inbox: Receiver<Command>,
        wake: Doorbell,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            peer,
            patience: backend.patience.clone(),
            kind,
            queues,
            backend: Some(backend),
            inbox,
            wake,
            shared,
            rings: BTreeMap::new(),
            accepted: 0,
            log: None,
            logged: BTreeSet::new(),
            pause: FIRST_PAUSE,
            next_try: Instant::now(),
        }
    }

    /// Until the device is dropped.
    pub fn run(mut self) {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Quit) | Err(TryRecvError::Disconnected) => return,
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => self.wait(),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start(index, ring, accepted) => self.start(index, ring, accepted),
            Command::Stop(index, reply) => self.stop(index, reply),
            Command::SetConfig(offset, bytes) => {
                self.shared.config_written();
                self.attempt(|backend| backend.set_config(offset, &bytes));
                self.refresh_config();
            }
            Command::Reset => {
                self.accepted = 0;
                self.attempt(Backend::reset);
            }
            Command::Quit => {}
        }
    }

    /// Does something with the back-end if it is here; lets go of it if it fails.
    fn attempt(&mut self, action: impl FnOnce(&mut Backend) -> Result<(), BackendError>) {
        let Some(backend) = &mut self.backend else { return };
        if let Err(error) = action(backend) {
            self.lose(&error);
        }
    }

    fn start(&mut self, index: u16, mut ring: Ring, accepted: u64) {
        let first = self.rings.is_empty();
        self.accepted = accepted & !(self.kind.own_features | feature::RING_RESET).0;
        let accepted = self.accepted;
        let layout = ring.config.layout;
        let fresh = ring.start == QueueState::fresh(layout);
        if fresh && first {
            self.log = None;
            self.logged.clear();
        }
        let base = vhost_base(layout, ring.start);
        let mut log = self.log.take();
        let most = (self.queues, self.kind.queue_size);
        self.attempt(|backend| {
            if first {
                backend.prepare(accepted, &ring.memory)?;
                hand_over_log(backend, &mut log, most)?;
            }
            ring.running = true;
            backend.start(index, &ring, base)?;
            backend.driver_ok()
        });
        if self.backend.is_none() {
            ring.left(self.in_order());
        }
        // A back-end that starts a fresh ring begins its log anew. Where that did not come to pass, the log has this ring's past.
        let past = !self.logged.insert(index);
        let stale = fresh && past && self.backend.is_none();
        self.log = log.filter(|_| !stale);
        ring.nudge();
        self.rings.insert(index, ring);
    }

    fn stop(&mut self, index: u16, reply: Reply<Option<QueueState>>) {
        let Some(ring) = self.rings.remove(&index) else {
            return reply.send(None);
        };
        let mut state: Option<QueueState> = None;
        if ring.running {
            self.attempt(|backend| {
                let base = backend.stop(index)?;
                state = Some(vhost_state(ring.config.layout, base));
                Ok(())
            });
        }
        // The call may have come while we asked.
        ring.interrupt.signal();
        reply.send(Some(state.unwrap_or_else(|| ring.state_from_memory())));
    }

    fn lose(&mut self, error: &BackendError) {
        tracing::warn!(path = %self.peer.path().display(), %error, "back-end lost; requests wait for it");
        self.backend = None;
        self.rings_left();
        self.shared.lost();
        self.next_try = Instant::now() + self.pause;
    }

    fn rings_left(&mut self) {
        let in_order = self.in_order();
        self.rings.values_mut().for_each(|ring| ring.left(in_order));
    }

    /// Back-ends for these kinds of device give chains back as they took them, and say nothing of IN_ORDER.
    fn in_order(&self) -> bool {
        let one_by_one = [DeviceId::NET, DeviceId::RNG, DeviceId::CONSOLE].contains(&self.kind.id);
        one_by_one || Features(self.accepted).has(feature::IN_ORDER)
    }

    fn try_again(&mut self) {
        match self.set_up_anew() {
            Ok(backend) => {
                self.backend = Some(backend);
                self.pause = FIRST_PAUSE;
                self.shared.regained();
                tracing::info!(path = %self.peer.path().display(), "back-end is back");
            }
            Err(error) => {
                self.rings_left();
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                self.next_try = Instant::now() + self.pause;
                tracing::debug!(%error, "back-end is still away");
            }
        }
    }

    /// Connects, and sets every ring up where it stands.
    fn set_up_anew(&mut self) -> Result<Backend, BackendError> {
        let mut backend = Backend::greet(self.peer.again()?, self.patience.clone())?;
        if let Some(config) = fetch_config(&mut backend, &self.kind, self.queues)? {
            self.shared.set_config(config);
        }
        let Some(first) = self.rings.values().next() else {
            return Ok(backend);
        };
        if let Err(error) = backend.prepare(self.accepted, &first.memory) {
            // A back-end that went away again is tried again; one that says no will not change its mind.
            if matches!(error, BackendError::Lacks(_) | BackendError::Refused(_)) {
                self.shared.needs_reset(&error.to_string());
            }
            return Err(error);
        }
        let most = (self.queues, self.kind.queue_size);
        let known = hand_over_log(&mut backend, &mut self.log, most)?;
        for (&index, ring) in &mut self.rings {
            if !known && ring.in_doubt {
                let reason = format!("queue {index}: the back-end died with requests that only it knew of");
                self.shared.needs_reset(&reason);
                continue;
            }
            let base = vhost_base(ring.config.layout, ring.state_from_memory());
            (ring.running, ring.in_doubt) = (true, false);
            backend.start(index, ring, base)?;
            ring.nudge();
            ring.interrupt.signal();
        }
        backend.driver_ok()?;
        Ok(backend)
    }

    /// Sleeps until something happens, and sees to what is not a command.
    fn wait(&mut self) {
        let mut fds = vec![self.wake.fd()];
        fds.extend(
            self.rings
                .values()
                .flat_map(|ring| [ring.call.fd(), ring.err.fd()]),
        );
        if let Some(backend) = &self.backend {
            fds.push(backend.fd());
            fds.extend(backend.requests_fd());
        } else {
            fds.extend(self.peer.fd());
        }
        let limit = self
            .backend
            .is_none()
            .then(|| self.next_try.saturating_duration_since(Instant::now()));
        poll(&fds, limit);
        self.wake.clear();
        for (index, ring) in &self.rings {
            if ring.call.clear() {
                ring.interrupt.signal();
            }
            if ring.err.clear() {
                let reason = format!("queue {index}: the back-end says that the ring has failed");
                self.shared.needs_reset(&reason);
            }
        }
        if self.backend.is_some() {
            self.listen();
        } else if self.peer.fd().is_some() || Instant::now() >= self.next_try {
            self.try_again();
        }
    }

    /// Takes what the back-end says of its own accord.
    fn listen(&mut self) {
        let mut changed = false;
        self.attempt(|backend| {
            changed = backend.take_requests()?;
            Ok(())
        });
        if changed {
            self.refresh_config();
        }
    }

    /// Fetches the configuration, if the back-end keeps it.
    fn refresh_config(&mut self) {
        let mut config = None;
        let (kind, queues) = (self.kind.clone(), self.queues);
        self.attempt(|backend| {
            config = fetch_config(backend, &kind, queues)?;
            Ok(())
        });
        if let Some(config) = config {
            self.shared.set_config(config);
        }
    }
}

/// Gives the back-end the logs that were kept, or has it make new ones, for that `most` queues and entries; true if it knows from
/// old ones what was in flight.
fn hand_over_log(
    backend: &mut Backend,
    log: &mut Option<KeptLog>,
    most: (u16, u16),
) -> Result<bool, BackendError> {
    if let Some(kept) = log {
        return backend.set_log(kept);
    }
    if let Some(new) = backend.new_log(most.0, most.1)? {
        backend.set_log(&new)?;
        *log = Some(new);
    }
    Ok(false)
}

/// The configuration, if the back-end keeps it.
pub fn fetch_config(
    backend: &mut Backend,
    kind: &Kind,
    queues: u16,
) -> Result<Option<Vec<u8>>, BackendError> {
    let ConfigSource::Backend { len, .. } = kind.config else {
        return Ok(None);
    };
    let mut config = backend.config(len)?;
    kind.correct(&mut config, queues);
    Ok(Some(config))
}

fn poll(fds: &[RawFd], limit: Option<Duration>) {
    let mut polls: Vec<_> = fds
        .iter()
        .map(|&fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let limit_ms = limit.map_or(-1, |limit| {
        i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).max(1)
    });
    #[allow(unsafe_code)]
    // SAFETY: as many pollfds as said, alive during the call.
    let count = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, limit_ms) };
    if count < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
        // Nothing can be waited for: do not spin.
        std::thread::sleep(FIRST_PAUSE);
    }
}
