//! Ages of blocks, counted in requests and kept in buckets that widen geometrically: a block's chance to come back changes
//! with the logarithm of its age, not with the age.

/// Buckets; the last one has no end. 1.6^34 requests are far beyond what a block can wait for.
pub(super) const BUCKETS: usize = 36;

/// Each bucket ends this many times later than the one before it.
const GROWTH: f64 = 1.6;

/// Number of a request in the shard's life, modulo 2^32. Ages are differences, so that wrapping is harmless.
pub(super) type Tick = u32;

/// Where each bucket begins, in requests.
#[derive(Clone, Debug)]
pub(super) struct Ages {
    begin: [u32; BUCKETS],
}

impl Ages {
    pub(super) fn new() -> Ages {
        let mut begin = [0; BUCKETS];
        let mut edge: f64 = 1.0;
        for slot in begin.iter_mut().skip(1) {
            *slot = edge as u32;
            edge = (edge * GROWTH).max(edge + 1.0);
        }
        Ages { begin }
    }

    /// Returns the age at which a block comes to `bucket`.
    pub(super) fn begin(&self, bucket: usize) -> u32 {
        self.begin[bucket]
    }

    /// Returns the age at which a block leaves `bucket`, none for the last.
    pub(super) fn end(&self, bucket: usize) -> Option<u32> {
        self.begin.get(bucket + 1).copied()
    }

    /// Returns how many requests a block spends in `bucket`. The last one counts as long as all before it together.
    pub(super) fn width(&self, bucket: usize) -> f32 {
        let begin = self.begin[bucket];
        (self.end(bucket).unwrap_or(begin.saturating_mul(2)) - begin) as f32
    }

    /// Returns the bucket of an age.
    pub(super) fn bucket(&self, age: u32) -> usize {
        self.begin.partition_point(|begin| *begin <= age) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_age_has_the_bucket_that_spans_it() {
        let ages = Ages::new();
        for age in [0, 1, 2, 3, 10, 1000, 65_537, u32::MAX] {
            let bucket = ages.bucket(age);
            assert!(ages.begin[bucket] <= age, "{age} in {bucket}");
            assert!(ages.end(bucket).is_none_or(|end| age < end), "{age} in {bucket}");
        }
    }
}
