//! How likely a block is to be used again, by class and age, learnt online.
//!
//! For each class and age bucket: how many blocks came that far without a use (at risk) and how many were used in it
//! (events); their ratio is the discrete hazard of Kaplan and Meier (JASA 53, 1958), in which blocks that are forgotten
//! unseen count as censored. A class that has seen little is drawn to its family, the family to the whole (empirical Bayes).
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

    /// Notes that blocks of this weight have come to `bucket` unused.
    pub(super) fn at_risk(&mut self, row: u16, family: usize, bucket: usize, weight: u32) {
        let weight = weight as f32 / 256.0;
        self.rows[usize::from(row)].at_risk[bucket] += weight;
        self.whole.at_risk[bucket] += weight;
        if let Some(family) = &mut self.families[family] {
            family.at_risk[bucket] += weight;
        }
    }

    /// Notes that a block of this weight was used in `bucket`.
    pub(super) fn event(&mut self, row: u16, family: usize, bucket: usize, weight: u32) {
        let weight = weight as f32 / 256.0;
        self.rows[usize::from(row)].events[bucket] += weight;
        self.whole.events[bucket] += weight;
        if let Some(family) = &mut self.families[family] {
            family.events[bucket] += weight;
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
