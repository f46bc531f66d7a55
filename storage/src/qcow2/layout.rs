//! Bytes of tables that are made whole, not entry by entry.

use super::bytes::put;
use super::geometry::Geometry;

/// `blocks` refcount blocks, in which the first `ones` clusters have a refcount of 1.
pub(crate) fn refcounts(geometry: &Geometry, ones: u64, blocks: u64) -> Vec<u8> {
    let mut bytes = vec![0; (blocks << geometry.cluster_bits) as usize];
    for cluster in 0..ones {
        set_refcount(&mut bytes, geometry.refcount_order, cluster, 1);
    }
    bytes
}

/// Sets one refcount in a row of refcounts.
pub(crate) fn set_refcount(bytes: &mut [u8], order: u32, index: u64, value: u64) {
    let bit = index << order;
    let at = (bit / 8) as usize;
    if order < 3 {
        let mask = ((1u8 << (1 << order)) - 1) << (bit % 8);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = *byte & !mask | ((value as u8) << (bit % 8)) & mask;
        }
        return;
    }
    let width = 1usize << (order - 3);
    put(bytes, at, &value.to_be_bytes()[8 - width..]);
}
