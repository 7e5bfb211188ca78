//! What clusters of each size would cover, from what devices say of how they would do with other room
//! ([`kvhive_protocol::scaling::Reuse`]), of late. Sizes are counted in members, so that a change of size changes nothing that
//! is known.

use kvhive_protocol::scaling::{Reuse, reuse_range};

/// Steps an octave of sizes is parted in.
const PARTS: f64 = 8.0;
/// The smallest size told apart is 2 to the minus this.
const OCTAVES_BELOW: f64 = 10.0;
const STEPS: usize = 24 * PARTS as usize;

/// Uses by the size that would have made them hits.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    counts: Vec<f64>,
    asked: f64,
}

impl Curve {
    pub(super) fn new() -> Curve {
        Curve { counts: vec![0.0; STEPS], asked: 0.0 }
    }

    /// Adds what one device, of a cluster of `members`, has seen between two reports. Returns how much it was asked.
    pub(super) fn add(&mut self, members: f64, before: Option<&Reuse>, now: &Reuse) -> f64 {
        let none = Reuse::default();
        // A device that began anew counts from zero.
        let before = before.filter(|before| before.asked <= now.asked && before.never <= now.never);
        let before = before.unwrap_or(&none);
        if now.capacity_blocks == 0 {
            return 0.0;
        }
        let asked = now.asked.saturating_sub(before.asked) as f64;
        let never = now.never.saturating_sub(before.never) as f64;
        let mut sampled = 0.0;
        for (bucket, count) in now.counts.iter().enumerate() {
            let count = count.saturating_sub(before.counts.get(bucket).copied().unwrap_or(0)) as f64;
            if count > 0.0 {
                sampled += count;
                let members = |blocks: f64| place(members * blocks / now.capacity_blocks as f64);
                let (from, to) = reuse_range(bucket);
                self.spread(members(from), members(to), count);
            }
        }
        // What a sample has too few or too many of are blocks used again and again (SHARDS-adj in the same paper).
        let adjusted = self.counts[0] + asked - sampled - never;
        self.counts[0] = adjusted.max(0.0);
        self.asked += asked;
        asked
    }

    /// Spreads uses over all places between two: where in its bucket a distance was, nobody knows.
    fn spread(&mut self, from: f64, to: f64, count: f64) {
        let width = to - from;
        if width <= 0.0 {
            self.counts[from as usize] += count;
            return;
        }
        for at in from as usize..=to as usize {
            let part = (to.min(at as f64 + 1.0) - from.max(at as f64)).max(0.0);
            self.counts[at] += count * part / width;
        }
    }

    /// Lets what is older count less.
    pub(super) fn fade(&mut self, by: f64) {
        self.counts.iter_mut().for_each(|count| *count *= by);
        self.asked *= by;
    }

    /// Returns how much was asked, as far as it still counts.
    pub(super) fn asked(&self) -> f64 {
        self.asked
    }

    /// Returns the share of what was asked that any room would have covered.
    pub(super) fn reused(&self) -> f64 {
        if self.asked > 0.0 { (self.counts.iter().sum::<f64>() / self.asked).min(1.0) } else { 0.0 }
    }

    /// Returns the share of what was asked that so many members would have covered.
    pub(super) fn hit_rate(&self, members: f64) -> f64 {
        if self.asked <= 0.0 {
            return 0.0;
        }
        let at = place(members);
        let whole = at as usize;
        let below: f64 = self.counts[..whole].iter().sum();
        ((below + self.counts[whole] * (at - whole as f64)) / self.asked).min(1.0)
    }
}

/// Returns the place of a size among steps, with what part of the step it has passed.
fn place(members: f64) -> f64 {
    let octaves = members.max(f64::MIN_POSITIVE).log2() + OCTAVES_BELOW;
    (octaves * PARTS).clamp(0.0, STEPS as f64 - 1.0)
}
