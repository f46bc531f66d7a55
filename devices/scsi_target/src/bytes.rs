//! Big-endian fields of commands and parameter lists. What is past the end reads as 0.

pub(crate) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from(u8_at(bytes, at)) << 8 | u16::from(u8_at(bytes, at + 1))
}

pub(crate) fn u24_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u8_at(bytes, at)) << 16 | u32::from(u16_at(bytes, at + 1))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) << 16 | u32::from(u16_at(bytes, at + 2))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

/// Overwrites bytes; what does not fit is left out.
pub(crate) fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    for (byte, new) in bytes.iter_mut().skip(at).zip(new) {
        *byte = *new;
    }
}

/// `text` in a field of `N` bytes, filled up with blanks. SPC-4 §4.3.1
pub(crate) fn ascii<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (byte, new) in field.iter_mut().zip(text.bytes()) {
        *byte = if (0x20..0x7f).contains(&new) { new } else { b'?' };
    }
    field
}
