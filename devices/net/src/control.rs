//! The control queue. virtio 1.3 §5.1.6.5

use std::sync::Arc;

use treaty_memory::GuestMemory;
use treaty_virtio_device::{ChainReader, ChainWriter, DeviceQueue, QueueState, QueueTask};
use treaty_virtio_ring::Chain;
use treaty_virtio_spec::Features;
use treaty_virtio_spec::net::{STATUS_ANNOUNCE, VQ_PAIRS_MIN, ctrl, feature as bit};
use treaty_worker::{Progress, Turn};

use crate::ControlCounters;
use crate::filter::Table;
use crate::offload;
use crate::shared::Shared;

/// Commands handled in one turn.
const TURN_COMMANDS: usize = 16;
/// The most addresses read from one command; a longer table is refused, not read.
const MAX_ADDRESSES: u32 = 4096;

/// The control queue's loop.
pub(crate) struct ControlQueue {
    queue: DeviceQueue,
    memory: GuestMemory,
    shared: Arc<Shared>,
    accepted: Features,
    counters: Arc<ControlCounters>,
}

/// The command cannot be carried out: not negotiated, malformed, out of range.
struct Refused;

impl ControlQueue {
    pub(crate) fn new(
        queue: DeviceQueue,
        shared: Arc<Shared>,
        accepted: Features,
        counters: Arc<ControlCounters>,
    ) -> Self {
        Self {
            memory: queue.memory().clone(),
            queue,
            shared,
            accepted,
            counters,
        }
    }

    /// Handles one command; false if there is none.
    fn serve_one(&mut self) -> bool {
        let Some(Chain {
            head,
            readable,
            writable,
        }) = self.queue.next(TURN_COMMANDS)
        else {
            return false;
        };
        let mut reader = ChainReader::new(&self.memory, readable);
        let answer = match execute(&self.shared, self.accepted, &mut reader) {
            Ok(()) => ctrl::OK,
            Err(Refused) => ctrl::ERR,
        };
        let written = ChainWriter::new(&self.memory, writable)
            .write(&[answer])
            .unwrap_or(0);
        if written == 0 {
            self.counters.bad_chains.add(1);
        } else if answer == ctrl::OK {
            self.counters.commands.add(1);
        } else {
            self.counters.refused.add(1);
        }
        self.queue
            .complete(head, u32::try_from(written).unwrap_or(u32::MAX));
        true
    }
}

fn execute(shared: &Shared, accepted: Features, reader: &mut ChainReader<'_>) -> Result<(), Refused> {
    let [class, command] = reader.read_array::<2>().ok_or(Refused)?;
    let needed = match (class, command) {
        (ctrl::RX, ctrl::RX_PROMISC | ctrl::RX_ALLMULTI) | (ctrl::MAC, ctrl::MAC_TABLE_SET) => bit::CTRL_RX,
        (ctrl::RX, _) => bit::CTRL_RX_EXTRA,
        (ctrl::MAC, ctrl::MAC_ADDR_SET) => bit::CTRL_MAC_ADDR,
        (ctrl::VLAN, _) => bit::CTRL_VLAN,
        (ctrl::ANNOUNCE, ctrl::ANNOUNCE_ACK) => bit::GUEST_ANNOUNCE,
        (ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET) => bit::MQ,
        (ctrl::GUEST_OFFLOADS, ctrl::GUEST_OFFLOADS_SET) => bit::CTRL_GUEST_OFFLOADS,
        _ => return Err(Refused),
    };
    if !accepted.has(needed) {
        return Err(Refused);
    }
    match class {
        ctrl::RX => set_mode(shared, command, reader),
        ctrl::MAC if command == ctrl::MAC_TABLE_SET => set_tables(shared, reader),
        ctrl::MAC => set_address(shared, reader),
        ctrl::VLAN => set_vlan(shared, command, reader),
        ctrl::ANNOUNCE => acknowledge(shared),
        ctrl::MQ => set_pairs(shared, reader),
        _ => set_offloads(shared, accepted, reader),
    }
}

fn set_mode(shared: &Shared, command: u8, reader: &mut ChainReader<'_>) -> Result<(), Refused> {
    let on = match reader.read_array::<1>() {
        Some([0]) => false,
        Some([1]) => true,
        _ => return Err(Refused),
    };
    let known = shared.change_filter(|filter| filter.set_mode(command, on));
    known.then_some(()).ok_or(Refused)
}

fn set_tables(shared: &Shared, reader: &mut ChainReader<'_>) -> Result<(), Refused> {
    let unicast = read_table(reader)?;
    let multicast = read_table(reader)?;
    shared.change_filter(|filter| filter.set_tables(unicast, multicast));
    Ok(())
}

/// A count and that many addresses. The count bounds the work, not an allocation.
fn read_table(reader: &mut ChainReader<'_>) -> Result<Table, Refused> {
    let count = u32::from_le_bytes(reader.read_array().ok_or(Refused)?);
    if count > MAX_ADDRESSES {
        return Err(Refused);
    }
    let mut table = Table::default();
    for _ in 0..count {
        table.add(reader.read_array().ok_or(Refused)?);
    }
    Ok(table)
}

fn set_address(shared: &Shared, reader: &mut ChainReader<'_>) -> Result<(), Refused> {
    let mac = reader.read_array::<6>().ok_or(Refused)?;
    shared.change_filter(|filter| filter.mac = mac);
    Ok(())
}

fn set_vlan(shared: &Shared, command: u8, reader: &mut ChainReader<'_>) -> Result<(), Refused> {
    let id = u16::from_le_bytes(reader.read_array().ok_or(Refused)?);
    let pass = match command {
        ctrl::VLAN_ADD => true,
        ctrl::VLAN_DEL => false,
        _ => return Err(Refused),
    };
    let known = shared.change_filter(|filter| filter.set_vlan(id, pass));
    known.then_some(()).ok_or(Refused)
}

/// Only an announcement that was asked for can be acknowledged.
fn acknowledge(shared: &Shared) -> Result<(), Refused> {
    if !shared.announcing() {
        return Err(Refused);
    }
    // The driver knows: no configuration interrupt.
    shared.change_status(STATUS_ANNOUNCE, false, None);
    Ok(())
}

fn set_pairs(shared: &Shared, reader: &mut ChainReader<'_>) -> Result<(), Refused> {
    let count = u16::from_le_bytes(reader.read_array().ok_or(Refused)?);
    let most = shared.backend().capabilities().max_pairs;
    if !(VQ_PAIRS_MIN..=most).contains(&count) {
        return Err(Refused);
    }
    shared.set_pairs(count).map_err(|error| {
        tracing::warn!(count, %error, "the number of queue pairs was not changed");
        Refused
    })
}

fn set_offloads(shared: &Shared, accepted: Features, reader: &mut ChainReader<'_>) -> Result<(), Refused> {
    let wanted = Features(u64::from_le_bytes(reader.read_array().ok_or(Refused)?));
    if !(accepted & offload::GUEST).has(wanted) {
        return Err(Refused);
    }
    shared.set_offloads(wanted).map_err(|error| {
        tracing::warn!(?wanted, %error, "the receive offloads were not changed");
        Refused
    })
}

impl QueueTask for ControlQueue {
    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        if turn.stopping() {
            while self.queue.fetched() > 0 && self.serve_one() {}
            self.queue.publish();
            return Progress::Finished;
        }
        self.queue.disarm(turn);
        let served = (0..TURN_COMMANDS).take_while(|_| self.serve_one()).count();
        self.queue.publish();
        if served == TURN_COMMANDS || self.queue.arm() {
            Progress::More
        } else {
            Progress::Idle
        }
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn into_state(self: Box<Self>) -> QueueState {
        self.queue.into_state()
    }
}
