//! Shared folders. virtio 1.3 §5.11

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The queue for requests that must not wait. virtio 1.3 §5.11.2
pub const HIGH_PRIORITY_QUEUE: u16 = 0;
/// The first queue for ordinary requests, where there is no notification queue. virtio 1.3 §5.11.2
pub const FIRST_REQUEST_QUEUE: u16 = 1;
/// Bytes of a tag.
pub const TAG_SIZE: usize = 36;

/// Device configuration without the notification buffer's size. virtio 1.3 §5.11.4
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Config {
    /// Name of the folder in UTF-8; what is left is NUL.
    pub tag: [u8; TAG_SIZE],
    /// Request queues.
    pub num_request_queues: U32,
}
