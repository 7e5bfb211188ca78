//! Which records of a file are taken. The next one free is looked for from where the last was found, so that blocks that
//! come together lie together.

use std::sync::{Mutex, MutexGuard, PoisonError};

struct Bits {
    /// One bit a record: taken.
    words: Vec<u64>,
    /// Where to look next.
    next: u32,
    free: u32,
}

/// The records of one file.
pub(super) struct Places {
    bits: Mutex<Bits>,
    records: u32,
}

impl Places {
    pub(super) fn new(records: u32) -> Places {
        let words = vec![0; records.div_ceil(64) as usize];
        Places { bits: Mutex::new(Bits { words, next: 0, free: records }), records }
    }

    fn lock(&self) -> MutexGuard<'_, Bits> {
        self.bits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn records(&self) -> u32 {
        self.records
    }

    /// Takes a free one.
    pub(super) fn take(&self) -> Option<u32> {
        let mut bits = self.lock();
        if bits.free == 0 {
            return None;
        }
        let mut at = bits.next;
        loop {
            if at >= self.records {
                at = 0;
            }
            let word = bits.words[at as usize / 64] >> (at % 64);
            // Past the taken ones of this word, or to the next word.
            let taken = word.trailing_ones();
            if taken == 0 {
                break;
            }
            at += taken.min(64 - at % 64);
        }
        bits.words[at as usize / 64] |= 1 << (at % 64);
        bits.free -= 1;
        bits.next = at + 1;
        Some(at)
    }

    /// Takes this one; false when it is taken already, or there is none.
    pub(super) fn take_this(&self, at: u32) -> bool {
        let mut bits = self.lock();
        if at >= self.records || bits.words[at as usize / 64] >> (at % 64) & 1 == 1 {
            return false;
        }
        bits.words[at as usize / 64] |= 1 << (at % 64);
        bits.free -= 1;
        true
    }

    pub(super) fn give_back(&self, at: u32) {
        let mut bits = self.lock();
        debug_assert!(bits.words[at as usize / 64] >> (at % 64) & 1 == 1, "a record is given back once");
        bits.words[at as usize / 64] &= !(1 << (at % 64));
        bits.free += 1;
    }

    #[cfg(test)]
    pub(super) fn free(&self) -> u32 {
        self.lock().free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_taken_once_in_order_and_found_again_when_it_is_free() {
        for records in [2, 63, 64, 65, 200] {
            let places = Places::new(records);
            let all: Vec<u32> = std::iter::from_fn(|| places.take()).collect();
            assert_eq!(all, (0..records).collect::<Vec<_>>());
            places.give_back(records / 2);
            assert!(!places.take_this(0) && !places.take_this(records));
            assert_eq!((places.take(), places.take()), (Some(records / 2), None));
        }
        let places = Places::new(130);
        assert!(places.take_this(0) && places.take_this(129) && !places.take_this(129));
        assert_eq!((places.take(), places.free()), (Some(1), 127));
    }
}
