use treaty_storage::Capabilities;
use treaty_virtio_device::Features;
use treaty_virtio_spec::blk::{Config, SECTOR_SHIFT, Topology, feature};

use crate::BlkConfig;
use crate::config::block_size;

/// Descriptors of a chain that are not data: header and status.
const OVERHEAD_SEGMENTS: u16 = 2;
/// The most data segments of a request.
const MAX_SEGMENTS: u16 = 254;
/// The longest segment; together with [`MAX_SEGMENTS`] the longest request.
const MAX_SEGMENT_BYTES: u32 = 1 << 20;
/// A page, below which a segment limit is of no use to a driver.
const MIN_SEGMENT_BYTES: u32 = 4096;
/// Ranges of a discard or write zeroes request.
pub(crate) const MAX_RANGES: u32 = 32;
/// The longest range of a discard, in sectors: 2 GiB.
const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// The longest range of a write zeroes, in sectors: 128 MiB, because a host may have to write them.
const MAX_ZEROES_SECTORS: u32 = 1 << 18;
/// A physical block is taken to be no longer than this.
const MAX_PHYSICAL_BLOCK: u32 = 64 * 1024;

/// What the device offers and holds every request to: the same numbers for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes; requests are multiples of it.
    pub block_size: u32,
    /// Bytes of a whole request.
    pub max_request: u32,
    /// Bytes of one segment, as told to the driver.
    pub size_max: u32,
    /// Segments of a request, as told to the driver.
    pub seg_max: u32,
    /// Sectors of one discard range.
    pub max_discard_sectors: u32,
    /// Sectors of one write zeroes range.
    pub max_zeroes_sectors: u32,
    /// Ranges of one request.
    pub max_ranges: u32,
    /// Bytes that discards are best aligned to.
    pub optimal_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Write zeroes may free space.
    pub may_unmap: bool,
}

impl Limits {
    pub(crate) fn new(config: &BlkConfig, image: &Capabilities) -> Self {
        let fitting = u16::try_from(image.max_transfer / MIN_SEGMENT_BYTES).unwrap_or(MAX_SEGMENTS);
        let seg_max = config
            .queue_size
            .saturating_sub(OVERHEAD_SEGMENTS)
            .min(MAX_SEGMENTS)
            .min(fitting)
            .max(1);
        let per_segment = image.max_transfer / u32::from(seg_max);
        let size_max =
            (per_segment - per_segment % MIN_SEGMENT_BYTES).clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES);
        let block_size = block_size(config, image);
        Self {
            block_size,
            max_request: image.max_transfer.min(u32::from(seg_max) * MAX_SEGMENT_BYTES),
            size_max,
            seg_max: u32::from(seg_max),
            max_discard_sectors: MAX_DISCARD_SECTORS,
            max_zeroes_sectors: MAX_ZEROES_SECTORS,
            max_ranges: MAX_RANGES,
            optimal_size: image.optimal_size.max(block_size),
            read_only: image.read_only || config.read_only,
            may_unmap: image.discard,
        }
    }

    /// Descriptors of the longest chain.
    pub(crate) fn max_chain(&self) -> u16 {
        u16::try_from(self.seg_max)
            .unwrap_or(MAX_SEGMENTS)
            .saturating_add(OVERHEAD_SEGMENTS)
    }
}

/// The feature bits of a disk. virtio 1.3 §5.2.3
pub(crate) fn offer(config: &BlkConfig, image: &Capabilities, limits: &Limits) -> Features {
    let writable = !limits.read_only;
    feature::SIZE_MAX
        | feature::SEG_MAX
        | feature::BLK_SIZE
        | feature::TOPOLOGY
        | feature::FLUSH
        | feature::CONFIG_WCE
        | Features::when(config.geometry.is_some(), feature::GEOMETRY)
        | Features::when(limits.read_only, feature::RO)
        | Features::when(config.queues > 1, feature::MQ)
        | Features::when(writable && image.discard, feature::DISCARD)
        | Features::when(writable && image.write_zeroes, feature::WRITE_ZEROES)
}

/// The configuration but for capacity and writeback, which change. virtio 1.3 §5.2.4
pub(crate) fn config_space(config: &BlkConfig, features: Features, limits: &Limits) -> Config {
    let mut space = Config {
        size_max: limits.size_max.into(),
        seg_max: limits.seg_max.into(),
        geometry: config.geometry.unwrap_or_default(),
        blk_size: limits.block_size.into(),
        topology: topology(limits),
        ..Config::default()
    };
    if features.has(feature::MQ) {
        space.num_queues = config.queues.into();
    }
    if features.has(feature::DISCARD) {
        space.max_discard_sectors = limits.max_discard_sectors.into();
        space.max_discard_seg = limits.max_ranges.into();
        space.discard_sector_alignment = (limits.optimal_size >> SECTOR_SHIFT).into();
    }
    if features.has(feature::WRITE_ZEROES) {
        space.max_write_zeroes_sectors = limits.max_zeroes_sectors.into();
        space.max_write_zeroes_seg = limits.max_ranges.into();
        space.write_zeroes_may_unmap = u8::from(limits.may_unmap);
    }
    space
}

fn topology(limits: &Limits) -> Topology {
    let blocks = limits.optimal_size / limits.block_size;
    let physical = limits.optimal_size.is_power_of_two() && limits.optimal_size <= MAX_PHYSICAL_BLOCK;
    Topology {
        physical_block_exp: if physical { blocks.ilog2() as u8 } else { 0 },
        alignment_offset: 0,
        min_io_size: u16::try_from(blocks).unwrap_or(1).into(),
        opt_io_size: 0.into(),
    }
}

/// What the driver accepted, as far as requests depend on it. virtio 1.3 §5.2.6.2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub flush: bool,
    pub discard: bool,
    pub write_zeroes: bool,
    pub cache: CacheMode,
}

/// Who decides whether a write is durable when it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheMode {
    /// FLUSH alone: never.
    Writeback,
    /// Neither FLUSH nor CONFIG_WCE: always.
    Writethrough,
    /// CONFIG_WCE: the `writeback` byte, when the write is submitted.
    Config,
}

impl Accepted {
    pub(crate) fn new(features: Features) -> Self {
        let flush = features.has(feature::FLUSH);
        Self {
            flush,
            discard: features.has(feature::DISCARD),
            write_zeroes: features.has(feature::WRITE_ZEROES),
            cache: if features.has(feature::CONFIG_WCE) {
                CacheMode::Config
            } else if flush {
                CacheMode::Writeback
            } else {
                CacheMode::Writethrough
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Capabilities {
        Capabilities {
            len: 1 << 30,
            block_size: 512,
            optimal_size: 4096,
            read_only: false,
            discard: true,
            write_zeroes: true,
            max_transfer: 0x7fff_f000,
            growable: false,
        }
    }

    #[test]
    fn whatever_is_offered_is_accepted_too() {
        for max_transfer in [4096, 1 << 20, 1 << 24, 0x7fff_f000, u32::MAX] {
            for queue_size in [4, 64, 256, 32768] {
                let config = BlkConfig {
                    queue_size,
                    ..BlkConfig::default()
                };
                let limits = Limits::new(
                    &config,
                    &Capabilities {
                        max_transfer,
                        growable: false,
                        ..image()
                    },
                );
                let most = u64::from(limits.seg_max) * u64::from(limits.size_max);
                assert!(most <= u64::from(limits.max_request) && most > 0);
                assert!(limits.max_chain() <= 256.min(queue_size));
            }
        }
    }

    #[test]
    fn read_only_offers_no_way_to_write() {
        let config = BlkConfig::default();
        let image = Capabilities {
            read_only: true,
            ..image()
        };
        let limits = Limits::new(&config, &image);
        let features = offer(&config, &image, &limits);
        assert!(features.has(feature::RO));
        assert_eq!(
            features & (feature::DISCARD | feature::WRITE_ZEROES),
            Features::NONE
        );
        let space = config_space(&config, features, &limits);
        assert_eq!(
            (space.max_discard_seg.get(), space.max_write_zeroes_seg.get()),
            (0, 0)
        );
    }

    #[test]
    fn topology_shows_the_physical_block() {
        let limits = Limits::new(&BlkConfig::default(), &image());
        assert_eq!(topology(&limits).physical_block_exp, 3);
        let odd = Limits {
            optimal_size: 3 << 19,
            ..limits
        };
        assert_eq!(topology(&odd).physical_block_exp, 0);
    }

    /// virtio 1.3 §5.2.6.2
    #[test]
    fn cache_mode_follows_negotiation() {
        let mode = |features| Accepted::new(features).cache;
        assert_eq!(mode(Features::NONE), CacheMode::Writethrough);
        assert_eq!(mode(feature::FLUSH), CacheMode::Writeback);
        assert_eq!(mode(feature::CONFIG_WCE), CacheMode::Config);
        assert_eq!(mode(feature::CONFIG_WCE | feature::FLUSH), CacheMode::Config);
    }
}
