//! Which received frames the driver wants. virtio 1.3 §5.1.6.5.1 to §5.1.6.5.3

use treaty_virtio_spec::Features;
use treaty_virtio_spec::net::{ctrl, feature as bit};

/// Addresses each of the two tables holds. A driver that sets more gets all packets of that kind.
pub(crate) const TABLE_LIMIT: usize = 64;
/// VLAN IDs there are.
const VLANS: usize = 4096;
/// EtherType of an 802.1Q tag.
const VLAN_TAG: [u8; 2] = [0x81, 0x00];
const BROADCAST: [u8; 6] = [0xff; 6];

/// The receive filter. It starts open.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    pub(crate) mac: [u8; 6],
    modes: Modes,
    unicast: Table,
    multicast: Table,
    /// One bit for each VLAN ID that passes; `None` lets all pass.
    vlans: Option<Vec<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Modes {
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
}

/// A table of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    addresses: Vec<[u8; 6]>,
    /// There were too many: all pass.
    overflow: bool,
}

impl Table {
    /// Adds an address, or remembers that there was no room.
    pub(crate) fn add(&mut self, address: [u8; 6]) {
        if self.addresses.len() < TABLE_LIMIT {
            self.addresses.push(address);
        } else {
            self.overflow = true;
        }
    }

    fn has(&self, address: [u8; 6]) -> bool {
        self.overflow || self.addresses.contains(&address)
    }
}

impl Filter {
    /// Open, as after a reset: a driver that sets no modes gets everything. With CTRL_VLAN tagged frames pass only once their
    /// VLAN was added.
    pub(crate) fn new(mac: [u8; 6], accepted: Features) -> Self {
        Self {
            mac,
            modes: Modes {
                promiscuous: true,
                all_multicast: false,
                all_unicast: false,
                no_multicast: false,
                no_unicast: false,
                no_broadcast: false,
            },
            unicast: Table::default(),
            multicast: Table::default(),
            vlans: accepted.has(bit::CTRL_VLAN).then(|| vec![0; VLANS / 64]),
        }
    }

    /// Sets the mode of a command of class RX; false if there is no such mode.
    pub(crate) fn set_mode(&mut self, command: u8, on: bool) -> bool {
        let mode = match command {
            ctrl::RX_PROMISC => &mut self.modes.promiscuous,
            ctrl::RX_ALLMULTI => &mut self.modes.all_multicast,
            ctrl::RX_ALLUNI => &mut self.modes.all_unicast,
            ctrl::RX_NOMULTI => &mut self.modes.no_multicast,
            ctrl::RX_NOUNI => &mut self.modes.no_unicast,
            ctrl::RX_NOBCAST => &mut self.modes.no_broadcast,
            _ => return false,
        };
        *mode = on;
        true
    }

    pub(crate) fn set_tables(&mut self, unicast: Table, multicast: Table) {
        self.unicast = unicast;
        self.multicast = multicast;
    }

    /// Lets a VLAN pass or not; false if there is no such VLAN or no VLAN filter.
    pub(crate) fn set_vlan(&mut self, id: u16, pass: bool) -> bool {
        let word = self
            .vlans
            .as_mut()
            .and_then(|words| words.get_mut(usize::from(id / 64)));
        let Some(word) = word else {
            return false;
        };
        let mask = 1 << (id % 64);
        *word = if pass { *word | mask } else { *word & !mask };
        true
    }

    /// True if the driver wants the frame. Frames without a whole Ethernet header pass nothing.
    pub(crate) fn accepts(&self, frame: &[u8]) -> bool {
        let Some((destination, rest)) = frame.split_first_chunk::<6>() else {
            return false;
        };
        self.vlan_passes(rest) && self.address_passes(*destination)
    }

    fn vlan_passes(&self, after_destination: &[u8]) -> bool {
        let (Some(words), Some(kind)) = (&self.vlans, after_destination.get(6..8)) else {
            return true;
        };
        if kind != VLAN_TAG {
            return true;
        }
        let id = match after_destination.get(8..10) {
            Some([high, low]) => usize::from(u16::from_be_bytes([*high, *low])) % VLANS,
            _ => return false,
        };
        words
            .get(id / 64)
            .is_some_and(|word| word & (1 << (id % 64)) != 0)
    }

    fn address_passes(&self, destination: [u8; 6]) -> bool {
        let modes = &self.modes;
        if modes.promiscuous {
            return true;
        }
        let [first, ..] = destination;
        if destination == BROADCAST {
            !modes.no_broadcast
        } else if first & 1 == 1 {
            !modes.no_multicast && (modes.all_multicast || self.multicast.has(destination))
        } else {
            !modes.no_unicast
                && (modes.all_unicast || destination == self.mac || self.unicast.has(destination))
        }
    }

    /// True if it filters what these features let the driver filter.
    pub(crate) fn fits(&self, accepted: Features) -> bool {
        self.vlans.is_some() == accepted.has(bit::CTRL_VLAN)
    }

    /// True if it could have come about here; a saved one may not.
    pub(crate) fn is_valid(&self) -> bool {
        let within = |table: &Table| table.addresses.len() <= TABLE_LIMIT;
        let vlans = self.vlans.as_ref().is_none_or(|words| words.len() == VLANS / 64);
        within(&self.unicast) && within(&self.multicast) && vlans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
    const GROUP: [u8; 6] = [0x01, 0, 0x5e, 0, 0, 1];

    fn frame(destination: [u8; 6], vlan: Option<u16>) -> Vec<u8> {
        let mut bytes = destination.to_vec();
        bytes.extend_from_slice(&OTHER);
        if let Some(id) = vlan {
            bytes.extend_from_slice(&VLAN_TAG);
            bytes.extend_from_slice(&(id | 0x6000).to_be_bytes());
        }
        bytes.extend_from_slice(&[0x88, 0xb5, 0, 0]);
        bytes
    }

    fn passing(filter: &Filter) -> [bool; 4] {
        [OWN, OTHER, GROUP, BROADCAST].map(|to| filter.accepts(&frame(to, None)))
    }

    #[test]
    fn modes_combine_as_specified() {
        let mut filter = Filter::new(OWN, Features::NONE);
        assert_eq!(passing(&filter), [true; 4], "open at first");
        assert!(filter.set_mode(ctrl::RX_PROMISC, false));
        assert_eq!(passing(&filter), [true, false, false, true]);
        filter.set_mode(ctrl::RX_ALLMULTI, true);
        assert_eq!(passing(&filter), [true, false, true, true]);
        filter.set_mode(ctrl::RX_ALLUNI, true);
        assert_eq!(passing(&filter), [true; 4]);
        filter.set_mode(ctrl::RX_NOMULTI, true);
        filter.set_mode(ctrl::RX_NOUNI, true);
        filter.set_mode(ctrl::RX_NOBCAST, true);
        assert_eq!(passing(&filter), [false; 4], "NO modes win");
        assert!(!filter.set_mode(6, true));
    }

    /// Hardening row 20: tables do not grow with what the guest sends.
    #[test]
    fn hardening_20_address_tables_are_bounded() {
        let mut filter = Filter::new(OWN, Features::NONE);
        filter.set_mode(ctrl::RX_PROMISC, false);
        let (mut unicast, mut multicast) = (Table::default(), Table::default());
        unicast.add(OTHER);
        multicast.add(GROUP);
        filter.set_tables(unicast.clone(), multicast);
        assert_eq!(passing(&filter), [true; 4]);
        for _ in 0..1000 {
            unicast.add(OTHER);
        }
        assert_eq!(unicast.addresses.len(), TABLE_LIMIT);
        filter.set_tables(unicast, Table::default());
        assert!(
            filter.accepts(&frame([2; 6], None)),
            "overflow lets all of the kind pass"
        );
        assert!(!filter.accepts(&frame(GROUP, None)));
    }

    #[test]
    fn vlans_pass_once_added() {
        let mut open = Filter::new(OWN, Features::NONE);
        assert!(open.accepts(&frame(OWN, Some(5))));
        assert!(!open.set_vlan(5, true), "not negotiated");
        let mut filter = Filter::new(OWN, bit::CTRL_VLAN);
        assert!(filter.accepts(&frame(OWN, None)) && !filter.accepts(&frame(OWN, Some(5))));
        assert!(filter.set_vlan(5, true) && filter.set_vlan(4095, true) && !filter.set_vlan(4096, true));
        assert!(filter.accepts(&frame(OWN, Some(5))) && !filter.accepts(&frame(OWN, Some(6))));
        assert!(filter.set_vlan(5, false) && !filter.accepts(&frame(OWN, Some(5))));
    }

    #[test]
    fn short_frames_do_not_pass_or_panic() {
        let filter = Filter::new(OWN, bit::CTRL_VLAN);
        let whole = frame(OWN, Some(1));
        for len in 0..whole.len() {
            let _ = filter.accepts(&whole[..len]);
        }
        assert!(!filter.accepts(&whole[..5]));
    }
}
