use crate::Counter;

/// Sub-buckets of each power of two: a bucket is at most an eighth of its lower bound wide.
const SUB: u32 = 8;
const SUB_BITS: u32 = SUB.ilog2();
/// The largest power of two that is told apart: 2^40 ns are 18 minutes.
const TOP_BIT: u32 = 39;

/// Buckets of a [`Histogram`].
pub const BUCKETS: usize = ((TOP_BIT - SUB_BITS + 1) * SUB + SUB) as usize;

/// How often each value occurred, in buckets of at most 12.5 % width; 0 to 7 exactly. Its size is fixed.
///
/// One thread records, any thread reads.
#[derive(Debug)]
pub struct Histogram {
    counts: [Counter; BUCKETS],
    sum: Counter,
    max: Counter,
}

/// The bucket of a value; those of 2^40 and more share the last.
#[inline]
pub fn bucket_of(value: u64) -> usize {
    if value < u64::from(SUB) {
        return value as usize;
    }
    let bit = value.ilog2();
    if bit > TOP_BIT {
        return BUCKETS - 1;
    }
    let shift = bit - SUB_BITS;
    // The bits below the first, so from SUB to 2 * SUB - 1.
    let top = (value >> shift) as u32;
    (shift * SUB + top) as usize
}

/// The largest value of a bucket.
pub fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket.min(BUCKETS - 1) as u64;
    let sub = u64::from(SUB);
    if bucket < 2 * sub {
        return bucket;
    }
    let shift = bucket / sub - 1;
    let top = bucket % sub + sub;
    ((top + 1) << shift) - 1
}

impl Histogram {
    /// Adds a value. Only the owning worker calls this.
    #[inline]
    pub fn record(&self, value: u64) {
        if let Some(count) = self.counts.get(bucket_of(value)) {
            count.add(1);
        }
        self.sum.add(value);
        self.max.raise_to(value);
    }

    /// The buckets that are not empty: largest value and count, in rising order.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = self.counts.iter().enumerate();
        counts.filter_map(|(bucket, count)| match count.get() {
            0 => None,
            count => Some((upper_bound(bucket), count)),
        })
    }

    /// The sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum.get()
    }

    /// The largest value so far.
    pub fn max(&self) -> u64 {
        self.max.get()
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [const { Counter::new() }; BUCKETS],
            sum: Counter::default(),
            max: Counter::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_narrow() {
        let mut before = None;
        for bucket in 0..BUCKETS {
            let upper = upper_bound(bucket);
            let lower = before.map_or(0, |before: u64| before + 1);
            assert_eq!((bucket_of(lower), bucket_of(upper)), (bucket, bucket), "{bucket}");
            assert!((upper - lower) * 8 <= lower.max(1), "{bucket}: {lower}..={upper}");
            before = Some(upper);
        }
        assert_eq!(upper_bound(BUCKETS - 1), (1 << 40) - 1);
        assert_eq!(bucket_of(1 << 40), BUCKETS - 1);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_is_recorded_is_told() {
        let histogram = Histogram::default();
        for value in [0, 3, 3, 1000, 1001, 1 << 50] {
            histogram.record(value);
        }
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(buckets, [(0, 1), (3, 2), (1023, 2), ((1 << 40) - 1, 1)]);
        assert_eq!((histogram.sum(), histogram.max()), (2007 + (1 << 50), 1 << 50));
    }
}
