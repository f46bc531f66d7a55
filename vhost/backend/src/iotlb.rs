//! A guest's IOMMU between its drivers and us: ring and buffer addresses are I/O virtual ones, and the front-end translates
//! them on demand.
//!
//! Ring addresses are translated once, when the ring starts, and it starts when they can be. Buffers are looked up in a table that
//! queues share; what is missing there parks the queue, never a thread, and is asked for on the back-end's own channel.

use std::sync::Arc;

use treaty_memory::{Access, GuestMemory, Iotlb, Miss};
use treaty_vhost_protocol::Message;
use treaty_vhost_protocol::payload::Iotlb as Payload;
use treaty_vhost_protocol::table::backend;
use treaty_virtio_device::Layout;
use treaty_virtio_spec::feature;
use zerocopy::IntoBytes;

use crate::handlers::Outcome;
use crate::session::{Session, SessionError, refused};

/// What an IOTLB message is about.
enum Kind {
    Miss,
    Update,
    Invalidate,
    AccessFail,
}

impl TryFrom<u8> for Kind {
    type Error = String;

    fn try_from(value: u8) -> Result<Self, String> {
        match value {
            1 => Ok(Self::Miss),
            2 => Ok(Self::Update),
            3 => Ok(Self::Invalidate),
            4 => Ok(Self::AccessFail),
            _ => Err(format!("type {value}")),
        }
    }
}

const MISS: u8 = 1;
const MAY_READ: u8 = 1;
const MAY_WRITE: u8 = 2;

/// A new table, for new memory or new features. Rings are stopped.
pub fn renew(session: &mut Session<'_>) -> Result<(), SessionError> {
    let wanted = session.driver_features().has(feature::ACCESS_PLATFORM);
    session.iotlb = match session.memory.guest().filter(|_| wanted) {
        None => None,
        Some(memory) => {
            let table = Iotlb::new(memory.clone()).map_err(|source| SessionError::Host {
                action: "make a table of translations",
                source,
            })?;
            Some(Arc::new(table))
        }
    };
    Ok(())
}

/// Memory as the driver's addresses have it; `None` while there is none to speak of.
pub fn memory(session: &Session<'_>) -> Option<GuestMemory> {
    if session.driver_features().has(feature::ACCESS_PLATFORM) {
        return session.iotlb.clone().map(GuestMemory::translated_by);
    }
    session.memory.guest().cloned()
}

/// True if ring `index` can be reached. What is missing is asked for.
pub fn reaches_ring(session: &Session<'_>, index: usize) -> bool {
    let Some(table) = &session.iotlb else {
        return true;
    };
    let areas = session.vrings.get(index).and_then(|vring| {
        let addr = vring.addr?;
        let size = u64::from(vring.size);
        // virtio 1.3 §2.7, §2.8
        let [descriptors, driver, device] = match session.layout() {
            Layout::Split => [16 * size, 6 + 2 * size, 6 + 8 * size],
            Layout::Packed => [16 * size, 4, 4],
        };
        Some([
            (addr.descriptor, descriptors),
            (addr.available, driver),
            (addr.used, device),
        ])
    });
    let reaches = |(start, len): (u64, u64)| match table.check(start, len, Access::BOTH) {
        Ok(()) => true,
        Err(miss) => {
            table.missed(miss);
            false
        }
    };
    // All of them are asked for at once.
    areas.is_some_and(|areas| areas.map(reaches) == [true; 3])
}

/// IOTLB_MSG from the front-end.
pub fn message(session: &mut Session<'_>, message: &Message) -> Result<Outcome, SessionError> {
    let payload: Payload = message.read_padded();
    let Some(table) = session.iotlb.clone() else {
        return Ok(Outcome::NotServed);
    };
    match Kind::try_from(payload.kind) {
        Ok(Kind::Update) => update(session, &table, &payload),
        Ok(Kind::Invalidate) => {
            if table.remove(payload.iova, payload.size) {
                // What is under way through the old translation ends before the answer.
                session.with_rings_stopped(|_| Ok(()))?;
            }
            Ok(Outcome::Done)
        }
        Ok(Kind::Miss | Kind::AccessFail) => Err(refused(message.row.name, "that is for us to say")),
        Err(reason) => Err(refused(message.row.name, reason)),
    }
}

fn update(session: &mut Session<'_>, table: &Iotlb, payload: &Payload) -> Result<Outcome, SessionError> {
    let Payload { iova, size, .. } = *payload;
    let access = Access {
        read: payload.permissions & MAY_READ != 0,
        write: payload.permissions & MAY_WRITE != 0,
    };
    let place = session.memory.guest_range(payload.user_address, size);
    let Some((addr, len)) = place.filter(|_| payload.permissions <= MAY_READ | MAY_WRITE) else {
        return Ok(Outcome::Rejected(format!("{payload:x?} is not in memory")));
    };
    if let Err(error) = table.insert(iova, addr, len, access) {
        return Ok(Outcome::Rejected(error.to_string()));
    }
    for index in 0..session.vrings.len() {
        session.start_if_ready(index)?;
    }
    // Whoever waits for this looks again.
    session.vrings.iter().for_each(|vring| vring.nudge());
    Ok(Outcome::Done)
}

/// Asks the front-end for what is missing.
pub fn ask(session: &Session<'_>) {
    let Some(table) = &session.iotlb else { return };
    for Miss { iova, access } in table.take_misses() {
        let request = Payload {
            iova,
            permissions: (u8::from(access.read) * MAY_READ) | (u8::from(access.write) * MAY_WRITE),
            kind: MISS,
            ..Payload::default()
        };
        session.events.send(backend::IOTLB_MSG, request.as_bytes());
    }
}
