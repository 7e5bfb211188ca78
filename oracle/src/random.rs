//! Numbers that a seed decides: SplitMix64. Not for secrets.

/// A sequence of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

/// Mixes a word so that each bit of it decides about half of the result's.
pub(crate) fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ word >> 31
}

impl Random {
    /// Begins the sequence of a seed.
    pub fn new(seed: u64) -> Random {
        Random(mix(seed ^ 0x6B76_6869_7665))
    }

    /// Begins another sequence for `part`, which takes nothing of this one.
    pub fn part(&self, part: u64) -> Random {
        Random(mix(self.0 ^ mix(part.wrapping_add(1))))
    }

    /// Returns the next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Returns a number below `bound`; 0 where that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // Off by less than one in 2^32 for bounds of any use here.
        if bound == 0 { 0 } else { self.draw() % bound }
    }

    /// Returns a number of `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }
}
