//! Which frames the controller takes in. 8254x 4.0 §3.2.1, §13.5

use crate::mac::Registers;
use crate::registers::*;

/// Bytes of both addresses and the type.
pub(crate) const ETHERNET_BYTES: usize = 14;
/// Receive address registers.
const ADDRESSES: u32 = 16;

/// To whom a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cast {
    Unicast,
    Multicast,
    Broadcast,
}

pub(crate) fn cast_of(frame: &[u8]) -> Cast {
    match frame.first_chunk::<6>() {
        Some(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => Cast::Broadcast,
        Some([first, ..]) if first & 1 != 0 => Cast::Multicast,
        _ => Cast::Unicast,
    }
}

/// The tag control information, if the frame has a tag of type VET.
pub(crate) fn vlan_tag(registers: &Registers, frame: &[u8]) -> Option<u16> {
    let (kind, rest) = frame.get(12..)?.split_first_chunk::<2>()?;
    let tagged = u32::from(u16::from_be_bytes(*kind)) == registers.get(VET);
    rest.first_chunk()
        .filter(|_| tagged)
        .map(|tag| u16::from_be_bytes(*tag))
}

/// True if the frame passes the filters.
pub(crate) fn accepts(registers: &Registers, frame: &[u8]) -> bool {
    let Some(address) = frame.first_chunk::<6>() else {
        return false;
    };
    passes_vlan(registers, frame) && passes_address(registers, *address, cast_of(frame))
}

fn passes_vlan(registers: &Registers, frame: &[u8]) -> bool {
    if registers.get(RCTL) & rctl::VFE == 0 {
        return true;
    }
    let Some(tag) = vlan_tag(registers, frame) else {
        return true;
    };
    let id = u32::from(tag & 0xfff);
    registers.get(VFTA + (id >> 5) * 4) >> (id & 0x1f) & 1 != 0
}

fn passes_address(registers: &Registers, address: [u8; 6], cast: Cast) -> bool {
    let control = registers.get(RCTL);
    match cast {
        Cast::Unicast if control & rctl::UPE != 0 => return true,
        Cast::Multicast | Cast::Broadcast if control & rctl::MPE != 0 => return true,
        Cast::Broadcast if control & rctl::BAM != 0 => return true,
        _ => {}
    }
    let exact = (0..ADDRESSES).any(|index| receive_address(registers, index) == Some(address));
    exact || cast == Cast::Multicast && passes_hash(registers, address, control)
}

/// Twelve bits of the address select a bit of the table. 8254x 4.0 §13.5.1
fn passes_hash(registers: &Registers, address: [u8; 6], control: u32) -> bool {
    let [.., fifth, sixth] = address;
    let shift = match control >> rctl::MO_SHIFT & 3 {
        0 => 4,
        1 => 3,
        2 => 2,
        _ => 0,
    };
    let hash = u32::from(u16::from_le_bytes([fifth, sixth])) >> shift & 0xfff;
    registers.get(MTA + (hash >> 5) * 4) >> (hash & 0x1f) & 1 != 0
}

fn receive_address(registers: &Registers, index: u32) -> Option<[u8; 6]> {
    let (low, high) = (registers.get(RAL + index * 8), registers.get(RAL + 4 + index * 8));
    let ([a, b, c, d], [e, f, ..]) = (low.to_le_bytes(), high.to_le_bytes());
    (high & RAH_AV != 0).then_some([a, b, c, d, e, f])
}
