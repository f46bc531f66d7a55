//! What a target answers for logical units that it does not have. SPC-4 §5.10

use crate::action::Answer;
use crate::bytes::{put, u8_at, u16_at, u32_at};
use crate::inquiry;
use crate::{Sense, bytes::ascii};

/// The answer to a command for a logical unit other than number 0.
pub fn missing_unit(cdb: &[u8]) -> Answer {
    /// No device can be there.
    const NOT_CAPABLE: u8 = 0x7f;
    let mut answer = match u8_at(cdb, 0) {
        0x03 => Answer::data(Sense::NO_UNIT.fixed().to_vec()),
        0x12 if u8_at(cdb, 1) & 1 == 0 => {
            let mut data = vec![0; 36];
            put(&mut data, 0, &[NOT_CAPABLE, 0, 5, 2, 31]);
            put(&mut data, 8, &ascii::<28>(""));
            Answer::data(data)
        }
        0xa0 => Answer::data(inquiry::luns()),
        _ => return Answer::check(Sense::NO_UNIT),
    };
    let allowed = match u8_at(cdb, 0) {
        0x03 => u32::from(u8_at(cdb, 4)),
        0x12 => u32::from(u16_at(cdb, 3)),
        _ => u32_at(cdb, 6),
    };
    answer.data.truncate(allowed as usize);
    answer
}
