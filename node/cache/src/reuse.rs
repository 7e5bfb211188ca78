//! How large a cache would have had to be for each use to be a hit: reuse distances of a sample of blocks chosen by key, as in
//! SHARDS (Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST 2015), with the rate fixed by the shard's size, so
//! that memory is bounded and what was seen too long ago is forgotten.
//!
//! The model is a cache that lets go what was used longest ago, ends of prefixes first, and of which a block counts only with
//! all blocks before it: what a shard with `lru` does at that size. It holds no blocks and decides nothing here; the coordinators
//! make of it what another size would be worth.

use kvhive_protocol::scaling::{REUSE_BUCKETS, Reuse, reuse_bucket};
use std::collections::BTreeMap;

/// Sampled blocks remembered at a time.
const SAMPLES: usize = 8192;
/// So many times as many blocks as the shard has room for can be looked back over.
const REACH: u64 = 8;
/// Bytes of the tree's entry for one sample, about.
const ENTRY: usize = 2 * (size_of::<u64>() + size_of::<u32>());
/// Nobody used this turn, or who did was here again since.
const NOBODY: u64 = 0;

/// Follows a shard's uses.
pub struct ReuseCurve {
    /// One block of so many is sampled, a power of two.
    one_in: u64,
    capacity: u64,
    /// Turns of sampled uses, oldest first: by whom, unless he came again since.
    turns: Vec<u64>,
    /// Sums over turns (Fenwick, "A New Data Structure for Cumulative Frequency Tables", 1994).
    sums: Vec<u32>,
    turn_of: BTreeMap<u64, u32>,
    next: u32,
    /// No turn before this is anybody's.
    oldest: u32,
    report: Reuse,
    /// Sampled blocks of the request at hand, and the distance of each.
    request: Vec<(u64, Option<u64>)>,
}

impl ReuseCurve {
    /// Makes one for a shard with room for so many blocks. Takes its memory as it fills.
    pub fn new(capacity: u64) -> ReuseCurve {
        let wanted = capacity.saturating_mul(REACH).div_ceil(SAMPLES as u64).max(1);
        ReuseCurve {
            one_in: wanted.min(1 << 32).next_power_of_two(),
            capacity,
            turns: Vec::new(),
            sums: Vec::new(),
            turn_of: BTreeMap::new(),
            next: 0,
            oldest: 0,
            report: Reuse { capacity_blocks: capacity, ..Reuse::default() },
            request: Vec::new(),
        }
    }

    /// Returns what it came to so far.
    pub fn report(&self) -> &Reuse {
        &self.report
    }

    /// A request asks for these blocks, from the head of its prefix on; `prints` are hashes of their keys.
    pub fn asked(&mut self, prints: impl Iterator<Item = u64>) {
        if self.capacity == 0 {
            return;
        }
        let mut request = std::mem::take(&mut self.request);
        request.clear();
        let mut farthest = Some(0);
        for print in prints {
            self.report.asked += 1;
            let print = print.max(NOBODY + 1);
            // Spread once more: a key's own bits may choose a slot or a shard already. By a mask: a division of each key costs more
            // than all else that a match does.
            if print.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32) & (self.one_in - 1) != 0 {
                continue;
            }
            // A block is of use with those before it only.
            farthest = self.distance(print).zip(farthest).map(|(own, before)| own.max(before));
            request.push((print, farthest));
        }
        // From the tail on, so that the head was used last.
        for (print, distance) in request.drain(..).rev() {
            match distance {
                Some(blocks) => self.report.counts[reuse_bucket(blocks)] += self.one_in,
                None => self.report.never += self.one_in,
            }
            self.touch(print);
        }
        request.shrink_to(SAMPLES);
        self.request = request;
    }

    /// Returns how many other blocks were used since this one was.
    fn distance(&self, print: u64) -> Option<u64> {
        let turn = *self.turn_of.get(&print)?;
        let up_to = self.sum(turn + 1);
        Some((self.turn_of.len() as u64 - u64::from(up_to)) * self.one_in)
    }

    fn touch(&mut self, print: u64) {
        if let Some(turn) = self.turn_of.remove(&print) {
            self.leave(turn);
        } else if self.turn_of.len() == SAMPLES {
            self.forget_oldest();
        }
        if self.next as usize == self.turns.len() {
            self.make_turns();
        }
        let turn = self.next;
        self.next += 1;
        self.turns[turn as usize] = print;
        self.add(turn, 1);
        self.turn_of.insert(print, turn);
    }

    fn forget_oldest(&mut self) {
        while self.turns[self.oldest as usize] == NOBODY {
            self.oldest += 1;
        }
        self.turn_of.remove(&self.turns[self.oldest as usize]);
        self.leave(self.oldest);
    }

    fn leave(&mut self, turn: u32) {
        self.turns[turn as usize] = NOBODY;
        self.add(turn, -1);
    }

    /// Closes up the turns that are somebody's, and makes as many more, from a few on.
    fn make_turns(&mut self) {
        self.turns.retain(|print| *print != NOBODY);
        let used = self.turns.len();
        self.turns.resize((2 * used).max(64), NOBODY);
        self.sums.clear();
        self.sums.resize(self.turns.len() + 1, 0);
        for turn in 0..used {
            self.turn_of.insert(self.turns[turn], turn as u32);
            self.add(turn as u32, 1);
        }
        (self.next, self.oldest) = (used as u32, 0);
    }

    /// Returns how many of the first turns are somebody's.
    fn sum(&self, turns: u32) -> u32 {
        let (mut at, mut sum) = (turns as usize, 0);
        while at > 0 {
            sum += self.sums[at];
            at &= at - 1;
        }
        sum
    }

    fn add(&mut self, turn: u32, by: i32) {
        let mut at = turn as usize + 1;
        while at < self.sums.len() {
            self.sums[at] = self.sums[at].wrapping_add_signed(by);
            at += at & at.wrapping_neg();
        }
    }

    /// Returns the bytes of memory that one holds at most, between requests.
    pub(crate) const fn bytes() -> usize {
        // Turns are at most twice the samples, and a vector's room at most twice what it had to be.
        let turns = 4 * SAMPLES * (size_of::<u64>() + size_of::<u32>());
        turns + SAMPLES * (ENTRY + size_of::<(u64, Option<u64>)>()) + REUSE_BUCKETS * size_of::<u64>()
    }

    #[cfg(test)]
    fn memory_bytes(&self) -> usize {
        self.turns.capacity() * size_of::<u64>()
            + self.sums.capacity() * size_of::<u32>()
            + self.turn_of.len() * ENTRY
            + self.request.capacity() * size_of::<(u64, Option<u64>)>()
            + REUSE_BUCKETS * size_of::<u64>()
    }
}

#[cfg(test)]
#[path = "reuse_test.rs"]
mod tests;
