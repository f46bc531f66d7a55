//! The Internet checksum (RFC 1071).

/// The ones' complement sum of `bytes`, folded to 16 bits.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut total: u64 = pairs
        .iter()
        .map(|pair| u64::from(u16::from_be_bytes(*pair)))
        .sum();
    if let [last] = rest {
        total += u64::from(u16::from_be_bytes([*last, 0]));
    }
    fold(total)
}

/// Adds two such sums.
pub(crate) fn add(one: u16, other: u16) -> u16 {
    fold(u64::from(one) + u64::from(other))
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    total as u16
}

/// Puts the checksum of `[start, end)` (to the frame's end if `end` is before `start`) at `at`. What is there already is
/// part of the sum, as a pseudo header's is. Does nothing where the frame is too short for it.
pub(crate) fn put(frame: &mut [u8], at: usize, start: usize, end: usize) {
    let end = if end <= start {
        frame.len()
    } else {
        end.min(frame.len())
    };
    let Some(value) = frame.get(start..end).map(|bytes| !sum(bytes)) else {
        return;
    };
    if let Some(place) = frame.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        *place = value.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&bytes), 0xddf2);
        assert_eq!(sum(&[1]), 0x0100);
        assert_eq!(add(0xffff, 2), 2);
    }

    #[test]
    fn nothing_is_put_past_the_end() {
        let mut frame = [1u8; 10];
        put(&mut frame, 9, 0, 0);
        put(&mut frame, 0, 11, 0);
        put(&mut frame, usize::MAX, 0, 0);
        assert_eq!(frame, [1; 10]);
        frame[8..].fill(0);
        put(&mut frame, 8, 0, 0);
        assert_eq!(sum(&frame), !0, "a frame with its checksum sums up to nothing");
    }
}
