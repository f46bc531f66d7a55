//! The receive ring: from frames to descriptors. 8254x 4.0 §3.2

use treaty_virtio_spec::net::{HDR_F_DATA_VALID, Header};

use crate::checksum;
use crate::filter::{self, ETHERNET_BYTES};
use crate::mac::{Mac, Registers};
use crate::registers::*;
use crate::ring::Ring;
use crate::statistics;

/// Bytes of the checksum on the wire.
const FCS_BYTES: usize = 4;
/// Longest frames with a VLAN tag, without and with RCTL.LPE. 8254x 4.0 §13.4.22
const LONGEST: usize = 1518;
const LONGEST_JUMBO: usize = 16384 - FCS_BYTES;
/// Frames are at least that long on the wire.
const SHORTEST: usize = 60;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// It is in the guest's buffers, or nobody wants it.
    Done,
    /// Too few buffers: offer it again when there are more.
    NoRoom,
}

/// True if there may be room for a frame.
pub(crate) fn ready(mac: &Mac) -> bool {
    let control = mac.registers.get(RCTL);
    let enabled = control & rctl::EN != 0 && mac.bus_master && mac.link_is_up();
    enabled && Ring::of(&mac.registers, RDBAL).is_some_and(|ring| ring.available() > 0)
}

/// Gives a frame, without its checksum of the wire, to the guest. `valid` if the host vouches for its checksums.
pub(crate) fn deliver(mac: &mut Mac, frame: &mut Vec<u8>, header: &Header) -> Delivery {
    if mac.registers.get(RCTL) & rctl::EN == 0 || !mac.bus_master || !mac.link_is_up() {
        statistics::missed(&mut mac.registers);
        return Delivery::Done;
    }
    if !filter::accepts(&mac.registers, frame) {
        return Delivery::Done;
    }
    let long = mac.registers.get(RCTL) & rctl::LPE != 0;
    if frame.len() > if long { LONGEST_JUMBO } else { LONGEST } {
        statistics::oversized(&mut mac.registers);
        return Delivery::Done;
    }
    let Some(ring) = Ring::of(&mac.registers, RDBAL) else {
        return Delivery::NoRoom;
    };
    let (wire, tag) = on_the_wire(&mac.registers, frame);
    let size = buffer_size(&mac.registers);
    let needed = wire.len().div_ceil(size) as u32;
    // One descriptor stays free, or head and tail would say that all are.
    if needed > ring.available() {
        if needed >= ring.len() {
            statistics::missed(&mut mac.registers);
            return Delivery::Done;
        }
        mac.interrupt(cause::RXO);
        return Delivery::NoRoom;
    }
    let valid = header.flags & HDR_F_DATA_VALID != 0;
    let checked = check(&mac.registers, frame, valid);
    if write(mac, ring, &wire, size, tag, checked) {
        statistics::received(&mut mac.registers, frame);
    }
    tell(mac);
    Delivery::Done
}

/// The frame as the guest gets it, and the tag taken out of it. 8254x 4.0 §9.3
fn on_the_wire(registers: &Registers, frame: &mut Vec<u8>) -> (Vec<u8>, Option<u16>) {
    if frame.len() < SHORTEST {
        frame.resize(SHORTEST, 0);
    }
    let strips = registers.get(CTRL) & ctrl::VME != 0;
    let tag = filter::vlan_tag(registers, frame).filter(|_| strips);
    let mut wire = Vec::with_capacity(frame.len() + FCS_BYTES);
    match (tag, frame.split_at_checked(12)) {
        (Some(_), Some((addresses, rest))) => {
            wire.extend_from_slice(addresses);
            wire.extend_from_slice(rest.get(4..).unwrap_or_default());
        }
        _ => wire.extend_from_slice(frame),
    }
    if registers.get(RCTL) & rctl::SECRC == 0 {
        wire.extend_from_slice(&crc32fast::hash(frame).to_le_bytes());
    }
    (wire, tag)
}

/// Status and errors that say what was checked. 8254x 4.0 §3.2.3, §3.2.9
fn check(registers: &Registers, frame: &[u8], valid: bool) -> (u8, u8) {
    let control = registers.get(RXCSUM);
    let Some(packet) = frame
        .get(ETHERNET_BYTES..)
        .filter(|_| frame.get(12..14) == Some(&[8, 0]))
    else {
        return (received::IXSM, 0);
    };
    let header = usize::from(packet.first().copied().unwrap_or(0) & 0xf) * 4;
    let is_ipv4 = packet.first().is_some_and(|byte| byte >> 4 == 4) && header >= 20;
    let total = packet.get(2..4).map_or(0, |bytes| match bytes {
        [high, low] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    });
    let (Some(head), Some(body)) = (packet.get(..header), packet.get(header..total)) else {
        return (received::IXSM, 0);
    };
    if !is_ipv4 || control & (rxcsum::IPOFL | rxcsum::TUOFL) == 0 {
        return (received::IXSM, 0);
    }
    let (mut status, mut errors) = (0, 0);
    if control & rxcsum::IPOFL != 0 {
        status |= received::IPCS;
        if checksum::sum(head) != !0 {
            errors |= received::ERROR_IPE;
        }
    }
    if control & rxcsum::TUOFL != 0
        && let Some(good) = payload_checksum(head, body)
    {
        status |= received::TCPCS;
        if !good && !valid {
            errors |= received::ERROR_TCPE;
        }
    }
    (status, errors)
}

/// Whether TCP's or UDP's checksum is right; `None` if there is none.
fn payload_checksum(head: &[u8], body: &[u8]) -> Option<bool> {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let protocol = *head.get(9)?;
    let (more_fragments, low) = (*head.get(6)?, *head.get(7)?);
    let fragment = more_fragments & 0x3f != 0 || low != 0;
    let unchecked = protocol == UDP && body.get(6..8)? == [0, 0];
    if fragment || unchecked || ![TCP, UDP].contains(&protocol) {
        return None;
    }
    let pseudo = checksum::add(checksum::sum(head.get(12..20)?), u16::from(protocol));
    let pseudo = checksum::add(pseudo, body.len() as u16);
    Some(checksum::add(pseudo, checksum::sum(body)) == !0)
}

/// Writes the frame and its descriptors; false if the guest's memory is not there.
fn write(
    mac: &mut Mac,
    mut ring: Ring,
    wire: &[u8],
    size: usize,
    tag: Option<u16>,
    checked: (u8, u8),
) -> bool {
    let count = wire.len().div_ceil(size);
    let mut good = true;
    for (index, piece) in wire.chunks(size).enumerate() {
        let address = ring.address(0);
        let mut buffer = [0; 8];
        good &= mac.memory.read(address, &mut buffer).is_ok();
        good &= mac.memory.write(u64::from_le_bytes(buffer), piece).is_ok();
        let last = index + 1 == count;
        let (end_status, errors) = if last { checked } else { (0, 0) };
        let mut status = received::DD | end_status;
        if last {
            status |= received::EOP;
        }
        if tag.is_some() {
            status |= received::VP;
        }
        let [l0, l1] = (piece.len() as u16).to_le_bytes();
        let [t0, t1] = tag.unwrap_or(0).to_le_bytes();
        // The status goes last: the driver may be looking.
        good &= mac.memory.write(address.wrapping_add(8), &[l0, l1, 0, 0]).is_ok();
        good &= mac
            .memory
            .write(address.wrapping_add(13), &[errors, t0, t1])
            .is_ok();
        good &= mac.memory.write(address.wrapping_add(12), &[status]).is_ok();
        ring.advance(1);
    }
    mac.registers.set(RDH, ring.head);
    good
}

fn tell(mac: &mut Mac) {
    let (packet, absolute) = (mac.registers.get(RDTR), mac.registers.get(RADV));
    let now = mac.now();
    mac.interrupts.received(now, packet, absolute);
    let threshold = mac.registers.get(RCTL) >> rctl::RDMTS_SHIFT & 3;
    if let Some(ring) = Ring::of(&mac.registers, RDBAL)
        && ring.available() <= ring.len() >> (threshold + 1)
    {
        mac.interrupts.add(cause::RXDMT0);
    }
    mac.update_interrupt();
}

/// Bytes of each buffer. 8254x 4.0 §13.4.22
fn buffer_size(registers: &Registers) -> usize {
    let control = registers.get(RCTL);
    let shift = control >> rctl::BSIZE_SHIFT & 3;
    match (control & rctl::BSEX != 0, shift) {
        (true, 1..) => 32768 >> shift,
        (_, shift) => 2048 >> shift,
    }
}
