use std::io;
use std::sync::Arc;

use treaty_net::PacketBackend;
use treaty_virtio_device::{
    CounterSet, Description, DeviceCounters, DeviceEvents, DeviceId, DeviceQueue, Features, QueueCounters,
    QueueDescription, QueueSet, QueueState, Reply, RestoreError, SaveError, SavedState, StartError,
    VirtioDevice, read_config_bytes,
};
use treaty_virtio_spec::net::{
    CONFIG_SIZE, Config, DUPLEX_UNKNOWN, MIN_MTU, SPEED_UNKNOWN, STATUS_ANNOUNCE, feature as bit,
};
use treaty_worker::WorkerHandle;
use zerocopy::IntoBytes;

use crate::control::ControlQueue;
use crate::filter::Filter;
use crate::receive::{ReceiveQueue, Setup};
use crate::shared::Shared;
use crate::transmit::TransmitQueue;
use crate::{ControlCounters, NetConfig, NetError, ReceiveCounters, TransmitCounters, offload};

/// The most descriptors in one chain: a super-frame in pages, with room to spare; below what `writev` takes.
const MAX_CHAIN: u16 = 256;

/// The network card.
pub struct Net {
    description: Description,
    mac: [u8; 6],
    mtu: Option<u16>,
    max_pairs: u16,
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    queues: QueueSet,
    /// The negotiated features, once the back-end has been set up for them.
    accepted: Option<Features>,
    /// Receive offloads of a restored state, for the first start.
    restored_offloads: Option<Features>,
    /// Ask for an announcement at the next start: the guest may be somewhere else by then.
    announce_due: bool,
    ring_counters: Vec<Arc<QueueCounters>>,
    receive_counters: Vec<Arc<ReceiveCounters>>,
    transmit_counters: Vec<Arc<TransmitCounters>>,
    control_counters: Arc<ControlCounters>,
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Receive(u16),
    Transmit(u16),
    Control,
}

/// The control queue follows the pairs that the driver knows of: without MQ there is one. virtio 1.3 §5.1.2
fn role(index: u16, max_pairs: u16, accepted: Features) -> Option<Role> {
    let pairs = if accepted.has(bit::MQ) { max_pairs } else { 1 };
    if index == pairs * 2 {
        accepted.has(bit::CTRL_VQ).then_some(Role::Control)
    } else if index > pairs * 2 {
        None
    } else if index.is_multiple_of(2) {
        Some(Role::Receive(index / 2))
    } else {
        Some(Role::Transmit(index / 2))
    }
}

/// What a snapshot holds.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    filter: Filter,
    pairs: u16,
    /// Feature bits.
    offloads: u64,
}

impl Net {
    /// A card on a back-end. Queue `i` runs on worker `i` modulo their number, the control queue on the first one.
    pub fn new(
        config: &NetConfig,
        backend: Box<dyn PacketBackend>,
        workers: Vec<WorkerHandle>,
    ) -> Result<Self, NetError> {
        if workers.is_empty() {
            return Err(NetError::NoWorker);
        }
        let capabilities = *backend.capabilities();
        let mac = config.mac.map_or_else(random_mac, Ok)?;
        check_mac(mac)?;
        let mtu = config.mtu.or(capabilities.mtu);
        if let Some(mtu) = mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(NetError::Mtu(mtu));
        }
        let max_pairs = capabilities.max_pairs.max(1);
        let queue = QueueDescription {
            max_size: config.queue_size,
            max_chain: MAX_CHAIN,
        };
        let queue_count = usize::from(max_pairs) * 2 + 1;
        let features = bit::MAC
            | bit::STATUS
            | bit::MRG_RXBUF
            | bit::CTRL_VQ
            | bit::CTRL_RX
            | bit::CTRL_RX_EXTRA
            | bit::CTRL_VLAN
            | bit::CTRL_MAC_ADDR
            | bit::GUEST_ANNOUNCE
            | Features::when(mtu.is_some(), bit::MTU)
            | Features::when(max_pairs > 1, bit::MQ)
            | offload::offered(&capabilities);
        Ok(Self {
            description: Description {
                id: DeviceId::NET,
                features,
                queues: vec![queue; queue_count],
                config_len: u32::try_from(CONFIG_SIZE).unwrap_or(u32::MAX),
            },
            mac,
            mtu,
            max_pairs,
            shared: Arc::new(Shared::new(backend, Filter::new(mac, Features::NONE))?),
            workers,
            queues: QueueSet::new(queue_count),
            accepted: None,
            restored_offloads: None,
            announce_due: false,
            ring_counters: (0..queue_count).map(|_| Arc::default()).collect(),
            receive_counters: (0..max_pairs).map(|_| Arc::default()).collect(),
            transmit_counters: (0..max_pairs).map(|_| Arc::default()).collect(),
            control_counters: Arc::default(),
        })
    }

    /// The address that the card was made with.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Its counters; they can be read while it runs. The control queue's are under the last index.
    pub fn counters(&self) -> DeviceCounters {
        let mut all = DeviceCounters::default();
        let own = self
            .receive_counters
            .iter()
            .zip(&self.transmit_counters)
            .flat_map(|(receive, transmit)| -> [Arc<dyn CounterSet>; 2] {
                [receive.clone(), transmit.clone()]
            })
            .chain([self.control_counters.clone() as Arc<dyn CounterSet>]);
        for ((index, ring), own) in (0u16..).zip(&self.ring_counters).zip(own) {
            all.push(index, ring.clone());
            all.push(index, own);
        }
        all
    }

    /// Asks the driver to tell the network where it is now, if it can: after a migration or a resume. virtio 1.3 §5.1.6.5.4
    pub fn announce(&mut self) {
        match self.accepted {
            Some(accepted) if accepted.has(bit::GUEST_ANNOUNCE) => {
                self.shared
                    .change_status(STATUS_ANNOUNCE, true, self.queues.events());
            }
            _ => self.announce_due = true,
        }
    }

    /// At the first start after a negotiation: the back-end and the filter go by what was accepted.
    fn take_up(&mut self, index: u16, accepted: Features) -> Result<(), StartError> {
        if self.accepted == Some(accepted) {
            return Ok(());
        }
        let all = accepted & offload::GUEST;
        // What a restored driver had switched off stays off.
        let on = self.restored_offloads.take().unwrap_or(all) & all;
        self.shared
            .set_offloads(on)
            .map_err(host(index, "set up receive offloads"))?;
        self.shared.change_filter(|filter| {
            if !filter.fits(accepted) {
                *filter = Filter::new(filter.mac, accepted);
            }
        });
        self.accepted = Some(accepted);
        Ok(())
    }

    /// Without a control queue nobody says how many pairs carry packets: those whose receive queues run.
    fn count_pairs(&self) {
        let by_command = |accepted: Features| !accepted.has(bit::MQ) || accepted.has(bit::CTRL_VQ);
        if self.accepted.is_none_or(by_command) {
            return;
        }
        let runs = |pair: &u16| self.queues.check_free(pair * 2).is_err();
        let count = (0..self.max_pairs).take_while(runs).fold(0, |count, _| count + 1);
        if let Err(error) = self.shared.set_pairs(u16::max(count, 1)) {
            tracing::warn!(count, %error, "the number of queue pairs was not changed");
        }
    }

    fn start_pair(
        &mut self,
        index: u16,
        role: Role,
        mut queue: DeviceQueue,
        accepted: Features,
    ) -> Result<(), StartError> {
        let missing = || StartError::NoSuchQueue(index);
        let slot = usize::from(index);
        let control = role == Role::Control;
        let counters_at = if control {
            self.ring_counters.len().saturating_sub(1)
        } else {
            slot
        };
        queue.count_into(self.ring_counters.get(counters_at).cloned().ok_or_else(missing)?);
        let turn = if control {
            0
        } else {
            slot % self.workers.len().max(1)
        };
        let worker = self.workers.get(turn).cloned().ok_or_else(missing)?;
        let doorbell = queue.doorbell().clone();
        let shared = self.shared.clone();
        match role {
            Role::Receive(pair) => {
                let receiver = shared
                    .backend()
                    .receiver(pair)
                    .map_err(host(index, "open the back-end"))?;
                let counters = self
                    .receive_counters
                    .get(usize::from(pair))
                    .cloned()
                    .ok_or_else(missing)?;
                let task = ReceiveQueue::new(Setup {
                    queue,
                    shared,
                    events: self.queues.events().cloned(),
                    pair,
                    receiver,
                    accepted,
                    mtu: self.mtu,
                    counters,
                });
                self.queues.start(index, &worker, &doorbell, task)
            }
            Role::Transmit(pair) => {
                let sender = shared
                    .backend()
                    .sender(pair)
                    .map_err(host(index, "open the back-end"))?;
                let counters = self
                    .transmit_counters
                    .get(usize::from(pair))
                    .cloned()
                    .ok_or_else(missing)?;
                let task = TransmitQueue::new(queue, sender, accepted, counters);
                self.queues.start(index, &worker, &doorbell, task)
            }
            Role::Control => {
                let task = ControlQueue::new(queue, shared, accepted, self.control_counters.clone());
                self.queues.start(index, &worker, &doorbell, task)
            }
        }
    }
}

fn host(index: u16, action: &'static str) -> impl FnOnce(treaty_net::BackendError) -> StartError {
    move |error| StartError::Host {
        index,
        action,
        source: io::Error::other(error),
    }
}

fn check_mac(mac: [u8; 6]) -> Result<(), NetError> {
    let [first, ..] = mac;
    if first & 1 == 0 {
        return Ok(());
    }
    let text: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    Err(NetError::GroupAddress(text.join(":")))
}

/// A locally administered address that no group has.
///
/// # Errors
/// If the host gives no randomness.
pub fn random_mac() -> Result<[u8; 6], NetError> {
    let mut mac = [0; 6];
    getrandom::fill(&mut mac).map_err(io::Error::from)?;
    let [first, ..] = &mut mac;
    *first = *first & 0xfc | 0x02;
    Ok(mac)
}

impl VirtioDevice for Net {
    fn description(&self) -> &Description {
        &self.description
    }

    fn attach(&mut self, events: DeviceEvents) {
        self.queues.attach(events);
    }

    fn negotiate(&mut self, accepted: Features) -> bool {
        offload::consistent(accepted)
    }

    fn read_config(&self, offset: u32, dst: &mut [u8]) {
        let config = Config {
            mac: self.mac,
            status: self.shared.status().into(),
            max_virtqueue_pairs: self.max_pairs.into(),
            mtu: self.mtu.unwrap_or(0).into(),
            speed: SPEED_UNKNOWN.into(),
            duplex: DUPLEX_UNKNOWN,
        };
        read_config_bytes(config.as_bytes(), offset, dst);
    }

    fn write_config(&mut self, _offset: u32, _src: &[u8]) {}

    fn start_queue(&mut self, index: u16, queue: DeviceQueue, accepted: Features) -> Result<(), StartError> {
        self.queues.check_free(index)?;
        let role = role(index, self.max_pairs, accepted).ok_or(StartError::NoSuchQueue(index))?;
        self.take_up(index, accepted)?;
        self.start_pair(index, role, queue, accepted)?;
        self.count_pairs();
        if std::mem::take(&mut self.announce_due) {
            self.announce();
        }
        Ok(())
    }

    /// A card whose queues start again without a reset has been paused: then, too, it announces itself.
    fn stop_queue(&mut self, index: u16, reply: Reply<Option<QueueState>>) {
        self.announce_due |= self.queues.running().is_some();
        self.queues.stop(index, reply);
        self.count_pairs();
    }

    fn reset(&mut self) {
        self.accepted = None;
        self.restored_offloads = None;
        self.announce_due = false;
        self.shared.forget_stages();
        self.shared.change_status(STATUS_ANNOUNCE, false, None);
        let mac = self.mac;
        self.shared
            .change_filter(|filter| *filter = Filter::new(mac, Features::NONE));
        let undone = self
            .shared
            .set_pairs(1)
            .and_then(|()| self.shared.set_offloads(Features::NONE));
        if let Err(error) = undone {
            // The next start sets both again, and says so if that fails.
            tracing::warn!(%error, "the network back-end was not reset");
        }
    }

    fn save(&self) -> Result<SavedState, SaveError> {
        if let Some(index) = self.queues.running() {
            return Err(SaveError::QueueRunning(index));
        }
        let saved = Saved {
            filter: self.shared.filter().0,
            pairs: self.shared.pairs(),
            offloads: self.shared.offloads().0,
        };
        SavedState::v1(DeviceId::NET, &saved)
    }

    fn restore(&mut self, state: SavedState) -> Result<(), RestoreError> {
        let saved: Saved = state.read_v1(DeviceId::NET)?;
        if !(1..=self.max_pairs).contains(&saved.pairs) {
            return Err(RestoreError::Invalid(format!(
                "{} queue pairs; this card has {}",
                saved.pairs, self.max_pairs
            )));
        }
        if !saved.filter.is_valid() {
            return Err(RestoreError::Invalid("the receive filter".into()));
        }
        self.shared
            .set_pairs(saved.pairs)
            .map_err(|error| RestoreError::Invalid(error.to_string()))?;
        self.shared.change_filter(|filter| *filter = saved.filter);
        self.restored_offloads = Some(Features(saved.offloads));
        self.announce_due = true;
        Ok(())
    }
}
