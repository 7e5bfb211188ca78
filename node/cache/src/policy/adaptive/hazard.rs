//! How likely a block is to be used again, by class and age, learnt online.
//!
//! For each class and age bucket: how many blocks came that far without a use (at risk) and how many were used in it
//! (events); their ratio is the discrete hazard of Kaplan and Meier (JASA 53, 1958), in which blocks that are forgotten
//! unseen count as censored. A bucket counts when it is over, for used and unused blocks alike: if blocks counted as at risk when
//! they come to it, a young class would look as if its blocks never came back, for their uses are still ahead of it.
//! A class that has seen little is drawn to its family, the family to the whole (empirical Bayes).
//! From the hazards follows the Gittins index (J. Royal Stat. Soc. B 41, 1979): the best ratio, over all times to hold the
//! block from now, of the chance of a use to the expected time held. It is the rank of the block.

use super::ages::{Ages, BUCKETS};
use super::class::{FAMILIES, OCTILES};

/// Weight of what is drawn to: as if so many blocks had been seen.
const SHRINK: f32 = 30.0;

/// What is believed of a bucket nobody has reached: half an event in so many blocks.
const PRIOR_AT_RISK: f32 = 20.0;

/// Counts of one class, one family, or the whole.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    at_risk: [f32; BUCKETS],
    events: [f32; BUCKETS],
}

impl Counts {
    fn new() -> Counts {
        Counts { at_risk: [0.0; BUCKETS], events: [0.0; BUCKETS] }
    }

    fn scale(&mut self, by: f32) {
        for value in self.at_risk.iter_mut().chain(self.events.iter_mut()) {
            *value *= by;
        }
    }
}

/// The learnt hazards of all classes.
pub(super) struct Hazards {
    ages: Ages,
    whole: Counts,
    families: Vec<Option<Box<Counts>>>,
    rows: Vec<Counts>,
}

impl Hazards {
    pub(super) fn new(ages: Ages) -> Hazards {
        Hazards { ages, whole: Counts::new(), families: vec![None; FAMILIES], rows: Vec::new() }
    }

    /// Makes room for one more class; returns its number.
    pub(super) fn add_row(&mut self, family: usize) -> u16 {
        if self.families[family].is_none() {
            self.families[family] = Some(Box::new(Counts::new()));
        }
        self.rows.push(Counts::new());
        u16::try_from(self.rows.len() - 1).expect("there are fewer classes than 2^16")
    }

    /// Notes that of blocks of the weight `at_risk` that came to `bucket` unused, those of the weight `used` were used in it.
    pub(super) fn count(&mut self, row: u16, family: usize, bucket: usize, at_risk: u32, used: u32) {
        let (at_risk, used) = (at_risk as f32 / 256.0, used as f32 / 256.0);
        let row = Some(&mut self.rows[usize::from(row)]);
        let family = self.families[family].as_deref_mut();
        for counts in [row, family, Some(&mut self.whole)].into_iter().flatten() {
            counts.at_risk[bucket] += at_risk;
            counts.events[bucket] += used;
        }
    }

    /// Forgets a part of everything learnt.
    pub(super) fn decay(&mut self, by: f32) {
        self.whole.scale(by);
        for family in self.families.iter_mut().flatten() {
            family.scale(by);
        }
        for row in &mut self.rows {
            row.scale(by);
        }
    }

    /// Returns the hazard of each bucket for a class.
    pub(super) fn of(&self, row: u16, family: usize) -> [f32; BUCKETS] {
        let row = &self.rows[usize::from(row)];
        let mut hazard = [0.0; BUCKETS];
        for (bucket, hazard) in hazard.iter_mut().enumerate() {
            let mut belief = (self.whole.events[bucket] + 0.5) / (self.whole.at_risk[bucket] + PRIOR_AT_RISK);
            if let Some(family) = &self.families[family] {
                belief = (family.events[bucket] + SHRINK * belief) / (family.at_risk[bucket] + SHRINK);
            }
            belief = (row.events[bucket] + SHRINK * belief) / (row.at_risk[bucket] + SHRINK);
            *hazard = belief.min(0.999);
        }
        hazard
    }

    /// Returns the Gittins index of each bucket for a class: chance of a use per request held.
    pub(super) fn index(&self, row: u16, family: usize) -> [f32; BUCKETS] {
        gittins(&self.ages, &self.of(row, family))
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let families = self.families.iter().flatten().count();
        (self.rows.capacity() + families) * size_of::<Counts>()
            + self.families.capacity() * size_of::<usize>()
    }
}

/// Families and score levels there can be.
pub(super) const MAX_ROWS: usize = FAMILIES * OCTILES;

fn gittins(ages: &Ages, hazard: &[f32; BUCKETS]) -> [f32; BUCKETS] {
    let mut index = [0.0; BUCKETS];
    for (from, index) in index.iter_mut().enumerate() {
        let mut alive: f32 = 1.0;
        let mut held: f32 = 0.0;
        for (bucket, chance) in hazard.iter().enumerate().skip(from) {
            let after = alive * (1.0 - chance);
            held += ages.width(bucket) * (alive + after) * 0.5;
            alive = after;
            *index = f32::max(*index, (1.0 - alive) / held);
            if alive < 1e-4 {
                break;
            }
        }
    }
    index
}
