//! Reservations, old and persistent. SPC-4 §5.13, §6.15, §6.16

use crate::action::{Action, Answer};
use crate::bytes::{u8_at, u32_at, u64_at};
use crate::table::Access;
use crate::unit::{Unit, allocation, cut};
use crate::{Nexus, Sense};

/// Most keys that are kept.
const MAX_KEYS: usize = 64;
const PARAMETERS: usize = 24;

/// The kinds of persistent reservation. SPC-4 §6.15.3.4
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Type(u8);

impl Type {
    fn of(byte: u8) -> Option<Self> {
        [1, 3, 5, 6, 7, 8]
            .contains(&(byte & 0xf))
            .then_some(Self(byte & 0xf))
    }

    /// Everybody who has registered holds it.
    fn is_shared(self) -> bool {
        self.0 >= 7
    }

    fn registrants_may(self) -> bool {
        self.0 >= 5
    }

    /// Others may read.
    fn protects_writes_only(self) -> bool {
        [1, 5, 7].contains(&self.0)
    }
}

#[derive(Clone, Copy)]
struct Held {
    by: Nexus,
    kind: Type,
}

/// Who has registered, who holds what.
#[derive(Default)]
pub(crate) struct Reservations {
    /// By RESERVE.
    old: Option<Nexus>,
    keys: Vec<(Nexus, u64)>,
    held: Option<Held>,
    generation: u32,
}

impl Reservations {
    /// A reset ends RESERVE, and nothing else.
    pub(crate) fn release_old(&mut self) {
        self.old = None;
    }

    /// True if that initiator's command may go on. SPC-4 table 48
    pub(crate) fn allows(&self, nexus: Nexus, access: Access) -> bool {
        if access == Access::None {
            return true;
        }
        if self.old.is_some_and(|holder| holder != nexus) {
            return false;
        }
        let Some(held) = self.held else {
            return true;
        };
        let holds = self.holds(nexus, held);
        let registered = held.kind.registrants_may() && self.key_of(nexus).is_some();
        let reads = access == Access::Read && held.kind.protects_writes_only();
        holds || registered || reads
    }

    fn key_of(&self, nexus: Nexus) -> Option<u64> {
        let found = self.keys.iter().find(|(who, _)| *who == nexus);
        found.map(|(_, key)| *key)
    }

    fn holds(&self, nexus: Nexus, held: Held) -> bool {
        held.by == nexus || held.kind.is_shared() && self.key_of(nexus).is_some()
    }

    /// Takes a registration away; what it alone held ends with it.
    fn remove(&mut self, nexus: Nexus) {
        self.keys.retain(|(who, _)| *who != nexus);
        if let Some(held) = self.held
            && (held.by == nexus && !held.kind.is_shared() || self.keys.is_empty())
        {
            self.held = None;
        }
    }
}

pub(crate) fn reserve_old(unit: &mut Unit, nexus: Nexus, _: &[u8]) -> Action {
    let reservations = &mut unit.reservations;
    let others = reservations.old.is_some_and(|holder| holder != nexus);
    if others || !reservations.keys.is_empty() {
        return Answer::conflict().into();
    }
    reservations.old = Some(nexus);
    Answer::good().into()
}

pub(crate) fn release_old(unit: &mut Unit, nexus: Nexus, _: &[u8]) -> Action {
    if unit.reservations.old == Some(nexus) {
        unit.reservations.old = None;
    }
    Answer::good().into()
}

/// A registration as READ FULL STATUS tells it; the initiator by a parallel bus's address. SPC-4 §6.15.5, §7.6.4.3
fn status_of(who: Nexus, key: u64, holds: Option<Held>) -> Vec<u8> {
    const PARALLEL_BUS: u8 = 1;
    let mut descriptor = key.to_be_bytes().to_vec();
    let kind = holds.map_or(0, |held| held.kind.0);
    descriptor.extend([0, 0, 0, 0, u8::from(holds.is_some()), kind, 0, 0, 0, 0, 0, 1]);
    descriptor.extend(24u32.to_be_bytes());
    let [.., high, low] = who.to_be_bytes();
    descriptor.extend([PARALLEL_BUS, 0, high, low, 0, 0, 0, 1]);
    descriptor.extend([0; 16]);
    descriptor
}

/// SPC-4 §6.15
pub(crate) fn persistent_in(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let reservations = &unit.reservations;
    let mut body = Vec::new();
    match u8_at(cdb, 1) & 0x1f {
        0 => body.extend(reservations.keys.iter().flat_map(|(_, key)| key.to_be_bytes())),
        1 => {
            if let Some(held) = reservations.held {
                let key = match held.kind.is_shared() {
                    true => 0,
                    false => reservations.key_of(held.by).unwrap_or(0),
                };
                body.extend(key.to_be_bytes());
                body.extend([0, 0, 0, 0, 0, held.kind.0, 0, 0]);
            }
        }
        2 => {
            // Types are listed; nothing survives power loss.
            let answer = vec![0, 8, 0, 0x80, 0xea, 0x01, 0, 0];
            return cut(answer, allocation(cdb, 7));
        }
        3 => body.extend(reservations.keys.iter().flat_map(|(who, key)| {
            let holds = reservations.held.filter(|held| reservations.holds(*who, *held));
            status_of(*who, *key, holds)
        })),
        _ => return Sense::INVALID_FIELD.into(),
    }
    let mut answer = reservations.generation.to_be_bytes().to_vec();
    answer.extend((body.len() as u32).to_be_bytes());
    answer.extend(body);
    cut(answer, allocation(cdb, 7))
}

/// SPC-4 §6.16
pub(crate) fn persistent_out(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    if unit.reservations.old.is_some() {
        return Answer::conflict().into();
    }
    match u32_at(cdb, 5) as usize {
        PARAMETERS => Action::Parameters(PARAMETERS as u32),
        _ => Sense::PARAMETER_LENGTH.into(),
    }
}

pub(crate) fn persistent_change(unit: &mut Unit, nexus: Nexus, cdb: &[u8], data: &[u8]) -> Action {
    if data.len() < PARAMETERS {
        return Sense::PARAMETER_LENGTH.into();
    }
    // Registering others, or what is to survive power loss.
    if u8_at(data, 20) & 0b1001 != 0 {
        return Sense::INVALID_PARAMETER.into();
    }
    let (key, new) = (u64_at(data, 0), u64_at(data, 8));
    let kind = Type::of(u8_at(cdb, 2));
    let reservations = &mut unit.reservations;
    let mine = reservations.key_of(nexus);
    let service = u8_at(cdb, 1) & 0x1f;
    match (service, kind) {
        (0 | 6, _) => return register(reservations, nexus, service == 6, key, new),
        _ if mine != Some(key) => return Answer::conflict().into(),
        (1, Some(kind)) => return reserve(reservations, nexus, kind),
        (2, Some(kind)) => return release(reservations, nexus, kind),
        (3, _) => {
            reservations.keys.clear();
            reservations.held = None;
        }
        (4 | 5, _) => return preempt(reservations, nexus, kind, new),
        _ => return Sense::INVALID_FIELD.into(),
    }
    reservations.generation = reservations.generation.wrapping_add(1);
    Answer::good().into()
}

fn register(reservations: &mut Reservations, nexus: Nexus, ignore: bool, key: u64, new: u64) -> Action {
    let mine = reservations.key_of(nexus);
    if !ignore && mine.unwrap_or(0) != key {
        return Answer::conflict().into();
    }
    match (mine, new) {
        (_, 0) => reservations.remove(nexus),
        (Some(_), new) => {
            for (who, key) in &mut reservations.keys {
                if *who == nexus {
                    *key = new;
                }
            }
        }
        (None, new) => {
            if reservations.keys.len() == MAX_KEYS {
                return Sense::INVALID_FIELD.into();
            }
            reservations.keys.push((nexus, new));
        }
    }
    reservations.generation = reservations.generation.wrapping_add(1);
    Answer::good().into()
}

fn reserve(reservations: &mut Reservations, nexus: Nexus, kind: Type) -> Action {
    match reservations.held {
        Some(held) if !reservations.holds(nexus, held) || held.kind != kind => Answer::conflict().into(),
        Some(_) => Answer::good().into(),
        None => {
            reservations.held = Some(Held { by: nexus, kind });
            Answer::good().into()
        }
    }
}

fn release(reservations: &mut Reservations, nexus: Nexus, kind: Type) -> Action {
    match reservations.held {
        Some(held) if reservations.holds(nexus, held) && held.kind != kind => Sense::INVALID_FIELD.into(),
        Some(held) if reservations.holds(nexus, held) => {
            reservations.held = None;
            Answer::good().into()
        }
        _ => Answer::good().into(),
    }
}

/// Takes the registrations with `victim`'s key away, and with them what they held.
fn preempt(reservations: &mut Reservations, nexus: Nexus, kind: Option<Type>, victim: u64) -> Action {
    let victims: Vec<Nexus> = reservations
        .keys
        .iter()
        .filter(|(who, key)| *who != nexus && *key == victim)
        .map(|(who, _)| *who)
        .collect();
    let holds = |held: Held| held.kind.is_shared() && victim == 0 || victims.contains(&held.by);
    let takes_over = reservations.held.is_some_and(holds);
    if victims.is_empty() && !takes_over {
        return Answer::conflict().into();
    }
    if takes_over && kind.is_none() {
        return Sense::INVALID_FIELD.into();
    }
    for victim in victims {
        reservations.remove(victim);
    }
    if let Some(kind) = kind.filter(|_| takes_over) {
        reservations.held = Some(Held { by: nexus, kind });
    }
    reservations.generation = reservations.generation.wrapping_add(1);
    Answer::good().into()
}
