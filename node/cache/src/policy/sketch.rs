//! A count-min sketch of four-bit counters that forgets: after ten uses for each block of the pool all counts are halved (the
//! "reset" of TinyLFU: Einziger, Friedman, Manes, ACM TOS 2017). 32 bytes for each block of the pool, whatever the number of keys.

use super::ghosts::Print;

/// Counters that a key has.
const ROWS: usize = 4;
const MAX_COUNT: u64 = 15;
/// Between two halvings come up to ten keys for each block, nearly all of them new: with fewer words they drown the counts
/// (measured on the shared traces: one word loses 1 to 2 points of hit rate against exact counts, four lose 0.1).
const WORDS_PER_BLOCK: usize = 4;
/// Words at most: 256 MiB. Beyond 8 Mi blocks the counts grow less exact.
const MAX_WORDS: usize = 1 << 25;
/// Every second bit of four: what a shifted counter may keep.
const HALVES: u64 = 0x7777_7777_7777_7777;

/// How often each key was used lately, never less than in truth.
pub(super) struct Sketch {
    words: Vec<u64>,
    uses: usize,
    uses_to_halve: usize,
}

impl Sketch {
    pub(super) fn new(capacity: u32) -> Sketch {
        let words = Sketch::words(capacity as usize);
        Sketch { words: vec![0; words], uses: 0, uses_to_halve: 10 * capacity.max(1) as usize }
    }

    fn words(capacity: usize) -> usize {
        (WORDS_PER_BLOCK * capacity).clamp(8, MAX_WORDS)
    }

    /// Returns the bytes that one for so many blocks takes.
    pub(super) fn most_bytes(capacity: usize) -> usize {
        Sketch::words(capacity) * size_of::<u64>()
    }

    /// Counts a use.
    pub(super) fn count(&mut self, print: Print) {
        // Only the lowest counters grow (conservative update): the others are too high already.
        let least = self.estimate(print);
        if least < MAX_COUNT {
            for row in 0..ROWS {
                let (word, shift) = self.counter(print, row);
                if self.words[word] >> shift & MAX_COUNT == least {
                    self.words[word] += 1 << shift;
                }
            }
        }
        self.uses += 1;
        if self.uses >= self.uses_to_halve {
            self.uses = 0;
            for word in &mut self.words {
                *word = *word >> 1 & HALVES;
            }
        }
    }

    /// Returns the uses counted, at most 15.
    pub(super) fn estimate(&self, print: Print) -> u64 {
        let counts = (0..ROWS).map(|row| {
            let (word, shift) = self.counter(print, row);
            self.words[word] >> shift & MAX_COUNT
        });
        counts.min().unwrap_or(0)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }

    /// Returns the word of a key's counter in a row, and its bit. A word has four counters of each row.
    fn counter(&self, print: Print, row: usize) -> (usize, u32) {
        const MIX: [u64; ROWS] =
            [0x9E37_79B9_7F4A_7C15, 0xC2B2_AE3D_27D4_EB4F, 0x1656_67B1_9E37_79F9, 0xD6E8_FEB8_6659_FD93];
        let mixed = u64::from(print).wrapping_add(MIX[row]).wrapping_mul(MIX[row]);
        let mixed = mixed ^ mixed >> 32;
        // The lower half as a fraction of one, of as many words.
        let word = ((mixed & 0xFFFF_FFFF) as usize * self.words.len()) >> 32;
        let column = (mixed >> 62) as u32;
        (word, 4 * (4 * row as u32 + column))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_never_too_low_and_seldom_too_high() {
        let mut sketch = Sketch::new(1000);
        let print = |key: u64| ((key + 1).wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as Print;
        for key in 0..1000 {
            for _ in 0..key % 8 {
                sketch.count(print(key));
            }
        }
        let off: Vec<u64> = (0..1000).map(|key| sketch.estimate(print(key)) - key % 8).collect();
        assert!(off.iter().filter(|off| **off > 0).count() < 100, "{off:?}");
    }

    #[test]
    fn old_uses_are_half_forgotten() {
        let mut sketch = Sketch::new(2);
        for _ in 0..19 {
            sketch.count(7);
        }
        assert_eq!(sketch.estimate(7), MAX_COUNT);
        sketch.count(7);
        assert_eq!((sketch.estimate(7), sketch.memory_bytes()), (7, 64));
    }
}
