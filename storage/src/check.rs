use crate::{Capabilities, Request, RequestKind, StorageError};

/// No image is longer, in bytes: what `off_t` can say, in whole blocks of any size.
pub(crate) const MAX_LEN: u64 = i64::MAX as u64 & !0xffff;

/// Refuses a request that does not fit an image: everything that comes after may rely on range and alignment.
#[inline]
pub fn check(request: &Request, image: &Capabilities) -> Result<(), StorageError> {
    let data_len = request.buffers.len() as u64;
    let (offset, len) = match request.kind {
        RequestKind::Flush => return Ok(()),
        RequestKind::Read { offset } | RequestKind::Write { offset, .. } => {
            if data_len > u64::from(image.max_transfer) {
                return Err(StorageError::Invalid(
                    "the transfer is longer than the image's limit",
                ));
            }
            (offset, data_len)
        }
        RequestKind::Discard { offset, len } | RequestKind::WriteZeroes { offset, len, .. } => (offset, len),
    };
    if image.read_only && !matches!(request.kind, RequestKind::Read { .. }) {
        return Err(StorageError::ReadOnly);
    }
    let block_size = u64::from(image.block_size);
    if (offset | len) & (block_size - 1) != 0 {
        return Err(StorageError::Invalid("the range is not made of whole blocks"));
    }
    match offset.checked_add(len) {
        Some(end) if end <= image.len || image.growable && end <= MAX_LEN => Ok(()),
        _ => Err(StorageError::Invalid("the range ends beyond the image")),
    }
}
