use treaty_storage::Capabilities;
use treaty_virtio_spec::blk::{self, Geometry, ID_SIZE};

/// How a disk is made, beyond its image.
#[derive(Clone, Debug)]
pub struct BlkConfig {
    /// Request queues, at least 1.
    pub queues: u16,
    /// Largest queue size on offer.
    pub queue_size: u16,
    /// What GET_ID answers.
    pub serial: Serial,
    /// Block size that the driver sees, 512 or 4096; the image's if absent. Not below the image's.
    pub block_size: Option<u32>,
    /// Refuse writes even if the image would take them.
    pub read_only: bool,
    /// The cache mode after a reset: writeback, or (false) writethrough.
    pub writeback: bool,
    /// Geometry to show to old guests.
    pub geometry: Option<Geometry>,
    /// The most bytes of data in flight on one queue. A single longer request still runs, alone.
    pub max_bytes_in_flight: u64,
    /// The most storage operations in flight on one queue: one for a request, but one for each range of a discard or
    /// write zeroes. A single such request still runs whole.
    pub max_operations_in_flight: u16,
}

impl Default for BlkConfig {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 256,
            serial: Serial::default(),
            block_size: None,
            read_only: false,
            writeback: true,
            geometry: None,
            max_bytes_in_flight: 64 << 20,
            max_operations_in_flight: 256,
        }
    }
}

/// A device ID string: up to 20 bytes of printable ASCII. virtio 1.3 §5.2.6
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Serial([u8; ID_SIZE]);

impl Serial {
    /// Checks and pads `text`.
    pub fn new(text: &str) -> Result<Self, BlkError> {
        let printable = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        let mut padded = [0; ID_SIZE];
        match padded.get_mut(..text.len()) {
            Some(front) if printable => front.copy_from_slice(text.as_bytes()),
            _ => return Err(BlkError::Serial(text.to_owned())),
        }
        Ok(Self(padded))
    }

    /// The string, padded with NUL.
    pub fn bytes(&self) -> &[u8; ID_SIZE] {
        &self.0
    }
}

/// Why a disk cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The serial number is too long or not printable.
    #[error("serial {0:?}: at most {ID_SIZE} characters of printable ASCII are allowed")]
    Serial(String),
    /// No queue, or more than can be numbered.
    #[error("{0} queues: 1 to 1024 are allowed")]
    Queues(u16),
    /// No queue size that a driver could use.
    #[error("queue size {0}: a power of two from 4 to 32768 is allowed")]
    QueueSize(u16),
    /// No worker to run the queues.
    #[error("a disk needs at least one worker")]
    NoWorker,
    /// The block size is neither 512 nor 4096, or below the image's.
    #[error("block size {asked}: 512 and 4096 are allowed, and not less than the image's {image}")]
    BlockSize {
        /// Configured.
        asked: u32,
        /// Of the image.
        image: u32,
    },
    /// The image ends inside a block.
    #[error("the image is {len} bytes long, which is not a multiple of the block size {block_size}")]
    Length {
        /// Of the image.
        len: u64,
        /// That the driver sees.
        block_size: u32,
    },
}

const MAX_QUEUES: u16 = 1024;
const MIN_QUEUE_SIZE: u16 = 4;

pub(crate) fn check(config: &BlkConfig, image: &Capabilities) -> Result<(), BlkError> {
    if !(1..=MAX_QUEUES).contains(&config.queues) {
        return Err(BlkError::Queues(config.queues));
    }
    if !config.queue_size.is_power_of_two() || config.queue_size < MIN_QUEUE_SIZE {
        return Err(BlkError::QueueSize(config.queue_size));
    }
    let (asked, image_block) = (block_size(config, image), image.block_size);
    if !matches!(asked, 512 | 4096) || asked < image_block {
        return Err(BlkError::BlockSize {
            asked,
            image: image_block,
        });
    }
    check_len(image.len, asked)
}

/// The block size that the driver sees.
pub(crate) fn block_size(config: &BlkConfig, image: &Capabilities) -> u32 {
    config.block_size.unwrap_or(image.block_size)
}

pub(crate) fn check_len(len: u64, block_size: u32) -> Result<(), BlkError> {
    if len.is_multiple_of(u64::from(block_size)) {
        Ok(())
    } else {
        Err(BlkError::Length { len, block_size })
    }
}

/// A length in bytes as a capacity in sectors.
pub(crate) const fn sectors(len: u64) -> u64 {
    len >> blk::SECTOR_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_are_printable_and_fit() {
        assert_eq!(
            Serial::new("disk-1").unwrap().bytes(),
            b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
        );
        assert_eq!(
            Serial::new("12345678901234567890").unwrap().bytes(),
            b"12345678901234567890"
        );
        assert!(Serial::new("123456789012345678901").is_err());
        assert!(Serial::new("a\nb").is_err());
    }
}
