use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use treaty_memory::{DirtyLog, FaultWatch, GuestMemory, Iotlb};
use treaty_vhost_protocol::payload::{VRING_LOG, VringAddr};
use treaty_vhost_protocol::table::{Reply as Answer, frontend};
use treaty_vhost_protocol::{Channel, Message, ProtocolError, features};
use treaty_virtio_device::{
    DeviceEvents, DeviceId, DeviceQueue, Doorbell, Features, Interrupt, Layout, QueueLog, QueueParts, Reply,
    RingConfig, SavedState, StartError, VirtioDevice, ring_features, ring_layout, vhost_base, vhost_state,
};
use treaty_virtio_spec::net::feature as net;

use crate::handlers::{Outcome, handle, offered_protocol};
use crate::inflight::Logs;
use crate::iotlb;
use crate::memory::{MemoryTable, RegionRefused};
use crate::notify::{Events, RingEvents};
use crate::postcopy::Postcopy;
use crate::server::Options;
use crate::state::{self, Transfer};
use crate::vring::Vring;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// On the wire.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// Memory that cannot be used.
    #[error("{request}: {source}")]
    Memory {
        /// Request name.
        request: &'static str,
        /// Why.
        source: RegionRefused,
    },
    /// A request that makes no sense here.
    #[error("{request}: {reason}")]
    Refused {
        /// Request name.
        request: &'static str,
        /// Why.
        reason: String,
    },
    /// A file that is mapped has become shorter.
    #[error("the front-end has truncated memory that was in use")]
    MemoryLost,
    /// The host refused something of ours.
    #[error("{action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// Ends a session from another thread (SIGTERM): its descriptor becomes readable for good.
#[derive(Clone)]
pub struct Stop(Doorbell);

impl Stop {
    /// Not stopped yet.
    pub fn new() -> io::Result<Self> {
        Doorbell::new().map(Self)
    }

    /// Stops every session that was given this.
    pub fn stop(&self) {
        self.0.ring();
    }

    /// Readable once stopped.
    pub fn fd(&self) -> RawFd {
        self.0.fd()
    }

    /// True once stopped.
    pub fn is_stopped(&self) -> bool {
        self.sleep(Duration::ZERO).is_err()
    }

    /// Waits for the time to pass; an error as soon as it is stopped.
    pub fn sleep(&self, time: Duration) -> io::Result<()> {
        match wait([], self.fd(), Some(time)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::ErrorKind::Interrupted.into()),
            Err(error) => Err(error),
        }
    }
}

/// A ring that has not drained after this long may be held by an eventfd.
const RELIEF: Duration = Duration::from_millis(20);

/// One connection to a front-end.
pub struct Session<'d> {
    pub(crate) channel: Channel,
    pub(crate) device: &'d mut dyn VirtioDevice,
    pub(crate) events: Arc<Events>,
    pub(crate) protocol_features: u64,
    pub(crate) accepted: u64,
    /// The device has heard of `accepted` since its last reset.
    pub(crate) negotiated: bool,
    pub(crate) memory: MemoryTable,
    pub(crate) vrings: Vec<Vring>,
    pub(crate) status: u8,
    pub(crate) log: Option<Arc<DirtyLog>>,
    /// In-flight logs.
    pub(crate) logs: Option<Logs>,
    /// Of everything that the front-end has us map.
    pub(crate) watch: FaultWatch,
    /// Of the device's state, to or from the front-end.
    pub(crate) transfer: Transfer,
    /// ACCESS_PLATFORM is on offer.
    pub(crate) iommu: bool,
    /// Translations, if the driver has ACCESS_PLATFORM and there is memory.
    pub(crate) iotlb: Option<Arc<Iotlb>>,
    /// State that the device has not been given yet.
    pub(crate) loaded: Option<SavedState>,
    /// Memory whose pages arrive later.
    pub(crate) postcopy: Postcopy,
}

/// A network card's features that mean nothing without CTRL_VQ. virtio 1.3 §5.1.3.1
const BITS_OF_CTRL_VQ: Features = net::CTRL_RX
    .with(net::CTRL_RX_EXTRA)
    .with(net::CTRL_VLAN)
    .with(net::CTRL_MAC_ADDR)
    .with(net::CTRL_GUEST_OFFLOADS)
    .with(net::GUEST_ANNOUNCE);

impl<'d> Session<'d> {
    /// Serves `device` to the peer of `stream`. `events` is what the device was attached with.
    pub fn new(
        stream: UnixStream,
        device: &'d mut dyn VirtioDevice,
        events: Arc<Events>,
        options: &Options,
    ) -> Result<Self, SessionError> {
        let watch = FaultWatch::new().map_err(|source| SessionError::Host {
            action: "watch for lost memory",
            source,
        })?;
        let queues = device.description().queues.iter();
        let vrings: Vec<Vring> = queues.map(|_| Vring::default()).collect();
        events.set_errs(vrings.iter().map(|vring| vring.err.clone()).collect());
        Ok(Self {
            channel: Channel::new(stream, frontend::ROWS),
            device,
            events,
            protocol_features: 0,
            accepted: 0,
            negotiated: false,
            memory: MemoryTable::new(watch.clone()),
            vrings,
            status: 0,
            log: None,
            logs: None,
            watch,
            transfer: Transfer::None,
            loaded: None,
            iommu: options.iommu,
            iotlb: None,
            postcopy: Postcopy::new(options.postcopy),
        })
    }

    /// Answers messages until the peer has gone or `stop` is stopped; then every ring is drained and the device reset.
    pub fn serve(mut self, stop: &Stop) -> Result<(), SessionError> {
        self.postcopy.stop_with(stop);
        let mut result = self.answer_all(stop);
        // First: rings may wait for pages that nobody brings any more.
        self.postcopy.end();
        if self.watch.is_lost() {
            // Whatever else went wrong may come from zeros where there was memory.
            result = Err(SessionError::MemoryLost);
        }
        self.stop_all();
        self.device.reset();
        self.events.clear();
        match result {
            Err(SessionError::Protocol(ProtocolError::Closed)) => Ok(()),
            other => other,
        }
    }

    fn answer_all(&mut self, stop: &Stop) -> Result<(), SessionError> {
        while self.wait(stop)? {
            if self.watch.is_lost() {
                return Err(SessionError::MemoryLost);
            }
            state::proceed(self);
            iotlb::ask(self);
            while let Some(message) = self.channel.try_receive()? {
                self.answer(message)?;
                // A peer that never falls silent does not keep the daemon from ending.
                if stop.is_stopped() {
                    return Ok(());
                }
                if self.watch.is_lost() {
                    return Err(SessionError::MemoryLost);
                }
            }
        }
        Ok(())
    }

    /// Until there is something to do; false once stopped.
    fn wait(&self, stop: &Stop) -> Result<bool, SessionError> {
        let input = |fd| (fd, libc::POLLIN);
        let fds = [
            input(self.channel.fd()),
            input(self.watch.fd()),
            self.transfer.waits_for(),
            input(self.iotlb.as_ref().map_or(-1, |table| table.fd())),
        ];
        wait(fds, stop.fd(), None).map_err(waiting)
    }

    fn answer(&mut self, message: Message) -> Result<(), SessionError> {
        let (row, need_reply) = (message.row, message.need_reply);
        tracing::debug!(request = row.name, "message");
        let missing = row.needs & !self.protocol_features;
        if missing & offered_protocol(self) != 0 {
            return Err(refused(row.name, "its protocol feature was not negotiated"));
        }
        let outcome = handle(self, message)?;
        let always = match row.reply {
            Answer::Payload | Answer::PayloadAndFd => true,
            Answer::PayloadWithLogShm => self.protocol_features & features::LOG_SHMFD != 0,
            Answer::Ack => false,
        };
        let acks = need_reply && self.protocol_features & features::REPLY_ACK != 0;
        match outcome {
            Outcome::Payload(payload, fds) if always => {
                let fds: Vec<_> = fds.iter().map(std::os::fd::AsFd::as_fd).collect();
                self.channel.reply(row, &payload, &fds)?;
            }
            Outcome::Extra(payload) => self.channel.reply(row, &payload, &[])?,
            Outcome::Done if acks => self.channel.reply_value(row, &0u64)?,
            Outcome::Rejected(reason) => {
                tracing::warn!(request = row.name, %reason, "refused");
                if !acks {
                    return Err(refused(row.name, reason));
                }
                self.channel.reply_value(row, &1u64)?;
            }
            Outcome::NotServed if acks => self.channel.reply_value(row, &1u64)?,
            Outcome::NotServed => tracing::warn!(request = row.name, "not served; ignored"),
            Outcome::Done | Outcome::Payload(..) => {}
        }
        Ok(())
    }

    /// True once SET_FEATURES has taken the protocol-features bit: rings then wait for SET_VRING_ENABLE.
    pub(crate) fn enables_rings(&self) -> bool {
        self.accepted & features::PROTOCOL_FEATURES != 0
    }

    /// The virtio features that the driver has, without the protocol's own bits.
    pub(crate) fn driver_features(&self) -> Features {
        let driver = Features(self.accepted & !(features::PROTOCOL_FEATURES | features::LOG_ALL));
        let is_net = self.device.description().id == DeviceId::NET;
        if is_net && !driver.has(net::CTRL_VQ) {
            // QEMU and DPDK answer the control queue themselves and leave CTRL_VQ out, but not all the bits that hang on
            // it. MQ stays: the rings that run say how many pairs there are.
            return driver.without(BITS_OF_CTRL_VQ);
        }
        driver
    }

    pub(crate) fn layout(&self) -> Layout {
        ring_layout(self.driver_features())
    }

    /// Starts ring `index` if all that it needs has arrived. Not being ready is no error. DRIVER_OK is not waited for: QEMU's
    /// generic devices (`vhost-user-rng-pci`) never send it.
    pub(crate) fn start_if_ready(&mut self, index: usize) -> Result<(), SessionError> {
        let ready = self.vrings.get(index).is_some_and(|vring| {
            let enabled = vring.enabled || !self.enables_rings();
            let free = !vring.running && !self.postcopy.holds_rings();
            enabled && free && vring.kick.is_some() && vring.addr.is_some() && vring.size > 0
        });
        if !ready {
            return Ok(());
        }
        let Some(memory) = iotlb::memory(self).filter(|_| iotlb::reaches_ring(self, index)) else {
            return Ok(());
        };
        let queue = self.build_queue(index, memory)?;
        let accepted = self.driver_features();
        let number = queue.index();
        // Work may have been offered while nobody listened (virtio 1.3 §2.9): a queue looks at its ring in its first turn. The
        // doorbell is not rung: the front-end shares it, and may have made it blocking and full.
        self.device
            .start_queue(number, queue, accepted)
            .map_err(|error| start_failed(&error))?;
        if let Some(vring) = self.vrings.get_mut(index) {
            vring.running = true;
            if std::mem::take(&mut vring.from_log) && self.logs.is_some() {
                // The process before may have died between a publication and its interrupt.
                vring.call.remind();
            }
        }
        tracing::info!(queue = number, "ring started");
        Ok(())
    }

    fn build_queue(&self, index: usize, memory: GuestMemory) -> Result<DeviceQueue, SessionError> {
        let what = "starting a ring";
        let missing = || refused(what, "it is not set up");
        let vring = self.vrings.get(index).ok_or_else(missing)?;
        let limits = self.device.description().queues.get(index).ok_or_else(missing)?;
        let addr = vring.addr.ok_or_else(missing)?;
        let translate = |address: u64| {
            if self.iotlb.is_some() {
                return Ok(address);
            }
            let text = || refused(what, format!("ring address {address:#x} is in no memory region"));
            self.memory.guest_address(address).ok_or_else(text)
        };
        let config = RingConfig {
            layout: self.layout(),
            size: u16::try_from(vring.size).map_err(|_| refused(what, "its size is out of range"))?,
            descriptor_area: translate(addr.descriptor)?,
            driver_area: translate(addr.available)?,
            device_area: translate(addr.used)?,
            features: ring_features(self.driver_features()),
            max_chain: limits.max_chain,
        };
        let kick = vring.kick.as_ref().ok_or_else(missing)?.try_clone();
        let kick = kick.map_err(|source| SessionError::Host {
            action: "duplicate a kick descriptor",
            source,
        })?;
        let parts = QueueParts {
            index: index as u16,
            memory,
            doorbell: Doorbell::from_fd(kick),
            interrupt: Interrupt::new(vring.call.clone()),
            events: DeviceEvents::new(Arc::new(RingEvents {
                device: self.events.clone(),
                err: vring.err.clone(),
            })),
        };
        let state = vhost_state(config.layout, vring.base);
        // A chain that waits for its translations is taken back when the ring stops: no log could tell that.
        let logs = self.logs.as_ref().filter(|_| self.iotlb.is_none());
        let inflight = logs.and_then(|logs| logs.of(&config, parts.index, !vring.from_log));
        let queue = match inflight {
            Some(inflight) => DeviceQueue::resume(parts, &config, state, inflight),
            None => DeviceQueue::start(parts, &config, state),
        };
        let mut queue = queue.map_err(|error| start_failed(&error))?;
        if queue.fetched() > 0 {
            tracing::info!(
                queue = index,
                requests = queue.fetched(),
                "requests are taken up again"
            );
        }
        if let Some(target) = self.queue_log(addr) {
            queue.log_into(target);
        }
        Ok(queue)
    }

    /// Where a ring's writes are recorded: nowhere unless the front-end is migrating.
    fn queue_log(&self, addr: VringAddr) -> Option<QueueLog> {
        let log = self
            .log
            .clone()
            .filter(|_| self.accepted & features::LOG_ALL != 0)?;
        let ring = (addr.flags & VRING_LOG != 0).then_some(addr.log);
        Some(QueueLog { log, ring })
    }

    /// Drains ring `index` and remembers where it stood.
    pub(crate) fn stop_ring(&mut self, index: usize) {
        let layout = self.layout();
        let Some(vring) = self.vrings.get_mut(index).filter(|vring| vring.running) else {
            return;
        };
        let (answer, state) = mpsc::channel();
        let reply = Reply::new(move |state| {
            // The session waits below for as long as this sender lives.
            let _ = answer.send(state);
        });
        self.device.stop_queue(index as u16, reply);
        vring.running = false;
        if let Some(table) = &self.iotlb {
            table.forget_asked();
        }
        let mut relieved = false;
        let state = loop {
            match state.recv_timeout(RELIEF) {
                Err(mpsc::RecvTimeoutError::Timeout) => self.vrings.iter().for_each(Vring::relieve),
                answer => break answer,
            }
            relieved = true;
        };
        if relieved {
            // Interrupts that nobody had heard yet were taken back with the rest.
            self.vrings.iter().for_each(|vring| vring.call.remind());
        }
        let Some(vring) = self.vrings.get_mut(index) else {
            return;
        };
        match state {
            Ok(Some(state)) => vring.base = vhost_base(layout, state),
            Ok(None) | Err(_) => {
                vring.from_log = true;
                tracing::warn!(queue = index, "ring ended without a state");
            }
        }
        tracing::info!(queue = index, base = vring.base, "ring stopped");
    }

    /// Back to power-on: rings drained, nothing negotiated, nothing broken.
    pub(crate) fn reset(&mut self) {
        self.stop_all();
        self.device.reset();
        self.negotiated = false;
        self.loaded = None;
        self.status = 0;
        self.events.repaired();
    }

    /// Drains every ring.
    pub(crate) fn stop_all(&mut self) {
        (0..self.vrings.len()).for_each(|index| self.stop_ring(index));
    }

    /// Stops the rings that run, makes `change`, and starts them again.
    pub(crate) fn with_rings_stopped<T>(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let running: Vec<usize> = self
            .vrings
            .iter()
            .enumerate()
            .filter(|(_, vring)| vring.running)
            .map(|(index, _)| index)
            .collect();
        running.iter().for_each(|&index| self.stop_ring(index));
        let result = change(self)?;
        for index in running {
            self.start_if_ready(index)?;
        }
        Ok(result)
    }
}

fn waiting(source: io::Error) -> SessionError {
    SessionError::Host {
        action: "wait for messages",
        source,
    }
}

pub(crate) fn refused(request: &'static str, reason: impl Into<String>) -> SessionError {
    SessionError::Refused {
        request,
        reason: reason.into(),
    }
}

fn start_failed(error: &StartError) -> SessionError {
    refused("starting a ring", error.to_string())
}

/// Waits until one of `fds` is ready for what is asked of it, or the time is up; false once `stop` is readable.
pub(crate) fn wait<const N: usize>(
    fds: [(RawFd, i16); N],
    stop: RawFd,
    limit: Option<Duration>,
) -> io::Result<bool> {
    let poll = |(fd, events)| libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    let mut polls = vec![poll((stop, libc::POLLIN))];
    polls.extend(fds.map(poll));
    let limit_ms = limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
    loop {
        #[allow(unsafe_code)]
        // SAFETY: as many pollfds as said, alive during the call.
        let count = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, limit_ms) };
        let error = io::Error::last_os_error();
        match count {
            -1 if error.kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(error),
            _ => return Ok(polls.first().is_none_or(|stop| stop.revents == 0)),
        }
    }
}
