//! What has left a shard, or was refused by it, and why: for whoever asks why a block is a miss. As many are remembered as there
//! are frames, eight bytes each, in sets of eight by the hash of tenant and key. A ninth pushes out the oldest of its set, so that
//! to note one, or to find one, touches one line of the processor's cache.
//!
//! Besides its set, 28 bits of its hash tell a block from others: once in 33 million questions another one is taken for it. The
//! hash is keyed by what nobody outside knows and salted by the tenant: what left of another tenant is not found by the same key.

use crate::block::Tier;
use kvhive_protocol::explain::{Departure, Explained, Since};
use kvhive_protocol::strategy::Strategy;
use kvhive_protocol::watch::{BlockTier, Gone};

/// Blocks of one set.
const WAYS: usize = 8;
/// Sets that there are at least.
const LEAST_SETS: usize = 8;

/// Bits of an entry, from the lowest on: of the hash; for why, from where and by which strategy it went; the rest for when.
const TAG_BITS: u32 = 28;
const WHY_SHIFT: u32 = TAG_BITS;
const FROM_SHIFT: u32 = WHY_SHIFT + 4;
const STRATEGY_SHIFT: u32 = FROM_SHIFT + 2;
const SECONDS_SHIFT: u32 = STRATEGY_SHIFT + 4;
/// Two years: what is noted later counts as noted then.
const MAX_SECONDS: u32 = (1 << (64 - SECONDS_SHIFT)) - 1;

const _: () = assert!(Gone::ALL.len() < 1 << 4 && Tier::ALL.len() < 1 << 2 && Strategy::ALL.len() <= 1 << 4);

/// One set, newest first; 0 where there is no entry.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Set([u64; WAYS]);

/// What has left.
pub(crate) struct Departed {
    sets: Vec<Set>,
}

impl Departed {
    /// Remembers nothing yet, and as many as there are frames at most. It takes its memory at once.
    pub(crate) fn new(frames: usize) -> Departed {
        Departed { sets: vec![Set([0; WAYS]); Departed::sets(frames)] }
    }

    const fn sets(frames: usize) -> usize {
        let sets = frames.div_ceil(WAYS);
        if sets > LEAST_SETS { sets } else { LEAST_SETS }
    }

    /// Returns the bytes that it takes for so many frames.
    pub(crate) const fn bytes(frames: usize) -> usize {
        Departed::sets(frames) * size_of::<Set>()
    }

    /// Notes, in second `now_s`, that the block of this hash went; of what it did before that is forgotten.
    pub(crate) fn note(&mut self, hash: u64, why: Gone, from: Option<Tier>, strategy: Strategy, now_s: u32) {
        let code = |at: Option<usize>| at.map_or(0, |at| at as u64 + 1);
        let why = code(Gone::ALL.iter().position(|one| *one == why));
        let strategy = Strategy::ALL.iter().position(|one| *one == strategy).unwrap_or_default() as u64;
        let entry = tag(hash)
            | why << WHY_SHIFT
            | code(from.map(|tier| tier as usize)) << FROM_SHIFT
            | strategy << STRATEGY_SHIFT
            | u64::from(now_s.min(MAX_SECONDS)) << SECONDS_SHIFT;
        let at = self.set_of(hash);
        let Set(set) = &mut self.sets[at];
        let place = set.iter().position(|other| *other == 0 || tag(*other) == tag(hash));
        set.copy_within(..place.unwrap_or(WAYS - 1), 1);
        set[0] = entry;
    }

    /// Says in second `now_s` what became of the block of this hash, if it is not here. `began_s` is when the first could go.
    pub(crate) fn explain(&self, hash: u64, began_s: u32, now_s: u32) -> Explained {
        let Set(set) = &self.sets[self.set_of(hash)];
        if let Some(entry) = set.iter().find(|entry| **entry != 0 && tag(**entry) == tag(hash)) {
            return Explained::Gone(departure(*entry, now_s));
        }
        match set[WAYS - 1] {
            0 => Explained::Unknown { since: Since::Began, for_s: now_s.saturating_sub(began_s) },
            // It may have pushed out what went before it.
            oldest => Explained::Unknown { since: Since::Forgotten, for_s: ago_s(oldest, now_s) },
        }
    }

    /// Returns a hash's set: the hash as a fraction of one, of as many sets. So it is the upper bits that decide.
    fn set_of(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.sets.len() as u128) >> 64) as usize
    }
}

fn tag(hash_or_entry: u64) -> u64 {
    hash_or_entry & ((1 << TAG_BITS) - 1)
}

fn ago_s(entry: u64, now_s: u32) -> u32 {
    now_s.saturating_sub((entry >> SECONDS_SHIFT) as u32)
}

fn departure(entry: u64, now_s: u32) -> Departure {
    let field = |shift: u32, next: u32| (entry >> shift) as usize & ((1 << (next - shift)) - 1);
    let tier = field(FROM_SHIFT, STRATEGY_SHIFT).checked_sub(1);
    Departure {
        why: Gone::ALL[field(WHY_SHIFT, FROM_SHIFT).saturating_sub(1)],
        from: tier.map(|at| BlockTier::from(Tier::ALL[at])),
        strategy: Strategy::ALL[field(STRATEGY_SHIFT, SECONDS_SHIFT)],
        ago_s: ago_s(entry, now_s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> u64 {
        (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    fn gone(why: Gone, from: Option<BlockTier>, strategy: Strategy, ago_s: u32) -> Explained {
        Explained::Gone(Departure { why, from, strategy, ago_s })
    }

    #[test]
    fn every_cause_comes_back_as_it_was_noted() {
        for (number, why) in (0..).zip(Gone::ALL) {
            for strategy in Strategy::ALL {
                for from in [None, Some(Tier::Device), Some(Tier::Host), Some(Tier::Disk)] {
                    let mut departed = Departed::new(8);
                    departed.note(hash(number), why, from, strategy, 40);
                    let told = departed.explain(hash(number), 3, 100);
                    assert_eq!(told, gone(why, from.map(BlockTier::from), strategy, 60));
                }
            }
        }
    }

    #[test]
    fn what_never_came_is_unknown_since_the_begin_or_since_others_were_forgotten() {
        let mut departed = Departed::new(0);
        let never = Explained::Unknown { since: Since::Began, for_s: 90 };
        assert_eq!(departed.explain(hash(1), 10, 100), never);
        // All of one set.
        for number in 0..20 {
            departed.note(number, Gone::Evicted, Some(Tier::Host), Strategy::Lru, 50 + number as u32);
        }
        let of_set = Explained::Unknown { since: Since::Forgotten, for_s: 100 - (50 + 12) };
        assert_eq!(departed.explain(999, 10, 100), of_set);
        assert_eq!(departed.explain(11, 10, 100), of_set, "it was pushed out");
        let last = gone(Gone::Evicted, Some(BlockTier::Host), Strategy::Lru, 38);
        assert_eq!(departed.explain(12, 10, 100), last);
        assert_eq!(departed.explain(u64::MAX / 2, 10, 100), never, "other sets are as they were");
    }

    #[test]
    fn who_goes_again_has_one_entry_and_is_the_newest() {
        let mut departed = Departed::new(0);
        for number in 0..8 {
            departed.note(number, Gone::Evicted, None, Strategy::Lru, 1);
        }
        departed.note(0, Gone::Cleared, None, Strategy::Lru, 1);
        departed.note(8, Gone::Over, None, Strategy::Lru, 1);
        let why = |number: u64| match departed.explain(number, 0, 1) {
            Explained::Gone(departure) => Some(departure.why),
            _ => None,
        };
        let evicted = Some(Gone::Evicted);
        let expected = [
            Some(Gone::Cleared),
            None,
            evicted,
            evicted,
            evicted,
            evicted,
            evicted,
            evicted,
            Some(Gone::Over),
        ];
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8].map(why), expected);
    }

    #[test]
    fn it_takes_eight_bytes_a_frame_and_remembers_about_as_many() {
        const FRAMES: u64 = 10_000;
        let mut departed = Departed::new(FRAMES as usize);
        assert_eq!(Departed::bytes(FRAMES as usize), 8 * FRAMES as usize);
        for number in 0..10 * FRAMES {
            departed.note(hash(number), Gone::Evicted, None, Strategy::Lru, number as u32);
        }
        assert_eq!(departed.sets.len() * size_of::<Set>(), Departed::bytes(FRAMES as usize));
        let known = |number: u64| matches!(departed.explain(hash(number), 0, 0), Explained::Gone(_));
        let remembered = (0..10 * FRAMES).filter(|number| known(*number)).count() as u64;
        assert!((FRAMES * 99 / 100..=FRAMES).contains(&remembered), "{remembered}");
        let recent = (10 * FRAMES - FRAMES / 2..10 * FRAMES).filter(|number| known(*number)).count() as u64;
        assert!(recent > FRAMES / 2 * 9 / 10, "{recent} of the last {}", FRAMES / 2);
    }

    #[test]
    fn what_is_noted_after_two_years_counts_as_noted_then() {
        let mut departed = Departed::new(0);
        departed.note(5, Gone::Lost, Some(Tier::Disk), Strategy::Quantized, u32::MAX);
        let told = departed.explain(5, 0, MAX_SECONDS + 7);
        assert_eq!(told, gone(Gone::Lost, Some(BlockTier::Disk), Strategy::Quantized, 7));
    }
}
