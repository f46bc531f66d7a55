//! The statistics registers. 8254x 4.0 §13.7

use crate::filter::{Cast, cast_of};
use crate::mac::Registers;

const MPC: u32 = 0x4010;
const PRC64: u32 = 0x405c;
const GPRC: u32 = 0x4074;
const BPRC: u32 = 0x4078;
const MPRC: u32 = 0x407c;
const GPTC: u32 = 0x4080;
const GORCL: u32 = 0x4088;
const GOTCL: u32 = 0x4090;
const ROC: u32 = 0x40ac;
const TORL: u32 = 0x40c0;
const TOTL: u32 = 0x40c8;
const TPR: u32 = 0x40d0;
const TPT: u32 = 0x40d4;
const PTC64: u32 = 0x40d8;
const MPTC: u32 = 0x40f0;
const BPTC: u32 = 0x40f4;
const TSCTC: u32 = 0x40f8;

/// Bytes of the checksum on the wire, which the counters count.
const FCS_BYTES: u64 = 4;

/// The upper ends of the classes of length that are counted, but for the last class.
const CLASSES: [u64; 5] = [64, 127, 255, 511, 1023];

/// The registers of one direction.
struct Direction {
    good: u32,
    total: u32,
    /// The first class of length.
    classes: u32,
    good_bytes: u32,
    total_bytes: u32,
    broadcasts: u32,
    multicasts: u32,
}

const RECEIVED: Direction = Direction {
    good: GPRC,
    total: TPR,
    classes: PRC64,
    good_bytes: GORCL,
    total_bytes: TORL,
    broadcasts: BPRC,
    multicasts: MPRC,
};

const SENT: Direction = Direction {
    good: GPTC,
    total: TPT,
    classes: PTC64,
    good_bytes: GOTCL,
    total_bytes: TOTL,
    broadcasts: BPTC,
    multicasts: MPTC,
};

/// A frame was taken in.
pub(crate) fn received(registers: &mut Registers, frame: &[u8]) {
    moved(registers, &RECEIVED, frame);
}

/// A frame was sent.
pub(crate) fn sent(registers: &mut Registers, frame: &[u8]) {
    moved(registers, &SENT, frame);
}

fn moved(registers: &mut Registers, direction: &Direction, frame: &[u8]) {
    let bytes = frame.len() as u64 + FCS_BYTES;
    count(registers, direction.good, 1);
    count(registers, direction.total, 1);
    count(registers, class(direction.classes, bytes), 1);
    count_long(registers, direction.good_bytes, bytes);
    count_long(registers, direction.total_bytes, bytes);
    match cast_of(frame) {
        Cast::Broadcast => count(registers, direction.broadcasts, 1),
        Cast::Multicast => count(registers, direction.multicasts, 1),
        Cast::Unicast => {}
    }
}

/// A packet was sent in segments.
pub(crate) fn segmented(registers: &mut Registers) {
    count(registers, TSCTC, 1);
}

/// A frame was lost that had no room.
pub(crate) fn missed(registers: &mut Registers) {
    count(registers, MPC, 1);
}

/// A frame was longer than what is received.
pub(crate) fn oversized(registers: &mut Registers) {
    count(registers, ROC, 1);
}

fn class(first: u32, bytes: u64) -> u32 {
    let index = CLASSES.iter().take_while(|end| bytes > **end).count();
    first + index as u32 * 4
}

fn count(registers: &mut Registers, offset: u32, more: u32) {
    registers.set(offset, registers.get(offset).saturating_add(more));
}

/// In two registers; the high one follows the low one.
fn count_long(registers: &mut Registers, low: u32, more: u64) {
    let value = u64::from(registers.get(low + 4)) << 32 | u64::from(registers.get(low));
    let value = value.saturating_add(more);
    registers.set(low, value as u32);
    registers.set(low + 4, (value >> 32) as u32);
}
